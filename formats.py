"""Files of demonstrations, opened safely: npz, zarr version 2, and the HDF5 of Minari.

`read` takes any of the three and returns {name: array}; data.py makes episodes of these arrays.
Nothing here unpickles, follows a link inside a file or loads a plugin: a file that asks for it is
refused. What a file says of its sizes is checked before memory is taken, and nothing is unpacked
beyond it: a file of a few MB can hold terabytes of zeros.

Minari is the successor of D4RL. A data set of it, which `save_minari` writes too, is a folder with
data/metadata.json and data/main_data.hdf5. The latter holds a group for each episode of L steps:

  episode_0/observations                           (L+1, S)
  episode_0/actions                                (L, D_a)
  episode_0/rewards, terminations, truncations     (L,)
  episode_0                                        attributes id, seed, total_steps
"""

import bz2
import contextlib
import dataclasses
import io
import json
import lzma
import math
import os
import re
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from commands import BadInput
from files import atomic, read_bytes

MAX_GB = 4  # the arrays that are read from one file, unless --max-gb allows more
MAX_HEADER = 2**16  # bytes of an array's header in an npz file
MAX_CHUNK = 2**24  # bytes of an HDF5 chunk that is larger than its array
MAX_EPISODES = 100_000  # in a Minari data set: checking one takes a millisecond
NUMBERS = "fiu"  # the letters of numpy's dtype.kind for floats and integers
COMPRESSORS = {None, "blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma"}  # none runs code
DEFLATE = 1032  # how many times smaller zip's compression can make something
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # HDF5's own and lzf; for others HDF5 would load a plugin
MAIN = "main_data.hdf5"
MINARI = {"obs": "observations", "action": "actions", "reward": "rewards"}  # our name -> Minari's
ADROIT_SETTINGS = ("board_pos", "door_body_pos", "desired_orien")
AGAIN = "copy or download the data again"


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


def read(path, names=None, max_gb=MAX_GB):
    """{name: array} of a file or folder: the arrays in `names` that it holds, or all of them.

    The names go without zarr's data/ and meta/. Those of Minari become obs, action, reward and
    episode_ends. Pictures (N, H, W, C) come as uint8, see `as_bytes`. An array that is missing from
    npz or zarr is no error here. Raises BadInput, also if the arrays declare more than max_gb GB.
    """
    path = Path(path)
    with refusing(f"{path} cannot be read"):
        if minari_file(path):
            return read_minari(path, names, max_gb)
        if path.is_file():
            return read_npz(path, names, max_gb)
        return read_zarr(path, names, max_gb)


def names_in(path):
    """The names of all arrays that `read` finds, without reading them. Raises BadInput."""
    path = Path(path)
    with refusing(f"{path} cannot be read"):
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
        if minari_file(path):
            return minari_shapes(path)
        if path.is_file():
            return npz_shapes(path)
        arrays = {name: zarr_array(path, place) for name, place in zarr_places(path).items()}
        return {name: (a.shape, a.dtype) for name, a in arrays.items()}


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


def as_bytes(pictures, step=64):
    """An array (N, H, W, C) of whole numbers from 0 to 255, as uint8; other arrays unchanged.

    Some data sets keep pictures as floats, at four times the size. `step` pictures are read and
    converted at a time, so that the floats are never in memory together.
    """
    if pictures.ndim != 4 or pictures.dtype.kind not in NUMBERS or pictures.dtype == np.uint8:
        return pictures[...]
    converted = np.empty(pictures.shape, np.uint8)
    for first in range(0, pictures.shape[0], step):
        some = pictures[first : first + step]
        with np.errstate(invalid="ignore"):  # NaN becomes some number, which then differs
            converted[first : first + step] = some
        if (converted[first : first + step] != some).any():
            return pictures[...]
    return converted


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
    """(shape, dtype, bytes of the header) of a member of an npz file. Raises BadInput."""
    with archive.open(info) as file:
        start = io.BytesIO(file.read(MAX_HEADER))
    try:
        if np.lib.format.read_magic(start) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(start)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(start)
    except Exception as e:  # also RecursionError and MemoryError, from Python's parser
        raise BadInput(
            f"{archive.filename} is not an npz file of plain numbers, or is damaged: "
            f"{brief(info.filename)} does not begin as an array"
        ) from e
    return shape, dtype, start.tell()


def read_npz(path, names=None, max_gb=MAX_GB):
    """{name: array} of an npz file, as `read`. Raises BadInput."""
    arrays = {}
    with open_npz(path) as (archive, members):
        wanted = {n: info for n, info in members.items() if names is None or n in names}
        declared = {}
        for name, info in wanted.items():
            shape, dtype, start = npy_header(archive, info)
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
        check_size(declared, path, max_gb)
        for name, info in wanted.items():
            with archive.open(info) as file:
                arrays[name] = as_bytes(np.lib.format.read_array(file, allow_pickle=False))
    return arrays


def npz_shapes(path):
    """{name: (shape, dtype)} of the arrays of an npz file, from their headers. Raises BadInput."""
    with open_npz(path) as (archive, members):
        return {
            name: npy_header(archive, info)[:2]
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
    check_size({name: (a.unpacked_shape, a.dtype) for name, a in arrays.items()}, path, max_gb)
    with refusing(f"{path} is damaged, {AGAIN}"):
        return {name: as_bytes(a, a.chunks[0]) for name, a in arrays.items()}


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
    def ndim(self):
        """The number of axes."""
        return len(self.shape)

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

    def chunk(self, place):
        """The chunk at a place (ndim integers). Raises BadInput if it is missing or damaged."""
        key = self.separator.join(map(str, place))
        file = self.folder / key
        if not file.is_file():
            raise BadInput(f"{self.where} lacks chunk {key}: {AGAIN}")
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


# ---- Minari: reading -----------------------------------------------------------------------------


def minari_file(path):
    """The HDF5 file of a Minari data set: `path` itself, or in the folder path/data or path.

    None if `path` is no such data set. A folder path/data with nothing but metadata.json counts as
    one, so that reading it says what is missing.
    """
    path = Path(path)
    if path.is_file():
        return path if path.suffix in (".hdf5", ".h5") else None
    if (path / MAIN).is_file():
        return path / MAIN
    data = path / "data"
    if (data / MAIN).is_file() or (data / "metadata.json").is_file():
        return data / MAIN
    return None


def hdf5_node(group, name, kind, where):
    """The h5py.Group or h5py.Dataset, as `kind` says, that an HDF5 group holds under a name.

    Raises BadInput if it is missing, a link, or of another kind.
    """
    import h5py  # slow to import

    links = group.id.links
    where = f"{where}: {group.name.rstrip('/')}/{name}"
    if not links.exists(name.encode()):
        raise BadInput(f"{where} is missing: {AGAIN}")
    if links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise BadInput(
            f"{where} is refused: it is a link, perhaps into another file; write the arrays "
            "themselves"
        )
    node = group[name]
    if not isinstance(node, kind):
        raise BadInput(
            f"{where} is a {type(node).__name__.lower()}, not a {kind.__name__.lower()}: only "
            "observations and actions that are one array are read, no Dict or Tuple spaces"
        )
    return node


def hdf5_array(group, name, kinds, where):
    """An array of an HDF5 group, opened but not read. Raises BadInput unless it is safe and whole.

    kinds: the letters of numpy's dtype.kind that are accepted. The checks come before reading,
    because the library would fetch external and virtual numbers from other files, load plugins for
    filters, and fill in what was never written.
    """
    import h5py

    array = hdf5_node(group, name, h5py.Dataset, where)
    where = f"{where}: {array.name}"
    if array.is_virtual or array.external:
        raise BadInput(
            f"{where} is refused: its numbers are in other files; write them into this one"
        )
    plan = array.id.get_create_plist()
    filters = {plan.get_filter(i)[0] for i in range(plan.get_nfilters())}
    if array.dtype.kind not in kinds or filters - FILTERS:
        raise BadInput(
            f"{where} is refused: dtype {brief(array.dtype)} or filters {sorted(filters)} are not "
            "plain and safe"
        )
    size = math.prod(array.shape)  # array.size may overflow
    if math.prod(array.chunks or ()) * array.dtype.itemsize > max(
        size * array.dtype.itemsize, MAX_CHUNK
    ):
        raise BadInput(
            f"{where} has shape {array.shape} in chunks {array.chunks}: not a layout that can be "
            "read"
        )
    if size and array.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise BadInput(f"{where} was not written to its end: {AGAIN}")
    return array


def check_episode(group, where):
    """The shapes {"observations": ..., "actions": ...} of an episode. Raises BadInput.

    All of its five arrays are checked against one another.
    """
    obs = hdf5_array(group, "observations", NUMBERS, where)
    action = hdf5_array(group, "actions", NUMBERS, where)
    about = f"{where}: {group.name}"
    two_axes = obs.ndim == 2 and action.ndim == 2
    if not two_axes or not len(action) or len(obs) != len(action) + 1:
        raise BadInput(
            f"{about} has observations {obs.shape} and actions {action.shape}: they must be "
            "(L+1, S) and (L, D_a), L at least 1"
        )
    for name, kinds in (
        ("rewards", NUMBERS),
        ("terminations", NUMBERS.replace("f", "b")),
        ("truncations", NUMBERS.replace("f", "b")),
    ):
        shape = hdf5_array(group, name, kinds, where).shape
        if shape != (len(action),):
            raise BadInput(
                f"{about} has {name} of shape {shape}: it must be ({len(action)},), one for each "
                "action"
            )
    return {"observations": obs.shape, "actions": action.shape}


def minari_layout(f, file):
    """The names of an open file's episodes and the shapes of each, all checked. Raises BadInput."""
    import h5py

    if len(f) > MAX_EPISODES:
        raise BadInput(f"{file} holds {len(f)} groups, but no more than {MAX_EPISODES} are read")
    E = sum(re.fullmatch(r"episode_\d+", name) is not None for name in f)
    if not E:
        raise BadInput(
            f"{file} holds no episode_0, episode_1, ...: it is not a Minari data set, or is empty"
        )
    check_metadata(file, E)
    groups = [f"episode_{e}" for e in range(E)]
    sizes = [check_episode(hdf5_node(f, group, h5py.Group, file), file) for group in groups]
    for name in sizes[0]:
        widths = {size[name][1] for size in sizes}
        if len(widths) > 1:
            raise BadInput(
                f"{file}: {name} have different sizes in different episodes: {sorted(widths)}"
            )
    return groups, sizes


@contextlib.contextmanager
def open_minari(path):
    """The HDF5 file of a Minari data set and the open h5py.File. Errors inside become BadInput."""
    import h5py

    file = minari_file(path)
    if file is None or not file.is_file():
        raise BadInput(f"{file or path} is missing: of Minari's formats only HDF5 is read")
    with (
        refusing(f"{file} is not HDF5 of Minari, or is damaged: {AGAIN}"),
        h5py.File(file, "r") as f,
    ):
        yield file, f


def minari_declared(sizes):
    """{our name: (shape, dtype)} of the arrays of episodes with these shapes (minari_layout)."""
    N = sum(size["actions"][0] for size in sizes)
    found = {ours: (N, *sizes[0].get(theirs, ())[1:]) for ours, theirs in MINARI.items()}
    declared = {name: (shape, np.dtype(np.float32)) for name, shape in found.items()}
    return declared | {"episode_ends": ((len(sizes),), np.dtype(np.int64))}


def minari_shapes(path):
    """{name: (shape, dtype)} of what `read_minari` gives, which is not read. Raises BadInput."""
    with open_minari(path) as (file, f):
        return minari_declared(minari_layout(f, file)[1])


def read_minari(path, names=None, max_gb=MAX_GB):
    """The arrays of a Minari data set, or those of them in `names`. Raises BadInput.

    obs (N, S), action (N, D_a) and reward (N,) are float32; episode_ends (E,) is int64, cumulative.
    The observation after an episode's last action is dropped. path: as for `minari_file`.
    """
    arrays = {}
    with open_minari(path) as (file, f):
        groups, sizes = minari_layout(f, file)
        lengths = np.array([size["actions"][0] for size in sizes])
        ends = lengths.cumsum()
        declared = {
            name: what
            for name, what in minari_declared(sizes).items()
            if names is None or name in names
        }
        check_size(declared, file, max_gb)
        for ours, theirs in MINARI.items():
            if ours not in declared:
                continue
            arrays[ours] = np.empty(*declared[ours])
            for group, L, end in zip(groups, lengths, ends):
                f[group][theirs].read_direct(arrays[ours], np.s_[:L], np.s_[end - L : end])
    if "episode_ends" in declared:
        arrays["episode_ends"] = ends
    return arrays


def read_adroit(path, repeat=2):
    """The recorded states of Minari's D4RL Adroit data. Raises BadInput.

    Every `repeat`-th state is taken, with the mean of the actions up to the next one. Returns
    qpos (N, nq), actions (N, D_a), episode_ends (E,), and what the file holds of ADROIT_SETTINGS,
    the values (E, ·) that an episode sets in the simulator's model.
    """
    import h5py

    file = minari_file(path)
    if file is None or not file.is_file():
        raise BadInput(f"{path} is not a Minari data set (no data/{MAIN})")
    with refusing(f"{file} holds no Adroit states, or is damaged: {AGAIN}"), h5py.File(file) as f:
        E = sum(name.startswith("episode_") for name in f)
        if not 0 < E <= MAX_EPISODES:
            raise BadInput(f"{file} holds {E} episodes: 1 to {MAX_EPISODES} are read")
        groups = [hdf5_node(f, f"episode_{e}", h5py.Group, file) for e in range(E)]
        opened = [adroit_arrays(group, file) for group in groups]
        declared = {a.name: (a.shape, a.dtype) for arrays in opened for a in arrays.values()}
        check_size(declared, file, MAX_GB)
        episodes = [read_adroit_episode(arrays, repeat) for arrays in opened]
        arrays = {}
        for name in episodes[0]:
            join = np.concatenate if name in ("qpos", "actions") else np.stack
            arrays[name] = join([episode[name] for episode in episodes])
    arrays["episode_ends"] = np.cumsum([len(episode["qpos"]) for episode in episodes])
    return arrays


def adroit_arrays(group, file):
    """The arrays {name: h5py.Dataset} of one episode, not read. Raises BadInput.

    The states are in the group state of the episode, or of its group infos.
    """
    import h5py

    inside = group if "state" in group else hdf5_node(group, "infos", h5py.Group, file)
    state = hdf5_node(inside, "state", h5py.Group, file) if "state" in inside else inside
    arrays = {
        "actions": hdf5_array(group, "actions", "f", file),
        "qpos": hdf5_array(state, "qpos", "f", file),
    }
    for name in ADROIT_SETTINGS:
        if name in state:
            arrays[name] = hdf5_array(state, name, "f", file)
    return arrays


def read_adroit_episode(arrays, repeat):
    """{qpos (n, nq), actions (n, D_a), a setting (·,)} of one episode's open arrays."""
    actions = arrays["actions"][...]
    n = len(actions) // repeat
    episode = {
        "qpos": arrays["qpos"][: n * repeat : repeat],
        "actions": actions[: n * repeat].reshape(n, repeat, -1).mean(1),
    }
    for name in ADROIT_SETTINGS:
        if name in arrays:
            episode[name] = arrays[name][0]
    return episode


def metadata(file):
    """(path, content) of each metadata.json of a Minari HDF5 file. BadInput if one is damaged."""
    folders = [file.parent]
    if file.parent.name == "data":
        folders.append(file.parent.parent)  # where older versions of Minari put it
    found = []
    for path in (folder / "metadata.json" for folder in folders):
        if path.is_file():
            with refusing(f"{path} is damaged: {AGAIN}"):
                found.append((path, dict(json.loads(read_bytes(path)).items())))
    return found


def check_metadata(file, episodes):
    """Refuse a metadata.json that tells of another number of episodes. Raises BadInput."""
    for path, about in metadata(file):
        told = about.get("total_episodes", episodes)
        if told != episodes:
            raise BadInput(
                f"{file} holds {episodes} episodes, {path.name} tells of {brief(told)}: {AGAIN}"
            )


def minari_env(path):
    """The gymnasium id of the environment that a Minari data set was recorded in.

    None if the data set does not say it, or `path` is none. Raises BadInput if it is damaged.
    """
    file = minari_file(path)
    if file is None:
        return None
    for where, about in metadata(file):
        if about.get("env_spec"):
            with refusing(f"{where} is damaged: {AGAIN}"):
                return str(json.loads(about["env_spec"])["id"])
    return None


# ---- Minari: writing -----------------------------------------------------------------------------


def save_minari(path, episodes, env, dataset_id, **about):
    """Write a Minari data set that the minari library loads too. It appears whole or not at all.

    episodes: dicts of observations (L+1, S), actions (L, D_a), rewards, terminations, truncations
    (L,) and seed, the number that the environment was reset with. Numbers are kept as float32.
    env: the environment, for its spaces and gymnasium's spec; its observation is a Box, or a Dict
    of "state" alone. about: more entries of metadata.json, such as algorithm_name. Raises BadInput
    if `path` exists or cannot be written, or the arrays do not fit together.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise BadInput(f"{path} exists: name a new folder, or move it away")
    with refusing(f"cannot write {path}"):
        meta = minari_metadata(episodes, env, dataset_id, about)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as tmp:
            data = Path(tmp, "new", "data")
            data.mkdir(parents=True)
            write_hdf5(data / MAIN, episodes)
            meta["dataset_size"] = round((data / MAIN).stat().st_size / 1e6, 1)  # MB
            text = json.dumps(meta, indent=1)
            atomic(data / "metadata.json", lambda f: f.write(text.encode()))
            read_minari(data)
            data.parent.rename(path)


def write_hdf5(path, episodes):
    """Write the episodes of `save_minari` as Minari's HDF5 file."""
    import h5py

    types = {
        "observations": np.float32,
        "actions": np.float32,
        "rewards": np.float32,
        "terminations": np.bool_,
        "truncations": np.bool_,
    }
    version = ("v110", "v110")  # the file layout of HDF5 1.10: 13 kB less an episode
    with h5py.File(path, "w", libver=version) as f:
        for i, episode in enumerate(episodes):
            group = f.create_group(f"episode_{i}")
            group.create_group("infos")
            group.attrs["id"] = i
            group.attrs["seed"] = int(episode["seed"])
            group.attrs["total_steps"] = len(episode["rewards"])
            for name, dtype in types.items():
                array = np.asarray(episode[name], dtype)
                group.create_dataset(
                    name,
                    data=array,
                    chunks=array.shape,
                    compression=9,
                    shuffle=True,
                    fletcher32=True,
                )
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def minari_metadata(episodes, env, dataset_id, about):
    """The content of metadata.json, but for the file's size. Raises BadInput on other spaces."""
    observation_space = env.observation_space
    if hasattr(observation_space, "spaces"):
        if set(observation_space.spaces) != {"state"}:
            raise BadInput(
                f"observations {', '.join(observation_space.spaces)} are not kept in Minari's "
                "format: only state alone is"
            )
        observation_space = observation_space["state"]
    meta = {
        "total_episodes": len(episodes),
        "total_steps": sum(len(episode["rewards"]) for episode in episodes),
        "data_format": "hdf5",
        "observation_space": box_metadata(observation_space),
        "action_space": box_metadata(env.action_space),
    }
    if env.spec:
        # Our own wrappers are left out: another program could not make them.
        meta["env_spec"] = dataclasses.replace(env.spec, additional_wrappers=()).to_json()
    return meta | {"dataset_id": dataset_id, "minari_version": "0.5.0"} | about


def box_metadata(box):
    """A gymnasium Box as Minari writes it."""
    fields = {"type": "Box", "dtype": "float32", "shape": box.shape}
    return json.dumps(fields | {"low": box.low.tolist(), "high": box.high.tolist()})
