"""The scripted experts of RoboMimic's tasks: they succeed, they repeat, and they vary."""

import dataclasses
import functools
import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("robosuite") is None:  # its import would set MUJOCO_GL for all tests
    pytest.skip("robosuite is not installed", allow_module_level=True)

import experts_robomimic
from experts_robomimic import demonstration
from motions import carried, down, fold, grip_yaw, pose
from recorded_robomimic import hands
from robomimic_env import replayed
from robosuite_env import delta_to_rot6d, make_raw, rot6d_to_axis_angle

SEED = 100_000


@functools.cache
def made(name, variety=0.0):
    """The demonstration of a task from SEED."""
    return demonstration(name, SEED, variety)


@functools.cache
def seen_and_goals():
    """What robosuite's observations are at lift's recorded states, and the goals (L, 10)."""
    seen = replayed("lift", {"states": made("lift")["states"]})
    return seen, delta_to_rot6d(made("lift")["delta"], *hands("lift", seen))


@pytest.mark.parametrize("name, steps", [("lift", 50), ("can", 150)])
def test_an_expert_solves_its_task(name, steps):
    episode = made(name)
    L = len(episode["delta"])
    assert L < steps
    assert episode["delta"].shape == (L, 7)
    assert np.abs(episode["delta"]).max() <= 1
    assert len(episode["states"]) == L


def test_a_goal_is_where_the_hand_was_plus_the_delta():
    """2 ms pass between the two."""
    seen, goals = seen_and_goals()
    expected = seen["robot0_eef_pos"] + 0.05 * made("lift")["delta"][:, :3]
    assert goals.shape == (len(expected), 10)
    assert np.abs(goals[:, :3] - expected).max() < 0.002


def test_the_goals_repeat_the_episode_with_an_absolute_controller():
    """It succeeds at the last step, and at none before."""
    env = make_raw("lift", absolute=True)
    np.random.seed(SEED)
    env.reset()
    last = 1 + env.sim.model.nq  # time and positions come before velocities
    rewards = []
    for action, state in zip(seen_and_goals()[1], made("lift")["states"]):
        assert np.abs(env.sim.get_state().flatten() - state)[:last].max() < 1e-3
        rewards.append(env.step(rot6d_to_axis_angle(action))[1])
    assert rewards == [0] * (len(rewards) - 1) + [1]


def test_without_variety_an_episode_repeats():
    again = demonstration("lift", SEED)
    assert all((again[name] == made("lift")[name]).all() for name in again)
    before = np.random.get_state()[1].copy()
    experts_robomimic.start("lift", SEED)
    assert (np.random.get_state()[1] == before).all(), "the caller's random numbers moved"


def test_variety_changes_the_motion_and_not_the_start():
    plain = made("lift")
    varied = made("lift", 1.0)
    assert (plain["states"][0] == varied["states"][0]).all()
    n = min(len(plain["delta"]), len(varied["delta"]))
    assert np.abs(plain["delta"][:n] - varied["delta"][:n]).max() > 0.1


def test_an_expert_that_fails_tells_so(monkeypatch):
    def idle(arm, told):
        yield np.zeros(6), False

    monkeypatch.setitem(experts_robomimic.SCRIPTS, "lift", [idle])
    short = dataclasses.replace(experts_robomimic.SCENES["lift"], steps=5)
    monkeypatch.setitem(experts_robomimic.SCENES, "lift", short)
    assert demonstration("lift", SEED) is None


class Still:
    """What grip_yaw() reads of an arm."""

    def __init__(self, home, variety):
        self.home = home
        self.variety = variety
        self.rng = np.random.default_rng(0)


@pytest.mark.parametrize("yaw", [-3, -1.2, 0.1, 0.9, 2.5])
def test_a_grasp_is_the_nearest_of_those_alike_or_at_times_the_next(yaw):
    quarter = np.pi / 2
    nearest = grip_yaw(Still(0.5, 0), yaw, quarter)
    assert abs(nearest - 0.5) <= np.pi / 4
    assert np.isclose(fold(nearest - yaw, quarter, 0), 0)
    arm = Still(0.5, 1.0)
    seen = {round(grip_yaw(arm, yaw, quarter) - nearest, 6) for _ in range(50)}
    assert len(seen) == 2 and 0 in seen
    assert np.isclose(max(map(abs, seen)), quarter)


def test_a_hand_that_points_down_opens_along_its_yaw():
    T = down([1, 2, 3], 0.4)
    assert np.allclose(T[:3, 0], [np.cos(0.4), np.sin(0.4), 0])
    assert np.allclose(T[:3, 2], [0, 0, -1])
    assert np.allclose(T[:3, 3], [1, 2, 3])
    assert np.isclose(np.linalg.det(T[:3, :3]), 1)


def test_what_is_carried_arrives():
    """A hand at the target of carried() has its object, held as it is now, where it should be."""
    rng = np.random.default_rng(0)

    def somewhere():
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        return pose(rng.normal(size=3), q * np.linalg.det(q))

    hand = somewhere()
    thing = somewhere()
    wanted = somewhere()

    class Arm:
        def hand(self):
            return hand

    target = carried(Arm(), lambda: thing, wanted)()
    held = np.linalg.inv(hand) @ thing
    assert np.allclose(target @ held, wanted)
