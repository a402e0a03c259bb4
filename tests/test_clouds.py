"""Tasks seen as point clouds: their simulators, their demonstrations, training on them, and what
happens to bad input."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import mujoco
import numpy as np
import pytest
import torch

import experts
import task_clouds
from commands import BadInput
from conftest import ROOT, make_renderer
from conftest import cli as command
from data import load
from envs import TASKS, make_env, task_named
from formats import read, save_npz
from hdf5 import read_adroit
from pointcloud import cast
from policy import Policy
from task import Chunked

REACH = TASKS["metaworld-reach"]
HAMMER = TASKS["adroit-hammer"]


@pytest.fixture(scope="module")
def reach():
    return make_env(REACH)


def recorded(name):
    """The file of an Adroit task's recorded states; skips without it."""
    path = Path(os.environ.get("DRIFT_DATA", "?"), "adroit", f"{name}.npz")
    if not path.exists():
        pytest.skip(f"set DRIFT_DATA to a folder that holds adroit/{name}.npz")
    return path


def same(a, b):
    """Whether two observations have the same names and equal arrays."""
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- the table -----------------------------------------------------------------------------------


def test_table():
    """The paper's 34 Meta-World tasks in four groups, with simulators and scripted policies."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as environments
    from metaworld.policies import ENV_POLICY_MAP

    counts = {group: len(names) for group, names in task_clouds.METAWORLD.items()}
    assert counts == {"easy": 21, "medium": 4, "hard": 4, "very hard": 5}
    metaworld = [t for t in task_clouds.TASKS if t.suite == "metaworld"]
    names = [t.name.removeprefix("metaworld-") for t in metaworld]
    assert len(names) == len(set(names)) == 34
    assert all(f"{n}-v3-goal-observable" in environments for n in names)
    assert all(f"{n}-v3" in ENV_POLICY_MAP for n in names)
    assert all(t.score == "success" and t.group in counts for t in metaworld)
    adroit = [t for t in task_clouds.TASKS if t.suite == "adroit"]
    assert [t.name for t in adroit] == ["adroit-hammer", "adroit-door", "adroit-pen"]
    assert all(t.score == "held" and t.group == "adroit" for t in adroit)
    assert metaworld + adroit == task_clouds.TASKS
    for t in task_clouds.TASKS:
        assert (t.T_o, t.T_p, t.T_a) == (2, 4, 3) and t.obs["points"] == (512, 3)
        assert t.episodes == 20 and 0.7 <= t.paper["DBP"] <= 1


def test_near_names():
    with pytest.raises(BadInput, match="unknown task 'asembly': did you mean metaworld-assembly"):
        task_named("asembly")
    with pytest.raises(BadInput, match="did you mean .*adroit-hammer"):
        task_named("hammer")


def test_nothing_slow_is_imported():
    code = (
        "import task_clouds, task_locomotion, sys; "
        "slow = {'mujoco', 'metaworld', 'gymnasium_robotics', 'torch', 'stable_baselines3'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- simulators ----------------------------------------------------------------------------------


def test_meta_world(reach):
    """A seed fixes start and goal; the goal's mark is in the cloud; a recorded state gives the live
    cloud."""
    a, _ = reach.reset(seed=5)
    goal = reach.sim._target_pos.copy()
    assert {name: y.shape for name, y in a.items()} == REACH.obs
    assert reach.observation_space.contains(a)  # of shapes and dtypes too
    assert (np.linalg.norm(a["points"] - goal, axis=1) < 0.0201).sum() >= 2
    low, high = np.array(reach.box)
    assert ((a["points"] > low) & (a["points"] < high)).all()
    hand, right, left = a["state"].reshape(3, 3)
    assert np.linalg.norm(right - left) == pytest.approx(0.1, abs=0.02)
    assert hand[2] > right[2] > 0.1
    for _ in range(3):
        b, reward, terminated, truncated, info = reach.step(np.float32([1, 0, 0, 0]))
    assert b["state"][0] > a["state"][0] + 0.005
    assert (reward, terminated, truncated) == (0, False, False)
    assert info == {"is_success": False}
    assert same(reach.observe(reach.sim.data.qpos.copy()), b)
    c, _ = reach.reset(seed=6)
    assert np.abs(reach.sim._target_pos - goal).max() > 0.01
    assert not np.array_equal(a["points"], c["points"])
    assert same(reach.reset(seed=5)[0], a)


def test_unseeded_resets_differ(reach):
    a, _ = reach.reset(seed=0)
    b, _ = reach.reset()
    c, _ = reach.reset()
    assert not same(a, b) and not same(b, c)


def test_render(reach):
    reach.reset(seed=5)
    picture = reach.render()
    assert picture.shape == (160, 160, 3) and picture.dtype == np.uint8 and picture.std() > 20


def test_success_ends_meta_world(reach):
    """Going to the goal succeeds: reward 1, over, and Chunked tells it."""
    chunked = Chunked(reach, 2, 3, 200)
    chunked.reset(seed=5)
    over = False
    n = 0
    while not over and n < 60:
        hand = reach.settled().site("rightEndEffector").xpos
        move = np.clip(25 * (reach.sim._target_pos - hand), -1, 1)
        obs, reward, over, _, info = chunked.step(np.tile(np.append(move, 0), (3, 1)))
        n += 1
    assert over and info["success"] and np.nansum(info["rewards"]) == reward == 1
    assert obs["state"].shape == (2, 9) and obs["points"].shape == (2, 512, 3)


class SucceedsAtStep2(gym.Env):
    """An environment that succeeds at its second step alone."""

    observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-1, 1, (1,), np.float32)})
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return {"state": np.zeros(1, np.float32)}, {}

    def step(self, action):
        self.n += 1
        return {"state": np.zeros(1, np.float32)}, 0.0, False, False, {"is_success": self.n == 2}


@pytest.mark.parametrize("held", [True, False])
def test_held(held):
    """Adroit counts the end of an episode, Meta-World any step of it."""
    env = Chunked(SucceedsAtStep2(), 2, 3, 6, held=held)
    env.reset()
    for _ in range(2):
        *_, info = env.step(np.zeros((3, 1)))
    assert info["over"] and info["success"] is (not held)


def test_wrong_state(reach):
    reach.reset(seed=0)
    with pytest.raises(ValueError, match="3 positions does not fit this model"):
        reach.observe(np.zeros(3))
    box = reach.box
    reach.box = ((5, 5, 5), (6, 6, 6))
    try:
        with pytest.raises(ValueError, match="no point inside the crop box"):
            reach.observe()
    finally:
        reach.box = box


@pytest.mark.parametrize("name, first", [("hammer", 2), ("door", 3), ("pen", 0)])
def test_adroit_is_the_recorded_one(name, first):
    """Seed and actions give the recorded positions and success; a cloud of a recorded state is the
    live one. The joints are 24 numbers of the recorded observations, from `first` on."""
    d = read(recorded(name))
    task = TASKS[f"adroit-{name}"]
    env = make_env(task)
    env.reset(seed=int(d["seed"][0]))
    for t in range(int(d["episode_ends"][0])):
        np.testing.assert_allclose(env.sim.data.qpos, d["qpos"][t], atol=1e-6)
        if t in (0, 30):
            live = env.observe()
            assert {name: y.shape for name, y in live.items()} == task.obs
            assert same(env.observe(env.sim.data.qpos.copy()), live)
            joints = d["observations"][t, first : first + 24]
            np.testing.assert_allclose(live["state"], joints, atol=1e-5)
        success = env.act(d["actions"][t])
    assert success
    live = env.observe()
    other = make_env(task)
    other.start(12345)
    assert not same(other.observe(env.sim.data.qpos.copy()), live)
    other.place(d[env.scene.setting][0])
    assert same(other.observe(env.sim.data.qpos.copy()), live)


# ---- demonstrations ------------------------------------------------------------------------------


def test_demonstrations_by_command(tmp_path):
    """From both cores or one the demonstrations are the same."""
    out = tmp_path / "data" / "metaworld-reach.npz"
    flags = ("--task", "metaworld-reach", "--episodes", 2, "--out", out)
    code, text, err = command("experts.py", *flags)
    assert code == 0 and "2 episodes of 2 attempts" in text, err
    d = read(out)
    L = np.diff(d["episode_ends"], prepend=0)
    assert d["points"].shape == (L.sum(), 512, 3) and d["points"].dtype == np.float16
    assert d["state"].shape == (L.sum(), 9) and d["state"].dtype == np.float32
    assert d["start_seed"].tolist() == [1_000_000, 1_000_001]
    assert (20 < L).all() and (L < 200).all()
    assert np.abs(d["action"]).max() <= 1
    assert os.listdir(out.parent) == [out.name]

    lengths, _ = experts.from_expert(REACH, 2, tmp_path / "b.npz", start_seed=1_000_000, workers=1)
    again = read(tmp_path / "b.npz")
    assert lengths.tolist() == L.tolist() and same(again, d)
    with pytest.raises(BadInput, match="exists: name a new file"):
        experts.from_expert(REACH, 2, out)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """Two demonstrations of reach."""
    out = tmp_path_factory.mktemp("clouds") / "metaworld-reach.npz"
    experts.from_expert(REACH, 2, out, start_seed=1_000_000)
    return out


def test_demonstration_is_the_scripted_policy(demonstrations, reach):
    """The actions replayed from the start seed give the recorded states and clouds, and success."""
    d = read(demonstrations)
    reach.start(int(d["start_seed"][0]))
    succeeded = []
    for t in range(int(d["episode_ends"][0])):
        live = reach.observe()
        np.testing.assert_array_equal(d["state"][t], live["state"])
        np.testing.assert_array_equal(d["points"][t], live["points"].astype(np.float16))
        succeeded.append(reach.act(d["action"][t]))
    assert succeeded.index(True) + task_clouds.AFTER + 1 == len(succeeded)


def test_training_by_command(demonstrations, tmp_path):
    """What was collected is trained on, evaluated and improved by command."""
    flags = ("--task", "metaworld-reach", "--data", demonstrations, "--steps", 3)
    small = ("--dims", 8, 16, "--batch", 4, "--episodes", 1, "--device", "cpu")
    code, text, err = command("dbp_train.py", *flags, *small, "--out", tmp_path / "run")
    assert code == 0 and "score 0.0" in text, err
    policy, _ = Policy.load(tmp_path / "run" / "ckpt.pt")
    assert policy.specs == REACH.specs
    points = torch.from_numpy(load(REACH, demonstrations).obs["points"])
    assert torch.equal(policy.norm_obs["points"].lo, points.amin((0, 1)))
    normal = policy.norm_obs["points"](points)
    assert normal.amin() >= -1.0001 and normal.amax() <= 1.0001

    flags = ("--init", tmp_path / "run" / "ckpt.pt", "--num-iterations", 1, "--num-envs", 1)
    small = ("--num-steps", 3, "--one-process", "--episodes", 1, "--critic-warmup", 0)
    small += ("--sigma", 0.1)
    out = ("--device", "cpu", "--out", tmp_path / "ppo")
    code, text, err = command("dbpo_ppo.py", *flags, *small, *out)
    assert code == 0 and "9 environment steps" in text, err


class OneProcess:
    """A pool of no workers: what it maps happens here, where tests can see it."""

    def __init__(self, workers):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_interrupted(tmp_path, monkeypatch):
    """What a killed collection finished is not made again; another collection's is not mixed in."""
    made = []

    def expert(env, seed, states):
        made.append(seed)
        if seed == 4 and len(made) < 6:
            raise KeyboardInterrupt
        if seed == 2:
            return None
        return {
            "state": np.full((3, 9), seed, np.float32),
            "points": np.zeros((3, 512, 3), np.float32),
            "action": np.zeros((3, 4), np.float32),
        }

    monkeypatch.setattr(experts, "worker_pool", OneProcess)
    task = replace(REACH, expert=expert)
    out = tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt):
        experts.from_expert(task, 5, out, workers=1)
    assert made == [0, 1, 2, 3, 4] and not out.exists()
    with pytest.raises(BadInput, match="interrupted collection of something else"):
        experts.from_expert(TASKS["metaworld-push"], 5, out, workers=1)
    _, tried = experts.from_expert(task, 5, out, workers=1)
    assert made == [0, 1, 2, 3, 4, 4, 5] and tried == 6
    assert read(out)["start_seed"].tolist() == [0, 1, 3, 4, 5]
    assert read(out)["state"][::3, 0].tolist() == [0, 1, 3, 4, 5]
    assert os.listdir(tmp_path) == ["x.npz"]


def test_no_attempt_more_than_can_be_needed(tmp_path, monkeypatch):
    """However many workers there may be; after a failure one more attempt is made, not a batch."""
    made = []

    def expert(env, seed, states):
        made.append(seed)
        return None if seed == 1 else {"state": np.zeros((3, 9)), "action": np.zeros((3, 4))}

    def pool(n):
        assert n == 2
        return OneProcess(n)

    monkeypatch.setattr(experts, "worker_pool", pool)
    task = replace(REACH, expert=expert, obs={"state": (9,)})
    _, tried = experts.from_expert(task, 2, tmp_path / "x.npz", workers=1000)
    assert made == [0, 1, 2] and tried == 3


def test_an_expert_that_always_fails(tmp_path, monkeypatch):
    def fails(env, seed, states):
        return None

    monkeypatch.setattr(experts, "worker_pool", OneProcess)
    with pytest.raises(BadInput, match="0 of 20 attempts at metaworld-reach succeeded"):
        experts.from_expert(replace(REACH, expert=fails), 1, tmp_path / "y.npz", workers=1)


def test_other_observations_are_stored_by_their_axes(tmp_path, monkeypatch):
    """Numbers as float32, clouds as float16, pictures as uint8, whatever their names."""

    def expert(env, seed, states):
        return {
            "cloud": np.full((2, 5, 3), 0.1),
            "joints": np.full((2, 7), 0.1),
            "wrist": np.full((2, 4, 6, 3), 200),
            "action": np.zeros((2, 4), np.float32),
        }

    monkeypatch.setattr(experts, "worker_pool", OneProcess)
    task = replace(REACH, expert=expert, obs={"joints": (7,), "cloud": (5, 3), "wrist": (4, 6, 3)})
    experts.from_expert(task, 3, tmp_path / "x.npz", workers=1)
    d = read(tmp_path / "x.npz")
    assert {name: (d[name].shape, d[name].dtype.name) for name in task.obs} == {
        "joints": ((6, 7), "float32"),
        "cloud": ((6, 5, 3), "float16"),
        "wrist": ((6, 4, 6, 3), "uint8"),
    }
    assert d["episode_ends"].tolist() == [2, 4, 6]


# ---- Adroit's recorded states --------------------------------------------------------------------


def test_adroit_demonstrations(tmp_path):
    path = recorded("hammer")
    out = tmp_path / "adroit-hammer.npz"
    lengths, tried = experts.from_expert(HAMMER, 1, out, states=path, workers=1)
    episodes = load(HAMMER, out)
    assert lengths.tolist() == [100] and tried == 1
    assert episodes.obs["state"].shape == (100, 24)
    assert episodes.obs["points"].shape == (100, 512, 3)
    d = read(path)
    np.testing.assert_array_equal(episodes.action, d["actions"][:100])
    np.testing.assert_allclose(episodes.obs["state"], d["qpos"][:100, 2:26], atol=1e-6)
    with pytest.raises(BadInput, match="has 25 episodes: cannot show 26"):
        experts.from_expert(HAMMER, 26, tmp_path / "z.npz", states=path)


def test_fewer_states_than_actions_are_refused(tmp_path):
    with h5py.File(tmp_path / "main_data.hdf5", "w") as f:
        for e in range(2):
            f[f"episode_{e}/actions"] = np.zeros((10, 26), np.float32)
            f[f"episode_{e}/infos/qpos"] = np.zeros((10 - 4 * e, 33))
    with pytest.raises(BadInput, match="/episode_1 has fewer states than actions"):
        read_adroit(tmp_path / "main_data.hdf5")


def fake_states(**change):
    """Recorded states of two episodes of the hammer; None takes an array away."""
    arrays = {
        "qpos": np.zeros((6, 33)),
        "actions": np.zeros((6, 26), np.float32),
        "episode_ends": np.array([3, 6]),
        "board_pos": np.array([[0, 0, 0.2], [0, 0, 0.25]]),
    }
    return {name: a for name, a in {**arrays, **change}.items() if a is not None}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qpos": np.zeros((6, 30))}, "do not fit adroit-hammer, whose model has 33 positions"),
        ({"qpos": np.full((6, 33), np.nan)}, "not finite"),
        ({"actions": np.zeros((6, 24))}, "26 actions"),
        ({"board_pos": None}, "board_pos are needed"),
        ({"episode_ends": None}, "cannot show 1"),
        ({"episode_ends": np.array(6)}, "no episodes of adroit-hammer can be counted"),
    ],
)
def test_states_that_do_not_fit(tmp_path, change, message):
    states = tmp_path / "s.npz"
    save_npz(states, **fake_states(**change))
    with pytest.raises(BadInput, match=message):
        experts.from_expert(HAMMER, 1, tmp_path / "out.npz", states=states, workers=1)
    assert not (tmp_path / "out.npz").exists()


def test_states_are_looked_for(tmp_path, monkeypatch):
    """A path that is given, else $DRIFT_DATA, else Minari's folder; else all places are named."""
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    with pytest.raises(BadInput, match="no states of adroit-hammer .*hammer.npz or .*expert-v2"):
        HAMMER.count_states(None)
    with pytest.raises(BadInput, match="nowhere.npz"):
        HAMMER.count_states(tmp_path / "nowhere.npz")
    minari = tmp_path / "minari" / "D4RL" / "hammer" / "expert-v2"
    minari.mkdir(parents=True)
    with pytest.raises(BadInput, match="expert-v2 is missing, or is not a Minari data set"):
        HAMMER.count_states(None)
    save_npz(tmp_path / "data" / "adroit" / "hammer.npz", **fake_states())
    assert HAMMER.count_states(None) == (tmp_path / "data" / "adroit" / "hammer.npz", 2)


def test_minari_states(tmp_path):
    """D4RL's Adroit data in Minari's layout: every second state, with the mean of two actions."""
    import h5py

    rng = np.random.default_rng(0)
    qpos = rng.normal(size=(8, 33))
    actions = rng.normal(size=(7, 26))
    (tmp_path / "d" / "data").mkdir(parents=True)
    with h5py.File(tmp_path / "d" / "data" / "main_data.hdf5", "w") as f:
        g = f.create_group("episode_0")
        g["actions"] = actions
        g["state/qpos"] = qpos
        g["state/board_pos"] = np.tile([0, 0, 0.2], (8, 1))
    got = read_adroit(tmp_path / "d")
    np.testing.assert_array_equal(got["qpos"], qpos[:6:2])
    np.testing.assert_allclose(got["actions"], (actions[:6:2] + actions[1:6:2]) / 2)
    assert got["episode_ends"].tolist() == [3]
    assert got["board_pos"].tolist() == [[0, 0, 0.2]]
    assert HAMMER.count_states(tmp_path / "d") == (tmp_path / "d", 1)
    with pytest.raises(BadInput, match="not a Minari data set"):
        read_adroit(tmp_path)


# ---- files, and pictures by command --------------------------------------------------------------


def test_bad_clouds(tmp_path):
    good = {
        "state": np.zeros((9, 9), np.float32),
        "points": np.zeros((9, 512, 3), np.float16),
        "action": np.zeros((9, 4), np.float32),
        "episode_ends": np.array([9]),
    }
    save_npz(tmp_path / "a.npz", **good)
    obs = load(REACH, tmp_path / "a.npz").obs
    assert {name: (y.shape, y.dtype.name) for name, y in obs.items()} == {
        "state": ((9, 9), "float32"),
        "points": ((9, 512, 3), "float32"),
    }
    nan = good["points"].copy()
    nan[3, 7, 1] = np.nan
    for change, message in (
        ({"points": nan}, "points is NaN or infinite at 1 of 9"),
        ({"points": np.zeros((9, 100, 3))}, "512, 3"),
        ({"state": np.zeros((9, 5))}, "9, 9"),
    ):
        save_npz(tmp_path / "b.npz", **{**good, **change})
        with pytest.raises(BadInput, match=message):
            load(REACH, tmp_path / "b.npz")


def test_no_data_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path))
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="python experts.py --task metaworld-shelf-place"):
        load(TASKS["metaworld-shelf-place"])


@pytest.mark.parametrize("name", ["metaworld-reach", "hopper"])
def test_picture_by_command(name, tmp_path):
    code, text, err = command("envs.py", "--task", name, "--png", tmp_path / "x.png")
    assert code == 0 and "x.png" in text, err
    assert (tmp_path / "x.png").stat().st_size > 10_000


def free_camera(camera):
    """The camera as MuJoCo's renderer takes one: where it looks, from how far, by which angles."""
    ahead = -camera.matrix()[:, 2]
    free = mujoco.MjvCamera()
    free.lookat = np.asarray(camera.pos) + ahead
    free.distance = 1.0
    free.azimuth = np.rad2deg(np.arctan2(ahead[1], ahead[0]))
    free.elevation = np.rad2deg(np.arcsin(ahead[2]))
    return free


@pytest.mark.filterwarnings("ignore")  # of a renderer that could not be made
@pytest.mark.parametrize(
    "name", ["metaworld-assembly", "metaworld-reach", "metaworld-door-close", "adroit-pen"]
)
def test_rays_see_what_the_renderer_draws(name):
    """Rendered depth of the same camera agrees within 1 cm on 99 % of the pixels that both see.

    Goal marks are included.
    """
    env = make_env(TASKS[name])
    env.reset(seed=3)
    data = env.settled()
    env.model.vis.global_.fovy = env.camera.fovy
    renderer = make_renderer(env.model, env.camera.size)
    renderer.enable_depth_rendering()
    renderer.update_scene(data, free_camera(env.camera))
    depth = renderer.render().ravel()
    points, hit = cast(env.model, data, env.camera)
    mine = (points - env.camera.pos) @ -env.camera.matrix()[:, 2]
    both = (hit >= 0) & (depth < 3) & (mine < 3)
    close = np.abs(mine - depth)[both] < 0.01
    assert both.mean() > 0.3 and close.mean() >= 0.99
