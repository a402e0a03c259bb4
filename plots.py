"""The figures of RESULTS.md, drawn from the rows in results/; report.py saves them.

Every function takes the Results and returns a matplotlib Figure, or None where there are no rows.
Dots and thin lines are seeds, bars and thick lines their mean, crosses the paper's figures.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiment_row import (
    FRESH,
    LOCOMOTION_STARTS,
    STANDARD,
    UNUSED,
)
from experiments import (
    ABLATE_BEYOND,
    ABLATION_EPOCHS,
    ABLATIONS,
    COMPARED,
    CONVERGED,
    DEMONSTRATORS,
    EQUAL_MINUTES,
    HUMAN,
    LOCOMOTION,
    METHOD_NFE,
    TABLE_1,
    TEMPERATURES,
)
from files import atomic
from tables import at, column, interval, mean, rows_of, select, setting_of

NAMES = {"dbp": "DBP", "diffusion": "diffusion", "meanflow": "MeanFlow", "bc": "regression"}
COLOURS = {
    "dbp": "tab:blue",
    "diffusion": "tab:orange",
    "meanflow": "tab:green",
    "bc": "tab:red",
}
WITH_ANCHOR = "tab:blue"
WITHOUT_ANCHOR = "tab:orange"
BEST = "tab:purple"
PAPER = "black"
TASK_NAMES = {
    "hopper": "Hopper",
    "walker2d": "Walker2d",
    "halfcheetah": "HalfCheetah",
    "ant": "Ant",
}
SCORE = "Score: highest coverage reached over 0.95"


METHOD_SETTINGS = [(m, nfe, setting_of(m, nfe)) for m in COMPARED for nfe in METHOD_NFE[m]]


def anchor_pair(rows, stem, starts):
    """The rows of stage2.csv of a task, with and without the anchor."""
    own = at(rows, starts)
    with_anchor = stem if stem.startswith("pusht") else f"{stem}-white-anchor"
    without = f"{stem}-no-anchor" if stem.startswith("pusht") else f"{stem}-white-no-anchor"
    return select(own, setting=with_anchor), select(own, setting=without)


# ---- parts of figures ---------------------------------------------------------------------------


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


def pusht_image(results):
    """Score over the steps of Stage 1, from images and from key points."""
    figure, (ax,) = sheet(6.5, 4)
    for name, colour, what in (
        (HUMAN.curve, "0.6", "from key points"),
        ("pusht_image_curve.csv", COLOURS["dbp"], "from images"),
    ):
        rows = results.rows(name)
        if not rows:
            return None
        runs = [points_of(rows, run, "step") for run in dict.fromkeys(r["run"] for r in rows)]
        curves(ax, runs, colour, what)
    ax.set(
        title="Push-T: DBP on 206 human demonstrations, 50 standard starts",
        xlabel="Training steps",
        ylabel=SCORE,
        xlim=(0, 12000),
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


BENCHED = {"bc, 1 NFE": "generator alone"}  # regression is one call of the generator
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


# ---- Stage 2 ------------------------------------------------------------------------------------


def stage_2_curves(ax, rows, settings):
    """Curves over environment steps, in millions. settings: name -> (colour, label)."""
    for setting, (colour, label) in settings.items():
        names = dict.fromkeys(r["run"] for r in rows)
        own = [n for n in names if n.rsplit("-seed", 1)[0] == setting]
        if own:
            curves(ax, [points_of(rows, run, "step", 1e6) for run in own], colour, label)


def pusht_dbpo(results):
    """Push-T: score without noise over the environment steps of Stage 2."""
    rows = results.rows("pusht_dbpo.csv")
    if not rows:
        return None
    figure, (ax,) = sheet(7, 4)
    settings = {
        "pusht-best-white": (BEST, "from 8000 steps of Stage 1"),
        "pusht-early-white": (WITH_ANCHOR, "from 2000 steps of Stage 1"),
        "pusht-early-white-no-anchor": (WITHOUT_ANCHOR, "the same, without the anchor"),
    }
    stage_2_curves(ax, rows, settings)
    level(ax, DEMONSTRATORS, f"the human demonstrators, {DEMONSTRATORS}")
    ax.set(
        title="Push-T: Stage 2, the policy without its noise",
        xlabel="Environment steps, millions (50 episodes from seed 200000)",
        ylabel=SCORE,
        xlim=(0, None),
        ylim=(0.5, 1),
    )
    ax.legend(frameon=False, loc="lower right")
    return figure


def stage2_noise(results):
    """Stage 2 with the default flags: the score without noise, and that of the noisy episodes."""
    files = ("pusht_dbpo.csv", "locomotion_dbpo.csv")
    rows = [r for name in files for r in results.rows(name)]
    noisy = [{**r, "score": r["noisy"]} for r in rows if r.get("noisy")]
    runs = dict.fromkeys(r["run"] for r in noisy)
    kinds = list(dict.fromkeys(run.rsplit("-seed", 1)[0] for run in runs))
    if not kinds:
        return None
    rows_of_panels = math.ceil(len(kinds) / 3)
    figure, axes = sheet(18, 4 * rows_of_panels, 3, rows_of_panels)
    for ax in axes[len(kinds) :]:
        ax.remove()
    for ax, kind in zip(axes, kinds):
        own = [run for run in runs if run.rsplit("-seed", 1)[0] == kind]
        curves(ax, [points_of(rows, run, "step", 1e6) for run in own], WITH_ANCHOR, "without noise")
        curves(
            ax, [points_of(noisy, run, "step", 1e6) for run in own], WITHOUT_ANCHOR, "with noise"
        )
        ax.set(title=kind, xlabel="Environment steps, millions", xlim=(0, None))
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in axes[::3]:
        ax.set_ylabel("Score, starts from seed 200000")
    figure.suptitle("Stage 2 (falling, staying: how the noise was before)")
    return figure


def locomotion_dbpo(results):
    """Locomotion: return over the environment steps of Stage 2, with and without the anchor."""
    rows = results.rows("locomotion_dbpo.csv")
    if not rows:
        return None
    figure, axes = sheet(14, 3.8, len(LOCOMOTION))
    for ax, task in zip(axes, LOCOMOTION):
        settings = {
            f"{task}-white-anchor": (WITH_ANCHOR, "with the anchor"),
            f"{task}-white-no-anchor": (WITHOUT_ANCHOR, "without"),
        }
        stage_2_curves(ax, rows, settings)
        ax.set(title=TASK_NAMES[task], xlabel="Environment steps, millions", ylim=(0, None))
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_ylabel("Return, mean of 20 episodes")
    figure.suptitle("Stage 2 on locomotion, the policy without its noise")
    return figure


def pusht_anchor(results):
    """Push-T: score and smoothness after Stage 2, with and without the anchor, by seed."""
    rows = results.rows("stage2.csv")
    with_anchor, without = anchor_pair(rows, "pusht-early-white", UNUSED)
    common = {r["seed"] for r in with_anchor} & {r["seed"] for r in without}
    with_anchor = [r for r in with_anchor if r["seed"] in common]
    without = [r for r in without if r["seed"] in common]
    if not common:
        return None
    figure, axes = sheet(9, 4, 2)
    pairs = ((with_anchor, WITH_ANCHOR, "with the anchor"), (without, WITHOUT_ANCHOR, "without"))
    for i, (own, colour, label) in enumerate(pairs):
        for ax, name in zip(axes, ("after", "jerk_after")):
            values = column(own, name)
            places = np.arange(len(own)) + 0.38 * (i - 0.5)
            errors = None
            if name == "after":
                low = np.subtract(values, column(own, "after_low"))
                errors = [low, np.subtract(column(own, "after_high"), values)]
            ax.bar(places, values, 0.36, yerr=errors, color=colour, alpha=0.5, label=label)
            ax.set_xticks(range(len(own)), [f"seed {r['seed']}" for r in own])
    level(axes[0], mean(with_anchor, "before"), None)
    level(axes[1], mean(with_anchor, "jerk_before"), "before Stage 2, mean")
    axes[0].set(title="Score on 200 unused starts", ylabel=SCORE, ylim=(0, 1.02))
    axes[1].set(title="Roughness of the motion", ylabel="Jerk: RMS third difference, pixels")
    axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("Push-T after Stage 2 from early policies, with 95 % intervals over episodes")
    return figure


def stage2(results):
    """Score before and after Stage 2, a line a seed."""
    rows = results.rows("stage2.csv")
    if not rows:
        return None
    figure, axes = sheet(14, 3.8, 1 + len(LOCOMOTION))
    slopes(axes[0], select(at(rows, UNUSED), setting="pusht-best-white"), BEST)
    for ax, stem in zip(axes, ("pusht-early-white", *LOCOMOTION)):
        starts = UNUSED if stem == "pusht-early-white" else LOCOMOTION_STARTS
        with_anchor, without = anchor_pair(rows, stem, starts)
        slopes(ax, with_anchor, WITH_ANCHOR)
        slopes(ax, without, WITHOUT_ANCHOR)
        ax.set_xticks([0, 1], ["Stage 1", "Stage 2"])
        ax.set(title=TASK_NAMES.get(stem, "Push-T"), xlim=(-0.15, 1.15), ylim=(0, None))
    axes[0].set(ylabel="Score, mean of 200 unused starts", ylim=(0.5, 1))
    axes[1].set_ylabel("Return, mean of 20 episodes")
    level(axes[0], DEMONSTRATORS, "Push-T's human demonstrators")
    for colour, label in (
        (WITH_ANCHOR, "with the anchor"),
        (WITHOUT_ANCHOR, "without"),
        (BEST, "Push-T from the best policy, with the anchor"),
    ):
        axes[0].plot([], [], "o-", color=colour, ms=4, label=label)
    figure.suptitle("Stage 2: before and after, one line a seed")
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    return figure


def slopes(ax, rows, colour):
    """A line from before to after for each row."""
    for row in rows:
        ax.plot([0, 1], [float(row["before"]), float(row["after"])], "o-", color=colour, ms=4)


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
