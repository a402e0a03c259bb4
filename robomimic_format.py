"""Demonstrations of robomimic in one HDF5 file, with any number of cameras, read and written.

A demonstration of L steps holds an array for each observation, whatever its shape:

  data/demo_0/obs/NAME     (L, ...), of a camera (L, H, W, 3) uint8
  data/demo_0/actions      (L, D_a)
  data/demo_0/rewards      (L,), may be missing
  data/demo_0/states       (L, S) of the simulator, may be missing; if not, obs may be
  mask/NAME                the demonstrations of a filter: b"demo_0", b"demo_7", ...

The attribute env_args of data is JSON text that says which environment it was. The attribute
model_file of a demonstration is the XML text of its own simulator.
"""

import functools
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from commands import BadInput
from files import MAX_GB, NUMBERS, brief, check_size, refusing
from hdf5 import MAX_EPISODES, hdf5_array, hdf5_node, minari_file, open_hdf5
from pictures import BLOCK, are_pictures, at_once, cached_pictures

MAX_NAME = 100  # bytes of a demonstration's name in a filter
MAX_XML = 2**22  # bytes of a simulator's XML text
MODEL = "model_file"


def is_robomimic(path):
    """Whether an HDF5 file holds demonstrations in robomimic's layout. Raises BadInput."""
    if minari_file(path) != Path(path):
        return False
    with open_hdf5(path) as (_, f):
        return "data" in f and "episode_0" not in f


def env_args(path):
    """What a file of robomimic says of the environment that it was recorded in, as a dict.

    Empty if it says nothing, or if `path` is no such file. Raises BadInput if it is damaged.
    """
    import h5py

    path = Path(path)
    if not path.is_file() or not is_robomimic(path):
        return {}
    with open_hdf5(path) as (file, f):
        text = hdf5_node(f, "data", h5py.Group, file).attrs.get("env_args", "{}")
        about = json.loads(text)
        kwargs = about.get("env_kwargs", {})  # AttributeError if it is no dict
        kwargs.items()
        return about


def robomimic_shapes(path):
    """{name: (shape, dtype)} of what `read_robomimic` gives, which is not read. Raises BadInput."""
    with open_hdf5(path) as (file, f):
        return robomimic_declared(robomimic_layout(f, file))


def robomimic_layout(f, file, filter_key=None):
    """The demonstrations of an open file: a list of {name: h5py.Dataset (L, ...)}, not read.

    filter_key: only those that mask/`filter_key` lists. Raises BadInput unless all have the same
    arrays, each of one length in a demonstration.
    """
    import h5py

    data = hdf5_node(f, "data", h5py.Group, file)
    if len(data) > MAX_EPISODES:
        raise BadInput(f"{file} holds {len(data)} groups, but no more than {MAX_EPISODES} are read")
    numbers = sorted(int(name[5:]) for name in data if re.fullmatch(r"demo_\d{1,9}", name))
    if not numbers:
        raise BadInput(f"{file} holds no data/demo_0, data/demo_1, ...: it is not of robomimic")
    if filter_key is not None:
        numbers = filtered(f, filter_key, numbers, file)
    demos = [robomimic_demo(hdf5_node(data, f"demo_{n}", h5py.Group, file), file) for n in numbers]
    first = {name: (a.shape[1:], a.dtype) for name, a in demos[0].items()}
    for n, demo in zip(numbers, demos):
        for name in {**first, **demo}:
            if name not in demo or name not in first or demo[name].shape[1:] != first[name][0]:
                raise BadInput(
                    f"{file}: {brief(name)} of demo_{n} is not as in demo_{numbers[0]}: "
                    "demonstrations must have the same arrays"
                )
    return demos


def filtered(f, filter_key, numbers, file):
    """Those of the demonstrations' numbers, in order, that a filter lists. Raises BadInput."""
    import h5py

    masks = hdf5_node(f, "mask", h5py.Group, file) if "mask" in f else {}
    if filter_key not in list(masks):
        has = f"it has {brief(', '.join(masks), 300)}" if len(masks) else "it has none"
        raise BadInput(f"{file} has no filter {brief(filter_key)}: {has}")
    listed = hdf5_array(masks, filter_key, "S", file)
    where = f"{file}: {listed.name}"
    if listed.ndim != 1 or len(listed) > MAX_EPISODES or listed.dtype.itemsize > MAX_NAME:
        raise BadInput(f"{where} {listed.shape} {listed.dtype} is no list of demonstrations' names")
    names = {name.decode(errors="replace") for name in listed[...]}
    unknown = names - {f"demo_{n}" for n in numbers}
    if unknown or not names:
        what = f"demonstrations that are not there: {brief(', '.join(sorted(unknown)), 100)}"
        raise BadInput(f"{where} lists {what if unknown else 'no demonstration'}")
    return [n for n in numbers if f"demo_{n}" in names]


def robomimic_demo(group, file):
    """The arrays {name: h5py.Dataset} of one demonstration, not read. Raises BadInput."""
    import h5py

    arrays = {}
    if "obs" in group or "states" not in group:
        obs = hdf5_node(group, "obs", h5py.Group, file)
        arrays = {name: hdf5_array(obs, name, NUMBERS, file) for name in obs}
    for name in ("action", "reward", "episode_ends", "states"):
        if name in arrays:
            raise BadInput(f"{file}: an observation is named {name}: name it otherwise")
    arrays["action"] = hdf5_array(group, "actions", NUMBERS, file)
    if "states" in group:
        arrays["states"] = hdf5_array(group, "states", NUMBERS, file)
    if "rewards" in group:
        arrays["reward"] = hdf5_array(group, "rewards", NUMBERS, file)
    lengths = {name: a.shape[:1] for name, a in arrays.items()}
    if len(set(lengths.values())) > 1 or lengths["action"] in ((), (0,)):
        raise BadInput(
            f"{file}: the arrays of {group.name} have different lengths or are empty: "
            f"{brief(lengths, 300)}"
        )
    return arrays


def robomimic_declared(demos):
    """{name: (shape, dtype)} of the arrays of `robomimic_layout`, as `read_robomimic` gives them.

    Numbers become float32; pictures are told with the type that the file has.
    """
    declared = {}
    N = sum(len(demo["action"]) for demo in demos)
    for name, a in demos[0].items():
        shape = (N, *a.shape[1:])
        declared[name] = shape, a.dtype if are_pictures(shape, a.dtype) else np.dtype(np.float32)
    return declared | {"episode_ends": ((len(demos),), np.dtype(np.int64))}


def read_robomimic(path, names=None, max_gb=MAX_GB, filter_key=None):
    """The arrays of a file of robomimic, or those of them in `names`. Raises BadInput.

    filter_key: only the demonstrations that mask/`filter_key` lists. Observations keep their names;
    action (N, D_a) and reward (N,) are float32. Pictures (N, H, W, C) are uint8, from a cache.
    episode_ends (E,) is int64, cumulative. model_file (E, n) uint8, given only where it is named
    and the file has it, is each text, filled up with zeros.
    """
    arrays = {}
    with open_hdf5(path) as (file, f):
        demos = robomimic_layout(f, file, filter_key)
        ends = np.cumsum([len(demo["action"]) for demo in demos])
        declared = {
            name: what
            for name, what in robomimic_declared(demos).items()
            if names is None or name in names
        }
        counted = {
            name: at_once(*what, (at_a_time(demos, name), *what[0][1:]))
            if are_pictures(*what)
            else what
            for name, what in declared.items()
        }
        check_size(counted, file, max_gb)
        for name, (shape, dtype) in declared.items():
            if name == "episode_ends":
                arrays[name] = ends
            elif are_pictures(shape, dtype):
                make = functools.partial(robomimic_blocks, demos, name)
                key = f"{hdf5_key(file)} {shape} {ends.tolist()} {filter_key}"
                arrays[name] = cached_pictures(file, name, shape, key, make, max_gb)
            else:
                arrays[name] = np.empty(shape, dtype)
                for demo, end in zip(demos, ends):
                    L = len(demo[name])
                    demo[name].read_direct(arrays[name], np.s_[:L], np.s_[end - L : end])
        if names is not None and MODEL in names:
            arrays |= model_files(demos, file, max_gb)
    return arrays


def model_files(demos, file, max_gb):
    """{"model_file": (E, n) uint8} of the demonstrations, {} unless all have one. BadInput."""
    texts = [demo["action"].parent.attrs.get(MODEL) for demo in demos]
    if any(text is None for text in texts):
        return {}
    if not all(isinstance(text, str) and len(text) <= MAX_XML for text in texts):
        raise BadInput(
            f"{file}: {MODEL} of a demonstration is no text, or is longer than {MAX_XML}"
        )
    texts = [text.encode(errors="replace") for text in texts]
    n = max(1, *(len(text) for text in texts))
    check_size({MODEL: ((len(texts), n), np.dtype(np.uint8))}, file, max_gb)
    return {MODEL: np.array(texts, f"S{n}").view(np.uint8).reshape(len(texts), n)}


def at_a_time(demos, name):
    """How many pictures of a camera are unpacked at a time: whole chunks, at least BLOCK."""
    chunk = max([demo[name].chunks[0] for demo in demos if demo[name].chunks], default=1)
    return -(-BLOCK // chunk) * chunk


def robomimic_blocks(demos, name):
    """The pictures of a camera in order, as arrays of up to at_a_time() of them."""
    n = at_a_time(demos, name)
    for demo in demos:
        for first in range(0, len(demo[name]), n):
            yield demo[name][first : first + n]


def hdf5_key(file):
    """A text that is another one when a file's content is: its size, its time, its first bytes."""
    about = file.stat()
    with open(file, "rb") as opened:
        begin = hashlib.sha256(opened.read(2**16)).hexdigest()
    return f"hdf5 {about.st_size} {about.st_mtime_ns} {begin}"


# ---- writing -------------------------------------------------------------------------------------


def save_robomimic(path, arrays, ends, about, model_files):
    """Write demonstrations as a file that robomimic opens. It appears whole or not at all.

    arrays: {"actions": (N, D_a), "states": (N, S), "obs/NAME": (N, ...), ...} by their places in a
    demonstration; ends (E,), cumulative. about: what env_args says. model_files: E XML texts. A
    demonstration ends with its only reward, and next_obs holds there what obs does.
    The filter valid lists the last tenth of them, at least one of several; train lists the others.
    Raises BadInput if `path` exists or cannot be written.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise BadInput(f"{path} exists: name a new file, or move it away")
    with refusing(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            new = Path(folder, path.name)
            fill(new, arrays, ends, about, model_files)
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            robomimic_shapes(new)
            new.replace(path)


def fill(path, arrays, ends, about, model_files):
    """Write the file of `save_robomimic`."""
    import h5py

    names = [f"demo_{e}" for e in range(len(ends))]
    with h5py.File(path, "w") as f:
        data = f.create_group("data")
        data.attrs["total"] = int(ends[-1])
        data.attrs["env_args"] = json.dumps(about, indent=1)
        for name, first, end, text in zip(names, [0, *ends[:-1]], ends, model_files):
            demo = data.create_group(name)
            demo.attrs["num_samples"] = int(end - first)
            demo.attrs[MODEL] = text
            last = np.arange(first, end) == end - 1
            parts = {place: a[first:end] for place, a in arrays.items()}
            parts |= {"rewards": last.astype(np.float32), "dones": last.astype(np.int64)}
            for place, a in parts.items():
                demo.create_dataset(place, data=a, compression="gzip")
                if place.startswith("obs/"):
                    after = np.concatenate([a[1:], a[-1:]])
                    demo.create_dataset(f"next_{place}", data=after, compression="gzip")
        n = max(1, len(names) // 10) if len(names) > 1 else 0
        train = len(names) - n
        f["mask/train"] = np.array(names[:train], "S")
        if n:
            f["mask/valid"] = np.array(names[train:], "S")
