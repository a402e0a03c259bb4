"""vision.py: crops and moves by hand-made cases, ResNet18's size and names, the spatial softmax."""

import pytest
import torch

import vision
from commands import BadInput, keep_memory
from ranks import Ranks
from vision import ResNet18, Small, SpatialSoftmax, augmented, centre_crop, crop_sizes, moved


def pictures(B, T_o, H, W, seed=0):
    """Random pictures (B, T_o, H, W, 3)."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (B, T_o, H, W, 3), dtype=torch.uint8, generator=g)


def numbered(H, W):
    """A picture (1, 1, H, W, 3) whose pixel (y, x) is 10 y + x in all colours."""
    y = 10 * torch.arange(H)[:, None] + torch.arange(W)
    return y.to(torch.uint8)[None, None, :, :, None].expand(1, 1, H, W, 3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- crops ---------------------------------------------------------------------------------------


def test_centre_crop_by_hand():
    """Of an odd rest the smaller half is cut off first."""
    seen = centre_crop(numbered(5, 4), (2, 2))[0, 0, ..., 0]
    assert seen.tolist() == [[11, 12], [21, 22]]
    assert centre_crop(numbered(5, 4), (5, 4)).shape == (1, 1, 5, 4, 3)


def test_crop_sizes():
    """A square, a rectangle, and the whole picture where nothing is said; numbers have none."""
    shapes = {"front": (96, 128, 3), "wrist": (84, 84, 3), "top": (32, 48, 3), "state": (5,)}
    sizes = crop_sizes(shapes, {"front": (84, 112), "wrist": 76})
    assert sizes == {"front": [84, 112], "wrist": [76, 76], "top": [32, 48]}


@pytest.mark.parametrize(
    "crop, word",
    [
        ({"back": 8}, "crop of back, which is no camera"),
        ({"state": 2}, "crop of state, which is no camera"),
        ({"front": 17}, "crop 17 x 17 of front does not lie in its 16 x 20 pixels"),
        ({"front": (16, 21)}, "crop 16 x 21 of front"),
        ({"front": 0}, "crop 0 x 0 of front"),
    ],
)
def test_impossible_crops(crop, word):
    with pytest.raises(BadInput, match=word):
        crop_sizes({"front": (16, 20, 3), "state": (5,)}, crop)


# ---- pictures changed in training ----------------------------------------------------------------


def test_moved_by_hand():
    """The pixel (y + 1, x - 1) comes to (y, x); what was outside repeats the edge."""
    out = moved(numbered(3, 3), torch.tensor([1]), torch.tensor([-1]))
    assert out[0, 0, ..., 0].tolist() == [[10, 10, 11], [20, 20, 21], [20, 20, 21]]
    assert out.dtype == torch.uint8


def test_every_sample_moves_by_itself_and_its_frames_together():
    y = pictures(3, 2, 7, 6)
    dy = torch.tensor([2, 0, -9])
    dx = torch.tensor([0, -1, 3])
    out = moved(y, dy, dx)
    for b in range(3):
        for t in range(2):
            for r in range(7):
                for c in range(6):
                    row = min(max(r + int(dy[b]), 0), 6)
                    column = min(max(c + int(dx[b]), 0), 5)
                    assert torch.equal(out[b, t, r, c], y[b, t, row, column])


def test_the_middle_becomes_a_random_crop():
    """It is a crop of the picture, the same of all frames, and all places come about equally."""
    y = numbered(6, 5).expand(2000, 2, 6, 5, 3)
    out = augmented({"camera": y}, generator(), crop={"camera": (3, 4)})["camera"]
    seen = centre_crop(out, (3, 4))
    assert torch.equal(seen[:, 0], seen[:, 1])
    corner = seen[:, 0, 0, 0, 0]  # 10 top + left
    offsets = torch.tensor([[10 * r + c for c in range(4)] for r in range(3)], dtype=torch.uint8)
    assert torch.equal(seen[:, 0, ..., 0], corner[:, None, None] + offsets)
    places, count = corner.unique(return_counts=True)
    assert places.tolist() == [0, 1, 10, 11, 20, 21, 30, 31]
    assert count.min() > 180  # of 250


def test_shift_goes_beyond_the_crop():
    """Without a crop by up to so many pixels; with one by as many more."""
    y = numbered(9, 9).expand(500, 1, 9, 9, 3)
    out = augmented({"camera": y}, generator(), shift=2)["camera"][:, 0, 4, 4, 0]
    assert out.unique().tolist() == [10 * r + c for r in range(2, 7) for c in range(2, 7)]
    both = augmented({"camera": y}, generator(), crop={"camera": (7, 7)}, shift=2)["camera"]
    rows = both[:, 0, 4, 4, 0] // 10
    assert rows.unique().tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_cameras_move_each_by_itself():
    y = numbered(9, 9).expand(50, 1, 9, 9, 3)
    out = augmented({"a": y, "b": y}, generator(), crop={"a": (5, 5), "b": (5, 5)})
    assert not torch.equal(out["a"], out["b"])


def test_jitter_by_hand():
    """Brightness scales; contrast scales the distance to the mean of a sample's frames."""
    y = torch.tensor([100, 200], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(2, 2, 1, 1, 3)
    out = vision.jittered(y, torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.5]))
    assert out[:, :, 0, 0, 0].tolist() == [[50, 100], [75, 225]]
    assert out.dtype == torch.uint8
    bright = vision.jittered(y, torch.tensor([2.0, 2.0]), torch.ones(2))
    assert bright[0, :, 0, 0, 0].tolist() == [200, 255]  # nothing wraps around


def test_jitter_is_drawn_for_each_sample():
    y = torch.full((200, 2, 4, 4, 3), 100, dtype=torch.uint8)
    out = augmented({"camera": y}, generator(), jitter=0.2)["camera"]
    assert (out == out[:, :1, :1, :1, :1]).all()
    assert 80 <= out.min() < 85 and 115 < out.max() <= 120


def test_numbers_are_left_alone():
    """Also nothing is drawn for them, so that trainings without cameras keep their numbers."""
    obs = {"state": torch.randn(3, 2, 5)}
    g = generator()
    before = g.get_state()
    out = augmented(obs, g, shift=4, jitter=0.5)
    assert out["state"] is obs["state"] and torch.equal(g.get_state(), before)
    y = pictures(3, 2, 8, 8)
    same = augmented({"camera": y}, g, crop={"camera": (8, 8)})
    assert same["camera"] is y and torch.equal(g.get_state(), before)


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_processes_change_their_rows_as_one_does(jitter):
    obs = {"camera": pictures(7, 2, 9, 9)}
    how = {"crop": {"camera": (5, 6)}, "shift": 1, "jitter": jitter}
    whole = augmented(obs, generator(3), **how)["camera"]
    for rank in range(2):
        share = Ranks(rank, 2).share
        mine = {"camera": share(obs["camera"])}
        part = augmented(mine, generator(3), **how, n=7, share=share)["camera"]
        assert torch.equal(part, share(whole))


# ---- encoders of a frame -------------------------------------------------------------------------


def test_scales():
    """`small` sees -1 to 1, ResNet18 what ImageNet's mean and deviation make of a picture."""
    black = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    grey = Small((16, 16)).grey
    assert vision.scaled(black, grey, grey).unique().tolist() == [-1]
    assert vision.scaled(black + 255, grey, grey).unique().tolist() == [1]
    net = ResNet18("average")
    rgb = torch.tensor([124, 116, 104], dtype=torch.uint8).expand(1, 2, 2, 3)
    x = vision.scaled(rgb, net.mean, net.std)
    assert x.shape == (1, 3, 2, 2) and x.abs().max() < 0.01
    one = vision.scaled(torch.tensor([[[[255, 0, 0]]]], dtype=torch.uint8), grey, grey)
    assert one.flatten().tolist() == [1, -1, -1]  # red comes first


@pytest.mark.parametrize("crop", [(84, 84), (16, 16), (17, 40)])
def test_small(crop):
    net = Small(crop)
    y = pictures(2, 3, *crop).flatten(0, 1)
    out = net(y)
    assert out.shape == (6, net.size) == (6, 64)
    torch.testing.assert_close(out[4:5], net(y[4:5]))  # pictures do not see one another
    torch.testing.assert_close(out.mean(1), torch.zeros(6), atol=1e-5, rtol=0)  # LayerNorm


@pytest.mark.parametrize("kind, least", [("small", 16), ("resnet18", 32)])
def test_the_smallest_pictures(kind, least):
    """Smaller ones are refused; of these bfloat16 has gradients, whatever memory held before."""
    for crop in ((least - 1, 90), (90, least - 1)):
        with pytest.raises(BadInput, match=f"the encoder {kind} needs {least} x {least}"):
            vision.frame_encoder(kind, "softmax", crop)
    keep_memory()  # as the commands do: freed memory is not zeroed
    net = vision.frame_encoder(kind, "softmax", (least, least))
    y = pictures(8, 1, least, least).flatten(0, 1)
    for dtype in (torch.float32, torch.bfloat16):
        sizes = [10**n for n in range(1, 6)]
        left = [torch.full((n,), torch.nan, dtype=dtype) for n in sizes for _ in range(20)]
        del left
        with torch.autocast("cpu", torch.bfloat16):
            out = net(y)
        out.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("pool, size", [("softmax", 64), ("average", 512)])
def test_resnet18(pool, size):
    """It has torchvision's number of parameters and no statistics of the batch."""
    net = ResNet18(pool)
    y = pictures(2, 1, 64, 64).flatten(0, 1)
    assert net.maps(y).shape == (2, 512, 2, 2)
    out = net(y)
    assert out.shape == (2, net.size) == (2, size)
    torch.testing.assert_close(out[1:], net(y[1:]), atol=1e-4, rtol=1e-4)
    of_classes = 512 * 1000 + 1000
    assert sum(p.numel() for p in net.body.parameters()) == 11_689_512 - of_classes
    assert not list(net.body.buffers())
    names = set(net.body.convolutions())
    assert len(names) == 20
    assert {"conv1.weight", "layer1.0.conv2.weight", "layer4.0.downsample.0.weight"} <= names


def test_spatial_softmax_by_hand():
    """A single high value draws the point to its place; a flat map to the middle."""
    softmax = SpatialSoftmax(1)
    torch.nn.init.ones_(softmax.maps.weight)
    torch.nn.init.zeros_(softmax.maps.bias)
    x = torch.zeros(2, 1, 3, 5)
    x[0, 0, 0, 3] = 100.0
    points = softmax(x)
    assert points.shape == (2, 32, 2)
    torch.testing.assert_close(points[0, 7], torch.tensor([0.5, -1.0]))  # right, at the top
    torch.testing.assert_close(points[1, 7], torch.zeros(2))
    torch.testing.assert_close(softmax(torch.zeros(1, 1, 1, 1))[0, 0], torch.zeros(2))


@pytest.mark.parametrize("net", [Small((32, 32)), ResNet18("softmax")], ids=["small", "resnet18"])
def test_bfloat16(net):
    """Under autocast norms and points stay float32, and the features are near those without."""
    y = pictures(2, 1, 32, 32).flatten(0, 1)
    plain = net(y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(y)
        maps = net.maps(y)
        assert maps.dtype == torch.float32
        if isinstance(net, ResNet18):
            assert net.points(maps).dtype == torch.float32
    torch.testing.assert_close(rounded.float(), plain, atol=0.2, rtol=0.2)


# ---- torchvision's weights -----------------------------------------------------------------------


def torchvision_like():
    """A state dict of torchvision's names and shapes, with random convolutions."""
    g = generator(5)
    found = {
        name: torch.randn(p.shape, generator=g) for name, p in vision.Body().convolutions().items()
    }
    found |= {"bn1.weight": torch.ones(64), "bn1.running_mean": torch.zeros(64)}
    return found | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def test_convolutions_are_taken():
    body = vision.Body()
    norms = {name: p.clone() for name, p in body.named_parameters() if p.ndim == 1}
    found = torchvision_like()
    vision.take_convolutions(body, found, "w.pth")
    for name, weight in body.convolutions().items():
        assert torch.equal(weight, found[name]), name
    assert all(torch.equal(p, norms[n]) for n, p in body.named_parameters() if p.ndim == 1)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"conv1.weight is \(64, 3, 3, 3\)"),
        ({"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, "layer1.2.conv1.weight is too many"),
        ({"layer4.1.conv2.weight": None}, "layer4.1.conv2.weight is missing"),
        ({"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, "conv1.weight is not finite"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int32)}, "not .* of floating point"),
        ({"epoch": 3}, "give a state dict"),
    ],
)
def test_other_weights_are_refused(change, word):
    """Nothing is copied then."""
    found = {name: v for name, v in (torchvision_like() | change).items() if v is not None}
    body = vision.Body()
    before = body.conv1.weight.clone()
    with pytest.raises(BadInput, match=f"w.pth does not hold torchvision's ResNet18: .*{word}"):
        vision.take_convolutions(body, found, "w.pth")
    assert torch.equal(body.conv1.weight, before)
    with pytest.raises(BadInput, match="give a state dict"):
        vision.take_convolutions(body, [1], "w.pth")
