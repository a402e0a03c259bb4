"""Two UR5e arms at a table: lift, can and transport, on the simulated twin of twin.py.

  ur5-lift        the right arm lifts a cube
  ur5-can         the right arm puts a can into a bin
  ur5-transport   the left arm takes a hammer out of a bin and hands it over to the right one, which
                  has put a cube from the target bin into the trash and puts the hammer in its place

An observation is what the real arms have too, at 10 Hz:

  "front", "left_wrist", "right_wrist"   (96, 96, 3)   the cameras
  "proprio"   (14,)   of the left arm and then of the right: six joint angles in rad, and how far
                      the gripper is closed, 0 to 1

The tasks `ur5-lift-state` and so on are for a training in minutes on a CPU. Of pictures they have
none, but "state" (S,): each thing's position and quaternion (7), each arm's tool centre point (3),
and proprio (14).

An action (14) is a target for proprio: where the joints and grippers shall be a tenth of a second
later. The targets go there evenly, at 500 Hz, and the arms' servos follow them. Joint targets are
what an arm is sent in the end. So nothing on the way from a policy to the arms has to solve
inverse kinematics, which has several solutions or none, and limits of joints and speed can be
checked as they are (note 52).

Data: an npz that experts.py recorded by the scripts of experts_ur5.py, with "state", "action",
"qpos" (the twin's positions, from which pictures are drawn) and "episode_ends"; one file serves
both tasks of a scene. Or a LeRobotDataset that realrobot.py recorded.
"""

import functools
import hashlib
from functools import partial

import gymnasium as gym
import numpy as np

from commands import BadInput
from pictures import cached_pictures
from task import Lazy, Task, observation_space
from twin_model import ARM, CAMERAS, RATE, SCENES, TIMESTEP

SIDE = 96  # pixels of a picture's side
CROP = 84
FILM = 256  # pixels of a video's side
PROPRIO = 2 * ARM
POSE = 7  # numbers of a thing's pose
STEPS = {"ur5-lift": 100, "ur5-can": 150, "ur5-transport": 300}  # of an episode


def scene_of(name):
    """The scene of a task's name: ur5-lift of ur5-lift-state."""
    return name.removesuffix("-state")


# ---- the simulator -------------------------------------------------------------------------------


class Ur5(gym.Env):
    """A task on the twin; the reward is 1 at success, which ends the episode.

    reset(seed=s) gives the same start, to the bit, in every process; so does
    reset(options={"state": v}) for a state v, which info["state"] tells.
    """

    render_mode = "rgb_array"

    def __init__(self, task):
        from twin import Twin

        self.task = task
        self.twin = Twin(scene_of(task.name), size=SIDE)
        self.observation_space = observation_space(task)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (task.D_a,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self.twin.reset(seed)
        if options and "state" in options:
            self.set_state(options["state"])
        return self.observe(), {"state": self.twin.state()}

    def set_state(self, state):
        """Put the twin into a recorded state. Raises BadInput if it does not fit."""
        n = len(self.twin.state())
        if np.shape(state) != (n,):
            raise BadInput(
                f"a state of shape {np.shape(state)} is not of {self.task.name}, which has {n} "
                "numbers"
            )
        self.twin.set_state(np.asarray(state, np.float64))

    def step(self, action):
        action = np.asarray(action, np.float64).reshape(2, ARM)
        self.twin.follow(action[:, :6], action[:, 6], round(1 / RATE / TIMESTEP))
        success = self.twin.success()
        info = {"is_success": success, "state": self.twin.state()}
        return self.observe(), float(success), success, False, info

    def observe(self):
        """The observation; pictures are `Lazy`, drawn where they are looked at."""
        if "state" in self.task.obs:
            return {"state": state_of(self.twin)}
        qpos = self.twin.data.qpos.copy()
        seen = {camera: Lazy(self.twin.renderer.draw, qpos, camera) for camera in CAMERAS}
        return {**seen, "proprio": proprio(self.twin)}

    @functools.cached_property
    def film(self):
        """What draws the frames of a video."""
        from renderer import Renderer

        return Renderer(self.twin.model, {"front": (FILM, FILM)}, smooth=True)

    def render(self):
        """The scene, (256, 256, 3) uint8, as the camera in front sees it."""
        return self.film.draw(self.twin.data.qpos, "front")


def proprio(twin):
    """Both arms' joint angles and how far their grippers are closed, (14,) float32."""
    parts = [[*twin.q(i), twin.gripper(i)] for i in range(2)]
    return np.concatenate(parts).astype(np.float32)


def state_of(twin):
    """The things' poses, the tool centre points and proprio, (S,) float32."""
    poses = [upright(pose) for pose in twin.objects().values()]
    points = [twin.tcp(i)[0] for i in range(2)]
    return np.concatenate([*poses, *points, proprio(twin)]).astype(np.float32)


def upright(pose):
    """A pose (7,) with the sign of the quaternion whose w is not negative: both are one turn."""
    return pose if pose[3] >= 0 else np.concatenate([pose[:3], -pose[3:]])


# ---- data ----------------------------------------------------------------------------------------


def demonstration(scene, env, seed, states=None, variety=0.0):
    """One demonstration of a scene's scripted expert, or None if it failed.

    Its actions are float32, as they are kept, so that a replay gives the same states to the bit.
    """
    from experts_ur5 import Expert

    env.reset(seed=seed)
    expert = Expert(env.twin, seed, variety)
    steps = []
    success = False
    while len(steps) < STEPS[scene] and not success:
        before = {"state": state_of(env.twin), "qpos": env.twin.data.qpos.copy()}
        action = expert.act()
        steps.append({**before, "action": action})
        success = env.step(action)[2]
    if not success:
        return None
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def observations(image, arrays):
    """The observations in a file's arrays; without pictures that the file does not have.

    Raises KeyError with the name of an array that is missing.
    """
    if not image:
        return {"state": arrays["state"]}
    numbers = arrays["proprio"] if "proprio" in arrays else arrays["state"][:, -PROPRIO:]
    recorded = {camera: arrays[camera] for camera in CAMERAS if camera in arrays}
    return {**recorded, "proprio": numbers}


@functools.lru_cache(1)
def drawer(scene):
    """A twin that draws recorded positions."""
    from twin import Twin

    return Twin(scene, size=SIDE)


def render(scene, arrays, path):
    """{camera: (N, H, W, 3) uint8}: pictures drawn from the positions in the file at path.

    Raises BadInput if there are none, if they do not fit, or if OpenGL is missing.
    """
    missing = [camera for camera in CAMERAS if camera not in arrays]
    if "qpos" not in arrays:
        raise BadInput(
            f"{path} has no pictures of {' and '.join(missing)}, and no qpos to draw them from"
        )
    twin = drawer(scene)
    qpos = arrays["qpos"]
    nq = twin.model.nq
    if qpos.ndim != 2 or qpos.shape[1] != nq or not np.isfinite(qpos).all():
        raise BadInput(f"{path}: positions {qpos.shape} cannot be drawn: {scene} has {nq}, finite")
    sha = hashlib.sha256(np.ascontiguousarray(qpos, np.float32)).hexdigest()
    made = {}
    for camera in missing:
        shape = (len(qpos), SIDE, SIDE, 3)
        draw = partial(pictures_of, twin, qpos, camera)
        made[camera] = cached_pictures(path, camera, shape, f"{sha} drawn by twin.py", draw)
    return made


def pictures_of(twin, qpos, camera, n=64):
    """A camera's pictures at positions (N, nq), n at a time: (n, H, W, 3) uint8."""
    for first in range(0, len(qpos), n):
        yield np.stack([twin.renderer.draw(q, camera) for q in qpos[first : first + n]])


# ---- the tasks -----------------------------------------------------------------------------------

PAPER = {"ur5-lift": 0.90, "ur5-can": 0.80, "ur5-transport": 0.55}  # DBP on the real arms


def limits(scene):
    """Task.limits of a state: quaternions as they are, of the rest the data's range.

    Stretched to its range in the data, the noise of a turn that hardly changes would count as much
    as a motion does.
    """
    things = len(SCENES[scene].things)
    numbers = np.full(POSE * things + 6 + PROPRIO, np.nan)
    for thing in range(things):
        numbers[POSE * thing + 3 : POSE * (thing + 1)] = 1
    return {"state": (-numbers, numbers)}


def ur5_task(scene, image):
    """A task of a scene, from images or by numbers."""
    name = scene if image else f"{scene}-state"
    obs = {"state": (POSE * len(SCENES[scene].things) + 6 + PROPRIO,)}
    arrays = ("state",)
    if image:
        obs = {**dict.fromkeys(CAMERAS, (SIDE, SIDE, 3)), "proprio": (PROPRIO,)}
        arrays = ("state", "proprio", "qpos")
    return Task(
        name=name,
        suite="ur5",
        obs=obs,
        D_a=PROPRIO,
        T_o=2,
        T_p=16,
        T_a=8,
        crop=dict.fromkeys(CAMERAS, CROP) if image else {},
        env=partial(make, name),
        needs="mujoco==3.3.0",
        steps=STEPS[scene],
        data=(f"{scene}.npz",),
        arrays=arrays,
        observations=partial(observations, image),
        render=partial(render, scene) if image else None,
        numbers=f"{scene}-state" if image else None,
        expert=partial(demonstration, scene),
        varies=True,
        limits={} if image else limits(scene),
        stage1={"to_end": True},  # episodes are short, and the robot looks more often (note 60)
        stage2={"gamma": 0.999},
        paper={"DBP": PAPER[scene]} if image else {},
    )


def make(name):
    """The simulator of the task of that name."""
    return Ur5({task.name: task for task in TASKS}[name])


TASKS = [ur5_task(scene, image) for image in (True, False) for scene in SCENES]
