"""--teach: encoders that learn the scene's numbers, and are kept."""

import re

import pytest
import torch

from commands import BadInput
from envs import TASKS
from policy import Policy
from task import Task
from teach import numbers_of
from test_train import quick, train

assert quick  # a fixture, used by its name


@pytest.fixture
def flags(demos):
    """Push-T from images, on three short made-up episodes."""
    return ["--task", "pusht-image", "--data", demos, "--encoder", "small", "--batch", 16]


def encoders(folder):
    """The weights of the cameras' encoders in a run folder's checkpoint, and all the others."""
    weights = Policy.load(folder / "ckpt.pt", ema=False)[0].state_dict()
    names = [name for name in weights if name.startswith("encoder.parts.image")]
    return {n: weights.pop(n) for n in names}, weights


def same(a, b):
    """Whether all tensors of two dicts are equal."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_taught_encoders_stay(flags, tmp_path, quick):
    """Stage 1 moves the generator alone, and a resumed run neither teaches nor moves them."""
    for steps in (1, 2):
        train(*flags, "--teach", 3, "--steps", steps, "--out", tmp_path / str(steps))
    train(*flags, "--steps", 1, "--out", tmp_path / "plain")
    one, others_one = encoders(tmp_path / "1")
    two, others_two = encoders(tmp_path / "2")
    assert len(one) == 16 and same(one, two) and not same(others_one, others_two)
    assert not same(one, encoders(tmp_path / "plain")[0])
    train(*flags, "--teach", 3, "--steps", 2, "--out", tmp_path / "2", "--resume")
    assert same(encoders(tmp_path / "2")[0], two)


def test_teaching_learns(flags, tmp_path, quick, capsys):
    """The error falls, and is told as a share of the numbers' range."""
    off = {}
    for steps in (2, 120):
        train(*flags, "--teach", steps, "--steps", 1, "--out", tmp_path / str(steps))
        told = re.search(rf"taught {steps} steps: 20 numbers, (.*) % off", capsys.readouterr().out)
        off[steps] = float(told[1])
    assert 15 < off[2] < 60 and off[120] < 0.6 * off[2]


def test_every_camera_has_numbers():
    """The task by numbers of each that ships with cameras is there, and has no camera."""
    with_cameras = [t for t in TASKS.values() if any(len(s) == 3 for s in t.obs.values())]
    assert len(with_cameras) > 10
    for task in with_cameras:
        twin = TASKS[task.numbers]
        assert all(len(shape) == 1 for shape in twin.obs.values())
        assert set(twin.data) & set(task.data)


def test_what_cannot_be_taught():
    """A task without another by numbers is refused."""
    task = Task("seen", {"camera": (40, 40, 3)}, D_a=2, T_o=2, T_p=8, T_a=4)
    with pytest.raises(BadInput, match="^--teach is not used by seen, which has no task by num"):
        numbers_of(task, None, None)
