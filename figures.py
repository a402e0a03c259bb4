"""Draw the README's two pictures: the method in one case, and what is seen of every task.

  python figures.py                  both, into figures/
  python figures.py --only method    one of them

The picture of the method is no sketch: its arrows are what drift.py computes for these points.

  python figures.py --paths a.pt b.pt               which ways policies go: TASK-paths.png
  python figures.py --paths a.pt b.pt --one-start   all from one start: TASK-paths-one-start.png

This rolls policies out on a task that can be solved in several ways, and draws each episode in the
colour of the mode that it took. The demonstrations stand beside them, but for --one-start.
"""

import startup  # noqa: F401 - first, see there

import io
from pathlib import Path

import numpy as np
import torch

from baselines import prepare
from commands import START_SEEDS, BadInput, Parser, above_zero, check_seed, cli, refuse_flags
from data import load
from drift import SELF_MASK, affinity, coefficients, drift, reference_pool
from envs import TASKS, has_picture, make_env, task_named
from evaluate import START_SEED, evaluate, stages_in, told_of_modes
from files import atomic, check_folder
from modes import row_label
from policy import Policy

# ---- the method ---------------------------------------------------------------------------------

TAU = 0.2
ROBOT = (0.0, 0.0)
EXPERT = (1.45, 0.1)
HYPOTHESES = ((0.83, -0.25), (1.16, -0.61), (1.24, 0.86), (0.65, 0.57))  # K = 4, where chunks end
BLUE = "#2a6fbb"
RED = "#c8372d"
GREEN = "#2b9a66"
ORANGE = "#d9660a"
GREY = "#8a8a8a"


def forces(x, pos, tau):
    """The drift of x (K, D) towards pos (P, D), and its two parts: V, pull, push, all (K, D).

    They are in the units of x, and pull + push = V (Eqs. 28-37).
    """
    x = x[None]  # a batch of one observation
    pos = pos[None]
    V, scale, info = drift(x, pos, temps=(tau,))
    refs, w, n_neg = reference_pool(x, pos, None, None, None, None)
    diff = refs.unsqueeze(-3) - x.unsqueeze(-2)  # (1, K, R, D)
    d = diff.norm(dim=-1) / info["s"]
    d = d + SELF_MASK * torch.eye(*d.shape[-2:])
    C = coefficients(affinity(d, w.unsqueeze(-2).expand_as(d), tau), n_neg)
    each = C.unsqueeze(-1) * diff / info["force_rms"]  # (1, K, R, D)
    pull = each[0, :, n_neg:].sum(1)
    push = each[0, :, :n_neg].sum(1)
    return (V * scale)[0], pull, push


def path_to(end, bend=0.0, steps=8):
    """Waypoints (steps, 2) from the robot to an end, bent sideways: a chunk, for the eye."""
    t = np.linspace(0, 1, steps)[:, None]
    end = np.asarray(end)
    aside = np.array([-end[1], end[0]])
    return ROBOT + t * (end - ROBOT) + bend * np.sin(np.pi * t) * aside


def draw_inputs(axes, seed=3):
    """The first panel: an observation and K latents go through the generator, once."""
    noise = np.random.default_rng(seed).standard_normal((len(HYPOTHESES), 8, 2))
    axes.set(xlim=(0, 10), ylim=(0, 10))
    box = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": "black"}
    axes.text(2.2, 8.3, "observation\no", ha="center", va="center", bbox=box)
    for k, z in enumerate(noise):
        left = 0.75 + 0.8 * k
        place = (left, left + 0.55, 1.9, 4.9)
        axes.imshow(z, extent=place, cmap="Blues", vmin=-3, vmax=3, aspect="auto")
        axes.add_patch(rectangle(place))
    axes.text(2.2, 0.9, "latents z", ha="center", va="center")
    axes.text(7.6, 5.5, "generator\nG(o, z)", ha="center", va="center", bbox=box)
    for start, end in (((4.1, 7.9), (5.7, 6.3)), ((4.1, 3.6), (5.7, 4.8))):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "lw": 1.5})


def rectangle(place):
    """A thin frame around (left, right, bottom, top)."""
    from matplotlib.patches import Rectangle

    left, right, bottom, top = place
    return Rectangle((left, bottom), right - left, top - bottom, fc="none", ec=BLUE, lw=0.8)


def draw_chunks(axes, x, expert):
    """The second panel: the chunks that came out, beside the expert's."""
    for k, end in enumerate(x):
        label = "K chunks x" if k == 0 else None
        axes.plot(*path_to(end, bend=0.12).T, ".-", color=BLUE, lw=1.2, ms=4, label=label)
    axes.plot(*path_to(expert).T, ".-", color=RED, lw=1.8, ms=5, label="the expert's chunk")
    axes.plot(*ROBOT, "ko", ms=8)
    axes.text(-0.05, -0.16, "robot", ha="left", va="center")
    points(axes, x, expert)


def points(axes, x, expert):
    """The chunks as points: where each of them ends."""
    axes.plot(*x.T, "o", color=BLUE, ms=7, zorder=3)
    axes.plot(*expert.T, "*", color=RED, ms=15, zorder=3)


def arrows(axes, start, by, color, label):
    """Arrows (K, 2) from the points start (K, 2), true to scale."""
    how = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.011, "zorder": 2}
    axes.quiver(*start.T, *by.T, color=color, label=label, **how)


CAPTIONS = (
    ("1  Noise goes in", "K = 4 latents for one observation"),
    ("2  K action chunks come out", "of one pass; red is the expert's"),
    ("3  The drifting field", "each chunk is one point, here where it ends"),
    ("4  Regress onto the target", "loss = mean of (x - sg(x + V))²"),
)


def method_figure():
    """Four panels: inputs, chunks, pulls and pushes, targets."""
    from matplotlib.figure import Figure

    x = torch.tensor(HYPOTHESES)
    expert = torch.tensor(EXPERT)
    V, pull, push = forces(x, expert[None], TAU)
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 4)
    inputs, chunks, field, targets = panels
    draw_inputs(inputs)
    draw_chunks(chunks, x.numpy(), expert.numpy())
    points(field, x.numpy(), expert.numpy())
    arrows(field, x, pull, GREEN, "pull: to the expert's chunk")
    arrows(field, x, push, ORANGE, "push: off the other chunks")
    points(targets, x.numpy(), expert.numpy())
    arrows(targets, x, V, GREY, "V = pull + push")
    targets.plot(*(x + V).T, "o", mfc="none", color=BLUE, ms=9, mew=1.6, label="target x + V")
    for axes in (chunks, field, targets):
        axes.set(xlim=(-0.2, 2.25), ylim=(-1.45, 1.2), aspect="equal")
        axes.legend(loc="lower left", fontsize=9, frameon=False, borderpad=0)
    for axes, (title, caption) in zip(panels, CAPTIONS):
        axes.set_title(f"{title}\n", loc="left", fontsize=12.5)
        axes.text(0, 1.02, caption, transform=axes.transAxes, color="#555555", fontsize=9.5)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


# ---- the tasks ----------------------------------------------------------------------------------

COLUMNS = 7
SIDE = 96  # pixels of a scene that cannot be drawn
PALE = 0.3  # the ink that is left of a picture behind a cloud


def seen_by(camera, points, size):
    """Where a camera sees points (N, 3): columns and rows (N,) of a picture of size x size."""
    right, up, back = ((points - np.asarray(camera.pos)) @ camera.matrix()).T
    zoom = size / 2 / np.tan(np.deg2rad(camera.fovy) / 2)
    return size / 2 - zoom * right / back, size / 2 + zoom * up / back


def draw_task(axes, task):
    """The scene of a task at a start; for a cloud, a pale picture and the points on it."""
    env = make_env(task)
    obs, _ = env.reset(seed=START_SEED)
    picture = env.render() if has_picture(env) else np.full((SIDE, SIDE, 3), 255)
    size = len(picture)
    if "points" in obs:
        grey = np.broadcast_to(picture.mean(-1, keepdims=True), picture.shape)
        picture = 255 - PALE * (255 - grey)
        points = obs["points"]
        columns, rows = seen_by(env.unwrapped.camera, points, size)
        axes.scatter(columns, rows, c=points[:, 2], s=1.2, cmap="viridis", linewidths=0)
    axes.imshow(picture.astype(np.uint8))
    axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
    axes.set_title(task.name.removeprefix("metaworld-"), fontsize=7, pad=2)
    axes.spines[:].set_visible(False)
    env.close()


SAME_SCENE = ("-image", "-delta", "-online", "-state")  # ends of names: another task's scene


def tasks_figure():
    """One tile a scene: tasks that differ in observations or actions alone share one."""
    from matplotlib.figure import Figure

    shown = [task for task in TASKS.values() if not task.name.endswith(SAME_SCENE)]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(1.4 * COLUMNS, 1.52 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, task in zip(grid, shown):
        axes.set_axis_on()
        draw_task(axes, task)
    return figure


# ---- the ways that policies go -------------------------------------------------------------------

NO_MODE = "0.6"
NAME_OF_NONE = "none"


def policies_of(paths):
    """The policies of checkpoints, and their task. Raises BadInput if it is not one with modes."""
    policies = [Policy.load(path)[0] for path in paths]
    task = task_named(policies[0].task)
    if task.mode is None or task.paths is None:
        raise BadInput(f"{paths[0]}: {task.name} has no modes to draw")
    for path, policy in zip(paths, policies):
        if policy.task != task.name:
            raise BadInput(f"{path} was trained on {policy.task}, not {task.name}: draw it alone")
        policy.check_task(task, path)
        prepare(policy)
    return policies, task


def demonstrated(task, episodes):
    """A panel of the first demonstrations: a title, their states, and what is told of them."""
    loaded = load(task)
    states = np.split(loaded.obs["state"], loaded.ends[:-1])[:episodes]
    return "demonstrations", states, told_of_modes([task.mode(s) for s in states])


def rolled_out(policy, task, episodes, **kw):
    """A panel of a policy's episodes: a title, their states, and the evaluation's result."""
    result, r = evaluate(policy, task, episodes, **kw)
    title = row_label(policy.method).replace("\n", ", ")
    stages = "  ".join(f"{name} {result[name]:.2f}" for name in stages_in(result))
    return f"{title}\n{stages}", [r.path(e) for e in range(episodes)], result


def paths_figure(task, panels):
    """Paths by mode, and below them the share of each mode. panels: (title, states, told) each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(3.6 * len(panels), 5), 4.6), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=(2.2, 1))
    names = sorted({name for *_, told in panels for name in told["modes"]} - {NAME_OF_NONE})
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)} | {NAME_OF_NONE: NO_MODE}
    for above, below, (title, states, told) in zip(*axes, panels):
        task.paths(above, states, [colours[name or NAME_OF_NONE] for name in told["mode_of"]])
        above.set_title(
            f"{title}\n{len(states)} episodes, {told['mode_entropy']:.2f} bits", size=10
        )
        shares = [told["modes"].get(name, 0) for name in colours]
        below.bar(list(colours), shares, color=list(colours.values()))
        below.set(ylim=(0, 1), ylabel="share of episodes")
        below.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{task.name}: which way do the episodes go?")
    return figure


def draw_policies(args):
    """Roll out the policies of --paths and draw their episodes -> the picture's path."""
    policies, task = policies_of(args.paths)
    episodes = args.episodes or task.episodes
    kw = {"start_seed": args.start_seed, "one_start": args.one_start}
    panels = [] if args.one_start else [demonstrated(task, episodes)]
    panels += [rolled_out(policy, task, episodes, **kw) for policy in policies]
    path = Path(args.out) / f"{task.name}-paths{'-one-start' * args.one_start}.png"
    save(paths_figure(task, panels), path, 100)
    return path


# ---- the command ---------------------------------------------------------------------------------


def save(figure, path, dpi):
    """Write a figure as a PNG file of 256 colours, atomically."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    small = Image.open(drawn).convert("RGB").quantize(256, dither=0)
    atomic(path, lambda f: small.save(f, "PNG", optimize=True))


FIGURES = {"method": (method_figure, 100), "tasks": (tasks_figure, 110)}  # name -> maker, dpi


def parse():
    """The flags of this script."""
    p = Parser(__doc__)
    p.add_argument("--only", choices=tuple(FIGURES), help="draw this picture and not the other")
    p.add_argument("--paths", nargs="+", metavar="CKPT", help="draw the ways of these policies")
    p.add_argument(
        "--episodes", type=int, help="episodes of each policy; the task's (50) if not given"
    )
    p.add_argument(
        "--start-seed", type=int, help=f"the first start seed; {START_SEED} if not given"
    )
    p.add_argument(
        "--one-start", action="store_true", help="begin every episode at the first start"
    )
    p.add_argument("--out", default="figures", metavar="DIR", help="folder of the pictures")
    args = p.parse_args()
    if args.paths:
        refuse_flags(args, ["only"], "--paths")
    else:
        refuse_flags(args, ["episodes", "start_seed", "one_start"], "the README's pictures")
    if args.start_seed is None:
        args.start_seed = START_SEED
    above_zero(args, "episodes")
    check_seed(args, "start_seed", below=START_SEEDS, n=args.episodes or 50)
    check_folder(args, "out")
    return args


def main():
    """Draw the pictures."""
    args = parse()
    if args.paths:
        return print(f"drawn: {draw_policies(args)}")
    for name, (make, dpi) in FIGURES.items():
        if args.only in (None, name):
            path = Path(args.out) / f"{name}.png"
            save(make(), path, dpi)
            print(f"drawn: {path}")


if __name__ == "__main__":
    cli(main)
