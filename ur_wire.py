"""What a UR arm says on the network: RTDE, the dashboard, and the text of a Robotiq gripper.

An arm's controller has these ports:

  30004  RTDE: packages of state to the client, registers (numbered variables) from it
  30003  the client sends here the program that reads those registers
  29999  the dashboard: lines of text
  63352  the gripper: lines of text

An RTDE package is its size in bytes, a letter for its kind, and a body; all numbers are big-endian.
"""

import re
import struct

from ur_controller import NORMAL, PLAYING, POWER_OFF, PROTECTIVE, RUNNING

RTDE = 30004
SCRIPT = 30003
DASHBOARD = 29999
GRIPPER = 63352
PORTS = (RTDE, SCRIPT, DASHBOARD, GRIPPER)
VERSIONS = {500: (5, 12, 0, 1101), 125: (3, 15, 8, 106)}  # of such a controller's software, by Hz
CODES = {
    "DOUBLE": "d",
    "INT32": "i",
    "UINT32": "I",
    "UINT64": "Q",
    "UINT8": "B",
    "VECTOR3D": "3d",
    "VECTOR6D": "6d",
    "VECTOR6INT32": "6i",
    "NOT_FOUND": "0d",  # nothing at all
}
# The types of RTDE's variables, by patterns; the first one that fits counts.
TYPES = (
    (r"(in|out)put_int_register_\d+|robot_mode|safety_mode", "INT32"),
    (r"(in|out)put_double_register_\d+|timestamp|payload", "DOUBLE"),
    (r"actual_digital_.*_bits", "UINT64"),
    (r".*_status_bits|runtime_state|input_bit_registers.*|speed_slider_mask", "UINT32"),
    (r"standard_digital_.*|configurable_digital_.*|tool_digital_.*", "UINT8"),
    (r"standard_analog_(output_mask|output_type)", "UINT8"),
    (r"standard_analog_.*|speed_.*|target_speed_fraction", "DOUBLE"),
    (r"actual_(momentum|execution_time|(main|robot)_voltage|robot_current)", "DOUBLE"),
    (r"actual_tool_accelerometer|payload_cog", "VECTOR3D"),
    (r"joint_mode", "VECTOR6INT32"),
    (r"(actual|target)_.*|joint_.*|ft_raw_wrench|payload_inertia|external_.*", "VECTOR6D"),
)


# ---- a client's connection -----------------------------------------------------------------------


def type_of(name):
    """The type of an RTDE variable, or NOT_FOUND."""
    return next((kind for pattern, kind in TYPES if re.fullmatch(pattern, name)), "NOT_FOUND")


def layout(names):
    """The struct of a package of variables, and the length of each."""
    codes = [CODES[type_of(name)] for name in names]
    return struct.Struct("!B" + "".join(codes)), [int(code[:-1] or 1) for code in codes]


class Connection:
    """A client's connection to one of an arm's ports."""

    def __init__(self, sock, port, arm, version):
        self.sock = sock
        self.port = port
        self.arm = arm
        self.version = version
        self.received = b""
        self.unsent = b""
        self.outputs = []  # names of the variables that the client wants
        self.recipes = []  # of the variables that the client writes: (struct, names)
        self.hz = 0
        self.due = None  # the period at which the next package goes out
        if port == DASHBOARD:
            self.send(b"Connected: Universal Robots Dashboard Server\n")

    def send(self, data):
        """Send bytes, the rest of them later if the client does not read. Raises OSError."""
        self.unsent += data
        if self.unsent:
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            except BlockingIOError:
                if len(self.unsent) > 1 << 20:
                    raise OSError("the client does not read") from None

    def take(self, data):
        """Treat what the client sent."""
        self.received += data
        if self.port == RTDE:
            self.take_packages()
        elif self.port == SCRIPT:
            if self.received.rstrip().endswith(b"\nend"):
                self.received = b""
                self.arm.begin_program()
        else:
            answer = self.dashboard if self.port == DASHBOARD else self.gripper
            while b"\n" in self.received:
                line, _, self.received = self.received.partition(b"\n")
                self.send(answer(line.decode("ascii", "replace").strip()).encode() + b"\n")

    def dashboard(self, line):
        """The dashboard's answer to a line."""
        if line == "stop":
            self.arm.end_program()
            return "Stopped"
        modes = {RUNNING: "RUNNING", POWER_OFF: "POWER_OFF"}
        safety = {NORMAL: "NORMAL", PROTECTIVE: "PROTECTIVE_STOP"}
        answers = {
            "PolyscopeVersion": "URSoftware {}.{}.{}.{} (simulated)".format(*self.version),
            "get serial number": "20000000000",
            "is in remote control": "true",
            "robotmode": f"Robotmode: {modes.get(self.arm.mode, self.arm.mode)}",
            "safetystatus": f"Safetystatus: {safety.get(self.arm.safety, 'ROBOT_EMERGENCY_STOP')}",
            "running": f"Program running: {str(self.arm.runtime == PLAYING).lower()}",
        }
        return answers.get(line, f"could not understand: {line}")

    def gripper(self, line):
        """The gripper's answer to a line: GET X, or SET X n Y m ..."""
        arm = self.arm
        words = line.split()
        if words[:1] == ["SET"]:
            values = dict(zip(words[1::2], words[2::2]))
            arm.gripped = int(values.get("POS", arm.gripped))
            arm.plant.grip(arm.i, arm.gripped / 255)
            return "ack"
        position = round(255 * arm.plant.gripper(arm.i))
        there = abs(position - arm.gripped) < 3
        known = {"POS": position, "PRE": arm.gripped, "OBJ": 3 if there else 0, "STA": 3, "FLT": 0}
        return f"{words[-1]} {known.get(words[-1], 1)}"

    # ---- RTDE

    def take_packages(self):
        """Answer all whole RTDE packages that have come."""
        while len(self.received) >= 3:
            size, kind = struct.unpack_from("!HB", self.received)
            if size < 3:
                raise OSError("no RTDE package")
            if len(self.received) < size:
                return
            body = self.received[3:size]
            self.received = self.received[size:]
            self.answer(chr(kind), body)

    def package(self, kind, body):
        """Send one RTDE package."""
        self.send(struct.pack("!HB", 3 + len(body), ord(kind)) + body)

    def answer(self, kind, body):
        """Answer one RTDE package."""
        if kind == "V":  # the protocol's version, 2
            self.package(kind, b"\1")
        elif kind == "v":
            self.package(kind, struct.pack("!4I", *self.version))
        elif kind == "O":  # the variables that the client wants
            self.hz = struct.unpack_from("!d", body)[0]
            if not 0 < self.hz <= 1000:
                raise ValueError("no rate of packages")
            self.outputs = names_in(body[8:])
            types = ",".join(map(type_of, self.outputs))
            self.package(kind, b"\1" + types.encode())
            self.struct, self.lengths = layout(self.outputs)
        elif kind == "I":  # variables that it will write
            names = names_in(body)
            types = ",".join(map(type_of, names))
            self.recipes.append((layout(names)[0], names))
            self.package(kind, bytes([len(self.recipes)]) + types.encode())
        elif kind in "SP":
            if not self.outputs:
                raise ValueError("no variables were asked for")
            self.package(kind, b"\1")
            self.due = 0 if kind == "S" else None
        elif kind == "U" and 1 <= body[0] <= len(self.recipes):
            form, names = self.recipes[body[0] - 1]
            self.write(dict(zip(names, form.unpack(body)[1:])))

    def write(self, values):
        """Take registers that the client wrote."""
        for name, value in values.items():
            kind, _, number = name.partition("_register_")
            if kind == "input_int":
                self.arm.ints[int(number)] = value
            elif kind == "input_double":
                self.arm.doubles[int(number)] = value
        if "input_int_register_0" in values:
            self.arm.command()

    def send_state(self, values, tick, rate):
        """Send a package of the arm's state if one is due."""
        if self.due is None or tick < self.due:
            return
        self.due = tick + max(1, round(rate / self.hz))
        flat = [1]
        for name, length in zip(self.outputs, self.lengths):
            flat.extend(values.get(name) if name in values else [0] * length)
        self.package("U", self.struct.pack(*flat))


def names_in(body):
    """The names in a list that commas part."""
    return [name for name in body.decode().split(",") if name]
