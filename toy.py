"""Drifting generators in two dimensions, beside plain regression (arXiv 2604.03540, Eqs. 1-5, 28-40).

A small network x = f(z, o) is trained as the policy is: B elements a step, K hypotheses each against ONE positive.
Further columns: a clumped start (largest K, outputs of spread 0.01, else 1), and K = P = 128 in a single problem, the
set-up of Drifting Models. What a run shows (default flags; energy distance to held-out data, 0.00 at best):

- Regression and K = 1 end at the mean (gaussians 0.71, no mode). They are the same pull: with one hypothesis A- is the
  floor of Eq. 31 and A+ is 1, so V is y - x over its RMS. At the fork that mean lies in an obstacle (100 % hits).
- K = 4 and 16 cover all 8 modes with one positive per element (0.014, 0.009), as does K = P = 128 (0.009).
- A clumped start stays at the mean on gaussians (0.72), not on the other targets. In a clump s is small, the positives
  are many tau s away, every A+ sits on the floor 1e-6 of Eq. 31, and the pull is regression's; with that floor at
  1e-30 the same start reached 8 modes. torch's own initialisation of this network has spread 0.014.
- Samples between the modes come from the network, a smooth map of a 2-D Gaussian: 37 % are more than 0.1 off the data
  (K = P = 128), but 1 to 3 % of 256 particles moved by the field without a network (3 seeds). At the fork a third hit.
"""
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from drift import FLOOR_F, drift, drift_loss
from runs import BadInput, Parser, above_zero, atomic, cli

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)

SIGMA = 0.08                          # width of one Gaussian of "gaussians"
CENTRES = torch.tensor([(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)])
WAYS, SHARES, NOISE = (1.0, 0.0, -1.0), (0.5, 0.3, 0.2), 0.05     # "fork": height and share of each way, noise
DISCS, RADIUS, NEAR = ((1.0, 0.5), (1.0, -0.5)), 0.3, 0.2         # "fork": obstacles; a sample takes a way within NEAR
CLUMP = 0.01                          # spread of a clumped start
BLUE, ORANGE, GREY, GREEN, PURPLE = "#2a6fbb", "#d9660a", "#b5b5b5", "#2b9a66", "#8b5fbf"


# Targets: (n, generator) -> observations o (n, D_o) and one positive each, y (n, 2). D_o = 0: unconditional.
def gaussians(n, g):
    """Eight Gaussians of width SIGMA on the unit circle."""
    return torch.empty(n, 0), CENTRES[torch.randint(8, (n,), generator=g)] + SIGMA * torch.randn(n, 2, generator=g)


def moons(n, g):
    """Two interleaved half circles of width 0.06."""
    angle, lower = math.pi * torch.rand(n, generator=g), torch.randint(2, (n,), generator=g)
    x, y = angle.cos() * (1 - 2 * lower) - 0.5 + lower, angle.sin() * (1 - 2 * lower) - 0.25 + 0.5 * lower
    return torch.empty(n, 0), 0.75 * torch.stack([x, y], -1) + 0.06 * torch.randn(n, 2, generator=g)


def checkerboard(n, g):
    """The eight dark fields of a 4 x 4 board on [-1, 1]^2, filled evenly."""
    column, row = torch.randint(4, (n,), generator=g), torch.randint(2, (n,), generator=g)
    corner = torch.stack([column, 2 * row + column % 2], -1)
    return torch.empty(n, 0), (corner + torch.rand(n, 2, generator=g)) / 2 - 1


def swissroll(n, g):
    """A spiral of 1.5 turns and width 0.03, radius 0.33 to 1.2."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=g))
    roll = torch.stack([t * t.cos(), t * t.sin()], -1) / (4.5 * math.pi) * 1.2
    return torch.empty(n, 0), roll + 0.03 * torch.randn(n, 2, generator=g)


def fork(n, g):
    """Start height o in [-1, 1]; one waypoint per sample, above, between or below two obstacles (WAYS, SHARES)."""
    o = 2 * torch.rand(n, generator=g) - 1
    way = torch.tensor(WAYS)[torch.multinomial(torch.tensor(SHARES), n, True, generator=g)]
    return o[:, None], torch.stack([torch.ones(n), way], -1) + NOISE * torch.randn(n, 2, generator=g)


TARGETS = {"gaussians": gaussians, "moons": moons, "checkerboard": checkerboard, "swissroll": swissroll}
EVERY = TARGETS | {"fork": fork}


def energy_distance(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'|, 0 for equal distributions. x (n, D), y (m, D) -> float."""
    def within(u):
        return torch.cdist(u, u).sum() / (len(u) * (len(u) - 1))          # pairs of distinct points
    return (2 * torch.cdist(x, y).mean() - within(x) - within(y)).item()


def modes(x):
    """Number of modes of "gaussians" that hold >= 1 % of x (n, 2) within 4 SIGMA."""
    return int(((torch.cdist(x, CENTRES) < 4 * SIGMA).float().mean(0) >= 0.01).sum())


def ways(x):
    """Which way each waypoint x (n, 2) takes: 0, 1, 2 within NEAR of it, -1 for none; and whether it is in an obstacle."""
    d = torch.cdist(x, torch.tensor([(1.0, h) for h in WAYS]))
    return torch.where(d.amin(1) < NEAR, d.argmin(1), -1), (torch.cdist(x, torch.tensor(DISCS)) < RADIUS).any(1)


# Training.
class Generator(nn.Sequential):
    """x = f(z, o), three hidden layers; outputs start with standard deviation `spread` over z."""

    def __init__(self, D_o, spread, width=128):
        sizes = [2 + D_o, width, width, width]
        layers = [m for i, o in zip(sizes, sizes[1:]) for m in (nn.Linear(i, o), nn.SiLU())]
        super().__init__(*layers, nn.Linear(width, 2))
        with torch.no_grad():
            x = self(torch.randn(1000, 2), torch.zeros(1000, D_o))
            self[-1].weight *= spread / x.std(0).mean()
            self[-1].bias -= self(torch.randn(1000, 2), torch.zeros(1000, D_o)).mean(0)

    def forward(self, z, o):
        """z (..., 2), o (..., D_o) -> x (..., 2)."""
        return super().forward(torch.cat([z, o], -1))


def train(target, *, B, K, P=1, temps=(0.2,), steps=2000, lr=2e-3, seed=0, spread=1.0, regression=False, at=()):
    """Train a Generator on a target; Adam, the learning rate falls to 0 as a cosine.

    Per step: B observations, K hypotheses and P positives each (P > 1 only where D_o = 0).
    Returns f and snapshots {step: x (500, 2)} for fixed latents at the steps named in `at`.
    """
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed + 1)
    z_fix, (o_fix, _), snapshots = torch.randn(500, 2), target(500, g), {}
    f = Generator(o_fix.shape[1], spread)
    optimiser = torch.optim.Adam(f.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for step in range(steps + 1):
        if step in at:
            with torch.no_grad():
                snapshots[step] = f(z_fix, o_fix)
        if step == steps:
            return f, snapshots
        o, y = target(B * P, g)
        o, y = o.view(B, P, -1)[:, :1].expand(B, K, -1), y.view(B, P, 2)  # (B, K, D_o), (B, P, 2)
        x = f(torch.randn(B, K, 2), o)                                    # Eq. 1  (B, K, 2)
        loss = (x - y).square() if regression else drift_loss(x, y, temps=temps)[0]      # Eqs. 4, 39
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def field(grid, x, pos, temps):
    """Force F (Eq. 35) on one more hypothesis at each grid point. grid (G, 2), x (B, K, 2), pos (B, P, 2) -> (G, 2)."""
    out, B = [], len(x)
    for part in grid.split(max(1, 2_000_000 // (x.shape[1] * (x.shape[1] + pos.shape[1]) * B))):
        lead = (len(part), B, -1, 2)
        probe = part[:, None, None].expand(*lead)                         # every grid point is a problem of its own
        V, _, info = drift(torch.cat([probe, x.expand(lead)], 2), pos.expand(lead), temps=temps[:1])
        out.append((V[:, :, 0] * info["force_rms"][..., None].clamp_min(FLOOR_F)).mean(1))
    return torch.cat(out)


def settings(args):
    """Name -> keywords of train(), in the order of the columns."""
    base = dict(temps=tuple(args.temp), steps=args.steps, lr=args.lr, seed=args.seed, spread=args.spread, B=args.batch)
    one = {"regression": base | {"K": 1, "regression": True}} | {f"K = {K}": base | {"K": K} for K in args.K}
    many = {f"K = P = {args.many}": base | {"B": 1, "K": args.many, "P": args.many}}
    return one, one | {"clumped start": base | {"K": max(args.K), "spread": CLUMP}} | many


# Pictures.
def figure(rows, columns, width, height, title):
    """Figure and axes (rows, columns), width x height inches a panel."""
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows + 0.5), squeeze=False, layout="constrained")
    fig.suptitle(title, fontsize=11)
    return fig, axes


def panel(ax, title, lim=1.45):
    ax.set(xlim=(-lim, lim), ylim=(-lim, lim), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)
    return ax


def save(path, fig):
    atomic(path, lambda f: fig.savefig(f, format="png", dpi=80))
    plt.close(fig)


def draw_targets(path, data, samples, rows):
    """One row per target, one column per setting. data: target -> (o, y); samples: target -> setting -> (o, x)."""
    names = ["target", *next(iter(samples.values()))]
    title = "Held-out data (grey) and samples of one network pass (blue; regression orange)"
    fig, axes = figure(len(samples), len(names), 2.2, 2.4, title)
    for line, (target, by_setting) in zip(axes, samples.items()):
        line[0].set_ylabel(target, fontsize=12)
        for ax, name in zip(line, names):
            panel(ax, name).scatter(*data[target][1][:1000].T, s=2, color=GREY)
            if name in by_setting:
                panel(ax, f"{name}\nenergy distance {rows[target, name]['energy']:.3f}")
                ax.scatter(*by_setting[name][1][:1000].T, s=2, color=ORANGE if name == "regression" else BLUE)
    save(path, fig)


def draw_field(path, target, runs, temps, seed):
    """runs: setting -> (snapshots {step: x}, K, P, B). Arrows: field() on a grid, averaged over the B elements."""
    grid = torch.cartesian_prod(*[torch.linspace(-1.3, 1.3, 15)] * 2)
    g = torch.Generator().manual_seed(seed + 2)
    fig, axes = figure(len(runs), len(next(iter(runs.values()))[0]), 2.7, 2.8, "Force on one more hypothesis (arrows; each panel "
                       f"has its own unit), samples (blue), positives (grey), tau = {temps[0]:g}")
    for line, (name, (snapshots, K, P, B)) in zip(axes, runs.items()):
        line[0].set_ylabel(name, fontsize=11)
        for ax, (step, x) in zip(line, snapshots.items()):
            pos = target(B * P, g)[1]
            F = field(grid, x[torch.randint(len(x), (B, K), generator=g)], pos.view(B, P, 2), temps)
            F /= F.norm(dim=-1, keepdim=True).clamp_min(F.norm(dim=-1).quantile(0.9))         # the longest tenth: length 1
            panel(ax, f"step {step}").scatter(*pos.T, s=4, color=GREY)
            ax.scatter(*x.T, s=4, color=BLUE)
            ax.quiver(*grid.T, *F.T, width=0.004, scale=16, scale_units="width")
    save(path, fig)


def draw_fork(path, samples, rows):
    """One panel per setting: a line from every start height to the waypoint chosen there. samples: setting -> (o, x)."""
    fig, axes = figure(1, len(samples), 2.6, 3.9, "Waypoint (dot) chosen from a start height (left end of its line)\n"
                       "Share above / between / below; orange: in an obstacle, grey: on no way")
    for ax, (name, (o, x)) in zip(axes[0], samples.items()):
        x = x[:150]
        colours = [ORANGE if h else GREY if w < 0 else (BLUE, GREEN, PURPLE)[w] for w, h in zip(*ways(x))]
        title = "{above:.0%} / {between:.0%} / {below:.0%}, hits {hits:.0%}".format(**rows["fork", name])
        panel(ax, f"{name}\n{title}", 1.6).set(xlim=(-0.1, 1.7), xticks=(0, 1), xlabel="forward", ylabel="height")
        for disc in DISCS:
            ax.add_patch(plt.Circle(disc, RADIUS, color="#dddddd"))
        for h, v, c in zip(o[:, 0], x, colours):
            ax.plot((0, v[0]), (h, v[1]), color=c, lw=0.4, alpha=0.6)
        ax.scatter(*x.T, s=4, c=colours, zorder=3)
    save(path, fig)


def draw_gif(path, data, snapshots):
    """snapshots: target -> {step: x}; one frame per step, one panel per target."""
    fig, axes = figure(1, len(snapshots), 2.1, 2.0, "step")
    for ax, target in zip(axes[0], snapshots):
        panel(ax, target).scatter(*data[target][1][:600].T, s=1.5, color=GREY)
    dots, frames = [ax.scatter([], [], s=3, color=BLUE) for ax in axes[0]], []
    for step in next(iter(snapshots.values())):
        for d, by_step in zip(dots, snapshots.values()):
            d.set_offsets(by_step[step].numpy())
        fig.suptitle(f"training step {step}", fontsize=10)
        fig.canvas.draw()
        frames.append(Image.fromarray(np.asarray(fig.canvas.buffer_rgba())[..., :3].copy()).quantize(24, dither=0))
    plt.close(fig)
    more = dict(save_all=True, append_images=frames[1:], duration=[90] * (len(frames) - 1) + [1500], loop=0)   # in ms
    atomic(path, lambda f: frames[0].save(f, "GIF", **more))


# The whole run.
def measure(target, o, x, data):
    """Numbers of one setting: samples x (n, 2) at o (n, D_o) against held-out data (o, y).

    energy: energy distance, of (o, x) jointly; off: share farther than 0.1 from all data; modes: see modes();
    above, between, below, hits: share on each way and in an obstacle.
    """
    row, (way, hit) = {"energy": energy_distance(torch.cat([o, x], 1), torch.cat(data, 1))}, ways(x)
    if target == "fork":
        events = {"above": way == 0, "between": way == 1, "below": way == 2, "hits": hit}
    else:
        events = {"off": torch.cdist(x, data[1]).amin(1) > 0.1}
    row |= {k: v.float().mean().item() for k, v in events.items()}
    return row | {"modes": modes(x)} if target == "gaussians" else row


def parse(argv=None):
    p = Parser("Drifting generators in two dimensions, beside regression.")
    p.add_argument("--targets", nargs="+", default=[*EVERY], metavar="NAME", help=f"what to learn, of: {', '.join(EVERY)}")
    p.add_argument("--K", nargs="+", type=int, default=[1, 4, 16], help="hypotheses per batch element (symbol K), one column each")
    p.add_argument("--many", type=int, default=128, help="hypotheses and positives (K = P) of the one-problem column")
    p.add_argument("--temp", nargs="+", type=float, default=[0.2], help="interaction scales tau, in mean distances s")
    p.add_argument("--batch", type=int, default=64, help="batch elements per step (symbol B), one positive each")
    p.add_argument("--steps", type=int, default=2000, help="training steps per setting")
    p.add_argument("--lr", type=float, default=2e-3, help="learning rate of Adam at the start; falls to 0 as a cosine")
    p.add_argument("--spread", type=float, default=1.0, help="standard deviation of the outputs over z before training")
    p.add_argument("--seed", type=int, default=0, help="seed of latents, weights and data")
    p.add_argument("--out", default="figures", help="folder for toy_targets.png, toy_field.png, toy_fork.png, toy.gif, toy.csv")
    args = p.parse_args(argv)
    if unknown := [name for name in args.targets if name not in EVERY]:
        raise BadInput(f"--targets {unknown[0]}: unknown; choose from {', '.join(EVERY)}")
    above_zero(args, "K", "many", "temp", "batch", "steps", "lr", "spread")
    return args


def main(argv=None):
    """Train every setting, print and save the table, draw the pictures."""
    args = parse(argv)
    torch.set_num_threads(1)
    out, (for_fork, for_targets) = Path(args.out), settings(args)
    jobs = [(t, *job) for t in dict.fromkeys(args.targets) for job in (for_targets if t in TARGETS else for_fork).items()]
    frames = sorted({round((args.steps + 1) ** (i / 47)) - 1 for i in range(48)})
    moments = sorted({0, args.steps // 50, args.steps // 5, args.steps})
    data, samples, snapshots, rows = {}, {}, {}, {}
    for target, name, kw in tqdm(jobs, desc="settings", disable=None):
        if target not in data:
            g = torch.Generator().manual_seed(args.seed + 10_000)
            data[target], expert = EVERY[target](2000, g), EVERY[target](2000, g)
            samples[target] = {"expert": expert} if target == "fork" else {}
            rows[target, "expert"] = measure(target, *expert, data[target])       # the floor: two held-out sets
        f, snapshots[target, name] = train(EVERY[target], **kw, at={*frames, *moments})
        with torch.no_grad():
            samples[target][name] = o, x = data[target][0], f(torch.randn(2000, 2), data[target][0])
            rows[target, name] = measure(target, o, x, data[target])

    fields = list(dict.fromkeys(k for r in rows.values() for k in r))
    show = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    cells = [["target", "setting", *fields]] + [[*key, *(show(r.get(k, "")) for k in fields)] for key, r in rows.items()]
    for target, setting, *numbers in cells:
        print(f"{target:13}{setting:14}" + "".join(f"{n:>8}" for n in numbers))
    atomic(out / "toy.csv", lambda f: f.write("".join(",".join(line) + "\n" for line in cells).encode()))

    if flat := {t: by for t, by in samples.items() if t in TARGETS}:
        draw_targets(out / "toy_targets.png", data, flat, rows)
        best, first = f"K = P = {args.many}", next(iter(flat))
        runs = {s: ({m: snapshots[first, s][m] for m in moments}, kw["K"], kw.get("P", 1), kw["B"])
                for s, kw in for_targets.items() if s != "regression"}
        draw_field(out / "toy_field.png", TARGETS[first], runs, args.temp, args.seed)
        draw_gif(out / "toy.gif", data, {t: {s: snapshots[t, best][s] for s in frames} for t in flat})
    if "fork" in samples:
        draw_fork(out / "toy_fork.png", samples["fork"], rows)


if __name__ == "__main__":
    cli(main)
