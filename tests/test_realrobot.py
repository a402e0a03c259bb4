"""The robot loop on simulated arms and a clock of the test's own: chunks, faults, logs, commands.

The arms are ur5.FakeArm: the servo, the plan and the faults are the real ones.
"""

import json
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import envs
import realrobot
import robot_spacemouse
import robot_switch
from commands import BadInput
from plan import ensembled, schedule
from realrobot import ARM, D_A, Loop
from robot_cameras import Cameras, recorded
from robot_log import COLUMNS, Log
from robot_motion import go_home, move, targets
from robot_record import pushed, teleoperated
from robot_spacemouse import FULL, MOVED, PLACED
from robot_switch import KEY, Pedal, Space
from robot_view import View
from safety import GO, HOLD, STOP, Cell, Patience, Refused, skeleton
from ur5 import FakeArm

CELL = Cell()
PERIOD = 1 / 500  # of the servos
CYCLE = 0.02  # of the policy
SPEED = 0.1  # rad/s of the first joints in the test's chunks


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.t = 100.0

    def __call__(self):
        return self.t

    def sleep(self, seconds):
        """Let time pass."""
        self.t += seconds


class Turning:
    """A policy that turns both arms' first joints at SPEED from where they are."""

    T_o = 2
    T_p = 16
    T_a = 8
    D_a = D_A
    z_scale = 1.0
    specs = {
        "front": {"shape": [8, 8, 3], "dtype": "uint8"},
        "proprio": {"shape": [D_A], "dtype": "float32"},
    }

    def __init__(self):
        self.seen = []
        self.latents = []
        self.wrong = None  # a function that spoils a chunk

    def latent(self, n, generator):
        """z of n chunks."""
        return torch.randn(n, self.T_p, self.D_a, generator=generator)

    def tensors(self, obs):
        """Observations as tensors."""
        return {name: torch.as_tensor(y) for name, y in obs.items()}

    def act(self, obs, z):
        """A chunk of each observation."""
        self.seen.append({name: y.numpy() for name, y in obs.items()})
        self.latents.append(z)
        steps = torch.arange(self.T_p) - self.T_o + 2  # tenths of a second from the observation on
        chunk = obs["proprio"][:, -1:].repeat(1, self.T_p, 1).double()
        chunk[:, :, [0, ARM]] += 0.1 * SPEED * steps[:, None]
        return chunk if self.wrong is None else self.wrong(chunk)


class Setup:
    """Two fake arms at home, a camera, a policy and a loop, on one clock."""

    def __init__(self, **how):
        self.clock = Clock()
        self.arms = [FakeArm(home=home, clock=self.clock) for home in np.array(CELL.home)]
        for arm in self.arms:
            arm.start()
        picture = np.zeros((8, 8, 3), np.uint8)
        self.cameras = Cameras({"front": lambda: (self.clock(), picture)}, 30, self.clock)
        self.cameras.capture("front")
        self.sees = True
        self.pressed = True
        self.policy = Turning()
        self.loop = Loop(
            self.policy,
            self.arms,
            self.cameras,
            CELL,
            clock=self.clock,
            pressed=lambda: self.pressed,
            **how,
        )
        self.loop.plan_end = self.clock() + realrobot.FIRST

    def advance(self, seconds=CYCLE):
        """Let time pass; the camera sees."""
        self.clock.sleep(seconds)
        if self.sees:
            self.cameras.capture("front")

    def cycles(self, n):
        """n cycles of the loop."""
        for _ in range(n):
            self.advance()
            self.loop.cycle()

    def targets(self):
        """(2, 7): what both arms were last sent."""
        return np.stack([targets(arm.state()) for arm in self.arms])


@pytest.fixture
def setup():
    """A Setup whose arms are turning."""
    made = Setup()
    made.cycles(20)
    return made


# ---- from a chunk to targets ---------------------------------------------------------------------


def test_a_chunk_is_scheduled_by_its_times():
    """T_o 2, T_p 4: action 1 is due a step after the observation, action 3 three steps after it."""
    chunk = np.arange(4)[:, None] + np.arange(D_A) / 100
    times, points = schedule(chunk, t_obs=10.0, now=10.0, dt=0.1, T_o=2)
    assert np.allclose(times, [10.1, 10.2, 10.3])
    assert points.shape == (3, 2, ARM)
    assert np.allclose(points[:, 0, 0], [1, 2, 3])
    assert np.allclose(points[0, 1], 1 + np.arange(7, 14) / 100), "the right arm comes second"


@pytest.mark.parametrize(
    "now, times, first",
    [
        (10.04, [10.1, 10.2, 10.3], 1),
        (10.06, [10.2, 10.3], 2),  # the first one is less than half a step ahead
        (10.17, [10.3], 3),
        (10.9, [11.0], 3),  # all are past: the last one goes to the next step
    ],
)
def test_what_has_passed_is_dropped_and_something_is_left(now, times, first):
    chunk = np.arange(4)[:, None] + np.zeros(D_A)
    found, points = schedule(chunk, t_obs=10.0, now=now, dt=0.1, T_o=2)
    assert np.allclose(found, times) and points[0, 0, 0] == first


def test_the_mean_of_chunks():
    """At 1.0 both chunks reach, at 2.0 and beyond only the newer one; grippers are the newer's."""
    old = np.zeros((2, D_A))
    new = np.ones((2, D_A))
    points = ensembled([(0.0, old), (1.0, new)], np.array([1.0, 2.0, 2.5]), 1.0)
    newer = np.exp(-0.01) / (1 + np.exp(-0.01))
    assert points.shape == (3, 2, ARM)
    assert np.allclose(points[:, 0, 0], [newer, 1.0, 1.0])
    assert np.allclose(points[:, :, 6], 1.0)
    rising = np.linspace(0, 1, 3)[:, None] + np.zeros(D_A)  # 0, 0.5, 1 at 0, 1, 2
    ones = np.ones((3, D_A))
    point = ensembled([(0.0, rising), (1.0, ones)], np.array([1.5]), 1.0)[0, 0, 0]
    assert point == pytest.approx(0.75 * (1 - newer) + newer)


def test_the_mean_is_of_a_chunk_a_step_however_many_there_are():
    """50 chunks a second and 0.1 s a step: 16 chunks reach as far back as 16 steps do."""
    made = Setup(ensemble=True)
    made.cycles(200)
    first = np.array([t for t, _ in made.loop.chunks])
    assert len(first) == Turning.T_p
    assert np.allclose(np.diff(first[:-1]), 0.1) and 0 < first[-1] - first[-2] <= 0.1 + 1e-6


# ---- the cameras ---------------------------------------------------------------------------------


def test_a_frame_is_encoded_once_when_it_is_captured():
    clock = Clock()
    calls = []

    def encoded(name, frame):
        calls.append(name)
        return np.array([frame.mean()])

    numbers = np.array([1.0, 2.0])  # no picture
    sources = {
        "front": lambda: (clock(), np.full((2, 2, 3), 10 * len(calls), np.uint8)),
        "state": lambda: (clock(), numbers),
    }
    cameras = Cameras(sources, 30, clock, encoded)
    for _ in range(3):
        for name in sources:
            cameras.capture(name)
        clock.sleep(0.1)
    assert calls == 3 * ["front"]
    assert cameras.at("front", [100.0, 100.1, 100.1]).tolist() == [[0], [10], [10]]
    assert cameras.newest("front").shape == (2, 2, 3) and cameras.newest("front")[0, 0, 0] == 20
    assert np.array_equal(cameras.at("state", [100.0])[0], numbers)
    assert len(calls) == 3


# ---- the live view -------------------------------------------------------------------------------


class FakeStream:
    """Keeps what it was given to show: {name: (time, what)}."""

    def __init__(self, name):
        self.shown = {}

    def save(self, path):
        self.path = path

    def set_time(self, timeline, duration):
        self.time = duration

    def log(self, name, what):
        self.shown[name] = self.time, what

    def flush(self):
        self.flushed = True

    def disconnect(self):
        self.flushed = True


def lines(strips, colors):
    """What LineStrips3D is told."""
    return np.asarray(strips[0])


@pytest.fixture
def fake_rerun(monkeypatch):
    """A stand-in of rerun that keeps the arguments."""
    same = {name: staticmethod(lambda x: x) for name in ("Image", "Scalars", "TextLog")}
    fake = SimpleNamespace(RecordingStream=FakeStream, LineStrips3D=lines, **same)
    monkeypatch.setitem(sys.modules, "rerun", fake)


def test_the_view_shows_the_newest_cycle(setup, fake_rerun):
    view = View("run.rrd", setup.cameras, CELL)
    setup.loop.view = view
    setup.cycles(1)
    setup.loop.log.event(setup.clock(), "held: a test")
    setup.cycles(1)
    view.close()
    row = setup.loop.log.rows[-1]
    shown = view.stream.shown
    assert shown["left/base/measured"] == (row["begun"], row["q"][0, 0])
    assert shown["cameras/front"][1].shape == (8, 8, 3)
    links = skeleton(row["q"][1, :6], 1, CELL)
    assert np.allclose(shown["arms/right"][1], links)
    plan = shown["arms/right/plan"][1]
    assert np.allclose(plan[0], links[-1]) and len(plan) == 1 + row["used"]
    assert shown["events"][1] == "held: a test"
    assert view.stream.flushed


def test_a_view_without_rerun_says_what_to_install(setup, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(BadInput, match="pip install 'rerun-sdk"):
        View("", setup.cameras, CELL)


def test_a_view_is_written_by_rerun(setup, tmp_path):
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    view = View(tmp_path / "run.rrd", setup.cameras, CELL)
    setup.loop.view = view
    setup.cycles(2)
    view.close()
    assert (tmp_path / "run.rrd").read_bytes()[:3] == b"RRF"


# ---- the loop ------------------------------------------------------------------------------------


def test_the_arms_follow_the_policy(setup):
    """In 2 s the joints turn by 0.2 rad, less the lag, and every cycle is in the log."""
    before = setup.targets()
    setup.cycles(100)
    moved = setup.targets() - before
    assert 0.15 < moved[0, 0] < 0.21 and 0.15 < moved[1, 0] < 0.21
    assert np.abs(moved[:, 1:]).max() < 0.01
    log = setup.loop.log.arrays()
    assert set(log) == set(COLUMNS) and all(len(rows) == 120 for rows in log.values())
    assert np.isfinite(log["commanded"]).all() and (log["used"] == 15).all()
    assert setup.loop.log.events == [] and setup.loop.stopped == ""


def test_observations_are_aligned_by_time(setup):
    """The frames and the arms' states are those of now and of 0.1 s before, 5 cycles."""
    shown = []

    def source():
        shown.append(len(shown))
        return setup.clock(), np.full((8, 8, 3), len(shown), np.uint8)

    setup.cameras.sources["front"] = source
    setup.cycles(10)
    seen = setup.policy.seen[-1]
    assert seen["front"].shape == (1, 2, 8, 8, 3) and seen["proprio"].shape == (1, 2, D_A)
    assert seen["front"].dtype == np.uint8 and seen["proprio"].dtype == np.float32
    assert [frame.max() for frame in seen["front"][0]] == [5, 10]
    then = setup.loop.log.arrays()["q"][[-6, -1]].reshape(2, D_A)
    assert np.allclose(seen["proprio"][0], then, atol=2e-4)


def test_an_old_frame_is_seen_with_the_arms_of_its_time(setup):
    """A frame of 0.06 s ago, 3 cycles: the arms have turned on since; the chunk is from then."""
    setup.sees = False
    setup.cycles(3)
    seen = setup.policy.seen[-1]["proprio"][0, -1]
    frame = setup.cameras.times()["front"]
    rows = setup.loop.log.arrays()
    assert frame == pytest.approx(setup.clock() - 0.06)
    assert np.allclose(seen, rows["q"][-4].reshape(D_A), atol=2e-4)
    assert np.abs(seen - rows["q"][-1].reshape(D_A)).max() > 0.03 * SPEED
    _, t_obs = setup.loop.observe(setup.loop.guard(late=False)[1])
    assert t_obs == frame


def test_a_latent_stays_for_the_executed_steps(setup):
    """T_a 8 steps of 0.1 s are 40 cycles of 90; another one could lead another way round."""
    setup.policy.latents.clear()
    setup.cycles(90)
    different = {z[0, 0, 0].item() for z in setup.policy.latents}
    assert len(different) == 3


def test_a_refused_chunk_is_followed_by_another_latent(setup):
    """Else the same way would be refused again and again for T_a steps."""
    setup.cycles(3)
    setup.policy.wrong = lambda chunk: chunk + 2.0
    setup.policy.latents.clear()
    setup.cycles(5)
    setup.policy.wrong = None
    setup.cycles(5)
    z = [z[0, 0, 0].item() for z in setup.policy.latents]
    assert len(set(z[:6])) == 6 and len(set(z[5:])) == 1


def test_a_refused_chunk_is_followed_by_another_at_once(setup, monkeypatch):
    """With a chunk a second the plan would end before the next one, and the arms would stop."""
    monkeypatch.setattr(realrobot.time, "sleep", setup.advance)
    called = []

    def wrong(chunk):
        setup.advance(0.01)
        called.append(setup.clock())
        return chunk + 2.0 * (len(called) < 4)

    begun = setup.clock()
    setup.policy.wrong = wrong
    setup.loop.run(2.5, hz=1)
    assert np.allclose(called[:4], begun + np.array([0.01, 0.02, 0.03, 0.04]))
    assert len(called) == 6 and called[4] > begun + 0.9 and not setup.loop.stopped


def test_the_next_chunk_comes_before_a_plan_that_was_cut_ends(setup):
    """A chunk a second, and plans that end in 0.2 or 0.05 s, or have ended: the arms are held."""
    assert setup.loop.next_due(setup.clock(), 1) == pytest.approx(setup.clock() + 1)
    setup.loop.plan_end = setup.clock() + 0.2
    assert setup.loop.next_due(setup.clock(), 1) == pytest.approx(setup.clock() + 0.1)
    setup.loop.plan_end = setup.clock() + 0.05
    assert setup.loop.next_due(setup.clock(), 1) == pytest.approx(setup.clock() + 0.01)
    setup.loop.plan_end = setup.clock() - 0.05
    assert setup.loop.next_due(setup.clock(), 1) == pytest.approx(setup.clock() + 1)


def test_ensembling_moves_the_arms_too():
    made = Setup(ensemble=True)
    made.cycles(60)
    assert 0.05 < made.targets()[0, 0] < 0.13


def test_chunks_from_before_a_hold_count_in_no_later_mean():
    made = Setup(ensemble=True)
    made.cycles(20)
    assert made.loop.chunks
    made.sees = False
    made.cycles(4)  # 80 ms: more than two frames
    assert made.loop.held is not None and not made.loop.chunks


def test_a_refused_chunk_counts_in_no_later_mean():
    made = Setup(ensemble=True)
    made.cycles(20)

    def far(chunk):
        chunk[:, :, 5] += 2.0
        return chunk

    made.policy.wrong = far
    made.cycles(1)
    made.policy.wrong = None
    wrist = made.targets()[0, 5]
    made.cycles(60)
    assert abs(made.targets()[0, 5] - wrist) < 0.01
    assert not any("clipped" in event["text"] for event in made.loop.log.events)


def test_the_summary_by_hand():
    """Chunks every 10 ms, of states 4 ms old."""
    log = Log(["front"])
    for k in range(11):
        t = 5 + 0.01 * k
        row = dict.fromkeys(COLUMNS, np.zeros((2, ARM))) | {"used": 1, "begun": t}
        row |= {"observed": t - 0.003, "inferred": t - 0.001}
        row |= {"state_t": [t - 0.002, t - 0.004], "frame_t": [t - 0.03], "commanded": t}
        log.add(**row)
    found = log.summary()
    assert found["policy_hz"] == pytest.approx(100)
    assert found["newest_state_to_command_p99_ms"] == pytest.approx(4)
    assert found["frame_to_command_p50_ms"] == pytest.approx(30)
    assert found["network_p99_ms"] == pytest.approx(2)
    assert Log([]).summary() == {"cycles": 0, "chunks": 0}


def test_the_log_file(setup, tmp_path):
    setup.loop.log.event(1.0, "something")
    setup.loop.log.event(2.0, "something")
    setup.loop.log.save(tmp_path / "log.npz")
    with np.load(tmp_path / "log.npz", allow_pickle=False) as file:
        assert file["q"].shape == (20, 2, ARM)
        assert json.loads(str(file["cameras"])) == ["front"]
        assert json.loads(str(file["events"]))[0]["count"] == 2


# ---- faults --------------------------------------------------------------------------------------

STOPS = {  # what is done to the setup -> words of the reason; both arms then stop
    "protective stop": (lambda s: s.arms[1].controller.protective(), "right arm: protective"),
    "emergency stop": (lambda s: s.arms[0].controller.emergency(), "left arm: emergency"),
    "robot mode": (lambda s: setattr(s.arms[0].controller, "mode", 3), "left arm: robot mode 3"),
    "program stopped": (lambda s: s.arms[1].controller.end_program(), "right arm: program"),
    "speed scaling": (lambda s: setattr(s.arms[0].controller, "scaling", 0.5), "speed scaling"),
    "gripper": (lambda s: setattr(s.arms[0].client, "lost", "gripper lost: gone"), "gripper"),
    "receive": (lambda s: setattr(s.arms[1].client, "lost", "receive lost"), "right arm: receive"),
    "control": (lambda s: setattr(s.arms[1].client, "lost", "control lost"), "right arm: control"),
    "switch": (lambda s: setattr(s, "pressed", False), "the operator's switch is released"),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_fault_of_either_arm_stops_both(setup, name):
    """A servo period after the fault is seen, no target of either arm changes any more."""
    inject, words = STOPS[name]
    inject(setup)
    setup.advance(2 * PERIOD)
    level, _ = setup.loop.guard()
    assert level == STOP and words in setup.loop.stopped
    setup.advance(PERIOD)
    held = setup.targets()
    rows = len(setup.loop.log.rows)
    setup.cycles(20)
    assert np.array_equal(setup.targets(), held)
    assert len(setup.loop.log.rows) == rows + 20, "the log goes on"
    assert np.isnan(setup.loop.log.arrays()["commanded"][rows:]).all()
    assert all(arm.state().fault for arm in setup.arms)
    assert [event["text"] for event in setup.loop.log.events] == [f"stopped: {setup.loop.stopped}"]


def test_a_stall_of_an_arm_stops_both(setup):
    """The arm's clock stands still: within 60 ms its servo tells, and the loop stops both."""
    setup.arms[0].client.stalled = True
    for _ in range(4):
        setup.advance()
        setup.loop.guard()
    assert setup.loop.stopped.startswith("left arm: state stale")
    held = setup.targets()
    setup.cycles(5)
    assert np.array_equal(setup.targets(), held)


def test_a_stale_picture_holds_and_then_stops(setup):
    setup.sees = False
    setup.cycles(4)  # 80 ms: more than two frames
    assert setup.loop.guard()[0] == HOLD
    setup.advance(PERIOD)
    held = setup.targets()
    setup.cycles(5)
    assert np.array_equal(setup.targets(), held)
    setup.sees = True
    setup.cycles(1)
    assert setup.loop.guard()[0] == GO and setup.loop.held is None
    setup.cycles(10)
    assert setup.targets()[0, 0] > held[0, 0], "it goes on by itself from a hold"
    setup.sees = False
    setup.cycles(40)
    assert "and the arms have been held for 0.5 s" in setup.loop.stopped
    held, stopped = setup.loop.log.events
    assert held["text"].startswith("held: front") and held["count"] == 2
    assert stopped["text"] == f"stopped: {setup.loop.stopped}"


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda chunk: chunk * torch.nan, "not finite"),
        (lambda chunk: chunk[:, :, :13], "has shape (16, 13), not (16, 14)"),
        (lambda chunk: chunk[:, :15], "has shape (15, 14), not (16, 14)"),
        (lambda chunk: chunk + 2.0, "the first target is 2."),
    ],
)
def test_a_wrong_chunk_is_refused_and_the_old_plan_goes_on(setup, wrong, words):
    """The tail of the old plan lasts 1.5 s; then the arms hold, and half a second later stop."""
    before = setup.targets()[0, 0]
    setup.policy.wrong = wrong
    setup.cycles(50)
    assert setup.targets()[0, 0] - before == pytest.approx(SPEED * 1.0, abs=0.02)
    assert setup.loop.guard()[0] == GO
    assert words in setup.loop.log.events[0]["text"] and setup.loop.log.events[0]["count"] == 50
    setup.cycles(30)
    assert setup.loop.guard()[0] == HOLD
    held = setup.targets()
    for _ in range(40):
        setup.advance()
        setup.loop.cycle()
        setup.loop.guard()
    assert np.array_equal(setup.targets(), held)
    assert "there is no new chunk, and the plan has ended" in setup.loop.stopped


def test_a_network_that_hangs_is_noticed(setup):
    """The second thread's look is enough: no cycle ends any more."""
    for _ in range(120):
        setup.advance()
        setup.loop.guard()
    assert "there is no new chunk" in setup.loop.stopped


def test_a_late_chunk_does_not_jerk(setup):
    """The network takes 0.35 s: what has passed is dropped, and the speed stays below twice."""
    act = setup.policy.act

    def slow(obs, z):
        for _ in range(17):
            setup.advance()
            setup.loop.guard()
        return act(obs, z)

    setup.policy.act = slow
    before = setup.targets()
    for _ in range(5):
        setup.cycles(1)
        after = setup.targets()
        assert np.abs(after - before)[:, 0].max() < 2 * SPEED * 0.38
        before = after
    assert setup.loop.stopped == "" and setup.loop.log.arrays()["used"][-1] < 15


def fastest(setup, n):
    """The fastest that a target moves in n cycles, in rad/s."""
    before = setup.targets()
    found = 0.0
    for _ in range(n):
        for _ in range(round(CYCLE / PERIOD)):
            setup.advance(PERIOD)
            after = setup.targets()
            found = max(found, np.abs(after - before).max() / PERIOD)
            before = after
        setup.loop.cycle()
    return found


def test_chunks_that_disagree_move_no_joint_faster_than_was_checked(setup):
    """From one chunk to the next all targets are 0.2 rad farther, a tenth of a second ahead."""
    setup.policy.wrong = lambda chunk: chunk + 0.2 * torch.eye(D_A)[3]
    assert 1.0 < fastest(setup, 10) < 2.7  # 0.2 rad in 0.08 s, not within a cycle of 0.02 s
    assert setup.loop.log.events == []


def test_arms_that_stay_at_a_limit_of_space_stand_still(setup):
    """The policy leads on; of its chunks nothing is left before the limit."""
    before = setup.targets()[0, 0]
    tool = skeleton(setup.targets()[0, :6], 0, CELL)[-1]
    box = ((0, -1, 0), (1, tool[1] + 0.01, 1))  # 0.02 rad ahead, of the base joint
    setup.loop.cell = Cell(boxes=(box, CELL.boxes[1]), small_distance=0.5)
    setup.cycles(40)
    assert 0.005 < setup.targets()[0, 0] - before < 0.02
    assert fastest(setup, 10) < 0.01
    (text,) = {event["text"] for event in setup.loop.log.events}
    assert text == "clipped: workspace box of the left arm"


def test_the_loops_own_thread_and_end(setup):
    """run() on the real clock of a few cycles: the watching thread ends with it."""
    import threading

    n = threading.active_count()
    setup.loop.clock = steps = iter(np.arange(0, 1000, 0.001))
    setup.loop.clock = lambda: setup.clock.t + next(steps)
    setup.loop.cycle = lambda: False
    setup.loop.run(1.0)
    assert threading.active_count() == n
    assert fastest(setup, 10) < 0.01, "the plan's tail went on"


def test_an_error_of_the_watching_thread_stops_both_arms(setup):
    """For example a terminal that hangs up while the network works."""
    import threading

    def lost():
        raise OSError("the terminal is gone")

    setup.loop.pressed = lost
    ended = threading.Event()
    thread = threading.Thread(target=setup.loop.watch, args=(ended,))
    thread.start()
    end = time.monotonic() + 5
    while not setup.loop.stopped and time.monotonic() < end:
        time.sleep(0.005)
    ended.set()
    thread.join()
    assert setup.loop.stopped == "OSError: the terminal is gone"
    assert all(arm.state().fault for arm in setup.arms)


# ---- slow motions --------------------------------------------------------------------------------


def test_homing_is_slow(setup):
    how = {"clock": setup.clock, "sleep": setup.clock.sleep}
    setup.cycles(60)
    begun = setup.clock()
    far = np.abs(setup.targets()[:, 0]).max()
    assert far > 0.05
    go_home(setup.arms, CELL, **how)
    assert setup.clock() - begun > far / CELL.home_speed
    assert np.allclose(setup.targets()[:, :6], CELL.home, atol=1e-6)


def test_a_motion_that_breaks_a_limit_is_refused_before_it_begins(setup):
    goal = setup.targets()[None].repeat(3, 0)
    goal[2, 0, 0] += 3.0
    before = setup.targets()
    with pytest.raises(Refused, match="rad/s"):
        move(setup.arms, goal, 0.1, CELL, clock=setup.clock, sleep=setup.clock.sleep)
    assert np.allclose(setup.targets(), before)


def test_a_released_switch_ends_a_motion(setup):
    goal = setup.targets()[None].repeat(3, 0)
    with pytest.raises(Refused, match="switch is released"):
        how = {"clock": setup.clock, "sleep": setup.clock.sleep, "pressed": lambda: False}
        move(setup.arms, goal, 0.1, CELL, **how)
    assert all(arm.state().fault for arm in setup.arms)


# ---- switch, cameras, keys -----------------------------------------------------------------------


def test_the_space_bar_is_a_switch():
    clock = Clock()
    typed = [""]
    pressed = Space(lambda: typed[0], clock)
    assert not pressed(), "nobody has touched it"
    typed[0] = " "
    assert pressed()
    typed[0] = ""
    clock.t += 0.5
    assert pressed(), "a key that is held is repeated only after a while"
    clock.t += 0.5
    assert not pressed()


def test_nothing_begins_before_the_switch_is_pressed():
    asked = iter([False, False, True, True])
    pressed = robot_switch.begun(lambda: next(asked))
    assert pressed(), "it was not waited for"


def test_a_pedal_is_a_switch(tmp_path):
    import os

    from robot_switch import EVENT

    read, write = os.pipe()
    os.set_blocking(read, False)
    pressed = Pedal(read)
    assert not pressed()
    os.write(write, EVENT.pack(0, 0, 1, 57, 1))
    assert pressed() and pressed()
    os.write(write, EVENT.pack(0, 0, 1, 57, 0))
    assert not pressed()
    os.write(write, EVENT.pack(0, 0, 1, 57, 1))
    os.close(write)
    pressed()
    os.close(read)
    assert not pressed(), "a pedal that is lost is released"


def test_a_camera_without_pictures_is_named():
    cameras = Cameras({"front": recorded(np.zeros((2, 8, 8, 3))), "wrist": lambda: None}, 30)
    with pytest.raises(BadInput, match="no picture from wrist"):
        cameras.start(wait=0.2)


def test_a_key_moves_the_tool():
    q = np.array(CELL.home[0])
    before = skeleton(q, 0, CELL)[-1]
    after = skeleton(pushed(q, 0, (0.01, 0, 0, 0), CELL), 0, CELL)[-1]
    assert np.allclose(after - before, [0.01, 0, 0], atol=2e-3)
    assert pushed(q, 0, (0, 0, 0, 0.05), CELL)[5] == pytest.approx(q[5] + 0.05)


def test_a_person_records_by_keys(setup):
    """Three pushes of the left tool forward, a closed gripper of the right arm, and the end."""
    task = SimpleNamespace(obs={"front": (8, 8, 3), "proprio": (D_A,)})
    keys = iter(["w", "w", "w\tg", "", "", "\n"])

    def sleep(seconds):
        setup.advance(seconds)

    how = {"clock": setup.clock, "sleep": sleep}
    rest = (task, 10, setup.arms, setup.cameras, CELL)
    before = skeleton(setup.targets()[0, :6], 0, CELL)[-1]
    episode = teleoperated(*rest, lambda: next(keys), **how)
    after = skeleton(setup.targets()[0, :6], 0, CELL)[-1]
    assert {name: a.shape for name, a in episode.items()} == {
        "front": (5, 8, 8, 3),
        "proprio": (5, D_A),
        "action": (5, D_A),
    }
    assert np.allclose(after - before, [0.03, 0, 0], atol=4e-3)
    assert episode["action"][:, 13].tolist() == [0, 0, 1, 1, 1]
    assert teleoperated(*rest, lambda: "\b", **how) == {}
    assert teleoperated(*rest, lambda: "x", **how) is None
    with pytest.raises(Refused, match="switch is released"):
        teleoperated(*rest, lambda: "w", **how, pressed=lambda: False)
    setup.sees = False
    with pytest.raises(Refused, match="front: the newest frame is [56].. ms old"):
        teleoperated(*rest, lambda: "", **how)
    setup.advance()
    setup.arms[1].controller.protective()
    with pytest.raises(Refused, match="protective stop"):
        teleoperated(*rest, lambda: "w", **how)


def test_a_recorded_frame_is_the_nearest_one_also_if_it_comes_later(setup):
    """A camera sees 0.01 s after each step begins, and half a step before: not the older one."""
    task = SimpleNamespace(obs={"front": (8, 8, 3), "proprio": (D_A,)})
    keys = iter(["", "", "", "\n"])
    count = [0]

    def sleep(seconds):
        for part in (0.01, seconds - 0.01):
            setup.advance(part)

    def source():
        count[0] += 1
        late = count[0] % 2  # 0.01 s after a step began, or at the end of it
        return setup.clock() - (0 if late else 0.05), np.full((8, 8, 3), count[0], np.uint8)

    setup.cameras.sources["front"] = source
    how = {"clock": setup.clock, "sleep": sleep}
    episode = teleoperated(task, 10, setup.arms, setup.cameras, CELL, lambda: next(keys), **how)
    assert episode["front"][:, 0, 0, 0].tolist() == [0, 3, 5]  # 0: the one that was there


def test_keys_that_wait_do_not_burst(setup):
    """A key acts once a step, however often it was typed since the last one."""
    task = SimpleNamespace(obs={"proprio": (D_A,)})
    keys = iter(["w" * 40, "", "", "\n"])
    before = skeleton(setup.targets()[0, :6], 0, CELL)[-1]
    how = {"clock": setup.clock, "sleep": setup.advance}
    teleoperated(task, 10, setup.arms, setup.cameras, CELL, lambda: next(keys), **how)
    after = skeleton(setup.targets()[0, :6], 0, CELL)[-1]
    assert 0.005 < after[0] - before[0] < 0.02


@pytest.fixture
def cap(setup):
    """A SpaceMouse, and a function that lets it tell of an event."""
    reader, writer = os.pipe2(os.O_NONBLOCK)

    def tell(kind, code, value):
        os.write(writer, robot_switch.EVENT.pack(0, 0, kind, code, value))

    yield robot_spacemouse.SpaceMouse(reader, setup.clock), tell
    os.close(reader)
    os.close(writer)


def test_a_cap_tells_where_it_is_pushed(setup, cap):
    mouse, tell = cap
    tell(PLACED, 1, -FULL)  # forward, to the end
    tell(PLACED, 0, 10)  # nothing: within the dead zone
    tell(PLACED, 5, FULL // 2)
    assert np.allclose(mouse.push(0.1), [0.015, 0, 0, 0.03])
    setup.advance(5)
    assert mouse.push(0.1)[0] == pytest.approx(0.015)  # it is where it was: nothing changed
    tell(PLACED, 1, 0)
    tell(PLACED, 5, 0)
    tell(MOVED, 2, 2 * FULL)  # down, beyond the end
    assert np.allclose(mouse.push(0.1), [0, 0, -0.015, 0])
    setup.advance(0.2)
    assert not mouse.push(0.1).any()  # no movement for so long: let go
    tell(KEY, 257, 1)
    tell(KEY, 257, 0)
    tell(KEY, 256, 1)
    assert mouse.keys() == "\tg" and mouse.keys() == ""


def test_a_person_records_by_cap(setup, cap):
    """The right tool is chosen, moves left for two steps and closes its gripper."""
    mouse, tell = cap
    task = SimpleNamespace(obs={"proprio": (D_A,)})
    events = iter([[(KEY, 257, 1)], [(PLACED, 0, -FULL)], [], [(PLACED, 0, 0), (KEY, 256, 1)]])

    def typed():
        for event in next(events, [(KEY, 0, 0)]):
            tell(*event)
        return "\n" if setup.clock() > start + 0.45 else ""

    start = setup.clock()
    tool = [skeleton(setup.targets()[i, :6], i, CELL)[-1] for i in range(2)]
    how = {"cap": mouse, "clock": setup.clock, "sleep": setup.advance}
    episode = teleoperated(task, 10, setup.arms, setup.cameras, CELL, typed, **how)
    now = [skeleton(setup.targets()[i, :6], i, CELL)[-1] for i in range(2)]
    assert np.allclose(now[0], tool[0], atol=1e-6)
    assert np.allclose(now[1] - tool[1], [0, 0.03, 0], atol=6e-3)
    assert episode["action"][-1, 13] == 1


def test_a_lost_cap_stops(cap):
    mouse, _ = cap
    mouse.device = os.open("/dev/null", os.O_WRONLY)  # cannot be read
    try:
        with pytest.raises(Refused, match="SpaceMouse is gone"):
            mouse.push(0.1)
    finally:
        os.close(mouse.device)


def test_a_recording_goes_on_and_trains_and_replays(tmp_path, monkeypatch, capsys):
    """The second call adds an episode, and leaves the first as it was; a checkpoint can read it."""
    out = tmp_path / "recorded"
    kept = []
    for episodes in ("1", "2"):
        flags = ["--task", "ur5-lift-state", "--episodes", episodes, "--out", str(out)]
        monkeypatch.setattr("sys.argv", ["realrobot.py", "record", *flags])
        realrobot.main()
        kept.append(data.load(envs.TASKS["ur5-lift-state"], out))
    assert [len(episodes) for episodes in kept] == [1, 2]
    n = kept[0].ends[0]
    assert np.array_equal(kept[1].action[:n], kept[0].action)
    assert not np.array_equal(kept[1].action[n], kept[0].action[0])
    flags = [str(out), "--episode", "1", "--only-check"]
    monkeypatch.setattr("sys.argv", ["realrobot.py", "replay", *flags])
    realrobot.main()
    assert "keep all limits" in capsys.readouterr().out


def test_patience_is_as_the_docs_say():
    assert Patience().frame == pytest.approx(2 / 30) and Patience().held == 0.5
