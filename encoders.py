"""Observation encoders: a dict of tensors in, one feature vector out; computed once an observation, shared by all z.

Every encoder takes {name: (B, T_o, ...)} and returns (B, C). `LowDim` passes numbers through. `Points` is 3D Diffusion
Policy's encoder (arXiv 2403.03954): a point network for the cloud, a small MLP for the robot's own state, each frame
by itself, frames side by side.
"""
import torch
from torch import nn


class LowDim(nn.Module):
    """{"state": (B, T_o, D)} -> (B, T_o D), as it is."""

    def __init__(self, T_o, state_dim):
        super().__init__()
        self.points, self.size = 0, T_o * state_dim

    def forward(self, obs):
        return obs["state"].flatten(1)


class PointNet(nn.Module):
    """Cloud (B, N, C) -> (B, out): a shared MLP on every point with LayerNorm, a maximum over points, a projection.

    The maximum passes gradient only to the points that win a channel, about a quarter of 512. So all points are
    encoded without gradient, and the winners once more with it: the same values and gradients for less work.
    """

    def __init__(self, channels=3, dims=(64, 128, 256), out=64):
        super().__init__()
        sizes = (channels, *dims)
        self.mlp = nn.Sequential(*(m for i, o in zip(sizes, dims) for m in (nn.Linear(i, o), nn.LayerNorm(o), nn.ReLU())))
        self.project = nn.Sequential(nn.Linear(dims[-1], out), nn.LayerNorm(out))

    def winners(self, points):
        """Indices (B, M) of the points that win at least one channel, M the most in any cloud; short rows repeat."""
        with torch.no_grad():
            # in blocks of 4 clouds on a CPU: they stay in its cache, and the pass takes less than half the time
            blocks = points.split(4) if points.device.type == "cpu" else [points]
            best = torch.cat([self.mlp(y).max(1).indices for y in blocks])     # (B, channels)
        won = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device).scatter_(1, best, True)
        order = won.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        count = won.sum(1)
        place = torch.arange(int(count.max()), device=points.device).expand(len(points), -1)
        return order.gather(1, torch.minimum(place, count[:, None] - 1))

    def forward(self, points):
        if torch.is_grad_enabled():
            i = self.winners(points)
            points = points.gather(1, i[..., None].expand(-1, -1, points.shape[-1]))
        return self.project(self.mlp(points).max(1).values)      # amax's gradient, split among ties, is slower


class Points(nn.Module):
    """{"points": (B, T_o, N, 3), "state": (B, T_o, D)} -> (B, T_o (64 + 64)); coordinates only, no colour."""

    def __init__(self, T_o, state_dim, points, out=64):
        super().__init__()
        self.points, self.size = points, T_o * 2 * out
        self.cloud = PointNet(out=out)
        self.state = nn.Sequential(nn.Linear(state_dim, 64), nn.ReLU(), nn.Linear(64, out))

    def forward(self, obs):
        B, T_o = obs["state"].shape[:2]
        frames = [self.cloud(obs["points"].flatten(0, 1)), self.state(obs["state"].flatten(0, 1))]     # (B T_o, 64) each
        return torch.cat(frames, 1).unflatten(0, (B, T_o)).flatten(1)
