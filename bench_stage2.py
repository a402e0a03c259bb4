"""Time Stage 2 as it runs: `python bench.py ppo`."""

import startup  # noqa: F401 - first, see there
from startup import tied

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from commands import BadInput
from envs import task_named
from made_up import make_policy
from runs import read_log
from unet import UNet1d

HERE = Path(__file__).parent


def stage2(calls):
    """dbpo_ppo.py by the command line's flags, with `calls` generator calls an action.

    The authors' release makes two calls on the same (o, z). Only the actor is changed, which calls
    embed() and generate() itself: the anchor and the evaluation go by forward(), as ever.
    """
    import dbpo_ppo

    generate = UNet1d.generate

    def several(net, z, h):
        return sum(generate(net, z, h) for _ in range(calls)) / calls

    def forward(net, z, cond):
        return generate(net, z, net.embed(cond))

    UNet1d.generate = several
    UNet1d.forward = forward
    dbpo_ppo.train(dbpo_ppo.parse())


def stage2_run(args, init, out, calls):
    """Run stage2(calls) for four iterations in a process of its own.

    Returns the flags it ran with, and its log's rows but for the first iteration's.
    """
    flags = ["--init", init, "--out", out, "--device", args.device, "--num-iterations", 4]
    flags += [
        "--critic-warmup",
        0,
        "--sigma",
        0.1,
        "--lr",
        1e-9,
    ]  # nothing is measured, nothing moves
    flags += ["--eval-every", 0, "--episodes", 1]
    for name in ("num_envs", "num_steps", "threads"):
        if getattr(args, name):
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    if args.one_process:
        flags.append("--one-process")
    code = f"import bench_stage2, commands; commands.cli(lambda: bench_stage2.stage2({calls}))"
    command = [sys.executable, "-c", code, *map(str, flags)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, **tied())
    if done.returncode:
        raise BadInput(f"dbpo_ppo.py failed: {last_line(done.stderr)}")
    ran_with = json.loads((out / "flags.json").read_text())["flags"]
    return ran_with, [row for row in read_log(out) if "update_s" in row][1:]


def rates(rows, flags, T_a):
    """Rates and shares of a Stage-2 iteration, from the medians of the log's rows.

    update_samples_per_s: of the actor's passes, in the time of all of the update, the critic's too.
    """
    simulator = np.median([row["sim_s"] for row in rows])
    rollout = np.median([row["rollout_s"] for row in rows])
    update = np.median([row["update_s"] for row in rows])
    chunks = flags["num_envs"] * flags["num_steps"]
    whole = rollout + update
    return {
        "rollout_env_steps_per_s": round(chunks * T_a / rollout),
        "update_samples_per_s": round(chunks * flags["update_epochs"] / update),
        "share_simulator": round(simulator / whole, 3),
        "share_network": round((rollout - simulator) / whole, 3),
        "share_update": round(update / whole, 3),
        "iteration_s": round(whole, 2),
    }


def ppo(args):
    """Time dbpo_ppo.py on an untrained policy, with one generator call a sample and with two.

    The two take turns. Their logs say how long each iteration spent in the simulator, in the rest
    of the roll-out (network) and in the update.
    """
    task = task_named(args.task)
    rows = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        init = Path(folder, "init.pt")
        make_policy(args.dims, "cpu", task).save(init)
        for turn in range(args.turns):
            for calls in rows:
                out = Path(folder, f"{calls}-{turn}")
                flags, own = stage2_run(args, init, out, calls)
                rows[calls] += own
    one = rates(rows[1], flags, task.T_a)
    two = rates(rows[2], flags, task.T_a)
    update_rate_ratio = two["update_samples_per_s"] / one["update_samples_per_s"]
    return {
        "num_envs": flags["num_envs"],
        "num_steps": flags["num_steps"],
        "update_epochs": flags["update_epochs"],
        "minibatch_size": flags["minibatch_size"],
        "one_call": one,
        "two_calls": two,
        "iteration_ratio": round(two["iteration_s"] / one["iteration_s"], 3),
        "update_rate_ratio": round(update_rate_ratio, 3),
    }


def last_line(text):
    """The last line of what a process wrote: its error."""
    return text.strip().splitlines()[-1] if text.strip() else "it wrote nothing"
