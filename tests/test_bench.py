"""bench.py: it runs, reports what its header promises, and its ratios are numbers. No timing is asserted."""
import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import bench
from conftest import cli as cli_run
from runs import cli


def timed(row):
    return set(row) == {"p50_ms", "p99_ms", "hz"} and all(math.isfinite(v) and v > 0 for v in row.values()) \
        and row["p50_ms"] <= row["p99_ms"]


def test_quantiles_by_hand():
    assert bench.quantiles([0.001] * 50 + [0.002] + [0.003] * 50) == {"p50_ms": 2.0, "p99_ms": 3.0, "hz": 500.0}


@pytest.mark.parametrize("mode,temp", [("chunk", [0.2]), ("step", [0.1, 0.5])])
def test_train(monkeypatch, mode, temp):
    seen = []
    real = bench.chunk_loss
    monkeypatch.setattr(bench, "chunk_loss", lambda x, pos, **kw: seen.append((tuple(x.shape), kw)) or real(x, pos, **kw))
    r = bench.train(Namespace(dims=[8, 16], batch=3, K=2, temp=temp, mode=mode, device="cpu", n=3))
    assert set(r) == {"drift_step", "mse_step", "ratio_p50", "ratio_quartiles", "ratio_to_K1", "drift_loss_alone",
                      "peak_mb"}
    assert 50 < r["peak_mb"] < 100_000
    assert all(timed(r[k]) for k in ("drift_step", "mse_step", "drift_loss_alone"))
    assert 0 < r["ratio_quartiles"][0] <= r["ratio_p50"] <= r["ratio_quartiles"][1] < math.inf
    assert 0 < r["ratio_to_K1"] < math.inf
    assert {s[0] for s in seen} == {(3, 2, 16, 2), (3, 1, 16, 2)} and all(s[1] == {"temps": temp, "mode": mode} for s in seen)


def test_infer(monkeypatch):
    """Both networks are timed (their sizes cut down here), each act call as it is at batch 1."""
    asked, real = [], bench.make_policy
    monkeypatch.setattr(bench, "make_policy", lambda dims, device: asked.append(dims) or real((8, 16), device))
    r = bench.infer(Namespace(device="cpu", n=3, compile=False))
    assert asked == [(64, 128, 256), (512, 1024, 2048)]
    assert set(r) == {"small eager", "paper eager"} and all(map(timed, r.values()))


def test_latency():
    """Every method acts with the evaluations its row names, counted; the ratios are of the p50s."""
    r = bench.latency(Namespace(dims=(8, 16), device="cpu", n=2, compile=False))
    assert {k: v["nfe"] for k, v in r.items()} == {"generator alone, eager": 1, "dbp, 1 NFE, eager": 1, "meanflow, 1 NFE, eager": 1,
                                                   "diffusion, 10 NFE, eager": 10, "diffusion, 100 NFE, eager": 100}
    for row in r.values():
        assert row["ratio_to_dbp"] == pytest.approx(row["p50_ms"] / r["dbp, 1 NFE, eager"]["p50_ms"], rel=0.02)
    assert r["diffusion, 100 NFE, eager"]["ratio_to_generator"] > r["diffusion, 10 NFE, eager"]["ratio_to_generator"] > 3


def test_command(tmp_path, monkeypatch, capsys):
    flags = f"--dims 8 16 --batch 2 --K 2 --n 2 --device cpu --json {tmp_path}/b.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "train", *flags.split()])
    cli(bench.main)
    result = json.loads((tmp_path / "b.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["bench"] == "train" and result["flags"]["K"] == 2 and "torch" in result["versions"]
    assert math.isfinite(result["ratio_p50"])


def test_bad_n(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", "bench.py infer --n 0".split())
    with pytest.raises(SystemExit) as e:
        cli(bench.main)
    assert e.value.code == 2 and capsys.readouterr().err == "error: --n must be above 0, not 0\n"


def test_ppo(tmp_path):
    """The real trainer is timed, with one generator call a sample and with two."""
    code, out, err = cli_run("bench.py", "ppo", "--task", "hopper", "--dims", 8, 16, "--envs", 2, "--chunks", 4, "--turns", 1,
                                "--one-process", "--device", "cpu", "--threads", 1)
    assert code == 0, err
    r = json.loads(out)
    assert (r["envs"], r["chunks"]) == (2, 4)
    for calls in ("one_call", "two_calls"):
        shares = [r[calls][f"share_{k}"] for k in ("simulator", "network", "update")]
        assert min(shares) > 0 and sum(shares) == pytest.approx(1, abs=0.01) and r[calls]["update_samples_per_s"] > 0
    assert r["iteration_ratio"] > 0


def test_clouds():
    r = bench.clouds(Namespace(task="metaworld-reach", n=2))
    assert r["rays"] == 84 ** 2 and 100 < r["points_in_crop"] < 84 ** 2
    assert all(timed(r[k]) for k in ("settle", "promising rays", "all rays", "sampling", "observation"))


def test_cost_ratios(monkeypatch):
    """Eq. 58: each batch against its own K = 1."""
    def run(command, **kw):
        flag = lambda name: command[command.index(name) + 1]
        B, K = int(flag("--batch")), int(flag("--K"))
        Path(flag("--json")).write_text(json.dumps({"drift_step": {"p50_ms": B * K}, "ratio_to_K1": (1 + K) / 2,
                                                       "peak_mb": B + K}))
        return Namespace(returncode=0)
    monkeypatch.setattr(bench.subprocess, "run", run)
    rows = bench.cost(Namespace(dims=["auto"], device=None, threads=None))
    assert len(rows) == 15 and [r["r_time"] for r in rows[5:10]] == [1, 1.5, 2.5, 4.5, 8.5]
    assert rows[-1]["r_memory"] == round((128 + 16) / (128 + 1), 3)
