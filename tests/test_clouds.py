"""Tasks seen as point clouds: simulators, demonstrations, training and evaluation, and what happens to bad input."""
import os
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from conftest import cli as command, make_renderer

import experts
from data import Chunks, load, save_npz
from envs import METAWORLD, TASKS, Chunked, task_named
from formats import read, read_adroit
from pointcloud import cast
from policy import Policy
from runs import BadInput

REACH, HAMMER = TASKS["metaworld-reach"], TASKS["adroit-hammer"]


@pytest.fixture(scope="module")
def reach():
    return REACH.env()


def cloud(obs):
    return obs[..., -3 * REACH.points:].reshape(*obs.shape[:-1], REACH.points, 3)


def recorded(name):
    path = Path(os.environ.get("DRIFT_DATA", "?"), "adroit", f"{name}.npz")
    if not path.exists():
        pytest.skip(f"set DRIFT_DATA to a folder that holds adroit/{name}.npz")
    return path


# ---- simulators

def test_table():
    """The paper's 34 Meta-World tasks in its four groups, all known to the simulator and to its scripted policies."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as environments
    from metaworld.policies import ENV_POLICY_MAP
    counts = {group: len(names.split()) for group, names in METAWORLD.items()}
    assert counts == {"easy": 21, "medium": 4, "hard": 4, "very hard": 5}
    names = [t.name.removeprefix("metaworld-") for t in TASKS.values() if t.score == "success"]
    assert len(names) == 34 and all(f"{n}-v3-goal-observable" in environments and f"{n}-v3" in ENV_POLICY_MAP for n in names)
    assert [t.name for t in TASKS.values() if t.score == "held"] == ["adroit-hammer", "adroit-door", "adroit-pen"]
    for t in TASKS.values():
        if t.points:
            assert (t.T_o, t.T_p, t.T_a, t.points) == (2, 4, 3, 512) and t.group


def test_near_names():
    with pytest.raises(BadInput, match="unknown task 'asembly': did you mean metaworld-assembly"):
        task_named("asembly")
    with pytest.raises(BadInput, match="did you mean .*adroit-hammer"):
        task_named("hammer")


def test_meta_world(reach):
    """A seed fixes start and goal; the goal's mark is in the cloud; a cloud of a recorded state is the live one."""
    a, _ = reach.reset(seed=5)
    goal = reach.sim._target_pos.copy()
    assert a.shape == (REACH.obs_dim,) and a.dtype == np.float32
    near = np.linalg.norm(cloud(a) - goal, axis=1)
    assert (near < 0.0201).sum() >= 2, near.min()
    low, high = np.array(reach.box)
    assert ((cloud(a) > low) & (cloud(a) < high)).all()
    hand, right, left = a[:9].reshape(3, 3)
    assert np.linalg.norm(right - left) == pytest.approx(0.1, abs=0.02) and hand[2] > right[2] > 0.1
    for _ in range(3):
        b, reward, terminated, truncated, info = reach.step(np.float32([1, 0, 0, 0]))
    assert b[0] > a[0] + 0.005 and (reward, terminated, truncated) == (0, False, False)
    np.testing.assert_array_equal(reach.observe(reach.sim.data.qpos.copy()), b)
    c, _ = reach.reset(seed=6)
    assert np.abs(reach.sim._target_pos - goal).max() > 0.01 and not np.array_equal(a, c)
    np.testing.assert_array_equal(reach.reset(seed=5)[0], a)
    picture = reach.render()
    assert picture.shape == (160, 160, 3) and picture.dtype == np.uint8 and picture.std() > 20


def test_success_ends_meta_world(reach):
    """Going to the goal succeeds: reward 1, over, and Chunked tells it."""
    chunked = Chunked(reach, 2, 3, 200)
    chunked.reset(seed=5)
    over, n = False, 0
    while not over and n < 60:
        move = np.clip(25 * (reach.sim._target_pos - reach.settled().site("rightEndEffector").xpos), -1, 1)
        _, reward, over, _, info = chunked.step(np.tile(np.append(move, 0), (3, 1)))
        n += 1
    assert over and info["success"] and np.nansum(info["rewards"]) == reward == 1




@pytest.mark.parametrize("held", [True, False])
def test_held(held, monkeypatch):
    """Adroit counts the end of an episode, Meta-World any step of it."""
    from test_envs import Counter
    env = Chunked(Counter(succeeds=2), 2, 3, 6, held=held)
    env.reset()
    for _ in range(2):
        *_, info = env.step(np.zeros((3, 3)))
    assert info["over"] and info["success"] is (not held)


def test_wrong_state(reach):
    reach.reset(seed=0)
    with pytest.raises(ValueError, match="3 positions does not fit this model"):
        reach.observe(np.zeros(3))
    box, reach.box = reach.box, ((5, 5, 5), (6, 6, 6))
    try:
        with pytest.raises(ValueError, match="no point inside the crop box"):
            reach.observe()
    finally:
        reach.box = box


@pytest.mark.parametrize("name", ["hammer", "door", "pen"])
def test_adroit_is_the_recorded_one(name):
    """Seed and actions give the recorded positions and success; a cloud of a recorded state is the live one."""
    d, task = read(recorded(name)), TASKS[f"adroit-{name}"]
    env = task.env()
    env.reset(seed=int(d["seed"][0]))
    for t in range(int(d["episode_ends"][0])):
        np.testing.assert_allclose(env.sim.data.qpos, d["qpos"][t], atol=1e-6)
        if t in (0, 30):
            live = env.observe()
            np.testing.assert_array_equal(env.observe(env.sim.data.qpos.copy()), live)
            a = {"hammer": 2, "pen": 0, "door": 3}[name]
            np.testing.assert_allclose(live[:24], d["observations"][t, a:a + 24], atol=1e-5)
        success = env.act(d["actions"][t])
    assert success
    live = env.observe()
    other = task.env()
    other.start(12345)
    assert not np.array_equal(other.observe(env.sim.data.qpos.copy()), live)
    other.place(d[env.setting][0])
    np.testing.assert_array_equal(other.observe(env.sim.data.qpos.copy()), live)


# ---- demonstrations

def test_experts_and_training(tmp_path, capsys, monkeypatch):
    """Demonstrations by command, from both cores or one the same; trained on and evaluated by command."""
    out = tmp_path / "data" / "metaworld-reach.npz"
    code, text, err = command("experts.py", "--task", "metaworld-reach", "--episodes", 2, "--out", out)
    assert code == 0 and "2 episodes of 2 attempts" in text, err
    d = read(out)
    L = np.diff(d["episode_ends"], prepend=0)
    assert d["points"].shape == (L.sum(), 512, 3) and d["points"].dtype == np.float16 and d["state"].shape == (L.sum(), 9)
    assert (d["start_seed"] == [1_000_000, 1_000_001]).all() and (20 < L).all() and (L < 200).all()
    assert np.abs(d["action"]).max() <= 1 and os.listdir(out.parent) == [out.name]
    lengths, tried = experts.clouds(REACH, 2, tmp_path / "b.npz", start_seed=1_000_000, workers=1)
    again = read(tmp_path / "b.npz")
    assert lengths.tolist() == L.tolist() and all((again[k] == d[k]).all() for k in d)
    with pytest.raises(BadInput, match="exists: name a new file"):
        experts.clouds(REACH, 2, out)

    code, text, err = command("dbp_train.py", "--task", "metaworld-reach", "--data", out, "--steps", 3, "--dims", 8, 16,
                              "--batch", 4, "--episodes", 1, "--device", "cpu", "--out", tmp_path / "run")
    assert code == 0 and "score 0.0" in text, err
    policy, _ = Policy.load(tmp_path / "run" / "ckpt.pt")
    assert policy.shape["points"] == 512 and "encoder.cloud.mlp.0.weight" in policy.state_dict()
    xyz = cloud(torch.from_numpy(load(REACH, out).obs))
    assert torch.equal(policy.norm_obs.lo[-3:], xyz.amin((0, 1))) and torch.equal(policy.norm_obs.lo[-6:-3], xyz.amin((0, 1)))
    normal = cloud(policy.norm_obs(torch.from_numpy(load(REACH, out).obs)))
    assert normal.amin() >= -1.0001 and normal.amax() <= 1.0001
    code, text, err = command("dbpo_ppo.py", "--init", tmp_path / "run" / "ckpt.pt", "--iters", 1, "--envs", 1, "--chunks", 3,
                              "--one-process", "--episodes", 1, "--critic-warmup", 0, "--device", "cpu", "--out", tmp_path / "ppo")
    assert code == 0 and "9 environment steps" in text, err


def test_interrupted(tmp_path, monkeypatch):
    """What a killed collection finished is not made again; another collection's is not mixed in."""
    made = []

    def scripted(task, seed):
        made.append(seed)
        if seed == 4 and len(made) < 6:
            raise KeyboardInterrupt
        env = experts.simulator(task.name)
        env.start(seed)
        return np.stack(3 * [env.sim.data.qpos]), np.zeros((3, 4), np.float32), seed != 2

    class Pool:
        __init__ = lambda self, workers: None
        __enter__ = lambda self: self
        __exit__ = lambda *a: None
        map = staticmethod(map)

    monkeypatch.setattr(experts, "scripted", scripted)
    monkeypatch.setattr(experts, "ProcessPoolExecutor", Pool)
    out = tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt):
        experts.clouds(REACH, 5, out, workers=1)
    assert made == [0, 1, 2, 3, 4] and not out.exists()
    with pytest.raises(BadInput, match="interrupted collection of something else"):
        experts.clouds(TASKS["metaworld-push"], 5, out, workers=1)
    _, tried = experts.clouds(REACH, 5, out, workers=1)
    assert made == [0, 1, 2, 3, 4, 4, 5] and tried == 6
    assert read(out)["start_seed"].tolist() == [0, 1, 3, 4, 5] and os.listdir(tmp_path) == ["x.npz"]
    monkeypatch.setattr(experts, "scripted", lambda task, seed: (None, None, False))
    with pytest.raises(BadInput, match="0 of 20 attempts at metaworld-reach succeeded"):
        experts.clouds(REACH, 1, tmp_path / "y.npz", workers=1)


def test_adroit_demonstrations(tmp_path):
    path = recorded("hammer")
    lengths, tried = experts.clouds(HAMMER, 1, tmp_path / "adroit-hammer.npz", states=path, workers=1)
    ep, d = load(HAMMER, tmp_path / "adroit-hammer.npz"), read(path)
    assert lengths.tolist() == [100] and tried == 1 and ep.obs.shape == (100, 24 + 1536)
    np.testing.assert_array_equal(ep.action, d["actions"][:100])
    with pytest.raises(BadInput, match="has 25 episodes: cannot show 26"):
        experts.clouds(HAMMER, 26, tmp_path / "z.npz", states=path)


def fake_states(**change):
    arrays = {"qpos": np.zeros((6, 33)), "actions": np.zeros((6, 26), np.float32), "episode_ends": np.array([3, 6]),
              "board_pos": np.array([[0, 0, 0.2], [0, 0, 0.25]])}
    return {k: v for k, v in {**arrays, **change}.items() if v is not None}


@pytest.mark.parametrize("change, message", [
    ({"qpos": np.zeros((6, 30))}, "do not fit adroit-hammer, whose model has 33 positions"),
    ({"qpos": np.full((6, 33), np.nan)}, "not finite"), ({"actions": np.zeros((6, 24))}, "26 actions"),
    ({"board_pos": None}, "board_pos are needed"), ({"episode_ends": None}, "cannot show 1")])
def test_states_that_do_not_fit(tmp_path, change, message):
    save_npz(tmp_path / "s.npz", **fake_states(**change))
    with pytest.raises(BadInput, match=message):
        experts.clouds(HAMMER, 1, tmp_path / "out.npz", states=tmp_path / "s.npz", workers=1)
    assert not (tmp_path / "out.npz").exists()


def test_minari_states(tmp_path):
    """D4RL's Adroit data in Minari's layout: every second state, with the mean of two actions."""
    import h5py
    rng = np.random.default_rng(0)
    qpos, actions = rng.normal(size=(8, 33)), rng.normal(size=(7, 26))
    (tmp_path / "d" / "data").mkdir(parents=True)
    with h5py.File(tmp_path / "d" / "data" / "main_data.hdf5", "w") as f:
        g = f.create_group("episode_0")
        g["actions"] = actions
        g["state/qpos"], g["state/board_pos"] = qpos, np.tile([0, 0, 0.2], (8, 1))
    got = read_adroit(tmp_path / "d")
    np.testing.assert_array_equal(got["qpos"], qpos[:6:2])
    np.testing.assert_allclose(got["actions"], (actions[:6:2] + actions[1:6:2]) / 2)
    assert got["episode_ends"].tolist() == [3] and got["board_pos"].tolist() == [[0, 0, 0.2]]
    with pytest.raises(BadInput, match="not a Minari data set"):
        read_adroit(tmp_path)


def test_bad_clouds(tmp_path):
    good = {"state": np.zeros((9, 9), "f4"), "points": np.zeros((9, 512, 3), "f2"), "action": np.zeros((9, 4), "f4"),
            "episode_ends": np.array([9])}
    save_npz(tmp_path / "a.npz", **good)
    assert load(REACH, tmp_path / "a.npz").obs.shape == (9, REACH.obs_dim)
    nan = good["points"].copy()
    nan[3, 7, 1] = np.nan
    for change, message in ({"points": nan}, "1 observations are NaN"), ({"points": np.zeros((9, 100, 3))}, "512, 3"), (
            {"state": np.zeros((9, 5))}, "need .9, 1545"):
        save_npz(tmp_path / "b.npz", **{**good, **change})
        with pytest.raises(BadInput, match=message):
            load(REACH, tmp_path / "b.npz")


def test_no_data_says_how_to_make_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path))
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="python experts.py --task metaworld-shelf-place"):
        load(TASKS["metaworld-shelf-place"])


def test_picture_by_command(tmp_path):
    code, text, err = command("pointcloud.py", "--task", "metaworld-reach", "--png", tmp_path / "x.png")
    assert code == 0 and "84 x 84 rays" in text and (tmp_path / "x.png").stat().st_size > 10_000, err
    code, _, err = command("pointcloud.py", "--task", "hopper")
    assert code == 2 and "hopper is not seen as a point cloud" in err


@pytest.mark.filterwarnings("ignore")                       # of a renderer that could not be made
@pytest.mark.parametrize("name", ["metaworld-assembly", "metaworld-reach", "metaworld-door-close", "adroit-pen"])
def test_rays_see_what_the_renderer_draws(name):
    """Rendered depth of the same camera agrees within 1 cm on 99 % of the pixels that both see, goal marks included."""
    env = TASKS[name].env()
    env.reset(seed=3)
    model, data, camera = env.model, env.settled(), env.camera
    ahead, free = -camera.matrix()[:, 2], mujoco.MjvCamera()
    free.lookat, free.distance = np.asarray(camera.pos) + ahead, 1.0
    free.azimuth, free.elevation = np.rad2deg(np.arctan2(ahead[1], ahead[0])), np.rad2deg(np.arcsin(ahead[2]))
    model.vis.global_.fovy = camera.fovy
    renderer = make_renderer(model, camera.size)
    renderer.enable_depth_rendering()
    renderer.update_scene(data, free)
    depth = renderer.render().ravel()
    points, hit = cast(model, data, camera)
    mine = (points - camera.pos) @ ahead
    both = (hit >= 0) & (depth < 3) & (mine < 3)
    assert both.mean() > 0.3 and (np.abs(mine - depth)[both] < 0.01).mean() >= 0.99
