"""What a UR arm's controller does, simulated: its states, and the registers that ur_rtde uses.

ur_rtde sends a program to the arm, which then reads numbered variables (registers): which command
to do, and with what numbers. Nothing runs that program here: what it does with the registers is
known, and the class Controller does the same. It moves one arm of a plant: the twin of twin.py, or
the class Lag. A plant's methods are q, qd, tcp, target, gripper and grip, of an arm's number, and
step and reset. ur_server.py puts the network before a Controller.
"""

import numpy as np

from twin_model import JOINT_SPEED, TIMESTEP

# Bits of safety_status_bits, and numbers of runtime_state and robot_mode, as real arms have them.
NORMAL = 1 << 0
REDUCED = 1 << 1
PROTECTIVE = 1 << 2
EMERGENCY = 1 << 5 | 1 << 6 | 1 << 7  # of the system, of the robot, of either
STOPPED = 1
PLAYING = 2
PAUSED = 4
POWER_OFF = 3
RUNNING = 7

# Commands of ur_rtde's program, in input_int_register_0, and its answers in output_int_register_0.
CLEAR = 0
MOVE_J = 1
SERVO_J = 11
SPEED_STOP = 15
SERVO_STOP = 16
PROTECTIVE_STOP = 31
SET_WATCHDOG = 35
JOINTS_SAFE = 37
STOP_SCRIPT = 255
READY = 1
DONE = 2


class Lag:
    """Arms whose joints and grippers follow their targets by a first-order lag of `tau` seconds.

    home: the joint angles (n, 6) of the n arms at the start. There are no links: `tcp` is zeros.
    """

    def __init__(self, home, tau=0.02):
        self.home = np.array(home, float)
        self.part = 1 - np.exp(-TIMESTEP / tau)  # of what is missing, made up in a step
        self.reset(0)

    def reset(self, seed):
        """Put the arms to their home and open the grippers; the seed changes nothing."""
        self.points = np.pad(self.home, ((0, 0), (0, 1)))  # (n, 7): joints, gripper
        self.targets = self.points.copy()
        self.speeds = np.zeros_like(self.points)

    def q(self, i):
        """The joint angles (6,) of arm i."""
        return self.points[i, :6].copy()

    def qd(self, i):
        """The joint velocities (6,) of arm i."""
        return self.speeds[i, :6].copy()

    def tcp(self, i):
        """The tool's pose in the arm's base frame: position (3,), rotation vector (3,)."""
        return np.zeros(6)

    def gripper(self, i):
        """How far gripper i is closed, 0 to 1."""
        return float(self.points[i, 6])

    def target(self, i, q):
        """Have arm i follow joint angles (6,)."""
        self.targets[i, :6] = q

    def grip(self, i, x):
        """Have gripper i move to 0 (open) .. 1 (closed)."""
        self.targets[i, 6] = x

    def step(self, n=1):
        """Run n steps of TIMESTEP seconds."""
        for _ in range(n):
            move = self.part * (self.targets - self.points)
            self.points += move
            self.speeds = move / TIMESTEP


class Controller:
    """The controller of arm i of a plant.

    clock: a function that tells the seconds that the watchdog goes by.
    """

    def __init__(self, plant, i, clock):
        self.plant = plant
        self.i = i
        self.clock = clock
        self.counts = {"programs": 0, "targets": 0}  # programs that began, servo targets that came
        self.reset()

    def reset(self):
        """No program, no fault, and the arm held where it is."""
        self.ints = {}  # the input registers, by number
        self.doubles = {}
        self.safety = NORMAL
        self.mode = RUNNING
        self.scaling = 1.0  # the speed slider
        self.starts = True  # whether a program that is sent begins
        self.gripped = 0  # where the gripper was sent: 0 open .. 255 closed
        self.end_program()

    # ---- the program

    def hold(self):
        """Stay where the arm is."""
        self.setpoint = self.plant.q(self.i)  # what the servos pull toward
        self.goal = self.setpoint.copy()  # where the setpoint moves
        self.speed = JOINT_SPEED
        self.plant.target(self.i, self.setpoint)

    def end_program(self, runtime=STOPPED):
        """End the program, or with another runtime state begin one; the arm holds."""
        self.runtime = runtime
        self.answer = CLEAR
        self.result = 0
        self.moving = False  # whether a moveJ is under way
        self.watchdog = None  # seconds within which a command must come
        self.hold()

    def begin_program(self):
        """Begin the program that a client sent, if the arm can move."""
        if self.starts and self.safety == NORMAL and self.mode == RUNNING:
            self.end_program(PLAYING)
            self.answer = READY
            self.counts["programs"] += 1

    def command(self):
        """Do what the registers say: called whenever a client has written the command's."""
        self.kicked = self.clock()
        n = self.ints.get(0, CLEAR)
        if self.runtime != PLAYING:
            return
        if n == STOP_SCRIPT:
            self.end_program()
        elif n == SERVO_J:  # at every period, without an answer
            self.counts["targets"] += 1
            self.goal = self.vector()
        elif n == CLEAR:
            self.answer = self.answer if self.moving else READY
        elif self.answer == READY:  # the others are done once, until CLEAR
            self.answer = DONE
            self.do(n)

    def do(self, n):
        """Do one command that is not repeated at every period."""
        if n in (SERVO_STOP, SPEED_STOP):
            self.hold()
        elif n == SET_WATCHDOG:
            self.watchdog = self.doubles[0] and 1 / self.doubles[0]
        elif n == JOINTS_SAFE:
            self.result = 1
        elif n == PROTECTIVE_STOP:
            self.protective()
        elif n == MOVE_J:
            self.goal = self.vector()
            self.speed = min(self.doubles[6], JOINT_SPEED)
            self.moving = True
            self.answer = CLEAR
        else:  # what is not simulated ends the program, as an error in it would
            self.end_program()

    def vector(self):
        """The six joints in the registers. Where they are no numbers the arm stops."""
        q = np.array([self.doubles[k] for k in range(6)])
        if not np.isfinite(q).all():
            self.protective()
            return self.goal
        return q

    # ---- the arm

    def protective(self, runtime=PAUSED):
        """A protective stop, and what becomes of the program."""
        self.safety = PROTECTIVE
        self.runtime = runtime
        self.hold()

    def emergency(self):
        """An emergency stop."""
        self.safety = EMERGENCY
        self.mode = POWER_OFF
        self.end_program()

    def update(self, seconds):
        """Move the setpoint for one period; end the program if its watchdog was not kicked."""
        if self.watchdog and self.clock() - self.kicked > self.watchdog:
            self.end_program()
        if self.runtime != PLAYING or self.safety != NORMAL or self.mode != RUNNING:
            return
        most = self.speed * self.scaling * seconds
        self.setpoint = self.setpoint + np.clip(self.goal - self.setpoint, -most, most)
        self.plant.target(self.i, self.setpoint)
        if self.moving and np.abs(self.goal - self.plant.q(self.i)).max() < 1e-3:
            self.moving = False
            self.answer = DONE

    def values(self, t):
        """RTDE's output variables at the time stamp t, as far as they are more than zeros."""
        playing = self.runtime == PLAYING
        return {
            "timestamp": [t],
            "target_q": self.setpoint,
            "actual_q": self.plant.q(self.i),
            "actual_qd": self.plant.qd(self.i),
            "actual_TCP_pose": self.plant.tcp(self.i),
            "robot_mode": [self.mode],
            "safety_mode": [{NORMAL: 1, PROTECTIVE: 3}.get(self.safety, 7)],
            "speed_scaling": [1.0],
            "target_speed_fraction": [self.scaling],
            "runtime_state": [self.runtime],
            "robot_status_bits": [int(self.mode == RUNNING) | int(playing) << 1],
            "safety_status_bits": [self.safety],
            "output_int_register_0": [self.answer],
            "output_int_register_1": [self.result],
        }
