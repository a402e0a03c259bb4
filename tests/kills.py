"""Kill the tools at random moments, resume them, and compare with a run that was left alone.

  python tests/kills.py --moments 10 --seed 0
  python tests/kills.py --only "Stage 1" "evaluation, video"

Each case is a small run of a tool. It is run once to its end; then, for each moment, it is started
in a folder of its own, killed by SIGKILL, and resumed or started again. Of a tool with worker
processes the parent alone is killed, and torchrun alone of what it starts. Asked is that

- no process that it started lives on,
- nothing under a final name is half written,
- what stands there in the end equals the unharmed run bit for bit: weights, optimiser, log rows but
  for times, arrays, scores, table rows but for times and dates, and no temporary file is left.

A table is printed, and the exit code is 1 if anything failed. Linux only (/proc).
"""

import contextlib
import dataclasses
import hashlib
import http.server
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image

import formats
import tables
from commands import BadInput, Parser, above_zero, check_seed, cli
from conftest import ROOT, write_demos
from files import load_torch
from made_up import make_policy
from runs import read_log

# What no two runs have in common: times, dates, and paths in the flags.
TIMES = {
    *("minutes", "seconds", "sim_s", "rollout_s", "update_s", "steps_per_s", "simulator_s"),
    *("network_s", "network_ms", "act_ms", "date", "commit", "machine", "flags", "sha256", "ckpt"),
}
MARK = "KILLS_MARK"  # the environment variable by which processes are found again
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}|\.unpack.*|\.ckpt-.*")
PATIENCE = 300  # seconds that a run may take
GRACE = 5  # seconds in which workers must have ended


# ---- comparing -----------------------------------------------------------------------------------


def differences(a, b, where=""):
    """The places at which two results differ, bit for bit; entries named in TIMES are left out."""
    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, dict):
        keys = [k for k in dict.fromkeys([*a, *b]) if k not in TIMES]
        lacking = [f"{where}/{k}: in one only" for k in keys if (k in a) != (k in b)]
        both = [k for k in keys if k in a and k in b]
        return lacking + [d for k in both for d in differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        pairs = enumerate(zip(a, b))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor):
        a, b = (x.detach().cpu().numpy() for x in (a, b))
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    else:
        same = repr(a) == repr(b)  # NaN too equals itself
    return [] if same else [f"{where}: {short(a)} and {short(b)}"]


def short(x):
    """A value in a line."""
    return f"{type(x).__name__} {x.shape}" if isinstance(x, np.ndarray) else repr(x)[:40]


def opened(path):
    """The content of a file of a kind that is written as a whole. Raises an error if it is not."""
    if path.suffix == ".pt":
        return load_torch(path)
    if path.suffix == ".npz":
        return formats.read(path)
    if path.suffix == ".csv":
        return [dict(row) for row in tables.read(path)]
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix in (".gif", ".png"):
        with Image.open(path) as picture:
            picture.load()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def final_files(folder):
    """The files under final names: not hidden, not a part, and not one that grows by lines."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.suffix not in (".part", ".jsonl")
        and not path.name.startswith("events.out")  # TensorBoard's, which grows too
    ]


def half_written(folder):
    """The files under final names that cannot be read."""
    broken = []
    for path in final_files(folder):
        try:
            opened(path)
        except Exception as e:
            broken.append(f"{path.relative_to(folder)} ({e})")
    return broken


def result(folder):
    """All that a run leaves: its final files, and the rows of logs."""
    found = {
        str(path.relative_to(folder)): opened(path)
        for path in final_files(folder)
        if path.name != "flags.json" and path.suffix != ".png"  # curves show times
    }
    for log in folder.rglob("log.jsonl"):
        found[str(log.relative_to(folder))] = read_log(log.parent)
    for path in folder.rglob(".*"):
        if TEMPORARY.fullmatch(path.name):
            found[f"temporary file {path.name}"] = True
    return found


# ---- the cases -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A small run. command: (inputs, the folder it writes) -> its command line."""

    command: Callable
    resumes: bool = False  # --resume is given where there is a state.pt
    needs: str = None  # a package, without which the case is left out
    once: str = None  # a file that says that nothing is left to do

    def line(self, inputs, out):
        """The command line that begins the run, or goes on with it; None if it is at its end."""
        if self.once and (out / self.once).exists():
            return None
        line = [str(part) for part in self.command(inputs, out)]
        if self.resumes and (out / "state.pt").exists():
            line.append("--resume")
        return line


def python(script, *flags):
    """The command line of a script."""
    return [sys.executable, ROOT / script, *flags]


def torchrun(script, *flags):
    """The command line of a script in two processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    return [*run, ROOT / script, *flags]


SAVES = ("--save-every", 0, "--threads", 1, "--device", "cpu")


def stage1(start):
    """Stage 1, started by python() or torchrun()."""

    def command(inputs, out):
        small = ("--dims", 8, 16, "--batch", 8, "--steps", 400, "--episodes", 2)
        scored = ("--eval-every", 150, "--one-process", *SAVES)
        data = ("--task", "pusht", "--data", inputs / "demos.npz", "--out", out)
        return start("dbp_train.py", *data, *small, *scored)

    return command


def stage2(start, *flags):
    """Stage 2, started by python() or torchrun()."""

    def command(inputs, out):
        roll_out = ("--num-envs", 4, "--num-steps", 4, "--num-iterations", 12)
        small = ("--minibatch-size", 8, "--update-epochs", 2, "--critic-warmup", 1, "--sigma", 0.1)
        scored = ("--eval-every", 4, "--episodes", 2, *SAVES, *flags)
        init = ("--init", inputs / "ckpt.pt", "--out", out)
        return start("dbpo_ppo.py", *init, *roll_out, *small, *scored)

    return command


def collection(inputs, out):
    """A collection from a scripted expert, by two workers."""
    flags = ("--task", "metaworld-reach", "--episodes", 4, "--workers", 2)
    return python("experts.py", *flags, "--out", out / "x.npz")


def evaluation(inputs, out):
    """An evaluation with a worker for each of four simulators."""
    return python("evaluate.py", inputs / "ckpt.pt", "--episodes", 4, "--json", out / "x.json")


def video(inputs, out):
    """An evaluation that also writes a video, for which all simulators are in its own process."""
    flags = ("--episodes", 2, "--json", out / "x.json", "--video", out / "x.gif")
    return python("evaluate.py", inputs / "ckpt.pt", *flags)


DOWNLOAD = """
import dataclasses, json, sys
import data, envs, runs
sha256 = json.load(open(sys.argv.pop(1)))
envs.TASKS["pusht"] = dataclasses.replace(envs.TASKS["pusht"], sha256=sha256)
commands.cli(data.main)
"""


def download(inputs, out):
    """A download from the harness's own slow server, of data whose sha256 it tells."""
    url = (inputs / "url").read_text()
    flags = ("download", "pusht", "--to", out, "--url", url)
    return [sys.executable, "-c", DOWNLOAD, inputs / "sha256.json", *flags]


def reproduction(inputs, out):
    """One run of reproduce.py and its row in a table."""
    data = ("--data", inputs / "demos.npz", "--batch", 8, "--seeds", 0, "--dims", 8, 16)
    short = ("--steps", 200, "--episodes", 1, "--eval-every", 0, "--methods", "bc")
    places = ("--out", out / "runs", "--results", out / "results")
    one = ("--device", "cpu", "--threads", 1, "--one-process")
    return python("reproduce.py", "pusht", *data, *short, *places, *one)


CASES = {
    "Stage 1": Case(stage1(python), resumes=True),
    "Stage 1, torchrun": Case(stage1(torchrun), resumes=True),
    "Stage 2": Case(stage2(python, "--one-process"), resumes=True),
    "Stage 2, workers": Case(stage2(python), resumes=True),
    "Stage 2, torchrun": Case(stage2(torchrun, "--one-process"), resumes=True),
    "Stage 2, torchrun, workers": Case(stage2(torchrun), resumes=True),
    "collection": Case(collection, needs="metaworld", once="x.npz"),
    "evaluation": Case(evaluation),
    "evaluation, video": Case(video),
    "download": Case(download),
    "reproduce": Case(reproduction),
}


# ---- what the cases read -------------------------------------------------------------------------


class Slow(http.server.BaseHTTPRequestHandler):
    """Serves server.content from where it is asked to, in about two seconds."""

    def do_GET(self):
        content = self.server.content
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        piece = len(content) // 100
        try:
            for at in range(start, len(content), piece):
                self.wfile.write(content[at : at + piece])
                time.sleep(0.02)
        except OSError:  # the reader was killed
            pass

    def log_message(self, *args):
        pass


def prepare(inputs):
    """Make what the cases read in the folder `inputs`, and start the server."""
    import numcodecs
    import zarr

    write_demos(inputs / "demos.npz")
    make_policy((8, 16), "cpu").save(inputs / "ckpt.pt")
    rng = np.random.default_rng(0)
    steps = 20_000
    arrays = {
        "data/action": rng.uniform(0, 512, (steps, 2)).astype("f4"),
        "data/state": rng.uniform(0, 512, (steps, 5)).astype("f4"),
        "data/keypoint": rng.uniform(0, 512, (steps, 9, 2)).astype("f4"),
        "meta/episode_ends": np.arange(1, steps // 100 + 1) * 100,
    }
    sha256 = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()}
    (inputs / "sha256.json").write_text(json.dumps(sha256))
    folder = inputs / "made" / "pusht_cchi_v7_replay.zarr"
    group = zarr.create_group(folder, zarr_format=2)
    for name, a in arrays.items():
        chunks = (min(1000, len(a)), *a.shape[1:])
        blosc = numcodecs.Blosc("zstd", 5, 2)
        group.create_array(name, data=a, chunks=chunks, compressors=blosc)
    with zipfile.ZipFile(inputs / "made.zip", "w") as z:
        for path in sorted(folder.rglob("*")):
            z.write(path, path.relative_to(inputs / "made"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.content = (inputs / "made.zip").read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (inputs / "url").write_text(f"http://127.0.0.1:{server.server_port}/pusht.zip")


# ---- running and killing -------------------------------------------------------------------------


def start(line, log, mark):
    """Start a command; what it prints goes to the file `log`.

    mark: a text by which it and all that it starts are found again.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "no_proxy": "*", MARK: mark}
    with open(log, "ab") as file:
        return subprocess.Popen(line, stdout=file, stderr=file, env=environment)


def finish(line, log, mark):
    """Run a command to its end. Returns what is wrong, or None."""
    p = start(line, log, mark)
    try:
        code = p.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        end(mark)
        p.wait()
        return f"not ended after {PATIENCE} s"
    return f"exit code {code}: {tail(log)}" if code else None


def tail(log):
    """What a command printed of an error, or else its last line."""
    lines = Path(log).read_text(errors="replace").strip().splitlines()
    told = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return " | ".join(told) or (lines[-1] if lines else "nothing was printed")


def alive(mark):
    """The processes that a marked one started, and itself, that have not ended."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                ours = wanted in (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:  # it has just ended, or is another user's
                continue
            if ours and state != "Z":
                found.append(int(folder.name))
    return found


def end(mark):
    """Kill all marked processes, and wait until they have ended."""
    while pids := alive(mark):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def workers_left(mark, grace=GRACE):
    """How many marked processes have not ended after `grace` seconds; they are ended then."""
    deadline = time.monotonic() + grace
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = len(alive(mark))
    end(mark)
    return left


def reference(case, inputs, out, log):
    """Run a case unharmed -> seconds until it wrote anything, seconds in all, its result."""
    begun = time.monotonic()
    first = math.inf
    p = start(case.line(inputs, out), log, str(out))
    while p.poll() is None:
        if any(out.iterdir()):
            first = min(first, time.monotonic() - begun)
        time.sleep(0.01)
        if time.monotonic() - begun > PATIENCE:
            end(str(out))
            raise BadInput(f"the unharmed run did not end in {PATIENCE} s")
    if p.returncode:
        raise BadInput(f"the unharmed run failed: {tail(log)}")
    return first, time.monotonic() - begun, result(out)


def killed(case, inputs, out, log, moment):
    """Start a case and kill it after `moment` seconds. Returns the number of workers left."""
    mark = str(out)
    p = start(case.line(inputs, out), log, mark)
    try:
        p.wait(moment)
    except subprocess.TimeoutExpired:
        p.kill()
        p.wait()
    return workers_left(mark)


def try_case(name, case, inputs, work, moments, seed):
    """Kill and resume a case at random moments. Returns its row of the table, and what went wrong.

    The moments lie between the first file that it writes, or a third of its time, and its end.
    """
    whole = work / "whole"
    whole.mkdir(parents=True)
    first, seconds, wanted = reference(case, inputs, whole, work / "whole.log")
    rng = random.Random(f"{name} {seed}")
    equal = 0
    workers = 0
    wrong = []
    for n in range(moments):
        moment = rng.uniform(min(first, seconds / 3), seconds)
        out = work / f"{n}"
        log = work / f"{n}.log"
        out.mkdir()
        left = killed(case, inputs, out, log, moment)
        workers += left
        found = [f"{left} workers left"] if left else []
        found += [f"half written: {text}" for text in half_written(out)]
        line = case.line(inputs, out)
        failed = finish(line, log, str(out)) if line else None
        found += [failed] if failed else differences(wanted, result(out))
        equal += not found
        wrong += [f"{name}, killed after {moment:.2f} s: {text}" for text in found]
        shutil.rmtree(out)
    return [name, str(moments), str(equal), str(workers), f"{seconds:.1f}"], wrong


def parse(argv=None):
    """The flags of this command."""
    p = Parser(__doc__)
    p.add_argument("--moments", type=int, default=10, help="random moments of each case")
    p.add_argument("--seed", type=int, default=0, help="seed of the moments")
    p.add_argument(
        "--only", nargs="+", choices=tuple(CASES), default=list(CASES), help="these cases alone"
    )
    args = p.parse_args(argv)
    above_zero(args, "moments")
    check_seed(args, "seed")
    return args


def main():
    """Try the cases; exit with 1 if anything went wrong."""
    args = parse()
    rows = [["case", "moments", "resumed equal", "workers left", "seconds of a run"]]
    wrong = []
    with tempfile.TemporaryDirectory(prefix="kills") as work:
        inputs = Path(work, "inputs")
        inputs.mkdir()
        prepare(inputs)
        for i, name in enumerate(args.only):
            case = CASES[name]
            if case.needs and not importlib.util.find_spec(case.needs):
                print(f"{name}: left out, {case.needs} is not installed", flush=True)
                continue
            folder = Path(work, str(i))
            row, found = try_case(name, case, inputs, folder, args.moments, args.seed)
            rows.append(row)
            wrong += found
            print(*(found or [f"{name}: {args.moments} moments, all well"]), sep="\n", flush=True)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    cli(main)
