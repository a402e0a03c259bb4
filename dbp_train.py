"""Stage 1, Drift-Based Policy: train a one-step generator from demonstrations.

Source: arXiv 2604.03540, Eqs. 6-11. At every step the generator gives K hypotheses per observation
in one call, the drifting field says where each of them should go, and the generator is fitted to
that. The run folder gets ckpt.pt (the policy, with its EMA weights), state.pt (for --resume),
log.jsonl, log.csv and TensorBoard files, curves.png and hypotheses.png. Under torchrun every
process takes a share of the batch, and the update is that of one process (ranks.py).
"""

import startup  # noqa: F401 - first, see there

import functools
import math
import time
import zlib

import torch

import baselines
from beyond import Memory, spread_outputs
from commands import BadInput, Parser, cli, step_seed
from data import Windows, load
from dbp_flags import add_flags, resolve
from dbp_report import LOG_EVERY, Report
from drift import chunk_loss
from encoders import vision_of
from files import load_torch
from policy import EMA, Policy, data_ranges
from ranks import ALONE, of_torchrun
from runs import load_state
from saves import (
    Interrupts,
    check_like,
    check_tensor,
    claimed,
    counter,
    first_not_finite,
    moments,
    number,
    policy_of,
    restore_moments,
    restoring,
    run_until_interrupted,
)
from teach import numbers_of, teach
from vision import augmented, take_convolutions

FREE_ON_RESUME = {
    "resume",
    "out",
    "data",
    "max_gb",
    "init",
    "vision_weights",
    "device",
    "threads",
    "save_every",
    "eval_every",
    "episodes",
    "one_process",
}


# ---- the loss and the step ----------------------------------------------------------------------


def dbp_loss(policy, obs, pos, args, generator, past_negatives=None, ranks=ALONE, n=None):
    """Stage 1's loss on a batch, and what tells progress (Eqs. 6-11).

    obs {name: (B, T_o, ...)}, in data units (the policy normalises them); pos (B, T_p, D_a): the
    expert's chunks, normalised. past_negatives: from the hypotheses to those of earlier epochs as
    keywords of chunk_loss, which it also keeps for the next epoch (beyond.Memory); None is the
    paper's method. ranks: the processes that share a batch of n rows; B of them are here.
    """
    pos = pos.unsqueeze(1)  # (B, P = 1, T_p, D_a)
    z = ranks.share(policy.latent(n or len(pos), args.K, generator=generator))
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=args.amp):
        x = policy(obs, z)  # Eqs. 6, 7  (B, K, T_p, D_a)
    how = {"temps": args.temp, "mode": args.mode, "total": ranks.total}
    if past_negatives:
        how.update(past_negatives(x.detach()))
    loss, info = chunk_loss(x, pos, **how)  # Eqs. 8-11

    # In mode "step" there is a force RMS for each of the T_p steps: the mean over them.
    force = info["force_rms"].reshape(-1, len(args.temp)).mean(0)
    forces = {f"force_{tau:g}": f for tau, f in zip(args.temp, force)}
    return loss, {"s": info["s"].mean(), **progress(x.detach(), pos), **forces}


def baseline_loss(policy, obs, pos, args, generator, past_negatives=None, ranks=ALONE, n=None):
    """The loss of another method on the same batch (baselines.py), and no figures.

    Processes that share a batch draw noise of their own for their rows.
    """
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


class Training:
    """The batches, and all that a step changes and --resume brings back.

    data: by which --resume knows the demonstrations again. sums: of the figures of the steps since
    the last row of the log. finite: a number of each of these steps, finite if its loss and its
    gradient are.
    """

    def __init__(self, args, task, ranks):
        self.args = args
        self.task = task
        self.ranks = ranks
        episodes = load(task, args.data, args.demos, args.max_gb, args.filter)
        self.windows = Windows(
            episodes,
            args.T_o,
            args.T_p,
            args.T_a,
            args.device,
            args.max_gb,
            to_end=bool(args.to_end),
        )
        self.data = [len(self.windows), zlib.crc32(self.windows.action.cpu().numpy())]
        check_shares(args, self.windows, ranks.world)
        self.n = min(args.batch, len(self.windows))  # of a batch, all processes together
        self.per_epoch = len(self.windows) // self.n  # a last, smaller batch is left out
        self.policy = new_policy(args, task, self.windows)
        if args.teach:
            if not args.resume:
                numbers = numbers_of(task, episodes, args)
                quiet = ranks.rank > 0
                teach(self.policy, self.windows, numbers, args, self.changed, quiet)
            self.policy.keep_cameras()
        self.ema = EMA(self.policy, args.ema, args.ema_power)
        self.opt = torch.optim.AdamW(
            [p for p in self.policy.parameters() if p.requires_grad],
            args.lr,
            betas=args.betas,
            weight_decay=args.weight_decay,
            fused=True,
        )
        self.memory = None
        if args.memory:
            D_a = self.policy.D_a
            self.memory = Memory(len(self.windows), args.memory, args.T_p, D_a, args.device)
        self.budget = Budget(args, self.per_epoch, ranks)
        self.step = 0
        self.sums = {}
        self.finite = []
        self.snapshots = {}  # step -> chunks (6, 32, T_p, D_a), for hypotheses.png
        if args.resume:
            self.restore()
        self.epoch = None
        self.order = None
        self.generator = torch.Generator(args.device)
        loss_of = dbp_loss if args.method == "dbp" else baseline_loss
        self.loss_of = ranks.sharing(self.policy, loss_of)

    def batch(self):
        """The windows of this step, of all processes; the step fixes them, for --resume."""
        epoch, j = divmod(self.step, self.per_epoch)
        if epoch != self.epoch:
            self.order = self.windows.order(epoch, self.args.seed)
            self.epoch = epoch
        return self.order[j * self.n : (j + 1) * self.n]

    def noise_seed(self):
        """The seed of this step's noise, which DBP's processes share; a baseline's do not."""
        ranks = ALONE if self.args.method == "dbp" else self.ranks
        return step_seed(self.args.seed, self.step, rank=ranks.rank, world=ranks.world)

    def changed(self, obs, generator, **how):
        """Observations whose pictures are changed at random, as the flags say."""
        args = self.args
        shift = args.shift or 0
        jitter = args.jitter or 0.0
        crop = self.policy.encoder.crop
        return augmented(obs, generator, crop=crop, shift=shift, jitter=jitter, **how)

    def augmented(self, obs):
        """The observations of a step, whose pictures are changed at random; the step fixes how."""
        return self.changed(obs, self.generator, n=self.n, share=self.ranks.share)

    def gradients(self):
        """Take the gradients of this step's loss. Returns the loss, detached, and its figures."""
        args = self.args
        i = self.ranks.share(self.batch())  # on the CPU
        obs, action = self.windows.batch(i)  # {name: (B, T_o, ...)}, (B, T_p, D_a)
        pos = self.policy.norm_action(action)
        past = None
        if self.memory:
            past = functools.partial(self.memory.negatives, i.to(args.device))
        self.generator.manual_seed(self.noise_seed())
        obs = self.augmented(obs)
        loss, info = self.loss_of(obs, pos, args, self.generator, past, self.ranks, self.n)
        self.ranks.backward(loss, self.n)
        return loss.detach(), info

    def advance(self):
        """One step: hypotheses, loss, update."""
        args = self.args
        loss, info = self.gradients()
        grad = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), args.max_grad_norm)
        factor = lr_factor(self.step, self.budget.total, args.warmup, args.schedule)
        self.opt.param_groups[0]["lr"] = args.lr * factor
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step)
        self.finite.append(loss + grad)
        now = {"loss": loss, "grad": grad, **info}
        self.sums = {k: self.sums[k] + v if self.sums else v for k, v in now.items()}

    def check_finite(self):
        """Stop a training in which a loss or a gradient was not finite. Raises BadInput.

        That is looked at once a row of the log and before a save, and not at each step, because
        the device would be waited for.
        """
        if not self.finite:
            return
        values = self.ranks.total(torch.stack(self.finite))  # of any process, as all must stop
        self.finite = []
        bad = first_not_finite(values.unbind())
        if bad is not None:
            raise BadInput(
                f"training stopped: at step {self.step - len(values) + bad + 1} the loss or its "
                "gradient was not finite. Begin again in another folder with a lower --lr; what "
                "was saved before is kept"
            )

    def total_sums(self):
        """`sums` over the rows of all processes; figures are means over the rows of each."""
        if not self.sums:
            return {}
        weight = self.ranks.weight(self.n)
        total = self.ranks.total(torch.stack(list(self.sums.values())) * weight)
        return dict(zip(self.sums, total))

    def means(self):
        """The means of the figures since the last row of the log, whose sums begin anew."""
        n = (self.step - 1) % LOG_EVERY + 1
        found = {k: v.item() / n for k, v in self.total_sums().items()}
        self.sums = {}
        return found

    def state(self, sums):
        """What state.pt keeps beside the step and the flags. sums: of all processes."""
        found = {
            "total": self.budget.total,
            "minutes": self.budget.minutes,
            "data": self.data,
            "snapshots": self.snapshots,
            "sums": sums,
            "moments": moments(self.opt),
        }
        if self.memory:
            found["memory"] = self.memory.state()
        return found

    def restore(self):
        """Go on from state.pt and the ckpt.pt of its step. Raises BadInput if they are damaged."""
        args = self.args
        needs = {"step", "total", "minutes", "snapshots", "sums", "moments"}
        with restoring(args.out):
            state = load_state(args, args.device, needs, FREE_ON_RESUME)
            if state.get("data", self.data) != self.data:  # older states do not tell
                raise BadInput(
                    f"{args.out} was begun with other demonstrations: give them by --data"
                )
            self.step = counter(state, "step")
            self.budget.minutes = number(state, "minutes")
            if state["total"] is not None:
                self.budget.total = counter(state, "total", self.step)
            check_like(state["sums"], state["sums"] and figures_of(args), "sums")
            self.sums = state["sums"]
            shape = (6, 32, args.T_p, self.policy.D_a)
            for step, chunks in state["snapshots"].items():
                counter({"a snapshot's step": step}, "a snapshot's step")
                check_tensor(chunks, shape, torch.float32, "a snapshot")
            self.snapshots = state["snapshots"]
            found = policy_of(args.out, state, args.device)
            check_like(found["weights"], self.policy.state_dict(), "weights")
            check_like(found["ema"], self.ema.state_dict(), "ema")
            self.policy.load_state_dict(found["weights"])
            self.ema.load_state_dict(found["ema"])
            restore_moments(self.opt, state["moments"])
            if self.memory:
                check_like(state["memory"], self.memory.state(), "memory")
                self.memory.restore(state["memory"])


def train(args):
    """Train a policy as the flags say; the run folder is args.out."""
    ranks = of_torchrun(args)  # first of all, since it chooses the GPU
    task = resolve(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    with claimed(args, ranks), ranks.joined(args.device):
        training = Training(args, task, ranks)
        with Interrupts(quiet=not ranks.first) as interrupts:
            report = Report(training, interrupts) if ranks.first else None
            step_on(training, report, interrupts)
        if report:
            report.finish()


def step_on(training, report, interrupts):
    """Step until the end, with logs, scores and saves on the way.

    report: None in all processes but the first. Raises BadInput, and KeyboardInterrupt after
    Ctrl-C, when the last step has been saved.
    """
    ranks = training.ranks
    budget = training.budget
    if report:
        report.score_if_due()
    budget.start()
    while not (stop := ranks.any(interrupts.asked)) and budget.more(training.step):
        if report:
            report.snapshot_if_due()
        training.advance()
        if training.step % LOG_EVERY == 0 or training.step == budget.total:
            training.check_finite()
            budget.tick(training.step)
            means = training.means()
            if report:
                report.log(means)
            budget.start()
        elif report:
            report.bar.update()
    if stop:
        training.check_finite()
        budget.count()
        sums = training.total_sums()
        if report:
            report.save(sums)
        ranks.any(False)  # the others wait for it
        raise KeyboardInterrupt


# ---- setting up ---------------------------------------------------------------------------------


def new_policy(args, task, windows):
    """The policy that a training begins from, or the one of --init."""
    shape = {
        "task": task.name,
        "obs": task.specs,
        "D_a": task.D_a,
        "T_o": args.T_o,
        "T_p": args.T_p,
        "T_a": args.T_a,
        "dims": args.dims,
        **vision_of(task.obs, task.crop, args.encoder, args.pool, bool(args.shared_cameras)),
    }
    if args.method != "dbp":
        shape.update(method=args.method, time_dim=baselines.time_dim(args.method))
    torch.manual_seed(args.seed)
    policy = Policy(shape, data_ranges(windows.obs, windows.action, task.limits)).to(args.device)
    baselines.start(policy)
    if args.vision_weights:
        start_to_see(policy, args.vision_weights)
    if args.spread:
        first = windows.batch(torch.zeros(1, dtype=torch.long, device=args.device))[0]
        spread_outputs(policy.net, args.spread, policy.latent(500), policy.features(first))
    if args.init:
        start_from(policy, args.init, args.device)
    return policy


def start_to_see(policy, path):
    """Copy the convolutions of torchvision's ResNet18 into the encoder of every camera. BadInput.

    path: a file of its state dict, as torchvision publishes it; it is read without unpickling.
    """
    try:
        found = load_torch(path)
    except BadInput as e:
        raise BadInput(f"--vision-weights: {e}: give torchvision's resnet18-f37072fd.pth") from e
    for camera in policy.encoder.cameras:
        take_convolutions(camera.body, found, path)


def start_from(policy, path, device):
    """Copy the weights and normalisers of a checkpoint into a policy of the same shape."""
    start, _ = Policy.load(path, device, task=policy.task)
    if start.shape != policy.shape:
        raise BadInput(
            f"--init {path} has {start.shape}, this run {policy.shape}: use the same flags"
        )
    policy.load_state_dict(start.state_dict())


def check_shares(args, windows, world):
    """Refuse what cannot be split over the processes. Raises BadInput."""
    batch = min(args.batch, len(windows))
    if batch < world:
        raise BadInput(f"{world} processes cannot share a batch of {batch}: raise --batch")
    if world > 1 and args.memory:
        raise BadInput("--memory is of one process: run it without torchrun")


def figures_of(args):
    """The figures of a step, each a number of its own: {name: a tensor like it}."""
    names = ["loss", "grad"]
    if args.method == "dbp":
        names += ["s", "best", "mean", "diversity", *(f"force_{tau:g}" for tau in args.temp)]
    return {name: torch.zeros(()) for name in names}


# ---- how long to train --------------------------------------------------------------------------


class Budget:
    """The number of steps: given, or fitted to --minutes by the pace of the first half.

    total: the steps of the whole run, None while --minutes has not fixed them. minutes: the time
    of training so far, without evaluations and saves.
    """

    def __init__(self, args, per_epoch, ranks):
        self.limit = args.minutes
        self.ranks = ranks
        self.minutes = 0.0
        self.total = args.steps
        if self.total is None and args.epochs:
            self.total = math.ceil(args.epochs * per_epoch)
        self.clock = time.perf_counter()

    def more(self, step):
        """Whether there is a step after this number of them."""
        return self.total is None or step < self.total

    def start(self):
        """Let the clock run from now on."""
        self.clock = time.perf_counter()

    def count(self):
        """Count the time since the last start()."""
        self.minutes += (time.perf_counter() - self.clock) / 60

    def tick(self, step):
        """Count the time, and fit the steps to the time that is left."""
        self.count()
        if not self.limit or step < 100:
            return
        fit = max(step, round(step * self.limit / self.minutes))
        if self.total and self.minutes > self.limit / 2:
            fit = self.total
        self.total = self.ranks.agreed(fit)  # each has a clock of its own


def parse(argv=None):
    """The flags of this script."""
    p = Parser(
        __doc__,
        examples=[
            "python dbp_train.py --task pusht --K 4 --temp 0.2",
            "python dbp_train.py --task hopper --steps 6000 --out runs/hopper",
        ],
    )
    add_flags(p)
    return p.parse_args(argv)


if __name__ == "__main__":
    cli(lambda: run_until_interrupted(train, parse()))
