"""fuzz.py, the command that damages files: it tells failures, and finds none in some hundred cases.

The run of an hour, with checkpoints and the states of trainings, is the command's.
"""

import dataclasses
import os
import signal
import time

import pytest

import fuzz
import mutations
from commands import BadInput

SHORT = ["npz", "zarr", "minari", "adroit", "archive"]


def test_nothing_is_found(tmp_path, capsys):
    """Some hundred cases of demonstrations. A hang is told by computing and waiting alone."""
    fuzz.main(["--cases", "150", "--targets", *SHORT, "--out", str(tmp_path), "--limit", "60"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: [int(n) for n in row[1:]] for row in rows if row[0] in SHORT}
    assert sorted(table) == sorted(SHORT) and sum(sum(row[:-1]) for row in table.values()) == 150
    assert all(row[0] > 0 and row[1] > 0 for row in table.values())  # accepted, refused
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def bytes_alone(monkeypatch):
    """The bytes of npz files are changed, and nothing else is done to them."""
    ways = (("*.npz", (mutations.damage_bytes,)),)
    changed = dataclasses.replace(fuzz.TARGETS["npz"], damage=ways)
    monkeypatch.setitem(fuzz.TARGETS, "npz", changed)


def test_a_case_is_fixed_by_its_number(tmp_path, bytes_alone):
    """Same damage from the same seed and number; other damage from others."""
    fuzz.make_npz(tmp_path)
    found = []
    for number in (3, 3, 4):
        target, rng = fuzz.case_of(0, number, ["npz"])
        case = tmp_path / str(len(found))
        fuzz.shutil.copytree(tmp_path / target, case)
        fuzz.damage(case, target, rng)
        found.append((case / "x.npz").read_bytes())
    assert found[0] == found[1] != found[2]


def raises(e, cause=None):
    """A reader that raises an error over another one."""

    def read():
        raise e from cause

    return read


@pytest.mark.parametrize(
    "call, outcome",
    [
        (int, "accepted"),
        (raises(BadInput("one line")), "refused"),
        (raises(BadInput("load it with allow_pickle=True")), "advice"),
        (raises(KeyError("x")), "traceback"),
        (raises(SystemExit(2)), "traceback"),
        (raises(MemoryError()), "memory"),
        (raises(BadInput("is damaged"), MemoryError()), "memory"),
    ],
)
def test_what_comes_of_a_call(call, outcome):
    assert fuzz.outcome_of(call)[0] == outcome


def broken_worker(connection, *about):
    """A worker that fails at each case in another way."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    connection.send([])
    while (number := connection.recv()) is not None:
        connection.send(("npz", "damaged"))
        if number == 0:
            time.sleep(1000)
        elif number == 1:
            fuzz.held = b"x" * (5 * 10**8)
            time.sleep(1000)
        elif number == 2:
            os.abort()
        connection.send(("traceback" if number == 3 else "accepted", "KeyError: x", 7))


def test_the_watch(tmp_path, monkeypatch, capsys, bytes_alone):
    """What hangs, grows or crashes is ended, kept and counted, and the next case goes on."""
    monkeypatch.setattr(fuzz, "work", broken_worker)
    monkeypatch.setattr(fuzz, "KILL", 4 * 10**8)
    (tmp_path / "work" / "files").mkdir(parents=True)
    fuzz.make_npz(tmp_path / "work" / "files")
    (tmp_path / "work" / "trace.txt").write_text("where it was")
    watch = fuzz.Watch(tmp_path / "work", tmp_path / "out", 0, ["npz"], 1.0)
    outcomes = [watch.run(number)[0] for number in range(5)]
    watch.stop()
    assert outcomes == ["hang", "memory", "crash", "traceback", "accepted"]
    assert watch.failures() == 4 and capsys.readouterr().out.count("\n") == 4
    kept = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert kept == [f"seed0-case{n}-npz-{name}" for n, name in enumerate(outcomes[:4])]
    for name in kept:
        assert "damaged" in (tmp_path / "out" / name / "outcome.txt").read_text()
        assert (tmp_path / "out" / name / "x.npz").exists()
    row = watch.summary().splitlines()[1].split()
    assert row[:2] == ["npz", "1"] and row[2:8] == ["0", "0", "1", "1", "1", "1"]
