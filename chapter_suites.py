"""RESULTS.md on BlockPush, Kitchen and RoboMimic: their settings by score, stages and modes."""

from cells import by_seed, cell, made, paragraph, score, table
from experiment_row import STANDARD
from experiments_suites import SUITE_DATA, SUITE_STEPS, SUITES, scene_of
from tables import at, column, select

SUITE_WORDS = {
    "dbp": "DBP",
    "diffusion": "diffusion",
    "bc": "regression",
    "K 4": "DBP, K 4",
    "K 8": "DBP, K 8",
    "step": "DBP, loss per step",
    "delta": "DBP, delta actions",
}
TITLES = {
    "blockpush": "BlockPush",
    "kitchen": "Franka Kitchen",
    "lift": "RoboMimic's lift",
    "can": "RoboMimic's can",
    "square": "RoboMimic's square",
    "transport": "RoboMimic's transport",
    "tool-hang": "RoboMimic's tool-hang",
}


def suites(results):
    """Table I's other suites, scene by scene."""
    rows = at(results.rows("suites.csv"), STANDARD)
    yield "## BlockPush, Kitchen and RoboMimic (Table I), by scripted data"
    if not rows:
        yield paragraph("No run yet.")
        return
    yield made("python reproduce.py suites", rows)
    yield paragraph("""The demonstrations are successes of scripted experts, not the benchmarks'
        own, so the paper's figures are beside these and not comparable to the digit. One core with
        another run on the other. p1 to p4 are the shares of the episodes that reached so many
        stages. The entropy is that of the modes that the episodes took, in bits: on BlockPush the
        block and the zone that came first (at most 2), in Kitchen the order of the sub-tasks.""")
    for scene in SUITE_DATA:
        yield from scene_table(scene, rows)


def scene_table(scene, rows):
    """The settings of a scene that have been run, one a line."""
    lines = []
    stages = []
    for experiment in SUITES:
        if scene_of(experiment.task) != scene:
            continue
        own = select(rows, task=experiment.task, setting=experiment.name)
        own = select(own, length=experiment.budget)
        if not own:
            continue
        stages = [name for name in ("p1", "p2", "p3", "p4") if column(own, name)]
        reached = [cell(own, name, 2) for name in stages]
        lines.append(
            [
                SUITE_WORDS[experiment.name],
                cell(own, "nfe", 0),
                len(own),
                score(own),
                by_seed(own),
                *reached,
                *([cell(own, "mode_entropy", 2)] if stages else []),
                cell(own, "minutes", 0),
                f"{experiment.paper:.2f}" if experiment.paper else "—",
            ]
        )
    if not lines:
        return
    count = SUITE_DATA[scene][0]
    yield f"### {TITLES[scene]}: {count} demonstrations, {SUITE_STEPS[scene]} steps"
    names = [*stages, *(["Entropy"] if stages else [])]
    yield table(
        " | ".join(["Method", "NFE", "Seeds", "Score", "By seed", *names, "Minutes", "Paper"]),
        lines,
    )
