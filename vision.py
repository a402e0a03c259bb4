"""What turns a camera's pictures into features, and how pictures are changed in training.

  small      three convolutions; the default on a CPU
  resnet18   ResNet18 (arXiv 1512.03385) as in Diffusion Policy (arXiv 2303.04137): GroupNorm in the
             place of BatchNorm, whose running statistics no EMA of the weights follows; then a
             spatial softmax or an average. The default on a GPU

Pictures (..., H, W, 3) are uint8 in every buffer and on the way to a device, where an encoder
scales them. An encoder sees the crop in the middle of a picture. In training `augmented` moves the
picture at random under that crop, which makes it a random crop.
"""

import torch
from torch import nn
from torch.nn import functional

from commands import BadInput

KINDS = ("small", "resnet18")
POOLS = ("softmax", "average")
FEATURES = 64  # of a frame
POINTS = 32  # of the spatial softmax
# The least pixels of a side. With fewer than 16 or 17 a convolution of stride 2 sees maps one pixel
# wide, of which torch 2.13 takes gradients from memory that nobody filled, in bfloat16 on a CPU.
LEAST = {"small": 16, "resnet18": 32}
KERNEL = 8  # of the first convolution of `small`
# Of red, green and blue in ImageNet, which torchvision's weights were trained on.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


# ---- crops ---------------------------------------------------------------------------------------


def crop_sizes(shapes, crop):
    """The crop [h, w] of every camera of {name: shape}: the whole picture where none is given.

    crop {camera: (h, w), or one number for both}. Raises BadInput if a crop is of no camera, or not
    inside its picture.
    """
    cameras = {name: list(shape[:2]) for name, shape in shapes.items() if len(shape) == 3}
    sizes = dict(cameras)
    for name, size in crop.items():
        if name not in cameras:
            raise BadInput(f"there is a crop of {name}, which is no camera: leave it out")
        h, w = (size, size) if isinstance(size, int) else size
        H, W = cameras[name]
        if not (1 <= h <= H and 1 <= w <= W):
            raise BadInput(f"the crop {h} x {w} of {name} does not lie in its {H} x {W} pixels")
        sizes[name] = [h, w]
    return sizes


def middle(size, crop):
    """The first row, or column, of a crop in the middle of `size` of them."""
    return (size - crop) // 2


def centre_crop(pictures, crop):
    """The middle of pictures (..., H, W, 3), as a view (..., h, w, 3). crop: (h, w)."""
    h, w = crop
    top = middle(pictures.shape[-3], h)
    left = middle(pictures.shape[-2], w)
    return pictures[..., top : top + h, left : left + w, :]


# ---- pictures changed in training ----------------------------------------------------------------


def all_rows(rows):
    """The rows of a batch that one process has, where there is one process: all of them."""
    return rows


def augmented(obs, generator, *, crop=None, shift=0, jitter=0.0, n=None, share=all_rows):
    """Observations {name: (B, T_o, ...)} whose pictures are changed at random and stay uint8.

    The T_o frames of a sample are changed alike, the cameras each by itself. crop {camera: (h, w)}:
    a picture moves so that the crop in its middle is one drawn from all places (note 35). shift: it
    moves by up to that many pixels more; edges are repeated. jitter: brightness and contrast are
    multiplied by factors from 1 - jitter to 1 + jitter.

    generator: on the device of the observations. n: the rows of the batch, of which share(rows)
    are here (ranks.py); all draws are made for n rows. Without pictures nothing is drawn.
    """
    crop = crop or {}
    changed = dict(obs)
    for name, y in obs.items():
        if y.dtype != torch.uint8:
            continue
        size = (n or len(y),)
        H, W = y.shape[2:4]
        h, w = crop.get(name, (H, W))
        if shift or (h, w) != (H, W):
            dy = random_steps(H, h, shift, size, generator)
            dx = random_steps(W, w, shift, size, generator)
            changed[name] = moved(y, share(dy), share(dx))
        if jitter:
            factors = torch.rand(*size, 2, generator=generator, device=generator.device)
            brightness, contrast = share(1 + jitter * (2 * factors - 1)).unbind(1)
            changed[name] = jittered(changed[name], brightness, contrast)
    return changed


def random_steps(size, crop, shift, n, generator):
    """How far each of n pictures moves along an axis, whole pixels (n,)."""
    how = {"generator": generator, "device": generator.device}
    steps = torch.randint(size - crop + 1, n, **how) - middle(size, crop)
    if shift:
        steps = steps + torch.randint(-shift, shift + 1, n, **how)
    return steps


def moved(pictures, dy, dx):
    """Pictures (B, T_o, H, W, 3) with the pixel (y + dy, x + dx) at (y, x), edges repeated.

    dy, dx (B,): whole pixels of each sample.
    """
    B, T_o, H, W, _ = pictures.shape
    rows = (torch.arange(H, device=dy.device) + dy[:, None]).clamp(0, H - 1)  # (B, H)
    columns = (torch.arange(W, device=dx.device) + dx[:, None]).clamp(0, W - 1)  # (B, W)
    place = rows[:, :, None] * W + columns[:, None, :]  # (B, H, W), a pixel's number in its frame
    frame = torch.arange(B * T_o, device=dy.device).view(B, T_o, 1, 1) * (H * W)
    pixels = pictures.reshape(-1, 3)
    return pixels.index_select(0, (frame + place[:, None]).flatten()).view_as(pictures)


def jittered(pictures, brightness, contrast):
    """Pictures (B, T_o, H, W, 3) uint8 of other brightness and contrast, factors (B,) each.

    Contrast is that to the mean of a sample's frames.
    """
    wide = (-1, 1, 1, 1, 1)
    x = pictures.float() * brightness.view(wide)
    mean = x.mean((1, 2, 3, 4), keepdim=True)
    x = (x - mean) * contrast.view(wide) + mean
    return x.round().clamp(0, 255).to(torch.uint8)


# ---- encoders of a frame -------------------------------------------------------------------------


def scaled(pictures, mean, std):
    """Pictures (N, H, W, 3) uint8 -> (N, 3, H, W) float32, (picture - mean) / std of each colour.

    The colours come first in memory, too. On a CPU convolutions with the channels last took as long
    in training and 1.5 times as long for one action, because of GroupNorm.
    """
    x = pictures.movedim(-1, 1).to(mean.dtype, memory_format=torch.contiguous_format)
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def normed(norm, x):
    """A GroupNorm of x in the dtype of its weights, also under autocast, as in unet.py."""
    return norm(x.to(norm.weight.dtype))


class Small(nn.Module):
    """Pictures (N, h, w, 3) uint8 -> (N, FEATURES): three convolutions and a projection.

    crop: (h, w).
    """

    def __init__(self, crop):
        super().__init__()
        self.size = FEATURES
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        h, w = ((side - KERNEL) // 4 + 1 for side in crop)
        for c_in, c_out, kernel, stride, padding in (
            (3, 32, KERNEL, 4, 0),
            (32, 64, 3, 2, 1),
            (64, 128, 3, 2, 1),
        ):
            self.convs.append(nn.Conv2d(c_in, c_out, kernel, stride, padding))
            self.norms.append(nn.GroupNorm(8, c_out))
        for _ in range(2):
            h = (h + 1) // 2
            w = (w + 1) // 2
        self.project = nn.Sequential(nn.Linear(128 * h * w, FEATURES), nn.LayerNorm(FEATURES))
        self.register_buffer("grey", torch.full((3,), 127.5), persistent=False)

    def maps(self, pictures):
        """Pictures (N, h, w, 3) uint8 -> feature maps (N, 128, h', w')."""
        x = scaled(pictures, self.grey, self.grey)
        for conv, norm in zip(self.convs, self.norms):
            x = functional.silu(normed(norm, conv(x)))
        return x

    def forward(self, pictures):
        """Pictures (N, h, w, 3) uint8 -> features (N, size)."""
        return self.project(self.maps(pictures).flatten(1))


class Residual(nn.Module):
    """ResNet18's block: two convolutions and a skip, (N, C_in, h, w) -> (N, C_out, h', w')."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = group_norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = group_norm(c_out)
        self.downsample = None
        if stride > 1:
            skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, group_norm(c_out))

    def forward(self, x):
        skip = x
        if self.downsample is not None:
            conv, norm = self.downsample
            skip = normed(norm, conv(x))
        h = functional.relu(normed(self.norm1, self.conv1(x)), inplace=True)
        return functional.relu(normed(self.norm2, self.conv2(h)) + skip, inplace=True)


def group_norm(channels):
    """GroupNorm with 16 channels a group, as in Diffusion Policy."""
    return nn.GroupNorm(channels // 16, channels)


class Body(nn.Module):
    """ResNet18 without its last two layers: (N, 3, h, w) -> feature maps (N, 512, h/32, w/32).

    Its convolutions have torchvision's names and its first weights.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm1 = group_norm(64)
        self.layer1 = nn.Sequential(Residual(64, 64, 1), Residual(64, 64, 1))
        self.layer2 = nn.Sequential(Residual(64, 128, 2), Residual(128, 128, 1))
        self.layer3 = nn.Sequential(Residual(128, 256, 2), Residual(256, 256, 1))
        self.layer4 = nn.Sequential(Residual(256, 512, 2), Residual(512, 512, 1))
        for weight in self.convolutions().values():
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    def convolutions(self):
        """{name: weight} of all convolutions."""
        return {name: p for name, p in self.named_parameters() if p.ndim == 4}

    def forward(self, x):
        x = functional.relu(normed(self.norm1, self.conv1(x)), inplace=True)
        x = functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class SpatialSoftmax(nn.Module):
    """Feature maps (N, C, h, w) -> the mean place (N, POINTS, 2) of each of POINTS softmaxes.

    A place is (x, y) from -1 to 1, left to right and top to bottom.
    """

    def __init__(self, channels):
        super().__init__()
        self.maps = nn.Conv2d(channels, POINTS, 1)

    def forward(self, x):
        maps = self.maps(x).float()
        weight = maps.flatten(2).softmax(-1).view_as(maps)
        # Sums, not a matrix product, which autocast would take in bfloat16.
        across = (weight.sum(2) * places(maps.shape[3], maps)).sum(-1)
        down = (weight.sum(3) * places(maps.shape[2], maps)).sum(-1)
        return torch.stack([across, down], -1)


def places(n, like):
    """n places from -1 to 1, the middle if n is 1: (n,), of the device and dtype of `like`."""
    at = torch.arange(n, device=like.device, dtype=like.dtype)
    return (2 * at - (n - 1)) / max(n - 1, 1)


class ResNet18(nn.Module):
    """Pictures (N, h, w, 3) uint8 -> (N, size): ResNet18 and a pool.

    pool: "softmax", the places of 32 points and a projection to 64; or "average", 512 numbers.
    """

    def __init__(self, pool):
        super().__init__()
        self.body = Body()
        self.points = None
        self.size = 512
        if pool == "softmax":
            self.points = SpatialSoftmax(512)
            self.project = nn.Linear(2 * POINTS, FEATURES)
            self.size = FEATURES
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD), persistent=False)

    def maps(self, pictures):
        """Pictures (N, h, w, 3) uint8 -> feature maps (N, 512, h', w')."""
        return self.body(scaled(pictures, self.mean, self.std))

    def forward(self, pictures):
        """Pictures (N, h, w, 3) uint8 -> features (N, size)."""
        maps = self.maps(pictures)
        if self.points is None:
            return maps.mean((2, 3))
        return self.project(self.points(maps).flatten(1))


def frame_encoder(kind, pool, crop):
    """The encoder of a camera's frames (N, h, w, 3), of a crop (h, w). BadInput if it is small."""
    if min(crop) < LEAST[kind]:
        raise BadInput(
            f"pictures of {crop[0]} x {crop[1]} pixels: the encoder {kind} needs "
            f"{LEAST[kind]} x {LEAST[kind]}"
        )
    return Small(crop) if kind == "small" else ResNet18(pool)


@torch.no_grad()
def take_convolutions(body, found, path):
    """Copy the convolutions of torchvision's ResNet18 into a Body; raises BadInput if they differ.

    found: {name: tensor} of the file `path`. Norms and the classifier are left out, as in Diffusion
    Policy: BatchNorm's have no meaning for GroupNorm.
    """
    about = f"{path} does not hold torchvision's ResNet18"
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise BadInput(f"{about}: give a state dict, {{name: tensor}}")
    wanted = body.convolutions()
    of_file = {str(name) for name, v in found.items() if v.ndim == 4}
    different = sorted(of_file.symmetric_difference(wanted))
    if different:
        what = "is missing" if different[0] in wanted else "is too many"
        raise BadInput(f"{about}: {different[0][:100]} {what}")
    for name, weight in wanted.items():
        there = found[name]
        if there.shape != weight.shape or not there.is_floating_point():
            raise BadInput(
                f"{about}: {name} is {tuple(there.shape)} {there.dtype}, not {tuple(weight.shape)} "
                "of floating point"
            )
        if not there.isfinite().all():
            raise BadInput(f"{about}: {name} is not finite")
    for name, weight in wanted.items():
        weight.copy_(found[name])
