"""The paper's tables by command, its rows beside ours; every command goes on where it was interrupted.

  python reproduce.py survey                                     every point-cloud task once: expert, cloud, training
  python reproduce.py pointcloud --tasks metaworld-door-open --seeds 0 --epochs 100 --every 50

`pointcloud` is Table II. Its protocol takes the mean of the five best evaluations of a run, which is biased upwards, as
the best of several tries at the same start states is; the last checkpoint's success always stands beside it.
"""
import csv
import datetime
import functools
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

import experts
from data import Chunks, find, load
from envs import METAWORLD, TASKS, task_named
from pointcloud import draw
from runs import BadInput, Parser, above_zero, atomic, cli, commit, read_log, write_csv

HERE = Path(__file__).parent
CLOUDS = [name for name, task in TASKS.items() if task.points]
COLUMNS = ("adroit-hammer", "adroit-door", "adroit-pen", *METAWORLD)
# Table II of the paper: success in per cent, mean of 3 seeds, the mean of all 37 tasks last; OMP and MP1 as quoted there
TABLE_2 = {"DBP, the paper": (100, 70, 80, 91.7, 90.3, 75.2, 86.7, 88.4),
           "OMP, quoted there": (100, 68, 60, 89.7, 77.4, 62.5, 77.8, 82.3),
           "MP1, quoted there": (100, 69, 58, 88.2, 68.0, 58.1, 67.2, 78.9)}
PAPER_EPOCHS = {"adroit": 3000}         # 1000 for Meta-World


def trained(out, *flags):
    """Train by dbp_train.py into the run folder out, or go on, or do nothing if it is done -> the rows of its log."""
    out = Path(out)
    if not (out / "log.csv").exists():
        command = [sys.executable, HERE / "dbp_train.py", "--out", out, *flags]
        if (out / "state.pt").exists():
            command.append("--resume")
        print(f"-- {' '.join(map(str, command[1:]))}", flush=True)
        if code := subprocess.run(list(map(str, command))).returncode:
            raise BadInput(f"training {out} ended with code {code}: its message stands above")
    return read_log(out)


def about():
    """What every result row tells of its making: date, commit, machine."""
    return {"date": datetime.date.today().isoformat(), "commit": commit(), "machine": f"{os.cpu_count()} {platform.machine()}"}


def merge(path, row, keys):
    """Put row into the CSV table at path, in the place of one that agrees on keys. Returns all rows, as strings."""
    rows = list(csv.DictReader(open(path))) if Path(path).exists() else []
    same = lambda r: all(r.get(k) == str(row[k]) for k in keys)
    rows = [r for r in rows if not same(r)] + [{k: str(v) for k, v in row.items()}]
    write_csv(path, rows)
    return rows


def demonstrations(task, episodes, states=None):
    """The task's data file, made now if there is none. Returns its path."""
    try:
        return find(task)
    except BadInput:
        out = HERE / "demos" / f"{task.name}.npz"
        lengths, tried = experts.clouds(task, episodes, out, states=states, start_seed=1_000_000)
        print(f"{out}: {len(lengths)} episodes of {tried} attempts", flush=True)
        return out


# ---- Table II ------------------------------------------------------------------------------------------------------

def pointcloud(args):
    """Train and score point-cloud tasks by the protocol; a row a run in the table, the summary at the end."""
    above_zero(args, "epochs", "every", "top", "episodes", "demos", "batch", "threads")
    tasks, results = [task_named(name) for name in args.tasks], Path(args.results, "pointcloud.csv")
    if wrong := [task.name for task in tasks if not task.points]:
        raise BadInput(f"{', '.join(wrong)}: not seen as a point cloud")
    device = ["--device", args.device] if args.device else []
    for seed in args.seeds:
        for task in tasks:
            data = demonstrations(task, args.demos, args.states)
            windows = len(Chunks(load(task, data, args.demos), task.T_o, task.T_p, task.T_a))
            per_epoch = max(windows // args.batch, 1)
            epochs = args.epochs or PAPER_EPOCHS.get(task.group, 1000)
            steps, out = math.ceil(epochs * per_epoch), Path(args.out, f"{task.name}-epochs{epochs:g}-seed{seed}")
            rows = trained(out, "--task", task.name, "--data", data, "--demos", args.demos, "--steps", steps, "--batch",
                           args.batch, "--seed", seed, "--eval-every", max(round(args.every * per_epoch), 1),
                           "--episodes", args.episodes, "--dims", *args.dims, *device,
                           *(["--threads", args.threads] if args.threads else []),
                           *(["--one-process"] if args.one_process else []))
            scores = [r["score"] for r in rows if "score" in r]
            best = sorted(scores)[-args.top:]
            table = merge(results, {"task": task.name, "group": task.group, "seed": seed, "last": scores[-1],
                                    f"top": np.mean(best).round(4), "of": f"{len(best)} of {len(scores)}",
                                    "episodes": args.episodes, "epochs": f"{epochs:g}", "steps": steps, "demos": args.demos,
                                    "dims": " ".join(map(str, args.dims)), "minutes": round(rows[-1]["minutes"], 1),
                                    **about()}, ("task", "seed", "epochs", "dims"))
            print(f"{task.name}, seed {seed}: last {scores[-1]:.2f}, mean of the best {len(best)} of {len(scores)} "
                  f"evaluations {np.mean(best):.2f}", flush=True)
    print(summary(table))


def summary(rows):
    """The rows of results/pointcloud.csv as the paper's Table II in Markdown: per cent, mean over tasks of the means over
    seeds, ± the deviation over seeds of one task's runs, averaged; how many tasks and runs a cell holds."""
    lines = ["| success, % | " + " | ".join((*COLUMNS, "all 37")) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{x:g}" for x in values) + " |" for name, values in TABLE_2.items()]
    for key, name in (("top", "DBP, here, best evaluations"), ("last", "DBP, here, last checkpoint")):
        cells = []
        for column in (*COLUMNS, None):
            by_task = {}
            for r in rows:
                if column in (None, r["group"], r["task"]):
                    by_task.setdefault(r["task"], []).append(100 * float(r[key]))
            if not by_task or (column is None and len(by_task) < len(CLOUDS)):
                cells.append("—")
                continue
            mean = np.mean([np.mean(v) for v in by_task.values()])
            spread = [np.std(v) for v in by_task.values() if len(v) > 1]
            cells.append(f"{mean:.1f}" + (f" ± {np.mean(spread):.1f}" if spread else "") +
                         f" ({len(by_task)} task{'s' * (len(by_task) > 1)}, {sum(map(len, by_task.values()))} runs)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---- survey --------------------------------------------------------------------------------------------------------

def succeeds(name, seed):
    """Whether a Meta-World task's scripted policy solves the start of that seed."""
    return bool(experts.scripted(task_named(name), seed)[2])


def look(name, path):
    """A task's own picture and its first demonstration's first cloud, for the contact sheet; milliseconds a frame."""
    env = task_named(name).env()
    env.reset(seed=int(experts.read(path)["start_seed"][0]) if name.startswith("meta") else 0)
    t0 = time.perf_counter()
    for _ in range(10):
        env.observe()
    return env.render(), env.box, 1e2 * (time.perf_counter() - t0)


def survey(args):
    """Every task once: the expert's success rate, demonstrations, their clouds, a few training steps, an episode."""
    above_zero(args, "attempts", "demos", "steps")
    results, sheet = Path(args.results, "pointcloud_survey.csv"), []
    done = {r["task"]: r for r in csv.DictReader(open(results))} if results.exists() else {}
    for name in args.tasks:
        task = task_named(name)
        path = demonstrations(task, args.demos)
        ep = load(task, path)
        xyz = ep.obs[:, -3 * task.points:].reshape(len(ep.obs), -1, 3)
        picture, box, ms = look(name, path)
        sheet.append((name, picture, xyz[0], box))
        if name in done:
            continue
        rate = "recorded"
        if task.group != "adroit":
            with ProcessPoolExecutor() as pool:
                seeds = range(3_000_000, 3_000_000 + args.attempts)
                rate = np.mean(list(pool.map(functools.partial(succeeds, name), seeds))).round(3)
        rows = trained(Path(args.out, f"survey-{name}"), "--task", name, "--data", path, "--steps", args.steps, "--episodes",
                       1, "--device", "cpu", "--dims", 64, 128)
        distinct = [len(np.unique(c, axis=0)) for c in xyz[::20]]
        low, high = xyz.min((0, 1)).round(2), xyz.max((0, 1)).round(2)
        merge(results, {"task": name, "group": task.group, "expert_success": rate, "attempts": args.attempts,
                        "demos": len(ep), "length": ep.lengths.mean().round(1), "distinct_points": np.mean(distinct).round(0),
                        "low": " ".join(map(str, low)), "high": " ".join(map(str, high)), "ms_a_frame": round(ms, 1),
                        "loss": round(rows[0]["loss"], 4), "s": round(rows[0]["s"], 3),
                        "episode_score": rows[-1]["score"], **about()}, ("task",))
        print(f"{name}: expert {rate} of {args.attempts}, {len(ep)} demonstrations of {ep.lengths.mean():.0f} steps, "
              f"{np.mean(distinct):.0f} distinct points, {ms:.1f} ms a frame", flush=True)
    contact_sheet(args.png, sheet)


def contact_sheet(path, sheet, columns=6):
    """One PNG of all tasks: what the camera sees beside the cloud. sheet: (name, picture, cloud (n, 3), box)."""
    from matplotlib.figure import Figure
    rows = math.ceil(len(sheet) / columns)
    fig = Figure(figsize=(3.2 * columns, 1.75 * rows), layout="constrained")
    for i, (name, picture, cloud, box) in enumerate(tqdm(sheet, desc="drawing", disable=None)):
        ax = fig.add_subplot(rows, 2 * columns, 2 * i + 1)
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name.removeprefix("metaworld-"), fontsize=8)
        ax = fig.add_subplot(rows, 2 * columns, 2 * i + 2, projection="3d", elev=30, azim=-30)
        draw(ax, cloud, box)
        ax.set(xticklabels=[], yticklabels=[], zticklabels=[])
    atomic(path, lambda f: fig.savefig(f, format="png", dpi=75))
    print(f"drawn: {path}")


def main():
    p = Parser(__doc__)
    sub = p.add_subparsers(dest="command", required=True)
    for name, run in (("pointcloud", pointcloud), ("survey", survey)):
        s = sub.add_parser(name, help=run.__doc__.split("\n")[0], description=run.__doc__)
        s.set_defaults(run=run)
        s.add_argument("--tasks", nargs="+", default=CLOUDS, metavar="TASK", help="tasks; all 37 if not given")
        s.add_argument("--demos", type=int, default=10, help="demonstrations of each task")
        s.add_argument("--out", default="runs", help="folder of the run folders")
        s.add_argument("--results", default="results", help="folder of the table")
        if run is pointcloud:
            s.add_argument("--states", help="Adroit: recorded states, see experts.py")
            s.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
            s.add_argument("--epochs", type=float, help="passes over the data; the paper's 3000 (Adroit), 1000 if not given")
            s.add_argument("--every", type=float, default=200, help="epochs between evaluations")
            s.add_argument("--top", type=int, default=5, help="evaluations whose mean is the protocol's figure")
            s.add_argument("--episodes", type=int, default=20, help="episodes of an evaluation")
            s.add_argument("--batch", type=int, default=32, help="observations per step B")
            s.add_argument("--dims", nargs="+", default=["auto"], metavar="C", help="U-Net channels; see dbp_train.py")
            s.add_argument("--device", help="torch device; dbp_train.py's choice if not given")
            s.add_argument("--threads", type=int, help="CPU threads")
            s.add_argument("--one-process", action="store_true", help="evaluate with all simulators in one process")
        else:
            s.add_argument("--attempts", type=int, default=20, help="starts the scripted policies are tried at")
            s.add_argument("--steps", type=int, default=20, help="training steps")
            s.add_argument("--png", default="figures/pointclouds.png", help="contact sheet of all clouds")
    args = p.parse_args()
    args.run(args)


if __name__ == "__main__":
    cli(main)
