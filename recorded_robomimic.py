"""What recordings of RoboMimic's scenes hold: made equal across versions, and checked.

Files come from robosuite 1.4 and 1.5 and from experts.py. The objects' numbers get the order of
robosuite 1.5, and what a hand sees of an object is computed anew (note 41). A file says in env_args
where it was recorded: what would mean something else here is refused.

robosuite draws the sizes of lift's cube and of transport's hammer. An official file keeps the XML
text of each episode's own simulator, from which `resize` takes these sizes. That text is from
outside: nothing of it is compiled, and no more than the sizes and places of known boxes and
cylinders is taken out of it.
"""

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from commands import BadInput
from files import brief, refusing
from robomimic_format import env_args
from robosuite_env import HZ, REACH, SCENES, package, settings

PARTS = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2}  # numbers of "proprio" of an arm
POSES = ("can", "square", "tool-hang")  # scenes that tell each object by two poses, 14 numbers
SIZES = ("geom_size", "geom_pos", "geom_aabb", "geom_rbound")  # what `resize` changes in a model
# Transport's numbers: the poses of the objects and the bins, whether the hammer and the cube are
# where they shall be, and what the hands see. robosuite 1.4 has the last two the other way round.
FLAGS = slice(27, 29)
FLAGS_OF_14 = slice(39, 41)


def proprio_names(scene):
    """robosuite's names of what "proprio" holds, in order."""
    return [f"robot{i}_{part}" for i in range(SCENES[scene].arms) for part in PARTS]


def hands(scene, numbers):
    """The hands' positions (N, 3 an arm) and quaternions (N, 4 an arm) of robosuite's names."""
    arms = range(SCENES[scene].arms)
    return tuple(
        np.concatenate([numbers[f"robot{i}_{part}"] for i in arms], 1)
        for part in ("eef_pos", "eef_quat")
    )


def named_parts(scene, state):
    """{robosuite's name: (N, ...)} of the parts of states (N, S), with the objects' as "object"."""
    names = ["object", *proprio_names(scene)]
    sizes = [SCENES[scene].n_object, *[*PARTS.values()] * SCENES[scene].arms]
    return dict(zip(names, np.split(state, np.cumsum(sizes)[:-1], 1)))


# ---- the objects' numbers ------------------------------------------------------------------------


def of_any_version(scene, recorded, hand, quat):
    """The objects' numbers (N, S) of a file as they are here, whatever robosuite recorded them.

    hand (N, 3), quat (N, 4, x y z w): the first hand's.
    """
    if scene in POSES:
        recorded = poses_of_15(recorded, hand)
    if scene == "transport":
        recorded = flags_of_15(recorded)
    return seen_from_hand(scene, recorded, hand, quat)


def poses_of_15(recorded, hand):
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


def flags_of_15(recorded):
    """Transport's numbers (N, 41), from robosuite 1.4 or 1.5, in the order of 1.5.

    The two flags are always 0 or 1, and a distance is practically never.
    """
    flags = recorded[:, FLAGS_OF_14]
    if not np.isin(flags, (0, 1)).all() or np.isin(recorded[:, FLAGS], (0, 1)).all():
        return recorded
    seen = recorded[:, FLAGS.start : FLAGS_OF_14.start]
    return np.concatenate([recorded[:, : FLAGS.start], flags, seen], 1)


def seen_from_hand(scene, objects, hand, quat):
    """The objects' numbers (N, S) with what is relative to the hand computed anew from what is not.

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


# ---- the sizes of objects ------------------------------------------------------------------------


def sizes_of(model):
    """A copy of what `resize` changes in a mujoco.MjModel, which `restore` takes back."""
    return {name: getattr(model, name).copy() for name in SIZES}


def restore(model, sizes):
    """Give a model the sizes that it had when `sizes_of` was called."""
    for name, array in sizes.items():
        getattr(model, name)[:] = array


def resize(model, text, prefix):
    """Give an object of a model the sizes that an XML text (bytes) of another simulator tells.

    prefix: what the names of the object's boxes and cylinders begin with. Its weight stays, since
    recorded states are looked at and not continued. Raises BadInput if the text is no XML, does not
    tell of the object, or tells of sizes that no robosuite draws.
    """
    try:
        if b"<!DOCTYPE" in text:
            raise ValueError("it declares types")  # of which some multiply without end
        geoms = list(ElementTree.fromstring(text).iter("geom"))
    except (ElementTree.ParseError, ValueError) as e:
        raise BadInput(f"model_file is no XML: {brief(e, 100)}") from e
    found = {geom.get("name", ""): geom for geom in geoms}
    names = [model.geom(i).name for i in range(model.ngeom)]
    for i, name in enumerate(names):
        if not name.startswith(prefix):
            continue
        if name not in found:
            raise BadInput(f"model_file does not tell of {name}: it is not of this scene")
        size = numbers_in(found[name], "size", model.geom_size[i])
        place = numbers_in(found[name], "pos", model.geom_pos[i])
        grown = (size < 0.5 * model.geom_size[i]) | (size > 2 * model.geom_size[i])
        if grown.any() or np.abs(place).max() > 1:
            raise BadInput(f"model_file tells of {name} of size {size} at {place}, in metres")
        model.geom_size[i] = size
        model.geom_pos[i] = place
        # A box by half its sides; a cylinder by its radius and half its height.
        half = size if size[2] else size[[0, 0, 1]]
        model.geom_aabb[i, 3:] = half
        model.geom_rbound[i] = np.linalg.norm(half)


def numbers_in(geom, name, own):
    """An attribute's numbers, filled up to the length of `own` with zeros. Raises BadInput."""
    told = geom.get(name, "0 0 0").split()
    try:
        found = np.array([float(x) for x in told])
    except ValueError:
        found = np.array([np.nan])
    if len(found) > len(own) or not np.isfinite(found).all():
        raise BadInput(f"model_file: {name} of {geom.get('name')} is {brief(' '.join(told), 50)}")
    return np.pad(found, (0, len(own) - len(found)))


# ---- where a file was recorded -------------------------------------------------------------------


def check_recorded(scene, path):
    """Refuse a file of robomimic that was recorded in another environment. Raises BadInput.

    Its physics may be "lite" or not: robosuite 1.5 then leaves out what changes nothing (note 45).
    """
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
    if kwargs.get("control_freq", HZ) != HZ:
        raise BadInput(
            f"{path} was recorded at {brief(kwargs['control_freq'])} Hz, but {scene} is run at {HZ}"
        )
    arms = SCENES[scene].arms
    robots = kwargs.get("robots") or "Panda"
    if robots not in ("Panda", ["Panda"] * arms):
        raise BadInput(f"{path} was recorded with {brief(robots)}, but {scene} has {arms} x Panda")
    with refusing(f"{path}: the controller_configs of its env_args cannot be read"):
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
    wanted = {"type": "OSC_POSE", "impedance_mode": "fixed", "kp": 150, "damping_ratio": 1}
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


# ---- a file for robomimic ------------------------------------------------------------------------


def env_args_of(scene):
    """What env_args says of the environment of a scene here, with delta actions."""
    return {
        "env_name": SCENES[scene].env,
        "env_version": package(scene).__version__,
        "type": 1,  # robomimic's number of robosuite
        "env_kwargs": {**settings(scene), "lite_physics": True, "reward_shaping": False},
    }


def model_file_of(raw, scene):
    """The XML text of robosuite's environment of a scene.

    The places of its meshes begin with robosuite's name, by which robosuite finds them again.
    """
    home = Path(package(scene).__file__).parent.parent
    return raw.model.get_xml().replace(f"{home}{os.sep}", "")


def states_of(model, qpos, ends):
    """The simulator's states (N, 1 + nq + nv) at positions qpos (N, nq) of episodes up to `ends`.

    A file of experts.py keeps positions alone. Velocities are differences to the step before, and
    0 at the start, which is that of the episode; times count from it.
    """
    import mujoco

    velocity = np.zeros((len(qpos), model.nv))
    step = np.arange(len(qpos))
    begin = np.append(0, ends)[np.searchsorted(ends, step, "right")]  # of each step's episode
    for t in step[step > begin]:
        mujoco.mj_differentiatePos(model, velocity[t], 1 / HZ, qpos[t - 1], qpos[t])
    return np.column_stack([(step - begin) / HZ, qpos, velocity])
