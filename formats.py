"""Files of demonstrations, opened safely: npz, zarr v2, Minari's HDF5. Nothing here unpickles or follows a link.

read() takes any of the three and gives {name: array}; data.py makes Episodes of that. Minari's format (D4RL's
successor), which save_minari() writes too, is a folder with data/metadata.json and data/main_data.hdf5:

    episode_0/observations (L+1, obs_dim)   actions (L, D_a)   rewards, terminations, truncations (L,)
    episode_1/...                           attributes id, seed, total_steps
"""
import contextlib
import json
import math
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from runs import BadInput, atomic

NAMES = ("action", "obs", "state", "keypoint", "points", "episode_ends")      # arrays that loading reads; never img
COMPRESSORS = {None, "blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma"}     # none of them runs code from the data
FILTERS = {1, 2, 3, 4, 5, 6, 32000}     # HDF5's own and lzf; for any other the library would look for a plugin to run
LIMIT = 2 ** 30         # bytes; no archive, array, or single chunk that we read comes near
MAIN = "main_data.hdf5"
MINARI = {"obs": "observations", "action": "actions", "reward": "rewards"}      # our name -> Minari's
AGAIN = "copy or download the data again"


@contextlib.contextmanager
def refusing(message):
    """Turn any error inside into BadInput: the libraries raise many kinds on foreign or damaged data."""
    try:
        yield
    except BadInput:
        raise
    except Exception as e:
        raise BadInput(f"{message} ({type(e).__name__}: {e})") from e


def read(path, names=None):
    """{name: array} of a file or folder; names default to all of npz and Minari, NAMES of zarr. Raises BadInput.

    Names go without zarr's data/ and meta/; Minari's become obs, action, reward, episode_ends. A missing array of npz
    or zarr is no error here: data.assemble() says which ones it needs.
    """
    path = Path(path)
    if minari_file(path):
        return read_minari(path, names)
    if path.is_file():
        with refusing(f"{path} is not an npz file of plain numbers, or is damaged"):
            with np.load(path, allow_pickle=False) as f:            # asarray: members that are no arrays come as bytes
                return {k: np.asarray(f[k]) for k in f.files if names is None or k in names}
    with refusing(f"{path} is damaged, {AGAIN}"):
        if not (path / ".zgroup").exists():
            raise BadInput(f"{path} is not a file, and not a zarr version 2 group (it has no .zgroup) or a Minari data "
                           f"set (no data/{MAIN})")
        return {n: zarr_array(path, f"{group}/{n}")[...] for n in names or NAMES for group in ("data", "meta")
                if (path / group / n).exists()}


# ---- zarr ----------------------------------------------------------------------------------------------------------

def zarr_array(path, name):
    """One array of a zarr v2 folder, opened but not read. BadInput unless it is whole and safe to read.

    The checks come before the zarr library sees the data, because it would let three things pass: missing chunks
    are filled with fill_value, a Blosc chunk cut short is decoded into noise, a pickle filter runs code.
    """
    import zarr                                                     # slow to import
    where, folder = f"{path}: array {name}", path / name
    with refusing(f"{where} cannot be opened"):
        meta = json.loads((folder / ".zarray").read_bytes())
        dtype, chunks, shape = meta["dtype"], meta["chunks"], meta["shape"]
        codec, filters = (meta["compressor"] or {}).get("id"), meta.get("filters")
        number = isinstance(dtype, str) and re.fullmatch(r"[<>|][fiu][1248]", dtype)
        if not number or filters or codec not in COMPRESSORS:
            raise BadInput(f"{where} is refused: dtype {dtype}, compressor {codec}, filters {filters} are not all safe")
        nbytes = math.prod(chunks) * np.dtype(dtype).itemsize
        if not shape or len(shape) != len(chunks) or min(chunks) < 1 or nbytes > LIMIT:
            raise BadInput(f"{where} has shape {shape} in chunks {chunks}: not a layout that can be read")
        for place in np.ndindex(*(math.ceil(s / c) for s, c in zip(shape, chunks))):
            key = meta.get("dimension_separator", ".").join(map(str, place))
            if not (folder / key).is_file():
                raise BadInput(f"{where} lacks chunk {key}: {AGAIN}")
            if codec == "blosc":        # header: sizes of the content and of the chunk itself, at bytes 4 and 12
                b = (folder / key).read_bytes()
                if len(b) < 16 or [int.from_bytes(b[i:i + 4], "little") for i in (4, 12)] != [nbytes, len(b)]:
                    raise BadInput(f"{where}: chunk {key} is damaged, {AGAIN}")
        return zarr.open_array(str(path), path=name, mode="r", zarr_format=2)


# ---- Minari --------------------------------------------------------------------------------------------------------

def minari_file(path):
    """The HDF5 file of a Minari data set: path itself, or in the folder path/data or path. None if path is none.

    A path/data with only metadata.json counts too, so that reading says what is missing.
    """
    path = Path(path)
    if path.is_file():
        return path if path.suffix in (".hdf5", ".h5") else None
    if (path / MAIN).is_file():
        return path / MAIN
    data = path / "data"
    return data / MAIN if (data / MAIN).is_file() or (data / "metadata.json").is_file() else None


def hdf5_node(group, name, kind, where):
    """What an HDF5 group holds under name: an h5py.Group or h5py.Dataset, as kind says. BadInput if not so."""
    import h5py
    key, links = name.encode(), group.id.links
    where = f"{where}: {group.name.rstrip('/')}/{name}"
    if not links.exists(key):
        raise BadInput(f"{where} is missing: {AGAIN}")
    if links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise BadInput(f"{where} is refused: it is a link, perhaps into another file; write the arrays themselves")
    if not isinstance(node := group[name], kind):
        raise BadInput(f"{where} is a {type(node).__name__.lower()}, not a {kind.__name__.lower()}: only observations "
                       "and actions that are one array are read, no Dict or Tuple spaces")
    return node


def hdf5_array(group, name, kinds, where):
    """An array of an HDF5 group, opened but not read. BadInput unless it is whole and safe to read.

    kinds: letters of numpy's dtype.kind that may be. The checks come before reading, because the library would fetch
    external and virtual numbers from other files, load plugins for filters, and fill in what was never written.
    """
    import h5py
    a = hdf5_node(group, name, h5py.Dataset, where)
    where, plan = f"{where}: {a.name}", a.id.get_create_plist()
    if a.is_virtual or a.external:
        raise BadInput(f"{where} is refused: its numbers are in other files; write them into this one")
    filters = {plan.get_filter(i)[0] for i in range(plan.get_nfilters())}
    if a.dtype.kind not in kinds or filters - FILTERS:
        raise BadInput(f"{where} is refused: dtype {a.dtype} or filters {sorted(filters)} are not plain and safe")
    if math.prod(a.chunks or a.shape) * a.dtype.itemsize > LIMIT:
        raise BadInput(f"{where} has shape {a.shape} in chunks {a.chunks}: not a layout that can be read")
    if a.size and a.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise BadInput(f"{where} was not written to its end: {AGAIN}")
    return a


def check_episode(group, where):
    """Shapes of an episode's {observations, actions}, all five arrays checked against one another. Raises BadInput."""
    obs, action = (hdf5_array(group, name, "fiu", where) for name in ("observations", "actions"))
    about = f"{where}: {group.name}"
    if obs.ndim != 2 or action.ndim != 2 or not len(action) or len(obs) != len(action) + 1:
        raise BadInput(f"{about} has observations {obs.shape} and actions {action.shape}: they must be (L+1, obs_dim) "
                       "and (L, D_a), L at least 1")
    for name, kinds in (("rewards", "fiu"), ("terminations", "biu"), ("truncations", "biu")):
        if (a := hdf5_array(group, name, kinds, where)).shape != (len(action),):
            raise BadInput(f"{about} has {name} of shape {a.shape}: it must be ({len(action)},), one for each action")
    return {"observations": obs.shape, "actions": action.shape}


def read_minari(path, names=None):
    """{obs (N, obs_dim), action (N, D_a), reward (N,), episode_ends (E,)} of a Minari data set, or those in names.

    float32; episode_ends int64, cumulative. The observation after an episode's last action is dropped. path: as
    for minari_file(). Raises BadInput.
    """
    import h5py                                                     # slow to import
    file = minari_file(path)
    if not file.is_file():
        raise BadInput(f"{file} is missing: of Minari's formats only HDF5 is read")
    with refusing(f"{file} is not HDF5 of Minari, or is damaged: {AGAIN}"), h5py.File(file, "r") as f:
        E = sum(re.fullmatch(r"episode_\d+", name) is not None for name in f)
        if not E:
            raise BadInput(f"{file} holds no episode_0, episode_1, ...: it is not a Minari data set, or is empty")
        check_metadata(file, E)
        groups = [f"episode_{e}" for e in range(E)]
        shapes = [check_episode(hdf5_node(f, g, h5py.Group, file), file) for g in groups]
        for name in shapes[0]:
            if len(widths := {s[name][1] for s in shapes}) > 1:
                raise BadInput(f"{file}: {name} have different sizes in different episodes: {sorted(widths)}")
        lengths = np.array([s["actions"][0] for s in shapes])
        ends = lengths.cumsum()
        arrays = {}
        for ours, theirs in MINARI.items():
            if names is None or ours in names:
                shape = (int(ends[-1]), *shapes[0].get(theirs, ())[1:])
                if 4 * math.prod(shape) > LIMIT:
                    raise BadInput(f"{file}: {theirs} of all episodes are {shape}, more than {LIMIT} bytes")
                arrays[ours] = np.empty(shape, np.float32)
                for g, n, end in zip(groups, lengths, ends):
                    f[g][theirs].read_direct(arrays[ours], np.s_[:n], np.s_[end - n:end])
        return {**arrays, "episode_ends": ends} if names is None or "episode_ends" in names else arrays


def read_adroit(path, repeat=2):
    """Recorded states of Minari's D4RL Adroit data, every `repeat`-th step with the mean of the actions up to the next:
    {qpos (N, nq), actions (N, D_a), episode_ends (E,), and of the model's settings board_pos, door_body_pos or
    desired_orien (E, ·)}. Raises BadInput.
    """
    import h5py
    file = minari_file(path)
    if file is None or not file.is_file():
        raise BadInput(f"{path} is not a Minari data set (no data/{MAIN})")
    rows = []
    with refusing(f"{file} holds no Adroit states, or is damaged: {AGAIN}"), h5py.File(file, "r") as f:
        for e in range(sum(name.startswith("episode_") for name in f)):
            episode = hdf5_node(f, f"episode_{e}", h5py.Group, file)
            inside = episode if "state" in episode else hdf5_node(episode, "infos", h5py.Group, file)
            state = hdf5_node(inside, "state", h5py.Group, file) if "state" in inside else inside
            get = lambda group, name: hdf5_array(group, name, "f", file)[...]
            actions, qpos = get(episode, "actions"), get(state, "qpos")
            n = len(actions) // repeat
            settings = {k: get(state, k)[0] for k in ("board_pos", "door_body_pos", "desired_orien") if k in state}
            rows.append({"qpos": qpos[:n * repeat:repeat], "actions": actions[:n * repeat].reshape(n, repeat, -1).mean(1),
                         **settings})
    return {k: (np.concatenate if k in ("qpos", "actions") else np.stack)([r[k] for r in rows]) for k in rows[0]} | {
        "episode_ends": np.cumsum([len(r["qpos"]) for r in rows])}


def metadata(file):
    """(path, content) of each metadata.json that belongs to a Minari HDF5 file. Raises BadInput if one is damaged."""
    found = []
    for folder in (file.parent, file.parent.parent)[:2 if file.parent.name == "data" else 1]:
        if (path := folder / "metadata.json").is_file():
            with refusing(f"{path} is damaged: {AGAIN}"):
                found.append((path, dict(json.loads(path.read_bytes()).items())))
    return found


def check_metadata(file, episodes):
    """Refuse a Minari data set whose metadata.json, if any, tells of another number of episodes. Raises BadInput."""
    for path, about in metadata(file):
        if (told := about.get("total_episodes", episodes)) != episodes:
            raise BadInput(f"{file} holds {episodes} episodes, {path.name} tells of {told}: {AGAIN}")


def minari_env(path):
    """The id of the gymnasium environment a Minari data set was recorded in; None if it does not say, or is none."""
    file = minari_file(path)
    for where, about in metadata(file) if file else []:
        if about.get("env_spec"):
            with refusing(f"{where} is damaged: {AGAIN}"):
                return str(json.loads(about["env_spec"])["id"])


def save_minari(path, episodes, env, dataset_id, **about):
    """Write a Minari data set that the minari library loads too; the folder appears whole or not at all.

    episodes: dicts of observations (L+1, obs_dim), actions (L, D_a), rewards, terminations, truncations (L,) and
    seed, the number the environment was reset with. Numbers are kept as float32. env: the environment, for its
    spaces and gymnasium's spec. about: more entries of metadata.json, such as algorithm_name. Raises BadInput if
    path exists or cannot be written, or the arrays do not fit together.
    """
    import h5py
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise BadInput(f"{path} exists: name a new folder, or move it away")
    types = {**dict.fromkeys(MINARI.values(), np.float32), "terminations": np.bool_, "truncations": np.bool_}
    box = lambda space: json.dumps({"type": "Box", "dtype": "float32", "shape": space.shape,
                                    "low": space.low.tolist(), "high": space.high.tolist()})
    meta = {"total_episodes": len(episodes), "total_steps": sum(len(e["rewards"]) for e in episodes),
            "data_format": "hdf5", "observation_space": box(env.observation_space),
            "action_space": box(env.action_space), **({"env_spec": env.spec.to_json()} if env.spec else {}),
            "dataset_id": dataset_id, "minari_version": "0.5.0", **about}
    with refusing(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as tmp:
            data = Path(tmp, "new", "data")
            data.mkdir(parents=True)
            with h5py.File(data / MAIN, "w", libver=("v110", "v110")) as f:     # 1.10's layout: 13 kB less an episode
                for i, episode in enumerate(episodes):
                    group = f.create_group(f"episode_{i}")
                    group.create_group("infos")
                    group.attrs.update(id=i, seed=int(episode["seed"]), total_steps=len(episode["rewards"]))
                    for name, dtype in types.items():
                        a = np.asarray(episode[name], dtype)
                        group.create_dataset(name, data=a, chunks=a.shape, compression=9, shuffle=True,
                                             fletcher32=True)
            with open(data / MAIN, "rb") as f:
                os.fsync(f.fileno())
            meta["dataset_size"] = round((data / MAIN).stat().st_size / 1e6, 1)         # MB
            atomic(data / "metadata.json", lambda f: f.write(json.dumps(meta, indent=1).encode()))
            read_minari(data)
            data.parent.rename(path)
