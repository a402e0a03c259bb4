"""Scripted experts of the two arms' tasks on the twin, and how they are recorded.

A script is a generator for each arm, which yields one command a tenth of a second, in the words of
motions.py. A command moves the hand from where it is; inverse kinematics makes of it the joint
targets that are recorded as the action. The numbers are metres, rad and tenths of a second, found
by trying.

`variety` makes the demonstrations of a start many-valued, as those of people are: travels take
detours and their own speed, with correlated noise, and things that look the same from several
sides are taken from one or another.
"""

import functools
import math

import mujoco
import numpy as np

import motions
from motions import (
    OPEN,
    carried,
    close,
    down,
    fold,
    goto,
    grip_yaw,
    hold,
    moved,
    pose,
    release,
    rise,
    travel,
    yaw_of,
)
from task_ur5 import RATE, STEPS, proprio, state_of
from twin_model import LEFT, RIGHT, TIMESTEP
