"""dbpo_loss.py: the likelihood is exact, the losses and advantages equal those done by hand.

No simulator is needed here: the samples are drawn from the actor itself.
"""

import copy
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from dbpo_loss import (
    Actor,
    Critic,
    ReturnScale,
    actor_loss,
    add_past,
    critic_loss,
    entropy,
    gae,
    log_prob,
    mixing,
    natural,
    roughness,
)
from envs import TASKS
from policy import Policy

PUSHT = TASKS["pusht"]


def make_policy(task=PUSHT, dims=(8, 16), seed=0):
    """An untrained policy of a task without pictures; its data fill 0 to 512 (Push-T) or -1 to 1.

    It is in eval mode.
    """
    torch.manual_seed(seed)
    low = 0.0 if task.name == "pusht" else -1.0
    high = 512.0 if task.name == "pusht" else 1.0

    def bounds(D):
        return torch.full((D,), low), torch.full((D,), high)

    shape = {
        "task": task.name,
        "obs": task.specs,
        "D_a": task.D_a,
        "T_o": task.T_o,
        "T_p": task.T_p,
        "T_a": task.T_a,
        "dims": dims,
    }
    numbers = {name: bounds(shape[-1]) for name, shape in task.obs.items()}
    return Policy(shape, {"obs": numbers, "action": bounds(task.D_a)}).eval()


def make_args(**change):
    """The flags that the losses read."""
    flags = {
        "clip_coef": 0.2,
        "clip_value": 0.0,
        "vf_coef": 1.0,
        "ent_coef": 0.0,
        "per_dimension": False,
        "smooth": 0.0,
    }
    return Namespace(**{**flags, **change})


def observations(B, seed=0):
    """Observation histories of Push-T {"state": (B, 2, 20)}."""
    g = torch.Generator().manual_seed(seed)
    return {"state": torch.rand(B, 2, 20, generator=g) * 512}


def samples(actor, B=24, steps=8, seed=0):
    """A minibatch as the roll-out stores it: B actions drawn from the actor, random advantages.

    steps: how many steps of each chunk ran.
    """
    policy = actor.policy
    g = torch.Generator().manual_seed(seed)
    obs = observations(B, seed)
    z = policy.latent(B, generator=g)
    ran = torch.zeros(B, policy.T_a)
    ran[:, :steps] = 1
    with torch.no_grad():
        mu, log_sigma = actor(obs, z)
        mean = policy.executed(mu)
        a = mean + log_sigma.exp() * (actor.mix @ torch.randn(mean.shape, generator=g))
    return {
        "obs": obs,
        "z": z,
        "a": a,
        "ran": ran,
        "log_prob": log_prob(a, mean, log_sigma, ran, actor.mix),
        "anchor": mu,
        "past": mean[:, -3:].roll(1, 0),
        "follows": torch.ones(B),
        "advantage": torch.randn(B, generator=g),
    }


@pytest.fixture
def actor():
    """An actor of Push-T, whose noise is 0.1 and smooth."""
    return Actor(make_policy(), 0.1, (0.5, 2), rho=0.9)


# ---- the likelihood ------------------------------------------------------------------------------


def test_likelihood_against_torch():
    """Eqs. 13, 48, 53, 57 of white noise: torch's own, over the steps that ran."""
    a, mu, log_sigma, ran = likelihood_problem()
    white = mixing(8, 0.0)
    ours = log_prob(a, mu, log_sigma, ran, white)
    ours_entropy = entropy(log_sigma, ran, white)
    for b in range(5):
        n = int(ran[b].sum())  # the steps that ran come first
        theirs = Independent(Normal(mu[b, :n], log_sigma[b, :n].exp()), 2)
        torch.testing.assert_close(ours[b], theirs.log_prob(a[b, :n]))
        torch.testing.assert_close(ours_entropy[b], theirs.entropy())


def likelihood_problem():
    """Samples, means, log deviations (5, 8, 2), and which steps ran: 8, 3, 8, 8 and 1."""
    g = torch.Generator().manual_seed(0)
    a, mu, log_sigma = (torch.randn(5, 8, 2, generator=g) for _ in range(3))
    ran = torch.ones(5, 8)
    ran[1, 3:] = 0
    ran[4, 1:] = 0
    return a, mu, log_sigma, ran


def test_likelihood_of_smooth_noise():
    """With the correlation 0.9 ** |i - j| over the steps: torch's own, of the prefix that ran."""
    a, mu, log_sigma, ran = likelihood_problem()
    mix = mixing(8, 0.9)
    ours = log_prob(a, mu, log_sigma, ran, mix)
    ours_entropy = entropy(log_sigma, ran, mix)
    step = torch.arange(8)
    correlation = 0.9 ** (step[:, None] - step).abs()
    for b in range(5):
        n = int(ran[b].sum())
        wanted = 0.0
        wanted_entropy = 0.0
        for d in range(2):  # the coordinates of an action are independent
            sigma = log_sigma[b, :n, d].exp()
            covariance = sigma[:, None] * correlation[:n, :n] * sigma
            theirs = MultivariateNormal(mu[b, :n, d], covariance)
            wanted += theirs.log_prob(a[b, :n, d])
            wanted_entropy += theirs.entropy()
        torch.testing.assert_close(ours[b], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours_entropy[b], wanted_entropy, rtol=1e-4, atol=1e-4)


def test_mixing():
    """White noise stays white without correlation; with it the deviation of every step is 1."""
    assert torch.equal(mixing(8, 0.0), torch.eye(8))
    covariance = mixing(3, 0.5) @ mixing(3, 0.5).T
    wanted = torch.tensor([[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]])
    torch.testing.assert_close(covariance, wanted)


def test_natural_gradient():
    """The gradient of the mean is that of the log-likelihood times C: the noise itself.

    By hand: d/dmu log N(a; mu, sigma^2 C) = C^-1 (a - mu) / sigma^2, which C turns to (a - mu) /
    sigma^2. So the mean moves along the chunk that was tried, as smooth as the noise.
    """
    mix = mixing(8, 0.9)
    g = torch.Generator().manual_seed(0)
    noise = 0.1 * (mix @ torch.randn(4, 8, 2, generator=g))
    mu = torch.zeros(4, 8, 2, requires_grad=True)
    log_sigma = torch.full((4, 8, 2), math.log(0.1))
    through = natural(mu, mix)
    assert torch.equal(through, mu)
    log_prob(noise, through, log_sigma, torch.ones(4, 8), mix).sum().backward()
    torch.testing.assert_close(mu.grad, noise / 0.01, rtol=1e-3, atol=1e-3)


# ---- the actor -----------------------------------------------------------------------------------


def test_actor_at_the_start():
    """One noise everywhere; the mean is the policy's own forward pass."""
    policy = make_policy()
    actor = Actor(policy, 0.05, (0.4, 2), rho=0.9)
    obs = observations(6)
    z = torch.randn(6, 16, 2)
    mu, log_sigma = actor(obs, z)
    torch.testing.assert_close(mu, policy(obs, z))
    torch.testing.assert_close(log_sigma.exp(), torch.full((6, 8, 2), 0.05))


def test_noise_stays_in_its_bounds():
    """Eq. 45: however far the head goes; and the noise depends on the observation."""
    actor = Actor(make_policy(), 0.05, (0.4, 2), rho=0.9)
    obs = observations(6)
    z = torch.randn(6, 16, 2)
    with torch.no_grad():
        actor.head.bias += 100
    torch.testing.assert_close(actor(obs, z)[1].exp(), torch.full((6, 8, 2), 0.1))
    with torch.no_grad():
        actor.head.weight.normal_(std=5)
        actor.head.bias.zero_()
    sigma = actor(obs, z)[1].exp()
    assert sigma.std(0).min() > 1e-4
    assert 0.0199 < sigma.min() and sigma.max() < 0.1001


def test_sigma_scales_the_noise_and_its_bounds(actor):
    obs = observations(3)
    z = torch.randn(3, 16, 2)
    _, before = actor(obs, z)
    actor.sigma = 0.05
    torch.testing.assert_close(actor(obs, z)[1].exp(), before.exp() / 2)
    with torch.no_grad():
        actor.head.bias -= 100
    torch.testing.assert_close(actor(obs, z)[1].exp(), torch.full((3, 8, 2), 0.025))


# ---- the actor's loss ----------------------------------------------------------------------------


def watch(actor):
    """A list that will hold the means of each forward pass, gradients kept."""
    means = []

    def hook(module, inputs, out):
        out[0].retain_grad()
        means.append(out[0])

    actor.register_forward_hook(hook)
    return means


def test_loss_at_rest(actor):
    """Before any step the ratio is 1: the loss is minus the mean advantage, and nothing clips."""
    b = samples(actor)
    loss, now = actor_loss(actor, b, make_args(), anchor=0.0)
    assert now["off"] < 1e-4 and now["clipped"] == 0 and now["kl"].abs() < 1e-6
    assert loss.item() == pytest.approx(-b["advantage"].mean().item(), abs=1e-4)
    assert now["sigma"].item() == pytest.approx(0.1)
    wanted = 16 * (math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e))  # 16 coordinates
    wanted += 14 * 0.5 * math.log(1 - 0.9**2)  # each step but the first is known in part
    assert now["entropy"].item() == pytest.approx(wanted, rel=1e-4)


def test_the_stored_latent_is_used(actor):
    """The ratio is of the action given its own z: another z is another Gaussian."""
    b = samples(actor)
    b["z"] = b["z"].roll(1, 0)
    assert actor_loss(actor, b, make_args(), anchor=0.0)[1]["off"] > 0.1


def test_suffix_gets_no_gradient(actor):
    """Steps of the chunk that are not executed: none from the likelihood, nor from the entropy."""
    b = samples(actor)
    means = watch(actor)
    loss, _ = actor_loss(actor, b, make_args(ent_coef=0.1), anchor=0.0)
    loss.backward()
    grad = means[-1].grad  # (B, T_p, D_a)
    assert (grad[:, 1:9] != 0).all()
    assert (grad[:, :1] == 0).all() and (grad[:, 9:] == 0).all()


def test_steps_that_did_not_run_follow_those_that_did(actor):
    """By the natural gradient; by the likelihood's own they would get none."""
    b = samples(actor, steps=3)  # the episode ended after three
    means = watch(actor)
    actor_loss(actor, b, make_args(), anchor=0.0)[0].backward()
    grad = means[-1].grad
    assert (grad[:, 1:4] != 0).all() and (grad[:, 9:] == 0).all()
    # The noise of the later steps, which nobody saw, goes on as the seen noise does: smoothly.
    ahead = 0.9 ** torch.arange(1, 6)[:, None] * grad[:, 3:4]
    torch.testing.assert_close(grad[:, 4:9], ahead, rtol=1e-3, atol=1e-5)


def test_what_came_before_a_chunk():
    """The past is the end of the chunk before, if that was of the same episode."""
    a = torch.arange(3 * 2 * 4.0).view(3, 2, 4, 1)  # 3 chunks of 4 steps, of 2 simulators
    buffer = {"a": a, "ended": torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])}
    add_past(buffer)
    assert buffer["follows"].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert buffer["past"].shape == (3, 2, 3, 1)
    assert buffer["past"][1, 0, :, 0].tolist() == [1, 2, 3]
    assert buffer["past"][2, 1, :, 0].tolist() == [13, 14, 15]


def test_roughness_by_hand():
    """A parabola is smooth; a step of height 1 has the third differences 1, -2, 1."""
    t = torch.arange(8.0)
    parabola = (3 + 2 * t - t**2)[None, :, None]
    step = (t >= 3).float()[None, :, None]  # just where the chunk begins
    for x, alone, joined in ((parabola, 0, 0), (step, 0, 6), (step + parabola, 0, 6)):
        for follows, wanted in ((0.0, alone), (1.0, joined)):
            rough = roughness(x[:, 3:], x[:, :3], torch.tensor([follows]))
            assert rough.tolist() == [pytest.approx(wanted, abs=1e-8)]
    late = (t >= 6).float()[None, :, None]  # within the chunk: 1, -2, not yet 1
    assert roughness(late[:, 3:], late[:, :3], torch.tensor([0.0])).item() == 5


def test_smoothing_brings_chunks_together():
    """--smooth alone, without rewards: chunks learn to go on from what was executed before."""
    policy = make_policy()
    actor = Actor(policy, sigma=0.1, sigma_range=(0.3, 2.0), rho=0.9)
    b = samples(actor)
    b["advantage"] = torch.zeros(24)
    opt = torch.optim.Adam(actor.parameters(), lr=1e-3)
    seen = []
    for _ in range(60):
        loss, now = actor_loss(actor, b, make_args(smooth=1.0), anchor=0.0)
        loss.backward()
        opt.step()
        opt.zero_grad()
        seen.append(now["rough"].item())
    assert seen[-1] < 0.2 * seen[0]


def test_anchor(actor):
    """Eqs. 16, 54: at rest at the start; then the squared distance, summed over the whole chunk."""
    policy = actor.policy
    b = samples(actor)
    b["advantage"] = torch.zeros(24)
    loss, now = actor_loss(actor, b, make_args(), anchor=3.0)
    loss.backward()
    # 3 |mu - mu_0|^2 is of the order of float32's rounding squared, its gradient of that rounding.
    grads = [p.grad.abs().max() for p in policy.parameters() if p.grad is not None]
    assert now["anchor"] < 1e-9 and max(grads) < 1e-4
    with torch.no_grad():
        policy.net.out[1].bias += 0.5  # every coordinate moves by 0.5
    b["log_prob"] = b["log_prob"] + 1e9  # the ratio is 0, and so is the surrogate
    loss, now = actor_loss(actor, b, make_args(), anchor=3.0)
    assert now["anchor"].item() == pytest.approx(16 * 2 * 0.25, rel=1e-4)
    assert loss.item() == pytest.approx(3 * 16 * 2 * 0.25, rel=1e-4)


def test_entropy_bonus(actor):
    """Eqs. 17, 55: the entropy is subtracted with its weight."""
    b = samples(actor)
    plain, _ = actor_loss(actor, b, make_args(), anchor=0.0)
    loss, now = actor_loss(actor, b, make_args(ent_coef=0.3), anchor=0.0)
    assert (loss - plain).item() == pytest.approx(-0.3 * now["entropy"].item(), rel=1e-4)


def test_per_dimension_flag(actor):
    """It divides the log of the ratio by the 16 coordinates that ran."""
    b = samples(actor)
    b["log_prob"] = b["log_prob"] - 0.16  # the ratio is e^0.16 everywhere
    _, now = actor_loss(actor, b, make_args(clip_coef=9.0), anchor=0.0)
    assert now["off"].item() == pytest.approx(math.exp(0.16) - 1, rel=1e-3)
    _, now = actor_loss(actor, b, make_args(clip_coef=9.0, per_dimension=True), anchor=0.0)
    assert now["off"].item() == pytest.approx(math.exp(0.01) - 1, rel=1e-2)


def test_clipped_surrogate_by_hand(actor):
    """Eqs. 15, 51 at the ratios 1.5 and 0.5, each with a good and a bad action."""
    b = samples(actor, B=4)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    b["log_prob"] = b["log_prob"] - ratio.log()
    b["advantage"] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, now = actor_loss(actor, b, make_args(), anchor=0.0)
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4, abs=1e-4)
    assert now["clipped"] == 1
    wanted = (ratio - 1 - ratio.log()).mean().item()
    assert now["kl"].item() == pytest.approx(wanted, abs=1e-4)


# ---- the critic ----------------------------------------------------------------------------------


def test_critic_has_an_encoder_of_its_own():
    """It normalises as the policy does, and shares no weight with it."""
    policy = make_policy()
    critic = Critic(policy)
    assert torch.equal(critic.norms["state"].hi, policy.norm_obs["state"].hi)
    shared = {p.data_ptr() for p in critic.parameters()} & {
        p.data_ptr() for p in policy.parameters()
    }
    assert not shared and critic(observations(5), torch.zeros(5, 2)).shape == (5,)


def test_value_loss():
    """Eq. 52 by hand, with and without the clip of the value's change."""
    critic = Critic(make_policy())
    obs = observations(3)
    progress = torch.tensor([[0.0, 0.1], [0.5, 0.1], [0.9, 0.7]])
    value = critic(obs, progress).detach()
    assert not torch.allclose(value, critic(obs, 0 * progress))
    b = {"obs": obs, "progress": progress, "return": value + 1, "value": value - 2}
    loss, now = critic_loss(critic, b, make_args(vf_coef=3.0))
    assert loss.item() == pytest.approx(1.5, rel=1e-5) == now["value_loss"].item()
    clipped, _ = critic_loss(critic, b, make_args(clip_value=0.5))
    # The value may move by 0.5 from value - 2, and is then 2.5 off.
    assert clipped.item() == pytest.approx(0.5 * 2.5**2, rel=1e-5)


# ---- advantages ----------------------------------------------------------------------------------


def slow_gae(reward, value, next_value, ended, gamma, lam):
    """Sums of discounted TD errors up to the episode's end, straight from the definition."""
    S, N = reward.shape
    out = np.zeros((S, N))
    for n in range(N):
        for t in range(S):
            weight = 1.0
            for u in range(t, S):
                delta = reward[u, n] + gamma * next_value[u, n] - value[u, n]
                out[t, n] += weight * delta
                weight *= gamma * lam
                if ended[u, n]:
                    break
    return out


def test_gae_on_random_numbers():
    g = torch.Generator().manual_seed(0)
    columns = [torch.randn(30, 5, generator=g) for _ in range(3)]  # reward, value, next value
    columns.append((torch.rand(30, 5, generator=g) < 0.2).float())  # ended
    slow = slow_gae(*(c.numpy() for c in columns), 0.97, 0.9)
    np.testing.assert_allclose(gae(*columns, 0.97, 0.9), slow, atol=1e-5)


def test_gae_by_hand():
    """Two steps, then an end, then one more; gamma 0.5 and lambda 0.5."""
    reward = torch.tensor([[1.0], [2.0], [4.0]])
    value = torch.tensor([[1.0], [1.0], [1.0]])
    next_value = torch.tensor([[1.0], [0.0], [2.0]])
    ended = torch.tensor([[0.0], [1.0], [0.0]])
    # The TD errors are 0.5, 1 and 4; the trace does not cross the end.
    assert gae(reward, value, next_value, ended, 0.5, 0.5).flatten().tolist() == [0.75, 1.0, 4.0]


def test_return_scale():
    """The running deviation is that of all discounted returns seen, cut at ends (note 11)."""
    rng = np.random.default_rng(0)
    scale = ReturnScale(3, 0.9)
    seen = []
    running = np.zeros(3)
    for _ in range(4):
        reward = rng.normal(2, 1, (5, 3))
        ended = (rng.random((5, 3)) < 0.2).astype(float)
        for t in range(5):
            running = 0.9 * running + reward[t]
            seen.append(running)
            running = running * (1 - ended[t])
        std = scale.update(reward, ended)
    assert std == pytest.approx(np.std(seen), rel=1e-9)
    again = ReturnScale(3, 0.9, copy.deepcopy(scale.state()))
    assert again.update(reward, ended) == scale.update(reward, ended)


def test_return_scale_is_above_zero():
    """Rewards that are all 0 do not divide by 0."""
    assert ReturnScale(2, 0.9).update(np.zeros((3, 2)), np.zeros((3, 2))) == 1e-6
