"""The figures of RESULTS.md on Stage 2, drawn from the rows in results/, see plots.py."""

import math

import numpy as np

from experiment_row import LOCOMOTION_STARTS, UNUSED
from experiments import DEMONSTRATORS
from experiments_stage2 import LOCOMOTION
from plot_parts import SCORE, curves, level, points_of, sheet
from tables import anchor_pair, at, column, mean, select

WITH_ANCHOR = "tab:blue"
WITHOUT_ANCHOR = "tab:orange"
BEST = "tab:purple"
TASK_NAMES = {
    "hopper": "Hopper",
    "walker2d": "Walker2d",
    "halfcheetah": "HalfCheetah",
    "ant": "Ant",
}


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
    runs = [r for r in dict.fromkeys(r["run"] for r in noisy) if "-averaged-" not in r]
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
    figure.suptitle("Stage 2 (falling, staying: noise as it was before; rho-0: white noise)")
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
    for ax, kind in zip(axes, ("pusht-early", *LOCOMOTION)):
        stem = f"{kind}-white"
        starts = UNUSED if kind == "pusht-early" else LOCOMOTION_STARTS
        with_anchor, without = anchor_pair(rows, stem, starts)
        slopes(ax, with_anchor, WITH_ANCHOR)
        slopes(ax, without, WITHOUT_ANCHOR)
        ax.set_xticks([0, 1], ["Stage 1", "Stage 2"])
        ax.set(title=TASK_NAMES.get(kind, "Push-T"), xlim=(-0.15, 1.15), ylim=(0, None))
    axes[0].set(ylabel="Score, mean of 200 unused starts", ylim=(0.5, 1))
    axes[1].set_ylabel("Return, mean of 20 episodes")
    level(axes[0], DEMONSTRATORS, "Push-T's human demonstrators")
    for colour, label in (
        (WITH_ANCHOR, "with the anchor"),
        (WITHOUT_ANCHOR, "without"),
        (BEST, "Push-T from the best policy, with the anchor"),
    ):
        axes[0].plot([], [], "o-", color=colour, ms=4, label=label)
    figure.suptitle("Stage 2 with white noise: before and after, one line a seed")
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    return figure


def slopes(ax, rows, colour):
    """A line from before to after for each row."""
    for row in rows:
        ax.plot([0, 1], [float(row["before"]), float(row["after"])], "o-", color=colour, ms=4)
