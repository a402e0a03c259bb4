"""commands.py: one line and exit code 2 for bad input, seeds, flags, help."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import commands
from commands import BadInput, Parser, cli
from conftest import ROOT

# ---- how a script ends ---------------------------------------------------------------------------

SCRIPT = """
import sys
import commands

def main():
    for _ in range({lines}):
        print("x" * 100)
    {then}

commands.cli(main)
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
        code, err = ended(script(tmp_path, "raise commands.BadInput('no\\nway')"), stdout=nowhere)
        assert (code, err) == (2, "error: no way\n")
        code, err = ended(script(tmp_path, "raise BrokenPipeError('a worker')"), stdout=nowhere)
        assert code == 1 and "Traceback" in err and "a worker" in err
    code, err = ended(["sh", "-c", '"$@" >&-', "sh", *script(tmp_path)])
    assert (code, err) == (0, "")


@pytest.mark.parametrize("name", ["meta", "meta:0", "nonsense", "", "vulkan"])
def test_devices_that_cannot_be_used(name):
    with pytest.raises(BadInput, match="cannot be used here") as e:
        commands.check_device(name)
    assert len(str(e.value)) < 250
    commands.check_device("cpu")


# ---- seeds ---------------------------------------------------------------------------------------


def test_step_seed():
    """Small seeds have plain sums; the largest still fit torch's generators and differ."""
    assert commands.step_seed(4292, 7) == 4292 * 10_000_019 + 7
    assert commands.step_seed(3, 7, rank=1, world=2) == (3 * 10_000_019 + 7) * 2 + 1
    seeds = {commands.step_seed(2**63 - s, step) for s in (1, 2) for step in range(3)}
    assert len(seeds) == 6
    for seed in seeds:
        torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("value, bad", [(0, 0), (-1, -1), ([1, float("nan")], "nan"), ((2,), None)])
def test_above_zero(value, bad):
    args = Namespace(T_a=value, lr=None)
    if bad is None:
        commands.above_zero(args, "T_a", "lr")
    else:
        with pytest.raises(BadInput, match=f"--T-a must be above 0, not {bad}"):
            commands.above_zero(args, "lr", "T_a")


def test_refuse_flags():
    args = Namespace(temp=None, spread=0.0, memory=None, per_step=False, amp=True)
    commands.refuse_flags(args, ["temp", "memory", "per_step"], "--method bc")
    with pytest.raises(BadInput, match="^--spread is not used by --method bc: leave it out$"):
        commands.refuse_flags(args, ["temp", "spread"], "--method bc")  # 0.0 was given
    with pytest.raises(BadInput, match="^--amp is not used by a CPU: leave it out$"):
        commands.refuse_flags(args, ["amp"], "a CPU")


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
