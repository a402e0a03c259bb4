"""BlockPush, Kitchen, RoboMimic, UR5: scripted data, a training, a score with stages and modes."""

import itertools
from pathlib import Path

import experts
from baselines import prepare
from commands import BadInput
from data import load
from envs import task_named
from experiments_suites import SUITE, SUITES, batch_of, scene_of
from policy import Policy
from reproduce_clouds import EXPERT_SEED
from reproduce_runs import HERE, about, dims_of, finished, given, network_of, scored, trial
from tables import merge, read, select

SCENES = tuple(SUITE)
STAGES = ("p1", "p2", "p3", "p4")
MODES = 8  # that a row tells of, the most frequent


def suites(args):
    """Tasks with several stages or with arms: methods and settings on scripted data."""
    chosen = [e for e in SUITES if scene_of(e.task) in args.tasks]
    known = list(dict.fromkeys(e.name for e in chosen))
    unknown = [name for name in args.settings or () if name not in known]
    if unknown:
        raise BadInput(f"--settings {', '.join(unknown)}: choose from {', '.join(known)}")
    for seed, experiment in itertools.product(args.seeds, chosen):
        if experiment.name in (args.settings or known):
            suite_run(experiment, seed, args)


def recorded(scene, count, args):
    """The path of a scene's scripted demonstrations, recorded now where too few ship."""
    variety = SUITE[scene].variety
    shipped = HERE / "demos" / f"{scene}.npz"
    if shipped.exists() and len(load(task_named(scene), shipped)) >= count:
        return shipped
    out = Path(args.out, f"{scene}-{count}.npz")
    if not out.exists():
        more = {} if variety is None else {"variety": variety}
        out.parent.mkdir(parents=True, exist_ok=True)
        experts.from_expert(task_named(scene), count, out, start_seed=EXPERT_SEED, **more)
    return out


def suite_run(experiment, seed, args):
    """Train a setting unless it is done, and put its last checkpoint's figures into a row."""
    scene = scene_of(experiment.task)
    steps = args.steps or experiment.budget.amount
    demos = args.demos or experiment.demos
    starts = experiment.starts[0]
    row = {
        "task": experiment.task,
        "setting": trial(experiment.name, args.demos, args.batch),
        "seed": seed,
        "length": f"{steps:g} steps",
        "episodes": args.episodes or starts.episodes,
        "start_seed": starts.first_seed,
        "dims": dims_of(args),
    }
    table = Path(args.results, experiment.result)
    if select(read(table), **row):
        return
    name = f"{experiment.task}-{row['setting'].replace(' ', '')}-steps{steps:g}-seed{seed}"
    out = Path(args.out, name)
    flags = ["--task", experiment.task, "--data", recorded(scene, demos, args)]
    dims = network_of(args, task_named(experiment.task).T_p)
    flags += ["--demos", demos, "--steps", steps, "--seed", seed, "--dims", *dims]
    flags += ["--episodes", 1]  # the row's own evaluation follows
    flags += [*experiment.stage1, *given(args, "batch", "device", "threads", "one_process")]
    log = finished("dbp_train.py", out, *flags)
    policy = prepare(Policy.load(out / "ckpt.pt", args.device or "cpu")[0], experiment.nfe[0])
    task = task_named(experiment.task)
    figures, result = scored(policy, task, log, row["episodes"], starts.first_seed, args)
    modes = list(result.get("modes", {}).items())[:MODES]
    row |= {
        "demos": demos,
        "batch": args.batch or batch_of(experiment),
        **figures,
        **{name: result.get(name) for name in STAGES},
        "modes": " ".join(f"{name}:{share:.2f}" for name, share in modes),
        "mode_entropy": round(result["mode_entropy"], 3) if modes else None,
        "evaluation_s": round(result["seconds"], 1),
        **about(),
    }
    merge(table, [row], experiment.keys)
    print(f"{name}: score {row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", flush=True)
