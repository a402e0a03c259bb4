"""What Stage 1 writes: logs, saves, scores and pictures of the run folder, and the progress bar."""

import copy
from pathlib import Path

import torch
from tqdm import tqdm

import baselines
from commands import flags_of
from evaluate import evaluate, line, log_score
from files import atomic
from runs import Run, curves
from saves import Timer, write

LOG_EVERY = 50  # steps
SNAPSHOT_STEPS = (0, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # of hypotheses.png


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
