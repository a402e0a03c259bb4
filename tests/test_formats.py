"""formats.py: Minari's format both ways, with the minari library as the judge, and every bad HDF5 file refused.

Zarr and npz are tested through data.load in test_data.py.
"""
import json

import h5py
import numpy as np
import pytest

import data
import formats
from envs import TASKS
from formats import minari_file, read, save_minari
from runs import BadInput

HOPPER = TASKS["hopper"]


def some_episodes(lengths=(4, 1, 7), seed=0, obs_dim=11, D_a=3):
    """Random episodes in the layout of Minari; the last step is truncated in each, none terminates."""
    rng = np.random.default_rng(seed)
    return [{"observations": rng.normal(size=(n + 1, obs_dim)).astype("f4"),
             "actions": rng.uniform(-1, 1, (n, D_a)).astype("f4"), "rewards": rng.normal(size=n).astype("f4"),
             "terminations": np.zeros(n, bool), "truncations": np.arange(n) == n - 1, "seed": 500 + i}
            for i, n in enumerate(lengths)]


def write_minari(path, episodes=None, dataset_id="drift/hopper/medium-v0", **about):
    with HOPPER.env() as env:
        save_minari(path, some_episodes() if episodes is None else episodes, env, dataset_id, **about)
    return path


def check(arrays, episodes):
    """What read() gave is what the episodes hold, without the observation after the last action."""
    assert list(arrays) == ["obs", "action", "reward", "episode_ends"]
    for name, theirs, keep in (("obs", "observations", -1), ("action", "actions", None), ("reward", "rewards", None)):
        np.testing.assert_array_equal(arrays[name], np.concatenate([e[theirs][:keep] for e in episodes]))
        assert arrays[name].dtype == np.float32
    assert arrays["episode_ends"].tolist() == np.cumsum([len(e["actions"]) for e in episodes]).tolist()


def refused(call, *words):
    with pytest.raises(BadInput) as e:
        call()
    for word in words:
        assert word in str(e.value), (word, str(e.value))


def test_round_trip(tmp_path):
    """Twelve episodes, so that episode_10 must come after episode_9; from all three paths to the same data."""
    episodes = some_episodes(range(1, 13))
    path = write_minari(tmp_path / "deep" / "x", episodes)
    for place in (path, path / "data", path / "data" / "main_data.hdf5", str(path)):
        check(read(place), episodes)
    assert list(read(path, ("action", "keypoint"))) == ["action"]
    ep = data.load(HOPPER, path)
    assert len(ep) == 12 and ep.lengths.tolist() == list(range(1, 13)) and ep.ends.dtype == np.int64
    assert data.load(HOPPER, path, episodes=3).lengths.tolist() == [1, 2, 3]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]                     # nothing temporary is left
    (path / "data" / "metadata.json").rename(path / "metadata.json")                    # older versions' place
    check(read(path), episodes)
    (path / "metadata.json").unlink()
    check(read(path), episodes)


def test_small_on_disk(tmp_path):
    """An episode costs its numbers and about 4 kB more, so that data of some dozen episodes can ship."""
    path = write_minari(tmp_path / "x", some_episodes([300] * 20))
    assert (path / "data" / "main_data.hdf5").stat().st_size < 20 * (4 * 300 * 15 + 4500)


def test_minari_reads_ours(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="pip install minari to check that it reads what we write")
    episodes = some_episodes(range(1, 13))
    path = write_minari(tmp_path / "drift" / "hopper" / "medium-v0", episodes, algorithm_name="none", author=["a"])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for got in (minari.MinariDataset(path / "data"), minari.load_dataset("drift/hopper/medium-v0")):
        assert (len(got), got.total_steps, got.env_spec.id) == (12, 78, "Hopper-v5")
        assert got.observation_space.shape == (11,) and got.action_space == HOPPER.env().action_space
        for i, (e, wanted) in enumerate(zip(got, episodes)):
            assert e.id == i and str(e)
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                np.testing.assert_array_equal(getattr(e, name), wanted[name])
                assert getattr(e, name).dtype == wanted[name].dtype
        assert [m["seed"] for m in got.storage.get_episode_metadata(range(12))] == list(range(500, 512))
    assert "drift/hopper/medium-v0" in minari.list_local_datasets()


@pytest.mark.filterwarnings("ignore")
def test_ours_reads_minari(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="pip install minari to check that we read what it writes")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "nothing"))
    monkeypatch.delenv("DRIFT_DATA", raising=False)
    episodes = some_episodes(range(1, 13))
    buffers = [minari.data_collector.EpisodeBuffer(
        id=None, seed=e["seed"], observations=e["observations"].astype("f8"), actions=e["actions"],
        rewards=list(e["rewards"].astype("f8")), terminations=list(e["terminations"]),
        truncations=list(e["truncations"]), infos={"x": np.zeros(len(e["rewards"]))}) for e in episodes]
    minari.create_dataset_from_buffers(HOPPER.minari, buffer=buffers, env="Hopper-v5")
    check(read(tmp_path / HOPPER.minari), episodes)
    assert data.find(HOPPER) == tmp_path / HOPPER.minari


# ---- bad input

def replace(name, value, **kw):
    """A change of an open file: episode_1/name holds value instead; created by kw if value is None."""
    def change(f):
        del f[f"episode_1/{name}"]
        f["episode_1"].create_dataset(name, **({"data": value} if value is not None else {}), **kw)
    return change


def link(name, to):
    """A change of an open file: the thing called name is a link."""
    def change(f):
        del f[name]
        f[name] = to
    return change


def group(name):
    def change(f):
        del f[name]
        f.create_group(name)["x"] = np.zeros((2, 11))
    return change


def virtual(f):
    layout = h5py.VirtualLayout((2, 11), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", (2, 11))
    del f["episode_1/observations"]
    f["episode_1"].create_virtual_dataset("observations", layout)


def plugin(f):
    """Observations through a filter (number 32015) that HDF5 would look for a plugin to undo."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((2, 11))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    del f["episode_1/observations"]
    space = h5py.h5s.create_simple((2, 11))
    h5py.h5d.create(f["episode_1"].id, b"observations", h5py.h5t.NATIVE_FLOAT, space, plan)


def half(f):
    """Observations whose second chunk was never written; HDF5 would read zeros."""
    replace("observations", None, shape=(2, 11), dtype="f4", chunks=(1, 11))(f)
    f["episode_1/observations"][:1] = 1


@pytest.mark.parametrize("change,words", [
    (lambda f: [f.__delitem__(n) for n in list(f)], ["no episode_0"]),
    (lambda f: f.move("episode_1", "demo_1"), ["holds 2 episodes", "tells of 3"]),
    (lambda f: f.move("episode_1", "episode_7"), ["/episode_1 is missing"]),
    *[(lambda f, n=n: f["episode_1"].__delitem__(n), [f"/episode_1/{n} is missing"])
      for n in ("observations", "actions", "rewards", "terminations", "truncations")],
    (replace("observations", np.zeros((1, 11))), ["/episode_1", "(1, 11)", "(L+1, obs_dim)"]),
    (replace("observations", np.zeros((3, 11))), ["(3, 11)"]),
    (replace("observations", np.zeros((2, 11, 1))), ["(2, 11, 1)"]),
    (replace("observations", np.zeros((2, 10))), ["observations have different sizes", "[10, 11]"]),
    (replace("observations", np.zeros(())), ["observations ()"]),
    (replace("actions", np.zeros((1, 4))), ["actions have different sizes", "[3, 4]"]),
    (replace("actions", np.zeros(1)), ["(1,)"]),
    (replace("actions", np.zeros((0, 3))), ["(0, 3)", "L at least 1"]),
    (replace("rewards", np.zeros(2)), ["rewards of shape (2,)", "must be (1,)"]),
    (replace("rewards", np.zeros((1, 1))), ["rewards of shape (1, 1)"]),
    (replace("terminations", np.zeros(3, bool)), ["terminations of shape (3,)"]),
    (replace("truncations", np.zeros(1)), ["truncations is refused: dtype float64"]),
    (replace("actions", ["one"], dtype=h5py.string_dtype()), ["/episode_1/actions is refused: dtype object"]),
    (replace("actions", np.array([b"one"])), ["dtype |S3"]),
    (replace("actions", np.zeros((1, 3), "c8")), ["dtype complex64"]),
    (replace("actions", np.zeros(1, [("a", "f4")])), ["/episode_1/actions is refused"]),
    (replace("observations", None, shape=(2,), dtype=h5py.vlen_dtype("u1")), ["dtype object"]),
    (group("episode_1/observations"), ["/episode_1/observations is a group", "no Dict or Tuple"]),
    (lambda f: link("episode_1", f["episode_0/actions"])(f), ["/episode_1 is a dataset, not a group"]),
    (link("episode_1", h5py.ExternalLink("other.hdf5", "x")), ["/episode_1 is refused: it is a link"]),
    (link("episode_1/actions", h5py.ExternalLink("other.hdf5", "x")), ["/episode_1/actions is refused: it is a link"]),
    (link("episode_1/actions", h5py.SoftLink("/episode_0/actions")), ["/episode_1/actions is refused: it is a link"]),
    (replace("observations", None, shape=(2, 11), dtype="f4", external=[("/etc/passwd", 0, 88)]), ["in other files"]),
    (virtual, ["/episode_1/observations is refused", "in other files"]),
    (plugin, ["filters [32015]"]),
    (half, ["/episode_1/observations was not written to its end"]),
    (replace("observations", None, shape=(2, 11), dtype="f4"), ["was not written to its end"]),
    (replace("observations", None, shape=(2, 11), dtype="f4", maxshape=(None, None), chunks=(2 ** 15, 2 ** 14)),
     ["chunks (32768, 16384)"]),
])
def test_bad_hdf5(tmp_path, change, words):
    path = write_minari(tmp_path / "x")
    with h5py.File(tmp_path / "other.hdf5", "w") as f:
        f["x"] = np.zeros((2, 11))
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as f:
        change(f)
    refused(lambda: read(path), "main_data.hdf5", *words)


def test_huge(tmp_path, monkeypatch):
    """Episodes that are small one by one are not read into more than LIMIT bytes."""
    path = write_minari(tmp_path / "x")
    monkeypatch.setattr(formats, "LIMIT", 400)
    refused(lambda: read(path), "observations of all episodes are (12, 11)", "more than 400 bytes")
    monkeypatch.setattr(formats, "LIMIT", 300)
    refused(lambda: read(path), "/episode_2/observations has shape (8, 11) in chunks (8, 11)")


def test_damaged_file(tmp_path):
    path = write_minari(tmp_path / "x", some_episodes([200, 300]))
    file = path / "data" / "main_data.hdf5"
    whole = file.read_bytes()
    with h5py.File(file) as f:
        chunk = f["episode_1/observations"].id.get_chunk_info(0)
    flipped = bytearray(whole)
    flipped[chunk.byte_offset + chunk.size // 2] ^= 255
    for content in (b"", b"hello", whole[:len(whole) // 2], whole[:-1], bytes(flipped), b"PK" + whole[2:]):
        file.write_bytes(content)
        refused(lambda: read(path), "main_data.hdf5", "damaged: copy or download the data again")
    file.unlink()
    refused(lambda: read(path), "main_data.hdf5 is missing")
    refused(lambda: data.load(HOPPER, path), "only HDF5 is read")                       # Minari's arrow format


@pytest.mark.parametrize("text,word", [("{", "is damaged"), ("[]", "is damaged"), ("", "is damaged"),
                                       ('{"total_episodes": 4}', "holds 3 episodes, metadata.json tells of 4")])
def test_bad_metadata(tmp_path, text, word):
    path = write_minari(tmp_path / "x")
    (path / "data" / "metadata.json").write_text(text)
    refused(lambda: read(path), "metadata.json", word)


def test_sizes_of_another_task(tmp_path):
    refused(lambda: data.load(TASKS["walker2d"], write_minari(tmp_path / "x")), "(12, 11)", "(12, 17)")


@pytest.mark.parametrize("value,word", [(1e300, "1 observations are NaN or infinite, first at step 4 (episode 1)"),
                                        (np.nan, "step 4 (episode 1)")])
def test_not_finite(tmp_path, value, word):
    path, a = write_minari(tmp_path / "x"), np.zeros((2, 11))
    a[0, 3] = value
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as f:
        replace("observations", a)(f)
    refused(lambda: data.load(HOPPER, path), word)


def test_other_folders_are_not_minari(tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "main_data.npz").write_bytes(b"")
    assert minari_file(tmp_path) is minari_file(tmp_path / "main_data.npz") is minari_file(tmp_path / "none") is None


# ---- writing

def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "file", "link"):
        refused(lambda: write_minari(tmp_path / name), f"{name} exists")
    refused(lambda: write_minari(tmp_path / "file" / "x"), "cannot write")


def test_bad_episodes_are_not_written(tmp_path):
    """What could not be read again does not appear."""
    bad = some_episodes()
    bad[2]["observations"] = bad[2]["observations"][:-1]
    for episodes, word in (([], "no episode_0"), (bad, "/episode_2"), (some_episodes([3, 0]), "cannot write"),
                           ([{"rewards": np.zeros(3)}], "cannot write")):
        refused(lambda: write_minari(tmp_path / "x", episodes), word)
    assert list(tmp_path.iterdir()) == []


def test_metadata(tmp_path):
    path = write_minari(tmp_path / "x", author=["somebody"])
    meta = json.loads((path / "data" / "metadata.json").read_text())
    assert (meta["total_episodes"], meta["total_steps"], meta["author"]) == (3, 12, ["somebody"])
    assert json.loads(meta["env_spec"])["id"] == "Hopper-v5"
    (tmp_path / "y").mkdir()
    assert path.stat().st_mode == (tmp_path / "y").stat().st_mode                       # others may read it
