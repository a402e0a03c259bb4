"""Observation encoders: named tensors go in, one feature vector per observation comes out.

The features are computed once per observation and shared by all its latents. Which encoder an
observation gets is told by its number of axes:

  (S,)       numbers              passed through; beside a cloud, a small MLP
  (N, 3)     a point cloud        PointNet, as in 3D Diffusion Policy (arXiv 2403.03954)
  (H, W, 3)  a camera's picture   three convolutions or ResNet18 (vision.py), for each camera its
                                  own or one for all

Every frame is encoded by itself. A frame's features stand side by side, pictures before clouds
before numbers, and the T_o frames follow one another.
"""

import torch
from torch import nn

from vision import centre_crop, crop_sizes, frame_encoder

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


def vision_of(shapes, crop, encoder="small", pool="softmax", shared=False):
    """What a policy's shape says of its cameras: keywords of Encoder; {} without a camera.

    shapes: {name: shape of one observation}; crop: a Task's. Raises BadInput as crop_sizes does.
    """
    crop = crop_sizes(shapes, crop)
    if not crop:
        return {}
    found = {"encoder": encoder, "crop": crop, "shared": shared}
    if encoder == "resnet18":
        found["pool"] = pool
    return found


class Encoder(nn.Module):
    """All observations of a policy: {name: (B, T_o, ...)} -> (B, size).

    shapes: {name: shape of one observation}; T_o: the number of frames. Of cameras: encoder and
    pool are names of vision.py; crop {camera: [h, w]}, the whole picture where none is given;
    shared: one encoder for all cameras, whose crops must then be equal. Raises ValueError if there
    is an observation that no encoder here takes.
    """

    def __init__(self, shapes, T_o, *, encoder="small", pool="softmax", crop=None, shared=False):
        super().__init__()
        clouds = any(len(shape) == 2 for shape in shapes.values())
        # Pictures come before clouds before numbers.
        self.names = sorted(shapes, key=lambda name: -len(shapes[name]))
        self.crop = crop_sizes(shapes, crop or {})
        self.shared = shared
        if shared and len({tuple(size) for size in self.crop.values()}) > 1:
            raise ValueError(f"cameras with crops {self.crop} cannot share an encoder: crop alike")
        parts = {}
        sizes = []
        for name in self.names:
            shape = shapes[name]
            if len(shape) == 3 and shape[2] == 3:
                first = next(iter(self.crop)) if shared else name
                if first not in parts:
                    parts[first] = frame_encoder(encoder, pool, self.crop[name])
                sizes.append(parts[first].size)
            elif len(shape) == 2:
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

    @property
    def cameras(self):
        """The encoders of pictures, each once."""
        return [part for name, part in self.parts.items() if name in self.crop]

    @property
    def frame_sizes(self):
        """{camera: the number C of a frame's features}."""
        return {name: self.camera(name).size for name in self.crop}

    def camera(self, name):
        """The encoder of a camera's pictures."""
        return self.cameras[0] if self.shared else self.parts[name]

    def of_frames(self, name, frames):
        """Pictures (n, H, W, 3) of a camera, whose middle is seen -> features (n, C)."""
        return self.camera(name)(centre_crop(frames, self.crop[name]))

    def of_cameras(self, obs):
        """{camera: features (B T_o, C)} of obs {name: (B, T_o, H, W, 3)}."""
        if not self.shared:
            return {name: self.of_frames(name, obs[name].flatten(0, 1)) for name in obs}
        seen = [centre_crop(obs[name].flatten(0, 1), self.crop[name]) for name in obs]
        together = self.cameras[0](torch.cat(seen))
        return dict(zip(obs, together.chunk(len(seen))))

    def forward(self, obs):
        """obs {name: (B, T_o, ...)}, normalised -> features (B, size).

        A camera's entry may also be (B, T_o, C): features that of_frames() gave before.
        """
        B, T_o = obs[self.names[0]].shape[:2]
        pictures = {name: obs[name] for name in self.crop if obs[name].ndim == 5}
        frames = self.of_cameras(pictures) if pictures else {}  # (B T_o, C) each
        for name in self.names:
            if name not in frames:
                numbers = obs[name].flatten(0, 1)
                frames[name] = numbers if name in self.crop else self.parts[name](numbers)
        features = torch.cat([frames[name] for name in self.names], 1)
        return features.unflatten(0, (B, T_o)).flatten(1)
