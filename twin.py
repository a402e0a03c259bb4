"""The twin: two simulated UR5e arms with parallel grippers at a table, in MuJoCo.

The arms are built here from Universal Robots' published dimensions (Denavit and Hartenberg's
parameters) and masses; no file of meshes is needed, and capsules and boxes draw fast. What takes
the place of a real arm's controller is a servo at each joint, which pulls toward a target:

  twin = Twin("ur5-lift", seed=0)
  twin.target(RIGHT, q)      joint angles (6,) that the servos of an arm pull toward
  twin.grip(RIGHT, 1.0)      close the gripper
  twin.step(50)              50 physics steps of 2 ms
  twin.q(RIGHT)              the measured joint angles (6,)

The world's frame: x points away from the arms, y to their left, z up from the table's surface.
Lengths are metres, angles radians, times seconds, quaternions w x y z. Time is simulated: nothing
here looks at a clock, and the same calls give the same numbers, to the bit.
"""

import functools
import math

import mujoco
import numpy as np

LEFT = 0  # the numbers of the arms
RIGHT = 1
SIDES = ("left", "right")
TIMESTEP = 0.002  # of physics, in seconds: the period of an e-Series arm's own controller

# UR5e, of Universal Robots' "DH parameters for calculations of kinematics and dynamics".
DH_A = (0, -0.425, -0.3922, 0, 0, 0)
DH_D = (0.1625, 0, 0, 0.1333, 0.0997, 0.0996)
DH_ALPHA = (math.pi / 2, 0, 0, math.pi / 2, -math.pi / 2, 0)
MASSES = (3.761, 8.058, 2.846, 1.37, 1.3, 0.365)  # kg
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
TORQUES = (150, 150, 150, 28, 28, 28)  # N m
GAINS = ((2000, 200),) * 3 + ((500, 50),) * 3  # of each joint's servo: N m/rad, N m s/rad
# The links' housings, as capsules (from, to, radius) in the frame of the link's joint.
UPPER = 0.138  # how far the upper arm and the forearm are beside the shoulder's plane
LOWER = 0.007
LINKS = (
    [((0, 0, 0.08), (0, 0, 0.1625), 0.06)],
    [
        ((0, 0, 0), (0, 0, UPPER), 0.058),
        ((0, 0, UPPER), (-0.425, 0, UPPER), 0.052),
    ],
    [
        ((0, 0, LOWER), (0, 0, UPPER), 0.055),
        ((0, 0, LOWER), (-0.3922, 0, LOWER), 0.043),
    ],
    [((0, 0, 0.02), (0, 0, 0.1333), 0.042)],
    [((0, 0, 0), (0, 0, 0.0997), 0.042)],
    [((0, 0, 0.02), (0, 0, 0.08), 0.038)],
)
# A finger's travel from open to closed, and the tool centre point before the flange: between the
# pads, 1 cm from their tips.
STROKE = 0.0425
TCP = 0.150
GRIP_SPEED = 0.1  # m/s of a finger

# Where the arms stand, and the angles that they start from. The left arm is the mirror image of the
# right one, so its base is turned round.
BASES = (((0, 0.45, 0), math.pi), ((0, -0.45, 0), 0.0))  # position, yaw
HOME = np.array(
    [
        [0, -math.pi / 2, math.pi / 2, -math.pi / 2, -math.pi / 2, 0],
        [0, -math.pi / 2, -math.pi / 2, -math.pi / 2, math.pi / 2, 0],
    ]
)
# What the robot loop holds the arms within.
JOINT_LIMITS = np.array([[-2 * math.pi] * 6, [2 * math.pi] * 6])  # low, high: the arm's own
JOINT_SPEED = math.pi  # rad/s: the arm's own limit
TABLE = 0.0  # the height of the table's surface
WORKSPACE = np.array(  # of each arm's tool centre point, in the world: low, high
    [
        [[0.15, -0.20, 0.005], [0.80, 0.85, 0.60]],
        [[0.15, -0.85, 0.005], [0.80, 0.20, 0.60]],
    ]
)
APART = 0.10  # the least distance of the two tool centre points

CAMERAS = ("front", "left_wrist", "right_wrist")
# What collides with what: an arm with the other one and with things, but not with itself.
THING = {"contype": 1, "conaffinity": 7}
ARM = ({"contype": 2, "conaffinity": 4}, {"contype": 4, "conaffinity": 2})
GREY = (0.75, 0.76, 0.78, 1)
BLUE = (0.35, 0.55, 0.75, 1)
DARK = (0.15, 0.15, 0.17, 1)


# ---- the model -----------------------------------------------------------------------------------


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
            friction=[1.2, 0.01, 0.0001],
            condim=4,
            **ARM[i],
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
        name=f"{side}_wrist", pos=[0, 0.09, 0.0], quat=about([1, 0, 0], math.pi - 0.35), fovy=70
    )


def make_spec():
    """The arms, the table, the lights and the cameras, as MuJoCo's editable model."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    spec.nuserdata = 2  # how far the grippers shall close
    world = spec.worldbody
    add_box(world, [0.35, 0, -0.02], [0.5, 0.9, 0.02], rgba=[0.72, 0.62, 0.5, 1], **THING)
    world.add_light(pos=[0.4, 0, 2.5], dir=[0, 0, -1], directional=True)
    # It stands in front and looks back and down at the arms.
    eye = np.array([1.35, 0, 0.95])
    world.add_camera(name="front", pos=eye, quat=looking(eye, [0.35, 0, 0.08]), fovy=50)
    for i in range(2):
        add_arm(spec, i)
    return spec


def looking(eye, at):
    """The quaternion of a camera at `eye` (3,) that looks at a point (3,), with z upward."""
    back = np.subtract(eye, at) / np.linalg.norm(np.subtract(eye, at))
    right = np.cross([0, 0, 1], back)
    right = right / np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(back, right), back]).ravel())
    return quat


# ---- the twin ------------------------------------------------------------------------------------


class Twin:
    """Two arms, their grippers and cameras, and the things of a task; None: no things.

    An arm is named by its number, LEFT or RIGHT. A gripper's value is from 0, open, to 1, closed.
    """

    def __init__(self, task=None, seed=0, size=96):
        self.task = task
        self.size = size  # pixels of a picture's side
        self.model = make_spec().compile()
        self.data = mujoco.MjData(self.model)
        self.scratch = mujoco.MjData(self.model)  # for kinematics of other angles
        self.joints = []  # of each arm: where its angles begin in qpos, and in qvel
        for side in SIDES:
            joint = self.model.joint(f"{side}_{JOINTS[0]}")
            self.joints.append((joint.qposadr[0], joint.dofadr[0]))
        self.sites = [self.model.site(f"{side}_tcp").id for side in SIDES]
        self.fingers = [self.model.joint(f"{side}_finger_a").qposadr[0] for side in SIDES]
        self.reset(seed)

    def reset(self, seed):
        """Put the arms to their home and the things to the places of a seed."""
        mujoco.mj_resetData(self.model, self.data)
        for i in range(2):
            first, _ = self.joints[i]
            self.data.qpos[first : first + 6] = HOME[i]
            self.target(i, HOME[i])
        mujoco.mj_forward(self.model, self.data)

    # ---- time

    @property
    def time(self):
        """Simulated seconds since the reset."""
        return self.data.time

    def step(self, n=1):
        """Run n physics steps of 2 ms; all poses are up to date afterwards."""
        for _ in range(n):
            for i in range(2):
                # A gripper moves at its own speed toward what it was told.
                k = 7 * i + 6
                far = STROKE * self.data.userdata[i] - self.data.ctrl[k]
                most = GRIP_SPEED * TIMESTEP
                self.data.ctrl[k] += min(max(far, -most), most)
            mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    # ---- an arm

    def q(self, i):
        """The measured joint angles (6,) of arm i."""
        first, _ = self.joints[i]
        return self.data.qpos[first : first + 6].copy()

    def qd(self, i):
        """The joint velocities (6,) of arm i, in rad/s."""
        _, first = self.joints[i]
        return self.data.qvel[first : first + 6].copy()

    def target(self, i, q):
        """Have the servos of arm i pull toward joint angles (6,)."""
        self.data.ctrl[7 * i : 7 * i + 6] = q

    def gripper(self, i):
        """How far gripper i is closed: 0 open, 1 closed."""
        return float(self.data.qpos[self.fingers[i]] / STROKE)

    def grip(self, i, x):
        """Have gripper i move to 0 (open) .. 1 (closed), at its own speed."""
        self.data.userdata[i] = min(max(float(x), 0.0), 1.0)

    def tcp(self, i):
        """The tool centre point of arm i in the world: position (3,), quaternion (4,)."""
        return pose_of(self.data, self.sites[i])

    # ---- kinematics

    def fk(self, i, q):
        """Where joint angles (6,) bring the tool centre point: position (3,), quaternion (4,)."""
        self._place(i, q)
        return pose_of(self.scratch, self.sites[i])

    def ik(self, i, position, rotation, q0, steps=50, damping=0.02):
        """Joint angles (6,) near q0 that bring the tool centre point to a pose in the world.

        position (3,); rotation: a matrix (3, 3). Damped least squares on the model; where a pose is
        out of reach, the nearest that was found. `fk` tells.
        """
        q = np.array(q0, float)
        _, first = self.joints[i]
        jacobian = np.empty((6, self.model.nv))
        for _ in range(steps):
            self._place(i, q)
            here = self.scratch.site_xmat[self.sites[i]].reshape(3, 3)
            missing = np.concatenate(
                [position - self.scratch.site_xpos[self.sites[i]], rotvec(rotation @ here.T)]
            )
            if np.abs(missing).max() < 1e-7:
                break
            mujoco.mj_jacSite(self.model, self.scratch, jacobian[:3], jacobian[3:], self.sites[i])
            J = jacobian[:, first : first + 6]
            square = damping**2 * min(1.0, np.linalg.norm(missing)) * np.eye(6)
            step = J.T @ np.linalg.solve(J @ J.T + square, missing)
            q += step * min(1.0, 0.5 / max(np.abs(step).max(), 1e-12))
        return np.clip(q, *JOINT_LIMITS)

    def _place(self, i, q):
        """Bring the scratch data's poses to joint angles (6,) of arm i."""
        first, _ = self.joints[i]
        self.scratch.qpos[first : first + 6] = q
        mujoco.mj_kinematics(self.model, self.scratch)
        mujoco.mj_comPos(self.model, self.scratch)

    # ---- pictures

    @functools.cached_property
    def renderer(self):
        """What draws the cameras. Raises BadInput if there is no OpenGL."""
        from renderer import Renderer

        return Renderer(self.model, dict.fromkeys(CAMERAS, (self.size, self.size)))

    def draw(self, camera):
        """What a camera sees now: (size, size, 3) uint8."""
        return self.renderer.draw(self.data.qpos, camera)


def pose_of(data, site):
    """A site's position (3,) and quaternion (4,) with w >= 0."""
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, data.site_xmat[site])
    return data.site_xpos[site].copy(), quat if quat[0] >= 0 else -quat


def rotvec(R):
    """The axis-angle vector (3,) of a rotation matrix (3, 3)."""
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.asarray(R, float).ravel())
    vector = np.empty(3)
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector
