"""runs.py: run folders, logs that survive a kill and damage, the picture of scores."""

import csv
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import commands
import files
import runs
from commands import BadInput, cli
from conftest import ROOT
from files import save_torch
from runs import Run, read_log

# ---- run folders ---------------------------------------------------------------------------------


def test_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.sys, "argv", ["x.py", "--seed", "3"])
    run = Run(tmp_path / "r", {"seed": 3, "out": tmp_path})
    run.log(50, loss=torch.tensor(1.23456789), lr=1)
    on_disk = read_log(tmp_path / "r")  # at once
    assert on_disk == [{"step": 50, "loss": 1.23457, "lr": 1.0}]
    run.log(100, loss=0.5)
    run.log(100, score=0.25)
    assert run.column("loss") == ([50, 100], [1.23457, 0.5])
    assert run.column("score") == ([100], [0.25])
    run.close()
    with open(tmp_path / "r" / "log.csv") as f:
        table = list(csv.DictReader(f))
    assert table == [
        {"step": "50", "loss": "1.23457", "lr": "1.0", "score": ""},
        {"step": "100", "loss": "0.5", "lr": "", "score": ""},
        {"step": "100", "loss": "", "lr": "", "score": "0.25"},
    ]
    about = json.loads((tmp_path / "r" / "flags.json").read_text())
    assert about["flags"]["seed"] == 3 and about["command"] == ["x.py", "--seed", "3"]
    assert about["versions"]["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert {"python", "numpy", "gymnasium", "machine", "cores"} <= set(about["versions"])
    assert about["commit"] == runs.commit() != ""
    assert list((tmp_path / "r").glob("events.out.tfevents*"))


def test_commit(tmp_path, monkeypatch):
    """Twelve digits, a + where the tree has changes, and a word outside a checkout."""
    answers = {"rev-parse": "0123456789ab", "status": ""}
    monkeypatch.setattr(runs, "git", lambda *args: answers[args[0]])
    assert runs.commit() == "0123456789ab"
    answers["status"] = " M runs.py"
    assert runs.commit() == "0123456789ab+"
    monkeypatch.undo()
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "runs.py"))
    assert runs.commit() == "unknown"


def test_resume_drops_later_rows(tmp_path):
    run = Run(tmp_path, {"seed": 0})
    for step in (50, 100, 150):
        run.log(step, loss=step)
    run.close()
    with open(tmp_path / "log.jsonl", "a") as f:
        f.write('{"step": 200, "lo')  # killed while it wrote
    assert [row["step"] for row in read_log(tmp_path)] == [50, 100, 150]
    flags = (tmp_path / "flags.json").read_bytes()

    run = Run(tmp_path, {"seed": 9}, resume_step=100)
    run.log(150, loss=7)
    run.close()
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path)] == [
        (50, 50),
        (100, 100),
        (150, 7),
    ]
    assert len((tmp_path / "log.csv").read_text().split()) == 4
    assert (tmp_path / "flags.json").read_bytes() == flags  # how the run began stays

    Run(tmp_path, {}).close()  # a fresh run in the same folder starts empty
    assert read_log(tmp_path) == [] == read_log(tmp_path / "none")


def test_a_run_folder_is_not_begun_twice(tmp_path):
    args = Namespace(out=str(tmp_path / "new" / "run"), resume=False)
    runs.claim(args).release()
    save_torch(f"{args.out}/state.pt", {})
    with pytest.raises(BadInput, match="holds a run: go on with --resume"):
        runs.claim(args)
    args.resume = True
    Path(args.out, ".ckpt.pt.abcd_123").write_text("what a kill left")
    runs.claim(args).release()
    assert sorted(os.listdir(args.out)) == [".lock", "state.pt"]


HOLDER = """
import files, sys
lock = files.Lock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_writes_a_run_folder(tmp_path):
    """The second is told of the first, until that is killed."""
    args = Namespace(out=str(tmp_path), resume=False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BadInput, match=f"written by process {holder.pid} on .*: wait for it"):
            runs.claim(args)
        holder.kill()
    with runs.claim(args):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("name", ["flags.json", "ckpt.pt", "log.jsonl", ".lock"])
def test_a_folder_in_place_of_a_file_of_a_run(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match=f"{name} is not a file: name another run folder"):
        runs.claim(Namespace(out=str(tmp_path), resume=False))


def test_what_is_no_file_is_not_read(tmp_path):
    """A pipe would hang, a device would fill the memory, and so would a file that is a hole."""
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(BadInput, match="log.jsonl is missing, or is not a file"):
        read_log(tmp_path)
    with pytest.raises(BadInput, match="log.jsonl is not a file: name another run folder"):
        Run(tmp_path, {})
    (tmp_path / "flags.json").write_text("{}")
    os.truncate(tmp_path / "flags.json", 2**33)
    with pytest.raises(BadInput, match="far more than it could need"):
        files.read_bytes(tmp_path / "flags.json")


def test_damaged_lines_of_a_log_hide_no_others(tmp_path, capsys):
    lines = [
        b'{"step": 1, "loss": 2.0}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"loss": 3.0}',
        b'{"step": "2", "loss": 1.0}',
        b'{"step": 2, "loss": {}}',
        b'{"step": 3, "loss": NaN}',
        b'{"step": 4, "lo',
    ]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_log(tmp_path)] == [1, 3]
    assert "log.jsonl: 5 of 8 lines are no rows: left out" in capsys.readouterr().err


def test_load_state(tmp_path):
    """A run goes on with the flags that it was begun with, but for those that may change."""
    args = Namespace(out=str(tmp_path), lr=1e-3, dims=[8, 16], max_grad_norm=1.0, threads=1)
    save_torch(tmp_path / "state.pt", {"flags": commands.flags_of(args), "step": 5})
    args.threads = 2
    assert runs.load_state(args, "cpu", {"step"}, {"out", "threads"})["step"] == 5
    with pytest.raises(BadInput, match="begun with --threads 1, not 2"):
        runs.load_state(args, "cpu", {"step"}, {"out"})
    args.max_grad_norm = 2.0
    with pytest.raises(BadInput, match="begun with --max-grad-norm 1.0, not 2.0"):
        runs.load_state(args, "cpu", {"step"}, {"out", "threads"})
    for wrong in ({"step"}, {"step", "ema"}):
        if "ema" not in wrong:
            save_torch(tmp_path / "state.pt", {"step": 5})  # no flags
        with pytest.raises(BadInput, match="not the state of a run of this version"):
            runs.load_state(args, "cpu", wrong, {"out", "threads"})


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(BadInput, match="cannot be a run folder"):
        Run(tmp_path / "x", {})


# ---- the picture of scores -----------------------------------------------------------------------


def scored(folder, scores, **more):
    """A run folder that holds these scores, at steps 100, 200, ..."""
    run = Run(folder, {})
    for i, score in enumerate(scores, 1):
        run.log(100 * i, loss=1.0)
        run.log(100 * i, score=score, score_low=score - 0.1, score_high=score + 0.1, **more)
    run.close()
    return str(folder)


def test_seeds_are_averaged_where_all_have_a_score():
    a = [{"step": 100, "score": 0.2}, {"step": 200, "score": 0.6}]
    b = [{"step": 100, "score": 0.4}]
    assert runs.mean_scores([a, b], "step") == ([100], [pytest.approx(0.3)])
    assert [runs.without_seed(name) for name in ("dbp-seed0", "dbp_seed12", "dbp", "seed1")] == [
        "dbp",
        "dbp",
        "dbp",
        "seed1",
    ]


def test_command(tmp_path, monkeypatch):
    folders = [scored(tmp_path / f"a-seed{i}", [0.1 * i, 0.5]) for i in (1, 2)]
    command = ["runs.py", *folders, "--png", f"{tmp_path}/s.png", "--csv", f"{tmp_path}/s.csv"]
    monkeypatch.setattr(runs.sys, "argv", [*command, "--line", "paper, 100 epochs=0.87"])
    cli(runs.main)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "s.csv") as f:
        table = list(csv.DictReader(f))
    assert [(row["run"], row["step"], row["score"]) for row in table] == [
        ("a-seed1", "100", "0.1"),
        ("a-seed1", "200", "0.5"),
        ("a-seed2", "100", "0.2"),
        ("a-seed2", "200", "0.5"),
    ]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["none"], "none is not a run folder: it has no log.jsonl"),
        (["a-seed1", "./a-seed1"], "two of the run folders are called a-seed1: rename one"),
        (["a-seed1", "--line", "0.87"], "--line 0.87: give LABEL=SCORE"),
    ],
)
def test_command_with_bad_input(tmp_path, monkeypatch, flags, message):
    scored(tmp_path / "a-seed1", [0.1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.sys, "argv", ["runs.py", *flags])
    with pytest.raises(BadInput, match=message):
        runs.main()


def test_curves(tmp_path):
    """Panels without rows are left out; those with are drawn."""
    scored(tmp_path / "r", [0.1, 0.5])
    run = Run(tmp_path / "r", {}, resume_step=1000)
    panels = [("loss", ["loss"], "log"), ("gone", ["none"], "log"), ("score", ["score"], "linear")]
    runs.curves(run, tmp_path / "c.png", panels)
    run.close()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
