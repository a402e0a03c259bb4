"""Push-T's experiments: methods by score and time, ablations, and the modes that are covered."""

import itertools
from pathlib import Path

import bench
import modes
from baselines import prepare
from chapter_ablations import setting_table
from chapter_pusht import modes_table
from commands import BadInput
from data import load
from envs import TASKS
from experiment_row import Starts
from experiments import ABLATE_COST, ABLATIONS, MULTIMODAL, PUSHT, PUSHT_CONVERGED
from policy import Policy
from reproduce_runs import (
    BATCH,
    about,
    budget_of,
    dims_of,
    finished,
    given,
    network_of,
    scored,
    steps_per_epoch,
    trial,
)
from tables import at, merge, read, select, setting_of

FORK_STEPS = 1500  # optimiser steps at the toy fork


def pusht_run(experiment, seed, args):
    """Train a setting on Push-T unless it is done. Returns the run folder and its log's rows."""
    budget = budget_of(args)
    name = experiment.same_run_as or experiment.name
    parts = ["pusht", name.replace(", ", "-").replace(" ", ""), f"{budget.unit}{budget.amount:g}"]
    parts += [f"dims{d}" for d in args.dims if d != "auto"]
    out = Path(args.out, trial("-".join([*parts, f"seed{seed}"]), is_trial(experiment, args)))
    flags = ["--task", "pusht", "--seed", seed, f"--{budget.unit}", budget.amount]
    dims = network_of(args, TASKS["pusht"].T_p)
    flags += ["--dims", *dims, "--eval-every", args.eval_every, "--episodes", args.episodes]
    flags += given(args, "data", "demos", "batch", "device", "threads", "one_process")
    return out, finished("dbp_train.py", out, *flags, *experiment.stage1)


def is_trial(experiment, args):
    """Whether flags were given that make a run another than the table's."""
    return bool(args.data) or args.demos != experiment.demos or args.batch != BATCH


def pusht_score(experiment, nfe, seed, args):
    """Train a setting and score its last checkpoint, unless the table has the row already.

    Returns the setting's name in the table.
    """
    name = setting_of(experiment.name, nfe) if args.run is pusht else experiment.name
    row = {
        "setting": trial(name, is_trial(experiment, args)),
        "seed": seed,
        "length": str(budget_of(args)),
        "episodes": args.episodes,
        "start_seed": args.start_seed,
        "dims": dims_of(args),
    }
    table = Path(args.results, experiment.result)
    if not select(read(table), **row):
        out, log = pusht_run(experiment, seed, args)
        policy = prepare(Policy.load(out / "ckpt.pt", args.device or "cpu")[0], nfe)
        figures, _ = scored(policy, TASKS["pusht"], log, args.episodes, args.start_seed, args)
        merge(table, [{**row, **figures, **about()}], row)
    return row["setting"]


def print_settings(papers, result, args):
    """Print the table's rows of these flags beside the paper's scores. papers: setting -> score."""
    starts = Starts(episodes=args.episodes, first_seed=args.start_seed)
    rows = at(read(Path(args.results, result)), starts)
    rows = select(rows, length=budget_of(args), dims=dims_of(args))
    found = {r["setting"] for r in rows}
    print(setting_table(rows, {name: paper for name, paper in papers.items() if name in found}))


def pusht(args):
    """Table I's Push-T row: methods on one network, data and budget; score, latency, motion."""
    chosen = [e for e in PUSHT_CONVERGED if e.name in args.methods]  # of any length
    papers = {}
    for seed in args.seeds:
        for experiment in chosen:
            for nfe in experiment.nfe:
                reported = experiment.paper if nfe == experiment.nfe[0] else None
                papers[pusht_score(experiment, nfe, seed, args)] = reported
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
    changed = (is_trial(experiment, args) for experiment in chosen)
    table = Path(args.results, trial("efficiency", *changed)).with_suffix(".csv")
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
    papers = {
        pusht_score(experiment, 1, seed, args): experiment.paper
        for seed, experiment in itertools.product(args.seeds, chosen)
    }
    print_settings(papers, experiments[0].result, args)


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
    rows = []
    plans = {}
    drawn_runs = []  # what the picture shows: the first seed of each method
    chosen = [e for e in MULTIMODAL if e.name in args.methods]
    changed = [is_trial(experiment, args) for experiment in chosen]
    name = trial("multimodal", *changed, args.fork_steps != FORK_STEPS)
    table = Path(args.results, f"{name}.csv")
    for experiment, seed in itertools.product(chosen, args.seeds):
        found, drawn = modes_of(experiment, seed, args)
        rows += [{**row, **about()} for row in found]
        if seed == args.seeds[0]:
            plans[experiment.name] = drawn
            steps = pusht_run(experiment, seed, args)[1][-1]["step"]
            drawn_runs.append({"method": experiment.name, "seed": seed, "steps": steps, **about()})
    merge(table, rows, ("task", "setting", "seed"))
    merge(table.with_name(f"{name}_plans.csv"), drawn_runs, ("method",))
    drawn = table.with_name(f"{name}_plans.npz")
    before = modes.load_plans(drawn) if drawn.exists() else {}
    modes.save_plans(drawn, before | plans)
    print(modes_table(rows, args.methods))


def modes_of(experiment, seed, args):
    """The rows of one method and seed at the fork and on Push-T, and the plans to be drawn."""
    at_fork = Path(args.out, f"fork-{experiment.name}-steps{args.fork_steps}-seed{seed}.pt")
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
