"""Roll a policy out and score it: python evaluate.py ckpt.pt --episodes 50 --video out.gif

The score is the mean over episodes of the highest reward reached (Push-T), of the return
(locomotion), of success, at any step (Meta-World) or at the end (Adroit), or of the share of the
stages reached (BlockPush, Kitchen). Of stages, p1, p2, ... are the shares of the episodes that
reached at least one, two, ... of them. The start states are fixed by the seeds 100000, 100001, ...,
and the latents z by --seed. Intervals: 95 % bootstrap over episodes. The protocol is note 14.

Where a task can be solved in several ways, the modes that the episodes took are told: the share of
each, and the entropy of those shares in bits. With --one-start every episode begins at the first
start, so that they differ in their latents alone.
"""

import startup  # noqa: F401 - first, see there

import contextlib
import json
import math
import re
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from baselines import prepare
from commands import (
    START_SEEDS,
    BadInput,
    Parser,
    above_zero,
    check_device,
    check_seed,
    cli,
    refuse_flags,
)
from envs import closing, has_picture, make_env, make_vec, task_named
from export import OnnxPolicy
from files import atomic, check_output
from policy import Policy

START_SEED = 100_000  # Diffusion Policy's first test seed


# ---- roll-out -----------------------------------------------------------------------------------


@dataclass
class Rollout:
    """Episodes side by side. What comes after an episode's end is NaN."""

    rewards: np.ndarray  # (E, steps)
    success: np.ndarray  # (E,)
    stages: np.ndarray  # (E, stages) whether each stage was reached
    actions: np.ndarray  # (E, steps, D_a) as executed
    states: np.ndarray  # (E, steps, S) before each action, if recorded
    last: np.ndarray  # (E, S) the state after the last action, if recorded
    plans: np.ndarray  # (calls, E, T_p, D_a) whole chunks, of which T_a steps ran
    frames: list  # per shown episode, its frames (H, W, 3) uint8
    simulator_s: float  # seconds in the simulator
    network_s: np.ndarray  # seconds of each act call, all episodes in one batch
    nfe: float  # network evaluations an act call

    def scores(self, how):
        """The score of each episode (E,), as a Task's `score` says."""
        if how == "max":
            return np.nanmax(self.rewards, axis=1)
        if how == "sum":
            return np.nansum(self.rewards, axis=1)
        if how == "stages":
            return self.stages.mean(axis=1)
        return self.success.astype(float)

    def path(self, e):
        """The states of episode e, if recorded: (L + 1, S), the last after its last action."""
        ran = np.isfinite(self.rewards[e])
        return np.concatenate([self.states[e, ran], self.last[e][None]])


@dataclass
class Count:
    """How often a network was called."""

    n: int = 0


@contextlib.contextmanager
def count_calls(net):
    """Count the calls of a network inside the `with`: gives a Count."""
    count = Count()

    def hook(*_):
        count.n += 1

    handle = net.register_forward_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def rollout(policy, task, seeds, *, seed=0, workers=True, record=False, show=0, explore=None):
    """One episode per start seed, all in one batch per network call, until the last is over.

    seed draws the latents, by one generator for all. record: keep the simulator's states. show:
    keep frames of that many episodes. explore: a function of the chunks (E, T_a, D_a) that changes
    them before they are clipped and executed. Returns a Rollout.
    """
    if policy.sampler is None:
        prepare(policy)
    env = make_vec(
        task,
        len(seeds),
        T_o=policy.T_o,
        T_a=policy.T_a,
        workers=workers and not show,
        record=record,
        show=show,
    )
    low = env.single_action_space.low
    high = env.single_action_space.high
    generator = torch.Generator(policy.device).manual_seed(seed)
    rewards = []
    actions = []
    states = []
    plans = []
    network_s = []
    simulator_s = 0.0
    with closing(env), count_calls(policy.net) as calls:
        obs, info = env.reset(seed=[int(s) for s in seeds])
        while not info["over"].all():
            t0 = time.perf_counter()
            chunk = policy.act(policy.tensors(obs), generator=generator)  # (E, T_p, D_a)
            a = policy.executed(chunk)
            if explore:
                a = explore(a)
            a = np.clip(a.cpu().numpy(), low, high)  # (E, T_a, D_a)
            if not np.isfinite(a).all():  # simulators may crash on it
                raise BadInput(
                    "the policy's actions are not finite: train it again with a lower --lr"
                )
            t1 = time.perf_counter()
            obs, _, _, _, info = env.step(a)
            network_s.append(t1 - t0)
            simulator_s += time.perf_counter() - t1
            ran = ~np.isnan(info["rewards"])  # (E, T_a)
            rewards.append(info["rewards"])
            actions.append(np.where(ran[..., None], a, np.nan))
            plans.append(np.where(ran[:, :1, None], chunk.cpu().numpy(), np.nan))
            if record:
                states.append(info["states"])
        frames = [e.frames for e in env.envs[:show]] if show else []
    return Rollout(
        rewards=joined(rewards),
        success=np.asarray(info["success"], bool),
        stages=np.asarray(info["stages"], bool),
        actions=joined(actions),
        states=joined(states),
        last=info["state"] if record else np.empty(0),
        plans=np.stack(plans),
        frames=frames,
        simulator_s=simulator_s,
        network_s=np.array(network_s),
        nfe=calls.n / max(len(network_s), 1),
    )


def joined(parts):
    """Parts (E, T_a, ...) one after another: (E, steps, ...)."""
    return np.concatenate(parts, axis=1) if parts else np.empty(0)


def smoothness(r, T_o, T_a):
    """How steady a Rollout's motion is, in action units: {"jerk", "disagreement"}.

    jerk: the RMS third difference of the executed actions, per step. disagreement: the RMS distance
    between what a plan says of the steps after its executed ones and what the next plan says of
    them; None if no plan looks that far.
    """
    end = T_o - 1 + T_a  # the first step of a plan that is left to the next, whose T_o - 1 it is
    known = r.plans.shape[2] - end
    gap = r.plans[:-1, :, end:] - r.plans[1:, :, T_o - 1 : T_o - 1 + known]
    return {"jerk": rms(np.diff(r.actions, 3, axis=1)), "disagreement": rms(gap)}


def rms(x):
    """The root mean square of x without its NaN; None if nothing is left."""
    return float(np.sqrt(np.nanmean(x**2))) if np.isfinite(x).any() else None


# ---- scores -------------------------------------------------------------------------------------


def bootstrap(values, n=10_000, seed=0):
    """The 95 % percentile interval of the mean of values (E,), by n resamples."""
    draws = np.random.default_rng(seed).choice(values, (n, len(values))).mean(1)
    return tuple(np.quantile(draws, [0.025, 0.975]).tolist())


def evaluate(policy, task, episodes=None, *, start_seed=START_SEED, one_start=False, **kw):
    """Score the policy over fixed starts: {"score", "score_95", ...} as plain numbers, the Rollout.

    episodes: the task's own number if None. one_start: all episodes begin at start_seed, and differ
    in their latents alone. kw as in `rollout`. Where the score is a return there is no success. See
    `told_of_stages` and `told_of_modes` for what is added where the task has these.
    """
    t0 = time.perf_counter()
    episodes = episodes or task.episodes
    seeds = [start_seed] * episodes if one_start else range(start_seed, start_seed + episodes)
    if task.mode:
        kw["record"] = True
    r = rollout(policy, task, seeds, **kw)
    scores = r.scores(task.score)
    result = {"score": scores.mean().item(), "score_95": bootstrap(scores)}
    if task.score != "sum":
        result["success"] = r.success.mean().item()
        result["success_95"] = bootstrap(r.success.astype(float))
    if task.stages:
        result.update(told_of_stages(r.stages))
    if task.mode:
        result.update(told_of_modes([task.mode(r.path(e)) for e in range(episodes)]))
    result.update(
        episodes=episodes,
        nfe=r.nfe,
        seconds=time.perf_counter() - t0,
        simulator_s=r.simulator_s,
        network_s=r.network_s.sum().item(),
        network_ms=1e3 * np.median(r.network_s).item(),
        scores=scores.round(4).tolist(),
    )
    return result, r


def told_of_stages(reached):
    """{"p1", "p1_95", "p2", ...}: the share of episodes that reached each stage, and its interval.

    reached: (E, stages) bool.
    """
    told = {}
    for n, column in enumerate(reached.T.astype(float), 1):
        told[f"p{n}"] = column.mean().item()
        told[f"p{n}_95"] = bootstrap(column)
    return told


def told_of_modes(modes):
    """What is told of the modes of episodes, each a name, or None where none was taken.

    {"modes": {name: its share of all episodes, the largest first, None as "none"}, "mode_entropy":
    the entropy in bits of the modes over the episodes that took one, 0 if none did, "mode_of": the
    mode of each episode}.
    """
    names = Counter("none" if mode is None else mode for mode in modes)
    taken = np.array([n for name, n in names.items() if name != "none"])
    p = taken / taken.sum()
    return {
        "modes": {name: n / len(modes) for name, n in names.most_common()},
        "mode_entropy": float(abs((p * np.log2(p)).sum())),
        "mode_of": list(modes),
    }


def log_score(run, step, result, **more):
    """Append an evaluation to a run's log, unless a resumed run has it already."""
    if any(row["step"] == step and "score" in row for row in run.rows):
        return
    names = ("score", "success", *stages_in(result), "mode_entropy", "jerk", "seconds")
    shown = {k: result[k] for k in names if result.get(k) is not None}
    low, high = result["score_95"]
    run.log(step, **more, **shown, score_low=low, score_high=high)


def stages_in(result):
    """The names p1, p2, ... of the stages that a result tells of."""
    return [name for name in result if re.fullmatch(r"p\d+", name)]


def line(result):
    """One line for people. Where the score is success or the last stage is, that is said once."""
    digits = 3 if "success" in result else 0
    text = [with_interval("score", result, digits)]
    stages = stages_in(result)
    text += [with_interval(name, result, 2) for name in stages]
    if not stages and result.get("success", result["score"]) != result["score"]:
        text.append(with_interval("success", result, 2))
    if "modes" in result:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in result["modes"].items())
        text.append(f"modes {shares} ({result['mode_entropy']:.2f} bits)")
    text.append(
        f"{result['episodes']} episodes in {result['seconds']:.1f} s "
        f"(network {result['network_s']:.1f} s, {result['network_ms']:.1f} ms a call for all)"
    )
    return "  ".join(text)


def with_interval(name, result, digits):
    """A figure and its interval: "score 0.891 [0.819, 0.951]"."""
    low, high = result[f"{name}_95"]
    return f"{name} {result[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


# ---- video --------------------------------------------------------------------------------------


def save_gif(path, frames, most=75, columns=4, size=160):
    """Tile episodes (lists of (H, W, 3) uint8 frames) into one GIF, each `size` pixels wide.

    Of many frames it shows `most` at equal distances: of 300 every fourth. It plays at 3 times real
    time where a frame is a tenth of a second.
    """
    from PIL import Image

    n = max(map(len, frames))
    every = math.ceil(n / most)
    frames = [f + [f[-1]] * (n - len(f)) for f in frames]  # a finished episode holds its last frame
    blank = np.full_like(frames[0][0], 255)
    frames += [[blank] * n] * (-len(frames) % columns if len(frames) > columns else 0)
    rows = [frames[i : i + columns] for i in range(0, len(frames), columns)]
    tiles = []
    for t in range(0, n, every):
        image = np.concatenate([np.concatenate([f[t] for f in row], 1) for row in rows], 0)
        width = size * image.shape[1] // frames[0][0].shape[1]
        height = width * image.shape[0] // image.shape[1]
        tiles.append(Image.fromarray(image).resize((width, height)).quantize(32))
    more = {"append_images": tiles[1:], "duration": 100 * every // 3, "loop": 0, "optimize": True}
    atomic(path, lambda f: tiles[0].save(f, "GIF", save_all=True, **more))


# ---- python evaluate.py -------------------------------------------------------------------------


def parse(argv=None):
    """The flags of this script."""
    p = Parser(
        __doc__,
        examples=[
            "python evaluate.py runs/pusht-dbp-seed0/ckpt.pt --episodes 200 --start-seed 200000",
            "python evaluate.py runs/pusht-diffusion-seed0/ckpt.pt --nfe 10 --json scores.json",
            "python evaluate.py runs/blockpush-dbp-seed0/ckpt.pt --one-start --episodes 100",
            "python evaluate.py --onnx pusht.onnx",
        ],
    )
    p.add_argument("ckpt", nargs="?", help="the policy's checkpoint: the ckpt.pt of a run folder")
    p.add_argument("--onnx", metavar="FILE", help="a file of export.py instead of the checkpoint")
    p.add_argument("--task", help="refuse a checkpoint of any other task")
    p.add_argument(
        "--episodes",
        type=int,
        help="number of episodes; the task's (50, point clouds 20) if not given",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the latents z")
    p.add_argument("--raw", action="store_true", help="use the raw weights, not the EMA's")
    p.add_argument(
        "--T-a", type=int, metavar="STEPS", help="executed steps T_a, instead of the checkpoint's"
    )
    p.add_argument(
        "--nfe",
        type=int,
        help="network evaluations an action, of a diffusion policy: 100 (DDPM), or fewer (DDIM)",
    )
    p.add_argument(
        "--z-scale",
        type=float,
        help="standard deviation of the latents z; 1, the paper's, if not given",
    )
    p.add_argument(
        "--start-seed",
        type=int,
        default=START_SEED,
        help="the first start seed; choose settings on other starts than you report",
    )
    p.add_argument(
        "--one-start",
        action="store_true",
        help="begin every episode at the first start: they differ in their latents z alone",
    )
    p.add_argument("--device", default="cpu", help="torch device of the network")
    p.add_argument("--one-process", action="store_true", help="keep all simulators in this process")
    p.add_argument("--video", metavar="GIF", help="write a GIF of the first --show episodes")
    p.add_argument("--show", type=int, help="the episodes in the GIF; 8 if not given")
    p.add_argument("--json", help="write the figures and every episode's score to this file")
    args = p.parse_args(argv)
    above_zero(args, "episodes", "T_a", "show")
    check_seed(args, "seed")
    if (args.ckpt is None) == (args.onnx is None):
        raise BadInput("give a checkpoint, or a file of export.py by --onnx")
    if args.onnx:
        refuse_flags(args, ["raw", "nfe"], "--onnx, a graph with fixed weights")
        if args.device != "cpu":
            raise BadInput("--device is not used by --onnx, which onnxruntime runs: leave it out")
    if args.show and not args.video:
        raise BadInput("--show is the number of episodes in --video: give both, or neither")
    if args.z_scale is not None and not 0 <= args.z_scale < float("inf"):
        raise BadInput(f"--z-scale {args.z_scale} must not be below 0, nor infinite")
    check_output(args, "json", "video")
    check_device(args.device)
    return args


def main():
    """Run the command."""
    args = parse()
    source = args.onnx or args.ckpt
    if args.onnx:
        policy = OnnxPolicy.load(source, task=args.task)
    else:
        policy, _ = Policy.load(source, args.device, ema=not args.raw, task=args.task)
    task = task_named(policy.task)
    policy.check_task(task, source)
    starts = 1 if args.one_start else args.episodes or task.episodes
    check_seed(args, "start_seed", below=START_SEEDS, n=starts)
    policy.set_executed(args.T_a or policy.T_a)
    prepare(policy, args.nfe)
    if args.z_scale is not None:
        if policy.method == "bc":
            raise BadInput("--z-scale: regression acts without a latent, leave it out")
        policy.z_scale = args.z_scale
    if args.video:
        with make_env(task) as env:
            if not has_picture(env):
                raise BadInput(f"{task.name} has no render(): leave out --video")
    result, r = evaluate(
        policy,
        task,
        args.episodes,
        start_seed=args.start_seed,
        one_start=args.one_start,
        seed=args.seed,
        workers=not args.one_process,
        show=(args.show or 8) if args.video else 0,
    )
    if args.json:
        about = {"ckpt": source, "seed": args.seed, "start_seed": args.start_seed}
        about |= {"one_start": args.one_start, "raw": args.raw}
        about |= {"T_a": policy.T_a, "z_scale": policy.z_scale}
        about.update(result, **smoothness(r, policy.T_o, policy.T_a))
        atomic(args.json, lambda f: f.write(json.dumps(about).encode()))
    if args.video:
        save_gif(args.video, r.frames)
    print(line(result))  # last: the files are there even if standard output is closed


if __name__ == "__main__":
    cli(main)
