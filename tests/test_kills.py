"""tests/kills.py: what it compares by notices a difference, and what a kill leaves half written."""

import copy
import sys
import time

import numpy as np
import pytest
import torch

from files import atomic, load_torch, save_torch
from formats import save_npz
from kills import alive, differences, half_written, result, start, workers_left
from made_up import make_policy

FOUND = {
    "ckpt.pt": {"weights": {"w": torch.arange(3.0)}, "step": 3, "minutes": 1.0},
    "x.npz": {"action": np.zeros((2, 2), np.float32)},
    "log.jsonl": [{"step": 1, "loss": 0.5, "minutes": 1.0}, {"step": 2, "loss": float("nan")}],
}


def change(path, value):
    """FOUND with another value at a place."""
    other = copy.deepcopy(FOUND)
    *outer, last = path
    place = other
    for key in outer:
        place = place[key]
    place[last] = value
    return other


def test_times_are_no_difference():
    assert differences(FOUND, copy.deepcopy(FOUND)) == []
    assert differences(FOUND, change(("ckpt.pt", "minutes"), 2.0)) == []
    assert differences(FOUND, change(("log.jsonl", 0, "minutes"), 2.0)) == []


@pytest.mark.parametrize(
    "path, value",
    [
        (("ckpt.pt", "weights", "w"), torch.tensor([0.0, 1.0, 2.0000002])),
        (("ckpt.pt", "weights", "w"), torch.arange(3)),
        (("ckpt.pt", "weights", "v"), torch.zeros(1)),
        (("ckpt.pt", "step"), 3.0),
        (("x.npz", "action"), -np.zeros((2, 2), np.float32)),
        (("x.npz", "action"), np.zeros((1, 4), np.float32)),
        (("log.jsonl", 0, "loss"), 0.5000001),
        (("log.jsonl",), FOUND["log.jsonl"][:1]),
        (("best.pt",), {}),
    ],
)
def test_a_difference_is_found(path, value):
    (found,) = differences(FOUND, change(path, value))
    assert "/" + "/".join(map(str, path)) in found


def test_what_a_kill_may_leave(tmp_path):
    """Hidden files are no half-written ones, but are told of in the result; a cut file is one."""
    make_policy((8,), "cpu").save(tmp_path / "ckpt.pt")
    save_npz(tmp_path / "x.npz", action=np.zeros(3))
    atomic(tmp_path / "x.json", lambda f: f.write(b"{}"))
    (tmp_path / ".ckpt.pt.ab12cd34").write_bytes(b"half")
    assert half_written(tmp_path) == []
    assert result(tmp_path)["temporary file .ckpt.pt.ab12cd34"]
    for name in ("ckpt.pt", "x.npz", "x.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert [text.split()[0] for text in half_written(tmp_path)] == [name]
        (tmp_path / name).write_bytes(whole)
    before = result(tmp_path)
    state = load_torch(tmp_path / "ckpt.pt")
    next(iter(state["weights"].values())).view(-1)[0] += 1e-6
    save_torch(tmp_path / "ckpt.pt", state)
    assert len(differences(before, result(tmp_path))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
def test_a_worker_that_lives_on_is_found(tmp_path):
    """And is ended."""
    code = "import os, time; print(os.fork(), flush=True); time.sleep(60)"
    p = start([sys.executable, "-c", code], tmp_path / "log", str(tmp_path))
    while len(alive(str(tmp_path))) < 2:
        assert p.poll() is None
        time.sleep(0.01)
    p.kill()
    p.wait()
    assert workers_left(str(tmp_path), grace=0.2) == 1
    assert alive(str(tmp_path)) == []
