"""Scripted experts of RoboMimic's five tasks in robosuite 1.5.1, and how they are recorded.

A script is a generator for each arm, which yields one command a control step: a delta action (6,)
and whether noise may be added to it. It is written in the words of motions.py. `told` is the set of
words that two arms have said to each other; scripts of one arm do not use it. The numbers are
metres, rad and control steps, found by trying.

The experts drive delta actions. What a file holds as the action is the goal that the controller
makes of each delta from the state before it (task_robomimic.py), so that policies drive an absolute
controller (robosuite_env.py).

`variety`: see motions.py; what looks the same from several sides is taken from one or another.
"""

import functools
import math

import numpy as np

from motions import (
    OPEN,
    TURN,
    UP,
    Arm,
    about_z,
    body,
    carried,
    close,
    down,
    fold,
    goto,
    grip_yaw,
    hold,
    is_near,
    moved,
    now,
    other_side,
    pose,
    release,
    rise,
    rotvec,
    travel,
    wait,
    yaw_of,
)
from robosuite_env import SCENES, make_raw

# ---- lift ----------------------------------------------------------------------------------------


def lift(arm, told):
    """Grasp the cube on the table and lift it."""
    cube = functools.partial(body, arm.env, "cube_main")
    yaw = grip_yaw(arm, yaw_of(cube()), math.pi / 2)

    def grasp():
        return down(cube()[:3, 3], yaw)

    yield from travel(arm, moved(grasp(), 0, 0, 0.08), 0.03, 0.3)
    yield from goto(arm, grasp, 0.008, 0.08)
    yield from close(arm, grasp, 8)
    yield from rise(arm, 0.15)


# ---- can -----------------------------------------------------------------------------------------


def can(arm, told):
    """Put the can into the bin on the other side of the wall."""
    thing = functools.partial(body, arm.env, "Can_main")
    spread = arm.rng.uniform(-1, 1) * arm.variety * math.pi / 4 if arm.variety else 0
    yaw = arm.home + spread  # a can is the same from all sides
    bin_centre = arm.env.target_bin_placements[arm.env.object_id]

    def grasp():
        return moved(down(thing()[:3, 3], yaw), 0, 0, 0.01)

    yield from travel(arm, moved(grasp(), 0, 0, 0.12), 0.03, 0.3)
    yield from goto(arm, grasp, 0.008, 0.1)
    yield from close(arm, grasp, 10)
    yield from rise(arm, 0.16)
    over = down([*bin_centre[:2], arm.hand()[2, 3]], yaw)
    over = moved(over, -0.05, -0.06, 0)  # nearer to the robot: it hardly reaches the centre
    yield from travel(arm, over, 0.02)
    yield from goto(arm, pose([*over[:2, 3], 0.90], over[:3, :3]), 0.02)
    yield from release(arm, 6)
    yield from rise(arm, 0.12)


# ---- square --------------------------------------------------------------------------------------

HANDLE = 0.06  # metres from the nut's centre along its x axis: nearer, a finger lands on the nut


def nut_yaw(arm, yaw):
    """The yaw for the nut on the peg: the nearest quarter turn whose handle the arm can reach.

    On the far side of the peg, at yaw 0, it cannot. With variety, at times the second nearest, if
    the wrist can turn that far.
    """
    options = [fold(turn, 2 * math.pi, yaw) for turn in (math.pi / 2, math.pi, -math.pi / 2)]
    nearest, second, _ = sorted(options, key=lambda turn: abs(turn - yaw))
    wrist = fold(yaw_of(arm.hand()), 2 * math.pi, arm.home) + second - yaw
    return second if other_side(arm) and abs(wrist - arm.home) < TURN else nearest


def square(arm, told):
    """Put the square nut on the square peg."""
    env = arm.env
    nut = functools.partial(body, env, "SquareNut_main")
    peg = body(env, "peg1")[:3, 3]
    yield from hold(arm, arm.hand(), 10)  # the nut drops onto the table
    across = yaw_of(nut()) + math.pi / 2  # the fingers close on the handle's sides
    yaw = fold(across, math.pi, arm.home)

    def grasp():
        return down((nut() @ [HANDLE, 0, 0, 1])[:3], yaw)

    yield from travel(arm, moved(grasp(), 0, 0, 0.10), 0.015, 0.08)
    yield from goto(arm, grasp, 0.008, 0.06, vmax=0.8)
    yield from close(arm, grasp, 10)
    yield from rise(arm, 0.15)
    on_peg = about_z(nut_yaw(arm, yaw_of(nut())))

    def at_height(z):
        return carried(arm, nut, pose([*peg[:2], z], on_peg))

    yield from travel(arm, at_height(0.99), 0.02, 0.15)
    yield from goto(arm, at_height(0.97), 0.005, 0.05)
    yield from goto(arm, at_height(0.85), 0.01, 0.2, most=25)
    yield from release(arm, 4)
    yield from rise(arm, 0.12)


# ---- tool-hang -----------------------------------------------------------------------------------

GRIP = np.array([0.04375, 0, 0.0525])  # points of the frame, in its own axes, in metres
TIP = np.array([0.04375, 0, -0.13445])
HOOK = np.array([-0.04375, 0, 0.102])  # the top of the upright end
HOLE = np.array([0, 0.045, 0.08])  # the socket's centre from the stand's
IN_SOCKET = 0.816  # the height of the tip when the frame stands
# The axes of the hand that grasps the frame, as columns in the frame's axes.
ALONG_FRAME = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
UPRIGHT = about_z(math.pi / 2)  # the frame in the socket: its hook points to -y
# Where the ring is as it slides round the hook's corner: the tool's pitch in degrees, and x and z
# in the frame's axes.
SWING = np.array([[30, -0.047, 0.088], [64, -0.041, 0.0828], [90, -0.0352, 0.0804]])


def point(T, p):
    """A point (3,) in the axes of the pose T -> in the world's."""
    return T[:3, :3] @ p + T[:3, 3]


def with_point_at(R, p, where):
    """The pose with rotation R whose point p (3,), in its own axes, is at `where` (3,)."""
    return pose(where - R @ p, R)


def back(T, distance):
    """The hand's pose T drawn back along the direction in which it points."""
    return moved(T, *(-distance * T[:3, 2]))


def grasp_frame(arm, frame):
    """Take the frame by its grip and lift it."""

    def grasp():
        return pose(point(frame(), GRIP), frame()[:3, :3] @ ALONG_FRAME)

    yield from travel(arm, back(grasp(), 0.10), 0.015, 0.08)
    yield from goto(arm, grasp, 0.005, 0.04, dwell=3, vmax=0.5)
    yield from close(arm, grasp, 10)
    yield from rise(arm, 0.25)


def insert_frame(arm, frame, hole):
    """Stand the frame in the stand's socket, with up to four more tries if it jams."""

    def tip_at(height):
        return carried(arm, frame, with_point_at(UPRIGHT, TIP, hole + height * UP))

    def tip():
        return point(frame(), TIP)

    def aligned():
        turn = np.linalg.norm(rotvec(UPRIGHT @ frame()[:3, :3].T))
        return np.linalg.norm((tip() - hole)[:2]) < 0.002 and turn < 0.02

    def lower():
        return now(tip_at(max(tip()[2] - 0.02, 0.805) - hole[2]))

    exact = {"kpos": 30, "krot": 4}
    yield from travel(arm, tip_at(0.05), 0.02, 0.15, wmax=0.6, most=150)
    for _ in range(5):
        yield from goto(arm, tip_at(0.015), 0, dwell=2, most=100, until=aligned, **exact)
        yield from goto(arm, lower, 0, most=50, until=lambda: tip()[2] < IN_SOCKET, **exact)
        if tip()[2] < IN_SOCKET:
            break
        yield from rise(arm, 0.16)
    yield from hold(arm, lambda: now(tip_at(tip()[2] - 0.005 - hole[2])), 3)


def leave_frame(arm):
    """Let the frame go and bring the hand above the tool, pointing down."""
    yield from release(arm, 8)
    # Slower or farther back, the elbow would stretch, and OSC never recovers from that.
    hand = arm.hand()
    yield from goto(arm, back(hand, 0.045), 0.028, atol=9, kpos=30)
    clear = back(hand, 0.017)
    yield from travel(arm, pose([*clear[:2, 3], 1.12], hand[:3, :3]), 0.05, most=25)
    yield from travel(arm, pose([-0.12, 0, 1.20], hand[:3, :3]), 0.04)
    yield from travel(arm, down([-0.05, -0.17, 1.12], arm.home), 0.04, 0.3)


def grasp_tool(arm, tool):
    """Take the tool by its middle, the fingers across it, and lift it."""
    across = yaw_of(tool()) + math.pi / 2
    yaw = fold(across, math.pi, arm.home)

    def grasp():
        return down(tool()[:3, 3], yaw)

    yield from travel(arm, moved(grasp(), 0, 0, 0.10), 0.02, 0.2)
    yield from goto(arm, grasp, 0.006, 0.05, dwell=2, vmax=0.5)
    yield from close(arm, grasp, 10)
    yield from rise(arm, 0.20)


def hang_tool(arm, frame, tool):
    """Put the tool's ring over the hook, and swing the tool so that the ring slides along it."""
    out = -frame()[:3, 0] * [1, 1, 0]  # horizontal, in the hook's direction, away from the frame
    out /= np.linalg.norm(out)
    ring = body(arm.env, "tool_hole1_root")
    ring = np.linalg.inv(tool())[:3] @ ring[:, 3]  # in the tool's axes

    def ring_at(where, pitch):
        """The tool pitched down by that many degrees, its handle outward, the ring at `where`."""
        c = math.cos(math.radians(pitch))
        s = math.sin(math.radians(pitch))
        x = c * out - s * UP
        z = s * out + c * UP
        R = np.column_stack([x, np.cross(z, x), z])
        return with_point_at(R, ring, where)

    def over_hook(height, inward):
        def target():
            top = point(frame(), HOOK) + height * UP - inward * out
            return now(carried(arm, tool, ring_at(top, 20)))

        return target

    yield from travel(arm, over_hook(0.10, 0), 0.012, 0.1, wmax=0.6)
    yield from goto(arm, over_hook(0.02, 0.001), 0.004, 0.04, dwell=2, kpos=30)
    yield from goto(arm, over_hook(-0.010, 0.002), 0.004, 0.1, most=25, vmax=0.4)
    still = frame()  # it turns a little in the socket: following it would turn it farther
    for pitch in [*np.linspace(20, 60, 30), *[60] * 8]:
        x = np.interp(pitch, SWING[:, 0], SWING[:, 1])
        z = np.interp(pitch, SWING[:, 0], SWING[:, 2])
        where = ring_at(point(still, np.array([x, 0, z])), pitch)
        yield from hold(arm, carried(arm, tool, where), 1, kpos=30, krot=4)
    yield from release(arm, 10)
    yield from goto(arm, back(arm.hand(), 0.12), 0.02)


def tool_hang(arm, told):
    """Stand the frame in its socket, then hang the tool on the frame's hook."""
    frame = functools.partial(body, arm.env, "frame_root")
    tool = functools.partial(body, arm.env, "tool_root")
    yield from hold(arm, arm.hand(), 10)  # the objects settle
    hole = body(arm.env, "stand_root")[:3, 3] + HOLE
    yield from grasp_frame(arm, frame)
    yield from insert_frame(arm, frame, hole)
    yield from leave_frame(arm)
    yield from grasp_tool(arm, tool)
    yield from hang_tool(arm, frame, tool)


# ---- transport -----------------------------------------------------------------------------------

ACROSS = 0.0  # yaw of hands whose fingers open along the world's x
OUTER = 0.07  # metres from the hammer's centre to a grip on its handle,
BY_HEAD = 0.058  # and on the half that has the head


def hammer_axis(T):
    """The direction (3,) of the hammer's handle towards +y, and whether its head is there."""
    z = T[:3, 2]
    return (z, True) if z[1] > 0 else (-z, False)


def hammer_grip(arm, T, side):
    """The pose of a hand on the hammer T: on its half towards +y (side 1) or -y (side -1)."""
    axis, head = hammer_axis(T)
    off = BY_HEAD if head == (side > 0) else OUTER
    across = math.atan2(axis[1], axis[0]) + math.pi / 2
    return down(T[:3, 3] + side * off * axis, fold(across, math.pi, arm.home))


def pick(arm, thing, grasp, above, after, **how):
    """Grasp a thing and lift it, with up to three more tries if it stays behind."""
    for _ in range(4):
        yield from travel(arm, moved(grasp(), 0, 0, above), 0.02, 0.1)
        yield from goto(arm, grasp, 0.008, 0.06, vmax=0.6, **how)
        yield from close(arm, grasp, 8)
        yield from travel(arm, after(), 0.03, most=40)
        if thing()[2, 3] > 0.93:
            return
        arm.gripper = OPEN


def take_lid_off(arm):
    """Put the lid of the bin with the hammer on the table."""
    handle = arm.env.transport.lid_handle_pos
    yaw = fold(ACROSS, math.pi, arm.home)
    yield from travel(arm, down(handle + 0.08 * UP, yaw), 0.015, 0.08)
    yield from goto(arm, down(handle, yaw), 0.008, 0.05, dwell=2, vmax=0.6)
    yield from close(arm, down(handle, yaw), 8)
    yield from rise(arm, 0.10, 0.02)
    aside = arm.hand()[:3, 3] * [0, 1, 1] + [-0.2, 0, 0]
    yield from travel(arm, down(aside, yaw), 0.02)
    yield from goto(arm, down([*aside[:2], 0.83], yaw), 0.012, vmax=0.8)
    yield from release(arm, 6)
    yield from rise(arm, 0.20, 0.04)


def giver(arm, told):
    """Transport's first arm: open the bin, take the hammer out and hand it over."""
    hammer = functools.partial(body, arm.env, "payload_root")
    yaw = fold(ACROSS, math.pi, arm.home)

    def grasp():
        return hammer_grip(arm, hammer(), -1)

    def lifted():
        return down(arm.hand()[:3, 3] + 0.24 * UP, yaw)

    def at_meeting():
        middle = np.array([0, 0, 1.05])  # of the hammer, wherever the hand holds it
        return down(middle + arm.hand()[:3, 3] - hammer()[:3, 3], yaw)

    yield from take_lid_off(arm)
    yield from pick(arm, hammer, grasp, 0.18, lifted, dwell=3)
    yield from travel(arm, at_meeting, 0.03)
    yield from goto(arm, at_meeting, 0.012, 0.05, dwell=3)
    told.add("ready")
    meeting = arm.hand()
    yield from wait(arm, meeting, told, "held")
    yield from release(arm, 8)
    yield from rise(arm, 0.10)
    told.add("clear")
    yield from travel(arm, moved(meeting, 0, -0.25, 0.10), 0.03)


def throw_cube_away(arm):
    """Put the cube that is in the target bin into the trash bin."""
    cube = functools.partial(body, arm.env, "trash_main")
    bin_at = arm.env.transport.trash_bin_pos
    yaw = grip_yaw(arm, yaw_of(cube()), math.pi / 2)

    def grasp():
        return down(cube()[:3, 3], yaw)

    def lifted():
        return moved(arm.hand(), 0, 0, 0.22)

    yield from pick(arm, cube, grasp, 0.18, lifted, dwell=2)
    height = arm.hand()[2, 3]
    yield from travel(arm, down([*bin_at[:2], height], yaw), 0.02)
    yield from goto(arm, down([*bin_at[:2], 0.90], yaw), 0.02)
    yield from release(arm, 6)
    # Aside and not straight up, which would fold the elbow.
    aside = [bin_at[0] - 0.03, bin_at[1] - 0.06, 1.02]
    yield from travel(arm, down(aside, yaw), 0.04, most=40)


def taker(arm, told):
    """Transport's second arm: empty the target bin, take the hammer over and put it in."""
    transport = arm.env.transport
    hammer = functools.partial(body, arm.env, "payload_root")
    yaw = fold(ACROSS, math.pi, arm.home)

    def grasp():
        return hammer_grip(arm, hammer(), 1)

    def over_bin(z):
        def target():
            to = (transport.target_bin_pos - hammer()[:3, 3])[:2]
            return down([*(arm.hand()[:2, 3] + to), z], yaw)

        return target

    def landed():
        hand = arm.hand()
        low = hand[2, 3] < 0.865 and transport.payload_in_target_bin
        return low or is_near(arm, now(over_bin(0.84)), 0.015, 0.1)

    yield from throw_cube_away(arm)
    aside = down([0, 0.17, 1.15], yaw)
    yield from travel(arm, aside, 0.03)
    yield from wait(arm, aside, told, "ready")
    yield from travel(arm, moved(grasp(), 0, 0, 0.08), 0.03)
    yield from goto(arm, moved(grasp(), 0, 0, 0.08), 0.012, 0.06)
    yield from goto(arm, grasp, 0.008, 0.06, dwell=2, vmax=0.6)
    yield from close(arm, grasp, 8)
    told.add("held")
    yield from wait(arm, arm.hand(), told, "clear")  # pulling now would drag the head through
    yield from travel(arm, moved(arm.hand(), 0, 0.15, 0), 0.03)
    yield from travel(arm, over_bin(1.10), 0.02)
    yield from goto(arm, over_bin(0.84), 0.015, most=80, until=landed)
    yield from hold(arm, arm.hand(), 4)
    yield from release(arm, 10)
    yield from rise(arm, 0.15)


# ---- a demonstration -----------------------------------------------------------------------------

SCRIPTS = {  # task -> the script of each arm
    "lift": [lift],
    "can": [can],
    "square": [square],
    "transport": [giver, taker],
    "tool-hang": [tool_hang],
}
AFTER = {"transport": 15}  # steps kept after the first success: the hand that holds opens then


@functools.lru_cache(1)
def simulator(name):
    """The task's simulator with delta actions, made once a process."""
    return make_raw(name)


def commands(arms, scripts):
    """The delta action (7 an arm) of this step: what the scripts say, with noise on travels."""
    parts = []
    for arm, script in zip(arms, scripts):
        delta, noisy = next(script, (np.zeros(6), False))  # an arm whose script has ended stays
        if noisy and arm.variety:
            delta = arm.shaken(delta)
        parts += [np.clip(delta, -1, 1), [arm.gripper]]
    return np.concatenate(parts)


def start(name, seed):
    """Put the task's simulator to the start of a seed -> it."""
    env = simulator(name)
    before = np.random.get_state()
    np.random.seed(seed)  # robosuite draws from numpy's own random numbers
    env.reset()
    np.random.set_state(before)
    return env


def demonstration(name, seed, variety=0.0):
    """One episode of a task's expert from a start seed; None if it did not succeed.

    Returns "delta" (L, 7 an arm), the actions, and "states" (L, flattened), the simulator's before
    each of them. The episode ends AFTER steps past its first success. variety: in [0, 1]; 0 makes
    the same episode always.
    """
    env = start(name, seed)
    rng = np.random.default_rng([seed, 0])
    arms = [Arm(env, i, rng, variety) for i in range(len(env.robots))]
    told = set()  # what the arms tell each other
    scripts = [script(arm, told) for script, arm in zip(SCRIPTS[name], arms)]
    states = []
    deltas = []
    solved = 0  # steps since the first success, that one included
    while len(states) < SCENES[name].steps and solved <= AFTER.get(name, 0):
        states.append(env.sim.get_state().flatten())
        deltas.append(commands(arms, scripts))
        _, reward, _, _ = env.step(deltas[-1])
        if solved or reward > 0:
            solved += 1
    return {"delta": np.stack(deltas), "states": np.stack(states)} if solved else None
