"""The paper's Table II, point clouds: its protocol, and a survey of every task.

The protocol takes the mean of a run's five best evaluations, which is biased upwards, so the last
checkpoint's success always stands beside it.
"""

import functools
import math
import os
import time
from pathlib import Path

import numpy as np

import experts
from commands import BadInput
from data import load
from download import find
from envs import make_env, task_named, worker_pool
from experiments import CLOUDS, POINTCLOUD, SURVEY
from files import atomic
from formats import read as read_arrays
from report import summary
from reproduce_runs import (
    BATCH,
    HERE,
    about,
    dims_of,
    finished,
    given,
    network_of,
    steps_per_epoch,
    trial,
    values,
)
from tables import merge, read
from task_clouds import run_script

EXPERT_SEED = 1_000_000  # the first start seed of demonstrations
TRIAL_SEED = 3_000_000  # the first start seed of those that scripted policies are tried at


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
    flags += ["--eval-every", max(round(args.every * per_epoch), 1)]
    flags += ["--dims", *network_of(args, task.T_p)]
    flags += given(args, "device", "threads", "one_process")
    other = changed(experiment, args)
    out = Path(args.out, trial(f"{task.name}-epochs{epochs:g}-seed{seed}", *other))
    rows = finished("dbp_train.py", out, *flags)
    scores = values(rows, "score")
    best = sorted(scores)[-args.top :]
    row = {
        "task": trial(task.name, *other),
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


def changed(experiment, args):
    """Whether demonstrations, batch and episodes are others than the table's."""
    starts = experiment.starts[0]
    return args.demos != experiment.demos, args.batch != BATCH, args.episodes != starts.episodes


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
