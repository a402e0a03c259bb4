"""task_pusht.py's pictures: against those that were recorded and gym-pusht's own, drawn only where
they are looked at, and made of the states of demonstrations that have none."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import pytest

import task_pusht
from commands import BadInput
from conftest import ROOT, write_demos
from data import load
from envs import Simulators, make_env, make_vec
from files import load_torch, save_torch
from formats import read, save_npz, zarr_array
from task import Chunked
from task_pusht import PUSHT, PUSHT_IMAGE, PushTImage, painter, start_state

CHUNKS = 4
EXACT = ("2.1.3", "2.3.0", "2.4.0", "2.5.0", "2.5.1", "2.5.2")  # pygames that draw the same


def actions_of_a_demonstration(n):
    """The start seed and the first n actions (n, 2) of a shipped episode, which pushes the T."""
    arrays = read(ROOT / "demos" / "pusht.npz")
    return int(arrays["start_seed"][0]), arrays["action"][:n]


def red_lines(pictures):
    """How many of the pictures (N, 96, 96, 3) show a contact: nothing else there is reddish."""
    red, green, blue = np.moveaxis(pictures.astype(int), -1, 0)
    return ((red > green + 20) & (red > blue + 20)).any((1, 2)).sum()


# ---- what is drawn -------------------------------------------------------------------------------


def test_recorded_pictures(official):
    """States draw to what was recorded with them: to the bit by pygame 2.5.2, nearly by others."""
    if not (official / "data" / "img").exists():
        pytest.skip(f"{official} has no data/img")
    img = zarr_array(official, "data/img")
    state = zarr_array(official, "data/state")
    sim = painter()
    for first in (0, 9_800, 20_000):
        rows = slice(first, first + 100)
        recorded = img[rows].astype(np.uint8)
        drawn = np.stack([sim.picture(s) for s in state[rows]])
        if importlib.metadata.version("pygame") in EXACT:
            np.testing.assert_array_equal(drawn, recorded)
        assert np.abs(drawn.astype(int) - recorded).mean() < 0.5
        assert (drawn != recorded).any(-1).sum((1, 2)).mean() < 80  # of 9216 pixels


def test_pictures_are_gym_pushts_own():
    """Drawn from the states when the episode is over, they are what the library draws on the way.

    The contacts are among it, and the mark of the action is not.
    """
    from gym_pusht.envs.pusht import PushTEnv

    seed, actions = actions_of_a_demonstration(80)
    theirs = PushTEnv(obs_type="pixels", render_mode="rgb_array")
    ours = PushTImage()
    first, _ = theirs.reset(options={"reset_to_state": start_state(seed)})
    wanted = [first]
    obs, _ = ours.reset(seed=seed)
    lazy = [obs["image"]]
    for action in actions:
        wanted.append(theirs.step(action.astype(np.float64))[0])
        lazy.append(ours.step(action)[0]["image"])
    pictures = np.stack(lazy)
    np.testing.assert_array_equal(pictures, wanted)
    assert pictures.dtype == np.uint8
    assert 0 < red_lines(pictures) < len(pictures)


def test_drawing_leaves_nothing_behind():
    """A picture does not depend on what was drawn before, also after two bodies overlapped."""
    sim = painter()
    apart = np.array([100.0, 100, 300, 300, 1])
    inside = np.array([300.0, 316, 300, 300, 1])  # the agent in the T, which would push it away
    first = sim.picture(apart)
    touching = sim.picture(inside)
    assert red_lines(np.stack([first, touching])) == 1
    for _ in range(3):
        np.testing.assert_array_equal(sim.picture(inside), touching)
        np.testing.assert_array_equal(sim.picture(apart), first)


def test_each_environment_draws_its_own():
    """Pictures of two environments, drawn in turn and late, are as those of one alone."""
    a = PushTImage()
    b = PushTImage()
    seen_a = a.reset(seed=100000)[0]["image"]
    seen_b = b.reset(seed=100001)[0]["image"]
    picture = np.asarray(seen_a)
    kept = picture.copy()
    assert not np.array_equal(picture, np.asarray(seen_b))
    b.step([400, 400])
    a.step([10, 10])
    np.testing.assert_array_equal(picture, kept)
    np.testing.assert_array_equal(np.asarray(PushTImage().reset(seed=100001)[0]["image"]), seen_b)


def test_drawing_changes_no_episode():
    """The states of pusht-image are those of pusht, however much is drawn."""
    seed, actions = actions_of_a_demonstration(30)
    envs = [make_env(task) for task in (PUSHT, PUSHT_IMAGE)]
    for env in envs:
        env.reset(seed=seed)
    for action in actions:
        (plain, *_, info), (seen, *_, other) = (env.step(action) for env in envs)
        np.asarray(seen["image"])
        np.testing.assert_array_equal(info["state"], other["state"])
        np.testing.assert_array_equal(plain["state"][18:], seen["agent_pos"])


# ---- in chunks -----------------------------------------------------------------------------------


def chunked():
    """Push-T's image environment in chunks."""
    return Chunked(make_env(PUSHT_IMAGE), PUSHT_IMAGE.T_o, PUSHT_IMAGE.T_a, PUSHT_IMAGE.steps)


def test_only_what_is_seen_is_drawn(monkeypatch):
    """Of a chunk of 8 steps the last T_o = 2, and they equal those that are drawn at once."""
    seed, actions = actions_of_a_demonstration(8 * CHUNKS)
    eager = PushTImage()
    wanted = [np.asarray(eager.reset(seed=seed)[0]["image"])]
    wanted += [np.asarray(eager.step(action)[0]["image"]) for action in actions]
    env = chunked()
    drawn = []
    picture = env.unwrapped.__class__.picture
    sim = env.env.painter
    monkeypatch.setattr(sim, "picture", lambda state: drawn.append(1) or picture(sim, state))
    obs, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(obs["image"], [wanted[0], wanted[0]])
    assert len(drawn) == 1
    for i, chunk in enumerate(actions.reshape(CHUNKS, 8, 2)):
        obs, *_ = env.step(chunk)
        np.testing.assert_array_equal(obs["image"], wanted[8 * i + 7 : 8 * i + 9])
        assert env.observation_space.contains(obs)
    assert len(drawn) == 1 + 2 * CHUNKS
    past = {seed: list(actions.reshape(CHUNKS, 8, 2))}
    again, _ = env.reset(seed=seed, options={"past": past})
    np.testing.assert_array_equal(again["image"], obs["image"])
    assert len(drawn) == 1 + 2 * CHUNKS + 2  # nothing on the way


@pytest.mark.parametrize("workers", [True, False])
def test_simulators_of_stage_2_go_on(tmp_path, workers):
    """Brought back from a file in mid-episode, they show the same pictures from then on."""
    rng = np.random.default_rng(0)
    chunks = rng.uniform(100, 400, (4, 2, 8, 2)).astype(np.float32)
    how = {"T_o": 2, "T_a": 8, "workers": workers}
    sims = Simulators(PUSHT_IMAGE, 2, **how)
    for chunk in chunks[:2]:
        sims.step(chunk)
    save_torch(tmp_path / "state.pt", sims.state())
    other = Simulators(PUSHT_IMAGE, 2, **how, state=load_torch(tmp_path / "state.pt"))
    assert sims.obs["image"].shape == (2, 2, 96, 96, 3)
    assert sims.obs["image"].dtype == np.uint8
    for chunk in chunks[2:]:
        for name in ("image", "agent_pos"):
            np.testing.assert_array_equal(sims.obs[name], other.obs[name])
        sims.step(chunk)
        other.step(chunk)
    np.testing.assert_array_equal(sims.obs["image"], other.obs["image"])
    sims.env.close()
    other.env.close()


def test_processes_draw_the_same():
    """Worker processes or none: the same pictures, of each start its own."""
    seen = []
    for workers in (True, False):
        env = make_vec(PUSHT_IMAGE, 2, workers=workers)
        env.reset(seed=[100000, 100007])
        obs, *_ = env.step(np.full((2, 8, 2), 256, np.float32))
        env.close()
        seen.append(obs["image"])
    np.testing.assert_array_equal(*seen)
    assert not np.array_equal(seen[0][0], seen[0][1])


# ---- the packages --------------------------------------------------------------------------------

DRAW = """
from envs import TASKS, make_env
import numpy as np
print(np.asarray(make_env(TASKS["pusht-image"]).reset(seed=1)[0]["image"]).shape)
"""
OLD_SETUPTOOLS = """
import warnings
warnings.warn("pkg_resources is deprecated as an API.", UserWarning, stacklevel=2)
def resource_stream(*_): raise NotImplementedError
resource_exists = resource_stream
"""


def test_no_display_and_no_banner(tmp_path):
    """It draws without a display, and neither pygame nor what it imports says a word."""
    (tmp_path / "pkg_resources.py").write_text(OLD_SETUPTOOLS)
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "PYGAME_HIDE_SUPPORT_PROMPT")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(96, 96, 3)\n", "")


@pytest.mark.filterwarnings("ignore:.*Overriding environment")  # it is imported twice
@pytest.mark.parametrize("package", ["pygame", "cv2", "gym_pusht", "pymunk", "shapely"])
def test_a_missing_package_is_one_line(monkeypatch, package, demos):
    """Where simulators are made, and where the pictures of demonstrations are drawn."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("gym_pusht", package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    wanted = f"^pusht-image needs {package}.*: pip install gym-pusht==0.1.8$"
    with pytest.raises(BadInput, match=wanted):
        make_env(PUSHT_IMAGE)
    with pytest.raises(BadInput, match=wanted):
        load(PUSHT_IMAGE, demos)


# ---- demonstrations ------------------------------------------------------------------------------


def test_pictures_of_states(demos):
    """A file of states alone is drawn, each state as the simulator shows it."""
    episodes = load(PUSHT_IMAGE, demos)
    state = read(demos, ["state"])["state"]
    sim = painter()
    assert episodes.obs["image"].dtype == np.uint8
    np.testing.assert_array_equal(episodes.obs["image"], [sim.picture(s) for s in state])
    np.testing.assert_array_equal(episodes.obs["agent_pos"], state[:, :2])
    assert load(PUSHT_IMAGE, demos, episodes=1).obs["image"].shape == (25, 96, 96, 3)


def test_pictures_are_drawn_once(tmp_path, monkeypatch):
    """Where they are many a cache keeps them, until the states are others."""
    import pictures

    monkeypatch.setattr(pictures, "SMALL", 0)
    demos = write_demos(tmp_path / "demos.npz")
    first = load(PUSHT_IMAGE, demos).obs["image"]
    first = np.array(first)
    monkeypatch.setattr(task_pusht, "painter", None)  # nothing can be drawn
    np.testing.assert_array_equal(load(PUSHT_IMAGE, demos).obs["image"], first)
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "SMALL", 0)
    write_demos(demos, seed=1)
    other = load(PUSHT_IMAGE, demos).obs["image"]
    assert not np.array_equal(other, first)


def test_recorded_pictures_come_first(tmp_path, monkeypatch):
    """What a file holds is taken: as img beside the state, as the official data, or by its name."""
    monkeypatch.setattr(task_pusht, "painter", None)  # nothing can be drawn
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 96, 96, 3), np.uint8)
    state = rng.uniform(0, 500, (40, 5)).astype(np.float32)
    common = {"action": state[:, :2], "episode_ends": np.array([40])}
    for name, arrays in (
        ("official", {"img": picture.astype(np.float32), "state": state}),
        ("own", {"image": picture, "agent_pos": state[:, :2]}),
    ):
        save_npz(tmp_path / f"{name}.npz", **arrays, **common)
        obs = load(PUSHT_IMAGE, tmp_path / f"{name}.npz").obs
        np.testing.assert_array_equal(obs["image"], picture)
        np.testing.assert_array_equal(obs["agent_pos"], state[:, :2])


@pytest.mark.parametrize(
    "state",
    [np.zeros((40, 3)), np.zeros((40, 5, 1)), np.full((40, 5), np.nan), np.full((40, 5), 1e9)],
    ids=["narrow", "deep", "NaN", "far away"],
)
def test_states_that_cannot_be_drawn(tmp_path, state):
    arrays = {"action": np.zeros((40, 2)), "episode_ends": np.array([40]), "state": state}
    save_npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput, match=r"x.npz: state \(40, .*\) cannot be drawn: it must be"):
        load(PUSHT_IMAGE, tmp_path / "x.npz")


def test_neither_pictures_nor_states(tmp_path):
    arrays = {"action": np.zeros((40, 2)), "episode_ends": np.array([40])}
    save_npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput, match="x.npz lacks state"):
        load(PUSHT_IMAGE, tmp_path / "x.npz")


def test_the_shipped_states_are_found(monkeypatch, tmp_path):
    """Without a download the two tasks use one file, and the official data comes before it."""
    from download import find

    monkeypatch.delenv("DRIFT_DATA", raising=False)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path))
    assert find(PUSHT_IMAGE) == find(PUSHT) == ROOT / "demos" / "pusht.npz"
    (tmp_path / PUSHT.data[0]).mkdir()
    assert find(PUSHT_IMAGE) == tmp_path / PUSHT.data[0]
