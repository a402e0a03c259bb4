"""How much exploration noise a policy bears: its score against sigma, before Stage 2 begins.

Noise that suits an early policy throws a good one far back, and what suits a good one teaches an
early one little. So dbpo_ppo.py rolls the policy out with four noises, on starts of their own, and
takes the sigma that costs 5 % of the score (note 33). The same checkpoint gets the same sigma.
"""

import math

import torch

from dbpo_loss import mixing
from evaluate import rollout

SIGMAS = (0.02, 0.04, 0.08, 0.16)  # normalised action units
COST = 0.05  # the share of the score that the noise may take
NOISE_SEED = 300_000  # the first start seed
MOST = 0.5  # a noise that costs more than this share says nothing of small ones


def noise_for(policy, task, rho, episodes, *, workers=True):
    """The sigma to begin with, and a line that says why.

    rho: see dbpo_loss.mixing. episodes: of each noise. workers: as in evaluate.rollout.
    """
    seeds = range(NOISE_SEED, NOISE_SEED + episodes)
    clean, *noisy = (
        rollout(policy, task, seeds, workers=workers, explore=added(policy, sigma, rho))
        .scores(task.score)
        .mean()
        .item()
        for sigma in (0.0, *SIGMAS)
    )
    sigma = bearable(clean, noisy)
    digits = 0 if task.score == "sum" else 3
    curve = ", ".join(f"{s} {score:.{digits}f}" for s, score in zip((0, *SIGMAS), (clean, *noisy)))
    return sigma, (
        f"score against sigma, {len(seeds)} starts from {NOISE_SEED}: {curve}. "
        f"--sigma {sigma:.3g} {why(sigma)}"
    )


def why(sigma):
    """What is said of the sigma that was taken."""
    if sigma == SIGMAS[-1]:
        return f"is the largest that is tried, and costs no more than {100 * COST:.0f} %"
    if sigma == SIGMAS[0]:
        return f"is the smallest that is tried, and costs {100 * COST:.0f} % or more"
    return f"costs about {100 * COST:.0f} % of the score"


def bearable(clean, noisy):
    """The sigma that costs COST of the score `clean`; noisy: the scores with SIGMAS.

    The cost is fitted by c sigma^2, by least squares. The result lies within SIGMAS; it is their
    largest if noise costs nothing, or if there is no score to lose.
    """
    if clean == 0:
        return SIGMAS[-1]
    costs = [(clean - score) / abs(clean) for score in noisy]
    told = [(s, cost) for s, cost in zip(SIGMAS, costs) if cost < MOST] or [(SIGMAS[0], costs[0])]
    c = sum(cost * s**2 for s, cost in told) / sum(s**4 for s, _ in told)
    if c <= COST / SIGMAS[-1] ** 2:
        return SIGMAS[-1]
    return max(math.sqrt(COST / c), SIGMAS[0])


def added(policy, sigma, rho):
    """What rollout(explore=...) takes: noise on executed chunks (N, T_a, D_a) in action units."""
    mix = mixing(policy.T_a, rho).to(policy.device)
    generator = torch.Generator(policy.device).manual_seed(0)

    def explore(a):
        e = mix @ torch.randn(a.shape, generator=generator, device=a.device)
        return policy.norm_action.inverse(policy.norm_action(a) + sigma * e)

    return explore
