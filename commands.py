"""Command lines: flags, what is printed, and how a script ends.

Whatever the user or the system is the cause of is one line on standard error and exit code 2, by
raising BadInput anywhere below `cli`.
"""

import startup

import argparse
import contextlib
import ctypes
import errno
import inspect
import math
import os
import platform
import re
import sys
import textwrap

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SEEDS = 2**63  # seeds lie below; torch's take no more
START_SEEDS = 2**32  # start seeds lie below: numpy's RandomState in the simulators takes no more
WHOLE = 2**31  # whole numbers on a command line lie below, but for seeds
SHOWN = 1000  # characters of an error line
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
RESUMABLE = "interrupted; go on with --resume"  # what `cli` says for scripts that have --resume


class BadInput(ValueError):
    """Something the user gave cannot be used; the message says what is wrong and what to do."""


# ---- how a script runs and ends ------------------------------------------------------------------


def keep_memory():
    """Let glibc keep the memory that is freed; do nothing elsewhere (macOS, Windows, musl).

    By default glibc hands large blocks back to the system, which zeroes them page by page when they
    are fetched again at the next step: up to 30 % of the time of training on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    M_TRIM_THRESHOLD = -1  # the two numbers of glibc's malloc.h
    M_MMAP_MAX = -4
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)  # note 28
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cli(main, *, interrupted="interrupted"):
    """Run main(), and end without a traceback where the user or the system is the cause.

    interrupted: the line on stderr after Ctrl-C, with exit code 130. A BadInput, a full disk and a
    lack of memory become one line on stderr and exit code 2. A reader of the output that has gone
    (`| head -1`) is no error: exit code 141, as of programs that SIGPIPE ends. Control characters
    in what is printed are shown, not sent to the terminal.
    """
    keep_memory()
    with plain_output():
        try:
            startup.raise_again()
            run_and_flush(main)
        except BadInput as e:
            stop(f"error: {one_line(e)}", 2)
        except KeyboardInterrupt:
            stop(interrupted, 130)
        except OSError as e:
            broken = any(s and is_broken(s) for s in (sys.stdout, sys.stderr))
            if not broken and e.errno not in DISK_FULL:
                raise
            message = (
                f"error: output cannot be written ({e.strerror}): make room, or write elsewhere"
            )
            if isinstance(e, BrokenPipeError):
                stop(None, 141)
            stop(message, 2)
        except (MemoryError, RuntimeError) as e:
            if not lacks_memory(e):
                raise
            stop("error: there is not enough memory: lower the sizes that were asked for", 2)


def run_and_flush(main):
    """Run main() and write out what it printed, also where it exits: --help does."""
    try:
        main()
    except SystemExit:
        flush()
        raise
    flush()


def flush():
    """Write out what was printed; without a standard output there is nothing to do."""
    if sys.stdout:
        sys.stdout.flush()


def is_broken(stream):
    """Whether nothing more can be written to a stream; if so, the rest of it goes nowhere."""
    try:
        print(file=stream, flush=True)  # a flush alone shows nothing if there is no buffer
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # or the flush at exit would complain
        os.close(nowhere)
        return True
    return False


def stop(message, code):
    """Exit, after a line on stderr if there is a message. Progress bars end their lines first."""
    with contextlib.suppress(OSError):
        if "tqdm" in sys.modules:
            for bar in list(sys.modules["tqdm"].tqdm._instances):
                bar.close()
        if message:
            print(message, file=sys.stderr)
        flush()
    sys.exit(code)


def lacks_memory(e):
    """Whether an error says that memory was asked for that is not there."""
    return isinstance(e, MemoryError) or any(words in str(e) for words in NO_MEMORY)


def one_line(e):
    """An error's text on one line, without its middle if it is long."""
    text = " ".join(str(e).split()) or type(e).__name__
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
    return text


# ---- what is printed -----------------------------------------------------------------------------


class Plain:
    """A text stream that shows control characters as "\\x1b" instead of sending them on.

    Names in files from outside may hold escapes that rewrite a terminal. The ends of lines and the
    carriage return of progress bars pass.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """Write a text; what the stream's encoding lacks is shown as "\\u03c4"."""
        shown = CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)


@contextlib.contextmanager
def plain_output():
    """Inside the `with`, standard output and standard error are Plain."""
    before = (sys.stdout, sys.stderr)
    sys.stdout = sys.stdout and Plain(sys.stdout)
    sys.stderr = sys.stderr and Plain(sys.stderr)
    try:
        yield
    finally:
        sys.stdout = before[0]
        sys.stderr = before[1]


# ---- flags ---------------------------------------------------------------------------------------


class Help(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, short metavars, and the default of a flag that has one."""

    def add_usage(self, usage, actions, groups, prefix=None):
        """Name the required arguments alone where there are many flags: the list below has them."""
        needed = [a for a in actions if a.required or not a.option_strings]
        if usage is None and len(actions) - len(needed) > 6:
            text = self._format_usage(None, needed, [], prefix="").strip()
            usage = text.replace("%", "%%") + " [flags]"
        super().add_usage(usage, actions, groups, prefix)

    def _split_lines(self, text, width):
        """Wrap a help text, but break no name of a task at its hyphens."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_default_metavar_for_optional(self, action):
        """N for a whole number, X for a real one, and a symbol for itself: --T-p T_p."""
        if any(c.isupper() for c in action.dest):
            return action.dest
        return {int: "N", float: "X"}.get(action.type, action.dest.upper())

    def _metavar_formatter(self, action, default_metavar):
        """Leave the choices out of the metavar if they are too many to read there."""
        if action.metavar is None and action.choices is not None and len(action.choices) > 8:
            name = action.dest.upper()
            return lambda size: (name,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action):
        """The help text, and the default as it is typed: "(default: 0.02 0.2)", not a list."""
        default = action.default
        none = default is None or default is False or default == argparse.SUPPRESS
        if none or default in ("", [], ()):
            return action.help
        if isinstance(default, (list, tuple)):
            default = " ".join(map(str, default))
        return f"{action.help or ''} (default: {str(default).replace('%', '%%')})".strip()


def add_machine(g):
    """Add the trainers' flags that say what they run on."""
    import torch

    gpu = torch.cuda.is_available()
    g.add_argument("--device", default="cuda" if gpu else "cpu", help="torch device")
    g.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")


class Parser(argparse.ArgumentParser):
    """The argument parser of every script: no abbreviations, and a wrong flag is a BadInput.

    examples: whole command lines, printed at the end of --help.
    """

    def __init__(self, description=None, *, examples=(), **kw):
        if examples:
            kw["epilog"] = "\n".join(["examples:", *(f"  {line}" for line in examples)])
        words = inspect.cleandoc(description or "")  # a docstring, without its indentation
        super().__init__(description=words, allow_abbrev=False, formatter_class=Help, **kw)

    def parse_args(self, args=None, namespace=None):
        """The flags; raises BadInput for an empty one, and for whole numbers that no size can have.

        An empty one is what an unset variable of a shell leaves.
        """
        words = sys.argv[1:] if args is None else list(args)
        for before, word in zip(["the first argument", *words], words):
            if word == "" or (word.startswith("--") and word.endswith("=")):
                name = word[:-1] or before
                raise BadInput(f"{name} is empty: give a value, or leave it out (see --help)")
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            for v in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(v, int) and abs(v) >= WHOLE and "seed" not in name:
                    raise BadInput(f"{spelled(name)} must lie below {WHOLE}, not {v}")
        return parsed

    def error(self, message):
        """Raise BadInput, which `cli` turns into one line and exit code 2."""
        raise BadInput(f"{message} (see --help)")


def spelled(name):
    """The flag of an attribute of args, as it is typed: "T_p" -> "--T-p"."""
    return "--" + name.replace("_", "-")


def flags_of(args):
    """The flags as plain values, for flags.json and the checkpoints."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(args).items()}


def above_zero(args, *names):
    """Refuse flags that are given but not finite and above 0 as float32. Raises BadInput."""
    for name in names:
        value = getattr(args, name)
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if v is not None and not 0 < ctypes.c_float(v).value < math.inf:
                raise BadInput(f"{spelled(name)} must be above 0, not {v}")


def refuse_flags(args, names, why):
    """Refuse flags that were given (are not None or False) but have no use. Raises BadInput.

    why: what they are not used by, for example "--method bc".
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False:
            raise BadInput(f"{spelled(name)} is not used by {why}: leave it out")


def check_device(name):
    """Refuse a torch device that is not here. Raises BadInput."""
    import torch

    try:
        torch.zeros(1, device=name).item()  # "meta" has no numbers
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0].split(". ")[0]  # a long list of devices may follow
        raise BadInput(f"--device {name} cannot be used here ({reason}): try --device cpu") from e


# ---- seeds ---------------------------------------------------------------------------------------


def check_seed(args, name, *, below=SEEDS, n=1):
    """Refuse seeds unless each and the n - 1 after it lie in 0 .. below - 1. Raises BadInput."""
    value = getattr(args, name)
    for v in value if isinstance(value, (list, tuple)) else [value]:
        if not 0 <= v <= below - n:
            raise BadInput(f"{spelled(name)} must lie in 0 .. {below - n}, not {v}")


def step_seed(seed, step, *, rank=0, world=1):
    """The seed, of 64 bits, of the noise of a step in one of `world` processes.

    It depends on nothing before the step, so that a run can be resumed.
    """
    return ((seed * 10_000_019 + step) * world + rank) % 2**64
