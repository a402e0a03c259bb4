"""LeRobotDataset v3: the layout by name and schema, what is written is read again, also after a
kill, whatever is wrong becomes one line, and lerobot itself and this code read each other."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import data
import lerobot_format
import lerobot_writer
import pictures
from commands import BadInput
from conftest import cli
from data import Windows, load
from envs import TASKS
from formats import names_in, read, shapes
from lerobot_format import read_lerobot, video_frames
from lerobot_writer import append, write
from task import Task

TOP = "observation.images.top"
OBS = {"top": (48, 64, 3), "wrist": (64, 64, 3), "agent_pos": (2,), "points": (5, 3)}
ROBOT = Task("robot", OBS, D_a=3, T_o=2, T_p=8, T_a=4)
LENGTHS = (7, 12, 9)
FILE = "chunk-000/file-000"


def make_episode(L, seed, obs=OBS):
    """L steps: pictures that move smoothly, as videos are made for, and random numbers."""
    rng = np.random.default_rng(seed)
    episode = {"action": rng.normal(size=(L, 3)).astype("f4")}
    for name, shape in obs.items():
        episode[name] = rng.normal(size=(L, *shape)).astype("f4")
        if len(shape) == 3:
            x = np.linspace(0, 6, shape[1]) + 0.1 * np.arange(L)[:, None] + rng.uniform(0, 6)
            rows = np.linspace(0.5, 1, shape[0])[:, None, None] * np.array([1, 0.8, 0.6])
            wave = 120 * (1 + np.sin(x))[:, None, :, None] * rows
            episode[name] = wave.astype(np.uint8)
    return episode


EPISODES = [make_episode(L, seed) for seed, L in enumerate(LENGTHS)]


def joined(name, episodes=EPISODES):
    """An array of all episodes, one after another."""
    return np.concatenate([episode[name] for episode in episodes])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data sets {kind of video: folder}: two episodes in one file, then a third in another."""
    folders = {}
    for video in lerobot_writer.VIDEO:
        folders[video] = tmp_path_factory.mktemp("made") / video
        append(folders[video], EPISODES[:2], OBS, 10, "push", video=video)
        append(folders[video], EPISODES[2:], OBS, 10, "pull", video=video)
    return folders


@pytest.fixture
def copied(made, tmp_path):
    """A function that copies one of `made`, to be damaged."""

    def copy(video):
        return shutil.copytree(made[video], tmp_path / video)

    return copy


# ---- the layout ----------------------------------------------------------------------------------


def files_of(folder):
    """The names of all files in a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_the_files_and_their_schemas(made):
    meta = {"meta/info.json", "meta/stats.json", "meta/tasks.parquet", ".lock"}
    meta |= {f"meta/episodes/{FILE}.parquet"}
    rows = {f"data/chunk-000/file-00{n}.parquet" for n in (0, 2)}
    videos = {
        f"videos/observation.images.{camera}/chunk-000/file-00{n}.mp4"
        for camera in ("top", "wrist")
        for n in (0, 2)
    }
    assert files_of(made["av1"]) == files_of(made["h264"]) == meta | rows | videos
    assert files_of(made["off"]) == meta | rows
    schema = {
        "observation.state": pa.list_(pa.float32(), 2),
        "observation.points": pa.list_(pa.list_(pa.float32())),
        "action": pa.list_(pa.float32(), 3),
        "timestamp": pa.float32(),
        "frame_index": pa.int64(),
        "episode_index": pa.int64(),
        "index": pa.int64(),
        "task_index": pa.int64(),
    }
    found = pq.read_table(made["av1"] / f"data/{FILE}.parquet")
    assert {field.name: field.type for field in found.schema} == schema
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    found = pq.read_schema(made["off"] / f"data/{FILE}.parquet")
    assert found.field(TOP).type == picture and len(found) == len(schema) + 2


def test_the_content_of_info_json(made):
    about = json.loads((made["av1"] / "meta/info.json").read_text())
    features = about.pop("features")
    assert about == {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": 3,
        "total_frames": 28,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    assert features["action"] == {"dtype": "float32", "shape": [3], "names": None}
    top = features[TOP]
    assert (top["dtype"], top["shape"]) == ("video", [48, 64, 3])
    assert top["names"] == ["height", "width", "channels"]
    assert top["info"]["video.codec"] == "av1" and top["info"]["video.fps"] == 10
    assert json.loads((made["off"] / "meta/info.json").read_text())["video_path"] is None


def test_the_rows_of_episodes_and_tasks(made):
    rows = pq.read_table(made["av1"] / f"meta/episodes/{FILE}.parquet").to_pylist()
    assert [row["length"] for row in rows] == list(LENGTHS)
    assert [row["tasks"] for row in rows] == [["push"], ["push"], ["pull"]]
    assert [row["dataset_from_index"] for row in rows] == [0, 7, 19]
    assert [row["data/file_index"] for row in rows] == [0, 0, 2]
    assert [row[f"videos/{TOP}/from_timestamp"] for row in rows] == [0, 0.7, 0]
    assert [row[f"videos/{TOP}/to_timestamp"] for row in rows] == [0.7, 1.9, 0.9]
    tasks = pq.read_table(made["av1"] / "meta/tasks.parquet")
    assert tasks.to_pylist() == [
        {"task_index": 0, "task": "push"},
        {"task_index": 1, "task": "pull"},
    ]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    steps = pq.read_table(made["av1"] / "data/chunk-000/file-002.parquet")
    assert steps["task_index"].to_pylist() == [1] * 9
    assert steps["index"].to_pylist() == list(range(19, 28))
    assert steps["timestamp"].to_pylist() == pytest.approx(np.arange(9) / 10)


def test_statistics_are_those_of_all_steps(made):
    found = json.loads((made["off"] / "meta/stats.json").read_text())
    assert set(found) == set(json.loads((made["off"] / "meta/info.json").read_text())["features"])
    action = joined("action").astype(float)
    for name in ("min", "max", "mean", "std"):
        wanted = getattr(action, name)(0)
        assert found["action"][name] == pytest.approx(wanted), name
    assert found["action"]["count"] == [28]
    colours = joined("top").reshape(-1, 3) / 255
    mean = np.array(found[TOP]["mean"])
    assert mean.shape == (3, 1, 1) and mean.ravel() == pytest.approx(colours.mean(0))
    assert np.ravel(found[TOP]["std"]) == pytest.approx(colours.std(0))
    assert found["index"]["max"] == [27] and set(found["action"]) >= {"q01", "q50", "q99"}


# ---- writing and reading again -------------------------------------------------------------------


def test_png_keeps_every_bit(made):
    found = read(made["off"])
    assert found["episode_ends"].tolist() == [7, 19, 28] and found["episode_ends"].dtype == np.int64
    for name in ("top", "wrist", "points", "action"):
        assert found[name].dtype == joined(name).dtype
        assert np.array_equal(found[name], joined(name)), name
    assert np.array_equal(found["state"], joined("agent_pos"))


@pytest.mark.parametrize("video, most", [("av1", 3), ("h264", 5)])
def test_video_keeps_frames_nearly(made, video, most):
    """Each frame is nearest to its own picture, so none is lost or at another place."""
    found = read(made[video])
    assert np.array_equal(found["action"], joined("action"))
    for name in ("top", "wrist"):
        difference = np.abs(found[name].astype(int) - joined(name))
        assert found[name].shape == joined(name).shape and difference.mean() < most
        for t, picture in enumerate(found[name]):
            every = np.abs(picture.astype(int) - joined(name)).mean((1, 2, 3))
            assert every[t] == every.min(), (name, t)


def test_quality_is_set_by_crf(made, tmp_path):
    append(tmp_path / "fine", EPISODES[:2], OBS, 10, "push", video="h264", crf=5)
    fine = np.abs(read(tmp_path / "fine")["top"].astype(int) - joined("top", EPISODES[:2])).mean()
    rough = np.abs(read(made["h264"])["top"][:19].astype(int) - joined("top", EPISODES[:2])).mean()
    assert fine < 0.8 * rough


def test_names_and_shapes_without_reading(made):
    wanted = {name: (joined(name).shape, joined(name).dtype) for name in ("top", "wrist")}
    wanted["state"] = ((28, 2), np.dtype("f4"))
    wanted["points"] = ((28, 5, 3), np.dtype("f4"))
    wanted["action"] = ((28, 3), np.dtype("f4"))
    wanted["episode_ends"] = ((3,), np.dtype("i8"))
    assert shapes(made["av1"]) == wanted and names_in(made["av1"]) == list(wanted)


def test_files_of_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_writer, "FILES", 2)
    monkeypatch.setattr(lerobot_writer, "LIMITS", {"h264": 1})  # an episode in each file
    write(tmp_path / "x", EPISODES, OBS, 12.5, "push", video="h264")
    assert {f for f in files_of(tmp_path / "x") if "top" in f} == {
        f"videos/{TOP}/chunk-00{chunk}/file-00{n}.mp4" for chunk, n in ((0, 0), (0, 1), (1, 0))
    }
    found = read(tmp_path / "x")
    assert np.array_equal(found["action"], joined("action"))
    assert np.abs(found["top"].astype(int) - joined("top")).mean() < 5
    assert ".lock" not in files_of(tmp_path / "x")


def test_episodes_are_grouped_by_their_size():
    sizes = [30, 40, 50, 200, 10, 20]
    episodes = [{"action": np.zeros(size, np.uint8)} for size in sizes]
    groups = [[len(e["action"]) for e in group] for group in lerobot_writer.groups(episodes, 100)]
    assert groups == [[30, 40], [50], [200], [10, 20]]


def test_large_videos_are_decoded_once(copied, monkeypatch):
    folder = copied("h264")
    monkeypatch.setattr(pictures, "SMALL", 0)
    first = read(folder)["top"]
    assert list(folder.parent.glob("h264.top*")), "no cache beside the folder"
    with monkeypatch.context() as patch:
        patch.setattr(lerobot_format, "video_frames", None)
        again = read(folder)["top"]
    assert np.array_equal(first, again) and not again.flags.writeable
    video = folder / f"videos/{TOP}/chunk-000/file-002.mp4"
    lerobot_writer.write_video(
        video, {"shape": OBS["top"], "info": {"video.codec": "h264"}}, [255 - joined("top")], 10, 9
    )
    assert np.abs(read(folder)["top"][19:].astype(int) - first[19:]).mean() > 20


def test_a_cache_is_of_the_frames_times(copied):
    """Which frames a row has is told by times that stand beside the videos."""
    info = lerobot_format.read_info(copied("h264"))
    top = next(f for f in info.features.values() if f.dtype == "video")
    episodes = lerobot_format.read_episodes(info, [top])
    times = np.arange(info.N) / info.fps
    key = lerobot_format.pictures_key(info, episodes, top, times)
    assert key == lerobot_format.pictures_key(info, episodes, top, times)
    assert key != lerobot_format.pictures_key(info, episodes, top, times + 0.1)
    name = f"videos/{top.key}/from_timestamp"
    later = {**episodes, name: episodes[name] + 5}
    assert key != lerobot_format.pictures_key(info, later, top, times)


# ---- as the data of a task -----------------------------------------------------------------------


@pytest.mark.parametrize("video", ["off", "av1"])
def test_episodes_of_a_task(made, video):
    """`agent_pos`, the only vector, is kept as observation.state."""
    episodes = load(ROBOT, made[video])
    assert list(episodes.obs) == list(OBS) and episodes.lengths.tolist() == list(LENGTHS)
    assert np.array_equal(episodes.obs["agent_pos"], joined("agent_pos"))
    obs, action = Windows(episodes, 2, 8, 4).batch(torch.arange(3))
    assert obs["top"].shape == (3, 2, 48, 64, 3) and obs["wrist"].dtype.itemsize == 1
    assert action.shape == (3, 8, 3)


def run_data(monkeypatch, *argv):
    """python data.py argv, in this process."""
    monkeypatch.setattr(sys, "argv", ["data.py", *map(str, argv)])
    data.main()


def test_convert_and_convert_back(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "robot", ROBOT)
    argv = [
        "data.py",
        "convert",
        made["off"],
        tmp_path / "new",
        "--task",
        "robot",
        "--video",
        "off",
    ]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    data.main()
    assert f"{tmp_path / 'new'}: 3 episodes, 28 steps" in capsys.readouterr().out
    first = read(made["off"])
    for name, array in read(tmp_path / "new").items():
        assert np.array_equal(array, first[name]), name
    assert json.loads((tmp_path / "new/meta/info.json").read_text())["fps"] == 10


def test_data_py_and_the_trainer_take_a_folder(tmp_path, demos, monkeypatch, capsys):
    folder = tmp_path / "converted"
    run_data(monkeypatch, "convert", demos, folder, "--fps", 20, "--text", "push the T")
    run_data(monkeypatch, "info", folder, "--png", tmp_path / "x.png")
    out = capsys.readouterr().out
    assert "3 episodes, 96 steps" in out and "state (96, 20) float32" in out
    assert json.loads((folder / "meta/info.json").read_text())["fps"] == 20
    found, wanted = (load(TASKS["pusht"], path) for path in (folder, demos))
    assert np.array_equal(found.obs["state"], wanted.obs["state"])
    assert np.array_equal(found.action, wanted.action)
    flags = ["--steps", 2, "--batch", 8, "--dims", 8, 16, "--episodes", 1, "--device", "cpu"]
    flags += ["--one-process", "--out", tmp_path / "run"]
    code, _, err = cli("dbp_train.py", "--data", folder, *flags)
    assert code == 0 and (tmp_path / "run/ckpt.pt").exists(), err


def test_a_camera_that_is_missing_is_named(made):
    task = dataclasses.replace(ROBOT, obs={**OBS, "front": (48, 64, 3)})
    with pytest.raises(BadInput, match=r"lacks front \(it has .*top.*wrist.*episode_ends"):
        load(task, made["off"])


def test_pictures_of_another_size_than_the_task_has(made):
    task = dataclasses.replace(ROBOT, obs={**OBS, "top": (96, 96, 3)})
    with pytest.raises(BadInput, match=r"observation top has shape \(28, 48, 64, 3\), but robot"):
        load(task, made["off"])


def test_a_folder_of_another_layout_is_none(tmp_path):
    (tmp_path / "meta").mkdir()
    assert not lerobot_format.is_lerobot(tmp_path)
    assert not lerobot_format.is_lerobot(tmp_path / "none")


# ---- appending, kills ----------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill is in these tests."""


def killing(number, after):
    """An `atomic` whose call of this number is killed before or after the file is replaced."""
    calls = []

    def atomic(path, fill):
        calls.append(path)
        if len(calls) == number and not after:
            raise Killed
        real(path, fill)
        if len(calls) == number:
            raise Killed

    real = lerobot_writer.atomic
    return atomic


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 8))
def test_a_kill_loses_only_the_episode_in_the_making(tmp_path, number, after):
    """Two videos, the rows, the episodes, tasks, statistics and info.json: seven files."""
    obs = {name: OBS[name] for name in ("top", "wrist", "agent_pos")}
    episodes = [make_episode(L, L, obs) for L in (3, 4, 5)]

    def add(folder, episode, text):
        append(folder, [episode], obs, 10, text, video="h264")

    add(tmp_path / "a", episodes[0], "push")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(lerobot_writer, "atomic", killing(number, after))
        add(tmp_path / "a", episodes[1], "pull")
    done = (number, after) == (7, True)
    ends = read(tmp_path / "a")["episode_ends"].tolist()
    assert ends == ([3, 7] if done else [3])
    for episode in episodes[2:] if done else episodes[1:]:
        add(tmp_path / "a", episode, "pull")
    for episode, text in zip(episodes, ("push", "pull", "pull")):
        add(tmp_path / "b", episode, text)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    for name in files_of(tmp_path / "b"):
        if name != ".lock":
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert read(tmp_path / "a")["top"].shape == (12, 48, 64, 3)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"fps": 20}, "other fps"),
        ({"video": "h264"}, "other features"),
        ({"obs": {**OBS, "top": (64, 48, 3)}}, "other features"),
    ],
)
def test_episodes_of_another_kind_are_not_added(copied, change, words):
    folder = copied("off")
    flags = {"obs": OBS, "fps": 10, "video": "off"} | change
    episode = make_episode(4, 0, flags["obs"])
    before = {name: (folder / name).read_bytes() for name in files_of(folder) - {".lock"}}
    with pytest.raises(BadInput, match=words):
        append(folder, [episode], text="push", **flags)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_data_set_of_another_program_is_not_added_to(copied):
    folder = copied("off")
    path = folder / f"meta/episodes/{FILE}.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["stats/action/q01"]), path)
    with pytest.raises(BadInput, match="written by another program: `python data.py convert`"):
        append(folder, EPISODES[:1], OBS, 10, "push", video="off")


def test_two_writers_of_one_folder(copied):
    """The lock of a process does not stop the process itself, so another one holds it."""
    folder = copied("off")
    code = f"from files import Lock; lock = Lock({str(folder / '.lock')!r}); print(1, flush=True); "
    code += "input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=data.__file__.rpartition("/")[0],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(BadInput, match="is being written by process"):
            append(folder, EPISODES[:1], OBS, 10, "push", video="off")
        other.communicate(b"\n")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"top": joined("top").astype("f4")[:7]}, "dtype float32: pictures must be uint8"),
        ({"top": joined("top")[:6]}, r"top of an episode has shape \(6, 48, 64, 3\): 7 actions"),
        ({"wrist": joined("top")[:7]}, r"7 actions need \(7, 64, 64, 3\)"),
        ({"agent_pos": None}, "an episode lacks agent_pos"),
    ],
)
def test_episodes_that_do_not_fit(tmp_path, change, words):
    episode = {name: a for name, a in {**EPISODES[0], **change}.items() if a is not None}
    with pytest.raises(BadInput, match=words):
        write(tmp_path / "x", [episode], OBS, 10, "push", video="off")
    assert not list(tmp_path.iterdir())


def test_odd_sizes(tmp_path):
    obs = {"top": (33, 47, 3)}
    episode = make_episode(3, 0, obs)
    write(tmp_path / "a", [episode], obs, 10, "push", video="av1")
    assert np.abs(read(tmp_path / "a")["top"].astype(int) - episode["top"]).mean() < 5
    with pytest.raises(BadInput, match="no pictures of 47 x 33, only even numbers"):
        write(tmp_path / "b", [episode], obs, 10, "push", video="h264")


def test_h264_where_there_is_no_encoder_of_av1(tmp_path, monkeypatch):
    monkeypatch.setitem(lerobot_writer.ENCODERS, "av1", "nonsense")
    append(tmp_path / "x", EPISODES, OBS, 10, "push")
    about = json.loads((tmp_path / "x/meta/info.json").read_text())
    assert about["features"][TOP]["info"]["video.codec"] == "h264"
    monkeypatch.setitem(lerobot_writer.ENCODERS, "h264", "nonsense")
    with pytest.raises(BadInput, match="no encoder for av1: --video off"):
        append(tmp_path / "y", EPISODES, OBS, 10, "push")


# ---- damaged and hostile data sets ---------------------------------------------------------------


def edit(folder, *path, value):
    """Set an entry of info.json."""
    file = folder / "meta/info.json"
    about = json.loads(file.read_text())
    place = about
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(about))


def edit_table(path, column, change):
    """Replace a column of a parquet file by change(its values)."""
    table = pq.read_table(path)
    values = change(table[column].to_pylist())
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, [values]), path)


INFO = {
    "v2.1": (("codebase_version",), "v2.1", "is a LeRobotDataset v2.1, .*convert_dataset_v21"),
    "v4": (("codebase_version",), "v4.0", "is a LeRobotDataset v4.0, but v3.0 is read here$"),
    "no episodes": (("total_episodes",), 0, "tells of 0 episodes and 28 steps"),
    "many steps": (("total_frames",), 10**11, r"declares .* GB of numbers"),
    "episodes as text": (("total_episodes",), "3", "tells of 3 episodes"),
    "more episodes": (("total_episodes",), 4, "holds 3 episodes, info.json tells of 4"),
    "fps": (("fps",), 0, "tells of 0 steps a second"),
    "outside": (("data_path",), "../x/{file_index}.parquet", "must be in the folder"),
    "absolute": (("data_path",), "/etc/passwd", "must be in the folder"),
    "format": (("data_path",), "{file_index.__class__}", "must be in the folder"),
    "no path": (("data_path",), "data/none", "data/none is missing"),
    "features": (("features",), [], "info.json is damaged"),
    "shape": (("features", "action", "shape"), [-3], "no sizes above 0"),
    "wide": (("features", "action", "shape"), [4], "has 57 numbers in 19 rows, not 4 in each"),
    "dtype": (("features", "action", "dtype"), "int64", "dtype float32, but info.json says int64"),
    "string": (("features", "action", "dtype"), "string", "feature action is not read: only num"),
    "grey": (("features", TOP, "shape"), [48, 64, 1], "images.top is not read: only numbers and"),
    "no column": (("features", "observation.x"), {"dtype": "int64", "shape": [1]}, "lacks column"),
    "name twice": (("features", "top"), {"dtype": "int64", "shape": [1]}, "two features for top"),
}


@pytest.mark.parametrize("name", INFO)
def test_info_json_that_is_wrong(copied, name):
    path, value, words = INFO[name]
    folder = copied("off")
    edit(folder, *path, value=value)
    with pytest.raises(BadInput, match=words) as refused:
        load(
            dataclasses.replace(ROBOT, obs={**OBS, "x": (1,)} if name == "no column" else OBS),
            folder,
        )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("video", ["off", "h264"])
def test_a_size_that_is_not_the_pictures(copied, video):
    folder = copied(video)
    edit(folder, "features", TOP, "shape", value=[48, 128, 3])
    with pytest.raises(BadInput, match=r"top are 64 x 48, but info.json says 128 x 48 \(width x"):
        read(folder)


def test_channels_first_is_the_same(copied):
    folder = copied("h264")
    first = read(folder)["top"]
    edit(folder, "features", TOP, "shape", value=[3, 48, 64])
    assert np.array_equal(read(folder)["top"], first)


def test_features_that_are_not_read_are_no_hindrance(copied):
    """Texts and depths are left out, unless the task has them; names may begin alike."""
    folder = copied("off")
    edit(folder, "features", "observation.text", value={"dtype": "string", "shape": [1]})
    edit(folder, "features", "observation.depth", value={"dtype": "video", "shape": [9, 9, 1]})
    wide = {"dtype": "float64", "shape": [9]}
    edit(folder, "features", "action.wide", value=wide)
    for n, L in ((0, 19), (2, 9)):
        path = folder / f"data/chunk-000/file-00{n}.parquet"
        table = pq.read_table(path)
        values = pa.array([[0.0] * 400] * L)
        pq.write_table(table.append_column("action.wide", values), path)
    assert shapes(folder)["depth"] == ((28, 9, 9, 1), np.dtype(object))
    assert np.array_equal(load(ROBOT, folder).action, joined("action"))
    assert set(read(folder, ["action", "episode_ends"])) == {"action", "state", "episode_ends"}
    edit(folder, "features", "observation.state", "dtype", value="string")
    assert set(read(folder, ["action"])) == {"action"}


ROWS = {
    "order": ("index", lambda x: x[::-1], "the steps are not those from 0 to 19"),
    "gap": ("action", lambda x: [None, *x[1:]], "holds 1 gaps"),
    "gap inside": ("action", lambda x: [[None, 0, 0], *x[1:]], "holds 1 gaps"),
    "unequal": ("action", lambda x: [x[0][:2], *x[1:]], "rows of different lengths"),
    "text": ("action", lambda x: ["a"] * len(x), "lacks|no numbers|far more|numbers in"),
    "no picture": (TOP, lambda x: [{"bytes": None, "path": "/etc/passwd"}] * len(x), "embed them"),
    "no png": (TOP, lambda x: [{"bytes": b"GIF89a", "path": ""}] * len(x), "top are damaged"),
    "bytes": (TOP, lambda x: [{"bytes": bytes(10**7), "path": ""}] * len(x), "declares .* bytes"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_are_wrong(copied, name):
    column, change, words = ROWS[name]
    folder = copied("off")
    edit_table(folder / f"data/{FILE}.parquet", column, change)
    with pytest.raises(BadInput, match=words):
        read(folder)


def png_of(mode, size):
    """The bytes of a black PNG."""
    packed = io.BytesIO()
    Image.new(mode, size).save(packed, "PNG")
    return packed.getvalue()


@pytest.mark.parametrize(
    "mode, size, words",
    [("L", (64, 48), "are L, not RGB"), ("RGB", (9000, 9000), "are 9000 x 9000, but info.json")],
)
def test_png_of_another_kind(copied, mode, size, words):
    folder = copied("off")
    content = {"bytes": png_of(mode, size), "path": ""}
    edit_table(folder / f"data/{FILE}.parquet", TOP, lambda x: [content, *x[1:]])
    with pytest.raises(BadInput, match=words):
        read(folder)


@pytest.mark.parametrize(
    "column, value",
    [
        ("dataset_from_index", 1),
        ("dataset_to_index", 8),
        ("length", 6),
        ("episode_index", 5),
        ("data/file_index", -1),
    ],
)
def test_episodes_that_do_not_follow_one_another(copied, column, value):
    folder = copied("off")
    path = folder / f"meta/episodes/{FILE}.parquet"
    edit_table(path, column, lambda x: [value, *x[1:]])
    with pytest.raises(BadInput, match="do not follow|no whole numbers"):
        read(folder)


def test_fewer_rows_than_the_episodes_have(copied):
    folder = copied("off")
    path = folder / f"data/{FILE}.parquet"
    pq.write_table(pq.read_table(path)[:10], path)
    with pytest.raises(BadInput, match="has 10 rows, but its episodes have 19 steps"):
        read(folder)


def test_a_number_that_was_changed_on_the_disk(copied):
    """The tables that are written here have checksums."""
    folder = copied("h264")
    path = folder / f"data/{FILE}.parquet"
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    (column,) = (c for c in columns if c.path_in_schema.startswith("action."))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is not a parquet file, or is damaged"):
        read(folder)


# ---- videos --------------------------------------------------------------------------------------


def replaced_video(folder, pictures, shape=(48, 64), fps=10, codec="h264"):
    """Write another video in the place of the first two episodes of `top`."""
    path = folder / f"videos/{TOP}/{FILE}.mp4"
    feature = {"shape": (*shape, 3), "info": {"video.codec": codec}}
    lerobot_writer.write_video(path, feature, [pictures], fps, 30)


def test_a_video_that_is_missing(copied):
    folder = copied("h264")
    (folder / f"videos/{TOP}/{FILE}.mp4").unlink()
    with pytest.raises(BadInput, match=f"videos/{TOP}/{FILE}.mp4 is missing"):
        read(folder)
    assert "wrist" in read(folder, ["wrist"])


def test_a_video_with_fewer_frames_than_rows(copied):
    folder = copied("h264")
    replaced_video(folder, joined("top")[:18])
    with pytest.raises(BadInput, match="has no whole frame at 1.800 s, where a step of obs"):
        read(folder)


def test_a_video_of_another_rate(copied):
    folder = copied("h264")
    replaced_video(folder, joined("top"), fps=7)
    with pytest.raises(BadInput, match="has no whole frame at 0.100 s"):
        read(folder)


def test_a_video_of_another_size(copied):
    folder = copied("h264")
    replaced_video(folder, joined("wrist"), shape=(64, 64))
    with pytest.raises(BadInput, match="are 64 x 64, but info.json says 64 x 48"):
        read(folder)


@pytest.mark.parametrize("video", ["av1", "h264"])
@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.9])
def test_a_video_that_is_cut_short(copied, capfd, video, share):
    folder = copied(video)
    path = folder / f"videos/{TOP}/{FILE}.mp4"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadInput, match="is damaged|no whole frame") as refused:
        read(folder)
    assert "\n" not in str(refused.value) and capfd.readouterr().err == ""


@pytest.mark.parametrize("video", ["av1", "h264"])
def test_a_video_with_other_bytes_inside(copied, capfd, video):
    """Frames are never patched up silently: each case is refused."""
    folder = copied(video)
    path = folder / f"videos/{TOP}/{FILE}.mp4"
    content = path.read_bytes()
    first = content.index(b"mdat") + (content.index(b"moov") - content.index(b"mdat")) * 2 // 3
    path.write_bytes(content[:first] + bytes(60) + content[first + 60 :])
    with pytest.raises(BadInput, match="damaged|no whole frame"):
        read(folder)
    assert capfd.readouterr().err == ""


def test_a_playlist_in_the_place_of_a_video(copied, tmp_path):
    """FFmpeg would open the files that it names."""
    folder = copied("h264")
    other = tmp_path / "other.mp4"
    shutil.move(folder / f"videos/{TOP}/{FILE}.mp4", other)
    (folder / f"videos/{TOP}/{FILE}.mp4").write_text(f"ffconcat version 1.0\nfile '{other}'\n")
    with pytest.raises(BadInput, match="is not a video in MP4"):
        read(folder)


def test_a_codec_that_is_not_read(copied):
    import av

    folder = copied("h264")
    with av.open(str(folder / f"videos/{TOP}/{FILE}.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", 10)
        stream.width, stream.height = 64, 48
        for picture in joined("top"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    with pytest.raises(BadInput, match="is compressed by mpeg4: av1, h264, hevc are read"):
        read(folder)


def test_frames_by_their_numbers(made):
    """A run may begin inside of a file and leave frames out, but must go forward."""
    feature = lerobot_format.read_info(made["h264"]).features["top"]
    path = made["h264"] / f"videos/{TOP}/{FILE}.mp4"
    every = list(video_frames(path, feature, 10, np.arange(19)))
    some = list(video_frames(path, feature, 10, np.array([4, 5, 9])))
    assert all(np.array_equal(a, every[n]) for a, n in zip(some, (4, 5, 9)))
    with pytest.raises(BadInput, match="do not follow one another in time"):
        list(video_frames(path, feature, 10, np.array([4, 4])))


def test_a_missing_library_is_one_line(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadInput, match="LeRobotDataset needs av: pip install av"):
        read(made["h264"], ["top"])


# ---- lerobot itself ------------------------------------------------------------------------------


@pytest.fixture
def lerobot(monkeypatch, tmp_path):
    """lerobot's LeRobotDataset; skips without lerobot."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    reason = "lerobot is not installed (it needs other versions: install it in another environment)"
    return pytest.importorskip("lerobot.datasets.lerobot_dataset", reason=reason).LeRobotDataset


def frames_of(dataset, key):
    """All pictures of a camera as lerobot gives them, as (N, H, W, 3) uint8."""
    some = [dataset[i][key].numpy() for i in range(len(dataset))]
    return np.rint(np.stack(some) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("video", lerobot_writer.VIDEO)
def test_lerobot_opens_what_is_written_here(lerobot, made, video):
    dataset = lerobot("x/y", root=made[video], video_backend="pyav")
    found = read_lerobot(made[video])
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (3, 28, 10)
    for name in ("top", "wrist"):
        assert np.array_equal(frames_of(dataset, f"observation.images.{name}"), found[name])
    for i in (0, 18, 27):
        item = dataset[i]
        assert np.array_equal(item["observation.state"], found["state"][i])
        assert np.array_equal(item["observation.points"], found["points"][i])
        assert np.array_equal(item["action"], found["action"][i])
        assert item["task"] == ("push" if i < 19 else "pull")


@pytest.mark.parametrize("kind, mb", [("video", 100), ("video", 1e-6), ("image", 1e-6)])
def test_what_lerobot_writes_is_read_here(lerobot, tmp_path, kind, mb):
    """mb: the limit of a file, so that all episodes are in one, or each is in its own."""
    features = {
        f"observation.images.{name}": {"dtype": kind, "shape": OBS[name], "names": ["h", "w", "c"]}
        for name in ("top", "wrist")
    }
    for key, size in (("observation.state", 2), ("action", 3)):
        features[key] = {"dtype": "float32", "shape": (size,), "names": None}
    root = tmp_path / "x"
    dataset = lerobot.create("x/y", 10, features, root, use_videos=kind == "video", vcodec="h264")
    dataset.meta.update_chunk_settings(2, mb, mb)
    for episode in EPISODES:
        for t in range(len(episode["action"])):
            frame = {f"observation.images.{name}": episode[name][t] for name in ("top", "wrist")}
            state = {"observation.state": episode["agent_pos"][t], "action": episode["action"][t]}
            dataset.add_frame({**frame, **state, "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    assert len(list(root.glob("data/*/*.parquet"))) == (1 if mb == 100 else 3)
    task = dataclasses.replace(ROBOT, obs={n: OBS[n] for n in ("top", "wrist", "agent_pos")})
    episodes = load(task, root)
    assert episodes.lengths.tolist() == list(LENGTHS)
    for name in ("agent_pos", "action"):
        found = episodes.action if name == "action" else episodes.obs[name]
        assert np.array_equal(found, joined(name))
    again = lerobot("x/y", root=root, video_backend="pyav")
    for name in ("top", "wrist"):
        frames = frames_of(again, f"observation.images.{name}")
        assert np.array_equal(episodes.obs[name], frames)
        if kind == "image":
            assert np.array_equal(frames, joined(name))
