"""Demonstrations in three padded arrays, as Diffusion Policy keeps Franka Kitchen's.

A folder holds, of E episodes of up to T steps,

  observations_seq.npy   (E, T, S)
  actions_seq.npy        (E, T, D_a)
  existence_mask.npy     (E, T)      1 at an episode's steps, 0 after its end

What lies after an episode's end is dropped. The path is that of observations_seq.npy.
"""

from pathlib import Path

import numpy as np

from commands import BadInput
from files import AGAIN, MAX_GB, NUMBERS, brief, check_size, refusing

FIRST = "observations_seq.npy"
FILES = {"obs": FIRST, "action": "actions_seq.npy"}  # our name -> the file
MASK = "existence_mask.npy"


def is_padded(path):
    """Whether a path names demonstrations in this layout."""
    path = Path(path)
    return path.name == FIRST and path.is_file()


def npy_array(path):
    """The array of an npy file, mapped into memory and not read. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: {FIRST}, {FILES['action']} and {MASK} belong together")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        plain = array.dtype.kind in NUMBERS + "b"
    except Exception as e:  # without numpy's text, which advises to unpickle
        raise BadInput(
            f"{path} is not an npy file of plain numbers, or is damaged ({type(e).__name__})"
        ) from e
    if not plain:
        raise BadInput(f"{path} has dtype {brief(array.dtype)}: only plain numbers are read")
    return array


def padded_lengths(path):
    """The numbers of steps (E,) of the episodes and the mask's shape (E, T). Raises BadInput."""
    file = Path(path).parent / MASK
    mask = npy_array(file)
    if mask.ndim != 2 or not mask.size:
        raise BadInput(f"{file} has shape {mask.shape}: it must be (episodes, steps)")
    check_size({MASK: (mask.shape, mask.dtype)}, file, MAX_GB)
    steps = mask != 0
    lengths = steps.sum(1)
    if (steps != (np.arange(mask.shape[1]) < lengths[:, None])).any() or lengths.min() < 1:
        raise BadInput(
            f"{file} {mask.shape} is not ones and then zeros in each row: its axes must be "
            "episodes and steps, and no episode empty"
        )
    return lengths, mask.shape


def padded_arrays(path):
    """The episodes' lengths (E,), their padded arrays {our name: (E, T, ...)}. Raises BadInput."""
    folder = Path(path).parent
    lengths, shape = padded_lengths(path)
    arrays = {name: npy_array(folder / file) for name, file in FILES.items()}
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[:2] != shape:
            raise BadInput(
                f"{folder / FILES[name]} has shape {array.shape}, but {MASK} has {shape}: it must "
                "be that and a third axis"
            )
    return lengths, arrays


def padded_shapes(path):
    """{name: (shape, dtype)} of what `read_padded` gives, which is not read. Raises BadInput."""
    lengths, arrays = padded_arrays(path)
    declared = {
        name: ((int(lengths.sum()), array.shape[2]), array.dtype) for name, array in arrays.items()
    }
    return declared | {"episode_ends": ((len(lengths),), np.dtype(np.int64))}


def read_padded(path, names=None, max_gb=MAX_GB):
    """{name: array}: obs (N, S), action (N, D_a) and episode_ends (E,), or those in `names`.

    Raises BadInput.
    """
    lengths, arrays = padded_arrays(path)
    declared = padded_shapes(path)
    wanted = [name for name in declared if names is None or name in names]
    check_size({name: declared[name] for name in wanted}, path, max_gb)
    with refusing(f"{path} cannot be read: {AGAIN}"):
        found = {
            name: np.concatenate([array[e, :L] for e, L in enumerate(lengths)])
            for name, array in arrays.items()
            if name in wanted
        }
    if "episode_ends" in wanted:
        found["episode_ends"] = lengths.cumsum()
    return found
