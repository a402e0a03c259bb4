"""Drifting generators in two dimensions, beside regression (arXiv 2604.03540, Eqs. 1-5, 28-40).

`python toy.py` takes about a minute on one core. On targets that can be drawn it compares

  regression                a network trained by the squared error to one positive
  K = 1, K = 4, K = 16      a network trained as the policy is: B elements a step, K hypotheses
                            each, pulled to ONE positive and pushed off the others
  K = P = 128               a network with many positives in a single problem, the set-up of
                            Drifting Models
  clumped start             the same from outputs that lie within 0.01 of each other
  particles ...             no network: points moved by the same field, x <- x + step V (Eq. 2)

so that one sees what the field does, and what the network adds. What a run shows (default flags):

- Regression and K = 1 end at the mean, which is no mode of "gaussians" (energy distance 0.72). They
  are the same pull: with one hypothesis V points from x to y. At the fork every sample lies in an
  obstacle.
- K = P = 128: the field alone leaves 1 to 2 % of the particles off the data, a network 4 to 7 %.
  The difference lies between modes, as the network is continuous and its latents are connected.
- One positive: all modes are found, with a blur that is the field's own. On "gaussians" 17 % of the
  samples are off the data for K = 16, with a network as without, and 33 and 44 % for K = 4. At the
  fork 4 % lie in an obstacle for K = 16 and 13 % for K = 4.
- A clumped start stays at the mean. In a clump the mean distance s is small, so all positives are
  many tau s away, every affinity to them sits on the floor 1e-6 of Eq. 31 (note 1), and what is
  left is the pull of regression. With a floor of 1e-30 the same start reaches all modes.
"""

import startup  # noqa: F401 - first, see there

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from commands import BadInput, Parser, above_zero, check_seed, cli
from drift import FLOOR_F, drift, drift_loss
from files import atomic, check_folder, write_csv
from toy_targets import (
    DISCS,
    EVERY,
    OFF,
    RADIUS,
    TARGETS,
    WAYS,
    energy_distance,
    measure,
    ways,
)

CLUMP = 0.01  # the spread of a clumped start
PARTICLES = 512  # moved by the field alone
MOVES = 500  # of each particle
STRIDE = 0.1  # the first of these moves, in units of the scale (Eq. 56); it falls to 0
GAIN = 3.0  # of the latents, on the way into the network
FRAMES = 40  # of the GIF
SAMPLES = 2000  # of a network, and of the data
SHOWN = 512  # of these in a panel

BLUE = "#2a6fbb"
ORANGE = "#d9660a"
GREEN = "#2b9a66"
PURPLE = "#8b5fbf"
GREY = "#b5b5b5"


# ---- networks and particles ----------------------------------------------------------------------


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


# ---- the whole run -------------------------------------------------------------------------------


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


def networks(args, target, complete):
    """Name -> keywords of train(). complete: with the settings that the first target alone gets."""
    base = {"temps": tuple(args.temp), "steps": args.steps, "lr": args.lr, "seed": args.seed}
    single = base | {"B": args.batch, "spread": args.spread}  # one positive each, as the policy
    many = base | {"B": 1, "K": args.many, "P": args.many, "spread": args.spread}
    found = {"regression": single | {"K": 1, "regression": True}}
    if complete or target == "fork":
        found |= {f"K = {K}": single | {"K": K} for K in args.K}
    if complete:
        found["clumped start"] = many | {"spread": CLUMP}  # note 25
    if target != "fork":
        found[together(args.many)] = many
    return found


def fields(args, complete):
    """Name -> keywords of move(): the same fields without a network, where there is no o."""
    sizes = {f"K = {K}": (K, 1) for K in args.K if K > 1} if complete else {}
    sizes[together(args.many)] = (args.many, args.many)
    found = {}
    for name, (K, P) in sizes.items():
        how = {"B": max(1, PARTICLES // K), "K": K, "P": P}
        found[alone(name)] = how | {"temps": tuple(args.temp), "seed": args.seed}
    return found


def moments(steps):
    """The steps at which draw_field shows a run."""
    return sorted({0, steps // 50, steps // 5, steps})


def frames(steps):
    """The FRAMES steps at which the GIF shows a run, ever farther apart."""
    return [round(steps * (i / (FRAMES - 1)) ** 2) for i in range(FRAMES)]


def experiment(args):
    """Run every setting. Returns data {target: (o, y)} and results {target: {setting: Result}}."""
    targets = list(dict.fromkeys(args.targets))
    first = next((t for t in targets if t in TARGETS), None)
    jobs = []
    data = {}
    results = {}
    for target in targets:
        g = torch.Generator().manual_seed(args.seed + 10_000)
        data[target] = EVERY[target](SAMPLES, g)
        o, y = EVERY[target](SAMPLES, g)
        floor = measure(target, o, y, data[target])  # of a second set of data
        results[target] = {"expert": Result({}, o, {0: y}, floor)}
        for name, setting in networks(args, target, target == first).items():
            jobs.append((target, train, name, setting, args.steps))
        if target in TARGETS:
            for name, setting in fields(args, target == first).items():
                jobs.append((target, move, name, setting, MOVES))

    filmed = (together(args.many), alone(together(args.many)))
    for target, run, name, setting, end in tqdm(jobs, desc="settings", disable=None):
        at = {*moments(end), *(frames(end) if name in filmed else ())}
        *_, o, snapshots = run(EVERY[target], **setting, at=at)
        figures = measure(target, o, snapshots[end], data[target])
        results[target][name] = Result(setting, o, snapshots, figures)
    return data, results


def decimals(value):
    """A figure as text: 0.001, never -0.000."""
    return str(value) if isinstance(value, int) else f"{round(value, 3) + 0.0:.3f}"


def table(results):
    """The figures as rows of text, for toy.csv and the terminal."""
    rows = []
    for target, by_setting in results.items():
        for name, result in by_setting.items():
            figures = {k: decimals(v) for k, v in result.figures.items()}
            rows.append({"target": target, "setting": name, **figures})
    return rows


def show(rows):
    """Print the table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for row in [{name: name for name in columns}, *rows]:
        cells = [row.get(name, "") for name in columns[2:]]
        print(f"{row['target']:13}{row['setting']:25}" + "".join(f"{c:>8}" for c in cells))


# ---- pictures ------------------------------------------------------------------------------------


def new_figure(rows, columns, width, height, title, **how):
    """A figure and its axes (rows, columns), width x height inches a panel."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(width * columns, height * rows + 1), layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure, figure.subplots(rows, columns, squeeze=False, **how)


def panel(ax, title, points, colour, data=None, size=4):
    """Points (n, 2) on top of data (m, 2), on axes of equal scale."""
    if data is not None:
        ax.scatter(*data.T, s=size, color=GREY, linewidths=0)
    ax.scatter(*points.T, s=size, color=colour, linewidths=0)
    ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    ax.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    ax.set_title(title, fontsize=10)
    ax.tick_params(labelsize=8)


def legend(figure, entries):
    """A legend below all panels. entries: label -> colour."""
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], color=c, marker="o", ls="", ms=6, label=n) for n, c in entries.items()]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), frameon=False)


def palette():
    """The colours of all pictures (96, 3), 16 shades each: few colours make small files."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(c) for c in (BLUE, ORANGE, GREEN, PURPLE, GREY, "black")])
    shade = np.linspace(0, 1, 16)[:, None, None]
    return np.round(255 * (1 - shade * (1 - colours))).reshape(-1, 3)  # from white


def pixels(figure, dpi):
    """A figure as an image in the nearest colours of the palette."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.dpi = dpi
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # a GIF's next frames keep the layout of its first
    rgba = np.array(canvas.buffer_rgba())  # (H, W, 4) uint8, one uint32 a pixel
    found, index = np.unique(rgba.view(np.uint32).ravel(), return_inverse=True)
    rgb = found.view(np.uint8).reshape(-1, 4)[:, :3]
    colours = palette()
    nearest = np.abs(rgb[:, None] - colours).sum(-1).argmin(1).astype(np.uint8)
    image = Image.fromarray(nearest[index].reshape(rgba.shape[:2]))
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def save_png(path, figure):
    """Write a figure."""
    image = pixels(figure, 100)
    atomic(path, lambda f: image.save(f, "PNG", optimize=True))


def quality(figures):
    """The line of a title that says how near samples are to the data."""
    return f"energy distance {decimals(figures['energy'])}, {figures['off']:.0%} off"


def draw_targets(path, data, results, many):
    """A row for each target: data, regression, the field alone, and the network."""
    columns = {
        "regression": ("Regression:\none network pass", ORANGE),
        alone(many): ("Field alone, no network:\nparticles, x ← x + step · V", GREEN),
        many: ("Drifting generator:\none network pass", BLUE),
    }
    title = (
        f"Regression averages; the drifting field reaches every mode ({many})\n"
        f"Energy distance: 0 if like the data. Off: farther than {OFF} from all data."
    )
    figure, axes = new_figure(
        len(data), 1 + len(columns), 2.5, 2.5, title, sharex=True, sharey=True
    )
    for i, (line, target) in enumerate(zip(axes, data)):
        y = data[target][1][:SHOWN]
        panel(line[0], "Data\n" if i == 0 else "", y, GREY)
        line[0].set_ylabel(target, fontsize=12)
        for ax, (setting, (name, colour)) in zip(line[1:], columns.items()):
            result = results[target][setting]
            head = f"{name}\n" if i == 0 else ""
            panel(ax, head + quality(result.figures), result.x[:SHOWN], colour, y)
    entries = {
        "held-out data": GREY,
        "samples of regression": ORANGE,
        "particles": GREEN,
        "samples of the drifting generator": BLUE,
    }
    legend(figure, entries)
    save_png(path, figure)


def draw_field(path, target, y, results, args):
    """A row for each setting at four moments of its run. y (m, 2): held-out data.

    Arrows: force() on a grid, averaged over the B elements of a step.
    """
    many = together(args.many)
    rows = {alone(many): f"particles, no network\n{many}", many: f"network\n{many}"}
    for K in sorted(args.K, reverse=True):
        rows[f"K = {K}"] = f"network\nK = {K}, one positive"
    rows["clumped start"] = f"network, clumped start\n{many}"

    grid = torch.cartesian_prod(*[torch.linspace(-1.3, 1.3, 15)] * 2)
    g = torch.Generator().manual_seed(args.seed + 2)
    title = (
        f'"{target}" over a run\n'
        "Arrows: the force on one more hypothesis, each panel in its own unit"
    )
    columns = len(moments(args.steps))
    figure, axes = new_figure(len(rows), columns, 2.5, 2.6, title, sharex=True, sharey=True)
    for line, (setting, label) in zip(axes, rows.items()):
        result = results[setting]
        B, K, P = (result.setting.get(key, 1) for key in "BKP")
        moved = setting == alone(many)
        colour = GREEN if moved else BLUE
        line[0].set_ylabel(label, fontsize=10)
        for ax, step in zip(line, moments(max(result.snapshots))):
            x = result.snapshots[step]
            pos = TARGETS[target](B * P, g)[1].view(B, P, 2)
            drawn = x[torch.randint(len(x), (B, K), generator=g)]
            F = force(grid, drawn, pos, args.temp)
            length = F.norm(dim=-1, keepdim=True)
            F /= length.clamp_min(length.quantile(0.9))  # the longest tenth gets the length 1
            name = f"move {step}" if moved else f"step {step}"
            title = f"{name}\nenergy distance {decimals(energy_distance(x, y))}"
            panel(ax, title, x[:SHOWN], colour, y[:SHOWN])
            ax.quiver(*grid.T, *F.T, width=0.004, scale=16, scale_units="width")
    entries = {"held-out data": GREY, "particles": GREEN, "samples of the network": BLUE}
    legend(figure, entries)
    save_png(path, figure)


def draw_fork(path, results):
    """A panel for each setting: a line from each start height to the waypoint chosen there."""
    from matplotlib.patches import Circle

    title = (
        "The fork: three ways are right, and their mean lies in an obstacle\n"
        "Lines lead from a start height to the waypoint chosen there; in colour: share of each way"
    )
    figure, axes = new_figure(1, len(results), 2.2, 3.6, title, sharey=True)
    colours = {0: BLUE, 1: GREEN, 2: PURPLE, -1: "black"}
    for ax, (name, result) in zip(axes[0], results.items()):
        x = result.x[:150]
        way, hit = ways(x)
        drawn = [ORANGE if h else colours[int(w)] for w, h in zip(way, hit)]
        for disc in DISCS:
            ax.add_patch(Circle(disc, RADIUS, color="#dddddd"))
        for height, waypoint, colour in zip(result.o[:, 0], x, drawn):
            ax.plot((0, waypoint[0]), (height, waypoint[1]), color=colour, lw=0.4, alpha=0.6)
        ax.scatter(*x.T, s=8, c=drawn, zorder=3, linewidths=0)
        for k, key in enumerate(("above", "between", "below")):
            share = f"{result.figures[key]:.0%}"
            ax.text(1.62, WAYS[k], share, color=colours[k], fontsize=9, va="center")
        ax.set(xlim=(-0.1, 2.2), ylim=(-1.6, 1.6), xticks=(0, 1), yticks=(-1, 0, 1), aspect="equal")
        ax.set_xlabel("forward")
        label = f"drift, {name}" if name.startswith("K") else name
        ax.set_title(f"{label}\nin an obstacle: {result.figures['hits']:.0%}", fontsize=10)
        ax.tick_params(labelsize=8)
    axes[0][0].set_ylabel("height")
    entries = {
        "waypoint above": BLUE,
        "between": GREEN,
        "below": PURPLE,
        "in an obstacle": ORANGE,
        "on no way": "black",
        "obstacle": "#dddddd",
    }
    legend(figure, entries)
    save_png(path, figure)


def draw_gif(path, data, results, args):
    """Particles moved by the field (above) and samples of the network (below) over a run."""
    many = together(args.many)
    rows = (
        ("field alone", GREEN, alone(many), frames(MOVES)),
        ("network", BLUE, many, frames(args.steps)),
    )
    figure, axes = new_figure(2, len(data), 1.9, 1.75, " ", sharex=True, sharey=True)
    moving = []  # dots, where they are at each step, the step of each frame
    for line, (label, colour, setting, steps) in zip(axes, rows):
        line[0].set_ylabel(label, fontsize=11)
        for ax, target in zip(line, data):
            y = data[target][1]
            title = target if setting == rows[0][2] else ""
            panel(ax, title, y[:0], colour, y[:400], size=3)
            dots = ax.scatter([], [], s=5, color=colour, linewidths=0)
            moving.append((dots, results[target][setting].snapshots, steps))
    images = []
    for i in range(FRAMES):
        for dots, snapshots, steps in moving:
            dots.set_offsets(snapshots[steps[i]][:400].numpy())
        particles, network = (steps[i] for _, _, _, steps in rows)
        figure.suptitle(f"particles: move {particles}     network: step {network}", fontsize=11)
        images.append(pixels(figure, 75))
    times = [90] * (FRAMES - 1) + [2000]  # milliseconds
    how = {"save_all": True, "append_images": images[1:], "duration": times, "loop": 0}
    atomic(path, lambda f: images[0].save(f, "GIF", **how))


# ---- command line --------------------------------------------------------------------------------


def parse(argv=None):
    """The flags. Raises BadInput."""
    p = Parser("Drifting generators in two dimensions, beside regression.")
    add = p.add_argument
    add(
        "--targets",
        nargs="+",
        default=[*EVERY],
        metavar="NAME",
        help=f"what to learn, of: {', '.join(EVERY)}",
    )
    add(
        "--K",
        nargs="+",
        type=int,
        default=[1, 4, 16],
        help="hypotheses of each batch element (symbol K), one setting each",
    )
    add(
        "--many",
        type=int,
        default=128,
        help="hypotheses and positives (K = P) of the setting with a single problem",
    )
    add(
        "--temp",
        nargs="+",
        type=float,
        default=[0.1],
        help="interaction scales tau, in units of the mean distance s",
    )
    add(
        "--batch",
        type=int,
        default=32,
        help="batch elements a step (symbol B), one positive each",
    )
    add("--steps", type=int, default=1500, help="training steps of each setting")
    add(
        "--lr",
        type=float,
        default=3e-3,
        help="Adam's learning rate at the start; it falls to 0 as a cosine",
    )
    add(
        "--spread",
        type=float,
        default=1.0,
        help="standard deviation of the outputs over z before training",
    )
    add("--seed", type=int, default=0, help="seed of latents, weights and data")
    add("--out", default="figures", help="folder of the pictures and of toy.csv")
    args = p.parse_args(argv)
    unknown = [name for name in args.targets if name not in EVERY]
    if unknown:
        raise BadInput(f"--targets {unknown[0]}: unknown; choose from {', '.join(EVERY)}")
    above_zero(args, "K", "many", "temp", "batch", "steps", "lr", "spread")
    check_seed(args, "seed", n=10_001)  # what is held out is drawn by the seed 10000 above it
    check_folder(args, "out")
    return args


def main(argv=None):
    """Run every setting, print and save the table, draw the pictures."""
    args = parse(argv)
    torch.set_num_threads(1)
    data, results = experiment(args)
    rows = table(results)
    show(rows)

    out = Path(args.out)
    write_csv(out / "toy.csv", rows)
    names = ["toy.csv"]
    flat = {target: pair for target, pair in data.items() if target in TARGETS}
    if flat:
        first = next(iter(flat))
        draw_targets(out / "toy_targets.png", flat, results, together(args.many))
        draw_field(out / "toy_field.png", first, flat[first][1], results[first], args)
        draw_gif(out / "toy.gif", flat, results, args)
        names += ["toy_targets.png", "toy_field.png", "toy.gif"]
    if "fork" in data:
        draw_fork(out / "toy_fork.png", results["fork"])
        names.append("toy_fork.png")
    print("wrote", *(out / name for name in names))


if __name__ == "__main__":
    cli(main)
