"""Damaged files: a reader takes them, or refuses them in one line.

Real files are made first: demonstrations in each format, two tiny runs by the trainers, tables, an
archive. Then each case damages a copy of one of them (mutations.py) and calls the functions of this
project that read it, in a worker process that is watched. A failure is a traceback, a crash, more
than 10 s, or more than 1 GB of memory. Its file and traceback are kept in the folder --out.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import functools
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import mutations as m
from commands import BadInput, Parser, above_zero, check_seed, cli
from files import Lock, check_folder

ROOT = Path(__file__).parents[1]
MEMORY = 10**9  # bytes that a worker may have, with all that it has imported
KILL = 2 * MEMORY  # at which it is ended while it still works
KEPT = 3  # failures of one kind whose files are kept
ADVICE = ("allow_pickle", "weights_only", "unsafe", "fully trust")  # of libraries: load it anyway
OUTCOMES = ("accepted", "refused", "advice", "traceback", "crash", "hang", "memory")
FAILURES = OUTCOMES[2:]


# ---- the real files -----------------------------------------------------------------------------


def make_files(folder, targets):
    """Make the undamaged files of some targets; each target has a folder of its name."""
    for made in dict.fromkeys(TARGETS[name].make for name in targets):
        made(folder)


def make_npz(folder):
    """Two episodes of Push-T."""
    from conftest import write_demos

    (folder / "npz").mkdir()
    write_demos(folder / "npz" / "x.npz", (20, 24))


def make_zarr(folder):
    """Arrays in the layout of Push-T's official data, each packed in another way."""
    import numcodecs
    import zarr

    rng = np.random.default_rng(0)
    group = zarr.create_group(folder / "zarr" / "x.zarr", zarr_format=2)
    for name, shape, codec in (
        ("data/action", (24, 2), numcodecs.Blosc("zstd", 5, 2)),
        ("data/state", (24, 5), numcodecs.Zlib()),
        ("data/keypoint", (24, 9, 2), numcodecs.Zstd()),
        ("data/img", (24, 4, 4, 3), numcodecs.LZ4()),
    ):
        a = rng.integers(1, 200, shape).astype("f4")
        group.create_array(name, data=a, chunks=(10, *shape[1:]), compressors=codec)
    group.create_array("meta/episode_ends", data=np.array([11, 24]), compressors=numcodecs.BZ2())


def make_minari(folder):
    """A Minari data set of Hopper."""
    from test_formats import write_minari

    write_minari(folder / "minari" / "x")


def make_adroit(folder):
    """Minari's layout of Adroit's states."""
    import h5py

    (folder / "adroit").mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "adroit" / "x.hdf5", "w") as file:
        for e in range(2):
            group = file.create_group(f"episode_{e}")
            group["actions"] = rng.uniform(-1, 1, (6, 26)).astype("f4")
            state = group.create_group("infos/state")
            state["qpos"] = rng.normal(size=(7, 33))
            state["board_pos"] = rng.normal(size=(7, 3))


def make_robomimic(folder):
    """Two demonstrations in robomimic's layout, with two cameras."""
    from test_pictures import write_robomimic

    (folder / "robomimic").mkdir()
    write_robomimic(folder / "robomimic" / "x.hdf5", (5, 7))


def make_pictures(folder):
    """Pictures in an npz file, and their cache."""
    from test_formats import film

    (folder / "pictures").mkdir()
    np.savez(folder / "pictures" / "x.npz", img=film())
    read_pictures(folder / "pictures")


def make_lerobot(folder):
    """A LeRobotDataset with a camera in a video and one whose pictures are in the rows."""
    from lerobot_writer import write
    from test_lerobot import EPISODES, OBS

    for name, video in (("video", "h264"), ("rows", "off")):
        write(folder / "lerobot" / name, EPISODES, OBS, 10, "push", video=video)


def make_runs(folder):
    """A run of Stage 1, one of Stage 2, and what is read of them."""
    from conftest import write_demos

    tiny = folder / "tiny"
    tiny.mkdir()
    write_demos(tiny / "demos.npz", (20, 24))
    for number, script in enumerate(("dbp_train.py", "dbpo_ppo.py"), 1):
        command = [sys.executable, ROOT / script, *run_flags(tiny, number)]
        subprocess.run(command, check=True, capture_output=True)
    for stage in (1, 2):
        for left in (tiny / f"run{stage}").iterdir():
            if left.suffix not in (".pt", ".json", ".jsonl", ".csv"):
                left.unlink()
        shutil.copytree(tiny / f"run{stage}", folder / f"state{stage}" / "run")
    (folder / "ckpt").mkdir()
    shutil.copy(tiny / "run1" / "ckpt.pt", folder / "ckpt")
    weights = shutil.ignore_patterns("*.pt")
    shutil.copytree(tiny / "run1", folder / "flags" / "run", ignore=weights)
    shutil.copytree(tiny / "run2", folder / "log" / "run", ignore=weights)


def run_flags(tiny, stage, out=None):
    """The flags of the two runs. out: the run folder, if not the one in `tiny`."""
    out = out or tiny / f"run{stage}"
    shared = ["--out", out, "--device", "cpu", "--episodes", 1, "--one-process"]
    if stage == 1:
        flags = ["--data", tiny / "demos.npz", "--dims", 8, 16, "--batch", 8, "--steps", 4]
        flags += ["--memory", 2]
    else:
        flags = ["--init", tiny / "run1" / "ckpt.pt", "--num-envs", 2, "--num-steps", 2]
        flags += ["--num-iterations", 1, "--critic-warmup", 0, "--sigma", 0.1]
    return [str(flag) for flag in (*shared, *flags)]


def make_tables(folder):
    """The rows of results/."""
    kinds = (".csv", ".json", ".npz")
    (folder / "tables").mkdir()
    for path in (ROOT / "results").iterdir():
        if path.suffix in kinds:
            shutil.copy(path, folder / "tables")


def make_archive(folder):
    """The archive of a download."""
    make_zarr(folder / "packed")
    (folder / "archive").mkdir()
    source = folder / "packed" / "zarr"
    name = archive_task().data[0]
    with zipfile.ZipFile(folder / "archive" / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((source / "x.zarr").rglob("*")):
            archive.write(path, Path("pusht", name, path.relative_to(source / "x.zarr")))


# ---- what reads them ----------------------------------------------------------------------------


def plain(name):
    """A task without its picture, which takes a second to draw."""
    from envs import TASKS

    return dataclasses.replace(TASKS[name], draw=None)


def read_data(path, task):
    """The readers of demonstrations, one call each."""
    import data
    import formats

    task = plain(task)
    yield lambda: data.load(task, path)
    yield lambda: formats.read(path)
    yield lambda: formats.names_in(path)
    yield lambda: data.info(task, path)


def read_adroit(folder):
    """What records Adroit's states."""
    import hdf5

    yield lambda: hdf5.read_adroit(folder / "x.hdf5")


def read_formats(path):
    """The readers of files of demonstrations, whatever the task."""
    import formats

    yield lambda: formats.shapes(path)
    yield lambda: formats.names_in(path)
    yield lambda: formats.read(path)


def read_pictures(folder):
    """Read the pictures through their cache, which must be right or be made again."""
    import formats
    import pictures
    from test_formats import film

    pictures.SMALL = 0
    found = formats.read(folder / "x.npz")["img"]
    if (found != film()).any():
        raise AssertionError("a damaged cache was believed")


def read_lerobot(folder):
    """The readers of LeRobotDataset, and what adds an episode to one."""
    import formats
    from lerobot_writer import append
    from test_lerobot import EPISODES, OBS

    for name, video in (("video", "h264"), ("rows", "off")):
        yield functools.partial(formats.shapes, folder / name)
        yield functools.partial(formats.read, folder / name)
        yield functools.partial(append, folder / name, EPISODES[:1], OBS, 10, "push", video=video)


def read_ckpt(folder):
    """What every script does with a checkpoint."""
    import torch

    from baselines import prepare
    from policy import Policy

    def act():
        policy, _ = Policy.load(folder / "ckpt.pt")
        policy.check_task(plain("pusht"), folder)
        obs = {
            name: torch.zeros(1, policy.T_o, *spec["shape"], dtype=getattr(torch, spec["dtype"]))
            for name, spec in policy.specs.items()
        }
        prepare(policy).act(obs)

    yield act
    yield lambda: Policy.load(folder / "ckpt.pt", ema=False, task="pusht")


def read_state1(folder):
    """What dbp_train.py does with --resume, up to the step that it goes on from."""
    import dbp_report
    import dbp_train
    from ranks import ALONE
    from saves import Interrupts, claimed

    tiny = folder.parent / "files" / "tiny"

    def resume():
        args = dbp_train.parse([*run_flags(tiny, 1, folder / "run"), "--resume"])
        task = dbp_train.resolve(args)
        with claimed(args, ALONE):
            training = dbp_train.Training(args, task, ALONE)
            report = dbp_report.Report(training, Interrupts())
            report.bar.close()
            training.budget.more(training.step)
            still(training.policy)
            training.opt.step()
            report.snapshot()
            report.save({})
            report.run.close()

    yield resume


def read_state2(folder):
    """What dbpo_ppo.py does with --resume, up to the iteration that it goes on from."""
    import dbpo_ppo
    from ranks import ALONE
    from saves import claimed

    tiny = folder.parent / "files" / "tiny"

    def resume():
        args = dbpo_ppo.parse([*run_flags(tiny, 2, folder / "run"), "--resume"])
        policy, task = dbpo_ppo.resolve(args)
        with claimed(args, ALONE):
            run = dbpo_ppo.Training(args, policy, task, ALONE)
        with contextlib.closing(run.sims.env):
            run.bar.close()
            for module, opt in ((run.critic, run.opt_critic), (run.actor, run.opt_actor)):
                still(module)
                opt.step()
            run.save()
            run.run.close()

    yield resume


def still(module):
    """Gradients of 0, with which an optimiser's step needs its state."""
    import torch

    for p in module.parameters():
        p.grad = torch.zeros_like(p)


def read_flags(folder):
    """What reads flags.json: reproduce.py, before it counts a run as finished."""
    import reproduce_runs

    flags = run_flags(folder.parent / "files" / "tiny", 1, folder / "run")
    yield lambda: reproduce_runs.check_same("dbp_train.py", folder / "run", flags)


def read_logs(folder):
    """What reads log.jsonl: runs.py, --resume and reproduce.py."""
    import reproduce_runs
    import reproduce_stage2
    import runs

    out = folder / "run"
    flags = run_flags(folder.parent / "files" / "tiny", 2, out)

    def finished():
        log = reproduce_runs.finished("dbpo_ppo.py", out, *flags)
        reproduce_runs.values(log, "minutes")
        reproduce_stage2.add_curve(folder / "curve.csv", "run", log)

    def go_on():
        runs.claim(argparse.Namespace(out=out, resume=True)).release()
        log = runs.Run(out, {}, resume_step=32)
        log.log(40, loss=1.0)
        log.close()

    yield lambda: runs.read_log(out)
    yield lambda: with_argv(runs.main, out, "--png", folder / "x.png", "--csv", folder / "x.csv")
    yield finished
    yield go_on


def with_argv(main, *argv):
    """Run a script's main() with these arguments."""
    before = sys.argv
    sys.argv = ["script.py", *map(str, argv)]
    try:
        main()
    finally:
        sys.argv = before


def read_tables(folder):
    """What reads the rows: report.py, the figures, `reproduce.py list`, a row that is added."""
    import modes
    import plots
    import report
    import reproduce
    import tables

    results = tables.Results(folder)
    row = {"setting": "dbp", "seed": 0, "score": 1.0}
    yield lambda: report.markdown(results)
    for path in folder.glob("*.csv"):
        yield functools.partial(tables.read, path)
    yield lambda: reproduce.main(["list", "--results", str(folder)])
    yield lambda: tables.merge(folder / "pusht_methods.csv", [row], ("setting", "seed"))
    yield lambda: modes.load_plans(folder / "multimodal_plans.npz")
    figure = list(plots.FIGURES.values())[hash_of(folder) % len(plots.FIGURES)]
    yield lambda: figure.save(results, folder / "x.png")


def hash_of(folder):
    """A number that is fixed by the names and sizes of the files in a folder."""
    about = [(path.name, path.lstat().st_size) for path in sorted(folder.iterdir())]
    return int(hashlib.sha256(repr(about).encode()).hexdigest()[:8], 16)


def archive_task():
    """Push-T, with no checksums: what is inside is read, too."""
    return dataclasses.replace(plain("pusht"), sha256={})


def read_archive(folder):
    """What a download does after the last byte has come."""
    import data
    import download

    task = archive_task()
    final = folder / "to" / task.data[0]

    def install():
        final.parent.mkdir(exist_ok=True)
        download.install(folder / "x.zip", final, task)
        data.load(task, final)

    yield install


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of file. make(folder): makes it. calls(folder): gives what reads it, call by call.

    damage: (which files, by their names; the mutations that they get) each.
    """

    make: object
    calls: object
    damage: tuple
    share: int = 1  # of the cases


ZIPPED = (m.damage_zip, m.damage_zip, m.damage_bytes, m.damage_directory, m.damage_place)
SAVED = (m.damage_objects, m.damage_objects, m.damage_objects, *ZIPPED)
RESUMED = (("run/state.pt", SAVED), ("run/state.pt", SAVED), ("run/*.pt", SAVED))
JSON = (m.damage_json, m.damage_json, m.damage_json, m.damage_bytes, m.damage_place)
TABLE = (m.damage_lines, m.damage_numbers, m.damage_bytes, m.damage_lines, m.damage_place)
TARGETS = {
    "npz": Target(
        make_npz,
        lambda folder: read_data(folder / "x.npz", "pusht"),
        (("*.npz", ZIPPED),),
        share=2,
    ),
    "zarr": Target(
        make_zarr,
        lambda folder: read_data(folder / "x.zarr", "pusht"),
        (
            ("**/.zarray", JSON),
            ("**/*.0", (m.damage_bytes, m.damage_bytes, m.damage_place, m.damage_chunk)),
            ("**/[0-9.z]*", (m.damage_bytes, m.damage_place)),
        ),
        share=3,
    ),
    "minari": Target(
        make_minari,
        lambda folder: read_data(folder / "x", "hopper"),
        (
            ("**/*.hdf5", (m.damage_hdf5, m.damage_bytes, m.damage_place)),
            ("**/*.hdf5", (m.damage_hdf5, m.damage_bytes)),
            ("**/*.json", JSON),
        ),
        share=3,
    ),
    "adroit": Target(
        make_adroit, read_adroit, (("*.hdf5", (m.damage_hdf5, m.damage_bytes, m.damage_place)),)
    ),
    "robomimic": Target(
        make_robomimic,
        lambda folder: read_formats(folder / "x.hdf5"),
        (("*.hdf5", (m.damage_hdf5, m.damage_bytes, m.damage_place)),),
    ),
    "pictures": Target(
        make_pictures,
        lambda folder: [lambda: read_pictures(folder)],
        (("*.pictures", (m.damage_bytes, m.damage_place)),),
    ),
    "lerobot": Target(
        make_lerobot,
        read_lerobot,
        (
            ("*/meta/info.json", JSON),
            ("*/meta/episodes/**/*.parquet", (m.damage_bytes, m.damage_place)),
            ("*/data/**/*.parquet", (m.damage_bytes, m.damage_place)),
            ("*/videos/**/*.mp4", (m.damage_bytes, m.damage_bytes, m.damage_place)),
        ),
        share=2,
    ),
    "ckpt": Target(make_runs, read_ckpt, (("*.pt", SAVED),), share=2),
    "state1": Target(make_runs, read_state1, RESUMED, share=2),
    "state2": Target(make_runs, read_state2, RESUMED, share=2),
    "flags": Target(make_runs, read_flags, (("run/flags.json", JSON),)),
    "log": Target(
        make_runs, read_logs, (("run/log.jsonl", (m.damage_rows, m.damage_rows, *TABLE)),)
    ),
    "tables": Target(
        make_tables,
        read_tables,
        (("*.csv", TABLE), ("*.csv", TABLE), ("*.json", JSON), ("*.npz", ZIPPED)),
        share=2,
    ),
    "archive": Target(make_archive, read_archive, (("*.zip", ZIPPED[:-1]),)),
}


# ---- the worker ---------------------------------------------------------------------------------


def case_of(seed, number, targets):
    """The target of a case and the generator of its damage, both fixed by its number."""
    rng = np.random.default_rng([seed, number])
    wheel = [name for name in targets for _ in range(TARGETS[name].share)]
    return m.choice(rng, wheel), rng


def damage(folder, target, rng):
    """Damage a file of a target's folder, some of them twice. Returns what was done."""
    done = []
    for _ in range(1 + (rng.random() < 0.2)):
        pattern, ways = m.choice(rng, TARGETS[target].damage)
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if files:
            way = m.choice(rng, ways)
            with contextlib.suppress(Exception):  # what is damaged already is damaged enough
                done.append(way(m.choice(rng, files), rng))
    return "; ".join(done)


def outcome_of(call):
    """What comes of a call: its outcome, and its error or traceback."""
    try:
        call()
    except BadInput as e:
        chain = e
        while chain is not None and not isinstance(chain, MemoryError):
            chain = chain.__cause__ or chain.__context__
        if chain is not None:
            return "memory", told(e)
        if any(word in str(e) for word in ADVICE):
            return "advice", told(e)
        return "refused", str(e)
    except MemoryError as e:
        return "memory", told(e)
    except (Exception, SystemExit) as e:
        return "traceback", told(e)
    return "accepted", ""


def told(e):
    """The traceback of an error, and last its first line alone."""
    first = str(e).strip().split("\n")[0]
    return f"{traceback.format_exc()}\n{type(e).__name__}: {first[:150]}"


def line_of(words):
    """The line of the project that a failure was in, as policy.py:97, from its traceback."""
    found = re.findall(rf'File "{re.escape(str(ROOT))}/((?:tests/)?\w+\.py)", line (\d+)', words)
    newest_first = "most recent call first" in words  # as faulthandler writes them
    return ":".join(found[0 if newest_first else -1]) if found else ""


def memory_of(pid, what):
    """Bytes of a process: VmRSS now, VmHWM at most. 0 if the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(what):
                return 1024 * int(line.split()[1])
    return 0


def stat_of(pid):
    """The fields of Linux's /proc/PID/stat after the name, none elsewhere."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return []


def computed(pid):
    """Seconds that a process has computed."""
    fields = stat_of(pid)
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def runnable(pid):
    """Whether a process computes, or would if the machine let it."""
    return stat_of(pid)[:1] == ["R"]


def work(connection, folder, seed, targets):
    """The worker: damage and read one case for each number that comes; answer what came of it.

    First the undamaged files are read, which must succeed, and imports everything.
    """
    os.chdir(folder)
    warnings.simplefilter("ignore")
    trace = open(folder / "trace.txt", "w")
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR1, trace, all_threads=False)  # the watch asks where it is
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    bad = []
    for target in targets:
        case = fresh_copy(folder, target)
        found = [outcome_of(call) for call in TARGETS[target].calls(case)]
        bad += [f"{target}: {words}" for outcome, words in found if outcome != "accepted"]
    connection.send(bad)
    while (number := connection.recv()) is not None:
        target, rng = case_of(seed, number, targets)
        case = fresh_copy(folder, target)
        connection.send((target, damage(case, target, rng)))
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here on
        worst = ("accepted", "")
        for call in TARGETS[target].calls(case):
            found = outcome_of(call)
            if OUTCOMES.index(found[0]) > OUTCOMES.index(worst[0]):
                worst = found
        peak = memory_of("self", "VmHWM")
        if peak > MEMORY:
            worst = ("memory", f"{peak / 1e6:.0f} MB\n{worst[1]}")
        connection.send((*worst, peak))


def fresh_copy(folder, target):
    """A copy of a target's undamaged files, in the place of the last case."""
    case = folder / "case"
    shutil.rmtree(case, ignore_errors=True)
    return shutil.copytree(folder / "files" / target, case)


# ---- the watch ----------------------------------------------------------------------------------


class Watch:
    """A worker process that is started again when a case has ended it, and what came of cases.

    folder: holds the undamaged files in files/. out: where failures are kept.
    """

    def __init__(self, folder, out, seed, targets, limit):
        self.folder = folder
        self.out = out
        self.seed = seed
        self.targets = targets
        self.limit = limit
        self.process = None
        self.counts = collections.defaultdict(collections.Counter)  # target -> outcome -> cases
        self.peaks = collections.Counter()  # target -> bytes
        self.kinds = collections.defaultdict(list)  # target, outcome, line -> numbers of its cases

    def start(self):
        """Start a worker. Raises BadInput if it does not take the undamaged files."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        about = (theirs, self.folder, self.seed, self.targets)
        self.process = context.Process(target=work, args=about, daemon=True)
        self.process.start()
        theirs.close()
        bad = self.connection.recv()
        if bad:
            raise BadInput(f"an undamaged file is not read: {bad[0][:100]} ... {bad[0][-700:]}")

    def stop(self):
        """End the worker: by a message, or else by force."""
        if self.process:
            with contextlib.suppress(OSError):
                self.connection.send(None)
                self.process.join(1)
            self.process.kill()
            self.process.join()
            self.process = None

    def run(self, number):
        """One case: count what comes of it; keep and print a failure. Returns the outcome."""
        if not self.process:
            self.start()
        self.connection.send(number)
        target, done = self.connection.recv()
        try:
            outcome, words, peak = self.watched()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            outcome = "crash"
            words = f"exit code {code}\n{self.trace()}"
            peak = 0
        self.counts[target][outcome] += 1
        self.peaks[target] = max(self.peaks[target], peak)
        if outcome in ("crash", "hang", "memory"):
            self.stop()
        if outcome in FAILURES:
            kind = (target, outcome, line_of(words))
            self.kinds[kind].append(number)
            last = words.strip().split("\n")[-1]
            print(f"case {number}: {' '.join(kind)}: {done[:150]}: {last[:200]}", flush=True)
            if len(self.kinds[kind]) <= KEPT:
                self.keep(number, target, outcome, f"{done}\n\n{words}\n")
        return outcome, f"{target}: {done}: {words}"

    def watched(self):
        """The worker's answer, or that it hangs or takes too much memory."""
        pid = self.process.pid
        before = computed(pid)
        last = time.monotonic()
        waited = 0.0  # seconds, without those in which a busy machine let it wait
        while not self.connection.poll(0.02):
            now = time.monotonic()
            waited += 0.0 if runnable(pid) else now - last
            last = now
            memory = memory_of(pid, "VmRSS")
            if memory > KILL:
                return "memory", f"{self.asked()}\n{memory / 1e6:.0f} MB and growing", memory
            if waited + computed(pid) - before > self.limit:
                return "hang", f"{self.asked()}\nmore than {self.limit:g} s", memory
        return self.connection.recv()

    def asked(self):
        """Where the worker is: it is asked, and has a second to answer."""
        os.kill(self.process.pid, signal.SIGUSR1)
        time.sleep(1)
        return self.trace()

    def trace(self):
        """Where the worker was, as faulthandler wrote it."""
        return (self.folder / "trace.txt").read_text()[-5000:]

    def keep(self, number, target, outcome, words):
        """Keep a failure: the damaged files, made again, and what came of them."""
        place = self.out / f"seed{self.seed}-case{number}-{target}-{outcome}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.folder / "files" / target, place)
        damage(place, target, case_of(self.seed, number, self.targets)[1])
        (place / "outcome.txt").write_text(words, errors="backslashreplace")

    def summary(self):
        """The table of outcomes, one row a target; then the kinds of failures, one a line."""
        lines = [f"{'':10}" + "".join(f"{name:>10}" for name in (*OUTCOMES, "peak MB"))]
        for target, row in self.counts.items():
            cells = "".join(f"{row[name]:10d}" for name in OUTCOMES)
            lines.append(f"{target:10}{cells}{self.peaks[target] / 1e6:10.0f}")
        for kind, cases in sorted(self.kinds.items()):
            shown = ", ".join(map(str, cases[:KEPT])) + (", ..." if len(cases) > KEPT else "")
            lines.append(f"{' '.join(kind)}: {len(cases)} of the cases: {shown}")
        return "\n".join(lines)

    def failures(self):
        """The number of failures so far."""
        return sum(row[name] for row in self.counts.values() for name in FAILURES)


# ---- the command --------------------------------------------------------------------------------


def parse(argv=None):
    """The command's flags."""
    p = Parser(
        __doc__,
        examples=(
            "python tests/fuzz.py --minutes 60        # exit code 1 if there is a failure",
            "python tests/fuzz.py --only 1234         # one case again, with its traceback",
            "python tests/fuzz.py --targets npz zarr --cases 500 --seed 1",
        ),
    )
    p.add_argument("--minutes", type=float, default=5, help="how long to try")
    p.add_argument("--cases", type=int, help="how many cases to try, in place of --minutes")
    p.add_argument("--only", type=int, metavar="N", help="try this case alone")
    p.add_argument("--seed", type=int, default=0, help="seed of all damage")
    p.add_argument("--out", metavar="DIR", default="runs/fuzz", help="folder that keeps failures")
    p.add_argument(
        "--targets",
        nargs="+",
        choices=tuple(TARGETS),
        default=tuple(TARGETS),
        help="the kinds of files; the numbers of cases count within them",
    )
    p.add_argument("--limit", type=float, default=10, help="seconds after which a call hangs")
    args = p.parse_args(argv)
    above_zero(args, "minutes", "cases", "limit")
    check_seed(args, "seed")
    check_folder(args, "out")
    return args


def numbers(args):
    """The numbers of the cases to try."""
    if args.only is not None:
        yield args.only
        return
    end = time.monotonic() + 60 * args.minutes
    number = 0
    while number < args.cases if args.cases else time.monotonic() < end:
        yield number
        number += 1


def main(argv=None):
    """Try cases, print each failure and a table at the end; exit code 1 if there is a failure."""
    args = parse(argv)
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out / ".lock"):
        folder = out / "work"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "files").mkdir(parents=True)
        print("making the undamaged files", flush=True)
        make_files(folder / "files", args.targets)
        watch = Watch(folder, out, args.seed, args.targets, args.limit)
        try:
            watch.start()
            for number in numbers(args):
                outcome, words = watch.run(number)
                if args.only is not None:
                    print(f"{outcome}: {words}")
        finally:
            watch.stop()
            print(watch.summary())
        shutil.rmtree(folder, ignore_errors=True)
    if watch.failures():
        print(f"{watch.failures()} failures, kept in {out}")
        sys.exit(1)


if __name__ == "__main__":
    cli(main)
