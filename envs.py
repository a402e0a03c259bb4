"""All tasks, and their simulators behind one interface: chunks of actions in, observations out.

  python envs.py                          list the tasks
  python envs.py --task pusht --png x.png draw what the policy of a task sees

To add a task, write a file like task_pusht.py that ends in a list TASKS, and add it to the two
lines below. Simulators are imported when an environment is made, so a task whose package is missing
is no hindrance to the others.
"""

import startup
from startup import tied

import contextlib
import difflib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from gymnasium import Env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

import task_blockpush
import task_clouds
import task_kitchen
import task_locomotion
import task_pusht
import task_robomimic
import task_ur5
from commands import START_SEEDS, BadInput, Parser, check_seed, cli, refuse_flags
from download import find
from files import atomic, check_output
from task import Chunked, dtype_of, not_importable

SUITES = (
    task_pusht,
    task_locomotion,
    task_clouds,
    task_robomimic,
    task_blockpush,
    task_kitchen,
    task_ur5,
)
TASKS = {task.name: task for suite in SUITES for task in suite.TASKS}
# How processes are started. On Linux by a fork, so that this process is their parent (Python 3.14
# would put another one between them); elsewhere as Python does it there.
FORK = "fork" if sys.platform == "linux" else None
TRAIN_SEED = 2_000_000  # the first start seed of Stage 2; the evaluation's are from 100000 on


def task_named(name):
    """The task of that name. Raises BadInput with the nearest names."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, 3, 0.55)
    near += [other for other in TASKS if other.endswith(f"-{name}") and other not in near]
    if near:
        raise BadInput(f"unknown task {name!r}: did you mean {' or '.join(near)}?")
    raise BadInput(f"unknown task {name!r}: `python envs.py` lists all tasks")


def defaults_of(flag, stage="stage1"):
    """The default of a flag by suite, for --help: "{pusht: 150, locomotion: 32}".

    flag: an attribute of a Task, or a key of its stage1 or stage2. A task that differs from most of
    its suite is named by itself, and stands for those whose names begin with its own.
    """
    found = []
    for suite in dict.fromkeys(task.suite for task in TASKS.values()):
        values = {
            task.name: plain(getattr(task, stage).get(flag, getattr(task, flag, None)))
            for task in TASKS.values()
            if task.suite == suite
        }
        usual = Counter(values.values()).most_common(1)[0][0]
        others = {name: value for name, value in values.items() if value != usual}
        others = {
            name: value
            for name, value in others.items()
            if not any(name.startswith(f"{o}-") and v == value for o, v in others.items())
        }
        found += [f"{name}: {value}" for name, value in {suite: usual, **others}.items()]
    return "{" + ", ".join(found) + "}"


def task_list():
    """The tasks for --help; of a large suite an example and the number."""
    names = []
    for suite in dict.fromkeys(task.suite for task in TASKS.values()):
        own = [task.name for task in TASKS.values() if task.suite == suite]
        names += own if len(own) < 6 else [f"{own[0]} and {len(own) - 1} more of {suite}"]
    return f"{', '.join(names)}; `python envs.py` lists them all"


def plain(value):
    """A default as it would be typed."""
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


# ---- processes that work for this one -----------------------------------------------------------


def run_program(command):
    """Run a program to its end -> its exit code. It ends with this process.

    Ctrl-C is passed on to it, once, and it is given the time to save what it has. If it said that
    it was interrupted, this process ends too, without a word of its own.
    """
    interrupted = []  # a Ctrl-C that comes while the program is being started
    handler = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    program = subprocess.Popen(command, process_group=0, **tied())
    try:
        signal.signal(signal.SIGINT, handler)
        if interrupted:
            raise KeyboardInterrupt
        return program.wait()
    except KeyboardInterrupt:
        program.send_signal(signal.SIGINT)
        if program.wait() == 130:
            sys.exit(130)
        raise


@contextlib.contextmanager
def no_interrupts():
    """Hold Ctrl-C back until the end; processes that are started inside never get it.

    It is the main process that tells of it. An interrupt of a fork would be lost.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def worker_pool(n):
    """A pool of n processes, for its `map`. They end with this process, whatever ends it.

    After an exception, such as an interrupt, they are killed at once. Raises BadInput if one of
    them was killed by somebody else.
    """
    context = multiprocessing.get_context(FORK)
    pool = ProcessPoolExecutor(n, context, initializer=startup.end_with, initargs=(os.getpid(),))
    with no_interrupts():
        pool.submit(os.getpid)  # starts the processes
        workers = list(pool._processes.values())
    try:
        yield pool
    except BaseException as e:
        for worker in workers:
            worker.kill()
        pool.shutdown(cancel_futures=True)
        if isinstance(e, BrokenProcessPool):
            raise BadInput(
                "a worker process was killed, for want of memory perhaps: use fewer of them"
            ) from e
        raise
    pool.shutdown()


# ---- environments -------------------------------------------------------------------------------


def make_env(task):
    """One simulator of a task. BadInput if it has none, or if its package cannot be imported."""
    if task.env is None:
        raise BadInput(f"{task.name} has no simulator: it can be trained, but not rolled out")
    try:
        return task.env()
    except ImportError as e:
        raise not_importable(task, e) from e
    except RuntimeError as e:
        if "MUJOCO_GL" not in str(e):
            raise
        raise BadInput(f"{task.name} needs MuJoCo, and {e}: set egl or osmesa, or unset it") from e
    except AttributeError as e:
        if "glGetError" not in str(e):  # what PyOpenGL says where the library is missing
            raise
        raise BadInput(
            f"{task.name} needs MuJoCo, and the library of MUJOCO_GL={os.environ['MUJOCO_GL']} is "
            "not installed: install it, set egl or osmesa, or unset it"
        ) from e


def make_vec(task, n, *, T_o=None, T_a=None, workers=True, record=False, show=0, hold=True):
    """n environments of a task as one vector environment of chunks; none resets by itself.

    workers: a process for each (True) or all in this one (False). record: info carries the states.
    show: the first `show` environments keep their frames (needs workers=False). hold: see Chunked;
    without it an environment that ended must be reset, by options={"reset_mask": ...}, before the
    next step.
    """

    def maker(film):
        def make():
            return Chunked(
                make_env(task),
                T_o or task.T_o,
                T_a or task.T_a,
                task.steps,
                stages=task.stages,
                record=record,
                film=film,
                hold=hold,
                held=task.score == "held",
            )

        return make

    makers = [maker(i < show) for i in range(n)]
    if not workers or n == 1:
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    with no_interrupts():
        return AsyncVectorEnv(
            makers,
            context=FORK,
            worker=functools.partial(simulate, os.getpid()),
            autoreset_mode=AutoresetMode.DISABLED,
        )


def simulate(parent, *args):
    """What a simulator's worker does until it is told to end, or `parent` has ended."""
    startup.end_with(parent)
    try:
        _async_worker(*args)
    except (BrokenPipeError, ConnectionResetError):
        pass  # its pipe was seen to close before the system killed it: no word of that


@contextlib.contextmanager
def closing(env):
    """Close a vector environment at the end, and after an exception without waiting for a step.

    After an interrupt some processes may have answered and others not; waiting for all of them to
    answer again would be for ever.
    """
    try:
        yield
    except BaseException:
        if isinstance(env, AsyncVectorEnv):
            env._state = AsyncState.DEFAULT  # or close() warns of the step that it gives up
        env.close(terminate=True)
        raise
    env.close()


# ---- episodes that go on from iteration to iteration (Stage 2) ----------------------------------


@dataclass
class Stepped:
    """What a chunk led to in N simulators."""

    obs: dict  # {name: (N, T_o, ...)}: the true last observations, also where an episode ended
    rewards: np.ndarray  # (N, T_a) primitive rewards, NaN after an episode's end
    reached: np.ndarray  # (N,) the score of the episode before the chunk
    success: np.ndarray  # (N,)
    terminated: np.ndarray  # (N,)
    truncated: np.ndarray  # (N,)
    scores: np.ndarray  # of the episodes that ended

    @property
    def ran(self):
        """(N, T_a): whether the environment ran the action."""
        return ~np.isnan(self.rewards)


class Simulators:
    """N environments in mid-episode.

    Their start seeds and the chunks they have been given are what --resume needs to bring them
    back. obs {name: (N, T_o, ...)}: what to act on next. The start seeds go round from TRAIN_SEED
    to the largest that a simulator takes: each `seed` has a million, shared with others from 4293
    on. score (N,): of the episodes so far. ranks: the processes that share n of them; N are here,
    and no number depends on how many processes there are.
    """

    def __init__(self, task, n, *, T_o, T_a, workers, seed=0, state=None, ranks=None):
        from ranks import ALONE  # slow to import

        self.n = n
        self.ranks = ranks or ALONE
        N = self.ranks.size(n)
        self.how = task.score
        self.steps = task.steps
        self.T_a = T_a
        self.next = TRAIN_SEED + (1_000_000 * seed) % (START_SEEDS - TRAIN_SEED)
        self.seeds = np.zeros(N, np.int64)
        self.past = [[] for _ in range(N)]
        self.score = np.zeros(N)
        if state:
            self.next = state["next"]
            self.seeds = self.ranks.share(state["seeds"].numpy())
            self.score = self.ranks.share(state["score"].numpy())
            self.past = [list(chunks.numpy()) for chunks in self.ranks.share(state["past"])]
        else:
            self._new_seeds(np.ones(N, bool))
        self.env = make_vec(task, N, T_o=T_o, T_a=T_a, workers=workers, hold=False)
        past = dict(zip(self.seeds.tolist(), self.past))
        options = {"past": past} if state else None
        self.obs, _ = self.env.reset(seed=self.seeds.tolist(), options=options)

    def state(self):
        """Plain tensors and numbers for state.pt, of the simulators of all processes."""
        import torch

        own = (self.seeds.tolist(), self.score.tolist(), self.past)
        seeds, score, past = zip(*self.ranks.gathered(list(zip(*own))))
        return {
            "seeds": torch.tensor(seeds),
            "score": torch.tensor(score, dtype=torch.float64),
            "next": self.next,
            "past": [torch.from_numpy(np.array(chunks, np.float32)) for chunks in past],
        }

    def progress(self):
        """How far each episode has come: (N, 2), what the critic needs to know beside observations.

        The share of the time limit that has passed, and the score reached so far where it cannot be
        lost again: where it is the highest reward or the stages reached. Else 0.
        """
        passed = np.array([len(chunks) * self.T_a / self.steps for chunks in self.past])
        reached = self.score if self.how in ("max", "stages") else np.zeros_like(self.score)
        return np.stack([passed, reached], 1)

    def step(self, chunks):
        """Run chunks (N, T_a, D_a) in action units -> Stepped. Episodes that ended are reset."""
        reached = self.score
        obs, _, terminated, truncated, info = self.env.step(chunks)
        ended = terminated | truncated
        self._add_to_scores(info)
        stepped = Stepped(
            obs=obs,
            rewards=info["rewards"],
            reached=reached,
            success=info["success"],
            terminated=terminated,
            truncated=truncated,
            scores=self.score[ended],
        )
        self.score = np.where(ended, 0.0, self.score)
        for i, chunk in enumerate(chunks):
            self.past[i] = [] if ended[i] else [*self.past[i], chunk]
        self._new_seeds(ended)
        self.obs = obs
        if ended.any():
            options = {"reset_mask": ended}
            self.obs, _ = self.env.reset(seed=self.seeds.tolist(), options=options)
        return stepped

    def _new_seeds(self, ended):
        """Give the simulators that ended (N,) the next start seeds, in the order of all n."""
        every = self.ranks.gathered(ended.tolist())
        places = self.next - TRAIN_SEED + np.cumsum(every) - 1
        seeds = TRAIN_SEED + places % (START_SEEDS - TRAIN_SEED)
        self.seeds[ended] = self.ranks.share(seeds)[ended]
        self.next += sum(every)

    def _add_to_scores(self, info):
        if self.how == "max":
            self.score = np.fmax(self.score, np.nanmax(info["rewards"], 1))
        elif self.how == "sum":
            self.score = self.score + np.nansum(info["rewards"], 1)
        elif self.how == "stages":
            self.score = info["stages"].mean(1)
        else:
            self.score = info["success"].astype(float)


# ---- python envs.py -----------------------------------------------------------------------------


def describe(task):
    """One row of the list of tasks."""
    observations = ", ".join(f"{name} {'x'.join(map(str, s))}" for name, s in task.obs.items())
    try:
        data = os.path.relpath(find(task))
    except BadInput as e:
        data = str(e).split(": ")[-1].split(" or ")[0]  # what gets it
    return [
        task.name,
        task.group or task.suite,
        observations,
        str(task.D_a),
        f"{task.T_o}/{task.T_p}/{task.T_a}",
        str(task.steps or "-"),
        task.score if task.env else "no simulator",
        data,
    ]


def list_tasks():
    """Print all tasks as a table."""
    rows = [["task", "group", "observations", "D_a", "T_o/T_p/T_a", "steps", "score", "data"]]
    rows += [describe(task) for task in TASKS.values()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def has_picture(env):
    """Whether an environment has a render() of its own: gymnasium's raises an error."""
    return Env.render not in (type(env).render, type(env.unwrapped).render)


def what_the_policy_sees(task, seed):
    """A figure of a task at a start: the scene, and every observation."""
    from matplotlib.figure import Figure

    env = make_env(task)
    obs, _ = env.reset(seed=seed)
    numbers = [name for name, shape in task.obs.items() if len(shape) == 1]
    clouds = [name for name, shape in task.obs.items() if len(shape) == 2]
    cameras = [name for name, shape in task.obs.items() if dtype_of(shape) == "uint8"]
    panels = 1 + len(task.obs)
    figure = Figure(figsize=(4 * panels, 4), layout="constrained")
    figure.suptitle(f"{task.name}, start seed {seed}")
    scene = figure.add_subplot(1, panels, 1)
    scene.set(xticks=[], yticks=[], title="the scene")
    if has_picture(env):
        scene.imshow(env.render())
    else:
        scene.set(title="the scene: there is no render()")
    for i, name in enumerate(cameras):
        axes = figure.add_subplot(1, panels, 2 + i)
        draw_camera(axes, name, np.asarray(obs[name]), task.crop.get(name))
    for i, name in enumerate(clouds):
        from pointcloud import draw  # only here, for it needs MuJoCo

        place = 2 + len(cameras) + i
        axes = figure.add_subplot(1, panels, place, projection="3d", elev=25, azim=-60)
        whole = (obs[name].min(0), obs[name].max(0))
        draw(axes, obs[name], getattr(env.unwrapped, "box", whole))
        axes.set(title=f"{name}, metres")
    for i, name in enumerate(numbers):
        axes = figure.add_subplot(1, panels, 2 + len(cameras) + len(clouds) + i)
        if task.sketch:
            task.sketch(axes, obs)
        else:
            axes.barh(np.arange(len(obs[name])), obs[name])
            axes.set(title=f"{name}, the simulator's units", ylabel="place in the vector")
            axes.invert_yaxis()
    env.close()
    return figure


def draw_camera(axes, name, picture, crop=None):
    """Draw a camera's picture (H, W, 3), and on it the crop in its middle that is encoded.

    crop: (h, w) pixels, or one number for both.
    """
    from matplotlib.patches import Rectangle

    title = name
    axes.imshow(picture)
    if crop:
        H, W = picture.shape[:2]
        h, w = np.broadcast_to(crop, 2)
        corner = ((W - w) // 2 - 0.5, (H - h) // 2 - 0.5)  # the first pixel begins at -0.5
        axes.add_patch(Rectangle(corner, w, h, fill=False, edgecolor="tab:red", ls="--"))
        title += f", crop {h} x {w}"
    axes.set(xticks=[], yticks=[], title=title)


def main():
    """Run the command."""
    p = Parser(__doc__)
    p.add_argument("--task", help="draw this task instead of listing all")
    p.add_argument("--png", help="the picture to write; TASK.png if not given")
    p.add_argument("--seed", type=int, help="the start seed that is drawn; 100000 if not given")
    args = p.parse_args()
    if not args.task:
        refuse_flags(args, ("png", "seed"), "the list of tasks (no --task)")
        return list_tasks()
    task = task_named(args.task)
    args.png = args.png or f"{args.task}.png"
    check_output(args, "png")
    if args.seed is None:
        args.seed = 100_000
    check_seed(args, "seed", below=START_SEEDS)
    figure = what_the_policy_sees(task, args.seed)
    atomic(args.png, lambda f: figure.savefig(f, format="png", dpi=100))
    return print(f"drawn: {args.png}")


if __name__ == "__main__":
    cli(main)
