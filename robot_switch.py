"""The operator's dead-man switch: the arms move only while a person holds it.

A pedal is best: Linux shows most as a keyboard, /dev/input/eventN. In a terminal the switch is the
space bar, held down; its repetition is what is heard, so a release is noticed after 0.7 s. Neither
replaces the emergency stop, which must be in reach.
"""

import contextlib
import math
import os
import select
import struct
import sys
import time

from commands import BadInput

REPEAT = 0.7  # seconds: longer than most keyboards wait before they repeat a key that is held
EVENT = struct.Struct("llHHi")  # of Linux's input devices: seconds, microseconds, type, code, value
KEY = 1  # the type of a key's event; its value is 0 when it is released


@contextlib.contextmanager
def switch(args):
    """Inside the `with`: a function that tells whether the switch is pressed. Raises BadInput.

    args.switch: keyboard, none, or the path of an input device.
    """
    how = args.switch or ("keyboard" if args.robot == "ur5" else "none")
    if how == "none":
        yield lambda: True
    elif how == "keyboard":
        with keys() as pressed:
            print("hold the space bar down: the arms move while you do", flush=True)
            yield begun(Space(pressed))
    else:
        with opened(how, "--switch") as device:
            print("press the pedal: the arms move while you do", flush=True)
            yield begun(Pedal(device))


def begun(pressed):
    """A switch, once it is pressed for the first time."""
    while not pressed():
        time.sleep(0.01)
    return pressed


@contextlib.contextmanager
def opened(path, name):
    """Inside the `with`: an input device's file descriptor, which does not block.

    name: what an error calls the device. Raises BadInput if it cannot be read.
    """
    try:
        device = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as e:
        raise BadInput(f"{name} {path} cannot be read ({e.strerror}): see /dev/input") from e
    try:
        yield device
    finally:
        os.close(device)


class Space:
    """Whether the space bar is held. keys: a function that gives the characters typed since."""

    def __init__(self, keys, clock=time.monotonic):
        self.keys = keys
        self.clock = clock
        self.last = -math.inf

    def __call__(self):
        if " " in self.keys():
            self.last = self.clock()
        return self.clock() - self.last < REPEAT


class Pedal:
    """Whether any key of an input device is held. One that is lost counts as released."""

    def __init__(self, device):
        self.device = device
        self.held = set()

    def __call__(self):
        try:
            while packed := os.read(self.device, EVENT.size):
                _, _, kind, code, value = EVENT.unpack(packed)
                if kind == KEY:
                    (self.held.add if value else self.held.discard)(code)
        except BlockingIOError:
            pass
        except (OSError, struct.error):
            self.held.clear()
        return bool(self.held)


@contextlib.contextmanager
def keys():
    """Inside the `with`: a function that gives the characters typed since its last call."""
    if not sys.stdin.isatty():
        raise BadInput("the keyboard needs a terminal: run it in one, or give --switch")
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def typed():
        if select.select([file], [], [], 0)[0]:
            return os.read(file, 1000).decode("utf-8", "replace")
        return ""

    tty.setcbreak(file)
    try:
        yield typed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
