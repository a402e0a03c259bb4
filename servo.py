"""The servo of a robot's arm: at every period it reads the arm, looks for faults, sends a target.

It knows no network and no process: ur5.py runs it in an arm's own process, or over a simulated arm.
What it holds for a fault is a text, whose beginning names the kind:

  emergency stop, protective stop, safety stop   by the arm's safety status bits
  robot mode N, program stopped                  the arm cannot move
  speed scaling changed                          somebody moved the speed slider
  state stale                                    the arm's clock stands still
  receive lost, control lost, gripper lost       a connection
  target refused, command refused                not sent, or not taken
"""

import time
from dataclasses import dataclass, fields

import numpy as np

from plan import Plan
from ur_controller import EMERGENCY, NORMAL, PLAYING, PROTECTIVE, REDUCED, RUNNING

# Faults that end all talk with the arm: ur_rtde might crash, block, or connect again (note 53).
LOST = ("state stale", "receive lost", "control lost")


@dataclass(frozen=True)
class Limits:
    """What an arm's servo checks by itself, beside the limits of realrobot.py."""

    stale: float = 0.05  # seconds without a new time stamp of the arm, or of one command
    gripper: float = 0.5  # seconds without an answer of the gripper
    silent: float = 0.2  # seconds without a word of the arm's process
    start: float = 15  # seconds until the first state
    lead: float = 0.5  # rad that a target may be from where its joint is
    speed: float = 3.2  # rad/s at which targets move at most: the arm's own limit is 3.14
    watchdog: float = 10  # commands a second without which the arm stops by itself


@dataclass(frozen=True)
class Reading:
    """What an arm tells of itself."""

    robot_t: float  # seconds of the arm's own clock
    q: np.ndarray  # (6,) rad
    qd: np.ndarray  # (6,) rad/s
    tcp: np.ndarray  # (6,) the tool in the arm's base frame: metres, rotation vector
    gripper: float  # 0 open .. 1 closed
    safety_bits: int
    mode: int  # 7: the arm runs
    runtime: int  # 2: the program runs
    scaling: float  # of the full speed, 0 .. 1: the slider's share times the limiter's
    lost: str = ""  # which connection is lost


@dataclass(frozen=True)
class State:
    """What an arm does. All times but robot_t are time.monotonic()."""

    t: float  # when the newest reading came
    robot_t: float  # that reading, see there
    q: np.ndarray
    qd: np.ndarray
    tcp: np.ndarray
    gripper: float
    safety_bits: int
    mode: int
    runtime: int
    scaling: float
    sent: float  # when the newest target was sent
    target: np.ndarray  # (6,) that target
    grip: float  # where the gripper was sent
    cycles: int  # periods of the servo so far
    fault: str | None  # what went wrong first, or why it was stopped


# ---- what is checked at every period -------------------------------------------------------------


def fault_of(reading, scaling=None):
    """The fault that a reading shows, or None.

    scaling: the speed scaling that is expected; None: any will do.
    """
    bits = reading.safety_bits
    if reading.lost:
        return reading.lost
    if bits & EMERGENCY:
        return "emergency stop"
    if bits & PROTECTIVE:
        return "protective stop"
    if bits & ~(NORMAL | REDUCED):
        return f"safety stop: status bits {bits:#b}"
    if reading.mode != RUNNING:
        return f"robot mode {reading.mode}"
    if reading.runtime != PLAYING:
        return "program stopped"
    if scaling is not None and abs(reading.scaling - scaling) > 0.01:
        return f"speed scaling changed from {scaling:.2f} to {reading.scaling:.2f}"
    return None


def refusal(target, q, lead):
    """Why a target must not be sent to an arm at joint angles q (6,), or None."""
    if np.shape(target) != (6,) or not np.isfinite(target).all():
        return "target refused: not six finite numbers"
    far = np.abs(target - q)
    if far.max() > lead:
        joint = int(far.argmax())
        return f"target refused: joint {joint} is {far[joint]:.2f} rad from where it shall be"
    return None


class Servo:
    """Sends the plan's targets to an arm, one a period, until there is a fault.

    robot: a Client or a FakeClient. publish: is called with what `state` returns.
    clock: time.monotonic, or a simulated one.
    """

    def __init__(self, robot, limits, publish, clock=time.monotonic):
        self.robot = robot
        self.limits = limits
        self.publish = publish
        self.clock = clock
        now = clock()
        self.reading = robot.read()
        self.scaling = self.reading.scaling
        self.plan = Plan(now, self.reading.q, self.reading.gripper)
        self.target, self.grip = self.plan.at(now)
        self.sent = now
        self.news = now  # when the newest reading came
        self.old = 0  # readings since then that were not new
        self.refused = 0  # commands that were refused in a row
        self.cycles = 0
        self.fault = None

    def cycle(self, now):
        """One period: read, look for faults, send a target, publish."""
        self.cycles += 1
        reading = self.robot.read()
        new = reading.robot_t != self.reading.robot_t
        self.old = 0 if new else self.old + 1
        if new:
            self.news = now
        self.reading = reading
        if self.fault is None:
            fault = fault_of(reading, self.scaling) or self.staleness(now) or self.move(now)
            if fault:
                self.fail(fault, now)
        self.publish(self.state())

    def staleness(self, now):
        """The fault that the arm's clock has stood still for too long, or None.

        A few readings must agree: after a single long pause of this process the first one may be
        old because the client's thread had no time either.
        """
        age = now - self.news
        if self.old > 3 and age > self.limits.stale:
            return f"state stale: no news for {1000 * age:.0f} ms"
        return None

    def move(self, now):
        """Send the plan's target -> a fault, or None."""
        wanted, grip = self.plan.at(now)
        fault = refusal(wanted, self.reading.q, self.limits.lead)
        if fault:
            return fault
        most = self.limits.speed * (now - self.sent)
        target = self.target + np.clip(wanted - self.target, -most, most)
        begun = self.clock()
        taken = self.robot.servo(target)
        took = self.clock() - begun
        if took > self.limits.stale:  # ur_rtde connected again, or the program does not answer
            return f"control lost: a command took {1000 * took:.0f} ms"
        self.refused = 0 if taken else self.refused + 1
        if self.refused > 5:  # the reading tells the reason in the meantime, if there is one
            return "command refused"
        if taken:
            self.target = target
            self.sent = now
        self.grip = grip
        self.robot.grip(grip, now)
        return None

    def fail(self, fault, now):
        """Stop the arm for good. The fault is published first, since stopping takes a while."""
        if self.fault is not None:
            return
        self.fault = fault
        self.plan.hold(now)
        self.publish(self.state())
        if not self.is_lost():
            self.robot.stop()

    def is_lost(self):
        """Whether the arm can no longer be talked to."""
        return self.fault is not None and self.fault.startswith(LOST)

    def state(self):
        """The State as a dict."""
        reading = {f.name: getattr(self.reading, f.name) for f in fields(Reading)}
        del reading["lost"]
        return {
            **reading,
            "t": self.news,
            "sent": self.sent,
            "target": self.target,
            "grip": self.grip,
            "cycles": self.cycles,
            "fault": self.fault,
        }
