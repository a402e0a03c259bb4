"""toy.py: samplers, figures of samples, what is learnt and what collapses, the command line."""

import csv
import math

import pytest
import torch
from PIL import Image

import drift
import toy
import toy_field
import toy_targets
from conftest import cli

NO_O = torch.empty(1000, 0)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- targets and figures -------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(toy_targets.EVERY))
def test_samplers(name):
    draw = toy_targets.EVERY[name]
    o, y = draw(2000, gen())
    assert o.shape == (2000, 0 if name in toy_targets.TARGETS else 1) and y.shape == (2000, 2)
    assert y.dtype == torch.float32 and y.abs().max() < 1.6
    assert torch.equal(draw(2000, gen())[1], y) and not torch.equal(draw(2000, gen(1))[1], y)
    if name in toy_targets.TARGETS:
        assert y.mean(0).abs().max() < 0.25 and (y.std(0) > 0.3).all()


def test_support_of_the_samplers():
    y = toy_targets.gaussians(4000, gen())[1]
    assert toy_targets.modes(y) == 8 and (y.norm(dim=-1) - 1).abs().max() < 5 * toy_targets.SIGMA
    y = toy_targets.checkerboard(4000, gen())[1]
    colours = ((y + 1) * 2).floor().sum(1).remainder(2)
    assert y.abs().max() <= 1 and colours.unique().numel() == 1
    way, hit = toy_targets.ways(toy_targets.fork(4000, gen())[1])
    shares = [(way == i).float().mean().item() for i in range(3)]
    assert shares == pytest.approx(toy_targets.SHARES, abs=0.03) and hit.float().mean() < 0.01


def test_ways():
    points = torch.tensor([[1.0, 1.1], [1.0, 0.0], [0.9, -1.0], [1.0, 0.5], [1.0, 3.0]])
    way, hit = toy_targets.ways(points)
    assert way.tolist() == [0, 1, 2, -1, -1]
    assert hit.tolist() == [False, False, False, True, False]


def test_energy_distance():
    x = torch.tensor([[0.0], [1.0]])
    y = torch.tensor([[3.0], [5.0]])
    assert toy_targets.energy_distance(x, y) == pytest.approx(
        2 * 3.5 - 1 - 2
    )  # E|x-y| = (3+5+2+4)/4
    a = toy_targets.moons(1000, gen(1))[1]
    b = toy_targets.moons(1000, gen(2))[1]
    assert abs(toy_targets.energy_distance(a, b)) < 0.01
    assert toy_targets.energy_distance(a, b + 0.3) > 0.05
    assert toy_targets.energy_distance(a, 0 * b) > 0.3


def test_measure():
    data = toy_targets.gaussians(2000, gen(1))
    x = toy_targets.gaussians(2000, gen(2))[1]
    row = toy_targets.measure("gaussians", torch.empty(2000, 0), x, data)
    assert list(row) == ["energy", "off", "modes"]
    assert abs(row["energy"]) < 0.01 and row["off"] < 0.01 and row["modes"] == 8
    x[:500] = 0  # the centre of the ring, far from all data
    row = toy_targets.measure("gaussians", torch.empty(2000, 0), x, data)
    assert row["off"] == pytest.approx(0.25, abs=0.01)


def test_measure_at_the_fork():
    o, y = toy_targets.fork(1000, gen())
    x = torch.tensor([1.0, 0.5]).expand(1000, 2)  # an obstacle's centre
    row = toy_targets.measure("fork", o, x, (o, y))
    assert list(row) == ["energy", "above", "between", "below", "hits"]
    assert row["hits"] == 1 and row["above"] == row["between"] == row["below"] == 0


# ---- the field without a network -----------------------------------------------------------------


@pytest.mark.parametrize("name, modes", [("gaussians", 8), ("moons", None), ("swissroll", None)])
def test_particles_moved_by_the_field_reach_the_modes(name, modes):
    """At most 5 % of the particles end more than 0.1 off the data, and no mode is lost."""
    o, snapshots = toy_field.move(toy_targets.TARGETS[name], B=4, K=64, P=64, moves=300, at={0})
    start, end = snapshots.values()
    assert o.shape == (256, 0) and start.shape == end.shape == (256, 2)
    data = toy_targets.TARGETS[name](4000, gen(2))
    before = toy_targets.measure(name, o, start, data)
    after = toy_targets.measure(name, o, end, data)
    assert before["off"] > 0.3 and after["off"] < 0.05 and after.get("modes") == modes
    assert after["energy"] < 0.01 < before["energy"]


def test_one_positive_blurs_the_field_itself():
    """With one positive a group the particles find all modes, but more of them stay between."""
    data = toy_targets.gaussians(4000, gen(2))
    rows = []
    for K in (4, 16):
        o, snapshots = toy_field.move(toy_targets.gaussians, B=512 // K, K=K, moves=300)
        rows.append(toy_targets.measure("gaussians", o, snapshots[300], data))
    assert [row["modes"] for row in rows] == [8, 8]
    assert rows[0]["off"] > 0.3 > rows[1]["off"] > 0.1


def test_particles_are_reproducible():
    how = {"B": 2, "K": 8, "P": 3, "moves": 5}
    first, again, other = (
        toy_field.move(toy_targets.moons, **how, seed=s)[1][5] for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_force_points_to_the_expert():
    """One hypothesis far away, one positive: everywhere the force has a part towards it."""
    grid = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    F = toy_field.force(grid, torch.tensor([[[5.0, 5.0]]]), torch.zeros(1, 1, 2), (0.2,))
    assert F.shape == (2, 2) and ((F * -grid).sum(1) > 0).all()


# ---- networks ------------------------------------------------------------------------------------


def trained(**how):
    f, _, _ = toy_field.train(toy_targets.gaussians, **how)
    with torch.no_grad():
        return f(torch.randn(1000, 2, generator=gen(3)), NO_O)


def test_many_positives_cover_the_modes():
    x = trained(B=1, K=96, P=96, steps=250)
    assert toy_targets.modes(x) >= 6
    assert toy_targets.energy_distance(x, toy_targets.gaussians(1000, gen(4))[1]) < 0.05


@pytest.mark.parametrize("regression", [True, False])
def test_regression_and_one_hypothesis_collapse_to_the_mean(regression):
    x = trained(B=64, K=1, steps=250, regression=regression)  # the ring's mean is its centre
    assert x.mean(0).norm() < 0.15 and x.std(0).max() < 0.15
    assert toy_targets.modes(x) == 0


def test_a_clumped_start_stays_clumped():
    x = trained(B=1, K=96, P=96, steps=150, spread=toy.CLUMP)
    assert x.std(0).max() < 0.15 and toy_targets.modes(x) == 0


def test_the_floor_of_eq_31_holds_a_clump(monkeypatch):
    """The same clumped start covers the modes once the affinity floor is gone."""
    monkeypatch.setattr(drift, "FLOOR_A", 1e-30)
    assert toy_targets.modes(trained(B=1, K=96, P=96, steps=600, spread=toy.CLUMP)) == 8


def test_training_is_reproducible():
    runs = [
        toy_field.train(toy_targets.fork, B=4, K=4, steps=5, at={0}, seed=seed)
        for seed in (0, 0, 1)
    ]
    first, again, other = (snapshots for _, _, snapshots in runs)
    assert list(first) == [0, 5] and first[5].shape == (toy_field.SAMPLES, 2)
    assert torch.equal(first[5], again[5]) and not torch.equal(first[5], other[5])
    assert first[0].std(0).mean().item() == pytest.approx(1.0, rel=0.25)  # spread
    assert first[0].mean(0).abs().max() < 0.4


# ---- the command line ----------------------------------------------------------------------------


def test_frames_and_moments():
    for steps in (1, 3, 500):
        frames = toy_field.frames(steps)
        assert len(frames) == toy_field.FRAMES and frames == sorted(frames)
        assert frames[0] == toy_field.moments(steps)[0] == 0
        assert frames[-1] == toy_field.moments(steps)[-1] == steps


def test_command_line(tmp_path):
    settings = ["--K", "1", "3", "--many", "8", "--batch", "4", "--steps", "3"]
    code, out, err = cli("toy.py", "--targets", "gaussians", "fork", *settings, "--out", tmp_path)
    assert code == 0, err
    for name in ("toy_targets.png", "toy_field.png", "toy_fork.png", "toy.gif", "toy.csv"):
        assert (tmp_path / name).stat().st_size > 100 and str(tmp_path / name) in out
    with Image.open(tmp_path / "toy.gif") as film:
        assert film.n_frames > 10
    with open(tmp_path / "toy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["target"], row["setting"]) for row in rows]
    names = ["expert", "regression", "K = 1", "K = 3"]
    more = ["clumped start", "K = P = 8", "particles K = 3", "particles K = P = 8"]
    assert found == [
        *(("gaussians", name) for name in names + more),
        *(("fork", name) for name in names),
    ]
    assert all(math.isfinite(float(row["energy"])) for row in rows)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--targets", "moon"], "--targets moon: unknown; choose from gaussians, moons"),
        (["--K", "0"], "--K must be above 0"),
        (["--temp", "nan"], "--temp must be above 0"),
        (["--steps", "many"], "argument --steps: invalid int value"),
        (["--seed", "-1"], "--seed must lie in 0 .. 9223372036854765807, not -1"),
        (["--seed", str(2**63 - 1)], "--seed must lie in"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
    ],
)
def test_bad_flags_are_one_line(flags, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["toy.py", *flags])
    with pytest.raises(SystemExit) as caught:
        toy.cli(toy.main)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and says in err and err.count("\n") == 1
