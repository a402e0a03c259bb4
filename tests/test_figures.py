"""The README's two pictures: their numbers are the code's, and the small one can be drawn. And
the paths of policies, each in the colour of its mode."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from drift import drift
from evaluate import told_of_modes
from figures import EXPERT, HYPOTHESES, NO_MODE, TAU, forces, main, paths_figure, seen_by
from pointcloud import Camera
from policy import Policy
from task_blockpush import BLOCKPUSH


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


# ---- the ways that policies go -------------------------------------------------------------------


def test_paths_have_the_colour_of_their_mode():
    """One colour for a mode in all panels, grey where none was taken, and bars of the shares."""
    states = [np.full((3, 16), float(i)) for i in range(3)]
    drawn = []
    task = replace(BLOCKPUSH, paths=lambda axes, states, colours: drawn.append(colours))
    figure = paths_figure(
        task,
        [
            ("one", states, told_of_modes(["b", None, "b"])),
            ("two", states[:2], told_of_modes(["a", "b"])),
        ],
    )
    assert drawn == [["C1", NO_MODE, "C1"], ["C0", "C1"]]
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes[2:]]
    np.testing.assert_allclose(heights, [[0, 2 / 3, 1 / 3], [0.5, 0.5, 0]])
    assert figure.axes[1].get_title() == "two\n2 episodes, 1.00 bits"


@pytest.mark.parametrize("flags, panels", [([], 2), (["--one-start"], 1)])
def test_the_ways_of_a_policy_are_drawn(tmp_path, monkeypatch, flags, panels):
    """Beside the demonstrations, and alone from one start."""
    torch.manual_seed(0)
    one = torch.ones(16)
    shape = {"task": "blockpush", "obs": BLOCKPUSH.specs, "D_a": 2, "T_o": 2, "T_p": 16, "T_a": 8}
    norms = {"obs": {"state": (-one, one)}, "action": (-one[:2], one[:2])}
    Policy({**shape, "dims": (8, 8)}, norms).save(tmp_path / "ckpt.pt")
    drawn = []
    monkeypatch.setattr("figures.paths_figure", lambda task, found: drawn.extend(found) or Figure())
    given = ["--paths", str(tmp_path / "ckpt.pt"), "--episodes", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["figures.py", *given, *flags])
    main()
    assert len(drawn) == panels and [len(states) for _, states, _ in drawn] == [2] * panels
    assert drawn[-1][0].startswith("DBP, 1 evaluation\np1 ")
    same = np.array_equal(*[states[0] for states in drawn[-1][1]])
    assert same == bool(flags)
    name = "blockpush-paths-one-start.png" if flags else "blockpush-paths.png"
    assert (tmp_path / name).is_file()
