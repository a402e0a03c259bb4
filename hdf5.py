"""HDF5 files, opened safely, and the demonstrations of Minari in them, read and written.

Nothing here follows a link inside a file, reads numbers that lie in another file or loads a plugin:
a file that asks for it is refused.

Minari is the successor of D4RL. A data set of it, which `save_minari` writes too, is a folder with
data/metadata.json and data/main_data.hdf5. The latter holds a group for each episode of L steps:

  episode_0/observations                           (L+1, S), or of observations that are told with
                                                   a goal the group that holds it as observation
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
from pathlib import Path

import numpy as np

from commands import BadInput
from files import AGAIN, MAX_GB, NUMBERS, atomic, brief, check_size, read_bytes, refusing

MAX_CHUNK = 2**24  # bytes of an HDF5 chunk that is larger than its array
MAX_EPISODES = 100_000  # in a data set: checking one takes a millisecond
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # HDF5's own and lzf; for others HDF5 would load a plugin
MAIN = "main_data.hdf5"
MINARI = {"obs": "observations", "action": "actions", "reward": "rewards"}  # our name -> Minari's
ADROIT_SETTINGS = ("board_pos", "door_body_pos", "desired_orien")


# ---- one file ------------------------------------------------------------------------------------


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


@contextlib.contextmanager
def open_hdf5(path):
    """The HDF5 file of a data set and the open h5py.File. Errors inside become BadInput."""
    import h5py  # slow to import

    file = minari_file(path)
    if file is None or not file.is_file():
        raise BadInput(
            f"{file or path} is missing, or is not a Minari data set (data/{MAIN}): of its formats "
            "only HDF5 is read"
        )
    with (
        refusing(f"{file} is not HDF5 of Minari or robomimic, or is damaged: {AGAIN}"),
        h5py.File(file, "r") as f,
    ):
        yield file, f


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


# ---- Minari: reading -----------------------------------------------------------------------------


def observed(group, where):
    """The array of an episode's observations, not read. Raises BadInput.

    Of observations that are told with a goal, a Dict, it is the one named "observation".
    """
    import h5py

    node = hdf5_node(group, "observations", object, where)
    if isinstance(node, h5py.Group) and "observation" in node:
        return hdf5_array(node, "observation", NUMBERS, where)
    return hdf5_array(group, "observations", NUMBERS, where)


def check_episode(group, where):
    """The shapes {"observations": ..., "actions": ...} of an episode. Raises BadInput.

    All of its five arrays are checked against one another.
    """
    obs = observed(group, where)
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


def minari_declared(sizes):
    """{our name: (shape, dtype)} of the arrays of episodes with these shapes (minari_layout)."""
    N = sum(size["actions"][0] for size in sizes)
    found = {ours: (N, *sizes[0].get(theirs, ())[1:]) for ours, theirs in MINARI.items()}
    declared = {name: (shape, np.dtype(np.float32)) for name, shape in found.items()}
    return declared | {"episode_ends": ((len(sizes),), np.dtype(np.int64))}


def minari_shapes(path):
    """{name: (shape, dtype)} of what `read_minari` gives, which is not read. Raises BadInput."""
    with open_hdf5(path) as (file, f):
        return minari_declared(minari_layout(f, file)[1])


def read_minari(path, names=None, max_gb=MAX_GB):
    """The arrays of a Minari data set, or those of them in `names`. Raises BadInput.

    obs (N, S), action (N, D_a) and reward (N,) are float32; episode_ends (E,) is int64, cumulative.
    The observation after an episode's last action is dropped. path: as for `minari_file`.
    """
    arrays = {}
    with open_hdf5(path) as (file, f):
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
                array = observed(f[group], file) if ours == "obs" else f[group][theirs]
                array.read_direct(arrays[ours], np.s_[:L], np.s_[end - L : end])
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

    with open_hdf5(path) as (file, f):
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
    if len(arrays["qpos"]) < len(arrays["actions"]):
        raise BadInput(f"{file}: {group.name} has fewer states than actions: {AGAIN}")
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
