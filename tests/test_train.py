"""dbp_train.py: it learns, a killed run resumes bit for bit, bad input costs one line, and the run folder is whole.

Most runs happen in this process, with pictures and evaluation replaced (`quick`), as they take longer than training.
"""
import csv
import json
import math
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dbp_train
import runs
from conftest import ROOT, cli, write_demos
from data import Chunks, load, save_npz
from dbp_train import EMA, lr_factor, progress
from envs import TASKS
from policy import Policy
from runs import load_torch, read_log, save_torch

SMALL = "--dims 8 16 --batch 8 --episodes 1 --device cpu --warmup 20 --lr 2e-3 --seed 0".split()


def train(*flags):
    """dbp_train.py with SMALL and these flags, in this process; a flag given here wins."""
    argv = sys.argv
    sys.argv = ["dbp_train.py", *SMALL, *map(str, flags)]
    try:
        runs.cli(lambda: dbp_train.train(dbp_train.parse()))
    finally:
        sys.argv = argv


@pytest.fixture
def quick(monkeypatch):
    """No pictures, and an evaluation that costs nothing; gives the list of steps of the policies evaluated."""
    seen = []

    def evaluate(policy, task, episodes, **kw):
        seen.append((policy, episodes))
        return {"score": 0.5, "score_95": (0.4, 0.6), "success": 0.1, "success_95": (0., 0.2), "episodes": episodes,
                "seconds": 1., "simulator_s": 0.5, "network_s": 0.5, "network_ms": 1., "scores": [0.5]}, None

    monkeypatch.setattr(dbp_train, "evaluate", evaluate)
    for name in ("curves", "hypotheses_figure"):
        monkeypatch.setattr(dbp_train, name, lambda *a: None)
    return seen


def training_rows(out):
    """Rows of the log that training wrote, not evaluation."""
    return [r for r in read_log(out) if "loss" in r]


def same(a, b):
    """Bitwise equality of nested containers of tensors."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- the parts

def test_lr_factor():
    assert [lr_factor(n, 100, 4, "constant") for n in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    assert [lr_factor(n, 100, 4, "cosine") for n in (0, 1, 3, 4)] == [0.25, 0.5, 1, 1]
    assert lr_factor(52, 100, 4, "cosine") == pytest.approx(0.5) and lr_factor(100, 100, 4, "cosine") == pytest.approx(0)
    assert lr_factor(28, 100, 4, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert 0 < lr_factor(99, 100, 4, "cosine") < 1e-2
    assert lr_factor(0, 100, 0, "cosine") == 1 and lr_factor(0, 100, 0, "constant") == 1
    assert lr_factor(3, 3, 10, "cosine") == 0.4                      # shorter than its warm-up


def test_ema():
    """mean_n = d_n mean_(n-1) + (1 - d_n) p_n with d_n = min(largest, 1 - (1 + n) ** -power), begun at p_0."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(10.)
    ema, wanted = EMA(layer, 0.7, 0.75), 10.
    for n in range(1, 9):
        with torch.no_grad():
            for p in layer.parameters():
                p.fill_(float(n * n))
        ema.update(n)
        decay = min(0.7, 1 - (1 + n) ** -0.75)
        wanted = decay * wanted + (1 - decay) * n * n
        for value in ema.state_dict().values():
            torch.testing.assert_close(value, torch.full_like(value, wanted))
    assert min(0.7, 1 - 2 ** -0.75) < 0.7 == min(0.7, 1 - 9 ** -0.75)       # both branches were seen
    other = EMA(nn.Linear(2, 1), 0.7, 0.75)
    other.load_state_dict(ema.state_dict())
    assert same(other.state_dict(), ema.state_dict()) and set(ema.state_dict()) == {"weight", "bias"}
    layer.weight.data.zero_()
    assert ema.state_dict()["weight"].abs().min() > 1                       # not the layer's own memory


def test_progress_by_hand():
    """One observation; two hypotheses of two steps and one coordinate: 1 and 3 away from the expert."""
    x, pos = torch.tensor([[[[1.], [1]], [[3], [-3]]]]), torch.zeros(1, 1, 2, 1)
    got = progress(x, pos)
    assert (got["best"], got["mean"]) == (1, 2)
    assert got["spread"].item() == pytest.approx(math.sqrt((1 + 4) / 2))    # their mean is (2, -1): off by (1, 2) each
    two = progress(torch.cat([x, 0 * x]), torch.zeros(2, 1, 2, 1))          # best is a mean over observations
    assert (two["best"], two["mean"], two["spread"].item()) == (0.5, 1, pytest.approx(math.sqrt(2.5) / 2))


# ---- training

def test_learns(tmp_path, quick):
    """One episode, K = 4: the hypotheses come close to the expert and stay close to one another."""
    write_demos(tmp_path / "one.npz", lengths=(16,))
    train("--data", tmp_path / "one.npz", "--out", tmp_path / "r", "--K", 4, "--temp", 0.2, "--steps", 250,
          "--dims", 16, 32, "--lr", 5e-3, "--schedule", "cosine")
    rows = training_rows(tmp_path / "r")
    assert [r["step"] for r in rows] == [50, 100, 150, 200, 250]
    for name in ("mean", "best"):                                                        # measured: 0.2 and less
        assert rows[-1][name] < 0.4 * rows[0][name], (name, rows[0][name], rows[-1][name])
    assert rows[-1]["mean"] < 0.15 and all(r["best"] <= r["mean"] and r["spread"] <= 2 * r["mean"] for r in rows)
    chunks = Chunks(load(TASKS["pusht"], tmp_path / "one.npz"), 2, 16, 8)
    policy, flags = Policy.load(tmp_path / "r" / "ckpt.pt")
    obs, action = chunks.batch(torch.arange(len(chunks)))
    off = (policy.act(obs, generator=torch.Generator().manual_seed(0)) - action).square().mean().sqrt()
    plain = (action.mean(0) - action).square().mean().sqrt()                # the best that ignores the observation
    assert off < 0.6 * plain, (off, plain)
    assert flags["lr"] == 5e-3 and flags["K"] == 4


def test_normaliser_spans_the_data(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--steps", 1)
    policy, ep = Policy.load(tmp_path / "r" / "ckpt.pt")[0], load(TASKS["pusht"], demos)
    for norm, y in ((policy.norm_obs, ep.obs), (policy.norm_action, ep.action)):
        assert torch.equal(norm.lo, torch.from_numpy(y.min(0))) and torch.equal(norm.hi, torch.from_numpy(y.max(0)))


def test_raw_and_ema_weights_differ(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--steps", 5)
    raw, ema = (dict(Policy.load(tmp_path / "r" / "ckpt.pt", ema=e)[0].named_parameters()) for e in (False, True))
    state, (policy, episodes) = load_torch(tmp_path / "r" / "state.pt"), quick[-1]
    for name in raw:
        assert torch.equal(raw[name], state["weights"][name]) and torch.equal(ema[name], state["ema"][name])
        assert not torch.equal(raw[name], ema[name]), name
    assert same(dict(policy.named_parameters()), ema) and episodes == 1     # the EMA is what gets evaluated


def test_seeds_decide(tmp_path, demos, quick):
    """The same seed gives the same run, another one another."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train("--data", demos, "--out", tmp_path / name, "--steps", 3, "--seed", seed)
    a, b, c = (load_torch(tmp_path / n / "state.pt")["weights"] for n in "abc")
    assert same(a, b) and not same(a, c)


def test_step_mode_and_several_temperatures(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--steps", 20, "--mode", "step", "--temp", 0.05, 0.2, 1, "--K", 3)
    row, = training_rows(tmp_path / "r")
    assert len({row[f"force_{t}"] for t in ("0.05", "0.2", "1")}) == 3
    assert row["step"] == 20 and all(math.isfinite(v) for v in row.values()) and row["loss"] > 1
    train("--data", demos, "--out", tmp_path / "chunk", "--steps", 20, "--temp", 0.05, 0.2, 1, "--K", 3)
    assert training_rows(tmp_path / "chunk")[0]["s"] > 2 * row["s"]         # D is T_p times larger


def test_neighbours(demos):
    """The nearest windows come from other episodes, nearest first, and the weight falls with the distance."""
    chunks = Chunks(load(TASKS["pusht"], demos), 2, 4, 2)
    policy = Policy({"task": "pusht", "obs_dim": 20, "D_a": 2, "T_o": 2, "T_p": 4, "T_a": 2, "dims": (8,)},
                    dbp_train.bounds(chunks.obs), dbp_train.bounds(chunks.action))
    near, weight = dbp_train.neighbours(policy, chunks, 4)
    assert near.shape == weight.shape == (len(chunks), 3)
    assert (chunks.episode[near] != chunks.episode[:, None]).all()
    assert (weight.diff(dim=1) <= 0).all() and weight[:, 0].median() == pytest.approx(np.exp(-1), rel=0.05)
    y = policy.norm_obs(chunks.batch(torch.arange(len(chunks)))[0]).flatten(1)
    d = (y[5] - y).norm(dim=-1)
    assert near[5, 0] == d.masked_fill(chunks.episode == chunks.episode[5], torch.inf).argmin()


def test_beyond_the_paper(tmp_path, demos, quick, monkeypatch):
    """Its flags reach the loss: more positives with weights, a problem an observation, a temperature that falls to 1."""
    seen, real = [], dbp_train.chunk_loss
    monkeypatch.setattr(dbp_train, "chunk_loss", lambda x, pos, **kw: seen.append((x.shape, pos.shape, kw)) or real(x, pos, **kw))
    train("--data", demos, "--out", tmp_path / "r", "--steps", 4, "--positives", 3, "--scale", "observation", "--temp-start", 16,
          "--spread", 1)
    assert [round(kw["temps"][0], 3) for *_, kw in seen] == [3.2, 0.8, 0.2, 0.2]
    assert seen[0][0] == (8, 1, 4, 16, 2) and seen[0][1] == (8, 1, 3, 16, 2) and seen[0][2]["w_pos"].shape == (8, 1, 3)
    assert (seen[0][2]["w_pos"][..., 0] == 1).all() and (seen[0][2]["w_pos"][..., 1:] < 1).any()
    row, = training_rows(tmp_path / "r")
    assert all(math.isfinite(v) for v in row.values()) and row["spread"] > 0.3


def test_memory():
    """A window's past hypotheses, newest first; weight 0 where there is none yet; never more than N."""
    memory = torch.zeros(5, 3, 1, 1), torch.zeros(5, dtype=torch.long)
    x = lambda *y: torch.tensor(y, dtype=torch.float32)[..., None, None]                   # (B, K, 1, 1)
    past, w = dbp_train.recall(memory, torch.tensor([4, 1]), x([1, 2], [3, 4]))
    assert (w == 0).all()
    past, w = dbp_train.recall(memory, torch.tensor([1, 0]), x([5, 6], [7, 8]))
    assert w.tolist() == [[1, 1, 0], [0, 0, 0]] and past[0, :2].flatten().tolist() == [3, 4]
    past, w = dbp_train.recall(memory, torch.tensor([1]), x([9, 10]))
    assert w.tolist() == [[1, 1, 1]] and past.flatten().tolist() == [5, 6, 3]
    assert memory[0][4].flatten().tolist() == [1, 2, 0] and memory[1].tolist() == [2, 3, 0, 0, 2]


def test_scale_of_an_observation():
    """The loss over the batch is the mean over observations that are problems of their own."""
    from argparse import Namespace
    g = torch.Generator().manual_seed(0)
    x, pos = torch.randn(3, 4, 8, 2, generator=g), torch.randn(3, 8, 2, generator=g) * torch.tensor([1, 5, 20])[:, None, None]

    class Fixed:
        def __init__(self, x):
            self.hypotheses = lambda obs, K, generator: x

    how = Namespace(method="dbp", K=4, temp=[0.2], mode="chunk", scale="observation", amp=False)
    loss = lambda i: dbp_train.loss_of(Fixed(x[i].requires_grad_()), None, pos[i], how, g)
    whole, info = loss(slice(0, 3))
    each = [loss(slice(i, i + 1)) for i in range(3)]
    assert whole.item() == pytest.approx(np.mean([y.item() for y, _ in each]))
    assert info["s"].item() == pytest.approx(np.mean([i["s"].item() for _, i in each]), rel=1e-5)
    how.scale = "batch"
    assert loss(slice(0, 3))[1]["s"].item() == pytest.approx(info["s"].item(), rel=1e-5)     # all have the same K: the mean's mean


def test_amp(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--steps", 3, "--amp")
    row, = training_rows(tmp_path / "r")
    assert all(math.isfinite(v) for v in row.values())
    assert all(w.dtype == torch.float32 for w in load_torch(tmp_path / "r" / "state.pt")["weights"].values())


def test_lengths(tmp_path, demos, quick):
    """--epochs counts passes over the full batches of --demos; --eval-every evaluates on the way, besides at the end."""
    n = len(Chunks(load(TASKS["pusht"], demos, 2), 2, 16, 8))
    train("--data", demos, "--demos", 2, "--out", tmp_path / "r", "--epochs", 20, "--eval-every", 50, "--batch", 8)
    steps = 20 * (n // 8)
    assert n % 8                                                            # there is a rest to leave out
    assert 100 < steps < 150 and load_torch(tmp_path / "r" / "state.pt")["step"] == steps
    assert [r["step"] for r in read_log(tmp_path / "r") if "score" in r] == [50, 100, steps] and len(quick) == 3


def test_minutes_fix_the_steps(tmp_path, demos, quick):
    train("--data", demos, "--out", tmp_path / "r", "--minutes", 0.03)
    rows, state = training_rows(tmp_path / "r"), load_torch(tmp_path / "r" / "state.pt")
    timed = [r for r in rows if r["step"] >= 100]
    last = ([r for r in timed if r["minutes"] <= 0.015] or timed[:1])[-1]       # of the first half, but not before step 100
    assert state["step"] == state["total"] == rows[-1]["step"]
    assert state["total"] == pytest.approx(max(last["step"], last["step"] * 0.03 / last["minutes"]), rel=0.01)
    assert 0 < rows[0]["minutes"] < rows[-1]["minutes"]


def test_minutes_with_early_evaluation(tmp_path, demos, quick):
    """An evaluation due before the first 100 steps are timed, so before the length is known."""
    train("--data", demos, "--out", tmp_path / "r", "--minutes", 0.0001, "--eval-every", 50)
    assert [r["step"] for r in read_log(tmp_path / "r") if "score" in r] == [50, 100]


def test_init(tmp_path, demos, quick):
    """--init starts from the EMA weights and the normaliser of the checkpoint; other sizes are refused (below)."""
    write_demos(tmp_path / "other.npz", seed=1)
    train("--data", tmp_path / "other.npz", "--out", tmp_path / "a", "--steps", 3)
    train("--data", demos, "--out", tmp_path / "b", "--steps", 1, "--init", tmp_path / "a" / "ckpt.pt", "--warmup", 10 ** 9)
    a, _ = Policy.load(tmp_path / "a" / "ckpt.pt")
    b, _ = Policy.load(tmp_path / "b" / "ckpt.pt", ema=False)                 # one step at a learning rate near 0
    assert all(torch.allclose(v, b.state_dict()[k], atol=1e-6) for k, v in a.state_dict().items())
    train("--data", demos, "--out", tmp_path / "c", "--steps", 1, "--warmup", 10 ** 9)
    c, _ = Policy.load(tmp_path / "c" / "ckpt.pt", ema=False)
    assert not all(torch.allclose(v, c.state_dict()[k], atol=1e-6) for k, v in a.state_dict().items())


# ---- kill and resume

def test_killed_run_resumes_bit_for_bit(tmp_path, demos, quick):
    """SIGKILL between two saves, then --resume: weights, EMA, optimiser and log as if nothing had happened."""
    flags = ["--data", demos, "--steps", 300, "--save-every", 100, "--memory", 6]
    train(*flags, "--out", tmp_path / "whole")
    cut = tmp_path / "cut"
    p = subprocess.Popen([sys.executable, ROOT / "dbp_train.py", *SMALL, *map(str, flags), "--out", cut],
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 600
        while not any(r["step"] >= 150 for r in read_log(cut)):
            assert p.poll() is None and time.monotonic() < deadline, p.stderr.read().decode()
            time.sleep(0.005)
        p.send_signal(signal.SIGKILL)
    finally:
        p.kill()
        p.communicate()
    at = load_torch(cut / "state.pt")["step"]
    assert at in (100, 200)                                                # killed on its way, after a save
    assert load_torch(cut / "ckpt.pt")["step"] in (at, at + 100)           # both files are whole
    with open(cut / "log.jsonl", "a") as f:
        f.write('{"step": 250, "lo')                                       # the worst that a kill can leave
    train(*flags, "--out", cut, "--resume")

    whole, resumed = (load_torch(tmp_path / n / "state.pt") for n in ("whole", "cut"))
    assert whole["step"] == resumed["step"] == 300
    for part in ("weights", "ema", "optimizer", "snapshots", "total", "memory"):
        assert same(whole[part], resumed[part]), part
    rows, wanted = training_rows(cut), training_rows(tmp_path / "whole")
    assert [r["step"] for r in rows] == list(range(50, 301, 50))
    for r, w in zip(rows, wanted, strict=True):
        assert {k: v for k, v in r.items() if k != "minutes"} == {k: v for k, v in w.items() if k != "minutes"}
    assert all(a["minutes"] < b["minutes"] for a, b in zip(rows, rows[1:]))     # training time goes on counting
    ckpts = [load_torch(tmp_path / n / "ckpt.pt") for n in ("whole", "cut")]
    assert same(ckpts[0]["weights"], ckpts[1]["weights"]) and same(ckpts[0]["ema"], ckpts[1]["ema"])
    with open(cut / "log.csv") as f:
        assert [r["step"] for r in csv.DictReader(f) if r["loss"]] == [str(s) for s in range(50, 301, 50)]


def test_resume_of_a_finished_run(tmp_path, demos, quick):
    """Not one step more, and the log and the figures stay what they were."""
    flags = ["--data", demos, "--steps", 60, "--out", tmp_path / "r"]
    train(*flags)
    before, rows = load_torch(tmp_path / "r" / "state.pt"), read_log(tmp_path / "r")
    train(*flags, "--resume")
    after = load_torch(tmp_path / "r" / "state.pt")
    assert after["step"] == 60 and all(same(before[k], after[k]) for k in ("weights", "ema", "optimizer", "total"))
    assert training_rows(tmp_path / "r") == [r for r in rows if "loss" in r]


def test_resumed_finished_run_logs_its_score_once(tmp_path, demos, quick):
    flags = ["--data", demos, "--steps", 2, "--out", tmp_path / "r"]
    train(*flags)
    train(*flags, "--resume")
    assert [r["step"] for r in read_log(tmp_path / "r") if "score" in r] == [2]


# ---- as a user runs it

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One real run as a subprocess: simulator, pictures and all. (run folder, stdout)."""
    folder = tmp_path_factory.mktemp("finished")
    write_demos(folder / "demos.npz")
    code, out, err = cli("dbp_train.py", *SMALL, "--data", folder / "demos.npz", "--out", folder / "r", "--steps", 60)
    assert code == 0, err
    return folder / "r", out


def test_run_folder(finished):
    out, printed = finished
    about = json.loads((out / "flags.json").read_text())
    assert about["flags"]["seed"] == 0 and about["flags"]["dims"] == [8, 16] and about["flags"]["T_p"] == 16
    assert about["commit"] and about["versions"]["torch"] and "--steps" in about["command"]
    for name in ("curves.png", "hypotheses.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG") and (out / name).stat().st_size > 10_000
    assert [p for p in out.glob("events.out.tfevents*") if p.stat().st_size > 500]
    rows = read_log(out)
    assert [r["step"] for r in rows] == [50, 60, 60] and 0 <= rows[-1]["score_low"] <= rows[-1]["score"] <= 1
    with open(out / "log.csv") as f:
        assert [float(r["loss"] or 0) for r in csv.DictReader(f)] == [r.get("loss", 0) for r in rows]
    assert set(load_torch(out / "state.pt")["snapshots"]) == {0, 30, 60}
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]
    last = printed.splitlines()[-1]
    assert last.startswith(f"score {rows[-1]['score']:.3f} ") and str(out / "ckpt.pt") in last and "60 steps" in last
    assert Policy.load(out / "ckpt.pt", task="pusht")[1]["seed"] == 0


def sockets():
    try:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
        return True
    except OSError:
        return False


def torchrun(*flags):
    """Two processes on the CPU -> (exit code, stderr)."""
    p = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                        ROOT / "dbp_train.py", *SMALL, *map(str, flags)], capture_output=True, text=True, timeout=600)
    return p.returncode, p.stderr


@pytest.mark.skipif(not sockets(), reason="no sockets here: two processes cannot talk")
def test_two_processes(tmp_path, steps=5):
    """17 windows in batches of 4: a last batch of a single one would leave the second process with nothing."""
    write_demos(tmp_path / "d.npz", lengths=(24,))
    assert len(Chunks(load(TASKS["pusht"], tmp_path / "d.npz"), 2, 16, 8)) == 17
    code, err = torchrun("--data", tmp_path / "d.npz", "--out", tmp_path / "r", "--steps", steps, "--batch", 4)
    assert code == 0, "\n".join(x for x in err.splitlines() if "Error" in x)
    rows, state = read_log(tmp_path / "r"), load_torch(tmp_path / "r" / "state.pt")
    assert state["step"] == steps and [r["step"] for r in rows] == [steps, steps]       # one process logs
    assert all(torch.isfinite(w).all() for w in state["weights"].values()), "weights are NaN"
    assert all(math.isfinite(v) for v in rows[0].values()), rows[0]


# ---- bad input

def one_line(capsys):
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


def poisoned(path, **change):
    with np.load(write_demos(path)) as f:
        a = {**f, **change}
    save_npz(path, **a)
    return path


BAD_DATA = {
    "missing": (lambda p: p, "no such file"),
    "garbage": (lambda p: p.write_bytes(b"hello"), "damaged"),
    "cut": (lambda p: p.write_bytes(write_demos(p).read_bytes()[:700]), "damaged"),
    "nan": (lambda p: poisoned(p, action=np.full((96, 2), np.nan)), "NaN"),
    "wide": (lambda p: poisoned(p, action=np.zeros((96, 3))), "(96, 3)"),
    "empty": (lambda p: poisoned(p, state=np.zeros((0, 5)), action=np.zeros((0, 2)),
                                episode_ends=np.zeros(0, int)), "empty"),
    "short": (lambda p: write_demos(p, lengths=(5, 6)), "6 steps"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(tmp_path, quick, capsys, name):
    make, word = BAD_DATA[name]
    make(tmp_path / "bad.npz")
    with pytest.raises(SystemExit) as e:
        train("--data", tmp_path / "bad.npz", "--out", tmp_path / "r", "--steps", 2)
    assert e.value.code == 2 and word in one_line(capsys) and not (tmp_path / "r").exists()


BAD_FLAGS = [
    ("--T-a 16", "Eq. 23"), ("--T-o 17", "Eq. 23"), ("--T-p 8", "Eq. 23"), ("--T-a 0", "T"),
    ("--T-p 15", "multiple of 2"),
    ("--T-p 14 --dims 8 16 16", "multiple of 4"), ("--task chess", "unknown task"), ("--demos 0", "3 episodes"),
    ("--demos 4", "3 episodes"),
    ("--init none.pt", "none.pt: no such file"), ("--init junk.pt", "junk.pt"),
    ("--init state.pt", "not a policy checkpoint"),
    ("--init big.pt", "big.pt"), ("--init chess.pt", "chess"), ("--resume --out nowhere", "state.pt: no such file"),
    ("--resume --dims 16 16", "--dims"), ("--resume", "--steps 1, not 2"),
    ("--resume --seed 7 --steps 1", "--seed 0, not 7"), ("--dims abc", "abc"), ("--dims 8 12", "multiple of 8"),
    ("--dims 0", "multiple of 8"),
    ("--dims auto 8", "auto"), ("--device nonsense", "--device nonsense"), ("--device cuda:99", "--device cuda:99"),
    ("--epochs 2", "one of"), ("--minutes 2", "one of"), ("--epochs 2 --minutes 2", "one of"),
    ("--temp 0", "--temp"), ("--temp 0.2 -1", "--temp"), ("--K 0", "--K"), ("--batch 0", "--batch"),
    ("--save-every 0", "--save-every"),
    ("--episodes 0", "--episodes"), ("--steps 0", "steps"), ("--steps -3", "steps"), ("--seed -1", "seed"),
    ("--lr -1", "lr"), ("--spread -1", "spread"), ("--memory -1", "memory"), ("--positives 0", "positives"),
    ("--positives 9 --demos 1", "too few windows"), ("--temp-start 0", "temp-start"),
    ("--betas 2 3", "betas"), ("--temp nan", "temp"), ("--out demos.npz", "demos.npz"),
    ("--resume --out foreign", "state.pt"), ("", "r holds a run"),
]


@pytest.mark.parametrize("flags,word", BAD_FLAGS, ids=[f for f, _ in BAD_FLAGS])
def test_bad_flags(tmp_path, demos, quick, monkeypatch, capsys, flags, word):
    """Each costs one line and exit code 2, and a run that lies in the folder stays as it was."""
    monkeypatch.chdir(tmp_path)
    train("--data", demos, "--out", "r", "--steps", 1)
    Path("junk.pt").write_bytes(b"junk")
    shape = Policy.load("r/ckpt.pt")[0].shape
    Policy({**shape, "dims": [16, 16]}).save("big.pt")
    Policy({**shape, "task": "chess"}).save("chess.pt")
    Path("state.pt").write_bytes(Path("r/state.pt").read_bytes())
    save_torch("foreign/state.pt", {"some": torch.zeros(3)})
    kept = {p.name: p.read_bytes() for p in Path("r").iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        train("--data", demos, "--out", "r" if "--resume" in flags or not flags else "new", "--steps", 2, *flags.split())
    assert e.value.code == 2 and word in one_line(capsys)
    assert not Path("new").exists()
    assert {p.name: p.read_bytes() for p in Path("r").iterdir()} == kept and not Path("nowhere").exists()


def test_bad_input_as_a_user_sees_it(tmp_path, demos):
    for flags, word in ((["--data", tmp_path / "none.npz"], "no such file"), (["--data", demos, "--dims", "abc"], "abc")):
        code, out, err = cli("dbp_train.py", *SMALL, "--out", tmp_path / "r", "--steps", 2, *flags)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and word in err
    assert not (tmp_path / "r").exists()


def test_flags_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit) as e:
        train("--epis", 3)
    assert e.value.code == 2 and "unrecognized" in capsys.readouterr().err
