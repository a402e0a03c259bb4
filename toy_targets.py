"""The distributions in two dimensions that toy.py learns, and how far samples are from them."""

import math

import torch

SIGMA = 0.08  # the width of one Gaussian of "gaussians"
CENTRES = torch.tensor([(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)])
WAYS = (1.0, 0.0, -1.0)  # "fork": the height of each way
SHARES = (0.5, 0.3, 0.2)  # how many experts take it
NOISE = 0.05  # the deviation of the experts' waypoints
DISCS = ((1.0, 0.5), (1.0, -0.5))  # the centres of the obstacles
RADIUS = 0.3  # of an obstacle
NEAR = 0.2  # a waypoint nearer than this to a way takes it
OFF = 0.1  # a sample farther than this from all data is off the data


# ---- targets -------------------------------------------------------------------------------------
# (n, generator) -> observations o (n, D_o) and one positive each, y (n, 2). D_o = 0: unconditional.


def gaussians(n, g):
    """Eight Gaussians of width SIGMA on the unit circle."""
    centre = CENTRES[torch.randint(8, (n,), generator=g)]
    return torch.empty(n, 0), centre + SIGMA * torch.randn(n, 2, generator=g)


def moons(n, g):
    """Two interleaved half circles of width 0.06."""
    angle = math.pi * torch.rand(n, generator=g)
    lower = torch.randint(2, (n,), generator=g)
    x = angle.cos() * (1 - 2 * lower) - 0.5 + lower
    y = angle.sin() * (1 - 2 * lower) - 0.25 + 0.5 * lower
    arc = 0.75 * torch.stack([x, y], -1)
    return torch.empty(n, 0), arc + 0.06 * torch.randn(n, 2, generator=g)


def checkerboard(n, g):
    """The eight dark fields of a 4 x 4 board on [-1, 1]^2, filled evenly."""
    column = torch.randint(4, (n,), generator=g)
    row = torch.randint(2, (n,), generator=g)
    corner = torch.stack([column, 2 * row + column % 2], -1)
    return torch.empty(n, 0), (corner + torch.rand(n, 2, generator=g)) / 2 - 1


def swissroll(n, g):
    """A spiral of 1.5 turns and width 0.03, radius 0.33 to 1.2."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=g))
    roll = torch.stack([t * t.cos(), t * t.sin()], -1) / (4.5 * math.pi) * 1.2
    return torch.empty(n, 0), roll + 0.03 * torch.randn(n, 2, generator=g)


def fork(n, g):
    """A start height o in [-1, 1] and one waypoint, above, between or below two obstacles.

    Which way is right does not depend on o: see WAYS and SHARES.
    """
    o = 2 * torch.rand(n, generator=g) - 1
    way = torch.multinomial(torch.tensor(SHARES), n, replacement=True, generator=g)
    waypoint = torch.stack([torch.ones(n), torch.tensor(WAYS)[way]], -1)
    return o[:, None], waypoint + NOISE * torch.randn(n, 2, generator=g)


TARGETS = {
    "gaussians": gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
    "swissroll": swissroll,
}
EVERY = TARGETS | {"fork": fork}


# ---- figures of a set of samples -----------------------------------------------------------------


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, which is 0 for equal distributions.

    x (n, D), y (m, D) -> float. Points that repel each other lie more evenly than random draws do,
    so the estimate can be a little below 0.
    """

    def within(u):
        return torch.cdist(u, u).sum() / (len(u) * (len(u) - 1))  # the pairs of distinct points

    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def modes(x):
    """How many modes of "gaussians" hold at least 1 % of x (n, 2) within 4 SIGMA."""
    held = (torch.cdist(x, CENTRES) < 4 * SIGMA).float().mean(0)
    return int((held >= 0.01).sum())


def ways(x):
    """Which way each waypoint x (n, 2) takes, -1 for none, and whether it lies in an obstacle."""
    d = torch.cdist(x, torch.tensor([(1.0, height) for height in WAYS]))
    way = torch.where(d.amin(1) < NEAR, d.argmin(1), -1)
    hit = (torch.cdist(x, torch.tensor(DISCS)) < RADIUS).any(1)
    return way, hit


def measure(target, o, x, data):
    """The figures of samples x (n, 2) at observations o (n, D_o), against held-out data (o, y).

    energy: the energy distance, of (o, x) jointly. off: the share of samples off the data.
    modes: see modes(). above, between, below: the share on each way. hits: in an obstacle.
    """
    row = {"energy": energy_distance(torch.cat([o, x], 1), torch.cat(data, 1))}
    if target == "fork":
        way, hit = ways(x)
        for k, name in enumerate(("above", "between", "below")):
            row[name] = (way == k).float().mean().item()
        row["hits"] = hit.float().mean().item()
        return row
    row["off"] = (torch.cdist(x, data[1]).amin(1) > OFF).float().mean().item()
    if target == "gaussians":
        row["modes"] = modes(x)
    return row
