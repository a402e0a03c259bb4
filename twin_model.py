"""The twin in numbers: the two arms, their own limits, and the things of each task.

The arms are UR5e by Universal Robots' published dimensions (Denavit and Hartenberg's parameters)
and masses. twin_build.py makes MuJoCo's model of them; nothing here needs MuJoCo.

The world's frame: x points away from the arms, y to their left, z up from the table's surface.
Lengths are metres, angles radians, times seconds, quaternions w x y z.
"""

import math
from dataclasses import dataclass, field

import numpy as np

LEFT = 0  # the numbers of the arms
RIGHT = 1
SIDES = ("left", "right")
TIMESTEP = 0.002  # of physics, in seconds: the period of an e-Series arm's own controller
RATE = 10  # actions a second
ARM = 7  # numbers of an arm in "proprio" and in an action: six joints, the gripper
HOSTS = ("127.0.0.1", "127.0.0.2")  # the addresses of the twin's arms

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

# Where the arms stand, and the angles that they start from. Their wrists are on the inner side of
# their forearms, so that they meet before the forearms do. To be the left arm's mirror image, the
# right one stands on a base that is turned round.
BASES = (((0, 0.35, 0), 0.0), ((0, -0.35, 0), math.pi))  # position, yaw
HOME = np.array(
    [
        [0, -math.pi / 2, -math.pi / 2, -math.pi / 2, math.pi / 2, 0],
        [0, -math.pi / 2, math.pi / 2, -math.pi / 2, -math.pi / 2, 0],
    ]
)
JOINT_LIMITS = np.array([[-2 * math.pi] * 6, [2 * math.pi] * 6])  # low, high: the arm's own
JOINT_SPEED = math.pi  # rad/s: the arm's own limit
TABLE = 0.0  # the height of the table's surface

CAMERAS = ("front", "left_wrist", "right_wrist")


# ---- the tasks' scenes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """The things and bins of a task, and where the things may lie at a start."""

    things: tuple  # names of THINGS
    places: dict  # thing -> ((x, y, yaw) low, (x, y, yaw) high)
    bins: dict = field(default_factory=dict)  # name -> Bin


@dataclass(frozen=True)
class Bin:
    """A box without a lid that stands on the table; `half` (2,) is half its inner size."""

    centre: tuple
    half: tuple
    height: float = 0.05

    def holds(self, position):
        """Whether a thing is inside whose middle is at a point (3,); it may look out at the top."""
        x, y, z = position
        beside = abs(x - self.centre[0]) > self.half[0] or abs(y - self.centre[1]) > self.half[1]
        return not beside and TABLE < z < TABLE + self.height + 0.02


CUBE = 0.02  # half the cube's side
CAN = (0.026, 0.05)  # the can's radius and half its height
HANDLE = (0.012, 0.11, 0.012)  # half the sizes of the hammer's handle, along its y,
HEAD = (0.030, 0.018, 0.018)  # and of its head, which is at the end toward +y
WALL = 0.006  # half the thickness of a bin's walls and bottom

SCENES = {
    "ur5-lift": Scene(
        things=("cube",),
        places={"cube": ((0.38, -0.42, -0.7), (0.58, -0.15, 0.7))},
    ),
    "ur5-can": Scene(
        things=("can",),
        places={"can": ((0.38, -0.45, -0.7), (0.58, -0.28, 0.7))},
        bins={"bin": Bin((0.48, -0.08), (0.09, 0.09))},
    ),
    "ur5-transport": Scene(
        things=("hammer", "cube"),
        places={
            "hammer": ((0.47, 0.34, -0.2), (0.53, 0.38, 0.2)),
            "cube": ((0.46, -0.42, -0.7), (0.54, -0.32, 0.7)),
        },
        bins={
            "source": Bin((0.50, 0.38), (0.12, 0.17)),
            "target": Bin((0.50, -0.38), (0.12, 0.17)),
            "trash": Bin((0.38, -0.10), (0.07, 0.07)),
        },
    ),
}


@dataclass(frozen=True)
class Thing:
    """Where a thing's origin is, and when it is left alone."""

    height: float  # of its origin where it lies on a surface
    clear: float  # how far a gripper is from its origin when it has left it


THINGS = {
    "cube": Thing(CUBE, clear=0.06),
    "can": Thing(CAN[1], clear=0.06),
    "hammer": Thing(HEAD[2] - 0.004, clear=0.12),
}
