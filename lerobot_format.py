"""LeRobotDataset version 3, the community's format for recordings of robots: read, with cameras.

A data set of E episodes, N steps in all, is a folder. Its files hold several episodes each:

  meta/info.json                                   sizes, the rate (fps), the features
  meta/tasks.parquet                               the texts of the tasks
  meta/stats.json                                  minimum, mean, ... of each feature; not read here
  meta/episodes/chunk-000/file-000.parquet         a row for each episode: where its parts are
  data/chunk-000/file-000.parquet                  a row for each step: numbers, pictures as PNG
  videos/KEY/chunk-000/file-000.mp4                the pictures of a camera, a frame for each step

A feature's key gives the name that a task knows it by: `observation.images.top` is the camera
`top`, `observation.agent_pos` is `agent_pos`, and `action` is the action. The step at time t of an
episode is the frame at time from_timestamp + t of its video file.

Sizes are checked before memory is taken, no file outside of the folder is named, and nothing is
unpickled. lerobot_writer.py writes such folders.
"""

import dataclasses
import functools
import hashlib
import importlib
import io
import json
import re
from pathlib import Path

import numpy as np

from commands import BadInput
from files import AGAIN, MAX_GB, brief, check_size, read_bytes, refusing
from pictures import BLOCK, at_once, cached_pictures

MAX_EPISODES = 100_000
LIBRARIES = {"pyarrow.parquet": "pyarrow", "PIL.Image": "pillow"}  # module -> what pip installs
CODECS = ("av1", "h264", "hevc")  # of videos; FFmpeg knows hundreds more, of which none is needed
CAMERAS = ("video", "image")  # the dtypes of features that are pictures: in MP4, or in the rows
INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # every data set's own
KEYS = ("observation.images.", "observation.", "next.")  # beginnings that a name goes without
VIDEO_COLUMNS = ("chunk_index", "file_index", "from_timestamp")  # of meta/episodes, for a camera
DTYPE = re.compile("bool|u?int(8|16|32|64)|float(16|32|64)")
VERSION_2 = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --push-to-hub=false"


def library(name):
    """An optional library, imported. Raises BadInput if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as e:
        package = LIBRARIES.get(name, name)
        raise BadInput(f"LeRobotDataset needs {package}: pip install {package} ({brief(e)})") from e


def is_lerobot(path):
    """Whether a path is the folder of a LeRobotDataset, of any version."""
    return (Path(path) / "meta" / "info.json").is_file()


# ---- meta/info.json ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Feature:
    """What is recorded at each step under a key: an array of this shape.

    dtype: numpy's name of it, or how pictures (H, W, 3) are kept, one of CAMERAS. What is read here
    neither as numbers nor as pictures, such as texts and depths, has dtype "other".
    """

    key: str
    dtype: str
    shape: tuple

    def declared(self, N):
        """(shape, dtype) of the array of N steps."""
        shape = () if self.key == "next.reward" else self.shape
        dtype = {"other": object}.get(self.dtype, self.dtype)
        return (N, *shape), np.dtype(np.uint8 if self.dtype in CAMERAS else dtype)


@dataclasses.dataclass(frozen=True)
class Info:
    """The checked content of meta/info.json: E episodes with N steps in all, at `fps` a second."""

    folder: Path
    E: int
    N: int
    fps: float
    features: dict  # a task's name -> Feature
    data_path: str  # templates of files' names
    video_path: str

    def file(self, template, key, chunk, number):
        """The file that a template names. Raises BadInput if it is not inside of the folder."""
        path = template.replace("{video_key}", key)
        for field, value in (("chunk_index", chunk), ("file_index", number)):
            path = re.sub(rf"\{{{field}(:03d)?\}}", f"{value:03d}", path)
        if "{" in path or "\\" in path or Path(path).is_absolute() or ".." in Path(path).parts:
            raise BadInput(
                f"{self.folder}: info.json names files as {brief(template)}, which is refused: "
                "they must be in the folder"
            )
        return self.folder / path


def read_info(path):
    """The Info of a data set. Raises BadInput unless it is of version 3 and whole."""
    path = Path(path)
    where = path / "meta" / "info.json"
    with refusing(f"{where} is damaged: {AGAIN}"):
        about = dict(json.loads(read_bytes(where)))
        version = str(about["codebase_version"])
        if not re.fullmatch(r"v3\.\d+", version):
            convert = f": convert it by `{VERSION_2}` of lerobot" if version[:2] == "v2" else ""
            raise BadInput(
                f"{path} is a LeRobotDataset {brief(version)}, but v3.0 is read here{convert}"
            )
        E = about["total_episodes"]
        N = about["total_frames"]
        fps = about["fps"]
        if not (type(E) is type(N) is int and 0 < E <= min(N, MAX_EPISODES) and N < 2**40):
            raise BadInput(
                f"{where} tells of {brief(E)} episodes and {brief(N)} steps: 1 to {MAX_EPISODES} "
                "episodes of at least a step are read"
            )
        if type(fps) not in (int, float) or not 0 < fps < 1e6:
            raise BadInput(f"{where} tells of {brief(fps)} steps a second: it must be above 0")
        features = {}
        for key, what in about["features"].items():
            name = name_of(key)
            if name in features:
                raise BadInput(f"{path} has two features for {brief(name)}: rename one of them")
            features[name] = feature_of(key, what, path)
        video_path = about.get("video_path") or ""
        return Info(path, E, N, float(fps), features, str(about["data_path"]), str(video_path))


def name_of(key):
    """The name that a task knows a feature by: what follows the longest beginning in KEYS."""
    for beginning in KEYS:
        if key.startswith(beginning) and key != beginning:
            return key.removeprefix(beginning)
    return key


def feature_of(key, what, path):
    """The Feature that info.json describes as {"dtype": ..., "shape": ...}. Raises BadInput."""
    dtype = what["dtype"]
    shape = what["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise BadInput(f"{path}: feature {brief(key)} has shape {brief(shape)}: no sizes above 0")
    if dtype in CAMERAS:
        if len(shape) == 3 and shape[0] == 3 != shape[2]:  # (3, H, W)
            shape = [*shape[1:], 3]
        readable = len(shape) == 3 and shape[2] == 3
    else:
        readable = DTYPE.fullmatch(str(dtype)) and 0 < len(shape) < 5
    return Feature(key, dtype if readable else "other", tuple(shape))


def lerobot_shapes(path):
    """{name: (shape, dtype)} of what a data set holds, which is not read. Raises BadInput.

    What `read_lerobot` cannot read has the dtype object.
    """
    info = read_info(path)
    shown = {name: f for name, f in info.features.items() if f.key not in INDEX}
    found = {name: feature.declared(info.N) for name, feature in shown.items()}
    return found | {"episode_ends": ((info.E,), np.dtype(np.int64))}


# ---- parquet -------------------------------------------------------------------------------------


def open_parquet(file, limits, rows=None):
    """An open pyarrow.parquet.ParquetFile, and the paths of the columns in `limits` inside of it.

    limits: {column: the bytes that a row of it may take}. rows: how many there must be. Raises
    BadInput if a column is missing or declares more bytes, before anything of it is unpacked.
    """
    if not file.is_file():
        raise BadInput(f"{file} is missing: {AGAIN}")
    opened = library("pyarrow.parquet").ParquetFile(file, page_checksum_verification=True)
    meta = opened.metadata
    if rows is not None and meta.num_rows != rows:
        raise BadInput(
            f"{file} has {meta.num_rows} rows, but its episodes have {rows} steps: {AGAIN}"
        )
    there = opened.schema_arrow.names
    paths = []
    for name, limit in limits.items():
        if name not in there:
            raise BadInput(f"{file} lacks column {name} (it has {brief(', '.join(there), 300)})")
        parts = [n for n in range(meta.num_columns) if column_at(opened, n) == name]
        paths += [opened.schema.column(n).path for n in parts]
        groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
        columns = [group.column(n) for group in groups for n in parts]
        size = sum(max(c.total_uncompressed_size, c.num_values) for c in columns)
        if size > limit * meta.num_rows + 2**16:
            raise BadInput(
                f"{file}: column {name} declares {size} bytes, far more than its shape takes: "
                f"{AGAIN}"
            )
    return opened, paths


def column_at(opened, n):
    """The column that part n of a parquet file is of: a list or a struct is kept in parts.

    A part's path begins with the column's name; of names such as action and action.gripper, both
    of which may be there, it is the longest.
    """
    path = f"{opened.schema.column(n).path}."
    return max((name for name in opened.schema_arrow.names if path.startswith(f"{name}.")), key=len)


def read_columns(file, widths, rows=None):
    """{column: array (rows, width)} of a file's columns of numbers. Raises BadInput.

    widths: {column: how many numbers a row of it holds}. rows: how many there shall be; up to
    MAX_EPISODES if not given.
    """
    with refusing(f"{file} is not a parquet file, or is damaged: {AGAIN}"):
        limits = {name: 16 * width + 64 for name, width in widths.items()}
        opened, paths = open_parquet(file, limits, rows)
        with opened:
            if opened.metadata.num_rows > MAX_EPISODES and rows is None:
                raise BadInput(f"{file} has more than {MAX_EPISODES} rows: {AGAIN}")
            table = opened.read(columns=paths, use_threads=False)
        return {
            name: flat(table[name].combine_chunks(), width, f"{file}: column {name}")
            for name, width in widths.items()
        }


def flat(column, width, what):
    """The numbers (rows, width) of an Arrow array whose rows are numbers or nested lists of them.

    Raises BadInput if there are others, or a row or a number is missing.
    """
    rows = len(column)
    while hasattr(column, "value_lengths") and not column.null_count:
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if len(lengths) and lengths.min() != lengths.max():
            raise BadInput(f"{what} has rows of different lengths: {AGAIN}")
        column = column.flatten()
    numbers = column.to_numpy(zero_copy_only=False)
    if column.null_count or numbers.dtype.kind not in "fiub":
        raise BadInput(
            f"{what} holds {column.null_count} gaps or values that are no numbers "
            f"({brief(column.type)}): {AGAIN}"
        )
    if len(numbers) != rows * width:
        raise BadInput(f"{what} has {len(numbers)} numbers in {rows} rows, not {width} in each")
    return numbers.reshape(rows, width)


# ---- episodes ------------------------------------------------------------------------------------


def read_episodes(info, videos):
    """{column: array (E,)} of meta/episodes, as far as the data and these video features go.

    Rows that info.json does not tell of are left out: their writer was killed. Raises BadInput
    unless the episodes follow one another.
    """
    names = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    names += ["data/chunk_index", "data/file_index"]
    for feature in videos:
        names += [f"videos/{feature.key}/{part}" for part in VIDEO_COLUMNS]
    where = info.folder / "meta" / "episodes"
    files = sorted(where.glob("*/*.parquet"))
    if not files or len(files) > MAX_EPISODES:
        raise BadInput(f"{where} holds {len(files)} parquet files: {AGAIN}")
    tables = []
    known = 0
    for file in files:
        tables.append(read_columns(file, dict.fromkeys(names, 1)))
        known += len(tables[-1]["length"])
        if known >= info.E:
            break
    found = {name: np.concatenate([t[name][:, 0] for t in tables])[: info.E] for name in names}
    if len(found["length"]) < info.E:
        raise BadInput(
            f"{where} holds {len(found['length'])} episodes, info.json tells of {info.E}: was the "
            f"recording ended with finalize()? {AGAIN}"
        )
    first = found["dataset_from_index"]
    last = found["dataset_to_index"]
    in_order = (found["episode_index"] == np.arange(info.E)).all() and first[0] == 0
    follow = (first[1:] == last[:-1]).all() and last[-1] == info.N
    if (
        not in_order
        or not follow
        or (last - first != found["length"]).any()
        or (first >= last).any()
    ):
        raise BadInput(
            f"{where}: the episodes do not follow one another from step 0 to {info.N}: {AGAIN}"
        )
    numbers = [found[name] for name in names if name.endswith("_index")]
    if any(a.dtype.kind not in "iu" or a.min() < 0 for a in numbers):
        raise BadInput(f"{where}: the numbers of files and chunks are no whole numbers from 0 on")
    return found


def runs(episodes, beginning):
    """(chunk, file, first step, last step + 1, first episode, last episode + 1) of each file.

    beginning: "data" for the files of the rows, "videos/KEY" for a camera's. A file is one of
    episodes that follow one another.
    """
    places = [episodes[f"{beginning}/{part}"] for part in VIDEO_COLUMNS[:2]]
    places = np.stack(places, 1)  # (E, 2)
    changes = (places[1:] != places[:-1]).any(1)
    borders = [0, *(np.flatnonzero(changes) + 1), len(places)]
    for a, b in zip(borders, borders[1:]):
        first = int(episodes["dataset_from_index"][a])
        yield (*map(int, places[a]), first, int(episodes["dataset_to_index"][b - 1]), a, b)


# ---- reading -------------------------------------------------------------------------------------


def read_lerobot(path, names=None, max_gb=MAX_GB):
    """{name: array} of a data set: the features in `names` that it has, or all. Raises BadInput.

    Numbers have the dtype that they are kept in. Pictures (N, H, W, 3) are uint8, from a cache.
    episode_ends (E,) is int64, cumulative. `state` is read in any case, see `by_names`.
    """
    info = read_info(path)
    declared = lerobot_shapes(path)
    others = {name for name, (_, dtype) in declared.items() if dtype.kind == "O"}
    for name in others.intersection(names or ()):
        raise BadInput(
            f"{path}: feature {info.features[name].key} is not read: only numbers and pictures of "
            "three colours are"
        )
    wanted = {"state", *(declared if names is None else names)} - others
    declared = {n: what for n, what in declared.items() if n in wanted}
    cameras = {n: f for n, f in info.features.items() if n in declared and f.dtype in CAMERAS}
    at_a_time = {n: at_once(*declared[n], (BLOCK, *f.shape)) for n, f in cameras.items()}
    check_size(declared | at_a_time, path, max_gb)
    videos = [feature for feature in cameras.values() if feature.dtype == "video"]
    episodes = read_episodes(info, videos)
    numbers = {n: w for n, w in declared.items() if n not in cameras and n != "episode_ends"}
    arrays, times = read_numbers(info, episodes, numbers, bool(videos))
    for name, feature in cameras.items():
        make = functools.partial(picture_blocks, info, episodes, feature, times)
        key = pictures_key(info, episodes, feature, times)
        arrays[name] = cached_pictures(info.folder, name, declared[name][0], key, make, max_gb)
    if "episode_ends" in declared:
        arrays["episode_ends"] = episodes["dataset_to_index"].astype(np.int64)
    return arrays


def by_names(arrays, obs):
    """The arrays, with `state` also under the name that a task has for its only vector.

    obs: the task's {name: shape}. In this format nearly every data set calls it observation.state.
    """
    vectors = [name for name, shape in obs.items() if len(shape) == 1]
    if len(vectors) == 1 and vectors[0] not in arrays and "state" in arrays:
        return {**arrays, vectors[0]: arrays["state"]}
    return arrays


def read_numbers(info, episodes, declared, with_times):
    """{name: array} of the features that are no pictures, and the timestamps (N,) or None."""
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in declared.items()}
    times = np.empty(info.N) if with_times else None
    for chunk, number, first, last, *_ in runs(episodes, "data"):
        file = info.file(info.data_path, "", chunk, number)
        widths = {info.features[name].key: arrays[name][0].size for name in arrays}
        widths["index"] = 1
        if with_times:
            widths["timestamp"] = 1
        columns = read_columns(file, widths, last - first)
        if (columns["index"][:, 0] != np.arange(first, last)).any():
            raise BadInput(f"{file}: the steps are not those from {first} to {last}: {AGAIN}")
        for name, array in arrays.items():
            found = columns[info.features[name].key]
            if found.dtype.kind != array.dtype.kind:
                raise BadInput(
                    f"{file}: {info.features[name].key} has dtype {found.dtype}, but info.json "
                    f"says {array.dtype}: {AGAIN}"
                )
            array[first:last] = found.reshape(-1, *array.shape[1:])
        if with_times:
            times[first:last] = columns["timestamp"][:, 0]
    return arrays, times


# ---- pictures ------------------------------------------------------------------------------------


def picture_files(info, episodes, feature):
    """(file, first step, last step + 1, first episode, last episode + 1) of a camera's files."""
    is_video = feature.dtype == "video"
    template = info.video_path if is_video else info.data_path
    beginning = f"videos/{feature.key}" if is_video else "data"
    for chunk, number, *steps in runs(episodes, beginning):
        yield info.file(template, feature.key, chunk, number), *steps


def pictures_key(info, episodes, feature, times):
    """A text that is another one when the pictures are: the sizes and times of their files.

    Of a video, also the times (N,) at which its frames are. Raises BadInput if a file is missing.
    """
    found = hashlib.sha256(f"{feature} {episodes['dataset_to_index'].tolist()}".encode())
    if feature.dtype == "video":
        found.update(episodes[f"videos/{feature.key}/from_timestamp"].tobytes() + times.tobytes())
    for file, *steps in picture_files(info, episodes, feature):
        if not file.is_file():
            raise BadInput(f"{file} is missing: {AGAIN}")
        about = file.stat()
        found.update(f"{file.name} {steps} {about.st_size} {about.st_mtime_ns}\n".encode())
    return f"lerobot {found.hexdigest()}"


def picture_blocks(info, episodes, feature, times):
    """The pictures of a camera in order, as arrays (n, H, W, 3) uint8 of up to BLOCK of them."""
    for file, first, last, a, b in picture_files(info, episodes, feature):
        if feature.dtype == "image":
            yield from packed_pictures(file, feature, last - first)
            continue
        length = episodes["length"][a:b]
        begins = np.repeat(episodes[f"videos/{feature.key}/from_timestamp"][a:b], length)
        numbers = np.rint((begins + times[first:last]) * info.fps)
        block = []
        for picture in video_frames(file, feature, info.fps, numbers):
            block.append(picture)
            if len(block) == BLOCK:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)


def packed_pictures(file, feature, rows):
    """The pictures that the rows of a parquet file hold as PNG or JPEG, as blocks. BadInput."""
    H, W, _ = feature.shape
    with refusing(f"{file}: pictures of {feature.key} are damaged: {AGAIN}"):
        opened, paths = open_parquet(file, {feature.key: 2 * 3 * H * W + 2**16}, rows)
        with opened:
            for batch in opened.iter_batches(BLOCK, columns=paths, use_threads=False):
                packed = [value["bytes"].as_py() for value in batch.column(0)]
                yield np.stack([unpacked_picture(content, file, feature) for content in packed])


def unpacked_picture(content, file, feature):
    """The picture (H, W, 3) uint8 in the bytes of a PNG or JPEG file. Raises BadInput."""
    if content is None:
        raise BadInput(f"{file}: pictures of {feature.key} are in other files: embed them")
    with library("PIL.Image").open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
        check_frame(picture.size, file, feature)
        if picture.mode != "RGB":
            raise BadInput(f"{file}: pictures of {feature.key} are {picture.mode}, not RGB")
        return np.asarray(picture)


def check_frame(size, file, feature):
    """Refuse a picture that has another size (W, H) than its feature. Raises BadInput."""
    H, W, _ = feature.shape
    if tuple(size) != (W, H):
        raise BadInput(
            f"{file}: pictures of {feature.key} are {size[0]} x {size[1]}, but info.json says "
            f"{W} x {H} (width x height): {AGAIN}"
        )


def video_frames(file, feature, fps, numbers):
    """Yield the frames (H, W, 3) uint8 of these numbers, which must rise. Raises BadInput.

    A frame's number is its time in the file times fps; it may be off by a quarter. Missing frames
    are refused, and so are damaged ones, which FFmpeg would patch up.
    """
    if not file.is_file():
        raise BadInput(f"{file} is missing: {AGAIN}")
    av = library("av")
    wanted = iter(numbers)
    number = next(wanted, None)
    if (np.diff(numbers) <= 0).any():
        raise BadInput(f"{file}: steps of {feature.key} do not follow one another in time")
    with (
        refusing(f"{file} is not a video in MP4, or is damaged: {AGAIN}"),
        open(file, "rb") as opened,
        av.open(opened, format="mp4") as container,
    ):
        (stream,) = container.streams.video
        codec = stream.codec_context
        kind = codec.codec.canonical_name
        if kind not in CODECS:
            raise BadInput(f"{file} is compressed by {kind}: {', '.join(CODECS)} are read")
        check_frame((codec.width, codec.height), file, feature)
        codec.options = {"err_detect": "explode"}
        for frame in container.decode(stream):
            check_frame((frame.width, frame.height), file, feature)
            at = float(frame.time * fps)
            if number is None or frame.is_corrupt or at > number + 0.25:
                break
            if at >= number - 0.25:
                yield frame.to_ndarray(format="rgb24")
                number = next(wanted, None)
    if number is not None:
        raise BadInput(
            f"{file} has no whole frame at {number / fps:.3f} s, where a step of {feature.key} is: "
            f"{AGAIN}"
        )
