"""report.py, plots.py, tables.py and experiments.py: the arithmetic of seeds, and that RESULTS.md
says what the rows in results/ say."""

import math
import multiprocessing
import re
import shlex
import shutil

import numpy as np
import pytest

import dbp_flags
import dbp_train
import dbpo_ppo
import plots
import report
import reproduce
from cells import by_seed, leads, score
from commands import BadInput, cli
from conftest import ROOT
from envs import TASKS
from experiments import ABLATIONS, CLAIMS, CLOUDS, EXPERIMENTS, TABLE_2, TABLE_2_COLUMNS
from tables import Interval, Results, interval, merge, paired, read, rows_of, select
from verdicts import word_for

RESULTS = Results(ROOT / "results")
TEXT = (ROOT / "RESULTS.md").read_text()
# Runs of Stage 2 by earlier versions of the code, and what they ended at.
DROPPED = {
    "pusht-early-white-seed0": "0.864",
    "hopper-white-anchor-seed0": "1628",
    "hopper-white-anchor-seed1": "1630",
    "hopper-white-no-anchor-seed0": "1909",
    "walker2d-white-anchor-seed0": "2852",
}


# ---- seeds --------------------------------------------------------------------------------------


def rows(setting, *scores):
    """Rows of a setting, one a seed."""
    return [{"setting": setting, "seed": str(i), "score": str(s)} for i, s in enumerate(scores)]


def test_interval_by_hand():
    found = interval([0.8, 0.9, 0.7])
    assert found.mean == pytest.approx(0.8) and found.n == 3
    assert found.half == pytest.approx(4.30 * 0.1 / math.sqrt(3))
    assert found.text(2) == "0.80 ± 0.25"


def test_interval_of_two():
    """The deviation of two values is their distance over the root of 2, t is 12.71."""
    assert interval([1.0, 3.0]).half == pytest.approx(12.71 * math.sqrt(2) / math.sqrt(2))


def test_one_seed_has_no_interval():
    found = interval([0.5])
    assert found.text() == "0.500" and math.isnan(found.half) and not found.excludes_zero()
    assert interval([]).n == 0


def test_paired_by_hand():
    """Differences of 0.1, 0.2, 0.3 over common seeds; a seed of one setting alone is left out."""
    above = rows("a", 0.5, 0.7, 0.9, 1.0)
    below = rows("b", 0.4, 0.5, 0.6)
    found = paired(above, below)
    assert found.mean == pytest.approx(0.2) and found.n == 3
    assert found.half == pytest.approx(4.30 * 0.1 / math.sqrt(3))
    assert leads(above, below) == "3 of 3"


@pytest.mark.parametrize(
    "mean, half, n, word",
    [
        (0.2, 0.1, 3, "Confirmed"),
        (-0.2, 0.1, 3, "Contradicted"),
        (0.1, 0.2, 3, "Unknown"),
        (-0.1, 0.2, 3, "Unknown"),
        (0.5, math.nan, 1, "Unknown"),
        (math.nan, math.nan, 0, "Unknown"),
    ],
)
def test_word(mean, half, n, word):
    assert word_for(Interval(mean, half, n)) == word


def test_score_cell():
    """Several seeds: the interval over them. One: the bootstrap interval, where there is one."""
    assert score(rows("a", 0.8, 0.9, 0.7), 2) == "0.80 ± 0.25"
    one = {"seed": "0", "score": "0.5", "low": "0.4", "high": "0.6", "after": "7"}
    assert score([one], 2) == "0.50 [0.40, 0.60]"
    assert score([one], 0, "after") == "7"
    assert score([]) == "—"


def test_merge(tmp_path):
    """A row takes the place of the one with the same keys; the file is whole at any time."""
    path = tmp_path / "t.csv"
    merge(path, [{"a": 1, "b": 2}], ["a"])
    merge(path, [{"a": 2, "b": None}], ["a"])
    assert merge(path, [{"a": 1, "b": 9, "c": 0}], ["a"])[-1] == {"a": "1", "b": "9", "c": "0"}
    assert [r["b"] for r in read(path)] == ["", "9"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".t.csv.lock", "t.csv"]
    with pytest.raises(BadInput, match="a new row for .*t.csv has the score 'nan'"):
        merge(path, [{"a": 1, "score": math.nan}], ["a"])


def write_rows(path, writer):
    """Merge 60 rows of one process into a table, one at a time."""
    for i in range(60):
        merge(path, [{"a": writer, "b": i}], ["a", "b"])


def test_processes_that_write_one_table_lose_no_row(tmp_path):
    path = tmp_path / "t.csv"
    writers = [multiprocessing.Process(target=write_rows, args=(path, w)) for w in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = {(r["a"], r["b"]) for r in read(path)}
    assert found == {(str(w), str(i)) for w in range(3) for i in range(60)}


@pytest.mark.parametrize(
    "text, told",
    [
        (b"\xff\xfe\x00score", "is not a table"),
        (b"", "is not a table"),
        (b"seed,score\n0,0.5,9\n", "row 2 has 3 columns, the header has 2"),
        (b"seed,score\n0,0.5\n1\n", "row 3 has 1 columns"),
        (b"seed,score\n0,nan\n", "row 2 has the score 'nan'"),
        (b"seed,score\n0,high\n", "row 2 has the score 'high'"),
        (b"seed,score\n0.5,1\n", "row 2 has the seed '0.5'"),
        (b'seed,score\n0,"1\n', "is not a table"),
    ],
)
def test_a_damaged_table_is_told(tmp_path, text, told):
    """By its file and row; and nothing is merged into it."""
    path = tmp_path / "t.csv"
    path.write_bytes(text)
    with pytest.raises(BadInput, match=told):
        read(path)
    with pytest.raises(BadInput, match="t.csv.*restore it from git"):
        merge(path, [{"seed": 2, "score": 1}], ["seed"])
    assert path.read_bytes() == text


def test_a_missing_column_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("seed,score\n0,0.5\n\n1,0.6\n")
    rows = read(tmp_path / "t.csv")
    assert [r["score"] for r in rows] == ["0.5", "0.6"]  # an empty line is no row
    with pytest.raises(BadInput, match="t.csv lacks the column 'minutes'"):
        rows[0]["minutes"]


def test_missing_file_is_told():
    assert Results("nowhere").rows("x.csv") == []
    with pytest.raises(BadInput, match="x.json is missing"):
        Results("nowhere").json("x.json")


def test_missing_rows_are_told(tmp_path, monkeypatch, capsys):
    """In one line that names what lacks them, not by a traceback; RESULTS.md is not written."""
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results", results)
    (results / "multimodal.csv").unlink()
    flags = ["--results", str(results), "--out", str(tmp_path)]
    monkeypatch.setattr(report, "FIGURES", {})
    monkeypatch.setattr("sys.argv", ["report.py", *flags])
    with pytest.raises(SystemExit) as end:
        cli(report.main)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert "lacks rows or columns for 'multimodal'" in err
    assert not (tmp_path / "RESULTS.md").exists()


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000])
def test_damaged_figures_are_told(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(BadInput, match="x.json is damaged: restore it from git"):
        Results(tmp_path).json("x.json")


# ---- Table II -----------------------------------------------------------------------------------


def test_paper_rows():
    """The paper's averages are those of its 37 tasks; OMP's stands 0.4 below its own columns'."""
    sizes = [1, 1, 1, 21, 4, 4, 5]
    off = []
    for values in TABLE_2.values():
        *columns, average = values.values()
        off.append(average - np.dot(columns, sizes) / 37)
    np.testing.assert_allclose(off, [0, -0.41, 0], atol=0.06)


def test_point_cloud_tasks_are_those_of_the_simulators():
    assert CLOUDS == {name: t.group for name, t in TASKS.items() if "points" in t.obs}
    assert len(CLOUDS) == 37


def cloud_row(task, seed, top, last, epochs=100):
    """A row of pointcloud.csv."""
    row = {"task": task, "group": CLOUDS[task], "seed": str(seed)}
    return {**row, "top": str(top), "last": str(last), "epochs": str(epochs)}


def cells(line):
    """The cells of a line of a Markdown table, but for the first."""
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_summary():
    found = [
        cloud_row("metaworld-door-open", 0, 1.0, 0.8),
        cloud_row("metaworld-door-open", 1, 0.8, 0.6),
        cloud_row("metaworld-reach", 0, 0.5, 0.4),
        cloud_row("adroit-pen", 0, 0.7, 0.6),
    ]
    text = report.summary(found).splitlines()
    assert cells(text[0]) == list(TABLE_2_COLUMNS)
    easy = "70.0 ± 10.0 (tasks 2, runs 3)"
    none = ["—", "—"]
    assert cells(text[-2]) == [*none, "70.0 (tasks 1, runs 1)", easy, *none, *none]
    assert cells(text[-1])[3] == "55.0 ± 10.0 (tasks 2, runs 3)"


def test_summary_takes_the_longest_run():
    short = cloud_row("metaworld-reach", 0, 0.5, 0.4)
    long = cloud_row("metaworld-reach", 0, 0.5, 0.9, epochs=1000)
    assert report.summary([long, short]) == report.summary([long])


# ---- RESULTS.md ---------------------------------------------------------------------------------


def test_results_md_is_up_to_date():
    """The same text comes out of the rows again; if not: python report.py."""
    assert report.markdown(RESULTS) == TEXT


def test_only_one_figure_is_drawn(tmp_path, monkeypatch):
    where = ["--results", str(RESULTS.folder), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["report.py", "--only", "ablate_mode", *where])
    report.main()
    files = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert files == ["results/ablate_mode.png"]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_figure(name, tmp_path):
    """It is drawn as a PNG of some size, or there are no rows for it yet."""
    path = tmp_path / "x.png"
    if plots.FIGURES[name].save(RESULTS, path):
        assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000
    else:
        assert name in ("pusht_converged", "multimodal", "stage2_noise")


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert len(pictures) > 10 and all((ROOT / path).exists() for path in pictures)


def test_dropped_runs_do_not_appear():
    curves = [r["run"] for f in ("pusht_dbpo.csv", "locomotion_dbpo.csv") for r in RESULTS.rows(f)]
    finals = [f"{r['setting']}-seed{r['seed']}" for r in RESULTS.rows("stage2.csv")]
    for run, figure in DROPPED.items():
        assert run not in curves and run not in finals
        assert not re.search(rf"\b{re.escape(figure)}\b", TEXT.split("## Stage 2")[1])


def test_every_row_of_the_ablations_is_told():
    for group, experiments in ABLATIONS.items():
        for e in experiments:
            own = rows_of(RESULTS.rows(f"ablate_{group}.csv"), e)
            assert by_seed(own) in TEXT, e.name


def test_every_stage_2_row_is_told():
    for row in RESULTS.rows("stage2.csv"):
        digits = 3 if row["setting"].startswith("pusht") else 0
        assert f"{float(row['after']):.{digits}f}" in TEXT, row


def test_stage_2_rows_are_those_of_the_evaluations():
    """stage2.csv agrees with the JSON files that hold every episode."""
    for name, setting, seed in (
        ("early_seed1", "pusht-early-white", 1),
        ("early_seed2", "pusht-early-white", 2),
        ("early_no_anchor_seed1", "pusht-early-white-no-anchor", 1),
        ("early_no_anchor_seed2", "pusht-early-white-no-anchor", 2),
        ("best_seed0", "pusht-best-white", 0),
    ):
        found = RESULTS.json(f"pusht_dbpo_{name}_200.json")
        key = {"setting": setting, "seed": seed, "episodes": 200, "start_seed": 500000}
        (row,) = select(RESULTS.rows("stage2.csv"), **key)
        assert float(row["after"]) == pytest.approx(found["score"], abs=1e-4)
        assert float(row["success_after"]) == found["success"]


def test_claims_name_settings_that_are_run():
    names = {e.name for e in EXPERIMENTS}
    methods = {setting for _, _, setting in plots.METHOD_SETTINGS}
    for claim in CLAIMS:
        assert {claim.above, claim.below} <= names | methods


# ---- the table's flags --------------------------------------------------------------------------


TRAINED = [e for e in EXPERIMENTS if e.budget and not e.removed]
IMPROVED = [e for e in EXPERIMENTS if e.group in ("stage2", "coarse") and not e.removed]


@pytest.mark.parametrize("e", TRAINED, ids=lambda e: f"{e.group} {e.name}")
def test_stage_1_flags_are_accepted(e, tmp_path, capsys):
    flags = ["--task", e.task, "--out", tmp_path, f"--{e.budget.unit}", e.budget.amount, *e.stage1]
    args = dbp_train.parse(list(map(str, flags)))
    dbp_train.resolve(args)
    assert args.task in TASKS


@pytest.mark.parametrize("e", IMPROVED, ids=lambda e: e.name)
def test_stage_2_flags_are_accepted(e):
    dbpo_ppo.parse(["--init", "x.pt", *map(str, e.stage2)])


@pytest.mark.parametrize("command", sorted({e.command for e in EXPERIMENTS}))
def test_commands_are_accepted(command):
    python, script, *flags = shlex.split(command)
    assert python == "python" and (ROOT / script).exists()
    if script == "reproduce.py":
        reproduce.parse(flags)


def test_same_run_has_the_same_flags():
    """Experiments that share a run train the same: K 4, tau 0.2 and chunk are the defaults."""
    for e in EXPERIMENTS:
        if e.same_run_as:
            twin = next(t for t in EXPERIMENTS if t.name == e.same_run_as and t.budget == e.budget)
            flags = [dbp_train.parse(list(map(str, x.stage1))) for x in (e, twin)]
            for args in flags:
                dbp_flags.fill_defaults(args, TASKS["pusht"])
            assert flags[0] == flags[1]
            assert e.demos == twin.demos
