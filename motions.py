"""The motions of a robot's arm of which scripted experts are made.

A motion is a generator: at each control step it looks at the simulator and yields a delta action
(6,) for the hand, with whether noise may be added to it. `goto` moves exactly, `travel` moves
through free space, `hold` stays, `close` and `release` are the gripper. Poses are 4 x 4 matrices in
the world's frame, in metres. A target is a pose, or a function that gives the pose as things stand
now; `carried` makes such a function of where a held object shall be.

`travel` alone shows an arm's variety: detours, a speed of its own, and correlated noise, as people
move. What must be exact stays exact.
"""

import math

import numpy as np

OPEN = -1.0  # commands of the gripper
CLOSED = 1.0
NOISE = 0.1  # standard deviation of a travel's noise at variety 1, where actions are in [-1, 1]
MEMORY = 0.8  # correlation of the noise with that of the step before
DETOUR = 0.05  # standard deviation in metres of a via point at variety 1
SLOWER = 0.4  # the largest part of the speed that a travel lacks at variety 1
TURN = 1.8  # rad from its home pose that the wrist may turn where it need not
UP = np.array([0, 0, 1])
DOWN = np.diag([1.0, -1.0, -1.0])  # a hand that points down with its fingers along the world's x


# ---- poses ---------------------------------------------------------------------------------------


def pose(position, rotation):
    """The 4 x 4 matrix of a position (3,) and a rotation matrix (3, 3)."""
    T = np.eye(4)
    T[:3, :3] = rotation
    T[:3, 3] = position
    return T


def moved(T, *by):
    """The pose T moved by (x, y, z) in the world's frame."""
    return pose(T[:3, 3] + by, T[:3, :3])


def about_z(angle):
    """The rotation matrix of a turn about the vertical axis."""
    c = math.cos(angle)
    s = math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def down(position, yaw):
    """The pose of a hand that points down, its fingers opening along (cos yaw, sin yaw)."""
    return pose(position, about_z(yaw) @ DOWN)


def yaw_of(R):
    """The direction of a rotation's x axis in the horizontal plane, in rad."""
    return math.atan2(R[1, 0], R[0, 0])


def rotvec(R):
    """The axis-angle vector (3,) of a rotation matrix."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(R).as_rotvec()


def fold(angle, period, reference):
    """Of the angles that differ by whole periods, the one nearest to the reference."""
    return angle - period * round((angle - reference) / period)


# ---- what a script sees --------------------------------------------------------------------------


class Arm:
    """One arm of a simulator: its hand, its gripper's command, and how much it varies.

    env: from make_raw(). i: 0 or 1. rng: numpy's generator for the variety in [0, 1].
    """

    def __init__(self, env, i, rng, variety):
        self.env = env
        self.site = env.robots[i].eef_site_id["right"]
        self.rng = rng
        self.variety = variety
        self.gripper = OPEN
        self.noise = np.zeros(6)
        self.home = yaw_of(self.hand()[:3, :3])

    def hand(self):
        """The pose of the point between the fingertips; x: the fingers open, z: it points."""
        data = self.env.sim.data
        return pose(data.site_xpos[self.site], data.site_xmat[self.site].reshape(3, 3))

    def shaken(self, delta):
        """A command (6,) with this step's noise, which remembers that of the step before."""
        fresh = self.rng.normal(size=6) * self.variety * NOISE
        self.noise = MEMORY * self.noise + math.sqrt(1 - MEMORY**2) * fresh
        return delta + self.noise


def body(env, name):
    """The pose of a body of the simulator."""
    data = env.sim.data
    return pose(data.get_body_xpos(name), data.get_body_xmat(name))


def other_side(arm):
    """Whether to choose the second of two ways: never without variety, else at random."""
    return arm.variety > 0 and arm.rng.random() < arm.variety / 2


def grip_yaw(arm, yaw, period):
    """The yaw for a grasp that is the same after each period: the one nearest to the home pose.

    With variety, at times the second nearest, if the wrist can turn that far.
    """
    nearest = fold(yaw, period, arm.home)
    second = nearest + math.copysign(period, arm.home - nearest)
    return second if other_side(arm) and abs(second - arm.home) < TURN else nearest


# ---- motions -------------------------------------------------------------------------------------


def now(target):
    """The pose that a target is at this moment."""
    return target() if callable(target) else target


def limited(v, most):
    """The vector v shortened so that none of its components is beyond `most`."""
    return v * min(1, most / max(np.abs(v).max(), 1e-9))


def toward(arm, target, kpos=20, krot=2, vmax=1, wmax=1):
    """The delta action (6,) that moves the hand toward a pose, in proportion to what is missing."""
    hand = arm.hand()
    turn = rotvec(target[:3, :3] @ hand[:3, :3].T)
    step = target[:3, 3] - hand[:3, 3]
    return np.concatenate([limited(kpos * step, vmax), limited(krot * turn, wmax)])


def is_near(arm, target, tol, atol):
    """Whether the hand is within tol metres and atol rad of a pose."""
    hand = arm.hand()
    far = np.linalg.norm(target[:3, 3] - hand[:3, 3])
    turn = np.linalg.norm(rotvec(target[:3, :3] @ hand[:3, :3].T))
    return far < tol and turn < atol


def goto(arm, target, tol, atol=0.1, *, dwell=0, most=120, until=None, noisy=False, **gains):
    """Move to a target exactly; ends after dwell + 1 steps in tolerance, or `most` steps.

    until: a function that tells the end instead of the tolerances. gains: see toward().
    """
    hits = 0
    for _ in range(most):
        where = now(target)
        there = until() if until else is_near(arm, where, tol, atol)
        hits = hits + 1 if there else 0
        if hits > dwell:
            return
        yield toward(arm, where, **gains), noisy


def travel(arm, target, tol, atol=0.1, **how):
    """Move to a target through free space: goto() with the arm's variety."""
    if arm.variety:
        how = {"vmax": 1 - SLOWER * arm.variety * arm.rng.random(), **how}
        yield from detour(arm, now(target), how)
    yield from goto(arm, target, tol, atol, noisy=True, **how)


def detour(arm, end, how):
    """On every other long way, pass beside its middle or above; the hand turns as at its end."""
    middle = (arm.hand()[:3, 3] + end[:3, 3]) / 2
    far = np.linalg.norm(middle - end[:3, 3]) > 0.06
    if far and arm.rng.random() < 0.5:
        aside = arm.rng.normal(size=3) * DETOUR * arm.variety
        aside[2] = abs(aside[2])  # upward, away from what stands on the table
        how = {**how, "most": 40}
        yield from goto(arm, pose(middle + aside, end[:3, :3]), 0.05, 9, noisy=True, **how)


def hold(arm, target, steps, **gains):
    """Stay at a target for a number of steps."""
    for _ in range(steps):
        yield toward(arm, now(target), **gains), False


def wait(arm, target, told, word):
    """Stay at a target until the other arm has said the word: told is the set of those said."""
    while word not in told:
        yield from hold(arm, target, 1)


def close(arm, target, steps):
    """Close the fingers at a target, which follows the object that they close on."""
    arm.gripper = CLOSED
    yield from hold(arm, target, steps)


def release(arm, steps):
    """Open the fingers where the hand is."""
    arm.gripper = OPEN
    yield from hold(arm, arm.hand(), steps)


def rise(arm, height, tol=0.03, **how):
    """Move up by that height from where the hand is."""
    yield from travel(arm, moved(arm.hand(), 0, 0, height), tol, **how)


def carried(arm, see, desired):
    """The target of the hand that brings the object seen by see() to the pose `desired`.

    Where the hand holds the object is looked at anew at every step, so slips do not matter.
    """

    def target():
        return now(desired) @ np.linalg.inv(see()) @ arm.hand()

    return target
