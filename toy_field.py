"""What toy.py compares in two dimensions: a network that is trained, or particles that are moved.

Both return where their samples were at some moments of the run; a Result keeps that.
"""

from dataclasses import dataclass

import torch
from torch import nn

from drift import FLOOR_F, drift, drift_loss

MOVES = 500  # of each particle
STRIDE = 0.1  # the first of these moves, in units of the scale (Eq. 56); it falls to 0
GAIN = 3.0  # of the latents, on the way into the network
FRAMES = 40  # of the GIF
SAMPLES = 2000  # of a network, and of the data


class Generator(nn.Sequential):
    """x = f(z, o): four hidden layers, outputs of standard deviation `spread` over z at first.

    The modes lie apart and the latents do not, so f has to be steep in between. ReLU, a fourth
    layer and GAIN make it so; smooth activations, a wider network, residual connections or more
    latents than two do not.
    """

    def __init__(self, D_o, spread, width=96):
        layers = []
        for size in (2 + D_o, width, width, width):
            layers += [nn.Linear(size, width), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, 2))
        with torch.no_grad():
            x = self(torch.randn(1000, 2), torch.zeros(1000, D_o))
            self[-1].weight *= spread / x.std(0).mean()
            self[-1].bias -= self(torch.randn(1000, 2), torch.zeros(1000, D_o)).mean(0)

    def forward(self, z, o):
        """z (..., 2), o (..., D_o) -> x (..., 2)."""
        return super().forward(torch.cat([GAIN * z, o], -1))


def train(
    target,
    *,
    B,
    K,
    P=1,
    temps=(0.1,),
    steps=1500,
    lr=3e-3,
    seed=0,
    spread=1.0,
    regression=False,
    at=(),
):
    """Train a Generator on a target by Adam; the learning rate falls to 0 as a cosine.

    A step takes B observations, K hypotheses and P positives each (P > 1 only where D_o = 0).
    Returns f, observations o (SAMPLES, D_o) and snapshots {step: x (SAMPLES, 2)} of fixed latents,
    at the steps named in `at` and at the end.
    """
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed + 1)
    z_fixed = torch.randn(SAMPLES, 2)
    o_fixed = target(SAMPLES, g)[0]
    snapshots = {}
    f = Generator(o_fixed.shape[1], spread)
    optimiser = torch.optim.Adam(f.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps + 1):
        if step in at or step == steps:
            with torch.no_grad():
                snapshots[step] = f(z_fixed, o_fixed)
        if step == steps:
            return f, o_fixed, snapshots
        o, y = target(B * P, g)
        o = o.view(B, P, -1)[:, :1].expand(B, K, -1)  # (B, K, D_o)
        y = y.view(B, P, 2)
        x = f(torch.randn(B, K, 2), o)  # Eq. 1  (B, K, 2)
        if regression:
            loss = (x - y).square().mean()
        else:
            loss = drift_loss(x, y, temps=temps)[0].mean()  # Eqs. 4, 39
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def move(target, *, B, K, P=1, temps=(0.1,), moves=MOVES, seed=0, at=()):
    """Move B K particles by the drifting field itself, without a network: x <- x + step V (Eq. 2).

    As for a network, every group of K particles has P positives, drawn afresh for each move. The
    groups are dealt afresh as well, which is right since no target's positives depend on o.
    Returns o (B K, D_o) and snapshots {move: x (B K, 2)} at those named in `at` and at the end.
    """
    g = torch.Generator().manual_seed(seed)
    o = target(B * K, g)[0]
    x = torch.randn(B * K, 2, generator=g)
    snapshots = {}
    for i in range(moves + 1):
        if i in at or i == moves:
            snapshots[i] = x
        if i == moves:
            return o, snapshots
        deal = torch.randperm(B * K, generator=g)
        groups = x[deal].view(B, K, 2)
        y = target(B * P, g)[1].view(B, P, 2)
        V, scale, _ = drift(groups, y, temps=temps)
        moved = groups + STRIDE * (1 - i / moves) * scale * V
        x = torch.empty_like(x).index_copy(0, deal, moved.view(-1, 2))


@torch.no_grad()
def force(grid, x, pos, temps):
    """The force F (Eq. 35) on one more hypothesis at each grid point, mean over the B elements.

    grid (G, 2), x (B, K, 2), pos (B, P, 2) -> (G, 2).
    """
    B, K, _ = x.shape
    cost = B * (K + 1) * (K + 1 + pos.shape[1])  # pairs that a grid point needs
    parts = []
    for part in grid.split(max(1, 2_000_000 // cost)):
        lead = (len(part), B, -1, 2)  # every grid point is a problem of its own
        probe = part[:, None, None].expand(lead)
        V, _, info = drift(torch.cat([probe, x.expand(lead)], 2), pos.expand(lead), temps=temps[:1])
        rms = info["force_rms"][..., None].clamp_min(FLOOR_F)
        parts.append((V[:, :, 0] * rms).mean(1))
    return torch.cat(parts)


# ---- settings and what came of them --------------------------------------------------------------


@dataclass
class Result:
    """What came of one setting on one target."""

    setting: dict  # keywords of train() or move(); empty for the expert
    o: torch.Tensor  # (n, D_o)
    snapshots: dict  # step -> x (n, 2)
    figures: dict  # see measure()

    @property
    def x(self):
        """The samples at the end (n, 2)."""
        return self.snapshots[max(self.snapshots)]


def together(n):
    """The name of the setting with n hypotheses and n positives in one problem."""
    return f"K = P = {n}"


def alone(name):
    """The name of a setting's field without a network."""
    return f"particles {name}"


def moments(steps):
    """The four steps at which draw_field shows a run."""
    return [0, steps // 50, steps // 5, steps]


def frames(steps):
    """The FRAMES steps at which the GIF shows a run, ever farther apart."""
    return [round(steps * (i / (FRAMES - 1)) ** 2) for i in range(FRAMES)]
