"""Roll a policy out and score it: python evaluate.py ckpt.pt --episodes 50 --video out.gif

Score: mean over episodes of the highest reward reached (Push-T), of the return (locomotion), or of success, at any
step (Meta-World) or at the end (Adroit). Start states are
fixed by seeds 100000, 100001, ...; the latents z by --seed. Intervals: 95 % bootstrap over episodes.
"""
import json
import time
from dataclasses import dataclass

import numpy as np
import torch

from baselines import prepare
from envs import make_vec, task_named
from policy import Policy
from runs import Parser, above_zero, atomic, check_device, cli

START_SEED = 100_000    # Diffusion Policy's first test seed


@dataclass
class Rollout:
    """Episodes side by side. rewards (E, steps) and success (E,); NaN after an episode's end."""
    rewards: np.ndarray
    success: np.ndarray
    actions: np.ndarray      # (E, steps, D_a) as executed, NaN after the end
    states: np.ndarray       # (E, steps, S) before each action, if recorded
    sim_s: float             # seconds in the simulator
    net_s: np.ndarray        # seconds of each act call, all episodes in one batch
    frames: list             # per shown episode, its frames (H, W, 3) uint8
    nfe: float = 1           # network evaluations an act call
    plans: np.ndarray = None # (calls, E, T_p, D_a) whole chunks, of which T_a steps ran; NaN after the end

    def scores(self, how):
        """Per-episode score (E,): "max" or "sum" of the rewards, or success, as a Task's score says."""
        rewards = {"max": np.nanmax, "sum": np.nansum}.get(how)
        return rewards(self.rewards, axis=1) if rewards else self.success.astype(float)


def rollout(policy, task, seeds, *, seed=0, workers=True, record=False, show=0):
    """One episode per start seed, all in one batch per network call, until the last is over.

    seed draws the latents, one generator for all. show: keep frames of that many episodes. Returns a Rollout.
    """
    E, T_a, nfe = len(seeds), policy.T_a, policy.nfe
    if policy.sampler is None:
        prepare(policy)
    env = make_vec(task, E, T_o=policy.T_o, T_a=T_a, workers=workers and not show, record=record, show=show)
    low, high = env.single_action_space.low, env.single_action_space.high
    generator = torch.Generator(policy.device).manual_seed(seed)
    rewards, actions, states, plans, net_s, sim_s = [], [], [], [], [], 0.0
    try:
        obs, info = env.reset(seed=[int(s) for s in seeds])
        while not info["over"].all():
            t0 = time.perf_counter()
            chunk = policy.act(torch.as_tensor(obs, dtype=torch.float32, device=policy.device), generator=generator)
            a = np.clip(policy.executed(chunk).cpu().numpy(), low, high)       # (E, T_a, D_a)
            t1 = time.perf_counter()
            obs, _, _, _, info = env.step(a)
            net_s.append(t1 - t0)
            sim_s += time.perf_counter() - t1
            rewards.append(info["rewards"])
            actions.append(np.where(np.isnan(info["rewards"])[..., None], np.nan, a))
            over = np.isnan(info["rewards"][:, 0])                             # before this chunk began
            plans.append(np.where(over[:, None, None], np.nan, chunk.cpu().numpy()))
            if record:
                states.append(info["states"])
        frames = [e.frames for e in env.envs[:show]] if show else []
    finally:
        env.close()
    join = lambda parts: np.concatenate(parts, axis=1) if parts else np.empty(0)
    return Rollout(join(rewards), np.asarray(info["success"], bool), join(actions), join(states), sim_s,
                   np.array(net_s), frames, (policy.nfe - nfe) / max(len(net_s), 1), np.stack(plans))


def smoothness(r, T_o, T_a):
    """How steady a Rollout's motion is, in action units: {"jerk", "disagreement"}.

    jerk: RMS third difference of the executed actions, a step. disagreement: RMS distance between what a plan says of
    the steps after its executed ones and what the next plan says of them; None if no plan looks that far.
    """
    end = T_o - 1 + T_a                     # first step of a plan that is left to the next, whose step T_o - 1 it is
    known = r.plans.shape[2] - end
    gap = r.plans[:-1, :, end:] - r.plans[1:, :, T_o - 1:T_o - 1 + known]
    rms = lambda x: float(np.sqrt(np.nanmean(x ** 2))) if np.isfinite(x).any() else None
    return {"jerk": rms(np.diff(r.actions, 3, axis=1)), "disagreement": rms(gap)}


def bootstrap(values, n=10_000, seed=0):
    """95 % percentile interval of the mean of values (E,), by n resamples."""
    draws = np.random.default_rng(seed).choice(values, (n, len(values))).mean(1)
    return tuple(np.quantile(draws, [0.025, 0.975]).tolist())


def evaluate(policy, task, episodes=None, *, start_seed=START_SEED, **kw):
    """Score the policy over `episodes` fixed starts, the field's number if None: 20 with point clouds, else 50; kw as in
    `rollout`. Returns plain numbers and the Rollout."""
    episodes, t0 = episodes or (20 if task.points else 50), time.perf_counter()
    r = rollout(policy, task, range(start_seed, start_seed + episodes), **kw)
    scores = r.scores(task.score)
    success = {"success": r.success.mean().item(), "success_95": bootstrap(r.success.astype(float))}
    return {"score": scores.mean().item(), "score_95": bootstrap(scores), **(success if task.score != "sum" else {}),
            "episodes": episodes, "nfe": r.nfe, "seconds": time.perf_counter() - t0, "simulator_s": r.sim_s,
            "network_s": r.net_s.sum().item(), "network_ms": 1e3 * np.median(r.net_s).item(),
            "scores": scores.round(4).tolist()}, r


def seeds_of(rows, setting, what="score"):
    """The figures of a setting's seeds: values, their mean, half the width of its 95 % t interval (NaN for one)."""
    values = np.array([float(r[what]) for r in rows if r["setting"] == setting])
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.3)
    return values, values.mean(), t * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan


def line(result):
    """One line for people. Where the score is a return there is no success; where it is success, that is said once."""
    d = 3 if "success" in result else 0
    if result.get("success") == result["score"]:
        result = {k: v for k, v in result.items() if not k.startswith("success")}
    show = lambda name, d: f"{name} {result[name]:.{d}f} [{result[name + '_95'][0]:.{d}f}, {result[name + '_95'][1]:.{d}f}]  "
    return (show("score", d) + (show("success", 2) if "success" in result else "")
            + "{episodes} episodes in {seconds:.1f} s (network {network_s:.1f} s, {network_ms:.1f} ms a call for all)"
            .format(**result))


def save_gif(path, frames, every=4, columns=4, size=160):
    """Tile episodes (lists of (H, W, 3) uint8 frames) into one GIF: every 4th frame, size pixels each, 3 x real time."""
    from PIL import Image
    n = max(map(len, frames))
    frames = [f + [f[-1]] * (n - len(f)) for f in frames]                    # a finished episode holds its last frame
    rows = [frames[i:i + columns] for i in range(0, len(frames), columns)]
    blank = np.full_like(frames[0][0], 255)
    tiles = []
    for t in range(0, n, every):
        grid = [[f[t] for f in row] + [blank] * (columns - len(row)) for row in rows]
        image = np.concatenate([np.concatenate(row, 1) for row in grid], 0)
        width = size * image.shape[1] // frames[0][0].shape[1]
        tiles.append(Image.fromarray(image).resize((width, width * image.shape[0] // image.shape[1])).quantize(32))
    atomic(path, lambda f: tiles[0].save(f, "GIF", save_all=True, append_images=tiles[1:], duration=100 * every // 3,
                                         loop=0, optimize=True))


def main():
    p = Parser(__doc__)
    p.add_argument("ckpt", help="policy checkpoint: the ckpt.pt of a run folder")
    p.add_argument("--task", help="refuse a checkpoint of any other task")
    p.add_argument("--episodes", type=int, help="number of episodes; 50, with point clouds 20, if not given")
    p.add_argument("--seed", type=int, default=0, help="seed of the latents z")
    p.add_argument("--raw", action="store_true", help="the raw weights, not the EMA's")
    p.add_argument("--T-a", type=int, help="executed steps T_a, instead of the checkpoint's")
    p.add_argument("--nfe", type=int, help="network evaluations an action, of a diffusion policy: 100 (DDPM), or fewer (DDIM)")
    p.add_argument("--z-scale", type=float, default=1.0, help="standard deviation of the latents z; the paper's is 1")
    p.add_argument("--start-seed", type=int, default=START_SEED, help="first start seed; choose settings on others than "
                   "you report")
    p.add_argument("--device", default="cpu", help="torch device of the network")
    p.add_argument("--one-process", action="store_true", help="all simulators in this process")
    p.add_argument("--video", help="write a GIF of the first --show episodes")
    p.add_argument("--show", type=int, default=8, help="episodes in the GIF")
    p.add_argument("--json", help="write the figures and every episode's score")
    args = p.parse_args()
    above_zero(args, "episodes", "T_a", "show")
    check_device(args.device)
    policy, _ = Policy.load(args.ckpt, args.device, ema=not args.raw, task=args.task)
    policy.set_executed(args.T_a or policy.T_a)
    prepare(policy, args.nfe).z_scale = args.z_scale
    result, r = evaluate(policy, task_named(policy.task), args.episodes, start_seed=args.start_seed, seed=args.seed,
                         workers=not args.one_process, show=args.show if args.video else 0)
    print(line(result))
    if args.video:
        save_gif(args.video, r.frames)
    if args.json:
        about = {"ckpt": args.ckpt, "seed": args.seed, "start_seed": args.start_seed}
        result.update(smoothness(r, policy.T_o, policy.T_a))
        atomic(args.json, lambda f: f.write(json.dumps({**about, **result}).encode()))


if __name__ == "__main__":
    cli(main)
