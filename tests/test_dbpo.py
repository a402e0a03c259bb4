"""dbpo_ppo.py: the likelihood is exact, the advantages are right at every kind of end, it learns, it resumes."""
import copy
import json
import math
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

import dbpo_ppo
import envs
import runs
from conftest import ROOT, cli, write_demos
from dbpo_ppo import Actor, Critic, ReturnScale, actor_loss, collect, critic_loss, gae, make_buffer, update
from drift import chunk_loss
from envs import TASKS, Simulators, Task, chunk_reward
from evaluate import evaluate
from policy import Policy, entropy, log_prob
from runs import BadInput, load_torch, read_log

PUSHT = TASKS["pusht"]


def make_policy(task=PUSHT, dims=(8, 16), seed=0, **change):
    """An untrained policy of a task; its outputs spread over the action range."""
    torch.manual_seed(seed)
    shape = {"task": task.name, "dims": dims, **{k: getattr(task, k) for k in ("obs_dim", "D_a", "T_o", "T_p", "T_a")}}
    top = 512. if task is PUSHT else 1.
    bounds = lambda d: (torch.full((d,), 0. if task is PUSHT else -1.), torch.full((d,), top))
    return Policy({**shape, **change}, bounds(task.obs_dim), bounds(task.D_a)).eval()


def make_args(**change):
    return Namespace(**{"batch": 16, "epochs": 3, "clip": 0.2, "clip_value": 0., "target_kl": 9., "c_v": 1., "c_e": 0.,
                        "clip_grad": 1., "per_dimension": False, **change})


class Line(gym.Env):
    """obs = steps so far (from the seed's last digit on); reward = that; ends as told: (terminated, truncated) at `ends`."""
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends=5, how="terminated"):
        self.ends, self.how = ends, how

    def reset(self, *, seed=None, options=None):
        self.n, self.first = 0, 10 * (seed % 10)
        return np.float32([self.first]), {}

    def step(self, action):
        self.n += 1
        over = self.n == self.ends
        return (np.float32([self.first + self.n]), float(self.n), over and self.how == "terminated",
                over and self.how == "truncated", {})


LINE = Task("line", Line, obs_dim=1, D_a=1, T_o=1, T_p=2, T_a=2, steps=100, score="sum", data=())


# ---- likelihood

def test_likelihood_against_torch():
    g = torch.Generator().manual_seed(0)
    a, mu, log_sigma = (torch.randn(5, 8, 2, generator=g) for _ in range(3))
    ran = torch.ones(5, 8)
    ran[1, 3:] = ran[4, 1:] = 0
    ours, ours_entropy = log_prob(a, mu, log_sigma, ran), entropy(log_sigma, ran)
    for b in range(5):
        n = int(ran[b].sum())                                                  # the steps that ran come first
        theirs = Independent(Normal(mu[b, :n], log_sigma[b, :n].exp()), 2)
        torch.testing.assert_close(ours[b], theirs.log_prob(a[b, :n]))
        torch.testing.assert_close(ours_entropy[b], theirs.entropy())


def test_actor_at_the_start():
    """Zero head weight: one sigma everywhere; the mean is the policy's own forward pass; the embedding is shared."""
    policy = make_policy()
    actor = Actor(policy, 0.05, (0.02, 0.1))
    obs, z = torch.rand(6, 2, 20) * 512, torch.randn(6, 16, 2)
    mu, log_sigma = actor(obs, z)
    torch.testing.assert_close(mu, policy(obs, z))
    torch.testing.assert_close(log_sigma.exp(), torch.full((6, 8, 2), 0.05))
    with torch.no_grad():
        actor.head.bias += 100
    torch.testing.assert_close(actor(obs, z)[1].exp(), torch.full((6, 8, 2), 0.1))
    with torch.no_grad():
        actor.head.weight.normal_(std=5)
        actor.head.bias.zero_()
    sigma = actor(obs, z)[1].exp()
    assert sigma.std(0).min() > 1e-4 and 0.0199 < sigma.min() and sigma.max() < 0.1001      # of the state, in bounds


def filled(policy, task, *, S=6, N=4, frozen=None, sigma=0.1, seed=0):
    actor, critic = Actor(policy, sigma, (sigma / 2, 2 * sigma)), Critic(policy)
    sims = Simulators(task, policy, N, workers=False, seed=seed)
    buffer = make_buffer(policy, S, N)
    scores, _ = collect(actor, critic, frozen, sims, buffer, torch.Generator().manual_seed(seed), piece=8)
    buffer["advantage"] = torch.randn(S, N, generator=torch.Generator().manual_seed(1))
    buffer["return"] = buffer["advantage"] + buffer["value"]
    return actor, critic, sims, buffer, scores


def flat(buffer):
    return {k: v.flatten(0, 1) for k, v in buffer.items()}


def test_ratio_is_one_before_the_first_step():
    """On every stored sample, ends inside chunks included, in shuffled minibatches of another size.

    With a handful of environments torch takes other kernels for the roll-out's batch than for the update's, whose
    means differ by 1e-6; divided by sigma that is some 1e-5 of the ratio. From 32 on the means are equal bit for bit.
    """
    actor, _, _, buffer, _ = filled(make_policy(), replace(PUSHT, steps=20), S=6, N=32)
    b = flat(buffer)
    assert b["ran"].sum(-1).unique().tolist() == [4, 8]                        # 8 + 8 + 4 steps an episode
    for i in torch.randperm(192, generator=torch.Generator().manual_seed(0)).split(48):
        mu, log_sigma = actor(b["obs"][i], b["z"][i])
        ratio = (log_prob(b["a"][i], actor.policy.executed(mu), log_sigma, b["ran"][i]) - b["log_prob"][i]).exp()
        assert (ratio - 1).abs().max() < 1e-5


def test_stored_sample_is_not_clipped():
    """Means outside the action range: the buffer keeps the Gaussian sample, the environment gets the clipped one."""
    policy = make_policy()
    policy.norm_action.lo.fill_(-900)                                          # normalised -1 is now pixel -900
    seen = []
    sims = Simulators(PUSHT, policy, 2, workers=False)
    step = sims.step
    sims.step = lambda a: (seen.append(a), step(a))[1]
    actor, buffer = Actor(policy, 0.1, (0.05, 0.2)), make_buffer(policy, 3, 2)
    collect(actor, Critic(policy), None, sims, buffer, torch.Generator().manual_seed(0), piece=8)
    wanted = policy.norm_action.inverse(buffer["a"])
    assert wanted.min() < -50 and np.min(seen) == 0 and np.max(seen) <= 512
    np.testing.assert_allclose(np.stack(seen), wanted.clip(0, 512), atol=1e-3)
    mu, log_sigma = actor(*(flat(buffer)[k] for k in ("obs", "z")))
    noise = (flat(buffer)["a"] - policy.executed(mu)) / log_sigma.exp()
    assert 0.7 < noise.std() < 1.3 and (flat(buffer)["z"].std() - 1).abs() < 0.2


def watch(actor):
    """A list that will hold the means of each forward pass, gradients kept."""
    means = []

    def hook(module, inputs, out):
        out[0].retain_grad()
        means.append(out[0])

    actor.register_forward_hook(hook)
    return means


def test_suffix_gets_no_gradient():
    """Coordinates that are not executed: zero gradient from likelihood and entropy, also before T_o - 1."""
    policy = make_policy()
    actor, _, _, buffer, _ = filled(policy, PUSHT)
    means = watch(actor)
    b = flat(buffer)
    loss, _ = actor_loss(actor, b, make_args(c_e=0.1), anchor=0.)
    loss.backward()
    grad = means[0].grad                                                       # (B, T_p, D_a)
    assert (grad[:, 1:9] != 0).all() and (grad[:, :1] == 0).all() and (grad[:, 9:] == 0).all()


def test_steps_that_did_not_run_get_no_gradient():
    actor, _, _, buffer, _ = filled(make_policy(), replace(PUSHT, steps=3), S=1)
    means = watch(actor)
    actor_loss(actor, flat(buffer), make_args(), anchor=0.)[0].backward()
    assert (means[0].grad[:, 1:4] != 0).all() and (means[0].grad[:, 4:] == 0).all()


def test_anchor_is_at_rest_at_the_start():
    policy = make_policy()
    frozen = copy.deepcopy(policy).requires_grad_(False)
    actor, _, _, buffer, _ = filled(policy, PUSHT, frozen=frozen)
    b = flat(buffer)
    b["advantage"] = torch.zeros_like(b["advantage"])
    loss, now = actor_loss(actor, b, make_args(), anchor=3.)
    loss.backward()
    # 3 |mu - mu_0|^2 is of the order of float32's rounding squared, its gradient of that rounding.
    assert now["anchor"] < 1e-9 and max(p.grad.abs().max() for p in policy.parameters() if p.grad is not None) < 1e-4
    with torch.no_grad():
        policy.net.out[1].bias += 0.5                                          # every coordinate moves by 0.5
    _, now = actor_loss(actor, b, make_args(), anchor=3.)
    assert now["anchor"].item() == pytest.approx(16 * 2 * 0.25, rel=1e-4)      # a sum over the whole chunk (Eq. 54)


def test_per_dimension_flag():
    actor, _, _, buffer, _ = filled(make_policy(), PUSHT)
    b = flat(buffer)
    b["log_prob"] = b["log_prob"] - 0.16                                       # the ratio is e^0.16 everywhere
    assert actor_loss(actor, b, make_args(clip=9.), 0.)[1]["off"].item() == pytest.approx(math.exp(0.16) - 1, rel=1e-3)
    now = actor_loss(actor, b, make_args(clip=9., per_dimension=True), 0.)[1]
    assert now["off"].item() == pytest.approx(math.exp(0.01) - 1, rel=1e-2)


def test_clipped_surrogate_by_hand():
    actor, _, _, buffer, _ = filled(make_policy(), PUSHT, S=1, N=4)
    b = flat(buffer)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    b["log_prob"] = b["log_prob"] - ratio.log()
    b["advantage"] = torch.tensor([1., -1., 1., -1.])
    loss, now = actor_loss(actor, b, make_args(), 0.)
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4, abs=1e-4) and now["clipped"] == 1
    assert now["kl"].item() == pytest.approx((ratio - 1 - ratio.log()).mean().item(), abs=1e-4)


def test_value_loss():
    policy = make_policy()
    critic, obs = Critic(policy), torch.rand(3, 2, 20) * 512
    value = critic(obs).detach()
    b = {"obs": obs, "return": value + 1, "value": value - 2}
    assert critic_loss(critic, b, make_args(c_v=3.))[0].item() == pytest.approx(1.5, rel=1e-5)
    clipped, _ = critic_loss(critic, b, make_args(clip_value=0.5))            # V may move 0.5 from value - 2: 2.5 off
    assert clipped.item() == pytest.approx(0.5 * 2.5 ** 2, rel=1e-5)


# ---- advantages

def slow_gae(reward, value, next_value, ended, gamma, lam):
    """Sums of discounted TD errors up to the end of the episode, straight from the definition."""
    S, N = reward.shape
    out = np.zeros((S, N))
    for n in range(N):
        for t in range(S):
            weight = 1.
            for u in range(t, S):
                out[t, n] += weight * (reward[u, n] + gamma * next_value[u, n] - value[u, n])
                weight *= gamma * lam
                if ended[u, n]:
                    break
    return out


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_gae_through_ends_and_resets(how):
    """Episodes of 5 steps in chunks of 2, whose third chunk ends after 1: values come from the right observations."""
    task = replace(LINE, env=lambda: Line(5, how))
    policy = make_policy(LINE, dims=(8,))
    actor, critic, sims, buffer, scores = filled(policy, task, S=7, N=3)
    obs = buffer["obs"][:, :, 0, 0]
    first = obs[0, 0].item()
    assert obs[:, 0].tolist() == [first, first + 2, first + 4] + [30, 32, 34] + [60]        # new seeds: 3, 6 ...
    assert buffer["ran"].sum(-1)[:, 0].tolist() == [2, 2, 1, 2, 2, 1, 2]
    assert buffer["reward"][:, 0].tolist() == [3, 7, 5, 3, 7, 5, 3]
    assert buffer["ended"][:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0] and scores == [15.] * 6
    V = lambda x: critic(torch.tensor([[[float(x)]]])).item()
    ends = lambda x: 0. if how == "terminated" else V(x)                      # V(first + 5): the true last observation
    wanted = [V(first + 2), V(first + 4), ends(first + 5), V(32), V(34), ends(35), V(62)]
    np.testing.assert_allclose(buffer["next_value"][:, 0], wanted, atol=1e-6)
    columns = [buffer[k] for k in ("reward", "value", "next_value", "ended")]
    np.testing.assert_allclose(gae(*columns, 0.9, 0.8), slow_gae(*(c.numpy() for c in columns), 0.9, 0.8), atol=1e-4)


def test_gae_on_random_numbers():
    g = torch.Generator().manual_seed(0)
    reward, value, next_value = (torch.randn(30, 5, generator=g) for _ in range(3))
    ended = (torch.rand(30, 5, generator=g) < 0.2).float()
    np.testing.assert_allclose(gae(reward, value, next_value, ended, 0.97, 0.9),
                               slow_gae(*(x.numpy() for x in (reward, value, next_value, ended)), 0.97, 0.9), atol=1e-5)


def test_time_limit_of_the_task_truncates():
    """Chunked's own limit: truncation, so the last observation's value is bootstrapped."""
    _, critic, _, buffer, _ = filled(make_policy(LINE, dims=(8,)), replace(LINE, steps=3), S=2, N=1)
    first = buffer["obs"][0].item()
    assert buffer["next_value"][1].item() == pytest.approx(critic(torch.tensor([[[first + 3.]]])).item(), abs=1e-6)


def test_chunk_reward():
    nan = np.nan
    rewards = np.array([[1., 2., 4.], [3., nan, nan]])
    assert chunk_reward(rewards, None, "sum", 1.).tolist() == [7., 3.]
    assert chunk_reward(rewards, None, "sum", 0.5).tolist() == [3., 3.]
    assert chunk_reward(rewards, np.array([0.5, nan]), "max", 1.).tolist() == [3.5, 0.]     # gains; none at the start
    assert chunk_reward(rewards, np.array([0.5, 1.]), "max", 0.5).tolist() == [0.5 + 0.5 + 0.5, 2.]


def test_bonus_is_paid_for_success_alone():
    """Ends by success pay the bonus once; a failure and the time limit do not."""
    class Ends(Line):
        def step(self, action):
            obs, reward, terminated, truncated, _ = super().step(action)
            return obs, 0., terminated, truncated, {"is_success": terminated and self.first == 30}

    task = replace(LINE, env=lambda: Ends(3))
    sims = Simulators(task, make_policy(LINE, dims=(8,)), 1, workers=False, bonus=2.)
    rewards = [sims.step(np.zeros((1, 2, 1), np.float32))[0].item() for _ in range(4)]
    assert rewards == [0, 0, 0, 0] and sims.seeds.tolist() == [2_000_002]
    sims = Simulators(task, make_policy(LINE, dims=(8,)), 1, workers=False, bonus=2., state={
        "seeds": torch.tensor([13]), "next": 24, "past": [torch.zeros(0)], "score": torch.zeros(1), "last": torch.zeros(1)})
    assert [sims.step(np.zeros((1, 2, 1), np.float32))[0].item() for _ in range(4)] == [0, 2, 0, 0]


def test_shaping_telescopes():
    """Over an episode that is not discounted, shaping adds the potential's difference between end and start."""
    task, rng = replace(PUSHT, steps=24), np.random.default_rng(0)
    pay = {}
    for shaping in (0., 2.):
        sims = Simulators(task, make_policy(), 3, workers=False, shaping=shaping, gamma=1.)
        start, rng = sims.obs, np.random.default_rng(0)
        rewards = []
        for _ in range(3):
            r, _, last, *_ = sims.step(rng.uniform(0, 512, (3, 8, 2)).astype(np.float32))
            rewards.append(r)
        pay[shaping] = sum(rewards)
    gain = envs.pusht_potential(last[:, -1]) - envs.pusht_potential(start[:, -1])
    np.testing.assert_allclose(pay[2.] - pay[0.], 2 * gain, atol=1e-6)
    assert np.abs(gain).max() > 0.01


def test_pusht_potential():
    goal = envs.pusht_obs([0, 0, 256, 256, np.pi / 4])
    env = envs.PushT()
    env.reset(seed=0)
    env.set_state(np.array([50, 50, 256, 256, np.pi / 4]))
    assert envs.pusht_potential(goal) == 0 and env.step(np.array([50., 50.]))[1] == 1          # full coverage there
    assert envs.pusht_potential(envs.pusht_obs([9, 9, 256 + 30, 256 - 40, np.pi / 4])) == pytest.approx(-0.5, abs=1e-5)


def test_return_scale():
    """The running standard deviation is that of all discounted returns seen, cut at ends."""
    rng, scale, seen, running = np.random.default_rng(0), ReturnScale(3, 0.9), [], np.zeros(3)
    for _ in range(4):
        reward, ended = rng.normal(2, 1, (5, 3)), (rng.random((5, 3)) < 0.2).astype(float)
        for r, e in zip(reward, ended):
            running = 0.9 * running + r
            seen.append(running)
            running = running * (1 - e)
        std = scale.update(reward, ended)
    assert std == pytest.approx(np.std(seen), rel=1e-9)
    again = ReturnScale(3, 0.9, scale.state())
    assert again.update(reward, ended) == scale.update(reward, ended)


# ---- update

def updater(policy):
    """update() of an actor on a filled buffer, as a function of its keywords; and the actor."""
    actor, _, _, buffer, _ = filled(policy, PUSHT, frozen=copy.deepcopy(policy))
    opt = torch.optim.Adam(actor.parameters(), 1e-4, fused=True)
    return lambda **kw: update(actor, opt, lambda b: actor_loss(actor, b, make_args(), 0.1), buffer, **{
        "epochs": 3, "batch": 16, "clip_grad": 1., "generator": torch.Generator().manual_seed(0), **kw}), actor


def test_update_moves_and_keeps_what_it_must():
    run, actor = updater(make_policy())
    before = copy.deepcopy(actor.state_dict())
    last, first, epochs = run(target_kl=9.)
    assert epochs == 3 and first["off"] < 1e-4 < last["off"] and last["kl"] > 0
    moved = {k for k, v in actor.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("norm_obs" in k or "norm_action" in k for k in moved)                    # buffers, not parameters
    assert {"head.weight", "policy.net.out.1.weight"} <= moved
    assert run(target_kl=1e-9)[2] == 1                                                      # early stop


def test_update_copies_once_an_epoch(monkeypatch):
    run, _ = updater(make_policy())
    copies = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        was = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, _f=was, _n=name: (copies.append(_n), _f(self, *a))[1])
    run(batch=4, target_kl=9.)
    assert copies == ["tolist"] * 4                                                         # and the first minibatch
    run(batch=4)
    assert copies == ["tolist"] * 6                                                         # without a target: at the end


def test_critic_learns_the_return():
    _, critic, _, buffer, _ = filled(make_policy(), PUSHT, S=12, N=8)
    buffer["return"] = buffer["obs"][:, :, -1, 0] / 512
    opt = torch.optim.Adam(critic.parameters(), 1e-3)
    last, first, _ = update(critic, opt, lambda b: critic_loss(critic, b, make_args()), buffer, epochs=40, batch=16,
                            clip_grad=1., generator=torch.Generator().manual_seed(0))
    assert last["value_loss"] < 0.1 * first["value_loss"]


class Bandit(gym.Env):
    """One step; the action +0.65 pays 1, -0.65 pays 0.5, both with a width of 0.2. Demonstrated are +0.5 and -0.5."""
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        a = float(action[0])
        pay = math.exp(-((a - 0.65) / 0.2) ** 2) + 0.5 * math.exp(-((a + 0.65) / 0.2) ** 2)
        return np.zeros(1, np.float32), pay, True, False, {}


BANDIT = Task("bandit", Bandit, obs_dim=1, D_a=1, T_o=1, T_p=1, T_a=1, steps=1, score="sum", data=())


def ppo(*flags):
    """dbpo_ppo.py with these flags, in this process."""
    argv, sys.argv = sys.argv, ["dbpo_ppo.py", "--one-process", "--device", "cpu", *map(str, flags)]
    try:
        runs.cli(lambda: dbpo_ppo.train(dbpo_ppo.parse()))
    finally:
        sys.argv = argv


def test_bandit_with_two_modes(tmp_path, monkeypatch):
    """Stage 1 learns both modes, Stage 2 improves each; the result is still one pass, fixed by z.

    Given z the exploration is local, and p(z) is not PPO's to change: both modes stay, the better one is not chosen.
    """
    monkeypatch.setitem(envs.TASKS, "bandit", BANDIT)
    policy = make_policy(BANDIT, dims=(64,))
    with torch.no_grad():
        policy.net.out[1].weight *= 8                                          # a clumped start would stay in one mode
    opt, obs = torch.optim.Adam(policy.parameters(), 1e-3), torch.zeros(64, 1, 1)
    for step in range(300):
        pos = torch.randint(0, 2, (64, 1, 1, 1)) - 0.5
        loss, _ = chunk_loss(policy.hypotheses(obs, 4), pos, temps=[0.2])
        opt.zero_grad()
        loss.backward()
        opt.step()
    def shares(policy):
        """Shares of the actions in the two modes."""
        drawn = policy.act(torch.zeros(2000, 1, 1), generator=torch.Generator().manual_seed(0)).flatten()
        return (drawn > 0.25).float().mean().item(), (drawn < -0.25).float().mean().item()

    assert min(shares(policy)) > 0.25
    policy.save(tmp_path / "ckpt.pt")
    before = evaluate(policy, BANDIT, 200, workers=False)[0]["score"]
    ppo("--init", tmp_path / "ckpt.pt", "--out", tmp_path / "r", "--envs", 32, "--chunks", 16, "--iters", 30, "--batch",
        128, "--lr", 5e-4, "--sigma", 0.1, "--anchor", 0.01, "--eval-every", 0, "--episodes", 20, "--target-kl", 0.2)
    after, _ = Policy.load(tmp_path / "r" / "ckpt.pt")
    score = evaluate(after, BANDIT, 200, workers=False)[0]["score"]
    assert score > before + 0.15 and min(shares(after)) > 0.25, (before, score, shares(after))
    obs, z = torch.zeros(50, 1, 1), torch.randn(50, 1, 1)
    assert torch.equal(after.act(obs, z), after.act(obs, z))                   # nothing is drawn but z


# ---- runs

SMALL = ["--envs", 3, "--chunks", 4, "--batch", 6, "--epochs", 2, "--episodes", 1, "--eval-every", 2, "--save-every", 1,
         "--critic-warmup", 1, "--threads", 1]


@pytest.fixture
def init(tmp_path):
    make_policy().save(tmp_path / "init.pt")
    return tmp_path / "init.pt"


def same(a, b):
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


@pytest.mark.parametrize("name", ["pusht", "hopper"])
def test_killed_and_resumed(tmp_path, name):
    """kill -9 in mid-episode, then --resume: state and checkpoint equal those of an unbroken run bit for bit."""
    make_policy(TASKS[name]).save(tmp_path / "init.pt")
    flags = ["--init", tmp_path / "init.pt", "--iters", 6, "--one-process", "--device", "cpu", *SMALL]
    assert cli("dbpo_ppo.py", *flags, "--out", tmp_path / "whole")[0] == 0
    p = subprocess.Popen([sys.executable, str(ROOT / "dbpo_ppo.py"), *map(str, flags), "--out", str(tmp_path / "cut")],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "cut" / "state.pt").exists():
        time.sleep(0.01)
        assert p.poll() is None
    p.send_signal(signal.SIGKILL)
    p.wait()
    at = load_torch(tmp_path / "cut" / "state.pt")
    assert 1 <= at["iteration"] < 6
    code, _, err = cli("dbpo_ppo.py", *flags[2:], "--out", tmp_path / "cut", "--resume")     # --init is not needed
    assert code == 0, err
    whole, cut = (load_torch(tmp_path / n / "state.pt") for n in ("whole", "cut"))
    for state in (whole, cut):
        del state["minutes"], state["flags"]
    same(whole, cut)
    rows = [read_log(tmp_path / n) for n in ("whole", "cut")]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    for a, b in zip(*rows):
        for k in ("return", "kl", "score", "explained", "sigma", "off"):
            assert a.get(k) == b.get(k)


def test_run_folder(init, tmp_path, capsys):
    """Files, log, picture; the policy it writes is one that a further run starts from; evaluation does not disturb."""
    ppo("--init", init, "--out", tmp_path / "r", "--iters", 3, *SMALL)
    out = capsys.readouterr().out
    assert "pusht" in out and "MB" in out and "environment steps" in out.splitlines()[-1]
    assert {"flags.json", "log.jsonl", "log.csv", "ckpt.pt", "best.pt", "state.pt", "curves.png"} <= {
        p.name for p in (tmp_path / "r").iterdir()}
    flags = json.loads((tmp_path / "r" / "flags.json").read_text())["flags"]
    assert flags["task"] == "pusht" and flags["T_p"] == 16 and flags["lr"] == dbpo_ppo.DEFAULTS["pusht"]["lr"]
    rows = read_log(tmp_path / "r")
    assert [r["iteration"] for r in rows if "score" in r] == [0, 2]
    training = [r for r in rows if "explained" in r]
    assert [r["step"] for r in training] == [96, 192, 288] and "kl" not in training[0] and training[1]["off"] < 1e-4
    assert training[1]["lambda"] < training[0]["lambda"] and [r["lr"] > 0 for r in training] == [False, True, True]
    assert "final_score" in rows[-1]
    first, final = (dbpo_ppo.DEFAULTS["pusht"][k] for k in ("sigma", "sigma_final"))          # annealed, evenly in its log
    assert [r["sigma"] for r in training[1:]] == pytest.approx([first, first * (final / first) ** (1 / 3)], rel=0.02)
    ppo("--init", tmp_path / "r" / "ckpt.pt", "--out", tmp_path / "again", "--iters", 1, *SMALL)
    for name in ("ckpt.pt", "best.pt"):                                        # and every other script takes it
        code, out, err = cli("evaluate.py", tmp_path / "r" / name, "--episodes", 1, "--task", "pusht", "--one-process")
        assert code == 0 and out.startswith("score"), err
    code, _, err = cli("dbp_train.py", "--init", tmp_path / "r" / "ckpt.pt", "--data", write_demos(tmp_path / "demos.npz"),
                       "--dims", 8, 16, "--steps", 1, "--batch", 4, "--episodes", 1, "--device", "cpu", "--out",
                       tmp_path / "back")
    assert code == 0, err
    ppo("--init", init, "--out", tmp_path / "quiet", "--iters", 3, *SMALL, "--eval-every", 0)
    same(*(Policy.load(tmp_path / n / "ckpt.pt")[0].state_dict() for n in ("r", "quiet")))


def test_executed_steps_are_remembered(init, tmp_path):
    """A policy improved with another T_a acts with that T_a ever after."""
    ppo("--init", init, "--out", tmp_path / "r", "--iters", 1, "--T-a", 4, *SMALL)
    assert Policy.load(tmp_path / "r" / "ckpt.pt")[0].T_a == 4


def test_workers_give_the_same_run(init, tmp_path):
    ppo("--init", init, "--out", tmp_path / "one", "--iters", 2, *SMALL)
    assert cli("dbpo_ppo.py", "--init", init, "--out", tmp_path / "many", "--iters", 2, "--device", "cpu", *SMALL)[0] == 0
    same(*(Policy.load(tmp_path / n / "ckpt.pt")[0].state_dict() for n in ("one", "many")))


@pytest.mark.parametrize("flags, message", [
    (["--task", "hopper"], "was trained on pusht, not hopper"),
    (["--T-p", 8], "has T_p 16, not 8"),
    (["--T-a", 16], "Eq. 23"),
    (["--sigma", 0.5], "--sigma 0.5 must lie inside"),
    (["--sigma-final", 0], "--sigma-final must be above 0"),
    (["--sigma-hold", 1], "--sigma-hold must lie in [0, 1)"),
    (["--envs", 0], "--envs must be above 0"),
    (["--lr", "nan"], "--lr must be above 0"),
    (["--gamma", 1.5], "must lie in [0, 1]"),
    (["--anchor", -1], "--anchor must not be below 0"),
    (["--anchor-final", "inf"], "--anchor-final must not be below 0"),
    (["--init", "none.pt"], "none.pt: no such file"),
    (["--bonus", -1], "--bonus must not be below 0"),
    (["--nonsense"], "--nonsense"),
    (["--resume"], "state.pt: no such file"),
    (["--device", "cuda:9"], "--device cuda:9 cannot be used here"),
])
def test_bad_input(init, tmp_path, flags, message, capsys):
    with pytest.raises(SystemExit) as e:
        ppo("--init", init, "--out", tmp_path / "r", *flags)
    err = capsys.readouterr().err.strip()
    assert e.value.code == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "r" / "state.pt").exists()


def test_no_potential_no_shaping(tmp_path, capsys):
    make_policy(TASKS["hopper"]).save(tmp_path / "hopper.pt")
    with pytest.raises(SystemExit) as e:
        ppo("--init", tmp_path / "hopper.pt", "--shaping", 1)
    assert e.value.code == 2 and "hopper has no potential" in capsys.readouterr().err


def test_no_init(capsys):
    with pytest.raises(SystemExit) as e:
        ppo()
    assert e.value.code == 2 and "--init is missing" in capsys.readouterr().err


def test_folder_in_use_and_resume_with_other_flags(init, tmp_path, capsys):
    ppo("--init", init, "--out", tmp_path / "r", "--iters", 1, *SMALL)
    for flags, message in ((["--iters", 2], "holds a run"), (["--resume", "--clip", 0.1], "--clip 0.2, not 0.1")):
        with pytest.raises(SystemExit) as e:
            ppo("--init", init, "--out", tmp_path / "r", *SMALL, *flags)
        assert e.value.code == 2 and message in capsys.readouterr().err


def test_resume_without_init_folder_of_stage_one(tmp_path, init, capsys):
    """A Stage-1 state.pt is refused, not misread."""
    (tmp_path / "r").mkdir()
    runs.save_torch(tmp_path / "r" / "state.pt", {"step": 1, "flags": {}, "weights": {}})
    with pytest.raises(SystemExit):
        ppo("--init", init, "--out", tmp_path / "r", "--resume", *SMALL)
    assert "not the state of a run of this version" in capsys.readouterr().err
