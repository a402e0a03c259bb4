"""Files of demonstrations, opened safely: npz, zarr version 2, and HDF5 of Minari and robomimic.

`read` takes any of them and returns {name: array}; data.py makes episodes of these arrays.
Nothing here unpickles, follows a link inside a file or loads a plugin: a file that asks for it is
refused. What a file says of its sizes is checked before memory is taken, and nothing is unpacked
beyond it: a file of a few MB can hold terabytes of zeros. Pictures go into a cache (pictures.py).
Minari's HDF5 is opened in hdf5.py, robomimic's in robomimic_format.py, the padded arrays of
Diffusion Policy's Franka Kitchen in padded.py.
"""

import bz2
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import lzma
import math
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from commands import BadInput
from files import AGAIN, MAX_GB, atomic, brief, check_size, read_bytes, refusing
from hdf5 import MAIN, MINARI, minari_file, minari_shapes, read_minari
from lerobot_format import is_lerobot, lerobot_shapes, read_lerobot
from padded import is_padded, padded_shapes, read_padded
from pictures import BLOCK, are_pictures, at_once, cached_pictures
from robomimic_format import is_robomimic, read_robomimic, robomimic_shapes

MAX_HEADER = 2**16  # bytes of an array's header in an npz file
COMPRESSORS = {None, "blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma"}  # none runs code
DEFLATE = 1032  # how many times smaller zip's compression can make something


def read(path, names=None, max_gb=MAX_GB, filter_key=None):
    """{name: array} of a file or folder: the arrays in `names` that it holds, or all of them.

    The names go without zarr's data/ and meta/. Those of Minari become obs, action, reward and
    episode_ends; robomimic's keep the names of the observations. Arrays of four axes are pictures
    (N, H, W, C), and come as uint8 from a cache (pictures.py). An array that is missing is no error
    here. filter_key: of a file of robomimic only the demonstrations that this filter of it lists.
    Raises BadInput, also if the arrays without large pictures declare more than max_gb GB.
    """
    path = Path(path)
    with refusing(f"{path} cannot be read"):
        if filter_key is not None and not is_robomimic(path):
            raise BadInput(
                f"--filter: {path} is no HDF5 file of robomimic, which alone has filters"
            )
        if is_lerobot(path):
            return read_lerobot(path, names, max_gb)
        if is_padded(path):
            return read_padded(path, names, max_gb)
        if is_robomimic(path):
            return read_robomimic(path, names, max_gb, filter_key)
        if minari_file(path):
            return read_minari(path, names, max_gb)
        if path.is_file():
            return read_npz(path, names, max_gb)
        return read_zarr(path, names, max_gb)


def names_in(path):
    """The names of all arrays that `read` finds, without reading them. Raises BadInput."""
    path = Path(path)
    with refusing(f"{path} cannot be read"):
        if is_lerobot(path):
            return list(lerobot_shapes(path))
        if is_padded(path):
            return list(padded_shapes(path))
        if is_robomimic(path):
            return list(robomimic_shapes(path))
        if minari_file(path):
            return [*MINARI, "episode_ends"]
        if path.is_file():
            with open_npz(path) as (_, members):
                return list(members)
        return list(zarr_places(path))


def shapes(path):
    """{name: (shape, dtype)} of all arrays in a file or folder, which are not read for it.

    Raises BadInput.
    """
    path = Path(path)
    with refusing(f"{path} cannot be read"):
        if is_lerobot(path):
            return lerobot_shapes(path)
        if is_padded(path):
            return padded_shapes(path)
        if is_robomimic(path):
            return robomimic_shapes(path)
        if minari_file(path):
            return minari_shapes(path)
        if path.is_file():
            return npz_shapes(path)
        arrays = {name: zarr_array(path, place) for name, place in zarr_places(path).items()}
        return {name: (a.shape, a.dtype) for name, a in arrays.items()}


# ---- npz -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_npz(path):
    """The open zip archive of an npz file and its members {name: zipfile.ZipInfo}.

    Errors inside become BadInput, without numpy's texts: they advise to unpickle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, npz_members(archive, path)
    except (BadInput, MemoryError):
        raise
    except Exception as e:
        raise BadInput(
            f"{path} is not an npz file of plain numbers, or is damaged ({type(e).__name__})"
        ) from e


def npz_members(archive, path):
    """{name: zipfile.ZipInfo} of an open npz file. Raises BadInput if two have one name.

    Refused are also compressions that numpy does not write, since Python does not bound what they
    unpack, and sizes that the file is too small for.
    """
    members = {}
    on_disk = path.stat().st_size
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise BadInput(f"{path} holds {brief(name)} twice: write it again")
        known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        packed = min(info.compress_size, on_disk)
        if not known or info.file_size > DEFLATE * packed + 1000:
            raise BadInput(f"{path} is not an npz file: {brief(name)} is packed in another way")
        members[name] = info
    return members


def npy_header(archive, info):
    """(shape, whether Fortran's order, dtype, bytes of the header) of a member of an npz file.

    Raises BadInput.
    """
    with archive.open(info) as file:
        start = io.BytesIO(file.read(MAX_HEADER))
    try:
        if np.lib.format.read_magic(start) == (1, 0):
            header = np.lib.format.read_array_header_1_0(start)
        else:
            header = np.lib.format.read_array_header_2_0(start)
    except Exception as e:  # also RecursionError and MemoryError, from Python's parser
        raise BadInput(
            f"{archive.filename} is not an npz file of plain numbers, or is damaged: "
            f"{brief(info.filename)} does not begin as an array"
        ) from e
    return *header, start.tell()


def read_npz(path, names=None, max_gb=MAX_GB, *, pictures=True):
    """{name: array} of an npz file, as `read`. Raises BadInput.

    pictures: whether arrays of four axes are pictures, as they are in demonstrations.
    """
    arrays = {}
    with open_npz(path) as (archive, members):
        wanted = {n: info for n, info in members.items() if names is None or n in names}
        declared = {}
        for name, info in wanted.items():
            shape, fortran, dtype, start = npy_header(archive, info)
            if dtype.hasobject:
                raise BadInput(
                    f"{path} is not an npz file of plain numbers: {brief(name)} holds Python's "
                    "objects"
                )
            if start + math.prod(shape) * dtype.itemsize != info.file_size:
                raise BadInput(
                    f"{path} is damaged: {brief(name)} is of another size than {brief(shape)} "
                    f"{brief(dtype)} takes"
                )
            declared[name] = (shape, dtype)
            if pictures and are_pictures(shape, dtype) and not fortran:
                declared[name] = at_once(shape, dtype, (BLOCK, *shape[1:]))
        check_size(declared, path, max_gb)
        for name, info in wanted.items():
            shape, fortran, dtype, start = npy_header(archive, info)
            if pictures and are_pictures(shape, dtype):
                make = functools.partial(npz_blocks, archive, info)
                key = f"npz {shape} {dtype.str} {info.CRC}"
                arrays[name] = cached_pictures(path, name, shape, key, make, max_gb)
            else:
                with archive.open(info) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def npz_blocks(archive, info):
    """The pictures of a member of an npz file in order, as arrays of up to BLOCK of them."""
    shape, fortran, dtype, start = npy_header(archive, info)
    with archive.open(info) as file:
        if fortran:
            yield np.lib.format.read_array(file, allow_pickle=False)
            return
        file.read(start)
        for first in range(0, shape[0], BLOCK):
            some = (min(BLOCK, shape[0] - first), *shape[1:])
            content = file.read(math.prod(some) * dtype.itemsize)
            yield np.frombuffer(content, dtype).reshape(some)


def npz_shapes(path):
    """{name: (shape, dtype)} of the arrays of an npz file, from their headers. Raises BadInput."""
    with open_npz(path) as (archive, members):
        return {
            name: npy_header(archive, info)[0:3:2]
            for name, info in members.items()
            if info.filename.endswith(".npy")
        }


def save_npz(path, **arrays):
    """Write a compressed npz file, atomically. `read` takes it back."""
    atomic(path, lambda f: np.savez_compressed(f, **arrays))


# ---- zarr ----------------------------------------------------------------------------------------


def zarr_places(path):
    """{name: its place in the folder}, such as {"action": "data/action"}. Raises BadInput."""
    if (path / "zarr.json").exists():
        raise BadInput(f"{path} is zarr version 3: write it with zarr_format=2, which is read here")
    if not (path / ".zgroup").exists():
        raise BadInput(
            f"{path} is not a file, and not a zarr version 2 group (it has no .zgroup) or a Minari "
            f"data set (no data/{MAIN})"
        )
    with refusing(f"{path} is damaged, {AGAIN}"):
        groups = [group for group in ("data", "meta") if (path / group).is_dir()]
        folders = [f for group in groups for f in sorted((path / group).iterdir()) if f.is_dir()]
    return {folder.name: f"{folder.parent.name}/{folder.name}" for folder in folders}


def read_zarr(path, names=None, max_gb=MAX_GB):
    """{name: array} of a zarr version 2 folder, as `read`. Raises BadInput."""
    arrays = {
        name: zarr_array(path, place)
        for name, place in zarr_places(path).items()
        if names is None or name in names
    }
    declared = {name: (a.unpacked_shape, a.dtype) for name, a in arrays.items()}
    for name, a in arrays.items():
        if are_pictures(a.shape, a.dtype):
            at_a_time = (a.chunks[0], *a.unpacked_shape[1:])  # see zarr_content
            declared[name] = at_once(a.unpacked_shape, a.dtype, at_a_time)
    check_size(declared, path, max_gb)
    with refusing(f"{path} is damaged, {AGAIN}"):
        return {name: zarr_content(path, name, a, max_gb) for name, a in arrays.items()}


def zarr_content(path, name, array, max_gb):
    """The numbers of a ZarrArray of a folder; pictures come from a cache. Raises BadInput."""
    if not are_pictures(array.shape, array.dtype):
        return array[...]
    step = array.chunks[0]

    def make():
        for first in range(0, array.shape[0], step):
            yield array[first : first + step]

    return cached_pictures(path, name, array.shape, array.key(), make, max_gb)


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """An array of a zarr version 2 folder. array[...] and array[first:last] read its chunks.

    The zarr library is not used, because it would let four things pass: missing chunks are filled
    with fill_value, a Blosc chunk that was cut short is decoded into noise, a pickle filter runs
    code, and a chunk may unpack to any size.
    """

    folder: Path
    shape: tuple
    chunks: tuple  # the shape of each chunk, also of those at the borders
    dtype: np.dtype
    codec: str | None
    order: str
    separator: str
    where: str  # the array's name in error messages

    @property
    def unpacked_shape(self):
        """The shape of all chunks together."""
        return tuple(-(-size // chunk) * chunk for size, chunk in zip(self.shape, self.chunks))

    def __getitem__(self, rows):
        """Rows first:last as a numpy array, or all of them. Raises BadInput."""
        rows = slice(None) if rows is ... else rows
        first, last, _ = rows.indices(self.shape[0])
        last = max(first, last)
        ranges = [(first, last), *((0, size) for size in self.shape[1:])]
        out = np.empty((last - first, *self.shape[1:]), self.dtype)
        counts = [-(-b // chunk) for (_, b), chunk in zip(ranges, self.chunks)]
        begin = first // self.chunks[0]
        for steps in np.ndindex(counts[0] - begin, *counts[1:]):
            place = (begin + steps[0], *steps[1:])
            target = []  # where the chunk's numbers go, and which of them, along each axis
            taken = []
            for i, chunk, (a, b) in zip(place, self.chunks, ranges):
                low = max(i * chunk, a)
                high = min((i + 1) * chunk, b)
                target.append(slice(low - a, high - a))
                taken.append(slice(low - i * chunk, high - i * chunk))
            out[tuple(target)] = self.chunk(place)[tuple(taken)]
        return out

    def file(self, place):
        """The file of the chunk at a place (ndim integers). Raises BadInput if it is missing."""
        key = self.separator.join(map(str, place))
        if not (self.folder / key).is_file():
            raise BadInput(f"{self.where} lacks chunk {key}: {AGAIN}")
        return self.folder / key

    def key(self):
        """A text that is another one when the numbers are: sizes and times of the chunks' files.

        The first bytes of .zarray, and of the first and the last chunk, count too. Nothing is
        unpacked for it.
        """
        counts = [-(-size // chunk) for size, chunk in zip(self.shape, self.chunks)]
        files = [self.folder / ".zarray", *(self.file(place) for place in np.ndindex(*counts))]
        found = hashlib.sha256()
        for file in files:
            about = file.stat()
            found.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
        for file in (*files[:2], files[-1]):
            with open(file, "rb") as opened:
                found.update(opened.read(2**16))
        return f"zarr {found.hexdigest()}"

    def chunk(self, place):
        """The chunk at a place (ndim integers). Raises BadInput if it is missing or damaged."""
        file = self.file(place)
        key = self.separator.join(map(str, place))
        nbytes = math.prod(self.chunks) * self.dtype.itemsize
        with refusing(f"{self.where}: chunk {key} is damaged, {AGAIN}"):
            content = unpack_chunk(read_bytes(file, 2 * nbytes + 2**16), self.codec, nbytes)
            return np.frombuffer(content, self.dtype).reshape(self.chunks, order=self.order)


def zarr_array(path, name):
    """The ZarrArray of a folder, not read. Raises BadInput unless it is plain and safe."""
    where = f"{path}: array {name}"
    folder = Path(path) / name
    with refusing(f"{where} cannot be opened"):
        meta = json.loads(read_bytes(folder / ".zarray"))
        dtype = meta["dtype"]
        codec = (meta["compressor"] or {}).get("id")
        filters = meta.get("filters")
        plain = isinstance(dtype, str) and re.fullmatch(r"[<>|][fiu][1248]", dtype)
        if not plain or filters or codec not in COMPRESSORS:
            raise BadInput(
                f"{where} is refused: dtype {brief(dtype)}, compressor {brief(codec)}, filters "
                f"{brief(filters)} are not all safe"
            )
        shape = meta["shape"]
        chunks = meta["chunks"]
        order = meta.get("order", "C")
        separator = meta.get("dimension_separator", ".")
        sizes = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *chunks))
        fits = 0 < len(shape) == len(chunks) <= 32 and min(chunks) > 0
        known = order in ("C", "F") and separator in (".", "/")
        if not (sizes and fits and known):
            raise BadInput(
                f"{where} has shape {brief(shape)} in chunks {brief(chunks)}: not a layout that "
                "can be read"
            )
        return ZarrArray(
            folder=folder,
            shape=tuple(shape),
            chunks=tuple(chunks),
            dtype=np.dtype(dtype),
            codec=codec,
            order=order,
            separator=separator,
            where=where,
        )


def unpack_chunk(content, codec, nbytes):
    """The bytes of a zarr chunk, which must be nbytes. Raises ValueError if they are not.

    Never more than nbytes + 1 are unpacked, whatever the content says.
    """
    if codec in ("blosc", "lz4", "zstd"):
        import numcodecs  # slow to import

        if size_by_header(content, codec) != nbytes:
            raise ValueError("another size")
        room = np.empty(nbytes, np.uint8)
        return numcodecs.get_codec({"id": codec}).decode(content, out=room)
    if codec is not None:
        if codec == "bz2":
            stream = bz2.BZ2Decompressor()
        elif codec == "lzma":
            stream = lzma.LZMADecompressor(memlimit=2**28)
        else:
            stream = zlib.decompressobj(32 + zlib.MAX_WBITS)  # zlib or gzip, by its header
        content = stream.decompress(content, nbytes + 1)
        if not stream.eof:
            raise ValueError("cut short, or too long")
    if len(content) != nbytes:
        raise ValueError(f"{len(content)} bytes instead of {nbytes}")
    return content


def size_by_header(content, codec):
    """The number of bytes that a compressed chunk says it unpacks to, None if it does not say."""
    if codec == "lz4":
        return int.from_bytes(content[:4], "little")
    if codec == "blosc":
        own = int.from_bytes(content[12:16], "little")
        return int.from_bytes(content[4:8], "little") if own == len(content) else None
    # A frame of zstd: 4 bytes of magic, the descriptor, its window's size, a dictionary's number.
    flags = content[4]
    single = flags >> 5 & 1
    length = (single, 2, 4, 8)[flags >> 6]
    if not length:
        return None
    at = 6 - single + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(content[at : at + length], "little") + (256 if length == 2 else 0)
