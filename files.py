"""Files: written so that a kill leaves the old or the new, and read without trust.

Outputs are checked before the work that fills them. Nothing is unpickled, and nothing larger than
its kind can be is read.
"""

import contextlib
import csv
import errno
import io
import math
import os
import re
import socket
import tempfile
import time
import zipfile
from pathlib import Path

from commands import BadInput, spelled

try:
    import fcntl
except ImportError:  # Windows: there are no locks then
    fcntl = None

LARGEST = 2**24  # bytes of a table or of a JSON file
MAX_GB = 4  # the arrays that are read from one file, unless --max-gb allows more
NUMBERS = "fiu"  # the letters of numpy's dtype.kind for floats and integers
AGAIN = "copy or download the data again"
ENDINGS = {
    "png": ".png",
    "video": ".gif",
    "json": ".json",
    "log": ".npz",
}  # how the file of such a flag must end


# ---- places --------------------------------------------------------------------------------------


def expanded(path):
    """A path whose ~ or ~user is replaced by that home folder. Raises BadInput without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise BadInput(
            f"{path}: this home folder is not known: set HOME, or give a path without ~"
        ) from e


def cache():
    """The folder that downloads go to: $DRIFT_CACHE, $XDG_CACHE_HOME/drift, or ~/.cache/drift."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("DRIFT_CACHE") or os.path.join(home, "drift"))


# ---- outputs are checked before the work ---------------------------------------------------------


def check_output(args, *names):
    """Refuse output files that cannot be written, before any work is done. Raises BadInput.

    names: flags that hold a path or None.
    """
    for name in names:
        path = getattr(args, name)
        if path is None:
            continue
        what = f"{spelled(name)} {path}"
        ending = ENDINGS.get(name, "")
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


# ---- writing -------------------------------------------------------------------------------------


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
    except BadInput:
        raise
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
            if fcntl:
                fcntl.flock(f, fcntl.LOCK_EX)  # says that its writer lives
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _delete_leftovers(path)


def _delete_leftovers(path):
    """Delete the temporary files beside path that a killed writer left: nobody holds their lock."""
    if not fcntl:
        return
    name = re.compile(re.escape(f".{path.name[:100]}.") + "[a-z0-9_]{8}")
    for left in path.parent.iterdir():
        if name.fullmatch(left.name):
            with contextlib.suppress(OSError), open(left) as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.path.getmtime(left) > 1:  # else it may not be locked yet
                    left.unlink()


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


def write_csv(path, rows):
    """Write rows (dicts) as a CSV table, atomically.

    The columns are all their keys, in order of appearance.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)))
    table.writeheader()
    table.writerows(rows)
    atomic(path, lambda f: f.write(text.getvalue().encode(errors="backslashreplace")))


def save_torch(path, state):
    """torch.save, atomically.

    state: tensors and plain containers only, so that load_torch reads it.
    """
    import torch

    atomic(path, lambda f: torch.save(state, f))


# ---- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def refusing(message):
    """Turn every error inside into BadInput: libraries raise many kinds on damaged data.

    A lack of memory is none of the data's, and passes.
    """
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as e:
        raise BadInput(f"{message} ({type(e).__name__}: {brief(e, 300)})") from e


def brief(value, most=100):
    """A value from a file as text of one line, with its middle left out if it is long."""
    text = " ".join(str(value).split())
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return text


def check_size(declared, path, max_gb):
    """Refuse arrays {name: (shape, dtype)} of more than max_gb GB together. Raises BadInput.

    Numbers that are smaller than float32 count as float32, which they become, but for pictures.
    """
    total = 0
    for shape, dtype in declared.values():
        total += math.prod(shape) * max(dtype.itemsize, 1 if len(shape) == 4 else 4)
    if total > max_gb * 1e9:
        gigabytes = min(total, 10**21) / 1e9
        raise BadInput(
            f"{path} declares {gigabytes:.4g} GB of numbers ({brief(', '.join(declared))}), but no "
            f"more than {max_gb:g} GB are read: raise --max-gb if the file is right"
        )


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


def load_torch(path, map_location="cpu"):
    """Read a file of save_torch without unpickling code.

    Raises BadInput if it is missing, damaged or anything else.
    """
    import torch

    if not os.path.isfile(path):
        what = "is a folder: pass the ckpt.pt in it" if os.path.isdir(path) else "no such file"
        raise BadInput(f"{path}: {what}")
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


def not_finite(tensors):
    """The names of the tensors {name: tensor} that hold numbers that are not finite."""
    return [name for name, v in tensors.items() if not v.isfinite().all()]


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
