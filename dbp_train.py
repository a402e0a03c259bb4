"""Stage 1, Drift-Based Policy: train a one-step generator from demonstrations (arXiv 2604.03540, Eqs. 6-11).

  python dbp_train.py --task pusht --K 4 --temp 0.2

Every step: K hypotheses per observation from one generator call, one drift field, one regression onto it. The
run folder gets ckpt.pt (the policy, EMA weights included), state.pt (for --resume), log.jsonl / log.csv /
TensorBoard, curves.png and hypotheses.png. Under torchrun the batch is split over the ranks; Eq. 29's scale is
then the mean over each rank's share.
"""
import copy
import functools
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from baselines import LOSSES, METHODS, prepare
from data import Chunks, load
from drift import chunk_loss
from envs import check_horizons, task_named
from evaluate import evaluate, line
from policy import Policy, bounds
from runs import (BadInput, Parser, Run, above_zero, check_device, cli, curves, flags_of, fresh_folder, load_state,
                  save_torch)

PAPER_DIMS, SMALL_DIMS, TINY_DIMS = (512, 1024, 2048), (64, 128, 256), (64, 128)
LOG_EVERY = 50
FREE_ON_RESUME = {"resume", "out", "data", "init", "device", "threads", "save_every", "eval_every", "episodes",
                  "one_process"}
SNAPSHOT_STEPS = (0, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)    # moments shown in hypotheses.png


def parse():
    p = Parser(__doc__)
    g = p.add_argument_group("task and data")
    g.add_argument("--task", default="pusht", help="task of envs.py")
    g.add_argument("--data", help="demonstrations: file or folder; else $DRIFT_DATA, the download cache, demos/")
    g.add_argument("--demos", type=int, help="use the first that many demonstrations; all if not given")
    g.add_argument("--T-o", type=int, help="observation history T_o, steps; the task's if not given")
    g.add_argument("--T-p", type=int, help="prediction horizon T_p, steps; the task's if not given")
    g.add_argument("--T-a", type=int, help="executed steps T_a (Eq. 23: T_o - 1 + T_a <= T_p); the task's if not given")
    g = p.add_argument_group("method (Table VII)")
    g.add_argument("--method", choices=tuple(METHODS), default="dbp",
                   help="dbp, or one of baselines.py on the same network: diffusion, meanflow, bc (regression)")
    g.add_argument("--K", type=int, default=4, help="hypotheses per observation K")
    g.add_argument("--temp", type=float, nargs="+", default=[0.2], help="interaction scales tau, one or several")
    g.add_argument("--mode", choices=("chunk", "step"), default="chunk", help="drift over chunks or per step (Eq. 11)")
    g.add_argument("--dims", nargs="+", default=["auto"], metavar="C",
                   help="U-Net channels per level; auto: 512 1024 2048 (the paper's) on a GPU; 64 128 256 on a CPU, 64 128 if "
                   "T_p < 8")
    g = p.add_argument_group("optimisation (Table VII)")
    g.add_argument("--epochs", type=float, help="passes over the data; 100 (the paper's) on a GPU, if no length is given")
    g.add_argument("--steps", type=int, help="optimiser steps; 8000 on a CPU if no length is given")
    g.add_argument("--minutes", type=float, help="training minutes: the pace of the first half fixes the steps; a run "
                   "resumed before may come to others")
    g.add_argument("--batch", type=int, default=32, help="observations per step B")
    g.add_argument("--lr", type=float, help="peak learning rate; 1e-4 for the paper's network, else 5e-4")
    g.add_argument("--schedule", choices=("constant", "cosine"), default="cosine",
                   help="learning rate after warm-up; constant is the paper's")
    g.add_argument("--warmup", type=int, default=500, help="warm-up steps, linear")
    g.add_argument("--betas", type=float, nargs=2, default=[0.95, 0.999], help="AdamW betas")
    g.add_argument("--weight-decay", type=float, default=1e-6, help="AdamW weight decay")
    g.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    g.add_argument("--ema", type=float, default=0.9999, help="largest EMA decay")
    g.add_argument("--ema-power", type=float, default=0.75, help="EMA decay at step n is 1 - (1 + n) ** -power")
    g = p.add_argument_group("beyond the paper (dbp)")
    g.add_argument("--spread", type=float, default=0, help="standard deviation over z of the untrained generator's outputs, "
                   "normalised units; 0: small, as its layers start")
    g.add_argument("--temp-start", type=float, default=1, help="factor on tau at first; falls to 1 exponentially over the "
                   "first half")
    g.add_argument("--scale", choices=("batch", "observation"), default="batch",
                   help="mean distance s and force norm (Eqs. 29, 36) over the batch, or of each observation")
    g.add_argument("--positives", type=int, default=1, help="positives P: the expert's chunk, and those at the P - 1 nearest "
                   "observations of other episodes, weighted by nearness")
    g.add_argument("--memory", type=int, default=0, help="further negatives N: the last that many hypotheses of the same window, "
                   "from earlier epochs")
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=int, default=0, help="seed of weights, batches and latents")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    g.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
    g.add_argument("--amp", action="store_true", help="run the generator in bfloat16; the drift stays float32")
    g.add_argument("--out", help="run folder; runs/TASK-dbp-seedSEED if not given")
    g.add_argument("--init", help="start from the weights of this checkpoint")
    g.add_argument("--resume", action="store_true", help="go on from state.pt in the run folder")
    g.add_argument("--save-every", type=int, default=500, help="steps between saves")
    g.add_argument("--eval-every", type=int, default=0, help="steps between evaluations; 0: only at the end")
    g.add_argument("--episodes", type=int, help="episodes of an evaluation; 50, with point clouds 20, if not given")
    g.add_argument("--one-process", action="store_true", help="evaluate with all simulators in this process")
    return p.parse_args()


def resolve(args):
    """Fill the flags whose default depends on task, device or network; check the rest. Returns the task."""
    task = task_named(args.task)
    for k in ("T_o", "T_p", "T_a"):
        setattr(args, k, getattr(task, k) if getattr(args, k) is None else getattr(args, k))
    check_horizons(args.T_o, args.T_p, args.T_a)
    above_zero(args, "K", "temp", "temp_start", "positives", "batch", "epochs", "steps", "minutes", "lr", "clip", "ema_power",
               "threads", "save_every", "episodes")
    if min(args.seed, args.warmup, args.eval_every, args.weight_decay, args.spread, args.memory) < 0:
        raise BadInput("--seed, --warmup, --eval-every, --weight-decay, --spread and --memory must not be below 0")
    if not all(0 <= b < 1 for b in (*args.betas, args.ema)):
        raise BadInput(f"--betas {args.betas} and --ema {args.ema} must lie in [0, 1)")
    if sum(x is not None for x in (args.epochs, args.steps, args.minutes)) > 1:
        raise BadInput("give one of --epochs, --steps, --minutes")
    if args.positives > 1 and task.points:
        raise BadInput("--positives: nearness of point clouds is not defined here; leave it at 1")
    check_device(args.device)
    gpu = torch.device(args.device).type != "cpu"
    if args.dims == ["auto"]:
        args.dims = PAPER_DIMS if gpu else SMALL_DIMS if args.T_p >= 8 else TINY_DIMS
        print(f"--dims auto: {' '.join(map(str, args.dims))} "
              + ("(the paper's network)" if gpu else "(a small network, for a CPU; the paper's is 512 1024 2048)"))
    try:
        args.dims = [int(c) for c in args.dims]
    except ValueError:
        raise BadInput(f"--dims {' '.join(args.dims)}: give channel counts, or auto")
    if args.lr is None:
        args.lr = 1e-4 if max(args.dims) >= 1024 else 5e-4
    if args.epochs is args.steps is args.minutes is None:
        args.epochs, args.steps = (100, None) if gpu else (None, 8000)
    args.out = args.out or f"runs/{args.task}-{args.method}-seed{args.seed}"
    fresh_folder(args)
    return task


class EMA:
    """Exponential moving average of parameters, decay min(largest, 1 - (1 + n) ** -power) at step n."""

    def __init__(self, module, largest, power):
        self.names, self.params = zip(*module.named_parameters())
        self.mean = [p.detach().clone() for p in self.params]
        self.largest, self.power = largest, power

    @torch.no_grad()
    def update(self, n):
        decay = min(self.largest, 1 - (1 + n) ** -self.power)
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.params], 1 - decay)

    def state_dict(self):
        return dict(zip(self.names, self.mean))

    def load_state_dict(self, state):
        for name, mean in zip(self.names, self.mean):
            mean.copy_(state[name])


def lr_factor(step, total, warmup, schedule):
    """Learning rate at a step as a share of the peak: linear warm-up, then constant or cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


@torch.no_grad()
def progress(x, pos):
    """What tells progress, as the loss cannot (Eq. 36): RMS distances per coordinate, normalised action units.

    x (B, K, T_p, D_a), pos (B, 1, T_p, D_a). best / mean: hypothesis to expert; spread: about the hypotheses' mean.
    """
    rms = lambda y: y.square().mean((-2, -1)).sqrt()                             # (B, K)
    to_expert = rms(x - pos)
    return {"best": to_expert.min(1).values.mean(), "mean": to_expert.mean(),
            "spread": rms(x - x.mean(1, keepdim=True)).mean()}


@torch.no_grad()
def neighbours(policy, chunks, P):
    """The P - 1 nearest windows of each, of other episodes, by normalised observation history: numbers and weights
    exp(-d²/h²) (n, P - 1), h the median distance to the nearest. Raises BadInput if there are too few."""
    if chunks.episode.bincount().max() + P - 1 > len(chunks):
        raise BadInput(f"--positives {P}: too few windows of other episodes; give more demonstrations")
    feature, found = policy.norm_obs(chunks.obs)[chunks.index[:, :chunks.T_o]].flatten(1), []
    for i in torch.arange(len(chunks), device=feature.device).split(2048):
        d = torch.cdist(feature[i], feature).masked_fill_(chunks.episode[i, None] == chunks.episode, torch.inf)
        found.append(d.topk(P - 1, largest=False))
    d, near = (torch.cat(y) for y in zip(*found))
    return near, torch.exp(-(d / d[:, 0].median().clamp_min(1e-9)).square())


def recall(memory, i, x):
    """Past hypotheses of windows i (B,), chunks (B, N, T_p, D_a) and weights (B, N), 0 where there is none yet; then x
    (B, K, T_p, D_a) is kept for the next time. memory: chunks (n, N, T_p, D_a), newest first, and their number (n,)."""
    chunks, filled = memory
    N = chunks.shape[1]
    past = chunks[i], (torch.arange(N, device=x.device) < filled[i, None]).float()
    chunks[i], filled[i] = torch.cat([x, past[0]], 1)[:, :N], (filled[i] + x.shape[1]).clamp_max(N)
    return past


def loss_of(policy, obs, pos, args, generator, near=None, past=None, warmth=1.0):
    """The method's loss on a batch, obs (B, T_o, ·), normalised chunks pos (B, T_p, D_a), and detached figures.

    near: further positives (B, P - 1, T_p, D_a) and their weights (B, P - 1); past: from the hypotheses to further
    negatives and weights, likewise; warmth: factor on the temperatures.
    """
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=args.amp):
        if args.method != "dbp":
            return LOSSES[args.method](policy, obs, pos, args.K, generator), {}
        x, pos = policy.hypotheses(obs, args.K, generator=generator), pos.unsqueeze(1)  # (B, K, ·, ·), (B, P = 1, ·, ·)
    own, w_pos, (neg, w_neg) = pos, None, past(x.detach()) if past else (None, None)
    if near is not None:
        pos, w_pos = torch.cat([pos, near[0]], 1), torch.cat([torch.ones_like(near[1][:, :1]), near[1]], 1)
    alone = lambda y: y.unsqueeze(1) if args.scale == "observation" and y is not None else y      # a problem each
    loss, info = chunk_loss(alone(x), alone(pos), neg=alone(neg), mode=args.mode,
                            temps=[warmth * tau for tau in args.temp], w_pos=alone(w_pos), w_neg=alone(w_neg))
    force = info["force_rms"].reshape(-1, len(args.temp)).mean(0)
    return loss, {"s": info["s"].mean(), **progress(x.detach(), own),
                  **{f"force_{tau:g}": f for tau, f in zip(args.temp, force)}}


def setup(args, task):
    """Data, policy, EMA, optimiser; from --init or state.pt where asked. Returns them, the state, and the data."""
    chunks = Chunks(load(task, args.data, args.demos), args.T_o, args.T_p, args.T_a, args.device)
    shape = {"task": task.name, "obs_dim": task.obs_dim, "D_a": task.D_a, "T_o": args.T_o, "T_p": args.T_p,
             "T_a": args.T_a, "dims": args.dims, **({"points": task.points} if task.points else {}),
             **({"method": args.method, "times": METHODS[args.method]} if args.method != "dbp" else {})}
    torch.manual_seed(args.seed)
    policy = Policy(shape, bounds(chunks.obs, task.points), bounds(chunks.action)).to(args.device)
    if args.spread:
        obs = chunks.batch(torch.zeros(1, dtype=torch.long, device=args.device))[0]
        policy.net.spread(args.spread, policy.latent(500), policy.features(obs))
    if args.init:
        start, _ = Policy.load(args.init, args.device, task=task.name)
        if start.shape != policy.shape:
            raise BadInput(f"--init {args.init} has {start.shape}, this run {policy.shape}: use the same flags")
        policy.load_state_dict(start.state_dict())
    opt = torch.optim.AdamW(policy.parameters(), args.lr, betas=args.betas, weight_decay=args.weight_decay, fused=True)
    ema = EMA(policy, args.ema, args.ema_power)
    state = {"step": 0, "total": None, "minutes": 0.0, "snapshots": {}}
    if args.memory:
        state["memory"] = (torch.zeros(len(chunks), args.memory, args.T_p, policy.D_a, device=args.device),
                           torch.zeros(len(chunks), dtype=torch.long, device=args.device))
    if args.resume:
        state = load_state(args, args.device, {"weights", "ema", "optimizer"}, FREE_ON_RESUME)
        policy.load_state_dict(state.pop("weights"))
        ema.load_state_dict(state.pop("ema"))
        opt.load_state_dict(state.pop("optimizer"))
    return chunks, policy, opt, ema, state


def train(args):
    task = resolve(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1:
        gpu = args.device.startswith("cuda")
        dist.init_process_group("nccl" if gpu else "gloo")
        args.device = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else args.device
    main_rank = rank == 0
    chunks, policy, opt, ema, state = setup(args, task)
    if min(args.batch, len(chunks)) < world:
        raise BadInput(f"{world} processes cannot share a batch of {min(args.batch, len(chunks))}: raise --batch")
    if world > 1 and args.memory:
        raise BadInput("--memory is of one process: run it without torchrun")
    nearest = neighbours(policy, chunks, args.positives) if args.positives > 1 else None
    per_epoch = max(len(chunks) // args.batch, 1)              # the last, smaller batch is left out
    total = state["total"] or args.steps or (args.epochs and math.ceil(args.epochs * per_epoch))
    step, flags, out = state["step"], flags_of(args), Path(args.out)
    snapshots, memory = state["snapshots"], state.get("memory")
    shown = chunks.batch(torch.linspace(0, len(chunks) - 1, 6, device=args.device).long())       # 6 observations
    z_shown = torch.randn(6, 32, args.T_p, policy.D_a, generator=torch.Generator().manual_seed(0)).to(args.device)
    generator = torch.Generator(args.device)
    shadow = prepare(copy.deepcopy(policy).eval())
    if main_rank:
        run = Run(out, flags, resume_step=step if args.resume else None)
        n_params = sum(p.numel() for p in policy.parameters())
        print(f"{task.name}: {len(chunks)} windows, {n_params / 1e6:.1f} M parameters, {args.device}, {out}")
        bar = tqdm(initial=step, total=total, unit="step", mininterval=1, dynamic_ncols=True)

    def ema_policy():
        shadow.load_state_dict({**policy.state_dict(), **ema.state_dict()})
        return shadow

    def save():
        policy.save(out / "ckpt.pt", flags=flags, ema=ema.state_dict(), step=step)
        save_torch(out / "state.pt", {"step": step, "total": total, "minutes": minutes, "snapshots": snapshots,
                                      "flags": flags, **({"memory": memory} if memory else {}), "weights": policy.state_dict(),
                                      "ema": ema.state_dict(), "optimizer": opt.state_dict()})

    def snapshot():
        with torch.inference_mode():
            snapshots[step] = ema_policy()(shown[0], z_shown).clone().cpu()

    def score():
        result, _ = evaluate(ema_policy(), task, args.episodes, workers=not args.one_process)
        if not any(r["step"] == step and "score" in r for r in run.rows):          # a finished run, resumed
            run.log(step, minutes=minutes, **{k: result[k] for k in ("score", "success", "seconds") if k in result},
                    score_low=result["score_95"][0], score_high=result["score_95"][1])
        return result

    minutes, clock, sums = state["minutes"], time.perf_counter(), None
    while total is None or step < total:
        if main_rank and step in SNAPSHOT_STEPS and step not in snapshots:
            snapshot()
        epoch, j = divmod(step, per_epoch)
        if j == 0 or step == state["step"]:
            order = chunks.order(epoch, args.seed)
        i = order[j * args.batch:(j + 1) * args.batch][rank::world].to(args.device)
        obs, action = chunks.batch(i)                                             # (B, T_o, ·), (B, T_p, D_a)
        pos = policy.norm_action(action)
        generator.manual_seed((args.seed * 10_000_019 + step) * world + rank)     # z depends on the step alone: resume
        near = (policy.norm_action(chunks.batch(nearest[0][i])[1]), nearest[1][i]) if nearest else None
        warmth = args.temp_start ** max(1 - 2 * step / total, 0) if total else args.temp_start
        past = functools.partial(recall, memory, i) if memory else None
        loss, now = loss_of(policy, obs, pos, args, generator, near, past, warmth)
        loss.backward()
        if world > 1:
            for p in policy.parameters():
                dist.all_reduce(p.grad)
                p.grad /= world
        grad = torch.nn.utils.clip_grad_norm_(policy.parameters(), args.clip)
        for group in opt.param_groups:
            group["lr"] = args.lr * (lr_factor(step, total, args.warmup, args.schedule) if total else
                                     min(1, (step + 1) / max(args.warmup, 1)))
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        ema.update(step)

        now = {"loss": loss.detach(), "grad": grad, **now}
        sums = now if sums is None else {k: sums[k] + now[k] for k in now}
        if step % LOG_EVERY and step != total:
            if main_rank:
                bar.update()
            continue

        minutes, clock = minutes + (time.perf_counter() - clock) / 60, time.perf_counter()
        if args.minutes and step >= 100:       # the steps that fit, by the pace so far; fixed when half the time is over
            fit = total if total and minutes > args.minutes / 2 else max(step, round(step * args.minutes / minutes))
            fit = torch.tensor(fit, device=args.device)
            if world > 1:
                dist.broadcast(fit, 0)
            total = int(fit)
            if main_rank:
                bar.total = total
        if main_rank:
            n = (step - 1) % LOG_EVERY + 1
            means = {k: v.item() / n for k, v in sums.items()}
            run.log(step, minutes=minutes, lr=opt.param_groups[0]["lr"], **means)
            bar.update()
            bar.set_postfix({k: f"{means[k]:.3g}" for k in (("s", "best", "mean", "spread") if "s" in means else ("loss",))})
            if args.eval_every and step % args.eval_every < LOG_EVERY and step != total:
                bar.write(f"step {step}, {minutes:.1f} min: {line(score())}")
            if step % (LOG_EVERY * math.ceil(args.save_every / LOG_EVERY)) == 0 or step == total:
                save()                # after the score: a kill between the two loses neither
        sums, clock = None, time.perf_counter()

    if main_rank:
        bar.close()
        snapshot()
        save()
        result = score()
        run.close()
        curves(run, out / "curves.png", [
            ("distance to the expert (RMS)", ["best", "mean", "spread"], "log"), ("mean distance s (Eq. 29)", ["s"], "log"),
            *([("loss", ["loss"], "log")] if args.method != "dbp" else []),
            ("force RMS before Eq. 36", [f"force_{tau:g}" for tau in args.temp], "log"),
            ("gradient norm", ["grad"], "log"), ("learning rate", ["lr"], "linear"), ("score", ["score"], "linear")])
        hypotheses_figure(policy, shown, snapshots, out / "hypotheses.png")
        print(f"{line(result)}  {step} steps, {minutes:.1f} min of training  {out}/ckpt.pt")
    if world > 1:
        dist.destroy_process_group()


def hypotheses_figure(policy, shown, snapshots, path):
    """Hypotheses contracting to the expert over training (the paper's Fig. 3): rows observations, columns steps.

    Chunks are drawn as paths where D_a = 2, else as points in the plane of their first two principal components.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    obs, action = shown
    steps = sorted(snapshots)
    expert = action.cpu()                                                          # (6, T_p, D_a)
    chunks = {n: policy.norm_action.inverse(snapshots[n].to(policy.device)).cpu() for n in steps}   # (6, 32, T_p, D_a)
    if policy.D_a != 2:
        flat = torch.cat([chunks[steps[-1]].flatten(0, 1), expert]).flatten(1)
        center, axes_2 = flat.mean(0), torch.pca_lowrank(flat, 2)[2]               # (D,), (D, 2)
        plane = lambda y: ((y.flatten(-2) - center) @ axes_2).unsqueeze(-2)        # one point a chunk
        expert, chunks = plane(expert), {n: plane(c) for n, c in chunks.items()}
    fig, axes = plt.subplots(len(obs), len(steps), figsize=(1.7 * len(steps), 1.75 * len(obs)), squeeze=False,
                             constrained_layout=True)
    for row, ax_row in enumerate(axes):
        last = torch.cat([chunks[steps[-1]][row].flatten(0, 1), expert[row]])
        mid, half = (last.amax(0) + last.amin(0)) / 2, 0.9 * (last.amax(0) - last.amin(0)).max().clamp_min(1e-3)
        for ax, n in zip(ax_row, steps):
            ax.plot(*chunks[n][row].permute(2, 1, 0), color="tab:blue", alpha=0.35, lw=0.8, marker="." , ms=2)
            ax.plot(*expert[row].T, color="tab:red", lw=1.5, marker=".", ms=3)
            ax.set(xlim=(mid[0] - half, mid[0] + half), ylim=(mid[1] - half, mid[1] + half), xticks=[], yticks=[])
            if row == 0:
                ax.set_title(f"step {n}", fontsize=9)
    fig.suptitle("32 hypotheses (blue) and the expert's chunk (red), six observations", fontsize=10)
    fig.savefig(path, dpi=100)
    plt.close(fig)


if __name__ == "__main__":
    cli(lambda: train(parse()))
