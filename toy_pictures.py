"""The pictures of toy.py: targets, the field over a run, the fork, and a film."""

import numpy as np
import torch
from PIL import Image

from files import atomic
from toy_field import FRAMES, MOVES, alone, force, frames, moments, together
from toy_targets import DISCS, OFF, RADIUS, TARGETS, WAYS, energy_distance, ways

SHOWN = 512  # samples in a panel

BLUE = "#2a6fbb"
ORANGE = "#d9660a"
GREEN = "#2b9a66"
PURPLE = "#8b5fbf"
GREY = "#b5b5b5"


def decimals(value):
    """A figure as text: 0.001, never -0.000."""
    return str(value) if isinstance(value, int) else f"{round(value, 3) + 0.0:.3f}"


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
        f"Arrows: the force on one more hypothesis at tau {args.temp[0]:g}, each panel in its own "
        "unit"
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
