"""RoboMimic's five tasks in robosuite 1.5.1: lift, can, square, transport and tool-hang."""

import logging

import numpy as np

from task import not_importable


class Needs:
    """What `not_importable` reads of a task."""

    name = "robomimic"
    needs = "--no-deps robosuite==1.5.1 numba termcolor"


ENVS = {  # task -> the environment's name in robosuite
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "transport": "TwoArmTransport",
    "tool-hang": "ToolHang",
}


def make_raw(name, absolute=False, horizon=None):
    """robosuite's own environment of a task: no renderer, no cameras, sparse reward, 20 Hz.

    Actions are of OSC_POSE in the world's frame, for each arm 7 numbers: deltas in [-1, 1], where 1
    is 0.05 m or 0.5 rad; or, if `absolute`, a position in metres, an axis-angle vector, and the
    gripper. horizon: steps after which robosuite tells of the end; None: it never does. Raises
    BadInput if a package is missing.
    """
    logging.getLogger("robosuite_logs").addFilter(only_errors)  # five warnings at import
    try:
        import robosuite
    except ImportError as e:
        raise not_importable(Needs, e) from e
    two = name == "transport"
    config = robosuite.load_composite_controller_config(robot="Panda")
    arm = config["body_parts"]["right"]
    arm["input_ref_frame"] = "world"
    arm["input_type"] = "absolute" if absolute else "delta"
    before = np.random.get_state()
    np.random.seed(0)  # it draws the sizes of the cube and of the hammer, which stay the same
    env = robosuite.make(
        ENVS[name],
        robots=["Panda", "Panda"] if two else "Panda",
        **({"env_configuration": "opposed"} if two else {}),
        controller_configs=[config, config] if two else config,
        renderer="mujoco",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        hard_reset=False,
        ignore_done=horizon is None,
        horizon=horizon or 1000,
        control_freq=20,
    )
    np.random.set_state(before)
    return env


def only_errors(record):
    """Whether a record of robosuite's log is an error."""
    return record.levelno >= logging.ERROR
