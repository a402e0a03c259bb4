"""toy.py: samplers, the energy distance, what is learnt and what collapses, and the command line."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import csv
import math
import subprocess

import pytest
import torch

import drift
import toy

torch.set_num_threads(1)
TOY = Path(__file__).parents[1] / "toy.py"


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", list(toy.EVERY))
def test_samplers(name):
    draw = toy.EVERY[name]
    o, y = draw(2000, gen())
    assert o.shape == (2000, 0 if name in toy.TARGETS else 1) and y.shape == (2000, 2)
    assert y.dtype == torch.float32 and y.abs().max() < 1.6
    assert torch.equal(draw(2000, gen())[1], y) and not torch.equal(draw(2000, gen(1))[1], y)
    if name in toy.TARGETS:
        assert y.mean(0).abs().max() < 0.25 and (y.std(0) > 0.3).all()


def test_support_of_the_samplers():
    y = toy.gaussians(4000, gen())[1]
    assert toy.modes(y) == 8 and (y.norm(dim=-1) - 1).abs().max() < 5 * toy.SIGMA
    y = toy.checkerboard(4000, gen())[1]
    assert y.abs().max() <= 1 and ((y + 1) * 2).floor().sum(1).remainder(2).unique().numel() == 1    # one colour only
    way, hit = toy.ways(toy.fork(4000, gen())[1])
    shares = [(way == i).float().mean().item() for i in range(3)]
    assert shares == pytest.approx(toy.SHARES, abs=0.03) and hit.float().mean() < 0.01


def test_ways():
    way, hit = toy.ways(torch.tensor([[1.0, 1.1], [1.0, 0.0], [0.9, -1.0], [1.0, 0.5], [1.0, 3.0]]))
    assert way.tolist() == [0, 1, 2, -1, -1] and hit.tolist() == [False, False, False, True, False]


def test_energy_distance():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    assert toy.energy_distance(x, y) == pytest.approx(2 * 3.5 - 1 - 2)    # by hand: E|x-y| = (3+5+2+4)/4
    a, b = toy.moons(1000, gen(1))[1], toy.moons(1000, gen(2))[1]
    assert abs(toy.energy_distance(a, b)) < 0.01
    assert toy.energy_distance(a, b + 0.3) > 0.05
    assert toy.energy_distance(a, 0 * b) > 0.3


def trained(**kw):
    f, _ = toy.train(toy.gaussians, **kw)
    with torch.no_grad():
        return f(torch.randn(1000, 2, generator=gen(3)), torch.empty(1000, 0))


def test_many_positives_cover_the_modes():
    x = trained(B=1, K=96, P=96, steps=250)
    assert toy.modes(x) >= 6
    assert toy.energy_distance(x, toy.gaussians(1000, gen(4))[1]) < 0.05


@pytest.mark.parametrize("regression", [True, False])
def test_regression_and_one_hypothesis_collapse_to_the_mean(regression):
    x = trained(B=64, K=1, steps=250, regression=regression)              # the mean of the ring is its centre
    assert x.mean(0).norm() < 0.15 and x.std(0).max() < 0.15
    assert toy.modes(x) == 0


def test_a_clumped_start_stays_clumped():
    x = trained(B=1, K=96, P=96, steps=150, spread=toy.CLUMP)
    assert x.std(0).max() < 0.15 and toy.modes(x) == 0


def test_training_is_reproducible():
    kw = dict(B=4, K=4, steps=5, at={0, 5})
    (f, a), (_, b), (_, c) = (toy.train(toy.fork, **kw, seed=s) for s in (0, 0, 1))
    assert list(a) == [0, 5] and a[5].shape == (500, 2)
    assert torch.equal(a[5], b[5]) and not torch.equal(a[5], c[5])
    assert a[0].std(0).mean().item() == pytest.approx(1.0, rel=0.25) and a[0].mean(0).abs().max() < 0.4


def test_field_points_to_the_expert():
    # One hypothesis far away and one positive: the force at each grid point has a part towards the positive.
    grid, pos = torch.tensor([[0.5, 0.0], [0.0, 0.5]]), torch.zeros(1, 1, 2)
    F = toy.field(grid, torch.tensor([[[5.0, 5.0]]]), pos, (0.2,))
    assert F.shape == (2, 2) and ((F * -grid).sum(1) > 0).all()


def test_command_line(tmp_path):
    run = subprocess.run([sys.executable, TOY, "--targets", "gaussians", "fork", "--K", "1", "3", "--many", "8", "--batch", "4",
                          "--steps", "3", "--out", tmp_path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in ("toy_targets.png", "toy_field.png", "toy_fork.png", "toy.gif", "toy.csv"):
        assert (tmp_path / name).stat().st_size > 100
    rows = list(csv.DictReader(open(tmp_path / "toy.csv")))
    assert [r["setting"] for r in rows[:6]] == ["expert", "regression", "K = 1", "K = 3", "clumped start", "K = P = 8"]
    assert all(math.isfinite(float(r["energy"])) for r in rows) and len(rows) == 6 + 4


@pytest.mark.parametrize("flags, says", [
    (["--targets", "moon"], "--targets moon: unknown; choose from gaussians, moons"),
    (["--K", "0"], "--K must be above 0"),
    (["--temp", "nan"], "--temp must be above 0"),
    (["--steps", "many"], "argument --steps: invalid int value"),
    (["--step", "3"], "unrecognized arguments: --step 3"),
])
def test_bad_flags_are_one_line(flags, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy.py", *flags])
    with pytest.raises(SystemExit) as exit:
        toy.cli(toy.main)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and says in err and err.count("\n") == 1


def test_particles_without_a_network_stay_off_the_gaps():
    """256 free particles under the same field reach all 8 modes, at most 5 % of them more than 0.1 off the data."""
    g, x = torch.Generator().manual_seed(0), torch.randn(1, 256, 2, generator=torch.Generator().manual_seed(1))
    for t in range(800):
        V, scale, _ = drift.drift(x, toy.gaussians(256, g)[1][None])
        x = x + 0.1 * (1 - t / 800) * scale * V
    off = torch.cdist(x[0], toy.gaussians(4000, g)[1]).amin(1) > 0.1
    assert toy.modes(x[0]) == 8 and off.float().mean() < 0.05


def test_the_floor_of_eq_31_holds_a_clump(monkeypatch):
    """The same clumped start covers the modes once the affinity floor is gone."""
    monkeypatch.setattr(drift, "FLOOR_A", 1e-30)
    f, _ = toy.train(toy.gaussians, B=64, K=16, steps=600, spread=0.01)
    with torch.no_grad():
        assert toy.modes(f(torch.randn(2000, 2), torch.empty(2000, 0))) == 8
