"""A run folder: flags, seed, commit and versions; CSV, JSONL and TensorBoard logs; atomic saves; resume.

  flags.json   every flag, the command line, seed, commit, package versions, machine
  log.jsonl    one object a line: {"step": ..., "loss": ...}; log.csv the same as a table
  state.pt     all that --resume needs, replaced atomically
  ckpt.pt      the policy (policy.py), replaced atomically

`python runs.py RUN [RUN ...] --png score.png --csv score.csv` draws the scores of runs, seeds of one setting, together.
"""
import argparse
import csv
import ctypes
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "gymnasium", "gym-pusht", "pymunk", "mujoco", "zarr", "h5py")


class BadInput(ValueError):
    """Something the user gave cannot be used; the message says what is wrong and what to do."""


def keep_memory():
    """Let glibc keep what is freed. It hands large blocks back and fetches them again, zeroed page by page, at every
    step: training on a CPU spent up to 30 % of its time there. Elsewhere (macOS, Windows, musl) nothing is done."""
    if platform.libc_ver()[0] == "glibc":
        mallopt, M_TRIM_THRESHOLD, M_MMAP_MAX = ctypes.CDLL(None).mallopt, -1, -4        # numbers of malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def cli(main):
    """Run main(); a BadInput becomes one line on stderr and exit code 2."""
    keep_memory()
    try:
        main()
    except BadInput as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as written; defaults shown where there is one."""

    def _get_help_string(self, action):
        hide = action.default is None or action.default is False
        return action.help if hide else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """The argument parser of every script: no abbreviations, and a wrong flag is a BadInput."""

    def __init__(self, description=None, **kw):
        super().__init__(description=description, allow_abbrev=False, formatter_class=Help, **kw)

    def error(self, message):
        raise BadInput(f"{message} (see --help)")


def above_zero(args, *names):
    """Refuse flags that are given but not finite and above 0. Raises BadInput."""
    for name in names:
        value = getattr(args, name)
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if v is not None and not 0 < v < float("inf"):
                raise BadInput(f"--{name.replace('_', '-')} must be above 0, not {v}")


def check_device(name):
    """Refuse a torch device that is not here. Raises BadInput."""
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as e:
        raise BadInput(f"--device {name} cannot be used here ({str(e).splitlines()[0]}): try --device cpu") from e


def atomic(path, write):
    """write(file) into a temporary file beside path, fsync, rename: path is the old or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        os.unlink(tmp)
        raise


def save_torch(path, state):
    """torch.save, atomically. state: tensors and plain containers only, so that load_torch can read it."""
    atomic(path, lambda f: torch.save(state, f))


def load_torch(path, map_location="cpu"):
    """Read a file of save_torch without unpickling code (weights_only). Raises BadInput if it is not one."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as e:      # torch raises many kinds on a corrupt or foreign file
        raise BadInput(f"{path} is not a checkpoint of this project, or is damaged ({type(e).__name__})") from e


def commit():
    """The git commit of the code, with + if the tree has changes; 'unknown' outside a checkout."""
    here = Path(__file__).parent
    try:
        git = lambda *a: subprocess.run(["git", "-C", here, *a], capture_output=True, text=True, check=True).stdout.strip()
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions():
    """Versions of the packages that decide results, and the machine."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return {"python": platform.python_version(), **found, "machine": platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads()}


def flags_of(args):
    """The flags as plain values, for flags.json and the checkpoints."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(args).items()}


def fresh_folder(args):
    """Refuse to begin a run in a folder that holds one. Raises BadInput."""
    if (Path(args.out) / "state.pt").exists() and not args.resume:
        raise BadInput(f"{args.out} holds a run: go on with --resume, or name another folder with --out")


def load_state(args, device, needs, free):
    """state.pt of the run folder, for --resume. BadInput unless it has the keys `needs` and flags equal but for `free`."""
    state = load_torch(Path(args.out) / "state.pt", device)
    if not isinstance(state, dict) or not {"flags", *needs} <= set(state):
        raise BadInput(f"{args.out}/state.pt is not the state of a run of this version: begin in another --out")
    for k, now in flags_of(args).items():
        if k not in free and state["flags"].get(k) != now:
            raise BadInput(f"{args.out} was begun with --{k.replace('_', '-')} {state['flags'].get(k)}, not {now}: "
                           "resume with the same flags, or begin in another --out")
    return state


class Run:
    """A run folder. Logging keeps only rows up to the step that was resumed from, so no step appears twice."""

    def __init__(self, out, flags, *, resume_step=None):
        self.out = Path(out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise BadInput(f"--out {out} cannot be a run folder ({e.strerror}): name another") from e
        if resume_step is None:
            about = {"flags": flags, "command": sys.argv, "commit": commit(), "versions": versions()}
            atomic(self.out / "flags.json", lambda f: f.write(json.dumps(about, indent=1, default=str).encode()))
        self.rows = [] if resume_step is None else [r for r in read_log(self.out) if r["step"] <= resume_step]
        atomic(self.out / "log.jsonl", lambda f: f.writelines((json.dumps(r) + "\n").encode() for r in self.rows))
        self.jsonl = open(self.out / "log.jsonl", "a")
        from torch.utils.tensorboard import SummaryWriter      # slow to import: only when a run starts
        self.board = SummaryWriter(self.out, purge_step=None if resume_step is None else resume_step + 1)

    def log(self, step, **numbers):
        """Append one row {step, name: float}."""
        row = {"step": step, **{k: float(f"{v:.6g}") for k, v in numbers.items()}}
        self.rows.append(row)
        print(json.dumps(row), file=self.jsonl, flush=True)
        for k, v in numbers.items():
            self.board.add_scalar(k, v, step)

    def column(self, name):
        """(steps, values) of the rows that hold name."""
        pairs = [(r["step"], r[name]) for r in self.rows if name in r]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def close(self):
        """Write log.csv and close the logs."""
        write_csv(self.out / "log.csv", self.rows)
        self.jsonl.close()
        self.board.close()


def read_log(out):
    """Rows of log.jsonl; a last line cut short by a kill is dropped."""
    path = Path(out) / "log.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_csv(path, rows):
    """Rows (dicts) as a CSV table, atomically; the columns are the union of their keys, in order of appearance."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(k for r in rows for k in r)))
    table.writeheader()
    table.writerows(rows)
    atomic(path, lambda f: f.write(text.getvalue().encode()))


def curves(run, path, panels, x="step"):
    """Draw the run's numbers over steps. panels: (title, column names, y scale); the score's interval is shaded."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    panels = [p for p in panels if any(run.column(name)[0] for name in p[1])]
    columns = (len(panels) + 1) // 2
    fig, axes = plt.subplots(2, columns, figsize=(3.9 * columns, 6), constrained_layout=True)
    for ax, (title, names, scale) in zip(axes.flat, panels):
        for name in names:
            ax.plot(*run.column(name), marker="o" if name == "score" else None, label=name.replace("force_", "τ = "))
        if "score" in names:
            ax.fill_between(*run.column("score_low"), run.column("score_high")[1], alpha=0.2)
        ax.set(title=title, xlabel=x, yscale=scale)
        if len(names) > 1:
            ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def draw_scores(path, rows, x, lines):
    """Score of each run over `x` ("step" or "minutes"), the mean of each setting, dashed lines {label: score}.

    Runs whose names differ only in a last seedN are seeds of one setting and share a colour.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, ax = plt.subplots(figsize=(6.5, 3.8), constrained_layout=True)
    setting = lambda run: re.sub(r"[-_]?seed[-_]?\d+$", "", run) or run
    for i, name in enumerate(dict.fromkeys(setting(r["run"]) for r in rows)):
        runs = list(dict.fromkeys(r["run"] for r in rows if setting(r["run"]) == name))
        by_step = {}
        for run in runs:
            own = [r for r in rows if r["run"] == run]
            ax.plot([r[x] for r in own], [r["score"] for r in own], lw=1, color=f"C{i}", marker=".", ms=4,
                    alpha=0.4 if len(runs) > 1 else 1, label=name if len(runs) == 1 else None)
            for r in own:
                by_step.setdefault(r.get("iteration", r["step"]), []).append(r)
        means = [[sum(r[k] for r in group) / len(group) for k in (x, "score")]
                 for _, group in sorted(by_step.items()) if len(group) == len(runs)]
        if len(runs) > 1 and means:
            ax.plot(*zip(*means), color=f"C{i}", lw=2, label=f"{name}, mean of {len(runs)}")
    for label, score in lines.items():
        ax.axhline(score, color="grey", ls="--", lw=0.8)
        ax.text(0, score, label, fontsize=8, va="bottom", color="grey")
    low, high = (f(r["score"] for r in rows) for f in (min, max))
    stage_2 = any("iteration" in r for r in rows)
    ax.set(xlabel="environment steps" if stage_2 and x == "step" else x, ylabel="score", xlim=(0, None))
    if high > 1 or low < 0.5:
        ax.set_ylim(min(0, low), 1 if 0 <= low and high <= 1 else None)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main():
    p = Parser(__doc__)
    p.add_argument("runs", nargs="+", help="run folders")
    p.add_argument("--png", default="score.png", help="figure to write")
    p.add_argument("--csv", help="table to write")
    p.add_argument("--x", choices=("step", "minutes"), default="step", help="horizontal axis: steps, or training minutes")
    p.add_argument("--line", nargs="*", default=[], metavar="LABEL=SCORE", help="dashed lines to compare with")
    args = p.parse_args()
    keep = ("step", "iteration", "minutes", "score", "score_low", "score_high", "success")
    rows = [{"run": Path(out).name, **{k: r[k] for k in keep if k in r}}
            for out in args.runs for r in read_log(out) if "score" in r]
    if not rows:
        raise BadInput(f"no scores in {', '.join(args.runs)}: give run folders, or train with --eval-every")
    try:
        lines = {label: float(score) for label, score in (line.rsplit("=", 1) for line in args.line)}
    except ValueError:
        raise BadInput(f"--line {' '.join(args.line)}: give LABEL=SCORE")
    draw_scores(args.png, rows, args.x, lines)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    cli(main)
