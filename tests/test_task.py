"""task.py: what a task may be, and the wrapper that runs chunks, step by step."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from commands import BadInput
from task import PPO_DEFAULTS, Chunked, Lazy, Task, check_horizons, dtype_of, observation_space

# ---- horizons ------------------------------------------------------------------------------------

IMPOSSIBLE = [
    (2, 4, 4),
    (5, 4, 1),
    (2, 16, 16),
    (1, 4, 5),
    (0, 4, 1),
    (1, 4, 0),
    (1, 0, 1),
    (2, 16, -1),
]
POSSIBLE = [(2, 4, 3), (2, 16, 8), (1, 4, 4), (2, 16, 15), (1, 1, 1), (4, 4, 1)]


@pytest.mark.parametrize("T", IMPOSSIBLE)
def test_impossible_horizons(T):
    with pytest.raises(BadInput, match="T_a"):
        check_horizons(*T)


@pytest.mark.parametrize("T", POSSIBLE)
def test_possible_horizons(T):
    check_horizons(*T)


@pytest.mark.parametrize("T_o, T_p, T_a, hint", [(2, 4, 4, 3), (1, 4, 5, 4), (2, 16, 16, 15)])
def test_the_hint_of_a_refusal_works(T_o, T_p, T_a, hint):
    with pytest.raises(BadInput, match=f"lower --T-a to {hint} or raise --T-p"):
        check_horizons(T_o, T_p, T_a)
    check_horizons(T_o, T_p, hint)


# ---- a task --------------------------------------------------------------------------------------

SIX = {"name": "mine", "obs": {"state": (4,)}, "D_a": 2, "T_o": 2, "T_p": 4, "T_a": 3}


def test_six_fields_make_a_task():
    """It trains without a simulator, and where several tasks are made they share nothing."""
    task = Task(**SIX)
    assert task.env is None
    assert task.suite == "own"
    assert (task.score, task.episodes) == ("success", 50)
    assert (task.stage1, task.paper, task.sha256) == ({}, {}, {})
    assert task.stage1 is not Task(**SIX).stage1
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.T_a = 1


@pytest.mark.parametrize("missing", SIX)
def test_the_six_fields_are_needed(missing):
    with pytest.raises(TypeError, match=missing):
        Task(**{name: value for name, value in SIX.items() if name != missing})


def test_what_stage_2_takes():
    """All its defaults, where the task's own win; tasks share no dict."""
    assert Task(**SIX).stage2 == PPO_DEFAULTS
    task = Task(**SIX, stage2={"lr": 1e-3, "sigma_final": 0.01})
    assert task.stage2 == {**PPO_DEFAULTS, "lr": 1e-3, "sigma_final": 0.01}
    assert dataclasses.replace(task, T_a=1).stage2 == task.stage2
    Task(**SIX).stage2["lr"] = 9
    assert Task(**SIX).stage2["lr"] == PPO_DEFAULTS["lr"] != 9


def test_a_task_of_impossible_horizons():
    with pytest.raises(BadInput, match="Eq. 23"):
        Task(**{**SIX, "T_a": 4})
    with pytest.raises(BadInput, match="Eq. 23"):
        dataclasses.replace(Task(**SIX), T_p=3)


def test_specs():
    """The number of axes tells the kind: numbers and clouds are float32, pictures bytes."""
    task = Task(**{**SIX, "obs": {"joints": (6,), "front": (40, 3), "wrist camera": (8, 9, 3)}})
    assert task.specs == {
        "joints": {"shape": [6], "dtype": "float32"},
        "front": {"shape": [40, 3], "dtype": "float32"},
        "wrist camera": {"shape": [8, 9, 3], "dtype": "uint8"},
    }
    assert [dtype_of(s) for s in ((6,), (40, 3), (8, 9, 3))] == ["float32", "float32", "uint8"]
    space = observation_space(task)
    assert {name: (box.shape, box.dtype.name) for name, box in space.items()} == {
        name: (tuple(spec["shape"]), spec["dtype"]) for name, spec in task.specs.items()
    }
    one = {
        "joints": np.full(6, -1e9, np.float32),
        "front": np.zeros((40, 3), np.float32),
        "wrist camera": np.full((8, 9, 3), 255, np.uint8),
    }
    assert space.contains(one)
    assert not space.contains({**one, "joints": np.zeros(6)})  # float64
    assert not space.contains({**one, "more": np.zeros(6, np.float32)})


# ---- chunks --------------------------------------------------------------------------------------


class Counter(gym.Env):
    """At step n the state is (n, -n), the camera shows n everywhere and the reward is n.

    It ends at step `ends`; it is a success at step `succeeds` alone.
    """

    observation_space = gym.spaces.Dict(
        {
            "state": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "camera": gym.spaces.Box(0, 255, (4, 5, 3), np.uint8),
        }
    )
    action_space = gym.spaces.Box(np.float32([-1, -2, -3]), np.float32([1, 2, 3]))

    def __init__(self, ends=99, succeeds=None):
        self.ends = ends
        self.succeeds = succeeds

    def obs(self):
        camera = np.full((4, 5, 3), self.n, np.uint8)
        return {"state": np.float32([self.n, -self.n]), "camera": camera}

    def reset(self, *, seed=None, options=None):
        self.options = options
        self.n = 0
        self.actions = []
        return self.obs(), {"state": np.array([10.0 * self.n])}

    def step(self, action):
        self.actions.append(action)
        self.n += 1
        info = {"state": np.array([10.0 * self.n]), "is_success": self.n == self.succeeds}
        return self.obs(), float(self.n), self.n == self.ends, False, info

    def render(self):
        return np.full((2, 2, 3), self.n, np.uint8)


def chunk(T_a, start=0):
    """Actions (T_a, 3) that tell their place."""
    return start + np.arange(3.0 * T_a).reshape(T_a, 3)


def steps_of(obs):
    """Which steps an observation history (T_o, ...) shows; both names must agree."""
    seen = obs["state"][:, 0].tolist()
    assert seen == (-obs["state"][:, 1]).tolist() == obs["camera"][:, 0, 0, 0].tolist()
    return seen


def nan_equal(a, b):
    """a equals the list b, where NaN equals NaN."""
    np.testing.assert_array_equal(a, np.array(b, float))


def test_chunk_sums_rewards_and_keeps_order():
    env = Chunked(Counter(), T_o=2, T_a=3, steps=300)
    obs, info = env.reset(seed=0)
    assert steps_of(obs) == [0, 0]
    assert info["steps"] == 0
    assert info["success"] is False
    nan_equal(info["rewards"], [np.nan] * 3)
    obs, reward, terminated, truncated, info = env.step(chunk(3))
    assert steps_of(obs) == [2, 3]
    assert reward == 6
    assert not terminated
    assert not truncated
    nan_equal(info["rewards"], [1, 2, 3])
    assert info["steps"] == 3
    assert "states" not in info
    np.testing.assert_array_equal(env.unwrapped.actions, chunk(3))


def test_spaces_of_chunks():
    """T_o in front of every observation, T_a of an action; bounds and dtypes are kept."""
    env = Chunked(Counter(), T_o=2, T_a=3, steps=300)
    space = env.observation_space
    assert {name: (box.shape, box.dtype) for name, box in space.items()} == {
        "state": ((2, 2), np.float32),
        "camera": ((2, 4, 5, 3), np.uint8),
    }
    assert (space["camera"].low.min(), space["camera"].high.max()) == (0, 255)
    np.testing.assert_array_equal(env.action_space.high, [[1, 2, 3]] * 3)
    np.testing.assert_array_equal(env.action_space.low, [[-1, -2, -3]] * 3)
    assert space.contains(env.reset()[0])
    assert space.contains(env.step(chunk(3))[0])


def test_history_is_padded_at_reset():
    """The first observation repeats while T_o is more than has happened; a reset forgets."""
    env = Chunked(Counter(), T_o=4, T_a=2, steps=300)
    for _ in range(2):
        assert steps_of(env.reset()[0]) == [0, 0, 0, 0]
        assert steps_of(env.step(chunk(2))[0]) == [0, 0, 1, 2]
        assert steps_of(env.step(chunk(2))[0]) == [1, 2, 3, 4]


def test_lazy_pictures_are_made_where_they_are_looked_at():
    """The last T_o of a chunk, once each, of what was there when they were observed."""
    made = []

    def draw(n):
        made.append(n)
        return np.full((4, 5, 3), n, np.uint8)

    class Late(Counter):
        """Its camera draws on demand."""

        def obs(self):
            return {**super().obs(), "camera": Lazy(draw, self.n)}

    env = Chunked(Late(), T_o=2, T_a=3, steps=300)
    assert steps_of(env.reset(seed=7)[0]) == [0, 0]
    assert steps_of(env.step(chunk(3))[0]) == [2, 3]
    assert steps_of(env.step(chunk(3))[0]) == [5, 6]
    assert made == [0, 2, 3, 5, 6]
    obs, _ = env.reset(seed=7, options={"past": {7: [chunk(3), chunk(3)]}})
    assert steps_of(obs) == [5, 6]
    assert made == [0, 2, 3, 5, 6, 5, 6]  # nothing on the way
    env = Chunked(Late(), T_o=3, T_a=1, steps=300)  # one that was seen is not drawn again
    env.reset()
    env.step(chunk(1))
    assert made[7:] == [0, 1]


def test_a_lazy_picture_is_an_array_to_numpy():
    lazy = Lazy(np.full, (2, 3), 7, np.uint8)
    assert np.asarray(lazy) is np.asarray(lazy)
    assert np.asarray(lazy, np.float32).dtype == np.float32
    np.array(lazy)[:] = 0  # a copy
    np.testing.assert_array_equal(lazy, np.full((2, 3), 7))


def test_end_inside_a_chunk():
    env = Chunked(Counter(ends=5), T_o=2, T_a=3, steps=300, record=True, film=True)
    _, info = env.reset()
    nan_equal(info["states"], [[np.nan]] * 3)
    info = env.step(chunk(3))[-1]
    nan_equal(info["states"], [[0], [10], [20]])  # before each action
    obs, reward, terminated, truncated, info = env.step(chunk(3, 9))
    assert (reward, terminated, truncated, info["steps"]) == (9.0, True, False, 5)
    nan_equal(info["rewards"], [4, 5, np.nan])
    nan_equal(info["states"], [[30], [40], [np.nan]])
    assert steps_of(obs) == [4, 5]
    still, reward, terminated, truncated, info = env.step(chunk(3))  # over: nothing moves any more
    assert len(env.unwrapped.actions) == info["steps"] == 5
    assert steps_of(still) == [4, 5]
    assert (reward, terminated, truncated) == (0.0, True, False)
    nan_equal(info["rewards"], [np.nan] * 3)
    nan_equal(info["states"], [[np.nan]] * 3)
    assert [f[0, 0, 0] for f in env.frames] == [0, 1, 2, 3, 4, 5]
    env.reset()
    assert len(env.frames) == 1
    assert env.step(chunk(3))[1] == 6  # alive again


def test_time_limit_truncates():
    env = Chunked(Counter(), T_o=1, T_a=3, steps=4)
    env.reset()
    assert env.step(chunk(3))[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step(chunk(3))
    assert (reward, terminated, truncated, info["steps"]) == (4.0, False, True, 4)
    nan_equal(info["rewards"], [4, np.nan, np.nan])
    assert env.step(chunk(3))[1:4] == (0.0, False, True)
    assert len(env.unwrapped.actions) == 4


def test_terminal_step_at_the_time_limit_is_terminal():
    env = Chunked(Counter(ends=4), T_o=1, T_a=4, steps=4)
    env.reset()
    assert env.step(chunk(4))[2] is True


@pytest.mark.parametrize("ends", [2, 99])
def test_hold(ends):
    """In a batch an episode never ends: info["over"] tells that it did, and nothing moves."""
    env = Chunked(Counter(ends=ends), T_o=1, T_a=3, steps=2, hold=True)
    assert env.reset()[1]["over"] is False
    for _ in range(2):
        _, _, terminated, truncated, info = env.step(chunk(3))
        assert (terminated, truncated) == (False, False)
        assert (info["over"], info["steps"]) == (True, 2)
    assert len(env.unwrapped.actions) == 2
    assert env.reset()[1]["over"] is False


def test_success_is_sticky_until_reset():
    env = Chunked(Counter(succeeds=2), T_o=1, T_a=3, steps=300)
    env.reset()
    assert env.step(chunk(3))[-1]["success"]
    assert env.step(chunk(3))[-1]["success"]
    assert env.reset()[-1]["success"] is False
    env = Chunked(Counter(), T_o=1, T_a=3, steps=300)
    env.reset()
    assert not env.step(chunk(3))[-1]["success"]


def test_success_that_must_be_held():
    """The last step decides: what was lost again is none, what comes at the end is one."""
    for succeeds, seen in ((2, [False, False]), (3, [True, False]), (6, [False, True])):
        env = Chunked(Counter(succeeds=succeeds), T_o=1, T_a=3, steps=6, held=True)
        env.reset()
        assert [env.step(chunk(3))[-1]["success"] for _ in range(2)] == seen
        assert env.step(chunk(3))[-1]["success"] is seen[-1]  # over: it stays as it was


def test_the_past_is_run_again():
    """reset() with a seed's past chunks ends where they led; other seeds begin at the start."""
    past = {7: [chunk(3), chunk(3, 9)], 8: [chunk(3)]}
    env = Chunked(Counter(), T_o=2, T_a=3, steps=300)
    for seed, steps in ((7, 6), (8, 3), (9, 0)):
        obs, info = env.reset(seed=seed, options={"past": past})
        assert steps_of(obs) == [max(steps - 1, 0), steps]
        assert info["steps"] == steps
        assert env.unwrapped.options is None  # the environment does not see it
    env.reset(seed=1, options={"past": past, "state": 5})
    assert env.unwrapped.options == {"state": 5}
