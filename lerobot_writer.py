"""LeRobotDataset version 3, written: the layout is told in lerobot_format.py.

`append` adds episodes, such as each one that a robot has just recorded, and `write` makes a whole
data set. Parquet and MP4 files cannot be added to, so each call of `append` makes files of its own,
which bear the number of their first episode, and meta/info.json is replaced last: a data set has
the episodes that info.json counts. What a killed writer left beyond them the next one overwrites.
"""

import io
import json
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from commands import BadInput
from files import Lock, atomic, read_bytes, refusing
from lerobot_format import CAMERAS, INDEX, library, read_info

VIDEO = ("av1", "h264", "off")  # how pictures are kept; off: as PNG in the rows, without loss
CRF = 30  # the quality of AV1 and H.264, as lerobot's: 0 is best
WORST = 51
ENCODERS = {"av1": "libsvtav1", "h264": "libx264"}
# AV1 at preset 8 takes twice the time of lerobot's 12, and keeps 1.4 dB more at 96 x 96 pixels.
# x264's mbtree reads memory that was never set: with it the same pictures make different files.
OPTIONS = {"av1": {"preset": "8"}, "h264": {"x264-params": "mbtree=0"}}
KEYFRAMES = "2"  # every second frame can be jumped to, as in lerobot's videos
FILES = 1000  # in a chunk's folder
LIMITS = {"av1": 2e9, "h264": 2e9, "off": 1e8}  # unpacked bytes of the episodes in a file
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLE = 100  # pictures of an episode that its statistics are of
EPISODES = Path("meta", "episodes", "chunk-000", "file-000.parquet")
TASKS = Path("meta", "tasks.parquet")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def write(folder, episodes, obs, fps, text, *, video="av1", crf=CRF):
    """Write a data set of episodes, as in `append`. It appears whole or not at all.

    Raises BadInput if the folder exists.
    """
    folder = Path(folder)
    check_new(folder)
    with refusing(f"cannot write {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as tmp:
            new = Path(tmp, folder.name)
            for group in groups(episodes, LIMITS[video]):
                append(new, group, obs, fps, text, video=video, crf=crf)
            (new / ".lock").unlink()
            new.rename(folder)


def check_new(folder):
    """Refuse a folder that exists. Raises BadInput."""
    if os.path.lexists(folder):
        raise BadInput(f"{folder} exists: name a new folder, or move it away")


def groups(episodes, limit):
    """Lists of episodes in their order, each of which has up to `limit` bytes or one episode."""
    group = []
    size = 0
    for episode in episodes:
        nbytes = sum(a.nbytes for a in episode.values())
        if group and size + nbytes > limit:
            yield group
            group = []
            size = 0
        group.append(episode)
        size += nbytes
    if group:
        yield group


def append(folder, episodes, obs, fps, text, *, video="av1", crf=CRF):
    """Add episodes to a data set, which is made if there is none. All of them appear, or none.

    episodes: dicts {name: array} of L steps, with action (L, D_a) and the observations of `obs`
    {name: shape} (L, *shape): pictures uint8, all else is kept as float32. fps: steps a second.
    text: what the robot was told to do. video, crf: see VIDEO and CRF; without an encoder for AV1
    it is H.264. Raises BadInput if they do not fit together or to the data set, or if another
    process writes there.
    """
    folder = Path(folder)
    fps = int(fps) if fps == int(fps) else fps
    episodes = [checked(episode, obs) for episode in episodes]
    features = features_of(obs, episodes[0]["action"].shape[1], fps, available(video))
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / ".lock"):
        about = begun(folder, features, fps)
        number = about["total_episodes"]
        texts = texts_of(folder) if number else []
        if text not in texts:
            texts.append(text)
        steps = []
        for e, episode in enumerate(episodes, number):
            indices = (about["total_frames"], e, texts.index(text))
            steps.append(steps_of(episode, keys_of(obs), fps, *indices))
            about["total_frames"] += len(episode["action"])
        for key, feature in features.items():
            if feature["dtype"] == "video":
                file = folder / placed(VIDEO_PATH.replace("{video_key}", key), number)
                write_video(file, feature, [episode[key] for episode in steps], fps, crf)
        write_steps(folder / placed(DATA_PATH, number), features, steps)
        rows = episode_rows(steps, features, number, text, fps)
        table = with_rows(folder, number, rows)
        write_parquet(folder / EPISODES, table)
        write_parquet(folder / TASKS, task_table(texts))
        write_json(folder / "meta" / "stats.json", statistics(table, features))
        about["total_episodes"] += len(episodes)
        about["total_tasks"] = len(texts)
        about["splits"] = {"train": f"0:{about['total_episodes']}"}
        write_json(folder / "meta" / "info.json", about)


# ---- features ------------------------------------------------------------------------------------


def keys_of(obs):
    """{name: key} of a task's observations {name: shape} and of the action.

    The only vector is observation.state, which policies of others look for.
    """
    vectors = [name for name, shape in obs.items() if len(shape) == 1]
    keys = {"action": "action"}
    for name, shape in obs.items():
        if len(shape) == 3:
            keys[name] = f"observation.images.{name}"
        elif vectors == [name]:
            keys[name] = "observation.state"
        else:
            keys[name] = f"observation.{name}"
    return keys


def features_of(obs, D_a, fps, video):
    """The features as info.json describes them, {key: dict}."""
    features = {}
    keys = keys_of(obs)
    for name, shape in {**obs, "action": (D_a,)}.items():
        feature = {"dtype": "float32", "shape": list(shape), "names": None}
        if len(shape) == 3:
            feature["dtype"] = "image" if video == "off" else "video"
            feature["names"] = ["height", "width", "channels"]
        if feature["dtype"] == "video":
            feature["info"] = {
                "video.height": shape[0],
                "video.width": shape[1],
                "video.codec": video,
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            }
        features[keys[name]] = feature
    for key in INDEX:
        dtype = "float32" if key == "timestamp" else "int64"
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def begun(folder, features, fps):
    """The content of the folder's info.json, or that of an empty data set. Raises BadInput.

    It is raised if the data set is of other features, or was not written here.
    """
    if not os.path.lexists(folder / "meta" / "info.json"):
        cameras = any(feature["dtype"] == "video" for feature in features.values())
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if cameras else None,
            "features": features,
        }
    read_info(folder)
    about = json.loads(read_bytes(folder / "meta" / "info.json"))
    ours = {"fps": fps, "features": features, "data_path": DATA_PATH, "chunks_size": FILES}
    other = [key for key, value in ours.items() if about.get(key) != value]
    if other:
        raise BadInput(
            f"{folder} holds a data set with other {' and '.join(other)}: name another folder, or "
            "record with the same rate, observations and --video"
        )
    return about


def checked(episode, obs):
    """An episode with all arrays as they are kept. Raises BadInput if one does not fit."""
    L = len(episode["action"])
    kept = {}
    for name, shape in {**obs, "action": episode["action"].shape[1:2]}.items():
        if name not in episode:
            raise BadInput(f"an episode lacks {name} (it has {', '.join(episode)})")
        array = np.asarray(episode[name])
        dtype = np.uint8 if len(shape) == 3 else np.float32
        if L < 1 or array.shape != (L, *shape):
            raise BadInput(
                f"{name} of an episode has shape {array.shape}: {L} actions need {(L, *shape)}"
            )
        if len(shape) == 3 and array.dtype != np.uint8:
            raise BadInput(f"{name} of an episode has dtype {array.dtype}: pictures must be uint8")
        kept[name] = array.astype(dtype, copy=False)
    return kept


def steps_of(episode, keys, fps, first, e, task):
    """{key: array (L, ...)} of everything that is kept of an episode.

    first: the number of its first step in the data set, e: its own number, task: that of its text.
    """
    L = len(episode["action"])
    t = np.arange(L)
    index = {
        "timestamp": (t / fps).astype(np.float32),
        "frame_index": t,
        "episode_index": np.full(L, e),
        "index": first + t,
        "task_index": np.full(L, task),
    }
    return {keys[name]: array for name, array in episode.items()} | index


def placed(template, number):
    """A file's name by its template and its number, which counts through all chunks."""
    chunk, file = divmod(number, FILES)
    return template.format(chunk_index=chunk, file_index=file)


# ---- pictures ------------------------------------------------------------------------------------


def available(video):
    """The kind of VIDEO, or "h264" for "av1" where PyAV has no encoder of it. Raises BadInput."""
    if video == "off":
        return video
    av = library("av")
    for kind in dict.fromkeys((video, "h264")):
        if ENCODERS[kind] in av.codecs_available:
            return kind
    raise BadInput(f"this PyAV has no encoder for {video}: --video off keeps pictures as PNG")


def write_video(path, feature, episodes, fps, crf):
    """Write the pictures of episodes, arrays (L, H, W, 3) uint8, as one MP4. Raises BadInput."""
    H, W, _ = feature["shape"]
    codec = feature["info"]["video.codec"]
    if codec == "h264" and (H % 2 or W % 2):
        raise BadInput(
            f"H.264 takes no pictures of {W} x {H}, only even numbers: give --video av1 or off"
        )
    total = sum(map(len, episodes))

    def encode(file):
        av = library("av")
        os.environ.setdefault("SVT_LOG", "1")  # else AV1's encoder prints its settings
        options = {"crf": str(crf), "g": KEYFRAMES, **OPTIONS[codec]}
        with av.open(file, "w", format="mp4") as container:
            rate = Fraction(fps).limit_denominator(1000)
            stream = container.add_stream(ENCODERS[codec], rate, options=options)
            stream.width = W
            stream.height = H
            stream.pix_fmt = "yuv420p"
            bar = tqdm(total=total, desc=path.parts[-3], unit="frame", delay=1, disable=None)
            with bar:
                for picture in (picture for episode in episodes for picture in episode):
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
                    container.mux(stream.encode(frame))
                    bar.update()
            container.mux(stream.encode())

    with refusing(f"{path} cannot be encoded"):
        atomic(path, encode)


def png(picture):
    """The bytes of a PNG file of a picture (H, W, 3) uint8."""
    packed = io.BytesIO()
    library("PIL.Image").fromarray(np.ascontiguousarray(picture)).save(packed, "PNG")
    return packed.getvalue()


# ---- parquet -------------------------------------------------------------------------------------


def write_parquet(path, table):
    """Write an Arrow table as a parquet file, atomically."""
    write_table = library("pyarrow.parquet").write_table
    atomic(path, lambda file: write_table(table, file, write_page_checksum=True))


def write_json(path, content):
    """Write a JSON file, atomically."""
    atomic(path, lambda file: file.write(json.dumps(content, indent=4).encode()))


def write_steps(path, features, steps):
    """Write the steps of episodes, dicts of `steps_of`: a row for each, without videos."""
    kept = {key: f for key, f in features.items() if f["dtype"] != "video"}
    schema = library("pyarrow").schema([(key, arrow_type(f)) for key, f in kept.items()])

    def write_rows(file):
        parquet = library("pyarrow.parquet")
        with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
            for episode in steps:
                writer.write_table(rows_of(episode, kept, schema))

    atomic(path, write_rows)


def arrow_type(feature):
    """The Arrow type of a feature's column, as lerobot has it."""
    pa = library("pyarrow")
    if feature["dtype"] == "image":
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kind = pa.from_numpy_dtype(feature["dtype"])
    if feature["shape"] == [1]:
        return kind
    if len(feature["shape"]) == 1:
        return pa.list_(kind, feature["shape"][0])
    for _ in feature["shape"]:
        kind = pa.list_(kind)
    return kind


def rows_of(episode, features, schema):
    """The Arrow table of an episode's steps."""
    pa = library("pyarrow")
    columns = []
    for key, feature in features.items():
        values = episode[key]
        if feature["dtype"] == "image":
            values = [{"bytes": png(picture), "path": None} for picture in values]
        elif feature["shape"] == [1]:
            values = values.reshape(-1)
        else:
            values = list(values) if values.ndim == 2 else values.tolist()
        columns.append(pa.array(values, schema.field(key).type))
    return pa.table(columns, schema=schema)


def task_table(texts):
    """The Arrow table of the tasks' texts, which pandas reads with the texts as its index."""
    index = {"name": "task", "field_name": "task", "pandas_type": "unicode"}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64"}
    about = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**number, "numpy_type": "int64", "metadata": None},
            {**index, "numpy_type": "object", "metadata": None},
        ],
    }
    table = library("pyarrow").table({"task_index": list(range(len(texts))), "task": texts})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def texts_of(folder):
    """The texts of the tasks of a data set, in the order of their numbers. Raises BadInput."""
    with refusing(f"{folder / TASKS} is damaged"):
        rows = library("pyarrow.parquet").read_table(folder / TASKS).to_pylist()
        return [str(row["task"]) for row in sorted(rows, key=lambda row: row["task_index"])]


# ---- episodes and statistics ---------------------------------------------------------------------


def episode_rows(steps, features, number, text, fps):
    """The rows of meta/episodes for episodes whose files have this number."""
    chunk, file = divmod(number, FILES)
    start = int(steps[0]["index"][0])
    rows = []
    for episode in steps:
        first = int(episode["index"][0])
        L = len(episode["index"])
        row = {
            "episode_index": int(episode["episode_index"][0]),
            "tasks": [text],
            "length": L,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": first,
            "dataset_to_index": first + L,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for key, feature in features.items():
            if feature["dtype"] == "video":
                row[f"videos/{key}/chunk_index"] = chunk
                row[f"videos/{key}/file_index"] = file
                row[f"videos/{key}/from_timestamp"] = (first - start) / fps
                row[f"videos/{key}/to_timestamp"] = (first - start + L) / fps
            for what, value in described(episode[key], feature["dtype"] in CAMERAS).items():
                row[f"stats/{key}/{what}"] = value
        rows.append(row)
    return rows


def with_rows(folder, number, rows):
    """The Arrow table of the first `number` episodes of a folder and of these rows. BadInput."""
    pa = library("pyarrow")
    table = pa.Table.from_pylist(rows)
    if not number:
        return table
    with refusing(f"{folder / EPISODES} is damaged, or another program has written it"):
        earlier = library("pyarrow.parquet").read_table(folder / EPISODES)[:number]
        if len(earlier) < number or earlier.schema != table.schema:
            raise BadInput(
                f"{folder} was written by another program: `python data.py convert` makes a copy "
                "that can be added to"
            )
        return pa.concat_tables([earlier, table])


def described(values, pictures):
    """{"min", "max", "mean", "std", "count", quantiles}: lists, of values (L, ...) of an episode.

    Of pictures (L, H, W, 3) it is for each colour, (3, 1, 1), of values from 0 to 1, and of no more
    than SAMPLE pictures and about as many of their rows and columns.
    """
    shape = values.shape[1:] or (1,)
    if pictures:
        some = np.linspace(0, len(values) - 1, min(SAMPLE, len(values))).astype(int)
        step = max(1, max(shape[:2]) // SAMPLE)
        count = len(some)
        values = values[some, ::step, ::step].reshape(-1, 3) / 255
        shape = (3, 1, 1)
    else:
        count = len(values)
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    found = {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
    }
    for name, quantile in QUANTILES.items():
        found[name] = np.quantile(values, quantile, axis=0)
    found = {name: a.reshape(shape).tolist() for name, a in found.items()}
    return {**found, "count": [count]}


def statistics(table, features):
    """The content of stats.json: those of all episodes, from the rows of meta/episodes.

    Quantiles are means of the episodes', as in lerobot.
    """
    found = {}
    for key in features:
        names = ("min", "max", "mean", "std", *QUANTILES)
        each = {name: np.array(table[f"stats/{key}/{name}"].to_pylist()) for name in names}
        count = np.array(table[f"stats/{key}/count"].to_pylist())  # (E, 1)
        weight = (count / count.sum()).reshape(-1, *[1] * (each["mean"].ndim - 1))
        total = {name: (weight * each[name]).sum(0) for name in ("mean", *QUANTILES)}
        variance = (weight * (each["std"] ** 2 + (each["mean"] - total["mean"]) ** 2)).sum(0)
        total |= {"min": each["min"].min(0), "max": each["max"].max(0), "std": variance**0.5}
        found[key] = {name: value.tolist() for name, value in total.items()}
        found[key]["count"] = count.sum(0).tolist()
    return found
