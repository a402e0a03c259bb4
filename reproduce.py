"""The paper's tables by command, its rows beside ours; every command goes on where it was interrupted.

  python reproduce.py survey                                     every point-cloud task once: expert, cloud, training
  python reproduce.py pointcloud --tasks metaworld-door-open --seeds 0 --epochs 100 --every 50
  python reproduce.py pusht --minutes 10                         Table I's Push-T row: all methods, equal minutes
  python reproduce.py efficiency --minutes 10                    the same runs as curves (Table VI)
  python reproduce.py ablate K --epochs 100                      or temp, mode, cost (appendix B), beyond (flags of ours)
  python reproduce.py multimodal --minutes 10                    modes that each method covers

`pointcloud` is Table II. Its protocol takes the mean of a run's five best evaluations, which is biased upwards; the last
checkpoint's success always stands beside it. All other scores are of the last checkpoint.
"""
import argparse
import csv
import datetime
import functools
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import bench
import experts
import modes
from baselines import prepare
from data import Chunks, find, load
from dbp_train import loss_of
from envs import METAWORLD, TASKS, task_named
from evaluate import START_SEED, evaluate, seeds_of, smoothness
from pointcloud import contact_sheet
from policy import Policy
from runs import BadInput, Parser, above_zero, atomic, check_device, cli, commit, read_log, write_csv

HERE = Path(__file__).parent
CLOUDS = [name for name, task in TASKS.items() if task.points]
COLUMNS = ("adroit-hammer", "adroit-door", "adroit-pen", *METAWORLD)
# Table II of the paper: success in per cent, mean of 3 seeds, the mean of all 37 tasks last; OMP and MP1 as quoted there
TABLE_2 = {"DBP, the paper": (100, 70, 80, 91.7, 90.3, 75.2, 86.7, 88.4),
           "OMP, quoted there": (100, 68, 60, 89.7, 77.4, 62.5, 77.8, 82.3),
           "MP1, quoted there": (100, 69, 58, 88.2, 68.0, 58.1, 67.2, 78.9)}
PAPER_EPOCHS = {"adroit": 3000}         # 1000 for Meta-World
POSITIVE = ("epochs", "steps", "minutes", "every", "top", "episodes", "demos", "batch", "threads", "attempts", "fork_steps")


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


def given(args, *names):
    """Those flags that have a value, as dbp_train.py takes them."""
    return [x for k in names if (v := getattr(args, k)) for x in (f"--{k.replace('_', '-')}", v)[:1 if v is True else 2]]


def about():
    """What every result row tells of its making: date, commit, machine."""
    return {"date": datetime.date.today().isoformat(), "commit": commit(), "machine": f"{os.cpu_count()} {platform.machine()}"}


def merge(path, row, keys):
    """Put row into the CSV table at path, in the place of one that agrees on keys. Returns all rows, as strings."""
    rows = list(csv.DictReader(open(path))) if Path(path).exists() else []
    rows = [r for r in rows if any(r.get(k) != str(row[k]) for k in keys)] + [{k: str(v) for k, v in row.items()}]
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
    tasks, results = [task_named(name) for name in args.tasks], Path(args.results, "pointcloud.csv")
    if wrong := [task.name for task in tasks if not task.points]:
        raise BadInput(f"{', '.join(wrong)}: not seen as a point cloud")
    for seed in args.seeds:
        for task in tasks:
            data = demonstrations(task, args.demos, args.states)
            windows = len(Chunks(load(task, data, args.demos), task.T_o, task.T_p, task.T_a))
            per_epoch = max(windows // args.batch, 1)
            epochs = args.epochs or PAPER_EPOCHS.get(task.group, 1000)
            steps, out = math.ceil(epochs * per_epoch), Path(args.out, f"{task.name}-epochs{epochs:g}-seed{seed}")
            rows = trained(out, "--task", task.name, "--data", data, "--demos", args.demos, "--steps", steps, "--batch",
                           args.batch, "--seed", seed, "--eval-every", max(round(args.every * per_epoch), 1),
                           "--episodes", args.episodes, "--dims", *args.dims, *given(args, "device", "threads", "one_process"))
            scores = [r["score"] for r in rows if "score" in r]
            best = sorted(scores)[-args.top:]
            table = merge(results, {"task": task.name, "group": task.group, "seed": seed, "last": scores[-1],
                                    "top": np.mean(best).round(4), "of": f"{len(best)} of {len(scores)}",
                                    "episodes": args.episodes, "epochs": f"{epochs:g}", "steps": steps, "demos": args.demos,
                                    "dims": " ".join(map(str, args.dims)), "minutes": round(rows[-1]["minutes"], 1),
                                    **about()}, ("task", "seed", "epochs", "dims"))
            print(f"{task.name}, seed {seed}: last {scores[-1]:.2f}, mean of the best {len(best)} of {len(scores)} "
                  f"evaluations {np.mean(best):.2f}", flush=True)
    print(summary(table))


def summary(rows):
    """The rows of results/pointcloud.csv as the paper's Table II in Markdown: per cent, mean over tasks of the means over
    seeds, ± the deviation over seeds, averaged; tasks and runs in a cell. The longest run of a task and seed counts."""
    rows = {(r["task"], r["seed"]): r for r in sorted(rows, key=lambda r: float(r["epochs"]))}.values()    # the longest run
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
                         f" (tasks {len(by_task)}, runs {sum(map(len, by_task.values()))})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def succeeds(name, seed):
    """Whether a Meta-World task's scripted policy solves the start of that seed."""
    return bool(experts.scripted(task_named(name), seed)[2])


def look(name, path):
    """A task's picture at a start (Meta-World: that of the first demonstration), its crop box, milliseconds a frame."""
    env = task_named(name).env()
    env.reset(seed=int(experts.read(path)["start_seed"][0]) if name.startswith("meta") else 0)
    t0 = time.perf_counter()
    for _ in range(10):
        env.observe()
    return env.render(), env.box, 1e2 * (time.perf_counter() - t0)


def survey(args):
    """Every task once: the expert's success rate, demonstrations, their clouds, a few training steps, an episode."""
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
    fig = contact_sheet(sheet)
    atomic(args.png, lambda f: fig.savefig(f, format="png", dpi=75))
    print(f"drawn: {args.png}")


# ---- Push-T: methods and ablations ---------------------------------------------------------------------------------

PAPER_PUSHT = {"dbp, 1 NFE": 0.87, "diffusion, 100 NFE": 0.85}
METHODS = {"dbp": (1,), "diffusion": (100, 10), "meanflow": (1,), "bc": (1,)}      # and the NFE they are scored at
FLAGS = {m: ("--method", m, "--K", 1 if m == "meanflow" else 4) for m in METHODS}   # the better of K 1 and 4 for each
# settings as flags, the paper's scores where its text gives them, its epochs. The sets of the last two temperature
# settings are not in the text: these are ours.
TEMPS = {"0.02": (0.02,), "0.05": (0.05,), "0.2": (0.2,), "default": (0.02, 0.05, 0.2), "wide": (0.02, 0.2, 2.0),
         "dense": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)}
BEYOND = ("K 4", "schedule constant", "spread 1", "temp-start 4", "temp-start 16", "scale observation", "positives 4",
          "memory 16", "temp-start 4, memory 16")                           # K 4: the paper's method
ABLATIONS = {
    "K": ({f"K {k}": ("--K", k) for k in (1, 2, 4, 8, 16)}, {}, 100),
    "temp": ({f"tau {name}": ("--temp", *taus) for name, taus in TEMPS.items()},
             dict(zip((f"tau {name}" for name in TEMPS), (0.758, 0.864, 0.873, 0.858, 0.849, 0.817))), 100),
    "mode": ({"chunk": ("--mode", "chunk"), "step": ("--mode", "step")}, {"chunk": 0.890, "step": 0.845}, 200),
    "beyond": ({name: tuple(f"--{name}".replace(", ", " --").split()) for name in BEYOND}, {}, 100)}


def length(args):
    """The one flag of steps, minutes, epochs that was given: its name and value."""
    return next((k, getattr(args, k)) for k in ("steps", "minutes", "epochs") if getattr(args, k))


def pusht_run(args, name, flags, seed):
    """Train one setting on Push-T unless it is done. Returns the run folder and its log's rows."""
    k, value = length(args)
    named = (name.replace(", ", "-").replace(" ", ""), f"{k}{value:g}", *[f"dims{d}" for d in args.dims if d != "auto"])
    out = Path(args.out, "-".join(("pusht", *named, f"seed{seed}")))
    rows = trained(out, "--task", "pusht", "--seed", seed, f"--{k}", value, "--dims", *args.dims, "--eval-every", args.eval_every,
                   "--episodes", args.episodes, *given(args, "data", "demos", "batch", "device", "threads", "one_process"), *flags)
    was = json.loads((out / "flags.json").read_text())["flags"]
    if other := [f"--{k} {was[k]}" for k in ("data", "demos", "batch") if was[k] != getattr(args, k)]:
        raise BadInput(f"{out} holds a run with {', '.join(other)}: give the same flags, or another --out")
    return out, rows


def pusht_score(args, out, rows, name, nfe, seed, table):
    """Score a run's last checkpoint at a number of evaluations an action, unless table has it. Returns all its rows."""
    row = {"setting": f"{name}, {nfe} NFE" if args.run is pusht else name, "seed": seed, "length": "{1:g} {0}".format(*length(args)),
           "episodes": args.episodes, "start_seed": args.start_seed, "dims": " ".join(map(str, args.dims))}
    old = list(csv.DictReader(open(table))) if table.exists() else []
    if any(all(r.get(k) == str(v) for k, v in row.items()) for r in old):
        return old
    policy = prepare(Policy.load(out / "ckpt.pt", args.device or "cpu")[0], nfe)
    result, rolled = evaluate(policy, TASKS["pusht"], args.episodes, start_seed=args.start_seed, workers=not args.one_process)
    obs = torch.zeros(1, policy.T_o, policy.obs_dim, device=policy.device)
    seconds = bench.timed(lambda: policy.act(obs), 10, policy.device)
    return merge(table, {**row, "score": round(result["score"], 4), "low": round(result["score_95"][0], 4),
                         "high": round(result["score_95"][1], 4), "success": result["success"], "nfe": result["nfe"],
                         "act_ms": round(1e3 * float(np.median(seconds)), 2), **smoothness(rolled, policy.T_o, policy.T_a),
                         "spread": next((round(r["spread"], 4) for r in reversed(rows) if "spread" in r), None),
                         "minutes": round(rows[-1]["minutes"], 1), "steps": rows[-1]["step"], **about()}, row)


def report(args, rows, settings, paper, stem):
    """Print the settings of the rows as Markdown beside the paper's scores; draw every seed, mean and paper."""
    from matplotlib.figure import Figure
    same = {"length": "{1:g} {0}".format(*length(args)), "episodes": args.episodes, "start_seed": args.start_seed}
    rows = [r for r in rows if all(r.get(k) == str(v) for k, v in same.items())]
    settings = [name for name in settings if any(r["setting"] == name for r in rows)]
    columns = ("success", *(("act_ms", "jerk", "disagreement") if args.run is pusht else ("spread",)), "minutes", "steps")
    lines = ["| setting | score | seeds | the paper | " + " | ".join(columns) + " |", "|---" * (4 + len(columns)) + "|"]
    fig = Figure(figsize=(1.2 + 1.1 * len(settings), 3.4), layout="constrained")
    ax = fig.add_subplot()
    for i, name in enumerate(settings):
        values, mean, half = seeds_of(rows, name)
        more = [f"{m:.3g}" if m < 1000 else f"{m:.0f}" for m in (seeds_of(rows, name, c)[1] for c in columns)]
        lines.append(f"| {name} | {mean:.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "") + " | "
                     + ", ".join(f"{v:.3f}" for v in values) + f" | {paper.get(name, '')} | " + " | ".join(more) + " |")
        ax.bar(i, mean, color="tab:blue", alpha=0.35)
        ax.plot([i] * len(values), values, "o", color="tab:blue", ms=4)
        if name in paper:
            ax.plot(i, paper[name], "x", color="tab:red", label="the paper" if name == next(iter(paper)) else None)
    ax.set(xticks=range(len(settings)), ylabel="score", ylim=(0, 1))
    ax.set_xticklabels([name.replace(", ", "\n") for name in settings], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    if paper:
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    atomic(Path(args.results, f"{stem}.png"), lambda f: fig.savefig(f, format="png", dpi=110))
    atomic(Path(args.results, f"{stem}.md"), lambda f: f.write(("\n".join(lines) + "\n").encode()))
    print("\n".join(lines))


def pusht(args):
    """Table I's Push-T row: methods on one network, data and budget; score, NFE, latency, jerk, plans' disagreement."""
    table = Path(args.results, "pusht_methods.csv")
    for seed in args.seeds:
        for method in args.methods:
            out, log = pusht_run(args, method, FLAGS[method], seed)
            for nfe in METHODS[method]:
                rows = pusht_score(args, out, log, method, nfe, seed, table)
    report(args, rows, [f"{m}, {nfe} NFE" for m in args.methods for nfe in METHODS[m]], PAPER_PUSHT, "pusht_methods")


def efficiency(args):
    """Table VI as curves: score over training minutes and over epochs, of the runs that `pusht` makes."""
    from matplotlib.figure import Figure
    task = TASKS["pusht"]
    per_epoch = max(len(Chunks(load(task, args.data, args.demos), task.T_o, task.T_p, task.T_a)) // args.batch, 1)
    rows = [{"method": method, "seed": seed, "epochs": round(r["step"] / per_epoch, 2),
             **{k: r[k] for k in ("step", "minutes", "score")}} for method in args.methods for seed in args.seeds
            for r in pusht_run(args, method, FLAGS[method], seed)[1] if "score" in r]
    fig = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, x in zip(fig.subplots(1, 2, sharey=True), ("minutes", "epochs")):
        for (i, method), seed in itertools.product(enumerate(args.methods), args.seeds):
            ax.plot(*zip(*[(r[x], r["score"]) for r in rows if (r["method"], r["seed"]) == (method, seed)]), color=f"C{i}",
                    lw=1, marker=".", ms=4, label=method if seed == args.seeds[0] else None)
        ax.set(xlabel=f"training {x}", ylabel="score", ylim=(0, 1))
        ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")
    write_csv(Path(args.results, "efficiency.csv"), rows)
    atomic(Path(args.results, "efficiency.png"), lambda f: fig.savefig(f, format="png", dpi=110))
    print(f"drawn: {args.results}/efficiency.png")


def multimodal(args):
    """Share of modes each method covers over 256 latents: at the toy fork, and at Push-T's symmetric states."""
    rows, found = [], {}
    for method in args.methods:
        for seed in args.seeds:
            out, ckpt = pusht_run(args, method, FLAGS[method], seed)[0], Path(args.out, f"fork-{method}-seed{seed}.pt")
            if not ckpt.exists():
                how = argparse.Namespace(method=method, K=4, temp=[0.2], mode="chunk", scale="batch", amp=False)
                modes.fit_fork(method, lambda *batch: loss_of(*batch[:3], how, batch[3])[0], seed,
                               steps=args.fork_steps).save(ckpt)
            at_fork, on_pusht = (prepare(Policy.load(path)[0]) for path in (ckpt, out / "ckpt.pt"))
            for task, (shares, none, drawn) in (("fork", modes.fork_shares(at_fork)), ("pusht", modes.pusht_shares(on_pusht))):
                rows.append({"task": task, "setting": method, "seed": seed, **modes.coverage(shares, none), **about()})
                if seed == args.seeds[0]:
                    found.setdefault(method, []).append(drawn)
    write_csv(Path(args.results, "multimodal.csv"), rows)
    fig = modes.sheet(found)
    atomic(Path(args.results, "multimodal.png"), lambda f: fig.savefig(f, format="png", dpi=90))
    lines = ["| task | method | modes covered | rarest mode | plans on no mode |", "|---|---|---|---|---|"]
    for task, method in itertools.product(("fork", "pusht"), args.methods):
        own = [r for r in rows if r["task"] == task]
        means = (seeds_of(own, method, k)[1:] for k in ("covered", "rarest", "on_none"))
        cells = [f"{m:.2f}" + ("" if np.isnan(h) else f" ± {h:.2f}") for m, h in means]
        lines.append(f"| {task} | {method} | {' | '.join(cells)} |")
    atomic(Path(args.results, "multimodal.md"), lambda f: f.write(("\n".join(lines) + "\n").encode()))
    print("\n".join(lines))


def ablate(args):
    """Appendix B on Push-T: K, temp, mode with 90 demonstrations; cost: Eq. 58, time and memory; beyond: flags of ours."""
    if args.what == "cost":
        return write_csv(Path(args.results, "ablate_cost.csv"), [{**r, **about()} for r in bench.cost(args)])
    settings, paper, epochs = ABLATIONS[args.what]
    if unknown := set(args.settings or ()) - set(settings):
        raise BadInput(f"--settings {' '.join(sorted(unknown))}: of ablate {args.what} there are {', '.join(settings)}")
    if not any((args.steps, args.minutes, args.epochs)):
        args.epochs = epochs
    table = Path(args.results, f"ablate_{args.what}.csv")
    for seed in args.seeds:
        for name in args.settings or settings:
            out, log = pusht_run(args, name, settings[name], seed)
            rows = pusht_score(args, out, log, name, 1, seed, table)
    report(args, rows, list(settings), paper, f"ablate_{args.what}")


def shared(s, episodes):
    """Add the flags of all commands that train and score."""
    s.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    s.add_argument("--episodes", type=int, default=episodes, help="episodes of an evaluation")
    s.add_argument("--batch", type=int, default=32, help="observations per step B")
    s.add_argument("--dims", nargs="+", default=["auto"], metavar="C", help="U-Net channels; see dbp_train.py")
    s.add_argument("--device", help="torch device; dbp_train.py's choice if not given")
    s.add_argument("--threads", type=int, help="CPU threads")
    s.add_argument("--one-process", action="store_true", help="evaluate with all simulators in one process")


def main():
    p = Parser(__doc__)
    p.set_defaults(device=None, **dict.fromkeys(POSITIVE))              # no command has all of these flags
    sub = p.add_subparsers(dest="command", required=True)
    for name, run in (("pointcloud", pointcloud), ("survey", survey)):
        s = sub.add_parser(name, help=run.__doc__.split("\n")[0], description=run.__doc__)
        s.set_defaults(run=run)
        s.add_argument("--tasks", nargs="+", default=CLOUDS, metavar="TASK", help="tasks; all 37 if not given")
        s.add_argument("--demos", type=int, default=10, help="demonstrations of each task")
        if run is pointcloud:
            s.add_argument("--states", help="Adroit: recorded states, see experts.py")
            shared(s, 20)
            s.add_argument("--epochs", type=float, help="passes over the data; the paper's 3000 (Adroit), 1000 if not given")
            s.add_argument("--every", type=float, default=200, help="epochs between evaluations")
            s.add_argument("--top", type=int, default=5, help="evaluations whose mean is the protocol's figure")
        else:
            s.add_argument("--attempts", type=int, default=20, help="starts the scripted policies are tried at")
            s.add_argument("--steps", type=int, default=20, help="training steps")
            s.add_argument("--png", default="figures/pointclouds.png", help="contact sheet of all clouds")
    for name, run in (("pusht", pusht), ("efficiency", efficiency), ("multimodal", multimodal), ("ablate", ablate)):
        s = sub.add_parser(name, aliases=["smoothness"] * (run is pusht), help=run.__doc__.split("\n")[0], description=run.__doc__)
        s.set_defaults(run=run)
        if run is ablate:
            s.add_argument("what", choices=(*ABLATIONS, "cost"), help="what varies")
            s.add_argument("--settings", nargs="+", help="those settings alone, such as 'K 4'; the table keeps the others")
        else:
            s.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS), help="methods")
        if run is multimodal:
            s.add_argument("--fork-steps", type=int, default=1500, help="optimiser steps at the toy fork")
        shared(s, 50)
        budget = s.add_mutually_exclusive_group()
        budget.add_argument("--minutes", type=float, default=None if run is ablate else 15, help="training minutes of each run")
        budget.add_argument("--steps", type=int, help="optimiser steps, instead")
        budget.add_argument("--epochs", type=float, help="passes over the data, instead; the paper's of an ablation if not given")
        s.add_argument("--data", help="demonstrations; see dbp_train.py")
        s.add_argument("--demos", type=int, default=90 if run is ablate else None, help="the first that many of them")
        s.add_argument("--start-seed", type=int, default=START_SEED, help="first start seed of the scores")
        s.add_argument("--eval-every", type=int, default=0 if run is ablate else 1000, help="steps between evaluations")
    for s in set(sub.choices.values()):
        s.add_argument("--out", default="runs", help="folder of the run folders")
        s.add_argument("--results", default="results", help="folder of tables and figures")
    args = p.parse_args()
    above_zero(args, *POSITIVE)
    check_device(args.device or "cpu")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    args.minutes = None if args.steps or args.epochs else args.minutes
    args.run(args)


if __name__ == "__main__":
    cli(main)
