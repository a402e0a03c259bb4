"""Run the experiments of experiments.py. What is finished is never run twice.

A run that was interrupted goes on where it was. Its figures become rows in results/, one for each
setting, seed and set of start states; `python report.py` then writes RESULTS.md and draws the
figures.

`pointcloud` is the paper's Table II. Its protocol takes the mean of a run's five best evaluations,
which is biased upwards, so the last checkpoint's success always stands beside it. All other scores
are those of the last checkpoint.
"""

import startup  # noqa: F401 - first, see there

import datetime
import functools
import itertools
import json
import math
import os
import platform
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import bench
import experts
import modes
from baselines import prepare
from chapter_ablations import setting_table
from chapter_pusht import modes_table
from commands import START_SEEDS, BadInput, Parser, above_zero, check_device, check_seed, cli
from data import Windows, load
from download import find
from envs import TASKS, make_env, run_program, task_named, worker_pool
from evaluate import START_SEED, evaluate, smoothness
from experiments import (
    ABLATE_COST,
    ABLATIONS,
    CLOUDS,
    COMPARED,
    EXPERIMENTS,
    MULTIMODAL,
    POINTCLOUD,
    PUSHT,
    QUEUE,
    STAGE2,
    SURVEY,
    Budget,
    Starts,
)
from files import Lock, atomic, check_folder, check_output, read_bytes, write_csv
from formats import read as read_arrays
from policy import Policy
from report import summary
from runs import SCORE_COLUMNS, commit, read_log
from tables import Row, at, merge, read, select, setting_of
from task_clouds import run_script

HERE = Path(__file__).parent
EXPERT_SEED = 1_000_000  # the first start seed of demonstrations
TRIAL_SEED = 3_000_000  # the first start seed of those that scripted policies are tried at
AGAIN = "move the folder away, and the run is made again"
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


# ---- runs and rows ------------------------------------------------------------------------------


def finished(script, out, *flags):
    """Run a trainer into the run folder out, go on with it, or do nothing if it is finished.

    Returns the rows of its log. Raises BadInput if the trainer fails, also because another process
    writes the folder, and if the log is damaged.
    """
    out = Path(out)
    if not (out / "log.csv").exists():
        command = [sys.executable, HERE / script, "--out", out, *flags]
        if (out / "state.pt").exists():
            command.append("--resume")
        command = [str(part) for part in command]
        print(f"-- {' '.join(command[1:])}", flush=True)
        code = run_program(command)
        if code:
            raise BadInput(f"{script} into {out} ended with code {code}: its message stands above")
    log = [Row(row, out / "log.jsonl", AGAIN) for row in read_log(out)]
    if not log:
        raise BadInput(f"{out} holds log.csv, but no rows in log.jsonl: {AGAIN}")
    return log


def values(log, name):
    """A column of a log, of the rows that have it. Raises BadInput if none has."""
    found = [row[name] for row in log if name in row]
    return found or [log[-1][name]]


def given(args, *names):
    """Those flags of args that have a value, as a trainer takes them."""
    flags = []
    for name in names:
        value = getattr(args, name)
        if value:
            flags.append(f"--{name.replace('_', '-')}")
        if value and value is not True:
            flags.append(value)
    return flags


def about():
    """What every row says of its making: date, commit, machine."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} {platform.machine()}",
    }


def dims_of(args):
    """The column "dims": the network's channels as they were given."""
    return " ".join(map(str, args.dims))


def budget_of(args):
    """The one of steps, minutes and epochs that was given."""
    for unit in ("steps", "epochs", "minutes"):  # minutes have a default
        if getattr(args, unit):
            return Budget(getattr(args, unit), unit)


def steps_per_epoch(task, episodes, batch):
    """Optimiser steps of a pass over some demonstrations."""
    return max(len(Windows(episodes, task.T_o, task.T_p, task.T_a)) // batch, 1)


# ---- Table II: point clouds ---------------------------------------------------------------------


def demonstrations(task, episodes, states=None):
    """The path of the task's data, which is made now if there is none."""
    try:
        return find(task)
    except BadInput:
        out = HERE / "demos" / f"{task.name}.npz"
        lengths, tried = experts.from_expert(
            task, episodes, out, states=states, start_seed=EXPERT_SEED
        )
        print(f"{out}: {len(lengths)} episodes of {tried} attempts", flush=True)
        return out


def pointcloud(args):
    """Train and score point-cloud tasks by the protocol; a row a run, the summary at the end."""
    for name in args.tasks:
        if name not in CLOUDS:
            task_named(name)
            raise BadInput(f"{name} is not seen as a point cloud: choose from envs.py's list")
    chosen = [e for e in POINTCLOUD if e.name in args.tasks]
    for seed in args.seeds:
        for experiment in chosen:
            pointcloud_run(experiment, seed, args)
    print(summary(read(Path(args.results, "pointcloud.csv"))))


def pointcloud_run(experiment, seed, args):
    """One run of Table II: train, then put the evaluations' figures into a row."""
    task = task_named(experiment.task)
    data = demonstrations(task, args.demos, args.states)
    per_epoch = steps_per_epoch(task, load(task, data, args.demos), args.batch)
    epochs = args.epochs or experiment.paper_budget.amount
    steps = math.ceil(epochs * per_epoch)
    flags = ["--task", task.name, "--data", data, "--demos", args.demos, "--steps", steps]
    flags += ["--batch", args.batch, "--seed", seed, "--episodes", args.episodes]
    flags += ["--eval-every", max(round(args.every * per_epoch), 1), "--dims", *args.dims]
    flags += given(args, "device", "threads", "one_process")
    out = Path(args.out, f"{task.name}-epochs{epochs:g}-seed{seed}")
    rows = finished("dbp_train.py", out, *flags)
    scores = values(rows, "score")
    best = sorted(scores)[-args.top :]
    row = {
        "task": task.name,
        "group": CLOUDS[task.name],
        "seed": seed,
        "last": scores[-1],
        "top": np.mean(best).round(4),
        "of": f"{len(best)} of {len(scores)}",
        "episodes": args.episodes,
        "epochs": f"{epochs:g}",
        "steps": steps,
        "demos": args.demos,
        "dims": dims_of(args),
        "minutes": round(values(rows, "minutes")[-1], 1),
        **about(),
    }
    merge(Path(args.results, experiment.result), [row], experiment.keys)
    print(
        f"{task.name}, seed {seed}: last {scores[-1]:.2f}, mean of the best {len(best)} of "
        f"{len(scores)} evaluations {np.mean(best):.2f}",
        flush=True,
    )


# ---- every point-cloud task once ----------------------------------------------------------------


def succeeds(name, seed):
    """Whether a Meta-World task's scripted policy solves the start of that seed."""
    env = experts.simulator(name)
    return bool(run_script(name.removeprefix("metaworld-"), env, seed)[2])


def look(task, path):
    """A task's picture at a start, its crop box, and the milliseconds of an observation.

    Of Meta-World it is the start of the first demonstration.
    """
    env = make_env(task)
    is_scripted = task.count_states is None
    env.reset(seed=int(read_arrays(path)["start_seed"][0]) if is_scripted else 0)
    begun = time.perf_counter()
    for _ in range(10):
        env.observe()
    milliseconds = 1e2 * (time.perf_counter() - begun)
    return env.render(), env.box, milliseconds


def expert_rate(task, attempts):
    """The share of starts that the task's scripted policy solves; "recorded" if it has none."""
    if task.count_states is not None:
        return "recorded"
    seeds = range(TRIAL_SEED, TRIAL_SEED + attempts)
    with worker_pool(os.cpu_count()) as pool:
        return np.mean(list(pool.map(functools.partial(succeeds, task.name), seeds))).round(3)


def survey(args):
    """Every task once: the expert's success, demonstrations, clouds, a few steps, an episode."""
    from pointcloud import contact_sheet  # only here, for it needs MuJoCo

    table = Path(args.results, SURVEY[0].result)
    done = {r["task"] for r in read(table)}
    scenes = []
    for name in args.tasks:
        task = task_named(name)
        path = demonstrations(task, args.demos)
        episodes = load(task, path)
        points = episodes.obs["points"]
        picture, box, milliseconds = look(task, path)
        scenes.append((name, picture, points[0], box))
        if name not in done:
            survey_row(task, path, episodes, milliseconds, table, args)
    figure = contact_sheet(scenes)
    atomic(args.png, lambda file: figure.savefig(file, format="png", dpi=75))
    print(f"drawn: {args.png}")


def survey_row(task, path, episodes, milliseconds, table, args):
    """One task's row of the survey."""
    points = episodes.obs["points"]  # (N, 512, 3)
    rate = expert_rate(task, args.attempts)
    flags = ["--task", task.name, "--data", path, "--steps", args.steps, "--episodes", 1]
    out = Path(args.out, f"survey-{task.name}")
    rows = finished("dbp_train.py", out, *flags, "--device", "cpu", *SURVEY[0].stage1)
    distinct = np.mean([len(np.unique(cloud, axis=0)) for cloud in points[::20]])
    row = {
        "task": task.name,
        "group": CLOUDS[task.name],
        "expert_success": rate,
        "attempts": args.attempts,
        "demos": len(episodes),
        "length": episodes.lengths.mean().round(1),
        "distinct_points": distinct.round(0),
        "low": " ".join(map(str, points.min((0, 1)).round(2))),
        "high": " ".join(map(str, points.max((0, 1)).round(2))),
        "ms_a_frame": round(milliseconds, 1),
        "loss": round(rows[0]["loss"], 4),
        "s": round(rows[0]["s"], 3),
        "episode_score": values(rows, "score")[-1],
        **about(),
    }
    merge(table, [row], SURVEY[0].keys)
    print(
        f"{task.name}: expert {rate} of {args.attempts}, {len(episodes)} demonstrations of "
        f"{episodes.lengths.mean():.0f} steps, {distinct:.0f} distinct points, "
        f"{milliseconds:.1f} ms a frame",
        flush=True,
    )


# ---- Push-T: methods and ablations --------------------------------------------------------------


def pusht_run(experiment, seed, args):
    """Train a setting on Push-T unless it is done. Returns the run folder and its log's rows."""
    budget = budget_of(args)
    name = experiment.same_run_as or experiment.name
    parts = ["pusht", name.replace(", ", "-").replace(" ", ""), f"{budget.unit}{budget.amount:g}"]
    parts += [f"dims{d}" for d in args.dims if d != "auto"]
    out = Path(args.out, "-".join([*parts, f"seed{seed}"]))
    flags = ["--task", "pusht", "--seed", seed, f"--{budget.unit}", budget.amount]
    flags += ["--dims", *args.dims, "--eval-every", args.eval_every, "--episodes", args.episodes]
    flags += given(args, "data", "demos", "batch", "device", "threads", "one_process")
    rows = finished("dbp_train.py", out, *flags, *experiment.stage1)
    check_same_data(out, args)
    return out, rows


def check_same_data(out, args):
    """Refuse a run folder that was made with other data or another batch. Raises BadInput."""
    try:
        was = json.loads(read_bytes(out / "flags.json"))["flags"]
        told = {k: was[k] for k in ("data", "demos", "batch")}
    except (ValueError, RecursionError, LookupError, TypeError) as e:
        raise BadInput(f"{out}/flags.json is damaged or missing: {AGAIN}") from e
    other = [f"--{k} {value}" for k, value in told.items() if value != getattr(args, k)]
    if other:
        raise BadInput(
            f"{out} holds a run with {', '.join(other)}: give the same flags, or another --out"
        )


def pusht_score(experiment, nfe, seed, args):
    """Train a setting and score its last checkpoint, unless the table has the row already."""
    out, log = pusht_run(experiment, seed, args)
    row = {
        "setting": setting_of(experiment.name, nfe) if args.run is pusht else experiment.name,
        "seed": seed,
        "length": str(budget_of(args)),
        "episodes": args.episodes,
        "start_seed": args.start_seed,
        "dims": dims_of(args),
    }
    table = Path(args.results, experiment.result)
    if select(read(table), **row):
        return
    policy = prepare(Policy.load(out / "ckpt.pt", args.device or "cpu")[0], nfe)
    result, rolled = evaluate(
        policy,
        TASKS["pusht"],
        args.episodes,
        start_seed=args.start_seed,
        workers=not args.one_process,
    )
    obs = bench.random_obs(policy, 1)
    seconds = bench.timed(lambda: policy.act(obs), 10, policy.device)
    diversity = [r["diversity"] for r in log if "diversity" in r]
    figures = {
        "score": round(result["score"], 4),
        "low": round(result["score_95"][0], 4),
        "high": round(result["score_95"][1], 4),
        "success": result["success"],
        "nfe": result["nfe"],
        "act_ms": round(1e3 * float(np.median(seconds)), 2),
        **smoothness(rolled, policy.T_o, policy.T_a),
        "diversity": round(diversity[-1], 4) if diversity else None,
        "minutes": round(values(log, "minutes")[-1], 1),
        "steps": log[-1]["step"],
    }
    merge(table, [{**row, **figures, **about()}], row)


def print_settings(papers, result, args):
    """Print the table's rows of these flags beside the paper's scores. papers: setting -> score."""
    starts = Starts(episodes=args.episodes, first_seed=args.start_seed)
    rows = select(at(read(Path(args.results, result)), starts), length=budget_of(args))
    found = {r["setting"] for r in rows}
    print(setting_table(rows, {name: paper for name, paper in papers.items() if name in found}))


def pusht(args):
    """Table I's Push-T row: methods on one network, data and budget; score, latency, motion."""
    chosen = [e for e in PUSHT if e.name in args.methods]
    papers = {}
    for seed in args.seeds:
        for experiment in chosen:
            for nfe in experiment.nfe:
                pusht_score(experiment, nfe, seed, args)
                reported = experiment.paper if nfe == experiment.nfe[0] else None
                papers[setting_of(experiment.name, nfe)] = reported
    print_settings(papers, chosen[0].result, args)


def efficiency(args):
    """Table VI as curves: the scores over minutes and epochs of the runs that `pusht` makes."""
    task = TASKS["pusht"]
    per_epoch = steps_per_epoch(task, load(task, args.data, args.demos), args.batch)
    rows = []
    chosen = [e for e in PUSHT if e.name in args.methods]
    for experiment, seed in itertools.product(chosen, args.seeds):
        for r in pusht_run(experiment, seed, args)[1]:
            if "score" in r:
                row = {"method": experiment.name, "seed": seed}
                row["epochs"] = round(r["step"] / per_epoch, 2)
                row |= {k: r[k] for k in ("step", "minutes", "score")}
                rows.append(row)
    table = Path(args.results, "efficiency.csv")
    merge(table, rows, ("method", "seed"))
    print(f"{table}: {len(rows)} evaluations")


def ablate(args):
    """Appendix B on Push-T: K, temp, mode with 90 demonstrations; cost; beyond: flags of ours."""
    if args.what == "cost":
        rows = [{**row, **about()} for row in bench.cost(args)]
        merge(Path(args.results, ABLATE_COST[0].result), rows, ABLATE_COST[0].keys)
        return
    experiments = ABLATIONS[args.what]
    chosen = chosen_settings(experiments, args)
    if not budget_of(args):
        args.epochs = experiments[0].paper_budget.amount
    for seed in args.seeds:
        for experiment in chosen:
            pusht_score(experiment, 1, seed, args)
    print_settings({e.name: e.paper for e in experiments}, experiments[0].result, args)


def chosen_settings(experiments, args):
    """The settings of an ablation that --settings names, else all that can be run."""
    possible = {e.name: e for e in experiments if not e.removed}
    names = args.settings or list(possible)
    unknown = [name for name in names if name not in possible]
    if unknown:
        raise BadInput(
            f"--settings {', '.join(unknown)}: `ablate {args.what}` can run {', '.join(possible)}"
        )
    return [possible[name] for name in names]


def multimodal(args):
    """Share of modes each method covers: at the toy fork, and at Push-T's symmetric states."""
    table = Path(args.results, MULTIMODAL[0].result)
    rows = []
    plans = {}
    drawn_runs = []  # what the picture shows: the first seed of each method
    chosen = [e for e in MULTIMODAL if e.name in args.methods]
    for experiment, seed in itertools.product(chosen, args.seeds):
        found, drawn = modes_of(experiment, seed, args)
        rows += [{**row, **about()} for row in found]
        if seed == args.seeds[0]:
            plans[experiment.name] = drawn
            steps = pusht_run(experiment, seed, args)[1][-1]["step"]
            drawn_runs.append({"method": experiment.name, "seed": seed, "steps": steps, **about()})
    merge(table, rows, ("task", "setting", "seed"))
    write_csv(table.with_name("multimodal_plans.csv"), drawn_runs)
    modes.save_plans(table.with_name("multimodal_plans.npz"), plans)
    print(modes_table(rows, args.methods))


def modes_of(experiment, seed, args):
    """The rows of one method and seed at the fork and on Push-T, and the plans to be drawn."""
    at_fork = Path(args.out, f"fork-{experiment.name}-seed{seed}.pt")
    if not at_fork.exists():
        modes.fit_fork(experiment.name, seed, steps=args.fork_steps).save(at_fork)
    on_pusht = pusht_run(experiment, seed, args)[0] / "ckpt.pt"
    rows = []
    drawn = []
    for task, path, shares_of in (
        ("fork", at_fork, modes.fork_shares),
        ("pusht", on_pusht, modes.pusht_shares),
    ):
        shares, none, plans = shares_of(prepare(Policy.load(path)[0]))
        row = {"task": task, "setting": experiment.name, "seed": seed}
        rows.append({**row, **modes.coverage(shares, none)})
        drawn.append(plans)
    return rows, drawn


# ---- Stage 2 ------------------------------------------------------------------------------------


def stage2_names():
    """What `stage2 --tasks` may name: the kinds of policies that Stage 2 begins from."""
    kinds = [e for e in STAGE2 if not e.removed]
    names = [e.name.removesuffix("-no-anchor").removesuffix("-anchor") for e in kinds]
    return list(dict.fromkeys(names))


def stage2_experiment(name, anchor):
    """The experiment of a name of stage2_names(), with or without the anchor."""
    wanted = [name, f"{name}-anchor"] if anchor else [f"{name}-no-anchor"]
    for experiment in STAGE2:
        if experiment.name in wanted:
            return experiment
    raise BadInput(f"{name} is not run with{'' if anchor else 'out'} the anchor: leave it out")


def stage2(args):
    """Improve policies by Stage 2, with Stage 1 where there is no checkpoint; scores, curves."""
    chosen = [stage2_experiment(name, not args.no_anchor) for name in args.tasks]
    for experiment, seed in itertools.product(chosen, args.seeds):
        stage2_run(experiment, seed, args)


def is_trial(args):
    """Whether flags were given that make a run of Stage 2 another than the table's."""
    lengths = (args.steps, args.num_envs, args.num_steps, args.num_iterations)
    lengths += (args.noise_episodes, args.episodes)
    return any(lengths) or args.dims != ["auto"]


def stage2_run(experiment, seed, args):
    """One seed of Stage 2: the checkpoint it begins from, the run, its curve, its final scores."""
    name = f"{experiment.name}-trial" if is_trial(args) else experiment.name
    episodes = args.episodes or experiment.starts[0].episodes
    before = stage1_checkpoint(experiment, seed, args)
    out = Path(args.out, f"{name}-seed{seed}")
    flags = ["--init", before, "--seed", seed, "--episodes", episodes]
    flags += given(args, "num_envs", "num_steps", "num_iterations", "noise_episodes")
    flags += given(args, "device", "threads", "one_process")
    log = finished("dbpo_ppo.py", out, *flags, *experiment.stage2)
    add_curve(Path(args.results, experiment.curve), f"{name}-seed{seed}", log)
    table = Path(args.results, experiment.result)
    for starts in experiment.starts:
        row = {
            "setting": name,
            "seed": seed,
            "episodes": args.episodes or starts.episodes,
            "start_seed": starts.first_seed,
        }
        if not select(read(table), **row):
            row |= change(before, out / "ckpt.pt", row["episodes"], row["start_seed"], args)
            row |= {"env_steps": log[-1]["step"], "minutes": round(values(log, "minutes")[-1], 1)}
            merge(table, [{**row, **about()}], experiment.keys)
            print(f"{name}, seed {seed}: {row['before']:g} before, {row['after']:g} after")


def stage1_checkpoint(experiment, seed, args):
    """The checkpoint that a run of Stage 2 begins from, trained now if there is none."""
    if experiment.stage1_seed is not None:
        seed = experiment.stage1_seed
    steps = args.steps or experiment.budget.amount
    out = Path(args.out, f"stage1-{experiment.task}-steps{steps:g}-seed{seed}")
    flags = ["--task", experiment.task, "--seed", seed, "--steps", steps, "--dims", *args.dims]
    flags += given(args, "data", "device", "threads", "one_process")
    finished("dbp_train.py", out, *flags, *experiment.stage1)
    return out / "ckpt.pt"


def add_curve(table, run, log):
    """Put the evaluations of a run into a table of curves, in the place of an earlier copy.

    noisy: the mean score of the training episodes between two evaluations, which act with noise.
    """
    own = []
    noisy = []  # the scores with noise since the last evaluation
    for r in log:
        if "return" in r:
            noisy.append(r["return"])
        if "iteration" in r and "score" in r:
            own.append({"run": run, **{k: r[k] for k in SCORE_COLUMNS if k in r}})
            own[-1]["noisy"] = np.mean(noisy).item() if noisy else None
            noisy = []
    merge(table, own, ["run"])


def change(before, after, episodes, start_seed, args):
    """The figures of two checkpoints on the same starts, as columns of stage2.csv."""
    columns = {}
    for when, path in (("before", before), ("after", after)):
        policy = prepare(Policy.load(path, args.device or "cpu")[0])
        task = task_named(policy.task)
        result, rolled = evaluate(
            policy,
            task,
            episodes,
            start_seed=start_seed,
            workers=not args.one_process,
        )
        digits = 1 if task.score == "sum" else 4
        columns[when] = round(result["score"], digits)
        columns[f"{when}_low"] = round(result["score_95"][0], digits)
        columns[f"{when}_high"] = round(result["score_95"][1], digits)
        if "success" in result:
            columns[f"success_{when}"] = result["success"]
            jerk = smoothness(rolled, policy.T_o, policy.T_a)["jerk"]
            columns[f"jerk_{when}"] = round(jerk, 2)
    return columns


# ---- what is done and what is missing -----------------------------------------------------------


def key_rows(experiment, seed):
    """The key columns of the rows that a seed of an experiment leaves in its table."""
    row = {"seed": seed, "task": experiment.task, "flags": experiment.name, "dims": "auto"}
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
        text = f"{e.group:<11} {e.name:<33} {str(e.budget or ''):<13}"
        text += f"done: {words(done):<9} missing: {words(missing):<9}"
        if e.removed:
            text += f"({e.removed})"
        elif missing:
            text += e.command
        print(text.rstrip())
    print(f"{count} runs are missing")


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
        name = f"{experiment.name}, seed {seed}"
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
        p.add_argument("--batch", type=int, default=32, help="observations a step, B")
    p.add_argument(
        "--dims", nargs="+", default=["auto"], metavar="C", help="U-Net channels; see dbp_train.py"
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
            "--methods", nargs="+", choices=tuple(COMPARED), default=list(COMPARED), help="methods"
        )
        if run is multimodal:
            p.add_argument(
                "--fork-steps", type=int, default=1500, help="optimiser steps at the toy fork"
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
    add_clouds(sub)
    p_queue = add_command(sub, "queue", queue)
    p_queue.add_argument("--out", default="runs", help="folder of the run folders")
    p_queue.add_argument("--cores", type=int, default=1, metavar="N", help="runs at a time")
    p_queue.add_argument(
        "--runs", type=int, metavar="N", help="stop after N runs; all if not given"
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
