"""Inject faults into the robot loop at random moments, and look how both arms are held.

  python tests/faults.py --moments 10 --seed 0
  python tests/faults.py --only "protective stop" "NaN chunk" --json faults.json

The loop of realrobot.py moves the two arms of ur_server.py's twin through the real client, ur_rtde,
by the wall clock: a hundred scripted chunks a second let all joints swing around home. At a random
moment the fault comes, to the left arm and to the right one by turns. Asked is that

- both arms are held in time, which means slow joints and targets that change no more,
- what the arms are held at is where their joints are,
- the events in the log are those that the fault shall have, and no others: a small violation is
  clipped, a large one is refused, the others hold or stop both arms,
- the arms keep to the limit that the policy wanted to break,
- the log has every cycle until the stop, and is whole when it is read back,
- a stop is final: it stays where the cause is gone and there are new targets.

A moment is begun anew if the loop held or stopped before the fault, which a machine without a
real-time kernel does when it is busy. A table is printed, and the exit code is 1 if anything
failed. It takes about 15 minutes on a machine that does nothing else. Linux only (127.0.0.2).
"""

import contextlib
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from commands import BadInput, Parser, above_zero, check_seed, cli
from files import atomic, check_output
from realrobot import D_A, Loop
from robot_cameras import Cameras
from robot_setup import ARMS, servo_limits
from safety import STOP, Cell, skeleton, violations
from twin_model import HOSTS
from ur5 import Arm
from ur_controller import STOPPED
from ur_server import ServerProcess

RATE = 500  # of the servos, in Hz
POLICY = 100  # chunks a second
DT = 0.1  # seconds of an action
SWING = 0.03  # rad, of every joint around home, once a second
HOME = np.concatenate([np.array(Cell.home, float), np.zeros((2, 1))], 1)  # (2, 7)

# When an arm counts as held.
SLOW = 0.02  # rad/s of every joint
CONSTANT = 0.002  # rad that a target may still change by
CLOSE = 0.02  # rad from the target to the joint
BEYOND = 0.002  # metres or rad beyond a limit: the twin's servos overshoot a little

# What ROBOT.md and servo.py promise, in seconds: written out, so that a change there is noticed.
LOOK = 0.014  # until the second thread has seen a fault, and both arms have heard of it
DOG = 0.1  # of the watchdog in each arm's own program
SILENT = 0.2  # until a process that says nothing is given up
NEWS = 3 / 30  # until a frame is too old: two periods of a camera, and the one it was in
PAUSE = 0.5  # a hold, before it becomes a stop
RECONNECT = 0.15  # for which ur_rtde blocks where it connects again by itself
SETTLE = 0.3  # in which the twin's joints, which lag by 0.1 s, come to rest at a constant target

AFTER = 0.4  # seconds for which a stop is looked at when its cause is gone
TRIES = 5  # of a moment that is disturbed before its fault


class Disturbed(Exception):
    """The loop held or stopped before the fault came."""


# ---- what moves the arms -------------------------------------------------------------------------


class Scripted:
    """A policy of scripted chunks that looks at nothing: the joints swing around home."""

    T_o = 2
    T_p = 6
    T_a = 4
    D_a = D_A
    z_scale = 1.0
    specs = {
        "front": {"shape": [8, 8, 3], "dtype": "uint8"},
        "proprio": {"shape": [D_A], "dtype": "float32"},
    }

    def __init__(self):
        self.begun = time.monotonic()
        self.path = self.swing  # times (n,) -> points (n, 2, 7)
        self.spoil = lambda chunk: chunk
        self.free = threading.Event()  # cleared: the network hangs
        self.free.set()
        self.chunks = 0

    def latent(self, n, generator):
        """There is none."""
        return 0.0

    def tensors(self, obs):
        """Nobody looks at them."""
        return obs

    def act(self, obs, z):
        """A chunk (1, T_p, D_a) of the path from now on."""
        import torch

        self.chunks += 1
        self.free.wait()
        t = time.monotonic() + DT * (np.arange(self.T_p) - self.T_o + 2)
        return torch.from_numpy(self.spoil(self.path(t).reshape(1, self.T_p, D_A)))

    def swing(self, t):
        """Points around home at times (n,), each joint with a phase of its own."""
        passed = t - self.begun
        size = SWING * np.clip(2 * passed, 0, 1)
        phases = 2 * np.pi * (passed[:, None] + np.arange(12) / 12)
        points = np.repeat(HOME[None], len(t), 0)
        points[..., :6] += (size[:, None] * np.sin(phases)).reshape(-1, 2, 6)
        return points

    def go(self, goal, speed):
        """From now on a straight line at a speed in rad/s to a goal (2, 7), and then stay there."""
        begun = time.monotonic()
        start = self.swing(np.array([begun]))[0]
        seconds = np.abs(goal - start)[:, :6].max() / speed

        def line(t):
            part = np.clip((t - begun) / seconds, 0, 1)[:, None, None]
            return start + part * (goal - start)

        self.path = line

    def lead(self, goal, speed, targets):
        """From now on lead at a speed from the arms' targets(), (2, 6), to a goal (2, 7)."""

        def led(t):
            here = np.pad(targets(), ((0, 0), (0, 1)))
            far = np.abs(goal - here)[:, :6].max()
            ahead = speed * (t - time.monotonic())
            part = np.clip(ahead / max(far, 1e-9), 0, 1)[:, None, None]
            return here + part * (goal - here)

        self.path = led


class Counted(Loop):
    """A Loop that counts its cycles by itself, beside its log."""

    counted = 0

    def cycle(self):
        """See Loop."""
        self.counted += 1
        return super().cycle()


class Rig:
    """Both arms, a camera, the scripted policy and the loop, at the arms' addresses.

    server: the twin's ServerProcess, or None in the process that is going to be killed.
    """

    def __init__(self, server, hosts, cell):
        self.server = server
        self.cell = cell
        self.sees = True
        self.pressed = True
        self.arms = [Arm(host, RATE, servo_limits(cell)) for host in hosts]
        self.cameras = Cameras({"front": self.look}, 30)
        self.policy = Scripted()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def look(self):
        """The camera."""
        return (time.monotonic(), np.zeros((8, 8, 3), np.uint8)) if self.sees else None

    def begin(self):
        """Start the arms, the camera and the loop. Raises Disturbed if an arm has a fault."""
        for arm in self.arms:
            arm.start()
        faults = [arm.state().fault for arm in self.arms]
        if any(faults):
            raise Disturbed(f"at the start: {faults}")
        self.cameras.start()
        how = {"dt": DT, "pressed": lambda: self.pressed}
        self.loop = Counted(self.policy, self.arms, self.cameras, self.cell, **how)
        self.policy.begun = time.monotonic()
        self.thread.start()

    def run(self):
        """The loop, until it stops by itself or is told to end."""
        self.loop.run(3600, hz=POLICY, until=lambda: self.ended)

    ended = False

    def end(self):
        """End the loop, and the arms' processes."""
        self.ended = True
        self.policy.free.set()
        if self.thread.is_alive():
            self.thread.join(5)
        self.cameras.close()
        for arm in self.arms:
            arm.close()

    def targets(self):
        """(2, 6): what the arms' processes sent last."""
        return np.stack([arm.state().target for arm in self.arms])


def be_killed(hosts, pipe):
    """A process with a loop of its own: it tells its arms' processes, and goes on until killed."""
    rig = Rig(None, hosts, Cell())
    try:
        rig.begin()
        pipe.send([arm.child.pid for arm in rig.arms])
    except Disturbed as e:
        pipe.send(str(e))
    time.sleep(3600)


class Program(Rig):
    """A Rig whose loop runs in another process, as realrobot.py's does, so that it can be killed.

    Its arms' targets are known by the server alone, and nothing is left of its log.
    """

    def __init__(self, server, hosts, cell):
        self.server = server
        self.cell = cell
        self.hosts = hosts
        self.loop = None
        self.children = []

    def begin(self):
        """See Rig."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=be_killed, args=(self.hosts, theirs))
        self.process.start()
        if not self.pipe.poll(60):
            raise Disturbed("at the start: the process does not answer")
        told = self.pipe.recv()
        if isinstance(told, str):
            raise Disturbed(told)
        self.children = told

    def end(self):
        """See Rig."""
        self.process.kill()
        self.process.join()
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def targets(self):
        """They are not known here."""
        return np.zeros((2, 6))


# ---- the faults ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of arm i, 0 or 1, of a Rig.

    inject: (rig, i), it comes. events: a pattern of the log's events, a line each; SIDE is the
    arm's name. within: the seconds in which it is promised that both arms hold. heal: (rig, i), its
    cause is gone again. stops: whether the loop ends by it. far: how far the arms are beyond the
    limit that is at stake, of samples. cell: of the arms, by i. rig: what runs the loop.
    """

    inject: Callable
    events: str
    within: float
    heal: Callable = lambda rig, i: None
    stops: bool = True
    far: Callable = None
    cell: Callable = lambda i: Cell()
    rig: type = Rig


def tell(*lines):
    """Say lines to the server; I in them is the arm's number."""

    def act(rig, i):
        for line in lines:
            rig.server.tell(line.replace("I", str(i)))

    return act


def put(**values):
    """Set attributes of the rig or, as policy_NAME, of its policy."""

    def act(rig, i):
        for name, value in values.items():
            there = rig.policy if name.startswith("policy_") else rig
            setattr(there, name.removeprefix("policy_"), value)

    return act


def kill(how):
    """Send an arm's process a signal."""
    return lambda rig, i: os.kill(rig.arms[i].child.pid, how)


def kill_program(rig, i):
    """End the process of the loop, and nothing else."""
    rig.process.kill()


def kill_all(rig, i):
    """End the process of the loop and those of the arms at once."""
    for pid in (*rig.children, rig.process.pid):
        os.kill(pid, signal.SIGKILL)


def hang(rig, i):
    """The network does not return any more."""
    rig.policy.free.clear()


def wake(rig, i):
    """It returns."""
    rig.policy.free.set()


def home_but(i, joint, by):
    """HOME with a joint of arm i moved: `by` is the left arm's, the right one stands mirrored."""
    point = HOME.copy()
    point[i, joint] += by * (1, -1)[i]
    return point


# The goals that are beyond a limit, and what the limit is such that they are by so much.
DOWN = (1, -0.2)  # the shoulder: the tool goes down by 10 cm
INWARD = (0, -0.2)  # the base: the tools come closer by 9 cm


def going(place, speed=1.0):
    """The policy leads to home but for a joint of arm i."""
    return lambda rig, i: rig.policy.go(home_but(i, *place), speed)


def leading(place, speed):
    """The same, but from where the arms are: a speed stays wrong, however late they come."""
    return lambda rig, i: rig.policy.lead(home_but(i, *place), speed, rig.targets)


def box(far):
    """A cell in which the goal DOWN is so far below arm i's box."""

    def cell(i):
        goal = skeleton(home_but(i, *DOWN)[i, :6], i, Cell())[-1]
        boxes = list(Cell.boxes)
        (x, y, _), high = boxes[i]
        boxes[i] = ((x, y, goal[2] + far), high)
        return Cell(boxes=tuple(boxes))

    return cell


def table(far):
    """A cell in which the goal DOWN is so far below the table."""

    def cell(i):
        return Cell(table=skeleton(home_but(i, *DOWN)[i, :6], i, Cell())[-1, 2] + far)

    return cell


def apart(far):
    """A cell in which the arms are so much too close at the goal INWARD."""

    def cell(i):
        wide = violations(home_but(i, *INWARD)[None], Cell(apart=9.0))
        return Cell(apart=9.0 - wide["distance between the arms"][0] + far)

    return cell


def space(name):
    """How far the joints are beyond a limit of space, in metres."""

    def far(rig, samples):
        points = np.pad(np.stack([sample.q for sample in samples]), ((0, 0), (0, 0), (0, 1)))
        found = violations(points, rig.cell)
        return max(beyond.max() for limit, beyond in found.items() if limit.startswith(name))

    return far


def joints(rig, samples):
    """How far the targets are beyond the joints' limits, in rad."""
    low, high = rig.cell.joints
    return max(max((low - s.setpoint).max(), (s.setpoint - high).max()) for s in samples)


def fastest(rig, samples):
    """How much the targets are faster than the limit, in rad of a tenth of a second.

    What a busy machine delays for some milliseconds then comes faster, so it is the mean of 0.2 s.
    """
    t = np.array([s.t for s in samples])
    targets = np.stack([s.setpoint for s in samples])
    later = np.searchsorted(t, t + 0.2)
    whole = later < len(t)
    if not whole.any():
        return 0.0
    moved = np.abs(targets[later[whole]] - targets[whole]).max((1, 2))
    return (0.1 * (moved / (t[later[whole]] - t[whole]) - 1.05 * rig.cell.speed)).max()


JOINTS = (-1.7, 1.7)
SPEED = 0.6  # rad/s
ACCELERATION = 6.0  # rad/s^2
TAIL = (Scripted.T_p - Scripted.T_o + 1) * DT  # seconds that a chunk reaches ahead
HELD = "held: there is no new chunk.*\n"
ENDED = "stopped: there is no new chunk.* held for 0.5 s"


def refused(words):
    """The events of chunks that are refused from now on."""
    told = rf"(chunk refused: {words}.*\n)+"
    return told + HELD + told + ENDED


def large(words, inject, **how):
    """A Fault by which all chunks are refused."""
    return Fault(inject, refused(words), TAIL + LOOK, **how)


def small(name, inject, within, **how):
    """A Fault by which chunks are clipped, and the loop goes on."""
    return Fault(inject, rf"(clipped: .*{name}.*\n?)+", within, stops=False, **how)


def stop(words, inject, within, **how):
    """A Fault that stops both arms."""
    return Fault(inject, rf"stopped: {words}.*", within, **how)


def spoiled(*ways):
    """A policy whose chunks are spoiled in a way that the moment's number chooses."""
    return lambda rig, i: setattr(rig.policy, "spoil", ways[rig.number % len(ways)])


def one_nan(chunk):
    """A chunk of which one number is none."""
    chunk = chunk.copy()
    chunk[0, 3, 5] = np.nan
    return chunk


OLD = r"(held: SIDE arm: its state is .* old\n)?"  # the loop may see it before the arm's servo does
LOST = r"((receive|control|gripper) lost|state stale|the arm's process (has ended|is silent))"

FAULTS = {
    "joint limit, small": small(
        "joint limit",
        lambda rig, i: rig.policy.go(beyond_joint(i, 0.03), 1.2),
        TAIL,
        far=joints,
        cell=lambda i: Cell(joints=JOINTS),
    ),
    "joint limit, large": large(
        r"a joint 0\.\d+ rad beyond its limit",
        lambda rig, i: rig.policy.go(beyond_joint(i, 0.15), 1.2),
        far=joints,
        cell=lambda i: Cell(joints=JOINTS),
    ),
    "speed, small": small(
        "speed",
        leading((0, 0.2), 1.3 * SPEED),
        2 * TAIL,
        far=fastest,
        cell=lambda i: Cell(speed=SPEED),
    ),
    "speed, large": large(
        "(a speed of|the first target is)",
        leading((0, 0.4), 4 * SPEED),
        far=fastest,
        cell=lambda i: Cell(speed=SPEED),
    ),
    "acceleration": small(
        "acceleration",
        going((0, 0.2), 1.2),
        2 * TAIL,
        cell=lambda i: Cell(acceleration=ACCELERATION),
    ),
    "workspace box, small": small(
        "workspace box", going(DOWN), TAIL, far=space("workspace box"), cell=box(0.01)
    ),
    "workspace box, large": large(
        "workspace box", going(DOWN), far=space("workspace box"), cell=box(0.04)
    ),
    "table, small": small("table", going(DOWN), TAIL, far=space("table"), cell=table(0.01)),
    "table, large": large("table", going(DOWN), far=space("table"), cell=table(0.04)),
    "distance between the arms, small": small(
        "distance between the arms",
        going(INWARD),
        TAIL,
        far=space("distance between the arms"),
        cell=apart(0.01),
    ),
    "distance between the arms, large": large(
        "distance between the arms",
        going(INWARD),
        far=space("distance between the arms"),
        cell=apart(0.04),
    ),
    "NaN chunk": large(
        "the chunk has numbers that are not finite",
        spoiled(lambda chunk: chunk * np.nan, one_nan),
        heal=put(policy_spoil=lambda chunk: chunk),
    ),
    "wrong-shaped chunk": large(
        "the chunk has shape",
        spoiled(lambda chunk: chunk[:, :, :13], lambda chunk: chunk[:, :-1]),
        heal=put(policy_spoil=lambda chunk: chunk),
    ),
    "stale image": Fault(
        put(sees=False),
        r"held: front: the newest frame .*\nstopped: front: .* held for 0.5 s",
        NEWS + LOOK,
        heal=put(sees=True),
    ),
    "stale state": Fault(
        kill(signal.SIGSTOP),
        r"held: SIDE arm: its state .*\nstopped: SIDE arm: the arm's process is silent.*",
        SILENT + LOOK,
    ),
    "missed policy deadline": Fault(hang, HELD + ENDED, TAIL + LOOK, heal=wake),
    "RTDE stream stalled": Fault(
        tell("stall I 1"), OLD + "stopped: SIDE arm: state stale.*", DOG + LOOK
    ),
    "RTDE closed, receive": Fault(
        tell("close I receive"), OLD + rf"stopped: SIDE arm: {LOST}.*", DOG + LOOK
    ),
    "RTDE closed, control": Fault(
        tell("close I control"), OLD + rf"stopped: SIDE arm: {LOST}.*", RECONNECT + LOOK
    ),
    "protective stop": stop(
        "SIDE arm: protective stop", tell("protective I"), LOOK, heal=tell("clear I")
    ),
    "emergency stop": stop(
        "SIDE arm: emergency stop", tell("emergency I"), LOOK, heal=tell("clear I")
    ),
    "speed scaling changed": stop(
        "SIDE arm: speed scaling changed from 1.00 to 0.50",
        tell("scaling I 0.5"),
        LOOK,
        heal=tell("scaling I 1"),
    ),
    "gripper lost": stop("SIDE arm: gripper lost", tell("close I gripper"), LOOK),
    "dead-man switch released": stop(
        "the operator's switch is released", put(pressed=False), LOOK, heal=put(pressed=True)
    ),
    "arm's process killed": stop(
        r"SIDE arm: the arm's process has ended \(exit code -9\)", kill(signal.SIGKILL), DOG + LOOK
    ),
    "program killed": Fault(kill_program, "", DOG + LOOK, rig=Program),
    "all processes killed": Fault(kill_all, "", DOG + LOOK, rig=Program),
}


def beyond_joint(i, by):
    """HOME with the shoulder of arm i so far beyond the lower one of JOINTS."""
    point = HOME.copy()
    point[i, 1] = JOINTS[0] - by
    return point


# ---- a moment ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """What both arms did at a time, all (2, 6), as the server tells but for `sent`."""

    t: float
    q: np.ndarray
    qd: np.ndarray
    setpoint: np.ndarray  # what the arm's own controller pulls toward
    sent: np.ndarray  # what its process sent last


@dataclasses.dataclass
class Moment:
    """What a fault at one moment led to. wrong: what was not as promised, in words."""

    seconds: float = np.nan  # until both arms were held
    error: float = np.nan  # rad, from a target to its joint when they are
    log: str = "–"  # whether it is whole, if there is one
    late: bool = False  # whether they were held later than promised
    wrong: list = dataclasses.field(default_factory=list)


def watch(rig, seconds, samples, until=None):
    """Add samples of both arms for some seconds, or until until() is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (until and until()):
        told = rig.server.tell("state")
        arms = {name: np.array([arm[name] for arm in told["arms"]]) for name in FIELDS}
        samples.append(Sample(told["t"], **arms, sent=rig.targets()))
        time.sleep(0.004)


FIELDS = ("q", "qd", "setpoint")


def held_at(samples):
    """The number of the first sample from which on both arms are held, or None."""
    last = samples[-1]
    held = None
    for n in range(len(samples) - 1, -1, -1):
        s = samples[n]
        moved = max(np.abs(s.setpoint - last.setpoint).max(), np.abs(s.sent - last.sent).max())
        if moved > CONSTANT or np.abs(s.qd).max() > SLOW:
            break
        held = n
    return held


def try_moment(fault, rig, i, wait):
    """A fault of arm i after `wait` seconds of a running loop -> its Moment. Raises Disturbed."""
    found = Moment()
    try:
        rig.begin()
        time.sleep(wait)
        if rig.loop and (rig.loop.log.events or rig.loop.stopped):
            raise Disturbed(str(rig.loop.log.events))
        begun = time.monotonic()
        fault.inject(rig, i)
        samples = []
        ends = fault.within + SETTLE
        if rig.loop and fault.stops:
            ends += PAUSE
            watch(rig, ends + 2, samples, until=lambda: rig.loop.stopped)
            ends = SETTLE
        watch(rig, ends, samples)
        judge_hold(found, fault, samples, begun)
        fault.heal(rig, i)
        if fault.stops:
            judge_stop(found, rig, samples, i)
        if fault.far and (far := fault.far(rig, samples)) > BEYOND:
            found.wrong.append(f"beyond the limit by {far:.4f}")
    finally:
        rig.end()
    if rig.loop:
        judge_events(found, fault, rig, i)
        judge_log(found, rig)
    return found


def judge_hold(found, fault, samples, begun):
    """Whether both arms were held in time, where their joints are."""
    n = held_at(samples)
    if n is None:
        found.wrong.append("not held")
        return
    found.seconds = samples[n].t - begun
    found.error = max(np.abs(s.setpoint - s.q).max() for s in samples[n:])
    if found.error > CLOSE:
        found.wrong.append(f"held {found.error:.3f} rad from the target")
    if found.seconds > fault.within + SETTLE:
        found.late = True
        found.wrong.append(f"held after {found.seconds:.2f} s, not {fault.within + SETTLE:.2f} s")


def judge_stop(found, rig, samples, i):
    """Whether a stop is final: the cause is gone and there are new plans, but nothing moves."""
    if rig.loop and not rig.loop.stopped:
        found.wrong.append("not stopped")
        return
    after = []
    if rig.loop:
        for arm in rig.arms:
            goal = arm.state().q + 0.1
            arm.plan([time.monotonic() + 0.2], [goal], [1.0])
    watch(rig, AFTER, after)
    moved = max(np.abs(s.q - samples[-1].q).max() for s in after)
    if moved > CONSTANT:
        found.wrong.append(f"moved by {moved:.3f} rad after the stop")
    if rig.loop:
        if rig.thread.is_alive() and rig.policy.free.is_set():
            found.wrong.append("the loop went on after the stop")
        if rig.loop.guard()[0] != STOP or not all(arm.state().fault for arm in rig.arms):
            found.wrong.append("the stop was taken back")
    else:
        arms = rig.server.tell("state")["arms"]
        if any(arm["runtime"] != STOPPED or arm["connections"] for arm in arms):
            found.wrong.append("an arm's program or connection lives on")
    samples += after


def judge_events(found, fault, rig, i):
    """Whether the log tells what the fault shall lead to, and nothing else."""
    lines = "\n".join(event["text"] for event in rig.loop.log.events)
    if not re.fullmatch(fault.events.replace("SIDE", ARMS[i]), lines):
        found.wrong.append(f"the events are: {lines!r}")


def judge_log(found, rig):
    """Whether the log has every cycle, every chunk and every event, also in its file."""
    log = rig.loop.log
    with tempfile.TemporaryDirectory() as folder:
        log.save(Path(folder, "log.npz"))
        with np.load(Path(folder, "log.npz"), allow_pickle=False) as file:
            rows = {name: file[name] for name in log.arrays()}
            events = json.loads(str(file["events"]))
    whole = (
        all(len(column) == rig.loop.counted for column in rows.values())
        and np.isfinite(rows["inferred"]).sum() == rig.policy.chunks
        and (np.diff(rows["begun"]) > 0).all()
        and events == log.events
    )
    found.log = "whole" if whole else "lost"
    if not whole:
        n = len(rows["begun"])
        found.wrong.append(f"the log has {n} cycles of {rig.loop.counted}")


# ---- many ----------------------------------------------------------------------------------------


def try_fault(name, moments, seed, hosts=HOSTS):
    """A fault at random moments -> their Moments, and how many more were disturbed before it."""
    fault = FAULTS[name]
    rng = random.Random(f"{name} {seed}")
    found = []
    disturbed = 0
    with ServerProcess("--task", "ur5-lift", "--hosts", *hosts, "--rate", RATE) as server:
        for n in range(moments):
            wait = rng.uniform(0.6, 1.6)
            for left in range(TRIES - 1, -1, -1):
                server.tell("reset 0")
                rig = fault.rig(server, hosts, fault.cell(n % 2))
                rig.number = n // 2
                try:
                    found.append(try_moment(fault, rig, n % 2, wait))
                    break
                except Disturbed as e:
                    disturbed += 1
                    if not left:
                        found.append(Moment(wrong=[f"{TRIES} times disturbed before it: {e}"]))
    return found, disturbed


def row(name, moments):
    """The table's row of a fault's Moments."""
    seconds = [m.seconds for m in moments]
    passed = sum(not m.wrong for m in moments)
    return [
        name,
        str(len(moments)),
        f"{np.median(seconds):.2f}, {np.max(seconds):.2f}",
        f"{np.max([m.error for m in moments]):.4f}",
        ", ".join(sorted({m.log for m in moments})),
        f"{passed} of {len(moments)}",
    ]


HEAD = [
    "fault",
    "moments",
    "time to hold median, max (s)",
    "error max (rad)",
    "log",
    "passed",
]


def parse(argv=None):
    """The flags of this command."""
    p = Parser(__doc__)
    p.add_argument("--moments", type=int, default=10, help="random moments of each fault")
    p.add_argument("--seed", type=int, default=0, help="seed of the moments")
    p.add_argument(
        "--only", nargs="+", choices=tuple(FAULTS), default=list(FAULTS), help="these faults alone"
    )
    p.add_argument("--json", metavar="FILE", help="write every moment there, too")
    args = p.parse_args(argv)
    above_zero(args, "moments")
    check_seed(args, "seed")
    check_output(args, "json")
    return args


def main():
    """Try the faults; exit with 1 if anything went wrong."""
    args = parse()
    if importlib.util.find_spec("rtde_control") is None:
        raise BadInput("the arms' client is missing: pip install ur_rtde==1.6.5")
    rows = [HEAD, ["---"] * len(HEAD)]
    told = {"moments": args.moments, "seed": args.seed, "load": [os.getloadavg()[0]], "faults": {}}
    failed = False
    for name in args.only:
        moments, disturbed = try_fault(name, args.moments, args.seed)
        rows.append(row(name, moments))
        told["faults"][name] = {
            "disturbed": disturbed,
            "moments": [dataclasses.asdict(moment) for moment in moments],
        }
        wrong = [f"moment {n}: {text}" for n, m in enumerate(moments) for text in m.wrong]
        failed = failed or bool(wrong)
        print(f"{name}: {rows[-1][2]} s", *wrong, sep="\n  ", flush=True)
    told["load"].append(os.getloadavg()[0])
    if args.json:
        content = json.dumps(told, indent=1, ensure_ascii=False).encode()
        atomic(args.json, lambda f: f.write(content))
    print()
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    again = sum(fault["disturbed"] for fault in told["faults"].values())
    before, after = told["load"]
    print(
        f"\nHeld: joints below {SLOW} rad/s, targets constant. {again} moments were begun anew. "
        f"Load average {before:.1f} before, {after:.1f} after, {os.cpu_count()} CPU cores."
    )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli(main)
