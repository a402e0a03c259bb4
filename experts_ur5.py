"""Scripted experts of the two arms' tasks on the twin.

A script is a generator for each arm, which yields one command a tenth of a second, in the words of
motions.py. A command moves the hand from where it is. Inverse kinematics makes of it the joint
targets that the twin, and a policy's training, are given. The numbers are metres, rad and tenths of
a second, found by trying.

`variety`: see motions.py; what looks the same from several sides is taken from one or another.
"""

import functools
import math

import mujoco
import numpy as np

import motions
from motions import (
    carried,
    close,
    down,
    fold,
    goto,
    grip_yaw,
    moved,
    pose,
    release,
    rise,
    travel,
    wait,
    yaw_of,
)
from twin_model import HEAD, LEFT, RIGHT

REACH = 0.05  # metres and rad of a command of 1
TURN = 0.5


class Arm(motions.Arm):
    """Arm i of a twin, as motions.py looks at it; q (6,): the last joint targets."""

    def __init__(self, twin, i, rng, variety):
        self.env = twin
        self.i = i
        self.rng = rng
        self.variety = variety
        self.gripper = motions.OPEN
        self.noise = np.zeros(6)
        self.q = twin.q(i)
        self.home = yaw_of(self.hand()[:3, :3])

    def hand(self):
        """The pose of the point between the fingertips; x: the fingers open, z: it points."""
        return matrix(*self.env.tcp(self.i))

    def command(self, delta):
        """Turn a command (6,), clipped to [-1, 1], into new joint targets."""
        from scipy.spatial.transform import Rotation

        delta = np.clip(delta, -1, 1)
        hand = self.hand()
        turn = Rotation.from_rotvec(TURN * delta[3:]).as_matrix()
        position = hand[:3, 3] + REACH * delta[:3]
        self.q = self.env.ik(self.i, position, turn @ hand[:3, :3], self.q)


def matrix(position, quaternion):
    """The 4 x 4 pose of a position (3,) and a quaternion (4,)."""
    R = np.empty(9)
    mujoco.mju_quat2Mat(R, quaternion)
    return pose(position, R.reshape(3, 3))


def thing(twin, name):
    """The pose of a thing."""
    numbers = twin.objects()[name]
    return matrix(numbers[:3], numbers[3:])


# ---- lift and can --------------------------------------------------------------------------------


def lift(arm, told):
    """Grasp the cube on the table and lift it."""
    cube = functools.partial(thing, arm.env, "cube")
    yaw = grip_yaw(arm, yaw_of(cube()), math.pi / 2)

    def grasp():
        return down(cube()[:3, 3], yaw)

    yield from travel(arm, moved(grasp(), 0, 0, 0.08), 0.02, 0.2)
    yield from goto(arm, grasp, 0.005, 0.06)
    yield from close(arm, grasp, 5)
    yield from rise(arm, 0.15)


def can(arm, told):
    """Put the can into the bin."""
    tin = functools.partial(thing, arm.env, "can")
    spread = arm.rng.uniform(-1, 1) * arm.variety * math.pi / 4
    yaw = arm.home + spread  # a can is the same from all sides
    x, y = arm.env.scene.bins["bin"].centre

    def grasp():
        return moved(down(tin()[:3, 3], yaw), 0, 0, 0.02)

    yield from travel(arm, moved(grasp(), 0, 0, 0.10), 0.02, 0.2)
    yield from goto(arm, grasp, 0.006, 0.1)
    yield from close(arm, grasp, 5)
    yield from rise(arm, 0.12)
    yield from travel(arm, down([x, y, arm.hand()[2, 3]], yaw), 0.02)
    yield from goto(arm, down([x, y, 0.083], yaw), 0.015)
    yield from release(arm, 4)
    yield from rise(arm, 0.12)


# ---- transport -----------------------------------------------------------------------------------

OFF = {LEFT: 0.055, RIGHT: -0.060}  # metres along the handle from its middle to each arm's grip
MEETING = np.array([0.46, 0, 0.28])  # of the middle of the handle
ACROSS = 0.0  # yaw of the hammer, and of the hands on its handle, at the meeting


def handle_grip(arm, T):
    """The pose of an arm's hand on the hammer T: fingers across the handle."""
    # The home's yaw is as far from one turn as from the other: near that, it would waver.
    across = fold(yaw_of(T), math.pi, ACROSS)
    return down((T @ [0, OFF[arm.i], 0, 1])[:3], across)


def pick(arm, see, grasp, above, after):
    """Grasp a thing and lift it, with up to two more tries if it stays behind."""
    for _ in range(3):
        before = see()[2, 3]
        yield from travel(arm, moved(grasp(), 0, 0, above), 0.02, 0.1)
        yield from goto(arm, grasp, 0.005, 0.05, vmax=0.8)
        yield from close(arm, grasp, 5)
        yield from rise(arm, after)
        if see()[2, 3] > before + after / 2:
            return
        arm.gripper = motions.OPEN


def giver(arm, told):
    """Transport's left arm: take the hammer out of its bin and hand it over."""
    hammer = functools.partial(thing, arm.env, "hammer")

    def grasp():
        return handle_grip(arm, hammer())

    upright = motions.about_z(ACROSS)
    meeting = carried(arm, hammer, pose(MEETING, upright))
    yield from pick(arm, hammer, grasp, 0.12, 0.15)
    yield from travel(arm, carried(arm, hammer, pose(MEETING - [0, -0.22, 0], upright)), 0.03)
    yield from wait(arm, arm.hand(), told, "away")  # the other arm is above the trash before
    yield from travel(arm, meeting, 0.03)
    yield from goto(arm, meeting, 0.006, 0.04, dwell=2)
    told.add("ready")
    there = arm.hand()
    yield from wait(arm, there, told, "held")
    yield from release(arm, 4)
    yield from rise(arm, 0.10)
    told.add("clear")
    yield from travel(arm, moved(there, 0, 0.25, 0.08), 0.03)


def taker(arm, told):
    """Transport's right arm: empty the target bin, take the hammer over and put it in."""
    hammer = functools.partial(thing, arm.env, "hammer")
    bins = arm.env.scene.bins
    yield from throw_cube_away(arm, bins["trash"])

    def grasp():
        return handle_grip(arm, hammer())

    def over_bin(z):
        x, y = bins["target"].centre
        # The hammer reaches farther toward its head.
        middle = pose([x, y - HEAD[1], z], motions.about_z(ACROSS))
        return carried(arm, hammer, middle)

    aside = down(MEETING - [0, 0.22, -0.08], arm.home)
    yield from travel(arm, aside, 0.03)
    told.add("away")
    yield from wait(arm, aside, told, "ready")
    yield from travel(arm, moved(grasp(), 0, 0, 0.08), 0.015, 0.08)
    yield from goto(arm, grasp, 0.006, 0.05, dwell=1, vmax=0.6)
    yield from close(arm, grasp, 5)
    told.add("held")
    yield from wait(arm, arm.hand(), told, "clear")
    yield from travel(arm, over_bin(0.20), 0.03)
    yield from goto(arm, over_bin(0.025), 0.01, most=60)
    yield from release(arm, 4)
    yield from rise(arm, 0.15)


def throw_cube_away(arm, trash):
    """Put the cube that is in the target bin into the trash bin."""
    cube = functools.partial(thing, arm.env, "cube")
    yaw = grip_yaw(arm, yaw_of(cube()), math.pi / 2)

    def grasp():
        return down(cube()[:3, 3], yaw)

    yield from pick(arm, cube, grasp, 0.12, 0.15)
    yield from travel(arm, down([*trash.centre, arm.hand()[2, 3]], yaw), 0.02)
    yield from goto(arm, down([*trash.centre, 0.06], yaw), 0.015)
    yield from release(arm, 4)
    yield from rise(arm, 0.12)


# ---- the expert ----------------------------------------------------------------------------------

SCRIPTS = {  # task -> the script of each arm that moves
    "ur5-lift": {RIGHT: lift},
    "ur5-can": {RIGHT: can},
    "ur5-transport": {LEFT: giver, RIGHT: taker},
}


class Expert:
    """What acts on a twin that was just reset.

    variety: in [0, 1]; 0 makes the same episode of a start always. seed: chooses one of the many
    that variety makes.
    """

    def __init__(self, twin, seed, variety=0.0):
        rng = np.random.default_rng([seed, 1])  # [seed, 0] is [seed], which placed the things
        self.arms = [Arm(twin, i, rng, variety) for i in (LEFT, RIGHT)]
        told = set()  # what the arms tell each other
        scripts = SCRIPTS[twin.task]
        self.scripts = {i: script(self.arms[i], told) for i, script in scripts.items()}

    def act(self):
        """The next action (14,) float32; an arm whose script is at its end stays where it is."""
        parts = []
        for arm in self.arms:
            told = next(self.scripts.get(arm.i, iter(())), None)
            if told is not None:
                delta, noisy = told
                arm.command(arm.shaken(delta) if noisy and arm.variety else delta)
            closed = (arm.gripper + 1) / 2  # motions.py has -1 for an open gripper
            parts.append([*arm.q, closed])
        return np.concatenate(parts).astype(np.float32)
