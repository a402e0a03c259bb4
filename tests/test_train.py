"""dbp_train.py: it learns, a killed run resumes bit for bit, bad input costs one line.

Most runs happen in this process, with pictures and evaluation replaced (the fixture `quick`), as
those take longer than training.
"""

import copy
import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import commands
import dbp_report
import dbp_train
import drift
import envs
import saves
from commands import BadInput
from conftest import ROOT, cli, write_demos
from data import Windows, load
from dbp_flags import chosen_dims
from dbp_train import Budget, check_shares, lr_factor, progress
from envs import TASKS
from files import load_torch, save_torch
from formats import save_npz
from policy import EMA, Policy
from ranks import ALONE
from runs import read_log

SMALL = shlex.split(
    "--dims 8 16 --batch 8 --episodes 1 --device cpu --warmup 20 --lr 2e-3 --seed 0 --one-process"
)
PUSHT = TASKS["pusht"]


def parsed(*flags):
    """The flags of dbp_train.py after SMALL; a flag given here wins."""
    return dbp_train.parse([*SMALL, *map(str, flags)])


def train(*flags):
    """dbp_train.py with SMALL and these flags, in this process."""
    commands.cli(lambda: dbp_train.train(parsed(*flags)))


@pytest.fixture
def quick(monkeypatch):
    """No pictures, and an evaluation that costs nothing.

    Gives the list of the policies that were evaluated, each with its number of episodes.
    """
    seen = []

    def evaluate(policy, task, episodes, **kw):
        seen.append((policy, episodes))
        result = {
            "score": 0.5,
            "score_95": (0.4, 0.6),
            "success": 0.1,
            "success_95": (0.0, 0.2),
            "episodes": episodes,
            "seconds": 1.0,
            "network_s": 0.5,
            "network_ms": 1.0,
        }
        return result, None

    monkeypatch.setattr(dbp_report, "evaluate", evaluate)
    for name in ("curves", "hypotheses_figure"):
        monkeypatch.setattr(dbp_report, name, lambda *a: None)
    return seen


def training_rows(out):
    """The rows of the log that training wrote, not evaluation."""
    return [r for r in read_log(out) if "loss" in r]


def state_of(out):
    """The state.pt of a run folder."""
    return load_torch(out / "state.pt")


def policy_of(out):
    """The content of a run folder's ckpt.pt."""
    return load_torch(out / "ckpt.pt")


def same(a, b):
    """Whether two nested containers are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- the parts -----------------------------------------------------------------------------------


def test_lr_factor():
    """A linear warm-up, then constant, or half a cosine."""
    assert [lr_factor(n, 100, 4, "constant") for n in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    assert [lr_factor(n, 100, 4, "cosine") for n in (0, 1, 3, 4)] == [0.25, 0.5, 1, 1]
    assert lr_factor(52, 100, 4, "cosine") == pytest.approx(0.5)
    assert lr_factor(28, 100, 4, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert lr_factor(100, 100, 4, "cosine") == pytest.approx(0)
    assert 0 < lr_factor(99, 100, 4, "cosine") < 1e-2


def test_lr_factor_of_odd_lengths():
    """No warm-up; a run shorter than it; and a run whose length is not known yet."""
    assert lr_factor(0, 100, 0, "cosine") == 1 == lr_factor(0, 100, 0, "constant")
    assert lr_factor(3, 3, 10, "cosine") == 0.4
    assert [lr_factor(n, None, 4, "cosine") for n in (0, 3, 4, 999)] == [0.25, 1, 1, 1]
    assert lr_factor(0, None, 0, "cosine") == 1


def test_ema():
    """mean_n = d_n mean_(n-1) + (1 - d_n) p_n, d_n = min(largest, 1 - (1 + n) ** -power)."""
    layer = nn.Linear(2, 1)

    def fill(value):
        with torch.no_grad():
            for p in layer.parameters():
                p.fill_(value)

    fill(10.0)
    ema = EMA(layer, 0.7, 0.75)
    wanted = 10.0
    for n in range(1, 9):
        fill(float(n * n))
        ema.update(n)
        decay = min(0.7, 1 - (1 + n) ** -0.75)
        wanted = decay * wanted + (1 - decay) * n * n
        for value in ema.state_dict().values():
            torch.testing.assert_close(value, torch.full_like(value, wanted))
    assert 1 - 2**-0.75 < 0.7 < 1 - 9**-0.75  # both branches of min() were seen
    other = EMA(nn.Linear(2, 1), 0.7, 0.75)
    other.load_state_dict(ema.state_dict())
    assert same(other.state_dict(), ema.state_dict())
    assert set(ema.state_dict()) == {"weight", "bias"}
    fill(0.0)
    assert ema.state_dict()["weight"].abs().min() > 1  # not the layer's own memory


def test_progress_by_hand():
    """One observation; two hypotheses of two steps and one coordinate: 1 and 3 off the expert."""
    x = torch.tensor([[[[1.0], [1.0]], [[3.0], [-3.0]]]])
    pos = torch.zeros(1, 1, 2, 1)
    got = progress(x, pos)
    assert (got["best"], got["mean"]) == (1, 2)
    # The hypotheses' mean is (2, -1): each of them is off by 1 and 2.
    assert got["diversity"].item() == pytest.approx(math.sqrt((1 + 4) / 2))
    two = progress(torch.cat([x, 0 * x]), torch.zeros(2, 1, 2, 1))  # means over observations
    assert (two["best"], two["mean"]) == (0.5, 1)
    assert two["diversity"].item() == pytest.approx(math.sqrt(2.5) / 2)


def test_budget(monkeypatch):
    """--minutes: the pace decides how many steps fit, until half of the time is over."""
    clock = [0.0]
    monkeypatch.setattr(dbp_train.time, "perf_counter", lambda: clock[0])
    args = Namespace(minutes=10.0, steps=None, epochs=None)
    budget = Budget(args, 7, ALONE)
    seen = []
    for step, minutes in ((50, 1), (100, 1), (150, 1), (200, 3), (250, 1)):
        budget.start()
        clock[0] += 60 * minutes
        budget.tick(step)
        clock[0] += 600  # an evaluation does not count
        seen.append(budget.total)
    # Not before step 100; there 2 of 10 minutes are over. Past the half, at step 200, it is fixed.
    assert seen == [None, 500, 500, 500, 500] and budget.minutes == 7
    assert budget.more(499) and not budget.more(500)


def test_dims(capsys):
    """auto is the paper's network on a GPU and a small one on a CPU; and it says so."""
    assert chosen_dims(["auto"], True, 4) == [512, 1024, 2048]
    assert chosen_dims(["auto"], False, 8) == [64, 128, 256]
    assert chosen_dims(["auto"], False, 4) == [64, 128]
    assert capsys.readouterr().out.count("--dims auto: ") == 3
    assert chosen_dims(["8", "16"], True, 16) == [8, 16] and not capsys.readouterr().out


# ---- training ------------------------------------------------------------------------------------


def test_learns(tmp_path, quick):
    """One episode: the hypotheses come close to the expert and stay close to one another."""
    write_demos(tmp_path / "one.npz", lengths=(16,))
    method = ["--K", 4, "--temp", 0.2, "--dims", 16, 32]
    length = ["--steps", 250, "--lr", 5e-3, "--schedule", "cosine"]
    train("--data", tmp_path / "one.npz", "--out", tmp_path / "r", *method, *length)
    rows = training_rows(tmp_path / "r")
    assert [r["step"] for r in rows] == [50, 100, 150, 200, 250]
    for name in ("mean", "best"):  # measured: 0.2 and less
        assert rows[-1][name] < 0.4 * rows[0][name], (name, rows[0][name], rows[-1][name])
    assert rows[-1]["mean"] < 0.15
    assert all(r["best"] <= r["mean"] and r["diversity"] <= 2 * r["mean"] for r in rows)
    windows = Windows(load(PUSHT, tmp_path / "one.npz"), 2, 16, 8)
    policy, flags = Policy.load(tmp_path / "r" / "ckpt.pt")
    obs, action = windows.batch(torch.arange(len(windows)))
    chunk = policy.act(obs, generator=torch.Generator().manual_seed(0))
    off = (chunk - action).square().mean().sqrt()
    plain = (action.mean(0) - action).square().mean().sqrt()  # the best without the observation
    assert off < 0.6 * plain, (off, plain)
    assert flags["lr"] == 5e-3 and flags["K"] == 4


def test_normalisers_span_the_data(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--steps", 1)
    policy, _ = Policy.load(tmp_path / "r" / "ckpt.pt")
    episodes = load(PUSHT, demos)
    for norm, y in (
        (policy.norm_obs["state"], episodes.obs["state"]),
        (policy.norm_action, episodes.action),
    ):
        assert norm.lo.tolist() == y.min(0).tolist() and norm.hi.tolist() == y.max(0).tolist()


def test_raw_and_ema_weights_differ(tmp_path, demos, quick):
    """Both are in the checkpoint, and the averaged ones are evaluated."""
    train("--data", demos, "--out", tmp_path / "r", "--steps", 5)
    raw, ema = (
        dict(Policy.load(tmp_path / "r" / "ckpt.pt", ema=e)[0].named_parameters())
        for e in (False, True)
    )
    for name in raw:
        assert not torch.equal(raw[name], ema[name]), name
    policy, episodes = quick[-1]
    assert same(dict(policy.named_parameters()), ema) and episodes == 1


def test_seeds_decide(tmp_path, demos, quick):
    """The same seed gives the same run, another one another."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train("--data", demos, "--out", tmp_path / name, "--steps", 3, "--seed", seed)
    a, b, c = (policy_of(tmp_path / n)["weights"] for n in "abc")
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize("minutes", [False, True])
def test_training_stops_where_it_is_not_finite(
    tmp_path, demos, quick, monkeypatch, capsys, minutes
):
    """It says at which step, and what was saved before stays."""
    out = tmp_path / "r"
    real = dbp_train.dbp_loss
    steps = []

    def breaks(*args):
        steps.append(1)
        loss, info = real(*args)
        return loss * (math.nan if len(steps) == 73 else 1), info

    monkeypatch.setattr(dbp_train, "dbp_loss", breaks)
    length = ["--minutes", 1] if minutes else ["--steps", 120]
    flags = ["--data", demos, *length, "--save-every", 0, "--out", out]
    with pytest.raises(SystemExit) as e:
        train(*flags)
    assert e.value.code == 2 and len(steps) == 100
    assert "at step 73 the loss or its gradient was not finite" in capsys.readouterr().err
    assert state_of(out)["step"] == 50 == policy_of(out)["step"]
    Policy.load(out / "ckpt.pt")


def test_a_learning_rate_that_is_too_high(tmp_path, demos, quick, capsys):
    """It is legal, but nothing of it is saved."""
    with pytest.raises(SystemExit) as e:
        train("--data", demos, "--steps", 60, "--lr", 1e10, "--out", tmp_path / "r")
    err = capsys.readouterr().err
    assert e.value.code == 2 and "with a lower --lr" in err
    assert err.splitlines()[-1].startswith("error: training stopped: at step ")
    assert not list((tmp_path / "r").glob("*.pt"))


def test_resume_refuses_weights_that_are_not_finite(tmp_path, demos, quick, capsys):
    flags = ["--data", demos, "--steps", 2, "--out", tmp_path / "r"]
    train(*flags)
    good = policy_of(tmp_path / "r")
    for name in ("weights", "ema"):
        policy = copy.deepcopy(good)
        policy[name]["net.out.1.weight"][:] = math.nan
        save_torch(tmp_path / "r" / "ckpt.pt", policy)
        with pytest.raises(SystemExit):
            train(*flags, "--resume")
        assert f"{name}, net.out.1.weight, is not finite" in capsys.readouterr().err


def test_the_largest_seed(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--steps", 2, "--seed", 2**63 - 1)
    assert state_of(tmp_path / "r")["step"] == 2


def test_step_mode_and_several_temperatures(tmp_path, demos, quick):
    """A force is logged for each temperature, and each step is a problem of its own size."""
    flags = ["--data", demos, "--steps", 20, "--temp", 0.05, 0.2, 1, "--K", 3]
    train(*flags, "--mode", "step", "--out", tmp_path / "step")
    train(*flags, "--out", tmp_path / "chunk")
    (step,) = training_rows(tmp_path / "step")
    (chunk,) = training_rows(tmp_path / "chunk")
    assert len({step[f"force_{tau}"] for tau in ("0.05", "0.2", "1")}) == 3
    assert step["step"] == 20 and step["loss"] > 1
    assert all(math.isfinite(v) for v in step.values())
    assert chunk["s"] > 2 * step["s"]  # D is T_p times larger


def watch_chunk_loss(monkeypatch):
    """The list that will hold the hypotheses and the other arguments of each chunk_loss."""
    seen = []
    real = dbp_train.chunk_loss

    def watched(x, pos, **kw):
        seen.append((x.detach().clone(), {"pos": pos, **kw}))
        return real(x, pos, **kw)

    monkeypatch.setattr(dbp_train, "chunk_loss", watched)
    return seen


def test_to_end(tmp_path, quick):
    """Of 16 steps 9 windows, or all 16; the UR5's tasks take all if nothing is said."""
    write_demos(tmp_path / "d.npz", lengths=(16,))
    for flags, n in (((), 9), (("--to-end",), 16), (("--no-to-end",), 9)):
        args = parsed("--data", tmp_path / "d.npz", "--steps", 1, *flags)
        task = dbp_train.resolve(args)
        assert len(dbp_train.Training(args, task, dbp_train.ALONE).windows) == n
    for name, flags, wanted in (
        ("ur5-lift", (), True),
        ("ur5-can-state", (), True),
        ("ur5-lift-state", ("--no-to-end",), False),
    ):
        args = parsed("--task", name, *flags)
        dbp_train.resolve(args)
        assert args.to_end is wanted


def test_memory_reaches_the_loss(tmp_path, quick, monkeypatch):
    """From the second epoch on, a window's hypotheses of the epoch before push as negatives."""
    write_demos(tmp_path / "d.npz", lengths=(16,))  # 9 windows
    seen = watch_chunk_loss(monkeypatch)
    flags = ["--data", tmp_path / "d.npz", "--steps", 3, "--batch", 9, "--K", 2, "--memory", 3]
    train(*flags, "--out", tmp_path / "r")
    windows = Windows(load(PUSHT, tmp_path / "d.npz"), 2, 16, 8)
    past = torch.zeros(9, 3, 16, 2)
    for epoch, (x, how) in enumerate(seen):
        i = windows.order(epoch, 0)
        torch.testing.assert_close(how["neg"], past[i])
        there = [[0, 0, 0], [1, 1, 0], [1, 1, 1]][epoch]
        assert how["w_neg"].tolist() == 9 * [there]
        past[i] = torch.cat([x, past[i]], 1)[:, :3]
    state = state_of(tmp_path / "r")
    torch.testing.assert_close(state["memory"]["chunks"], past)


def test_memory_changes_the_training(tmp_path, demos, quick):
    """Off, it is the paper's method: no negatives; on, other weights come out."""
    flags = ["--data", demos, "--steps", 12, "--batch", 16]
    train(*flags, "--out", tmp_path / "plain")
    train(*flags, "--out", tmp_path / "off", "--memory", 0)
    train(*flags, "--out", tmp_path / "on", "--memory", 4)
    plain, off, on = (policy_of(tmp_path / n)["weights"] for n in ("plain", "off", "on"))
    assert same(plain, off) and "memory" not in state_of(tmp_path / "off")
    assert not same(plain, on)


def test_spread_widens_the_start(tmp_path, demos, quick, monkeypatch):
    """The first hypotheses differ by the deviation that was asked for, and by less without it."""
    seen = watch_chunk_loss(monkeypatch)
    flags = ["--data", demos, "--steps", 1, "--K", 16]
    train(*flags, "--out", tmp_path / "narrow")
    train(*flags, "--out", tmp_path / "wide", "--spread", 1)
    narrow, wide = (x.std(1).mean().item() for x, _ in seen)
    assert narrow < 0.3 and wide == pytest.approx(1, abs=0.2)
    (row,) = training_rows(tmp_path / "wide")
    assert row["diversity"] > 0.7


# ---- mixed precision -----------------------------------------------------------------------------


def watch_precision(monkeypatch):
    """The set that will hold (where, dtype) of the training's network, drift and gradients."""
    seen = set()
    real_policy = dbp_train.new_policy
    real_affinity = drift.affinity
    real_coefficients = drift.coefficients

    def new_policy(*args):
        policy = real_policy(*args)
        last = policy.net.out[-1]
        for module in policy.net.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                module.register_forward_hook(last_layer if module is last else layer)
        for p in policy.parameters():
            p.register_post_accumulate_grad_hook(lambda p: seen.add(("gradient", p.grad.dtype)))
        return policy

    def layer(module, inputs, out):
        if torch.is_grad_enabled():  # not the hypotheses that are drawn for the picture
            seen.add(("network", out.dtype))

    def last_layer(module, inputs, out):
        if torch.is_grad_enabled():
            seen.add(("last layer", out.dtype))

    def affinity(d, w, tau):
        seen.add(("drift", d.dtype))
        return real_affinity(d, w, tau)

    def coefficients(A, n_neg):
        C = real_coefficients(A, n_neg)
        seen.add(("drift", C.dtype))
        seen.add(("drift", (C @ C.mT).dtype))  # what autocast would do to its products
        return C

    monkeypatch.setattr(dbp_train, "new_policy", new_policy)
    monkeypatch.setattr(drift, "affinity", affinity)
    monkeypatch.setattr(drift, "coefficients", coefficients)
    return seen


@pytest.mark.parametrize("amp", [True, False])
def test_amp(tmp_path, demos, quick, monkeypatch, amp):
    """--amp runs the network's layers but the last in bfloat16; all else stays float32."""
    seen = watch_precision(monkeypatch)
    hypotheses = watch_chunk_loss(monkeypatch)
    flags = ["--data", demos, "--steps", 3, *(["--amp"] if amp else [])]
    train(*flags, "--out", tmp_path / "r")
    layers = torch.bfloat16 if amp else torch.float32
    assert seen == {
        ("network", layers),
        ("last layer", torch.float32),
        ("drift", torch.float32),
        ("gradient", torch.float32),
    }
    assert {(x.dtype, more["pos"].dtype) for x, more in hypotheses} == {(torch.float32,) * 2}
    (row,) = training_rows(tmp_path / "r")
    assert all(math.isfinite(v) for v in row.values())
    saved = policy_of(tmp_path / "r")
    assert {w.dtype for w in (*saved["weights"].values(), *saved["ema"].values())} == {
        torch.float32
    }


# ---- how long ------------------------------------------------------------------------------------


def test_lengths(tmp_path, demos, quick):
    """--epochs counts passes over the full batches of --demos; --eval-every scores on the way."""
    n = len(Windows(load(PUSHT, demos, 2), 2, 16, 8))
    steps = 20 * (n // 8)
    flags = ["--data", demos, "--demos", 2, "--epochs", 20, "--eval-every", 50, "--batch", 8]
    train(*flags, "--out", tmp_path / "r")
    assert n % 8  # there is a rest to leave out
    assert 100 < steps < 150 and state_of(tmp_path / "r")["step"] == steps
    scored = [r["step"] for r in read_log(tmp_path / "r") if "score" in r]
    assert scored == [50, 100, steps] and len(quick) == 3


def test_minutes_fix_the_steps(tmp_path, demos, quick):
    """The number of steps follows from the pace at the last row of the first half."""
    train("--data", demos, "--out", tmp_path / "r", "--minutes", 0.03)
    rows = training_rows(tmp_path / "r")
    state = state_of(tmp_path / "r")
    timed = [r for r in rows if r["step"] >= 100]  # never before step 100
    first_half = [r for r in timed if r["minutes"] <= 0.015] or timed[:1]
    last = first_half[-1]
    assert state["step"] == state["total"] == rows[-1]["step"]
    wanted = max(last["step"], last["step"] * 0.03 / last["minutes"])
    assert state["total"] == pytest.approx(wanted, rel=0.01)
    assert 0 < rows[0]["minutes"] < rows[-1]["minutes"]


def test_minutes_with_early_evaluation(tmp_path, demos, quick):
    """An evaluation may be due before the first 100 steps, and so before the length is known."""
    train("--data", demos, "--out", tmp_path / "r", "--minutes", 0.0001, "--eval-every", 50)
    assert [r["step"] for r in read_log(tmp_path / "r") if "score" in r] == [50, 100]


def test_no_simulator(tmp_path, demos, quick, monkeypatch, capsys):
    """A task without a simulator trains, and ends without a score, which the last line says."""
    monkeypatch.setitem(envs.TASKS, "pusht", replace(PUSHT, env=None))
    flags = ["--data", demos, "--steps", 60, "--eval-every", 50, "--save-every", 0]
    train(*flags, "--out", tmp_path / "r")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("no score: pusht has no simulator  60 steps, ")
    assert not quick and [r["step"] for r in read_log(tmp_path / "r")] == [50, 60]
    assert Policy.load(tmp_path / "r" / "ckpt.pt")[0].task == "pusht"
    train(*flags, "--out", tmp_path / "r", "--resume")
    assert state_of(tmp_path / "r")["step"] == 60


# ---- --init and --resume -------------------------------------------------------------------------


def close(policy, other):
    """Whether two policies have the same weights and normalisers, to a millionth."""
    weights = other.state_dict()
    return all(torch.allclose(v, weights[k], atol=1e-6) for k, v in policy.state_dict().items())


def test_init(tmp_path, demos, quick):
    """--init starts from the averaged weights and the normalisers of the checkpoint."""
    write_demos(tmp_path / "other.npz", seed=1)
    train("--data", tmp_path / "other.npz", "--out", tmp_path / "a", "--steps", 3)
    start, _ = Policy.load(tmp_path / "a" / "ckpt.pt")
    still = ["--data", demos, "--steps", 1, "--warmup", 10**9]  # a learning rate near 0
    train(*still, "--out", tmp_path / "b", "--init", tmp_path / "a" / "ckpt.pt")
    assert close(start, Policy.load(tmp_path / "b" / "ckpt.pt", ema=False)[0])
    train(*still, "--out", tmp_path / "c")
    assert not close(start, Policy.load(tmp_path / "c" / "ckpt.pt", ema=False)[0])


def kill_at(step, command, out, sent=signal.SIGKILL):
    """Start a command and send it a signal once its log has that step: exit code and stderr."""
    p = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 600
        while not any(r["step"] >= step for r in read_log(out)):
            assert p.poll() is None and time.monotonic() < deadline, p.stderr.read().decode()
            time.sleep(0.005)
        p.send_signal(sent)
        err = p.communicate(timeout=60)[1].decode()
    finally:
        p.kill()
        p.wait()
    return p.returncode, err


def unfinished(out):
    """The names of a run folder's hidden files, but for its lock."""
    return [p.name for p in out.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def same_training(a, b, rows=training_rows):
    """Assert that two run folders hold the same training: files and log, but for the minutes."""
    states = [state_of(run) for run in (a, b)]
    assert states[0].keys() == states[1].keys()
    for part in states[0].keys() - {"minutes", "flags"}:
        assert same(states[0][part], states[1][part]), part
    policies = [policy_of(run) for run in (a, b)]
    for part in ("step", "weights", "ema"):
        assert same(policies[0][part], policies[1][part]), part
    logs = [[{k: v for k, v in r.items() if k != "minutes"} for r in rows(run)] for run in (a, b)]
    assert logs[0] == logs[1]


def test_ctrl_c(tmp_path, demos, quick):
    """It costs one line, which says how to go on; the step that ran is saved, and resumed from."""
    flags = ["--data", demos, "--steps", 150]
    whole, cut = (tmp_path / n for n in ("whole", "cut"))
    command = [sys.executable, ROOT / "dbp_train.py", *SMALL, *flags, "--out", cut]
    code, err = kill_at(50, command, cut, sent=signal.SIGINT)
    assert code == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; go on with --resume"
    assert 50 <= state_of(cut)["step"] == policy_of(cut)["step"] < 150 and not unfinished(cut)
    train(*flags, "--out", whole)
    train(*flags, "--out", cut, "--resume")
    same_training(whole, cut)


def interrupt_at(monkeypatch, step, times=1):
    """Let Ctrl-C come in the middle of a step of this process's training, so many times."""
    real = EMA.update

    def update(ema, n):
        for _ in range(times if n == step else 0):
            signal.raise_signal(signal.SIGINT)
        real(ema, n)

    monkeypatch.setattr(EMA, "update", update)


def ends_with(capsys, *flags):
    """The exit code and the last line on stderr of a training that ends early."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        commands.cli(lambda: saves.run_until_interrupted(dbp_train.train, parsed(*flags)))
    return e.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("step", [33, 50, 60])
def test_ctrl_c_in_a_step(tmp_path, demos, quick, monkeypatch, capsys, step):
    """Between two rows of the log, at a row, and in the last step: that step is saved."""
    flags = ["--data", demos, "--steps", 60, "--memory", 3]
    train(*flags, "--out", tmp_path / "whole")
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        wanted = (130, "interrupted; go on with --resume")
        assert ends_with(capsys, *flags, "--out", cut) == wanted
    assert state_of(cut)["step"] == policy_of(cut)["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(*flags, "--out", cut, "--resume")
    same_training(tmp_path / "whole", cut, rows=read_log)


@pytest.mark.parametrize("every, line", [(10, "nothing was saved"), (0, "go on with --resume")])
def test_two_ctrl_c(tmp_path, demos, quick, monkeypatch, capsys, every, line):
    """The second ends at once; the line says whether there is anything to go on with."""
    out = tmp_path / "r"
    flags = ["--data", demos, "--steps", 60, "--save-every", every, "--out", out]
    interrupt_at(monkeypatch, 55, times=2)
    assert ends_with(capsys, *flags) == (130, f"interrupted; {line}")
    assert [state_of(path.parent)["step"] for path in out.glob("state.pt")] == [50] * (not every)


def test_ctrl_c_in_an_evaluation(tmp_path, demos, quick, monkeypatch, capsys):
    """It is broken off, and done again by --resume."""
    flags = ["--data", demos, "--steps", 120, "--eval-every", 50]
    train(*flags, "--out", tmp_path / "whole")
    real = dbp_report.evaluate

    def evaluated(*args, **kw):
        signal.raise_signal(signal.SIGINT)
        return real(*args, **kw)

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(dbp_report, "evaluate", evaluated)
        assert ends_with(capsys, *flags, "--out", cut)[0] == 130
    assert state_of(cut)["step"] == 50 and not any("score" in r for r in read_log(cut))
    train(*flags, "--out", cut, "--resume")
    same_training(tmp_path / "whole", cut, rows=read_log)
    assert [r["step"] for r in read_log(cut) if "score" in r] == [50, 100, 120]


@pytest.mark.parametrize("task", ["pusht", "pusht-image"])
def test_killed_run_resumes_bit_for_bit(tmp_path, demos, quick, task):
    """SIGKILL between two saves, then --resume: all is as if nothing had happened."""
    flags = ["--task", task, "--data", demos, "--steps", 200, "--save-every", 0, "--memory", 6]
    whole, cut = (tmp_path / n for n in ("whole", "cut"))
    train(*flags, "--out", whole)
    kill_at(100, [sys.executable, ROOT / "dbp_train.py", *SMALL, *flags, "--out", cut], cut)
    assert state_of(cut)["step"] in (50, 100, 150)
    with open(cut / "log.jsonl", "a") as f:
        f.write('{"step": 150, "lo')  # the worst that a kill can leave
    train(*flags, "--out", cut, "--resume")
    assert state_of(cut)["step"] == 200 and not unfinished(cut)
    same_training(whole, cut)
    minutes = [r["minutes"] for r in training_rows(cut)]
    assert minutes == sorted(set(minutes))  # training time goes on counting
    with open(cut / "log.csv") as f:
        steps = [int(r["step"]) for r in csv.DictReader(f) if r["loss"]]
    assert steps == list(range(50, 201, 50))


def test_resume_knows_its_demonstrations(tmp_path, quick, capsys):
    """A copy of the file will do; other demonstrations of the same size will not."""
    write_demos(tmp_path / "one.npz")
    write_demos(tmp_path / "two.npz", seed=1)
    shutil.copy(tmp_path / "one.npz", tmp_path / "copy.npz")
    train("--data", tmp_path / "one.npz", "--steps", 2, "--out", tmp_path / "r")
    (tmp_path / "r" / "log.csv").unlink()
    with pytest.raises(SystemExit):
        train("--data", tmp_path / "two.npz", "--steps", 2, "--out", tmp_path / "r", "--resume")
    assert "was begun with other demonstrations: give them by --data" in capsys.readouterr().err
    train("--data", tmp_path / "copy.npz", "--steps", 2, "--out", tmp_path / "r", "--resume")


class Killed(BaseException):
    """A kill, as far as one process can play it."""


@pytest.mark.parametrize("at, resumed_from", [("state.pt", 50), ("ckpt.pt", 100)])
def test_a_kill_within_a_save(tmp_path, demos, quick, monkeypatch, at, resumed_from):
    """Whichever of its files were in place, the run goes on from a pair of one step."""
    flags = ["--data", demos, "--steps", 120, "--save-every", 0]
    whole, cut = (tmp_path / n for n in ("whole", "cut"))
    train(*flags, "--out", whole)
    real = os.replace

    def replace(source, target):
        second = Path(target).parent == cut and (cut / "ckpt.pt").exists()
        if Path(target).name == at and second:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            train(*flags, "--out", cut)
    assert unfinished(cut) == [".ckpt-100.pt"]
    assert (state_of(cut)["step"], policy_of(cut)["step"]) == (resumed_from, 50)
    train(*flags, "--out", cut, "--resume")
    same_training(whole, cut)
    assert not unfinished(cut)


BAD_STATES = {
    "no step": lambda state: state.pop("step"),
    "step of text": lambda state: state.update(step="60"),
    "step below 0": lambda state: state.update(step=-1),
    "step of another ckpt.pt": lambda state: state.update(step=59),
    "step beyond the total": lambda state: state.update(step=61),
    "total of text": lambda state: state.update(total="60"),
    "total of True": lambda state: state.update(total=True),
    "minutes of nothing": lambda state: state.update(minutes=None),
    "minutes below 0": lambda state: state.update(minutes=-1.0),
    "minutes of NaN": lambda state: state.update(minutes=math.nan),
    "snapshots in a list": lambda state: state.update(snapshots=[1]),
    "snapshot of another shape": lambda state: state["snapshots"].update({0: torch.zeros(3)}),
    "snapshot of text": lambda state: state["snapshots"].update({0: "0"}),
    "snapshot at a text": lambda state: state["snapshots"].update(a=state["snapshots"][0]),
    "sums of text": lambda state: state.update(sums={"loss": "1"}),
    "sums of a tensor": lambda state: state.update(sums=torch.zeros(3)),
    "flags in a list": lambda state: state.update(flags=[]),
    "a flag of a tensor": lambda state: state["flags"].update(K=torch.zeros(3)),
    "no moments": lambda state: state.pop("moments"),
    "moments of text": lambda state: state.update(moments="adam"),
    "moments of one parameter": lambda state: state.update(moments={0: state["moments"][0]}),
    "moments of a number": lambda state: state["moments"].update({0: 1}),
    "moments without a step": lambda state: state["moments"][0].pop("step"),
    "moments of another shape": lambda state: state["moments"][0].update(exp_avg=torch.zeros(9)),
    "moments of NaN": lambda state: state["moments"][0]["exp_avg"].fill_(math.nan),
    "memory of another shape": lambda state: state["memory"].update(chunks=torch.zeros(3)),
    "no memory": lambda state: state.pop("memory"),
    "a list": lambda state: [state],
}
BAD_POLICIES = {
    "no weights": lambda policy: policy.pop("weights"),
    "a weight of another shape": lambda policy: policy["weights"].update(
        {"net.out.1.weight": torch.zeros(1)}
    ),
    "an averaged weight too few": lambda policy: policy["ema"].popitem(),
    "an averaged weight of another shape": lambda policy: policy["ema"].update(
        {"net.out.1.weight": torch.zeros(())}
    ),
    "a list": lambda policy: [policy],
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run folder of one step with --memory 2, and the flags that it was begun with."""
    folder = tmp_path_factory.mktemp("begun")
    data = write_demos(folder / "demos.npz")
    flags = ["--data", data, "--out", folder / "r", "--steps", 60, "--memory", 2]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("curves", "hypotheses_figure"):
            patch.setattr(dbp_report, name, lambda *a: None)
        patch.setattr(dbp_report.Report, "score", lambda self: None)
        train(*flags)
    return folder / "r", flags


@pytest.mark.parametrize(
    "file, case",
    [*(("state.pt", case) for case in BAD_STATES), *(("ckpt.pt", case) for case in BAD_POLICIES)],
)
def test_damaged_saves(begun, quick, capsys, file, case):
    """Each costs one line; the files stay as they are."""
    out, flags = begun
    good = (out / file).read_bytes()
    content = load_torch(out / file)
    damage = {**BAD_STATES, **BAD_POLICIES} if file == "ckpt.pt" else BAD_STATES
    changed = damage[case](content)
    save_torch(out / file, changed if case == "a list" else content)
    before = contents(out)
    try:
        err = refused(capsys, *flags, "--resume")
        assert "another folder with --out" in err or "put that back" in err, err
        assert contents(out) == before
    finally:
        (out / file).write_bytes(good)


def test_resume_of_a_finished_run(tmp_path, demos, quick):
    """Not one step more; the log and its one score stay what they were."""
    flags = ["--data", demos, "--steps", 60, "--out", tmp_path / "r"]
    train(*flags)
    shutil.copytree(tmp_path / "r", tmp_path / "before")
    rows = read_log(tmp_path / "r")
    train(*flags, "--resume")
    assert state_of(tmp_path / "r")["step"] == 60
    same_training(tmp_path / "r", tmp_path / "before")
    assert read_log(tmp_path / "r") == rows
    assert [r["step"] for r in rows if "score" in r] == [60]


# ---- as a user runs it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One real run as a subprocess, simulator, pictures and all: its folder, what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    flags = ["--data", write_demos(folder / "demos.npz"), "--out", folder / "r", "--steps", 60]
    code, out, err = cli("dbp_train.py", *SMALL, *flags)
    assert code == 0, err
    return folder / "r", out


def test_run_folder(finished):
    """Flags, versions, logs, pictures, and no temporary file."""
    out, _ = finished
    about = json.loads((out / "flags.json").read_text())
    flags = about["flags"]
    assert flags["seed"] == 0 and flags["dims"] == [8, 16] and flags["T_p"] == 16
    assert (flags["K"], flags["temp"], flags["mode"]) == (4, [0.2], "chunk")
    assert about["commit"] and about["versions"]["torch"] and "--steps" in about["command"]
    for name in ("curves.png", "hypotheses.png"):
        picture = (out / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
    assert [p for p in out.glob("events.out.tfevents*") if p.stat().st_size > 500]
    rows = read_log(out)
    with open(out / "log.csv") as f:
        losses = [float(r["loss"] or 0) for r in csv.DictReader(f)]
    assert losses == [r.get("loss", 0) for r in rows]
    assert {"best", "mean", "diversity", "s", "force_0.2", "grad", "lr"} <= set(rows[0])
    assert set(state_of(out)["snapshots"]) == {0, 30, 60}
    assert not unfinished(out)


def test_last_line(finished):
    """The score is the log's, and the line names the policy, which can be loaded."""
    out, printed = finished
    rows = read_log(out)
    assert [r["step"] for r in rows] == [50, 60, 60]
    score = rows[-1]["score"]
    assert 0 <= rows[-1]["score_low"] <= score <= 1
    last = printed.splitlines()[-1]
    assert last.startswith(f"score {score:.3f} ")
    assert str(out / "ckpt.pt") in last and "60 steps" in last
    assert Policy.load(out / "ckpt.pt", task="pusht")[1]["seed"] == 0


# ---- two processes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables, word",
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc is not a whole number"),
        ({"RANK": "1.5"}, "RANK=1.5 is not a whole number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= is not a whole number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 without RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2 without LOCAL_RANK"),
        ({"WORLD_SIZE": "0"}, "RANK 0 of WORLD_SIZE 0"),
        ({"RANK": "1"}, "RANK 1 of WORLD_SIZE 1"),
    ],
)
def test_an_environment_that_torchrun_did_not_make(
    tmp_path, demos, monkeypatch, capsys, variables, word
):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert word in refused(capsys, "--data", demos, "--out", tmp_path / "r", "--steps", 2)
    assert not (tmp_path / "r").exists()


def test_what_processes_cannot_share():
    """A batch smaller than their number, and the memory."""
    windows = range(17)
    check_shares(Namespace(batch=32, memory=3), windows, 1)
    check_shares(Namespace(batch=2, memory=None), windows, 2)
    with pytest.raises(BadInput, match="2 processes cannot share a batch of 1: raise --batch"):
        check_shares(Namespace(batch=1, memory=None), windows, 2)
    with pytest.raises(BadInput, match="18 processes cannot share a batch of 17"):
        check_shares(Namespace(batch=32, memory=None), windows, 18)
    with pytest.raises(BadInput, match="--memory is of one process"):
        check_shares(Namespace(batch=4, memory=3), windows, 2)


# ---- bad input -----------------------------------------------------------------------------------


def refused(capsys, *flags):
    """The one line that dbp_train.py refuses these flags with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        train(*flags)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def poisoned(path, **change):
    """Demonstrations with some arrays replaced."""
    with np.load(write_demos(path)) as f:
        arrays = {**f, **change}
    save_npz(path, **arrays)


def empty(path):
    """Demonstrations without a single step."""
    nothing = np.zeros(0, int)
    poisoned(path, state=np.zeros((0, 5)), action=np.zeros((0, 2)), episode_ends=nothing)


BAD_DATA = {
    "missing": (lambda p: None, "no such file"),
    "garbage": (lambda p: p.write_bytes(b"hello"), "damaged"),
    "cut": (lambda p: p.write_bytes(write_demos(p).read_bytes()[:700]), "damaged"),
    "nan": (lambda p: poisoned(p, action=np.full((96, 2), np.nan)), "NaN"),
    "wide": (lambda p: poisoned(p, action=np.zeros((96, 3))), "(96, 3)"),
    "empty": (empty, "empty"),
    "short": (lambda p: write_demos(p, lengths=(5, 6)), "6 steps"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(tmp_path, quick, capsys, name):
    """Each costs one line, and no run folder is made."""
    make, word = BAD_DATA[name]
    make(tmp_path / "bad.npz")
    flags = ["--data", tmp_path / "bad.npz", "--out", tmp_path / "r", "--steps", 2]
    assert word in refused(capsys, *flags) and not (tmp_path / "r").exists()


BAD_FLAGS = [
    # horizons, task, data
    ("--T-a 16", "Eq. 23"),
    ("--T-o 17", "Eq. 23"),
    ("--T-p 8", "Eq. 23"),
    ("--T-a 0", "each must be at least 1"),
    ("--T-p 15", "multiple of 2"),
    ("--T-p 14 --dims 8 16 16", "multiple of 4"),
    ("--task chess", "unknown task"),
    ("--demos 0", "3 episodes"),
    ("--demos 4", "3 episodes"),
    # files
    ("--init none.pt", "none.pt: no such file"),
    ("--init junk.pt", "junk.pt"),
    ("--init state.pt", "not a policy checkpoint"),
    ("--init big.pt", "big.pt"),
    ("--init chess.pt", "chess"),
    ("--out demos.npz", "demos.npz"),
    # a run that is there already
    ("", "r holds a run"),
    ("--resume --out nowhere", "state.pt: there is no run to go on with"),
    ("--resume --out foreign", "state.pt"),
    ("--resume --dims 16 16", "--dims"),
    ("--resume", "--steps 1, not 2"),
    ("--resume --seed 7 --steps 1", "--seed 0, not 7"),
    ("--resume --memory 3 --steps 1", "--memory 0, not 3"),
    # network and device
    ("--dims abc", "abc"),
    ("--dims 8 12", "multiple of 8"),
    ("--dims 0", "multiple of 8"),
    ("--dims auto 8", "auto"),
    ("--device nonsense", "--device nonsense"),
    ("--device cuda:99", "--device cuda:99"),
    # lengths
    ("--epochs 2", "one of"),
    ("--minutes 2", "one of"),
    ("--epochs 2 --minutes 2", "one of"),
    ("--steps 0", "--steps"),
    ("--steps -3", "--steps"),
    # numbers
    ("--temp 0", "--temp"),
    ("--temp 0.2 -1", "--temp"),
    ("--temp nan", "--temp"),
    ("--K 0", "--K"),
    ("--batch 0", "--batch"),
    ("--save-every -1", "--save-every must not be below 0"),
    ("--save-every nan", "--save-every must not be below 0"),
    ("--episodes 0", "--episodes"),
    ("--spread nan", "--spread must not be below 0"),
    ("--weight-decay inf", "--weight-decay must not be below 0, nor infinite"),
    ("--seed -1", "--seed must lie in 0 .. 9223372036854775807, not -1"),
    ("--seed 9223372036854775808", "--seed must lie in 0 .. 9223372036854775807"),
    ("--lr -1", "--lr"),
    ("--max-grad-norm 0", "--max-grad-norm"),
    ("--spread -1", "--spread"),
    ("--memory -1", "--memory"),
    ("--betas 2 3", "--betas"),
    # flags that the method does not use
    ("--method bc --K 16", "--K is not used by --method bc: leave it out"),
    ("--method bc --temp 0.5", "--temp is not used by --method bc"),
    ("--method bc --mode chunk", "--mode is not used by --method bc"),
    ("--method bc --memory 4", "--memory is not used by --method bc"),
    ("--method bc --spread 1", "--spread is not used by --method bc"),
    ("--method diffusion --memory 4", "--memory is not used by --method diffusion"),
    ("--method diffusion --spread 1", "--spread is not used by --method diffusion"),
    ("--method meanflow --mode step", "--mode is not used by --method meanflow"),
    ("--method meanflow --temp 0.2", "--temp is not used by --method meanflow"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with demonstrations, a run `r` of one step, and files that are no checkpoints."""
    folder = tmp_path_factory.mktemp("workplace")
    data = write_demos(folder / "demos.npz")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("curves", "hypotheses_figure"):
            patch.setattr(dbp_report, name, lambda *a: None)
        patch.setattr(dbp_report.Report, "score", lambda self: None)
        train("--data", data, "--out", folder / "r", "--steps", 1)
    (folder / "junk.pt").write_bytes(b"junk")
    shape = Policy.load(folder / "r" / "ckpt.pt")[0].shape
    Policy({**shape, "dims": [16, 16]}).save(folder / "big.pt")
    Policy({**shape, "task": "chess"}).save(folder / "chess.pt")
    shutil.copy(folder / "r" / "state.pt", folder / "state.pt")
    save_torch(folder / "foreign" / "state.pt", {"some": torch.zeros(3)})
    return folder


def contents(folder):
    """{path: bytes} of all files in a folder, but for locks."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("flags, word", BAD_FLAGS, ids=[f for f, _ in BAD_FLAGS])
def test_bad_flags(workplace, monkeypatch, capsys, flags, word):
    """Each costs one line and exit code 2; no file appears, and none changes."""
    monkeypatch.chdir(workplace)
    before = contents(workplace)
    out = "r" if "--resume" in flags or not flags else "new"
    given = ["--data", "demos.npz", "--out", out, "--steps", 2, *flags.split()]
    assert word in refused(capsys, *given)
    assert contents(workplace) == before and not Path("new").exists()


def test_bad_input_as_a_user_sees_it(tmp_path, demos):
    """From the command line: one line on stderr, exit code 2, no traceback."""
    for flags, word in (
        (["--data", tmp_path / "none.npz"], "no such file"),
        (["--data", demos, "--dims", "abc"], "abc"),
    ):
        code, _, err = cli("dbp_train.py", *SMALL, "--out", tmp_path / "r", "--steps", 2, *flags)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and word in err
    assert not (tmp_path / "r").exists()


def test_flags_are_not_abbreviated(capsys):
    assert "unrecognized arguments: --epis 3" in refused(capsys, "--epis", 3)


# ---- defaults and help ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, K, temp, mode, memory",
    [
        ("dbp", 4, [0.2], "chunk", 0),
        ("diffusion", 4, None, None, None),
        ("meanflow", 4, None, None, None),
        ("bc", None, None, None, None),
    ],
)
def test_defaults_of_a_method(tmp_path, method, K, temp, mode, memory):
    """A flag that the method does not use stays None, as it would be refused."""
    args = parsed("--method", method, "--out", tmp_path / "r")
    assert dbp_train.resolve(args) is PUSHT
    assert (args.K, args.temp, args.mode, args.memory) == (K, temp, mode, memory)
    assert (args.T_o, args.T_p, args.T_a) == (2, 16, 8)
    if method not in ("dbp", "bc"):
        args = parsed("--method", method, "--K", 2, "--out", tmp_path / "r")
        dbp_train.resolve(args)
        assert args.K == 2


def test_defaults_of_a_task(tmp_path, monkeypatch):
    """The task's horizons and its stage1 are taken, unless a flag says otherwise."""
    own = replace(TASKS["hopper"], stage1={"K": 9, "demos": 7})
    monkeypatch.setitem(envs.TASKS, "hopper", own)
    args = dbp_train.parse(["--task", "hopper", "--device", "cpu", "--K", "3"])
    dbp_train.resolve(args)
    assert (args.T_o, args.T_p, args.T_a) == (1, 4, 4)
    assert (args.K, args.demos) == (3, 7)
    assert (args.steps, args.epochs, args.lr, args.dims) == (8000, None, 5e-4, [64, 128])
    assert args.out == "runs/hopper-dbp-seed0"


def test_help_tells_the_tasks_defaults(capsys):
    """Flags whose default depends on the task name it for each; the examples can be typed."""
    with pytest.raises(SystemExit) as e:
        dbp_train.parse(["--help"])
    assert e.value.code == 0
    text, examples = capsys.readouterr().out.split("examples:\n")
    text = " ".join(text.split())
    for flag in ("T_o", "T_p", "T_a", "episodes"):
        assert envs.defaults_of(flag) in text, flag
    assert "{pusht: 16, locomotion: 4, " in text
    for words in ("4 if not given; not for bc", "0.2 if not given; only for dbp"):
        assert words in text  # what the parser's None stands for
    lines = examples.splitlines()
    assert len(lines) == 2
    for line in lines:
        python, script, *argv = shlex.split(line)
        assert (python, script) == ("python", "dbp_train.py") and dbp_train.parse(argv).task
