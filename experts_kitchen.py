"""Scripted experts of the kitchen's seven sub-tasks, and how they are recorded.

A script is a generator that yields one command a control step, in the words of motions.py: a twist
of the hand (6,) in m/s and rad/s. `rest` yields joint velocities (7,) in rad/s instead. The numbers
are metres, degrees and control steps, found by trying.

The hand is the point between the fingertips. Its pose's x axis points up, y along the fingers'
opening, to the right, and z forward, when the hand faces the kitchen.
"""

import functools
import math

import numpy as np

from motions import Arm, goto, hold, moved, pose, travel

OPEN = 0.04  # m, the fingers' targets
CLOSED = 0.0
DT = 0.08  # seconds of a control step
DAMPING = 0.1  # of the pseudo-inverse
POSTURE = 0.5  # 1/s, how fast the arm's spare joint goes back to where it began
LEAD = 0.16  # rad or m that a target may be ahead of the reading: a velocity action of 1
GAINS = {"kpos": 12, "krot": 5, "wmax": 3}  # 1/s and rad/s
FORWARD = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # a hand that faces the kitchen
AHEAD = np.array([0, 1, 0])


# ---- the hand ------------------------------------------------------------------------------------


class Hand:
    """The arm of a simulator, its fingers' command, and how much it varies.

    env: a Kitchen, reset. rng: numpy's generator for the variety in [0, 1].
    """

    shaken = Arm.shaken

    def __init__(self, env, rng, variety):
        self.env = env
        self.model = env.model
        self.data = env.data
        self.site = env.model.site("end_effector").id
        self.rng = rng
        self.variety = variety
        self.gripper = OPEN
        self.noise = np.zeros(6)
        self.home = self.joints()

    def joints(self):
        """The arm's joints (7,), as they are."""
        return self.data.qpos[:7].copy()

    def hand(self):
        """The hand's pose."""
        data = self.data
        return pose(data.site_xpos[self.site], data.site_xmat[self.site].reshape(3, 3))

    def place(self, site):
        """Where a site of the model is (3,)."""
        return self.data.site(site).xpos.copy()

    def angle(self, joint):
        """The position of a thing's joint."""
        return float(self.data.joint(joint).qpos[0])

    def along(self, joint, point, turn):
        """Where a point (3,) of what hangs on a hinge is after a further turn of it, in rad."""
        from scipy.spatial.transform import Rotation

        i = self.model.joint(joint).id
        anchor = self.data.xanchor[i]
        return anchor + Rotation.from_rotvec(turn * self.data.xaxis[i]).apply(point - anchor)

    def velocities(self, twist):
        """The joint velocities (7,) that move the hand by a twist (6,): damped least squares.

        The spare freedom draws the joints to where they began.
        """
        import mujoco

        J = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, J[:3], J[3:], self.site)
        J = J[:, :7]
        inverse = J.T @ np.linalg.inv(J @ J.T + DAMPING**2 * np.eye(6))
        to_home = POSTURE * (self.home - self.joints())
        return inverse @ twist + (np.eye(7) - inverse @ J) @ to_home

    def targets(self, velocities):
        """The joint targets (9,) that make the arm move so, as far as its motors' forces allow.

        A motor's force is its gain times how far the target is ahead of the joint. It bears the
        gravity and overcomes the damping. If one joint lacks force all move slower, so that the
        hand keeps its direction. Targets are numbers of 16 bits, which files store well.
        """
        model = self.model
        gravity = self.data.qfrc_bias[:7]
        damping = model.dof_damping[:7]
        fastest = (model.actuator_forcerange[:7, 1] - np.abs(gravity)) / damping
        velocities = velocities * min(1, 1 / max(np.abs(velocities / fastest).max(), 1e-9))
        force = gravity + 0.9 * damping * velocities
        ahead = force / model.actuator_gainprm[:7, 0] + DT * velocities
        reading = self.env.reading[:9]
        target = np.append(self.joints() + ahead, 2 * [self.gripper])
        return np.clip(target, reading - LEAD, reading + LEAD).astype(np.float16)


def facing(yaw=0, pitch=0, roll=0):
    """The rotation of a hand that faces the kitchen, turned by degrees.

    yaw: to the left; pitch: up; roll: about where it points, clockwise for the hand.
    """
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("ZXY", [yaw, pitch, roll], degrees=True).as_matrix() @ FORWARD


# ---- the words of the scripts --------------------------------------------------------------------


def reach(hand, where, rotation, back=0.10, along=None):
    """Bring the open hand before a place (3,), `back` metres off, and then there.

    along: the direction in which it goes in; where it points if not given.
    """
    hand.gripper = OPEN
    along = rotation[:, 2] if along is None else along
    before = pose(where - back * along, rotation)
    yield from travel(hand, before, 0.03, 0.25, most=40, **GAINS)
    yield from goto(hand, pose(where, rotation), 0.015, 0.2, most=40, **GAINS)


def grasp(hand, where, rotation, steps=3):
    """Close the fingers at a place (3,)."""
    hand.gripper = CLOSED
    yield from hold(hand, pose(where, rotation), steps, **GAINS)


def drive(hand, target, done, most=60):
    """Follow a target, a function that leads on, until `done()`."""
    yield from goto(hand, target, 0, until=done, most=most, **GAINS)


def leave(hand, direction=AHEAD):
    """Open the fingers and draw the hand back from where it points, or from the kitchen."""
    hand.gripper = OPEN
    away = moved(hand.hand(), *(-0.10 * direction))
    yield from goto(hand, away, 0.04, 9, most=15, **GAINS)


def rest(hand, tol=0.7, most=25):
    """Turn the arm's joints toward where they began, until none is more than `tol` rad off.

    Otherwise the spare joint may end where the next sub-task is out of reach.
    """
    for _ in range(most):
        missing = hand.home - hand.joints()
        if np.abs(missing).max() < tol:
            return
        yield 4 * missing, False


# ---- the seven sub-tasks -------------------------------------------------------------------------


def microwave(hand):
    """Open the microwave's door by its handle."""
    rotation = facing(yaw=45, pitch=-30)

    def handle():
        return hand.place("microhandle_site")

    def ahead():
        return pose(hand.along("microwave", handle(), -0.12), rotation)

    yield from reach(hand, handle(), rotation)
    yield from grasp(hand, handle(), rotation)
    yield from drive(hand, ahead, lambda: hand.angle("microwave") < -0.5)
    yield from leave(hand)


def light_switch(hand):
    """Turn the light's switch to the left."""
    rotation = facing()

    def lever():
        return hand.place("light_site")

    def ahead():
        return pose(hand.along("light_switch", lever(), -1.2), rotation)

    yield from reach(hand, lever(), rotation)
    yield from grasp(hand, lever(), rotation)
    yield from drive(hand, ahead, lambda: hand.angle("light_switch") < -0.5)
    yield from leave(hand)


def burner(number, hand):
    """Turn a burner's knob clockwise: 2 of the bottom burner, 4 of the top one."""
    where = hand.place(f"knob{number}_site") - 0.035 * AHEAD  # the fingertips do not touch its disc
    joint = f"knob_Joint_{number}"

    def ahead():
        return pose(where, facing(roll=60 - math.degrees(hand.angle(joint))))

    yield from reach(hand, where, facing())
    yield from grasp(hand, where, facing())
    yield from drive(hand, ahead, lambda: hand.angle(joint) < -0.68)
    yield from leave(hand)


def slide_cabinet(hand):
    """Push the sliding door to the right by the lower part of its bar."""
    rotation = facing(yaw=-45)

    def bar():
        return hand.place("slide_site") - [0, 0, 0.05]

    def ahead():
        return pose(bar() + np.array([0.07, 0, 0]), rotation)

    yield from reach(hand, bar(), rotation)
    yield from grasp(hand, bar(), rotation)
    yield from drive(hand, ahead, lambda: hand.angle("slide_cabinet") > 0.2)
    yield from leave(hand)


def hinge_cabinet(hand):
    """Open the right hinged door by the lower end of its bar."""
    rotation = facing(yaw=-15)

    def bar():
        return hand.place("hinge_site2") - [0, 0, 0.15]

    def ahead():
        return pose(hand.along("right_hinge_cabinet", bar(), 0.26), rotation)

    yield from reach(hand, bar(), rotation, along=AHEAD)
    yield from grasp(hand, bar(), rotation)
    yield from drive(hand, ahead, lambda: hand.angle("right_hinge_cabinet") > 1.18, most=80)
    yield from leave(hand)


def kettle(hand):
    """Lift the kettle a little by the left post of its handle, carry it back, set it down."""
    rotation = facing(pitch=-25)
    body = hand.data.body("kettle").xpos
    turn = hand.data.body("kettle").xmat.reshape(3, 3)  # the arm may have pushed it aside

    def post():
        return body + turn @ [-0.092, 0, 0.2]

    def lifted():
        return pose([*post()[:2], 1.88], rotation)

    yield from reach(hand, post(), rotation, back=0.12)
    yield from grasp(hand, post(), rotation, steps=4)
    yield from drive(hand, lifted, lambda: body[2] > 1.635, most=25)
    yield from drive(hand, pose([-0.322, 0.75, 1.855], rotation), lambda: body[1] > 0.63, most=40)
    hand.gripper = OPEN
    yield from hold(hand, moved(hand.hand(), 0, 0, -0.02), 4, **GAINS)
    yield from leave(hand, hand.hand()[:3, 2])  # else a finger takes the post along


SCRIPTS = {
    "bottom burner": functools.partial(burner, 2),
    "top burner": functools.partial(burner, 4),
    "light switch": light_switch,
    "slide cabinet": slide_cabinet,
    "hinge cabinet": hinge_cabinet,
    "microwave": microwave,
    "kettle": kettle,
}


# ---- a demonstration -----------------------------------------------------------------------------


def script(hand, names):
    """The commands of the sub-tasks of these names, in this order."""
    for i, name in enumerate(names):
        if i:
            yield from rest(hand)
        yield from SCRIPTS[name](hand)


def possible(names):
    """The order with the slide cabinet before the hinge cabinet, whose open door hides its bar."""
    names = list(names)
    if {"slide cabinet", "hinge cabinet"} <= set(names):
        slide = names.index("slide cabinet")
        hinge = names.index("hinge cabinet")
        names[min(slide, hinge)] = "slide cabinet"
        names[max(slide, hinge)] = "hinge cabinet"
    return names


def demonstration(env, names, seed, variety=0.0):
    """The sub-tasks of these names, in a `possible` order, as one episode; None if any failed.

    Returns "qpos" (L, 30), the true positions before each step, and "action" (L, 9), the joint
    targets. The episode ends when the hand has left the last. env: a Kitchen of targets. seed: of
    the sensors' noise and of the variety. variety: in [0, 1]; with 0 the hand takes no detours.
    """
    _, told = env.reset(seed=seed)
    hand = Hand(env, np.random.default_rng([seed, 2]), variety)
    steps = []
    for command, noisy in script(hand, possible(names)):
        if noisy and variety:
            command = hand.shaken(command)
        velocities = command if len(command) == 7 else hand.velocities(command)
        target = hand.targets(velocities)
        steps.append({"qpos": told["state"], "action": target.astype(np.float32)})
        *_, told = env.step(target)
        if len(steps) == env.task.steps:
            break
    if not set(names) <= set(told["done"]):
        return None
    return {key: np.stack([step[key] for step in steps]) for key in steps[0]}
