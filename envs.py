"""Tasks as one table, and their simulators behind one interface: chunks of actions in, observation histories out.

Push-T follows Diffusion Policy's low-dimensional protocol: nine key points of the T and the agent's position, 20
numbers; 300 steps; score = the highest min(coverage / 0.95, 1) reached; start states from seed 100000 on. Hopper,
Walker2d, HalfCheetah and Ant are gymnasium's v5 environments; score = the return of 1000 steps. Meta-World (34 tasks)
and Adroit (3) are seen as a point cloud and the robot's own state, as in 3D Diffusion Policy; score = success.
"""
import contextlib
import difflib
import io
from dataclasses import dataclass
from functools import partial
from typing import Callable

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from pymunk import Vec2d

from pointcloud import Camera, capture, picture, settle
from runs import BadInput

TRAIN_SEED = 2_000_000     # first start seed of Stage 2; the evaluation's are from 100000 on

# The nine key points of Diffusion Policy's data, fixed in the T's own frame; pixels of the 512 x 512 scene.
PUSHT_KEYPOINTS = np.array([
    [9.26979, 90.04097], [-60.98347, -1.18673], [60.91276, -1.39336], [-0.27050, 25.54363], [-14.06493, 122.81585],
    [39.00274, 32.85740], [-39.96641, 32.72966], [-16.82434, 62.86318], [23.54146, -1.70029]])


def pusht_obs(state):
    """Key-point observation of Push-T states: (..., 5) agent x, y, T x, y, angle -> (..., 20) key points, agent."""
    state = np.asarray(state)
    cos, sin = np.cos(state[..., 4, None]), np.sin(state[..., 4, None])
    x, y = PUSHT_KEYPOINTS.T
    points = np.stack([cos * x - sin * y, sin * x + cos * y], -1) + state[..., None, 2:4]     # (..., 9, 2)
    return np.concatenate([points.reshape(*state.shape[:-1], 18), state[..., :2]], -1).astype(np.float32)


PUSHT_GOAL = pusht_obs([0, 0, 256, 256, np.pi / 4])[:18]


def pusht_potential(obs):
    """Minus the key points' mean distance from the goal, in units of 100 pixels: (..., 20) -> (...).

    Unlike coverage it has a slope where the T does not touch its goal.
    """
    return -np.linalg.norm((obs[..., :18] - PUSHT_GOAL).reshape(*obs.shape[:-1], 9, 2), axis=-1).mean(-1) / 100


def pusht_start(seed):
    """Diffusion Policy's start state for a seed: agent x, y, T x, y (pixels), angle (radians)."""
    rs = np.random.RandomState(seed)
    return np.array([rs.randint(50, 450), rs.randint(50, 450), rs.randint(100, 400), rs.randint(100, 400),
                     rs.randn() * 2 * np.pi - np.pi], dtype=np.float64)


class PushT(gym.Wrapper):
    """gym-pusht with the 20-number observation. reset(seed=s) starts at pusht_start(s); reset(options={"state": v})
    at exactly the recorded state v. Rewards min(coverage / 0.95, 1); terminates at coverage > 0.95; info["state"].
    """

    def __init__(self):
        from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely

        class Simulator(PushTEnv):
            """gym-pusht with the goal's polygon made once, not at every step: 1.4 times as fast, same numbers."""
            goal = None

            def _get_coverage(self):
                shapes = self.block.shapes
                self.goal = self.goal or pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), shapes)
                return self.goal.intersection(pymunk_to_shapely(self.block, shapes)).area / self.goal.area

        super().__init__(Simulator(obs_type="state", render_mode="rgb_array", visualization_width=256,
                                   visualization_height=256))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (20,), np.float32)

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self.unwrapped, seed=seed)
        if seed is None:
            seed = int(self.unwrapped.np_random.integers(2 ** 31))
        # gym-pusht sets position before angle, which moves the T: its centre of mass is not its origin.
        # Diffusion Policy's evaluation does the same, so these are its start states.
        state, _ = self.env.reset(options={"reset_to_state": pusht_start(seed)})
        if options and "state" in options:
            state = self.set_state(options["state"])
        return pusht_obs(state), {"state": state}

    def set_state(self, state):
        """Put agent and T where the data recorded them: angle first, then position, all velocities 0."""
        sim = self.unwrapped
        for body in (sim.agent, sim.block):
            body.velocity, body.angular_velocity = (0, 0), 0
        sim.agent.position = tuple(map(float, state[:2]))
        sim.block.angle = float(state[4])
        sim.block.position = tuple(map(float, state[2:4]))
        sim.space.reindex_shapes_for_body(sim.block)
        return sim.get_obs()

    def step(self, action):
        action = Vec2d(*map(float, action))            # plain numbers: arrays of two are slow in the inner loop
        state, reward, terminated, truncated, info = self.env.step(action)
        return pusht_obs(state), float(reward), bool(terminated), truncated, {**info, "state": state}


# ---- point clouds --------------------------------------------------------------------------------------------------

N_POINTS = 512


class CloudEnv(gym.Env):
    """A MuJoCo simulator seen as (robot state (S,), cloud (N_POINTS, 3)) in one vector; reward 1 where it succeeds.

    The cloud comes from a private MjData with the simulator's positions, so a recorded state gives the same numbers:
    see pointcloud.py. Subclasses set camera, box, sim (the simulator), and know their state and start.
    """
    render_mode, sites = "rgb_array", ()

    def _ready(self, sim, S, D_a):
        self.sim, self.model, self.private = sim, sim.model, mujoco.MjData(sim.model)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (S + 3 * N_POINTS,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (D_a,), np.float32)

    def settled(self, qpos=None):
        """The private MjData at positions qpos (nq,), the simulator's now if not given, with its goal marks."""
        settle(self.model, self.private, self.sim.data.qpos if qpos is None else qpos)
        for name, pos in self.sites:
            self.private.site(name).xpos = pos
        return self.private

    def observe(self, qpos=None):
        """The observation (S + 3 N_POINTS,) at positions qpos. Raises ValueError if they do not fit the model."""
        data = self.settled(qpos)
        cloud = capture(self.model, data, self.camera, self.box, N_POINTS)
        return np.concatenate([self.robot_state(data), cloud.ravel()]).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.start(int(self.np_random.integers(2 ** 31)) if seed is None else seed)
        return self.observe(), {}

    def step(self, action):
        success = self.act(np.asarray(action, np.float64))
        return self.observe(), float(success), success and self.ends_by_success, False, {"is_success": success}

    def render(self):
        return picture(self.model, self.settled(), Camera(self.camera.pos, self.camera.quat, self.camera.fovy, 160))


class MetaWorld(CloudEnv):
    """A Meta-World v3 task by the name it has in all versions; over once it succeeds. Actions: gripper move, opening.

    State (9,): positions of the hand and of its two fingers. The camera stands where 3D Diffusion Policy's does and is
    turned to the objects, 50 degrees instead of 60, so 84 pixels a side are as dense as 104 of its; the crop drops the
    table, what lies beyond it, and most of the arm.
    """
    camera, ends_by_success = Camera.looking((0.6, 0.295, 0.8), (0, 0.65, 0.12), 50), True
    table = {"hand-insert": 0.05}               # its height, where not 0

    def __init__(self, name):
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as tasks      # slow to import
        sim = tasks[f"{name}-v3-goal-observable"]()
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True       # a new start at every reset, fixed by its seed
        self._ready(sim, 9, 4)
        self.box = ((-0.5, 0.35, self.table.get(name, 0) + 0.003), (0.5, 0.97, 0.45))

    def start(self, seed):
        self.sim.seed(seed)
        self.last, _ = self.sim.reset()         # the simulator's own observation, which scripted policies read
        self.sites = [(name, pos.copy()) for name, pos in self.sim._target_site_config]

    def act(self, action):
        self.last, _, _, _, info = self.sim.step(action)
        return bool(info["success"])

    def robot_state(self, data):
        return np.concatenate([data.body("hand").xpos, *(data.site(f"{s}EndEffector").xpos for s in ("right", "left"))])


class Adroit(CloudEnv):
    """The Adroit hand of gymnasium-robotics, every action held for two of its steps; cameras of 3D Diffusion Policy.

    State (24,): the hand's joints. Success is told at every step; a task's end decides (score "held").
    """
    ends_by_success = False
    # first joint, size of the action, what of the model an episode sets (array, body), camera, lowest z that is kept
    TASKS = {"hammer": (2, 26, "board_pos", "body_pos", "nail_board", Camera((0, 0, 1.1), (0, 0, 0, 1)), 0.001),
             "door": (4, 28, "door_body_pos", "body_pos", "frame", Camera((0, 0, 1.5), (0, 0, 0, 1)), 0.001),
             "pen": (0, 24, "desired_orien", "body_quat", "target", Camera((0, -0.8, 0.8), (0.92388, 0.382683, 0, 0)), 0.01)}
    REPEAT = 2

    def __init__(self, name):
        self.first, D_a, self.setting, self.array, self.body, self.camera, z = self.TASKS[name]
        self.box = ((-9, -9, z), (9, 9, 9))
        with contextlib.redirect_stderr(io.StringIO()):                # a note about the dense reward, which is not used
            import gymnasium_robotics                                  # slow to import
            gym.register_envs(gymnasium_robotics)
            self._ready(gym.make(f"AdroitHand{name.title()}-v1").unwrapped, 24, D_a)

    def start(self, seed):
        self.sim.reset(seed=seed)

    def place(self, value):
        """Set what an episode changes in the model: the board's or door's position, or the pen's target."""
        getattr(self.model, self.array)[self.model.body(self.body).id] = value

    def act(self, action):
        for _ in range(self.REPEAT):
            info = self.sim.step(np.clip(action, -1, 1))[-1]
        return bool(info["success"])

    def robot_state(self, data):
        return data.qpos[self.first:self.first + 24]


METAWORLD = {
    "easy": "button-press button-press-wall dial-turn door-close door-open door-unlock drawer-close faucet-close "
            "faucet-open handle-press handle-pull lever-pull peg-unplug-side plate-slide plate-slide-back "
            "plate-slide-back-side plate-slide-side reach reach-wall window-close window-open",
    "medium": "coffee-pull hammer peg-insert-side soccer",
    "hard": "assembly hand-insert pick-place push",
    "very hard": "disassemble pick-place-wall shelf-place stick-pull stick-push"}


# ---- the table -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Task:
    """A task: sizes, horizons (Eqs. 22, 23), simulator, data."""
    name: str
    env: Callable[[], gym.Env]     # single environment with flat observations and actions
    obs_dim: int
    D_a: int
    T_o: int
    T_p: int
    T_a: int
    steps: int                     # primitive steps an episode lasts
    score: str                     # of an episode: "max" or "sum" of its rewards; success at any step ("success")
                                   # or at the end ("held")
    data: tuple                    # file names looked for in each data folder, best first
    obs_from_state: Callable = None   # recorded states -> observations, where data holds states
    potential: Callable = None     # observation -> number, for shaping the reward of Stage 2
    url: str = None                # official archive, for `python data.py download`
    minari: str = None             # the data set's name in Minari, likewise
    points: int = 0                # of the cloud, whose coordinates end an observation; 0: there is none
    group: str = None              # suite or difficulty that the paper reports it under


TASKS = {t.name: t for t in (
    Task("pusht", PushT, obs_dim=20, D_a=2, T_o=2, T_p=16, T_a=8, steps=300, score="max",
         data=("pusht_cchi_v7_replay.zarr", "pusht.npz"), obs_from_state=pusht_obs, potential=pusht_potential,
         url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"),
    *(Task(name, partial(gym.make, env_id), obs_dim=obs_dim, D_a=D_a, T_o=1, T_p=4, T_a=4, steps=1000, score="sum",
           data=(f"mujoco/{name}/medium-v0", f"{name}-medium"), minari=f"mujoco/{name}/medium-v0")
      for name, env_id, obs_dim, D_a in (("hopper", "Hopper-v5", 11, 3), ("walker2d", "Walker2d-v5", 17, 6),
                                         ("halfcheetah", "HalfCheetah-v5", 17, 6), ("ant", "Ant-v5", 105, 8))),
    *(Task(f"metaworld-{name}", partial(MetaWorld, name), obs_dim=9 + 3 * N_POINTS, D_a=4, T_o=2, T_p=4, T_a=3, steps=200,
           score="success", data=(f"metaworld-{name}.npz",), points=N_POINTS, group=group)
      for group, names in METAWORLD.items() for name in names.split()),
    *(Task(f"adroit-{name}", partial(Adroit, name), obs_dim=24 + 3 * N_POINTS, D_a=sizes[1], T_o=2, T_p=4, T_a=3,
           steps=100, score="held", data=(f"adroit-{name}.npz",), points=N_POINTS, group="adroit")
      for name, sizes in Adroit.TASKS.items()),
)}


def task_named(name):
    """The task of that name. Raises BadInput with the nearest names, or all that are no point-cloud task."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 3, 0.5) + [n for n in TASKS if n.endswith(f"-{name}")]
        plain = ", ".join(n for n, t in TASKS.items() if not t.points)
        raise BadInput(f"unknown task {name!r}: " + (f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else
                       f"choose one of {plain}, or of the point-cloud tasks in envs.py"))
    return TASKS[name]


def check_horizons(T_o, T_p, T_a):
    """Refuse horizons that break Eq. 23: T_o <= T_p and T_o - 1 + T_a <= T_p. Raises BadInput."""
    if min(T_o, T_p, T_a) < 1:
        raise BadInput(f"T_o {T_o}, T_p {T_p}, T_a {T_a}: each must be at least 1")
    if T_o > T_p or T_o - 1 + T_a > T_p:
        raise BadInput(f"T_o {T_o}, T_p {T_p}, T_a {T_a} breaks T_o - 1 + T_a <= T_p (Eq. 23): "
                       f"lower --T-a to {max(T_p - T_o + 1, 1)} or raise --T-p")


class Chunked(gym.Wrapper):
    """Executes T_a actions a step and returns the last T_o observations.

    action (T_a, D_a) -> obs (T_o, obs_dim), reward = the primitive rewards' sum. info["rewards"] (T_a,), NaN where
    the episode had already ended; info["steps"] primitive steps run so far; info["success"], seen at any step, or held:
    at the last one.
    record: info["states"] (T_a, S). film: `frames` keeps a picture of every primitive step. hold: the end is told
    in info["over"] alone and further steps do nothing, so that a batch of episodes runs to its longest.
    reset(seed=s, options={"past": {s: chunks}}) goes on from where these chunks led, to resume an interrupted episode.
    """

    def __init__(self, env, T_o, T_a, steps, *, record=False, film=False, hold=False, held=False):
        super().__init__(env)
        self.T_o, self.T_a, self.max_steps, self.record, self.film, self.hold = T_o, T_a, steps, record, film, hold
        self.held = held
        box, act = env.observation_space, env.action_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (T_o, *box.shape), box.dtype)
        self.action_space = gym.spaces.Box(np.broadcast_to(act.low, (T_a, *act.shape)),
                                           np.broadcast_to(act.high, (T_a, *act.shape)), dtype=act.dtype)

    def reset(self, *, seed=None, options=None):
        options = dict(options or {})
        past = options.pop("past", {}).get(seed, ())
        obs, info = self.env.reset(seed=seed, options=options or None)
        self.history, self.n, self.over, self.success = [obs] * self.T_o, 0, (False, False), False
        self.state, self.frames = info.get("state"), [self.env.render()] if self.film else []
        for chunk in past:
            self.step(chunk)
        return np.stack(self.history), self._info([])

    def _info(self, rewards, states=()):
        padded = np.full(self.T_a, np.nan)
        padded[:len(rewards)] = rewards
        info = {"rewards": padded, "steps": self.n, "success": self.success, "over": any(self.over)}
        if self.record:                                       # states before each action of this chunk
            info["states"] = np.full((self.T_a, len(self.state)), np.nan)
            if states:
                info["states"][:len(states)] = states
        return info

    def step(self, chunk):
        rewards, states = [], []
        for action in chunk:
            if any(self.over):
                break
            states.append(self.state)
            obs, reward, terminated, truncated, info = self.env.step(action)
            self.n += 1
            self.state = info.get("state")
            self.success = bool(info.get("is_success", False)) or (self.success and not self.held)
            self.over = (terminated, truncated or self.n >= self.max_steps)
            self.history = self.history[1:] + [obs]
            rewards.append(reward)
            if self.film:
                self.frames.append(self.env.render())
        ended = (False, False) if self.hold else self.over
        return np.stack(self.history), float(sum(rewards)), *ended, self._info(rewards, states)


def make_vec(task, n, *, T_o=None, T_a=None, workers=True, record=False, show=0, hold=True):
    """n environments of a task as one gymnasium vector environment of chunks; none resets by itself.

    workers: a process for each (True) or all in this one (False). record: info carries the states. show: the first
    `show` environments keep their frames (needs workers=False). hold: see Chunked; without it an environment that
    ended must be reset, by options={"reset_mask": ...}, before the next step.
    """
    def make(i):
        return lambda: Chunked(task.env(), T_o or task.T_o, T_a or task.T_a, task.steps, record=record, film=i < show,
                               hold=hold, held=task.score == "held")
    vector = AsyncVectorEnv if workers and n > 1 else SyncVectorEnv
    return vector([make(i) for i in range(n)], autoreset_mode=AutoresetMode.DISABLED)


def chunk_reward(rewards, last, score, gamma):
    """Reward of a chunk from its primitive rewards (N, T_a), NaN after an episode's end -> (N,).

    Where the score is a sum, their sum. Where it is the highest reward reached, the reward's gain since the last
    step of the chunk before, last (N,), NaN at an episode's start: the gains add up to the coverage at the end, and
    ending an episode by success costs nothing. gamma discounts inside the chunk.
    """
    if score == "max":
        rewards = np.diff(rewards, prepend=last[:, None])
    return np.nansum(rewards * gamma ** np.arange(rewards.shape[1]), axis=1)


class Simulators:
    """N environments in mid-episode. Their start seeds and past chunks are what --resume needs to bring them back."""

    def __init__(self, task, policy, n, *, workers, seed=0, inner_gamma=1.0, bonus=0.0, shaping=0.0, gamma=1.0,
                 state=None):
        """bonus: paid for ending an episode by success. shaping: weight of gamma phi(o') - phi(o), phi the task's
        potential, which leaves the best policy the best (Ng, Harada and Russell, 1999)."""
        self.how, self.inner_gamma, self.bonus, first = task.score, inner_gamma, bonus, TRAIN_SEED + 1_000_000 * seed
        self.gamma, self.phi = gamma, (lambda obs: shaping * task.potential(obs[:, -1])) if shaping else None
        self.seeds, self.next, self.past = np.arange(first, first + n), first + n, [[] for _ in range(n)]
        self.score, self.last = np.zeros(n), np.full(n, np.nan)          # of the episode so far; the last reward
        if state:
            self.seeds, self.score, self.last = (state[k].numpy() for k in ("seeds", "score", "last"))
            self.next, self.past = state["next"], [list(p.numpy()) for p in state["past"]]
        self.env = make_vec(task, n, T_o=policy.T_o, T_a=policy.T_a, workers=workers, hold=False)
        past = dict(zip(self.seeds.tolist(), self.past))
        self.obs, _ = self.env.reset(seed=self.seeds.tolist(), options={"past": past} if state else None)

    def state(self):
        """Plain tensors for state.pt."""
        return {**{k: torch.from_numpy(getattr(self, k).copy()) for k in ("seeds", "score", "last")}, "next": self.next,
                "past": [torch.from_numpy(np.array(p, np.float32)) for p in self.past]}

    def step(self, a):
        """Run chunks a (N, T_a, D_a), env units. Episodes that ended are reset: self.obs is what to act on next.

        Returns reward (N,), ran (N, T_a), the true last observations, terminated, truncated, and the scores of the
        episodes that ended.
        """
        obs, _, terminated, truncated, info = self.env.step(a)
        rewards, ended = info["rewards"], terminated | truncated
        reward = chunk_reward(rewards, self.last, self.how, self.inner_gamma)
        reward += self.bonus * (terminated & info["success"])
        if self.phi:
            reward += self.gamma * self.phi(obs) - self.phi(self.obs)
        self.score = (np.fmax(self.score, np.nanmax(rewards, 1)) if self.how == "max" else
                      self.score + np.nansum(rewards, 1) if self.how == "sum" else info["success"].astype(float))
        scores = self.score[ended]
        self.score, self.last = np.where(ended, 0.0, self.score), np.where(ended, np.nan, rewards[:, -1])
        self.past = [[] if over else past + [chunk] for past, chunk, over in zip(self.past, a, ended)]
        self.seeds[ended] = self.next + np.arange(ended.sum())
        self.next += int(ended.sum())
        self.obs = obs
        if ended.any():
            self.obs, _ = self.env.reset(seed=self.seeds.tolist(), options={"reset_mask": ended})
        return reward, ~np.isnan(rewards), obs, terminated, truncated, scores
