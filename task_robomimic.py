"""RoboMimic's five tasks: lift, can, square, transport and tool-hang, in robosuite 1.5.1.

The protocol is Diffusion Policy's. An episode lasts 400 control steps of 1/20 s, or 700 of
transport and tool-hang, and ends with success. Start states are from seed 100000 on. An observation
is

  "state"        (S,)            the objects, then of each arm `proprio`

or, of the tasks `lift-image` and so on,

  a camera's name  (84, 84, 3)   or 240 pixels a side in tool-hang, from renderer.py
  "proprio"      (9 an arm,)     the hand's position and quaternion (x y z w), and two fingers

Quantities are in metres in the world's frame. An action (10 an arm) is the goal of the controller;
that of `lift-delta`, `lift-image-delta` and so on (7 an arm) is the goal from where the hand is:
see robosuite_env.py.

Data: robomimic's HDF5 files, v1.5 or v1.4.1, with or without pictures, or an npz that experts.py
recorded by the scripts of experts_robomimic.py, with "state", "action", "delta", "qpos" (the
simulator's positions) and "episode_ends". One file serves all four tasks of a scene. Pictures that
a file does not have are drawn from its positions and kept in the cache.
"""

import functools
import hashlib
from functools import partial

import gymnasium as gym
import numpy as np

from commands import BadInput
from files import brief
from pictures import cached_pictures
from robomimic_format import env_args
from robosuite_env import (
    DELTA,
    PACKAGES,
    REACH,
    ROT6D,
    SCENES,
    axis_angle_to_rot6d,
    delta_to_rot6d,
    make_raw,
    rot6d_to_axis_angle,
)
from task import Lazy, Task, observation_space

PROPRIO = 9  # numbers of an arm: eef_pos 3, eef_quat 4, gripper_qpos 2
FILM = 256  # pixels of a video's side
PARTS = ("eef_pos", "eef_quat", "gripper_qpos")
POSES = ("can", "square", "tool-hang")  # scenes that tell each object by two poses, 14 numbers


def named(name):
    """The task of that name."""
    return {task.name: task for task in TASKS}[name]


def scene_of(name):
    """The scene of a task's name: lift of lift-image-delta."""
    return name.removesuffix("-delta").removesuffix("-image")


def proprio_names(scene):
    """robosuite's names of what "proprio" holds, in order."""
    return [f"robot{i}_{part}" for i in range(SCENES[scene].arms) for part in PARTS]


# ---- the simulator -------------------------------------------------------------------------------


class RoboMimic(gym.Env):
    """A task's simulator; the reward is 1 at success, which ends the episode.

    reset(seed=s) gives the same start, to the bit, in every process; so does
    reset(options={"state": v}) for a recorded state v, which info["state"] tells: time, positions
    and velocities. Observations depend on the positions alone, and are the same in an episode and
    of its recorded states. robosuite's own are of a simulator's step (2 ms) before, and what the
    hand sees of an object that of a control step before (note 41).
    """

    render_mode = "rgb_array"

    def __init__(self, name):
        self.task = named(name)
        self.scene = SCENES[scene_of(name)]
        self.absolute = not name.endswith("-delta")
        self.raw = make_raw(scene_of(name), absolute=self.absolute)
        self.wanted = ["object-state", *proprio_names(scene_of(name))]
        for observable in self.raw._observables.values():
            # Those of the joints take time, and no policy sees them.
            if observable.name.startswith("robot") and observable.name not in self.wanted:
                observable.set_enabled(False)
        self.observation_space = observation_space(self.task)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (self.task.D_a,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        before = np.random.get_state()
        np.random.seed(seed)
        self.raw.reset()
        np.random.set_state(before)
        if options and "state" in options:
            self.set_state(options["state"])
        return self.observe(), {"state": self.state()}

    def step(self, action):
        action = np.asarray(action, np.float64)
        if self.absolute:
            action = rot6d_to_axis_angle(action)
        _, reward, _, _ = self.raw.step(action)
        success = reward > 0
        info = {"is_success": success, "state": self.state()}
        return self.observe(), float(success), success, False, info

    def state(self):
        """The simulator's state: time, positions, velocities."""
        return self.raw.sim.get_state().flatten()

    def set_state(self, state):
        """Put the simulator into a recorded state. Raises BadInput if it does not fit."""
        n = len(self.state())
        if np.shape(state) != (n,):
            raise BadInput(
                f"a state of shape {np.shape(state)} is not of {self.task.name}, which has {n} "
                "numbers"
            )
        self.raw.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self.raw.sim.forward()

    def numbers(self):
        """robosuite's observations by its names, of the positions as they are."""
        import mujoco

        mujoco.mj_fwdPosition(self.raw.sim.model._model, self.raw.sim.data._data)
        told = self.raw._get_observations(force_update=True)
        seen = {name: told[name] for name in self.wanted}
        hand = [seen["robot0_eef_pos"][None], seen["robot0_eef_quat"][None]]
        scene = scene_of(self.task.name)
        seen["object-state"] = seen_from_hand(scene, seen["object-state"][None], *hand)[0]
        return seen

    def observe(self):
        """The observation; pictures are `Lazy`, drawn where they are looked at."""
        numbers = np.concatenate(list(self.numbers().values())).astype(np.float32)
        if "state" in self.task.obs:
            return {"state": numbers}
        qpos = self.raw.sim.data.qpos.copy()
        seen = {camera: Lazy(self.draw, qpos, camera) for camera in self.scene.cameras}
        return {**seen, "proprio": numbers[self.scene.n_object :]}

    @functools.cached_property
    def renderer(self):
        """What draws the task's cameras."""
        return self.make_renderer(self.scene.cameras, self.scene.side)

    @functools.cached_property
    def film(self):
        """What draws the frames of a video."""
        return self.make_renderer(self.scene.cameras[:1], FILM)

    def draw(self, qpos, camera):
        """What one of the task's cameras sees at positions qpos (nq,)."""
        return self.renderer.draw(qpos, camera)

    def make_renderer(self, cameras, side):
        """A renderer of the simulator's visible geoms."""
        from renderer import Renderer

        model = self.raw.sim.model._model
        return Renderer(model, dict.fromkeys(cameras, (side, side)), groups=(1, 2))

    def render(self):
        """The scene, (256, 256, 3) uint8, as the task's first camera sees it."""
        return self.film.draw(self.raw.sim.data.qpos, self.scene.cameras[0])


@functools.lru_cache(1)
def replayer(name):
    """A simulator that recorded states are put into."""
    env = RoboMimic(name)
    env.reset(seed=0)  # robosuite hides its marks then, which pictures would show
    return env


def replayed(scene, states):
    """robosuite's observations {name: (N, ...)} of recorded states (N, ...). Raises BadInput."""
    env = replayer(scene)
    seen = []
    for state in states:
        env.set_state(state)
        seen.append(env.numbers())
    return {name: np.stack([numbers[name] for numbers in seen]) for name in seen[0]}


# ---- data ----------------------------------------------------------------------------------------


def demonstration(scene, env, seed, states=None, variety=0.0):
    """One demonstration of a scene's scripted expert, or None if it failed."""
    from experts_robomimic import demonstration as scripted

    made = scripted(scene, seed, variety)
    if made is None:
        return None
    numbers = replayed(scene, made["states"])
    poses = hands(scene, numbers)
    nq = env.raw.sim.model.nq
    return {
        "state": np.concatenate(list(numbers.values()), 1),
        "action": delta_to_rot6d(made["delta"], *poses),
        "delta": made["delta"],
        "qpos": made["states"][:, 1 : 1 + nq],
    }


def hands(scene, numbers):
    """The hands' positions (N, 3 an arm) and quaternions (N, 4 an arm) of robosuite's names."""
    arms = range(SCENES[scene].arms)
    return tuple(
        np.concatenate([numbers[f"robot{i}_{part}"] for i in arms], 1) for part in PARTS[:2]
    )


def numbers_of(scene, arrays):
    """robosuite's observations {name: (N, ...)} of a file's arrays: recorded, or of its states.

    Raises KeyError with the name of an array that is missing.
    """
    if "robot0_eef_pos" not in arrays and "states" in arrays:
        return replayed(scene, arrays["states"])
    found = {name: arrays[name] for name in proprio_names(scene)}
    if "object" in arrays:
        hand = [arrays["robot0_eef_pos"], arrays["robot0_eef_quat"]]
        recorded = arrays["object"]
        if scene in POSES:
            recorded = reordered(recorded, hand[0])
        found = {"object-state": seen_from_hand(scene, recorded, *hand), **found}
    return found


def reordered(recorded, hand):
    """Objects' poses (N, 14 an object), from robosuite 1.4 or 1.5, in the order of 1.5.

    That is an object's pose in the hand's frame, and then its pose; 1.4 has them the other way
    round. They are told apart by the distance of the hand, hand (N, 3), which both must agree on.
    """
    made = recorded.copy()
    for first in range(0, recorded.shape[1] - 13, 14):
        near = recorded[:, first : first + 7]
        pose = recorded[:, first + 7 : first + 14]
        if apart(near, pose, hand) < apart(pose, near, hand):
            made[:, first : first + 14] = np.concatenate([pose, near], 1)
    return made


def apart(pose, near, hand):
    """How far a pose (N, 7) is, in metres, from what a hand (N, 3) sees as `near` (N, 7)."""
    far = np.linalg.norm(pose[:, :3] - hand, axis=1)
    return np.abs(far - np.linalg.norm(near[:, :3], axis=1)).mean()


def seen_from_hand(scene, objects, hand, quat):
    """The objects' state (N, S) with what is relative to the hand computed anew from what is not.

    hand (N, 3), quat (N, 4, x y z w): the first hand's. robosuite 1.5 computes it from the hand as
    it is and the object as it was an observation before; 1.4 tells the cube's in the other sense.
    """
    from scipy.spatial.transform import Rotation

    made = objects.copy()
    if scene == "lift":
        made[:, 7:10] = objects[:, :3] - hand
    if scene in POSES:
        frame = Rotation.from_quat(quat).inv()
        for first in range(0, objects.shape[1] - 13, 14):
            pose = objects[:, first + 7 : first + 14]
            made[:, first : first + 3] = frame.apply(pose[:, :3] - hand)
            turn = frame * Rotation.from_quat(pose[:, 3:])
            made[:, first + 3 : first + 7] = turn.as_quat(canonical=True)
    return made


def observations(name, arrays):
    """The observations of a task in a file's arrays; without pictures that the file does not have.

    Raises KeyError with the name of an array that is missing.
    """
    scene = scene_of(name)
    if "state" in named(name).obs:
        if "state" in arrays:
            return {"state": arrays["state"]}
        numbers = numbers_of(scene, arrays)
        if "object-state" not in numbers:
            raise KeyError("object")
        return {"state": np.concatenate(list(numbers.values()), 1)}
    if "proprio" in arrays:
        proprio = arrays["proprio"]
    elif "state" in arrays:
        proprio = arrays["state"][:, SCENES[scene].n_object :]
    else:
        numbers = numbers_of(scene, arrays)
        proprio = np.concatenate([numbers[part] for part in proprio_names(scene)], 1)
    return {**recorded_pictures(scene, arrays), "proprio": proprio}


def recorded_pictures(scene, arrays):
    """{camera: pictures} of the scene's cameras that a file's arrays hold."""
    found = {}
    for camera in SCENES[scene].cameras:
        for recorded in (camera, f"{camera}_image"):
            if recorded in arrays:
                found[camera] = arrays[recorded]
    return found


def actions(name, arrays):
    """A file's actions (N, D_a) in the form of a task. Raises BadInput if they are in another.

    Raises KeyError with the name of an array that is missing.
    """
    scene = scene_of(name)
    arms = SCENES[scene].arms
    action = arrays["action"]
    wants_delta = name.endswith("-delta")
    if wants_delta and "delta" in arrays:
        return arrays["delta"]
    if action.ndim != 2 or action.shape[1] != DELTA * arms:
        if wants_delta:
            raise BadInput(
                f"the actions {action.shape} are no deltas, {DELTA} an arm: "
                f"{name.removesuffix('-delta')} takes them"
            )
        return action
    # A hand points down, and is turned by about pi. A delta is never above 1.
    turns = action.reshape(len(action), arms, DELTA)[..., 3:6]
    is_delta = np.abs(turns).max() <= 1.01
    if wants_delta and not is_delta:
        raise BadInput(f"the actions are absolute: {name.removesuffix('-delta')} takes them")
    if wants_delta:
        return action
    if not is_delta:
        return axis_angle_to_rot6d(action)
    return delta_to_rot6d(action, *hands(scene, numbers_of(scene, arrays)))


def render(name, arrays, path):
    """{camera: (N, H, W, 3) uint8}: pictures drawn from the positions in the file at path.

    Raises BadInput if there are none, if they do not fit, or if OpenGL or a package is missing.
    """
    scene = scene_of(name)
    there = recorded_pictures(scene, arrays)
    missing = [camera for camera in SCENES[scene].cameras if camera not in there]
    if "qpos" not in arrays and "states" not in arrays:
        raise BadInput(
            f"{path} has no pictures of {' and '.join(missing)}, and neither qpos nor states to "
            "draw them from"
        )
    env = replayer(name)
    nq = env.raw.sim.model.nq
    qpos = arrays["qpos"] if "qpos" in arrays else arrays["states"][:, 1 : 1 + nq]
    if qpos.ndim != 2 or qpos.shape[1] != nq or not np.isfinite(qpos).all():
        raise BadInput(f"{path}: positions {qpos.shape} cannot be drawn: {name} has {nq}, finite")
    sha = hashlib.sha256(np.ascontiguousarray(qpos, np.float32)).hexdigest()
    made = {}
    for camera in missing:
        shape = (len(qpos), *named(name).obs[camera])
        draw = partial(pictures_of, env, qpos, camera)
        made[camera] = cached_pictures(path, camera, shape, f"{sha} drawn by renderer.py", draw)
    return made


def pictures_of(env, qpos, camera, n=64):
    """A camera's pictures at positions (N, nq), n at a time: (n, H, W, 3) uint8."""
    for first in range(0, len(qpos), n):
        yield np.stack([env.draw(q, camera) for q in qpos[first : first + n]])


def check_recorded(scene, path):
    """Refuse a file of robomimic that was recorded in another environment. Raises BadInput."""
    about = env_args(path)
    if not about:
        return
    env = about.get("env_name")
    if env != SCENES[scene].env:
        raise BadInput(
            f"{path} was recorded in {brief(env)}, but {scene} is {SCENES[scene].env}: it is not "
            f"{scene} data"
        )
    version = str(about.get("env_version") or "1.4")
    if version.split(".")[:2] not in (["1", "4"], ["1", "5"]):
        raise BadInput(
            f"{path} was recorded in robosuite {brief(version)}: its observations are known of 1.4 "
            "and 1.5"
        )
    kwargs = about.get("env_kwargs") or {}
    if kwargs.get("control_freq", 20) != 20:
        raise BadInput(
            f"{path} was recorded at {brief(kwargs['control_freq'])} Hz, but {scene} is run at 20"
        )
    for arm in controllers(kwargs):
        check_controller(arm, scene, path, version)


def controllers(kwargs):
    """The settings of each arm's controller in what a file says of its environment."""
    configs = kwargs.get("controller_configs") or []
    for config in configs if isinstance(configs, list) else [configs]:
        parts = config.get("body_parts", {"right": config})
        yield from (part for name, part in parts.items() if name in ("right", "left"))


def check_controller(arm, scene, path, version):
    """Refuse a controller that another one here would make something else of. Raises BadInput."""
    wanted = {"type": "OSC_POSE", "impedance_mode": "fixed", "kp": 150}
    wanted |= {"input_max": 1, "input_min": -1}
    wanted |= {"output_max": list(REACH), "output_min": list(-REACH)}
    for name, value in wanted.items():
        if arm.get(name, value) != value:
            raise BadInput(
                f"{path} was recorded with a controller of {name} {brief(arm[name])}, but {scene} "
                f"has {brief(value)}"
            )
    frame = arm.get("input_ref_frame", "base" if version.startswith("1.5") else "world")
    if frame != "world" and SCENES[scene].arms == 2:
        raise BadInput(
            f"{path} was recorded with deltas in the frame of each arm's base, but {scene} has the "
            "world's"
        )


# ---- the tasks -----------------------------------------------------------------------------------

PAPER = {"DBP": 0.92, "Diffusion Policy": 0.80}  # the means of the five tasks in Table I
PAPER_IMAGE = {"DBP": 0.87, "Diffusion Policy": 0.91}


def limits(scene, image, delta):
    """Task.limits: of rotations, grippers and deltas -1 and 1, as they are; of the rest the data's.

    Stretched to their ranges in the data, the noise of rotations that hardly change would count as
    much as a motion does. Diffusion Policy leaves them as they are, too (note 42).
    """
    n = 0 if image else SCENES[scene].n_object
    arms = SCENES[scene].arms
    quaternions = () if image else SCENES[scene].quaternions
    quaternions += tuple(n + PROPRIO * i + 3 for i in range(arms))
    numbers = np.full(n + PROPRIO * arms, np.nan)
    for first in quaternions:
        numbers[first : first + 4] = 1
    action = np.ones(DELTA * arms)
    if not delta:
        action = np.tile([np.nan] * 3 + [1.0] * (ROT6D - 3), arms)
    return {"proprio" if image else "state": (-numbers, numbers), "action": (-action, action)}


def robomimic_task(name, image, delta):
    """A task of a scene, by numbers or from images, with absolute or delta actions."""
    scene = SCENES[name]
    own = name + "-image" * image + "-delta" * delta
    folder = name.replace("-", "_")
    n_proprio = PROPRIO * scene.arms
    arrays = ["state", "delta", "object", "states", *proprio_names(name)]
    obs = {"state": (scene.n_object + n_proprio,)}
    data = (f"{folder}/ph/low_dim_v15.hdf5", f"{name}.npz")
    if image:
        obs = dict.fromkeys(scene.cameras, (scene.side, scene.side, 3))
        obs["proprio"] = (n_proprio,)
        arrays += ["proprio", "qpos", *(f"{camera}_image" for camera in scene.cameras)]
        data = (f"{folder}/ph/image_v15.hdf5", *data)
    return Task(
        name=own,
        suite="robomimic",
        obs=obs,
        D_a=(DELTA if delta else ROT6D) * scene.arms,
        T_o=2,
        T_p=16,
        T_a=8,
        crop=dict.fromkeys(scene.cameras, scene.crop) if image else {},
        env=partial(RoboMimic, own),
        needs=PACKAGES,
        steps=scene.steps,
        data=data,
        arrays=tuple(arrays),
        observations=partial(observations, own),
        actions=partial(actions, own),
        check=partial(check_recorded, name),
        render=partial(render, own) if image else None,
        url="https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/"
        f"v1.5/{folder}/ph/low_dim_v15.hdf5",
        expert=partial(demonstration, name),
        varies=True,
        limits=limits(name, image, delta),
        stage2={"gamma": 0.999},
        paper=PAPER_IMAGE if image else PAPER,
    )


TASKS = [
    robomimic_task(name, image, delta)
    for delta in (False, True)
    for image in (False, True)
    for name in SCENES
]
