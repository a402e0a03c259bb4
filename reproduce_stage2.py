"""Stage 2's experiments: what is improved, from which checkpoint, with which figures and curve."""

import itertools
from pathlib import Path

import numpy as np

from baselines import prepare
from commands import BadInput
from envs import task_named
from evaluate import evaluate, smoothness
from experiments_stage2 import STAGE2
from policy import Policy
from reproduce_runs import about, finished, given, missing_rows, network_of, trial, values
from runs import SCORE_COLUMNS
from tables import merge


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
    return any(lengths) or bool(args.data) or args.dims != ["auto"]


def stage2_run(experiment, seed, args):
    """One seed of Stage 2: the checkpoint it begins from, the run, its curve, its final scores."""
    name = trial(experiment.name, is_trial(args))
    episodes = args.episodes or experiment.starts[0].episodes
    table = Path(args.results, experiment.result)
    rows = missing_rows(table, name, seed, experiment, args.episodes)
    if not rows:
        return
    before = stage1_checkpoint(experiment, seed, args)
    out = Path(args.out, f"{name}-seed{seed}")
    flags = ["--init", before, "--seed", seed, "--episodes", episodes]
    flags += given(args, "num_envs", "num_steps", "num_iterations", "noise_episodes")
    flags += given(args, "device", "threads", "one_process")
    log = finished("dbpo_ppo.py", out, *flags, *experiment.stage2)
    add_curve(Path(args.results, experiment.curve), f"{name}-seed{seed}", log)
    for row in rows:
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
    dims = network_of(args, task_named(experiment.task).T_p)
    flags = ["--task", experiment.task, "--seed", seed, "--steps", steps, "--dims", *dims]
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
