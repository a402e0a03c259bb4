"""Pictures: kept as bytes in a cache file, which is mapped into memory instead of being read.

The pictures of a camera take gigabytes, and recordings keep them packed, or as floats of four times
the size. So they are unpacked or rendered once, into a file beside their source:

  4096 bytes       a line of JSON that says what the file holds, and spaces
  N H W C bytes    the pictures (N, H, W, C), uint8
  4 (N + 1) bytes  the CRC-32 of each picture, and that of these N numbers

The system reads the parts of it that are looked at, keeps them while there is memory to spare, and
shares them among the processes that train on the same data.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
import zlib

import numpy as np
from tqdm import tqdm

from commands import BadInput
from files import MAX_GB, NUMBERS, Lock, atomic, brief, cache

SMALL = 2**26  # bytes: the pictures of a camera that take no more get no file
HEADER = 4096  # bytes before the pictures
FORMAT = "pictures 1"
SAMPLE = 1000  # pictures that are checked in a file that does not fit into memory
BLOCK = 64  # pictures that are unpacked at a time


def cached_pictures(source, name, shape, key, make, max_gb=MAX_GB):
    """The pictures (N, H, W, C) uint8 of a camera, mapped from a file that is made at first use.

    source: the file or folder that they come from. The cache lies beside it, or in the user's
    folder of caches where nothing may be written beside it. name: the camera's. key: a text that
    differs where the pictures differ, such as a checksum of what they are made of. make() yields
    them in order, as arrays (n, H, W, C) of whole numbers from 0 to 255, with any n.

    Pictures of no more than SMALL bytes get no file; they are made every time. A cache that is
    damaged, or of other data, is made again. The array cannot be written to. Raises BadInput if the
    pictures are not whole numbers from 0 to 255, or if no place has room for them and they take
    more than max_gb GB of memory.
    """
    what = f"{source}: {name} {shape}"
    nbytes = math.prod(shape)
    if nbytes <= SMALL:
        return made_in_memory(shape, make, what)
    places = cache_places(source, name)
    taken = [path for path in places if os.path.lexists(path) and not path.is_file()]
    found = {}
    for path in places:
        if path.is_file():
            pictures, found[path] = checked(path, shape, key, max_gb)
            if pictures is not None:
                return pictures
    for path in places:
        if path not in taken and has_room(path.parent, nbytes):
            if path in found:
                print(f"{path} {found[path]}: it is made again", file=sys.stderr)
            return build(path, shape, key, make, what, max_gb)
    if nbytes <= max_gb * 1e9:
        return made_in_memory(shape, make, what)
    raise BadInput(
        f"{what} take {nbytes / 1e9:.3g} GB, for which there is no room in {places[0].parent} or "
        f"{places[1].parent}: set DRIFT_CACHE to a folder on a larger disk"
    )


# ---- what counts as pictures ---------------------------------------------------------------------


def are_pictures(shape, dtype):
    """Whether an array is one of pictures: four axes, and numbers."""
    return len(shape) == 4 and dtype.kind in NUMBERS


def at_once(shape, dtype, block):
    """(shape, dtype) of as much of a file's pictures as is in memory at once, for check_size.

    block: the shape of the part that is unpacked at a time where they go into a cache file.
    """
    if math.prod(shape) <= SMALL:
        return shape, dtype
    return (min(block[0], shape[0]), *block[1:]), dtype


def to_bytes(block, what, first):
    """Pictures (n, H, W, C) as uint8, the first of which is number `first` of `what`.

    Raises BadInput if they are anything but whole numbers from 0 to 255.
    """
    if block.dtype == np.uint8:
        return np.ascontiguousarray(block)
    with np.errstate(invalid="ignore"):  # NaN becomes some number, which then differs
        converted = block.astype(np.uint8, order="C")
    different = converted != block
    if different.any():
        n = int(different.reshape(len(block), -1).any(1).argmax())
        value = block[n][different[n]][0]
        raise BadInput(
            f"{what} {block.dtype} has the value {value:g} in picture {first + n}: pictures must "
            "be whole numbers from 0 to 255 (multiply those from 0 to 1 by 255, and round them)"
        )
    return converted


def blocks(shape, make, what):
    """What make() yields, as uint8, with a progress bar where the terminal shows one."""
    done = 0
    with tqdm(total=shape[0], unit="picture", delay=1, disable=None) as bar:
        for block in make():
            yield to_bytes(block, what, done)
            done += len(block)
            bar.update(len(block))
    if done != shape[0]:
        raise ValueError(f"{what}: {done} pictures were made")


def made_in_memory(shape, make, what):
    """The pictures (N, H, W, C) uint8 in memory."""
    pictures = np.empty(shape, np.uint8)
    done = 0
    for block in blocks(shape, make, what):
        pictures[done : done + len(block)] = block
        done += len(block)
    return pictures


# ---- the file ------------------------------------------------------------------------------------


def cache_places(source, name):
    """Where a camera's cache may be, best first: beside its source, in the user's own folder.

    There each source has a name of its own.
    """
    camera = re.sub(r"[^\w-]", "_", name)[:50]  # the name may come from a file
    number = hashlib.sha256(os.path.abspath(source).encode()).hexdigest()[:12]
    return [
        source.parent / f"{source.name}.{camera}.pictures",
        cache() / "pictures" / f"{source.name}.{number}.{camera}.pictures",
    ]


def has_room(folder, nbytes):
    """Whether a file of nbytes can be made in a folder, or in one that can be made for it.

    A folder whose mode lets nobody write is left alone, also by root.
    """
    with contextlib.suppress(OSError):
        while not folder.exists():
            folder = folder.parent
        allowed = folder.stat().st_mode & 0o222 and os.access(folder, os.W_OK)
        return bool(allowed) and shutil.disk_usage(folder).free > nbytes + 2**24
    return False


def header(shape, key):
    """The first bytes of a cache file."""
    about = {
        "format": FORMAT,
        "shape": list(shape),
        "key": hashlib.sha256(key.encode()).hexdigest(),
    }
    return json.dumps(about).encode().ljust(HEADER - 1) + b"\n"


def build(path, shape, key, make, what, max_gb):
    """Make a cache file, which appears whole or not at all -> its pictures. Raises BadInput.

    Another process that is making it is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with Lock(path.with_name(f".{path.name}.lock"), wait=True):
        if path.is_file():
            pictures, _ = checked(path, shape, key, max_gb)
            if pictures is not None:
                return pictures
        print(f"{what} are written as bytes, once, to {path}", file=sys.stderr)

        def write(file):
            file.write(header(shape, key))
            sums = []
            for block in blocks(shape, make, what):
                file.write(block.data)
                sums += [zlib.crc32(picture) for picture in block]
            table = np.array(sums, "<u4").tobytes()
            file.write(table + zlib.crc32(table).to_bytes(4, "little"))

        atomic(path, write)
        with open(path, "rb") as file:
            return mapped(file, shape)


def checked(path, shape, key, max_gb):
    """(pictures of a cache file, None), or (None, what is wrong with it, in a few words).

    The pictures are those of the file that was checked, whatever another process puts in its place.
    """
    try:
        with open(path, "rb") as file:
            wrong = fault(file, shape, key, max_gb)
            return (None, wrong) if wrong else (mapped(file, shape), None)
    except OSError as e:
        return None, f"cannot be read ({brief(e.strerror)})"


def fault(file, shape, key, max_gb):
    """What is wrong with an open cache file, in a few words, or None.

    Of a file of up to max_gb GB every picture is compared with its checksum, of a larger one SAMPLE
    pictures that are spread over it. It is read, not mapped, so that the pages do not count as
    memory of this process.
    """
    N = shape[0]
    nbytes = math.prod(shape)
    if file.read(HEADER) != header(shape, key):
        return "is not of this data, or is damaged"
    size = os.fstat(file.fileno()).st_size
    wanted = HEADER + nbytes + 4 * (N + 1)
    if size != wanted:
        return f"is damaged (it has {size} bytes instead of {wanted})"
    file.seek(HEADER + nbytes)
    table = file.read(4 * N)
    if zlib.crc32(table) != int.from_bytes(file.read(4), "little"):
        return "is damaged (its checksums are wrong)"
    sums = np.frombuffer(table, "<u4")
    each = nbytes // N
    some = range(N) if nbytes <= max_gb * 1e9 else np.linspace(0, N - 1, SAMPLE).astype(int)
    for n in some:
        file.seek(HEADER + int(n) * each)
        if zlib.crc32(file.read(each)) != sums[n]:
            return f"is damaged (picture {n} is not what was written)"
    return None


def mapped(file, shape):
    """The pictures (N, H, W, C) of an open cache file, mapped read-only."""
    return np.memmap(file, np.uint8, "r", HEADER, shape).view(np.ndarray)
