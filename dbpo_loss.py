"""Stage 2's equations: the actor, its exact likelihood, advantages, and the losses of PPO.

Source: arXiv 2604.03540, Eqs. 12-17, 43-57. An action is drawn in two steps: a latent z ~ N(0, I),
then a Gaussian around the chunk G(o, z). Given z the likelihood is that Gaussian's, exact, and p(z)
cancels in PPO's ratio. All likelihoods live in the normalised action space (note 10).

  B  samples        obs {name: (B, T_o, ...)}     z (B, T_p, D_a)      the latent, kept
  mu (B, T_p, D_a)  the mean chunk                a (B, T_a, D_a)      the un-clipped sample
  log_sigma (B, T_a, D_a)                         ran (B, T_a)         1 where the action was run
"""

import copy
import math

import numpy as np
import torch
from torch import nn

from policy import encode
from unet import EMBED

LOG_2_PI = math.log(2 * math.pi)


# ---- the actor and its likelihood ---------------------------------------------------------------


def log_prob(a, mu, log_sigma, ran):
    """Eqs. 13, 48, 57: log N(a; mu, sigma) summed over the coordinates that ran -> (B,) (note 8).

    a, mu, log_sigma (B, T_a, D_a): the un-clipped sample of the executed prefix, its mean and log
    standard deviation. ran (B, T_a): 1 where the environment ran the action, 0 after an episode's
    end.
    """
    each = -0.5 * ((a - mu) * torch.exp(-log_sigma)).square() - log_sigma - 0.5 * LOG_2_PI
    return (each.sum(-1) * ran).sum(-1)


def entropy(log_sigma, ran):
    """Eq. 53: the entropy of the executed prefix's Gaussian, in nats -> (B,)."""
    return ((log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum(-1) * ran).sum(-1)


class Actor(nn.Module):
    """The policy with a noise head: pi(a | o, z) = N(mu(o, z), diag sigma(o)^2) (Eqs. 12, 43-46).

    sigma: the initial noise; sigma_range: its bounds. shift: added to log sigma and to its bounds,
    which is how the noise is annealed.
    """

    def __init__(self, policy, sigma, sigma_range):
        super().__init__()
        self.policy = policy
        self.low = math.log(sigma_range[0])
        self.width = math.log(sigma_range[1]) - self.low
        self.shift = 0.0
        self.head = nn.Linear(EMBED, policy.T_a * policy.D_a).to(policy.device)
        nn.init.zeros_(self.head.weight)
        share = (math.log(sigma) - self.low) / self.width
        nn.init.constant_(self.head.bias, math.log(share / (1 - share)))

    def forward(self, obs, z):
        """Eqs. 43-45: mu (B, T_p, D_a) and log sigma (B, T_a, D_a) of the executed prefix.

        One pass: the mean and the noise share the observation's embedding. The bounds of Eq. 45 are
        a sigmoid's (note 9).
        """
        net = self.policy.net
        h = net.embed(self.policy.features(obs))  # (B, EMBED)
        mu = net.generate(z, h)
        raw = self.head(h).unflatten(-1, (self.policy.T_a, -1))
        return mu, self.shift + self.low + self.width * torch.sigmoid(raw)


class Critic(nn.Module):
    """V(o), with an encoder of its own that begins as the policy's: obs -> (B,)."""

    def __init__(self, policy, width=256):
        super().__init__()
        self.norms = copy.deepcopy(policy.norm_obs)
        self.encoder = copy.deepcopy(policy.encoder)
        self.net = nn.Sequential(
            nn.Linear(policy.encoder.size, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )
        self.to(policy.device)

    def forward(self, obs):
        """obs {name: (B, T_o, ...)} -> values (B,)."""
        return self.net(encode(obs, self.norms, self.encoder)).squeeze(-1)


# ---- advantages ---------------------------------------------------------------------------------


class ReturnScale:
    """The running standard deviation of the discounted return, which rewards are divided by.

    See note 11. n: simulators; state: what state() gave, to go on from.
    """

    def __init__(self, n, gamma, state=None):
        self.gamma = gamma
        self.running = np.zeros(n)  # the discounted return so far, of each simulator
        self.count = 0
        self.mean = 0.0
        self.square = 0.0  # the sum of squared deviations
        if state:
            self.running = state["running"].numpy()
            self.count = state["count"]
            self.mean = state["mean"]
            self.square = state["square"]

    def state(self):
        """Plain tensors and numbers for state.pt."""
        return {
            "running": torch.from_numpy(self.running.copy()),
            "count": self.count,
            "mean": self.mean,
            "square": self.square,
        }

    def update(self, reward, ended):
        """Take in rewards and ends, both (S, N); returns the standard deviation now, above 0."""
        seen = np.empty(reward.shape)
        for t in range(len(reward)):
            self.running = self.gamma * self.running + reward[t]
            seen[t] = self.running
            self.running = self.running * (1 - ended[t])
        n = self.count + seen.size  # Chan's merge of two samples
        delta = seen.mean() - self.mean
        within = ((seen - seen.mean()) ** 2).sum().item()
        self.square += within + delta.item() ** 2 * self.count * seen.size / n
        self.mean += delta.item() * seen.size / n
        self.count = n
        return max(math.sqrt(self.square / self.count), 1e-6)


def gae(reward, value, next_value, ended, gamma, lam):
    """Generalised advantages; all arguments and the result are (S, N), time first.

    ended (terminated or truncated) cuts the trace. What an end is worth is for next_value to say:
    0, or the value of the last observation where the episode was truncated (note 22).
    """
    delta = reward + gamma * next_value - value
    advantage = torch.empty_like(reward)
    last = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        last = delta[t] + gamma * lam * (1 - ended[t]) * last
        advantage[t] = last
    return advantage


# ---- losses -------------------------------------------------------------------------------------


def actor_loss(actor, b, args, anchor):
    """Eqs. 14-17, 49-55 without the value term, on a minibatch b -> the loss, detached figures.

    The ratio takes the stored z, so that p(z) cancels. b: obs, z, a, ran, log_prob, advantage and
    anchor (B, T_p, D_a), the frozen Stage-1 policy's chunk. anchor: the weight lambda now.
    """
    mu, log_sigma = actor(b["obs"], b["z"])
    new = log_prob(b["a"], actor.policy.executed(mu), log_sigma, b["ran"])
    log_ratio = new - b["log_prob"]
    if args.per_dimension:
        log_ratio = log_ratio / (b["ran"].sum(-1) * actor.policy.D_a)
    ratio = log_ratio.exp()  # Eqs. 14, 49, 50

    A = b["advantage"]
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    surrogate = torch.min(ratio * A, clipped * A).mean()  # Eqs. 15, 51
    ent = entropy(log_sigma, b["ran"]).mean()  # Eq. 53
    pull = torch.zeros((), device=mu.device)
    if anchor:
        pull = (mu - b["anchor"]).square().sum((-2, -1)).mean()  # Eqs. 16, 54
    loss = -surrogate - args.ent_coef * ent + anchor * pull  # Eqs. 17, 55

    with torch.no_grad():
        figures = {
            "kl": (ratio - 1 - log_ratio).mean(),
            "clipped": ((ratio - 1).abs() > args.clip_coef).float().mean(),
            "entropy": ent.detach(),
            "anchor": pull.detach(),
            "sigma": log_sigma.exp().mean(),
            "off": (ratio - 1).abs().max(),
        }
    return loss, figures


def critic_loss(critic, b, args):
    """Eq. 52: 1/2 (V - R)^2, its change clipped by flag -> the loss, and it detached."""
    value = critic(b["obs"])
    error = (value - b["return"]).square()
    if args.clip_value:
        change = (value - b["value"]).clamp(-args.clip_value, args.clip_value)
        error = torch.max(error, (b["value"] + change - b["return"]).square())
    loss = 0.5 * args.vf_coef * error.mean()
    return loss, {"value_loss": loss.detach()}
