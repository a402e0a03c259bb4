"""pictures.py: the cache is made once, mapped, checked, and made again where it is not right."""

import multiprocessing
import os
import tracemalloc

import h5py
import numpy as np
import pytest

import pictures
from commands import BadInput
from formats import names_in, read, save_npz, shapes
from pictures import HEADER, cached_pictures, mapped
from test_formats import film, refused, write_zarr, zero_link

SHAPE = (40, 16, 16, 3)
NBYTES = 40 * 16 * 16 * 3


@pytest.fixture(autouse=True)
def no_picture_is_small(monkeypatch, tmp_path):
    """All pictures get a file, and the user's folder of caches is empty."""
    monkeypatch.setattr(pictures, "SMALL", 0)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "user"))


class Maker:
    """Makes the pictures of film() in blocks, and counts how often."""

    def __init__(self, content=None):
        self.content = film() if content is None else content
        self.calls = 0

    def __call__(self):
        self.calls += 1
        for first in range(0, len(self.content), 7):
            yield self.content[first : first + 7]


def keep(source, make, key="a", **kw):
    """The pictures of the camera "front" from their cache."""
    return cached_pictures(source, "front", SHAPE, key, make, **kw)


# ---- once, and mapped ----------------------------------------------------------------------------


def test_made_once_and_mapped(tmp_path, capsys):
    make = Maker()
    for _ in range(2):
        found = keep(tmp_path / "x.npz", make)
        np.testing.assert_array_equal(found, film())
        assert found.dtype == np.uint8 and found.shape == SHAPE and type(found) is np.ndarray
        assert not found.flags.writeable and not found.flags.owndata  # the file's own pages
    assert make.calls == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "x.npz: front (40, 16, 16, 3) are written as bytes, once" in lines[0]
    assert (tmp_path / "x.npz.front.pictures").stat().st_size == HEADER + NBYTES + 4 * 41


def test_small_pictures_get_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SMALL", NBYTES)
    make = Maker(film().astype("f4"))
    for _ in range(2):
        np.testing.assert_array_equal(keep(tmp_path / "x.npz", make), film())
    assert make.calls == 2 and list(tmp_path.iterdir()) == []


def test_pictures_are_not_in_memory_to_make_the_cache(tmp_path):
    """Of 15 MB of pictures, given as floats, eight are in memory at a time, also when checked."""
    shape = (4800, 32, 32, 3)

    def make():
        for seed in range(600):
            yield film(8, 32, seed).astype("f4")

    tracemalloc.start()
    for _ in range(2):
        found = cached_pictures(tmp_path / "x.npz", "front", shape, "a", make)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 < found.nbytes / 10, peak
    np.testing.assert_array_equal(found[-8:], film(8, 32, 599))


def build_slowly(folder, queue):
    """In another process: keep pictures, and tell how often they were made."""
    pictures.SMALL = 0
    make = Maker()
    found = keep(folder / "x.npz", make)
    queue.put((make.calls, bool((found == film()).all())))


def test_processes_make_it_together(tmp_path):
    """Of processes that start at once, one makes the cache and the others wait for it."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=build_slowly, args=(tmp_path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    told = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(told) == [(0, True), (0, True), (1, True)]


# ---- damage --------------------------------------------------------------------------------------


def flipped(at):
    """A change of the byte at a place."""

    def change(content):
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return change


DAMAGE = {
    "empty": (lambda content: b"", "is not of this data, or is damaged"),
    "text": (lambda content: b"hello" * 9999, "is not of this data, or is damaged"),
    "header": (flipped(30), "is not of this data, or is damaged"),
    "cut in its header": (lambda content: content[:100], "is not of this data, or is damaged"),
    "cut": (lambda content: content[: len(content) // 2], "bytes instead of"),
    "cut by a byte": (lambda content: content[:-1], "bytes instead of"),
    "longer": (lambda content: content + b"x", "bytes instead of"),
    "a first byte": (flipped(HEADER), "picture 0 is not what was written"),
    "a byte": (flipped(HEADER + 7 * 768 + 5), "picture 7 is not what was written"),
    "a last byte": (flipped(HEADER + NBYTES - 1), "picture 39 is not what was written"),
    "a checksum": (flipped(HEADER + NBYTES + 9), "its checksums are wrong"),
    "the last checksum": (flipped(HEADER + NBYTES + 160), "its checksums are wrong"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_made_again(tmp_path, capsys, name):
    change, words = DAMAGE[name]
    keep(tmp_path / "x.npz", Maker())
    path = tmp_path / "x.npz.front.pictures"
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    capsys.readouterr()
    make = Maker()
    np.testing.assert_array_equal(keep(tmp_path / "x.npz", make), film())
    assert make.calls == 1 and path.read_bytes() == whole
    line = capsys.readouterr().err.splitlines()[0]
    assert str(path) in line and words in line and line.endswith(": it is made again")


def test_pictures_are_those_of_the_file_that_was_checked(tmp_path, monkeypatch):
    """Whatever another process puts in its place between the check and the mapping."""
    keep(tmp_path / "x.npz", Maker())
    real = pictures.fault

    def replaced(file, *how):
        wrong = real(file, *how)
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "fault", real)
            keep(tmp_path / "x.npz", Maker(255 - film()), key="another")
        return wrong

    monkeypatch.setattr(pictures, "fault", replaced)
    np.testing.assert_array_equal(keep(tmp_path / "x.npz", Maker()), film())


def test_a_cache_of_other_data_is_made_again(tmp_path):
    keep(tmp_path / "x.npz", Maker())
    other = film(seed=1)
    found = keep(tmp_path / "x.npz", Maker(other), key="b")
    np.testing.assert_array_equal(found, other)
    shape = (20, 32, 16, 3)
    found = cached_pictures(tmp_path / "x.npz", "front", shape, "b", Maker(other.reshape(shape)))
    np.testing.assert_array_equal(found, other.reshape(shape))


def test_a_file_larger_than_memory_is_looked_at_here_and_there(tmp_path, monkeypatch):
    """It is neither refused nor read: of 40 pictures the 14 that are spread over it are checked."""
    monkeypatch.setattr(pictures, "SAMPLE", 14)
    make = Maker()
    keep(tmp_path / "x.npz", make, max_gb=1e-6)
    path = tmp_path / "x.npz.front.pictures"
    content = bytearray(path.read_bytes())
    content[HEADER + 768] ^= 1  # of picture 1, which lies between those
    path.write_bytes(content)
    keep(tmp_path / "x.npz", make, max_gb=1e-6)
    assert make.calls == 1
    content[HEADER + 39 * 768] ^= 1
    path.write_bytes(content)
    keep(tmp_path / "x.npz", make, max_gb=1e-6)
    assert make.calls == 2


def test_what_is_not_finished_leaves_nothing(tmp_path):
    """An error in the middle, here also of a bad picture, leaves no file but the lock's."""
    bad = film().astype("f4")
    bad[37, 0, 0, 0] = 0.5

    def fails():
        yield film()[:30]
        raise ZeroDivisionError

    words = ("x.npz: front (40, 16, 16, 3) float32 has the value 0.5 in picture 37",)
    refused(lambda: keep(tmp_path / "x.npz", Maker(bad)), *words)
    with pytest.raises(ZeroDivisionError):
        keep(tmp_path / "x.npz", fails)
    with pytest.raises(ValueError, match="30 pictures were made"):
        keep(tmp_path / "x.npz", lambda: iter([film()[:30]]))
    assert [path.name for path in tmp_path.iterdir()] == [".x.npz.front.pictures.lock"]


# ---- places --------------------------------------------------------------------------------------


def test_read_only_data_is_left_alone(tmp_path, monkeypatch):
    """Its cache goes to the user's folder, also for root; sources of one name have two files."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o555)
        make = Maker(film(seed=ord(name)))
        for _ in range(2):
            found = keep(tmp_path / name / "x.npz", make, key=name)
            np.testing.assert_array_equal(found, film(seed=ord(name)))
        assert make.calls == 1 and list((tmp_path / name).iterdir()) == []
    made = list((tmp_path / "user" / "pictures").glob("[!.]*"))
    assert len(made) == 2 and all(path.name.startswith("x.npz.") for path in made)
    monkeypatch.delenv("DRIFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    keep(tmp_path / "a" / "x.npz", Maker())
    assert len(list((tmp_path / "xdg" / "drift" / "pictures").glob("[!.]*"))) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, zero_link], ids=["pipe", "folder", "device"])
def test_what_is_no_file_in_the_place_of_a_cache(tmp_path, make):
    """Nothing waits for it, and it stays; the cache goes to the user's folder."""
    make(tmp_path / "x.npz.front.pictures")
    np.testing.assert_array_equal(keep(tmp_path / "x.npz", Maker()), film())
    assert not (tmp_path / "x.npz.front.pictures").is_file()
    assert len(list((tmp_path / "user" / "pictures").glob("[!.]*"))) == 1


def test_without_room(tmp_path, monkeypatch):
    """Then pictures are kept in memory, as far as --max-gb allows."""
    usage = pictures.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pictures.shutil, "disk_usage", lambda _: usage._replace(free=NBYTES))
    np.testing.assert_array_equal(keep(tmp_path / "x.npz", Maker()), film())
    assert list(tmp_path.iterdir()) == []
    words = ("front (40, 16, 16, 3) take 3.07e-05 GB", "no room in", "set DRIFT_CACHE")
    refused(lambda: keep(tmp_path / "x.npz", Maker(), max_gb=3e-5), *words)


def test_a_camera_cannot_name_another_folder(tmp_path):
    """The names of arrays come from files."""
    save_npz(tmp_path / "x.npz", **{"../../up": film()})
    found = read(tmp_path / "x.npz")
    np.testing.assert_array_equal(found["../../up"], film())
    assert (tmp_path / "x.npz.______up.pictures").is_file()


# ---- from files of all kinds ---------------------------------------------------------------------


def write_robomimic(path, lengths=(5, 0, 7), content=None, cameras=("front", "hand"), dtype="u1"):
    """A file of robomimic; its demonstrations are numbered 0, 5, 10, ... and gzipped.

    A demonstration of length 0 is left out. Returns what `read` should give.
    """
    n = sum(lengths)
    rng = np.random.default_rng(0)
    arrays = {"state": rng.normal(size=(n, 4)).astype("f4")}
    for seed, name in enumerate(cameras):
        arrays[name] = film(n, 16, seed) if content is None else content
    arrays["action"] = rng.normal(size=(n, 2)).astype("f4")
    arrays["reward"] = np.arange(n, dtype="f4")
    places = {"action": "actions", "reward": "rewards"}
    with h5py.File(path, "w") as f:
        first = 0
        for i, L in enumerate(lengths):
            for name, a in arrays.items():
                place = f"data/demo_{5 * i}/" + places.get(name, f"obs/{name}")
                rows = a[first : first + L].astype(dtype if a.ndim == 4 else "f8")
                if L:
                    f.create_dataset(place, data=rows, compression="gzip")
            first += L
    arrays["episode_ends"] = np.cumsum([L for L in lengths if L])
    return arrays


def write(path, content):
    """Write the array img in the format that the path's name tells. Returns the array's name."""
    if path.suffix == ".zarr":
        write_zarr(path, {"data/img": content})
    elif path.suffix == ".hdf5":
        write_robomimic(path, (len(content),), content, ("img",), content.dtype)
    else:
        save = np.savez if path.stem == "stored" else np.savez_compressed
        save(path, img=np.asfortranarray(content) if path.stem == "fortran" else content)


FILES = ("x.npz", "stored.npz", "fortran.npz", "x.zarr", "x.hdf5")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_every_format_is_cached(tmp_path, name, dtype):
    """The cache is used while the file is what it was, and not after it has changed."""
    path = tmp_path / name
    content = film(150).astype(dtype)
    write(path, content)
    assert shapes(path)["img"] == ((150, 16, 16, 3), np.dtype(dtype)) and "img" in names_in(path)
    cache = tmp_path / f"{name}.img.pictures"
    found = read(path, ["img"])["img"]
    np.testing.assert_array_equal(found, content)
    assert found.dtype == np.uint8 and not found.flags.owndata and cache.is_file()
    before = cache.stat().st_ino
    np.testing.assert_array_equal(read(path, ["img"])["img"], content)
    assert cache.stat().st_ino == before
    content[149, 15, 15, 2] -= content[149, 15, 15, 2] > 3  # the last number
    content[0, 0, 0, 0] = 77 if content[0, 0, 0, 0] != 77 else 78
    if path.is_dir():
        path.rename(tmp_path / "old")
    write(path, content)
    np.testing.assert_array_equal(read(path, ["img"])["img"], content)
    assert cache.stat().st_ino != before


@pytest.mark.parametrize("name", FILES)
def test_damaged_sources(tmp_path, name):
    """A file whose pictures cannot be unpacked is told of in one line, and nothing is kept."""
    path = tmp_path / name
    write(path, film(150))
    if path.is_dir():  # a chunk of Blosc has no checksum, but a length
        chunk = path / "data/img/5.0.0.0"
        chunk.write_bytes(chunk.read_bytes()[:-1])
    else:
        whole = bytearray(path.read_bytes())
        middle = len(whole) // 2
        whole[middle : middle + 64] = bytes(64)
        path.write_bytes(whole)
    with pytest.raises(BadInput) as e:
        read(path, ["img"])
    assert name in str(e.value) and "damaged" in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / f"{name}.img.pictures").exists()


def test_large_pictures_do_not_count(tmp_path):
    """They lie in a file: --max-gb is for what is in memory at once, also of their source."""
    numbers = np.zeros((150, 2), "f4")
    save_npz(tmp_path / "x.npz", img=film(150), action=numbers)
    one_block = (64 * 768 + numbers.nbytes) / 1e9
    assert len(read(tmp_path / "x.npz", max_gb=one_block)) == 2
    refused(lambda: read(tmp_path / "x.npz", max_gb=one_block * 0.99), "declares", "--max-gb")
    write_zarr(tmp_path / "x.zarr", {"data/img": film(150)})
    one_chunk = 16 * 768 / 1e9
    assert len(read(tmp_path / "x.zarr", max_gb=one_chunk)) == 1
    refused(lambda: read(tmp_path / "x.zarr", max_gb=one_chunk * 0.99), "declares", "--max-gb")


# ---- robomimic -----------------------------------------------------------------------------------


def test_robomimic(tmp_path):
    """Demonstrations are in the order of their numbers, not of their names."""
    wanted = write_robomimic(tmp_path / "x.hdf5", (5, 0, 7, 3))
    found = read(tmp_path / "x.hdf5")
    assert sorted(found) == sorted(wanted) == sorted(names_in(tmp_path / "x.hdf5"))
    for name, a in wanted.items():
        np.testing.assert_array_equal(found[name], a)
        assert found[name].dtype == (np.int64 if name == "episode_ends" else a.dtype)
    assert list(read(tmp_path / "x.hdf5", ["state", "no"])) == ["state"]
    assert shapes(tmp_path / "x.hdf5")["hand"] == ((15, 16, 16, 3), np.uint8)
    assert mapped(tmp_path / "x.hdf5.hand.pictures", (15, 16, 16, 3)).sum() == wanted["hand"].sum()


def test_filters_of_robomimic(tmp_path):
    """They choose demonstrations, in the order of their numbers; pictures have their own cache."""
    path = tmp_path / "x.hdf5"
    wanted = write_robomimic(path, (5, 0, 7, 3))
    with h5py.File(path, "r+") as f:
        f["mask/some"] = np.array([b"demo_15", b"demo_0"])
    whole = read(path)
    some = read(path, filter_key="some")
    rows = np.r_[0:5, 12:15]
    for name in ("state", "action", "front"):
        np.testing.assert_array_equal(whole[name], wanted[name])
        np.testing.assert_array_equal(some[name], wanted[name][rows])
    assert some["episode_ends"].tolist() == [5, 8]


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("no", None, ["has no filter no: it has x"]),
        ("../data", None, ["has no filter ../data: it has x"]),
        ("x", np.array([b"demo_3"]), ["/mask/x lists demonstrations that are not there: demo_3"]),
        ("x", np.array([b"demo_0" + b"0" * 100]), ["is no list of demonstrations' names"]),
        ("x", np.array([[b"demo_0"]]), ["is no list of demonstrations' names"]),
        ("x", np.array([0]), ["/mask/x is refused: dtype int64"]),
        ("x", np.array([], "S6"), ["lists no demonstration"]),
        ("x", h5py.SoftLink("/data/demo_0/actions"), ["/mask/x is refused: it is a link"]),
    ],
)
def test_bad_filters(tmp_path, name, value, words):
    path = tmp_path / "x.hdf5"
    write_robomimic(path, (5, 7))
    with h5py.File(path, "r+") as f:
        f["mask/x"] = np.array([b"demo_0"]) if value is None else value
    refused(lambda: read(path, filter_key=name), "x.hdf5", *words)


def test_files_without_filters(tmp_path):
    write_robomimic(tmp_path / "x.hdf5", (5, 7))
    refused(lambda: read(tmp_path / "x.hdf5", filter_key="train"), "no filter train: it has none")
    write(tmp_path / "x.npz", film(3))
    words = "--filter: ", "x.npz is no HDF5 file of robomimic, which alone has filters"
    refused(lambda: read(tmp_path / "x.npz", filter_key="train"), *words)


def without(name):
    """A change of a file: something is deleted."""

    def change(f):
        del f[name]

    return change


def put(name, value):
    """A change of a file: an array is another one, or a link."""

    def change(f):
        if name in f:
            del f[name]
        f[name] = value

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (without("data/demo_5"), None),
        (without("data/demo_0/rewards"), ["reward of demo_5 is not as in demo_0"]),
        (without("data/demo_5/obs/hand"), ["hand of demo_5 is not as in demo_0: demonstrations"]),
        (without("data/demo_5/obs"), ["/data/demo_5/obs is missing"]),
        (without("data/demo_5/actions"), ["/data/demo_5/actions is missing"]),
        (put("data/demo_0/obs/front", np.zeros((4, 16, 16, 3), "u1")), ["different lengths"]),
        (put("data/demo_5/obs/front", np.zeros((7, 16, 8, 3), "u1")), ["front of demo_5 is not"]),
        (put("data/demo_0/obs/front", np.full((5, 16, 16, 3), 0.5)), ["has the value 0.5 in pic"]),
        (put("data/demo_0/obs/front", np.full((5, 16, 16, 3), np.nan)), ["has the value nan in"]),
        (put("data/demo_0/actions", np.zeros((0, 2))), ["different lengths or are empty"]),
        (put("data/demo_0/actions", np.float32(3)), ["different lengths or are empty"]),
        (put("data/demo_0/obs/action", np.zeros((5, 2))), ["an observation is named action"]),
        (put("data/demo_0/obs/x", np.array([b"text"] * 5)), ["obs/x is refused: dtype |S4"]),
        (put("data/demo_0/obs/front", h5py.ExternalLink("y.hdf5", "/x")), ["it is a link"]),
        (put("data/demo_0", h5py.SoftLink("/data/demo_5")), ["/data/demo_0 is refused: it is a"]),
        (put("data", np.zeros(3)), ["data is a dataset, not a group"]),
    ],
)
def test_bad_robomimic(tmp_path, change, words):
    """One line each; a demonstration that is not there is none that is wrong."""
    write_robomimic(tmp_path / "x.hdf5", (5, 7))
    with h5py.File(tmp_path / "x.hdf5", "r+") as f:
        change(f)
    if words is None:
        assert read(tmp_path / "x.hdf5")["episode_ends"].tolist() == [5]
    else:
        refused(lambda: read(tmp_path / "x.hdf5"), "x.hdf5", *words)


def test_robomimic_without_demonstrations(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as f:
        f.create_group("data/mask")
    for call in (read, shapes, names_in):
        refused(lambda call=call: call(tmp_path / "x.hdf5"), "holds no data/demo_0, data/demo_1")
