"""Meta-World (34 tasks) and Adroit (3), seen as a point cloud and the robot's own state.

The protocol is that of 3D Diffusion Policy (arXiv 2403.03954): 512 points, ten demonstrations, 20
episodes an evaluation. An observation is

  "state"   (S,)        the positions of Meta-World's hand and fingers, or Adroit's joint angles
  "points"  (512, 3)    points in world coordinates, metres, from rays (pointcloud.py)

The files of demonstrations are npz with "state" (N, S), "points" (N, 512, 3), "action" (N, D_a),
"episode_ends" (E,) and "start_seed" (E,). Meta-World's own scripted policies make them, or Adroit's
recorded states shown again; see `python experts.py --help`.
"""

import contextlib
import functools
import io
import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np

from commands import BadInput
from files import refusing
from formats import read
from hdf5 import read_adroit
from task import Task

N_POINTS = 512
AFTER = 10  # steps that are kept after a scripted policy's first success


class CloudEnv(gym.Env):
    """A MuJoCo simulator seen as the robot's state and a point cloud; the reward is 1 for success.

    The cloud is cast in a private MjData that holds the simulator's positions, so a recorded state
    gives the same numbers as the live one: see pointcloud.py. A child sets self.camera and self.box
    (what is kept of the cloud) and defines start(seed), act(action) -> success, and
    robot_state(data) -> (S,).
    """

    render_mode = "rgb_array"
    ends_by_success = False  # whether an episode is over once it succeeds

    def __init__(self, sim, S, D_a):
        import mujoco

        self.sim = sim
        self.model = sim.model
        self.private = mujoco.MjData(sim.model)
        self.goals = {}  # site -> position (3,) of a mark that the model does not move (note 18)
        state = gym.spaces.Box(-np.inf, np.inf, (S,), np.float32)
        points = gym.spaces.Box(-np.inf, np.inf, (N_POINTS, 3), np.float32)
        self.observation_space = gym.spaces.Dict({"state": state, "points": points})
        self.action_space = gym.spaces.Box(-1, 1, (D_a,), np.float32)

    def settled(self, qpos=None):
        """The private MjData with positions qpos (nq,), or the simulator's, and with its goals."""
        from pointcloud import settle

        settle(self.model, self.private, self.sim.data.qpos if qpos is None else qpos)
        for site, pos in self.goals.items():
            self.private.site(site).xpos = pos
        return self.private

    def observe(self, qpos=None):
        """The observation at positions qpos (nq,), or at the simulator's.

        Raises ValueError if they do not fit the model, or if no point is inside the crop box.
        """
        from pointcloud import capture

        data = self.settled(qpos)
        points = capture(self.model, data, self.camera, self.box, N_POINTS)
        return {"state": self.robot_state(data).astype(np.float32), "points": points}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self.start(seed)
        return self.observe(), {}

    def step(self, action):
        success = self.act(np.asarray(action, np.float64))
        terminated = success and self.ends_by_success
        return self.observe(), float(success), terminated, False, {"is_success": success}

    def render(self):
        from pointcloud import Camera, picture

        camera = Camera(self.camera.pos, self.camera.quat, self.camera.fovy, size=160)
        return picture(self.model, self.settled(), camera)


def demonstration(env, qpos, actions, about):
    """The arrays of a demonstration from its positions (L, nq) and actions (L, D_a).

    All clouds are cast here, once it is known that the demonstration is kept. Raises BadInput,
    which says what the demonstration is about.
    """
    with refusing(about):
        observations = [env.observe(q) for q in qpos]
    arrays = {name: np.stack([o[name] for o in observations]) for name in observations[0]}
    return {**arrays, "action": actions}


# ---- Meta-World ----------------------------------------------------------------------------------

METAWORLD = {  # the difficulties of 3D Diffusion Policy, and the tasks' names in all versions
    "easy": (
        "button-press button-press-wall dial-turn door-close door-open door-unlock drawer-close "
        "faucet-close faucet-open handle-press handle-pull lever-pull peg-unplug-side plate-slide "
        "plate-slide-back plate-slide-back-side plate-slide-side reach reach-wall window-close "
        "window-open"
    ).split(),
    "medium": ["coffee-pull", "hammer", "peg-insert-side", "soccer"],
    "hard": ["assembly", "hand-insert", "pick-place", "push"],
    "very hard": ["disassemble", "pick-place-wall", "shelf-place", "stick-pull", "stick-push"],
}
METAWORLD_STEPS = 200
TABLE_HEIGHT = {"hand-insert": 0.05}  # metres; 0 for the others


class MetaWorld(CloudEnv):
    """A Meta-World v3 task; an action (4,) moves the gripper and opens it.

    The state (9,) is the positions of the hand and of its two fingers. The camera stands where 3D
    Diffusion Policy's does. It is turned to the objects and narrowed from 60 degrees to 50, so 84
    pixels a side are as dense as 104 of its (note 19). The crop box drops the table, what is beyond
    it, and most of the arm.
    """

    ends_by_success = True

    def __init__(self, name):
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

        from pointcloud import Camera

        sim = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-v3-goal-observable"]()
        sim._freeze_rand_vec = False  # a new start at every reset,
        sim.seeded_rand_vec = True  # which the seed fixes
        super().__init__(sim, S=9, D_a=4)
        self.camera = Camera.looking(pos=(0.6, 0.295, 0.8), at=(0, 0.65, 0.12), fovy=50)
        self.box = ((-0.5, 0.35, TABLE_HEIGHT.get(name, 0) + 0.003), (0.5, 0.97, 0.45))

    def start(self, seed):
        self.sim.seed(seed)
        self.last, _ = self.sim.reset()  # the simulator's observation, which scripted policies read
        self.goals = {site: pos.copy() for site, pos in self.sim._target_site_config}

    def act(self, action):
        self.last, _, _, _, info = self.sim.step(action)
        return bool(info["success"])

    def robot_state(self, data):
        hand = data.body("hand").xpos
        right = data.site("rightEndEffector").xpos
        left = data.site("leftEndEffector").xpos
        return np.concatenate([hand, right, left])


def run_script(name, env, seed):
    """Let Meta-World's scripted policy act from the start of that seed, without casting clouds.

    The episode ends AFTER steps past its first success. Returns the positions (L, nq), the actions
    (L, D_a), and whether it succeeded.
    """
    from metaworld.policies import ENV_POLICY_MAP

    policy = ENV_POLICY_MAP[f"{name}-v3"]()
    env.start(seed)
    qpos = []
    actions = []
    since = 0  # steps since the first success, that one included
    while len(actions) < METAWORLD_STEPS and since <= AFTER:
        with warnings.catch_warnings(action="ignore"):  # the policy warns that it will be clipped
            action = np.clip(policy.get_action(env.last), -1, 1).astype(np.float32)
        qpos.append(env.sim.data.qpos.copy())
        actions.append(action)
        if env.act(action) or since > 0:
            since += 1
    return np.array(qpos), np.array(actions), since > 0


def scripted(name, env, seed, states=None):
    """One demonstration of Meta-World's scripted policy from a start seed, or None if it failed."""
    qpos, actions, success = run_script(name, env, seed)
    if not success:
        return None
    return demonstration(env, qpos, actions, f"metaworld-{name}, episode {seed}")


def metaworld_task(name, group):
    """A Meta-World task by the name that it has in all versions."""
    return Task(
        name=f"metaworld-{name}",
        suite="metaworld",
        group=group,
        obs={"state": (9,), "points": (N_POINTS, 3)},
        D_a=4,
        T_o=2,
        T_p=4,
        T_a=3,
        env=partial(MetaWorld, name),
        needs="metaworld==3.1.1",
        steps=METAWORLD_STEPS,
        score="success",
        episodes=20,
        stage2={"noise_episodes": 20},  # clouds take time
        data=(f"metaworld-{name}.npz",),
        expert=partial(scripted, name),
        paper=PAPER[group],
    )


# ---- Adroit --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdroitScene:
    """What differs between Adroit's tasks. The camera's pose is that of 3D Diffusion Policy."""

    D_a: int
    first_joint: int  # where the hand's 24 joints begin in the simulator's positions
    setting: str  # what an episode sets in the model, as files of recorded states name it,
    array: str  # the model's array that holds it,
    body: str  # and the body whose row of that array it is
    camera_pos: tuple
    camera_quat: tuple
    lowest: float  # metres; points below are dropped


ADROIT = {
    "hammer": AdroitScene(
        D_a=26,
        first_joint=2,
        setting="board_pos",
        array="body_pos",
        body="nail_board",
        camera_pos=(0, 0, 1.1),
        camera_quat=(0, 0, 0, 1),
        lowest=0.001,
    ),
    "door": AdroitScene(
        D_a=28,
        first_joint=4,
        setting="door_body_pos",
        array="body_pos",
        body="frame",
        camera_pos=(0, 0, 1.5),
        camera_quat=(0, 0, 0, 1),
        lowest=0.001,
    ),
    "pen": AdroitScene(
        D_a=24,
        first_joint=0,
        setting="desired_orien",
        array="body_quat",
        body="target",
        camera_pos=(0, -0.8, 0.8),
        camera_quat=(0.92388, 0.382683, 0, 0),
        lowest=0.01,
    ),
}
JOINTS = 24
REPEAT = 2  # simulator steps for which an action is held


class Adroit(CloudEnv):
    """The Adroit hand of gymnasium-robotics; the state (24,) is the angles of its joints.

    An action is held for two steps of the simulator (note 20). Success is told at every step, and
    the end of an episode decides (score "held").
    """

    def __init__(self, name):
        with contextlib.redirect_stderr(io.StringIO()):  # a note on a reward that is not used
            import gymnasium_robotics

            gym.register_envs(gymnasium_robotics)
            sim = gym.make(f"AdroitHand{name.title()}-v1").unwrapped

        from pointcloud import Camera

        self.scene = ADROIT[name]
        super().__init__(sim, S=JOINTS, D_a=self.scene.D_a)
        self.camera = Camera(self.scene.camera_pos, self.scene.camera_quat)
        self.box = ((-9, -9, self.scene.lowest), (9, 9, 9))

    def start(self, seed):
        self.sim.reset(seed=seed)

    def place(self, value):
        """Set what an episode changes in the model: see AdroitScene.setting."""
        rows = getattr(self.model, self.scene.array)
        rows[self.model.body(self.scene.body).id] = value

    def act(self, action):
        for _ in range(REPEAT):
            info = self.sim.step(np.clip(action, -1, 1))[-1]
        return bool(info["success"])

    def robot_state(self, data):
        return data.qpos[self.scene.first_joint : self.scene.first_joint + JOINTS]


def states_path(name, states=None):
    """The recorded states of an Adroit task. Raises BadInput if there are none.

    states: their path; else $DRIFT_DATA/adroit/NAME.npz, or Minari's D4RL/NAME/expert-v2.
    """
    from download import minari_home

    places = [
        Path(os.environ.get("DRIFT_DATA", "."), "adroit", f"{name}.npz"),
        minari_home() / "D4RL" / name / "expert-v2",
    ]
    if states:
        places = [Path(states)]
    for place in places:
        if place.exists():
            return place
    raise BadInput(
        f"no states of adroit-{name} ({' or '.join(map(str, places))}): give --states FILE, or run "
        f"`minari download D4RL/{name}/expert-v2`"
    )


@functools.lru_cache(1)
def recorded_states(path):
    """{name: array} of recorded states: qpos, actions, episode_ends and the model's settings.

    An npz holds one state for every REPEAT steps. Of Minari's data every second state is taken.
    """
    return read(path) if path.suffix == ".npz" else read_adroit(path, REPEAT)


def count_recorded(name, states=None):
    """The path of an Adroit task's recorded states and the number of its episodes."""
    path = states_path(name, states)
    with refusing(f"{path}: no episodes of adroit-{name} can be counted"):
        return path, len(recorded_states(path).get("episode_ends", ()))


def replayed(name, env, e, states=None):
    """Demonstration e from an Adroit task's recorded states. Raises BadInput if they do not fit."""
    arrays = recorded_states(states_path(name, states))
    nq = env.model.nq
    D_a = env.scene.D_a
    setting = env.scene.setting
    with refusing(
        f"the states are not of adroit-{name}: qpos, actions, episode_ends and {setting} are needed"
    ):
        end = arrays["episode_ends"][e]
        start = arrays["episode_ends"][e - 1] if e else 0
        qpos = arrays["qpos"][start:end]
        actions = arrays["actions"][start:end].astype(np.float32)
        fits = qpos.shape == (len(actions), nq) and actions.shape[1] == D_a
        if not fits or not np.isfinite(qpos).all():
            raise BadInput(
                f"episode {e}: states {qpos.shape} and actions {actions.shape} do not fit "
                f"adroit-{name}, whose model has {nq} positions and {D_a} actions, or are not "
                "finite"
            )
        env.start(0)
        env.place(arrays[setting][e])
    return demonstration(env, qpos, actions, f"adroit-{name}, episode {e}")


def adroit_task(name, scene):
    """An Adroit task by its name in ADROIT."""
    return Task(
        name=f"adroit-{name}",
        suite="adroit",
        group="adroit",
        obs={"state": (JOINTS,), "points": (N_POINTS, 3)},
        D_a=scene.D_a,
        T_o=2,
        T_p=4,
        T_a=3,
        env=partial(Adroit, name),
        needs="gymnasium-robotics==1.4.2",
        steps=100,
        score="held",
        episodes=20,
        stage2={"noise_episodes": 20},  # clouds take time
        data=(f"adroit-{name}.npz",),
        expert=partial(replayed, name),
        count_states=partial(count_recorded, name),
        paper=PAPER[f"adroit-{name}"],
    )


# ---- the tasks -----------------------------------------------------------------------------------

PAPER = {  # Table II. Meta-World's figures are means over the tasks of a group.
    "easy": {"DBP": 0.917},
    "medium": {"DBP": 0.903},
    "hard": {"DBP": 0.752},
    "very hard": {"DBP": 0.867},
    "adroit-hammer": {"DBP": 1.0},
    "adroit-door": {"DBP": 0.7},
    "adroit-pen": {"DBP": 0.8},
}
TASKS = [
    *(metaworld_task(name, group) for group, names in METAWORLD.items() for name in names),
    *(adroit_task(name, scene) for name, scene in ADROIT.items()),
]
