"""The figures of RESULTS.md, drawn from the rows in results/; report.py saves them.

Every function takes the Results and returns a matplotlib Figure, or None where there are no rows.
Dots and thin lines are seeds, bars and thick lines their mean, crosses the paper's figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiment_row import FRESH, STANDARD, UNUSED
from experiments import (
    ABLATE_BEYOND,
    ABLATION_EPOCHS,
    ABLATIONS,
    CONVERGED,
    CONVERGING,
    DEMONSTRATORS,
    EQUAL_MINUTES,
    HUMAN,
    METHOD_NFE,
    TABLE_1,
    TEMPERATURES,
)
from files import atomic
from plot_parts import PAPER, SCORE, bar, curves, level, points_of, sheet
from plots_stage2 import locomotion_dbpo, pusht_anchor, pusht_dbpo, stage2, stage2_noise
from tables import at, column, interval, mean, rows_of, select, setting_of

NAMES = {
    "dbp": "DBP",
    "diffusion": "diffusion",
    "meanflow": "MeanFlow",
    "bc": "regression",
    "dbp-memory": "DBP, memory 16",
}
COLOURS = {
    "dbp": "tab:blue",
    "diffusion": "tab:orange",
    "meanflow": "tab:green",
    "bc": "tab:red",
    "dbp-memory": "tab:cyan",
}
METHOD_SETTINGS = [(m, nfe, setting_of(m, nfe)) for m in CONVERGING for nfe in METHOD_NFE[m]]


# ---- Push-T, Stage 1 ----------------------------------------------------------------------------


def pusht_score(results):
    """Score over the steps of Stage 1 on the human demonstrations."""
    rows = results.rows(HUMAN.curve)
    if not rows:
        return None
    figure, (ax,) = sheet(6.5, 4)
    runs = [points_of(rows, run, "step") for run in dict.fromkeys(r["run"] for r in rows)]
    curves(ax, runs, COLOURS["dbp"], "DBP")
    level(ax, DEMONSTRATORS, f"the human demonstrators, {DEMONSTRATORS}")
    ax.axhline(HUMAN.paper, color=PAPER, ls=":", lw=1, label=f"the paper's DBP, {HUMAN.paper}")
    ax.set(
        title="Push-T: DBP trained on 206 human demonstrations",
        xlabel="Training steps",
        ylabel=SCORE,
        xlim=(0, None),
        ylim=(0, 1),
    )
    ax.legend(frameon=False, loc="lower right")
    return figure


IMAGE_RUNS = {  # what a run's name begins with: its colour, and what it is
    "taught, seed": ("tab:green", "from images, encoder taught first (--teach)"),
    "small, seed": (COLOURS["dbp"], "from images, channels 32 64"),
    "12000 steps, seed": ("tab:orange", "from images, channels 64 128 256"),
}


def pusht_image(results):
    """Score over the steps of Stage 1, from images and from key points."""
    figure, (ax,) = sheet(6.5, 4)
    known = results.rows(HUMAN.curve)
    rows = results.rows("pusht_image_curve.csv")
    if not known or not rows:
        return None
    names = dict.fromkeys(r["run"] for r in known)
    curves(ax, [points_of(known, name, "step") for name in names], "0.6", "from key points")
    for begins, (colour, what) in IMAGE_RUNS.items():
        names = dict.fromkeys(r["run"] for r in rows if r["run"].startswith(begins))
        if names:
            curves(ax, [points_of(rows, name, "step") for name in names], colour, what)
    ax.set(
        title="Push-T: DBP on 206 human demonstrations, 50 standard starts",
        xlabel="Training steps",
        ylabel=SCORE,
        xlim=(0, None),
        ylim=(0, 1),
    )
    ax.legend(frameon=False, loc="lower right")
    return figure


def pusht_methods(results, length=EQUAL_MINUTES, others=UNUSED, when="15 minutes of training"):
    """Scores by method: the 50 standard starts (light) beside unused ones (dark)."""
    rows = select(results.rows("pusht_methods.csv"), length=length)
    if not rows:
        return None
    figure, (ax,) = sheet(8, 4)
    shown = [s for s in METHOD_SETTINGS if select(rows, setting=s[2])]
    for i, (method, nfe, setting) in enumerate(shown):
        own = select(rows, setting=setting)
        for starts, x, alpha in ((STANDARD, i - 0.2, 0.3), (others, i + 0.2, 0.7)):
            values = column(at(own, starts), "score")
            if values:
                bar(ax, x, values, COLOURS[method], width=0.38, alpha=alpha)
        if nfe == METHOD_NFE[method][0] and method in TABLE_1:
            ax.plot(i - 0.2, TABLE_1[method], "x", color=PAPER, ms=8, mew=2)
    labels = [f"{NAMES[method]}\n{nfe} evaluation{'s' * (nfe > 1)}" for method, nfe, _ in shown]
    ax.set_xticks(range(len(shown)), labels)
    ax.set(title=f"Push-T by method, {when}", ylabel=SCORE, ylim=(0, 1.02))
    keys = {
        "50 standard starts": {"color": "0.5", "alpha": 0.3},
        f"{others.episodes} unused starts": {"color": "0.5", "alpha": 0.7},
    }
    for label, how in keys.items():
        ax.bar(0, 0, label=label, **how)
    ax.plot([], [], "x", color=PAPER, ms=8, mew=2, label="the paper")
    ax.plot([], [], "o", color="0.4", ms=4, label="one seed")
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(1, 0))
    return figure


def pusht_converged(results):
    """The same after 20,000 steps."""
    return pusht_methods(results, CONVERGED, FRESH, "20,000 steps")


def efficiency(results):
    """Score over training minutes and over epochs, by method."""
    rows = results.rows("efficiency.csv")
    if not rows:
        return None
    figure, axes = sheet(10, 4, 2, sharey=True)
    labels = {"minutes": "Training minutes, one core", "epochs": "Epochs (passes over the data)"}
    for ax, x in zip(axes, labels):
        for method in dict.fromkeys(r["method"] for r in rows):
            own = select(rows, method=method)
            label = NAMES[method]
            for seed in dict.fromkeys(r["seed"] for r in own):
                run = sorted(select(own, seed=seed), key=lambda r: float(r["step"]))
                how = {"color": COLOURS[method], "lw": 1, "marker": ".", "ms": 4}
                ax.plot(column(run, x), column(run, "score"), label=label, **how)
                label = None
        ax.set(xlabel=labels[x], xlim=(0, None), ylim=(0, 1))
    axes[0].set_ylabel(SCORE)
    axes[1].legend(frameon=False, loc="lower right", title="three seeds each")
    figure.suptitle("Push-T: score during training, by method (Table VI's question)")
    return figure


BENCHED = {  # settings that act like one that was timed
    "bc, 1 NFE": "generator alone",
    "dbp-memory, 1 NFE": "dbp, 1 NFE",
}
SHIFT = {"bc, 1 NFE": 0.8}  # it takes as long as DBP: drawn apart, so that both can be seen


def latency_score(results):
    """One action's time against the score on unused starts, with t intervals over the seeds."""
    bench = results.json("bench_latency.json")
    table = results.rows("pusht_methods.csv")
    groups = (
        (EQUAL_MINUTES, UNUSED, "o", "15 minutes of training, 200 unused starts"),
        (CONVERGED, FRESH, "s", "20,000 steps, 500 unused starts (drawn 15 % further right)"),
    )
    figure, (ax,) = sheet(7.5, 4.4)
    named = set()
    for i, (length, starts, marker, label) in enumerate(groups):
        rows = select(at(table, starts), length=length)
        if rows:
            ax.plot([], [], marker, color="0.4", label=label)
        for method, nfe, setting in METHOD_SETTINGS:
            values = column(select(rows, setting=setting), "score")
            if not values:
                continue
            ms = bench[f"{BENCHED.get(setting, setting)}, eager"]["p50_ms"]
            x = ms * SHIFT.get(setting, 1) * 1.15**i
            found = interval(values)
            half = found.half if found.n > 1 else None
            how = {"fmt": marker, "color": COLOURS[method], "capsize": 3}
            ax.errorbar(x, found.mean, half, **how)
            if setting not in named:
                named.add(setting)
                ax.annotate(
                    f"{NAMES[method]}, {nfe}",
                    (x, found.mean),
                    xytext=(12, -12),
                    textcoords="offset points",
                    color=COLOURS[method],
                    fontsize=9,
                )
    ax.set(
        title="Push-T: what an action costs and what it scores, with 95 % intervals over seeds",
        xlabel="Median time of one action, milliseconds (batch 1, two CPU cores; logarithmic)",
        ylabel=SCORE,
        xscale="log",
        xlim=(3, 1200),
        ylim=(None, 1),
    )
    ax.set_xticks([5, 10, 50, 100, 500], [5, 10, 50, 100, 500])
    ax.legend(
        frameon=False,
        loc="lower right",
        fontsize=9,
        title="Beside a name: network evaluations an action.\nRegression takes as long as DBP; "
        "it is drawn\nfurther left to be seen.",
        title_fontsize=9,
    )
    return figure


# ---- appendix B and beyond ----------------------------------------------------------------------


def ablation(results, group, title):
    """Scores of an ablation's settings; the paper's crosses stand for much longer training."""
    rows = results.rows(f"ablate_{group}.csv")
    shown = [e for e in ABLATIONS[group] if rows_of(rows, e)]
    if not shown:
        return None
    figure, (ax,) = sheet(max(2 + 0.9 * len(shown), 4.6), 4)
    for i, e in enumerate(shown):
        bar(ax, i, column(rows_of(rows, e), "score"), COLOURS["dbp"])
        if e.paper is not None:
            ax.plot(i, e.paper, "x", color=PAPER, ms=8, mew=2)
    ax.set_xticks(range(len(shown)), [tick(e.name) for e in shown])
    note = f"Bars and dots: mean and seeds here, {ABLATION_EPOCHS:g} epochs."
    if any(e.paper is not None for e in shown):
        epochs = shown[0].paper_budget.amount
        times = f"{epochs / ABLATION_EPOCHS:.0f} times as many"
        note += f"\nCrosses: the paper, {epochs:g} epochs, {times}."
    ax.set(title=title, ylabel=SCORE, ylim=(0, 1))
    ax.set_xlabel(note, fontsize=9)
    return figure


def tick(name):
    """A setting under its bar; a set of temperatures by name and values."""
    temps = TEMPERATURES.get(name, ())
    if not temps:
        return name
    if len(temps) == 1:
        return f"{temps[0]:g}"
    lines = [temps[i : i + 3] for i in range(0, len(temps), 3)]
    values = "\n".join(" ".join(f"{t:g}" for t in line) for line in lines)
    return f"{name.removeprefix('tau ')}:\n{values}"


def ablate_k(results):
    """Score by the number of hypotheses."""
    return ablation(results, "K", "Push-T: number of hypotheses K")


def ablate_temp(results):
    """Score by the set of temperatures."""
    return ablation(results, "temp", "Push-T: temperatures τ, one or several")


def ablate_mode(results):
    """Score of the drift over chunks and per step."""
    return ablation(results, "mode", "Push-T: drift by chunk or by step")


def ablate_beyond(results):
    """Score by flag that the paper does not have, as horizontal bars."""
    rows = results.rows("ablate_beyond.csv")
    if not rows:
        return None
    figure, (ax,) = sheet(7.5, 4.2)
    for i, e in enumerate(ABLATE_BEYOND):
        values = column(rows_of(rows, e), "score")
        colour = "0.6" if e.removed else COLOURS["dbp"]
        if values:
            ax.barh(i, np.mean(values), color=colour, alpha=0.4)
            ax.plot(values, [i] * len(values), "o", color=colour, ms=4)
    base = mean(rows_of(rows, ABLATE_BEYOND[0]), "score")
    ax.axvline(base, color="grey", ls="--", lw=1, zorder=0)
    names = ["the paper's settings" if e.name == "K 4" else f"--{e.name}" for e in ABLATE_BEYOND]
    ax.set_yticks(range(len(names)), [n.replace(", ", " --") for n in names])
    ax.invert_yaxis()
    ax.set(
        title="Push-T: flags beyond the paper (grey: since removed)",
        xlabel=f"{SCORE}, 200 starts from seed 200000",
        xlim=(0, 1),
    )
    return figure


def multimodal(results):
    """Plans of each method where several are right, as modes.py draws them."""
    path = results.folder / "multimodal_plans.npz"
    if not path.exists():
        return None
    from modes import load_plans
    from modes import sheet as modes_sheet

    return modes_sheet(load_plans(path))


# ---- all of them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure of RESULTS.md: where it stands, and the function that draws it."""

    path: str
    draw: Callable

    def save(self, results, path=None):
        """Draw it into a file, by default `path`. Returns whether there was anything to draw."""
        figure = self.draw(results)
        if figure is None:
            return False
        atomic(path or Path(self.path), lambda file: figure.savefig(file, format="png", dpi=110))
        return True


FIGURES = {
    "pusht_score": Picture("figures/pusht_score.png", pusht_score),
    "pusht_image": Picture("figures/pusht_image.png", pusht_image),
    "pusht_methods": Picture("results/pusht_methods.png", pusht_methods),
    "pusht_converged": Picture("results/pusht_converged.png", pusht_converged),
    "efficiency": Picture("results/efficiency.png", efficiency),
    "latency_score": Picture("figures/latency_score.png", latency_score),
    "multimodal": Picture("results/multimodal.png", multimodal),
    "ablate_K": Picture("results/ablate_K.png", ablate_k),
    "ablate_temp": Picture("results/ablate_temp.png", ablate_temp),
    "ablate_mode": Picture("results/ablate_mode.png", ablate_mode),
    "ablate_beyond": Picture("results/ablate_beyond.png", ablate_beyond),
    "stage2_noise": Picture("figures/stage2_noise.png", stage2_noise),
    "pusht_dbpo": Picture("figures/pusht_dbpo.png", pusht_dbpo),
    "pusht_anchor": Picture("figures/pusht_anchor.png", pusht_anchor),
    "locomotion_dbpo": Picture("figures/locomotion_dbpo.png", locomotion_dbpo),
    "stage2": Picture("figures/stage2.png", stage2),
}
