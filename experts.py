"""Make demonstrations: roll out policies that are good at a task and keep the episodes.

  python experts.py --task pusht --init a.pt b.pt c.pt --episodes 300 --z-scale 0.5 --out demos/pusht.npz
  python experts.py --task hopper --until 1300 --episodes 60 --out demos/hopper-medium
  python experts.py --task metaworld-assembly --episodes 10
  python experts.py --task adroit-hammer --states hammer.npz --episodes 10

Push-T: each start state gets several tries; its shortest success is kept, so that hard starts are not left out and
the policy's waiting is. demos/pusht.npz was made this way by three policies trained on Diffusion Policy's 206 human
demonstrations. The file holds states, actions as executed, episode ends and each episode's start seed.

Locomotion: an agent is trained by stable-baselines3's PPO until the mean return of its last 20 episodes passes
--until, about a third of an expert's as in D4RL's medium data; then its episodes are recorded, all of them, with the
noise it explores with. They are written in Minari's format: raw observations, actions as executed, rewards, ends.

Meta-World: its own scripted policies act; successes are kept, cut some steps after they succeed. Adroit: recorded
states are shown again, in order. Either way each state's point cloud is cast anew. Every finished episode is kept in a
folder beside the file to be written, so an interrupted collection goes on; the file appears whole.

Start seeds count up from --start-seed, far from the evaluation's 100000 on.
"""
import functools
import importlib.metadata
import json
import os
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import minari_home, save_npz
from envs import task_named
from evaluate import rollout
from formats import read, read_adroit, refusing, save_minari
from policy import Policy
from runs import BadInput, Parser, above_zero, atomic, cli

LOG_STD = {"hopper": 0.0}       # the agent's first exploration noise; -1 for the others
LAST = 20                       # episodes whose mean return tells the agent's level
CLIP, EPSILON = 10.0, 1e-8      # of the agent's observation normaliser
AFTER = 10                      # steps kept after a scripted policy's first success


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


# ---- point clouds --------------------------------------------------------------------------------------------------

@functools.lru_cache(1)
def simulator(name):
    """The task's simulator, made once a process."""
    return task_named(name).env()


def scripted(task, seed):
    """One Meta-World episode by its scripted policy, until AFTER steps past its first success: qpos (L, nq), action
    (L, D_a), success. No clouds yet, so a failure costs little."""
    from metaworld.policies import ENV_POLICY_MAP                      # slow to import
    env, policy = simulator(task.name), ENV_POLICY_MAP[f"{task.name.removeprefix('metaworld-')}-v3"]()
    env.start(seed)
    qpos, actions, since = [], [], 0
    while len(actions) < task.steps and since <= AFTER:
        with warnings.catch_warnings(action="ignore"):                 # that it will be clipped
            action = np.clip(policy.get_action(env.last), -1, 1).astype(np.float32)
        qpos.append(env.sim.data.qpos.copy())
        actions.append(action)
        since += env.act(action) or since > 0
    return np.array(qpos), np.array(actions), since > 0


@functools.lru_cache(1)
def adroit_states(task, path=None):
    """(path, arrays) of recorded Adroit states: an npz with qpos, actions, episode_ends and the model's setting at
    action repeat 2, or Minari's D4RL data. path: default $DRIFT_DATA/adroit/NAME.npz, else the minari library's folder."""
    name = task.name.removeprefix("adroit-")
    places = [Path(path)] if path else [Path(os.environ.get("DRIFT_DATA", "."), "adroit", f"{name}.npz"),
                                        minari_home() / "D4RL" / name / "expert-v2"]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        raise BadInput(f"no states of {task.name} ({' or '.join(map(str, places))}): give --states FILE, or run `minari "
                       f"download D4RL/{name}/expert-v2`")
    return found, (read(found) if found.suffix == ".npz" else read_adroit(found))


def replayed(task, arrays, e):
    """Episode e of adroit_states(): qpos (L, nq), action (L, D_a), True. Raises BadInput if it does not fit the model."""
    env, setting = simulator(task.name), simulator(task.name).setting
    with refusing(f"the states are not of {task.name}: qpos, actions, episode_ends and {setting} are needed"):
        ends = arrays["episode_ends"]
        steps = np.s_[(ends[e - 1] if e else 0):ends[e]]
        qpos, actions = arrays["qpos"][steps], arrays["actions"][steps].astype(np.float32)
        if qpos.shape != (len(actions), env.model.nq) or actions.shape[1] != task.D_a or not np.isfinite(qpos).all():
            raise BadInput(f"episode {e}: states {qpos.shape} and actions {actions.shape} do not fit {task.name}, whose model "
                           f"has {env.model.nq} positions and {task.D_a} actions, or are not finite")
        env.start(0)
        env.place(arrays[setting][e])
    return qpos, actions, True


def part(name, path, i, folder):
    """Make episode i of a task as folder/i.npz, or an empty i.failed, unless it is there. Returns whether it is kept."""
    torch.set_num_threads(1)
    done, failed = Path(folder) / f"{i}.npz", Path(folder) / f"{i}.failed"
    if not (done.exists() or failed.exists()):
        task, env = task_named(name), simulator(name)
        qpos, action, success = replayed(task, adroit_states(task, path)[1], i) if path else scripted(task, i)
        if not success:
            atomic(failed, lambda f: None)
            return False
        with refusing(f"{name}, episode {i}"):
            obs = np.stack([env.observe(q) for q in qpos])
        S = task.obs_dim - 3 * task.points
        save_npz(done, state=obs[:, :S], points=obs[:, S:].reshape(len(obs), -1, 3).astype(np.float16), action=action)
    return done.exists()


def clouds(task, episodes, out, *, states=None, start_seed=0, workers=None):
    """Demonstrations of a point-cloud task into the file out; see the top. states: for Adroit, see adroit_states().

    Points are kept as float16, at most 0.5 mm off. Returns (episodes' lengths, attempts). Raises BadInput if out
    exists, or more than 9 of 10 attempts fail.
    """
    out, path, limit, first = Path(out), "", 10 * episodes + 10, start_seed
    if out.exists():
        raise BadInput(f"{out} exists: name a new file with --out, or move it away")
    if task.group == "adroit":
        path, arrays = adroit_states(task, states)
        limit, first = len(arrays.get("episode_ends", ())), 0
        if episodes > limit:
            raise BadInput(f"{path} has {limit} episodes: cannot show {episodes}")
    folder, about = out.parent / f".{out.name}.parts", {"task": task.name, "states": str(path)}
    if (folder / "about.json").exists() and json.loads((folder / "about.json").read_text()) != about:
        raise BadInput(f"{folder} holds an interrupted collection of something else: finish that, or delete it")
    atomic(folder / "about.json", lambda f: f.write(json.dumps(about).encode()))
    kept, tried, workers = [], 0, workers or os.cpu_count()
    with ProcessPoolExecutor(workers) as pool, tqdm(total=episodes, unit="episode", disable=None) as bar:
        while len(kept) < episodes:
            batch = range(first + tried, first + min(tried + max(episodes - len(kept), workers), limit))
            if not batch:
                raise BadInput(f"{len(kept)} of {tried} attempts at {task.name} succeeded: too few for {episodes} episodes")
            for i, good in zip(batch, pool.map(functools.partial(part, task.name, str(path), folder=folder), batch)):
                if len(kept) < episodes:
                    kept, tried = kept + [i] * good, tried + 1
                    bar.update(len(kept) - bar.n)
                    bar.set_postfix(attempts=tried)
    each = [read(folder / f"{i}.npz") for i in kept]
    lengths = np.array([len(e["action"]) for e in each])
    save_npz(out, **{k: np.concatenate([e[k] for e in each]) for k in ("state", "points", "action")},
             episode_ends=lengths.cumsum(), start_seed=np.array(kept))
    shutil.rmtree(folder)
    return lengths, tried


def main():
    p = Parser(__doc__)
    p.add_argument("--task", default="pusht", help="task of envs.py")
    p.add_argument("--init", nargs="+", metavar="CKPT", help="Push-T: policy checkpoints that act, in turn")
    p.add_argument("--until", type=float, metavar="RETURN", help="locomotion: mean return at which training stops")
    p.add_argument("--episodes", type=int, help="episodes to keep; 10 of a point-cloud task, else 300, if not given")
    p.add_argument("--states", help="Adroit: recorded states; $DRIFT_DATA/adroit/NAME.npz or Minari's if not given")
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
    p.add_argument("--workers", type=int, help="point clouds: processes; all cores if not given")
    p.add_argument("--out", help="file or folder to write; if not given demos.npz, TASK-medium, or for a point-cloud task "
                   "demos/TASK.npz beside this file, where training finds it")
    args = p.parse_args()
    above_zero(args, "episodes", "tries", "T_a", "record_steps", "max_steps", "envs", "threads", "workers")
    task = task_named(args.task)
    args.episodes = args.episodes or (10 if task.points else 300)
    if task.points:
        out = args.out or Path(__file__).parent / "demos" / f"{task.name}.npz"
        lengths, tried = clouds(task, args.episodes, out, states=args.states, start_seed=args.start_seed,
                                workers=1 if args.one_process else args.workers)
        return print(f"{out}: {len(lengths)} episodes of {tried} attempts, {lengths.sum()} steps, {lengths.mean():.0f} an "
                     f"episode ({lengths.min()} to {lengths.max()})")
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
