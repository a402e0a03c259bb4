"""encoders.py: frames are encoded one by one, the order of points is irrelevant, and the winners'
shortcut is exact."""

import pytest
import torch

import encoders
from encoders import FEATURES, Encoder, PointNet


def test_numbers_pass_through():
    state = torch.arange(12.0).view(2, 3, 2)
    encoder = Encoder({"state": (2,)}, T_o=3)
    assert encoder({"state": state}).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert encoder.size == 6
    assert not list(encoder.parameters())


def test_names_stand_side_by_side_in_a_frame():
    encoder = Encoder({"arm": (2,), "hand": (1,)}, T_o=2)
    obs = {"hand": torch.tensor([[[5.0], [6]]]), "arm": torch.tensor([[[1.0, 2], [3, 4]]])}
    assert encoder(obs).tolist() == [[1, 2, 5, 3, 4, 6]]
    assert encoder.size == 6


def test_a_cloud_and_a_state():
    """Frame by frame: the cloud's features, then the state's; the order of points is irrelevant."""
    torch.manual_seed(0)
    encoder = Encoder({"state": (5,), "points": (40, 3)}, T_o=2).eval()
    points = torch.randn(3, 2, 40, 3)
    state = torch.randn(3, 2, 5)
    out = encoder({"points": points, "state": state})
    assert out.shape == (3, encoder.size) == (3, 4 * FEATURES)
    shuffled = points[:, :, torch.randperm(40)]
    torch.testing.assert_close(out, encoder({"points": shuffled, "state": state}))
    parts = [
        encoder.parts[name](y[:, t])
        for t in (0, 1)
        for name, y in (("points", points), ("state", state))
    ]
    torch.testing.assert_close(out, torch.cat(parts, 1))


def test_two_clouds_have_an_encoder_each():
    torch.manual_seed(0)
    encoder = Encoder({"joints": (4,), "wrist": (30, 3), "front": (40, 3)}, T_o=1).eval()
    obs = {
        "front": torch.randn(2, 1, 40, 3),
        "joints": torch.randn(2, 1, 4),
        "wrist": torch.randn(2, 1, 30, 3),
    }
    out = encoder(obs)
    assert encoder.size == 3 * FEATURES
    parts = [encoder.parts[name](obs[name][:, 0]) for name in ("wrist", "front", "joints")]
    torch.testing.assert_close(out, torch.cat(parts, 1))
    weights = [encoder.parts[name].project[0].weight for name in ("wrist", "front")]
    assert not torch.equal(*weights)


def test_a_cloud_alone():
    encoder = Encoder({"points": (40, 3)}, T_o=2)
    assert encoder({"points": torch.randn(3, 2, 40, 3)}).shape == (3, 2 * FEATURES)


def test_coloured_points():
    """A point may have more numbers than x, y, z."""
    encoder = Encoder({"points": (40, 6)}, T_o=1)
    assert encoder({"points": torch.randn(3, 1, 40, 6)}).shape == (3, FEATURES)


def test_an_observation_without_an_encoder():
    with pytest.raises(ValueError, match=r"film \(4, 8, 8, 3\)"):
        Encoder({"state": (2,), "film": (4, 8, 8, 3)}, T_o=1)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("N", [100, 20])
def test_winners_give_the_same_values_and_gradients(monkeypatch, device, N):
    """As a maximum over all points; also with a winner a channel, repeated, as on a GPU."""
    if device == "gpu":
        monkeypatch.setattr(encoders, "distinct", lambda i, N: i)
    torch.manual_seed(0)
    net = PointNet(3, dims=(16, 32), out=8).train()
    points = torch.randn(5, N, 3)
    points[1] = points[1, :1].clone()  # all tie
    weight = torch.randn(5, 8)

    def grads(full):
        net.zero_grad()
        out = net.project(net.mlp(points).max(1).values) if full else net(points)
        (out * weight).sum().backward()
        return out.detach(), [p.grad.clone() for p in net.parameters()]

    whole, grads_of_whole = grads(True)
    short, grads_of_short = grads(False)
    torch.testing.assert_close(whole, short)
    for a, b in zip(grads_of_whole, grads_of_short):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert net.winners(points).shape[1] <= 32


def test_no_shape_depends_on_the_data_off_the_cpu():
    """The meta device has no data at all: what it does without waiting, a GPU does as well."""
    net = PointNet(3, dims=(16, 32), out=8).to("meta")
    points = torch.empty(5, 100, 3, device="meta")
    assert net.winners(points).shape == (5, 32)
    net(points).sum().backward()


def test_distinct():
    i = torch.tensor([[3, 0, 3, 1], [2, 2, 2, 2]])
    assert encoders.distinct(i, 5).tolist() == [[0, 1, 3], [2, 2, 2]]


def test_winners_by_a_loop():
    """Exactly the points that win a channel, some of them more than once."""
    torch.manual_seed(0)
    net = PointNet(3, dims=(8, 16), out=4)
    points = torch.randn(6, 50, 3)
    features = net.mlp(points)
    for b, row in enumerate(net.winners(points)):
        assert set(row.tolist()) == {features[b, :, c].argmax().item() for c in range(16)}


def test_a_cloud_of_equal_points():
    """They tie in every channel; the values do not depend on which of them wins."""
    net = PointNet(3, dims=(8, 16), out=4)
    points = torch.randn(2, 50, 3)
    points[1] = points[1, :1].clone()
    with torch.no_grad():
        whole = net(points)
    torch.testing.assert_close(net(points), whole)


def test_without_gradients_all_points_are_encoded_once():
    net = PointNet(3, dims=(16, 32), out=8)
    points = torch.randn(5, 100, 3)
    seen = []
    net.mlp.register_forward_hook(lambda mlp, args, out: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        out = net(points)
    assert seen == [(5, 100, 3)]
    torch.testing.assert_close(net(points), out)
