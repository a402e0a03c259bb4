"""Ctrl-C while a script is still importing: one line and exit code 130, as `runs.cli` ends later.

Scripts import this file first, before what takes seconds. Otherwise such an interrupt would be a
traceback of the libraries that were being imported, or be swallowed by one of them. Nothing is done
where no script of this project is the program that runs.
"""

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


def raise_again():
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)
