"""experts.py: only successes are kept, whole and in step with their seeds; hopeless policies are given up."""
import sys

import numpy as np
import pytest

import data
import experts
from envs import TASKS, pusht_obs
from evaluate import Rollout
from runs import BadInput, cli
from test_policy import policy

PUSHT = TASKS["pusht"]


def fake_rollout(every=3, steps=12):
    """Start seed s succeeds if `every` divides it, after 1 + (s + latent seed) % 5 steps; states name seed and step."""
    calls = []

    def rollout(policy, task, seeds, *, seed, record, workers):
        assert record
        calls.append((policy, list(seeds), seed))
        s, t = np.meshgrid(seeds, np.arange(steps), indexing="ij")
        success = np.array([every and x % every == 0 for x in seeds], bool)
        n = np.where(success, 1 + (np.asarray(seeds) + seed) % 5, steps)[:, None]
        hide = lambda a: np.where((t < n)[(...,) + (None,) * (a.ndim - 2)], a, np.nan)
        return Rollout(hide(np.ones(s.shape)), success, hide(np.stack([s % 512, t], -1)),
                       hide(np.stack([s, t, 200 + 0 * s, 200 + 0 * s, 0 * s], -1)), 0, None, [])

    rollout.calls = calls
    return rollout


def test_collect(monkeypatch):
    fake = fake_rollout()
    monkeypatch.setattr(experts, "rollout", fake)
    got, starts = experts.collect(["a", "b"], PUSHT, 5, start_seed=1000, seed=7, at_once=6, tries=3)
    assert got["start_seed"].tolist() == [1002, 1005, 1008, 1011, 1014] and starts == 18
    assert [c[1] for c in fake.calls] == [list(range(1000 + 6 * i, 1006 + 6 * i)) for i in range(3) for _ in range(3)]
    assert [c[0] for c in fake.calls] == 3 * ["a", "b", "a"]                      # the policies in turn
    latents = [c[2] for c in fake.calls]
    assert len(set(latents)) == 9 and latents[0] == 7                             # every batch draws its own latents
    lengths = np.diff(got["episode_ends"], prepend=0)
    assert lengths.tolist() == [min(1 + (s + z) % 5 for z in latents[3 * i:3 * i + 3])     # the shortest success
                                for s, i in zip(got["start_seed"], (0, 0, 1, 1, 2))]
    seed, step = np.repeat(got["start_seed"], lengths), np.concatenate([np.arange(n) for n in lengths])
    np.testing.assert_array_equal(got["state"][:, :2], np.stack([seed, step], 1))
    np.testing.assert_array_equal(got["action"], np.stack([seed % 512, step], 1))
    assert got["state"].dtype == got["action"].dtype == np.float32


def test_hopeless(monkeypatch):
    fake = fake_rollout(every=0)
    monkeypatch.setattr(experts, "rollout", fake)
    with pytest.raises(BadInput, match="0 of 200 start states"):
        experts.collect([None], PUSHT, 5, start_seed=1000, tries=2)
    assert sum(len(c[1]) for c in fake.calls) == 400


def test_command(tmp_path, monkeypatch, capsys):
    """The file it writes is one that the trainer loads, with observations made from the states."""
    monkeypatch.setattr(experts, "rollout", fake_rollout())
    monkeypatch.setattr(sys, "argv", ["experts.py", "--init", str(tmp_path / "ckpt.pt"), "--episodes", "4",
                                      "--out", str(tmp_path / "made" / "x.npz")])
    with pytest.raises(SystemExit) as e:
        cli(experts.main)
    assert e.value.code == 2 and "ckpt.pt: no such file" in capsys.readouterr().err
    policy().save(tmp_path / "ckpt.pt")
    cli(experts.main)
    assert "4 successful episodes from 50 start states" in capsys.readouterr().out
    arrays, ep = data.read(tmp_path / "made" / "x.npz"), data.load(PUSHT, tmp_path / "made" / "x.npz")
    assert len(ep) == 4 and (arrays["start_seed"] >= 1_000_000).all()             # far from the evaluation's starts
    np.testing.assert_array_equal(ep.obs, pusht_obs(arrays["state"]))
    np.testing.assert_array_equal(ep.action[0], [arrays["start_seed"][0] % 512, 0])


def test_no_episodes_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experts, "rollout", fake_rollout())
    policy().save(tmp_path / "ckpt.pt")
    monkeypatch.setattr(sys, "argv", ["experts.py", "--init", str(tmp_path / "ckpt.pt"), "--episodes", "0"])
    with pytest.raises(SystemExit) as e:
        cli(experts.main)
    assert e.value.code == 2 and "episodes" in capsys.readouterr().err
