"""The rows of results/: reading them, choosing among them, and what several seeds say together.

A table is a CSV file; its rows are dicts of strings. A row is told from others by key columns, such
as setting, seed and start_seed. Intervals over seeds are 95 % t intervals.
"""

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from commands import BadInput
from files import Lock, read_bytes, write_csv

WHOLE = ("seed", "episodes", "start_seed", "attempts")  # columns of whole numbers, or empty
NUMBERS = (  # columns of numbers, or empty, in every table that has them
    *("score", "score_low", "score_high", "success", "before", "before_low", "before_high"),
    *("after", "after_low", "after_high", "success_before", "success_after", "last", "top"),
    *("jerk", "jerk_before", "jerk_after", "disagreement", "nfe", "act_ms", "ms", "MB", "r_time"),
    *("r_memory", "batch", "K", "demos", "minutes", "step", "steps", "env_steps", "epochs"),
    *("iteration", "covered", "rarest", "on_none", "modes_covered", "rarest_mode", "on_no_mode"),
    *("distinct_points", "ms_a_frame", "loss", "s", "episode_score", "best", "least_diversity"),
    *("p1", "p2", "p3", "p4", "mode_entropy"),
)
T_95 = {  # 97.5 % quantile of t, by the number of values
    **{2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57},
    **{7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26},
}


OWN_NETWORKS = ("pusht_image.csv", "pusht_sizes.csv")  # tables whose rows differ in their channels

CURE = "restore it from git, or delete it and measure again"


class Row(dict):
    """A row of a file, {column: value}: a column that is not there is a BadInput.

    cure: what to do then.
    """

    def __init__(self, columns, path, cure=CURE):
        super().__init__(columns)
        self.path = path
        self.cure = cure

    def __missing__(self, name):
        raise BadInput(f"{self.path} lacks the column {name!r}: {self.cure}")


def read(path):
    """The rows of a CSV file, as dicts of strings; none if there is no such file.

    Raises BadInput if it is no table, if a row is longer or shorter than the header, and if a
    column of numbers holds anything else.
    """
    if not Path(path).exists():
        return []
    try:
        text = io.StringIO(read_bytes(path).decode(), newline="")
        header, *lines = csv.reader(text, strict=True)
    except (ValueError, csv.Error) as e:  # UnicodeDecodeError is a ValueError
        raise BadInput(f"{path} is not a table ({type(e).__name__}): {CURE}") from e
    rows = []
    for n, line in enumerate(lines, 2):
        if line and len(line) != len(header):
            raise BadInput(
                f"{path}: row {n} has {len(line)} columns, the header has {len(header)}: {CURE}"
            )
        if line:
            rows.append(Row(zip(header, line), path))
            check_numbers(rows[-1], f"{path}: row {n}")
    return rows


def check_numbers(row, where):
    """Refuse a row whose columns of numbers hold anything else. Raises BadInput."""
    for name in (*WHOLE, *NUMBERS):
        text = row.get(name)
        try:
            good = not text or math.isfinite(int(text) if name in WHOLE else float(text))
        except (ValueError, OverflowError):
            good = False
        if not good:
            raise BadInput(f"{where} has the {name} {text!r}, which is no number: {CURE}")


def merge(path, rows, keys):
    """Put rows into the table at path, in the place of those that have the same key columns.

    Other processes may do so at the same time: they wait for each other, by the file .NAME.lock
    beside the table, and no row is lost. The file is replaced atomically. Returns all its rows.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    for row in new:
        check_numbers(row, f"a new row for {path}")
    taken = {tuple(row[k] for k in keys) for row in new}
    with Lock(path.parent / f".{path.name}.lock", wait=True):
        kept = [r for r in read(path) if tuple(r.get(k) for k in keys) not in taken]
        write_csv(path, kept + new)
    return kept + new


class Results:
    """The folder results/."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def rows(self, name, dims="auto"):
        """The rows of one of its CSV files; none if there is no such file.

        Of a table that tells the network's channels, only those with these.
        """
        rows = read(self.folder / name)
        return [r for r in rows if name in OWN_NETWORKS or r.get("dims", dims) == dims]

    def json(self, name):
        """The object in one of its JSON files. Raises BadInput if it is missing or damaged."""
        path = self.folder / name
        try:
            return json.loads(read_bytes(path))
        except (ValueError, RecursionError) as e:
            wrong = "is damaged" if path.exists() else "is missing"
            raise BadInput(f"{path} {wrong}: restore it from git, or measure it by bench.py") from e


def select(rows, **columns):
    """The rows that agree with the given columns, in the order of their seeds."""
    found = [r for r in rows if all(r.get(k) == str(v) for k, v in columns.items())]
    return sorted(found, key=lambda r: int(r.get("seed") or 0))


def at(rows, starts):
    """The rows that were scored on these start states (experiments.Starts)."""
    return select(rows, episodes=starts.episodes, start_seed=starts.first_seed)


def anchor_pair(rows, stem, starts):
    """The rows of stage2.csv of a kind of policy, with and without the anchor."""
    own = at(rows, starts)
    with_anchor = select(own, setting=f"{stem}-anchor") or select(own, setting=stem)
    return with_anchor, select(own, setting=f"{stem}-no-anchor")


def rows_of(rows, experiment):
    """The rows of an experiment of its length, scored on its first start states."""
    own = select(at(rows, experiment.starts[0]), setting=experiment.name)
    return select(own, length=experiment.budget)


def setting_of(method, nfe):
    """How a method and its network evaluations an action are called in pusht_methods.csv."""
    return f"{method}, {nfe} NFE"


def column(rows, name):
    """A column as numbers, in the order of the rows; rows without it are left out."""
    return [float(r[name]) for r in rows if r.get(name) not in (None, "")]


# ---- several seeds ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and half the width of its 95 % t interval, NaN for a single seed."""

    mean: float
    half: float
    n: int

    def text(self, digits=3):
        """As "0.898 ± 0.034"; the mean alone where there is one seed."""
        if self.n < 2:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"

    def excludes_zero(self):
        """Whether 0 lies outside; a single seed never tells."""
        return self.n > 1 and abs(self.mean) > self.half


def interval(values):
    """The Interval of values, one a seed: half = t s / √n, s their sample deviation."""
    values = np.asarray(values, float)
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    if n == 1:
        return Interval(float(values[0]), math.nan, 1)
    half = T_95.get(n, 2.26) * values.std(ddof=1) / math.sqrt(n)
    return Interval(float(values.mean()), float(half), n)


def mean(rows, name):
    """The mean of a column."""
    return interval(column(rows, name)).mean


def differences(above, below, name="score"):
    """What one setting has more than another in a column, for each seed that both have."""
    other = {r["seed"]: float(r[name]) for r in below}
    return [float(r[name]) - other[r["seed"]] for r in above if r["seed"] in other]


def paired(above, below, name="score"):
    """The Interval of those differences."""
    return interval(differences(above, below, name))
