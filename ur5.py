"""The side of realrobot.py that touches hardware: a UR arm and its gripper.

  arm = Arm("192.168.1.10", rate=500)
  arm.start()
  arm.state()                   what the arm does now, a State
  arm.plan(times, q, grip)      overwrite the future of the arm's plan, see plan.py
  arm.hold()                    stay where the plan is
  arm.stop("left arm: ...")     stop for good: a person looks first, then starts anew
  arm.close()

Each arm has a child process of its own, in which ur_rtde lives: that client may crash when a
connection breaks (note 53). The child reads the plan at the arm's own rate, at absolute times, and
sends joint targets (servoJ). Its state comes back through shared memory, whose reader sees either
all of a state or none.

A fault is named in State.fault and stays. The child then stops the arm; where the connection is
lost, it says no more, and the arm's own watchdog stops it within 0.1 s. Nothing is ever reset or
connected again by itself. What a fault of one arm means for the other one, realrobot.py decides.

A child imports the main script anew, so that should not import slow packages at its top.
`FakeArm` has the same methods and simulates the arm in this process. servo.py is what both run.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import threading
import time
from dataclasses import fields

import numpy as np

from plan import checked
from servo import Limits, Reading, Servo, State, fault_of
from twin_model import TIMESTEP
from ur_controller import (
    CLEAR,
    PLAYING,
    SERVO_J,
    SERVO_STOP,
    SET_WATCHDOG,
    Controller,
    Lag,
)

# What ur_rtde asks the arm for: what Client.read needs.
VARIABLES = [
    "timestamp",
    "actual_q",
    "actual_qd",
    "actual_TCP_pose",
    "safety_status_bits",
    "robot_mode",
    "runtime_state",
    "speed_scaling",
    "target_speed_fraction",
]
GRIPPER_PORT = 63352
STOPPED = "stopped"  # the child's fault where the parent knows the reason
BIN = 1e-4  # seconds, the width of a bin in which periods are counted
BINS = 1000
HOME = np.array([0, -np.pi / 2, -np.pi / 2, -np.pi / 2, np.pi / 2, 0])  # where a FakeArm starts


# ---- the hardware --------------------------------------------------------------------------------


class Gripper:
    """A Robotiq gripper by the text protocol of its URCap. Never waits once it is connected.

    patience: seconds until it must have answered. Raises OSError if the gripper is not there, not
    activated, or lost.
    """

    def __init__(self, host, patience):
        self.patience = patience
        self.sock = socket.create_connection((host, GRIPPER_PORT), timeout=2)
        if self.ask("GET STA") != "STA 3":  # activating it would move it
            raise OSError("the gripper is not active: activate it on the arm's teach pendant")
        self.ask("SET GTO 1 SPE 255 FOR 100")
        self.position = int(self.ask("GET POS").split()[1])  # 0 open .. 255 closed
        self.sock.setblocking(False)
        self.told = self.position
        self.looked = True  # whether the last question was where it is
        self.received = b""
        self.asked = None  # when the question was sent that is not yet answered
        self.next = 0.0  # when the next one may be sent

    def ask(self, line):
        """Send a line and wait for the answer."""
        self.sock.sendall(line.encode() + b"\n")
        answer = self.sock.recv(100)
        if not answer:
            raise OSError("the gripper closed the connection")
        return answer.decode().strip()

    def step(self, x, now):
        """Send the gripper to x, 0 .. 1, or ask where it is; take what it has answered."""
        with contextlib.suppress(BlockingIOError):
            data = self.sock.recv(100)
            if not data:
                raise OSError("the gripper closed the connection")
            self.received += data
        while b"\n" in self.received:
            line, _, self.received = self.received.partition(b"\n")
            self.asked = None
            if line.startswith(b"POS "):
                self.position = int(line.split()[1])
        if self.asked is not None and now - self.asked > self.patience:
            raise OSError("the gripper does not answer")
        if self.asked is None and now >= self.next:
            wanted = round(255 * min(max(x, 0), 1))
            question = f"SET POS {wanted}" if wanted != self.told and self.looked else "GET POS"
            self.looked = question == "GET POS"  # by turns, or a long motion would not be seen
            if not self.looked:
                self.told = wanted
            self.sock.send(question.encode() + b"\n")
            self.asked = now
            self.next = now + 0.01


class Client:
    """ur_rtde's two clients of one arm, and its gripper. Raises OSError or RuntimeError.

    lookahead, gain: of servoJ: how smoothly and how hard the arm follows.
    """

    def __init__(self, host, rate, limits, gripper=True, lookahead=0.1, gain=300):
        import rtde_control
        import rtde_receive

        self.how = (0, 0, 1 / rate, lookahead, gain)
        self.lost = ""
        self.control = None
        self.gripper = Gripper(host, limits.gripper) if gripper else None
        self.receive = rtde_receive.RTDEReceiveInterface(host, rate, VARIABLES)
        fault = fault_of(self.read())
        if fault not in (None, "program stopped"):  # the program would not start
            raise OSError(fault)
        self.control = rtde_control.RTDEControlInterface(host, rate)
        begun = time.monotonic()
        while self.read().runtime != PLAYING and time.monotonic() < begun + 1:
            time.sleep(1 / rate)
        if not self.control.setWatchdog(limits.watchdog):
            raise OSError("the arm's watchdog cannot be set")

    def read(self):
        """The newest Reading."""
        if not self.receive.isConnected():
            self.lost = "receive lost"
        elif self.control and not self.control.isConnected():
            self.lost = "control lost"
        return Reading(
            robot_t=self.receive.getTimestamp(),
            q=np.array(self.receive.getActualQ()),
            qd=np.array(self.receive.getActualQd()),
            tcp=np.array(self.receive.getActualTCPPose()),
            gripper=self.gripper.position / 255 if self.gripper else 0.0,
            safety_bits=self.receive.getSafetyStatusBits(),
            mode=self.receive.getRobotMode(),
            runtime=self.receive.getRuntimeState(),
            scaling=self.receive.getSpeedScaling() * self.receive.getTargetSpeedFraction(),
            lost=self.lost,
        )

    def servo(self, q):
        """Send a target (6,) -> whether ur_rtde took it, which does not say that the arm moves."""
        try:
            return self.control.servoJ(q.tolist(), *self.how)
        except (RuntimeError, ValueError) as e:  # it could not connect again, or a number of `how`
            self.lost = f"control lost: {e}"
            return False

    def grip(self, x, now):
        """Send the gripper to x, 0 open .. 1 closed."""
        if self.gripper:
            try:
                self.gripper.step(x, now)
            except (OSError, ValueError) as e:
                self.lost = f"gripper lost: {e}"

    def stop(self):
        """Decelerate, and stay."""
        self.control.servoStop()

    def close(self):
        """End the program on the arm."""
        self.control.stopScript()


# ---- the arm's process ---------------------------------------------------------------------------

ARRAYS = ("q", "qd", "tcp", "target")
WHOLE = ("safety_bits", "mode", "runtime", "cycles")
RECORD = np.dtype(
    [(f.name, "f8", 6) for f in fields(State) if f.name in ARRAYS]
    + [(f.name, "i8") for f in fields(State) if f.name in WHOLE]
    + [(name, "f8") for name in ("t", "robot_t", "gripper", "scaling", "sent", "grip")]
    + [("fault", "S120")]
)
# sequence is odd while the state is written; stop is 1 for a stop, 2 for the end of the process.
SHARED = np.dtype(
    [
        ("sequence", "i8"),
        ("published", "f8"),
        ("stop", "i8"),
        ("state", RECORD),
        ("periods", "i8", BINS),
    ]
)


def publish(shared, state):
    """Write a state, a dict, into the shared memory; what it lacks stays as it was."""
    shared["sequence"] += 1
    for name, value in state.items():
        shared["state"][name] = (value or "").encode() if name == "fault" else value
    shared["published"] = time.monotonic()
    shared["sequence"] += 1


def read_shared(shared):
    """A whole record from the shared memory; one that is being written is read again."""
    for _ in range(200):
        before = int(shared["sequence"])
        record = shared["state"].copy()
        if before % 2 == 0 and before == shared["sequence"]:
            break
        time.sleep(1e-4)  # the writer may wait for this processor
    return record  # of a child that was killed while it wrote, what there is


def end_after_parent():
    """End this process two seconds after its parent, whatever it does then."""
    multiprocessing.parent_process().join()
    time.sleep(2)
    os._exit(1)


def serve(host, rate, limits, options, buffer, pipe):
    """The child process of an arm: connect, then servo until a stop, a loss, or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then says stop
    threading.Thread(target=end_after_parent, daemon=True).start()
    shared = np.frombuffer(buffer, SHARED)[0]
    try:
        robot = Client(host, rate, limits, **options)
    except (ImportError, OSError, RuntimeError, ValueError) as e:
        publish(shared, {"fault": f"no connection to {host}: {e}"})
        return
    servo = Servo(robot, limits, functools.partial(publish, shared))
    run(servo, rate, shared, pipe)
    if not servo.is_lost():
        robot.close()
    os._exit(0)  # ur_rtde's own end takes a second, and may crash or never come


def run(servo, rate, shared, pipe):
    """Call the servo at absolute times, and hear what the parent says, until the end."""
    last = due = time.monotonic()
    while not servo.is_lost() and shared["stop"] < 2:
        due += 1 / rate
        time.sleep(max(0, due - time.monotonic()))
        now = time.monotonic()
        due += int((now - due) * rate) / rate  # whole periods that were missed are left out
        shared["periods"][min(int((now - last) / BIN), BINS - 1)] += 1
        last = now
        try:
            while pipe.poll():
                obey(servo, pipe.recv_bytes(), now)
        except (EOFError, OSError):
            servo.fail("the parent process has ended", now)
            return
        if shared["stop"]:
            servo.fail(STOPPED, now)
        servo.cycle(now)
    servo.fail(STOPPED, time.monotonic())  # nothing, if there is a fault


def obey(servo, message, now):
    """Take the parent's message: a plan (n, 8) of times, joints and grips, or nothing to hold."""
    points = np.frombuffer(message).reshape(-1, 8)
    if len(points) == 0:
        servo.plan.hold(now)
    else:
        servo.plan.overwrite(points[:, 0], points[:, 1:7], points[:, 7], now)


class Arm:
    """A UR arm with a Robotiq gripper, moved by a child process; see this file's head.

    host: its address. rate: 500 of an e-Series arm, 125 of a CB3. limits: a Limits. options:
    gripper (False: there is none), lookahead and gain, see Client.
    """

    def __init__(self, host, rate=500, limits=None, **options):
        self.host = host
        self.rate = rate
        self.limits = limits or Limits()
        self.options = options
        self.child = None
        self.fault = None  # what this side found or was told

    def start(self):
        """Start the child. The first call of `state` waits for it."""
        context = multiprocessing.get_context("spawn")
        buffer = context.RawArray("b", SHARED.itemsize)
        self.shared = np.frombuffer(buffer, SHARED)[0]
        self.pipe, theirs = context.Pipe()
        args = (self.host, self.rate, self.limits, self.options, buffer, theirs)
        self.child = context.Process(target=serve, args=args, daemon=True)
        self.child.start()
        theirs.close()
        self.begun = time.monotonic()

    def state(self):
        """The newest State. A fault of the child, or its end, is in it too."""
        while self.shared["published"] == 0 and self.find_fault() is None:
            time.sleep(0.005)
        fault = self.find_fault()
        values = dict(zip(RECORD.names, read_shared(self.shared).item()))
        own = values["fault"].decode("utf-8", "replace")
        values["fault"] = (fault or own or None) if own in ("", STOPPED) else own
        return State(**values)

    def periods(self):
        """The servo's periods so far: {"p50", "p99"} in seconds."""
        return period_statistics(self.shared["periods"].copy())

    def find_fault(self):
        """What this side knows of a fault, or None."""
        alive = self.child.is_alive()
        silence = time.monotonic() - max(self.shared["published"], self.begun)
        patience = self.limits.silent if self.shared["published"] else self.limits.start
        if self.fault is None and not alive:
            self.fault = f"the arm's process has ended (exit code {self.child.exitcode})"
        elif self.fault is None and silence > patience:
            self.fault = f"the arm's process is silent for {silence:.1f} s"
            self.child.kill()
        return self.fault

    def plan(self, times, q, grip):
        """Overwrite the plan's future; ValueError as of Plan.overwrite: it then goes on.

        times (n,): time.monotonic(), rising; q (n, 6) in rad; grip (n,), 0 open .. 1 closed.
        """
        times, points = checked(times, q, grip)
        self.send(np.column_stack([times, points]).tobytes())

    def hold(self):
        """Stay where the plan is now, until there is a new one."""
        self.send(b"")

    def send(self, message):
        """Send the child a message, unless it would not be read: then the fault tells."""
        if self.find_fault() is None:
            with contextlib.suppress(OSError):
                self.pipe.send_bytes(message)

    def stop(self, reason):
        """Stop the arm for good; does not wait for it. The reason becomes the fault of the arm."""
        if self.find_fault() is None:
            self.fault = reason
        self.shared["stop"] = max(1, self.shared["stop"])

    def close(self):
        """Stop the arm and end its process."""
        if self.child is None:
            return
        self.stop("closed")
        self.shared["stop"] = 2
        self.child.join(3)
        self.child.kill()
        self.child.join()
        self.pipe.close()


def period_statistics(counts):
    """Quantiles of the periods whose bins were counted, in seconds."""
    below = np.cumsum(counts)
    at = {"p50": 0.5, "p99": 0.99}
    return {name: (np.searchsorted(below, x * below[-1]) + 0.5) * BIN for name, x in at.items()}


# ---- a simulated arm -----------------------------------------------------------------------------


class FakeClient:
    """What a Servo needs of a Client, over a simulated Controller of arm i of a plant.

    lost: set it to a fault of a connection. stalled: set it, and nothing is heard or arrives.
    """

    def __init__(self, plant, i, limits, clock):
        self.plant = plant
        self.i = i
        self.controller = Controller(plant, i, clock)
        self.controller.begin_program()
        self.controller.doubles = {0: limits.watchdog}
        self.command(SET_WATCHDOG)
        self.command(CLEAR)
        self.lost = ""
        self.stalled = False
        self.values = self.controller.values(clock())
        self.clock = clock

    def read(self):
        """The newest Reading."""
        if not self.stalled:
            self.values = self.controller.values(self.clock())
        values = self.values
        return Reading(
            robot_t=values["timestamp"][0],
            q=values["actual_q"],
            qd=values["actual_qd"],
            tcp=values["actual_TCP_pose"],
            gripper=self.plant.gripper(self.i),
            safety_bits=values["safety_status_bits"][0],
            mode=values["robot_mode"][0],
            runtime=values["runtime_state"][0],
            scaling=values["speed_scaling"][0] * values["target_speed_fraction"][0],
            lost=self.lost,
        )

    def command(self, n):
        """Give the arm a command."""
        self.controller.ints[0] = n
        self.controller.command()

    def servo(self, q):
        """Send a target (6,) -> True, also where it does not arrive, unless the program is over."""
        if self.stalled:
            return True
        self.controller.doubles = dict(enumerate(q))
        self.command(SERVO_J)
        return self.controller.runtime == PLAYING

    def grip(self, x, now):
        """Send the gripper to x."""
        self.plant.grip(self.i, x)

    def stop(self):
        """Stay."""
        self.command(CLEAR)
        self.command(SERVO_STOP)


class FakeArm:
    """An Arm without a process or a network, for fast tests of what uses one.

    It lives through the time until `clock()` whenever it is called. Faults: by its `controller`, a
    Controller, and its `client`, a FakeClient. home (6,): where it starts. plant: a Lag of its own
    if not given, else it is arm i of it.
    """

    def __init__(
        self, host="", rate=500, limits=None, *, home=HOME, clock=time.monotonic, plant=None, i=0
    ):
        self.host = host
        self.rate = rate
        self.limits = limits or Limits()
        self.clock = clock
        self.time = clock()  # until when the arm has lived
        self.client = FakeClient(plant or Lag([home]), i, self.limits, self.now)
        self.controller = self.client.controller

    def now(self):
        """The arm's own time."""
        return self.time

    def start(self):
        """Begin to servo."""
        self.time = self.clock()
        self.servo = Servo(self.client, self.limits, lambda state: None, self.now)

    def live(self):
        """Let the arm's time pass until the clock's."""
        period = 1 / self.rate
        while self.time + period <= self.clock():
            self.time += period
            self.controller.update(period)
            self.client.plant.step(round(period / TIMESTEP))
            self.servo.cycle(self.time)

    def state(self):
        """The newest State."""
        self.live()
        return State(**self.servo.state())

    def periods(self):
        """They are all alike, see Arm.periods."""
        return dict.fromkeys(("p50", "p99"), 1 / self.rate)

    def plan(self, times, q, grip):
        """Overwrite the plan's future, see Arm.plan."""
        self.live()
        self.servo.plan.overwrite(times, q, grip, self.time)

    def hold(self):
        """Stay where the plan is now, until there is a new one."""
        self.live()
        self.servo.plan.hold(self.time)

    def stop(self, reason):
        """Stop the arm for good."""
        self.live()
        self.servo.fail(reason, self.time)

    def close(self):
        """Stop the arm."""
        self.stop("closed")
