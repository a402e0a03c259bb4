"""Files of demonstrations, opened safely: npz, zarr version 2, and the HDF5 of Minari.

`read` takes any of the three and returns {name: array}; data.py makes episodes of these arrays.
Nothing here unpickles, follows a link or loads a plugin: a file that asks for it is refused.

Minari is the successor of D4RL. A data set of it, which `save_minari` writes too, is a folder with
data/metadata.json and data/main_data.hdf5. The latter holds a group for each episode of L steps:

  episode_0/observations                           (L+1, S)
  episode_0/actions                                (L, D_a)
  episode_0/rewards, terminations, truncations     (L,)
  episode_0                                        attributes id, seed, total_steps
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from runs import BadInput, atomic

LIMIT = 2**30  # bytes; no archive, no chunk and no Minari array that we read comes near
NUMBERS = "fiu"  # the letters of numpy's dtype.kind for floats and integers
COMPRESSORS = {None, "blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma"}  # none runs code
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # HDF5's own and lzf; for others HDF5 would load a plugin
MAIN = "main_data.hdf5"
MINARI = {"obs": "observations", "action": "actions", "reward": "rewards"}  # our name -> Minari's
ADROIT_SETTINGS = ("board_pos", "door_body_pos", "desired_orien")
AGAIN = "copy or download the data again"


@contextlib.contextmanager
def refusing(message):
    """Turn every error inside into BadInput: libraries raise many kinds on damaged data."""
    try:
        yield
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(f"{message} ({type(e).__name__}: {e})") from e


def read(path, names=None):
    """{name: array} of a file or folder: the arrays in `names` that it holds, or all of them.

    The names go without zarr's data/ and meta/. Those of Minari become obs, action, reward and
    episode_ends. Pictures (N, H, W, C) come as uint8, see `as_bytes`. An array that is missing from
    npz or zarr is no error here. Raises BadInput.
    """
    path = Path(path)
    if minari_file(path):
        return read_minari(path, names)
    if path.is_file():
        return read_npz(path, names)
    return read_zarr(path, names)


def names_in(path):
    """The names of all arrays that `read` finds, without reading them. Raises BadInput."""
    path = Path(path)
    if minari_file(path):
        return [*MINARI, "episode_ends"]
    if path.is_file():
        with open_npz(path) as file:
            return list(file.files)
    return list(zarr_places(path))


def shapes(path):
    """{name: (shape, dtype)} of all arrays in a file or folder. Raises BadInput.

    The numbers of npz and zarr are not read for it.
    """
    path = Path(path)
    if minari_file(path):
        return {name: (a.shape, a.dtype) for name, a in read_minari(path).items()}
    if path.is_file():
        return npz_shapes(path)
    arrays = {name: zarr_array(path, place) for name, place in zarr_places(path).items()}
    return {name: (a.shape, a.dtype) for name, a in arrays.items()}


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
    """The open npz file, which unpickles nothing. Errors inside become BadInput."""
    with refusing(f"{path} is not an npz file of plain numbers, or is damaged"):
        with np.load(path, allow_pickle=False) as file:
            yield file


def read_npz(path, names=None):
    """{name: array} of an npz file, as `read`. Raises BadInput."""
    arrays = {}
    with open_npz(path) as file:
        for name in file.files:
            if names is None or name in names:
                arrays[name] = as_bytes(np.asarray(file[name]))  # no array: comes as bytes
    return arrays


def npz_shapes(path):
    """{name: (shape, dtype)} of the arrays of an npz file, from their headers. Raises BadInput."""
    found = {}
    with open_npz(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                continue
            with archive.open(member) as f:
                if np.lib.format.read_magic(f) == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(f)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(f)
            found[member.removesuffix(".npy")] = (shape, dtype)
    return found


def save_npz(path, **arrays):
    """Write a compressed npz file, atomically. `read` takes it back."""
    atomic(path, lambda f: np.savez_compressed(f, **arrays))


# ---- zarr ----------------------------------------------------------------------------------------


def zarr_places(path):
    """{name: its place in the folder}, such as {"action": "data/action"}. Raises BadInput."""
    if not (path / ".zgroup").exists():
        raise BadInput(
            f"{path} is not a file, and not a zarr version 2 group (it has no .zgroup) or a Minari "
            f"data set (no data/{MAIN})"
        )
    with refusing(f"{path} is damaged, {AGAIN}"):
        groups = [group for group in ("data", "meta") if (path / group).is_dir()]
        folders = [f for group in groups for f in sorted((path / group).iterdir()) if f.is_dir()]
    return {folder.name: f"{folder.parent.name}/{folder.name}" for folder in folders}


def read_zarr(path, names=None):
    """{name: array} of a zarr version 2 folder, as `read`. Raises BadInput."""
    arrays = {}
    for name, place in zarr_places(path).items():
        if names is None or name in names:
            array = zarr_array(path, place)
            with refusing(f"{path} is damaged, {AGAIN}"):
                arrays[name] = as_bytes(array, array.chunks[0])
    return arrays


def zarr_array(path, name):
    """An array of a zarr version 2 folder, opened but not read. Raises BadInput unless it is safe.

    The checks come before the zarr library sees the data, because it would let three things pass:
    missing chunks are filled with fill_value, a Blosc chunk that was cut short is decoded into
    noise, and a pickle filter runs code.
    """
    import zarr  # slow to import

    where = f"{path}: array {name}"
    folder = Path(path) / name
    with refusing(f"{where} cannot be opened"):
        meta = json.loads((folder / ".zarray").read_bytes())
        nbytes = zarr_chunk_size(meta, where)
        check_zarr_chunks(folder, meta, nbytes, where)
        return zarr.open_array(str(path), path=name, mode="r", zarr_format=2)


def zarr_chunk_size(meta, where):
    """The bytes of an unpacked chunk, by the content of .zarray. BadInput if that is unsafe."""
    dtype = meta["dtype"]
    codec = (meta["compressor"] or {}).get("id")
    filters = meta.get("filters")
    plain = isinstance(dtype, str) and re.fullmatch(r"[<>|][fiu][1248]", dtype)
    if not plain or filters or codec not in COMPRESSORS:
        raise BadInput(
            f"{where} is refused: dtype {dtype}, compressor {codec}, filters {filters} are not all "
            "safe"
        )
    shape = meta["shape"]
    chunks = meta["chunks"]
    nbytes = math.prod(chunks) * np.dtype(dtype).itemsize
    if not shape or len(shape) != len(chunks) or min(chunks) < 1 or nbytes > LIMIT:
        raise BadInput(
            f"{where} has shape {shape} in chunks {chunks}: not a layout that can be read"
        )
    return nbytes


def check_zarr_chunks(folder, meta, nbytes, where):
    """Refuse an array that lacks a chunk or has one whose Blosc header is wrong. Raises BadInput.

    The header holds the size of the content at byte 4, and that of the chunk itself at byte 12.
    """
    separator = meta.get("dimension_separator", ".")
    blosc = (meta["compressor"] or {}).get("id") == "blosc"
    counts = (math.ceil(size / chunk) for size, chunk in zip(meta["shape"], meta["chunks"]))
    for place in np.ndindex(*counts):
        key = separator.join(map(str, place))
        if not (folder / key).is_file():
            raise BadInput(f"{where} lacks chunk {key}: {AGAIN}")
        if blosc:
            content = (folder / key).read_bytes()
            sizes = [int.from_bytes(content[at : at + 4], "little") for at in (4, 12)]
            if len(content) < 16 or sizes != [nbytes, len(content)]:
                raise BadInput(f"{where}: chunk {key} is damaged, {AGAIN}")


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
            f"{where} is refused: dtype {array.dtype} or filters {sorted(filters)} are not plain "
            "and safe"
        )
    if math.prod(array.chunks or array.shape) * array.dtype.itemsize > LIMIT:
        raise BadInput(
            f"{where} has shape {array.shape} in chunks {array.chunks}: not a layout that can be "
            "read"
        )
    if array.size and array.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
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


def read_minari(path, names=None):
    """The arrays of a Minari data set, or those of them in `names`. Raises BadInput.

    obs (N, S), action (N, D_a) and reward (N,) are float32; episode_ends (E,) is int64, cumulative.
    The observation after an episode's last action is dropped. path: as for `minari_file`.
    """
    import h5py

    file = minari_file(path)
    if not file.is_file():
        raise BadInput(f"{file} is missing: of Minari's formats only HDF5 is read")
    arrays = {}
    with (
        refusing(f"{file} is not HDF5 of Minari, or is damaged: {AGAIN}"),
        h5py.File(file, "r") as f,
    ):
        groups, sizes = minari_layout(f, file)
        lengths = np.array([size["actions"][0] for size in sizes])
        ends = lengths.cumsum()
        for ours, theirs in MINARI.items():
            if names is not None and ours not in names:
                continue
            shape = (int(ends[-1]), *sizes[0].get(theirs, ())[1:])
            if 4 * math.prod(shape) > LIMIT:
                raise BadInput(
                    f"{file}: {theirs} of all episodes are {shape}, more than {LIMIT} bytes"
                )
            arrays[ours] = np.empty(shape, np.float32)
            for group, L, end in zip(groups, lengths, ends):
                f[group][theirs].read_direct(arrays[ours], np.s_[:L], np.s_[end - L : end])
    if names is None or "episode_ends" in names:
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
        groups = [hdf5_node(f, f"episode_{e}", h5py.Group, file) for e in range(E)]
        episodes = [read_adroit_episode(group, repeat, file) for group in groups]
        arrays = {}
        for name in episodes[0]:
            join = np.concatenate if name in ("qpos", "actions") else np.stack
            arrays[name] = join([episode[name] for episode in episodes])
    arrays["episode_ends"] = np.cumsum([len(episode["qpos"]) for episode in episodes])
    return arrays


def read_adroit_episode(group, repeat, file):
    """{qpos (n, nq), actions (n, D_a), a setting (·,)} of one episode. Raises BadInput.

    The states are in the group state of the episode, or of its group infos.
    """
    import h5py

    inside = group if "state" in group else hdf5_node(group, "infos", h5py.Group, file)
    state = hdf5_node(inside, "state", h5py.Group, file) if "state" in inside else inside
    actions = hdf5_array(group, "actions", "f", file)[...]
    qpos = hdf5_array(state, "qpos", "f", file)[...]
    n = len(actions) // repeat
    episode = {
        "qpos": qpos[: n * repeat : repeat],
        "actions": actions[: n * repeat].reshape(n, repeat, -1).mean(1),
    }
    for name in ADROIT_SETTINGS:
        if name in state:
            episode[name] = hdf5_array(state, name, "f", file)[0]
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
                found.append((path, dict(json.loads(path.read_bytes()).items())))
    return found


def check_metadata(file, episodes):
    """Refuse a metadata.json that tells of another number of episodes. Raises BadInput."""
    for path, about in metadata(file):
        told = about.get("total_episodes", episodes)
        if told != episodes:
            raise BadInput(
                f"{file} holds {episodes} episodes, {path.name} tells of {told}: {AGAIN}"
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
