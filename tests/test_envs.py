"""envs.py: the tasks and their defaults, single simulators and vectors of them, episodes that go on
from chunk to chunk, and the command."""

import ctypes.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from matplotlib.figure import Figure
from PIL import Image

import commands
import envs
from commands import BadInput
from conftest import ROOT
from envs import TASKS, TRAIN_SEED, Simulators, defaults_of, make_env, make_vec, task_named
from files import load_torch, save_torch
from task import Chunked, Task, check_horizons

PUSHT = TASKS["pusht"]
SMALL = {"obs": {"state": (1,)}, "D_a": 1, "T_o": 1, "T_p": 2, "T_a": 2}


class Line(gym.Env):
    """The state is where the agent stands, begun at the seed; an action moves it.

    The reward is the action. It ends, as a success, where the sum of the actions is 3 or more.
    """

    observation_space = gym.spaces.Dict(
        {"state": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)}
    )
    action_space = gym.spaces.Box(-9, 9, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.start = seed - TRAIN_SEED
        self.moved = 0.0
        return self.obs(), {"state": np.array([self.moved])}

    def obs(self):
        return {"state": np.float32([self.start + self.moved])}

    def step(self, action):
        self.moved += float(action[0])
        there = self.moved >= 3
        info = {"state": np.array([self.moved]), "is_success": there}
        return self.obs(), float(action[0]), there, False, info

    def render(self):
        return np.full((8, 8, 3), 100, np.uint8)


LINE = Task(name="line", env=Line, steps=6, score="max", **SMALL)


def moves(*rows):
    """Chunks (N, T_a, 1) from a row of actions for each simulator."""
    return np.float32(rows)[..., None]


# ---- the tasks -----------------------------------------------------------------------------------


def test_every_task_of_every_suite_is_there():
    """No two tasks share a name, and every task can be trained with its own horizons."""
    assert len(TASKS) == sum(len(suite.TASKS) for suite in envs.SUITES)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.score in ("max", "sum", "success", "held", "stages")
        assert (task.score == "stages") == (task.stages > 0)
        assert task.env is not None
        assert task.needs
        assert task.steps > 0
        check_horizons(task.T_o, task.T_p, task.T_a)


def test_task_named():
    assert task_named("pusht") is PUSHT
    for wrong, message in (
        ("push", "did you mean pusht"),
        ("Hopper", "did you mean hopper"),
        ("reach", "metaworld-reach"),
        ("hammer", "adroit-hammer"),
        ("chess", "`python envs.py` lists all tasks"),
        ("", "`python envs.py` lists all tasks"),
    ):
        with pytest.raises(BadInput, match=f"unknown task '{wrong}': .*{message}"):
            task_named(wrong)


def test_defaults_of(monkeypatch):
    """By suite as typed; a task that differs from most of its suite is named by itself."""
    assert defaults_of("T_p").startswith("{pusht: 16, locomotion: 4")
    assert defaults_of("gamma", "stage2").startswith("{pusht: 1.0, locomotion: 0.99")
    few = [
        replace(LINE, name="a", suite="x", stage1={"lr": 1e-3}),
        replace(LINE, name="b", suite="x", stage1={"lr": 1e-3}, T_p=4),
        replace(LINE, name="c", suite="x", episodes=7),
        replace(LINE, name="d", suite="y"),
    ]
    monkeypatch.setattr(envs, "TASKS", {task.name: task for task in few})
    assert defaults_of("lr") == "{x: 0.001, c: None, y: None}"
    assert defaults_of("T_p") == "{x: 2, b: 4, y: 2}"
    assert defaults_of("episodes") == "{x: 50, c: 7, y: 50}"
    assert defaults_of("lr", "stage2") == "{x: 5e-05, y: 5e-05}"


# ---- single simulators ---------------------------------------------------------------------------


def lacking(name):
    """A function that makes an environment and cannot: the import of a package fails."""

    def make():
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return make


@pytest.mark.parametrize("workers", [True, False])
def test_a_missing_package_is_named(workers):
    """With the command that installs it, in one line."""
    task = replace(LINE, env=lacking("chess_env"), needs="chess-env==1.2")
    with pytest.raises(BadInput, match="^line needs chess_env: pip install chess-env==1.2$"):
        make_env(task)
    with pytest.raises(BadInput, match="pip install chess-env==1.2"):
        make_vec(task, 2, workers=workers)


def test_a_package_that_cannot_be_loaded_is_told():
    """It is there already: installing it once more would not help."""

    def make():
        raise ImportError("libGL.so.1: cannot open shared object file", name="cv2")

    wanted = (
        "^line needs cv2, which is there but fails: libGL.so.1: cannot open shared object file$"
    )
    with pytest.raises(BadInput, match=wanted):
        make_env(replace(LINE, env=make, needs="chess-env==1.2"))


def test_pusht_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(BadInput, match="pusht needs gym_pusht.*: pip install gym-pusht=="):
        make_env(PUSHT)


@pytest.mark.parametrize("workers", [True, False])
def test_no_simulator(workers):
    task = replace(LINE, env=None)
    with pytest.raises(BadInput, match="line has no simulator: it can be trained, but not rolled"):
        make_env(task)
    with pytest.raises(BadInput, match="line has no simulator"):
        make_vec(task, 2, workers=workers)


# ---- vectors -------------------------------------------------------------------------------------


def test_workers_agree():
    """Processes or none: the same numbers, also past the end (5 steps), where they are held."""
    task = replace(PUSHT, steps=5)
    seen = []
    for workers, kind in ((True, AsyncVectorEnv), (False, SyncVectorEnv)):
        env = make_vec(task, 2, T_a=2, workers=workers, record=True)
        assert isinstance(env, kind)
        assert env.single_action_space.shape == (2, 2)
        obs, info = env.reset(seed=[100000, 100007])
        log = [obs["state"]]
        for i in range(4):
            actions = np.float32([[[256, 256], [300, 10 * i]]] * 2)
            obs, reward, terminated, truncated, info = env.step(actions)
            names = ("rewards", "steps", "success", "over", "states")
            log += [obs["state"], reward, *(info[name] for name in names)]
            assert not terminated.any()
            assert not truncated.any()
            assert info["over"].tolist() == 2 * [i >= 2]
        env.close()
        assert info["steps"].tolist() == [5, 5]
        assert np.isnan(info["rewards"]).all()
        assert obs["state"].shape == (2, 2, 20)
        assert not np.array_equal(obs["state"][0], obs["state"][1])
        seen.append(log)
    for a, b in zip(*seen):
        np.testing.assert_array_equal(a, b)


POOL = """
with envs.worker_pool(2) as pool:
    for _ in pool.map(time.sleep, [60, 60, 60, 60]):
        pass
"""
SIMULATORS = """
import numpy as np
env = envs.make_vec(envs.TASKS["pusht"], 2)
with envs.closing(env):
    env.reset(seed=[1, 2])
    while True:
        env.step(np.zeros((2, 8, 2), np.float32))
"""
TELL = """
import multiprocessing, sys, time, threading
import envs
from commands import cli
def tell():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
def main():
    threading.Thread(target=tell).start()
"""


def runs_on(pid):
    """Whether a process of that number is there and has not ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of a parent's end")
@pytest.mark.parametrize("work", [POOL, SIMULATORS], ids=["pool", "simulators"])
@pytest.mark.parametrize(
    "sent, code, told", [("KILL", -9, ""), ("TERM", -15, ""), ("INT", 130, "interrupted\n")]
)
def test_workers_end_with_their_parent(work, sent, code, told):
    """Whatever signal ends the parent alone: no worker lives on, and none says a word."""
    script = TELL + "".join(f"    {line}\n" for line in work.splitlines()) + "cli(main)"
    p = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    workers = p.stdout.readline().split()
    assert len(workers) == 2 and all(runs_on(pid) for pid in workers)
    p.send_signal(signal.Signals[f"SIG{sent}"])
    _, err = p.communicate(timeout=30)
    assert (p.returncode, err) == (code, told)
    for pid in workers:
        for _ in range(500):
            if not runs_on(pid):
                break
            time.sleep(0.01)
        assert not runs_on(pid)


def test_a_killed_worker_is_told():
    with pytest.raises(BadInput, match="a worker process was killed"):
        with envs.worker_pool(2) as pool:
            list(pool.map(signal.raise_signal, [signal.SIGKILL]))


def test_frames_of_the_first_only():
    env = make_vec(LINE, 2, workers=False, show=1)
    env.reset(seed=[TRAIN_SEED, TRAIN_SEED])
    env.step(np.zeros((2, 2, 1), np.float32))
    assert [len(e.frames) for e in env.envs] == [3, 0]
    env.close()


class Passing(Line):
    """A line that goes on behind its goal, and on which the agent may leave it again."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


@pytest.mark.parametrize("score, wanted", [("success", [True, True]), ("held", [True, False])])
def test_success_by_the_task(score, wanted):
    """At any step, or at the last one where it must be held."""
    env = make_vec(replace(LINE, env=Passing, score=score), 1, workers=False)
    env.reset(seed=[TRAIN_SEED])
    seen = [env.step(moves(row))[-1]["success"][0] for row in ([3, 1], [-2, 0])]
    assert seen == wanted
    env.close()


def test_one_environment_needs_no_process():
    env = make_vec(LINE, 1)
    assert isinstance(env, SyncVectorEnv)
    assert {name: box.shape for name, box in env.observation_space.items()} == {"state": (1, 1, 1)}
    env.close()


@pytest.mark.parametrize("name", ["pusht", "hopper"])
def test_interrupted_episode_goes_on(name):
    """A fresh environment, given the seed and the chunks so far, ends where the first one does."""
    task = TASKS[name]
    low, high = {"pusht": (0, 512), "hopper": (-0.3, 0.3)}[name]
    rng = np.random.default_rng(0)
    chunks = rng.uniform(low, high, (6, task.T_a, task.D_a)).astype(np.float32)
    whole, other = (Chunked(make_env(task), task.T_o, task.T_a, task.steps) for _ in range(2))
    whole.reset(seed=7)
    seen = [whole.step(c) for c in chunks]
    obs, info = other.reset(seed=7, options={"past": {7: chunks[:4], 8: chunks[:1]}})
    np.testing.assert_array_equal(obs["state"], seen[3][0]["state"])
    assert info["steps"] == seen[3][-1]["steps"]
    for c, (wanted, reward, *_) in zip(chunks[4:], seen[4:]):
        obs, got, *_ = other.step(c)
        np.testing.assert_array_equal(obs["state"], wanted["state"])
        assert got == reward
    whole.close()
    other.close()


# ---- locomotion ----------------------------------------------------------------------------------

LOCOMOTION = [t for t in TASKS.values() if t.suite == "locomotion"]


@pytest.mark.parametrize("task", LOCOMOTION, ids=lambda t: t.name)
def test_locomotion_sizes(task):
    """The table's sizes are the simulator's, and actions lie in [-1, 1]."""
    with make_env(task) as env:
        assert {name: box.shape for name, box in env.observation_space.items()} == task.obs
        assert env.action_space.shape == (task.D_a,)
        assert (env.action_space.low == -1).all()
        assert (env.action_space.high == 1).all()
        assert env.spec.max_episode_steps == task.steps == 1000


def test_a_fall_terminates_and_the_time_limit_truncates():
    env = make_vec(TASKS["hopper"], 1, workers=False, hold=False)
    env.reset(seed=[0])
    for _ in range(250):
        _, _, terminated, truncated, info = env.step(np.ones((1, 4, 3), np.float32))
        if terminated[0] or truncated[0]:
            break
    assert terminated[0]
    assert not truncated[0]
    assert info["steps"][0] < 1000
    env.close()
    env = make_vec(replace(TASKS["halfcheetah"], steps=40), 1, workers=False, hold=False)
    env.reset(seed=[0])
    ends = [env.step(np.zeros((1, 4, 6), np.float32))[2:4] for _ in range(10)]
    assert not any(terminated[0] for terminated, _ in ends)
    assert [truncated[0] for _, truncated in ends] == [False] * 9 + [True]
    env.close()


@pytest.mark.parametrize("name, low, high", [("hopper", 1300, 1400), ("walker2d", 1650, 1800)])
def test_shipped_locomotion_demonstrations(name, low, high):
    """Their mean return is what the README says, and an episode replays from its seed."""
    import h5py

    path = ROOT / "demos" / f"{name}-medium" / "data" / "main_data.hdf5"
    with h5py.File(path) as f, make_env(TASKS[name]) as env:
        returns = [f[e]["rewards"][:].sum() for e in f]
        assert len(returns) >= 50
        assert low < np.mean(returns) < high
        e = f["episode_3"]
        obs, _ = env.reset(seed=int(e.attrs["seed"]))
        seen = [obs["state"]]
        for action in e["actions"][:]:
            obs, _, terminated, truncated, _ = env.step(action)
            seen.append(obs["state"])
        np.testing.assert_allclose(np.array(seen), e["observations"][:], atol=1e-4)
        assert (terminated, truncated) == (e["terminations"][-1], e["truncations"][-1])


# ---- episodes that go on -------------------------------------------------------------------------


def where(obs):
    """What each simulator's last observation is."""
    return obs["state"][:, -1, 0].tolist()


def test_simulators_step_by_step():
    """Two of them, the first of which ends by success and begins anew from the next seed."""
    sims = Simulators(LINE, 2, T_o=1, T_a=2, workers=False)
    assert sims.seeds.tolist() == [TRAIN_SEED, TRAIN_SEED + 1]
    assert where(sims.obs) == [0, 1]
    s = sims.step(moves([1, 0.5], [2, -1]))
    assert where(s.obs) == where(sims.obs) == [1.5, 2]
    assert s.ran.all()
    assert s.reached.tolist() == [0, 0]
    np.testing.assert_array_equal(sims.progress(), [[2 / 6, 1], [2 / 6, 2]])
    assert s.scores.size == 0
    s = sims.step(moves([2, 1], [0, 0.5]))  # the first succeeds at once: its second action is left
    np.testing.assert_array_equal(s.rewards, [[2, np.nan], [0, 0.5]])
    assert s.reached.tolist() == [1, 2]
    assert s.ran.tolist() == [[True, False], [True, True]]
    assert where(s.obs) == [3.5, 2.5]  # the true last observation
    assert (s.terminated.tolist(), s.truncated.tolist()) == ([True, False], [False, False])
    assert s.success.tolist() == [True, False]
    assert s.scores.tolist() == [2]  # the highest reward of the episode that ended
    assert sims.seeds.tolist() == [TRAIN_SEED + 2, TRAIN_SEED + 1]
    assert where(sims.obs) == [2, 2.5]
    s = sims.step(moves([0, 0], [0, 0]))  # the time limit of the second
    assert s.reached.tolist() == [0, 2]
    assert (s.terminated.tolist(), s.truncated.tolist()) == ([False, False], [False, True])
    assert s.scores.tolist() == [2]
    assert sims.seeds.tolist() == [TRAIN_SEED + 2, TRAIN_SEED + 3]
    s = sims.step(moves([0, 0], [0, 0]))
    assert s.reached.tolist() == [0, 0]  # nothing is left of the last episode


@pytest.mark.parametrize("score, wanted", [("max", 1), ("sum", 2.5), ("success", 0), ("held", 0)])
def test_scores_by_the_task(score, wanted):
    sims = Simulators(replace(LINE, score=score, steps=4), 1, T_o=1, T_a=2, workers=False)
    assert sims.step(moves([1, 0.5])).scores.size == 0
    assert sims.step(moves([0.5, 0.5])).scores.tolist() == [wanted]
    sims.step(moves([0, 0]))
    assert sims.step(moves([0, 0])).scores.tolist() == [0]  # nothing is left of the last episode
    done = sims.step(moves([4, 0]))
    assert done.scores.tolist() == [1 if score in ("success", "held") else 4]


class Staged(Line):
    """Its stages are how often 1 was passed, which is told of the moment alone."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "stages": int(self.moved)}


STAGED = replace(LINE, env=Staged, score="stages", stages=2, steps=4)


def test_stages_are_kept_and_make_the_score():
    """A stage that was reached stays reached within its episode; more than there are do not count.

    The critic is told of them, since they cannot be lost again.
    """
    sims = Simulators(STAGED, 2, T_o=1, T_a=2, workers=False)
    sims.step(moves([1, -1], [2.5, 0]))
    np.testing.assert_array_equal(sims.progress(), [[0.5, 0.5], [0.5, 1]])
    assert sims.step(moves([0, 0], [4, 0])).scores.tolist() == [0.5, 1]
    np.testing.assert_array_equal(sims.progress(), [[0, 0], [0, 0]])


def test_training_seeds_are_their_own():
    """A seed of training has a million starts, none of which an evaluation uses."""
    sims = Simulators(LINE, 3, T_o=1, T_a=2, workers=False, seed=2)
    first = TRAIN_SEED + 2_000_000
    assert sims.seeds.tolist() == [first, first + 1, first + 2]


@pytest.mark.parametrize("seed", [4291, 4292, 4293, 5000, 2**63 - 1])
def test_every_seed_has_start_seeds_that_simulators_take(seed):
    """Up to 4292 a million each; then they go round, and never down to those of an evaluation."""
    sims = Simulators(LINE, 3, T_o=1, T_a=2, workers=False, seed=seed)
    first = sims.seeds[0]
    if seed <= 4292:
        assert first == TRAIN_SEED + 1_000_000 * seed
    assert TRAIN_SEED <= first < 2**32 - 3
    assert sims.seeds.tolist() == [first, first + 1, first + 2]


def test_start_seeds_go_round():
    sims = Simulators(LINE, 3, T_o=1, T_a=2, workers=False)
    sims.next = 2**32 - 1
    sims._new_seeds(np.array([True, False, True]))
    assert sims.seeds.tolist() == [2**32 - 1, TRAIN_SEED + 1, TRAIN_SEED]
    sims._new_seeds(np.array([False, True, False]))
    assert sims.seeds.tolist() == [2**32 - 1, TRAIN_SEED + 1, TRAIN_SEED]


@pytest.mark.parametrize("workers", [True, False])
def test_simulators_go_on(tmp_path, workers):
    """From plain tensors that a file keeps, in mid-episode, as if nothing had happened."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.5, 1.5, (7, 3, 2, 1)).astype(np.float32)
    sims = Simulators(LINE, 3, T_o=2, T_a=2, workers=workers)
    for chunk in actions[:4]:
        sims.step(chunk)
    save_torch(tmp_path / "state.pt", sims.state())
    state = load_torch(tmp_path / "state.pt")
    assert all(isinstance(y, (torch.Tensor, int, list)) for y in state.values())
    other = Simulators(LINE, 3, T_o=2, T_a=2, workers=workers, state=state)
    np.testing.assert_array_equal(other.obs["state"], sims.obs["state"])
    ended = 0
    for chunk in actions[4:]:
        a = sims.step(chunk)
        b = other.step(chunk)
        for name in ("rewards", "reached", "success", "terminated", "truncated", "scores"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(a.obs["state"], b.obs["state"])
        np.testing.assert_array_equal(sims.obs["state"], other.obs["state"])
        assert sims.seeds.tolist() == other.seeds.tolist()
        ended += len(a.scores)
    assert ended > 0
    sims.env.close()
    other.env.close()


# ---- the command ---------------------------------------------------------------------------------


def run(monkeypatch, *args):
    """python envs.py with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["envs.py", *map(str, args)])
    commands.cli(envs.main)


def test_list_of_tasks(monkeypatch, capsys, tmp_path):
    """Every task once, with its sizes and where its data is or how to get it."""
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.delenv("DRIFT_DATA", raising=False)
    monkeypatch.setattr(envs, "TASKS", {**TASKS, "mine": replace(LINE, name="mine", env=None)})
    run(monkeypatch)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["task", "group", "observations"]
    assert [row.split()[0] for row in rows] == [*TASKS, "mine"]
    by_name = {row.split()[0]: row for row in rows}
    for name, words in {
        "pusht": ("state 20", "2/16/8", "300", "max", "pusht.npz"),
        "pusht-image": ("image 96x96x3, agent_pos 2", "2/16/8", "300", "max", "pusht.npz"),
        "ant": ("state 105", "1/4/4", "1000", "sum", "python data.py download ant"),
        "metaworld-reach": ("points 512x3", "easy", "experts.py --task metaworld-reach"),
        "adroit-pen": ("held", "experts.py --task adroit-pen"),
        "mine": ("own", "no simulator", "give --data PATH"),
    }.items():
        for word in words:
            assert word in by_name[name], by_name[name]


def test_picture(monkeypatch, capsys, tmp_path):
    """What Push-T's policy sees at a start: the scene and the key points in it."""
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--task", "pusht", "--png", tmp_path / "deep" / "x.png")
    assert "x.png" in capsys.readouterr().out
    with Image.open(tmp_path / "deep" / "x.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (800, 400)
        first = np.asarray(picture)
    assert first.std() > 20
    run(monkeypatch, "--task", "pusht", "--seed", 100001)  # named after the task if not told
    with Image.open(tmp_path / "pusht.png") as picture:
        assert not np.array_equal(np.asarray(picture), first)


class Robot(Line):
    """Two cameras, a cloud and the joints."""

    box = (np.array([-1.0, -1, 0]), np.array([1.0, 1, 2]))

    def obs(self):
        return {
            "state": np.float32([1, 2, 3]),
            "front": np.full((6, 6, 3), 30, np.uint8),
            "wrist": np.full((6, 6, 3), 200, np.uint8),
            "points": np.random.default_rng(0).uniform(0, 1, (20, 3)).astype("f4"),
        }


def test_picture_of_every_observation():
    """A panel for the scene, each camera, each cloud and the state, titled by their names."""
    shapes = {name: y.shape for name, y in Robot().obs().items()}
    task = Task(**{**SMALL, "obs": shapes}, name="robot", env=Robot)
    figure = envs.what_the_policy_sees(task, TRAIN_SEED)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["the scene", "front", "wrist"]
    assert titles[3].startswith("points")
    assert titles[4].startswith("state")
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes[:3]] == [100, 30, 200]


@pytest.mark.parametrize(
    "shape, crop, x, y",
    [((6, 6, 3), 4, (0.5, 4.5), (0.5, 4.5)), ((5, 8, 3), (2, 3), (1.5, 4.5), (0.5, 2.5))],
)
def test_the_crop_is_drawn(shape, crop, x, y):
    """A centred frame around the pixels that are encoded, whose edges lie between pixels."""
    axes = Figure().subplots()
    envs.draw_camera(axes, "front", np.zeros(shape, np.uint8), crop)
    (frame,) = axes.patches
    left, low, right, high = frame.get_bbox().extents
    assert (left, right) == x
    assert (low, high) == y
    h, w = np.broadcast_to(crop, 2)
    assert axes.get_title() == f"front, crop {h} x {w}"


def test_picture_of_pusht_image():
    """Both parts of the observation, and what of the picture is encoded."""
    figure = envs.what_the_policy_sees(TASKS["pusht-image"], 100_000)
    scene, image, agent = figure.axes
    assert image.get_title() == "image, crop 84 x 84"
    assert image.images[0].get_array().shape == (96, 96, 3)
    assert image.patches[0].get_bbox().extents.tolist() == [5.5, 5.5, 89.5, 89.5]
    np.testing.assert_array_equal(agent.lines[0].get_xydata(), [[235, 124]])  # of that seed


def test_picture_without_render():
    """An environment that draws no scene still shows its observation."""

    class Blind(Line):
        render = gym.Env.render

    figure = envs.what_the_policy_sees(replace(LINE, env=Blind), TRAIN_SEED)
    scene, state = figure.axes
    assert scene.get_title() == "the scene: there is no render()"
    assert not scene.images
    assert len(state.patches) == 1


def test_a_platform_whose_library_is_missing(tmp_path):
    """PyOpenGL then fails at the first import, with words that nobody understands."""
    pytest.importorskip("mujoco")
    if ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa is installed here")
    done = subprocess.run(
        [sys.executable, ROOT / "envs.py", "--task", "hopper", "--png", tmp_path / "x.png"],
        env={**os.environ, "MUJOCO_GL": "osmesa"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "the library of MUJOCO_GL=osmesa is not installed" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "task, code", [("pusht", 0), ("hopper", 2), ("metaworld-assembly", 2), ("adroit-pen", 2)]
)
def test_a_platform_that_mujoco_does_not_know(tmp_path, task, code):
    """Push-T does not need it; what needs it says so in a line."""
    if task != "pusht":
        pytest.importorskip("mujoco")
    if task == "metaworld-assembly":
        pytest.importorskip("metaworld")
    if task == "adroit-pen":
        pytest.importorskip("gymnasium_robotics")
    done = subprocess.run(
        [sys.executable, ROOT / "envs.py", "--task", task, "--png", tmp_path / "x.png"],
        env={**os.environ, "MUJOCO_GL": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.startswith(f"error: {task} needs MuJoCo, and invalid value")
        assert done.stderr.count("\n") == 1 and "nonsense" in done.stderr


@pytest.mark.parametrize(
    "flags, word",
    [
        ("--task chess", "unknown task 'chess'"),
        ("--tasks pusht", "--help"),
        ("--task pusht --seed x", "--seed"),
        ("--task pusht --seed -1", "--seed must lie in 0 .. 4294967295, not -1"),
        ("--task pusht --seed 4294967296", "--seed must lie in 0 .. 4294967295"),
        ("--task nosim --png x.png", "nosim has no simulator"),
    ],
)
def test_bad_flags(monkeypatch, capsys, tmp_path, flags, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "nosim", replace(LINE, name="nosim", env=None))
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *flags.split())
    out, err = capsys.readouterr()
    assert e.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert not list(tmp_path.iterdir())
