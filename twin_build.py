"""Builds the twin's model in MuJoCo, of the numbers in twin_model.py.

There is no file of meshes: capsules and boxes look enough like the arms, and draw fast. What takes
the place of a real arm's controller is a servo at each joint, which pulls toward a target.
"""

import math

import mujoco
import numpy as np

from twin_model import (
    BASES,
    CAN,
    CUBE,
    DH_A,
    DH_ALPHA,
    DH_D,
    GAINS,
    HANDLE,
    HEAD,
    JOINT_LIMITS,
    JOINTS,
    LINKS,
    MASSES,
    SCENES,
    SIDES,
    STROKE,
    TABLE,
    TCP,
    TIMESTEP,
    TORQUES,
    WALL,
)

# What collides with what: an arm with the other one and with things, but not with itself.
THING = {"contype": 1, "conaffinity": 7}
ARM = ({"contype": 2, "conaffinity": 4}, {"contype": 4, "conaffinity": 2})
GRIPPED = {**THING, "friction": [1.0, 0.01, 0.0001], "condim": 4}
GREY = (0.75, 0.76, 0.78, 1)
BLUE = (0.35, 0.55, 0.75, 1)
DARK = (0.15, 0.15, 0.17, 1)


# ---- the arms ------------------------------------------------------------------------------------


def about(axis, angle):
    """The quaternion of a turn by an angle about an axis (3,)."""
    return [math.cos(angle / 2), *(math.sin(angle / 2) * np.asarray(axis, float))]


def servo(spec, joint, kp, kv, force, most=None):
    """A motor that pulls a joint toward its control value, with at most `force`."""
    actuator = spec.add_actuator(name=joint, target=joint)
    actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
    actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
    actuator.gainprm[0] = kp
    actuator.biasprm[:3] = [0, -kp, -kv]
    actuator.forcelimited = 1
    actuator.forcerange = [-force, force]
    if most is not None:
        actuator.ctrllimited = 1
        actuator.ctrlrange = [0, most]


def add_capsule(body, start, end, radius, **how):
    """A capsule between two points of a body."""
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[*start, *end], size=[radius, 0, 0], **how
    )


def add_box(body, pos, half, **how):
    """A box of half sizes (3,) at a point of a body."""
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=half, **how)


def add_gripper(spec, wrist, i):
    """A gripper of two parallel jaws on an arm's flange; they move along the flange's x."""
    side = SIDES[i]
    hand = wrist.add_body(name=f"{side}_hand", pos=[0, 0, DH_D[5]], gravcomp=1)
    add_box(hand, [0, 0, 0.045], [0.055, 0.030, 0.045], mass=0.7, rgba=DARK, **ARM[i])
    hand.add_site(name=f"{side}_tcp", pos=[0, 0, TCP], size=[0.005, 0, 0], rgba=[0, 0, 0, 0])
    for name, sign in (("a", 1), ("b", -1)):
        finger = hand.add_body(name=f"{side}_finger_{name}", pos=[0, 0, 0], gravcomp=1)
        finger.add_joint(
            name=f"{side}_finger_{name}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[-sign, 0, 0],
            limited=1,
            range=[0, STROKE],
            armature=0.1,
            damping=5,
        )
        add_box(
            finger,
            [sign * (STROKE + 0.006), 0, 0.125],
            [0.006, 0.012, 0.035],
            mass=0.1,
            rgba=GREY,
            **{**GRIPPED, **ARM[i]},
        )
    equal = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT,
        objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1=f"{side}_finger_a",
        name2=f"{side}_finger_b",
    )
    equal.data[:2] = [0, 1]  # the fingers close alike, so a thing between them is held in place
    return hand


def add_arm(spec, i):
    """An arm with its gripper and the camera on its wrist."""
    side = SIDES[i]
    position, yaw = BASES[i]
    body = spec.worldbody.add_body(name=f"{side}_base", pos=position, quat=about([0, 0, 1], yaw))
    add_capsule(body, (0, 0, 0.0), (0, 0, 0.04), 0.07, rgba=DARK, contype=0, conaffinity=0)
    offset = [0, 0, 0]
    turn = 0
    for k, name in enumerate(JOINTS):
        body = body.add_body(
            name=f"{side}_{name}", pos=offset, quat=about([1, 0, 0], turn), gravcomp=1
        )
        body.add_joint(
            name=f"{side}_{name}",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, 0, 1],
            limited=1,
            range=JOINT_LIMITS[:, k],
            armature=0.1,
        )
        for start, end, radius in LINKS[k]:
            colour = BLUE if start == (0, 0, 0) else GREY
            mass = MASSES[k] / len(LINKS[k])
            add_capsule(body, start, end, radius, mass=mass, rgba=colour, **ARM[i])
        offset = [DH_A[k], 0, DH_D[k]]
        turn = DH_ALPHA[k]
        servo(spec, f"{side}_{name}", *GAINS[k], TORQUES[k])
    hand = add_gripper(spec, body, i)
    servo(spec, f"{side}_finger_a", kp=2000, kv=100, force=80, most=STROKE)
    hand.add_camera(
        name=f"{side}_wrist", pos=[0, -0.10, 0.02], quat=about([1, 0, 0], math.pi - 0.30), fovy=70
    )


def looking(eye, at):
    """The quaternion of a camera at `eye` (3,) that looks at a point (3,), with z upward."""
    back = np.subtract(eye, at) / np.linalg.norm(np.subtract(eye, at))
    right = np.cross([0, 0, 1], back)
    right = right / np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(back, right), back]).ravel())
    return quat


# ---- things and bins ----------------------------------------------------------------------------


def add_cube(body):
    """A red cube of 4 cm."""
    add_box(body, [0, 0, 0], [CUBE] * 3, rgba=[0.85, 0.15, 0.12, 1], mass=0.06, **GRIPPED)


def add_can(body):
    """A green can that stands upright."""
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[*CAN, 0],
        rgba=[0.15, 0.6, 0.25, 1],
        mass=0.15,
        **GRIPPED,
    )


def add_hammer(body):
    """A hammer that lies on the table; its origin is the middle of its handle."""
    add_box(body, [0, 0, 0], HANDLE, rgba=[0.9, 0.7, 0.1, 1], mass=0.10, **GRIPPED)
    end = HANDLE[1] + HEAD[1]
    add_box(body, [0, end, 0.004], HEAD, rgba=[0.3, 0.3, 0.35, 1], mass=0.06, **GRIPPED)


ADD = {"cube": add_cube, "can": add_can, "hammer": add_hammer}


def add_bin(spec, name, box):
    """A bin's bottom and four walls."""
    x, y = box.half
    z = box.height / 2
    body = spec.worldbody.add_body(name=name, pos=[*box.centre, TABLE])
    colour = {"rgba": [0.35, 0.40, 0.5, 1], **THING}
    add_box(body, [0, 0, WALL / 2], [x, y, WALL / 2], **colour)
    for sign in (-1, 1):
        add_box(body, [sign * (x + WALL), 0, z], [WALL, y + 2 * WALL, z], **colour)
        add_box(body, [0, sign * (y + WALL), z], [x, WALL, z], **colour)


def make_spec(task=None):
    """The arms, the table, the cameras and a task's things, as MuJoCo's editable model."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC  # what is gripped slips less
    spec.option.impratio = 10
    spec.nuserdata = 2  # how far the grippers shall close
    spec.visual.headlight.ambient = [0.3] * 3
    spec.visual.headlight.diffuse = [0.3] * 3
    spec.visual.headlight.specular = [0] * 3
    world = spec.worldbody
    middle = [0.35, 0, TABLE - 0.02]
    add_box(world, middle, [0.5, 0.9, 0.02], rgba=[0.72, 0.62, 0.5, 1], **THING)
    world.add_light(pos=[0.4, 0, 2.5], dir=[0, 0, -1], directional=True)
    # It stands in front and looks back and down at the arms.
    eye = np.array([1.10, 0, 0.80])
    world.add_camera(name="front", pos=eye, quat=looking(eye, [0.42, 0, 0.10]), fovy=62)
    for i in range(2):
        add_arm(spec, i)
    if task is not None:
        for name, box in SCENES[task].bins.items():
            add_bin(spec, name, box)
        for name in SCENES[task].things:
            body = world.add_body(name=name)
            body.add_freejoint(name=name)
            ADD[name](body)
    return spec
