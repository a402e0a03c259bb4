"""The robot's loop in simulated time: a scripted policy lifts, and a run repeats to the digit."""

import json

import numpy as np
import pytest
import torch

import robot_trials
from envs import task_named
from robot_trials import Trial, parse
from safety import Cell
from test_bad_input import make_policy
from twin import Twin
from ur_server import Table

SEED = 100_000


class Demonstrated:
    """A policy that knows a demonstration: its chunk goes on from the pose nearest to the arms'."""

    T_o = 2
    T_p = 16
    T_a = 8
    z_scale = 1.0
    frame_sizes = {}
    specs = {"state": {"shape": [27], "dtype": "float32"}}

    def __init__(self, seed):
        task = task_named("ur5-lift-state")
        arrays = task.expert(task.env(), seed)
        self.seen = torch.from_numpy(arrays["state"][:, -14:])
        self.actions = torch.from_numpy(np.asarray(arrays["action"]))

    def latent(self, n, generator):
        """Not used."""
        return torch.zeros(n)

    def tensors(self, obs):
        """Observations as tensors."""
        return {name: torch.as_tensor(y) for name, y in obs.items()}

    def act(self, obs, z):
        """The demonstration's actions from where the arms are in it; action 1 is the next."""
        apart = (self.seen - obs["state"][0, -1, -14:]).abs().amax(1)
        k = int(apart.argmin()) + torch.arange(self.T_p) - 1
        return self.actions[k.clamp(0, len(self.actions) - 1)][None]


@pytest.mark.parametrize("flags", [(), ("--network-ms", "30", "--camera-ms", "30")])
def test_the_loop_lifts_as_it_was_shown(flags):
    """Also where chunks come late and frames are old: targets have times."""
    args = parse(["none", "--seconds", "6", *flags])
    twin = Table("ur5-lift", size=8)
    trial = Trial(Demonstrated(SEED), twin, Twin("ur5-lift", size=8), Cell(), 0, args)
    seconds = trial.run(args.seconds, args.policy_hz)
    assert trial.success and 1 < seconds < 6


def test_a_run_repeats(tmp_path, monkeypatch, capsys):
    make_policy("ur5-lift-state").save(tmp_path / "ckpt.pt")
    found = []
    for name in ("a.json", "b.json"):
        path = tmp_path / name
        flags = ["--episodes", "2", "--seconds", "0.5", "--json", str(path)]
        monkeypatch.setattr("sys.argv", ["robot_trials.py", str(tmp_path / "ckpt.pt"), *flags])
        robot_trials.main()
        told = json.loads(path.read_text())
        found.append({name: told[name] for name in ("won", "seconds", "events")})
    assert found[0] == found[1] and found[0]["won"] == [0, 0]
    assert "success 0.00 [0.00, 0.00]  2 starts" in capsys.readouterr().out
