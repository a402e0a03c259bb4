"""Slow motions of both arms along ways that are known, each checked whole before it begins."""

import time

import numpy as np

from commands import BadInput
from formats import read
from lerobot_format import is_lerobot, read_info
from robot_setup import D_A, connected
from safety import Refused, limited, read_cell, violations
from twin_model import ARM


def targets(state):
    """What an arm was last sent, (7,): joints and gripper."""
    return np.append(state.target, state.grip)


def always():
    """A switch that is always pressed."""
    return True


def move(arms, points, dt, cell, *, pressed=always, clock=time.monotonic, sleep=time.sleep):
    """Move both arms along points (n, 2, 7), dt seconds apart, after a check of the whole way.

    It begins where the arms are. Raises Refused if the way breaks a limit, or the motion was
    stopped.
    """
    states = [arm.state() for arm in arms]
    here = np.stack([targets(state) for state in states])
    now = clock()
    times = now + dt * np.arange(1, len(points) + 1)
    allowed, clipped = limited(times, points, now, here, np.zeros((2, 6)), cell)
    if clipped:
        raise Refused(f"the way breaks a limit ({', '.join(clipped)})")
    for i, arm in enumerate(arms):
        arm.plan(times, allowed[:, i, :6], allowed[:, i, 6])
    while clock() < times[-1] + 0.2:
        sleep(0.01)
        states = [arm.state() for arm in arms]
        faults = [state.fault for state in states if state.fault]
        if not pressed():
            faults.append("the operator's switch is released")
        if faults:
            for arm in arms:
                arm.stop(faults[0])
            raise Refused(faults[0])


def way_to(goal, here, speed, dt):
    """Points (n, 2, 7) from here (2, 7) to a goal (2, 7), at most `speed` rad/s, dt apart."""
    far = np.abs(goal[:, :6] - here[:, :6]).max()
    n = max(1, int(np.ceil(far / speed / dt)))
    part = np.arange(1, n + 1)[:, None, None] / n
    return here + part * (goal - here)


def go_home(arms, cell, **how):
    """Move both arms slowly to the cell's home, with open grippers. how: of `move`."""
    here = np.stack([targets(arm.state()) for arm in arms])
    goal = np.concatenate([np.array(cell.home, float), np.zeros((2, 1))], 1)
    if np.abs(goal - here).max() > 0.01:
        move(arms, way_to(goal, here, cell.home_speed, 0.1), 0.1, cell, **how)


# ---- a recorded episode --------------------------------------------------------------------------


def replay(args):
    """Move the arms through a recorded episode, slowly, after a check of its limits."""
    from envs import task_named
    from robot_switch import switch

    if is_lerobot(args.file) and read_info(args.file).fps != args.action_hz:
        hz = read_info(args.file).fps
        raise BadInput(f"{args.file} was recorded at {hz:g} Hz: give --action-hz {hz:g}")
    recorded = read(args.file, ["action", "episode_ends"])
    if "action" not in recorded or recorded["action"].ndim != 2:
        raise BadInput(f"{args.file} has no actions: pass a folder that `record` wrote")
    ends = recorded["episode_ends"]
    if not 0 <= args.episode < len(ends):
        raise BadInput(f"{args.file} has {len(ends)} episodes: --episode counts from 0")
    start = 0 if args.episode == 0 else ends[args.episode - 1]
    actions = recorded["action"][start : ends[args.episode]]
    if actions.shape[1] != D_A:
        raise BadInput(f"{args.file} has actions of {actions.shape[1]} numbers, not {D_A}")
    points = actions.reshape(-1, 2, ARM).astype(float)
    cell = read_cell(args.cell)
    dt = 1 / args.action_hz / args.speed
    check_way(points, dt, cell, args.file)
    if args.only_check:
        return print(f"{args.file}, episode {args.episode}: {len(points)} targets keep all limits")
    task = task_named(args.task)
    with connected(args, task, {}) as (arms, _, scene), switch(args) as pressed:
        try:
            go_home(arms, cell, pressed=pressed)
            here = np.stack([targets(arm.state()) for arm in arms])
            slowly = way_to(points[0], here, cell.home_speed, 0.1)
            move(arms, slowly, 0.1, cell, pressed=pressed)
            if len(points) > 1:
                move(arms, points[1:], dt, cell, pressed=pressed)
        except Refused as e:
            raise BadInput(f"stopped: {e}: look at the arms before you start again") from e
        if scene:
            scene.read()
    return print(f"replayed {len(points)} targets" + f", success {scene.success}" * bool(scene))


def check_way(points, dt, cell, path):
    """Refuse recorded points (n, 2, 7) that break a limit at dt seconds a step. Raises BadInput."""
    try:
        if not np.isfinite(points).all():
            raise Refused("it has numbers that are not finite")
        times = dt * np.arange(1, len(points) + 1)
        _, clipped = limited(times, points, 0.0, points[0], np.zeros((2, 6)), cell)
        far = {name: value.max() for name, value in violations(points, cell).items()}
        beyond = [name for name, value in far.items() if value > 0]
        if clipped or beyond:
            raise Refused(", ".join(dict.fromkeys([*clipped, *beyond])))
    except Refused as e:
        raise BadInput(f"{path} breaks a limit ({e}): lower --speed, or correct --cell") from e
