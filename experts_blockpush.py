"""The scripted pusher of BlockPush's demonstrations: two blocks, one after the other, in four ways.

It is the oracle of Implicit Behavioral Cloning (arXiv 2109.00137), whose 1000 episodes are what
Diffusion Policy trains on. At an episode's start it draws which block it pushes first, and into
which zone; the other block then goes into the other zone. That makes four modes. To push a block it
stands behind it, seen from the zone, goes up to it, and pushes towards the zone. If a side of the
block does not face the zone it first turns the block by pushing off its centre.

Positions are (2,) arrays in metres, angles radians, speeds metres a second.
"""

import numpy as np

CONTROL_HZ = 10
MODES = ((0, 0), (0, 1), (1, 0), (1, 1))  # the block that is first, and its zone
PUSHED = 0.04  # a block that is nearer to its zone is left: it is inside from 0.05 on
ARRIVED = 0.001  # a point is reached
CROOKED = 0.2  # a larger heading error is turned away first
STRAIGHT = 0.03  # until it is smaller than this
SWING = 0.2  # the angle by which the pusher goes round a block that it turns
RADIUS = 0.025  # of that circle around the block's centre
SPEED = {  # of each phase; the order is the one in which a phase may lead to a later one at once
    "pre-block": 0.30,
    "return": 0.30,
    "start": 0.30,
    "to-block": 0.35,
    "push": 0.35,
    "left": 0.15,
    "right": 0.15,
}
BEHIND = {"pre-block": 0.05, "to-block": 0.03, "push": 0.01}  # from the block's centre


def heading_error(direction, yaw):
    """The angle in [-pi/4, pi/4] from the nearest side of a block at `yaw` to a direction (2,)."""
    error = np.arctan2(direction[1], direction[0]) - yaw
    return (error + np.pi / 4) % (np.pi / 2) - np.pi / 4


def turned(vector, angle):
    """A vector (2,), turned to the left."""
    cos = np.cos(angle)
    sin = np.sin(angle)
    return np.array([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]])


def unit(vector):
    """A vector (2,) at length 1."""
    return vector / np.linalg.norm(vector)


class Oracle:
    """The pusher of one episode. first: the block and the zone it begins with, of MODES."""

    def __init__(self, first):
        self.block, self.zone = first
        self.phase = "pre-block"
        self.second = False  # whether the second block's turn has come
        self.start = None  # where the pusher was at first
        self.behind = None  # the first point behind a block that it reached

    def act(self, blocks, yaws, zones, pusher):
        """How far the pusher's target moves in this step: (2,).

        blocks (2, 2), yaws (2,), zones (2, 2). pusher (2,): where it was last sent.
        """
        if self.start is None:
            self.start = pusher
        gap = np.linalg.norm(blocks[self.block] - zones[self.zone])
        if gap < PUSHED and not self.second:
            self.second = True
            self.block = 1 - self.block
            self.zone = 1 - self.zone
            self.phase = "return"
        block = blocks[self.block]
        direction = unit(zones[self.zone] - block)
        error = heading_error(direction, yaws[self.block])
        for phase in SPEED:
            if phase == self.phase:
                move = self.move(block, direction, error, pusher)
                furthest = SPEED[phase] / CONTROL_HZ
                self.phase = self.after(move, error)
                if phase == "pre-block" and self.phase != phase and self.behind is None:
                    self.behind = pusher + move
        length = np.linalg.norm(move)
        return move if length <= furthest else move / length * furthest

    def move(self, block, direction, error, pusher):
        """From the pusher to where its phase wants it: (2,)."""
        if self.phase == "return":
            return (self.start if self.behind is None else self.behind) - pusher
        if self.phase == "start":
            return self.start - pusher
        if self.phase in BEHIND:
            return block - BEHIND[self.phase] * direction - pusher
        swing = SWING if self.phase == "left" else -SWING
        return block + RADIUS * turned(unit(pusher - block), swing) - pusher

    def after(self, move, error):
        """The phase that follows, which may be the same."""
        arrived = np.linalg.norm(move) < ARRIVED
        if self.phase == "to-block" and abs(error) > CROOKED:
            return "left" if error > 0 else "right"
        if self.phase == "push" and abs(error) > CROOKED:
            return "pre-block"
        if self.phase == "left":
            return "pre-block" if error < STRAIGHT else "left"
        if self.phase == "right":
            return "pre-block" if error > -STRAIGHT else "right"
        following = {
            "pre-block": "to-block",
            "return": "start",
            "start": "pre-block",
            "to-block": "push",
        }
        return following.get(self.phase, self.phase) if arrived else self.phase
