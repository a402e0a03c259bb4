"""files.py: atomic files, damaged and hostile ones, outputs that cannot be written."""

import fcntl
import os
import resource
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import files
from commands import BadInput
from files import atomic, load_torch, save_torch


def test_atomic(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    atomic(path, lambda f: f.write(b"old"))
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o644

    def halfway(f):
        f.write(b"new, but")
        f.flush()
        raise KeyboardInterrupt  # not even an Exception

    with pytest.raises(KeyboardInterrupt):
        atomic(path, halfway)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["x.txt"]
    atomic(path, lambda f: f.write(b"new"))
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["x.txt"]


def test_atomic_deletes_what_a_kill_left(tmp_path):
    """But not what another process is writing, nor files that are not its own."""
    left = tmp_path / ".x.txt.abcd_123"
    held = tmp_path / ".x.txt.abcd_456"
    others = [tmp_path / ".y.txt.abcd_123", tmp_path / ".x.txt.backup", tmp_path / ".x.txt.new"]
    for path in (left, held, *others):
        path.write_text("half")
        os.utime(path, (0, 0))
    with open(held) as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        atomic(tmp_path / "x.txt", lambda f: f.write(b"whole"))
    assert not left.exists() and held.exists() and all(path.exists() for path in others)
    fresh = tmp_path / ".x.txt.abcd_789"
    fresh.write_text("just made")
    atomic(tmp_path / "x.txt", lambda f: f.write(b"whole"))
    assert fresh.exists() and not held.exists()


def test_atomic_shows_no_half_file(tmp_path):
    """While it writes, the path still holds the old content."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    seen = []

    def write(f):
        f.write(b"new")
        f.flush()
        seen.append(path.read_bytes())

    atomic(path, write)
    assert seen == [b"old"] and path.read_bytes() == b"new"


def test_atomic_leaves_devices_and_links_alone(tmp_path):
    """A pipe gets the bytes and stays a pipe; a link stays a link, and its file is replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    atomic(pipe, lambda f: f.write(b"hello"))
    assert os.read(reader, 10) == b"hello" and pipe.is_fifo()
    os.close(reader)

    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("real") / "file")  # dangling at first
    for content in (b"old", b"new"):
        atomic(link, lambda f, content=content: f.write(content))
        assert link.is_symlink() and (tmp_path / "real" / "file").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "real"]
    assert os.listdir(tmp_path / "real") == ["file"]


def test_a_write_that_the_system_refuses_is_bad_input(tmp_path):
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(BadInput, match="/dev/full cannot be written"):
            atomic(full, lambda f: f.write(b"x"))
        assert full.is_char_device()
    (tmp_path / "file").write_bytes(b"old")
    for path in (tmp_path, tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(BadInput, match="cannot be written"):
            atomic(path, lambda f: f.write(b"x"))
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    """torch wraps the system's error in one of its own; a limit on file sizes stands in for it."""
    path = tmp_path / "x.pt"
    save_torch(path, {"w": torch.zeros(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(BadInput, match="cannot be written"):
            save_torch(path, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_torch(path)["w"].shape == (3,)
    assert os.listdir(tmp_path) == ["x.pt"]


def test_save_torch_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.pt"
    save_torch(path, {"step": 1, "w": torch.arange(3)})
    with pytest.raises(Exception, match="pickle"):
        save_torch(path, {"step": 2, "f": lambda: None})
    state = load_torch(path)
    assert state["step"] == 1 and state["w"].tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["x.pt"]


def test_load_torch_errors(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with pytest.raises(BadInput, match="no such file"):
        load_torch(tmp_path / "none.pt")
    with pytest.raises(BadInput, match="is a folder: pass the ckpt.pt in it"):
        load_torch(tmp_path)
    torch.save(Trap(), tmp_path / "trap.pt")
    (tmp_path / "text.pt").write_text("hello")
    save_torch(tmp_path / "cut.pt", {"w": torch.zeros(1000)})
    os.truncate(tmp_path / "cut.pt", 2000)
    for name in ("trap.pt", "text.pt", "cut.pt"):
        with pytest.raises(BadInput, match=f"{name} is not a checkpoint"):
            load_torch(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_load_torch_notices_damage(tmp_path):
    """64 bytes overwritten anywhere in a tensor, which torch itself would load."""
    path = tmp_path / "x.pt"
    save_torch(path, {"w": torch.ones(1000), "step": 3})
    good = path.read_bytes()
    middle = good.index(torch.ones(100).numpy().tobytes())
    for at in (middle, middle + 2000, middle + 3936):
        path.write_bytes(good[:at] + bytes(64) + good[at + 64 :])
        torch.load(path, weights_only=True)
        with pytest.raises(BadInput, match="x.pt is damaged"):
            load_torch(path)
    for at in range(0, len(good) - 64, 64):  # whatever is hit: the same content, or one line
        path.write_bytes(good[:at] + bytes(64) + good[at + 64 :])
        try:
            state = load_torch(path)
        except BadInput:
            continue
        assert state["step"] == 3 and torch.equal(state["w"], torch.ones(1000))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(4).as_strided((2, 3), (1, 1)),
        torch.zeros(2**20).to_sparse(),
    ],
    ids=["one number", "rows that overlap", "sparse"],
)
def test_tensors_that_claim_more_than_they_hold(tmp_path, tensor):
    save_torch(tmp_path / "x.pt", {"a": [1, ("b", {"c": tensor})]})
    with pytest.raises(BadInput, match="fewer numbers than they claim"):
        load_torch(tmp_path / "x.pt")


def test_load_torch_unpacks_no_bomb(tmp_path):
    """A compressed member is refused before it is unpacked."""
    path = tmp_path / "x.pt"
    save_torch(path, {"w": torch.zeros(3_000_000)})
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(BadInput, match="bomb.pt is damaged"):
        load_torch(tmp_path / "bomb.pt")


# ---- outputs -------------------------------------------------------------------------------------


def test_outputs_that_can_be_written(tmp_path):
    """Nothing is made by looking."""
    (tmp_path / "there.json").write_text("old")
    names = ("json", "png", "csv")
    args = Namespace(json=tmp_path / "there.json", png=tmp_path / "a" / "b" / "new.png", csv=None)
    files.check_output(args, *names)
    files.check_output(Namespace(json="/dev/null"), "json")
    files.check_folder(Namespace(out=tmp_path / "c" / "d"), "out")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("there.json", "old")]


@pytest.mark.parametrize(
    "path, message",
    [
        ("folder", "--json .*folder is a folder: name a file in it"),
        ("file/x.json", "Not a directory"),
        ("x" * 5000 + ".json", "File name too long"),
        ("x/" * 2500 + ".json", "File name too long"),
        ("a\0b.json", "null"),
        ("/proc/x.json", "cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path, path, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=message):
        files.check_output(Namespace(json=str(tmp_path / path)), "json")


@pytest.mark.parametrize("name, path", [("png", "x.pdf"), ("video", "x.mp4"), ("png", "x")])
def test_pictures_are_named_by_their_kind(tmp_path, name, path):
    with pytest.raises(BadInput, match=f"--{name} .*: the file is a (PNG|GIF), so name it"):
        files.check_output(Namespace(**{name: str(tmp_path / path)}), name)
    files.check_output(Namespace(**{name: "/dev/null"}), name)
