"""Stage 2, DBPO: PPO with exact likelihoods on a pretrained one-step policy.

Source: arXiv 2604.03540, Eqs. 12-17, 43-57. The equations are in dbpo_loss.py, the reward and the
roll-out in dbpo_rollout.py, the update in dbpo_update.py. The checkpoint names its task. Every
iteration collects chunks with noise, computes advantages, and updates critic and actor. What comes
out is an ordinary policy that acts with its mean, in one forward pass. The run folder gets init.pt
(the policy that it began from), ckpt.pt (the last one), best.pt, state.pt (for --resume), logs and
curves.png. Under torchrun the simulators are split over the processes, and the update is that of
one process (ranks.py).
"""

import startup  # noqa: F401 - first, see there

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from commands import START_SEEDS, BadInput, Parser, cli, flags_of, step_seed
from dbpo_flags import add_flags, resolve
from dbpo_loss import Actor, Critic, ReturnScale, actor_loss, critic_loss
from dbpo_noise import noise_for
from dbpo_rollout import collect, leaves, make_buffer, whole_buffer
from dbpo_update import advantages, update
from envs import Simulators, closing
from evaluate import bootstrap, evaluate, line, log_score, smoothness
from policy import Policy
from ranks import of_torchrun
from runs import Run, curves, load_state
from saves import (
    Interrupts,
    Timer,
    check_like,
    check_tensor,
    claimed,
    counter,
    moments,
    number,
    policy_of,
    restore_moments,
    restoring,
    run_until_interrupted,
    write,
)

RAMP = 5  # iterations in which the actor's learning rate rises to --lr (note 24)
FURTHEST = 100  # that the pace goes from 1
CHOICE_SEED = 200_000  # the first start seed of the evaluations that choose best.pt
FREE_ON_RESUME = {
    "resume",
    "out",
    "init",
    "device",
    "threads",
    "num_iterations",
    "save_every",
    "eval_every",
    "episodes",
    "one_process",
}


# ---- schedules ----------------------------------------------------------------------------------


def anchor_weight(it, args):
    """The anchor's weight lambda at an iteration: it falls linearly, then stays (note 13)."""
    part = min(it / args.anchor_iters, 1.0)
    return args.anchor + part * (args.anchor_final - args.anchor)


def learning_rates(it, pace, args):
    """The critic's and the actor's learning rates: a cosine; the actor's rises first (note 24).

    pace: a factor of the actor's, see `paced`.
    """
    cosine = 0.5 * (1 + math.cos(math.pi * it / args.num_iterations))
    factor = args.lr_final + (1 - args.lr_final) * cosine
    ramp = min(max(it - args.critic_warmup + 1, 0) / RAMP, 1.0)
    return args.lr_critic * factor, args.lr * factor * ramp * pace


def paced(pace, kl, target_kl):
    """The pace after an update with that KL: slower if it went too far, faster if not far enough.

    The same learning rate moves a policy the further, in KL, the less noise it has. The KL of an
    update is what has to stay the same, so the rate follows it (note 34).
    """
    if kl > 1.5 * target_kl:
        return max(pace / 1.3, 1 / FURTHEST)
    if kl < target_kl / 1.5:
        return min(pace * 1.3, FURTHEST)
    return pace


def annealed(sigma, it, args):
    """The noise at an iteration: sigma for half of the run, its share sigma_final in the end.

    It falls evenly in the logarithm (note 12).
    """
    fallen = max(2 * it / args.num_iterations - 1, 0)
    return sigma * args.sigma_final**fallen


# ---- training -----------------------------------------------------------------------------------


class Training:
    """Everything that --resume brings back, and the run folder that it is kept in.

    Every process has one; only the first has the run folder's log `run` and the progress bar.
    """

    def __init__(self, args, policy, task, ranks):
        self.args = args
        self.task = task
        self.policy = policy
        self.ranks = ranks
        self.interrupts = Interrupts(quiet=not ranks.first)
        self.timer = Timer(args.save_every)
        if args.keep_encoder:
            policy.keep_cameras()
        self.frozen = copy.deepcopy(policy).requires_grad_(False)  # theta_0 of Eq. 16
        self.sigma = args.sigma
        self.actor = Actor(policy, math.nan, args.sigma_range, args.rho)
        self.critic = Critic(policy)
        self.opt_critic = torch.optim.Adam(learning(self.critic), eps=1e-5, fused=True)
        self.opt_actor = torch.optim.Adam(learning(self.actor), eps=1e-5, fused=True)
        self.it = 0
        self.pace = 1.0
        self.env_steps = 0
        self.minutes = 0.0
        self.best = -math.inf
        self.out = Path(args.out)
        self.flags = flags_of(args)
        state = self.restored() if args.resume else {"episodes": None, "scale": None}
        if self.sigma is None:
            self.sigma = self.measured()
        self.actor_loss = ranks.sharing(self.actor, actor_loss)
        self.critic_loss = ranks.sharing(self.critic, critic_loss)
        self.sims = Simulators(
            task,
            args.num_envs,
            T_o=policy.T_o,
            T_a=policy.T_a,
            workers=not args.one_process,
            seed=args.seed,
            state=state["episodes"],
            ranks=ranks,
        )
        self.scale = ReturnScale(args.num_envs, args.gamma, state["scale"])
        self.run = None
        self.bar = None
        if ranks.first:
            self.open_folder()
        n = ranks.size(args.num_envs)
        self.buffer = make_buffer(policy, args.num_steps, n, args.keep_encoder)

    def open_folder(self):
        """Begin or continue the log, say what is trained, and show the progress."""
        args = self.args
        if not args.resume:
            self.policy.save(self.out / "init.pt", flags=self.flags)
        self.run = Run(self.out, self.flags, resume_step=self.env_steps if args.resume else None)
        self.announce()
        self.bar = tqdm(
            initial=self.it, total=args.num_iterations, unit="iteration", dynamic_ncols=True
        )

    def restored(self):
        """Bring modules, optimisers and counters back; returns all of state.pt.

        Raises BadInput if the run folder's files are damaged.
        """
        args = self.args
        needs = {"step", "iteration", "minutes", "best", "episodes", "scale", "sigma", "pace"}
        needs |= {"head", "critic", "moments"}
        with restoring(self.out):
            state = load_state(args, "cpu", needs, FREE_ON_RESUME)
            start, _ = Policy.load(self.out / "init.pt", args.device, task=self.task.name)
            policy = policy_of(self.out, state, "cpu")
            for name, module, weights in (
                ("init.pt", self.frozen, start.state_dict()),
                ("weights", self.policy, policy["weights"]),
                ("head", self.actor.head, state["head"]),
                ("critic", self.critic, state["critic"]),
            ):
                check_like(weights, module.state_dict(), name)
                module.load_state_dict(weights)
            for opt, saved in zip((self.opt_critic, self.opt_actor), state["moments"], strict=True):
                restore_moments(opt, saved)
            self.it = counter(state, "iteration")
            self.env_steps = counter(state, "step")
            self.minutes = number(state, "minutes")
            self.sigma = number(state, "sigma", 1e-9)
            self.pace = number(state, "pace", 1e-9)
            self.best = state["best"]
            if type(self.best) is not float or math.isnan(self.best):
                raise ValueError("best is no number")
            check_episodes(state["episodes"], args.num_envs, self.policy, self.task)
            check_scale(state["scale"], args.num_envs)
        return state

    def measured(self):
        """The noise that the policy bears; the first process measures it for all."""
        found = []
        if self.ranks.first:
            args = self.args
            sigma, why = noise_for(
                self.policy, self.task, args.rho, args.noise_episodes, workers=not args.one_process
            )
            print(why)
            found.append(sigma)
        return self.ranks.gathered(found)[0]

    def announce(self):
        """Print what is trained, and how large the buffer is."""
        args = self.args
        megabytes = buffer_bytes(self.policy, args, self.ranks) / 1e6
        parameters = sum(p.numel() for p in self.actor.parameters()) / 1e6
        print(
            f"{self.task.name}: {args.init}, {parameters:.1f} M parameters, {args.num_envs} x "
            f"{args.num_steps} chunk steps an iteration ({megabytes:.1f} MB), {args.device}, "
            f"{self.out}"
        )

    def save(self):
        """Write ckpt.pt and state.pt. All processes call it, for each has simulators."""
        state = {
            "iteration": self.it,
            "minutes": self.minutes,
            "best": self.best,
            "sigma": self.sigma,
            "pace": self.pace,
            "episodes": self.sims.state(),
            "scale": self.scale.state(),
            "flags": self.flags,
            "head": self.actor.head.state_dict(),
            "critic": self.critic.state_dict(),
            "moments": [moments(self.opt_critic), moments(self.opt_actor)],
        }

        if self.ranks.first:
            write(self.out, self.env_steps, self.save_policy, state)
        self.timer.restart()

    def save_policy(self, path):
        """Write a checkpoint of the last weights (note 59)."""
        self.policy.save(path, flags=self.flags, step=self.env_steps)

    def log(self, now):
        """Write a row of an iteration's figures, and show some of them."""
        self.run.log(self.env_steps, **now)
        self.bar.update()
        shown = ("return", "kl", "clipped", "explained", "steps_per_s")
        self.bar.set_postfix({k: f"{now[k]:.3g}" for k in shown if k in now})

    def judged(self, policy, **kw):
        """What evaluate says of a policy as it would be deployed, its mean, and its jerk."""
        workers = not self.args.one_process
        result, r = evaluate(policy.eval(), self.task, self.args.episodes, workers=workers, **kw)
        return {**result, "jerk": smoothness(r, policy.T_o, policy.T_a)["jerk"]}

    def choose_if_due(self):
        """Choose where it is time for that, unless Ctrl-C breaks it off or the log has the score.

        What was broken off is due again when the run is resumed.
        """
        every = self.args.eval_every
        due = self.it == 0 or (every and self.it % every == 0)
        scored = any(row["step"] == self.env_steps and "score" in row for row in self.run.rows)
        if due and not scored and not self.interrupts.asked:
            with self.interrupts.break_off():
                self.choose()

    def choose(self):
        """Evaluate on the starts that choose, log it, and keep the best policy as best.pt."""
        result = self.judged(self.policy, start_seed=CHOICE_SEED)
        log_score(self.run, self.env_steps, result, minutes=self.minutes, iteration=self.it)
        self.bar.write(
            f"iteration {self.it}, {self.env_steps} steps, {self.minutes:.1f} min: {line(result)}"
        )
        if result["score"] > self.best:
            self.best = float(result["score"])
            self.save_policy(self.out / "best.pt")

    def finish(self):
        """Compare before and after on the standard starts, draw the curves, print the last line."""
        self.bar.close()
        best, _ = Policy.load(self.out / "best.pt", self.args.device)
        best.set_executed(self.policy.T_a)
        before, after, chosen = (self.judged(p) for p in (self.frozen, self.policy, best))
        here = [row for row in self.run.rows if row["step"] == self.env_steps]
        if not any("final_score" in row for row in here):
            results = {"before": before, "final": after, "best": chosen}
            told = {
                f"{name}_{k}": result[k]
                for name, result in results.items()
                for k in ("score", "success", "jerk")
                if result.get(k) is not None
            }
            self.run.log(self.env_steps, **told)
        curves(self.run, self.out / "curves.png", PANELS, x="environment steps")
        self.run.close()  # last: log.csv says that the run is finished
        print(f"before: {line(before)}\nafter: {line(after)}\nbest.pt: {line(chosen)}")
        print(
            f"{verdict(before, after, chosen, self.out)}  {self.env_steps} environment steps, "
            f"{self.minutes:.1f} min of training"
        )


def learning(module):
    """The parameters of a module that an update changes."""
    return [p for p in module.parameters() if p.requires_grad]


def buffer_bytes(policy, args, ranks):
    """How many bytes the buffer of a process will take."""
    n = ranks.size(args.num_envs)
    buffer = make_buffer(policy, args.num_steps, n, args.keep_encoder, device="meta")
    return sum(v.nbytes for v in leaves(buffer))


def verdict(before, after, best, out):
    """The last line: what was gained on the same starts, and the file to use.

    before, after, best: results of evaluate. ckpt.pt is the file if it gained for sure, that is,
    if the 95 % interval of the paired differences lies above 0; if not, best.pt if that did; else
    init.pt, what the run began with.
    """
    digits = 3 if "success" in before else 0
    gains = {}
    for name, result in (("ckpt.pt", after), ("best.pt", best)):
        difference = np.subtract(result["scores"], before["scores"])
        gains[name] = (difference.mean(), *bootstrap(difference))
    told = [
        f"{name} {'gained' if mean >= 0 else 'lost'} {abs(mean):.{digits}f} "
        f"[{low:.{digits}f}, {high:.{digits}f}]"
        for name, (mean, low, high) in gains.items()
    ]
    sure = [name for name, (_, low, _) in gains.items() if low > 0]
    use = f"use {out}/{sure[0]}" if sure else f"nothing was gained for sure: use {out}/init.pt"
    jerk = ""
    if before["jerk"] is not None and after["jerk"] is not None:  # None: episodes of 3 steps
        jerk = f", jerk {before['jerk']:.3g} -> {after['jerk']:.3g}"
    scores = f"score {before['score']:.{digits}f} -> {after['score']:.{digits}f}"
    return f"{scores}{jerk}: {', '.join(told)}: {use}"


def check_episodes(found, n, policy, task):
    """Refuse what no Simulators.state() gave for n simulators. Raises ValueError."""
    check_tensor(found["seeds"], (n,), torch.int64, "seeds")
    check_tensor(found["score"], (n,), torch.float64, "score")
    if not ((found["seeds"] >= 0) & (found["seeds"] < START_SEEDS)).all():
        raise ValueError("start seeds are out of range")
    if counter(found, "next") >= 2**62 or len(found["past"]) != n:
        raise ValueError("the episodes are of other simulators")
    for chunks in found["past"]:
        if len(chunks):
            shape = (min(len(chunks), task.steps), policy.T_a, policy.D_a)
            check_tensor(chunks, shape, torch.float32, "the chunks of an episode")


def check_scale(found, n):
    """Refuse what no ReturnScale.state() gave for n simulators. Raises ValueError."""
    check_tensor(found["running"], (n,), torch.float64, "running")
    counter(found, "count")
    number(found, "mean", -math.inf)
    number(found, "square")


PANELS = [
    ("score, evaluation", ["score"], "linear"),
    ("score, training episodes", ["return"], "linear"),
    ("KL of an update", ["kl"], "linear"),
    ("clipped share", ["clipped"], "linear"),
    ("explained variance", ["explained"], "linear"),
    ("sigma", ["sigma"], "linear"),
    ("squared distance to the anchor", ["anchor"], "linear"),
    ("squared third differences", ["rough"], "linear"),
    ("jerk, evaluation", ["jerk"], "linear"),
    ("learning rate", ["lr"], "linear"),
]


def iterate(run, generator):
    """One iteration: collect, advantages, update of the critic, update of the actor.

    run: a Training. Returns the figures of the iteration.
    """
    args = run.args
    clock = time.perf_counter()
    generator.manual_seed(step_seed(args.seed, run.it))  # all noise depends on `it`: resume
    anchor = anchor_weight(run.it, args)
    lr_critic, lr = learning_rates(run.it, run.pace, args)
    run.opt_critic.param_groups[0]["lr"] = lr_critic
    run.opt_actor.param_groups[0]["lr"] = lr
    run.actor.sigma = annealed(run.sigma, run.it, args)

    frozen = run.frozen if anchor else None
    scores, simulator_s = collect(
        run.actor, run.critic, frozen, run.sims, run.buffer, run.task, args, generator
    )
    buffer = whole_buffer(run.buffer, args.num_envs, run.ranks)
    figures = advantages(buffer, run.scale, args)
    rollout_s = time.perf_counter() - clock

    shared = {
        "max_grad_norm": args.max_grad_norm,
        "generator": generator,
        "ranks": run.ranks,
    }
    fitted, _ = update(
        run.critic,
        run.opt_critic,
        lambda b: run.critic_loss(b, args),
        buffer,
        epochs=args.critic_epochs,
        batch=args.critic_minibatch_size,
        **shared,
    )
    figures.update(fitted)
    if run.it >= args.critic_warmup:
        last, first = update(
            run.actor,
            run.opt_actor,
            lambda b: run.actor_loss(b, args, anchor),
            buffer,
            epochs=args.update_epochs,
            batch=args.minibatch_size,
            **shared,
        )
        figures.update(last, off=first["off"])  # off: before any step, so about 0
        n = args.num_envs * args.num_steps
        steps = args.update_epochs * math.ceil(n / args.minibatch_size)
        if run.it >= args.critic_warmup + RAMP and steps > 1:  # the KL is that before each step
            run.pace = paced(run.pace, last["kl"], args.target_kl)

    seconds = time.perf_counter() - clock
    steps = buffer["ran"].sum().item()
    run.it += 1
    run.env_steps += int(steps)
    run.minutes += seconds / 60
    every = run.ranks.whole(torch.from_numpy(scores.T), args.num_envs).T.numpy()  # (S, N)
    if not np.isnan(every).all():
        figures["return"] = float(np.mean(every[~np.isnan(every)]))
    return {
        "minutes": run.minutes,
        "iteration": run.it,
        "lambda": anchor,
        "lr": lr,
        "sim_s": simulator_s,
        "rollout_s": rollout_s,
        "update_s": seconds - rollout_s,
        "steps_per_s": steps / seconds,
        **figures,
    }


def train(args):
    """Improve a policy as the flags say; the run folder is args.out."""
    ranks = of_torchrun(args)  # first of all, since it chooses the GPU
    policy, task = resolve(args)
    check_shares(args, ranks.world)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # its rounding would move the ratio off 1 (note 8)
    torch.manual_seed(args.seed)
    with claimed(args, ranks), ranks.joined(args.device):
        run = Training(args, policy, task, ranks)
        with closing(run.sims.env), run.interrupts:
            improve(run)
        if ranks.first:
            run.finish()


def check_shares(args, world):
    """Refuse what cannot be split over the processes. Raises BadInput."""
    if args.num_envs < world:
        raise BadInput(
            f"{world} processes cannot share {args.num_envs} simulators: raise --num-envs"
        )


def improve(run):
    """Iterate until the end, with evaluations and saves on the way.

    run: a Training. Raises BadInput, and KeyboardInterrupt after Ctrl-C, when the last iteration
    has been saved.
    """
    args = run.args
    ranks = run.ranks
    generator = torch.Generator(args.device)
    if ranks.first:
        run.choose_if_due()
    while not (stop := ranks.any(run.interrupts.asked)) and run.it < args.num_iterations:
        try:
            now = iterate(run, generator)
        except FloatingPointError as e:
            raise BadInput(
                f"training stopped in iteration {run.it}, where {e}: begin again in another folder "
                "with a lower --lr or --lr-critic; what was saved before is kept"
            ) from e
        if ranks.first:
            run.log(now)
            run.choose_if_due()
        if ranks.agreed(run.timer.due) and run.it < args.num_iterations:
            run.save()
    run.save()
    if stop:
        ranks.any(False)  # the others wait until it is saved
        raise KeyboardInterrupt


def parse(argv=None):
    """The flags of this script."""
    p = Parser(
        __doc__,
        examples=[
            "python dbpo_ppo.py --init runs/pusht-dbp-seed0/ckpt.pt",
            "python dbpo_ppo.py --init runs/hopper-dbp-seed0/ckpt.pt --anchor 0 --out runs/free",
        ],
    )
    add_flags(p)
    return p.parse_args(argv)


if __name__ == "__main__":
    cli(lambda: run_until_interrupted(train, parse()))
