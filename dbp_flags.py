"""The flags of Stage 1: what they mean, their defaults by task and device, and what is refused."""

import argparse
import math

import torch

import baselines
from commands import BadInput, above_zero, add_machine, check_device, check_seed, refuse_flags
from envs import defaults_of, task_list, task_named
from formats import MAX_GB
from task import check_horizons
from vision import KINDS, POOLS

PAPER_DIMS = (512, 1024, 2048)
SMALL_DIMS = (64, 128, 256)  # on a CPU (note 3)
TINY_DIMS = (64, 128)  # on a CPU, for chunks of fewer than 8 steps
DBP_DEFAULTS = {"K": 4, "temp": [0.2], "mode": "chunk", "spread": 0.0, "memory": 0}
DBP_ONLY = ("temp", "mode", "spread", "memory")  # the flags that no other method uses
OF_CAMERAS = (  # flags
    "encoder",
    "shared_cameras",
    "pool",
    "vision_weights",
    "teach",
    "shift",
    "jitter",
)
LENGTHS = ("epochs", "steps", "minutes")  # flags that say how long to train


# ---- what there is ------------------------------------------------------------------------------


def add_flags(p):
    """Add all flags of dbp_train.py to a Parser."""
    add_data(p)
    add_method(p)
    add_cameras(p)
    add_beyond(p)
    add_optimisation(p)
    add_run(p)


def add_data(p):
    """Flags of the task, its horizons and its demonstrations."""
    g = p.add_argument_group("task and data")
    g.add_argument("--task", default="pusht", help=f"one of {task_list()}")
    g.add_argument(
        "--data",
        metavar="PATH",
        help="demonstrations, a file or a folder; if not given they are looked for in $DRIFT_DATA, "
        "the download cache and demos/",
    )
    g.add_argument(
        "--demos",
        type=int,
        metavar="N",
        help="use the first N demonstrations only; all if not given",
    )
    g.add_argument(
        "--filter",
        metavar="NAME",
        help="use the demonstrations that this filter (mask/NAME) of robomimic's HDF5 file lists, "
        "such as train or 20_percent; all if not given",
    )
    g.add_argument(
        "--max-gb",
        type=float,
        default=MAX_GB,
        help="refuse demonstrations whose arrays declare more GB than this; pictures do not count",
    )
    for name, what in (
        ("T_o", "observation history T_o, steps"),
        ("T_p", "prediction horizon T_p, steps"),
        ("T_a", "executed steps T_a (Eq. 23: T_o - 1 + T_a <= T_p)"),
    ):
        flag = f"--{name.replace('_', '-')}"
        g.add_argument(flag, type=int, metavar="STEPS", help=f"{what} {defaults_of(name)}")
    g.add_argument(
        "--to-end",
        action=argparse.BooleanOptionalAction,
        help="learn from every observation of an episode, also from the last T_p - T_a - T_o + 1, "
        "which Diffusion Policy's windows leave out; the UR5 tasks do, if not given",
    )


def add_method(p):
    """Flags of the method and of the network."""
    g = p.add_argument_group("method (Table VII)")
    g.add_argument(
        "--method",
        choices=tuple(baselines.METHODS),
        default="dbp",
        help="dbp, or one of baselines.py on the same network; bc is regression",
    )
    g.add_argument(
        "--K",
        type=int,
        help="hypotheses per observation K; 4 if not given; not for bc; BlockPush: 2",
    )
    g.add_argument(
        "--temp",
        type=float,
        nargs="+",
        metavar="TAU",
        help="interaction scales tau, one or several; 0.2 if not given; only for dbp",
    )
    g.add_argument(
        "--mode",
        choices=("chunk", "step"),
        help="drift over whole chunks or per step (Eq. 11); chunk if not given; only for dbp",
    )
    g.add_argument(
        "--dims",
        nargs="+",
        metavar="C",
        help="U-Net channels per level; auto, the default, is 512 1024 2048 (the paper's) on a "
        "GPU, and on a CPU 64 128 256, or 64 128 if T_p < 8",
    )


def add_cameras(p):
    """Flags of the cameras."""
    g = p.add_argument_group("cameras (only for tasks that have some)")
    g.add_argument(
        "--encoder",
        choices=KINDS,
        help="of a camera's pictures: small, three convolutions, if not given on a CPU; resnet18, "
        "Diffusion Policy's, on a GPU",
    )
    g.add_argument(
        "--pool",
        choices=POOLS,
        help="what ResNet18 ends in: the mean places of 32 softmaxes, or an average; softmax if "
        "not given",
    )
    g.add_argument(
        "--shared-cameras",
        action="store_true",
        default=None,
        help="one encoder for all cameras, not one for each",
    )
    g.add_argument(
        "--vision-weights",
        metavar="FILE",
        help="start ResNet18's convolutions from torchvision's file resnet18-f37072fd.pth",
    )
    g.add_argument(
        "--teach",
        type=int,
        metavar="STEPS",
        help="teach the encoders what the task by numbers observes, for that many steps, and then "
        "keep them (beyond the paper; only for simulated data)",
    )
    g.add_argument(
        "--shift",
        type=int,
        metavar="PIXELS",
        help="move pictures by up to that many pixels at random, beyond the task's random crop",
    )
    g.add_argument(
        "--jitter",
        type=float,
        help="multiply brightness and contrast by random factors from 1 - X to 1 + X",
    )


def add_beyond(p):
    """Flags of what the paper does not have (beyond.py)."""
    g = p.add_argument_group("beyond the paper (only for dbp, off if not given)")
    g.add_argument(
        "--spread",
        type=float,
        metavar="STD",
        help="standard deviation over z of the untrained generator's outputs, normalised units",
    )
    g.add_argument(
        "--memory",
        type=int,
        metavar="N",
        help="the last N hypotheses of the same window, from earlier epochs, push too",
    )


def add_optimisation(p):
    """Flags of the optimiser, its schedule and the length of the training."""
    g = p.add_argument_group("optimisation (Table VII)")
    g.add_argument(
        "--epochs",
        type=float,
        help="passes over the data; 100 (the paper's) on a GPU if no length is given",
    )
    g.add_argument("--steps", type=int, help="optimiser steps; 8000 on a CPU if no length is given")
    g.add_argument(
        "--minutes",
        type=float,
        help="training minutes: the pace of the first half fixes the number of steps, so a run "
        "that was resumed before then may come to another number",
    )
    g.add_argument("--batch", type=int, default=32, metavar="B", help="observations per step B")
    g.add_argument(
        "--lr",
        type=float,
        help="peak learning rate; 1e-4 for networks of 1024 channels or more, else 5e-4",
    )
    g.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        default="cosine",
        help="the learning rate after the warm-up; constant is the paper's",
    )
    g.add_argument(
        "--warmup", type=int, default=500, metavar="STEPS", help="steps of linear warm-up"
    )
    g.add_argument(
        "--betas",
        type=float,
        nargs=2,
        default=[0.95, 0.999],
        metavar=("BETA1", "BETA2"),
        help="AdamW's betas",
    )
    g.add_argument("--weight-decay", type=float, default=1e-6, help="AdamW's weight decay")
    g.add_argument("--max-grad-norm", type=float, default=1.0, help="the largest gradient norm")
    g.add_argument("--ema", type=float, default=0.9999, help="the largest decay of the EMA")
    g.add_argument(
        "--ema-power",
        type=float,
        default=0.75,
        help="the EMA's decay at step n is 1 - (1 + n) ** -power",
    )


def add_run(p):
    """Flags of the run: seed, device, folder, saves and evaluations."""
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=int, default=0, help="seed of weights, batches and latents")
    add_machine(g)
    g.add_argument(
        "--amp",
        action="store_true",
        help="run the generator in bfloat16; the drift stays float32",
    )
    g.add_argument(
        "--out", metavar="DIR", help="run folder; runs/TASK-METHOD-seedSEED if not given"
    )
    g.add_argument("--init", metavar="CKPT", help="start from the weights of this checkpoint")
    g.add_argument("--resume", action="store_true", help="go on from state.pt in the run folder")
    g.add_argument(
        "--save-every",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="minutes between saves; Ctrl-C and the end save, too; 0: every 50 steps",
    )
    g.add_argument(
        "--eval-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="steps between evaluations; 0: only at the end",
    )
    g.add_argument(
        "--episodes", type=int, help=f"episodes of an evaluation {defaults_of('episodes')}"
    )
    g.add_argument(
        "--one-process",
        action="store_true",
        help="evaluate with all simulators in this process",
    )


# ---- what they come to ---------------------------------------------------------------------------


def resolve(args):
    """Fill the flags whose default depends on the task, the device or the network; check the rest.

    Returns the task. Raises BadInput.
    """
    task = task_named(args.task)
    for k in ("T_o", "T_p", "T_a"):
        if getattr(args, k) is None:
            setattr(args, k, getattr(task, k))
    check_horizons(args.T_o, args.T_p, args.T_a)
    fill_defaults(args, task)
    check_ranges(args)
    check_device(args.device)
    gpu = torch.device(args.device).type != "cpu"
    args.dims = chosen_dims(args.dims or ["auto"], gpu, args.T_p)
    choose_encoder(args, task, gpu)
    if args.lr is None:
        args.lr = 1e-4 if max(args.dims) >= 1024 else 5e-4
    if args.epochs is args.steps is args.minutes is None:
        if gpu:
            args.epochs = 100
        else:
            args.steps = 8000
    args.out = args.out or f"runs/{args.task}-{args.method}-seed{args.seed}"
    return task


def fill_defaults(args, task):
    """Give flags the task's or the method's defaults; refuse those that the method does not use."""
    unused = ()
    if args.method == "bc":
        unused = ("K", *DBP_ONLY)
    elif args.method != "dbp":
        unused = DBP_ONLY
    refuse_flags(args, unused, f"--method {args.method}")
    skipped = set(unused)
    if any(getattr(args, k) is not None for k in LENGTHS):
        skipped.update(LENGTHS)  # the length that was given counts, not the task's
    for k, value in {**DBP_DEFAULTS, **task.stage1}.items():
        if k not in skipped and getattr(args, k) is None:
            setattr(args, k, value)


def check_ranges(args):
    """Refuse numbers that mean nothing. Raises BadInput."""
    above_zero(
        args,
        "K",
        "temp",
        "batch",
        "epochs",
        "steps",
        "minutes",
        "teach",
        "lr",
        "max_grad_norm",
        "ema_power",
        "threads",
        "episodes",
        "max_gb",
    )
    check_seed(args, "seed")
    for k in ("warmup", "save_every", "eval_every", "weight_decay", "spread", "memory"):
        if not 0 <= (getattr(args, k) or 0) < math.inf:
            raise BadInput(f"--{k.replace('_', '-')} must not be below 0, nor infinite")
    if not all(0 <= b < 1 for b in (*args.betas, args.ema)):
        raise BadInput(f"--betas {args.betas} and --ema {args.ema} must lie in [0, 1)")
    if sum(getattr(args, k) is not None for k in LENGTHS) > 1:
        raise BadInput("give one of --epochs, --steps, --minutes")


def chosen_dims(dims, gpu, T_p):
    """The channels that --dims means, as numbers. Raises BadInput."""
    if list(dims) == ["auto"]:
        dims = PAPER_DIMS
        why = "the paper's network"
        if not gpu:
            dims = SMALL_DIMS if T_p >= 8 else TINY_DIMS
            why = "a small network, for a CPU; the paper's is 512 1024 2048"
        print(f"--dims auto: {' '.join(map(str, dims))} ({why})")
    try:
        return [int(c) for c in dims]
    except ValueError as e:
        raise BadInput(f"--dims {' '.join(dims)}: give channel counts, or auto") from e


def choose_encoder(args, task, gpu):
    """Fill the flags of cameras; refuse those that the task or the encoder does not use.

    Raises BadInput.
    """
    sides = [min(shape[:2]) for shape in task.obs.values() if len(shape) == 3]
    if not sides:
        refuse_flags(args, OF_CAMERAS, f"{task.name}, which has no camera")
        return
    if len(sides) == 1:
        refuse_flags(args, ["shared_cameras"], f"{task.name}, which has one camera")
    if args.init:
        refuse_flags(args, ["vision_weights"], "--init, which brings all weights")
        refuse_flags(args, ["teach"], "--init, which brings all weights")
    if args.encoder is None:
        args.encoder = "resnet18" if gpu else "small"
        print(f"--encoder {args.encoder} (small on a CPU, resnet18 on a GPU)")
    if args.encoder == "small":
        refuse_flags(args, ["pool", "vision_weights"], "--encoder small")
    elif args.pool is None:
        args.pool = "softmax"
    if not 0 <= (args.shift or 0) < min(sides):
        raise BadInput(f"--shift must lie in 0 .. {min(sides) - 1}, not {args.shift}")
    if not 0 <= (args.jitter or 0) < 1:
        raise BadInput(f"--jitter must lie in [0, 1), not {args.jitter}")
