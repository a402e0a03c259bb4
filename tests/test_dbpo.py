"""dbpo_ppo.py: the reward, the roll-out and its values at every end, the update, whole runs.

The equations themselves are tested in test_dbpo_loss.py.
"""

import copy
import json
import math
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import commands
import dbp_report
import dbp_train
import dbpo_ppo
import envs
import evaluate
import files
import saves
from baselines import prepare
from conftest import ROOT, cli, write_demos
from dbpo_loss import Actor, Critic, actor_loss, critic_loss, gae, log_prob
from dbpo_noise import SIGMAS, added, bearable, noise_for
from dbpo_ppo import anchor_weight, annealed, learning, learning_rates, paced, verdict
from dbpo_rollout import (
    apply,
    chunk_reward,
    collect,
    leaves,
    make_buffer,
    pieces,
    reward_of,
    take,
)
from dbpo_update import update
from drift import chunk_loss
from encoders import vision_of
from envs import TASKS, Simulators, Stepped
from files import load_torch
from policy import Policy
from runs import read_log
from task import Task, observation_space
from test_dbpo_loss import make_policy, slow_gae

PUSHT = TASKS["pusht"]


def make_args(**change):
    """The flags that the roll-out and the losses read."""
    flags = {
        "gamma": 0.99,
        "inner_gamma": 1.0,
        "success_bonus": 0.0,
        "minibatch_size": 8,
        "clip_coef": 0.2,
        "clip_value": 0.0,
        "vf_coef": 1.0,
        "ent_coef": 0.0,
        "per_dimension": False,
        "smooth": 0.0,
        "shift": 0,
        "keep_encoder": False,
    }
    return Namespace(**{**flags, **change})


class Line(gym.Env):
    """The state counts steps, from ten times the seed's last digit on; the reward counts from 1.

    The episode is terminated or truncated, as `how` says, at step `ends`.
    """

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends=5, how="terminated"):
        self.ends = ends
        self.how = how
        self.observation_space = observation_space(LINE)

    def reset(self, *, seed=None, options=None):
        self.n = 0
        self.first = 10 * (seed % 10)
        return {"state": np.float32([self.first])}, {}

    def step(self, action):
        self.n += 1
        over = self.n == self.ends
        obs = {"state": np.float32([self.first + self.n])}
        terminated = over and self.how == "terminated"
        truncated = over and self.how == "truncated"
        return obs, float(self.n), terminated, truncated, {}


LINE = Task(
    name="line",
    obs={"state": (1,)},
    D_a=1,
    T_o=1,
    T_p=2,
    T_a=2,
    env=Line,
    steps=100,
    score="sum",
)


def simulators(task, n, seed=0, state=None):
    """n simulators of a task in this process."""
    return Simulators(task, n, T_o=task.T_o, T_a=task.T_a, workers=False, seed=seed, state=state)


def filled(policy, task, *, S=6, N=4, frozen=None, sigma=0.1, seed=0, **flags):
    """An actor, a critic, and a buffer that they filled by S steps of N simulators."""
    actor = Actor(policy, sigma, (0.5, 2), rho=0.9)
    critic = Critic(policy)
    sims = simulators(task, N, seed)
    args = make_args(**flags)
    buffer = make_buffer(policy, S, N, args.keep_encoder)
    generator = torch.Generator().manual_seed(seed)
    scores, _ = collect(actor, critic, frozen, sims, buffer, task, args, generator)
    buffer["advantage"] = torch.randn(S, N, generator=torch.Generator().manual_seed(1))
    buffer["return"] = buffer["advantage"] + buffer["value"]
    return actor, critic, buffer, scores


def flat(buffer):
    """A buffer's samples as one minibatch."""
    return apply(lambda v: v.flatten(0, 1), buffer)


def same(a, b):
    """Assert that two nested containers are equal, tensors bit for bit, NaN where the other is."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    else:
        assert a == b or a != a


# ---- the reward ----------------------------------------------------------------------------------


def test_chunk_reward():
    """Sums, and what the highest gains; steps that did not run are NaN and pay nothing."""
    nan = np.nan
    rewards = np.array([[1.0, 2.0, 4.0], [3.0, nan, nan]])
    assert chunk_reward(rewards, None, "sum", 1.0).tolist() == [7.0, 3.0]
    assert chunk_reward(rewards, None, "sum", 0.5).tolist() == [3.0, 3.0]
    # Gains 0.5, 1, 2 discounted by 1, 0.5, 0.25; and a single gain of 2.
    assert chunk_reward(rewards, np.array([0.5, 1.0]), "max", 0.5).tolist() == [1.5, 2.0]
    # What falls back costs nothing, and pays nothing when it comes again.
    rewards = np.array([[0.6, 0.2, 0.7], [0.1, 0.5, 0.2]])
    paid = chunk_reward(rewards, np.array([0.5, 0.9]), "max", 1.0)
    np.testing.assert_allclose(paid, [0.2, 0.0])


def test_reward_of_by_hand():
    """A chunk of three simulators: success at its end, a failure at its end, and in mid-episode."""
    nan = np.nan
    stepped = Stepped(
        obs={"state": np.array([[[9.0], [4.0]], [[9.0], [1.0]], [[9.0], [0.0]]])},  # (3, 2, 1)
        rewards=np.array([[1.0, nan], [1.0, 2.0], [1.0, 1.0]]),
        reached=np.zeros(3),
        success=np.array([True, False, True]),
        terminated=np.array([True, True, False]),
        truncated=np.array([False, False, False]),
        scores=np.array([1.0, 3.0]),
    )
    task = replace(LINE, T_o=2, T_a=1)
    assert reward_of(stepped, task, make_args()).tolist() == [1, 3, 2]
    # Success pays at an episode's end alone: the third has reached it and goes on.
    assert reward_of(stepped, task, make_args(success_bonus=10.0)).tolist() == [11, 3, 2]


def test_reward_of_a_highest_reward():
    """Where the score is the highest reward, the chunk is paid what it adds to it."""
    stepped = Stepped(
        obs={"state": np.zeros((2, 1, 1))},
        rewards=np.array([[0.7, 0.4], [0.7, np.nan]]),
        reached=np.array([0.3, 0.0]),
        success=np.array([False, True]),
        terminated=np.array([False, True]),
        truncated=np.array([False, False]),
        scores=np.array([0.5]),
    )
    task = replace(LINE, score="max")
    paid = reward_of(stepped, task, make_args(success_bonus=1.0))
    np.testing.assert_allclose(paid, [0.4, 0.7 + 1])


def test_rewards_add_up_to_the_score():
    """Over whole episodes of Push-T, without bonus and discount."""
    task = replace(PUSHT, steps=24)
    rng = np.random.default_rng(0)
    sims = simulators(task, 8)
    total = np.zeros(8)
    for t in range(3):
        progress = sims.progress()
        np.testing.assert_allclose(progress[:, 0], t / 3)
        np.testing.assert_allclose(progress[:, 1], total, atol=1e-12)  # reached so far
        stepped = sims.step(rng.uniform(0, 512, (8, 8, 2)).astype(np.float32))
        total = total + reward_of(stepped, task, make_args())
    np.testing.assert_allclose(total, stepped.scores)
    assert total.max() > 0 and not sims.progress().any()  # new episodes have begun


def paid(sims, task, args, chunks):
    """What a step of simulators is paid, (N,)."""
    return reward_of(sims.step(chunks), task, args)


class Ends(Line):
    """A line that pays nothing and succeeds at its end if it began at 30."""

    def step(self, action):
        obs, _, terminated, truncated, _ = super().step(action)
        return obs, 0.0, terminated, truncated, {"is_success": terminated and self.first == 30}


def test_bonus_is_paid_for_success_alone():
    """Ends by success pay the bonus once; a failure does not."""
    task = replace(LINE, env=lambda: Ends(3))
    args = make_args(success_bonus=2.0)
    still = np.zeros((1, 2, 1), np.float32)
    sims = simulators(task, 1)
    assert [paid(sims, task, args, still)[0] for _ in range(4)] == [0, 0, 0, 0]
    assert sims.seeds.tolist() == [2_000_002]
    state = {
        "seeds": torch.tensor([13]),
        "next": 24,
        "past": [torch.zeros(0)],
        "score": torch.zeros(1),
    }
    sims = simulators(task, 1, state=state)
    assert [paid(sims, task, args, still)[0] for _ in range(4)] == [0, 2, 0, 0]


def test_time_limit_pays_no_bonus():
    """Success that the time limit cuts off is not an end by success."""

    class Succeeds(Line):
        def step(self, action):
            obs, _, terminated, truncated, _ = super().step(action)
            return obs, 0.0, terminated, truncated, {"is_success": True}

    task = replace(LINE, env=lambda: Succeeds(ends=2, how="truncated"))
    sims = simulators(task, 1)
    assert paid(sims, task, make_args(success_bonus=2.0), np.zeros((1, 2, 1), "f4")).tolist() == [0]


# ---- the buffer ----------------------------------------------------------------------------------

SPECS = {
    "state": {"shape": [3], "dtype": "float32"},
    "points": {"shape": [10, 3], "dtype": "float32"},
    "wrist": {"shape": [8, 6, 3], "dtype": "uint8"},
}


def camera_buffer(S=5, N=4):
    """The buffer of a policy that sees numbers, a cloud and a camera."""
    stub = SimpleNamespace(T_o=2, T_p=8, T_a=4, D_a=7, specs=SPECS, device="cpu")
    return make_buffer(stub, S, N)


def test_buffer_keeps_pictures_as_uint8():
    """A picture takes one byte a value; all else is float32."""
    buffer = camera_buffer()
    assert {name: (tuple(y.shape), y.dtype) for name, y in buffer["obs"].items()} == {
        "state": ((5, 4, 2, 3), torch.float32),
        "points": ((5, 4, 2, 10, 3), torch.float32),
        "wrist": ((5, 4, 2, 8, 6, 3), torch.uint8),
    }
    rest = {k: v for k, v in buffer.items() if k != "obs"}
    assert all(v.dtype == torch.float32 for v in rest.values())
    assert buffer["z"].shape == (5, 4, 8, 7) and buffer["a"].shape == (5, 4, 4, 7)
    assert buffer["ran"].shape == (5, 4, 4) and buffer["reward"].shape == (5, 4)
    assert len(list(leaves(buffer))) == len(rest) + 3


def test_minibatches_keep_pictures_as_uint8():
    """Cut into pieces or minibatches, pictures stay uint8 and samples stay together."""
    buffer = camera_buffer()
    n = torch.arange(20).view(5, 4)
    buffer["reward"].copy_(n)
    buffer["obs"]["wrist"][..., 0, 0, 0, 0] = n.to(torch.uint8)
    cut = list(pieces(buffer, 8))
    assert [len(piece["reward"]) for piece in cut] == [8, 8, 4]
    for piece in (*cut, take(flat(buffer), torch.tensor([7, 3]))):
        wrist = piece["obs"]["wrist"]
        assert wrist.dtype == torch.uint8
        assert wrist[:, 0, 0, 0, 0].tolist() == piece["reward"].tolist()
    assert cut[1]["reward"].tolist() == list(range(8, 16))


# ---- the roll-out --------------------------------------------------------------------------------


def test_ratio_is_one_before_the_first_step():
    """On every stored sample, ends inside chunks included, in minibatches of another size.

    With a handful of simulators torch takes other kernels for the roll-out's batch than for the
    update's, whose means differ by 1e-6; divided by sigma that is some 1e-5 of the ratio. From 32
    on the means are equal bit for bit.
    """
    actor, _, buffer, _ = filled(make_policy(), replace(PUSHT, steps=20), S=6, N=32)
    samples = flat(buffer)
    assert samples["ran"].sum(-1).unique().tolist() == [4, 8]  # 8 + 8 + 4 steps an episode
    for i in torch.randperm(192, generator=torch.Generator().manual_seed(0)).split(48):
        b = take(samples, i)
        mu, log_sigma = actor(b["obs"], b["z"])
        new = log_prob(b["a"], actor.policy.executed(mu), log_sigma, b["ran"], actor.mix)
        assert ((new - b["log_prob"]).exp() - 1).abs().max() < 1e-5


class Bar(gym.Env):
    """A camera of 20 x 24 pixels; a bright column stands where the last action put it."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.observation_space = observation_space(BAR)

    def picture(self, at):
        picture = np.full((20, 24, 3), 30, np.uint8)
        picture[:, int(11 + 8 * at) : int(13 + 8 * at)] = 220
        return {"front": picture, "place": np.float32([at])}

    def reset(self, *, seed=None, options=None):
        return self.picture(0.0), {}

    def step(self, action):
        return self.picture(action.item()), -abs(action.item() - 0.5), False, False, {}


BAR = Task(
    name="bar",
    obs={"front": (20, 24, 3), "place": (1,)},
    crop={"front": (18, 20)},
    D_a=1,
    T_o=2,
    T_p=4,
    T_a=2,
    env=Bar,
    steps=9,
    score="sum",
)


def seeing_policy():
    """An untrained policy of BAR."""
    torch.manual_seed(0)
    shape = {
        "task": "bar",
        "obs": BAR.specs,
        "D_a": 1,
        "T_o": 2,
        "T_p": 4,
        "T_a": 2,
        "dims": (8, 16),
        **vision_of(BAR.obs, BAR.crop),
    }
    one = (torch.tensor([-1.0]), torch.tensor([1.0]))
    return Policy(shape, {"obs": {"place": one}, "action": one}).eval()


@pytest.mark.parametrize("shift", [0, 3])
def test_pictures_are_stored_as_they_were_seen(shift):
    """Moved by --shift or not, the ratio on the stored pictures is 1, and they stay uint8."""
    actor, _, buffer, _ = filled(seeing_policy(), BAR, S=6, N=32, shift=shift)
    seen = buffer["obs"]["front"]
    column = (seen[:, :, 0, 0, :, 0] == 220).float().argmax(-1)  # at an episode's start: 11
    starts = column[0]
    assert seen.dtype == torch.uint8 and starts.unique().tolist() == [
        *range(11 - shift, 12 + shift)
    ]
    assert (seen[:, :, 0] == seen[:, :, 1]).flatten(2).all(-1)[0].all()  # both frames moved alike
    b = flat(buffer)
    mu, log_sigma = actor(b["obs"], b["z"])
    new = log_prob(b["a"], actor.policy.executed(mu), log_sigma, b["ran"], actor.mix)
    assert ((new - b["log_prob"]).exp() - 1).abs().max() < 1e-4
    loss, _ = actor_loss(actor, b, make_args(smooth=1.0), anchor=0.0)
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in actor.policy.encoder.parameters())


def test_a_kept_encoder_is_asked_once():
    """With --keep-encoder the buffer holds what it makes of the pictures; no update moves it."""
    policy = seeing_policy()
    pictures = filled(policy, BAR, S=3, N=4)[2]["obs"]
    policy.keep_cameras()
    before = copy.deepcopy(policy.state_dict())
    actor, critic, buffer, _ = filled(policy, BAR, S=3, N=4, keep_encoder=True)
    assert buffer["obs"]["front"].shape == (3, 4, BAR.T_o, policy.frame_sizes["front"])
    assert buffer["obs"]["front"].std() > 1e-3
    first = {k: v[0] for k, v in pictures.items()}  # later ones follow other actions
    torch.testing.assert_close(buffer["obs"]["front"][0], policy.seen(first)["front"])
    b = flat(buffer)
    loss, figures = actor_loss(actor, b, make_args(), anchor=0.0)
    assert figures["off"] < 1e-4  # the ratio is 1
    (loss + critic_loss(critic, b, make_args())[0]).backward()
    for module in (actor.policy, critic):
        learns = {k: p.grad is not None for k, p in module.named_parameters()}
        assert not any(v for k, v in learns.items() if k.startswith("encoder."))
        assert all(v for k, v in learns.items() if not k.startswith("encoder."))
    torch.optim.Adam(learning(actor)).step()
    after = policy.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {k for k, _ in policy.named_parameters() if not k.startswith("encoder.")}


def test_regression_explores_around_what_it_is_deployed_with():
    """Its latent is 0, in the roll-out as in evaluation; DBP's is drawn."""
    policy = make_policy()
    policy.method = "bc"
    actor, _, buffer, _ = filled(policy, PUSHT, S=2, N=2)
    assert not buffer["z"].any()
    obs = {"state": buffer["obs"]["state"][0]}
    mu = actor.policy.norm_action.inverse(actor(obs, buffer["z"][0])[0])
    assert torch.allclose(mu, prepare(policy).act(obs), atol=1e-3)  # pixels
    assert filled(make_policy(), PUSHT, S=2, N=2)[2]["z"].std() > 0.5


def test_stored_sample_is_not_clipped():
    """The buffer keeps the Gaussian sample; the simulator gets it within the action's limits."""
    policy = make_policy()
    policy.norm_action.lo.fill_(-900)  # normalised -1 is now pixel -900
    sims = simulators(PUSHT, 2)
    seen = []
    step = sims.step

    def watched(chunks):
        seen.append(chunks)
        return step(chunks)

    sims.step = watched
    actor = Actor(policy, 0.8, (0.5, 2), rho=0.0)
    buffer = make_buffer(policy, 3, 2)
    generator = torch.Generator().manual_seed(0)
    collect(actor, Critic(policy), None, sims, buffer, PUSHT, make_args(), generator)
    wanted = policy.norm_action.inverse(buffer["a"])
    assert buffer["a"].abs().max() > 1 and wanted.min() < -50
    assert np.min(seen) == 0 and np.max(seen) <= 512
    np.testing.assert_allclose(np.stack(seen), wanted.clip(0, 512), atol=1e-3)
    b = flat(buffer)
    mu, log_sigma = actor(b["obs"], b["z"])
    noise = (b["a"] - policy.executed(mu)) / log_sigma.exp()
    assert 0.7 < noise.std() < 1.3 and (b["z"].std() - 1).abs() < 0.2


def test_anchor_is_the_frozen_policys_chunk():
    """The anchor's chunks are of the same observations and latents, by the Stage-1 policy."""
    frozen = make_policy(seed=5)
    _, _, buffer, _ = filled(make_policy(), PUSHT, S=3, N=2, frozen=frozen)
    b = flat(buffer)
    torch.testing.assert_close(b["anchor"], frozen(b["obs"], b["z"]))
    assert not filled(make_policy(), PUSHT, S=1, N=2)[2]["anchor"].any()  # none is asked for


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_gae_through_ends_and_resets(how):
    """Episodes of 5 steps in chunks of 2, whose third chunk ends after 1.

    Every value is that of the right observation and progress; an end is worth nothing.
    """
    task = replace(LINE, env=lambda: Line(5, how))
    _, critic, buffer, scores = filled(make_policy(LINE, dims=(8,)), task, S=7, N=3)
    obs = buffer["obs"]["state"][:, :, 0, 0]
    first = obs[0, 0].item()
    # New episodes have new seeds: 3, then 6.
    assert obs[:, 0].tolist() == [first, first + 2, first + 4, 30, 32, 34, 60]
    assert buffer["ran"].sum(-1)[:, 0].tolist() == [2, 2, 1, 2, 2, 1, 2]
    assert buffer["reward"][:, 0].tolist() == [3, 7, 5, 3, 7, 5, 3]
    assert buffer["ended"][:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert scores.shape == (7, 3) and scores[~np.isnan(scores)].tolist() == [15.0] * 6
    assert (~np.isnan(scores) == buffer["ended"].numpy()).all()

    def V(x):
        progress = torch.tensor([[(x % 10) / 100, 0.0]])  # of 100 steps
        return critic({"state": torch.tensor([[[float(x)]]])}, progress).item()

    wanted = [V(first + 2), V(first + 4), 0, V(32), V(34), 0, V(62)]
    np.testing.assert_allclose(buffer["next_value"][:, 0], wanted, atol=1e-6)
    columns = [buffer[k] for k in ("reward", "value", "next_value", "ended")]
    slow = slow_gae(*(c.numpy() for c in columns), 0.9, 0.8)
    np.testing.assert_allclose(gae(*columns, 0.9, 0.8), slow, atol=1e-4)


def test_time_limit_of_the_task_ends_an_episode():
    """The critic sees it coming, so nothing is worth anything after it (note 22)."""
    task = replace(LINE, steps=3)
    _, _, buffer, _ = filled(make_policy(LINE, dims=(8,)), task, S=2, N=1)
    assert buffer["progress"][:, 0, 0].tolist() == pytest.approx([0, 2 / 3])
    assert buffer["ended"][:, 0].tolist() == [0, 1] and buffer["next_value"][1] == 0


# ---- the update ----------------------------------------------------------------------------------


def updater(policy):
    """update() of an actor on a filled buffer, as a function of its keywords; and the actor."""
    actor, _, buffer, _ = filled(policy, PUSHT, frozen=copy.deepcopy(policy))
    opt = torch.optim.Adam(actor.parameters(), 1e-4, fused=True)

    def run(**kw):
        how = {"epochs": 3, "batch": 16, "max_grad_norm": 1.0, **kw}
        generator = torch.Generator().manual_seed(0)
        return update(
            actor,
            opt,
            lambda b: actor_loss(actor, b, make_args(), 0.1),
            buffer,
            generator=generator,
            **how,
        )

    return run, actor


def test_update_moves_and_keeps_what_it_must():
    """Weights move and normalisers do not."""
    run, actor = updater(make_policy())
    before = copy.deepcopy(actor.state_dict())
    last, first = run()
    assert first["off"] < 5e-4 < last["off"] and last["kl"] > 0
    moved = {k for k, v in actor.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("norm_obs" in k or "norm_action" in k for k in moved)
    assert {"head.weight", "policy.net.out.1.weight"} <= moved


def test_update_copies_once(monkeypatch):
    """Figures reach the host after the last epoch: the last, the first, whether all is finite."""
    run, _ = updater(make_policy())
    copies = []

    def counted(name):
        was = getattr(torch.Tensor, name)

        def wrapper(self, *a):
            copies.append(name)
            return was(self, *a)

        return wrapper

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    run(batch=4)
    assert copies == ["tolist"] * 3


def test_critic_learns_the_return():
    """A return that is a number of the observation."""
    _, critic, buffer, _ = filled(make_policy(), PUSHT, S=12, N=8)
    buffer["return"] = buffer["obs"]["state"][:, :, -1, 0] / 512
    last, first = update(
        critic,
        torch.optim.Adam(critic.parameters(), 1e-3),
        lambda b: critic_loss(critic, b, make_args()),
        buffer,
        epochs=40,
        batch=16,
        max_grad_norm=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert last["value_loss"] < 0.1 * first["value_loss"]


# ---- schedules -----------------------------------------------------------------------------------


def test_schedules_by_hand():
    """The anchor's weight falls linearly, the learning rates by a cosine, the noise in its log."""
    args = Namespace(
        anchor=0.4,
        anchor_final=0.1,
        anchor_iters=10,
        num_iterations=100,
        lr=1.0,
        lr_critic=2.0,
        lr_final=0.2,
        critic_warmup=4,
        sigma_final=0.0625,
    )
    assert [anchor_weight(it, args) for it in (0, 5, 10, 99)] == pytest.approx(
        [0.4, 0.25, 0.1, 0.1]
    )
    assert learning_rates(0, 1.0, args) == pytest.approx((2.0, 0.0))
    assert learning_rates(50, 1.0, args) == pytest.approx((1.2, 0.6))
    assert learning_rates(100, 2.0, args) == pytest.approx((0.4, 0.4))  # the pace is the actor's
    # The actor's rises in five iterations after the critic's first four.
    factor = [learning_rates(it, 1.0, args)[0] / 2 for it in range(10)]
    ramp = [learning_rates(it, 1.0, args)[1] / factor[it] for it in range(10)]
    assert ramp == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    sigma = [annealed(0.16, it, args) for it in (0, 50, 75, 100)]
    assert sigma == pytest.approx([0.16, 0.16, 0.04, 0.01])


def test_pace_by_hand():
    """Slower above 1.5 times the target, faster below two thirds of it."""
    paces = [paced(2.0, kl, target_kl=0.03) for kl in (0.05, 0.044, 0.03, 0.021, 0.019)]
    assert paces == pytest.approx([2 / 1.3, 2, 2, 2, 2.6])
    assert paced(90.0, 0.0, 0.03) == 100 and paced(0.011, 1.0, 0.03) == 0.01  # and no further


# ---- the noise that a policy bears ---------------------------------------------------------------


def test_bearable_noise_by_hand():
    """What costs 5 % by a fit of c sigma^2, within the sigmas that were tried."""
    costs = [5.0 * s**2 for s in SIGMAS]  # 5 % at 0.1; the largest costs 13 %
    assert bearable(0.8, [0.8 * (1 - c) for c in costs]) == pytest.approx(0.1)
    assert bearable(-200.0, [-200 - 200 * c for c in costs]) == pytest.approx(0.1)  # a return
    assert bearable(0.8, [0.8, 0.8, 0.8, 0.81]) == SIGMAS[-1]  # it costs nothing
    assert bearable(0.0, [0.0] * 4) == SIGMAS[-1]  # there is nothing to lose
    assert bearable(0.8, [0.1, 0.1, 0.0, 0.0]) == SIGMAS[0]  # it bears none
    # A noise that costs more than half is left out: here only the first three tell.
    assert bearable(1.0, [0.998, 0.992, 0.968, 0.0]) == pytest.approx(0.1)


def test_measured_noise_is_that_of_the_checkpoint(monkeypatch):
    """The same policy gets the same sigma; noise is added in normalised units, and is smooth."""
    policy = prepare(make_policy())
    task = replace(PUSHT, steps=16)
    sigma, why = noise_for(policy, task, 0.9, 2, workers=False)
    assert SIGMAS[0] <= sigma <= SIGMAS[-1] and f"--sigma {sigma:.3g} " in why
    assert noise_for(policy, task, 0.9, 2, workers=False) == (sigma, why)
    chunks = torch.full((2000, 8, 2), 100.0)
    noise = (added(policy, 0.1, 0.9)(chunks) - chunks) / 256  # a normalised unit is 256 pixels
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    pairs = torch.corrcoef(noise.transpose(0, 1).flatten(1))
    assert pairs[0, 1].item() == pytest.approx(0.9, abs=0.02)


# ---- the last line -------------------------------------------------------------------------------


def scored(*scores, jerk=10.0):
    """What `Training.standard` gives of a policy with these scores."""
    return {"score": float(np.mean(scores)), "success": 0.5, "scores": scores, "jerk": jerk}


def test_verdict():
    """The file to use is the last policy if it gained for sure, or best.pt, or the first."""
    before = scored(*[0.5] * 20)
    better = scored(*[0.7] * 20, jerk=12)
    worse = scored(*[0.4] * 20)
    unsure = scored(*[0.4, 0.7] * 10)
    text = verdict(before, better, unsure, "r")
    assert text.startswith("score 0.500 -> 0.700, jerk 10 -> 12: ckpt.pt gained 0.200 [0.200, 0.2")
    assert text.endswith("use r/ckpt.pt")
    assert verdict(before, worse, better, "r").endswith("use r/best.pt")
    text = verdict(before, worse, unsure, "r")
    assert "ckpt.pt lost 0.100" in text
    assert text.endswith("nothing was gained for sure: use r/init.pt")


# ---- it learns -----------------------------------------------------------------------------------


class Bandit(gym.Env):
    """One step; the action 0.65 pays 1 and -0.65 pays 0.5, both with a width of 0.2."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self.observation_space = observation_space(BANDIT)

    def reset(self, *, seed=None, options=None):
        return {"state": np.zeros(1, np.float32)}, {}

    def step(self, action):
        a = float(action[0])
        pay = math.exp(-(((a - 0.65) / 0.2) ** 2)) + 0.5 * math.exp(-(((a + 0.65) / 0.2) ** 2))
        return {"state": np.zeros(1, np.float32)}, pay, True, False, {}


BANDIT = Task(
    name="bandit",
    obs={"state": (1,)},
    D_a=1,
    T_o=1,
    T_p=1,
    T_a=1,
    env=Bandit,
    steps=1,
    score="sum",
)


def ppo(*flags):
    """dbpo_ppo.py with these flags, in this process; a flag given twice counts as given last."""
    argv = ["--one-process", "--device", "cpu", *map(str, flags)]
    commands.cli(lambda: dbpo_ppo.train(dbpo_ppo.parse(argv)))


def shares(policy):
    """The shares of the bandit's actions in the better and in the other mode."""
    obs = {"state": torch.zeros(2000, 1, 1)}
    drawn = policy.act(obs, generator=torch.Generator().manual_seed(0)).flatten()
    return (drawn > 0.25).float().mean().item(), (drawn < -0.25).float().mean().item()


def two_modes():
    """A policy of the bandit that was trained on actions of 0.5 and -0.5, half each."""
    policy = make_policy(BANDIT, dims=(64,))
    with torch.no_grad():
        policy.net.out[1].weight *= 8  # a clumped start would stay in one mode
    opt = torch.optim.Adam(policy.parameters(), 1e-3)
    obs = {"state": torch.zeros(32, 1, 1)}
    for _ in range(250):
        pos = torch.randint(0, 2, (32, 1, 1, 1)) - 0.5
        loss, _ = chunk_loss(policy.hypotheses(obs, 4), pos, temps=[0.2])
        opt.zero_grad()
        loss.backward()
        opt.step()
    return policy


def test_bandit_with_two_modes(tmp_path, monkeypatch):
    """Stage 1 learns both modes, Stage 2 improves each; the result is one pass, fixed by z.

    Given z the exploration is local, and p(z) is not PPO's to change: both modes stay, the better
    one is not chosen.
    """
    monkeypatch.setitem(envs.TASKS, "bandit", BANDIT)
    policy = two_modes()
    assert min(shares(policy)) > 0.25
    policy.save(tmp_path / "ckpt.pt")
    before = evaluate.evaluate(policy, BANDIT, 200, workers=False)[0]["score"]
    roll_out = [
        "--num-envs",
        32,
        "--num-steps",
        16,
        "--num-iterations",
        20,
        "--sigma",
        0.1,
        "--rho",
        0,
    ]
    changes = ["--minibatch-size", 128, "--lr", 5e-4, "--anchor", 0.01, "--target-kl", 0.2]
    scoring = ["--eval-every", 0, "--episodes", 20, "--out", tmp_path / "r"]
    ppo("--init", tmp_path / "ckpt.pt", *roll_out, *changes, *scoring)
    after, _ = Policy.load(tmp_path / "r" / "ckpt.pt")
    score = evaluate.evaluate(after, BANDIT, 200, workers=False)[0]["score"]
    assert score > before + 0.15 and min(shares(after)) > 0.25, (before, score, shares(after))
    obs = {"state": torch.zeros(50, 1, 1)}
    z = torch.randn(50, 1, 1)
    assert torch.equal(after.act(obs, z), after.act(obs, z))  # nothing is drawn but z


# ---- whole runs ----------------------------------------------------------------------------------

SMALL = shlex.split(
    "--num-envs 3 --num-steps 4 --minibatch-size 6 --update-epochs 2 --episodes 1 --eval-every 2 "
    "--save-every 0 --critic-warmup 1 --threads 1 --sigma 0.1"
)


@pytest.fixture
def init(tmp_path):
    """The checkpoint of an untrained policy of Push-T."""
    make_policy().save(tmp_path / "init.pt")
    return tmp_path / "init.pt"


@pytest.fixture
def no_picture(monkeypatch):
    """Draw no curves, which take longer than these runs."""
    monkeypatch.setattr(dbpo_ppo, "curves", lambda *a, **kw: None)


def test_the_pace_of_single_steps_stays(tmp_path, init, no_picture):
    """The KL is that before each step, so 0 where there is one: it says nothing of the pace."""
    flags = ["--num-envs", 2, "--num-steps", 2, "--minibatch-size", 4, "--update-epochs", 1]
    ppo("--init", init, *SMALL, *flags, "--num-iterations", 10, "--out", tmp_path / "r")
    rates = [row["lr"] for row in read_log(tmp_path / "r") if "lr" in row]
    assert len(rates) == 10 and max(rates) <= 5e-5


def test_a_longer_run_is_compared_anew(tmp_path, init, no_picture):
    ppo("--init", init, *SMALL, "--num-iterations", 1, "--out", tmp_path / "r")
    ppo(*SMALL, "--num-iterations", 2, "--out", tmp_path / "r", "--resume")
    log = read_log(tmp_path / "r")
    assert [row["step"] for row in log if "final_score" in row] == sorted(
        {row["step"] for row in log if row.get("iteration", 0) >= 1}
    )


@pytest.mark.parametrize(
    "name, own", [("pusht", []), ("pusht-image", ["--keep-encoder"]), ("hopper", [])]
)
def test_killed_and_resumed(tmp_path, name, own, no_picture):
    """SIGKILL in mid-episode, then --resume: all equals an unbroken run bit for bit."""
    make_policy(TASKS[name]).save(tmp_path / "init.pt")
    flags = ["--num-iterations", 8, *SMALL, *own]
    whole, cut = (tmp_path / n for n in ("whole", "cut"))
    ppo("--init", tmp_path / "init.pt", *flags, "--out", whole)
    command = [sys.executable, ROOT / "dbpo_ppo.py", "--init", tmp_path / "init.pt", *flags]
    command += ["--one-process", "--device", "cpu", "--out", cut]
    p = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not any(r.get("iteration", 0) >= 3 and "explained" in r for r in read_log(cut)):
            assert p.poll() is None, p.stderr.read().decode()
            time.sleep(0.01)
        p.send_signal(signal.SIGKILL)
    finally:
        p.kill()
        p.communicate()
    assert 2 <= load_torch(cut / "state.pt")["iteration"] < 8  # the actor has moved by then
    ppo(*flags, "--out", cut, "--resume")  # --init is not needed

    same_training(whole, cut)


def same_training(*runs):
    """Assert that two run folders hold the same training: files and log, but for the times."""
    states = [load_torch(run / "state.pt") for run in runs]
    for state in states:
        del state["minutes"]
        del state["flags"]
    same(*states)
    policies = [load_torch(run / "ckpt.pt") for run in runs]
    same(*({k: v for k, v in policy.items() if k != "flags"} for policy in policies))
    rows = [read_log(run) for run in runs]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    for a, b in zip(*rows):
        for k in ("return", "kl", "score", "explained", "sigma", "off"):
            assert a.get(k) == b.get(k)


@pytest.mark.parametrize("where", ["collect", "evaluate"])
def test_ctrl_c(init, tmp_path, no_picture, monkeypatch, capsys, where):
    """The iteration is finished and saved; an evaluation is broken off and done again."""
    flags = ["--init", init, "--num-iterations", 4, *SMALL]
    ppo(*flags, "--out", tmp_path / "whole")
    cut = tmp_path / "cut"
    real = getattr(dbpo_ppo, where)
    calls = []

    def interrupted(*args, **kw):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kw)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        patch.setattr(dbpo_ppo, where, interrupted)
        argv = [*flags, "--out", cut, "--one-process", "--device", "cpu"]
        args = dbpo_ppo.parse(list(map(str, argv)))
        commands.cli(lambda: saves.run_until_interrupted(dbpo_ppo.train, args))
    err = capsys.readouterr().err
    assert e.value.code == 130 and err.splitlines()[-1] == "interrupted; go on with --resume"
    assert load_torch(cut / "state.pt")["iteration"] == 2
    ppo(*flags, "--out", cut, "--resume")
    same_training(tmp_path / "whole", cut)


BAD_STATES = {
    "no iteration": lambda state: state.pop("iteration"),
    "iteration of text": lambda state: state.update(iteration="1"),
    "step of another ckpt.pt": lambda state: state.update(step=5),
    "minutes of NaN": lambda state: state.update(minutes=math.nan),
    "best of text": lambda state: state.update(best="0.5"),
    "best of NaN": lambda state: state.update(best=math.nan),
    "no episodes": lambda state: state.update(episodes=None),
    "seeds of floats": lambda state: state["episodes"].update(seeds=torch.zeros(3)),
    "seeds of other simulators": lambda state: state["episodes"].update(seeds=torch.arange(2)),
    "seeds out of range": lambda state: state["episodes"]["seeds"].fill_(2**40),
    "scores of NaN": lambda state: state["episodes"]["score"].fill_(math.nan),
    "a sigma of 0": lambda state: state.update(sigma=0.0),
    "a pace of text": lambda state: state.update(pace="1"),
    "next of text": lambda state: state["episodes"].update(next="1"),
    "too few pasts": lambda state: state["episodes"]["past"].pop(),
    "chunks of another shape": lambda state: state["episodes"]["past"].__setitem__(
        0, torch.zeros(1, 3, 2)
    ),
    "a scale in a list": lambda state: state.update(scale=[1]),
    "a scale of NaN": lambda state: state["scale"].update(mean=math.nan),
    "a count below 0": lambda state: state["scale"].update(count=-1),
    "returns of other simulators": lambda state: state["scale"].update(running=torch.zeros(2)),
    "one optimiser": lambda state: state["moments"].pop(),
    "moments of another shape": lambda state: state["moments"][0][0].update(exp_avg=torch.zeros(9)),
    "a critic of another shape": lambda state: state["critic"].update(
        {"net.0.weight": torch.zeros(2)}
    ),
    "a head of NaN": lambda state: state["head"]["bias"].fill_(math.nan),
    "a head of nothing": lambda state: state.update(head=None),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run folder of one iteration, and the flags to go on with it."""
    folder = tmp_path_factory.mktemp("begun")
    make_policy().save(folder / "init.pt")
    flags = ["--num-iterations", 1, *SMALL, "--out", folder / "r"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dbpo_ppo, "curves", lambda *a, **kw: None)
        ppo("--init", folder / "init.pt", *flags)
    return folder / "r", [*flags, "--resume"]


@pytest.mark.parametrize("case", BAD_STATES)
def test_damaged_state(begun, capsys, case):
    """Each costs one line, and the file stays as it is."""
    out, flags = begun
    good = (out / "state.pt").read_bytes()
    state = load_torch(out / "state.pt")
    BAD_STATES[case](state)
    files.save_torch(out / "state.pt", state)
    bad = (out / "state.pt").read_bytes()
    try:
        err = refused(out, capsys, *flags)
        assert "another folder with --out" in err, err
        assert (out / "state.pt").read_bytes() == bad
    finally:
        (out / "state.pt").write_bytes(good)


@pytest.mark.parametrize("name", ["init.pt", "ckpt.pt"])
def test_missing_weights(begun, capsys, name):
    """A state.pt without the weights that belong to it is refused."""
    out, flags = begun
    (out / name).rename(out / "away")
    try:
        assert f"{name}: no such file" in refused(out, capsys, *flags)
    finally:
        (out / "away").rename(out / name)


def test_run_folder(init, tmp_path, capsys):
    """Its files, its log, what it prints; and scores on the way do not disturb the training."""
    ppo("--init", init, "--out", tmp_path / "r", "--num-iterations", 3, *SMALL)
    out = capsys.readouterr().out
    assert "pusht" in out and "MB" in out and "environment steps" in out.splitlines()[-1]
    files = {p.name for p in (tmp_path / "r").iterdir()}
    assert {"flags.json", "log.jsonl", "log.csv", "state.pt"} <= files
    assert {"init.pt", "ckpt.pt", "best.pt", "curves.png"} <= files
    policies = [Policy.load(path)[0].state_dict() for path in (init, tmp_path / "r" / "init.pt")]
    same(*policies)
    flags = json.loads((tmp_path / "r" / "flags.json").read_text())["flags"]
    assert flags["task"] == "pusht" and flags["T_p"] == 16
    for name in ("lr", "rho", "gamma", "success_bonus", "gae_lambda"):
        assert flags[name] == PUSHT.stage2[name]  # the task's defaults
    rows = read_log(tmp_path / "r")
    assert [r["iteration"] for r in rows if "score" in r] == [0, 2]
    assert "before_score" in rows[-1] and "final_jerk" in rows[-1] and "best_score" in rows[-1]
    training = [r for r in rows if "explained" in r]
    assert [r["step"] for r in training] == [96, 192, 288]
    assert "kl" not in training[0] and training[1]["off"] < 5e-4  # the critic's warm-up
    assert training[1]["lambda"] < training[0]["lambda"]
    assert [r["lr"] > 0 for r in training] == [False, True, True]
    wanted = [0.1 * PUSHT.stage2["sigma_final"] ** fallen for fallen in (0, 1 / 3)]
    assert [r["sigma"] for r in training[1:]] == pytest.approx(wanted, rel=0.02)

    quiet = ["--num-iterations", 3, *SMALL, "--eval-every", 0]
    ppo("--init", init, "--out", tmp_path / "quiet", *quiet)
    same(*(Policy.load(tmp_path / n / "ckpt.pt")[0].state_dict() for n in ("r", "quiet")))


def test_its_policies_go_everywhere(init, tmp_path, monkeypatch, capsys, no_picture):
    """What it writes is an ordinary policy, which every other script takes."""
    ppo("--init", init, "--out", tmp_path / "r", "--num-iterations", 1, *SMALL)
    ckpt = tmp_path / "r" / "ckpt.pt"
    ppo("--init", ckpt, "--out", tmp_path / "again", "--num-iterations", 1, *SMALL)
    for name in ("ckpt.pt", "best.pt"):
        argv = ["evaluate.py", tmp_path / "r" / name, "--episodes", 1, "--task", "pusht"]
        monkeypatch.setattr(sys, "argv", [*map(str, argv), "--one-process"])
        capsys.readouterr()
        evaluate.main()
        assert capsys.readouterr().out.startswith("score")
    argv = ["--init", ckpt, "--data", write_demos(tmp_path / "demos.npz"), "--out", tmp_path / "b"]
    argv += shlex.split("--dims 8 16 --steps 1 --batch 4 --episodes 1 --device cpu --one-process")
    monkeypatch.setattr(dbp_report, "curves", lambda *a: None)
    monkeypatch.setattr(dbp_report, "hypotheses_figure", lambda *a: None)
    dbp_train.train(dbp_train.parse(list(map(str, argv))))
    assert Policy.load(tmp_path / "b" / "ckpt.pt")[0].shape == Policy.load(ckpt)[0].shape


def test_executed_steps_are_remembered(init, tmp_path, no_picture):
    """A policy improved with another T_a acts with that T_a ever after."""
    ppo("--init", init, "--out", tmp_path / "r", "--num-iterations", 1, "--T-a", 4, *SMALL)
    assert Policy.load(tmp_path / "r" / "ckpt.pt")[0].T_a == 4


def test_workers_give_the_same_run(init, tmp_path, no_picture):
    """Simulators in processes of their own and in one process: the same weights."""
    flags = ["--init", init, "--num-iterations", 2, *SMALL]
    ppo(*flags, "--out", tmp_path / "one")
    code, _, err = cli("dbpo_ppo.py", *flags, "--device", "cpu", "--out", tmp_path / "many")
    assert code == 0, err
    same(*(Policy.load(tmp_path / n / "ckpt.pt")[0].state_dict() for n in ("one", "many")))


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_training_stops_where_it_is_not_finite(
    init, tmp_path, no_picture, monkeypatch, capsys, name
):
    """It says in which iteration, and what was saved before stays."""
    calls = []
    real = getattr(dbpo_ppo, f"{name}_loss")

    def breaks(*args):
        loss, figures = real(*args)
        calls.append(1)
        return loss * (math.nan if len(calls) > first else 1), figures

    first = math.inf
    monkeypatch.setattr(dbpo_ppo, f"{name}_loss", breaks)
    flags = ["--init", init, "--critic-warmup", 0, *SMALL]
    ppo("--out", tmp_path / "a", "--num-iterations", 1, *flags)
    first = len(calls)
    calls.clear()
    with pytest.raises(SystemExit) as e:
        ppo("--out", tmp_path / "b", "--num-iterations", 4, *flags)
    err = capsys.readouterr().err
    assert e.value.code == 2
    assert f"stopped in iteration 1, where the {name}'s loss or gradient was not finite" in err
    assert load_torch(tmp_path / "b" / "state.pt")["iteration"] == 1
    Policy.load(tmp_path / "b" / "ckpt.pt")


def test_actions_that_are_not_finite_reach_no_simulator():
    policy = make_policy()
    with torch.no_grad():
        policy.net.out[1].weight.fill_(math.inf)
    sims = simulators(PUSHT, 2)
    sims.step = None
    actor = Actor(policy, 0.1, (0.1, 10), rho=0.9)
    buffer = make_buffer(policy, 3, 2)
    with pytest.raises(FloatingPointError, match="the policy's actions are not finite"):
        collect(actor, Critic(policy), None, sims, buffer, PUSHT, make_args(), torch.Generator())


@pytest.mark.parametrize("seed", [5000, 2**63 - 1])
def test_a_large_seed(init, tmp_path, no_picture, seed):
    """Its simulators and generators take it."""
    flags = ["--num-iterations", 1, *SMALL, "--seed", seed]
    ppo("--init", init, "--out", tmp_path / "r", *flags)
    assert (load_torch(tmp_path / "r" / "state.pt")["episodes"]["seeds"] < 2**32).all()


def test_no_anchor(init, tmp_path, no_picture):
    """--anchor 0 trains without one, and its weight is 0 in every iteration."""
    ppo("--init", init, "--out", tmp_path / "r", "--num-iterations", 2, "--anchor", 0, *SMALL)
    assert [r["lambda"] for r in read_log(tmp_path / "r") if "lambda" in r] == [0, 0]


# ---- flags ---------------------------------------------------------------------------------------


def test_help_tells_the_tasks_defaults(capsys):
    """Every flag whose default depends on the task names them; the examples can be typed."""
    with pytest.raises(SystemExit) as e:
        dbpo_ppo.parse(["--help"])
    assert e.value.code == 0
    text, examples = capsys.readouterr().out.split("examples:\n")
    text = " ".join(text.split())
    for flag in PUSHT.stage2:
        assert envs.defaults_of(flag, "stage2") in text, flag
    assert "{pusht: 100, locomotion: 32, " in text and "{pusht: 1.0, locomotion: 0.99" in text
    lines = examples.splitlines()
    assert len(lines) == 2
    for line in lines:
        python, script, *argv = shlex.split(line)
        assert (python, script) == ("python", "dbpo_ppo.py") and dbpo_ppo.parse(argv).init


def refused(tmp_path, capsys, *flags):
    """The one line that flags are refused with. Nothing is written.

    The run would be a short one, so that the test fails at once if the flags are accepted.
    """
    before = files_of(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        ppo("--num-iterations", 1, *SMALL, *flags)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert files_of(tmp_path) == before
    return err


def files_of(folder):
    """The paths below a folder, but for locks."""
    return sorted(path for path in folder.rglob("*") if path.name != ".lock")


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--task hopper", "was trained on pusht, not hopper"),
        ("--T-p 8", "has T_p 16, not 8"),
        ("--T-a 16", "Eq. 23"),
        ("--sigma 0", "--sigma must be above 0"),
        ("--sigma-range 0.2 0.1", "--sigma-range 0.2 0.1: the first must be below 1"),
        ("--sigma-range 1.5 2", "--sigma-range 1.5 2.0: the first must be below 1"),
        ("--sigma-final 0", "--sigma-final must be above 0"),
        ("--rho 1", "--rho must lie in [0, 1)"),
        ("--critic-lambda 2", "--critic-lambda must lie in [0, 1]"),
        ("--num-envs 0", "--num-envs must be above 0"),
        ("--num-steps 0", "--num-steps must be above 0"),
        ("--num-iterations 0", "--num-iterations must be above 0"),
        ("--save-every -1", "--save-every must not be below 0"),
        ("--minibatch-size 0", "--minibatch-size must be above 0"),
        ("--update-epochs 0", "--update-epochs must be above 0"),
        ("--max-grad-norm 0", "--max-grad-norm must be above 0"),
        ("--clip-coef nan", "--clip-coef must be above 0"),
        ("--lr nan", "--lr must be above 0"),
        ("--gamma 1.5", "must lie in [0, 1]"),
        ("--anchor -1", "--anchor must not be below 0"),
        ("--anchor-final inf", "--anchor-final must not be below 0"),
        ("--anchor-iters 0", "--anchor-iters must be above 0"),
        ("--anchor 0 --anchor-iters 5", "--anchor-iters is not used by --anchor 0: leave it out"),
        ("--anchor 0 --anchor-final 0.1", "--anchor-final is not used by --anchor 0"),
        ("--vf-coef -1", "--vf-coef must not be below 0"),
        ("--init none.pt", "none.pt: no such file"),
        ("--seed -1", "--seed must lie in 0 .. 9223372036854775807, not -1"),
        ("--seed 9223372036854775808", "--seed must lie in 0 .. 9223372036854775807"),
        ("--success-bonus -1", "--success-bonus must not be below 0"),
        ("--nonsense", "--nonsense"),
        ("--num-env 3", "unrecognized"),  # no abbreviations
        ("--resume", "state.pt: there is no run to go on with"),
        ("--device cuda:9", "--device cuda:9 cannot be used here"),
    ],
)
def test_bad_input(init, tmp_path, flags, message, capsys):
    flags = ["--init", init, "--out", tmp_path / "r", *flags.split()]
    assert message in refused(tmp_path, capsys, *flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--success-bonus 1", "--success-bonus: hopper knows no success, leave it out"),
    ],
)
def test_flags_that_hopper_does_not_use(tmp_path, flags, message, capsys):
    """It knows no success."""
    make_policy(TASKS["hopper"]).save(tmp_path / "hopper.pt")
    flags = ["--init", tmp_path / "hopper.pt", "--out", tmp_path / "r", *flags.split()]
    assert message in refused(tmp_path, capsys, *flags)


def resolved(*flags):
    """The flags as a run takes them."""
    args = dbpo_ppo.parse(list(map(str, flags)))
    dbpo_ppo.resolve(args)
    return args


def test_defaults_of_a_task(init, tmp_path):
    """A flag that is given wins over the task's default; what has no use is settled too."""
    make_policy(TASKS["hopper"]).save(tmp_path / "hopper.pt")
    args = resolved("--init", tmp_path / "hopper.pt", "--device", "cpu", "--lr", 1)
    assert args.lr == 1 and args.num_envs == TASKS["hopper"].stage2["num_envs"]
    assert args.sigma is None and args.anchor_final == pytest.approx(0.1 * args.anchor)
    args = resolved("--init", init, "--device", "cpu", "--rho", 0, "--sigma-final", 0.2)
    assert args.rho == 0 and args.sigma_final == 0.2
    assert args.gamma == PUSHT.stage2["gamma"] and args.out == "runs/pusht-dbpo-seed0"


def test_taught_encoders_are_kept_by_default(tmp_path):
    """Where Stage 1 kept the encoders, or an earlier Stage 2 did; a flag that is given wins."""
    path = tmp_path / "seen.pt"
    ask = ("--init", path, "--device", "cpu")
    for flags, kept in (
        ({}, False),
        ({"teach": None}, False),
        ({"teach": 6000}, True),
        ({"keep_encoder": True}, True),
    ):
        make_policy(TASKS["pusht-image"]).save(path, flags=flags)
        assert resolved(*ask).keep_encoder is kept
    assert resolved(*ask, "--no-keep-encoder").keep_encoder is False


def test_no_simulator(init, tmp_path, monkeypatch, capsys):
    """A task without a simulator cannot be improved by rolling out, and that costs one line."""
    monkeypatch.setitem(envs.TASKS, "pusht", replace(PUSHT, env=None))
    err = refused(tmp_path, capsys, "--init", init, "--out", tmp_path / "r")
    assert "pusht has no simulator" in err


def test_no_init(tmp_path, capsys):
    assert "--init is missing" in refused(tmp_path, capsys)


def test_folder_in_use_and_resume_with_other_flags(init, tmp_path, capsys, no_picture):
    """A run is neither overwritten nor resumed with other flags than it was begun with."""
    flags = ["--init", init, "--out", tmp_path / "r"]
    ppo("--num-iterations", 1, *SMALL, *flags)
    assert "holds a run" in refused(tmp_path, capsys, *flags, "--num-iterations", 2)
    err = refused(tmp_path, capsys, *flags, "--resume", "--clip-coef", 0.1)
    assert "--clip-coef 0.2, not 0.1" in err


def test_resume_in_a_folder_of_stage_one(init, tmp_path, capsys):
    """A Stage-1 state.pt is refused, not misread."""
    files.save_torch(tmp_path / "r" / "state.pt", {"step": 1, "flags": {}, "weights": {}})
    flags = ["--init", init, "--out", tmp_path / "r", "--resume"]
    assert "not the state of a run of this version" in refused(tmp_path, capsys, *flags)
