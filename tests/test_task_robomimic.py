"""RoboMimic's tasks: the forms of an action, the simulators, and robomimic's own files.

Tests with the fixture `lift`, `can` or `demonstration` need robosuite, those with `opengl` OpenGL
too; they say so where they skip.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import data
from commands import BadInput
from conftest import ROOT
from envs import TASKS, make_env, make_vec
from evaluate import rollout
from formats import read, save_npz
from policy import Normalizer, Policy, data_ranges
from recorded_robomimic import FLAGS, poses_of_15, proprio_names, seen_from_hand, sizes_of
from robomimic_env import replayed, replayer
from robomimic_format import env_args
from robosuite_env import (
    SCENES,
    axis_angle_to_rot6d,
    delta_to_rot6d,
    from_rot6d,
    package,
    rot6d_to_axis_angle,
    settings,
    to_rot6d,
)
from task_robomimic import cameras_of, recorded_pictures
from test_formats import refused

LIFT = TASKS["lift"]
SEED = 7


def needs_robosuite():
    """Skip without robosuite."""
    if importlib.util.find_spec("robosuite") is None:
        pytest.skip(f"needs robosuite: pip install {LIFT.needs}")


@pytest.fixture(scope="module")
def lift():
    """The simulator of lift, absolute actions."""
    needs_robosuite()
    return make_env(LIFT)


@pytest.fixture(scope="module")
def can():
    """The simulator of can, delta actions."""
    needs_robosuite()
    return make_env(TASKS["can-delta"])


@pytest.fixture(scope="module")
def demonstration(lift):
    """One of lift's expert: state, action, delta, qpos."""
    return LIFT.expert(lift, SEED)


@pytest.fixture(scope="module")
def states(lift, demonstration):
    """The simulator's states (L, S) before each action of the demonstration."""
    _, info = lift.reset(seed=SEED)
    found = [info["state"]]
    for action in demonstration["action"][:-1]:
        found.append(lift.step(action)[-1]["state"])
    return np.stack(found)


@pytest.fixture
def opengl():
    """Skip without OpenGL that draws into memory."""
    from renderer import opengl

    try:
        opengl()
    except BadInput as e:
        pytest.skip(str(e))


# ---- the forms of an action ----------------------------------------------------------------------


def turned(n=200, seed=0):
    """Rotations, among them those by pi, at which an axis-angle vector changes its sign."""
    half = Rotation.from_rotvec(np.pi * np.eye(3))
    return Rotation.concatenate([Rotation.random(n, random_state=seed), half])


def test_rot6d_is_the_first_two_rows():
    rotation = Rotation.from_euler("z", 90, degrees=True)
    wanted = [[0, -1, 0, 1, 0, 0]]
    np.testing.assert_allclose(to_rot6d(Rotation.concatenate([rotation])), wanted, atol=1e-12)


@pytest.mark.parametrize("arms", [1, 2])
def test_forms_of_an_action_are_the_same_goal(arms):
    rotation = turned(197)
    n = len(rotation) // arms
    rng = np.random.default_rng(0)
    action = rng.normal(size=(len(rotation), 10))
    action[:, 3:9] = to_rot6d(rotation)
    action = action.reshape(n, -1)
    back = axis_angle_to_rot6d(rot6d_to_axis_angle(action))
    np.testing.assert_allclose(back, action, atol=1e-5)
    np.testing.assert_allclose(rot6d_to_axis_angle(action[0]), rot6d_to_axis_angle(action)[0])


def test_rows_of_a_network_become_a_rotation():
    """Rows of any length and angle: the first keeps its direction. Zeros are no error."""
    rows = np.array([[2.0, 0, 0, 5, 0.5, 0], [0, 0, 0, 0, 0, 0], [0, 3, 0, 0, 0, 0.1]])
    made = from_rot6d(rows).as_matrix()
    np.testing.assert_allclose(made[0], np.eye(3), atol=1e-4)
    np.testing.assert_allclose(made[1], np.eye(3), atol=1e-4)
    np.testing.assert_allclose(made[2], [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-4)


def test_a_delta_becomes_the_goal_of_the_controller():
    """By hand: 0.05 m and 0.5 rad are 1, beyond which the controller clips."""
    hand = np.array([[0.1, 0.2, 1.0]])
    quat = Rotation.from_euler("z", 90, degrees=True).as_quat()[None]  # fingers: no turn at all
    delta = np.array([[1, -0.5, 3, 0, 0, 2, -1.0]])
    goal = delta_to_rot6d(delta, hand, quat)
    c = np.cos(0.5)
    s = np.sin(0.5)
    wanted = [[0.15, 0.175, 1.05, c, -s, 0, s, c, 0, -1]]
    np.testing.assert_allclose(goal, wanted, atol=1e-12)


def test_rotations_are_normalised_as_they_are():
    """A rotation that hardly changes is not stretched to [-1, 1]; a position is."""
    rng = np.random.default_rng(0)
    state = rng.uniform(0, 0.01, (50, 19))
    action = rng.uniform(0, 0.01, (50, 10))
    import torch

    obs = {"state": torch.as_tensor(state)}
    ranges = data_ranges(obs, torch.as_tensor(action), LIFT.limits)
    normal = Normalizer(*ranges["action"])(torch.as_tensor(action, dtype=torch.float32))
    np.testing.assert_allclose(normal[:, 3:], action[:, 3:], atol=1e-6)
    assert normal[:, :3].amax() == pytest.approx(1, abs=1e-5)
    lo, hi = ranges["obs"]["state"]
    assert (hi == 1).nonzero().flatten().tolist() == [3, 4, 5, 6, 13, 14, 15, 16]
    assert lo[0] == pytest.approx(state[:, 0].min())
    for task in TASKS.values():
        if task.suite.startswith("robomimic"):
            for name, bounds in task.limits.items():
                size = task.D_a if name == "action" else task.obs[name][0]
                assert [len(bound) for bound in bounds] == [size, size], (task.name, name)


# ---- the simulators ------------------------------------------------------------------------------

CODE = """
import hashlib, sys, numpy as np
sys.path.insert(0, sys.argv[1])
from envs import TASKS, make_env
np.random.seed(int(sys.argv[2]))
before = np.random.get_state()[1].tolist()
env = make_env(TASKS["lift"])
_, info = env.reset(seed=7)
action = np.array([0, 0, 0.9, 0, 1, 0, 1, 0, 0, -1])
for _ in range(3):
    _, _, _, _, info = env.step(action)
sizes = env.raw.sim.model._model.geom_size
assert np.random.get_state()[1].tolist() == before
print(hashlib.sha256(info["state"].tobytes() + sizes.tobytes()).hexdigest())
"""


def test_starts_are_the_same_in_every_process_and_nothing_is_said(lift):
    """Sizes of objects are drawn too, when a simulator is made. numpy's own numbers go on."""
    code = [sys.executable, "-c", CODE, ROOT]
    runs = [subprocess.run([*code, n], capture_output=True, text=True) for n in ("1", "2")]
    assert {run.stderr for run in runs} == {""}
    assert len({run.stdout for run in runs}) == 1 and len(runs[0].stdout) == 65


def test_a_seed_gives_the_same_episode_after_another_one(lift):
    actions = np.random.default_rng(0).normal(size=(4, 10))
    found = []
    for seed in (3, 4, 3):
        lift.reset(seed=seed)
        found.append([lift.step(action)[-1]["state"] for action in actions][-1])
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).any()


def test_observations_are_those_of_robosuite(can):
    """Asked for twice, since robosuite's hand sees where the object was when it was asked before.

    A recorded state gives the observation that it gave in the episode.
    """
    rng = np.random.default_rng(0)
    can.reset(seed=SEED)
    for _ in range(5):
        obs, _, _, _, info = can.step(rng.uniform(-1, 1, 7))
    own = can.numbers()
    can.raw._get_observations(force_update=True)
    twice = can.raw._get_observations(force_update=True)
    for name in own:
        np.testing.assert_allclose(own[name], twice[name], atol=1e-6)
    assert list(own) == ["object-state", *proprio_names("can")]
    can.reset(seed=SEED + 1)
    again, _ = can.reset(options={"state": info["state"]})
    np.testing.assert_array_equal(again["state"], obs["state"])
    refused(lambda: can.reset(options={"state": np.zeros(5)}), "(5,)", "not of can, which has 71")


@pytest.mark.parametrize("form", ["action", "delta"])
def test_an_expert_succeeds_again(lift, demonstration, form):
    """By its absolute actions and by its deltas, which end in the same places; success ends it."""
    env = lift if form == "action" else make_env(TASKS["lift-delta"])
    obs, _ = env.reset(seed=SEED)
    L = len(demonstration["state"])
    for t, action in enumerate(demonstration[form]):
        np.testing.assert_allclose(obs["state"], demonstration["state"][t], atol=1e-4)
        obs, reward, terminated, _, info = env.step(action)
        assert (reward, terminated, info["is_success"]) == ((t == L - 1),) * 3


def test_a_policy_is_rolled_out(lift):
    """50 chunks of 8 are an episode of 400 steps; here the first, of two episodes."""
    shape = {"task": "lift", "obs": LIFT.specs, "D_a": 10, "T_o": 2, "T_p": 16, "T_a": 8}
    ones = (-np.ones(10), np.ones(10))
    ranges = {"obs": {"state": (-np.ones(19), np.ones(19))}, "action": ones}
    short = dataclasses.replace(LIFT, steps=8)
    r = rollout(Policy({**shape, "dims": [8, 8]}, ranges), short, [1, 2], workers=False)
    assert r.rewards.shape[0] == 2 and not r.success.any()


def test_without_robosuite(monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    words = ("lift needs robosuite", "pip install --no-deps robosuite==1.5.1")
    refused(lambda: make_env(LIFT), *words)
    refused(lambda: make_vec(LIFT, 1, workers=False), *words)


def test_a_picture_is_drawn_where_it_is_looked_at(lift, opengl):
    env = make_env(TASKS["lift-image"])
    obs, _ = env.reset(seed=SEED)
    assert "renderer" not in vars(env) and env.observation_space.contains(seen(obs))
    first = seen(obs)
    later, *_ = env.step(np.array([0.1, 0, 0.9, 0, 1, 0, 1, 0, 0, -1]))
    np.testing.assert_array_equal(np.asarray(obs["agentview"]), first["agentview"])
    assert (np.asarray(later["robot0_eye_in_hand"]) != first["robot0_eye_in_hand"]).any()
    assert env.render().shape == (256, 256, 3) and env.render().std() > 10


def seen(obs):
    """The observation with its pictures drawn."""
    return {name: np.asarray(a) for name, a in obs.items()}


# ---- files ---------------------------------------------------------------------------------------


def write_file(path, arrays, attrs=None, lengths=None):
    """Write robomimic's HDF5: arrays by their places in a demonstration, env_args as attrs."""
    lengths = lengths or [len(next(iter(arrays.values())))]
    ends = np.cumsum(lengths)
    with h5py.File(path, "w") as f:
        for i, (end, L) in enumerate(zip(ends, lengths)):
            for place, a in arrays.items():
                f[f"data/demo_{i}/{place}"] = a[end - L : end]
        if attrs is not None:
            f["data"].attrs["env_args"] = json.dumps(attrs)
    return path


def osc(**change):
    """What v1.5 files say of a controller."""
    part = {
        "type": "OSC_POSE",
        "input_max": 1,
        "input_min": -1,
        "kp": 150,
        "impedance_mode": "fixed",
    }
    part |= {"output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3}
    part |= {"input_type": "delta", "input_ref_frame": "world", **change}
    return {"type": "BASIC", "body_parts": {"right": part}}


def made_in(env="Lift", version="1.5.1", controller=None, **kwargs):
    """The env_args of a file."""
    kwargs = {"controller_configs": controller or osc(), "control_freq": 20, **kwargs}
    return {"env_name": env, "env_version": version, "type": 1, "env_kwargs": kwargs}


def made_up(scene, n=30, seed=0):
    """Observations by their places in a file of v1.5, deltas, and the states that follow of them.

    The hands point down. What a hand sees of an object is right.
    """
    rng = np.random.default_rng(seed)
    arms = SCENES[scene].arms
    obs = {}
    for i in range(arms):
        obs[f"robot{i}_eef_pos"] = rng.normal(size=(n, 3))
        turn = Rotation.from_rotvec(rng.normal(np.pi, 0.1, (n, 1)) * [1, 0, 0])
        obs[f"robot{i}_eef_quat"] = turn.as_quat()
        obs[f"robot{i}_gripper_qpos"] = rng.normal(size=(n, 2))
    objects = rng.normal(size=(n, SCENES[scene].n_object))
    if scene == "transport":
        objects[:, FLAGS] = rng.integers(0, 2, (n, 2))
    for first in SCENES[scene].quaternions:
        objects[:, first : first + 4] = Rotation.random(n, random_state=first).as_quat()
    hand = [obs["robot0_eef_pos"], obs["robot0_eef_quat"]]
    obs["object"] = seen_from_hand(scene, objects, *hand)
    delta = rng.uniform(-1, 1, (n, 7 * arms))
    return {f"obs/{name}": a for name, a in obs.items()} | {"actions": delta}


def older(scene, objects):
    """The objects' state as robosuite 1.4 tells it."""
    made = objects.copy()
    if scene == "lift":
        made[:, 7:10] *= -1
    if scene in ("can", "square", "tool-hang"):
        for first in range(0, made.shape[1] - 13, 14):
            blocks = [objects[:, first + 7 : first + 14], objects[:, first : first + 7]]
            made[:, first : first + 14] = np.concatenate(blocks, 1)
    if scene == "transport":
        made[:, 27:39] = objects[:, 29:41]
        made[:, 39:41] = objects[:, 27:29]
    return made


@pytest.mark.parametrize("scene", SCENES)
def test_official_files_of_both_versions_are_read_alike(tmp_path, scene):
    """Deltas become goals, and the objects' state comes first, in the order of 1.5."""
    arrays = made_up(scene)
    task = TASKS[scene]
    env = SCENES[scene].env
    new = write_file(tmp_path / "new.hdf5", arrays, made_in(env), [12, 18])
    changed = {**arrays, "obs/object": older(scene, arrays["obs/object"])}
    flat = osc()["body_parts"]["right"] | {"control_delta": True}
    flat.pop("input_ref_frame")
    old = write_file(tmp_path / "old.hdf5", changed, made_in(env, "1.4.1", flat), [12, 18])
    episodes = data.load(task, new)
    numbers = [arrays["obs/object"], *(arrays[f"obs/{name}"] for name in proprio_names(scene))]
    np.testing.assert_allclose(episodes.obs["state"], np.concatenate(numbers, 1), atol=1e-5)
    assert episodes.lengths.tolist() == [12, 18]
    again = data.load(task, old)
    np.testing.assert_allclose(again.obs["state"], episodes.obs["state"], atol=1e-5)
    arms = range(SCENES[scene].arms)
    poses = [
        np.concatenate([arrays[f"obs/robot{i}_{part}"] for i in arms], 1)
        for part in ("eef_pos", "eef_quat")
    ]
    wanted = delta_to_rot6d(arrays["actions"], *poses)
    np.testing.assert_allclose(episodes.action, wanted, atol=1e-5)
    deltas = data.load(TASKS[f"{scene}-delta"], new)
    np.testing.assert_allclose(deltas.action, arrays["actions"], atol=1e-6)
    absolute = {**arrays, "actions": rot6d_to_axis_angle(wanted)}
    path = write_file(tmp_path / "abs.hdf5", absolute, made_in(env))
    np.testing.assert_allclose(data.load(task, path).action, wanted, atol=1e-5)
    refused(lambda: data.load(TASKS[f"{scene}-delta"], path), "absolute", f"{scene} takes them")


def test_the_order_of_poses_is_found_where_what_is_seen_lags():
    """In 1.5 the hand sees the object where it was a step before: 1 cm off is no other order."""
    arrays = made_up("square")
    objects = arrays["obs/object"].copy()
    objects[:, :3] += 0.01
    hand = arrays["obs/robot0_eef_pos"]
    np.testing.assert_array_equal(poses_of_15(objects, hand), objects)
    np.testing.assert_array_equal(poses_of_15(older("square", objects), hand), objects)


@pytest.mark.parametrize(
    "attrs, words",
    [
        (made_in("PickPlaceCan"), "recorded in PickPlaceCan, but lift is Lift"),
        (made_in(version="1.3.0"), "recorded in robosuite 1.3.0"),
        (made_in(control_freq=10), "recorded at 10 Hz, but lift is run at 20"),
        (made_in(controller=osc(type="JOINT_VELOCITY")), "controller of type JOINT_VELOCITY"),
        (made_in(controller=osc(kp=100)), "controller of kp 100, but lift has 150"),
        (made_in(controller=osc(output_max=0.1)), "controller of output_max 0.1"),
        (made_in(controller=osc(damping_ratio=10)), "controller of damping_ratio 10"),
        (made_in(robots=["Sawyer"]), "recorded with ['Sawyer'], but lift has 1 x Panda"),
        (made_in(robots=["Panda", "Panda"]), "but lift has 1 x Panda"),
        (made_in(controller="x"), "controller_configs of its env_args cannot be read"),
        (made_in(controller=["x"]), "controller_configs of its env_args cannot be read"),
        (made_in(controller={"body_parts": "x"}), "controller_configs of its env_args"),
        (made_in(controller={"body_parts": {"right": None}}), "controller_configs of its env_args"),
        ({"env_kwargs": [1]}, "is not HDF5 of Minari or robomimic, or is damaged"),
        ([1], "is not HDF5 of Minari or robomimic, or is damaged"),
    ],
)
def test_files_of_another_environment(tmp_path, attrs, words):
    path = write_file(tmp_path / "x.hdf5", made_up("lift"), attrs)
    refused(lambda: data.load(LIFT, path), words)


def test_deltas_in_the_frame_of_a_base(tmp_path):
    """The bases of transport's arms are turned; those of the others are not."""
    base = osc(input_ref_frame="base")
    path = write_file(tmp_path / "x.hdf5", made_up("lift"), made_in(controller=[base]))
    data.load(LIFT, path)
    attrs = made_in("TwoArmTransport", controller=[base, base])
    path = write_file(tmp_path / "y.hdf5", made_up("transport"), attrs)
    refused(lambda: data.load(TASKS["transport"], path), "the frame of each arm's base")


def test_env_args(tmp_path):
    path = write_file(tmp_path / "x.hdf5", {"actions": np.zeros((3, 7)), "obs/a": np.zeros((3, 1))})
    assert env_args(path) == {} == env_args(tmp_path)
    with h5py.File(path, "a") as f:
        f["data"].attrs["env_args"] = np.arange(3)
    refused(lambda: env_args(path), "damaged")
    with h5py.File(path, "a") as f:
        f["data"].attrs["env_args"] = "[" * 100_000
    refused(lambda: env_args(path), "damaged")


def test_files_of_something_else(tmp_path):
    """Deltas given to an absolute task as npz, which has no hands; actions of another size."""
    whole = {"state": np.zeros((30, 19)), "episode_ends": np.array([30])}
    delta = np.zeros((30, 7))
    save_npz(tmp_path / "x.npz", **whole, action=delta)
    refused(lambda: data.load(LIFT, tmp_path / "x.npz"), "lacks robot0_eef_pos")
    save_npz(tmp_path / "x.npz", **whole, action=np.zeros((30, 10)))
    words = ("(30, 10) are no deltas", "lift takes them")
    refused(lambda: data.load(TASKS["lift-delta"], tmp_path / "x.npz"), *words)
    save_npz(tmp_path / "x.npz", **whole, action=np.zeros((30, 4)))
    refused(lambda: data.load(LIFT, tmp_path / "x.npz"), "action has shape (30, 4)")
    arrays = made_up("lift")
    del arrays["obs/object"]
    path = write_file(tmp_path / "x.hdf5", arrays, made_in())
    refused(lambda: data.load(LIFT, path), "lacks object")


def test_a_camera_that_is_missing(tmp_path):
    arrays = made_up("lift") | {"obs/agentview_image": np.zeros((30, 84, 84, 3), np.uint8)}
    path = write_file(tmp_path / "x.hdf5", arrays, made_in())
    words = ("no pictures of robot0_eye_in_hand", "neither qpos nor states")
    refused(lambda: data.load(TASKS["lift-image"], path), *words)
    arrays["obs/robot0_eye_in_hand_image"] = np.ones((30, 84, 84, 3), np.uint8)
    path = write_file(tmp_path / "y.hdf5", arrays, made_in())
    episodes = data.load(TASKS["lift-image"], path)
    assert episodes.obs["robot0_eye_in_hand"].min() == 1 and episodes.obs["proprio"].shape == (
        30,
        9,
    )


def test_a_file_of_states_alone(tmp_path, lift, demonstration, states):
    """demo_v15.hdf5: no observations; the simulator tells them, and goals of the deltas."""
    arrays = {"actions": demonstration["delta"], "states": states}
    path = write_file(tmp_path / "x.hdf5", arrays, made_in())
    assert set(read(path)) == {"action", "states", "episode_ends"}
    episodes = data.load(LIFT, path)
    np.testing.assert_allclose(episodes.obs["state"], demonstration["state"], atol=1e-4)
    np.testing.assert_allclose(episodes.action, demonstration["action"], atol=1e-4)


def test_pictures_are_drawn_of_what_was_recorded(tmp_path, demonstration, states, opengl):
    """From an expert's file and from robomimic's, the same as in the episode."""
    first = {name: a[:5] for name, a in demonstration.items()}
    save_npz(tmp_path / "lift.npz", **first, episode_ends=np.array([5]))
    task = TASKS["lift-image"]
    loaded = data.load(task, tmp_path / "lift.npz").obs
    env = make_env(task)
    obs, _ = env.reset(options={"state": states[3]})
    for name in task.obs:
        np.testing.assert_allclose(loaded[name][3], np.asarray(obs[name]), atol=2e-3)
    arrays = {"actions": first["delta"], "states": states[:5]}
    other = data.load(task, write_file(tmp_path / "x.hdf5", arrays, made_in())).obs
    np.testing.assert_array_equal(other["agentview"], loaded["agentview"])
    small = {**first, "qpos": first["qpos"][:, :9]}
    save_npz(tmp_path / "bad.npz", **small, episode_ends=np.array([5]))
    refused(lambda: data.load(task, tmp_path / "bad.npz"), "(5, 9) do not fit", "16")


@pytest.mark.parametrize("name, variety", [("lift", 0.0), ("can", 0.5)])
def test_the_shipped_demonstrations_are_made_again(request, name, variety):
    """To the bit, by the commands in DATA.md: here the first of each."""
    env = request.getfixturevalue(name)
    shipped = read(ROOT / "demos" / f"{name}.npz")
    made = TASKS[name].expert(env, int(shipped["start_seed"][0]), variety=variety)
    for array, a in made.items():
        np.testing.assert_array_equal(shipped[array][: shipped["episode_ends"][0]], a.astype("f4"))


# ---- a simulator of each episode -----------------------------------------------------------------


@pytest.fixture(scope="module")
def other():
    """robosuite's lift with a cube of another size."""
    needs_robosuite()
    before = np.random.get_state()
    np.random.seed(5)
    kwargs = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
    env = package("lift").make("Lift", **settings("lift"), **kwargs, hard_reset=False)
    env.reset()
    np.random.set_state(before)
    return env


def with_models(path, states, text, delta):
    """A file of states alone, in two episodes of which the second is of another simulator."""
    arrays = {"actions": delta, "states": states}
    write_file(path, arrays, made_in(), [2, len(states) - 2])
    with h5py.File(path, "a") as f:
        f["data/demo_0"].attrs["model_file"] = TASKS["lift"].env().raw.model.get_xml()
        f["data/demo_1"].attrs["model_file"] = text
    return path


def test_each_episode_has_the_sizes_of_its_own_simulator(
    tmp_path, other, demonstration, states, opengl
):
    """Pictures are those of the other simulator; afterwards the sizes are as they were."""
    from renderer import Renderer

    own = sizes_of(replayer("lift").model)
    theirs = sizes_of(other.sim.model._model)
    assert (own["geom_size"] != theirs["geom_size"]).any()
    task = TASKS["lift-image"]
    text = other.sim.model.get_xml()
    path = with_models(tmp_path / "x.hdf5", states[-4:], text, demonstration["delta"][-4:])
    found = data.load(task, path).obs["robot0_eye_in_hand"]
    draws = [
        Renderer(model, {"robot0_eye_in_hand": 84}, groups=(1, 2))
        for model in (replayer("lift").model, other.sim.model._model)
    ]
    for row, state in enumerate(states[-4:]):
        mine, other_one = (r.draw(state[1:17], "robot0_eye_in_hand").astype(int) for r in draws)
        assert np.abs(mine - other_one).max() > 20
        wanted = mine if row < 2 else other_one
        assert np.abs(found[row] - wanted).mean() < 0.05
    for name, array in sizes_of(replayer("lift", *cameras_of("lift-image")).model).items():
        np.testing.assert_array_equal(array, own[name])


def test_sizes_from_a_text_are_those_that_robosuite_compiles(lift, other):
    for text in (other.sim.model.get_xml(), other.model.get_xml()):
        lift.resize(text.encode())
        for name, array in sizes_of(other.sim.model._model).items():
            np.testing.assert_allclose(sizes_of(lift.model)[name], array, atol=1e-6)
    lift.resize(None)


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    '<x><geom name="&b;"/></x>'
)
CUBE = '<x><geom name="cube_g0" {} /><geom name="cube_g0_vis" size="0.02 0.02 0.02" /></x>'


@pytest.mark.parametrize(
    "text, words",
    [
        ("nonsense", "model_file is no XML: syntax error"),
        (BOMB, "model_file is no XML: it declares types"),
        ("<x />", "does not tell of cube_g0: it is not of this scene"),
        (CUBE.format('size="0.02 0.02 nan"'), "size of cube_g0 is 0.02 0.02 nan"),
        (CUBE.format('size="0.02 0.02 x"'), "size of cube_g0 is 0.02 0.02 x"),
        (CUBE.format('size="0.02 0.02"'), "cube_g0 of size [0.02 0.02 0."),
        (CUBE.format('size="0.02 0.02 0.2"'), "cube_g0 of size [0.02 0.02 0.2 ]"),
        (CUBE.format('size="0.02 0.02 0.02" pos="0 0 9"'), "at [0. 0. 9.], in metres"),
        (CUBE.format('size="1 1 1 1"'), "size of cube_g0 is 1 1 1 1"),
    ],
)
def test_a_text_that_is_no_such_simulator(lift, text, words):
    refused(lambda: lift.resize(text.encode()), words)
    lift.resize(None)


def test_a_text_that_is_none(tmp_path, demonstration, states):
    path = with_models(tmp_path / "x.hdf5", states[:4], "nonsense", demonstration["delta"][:4])
    refused(lambda: data.load(LIFT, path), "x.hdf5", "model_file is no XML")
    with h5py.File(path, "a") as f:
        f["data/demo_0"].attrs["model_file"] = np.arange(3)
    refused(lambda: data.load(LIFT, path), "model_file of a demonstration is no text")
    with h5py.File(path, "a") as f:
        del f["data/demo_0"].attrs["model_file"]
    data.load(LIFT, path)  # not known of all: as if of none


# ---- files for robomimic -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The path of the first three shipped demonstrations of lift, written for robomimic."""
    needs_robosuite()
    folder = tmp_path_factory.mktemp("robomimic")
    shipped = read(ROOT / "demos/lift.npz")
    n = shipped["episode_ends"][2]
    few = {
        name: a[:3] if name in ("episode_ends", "start_seed") else a[:n]
        for name, a in shipped.items()
    }
    save_npz(folder / "few.npz", **few)
    data.export(LIFT, folder / "few.npz", folder / "few.hdf5")
    return folder / "few.hdf5"


@pytest.mark.parametrize("name", ["lift", "lift-delta"])
def test_what_is_written_for_robomimic_is_read_again(exported, name):
    task = TASKS[name]
    was = data.load(task, exported.with_suffix(".npz"))
    found = data.load(task, exported)
    np.testing.assert_allclose(found.obs["state"], was.obs["state"], atol=1e-6)
    np.testing.assert_allclose(found.action, was.action, atol=1e-6)
    assert found.ends.tolist() == was.ends.tolist()
    assert data.load(task, exported, filter_key="train").ends.tolist() == was.ends[:2].tolist()
    assert (
        data.load(task, exported, filter_key="valid").lengths.tolist() == was.lengths[2:].tolist()
    )
    words = "has no filter 20_percent: it has train, valid"
    refused(lambda: data.load(task, exported, filter_key="20_percent"), words)
    refused(lambda: data.export(task, exported.with_suffix(".npz"), exported), "exists: name a new")


def test_states_for_robomimic_give_the_observations(exported):
    """They are the simulator's, begin at rest, and their velocities are those of the motion."""
    arrays = read(exported)
    states = arrays["states"]
    ends = arrays["episode_ends"]
    told = replayed("lift", {"states": states[: ends[0]]})
    hand = arrays["robot0_eef_pos"][: ends[0]]
    np.testing.assert_allclose(told["robot0_eef_pos"], hand, atol=1e-6)
    for first in (0, *ends[:-1]):
        assert states[first, 0] == 0 and (states[first, 17:] == 0).all()
    moved = np.diff(states[: ends[0], 1:8], axis=0) * 20  # the arm's joints
    np.testing.assert_allclose(states[1 : ends[0], 17:24], moved, atol=1e-4)


def test_robomimic_opens_what_is_written_for_it(exported):
    pytest.importorskip(
        "robomimic", reason="robomimic is not installed: pip install --no-deps robomimic"
    )
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    names = ["object", *proprio_names("lift")]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": names, "rgb": []}})
    keys = ("actions", "actions_abs", "rewards", "dones", "states")
    kwargs = {"obs_keys": names, "dataset_keys": keys, "seq_length": 4}
    every, train, valid = (
        SequenceDataset(str(exported), filter_by_attribute=key, hdf5_cache_mode="all", **kwargs)
        for key in (None, "train", "valid")
    )
    assert (every.n_demos, train.n_demos, valid.n_demos) == (3, 2, 1)
    arrays = read(exported)
    window = every[5]
    np.testing.assert_allclose(window["actions"], arrays["action"][5:9], atol=1e-6)
    np.testing.assert_allclose(window["obs"]["object"], arrays["object"][5:9], atol=1e-6)
    np.testing.assert_allclose(window["next_obs"]["object"], arrays["object"][6:10], atol=1e-6)
    goal = axis_angle_to_rot6d(window["actions_abs"])
    shipped = read(ROOT / "demos/lift.npz", ["action"])["action"]
    np.testing.assert_allclose(goal, shipped[5:9], atol=1e-5)
    assert every[len(every) - 1]["rewards"][0] == every[len(every) - 1]["dones"][0] == 1


def test_another_task_is_not_written_for_robomimic(tmp_path):
    path = ROOT / "demos/pusht.npz"
    words = "robomimic has no environment of pusht"
    refused(lambda: data.export(TASKS["pusht"], path, tmp_path / "x.hdf5"), words)


# ---- the protocol of DPPO and ReinFlow -----------------------------------------------------------


def test_pictures_of_another_size_are_left_out():
    """They are drawn anew then, if the file has positions."""
    arrays = {"agentview_image": np.zeros((2, 84, 84, 3), np.uint8)}
    arrays["robot0_eye_in_hand"] = arrays["agentview_image"]
    found = recorded_pictures("lift-image", arrays)
    assert set(found) == {"agentview", "robot0_eye_in_hand"}
    assert recorded_pictures("lift-image-online", arrays) == {}


def test_success_does_not_end_an_episode_online(demonstration):
    """Each step at success is worth 1."""
    env = make_env(TASKS["lift-online"])
    env.reset(seed=SEED)
    up = np.array([0, 0, 1, 0, 0, 0, 1.0])
    rewards = []
    for action in (*demonstration["delta"], up, up):
        _, reward, terminated, truncated, info = env.step(action)
        assert not terminated and not truncated and info["is_success"] == (reward == 1)
        rewards.append(reward)
    assert rewards == [0] * (len(demonstration["delta"]) - 1) + [1, 1, 1]


def test_the_tasks_online():
    for name, steps, T_a, cameras in (
        ("lift", 300, 4, 1),
        ("can", 300, 4, 1),
        ("square", 400, 4, 1),
        ("transport", 800, 8, 2),
    ):
        numbers = TASKS[f"{name}-online"]
        pictures = TASKS[f"{name}-image-online"]
        for task in (numbers, pictures):
            assert (task.steps, task.T_o, task.T_p, task.T_a) == (steps, 1, T_a, T_a)
            assert task.D_a == TASKS[f"{name}-delta"].D_a
            assert task.stage2["gamma"] == 0.999
            assert task.stage2["num_steps"] * T_a == 2 * steps
        seen = [shape for shape in pictures.obs.values() if len(shape) == 3]
        assert seen == [(96, 96, 3)] * cameras and set(pictures.crop.values()) == {88}
    assert "tool-hang-online" not in TASKS


def test_robosuite_does_not_choose_opengl_for_others():
    """Its import sets MUJOCO_GL, which programs that are begun later would inherit."""
    needs_robosuite()
    code = (
        "import os\n"
        "os.environ.pop('MUJOCO_GL', None)\n"
        "from robosuite_env import make_raw\n"
        "make_raw('lift')\n"
        "print(os.environ.get('MUJOCO_GL'))"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout == "None\n", told.stderr
