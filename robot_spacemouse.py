"""A SpaceMouse: a cap that a person pushes and turns, to move a tool while recording.

Linux shows it as an input device. A cap that is pushed right, back or down gives positive numbers
of the axes 0, 1 and 2; 3 to 5 are turns about these. Older kernels tell of movements, again and
again while the cap is held and nothing once it is let go; newer ones of positions, once for each
change. Not tried on hardware.
"""

import contextlib
import glob
import os
import time

import numpy as np

from commands import BadInput
from robot_switch import EVENT, KEY, opened
from safety import Refused

FOUND = "/dev/input/by-id/usb-3Dconnexion_*-event-*"
MOVED = 2  # the type of an axis's event that tells how far, EV_REL
PLACED = 3  # and of one that tells where, EV_ABS
FULL = 350  # what an axis gives at its end
DEAD = 0.08  # of FULL: a cap that is let go does not come back to 0 exactly
SILENT = 0.1  # seconds after which a cap that told of movements is taken for let go
SPEED = 0.15  # m/s of the tool at an axis's end
TURNING = 0.6  # rad/s of the last joint
BUTTONS = {256: "g", 257: "\t"}  # left and right, as the keys that do the same


@contextlib.contextmanager
def spacemouse(path=None):
    """Inside the `with`: a SpaceMouse, the first one that is found if no path is given."""
    found = [path] if path else sorted(glob.glob(FOUND))
    if not found:
        raise BadInput("no SpaceMouse: connect one, or give --spacemouse /dev/input/eventN")
    with opened(found[0], "SpaceMouse") as device:
        yield SpaceMouse(device)


class SpaceMouse:
    """Where the cap is. device: a file descriptor that does not block."""

    def __init__(self, device, clock=time.monotonic):
        self.device = device
        self.clock = clock
        self.axes = np.zeros(6)
        self.until = np.full(6, np.inf)  # when an axis is taken for let go
        self.pressed = ""

    def read(self):
        """Take in what happened since. Raises Refused if the device is gone."""
        try:
            while packed := os.read(self.device, EVENT.size):
                _, _, kind, code, value = EVENT.unpack(packed)
                if kind in (MOVED, PLACED) and code < 6:
                    self.axes[code] = value / FULL
                    self.until[code] = self.clock() + SILENT if kind == MOVED else np.inf
                elif kind == KEY and value == 1:
                    self.pressed += BUTTONS.get(code, "")
        except BlockingIOError:
            pass
        except OSError as e:
            raise Refused(f"the SpaceMouse is gone ({e.strerror})") from e
        self.axes[self.clock() > self.until] = 0

    def keys(self):
        """The buttons pressed since the last call, as the keys that do the same."""
        self.read()
        pressed = self.pressed
        self.pressed = ""
        return pressed

    def push(self, seconds):
        """How far to move a tool in so many seconds: x, y, z in metres and a turn in rad.

        In the cell's frame: x forward, y left, z up. A turn to the right, seen from above, is one
        of the last joint forward, whose axis points down with the tool.
        """
        self.read()
        at = np.clip(self.axes, -1, 1)
        at[np.abs(at) < DEAD] = 0
        right, back, down = at[:3]
        speed = [-back * SPEED, -right * SPEED, -down * SPEED, at[5] * TURNING]
        return seconds * np.array(speed)
