"""policy.py: the normaliser, the executed slice, one generator call an action, and checkpoints good and bad."""
import os
import pickletools
import zipfile

import numpy as np
import pytest
import torch

from policy import FORMAT, Normalizer, Policy
from runs import BadInput, save_torch

SHAPE = {"task": "pusht", "obs_dim": 20, "D_a": 2, "T_o": 2, "T_p": 16, "T_a": 8, "dims": [8, 16]}


def policy(seed=0, **change):
    """A small policy with random weights; observations in -3..5, actions in 0..512."""
    torch.manual_seed(seed)
    shape = {**SHAPE, **change}
    wide = lambda lo, hi, n: (torch.full((n,), float(lo)), torch.full((n,), float(hi)))
    return Policy(shape, wide(-3, 5, shape["obs_dim"]), wide(0, 512, shape["D_a"])).eval()


def observations(B=5, seed=1):
    return torch.randn(B, 2, 20, generator=torch.Generator().manual_seed(seed))


# ---- normaliser

def test_normalizer_by_hand():
    n = Normalizer([0., -2., 100.], [10., 2., 300.])
    assert n(torch.tensor([[0., -2, 100], [10, 2, 300], [5, 0, 200], [7.5, 1, 400]])).tolist() == [
        [-1, -1, -1], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 2]]
    y = torch.randn(4, 7, 3)
    torch.testing.assert_close(n.inverse(n(y)), y, atol=1e-4, rtol=1e-5)
    assert n.inverse(torch.tensor([0.5, 0.5, 2])).tolist() == [7.5, 1, 400]


@pytest.mark.parametrize("constant,noise", [(0., 0.), (7., 0.), (-300., 3e-5), (0., 1e-9)])
def test_constant_dimension(constant, noise):
    """Constant up to float32 noise: goes to 0 and comes back, and noise is not blown up to the full range."""
    n = Normalizer(torch.tensor([0., constant]), torch.tensor([1., constant + noise]))
    y = torch.tensor([[0.5, constant], [1., constant + noise]])
    assert n(y)[:, 1].abs().max() < 1e-4
    torch.testing.assert_close(n.inverse(n(y)), y)
    assert n.inverse(torch.zeros(2))[1] == pytest.approx(constant, abs=1e-4)


def test_narrow_dimension_is_not_constant():
    n = Normalizer(torch.tensor([0.]), torch.tensor([1e-3]))
    assert n(torch.tensor([1e-3])).item() == pytest.approx(1)


def test_statistics_are_buffers_and_copies():
    lo, hi = torch.zeros(2), torch.ones(2)
    n = Normalizer(lo, hi)
    hi.mul_(5)
    assert n.hi.tolist() == [1, 1]
    assert not list(n.parameters()) and set(n.state_dict()) == {"lo", "hi"}
    p = policy()
    assert not [k for k, _ in p.named_parameters() if k.startswith("norm")]
    assert {"norm_obs.lo", "norm_obs.hi", "norm_action.lo", "norm_action.hi"} <= set(p.state_dict())


# ---- acting

def test_executed_by_hand():
    """Eq. 22: with T_o = 2, T_p = 16, T_a = 8 the steps 1 to 8 of the chunk run."""
    p, steps = policy(), torch.arange(16.).view(1, 16, 1).expand(3, 16, 2)
    assert p.executed(steps)[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8] and p.executed(steps).shape == (3, 8, 2)
    assert policy(T_o=1, T_p=4, T_a=4).executed(steps[:, :4])[0, :, 0].tolist() == [0, 1, 2, 3]
    assert policy(T_o=3, T_p=8, T_a=2).executed(steps[:, :8])[0, :, 0].tolist() == [2, 3]


def test_set_executed():
    p, steps = policy(), torch.arange(16.).view(1, 16, 1)
    for T_a in (1, 15):
        p.set_executed(T_a)
        assert p.executed(steps).flatten().tolist() == list(range(1, 1 + T_a))
    for T_a in (0, -1, 16):
        with pytest.raises(BadInput, match="Eq. 23"):
            p.set_executed(T_a)
    assert p.T_a == 15


def test_one_generator_call():
    p, calls = policy(), []
    p.net.register_forward_hook(lambda module, args, out: calls.append(tuple(args[0].shape)))
    obs = observations()
    assert p.act(obs).shape == (5, 16, 2) and calls == [(5, 16, 2)]
    assert p.hypotheses(obs, 3).shape == (5, 3, 16, 2) and calls[1:] == [(5, 3, 16, 2)]


def test_act_is_the_generator_in_action_units():
    p, obs = policy(), observations()
    z = p.latent(5, generator=torch.Generator().manual_seed(3))
    chunk = p.act(obs, z)
    with torch.no_grad():
        cond = ((obs + 3) / 4 - 1).flatten(1)                               # (o - lo) / half - 1
        torch.testing.assert_close(chunk, (p.net(z, cond) + 1) * 256, atol=1e-2, rtol=1e-5)
    assert torch.equal(chunk, p.act(obs, z)) and not chunk.requires_grad
    assert torch.equal(chunk, p.act(obs, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(chunk, p.act(obs))
    p.z_scale = 0.5
    assert torch.equal(p.act(obs, generator=torch.Generator().manual_seed(3)), p.act(obs, 0.5 * z))
    assert torch.equal(p.act(obs, z), chunk)                                 # a latent that is given is not scaled
    p.z_scale = 1.0
    torch.testing.assert_close(p.act(obs[2:3], z[2:3])[0], chunk[2], atol=1e-2, rtol=1e-4)      # rows are independent


def test_hypotheses_differ_and_carry_gradients():
    p, obs = policy(), observations(B=2)
    x = p.hypotheses(obs, 4, generator=torch.Generator().manual_seed(3))
    assert x.requires_grad and (x[:, :1] - x[:, 1:]).abs().amax((-1, -2)).min() > 1e-3
    z = p.latent(2, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(p(obs[1:], z[1:, 2])[0], x[1, 2])             # K hypotheses are K separate passes
    assert not torch.allclose(p(obs[:1], z[1:, 2])[0], x[1, 2], atol=1e-4)   # and each sees its own observation


@pytest.mark.parametrize("size", [(5, 20), (5, 1, 20), (5, 2, 19), (5, 3, 20)])
def test_misshapen_observations(size):
    with pytest.raises(BadInput, match="2, 20"):
        policy().act(torch.zeros(size))


@pytest.mark.parametrize("change,word", [({"T_p": 6, "dims": [8, 16, 16]}, "multiple of 4"),
                                         ({"T_p": 15}, "multiple of 2"), ({"dims": [8, 12]}, "multiple of 8"),
                                         ({"dims": []}, "multiple of 8"),
                                         ({"dims": [0]}, "multiple of 8")])
def test_impossible_network(change, word):
    with pytest.raises(BadInput, match=word):
        policy(**change)


# ---- checkpoints

def test_round_trip(tmp_path):
    """EMA and raw weights come back bit for bit, with shape, normaliser, flags; and the file needs no unpickling."""
    p, other, path = policy(), policy(seed=1), tmp_path / "deep" / "ckpt.pt"
    ema = {k: v.detach().clone() for k, v in other.named_parameters()}
    p.save(path, flags={"seed": 7, "temp": [0.2]}, ema=ema, step=12)
    raw, flags = Policy.load(path, ema=False)
    mean, _ = Policy.load(path, task="pusht")
    assert flags == {"seed": 7, "temp": [0.2]} and raw.shape == p.shape and not raw.training
    assert set(raw.state_dict()) == set(p.state_dict())
    assert all(torch.equal(v, p.state_dict()[k]) for k, v in raw.state_dict().items())
    assert all(torch.equal(v, ema[k]) for k, v in mean.named_parameters())
    assert torch.equal(mean.norm_action.hi, p.norm_action.hi) and (mean.T_o, mean.T_p, mean.T_a) == (2, 16, 8)
    obs, z = observations(), p.latent(5)
    assert torch.equal(raw.act(obs, z), p.act(obs, z)) and torch.equal(mean.act(obs, z), other.act(obs, z))
    assert torch.load(path, weights_only=True)["step"] == 12
    p.save(path)                                                             # no EMA: the raw weights
    assert all(torch.equal(v, p.state_dict()[k]) for k, v in Policy.load(path)[0].state_dict().items())
    assert [q.name for q in path.parent.iterdir()] == ["ckpt.pt"]


def refused(path, *words, **kw):
    with pytest.raises(BadInput) as e:
        Policy.load(path, **kw)
    for word in ("ckpt.pt", *words):
        assert word in str(e.value), str(e.value)


def test_another_task(tmp_path):
    policy(task="chess").save(tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", "chess", "pusht", task="pusht")
    assert Policy.load(tmp_path / "ckpt.pt")[0].task == "chess"


def test_malicious_pickle(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "ckpt.pt"
    torch.save({"format": FORMAT, "shape": SHAPE, "weights": {}, "ema": {}, "flags": Trap()}, path)
    refused(path, "not a checkpoint")
    with zipfile.ZipFile(path) as z:                    # the bare pickle, in torch's old format
        pickled = z.read(next(n for n in z.namelist() if n.endswith("data.pkl")))
    path.write_bytes(pickled)
    refused(path, "not a checkpoint")
    assert not (tmp_path / "sprung").exists()
    said = [(op.name, arg) for op, arg, _ in pickletools.genops(pickled)]       # the trap is in the file, and works
    assert any("mkdir" in str(arg) for _, arg in said) and any(op == "REDUCE" for op, _ in said)
    assert any(str(tmp_path / "sprung") == arg for _, arg in said)
    make, args = Trap().__reduce__()
    make(*args)
    assert (tmp_path / "sprung").exists()


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "ckpt.pt"
    refused(path, "no such file")
    policy().save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", np.random.default_rng(0).bytes(3000), whole[:len(whole) // 2], whole[:-40], whole[:100]):
        path.write_bytes(content)
        refused(path, "not a checkpoint")
    for state in ({"weights": policy().state_dict()}, policy().state_dict(), [1, 2], torch.zeros(3)):
        save_torch(path, state)
        refused(path, "not a policy checkpoint")


def test_weights_that_do_not_fit(tmp_path):
    """A checkpoint of this format whose parts contradict each other, as another version might write."""
    path, p = tmp_path / "ckpt.pt", policy()
    good = {"format": FORMAT, "shape": p.shape, "flags": {}, "step": 0, "weights": p.state_dict(), "ema": {}}
    fewer = {k: v for k, v in p.state_dict().items() if k != "norm_obs.lo"}
    for change in ({"weights": fewer}, {"weights": policy(dims=[16, 16]).state_dict()}, {"shape": {"task": "pusht"}},
                   {"ema": {"net.none": torch.zeros(1)}}, {"shape": {**p.shape, "T_p": 15}}):
        save_torch(path, {**good, **change})
        with pytest.raises(BadInput):
            Policy.load(path, task="pusht")
