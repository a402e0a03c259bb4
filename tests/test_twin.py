"""The twin: its kinematics, its servos, that it repeats itself to the bit, and its pictures."""

import math

import numpy as np
import pytest

from commands import BadInput
from motions import about_z
from safety import Cell
from twin import Twin
from twin_model import (
    BASES,
    CAMERAS,
    DH_A,
    DH_ALPHA,
    DH_D,
    GRIP_SPEED,
    HOME,
    JOINT_LIMITS,
    JOINT_SPEED,
    LEFT,
    RIGHT,
    SCENES,
    STROKE,
    TCP,
    THINGS,
    TIMESTEP,
)


@pytest.fixture(scope="module")
def twin():
    return Twin("ur5-transport")


def near_home(rng, i):
    """Random angles (6,) of an arm, around its home."""
    return HOME[i] + rng.uniform(-0.5, 0.5, 6)


def matrix(twin, i, q):
    """The rotation (3, 3) of the tool centre point at angles q."""
    import mujoco

    _, quaternion = twin.fk(i, q)
    R = np.empty(9)
    mujoco.mju_quat2Mat(R, quaternion)
    return R.reshape(3, 3)


# ---- kinematics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("i", (LEFT, RIGHT))
def test_forward_kinematics_are_those_of_the_published_dimensions(twin, i):
    rng = np.random.default_rng(0)
    position, yaw = BASES[i]
    for _ in range(5):
        q = rng.uniform(-math.pi, math.pi, 6)
        T = np.eye(4)
        T[:3, :3] = about_z(yaw)
        T[:3, 3] = position
        for theta, a, d, alpha in zip(q, DH_A, DH_D, DH_ALPHA):
            c = math.cos(alpha)
            s = math.sin(alpha)
            link = np.array([[1, 0, 0, a], [0, c, -s, 0], [0, s, c, d], [0, 0, 0, 1]])
            turn = np.eye(4)
            turn[:3, :3] = about_z(theta)
            T = T @ turn @ link
        np.testing.assert_allclose(twin.fk(i, q)[0], (T @ [0, 0, TCP, 1])[:3], atol=1e-9)
        np.testing.assert_allclose(matrix(twin, i, q), T[:3, :3], atol=1e-9)


def test_the_arms_are_mirror_images_at_home(twin):
    left, _ = twin.fk(LEFT, HOME[LEFT])
    right, _ = twin.fk(RIGHT, HOME[RIGHT])
    np.testing.assert_allclose(left, right * [1, -1, 1], atol=1e-9)
    assert all(
        (low < here).all() and (here < high).all()
        for here, (low, high) in zip((left, right), Cell().boxes)
    )


@pytest.mark.parametrize("i", (LEFT, RIGHT))
def test_inverse_kinematics_come_back(twin, i):
    rng = np.random.default_rng(1)
    for _ in range(10):
        q = near_home(rng, i)
        position, _ = twin.fk(i, q)
        found = twin.ik(i, position, matrix(twin, i, q), q + rng.uniform(-0.2, 0.2, 6))
        np.testing.assert_allclose(twin.fk(i, found)[0], position, atol=1e-5)
        np.testing.assert_allclose(matrix(twin, i, found), matrix(twin, i, q), atol=1e-5)
        np.testing.assert_allclose(found, q, atol=1e-3)  # and not another of the solutions


def test_out_of_reach_gives_the_nearest_that_was_found(twin):
    far = np.array([2.0, 0.35, 0.3])
    found = twin.ik(LEFT, far, matrix(twin, LEFT, HOME[LEFT]), HOME[LEFT])
    assert np.isfinite(found).all()
    assert (found >= JOINT_LIMITS[0]).all() and (found <= JOINT_LIMITS[1]).all()
    reached = np.linalg.norm(twin.fk(LEFT, found)[0] - far)
    assert reached < np.linalg.norm(twin.fk(LEFT, HOME[LEFT])[0] - far)


def test_kinematics_leave_the_twin_alone(twin):
    twin.reset(3)
    before = twin.state()
    twin.ik(RIGHT, np.array([0.4, -0.2, 0.2]), np.diag([1.0, -1, -1]), HOME[RIGHT])
    np.testing.assert_array_equal(twin.state(), before)


# ---- time ----------------------------------------------------------------------------------------


def swing(twin, steps):
    """States while both arms move and a gripper closes."""
    states = []
    for k in range(steps):
        for i in range(2):
            twin.target(i, HOME[i] + 0.3 * math.sin(0.2 * k))
        twin.grip(LEFT, k % 10 / 10)
        twin.step(10)
        states.append(twin.state())
    return np.array(states)


def test_a_seed_gives_the_same_states_to_the_bit(twin):
    twin.reset(5)
    first = swing(twin, 20)
    twin.reset(5)
    np.testing.assert_array_equal(swing(twin, 20), first)
    other = Twin("ur5-transport", seed=5)
    np.testing.assert_array_equal(swing(other, 20), first)
    other.reset(6)
    assert (other.objects()["cube"] != Twin("ur5-transport", seed=5).objects()["cube"]).any()


def test_how_steps_are_counted_changes_nothing(twin):
    twin.reset(0)
    twin.target(LEFT, HOME[LEFT] + 0.2)
    twin.step(40)
    at_once = twin.state()
    twin.reset(0)
    twin.target(LEFT, HOME[LEFT] + 0.2)
    for _ in range(40):
        twin.step()
        twin.tcp(LEFT)
    np.testing.assert_array_equal(twin.state(), at_once)
    assert twin.time == pytest.approx(40 * TIMESTEP)


def test_a_state_brings_the_twin_back(twin):
    twin.reset(1)
    swing(twin, 5)
    state = twin.state()
    place = twin.tcp(RIGHT)[0]
    after = swing(twin, 5)
    twin.set_state(state)
    np.testing.assert_array_equal(twin.tcp(RIGHT)[0], place)
    np.testing.assert_array_equal(swing(twin, 5), after)


@pytest.mark.parametrize("task", SCENES)
def test_things_lie_still_at_their_places(task):
    twin = Twin(task)
    for seed in range(5):
        twin.reset(seed)
        before = twin.objects()
        for name, (low, high) in SCENES[task].places.items():
            assert (before[name][:2] >= low[:2]).all() and (before[name][:2] <= high[:2]).all()
        twin.step(100)
        for name, pose in twin.objects().items():
            np.testing.assert_allclose(pose[:3], before[name][:3], atol=0.003)
            assert pose[2] < THINGS[name].height + 0.01
        assert not twin.success()


# ---- the servos ----------------------------------------------------------------------------------


def test_other_joints_hold_while_one_swings(twin):
    twin.reset(0)
    moved = 0
    for k in range(100):
        q = HOME[LEFT].copy()
        q[0] += 0.4 * math.sin(2 * math.pi * k / 100)
        twin.target(LEFT, q)
        twin.step(10)
        moved = max(moved, abs(twin.q(LEFT)[0] - HOME[LEFT][0]))
        assert np.abs(twin.q(LEFT)[1:] - HOME[LEFT][1:]).max() < 2e-3
        assert np.abs(twin.q(RIGHT) - HOME[RIGHT]).max() < 1e-6
    assert moved > 0.3


def test_a_target_is_reached_and_velocities_are_of_the_joints(twin):
    twin.reset(0)
    twin.target(RIGHT, HOME[RIGHT] + 0.3)
    twin.step(50)
    before = twin.q(RIGHT)
    twin.step()
    np.testing.assert_allclose((twin.q(RIGHT) - before) / TIMESTEP, twin.qd(RIGHT), atol=1e-9)
    twin.step(1000)
    np.testing.assert_allclose(twin.q(RIGHT), HOME[RIGHT] + 0.3, atol=1e-3)


def test_follow_goes_evenly_and_not_too_fast(twin):
    twin.reset(0)
    near = HOME + 0.1
    twin.follow(near, [0, 0], 50)
    np.testing.assert_allclose(twin.data.ctrl.reshape(2, 7)[:, :6], near)
    twin.follow(HOME + 3, [0, 0], 50)
    most = JOINT_SPEED * 50 * TIMESTEP
    np.testing.assert_allclose(twin.data.ctrl.reshape(2, 7)[:, :6], near + most)
    for _ in range(30):
        twin.follow(HOME + 30, [0, 0], 50)
    assert twin.data.ctrl.reshape(2, 7)[:, :6].max() <= JOINT_LIMITS.max()


@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_a_target_that_is_not_finite_is_refused(twin, bad):
    twin.reset(0)
    before = twin.state()
    broken = HOME.copy()
    broken[RIGHT, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        twin.target(RIGHT, broken[RIGHT])
    with pytest.raises(ValueError, match="not finite"):
        twin.follow(broken, [0, 0], 50)
    with pytest.raises(ValueError, match="not finite"):
        twin.grip(RIGHT, bad)
    np.testing.assert_array_equal(twin.state(), before)


def test_a_gripper_closes_at_its_own_speed(twin):
    twin.reset(0)
    twin.grip(LEFT, 1)
    half = round(STROKE / GRIP_SPEED / TIMESTEP / 2)
    twin.step(half)
    assert 0.2 < twin.gripper(LEFT) < 0.55
    twin.step(2 * half)
    assert twin.gripper(LEFT) == pytest.approx(1, abs=0.05)
    assert twin.gripper(RIGHT) == pytest.approx(0, abs=0.01)


# ---- pictures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(twin):
    """The twin; skips without OpenGL."""
    try:
        twin.renderer  # noqa: B018 - it is made here
    except BadInput as e:
        pytest.skip(f"needs OpenGL: {e}")
    return twin


def test_a_moved_thing_and_a_moved_arm_change_pixels(drawn):
    drawn.reset(0)
    before = {camera: drawn.draw(camera) for camera in CAMERAS}
    for camera, picture in before.items():
        assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
        np.testing.assert_array_equal(drawn.draw(camera), picture)
    drawn.data.joint("cube").qpos[0] += 0.05
    assert (drawn.draw("front") != before["front"]).any()
    assert (drawn.draw("right_wrist") != before["right_wrist"]).any()
    drawn.reset(0)
    drawn.target(LEFT, HOME[LEFT] + 0.2)
    drawn.step(200)
    assert (drawn.draw("front") != before["front"]).any()
    assert (drawn.draw("left_wrist") != before["left_wrist"]).any()
    np.testing.assert_array_equal(drawn.draw("right_wrist"), before["right_wrist"])
