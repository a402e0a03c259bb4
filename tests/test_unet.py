"""unet.py by its public functions: shapes, one condition for K hypotheses, gradients, a fit."""

import pytest
import torch

from beyond import spread_outputs
from drift import chunk_loss
from unet import UNet1d

DIMS = (16, 32, 64)


def small(seed=0, D_a=3, cond_dim=5, dims=DIMS):
    """A small network of that seed."""
    torch.manual_seed(seed)
    return UNet1d(D_a, cond_dim, dims)


@pytest.mark.parametrize("T_p", [4, 8, 16])
@pytest.mark.parametrize("K", [None, 1, 4])
def test_shape_of_z_is_kept(T_p, K):
    batch = (2,) if K is None else (2, K)
    z = torch.randn(*batch, T_p, 3)
    x = small()(z, torch.randn(2, 5))
    assert x.shape == z.shape and x.isfinite().all()


@pytest.mark.parametrize("dims, T_p", [((8,), 3), ((8, 16), 6), ((8, 16, 24, 32), 8)])
def test_any_number_of_levels(dims, T_p):
    x = small(dims=dims)(torch.randn(2, 2, T_p, 3), torch.randn(2, 5))
    assert x.shape == (2, 2, T_p, 3)


def test_hypotheses_share_their_observation():
    net = small().eval()
    z = torch.randn(3, 4, 8, 3)
    cond = torch.randn(3, 5)
    with torch.no_grad():
        shared = net(z, cond)
        repeated = net(z.flatten(0, 1), cond.repeat_interleave(4, 0)).unflatten(0, (3, 4))
        alone = torch.stack([net(z[:, k], cond) for k in range(4)], 1)
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-5)


def test_hypotheses_do_not_see_each_other():
    net = small().eval()
    z = torch.randn(2, 4, 8, 3)
    cond = torch.randn(2, 5)
    other = z.clone()
    other[:, 1:] += 1
    with torch.no_grad():
        torch.testing.assert_close(net(other, cond)[:, 0], net(z, cond)[:, 0], atol=1e-5, rtol=1e-5)


def test_forward_is_embed_and_generate():
    """Stage 2 calls the two halves itself, to share the embedding with its noise head."""
    net = small()
    z = torch.randn(2, 4, 8, 3)
    cond = torch.randn(2, 5)
    h = net.embed(cond)
    assert h.shape == (2, 256)
    assert torch.equal(net.generate(z, h), net(z, cond))


@pytest.mark.parametrize("T_p", [1, 2, 6, 7])
def test_horizon_that_cannot_be_halved_is_refused(T_p):
    with pytest.raises(ValueError, match=f"T_p = {T_p} cannot be halved 2 times.*multiple of 4"):
        small()(torch.randn(2, T_p, 3), torch.randn(2, 5))


def test_a_network_that_cannot_normalise_is_refused():
    """One step and one channel a group: there would be nothing to normalise."""
    with pytest.raises(ValueError, match="one number to each group"):
        small(dims=(8, 8, 8)).check_horizon(4)
    small(dims=(8, 8, 16)).check_horizon(4)
    small(dims=(8, 8, 8)).check_horizon(8)


@pytest.mark.parametrize("dims", [(12, 16), (16, 20), (0, 8), (-8,), ()])
def test_channels_off_the_group_size_are_refused(dims):
    with pytest.raises(ValueError, match="multiple of 8"):
        UNet1d(2, 5, dims)


def test_size_of_the_papers_network():
    """It has 245 M parameters with a linear FiLM, and 251 M with an embedding before it."""
    with torch.device("meta"):
        net = UNet1d(2, 40, (512, 1024, 2048))
    assert 240 < sum(p.numel() for p in net.parameters()) / 1e6 < 255


def test_gradient_reaches_every_parameter():
    net = small()
    net(torch.randn(2, 4, 8, 3), torch.randn(2, 5)).square().sum().backward()
    dead = [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not dead


def test_condition_and_latent_matter():
    net = small()
    z = torch.randn(2, 4, 8, 3)
    cond = torch.randn(2, 5)
    x = net(z, cond)
    assert (net(z, cond + 1) - x).abs().mean() > 1e-3
    assert (net(z + torch.randn_like(z), cond) - x).abs().mean() > 1e-3
    torch.testing.assert_close(net(z, cond), x)  # no dropout, no hidden noise


def test_weigh_latent():
    """The factor falls on the D_a = 3 latent channels alone, not on the cosines."""
    net = small()
    before = {name: p.clone() for name, p in net.named_parameters()}
    net.weigh_latent(3.0)
    changed = []
    for name, p in net.named_parameters():
        if not torch.equal(p, before[name]):
            changed.append(name)
            torch.testing.assert_close(p[:, :3], 3 * before[name][:, :3])
            assert torch.equal(p[:, 3:], before[name][:, 3:])
    assert len(changed) == 2  # the first convolution and the skip beside it


def test_overfits_one_batch():
    net = small(dims=(16, 32))
    z = torch.randn(4, 8, 3)
    cond = torch.randn(4, 5)
    y = torch.randn(4, 8, 3)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(200):
        loss = (net(z, cond) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize("spread", [0.01, 0.003])
def test_autocast_leaves_the_differences_between_hypotheses(spread):
    """Chunks around 0.5 that differ by less than bfloat16's step there, 1 / 256, or not much more.

    With a last layer in bfloat16 the gradient of the drift's loss in the weights has a cosine of
    0.97 and 0.74 with the right one.
    """
    net = small(D_a=2)
    z = torch.randn(8, 4, 8, 2)
    cond = torch.randn(8, 5)
    spread_outputs(net, spread, torch.randn(200, 8, 2), cond[:1])
    with torch.no_grad():
        net.out[-1].bias += 0.5
        pos = net(z[:, :1], cond) + spread * torch.randn(8, 1, 8, 2)

    def chunks_and_gradient(amp):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            x = net(z, cond)
        net.zero_grad()
        chunk_loss(x, pos)[0].backward()
        return x.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])

    x, grad = chunks_and_gradient(amp=False)
    rounded, grad_of_rounded = chunks_and_gradient(amp=True)
    assert rounded.dtype == torch.float32
    assert (rounded - x).square().mean().sqrt() < 0.06 * spread
    assert torch.cosine_similarity(grad, grad_of_rounded, dim=0) > 0.995


def test_spread_outputs():
    """The outputs of an untrained network vary by the deviation asked for, about a mean of 0."""
    torch.manual_seed(0)
    net = UNet1d(2, 6, (16, 32))
    z = torch.randn(400, 8, 2)
    cond = torch.randn(1, 6)

    def outputs():
        return net(z, cond.expand(400, -1)).detach()

    assert outputs().std(0).mean() < 0.3  # as its layers start
    spread_outputs(net, 0.7, z, cond)
    assert abs(outputs().std(0).mean() - 0.7) < 1e-3
    assert outputs().mean((0, 1)).abs().max() < 1e-5
