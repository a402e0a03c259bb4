"""Make demonstrations of a task. How they are made depends on the task.

Meta-World: its scripted policies act. Successes are kept, cut some steps after they succeed.

BlockPush: the benchmark's own oracle acts, in the way that each start's seed draws. Successes are
kept.

RoboMimic and UR5: scripted experts act, by --variety as differently as people would. Successes are
kept. The file holds what all tasks of a scene need: see DATA.md.

Kitchen: scripted experts do four of the seven sub-tasks, in an order that the start seed chooses.
Successes are kept; --variety makes the hand take detours, at its own speed and with noise.

Adroit: recorded states are shown again, in order. As for Meta-World, each state's point cloud is
cast anew, and the points are kept as float16, at most 0.5 mm off.

Hopper, Walker2d, HalfCheetah, Ant: an agent is trained by stable-baselines3's PPO until the mean
return of its last 20 episodes passes --until. Then its episodes are recorded, all of them, with the
noise it explores with, in Minari's format: raw observations, actions as executed, rewards, ends.

Push-T: policies that are good at the task act, in turn. Each start state gets several tries and its
shortest success is kept, so that hard starts are not left out and the policy's waiting is. The file
holds states, actions as executed, episode ends and each episode's start seed. demos/pusht.npz was
made this way by three policies trained on Diffusion Policy's 206 human demonstrations.

Start seeds count up from --start-seed, far from the evaluation's 100000 on. Episodes of a task's
own expert are kept one by one in a folder beside the file, so an interrupted collection goes on;
the file appears whole.
"""

import startup  # noqa: F401 - first, see there

import functools
import importlib.metadata
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from commands import START_SEEDS, BadInput, Parser, above_zero, check_seed, cli, refuse_flags
from data import scene_of_data
from envs import make_env, task_list, task_named, worker_pool
from evaluate import rollout
from files import atomic, check_folder, check_output, read_bytes
from formats import read, save_npz
from hdf5 import save_minari
from policy import Policy
from task_locomotion import LAST, record, train

MAX_STARTS = 100_000  # start states after which collecting from policies is given up
# How demonstrations are collected -> the flags that this way alone uses, and their defaults.
WAYS = {
    "a task's own expert": {"workers": None, "states": None, "variety": None},
    "an agent that is trained here": {
        "until": None,
        "record_steps": None,
        "max_steps": 3_000_000,
        "envs": 8,
        "threads": 1,
    },
    "policies": {"init": None, "tries": 6, "T_a": None, "z_scale": 1.0},
}
STORED = {1: np.float32, 2: np.float16, 3: np.uint8}  # axes of one step's array -> dtype in files


# ---- from a scripted expert or recorded states ---------------------------------------------------


@functools.lru_cache(1)
def simulator(name):
    """The task's simulator, made once a process."""
    return make_env(task_named(name))


def make_part(task, states, i, folder, variety=None):
    """Make episode i of the task's expert as folder/i.npz, or an empty folder/i.failed.

    variety: how much it differs from a plain one, for tasks whose expert varies.
    An episode that is there already is not made again. Returns whether it is kept.
    """
    done = Path(folder) / f"{i}.npz"
    failed = Path(folder) / f"{i}.failed"
    if done.exists():
        return True
    if failed.exists():
        return False
    varied = {} if variety is None else {"variety": variety}
    arrays = task.expert(simulator(task.name), i, states, **varied)
    if arrays is None:
        atomic(failed, lambda f: None)
        return False
    save_npz(done, **{name: a.astype(STORED[a.ndim - 1]) for name, a in arrays.items()})
    return True


def told_in(note):
    """What the file about.json of a collection says; None if it is damaged."""
    try:
        return json.loads(read_bytes(note))
    except (ValueError, RecursionError):  # also BadInput
        return None


def claim_folder(out, about):
    """The folder for the finished episodes of a collection. about: {"task": .., "states": ..}.

    Raises BadInput if it holds those of another collection.
    """
    folder = out.parent / f".{out.name}.parts"
    note = folder / "about.json"
    if note.exists() and told_in(note) != about:
        raise BadInput(
            f"{folder} holds an interrupted collection of something else: finish that, or delete it"
        )
    atomic(note, lambda f: f.write(json.dumps(about).encode()))
    return folder


def join_parts(task, folder, kept, out):
    """Put the episodes `kept` of a folder into the file out -> their lengths (E,).

    "made_for" are the letters of the scene's name: training knows by it what the data is of.
    """
    episodes = [read(folder / f"{i}.npz") for i in kept]
    lengths = np.array([len(episode["action"]) for episode in episodes])
    arrays = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
    made_for = np.frombuffer(scene_of_data(task).encode(), np.uint8)
    ends = lengths.cumsum()
    save_npz(out, **arrays, episode_ends=ends, start_seed=np.array(kept), made_for=made_for)
    return lengths


def from_expert(task, episodes, out, *, states=None, start_seed=0, workers=None, variety=None):
    """Write demonstrations of the task's own expert to the file out, made in worker processes.

    states: the path of recorded states, for tasks whose expert replays them. variety: from 0 to 1,
    for tasks whose expert varies. Returns the episodes' lengths (E,) and the number of attempts.
    Raises BadInput if out exists, if more than 9 of 10 attempts fail, or if there are too few
    recorded episodes.
    """
    out = Path(out)
    if out.exists():
        raise BadInput(f"{out} exists: name a new file with --out, or move it away")
    path = ""
    first = start_seed
    limit = 10 * episodes + 10  # attempts
    if task.count_states:
        path, limit = task.count_states(states)
        first = 0
        if episodes > limit:
            raise BadInput(f"{path} has {limit} episodes: cannot show {episodes}")
    workers = min(workers or os.cpu_count(), episodes)
    about = {"task": task.name, "states": str(path)}
    if variety is not None:
        about["variety"] = variety
    folder = claim_folder(out, about)
    make = functools.partial(make_part, task, str(path), folder=folder, variety=variety)
    kept = []
    tried = 0
    with (
        worker_pool(workers) as pool,
        tqdm(total=episodes, unit="episode", disable=None) as bar,
    ):
        while len(kept) < episodes:
            if tried >= limit:
                raise BadInput(
                    f"{len(kept)} of {tried} attempts at {task.name} succeeded: too few for "
                    f"{episodes} episodes"
                )
            n = min(episodes - len(kept), limit - tried)  # no attempt more than can be needed
            batch = range(first + tried, first + tried + n)
            for i, good in zip(batch, pool.map(make, batch)):
                tried += 1
                if good:
                    kept.append(i)
                bar.update(len(kept) - bar.n)
                bar.set_postfix(attempts=tried)
    lengths = join_parts(task, folder, kept, out)
    shutil.rmtree(folder)
    return lengths, tried


# ---- from an agent that is trained here ----------------------------------------------------------


def from_agent(args, task, episodes, out):
    """Train an agent and record that many episodes in the folder out, as the flags say.

    Returns the returns (E,) of the episodes, all their steps, the agent's steps, and its last mean
    return in training. Raises BadInput.
    """
    import torch

    if args.until is None:
        raise BadInput(f"{task.name} is recorded from an agent trained here: give --until RETURN")
    if Path(out).exists():  # which save_minari() would tell only after minutes of training
        raise BadInput(f"{out} exists: name a new folder with --out, or move it away")
    torch.set_num_threads(args.threads)
    act, level, steps = train(
        task, args.until, max_steps=args.max_steps, envs=args.envs, seed=args.seed
    )
    recorded = record(act, task, episodes, start_seed=args.start_seed, max_steps=args.record_steps)
    packages = ("gymnasium", "mujoco", "stable-baselines3")
    with make_env(task) as env:
        save_minari(
            out,
            recorded,
            env,
            f"drift/{task.name}/medium-v0",
            algorithm_name="PPO of stable-baselines3, stochastic",
            description=f"agent of seed {args.seed} stopped after {steps} steps, when its last "
            f"{LAST} episodes returned {level:.1f} on average; made by experts.py --until "
            f"{args.until:g}",
            requirements=[f"{p}=={importlib.metadata.version(p)}" for p in packages],
        )
    returns = np.array([episode["rewards"].sum() for episode in recorded])
    total = sum(len(episode["rewards"]) for episode in recorded)
    return returns, total, steps, level


# ---- from policies -------------------------------------------------------------------------------


def shortest_successes(policies, task, starts, *, tries, seed, workers):
    """{start seed: (state (L, S), action (L, D_a))}: the shortest of `tries` successes of each.

    The policies act in turn, and each try draws its own latents. A start state that was never
    solved is missing.
    """
    best = {}
    for t in range(tries):
        policy = policies[t % len(policies)]
        r = rollout(policy, task, starts, seed=seed + t, record=True, workers=workers)
        for e in np.flatnonzero(r.success):
            L = int(np.isfinite(r.rewards[e]).sum())
            if starts[e] not in best or L < len(best[starts[e]][0]):
                state = r.states[e, :L].astype(np.float32)
                action = r.actions[e, :L].astype(np.float32)
                best[starts[e]] = (state, action)
    return best


def from_policies(
    policies, task, episodes, *, start_seed, tries=6, seed=0, at_once=50, workers=True
):
    """The shortest of `tries` successes from each start state, until there are enough episodes.

    Returns state (N, S), action (N, D_a), episode_ends, start_seed (E,) as a dict, and the number
    of start states. Raises BadInput if fewer than 1 % of the first 200 starts, or fewer than
    `episodes` of MAX_STARTS, were ever solved.
    """
    kept = {}
    used = 0
    with tqdm(total=episodes, unit="episode", disable=None) as bar:
        while len(kept) < episodes:
            starts = np.arange(start_seed + used, start_seed + used + at_once)
            best = shortest_successes(
                policies, task, starts, tries=tries, seed=seed + used * tries, workers=workers
            )
            for start in sorted(best)[: episodes - len(kept)]:
                kept[start] = best[start]
            used += at_once
            bar.update(len(kept) - bar.n)
            bar.set_postfix(starts=used)
            hopeless = (used >= 200 and len(kept) < used / 100) or used >= MAX_STARTS
            if len(kept) < episodes and hopeless:
                raise BadInput(
                    f"{len(kept)} of {used} start states were solved: train a better policy first"
                )
    states = [state for state, _ in kept.values()]
    actions = [action for _, action in kept.values()]
    arrays = {
        "state": np.concatenate(states),
        "action": np.concatenate(actions),
        "episode_ends": np.cumsum([len(state) for state in states]),
        "start_seed": np.array(list(kept)),
    }
    return arrays, used


# ---- the command ---------------------------------------------------------------------------------


def parse():
    """The command line's flags, checked."""
    p = Parser(
        __doc__,
        examples=(
            "python experts.py --task metaworld-assembly --episodes 10",
            "python experts.py --task lift --episodes 200",
            "python experts.py --task blockpush --episodes 1000 --out blockpush-1000.npz",
            "python experts.py --task ur5-lift --episodes 50 --variety 0.5",
            "python experts.py --task kitchen --variety 0.5 --episodes 500 --out kitchen-500.npz",
            "python experts.py --task adroit-hammer --states hammer.npz --episodes 10",
            "python experts.py --task hopper --until 1300 --episodes 60 --out demos/hopper-medium",
            "python experts.py --task pusht --init a.pt b.pt --episodes 300 --out my_demos.npz",
        ),
    )
    p.add_argument("--task", default="pusht", help=f"one of {task_list()}")
    p.add_argument(
        "--episodes", type=int, help="episodes to keep; 10 of a task's own expert, or 300"
    )
    p.add_argument("--start-seed", type=int, help="the first start seed; 1000000 if not given")
    p.add_argument(
        "--seed",
        type=int,
        help="the seed of the latents, or of the agent's training; 0 if not given",
    )
    p.add_argument(
        "--out",
        help="the file or folder to write: demos.npz or TASK-medium if not given, or of a "
        "point-cloud task, BlockPush, Kitchen, RoboMimic or UR5 demos/TASK.npz beside this file, "
        "where training finds it",
    )
    p.add_argument(
        "--one-process", action="store_true", help="do not share the work between processes"
    )
    g = p.add_argument_group("a task's own expert")
    g.add_argument(
        "--workers",
        type=int,
        help="processes, no more than episodes; as many as there are cores if not given",
    )
    g.add_argument(
        "--states",
        help="Adroit's recorded states; $DRIFT_DATA/adroit/NAME.npz or Minari's if not given",
    )
    g.add_argument(
        "--variety",
        type=float,
        help="of RoboMimic, Kitchen and UR5: detours, speeds, noise, and but for Kitchen other "
        "grasps; from 0 (none; if not given) to 1",
    )
    g = p.add_argument_group("locomotion")
    g.add_argument(
        "--until", type=float, metavar="RETURN", help="the mean return at which training stops"
    )
    g.add_argument("--record-steps", type=int, help="begin no episode after this many steps")
    g.add_argument(
        "--max-steps", type=int, help="training steps before giving up; 3000000 if not given"
    )
    g.add_argument("--envs", type=int, help="environments that the agent trains in; 8 if not given")
    g.add_argument("--threads", type=int, help="torch threads; 1 if not given")
    g = p.add_argument_group("Push-T")
    g.add_argument(
        "--init", nargs="+", metavar="CKPT", help="checkpoints of the policies that act, in turn"
    )
    g.add_argument("--tries", type=int, help="tries from each start state; 6 if not given")
    g.add_argument("--T-a", type=int, help="executed steps T_a, instead of the checkpoint's")
    g.add_argument(
        "--z-scale", type=float, help="the standard deviation of the latents; 1 if not given"
    )
    args = p.parse_args()
    above_zero(
        args,
        "episodes",
        "tries",
        "T_a",
        "record_steps",
        "max_steps",
        "envs",
        "threads",
        "workers",
    )
    most = 4 * os.cpu_count()
    if args.workers and args.workers > most:
        raise BadInput(f"--workers {args.workers}: more than {most}, four a core, are of no use")
    if args.z_scale is not None and not 0 <= args.z_scale < math.inf:
        raise BadInput(f"--z-scale {args.z_scale} must not be below 0, nor infinite")
    if args.variety is not None and not 0 <= args.variety <= 1:
        raise BadInput(f"--variety must lie in 0 .. 1, not {args.variety}")
    if args.until is not None and not math.isfinite(args.until):
        raise BadInput(f"--until {args.until} must be a finite return")
    return args


def tell(lengths):
    """Number, mean and range of the episodes' lengths (E,), for the last line."""
    return (
        f"{lengths.sum()} steps, {lengths.mean():.0f} an episode "
        f"({lengths.min()} to {lengths.max()})"
    )


def run_expert(args, task):
    """Collect from the task's own expert, and print what was written."""
    lengths, tried = from_expert(
        task,
        args.episodes or 10,
        args.out,
        states=args.states,
        start_seed=args.start_seed,
        workers=1 if args.one_process else args.workers,
        variety=args.variety,
    )
    print(f"{args.out}: {len(lengths)} episodes of {tried} attempts, {tell(lengths)}")


def run_agent(args, task):
    """Train and record an agent, and print what was written."""
    returns, total, steps, level = from_agent(args, task, args.episodes or 300, args.out)
    print(
        f"{args.out}: {len(returns)} episodes, {total} steps, return {returns.mean():.0f} "
        f"({returns.min():.0f} to {returns.max():.0f}), by an agent of {steps} steps whose last "
        f"{LAST} episodes returned {level:.0f} in training"
    )


def run_policies(args, task):
    """Collect from checkpoints, and print what was written. Raises BadInput without --init."""
    if not args.init:
        raise BadInput(f"{task.name} is recorded from policies: give --init CKPT")
    if Path(args.out).exists():  # the policies act for long before it is written
        raise BadInput(f"{args.out} exists: name a new file with --out, or move it away")
    policies = [Policy.load(path, task=task.name)[0] for path in args.init]
    for path, policy in zip(args.init, policies):
        policy.check_task(task, path)
        if policy.method == "bc" and args.z_scale != 1:
            raise BadInput(f"--z-scale: {path} is a regression, which acts without a latent")
        policy.set_executed(args.T_a or policy.T_a)
        policy.z_scale = args.z_scale
    arrays, starts = from_policies(
        policies,
        task,
        args.episodes or 300,
        start_seed=args.start_seed,
        tries=args.tries,
        seed=args.seed,
        workers=not args.one_process,
    )
    save_npz(args.out, **arrays)
    lengths = np.diff(arrays["episode_ends"], prepend=0)
    found = f"{len(lengths)} successful episodes from {starts} start states"
    print(f"{args.out}: {found}, {tell(lengths)}")


def fill_way(args, task):
    """Give the flags of the task's way their defaults; refuse those of the others -> the way."""
    way = "policies"
    if task.expert:
        way = "a task's own expert"
    elif task.minari:
        way = "an agent that is trained here"
    for other, flags in WAYS.items():
        if other != way:
            refuse_flags(args, flags, f"{task.name}, which is recorded from {way}")
    if not task.varies:
        refuse_flags(args, ["variety"], f"{task.name}, whose expert does not vary")
    if task.count_states:
        refuse_flags(args, ["start_seed"], f"{task.name}, whose recorded episodes come in turn")
    else:
        refuse_flags(args, ["states"], f"{task.name}, whose expert replays none")
    if task.expert:
        refuse_flags(args, ["seed"], f"{task.name}, whose expert draws from the start seed")
    elif task.minari:
        refuse_flags(args, ["one_process"], f"{task.name}, whose agent has --envs in one process")
    for name, value in WAYS[way].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.seed = args.seed or 0
    check_seed(args, "seed", below=START_SEEDS)  # an agent's simulators take it too
    if args.start_seed is None:
        args.start_seed = 1_000_000
    most = max(MAX_STARTS, 20 * (args.episodes or 300))  # start states that may be tried
    check_seed(args, "start_seed", below=START_SEEDS, n=most)
    return way


def main():
    """Collect demonstrations in the way that the task has."""
    args = parse()
    task = task_named(args.task)
    way = fill_way(args, task)
    if way == "a task's own expert":
        args.out = args.out or Path(__file__).parent / "demos" / task.data[-1]
        check_output(args, "out")
        run_expert(args, task)
    elif way == "policies":
        args.out = args.out or "demos.npz"
        check_output(args, "out")
        run_policies(args, task)
    else:
        args.out = args.out or f"{task.name}-medium"
        check_folder(args, "out")
        run_agent(args, task)


if __name__ == "__main__":
    cli(main)
