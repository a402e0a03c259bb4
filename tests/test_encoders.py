"""encoders.py: frames are encoded one by one, the order of points is irrelevant, the winners'
shortcut is exact, and every camera is seen, by an encoder of its own or by one for all."""

import pytest
import torch

import encoders
from commands import BadInput
from encoders import FEATURES, Encoder, PointNet, vision_of
from vision import centre_crop


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


# ---- cameras -------------------------------------------------------------------------------------

TWO_CAMERAS = {"joints": (4,), "front": (44, 40, 3), "wrist": (36, 36, 3)}
CROPS = {"front": (36, 32), "wrist": 32}


def two_cameras(B=3, T_o=2, seed=0):
    """Observations of TWO_CAMERAS."""
    g = torch.Generator().manual_seed(seed)

    def picture(H, W):
        return torch.randint(256, (B, T_o, H, W, 3), dtype=torch.uint8, generator=g)

    joints = torch.randn(B, T_o, 4, generator=g)
    return {"joints": joints, "front": picture(44, 40), "wrist": picture(36, 36)}


@pytest.mark.parametrize("kind, pool", [("small", None), ("resnet18", "softmax")])
def test_two_cameras_of_different_size(kind, pool):
    """Frame by frame: the features of each camera's middle, then the numbers as they are."""
    torch.manual_seed(0)
    encoder = Encoder(TWO_CAMERAS, 2, encoder=kind, pool=pool, crop=CROPS)
    obs = two_cameras()
    out = encoder(obs)
    assert out.shape == (3, encoder.size) == (3, 2 * (64 + 64 + 4))
    front, wrist = encoder.cameras
    for t in range(2):
        alone = [front(obs["front"][:, t, 4:40, 4:36]), wrist(obs["wrist"][:, t, 2:34, 2:34])]
        frame = torch.cat([*alone, obs["joints"][:, t]], 1)
        torch.testing.assert_close(out[:, 132 * t : 132 * (t + 1)], frame, atol=1e-4, rtol=1e-4)
    assert not torch.equal(*(next(camera.parameters()) for camera in (front, wrist)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind, pool", [("small", None), ("resnet18", "average")])
def test_every_camera_gets_a_gradient(kind, pool, shared):
    """Also the pixels of each of its frames matter, and those outside of the crop do not."""
    torch.manual_seed(0)
    shapes = {**TWO_CAMERAS, "top": (34, 34, 3)}
    crop = dict.fromkeys(("front", "wrist", "top"), 32)
    encoder = Encoder(shapes, 2, encoder=kind, pool=pool, crop=crop, shared=shared)
    obs = two_cameras()
    obs["top"] = obs["wrist"][:, :, 1:35, 1:35]
    out = encoder(obs)
    assert len(encoder.cameras) == (1 if shared else 3)
    out.square().sum().backward()
    for camera in encoder.cameras:
        for name, p in camera.named_parameters():
            assert p.grad is not None and p.grad.abs().sum() > 0, name
    for name in crop:
        for t in range(2):
            changed = {k: v.clone() for k, v in obs.items()}
            centre_crop(changed[name][:, t], (32, 32)).bitwise_xor_(255)
            differs = (encoder(changed) - out).abs().amax(0) > 1e-4
            size = encoder.size // 2
            assert differs.view(2, size)[t].any() and not differs.view(2, size)[1 - t].any()
        changed = {k: v.clone() for k, v in obs.items()}
        changed[name][:, :, 0] = 255 - changed[name][:, :, 0]
        assert torch.equal(encoder(changed), out)


def test_shared_weights_see_all_cameras_in_one_call():
    """A camera's features are those of its pictures through the one encoder."""
    torch.manual_seed(0)
    encoder = Encoder(TWO_CAMERAS, 2, crop={"front": 32, "wrist": 32}, shared=True)
    obs = two_cameras()
    (camera,) = encoder.cameras
    calls = []
    camera.register_forward_hook(lambda net, args, out: calls.append(tuple(args[0].shape)))
    out = encoder(obs)
    assert calls == [(2 * 3 * 2, 32, 32, 3)]
    wrist = camera(obs["wrist"][:, 1, 2:34, 2:34])
    torch.testing.assert_close(out[:, 132 + 64 : 132 + 128], wrist)
    own = Encoder(TWO_CAMERAS, 2, crop={"front": 32, "wrist": 32})
    weights = sum(p.numel() for p in encoder.parameters())
    assert sum(p.numel() for p in own.parameters()) == 2 * weights
    assert len(encoder.state_dict()) == len(camera.state_dict())  # each weight is saved once


def test_all_frames_of_a_camera_in_one_call():
    encoder = Encoder(TWO_CAMERAS, 2, crop=CROPS)
    calls = []
    for camera in encoder.cameras:
        camera.register_forward_hook(lambda net, args, out: calls.append(args[0]))
    encoder(two_cameras())
    assert [tuple(y.shape) for y in calls] == [(6, 36, 32, 3), (6, 32, 32, 3)]
    assert {y.dtype for y in calls} == {torch.uint8}


def test_a_camera_beside_a_cloud():
    shapes = {"points": (30, 3), "joints": (4,), "front": (44, 40, 3)}
    encoder = Encoder(shapes, 1)
    obs = {name: y[:, :1] for name, y in two_cameras().items() if name != "wrist"}
    obs["points"] = torch.randn(3, 1, 30, 3)
    assert encoder.names == ["front", "points", "joints"]
    assert encoder(obs).shape == (3, 3 * FEATURES)


def test_cameras_that_cannot_be_encoded():
    with pytest.raises(ValueError, match="cannot share an encoder"):
        Encoder(TWO_CAMERAS, 2, crop=CROPS, shared=True)
    with pytest.raises(ValueError, match=r"grey \(8, 8, 1\): there is no encoder"):
        Encoder({"grey": (8, 8, 1)}, 1)
    with pytest.raises(BadInput, match="needs 16 x 16"):
        Encoder({"front": (44, 40, 3)}, 1, crop={"front": 4})


def test_what_a_policy_says_of_its_cameras():
    assert vision_of({"state": (5,)}, {}) == {}
    crop = {"front": [36, 32], "wrist": [32, 32]}
    small = vision_of(TWO_CAMERAS, CROPS)
    assert small == {"encoder": "small", "crop": crop, "shared": False}
    large = vision_of(TWO_CAMERAS, CROPS, "resnet18", "average", True)
    assert large == {"encoder": "resnet18", "crop": crop, "shared": True, "pool": "average"}


# ---- the winners of a cloud ----------------------------------------------------------------------


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
