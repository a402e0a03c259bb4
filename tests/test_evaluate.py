"""evaluate.py: scores and intervals by hand, rollouts that repeat exactly, the GIF and the command."""
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate as module
from conftest import cli
from envs import TASKS, PushT
from evaluate import Rollout, bootstrap, evaluate, line, rollout, save_gif
from runs import cli as run_cli
from test_policy import policy

SHORT = replace(TASKS["pusht"], steps=20)                     # three chunks, the last one cut at 4 of 8
SEEDS = [100000, 100001]


# ---- numbers

def test_bootstrap():
    assert bootstrap(np.full(7, 0.25)) == (0.25, 0.25) and bootstrap(np.array([0.5])) == (0.5, 0.5)
    for values in (np.array([0., 1.]), np.random.default_rng(3).random(50), np.array([1., 1, 1, 1, 0])):
        low, high = bootstrap(values)
        assert values.min() <= low <= values.mean() <= high <= values.max() and low < high
    assert bootstrap(values) == bootstrap(values)
    normal = np.random.default_rng(0).normal(2, 3, 400)
    half = 1.96 * normal.std() / 20
    assert bootstrap(normal) == pytest.approx((normal.mean() - half, normal.mean() + half), abs=0.1 * half)


def test_scores_by_hand():
    nan = np.nan
    r = Rollout(np.array([[1, 3, 2, nan], [-1, -2, -3, -4]]), None, None, None, 0, None, [])
    assert r.scores("max").tolist() == [3, -1] and r.scores("sum").tolist() == [6, -10]


def test_evaluate(monkeypatch):
    """The task decides how rewards become scores; start seeds count up from 100000."""
    seen = []

    def fake(policy, task, seeds, **kw):
        seen.append((list(seeds), kw))
        return Rollout(np.array([[0.2, 0.6, np.nan], [0.1, 0.1, 0.1], [0, 1, 0]]), np.array([False, False, True]),
                       None, None, 1.5, np.array([0.001, 0.002, 0.006]), [])

    monkeypatch.setattr(module, "rollout", fake)
    result, r = evaluate(None, SHORT, 3, seed=4)
    assert seen == [([100000, 100001, 100002], {"seed": 4})]
    assert result["score"] == pytest.approx((0.6 + 0.1 + 1) / 3) and result["scores"] == [0.6, 0.1, 1.0]
    assert result["success"] == pytest.approx(1 / 3) and result["success_95"] == (0, 1)
    assert result["score_95"][0] < result["score"] < result["score_95"][1]
    assert (result["simulator_s"], result["network_s"], result["network_ms"]) == (1.5, pytest.approx(0.009), 2.0)
    assert json.loads(json.dumps(result))["episodes"] == 3 and "score 0.567 [" in line(result)
    assert evaluate(None, replace(SHORT, score="sum"), 3)[0]["scores"] == [0.8, 0.3, 1.0]
    del seen[:]
    for task in (SHORT, TASKS["metaworld-reach"]):                     # the field's numbers of episodes, if none is given
        evaluate(None, task)
    assert [len(seeds) for seeds, _ in seen] == [50, 20]


def test_smoothness_by_hand():
    """Positions t^3 have third difference 6; plans that shift by 1 disagree by 1; one that looks no further, not."""
    t = np.arange(8.)
    actions = np.stack([np.append(t ** 3, np.nan), np.append(5 * t, np.nan)])[..., None]
    plans = np.stack([np.arange(6.) + 4 * c + c for c in range(3)])[:, None, :, None]        # T_o 2, T_a 3: known 6 - 4 = 2
    plans[2] = np.nan
    plans[1, 0, 1:3, 0] = plans[0, 0, 4:, 0] + 1
    r = Rollout(None, None, actions, None, 0, None, [], 1, plans)
    assert module.smoothness(r, 2, 3) == {"jerk": pytest.approx(np.sqrt(36 / 2)), "disagreement": pytest.approx(1)}
    assert module.smoothness(r, 2, 5)["disagreement"] is None


# ---- rollouts

def test_rollout_repeats_exactly():
    p = policy()
    first = rollout(p, SHORT, SEEDS, workers=False, record=True)
    again, other = rollout(p, SHORT, SEEDS, workers=False, record=True), rollout(p, SHORT, SEEDS, seed=1, workers=False)
    for name in ("rewards", "actions", "states", "success"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert np.nanmax(np.abs(first.actions - other.actions)) > 1e-2            # another seed draws other latents
    assert first.rewards.shape == (2, 24) and first.actions.shape == (2, 24, 2) and first.states.shape == (2, 24, 5)
    for a in (first.rewards, first.actions, first.states):                     # 20 steps, then NaN
        assert np.isfinite(a[:, :20]).all() and np.isnan(a[:, 20:]).all()
    assert len(first.net_s) == 3 and first.frames == [] and not first.success.any()


def test_rollout_executes_the_slice_of_the_first_chunk():
    """States, observations, latents and executed actions fit together; actions outside the box are clipped."""
    p = policy()
    p.norm_action.hi *= 3                                                      # so that some actions pass 512
    r = rollout(p, SHORT, SEEDS, seed=5, workers=False, record=True)
    env = PushT()
    obs = torch.stack([torch.tensor(env.reset(seed=s)[0]) for s in SEEDS]).unsqueeze(1).expand(-1, 2, -1)
    np.testing.assert_array_equal(r.states[1, 0], env.reset(seed=SEEDS[1])[1]["state"])
    chunk = p.act(obs, generator=torch.Generator().manual_seed(5)).numpy()
    assert chunk[:, 1:9].max() > 512
    np.testing.assert_allclose(r.actions[:, :8], np.clip(chunk[:, 1:9], 0, 512), rtol=1e-5)
    env.reset(seed=SEEDS[1])
    for t in range(20):                                                        # each state follows from the last
        np.testing.assert_array_equal(env.unwrapped.get_obs(), r.states[1, t])
        assert env.step(r.actions[1, t])[1] == r.rewards[1, t]


def test_executed_length():
    p = policy()
    p.set_executed(10)
    assert len(rollout(p, SHORT, SEEDS[:1], workers=False).net_s) == 2


def test_workers_agree():
    p = policy()
    a, b = (evaluate(p, SHORT, 2, workers=w)[0] for w in (True, False))
    assert a["scores"] == b["scores"] and a["score_95"] == b["score_95"] and a["success"] == b["success"]
    assert len(a["scores"]) == 2


class Goal(PushT):
    """Starts at the goal for even seeds: those episodes succeed at their first step, the others run on."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"state": [50, 50, 256, 256, np.pi / 4]} if seed % 2 == 0 else None)


@pytest.mark.parametrize("workers", [True, False])
def test_episodes_of_different_length(workers):
    r = rollout(policy(), replace(SHORT, env=Goal), SEEDS, workers=workers, record=True)
    assert r.success.tolist() == [True, False] and np.isfinite(r.rewards).sum(1).tolist() == [1, 20]
    assert r.scores("max")[0] == 1 and np.isnan(r.actions[0, 1:]).all() and np.isfinite(r.states[0]).all(1).sum() == 1


def test_frames_of_shown_episodes():
    """The first `show` episodes keep a picture of the start and of every primitive step."""
    r = rollout(policy(), replace(SHORT, steps=3), SEEDS, show=1)
    assert [len(f) for f in r.frames] == [4] and r.frames[0][0].shape == (256, 256, 3) and r.frames[0][0].dtype == np.uint8


# ---- the GIF

@pytest.mark.parametrize("lengths,size", [((7, 10, 4, 10, 10), (80, 32)), ((7,), (80, 16)), ((1,), (80, 16))])
def test_save_gif(tmp_path, lengths, size):
    """Five episodes of 16 x 20 pixels fill two rows of four; every third frame is kept; short ones hold their last.

    Shown at their own size, then at twice that.
    """
    rng = np.random.default_rng(0)
    frames = [[np.full((16, 20, 3), rng.integers(0, 200), np.uint8) for _ in range(n)] for n in lengths]
    save_gif(tmp_path / "x.gif", frames, every=3, columns=4, size=20)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.format == "GIF" and gif.size == size and gif.n_frames == -(-max(lengths) // 3)
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("RGB"))
    assert abs(int(last[8, 10, 0]) - int(frames[0][min(lengths[0] - 1, 3 * (gif.n_frames - 1))][0, 0, 0])) < 8
    assert (last[-1, -1] > 247).all()                                          # the empty place is white
    save_gif(tmp_path / "x.gif", frames, every=3, columns=4, size=40)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.size == (2 * size[0], 2 * size[1])


# ---- the command

def main(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, args)])
    run_cli(module.main)


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TASKS, "pusht", SHORT)
    p = policy()
    p.save(tmp_path / "ckpt.pt", ema={k: v.detach() for k, v in policy(seed=1).named_parameters()})
    main(monkeypatch, tmp_path / "ckpt.pt", "--episodes", 2, "--seed", 3, "--video", tmp_path / "v" / "x.gif",
         "--json", tmp_path / "x.json")
    result = json.loads((tmp_path / "x.json").read_text())
    assert capsys.readouterr().out.startswith(f"score {result['score']:.3f} [") and result["seed"] == 3
    assert result["episodes"] == len(result["scores"]) == 2 and result["ckpt"].endswith("ckpt.pt")
    with Image.open(tmp_path / "v" / "x.gif") as gif:
        assert gif.size[0] == 4 * gif.size[1] and gif.n_frames > 1
    assert result["scores"] == evaluate(policy(seed=1), SHORT, 2, seed=3, workers=False)[0]["scores"]      # the EMA's
    used = []
    monkeypatch.setattr(module, "rollout", lambda p, t, seeds, **kw: used.append((p, seeds)) or rollout(p, t, seeds, **kw))
    main(monkeypatch, tmp_path / "ckpt.pt", "--episodes", 1, "--raw", "--T-a", 5, "--z-scale", 0.25, "--start-seed", 7)
    got, seeds = used[0]
    assert (got.T_a, got.z_scale, list(seeds)) == (5, 0.25, [7])
    assert all(map(torch.equal, got.parameters(), p.parameters()))             # the raw ones


def test_bad_checkpoint_as_a_user_sees_it(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"hello")
    code, out, err = cli("evaluate.py", tmp_path / "ckpt.pt")
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: ") and "ckpt.pt" in err


@pytest.mark.parametrize("flags,word", [("--episodes 0", "--episodes"), ("--T-a 16", "Eq. 23"), ("--T-a -1", "T-a"),
                                        ("--T-a 0", "T"), ("--task chess", "chess"), ("--device nonsense", "nonsense"),
                                        ("--show 0 --video x.gif", "show")])
def test_bad_flags(tmp_path, monkeypatch, capsys, flags, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "pusht", replace(SHORT, steps=1))
    policy().save("ckpt.pt")
    with pytest.raises(SystemExit) as e:
        main(monkeypatch, "ckpt.pt", "--one-process", *("--episodes 1".split() if "--episodes" not in flags else ()),
             *flags.split())
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and word in err
