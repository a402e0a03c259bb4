"""data.py: windows against a loop, observations by name, every bad input refused."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr

import data
import describe
import pictures
from commands import BadInput
from conftest import OFFICIAL, ROOT
from download import verify
from envs import TASKS
from formats import read, save_npz
from hdf5 import save_minari
from task import Task
from task_pusht import pusht_obs
from test_formats import refused, write_minari, write_zarr
from test_pictures import write_robomimic

PUSHT = TASKS["pusht"]
HOPPER = TASKS["hopper"]
REACH = TASKS["metaworld-reach"]
ARM = Task(  # one camera and a state
    name="arm", obs={"front": (12, 16, 3), "state": (4,)}, D_a=2, T_o=2, T_p=8, T_a=4
)


def arrays(lengths=(30, 9, 20), seed=0):
    """Random arrays in the layout of the official Push-T data."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return {
        "data/action": rng.uniform(0, 512, (n, 2)).astype("f4"),
        "data/state": rng.uniform(0, 512, (n, 5)).astype("f4"),
        "data/keypoint": rng.uniform(0, 512, (n, 9, 2)).astype("f4"),
        "meta/episode_ends": np.cumsum(lengths),
    }


def arm_arrays(lengths=(12, 8), seed=0):
    """Random arrays of the task ARM, in the data's own types."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return {
        "front": rng.integers(0, 256, (n, 12, 16, 3), np.uint8),
        "state": rng.normal(size=(n, 4)).astype("f4"),
        "action": rng.normal(size=(n, 2)).astype("f4"),
        "episode_ends": np.cumsum(lengths),
    }


def episodes(lengths):
    """Episodes whose only observation and action are the step's own number."""
    step = np.arange(sum(lengths), dtype="f4")[:, None]
    return data.Episodes({"state": step}, step, np.cumsum(lengths), Path("numbers"))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No data of this machine."""
    monkeypatch.delenv("DRIFT_DATA", raising=False)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))


# ---- windows -------------------------------------------------------------------------------------


def by_loop(lengths, T_o, T_p, T_a):
    """The windows of Diffusion Policy's create_indices and sample_sequence, step by step."""
    windows = []
    first = 0
    for L in lengths:
        for start in range(-(T_o - 1), L - T_p + (T_a - 1) + 1):
            windows.append([first + min(max(start + t, 0), L - 1) for t in range(T_p)])
        first += L
    return np.array(windows)


@pytest.mark.parametrize("lengths", [(30, 9, 20), (9,), (16, 1, 3, 16), (8, 9, 10, 7)])
@pytest.mark.parametrize("T_o, T_p, T_a", [(2, 16, 8), (1, 4, 4), (3, 5, 1), (4, 4, 1), (1, 1, 1)])
def test_windows(lengths, T_o, T_p, T_a):
    wanted = by_loop(lengths, T_o, T_p, T_a)
    windows = data.Windows(episodes(lengths), T_o, T_p, T_a)
    assert windows.index.dtype == torch.int64 and len(windows) == len(wanted)
    np.testing.assert_array_equal(windows.index, wanted)
    obs, action = windows.batch(torch.arange(len(windows)))
    np.testing.assert_array_equal(obs["state"][..., 0], wanted[:, :T_o])
    np.testing.assert_array_equal(action[..., 0], wanted)
    owner = np.repeat(np.arange(len(lengths)), lengths)  # the episode of each step
    which = owner[wanted]
    assert (which == which[:, :1]).all()
    np.testing.assert_array_equal(windows.episode, which[:, 0])


def test_borders_repeat_and_now_is_covered():
    """First and last window of one episode, and: every step is executed by some window."""
    windows = data.Windows(episodes([20]), 2, 16, 8)
    assert windows.index[0].tolist() == [0, *range(15)]
    assert windows.index[-1].tolist() == [*range(11, 20)] + [19] * 7
    assert set(windows.index[:, 1:9].flatten().tolist()) == set(range(20))


def test_windows_to_the_end():
    """Every observation is the newest of one window; what comes after the last step repeats it."""
    windows = data.Windows(episodes([20, 3]), 2, 16, 8, to_end=True)
    assert windows.index[:, 1].tolist() == list(range(23))
    assert windows.index[19].tolist() == [18] + [19] * 15
    assert windows.index[-1].tolist() == [21] + [22] * 15
    left_out = set(range(20)) - set(data.Windows(episodes([20]), 2, 16, 8).index[:, 1].tolist())
    assert left_out == set(range(13, 20))


def test_short_episodes():
    assert len(data.Windows(episodes([7, 8]), 2, 16, 8)) == 1  # none of 7 steps, one of 8
    refused(lambda: data.Windows(episodes([7, 3]), 2, 16, 8), "7 steps", "T_p 16")


@pytest.mark.parametrize("T", [(2, 16, 16), (5, 4, 1), (0, 4, 1), (1, 4, 0)])
def test_impossible_horizons(T):
    refused(lambda: data.Windows(episodes([30]), *T), "T_o")


def test_order():
    windows = data.Windows(episodes([40]), 2, 16, 8)
    again = data.Windows(episodes([40]), 2, 16, 8)
    order = windows.order(3, 7)
    assert torch.equal(order, again.order(3, 7))
    assert sorted(order.tolist()) == list(range(len(windows)))
    assert not torch.equal(order, windows.order(4, 7))
    assert not torch.equal(order, windows.order(3, 8))


# ---- observations by name ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "zarr"])
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_camera_and_state(tmp_path, kind, dtype):
    """A camera and a state, from the file into a batch: bytes stay bytes, also if kept as floats.

    Each picture is in memory once, however many windows show it: Windows shares the memory of the
    episodes, and a batch is the only copy.
    """
    a = arm_arrays()
    recorded = {**a, "front": a["front"].astype(dtype)}
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        save_npz(path, **recorded)
    else:
        place = {"episode_ends": "meta/episode_ends"}
        write_zarr(path, {place.get(n, f"data/{n}"): x for n, x in recorded.items()})
    ep = data.load(ARM, path)
    assert list(ep.obs) == ["front", "state"]
    assert ep.obs["front"].dtype == np.uint8 and ep.obs["state"].dtype == np.float32
    for name in ep.obs:
        np.testing.assert_array_equal(ep.obs[name], a[name])

    windows = data.Windows(ep, ARM.T_o, ARM.T_p, ARM.T_a)
    assert len(windows) > 10
    front = windows.obs["front"]
    assert front.dtype == torch.uint8 and front.shape == (20, 12, 16, 3)
    assert front.untyped_storage().nbytes() == 20 * 12 * 16 * 3
    assert front.data_ptr() == ep.obs["front"].ctypes.data
    floats = [x for x in vars(windows).values() if torch.is_tensor(x) and x.is_floating_point()]
    assert sum(x.nbytes for x in [*floats, windows.obs["state"]]) == 4 * 20 * (2 + 4)

    wanted = by_loop([12, 8], ARM.T_o, ARM.T_p, ARM.T_a)
    obs, action = windows.batch(torch.arange(len(windows)))
    assert obs["front"].dtype == torch.uint8 and obs["front"].shape[1:] == (2, 12, 16, 3)
    for name in a:
        if name in obs:
            np.testing.assert_array_equal(obs[name], a[name][wanted[:, : ARM.T_o]])
    np.testing.assert_array_equal(action, a["action"][wanted])


def test_windows_of_a_mapped_file(tmp_path, monkeypatch):
    """Pictures stay in their cache file: neither Episodes nor Windows copies them, a batch does."""
    monkeypatch.setattr(pictures, "SMALL", 0)
    a = arm_arrays()
    save_npz(tmp_path / "x.npz", **a)
    ep = data.load(ARM, tmp_path / "x.npz", episodes=1, max_gb=2e-5)
    cache = pictures.mapped(tmp_path / "x.npz.front.pictures", (20, 12, 16, 3))
    np.testing.assert_array_equal(cache, a["front"])
    assert len(ep.obs["front"]) == 12 and not ep.obs["front"].flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows = data.Windows(ep, ARM.T_o, ARM.T_p, ARM.T_a)
    assert windows.obs["front"].data_ptr() == ep.obs["front"].ctypes.data
    i = windows.order(0, 0)[:5]
    obs, _ = windows.batch(i)
    assert obs["front"].dtype == torch.uint8 and obs["front"].shape == (5, 2, 12, 16, 3)
    wanted = by_loop([12], ARM.T_o, ARM.T_p, ARM.T_a)[i][:, : ARM.T_o]
    np.testing.assert_array_equal(obs["front"], a["front"][wanted])
    obs["front"].zero_()
    np.testing.assert_array_equal(cache, a["front"])


def test_a_camera_that_is_rendered(tmp_path):
    """A task may render the cameras that a file lacks; those that it has are taken from it."""
    calls = []

    def make(arrays):
        return {name: arrays[name] for name in ("front", "state") if name in arrays}

    def render(arrays, path):
        calls.append(path)
        level = arrays["state"][:, 0].astype("u1")[:, None, None, None]
        return {"front": np.broadcast_to(level, (20, 12, 16, 3))}

    task = dataclasses.replace(ARM, observations=make, render=render)
    a = arm_arrays() | {"state": np.arange(80.0).reshape(20, 4)}
    save_npz(tmp_path / "x.npz", **a)
    np.testing.assert_array_equal(data.load(task, tmp_path / "x.npz").obs["front"], a["front"])
    assert calls == []
    del a["front"]
    save_npz(tmp_path / "x.npz", **a)
    front = data.load(task, tmp_path / "x.npz").obs["front"]
    assert calls == [tmp_path / "x.npz"]
    np.testing.assert_array_equal(front[:, 3, 2, 1], 4 * np.arange(20))
    task = dataclasses.replace(task, render=None)
    refused(lambda: data.load(task, tmp_path / "x.npz"), "observations state were made", "front")


def test_robomimic_is_read_as_npz_is(tmp_path):
    """Two cameras of a file of robomimic, of which the task knows one."""
    wanted = write_robomimic(tmp_path / "x.hdf5", (12, 9))
    task = dataclasses.replace(ARM, obs={"state": (4,), "hand": (16, 16, 3)})
    ep = data.load(task, tmp_path / "x.hdf5")
    assert ep.ends.tolist() == [12, 21] and list(ep.obs) == ["state", "hand"]
    np.testing.assert_array_equal(ep.obs["hand"], wanted["hand"])
    np.testing.assert_array_equal(ep.action, wanted["action"])
    words = ("x.hdf5 lacks left (it has front, hand, state, action, reward, episode_ends)",)
    task = dataclasses.replace(ARM, obs={"state": (4,), "left": (16, 16, 3)})
    refused(lambda: data.load(task, tmp_path / "x.hdf5"), *words)


def test_first_episodes_of_a_camera(tmp_path):
    save_npz(tmp_path / "x.npz", **arm_arrays())
    ep = data.load(ARM, tmp_path / "x.npz", episodes=1)
    assert {name: len(a) for name, a in ep.obs.items()} == {"front": 12, "state": 12}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"front": None}, ["lacks front", "it has state, action, episode_ends, depth"]),
        ({"state": None}, ["lacks state"]),
        ({"front": np.zeros((20, 16, 12, 3), "u1")}, ["front", "(20, 16, 12, 3)", "(20, 12, 16"]),
        ({"front": np.zeros((19, 12, 16, 3), "u1")}, ["front", "(19, 12, 16, 3)", "(20, 12, 16"]),
        ({"front": np.zeros((20, 12, 16), "u1")}, ["front has shape (20, 12, 16)"]),
        (
            {"front": np.full((20, 12, 16, 3), 0.5)},
            ["front (20, 12", "float64 has the value 0.5 in picture 0"],
        ),
        ({"front": np.full((20, 12, 16, 3), 300)}, ["int64 has the value 300", "from 0 to 255"]),
        ({"front": np.full((20, 12, 16, 3), np.nan)}, ["front", "has the value nan"]),
        ({"front": np.zeros((20, 12, 16, 3), bool)}, ["front has dtype bool"]),
        ({"state": np.zeros((20, 5))}, ["state", "(20, 5)", "arm", "need (20, 4)"]),
        ({"state": np.full((20, 4), np.inf)}, ["observation state", "20 of 20 steps", "step 0"]),
    ],
)
def test_bad_observations(tmp_path, change, words):
    """One line that names the file, the observation, its shape and what is needed."""
    a = {**arm_arrays(), "depth": np.zeros(20), **change}
    save_npz(tmp_path / "x.npz", **{name: x for name, x in a.items() if x is not None})
    with pytest.raises(BadInput) as e:
        data.load(ARM, tmp_path / "x.npz")
    assert "\n" not in str(e.value)
    for word in ["x.npz", *words]:
        assert word in str(e.value), (word, str(e.value))


def test_observations_by_the_tasks_function(tmp_path):
    """A task may make its observations of other arrays; it may give views, other types, floats."""

    def make(arrays):
        img = arrays["img"]  # (N, 3, H, W), as torch likes it
        return {"front": img.transpose(0, 2, 3, 1)[:, ::-1], "state": arrays["qpos"][:, :4]}

    a = arm_arrays()
    recorded = {
        "img": a["front"].transpose(0, 3, 1, 2),
        "qpos": np.arange(140.0).reshape(20, 7),
        "action": a["action"],
        "episode_ends": a["episode_ends"],
    }
    save_npz(tmp_path / "x.npz", **recorded)
    task = dataclasses.replace(ARM, observations=make, arrays=("img", "qpos"))
    ep = data.load(task, tmp_path / "x.npz")
    np.testing.assert_array_equal(ep.obs["front"], a["front"][:, ::-1])
    assert ep.obs["front"].dtype == np.uint8 and ep.obs["state"].dtype == np.float32
    data.Windows(ep, 2, 8, 4)

    for made, words in (
        ({"front": a["front"]}, ["observations front were made", "arm has front, state"]),
        ({**a, "depth": a["state"]}, ["depth", "arm has front, state"]),
        ({"front": a["front"], "state": [["a"] * 4] * 20}, ["state has dtype <U1"]),
        ({"front": a["front"], "state": a["state"][:, :3]}, ["state has shape (20, 3)"]),
        (None, ["no observations of arm can be made of", "img (20, 3, 12, 16)"]),
    ):
        other = dataclasses.replace(task, observations=lambda arrays, made=made: made)
        refused(lambda task=other: data.load(task, tmp_path / "x.npz"), "x.npz", *words)
    del recorded["qpos"]
    save_npz(tmp_path / "x.npz", **recorded)
    refused(lambda: data.load(task, tmp_path / "x.npz"), "x.npz lacks qpos (it has img, action")


def test_only_what_the_task_names_is_read(tmp_path):
    """A file may hold arrays that are of no use, even such that cannot be read."""
    path = write_zarr(tmp_path / "x.zarr", {**arrays(), "data/img": np.ones((59, 4), "f4")})
    (path / "data/img/.zarray").write_text("damaged")
    assert len(data.load(PUSHT, path)) == 3
    data.info(dataclasses.replace(PUSHT, draw=None), path)
    save_npz(tmp_path / "x.npz", **arm_arrays(), other=np.full(20, "text"))
    assert len(data.load(ARM, tmp_path / "x.npz")) == 2


def test_obs_stands_for_a_state_alone(tmp_path):
    a = {"action": np.ones((12, 3)), "episode_ends": np.array([5, 12])}
    save_npz(tmp_path / "x.npz", obs=np.ones((12, 11)), **a)
    assert data.load(HOPPER, tmp_path / "x.npz").obs["state"].shape == (12, 11)
    save_npz(tmp_path / "y.npz", state=np.ones((12, 11)), **a)
    assert data.load(HOPPER, tmp_path / "y.npz").obs["state"].shape == (12, 11)
    save_npz(tmp_path / "z.npz", obs=np.ones((12, 9)), points=np.ones((12, 512, 3)), **a)
    refused(lambda: data.load(REACH, tmp_path / "z.npz"), "lacks state (it has obs, points")


def test_points_are_kept_as_halves(tmp_path):
    """Clouds are recorded as float16 and become float32."""
    points = np.random.default_rng(0).uniform(-1, 1, (9, 512, 3)).astype("f2")
    a = {"state": np.zeros((9, 9)), "action": np.zeros((9, 4)), "episode_ends": np.array([9])}
    save_npz(tmp_path / "x.npz", points=points, **a)
    ep = data.load(REACH, tmp_path / "x.npz")
    assert ep.obs["points"].dtype == ep.obs["state"].dtype == np.float32
    np.testing.assert_array_equal(ep.obs["points"], points.astype("f4"))
    points[3, 7, 1] = np.nan
    save_npz(tmp_path / "x.npz", points=points, **a)
    words = ("observation points is NaN", "1 of 9 steps, first at step 3 (episode 0)")
    refused(lambda: data.load(REACH, tmp_path / "x.npz"), *words)
    save_npz(tmp_path / "x.npz", points=np.zeros((9, 100, 3)), **a)
    words = ("points has shape (9, 100, 3)", "need (9, 512, 3)")
    refused(lambda: data.load(REACH, tmp_path / "x.npz"), *words)


# ---- reading -------------------------------------------------------------------------------------


def test_zarr(tmp_path):
    a = arrays()
    ep = data.load(PUSHT, write_zarr(tmp_path / "x.zarr", a))
    state = ep.obs["state"]
    np.testing.assert_array_equal(state[:, :18], a["data/keypoint"].reshape(-1, 18))
    np.testing.assert_array_equal(state[:, 18:], a["data/state"][:, :2])
    np.testing.assert_array_equal(ep.action, a["data/action"])
    assert len(ep) == 3 and ep.lengths.tolist() == [30, 9, 20] and ep.ends.dtype == np.int64
    assert state.dtype == ep.action.dtype == np.float32


def test_npz(tmp_path):
    """States become observations; obs is taken as it is; numbers of other types are converted."""
    rng = np.random.default_rng(0)
    state = rng.uniform(0, 6, (12, 5))
    action = rng.integers(0, 512, (12, 2))
    ends = np.array([5, 12], "i4")
    save_npz(tmp_path / "s.npz", state=state, action=action, episode_ends=ends)
    ep = data.load(PUSHT, tmp_path / "s.npz")
    np.testing.assert_array_equal(ep.obs["state"], pusht_obs(state))
    np.testing.assert_array_equal(ep.action, action.astype("f4"))
    save_npz(tmp_path / "o.npz", obs=ep.obs["state"], action=action, episode_ends=ep.ends)
    again = data.load(PUSHT, tmp_path / "o.npz")
    np.testing.assert_array_equal(again.obs["state"], ep.obs["state"])
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_first_episodes(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", arrays())
    ep = data.load(PUSHT, path, episodes=2)
    assert ep.ends.tolist() == [30, 39] and len(ep.obs["state"]) == len(ep.action) == 39
    for n in (0, -1, 4):
        refused(lambda n=n: data.load(PUSHT, path, episodes=n), "3 episodes")


# ---- bad input -----------------------------------------------------------------------------------


def test_missing_chunk(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", arrays())
    (path / "data/action/1.0").unlink()
    refused(lambda: data.load(PUSHT, path), "data/action", "lacks chunk 1.0")


@pytest.mark.parametrize(
    "codec",
    [
        numcodecs.Blosc("zstd", 5, 2),
        numcodecs.Blosc("lz4", 1, 0),
        numcodecs.Zlib(),
        numcodecs.Zstd(),
        None,
    ],
)
def test_cut_chunk(tmp_path, codec):
    """Random numbers do not compress; the library decodes half a Blosc chunk of them unasked."""
    path = write_zarr(tmp_path / "x.zarr", arrays(), compressors=codec)
    assert len(data.load(PUSHT, path)) == 3
    chunk = path / "data/action/1.0"
    whole = chunk.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1, 8, 0):
        chunk.write_bytes(whole[:cut])
        refused(lambda: data.load(PUSHT, path), "x.zarr", "damaged")


def test_damaged_zarr(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", arrays())
    (path / "data/state/.zarray").write_text('{"shape": [59')
    refused(lambda: data.load(PUSHT, path), "data/state", "cannot be opened")
    (path / ".zgroup").unlink()
    refused(lambda: data.load(PUSHT, path), "not a zarr version 2 group")


def test_pickles_are_refused(tmp_path):
    """Nothing that needs unpickling is opened: neither the dtype nor a filter nor a compressor."""

    class Trap:
        """Makes a folder when it is unpickled."""

        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = write_zarr(tmp_path / "x.zarr", arrays())
    meta = json.loads((path / "data/action/.zarray").read_text())
    trap = numcodecs.Pickle().encode(np.array([Trap()], object))
    (path / "data/action/0.0").write_bytes(bytes(trap))
    pickled = {"id": "pickle", "protocol": 5}
    for change, word in (
        ({"dtype": "|O", "filters": [pickled]}, "dtype |O"),
        ({"filters": [pickled]}, "pickle"),
        ({"compressor": pickled}, "pickle"),
        ({"dtype": [["a", "<f4"]]}, "dtype"),
        ({"chunks": [0, 2]}, "layout"),
    ):
        (path / "data/action/.zarray").write_text(json.dumps({**meta, **change}))
        refused(lambda: data.load(PUSHT, path), "data/action", word)
    np.savez(tmp_path / "o.npz", action=np.array([Trap()], object), episode_ends=[1])
    refused(lambda: data.load(PUSHT, tmp_path / "o.npz"), "plain numbers")
    assert not (tmp_path / "sprung").exists()


def test_not_an_npz(tmp_path):
    whole = tmp_path / "w.npz"
    numbers = np.random.default_rng(0).normal(size=(500, 2))
    save_npz(whole, action=numbers, episode_ends=[500])
    for content in (b"", b"hello", whole.read_bytes()[:900]):
        (tmp_path / "x.npz").write_bytes(content)
        refused(lambda: data.load(PUSHT, tmp_path / "x.npz"), "x.npz is not an npz")
    with zipfile.ZipFile(tmp_path / "x.zarr.zip", "w") as z:
        z.writestr("data/action/.zarray", "{}")
    refused(lambda: data.load(PUSHT, tmp_path / "x.zarr.zip"), "x.zarr.zip lacks action")
    data.info(PUSHT, tmp_path / "x.zarr.zip")
    np.save(tmp_path / "x.npy", np.zeros(3))
    refused(lambda: data.load(PUSHT, tmp_path / "x.npy"), "x.npy is not an npz")


def good(**change):
    """An npz's arrays for Push-T: two episodes, 12 steps."""
    a = {"obs": np.ones((12, 20)), "action": np.ones((12, 2)), "episode_ends": np.array([5, 12])}
    return {name: x for name, x in {**a, **change}.items() if x is not None}


def one(shape, at, value):
    """An array of ones with another value at a place."""
    a = np.ones(shape)
    a[at] = value
    return a


@pytest.mark.parametrize(
    "change, words",
    [
        ({"action": None}, ["lacks action", "obs"]),
        ({"obs": None}, ["lacks state"]),
        ({"episode_ends": None}, ["lacks episode_ends"]),
        ({"obs": np.ones((12, 19))}, ["(12, 19)", "20"]),
        ({"action": np.ones((12, 3))}, ["(12, 3)", "2)"]),
        ({"action": np.ones(12)}, ["(12,)"]),
        ({"obs": None, "state": np.ones((12, 4))}, ["state (12, 4)"]),
        ({"obs": None, "state": np.ones(())}, ["state ()"]),
        ({"obs": np.ones((11, 20))}, ["observation state has shape (11, 20)", "(12, 20)"]),
        ({"action": np.full((12, 2), "a")}, ["action has dtype"]),
        (
            {"action": one((12, 2), (7, 1), np.nan)},
            ["action is NaN or infinite at 1 of 12 steps, first at step 7 (episode 1)"],
        ),
        ({"action": one((12, 2), (4, 0), 1e300)}, ["action is", "step 4 (episode 0)"]),
        (
            {"obs": one((12, 20), (slice(5, 7), 3), -np.inf)},
            ["observation state is NaN or infinite at 2 of 12 steps", "step 5 (episode 1)"],
        ),
        ({"episode_ends": np.array([5, 5, 12])}, ["episode_ends"]),
        ({"episode_ends": np.array([0, 12])}, ["episode_ends"]),
        ({"episode_ends": np.array([8, 5, 12])}, ["episode_ends"]),
        ({"episode_ends": np.array([5, 11])}, ["(12, 20)", "episode_ends need (11, 20)"]),
        ({"episode_ends": np.array([5.0, 12.0])}, ["integers"]),
        ({"episode_ends": np.array(12)}, ["integers"]),
        ({"obs": np.ones((0, 20)), "action": np.ones((0, 2))}, ["(0, 20)"]),
        ({"episode_ends": np.array([2**64 - 1], "u8")}, ["episode_ends need"]),
        ({"keypoint": np.ones(()), "state": np.ones((12, 5))}, ["keypoint ()"]),
        ({"keypoint": np.ones((12, 9, 2)), "state": np.ones((11, 5))}, ["state (11, 5)"]),
        ({"episode_ends": np.zeros(0, int)}, ["empty"]),
    ],
)
def test_bad_arrays(tmp_path, change, words):
    save_npz(tmp_path / "x.npz", **good(**change))
    refused(lambda: data.load(PUSHT, tmp_path / "x.npz"), "x.npz", *words)


@pytest.mark.parametrize(
    "name, a, word",
    [
        ("data/action", np.ones((59, 3)), "(59, 3)"),
        ("data/state", np.ones((58, 5)), "58"),
        ("data/keypoint", np.ones((59, 8, 2)), "(59, 18)"),
        ("data/state", one((59, 5), (31, 0), np.nan), "step 31 (episode 1)"),
    ],
)
def test_bad_zarr_arrays(tmp_path, name, a, word):
    path = write_zarr(tmp_path / "x.zarr", {**arrays(), name: a})
    refused(lambda: data.load(PUSHT, path), "x.zarr", word)


def test_empty_zarr_arrays(tmp_path):
    empty = {k: a[:0] for k, a in arrays().items()}
    path = write_zarr(tmp_path / "e.zarr", empty)
    refused(lambda: data.load(PUSHT, path), "empty")


def test_minari_data_of_another_robot(tmp_path):
    """Walker2d and HalfCheetah have the same sizes: the recorded environment tells them apart."""
    L = 12
    rng = np.random.default_rng(0)
    episode = {
        "observations": rng.normal(size=(L + 1, 17)),
        "actions": rng.uniform(-1, 1, (L, 6)),
        "rewards": np.ones(L),
        "terminations": np.zeros(L, bool),
        "truncations": np.arange(L) == L - 1,
        "seed": 3,
    }
    with TASKS["walker2d"].env() as env:
        save_minari(tmp_path / "w", [episode], env, "drift/walker2d/medium-v0")
    assert len(data.load(TASKS["walker2d"], tmp_path / "w")) == 1
    words = "recorded in Walker2d-v5: it is not halfcheetah data"
    refused(lambda: data.load(TASKS["halfcheetah"], tmp_path / "w"), words)


# ---- python data.py info -------------------------------------------------------------------------


def command(*args, cwd, **env):
    """python data.py args -> (exit code, stdout, stderr)."""
    kept = {name: value for name, value in os.environ.items() if name != "DRIFT_DATA"}
    done = subprocess.run(
        [sys.executable, ROOT / "data.py", *map(str, args)],
        cwd=cwd,
        env={**kept, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_cli_info(tmp_path):
    """NaN is reported, not refused; the picture takes the data's name."""
    a = arrays()
    a["data/action"][3, 1] = np.nan
    write_zarr(tmp_path / PUSHT.data[0], a)
    code, out, err = command("info", cwd=tmp_path, DRIFT_DATA=str(tmp_path))
    assert (code, err) == (0, "") and "3 episodes, 59 steps, length 9 / 19.7 / 30" in out
    assert "1 values are NaN" in out and "state (59, 20) float32" in out
    png = (tmp_path / PUSHT.data[0]).with_suffix(".png")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_cli_bad_input(tmp_path):
    """One line on stderr and exit code 2, as a user sees it."""
    code, out, err = command("info", tmp_path / "none", cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1), (code, err)
    assert err.startswith("error: ") and "no such file" in err


def test_info_of_minari(tmp_path, capsys):
    path = write_minari(tmp_path / "x")
    reward = read(path)["reward"]
    returns = [float(r.sum()) for r in np.split(reward, [4, 5])]
    data.info(HOPPER, path)
    out = capsys.readouterr().out
    assert "3 episodes, 12 steps, length 1 / 4.0 / 7" in out
    assert "state (12, 11) float32" in out and "not drawn" in out
    numbers = f"{min(returns):.1f} / {np.mean(returns):.1f} / {max(returns):.1f}"
    assert f"return {numbers} (min / mean / max)" in out


def test_info_of_another_robots_data(capsys):
    """Of equal sizes, but recorded elsewhere: training refuses it, and so does info."""
    data.info(TASKS["halfcheetah"], ROOT / "demos" / "walker2d-medium")
    assert "was recorded in Walker2d-v5: it is not halfcheetah data" in capsys.readouterr().out


def test_info_by_observation(tmp_path, capsys):
    """A cloud by coordinate; of pictures only minimum, mean, maximum of all their values."""
    a = arm_arrays()
    points = np.tile(np.array([1.0, 2.0, 3.0]), (20, 64, 1))
    points[0, 0] = [-1, -2, -3]
    cloud = dataclasses.replace(ARM, obs={**ARM.obs, "points": (64, 3)})
    save_npz(tmp_path / "x.npz", points=points, **a)
    data.info(cloud, tmp_path / "x.npz", tmp_path / "x.png")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    at = {row[0]: i for i, row in enumerate(rows) if row[0] in {**cloud.obs, "action": 0}}
    front = a["front"]
    picture = [float(x) for x in rows[at["front"] + 1]]
    wanted = [front.min(), front.mean(), front.max()]
    np.testing.assert_allclose(picture, wanted, rtol=1e-3)
    assert at["state"] == at["front"] + 2  # no more rows of the pictures
    assert at["points"] == at["state"] + 5
    for d in range(3):
        row = rows[at["points"] + 1 + d]
        assert [row[0], row[1], row[3]] == [str(d), str(-d - 1), str(d + 1)]
        np.testing.assert_allclose(float(row[2]), (d + 1) * (1 - 2 / 1280), rtol=1e-3)
    assert at["action"] == at["points"] + 4


def test_info_of_foreign_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = {
        "observations": one((10, 5), (slice(None), 2), np.nan),
        "count": np.array(3),
        "name": np.array("x"),
        "flag": np.zeros(10, bool),
        "none": np.zeros((0, 2)),
        "episode_ends": np.array([4, 10]),
    }
    save_npz(tmp_path / "f.npz", **a)
    data.info(PUSHT, tmp_path / "f.npz")
    out = capsys.readouterr().out
    assert "not pusht data" in out and "observations (10, 5)" in out and "not drawn" in out
    assert "10 values are NaN" in out and "constant" in out and not (tmp_path / "f.png").exists()
    write_zarr(tmp_path / "f.zarr", {"data/img": np.ones((20, 4, 4, 3), "f4"), **arrays()})
    data.info(HOPPER, tmp_path / "f.zarr")
    out = capsys.readouterr().out
    assert "not hopper data" in out and "img (20, 4, 4, 3) float32" in out
    data.info(PUSHT, write_minari(tmp_path / "m"))
    assert "not pusht data" in capsys.readouterr().out


def test_info_draws_by_the_task(tmp_path, capsys):
    def draw(figure, episodes):
        figure.subplots().imshow(episodes.obs["front"][0])

    save_npz(tmp_path / "x.npz", **arm_arrays())
    png = tmp_path / "out.png"
    data.info(dataclasses.replace(ARM, draw=draw), tmp_path / "x.npz", png)
    assert f"drawn: {png}" in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")


def test_info_draws_what_cameras_saw(tmp_path, capsys, monkeypatch):
    """Below the task's own picture a strip of each camera: pictures of the longest episode."""
    from matplotlib.image import imread

    a = arm_arrays((12, 20))
    a["front"][:12] = [200, 0, 0]
    a["front"][12:] = [0, 200, 0]
    a["hand"] = np.full((32, 8, 8, 3), [0, 0, 200], "u1")
    save_npz(tmp_path / "x.npz", **a)
    cameras = {"front": (12, 16, 3), "hand": (8, 8, 3)}
    monkeypatch.setattr(describe, "SEEN", 10)
    for draw in (None, lambda figure, episodes: figure.text(0, 0, "drawn")):
        task = dataclasses.replace(ARM, obs={**ARM.obs, **cameras}, draw=draw)
        png = tmp_path / "out.png"
        data.info(task, tmp_path / "x.npz", png)
        out = capsys.readouterr().out
        assert f"drawn: {png}" in out and "200  of one picture in 4\n" in out
        seen = (imread(png)[..., :3] * 255).round().astype(int)
        for color, there in (([200, 0, 0], False), ([0, 200, 0], True), ([0, 0, 200], True)):
            area = (seen == color).all(-1).sum()
            assert area > 3000 if there else area == 0, (color, area)


def test_info_where_nothing_can_be_written(tmp_path):
    save_npz(tmp_path / "f.npz", **good())
    png = tmp_path / "f.npz" / "x.png"
    refused(lambda: data.info(PUSHT, tmp_path / "f.npz", png), "x.png cannot be written")


def test_places_that_cannot_be_looked_at(tmp_path, monkeypatch):
    """A pipe, a device, a loop of links, 5000 characters: one line each, and no waiting."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, word in (
        (tmp_path / "pipe", "is a pipe or a device"),
        ("/dev/zero", "is a pipe or a device"),
        (tmp_path / "loop", "no such file"),
        ("x" * 5000, "too long"),
    ):
        refused(lambda path=path: data.info(PUSHT, path), word)
        monkeypatch.setenv("DRIFT_DATA", str(path))
        refused(lambda: data.load(PUSHT), word)
    monkeypatch.delenv("DRIFT_DATA")
    monkeypatch.setenv("DRIFT_CACHE", "x" * 5000)
    refused(lambda: data.find(PUSHT), "too long")


def test_too_large_to_read(tmp_path, monkeypatch):
    """The arrays of the task count, and the index of windows; --max-gb allows more."""
    path = tmp_path / "x.npz"
    save_npz(path, **good(), other=np.zeros((1000, 1000)))
    assert len(data.load(PUSHT, path, max_gb=5e-6)) == 2
    refused(lambda: data.load(PUSHT, path, max_gb=1e-6), "x.npz declares 2.128e-06 GB", "--max-gb")
    ep = episodes([40])
    n = len(data.Windows(ep, 2, 32, 8))
    size = n * 32 * 8 / 1e9
    refused(lambda: data.Windows(ep, 2, 32, 8, max_gb=size - 1e-10), "windows", "--max-gb")
    assert len(data.Windows(ep, 2, 32, 8, max_gb=size)) == n


def test_info_of_a_bomb(tmp_path, monkeypatch, capsys):
    """No table of another task is read if they are too large together."""
    save_npz(tmp_path / "x.npz", a=np.zeros((500, 1000)), b=np.zeros((500, 1000)))
    data.info(PUSHT, tmp_path / "x.npz", max_gb=0.009)
    text = capsys.readouterr().out
    assert "a (500, 1000) float64" in text and text.count("and 900 columns more") == 2
    refused(lambda: data.info(PUSHT, tmp_path / "x.npz", max_gb=0.007), "declares 0.008 GB", "a, b")


def test_info_prints_no_endless_names(tmp_path, capsys):
    """Of many arrays some are shown, of a long name the ends."""
    names = {f"{'n' * 3000}{i}": np.zeros(1) for i in range(120)}
    save_npz(tmp_path / "x.npz", **names)
    data.info(PUSHT, tmp_path / "x.npz")
    text = capsys.readouterr().out
    assert len(text) < 100 * 200 and "and 20 arrays more" in text
    assert max(map(len, text.splitlines())) < 600


# ---- the official data ---------------------------------------------------------------------------

HUMAN = Path(os.environ.get("DRIFT_DATA", "")) / OFFICIAL  # read before the fixture takes it away
here = pytest.mark.skipif(
    not os.environ.get("DRIFT_DATA") or not HUMAN.exists(),
    reason=f"set DRIFT_DATA to a folder that holds {OFFICIAL}",
)


@here
def test_official():
    ep = data.load(PUSHT, HUMAN)
    assert len(ep) == 206 and len(ep.obs["state"]) == len(ep.action) == 25650
    assert ep.lengths.min() == 49
    assert len(data.Windows(ep, 2, 16, 8)) == 24208 == 25650 - 7 * 206
    keypoint = zarr.open_group(HUMAN, mode="r")["data/keypoint"][:]
    np.testing.assert_array_equal(ep.obs["state"][:, :18], keypoint.reshape(-1, 18))


@here
def test_official_sha256():
    verify(HUMAN, PUSHT.sha256)
    table = {"data/state": PUSHT.sha256["data/state"], "meta/episode_ends": "0" * 64}
    refused(lambda: verify(HUMAN, table), "meta/episode_ends differs")


@here
def test_official_pictures():
    """The official pictures are floats, 2.8 GB; as an observation of a task they are bytes."""
    task = dataclasses.replace(
        PUSHT,
        obs={"image": (96, 96, 3), "agent": (2,)},
        arrays=("img", "state"),
        observations=lambda arrays: {"image": arrays["img"], "agent": arrays["state"][:, :2]},
    )
    ep = data.load(task, HUMAN)
    assert ep.obs["image"].dtype == np.uint8 and ep.obs["image"].shape == (25650, 96, 96, 3)
    first = zarr.open_group(HUMAN, mode="r")["data/img"][:3]
    np.testing.assert_array_equal(ep.obs["image"][:3], first)
