"""task_locomotion.py: the simulators are gymnasium's, drawn without OpenGL; what is recorded of an
agent is what the environment did."""

import dataclasses
import os
import subprocess
import sys
import types

import gymnasium as gym
import numpy as np
import pytest

import task_locomotion
from commands import BadInput
from conftest import ROOT
from envs import TASKS, make_env
from task_locomotion import agent, record, train

HOPPER = TASKS["hopper"]


# ---- simulators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", task_locomotion.TASKS, ids=lambda task: task.name)
def test_it_is_gymnasium(task):
    """Observations, rewards and ends are those of gymnasium's environment, as float32 by name."""
    rng = np.random.default_rng(0)
    with make_env(task) as ours, gym.make(task.env_id) as theirs:
        assert ours.observation_space["state"].shape == task.obs["state"]
        assert ours.action_space == theirs.action_space
        obs, _ = ours.reset(seed=4)
        plain, _ = theirs.reset(seed=4)
        for _ in range(50):
            assert ours.observation_space.contains(obs)  # names, shapes, dtypes
            np.testing.assert_array_equal(obs["state"], plain.astype(np.float32))
            action = rng.uniform(-1, 1, task.D_a).astype(np.float32)
            obs, *end, _ = ours.step(action)
            plain, *end_of_theirs, _ = theirs.step(action)
            assert end == end_of_theirs
            if end[1]:
                break


@pytest.mark.parametrize("task", task_locomotion.TASKS, ids=lambda task: task.name)
def test_pictures(task):
    """The camera follows the robot, so its picture does not change if the robot is moved along."""
    with make_env(task) as env:
        env.reset(seed=0)
        first = env.render()
        assert first.shape == (160, 160, 3) and first.dtype == np.uint8 and first.std() > 20
        np.testing.assert_array_equal(env.render(), first)
        data = env.unwrapped.data
        data.qpos[0] += 3
        moved = env.render()
        assert (np.abs(moved.astype(int) - first) > 30).mean() < 0.01
        data.qpos[-1] += 1
        assert (np.abs(env.render().astype(int) - moved) > 30).any()


def test_pictures_need_no_opengl():
    """Without OpenGL there are pictures, and drawing one changes no later step."""
    code = (
        "from envs import TASKS, make_env; import numpy as np; "
        "a, b = (make_env(TASKS['hopper']) for _ in range(2)); "
        "a.reset(seed=0); b.reset(seed=0); assert a.render().std() > 20; "
        "x, y = (e.step(np.ones(3))[0]['state'] for e in (a, b)); assert (x == y).all()"
    )
    environment = {name: v for name, v in os.environ.items() if name != "DISPLAY"}
    environment["MUJOCO_GL"] = "disable"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


# ---- agents --------------------------------------------------------------------------------------


def noisy(seed=0):
    """A policy that pushes at random, further than the limits of 1."""
    rng = np.random.default_rng(seed)

    def act(obs):
        return rng.uniform(-2, 2, 3)

    return act


def test_record():
    """The actions replayed from the recorded seeds give the same observations, rewards and ends."""
    episodes = record(noisy(), HOPPER, 4, start_seed=50)
    assert [e["seed"] for e in episodes] == [50, 51, 52, 53]
    with gym.make(HOPPER.env_id) as env:
        for e in episodes:
            assert e["actions"].dtype == np.float32 and np.abs(e["actions"]).max() <= 1
            assert len(e["observations"]) == len(e["actions"]) + 1
            np.testing.assert_array_equal(env.reset(seed=e["seed"])[0], e["observations"][0])
            for t, action in enumerate(e["actions"]):
                obs, reward, terminated, truncated, _ = env.step(action)
                np.testing.assert_array_equal(obs, e["observations"][t + 1])
                assert reward == e["rewards"][t]
                assert (terminated, truncated) == (e["terminations"][t], e["truncations"][t])
            assert e["terminations"].tolist() == [False] * t + [True]
            assert not e["truncations"].any()


def test_record_to_the_time_limit():
    """An episode cut at task.steps is truncated, not terminated."""

    def still(obs):
        return np.zeros(6)

    short = dataclasses.replace(TASKS["halfcheetah"], steps=7)
    (e,) = record(still, short, 1, start_seed=0)
    assert e["truncations"].tolist() == [False] * 6 + [True]
    assert not e["terminations"].any()


def test_record_stops():
    """Whole episodes, none begun after max_steps."""
    lengths = [len(e["rewards"]) for e in record(noisy(), HOPPER, 6, start_seed=0)]
    some = record(noisy(), HOPPER, 6, start_seed=0, max_steps=sum(lengths[:2]) + 1)
    assert [len(e["rewards"]) for e in some] == lengths[:3]
    assert len(record(noisy(), HOPPER, 6, start_seed=0, max_steps=1)) == 1


def test_agent():
    """The observation is normalised and clipped before the policy sees it."""

    def predict(x):
        return x, None

    policy = types.SimpleNamespace(predict=predict)
    act = agent(policy, np.array([1.0, 0.0, 0.0]), np.array([4.0, 1.0, 0.0]))
    np.testing.assert_allclose(act(np.array([2.0, -3.0, 9.0])), [0.5, -3, 10], rtol=1e-6)


def test_without_stable_baselines(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(BadInput, match="pip install stable-baselines3"):
        train(HOPPER, 1, max_steps=1)


def test_without_mujoco(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(BadInput, match="pip install mujoco==3.3.0"):
        make_env(HOPPER)
