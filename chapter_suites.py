"""RESULTS.md on the suites with stages or arms: their settings by score, stages and modes."""

from cells import by_seed, cell, made, paragraph, score, table
from experiment_row import STANDARD
from experiments_suites import SUITE, SUITES, batch_of, scene_of
from tables import at, column, select

SUITE_WORDS = {
    "dbp": "DBP",
    "diffusion": "diffusion",
    "bc": "regression",
    "K 4": "DBP, K 4",
    "K 8": "DBP, K 8",
    "step": "DBP, loss per step",
    "delta": "DBP, delta actions",
    "state": "DBP, from numbers",
    "no-to-end": "the same, `--no-to-end`",
    "taught": "DBP from pictures, `--dims 32 64 --teach 6000` (beyond the paper), {steps:,} steps",
    "long": "DBP, `--dims 32 64`, {steps:,} steps of {batch}",
}
TITLES = {
    "blockpush": "BlockPush",
    "kitchen": "Franka Kitchen",
    "lift": "RoboMimic's lift",
    "can": "RoboMimic's can",
    "square": "RoboMimic's square",
    "transport": "RoboMimic's transport",
    "tool-hang": "RoboMimic's tool-hang",
    "ur5-lift": "Two UR5 arms, lift",
    "ur5-can": "Two UR5 arms, can",
    "ur5-transport": "Two UR5 arms, transport",
}


def suites(results):
    """Table I's other suites and Table III, scene by scene."""
    rows = at(results.rows("suites.csv"), STANDARD)
    yield "## BlockPush, Kitchen, RoboMimic (Table I), UR5 arms (Table III), by scripted data"
    if not rows:
        yield paragraph("No run yet.")
        return
    yield made("python reproduce.py suites", rows)
    yield paragraph("""The demonstrations are successes of scripted experts, not the benchmarks'
        own, so the paper's figures are beside these and not comparable to the digit. The UR5 arms
        are the twin's; the paper's were real and saw by cameras. Networks of 4.8 M parameters, 5.8
        M with the cameras' encoders. Lift, the UR5 arms, and what has `--dims 32 64` (0.6 M): one
        CPU core with another run on the other; all others: an H100 that 18 other runs shared, so
        their minutes are no measure of it.
        p1 to p4 are the shares of the episodes that reached so many stages. The entropy is that of
        the modes that the episodes took, in bits: on BlockPush the block and the zone that came
        first (at most 2), in Kitchen the order of the sub-tasks.""")
    for scene in SUITE:
        yield from scene_table(scene, rows)
        if scene == "blockpush":
            yield from blockpush_noise(results)


def blockpush_noise(results):
    """How exactly BlockPush's pusher has to be sent: the oracle with noise on its places."""
    yield paragraph("""Why nothing succeeds: 4000 steps of 256 are 9 epochs, after which the first
        place that DBP sends the pusher to is 10 mm from the demonstrated one in the mean, and the
        last of the eight that are carried out 36 mm (2000 windows of the demonstrations, 8 latents
        each). The oracle itself does not bear that. With white noise whose standard deviation is
        5 mm on each coordinate of the places it never ends, since it waits until it is 1 mm from
        where a block is pushed from; where it waits for 10 mm only, it ends, but seldom with noise
        of 10 mm (`results/blockpush_noise.csv`). DBP's policy that carries out 1 or 4 steps of a
        chunk, and small networks of regression after 1000 to 1500 steps of 128 (on places, on
        places relative to the last one, on demonstrations with such noise) succeed at none of 20
        starts either (no row kept).""")
    lines = [
        [r["noise_mm"], r["arrived_mm"], r["success"], r["steps_mean"], r["episodes"]]
        for r in results.rows("blockpush_noise.csv")
    ]
    yield table("Noise, mm | Arrived within, mm | Success | Steps | Episodes", lines)


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
                SUITE_WORDS[experiment.name].format(
                    steps=experiment.budget.amount, batch=batch_of(experiment)
                ),
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
    demos, _, steps, batch = SUITE[scene]
    yield f"### {TITLES[scene]}: {demos} demonstrations, {steps} steps of {batch} observations"
    names = [*stages, *(["Entropy"] if stages else [])]
    yield table(
        " | ".join(["Method", "NFE", "Seeds", "Score", "By seed", *names, "Minutes", "Paper"]),
        lines,
    )
