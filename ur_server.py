"""Two simulated UR arms on the network: they speak the real arms' own protocols.

The real client, ur_rtde, connects to it as it would to two arms, so that what is tested is the very
code that moves a real arm. Each arm has an address of its own; ur_wire.py has the protocols.

What moves is the twin of twin.py with the things of a task, or, without a task, joints that
follow by a first-order lag. Lines on standard input inject faults; each is answered by a line of
JSON. Where standard input is a pipe, its end is the server's end.
"""

import startup  # first, see there

import contextlib
import json
import os
import selectors
import socket
import stat
import struct
import subprocess
import sys
import time

import numpy as np

from commands import BadInput, Parser, check_seed, cli
from twin import Twin, rotvec
from twin_model import BASES, HOME, HOSTS, SCENES, TIMESTEP
from ur_controller import Controller, Lag
from ur_wire import GRIPPER, PORTS, RTDE, VERSIONS, Connection

BEHIND = 0.2  # seconds that the server catches up with after it had no CPU; more are left out
EXAMPLES = (
    "python ur_server.py --task ur5-lift                 # then a client in another terminal",
    "python ur_server.py --rate 125 --hosts 127.0.0.3 127.0.0.4",
)
RATE_HELP = "periods a second: 500 of an e-Series arm, 125 of a CB3"
HELP = """lines on standard input (ARM is 0 or 1):
  stall ARM SECONDS         no data to nor from the arm's clients; the arm itself goes on
  close ARM WHICH           close connections: receive, control, gripper or all
  ports ARM closed|open     close all connections and all ports
  protective ARM [RUNTIME]  a protective stop; the program is then 1 stopped, 2 playing or 4 paused
  emergency ARM             an emergency stop
  clear ARM                 a person unlocks the arm; its program has to be sent again
  scaling ARM X             the speed slider
  mode ARM N                the robot mode, 7 is running
  stop ARM                  the program ends
  starts ARM 0|1            whether programs that are sent begin
  state                     time.monotonic(); joints, programs and counts of both arms
  scene                     of the twin: time.monotonic(), its state, and its success
  reset SEED                everything is back at its start"""


def small(text):
    """A whole number from 0 to 99. Raises ValueError."""
    if not 0 <= int(text) < 100:
        raise ValueError(f"{text} must lie in 0 .. 99")
    return int(text)


class Table(Twin):
    """The twin, with its tools' poses as arms report them: in the arm's own base frame."""

    def tcp(self, i):
        """The tool's pose: position (3,), rotation vector (3,)."""
        base, yaw = BASES[i]
        turn = np.diag([np.cos(yaw), np.cos(yaw), 1])  # the bases' yaws are 0 or pi
        site = self.sites[i]
        R = self.data.site_xmat[site].reshape(3, 3)
        return np.concatenate([turn @ (self.data.site_xpos[site] - base), rotvec(turn @ R)])


# ---- the server ----------------------------------------------------------------------------------


class Server:
    """Two arms at two addresses, in one thread. Raises BadInput where a port is taken.

    rate: the arms' periods a second, 500 or 125. plant: a Table, or a Lag.
    """

    def __init__(self, plant, hosts=HOSTS, rate=500):
        self.plant = plant
        self.hosts = hosts
        self.rate = rate
        self.arms = [Controller(plant, i, time.monotonic) for i in range(2)]
        self.selector = selectors.SelectSelector()  # the others round times to milliseconds
        self.listeners = ({}, {})  # of each arm: its open ports
        self.connections = []
        self.stalled = {}  # arm -> when its stall ends
        self.typed = b""  # the line on standard input so far
        self.open = True
        self.tick = 0  # periods since the start
        self.start = time.monotonic()
        for i in range(2):
            self.listen(i)

    def listen(self, i):
        """Open those of an arm's ports that are closed."""
        for port in PORTS:
            if port in self.listeners[i]:
                continue
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((self.hosts[i], port))
            except (OSError, TypeError, ValueError) as e:  # the last two of what is no address
                reason = getattr(e, "strerror", "no address")
                raise BadInput(
                    f"{self.hosts[i]} port {port} cannot be opened ({reason}): stop the program "
                    f"that uses it, or give other --hosts"
                ) from e
            sock.listen()
            sock.setblocking(False)
            self.listeners[i][port] = sock
            self.selector.register(sock, selectors.EVENT_READ, (self.accept, i, port))

    def accept(self, i, port):
        """Take a client's connection."""
        try:
            sock, _ = self.listeners[i][port].accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, port, self.arms[i], VERSIONS[self.rate])
        except (OSError, KeyError):  # it has gone again, or the port has just been closed
            return
        self.connections.append(connection)
        if i not in self.stalled:
            self.selector.register(sock, selectors.EVENT_READ, (self.read, connection))

    def read(self, connection):
        """Treat what has come on a connection; close it if it ends or makes no sense."""
        try:
            data = connection.sock.recv(1 << 16)
            if data:
                connection.take(data)
        except (OSError, ValueError, LookupError, struct.error):
            data = b""
        if not data:
            self.close(connection)

    def close(self, connection):
        """Close a connection."""
        if connection in self.connections:
            self.connections.remove(connection)
            with contextlib.suppress(KeyError):  # that of a stalled arm is not registered
                self.selector.unregister(connection.sock)
            connection.sock.close()

    # ---- time

    def run(self):
        """Serve until standard input ends."""
        if sys.stdin:
            self.selector.register(sys.stdin, selectors.EVENT_READ, (self.hear,))
        while self.open:
            due = self.start + (self.tick + 1) / self.rate
            for key, _ in self.selector.select(max(0, due - time.monotonic())):
                act, *args = key.data
                act(*args)
            self.advance()

    def advance(self):
        """Move the arms to the present, then send their states."""
        now = time.monotonic()
        late = now - self.start - self.tick / self.rate
        if late > BEHIND:
            self.start += late - BEHIND
        periods = int(min(late, BEHIND) * self.rate)
        for _ in range(periods):
            for arm in self.arms:
                arm.update(1 / self.rate)
            self.plant.step(round(1 / self.rate / TIMESTEP))
            self.tick += 1
        for i in [i for i, end in self.stalled.items() if now > end]:
            self.go_on(i)
        if periods:
            values = [arm.values(self.tick / self.rate) for arm in self.arms]
            for connection in list(self.connections):
                if connection.arm.i not in self.stalled:
                    try:
                        connection.send_state(values[connection.arm.i], self.tick, self.rate)
                    except OSError:
                        self.close(connection)

    # ---- faults

    def hear(self):
        """Read lines from standard input, and answer them."""
        data = os.read(sys.stdin.fileno(), 1 << 16)
        if not data:
            self.selector.unregister(sys.stdin)
            self.open = not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
        *lines, self.typed = (self.typed + data).split(b"\n")
        for line in lines:
            try:
                answer = self.obey(line.decode("utf-8", "replace").split())
            except (ValueError, LookupError, AttributeError, BadInput) as e:
                answer = {"error": str(e)}
            print(json.dumps(answer), flush=True)

    def obey(self, words):
        """Do what a line of HELP says -> the answer. Raises ValueError."""
        match words:
            case ["state"]:
                return {"t": time.monotonic(), "arms": [self.state(arm) for arm in self.arms]}
            case ["scene"]:
                scene = {"state": self.plant.state().tolist(), "success": self.plant.success()}
                return {"t": time.monotonic(), **scene}
            case ["reset", seed]:
                self.plant.reset(int(seed))
                for arm in self.arms:
                    arm.reset()
                    self.go_on(arm.i)
                    self.listen(arm.i)
            case [_, i, *_] if i not in ("0", "1"):
                raise ValueError("an arm is 0 or 1")
            case ["stall", i, seconds]:
                self.stall(int(i), float(seconds))
            case ["close", i, which]:
                self.close_some(int(i), which)
            case ["ports", i, "closed"]:
                self.close_some(int(i), "all")
                for port in PORTS:
                    sock = self.listeners[int(i)].pop(port)
                    self.selector.unregister(sock)
                    sock.close()
            case ["ports", i, "open"]:
                self.listen(int(i))
            case _:
                self.set_arm(self.arms[int(words[1])], words[0], words[2:])
        return {}

    def set_arm(self, arm, name, values):
        """Put an arm into a state. Raises ValueError."""
        match [name, *values]:
            case ["protective"]:
                arm.protective()
            case ["protective", runtime]:
                arm.protective(small(runtime))
            case ["emergency"]:
                arm.emergency()
            case ["clear"]:
                arm.reset()
            case ["scaling", x]:
                arm.scaling = float(x)
            case ["mode", n]:
                arm.mode = small(n)
                arm.hold()
            case ["stop"]:
                arm.end_program()
            case ["starts", yes]:
                arm.starts = bool(int(yes))
            case _:
                raise ValueError(f"unknown: {' '.join([name, *values])}")

    def state(self, arm):
        """What tests ask about an arm."""
        return {
            "q": arm.plant.q(arm.i).tolist(),
            "qd": arm.plant.qd(arm.i).tolist(),
            "setpoint": arm.setpoint.tolist(),
            "gripper": arm.plant.gripper(arm.i),
            "runtime": arm.runtime,
            "connections": sum(c.arm is arm for c in self.connections),
            **arm.counts,
        }

    def sockets(self, i):
        """An arm's connections with what is called when they can be read."""
        return [(c.sock, (self.read, c)) for c in self.connections if c.arm.i == i]

    def stall(self, i, seconds):
        """Hear and say nothing for so long."""
        self.go_on(i)
        for sock, _ in self.sockets(i):
            self.selector.unregister(sock)
        self.stalled[i] = time.monotonic() + seconds

    def go_on(self, i):
        """End a stall."""
        if self.stalled.pop(i, None):
            for sock, data in self.sockets(i):
                self.selector.register(sock, selectors.EVENT_READ, data)

    def close_some(self, i, which):
        """Close an arm's connections of a kind. Raises ValueError."""
        kinds = {
            "receive": [c for c in self.connections if c.port == RTDE and not c.recipes],
            "control": [c for c in self.connections if c.port == RTDE and c.recipes],
            "gripper": [c for c in self.connections if c.port == GRIPPER],
            "all": list(self.connections),
        }
        if which not in kinds:
            raise ValueError(f"one of {', '.join(kinds)}, not {which}")
        for connection in kinds[which]:
            if connection.arm.i == i:
                self.close(connection)


# ---- as a process --------------------------------------------------------------------------------


class ServerProcess:
    """The server as a process of its own that ends with this one.

    flags: as on the command line. Raises BadInput if it does not start.
    """

    def __init__(self, *flags):
        command = [sys.executable, os.path.realpath(__file__), *map(str, flags)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **startup.tied()
        )
        if not self.process.stdout.readline():
            raise BadInput(self.process.communicate()[1].strip().removeprefix("error: "))

    def tell(self, line):
        """Send a line of HELP -> the answer. Raises ValueError if the server refuses it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server has ended: {self.process.communicate()[1]}")
        answer = json.loads(answer)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def close(self):
        """End the server."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def parse(argv=None):
    """The flags. Raises BadInput."""
    ap = Parser(__doc__, examples=EXAMPLES)
    ap.epilog = f"{HELP}\n\n{ap.epilog}"
    ap.add_argument("--task", choices=SCENES, help="the twin, with the things of this task")
    ap.add_argument("--seed", type=int, default=0, help="where the things are")
    ap.add_argument("--rate", type=int, choices=VERSIONS, default=500, help=RATE_HELP)
    ap.add_argument("--hosts", nargs=2, default=HOSTS, help="the arms' addresses on this machine")
    args = ap.parse_args(argv)
    check_seed(args, "seed")
    return args


def main():
    """Serve until interrupted, or until the pipe on standard input ends."""
    args = parse()
    plant = Table(args.task, args.seed) if args.task else Lag(HOME)
    server = Server(plant, args.hosts, args.rate)
    print(json.dumps({"ready": list(args.hosts)}), flush=True)
    server.run()


if __name__ == "__main__":
    cli(main)
