"""The two arms' tasks: their experts, their observations, and files of their demonstrations."""

import functools

import numpy as np
import pytest

import data
from commands import BadInput
from envs import TASKS, make_env, make_vec
from experts import from_expert
from experts_ur5 import Expert
from formats import read, save_npz
from task_ur5 import STEPS, demonstration, upright
from twin_model import CAMERAS, HOME, LEFT, RIGHT, SCENES


@functools.cache
def env_of(scene):
    """A scene's simulator that tells numbers, made once."""
    return make_env(TASKS[f"{scene}-state"])


@functools.cache
def made(scene, seed, variety=0.0):
    """A demonstration of a scene's expert."""
    return demonstration(scene, env_of(scene), seed, variety=variety)


# ---- the experts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scene, seed, variety",
    [
        ("ur5-lift", 0, 0.0),
        ("ur5-lift", 1, 1.0),
        ("ur5-can", 0, 0.0),
        ("ur5-can", 1, 1.0),
        ("ur5-transport", 0, 0.0),
        ("ur5-transport", 100, 1.0),  # the grip on the hammer once wavered between two turns
    ],
)
def test_an_expert_succeeds_and_its_actions_repeat_its_states(scene, seed, variety):
    shown = made(scene, seed, variety)
    assert shown is not None
    assert len(shown["action"]) < STEPS[scene] and shown["action"].dtype == np.float32
    env = env_of(scene)
    obs, _ = env.reset(seed=seed)
    for k, action in enumerate(shown["action"]):
        np.testing.assert_array_equal(obs["state"], shown["state"][k])
        np.testing.assert_array_equal(env.twin.data.qpos, shown["qpos"][k])
        obs, reward, terminated, truncated, info = env.step(action)
        last = k == len(shown["action"]) - 1
        assert (reward, terminated, info["is_success"]) == (float(last), last, last)


def test_demonstrations_differ_from_start_to_start_and_by_variety():
    plain = made("ur5-lift", 0)
    assert np.abs(made("ur5-lift", 2)["action"][10] - plain["action"][10]).max() > 0.01
    varied = made("ur5-lift", 0, 0.5)
    assert np.abs(varied["action"][5] - plain["action"][5]).max() > 0.001
    again = demonstration("ur5-lift", env_of("ur5-lift"), 0, variety=0.5)
    np.testing.assert_array_equal(again["action"], varied["action"])


def test_what_varies_is_not_told_by_where_things_lie():
    """The draws of the variety are not those that placed the things."""
    env = env_of("ur5-lift")
    for seed in range(3):
        env.reset(seed=seed)
        drawn = Expert(env.twin, seed, 1.0).arms[1].rng.random(6)
        assert not np.isclose(drawn, np.random.default_rng(seed).random(6)).any()


def test_only_the_arm_of_the_task_moves():
    action = made("ur5-can", 0)["action"]
    np.testing.assert_array_equal(action[:, :6], np.tile(HOME[LEFT], (len(action), 1)).astype("f4"))
    assert (action[:, 6] == 0).all()
    assert np.ptp(action[:, 7:13], axis=0).max() > 0.3
    assert set(np.unique(action[:, 13])) == {0, 1}


def test_what_is_held_is_not_yet_put_down():
    """The can is in the bin some steps before the gripper has left it."""
    env = env_of("ur5-can")
    action = made("ur5-can", 0)["action"]
    env.reset(seed=0)
    inside = 0
    for a in action[:-1]:
        env.step(a)
        assert not env.twin.success()
        inside += env.twin.scene.bins["bin"].holds(env.twin.objects()["can"][:3])
    assert inside > 3


def test_an_expert_that_fails_gives_nothing(monkeypatch):
    monkeypatch.setitem(STEPS, "ur5-lift", 5)
    assert demonstration("ur5-lift", env_of("ur5-lift"), 0) is None


# ---- observations --------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES)
def test_the_layout_of_a_state(scene):
    env = env_of(scene)
    obs, info = env.reset(seed=4)
    assert env.observation_space.contains(obs)
    n = 7 * len(SCENES[scene].things)
    poses = np.concatenate(list(env.twin.objects().values()))
    np.testing.assert_allclose(obs["state"][:n:7], poses[::7], atol=1e-6)
    np.testing.assert_allclose(obs["state"][n : n + 3], env.twin.tcp(LEFT)[0], atol=1e-6)
    np.testing.assert_allclose(obs["state"][n + 3 : n + 6], env.twin.tcp(RIGHT)[0], atol=1e-6)
    still = np.array([[*HOME[i], 0] for i in range(2)]).ravel()
    np.testing.assert_allclose(obs["state"][n + 6 :], still, atol=1e-6)
    action = still + np.tile([0.05, 0, 0, 0, 0, 0, 0.5], 2)
    for _ in range(10):
        obs, *_ = env.step(action.astype(np.float32))
    np.testing.assert_allclose(obs["state"][n + 6 :], action, atol=0.02)


def test_a_quaternion_has_one_sign():
    pose = np.array([1, 2, 3, -0.8, 0.6, 0, 0])
    np.testing.assert_array_equal(upright(pose), [1, 2, 3, 0.8, -0.6, 0, 0])
    np.testing.assert_array_equal(upright(upright(pose)), upright(pose))


def test_a_recorded_state_is_a_start():
    env = env_of("ur5-lift")
    env.reset(seed=0)
    for action in made("ur5-lift", 0)["action"][:8]:
        obs, _, _, _, info = env.step(action)
    env.reset(seed=9)
    again, _ = env.reset(seed=9, options={"state": info["state"]})
    np.testing.assert_array_equal(again["state"], obs["state"])
    with pytest.raises(BadInput, match="is not of ur5-lift-state, which has"):
        env.reset(options={"state": info["state"][1:]})


def test_chunks_run_to_success():
    env = make_vec(TASKS["ur5-lift-state"], 1)
    env.reset(seed=[0])
    actions = made("ur5-lift", 0)["action"]
    actions = np.concatenate([actions, np.repeat(actions[-1:], -len(actions) % 8, axis=0)])
    for chunk in actions.reshape(-1, 8, 14):
        _, _, _, _, info = env.step(chunk[None])
    env.close()
    assert info["success"][0] and info["over"][0]
    assert info["steps"][0] == len(made("ur5-lift", 0)["action"])


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    """A file of two short demonstrations of lift."""
    task = TASKS["ur5-lift"]
    path = tmp_path / "ur5-lift.npz"
    from_expert(task, 2, path, start_seed=0, workers=1, variety=0.0)
    return path


@pytest.fixture
def opengl():
    """An environment of lift with cameras; skips without OpenGL."""
    env = make_env(TASKS["ur5-lift"])
    try:
        env.twin.renderer  # noqa: B018 - it is made here
    except BadInput as e:
        pytest.skip(f"needs OpenGL: {e}")
    return env


def test_one_file_serves_numbers_and_pictures(recorded, opengl):
    numbers = data.load(TASKS["ur5-lift-state"], recorded)
    np.testing.assert_array_equal(
        numbers.obs["state"][: numbers.ends[0]], made("ur5-lift", 0)["state"]
    )
    seen = data.load(TASKS["ur5-lift"], recorded)
    np.testing.assert_array_equal(seen.obs["proprio"], numbers.obs["state"][:, -14:])
    assert set(seen.obs) == {*CAMERAS, "proprio"}
    # What is drawn from the file is what the simulator shows, up to float32 of the positions.
    obs, _ = opengl.reset(seed=0)
    for k, action in enumerate(seen.action[:10]):
        if k % 5 == 0:
            for camera in CAMERAS:
                off = np.asarray(obs[camera]).astype(int) - seen.obs[camera][k]
                assert np.abs(off).mean() < 0.1, camera
        obs, *_ = opengl.step(action)
    assert opengl.render().shape == (256, 256, 3)


def test_a_file_without_what_is_drawn_is_refused(recorded, tmp_path):
    arrays = dict(read(recorded))
    del arrays["qpos"]
    bare = tmp_path / "bare.npz"
    save_npz(bare, **arrays)
    with pytest.raises(BadInput, match="no pictures of front and left_wrist and right_wrist"):
        data.load(TASKS["ur5-lift"], bare)
    save_npz(tmp_path / "other.npz", **{**arrays, "qpos": np.zeros((len(arrays["action"]), 30))})
    with pytest.raises(BadInput, match="cannot be drawn: ur5-lift has 23, finite"):
        data.load(TASKS["ur5-lift"], tmp_path / "other.npz")
