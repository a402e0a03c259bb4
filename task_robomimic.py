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

`lift-online`, `lift-image-online` and so on, of all scenes but tool-hang, are the same scenes by
the protocol of DPPO and ReinFlow, who improve policies there: delta actions in chunks of 4 (of 8 in
transport) after one observation, 300, 300, 400 or 800 steps, fewer cameras of 96 pixels. Success
does not end an episode: each step at success is worth 1 (note 44).

Data: robomimic's HDF5 files, v1.5 or v1.4.1, with or without pictures, or an npz that experts.py
recorded by the scripts of experts_robomimic.py, with "state", "action", "delta", "qpos" (the
simulator's positions) and "episode_ends". One file serves all tasks of a scene. Pictures that a
file does not have are drawn from its positions and kept in the cache.
"""

import dataclasses
import hashlib
import itertools
from functools import partial

import numpy as np

from commands import BadInput
from pictures import cached_pictures
from recorded_robomimic import (
    check_recorded,
    env_args_of,
    hands,
    model_file_of,
    named_parts,
    of_any_version,
    proprio_names,
    states_of,
)
from robomimic_env import RoboMimic, each_row, replayed, replayer, shapes_of
from robosuite_env import (
    DELTA,
    PACKAGES,
    PROPRIO,
    ROT6D,
    SCENES,
    axis_angle_to_rot6d,
    delta_to_rot6d,
    rot6d_to_axis_angle,
)
from task import Task

# A task's functions know it by its name alone, since they are made before it is.


def named(name):
    """The task of that name."""
    return {task.name: task for task in TASKS}[name]


def scene_of(name):
    """The scene of a task's name: lift of lift-image-delta."""
    return name.removesuffix("-online").removesuffix("-delta").removesuffix("-image")


def takes_deltas(name):
    """Whether a task's actions are deltas, by its name."""
    return name.endswith(("-delta", "-online"))


def cameras_of(name):
    """The cameras of a task, by its name, and the pixels of their sides; ((), None) without."""
    sides = {camera: shape[0] for camera, shape in named(name).obs.items() if len(shape) == 3}
    return tuple(sides), next(iter(sides.values()), None)


# ---- data ----------------------------------------------------------------------------------------


def demonstration(scene, env, seed, states=None, variety=0.0):
    """One demonstration of a scene's scripted expert, or None if it failed."""
    from experts_robomimic import demonstration as scripted

    made = scripted(scene, seed, variety)
    if made is None:
        return None
    numbers = replayed(scene, {"states": made["states"]})
    poses = hands(scene, numbers)
    nq = env.model.nq
    return {
        "state": np.concatenate(list(numbers.values()), 1),
        "action": delta_to_rot6d(made["delta"], *poses),
        "delta": made["delta"],
        "qpos": made["states"][:, 1 : 1 + nq],
    }


def numbers_of(scene, arrays):
    """robosuite's observations {name: (N, ...)} of a file's arrays: recorded, or of its states.

    Raises KeyError with the name of an array that is missing.
    """
    if "robot0_eef_pos" not in arrays and "states" in arrays:
        return replayed(scene, arrays)
    found = {name: arrays[name] for name in proprio_names(scene)}
    if "object" in arrays:
        hand = [arrays["robot0_eef_pos"], arrays["robot0_eef_quat"]]
        found = {"object-state": of_any_version(scene, arrays["object"], *hand), **found}
    return found


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
    return {**recorded_pictures(name, arrays), "proprio": proprio}


def recorded_pictures(name, arrays):
    """{camera: pictures} of a task's cameras that a file's arrays hold in the task's size."""
    found = {}
    for camera in cameras_of(name)[0]:
        for recorded in (camera, f"{camera}_image"):
            if recorded in arrays and arrays[recorded].shape[1:] == named(name).obs[camera]:
                found[camera] = arrays[recorded]
    return found


def actions(name, arrays):
    """A file's actions (N, D_a) in the form of a task. Raises BadInput if they are in another.

    Raises KeyError with the name of an array that is missing.
    """
    scene = scene_of(name)
    arms = SCENES[scene].arms
    action = arrays["action"]
    wants_delta = takes_deltas(name)
    if wants_delta and "delta" in arrays:
        return arrays["delta"]
    if action.ndim != 2 or action.shape[1] != DELTA * arms:
        if wants_delta:
            raise BadInput(
                f"the actions {action.shape} are no deltas, {DELTA} an arm: {scene} takes them"
            )
        return action
    # A hand points down, and is turned by about pi. A delta is never above 1.
    turns = action.reshape(len(action), arms, DELTA)[..., 3:6]
    is_delta = np.abs(turns).max() <= 1.01
    if wants_delta and not is_delta:
        raise BadInput(f"the actions are absolute: {scene} takes them")
    if wants_delta:
        return action
    if not is_delta:
        return axis_angle_to_rot6d(action)
    return delta_to_rot6d(action, *hands(scene, numbers_of(scene, arrays)))


def positions_of(name, arrays, path):
    """A simulator for a file's arrays, and the positions (N, nq) that they hold. Raises BadInput.

    It is raised also if they do not fit the simulator.
    """
    if "qpos" not in arrays and "states" not in arrays:
        raise BadInput(f"{path} has neither qpos nor states, the simulator's positions")
    env = replayer(scene_of(name), *cameras_of(name))
    nq = env.model.nq
    qpos = arrays["qpos"] if "qpos" in arrays else arrays["states"][:, 1 : 1 + nq]
    if qpos.ndim != 2 or qpos.shape[1] != nq or not np.isfinite(qpos).all():
        raise BadInput(f"{path}: positions {qpos.shape} do not fit: {name} has {nq}, finite")
    return env, qpos


def render(name, arrays, path):
    """{camera: (N, H, W, 3) uint8}: pictures drawn from the positions in the file at path.

    Raises BadInput if there are none, if they do not fit, or if OpenGL or a package is missing.
    """
    there = recorded_pictures(name, arrays)
    missing = [camera for camera in cameras_of(name)[0] if camera not in there]
    if "qpos" not in arrays and "states" not in arrays:
        raise BadInput(
            f"{path} has no pictures of {' and '.join(missing)}, and neither qpos nor states to "
            "draw them from"
        )
    env, qpos = positions_of(name, arrays, path)
    sha = hashlib.sha256(np.ascontiguousarray(qpos, np.float32))
    sha.update(np.ascontiguousarray(arrays.get("model_file", ())))
    made = {}
    for camera in missing:
        shape = (len(qpos), *named(name).obs[camera])
        draw = partial(pictures_of, env, qpos, camera, arrays)
        key = f"{sha.hexdigest()} drawn by renderer.py"
        made[camera] = cached_pictures(path, f"{camera}-{shape[1]}", shape, key, draw)
    return made


def pictures_of(env, qpos, camera, arrays, n=64):
    """A camera's pictures at positions (N, nq) of a file's arrays, n at a time: (n, H, W, 3)."""
    drawn = (env.draw(q, camera) for q in each_row(env, qpos, arrays))
    while some := list(itertools.islice(drawn, n)):
        yield np.stack(some)


def exported(name, arrays, path):
    """What a file of robomimic holds of the arrays of the file at path, for save_robomimic().

    These are the arrays by their places in a demonstration, env_args, and an XML text of each
    demonstration. "actions" are deltas, "actions_abs" the same goals as axis-angle. Raises BadInput
    if deltas or positions are missing, and KeyError with the name of another array that is.
    """
    scene = scene_of(name)
    env, qpos = positions_of(name, arrays, path)
    ends = arrays["episode_ends"]
    parts = named_parts(scene, observations(scene, arrays)["state"])
    if cameras_of(name)[0]:
        pictures = recorded_pictures(name, arrays)
        if len(pictures) < len(cameras_of(name)[0]):
            pictures |= render(name, arrays, path)
        parts |= {f"{camera}_image": a for camera, a in pictures.items()}
    parts = {f"obs/{part}": a for part, a in parts.items()}
    parts["actions"] = actions(f"{scene}-delta", arrays)
    parts["actions_abs"] = rot6d_to_axis_angle(actions(scene, arrays))
    parts["states"] = arrays["states"] if "states" in arrays else states_of(env.model, qpos, ends)
    texts = [model_file_of(env.raw, scene)] * len(ends)
    if "model_file" in arrays:
        texts = [text.tobytes().rstrip(b"\0").decode() for text in arrays["model_file"]]
    return parts, env_args_of(scene), texts


# ---- the tasks -----------------------------------------------------------------------------------

URL = "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/main/v1.5"
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


def stage2(steps, T_a):
    """Task.stage2: an iteration has the time of two whole episodes of each simulator.

    Few simulators, since each is a process of 0.4 GB.
    """
    return {"gamma": 0.999, "num_envs": 16, "num_steps": 2 * steps // T_a}


def robomimic_task(name, image, delta):
    """A task of a scene, by numbers or from images, with absolute or delta actions."""
    scene = SCENES[name]
    own = name + "-image" * image + "-delta" * delta
    folder = name.replace("-", "_")
    arrays = ["state", "delta", "qpos", "object", "states", *proprio_names(name)]
    arrays += ["model_file"] if scene.drawn else []
    cameras = scene.cameras if image else ()
    recorded = ["low_dim_v15"]
    if image:
        arrays += ["proprio", *(f"{camera}_image" for camera in scene.cameras)]
        recorded += ["image_v15"]  # second: a policy acts on pictures that are drawn here
    return Task(
        name=own,
        suite="robomimic",
        obs=shapes_of(name, cameras, scene.side),
        D_a=(DELTA if delta else ROT6D) * scene.arms,
        T_o=2,
        T_p=16,
        T_a=8,
        crop=dict.fromkeys(cameras, scene.crop),
        env=partial(RoboMimic, name, delta=delta, cameras=cameras, side=scene.side),
        needs=PACKAGES,
        steps=scene.steps,
        data=(*(f"{folder}/ph/{kind}.hdf5" for kind in recorded), f"{name}.npz"),
        arrays=tuple(arrays),
        observations=partial(observations, own),
        actions=partial(actions, own),
        check=partial(check_recorded, name),
        render=partial(render, own) if image else None,
        numbers=own.replace("-image", "") if image else None,
        export=partial(exported, own),
        url=f"{URL}/{folder}/ph/low_dim_v15.hdf5",
        expert=partial(demonstration, name),
        varies=True,
        limits=limits(name, image, delta),
        stage2=stage2(scene.steps, 8),
        paper=PAPER_IMAGE if image else PAPER,
    )


@dataclasses.dataclass(frozen=True)
class Online:
    """What the protocol of DPPO and ReinFlow has of its own in a scene."""

    cameras: tuple
    steps: int = 300
    T_a: int = 4  # T_p, too


ONLINE = {
    "lift": Online(("robot0_eye_in_hand",)),
    "can": Online(("robot0_eye_in_hand",)),
    "square": Online(("agentview",), steps=400),
    "transport": Online(("shouldercamera0", "shouldercamera1"), steps=800, T_a=8),
}


def online_task(name, image):
    """The task of a scene by the protocol of DPPO and ReinFlow (note 44).

    All is normalised by its range in the data.
    """
    base = robomimic_task(name, image, delta=True)
    own = f"{base.name.removesuffix('-delta')}-online"
    online = ONLINE[name]
    cameras = online.cameras if image else ()
    return dataclasses.replace(
        base,
        name=own,
        suite="robomimic-online",
        obs=shapes_of(name, cameras, 96),
        crop=dict.fromkeys(cameras, 88),
        T_o=1,
        T_p=online.T_a,
        T_a=online.T_a,
        env=partial(RoboMimic, name, delta=True, ends=False, cameras=cameras, side=96),
        steps=online.steps,
        data=(f"{name}/mh/low_dim_v15.hdf5", *base.data),
        url=f"{URL}/{name}/mh/low_dim_v15.hdf5",
        observations=partial(observations, own),
        actions=partial(actions, own),
        render=partial(render, own) if image else None,
        numbers=own.replace("-image", "") if image else None,
        export=partial(exported, own),
        limits={},
        stage2=stage2(online.steps, online.T_a),
        paper={},
    )


TASKS = [
    robomimic_task(name, image, delta)
    for delta in (False, True)
    for image in (False, True)
    for name in SCENES
]
TASKS += [online_task(name, image) for image in (False, True) for name in ONLINE]
