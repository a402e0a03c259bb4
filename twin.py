"""The twin: two simulated UR5e arms with grippers and cameras, and a task's things, in MuJoCo.

  twin = Twin("ur5-lift", seed=0)
  twin.target(RIGHT, q)      joint angles (6,) that the servos of an arm pull toward
  twin.grip(RIGHT, 1.0)      close the gripper
  twin.step(50)              50 physics steps of 2 ms
  twin.q(RIGHT)              the measured joint angles (6,)

Frames, units and limits are in twin_model.py; twin_build.py makes the model of them. Time is
simulated: nothing here looks at a clock, and the same calls give the same numbers, to the bit.
"""

import functools

import mujoco
import numpy as np

from twin_build import about, make_spec
from twin_model import (
    CAMERAS,
    GRIP_SPEED,
    HOME,
    JOINT_LIMITS,
    JOINT_SPEED,
    JOINTS,
    SCENES,
    SIDES,
    STROKE,
    TABLE,
    THINGS,
    TIMESTEP,
    WALL,
)

EVERYTHING = mujoco.mjtState.mjSTATE_INTEGRATION  # of a state


class Twin:
    """Two arms, their grippers and cameras, and the things of a task; None: no things.

    An arm is named by its number, LEFT or RIGHT. A gripper's value is from 0, open, to 1, closed.
    """

    def __init__(self, task=None, seed=0, size=96):
        self.task = task
        self.scene = SCENES[task] if task else None
        self.things = self.scene.things if task else ()
        self.size = size  # pixels of a picture's side
        self.model = make_spec(task).compile()
        self.data = mujoco.MjData(self.model)
        self.scratch = mujoco.MjData(self.model)  # for kinematics of other angles
        self.joints = []  # of each arm: where its angles begin in qpos, and in qvel
        for side in SIDES:
            joint = self.model.joint(f"{side}_{JOINTS[0]}")
            self.joints.append((joint.qposadr[0], joint.dofadr[0]))
        self.sites = [self.model.site(f"{side}_tcp").id for side in SIDES]
        self.fingers = [self.model.joint(f"{side}_finger_a").qposadr[0] for side in SIDES]
        self.reset(seed)

    def reset(self, seed):
        """Put the arms to their home and the things to the places of a seed."""
        mujoco.mj_resetData(self.model, self.data)
        for i in range(2):
            first, _ = self.joints[i]
            self.data.qpos[first : first + 6] = HOME[i]
            self.target(i, HOME[i])
        rng = np.random.default_rng(seed)
        for name in self.things:
            x, y, yaw = rng.uniform(*self.scene.places[name])
            inside = any(box.holds([x, y, TABLE + 0.001]) for box in self.scene.bins.values())
            z = TABLE + THINGS[name].height + WALL * inside
            self.data.joint(name).qpos[:] = [x, y, z, *about([0, 0, 1], yaw)]
        mujoco.mj_kinematics(self.model, self.data)

    def state(self):
        """All that the future depends on, as one vector; `set_state` brings it back exactly."""
        state = np.empty(mujoco.mj_stateSize(self.model, EVERYTHING))
        mujoco.mj_getState(self.model, self.data, state, EVERYTHING)
        return state

    def set_state(self, state):
        """Put the twin into a state that `state` gave."""
        mujoco.mj_setState(self.model, self.data, state, EVERYTHING)
        mujoco.mj_kinematics(self.model, self.data)

    # ---- time

    @property
    def time(self):
        """Simulated seconds since the reset."""
        return self.data.time

    def step(self, n=1):
        """Run n physics steps of 2 ms; all poses are up to date afterwards."""
        for _ in range(n):
            self._advance()
        mujoco.mj_kinematics(self.model, self.data)  # a step leaves the poses of its beginning

    def follow(self, targets, grips, n):
        """Move the servos' targets evenly from where they are to targets (2, 6), in n steps.

        grips (2,): what the grippers are told at once. The targets stay within JOINT_LIMITS, and no
        joint's moves faster than JOINT_SPEED: it then ends short of what was asked for. Raises
        ValueError if a number is not finite.
        """
        check_finite(targets)
        before = self.data.ctrl.reshape(2, 7)[:, :6].copy()
        most = JOINT_SPEED * n * TIMESTEP
        move = np.clip(np.clip(targets, *JOINT_LIMITS) - before, -most, most)
        for i in range(2):
            self.grip(i, grips[i])
        for k in range(1, n + 1):
            self.data.ctrl.reshape(2, 7)[:, :6] = before + move * (k / n)
            self._advance()
        mujoco.mj_kinematics(self.model, self.data)

    def _advance(self):
        """One physics step, in which the grippers move at their own speed."""
        most = GRIP_SPEED * TIMESTEP
        for i in range(2):
            k = 7 * i + 6
            far = STROKE * self.data.userdata[i] - self.data.ctrl[k]
            self.data.ctrl[k] += min(max(far, -most), most)
        mujoco.mj_step(self.model, self.data)

    # ---- an arm

    def q(self, i):
        """The measured joint angles (6,) of arm i."""
        first, _ = self.joints[i]
        return self.data.qpos[first : first + 6].copy()

    def qd(self, i):
        """The joint velocities (6,) of arm i, in rad/s."""
        _, first = self.joints[i]
        return self.data.qvel[first : first + 6].copy()

    def target(self, i, q):
        """Have the servos of arm i pull toward joint angles (6,). ValueError if not finite."""
        check_finite(q)
        self.data.ctrl[7 * i : 7 * i + 6] = q

    def gripper(self, i):
        """How far gripper i is closed: 0 open, 1 closed."""
        return float(self.data.qpos[self.fingers[i]] / STROKE)

    def grip(self, i, x):
        """Have gripper i move to 0 (open) .. 1 (closed), at its own speed. ValueError if NaN."""
        check_finite(x)
        self.data.userdata[i] = min(max(float(x), 0.0), 1.0)

    def tcp(self, i):
        """The tool centre point of arm i in the world: position (3,), quaternion (4,)."""
        return pose_of(self.data, self.sites[i])

    # ---- the things

    def objects(self):
        """{name: pose (7,), a position and a quaternion} of the task's things in the world."""
        return {name: self.data.joint(name).qpos.copy() for name in self.things}

    def success(self):
        """Whether the task is done."""
        return self.task is not None and SUCCESS[self.task](self)

    # ---- kinematics

    def fk(self, i, q):
        """Where joint angles (6,) bring the tool centre point: position (3,), quaternion (4,)."""
        self._place(i, q)
        return pose_of(self.scratch, self.sites[i])

    def ik(self, i, position, rotation, q0, steps=50, damping=0.02):
        """Joint angles (6,) near q0 that bring the tool centre point to a pose in the world.

        position (3,); rotation: a matrix (3, 3). Damped least squares on the model; where a pose is
        out of reach, the nearest that was found. `fk` tells.
        """
        q = np.array(q0, float)
        _, first = self.joints[i]
        jacobian = np.empty((6, self.model.nv))
        for _ in range(steps):
            self._place(i, q)
            here = self.scratch.site_xmat[self.sites[i]].reshape(3, 3)
            missing = np.concatenate(
                [position - self.scratch.site_xpos[self.sites[i]], rotvec(rotation @ here.T)]
            )
            if np.abs(missing).max() < 1e-7:
                break
            mujoco.mj_jacSite(self.model, self.scratch, jacobian[:3], jacobian[3:], self.sites[i])
            J = jacobian[:, first : first + 6]
            square = damping**2 * min(1.0, np.linalg.norm(missing)) * np.eye(6)
            step = J.T @ np.linalg.solve(J @ J.T + square, missing)
            q += step * min(1.0, 0.5 / max(np.abs(step).max(), 1e-12))
        return np.clip(q, *JOINT_LIMITS)

    def _place(self, i, q):
        """Bring the scratch data's poses to joint angles (6,) of arm i."""
        first, _ = self.joints[i]
        self.scratch.qpos[first : first + 6] = q
        mujoco.mj_kinematics(self.model, self.scratch)
        mujoco.mj_comPos(self.model, self.scratch)

    # ---- pictures

    @functools.cached_property
    def renderer(self):
        """What draws the cameras. Raises BadInput if there is no OpenGL."""
        from renderer import Renderer

        return Renderer(self.model, dict.fromkeys(CAMERAS, (self.size, self.size)))

    def draw(self, camera):
        """What a camera sees now: (size, size, 3) uint8."""
        return self.renderer.draw(self.data.qpos, camera)


def check_finite(numbers):
    """Refuse what is not finite: MuJoCo would set every servo's target to 0 instead."""
    if not np.isfinite(numbers).all():
        raise ValueError(f"a target that is not finite: {numbers}")


def pose_of(data, site):
    """A site's position (3,) and quaternion (4,)."""
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, data.site_xmat[site])
    return data.site_xpos[site].copy(), quat


def rotvec(R):
    """The axis-angle vector (3,) of a rotation matrix (3, 3)."""
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.asarray(R, float).ravel())
    vector = np.empty(3)
    mujoco.mju_quat2Vel(vector, quat, 1.0)
    return vector


# ---- when a task is done -------------------------------------------------------------------------

LIFTED = 0.05  # metres that the cube must be above where it lay


def lifted(twin):
    """The cube is in the air."""
    return bool(twin.objects()["cube"][2] > TABLE + THINGS["cube"].height + LIFTED)


def put(twin, thing, box):
    """A thing is in a bin, and no gripper is near it."""
    position = twin.objects()[thing][:3]
    near = min(np.linalg.norm(position - twin.tcp(i)[0]) for i in range(2))
    return twin.scene.bins[box].holds(position) and bool(near > THINGS[thing].clear)


def transported(twin):
    """The hammer is in the target bin, and the cube in the trash bin."""
    return put(twin, "hammer", "target") and put(twin, "cube", "trash")


SUCCESS = {
    "ur5-lift": lifted,
    "ur5-can": functools.partial(put, thing="can", box="bin"),
    "ur5-transport": transported,
}
