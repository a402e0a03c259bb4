"""data.py: windows against a loop, every bad input refused, downloads from a server of the test's own."""
import hashlib
import http.server
import json
import os
import stat
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import torch
import zarr

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
import formats
from envs import TASKS, pusht_obs
from runs import BadInput, cli
from test_formats import write_minari

PUSHT, HOPPER = TASKS["pusht"], TASKS["hopper"]
NAME = PUSHT.data[0]
HERE = Path(__file__).parents[1]


def arrays(lengths=(30, 9, 20), seed=0):
    """Random arrays in the layout of the official Push-T data."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    some = lambda *size: rng.uniform(0, 512, size).astype("f4")
    return {"data/action": some(n, 2), "data/state": some(n, 5), "data/keypoint": some(n, 9, 2),
            "meta/episode_ends": np.cumsum(lengths)}


def write_zarr(path, content, **kw):
    """A zarr v2 folder with Blosc, chunks of 16 steps so that each array has several."""
    group = zarr.create_group(path, zarr_format=2)
    for name, a in content.items():
        group.create_array(name, data=a, chunks=(min(16, max(len(a), 1)), *a.shape[1:]),
                           **{"compressors": numcodecs.Blosc("zstd", 5, 2), **kw})
    return path


def episodes(lengths):
    """Episodes whose only observation and action are the step's own number."""
    step = np.arange(sum(lengths), dtype="f4")[:, None]
    return data.Episodes(step, step, np.cumsum(lengths), Path("numbers"))


def refused(call, *words):
    with pytest.raises(BadInput) as e:
        call()
    for word in words:
        assert word in str(e.value), (word, str(e.value))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No data of this machine, no proxy."""
    monkeypatch.delenv("DRIFT_DATA", raising=False)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("no_proxy", "*")


# ---- windows

def by_loop(lengths, T_o, T_p, T_a):
    """The windows of Diffusion Policy's create_indices and sample_sequence, step by step."""
    windows, first = [], 0
    for L in lengths:
        for start in range(-(T_o - 1), L - T_p + (T_a - 1) + 1):
            windows.append([first + min(max(start + t, 0), L - 1) for t in range(T_p)])
        first += L
    return np.array(windows)


@pytest.mark.parametrize("lengths", [(30, 9, 20), (9,), (16, 1, 3, 16), (8, 9, 10, 7)])
@pytest.mark.parametrize("T_o,T_p,T_a", [(2, 16, 8), (1, 4, 4), (3, 5, 1), (4, 4, 1), (1, 1, 1)])
def test_windows(lengths, T_o, T_p, T_a):
    wanted = by_loop(lengths, T_o, T_p, T_a)
    c = data.Chunks(episodes(lengths), T_o, T_p, T_a)
    assert c.index.dtype == torch.int64 and len(c) == len(wanted)
    np.testing.assert_array_equal(c.index, wanted)
    obs, action = c.batch(torch.arange(len(c)))
    np.testing.assert_array_equal(obs[..., 0], wanted[:, :T_o])
    np.testing.assert_array_equal(action[..., 0], wanted)
    which = np.repeat(np.arange(len(lengths)), lengths)[wanted]          # the episode of each step of each window
    assert (which == which[:, :1]).all()


def test_borders_repeat_and_now_is_covered():
    """First and last window of one episode, and: every step is executed by some window."""
    c = data.Chunks(episodes([20]), 2, 16, 8)
    assert c.index[0].tolist() == [0, *range(15)] and c.index[-1].tolist() == [*range(11, 20)] + [19] * 7
    assert set(c.index[:, 1:9].flatten().tolist()) == set(range(20))


def test_short_episodes():
    assert len(data.Chunks(episodes([7, 8]), 2, 16, 8)) == 1             # 7 steps give no window, 8 give one
    refused(lambda: data.Chunks(episodes([7, 3]), 2, 16, 8), "7 steps", "T_p 16")


@pytest.mark.parametrize("T", [(2, 16, 16), (5, 4, 1), (0, 4, 1), (1, 4, 0)])
def test_impossible_horizons(T):
    refused(lambda: data.Chunks(episodes([30]), *T), "T_o")


def test_order():
    c = data.Chunks(episodes([40]), 2, 16, 8)
    again = data.Chunks(episodes([40]), 2, 16, 8)
    assert torch.equal(c.order(3, 7), again.order(3, 7))
    assert sorted(c.order(3, 7).tolist()) == list(range(len(c)))
    assert not torch.equal(c.order(3, 7), c.order(4, 7)) and not torch.equal(c.order(3, 7), c.order(3, 8))


# ---- finding and reading

def test_zarr(tmp_path):
    a = arrays()
    ep = data.load(PUSHT, write_zarr(tmp_path / "x.zarr", a))
    np.testing.assert_array_equal(ep.obs[:, :18], a["data/keypoint"].reshape(-1, 18))
    np.testing.assert_array_equal(ep.obs[:, 18:], a["data/state"][:, :2])
    np.testing.assert_array_equal(ep.action, a["data/action"])
    assert len(ep) == 3 and ep.lengths.tolist() == [30, 9, 20] and ep.ends.dtype == np.int64
    assert ep.obs.dtype == ep.action.dtype == np.float32


def test_npz(tmp_path):
    """States become observations; obs is taken as it is; numbers of other types are converted."""
    rng = np.random.default_rng(0)
    state, action = rng.uniform(0, 6, (12, 5)), rng.integers(0, 512, (12, 2))
    data.save_npz(tmp_path / "s.npz", state=state, action=action, episode_ends=np.array([5, 12], "i4"))
    ep = data.load(PUSHT, tmp_path / "s.npz")
    np.testing.assert_array_equal(ep.obs, pusht_obs(state))
    np.testing.assert_array_equal(ep.action, action.astype("f4"))
    data.save_npz(tmp_path / "o.npz", obs=ep.obs, action=action, episode_ends=ep.ends)
    np.testing.assert_array_equal(data.load(PUSHT, tmp_path / "o.npz").obs, ep.obs)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_first_episodes(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", arrays())
    ep = data.load(PUSHT, path, episodes=2)
    assert ep.ends.tolist() == [30, 39] and len(ep.obs) == len(ep.action) == 39
    for n in (0, -1, 4):
        refused(lambda: data.load(PUSHT, path, episodes=n), "3 episodes")


def test_find_order(tmp_path, monkeypatch):
    given, cached, explicit = tmp_path / "given", tmp_path / "cached", tmp_path / "explicit"
    for folder in (given, cached):
        write_zarr(folder / NAME, arrays())
        data.save_npz(folder / "pusht.npz", action=np.zeros(1))
    data.save_npz(explicit / "pusht.npz", action=np.zeros(1))
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    refused(lambda: data.find(PUSHT), "python data.py download pusht")
    data.save_npz(tmp_path / "demos" / "pusht.npz", action=np.zeros(1))
    assert data.find(PUSHT) == tmp_path / "demos" / "pusht.npz"
    monkeypatch.setenv("DRIFT_CACHE", str(cached))
    assert data.find(PUSHT) == cached / NAME
    monkeypatch.setenv("DRIFT_DATA", str(given))
    assert data.find(PUSHT) == given / NAME                              # the first name of task.data wins
    for path in (explicit, explicit / "pusht.npz"):
        assert data.find(PUSHT, path) == explicit / "pusht.npz"
    assert data.find(PUSHT, cached / NAME) == cached / NAME
    (tmp_path / "empty").mkdir()
    refused(lambda: data.find(PUSHT, tmp_path / "empty"), "empty", NAME)  # no falling back behind an explicit path
    refused(lambda: data.find(PUSHT, tmp_path / "none"), "none: no such file")
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path / "none"))
    refused(lambda: data.find(PUSHT), "DRIFT_DATA=")
    assert data.find(PUSHT, explicit).parent == explicit


def test_find_minari(tmp_path, monkeypatch):
    """The library's own folder comes after the cache and before demos/, and only for tasks of Minari."""
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    refused(lambda: data.find(HOPPER), "mujoco/hopper/medium-v0 or hopper-medium", "python data.py download hopper")
    demos = write_minari(tmp_path / "demos" / "hopper-medium")
    assert data.find(HOPPER) == demos
    library = write_minari(tmp_path / "library" / HOPPER.minari)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "library"))
    assert data.find(HOPPER) == library
    data.save_npz(tmp_path / "library" / "pusht.npz", action=np.zeros(1))
    refused(lambda: data.find(PUSHT), "no pusht data")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.find(HOPPER) == demos
    at_home = write_minari(tmp_path / "home" / ".minari" / "datasets" / HOPPER.minari)
    assert data.find(HOPPER) == at_home
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    cached = write_minari(tmp_path / "cache" / "hopper-medium")
    assert data.find(HOPPER) == cached
    for path, wanted in ((demos, demos), (demos / "data", demos / "data"), (tmp_path / "library", library),
                         (demos / "data" / "main_data.hdf5", demos / "data" / "main_data.hdf5")):
        assert data.find(HOPPER, path) == wanted and len(data.load(HOPPER, path)) == 3
    assert len(data.Chunks(data.load(HOPPER), HOPPER.T_o, HOPPER.T_p, HOPPER.T_a)) == 4 + 1 + 7


# ---- bad input

def test_missing_chunk(tmp_path):
    path = write_zarr(tmp_path / "x.zarr", arrays())
    (path / "data/action/1.0").unlink()
    refused(lambda: data.load(PUSHT, path), "data/action", "lacks chunk 1.0")


@pytest.mark.parametrize("codec", [numcodecs.Blosc("zstd", 5, 2), numcodecs.Blosc("lz4", 1, 0), numcodecs.Zlib(),
                                   numcodecs.Zstd(), None])
def test_cut_chunk(tmp_path, codec):
    """Random numbers do not compress, and of those numcodecs decodes half a Blosc chunk without complaint."""
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
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = write_zarr(tmp_path / "x.zarr", arrays())
    meta = json.loads((path / "data/action/.zarray").read_text())
    (path / "data/action/0.0").write_bytes(bytes(numcodecs.Pickle().encode(np.array([Trap()], object))))
    pickled = {"id": "pickle", "protocol": 5}
    for change, word in (({"dtype": "|O", "filters": [pickled]}, "dtype |O"), ({"filters": [pickled]}, "pickle"),
                         ({"compressor": pickled}, "pickle"), ({"dtype": [["a", "<f4"]]}, "dtype"),
                         ({"chunks": [2 ** 40, 2]}, "layout"), ({"chunks": [0, 2]}, "layout")):
        (path / "data/action/.zarray").write_text(json.dumps({**meta, **change}))
        refused(lambda: data.load(PUSHT, path), "data/action", word)
    np.savez(tmp_path / "o.npz", action=np.array([Trap()], object), episode_ends=[1])
    refused(lambda: data.load(PUSHT, tmp_path / "o.npz"), "plain numbers")
    assert not (tmp_path / "sprung").exists()


def test_not_an_npz(tmp_path):
    whole = tmp_path / "w.npz"
    data.save_npz(whole, action=np.random.default_rng(0).normal(size=(500, 2)), episode_ends=[500])
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
    a = {"obs": np.ones((12, 20)), "action": np.ones((12, 2)), "episode_ends": np.array([5, 12]), **change}
    return {k: v for k, v in a.items() if v is not None}


def one(shape, at, value):
    a = np.ones(shape)
    a[at] = value
    return a


@pytest.mark.parametrize("change,words", [
    ({"action": None}, ["lacks action", "obs"]),
    ({"obs": None}, ["lacks state"]),
    ({"episode_ends": None}, ["lacks episode_ends"]),
    ({"obs": np.ones((12, 19))}, ["(12, 19)", "20"]),
    ({"action": np.ones((12, 3))}, ["(12, 3)", "2)"]),
    ({"action": np.ones(12)}, ["(12,)"]),
    ({"obs": None, "state": np.ones((12, 4))}, ["state (12, 4)"]),
    ({"obs": None, "state": np.ones(())}, ["state ()"]),
    ({"obs": np.ones((11, 20))}, ["observations have shape (11, 20)", "(12, 20)"]),
    ({"action": np.full((12, 2), "a")}, ["action has dtype"]),
    ({"action": one((12, 2), (7, 1), np.nan)}, ["1 actions are NaN or infinite, first at step 7 (episode 1)"]),
    ({"action": one((12, 2), (4, 0), 1e300)}, ["1 actions", "step 4 (episode 0)"]),
    ({"obs": one((12, 20), (slice(5, 7), 3), -np.inf)}, ["2 observations", "step 5 (episode 1)"]),
    ({"episode_ends": np.array([5, 5, 12])}, ["episode_ends"]),
    ({"episode_ends": np.array([0, 12])}, ["episode_ends"]),
    ({"episode_ends": np.array([8, 5, 12])}, ["episode_ends"]),
    ({"episode_ends": np.array([5, 11])}, ["(12, 20)", "episode_ends need (11, 20)"]),
    ({"episode_ends": np.array([5., 12.])}, ["integers"]),
    ({"episode_ends": np.array(12)}, ["integers"]),
    ({"obs": np.ones((0, 20)), "action": np.ones((0, 2))}, ["(0, 20)"]),
    ({"episode_ends": np.array([2 ** 64 - 1], "u8")}, ["episode_ends need"]),
    ({"keypoint": np.ones(()), "state": np.ones((12, 5))}, ["keypoint ()"]),
    ({"keypoint": np.ones((12, 9, 2)), "state": np.ones((11, 5))}, ["state (11, 5)"]),
    ({"episode_ends": np.zeros(0, int)}, ["empty"]),
])
def test_bad_arrays(tmp_path, change, words):
    data.save_npz(tmp_path / "x.npz", **good(**change))
    refused(lambda: data.load(PUSHT, tmp_path / "x.npz"), "x.npz", *words)


def test_bad_zarr_arrays(tmp_path):
    for i, (name, a, word) in enumerate([("data/action", np.ones((59, 3)), "(59, 3)"),
                                         ("data/state", np.ones((58, 5)), "58"),
                                         ("data/keypoint", np.ones((59, 8, 2)), "(59, 18)"),
                                         ("data/state", one((59, 5), (31, 0), np.nan), "step 31 (episode 1)")]):
        path = write_zarr(tmp_path / f"{i}.zarr", {**arrays(), name: a})
        refused(lambda: data.load(PUSHT, path), f"{i}.zarr", word)
    empty = {k: a[:0] for k, a in arrays().items()}
    refused(lambda: data.load(PUSHT, write_zarr(tmp_path / "e.zarr", empty)), "empty")


# ---- download

class Server(http.server.BaseHTTPRequestHandler):
    """Serves server.content; honours Range if server.ranges; server.cut ends the answer early."""

    def do_GET(self):
        s, asked, total = self.server, self.headers.get("Range"), len(self.server.content)
        s.seen.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and s.ranges else 0
        if self.path.endswith("missing"):
            return self.send_error(404)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        s.sent.append(self.wfile.write(s.content[start:s.cut]))

    def log_message(self, *a):
        pass


@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    s.seen, s.sent, s.ranges, s.cut, s.content = [], [], True, None, b""
    s.url = f"http://127.0.0.1:{s.server_port}/pusht.zip"
    threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


@pytest.fixture
def archive(tmp_path, server, monkeypatch):
    """The server holds a zip laid out like the official one, and the sha256 table is that data's."""
    a = arrays()
    folder = write_zarr(tmp_path / "made" / "pusht" / NAME, a)
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as z:
        for p in sorted(folder.rglob("*")):
            z.write(p, p.relative_to(tmp_path / "made"))
        z.writestr("pusht/readme.txt", "not part of the data")
    server.content = (tmp_path / "made.zip").read_bytes()
    table = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in a.items()}
    monkeypatch.setattr(data, "SHA256", {NAME: {**table, "data/img": "0" * 64}})        # img may be absent
    return folder


def part(to):
    return to / f"{NAME}.zip.part"


def test_download(tmp_path, server, archive, monkeypatch):
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    path = data.download(PUSHT, url=server.url)
    assert path == tmp_path / "cache" / NAME == data.find(PUSHT)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [NAME]                    # no part, no leftovers
    np.testing.assert_array_equal(data.load(PUSHT, path).obs, data.load(PUSHT, archive).obs)
    assert data.download(PUSHT, url=server.url) == path and len(server.seen) == 1        # once is enough
    (path / "data/action/0.0").unlink()
    refused(lambda: data.download(PUSHT, url=server.url), "lacks chunk", "move it away")
    assert path.exists() and len(server.seen) == 1


def test_download_resumes(tmp_path, server, archive):
    to = tmp_path / "to"
    server.cut = 1000
    refused(lambda: data.download(PUSHT, to, server.url), "again to resume")
    assert part(to).read_bytes() == server.content[:1000] and not (to / NAME).exists()
    server.cut = None
    data.download(PUSHT, to, server.url)
    assert server.seen == [None, "bytes=1000-"] and server.sent == [1000, len(server.content) - 1000]
    assert len(data.load(PUSHT, to)) == 3


def test_download_without_range(tmp_path, server, archive):
    to, server.ranges = tmp_path / "to", False
    to.mkdir()
    part(to).write_bytes(b"x" * 1000)                                                    # sent anew, so not kept
    data.download(PUSHT, to, server.url)
    assert server.seen == ["bytes=1000-"] and server.sent == [len(server.content)]
    assert len(data.load(PUSHT, to)) == 3


@pytest.mark.parametrize("extra,seen", [(b"", 1), (b"xyz", 2)])
def test_download_416(tmp_path, server, archive, extra, seen):
    """A part as long as the archive is the archive; a longer one is started over."""
    to = tmp_path / "to"
    to.mkdir()
    part(to).write_bytes(server.content + extra)
    data.download(PUSHT, to, server.url)
    assert len(server.seen) == seen and len(data.load(PUSHT, to)) == 3


def test_download_sha(tmp_path, server, archive, monkeypatch):
    to = tmp_path / "to"
    monkeypatch.setitem(data.SHA256[NAME], "data/state", "0" * 64)
    refused(lambda: data.download(PUSHT, to, server.url), "not installed", "data/state differs")
    assert [p.name for p in to.iterdir()] == [f"{NAME}.zip.bad"]                         # kept; the next try is fresh


def repacked(content, add):
    """The zip with more entries: {name or ZipInfo: text}."""
    import io
    f = io.BytesIO(content)
    with zipfile.ZipFile(f, "a") as z:
        for name, text in add.items():
            z.writestr(name, text)
    return f.getvalue()


def link(name):
    i = zipfile.ZipInfo(name)
    i.external_attr = (stat.S_IFLNK | 0o777) << 16
    return i


@pytest.mark.parametrize("entry", ["../evil", f"pusht/{NAME}/../../../../evil", "/evil", "..\\evil", "C:evil",
                                   link(f"pusht/{NAME}/evil")], ids=str)
def test_evil_zip(tmp_path, server, archive, entry):
    to = tmp_path / "deep" / "er" / "to"
    server.content = repacked(server.content, {entry: "/etc"})
    refused(lambda: data.download(PUSHT, to, server.url), "not installed", "link or leads outside")
    assert [p.name for p in (tmp_path / "deep").rglob("*")] == ["er", "to", f"{NAME}.zip.bad"]
    assert not Path("/evil").exists()


def test_absurd_and_foreign_zips(tmp_path, server, archive, monkeypatch):
    whole = server.content
    for i, content in enumerate((b"PK not a zip", whole[:-30], repacked(b"", {"a.txt": "b"}))):
        server.content = content
        refused(lambda: data.download(PUSHT, tmp_path / f"{i}", server.url), "not installed")
    server.content = whole
    monkeypatch.setattr(data, "LIMIT", len(whole) + 10)
    server.content = repacked(whole, {f"{i}": "x" for i in range(2)})
    refused(lambda: data.download(PUSHT, tmp_path / "long", server.url), "not the archive")
    monkeypatch.setattr(data, "LIMIT", len(server.content))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(len(server.content) + 1))
    server.content = (tmp_path / "bomb.zip").read_bytes()
    refused(lambda: data.download(PUSHT, tmp_path / "bomb", server.url), "would unpack")


def fake_minari(monkeypatch, download):
    """A minari library whose download_dataset(name) is download(folder of the data set)."""
    library = types.ModuleType("minari")
    library.download_dataset = lambda name: download(Path(os.environ["MINARI_DATASETS_PATH"], name))
    monkeypatch.setitem(sys.modules, "minari", library)


def test_download_minari(tmp_path, monkeypatch, capsys):
    fake_minari(monkeypatch, lambda folder: folder.exists() or write_minari(folder))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "library"))
    for to, args in ((tmp_path / "library", []), (tmp_path / "to", ["--to", str(tmp_path / "to")])):
        monkeypatch.setattr(sys, "argv", ["data.py", "download", "hopper", *args])
        for _ in range(2):                                                               # again: checked, not fetched
            cli(data.main)
            assert capsys.readouterr().out.strip() == str(to / HOPPER.minari)
        assert len(data.load(HOPPER, to)) == 3
    assert data.find(HOPPER) == to / HOPPER.minari
    (to / HOPPER.minari / "data" / "main_data.hdf5").write_bytes(b"half")
    refused(lambda: data.download(HOPPER), "damaged", "delete", "to download it again")
    refused(lambda: data.download(HOPPER, url="http://127.0.0.1:9/x.zip"), "--url", "leave it out")


def test_download_minari_fails(tmp_path, monkeypatch):
    def offline(folder):
        raise ConnectionError("no network\nat all")

    fake_minari(monkeypatch, offline)
    refused(lambda: data.download(HOPPER, tmp_path / "to"), f"{HOPPER.minari}: download failed", "no network")
    fake_minari(monkeypatch, lambda folder: None)
    refused(lambda: data.download(HOPPER, tmp_path / "to"), "no such file or folder")
    monkeypatch.setitem(sys.modules, "minari", None)                                     # as if not installed
    refused(lambda: data.download(HOPPER, tmp_path / "to"), 'pip install "minari[hf]==0.5.4"', "requirements-extra.txt")


# ---- the commands

def command(*args, cwd, **env):
    """python data.py args -> (exit code, stdout, stderr)."""
    env = {**{k: v for k, v in os.environ.items() if k != "DRIFT_DATA"}, "OMP_NUM_THREADS": "1", **env}
    p = subprocess.run([sys.executable, HERE / "data.py", *map(str, args)], cwd=cwd, env=env,
                       capture_output=True, text=True)
    return p.returncode, p.stdout, p.stderr


def test_cli_bad_input(tmp_path):
    """One line on stderr and exit code 2, as a user sees it."""
    nobody = "http://127.0.0.1:9/x.zip"
    for args, word in ((("info", tmp_path / "none"), "no such file"),
                       (("download", "pusht", "--to", tmp_path, "--url", nobody), "download failed")):
        code, out, err = command(*args, cwd=tmp_path)
        assert code == 2 and err.count("\n") == 1 and err.startswith("error: ") and word in err, (args, code, err)


@pytest.mark.parametrize("args,word", [
    ("info . --task chess", "unknown task"), ("info . --tas pusht", "unrecognized"), ("info", "no pusht data"),
    ("download pusht --url file:///etc/passwd", "not an http"), ("download chess", "invalid choice"),
    ("download pusht --to made.zip --url URL", "cannot write"), ("download pusht --url URL?missing", "404")])
def test_cli_arguments(tmp_path, monkeypatch, capsys, server, archive, args, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "__file__", str(tmp_path / "data.py"))
    monkeypatch.setattr(sys, "argv", ["data.py", *args.replace("URL", server.url).split()])
    with pytest.raises(SystemExit) as e:
        cli(data.main)
    assert e.value.code == 2 and word in capsys.readouterr().err


def test_cli_info(tmp_path):
    """NaN is reported, not refused; the picture takes the data's name."""
    a = arrays()
    a["data/action"][3, 1] = np.nan
    write_zarr(tmp_path / NAME, a)
    code, out, err = command("info", cwd=tmp_path, DRIFT_DATA=str(tmp_path))
    assert (code, err) == (0, "") and "3 episodes, 59 steps, length 9 / 19.7 / 30" in out
    assert "1 values are NaN" in out
    assert (tmp_path / NAME).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_info_of_minari(tmp_path, capsys):
    path = write_minari(tmp_path / "x")
    reward, ends = data.read(path)["reward"], [4, 5, 12]
    returns = [float(r.sum()) for r in np.split(reward, ends[:-1])]
    data.info(HOPPER, path)
    out = capsys.readouterr().out
    assert "3 episodes, 12 steps, length 1 / 4.0 / 7" in out and "obs (12, 11) float32" in out and "not drawn" in out
    assert f"return {min(returns):.1f} / {np.mean(returns):.1f} / {max(returns):.1f} (min / mean / max)" in out


def test_info_of_foreign_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a = {"observations": one((10, 5), (slice(None), 2), np.nan), "count": np.array(3), "name": np.array("x"),
         "flag": np.zeros(10, bool), "none": np.zeros((0, 2)), "episode_ends": np.array([4, 10])}
    data.save_npz(tmp_path / "f.npz", **a)
    data.info(PUSHT, tmp_path / "f.npz")
    out = capsys.readouterr().out
    assert "not pusht data" in out and "observations (10, 5)" in out and "not drawn" in out
    assert "10 values are NaN" in out and "constant" in out and not (tmp_path / "f.png").exists()


def test_info_where_nothing_can_be_written(tmp_path):
    data.save_npz(tmp_path / "f.npz", **good())
    refused(lambda: data.info(PUSHT, tmp_path / "f.npz", tmp_path / "f.npz" / "x.png"), "cannot write")


# ---- the official data

OFFICIAL = Path(os.environ.get("DRIFT_DATA", "")) / NAME        # read before the fixture takes it away


@pytest.mark.skipif(not os.environ.get("DRIFT_DATA") or not OFFICIAL.exists(),
                    reason=f"set DRIFT_DATA to a folder that holds {NAME}")
def test_official():
    ep = data.load(PUSHT, OFFICIAL)
    assert len(ep) == 206 and len(ep.obs) == len(ep.action) == 25650 and ep.lengths.min() == 49
    assert len(data.Chunks(ep, 2, 16, 8)) == 24208 == 25650 - 7 * 206
    keypoint = zarr.open_group(OFFICIAL, mode="r")["data/keypoint"][:]
    np.testing.assert_array_equal(ep.obs[:, :18], keypoint.reshape(-1, 18))
    data.verify(OFFICIAL, data.SHA256[NAME])
    with pytest.raises(BadInput):
        data.verify(OFFICIAL, {**data.SHA256[NAME], "meta/episode_ends": "0" * 64})


def test_minari_data_of_another_robot(tmp_path):
    """Walker2d and HalfCheetah have the same sizes: the recorded environment tells them apart."""
    L, rng = 12, np.random.default_rng(0)
    episode = {"observations": rng.normal(size=(L + 1, 17)), "actions": rng.uniform(-1, 1, (L, 6)),
               "rewards": np.ones(L), "terminations": np.zeros(L, bool), "truncations": np.arange(L) == L - 1, "seed": 3}
    with TASKS["walker2d"].env() as env:
        formats.save_minari(tmp_path / "w", [episode], env, "drift/walker2d/medium-v0")
    assert len(data.load(TASKS["walker2d"], tmp_path / "w")) == 1
    with pytest.raises(BadInput, match="recorded in Walker2d-v5: it is not halfcheetah data"):
        data.load(TASKS["halfcheetah"], tmp_path / "w")
