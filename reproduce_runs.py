"""What reproduce.py's commands share: a run that is never made twice, and what its row says."""

import datetime
import os
import platform
import sys
from pathlib import Path

import numpy as np

from commands import BadInput
from data import Windows
from envs import run_program
from evaluate import evaluate, smoothness
from experiment_row import Budget
from made_up import random_obs
from runs import commit, read_log
from tables import Row
from timing import timed

HERE = Path(__file__).parent
AGAIN = "move the folder away, and the run is made again"


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
