"""ranks.py: two processes of torchrun take the gradients and make the updates of one.

One torchrun takes all gradients and makes whole runs of both stages; others are killed and resumed.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

import dbp_report
import dbp_train
import dbpo_ppo
from commands import BadInput
from conftest import ROOT, write_demos
from envs import task_named
from files import load_torch
from ranks import ALONE, Ranks, of_torchrun
from runs import read_log
from test_dbpo import same_training as same_stage_2
from test_dbpo_loss import make_policy
from test_train import same_training as same_stage_1

SMALL = "--dims 8 16 --episodes 1 --device cpu --one-process --save-every 0 --threads 1".split()


def sockets():
    """Whether two processes can talk here."""
    try:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
    except OSError:
        return False
    return True


needs_sockets = pytest.mark.skipif(not sockets(), reason="no sockets here: processes cannot talk")


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, world", [(8, 2), (7, 2), (7, 3), (2, 3), (1, 1)])
def test_rows_are_dealt_out(n, world):
    """Every row goes to one process; sizes and weights are those of the shares."""
    every = [Ranks(rank, world) for rank in range(world)]
    shares = [list(ranks.share(range(n))) for ranks in every]
    assert sorted(sum(shares, [])) == list(range(n))
    assert [ranks.size(n) for ranks in every] == [len(share) for share in shares]
    assert sum(ranks.weight(n) for ranks in every) == pytest.approx(1)
    assert [ranks.first for ranks in every] == [True, *[False] * (world - 1)]


def test_one_process_sends_nothing():
    """Sums and the like are what was given, the same object."""
    y = torch.arange(3.0)
    assert ALONE.total(y) is y and ALONE.largest(y) is y and ALONE.whole(y, 3) is y
    assert ALONE.gathered([1]) == [1] and ALONE.agreed(3) == 3 and ALONE.any(True)
    with ALONE.joined("cpu"):
        assert not torch.distributed.is_initialized()


def test_the_gpu_is_chosen_before_cuda_is_touched(monkeypatch):
    """Each process takes the GPU of its local rank, by name and as the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    environment = {"WORLD_SIZE": 4, "RANK": 3, "LOCAL_RANK": 1, "MASTER_ADDR": "x"}
    for name, value in {**environment, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    args = Namespace(device="cuda")
    assert of_torchrun(args) == Ranks(3, 4)
    assert args.device == "cuda:1" and chosen == ["cuda:1"]

    def refuses(device):
        raise RuntimeError("CUDA error: invalid device ordinal\nand more")

    monkeypatch.setattr(torch.cuda, "set_device", refuses)
    with pytest.raises(BadInput, match="cuda:1 cannot be used here .*invalid device ordinal"):
        of_torchrun(Namespace(device="cuda"))


@pytest.mark.parametrize("script", ["dbp_train", "dbpo_ppo"])
def test_the_gpu_is_chosen_first(script, monkeypatch):
    """Before the flags are checked, which makes a tensor on the device."""
    trainer = __import__(script)
    order = []
    monkeypatch.setattr(trainer, "of_torchrun", lambda args: order.append("choose") or ALONE)

    def resolve(args):
        order.append("resolve")
        raise BadInput("enough")

    monkeypatch.setattr(trainer, "resolve", resolve)
    with pytest.raises(BadInput, match="enough"):
        trainer.train(trainer.parse(["--device", "cpu"]))
    assert order == ["choose", "resolve"]


# ---- gradients and updates -----------------------------------------------------------------------

CASES = {
    "chunk": "--batch 8",
    "step": "--batch 8 --mode step",
    "two temperatures": "--batch 8 --temp 0.05 0.2 --K 3",
    "uneven": "--batch 7",
    "very uneven": "--batch 3 --mode step --temp 0.05 0.2",
    "fewer windows than the batch": "--batch 1000",
    "bc": "--batch 7 --method bc",
}

# What torchrun starts: what ranks.py gives, the gradients of each case, and whole runs.
PROGRAM = """
import contextlib
import json
import sys

import pytest
import torch

import test_ranks
from ranks import Ranks, of_torchrun

folder, cases, runs = sys.argv[1], *map(json.loads, sys.argv[2:])
args = test_ranks.parsed(folder)
ranks = of_torchrun(args)
found = {}
with ranks.joined(args.device):
    for name, flags in cases.items():
        args = test_ranks.parsed(folder, *flags.split())
        with test_ranks.float64():
            found[name] = test_ranks.gradients(args, ranks)
    if cases:
        args = test_ranks.parsed(folder, "--batch", "8")
        found["float32"] = test_ranks.gradients(args, ranks)
        rows = ranks.share(torch.arange(10).view(5, 2))
        found["whole"] = ranks.whole(rows, 5)
        found["gathered"] = ranks.gathered(ranks.share(["a", "b", "c", "d", "e"]))
        found["largest"] = ranks.largest(torch.tensor([1.0, 2.0]) * (ranks.rank or -1))
        found["any"] = [ranks.any(False), ranks.any(ranks.rank == 1)]
        found["agreed"] = ranks.agreed(7 + ranks.rank)
        torch.save(found, f"{folder}/rank{ranks.rank}.pt")
    patch = pytest.MonkeyPatch()
    test_ranks.quick(patch)
    test_ranks.kill_second_process(patch)
    patch.setattr(Ranks, "joined", lambda ranks, device: contextlib.nullcontext())  # they have
    for stage, out, flags in runs:
        test_ranks.train(folder, stage, out, *flags)
"""


def parsed(folder, *flags):
    """The flags of a Stage-1 run in a folder that holds demonstrations, as it takes them."""
    common = ["--data", f"{folder}/d.npz", "--out", f"{folder}/r", "--steps", "9"]
    args = dbp_train.parse([*SMALL, *common, *flags])
    dbp_train.resolve(args)
    return args


@contextlib.contextmanager
def float64():
    """Inside the `with`, policies are made in float64, so that rounding hides no difference."""
    real = dbp_train.new_policy
    torch.set_default_dtype(torch.float64)
    dbp_train.new_policy = lambda *args: real(*args).double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        dbp_train.new_policy = real


def gradients(args, ranks):
    """The gradients of a step, by name, and the sums of the figures of the one before."""
    training = dbp_train.Training(args, task_named(args.task), ranks)
    training.advance()
    training.check_finite()
    sums = training.total_sums()
    training.gradients()
    grads = {name: p.grad.clone() for name, p in training.policy.named_parameters()}
    return {"grads": grads, "figures": sums}


STAGE_1 = "--steps 120 --dims 8 16 --batch 7 --warmup 20 --lr 2e-3".split()
STAGE_2 = (
    "--num-iterations 3 --num-envs 3 --num-steps 40 --minibatch-size 17 --critic-warmup 0".split()
)
STAGE_2 += "--critic-minibatch-size 14 --critic-epochs 2 --update-epochs 2 --eval-every 0".split()
SHARED = "--episodes 1 --device cpu --one-process --save-every 0 --threads 1".split()


def train(folder, stage, out, *flags):
    """A whole run in this process, of Stage 1 or 2; see `quick` for what is left out of it."""
    if stage == 1:
        flags = [*STAGE_1, "--data", f"{folder}/d.npz", *SHARED, *flags]
        dbp_train.train(dbp_train.parse([*flags, "--out", f"{folder}/{out}"]))
    else:
        flags = [*STAGE_2, "--init", f"{folder}/init.pt", *SHARED, *flags]
        dbpo_ppo.train(dbpo_ppo.parse([*flags, "--out", f"{folder}/{out}"]))


def quick(patch):
    """No pictures, and evaluations that cost nothing. patch: a MonkeyPatch.

    The noise is "measured" by the first process alone, which tells the others.
    """
    for writer in (dbp_report, dbpo_ppo):
        patch.setattr(writer, "evaluate", lambda *args, **kw: (SCORE, None))
        patch.setattr(writer, "curves", lambda *args, **kw: None)
    patch.setattr(dbp_report, "hypotheses_figure", lambda *args: None)
    patch.setattr(dbpo_ppo, "smoothness", lambda *args: {"jerk": None})
    patch.setattr(dbpo_ppo, "noise_for", lambda *args, **kw: (0.1, "measured"))


SCORE = {
    "score": 0.5,
    "scores": [0.5],
    "score_95": (0.4, 0.6),
    "success": 0.1,
    "success_95": (0.0, 0.2),
    "episodes": 1,
    "seconds": 1.0,
    "network_s": 0.5,
    "network_ms": 1.0,
}


def kill_second_process(patch):
    """Let the second process kill itself at the call KILL_AT of a step or of an iteration."""
    calls = []

    def deadly(real):
        def call(*args):
            calls.append(1)
            if len(calls) == int(os.environ["KILL_AT"]):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    if "KILL_AT" in os.environ and os.environ["RANK"] == "1":
        patch.setattr(dbp_train.Training, "gradients", deadly(dbp_train.Training.gradients))
        patch.setattr(dbpo_ppo, "advantages", deadly(dbpo_ppo.advantages))


def torchrun(folder, *, cases=None, runs=(), kill_at=None):
    """PROGRAM in two processes. It must succeed, unless one of them is killed."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", 2, script, folder, json.dumps(cases or {}), json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    if kill_at:
        environment["KILL_AT"] = str(kill_at)
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment
    )
    assert (done.returncode == 0) == (kill_at is None), done.stderr


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found, and the folder of their runs r1 and r2."""
    folder = tmp_path_factory.mktemp("ranks")
    write_demos(folder / "d.npz", lengths=(25, 24))
    make_policy().save(folder / "init.pt")
    torchrun(folder, cases=CASES, runs=[(1, "r1", []), (2, "r2", [])])
    return folder, [load_torch(folder / f"rank{rank}.pt") for rank in (0, 1)]


def apart(a, b):
    """The norm of the difference of two gradients {name: tensor}, relative to theirs."""
    a = torch.cat([a[name].flatten() for name in b])
    b = torch.cat([y.flatten() for y in b.values()])
    return ((a - b).norm() / b.norm()).item()


@needs_sockets
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_gradient_of_one(both, case):
    """Of a whole batch, wherever its rows lie; also the figures of the log are the same."""
    folder, found = both
    with float64():
        one = gradients(parsed(folder, *CASES[case].split()), ALONE)
    for two in found:
        assert apart(two[case]["grads"], one["grads"]) < 1e-10  # measured: 1.4e-14
        for name, value in one["figures"].items():
            torch.testing.assert_close(two[case]["figures"][name], value, rtol=1e-9, atol=1e-12)
    assert apart(found[0][case]["grads"], found[1][case]["grads"]) == 0


@needs_sockets
def test_two_processes_in_float32(both):
    """What rounding leaves: measured 2e-6, because the untrained hypotheses lie close together."""
    folder, found = both
    one = gradients(parsed(folder, "--batch", "8"), ALONE)
    assert apart(found[0]["float32"]["grads"], one["grads"]) < 2e-5


def test_shares_by_themselves_have_another_gradient(tmp_path, monkeypatch):
    """Without the sums over processes the gradient is another: the test above would see it."""
    write_demos(tmp_path / "d.npz", lengths=(25, 24))
    args = parsed(tmp_path, "--batch", "8")
    monkeypatch.setattr(dbp_train.Training, "advance", lambda self: None)
    monkeypatch.setattr(dbp_train.Training, "total_sums", lambda self: None)
    one = gradients(args, ALONE)["grads"]
    monkeypatch.setattr(Ranks, "_reduced", lambda self, y, how: y)
    monkeypatch.setattr(Ranks, "sharing", lambda self, m, loss: lambda *a: loss(m, *a))
    monkeypatch.setattr(Ranks, "backward", lambda self, loss, n: (loss / 2).backward())
    shares = [gradients(args, Ranks(rank, 2))["grads"] for rank in (0, 1)]
    assert apart({name: shares[0][name] + shares[1][name] for name in one}, one) > 1e-3


@needs_sockets
def test_what_two_processes_tell_each_other(both):
    for found in both[1]:
        assert found["whole"].tolist() == torch.arange(10).view(5, 2).tolist()
        assert found["gathered"] == ["a", "b", "c", "d", "e"]
        assert found["largest"].tolist() == [1, 2]
        assert found["any"] == [False, True] and found["agreed"] == 7


# ---- whole runs ----------------------------------------------------------------------------------


def moved(out, start):
    """How far the weights of a run's ckpt.pt are from those of another file, as one vector."""
    before = load_torch(start)["weights"]
    after = load_torch(out / "ckpt.pt")["weights"]
    return torch.cat([(after[name] - y).flatten() for name, y in before.items()])


def same_figures(a, b):
    """Assert that two logs of Stage 2 tell the same, up to rounding that three updates enlarge."""
    rows = [[r for r in read_log(out) if "kl" in r] for out in (a, b)]
    assert len(rows[0]) == len(rows[1]) == 3
    for x, y in zip(*rows):
        for name in ("return", "explained", "kl", "clipped", "sigma", "anchor", "value_loss"):
            assert x[name] == pytest.approx(y[name], rel=1e-2, abs=1e-4), name


@needs_sockets
def test_two_processes_make_the_updates_of_one(both, monkeypatch):
    """Stage 2: three simulators, of which one process has two; last minibatches of one row."""
    folder, _ = both
    quick(monkeypatch)
    train(folder, 2, "one")
    one = moved(folder / "one", folder / "init.pt")
    two = moved(folder / "r2", folder / "init.pt")
    assert (two - one).norm() < 1e-3 * one.norm()  # measured: 4e-5
    states = [load_torch(folder / out / "state.pt") for out in ("one", "r2")]
    assert states[0]["episodes"]["seeds"].tolist() == states[1]["episodes"]["seeds"].tolist()
    for name, value in states[0]["critic"].items():
        torch.testing.assert_close(states[1]["critic"][name], value, rtol=1e-3, atol=1e-4)
    same_figures(folder / "one", folder / "r2")


@needs_sockets
def test_killed_processes_go_on(both, monkeypatch):
    """One of two is killed, and the other ends; resumed, all is bit for bit as without the kill.

    One process can go on with what two have begun.
    """
    folder, _ = both
    torchrun(folder, runs=[(1, "k1", [])], kill_at=80)
    torchrun(folder, runs=[(2, "k2", [])], kill_at=3)
    assert load_torch(folder / "k1" / "state.pt")["step"] == 50
    assert load_torch(folder / "k2" / "state.pt")["iteration"] == 2
    shutil.copytree(folder / "k2", folder / "alone")
    torchrun(folder, runs=[(1, "k1", ["--resume"]), (2, "k2", ["--resume"])])
    same_stage_1(folder / "r1", folder / "k1")
    same_stage_2(folder / "r2", folder / "k2")

    quick(monkeypatch)
    train(folder, 2, "alone", "--resume")
    same_figures(folder / "alone", folder / "r2")
    apart = moved(folder / "alone", folder / "r2" / "ckpt.pt")
    assert apart.norm() < 1e-3 * moved(folder / "r2", folder / "init.pt").norm()
