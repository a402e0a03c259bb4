"""The simulated UR arms: what their controller does, what they say, and the real client with them.

Each process of tests has addresses of its own, so that two of them do not meet on the fixed ports.
"""

import functools
import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

import ur_controller as ur
from commands import BadInput
from conftest import ROOT, cli
from twin import Twin
from ur_server import ServerProcess, Table
from ur_wire import DASHBOARD, GRIPPER, RTDE, SCRIPT, type_of

HOME = np.array([0.1, -1.2, 1.3, -1.4, -1.5, 0.6])
PROGRAM = b"def rtde_control():\n  pass\nend\n"
PATIENCE = 30  # seconds, on a busy machine


def hosts_of(n):
    """Two addresses of this machine that no other process of tests has."""
    pid = os.getpid()
    return [f"127.{64 + pid % 128}.{pid // 128 % 256}.{2 * n + i}" for i in (1, 2)]


def serve(n, *flags):
    """A ServerProcess at addresses of its own, and these; skips where there are none."""
    hosts = hosts_of(n)
    try:
        with socket.socket() as sock:
            sock.bind((hosts[0], 0))
    except OSError:
        pytest.skip("this system has no address but 127.0.0.1 for itself (Linux has them)")
    return ServerProcess("--hosts", *hosts, *flags), hosts


@pytest.fixture(scope="module")
def served():
    """A server of two arms by a lag, and their addresses; each test resets it."""
    server, hosts = serve(0)
    with server:
        yield server, hosts


def wait_for(condition):
    """The first true value of condition(), or its last one."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


# ---- the controller, without a network -----------------------------------------------------------


class Now:
    """A clock that stands."""

    t = 0.0

    def __call__(self):
        return self.t


def made(playing=True):
    """A Controller over a Lag, and its clock."""
    clock = Now()
    arm = ur.Controller(ur.Lag([HOME]), 0, clock)
    if playing:
        arm.begin_program()
    return arm, clock


def command(arm, n, *doubles):
    """Write the registers as a client does."""
    arm.doubles = dict(enumerate(doubles))
    arm.ints[0] = n
    arm.command()


def live(arm, seconds):
    """Let simulated time pass."""
    for _ in range(round(seconds / ur.TIMESTEP)):
        arm.clock.t += ur.TIMESTEP
        arm.update(ur.TIMESTEP)
        arm.plant.step()


def test_the_arm_follows_servo_targets():
    arm, _ = made()
    command(arm, ur.SERVO_J, *(HOME + 0.1))
    live(arm, 0.5)
    assert arm.plant.q(0) == pytest.approx(HOME + 0.1, abs=1e-4)
    assert arm.answer == ur.READY and arm.counts["targets"] == 1


@pytest.mark.parametrize("scaling, moved", [(1, np.pi / 10), (0.5, np.pi / 20), (0, 0)])
def test_no_joint_is_faster_than_it_can_and_the_slider_slows_it(scaling, moved):
    arm, _ = made()
    arm.scaling = scaling
    command(arm, ur.SERVO_J, *(HOME + 2))
    live(arm, 0.1)
    assert arm.setpoint - HOME == pytest.approx(np.full(6, moved))


def test_a_command_is_done_once_until_it_is_cleared():
    arm, _ = made()
    command(arm, ur.JOINTS_SAFE)
    assert (arm.answer, arm.result) == (ur.DONE, 1)
    command(arm, ur.PROTECTIVE_STOP)
    assert arm.safety == ur.NORMAL
    command(arm, ur.CLEAR)
    assert arm.answer == ur.READY
    command(arm, ur.PROTECTIVE_STOP)
    assert arm.safety == ur.PROTECTIVE and arm.runtime == ur.PAUSED


def test_move_j_is_done_when_the_arm_is_there():
    arm, _ = made()
    command(arm, ur.MOVE_J, *(HOME + 0.2), 1.0, 1.0)
    live(arm, 0.1)
    assert arm.answer == ur.CLEAR
    assert arm.setpoint[0] == pytest.approx(HOME[0] + 0.1)
    live(arm, 0.3)
    assert arm.answer == ur.DONE and arm.plant.q(0) == pytest.approx(HOME + 0.2, abs=2e-3)


def test_the_watchdog_stops_the_arm_where_it_is():
    arm, _ = made()
    command(arm, ur.SET_WATCHDOG, 10.0)
    command(arm, ur.SERVO_J, *(HOME + 2))
    live(arm, 0.09)
    assert arm.runtime == ur.PLAYING
    live(arm, 0.02)
    held = arm.setpoint
    assert arm.runtime == ur.STOPPED
    live(arm, 1)
    assert arm.setpoint.tolist() == held.tolist()


@pytest.mark.parametrize("how", ["protective", "emergency", "end_program", "servo stop", "unknown"])
def test_a_stop_holds_the_arm_where_it_is(how):
    arm, _ = made()
    command(arm, ur.SERVO_J, *(HOME + 2))
    live(arm, 0.2)
    if how in ("servo stop", "unknown"):
        command(arm, ur.CLEAR)
        command(arm, ur.SERVO_STOP if how == "servo stop" else 99)
    else:
        getattr(arm, how)()
    here = arm.plant.q(0)
    live(arm, 0.5)
    assert np.abs(arm.plant.q(0) - here).max() < 1e-9
    assert (arm.runtime == ur.PLAYING) == (how == "servo stop")


def test_targets_that_are_no_numbers_stop_the_arm():
    arm, _ = made()
    command(arm, ur.SERVO_J, *HOME[:5], float("nan"))
    live(arm, 0.1)
    assert arm.safety == ur.PROTECTIVE and arm.plant.q(0).tolist() == HOME.tolist()


def test_without_a_program_nothing_moves_and_a_stopped_arm_begins_none():
    arm, _ = made(playing=False)
    command(arm, ur.SERVO_J, *(HOME + 1))
    live(arm, 0.1)
    assert arm.plant.q(0).tolist() == HOME.tolist()
    arm.protective()
    arm.begin_program()
    assert arm.runtime != ur.PLAYING
    arm.reset()
    arm.begin_program()
    assert arm.runtime == ur.PLAYING and arm.counts["programs"] == 1


# ---- the wire ------------------------------------------------------------------------------------


def connect(host, port):
    """A connection with time to wait."""
    return socket.create_connection((host, port), timeout=PATIENCE)


def package(kind, body=b""):
    """One RTDE package."""
    return struct.pack("!HB", 3 + len(body), ord(kind)) + body


def receive(sock):
    """The next RTDE package: its kind, its body."""
    head = sock.recv(3, socket.MSG_WAITALL)
    size, kind = struct.unpack("!HB", head)
    return chr(kind), sock.recv(size - 3, socket.MSG_WAITALL)


def asked(sock, kind, body=b""):
    """The body of the answer to a package."""
    sock.sendall(package(kind, body))
    answer = receive(sock)
    assert answer[0] == kind
    return answer[1]


@pytest.mark.parametrize("name", ["timestamp", "speed_scaling", "input_double_register_7"])
def test_types_of_numbers(name):
    assert type_of(name) == "DOUBLE"


def test_the_handshake_of_rtde(served):
    server, hosts = served
    with connect(hosts[1], RTDE) as sock:
        assert asked(sock, "V", b"\0\2") == b"\1"
        assert struct.unpack("!4I", asked(sock, "v"))[0] == 5
        assert asked(sock, "I", b"input_int_register_0,") == b"\1INT32"
        assert asked(sock, "I", b"input_int_register_0,input_double_register_0") == (
            b"\2INT32,DOUBLE"
        )
        names = b"timestamp,actual_q,robot_mode,nonsense,safety_status_bits,"
        found = asked(sock, "O", struct.pack("!d", 500) + names)
        assert found == b"\1DOUBLE,VECTOR6D,INT32,NOT_FOUND,UINT32"
        names = b"timestamp,actual_q,robot_mode,runtime_state,joint_mode"
        asked(sock, "O", struct.pack("!d", 500) + names)
        assert asked(sock, "S") == b"\1"
        kind, body = receive(sock)
        values = struct.unpack("!B7di I6i", body)
        assert kind == "U" and values[0] == 1 and values[8:10] == (7, 1)
        assert list(values[2:8]) == server.tell("state")["arms"][1]["q"]
        later = struct.unpack("!B7di I6i", receive(sock)[1])
        assert later[1] > values[1]


def test_packages_in_pieces_and_an_unknown_recipe(served):
    _, hosts = served
    with connect(hosts[0], RTDE) as sock:
        sock.sendall(package("U", b"\7abc") + package("V", b"\0\2")[:4])
        time.sleep(0.05)
        sock.sendall(package("V", b"\0\2")[4:])
        assert receive(sock) == ("V", b"\1")


@pytest.mark.parametrize(
    "junk",
    [
        b"\0\0\0\0",
        package("O", b"abc"),
        package("O", struct.pack("!d", 0) + b"timestamp"),
        package("S"),
        package("U"),
        package("I", b"input_int_register_0") + package("U", b"\1abc"),
    ],
)
def test_nonsense_closes_that_connection_alone(served, junk):
    server, hosts = served
    with connect(hosts[0], RTDE) as other, connect(hosts[0], RTDE) as sock:
        sock.sendall(junk)
        sock.settimeout(PATIENCE)
        with pytest.raises((ConnectionError, struct.error)):
            while receive(sock):
                pass
        assert asked(other, "V", b"\0\2") == b"\1"
    assert len(server.tell("state")["arms"]) == 2


def answer(lines, line):
    """What a server answers to a line."""
    lines.write(line + "\n")
    lines.flush()
    return lines.readline().strip()


def test_lines_of_the_dashboard_and_a_program(served):
    server, hosts = served
    server.tell("reset 0")
    with connect(hosts[0], DASHBOARD) as sock, sock.makefile("rw") as lines:
        told = functools.partial(answer, lines)
        assert "Dashboard" in lines.readline()
        assert told("PolyscopeVersion").startswith("URSoftware 5.12")
        assert told("get serial number").isdigit()
        assert told("running") == "Program running: false"
        with connect(hosts[0], SCRIPT) as script:
            script.sendall(PROGRAM[:20])
            time.sleep(0.02)
            script.sendall(PROGRAM[20:])
            assert wait_for(lambda: told("running") == "Program running: true")
        assert told("stop") == "Stopped" and told("running") == "Program running: false"
        server.tell("emergency 0")
        assert told("robotmode") == "Robotmode: POWER_OFF"
        assert told("safetystatus") == "Safetystatus: ROBOT_EMERGENCY_STOP"


def test_lines_of_the_gripper(served):
    server, hosts = served
    server.tell("reset 0")
    with connect(hosts[0], GRIPPER) as sock, sock.makefile("rw") as lines:
        told = functools.partial(answer, lines)
        assert (told("GET STA"), told("GET POS"), told("GET OBJ")) == ("STA 3", "POS 0", "OBJ 3")
        assert told("SET POS 200 SPE 255") == "ack" and told("GET PRE") == "PRE 200"
        assert wait_for(lambda: told("GET POS") == "POS 200") and told("GET OBJ") == "OBJ 3"
        server.tell("close 0 gripper")
        assert lines.readline() == ""


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "nonsense 0",
        "stall 2 1",
        "stall 0 x",
        "close 0 x",
        "scaling 0",
        "reset x",
        "mode 0 99999999999",
        "protective 0 99999999999",
    ],
)
def test_a_line_that_makes_no_sense_is_answered(served, line):
    with pytest.raises(ValueError):
        served[0].tell(line)
    assert served[0].tell("state")


def test_who_connects_during_a_stall_is_heard_after_it(served):
    server, hosts = served
    with connect(hosts[0], RTDE) as before:
        server.tell("stall 0 0.3")
        with connect(hosts[0], RTDE) as sock:
            sock.sendall(package("V", b"\0\2"))
            assert receive(sock) == ("V", b"\1") and asked(before, "V", b"\0\2") == b"\1"


def test_a_port_that_is_taken(served):
    code, out, err = cli("ur_server.py", "--hosts", *served[1], timeout=PATIENCE)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert f"{served[1][0]} port 30004 cannot be opened" in err and "--hosts" in err
    with pytest.raises(BadInput, match="cannot be opened"):
        ServerProcess("--hosts", *served[1])


def test_it_ends_when_the_pipe_on_its_input_ends():
    server, _ = serve(1)
    server.process.stdin.close()
    assert server.process.wait(PATIENCE) == 0
    server.process.stdout.close()
    server.process.stderr.close()


def test_the_twin_is_served_with_tools_in_the_arms_own_frames():
    table = Table("ur5-lift", seed=3)
    twin = Twin("ur5-lift", seed=3)
    for i, (position, yaw) in enumerate(((0.35, 0), (-0.35, np.pi))):
        world = twin.tcp(i)[0] - [0, position, 0]
        own = world * [np.cos(yaw), np.cos(yaw), 1]
        assert table.tcp(i)[:3] == pytest.approx(own)
    server, _ = serve(2, "--task", "ur5-lift", "--seed", 3)
    with server:
        scene = server.tell("scene")
        assert scene["success"] is False and len(scene["state"]) == len(twin.state())
        assert server.tell("state")["arms"][0]["q"] == pytest.approx(twin.q(0), abs=1e-2)


# ---- the real client -----------------------------------------------------------------------------

# Runs in a process of its own: ur_rtde may crash where a connection breaks.
CLIENT = """
import json, sys, time
import rtde_control, rtde_receive

def wait(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()

host = sys.argv[1]
found = {}
receive = rtde_receive.RTDEReceiveInterface(host)
control = rtde_control.RTDEControlInterface(host)
found["playing"] = wait(lambda: receive.getRuntimeState() == 2)
q = receive.getActualQ()
goal = [x + 0.1 for x in q]
found["servo"] = [control.servoJ(goal, 0, 0, 0.002, 0.1, 300) for _ in range(20)]
found["there"] = wait(lambda: max(abs(a - b) for a, b in zip(receive.getActualQ(), goal)) < 1e-3)
found["servo stop"] = control.servoStop()
found["move"] = control.moveJ(q, 1.0, 1.0)
found["back"] = max(abs(a - b) for a, b in zip(receive.getActualQ(), q))
found["safe"] = control.isJointsWithinSafetyLimits(q)
found["watchdog"] = control.setWatchdog(5)
found["stopped"] = wait(lambda: receive.getRuntimeState() == 1)
found["again"] = control.reuploadScript() and wait(control.isProgramRunning)
control.stopScript()
found["ended"] = wait(lambda: receive.getRuntimeState() == 1)
print(json.dumps(found))
"""


@pytest.mark.parametrize("rate", [500, 125])
def test_the_real_client_moves_an_arm(rate):
    if importlib.util.find_spec("rtde_control") is None:
        pytest.skip("needs ur_rtde, see requirements-dev.txt")
    server, hosts = serve(3, "--rate", rate)
    with server:
        command = [sys.executable, "-c", CLIENT, hosts[1]]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert all(found.pop("servo")) and found.pop("back") < 2e-3
        assert all(found.values()), found
        state = server.tell("state")["arms"]
        assert state[1]["programs"] == 2 and state[0]["programs"] == 0
