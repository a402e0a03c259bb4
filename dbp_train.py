"""Stage 1, Drift-Based Policy: train a one-step generator from demonstrations.

Source: arXiv 2604.03540, Eqs. 6-11. At every step the generator gives K hypotheses per observation
in one call, the drifting field says where each of them should go, and the generator is fitted to
that. The run folder gets ckpt.pt (the policy, with its EMA weights), state.pt (for --resume),
log.jsonl, log.csv and TensorBoard files, curves.png and hypotheses.png. Under torchrun every
process takes a share of the batch; the mean distance s of Eq. 29, which couples a batch, is then
that of a share (note 15).
"""

import interrupts  # noqa: F401 - first, see there

import copy
import functools
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import baselines
from beyond import Memory, spread_outputs
from data import Windows, load
from drift import chunk_loss
from envs import defaults_of, task_list, task_named
from evaluate import evaluate, line, log_score
from policy import Policy, data_ranges
from runs import (
    RESUMABLE,
    BadInput,
    Parser,
    Run,
    above_zero,
    atomic,
    check_device,
    check_seed,
    claim,
    cli,
    curves,
    first_not_finite,
    flags_of,
    load_state,
    refuse_flags,
    save_torch,
    step_seed,
)
from task import check_horizons

PAPER_DIMS = (512, 1024, 2048)
SMALL_DIMS = (64, 128, 256)  # on a CPU (note 3)
TINY_DIMS = (64, 128)  # on a CPU, for chunks of fewer than 8 steps
DBP_DEFAULTS = {"K": 4, "temp": [0.2], "mode": "chunk", "spread": 0.0, "memory": 0}
DBP_ONLY = ("temp", "mode", "spread", "memory")  # the flags that no other method uses
LENGTHS = ("epochs", "steps", "minutes")  # flags that say how long to train
LOG_EVERY = 50  # steps
SNAPSHOT_STEPS = (0, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # of hypotheses.png
FREE_ON_RESUME = {
    "resume",
    "out",
    "data",
    "init",
    "device",
    "threads",
    "save_every",
    "eval_every",
    "episodes",
    "one_process",
}


# ---- the loss and the step ----------------------------------------------------------------------


def dbp_loss(policy, obs, pos, args, generator, past_negatives=None):
    """Stage 1's loss on a batch, and what tells progress (Eqs. 6-11).

    obs {name: (B, T_o, ...)}, in data units (the policy normalises them); pos (B, T_p, D_a): the
    expert's chunks, normalised. past_negatives: from the hypotheses to those of earlier epochs as
    keywords of chunk_loss, which it also keeps for the next epoch (beyond.Memory); None is the
    paper's method.
    """
    pos = pos.unsqueeze(1)  # (B, P = 1, T_p, D_a)
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=args.amp):
        x = policy.hypotheses(obs, args.K, generator=generator)  # Eqs. 6, 7  (B, K, T_p, D_a)
    more = past_negatives(x.detach()) if past_negatives else {}
    loss, info = chunk_loss(x, pos, temps=args.temp, mode=args.mode, **more)  # Eqs. 8-11

    # In mode "step" there is a force RMS for each of the T_p steps: the mean over them.
    force = info["force_rms"].reshape(-1, len(args.temp)).mean(0)
    forces = {f"force_{tau:g}": f for tau, f in zip(args.temp, force)}
    return loss, {"s": info["s"].mean(), **progress(x.detach(), pos), **forces}


def baseline_loss(policy, obs, pos, args, generator, past_negatives=None):
    """The loss of another method on the same batch (baselines.py), and no figures."""
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=args.amp):
        return baselines.LOSSES[args.method](policy, obs, pos, args.K, generator), {}


@torch.no_grad()
def progress(x, pos):
    """What tells progress, as the loss cannot (note 26): RMS distances per coordinate, normalised.

    x (B, K, T_p, D_a), pos (B, 1, T_p, D_a). best, mean: of the hypotheses to the expert's chunk;
    diversity: of the hypotheses from their own mean.
    """

    def rms(y):
        return y.square().mean((-2, -1)).sqrt()  # (B, K)

    to_expert = rms(x - pos)
    return {
        "best": to_expert.min(1).values.mean(),
        "mean": to_expert.mean(),
        "diversity": rms(x - x.mean(1, keepdim=True)).mean(),
    }


class EMA:
    """The moving average of parameters, with the decay min(largest, 1 - (1 + n) ** -power)."""

    def __init__(self, module, largest, power):
        self.names, self.params = zip(*module.named_parameters())
        self.mean = [p.detach().clone() for p in self.params]
        self.largest = largest
        self.power = power

    @torch.no_grad()
    def update(self, n):
        """Take the parameters in after step n."""
        decay = min(self.largest, 1 - (1 + n) ** -self.power)
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.params], 1 - decay)

    def state_dict(self):
        """{name: averaged parameter}."""
        return dict(zip(self.names, self.mean))

    def load_state_dict(self, state):
        """Go on from what state_dict() gave."""
        for name, mean in zip(self.names, self.mean):
            mean.copy_(state[name])


def lr_factor(step, total, warmup, schedule):
    """The learning rate at a step as a share of its peak (note 2).

    A linear warm-up, then constant, or a cosine to 0 at step `total`. total: None while a time
    budget has not fixed it yet.
    """
    if total is None:
        return min(1, (step + 1) / max(warmup, 1))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


# ---- training -----------------------------------------------------------------------------------


def train(args):
    """Train a policy as the flags say; the run folder is args.out."""
    task = resolve(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    world, rank = start_processes(args)
    windows, policy, ema, opt, memory, state = setup(args, task)
    check_shares(args, windows, world)
    per_epoch = max(len(windows) // args.batch, 1)  # the last, smaller batch is left out
    budget = Budget(args, per_epoch, state, world)
    report = None
    if rank == 0:
        report = Report(args, task, windows, policy, ema, opt, memory, budget, state)
    loss_of = dbp_loss if args.method == "dbp" else baseline_loss
    generator = torch.Generator(args.device)
    step = state["step"]
    sums = {}
    finite = []  # of each step since the last row of the log, finite if its loss and gradient are
    budget.start()
    while budget.more(step):
        if report and step in SNAPSHOT_STEPS and step not in report.snapshots:
            report.snapshot(step)

        # The batch, and its latents: both depend on the step alone, so that a run can be resumed.
        epoch, j = divmod(step, per_epoch)
        if j == 0 or step == state["step"]:
            order = windows.order(epoch, args.seed)
        i = order[j * args.batch : (j + 1) * args.batch][rank::world].to(args.device)
        obs, action = windows.batch(i)  # {name: (B, T_o, ...)}, (B, T_p, D_a)
        generator.manual_seed(step_seed(args.seed, step, rank=rank, world=world))

        # Hypotheses, loss, step.
        pos = policy.norm_action(action)
        past = functools.partial(memory.negatives, i) if memory else None
        loss, info = loss_of(policy, obs, pos, args, generator, past)
        loss.backward()
        average_gradients(policy, world)
        grad = torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
        lr = args.lr * lr_factor(step, budget.total, args.warmup, args.schedule)
        opt.param_groups[0]["lr"] = lr
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        ema.update(step)

        now = {"loss": loss.detach(), "grad": grad, **info}
        sums = {k: sums[k] + v if sums else v for k, v in now.items()}
        finite.append(now["loss"] + grad)
        if step % LOG_EVERY == 0 or step == budget.total:
            refuse_not_finite(finite, step)
            budget.tick(step)
            if report:
                n = (step - 1) % LOG_EVERY + 1
                report.log(step, {k: v.item() / n for k, v in sums.items()})
            sums = {}
            finite = []
            budget.start()
        elif report:
            report.bar.update()

    if report:
        report.finish(step)
    if world > 1:
        dist.destroy_process_group()


def refuse_not_finite(values, step):
    """Stop a training in which a loss or a gradient was not finite. Raises BadInput.

    values: a number () of each step up to this one. They are looked at once a row of the log, and
    not at each step, because the device would be waited for; nothing is saved in between.
    """
    bad = first_not_finite(values)
    if bad is not None:
        raise BadInput(
            f"training stopped: at step {step - len(values) + bad + 1} the loss or its gradient "
            "was not finite. Begin again in another folder with a lower --lr; what was saved "
            "before is kept"
        )


# ---- setting up ---------------------------------------------------------------------------------


def setup(args, task):
    """Windows, policy, EMA and optimiser; from --init or from state.pt where asked.

    Returns them, the memory of --memory (or None), and the state that the run goes on from.
    """
    episodes = load(task, args.data, args.demos)
    windows = Windows(episodes, args.T_o, args.T_p, args.T_a, args.device)
    shape = {
        "task": task.name,
        "obs": task.specs,
        "D_a": task.D_a,
        "T_o": args.T_o,
        "T_p": args.T_p,
        "T_a": args.T_a,
        "dims": args.dims,
    }
    if args.method != "dbp":
        shape.update(method=args.method, time_dim=baselines.time_dim(args.method))
    torch.manual_seed(args.seed)
    policy = Policy(shape, data_ranges(windows.obs, windows.action)).to(args.device)
    baselines.start(policy)
    if args.spread:
        first = windows.batch(torch.zeros(1, dtype=torch.long, device=args.device))[0]
        spread_outputs(policy.net, args.spread, policy.latent(500), policy.features(first))
    if args.init:
        start_from(policy, args.init, args.device)
    opt = torch.optim.AdamW(
        policy.parameters(),
        args.lr,
        betas=args.betas,
        weight_decay=args.weight_decay,
        fused=True,
    )
    ema = EMA(policy, args.ema, args.ema_power)
    memory = None
    if args.memory:
        memory = Memory(len(windows), args.memory, args.T_p, policy.D_a, args.device)
    state = {"step": 0, "total": None, "minutes": 0.0, "snapshots": {}}
    if args.resume:
        weights = ("weights", "ema")
        state = load_state(args, args.device, {"optimizer"}, FREE_ON_RESUME, weights=weights)
        policy.load_state_dict(state.pop("weights"))
        ema.load_state_dict(state.pop("ema"))
        opt.load_state_dict(state.pop("optimizer"))
        if memory:
            memory.restore(state.pop("memory"))
    return windows, policy, ema, opt, memory, state


def start_from(policy, path, device):
    """Copy the weights and normalisers of a checkpoint into a policy of the same shape."""
    start, _ = Policy.load(path, device, task=policy.task)
    if start.shape != policy.shape:
        raise BadInput(
            f"--init {path} has {start.shape}, this run {policy.shape}: use the same flags"
        )
    policy.load_state_dict(start.state_dict())


def start_processes(args):
    """Join torchrun's processes, if there are any. Returns their number and this one's rank.

    Raises BadInput if the environment is not as torchrun sets it.
    """
    world = whole_number("WORLD_SIZE", 1)
    rank = whole_number("RANK", 0)
    if world < 1 or not 0 <= rank < world:
        raise BadInput(f"RANK {rank} of WORLD_SIZE {world}: use torchrun, or unset both")
    if world > 1:
        gpu = args.device.startswith("cuda")
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise BadInput(f"WORLD_SIZE is {world} without {name}: use torchrun, or unset it")
        dist.init_process_group("nccl" if gpu else "gloo")
        if gpu:
            args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    return world, rank


def whole_number(name, otherwise):
    """An environment variable as a whole number; `otherwise` if it is not set. BadInput."""
    text = os.environ.get(name, otherwise)
    try:
        return int(text)
    except ValueError as e:
        raise BadInput(f"{name}={text} is not a whole number: use torchrun, or unset it") from e


def check_shares(args, windows, world):
    """Refuse what cannot be split over the processes. Raises BadInput."""
    batch = min(args.batch, len(windows))
    if batch < world:
        raise BadInput(f"{world} processes cannot share a batch of {batch}: raise --batch")
    if world > 1 and args.memory:
        raise BadInput("--memory is of one process: run it without torchrun")


def average_gradients(module, world):
    """Make every process's gradients the mean over all of them."""
    if world > 1:
        for p in module.parameters():
            dist.all_reduce(p.grad)
            p.grad /= world


# ---- how long to train --------------------------------------------------------------------------


class Budget:
    """The number of steps: given, or fitted to --minutes by the pace of the first half.

    total: the steps of the whole run, None while --minutes has not fixed them. minutes: the time
    of training so far, without evaluations and saves.
    """

    def __init__(self, args, per_epoch, state, world):
        self.limit = args.minutes
        self.world = world
        self.device = args.device
        self.minutes = state["minutes"]
        self.total = state["total"] or args.steps
        if self.total is None and args.epochs:
            self.total = math.ceil(args.epochs * per_epoch)
        self.clock = time.perf_counter()

    def more(self, step):
        """Whether there is a step after this number of them."""
        return self.total is None or step < self.total

    def tick(self, step):
        """Count the time since the last start(); fit the steps to the time that is left."""
        self.minutes += (time.perf_counter() - self.clock) / 60
        if not self.limit or step < 100:
            return
        fit = max(step, round(step * self.limit / self.minutes))
        if self.total and self.minutes > self.limit / 2:
            fit = self.total
        fit = torch.tensor(fit, device=self.device)
        if self.world > 1:
            dist.broadcast(fit, 0)
        self.total = int(fit)

    def start(self):
        """Let the clock run from now on."""
        self.clock = time.perf_counter()


# ---- what the first process writes --------------------------------------------------------------


class Report:
    """The run folder of a training: logs, saves, scores, pictures; and the progress bar."""

    def __init__(self, args, task, windows, policy, ema, opt, memory, budget, state):
        self.args = args
        self.task = task
        self.policy = policy
        self.ema = ema
        self.opt = opt
        self.memory = memory
        self.budget = budget
        self.snapshots = state["snapshots"]  # step -> chunks (6, 32, T_p, D_a), for hypotheses.png
        self.flags = flags_of(args)
        self.out = Path(args.out)
        self.shadow = baselines.prepare(copy.deepcopy(policy).eval())
        six = torch.linspace(0, len(windows) - 1, 6, device=args.device).long()
        self.shown = windows.batch(six)
        noise = torch.Generator().manual_seed(0)
        self.z_shown = torch.randn(6, 32, args.T_p, policy.D_a, generator=noise).to(args.device)
        self.run = Run(self.out, self.flags, resume_step=state["step"] if args.resume else None)
        parameters = sum(p.numel() for p in policy.parameters()) / 1e6
        print(
            f"{task.name}: {len(windows)} windows, {parameters:.1f} M parameters, "
            f"{args.device}, {self.out}"
        )
        self.bar = tqdm(
            initial=state["step"],
            total=budget.total,
            unit="step",
            mininterval=1,
            dynamic_ncols=True,
        )

    def ema_policy(self):
        """The policy with the averaged weights, which is what acts."""
        self.shadow.load_state_dict({**self.policy.state_dict(), **self.ema.state_dict()})
        return self.shadow

    def save(self, step):
        """Write ckpt.pt and state.pt."""
        ema = self.ema.state_dict()
        self.policy.save(self.out / "ckpt.pt", flags=self.flags, ema=ema, step=step)
        state = {
            "step": step,
            "total": self.budget.total,
            "minutes": self.budget.minutes,
            "snapshots": self.snapshots,
            "flags": self.flags,
            "weights": self.policy.state_dict(),
            "ema": ema,
            "optimizer": self.opt.state_dict(),
        }
        if self.memory:
            state["memory"] = self.memory.state()
        save_torch(self.out / "state.pt", state)

    def snapshot(self, step):
        """Keep the hypotheses of six observations at this step, for hypotheses.png."""
        with torch.inference_mode():
            self.snapshots[step] = draws(self.ema_policy(), self.shown[0], self.z_shown).cpu()

    def score(self, step):
        """Evaluate the averaged policy and log it; None if the task has no simulator."""
        if self.task.env is None:
            return None
        workers = not self.args.one_process
        result, _ = evaluate(self.ema_policy(), self.task, self.args.episodes, workers=workers)
        log_score(self.run, step, result, minutes=self.budget.minutes)
        return result

    def log(self, step, means):
        """Write a row of figures; score and save where it is time for that."""
        args = self.args
        lr = self.opt.param_groups[0]["lr"]
        self.run.log(step, minutes=self.budget.minutes, lr=lr, **means)
        self.bar.total = self.budget.total
        self.bar.update(step - self.bar.n)
        names = ("s", "best", "mean", "diversity") if "s" in means else ("loss",)
        self.bar.set_postfix({k: f"{means[k]:.3g}" for k in names})
        last = step == self.budget.total
        if args.eval_every and step % args.eval_every < LOG_EVERY and not last:
            result = self.score(step)
            if result:
                self.bar.write(f"step {step}, {self.budget.minutes:.1f} min: {line(result)}")
        if step % (LOG_EVERY * math.ceil(args.save_every / LOG_EVERY)) == 0 or last:
            self.save(step)  # after the score: a kill between the two loses neither

    def finish(self, step):
        """Draw the pictures, score the policy, and print the last line."""
        self.bar.close()
        self.snapshot(step)
        self.save(step)
        result = self.score(step)
        curves(self.run, self.out / "curves.png", panels(self.args))
        hypotheses_figure(self.policy, self.shown, self.snapshots, self.out / "hypotheses.png")
        self.run.close()  # last: log.csv says that the run is finished
        scored = f"no score: {self.task.name} has no simulator"
        if result:
            scored = line(result)
        minutes = self.budget.minutes
        print(f"{scored}  {step} steps, {minutes:.1f} min of training  {self.out}/ckpt.pt")


def draws(policy, obs, z):
    """Normalised chunks of a policy for z (B, K, T_p, D_a), by its sampler if it has one."""
    if policy.sampler is None:
        return policy(obs, z)
    generator = torch.Generator(policy.device).manual_seed(0)
    return policy.sampler(policy, obs, z, generator)


def panels(args):
    """The panels of curves.png: title, columns of the log, scale."""
    found = [
        ("distance to the expert (RMS)", ["best", "mean", "diversity"], "log"),
        ("mean distance s (Eq. 29)", ["s"], "log"),
        ("gradient norm", ["grad"], "log"),
        ("learning rate", ["lr"], "linear"),
        ("score", ["score"], "linear"),
    ]
    if args.method == "dbp":
        forces = [f"force_{tau:g}" for tau in args.temp]
        found.insert(2, ("force RMS before Eq. 36", forces, "log"))
    else:
        found.insert(0, ("loss", ["loss"], "log"))
    return found


# ---- pictures -----------------------------------------------------------------------------------


def hypotheses_figure(policy, shown, snapshots, path):
    """Hypotheses closing in on the expert over training (the paper's Fig. 3).

    Rows are observations and columns are steps. Chunks are drawn as paths where D_a = 2, else as
    points in the plane of their first two principal components.
    """
    from matplotlib.figure import Figure

    expert = shown[1].cpu()  # (6, T_p, D_a)
    steps = sorted(snapshots)
    chunks = {
        n: policy.norm_action.inverse(snapshots[n].to(policy.device)).cpu() for n in steps
    }  # (6, 32, T_p, D_a) each
    if policy.D_a != 2:
        expert, chunks = in_a_plane(expert, chunks)
    figure = Figure(figsize=(1.7 * len(steps), 1.75 * len(expert) + 0.3), layout="constrained")
    grid = figure.subplots(len(expert), len(steps), squeeze=False)
    for row, line_of_axes in enumerate(grid):
        last = torch.cat([chunks[steps[-1]][row].flatten(0, 1), expert[row]])
        middle = (last.amax(0) + last.amin(0)) / 2
        half = 0.9 * (last.amax(0) - last.amin(0)).max().clamp_min(1e-3)
        for axes, n in zip(line_of_axes, steps):
            paths = chunks[n][row].permute(2, 1, 0)
            axes.plot(*paths, color="tab:blue", alpha=0.35, lw=0.8, marker=".", ms=2)
            axes.plot(*expert[row].T, color="tab:red", lw=1.5, marker=".", ms=3)
            axes.set(xticks=[], yticks=[])
            axes.set_xlim(middle[0] - half, middle[0] + half)
            axes.set_ylim(middle[1] - half, middle[1] + half)
            if row == 0:
                axes.set_title(f"step {n}", fontsize=9)
    title = "32 hypotheses (blue) and the expert's chunk (red), six observations"
    figure.suptitle(title, fontsize=10)
    atomic(path, lambda f: figure.savefig(f, format="png", dpi=100))


def in_a_plane(expert, chunks):
    """Chunks (..., T_p, D_a) as points (..., 1, 2) in the plane of their largest variance."""
    latest = chunks[max(chunks)]
    flat = torch.cat([latest.flatten(0, 1), expert]).flatten(1)
    center = flat.mean(0)  # (D,)
    plane = torch.pca_lowrank(flat, 2)[2]  # (D, 2)

    def project(y):
        return ((y.flatten(-2) - center) @ plane).unsqueeze(-2)

    return project(expert), {n: project(c) for n, c in chunks.items()}


# ---- flags --------------------------------------------------------------------------------------


def parse(argv=None):
    """The flags of this script."""
    p = Parser(
        __doc__,
        examples=[
            "python dbp_train.py --task pusht --K 4 --temp 0.2",
            "python dbp_train.py --task hopper --steps 6000 --out runs/hopper",
        ],
    )
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
    for name, what in (
        ("T_o", "observation history T_o, steps"),
        ("T_p", "prediction horizon T_p, steps"),
        ("T_a", "executed steps T_a (Eq. 23: T_o - 1 + T_a <= T_p)"),
    ):
        flag = f"--{name.replace('_', '-')}"
        g.add_argument(flag, type=int, metavar="STEPS", help=f"{what} {defaults_of(name)}")

    g = p.add_argument_group("method (Table VII)")
    g.add_argument(
        "--method",
        choices=tuple(baselines.METHODS),
        default="dbp",
        help="dbp, or one of baselines.py on the same network; bc is regression",
    )
    g.add_argument("--K", type=int, help="hypotheses per observation K; 4 if not given; not for bc")
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

    g = p.add_argument_group("run")
    g.add_argument("--seed", type=int, default=0, help="seed of weights, batches and latents")
    g.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="torch device",
    )
    g.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
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
        "--save-every", type=int, default=500, metavar="STEPS", help="steps between saves"
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
    return p.parse_args(argv)


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
    if args.lr is None:
        args.lr = 1e-4 if max(args.dims) >= 1024 else 5e-4
    if args.epochs is args.steps is args.minutes is None:
        if gpu:
            args.epochs = 100
        else:
            args.steps = 8000
    args.out = args.out or f"runs/{args.task}-{args.method}-seed{args.seed}"
    claim(args)
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
        "lr",
        "max_grad_norm",
        "ema_power",
        "threads",
        "save_every",
        "episodes",
    )
    check_seed(args, "seed")
    for k in ("warmup", "eval_every", "weight_decay", "spread", "memory"):
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


if __name__ == "__main__":
    cli(lambda: train(parse()), interrupted=RESUMABLE)
