"""Stage 1, Drift-Based Policy: train a one-step generator from demonstrations.

Source: arXiv 2604.03540, Eqs. 6-11. At every step the generator gives K hypotheses per observation
in one call, the drifting field says where each of them should go, and the generator is fitted to
that. The run folder gets ckpt.pt (the policy, with its EMA weights), state.pt (for --resume),
log.jsonl, log.csv and TensorBoard files, curves.png and hypotheses.png. Under torchrun every
process takes a share of the batch, and the update is that of one process (ranks.py).
"""

import startup  # noqa: F401 - first, see there

import copy
import functools
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

import baselines
from beyond import Memory, spread_outputs
from commands import (
    BadInput,
    Parser,
    above_zero,
    check_device,
    check_seed,
    cli,
    flags_of,
    refuse_flags,
    step_seed,
)
from data import Windows, load
from drift import chunk_loss
from encoders import vision_of
from envs import defaults_of, task_list, task_named
from evaluate import evaluate, line, log_score
from files import atomic, load_torch
from formats import MAX_GB
from policy import Policy, data_ranges
from ranks import ALONE, of_torchrun
from runs import Run, curves, load_state
from saves import (
    Interrupts,
    Timer,
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
    write,
)
from task import check_horizons
from vision import KINDS, POOLS, augmented, take_convolutions

PAPER_DIMS = (512, 1024, 2048)
SMALL_DIMS = (64, 128, 256)  # on a CPU (note 3)
TINY_DIMS = (64, 128)  # on a CPU, for chunks of fewer than 8 steps
DBP_DEFAULTS = {"K": 4, "temp": [0.2], "mode": "chunk", "spread": 0.0, "memory": 0}
DBP_ONLY = ("temp", "mode", "spread", "memory")  # the flags that no other method uses
OF_CAMERAS = ("encoder", "shared_cameras", "pool", "vision_weights", "shift", "jitter")  # flags
LENGTHS = ("epochs", "steps", "minutes")  # flags that say how long to train
LOG_EVERY = 50  # steps
SNAPSHOT_STEPS = (0, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # of hypotheses.png
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


class Training:
    """The batches, and all that a step changes and --resume brings back.

    sums: of the figures of the steps since the last row of the log. finite: a number of each of
    these steps, finite if its loss and its gradient are.
    """

    def __init__(self, args, task, ranks):
        self.args = args
        self.task = task
        self.ranks = ranks
        episodes = load(task, args.data, args.demos, args.max_gb)
        self.windows = Windows(episodes, args.T_o, args.T_p, args.T_a, args.device)
        check_shares(args, self.windows, ranks.world)
        self.n = min(args.batch, len(self.windows))  # of a batch, all processes together
        self.per_epoch = len(self.windows) // self.n  # a last, smaller batch is left out
        self.policy = new_policy(args, task, self.windows)
        self.ema = EMA(self.policy, args.ema, args.ema_power)
        self.opt = torch.optim.AdamW(
            self.policy.parameters(),
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

    def augmented(self, obs):
        """Observations whose pictures are changed at random; the step fixes how."""
        return augmented(
            obs,
            self.generator,
            crop=self.policy.encoder.crop,
            shift=self.args.shift or 0,
            jitter=self.args.jitter or 0.0,
            n=self.n,
            share=self.ranks.share,
        )

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


# ---- what the first process writes --------------------------------------------------------------


class Report:
    """The run folder of a training: logs, saves, scores, pictures; and the progress bar."""

    def __init__(self, training, interrupts):
        args = training.args
        windows = training.windows
        policy = training.policy
        self.training = training
        self.interrupts = interrupts
        self.args = args
        self.flags = flags_of(args)
        self.out = Path(args.out)
        self.timer = Timer(args.save_every)
        self.shadow = baselines.prepare(copy.deepcopy(policy).eval())
        six = torch.linspace(0, len(windows) - 1, 6, device=args.device).long()
        self.shown = windows.batch(six)
        noise = torch.Generator().manual_seed(0)
        self.z_shown = torch.randn(6, 32, args.T_p, policy.D_a, generator=noise).to(args.device)
        self.run = Run(self.out, self.flags, resume_step=training.step if args.resume else None)
        parameters = sum(p.numel() for p in policy.parameters()) / 1e6
        print(
            f"{training.task.name}: {len(windows)} windows, {parameters:.1f} M parameters, "
            f"{args.device}, {self.out}"
        )
        self.bar = tqdm(
            initial=training.step,
            total=training.budget.total,
            unit="step",
            mininterval=1,
            dynamic_ncols=True,
        )

    def ema_policy(self):
        """The policy with the averaged weights, which is what acts."""
        training = self.training
        self.shadow.load_state_dict({**training.policy.state_dict(), **training.ema.state_dict()})
        return self.shadow

    def save(self, sums):
        """Write ckpt.pt and state.pt. sums: of the figures since the last row of the log."""
        training = self.training
        step = training.step
        ema = training.ema.state_dict()

        def write_policy(path):
            training.policy.save(path, flags=self.flags, ema=ema, step=step)

        write(self.out, step, write_policy, {"flags": self.flags, **training.state(sums)})
        self.timer.restart()

    def snapshot(self):
        """Keep the hypotheses of six observations at this step, for hypotheses.png."""
        with torch.inference_mode():
            chunks = draws(self.ema_policy(), self.shown[0], self.z_shown)
        self.training.snapshots[self.training.step] = chunks.cpu()

    def snapshot_if_due(self):
        """Keep the hypotheses at the steps of hypotheses.png."""
        step = self.training.step
        if step in SNAPSHOT_STEPS and step not in self.training.snapshots:
            self.snapshot()

    def score(self):
        """Evaluate the averaged policy and log it; None if the task has no simulator."""
        task = self.training.task
        if task.env is None:
            return None
        workers = not self.args.one_process
        result, _ = evaluate(self.ema_policy(), task, self.args.episodes, workers=workers)
        log_score(self.run, self.training.step, result, minutes=self.training.budget.minutes)
        return result

    def score_if_due(self):
        """Score where it is time for that, unless Ctrl-C breaks it off or the log has the score.

        The last step is scored by finish(). An evaluation that was broken off is due again when
        the run is resumed.
        """
        step = self.training.step
        every = self.args.eval_every
        row = step and step % LOG_EVERY == 0 and step != self.training.budget.total
        scored = any(row["step"] == step and "score" in row for row in self.run.rows)
        if not (row and every and step % every < LOG_EVERY) or scored or self.interrupts.asked:
            return
        result = None
        with self.interrupts.break_off():
            result = self.score()
        if result:
            minutes = self.training.budget.minutes
            self.bar.write(f"step {step}, {minutes:.1f} min: {line(result)}")

    def log(self, means):
        """Write a row of figures; score and save where it is time for that."""
        training = self.training
        lr = training.opt.param_groups[0]["lr"]
        self.run.log(training.step, minutes=training.budget.minutes, lr=lr, **means)
        self.bar.total = training.budget.total
        self.bar.update(training.step - self.bar.n)
        names = ("s", "best", "mean", "diversity") if "s" in means else ("loss",)
        self.bar.set_postfix({k: f"{means[k]:.3g}" for k in names})
        self.score_if_due()
        if self.timer.due and training.step != training.budget.total:
            self.save({})  # after the score: a kill between the two loses neither

    def finish(self):
        """Draw the pictures, score the policy, and print the last line."""
        training = self.training
        self.bar.close()
        self.snapshot()
        self.save({})
        result = self.score()
        curves(self.run, self.out / "curves.png", panels(self.args))
        path = self.out / "hypotheses.png"
        hypotheses_figure(training.policy, self.shown, training.snapshots, path)
        self.run.close()  # last: log.csv says that the run is finished
        scored = f"no score: {training.task.name} has no simulator"
        if result:
            scored = line(result)
        minutes = training.budget.minutes
        print(f"{scored}  {training.step} steps, {minutes:.1f} min of training  {self.out}/ckpt.pt")


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


if __name__ == "__main__":
    cli(lambda: run_until_interrupted(train, parse()))
