"""Observation encoders: named tensors go in, one feature vector per observation comes out.

The features are computed once per observation and shared by all its latents. Which encoder an
observation gets is told by its number of axes:

  (S,)       numbers              passed through; beside a cloud, a small MLP
  (N, 3)     a point cloud        PointNet, as in 3D Diffusion Policy (arXiv 2403.03954)

Every frame is encoded by itself. A frame's features stand side by side, clouds before numbers, and
the T_o frames follow one another.
"""

import torch
from torch import nn

FEATURES = 64  # of a cloud, and of the robot's own state beside one


class PointNet(nn.Module):
    """A cloud (B, N, 3) -> (B, out): an MLP on every point, a maximum over points, a projection.

    The maximum passes gradient only to the points that win a channel, about a quarter of 512. So
    all points are encoded without gradient, and the winners once more with it: the same values and
    the same gradients for less work (note 21).
    """

    def __init__(self, channels=3, dims=(64, 128, 256), out=FEATURES):
        super().__init__()
        layers = []
        for c_in, c_out in zip((channels, *dims), dims):
            layers += [nn.Linear(c_in, c_out), nn.LayerNorm(c_out), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(dims[-1], out), nn.LayerNorm(out))

    def winners(self, points):
        """Indices (B, M) of the points (B, N, 3) that win a channel, some of them repeatedly.

        On a CPU M is the most that win in any cloud. Elsewhere it is the number of channels: a
        shape that depends on the data would make the host wait for the device.
        """
        with torch.no_grad():
            if points.device.type != "cpu":
                return self.mlp(points).max(1).indices  # (B, channels)
            # Blocks of 4 clouds stay in the CPU's cache: the pass takes half the time.
            best = [self.mlp(block).max(1).indices for block in points.split(4)]
        return distinct(torch.cat(best), points.shape[1])

    def forward(self, points):
        """points (B, N, 3) -> (B, out)."""
        if torch.is_grad_enabled():
            i = self.winners(points)
            points = points.gather(1, i[..., None].expand(-1, -1, points.shape[-1]))
        # amax would split its gradient among ties, which is slower
        return self.project(self.mlp(points).max(1).values)


def distinct(i, N):
    """The different numbers in each row of i (B, C), all below N, in ascending order: (B, M).

    M is the most of any row; shorter rows repeat their last number.
    """
    there = torch.zeros(len(i), N, dtype=torch.bool, device=i.device)
    there.scatter_(1, i, True)
    order = there.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    count = there.sum(1)
    place = torch.arange(int(count.max()), device=i.device).expand(len(i), -1)
    return order.gather(1, torch.minimum(place, count[:, None] - 1))


def state_mlp(size, out=FEATURES):
    """The encoder of the robot's own state beside a cloud: (B, size) -> (B, out)."""
    return nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, out))


class Encoder(nn.Module):
    """All observations of a policy: {name: (B, T_o, ...)} -> (B, size).

    shapes: {name: shape of one observation}; T_o: the number of frames. Raises ValueError if there
    is an observation that no encoder here takes.
    """

    def __init__(self, shapes, T_o):
        super().__init__()
        clouds = any(len(shape) == 2 for shape in shapes.values())
        self.names = sorted(shapes, key=lambda name: -len(shapes[name]))  # clouds before numbers
        parts = {}
        sizes = []
        for name in self.names:
            shape = shapes[name]
            if len(shape) == 2:
                parts[name] = PointNet(channels=shape[1])
                sizes.append(FEATURES)
            elif len(shape) == 1 and clouds:
                parts[name] = state_mlp(shape[0])
                sizes.append(FEATURES)
            elif len(shape) == 1:
                parts[name] = nn.Identity()
                sizes.append(shape[0])
            else:
                raise ValueError(f"observation {name} {tuple(shape)}: there is no encoder for it")
        self.parts = nn.ModuleDict(parts)
        self.size = T_o * sum(sizes)

    def forward(self, obs):
        """obs {name: (B, T_o, ...)}, normalised -> features (B, size)."""
        B, T_o = obs[self.names[0]].shape[:2]
        frames = [self.parts[name](obs[name].flatten(0, 1)) for name in self.names]  # (B T_o, C)
        return torch.cat(frames, 1).unflatten(0, (B, T_o)).flatten(1)
