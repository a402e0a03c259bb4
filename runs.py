"""A run folder: its flags and versions, its logs, atomic saves, and resuming.

  flags.json   every flag, the command line, the commit, the package versions, the machine
  log.jsonl    one object a line: {"step": ..., "loss": ...}; log.csv holds the same as a table
  ckpt.pt      the policy (policy.py), replaced atomically
  state.pt     what --resume needs beside it, replaced atomically (saves.py)
  .lock        held by the process that writes the folder

The command draws the scores of runs. Seeds of one setting are drawn together.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from commands import BadInput, Parser, cli, flags_of, spelled
from files import Lock, atomic, check_folder, check_output, load_torch, read_bytes, write_csv

PACKAGES = ("torch", "numpy", "gymnasium", "gym-pusht", "pymunk", "mujoco", "zarr", "h5py")
LARGEST_LOG = 2**26  # bytes of log.jsonl: ten million steps of training
LONGEST_ROW = 2**14  # bytes of a line of it
FOLDER_FILES = (
    *("flags.json", "log.jsonl", "log.csv", "state.pt", "ckpt.pt", "init.pt", "best.pt"),
    *("curves.png", "hypotheses.png", ".lock"),
)
SCORE_COLUMNS = ("step", "iteration", "minutes", "score", "score_low", "score_high", "success")


# ---- what a run was made by ----------------------------------------------------------------------


def git(*args):
    """Standard output of a git command in the folder of this code."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "-C", here, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit():
    """The git commit of the code, with + if the tree has changes; "unknown" outside a checkout."""
    try:
        changed = git("status", "--porcelain", "-uno")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions():
    """Versions of the packages that decide results, and the machine."""
    import torch

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["machine"] = platform.machine()
    found["cores"] = os.cpu_count()
    found["threads"] = torch.get_num_threads()
    return found


# ---- the run folder ------------------------------------------------------------------------------


def claim(args):
    """Take the run folder args.out for this process, and make it if it is missing.

    Temporary files that a kill left are deleted. Returns its Lock. Raises BadInput if another
    process writes the folder, if it cannot be written, and if it holds a run and --resume was not
    given.
    """
    out = Path(args.out)
    check_folder(args, "out")
    out.mkdir(parents=True, exist_ok=True)
    check_files(out)
    lock = Lock(out / ".lock")
    if (out / "state.pt").exists() and not args.resume:
        raise BadInput(
            f"{args.out} holds a run: go on with --resume, or name another folder with --out"
        )
    for left in out.glob(".*"):
        if re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", left.name):  # as `atomic` names them
            left.unlink(missing_ok=True)
    return lock


def check_files(out):
    """Refuse a run folder in which a folder, a pipe or a device is in a file's place. BadInput."""
    for path in (Path(out) / name for name in FOLDER_FILES):
        if path.exists() and not path.is_file():
            raise BadInput(f"{path} is not a file: name another run folder with --out")


def load_state(args, device, needs, free):
    """state.pt of the run folder, for --resume.

    needs: keys that it must have. Raises BadInput without them, and if a flag differs from the one
    that the run was begun with, except for the flags named in `free`.
    """
    path = Path(args.out) / "state.pt"
    if not path.is_file():
        raise BadInput(f"{path}: there is no run to go on with: leave out --resume")
    state = load_torch(path, device)
    if not isinstance(state, dict) or not {"flags", *needs} <= set(state):
        raise BadInput(
            f"{args.out}/state.pt is not the state of a run of this version: "
            "begin in another folder with --out"
        )
    for name, now in flags_of(args).items():
        was = state["flags"].get(name)
        if name not in free and was != now:
            raise BadInput(
                f"{args.out} was begun with {spelled(name)} {was}, not {now}: "
                "resume with the same flags, or begin in another folder with --out"
            )
    return state


class Run:
    """A run folder and its logs.

    resume_step: the step that a resumed run goes on from. Later rows of the log are dropped, so
    that no step appears twice. None begins a new run and writes flags.json.
    """

    def __init__(self, out, flags, *, resume_step=None):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.out = Path(out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadInput(
                f"--out {out} cannot be a run folder ({e.strerror}): name another"
            ) from e
        check_files(self.out)
        self.rows = []
        next_step = None
        if resume_step is None:
            self._write_flags(flags)
        else:
            self.rows = [row for row in read_log(self.out) if row["step"] <= resume_step]
            next_step = resume_step + 1
        lines = [(json.dumps(row) + "\n").encode() for row in self.rows]
        atomic(self.out / "log.jsonl", lambda f: f.writelines(lines))
        self.jsonl = open(self.out / "log.jsonl", "a")
        self.board = SummaryWriter(self.out, purge_step=next_step)

    def _write_flags(self, flags):
        about = {
            "flags": flags,
            "command": sys.argv,
            "commit": commit(),
            "versions": versions(),
        }
        text = json.dumps(about, indent=1, default=str)
        atomic(self.out / "flags.json", lambda f: f.write(text.encode()))

    def log(self, step, **numbers):
        """Append one row {step, name: float}, of six digits each."""
        row = {"step": step, **{k: float(f"{v:.6g}") for k, v in numbers.items()}}
        self.rows.append(row)
        print(json.dumps(row), file=self.jsonl, flush=True)
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)

    def column(self, name):
        """(steps, values) of the rows that hold name."""
        held = [row for row in self.rows if name in row]
        return [row["step"] for row in held], [row[name] for row in held]

    def close(self):
        """Write log.csv and close the logs."""
        write_csv(self.out / "log.csv", self.rows)
        self.jsonl.close()
        self.board.close()


def read_log(out):
    """Rows of a run folder's log.jsonl. Lines that are no rows are left out, and counted on stderr.

    The last line may have been cut short by a kill: no word is said of it.
    """
    path = Path(out) / "log.jsonl"
    if not os.path.exists(path):
        return []
    rows = [parsed_row(line) for line in read_bytes(path, LARGEST_LOG).splitlines()]
    bad = sum(row is None for row in rows[:-1])
    if bad:
        print(f"{path}: {bad} of {len(rows)} lines are no rows: left out", file=sys.stderr)
    return [row for row in rows if row is not None]


def parsed_row(line):
    """A line of log.jsonl as a dict of numbers with a step, or None if it is none."""
    if len(line) > LONGEST_ROW:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(row, dict) and all(type(v) in (int, float) for v in row.values())
    return row if numbers and type(row.get("step")) is int else None


# ---- pictures ------------------------------------------------------------------------------------


def curves(run, path, panels, x="step"):
    """Draw the run's numbers over its steps into a PNG file; x names the axis.

    panels: (title, column names, y scale) each; one without any rows is left out. The interval of
    a score is shaded.
    """
    from matplotlib.figure import Figure

    panels = [p for p in panels if any(run.column(name)[0] for name in p[1])]
    columns = (len(panels) + 1) // 2
    fig = Figure(figsize=(3.9 * columns, 6), layout="constrained")
    axes = fig.subplots(2, columns)
    for ax, (title, names, scale) in zip(axes.flat, panels):
        for name in names:
            marker = "o" if name == "score" else None
            ax.plot(*run.column(name), marker=marker, label=name.replace("force_", "τ = "))
        if "score" in names:
            steps, low = run.column("score_low")
            _, high = run.column("score_high")
            ax.fill_between(steps, low, high, alpha=0.2)
        ax.set(title=title, xlabel=x, yscale=scale)
        if len(names) > 1:
            ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    atomic(path, lambda f: fig.savefig(f, format="png", dpi=110))


def without_seed(run):
    """A run's name without a last seedN: runs that differ in it alone are seeds of one setting."""
    return re.sub(r"[-_]?seed[-_]?\d+$", "", run) or run


def mean_scores(runs, x):
    """The mean score of a setting's seeds, at the steps that all of them were scored at.

    runs: the rows of each seed. Returns the means of the column x and of the score.
    """
    by_step = {}
    for rows in runs:
        for row in rows:
            by_step.setdefault(row.get("iteration", row["step"]), []).append(row)
    common = [group for _, group in sorted(by_step.items()) if len(group) == len(runs)]
    xs = [sum(row[x] for row in group) / len(group) for group in common]
    scores = [sum(row["score"] for row in group) / len(group) for group in common]
    return xs, scores


def draw_setting(ax, name, runs, x, color):
    """Draw the score curve of each seed of one setting and, of more than one, their mean."""
    alone = len(runs) == 1
    for rows in runs:
        ax.plot(
            [row[x] for row in rows],
            [row["score"] for row in rows],
            lw=1,
            color=color,
            marker=".",
            ms=4,
            alpha=1 if alone else 0.4,
            label=name if alone else None,
        )
    xs, scores = mean_scores(runs, x)
    if not alone and xs:
        ax.plot(xs, scores, color=color, lw=2, label=f"{name}, mean of {len(runs)}")


def draw_scores(path, rows, x, lines):
    """Draw the score of each run over `x` ("step" or "minutes") into a PNG file.

    rows: the scored rows of the logs, each with the name of its run. Seeds of one setting share
    a colour and get a mean curve. lines: dashed lines {label: score} to compare with.
    """
    from matplotlib.figure import Figure

    settings = {}  # setting -> run -> its rows
    for row in rows:
        seeds = settings.setdefault(without_seed(row["run"]), {})
        seeds.setdefault(row["run"], []).append(row)
    fig = Figure(figsize=(6.5, 3.8), layout="constrained")
    ax = fig.subplots()
    for i, (name, seeds) in enumerate(settings.items()):
        draw_setting(ax, name, list(seeds.values()), x, color=f"C{i}")
    for label, score in lines.items():
        ax.axhline(score, color="grey", ls="--", lw=0.8)
        ax.text(0, score, label, fontsize=8, va="bottom", color="grey")
    stage_2 = any("iteration" in row for row in rows)
    xlabel = "environment steps" if stage_2 and x == "step" else x
    ax.set(xlabel=xlabel, ylabel="score", xlim=(0, None))
    low = min(row["score"] for row in rows)
    high = max(row["score"] for row in rows)
    if high > 1 or low < 0.5:
        ax.set_ylim(min(0, low), 1 if 0 <= low and high <= 1 else None)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    atomic(path, lambda f: fig.savefig(f, format="png", dpi=120))


def parse(argv=None):
    """The command's flags."""
    p = Parser(
        __doc__,
        examples=[
            "python runs.py runs/pusht-dbp-seed0 runs/pusht-dbp-seed1 --png score.png",
            "python runs.py runs/pusht-dbpo-seed* --csv score.csv --line 'Stage 1=0.87'",
        ],
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folder, one or more")
    p.add_argument("--png", metavar="FILE", default="score.png", help="figure to write")
    p.add_argument("--csv", metavar="FILE", help="table to write")
    p.add_argument(
        "--x",
        choices=("step", "minutes"),
        default="step",
        help="horizontal axis: training steps, or minutes of training",
    )
    p.add_argument(
        "--line",
        nargs="*",
        default=[],
        metavar="LABEL=SCORE",
        help="dashed lines to compare with",
    )
    args = p.parse_args(argv)
    check_output(args, "png", "csv")
    return args


def main():
    """Draw the scores of the run folders that the command line names."""
    args = parse()
    rows = []
    names = [Path(out).resolve().name for out in args.runs]
    for out, name in zip(args.runs, names):
        if not Path(out, "log.jsonl").is_file():
            raise BadInput(f"{out} is not a run folder: it has no log.jsonl")
        if names.count(name) > 1:
            raise BadInput(f"two of the run folders are called {name}: rename one")
        for row in read_log(out):
            if "score" in row and args.x in row:
                rows.append({"run": name, **{k: row[k] for k in SCORE_COLUMNS if k in row}})
    if not rows:
        raise BadInput(
            f"there are no scores in {', '.join(args.runs)}: "
            "give run folders, or train with --eval-every"
        )
    try:
        pairs = [line.rsplit("=", 1) for line in args.line]
        lines = {label: float(score) for label, score in pairs}
    except ValueError as e:
        raise BadInput(f"--line {' '.join(args.line)}: give LABEL=SCORE") from e
    draw_scores(args.png, rows, args.x, lines)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    cli(main)
