"""The policy: normaliser, observation features and generator in one module, and its checkpoint file.

One forward pass of the generator maps (o, z) to an action chunk (arXiv 2604.03540, Eqs. 6, 7, 22). Both trainers,
the evaluator and the robot loop use this class and read the same file. `Actor` adds the noise that Stage 2 explores
with, and its exact likelihood (Eqs. 12, 13, 43-48).
"""
import functools
import math

import torch
from torch import nn

from encoders import LowDim, Points
from runs import BadInput, load_torch, save_torch
from unet import EMBED, Z_GAIN, UNet1d

FORMAT = "drift-policy-1"
TIME = 32           # numbers that a time in [0, 1] is embedded in


class Normalizer(nn.Module):
    """Per-dimension min-max map to [-1, 1]; a dimension that is constant in the data maps to 0.

    lo, hi (D,): bounds of the data. Buffers, never parameters: no optimiser may move them.
    """

    def __init__(self, lo, hi):
        super().__init__()
        self.register_buffer("lo", torch.as_tensor(lo, dtype=torch.float32).clone())
        self.register_buffer("hi", torch.as_tensor(hi, dtype=torch.float32).clone())

    def _affine(self):
        half = (self.hi - self.lo) / 2
        constant = half <= 1e-6 * (1 + self.lo.abs())      # float32 noise on a constant is not a range
        return (self.hi + self.lo) / 2, torch.where(constant, torch.ones_like(half), half)

    def forward(self, y):
        """(..., D) in data units -> normalised."""
        mid, half = self._affine()
        return (y - mid) / half

    def inverse(self, y):
        """(..., D) normalised -> data units."""
        mid, half = self._affine()
        return y * half + mid


def bounds(y, points=0):
    """Minimum and maximum (D,) of each dimension of y (N, D); of the x, y, z of a cloud of that many points at its end,
    over all of them."""
    lo, hi = y.amin(0), y.amax(0)
    if points:
        xyz = y[:, -3 * points:].unflatten(1, (points, 3))
        lo[-3 * points:], hi[-3 * points:] = xyz.amin((0, 1)).repeat(points), xyz.amax((0, 1)).repeat(points)
    return lo, hi


def encode(obs, norm, encoder):
    """Observations (B, T_o, obs_dim) in data units -> features (B, encoder.size): normalised, split, encoded."""
    y, n = norm(obs), encoder.points
    S = y.shape[-1] - 3 * n
    return encoder({"state": y[..., :S], "points": y[..., S:].reshape(*y.shape[:-1], n, 3)})


def embed_time(t):
    """Times in [0, 1] (N,) -> sines and cosines (N, TIME), of 1 to 30 radians: MeanFlow differentiates them."""
    angle = t[:, None] * torch.logspace(0, 1.5, TIME // 2, device=t.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


class Policy(nn.Module):
    """One-step policy; or one of another method on the same network, with a sampler of baselines.py.

    shape: dict of task, obs_dim, D_a, T_o, T_p, T_a, dims; points if observations end in a cloud; method, if not dbp,
    and the number of times its network is conditioned on. obs_range, action_range: (lo, hi).
    """

    def __init__(self, shape, obs_range=None, action_range=None):
        super().__init__()
        self.shape = {**shape, "dims": list(shape["dims"])}
        self.task, self.T_o, self.T_p, self.T_a = (shape[k] for k in ("task", "T_o", "T_p", "T_a"))
        self.obs_dim, self.D_a = shape["obs_dim"], shape["D_a"]
        self.z_scale = 1.0      # below 1, `act` draws latents nearer to 0: less varied chunks
        self.method, self.times = shape.get("method", "dbp"), shape.get("times", 0)
        self.sampler, self.nfe = None, 0        # how another method acts; network evaluations so far
        self.norm_obs = Normalizer(*(obs_range or 2 * [torch.zeros(self.obs_dim)]))
        self.norm_action = Normalizer(*(action_range or 2 * [torch.zeros(self.D_a)]))
        n = shape.get("points", 0)
        self.encoder = Points(self.T_o, self.obs_dim - 3 * n, n) if n else LowDim(self.T_o, self.obs_dim)
        try:
            self.net = UNet1d(self.D_a, self.encoder.size + self.times * TIME, shape["dims"])
            self.net.check_horizon(self.T_p)
            if self.times:                                  # the input is the noisy chunk then: its usual weight
                self.net.weigh_latent(1 / Z_GAIN)
        except ValueError as e:
            raise BadInput(str(e)) from e

    @property
    def device(self):
        return self.norm_obs.lo.device

    def features(self, obs):
        """Observation history (B, T_o, obs_dim) in data units -> condition (B, C)."""
        if obs.shape[1:] != (self.T_o, self.obs_dim):
            raise BadInput(f"observations {tuple(obs.shape)} do not fit this policy: it takes "
                           f"(B, {self.T_o}, {self.obs_dim})")
        return encode(obs, self.norm_obs, self.encoder)

    def latent(self, *size, generator=None):
        """z ~ N(0, I) of shape (*size, T_p, D_a)."""
        return torch.randn(*size, self.T_p, self.D_a, device=self.device, generator=generator)

    def network(self, h, x, *times):
        """One network evaluation: features h (B, C), input x (B, T_p, D_a) or (B, K, T_p, D_a), times () or (B,)."""
        self.nfe += 1
        return self.net(x, torch.cat([h, *(embed_time(t.expand(len(h))) for t in times)], -1) if times else h)

    def forward(self, obs, z, generator=None):
        """Eq. 6: normalised chunks of shape z, (B, T_p, D_a) or (B, K, T_p, D_a), in one generator call.

        Another method's sampler makes as many calls as it needs, and may draw further noise from the generator.
        """
        f = functools.partial(self.network, self.features(obs))
        if self.sampler is None and self.method not in ("dbp", "bc"):
            raise BadInput(f"a {self.method} policy acts by its sampler: see prepare() in baselines.py")
        return self.sampler(f, z, generator) if self.sampler else f(z)

    def hypotheses(self, obs, K, *, generator=None):
        """Eq. 7: K chunks per observation from K latents, obs (B, T_o, obs_dim) -> (B, K, T_p, D_a), normalised."""
        return self(obs, self.latent(len(obs), K, generator=generator))

    @torch.inference_mode()
    def act(self, obs, z=None, *, generator=None):
        """One generator call: obs (B, T_o, obs_dim), z (B, T_p, D_a) or drawn -> chunk (B, T_p, D_a), action units."""
        z = self.z_scale * self.latent(len(obs), generator=generator) if z is None else z
        return self.norm_action.inverse(self(obs, z, generator))

    def set_executed(self, T_a):
        """Execute T_a steps of each chunk from now on. Raises BadInput if Eq. 23 forbids it."""
        if T_a < 1 or self.T_o - 1 + T_a > self.T_p:
            raise BadInput(f"T_a {T_a} with T_o {self.T_o}, T_p {self.T_p} breaks 1 <= T_a <= T_p - T_o + 1 (Eq. 23)")
        self.T_a = self.shape["T_a"] = T_a

    def executed(self, chunk):
        """Eq. 22: the slice that runs, (B, T_p, ...) -> (B, T_a, ...)."""
        return chunk[:, self.T_o - 1:self.T_o - 1 + self.T_a]

    def save(self, path, *, flags=None, ema=None, step=0):
        """Write the checkpoint atomically: shape, flags, weights, EMA weights (a state dict), normaliser."""
        save_torch(path, {"format": FORMAT, "shape": self.shape, "flags": flags or {}, "step": step,
                          "weights": self.state_dict(), "ema": ema or {}})

    @classmethod
    def load(cls, path, device="cpu", *, ema=True, task=None):
        """Read a checkpoint without running code from it; EMA weights by default.

        task: refuse a checkpoint of any other. Raises BadInput if the file is missing, damaged or not a policy.
        Returns the policy in eval mode and the checkpoint's flags.
        """
        state = load_torch(path)
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise BadInput(f"{path} is not a policy checkpoint: pass the ckpt.pt of a run folder")
        try:
            policy, flags = cls(state["shape"]), state["flags"]
            policy.load_state_dict({**state["weights"], **(state["ema"] if ema else {})})
        except (KeyError, RuntimeError, TypeError, AttributeError) as e:
            raise BadInput(f"{path}: its weights do not fit its own description ({type(e).__name__}); "
                           "it was made by another version") from e
        if task not in (None, policy.task):
            raise BadInput(f"{path} was trained on {policy.task}, not {task}: pass a checkpoint of {task}")
        return policy.to(device).eval(), flags


def log_prob(a, mu, log_sigma, ran):
    """Eqs. 13, 48, 57: log N(a; mu, sigma) summed over the coordinates that ran.

    a, mu, log_sigma (B, T_a, D_a): the un-clipped sample of the executed prefix, its mean, log standard deviation;
    ran (B, T_a): 1 where the environment ran the action, 0 after an episode's end -> (B,).
    """
    each = -0.5 * ((a - mu) * torch.exp(-log_sigma)).square() - log_sigma - 0.5 * math.log(2 * math.pi)
    return (each.sum(-1) * ran).sum(-1)


def entropy(log_sigma, ran):
    """Entropy of the executed prefix's Gaussian, nats: log_sigma (B, T_a, D_a), ran (B, T_a) -> (B,). Eq. 53."""
    return ((log_sigma + 0.5 * math.log(2 * math.pi * math.e)).sum(-1) * ran).sum(-1)


class Actor(nn.Module):
    """The Stage-1 policy with a noise head: pi(a | o, z) = N(mu(o, z), diag sigma(o)^2) (Eqs. 12, 43-46)."""

    def __init__(self, policy, sigma, sigma_range, calls=1):
        super().__init__()
        self.policy, self.calls = policy, calls
        low, high = map(math.log, sigma_range)
        self.low, self.width, self.shift = low, high - low, 0.0     # shift of log sigma and its bounds: annealing
        self.head = nn.Linear(EMBED, policy.T_a * policy.D_a).to(policy.device)
        nn.init.zeros_(self.head.weight)
        share = (math.log(sigma) - low) / self.width
        nn.init.constant_(self.head.bias, math.log(share / (1 - share)))

    def forward(self, obs, z):
        """obs (B, T_o, obs_dim), z (B, T_p, D_a) -> mu (B, T_p, D_a), log sigma (B, T_a, D_a) of the executed prefix.

        Eqs. 43-45, one pass: mean and feature share the embedding. The bounds of Eq. 45 are a sigmoid's, as a hard
        clamp passes no gradient back inside.
        """
        net = self.policy.net
        h = net.embed(self.policy.features(obs))                               # (B, EMBED)
        mu = sum(net.generate(z, h) for _ in range(self.calls)) / self.calls
        return mu, self.shift + self.low + self.width * torch.sigmoid(self.head(h).unflatten(-1, (self.policy.T_a, -1)))
