"""formats.py: Minari's format both ways, with the minari library as the judge, every bad HDF5 file
refused, and pictures that stay bytes. More of zarr and npz is tested in test_data.py."""

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
import zipfile
import zlib

import h5py
import numcodecs
import numpy as np
import pytest
import zarr

import data
from commands import BadInput
from envs import TASKS
from formats import (
    names_in,
    read,
    save_npz,
    shapes,
    zarr_array,
)
from hdf5 import minari_file, read_adroit, save_minari

HOPPER = TASKS["hopper"]


def some_episodes(lengths=(4, 1, 7), seed=0, S=11, D_a=3):
    """Random episodes in the layout of Minari; each is truncated at its last step."""
    rng = np.random.default_rng(seed)
    return [
        {
            "observations": rng.normal(size=(n + 1, S)).astype("f4"),
            "actions": rng.uniform(-1, 1, (n, D_a)).astype("f4"),
            "rewards": rng.normal(size=n).astype("f4"),
            "terminations": np.zeros(n, bool),
            "truncations": np.arange(n) == n - 1,
            "seed": 500 + i,
        }
        for i, n in enumerate(lengths)
    ]


def write_minari(path, episodes=None, dataset_id="drift/hopper/medium-v0", **about):
    """A Minari data set of Hopper. Returns its path."""
    episodes = some_episodes() if episodes is None else episodes
    with HOPPER.env() as env:
        save_minari(path, episodes, env, dataset_id, **about)
    return path


def write_zarr(path, content, **kw):
    """A zarr version 2 folder with Blosc, in chunks of 16 steps so that arrays have several.

    zarr writes no chunk that is all zeros, and such a folder is refused.
    """
    group = zarr.create_group(path, zarr_format=2)
    options = {"compressors": numcodecs.Blosc("zstd", 5, 2), **kw}
    for name, a in content.items():
        chunks = (min(16, max(len(a), 1)), *a.shape[1:])
        group.create_array(name, data=a, chunks=chunks, **options)
    return path


def check(arrays, episodes):
    """What read() gave is what the episodes hold, but for the observation after the last action."""
    assert list(arrays) == ["obs", "action", "reward", "episode_ends"]
    for name, theirs, keep in (
        ("obs", "observations", -1),
        ("action", "actions", None),
        ("reward", "rewards", None),
    ):
        wanted = np.concatenate([e[theirs][:keep] for e in episodes])
        np.testing.assert_array_equal(arrays[name], wanted)
        assert arrays[name].dtype == np.float32
    ends = np.cumsum([len(e["actions"]) for e in episodes])
    assert arrays["episode_ends"].tolist() == ends.tolist()


def refused(call, *words):
    """The call raises BadInput with all of these words in its message."""
    with pytest.raises(BadInput) as e:
        call()
    for word in words:
        assert word in str(e.value), (word, str(e.value))


# ---- Minari's format -----------------------------------------------------------------------------


def test_round_trip(tmp_path):
    """Twelve episodes, so that episode_10 must come after episode_9; the same from all paths."""
    episodes = some_episodes(range(1, 13))
    path = write_minari(tmp_path / "deep" / "x", episodes)
    for place in (path, path / "data", path / "data" / "main_data.hdf5", str(path)):
        check(read(place), episodes)
    assert list(read(path, ("action", "keypoint"))) == ["action"]
    ep = data.load(HOPPER, path)
    assert len(ep) == 12 and ep.lengths.tolist() == list(range(1, 13)) and ep.ends.dtype == np.int64
    assert data.load(HOPPER, path, episodes=3).lengths.tolist() == [1, 2, 3]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]  # nothing temporary is left
    (path / "data" / "metadata.json").rename(path / "metadata.json")  # older versions' place
    check(read(path), episodes)
    (path / "metadata.json").unlink()
    check(read(path), episodes)


def test_small_on_disk(tmp_path):
    """An episode costs its numbers and about 4 kB more, so that data of some dozen can ship."""
    path = write_minari(tmp_path / "x", some_episodes([300] * 20))
    assert (path / "data" / "main_data.hdf5").stat().st_size < 20 * (4 * 300 * 15 + 4500)


def test_minari_reads_ours(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="pip install minari: it checks what we write")
    episodes = some_episodes(range(1, 13))
    path = tmp_path / "drift" / "hopper" / "medium-v0"
    write_minari(path, episodes, algorithm_name="none", author=["a"])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    by_path = minari.MinariDataset(path / "data")
    by_name = minari.load_dataset("drift/hopper/medium-v0")
    for got in (by_path, by_name):
        assert (len(got), got.total_steps, got.env_spec.id) == (12, 78, "Hopper-v5")
        assert got.observation_space.shape == (11,)
        assert got.action_space == HOPPER.env().action_space
        for i, (e, wanted) in enumerate(zip(got, episodes)):
            assert e.id == i and str(e)
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                np.testing.assert_array_equal(getattr(e, name), wanted[name])
                assert getattr(e, name).dtype == wanted[name].dtype
        seeds = [m["seed"] for m in got.storage.get_episode_metadata(range(12))]
        assert seeds == list(range(500, 512))
    assert "drift/hopper/medium-v0" in minari.list_local_datasets()
    assert by_path.recover_environment().observation_space.shape == (11,)


@pytest.mark.filterwarnings("ignore")
def test_ours_reads_minari(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="pip install minari: we read what it writes")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "nothing"))
    monkeypatch.delenv("DRIFT_DATA", raising=False)
    episodes = some_episodes(range(1, 13))
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=None,
            seed=e["seed"],
            observations=e["observations"].astype("f8"),
            actions=e["actions"],
            rewards=list(e["rewards"].astype("f8")),
            terminations=list(e["terminations"]),
            truncations=list(e["truncations"]),
            infos={"x": np.zeros(len(e["rewards"]))},
        )
        for e in episodes
    ]
    minari.create_dataset_from_buffers(HOPPER.minari, buffer=buffers, env="Hopper-v5")
    check(read(tmp_path / HOPPER.minari), episodes)
    assert data.find(HOPPER) == tmp_path / HOPPER.minari


# ---- HDF5: bad input -----------------------------------------------------------------------------


def replace(name, value, **kw):
    """A change of an open file: episode_1/name holds the value, or is created by kw if None."""

    def change(f):
        del f[f"episode_1/{name}"]
        if value is not None:
            kw["data"] = value
        f["episode_1"].create_dataset(name, **kw)

    return change


def delete(*names):
    """A change of an open file: these things are gone; all, if none is named."""

    def change(f):
        for name in names or list(f):
            del f[name]

    return change


def move(name, to):
    """A change of an open file: a thing has another name."""

    def change(f):
        f.move(name, to)

    return change


def link(name, to):
    """A change of an open file: the thing called name is a link."""

    def change(f):
        del f[name]
        f[name] = to

    return change


def group(name):
    """A change of an open file: the thing called name is a group."""

    def change(f):
        del f[name]
        f.create_group(name)["x"] = np.zeros((2, 11))

    return change


def dataset(f):
    """episode_1 is a dataset."""
    del f["episode_1"]
    f["episode_1"] = f["episode_0/actions"]


def virtual(f):
    """Observations that are in another file."""
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


OUTSIDE = h5py.ExternalLink("other.hdf5", "x")
TABLE = {"shape": (2, 11), "dtype": "f4"}


@pytest.mark.parametrize(
    "change, words",
    [
        (delete(), ["no episode_0"]),
        (move("episode_1", "demo_1"), ["holds 2 episodes", "tells of 3"]),
        (move("episode_1", "episode_7"), ["/episode_1 is missing"]),
        *[
            (delete(f"episode_1/{name}"), [f"/episode_1/{name} is missing"])
            for name in ("observations", "actions", "rewards", "terminations", "truncations")
        ],
        (replace("observations", np.zeros((1, 11))), ["/episode_1", "(1, 11)", "(L+1, S)"]),
        (replace("observations", np.zeros((3, 11))), ["(3, 11)"]),
        (replace("observations", np.zeros((2, 11, 1))), ["(2, 11, 1)"]),
        (replace("observations", np.zeros((2, 10))), ["observations have different", "[10, 11]"]),
        (replace("observations", np.zeros(())), ["observations ()"]),
        (replace("actions", np.zeros((1, 4))), ["actions have different sizes", "[3, 4]"]),
        (replace("actions", np.zeros(1)), ["(1,)"]),
        (replace("actions", np.zeros((0, 3))), ["(0, 3)", "L at least 1"]),
        (replace("rewards", np.zeros(2)), ["rewards of shape (2,)", "must be (1,)"]),
        (replace("rewards", np.zeros((1, 1))), ["rewards of shape (1, 1)"]),
        (replace("terminations", np.zeros(3, bool)), ["terminations of shape (3,)"]),
        (replace("truncations", np.zeros(1)), ["truncations is refused: dtype float64"]),
        (
            replace("actions", ["one"], dtype=h5py.string_dtype()),
            ["/episode_1/actions is refused: dtype object"],
        ),
        (replace("actions", np.array([b"one"])), ["dtype |S3"]),
        (replace("actions", np.zeros((1, 3), "c8")), ["dtype complex64"]),
        (replace("actions", np.zeros(1, [("a", "f4")])), ["/episode_1/actions is refused"]),
        (
            replace("observations", None, shape=(2,), dtype=h5py.vlen_dtype("u1")),
            ["dtype object"],
        ),
        (
            group("episode_1/observations"),
            ["/episode_1/observations is a group", "no Dict or Tuple"],
        ),
        (dataset, ["/episode_1 is a dataset, not a group"]),
        (link("episode_1", OUTSIDE), ["/episode_1 is refused: it is a link"]),
        (link("episode_1/actions", OUTSIDE), ["/episode_1/actions is refused: it is a link"]),
        (
            link("episode_1/actions", h5py.SoftLink("/episode_0/actions")),
            ["/episode_1/actions is refused: it is a link"],
        ),
        (
            replace("observations", None, external=[("/etc/passwd", 0, 88)], **TABLE),
            ["in other files"],
        ),
        (virtual, ["/episode_1/observations is refused", "in other files"]),
        (plugin, ["filters [32015]"]),
        (half, ["/episode_1/observations was not written to its end"]),
        (replace("observations", None, **TABLE), ["was not written to its end"]),
        (
            replace("observations", None, maxshape=(None, None), chunks=(2**15, 2**14), **TABLE),
            ["chunks (32768, 16384)"],
        ),
    ],
)
def test_bad_hdf5(tmp_path, change, words):
    path = write_minari(tmp_path / "x")
    with h5py.File(tmp_path / "other.hdf5", "w") as f:
        f["x"] = np.zeros((2, 11))
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as f:
        change(f)
    refused(lambda: read(path), "main_data.hdf5", *words)


def test_huge(tmp_path):
    """Episodes that are small one by one are not read if they are too much together."""
    path = write_minari(tmp_path / "x")
    nbytes = 12 * 4 * (11 + 3 + 1) + 3 * 8
    assert len(read(path, max_gb=nbytes / 1e9)) == 4
    words = ("main_data.hdf5 declares 7.44e-07 GB", "obs, action, reward", "raise --max-gb")
    refused(lambda: read(path, max_gb=(nbytes - 1) / 1e9), *words)
    assert list(read(path, ["action"], max_gb=2e-7)) == ["action"]  # only what is read counts


def test_damaged_file(tmp_path):
    path = write_minari(tmp_path / "x", some_episodes([200, 300]))
    file = path / "data" / "main_data.hdf5"
    whole = file.read_bytes()
    with h5py.File(file) as f:
        chunk = f["episode_1/observations"].id.get_chunk_info(0)
    flipped = bytearray(whole)
    flipped[chunk.byte_offset + chunk.size // 2] ^= 255
    halved = whole[: len(whole) // 2]
    for content in (b"", b"hello", halved, whole[:-1], bytes(flipped), b"PK" + whole[2:]):
        file.write_bytes(content)
        refused(lambda: read(path), "main_data.hdf5", "damaged: copy or download the data again")
    file.unlink()
    refused(lambda: read(path), "main_data.hdf5 is missing")
    refused(lambda: data.load(HOPPER, path), "only HDF5 is read")  # Minari's arrow format


@pytest.mark.parametrize(
    "text, word",
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("", "is damaged"),
        ('{"total_episodes": 4}', "holds 3 episodes, metadata.json tells of 4"),
    ],
)
def test_bad_metadata(tmp_path, text, word):
    path = write_minari(tmp_path / "x")
    (path / "data" / "metadata.json").write_text(text)
    refused(lambda: read(path), "metadata.json", word)


def test_sizes_of_another_task(tmp_path):
    path = write_minari(tmp_path / "x")
    refused(lambda: data.load(TASKS["walker2d"], path), "(12, 11)", "(12, 17)")


@pytest.mark.parametrize("value", [1e300, np.nan])
def test_not_finite(tmp_path, value):
    path = write_minari(tmp_path / "x")
    a = np.zeros((2, 11))
    a[0, 3] = value
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as f:
        replace("observations", a)(f)
    words = ("state is NaN or infinite at 1 of 12 steps", "first at step 4 (episode 1)")
    refused(lambda: data.load(HOPPER, path), *words)


def test_other_folders_are_not_minari(tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "main_data.npz").write_bytes(b"")
    for path in (tmp_path, tmp_path / "main_data.npz", tmp_path / "none"):
        assert minari_file(path) is None


# ---- Minari: writing -----------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "file", "link"):
        refused(lambda name=name: write_minari(tmp_path / name), f"{name} exists")
    refused(lambda: write_minari(tmp_path / "file" / "x"), "cannot write")


def test_bad_episodes_are_not_written(tmp_path):
    """What could not be read again does not appear."""
    bad = some_episodes()
    bad[2]["observations"] = bad[2]["observations"][:-1]
    for episodes, word in (
        ([], "no episode_0"),
        (bad, "/episode_2"),
        (some_episodes([3, 0]), "cannot write"),
        ([{"rewards": np.zeros(3)}], "cannot write"),
    ):
        refused(lambda e=episodes: write_minari(tmp_path / "x", e), word)
    assert list(tmp_path.iterdir()) == []


def test_metadata(tmp_path):
    """The spec is gymnasium's own, without our wrapper that makes the observation a Dict."""
    path = write_minari(tmp_path / "x", author=["somebody"])
    meta = json.loads((path / "data" / "metadata.json").read_text())
    assert meta["total_episodes"] == 3 and meta["total_steps"] == 12
    assert meta["author"] == ["somebody"]
    spec = json.loads(meta["env_spec"])
    assert spec["id"] == "Hopper-v5" and spec["additional_wrappers"] == []
    space = json.loads(meta["observation_space"])
    assert space["type"] == "Box" and space["shape"] == [11] and len(space["low"]) == 11
    (tmp_path / "y").mkdir()
    assert path.stat().st_mode == (tmp_path / "y").stat().st_mode  # others may read it


def test_observations_that_are_not_a_vector_are_not_written(tmp_path):
    import gymnasium as gym

    class Cloud:
        """An environment's spaces."""

        spec = None
        action_space = gym.spaces.Box(-1, 1, (3,))
        observation_space = gym.spaces.Dict(
            state=gym.spaces.Box(-1, 1, (11,)), points=gym.spaces.Box(-1, 1, (64, 3))
        )

    def write():
        save_minari(tmp_path / "x", some_episodes(), Cloud(), "a/b-v0")

    refused(write, "state, points", "only state alone")
    assert list(tmp_path.iterdir()) == []


# ---- names and pictures of npz and zarr ----------------------------------------------------------


def film(n=40, side=16, seed=0):
    """Random pictures (n, side, side, 3) uint8, every value among them."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def test_listing(tmp_path):
    """Names and shapes of all arrays, for all three formats."""
    content = {"data/action": np.ones((5, 2), "f4"), "meta/episode_ends": np.array([5])}
    folder = write_zarr(tmp_path / "x.zarr", content)
    save_npz(tmp_path / "x.npz", action=np.zeros((5, 2), "f4"), episode_ends=np.array([5]))
    wanted = {"action": ((5, 2), np.dtype("f4")), "episode_ends": ((1,), np.dtype("i8"))}
    for path in (folder, tmp_path / "x.npz"):
        assert shapes(path) == wanted and names_in(path) == list(wanted)
        assert list(read(path)) == list(wanted) and list(read(path, ["action", "z"])) == ["action"]
    listed = shapes(write_minari(tmp_path / "y"))
    assert listed["obs"] == ((12, 11), np.float32) and list(listed) == names_in(tmp_path / "y")


def test_shapes_do_not_read_npz(tmp_path):
    save_npz(tmp_path / "x.npz", big=np.zeros((2**22, 2)), name=np.array("text"))
    tracemalloc.start()
    assert shapes(tmp_path / "x.npz") == {
        "big": ((2**22, 2), np.dtype("f8")),
        "name": ((), np.dtype("U4")),
    }
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8", "f2", "i8", ">f4"])
def test_recorded_pictures_become_bytes(tmp_path, dtype):
    pictures = film()
    save_npz(tmp_path / "x.npz", img=pictures.astype(dtype))
    write_zarr(tmp_path / "x.zarr", {"data/img": pictures.astype(dtype)})
    for name in ("x.npz", "x.zarr"):
        img = read(tmp_path / name)["img"]
        assert img.dtype == np.uint8
        np.testing.assert_array_equal(img, pictures)


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan, np.inf, 1e9])
def test_other_pictures_are_refused(tmp_path, value):
    """The first picture that is not whole numbers from 0 to 255 is named, with its value."""
    pictures = film().astype("f4")
    pictures[37, 3, 2, 1] = value
    words = f"img (40, 16, 16, 3) float32 has the value {value:g} in picture 37: pictures must be"
    write_zarr(tmp_path / "x.zarr", {"data/img": pictures})
    save_npz(tmp_path / "x.npz", img=pictures)
    for name in ("x.npz", "x.zarr"):
        refused(lambda name=name: read(tmp_path / name), name, words)


def test_clouds_are_no_pictures(tmp_path):
    save_npz(tmp_path / "x.npz", points=np.full((5, 64, 3), 0.5, "f4"))
    assert read(tmp_path / "x.npz")["points"].dtype == np.float32


def test_float_pictures_are_never_in_memory_together(tmp_path):
    """Reading 400 pictures as floats takes their bytes and little more, not four times as much."""
    pictures = film(400, 64)
    path = write_zarr(tmp_path / "x.zarr", {"data/img": pictures.astype("f4")})
    read(path)  # imports
    tracemalloc.start()
    read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pictures.nbytes < peak < 2 * pictures.nbytes


def test_an_npz_of_objects_is_not_unpickled(tmp_path):
    class Trap:
        """Makes a folder when it is unpickled."""

        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "o.npz", action=np.array([Trap()], object), episode_ends=[1])
    refused(lambda: read(tmp_path / "o.npz"), "o.npz is not an npz file of plain numbers")
    assert shapes(tmp_path / "o.npz")["action"] == ((1,), np.dtype(object))
    assert not (tmp_path / "sprung").exists()


# ---- files that say more than they hold, or hold more than they say ------------------------------


def peak_of(call):
    """The bytes that Python and numpy had at once, at most, in a call that raises BadInput."""
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as e:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak, str(e.value)


def zstd_without_size():
    """A frame of zstd that says nothing of its size: a block of 128 kB of one byte."""
    block = (2**17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"a"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block


ZEROS = bytes(2**26)
PACKED = {
    "zlib": zlib.compress(ZEROS),
    "gzip": gzip.compress(ZEROS),
    "bz2": bz2.compress(ZEROS),
    "lzma": lzma.compress(ZEROS),
    "zstd": numcodecs.Zstd().encode(ZEROS),
    "lz4": numcodecs.LZ4().encode(ZEROS),
    "blosc": numcodecs.Blosc("zstd").encode(ZEROS),
}


@pytest.mark.parametrize("codec", PACKED)
def test_a_zarr_chunk_that_unpacks_to_more(tmp_path, codec):
    """64 MB in a chunk of 128 bytes are never unpacked."""
    path = write_zarr(tmp_path / "x.zarr", {"data/action": np.ones((16, 2), "f4")})
    (path / "data/action/.zarray").write_text(zarray([16, 2], [16, 2], compressor={"id": codec}))
    (path / "data/action/0.0").write_bytes(PACKED[codec])
    peak, message = peak_of(lambda: read(path))
    word = "far more" if codec == "lz4" else "chunk 0.0 is damaged"  # lz4 packs no better
    assert peak < 2**24 and word in message, (peak, message)  # lzma has 8 MB of its own


def zarray(shape, chunks, dtype="<f4", **change):
    """The text of a .zarray file."""
    meta = {"shape": shape, "chunks": chunks, "dtype": dtype, "compressor": None, "order": "C"}
    return json.dumps(meta | {"filters": None, "fill_value": 0, "zarr_format": 2} | change)


def test_every_codec_of_zarr_is_read(tmp_path):
    """In both orders of bytes and of axes. Of zstd only frames that say their size are read."""
    a = np.random.default_rng(0).integers(0, 9, (40, 3), "i2").astype(">i2")
    for codec in (*PACKED, None):
        compressor = codec and numcodecs.get_codec({"id": codec})
        for order in "CF":
            path = write_zarr(
                tmp_path / f"{codec}-{order}.zarr",
                {"data/a": a},
                compressors=compressor,
                order=order,
            )
            np.testing.assert_array_equal(read(path)["a"], a)
    path = tmp_path / "zstd-C.zarr"
    for content in (zstd_without_size(), b"", b"x" * 9, b"\x28\xb5\x2f\xfd"):
        (path / "data/a/0.0").write_bytes(content)
        refused(lambda: read(path), "chunk 0.0 is damaged")


def test_chunks_along_all_axes(tmp_path):
    """Chunks at the borders are larger than what they hold; a part of the rows can be read."""
    a = np.arange(7 * 5 * 3, dtype="i4").reshape(7, 5, 3)
    group = zarr.create_group(tmp_path / "x", zarr_format=2)
    for separator in "./":
        encoding = {"name": "v2", "separator": separator}
        group.create_array(
            f"data/a{ord(separator)}", data=a + 1, chunks=(3, 2, 2), chunk_key_encoding=encoding
        )
    for name in read(tmp_path / "x"):
        array = zarr_array(tmp_path / "x", f"data/{name}")
        np.testing.assert_array_equal(array[...], a + 1)
        for first in range(8):
            for last in range(8):
                np.testing.assert_array_equal(array[first:last], (a + 1)[first:last])


@pytest.mark.parametrize(
    "text, words",
    [
        (zarray([15 * 10**9, 2], [1, 2]), ["declares 120 GB of numbers (action)", "--max-gb"]),
        (zarray([16, 2], [2**40, 2]), ["declares 8796 GB"]),
        (zarray([2**62] * 32, [2**62] * 32), ["declares 1e+12 GB"]),
        (zarray([16, 2], [0, 2]), ["not a layout"]),
        (zarray([16, 2], [16]), ["not a layout"]),
        (zarray([-16, 2], [16, 2]), ["not a layout"]),
        (zarray([16.0, 2], [16, 2]), ["not a layout"]),
        (zarray([16, True], [16, 1]), ["not a layout"]),
        (zarray([], []), ["not a layout"]),
        (zarray([16, 2], [16, 2], dimension_separator="/../"), ["not a layout"]),
        (zarray([16, 2], [16, 2], order="K"), ["not a layout"]),
        (zarray([16, 2], [16, 2], dtype=[["a", "<f4"]] * 1000), ["is refused: dtype", " ... "]),
        (zarray([16, 2], [16, 2], dtype="|S8"), ["is refused: dtype"]),
        (zarray([16, 2], [16, 2], compressor={"id": "x" * 10**6}), ["is refused", " ... "]),
        (zarray(16, 16), ["cannot be opened"]),
        ("[" * 10**6, ["cannot be opened", "RecursionError"]),
        (" " * (2**24 + 1), ["far more than it could need"]),
        ("[]", ["cannot be opened"]),
    ],
)
def test_bad_zarr_sizes(tmp_path, text, words):
    path = write_zarr(tmp_path / "x.zarr", {"data/action": np.ones((16, 2), "f4")})
    (path / "data/action/.zarray").write_text(text)
    peak, message = peak_of(lambda: read(path))
    assert peak < 2**26 and len(message) < 1000 and "\n" not in message
    for word in words:
        assert word in message, (word, message)


def test_chunks_that_are_one_file(tmp_path):
    """Hard links: a small folder may declare much, up to what --max-gb allows."""
    path = write_zarr(tmp_path / "x.zarr", {"data/action": np.ones((16, 2), "f4")})
    for i in range(1, 64):
        (path / f"data/action/{i}.0").hardlink_to(path / "data/action/0.0")
    meta = json.loads((path / "data/action/.zarray").read_text())
    (path / "data/action/.zarray").write_text(json.dumps(meta | {"shape": [1024, 2]}))
    assert read(path)["action"].shape == (1024, 2)
    refused(lambda: read(path, max_gb=8e-6), "declares 8.192e-06 GB", "no more than 8e-06 GB")


def test_what_is_no_file_in_a_zarr_folder(tmp_path):
    """A pipe, a device or a folder in the place of a file is refused; nothing waits for it."""
    for i, name in enumerate(("0.0", ".zarray")):
        for j, make in enumerate((os.mkfifo, os.mkdir, zero_link)):
            path = write_zarr(tmp_path / f"{i}{j}.zarr", {"data/a": np.ones((16, 2), "f4")})
            (path / "data/a" / name).unlink()
            make(path / "data/a" / name)
            refused(lambda path=path: read(path), "lacks chunk 0.0" if name == "0.0" else "missing")
    (path / "zarr.json").write_text("{}")
    refused(lambda: read(path), "is zarr version 3", "zarr_format=2")


def zero_link(path):
    """Make a symbolic link to a device without end."""
    path.symlink_to("/dev/zero")


def npy(header, content=b"", version=(1, 0)):
    """The bytes of an npy file with this header."""
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header.encode() + content


def of_shape(shape, dtype="'<f4'"):
    """The header of an npy file, its shape and dtype as they are written there."""
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    "content, word",
    [
        (npy(of_shape("(2, 3)"), bytes(23)), "is damaged"),
        (npy(of_shape("(2, 3)"), bytes(25)), "is damaged"),
        (npy(of_shape("(10**9,)")), "does not begin as an array"),
        (npy(of_shape("(1000000000, 3)")), "is damaged"),
        (npy(of_shape("(-1, -6)"), bytes(24)), "not an npz file"),
        (npy(of_shape("(2, 3)", "'|O'"), bytes(24)), "holds Python's objects"),
        (npy(of_shape("(" + "9" * 3000 + ",)")), "is damaged"),
        (npy("-" * 9000 + "1"), "does not begin as an array"),
        (npy("(" * 9000), "does not begin as an array"),
        (npy(" " * 60000), "does not begin as an array"),
        (npy(" " * 2**22, version=(2, 0)), "does not begin as an array"),
        (npy(of_shape("(2, 3)"), bytes(24), version=(7, 0)), "not an npz file"),
        (b"text", "does not begin as an array"),
        (b"", "does not begin as an array"),
    ],
)
def test_npy_headers_that_lie(tmp_path, content, word):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("action.npy", content)
    peak, message = peak_of(lambda: read(tmp_path / "x.npz"))
    assert word in message and peak < 2**22, (peak, message)
    assert "unsafe" not in message and "allow_pickle" not in message and len(message) < 500


def test_an_npz_that_unpacks_to_much(tmp_path):
    """A file of 70 kB with 64 MB of zeros; what is not asked for does not count."""
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(2**23), b=np.zeros(2, "f4"))
    assert (tmp_path / "x.npz").stat().st_size < 2**17
    assert read(tmp_path / "x.npz", ["b"], max_gb=1e-8)["b"].shape == (2,)
    peak, message = peak_of(lambda: read(tmp_path / "x.npz", max_gb=0.06))
    assert "declares 0.06711 GB of numbers (a, b)" in message and peak < 2**20


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_compressions_that_are_not_bounded(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
        archive.writestr("action.npy", npy(of_shape("(2, 3)"), bytes(24)))
    refused(lambda: read(tmp_path / "x.npz"), "action is packed in another way")


@pytest.mark.filterwarnings("ignore:Duplicate")
def test_an_npz_with_two_arrays_of_one_name(tmp_path):
    for names in (("a.npy", "a.npy"), ("a", "a.npy")):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            for name in names:
                archive.writestr(name, npy(of_shape("(2, 3)"), bytes(24)))
        for call in (read, shapes, names_in):
            refused(lambda call=call: call(tmp_path / "x.npz"), "holds a twice")


def test_names_are_short_in_messages(tmp_path):
    name = "n" * 60000
    np.savez(tmp_path / "x.npz", **{name: np.array(["a"], object)})
    peak, message = peak_of(lambda: read(tmp_path / "x.npz"))
    assert len(message) < 500 and "nnn ... nnn" in message


def test_a_minari_file_with_very_many_groups(tmp_path, monkeypatch):
    """Hard links make a million episodes of one: their number is looked at before each of them."""
    monkeypatch.setattr("hdf5.MAX_EPISODES", 5)
    path = write_minari(tmp_path / "x")
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as f:
        for i in range(3, 6):
            f[f"episode_{i}"] = f["episode_0"]
    refused(lambda: read(path), "holds 6 groups, but no more than 5 are read")
    refused(lambda: read_adroit(path), "holds 6 episodes: 1 to 5 are read")


def test_shapes_do_not_read_minari(tmp_path, monkeypatch):
    path = write_minari(tmp_path / "x")
    monkeypatch.setattr(h5py.Dataset, "read_direct", None)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
    assert shapes(path)["action"] == ((12, 3), np.dtype("f4"))
    assert list(shapes(path)) == names_in(path)


def test_paths_that_cannot_be_read(tmp_path):
    """A path of 5000 characters, a loop of links, a file as a folder: one line each."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for path in ("x" * 5000, tmp_path / "loop", tmp_path / "file" / "x", "/dev/zero", "\0"):
        for call in (read, shapes, names_in):
            refused(lambda call=call, path=path: call(path))
