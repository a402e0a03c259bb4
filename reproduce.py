"""Run the experiments of experiments.py. What is finished is never run twice.

A run that was interrupted goes on where it was. Its figures become rows in results/, one for each
setting, seed and set of start states; `python report.py` then writes RESULTS.md and draws the
figures.

All scores are those of the last checkpoint; beside them `pointcloud`, the paper's Table II, has
those of the paper's protocol (reproduce_clouds.py).
"""

import startup  # noqa: F401 - first, see there

import itertools
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from commands import START_SEEDS, BadInput, Parser, above_zero, check_device, check_seed, cli
from envs import run_program
from evaluate import START_SEED
from experiments import ABLATIONS, CLOUDS, COMPARED, CONVERGING, EXPERIMENTS, QUEUE
from files import Lock, check_folder, check_output
from reproduce_clouds import pointcloud, survey
from reproduce_image import image
from reproduce_pusht import FORK_STEPS, ablate, efficiency, multimodal, pusht
from reproduce_runs import BATCH, HERE, given
from reproduce_stage2 import stage2, stage2_names
from reproduce_suites import SCENES, suites
from tables import read, select, setting_of

POSITIVE = (
    "epochs",
    "steps",
    "minutes",
    "every",
    "top",
    "episodes",
    "demos",
    "batch",
    "threads",
    "attempts",
    "fork_steps",
    "num_envs",
    "num_steps",
    "num_iterations",
    "noise_episodes",
    "cores",
    "runs",
)


# ---- what is done and what is missing -----------------------------------------------------------


def key_rows(experiment, seed):
    """The key columns of the rows that a seed of an experiment leaves in its table."""
    row = {"seed": seed, "task": experiment.task, "flags": experiment.name}
    row["dims"] = experiment.dims
    if experiment.budget:
        row |= {"length": str(experiment.budget), "epochs": f"{experiment.budget.amount:g}"}
    for nfe, starts in itertools.product(experiment.nfe, experiment.starts):
        row["setting"] = experiment.name
        if experiment.group == "pusht":
            row["setting"] = setting_of(experiment.name, nfe)
        row |= {"episodes": starts.episodes, "start_seed": starts.first_seed}
        yield {key: row[key] for key in experiment.keys if key in row}


def is_done(experiment, seed, rows):
    """Whether the table holds every row of a seed."""
    return bool(rows) and all(select(rows, **keys) for keys in key_rows(experiment, seed))


def listing(args):
    """Print every experiment with the seeds that are done and those that are missing."""
    tables = {e.result: read(Path(args.results, e.result)) for e in EXPERIMENTS}
    count = 0
    for e in EXPERIMENTS:
        done = [seed for seed in e.seeds if is_done(e, seed, tables[e.result])]
        missing = [seed for seed in e.seeds if seed not in done]
        count += len(missing)
        if args.missing and not missing:
            continue
        text = f"{e.group:<11} {title(e):<33} {str(e.budget or ''):<13}"
        text += f"done: {words(done):<9} missing: {words(missing):<9}"
        if e.removed:
            text += f"({e.removed})"
        elif missing:
            text += e.command
        print(text.rstrip())
    print(f"{count} runs are missing")


def title(experiment):
    """An experiment's name, with its task where the name does not tell it."""
    name = experiment.name
    if experiment.dims != "auto":
        name += f", channels {experiment.dims}"
    return f"{experiment.task}, {name}" if experiment.group == "suites" else name


def words(seeds):
    """Seeds in a line of the list."""
    return " ".join(map(str, seeds)) or "-"


# ---- everything, one run after another ----------------------------------------------------------


def waiting(results):
    """The (experiment, seed) of QUEUE, in its order, whose rows are not all there."""
    tables = {e.result: read(Path(results, e.result)) for e in EXPERIMENTS}
    for experiments, seeds in QUEUE:
        for experiment, seed in itertools.product(experiments, seeds):
            if not is_done(experiment, seed, tables[experiment.result]):
                yield experiment, seed


def orders(experiment, seed):
    """The command lines of this script, as lists of words, that make the rows of a seed."""
    command = shlex.split(experiment.command)[2:]  # python reproduce.py
    if experiment.group == "pusht":
        command += ["--methods", experiment.name]
    command += ["--seeds", str(seed)]
    if experiment.group != "pusht":
        return [command]  # it scores all of its start states
    return [
        [*command, "--episodes", str(s.episodes), "--start-seed", str(s.first_seed)]
        for s in experiment.starts
    ]


def queue(args):
    """Work through the experiments: the next run that is missing, its rows, and the next.

    It may be stopped and begun again at any time, and several may work on one folder: a run that
    another has begun is passed over. A run that fails is told, and the next begins.
    """
    if args.cores > 1:
        return queues(args)
    failed = []
    begun = 0
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for experiment, seed in waiting(args.results):
        name = f"{title(experiment)}, seed {seed}"
        if begun == args.runs:
            break
        try:
            lock = Lock(Path(args.out, f".queue-{name.replace(', ', '-').replace(' ', '')}"))
        except BadInput:  # another process has it
            continue
        with lock:
            if (experiment, seed) not in waiting(args.results):
                continue  # another process has finished it in the meantime
            begun += 1
            print(f"== {experiment.group}: {name}, {experiment.budget}", flush=True)
            try:
                run_orders(experiment, seed, args)
            except BadInput as e:
                failed.append(name)
                print(f"{name} failed: {e}", file=sys.stderr, flush=True)
    if failed:
        raise BadInput(f"{len(failed)} of {begun} runs failed: {'; '.join(failed)}")
    print(f"{begun} runs, {len(list(waiting(args.results)))} are missing")


def run_orders(experiment, seed, args):
    """Make the rows of a seed on one core, in the folders of args."""
    more = ["--out", args.out, "--results", args.results, "--threads", "1", "--one-process"]
    more += [str(part) for part in given(args, "device")]
    for order in orders(experiment, seed):
        one = parse([*order, *more])
        check(one)
        torch.set_num_threads(one.threads)  # the scores and timings, too
        one.run(one)


def queues(args):
    """As many queues as cores, each a process."""
    command = [sys.executable, HERE / "reproduce.py", "queue", "--cores", 1]
    command += ["--out", args.out, "--results", args.results, *given(args, "runs", "device")]
    command = [str(part) for part in command]
    with ThreadPoolExecutor(args.cores) as pool:
        codes = list(pool.map(run_program, [command] * args.cores))
    if any(codes):
        raise BadInput("a queue ended with an error: its message stands above")


# ---- the command line ---------------------------------------------------------------------------


def add_command(sub, name, run, **how):
    """A subcommand with its help and the two folders."""
    first = run.__doc__.split("\n")[0]
    p = sub.add_parser(name, help=first, description=run.__doc__, **how)
    p.set_defaults(run=run)
    p.add_argument("--results", default="results", help="folder of the tables")
    return p


def add_training(p, episodes):
    """The flags of the commands that train and score."""
    p.add_argument("--out", default="runs", help="folder of the run folders")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    if episodes:
        p.add_argument("--episodes", type=int, default=episodes, help="episodes of an evaluation")
        p.add_argument("--batch", type=int, default=BATCH, help="observations a step, B")
    p.add_argument(
        "--dims",
        nargs="+",
        default=["auto"],
        metavar="C",
        help="U-Net channels; auto: those that dbp_train.py takes on a CPU, on a GPU, too",
    )
    p.add_argument("--device", help="torch device; dbp_train.py's choice if not given")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument(
        "--one-process", action="store_true", help="evaluate with all simulators in one process"
    )


def add_clouds(sub):
    """The subcommands on point clouds."""
    p = add_command(sub, "pointcloud", pointcloud)
    add_training(p, episodes=20)
    p.add_argument("--states", help="Adroit: recorded states, see experts.py")
    p.add_argument(
        "--epochs",
        type=float,
        help="passes over the data; the paper's 3000 (Adroit), 1000 if not given",
    )
    p.add_argument("--every", type=float, default=200, help="epochs between evaluations")
    p.add_argument(
        "--top", type=int, default=5, help="evaluations whose mean is the protocol's figure"
    )
    s = add_command(sub, "survey", survey)
    s.add_argument("--out", default="runs", help="folder of the run folders")
    s.add_argument(
        "--attempts", type=int, default=20, help="starts the scripted policies are tried at"
    )
    s.add_argument("--steps", type=int, default=20, help="training steps")
    s.add_argument("--png", default="figures/pointclouds.png", help="contact sheet of all clouds")
    for command in (p, s):
        command.add_argument(
            "--tasks",
            nargs="+",
            default=list(CLOUDS),
            metavar="TASK",
            help="tasks; all 37 if not given",
        )
        command.add_argument("--demos", type=int, default=10, help="demonstrations of each task")


def add_pusht(sub):
    """The subcommands on Push-T."""
    for name, run in (("pusht", pusht), ("efficiency", efficiency), ("multimodal", multimodal)):
        p = add_command(sub, name, run, aliases=["smoothness"] if run is pusht else [])
        p.add_argument(
            "--methods",
            nargs="+",
            choices=tuple(CONVERGING if run is pusht else COMPARED),
            default=list(COMPARED),
            help="methods",
        )
        if run is multimodal:
            p.add_argument(
                "--fork-steps", type=int, default=FORK_STEPS, help="optimiser steps at the toy fork"
            )
        add_training(p, episodes=50)
        add_lengths(p, minutes=15, demos=None, eval_every=1000)
    p = add_command(sub, "ablate", ablate)
    p.add_argument("what", choices=(*ABLATIONS, "cost"), help="what varies")
    p.add_argument(
        "--settings",
        nargs="+",
        help="those settings alone, such as 'K 4'; the table keeps the others",
    )
    add_training(p, episodes=50)
    add_lengths(p, minutes=None, demos=90, eval_every=0)


def add_lengths(p, *, minutes, demos, eval_every):
    """The flags that say how long Push-T is trained, on what, and where it is scored."""
    g = p.add_mutually_exclusive_group()
    g.add_argument("--minutes", type=float, default=minutes, help="training minutes of each run")
    g.add_argument("--steps", type=int, help="optimiser steps, instead")
    g.add_argument(
        "--epochs",
        type=float,
        help="passes over the data, instead; the paper's of an ablation if not given",
    )
    p.add_argument("--data", help="demonstrations; see dbp_train.py")
    p.add_argument("--demos", type=int, default=demos, help="the first that many of them")
    p.add_argument(
        "--start-seed", type=int, default=START_SEED, help="first start seed of the scores"
    )
    p.add_argument("--eval-every", type=int, default=eval_every, help="steps between evaluations")


def add_stage2(sub):
    """The subcommand of Stage 2."""
    p = add_command(sub, "stage2", stage2)
    p.add_argument(
        "--tasks",
        nargs="+",
        choices=stage2_names(),
        required=True,
        metavar="NAME",
        help=f"what is improved: {', '.join(stage2_names())}",
    )
    p.add_argument("--no-anchor", action="store_true", help="without the anchor (--anchor 0)")
    add_training(p, episodes=None)
    p.add_argument("--data", help="demonstrations of Stage 1; see dbp_train.py")
    g = p.add_argument_group("a trial, in rows of its own, instead of the table's settings")
    g.add_argument("--steps", type=int, help="optimiser steps of Stage 1")
    g.add_argument("--episodes", type=int, help="episodes of an evaluation")
    for flag in ("--num-envs", "--num-steps", "--num-iterations", "--noise-episodes"):
        g.add_argument(flag, type=int, help="as in dbpo_ppo.py")


def add_image(sub):
    """The subcommand of Push-T from images."""
    p = add_command(sub, "image", image)
    p.add_argument("--settings", nargs="+", help="those settings alone; all if not given")
    p.add_argument("--out", default="runs", help="folder of the run folders")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    p.add_argument("--device", help="torch device; dbp_train.py's choice if not given")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument(
        "--one-process", action="store_true", help="evaluate with all simulators in one process"
    )
    g = p.add_argument_group("a trial, in rows of its own, instead of the table's settings")
    g.add_argument("--data", help="demonstrations; see dbp_train.py")
    g.add_argument("--steps", type=int, help="optimiser steps")
    g.add_argument("--episodes", type=int, help="episodes of an evaluation")


def add_suites(sub):
    """The subcommand of Table I's other suites and of the UR5 arms."""
    p = add_command(sub, "suites", suites)
    p.add_argument(
        "--tasks", nargs="+", choices=SCENES, default=list(SCENES), help="tasks; all if not given"
    )
    p.add_argument(
        "--settings",
        nargs="+",
        help="those settings alone, such as dbp or 'K 4'; all of the tasks' if not given",
    )
    add_training(p, episodes=50)
    p.set_defaults(batch=None)  # the suite's own
    p.add_argument("--steps", type=int, help="optimiser steps; the table's if not given")
    p.add_argument("--demos", type=int, help="demonstrations; the table's number if not given")


def parse(argv=None):
    """The command line; flags that a command does not have are None."""
    p = Parser(
        __doc__,
        examples=(
            "python reproduce.py list",
            "python reproduce.py pusht --minutes 15",
            "python reproduce.py efficiency --minutes 15",
            "python reproduce.py multimodal --minutes 15",
            "python reproduce.py ablate K --steps 3000",
            "python reproduce.py ablate beyond --steps 3000 --start-seed 200000 --episodes 200",
            "python reproduce.py stage2 --tasks hopper --seeds 0 1 2 --no-anchor",
            "python reproduce.py image --settings small --seeds 0",
            "python reproduce.py suites --tasks blockpush --settings dbp 'K 4' --seeds 0",
            "python reproduce.py pointcloud --tasks metaworld-door-open --epochs 150 --every 50",
            "python reproduce.py survey",
            "python reproduce.py queue --cores 1",
        ),
    )
    p.set_defaults(seeds=(), **dict.fromkeys(("device", "start_seed", "png", *POSITIVE)))
    sub = p.add_subparsers(dest="command", required=True)
    add_command(sub, "list", listing).add_argument(
        "--missing", action="store_true", help="only experiments with something missing"
    )
    add_pusht(sub)
    add_stage2(sub)
    add_image(sub)
    add_suites(sub)
    add_clouds(sub)
    p_queue = add_command(sub, "queue", queue)
    p_queue.add_argument("--out", default="runs", help="folder of the run folders")
    p_queue.add_argument("--cores", type=int, default=1, metavar="N", help="runs at a time")
    p_queue.add_argument(
        "--runs", type=int, metavar="N", help="stop after N runs on each core; all if not given"
    )
    p_queue.add_argument("--device", help="torch device; dbp_train.py's choice if not given")
    return p.parse_args(argv)


def check(args):
    """Refuse flags, outputs and tables that would fail after the work. Raises BadInput."""
    above_zero(args, *POSITIVE)
    check_device(args.device or "cpu")
    check_seed(args, "seeds")
    if args.start_seed is not None:
        check_seed(args, "start_seed", below=START_SEEDS, n=args.episodes)
    if args.run is not listing:
        check_folder(args, "results", "out")
        check_output(args, "png")
    for name in {e.result for e in EXPERIMENTS} | {e.curve for e in EXPERIMENTS if e.curve}:
        read(Path(args.results, name))


def main(argv=None):
    """Run one command."""
    args = parse(argv)
    check(args)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    args.run(args)


if __name__ == "__main__":
    cli(main)
