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
from robosuite_env import make_raw, rot6d_to_axis_angle

SEED = 100_000


@functools.cache
def made(name, variety=0.0, noise_seed=0):
    """The demonstration of a task from SEED."""
    return demonstration(name, SEED, variety, noise_seed)


@pytest.mark.parametrize("name, steps", [("lift", 50), ("can", 150)])
def test_an_expert_solves_its_task(name, steps):
    episode = made(name)
    L = len(episode["action"])
    assert L < steps
    assert episode["success"].tolist() == [False] * (L - 1) + [True]
    assert episode["action"].shape == (L, 10)
    assert episode["delta"].shape == (L, 7)
    assert np.abs(episode["delta"]).max() <= 1
    assert len(episode["robot0_eef_pos"]) == len(episode["states"]) == L


def test_observations_are_those_before_the_action():
    """The goal is where the hand was seen plus the delta; 2 ms pass between them."""
    episode = made("lift")
    expected = episode["robot0_eef_pos"] + 0.05 * episode["delta"][:, :3]
    assert np.abs(episode["action"][:, :3] - expected).max() < 0.002


def test_the_recorded_goals_repeat_the_episode_with_an_absolute_controller():
    episode = made("lift")
    env = make_raw("lift", absolute=True)
    np.random.seed(SEED)
    env.reset()
    last = 1 + env.sim.model.nq  # time and positions come before velocities
    for action, state in zip(episode["action"], episode["states"]):
        assert np.abs(env.sim.get_state().flatten() - state)[:last].max() < 1e-3
        _, reward, _, _ = env.step(rot6d_to_axis_angle(action))
    assert reward == 1


def test_without_variety_an_episode_repeats():
    again = demonstration("lift", SEED)
    assert all((again[name] == made("lift")[name]).all() for name in again)
    before = np.random.get_state()[1].copy()
    experts_robomimic.start("lift", SEED)
    assert (np.random.get_state()[1] == before).all(), "the caller's random numbers moved"


def test_variety_differs_between_noise_seeds_but_not_the_start():
    one = made("lift", 1.0)
    other = made("lift", 1.0, 1)
    assert (one["states"][0] == other["states"][0]).all()
    n = min(len(one["delta"]), len(other["delta"]))
    assert np.abs(one["delta"][:n] - other["delta"][:n]).max() > 0.1
    assert one["success"][-1] and other["success"][-1]


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
