"""runs.py: atomic files, logs that survive a kill, one line and exit code 2 for bad input."""
import csv
import json
import os

import pytest
import torch

import runs
from runs import BadInput, Run, atomic, cli, load_torch, read_log, save_torch


def test_atomic(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    atomic(path, lambda f: f.write(b"old"))
    assert path.read_bytes() == b"old" and path.stat().st_mode & 0o777 == 0o644

    def halfway(f):
        f.write(b"new, but")
        f.flush()
        raise KeyboardInterrupt                 # not even an Exception

    with pytest.raises(KeyboardInterrupt):
        atomic(path, halfway)
    assert path.read_bytes() == b"old" and os.listdir(path.parent) == ["x.txt"]
    atomic(path, lambda f: f.write(b"new"))
    assert path.read_bytes() == b"new" and os.listdir(path.parent) == ["x.txt"]


def test_atomic_shows_no_half_file(tmp_path):
    """While it writes, the path still holds the old content."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    seen = []
    atomic(path, lambda f: (f.write(b"new"), f.flush(), seen.append(path.read_bytes())))
    assert seen == [b"old"] and path.read_bytes() == b"new"


def test_save_torch_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.pt"
    save_torch(path, {"step": 1, "w": torch.arange(3)})
    with pytest.raises(Exception):
        save_torch(path, {"step": 2, "f": lambda: None})        # cannot be pickled
    state = load_torch(path)
    assert state["step"] == 1 and state["w"].tolist() == [0, 1, 2] and os.listdir(tmp_path) == ["x.pt"]


def test_load_torch_errors(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with pytest.raises(BadInput, match="no such file"):
        load_torch(tmp_path / "none.pt")
    with pytest.raises(BadInput, match="no such file"):
        load_torch(tmp_path)
    torch.save(Trap(), tmp_path / "trap.pt")
    (tmp_path / "text.pt").write_text("hello")
    save_torch(tmp_path / "cut.pt", {"w": torch.zeros(1000)})
    os.truncate(tmp_path / "cut.pt", 2000)
    for name in ("trap.pt", "text.pt", "cut.pt"):
        with pytest.raises(BadInput, match=f"{name} is not a checkpoint"):
            load_torch(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.sys, "argv", ["x.py", "--seed", "3"])
    run = Run(tmp_path / "r", {"seed": 3, "out": tmp_path})
    run.log(50, loss=torch.tensor(1.23456789), lr=1)
    assert read_log(tmp_path / "r") == [{"step": 50, "loss": 1.23457, "lr": 1.0}]      # on disk at once
    run.log(100, loss=0.5)
    run.log(100, score=0.25)
    assert run.column("loss") == ([50, 100], [1.23457, 0.5]) and run.column("score") == ([100], [0.25])
    run.close()
    with open(tmp_path / "r" / "log.csv") as f:
        table = list(csv.DictReader(f))
    assert table == [{"step": "50", "loss": "1.23457", "lr": "1.0", "score": ""},
                     {"step": "100", "loss": "0.5", "lr": "", "score": ""},
                     {"step": "100", "loss": "", "lr": "", "score": "0.25"}]
    about = json.loads((tmp_path / "r" / "flags.json").read_text())
    assert about["flags"]["seed"] == 3 and about["command"] == ["x.py", "--seed", "3"]
    assert about["versions"]["torch"] == torch.__version__.split("+")[0] or about["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "gymnasium", "machine", "cores"} <= set(about["versions"])
    assert about["commit"] == runs.commit() != ""
    assert [p.name for p in (tmp_path / "r").glob("events.out.tfevents*")]


def test_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    assert runs.commit() == "unknown"


def test_resume_drops_later_rows(tmp_path):
    run = Run(tmp_path, {"seed": 0})
    for step in (50, 100, 150):
        run.log(step, loss=step)
    run.close()
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 200, "lo')                             # killed while it wrote
    assert [r["step"] for r in read_log(tmp_path)] == [50, 100, 150]
    flags = (tmp_path / "flags.json").read_bytes()
    run = Run(tmp_path, {"seed": 9}, resume_step=100)
    run.log(150, loss=7)
    run.close()
    assert read_log(tmp_path) == [{"step": 50, "loss": 50}, {"step": 100, "loss": 100}, {"step": 150, "loss": 7}]
    assert len((tmp_path / "log.csv").read_text().split()) == 4
    assert (tmp_path / "flags.json").read_bytes() == flags       # the record of how the run began stays
    Run(tmp_path, {}).close()                                    # a fresh run in the same folder starts empty
    assert read_log(tmp_path) == [] == read_log(tmp_path / "none")


def test_cli(capsys):
    def bad():
        raise BadInput("first\n  second")

    with pytest.raises(SystemExit) as e:
        cli(bad)
    assert e.value.code == 2 and capsys.readouterr() == ("", "error: first second\n")
    cli(lambda: print("fine"))
    assert capsys.readouterr() == ("fine\n", "")
    with pytest.raises(ZeroDivisionError):                       # a bug is not bad input
        cli(lambda: 1 / 0)
