"""beyond.py: the untrained outputs' deviation, and the memory of past hypotheses against a plain
list."""

import pytest
import torch

from beyond import Memory, installed_memory, spread_outputs
from commands import BadInput
from drift import chunk_loss
from unet import UNet1d


def net_and_condition(seed=0):
    """A small network, latents (400, 8, 2) and a condition (1, 6)."""
    torch.manual_seed(seed)
    return UNet1d(2, 6, (16, 32)), torch.randn(400, 8, 2), torch.randn(1, 6)


# ---- --spread ------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_spread_outputs(std):
    """At that condition the outputs have the deviation over z that was asked for, and mean 0."""
    net, z, cond = net_and_condition()

    def outputs():
        with torch.no_grad():
            return net(z, cond.expand(len(z), -1))

    assert outputs().std(0).mean() < 0.25  # how the layers start
    assert outputs().mean((0, 1)).abs().max() > 1e-3
    spread_outputs(net, std, z, cond)
    assert outputs().std(0).mean().item() == pytest.approx(std, rel=1e-4)
    assert outputs().mean((0, 1)).abs().max() < 1e-5


def test_spread_gives_the_latent_its_usual_weight():
    """Nothing but the first block's latent channels and the last layer changes."""
    net, z, cond = net_and_condition()
    before = {name: p.clone() for name, p in net.named_parameters()}
    spread_outputs(net, 1.0, z, cond)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    first = {"down.0.0.first.0.weight", "down.0.0.skip.weight"}
    assert changed == {*first, "out.1.weight", "out.1.bias"}
    for name in first:
        weight = dict(net.named_parameters())[name]
        torch.testing.assert_close(weight[:, :2], 4 * before[name][:, :2])
        assert torch.equal(weight[:, 2:], before[name][:, 2:])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


# ---- --memory ------------------------------------------------------------------------------------


def chunks(*rows):
    """Hypotheses (B, K, 1, 1) from B rows of K numbers."""
    return torch.tensor(rows, dtype=torch.float32)[..., None, None]


def test_memory_by_hand():
    """Newest first; the weight is 0 where there is none yet; never more than N."""
    memory = Memory(windows=5, N=3, T_p=1, D_a=1, device="cpu")
    past = memory.negatives(torch.tensor([4, 1]), chunks([1, 2], [3, 4]))
    assert (past["w_neg"] == 0).all()
    past = memory.negatives(torch.tensor([1, 0]), chunks([5, 6], [7, 8]))
    assert past["w_neg"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert past["neg"][0, :2].flatten().tolist() == [3, 4]
    past = memory.negatives(torch.tensor([1]), chunks([9, 10]))
    assert past["w_neg"].tolist() == [[1, 1, 1]]
    assert past["neg"].flatten().tolist() == [5, 6, 3]
    assert memory.chunks[4].flatten().tolist() == [1, 2, 0]
    assert memory.filled.tolist() == [2, 3, 0, 0, 2]


@pytest.mark.parametrize("N", [1, 2, 4, 7])
def test_memory_is_a_list_per_window(N):
    """Also where a batch brings more hypotheses than the memory holds."""
    g = torch.Generator().manual_seed(N)
    memory = Memory(6, N, 2, 3, "cpu")
    lists = [[] for _ in range(6)]
    for _ in range(12):
        i = torch.randperm(6, generator=g)[:4]
        x = torch.randn(4, 3, 2, 3, generator=g)
        past = memory.negatives(i, x)
        assert past["neg"].shape == (4, N, 2, 3)
        for b, window in enumerate(i.tolist()):
            there = len(lists[window])
            assert past["w_neg"][b].tolist() == [1.0] * there + [0.0] * (N - there)
            for n, chunk in enumerate(lists[window]):
                assert torch.equal(past["neg"][b, n], chunk)
            lists[window] = [*x[b], *lists[window]][:N]


def test_memory_is_kept_by_value():
    """What was handed out or in does not change with what comes later."""
    memory = Memory(2, 2, 1, 1, "cpu")
    x = chunks([1, 2])
    memory.negatives(torch.tensor([0]), x)
    past = memory.negatives(torch.tensor([0]), chunks([3, 4]))
    x.fill_(9)
    memory.negatives(torch.tensor([0]), chunks([5, 6]))
    assert past["neg"].flatten().tolist() == [1, 2]


def test_memory_goes_on(tmp_path):
    """From plain tensors that a file keeps, without unpickling code."""
    memory = Memory(3, 2, 1, 1, "cpu")
    memory.negatives(torch.tensor([0, 2]), chunks([1], [2]))
    torch.save(memory.state(), tmp_path / "state.pt")
    other = Memory(3, 2, 1, 1, "cpu")
    other.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    i = torch.tensor([2, 1])
    x = chunks([3], [4])
    a = memory.negatives(i, x)
    b = other.negatives(i, x)
    assert all(torch.equal(a[name], b[name]) for name in ("neg", "w_neg"))
    assert torch.equal(memory.chunks, other.chunks)
    assert torch.equal(memory.filled, other.filled)


def loss_gradient_and_scale(x, pos, **how):
    """What chunk_loss gives: the loss, its gradient in x, and the mean distance s."""
    x = x.clone().requires_grad_()
    loss, info = chunk_loss(x, pos, temps=(0.05, 0.2), **how)
    loss.backward()
    return loss.detach(), x.grad, info["s"]


@pytest.mark.parametrize("filled", [0, 2])
def test_an_empty_slot_has_no_part_in_the_drift(filled):
    """Neither in the scale of Eq. 29 nor in the softmaxes of Eq. 31: as if it were not there.

    An empty memory had changed a third of the gradient.
    """
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8, 2, dtype=torch.float64)
    pos = torch.randn(3, 1, 8, 2, dtype=torch.float64)
    memory = Memory(3, 5, 8, 2, "cpu")
    if filled:
        memory.negatives(torch.arange(3), torch.randn(3, filled, 8, 2))
    past = memory.negatives(torch.arange(3), x.float())
    alone = {"neg": past["neg"][:, :filled].double()} if filled else {}
    for a, b in zip(
        loss_gradient_and_scale(x, pos, **past), loss_gradient_and_scale(x, pos, **alone)
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_a_filled_slot_has_a_part_in_the_drift():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8, 2)
    pos = torch.randn(3, 1, 8, 2)
    memory = Memory(3, 5, 8, 2, "cpu")
    memory.negatives(torch.arange(3), x)
    _, grad, s = loss_gradient_and_scale(x, pos)
    _, grad_of_filled, s_of_filled = loss_gradient_and_scale(
        x, pos, **memory.negatives(torch.arange(3), x)
    )
    assert abs(s_of_filled - s) > 1e-3
    assert (grad_of_filled - grad).norm() > 0.1 * grad.norm()


def test_nothing_is_divided_by_zero_where_all_references_are_absent():
    """One observation whose references all have the weight 0 is left where it is."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 2)
    there = torch.tensor([[0.0], [1.0]])
    _, grad, _ = loss_gradient_and_scale(x, torch.randn(2, 1, 8, 2), w_x=there, w_pos=there)
    assert grad.isfinite().all()
    assert (grad[0] == 0).all()
    assert (grad[1] != 0).all()


def test_a_memory_that_does_not_fit_is_refused_before_it_is_allocated():
    """The line says how much it would take, and the largest N that fits."""
    windows = 10**6
    with pytest.raises(BadInput, match="--memory 1000000 takes 128000.0 GB for 1000000") as e:
        Memory(windows, 10**6, 16, 2, "cpu")
    most = int(str(e.value).rsplit(" ", 1)[1])
    needed = 4 * windows * 16 * 2 * most
    assert needed <= installed_memory("cpu") / 2 < needed + 4 * windows * 16 * 2
