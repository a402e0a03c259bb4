"""A run folder: its flags and versions, its logs, atomic saves, and resuming.

  flags.json   every flag, the command line, the commit, the package versions, the machine
  log.jsonl    one object a line: {"step": ..., "loss": ...}; log.csv holds the same as a table
  ckpt.pt      the policy (policy.py), replaced atomically
  state.pt     what --resume needs beside it, replaced atomically (saves.py)
  .lock        held by the process that writes the folder

The command draws the scores of runs. Seeds of one setting are drawn together.
"""

import startup

import argparse
import contextlib
import csv
import ctypes
import errno
import functools
import importlib.metadata
import inspect
import io
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there are no locks then
    fcntl = None

PACKAGES = ("torch", "numpy", "gymnasium", "gym-pusht", "pymunk", "mujoco", "zarr", "h5py")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SEEDS = 2**63  # seeds lie below; torch's take no more
START_SEEDS = 2**32  # start seeds lie below: numpy's RandomState in the simulators takes no more
WHOLE = 2**31  # whole numbers on a command line lie below, but for seeds
LARGEST = 2**24  # bytes of a table or of a JSON file
LARGEST_LOG = 2**26  # bytes of log.jsonl: ten million steps of training
LONGEST_ROW = 2**14  # bytes of a line of it
SHOWN = 1000  # characters of an error line
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NO_MEMORY = ("can't allocate memory", "out of memory", "Storage size calculation overflowed")
PICTURES = {"png": ".png", "video": ".gif"}  # how the file of such a flag must end
FOLDER_FILES = (
    *("flags.json", "log.jsonl", "log.csv", "state.pt", "ckpt.pt", "init.pt", "best.pt"),
    *("curves.png", "hypotheses.png", ".lock"),
)
SCORE_COLUMNS = ("step", "iteration", "minutes", "score", "score_low", "score_high", "success")


class BadInput(ValueError):
    """Something the user gave cannot be used; the message says what is wrong and what to do."""


# ---- command lines -------------------------------------------------------------------------------


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


def lacks_memory(e):
    """Whether an error says that memory was asked for that is not there."""
    return isinstance(e, MemoryError) or any(words in str(e) for words in NO_MEMORY)


def one_line(e):
    """An error's text on one line, without its middle if it is long."""
    text = " ".join(str(e).split()) or type(e).__name__
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
    return text


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


RESUMABLE = "interrupted; go on with --resume"  # what `cli` says for scripts that have --resume


class Help(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, short metavars, and the default of a flag that has one."""

    def add_usage(self, usage, actions, groups, prefix=None):
        """Name the required arguments alone where there are many flags: the list below has them."""
        needed = [a for a in actions if a.required or not a.option_strings]
        if usage is None and len(actions) - len(needed) > 6:
            text = self._format_usage(None, needed, [], prefix="").strip()
            usage = text.replace("%", "%%") + " [flags]"
        super().add_usage(usage, actions, groups, prefix)

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
        """The flags; whole numbers that no size can have are refused. Raises BadInput."""
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


def above_zero(args, *names):
    """Refuse flags that are given but not finite and above 0 as float32. Raises BadInput."""
    for name in names:
        value = getattr(args, name)
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if v is not None and not 0 < ctypes.c_float(v).value < math.inf:
                raise BadInput(f"{spelled(name)} must be above 0, not {v}")


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


def flags_of(args):
    """The flags as plain values, for flags.json and the checkpoints."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(args).items()}


# ---- files ---------------------------------------------------------------------------------------


def check_output(args, *names):
    """Refuse output files that cannot be written, before any work is done. Raises BadInput.

    names: flags that hold a path or None.
    """
    for name in names:
        path = getattr(args, name)
        if path is None:
            continue
        what = f"{spelled(name)} {path}"
        ending = PICTURES.get(name, "")
        if os.path.isdir(path):
            raise BadInput(f"{what} is a folder: name a file in it")
        if not str(path).endswith(ending) and not is_device(path):
            raise BadInput(f"{what}: the file is a {ending[1:].upper()}, so name it *{ending}")
        if not is_device(path):
            check_place(what, path)
        elif not os.access(path, os.W_OK):
            raise BadInput(f"{what} cannot be written: name another place")


def is_device(path):
    """Whether a path names something that is neither a file nor a folder, such as /dev/stdout."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_folder(args, *names):
    """Refuse output folders in which nothing can be written. Raises BadInput."""
    for name in names:
        path = Path(getattr(args, name))
        what = f"{spelled(name)} {path}"
        if os.path.exists(path) and not os.path.isdir(path):
            raise BadInput(f"{what} is a file: name a folder")
        check_place(what, path / "file")


def check_place(what, path):
    """Refuse a file that cannot be made, by trying to make another beside it. Raises BadInput."""
    try:
        path = Path(os.path.realpath(path))
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long is refused here
        folder = path.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise BadInput(f"{what} cannot be written ({reason}): name another place") from e


class Lock:
    """An exclusive lock on a file, which is made if it is missing, and stays.

    The lock ends with its process, also a killed one, and forked workers do not inherit it. wait:
    wait for a process that holds it; otherwise BadInput names that process. Windows has no such
    lock: then nothing is locked.
    """

    def __init__(self, path, *, wait=False):
        self.file = open(path, "a+")
        if fcntl is None:
            return
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as e:
            if e.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks
            self.file.seek(0)
            holder = self.file.read(200).strip() or "another process"
            self.file.close()
            folder = Path(path).parent
            raise BadInput(
                f"{folder} is being written by {holder}: wait for it, or name another folder"
            ) from e
        self.file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=self.file, flush=True)

    def release(self):
        """Let others have it."""
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()


def atomic(path, write):
    """Write a file so that path holds the old content or the new, never half of it.

    write(file) fills a temporary file, which is synced to the disk and then renamed. It lies beside
    the file that path names, which is behind a symbolic link where path is one. What is no file or
    folder, such as /dev/stdout or a pipe, is written to as it is. Raises BadInput if the system
    refuses: then the old content is still there.
    """
    try:
        if is_device(path) or os.path.isdir(path):
            _write_through(path, write)
        else:
            _replace(Path(os.path.realpath(path)), write)
    except Exception as e:
        refused = _system_error(e)
        if refused is None:
            raise
        reason = refused.strerror or refused
        raise BadInput(
            f"{path} cannot be written ({reason}): name another place, or make room there"
        ) from e


def _replace(path, write):
    """Write a temporary file beside path, and rename it to path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(fd, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write_through(path, write):
    """Write to a device or a pipe, which cannot seek, in one piece."""
    content = io.BytesIO()
    write(content)
    with open(path, "wb") as f:
        f.write(content.getvalue())


def _system_error(e):
    """The OSError that an exception is, or was raised over: torch wraps that of a full disk."""
    while e is not None and not isinstance(e, OSError):
        e = e.__context__
    return e


def save_torch(path, state):
    """torch.save, atomically.

    state: tensors and plain containers only, so that load_torch reads it.
    """
    import torch

    atomic(path, lambda f: torch.save(state, f))


def load_torch(path, map_location="cpu"):
    """Read a file of save_torch without unpickling code.

    Raises BadInput if it is missing, damaged or anything else.
    """
    import torch

    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such file")
    path = Path(path)
    check_archive(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as e:  # torch raises many kinds on a corrupt or foreign file
        raise BadInput(
            f"{path} is not a checkpoint of this project, or is damaged ({type(e).__name__})"
        ) from e
    if not all(map(is_whole, tensors_in(content))):
        raise BadInput(f"{path} has tensors that hold fewer numbers than they claim: it is damaged")
    return content


def tensors_in(content):
    """All tensors in nested dicts, lists and tuples."""
    import torch

    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value


def is_whole(tensor):
    """Whether a tensor has memory for each of its numbers, and does not repeat some of them."""
    import torch

    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_archive(path):
    """Refuse a file of torch.save whose content is not what was written. Raises BadInput.

    torch.load compares no checksum. torch compresses nothing, so a member that is smaller in the
    file than it says is no work of torch, and could be of any size when unpacked. A file of 60 MB
    takes 20 ms.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            honest = all(m.file_size == m.compress_size for m in members)
            fits = sum(m.file_size for m in members) <= path.stat().st_size
            intact = honest and fits and archive.testzip() is None
    except Exception as e:  # zipfile raises many kinds on a corrupt or foreign file
        raise BadInput(f"{path} is not a checkpoint of this project, or is damaged") from e
    if not intact:
        raise BadInput(
            f"{path} is damaged, its checksums are wrong: take a copy, or another checkpoint"
        )


def write_csv(path, rows):
    """Write rows (dicts) as a CSV table, atomically.

    The columns are all their keys, in order of appearance.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)))
    table.writeheader()
    table.writerows(rows)
    atomic(path, lambda f: f.write(text.getvalue().encode(errors="backslashreplace")))


def read_bytes(path, largest=LARGEST):
    """The content of a file. Raises BadInput if there is none, or it has more bytes than `largest`.

    A pipe, which might never be written to, and a device, which has no end, are no files.
    """
    if not os.path.isfile(path):
        raise BadInput(f"{path} is missing, or is not a file: take a copy of it")
    try:
        if os.path.getsize(path) > largest:
            raise BadInput(
                f"{path} has more than {largest} bytes, far more than it could need: take a copy"
            )
        return Path(path).read_bytes()
    except OSError as e:
        raise BadInput(f"{path} cannot be read ({e.strerror}): take a copy") from e


def read_log(out):
    """Rows of a run folder's log.jsonl. Lines that are no rows are left out, and counted on stderr.

    The last line may have been cut short by a kill: no word is said of it.
    """
    path = Path(out) / "log.jsonl"
    if not os.path.exists(path):
        return []
    rows = [parsed_row(line) for line in read_bytes(path, LARGEST_LOG).splitlines()]
    bad = sum(row is None for row in rows[:-1])
    if bad:
        print(f"{path}: {bad} of {len(rows)} lines are no rows: left out", file=sys.stderr)
    return [row for row in rows if row is not None]


def parsed_row(line):
    """A line of log.jsonl as a dict of numbers with a step, or None if it is none."""
    if len(line) > LONGEST_ROW:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(row, dict) and all(type(v) in (int, float) for v in row.values())
    return row if numbers and type(row.get("step")) is int else None


# ---- processes that work for another one ---------------------------------------------------------


def tied():
    """What `subprocess` takes so that a program ends with this process, see startup.py."""
    if sys.platform != "linux":
        return {}
    return {"preexec_fn": functools.partial(startup.end_with, os.getpid())}


# ---- numbers that are not finite -----------------------------------------------------------------


def first_not_finite(values):
    """The place of the first of some numbers () that is not finite, None if all are.

    It waits for the device once, however many there are.
    """
    import torch

    for place, value in enumerate(torch.stack(values).tolist()):
        if not math.isfinite(value):
            return place
    return None


def not_finite(tensors):
    """The names of the tensors {name: tensor} that hold numbers that are not finite."""
    return [name for name, v in tensors.items() if not v.isfinite().all()]


# ---- what a run was made by ----------------------------------------------------------------------


def git(*args):
    """Standard output of a git command in the folder of this code."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit():
    """The git commit of the code, with + if the tree has changes; "unknown" outside a checkout."""
    try:
        changed = git("status", "--porcelain", "-uno")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions():
    """Versions of the packages that decide results, and the machine."""
    import torch

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["machine"] = platform.machine()
    found["cores"] = os.cpu_count()
    found["threads"] = torch.get_num_threads()
    return found


# ---- the run folder ------------------------------------------------------------------------------


def claim(args):
    """Take the run folder args.out for this process, and make it if it is missing.

    Temporary files that a kill left are deleted. Returns its Lock. Raises BadInput if another
    process writes the folder, if it cannot be written, and if it holds a run and --resume was not
    given.
    """
    out = Path(args.out)
    check_folder(args, "out")
    out.mkdir(parents=True, exist_ok=True)
    check_files(out)
    lock = Lock(out / ".lock")
    if (out / "state.pt").exists() and not args.resume:
        raise BadInput(
            f"{args.out} holds a run: go on with --resume, or name another folder with --out"
        )
    for left in out.glob(".*"):
        if re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", left.name):  # as `atomic` names them
            left.unlink(missing_ok=True)
    return lock


def check_files(out):
    """Refuse a run folder in which a folder, a pipe or a device is in a file's place. BadInput."""
    for path in (Path(out) / name for name in FOLDER_FILES):
        if path.exists() and not path.is_file():
            raise BadInput(f"{path} is not a file: name another run folder with --out")


def load_state(args, device, needs, free):
    """state.pt of the run folder, for --resume.

    needs: keys that it must have. Raises BadInput without them, and if a flag differs from the one
    that the run was begun with, except for the flags named in `free`.
    """
    path = Path(args.out) / "state.pt"
    if not path.is_file():
        raise BadInput(f"{path}: there is no run to go on with: leave out --resume")
    state = load_torch(path, device)
    if not isinstance(state, dict) or not {"flags", *needs} <= set(state):
        raise BadInput(
            f"{args.out}/state.pt is not the state of a run of this version: "
            "begin in another folder with --out"
        )
    for name, now in flags_of(args).items():
        was = state["flags"].get(name)
        if name not in free and was != now:
            raise BadInput(
                f"{args.out} was begun with {spelled(name)} {was}, not {now}: "
                "resume with the same flags, or begin in another folder with --out"
            )
    return state


class Run:
    """A run folder and its logs.

    resume_step: the step that a resumed run goes on from. Later rows of the log are dropped, so
    that no step appears twice. None begins a new run and writes flags.json.
    """

    def __init__(self, out, flags, *, resume_step=None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.out = Path(out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadInput(
                f"--out {out} cannot be a run folder ({e.strerror}): name another"
            ) from e
        check_files(self.out)
        self.rows = []
        next_step = None
        if resume_step is None:
            self._write_flags(flags)
        else:
            self.rows = [row for row in read_log(self.out) if row["step"] <= resume_step]
            next_step = resume_step + 1
        lines = [(json.dumps(row) + "\n").encode() for row in self.rows]
        atomic(self.out / "log.jsonl", lambda f: f.writelines(lines))
        self.jsonl = open(self.out / "log.jsonl", "a")
        self.board = SummaryWriter(self.out, purge_step=next_step)

    def _write_flags(self, flags):
        about = {
            "flags": flags,
            "command": sys.argv,
            "commit": commit(),
            "versions": versions(),
        }
        text = json.dumps(about, indent=1, default=str)
        atomic(self.out / "flags.json", lambda f: f.write(text.encode()))

    def log(self, step, **numbers):
        """Append one row {step, name: float}, of six digits each."""
        row = {"step": step, **{k: float(f"{v:.6g}") for k, v in numbers.items()}}
        self.rows.append(row)
        print(json.dumps(row), file=self.jsonl, flush=True)
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def column(self, name):
        """(steps, values) of the rows that hold name."""
        held = [row for row in self.rows if name in row]
        return [row["step"] for row in held], [row[name] for row in held]

    def close(self):
        """Write log.csv and close the logs."""
        write_csv(self.out / "log.csv", self.rows)
        self.jsonl.close()
        self.board.close()


# ---- pictures ------------------------------------------------------------------------------------


def curves(run, path, panels, x="step"):
    """Draw the run's numbers over its steps into a PNG file; x names the axis.

    panels: (title, column names, y scale) each; one without any rows is left out. The interval of
    a score is shaded.
    """
    from matplotlib.figure import Figure

    panels = [p for p in panels if any(run.column(name)[0] for name in p[1])]
    columns = (len(panels) + 1) // 2
    fig = Figure(figsize=(3.9 * columns, 6), layout="constrained")
    axes = fig.subplots(2, columns)
    for ax, (title, names, scale) in zip(axes.flat, panels):
        for name in names:
            marker = "o" if name == "score" else None
            ax.plot(*run.column(name), marker=marker, label=name.replace("force_", "τ = "))
        if "score" in names:
            steps, low = run.column("score_low")
            _, high = run.column("score_high")
            ax.fill_between(steps, low, high, alpha=0.2)
        ax.set(title=title, xlabel=x, yscale=scale)
        if len(names) > 1:
            ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    atomic(path, lambda f: fig.savefig(f, format="png", dpi=110))


def setting_of(run):
    """A run's name without a last seedN: runs that differ in it alone are seeds of one setting."""
    return re.sub(r"[-_]?seed[-_]?\d+$", "", run) or run


def mean_scores(runs, x):
    """The mean score of a setting's seeds, at the steps that all of them were scored at.

    runs: the rows of each seed. Returns the means of the column x and of the score.
    """
    by_step = {}
    for rows in runs:
        for row in rows:
            by_step.setdefault(row.get("iteration", row["step"]), []).append(row)
    common = [group for _, group in sorted(by_step.items()) if len(group) == len(runs)]
    xs = [sum(row[x] for row in group) / len(group) for group in common]
    scores = [sum(row["score"] for row in group) / len(group) for group in common]
    return xs, scores


def draw_setting(ax, name, runs, x, color):
    """Draw the score curve of each seed of one setting and, of more than one, their mean."""
    alone = len(runs) == 1
    for rows in runs:
        ax.plot(
            [row[x] for row in rows],
            [row["score"] for row in rows],
            lw=1,
            color=color,
            marker=".",
            ms=4,
            alpha=1 if alone else 0.4,
            label=name if alone else None,
        )
    xs, scores = mean_scores(runs, x)
    if not alone and xs:
        ax.plot(xs, scores, color=color, lw=2, label=f"{name}, mean of {len(runs)}")


def draw_scores(path, rows, x, lines):
    """Draw the score of each run over `x` ("step" or "minutes") into a PNG file.

    rows: the scored rows of the logs, each with the name of its run. Seeds of one setting share
    a colour and get a mean curve. lines: dashed lines {label: score} to compare with.
    """
    from matplotlib.figure import Figure

    settings = {}  # setting -> run -> its rows
    for row in rows:
        seeds = settings.setdefault(setting_of(row["run"]), {})
        seeds.setdefault(row["run"], []).append(row)
    fig = Figure(figsize=(6.5, 3.8), layout="constrained")
    ax = fig.subplots()
    for i, (name, seeds) in enumerate(settings.items()):
        draw_setting(ax, name, list(seeds.values()), x, color=f"C{i}")
    for label, score in lines.items():
        ax.axhline(score, color="grey", ls="--", lw=0.8)
        ax.text(0, score, label, fontsize=8, va="bottom", color="grey")
    stage_2 = any("iteration" in row for row in rows)
    xlabel = "environment steps" if stage_2 and x == "step" else x
    ax.set(xlabel=xlabel, ylabel="score", xlim=(0, None))
    low = min(row["score"] for row in rows)
    high = max(row["score"] for row in rows)
    if high > 1 or low < 0.5:
        ax.set_ylim(min(0, low), 1 if 0 <= low and high <= 1 else None)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    atomic(path, lambda f: fig.savefig(f, format="png", dpi=120))


def parse(argv=None):
    """The command's flags."""
    p = Parser(
        __doc__,
        examples=[
            "python runs.py runs/pusht-dbp-seed0 runs/pusht-dbp-seed1 --png score.png",
            "python runs.py runs/pusht-dbpo-seed* --csv score.csv --line 'Stage 1=0.87'",
        ],
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folder, one or more")
    p.add_argument("--png", metavar="FILE", default="score.png", help="figure to write")
    p.add_argument("--csv", metavar="FILE", help="table to write")
    p.add_argument(
        "--x",
        choices=("step", "minutes"),
        default="step",
        help="horizontal axis: training steps, or minutes of training",
    )
    p.add_argument(
        "--line",
        nargs="*",
        default=[],
        metavar="LABEL=SCORE",
        help="dashed lines to compare with",
    )
    args = p.parse_args(argv)
    check_output(args, "png", "csv")
    return args


def main():
    """Draw the scores of the run folders that the command line names."""
    args = parse()
    rows = []
    for out in args.runs:
        for row in read_log(out):
            if "score" in row and args.x in row:
                kept = {k: row[k] for k in SCORE_COLUMNS if k in row}
                rows.append({"run": Path(out).name, **kept})
    if not rows:
        raise BadInput(
            f"there are no scores in {', '.join(args.runs)}: "
            "give run folders, or train with --eval-every"
        )
    try:
        pairs = [line.rsplit("=", 1) for line in args.line]
        lines = {label: float(score) for label, score in pairs}
    except ValueError as e:
        raise BadInput(f"--line {' '.join(args.line)}: give LABEL=SCORE") from e
    draw_scores(args.png, rows, args.x, lines)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    cli(main)
