"""The rows of results/: reading them, choosing among them, and what several seeds say together.

A table is a CSV file; its rows are dicts of strings. A row is told from others by key columns, such
as setting, seed and start_seed. Intervals over seeds are 95 % t intervals.
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runs import BadInput, write_csv

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # 97.5 % quantile of t, by the number of values


def read(path):
    """The rows of a CSV file, as dicts of strings; none if there is no such file."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def merge(path, row, keys):
    """Put a row into the table at path, in the place of one that agrees on the key columns.

    The file is replaced atomically. Returns all rows, as strings.
    """
    others = [r for r in read(path) if any(r.get(k) != str(row[k]) for k in keys)]
    rows = [*others, {k: "" if v is None else str(v) for k, v in row.items()}]
    write_csv(path, rows)
    return rows


class Results:
    """The folder results/."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def rows(self, name):
        """The rows of one of its CSV files; none if there is no such file."""
        return read(self.folder / name)

    def json(self, name):
        """The object in one of its JSON files. Raises BadInput if there is no such file."""
        path = self.folder / name
        if not path.exists():
            raise BadInput(f"{path} is missing: restore it from git, or measure it by bench.py")
        return json.loads(path.read_text())


def select(rows, **columns):
    """The rows that agree with the given columns, in the order of their seeds."""
    found = [r for r in rows if all(r.get(k) == str(v) for k, v in columns.items())]
    return sorted(found, key=lambda r: int(r.get("seed") or 0))


def at(rows, starts):
    """The rows that were scored on these start states (experiments.Starts)."""
    return select(rows, episodes=starts.episodes, start_seed=starts.first_seed)


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
    half = T_95.get(n, 2.3) * values.std(ddof=1) / math.sqrt(n)
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
