"""What reproduce.py's commands share: a run that is never made twice, and what its row says."""

import contextlib
import datetime
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

import dbp_flags
import dbp_train
import dbpo_flags
import dbpo_ppo
from commands import BadInput, flags_of, spelled
from data import Windows
from dbp_flags import SMALL_DIMS, TINY_DIMS
from envs import run_program
from evaluate import evaluate, smoothness
from experiment_row import Budget
from files import read_bytes
from made_up import random_obs
from runs import commit, read_log
from tables import Row, read, select
from timing import timed

HERE = Path(__file__).parent
BATCH = 32  # observations a step, of all experiments but the suites
TRAINERS = {  # the script: its module, and what fills in the defaults of its flags
    "dbp_train.py": (dbp_train, dbp_flags.resolve),
    "dbpo_ppo.py": (dbpo_ppo, dbpo_flags.resolve),
}
AGAIN = "move the folder away, and the run is made again"


def finished(script, out, *flags):
    """Run a trainer into the run folder out, go on with it, or do nothing if it is finished.

    Returns the rows of its log. Raises BadInput if the trainer fails, also because another process
    writes the folder, if the run there was made with other flags, and if the log is damaged.
    """
    out = Path(out)
    if (out / "log.csv").exists():
        check_same(script, out, flags)
    else:
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


def check_same(script, out, flags):
    """Refuse a finished run that was made with other flags. Raises BadInput.

    Files may have moved: of --data the name alone is compared, of --init nothing. What changes no
    weight, such as --episodes, may differ.
    """
    try:
        was = dict(json.loads(read_bytes(out / "flags.json"))["flags"])
    except (ValueError, RecursionError, LookupError, TypeError) as e:
        raise BadInput(f"{out}/flags.json is damaged or missing: {AGAIN}") from e
    trainer, resolve = TRAINERS[script]
    args = trainer.parse([str(flag) for flag in flags])
    with contextlib.redirect_stdout(None):
        resolve(args)  # the defaults, too
    now = json.loads(json.dumps(flags_of(args)))  # a tuple becomes a list, as it did
    for told in (was, now):
        told["data"] = Path(told.get("data") or "").name
    free = trainer.FREE_ON_RESUME - {"data", "num_iterations"}
    other = [spelled(name) for name in now if name not in free and was.get(name) != now[name]]
    if other:
        raise BadInput(
            f"{out} holds a run with other {', '.join(other)}: give the same, or another --out"
        )


def trial(name, *changed):
    """An experiment's name, with -trial where a flag that makes it another one was given."""
    return f"{name}-trial" if any(changed) else name


def missing_rows(table, name, seed, experiment, episodes=None):
    """The key columns of the rows, one for each set of starts, that a table does not hold yet.

    name: the experiment's, or its trial's. episodes: instead of the experiment's.
    """
    rows = [
        {
            "setting": name,
            "seed": seed,
            "episodes": episodes or starts.episodes,
            "start_seed": starts.first_seed,
        }
        for starts in experiment.starts
    ]
    return [row for row in rows if not select(read(table), **row)]


def values(log, name):
    """A column of a log, of the rows that have it. Raises BadInput if none has."""
    found = [row[name] for row in log if name in row]
    return found or [log[-1][name]]


def scored(policy, task, log, episodes, start_seed, args):
    """The figures of a trained policy, as columns of its row, and all that evaluate tells."""
    result, rolled = evaluate(
        policy, task, episodes, start_seed=start_seed, workers=not args.one_process
    )
    obs = random_obs(policy, 1)
    seconds = timed(lambda: policy.act(obs), 10, policy.device)
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
    return figures, result


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


def network_of(args, T_p):
    """The channels to train with: on a GPU, too, those that are the default on a CPU."""
    if args.dims != ["auto"]:
        return args.dims
    return SMALL_DIMS if T_p >= 8 else TINY_DIMS


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
    to_end = task.stage1.get("to_end", False)
    windows = Windows(episodes, task.T_o, task.T_p, task.T_a, to_end=to_end)
    return max(len(windows) // batch, 1)
