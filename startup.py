"""What a script does first, before it imports what takes seconds.

Ctrl-C is from now on one line and exit code 130, as `commands.cli` ends later: otherwise it would
be a traceback of the libraries that were being imported, or be swallowed by one of them. A process
that torchrun started ends with torchrun. Threads spin for less time while they wait. Nothing is
done where no script of this project is the program that runs.
"""

import functools
import os
import signal
import sys


def end(*_):
    """Say that the script was interrupted, and end at once."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def is_script():
    """Whether the program that runs lies beside this file."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    here = os.path.dirname(os.path.realpath(__file__))
    return program is not None and os.path.dirname(os.path.realpath(program)) == here


def spin_less(environ):
    """Let OpenMP's waiting threads sleep sooner, unless the user has said how they wait (note 31).

    environ: the environment, before anything loads OpenMP.
    """
    if "GOMP_SPINCOUNT" not in environ and "OMP_WAIT_POLICY" not in environ:
        environ["GOMP_SPINCOUNT"] = "10000"


def raise_again():
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_with(parent):
    """Have the system kill this process once the process `parent`, which started it, has ended.

    parent: its process id, read before the start. In `parent` itself nothing is done. Nor is it on
    other systems than Linux: there a process whose parent was killed lives on.
    """
    if sys.platform != "linux" or os.getpid() == parent:
        return
    import ctypes  # only here: Ctrl-C is not heard yet when this file is imported

    PR_SET_PDEATHSIG = 1  # of prctl.h
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the system knew, which would not tell any more
        os.kill(os.getpid(), signal.SIGKILL)


def tied():
    """What `subprocess` takes so that a program ends with this process, see startup.py."""
    if sys.platform != "linux":
        return {}
    return {"preexec_fn": functools.partial(end_with, os.getpid())}


if is_script():
    spin_less(os.environ)
if is_script() and "TORCHELASTIC_RUN_ID" in os.environ:
    end_with(os.getppid())
if is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
