"""Demonstrations: finding, checking and reading them, and cutting them into windows.

A window is T_p consecutive steps of one episode. The policy sees its first T_o observations, is fitted to all T_p
actions, and at run time executes T_a of the actions it predicts: a[T_o-1 : T_o-1+T_a] (Eq. 22). Push-T:

    step        0    1    2    3    4    5    6    7    8    9   ...   15
    obs        |- T_o -|
    action     |------------------------- T_p = 16 -----------------------|
    executed        |--------------- T_a = 8 -------------|
                    now = T_o - 1; the other actions are fitted but not executed

Windows begin up to T_o-1 steps before an episode and end up to T_a-1 steps after it; there the first or the last
step is repeated. A batch is the pair (obs (B, T_o, obs_dim), action (B, T_p, D_a)), float32, in the data's units.

    python data.py download pusht        fetch the official demonstrations into the cache
    python data.py info                  describe them and draw a picture
    python data.py download hopper       fetch Minari's data set through the minari library
"""
import hashlib
import os
import re
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from envs import TASKS, check_horizons, task_named
from formats import LIMIT, NAMES, minari_env, minari_file, read, refusing, zarr_array
from runs import BadInput, Parser, atomic, cli

# sha256 of each array's bytes in C order: independent of chunking, compression and zip tool.
SHA256 = {"pusht_cchi_v7_replay.zarr": {
    "data/action": "6691b085749144b8db1aede97a80fb380afd08953fcd03660b441d0ffe9d6a8f",
    "data/state": "dcdc539bfdba9fc01cba8d2fe91cc580539ec046a88b0ffbe91be5511948d4dc",
    "data/keypoint": "2419980734c1d41050f8fbf7513031e6e784168bafbe42bcec81fdebe44c6611",
    "meta/episode_ends": "82db02e667c59a83fedb211ab9b84182591b75009df1385210d5235197f93d72",
    "data/img": "3f7650895d1a500d7162b10475df689731f4fece2b15eaf7d913a560c2a0783d",
    "data/n_contacts": "3e4258a61c21da4af3257269d3300b5128f04ba3ad34ebd0d0e709489ca854d4"}}
UNUSED = {"data/img", "data/n_contacts"}    # never loaded, so an archive may lack them


@dataclass
class Episodes:
    """Demonstrations, episode after episode: obs (N, obs_dim), action (N, D_a) float32; ends (E,) int64, cumulative."""
    obs: np.ndarray
    action: np.ndarray
    ends: np.ndarray
    path: Path

    def __len__(self):
        return len(self.ends)

    @property
    def lengths(self):
        """(E,) steps of each episode."""
        return np.diff(self.ends, prepend=0)


# ---- finding and reading -------------------------------------------------------------------------------------------

def cache():
    """The folder that downloads go to: $DRIFT_CACHE, or ~/.cache/drift."""
    return Path(os.environ.get("DRIFT_CACHE") or Path.home() / ".cache" / "drift")


def minari_home():
    """The minari library's own folder: $MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def find(task, path=None):
    """The task's data: path, else $DRIFT_DATA, the cache, minari_home(), demos/ beside this file. BadInput if none.

    path: a file, a zarr or Minari folder, or a folder that holds one of task.data. If given, nothing else is tried.
    """
    given = os.environ.get("DRIFT_DATA")
    named = path or given
    if named and not Path(named).expanduser().exists():
        raise BadInput(f"{'' if path else 'DRIFT_DATA='}{named}: no such file or folder")
    library = minari_home() if task.minari and minari_home().exists() else None
    places = [path] if path else [p for p in (given, cache(), library, Path(__file__).parent / "demos") if p]
    for place in (Path(p).expanduser() for p in places):
        if place.is_file() or place.suffix == ".zarr" or (place / ".zgroup").exists() or minari_file(place):
            return place
        for name in task.data:
            if (place / name).exists():
                return place / name
    hint = (f": run `python experts.py --task {task.name}`" if task.points else
            f": run `python data.py download {task.name}` or give its path" if task.url or task.minari else "")
    raise BadInput(f"no {task.name} data ({' or '.join(task.data)}) in {', '.join(map(str, places))}{hint}")


def assemble(arrays, task, path):
    """Episodes from the arrays of read(), sizes and episode ends checked against the task. Raises BadInput.

    Observations are, by what there is: state and points (N, n, 3), for tasks seen as clouds; key points and
    state[:, :2], the agent (Diffusion Policy's Push-T); obs; task.obs_from_state(state).
    """
    def need(name):
        if name not in arrays:
            raise BadInput(f"{path} lacks {name} (it has {', '.join(arrays) or 'no arrays'})")
        if arrays[name].dtype.kind not in "fiu":
            raise BadInput(f"{path}: {name} has dtype {arrays[name].dtype}: only plain numbers are read")
        return arrays[name]

    action, ends = need("action"), need("episode_ends")
    if ends.ndim != 1 or not ends.size or ends.dtype.kind not in "iu" or ends[0] < 1 or (ends[1:] <= ends[:-1]).any():
        raise BadInput(f"{path}: episode_ends ({ends.dtype} {ends.shape}) is empty or not integers rising from above 0")
    shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
    with refusing(f"{path}: no observations of {task.name} can be made of {shapes}"):
        if task.points:
            points = need("points")
            if points.shape[1:] != (task.points, 3):
                raise BadInput(f"{path}: points have shape {points.shape}: {task.name} needs clouds of ({task.points}, 3)")
            obs = np.concatenate([need("state"), points.reshape(len(points), -1)], 1)
        elif "keypoint" in arrays:
            keypoint, state = need("keypoint"), need("state")
            obs = np.concatenate([keypoint.reshape(len(keypoint), -1), state[:, :2]], 1)
        elif "obs" in arrays or not task.obs_from_state:
            obs = need("obs")
        else:
            obs = task.obs_from_state(need("state"))
    for name, a, size in (("observations", obs, task.obs_dim), ("actions", action, task.D_a)):
        if a.shape != (ends[-1], size):
            raise BadInput(f"{path}: {name} have shape {a.shape}, the task and episode_ends need ({ends[-1]}, {size})")
    with np.errstate(over="ignore"):    # a float64 too large becomes inf, which load() refuses
        return Episodes(obs.astype(np.float32), action.astype(np.float32), ends.astype(np.int64), Path(path))


def load(task, path=None, episodes=None):
    """The task's Episodes, from find(task, path); only the first `episodes`, if given. Raises BadInput."""
    path = find(task, path)
    ep, made_in = assemble(read(path, NAMES), task, path), minari_env(path)
    # Walker2d and HalfCheetah have the same sizes. The version after the dash may differ: v2 and v5 are one robot.
    if task.minari and made_in and made_in.split("-")[0] != task.env.args[0].split("-")[0]:
        raise BadInput(f"{path} was recorded in {made_in}: it is not {task.name} data")
    for name, a in (("observation", ep.obs), ("action", ep.action)):
        if len(bad := np.flatnonzero(~np.isfinite(a).all(1))):
            e = np.searchsorted(ep.ends, bad[0], "right")
            raise BadInput(f"{path}: {len(bad)} {name}s are NaN or infinite, first at step {bad[0]} (episode {e})")
    keep = len(ep) if episodes is None else episodes
    if not 1 <= keep <= len(ep):
        raise BadInput(f"{path} has {len(ep)} episodes: cannot keep the first {keep}")
    n = ep.ends[keep - 1]
    return Episodes(ep.obs[:n], ep.action[:n], ep.ends[:keep], path)


def save_npz(path, **arrays):
    """Write a compressed npz, atomically. read() and load() take it back."""
    atomic(path, lambda f: np.savez_compressed(f, **arrays))


# ---- windows -------------------------------------------------------------------------------------------------------

class Chunks:
    """All windows of the episodes, gathered on the device. The windows of Diffusion Policy's SequenceSampler.

    obs (N, obs_dim), action (N, D_a) float32; index (n, T_p) int64: the step at each place of each window; episode
    (n,): the one it is of. An episode of L steps has windows from step -(T_o-1) to L - T_p + T_a - 1; with fewer than
    T_p - T_a - T_o + 2 steps it has none. Raises BadInput on horizons that break Eq. 23, and if no window is left.
    """

    def __init__(self, episodes, T_o, T_p, T_a, device="cpu"):
        check_horizons(T_o, T_p, T_a)
        self.T_o, L = T_o, episodes.lengths
        n = np.maximum(L - T_p + T_a + T_o - 1, 0)                                  # (E,) windows of each episode
        if not n.sum():
            raise BadInput(f"{episodes.path}: the longest episode has {L.max()} steps, too few for T_p {T_p} "
                           f"with T_o {T_o}, T_a {T_a}: lower --T-p")
        e = np.repeat(np.arange(len(L)), n)[:, None]                                # (n, 1) episode of each window
        start = np.arange(n.sum())[:, None] - (n.cumsum() - n)[e] - (T_o - 1)       # (n, 1) counted in the episode
        inside = np.clip(start + np.arange(T_p), 0, L[e] - 1)                       # (n, T_p) repeats at the borders
        self.index = torch.from_numpy(inside + (episodes.ends - L)[e]).to(device)
        self.episode = torch.from_numpy(e[:, 0]).to(device)
        self.obs = torch.from_numpy(episodes.obs).to(device)
        self.action = torch.from_numpy(episodes.action).to(device)

    def __len__(self):
        return len(self.index)

    def batch(self, i):
        """i (B,) window numbers -> (obs (B, T_o, obs_dim), action (B, T_p, D_a))."""
        index = self.index[i]
        return self.obs[index[:, :self.T_o]], self.action[index]

    def order(self, epoch, seed):
        """A permutation of all windows, fixed by (seed, epoch): a resumed run sees the same batches. Both >= 0."""
        return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(self))).to(self.index.device)


# ---- python data.py download ---------------------------------------------------------------------------------------

def fetch(url, part):
    """Download url into the file part, going on from the bytes it holds. BadInput keeps them for the next try."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with refusing(f"{url}: download failed, run the command again to resume {part}"):
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as e:
            if e.code != 416 or not have:
                raise
            if e.headers.get("Content-Range") != f"bytes */{have}":     # else part is already the whole file
                part.unlink()
                fetch(url, part)
            return
        with answer:
            if answer.status != 206:                                    # the server ignores Range and sends all
                have = 0
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise BadInput(f"{url}: the server resumes at a wrong place: delete {part} and try again")
            size = have + int(answer.headers.get("Content-Length", 0))
            with open(part, "ab" if have else "wb") as f, tqdm(
                    total=size, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                while b := answer.read(1 << 16):
                    bar.update(f.write(b))
                    if f.tell() > LIMIT:
                        raise BadInput(f"{url}: more than {LIMIT} bytes, not the archive: delete {part}")
        if part.stat().st_size < size:
            raise ConnectionError(f"ended after {part.stat().st_size} of {size} bytes")


def unpack(archive, name, to):
    """Unpack the zarr folder called name, wherever in the zip it is, below the folder `to` -> its path.

    An archive with any path or link that could lead outside, or of absurd size, is refused as a whole: BadInput.
    """
    with refusing(f"{archive} cannot be unpacked"), zipfile.ZipFile(archive) as z:
        entries = {i: PurePosixPath(i.filename) for i in z.infolist()}
        for i, p in entries.items():
            outside = p.is_absolute() or ".." in p.parts or re.search(r"[\\:]", i.filename)
            if outside or stat.S_ISLNK(i.external_attr >> 16):
                raise BadInput(f"{archive}: refused, its entry {i.filename!r} is a link or leads outside")
        if sum(i.file_size for i in entries) > LIMIT or len(entries) > 100_000:
            raise BadInput(f"{archive}: refused, it would unpack to more than {LIMIT} bytes or 100000 files")
        roots = [p.parent for p in entries.values() if p.name == ".zgroup" and p.parent.name == name]
        if not roots:
            raise BadInput(f"{archive} holds no {name}")
        z.extractall(to, [i for i, p in entries.items() if p.is_relative_to(roots[0])])
        return to / roots[0]


def verify(path, table):
    """Compare each array of a zarr folder with its sha256 in table. Raises BadInput on the first difference."""
    for name, wanted in table.items():
        if name in UNUSED and not (path / name).exists():
            continue
        a, sha = zarr_array(path, name), hashlib.sha256()
        with refusing(f"{path}: {name} is damaged"):
            for i in range(0, a.shape[0], a.chunks[0]):             # img is 2.8 GB unpacked: one chunk at a time
                sha.update(np.ascontiguousarray(a[i:i + a.chunks[0]]))
        if sha.hexdigest() != wanted:
            raise BadInput(f"{path}: {name} differs from the official data (sha256 {sha.hexdigest()})")


def download(task, to=None, url=None):
    """Fetch, unpack, verify and install a task's official data -> its path. Raises BadInput.

    The data appears under its name only when all is well, and nothing that was there before is deleted. An archive
    that fails is set aside as .bad, so that the next download starts afresh.
    """
    if task.minari:
        if url:
            raise BadInput(f"--url names an archive, but {task.name} comes through the minari library: leave it out")
        return download_minari(task, to)
    to, url, name = Path(to).expanduser() if to else cache(), url or task.url, task.data[0]
    final, part = to / name, to / f"{name}.zip.part"
    if not url.startswith(("http://", "https://")):
        raise BadInput(f"{url}: not an http or https address")
    if final.exists():
        try:
            verify(final, SHA256[name])
        except BadInput as e:
            raise BadInput(f"{e}: move it away to download the data") from e
        return final
    try:
        to.mkdir(parents=True, exist_ok=True)
        fetch(url, part)
        with tempfile.TemporaryDirectory(dir=to, prefix=".unpack") as new:
            try:
                unpacked = unpack(part, name, Path(new))
                verify(unpacked, SHA256[name])
            except BadInput as e:
                bad = part.replace(part.with_suffix(".bad"))
                raise BadInput(f"not installed, the archive is kept as {bad}: {e}") from e
            unpacked.replace(final)
        part.unlink()
    except OSError as e:
        raise BadInput(f"cannot write to {to} ({e})") from e
    return final


def download_minari(task, to=None):
    """Have the minari library install the task's data set -> its folder, below `to` or minari_home(). Raises BadInput.

    to becomes this process's MINARI_DATASETS_PATH. What is already there is not fetched again, but checked.
    """
    try:
        import minari
    except ImportError as e:
        raise BadInput(f'{task.minari} needs the minari library: pip install "minari[hf]==0.5.4" '
                       "(requirements-extra.txt)") from e
    if to:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(to).expanduser())
    folder = minari_home() / task.minari
    with refusing(f"{task.minari}: download failed, try again later"):
        minari.download_dataset(task.minari)
    try:
        load(task, folder)
    except BadInput as e:
        raise BadInput(f"{e}: delete {folder} to download it again") from e
    return folder


# ---- python data.py info -------------------------------------------------------------------------------------------

def draw(out, ep):
    """PNG of Push-T demonstrations: paths of the agent, final places of the T, actions, episode lengths."""
    from matplotlib.figure import Figure                            # slow to import
    fig = Figure(figsize=(11, 9.5), layout="constrained")
    fig.suptitle(ep.path.name)
    paths, final, actions, lengths = fig.subplots(2, 2).flat
    for o in np.split(ep.obs, ep.ends[:-1]):
        paths.plot(o[:, 18], o[:, 19], lw=0.4, alpha=0.5, color="tab:blue")
    paths.plot(*ep.obs[ep.ends - ep.lengths, 18:].T, ".", color="black", ms=3, label="start")
    paths.legend(loc="upper right")
    final.scatter(*ep.obs[ep.ends - 1, :18].reshape(-1, 2).T, c=np.tile(np.arange(9), len(ep)), s=5, cmap="tab10")
    finite = ep.action[np.isfinite(ep.action).all(1)]
    count = actions.hist2d(*finite.T, bins=64, range=[(0, 512)] * 2, cmin=1, cmap="viridis_r")
    fig.colorbar(count[3], ax=actions, label="steps")
    for ax, title in ((paths, "Paths of the agent"), (final, "The T's key points when episodes end"),
                      (actions, "Actions: where the agent is sent")):
        ax.set(title=title, xlim=(0, 512), ylim=(512, 0), aspect="equal", xlabel="x (pixels)", ylabel="y (pixels)")
    lengths.hist(ep.lengths, bins=30)
    lengths.set(title=f"Episode lengths, mean {ep.lengths.mean():.1f}", xlabel="steps", ylabel="episodes")
    atomic(out, lambda f: fig.savefig(f, format="png", dpi=110))


def info(task, path=None, png=None):
    """Print what is in the data; draw it if it is Push-T's. NaN is reported, not refused, and so is foreign data."""
    path = find(task, path)
    arrays, ep = read(path), None
    print(path)
    try:
        ep = assemble(arrays, task, path)
        reward, L, S = arrays.get("reward"), ep.lengths, task.obs_dim - 3 * task.points
        arrays = {"obs": ep.obs[:, :S], **({"points": ep.obs[:, S:].reshape(-1, 3)} if task.points else {}), "action": ep.action}
        print(f"{len(L)} episodes, {L.sum()} steps, length {L.min()} / {L.mean():.1f} / {L.max()} (min / mean / max)")
        if reward is not None and reward.shape == (L.sum(),) and reward.dtype.kind in "fiu":
            returns = np.add.reduceat(reward, ep.ends - L, dtype=np.float64)
            print(f"return {returns.min():.1f} / {returns.mean():.1f} / {returns.max():.1f} (min / mean / max)")
    except BadInput as e:
        print(f"not {task.name} data: {e}")
    print("by dimension: minimum, mean, maximum")
    for name, a in arrays.items():
        print(name, a.shape, a.dtype)
        for d, column in enumerate(a.T if a.ndim == 2 and a.dtype.kind in "fiu" else []):
            x = column[np.isfinite(column)].astype(np.float64)
            numbers = f"{x.min():10.4g} {x.mean():10.4g} {x.max():10.4g}" if len(x) else "nothing finite"
            bad = f"  {len(column) - len(x)} values are NaN or infinite" if len(x) < len(column) else ""
            print(f"  {d:3d}  {numbers}{'  constant' if len(x) and x.min() == x.max() else ''}{bad}")
    if ep is None or task.name != "pusht":
        return print("not drawn: there is a picture of Push-T data only")
    png = Path(png or f"{path.stem}.png")
    try:
        draw(png, ep)
    except OSError as e:
        raise BadInput(f"cannot write {png} ({e})") from e
    print(f"drawn: {png}")


def main():
    parser = Parser("Demonstrations: download them, describe them.")
    sub = parser.add_subparsers(dest="command", required=True)
    d = sub.add_parser("download", help="fetch a task's official demonstrations and verify them")
    d.add_argument("task", choices=[t.name for t in TASKS.values() if t.url or t.minari], help="task")
    d.add_argument("--to", metavar="DIR", help="folder to install in; if not given $DRIFT_CACHE or ~/.cache/drift, "
                   "for Minari's data $MINARI_DATASETS_PATH or ~/.minari/datasets")
    d.add_argument("--url", help="archive to fetch; the official one if not given")
    i = sub.add_parser("info", help="describe demonstrations and draw a picture")
    i.add_argument("path", nargs="?", help="npz, zarr or Minari folder, or folder of data; searched for as in "
                   "training if not given")
    i.add_argument("--task", default="pusht", help="task whose sizes the data is read with")
    i.add_argument("--png", metavar="OUT", help="picture of Push-T data; the data's name with .png, in this "
                   "folder, if not given")
    a = parser.parse_args()
    if a.command == "download":
        print(download(TASKS[a.task], a.to, a.url))
    else:
        info(task_named(a.task), a.path, a.png)


if __name__ == "__main__":
    cli(main)
