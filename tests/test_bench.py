"""bench.py: it runs, reports what its header promises, and its ratios are numbers.

No timing is asserted, but that more network evaluations take longer.
"""

import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
import bench_stage2
import dbpo_ppo
import envs
import made_up
import timing
import unet
from commands import BadInput, cli
from conftest import cli as cli_run
from conftest import make_renderer
from dbpo_loss import Actor
from envs import TASKS, make_env
from pointcloud import cast
from test_cameras import TWO


def is_timing(row):
    """Whether a row holds quantiles, and they are possible."""
    return (
        set(row) == {"p50_ms", "p99_ms", "hz"}
        and all(math.isfinite(v) and v > 0 for v in row.values())
        and row["p50_ms"] <= row["p99_ms"]
    )


def test_quantiles_by_hand():
    seconds = [0.001] * 50 + [0.002] + [0.003] * 50
    assert timing.quantiles(seconds) == {"p50_ms": 2.0, "p99_ms": 3.0, "hz": 500.0}


def test_calls_take_turns():
    made = []
    calls = {"a": lambda: made.append("a"), "b": lambda: made.append("b")}
    seconds = timing.timed_in_turn(calls, 2, "cpu", warm=1)
    assert "".join(made) == "ababab" and {k: len(s) for k, s in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("name", ["pusht", "hopper", "metaworld-reach"])
def test_policies_and_observations_of_a_task(name):
    """They fit each other and the task, whatever it sees."""
    task = TASKS[name]
    policy = bench.make_policy((8, 16), "cpu", task)
    chunk = policy.act(made_up.random_obs(policy, 3))
    assert chunk.shape == (3, task.T_p, task.D_a)


def train_args(**change):
    """The flags of `bench.py train`, of a small network and few repetitions."""
    args = {"task": "pusht", "encoder": None, "dims": [8, 16], "batch": 3, "K": 2, "temp": [0.2]}
    return Namespace(**{**args, "mode": "chunk", "device": "cpu", "n": 3, **change})


@pytest.mark.parametrize("mode, temp", [("chunk", [0.2]), ("step", [0.1, 0.5])])
def test_train(monkeypatch, mode, temp):
    seen = []
    real = bench.chunk_loss

    def recorded(x, pos, **kw):
        seen.append((tuple(x.shape), kw))
        return real(x, pos, **kw)

    monkeypatch.setattr(bench, "chunk_loss", recorded)
    r = bench.train(train_args(temp=temp, mode=mode))
    assert set(r) == {
        "drift_step",
        "mse_step",
        "ratio_p50",
        "ratio_quartiles",
        "ratio_to_K1",
        "drift_loss_alone",
        "peak_mb",
        "parts",
    }
    assert set(r["parts"]) == {"data", "encoder", "generator", "drift", "optimiser"}
    assert sum(part["share"] for part in r["parts"].values()) == pytest.approx(1, abs=1e-3)
    assert 50 < r["peak_mb"] < 100_000
    assert all(is_timing(r[k]) for k in ("drift_step", "mse_step", "drift_loss_alone"))
    assert 0 < r["ratio_quartiles"][0] <= r["ratio_p50"] <= r["ratio_quartiles"][1] < math.inf
    assert 0 < r["ratio_to_K1"] < math.inf
    assert {shape for shape, _ in seen} == {(3, 2, 16, 2), (3, 1, 16, 2)}
    assert all(kw == {"temps": temp, "mode": mode} for _, kw in seen)


def test_train_with_cameras(monkeypatch):
    """The encoder has its share; a task without cameras takes no encoder."""
    monkeypatch.setitem(envs.TASKS, TWO.name, TWO)
    parts = bench.train(train_args(task="two-cameras"))["parts"]
    assert min(parts[name]["ms"] for name in ("data", "encoder", "generator", "drift")) > 0
    with pytest.raises(BadInput, match="--encoder is not used by pusht, which has no camera"):
        bench.train(train_args(encoder="small"))


def test_laps_by_hand(monkeypatch):
    """Two rounds count after the first; a part that comes twice a round is added up."""
    times = iter([0, 1, 2, 3, 10, 11, 13, 16, 20, 21, 25, 30])
    monkeypatch.setattr(timing, "clock", lambda device: next(times))
    laps = timing.Laps("cpu")
    for _ in range(3):
        laps.begin()
        for part in ("a", "b", "a"):
            laps.end(part)
    found = laps.medians(warm=1)
    assert found == {"a": {"ms": 5000.0, "share": 0.625}, "b": {"ms": 3000.0, "share": 0.375}}


def test_infer(monkeypatch):
    """Both networks are timed (their sizes are cut down here), each act call at batch 1."""
    asked = []
    real = bench.make_policy

    def tiny(dims, device, task, **kw):
        asked.append((dims, *kw.values()))
        return real((8, 16), device, task, **kw)

    monkeypatch.setattr(bench, "make_policy", tiny)
    monkeypatch.setitem(envs.TASKS, TWO.name, TWO)
    how = {"device": "cpu", "n": 3, "compile": False, "onnx": None}
    r = bench.infer(Namespace(task="pusht", **how))
    small = (64, 128, 256)
    paper = (512, 1024, 2048)
    assert asked == [(small,), (paper,)]
    assert set(r) == {"small eager", "paper eager"} and all(map(is_timing, r.values()))
    asked.clear()
    r = bench.infer(Namespace(task="two-cameras", **how))
    assert asked == [(dims, kind) for dims in (small, paper) for kind in ("small", "resnet18")]
    assert list(r)[:2] == ["small, small eager", "small, resnet18 eager"] and len(r) == 4
    assert all(map(is_timing, r.values()))


def test_latency():
    """Every method acts with the evaluations its row names, counted; the ratios are of the p50s."""
    r = bench.latency(Namespace(dims=(8, 16), device="cpu", n=2, compile=False))
    assert {name: row["nfe"] for name, row in r.items()} == {
        "generator alone, eager": 1,
        "dbp, 1 NFE, eager": 1,
        "meanflow, 1 NFE, eager": 1,
        "diffusion, 10 NFE, eager": 10,
        "diffusion, 100 NFE, eager": 100,
    }
    dbp = r["dbp, 1 NFE, eager"]["p50_ms"]
    for row in r.values():
        assert row["ratio_to_dbp"] == pytest.approx(row["p50_ms"] / dbp, rel=0.02)
    ten = r["diffusion, 10 NFE, eager"]["ratio_to_generator"]
    assert r["diffusion, 100 NFE, eager"]["ratio_to_generator"] > ten > 3


def test_command(tmp_path, monkeypatch, capsys):
    flags = f"--dims 8 16 --batch 2 --K 2 --n 2 --device cpu --json {tmp_path}/b.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "train", *flags.split()])
    cli(bench.main)
    result = json.loads((tmp_path / "b.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["bench"] == "train" and result["flags"]["K"] == 2
    assert "torch" in result["versions"] and math.isfinite(result["ratio_p50"])


@pytest.mark.parametrize(
    "command, message",
    [
        ("infer --n 0", "--n must be above 0, not 0"),
        ("train --dims 8 -8", "--dims must be above 0, not -8"),
        ("train --encoder small --n 1", "--encoder is not used by pusht, which has no camera"),
        ("infer --K 4", "unrecognized arguments: --K 4 (see --help)"),
        ("clouds --task pusht", "pusht is not seen as a point cloud"),
    ],
)
def test_bad_input(monkeypatch, capsys, command, message):
    monkeypatch.setattr(sys, "argv", ["bench.py", *command.split()])
    with pytest.raises(SystemExit) as e:
        cli(bench.main)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_two_generator_calls_are_made_by_the_actor_alone(monkeypatch):
    """They change the cost, not the mean action, and neither the anchor nor the evaluation."""
    generate = unet.UNet1d.generate
    made = []

    def counted(net, z, h):
        made.append(len(z))
        return generate(net, z, h)

    policy = bench.make_policy((8, 16), "cpu")
    actor = Actor(policy, 0.1, (0.5, 2), rho=0.9)
    obs = made_up.random_obs(policy, 3)
    z = policy.latent(3)
    wanted, _ = actor(obs, z)
    found = []

    def train(args):
        found.append(actor(obs, z)[0])
        made.append("anchor")
        policy(obs, z)

    monkeypatch.setattr(unet.UNet1d, "forward", unet.UNet1d.forward)  # to be put back in the end
    monkeypatch.setattr(unet.UNet1d, "generate", counted)
    monkeypatch.setattr(dbpo_ppo, "train", train)
    monkeypatch.setattr(dbpo_ppo, "parse", lambda argv=None: None)
    bench_stage2.stage2(2)
    assert made == [3, 3, "anchor", 3]
    torch.testing.assert_close(found[0], wanted)


def test_ppo():
    """The real trainer is timed, with one generator call a sample and with two."""
    flags = "--task hopper --dims 8 16 --num-envs 2 --num-steps 4 --turns 1 --one-process"
    code, out, err = cli_run("bench.py", "ppo", *flags.split(), "--device", "cpu", "--threads", 1)
    assert code == 0, err
    r = json.loads(out)
    assert (r["num_envs"], r["num_steps"]) == (2, 4)
    for calls in ("one_call", "two_calls"):
        shares = [r[calls][f"share_{part}"] for part in ("simulator", "network", "update")]
        assert min(shares) > 0 and sum(shares) == pytest.approx(1, abs=0.01)
        assert r[calls]["update_samples_per_s"] > 0
    assert r["iteration_ratio"] > 0


def test_rates_by_hand():
    """Medians over the iterations: 10 chunks of 4 steps in 2 s, 3 passes over them in 6 s."""
    rows = [
        {"sim_s": 1.0, "rollout_s": 2.0, "update_s": 6.0},
        {"sim_s": 1.0, "rollout_s": 2.0, "update_s": 6.0},
        {"sim_s": 9.0, "rollout_s": 9.0, "update_s": 9.0},
    ]
    flags = {"num_envs": 2, "num_steps": 5, "update_epochs": 3}
    assert bench_stage2.rates(rows, flags, 4) == {
        "rollout_env_steps_per_s": 20,
        "update_samples_per_s": 5,
        "share_simulator": 0.125,
        "share_network": 0.125,
        "share_update": 0.75,
        "iteration_s": 8.0,
    }


def test_clouds():
    r = bench.clouds(Namespace(task="metaworld-reach", n=2))
    assert r["rays"] == 84**2 and 100 < r["points_in_crop"] < 84**2
    for part in ("settle", "promising rays", "all rays", "sampling", "observation"):
        assert is_timing(r[part])


def test_rendered_depth_lands_where_the_rays_do():
    """The renderer's points are those of the rays, but for the edges of geoms."""
    env = make_env(TASKS["metaworld-reach"])
    env.reset(seed=0)
    make_renderer(env.model, 8).close()  # skips without OpenGL
    data = env.settled()
    points = bench.rendered_depth(env.model, data, env.camera)()
    hit, _ = cast(env.model, data, env.camera)
    assert np.nanmedian(np.linalg.norm(points - hit, axis=1)) < 0.01


def test_cost_ratios(monkeypatch):
    """Eq. 58: each batch against its own K = 1."""

    def run(command, **kw):
        flags = dict(zip(command[3::2], command[4::2]))
        B = int(flags["--batch"])
        K = int(flags["--K"])
        found = {"drift_step": {"p50_ms": B * K}, "ratio_to_K1": (1 + K) / 2, "peak_mb": B + K}
        Path(flags["--json"]).write_text(json.dumps(found))
        return Namespace(returncode=0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    rows = bench.cost(Namespace(dims=["auto"], device=None, threads=None))
    assert len(rows) == 15
    assert [row["r_time"] for row in rows[5:10]] == [1, 1.5, 2.5, 4.5, 8.5]
    assert rows[-1]["r_memory"] == round((128 + 16) / (128 + 1), 3)


def test_cost_says_what_failed(monkeypatch):
    failed = Namespace(returncode=2, stderr="a warning\nerror: no such device\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **kw: failed)
    with pytest.raises(BadInput, match="B 32, K 1 failed: error: no such device"):
        bench.cost(Namespace(dims=None, device="cuda:9", threads=None))
