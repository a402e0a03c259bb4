"""reproduce.py: the summary's arithmetic, tables that grow row by row, runs that are not made twice."""
import csv
import json

import numpy as np
import pytest

import reproduce
from conftest import cli as command
from data import Chunks, load, save_npz
from envs import TASKS


def run(task, seed, top, last):
    return {"task": task, "group": TASKS[task].group, "seed": str(seed), "top": str(top), "last": str(last),
            "epochs": "100"}


def test_paper_rows():
    """The paper's averages are those of its 37 tasks, not of its columns; OMP's stands 0.4 below its own columns'."""
    sizes = [1, 1, 1, 21, 4, 4, 5]
    off = [average - np.dot(columns, sizes) / 37 for *columns, average in reproduce.TABLE_2.values()]
    np.testing.assert_allclose(off, [0, -0.41, 0], atol=0.06)
    assert len(reproduce.CLOUDS) == 37


def test_summary():
    rows = [run("metaworld-door-open", 0, 1.0, 0.8), run("metaworld-door-open", 1, 0.8, 0.6),
            run("metaworld-reach", 0, 0.5, 0.4), run("adroit-pen", 0, 0.7, 0.6)]
    text = reproduce.summary(rows).splitlines()
    assert [c.strip() for c in text[0].split("|")[2:-1]] == [*reproduce.COLUMNS, "all 37"]
    top, last = ([c.strip() for c in line.split("|")[2:-1]] for line in text[-2:])
    assert top == ["—", "—", "70.0 (tasks 1, runs 1)", "70.0 ± 10.0 (tasks 2, runs 3)", "—", "—", "—", "—"]
    assert last[3] == "55.0 ± 10.0 (tasks 2, runs 3)"
    longer = {**rows[2], "epochs": "1000", "last": 0.9}
    assert reproduce.summary([longer, *rows]).splitlines()[-1] == reproduce.summary([*rows[:2], longer, rows[3]]).splitlines()[-1]


def test_merge(tmp_path):
    path = tmp_path / "t.csv"
    reproduce.merge(path, {"a": 1, "b": 2}, "a")
    reproduce.merge(path, {"a": 2, "b": 3}, "a")
    assert reproduce.merge(path, {"a": 1, "b": 9, "c": 0}, "a")[-1] == {"a": "1", "b": "9", "c": "0"}
    assert [r["b"] for r in csv.DictReader(open(path))] == ["3", "9"]


def test_pointcloud(tmp_path, monkeypatch, capsys):
    """A run by the protocol, twice: the second time only the table is written again."""
    task, rng = TASKS["metaworld-reach"], np.random.default_rng(0)
    save_npz(tmp_path / "metaworld-reach.npz", state=rng.normal(size=(40, 9)), points=rng.normal(size=(40, 512, 3)),
             action=rng.uniform(-1, 1, (40, 4)), episode_ends=np.array([20, 40]))
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path))
    flags = ["reproduce.py", "pointcloud", "--tasks", task.name, "--seeds", 0, "--epochs", 2, "--every", 1, "--demos", 2,
             "--episodes", 1, "--dims", 8, 16, "--device", "cpu", "--out", tmp_path / "runs", "--results", tmp_path / "results"]
    code, text, err = command(*flags)
    assert code == 0 and "metaworld-reach, seed 0: last 0.00" in text and "| DBP, the paper | 100 |" in text, err
    row, = csv.DictReader(open(tmp_path / "results" / "pointcloud.csv"))
    assert row["of"].endswith("of 1") and row["steps"] == "2" and row["epochs"] == "2" and row["commit"] and row["date"]
    again = command(*flags)[1]
    assert "dbp_train.py" in text and "dbp_train.py" not in again and again.splitlines()[-7:] == text.splitlines()[-7:]
    code, _, err = command("reproduce.py", "pointcloud", "--tasks", "hopper")
    assert code == 2 and "hopper: not seen as a point cloud" in err


def test_interval_over_seeds():
    rows = [{"setting": "a", "score": s} for s in ("0.8", "0.9", "0.7")] + [{"setting": "b", "score": "0.5"}]
    values, mean, half = reproduce.seeds_of(rows, "a")
    assert sorted(values) == [0.7, 0.8, 0.9] and mean == pytest.approx(0.8) and half == pytest.approx(4.30 * 0.1 / 3 ** 0.5)
    assert np.isnan(reproduce.seeds_of(rows, "b")[2])


def test_methods_and_ablation(demos, tmp_path):
    """Every method and number of evaluations becomes a row, once; an ablation of another length is not mixed in."""
    common = ["--seeds", 0, "--data", demos, "--dims", 8, 16, "--batch", 4, "--episodes", 1, "--eval-every", 0, "--device", "cpu",
              "--one-process", "--out", tmp_path / "runs", "--results", tmp_path / "results"]
    flags = ["reproduce.py", "pusht", "--methods", "dbp", "meanflow", "--steps", 2, *common]
    code, text, err = command(*flags)
    assert code == 0 and "| meanflow, 1 NFE |" in text and "| 0.87 |" in text, err
    rows = list(csv.DictReader(open(tmp_path / "results" / "pusht_methods.csv")))
    assert [(r["setting"], float(r["nfe"])) for r in rows] == [("dbp, 1 NFE", 1), ("meanflow, 1 NFE", 1)]
    assert all(float(r["jerk"]) > 0 and r["date"] and r["commit"] for r in rows)
    assert {"pusht_methods.png", "pusht_methods.md"} <= {p.name for p in (tmp_path / "results").iterdir()}
    assert "dbp_train.py" not in command(*flags)[1]
    code, text, err = command("reproduce.py", "efficiency", *flags[2:])
    curve = list(csv.DictReader(open(tmp_path / "results" / "efficiency.csv")))
    assert code == 0 and [(r["method"], r["step"]) for r in curve] == [("dbp", "2"), ("meanflow", "2")], err
    windows = len(Chunks(load(TASKS["pusht"], demos, None), 2, 16, 8))
    assert all(float(r["epochs"]) == round(2 / (windows // 4), 2) for r in curve)
    mode = ["reproduce.py", "ablate", "mode", "--demos", 2, *common]
    for steps in (2, 3):
        code, text, err = command(*mode, "--steps", steps)
        assert code == 0 and len([line for line in text.splitlines() if line.startswith(("| chunk", "| step"))]) == 2, err
    rows = list(csv.DictReader(open(tmp_path / "results" / "ablate_mode.csv")))
    assert len(rows) == 4 and all(float(r["spread"]) > 0 for r in rows)
    beyond = ["reproduce.py", "ablate", "beyond", "--demos", 2, *common, "--steps", 2, "--start-seed", 200000, "--settings"]
    code, text, err = command(*beyond, "K 4", "temp-start 4, memory 16")
    assert code == 0 and "| temp-start 4, memory 16 |" in text and "spread 1" not in text, err
    flags = json.loads((tmp_path / "runs" / "pusht-temp-start4-memory16-steps2-dims8-dims16-seed0" / "flags.json").read_text())["flags"]
    assert (flags["temp_start"], flags["memory"]) == (4, 16)
    assert {r["start_seed"] for r in csv.DictReader(open(tmp_path / "results" / "ablate_beyond.csv"))} == {"200000"}
    code, _, err = command(*beyond, "K 4", "--demos", 1)
    assert code == 2 and "--demos 2" in err and "--out" in err
    code, _, err = command(*beyond, "K 5")
    assert code == 2 and "K 5" in err and "temp-start 16" in err


@pytest.mark.parametrize("flags, told", [(("pusht", "--minutes", "0"), "--minutes must be above 0"),
                                         (("ablate", "K", "--demos", "0"), "--demos must be above 0"),
                                         (("multimodal", "--steps", "0"), "--steps must be above 0"),
                                         (("pusht", "--device", "nowhere"), "--device nowhere cannot be used")])
def test_bad_flags_train_nothing(flags, told, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["reproduce.py", *flags, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        reproduce.cli(reproduce.main)
    assert end.value.code == 2 and told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_multimodal(demos, tmp_path):
    """A row for each task, method and seed, and a picture, of the runs that `pusht` makes."""
    code, text, err = command("reproduce.py", "multimodal", "--methods", "dbp", "meanflow", "--steps", 2, "--fork-steps", 2,
                              "--seeds", 0, 1, "--data", demos, "--dims", 8, 16, "--batch", 4, "--episodes", 1, "--eval-every", 0,
                              "--device", "cpu", "--one-process", "--out", tmp_path / "runs", "--results", tmp_path / "results")
    assert code == 0, err
    rows = list(csv.DictReader(open(tmp_path / "results" / "multimodal.csv")))
    assert [(r["setting"], r["seed"], r["task"]) for r in rows] == [
        (m, s, t) for m in ("dbp", "meanflow") for s in "01" for t in ("fork", "pusht")]
    assert {"| fork | dbp |", "| pusht | meanflow |"} <= {" ".join(line.split()[:5]) for line in text.splitlines()}
    assert (tmp_path / "results" / "multimodal.png").stat().st_size > 10_000
