"""experts.py: of policies only successes are kept, whole and in step with their seeds, and hopeless
policies are given up; agents are trained until they are good enough, and recorded.

Scripted experts and recorded states are checked in test_clouds.py.
"""

import dataclasses
import sys

import numpy as np
import pytest
import torch

import experts
from commands import BadInput, cli
from data import load
from envs import TASKS, make_env
from evaluate import Rollout
from formats import read
from policy import Policy
from task_pusht import pusht_obs

PUSHT = TASKS["pusht"]
HOPPER = TASKS["hopper"]


def run(monkeypatch, *args):
    """python experts.py args, in this process."""
    monkeypatch.setattr(sys, "argv", ["experts.py", *map(str, args)])
    cli(experts.main)


# ---- from policies -------------------------------------------------------------------------------


def until(n, a):
    """a (E, steps, ...) with NaN from step n (E,) of each episode on."""
    steps = np.arange(a.shape[1])
    over = steps >= np.reshape(n, (-1, 1))
    return np.where(over.reshape(*over.shape, *(1,) * (a.ndim - 2)), np.nan, a)


def fake_rollout(every=3, steps=12):
    """Start seed s succeeds if `every` divides it, after 1 + (s + latent seed) % 5 steps.

    States and actions name the seed and the step. every=0: none succeeds.
    """
    calls = []

    def rollout(policy, task, seeds, *, seed, record, workers):
        assert record
        calls.append((policy, list(seeds), seed))
        s, t = np.meshgrid(seeds, np.arange(steps), indexing="ij")
        success = np.array([every and x % every == 0 for x in seeds], bool)
        n = np.where(success, 1 + (np.asarray(seeds) + seed) % 5, steps)
        fields = dict.fromkeys(field.name for field in dataclasses.fields(Rollout))
        fields["success"] = success
        fields["rewards"] = until(n, np.ones(s.shape))
        fields["actions"] = until(n, np.stack([s % 512, t], -1))
        fields["states"] = until(n, np.stack([s, t, 200 + 0 * s, 200 + 0 * s, 0 * s], -1))
        return Rollout(**fields)

    rollout.calls = calls
    return rollout


def save_policy(path, **change):
    """A checkpoint of a small Push-T policy with random weights."""
    torch.manual_seed(0)
    shape = {"task": "pusht", "obs": PUSHT.specs, "D_a": 2, "T_o": 2, "T_p": 16, "T_a": 8}
    Policy({**shape, "dims": [8, 16], **change}).save(path)


def test_from_policies(monkeypatch):
    fake = fake_rollout()
    monkeypatch.setattr(experts, "rollout", fake)
    got, starts = experts.from_policies(
        ["a", "b"], PUSHT, 5, start_seed=1000, seed=7, at_once=6, tries=3
    )
    seeds = got["start_seed"]
    assert seeds.tolist() == [1002, 1005, 1008, 1011, 1014] and starts == 18
    tried = [list(range(1000 + 6 * i, 1006 + 6 * i)) for i in range(3) for _ in range(3)]
    assert [call[1] for call in fake.calls] == tried
    assert [call[0] for call in fake.calls] == 3 * ["a", "b", "a"]  # the policies in turn
    latents = [call[2] for call in fake.calls]
    assert len(set(latents)) == 9 and latents[0] == 7  # every batch draws its own latents

    lengths = np.diff(got["episode_ends"], prepend=0)
    batches = (0, 0, 1, 1, 2)  # of six starts, which the five kept ones are of
    shortest = [
        min(1 + (s + z) % 5 for z in latents[3 * i : 3 * i + 3]) for s, i in zip(seeds, batches)
    ]
    assert lengths.tolist() == shortest
    seed = np.repeat(seeds, lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    np.testing.assert_array_equal(got["state"][:, :2], np.stack([seed, step], 1))
    np.testing.assert_array_equal(got["action"], np.stack([seed % 512, step], 1))
    assert got["state"].dtype == got["action"].dtype == np.float32


def test_hopeless(monkeypatch):
    fake = fake_rollout(every=0)
    monkeypatch.setattr(experts, "rollout", fake)
    with pytest.raises(BadInput, match="0 of 200 start states"):
        experts.from_policies([None], PUSHT, 5, start_seed=1000, tries=2)
    assert sum(len(call[1]) for call in fake.calls) == 400


def test_command(tmp_path, monkeypatch, capsys):
    """Training reads the file that the command writes, with observations of its states."""
    monkeypatch.setattr(experts, "rollout", fake_rollout())
    out = tmp_path / "made" / "x.npz"
    flags = ("--init", tmp_path / "ckpt.pt", "--episodes", 4, "--out", out)
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *flags)
    assert e.value.code == 2 and "ckpt.pt: no such file" in capsys.readouterr().err
    save_policy(tmp_path / "ckpt.pt")
    run(monkeypatch, *flags)
    assert "4 successful episodes from 50 start states" in capsys.readouterr().out
    arrays = read(out)
    episodes = load(PUSHT, out)
    assert len(episodes) == 4
    assert (arrays["start_seed"] >= 1_000_000).all()  # far from the evaluation's starts
    np.testing.assert_array_equal(episodes.obs["state"], pusht_obs(arrays["state"]))
    np.testing.assert_array_equal(episodes.action[0], [arrays["start_seed"][0] % 512, 0])


def test_policies_that_do_not_fit_and_files_that_are_there(tmp_path, monkeypatch, capsys):
    """They are refused before anything acts."""
    monkeypatch.setattr(experts, "rollout", None)
    save_policy(tmp_path / "wide.pt", D_a=3)
    save_policy(tmp_path / "bc.pt", method="bc")
    (tmp_path / "made.npz").write_bytes(b"dear")
    for flags, word in (
        (("wide.pt",), "wide.pt takes actions 3, but pusht has 2"),
        (("bc.pt", "--z-scale", 0.5), "bc.pt is a regression"),
        (("bc.pt", "--out", tmp_path / "made.npz"), "made.npz exists"),
    ):
        with pytest.raises(SystemExit) as e:
            run(monkeypatch, "--out", tmp_path / "x.npz", "--init", tmp_path / flags[0], *flags[1:])
        assert e.value.code == 2 and word in capsys.readouterr().err
    assert (tmp_path / "made.npz").read_bytes() == b"dear"


def test_no_episodes_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experts, "rollout", fake_rollout())
    save_policy(tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, "--init", tmp_path / "ckpt.pt", "--episodes", 0)
    assert e.value.code == 2 and "episodes" in capsys.readouterr().err


# ---- from an agent -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, word",
    [
        ("--task hopper", "--until"),
        ("--task hopper --until 1 --init a.pt", "--init is not used"),
        ("--task pusht", "--init"),
        ("--task pusht --init a.pt --until 9", "--until is not used by pusht"),
        ("--task metaworld-assembly --tries 3", "--tries is not used"),
        ("--task hopper --until 1 --out {tmp}", "exists"),
        ("--task hopper --until 1 --envs 0", "--envs"),
        ("--task hopper --until 1 --record-steps -1", "--record-steps"),
        ("--task hopper --until high", "--until"),
        ("--task metaworld-reach --out .", "--out . is a folder"),
        ("--task pusht --init a.pt --out /dev/null/x", "--out /dev/null/x cannot be written"),
        ("--task hopper --until 1 --out /dev/null", "--out /dev/null is a file"),
        ("--task metaworld-reach --workers 1000", "four a core, are of no use"),
        ("--task pusht --init x.pt --z-scale nan", "--z-scale nan must not be below 0"),
        ("--task hopper --until 5 --start-seed -1", "--start-seed must lie in 0 .. 4294867296"),
        ("--task hopper --until 5 --seed 4294967296", "--seed must lie in 0 .. 4294967295"),
        ("--task hopper --until nan", "--until nan must be a finite return"),
        ("--task hopper --until 5 --one-process", "--one-process is not used by hopper"),
        ("--task metaworld-reach --states x.npz", "--states is not used by metaworld-reach"),
        ("--task metaworld-reach --seed 1", "--seed is not used by metaworld-reach"),
        ("--task adroit-hammer --start-seed 1", "--start-seed is not used by adroit-hammer"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, capsys, args, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experts, "train", None)
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *args.format(tmp=tmp_path).split())
    err = capsys.readouterr().err
    assert e.value.code == 2 and word in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_recording_by_command(tmp_path, monkeypatch, capsys):
    """An agent's episodes become a Minari data set that says how it was made."""

    def train(task, until, *, max_steps, envs, seed):
        def act(obs):
            return np.zeros(3)

        return act, 1234.5, 4096

    def version(package):
        return "1.0"

    monkeypatch.setattr(experts, "train", train)
    monkeypatch.setattr(experts.importlib.metadata, "version", version)
    out = tmp_path / "hopper-medium"
    flags = ("--until", 1200, "--episodes", 3, "--start-seed", 7, "--out", out)
    run(monkeypatch, "--task", "hopper", *flags)
    text = capsys.readouterr().out
    assert "3 episodes" in text and "by an agent of 4096 steps" in text and "returned 1234" in text
    episodes = load(HOPPER, out)
    assert len(episodes) == 3 and episodes.obs["state"].shape[1] == 11
    with make_env(HOPPER) as env:
        for start, seed in zip((0, *episodes.ends), (7, 8, 9)):
            first = env.reset(seed=seed)[0]["state"]
            np.testing.assert_array_equal(first, episodes.obs["state"][start])
    about = (out / "data" / "metadata.json").read_text()
    assert "made by experts.py --until 1200" in about and "Hopper-v5" in about


def test_train_and_record(tmp_path, monkeypatch, capsys):
    """A few thousand steps; the same seed gives the same data."""
    why = "pip install stable-baselines3 to check the training of agents"
    pytest.importorskip("stable_baselines3", reason=why)
    flags = ("--task", "hopper", "--until", 5, "--envs", 2, "--episodes", 3, "--start-seed", 7)
    for name in ("a", "b"):
        run(monkeypatch, *flags, "--out", tmp_path / name)
        assert "3 episodes" in capsys.readouterr().out
    a = read(tmp_path / "a")
    b = read(tmp_path / "b")
    assert len(a["episode_ends"]) == 3 == len(load(HOPPER, tmp_path / "a"))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *flags, "--until", 1e6, "--max-steps", 1000, "--out", tmp_path / "c")
    err = capsys.readouterr().err
    assert e.value.code == 2 and "after 1024 steps the mean return" in err
    assert "not above 1e+06" in err and not (tmp_path / "c").exists()
