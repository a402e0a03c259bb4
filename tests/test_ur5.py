"""An arm's servo and its process: what it sends, each fault by its name, and that a stop holds.

The servo's logic runs over a simulated arm in this process, by a clock that the test moves. The
arm's process, with the real client in it, is tried against the server of ur_server.py.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import ur_controller as ur
from conftest import ROOT
from servo import Limits, Reading, Servo, fault_of, refusal
from test_ur_server import PATIENCE, serve, wait_for
from ur5 import HOME, SHARED, STOPPED, Arm, FakeArm, Gripper, period_statistics, run

ONES = np.ones(6)
FINE = Reading(1.0, HOME, 0 * HOME, 0 * ONES, 0.0, ur.NORMAL, ur.RUNNING, ur.PLAYING, 1.0)
NAN = float("nan")


# ---- what is checked -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, fault",
    [
        ({}, None),
        ({"safety_bits": ur.NORMAL | ur.REDUCED}, None),
        ({"safety_bits": ur.PROTECTIVE}, "protective stop"),
        ({"safety_bits": 1 << 5}, "emergency stop"),
        ({"safety_bits": 1 << 6}, "emergency stop"),
        ({"safety_bits": ur.EMERGENCY | ur.PROTECTIVE, "mode": 3, "runtime": 1}, "emergency stop"),
        ({"safety_bits": 1 << 4}, "safety stop: status bits 0b10000"),
        ({"mode": 3, "runtime": 1}, "robot mode 3"),
        ({"runtime": ur.STOPPED}, "program stopped"),
        ({"runtime": ur.PAUSED}, "program stopped"),
        ({"scaling": 0.5}, "speed scaling changed from 1.00 to 0.50"),
        ({"scaling": 1.005}, None),
        ({"lost": "receive lost", "mode": 3}, "receive lost"),
    ],
)
def test_the_fault_that_a_reading_shows(change, fault):
    assert fault_of(replace(FINE, **change), scaling=1.0) == fault


@pytest.mark.parametrize(
    "target, words",
    [
        (HOME, None),
        (HOME + 0.49, None),
        (HOME + 0.51 * np.eye(6)[4], "joint 4 is 0.51 rad"),
        (HOME * NAN, "finite"),
        (HOME[:5], "six"),
    ],
)
def test_targets_that_are_not_sent(target, words):
    found = refusal(target, HOME, lead=0.5)
    assert found is None if words is None else words in found and found.startswith("target refused")


def test_statistics_of_periods():
    counts = np.zeros(1000, int)
    counts[20] = 98
    counts[95] = 2
    found = period_statistics(counts)
    assert [round(v, 6) for v in found.values()] == [0.00205, 0.00955]


# ---- the servo over a simulated arm --------------------------------------------------------------


class Now:
    """A clock that the test moves."""

    t = 100.0

    def __call__(self):
        return self.t


def made(**kw):
    """A FakeArm that has begun, and its clock."""
    clock = Now()
    arm = FakeArm(clock=clock, **kw)
    arm.start()
    return arm, clock


def lead(arm, clock, speed=0.5, seconds=2.0):
    """Plan a motion of all joints at a speed in rad/s, with the gripper closed at its end."""
    times = clock.t + np.linspace(0.01, seconds, 20)
    arm.plan(times, HOME + speed * (times - clock.t)[:, None], np.linspace(0, 1, 20))
    return times


def test_it_follows_the_plan():
    arm, clock = made()
    times = lead(arm, clock)
    clock.t += 1
    state = arm.state()
    assert state.target == pytest.approx(HOME + 0.5, abs=2e-3)
    assert state.q == pytest.approx(HOME + 0.5, abs=0.02)  # the lag
    assert state.t == pytest.approx(clock.t, abs=3e-3) and state.sent == pytest.approx(
        clock.t, abs=3e-3
    )
    assert state.qd == pytest.approx(0.5 * ONES, abs=1e-2)
    assert 499 <= state.cycles <= 500 and state.fault is None
    clock.t = times[-1] + 0.5
    state = arm.state()
    assert state.q == pytest.approx(HOME + 1, abs=1e-4) and state.gripper == pytest.approx(
        1, abs=1e-4
    )


def test_it_is_as_exact_at_125_hz():
    arm, clock = made(rate=125)
    lead(arm, clock)
    clock.t += 1
    assert arm.state().target == pytest.approx(HOME + 0.5, abs=8e-3)
    assert 124 <= arm.state().cycles <= 125


def test_a_hold_is_followed_by_a_new_plan():
    arm, clock = made()
    lead(arm, clock)
    clock.t += 1
    arm.hold()
    here = arm.state().target
    clock.t += 1
    assert arm.state().q == pytest.approx(here, abs=2e-3) and arm.state().fault is None
    arm.plan([clock.t + 0.5], [HOME], [0])
    clock.t += 1
    assert arm.state().q == pytest.approx(HOME, abs=1e-3)


@pytest.mark.parametrize("q", [HOME * NAN, np.zeros(5), np.full(6, np.inf)])
def test_a_chunk_that_makes_no_sense_is_refused_and_the_old_plan_goes_on(q):
    arm, clock = made()
    lead(arm, clock)
    clock.t += 0.5
    with pytest.raises(ValueError):
        arm.plan([clock.t + 0.1], [q], [0])
    clock.t += 0.5
    assert arm.state().target == pytest.approx(HOME + 0.5, abs=2e-3) and arm.state().fault is None


def test_targets_go_no_faster_than_the_arm():
    arm, clock = made(limits=Limits(speed=1.0))
    arm.plan([clock.t + 0.001], [HOME + 0.3], [0])  # a jump
    clock.t += 0.1
    assert arm.state().target == pytest.approx(HOME + 0.1, abs=3e-3)
    clock.t += 0.3
    assert arm.state().target == pytest.approx(HOME + 0.3) and arm.state().fault is None


def stalled(arm):
    arm.client.stalled = True


def lose(name):
    def act(arm):
        arm.client.lost = name

    return act


def slow_down(arm):
    arm.controller.scaling = 0.5


def other_mode(arm):
    arm.controller.mode = 5


def far_away(arm):
    arm.plan([arm.now() + 0.002, arm.now() + 0.01], np.outer([0, 2], ONES) + HOME, [0, 0])


FAULTS = {
    "protective stop": lambda arm: arm.controller.protective(),
    "protective stop, program playing": lambda arm: arm.controller.protective(ur.PLAYING),
    "emergency stop": lambda arm: arm.controller.emergency(),
    "robot mode 5": other_mode,
    "program stopped": lambda arm: arm.controller.end_program(),
    "speed scaling changed": slow_down,
    "state stale": stalled,
    "receive lost": lose("receive lost"),
    "control lost": lose("control lost"),
    "gripper lost": lose("gripper lost: the gripper does not answer"),
    "target refused": far_away,
    "the other arm": lambda arm: arm.stop("the other arm: protective stop"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named_and_the_arm_holds(name):
    arm, clock = made()
    lead(arm, clock)
    clock.t += 0.8
    before = arm.state()
    assert before.fault is None
    FAULTS[name](arm)
    clock.t += 0.5  # a stalled arm is given up after 0.05 s, and its watchdog then takes 0.1 s
    state = arm.state()
    held = arm.client.plant.q(0)
    assert state.fault.startswith(name.partition(",")[0])
    clock.t += 1
    arm.plan([clock.t + 0.1], [HOME], [0])  # nothing moves it any more
    clock.t += 1
    assert arm.state().fault == state.fault
    assert np.abs(arm.client.plant.q(0) - held).max() < 1e-3
    assert np.abs(held - before.q).max() < 0.5 * 0.25  # it had 0.5 rad/s


def test_the_first_fault_stays():
    arm, clock = made()
    arm.controller.protective()
    clock.t += 0.1
    arm.stop("something else")
    arm.controller.emergency()
    clock.t += 0.1
    assert arm.state().fault == "protective stop"


class Robot:
    """A robot of which a test says what it takes and how long that takes."""

    def __init__(self, clock):
        self.clock = clock
        self.taken = True
        self.took = 0.0
        self.stops = 0
        self.t = 0.0

    def read(self):
        self.t += 1
        return replace(FINE, robot_t=self.t)

    def servo(self, q):
        self.clock.t += self.took
        return self.taken

    def grip(self, x, now):
        pass

    def stop(self):
        self.stops += 1


def cycled(change, n=1):
    """A Servo after a good period and n periods with a change of its Robot."""
    clock = Now()
    robot = Robot(clock)
    published = []
    servo = Servo(robot, Limits(), published.append, clock)
    servo.cycle(clock.t)
    for name, value in change.items():
        setattr(robot, name, value)
    for _ in range(n):
        clock.t += 0.002
        servo.cycle(clock.t)
    return servo, robot, published


def test_commands_that_are_refused_are_a_fault_if_nothing_else_is():
    assert cycled({"taken": False}, 5)[0].fault is None
    servo, robot, _ = cycled({"taken": False}, 6)
    assert servo.fault == "command refused" and robot.stops == 1


def test_a_command_that_takes_long_means_that_the_connection_was_lost():
    servo, robot, _ = cycled({"took": 0.15})
    assert servo.fault == "control lost: a command took 150 ms"
    assert robot.stops == 0  # nothing more is said to it


def test_the_fault_is_published_before_the_arm_is_stopped():
    servo, robot, published = cycled({"taken": False}, 5)
    robot.stop = lambda: published.append("stop")
    servo.cycle(servo.clock.t)
    assert published[-2] == "stop" and published[-3]["fault"] == "command refused"


def test_one_old_reading_after_a_long_pause_is_no_fault():
    servo, robot, _ = cycled({})
    robot.read = lambda: servo.reading
    servo.cycle(servo.clock.t + 1)
    assert servo.fault is None
    for k in range(4):
        servo.cycle(servo.clock.t + 1 + 0.002 * k)
    assert servo.fault.startswith("state stale")


# ---- the arm's process and the real client -------------------------------------------------------

# How an arm's connections end if all of them do: which is seen first, or that ur_rtde crashed.
ENDS = ("receive lost", "control lost", "gripper lost", "state stale")
ENDS += ("the arm's process has ended",)
# A busy machine gives a process no CPU for longer than an arm's own limits would allow.
PATIENT = Limits(stale=1.0, gripper=5.0, silent=5.0, start=60.0, watchdog=2.0)


def test_the_end_of_an_arms_process_stops_the_arm_first():
    """Also where the parent says stop and close within one period."""
    arm, _ = made()
    shared = np.zeros(1, SHARED)[0]
    shared["stop"] = 2
    run(arm.servo, 500, shared, None)
    assert arm.servo.fault == STOPPED


@pytest.fixture(scope="module")
def served():
    """A server of two arms by a lag, and their addresses."""
    if importlib.util.find_spec("rtde_control") is None:
        pytest.skip("needs ur_rtde, see requirements-dev.txt")
    server, hosts = serve(10)
    with server:
        yield server, hosts


@pytest.fixture
def arms(served):
    """Both arms, moved by their own processes, and the server."""
    server, hosts = served
    server.tell("reset 0")
    two = [Arm(host, limits=PATIENT) for host in hosts]
    for arm in two:
        arm.start()
    try:
        assert [arm.state().fault for arm in two] == [None, None]
        yield server, two
    finally:
        for arm in two:
            arm.close()
            assert not arm.child.is_alive()


def swing(arm, seconds=60):
    """Plan a slow motion of an arm's first joint."""
    state = arm.state()
    arm.plan([time.monotonic() + seconds], [state.q + 0.05 * seconds * np.eye(6)[0]], [1.0])


def held(server, i):
    """Whether arm i stays where it is, by what the server says."""

    def still():
        before = server.tell("state")["arms"][i]
        time.sleep(0.1)
        after = server.tell("state")["arms"][i]
        moved = np.abs(np.subtract(after["q"], before["q"])).max()
        return after["setpoint"] == before["setpoint"] and moved < 1e-4

    return wait_for(still)


def fault(arm):
    """The arm's fault, which is waited for."""
    return wait_for(lambda: arm.state().fault)


def test_both_arms_follow_their_plans(arms):
    server, two = arms
    before = [arm.state() for arm in two]
    for i, arm in enumerate(two):
        now = time.monotonic()
        goals = [before[i].q + 0.05, before[i].q + 0.1 + 0.1 * i]
        arm.plan([now + 0.2, now + 0.4], goals, [0.5, 1.0])
    for i, arm in enumerate(two):
        goal = before[i].q + 0.1 + 0.1 * i
        assert wait_for(lambda arm=arm, goal=goal: np.abs(arm.state().q - goal).max() < 2e-3)
        assert wait_for(lambda arm=arm: arm.state().gripper > 0.99)
        state = arm.state()
        assert state.fault is None and state.cycles > before[i].cycles
        assert state.robot_t > before[i].robot_t and state.t <= time.monotonic()
        periods = arm.periods()
        assert 0 < periods["p50"] <= periods["p99"]
        with pytest.raises(ValueError):
            arm.plan([time.monotonic()], [HOME * NAN], [0])
    two[0].stop("right arm: protective stop")
    assert fault(two[0]) == "right arm: protective stop" and held(server, 0)
    assert two[1].state().fault is None


@pytest.mark.parametrize(
    "lines, names",
    [
        (("protective 0", "emergency 1"), ("protective stop", "emergency stop")),
        (("protective 0 2", "mode 1 3"), ("protective stop", "robot mode 3")),
        (("stop 0", "scaling 1 0.5"), ("program stopped", "speed scaling changed")),
        (("stall 0 5", "close 1 gripper"), ("state stale", "gripper lost")),
        (("close 0 receive", "ports 1 closed"), ("receive lost", ENDS)),
    ],
    ids=lambda given: " and ".join(x if isinstance(x, str) else "a loss" for x in given),
)
def test_faults_of_the_real_client(arms, lines, names):
    server, two = arms
    for arm in two:
        swing(arm)
    assert wait_for(lambda: two[0].state().qd[0] > 0.01 and two[1].state().qd[0] > 0.01)
    for line in lines:
        server.tell(line)
    for i, arm in enumerate(two):
        assert fault(arm).startswith(names[i])
        assert held(server, i)
        swing(arm)  # nothing moves it any more
        assert held(server, i)


def test_a_control_connection_that_comes_back_by_itself_is_a_fault(served):
    """ur_rtde connects again without a word, or crashes; it blocks for 0.15 s at least."""
    server, hosts = served
    server.tell("reset 0")
    arm = Arm(hosts[0], limits=replace(PATIENT, stale=0.1))
    arm.start()
    try:
        arm.state()
        swing(arm)
        server.tell("close 0 control")
        assert fault(arm)
        assert held(server, 0)
    finally:
        arm.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_end_of_the_arms_process_is_a_fault(arms, how):
    server, two = arms
    swing(two[0])
    os.kill(two[0].child.pid, how)
    words = "has ended (exit code -9)" if how == signal.SIGKILL else "is silent"
    assert words in fault(two[0])
    assert held(server, 0)  # by the arm's own watchdog
    assert wait_for(lambda: not two[0].child.is_alive())
    assert two[1].state().fault is None


PARENT = """
import sys, time
from servo import Limits
from ur5 import Arm

if __name__ == "__main__":
    arm = Arm(sys.argv[1], limits=Limits(stale=1.0, silent=5.0, start=60.0, watchdog=2.0))
    arm.start()
    state = arm.state()
    arm.plan([time.monotonic() + 60], [state.q + 3], [1.0])
    print(arm.child.pid, flush=True)
    time.sleep(600)
"""


def test_a_parent_that_is_killed_leaves_no_process_and_a_stopped_arm(served, tmp_path):
    server, hosts = served
    server.tell("reset 0")
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, hosts[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as parent:
        child = int(parent.stdout.readline())
        assert wait_for(lambda: server.tell("state")["arms"][0]["targets"] > 5)
        parent.kill()
    assert wait_for(lambda: not is_alive(child))
    assert held(server, 0)
    state = server.tell("state")["arms"][0]
    assert state["runtime"] == ur.STOPPED and state["connections"] == 0


def is_alive(pid):
    """Whether a process runs, which is no child of this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "lines, words",
    [
        ((), "no connection to"),
        (("protective 0",), "protective stop"),
        (("ports 0 closed",), "no connection to"),
    ],
)
def test_an_arm_that_cannot_be_moved_says_so_at_the_start(served, lines, words):
    server, hosts = served
    server.tell("reset 0")
    for line in lines:
        server.tell(line)
    host = hosts[0] if lines else "127.0.0.250"
    arm = Arm(host, limits=PATIENT)
    arm.start()
    try:
        assert words in arm.state().fault
    finally:
        arm.close()
        server.tell("ports 0 open")


def test_a_gripper_by_itself(served):
    server, hosts = served
    server.tell("reset 0")
    gripper = Gripper(hosts[1], PATIENCE)
    assert gripper.position == 0

    def there():
        gripper.step(0.5, time.monotonic())
        return gripper.position == 128

    assert wait_for(there)
    server.tell("close 1 gripper")
    end = time.monotonic() + PATIENCE
    with pytest.raises(OSError):
        while time.monotonic() < end:
            gripper.step(0.5, time.monotonic())
