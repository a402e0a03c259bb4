"""encoders.py: frames encoded one by one, order of points irrelevant, the winners' shortcut exact."""
import torch

from encoders import LowDim, PointNet, Points


def test_low_dim_is_identity():
    state = torch.arange(12.).view(2, 3, 2)
    encoder = LowDim(3, 2)
    assert encoder({"state": state}).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]] and encoder.size == 6


def test_points_shape_and_order():
    torch.manual_seed(0)
    encoder, points, state = Points(2, 5, 40).eval(), torch.randn(3, 2, 40, 3), torch.randn(3, 2, 5)
    out = encoder({"points": points, "state": state})
    assert out.shape == (3, encoder.size) == (3, 256)
    torch.testing.assert_close(out, encoder({"points": points[:, :, torch.randperm(40)], "state": state}))
    one = encoder.cloud(points[:, 1])
    torch.testing.assert_close(out[:, 128:192], one)                           # the second frame's cloud, by itself


def test_winners_give_the_same_values_and_gradients():
    torch.manual_seed(0)
    net, points = PointNet(3, dims=(16, 32), out=8).train(), torch.randn(5, 100, 3)
    weight = torch.randn(5, 8)

    def grads(full):
        net.zero_grad()
        out = net.project(net.mlp(points).amax(1)) if full else net(points)
        (out * weight).sum().backward()
        return out.detach(), [p.grad.clone() for p in net.parameters()]

    (a, ga), (b, gb) = grads(True), grads(False)
    torch.testing.assert_close(a, b)
    for x, y in zip(ga, gb):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    i = net.winners(points)
    assert i.shape[1] <= 32 and all(len(set(r.tolist())) <= 32 for r in i)
