"""seen.py: patches are painted where they should be, and the chunk moves where the policy looks."""

import numpy as np
import pytest
import torch

import envs
import seen
from commands import BadInput
from test_dbpo import BAR, seeing_policy
from test_dbpo_loss import make_policy
from vision import ResNet18


def test_patches_are_painted_one_by_one():
    """Each copy differs in one patch of the crop, in all frames; every patch has its turn."""
    pictures = torch.randint(0, 255, (1, 2, 20, 24, 3), dtype=torch.uint8)
    copies, rows, columns = seen.painted_over(pictures, (18, 20))
    assert (rows, columns, len(copies)) == (3, 3, 9)
    changed = (copies != pictures).any(-1)  # (9, 2, 20, 24)
    assert (changed[:, 0] == changed[:, 1]).float().mean() > 0.99
    for n, at in enumerate(changed.any(1)):
        y, x = at.nonzero().unbind(1)
        assert (y.min(), x.min()) == (1 + 6 * (n // 3), 2 + 6 * (n % 3))
        assert (y.max(), x.max()) == (6 + 6 * (n // 3), 7 + 6 * (n % 3))


def test_the_chunk_moves_where_the_bar_is():
    """Painting over the bright bar moves it; over the even ground nothing does."""
    policy = seeing_policy()
    moved = seen.moves(policy, seen.first_sight(policy, BAR, 0), "front")
    assert moved.shape == (3, 3)
    assert moved[:, 1].min() > 1e-3  # the bar is in the middle column
    assert moved[:, [0, 2]].max() < 1e-6


def test_points_lie_where_the_softmax_looks():
    """With all weight at one place a point is there, in pixels; maps are as many as were asked."""
    encoder = ResNet18("softmax").eval()
    frame = torch.randint(0, 255, (64, 96, 3), dtype=torch.uint8)
    at = seen.points_of(encoder, frame)
    assert at.shape == (32, 2) and (at >= 0).all() and (at <= torch.tensor([95, 63])).all()
    assert seen.maps_of(encoder, frame).shape == (4, 2, 3)


def test_the_picture_is_drawn(tmp_path, monkeypatch):
    """A picture of the made-up camera, by the command; a policy without cameras is refused."""
    monkeypatch.setitem(envs.TASKS, "bar", BAR)
    seeing_policy().save(tmp_path / "bar.pt")
    out = tmp_path / "bar.png"
    monkeypatch.setattr("sys.argv", ["seen.py", f"{tmp_path}/bar.pt", "--png", f"{out}"])
    seen.main()
    from PIL import Image

    assert np.asarray(Image.open(out)).std() > 10
    make_policy().save(tmp_path / "pusht.pt")
    monkeypatch.setattr("sys.argv", ["seen.py", f"{tmp_path}/pusht.pt", "--png", f"{out}"])
    with pytest.raises(BadInput, match="pusht has no cameras"):
        seen.main()
