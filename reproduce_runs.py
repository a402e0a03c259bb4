"""What reproduce.py's commands share: a run that is never made twice, and what its row says."""

import datetime
import os
import platform
import sys
from pathlib import Path

from commands import BadInput
from data import Windows
from envs import run_program
from experiments import Budget
from runs import commit, read_log
from tables import Row

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
