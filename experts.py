"""Make demonstrations: roll out policies that are good at a task and keep the episodes.

  python experts.py --task pusht --init a.pt b.pt c.pt --episodes 300 --z-scale 0.5 --out demos/pusht.npz
  python experts.py --task hopper --until 1300 --episodes 60 --out demos/hopper-medium

Push-T: each start state gets several tries; its shortest success is kept, so that hard starts are not left out and
the policy's waiting is. demos/pusht.npz was made this way by three policies trained on Diffusion Policy's 206 human
demonstrations. The file holds states, actions as executed, episode ends and each episode's start seed.

Locomotion: an agent is trained by stable-baselines3's PPO until the mean return of its last 20 episodes passes
--until, about a third of an expert's as in D4RL's medium data; then its episodes are recorded, all of them, with the
noise it explores with. They are written in Minari's format: raw observations, actions as executed, rewards, ends.

Start seeds count up from --start-seed, far from the evaluation's 100000 on.
"""
import importlib.metadata
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import save_npz
from envs import task_named
from evaluate import rollout
from formats import save_minari
from policy import Policy
from runs import BadInput, Parser, above_zero, cli

LOG_STD = {"hopper": 0.0}       # the agent's first exploration noise; -1 for the others
LAST = 20                       # episodes whose mean return tells the agent's level
CLIP, EPSILON = 10.0, 1e-8      # of the agent's observation normaliser


def collect(policies, task, episodes, *, start_seed, tries=6, seed=0, at_once=50, workers=True, max_starts=100_000):
    """The shortest of `tries` successes from each start state, policies in turn, until there are enough episodes.

    Returns state (N, S), action (N, D_a), episode_ends, start_seed (E,) as a dict, and the number of starts. Raises
    BadInput if fewer than 1 % of the first 200 starts, or fewer than `episodes` of max_starts, were ever solved.
    """
    kept, starts_used = [], 0
    with tqdm(total=episodes, unit="episode", disable=None) as bar:
        while len(kept) < episodes:
            starts = np.arange(start_seed + starts_used, start_seed + starts_used + at_once)
            best = {}
            for t in range(tries):
                r = rollout(policies[t % len(policies)], task, starts, seed=seed + starts_used * tries + t, record=True,
                            workers=workers)
                for e in np.flatnonzero(r.success):
                    n = int(np.isfinite(r.rewards[e]).sum())
                    if e not in best or n < len(best[e][0]):
                        best[e] = (r.states[e, :n].astype(np.float32), r.actions[e, :n].astype(np.float32), starts[e])
            kept += [best[e] for e in sorted(best)][:episodes - len(kept)]
            starts_used += at_once
            bar.update(len(kept) - bar.n)
            bar.set_postfix(starts=starts_used)
            hopeless = starts_used >= 200 and len(kept) < starts_used / 100 or starts_used >= max_starts
            if len(kept) < episodes and hopeless:
                raise BadInput(f"{len(kept)} of {starts_used} start states were solved: train a better policy first")
    states, actions, seeds = zip(*kept)
    return {"state": np.concatenate(states), "action": np.concatenate(actions),
            "episode_ends": np.cumsum([len(s) for s in states]), "start_seed": np.array(seeds)}, starts_used


def agent(policy, mean, var):
    """A stable-baselines3 policy and its normaliser's mean, var (obs_dim,) as a function: raw obs -> noisy action."""
    scale = np.sqrt(var + EPSILON)

    def act(obs):
        return policy.predict(np.clip((obs - mean) / scale, -CLIP, CLIP).astype(np.float32))[0]
    return act


def train(task, until, *, max_steps, envs=8, seed=0):
    """Train an agent by PPO until the mean return of its last 20 episodes passes `until`.

    Returns (obs -> action, that mean, environment steps taken). Raises BadInput if the level is not reached in
    max_steps, or stable-baselines3 is not installed.
    """
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError as e:
        raise BadInput("--until needs stable-baselines3: pip install stable-baselines3 (requirements-extra.txt)") from e
    from gymnasium.wrappers import RecordEpisodeStatistics
    env = VecNormalize(DummyVecEnv([lambda: RecordEpisodeStatistics(task.env())] * envs), gamma=0.99, clip_obs=CLIP,
                       epsilon=EPSILON)
    env.seed(seed)
    model = PPO("MlpPolicy", env, n_steps=512, batch_size=256, n_epochs=10, learning_rate=3e-4, gamma=0.99,
                gae_lambda=0.95, clip_range=0.2, vf_coef=0.5, max_grad_norm=0.5, seed=seed, device="cpu",
                policy_kwargs={"net_arch": [128, 128], "activation_fn": torch.nn.Tanh,
                               "log_std_init": LOG_STD.get(task.name, -1.0)})
    level = -np.inf
    with closing(env), tqdm(total=max_steps, unit="step", unit_scale=True, disable=None) as bar:
        while not level > until:
            if model.num_timesteps >= max_steps:
                raise BadInput(f"after {model.num_timesteps} steps the mean return of the last {LAST} episodes is "
                               f"{level:.0f}, not above {until:g}: raise --max-steps, lower --until or change --seed")
            model.learn(512 * envs, reset_num_timesteps=False)
            returns = [float(e["r"]) for e in model.ep_info_buffer][-LAST:]
            level = np.mean(returns) if len(returns) == LAST else -np.inf       # too few episodes to tell
            bar.update(model.num_timesteps - bar.n)
            bar.set_postfix(mean_return=f"{level:.0f}")
    return agent(model.policy, env.obs_rms.mean, env.obs_rms.var), float(level), model.num_timesteps


def record(act, task, episodes, *, start_seed, max_steps=None):
    """Whole episodes of act, a function from raw obs (obs_dim,) to an action (D_a,) that is clipped to the limits.

    One episode per seed from start_seed on, as dicts that formats.save_minari() takes; actions float32, as executed.
    No further episode begins once there are max_steps steps.
    """
    env, kept, steps = task.env(), [], 0
    low, high = env.action_space.low, env.action_space.high
    with env, tqdm(total=episodes, unit="episode", disable=None) as bar:
        while len(kept) < episodes and (max_steps is None or steps < max_steps):
            seed = start_seed + len(kept)
            obs, rows, over = [env.reset(seed=seed)[0]], [], False
            while not over:
                action = np.clip(act(obs[-1]), low, high).astype(np.float32)
                o, reward, terminated, truncated, _ = env.step(action)
                truncated |= len(obs) == task.steps
                over = terminated or truncated
                obs.append(o)
                rows.append((action, reward, terminated, truncated))
            arrays = zip(("actions", "rewards", "terminations", "truncations"), map(np.array, zip(*rows)))
            kept.append({"observations": np.array(obs), **dict(arrays), "seed": seed})
            steps += len(rows)
            bar.update()
            bar.set_postfix(steps=steps, mean_return=f"{np.mean([e['rewards'].sum() for e in kept]):.0f}")
    return kept


def locomotion(args, task, out):
    """Train an agent and record its episodes, as the flags say; prints what was written. Raises BadInput."""
    if args.until is None or args.init:
        raise BadInput(f"{task.name} is recorded from an agent trained here: give --until RETURN, and no --init")
    if Path(out).exists():      # before the minutes of training
        raise BadInput(f"{out} exists: name a new folder with --out, or move it away")
    torch.set_num_threads(args.threads)
    act, level, steps = train(task, args.until, max_steps=args.max_steps, envs=args.envs, seed=args.seed)
    episodes = record(act, task, args.episodes, start_seed=args.start_seed, max_steps=args.record_steps)
    packages = ("gymnasium", "mujoco", "stable-baselines3")
    with task.env() as env:
        save_minari(out, episodes, env, f"drift/{task.name}/medium-v0",
                    algorithm_name="PPO of stable-baselines3, stochastic",
                    description=f"agent of seed {args.seed} stopped after {steps} steps, when its last {LAST} episodes "
                                f"returned {level:.1f} on average; made by experts.py --until {args.until:g}",
                    requirements=[f"{p}=={importlib.metadata.version(p)}" for p in packages])
    returns = np.array([e["rewards"].sum() for e in episodes])
    print(f"{out}: {len(episodes)} episodes, {sum(len(e['rewards']) for e in episodes)} steps, return "
          f"{returns.mean():.0f} ({returns.min():.0f} to {returns.max():.0f}), by an agent of {steps} steps whose last "
          f"{LAST} episodes returned {level:.0f} in training")


def main():
    p = Parser(__doc__)
    p.add_argument("--task", default="pusht", help="task of envs.py")
    p.add_argument("--init", nargs="+", metavar="CKPT", help="Push-T: policy checkpoints that act, in turn")
    p.add_argument("--until", type=float, metavar="RETURN", help="locomotion: mean return at which training stops")
    p.add_argument("--episodes", type=int, default=300, help="episodes to keep")
    p.add_argument("--record-steps", type=int, help="locomotion: begin no episode after this many steps")
    p.add_argument("--tries", type=int, default=6, help="Push-T: tries from each start state")
    p.add_argument("--start-seed", type=int, default=1_000_000, help="first start seed")
    p.add_argument("--seed", type=int, default=0, help="seed of the latents, or of the agent's training")
    p.add_argument("--max-steps", type=int, default=3_000_000, help="locomotion: training steps before giving up")
    p.add_argument("--envs", type=int, default=8, help="locomotion: environments the agent trains in")
    p.add_argument("--threads", type=int, default=1, help="locomotion: torch threads")
    p.add_argument("--T-a", type=int, help="executed steps T_a, instead of the checkpoint's")
    p.add_argument("--z-scale", type=float, default=1.0, help="standard deviation of the latents")
    p.add_argument("--one-process", action="store_true", help="all simulators in this process")
    p.add_argument("--out", help="file or folder to write; demos.npz, or TASK-medium, if not given")
    args = p.parse_args()
    above_zero(args, "episodes", "tries", "T_a", "record_steps", "max_steps", "envs", "threads")
    task = task_named(args.task)
    if task.minari:
        return locomotion(args, task, args.out or f"{task.name}-medium")
    if not args.init:
        raise BadInput(f"{task.name} is recorded from policies: give --init CKPT")
    policies = [Policy.load(path, task=task.name)[0] for path in args.init]
    for policy in policies:
        policy.set_executed(args.T_a or policy.T_a)
        policy.z_scale = args.z_scale
    arrays, starts = collect(policies, task, args.episodes, start_seed=args.start_seed, tries=args.tries,
                             seed=args.seed, workers=not args.one_process)
    out = args.out or "demos.npz"
    save_npz(out, **arrays)
    lengths = np.diff(arrays["episode_ends"], prepend=0)
    print(f"{out}: {len(lengths)} successful episodes from {starts} start states, {lengths.sum()} steps, "
          f"{lengths.mean():.0f} an episode ({lengths.min()} to {lengths.max()})")


if __name__ == "__main__":
    cli(main)
