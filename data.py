"""Demonstrations: reading and checking them, and cutting them into windows.

A window is T_p consecutive steps of one episode. The policy sees its first T_o observations, is
fitted to all of its T_p actions, and executes T_a of the actions that it predicts at run time:
a[T_o-1 : T_o-1+T_a] (Eq. 22). With Push-T's horizons:

    step        0    1    2    3    4    5    6    7    8    9   ...   15
    obs        |- T_o -|
    action     |------------------------- T_p = 16 -----------------------|
    executed        |--------------- T_a = 8 -------------|
                    now = T_o - 1; the other actions are fitted but not executed

Windows begin up to T_o-1 steps before an episode and end up to T_a-1 steps after it (--to-end: up
to T_p-T_o steps); there the first or the last step is repeated. A batch of windows is the pair

    obs       {"state": (B, T_o, S) float32, a camera's name: (B, T_o, H, W, 3) uint8, ...}
    action    (B, T_p, D_a) float32

in the units of the data. The task says which observations there are.
"""

import startup  # noqa: F401 - first, see there

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from commands import BadInput, Parser, above_zero, cli, refuse_flags
from describe import cameras, draw, print_episodes, print_foreign
from download import download, find
from envs import TASKS, task_named
from files import MAX_GB, NUMBERS, brief, check_folder, check_output, check_size, refusing
from formats import names_in, read
from hdf5 import minari_env
from lerobot_format import by_names, is_lerobot, read_info
from lerobot_writer import CRF, VIDEO, WORST, check_new, write
from robomimic_format import save_robomimic
from task import check_horizons, dtype_of

FPS = 10  # steps a second of data that does not say it: Push-T's


@dataclass
class Episodes:
    """Demonstrations, one episode after another: N steps in E episodes.

    obs: {name: (N, ...)}, float32 or, for pictures, uint8. action: (N, D_a) float32. ends: (E,)
    int64, the number of steps up to the end of each episode.
    """

    obs: dict
    action: np.ndarray
    ends: np.ndarray
    path: Path

    def __len__(self):
        return len(self.ends)

    @property
    def lengths(self):
        """The number of steps of each episode, (E,)."""
        return np.diff(self.ends, prepend=0)


# ---- reading -------------------------------------------------------------------------------------


def load(task, path=None, episodes=None, max_gb=MAX_GB, filter_key=None):
    """The task's Episodes at find(task, path), or the first `episodes` of them. Raises BadInput.

    filter_key: of a file of robomimic only the episodes that this filter of it lists. BadInput
    is raised before memory is taken if the arrays need more than max_gb GB.
    """
    path = find(task, path)
    if task.check:
        task.check(path)
    loaded = assemble(read(path, arrays_of(task), max_gb, filter_key), task, path)
    check_origin(task, path)
    for name, a in loaded.obs.items():
        check_finite(f"observation {name}", a, loaded)
    check_finite("action", loaded.action, loaded)
    if episodes is None:
        return loaded
    if not 1 <= episodes <= len(loaded):
        raise BadInput(f"{path} has {len(loaded)} episodes: cannot keep the first {episodes}")
    n = loaded.ends[episodes - 1]
    obs = {name: a[:n] for name, a in loaded.obs.items()}
    return Episodes(obs, loaded.action[:n], loaded.ends[:episodes], path)


def arrays_of(task):
    """The names of the arrays that are read from a file of the task's demonstrations."""
    return {"action", "episode_ends", "obs", *task.obs, *task.arrays}


def assemble(arrays, task, path):
    """Episodes from the arrays of `read`, checked against the task. Raises BadInput.

    path: the file that the arrays are from, which the messages name.
    """
    for name, a in arrays.items():
        if name in arrays_of(task) and a.dtype.kind not in NUMBERS:
            raise BadInput(
                f"{path}: {name} has dtype {brief(a.dtype)}: only plain numbers are read"
            )
    action = actions_of(arrays, task, path)
    ends = needed(arrays, "episode_ends", path)
    about = f"{path}: episode_ends ({ends.dtype} {ends.shape})"
    if ends.ndim != 1 or not ends.size or ends.dtype.kind not in "iu":
        raise BadInput(f"{about} are empty or not integers in a row")
    if ends[0] < 1 or (ends[1:] <= ends[:-1]).any():
        raise BadInput(f"{about} are not integers rising from above 0")
    found = observations_of(arrays, task, path)
    N = int(ends[-1])
    obs = {}
    for name, shape in task.obs.items():
        what = f"{path}: observation {name}"
        obs[name] = checked(found[name], (N, *shape), dtype_of(shape), what, task)
    action = checked(action, (N, task.D_a), "float32", f"{path}: action", task)
    return Episodes(obs, action, ends.astype(np.int64), Path(path))


def needed(arrays, name, path):
    """The array of that name. Raises BadInput with the names that there are if it is missing."""
    if name not in arrays:
        there = brief(", ".join(names_in(path)), 300) or "no arrays"
        raise BadInput(f"{path} lacks {name} (it has {there})")
    return arrays[name]


def actions_of(arrays, task, path):
    """The actions (N, ·) of a file, in the task's form where the task converts them: not checked.

    Raises BadInput.
    """
    action = needed(arrays, "action", path)
    if task.actions is None:
        return action
    with refusing(f"{path}: no actions of {task.name} can be made of {action.shape}"):
        try:
            return task.actions(arrays)
        except KeyError as e:
            needed(arrays, e.args[0], path)
            raise
        except BadInput as e:
            raise BadInput(f"{path}: {e}") from e


def observations_of(arrays, task, path):
    """{name: (N, ...)} of the task's observations, not yet checked. Raises BadInput.

    The task's own function makes them of the arrays. Without one they are the arrays of the same
    names; the only observation of a task may also be named "obs" if it is "state". Cameras that the
    function leaves out are rendered, where the task has a function for that. A LeRobotDataset holds
    the observations themselves.
    """
    if is_lerobot(path):
        arrays = by_names(arrays, task.obs)
        return {name: needed(arrays, name, path) for name in task.obs}
    if task.observations is None:
        if set(task.obs) == {"state"} and "obs" in arrays:
            return {"state": arrays["obs"]}
        return {name: needed(arrays, name, path) for name in task.obs}
    listed = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
    with refusing(f"{path}: no observations of {task.name} can be made of {listed}"):
        try:
            made = task.observations(arrays)
            if task.render and set(made) != set(task.obs):
                made = {**made, **task.render(arrays, path)}
        except KeyError as e:
            if e.args[0] in arrays_of(task):
                needed(arrays, e.args[0], path)
            raise
        made = {name: np.asarray(a) for name, a in made.items()}
    if set(made) != set(task.obs):
        raise BadInput(
            f"{path}: the observations {', '.join(made)} were made of its arrays, but {task.name} "
            f"has {', '.join(task.obs)}"
        )
    return made


def checked(a, shape, dtype, what, task):
    """The array as `dtype`, in C order, if it has that shape. Raises BadInput.

    No copy is made of an array that is so already. what: the file and the array's name.
    """
    if a.shape != shape:
        raise BadInput(f"{what} has shape {a.shape}, but {task.name} and episode_ends need {shape}")
    if a.dtype.kind not in NUMBERS:
        raise BadInput(f"{what} has dtype {a.dtype}: only plain numbers are read")
    if dtype == "uint8" and a.dtype != np.uint8:
        raise BadInput(
            f"{what} {a.shape} has dtype {a.dtype} and values that are no whole numbers from 0 to "
            "255: pictures must be uint8"
        )
    if dtype == "uint8":
        return np.ascontiguousarray(a)
    with np.errstate(over="ignore"):  # a float64 too large becomes inf, which `load` refuses
        return np.require(a, dtype, ["C", "W"])


def scene_of_data(task):
    """The name of the scene whose data a task uses: "lift" of lift-image-delta."""
    return Path(task.data[-1]).stem


def check_origin(task, path):
    """Refuse data that another robot, or the script of another scene, recorded. Raises BadInput.

    Some have the same sizes, such as Walker2d and HalfCheetah, or can and square. The version after
    the dash may differ: v2 and v5 are one robot. Of a script's data, files before 2026-11-26 do not
    tell.
    """
    if path.suffix == ".npz" and "made_for" in (told := read(path, ["made_for"])):
        made_for = told["made_for"].tobytes().decode("utf-8", "replace")
        if made_for != scene_of_data(task):
            raise BadInput(f"{path} was recorded in {brief(made_for)}: it is not {task.name} data")
    made_in = minari_env(path)
    if task.env_id and made_in and made_in.split("-")[0] != task.env_id.split("-")[0]:
        raise BadInput(f"{path} was recorded in {brief(made_in)}: it is not {task.name} data")


def check_finite(name, a, episodes):
    """Refuse an array (N, ...) of the episodes that has NaN or infinite values. Raises BadInput."""
    if a.dtype.kind != "f":
        return
    finite = np.isfinite(a).reshape(len(a), -1).all(1)
    bad = np.flatnonzero(~finite)
    if len(bad):
        e = np.searchsorted(episodes.ends, bad[0], "right")
        raise BadInput(
            f"{episodes.path}: {name} is NaN or infinite at {len(bad)} of {len(a)} steps, first at "
            f"step {bad[0]} (episode {e})"
        )


# ---- windows -------------------------------------------------------------------------------------


class Windows:
    """All windows of the episodes, on a device: those of Diffusion Policy's SequenceSampler.

    obs {name: (N, ...)} and action (N, D_a) hold each step once; index (n, T_p) int64 is the step
    at each place of each of the n windows, and episode (n,) the one that a window is of. An episode
    of L steps has the windows that begin at its steps -(T_o-1) to L - T_p + T_a - 1: none, if L is
    below T_p - T_a - T_o + 2. So no policy is taught what to do at an episode's last
    T_p - T_a - T_o + 1 observations. to_end: the windows go on to step L - T_o, and each of the L
    observations is the newest one of a window (note 60).

    index and episode are on the CPU, all else on the device. Pictures for which it lacks room are
    on the CPU, too: those of a batch are then taken from the mapped file and sent to the device.

    Raises BadInput if the horizons break Eq. 23, if no window is left, and, before memory is taken,
    if the index needs more than max_gb GB.
    """

    def __init__(self, episodes, T_o, T_p, T_a, device="cpu", max_gb=MAX_GB, *, to_end=False):
        check_horizons(T_o, T_p, T_a)
        self.T_o = T_o
        self.device = torch.device(device)
        lengths = episodes.lengths
        left_out = 0 if to_end else T_p - T_a - T_o + 1
        n = np.maximum(lengths - left_out, 0)  # (E,) windows of each episode
        if not n.sum():
            raise BadInput(
                f"{episodes.path}: the longest episode has {lengths.max()} steps, too few for "
                f"T_p {T_p} with T_o {T_o}, T_a {T_a}: lower --T-p"
            )
        check_size({"windows": ((n.sum(), T_p), np.dtype(np.int64))}, episodes.path, max_gb)
        episode = np.repeat(np.arange(len(lengths)), n)  # (n,) the one of each window
        number = np.arange(n.sum()) - (n.cumsum() - n)[episode]  # (n,) counted in its episode
        start = number - (T_o - 1)  # (n,) the first step, counted in its episode
        last = lengths[episode] - 1
        inside = np.clip(start[:, None] + np.arange(T_p), 0, last[:, None])  # (n, T_p) repeats
        first = (episodes.ends - lengths)[episode]  # (n,) of all steps, where its episode begins
        self.index = torch.from_numpy(first[:, None] + inside)
        self.episode = torch.from_numpy(episode)
        self.obs = {name: placed(a, self.device) for name, a in episodes.obs.items()}
        self.action = placed(episodes.action, self.device)

    def __len__(self):
        return len(self.index)

    def batch(self, i):
        """The windows of numbers i (B,) -> (obs {name: (B, T_o, ...)}, action (B, T_p, D_a)).

        The batch is on the device. i had better be on the CPU: elsewhere it is waited for.
        """
        index = self.index[i.cpu()]
        seen = index[:, : self.T_o]
        obs = {name: taken(a, seen, self.device) for name, a in self.obs.items()}
        return obs, taken(self.action, index, self.device)

    def order(self, epoch, seed):
        """A permutation of all windows, on the CPU, fixed by (seed, epoch), both >= 0.

        A run that is resumed sees the same batches.
        """
        return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(self)))


def placed(a, device):
    """An array (N, ...) as a tensor on the device; pictures stay on the CPU if it lacks room.

    They may take a third of the memory that is free there. The tensor must not be written to: the
    array may be a file that is mapped.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(a)
    if a.dtype == np.uint8 and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if tensor.nbytes > free / 3:
            return tensor
    return tensor.to(device)


def taken(tensor, index, device):
    """The rows of a tensor (N, ...) that an index (B, T) names: (B, T, ...), on a device.

    index is on the CPU. index_select copies whole rows: a batch of 64 pictures takes a quarter of a
    millisecond, and tensor[index], which copies byte by byte, five times as long.
    """
    rows = index.flatten().to(tensor.device, non_blocking=True)
    found = tensor.index_select(0, rows).unflatten(0, index.shape)
    if found.device.type == device.type:
        return found
    return found.pin_memory().to(device, non_blocking=True)


# ---- python data.py ------------------------------------------------------------------------------


def info(task, path=None, png=None, max_gb=MAX_GB, filter_key=None):
    """Print what is in the data and draw it, if the task can or has cameras. Raises BadInput.

    NaN is reported, not refused, and so is data that is not of the task.
    """
    path = find(task, path)
    arrays = read(path, {*arrays_of(task), "reward"}, max_gb, filter_key)
    print(path)
    try:
        if task.check:
            task.check(path)
        check_origin(task, path)
        episodes = assemble(arrays, task, path)
    except BadInput as e:
        print(f"not {task.name} data: {e}")
        del arrays
        print_foreign(path, max_gb)
        print("not drawn")
        return
    print_episodes(episodes, arrays.get("reward"))
    if task.draw is None and not cameras(task):
        print(f"not drawn: there is no picture of {task.name} data")
        return
    png = Path(png or f"{path.stem}.png")
    draw(task, episodes, png)
    print(f"drawn: {png}")


def obtain(task, to=None, url=None):
    """Download the task's data and check that it can be loaded. Returns its path.

    Raises BadInput.
    """
    path = download(task, to, url)
    try:
        load(task, path)
    except BadInput as e:
        raise BadInput(f"{e}: delete {path} to download it again") from e
    return path


def convert(
    task,
    source,
    folder,
    *,
    fps=None,
    text=None,
    video=None,
    crf=None,
    max_gb=MAX_GB,
    filter_key=None,
):
    """Write the task's demonstrations at `source` as a LeRobotDataset. Raises BadInput.

    fps: steps a second; None: as `source` says if it is such a data set, else FPS. text: what the
    robot was told to do; None: the task's name. video, crf: as in lerobot_writer.py; None: av1 and
    CRF. filter_key: as in `load`.
    """
    check_new(folder)
    video = video or "av1"
    crf = CRF if crf is None else crf
    episodes = load(task, source, max_gb=max_gb, filter_key=filter_key)
    if fps is None:
        fps = read_info(episodes.path).fps if is_lerobot(episodes.path) else FPS
    write(folder, each(episodes), task.obs, fps, text or task.name, video=video, crf=crf)
    print(f"{folder}: {len(episodes)} episodes, {len(episodes.action)} steps")


def export(task, source, out, *, max_gb=MAX_GB, filter_key=None):
    """Write the task's demonstrations at `source` as a file that robomimic opens. BadInput."""
    if task.export is None:
        raise BadInput(f"{out}: robomimic has no environment of {task.name}: name a folder")
    path = find(task, source)
    if task.check:
        task.check(path)
    arrays = read(path, arrays_of(task), max_gb, filter_key)
    episodes = assemble(arrays, task, path)
    with refusing(f"{path}: robomimic's arrays cannot be made of it"):
        parts, about, model_files = task.export(arrays, path)
        save_robomimic(out, parts, episodes.ends, about, model_files)
    print(f"{out}: {len(episodes)} episodes, {len(episodes.action)} steps")


def each(episodes):
    """The arrays {name: (L, ...)} of each episode, action among them."""
    for L, end in zip(episodes.lengths, episodes.ends):
        steps = slice(end - L, end)
        yield {name: a[steps] for name, a in episodes.obs.items()} | {
            "action": episodes.action[steps]
        }


def main():
    """Run the command."""
    parser = Parser(
        "Demonstrations: download them, describe them.",
        examples=(
            "python data.py download pusht    # the official demonstrations, into the cache",
            "python data.py download hopper   # Minari's data set, by the minari library",
            "python data.py info              # describe Push-T's and draw a picture",
            "python data.py info --task pusht-image   # and show what its camera saw",
            "python data.py convert demos/pusht.npz folder   # write them as a LeRobotDataset",
            "python data.py convert demos/lift.npz lift.hdf5 --task lift   # as robomimic's file",
        ),
    )
    sub = parser.add_subparsers(dest="command", required=True)
    d = sub.add_parser("download", help="fetch a task's official demonstrations and verify them")
    names = [task.name for task in TASKS.values() if task.url or task.minari]
    d.add_argument("task", choices=names, help="the task whose data is fetched")
    d.add_argument(
        "--to",
        metavar="DIR",
        help="the folder to install in; if not given, $DRIFT_CACHE or ~/.cache/drift, and for "
        "Minari's data $MINARI_DATASETS_PATH or ~/.minari/datasets",
    )
    d.add_argument("--url", help="the archive to fetch; if not given, the official one")
    i = sub.add_parser("info", help="describe demonstrations and draw a picture")
    i.add_argument(
        "path",
        nargs="?",
        help="an npz or HDF5 file, a folder of zarr, Minari or LeRobotDataset, or a folder that "
        "holds one; searched for as in training if not given",
    )
    i.add_argument("--task", default="pusht", help="the task whose sizes the data is checked with")
    i.add_argument(
        "--png",
        metavar="OUT",
        help="the picture to write, if the task has one or has cameras; if not given, the data's "
        "name with .png, in this folder",
    )
    i.add_argument(
        "--max-gb",
        type=float,
        default=MAX_GB,
        help="refuse a file whose arrays declare more GB than this; pictures do not count, since "
        "they are kept in a cache file that is mapped into memory",
    )
    add_convert(sub)
    for name in ("info", "convert"):
        sub.choices[name].add_argument(
            "--filter",
            metavar="NAME",
            help="take the demonstrations that this filter (mask/NAME) of robomimic's HDF5 file "
            "lists; all if not given",
        )
    args = parser.parse_args()
    if args.command == "download":
        print(obtain(TASKS[args.task], args.to, args.url))
    elif args.command == "convert":
        run_convert(args)
    else:
        above_zero(args, "max_gb")
        check_output(args, "png")
        info(task_named(args.task), args.path, args.png, args.max_gb, args.filter)


def run_convert(args):
    """Run the subcommand convert: into a file of robomimic, or into a LeRobotDataset. BadInput."""
    above_zero(args, "max_gb", "fps")
    task = task_named(args.task)
    common = {"max_gb": args.max_gb, "filter_key": args.filter}
    lerobot = {name: getattr(args, name) for name in ("fps", "text", "video", "crf")}
    if args.out.endswith(".hdf5"):
        refuse_flags(args, lerobot, f"{args.out}, a file of robomimic")
        check_output(args, "out")
        export(task, args.source, args.out, **common)
        return
    if args.crf is not None and not 0 <= args.crf <= WORST:
        raise BadInput(f"--crf must lie in 0 .. {WORST}, not {args.crf}")
    check_folder(args, "out")
    convert(task, args.source, args.out, **lerobot, **common)


def add_convert(sub):
    """Add the subcommand convert and its flags."""
    c = sub.add_parser(
        "convert", help="write demonstrations as a LeRobotDataset (version 3) or for robomimic"
    )
    c.add_argument("source", help="what `info` takes, also another LeRobotDataset")
    c.add_argument(
        "out", help="the folder to make, or a file *.hdf5 that the robomimic package opens"
    )
    c.add_argument("--task", default="pusht", help="the task whose sizes the data is checked with")
    c.add_argument(
        "--fps",
        type=float,
        help=f"steps a second; if not given, as the source says, or {FPS} if it does not",
    )
    c.add_argument(
        "--text", help="what the robot was told to do, in words; if not given, the task's name"
    )
    c.add_argument(
        "--video",
        choices=VIDEO,
        help="how pictures are kept: as AV1 (if not given) or H.264 in MP4 files, with losses, or "
        "(off) as PNG in the tables, which keeps every bit and takes four times the space for "
        "Push-T",
    )
    c.add_argument(
        "--crf",
        type=int,
        help=f"the quality of the video, 0 (best) to {WORST}; if not given, {CRF} as lerobot",
    )
    c.add_argument(
        "--max-gb", type=float, default=MAX_GB, help="refuse a source that declares more GB"
    )


if __name__ == "__main__":
    cli(main)
