"""startup.py: Ctrl-C while a script imports its libraries, and the end of torchrun."""

import startup

import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT

SCRIPTS = [p.name for p in ROOT.glob("*.py") if '__name__ == "__main__"' in p.read_text()]
SLOW = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:  # as libraries do that try what there is
    pass
"""


@pytest.mark.parametrize("script", sorted(set(SCRIPTS) - {"runs.py"}))  # which imports nothing slow
def test_ctrl_c_while_importing(tmp_path, script):
    """No library can swallow it."""
    (tmp_path / "numpy.py").write_text(SLOW)
    p = subprocess.Popen(
        [sys.executable, ROOT / script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert p.stdout.readline() == "importing\n"
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=30)
    finally:
        p.kill()
    assert (p.returncode, err) == (130, "interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of a parent's end")
def test_a_process_of_torchrun_ends_with_it(tmp_path):
    """From its first moments on, in which it imports its libraries."""
    (tmp_path / "numpy.py").write_text(SLOW)
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    torchrun = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, ROOT / "dbp_train.py"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "TORCHELASTIC_RUN_ID": "x"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert torchrun.stdout.readline() == "importing\n"
    torchrun.kill()
    torchrun.communicate(timeout=30)  # which lasts until both have closed their output


def test_nothing_is_done_where_another_program_runs():
    """A notebook that imports this project keeps its own Ctrl-C."""
    code = "import startup, runs, signal; print(signal.getsignal(signal.SIGINT).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "default_int_handler\n"


@pytest.mark.parametrize("given", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_threads_spin_less_unless_the_user_has_said_how(given):
    environ = {given: "PASSIVE", "HOME": "/"}
    startup.spin_less(environ)
    assert environ == {given: "PASSIVE", "HOME": "/"}
    environ = {"HOME": "/"}
    startup.spin_less(environ)
    assert environ == {"GOMP_SPINCOUNT": "10000", "HOME": "/"}
