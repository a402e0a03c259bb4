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


def mixing(T_a, rho):
    """L (T_a, T_a), lower triangular, of the noise of a chunk: steps i and j of L w are correlated.

    Their correlation is rho ** |i - j| if w is white, so that L L' is the covariance C of a chunk's
    noise in units of sigma ** 2 (note 32).
    """
    step = torch.arange(T_a, dtype=torch.float64)
    return torch.linalg.cholesky(rho ** (step[:, None] - step).abs()).float()


def natural(mu, mix):
    """mu (B, T_a, D_a) itself; its gradient g becomes C g (note 32).

    C = L L' with mix = L. An update then changes chunks as the noise has tried them: smoothly. The
    plain gradient S^-1 C^-1 S^-1 (a - mu) A, S = diag sigma, is largest where the noise is smallest
    and tells least. Where sigma is the same at all steps, C times it has the direction of a - mu:
    that of the natural gradient.
    """
    if mu.requires_grad:
        mu = mu.clone()
        mu.register_hook(lambda g: mix @ (mix.T @ g))
    return mu


def log_prob(a, mu, log_sigma, ran, mix):
    """Eqs. 13, 48, 57: log N(a; mu, sigma) of the coordinates that ran -> (B,) (note 8).

    a, mu, log_sigma (B, T_a, D_a): the un-clipped sample of the executed prefix, its mean and log
    standard deviation. ran (B, T_a): 1 where the environment ran the action, 0 after an episode's
    end. mix (T_a, T_a): see `mixing`. It is lower triangular, so that the likelihood of a prefix
    needs no more than the prefix: the sum over the steps that ran is exact.
    """
    e = (a - mu) * torch.exp(-log_sigma)
    white = torch.linalg.solve_triangular(mix, e, upper=False)
    each = -0.5 * white.square() - log_sigma - mix.diagonal().log()[:, None] - 0.5 * LOG_2_PI
    return (each.sum(-1) * ran).sum(-1)


def entropy(log_sigma, ran, mix):
    """Eq. 53: the entropy of the executed prefix's Gaussian, in nats -> (B,)."""
    each = log_sigma + mix.diagonal().log()[:, None] + 0.5 * math.log(2 * math.pi * math.e)
    return (each.sum(-1) * ran).sum(-1)


class Actor(nn.Module):
    """The policy with a noise head: pi(a | o, z) = N(mu(o, z), S C S) (Eqs. 12, 43-46).

    S = diag sigma(o). sigma: what an untrained head gives, set anew as the noise is annealed;
    sigma_range: the bounds as multiples of it, below and above 1; rho: see `mixing`.
    """

    def __init__(self, policy, sigma, sigma_range, rho):
        super().__init__()
        self.policy = policy
        self.register_buffer("mix", mixing(policy.T_a, rho).to(policy.device))
        self.sigma = sigma
        self.below, self.above = (math.log(factor) for factor in sigma_range)
        self.head = nn.Linear(EMBED, policy.T_a * policy.D_a).to(policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, math.log(-self.below / self.above))  # log sigma + 0

    def forward(self, obs, z):
        """Eqs. 43-45: mu (B, T_p, D_a) and log sigma (B, T_a, D_a) of the executed prefix.

        One pass: the mean and the noise share the observation's embedding. The bounds of Eq. 45 are
        a sigmoid's (note 9).
        """
        net = self.policy.net
        h = net.embed(self.policy.features(obs))  # (B, EMBED)
        mu = net.generate(z, h)
        raw = self.head(h).unflatten(-1, (self.policy.T_a, -1))
        share = torch.sigmoid(raw)
        return mu, math.log(self.sigma) + self.below + (self.above - self.below) * share


class Critic(nn.Module):
    """V(o, progress), with an encoder of its own that begins as the policy's.

    It alone knows how far the episode has come, and acts in no roll-out (note 22).
    """

    def __init__(self, policy, width=256):
        super().__init__()
        self.norms = copy.deepcopy(policy.norm_obs)
        self.encoder = copy.deepcopy(policy.encoder)
        self.net = nn.Sequential(
            nn.Linear(policy.encoder.size + 2, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )
        self.to(policy.device)

    def forward(self, obs, progress):
        """obs {name: (B, T_o, ...)}, progress (B, 2) of envs.Simulators -> values (B,)."""
        features = encode(obs, self.norms, self.encoder)
        return self.net(torch.cat([features, progress], 1)).squeeze(-1)


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

    ended (terminated or truncated) cuts the trace, and next_value is 0 there (note 22).
    """
    delta = reward + gamma * next_value - value
    advantage = torch.empty_like(reward)
    last = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        last = delta[t] + gamma * lam * (1 - ended[t]) * last
        advantage[t] = last
    return advantage


# ---- smoothness ---------------------------------------------------------------------------------


def add_past(buffer):
    """Fill in the end of the chunk that was executed before each chunk (note 37).

    buffer: tensors, time first (S, N, ...). Its new parts: past (S, N, min(3, T_a), D_a), and
    follows (S, N): 1 where there is such a chunk, of the same episode and in this buffer.
    """
    a = buffer["a"]
    follows = torch.zeros_like(buffer["ended"])
    follows[1:] = 1 - buffer["ended"][:-1]
    before = torch.cat([torch.zeros_like(a[:1]), a[:-1]])
    buffer["past"] = before[:, :, -3:]
    buffer["follows"] = follows


def roughness(mu, past, follows):
    """The summed squared third differences of executed actions, normalised units -> (B,).

    mu (B, T_a, D_a): the means of the executed prefix; past and follows: see `add_past`. Third
    differences that reach into the past count where there is one: a chunk should go on from it.
    """
    n = past.shape[1]
    third = torch.cat([past, mu], 1).diff(n=3, dim=1).square().sum(-1)
    return third[:, n:].sum(1) + follows * third[:, :n].sum(1)


# ---- losses -------------------------------------------------------------------------------------


def actor_loss(actor, b, args, anchor):
    """Eqs. 14-17, 49-55 without the value term, on a minibatch b -> the loss, detached figures.

    The ratio takes the stored z, so that p(z) cancels. b: obs, z, a, ran, log_prob, advantage,
    anchor (B, T_p, D_a), the frozen Stage-1 policy's chunk, and past and follows of `add_past`.
    anchor: the weight lambda now. `--smooth` adds what is not in the paper (note 37).
    """
    mu, log_sigma = actor(b["obs"], b["z"])
    mean = natural(actor.policy.executed(mu), actor.mix)
    new = log_prob(b["a"], mean, log_sigma, b["ran"], actor.mix)
    log_ratio = new - b["log_prob"]
    if args.per_dimension:
        log_ratio = log_ratio / (b["ran"].sum(-1) * actor.policy.D_a)
    ratio = log_ratio.exp()  # Eqs. 14, 49, 50

    A = b["advantage"]
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    surrogate = torch.min(ratio * A, clipped * A).mean()  # Eqs. 15, 51
    ent = entropy(log_sigma, b["ran"], actor.mix).mean()  # Eq. 53
    pull = torch.zeros((), device=mu.device)
    if anchor:
        pull = (mu - b["anchor"]).square().sum((-2, -1)).mean()  # Eqs. 16, 54
    loss = -surrogate - args.ent_coef * ent + anchor * pull  # Eqs. 17, 55
    rough = roughness(actor.policy.executed(mu), b["past"], b["follows"]).mean()
    if args.smooth:
        loss = loss + args.smooth * rough

    with torch.no_grad():
        figures = {
            "kl": (ratio - 1 - log_ratio).mean(),
            "clipped": ((ratio - 1).abs() > args.clip_coef).float().mean(),
            "entropy": ent.detach(),
            "anchor": pull.detach(),
            "rough": rough.detach(),
            "sigma": log_sigma.exp().mean(),
            "off": (ratio - 1).abs().max(),
        }
    return loss, figures


def critic_loss(critic, b, args):
    """Eq. 52: 1/2 (V - R)^2, its change clipped by flag -> the loss, and it detached."""
    value = critic(b["obs"], b["progress"])
    error = (value - b["return"]).square()
    if args.clip_value:
        change = (value - b["value"]).clamp(-args.clip_value, args.clip_value)
        error = torch.max(error, (b["value"] + change - b["return"]).square())
    loss = 0.5 * args.vf_coef * error.mean()
    return loss, {"value_loss": loss.detach()}
