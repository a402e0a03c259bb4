"""The simulators of RoboMimic's tasks in robosuite 1.5.1, and the three forms of an action.

robosuite's operational space controller (OSC) pulls a hand toward a goal, a pose in the world's
frame. Of one arm an action tells of the goal, and then of the gripper, -1 open to 1 closed:

  delta, 7 numbers       the goal from where the hand is, in [-1, 1] for 0.05 m and 0.5 rad
  axis-angle, 7          the goal itself: a position in metres, and an axis times an angle in rad
  rot6d, 10              the same, the rotation as the first two rows of its matrix

A network learns rot6d, since it has no jumps: a hand that points down is turned by about pi, where
an axis-angle vector changes its sign. The actions of two arms follow one another.
"""

import logging
import os
from dataclasses import dataclass

import numpy as np

from task import not_importable

# What pip installs for it. More of what robosuite asks for is not needed.
PACKAGES = "numba termcolor && pip install --no-deps robosuite==1.5.1"
DELTA = 7  # numbers of an arm's action by its form
AXIS_ANGLE = 7
ROT6D = 10
PROPRIO = 9  # numbers of an arm in an observation: eef_pos 3, eef_quat 4, gripper_qpos 2
HZ = 20  # control steps a second
REACH = np.array([0.05, 0.05, 0.05, 0.5, 0.5, 0.5])  # metres and rad of a delta action of 1


@dataclass(frozen=True)
class Scene:
    """What differs between the tasks."""

    env: str  # the environment's name in robosuite
    n_object: int  # how many numbers the objects' state has
    quaternions: tuple  # where in them quaternions begin
    steps: int  # control steps of an episode, 20 a second
    cameras: tuple = ("agentview", "robot0_eye_in_hand")  # of Diffusion Policy's image tasks
    side: int = 84  # pixels of a picture's side
    crop: int = 76
    arms: int = 1
    drawn: str = None  # the object whose sizes robosuite draws, by how its geoms' names begin


SCENES = {
    "lift": Scene("Lift", n_object=10, quaternions=(3,), steps=400, drawn="cube_"),
    "can": Scene("PickPlaceCan", n_object=14, quaternions=(3, 10), steps=400),
    "square": Scene("NutAssemblySquare", n_object=14, quaternions=(3, 10), steps=400),
    "transport": Scene(
        "TwoArmTransport",
        n_object=41,
        quaternions=(3, 10, 17),
        steps=700,
        cameras=("shouldercamera0", "robot0_eye_in_hand", "shouldercamera1", "robot1_eye_in_hand"),
        arms=2,
        drawn="payload_",
    ),
    "tool-hang": Scene(
        "ToolHang",
        n_object=44,
        quaternions=(3, 10, 17, 24, 31, 38),
        steps=700,
        cameras=("sideview", "robot0_eye_in_hand"),
        side=240,
        crop=216,
    ),
}


@dataclass(frozen=True)
class Package:
    """What `not_importable` reads of a task."""

    name: str
    needs: str = PACKAGES


def package(name):
    """robosuite itself, imported without a word, for a scene. Raises BadInput if it is missing."""
    logging.getLogger("robosuite_logs").addFilter(is_error)  # five warnings at import
    opengl = os.environ.get("MUJOCO_GL")
    try:
        import robosuite
    except ImportError as e:
        raise not_importable(Package(name), e) from e
    if opengl is None:  # robosuite says egl then, also where there is none
        os.environ.pop("MUJOCO_GL", None)
    return robosuite


def settings(name, absolute=False):
    """What robosuite.make() is given for a scene, beside its name and what is not of the task.

    Actions are deltas, or, if `absolute`, axis-angle; both in the world's frame.
    """
    scene = SCENES[name]
    config = package(name).load_composite_controller_config(robot="Panda")
    arm = config["body_parts"]["right"]
    arm["input_ref_frame"] = "world"
    arm["input_type"] = "absolute" if absolute else "delta"
    two = {"env_configuration": "opposed"} if scene.arms == 2 else {}
    return {
        "robots": ["Panda"] * scene.arms,
        **two,
        "controller_configs": [config] * scene.arms,
        "control_freq": HZ,
    }


def make_raw(name, absolute=False, horizon=None):
    """robosuite's own environment of a scene: no renderer, no cameras, sparse reward, 20 Hz.

    Actions are as `settings` says. robosuite takes the sizes of the cube and of the hammer from
    numpy's random numbers when it makes a simulator: here they are the same in every process
    (note 43), and those numbers go on as if nothing had been taken. horizon: steps after which
    robosuite tells of the end; None: it never does. Raises BadInput if a package is missing.
    """
    robosuite = package(name)
    before = np.random.get_state()
    np.random.seed(0)
    try:
        return robosuite.make(
            SCENES[name].env,
            **settings(name, absolute),
            renderer="mujoco",
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            ignore_done=horizon is None,
            horizon=horizon or 1000,
        )
    finally:
        np.random.set_state(before)


def is_error(record):
    """Whether a record of robosuite's log is an error."""
    return record.levelno >= logging.ERROR


# ---- the forms of an action ----------------------------------------------------------------------


def to_rot6d(rotation):
    """scipy's Rotation of n -> (n, 6)."""
    return rotation.as_matrix()[:, :2].reshape(-1, 6)


def from_rot6d(numbers):
    """Any 6 numbers each (n, 6) -> scipy's Rotation, by Gram and Schmidt.

    A network's two rows are neither of length 1 nor at right angles; the first keeps its direction.
    """
    from scipy.spatial.transform import Rotation

    # Zeros give no direction: so little of the identity decides nothing else.
    first, second = np.split(numbers + 1e-6 * np.array([1, 0, 0, 0, 1, 0]), 2, axis=-1)
    first = first / np.linalg.norm(first, axis=-1, keepdims=True)
    second = second - (first * second).sum(-1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    return Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], -2))


def rot6d_to_axis_angle(action):
    """Actions (..., 10 an arm) -> (..., 7 an arm)."""
    arms = action.reshape(-1, ROT6D)
    rotation = from_rot6d(arms[:, 3:9]).as_rotvec()
    made = np.concatenate([arms[:, :3], rotation, arms[:, 9:]], 1)
    return made.reshape(*action.shape[:-1], -1)


def axis_angle_to_rot6d(action):
    """Actions (..., 7 an arm) -> (..., 10 an arm)."""
    from scipy.spatial.transform import Rotation

    arms = action.reshape(-1, AXIS_ANGLE)
    rotation = to_rot6d(Rotation.from_rotvec(arms[:, 3:6]))
    made = np.concatenate([arms[:, :3], rotation, arms[:, 6:]], 1)
    return made.reshape(*action.shape[:-1], -1)


def delta_to_rot6d(action, eef_pos, eef_quat):
    """Delta actions (N, 7 an arm) as the goals that the controller makes of them (N, 10 an arm).

    eef_pos (N, 3 an arm), eef_quat (N, 4 an arm, x y z w): robosuite's observations before the
    action. The controller holds the point between the fingertips, which is turned by -90 degrees
    about the hand's z axis from the body that eef_quat is of.
    """
    from scipy.spatial.transform import Rotation

    arms = action.reshape(-1, DELTA)
    move = np.clip(arms[:, :6], -1, 1) * REACH
    hand = Rotation.from_quat(eef_quat.reshape(-1, 4)) * Rotation.from_euler("z", -np.pi / 2)
    goal = Rotation.from_rotvec(move[:, 3:]) * hand
    position = eef_pos.reshape(-1, 3) + move[:, :3]
    made = np.concatenate([position, to_rot6d(goal), arms[:, 6:]], 1)
    return made.reshape(len(action), -1)
