"""reproduce.py: runs that are not made twice, tables that grow row by row, what is missing."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import dbp_flags
import dbp_train
import reproduce
import reproduce_clouds
import reproduce_pusht
import reproduce_runs
import reproduce_stage2
import reproduce_suites
from commands import BadInput, flags_of
from conftest import ROOT
from data import Windows, load
from envs import TASKS
from experiment_row import Budget, Starts
from experiments import EXPERIMENTS, PUSHT_CONVERGED, QUEUE
from files import Lock
from formats import save_npz
from plots import FIGURES
from tables import Results, read

TINY = ["--dims", 8, 16, "--device", "cpu", "--one-process"]


def folders(tmp_path):
    """Flags for run folders and tables of the test's own."""
    return ["--out", tmp_path / "runs", "--results", tmp_path / "results"]


@pytest.fixture
def run(capsys):
    """A function that runs a command of reproduce.py and returns what it printed."""

    def run_it(*flags):
        capsys.readouterr()
        reproduce.main([str(flag) for flag in flags])
        return capsys.readouterr().out

    return run_it


@pytest.fixture
def pusht(demos, tmp_path):
    """Flags of tiny runs on Push-T."""
    return [
        *("--seeds", 0, "--data", demos, "--batch", 4, "--episodes", 1, "--eval-every", 0),
        *TINY,
        *folders(tmp_path),
    ]


def test_pointcloud(run, tmp_path, monkeypatch):
    """A run by the protocol, twice: the second time only the table is written again."""
    task = TASKS["metaworld-reach"]
    rng = np.random.default_rng(0)
    save_npz(
        tmp_path / "metaworld-reach.npz",
        state=rng.normal(size=(40, 9)),
        points=rng.normal(size=(40, 512, 3)),
        action=rng.uniform(-1, 1, (40, 4)),
        episode_ends=np.array([20, 40]),
    )
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path))
    flags = ["pointcloud", "--tasks", task.name, "--seeds", 0, "--epochs", 2]
    flags += ["--every", 1, "--demos", 2, "--episodes", 1, *TINY, *folders(tmp_path)]
    text = run(*flags)
    assert "metaworld-reach, seed 0: last 0.00" in text and "| DBP, the paper | 100 |" in text
    (row,) = read(tmp_path / "results" / "pointcloud.csv")
    assert row["of"].endswith("of 1") and row["steps"] == "2" and row["epochs"] == "2"
    assert row["commit"] and row["date"]
    again = run(*flags)
    assert "dbp_train.py" in text and "dbp_train.py" not in again
    assert again.splitlines()[-7:] == text.splitlines()[-7:]


def test_pointcloud_refuses_other_tasks():
    with pytest.raises(BadInput, match="hopper is not seen as a point cloud"):
        reproduce.main(["pointcloud", "--tasks", "hopper"])


def test_methods(run, pusht, demos, tmp_path):
    """Every method and number of evaluations becomes a row, once; `efficiency` reads the logs."""
    flags = ["--methods", "dbp", "bc", "--steps", 2, *pusht]
    text = run("pusht", *flags)
    assert "dbp_train.py" in text and "| bc, 1 NFE-trial |" in text and "| 0.870 |" in text
    rows = read(tmp_path / "results" / "pusht_methods.csv")
    settings = ["dbp, 1 NFE-trial", "bc, 1 NFE-trial"]  # other data, a smaller batch
    assert [(r["setting"], float(r["nfe"])) for r in rows] == [(name, 1) for name in settings]
    assert all(float(r["jerk"]) > 0 and r["date"] and r["commit"] for r in rows)
    assert [r["length"] for r in rows] == ["2 steps", "2 steps"]
    assert float(rows[0]["diversity"]) > 0 and rows[1]["diversity"] == ""
    assert "dbp_train.py" not in run("pusht", *flags)

    assert "dbp_train.py" not in run("efficiency", *flags)
    curve = read(tmp_path / "results" / "efficiency-trial.csv")
    assert [(r["method"], r["step"]) for r in curve] == [("dbp", "2"), ("bc", "2")]
    windows = len(Windows(load(TASKS["pusht"], demos), 2, 16, 8))
    assert all(float(r["epochs"]) == round(2 / (windows // 4), 2) for r in curve)


def test_ablation_of_another_length_is_not_mixed_in(run, pusht, tmp_path):
    flags = ["--demos", 2, *pusht, "--settings", "chunk", "--steps"]
    for steps in (2, 3):
        text = run("ablate", "mode", *flags, steps)
        lines = [line for line in text.splitlines() if line.startswith("| chunk")]
        assert len(lines) == 1 and "±" not in lines[0]
    rows = read(tmp_path / "results" / "ablate_mode.csv")
    assert len(rows) == 2 and all(float(r["diversity"]) > 0 for r in rows)
    # chunk is K 4's run under another name, so `ablate K` does not train it again
    flags[flags.index("chunk")] = "K 4"
    text = run("ablate", "K", *flags, 2)
    assert "dbp_train.py" not in text and "| K 4-trial |" in text


def test_ablation_beyond(run, pusht, tmp_path):
    """Named settings alone; other data and unknown or removed settings are refused."""
    flags = ["ablate", "beyond", *pusht, "--steps", 2, "--start-seed", 200000, "--demos"]
    text = run(*flags, 2, "--settings", "memory 16")
    assert "| memory 16-trial |" in text and "spread 1" not in text
    out = tmp_path / "runs" / "pusht-memory16-steps2-dims8-dims16-seed0-trial"
    assert json.loads((out / "flags.json").read_text())["flags"]["memory"] == 16
    (row,) = read(tmp_path / "results" / "ablate_beyond.csv")
    assert row["start_seed"] == "200000"
    with pytest.raises(BadInput, match="holds a run with other --demos: give the same, or another"):
        run(*flags, 1, "--settings", "memory 16", "--results", tmp_path / "others")
    with pytest.raises(BadInput, match="temp-start 4.*spread 1"):
        run(*flags, 2, "--settings", "temp-start 4")


@pytest.mark.parametrize(
    "flags, told",
    [
        (("pusht", "--minutes", "0"), "--minutes must be above 0"),
        (("ablate", "K", "--demos", "0"), "--demos must be above 0"),
        (("multimodal", "--steps", "0"), "--steps must be above 0"),
        (("stage2", "--tasks", "hopper", "--num-envs", "0"), "--num-envs must be above 0"),
        (("stage2", "--tasks", "pusht-shipped", "--no-anchor"), "pusht-shipped is not run without"),
        (("pusht", "--device", "nowhere"), "--device nowhere cannot be used"),
        (("pusht", "--seeds", "0", "-1"), "--seeds must lie in 0 .. 9223372036854775807, not -1"),
        (("stage2", "--tasks", "hopper", "--seeds", str(2**63)), "--seeds must lie in"),
        (("pusht", "--start-seed", "-1"), "--start-seed must lie in 0 .. 4294967246, not -1"),
        (("ablate", "K", "--start-seed", str(2**32 - 49)), "--start-seed must lie in"),
        (("survey", "--png", "."), "--png . is a folder"),
        (("survey", "--png", "/dev/null/x.png"), "--png /dev/null/x.png cannot be written"),
        (("pusht", "--results", "/dev/null"), "--results /dev/null is a file"),
    ],
)
def test_bad_flags_train_nothing(flags, told, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["reproduce.py", *flags, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        reproduce.cli(reproduce.main)
    assert end.value.code == 2 and told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_told_before_the_work(pusht, tmp_path):
    table = tmp_path / "results" / "pusht_methods.csv"
    table.parent.mkdir()
    table.write_bytes(b"setting,seed\n\xff")
    with pytest.raises(BadInput, match="pusht_methods.csv is not a table"):
        reproduce.main(["pusht", "--steps", "2", *map(str, pusht)])
    assert not (tmp_path / "runs").exists()


def flags_json(out, flags):
    """Write the flags.json of a run of dbp_train.py on Push-T."""
    args = dbp_train.parse(["--task", "pusht", *flags])
    dbp_flags.resolve(args)
    (out / "flags.json").write_text(json.dumps({"flags": flags_of(args)}))


@pytest.mark.parametrize(
    "log, told",
    [
        (None, "holds log.csv, but no rows in log.jsonl: move the folder away"),
        (b"\xff\x00[[[", "no rows in log.jsonl"),
        (b'{"step": 1, "loss": 2}\n', "log.jsonl lacks the column 'score': move the folder away"),
    ],
)
def test_a_damaged_log_is_told(tmp_path, log, told):
    """Of a run that is finished, and so is not made again."""
    (tmp_path / "log.csv").touch()
    flags_json(tmp_path, [])
    if log is not None:
        (tmp_path / "log.jsonl").write_bytes(log)
    with pytest.raises(BadInput, match=told):
        reproduce_runs.values(reproduce_runs.finished("dbp_train.py", tmp_path), "score")


@pytest.mark.parametrize(
    "text",
    [None, b"\xff", b"{", b"[]", b"5", b"{}", b'{"flags": 3}', b'{"flags": null}'],
)
def test_damaged_flags_are_told(tmp_path, text):
    if text is not None:
        (tmp_path / "flags.json").write_bytes(text)
    with pytest.raises(BadInput, match="flags.json is damaged or missing: move the folder away"):
        reproduce_runs.check_same("dbp_train.py", tmp_path, [])


def test_a_finished_run_counts_for_its_own_flags_alone(tmp_path):
    """Files of data may have moved, and what changes no weight may differ."""
    flags_json(tmp_path, ["--data", "there/x.npz", "--dims", "8", "16"])
    same = ["--data", "here/x.npz", "--dims", 8, 16, "--threads", 1, "--K", 4]  # its default
    reproduce_runs.check_same("dbp_train.py", tmp_path, same)
    for change in (["--dims", 8, 8], ["--batch", 4], ["--data", "here/y.npz"], ["--demos", 3]):
        with pytest.raises(BadInput, match=f"holds a run with other {change[0]}"):
            reproduce_runs.check_same("dbp_train.py", tmp_path, [*same, *change])


def test_a_run_that_another_process_makes_is_told(pusht, tmp_path, capfd):
    """The trainer says which process holds its folder, and no row is written."""
    code = (
        "import files, sys, time; lock = files.Lock(sys.argv[1]); print(1, flush=True); "
        "time.sleep(60)"
    )
    out = tmp_path / "runs" / "pusht-bc-steps2-dims8-dims16-seed0-trial"
    out.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, out / ".lock"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        holder.stdout.readline()
        with pytest.raises(BadInput, match="dbp_train.py into .* ended with code 2"):
            reproduce.main(["pusht", "--methods", "bc", "--steps", "2", *map(str, pusht)])
        assert f"is being written by process {holder.pid}" in capfd.readouterr().err
    finally:
        holder.kill()
    assert read(tmp_path / "results" / "pusht_methods.csv") == []


STANDIN = """
import signal, sys, time
def told(*_):
    print("saved", file=sys.stderr)
    sys.exit(130)
signal.signal(signal.SIGINT, told)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of a parent's end")
@pytest.mark.parametrize("sent, code, told", [("INT", 130, "saved\n"), ("KILL", -9, "")])
def test_a_trainer_ends_with_its_parent(sent, code, told):
    """After Ctrl-C it is told once, saves, and is waited for; and nothing more is said."""
    script = "import sys, commands, envs; commands.cli(lambda: envs.run_program(sys.argv[1:]))"
    p = subprocess.Popen(
        [sys.executable, "-c", script, sys.executable, "-c", STANDIN],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert p.stdout.readline() == "ready\n"
    p.send_signal(signal.Signals[f"SIG{sent}"])
    out, err = p.communicate(timeout=30)  # which lasts until the trainer has closed its output too
    assert (p.returncode, err) == (code, told)


def test_budget_is_the_one_that_is_given():
    """--minutes has a default, which --steps and --epochs take the place of."""
    given = {"--steps 5": "5 steps", "--epochs 2": "2 epochs", "--minutes 3": "3 minutes"}
    for flags, budget in given.items():
        assert str(reproduce_runs.budget_of(reproduce.parse(["pusht", *flags.split()]))) == budget
    assert str(reproduce_runs.budget_of(reproduce.parse(["pusht"]))) == "15 minutes"
    assert reproduce_runs.budget_of(reproduce.parse(["ablate", "K"])) is None


def test_multimodal(run, pusht, tmp_path):
    """A row for each task and method, and plans to be drawn, of the runs of `pusht`."""
    flags = ["--methods", "dbp", "meanflow", "--steps", 2, "--fork-steps", 2]
    text = run("multimodal", *pusht, *flags)
    for path in (tmp_path / "results").glob("multimodal-trial*"):  # other data, a smaller batch
        path.rename(str(path).replace("-trial", ""))
    rows = read(tmp_path / "results" / "multimodal.csv")
    assert [(r["setting"], r["seed"], r["task"]) for r in rows] == [
        (m, "0", t) for m in ("dbp", "meanflow") for t in ("fork", "pusht")
    ]
    assert "| fork | DBP |" in text and "| Push-T | MeanFlow |" in text
    picture = tmp_path / "x.png"
    assert FIGURES["multimodal"].save(Results(tmp_path / "results"), picture)
    assert picture.stat().st_size > 10_000


def test_stage2(run, tmp_path):
    """Stage 1 and Stage 2 of a trial, its curve and final scores; nothing is run twice."""
    flags = ["stage2", "--tasks", "hopper", "--no-anchor", "--seeds", 0]
    flags += ["--steps", 2, "--num-envs", 2, "--num-steps", 2, "--num-iterations", 1]
    flags += ["--noise-episodes", 1]
    flags += ["--episodes", 1, *TINY, *folders(tmp_path)]
    assert "hopper-no-anchor-trial, seed 0:" in run(*flags)
    (row,) = read(tmp_path / "results" / "stage2.csv")
    assert row["setting"] == "hopper-no-anchor-trial" and float(row["after"]) != 0
    assert int(row["env_steps"]) > 0 and row["commit"]
    curve = read(tmp_path / "results" / "locomotion_dbpo.csv")
    assert curve[0]["run"] == "hopper-no-anchor-trial-seed0" and curve[0]["iteration"] == "0.0"
    flags_json = tmp_path / "runs" / "hopper-no-anchor-trial-seed0" / "flags.json"
    assert json.loads(flags_json.read_text())["flags"]["anchor"] == 0
    again = run(*flags)
    assert "dbp_train.py" not in again and "dbpo_ppo.py" not in again
    assert read(tmp_path / "results" / "stage2.csv") == [row]
    assert read(tmp_path / "results" / "locomotion_dbpo.csv") == curve


def test_suites(run, tmp_path):
    """A row tells of stages and modes; it is made once, and another setting beside it."""
    flags = ["suites", "--tasks", "blockpush", "--seeds", 0, "--steps", 2, "--demos", 3]
    flags += ["--episodes", 2, "--batch", 4, *TINY, *folders(tmp_path)]
    text = run(*flags, "--settings", "delta")
    assert "--task blockpush-delta" in text
    (row,) = read(tmp_path / "results" / "suites.csv")
    told = [row[k] for k in ("task", "setting", "length", "demos", "episodes")]
    assert told == ["blockpush-delta", "delta-trial", "2 steps", "3", "2"]
    assert float(row["p1"]) >= float(row["p2"]) and row["p3"] == ""
    assert sum(float(m.split(":")[1]) for m in row["modes"].split()) == pytest.approx(1)
    assert "dbp_train.py" not in run(*flags, "--settings", "delta")
    run(*flags, "--settings", "bc")
    rows = read(tmp_path / "results" / "suites.csv")
    assert [(r["setting"], float(r["nfe"])) for r in rows] == [("delta-trial", 1), ("bc-trial", 1)]


def test_image(run, demos, tmp_path):
    """A training leaves a row for each set of starts and a curve, and is made once."""
    flags = [
        "image",
        "--seeds",
        0,
        "--data",
        demos,
        "--steps",
        50,
        "--episodes",
        2,
        "--one-process",
    ]
    flags += ["--settings", "small, memory 16", *folders(tmp_path)]
    assert "--memory 16" in run(*flags)
    rows = read(tmp_path / "results" / "pusht_image.csv")
    assert [r["start_seed"] for r in rows] == ["100000", "600000"]
    for row in rows:
        told = [row[k] for k in ("setting", "steps", "demos", "encoder", "dims", "episodes")]
        assert told == ["small, memory 16-trial", "50", "3", "small", "32 64", "2"]
        assert float(row["least_diversity"]) == float(row["diversity"]) > 0
    (point,) = read(tmp_path / "results" / "pusht_image_curve.csv")
    assert point["run"] == "small, memory 16-trial, seed 0" and point["step"] == "50"
    assert float(point["score"]) == pytest.approx(float(rows[0]["score"]), abs=1e-4)
    assert "dbp_train.py" not in run(*flags)
    with pytest.raises(BadInput, match="--settings huge: choose from taught, small"):
        run("image", "--settings", "huge", *folders(tmp_path))


def test_suites_record_what_does_not_ship(tmp_path, monkeypatch):
    """The scripted demonstrations are made once, where fewer than are wanted ship."""
    args = reproduce.parse(["suites", "--out", str(tmp_path)])
    assert reproduce_suites.recorded("blockpush", 200, args) == ROOT / "demos" / "blockpush.npz"
    monkeypatch.setattr(reproduce_suites, "HERE", tmp_path)
    path = reproduce_suites.recorded("blockpush", 3, args)
    assert path == tmp_path / "blockpush-3.npz"
    assert len(load(TASKS["blockpush"], path)) == 3
    made = path.stat().st_mtime_ns
    assert reproduce_suites.recorded("blockpush", 3, args) == path
    assert path.stat().st_mtime_ns == made


def test_list(run, tmp_path):
    """Every experiment is named, with the seeds that the tables hold and those they lack."""
    lines = run("list").splitlines()
    assert len(lines) == len(EXPERIMENTS) + 1
    K_4 = next(line for line in lines if line.startswith("K           K 4"))
    assert "done: 0 1 2" in K_4 and "missing: -" in K_4
    hopper = next(line for line in lines if "hopper-white-no-anchor" in line)
    assert "done: 1 2" in hopper and "missing: 0" in hopper and "(its noise was white" in hopper
    empty = run("list", "--results", tmp_path).splitlines()
    assert all("done: - " in line for line in empty[:-1])


def tiny_queue(demos, monkeypatch, names=("bc", "dbp")):
    """A queue of two runs of 2 steps each, the second scored on two sets of starts."""
    folder = demos.parent / "drift-data"
    folder.mkdir()
    shutil.copy(demos, folder / TASKS["pusht"].data[-1])
    monkeypatch.setenv("DRIFT_DATA", str(folder))
    starts = (Starts(episodes=1, first_seed=7), Starts(episodes=1, first_seed=9))
    chosen = tuple(
        replace(
            next(e for e in PUSHT_CONVERGED if e.name == name),
            budget=Budget(2, "steps"),
            nfe=(1,),
            starts=starts[: 1 + (name == "dbp")],
            command="python reproduce.py pusht --steps 2 --eval-every 0",
        )
        for name in names
    )
    monkeypatch.setattr(reproduce, "QUEUE", ((chosen, (0,)),))


def test_no_run_of_the_queue_is_a_trial():
    """Its rows are those of the tables, so that they count as done."""
    is_trial = {
        "pusht": reproduce_pusht.is_trial,
        "stage2": lambda e, args: reproduce_stage2.is_trial(args),
        "image": lambda e, args: args.steps or args.episodes or args.data,
        "suites": lambda e, args: args.demos or args.batch,
        "pointcloud": lambda e, args: reproduce_clouds.changed(e, args) != (False, False, False),
    }
    for experiments, seeds in QUEUE:
        for experiment in experiments:
            for order in reproduce.orders(experiment, seeds[0]):
                assert not is_trial[experiment.group](experiment, reproduce.parse(order)), order


def test_the_queue_makes_what_is_missing_and_nothing_twice(run, demos, tmp_path, monkeypatch):
    """One run, then the other, then none; rows that are there are not made again."""
    tiny_queue(demos, monkeypatch)
    table = tmp_path / "results" / "pusht_methods.csv"
    assert "1 runs, 1 are missing" in run("queue", "--runs", 1, *folders(tmp_path))
    (first,) = read(table)
    assert first["setting"] == "bc, 1 NFE" and first["start_seed"] == "7"
    assert "1 runs, 0 are missing" in run("queue", *folders(tmp_path))
    rows = read(table)
    assert first in rows
    assert [r["start_seed"] for r in rows if r != first] == ["7", "9"]
    assert "0 runs, 0 are missing" in run("queue", *folders(tmp_path))
    assert read(table) == rows


def test_the_queue_passes_over_what_another_makes_and_what_fails(
    run, demos, tmp_path, monkeypatch, capsys
):
    """A run that another process holds is left to it; one that fails does not stop the next."""
    tiny_queue(demos, monkeypatch)
    taken = []

    def lock(path):  # a lock does not bind its own process, so the other one is played
        taken.append(path.name)
        if "bc" in path.name:
            raise BadInput("held")
        return Lock(path)

    def fails(*_):
        raise BadInput("no training")

    monkeypatch.setattr(reproduce, "Lock", lock)
    monkeypatch.setattr(reproduce_pusht, "finished", fails)
    with pytest.raises(BadInput, match="1 of 1 runs failed: dbp, seed 0"):
        run("queue", *folders(tmp_path))
    assert taken == [".queue-bc-seed0", ".queue-dbp-seed0"]
    assert "dbp, seed 0 failed: " in capsys.readouterr().err


def test_several_queues_are_processes(monkeypatch, tmp_path):
    """--cores 2 begins two queues of one core, and says so if one of them fails."""
    begun = []

    def run_program(command):
        begun.append(command)
        return len(begun) == 2

    monkeypatch.setattr(reproduce, "run_program", run_program)
    with pytest.raises(BadInput, match="a queue ended with an error"):
        reproduce.main(["queue", "--cores", "2", "--runs", "3", *map(str, folders(tmp_path))])
    assert len(begun) == 2 and begun[0] == begun[1]
    assert begun[0][2:5] == ["queue", "--cores", "1"] and begun[0][-2:] == ["--runs", "3"]
