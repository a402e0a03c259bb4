"""What the motion of the two arms must keep to, as pure functions: nothing here moves an arm.

Targets are points (2, 7): of the left arm and the right one six joint angles in rad and how far the
gripper is closed. A small violation is clipped, a large one refuses the whole chunk: the old plan
then goes on to its end, where the arms hold.

`limited` checks where the arms shall go, `judge` whether they may go on at all.
"""

import json
import math
from dataclasses import dataclass, fields, replace

import numpy as np

from commands import BadInput
from files import read_bytes

# Denavit and Hartenberg's parameters a and d of each joint, in metres, by Universal Robots.
DH = {
    "ur5": ((0, -0.425, -0.39225, 0, 0, 0), (0.089159, 0, 0, 0.10915, 0.09465, 0.0823)),
    "ur5e": ((0, -0.425, -0.3922, 0, 0, 0), (0.1625, 0, 0, 0.1333, 0.0997, 0.0996)),
}
ALPHA = (math.pi / 2, 0, 0, math.pi / 2, -math.pi / 2, 0)
# How far the upper arm and the forearm stand beside the shoulder's plane, in metres.
BESIDE = {"ur5": (0.136, 0.016), "ur5e": (0.138, 0.007)}
SAMPLES = (2, 5, 2, 5, 2, 2, 3)  # points on each line of `skeleton` whose distances are looked at

POSITIVE = (  # fields of a Cell
    *("speed", "acceleration", "home_speed", "apart", "small_speed"),
)
LARGEST = {"speed": 2 * math.pi, "home_speed": 1.0, "small_speed": 5.0}

GO = "go"  # what `judge` says
HOLD = "hold"
STOP = "stop"
SPACE = ("workspace box", "table", "distance between the arms")  # limits of space


class Refused(ValueError):
    """A chunk must not be executed; the message says why."""


@dataclass(frozen=True)
class Cell:
    """The workplace: where the arms stand, and what they must keep to. The twin's by default.

    `read_cell` reads another one from a JSON file with any of these names.
    """

    model: str = "ur5e"  # of DH
    bases: tuple = ((0, 0.35, 0, 0), (0, -0.35, 0, math.pi))  # x, y, z, yaw of each arm's base
    tool: float = 0.150  # metres from the flange to the tool's centre point
    joints: tuple = (-2 * math.pi, 2 * math.pi)  # rad, of every joint
    speed: float = math.pi  # rad/s, of every joint
    acceleration: float = 40.0  # rad/s^2, of every joint
    boxes: tuple = (  # of each arm's tool centre point: low (x, y, z), high (x, y, z)
        ((0.15, -0.20, 0.005), (0.80, 0.75, 0.60)),
        ((0.15, -0.75, 0.005), (0.80, 0.20, 0.60)),
    )
    table: float = 0.0  # height that no elbow, wrist or tool goes below
    apart: float = 0.11  # metres between the arms' middle lines: an upper arm is 0.11 thick
    home: tuple = (  # the joint angles that a run begins at
        (0, -math.pi / 2, -math.pi / 2, -math.pi / 2, math.pi / 2, 0),
        (0, -math.pi / 2, math.pi / 2, -math.pi / 2, -math.pi / 2, 0),
    )
    home_speed: float = 0.2  # rad/s, on the way there

    # Violations up to these are clipped.
    small_angle: float = 0.05  # rad beyond a joint's limit
    small_distance: float = 0.02  # metres beyond a box, the table or the distance between the arms
    small_speed: float = 2.0  # times the speed


@dataclass(frozen=True)
class Patience:
    """For how long a loop may lack something, in seconds, before it holds and before it stops."""

    frame: float = 2 / 30  # a camera's newest frame: two frames at 30 Hz
    # An arm's newest state. Three periods of a servo at 125 Hz are half of it, but without a
    # real-time system a process waits that long for its turn (note 56).
    state: float = 0.05
    late: float = 0.0  # the next chunk, after the plan's end, where the arms hold by themselves
    held: float = 0.5  # a hold, before it becomes a stop


def read_cell(path=None):
    """The Cell of a JSON file, or the twin's without one. Raises BadInput."""
    told = {}
    if path is not None:
        try:
            told = json.loads(read_bytes(path))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
            raise BadInput(f"{path} is not JSON: name a file as ROBOT.md shows it") from e
    names = {f.name: np.shape(f.default) for f in fields(Cell)}
    if not isinstance(told, dict) or not told.keys() <= names.keys():
        raise BadInput(f"{path}: it takes an object with any of {', '.join(names)}")
    for name, value in told.items():
        if not fits_cell(name, value, names[name]):
            raise BadInput(f"{path}: {name} cannot be used: its default is {getattr(Cell, name)}")
    return replace(Cell(), **told)


def fits_cell(name, value, shape):
    """Whether a value from a file can be the field of that name and shape of a Cell."""
    if name == "model":
        return value in list(DH)
    if not is_numbers(value, shape):
        return False
    array = np.array(value, float)
    if name in POSITIVE:
        return bool(0 < array <= LARGEST.get(name, math.inf))
    if name in ("small_angle", "small_distance"):
        return bool(array >= 0)
    if name in ("joints", "boxes"):  # low before high
        low, high = np.moveaxis(array, -1 if name == "joints" else -2, 0)
        return bool((low < high).all())
    return True


def is_numbers(value, shape):
    """Whether a value is nested lists of finite numbers of this shape."""
    try:
        array = np.array(value)
        array = array.astype(float) if array.dtype.kind in "if" else np.array(np.nan)
    except (ValueError, OverflowError):  # lists of several lengths, a number of 400 digits
        return False
    return array.shape == shape and bool(np.isfinite(array).all())


# ---- where the arms are --------------------------------------------------------------------------


def skeleton(q, i, cell):
    """Points of arm i at joint angles q (..., 6), in the cell's frame: (..., 8, 3) metres.

    They are the shoulder, the upper arm's two ends, the forearm's two ends, two of the wrist and
    the tool's centre point. Straight lines between them follow the links.
    """
    a, d = DH[cell.model]
    x, y, z, yaw = cell.bases[i]
    T = np.array(
        [
            [math.cos(yaw), -math.sin(yaw), 0, x],
            [math.sin(yaw), math.cos(yaw), 0, y],
            [0, 0, 1, z],
            [0, 0, 0, 1],
        ]
    )
    lengths = np.array(d)
    lengths[5] += cell.tool
    steps = transforms(q, np.array(a), lengths, np.array(ALPHA))
    upper, lower = BESIDE[cell.model]
    found = []
    for k, besides in enumerate(((0, upper), (upper, lower), (lower,), (0,), (0,), (0,))):
        T = T @ steps[..., k, :, :]
        for beside in besides:  # along the axis of the next joint
            found.append(T[..., :3, 3] + beside * T[..., :3, 2])
    return np.stack(found, -2)


def transforms(theta, a, d, alpha):
    """Denavit and Hartenberg's transforms of joints at angles theta (..., 6): (..., 6, 4, 4)."""
    c = np.cos(theta)
    s = np.sin(theta)
    ca = np.cos(alpha)
    sa = np.sin(alpha)
    T = np.zeros((*np.shape(theta), 4, 4))
    T[..., 0, 0] = c
    T[..., 0, 1] = -s * ca
    T[..., 0, 2] = s * sa
    T[..., 0, 3] = a * c
    T[..., 1, 0] = s
    T[..., 1, 1] = c * ca
    T[..., 1, 2] = -c * sa
    T[..., 1, 3] = a * s
    T[..., 2, 1] = sa
    T[..., 2, 2] = ca
    T[..., 2, 3] = d
    T[..., 3, 3] = 1
    return T


def between(samples):
    """Weights (sum of samples + 1, P) that make points on P - 1 lines of the P that they join."""
    weights = np.zeros((sum(samples) + 1, len(samples) + 1))
    row = 0
    for k, n in enumerate(samples):
        part = np.arange(n) / n
        weights[row : row + n, k] = 1 - part
        weights[row : row + n, k + 1] = part
        row += n
    weights[-1, -1] = 1
    return weights


BETWEEN = between(SAMPLES)


def nearest(left, right):
    """The smallest distance of points (n, L, 3) to points (n, R, 3): (n,).

    By |l|^2 + |r|^2 - 2 l r, in a third of the time that the differences take. Two lines are nearer
    than the points on them, here by less than 2 cm.
    """
    squares = (left**2).sum(-1)[:, :, None] + (right**2).sum(-1)[:, None]
    squares = squares - 2 * left @ right.swapaxes(1, 2)
    return np.sqrt(np.maximum(squares.min((1, 2)), 0))


def violations(points, cell):
    """How far points (n, 2, 7) are beyond each limit of space, in metres: {name: (n,)}, 0 inside.

    The names are SPACE, the first two for each arm.
    """
    bones = [skeleton(points[:, i, :6], i, cell) for i in range(2)]
    box, table, apart = SPACE
    found = {}
    for i, side in enumerate(("left", "right")):
        low, high = np.array(cell.boxes[i], float)
        tool = bones[i][:, -1]
        found[f"{box} of the {side} arm"] = np.maximum(low - tool, tool - high).max(1)
        found[f"{table} under the {side} arm"] = cell.table - bones[i][:, 2:, 2].min(1)
    found[apart] = cell.apart - nearest(BETWEEN @ bones[0], BETWEEN @ bones[1])
    return {name: np.maximum(value, 0) for name, value in found.items()}


# ---- where they shall go -------------------------------------------------------------------------


def check_chunk(chunk, T_p, D_a):
    """Refuse what is no chunk (T_p, D_a) of finite numbers. Raises Refused."""
    if np.shape(chunk) != (T_p, D_a):
        raise Refused(f"the chunk has shape {np.shape(chunk)}, not {(T_p, D_a)}")
    if not np.isfinite(chunk).all():
        raise Refused("the chunk has numbers that are not finite")


def limited(times, points, now, here, speed, cell):
    """Targets that keep to the limits -> points (m, 2, 7), m <= n, and what was clipped (a list).

    times (n,): when the arms shall be at points (n, 2, 7). here (2, 7): where the plan is now;
    speed (2, 6): how fast it goes. Joints, grippers, speeds and accelerations are clipped; before a
    point that is a little beyond a limit of space the chunk ends, and the arms hold there. Beyond a
    limit of space they may move only inward (note 57). Raises Refused if a violation is large.
    """
    clipped = []
    points = np.array(points, float)
    points[..., 6] = np.clip(points[..., 6], 0, 1)
    low, high = cell.joints
    beyond = np.maximum(low - points[..., :6], points[..., :6] - high).max()
    if beyond > cell.small_angle:
        raise Refused(f"a joint {beyond:.2f} rad beyond its limit")
    if beyond > 0:
        clipped.append("joint limit")
        points[..., :6] = np.clip(points[..., :6], low, high)
    clipped += clip_speeds(times, points, now, here, speed, cell)
    n = len(points)
    for name, far in violations(np.concatenate([here[None], points]), cell).items():
        bad = far[1:] > np.maximum(far[0], 1e-9)
        if (bad & (far[1:] > max(cell.small_distance, far[0]))).any():
            raise Refused(f"{name}: {100 * far.max():.1f} cm beyond the limit")
        if bad.any():
            clipped.append(name)
            n = min(n, int(bad.argmax()))
    return points[:n], clipped


def clip_speeds(times, points, now, here, speed, cell):
    """Slow down points (n, 2, 7), in place, to the limits -> what was clipped. Raises Refused.

    Each target is led from the one before it, so the arms come late and catch up. Whether the first
    is too far is judged as if the arms had a whole step for it: less is left where a chunk came
    late, by which no target is farther away.
    """
    seconds = np.diff(times, prepend=now)
    speeds = np.diff(points[..., :6], axis=0, prepend=here[None, :, :6]) / seconds[:, None, None]
    changes = np.abs(np.diff(speeds, axis=0, prepend=speed[None])).max((1, 2))
    fastest = np.abs(speeds).max((1, 2))
    most = cell.small_speed * cell.speed
    far = fastest[0] * seconds[0]
    if far > most * max(seconds[0], seconds[-1]):
        raise Refused(f"the first target is {far:.2f} rad from where the arm is")
    if fastest[1:].max(initial=0) > most:
        raise Refused(f"a speed of {fastest[1:].max():.1f} rad/s")
    if fastest.max() <= cell.speed and (changes <= cell.acceleration * seconds).all():
        return []  # the steps below would change nothing, and take longer than all the rest
    clipped = []
    before = np.array(here[:, :6], float)
    low, high = cell.joints
    for k, period in enumerate(seconds):
        wanted = (points[k, :, :6] - before) / period
        allowed = np.clip(wanted, -cell.speed, cell.speed)
        if (allowed != wanted).any():
            clipped.append("speed")
        change = cell.acceleration * period
        speed = np.clip(allowed, speed - change, speed + change)
        if (speed != allowed).any():
            clipped.append("acceleration")
        # What brakes too slowly would pass its target, but not the joint's limit.
        before = np.clip(before + speed * period, np.minimum(low, before), np.maximum(high, before))
        points[k, :, :6] = before
    return list(dict.fromkeys(clipped))


# ---- whether they may go on ----------------------------------------------------------------------


def judge(now, states, frames, plan_end, held, pressed, patience):
    """Whether the arms may follow new chunks: (GO, HOLD or STOP, the reason).

    states: each arm's State. frames {camera: when its newest frame was captured}. plan_end: the
    time of the plan's last target, None before the first chunk. held: since when the arms have been
    held, or None. pressed: whether the operator's switch is. A reason to stop goes before one to
    hold. All times are seconds of one clock.
    """
    for side, state in zip(("left", "right"), states):
        if state.fault:
            return STOP, f"{side} arm: {state.fault}"
    if not pressed:
        return STOP, "the operator's switch is released"
    reason = missing(now, states, frames, plan_end, patience)
    if reason is None:
        return GO, ""
    if held is not None and now - held > patience.held:
        return STOP, f"{reason}, and the arms have been held for {patience.held:g} s"
    return HOLD, reason


def missing(now, states, frames, plan_end, patience):
    """What is too old for the arms to go on, in words, or None."""
    for side, state in zip(("left", "right"), states):
        if now - state.t > patience.state:
            return f"{side} arm: its state is {1e3 * (now - state.t):.0f} ms old"
    for camera, t in frames.items():
        if now - t > patience.frame:
            return f"{camera}: the newest frame is {1e3 * (now - t):.0f} ms old"
    if plan_end is not None and now - plan_end > patience.late:
        return "there is no new chunk, and the plan has ended"
    return None
