"""ranks.py: two processes of torchrun take the gradients and make the updates of one.

One torchrun computes all gradients; the others kill it and go on.
"""

import contextlib
import os
import socket
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

import dbp_train
from conftest import ROOT, write_demos
from ranks import ALONE, Ranks, of_torchrun
from runs import BadInput, load_torch

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

# What torchrun starts: the gradients of the second step of each case, and what ranks.py gives.
GRADIENTS = """
import json
import sys

import torch

import test_ranks
from ranks import of_torchrun

folder, cases = sys.argv[1], json.loads(sys.argv[2])
args = test_ranks.parsed(folder)
ranks = of_torchrun(args)
found = {}
with ranks.joined(args.device):
    for name, flags in cases.items():
        args = test_ranks.parsed(folder, *flags.split())
        with test_ranks.float64():
            found[name] = test_ranks.gradients(args, ranks)
    found["float32"] = test_ranks.gradients(test_ranks.parsed(folder, "--batch", "8"), ranks)
    rows = ranks.share(torch.arange(10).view(5, 2))
    found["whole"] = ranks.whole(rows, 5)
    found["gathered"] = ranks.gathered(ranks.share(["a", "b", "c", "d", "e"]))
    found["largest"] = ranks.largest(torch.tensor([1.0, 2.0]) * (ranks.rank or -1))
    found["any"] = [ranks.any(False), ranks.any(ranks.rank == 1)]
    found["agreed"] = ranks.agreed(7 + ranks.rank)
torch.save(found, f"{folder}/rank{ranks.rank}.pt")
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
    training = dbp_train.Training(args, dbp_train.task_named(args.task), ranks)
    training.advance()
    training.check_finite()
    sums = training.total_sums()
    training.gradients()
    grads = {name: p.grad.clone() for name, p in training.policy.named_parameters()}
    return {"grads": grads, "figures": sums}


def torchrun(script, *argv, world=2):
    """The command of a script in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return list(map(str, [*command, "--nproc-per-node", world, script, *argv]))


def environment():
    """In which torchrun's processes find this project and its tests."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def finished(command):
    """Run a command to its end; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment())
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found, and the folder of their demonstrations."""
    import json

    folder = tmp_path_factory.mktemp("ranks")
    write_demos(folder / "d.npz", lengths=(25, 24))
    script = folder / "gradients.py"
    script.write_text(GRADIENTS)
    finished(torchrun(script, folder, json.dumps(CASES)))
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
