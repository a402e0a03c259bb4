"""experts.py: only successes are kept, whole and in step with their seeds; hopeless policies are given up.

Locomotion: what is recorded is what the environment did, and an agent is trained until it is good enough.
"""
import dataclasses
import sys
import types

import numpy as np
import pytest

import data
import experts
from envs import TASKS, pusht_obs
from evaluate import Rollout
from runs import BadInput, cli
from test_policy import policy

PUSHT, HOPPER = TASKS["pusht"], TASKS["hopper"]


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


# ---- locomotion

def noisy(seed=0):
    """A policy that pushes at random, further than the limits of 1."""
    rng = np.random.default_rng(seed)
    return lambda obs: rng.uniform(-2, 2, 3)


def test_record():
    """The actions replayed from the recorded seeds give the same observations, rewards and ends."""
    episodes = experts.record(noisy(), HOPPER, 4, start_seed=50)
    assert [e["seed"] for e in episodes] == [50, 51, 52, 53]
    assert (np.concatenate([abs(e["actions"]).max(0) for e in episodes]) <= 1).all()
    with HOPPER.env() as env:
        for e in episodes:
            assert e["actions"].dtype == np.float32 and len(e["observations"]) == len(e["actions"]) + 1
            np.testing.assert_array_equal(env.reset(seed=e["seed"])[0], e["observations"][0])
            for t, action in enumerate(e["actions"]):
                obs, reward, terminated, truncated, _ = env.step(action)
                np.testing.assert_array_equal(obs, e["observations"][t + 1])
                assert (reward, terminated, truncated) == (e["rewards"][t], e["terminations"][t], e["truncations"][t])
            assert e["terminations"].tolist() == [False] * t + [True] and not e["truncations"].any()


def test_record_to_the_time_limit():
    """An episode cut at task.steps is truncated, not terminated."""
    short = dataclasses.replace(TASKS["halfcheetah"], steps=7)
    (e,) = experts.record(lambda obs: np.zeros(6), short, 1, start_seed=0)
    assert e["truncations"].tolist() == [False] * 6 + [True] and not e["terminations"].any()


def test_record_stops():
    """Whole episodes, none begun after max_steps."""
    whole = experts.record(noisy(), HOPPER, 6, start_seed=0)
    lengths = np.array([len(e["rewards"]) for e in whole])
    some = experts.record(noisy(), HOPPER, 6, start_seed=0, max_steps=lengths[:2].sum() + 1)
    assert [len(e["rewards"]) for e in some] == lengths[:3].tolist()
    assert len(experts.record(noisy(), HOPPER, 6, start_seed=0, max_steps=1)) == 1


def test_agent():
    """The observation is normalised and clipped before the policy sees it."""
    policy = types.SimpleNamespace(predict=lambda x: (x, None))
    act = experts.agent(policy, np.array([1., 0., 0.]), np.array([4., 1., 0.]))
    np.testing.assert_allclose(act(np.array([2., -3., 9.])), [0.5, -3, 10], rtol=1e-6)


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["experts.py", *map(str, args)])
    cli(experts.main)


@pytest.mark.parametrize("args,word", [
    ("--task hopper", "--until"), ("--task hopper --until 1 --init a.pt", "no --init"), ("--task pusht", "--init"),
    ("--task hopper --until 1 --out {tmp}", "exists"), ("--task hopper --until 1 --envs 0", "--envs"),
    ("--task hopper --until 1 --record-steps -1", "--record-steps"), ("--task hopper --until high", "--until")])
def test_bad_flags(tmp_path, monkeypatch, capsys, args, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experts, "train", None)
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *args.format(tmp=tmp_path).split())
    err = capsys.readouterr().err
    assert e.value.code == 2 and word in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_without_sb3(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(BadInput, match="pip install stable-baselines3"):
        experts.train(HOPPER, 1, max_steps=1)


def test_train_and_record(tmp_path, monkeypatch, capsys):
    """A few thousand steps; the same seed gives the same data."""
    pytest.importorskip("stable_baselines3", reason="pip install stable-baselines3 to check the training of agents")
    flags = ("--task", "hopper", "--until", 5, "--envs", 2, "--episodes", 3, "--start-seed", 7)
    for name in ("a", "b"):
        run(monkeypatch, *flags, "--out", tmp_path / name)
        assert "3 episodes" in capsys.readouterr().out
    a, b = (data.read(tmp_path / name) for name in ("a", "b"))
    assert len(a["episode_ends"]) == 3 == len(data.load(HOPPER, tmp_path / "a"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    with HOPPER.env() as env:
        for start, seed in zip((0, *a["episode_ends"]), (7, 8, 9)):
            np.testing.assert_array_equal(env.reset(seed=seed)[0].astype("f4"), a["obs"][start])
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *flags, "--until", 1e6, "--max-steps", 1000, "--out", tmp_path / "c")
    err = capsys.readouterr().err
    assert e.value.code == 2 and "after 1024 steps the mean return" in err and "not above 1e+06" in err
    assert not (tmp_path / "c").exists()
