"""The limits of the two arms' motion: what is clipped, what is refused, and who may go on."""

import json
from dataclasses import replace
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from commands import BadInput
from safety import (
    BETWEEN,
    GO,
    HOLD,
    STOP,
    Cell,
    Patience,
    Refused,
    check_chunk,
    judge,
    limited,
    nearest,
    read_cell,
    skeleton,
    violations,
)

CELL = Cell()
HOME = np.concatenate([np.array(CELL.home), np.zeros((2, 1))], 1)  # (2, 7)
STILL = np.zeros((2, 6))


def moved(joint, by, arm=0):
    """HOME with a joint of an arm moved."""
    point = HOME.copy()
    point[arm, joint] += by
    return point


def limit(points, cell=CELL, here=HOME, speed=STILL, dt=0.1):
    """limited() of points a step of dt apart."""
    times = dt * np.arange(1, len(points) + 1)
    return limited(times, np.array(points), 0.0, here, speed, cell)


# ---- where the arms are --------------------------------------------------------------------------


def test_the_skeleton_is_the_twins():
    twin_model = pytest.importorskip("twin_model")
    from twin import Twin

    twin = Twin()
    rng = np.random.default_rng(0)
    for i in range(2):
        for q in rng.uniform(-3, 3, (5, 6)):
            assert np.allclose(skeleton(q, i, CELL)[-1], twin.fk(i, q)[0], atol=1e-9)
    assert np.allclose(CELL.home, twin_model.HOME)
    assert CELL.speed == twin_model.JOINT_SPEED


def test_an_upright_arm():
    up = np.array([0, -np.pi / 2, 0, -np.pi / 2, 0, 0])
    points = skeleton(up, 0, CELL)
    shoulder, elbow, wrist = 0.1625, 0.1625 + 0.425, 0.1625 + 0.425 + 0.3922
    assert np.allclose(points[:5, 2], [shoulder, shoulder, elbow, elbow, wrist])
    assert np.allclose(points[:5, 0], 0)
    assert np.allclose(points[:5, 1], 0.35 - np.array([0, 0.138, 0.138, 0.007, 0.007]))


@pytest.mark.parametrize("i", [0, 1])
def test_the_skeleton_lies_in_the_twins_links(i):
    from twin import Twin
    from twin_model import JOINTS, LINKS, SIDES

    twin = Twin()
    q = np.random.default_rng(0).uniform(-3, 3, 6)
    first, _ = twin.joints[i]
    twin.data.qpos[first : first + 6] = q
    mujoco.mj_kinematics(twin.model, twin.data)
    points = skeleton(q, i, CELL)
    for link, capsule, ends in ((1, 1, (1, 2)), (2, 1, (3, 4))):  # the upper arm, the forearm
        body = twin.data.body(f"{SIDES[i]}_{JOINTS[link]}")
        for point, end in zip(LINKS[link][capsule], ends):
            place = body.xpos + body.xmat.reshape(3, 3) @ point
            assert np.allclose(points[end], place, atol=1e-9)


def deepest_contact(cell):
    """How deep the twin's arms are in each other, in metres, at poses that a cell allows.

    Of 20,000 poses around home, the 200 in which they are nearest.
    """
    from twin import Twin

    twin = Twin()
    model = twin.model
    data = twin.data
    rng = np.random.default_rng(0)
    points = np.zeros((20_000, 2, 7))
    points[..., :6] = np.array(cell.home) + rng.uniform(-1.2, 1.2, (20_000, 2, 6))
    points = points[np.all([far == 0 for far in violations(points, cell).values()], 0)]
    bones = [skeleton(points[:, i, :6], i, cell) for i in range(2)]
    gap = nearest(BETWEEN @ bones[0], BETWEEN @ bones[1])
    owner = [model.body(model.geom_bodyid[g]).name.partition("_")[0] for g in range(model.ngeom)]
    deepest = 0.0
    for q in points[np.argsort(gap)[:200]]:
        for i in range(2):
            first, _ = twin.joints[i]
            data.qpos[first : first + 6] = q[i, :6]
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        for contact in data.contact:
            if {owner[g] for g in contact.geom} == {"left", "right"}:
                deepest = min(deepest, contact.dist)
    return -deepest


def test_arms_that_keep_their_distance_do_not_touch():
    """But for the corners of the grippers, which are wider than the lines' distance allows for."""
    assert deepest_contact(CELL) < 0.015
    assert deepest_contact(Cell(apart=0.06)) > 0.02


def test_violations_of_space():
    far = violations(HOME[None], CELL)
    assert all(value == 0 for value in far.values())
    tool = skeleton(HOME[0, :6], 0, CELL)[-1]
    low = (tuple(tool + np.array([0.03, -1, -1])), tuple(tool + 1))
    cell = Cell(boxes=(low, CELL.boxes[1]))
    assert violations(HOME[None], cell)["workspace box of the left arm"] == pytest.approx(0.03)
    assert violations(HOME[None], cell)["workspace box of the right arm"] == 0
    cell = Cell(table=tool[2] + 0.01)
    assert violations(HOME[None], cell)["table under the left arm"] == pytest.approx(0.01)
    near = 2 * (0.35 - 0.138)  # of the upper arms, which stand beside the shoulders
    assert violations(HOME[None], Cell(apart=near + 0.02))[
        "distance between the arms"
    ] == pytest.approx(0.02)


# ---- where they shall go -------------------------------------------------------------------------


def test_what_keeps_to_the_limits_is_not_changed():
    points = [moved(0, 0.05), moved(0, 0.15), moved(0, 0.2)]
    allowed, clipped = limit(points)
    assert clipped == [] and np.allclose(allowed, points)


def test_joint_limits():
    cell = Cell(joints=(-1.6, 1.6))
    allowed, clipped = limit([moved(1, -0.06)], cell)  # -1.63: 0.03 beyond
    assert clipped == ["joint limit"] and allowed[0, 0, 1] == pytest.approx(-1.6)
    with pytest.raises(Refused, match="a joint 0.13 rad beyond its limit"):
        limit([moved(1, -0.16)], cell)


def test_speed_is_clipped_and_caught_up():
    cell = Cell(speed=1.0, acceleration=1e9)
    allowed, clipped = limit([moved(0, 0.15), moved(0, 0.2), moved(0, 0.2)], cell)
    assert clipped == ["speed"]
    assert np.allclose(allowed[:, 0, 0], [0.1, 0.2, 0.2])
    with pytest.raises(Refused, match="the first target is 0.25 rad from where the arm is"):
        limit([moved(0, 0.25)], cell)
    with pytest.raises(Refused, match="a speed of 2.5 rad/s"):
        limit([moved(0, 0.05), moved(0, 0.3)], cell)


def test_a_target_is_not_farther_because_it_comes_late():
    """0.15 rad in the 0.06 s that are left is 2.5 rad/s, but 1.5 rad/s of a whole step."""
    cell = Cell(speed=1.0, acceleration=1e9)
    times = np.array([0.06, 0.16])
    points = np.array([moved(0, 0.15), moved(0, 0.15)])
    allowed, clipped = limited(times, points, 0.0, HOME, STILL, cell)
    assert clipped == ["speed"] and np.allclose(allowed[:, 0, 0], [0.06, 0.15])
    points = np.array([moved(0, 0.21), moved(0, 0.21)])
    with pytest.raises(Refused, match="the first target is 0.21 rad from where the arm is"):
        limited(times, points, 0.0, HOME, STILL, cell)


def test_acceleration_is_clipped():
    cell = Cell(acceleration=5.0)
    allowed, clipped = limit([moved(0, 0.1), moved(0, 0.2)], cell)
    assert clipped == ["acceleration"]
    assert np.allclose(allowed[:, 0, 0], [0.05, 0.15])  # 0.5 rad/s, then 1.0
    moving = STILL.copy()
    moving[0, 0] = 1.0
    allowed, clipped = limit([moved(0, 0.1), moved(0, 0.2)], cell, speed=moving)
    assert clipped == [] and np.allclose(allowed[:, 0, 0], [0.1, 0.2])


def test_braking_does_not_pass_a_joints_limit():
    """A joint at 2 rad/s in front of its limit, which it would pass by 0.1 rad."""
    cell = Cell(acceleration=5.0, joints=(-1.6, 1.6))
    near = moved(5, 1.55)
    moving = STILL.copy()
    moving[0, 5] = 2.0
    allowed, clipped = limit([near, near], cell, here=near, speed=moving)
    assert clipped == ["acceleration"] and allowed[:, 0, 5].max() == 1.6


def test_grippers_are_clipped():
    allowed, _ = limit([moved(6, 1.5)])
    assert allowed[0, 0, 6] == 1.0


def beyond(name):
    """A cell, and a point that is 1 cm beyond its limit of that name, where HOME is within."""
    point = moved(0, -0.10) if name == "distance between the arms" else moved(1, -0.10)
    tool = skeleton(point[0, :6], 0, CELL)[-1]
    if name.startswith("workspace box"):
        box = ((0, -1, tool[2] + 0.01), (1, 1, 1))
        return Cell(boxes=(box, CELL.boxes[1])), point
    if name.startswith("table"):
        return Cell(table=tool[2] + 0.01), point
    wide = Cell(apart=9.0)
    gap = 9.0 - violations(point[None], wide)[name][0]
    return Cell(apart=gap + 0.01), point


@pytest.mark.parametrize(
    "name",
    ["workspace box of the left arm", "table under the left arm", "distance between the arms"],
)
def test_a_limit_of_space_ends_the_chunk_or_refuses_it(name):
    cell, point = beyond(name)
    assert violations(HOME[None], cell)[name] == 0
    assert violations(point[None], cell)[name] == pytest.approx(0.01)
    allowed, clipped = limit([HOME, point, point], cell, dt=0.2)
    assert clipped == [name] and np.allclose(allowed, [HOME])
    with pytest.raises(Refused, match=name):
        limit([HOME, point], replace(cell, small_distance=0.001), dt=0.2)
    # Where the right arm is beyond its own limit, the left one is still held to its.
    low = skeleton(HOME[1, :6], 1, cell)[-1] + 0.05
    outside = replace(cell, boxes=(cell.boxes[0], (tuple(low), tuple(low + 1))))
    allowed, clipped = limit([HOME, point, point], outside, dt=0.2)
    assert clipped == [name] and np.allclose(allowed, [HOME])
    # From beyond the limit the arms may come back, but not on.
    allowed, clipped = limit([HOME], cell, here=point, dt=0.2)
    assert clipped == [] and np.allclose(allowed, [HOME])


@pytest.mark.parametrize(
    "chunk, words",
    [
        (np.zeros((16, 13)), "has shape"),
        (np.zeros(14), "has shape"),
        (np.full((16, 14), np.nan), "not finite"),
        (np.full((16, 14), np.inf), "not finite"),
    ],
)
def test_what_is_no_chunk_is_refused(chunk, words):
    check_chunk(np.zeros((16, 14)), 16, 14)
    with pytest.raises(Refused, match=words):
        check_chunk(chunk, 16, 14)


# ---- whether they may go on ----------------------------------------------------------------------


def judged(now=10.0, t=10.0, fault=None, frame=10.0, plan_end=11.0, held=None, pressed=True):
    """judge() of two arms and a camera; fault and t are the right arm's."""
    states = [SimpleNamespace(t=now, fault=None), SimpleNamespace(t=t, fault=fault)]
    patience = Patience(frame=0.067, state=0.02, held=0.5)
    return judge(now, states, {"front": frame}, plan_end, held, pressed, patience)


def test_who_may_go_on():
    assert judged() == (GO, "")
    assert judged(plan_end=None) == (GO, "")
    assert judged(fault="protective stop") == (STOP, "right arm: protective stop")
    assert judged(pressed=False) == (STOP, "the operator's switch is released")
    assert judged(t=9.985)[0] == GO
    assert judged(t=9.97) == (HOLD, "right arm: its state is 30 ms old")
    assert judged(frame=9.9) == (HOLD, "front: the newest frame is 100 ms old")
    assert judged(plan_end=9.99)[0] == HOLD
    assert judged(frame=9.9, held=9.6)[0] == HOLD
    assert judged(frame=9.9, held=9.4)[0] == STOP
    assert judged(held=9.4)[0] == GO, "what it was held for is over"


# ---- the workplace -------------------------------------------------------------------------------


def test_a_cell_of_a_file(tmp_path):
    path = tmp_path / "cell.json"
    path.write_text(json.dumps({"model": "ur5", "speed": 0.5}))
    assert (read_cell(path).model, read_cell(path).speed) == ("ur5", 0.5)
    assert read_cell() == Cell()
    for text, words in (
        ("{", "is not JSON"),
        ("[]", "takes an object"),
        ('{"spede": 1}', "takes an object"),
        ('{"speed": "fast"}', "speed cannot be used"),
        ('{"speed": NaN}', "speed cannot be used"),
        ('{"model": "ur99"}', "model cannot be used"),
        ('{"bases": [[0, 0, 0, 0]]}', "bases cannot be used"),
        ('{"acceleration": -0.5}', "acceleration cannot be used"),
        ('{"speed": "0.3"}', "speed cannot be used"),
        ('{"home_speed": 0}', "home_speed cannot be used"),
        ('{"apart": true}', "apart cannot be used"),
        ('{"model": ["ur5"]}', "model cannot be used"),
        (f'{{"tool": {"9" * 400}}}', "tool cannot be used"),
        ('{"joints": [6, -6]}', "joints cannot be used"),
        ('{"boxes": [[[0, 0, 0], [1, 1, 1]], [[0, 0, 1], [1, 1, 0]]]}', "boxes cannot be used"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=words):
            read_cell(path)
