"""The README's two pictures: their numbers are the code's, and the small one can be drawn."""

import numpy as np
import torch

from drift import drift
from figures import EXPERT, HYPOTHESES, TAU, forces, main, seen_by
from pointcloud import Camera


def test_pulls_and_pushes_add_up_to_the_drift():
    x = torch.tensor(HYPOTHESES, dtype=torch.float64)
    pos = torch.tensor([EXPERT], dtype=torch.float64)
    V, pull, push = forces(x, pos, TAU)
    wanted, scale, _ = drift(x[None], pos[None], temps=(TAU,))
    torch.testing.assert_close(V, (wanted * scale)[0])
    torch.testing.assert_close(pull + push, V)
    assert ((pos - x) * pull).sum(1).min() > 0  # every pull leads to the expert's chunk


def test_a_point_on_a_ray_is_seen_at_the_pixel_of_the_ray():
    camera = Camera.looking(pos=(0.6, 0.3, 0.8), at=(0, 0.65, 0.12), fovy=50, size=8)
    away = np.random.default_rng(0).uniform(0.5, 2, (64, 1))
    columns, rows = seen_by(camera, camera.pos + away * camera.directions(), 8)
    np.testing.assert_allclose(columns, np.tile(np.arange(8) + 0.5, 8), atol=1e-9)
    np.testing.assert_allclose(rows, np.repeat(np.arange(8) + 0.5, 8), atol=1e-9)


def test_the_picture_of_the_method_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["figures.py", "--only", "method", "--out", str(tmp_path)])
    main()
    assert 5_000 < (tmp_path / "method.png").stat().st_size < 300_000
