"""Write RESULTS.md and draw all result figures from the rows in results/.

  python report.py                         everything
  python report.py --only pusht_methods    one figure

Nothing is trained or loaded here. The rows in results/ and the table in experiments.py are all that
is read, so text and figures can be made again at any time and come out the same. The figures are
drawn by plots.py.
"""

import startup  # noqa: F401 - first, see there

from pathlib import Path

import numpy as np

from cells import RECORDED, bullets, cell, listed, made, paragraph, picture, table
from chapter_ablations import ablations, beyond
from chapter_pusht import converged, human, images, latency, methods, multimodal
from chapter_stage2 import stage2
from chapter_suites import suites
from commands import Parser, cli
from experiments import CLOUDS, TABLE_2, TABLE_2_COLUMNS
from files import atomic, check_folder, refusing
from plots import FIGURES
from tables import Results, column, interval, read, select
from verdicts import (
    DEFAULT_KINDS,
    latency_verdict,
    share_verdict,
    stage2_verdicts,
    verdicts,
)

# ---- the sections of RESULTS.md, each a generator of blocks -------------------------------------


def introduction(results):
    """How to read the file, and all verdicts in one table."""
    yield "# Results"
    yield paragraph("""This file is written by `python report.py` from the rows in `results/`:
        change the rows, not the text. `python reproduce.py list` says which experiments are done
        and which are missing.""")
    yield "## How to read the figures"
    yield bullets(
        """**Score.** On Push-T it is the mean over episodes of the highest min(coverage / 0.95, 1)
        reached in 300 steps; success there is a coverage above 0.95. On locomotion it is the return
        of 1000 steps. On point clouds it is the share of episodes that succeed. It is always that
        of the last checkpoint, with EMA weights and one network evaluation (NFE) an action chunk,
        unless another number is named.""",
        """**x ± h.** A mean over training seeds, and half the width of its 95 % t interval over
        them. **[l, h]** is the 95 % bootstrap interval over the episodes of one run. A difference
        is taken seed by seed, then averaged.""",
        """**Start states.** The 50 standard starts are seeds 100000 to 100049, Diffusion Policy's
        own. Settings were chosen on the 200 from seed 200000. Nothing was chosen on the 200 from
        seed 500000 and on the 500 from seed 600000, which are called unused.""",
        """**Machine.** 2 CPU cores with AVX-512, torch 2.13.0, float32; a GPU (an H100) where that
        is said. So the networks are small: channels 64 128 256 (4.8 M parameters), where the paper
        has 512 1024 2048 (251 M). Where a table says one core, another run was on the other.""",
        """**Confirmed** means that the paper's order of two settings is found here and that the 95
        % interval of the difference excludes 0; **contradicted**, that the opposite order is;
        **unknown**, that the interval includes 0, that there are too few seeds, or that it has not
        been run. What an action takes and what the field takes of a step are judged by one
        ratio.""",
    )
    yield "## What of the paper holds here"
    yield table("Where | The paper says | Found here", verdict_rows(results))
    yield paragraph("""Nothing has been run of the recorded demonstrations of BlockPush, Kitchen
        and RoboMimic (Table I; scripted ones stand in for them here), of Stage 2 on RoboMimic (Fig.
        4) and of the real robot (Table III), so they are unknown. The paper's network has been run
        from images alone, and its number of epochs for no row.""")


def verdict_rows(results):
    """The table of all verdicts; those on one statement, from several start states, together."""
    sections = {
        "Push-T, equal minutes": verdicts("pusht_methods", results),
        "Push-T, at convergence": verdicts("pusht_converged", results),
        "Push-T, at convergence, 0.6 M parameters": verdicts("pusht_small", results),
        "latency": [latency_verdict(results)],
        "hypotheses K": verdicts("K", results),
        "temperatures": verdicts("temp", results),
        "mode": verdicts("mode", results),
        "cost": [share_verdict(results)],
    }
    for kind in DEFAULT_KINDS:
        sections[f"Stage 2, {kind[0]}"] = stage2_verdicts(results, [kind])
    words = {}
    for where, found in sections.items():
        for verdict in found:
            words.setdefault((where, verdict.says), []).append(verdict.word.lower())
    return [(*key, listed(dict.fromkeys(found))) for key, found in words.items()]


def pointcloud(results):
    """Table II, as far as it has been run."""
    rows = results.rows("pointcloud.csv")
    lines = []
    for task, group in CLOUDS.items():
        own = select(rows, task=task)
        for epochs in sorted({r["epochs"] for r in own}, key=float):
            runs = select(own, epochs=epochs)
            reported = TABLE_2["DBP, the paper"]
            paper = f"{reported[task]:g}" if task in reported else f"{reported[group]:g} (group)"
            seeds = ", ".join(f"{100 * v:.0f}" for v in column(runs, "last"))
            success = [seeds, percent(runs, "last"), percent(runs, "top"), paper]
            length = [cell(runs, "minutes", 1), cell(runs, "steps", 0)]
            lines.append([task, group, epochs, *success, *length])
    yield "## Point clouds: Meta-World and Adroit (Table II)"
    yield made("python reproduce.py pointcloud --epochs 150 --every 50", rows)
    yield paragraph("""Channels 64 128 (1.5 M parameters), 10 demonstrations, one core with another
        run on the other. The paper trains channels 512 1024 2048 for 1000 epochs (Adroit 3000).""")
    yield table(
        "Task | Group | Epochs | Last checkpoint by seed, % | Last checkpoint, %"
        " | Best evaluations, % | The paper, % | Minutes | Steps",
        lines,
    )
    yield paragraph(f"""{len({r["task"] for r in rows})} of the 37 tasks have been trained, and the
        paper's Meta-World figures are means over a group's tasks, so Table II as a whole is
        unknown. With 20 episodes a figure of 60 % could be anything from 36 to 81 %. "Best
        evaluations" is the protocol's figure, the mean of a run's best five, which is biased
        upwards; a run of 150 epochs has three evaluations in all. Most runs were still rising at
        the end.""")
    yield "In the form of Table II (mean over tasks ± deviation over seeds; the longest runs):"
    yield summary(rows)
    yield from survey(results)


def percent(rows, name):
    """Success in per cent over seeds."""
    return interval([100 * v for v in column(rows, name)]).text(0)


def summary(rows):
    """The rows of pointcloud.csv as the paper's Table II in Markdown.

    Per cent; the mean over tasks of the means over seeds ± the deviation over seeds, averaged; the
    numbers of tasks and runs. The longest run of a task and seed counts, and no trial.
    """
    rows = [r for r in rows if r["task"] in CLOUDS]
    by_length = sorted(rows, key=lambda r: float(r["epochs"]))
    rows = {(r["task"], r["seed"]): r for r in by_length}.values()
    lines = [[name, *(f"{v:g}" for v in values.values())] for name, values in TABLE_2.items()]
    lines += [
        [name, *(summary_cell(rows, c, key) for c in TABLE_2_COLUMNS)]
        for key, name in SUMMARY_ROWS.items()
    ]
    return table(" | ".join(["success, %", *TABLE_2_COLUMNS]), lines)


SUMMARY_ROWS = {"top": "DBP, here, best evaluations", "last": "DBP, here, last checkpoint"}


def summary_cell(rows, name, key):
    """A cell of `summary`: a task, a group, or all 37 tasks once each has been run."""
    by_task = {}
    for r in rows:
        if name in (r["group"], r["task"], "all 37"):
            by_task.setdefault(r["task"], []).append(100 * float(r[key]))
    if not by_task or (name == "all 37" and len(by_task) < len(CLOUDS)):
        return "—"
    text = f"{np.mean([np.mean(v) for v in by_task.values()]):.1f}"
    deviations = [np.std(v) for v in by_task.values() if len(v) > 1]
    if deviations:
        text += f" ± {np.mean(deviations):.1f}"
    return f"{text} (tasks {len(by_task)}, runs {sum(map(len, by_task.values()))})"


def survey(results):
    """Every task once: expert, cloud, a few training steps."""
    rows = results.rows("pointcloud_survey.csv")
    rates = column([r for r in rows if r["group"] != "adroit"], "expert_success")
    solved = sum(rate == 1 for rate in rates)
    attempts = int(rows[0]["attempts"])
    points = column(rows, "distinct_points")
    yield "### Every point-cloud task once"
    yield made("python reproduce.py survey", rows)
    yield paragraph(f"""For each of the {len(rows)} tasks: ten demonstrations, the expert's success,
        the cloud's statistics, twenty training steps and an episode
        (`results/pointcloud_survey.csv`). Meta-World's scripted policies solve {attempts} of
        {attempts} starts on {solved} tasks and at least {min(rates) * attempts:.0f} on the other
        {len(rates) - solved}. A cloud holds {min(points):.0f} to {max(points):.0f} distinct points.
        Adroit's episodes are recorded ones. Hand-insert's goal lies in a hole below the table's
        top, which the crop drops.""")
    yield picture("every task's camera picture and cloud", "figures/pointclouds.png")


TOY_WORDS = {
    "setting": "Setting",
    "energy": "Energy distance to held-out data",
    "off": "Share of samples off the target",
    "modes": "Modes reached",
    "above": "Share above",
    "between": "Share between",
    "below": "Share below",
    "hits": "Share that hits an obstacle",
}


def toy(results):
    """The field in two dimensions, as toy.py measures it."""
    rows = read(results.folder.parent / "figures" / "toy.csv")
    yield "## The field in two dimensions"
    yield paragraph("""`python toy.py --out figures`, one seed; all targets are in
        `figures/toy.csv`. An energy distance of 0 is the held-out data's own. At the fork one
        observation has three right actions, of which the experts take the upper one most often. The
        paper has no such figures.""")
    for target, what in (("gaussians", "Eight Gaussians on a circle"), ("fork", "The fork")):
        own = [r for r in rows if r["target"] == target]
        columns = [c for c in TOY_WORDS if any(r.get(c) for r in own)]
        if own:
            yield f"{what}:"
            yield table(
                " | ".join(TOY_WORDS[c] for c in columns),
                [[r[c] or "—" for c in columns] for r in own],
            )


def timings(results):
    """What bench.py measured."""
    train = results.json("bench_train.json")
    infer = results.json("bench_infer.json")
    onnx = results.json("bench_infer_onnx.json")
    robot = results.json("robot_run.json")
    hurried = robot["real_time"]
    ppo = results.json("bench_ppo.json")
    door = results.json("bench_clouds.json")
    assembly = results.json("bench_clouds_assembly.json")
    rates = ppo["one_call"]
    quartiles = " to ".join(f"{q:.2f}" for q in train["ratio_quartiles"])
    figures = {
        "training step with the drift loss over one with the mean squared error": (
            f"{train['ratio_p50']:.2f} (quartiles {quartiles})",
            "bench_train.json",
        ),
        "drift loss and its gradient alone, B 32, K 4": (
            f"{train['drift_loss_alone']['p50_ms']:.1f} ms of {train['drift_step']['p50_ms']:.0f}",
            "bench_train.json",
        ),
        "one action at batch 1, small network": (act_words(infer, "small"), "bench_infer.json"),
        "one action at batch 1, the paper's channels": (
            act_words(infer, "paper"),
            "bench_infer.json",
        ),
        "the same, small network, as an ONNX file": (
            f"p50 {onnx['onnx']['p50_ms']:.1f} ms, p99 {onnx['onnx']['p99_ms']:.1f} ms; "
            f"{onnx['ratio_p50']:.2f} times eager's",
            "bench_infer_onnx.json",
        ),
        **image_timings(results),
        "the robot's loop on the simulated arms, three cameras, channels 32 64, ONNX": (
            f"{robot['policy_hz']:.0f} chunks a second; newest state to command p50 "
            f"{robot['newest_state_to_command_p50_ms']:.1f} ms, p99 "
            f"{robot['newest_state_to_command_p99_ms']:.1f} ms; servo period p99 "
            f"{robot['servo_period_p99_ms']:.1f} ms",
            "robot_run.json",
        ),
        "the same with a real-time priority, at 210 chunks a second": (
            f"newest state to command p50 "
            f"{hurried['newest_state_to_command_p50_ms']:.1f} ms, p99 "
            f"{hurried['newest_state_to_command_p99_ms']:.1f} ms; servo period p99 "
            f"{hurried['servo_period_p99_ms']:.1f} ms",
            "robot_run.json",
        ),
        "Stage 2 on Hopper, channels 64 128, one core, nothing beside it": (
            f"roll-out {rates['rollout_env_steps_per_s']} environment steps a second, update "
            f"{rates['update_samples_per_s']} samples a second; simulator "
            f"{rates['share_simulator']:.0%}, network {rates['share_network']:.0%}, update "
            f"{rates['share_update']:.0%} of the time",
            "bench_ppo.json",
        ),
        "the same with two generator calls a sample": (
            f"{ppo['iteration_ratio']:.2f} times the time of an iteration",
            "bench_ppo.json",
        ),
        f"one observation by rays, door-open, {door['points_in_crop']} points in the crop": (
            cloud_words(door),
            "bench_clouds.json",
        ),
        f"one observation by rays, assembly, {assembly['points_in_crop']} points": (
            cloud_words(assembly),
            "bench_clouds_assembly.json",
        ),
        "an evaluation of 50 episodes of Push-T": (
            evaluation_words(results),
            "pusht_shipped_seed0.json",
        ),
    }
    yield "## Timings"
    yield paragraph("""`python bench.py train`, `infer --compile`, `ppo --task hopper --dims 64
        128`, `clouds`, `train --task pusht-image`, `infer --task pusht-image`, `infer --onnx`
        (`results/bench_*.json`); `realrobot.py run` (`results/robot_run.json`); 2 CPU cores with
        AVX-512, torch 2.13.0, float32.
        The latency by method stands above. The paper's timings are those of a GPU.""")
    yield table(
        "What | Figure | Commit and date",
        [[what, figure, RECORDED[name]] for what, (figure, name) in figures.items()],
    )


def image_timings(results):
    """What bench.py measured of policies that see, {what: (figure, file)}."""
    train = results.json("bench_train_image.json")
    infer = results.json("bench_infer_image.json")
    shares = ", ".join(f"{name} {part['share']:.1%}" for name, part in train["parts"].items())
    kinds = {"small": "three convolutions", "resnet18": "ResNet18"}
    acts = [
        f"{words}: p50 {infer[f'small, {kind} eager']['p50_ms']:.1f} ms, p99 "
        f"{infer[f'small, {kind} eager']['p99_ms']:.1f} ms"
        for kind, words in kinds.items()
    ]
    return {
        "training step from images, B 32, K 4": (
            f"{train['drift_step']['p50_ms']:.0f} ms: {shares}",
            "bench_train_image.json",
        ),
        "one action from two pictures, small network": ("; ".join(acts), "bench_infer_image.json"),
    }


def act_words(infer, size):
    """Milliseconds of an action, eager and compiled."""
    eager = infer[f"{size} eager"]
    compiled = infer[f"{size} compiled"]
    return (
        f"p50 {eager['p50_ms']:.1f} ms, p99 {eager['p99_ms']:.1f} ms; compiled "
        f"{compiled['p50_ms']:.1f} and {compiled['p99_ms']:.1f} ms"
    )


def cloud_words(bench):
    """Milliseconds of a cloud by rays and by the renderer."""
    return (
        f"p50 {bench['observation']['p50_ms']:.1f} ms: rays {bench['promising rays']['p50_ms']:.1f}"
        f", sampling {bench['sampling']['p50_ms']:.1f}; with MuJoCo's renderer (OSMesa) in place of"
        f" rays {bench['rendered depth and sampling']['p50_ms']:.1f} ms"
    )


def evaluation_words(results):
    """Seconds of an evaluation; those of seed 0 had another run beside them."""
    names = ("pusht_human_seed1.json", "pusht_human_seed2.json", "pusht_shipped_seed0.json")
    found = [results.json(name) for name in names]
    seconds = [r["seconds"] for r in found]
    network = [r["network_s"] for r in found]
    return (
        f"{min(seconds):.0f} to {max(seconds):.0f} s, of which the network {min(network):.1f} to "
        f"{max(network):.1f} s"
    )


def choices(results):
    """Single runs without rows that explain a choice; nothing is read from results."""
    yield "## Choices that single runs explain"
    yield paragraph("""One run each, no row kept, on Push-T. They say why a default is what it is,
        and carry no weight as results.""")
    yield bullets(
        """**Inputs of the generator.** Seed 0, 5000 steps, 200 starts from seed 200000: a condition
        embedding and the latent alone scored 0.877 at a learning rate of 5e-4 and 0.846 at 1e-3.
        With cosines over the chunk as input and a quarter of the latent's initial weight the score
        was 0.923, so that is the default.""",
        """**Latents nearer to 0.** `evaluate.py --z-scale 0.5` changed the mean of the three
        policies on human demonstrations, 200 starts from seed 200000, from 0.929 to 0.934 and their
        success from 0.25 to 0.34. It is used to record `demos/pusht.npz`.""",
        """**Inputs of each observation a step, K, for the other methods.** 15 minutes, seed 0:
        diffusion scored 0.889 with 4 and 0.811 with 1, MeanFlow 0.584 with 4 and 0.725 with 1. Each
        has the better one in the table by method.""",
        """**MeanFlow** follows MP1's code: as many pairs of times equal as not, the error's inverse
        root as weight, slowly varying time inputs. With MeanFlow's own quarter of unequal pairs,
        inverse error and a faster embedding it ended at 0.18.""",
        """**Initial weight on the noisy input.** Diffusion and MeanFlow start from the usual one.
        With the quarter that DBP starts from, diffusion had 0.849 with 100 NFE and 0.822 with
        10.""",
        """**Regression, seed 0,** stands for a second run. The first, 10487 steps beside a test
        run, had 0.788.""",
        """**torch.compile** of the generator brought a training step to 0.89 of its time after 169
        s of compiling. Runs of 15 minutes gain nothing from it, so there is no flag.""",
    )


SECTIONS = (
    introduction,
    human,
    methods,
    converged,
    latency,
    multimodal,
    ablations,
    beyond,
    images,
    stage2,
    pointcloud,
    suites,
    toy,
    timings,
    choices,
)


def markdown(results):
    """The text of RESULTS.md. Raises BadInput if rows that a section speaks of are missing."""
    blocks = []
    for section in SECTIONS:
        with refusing(incomplete(results, section.__name__)):
            blocks += section(results)
    return "\n\n".join(blocks) + "\n"


def incomplete(results, name):
    """What is said where rows are missing that a section or a figure needs."""
    return f"{results.folder} lacks rows or columns for {name!r}: restore it from git"


def main():
    """Write RESULTS.md and draw the figures, or draw one."""
    parser = Parser(__doc__)
    parser.add_argument("--only", choices=tuple(FIGURES), help="draw this figure and nothing else")
    parser.add_argument("--results", default="results", help="folder of the rows")
    parser.add_argument("--out", default=".", help="folder of RESULTS.md, results/ and figures/")
    args = parser.parse_args()
    check_folder(args, "out")
    results = Results(args.results)
    out = Path(args.out)
    for name, figure in FIGURES.items():
        if args.only in (None, name):
            path = out / figure.path
            with refusing(incomplete(results, name)):
                drawn = figure.save(results, path)
            print(f"drawn: {path}" if drawn else f"no rows for {path}")
    if args.only is None:
        text = markdown(results)
        atomic(out / "RESULTS.md", lambda file: file.write(text.encode()))
        print(f"written: {out / 'RESULTS.md'}")


if __name__ == "__main__":
    cli(main)
