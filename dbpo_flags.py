"""The flags of Stage 2: what they mean, their defaults by task, and what is refused."""

import argparse
import math
from pathlib import Path

from commands import BadInput, above_zero, add_machine, check_device, check_seed, refuse_flags
from envs import defaults_of, task_named
from policy import Policy

MOST_ENVS = 10_000  # simulators

# ---- what there is ------------------------------------------------------------------------------


def add_flags(p):
    """Add all flags of dbpo_ppo.py to a Parser."""
    add_policy(p)
    add_rollout(p)
    add_update(p)
    add_run(p)


def by_task(flag):
    """The help's words on a default that depends on the task."""
    return defaults_of(flag, "stage2")


def add_policy(p):
    """Flags of the policy that is improved, and of its noise."""
    g = p.add_argument_group("policy")
    g.add_argument(
        "--init",
        metavar="CKPT",
        help="the Stage-1 (or Stage-2) checkpoint to improve; --resume with --out needs none",
    )
    g.add_argument("--task", help="refuse a checkpoint of any other task")
    g.add_argument(
        "--T-p",
        type=int,
        metavar="STEPS",
        help="refuse a checkpoint with any other horizon T_p",
    )
    g.add_argument(
        "--T-a",
        type=int,
        metavar="STEPS",
        help="executed steps T_a, instead of the checkpoint's",
    )
    g.add_argument(
        "--sigma",
        type=float,
        help="initial noise sigma, normalised action units (Eq. 44); if not given, what costs the "
        "policy 5 %% of its score, measured before training",
    )
    g.add_argument(
        "--noise-episodes",
        type=int,
        metavar="N",
        help="episodes without noise, and with each of four noises, by which sigma is measured "
        f"{by_task('noise_episodes')}",
    )
    g.add_argument(
        "--sigma-range",
        type=float,
        nargs=2,
        default=(0.3, 2.0),
        metavar=("MIN", "MAX"),
        help="the bounds of the noise (Eq. 45), as multiples of sigma",
    )
    g.add_argument(
        "--sigma-final",
        type=float,
        metavar="SHARE",
        help="the share of sigma, and of its bounds, that is left at the end: they fall in the "
        f"second half of the run, evenly in the logarithm {by_task('sigma_final')}",
    )
    g.add_argument(
        "--rho",
        type=float,
        help="correlation of the noise of one step of a chunk with the next one's; 0: as in the "
        f"paper {by_task('rho')}",
    )


def add_rollout(p):
    """Flags of the roll-out."""
    g = p.add_argument_group("roll-out")
    g.add_argument("--num-envs", type=int, metavar="N", help=f"simulators {by_task('num_envs')}")
    g.add_argument(
        "--num-steps",
        type=int,
        metavar="S",
        help=f"chunk steps of each simulator an iteration {by_task('num_steps')}",
    )
    g.add_argument(
        "--num-iterations",
        type=int,
        metavar="N",
        help=f"iterations of roll-out and update {by_task('num_iterations')}",
    )
    g.add_argument("--gamma", type=float, help=f"discount per chunk {by_task('gamma')}")
    g.add_argument(
        "--inner-gamma",
        type=float,
        default=1.0,
        help="discount per primitive step inside a chunk",
    )
    g.add_argument(
        "--success-bonus",
        type=float,
        help=f"reward for ending an episode by success {by_task('success_bonus')}",
    )
    g.add_argument(
        "--gae-lambda",
        type=float,
        help=f"lambda of GAE for the actor, per chunk {by_task('gae_lambda')}",
    )
    g.add_argument(
        "--critic-lambda",
        type=float,
        help=f"lambda of the critic's targets; 1: returns {by_task('critic_lambda')}",
    )
    g.add_argument(
        "--shift",
        type=int,
        metavar="PIXELS",
        help="move the pictures that the policy sees by up to that many pixels at random; 0: not "
        f"{by_task('shift')}",
    )
    g.add_argument(
        "--keep-encoder",
        action=argparse.BooleanOptionalAction,
        help="keep the cameras' encoders as they are; the buffer then holds their features in the "
        "place of pictures. If not given, they are kept where Stage 1 kept them (--teach)",
    )
    g.add_argument("--one-process", action="store_true", help="keep all simulators in this process")


def add_update(p):
    """Flags of the update of actor and critic (Eqs. 15-17)."""
    g = p.add_argument_group("update (Eqs. 15-17)")
    g.add_argument(
        "--update-epochs",
        type=int,
        metavar="N",
        help=f"the actor's passes over the buffer an iteration {by_task('update_epochs')}",
    )
    g.add_argument(
        "--minibatch-size",
        type=int,
        metavar="N",
        help=f"samples of the actor's minibatches {by_task('minibatch_size')}",
    )
    g.add_argument("--lr", type=float, help=f"the actor's learning rate at first {by_task('lr')}")
    g.add_argument(
        "--lr-final",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="the share of the learning rates that is left at the end, by a cosine",
    )
    g.add_argument(
        "--critic-epochs",
        type=int,
        default=10,
        metavar="N",
        help="the critic's passes over the buffer",
    )
    g.add_argument(
        "--critic-minibatch-size",
        type=int,
        default=256,
        metavar="N",
        help="samples of the critic's minibatches",
    )
    g.add_argument(
        "--lr-critic",
        type=float,
        default=1e-3,
        help="the critic's learning rate, with the same schedule",
    )
    g.add_argument(
        "--clip-coef", type=float, default=0.2, help="epsilon of the ratio's clip (Eq. 15)"
    )
    g.add_argument(
        "--clip-value", type=float, default=0.0, help="clip of the value's change; 0: none"
    )
    g.add_argument(
        "--target-kl",
        type=float,
        help="the mean KL of an update's last pass, each minibatch's before its own step, to which "
        f"the actor's learning rate is led {by_task('target_kl')}",
    )
    g.add_argument(
        "--vf-coef", type=float, default=1.0, help="weight c_v of the value loss (Eq. 52)"
    )
    g.add_argument("--ent-coef", type=float, default=0.0, help="weight c_e of the entropy (Eq. 53)")
    g.add_argument(
        "--max-grad-norm",
        type=float,
        default=1.0,
        help="the largest gradient norm, of actor and critic each",
    )
    g.add_argument(
        "--critic-warmup",
        type=int,
        default=4,
        metavar="N",
        help="the first iterations, in which the actor does not move",
    )
    g.add_argument(
        "--per-dimension",
        action="store_true",
        help="divide log-likelihoods by the number of coordinates, as the authors' release does; "
        "the ratio is then not the policy's",
    )
    g.add_argument(
        "--anchor",
        type=float,
        metavar="LAMBDA",
        help=f"the anchor's weight at first (Eq. 17); 0: none {by_task('anchor')}",
    )
    g.add_argument(
        "--anchor-final",
        type=float,
        metavar="LAMBDA",
        help="its weight after --anchor-iters; a tenth of --anchor if not given",
    )
    g.add_argument(
        "--anchor-iters",
        type=int,
        metavar="N",
        help=f"iterations in which it falls to that, linearly {by_task('anchor_iters')}",
    )
    g.add_argument(
        "--smooth",
        type=float,
        metavar="WEIGHT",
        help="weight of the squared third differences of the mean actions, from chunk to chunk; "
        f"0: none {by_task('smooth')}",
    )


def add_run(p):
    """Flags of the run: seed, device, folder, saves and evaluations."""
    g = p.add_argument_group("run")
    g.add_argument(
        "--seed", type=int, default=0, help="seed of episodes, latents, noise and minibatches"
    )
    add_machine(g)
    g.add_argument("--out", metavar="DIR", help="run folder; runs/TASK-dbpo-seedSEED if not given")
    g.add_argument("--resume", action="store_true", help="go on from state.pt in the run folder")
    g.add_argument(
        "--save-every",
        type=float,
        default=10.0,
        metavar="MINUTES",
        help="minutes between saves; Ctrl-C and the end save, too; 0: every iteration",
    )
    g.add_argument(
        "--eval-every",
        type=int,
        default=10,
        metavar="N",
        help="iterations between evaluations; 0: only the first and the last",
    )
    g.add_argument(
        "--episodes", type=int, help=f"episodes of an evaluation {defaults_of('episodes')}"
    )


# ---- what they come to ---------------------------------------------------------------------------


def resolve(args):
    """Load the policy, fill the flags whose default depends on its task, check the rest.

    Returns the policy and its task. Raises BadInput.
    """
    check_device(args.device)
    policy, task = policy_and_task(args)
    fill_defaults(args, task)
    args.out = args.out or f"runs/{task.name}-dbpo-seed{args.seed}"
    check_ranges(args, task)
    args.sigma_range = list(args.sigma_range)
    return policy, task


def policy_and_task(args):
    """The checkpoint's policy and its task. Raises BadInput if Stage 2 cannot take it."""
    if args.resume and args.out and not args.init:
        args.init = str(Path(args.out) / "init.pt")
    if not args.init:
        raise BadInput("--init is missing: give the ckpt.pt of a Stage-1 run")
    policy, made_with = Policy.load(args.init, args.device, task=args.task)
    task = task_named(policy.task)
    policy.check_task(task, args.init)
    if policy.method not in ("dbp", "bc"):
        raise BadInput(
            f"{args.init} was trained by --method {policy.method}: "
            "Stage 2 improves a one-step policy, dbp"
        )
    if args.T_p not in (None, policy.T_p):
        raise BadInput(
            f"{args.init} has T_p {policy.T_p}, not {args.T_p}: pass a checkpoint of that horizon"
        )
    policy.set_executed(policy.T_a if args.T_a is None else args.T_a)
    if args.keep_encoder is None:
        args.keep_encoder = bool(made_with.get("teach") or made_with.get("keep_encoder"))
    args.task = task.name
    args.T_p = policy.T_p
    args.T_a = policy.T_a
    return policy, task


def fill_defaults(args, task):
    """Give the task's flags their defaults; refuse flags that have no use with the others."""
    if task.score == "sum" and args.success_bonus:
        raise BadInput(f"--success-bonus: {task.name} knows no success, leave it out")
    if not any(len(shape) == 3 for shape in task.obs.values()):
        given = [k for k in ("shift", "keep_encoder") if getattr(args, k)]
        refuse_flags(args, given, f"{task.name}, which has no camera")
    if args.sigma is not None:
        refuse_flags(args, ("noise_episodes",), "--sigma")
    if args.anchor == 0:
        refuse_flags(args, ("anchor_final", "anchor_iters"), "--anchor 0")
    for k, value in task.stage2.items():
        if getattr(args, k) is None:
            setattr(args, k, value)
    if args.anchor_final is None:
        args.anchor_final = 0.1 * args.anchor


def check_ranges(args, task):
    """Refuse numbers that mean nothing. Raises BadInput."""
    above_zero(
        args,
        "T_a",
        "sigma",
        "sigma_range",
        "sigma_final",
        "noise_episodes",
        "num_envs",
        "num_steps",
        "num_iterations",
        "update_epochs",
        "minibatch_size",
        "critic_epochs",
        "critic_minibatch_size",
        "lr",
        "lr_critic",
        "clip_coef",
        "target_kl",
        "max_grad_norm",
        "anchor_iters",
        "threads",
        "episodes",
    )
    check_seed(args, "seed")
    for k in (
        "lr_final",
        "clip_value",
        "vf_coef",
        "ent_coef",
        "success_bonus",
        "critic_warmup",
        "anchor",
        "anchor_final",
        "smooth",
        "shift",
        "save_every",
        "eval_every",
    ):
        if not 0 <= getattr(args, k) < math.inf:
            raise BadInput(f"--{k.replace('_', '-')} must not be below 0, nor infinite")
    if not 0 <= args.rho < 1:
        raise BadInput("--rho must lie in [0, 1)")
    for k in ("gamma", "inner_gamma", "gae_lambda", "critic_lambda"):
        if not 0 <= getattr(args, k) <= 1:
            raise BadInput(f"--{k.replace('_', '-')} must lie in [0, 1]")
    if args.num_envs > MOST_ENVS:
        raise BadInput(
            f"--num-envs {args.num_envs}: more than {MOST_ENVS} simulators are of no use"
        )
    if args.num_envs * args.num_steps < 2:
        raise BadInput("--num-envs 1 --num-steps 1: advantages need two chunks or more to differ")
    low, high = args.sigma_range
    if not low < 1 < high:
        raise BadInput(f"--sigma-range {low} {high}: the first must be below 1, the other above")
