"""Where the demonstrations of a task are, and fetching the official ones.

An archive is downloaded, going on where an earlier try stopped; unpacked into a folder beside its
place; compared array by array with the SHA-256 that the task tells; and only then moved to its
place. An HDF5 file of robomimic is opened instead. Data sets of Minari come through the minari
library.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from commands import DISK_FULL, BadInput
from files import MAX_GB, Lock, brief, cache, check_size, expanded, refusing
from formats import shapes, zarr_array
from hdf5 import minari_file
from lerobot_format import is_lerobot

MAX_BYTES = 2**30  # of an archive, and of what it unpacks to
MAX_FILES = 100_000  # in an archive
WEB = ("http://", "https://")
UNPACK = ".drift-unpack-"  # how a folder begins in which an archive is unpacked


# ---- finding -------------------------------------------------------------------------------------


def minari_home():
    """The minari library's own folder: $MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return expanded(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets")


def find(task, path=None):
    """The path of the task's data. Raises BadInput if there is none.

    It is looked for in $DRIFT_DATA, the cache, the minari library's folder, and demos/ beside this
    file. path: a file, a zarr or Minari folder, or a folder that holds one of task.data; if it is
    given, nothing else is tried.
    """
    with refusing(f"{brief(path or 'the folders of data')} cannot be looked at"):
        places = places_of(task, path)
        for place in places:
            zarr = place.suffix == ".zarr" or (place / ".zgroup").exists()
            if place.is_file() or zarr or minari_file(place) or is_lerobot(place):
                return place
            for name in task.data:
                if (place / name).exists():
                    return place / name
    looked_for = " or ".join(task.data) or "no file name is known"
    raise BadInput(
        f"no {task.name} data ({looked_for}) in {', '.join(map(str, places))}: {hint(task)}"
    )


def places_of(task, path=None):
    """The paths that `find` looks at, best first. Raises BadInput if a given one is not there."""
    given = os.environ.get("DRIFT_DATA")
    named = path or given
    if named:
        shown = path or f"DRIFT_DATA={given}"
        place = expanded(named)
        if not place.exists():
            raise BadInput(f"{shown}: no such file or folder")
        if not place.is_file() and not place.is_dir():
            raise BadInput(f"{shown} is a pipe or a device: name a file or a folder")
    if path:
        return [expanded(path)]
    places = [Path(given)] if given else []
    places.append(cache())
    if task.minari and minari_home().exists():
        places.append(minari_home())
    places.append(Path(__file__).parent / "demos")
    return [expanded(place) for place in places]


def hint(task):
    """What to do about missing data."""
    ways = []
    if task.expert:
        ways.append(f"run `python experts.py --task {task.name}`")
    if task.url or task.minari:
        ways.append(f"run `python data.py download {task.name}`")
    return " or ".join([*ways, "give --data PATH"])


# ---- fetching ------------------------------------------------------------------------------------


class WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https alone; urllib would follow some to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The request that is redirected to newurl. Raises BadInput if it leads elsewhere."""
        if not newurl.startswith(WEB):
            raise BadInput(f"{brief(req.full_url)} leads to {brief(newurl)}: it is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url, part):
    """Download a URL into the file `part`, going on from the bytes that it holds.

    Raises BadInput if that fails, and keeps the bytes for the next try.
    """
    if part.exists() and not part.is_file():
        raise BadInput(f"{part} is not a file: move it away")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with refusing(f"{brief(url)}: download failed, run the command again to resume {part}"):
        request = urllib.request.Request(url, headers=headers)
        try:
            answer = urllib.request.build_opener(WebOnly).open(request, timeout=30)
        except urllib.error.HTTPError as e:
            if e.code != 416 or not have:
                raise
            whole = e.headers.get("Content-Range") == f"bytes */{have}"
            if not whole:  # the part is longer than the file, so it is not of this file
                part.unlink()
                fetch(url, part)
            return
        with answer:
            save_answer(answer, brief(url), part, have)


def save_answer(answer, url, part, have):
    """Write a server's answer into `part`, after its first `have` bytes if it begins there.

    Raises BadInput if it begins elsewhere or is absurdly long, ConnectionError if it ends early.
    """
    if answer.status != 206:  # the server ignores Range and sends everything
        have = 0
    elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        raise BadInput(f"{url}: the server resumes at a wrong place: delete {part} and try again")
    size = have + max(0, int(answer.headers.get("Content-Length", 0)))
    too_long = f"{url}: more than {MAX_BYTES} bytes, not the archive: check the address"
    if size > MAX_BYTES:
        raise BadInput(too_long)
    bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, disable=None)
    with open(part, "ab" if have else "wb") as f, bar:
        while block := answer.read1(1 << 16):
            bar.update(f.write(block))
            if f.tell() > MAX_BYTES:
                f.truncate(0)
                raise BadInput(too_long)
    if part.stat().st_size < size:
        raise ConnectionError(f"ended after {part.stat().st_size} of {size} bytes")


def unpack(archive, name, to):
    """Unpack the zarr folder `name`, wherever in the zip it is, into the folder `to`.

    Returns its path. Raises BadInput, and unpacks nothing, if any entry of the archive is a link or
    could lead outside, or if the archive is of absurd size.
    """
    with refusing(f"{archive} cannot be unpacked"), zipfile.ZipFile(archive) as z:
        entries = {entry: PurePosixPath(entry.filename) for entry in z.infolist()}
        for entry, path in entries.items():
            odd = re.search(r"[\\:]", entry.filename)
            outside = path.is_absolute() or ".." in path.parts or odd
            if outside or stat.S_ISLNK(entry.external_attr >> 16):
                raise BadInput(
                    f"{archive}: refused, its entry {brief(repr(entry.filename))} is a link or "
                    "leads outside"
                )
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise BadInput(f"{archive}: refused, it is packed in a way that is not bounded")
        if sum(entry.file_size for entry in entries) > MAX_BYTES or len(entries) > MAX_FILES:
            raise BadInput(
                f"{archive}: refused, it would unpack to more than {MAX_BYTES} bytes or "
                f"{MAX_FILES} files"
            )
        roots = [
            path.parent
            for path in entries.values()
            if path.name == ".zgroup" and path.parent.name == name
        ]
        if not roots:
            raise BadInput(f"{archive} holds no {name}")
        inside = [entry for entry, path in entries.items() if path.is_relative_to(roots[0])]
        z.extractall(to, inside)
        return to / roots[0]


def verify(path, sha256, optional=()):
    """Compare arrays of a zarr folder with the official ones. Raises BadInput if one differs.

    sha256: {"data/action": hexadecimal number, ...}, of an array's bytes in C order, so that
    chunks, compression and archive do not matter. optional: those that may be missing.
    """
    for name, wanted in sha256.items():
        if name in optional and not (path / name).exists():
            continue
        array = zarr_array(path, name)
        check_size({name: (array.unpacked_shape, array.dtype)}, path, MAX_GB)
        sha = hashlib.sha256()
        step = array.chunks[0]  # one chunk at a time: pictures may be gigabytes unpacked
        with refusing(f"{path}: {name} is damaged"):
            for first in range(0, array.shape[0], step):
                sha.update(np.ascontiguousarray(array[first : first + step]))
        if sha.hexdigest() != wanted:
            raise BadInput(
                f"{path}: {name} differs from the official data (sha256 {sha.hexdigest()})"
            )


def download(task, to=None, url=None):
    """Fetch, unpack, verify and install a task's official data. Returns its path.

    It is an archive, or an HDF5 file if the first name of task.data is one. The data appears under
    its name only when all is well, and nothing that was there before is deleted. What fails is set
    aside as .bad, so that the next download starts afresh.
    Raises BadInput.
    """
    if task.minari:
        if url:
            raise BadInput(
                f"--url names an archive, but {task.name} comes through the minari library: leave "
                "it out"
            )
        return download_minari(task, to)
    to = expanded(to) if to else cache()
    url = url or task.url
    if not url.startswith(WEB):
        raise BadInput(f"{brief(url)}: not an http or https address")
    final = to / task.data[0]
    plain = "_".join(Path(task.data[0]).parts)
    part = to / f"{plain}.part" if is_hdf5(final) else to / f"{plain}.zip.part"
    try:
        if final.exists():
            check_installed(final, task)
            return final
        to.mkdir(parents=True, exist_ok=True)
        with Lock(to / ".lock"):
            for left in to.glob(f"{UNPACK}*"):  # of a download that was killed
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
            fetch(url, part)
            install(part, final, task)
    except OSError as e:
        raise BadInput(f"cannot write to {to} ({e.strerror or e})") from e
    return final


def is_hdf5(path):
    """Whether a path is that of an HDF5 file, which is downloaded as it is."""
    return path.suffix == ".hdf5"


def check_installed(final, task):
    """Refuse data that is already there and is not the task's. Raises BadInput."""
    try:
        if is_hdf5(final):
            shapes(final)
            return
        verify(final, task.sha256, task.optional)
    except BadInput as e:
        raise BadInput(f"{e}: move it away to download the data") from e


def install(archive, final, task):
    """Unpack and verify an archive, then move its data to the path `final`.

    Raises BadInput if the archive is not the task's, and renames it to .bad. It is not to blame for
    a full disk.
    """
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=UNPACK) as new:
        try:
            if is_hdf5(final):
                unpacked = Path(new, final.name)
                unpacked.symlink_to(archive.absolute())  # it is known by its name
                shapes(unpacked)
            else:
                unpacked = unpack(archive, final.name, Path(new))
                verify(unpacked, task.sha256, task.optional)
        except BadInput as e:
            if getattr(e.__cause__, "errno", None) in DISK_FULL:
                raise
            bad = archive.replace(archive.with_suffix(".bad"))
            raise BadInput(f"not installed, the archive is kept as {bad}: {e}") from e
        final.parent.mkdir(parents=True, exist_ok=True)
        if is_hdf5(final):
            archive.replace(final)
        else:
            unpacked.replace(final)
            archive.unlink()


def download_minari(task, to=None):
    """Have the minari library install the task's data set. Returns its folder. Raises BadInput.

    The folder is below `to` or `minari_home()`; `to` becomes MINARI_DATASETS_PATH of this process.
    What is already there is not fetched again.
    """
    try:
        import minari
    except ImportError as e:
        raise BadInput(
            f'{task.minari} needs the minari library: pip install "minari[hf]==0.5.4" '
            "(requirements-extra.txt)"
        ) from e
    if to:
        os.environ["MINARI_DATASETS_PATH"] = str(expanded(to))
    with refusing(f"{task.minari}: download failed, try again later"):
        minari.download_dataset(task.minari)
    return minari_home() / task.minari
