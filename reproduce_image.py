"""Push-T from images: a training, its curve, and the scores of its last checkpoint."""

import itertools
from pathlib import Path

from baselines import prepare
from commands import BadInput
from data import load
from envs import TASKS
from evaluate import evaluate
from experiments import IMAGES
from policy import Policy
from reproduce_runs import BATCH, about, finished, given, missing_rows, trial, values
from runs import SCORE_COLUMNS
from tables import merge

EARLY = 1000  # steps in which a clump of hypotheses would show (note 25)


def image(args):
    """Push-T from images: small networks for many steps, scored on two sets of starts."""
    known = [e.name for e in IMAGES]
    unknown = [name for name in args.settings or () if name not in known]
    if unknown:
        raise BadInput(f"--settings {', '.join(unknown)}: choose from {', '.join(known)}")
    chosen = [e for e in IMAGES if e.name in (args.settings or known)]
    for experiment, seed in itertools.product(chosen, args.seeds):
        image_run(experiment, seed, args)


def image_run(experiment, seed, args):
    """Train a setting unless it is done; put its curve and its scores into the tables."""
    name = trial(experiment.name, args.steps, args.episodes, args.data)
    table = Path(args.results, experiment.result)
    rows = missing_rows(table, name, seed, experiment, args.episodes)
    if not rows:
        return
    steps = args.steps or experiment.budget.amount
    out = Path(args.out, f"pusht-image-{name.replace(', ', '-').replace(' ', '')}-seed{seed}")
    flags = ["--task", experiment.task, "--seed", seed, "--steps", steps]
    flags += ["--eval-every", experiment.eval_every, "--episodes", rows[0]["episodes"]]
    flags += ["--encoder", "small", *given(args, "data", "device", "threads", "one_process")]
    log = finished("dbp_train.py", out, *flags, *experiment.stage1)
    run = f"{name}, seed {seed}"
    scores = [{k: r[k] for k in SCORE_COLUMNS if k in r} for r in log if "score" in r]
    merge(Path(args.results, experiment.curve), [{"run": run, **s} for s in scores], ["run"])

    policy = prepare(Policy.load(out / "ckpt.pt", args.device or "cpu")[0])
    task = TASKS[experiment.task]
    early = [r["diversity"] for r in log if r["step"] <= EARLY and "diversity" in r]
    for row in rows:
        result, _ = evaluate(
            policy,
            task,
            row["episodes"],
            start_seed=row["start_seed"],
            workers=not args.one_process,
        )
        row |= {
            "steps": steps,
            "demos": len(load(task, args.data)),
            "batch": BATCH,
            "encoder": policy.shape["encoder"],
            "dims": " ".join(map(str, policy.shape["dims"])),
            "score": round(result["score"], 4),
            "score_low": round(result["score_95"][0], 4),
            "score_high": round(result["score_95"][1], 4),
            "success": result["success"],
            **{k: round(values(log, k)[-1], 4) for k in ("best", "mean", "diversity")},
            "least_diversity": round(min(early), 4),
            "minutes": round(values(log, "minutes")[-1], 1),
            **about(),
        }
        merge(table, [row], experiment.keys)
        print(f"{run}: score {row['score']:.3f} on {row['episodes']} starts", flush=True)
