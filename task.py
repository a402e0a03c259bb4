"""What a task is: sizes, horizons, simulator, data; and the wrapper that runs chunks.

An observation is a dict of named arrays. The number of axes tells what an observation is:

  "state"     (S,)        float32   numbers: joints, positions, key points
  "points"    (N, 3)      float32   a point cloud
  any name    (H, W, 3)   uint8     a camera's picture

An environment may give a picture as a `Lazy`: a policy sees only the last T_o of a chunk's T_a
steps, so the others are never drawn.

A suite's file (task_*.py) ends in a list TASKS of these; envs.py collects the lists. Nothing here
imports a simulator.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from commands import BadInput

# What Stage 2 takes where neither a flag nor the task says otherwise, per chunk of about 4 steps.
# These were found on Hopper.
PPO_DEFAULTS = {
    "num_envs": 32,
    "num_steps": 128,
    "num_iterations": 150,
    "minibatch_size": 1024,
    "update_epochs": 4,
    "lr": 5e-5,
    "target_kl": 0.06,
    "noise_episodes": 100,
    "sigma_final": 1.0,
    "rho": 0.9,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "critic_lambda": 0.95,
    "anchor": 0.3,
    "anchor_iters": 50,
    "smooth": 0.0,
    "shift": 0,
    "success_bonus": 0.0,
}


def whole_episodes(chunks, **more):
    """Task.stage2 of a task whose rewards count progress that is not lost, found on Push-T.

    An iteration has the time of 100 episodes that run to the limit, of `chunks` chunks each. more:
    what the task has otherwise.
    """
    return {
        "num_envs": 100,
        "num_steps": chunks,
        "num_iterations": 100,
        "minibatch_size": -(-100 * chunks // 8),  # an eighth, rounded up: no rest of a few
        "update_epochs": 1,
        "target_kl": 0.03,
        "sigma_final": 0.5,
        "gamma": 1.0,
        "gae_lambda": 0.5,
        "critic_lambda": 1.0,
        "anchor": 0.05,
        "smooth": 0.3,
        **more,
    }


def dtype_of(shape):
    """The dtype of an observation of that shape: uint8 for pictures (three axes), else float32."""
    return "uint8" if len(shape) == 3 else "float32"


def check_horizons(T_o, T_p, T_a):
    """Refuse horizons that break Eq. 23: T_o <= T_p and T_o - 1 + T_a <= T_p. Raises BadInput."""
    if min(T_o, T_p, T_a) < 1:
        raise BadInput(f"T_o {T_o}, T_p {T_p}, T_a {T_a}: each must be at least 1")
    if T_o > T_p or T_o - 1 + T_a > T_p:
        raise BadInput(
            f"T_o {T_o}, T_p {T_p}, T_a {T_a} breaks T_o - 1 + T_a <= T_p (Eq. 23): "
            f"lower --T-a to {max(T_p - T_o + 1, 1)} or raise --T-p"
        )


@dataclass(frozen=True)
class Task:
    """A task. The first six fields are needed; the others say what a task has beyond them."""

    name: str
    obs: dict  # the name of each observation -> the shape of one
    D_a: int  # the size of an action
    T_o: int  # steps of observation history
    T_p: int  # steps of a predicted chunk
    T_a: int  # steps of a chunk that are executed (Eqs. 22, 23)
    suite: str = "own"
    group: str = None  # the difficulty that the paper reports the task under
    crop: dict = field(default_factory=dict)  # camera -> its crop: pixels of a square, or (h, w)

    # The simulator. A task without one trains and ends without a score.
    env: Callable = None  # makes one gymnasium environment with Dict observations
    needs: str = None  # what pip installs for it
    steps: int = None  # primitive steps that an episode lasts
    score: str = "success"  # of an episode: "max" or "sum" of its rewards; success at any step
    #                         ("success") or at the end ("held"); the share of its "stages" reached
    stages: int = 0  # stages that are reported, p1 to pn; info["stages"] tells how many are reached
    mode: Callable = None  # (states (L, S)) -> the name of the way that an episode took, or None;
    #                        states as info["state"] tells them, and the data's "state" too
    paths: Callable = None  # (axes, [states (L, S)], [colour]): draws episodes, each in its colour
    episodes: int = 50  # of an evaluation
    sketch: Callable = None  # (axes, observation): draws the observation itself

    # The data.
    data: tuple = ()  # the file names that are looked for in each data folder, best first
    arrays: tuple = ()  # further arrays of its files that `observations` reads
    observations: Callable = (
        None  # a file's arrays {name: array} -> {name: (N, ...)}; None: by name
    )
    actions: Callable = None  # a file's arrays -> (N, D_a); None: its "action"
    check: Callable = None  # (path): raises BadInput if a file was recorded in another environment
    render: Callable = None  # (arrays, path) -> {camera: (N, H, W, 3) uint8}, of a file without
    export: Callable = None  # (arrays, path) -> what a file of robomimic holds: save_robomimic()
    url: str = None  # the official archive, for `python data.py download`
    sha256: dict = field(default_factory=dict)  # array of the archive -> sha256 of its bytes
    optional: tuple = ()  # arrays of the archive that may be missing: nothing reads them
    numbers: str = None  # of one with cameras: the task by numbers that reads the same files
    minari: str = None  # the data set's name in Minari, for `python data.py download`
    env_id: str = None  # the gymnasium id that Minari's data says it was recorded in
    expert: Callable = None  # (env, i, states) -> one demonstration's arrays, or None if it failed
    varies: bool = False  # whether `expert` also takes variety=, from 0 to 1
    count_states: Callable = None  # states or None -> (path, recorded episodes), if it replays them
    draw: Callable = None  # (figure, episodes): a picture of the demonstrations

    # What the trainers take where a flag is not given, and what the paper reports.
    limits: dict = field(default_factory=dict)  # "action" or an observation -> (lo (D,), hi (D,)),
    #                                             mapped to -1 and 1; NaN: the data's own range
    stage1: dict = field(default_factory=dict)  # flags of dbp_train.py that have no fixed default
    stage2: dict = field(default_factory=dict)  # flags of dbpo_ppo.py; PPO_DEFAULTS are added
    paper: dict = field(default_factory=dict)  # method -> the paper's figure

    def __post_init__(self):
        check_horizons(self.T_o, self.T_p, self.T_a)
        object.__setattr__(self, "stage2", {**PPO_DEFAULTS, **self.stage2})  # the task is frozen

    @property
    def specs(self):
        """{name: {"shape": list, "dtype": str}} of the observations, as a checkpoint keeps them."""
        return {
            name: {"shape": list(shape), "dtype": dtype_of(shape)}
            for name, shape in self.obs.items()
        }


def not_importable(task, e):
    """The BadInput that tells of an ImportError of a package that a task needs."""
    if isinstance(e, ModuleNotFoundError):
        cure = f"pip install {task.needs}" if task.needs else "install it"
        return BadInput(f"{task.name} needs {e.name or e}: {cure}")
    return BadInput(f"{task.name} needs {e.name or 'a package'}, which is there but fails: {e}")


class Lazy:
    """An array that is made when numpy first asks for it, and is then kept.

    make(*args) -> array. What it is made of must be in args as it is now, for the environment may
    have gone on when the array is asked for.
    """

    def __init__(self, make, *args):
        self.make = make
        self.args = args
        self.made = None

    def __array__(self, dtype=None, copy=None):
        if self.made is None:
            self.made = self.make(*self.args)
        return np.array(self.made, dtype=dtype, copy=copy)


def observation_space(task):
    """The gymnasium space of a task's observations."""
    boxes = {}
    for name, shape in task.obs.items():
        if dtype_of(shape) == "uint8":
            boxes[name] = gym.spaces.Box(0, 255, shape, np.uint8)
        else:
            boxes[name] = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    return gym.spaces.Dict(boxes)


class Chunked(gym.Wrapper):
    """Executes T_a actions a step and returns the last T_o observations.

    action (T_a, D_a) -> observations {name: (T_o, ...)} and the sum of the primitive rewards.
    info["rewards"] (T_a,) holds the primitive rewards, NaN where the episode had already ended;
    info["steps"] the primitive steps so far; info["success"] whether success was seen at any step
    or, with `held`, at the last one; info["over"] whether the episode has ended; info["stages"]
    (stages,) whether the episode has reached each stage, which is the highest number that the
    environment's own info["stages"] has told.

    record: info["states"] (T_a, S) holds the simulator's states before each action, info["state"]
    (S,) the one after the last.
    film: `frames` keeps a picture of every primitive step.
    hold: the end is told in info["over"] alone and further steps do nothing, so that a batch of
    episodes runs to its longest.
    reset(seed=s, options={"past": {s: chunks}}) goes on from where these chunks led, which resumes
    an interrupted episode.
    """

    def __init__(
        self, env, T_o, T_a, steps, *, stages=0, record=False, film=False, hold=False, held=False
    ):
        super().__init__(env)
        self.T_o = T_o
        self.T_a = T_a
        self.max_steps = steps
        self.stages = np.arange(1, stages + 1)
        self.record = record
        self.film = film
        self.hold = hold
        self.held = held
        self.observation_space = gym.spaces.Dict(
            {name: stacked(box, T_o) for name, box in env.observation_space.items()}
        )
        self.action_space = stacked(env.action_space, T_a)

    def reset(self, *, seed=None, options=None):
        options = dict(options or {})
        past = options.pop("past", {}).get(seed, ())
        obs, info = self.env.reset(seed=seed, options=options or None)
        self.history = [obs] * self.T_o
        self.n = 0
        self.over = (False, False)  # terminated, truncated
        self.success = False
        self.reached = 0  # the number of stages
        self.state = info.get("state")
        self.frames = [self.env.render()] if self.film else []
        for chunk in past:
            self._run(chunk)
        return self._observation(), self._info([])

    def _observation(self):
        """The last T_o observations, stacked; here pictures that are `Lazy` are drawn."""
        return {name: np.stack([obs[name] for obs in self.history]) for name in self.history[0]}

    def _info(self, rewards, states=()):
        padded = np.full(self.T_a, np.nan)
        padded[: len(rewards)] = rewards
        info = {
            "rewards": padded,
            "steps": self.n,
            "success": self.success,
            "over": any(self.over),
            "stages": self.reached >= self.stages,
        }
        if self.record:
            info["state"] = self.state
            info["states"] = np.full((self.T_a, len(self.state)), np.nan)
            if states:
                info["states"][: len(states)] = states
        return info

    def step(self, chunk):
        rewards, states = self._run(chunk)
        terminated, truncated = (False, False) if self.hold else self.over
        info = self._info(rewards, states)
        return self._observation(), float(sum(rewards)), terminated, truncated, info

    def _run(self, chunk):
        """Execute actions until the episode ends -> their rewards, and the states before them."""
        rewards = []
        states = []
        for action in chunk:
            if any(self.over):
                break
            states.append(self.state)
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.n += 1
            self.state = info.get("state")
            now = bool(info.get("is_success", False))
            self.success = now if self.held else now or self.success
            self.reached = max(self.reached, info.get("stages", 0))
            self.over = (terminated, truncated or self.n >= self.max_steps)
            self.history = [*self.history[1:], obs]
            rewards.append(reward)
            if self.film:
                self.frames.append(self.env.render())
        return rewards, states


def stacked(box, n):
    """The space of n values of a Box, one after another."""
    low = np.broadcast_to(box.low, (n, *box.shape))
    high = np.broadcast_to(box.high, (n, *box.shape))
    return gym.spaces.Box(low, high, dtype=box.dtype)
