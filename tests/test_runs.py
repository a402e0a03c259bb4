"""runs.py: atomic files, logs that survive a kill, one line and exit code 2 for bad input, help."""

import csv
import json
import math
import os
import resource
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import runs
from conftest import ROOT
from runs import BadInput, Parser, Run, atomic, cli, load_torch, read_log, save_torch

# ---- files ---------------------------------------------------------------------------------------


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


# ---- how a script ends ---------------------------------------------------------------------------

SCRIPT = """
import sys
import runs

def main():
    for _ in range({lines}):
        print("x" * 100)
    {then}

runs.cli(main)
"""


def script(tmp_path, then="pass", lines=1, flags=()):
    """The command of a script that prints lines and then does something."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(lines=lines, then=then))
    return [sys.executable, *flags, path]


def ended(command, **kw):
    """Exit code and stderr of a command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=env, timeout=60, **kw)
    return done.returncode, done.stderr


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_has_gone(tmp_path, lines, flags):
    """`python x.py | head -1` ends without a word."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        found = ended(script(tmp_path, lines=lines, flags=flags), stdout=write_end)
    finally:
        os.close(write_end)
    assert found == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("then", ["pass", "sys.exit(0)"])
@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_full_standard_output(tmp_path, lines, then):
    with open("/dev/full", "w") as full:
        code, err = ended(script(tmp_path, then, lines), stdout=full)
    assert code == 2 and err.startswith("error: output cannot be written (No space left on device)")
    assert err.count("\n") == 1


def test_a_closed_standard_output(tmp_path):
    """Bad input still costs its line, and other errors keep their traceback."""
    with open(os.devnull, "w") as nowhere:
        code, err = ended(script(tmp_path, "raise runs.BadInput('no\\nway')"), stdout=nowhere)
        assert (code, err) == (2, "error: no way\n")
        code, err = ended(script(tmp_path, "raise BrokenPipeError('a worker')"), stdout=nowhere)
        assert code == 1 and "Traceback" in err and "a worker" in err
    code, err = ended(["sh", "-c", '"$@" >&-', "sh", *script(tmp_path)])
    assert (code, err) == (0, "")


@pytest.mark.parametrize("name", ["meta", "meta:0", "nonsense", "", "vulkan"])
def test_devices_that_cannot_be_used(name):
    with pytest.raises(BadInput, match="cannot be used here") as e:
        runs.check_device(name)
    assert len(str(e.value)) < 250
    runs.check_device("cpu")


def test_first_not_finite():
    good = torch.tensor(1.0)
    assert runs.first_not_finite([good, good]) is None
    for value in (math.nan, math.inf, -math.inf):
        assert runs.first_not_finite([good, torch.tensor(value), torch.tensor(value)]) == 1


# ---- seeds ---------------------------------------------------------------------------------------


def test_step_seed():
    """Small seeds have plain sums; the largest still fit torch's generators and differ."""
    assert runs.step_seed(4292, 7) == 4292 * 10_000_019 + 7
    assert runs.step_seed(3, 7, rank=1, world=2) == (3 * 10_000_019 + 7) * 2 + 1
    seeds = {runs.step_seed(2**63 - s, step) for s in (1, 2) for step in range(3)}
    assert len(seeds) == 6
    for seed in seeds:
        torch.Generator().manual_seed(seed)


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
import runs, sys
lock = runs.Lock(sys.argv[1])
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
        runs.read_bytes(tmp_path / "flags.json")


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
    save_torch(tmp_path / "state.pt", {"flags": runs.flags_of(args), "step": 5})
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


# ---- command lines -------------------------------------------------------------------------------


def test_cli(capsys):
    def bad():
        raise BadInput("first\n  second")

    with pytest.raises(SystemExit) as e:
        cli(bad)
    assert e.value.code == 2 and capsys.readouterr() == ("", "error: first second\n")
    cli(lambda: print("fine"))
    assert capsys.readouterr() == ("fine\n", "")
    with pytest.raises(ZeroDivisionError):  # a bug is not bad input
        cli(lambda: 1 / 0)


def test_terminal_escapes_are_shown(capsys, monkeypatch):
    """Names in files come from outside; no escape of theirs reaches the terminal."""
    hostile = "\x1b]0;title\x07\x9b31m\u202ename\udcff\x00"
    shown = "\\x1b]0;title\\x07\\x9b31m\\u202ename\\udcff\\x00"

    def bad():
        print(hostile)
        raise BadInput(f"{hostile}\r\nthere")

    with pytest.raises(SystemExit):
        cli(bad)
    assert capsys.readouterr() == (f"{shown}\n", f"error: {shown} there\n")


def test_a_long_error_line_is_cut(capsys):
    def bad():
        raise BadInput("a" * 5000 + ": do this")

    with pytest.raises(SystemExit):
        cli(bad)
    line = capsys.readouterr().err
    assert len(line) < 1100 and line.endswith("aaa: do this\n")


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(2**60),
        lambda: torch.empty(2**40, 2**40),
        lambda: np.empty(2**58),
        lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    ],
)
def test_too_little_memory_is_one_line(capsys, ask):
    def main():
        failure = ask()
        raise failure

    with pytest.raises(SystemExit) as e:
        cli(main)
    found = capsys.readouterr().err
    assert e.value.code == 2 and found.count("\n") == 1 and "lower the sizes" in found


# ---- outputs -------------------------------------------------------------------------------------


def test_outputs_that_can_be_written(tmp_path):
    """Nothing is made by looking."""
    (tmp_path / "there.json").write_text("old")
    names = ("json", "png", "csv")
    args = Namespace(json=tmp_path / "there.json", png=tmp_path / "a" / "b" / "new.png", csv=None)
    runs.check_output(args, *names)
    runs.check_output(Namespace(json="/dev/null"), "json")
    runs.check_folder(Namespace(out=tmp_path / "c" / "d"), "out")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("there.json", "old")]


@pytest.mark.parametrize(
    "path, message",
    [
        ("folder", "--json .*folder is a folder: name a file in it"),
        ("file/x.json", "Not a directory"),
        ("x" * 5000, "File name too long"),
        ("x/" * 2500, "File name too long"),
        ("a\0b", "null"),
        ("/proc/x.json", "cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written(tmp_path, path, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=message):
        runs.check_output(Namespace(json=str(tmp_path / path)), "json")


@pytest.mark.parametrize("name, path", [("png", "x.pdf"), ("video", "x.mp4"), ("png", "x")])
def test_pictures_are_named_by_their_kind(tmp_path, name, path):
    with pytest.raises(BadInput, match=f"--{name} .*: the file is a (PNG|GIF), so name it"):
        runs.check_output(Namespace(**{name: str(tmp_path / path)}), name)
    runs.check_output(Namespace(**{name: "/dev/null"}), name)


@pytest.mark.parametrize("value, bad", [(0, 0), (-1, -1), ([1, float("nan")], "nan"), ((2,), None)])
def test_above_zero(value, bad):
    args = Namespace(T_a=value, lr=None)
    if bad is None:
        runs.above_zero(args, "T_a", "lr")
    else:
        with pytest.raises(BadInput, match=f"--T-a must be above 0, not {bad}"):
            runs.above_zero(args, "lr", "T_a")


def test_refuse_flags():
    args = Namespace(temp=None, spread=0.0, memory=None, per_step=False, amp=True)
    runs.refuse_flags(args, ["temp", "memory", "per_step"], "--method bc")
    with pytest.raises(BadInput, match="^--spread is not used by --method bc: leave it out$"):
        runs.refuse_flags(args, ["temp", "spread"], "--method bc")  # 0.0 was given
    with pytest.raises(BadInput, match="^--amp is not used by a CPU: leave it out$"):
        runs.refuse_flags(args, ["amp"], "a CPU")


def make_parser():
    """A parser with a flag of each kind."""
    p = Parser("What it does.", examples=["python x.py a --K 4", "python x.py b"])
    p.add_argument("ckpt", help="checkpoint")
    p.add_argument("--seed", type=int, default=0, help="seed")
    p.add_argument("--T-p", type=int, help="horizon")
    p.add_argument("--lr", type=float, default=1e-4, help="learning rate")
    p.add_argument("--temp", type=float, nargs="+", default=[0.02, 0.2], help="temperatures")
    p.add_argument("--mode", choices=("chunk", "step"), default="chunk", help="mode")
    p.add_argument("--task", choices=list("abcdefghijk"), help="task")
    p.add_argument("--png", metavar="FILE", help="picture, at 50 %% of the size")
    p.add_argument("--line", nargs="*", default=[], help="lines")
    p.add_argument("--amp", action="store_true", help="half precision")
    return p


def test_help_is_a_manual(monkeypatch):
    """It shows every default but "no" and "none", short metavars, and the examples at the end."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = [" ".join(line.split()) for line in make_parser().format_help().splitlines()]
    assert lines[0].startswith("usage: ") and lines[0].endswith(" ckpt [flags]")
    assert "What it does." in lines
    for line in (
        "--seed N seed (default: 0)",
        "--T-p T_p horizon",
        "--lr X learning rate (default: 0.0001)",
        "--temp X [X ...] temperatures (default: 0.02 0.2)",
        "--mode {chunk,step} mode (default: chunk)",
        "--task TASK task",
        "--png FILE picture, at 50 % of the size",
        "--line [LINE ...] lines",
        "--amp half precision",
    ):
        assert line in lines
    assert lines[-3:] == ["examples:", "python x.py a --K 4", "python x.py b"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["x", "--see", "1"], "unrecognized arguments: --see 1"),  # no abbreviations
        (["x", "--seed", "one"], "argument --seed: invalid int value"),
        (["x", "--T-p", str(10**26)], "--T-p must lie below 2147483648"),
        ([], "the following arguments are required: ckpt"),
        (["x", "--task", "z"], "argument --task: invalid choice"),
    ],
)
def test_wrong_flags_are_bad_input(flags, message):
    with pytest.raises(BadInput, match=message):
        make_parser().parse_args(flags)


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
    assert [runs.setting_of(name) for name in ("dbp-seed0", "dbp_seed12", "dbp", "seed1")] == [
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
        (["none"], "there are no scores in none"),
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
