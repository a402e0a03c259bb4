"""Franka Kitchen: score, observation, experts, and the layouts of others' demonstrations.

Tests with the fixture `kitchen` need gymnasium-robotics; they say so where they skip.
"""

import importlib.util

import h5py
import numpy as np
import pytest

import data
import task_kitchen
from commands import BadInput
from conftest import ROOT
from envs import TASKS, make_env
from formats import names_in, read, save_npz, shapes
from task import Chunked
from task_kitchen import GOALS, START, first_done, mode, noise_of, pairs, reached, to_targets
from test_formats import refused

KITCHEN = TASKS["kitchen"]
SEED = 7
ORDER = ["kettle", "top burner", "slide cabinet", "light switch"]


@pytest.fixture(scope="module")
def kitchen():
    """The simulator, with targets as actions."""
    if importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip(f"needs gymnasium-robotics: pip install {KITCHEN.needs}")
    return make_env(KITCHEN)


@pytest.fixture(scope="module")
def demonstration(kitchen):
    """Four sub-tasks in the order ORDER: qpos and action."""
    from experts_kitchen import demonstration

    return demonstration(kitchen, ORDER, SEED)


@pytest.fixture
def demos(tmp_path, demonstration):
    """A file of that demonstration."""
    path = tmp_path / "kitchen.npz"
    L = len(demonstration["action"])
    save_npz(path, **demonstration, episode_ends=np.array([L]), start_seed=np.array([SEED]))
    return path


def at(**places):
    """The start's positions with others at some places: at(_22=-0.75)."""
    qpos = START.copy()
    for place, value in places.items():
        qpos[int(place[1:])] = value
    return qpos


def names_done(qpos):
    """The sub-tasks that are at their goals."""
    return {name for name, there in zip(GOALS, reached(qpos)) if there}


# ---- the score -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, place, inside, outside",
    [
        ("bottom burner", 11, -0.59, -0.57),
        ("top burner", 15, -0.63, -0.61),
        ("light switch", 17, -0.40, -0.38),
        ("slide cabinet", 19, 0.08, 0.06),
        ("hinge cabinet", 21, 1.16, 1.14),
        ("microwave", 22, -0.46, -0.44),
        ("microwave", 22, -1.04, -1.06),
    ],
)
def test_when_a_sub_task_is_done(name, place, inside, outside):
    assert names_done(START) == set()
    assert names_done(at(**{f"_{place}": inside})) == {name}
    assert names_done(at(**{f"_{place}": outside})) == set()


def test_the_kettle_is_judged_by_place_and_turn():
    there = {"_23": -0.23, "_24": 0.75}
    assert names_done(at(_24=0.35 + 0.12)) == {"kettle"}
    assert names_done(at(**there)) == {"kettle"}
    assert names_done(at(**there, _26=0, _27=1)) == set()


def test_the_order_counts_each_sub_task_once():
    open_door = at(_22=-0.7)
    both = at(_22=-0.7, _15=-0.9)
    path = np.stack([START, open_door, START, both, START, at(_19=0.3)])
    assert first_done(path) == {"microwave": 1, "top burner": 3, "slide cabinet": 5}
    assert list(first_done(path)) == ["microwave", "top burner", "slide cabinet"]
    assert mode(path) == "mts"
    assert mode(path[:1]) is None
    assert list(first_done(both[None])) == ["top burner", "microwave"]  # in one step: as in GOALS


def test_modes_have_different_names():
    assert len({name[0] for name in GOALS}) == 7


def test_pairs_are_shares_of_all_pairs():
    assert pairs(["mkbl", "mk", None, "s"]) == {"mk": 0.5, "kb": 0.25, "bl": 0.25}


def test_what_is_done_cannot_be_lost(kitchen):
    kitchen.reset(seed=SEED)
    rewards = []
    stages = []
    for microwave, slide in ((0, 0), (-0.75, 0), (-0.75, 0), (0, 0), (-0.75, 0.3), (0, 0)):
        kitchen.data.qpos[[22, 19]] = microwave, slide
        _, reward, over, _, info = kitchen.step(kitchen.data.qpos[:9])
        rewards.append(reward)
        stages.append(info["stages"])
    assert rewards == [0, 1, 0, 0, 1, 0]
    assert stages == [0, 1, 1, 1, 2, 2]
    assert info["done"] == ["microwave", "slide cabinet"]
    assert not over and not info["is_success"]


def test_all_seven_end_the_episode(kitchen):
    kitchen.reset(seed=SEED)
    for i, goal in GOALS.values():
        kitchen.data.qpos[i] = goal
    _, reward, over, _, info = kitchen.step(kitchen.data.qpos[:9])
    assert reward == 7 and over and info["is_success"]


# ---- the simulator -------------------------------------------------------------------------------


def test_the_positions_are_in_the_first_done_the_original(kitchen):
    joints = [f"robot:panda0_joint{i}" for i in range(1, 8)]
    joints += ["robot:panda0_finger_joint1", "robot:panda0_finger_joint2"]
    joints += ["knob_Joint_1", "bottom_right_burner", "knob_Joint_2", "bottom_left_burner"]
    joints += ["knob_Joint_3", "top_right_burner", "knob_Joint_4", "top_left_burner"]
    joints += ["light_switch", "light_joint", "slide_cabinet", "left_hinge_cabinet"]
    joints += ["right_hinge_cabinet", "microwave", "kettle"]
    model = kitchen.model
    assert [model.joint(i).name for i in range(model.njnt)] == joints
    assert model.jnt_qposadr.tolist() == list(range(24)) and model.nq == 30


def test_the_observation_is_noisy_positions_and_zeros(kitchen):
    obs, info = kitchen.reset(seed=SEED)
    assert np.array_equal(info["state"], START)
    reading = START + noise_of(SEED, 1)[0]
    np.testing.assert_array_equal(obs["state"], [*reading.astype("f4"), *[0] * 30])
    for i, most in ((0, 0.01), (8, 0.01), (9, 0.0005), (11, 0.00005), (17, 0.0005), (22, 0.01)):
        largest = np.abs(noise_of(SEED, 500)[:, i]).max()
        assert 0.95 * most < largest <= most, i


def test_the_seed_chooses_the_noise_alone(kitchen):
    target = START[:9] + 0.05
    first, _ = kitchen.reset(seed=1)
    states = [kitchen.step(target)[-1]["state"] for _ in range(3)]
    again, _ = kitchen.reset(seed=1)
    assert np.array_equal(first["state"], again["state"])
    other, _ = kitchen.reset(seed=2)
    assert not np.array_equal(first["state"], other["state"])
    assert np.array_equal(states, [kitchen.step(target)[-1]["state"] for _ in range(3)])


def test_it_is_the_package_s_simulator(kitchen, monkeypatch):
    """Velocity actions, without noise, move gymnasium-robotics' own kitchen alike, to the bit."""
    import mujoco

    monkeypatch.setattr(mujoco.MjModel, "from_xml_path", lambda path: kitchen.model)
    monkeypatch.setattr(task_kitchen, "RATIO", 0)
    from gymnasium_robotics.envs.franka_kitchen import KitchenEnv

    theirs = KitchenEnv(robot_noise_ratio=0, object_noise_ratio=0)
    ours = make_env(TASKS["kitchen-delta"])
    theirs.reset(seed=0)
    ours.reset(seed=0)
    assert task_kitchen.GOALS.keys() == theirs.goal.keys()
    for name, (_, goal) in GOALS.items():
        np.testing.assert_array_equal(theirs.goal[name], goal)
    for action in np.random.default_rng(0).uniform(-1.2, 1.2, (5, 9)):
        obs = theirs.step(action)[0]["observation"]
        seen = ours.step(action)[0]["state"]
        np.testing.assert_array_equal(
            seen[:30], task_kitchen.positions_of(obs[None])[0].astype("f4")
        )


def test_a_picture_shows_the_microwave_s_door(kitchen):
    from renderer import opengl

    try:
        opengl()
    except BadInput as e:
        pytest.skip(str(e))
    kitchen.reset(seed=SEED)
    closed = kitchen.render()
    kitchen.data.qpos[22] = -0.7
    opened = kitchen.render()
    assert closed.shape == (256, 256, 3)
    changed = (closed != opened).any(2)
    assert 0.01 < changed.mean() < 0.2
    assert changed[:, :128].sum() > 0.9 * changed.sum()  # it is on the left


# ---- the experts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOALS)
def test_each_expert_succeeds(kitchen, name):
    from experts_kitchen import demonstration

    made = demonstration(kitchen, [name], SEED)
    assert kitchen.done == [name]
    assert len(made["action"]) < 70


def test_a_demonstration_is_replayed_exactly(kitchen, demonstration):
    _, info = kitchen.reset(seed=SEED)
    states = []
    for action in demonstration["action"]:
        states.append(info["state"])
        *_, info = kitchen.step(action)
    assert np.array_equal(states, demonstration["qpos"])
    assert info["done"] == ORDER == list(first_done(demonstration["qpos"]))
    assert len(states) < 280


def test_the_seed_chooses_the_order(kitchen, monkeypatch):
    import experts_kitchen

    monkeypatch.setattr(experts_kitchen, "demonstration", lambda env, names, *_: tuple(names))
    orders = [KITCHEN.expert(kitchen, i) for i in range(40)]
    assert all(len(set(names)) == 4 and set(names) <= set(GOALS) for names in orders)
    assert len(set(orders)) > 30
    assert orders[3] == KITCHEN.expert(kitchen, 3)


def test_the_hinge_cabinet_comes_after_the_slide_cabinet():
    from experts_kitchen import possible

    names = ["hinge cabinet", "kettle", "slide cabinet", "microwave"]
    assert possible(names) == ["slide cabinet", "kettle", "hinge cabinet", "microwave"]
    assert possible(names[1:]) == names[1:]


def test_a_demonstration_reaches_all_stages_in_chunks(demonstration):
    env = Chunked(make_env(KITCHEN), 2, 8, 280, stages=KITCHEN.stages, record=True)
    env.reset(seed=SEED)
    reached_by = []
    total = 0
    for chunk in np.split(demonstration["action"], range(8, len(demonstration["action"]), 8)):
        _, reward, _, _, info = env.step(chunk)
        reached_by.append(info["stages"].sum())
        total += reward
    assert reached_by == sorted(reached_by) and reached_by[-1] == 4
    assert info["success"] and total == 4


# ---- data ----------------------------------------------------------------------------------------


def test_a_file_gives_what_the_environment_shows(kitchen, demos, demonstration):
    loaded = data.load(KITCHEN, demos)
    obs, _ = kitchen.reset(seed=SEED)
    for i, action in enumerate(demonstration["action"][:20]):
        np.testing.assert_allclose(loaded.obs["state"][i], obs["state"], atol=1e-6)
        assert np.array_equal(loaded.action[i], action)
        obs = kitchen.step(action)[0]


def test_the_demonstrations_are_drawn(demos):
    from matplotlib.figure import Figure

    figure = Figure()
    KITCHEN.draw(figure, data.load(KITCHEN, demos))
    paths, after, lengths, _ = figure.axes
    rows = [list(GOALS).index(name) for name in ORDER]
    assert paths.lines[0].get_ydata().tolist() == rows
    image = after.images[0].get_array()
    assert image[rows[0], rows[1]] == image[rows[1], rows[2]] == pytest.approx(1 / 3)
    KITCHEN.sketch(lengths, {"state": np.concatenate([START, np.zeros(30)])})


def test_the_shipped_demonstrations_are_replayed_exactly(kitchen):
    path = ROOT / "demos" / "kitchen.npz"
    arrays = read(path)
    L = arrays["episode_ends"][0]
    _, info = kitchen.reset(seed=int(arrays["start_seed"][0]))
    for qpos, action in zip(arrays["qpos"][:L], arrays["action"][:L]):
        assert np.array_equal(info["state"].astype("f4"), qpos)
        *_, info = kitchen.step(action)
    assert info["stages"] == 4
    states = np.split(arrays["qpos"], arrays["episode_ends"][:-1])
    assert {len(mode(qpos)) for qpos in states} == {4}
    assert len({mode(qpos) for qpos in states}) > 90


def test_velocities_of_a_file_move_the_arm_alike(demos, demonstration):
    task = TASKS["kitchen-delta"]
    loaded = data.load(task, demos)
    assert np.abs(loaded.action).max() <= 1
    env = make_env(task)
    env.reset(seed=SEED)
    for action, after in zip(loaded.action[:15], demonstration["qpos"][1:]):  # before contacts
        *_, info = env.step(action)
        np.testing.assert_allclose(info["state"], after, atol=1e-3)


def padded(folder, lengths=(3, 5), T=6, S=60, D_a=9):
    """Diffusion Policy's three arrays in a folder -> obs, action without what lies after ends."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    obs = rng.normal(size=(len(lengths), T, S)).astype("f4")
    action = rng.uniform(-1, 1, (len(lengths), T, D_a)).astype("f4")
    mask = np.arange(T) < np.array(lengths)[:, None]
    np.save(folder / "observations_seq.npy", obs)
    np.save(folder / "actions_seq.npy", action)
    np.save(folder / "existence_mask.npy", mask.astype("f4"))
    return obs[mask], action[mask]


def test_diffusion_policys_arrays_are_read(tmp_path):
    obs, action = padded(tmp_path / "kitchen")
    path = tmp_path / "kitchen" / "observations_seq.npy"
    assert names_in(path) == ["obs", "action", "episode_ends"]
    assert shapes(path)["action"] == ((8, 9), np.dtype("f4"))
    arrays = read(path)
    assert np.array_equal(arrays["obs"], obs) and np.array_equal(arrays["action"], action)
    assert arrays["episode_ends"].tolist() == [3, 8]

    for where in (tmp_path, tmp_path / "kitchen", path):
        loaded = data.load(TASKS["kitchen-delta"], where)
        assert np.array_equal(loaded.action, action)
        assert np.array_equal(loaded.obs["state"][:, :30], obs[:, :30])
        assert not loaded.obs["state"][:, 30:].any()
    targets = data.load(KITCHEN, path).action
    at_limit = np.clip(to_targets(obs[:, :9], action), task_kitchen.LOWEST, task_kitchen.HIGHEST)
    np.testing.assert_allclose(targets, at_limit, atol=1e-6)


def test_bad_padded_arrays_are_refused(tmp_path):
    padded(tmp_path)
    path = tmp_path / "observations_seq.npy"
    mask = tmp_path / "existence_mask.npy"
    good = np.load(mask)
    for bad, words in (
        (good.T, "is not ones and then zeros"),
        (good * 0, "no episode empty"),
        (good[:, ::-1], "is not ones and then zeros"),
        (good[0], "has shape (6,)"),
        (good[:1], "has shape (2, 6, 60), but existence_mask.npy has (1, 6)"),
        (np.array([["a"]]), "only plain numbers"),
    ):
        np.save(mask, bad)
        refused(lambda: read(path), words)
    np.save(mask, np.array([{}]), allow_pickle=True)
    refused(lambda: read(path), "existence_mask.npy is not an npy file of plain numbers")
    mask.write_bytes(b"nonsense")
    refused(lambda: read(path), "existence_mask.npy is not an npy file of plain numbers")
    mask.unlink()
    refused(lambda: read(path), "existence_mask.npy is missing")
    padded(tmp_path)
    refused(lambda: read(path, max_gb=1e-9), "--max-gb")
    path.write_bytes(path.read_bytes()[:-4])
    refused(lambda: read(path), "observations_seq.npy is not an npy file of plain numbers")


@pytest.mark.parametrize(
    "S, D_a, words", [(61, 9, "are not the kitchen's"), (60, 8, "shape (8, 8)")]
)
def test_arrays_of_another_robot_are_refused(tmp_path, S, D_a, words):
    padded(tmp_path, S=S, D_a=D_a)
    refused(lambda: data.load(KITCHEN, tmp_path), words)


def write_minari(folder, observations, seed=0):
    """Two episodes of Minari's layout, whose observations are the Dict of a goal-aware task."""
    rng = np.random.default_rng(seed)
    (folder / "data").mkdir(parents=True)
    whole = []
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as f:
        for e, L in enumerate((4, 2)):
            group = f.create_group(f"episode_{e}")
            obs = rng.normal(size=(L + 1, 59))
            action = rng.uniform(-1, 1, (L, 9)).astype("f4")
            group.create_dataset(f"observations/{observations}", data=obs)
            group.create_dataset("observations/achieved_goal/kettle", data=obs[:, :7])
            group.create_dataset("actions", data=action)
            group.create_dataset("rewards", data=np.zeros(L))
            group.create_dataset("terminations", data=np.zeros(L, bool))
            group.create_dataset("truncations", data=np.zeros(L, bool))
            whole.append((obs[:-1], action))
    return (np.concatenate(parts) for parts in zip(*whole))


@pytest.mark.parametrize("kind", ["mixed", "partial", "complete"])
def test_minaris_kitchen_is_read(tmp_path, kind):
    obs, action = write_minari(tmp_path / "D4RL" / "kitchen" / f"{kind}-v2", "observation")
    positions = np.concatenate([obs[:, :9], obs[:, 18:39]], 1)
    loaded = data.load(TASKS["kitchen-delta"], tmp_path)
    np.testing.assert_allclose(loaded.obs["state"][:, :30], positions, rtol=1e-6)
    assert not loaded.obs["state"][:, 30:].any()
    assert np.array_equal(loaded.action, action)
    assert loaded.ends.tolist() == [4, 6]
    targets = np.clip(positions[:, :9] + 0.16 * action, task_kitchen.LOWEST, task_kitchen.HIGHEST)
    np.testing.assert_allclose(data.load(KITCHEN, tmp_path).action, targets, atol=1e-6)


def test_other_dicts_of_observations_are_refused(tmp_path):
    write_minari(tmp_path / "x", "something")
    refused(lambda: read(tmp_path / "x"), "no Dict or Tuple spaces")


def test_the_ranges_of_what_rests_are_fixed():
    low, high = KITCHEN.limits["state"]
    assert np.isnan(low[:7]).all() and np.isfinite(low[7:]).all()
    assert (high[7:] - low[7:] > 0.03).all()
    assert "action" not in KITCHEN.limits


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(task_kitchen, "kitchen_model", task_kitchen.kitchen_model.__wrapped__)
    with pytest.raises(BadInput, match="pip install gymnasium-robotics"):
        make_env(KITCHEN)
