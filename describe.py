"""What demonstrations hold, in words and as a picture: for `python data.py info`."""

import functools

import numpy as np

from files import MAX_GB, NUMBERS, atomic, brief, check_size
from formats import read, shapes
from task import dtype_of

SHOWN = 100  # arrays and columns that `info` prints of a file that is not of the task
SEEN = 1000  # pictures whose values `info` looks at, spread over the data
STRIP = 12  # pictures of each camera that `info` draws


def print_columns(a):
    """Print minimum, mean and maximum of each column of an array (n, D), and what is not finite."""
    for d, column in enumerate(a.T[:SHOWN]):
        x = column[np.isfinite(column)].astype(np.float64)
        if not len(x):
            numbers = "nothing finite"
        else:
            numbers = f"{x.min():10.4g} {x.mean():10.4g} {x.max():10.4g}"
            if x.min() == x.max():
                numbers += "  constant"
        if len(x) < len(column):
            numbers += f"  {len(column) - len(x)} values are NaN or infinite"
        print(f"  {d:3d}  {numbers}")
    if a.shape[1] > SHOWN:
        print(f"  and {a.shape[1] - SHOWN} columns more")


def print_episodes(episodes, reward=None):
    """Print what demonstrations hold. reward: (N,) as the file has it, or None."""
    L = episodes.lengths
    N = L.sum()
    print(
        f"{len(L)} episodes, {N} steps, length {L.min()} / {L.mean():.1f} / {L.max()} "
        "(min / mean / max)"
    )
    if reward is not None and reward.shape == (N,) and reward.dtype.kind in NUMBERS:
        returns = np.add.reduceat(reward, episodes.ends - L, dtype=np.float64)
        print(
            f"return {returns.min():.1f} / {returns.mean():.1f} / {returns.max():.1f} "
            "(min / mean / max)"
        )
    print("by dimension: minimum, mean, maximum")
    for name, a in (*episodes.obs.items(), ("action", episodes.action)):
        print(name, a.shape, a.dtype)
        if a.dtype == np.uint8:
            step = -(-len(a) // SEEN)
            some = a[::step]
            of = f"  of one picture in {step}" if step > 1 else ""
            print(f"       {some.min():10.4g} {some.mean():10.4g} {some.max():10.4g}{of}")
        else:
            print_columns(a.reshape(-1, a.shape[-1]))


def print_foreign(path, max_gb=MAX_GB):
    """Print the arrays of a file that is not of the task; only tables (n, D) are read for it.

    Raises BadInput if these declare more than max_gb GB.
    """
    found = shapes(path)
    shown = dict(list(found.items())[:SHOWN])
    tables = {
        name: (shape, dtype)
        for name, (shape, dtype) in shown.items()
        if len(shape) == 2 and dtype.kind in NUMBERS
    }
    check_size(tables, path, max_gb)
    print("by dimension: minimum, mean, maximum")
    for name, (shape, dtype) in shown.items():
        print(brief(name), brief(shape), brief(dtype))
        if name in tables:
            print_columns(read(path, [name], max_gb)[name])
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} arrays more")


def cameras(task):
    """The names of the task's observations that are pictures."""
    return [name for name, shape in task.obs.items() if dtype_of(shape) == "uint8"]


def draw(task, episodes, png):
    """Write the task's picture of demonstrations, and below it what each of its cameras saw.

    Raises BadInput if it cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import

    drawings = {functools.partial(draw_strip, name=name): 1.3 for name in cameras(task)}
    if task.draw:
        drawings = {task.draw: 9.2, **drawings}
    heights = list(drawings.values())  # inches
    figure = Figure(figsize=(11, sum(heights) + 0.3), layout="constrained")
    figure.suptitle(episodes.path.name)
    parts = figure.subfigures(len(heights), height_ratios=heights, squeeze=False)[:, 0]
    for part, drawing in zip(parts, drawings):
        drawing(part, episodes)
    atomic(png, lambda f: figure.savefig(f, format="png", dpi=110))


def draw_strip(figure, episodes, name):
    """Draw STRIP pictures of a camera, spread over the longest episode."""
    e = int(episodes.lengths.argmax())
    L = int(episodes.lengths[e])
    first = int(episodes.ends[e]) - L
    steps = np.linspace(0, L - 1, min(STRIP, L)).astype(int)
    figure.suptitle(f"{name}, episode {e}", fontsize=9)
    for axes, step in zip(np.atleast_1d(figure.subplots(1, STRIP)), steps):
        axes.imshow(episodes.obs[name][first + step])
        axes.set_title(f"step {step}", fontsize=7)
    for axes in figure.axes:
        axes.axis("off")
