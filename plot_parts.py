"""What the figures of RESULTS.md share: axes, curves over seeds, bars, the colour of the paper."""

import numpy as np

PAPER = "black"
SCORE = "Score: highest coverage reached over 0.95"


def sheet(width, height, panels=1, rows=1, **how):
    """A Figure and its axes, row by row, without the upper and the right spine."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, panels, squeeze=False, **how).flatten()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def level(ax, value, text):
    """A dashed line across the axes with its name in the legend."""
    ax.axhline(value, color="grey", ls="--", lw=1, label=text, zorder=0)


def curves(ax, runs, colour, label):
    """Seeds as thin lines, their mean as a thick one. runs: points (x, score) on one grid each.

    The mean ends where the shortest run does.
    """
    for points in runs:
        alpha = 0.4 if len(runs) > 1 else 1
        ax.plot(*zip(*points), color=colour, lw=1, marker=".", ms=4, alpha=alpha)
    count = "1 seed" if len(runs) == 1 else f"mean of {len(runs)} seeds"
    shortest = min(map(len, runs))
    x, y = np.mean([points[:shortest] for points in runs], axis=0).T
    ax.plot(x, y, color=colour, lw=2, label=f"{label} ({count})")


def points_of(rows, run, x, scale=1.0):
    """The points (x, score) of one run."""
    return [(float(r[x]) / scale, float(r["score"])) for r in rows if r["run"] == run]


def bar(ax, x, values, colour, *, width=0.8, alpha=0.35):
    """A bar at the mean of the seeds' values, a dot for each of them."""
    ax.bar(x, np.mean(values), width, color=colour, alpha=alpha)
    ax.plot([x] * len(values), values, "o", color=colour, ms=4)
