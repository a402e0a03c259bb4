"""Bad input, by a table: what is typed, and words of the line that the user then reads.

Every row of bad_input.txt is run in this process, in a folder of good and of broken files. It must
end with exit code 2 and one line on standard error, with the row's words and without a warning, and
leave every file as it was. A new flag adds rows to that table; a new kind of file adds one to
`broken`.
"""

import contextlib
import hashlib
import io
import json
import shlex
import sys
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import bench
import commands
import data
import dbp_train
import dbpo_ppo
import envs
import evaluate
import experts
import export
import figures
import lerobot_writer
import realrobot
import report
import reproduce
import robot_trials
import runs
import seen
import toy
import ur_server
from conftest import write_demos
from files import load_torch, save_torch
from formats import save_npz
from policy import Policy
from task import dtype_of

TABLE = Path(__file__).with_name("bad_input.txt")
COMMANDS = {
    "dbp_train.py": lambda: dbp_train.train(dbp_train.parse()),
    "dbpo_ppo.py": lambda: dbpo_ppo.train(dbpo_ppo.parse()),
}
for module in (
    bench,
    data,
    envs,
    evaluate,
    experts,
    export,
    figures,
    realrobot,
    report,
    reproduce,
    robot_trials,
    runs,
    seen,
    toy,
    ur_server,
):
    COMMANDS[f"{module.__name__}.py"] = module.main

WORDS = {  # what is not easily typed
    "LONG": "x" * 5000,
    "DEEP": "x/" * 2500 + "x",
    "HUGE": str(10**26),
    "ESCAPE": "\x1b]0;title\x07\x1b[2J\u202e",
    "NULL": "a\0b",
}


# ---- the folder of files -------------------------------------------------------------------------


def make_policy(task="pusht", **change):
    """A small policy with random weights for a task."""
    about = envs.TASKS[task]
    torch.manual_seed(0)
    shape = {"task": task, "obs": about.specs, "D_a": about.D_a, "T_o": about.T_o}
    shape |= {"T_p": about.T_p, "T_a": about.T_a, "dims": [8, 8], **change}
    ones = {
        name: (-torch.ones(spec["shape"][-1]), torch.ones(spec["shape"][-1]))
        for name, spec in shape["obs"].items()
    }
    action = (-torch.ones(shape["D_a"]), torch.ones(shape["D_a"]))
    return Policy(shape, {"obs": ones, "action": action})


def good(at):
    """Files that can be used, and two run folders."""
    write_demos(at / "good.npz")
    make_policy().save(at / "ckpt.pt")
    make_policy("hopper").save(at / "hopper.pt")
    make_policy(method="bc", time_dim=0).save(at / "bc.pt")
    make_policy(method="diffusion", time_dim=32).save(at / "diffusion.pt")
    tiny = ["--data", "good.npz", "--dims", "8", "8", "--batch", "4", "--device", "cpu"]
    tiny += ["--one-process", "--episodes", "1", "--steps", "2", "--eval-every", "0"]
    dbp_train.train(dbp_train.parse([*tiny, "--out", "run1"]))
    (at / "folder").mkdir()
    (at / "file").write_text("text")
    make_policy("ur5-lift").save(at / "ur5-lift.pt")
    make_policy("ur5-lift-state").save(at / "ur5-lift-state.pt")
    fast = np.zeros((9, 14), "f4")
    fast[5:, 0] = 3
    save_npz(at / "fast.npz", action=fast, episode_ends=np.array([9]))
    (at / "cell.json").write_text('{"speed": "fast"}')


def broken(at):
    """Files of which each is broken in one way."""
    broken_npz(at)
    broken_zarr(at)
    broken_checkpoints(at)
    broken_folders(at)
    broken_lerobot(at)
    (at / "not.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (at / "empty.hdf5").write_bytes(b"")
    with h5py.File(at / "no-demos.hdf5", "w") as file:
        file.create_group("data")
    with h5py.File(at / "unequal.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((9, 2))
        file["data/demo_0/obs/state"] = np.zeros((8, 5))
    with h5py.File(at / "can.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((9, 7))
        file["data/demo_0/states"] = np.zeros((9, 71))
        file["mask/valid"] = file["mask/20_percent"] = np.array([b"demo_0"])
        file["data"].attrs["env_args"] = '{"env_name": "PickPlaceCan"}'
    pictures = np.full((20, 8, 8, 3), 0.5, "f4")
    save_npz(at / "fractions.npz", keypoint=pictures, state=np.zeros((20, 5)))


def broken_npz(at):
    """Demonstrations in npz files."""
    with np.load(at / "good.npz") as file:
        arrays = dict(file)
    N = len(arrays["action"])
    whole = (at / "good.npz").read_bytes()
    (at / "empty.npz").write_bytes(b"")
    (at / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(at / "object.npz", **arrays | {"state": np.array([{}, None], object)})
    changes = {
        "nan": {"state": np.full((N, 5), np.nan)},
        "large": {"action": np.full((N, 2), 3e38)},
        "text": {"action": np.full((N, 2), "a")},
        "narrow": {"state": np.zeros((N, 4))},
        "ends-fall": {"episode_ends": np.array([40, 20])},
        "ends-beyond": {"episode_ends": np.array([40, N + 1])},
        "ends-float": {"episode_ends": np.array([20.5, N])},
        "ends-huge": {"episode_ends": np.array([2**62])},
        "no-episodes": {"episode_ends": np.array([], int)},
        "escape": {"action": np.zeros((N, 3)), WORDS["ESCAPE"]: np.zeros(3)},
    }
    for name, change in changes.items():
        save_npz(at / f"{name}.npz", **arrays | change)
    fewer = {name: a for name, a in arrays.items() if name != "action"}
    save_npz(at / "no-action.npz", **fewer)
    short = {"state": np.zeros((4, 5)), "action": np.zeros((4, 2)), "episode_ends": np.arange(1, 5)}
    save_npz(at / "short.npz", **short)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 5), }" % 2**40
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(at / "bomb.npz", "w") as archive:
        archive.writestr("state.npy", b"\x93NUMPY\x01\x00v\x00" + header)


def write_zarr(folder, arrays, **change):
    """Write a zarr version 2 group of arrays without a compressor; change: fields of .zarray."""
    for name, array in arrays.items():
        place = folder / name
        place.mkdir(parents=True)
        about = {"zarr_format": 2, "shape": array.shape, "chunks": array.shape, "order": "C"}
        about |= {"dtype": array.dtype.str, "compressor": None, "fill_value": 0, "filters": None}
        (place / ".zarray").write_text(json.dumps(about | change))
        (place / ".".join("0" * array.ndim)).write_bytes(array.tobytes())
    (folder / ".zgroup").write_text('{"zarr_format": 2}')


def broken_zarr(at):
    """Demonstrations in zarr folders."""
    with np.load(at / "good.npz") as file:
        arrays = {"data/state": file["state"], "data/action": file["action"]}
        arrays["meta/episode_ends"] = file["episode_ends"]
    for name, change in {
        "pickle": {"filters": [{"id": "pickle"}]},
        "rows": {"shape": [15_000_000_000, 2], "chunks": [1, 2]},
        "escape": {"dtype": WORDS["ESCAPE"]},
        "negative": {"shape": [-5, 2], "chunks": [5, 2]},
        "words": {"shape": "many"},
        "zero": {"chunks": [0, 0]},
    }.items():
        write_zarr(at / f"{name}.zarr", arrays, **change)
    write_zarr(at / "no-chunk.zarr", arrays)
    (at / "no-chunk.zarr/data/action/0.0").unlink()
    write_zarr(at / "deep.zarr", arrays)
    (at / "deep.zarr/data/action/.zarray").write_text("[" * 100_000)
    (at / "v3.zarr").mkdir()
    (at / "v3.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')


def broken_checkpoints(at):
    """Files in the place of a ckpt.pt."""
    whole = (at / "ckpt.pt").read_bytes()
    state = load_torch(at / "ckpt.pt")
    (at / "cut.pt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (at / "flipped.pt").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    torch.save(warnings.WarningMessage, at / "pickle.pt")
    save_torch(at / "state.pt", load_torch(at / "run1/state.pt"))
    save_torch(at / "types.pt", {**state, "shape": {**state["shape"], "T_a": 8.0}})
    save_torch(at / "chess.pt", {**state, "shape": {**state["shape"], "task": "chess"}})
    save_torch(at / "claims.pt", {**state, "shape": {**state["shape"], "dims": [16384, 32768]}})
    save_torch(at / "escape.pt", {**state, "shape": {**state["shape"], "task": WORDS["ESCAPE"]}})
    bad = {name: v.clone() for name, v in state["weights"].items()}
    bad["norm_action.lo"][0] = torch.nan
    save_torch(at / "nan.pt", {**state, "weights": bad})
    wide = {"state": {"shape": [21], "dtype": dtype_of((21,))}}
    make_policy(obs=wide).save(at / "wide.pt")
    with zipfile.ZipFile(at / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


def broken_folders(at):
    """Run folders and folders of tables."""
    (at / "has-folder/flags.json").mkdir(parents=True)
    (at / "bad-log").mkdir()
    (at / "bad-log/log.jsonl").write_bytes(b"\xff\xfe\x00\n[[[\n")
    (at / "damaged").mkdir()
    for name in ("pusht_methods", "pointcloud", "stage2"):
        (at / f"damaged/{name}.csv").write_bytes(b"setting,seed\n\xff\x00,1,2,3\n")


def broken_lerobot(at):
    """LeRobotDataset folders."""
    episode = {"state": np.zeros((9, 11)), "action": np.zeros((9, 3))}
    for name, change in {
        "v21": {"codebase_version": "v2.1"},
        "outside": {"data_path": "../{file_index}"},
        "no-file": {},
        "rate": {"fps": 20},
    }.items():
        lerobot_writer.write(at / f"{name}.lerobot", [episode], {"state": (11,)}, 10, "run")
        path = at / f"{name}.lerobot/meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (at / "no-file.lerobot/data/chunk-000/file-000.parquet").unlink()


# ---- the table -----------------------------------------------------------------------------------


def rows():
    """(command, words) of each line of the table."""
    lines = [line for line in TABLE.read_text().splitlines() if line and line[0] != "#"]
    return [tuple(part.strip() for part in line.split(" | ")) for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that all rows are run in; demonstrations are not looked for elsewhere."""
    at = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        for name in ("DRIFT_DATA", "DRIFT_CACHE", "MINARI_DATASETS_PATH"):
            patch.setenv(name, str(at / "none"))
        good(at)
        broken(at)
        yield at


def contents(folder):
    """{path: sha256} of every file in a folder, but for locks, which name who held them last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ended(command):
    """Exit code, standard output, standard error and the warnings of a row."""
    words = [WORDS.get(word, word) for word in shlex.split(command)]
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as warned,
    ):
        patch.setattr(sys, "argv", words)
        try:
            commands.cli(COMMANDS[words[0]])
        except SystemExit as e:
            code = e.code
    return code, out.getvalue(), err.getvalue(), [str(w.message) for w in warned]


@pytest.mark.parametrize("command, words", rows())
def test_bad_input(place, command, words):
    before = contents(place)
    code, _, err, warned = ended(command)
    assert (code, err[:7], err.count("\n"), warned) == (2, "error: ", 1, []), err
    assert words in err
    after = contents(place)
    assert {path: after.get(path) for path in before} == before


def test_the_table_is_large():
    """Every script has its rows, and no row stands twice."""
    commands = [command for command, _ in rows()]
    assert len(set(commands)) == len(commands) >= 200
    assert {command.split()[0] for command in commands} == set(COMMANDS)
