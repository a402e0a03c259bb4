"""evaluate.py: scores and intervals by hand, rollouts that repeat exactly, the GIF and the
command."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate as module
from baselines import time_dim
from commands import BadInput
from commands import cli as run_cli
from conftest import ROOT, cli
from envs import TASKS
from evaluate import Rollout, bootstrap, count_calls, evaluate, line, rollout, save_gif
from task import observation_space
from task_pusht import GOAL, PushT
from test_policy import policy, specs

SHORT = replace(TASKS["pusht"], steps=20)  # three chunks, of which the last one is cut at 4 of 8
SEEDS = [100000, 100001]
NAN = np.nan


def rolled(**known):
    """A Rollout of which only these fields are known."""
    fields = dict.fromkeys(Rollout.__dataclass_fields__)
    return Rollout(**{**fields, **known})


# ---- numbers -------------------------------------------------------------------------------------


def test_bootstrap():
    assert bootstrap(np.full(7, 0.25)) == (0.25, 0.25)
    assert bootstrap(np.array([0.5])) == (0.5, 0.5)
    for values in ([0.0, 1.0], np.random.default_rng(3).random(50), [1.0, 1, 1, 1, 0]):
        values = np.array(values)
        low, high = bootstrap(values)
        assert values.min() <= low <= values.mean() <= high <= values.max()
        assert low < high
        assert bootstrap(values) == (low, high)
    normal = np.random.default_rng(0).normal(2, 3, 400)
    half = 1.96 * normal.std() / 20
    wanted = (normal.mean() - half, normal.mean() + half)
    assert bootstrap(normal) == pytest.approx(wanted, abs=0.1 * half)


def test_scores_by_hand():
    r = rolled(
        rewards=np.array([[1, 3, 2, NAN], [-1, -2, -3, -4]]), success=np.array([True, False])
    )
    assert r.scores("max").tolist() == [3, -1]
    assert r.scores("sum").tolist() == [6, -10]
    assert r.scores("success").tolist() == r.scores("held").tolist() == [1, 0]


@pytest.fixture
def rollouts(monkeypatch):
    """Rollouts that cost nothing: of three episodes the last succeeds. Gives how they were asked
    for."""
    seen = []
    known = rolled(
        rewards=np.array([[0.2, 0.6, NAN], [0.1, 0.1, 0.1], [0, 1, 0]]),
        success=np.array([False, False, True]),
        simulator_s=1.5,
        network_s=np.array([0.001, 0.002, 0.006]),
        nfe=1.0,
    )

    def fake(policy, task, seeds, **kw):
        seen.append((list(seeds), kw))
        return known

    monkeypatch.setattr(module, "rollout", fake)
    return seen


def test_evaluate(rollouts):
    """The rewards become scores as the task says; start seeds count up from 100000."""
    result, _ = evaluate(None, SHORT, 3, seed=4)
    assert rollouts == [([100000, 100001, 100002], {"seed": 4})]
    assert result["score"] == pytest.approx((0.6 + 0.1 + 1) / 3)
    assert result["scores"] == [0.6, 0.1, 1.0]
    assert result["success"] == pytest.approx(1 / 3)
    assert result["success_95"] == (0, 1)
    assert result["score_95"][0] < result["score"] < result["score_95"][1]
    assert (result["simulator_s"], result["network_ms"], result["nfe"]) == (1.5, 2.0, 1.0)
    assert result["network_s"] == pytest.approx(0.009)
    assert json.loads(json.dumps(result))["episodes"] == 3
    evaluate(None, SHORT, 2, start_seed=7)
    assert rollouts[-1][0] == [7, 8]


def test_the_number_of_episodes(rollouts):
    """The field's, if none is given: 50, and 20 for point clouds."""
    for task in (SHORT, TASKS["metaworld-reach"]):
        evaluate(None, task)
    assert [len(seeds) for seeds, _ in rollouts] == [50, 20]


def test_line(rollouts):
    """Success is told beside a score that differs from it; a return has none, and no decimals."""
    shown = line(evaluate(None, SHORT, 3)[0])
    assert shown.startswith("score 0.567 [")
    assert "success 0.33 [0.00, 1.00]" in shown
    assert "3 episodes in" in shown
    result, _ = evaluate(None, replace(SHORT, score="sum"), 3)
    assert result["scores"] == [0.8, 0.3, 1.0]
    assert "success" not in result
    assert line(result).startswith("score 1 [")
    result, _ = evaluate(None, replace(SHORT, score="success"), 3)
    assert line(result).startswith("score 0.333 [")
    assert "success" not in line(result)


STAGED = replace(SHORT, score="stages", stages=2, mode=lambda states: [None, "b", "b", "a"][states])


@pytest.fixture
def staged(monkeypatch):
    """Four episodes, which reach none, one, two and two of two stages, at no cost."""
    reached = np.array([[False, False], [True, False], [True, True], [True, True]])
    known = rolled(success=reached[:, 1], stages=reached, simulator_s=0.0, network_s=np.ones(1))
    known.path = lambda e: e
    seen = []

    def fake(policy, task, seeds, **kw):
        seen.append((list(seeds), kw))
        return known

    monkeypatch.setattr(module, "rollout", fake)
    return seen


def test_stages(staged):
    """p1 and p2 are shares of the episodes, and the score is their mean, each with its interval."""
    result, _ = evaluate(None, STAGED, 4)
    assert (result["p1"], result["p2"], result["score"]) == (0.75, 0.5, 0.625)
    assert result["scores"] == [0, 0.5, 1, 1]
    assert result["p2_95"] == bootstrap(np.array([0.0, 0, 1, 1]))
    assert staged == [([100000, 100001, 100002, 100003], {"record": True})]
    shown = line(result)
    assert shown.startswith("score 0.625 [")
    assert "p1 0.75 [" in shown and "p2 0.50 [0.00, 1.00]" in shown
    assert "success" not in shown  # it is p2


def test_modes(staged):
    """Shares are of all episodes, the entropy is of those that took a mode."""
    result, _ = evaluate(None, STAGED, 4, start_seed=7, one_start=True)
    assert staged[-1][0] == [7, 7, 7, 7]
    assert list(result["modes"].items()) == [("b", 0.5), ("none", 0.25), ("a", 0.25)]
    assert result["mode_entropy"] == pytest.approx(np.log2(3) - 2 / 3)
    assert "modes b 0.50, none 0.25, a 0.25 (0.92 bits)" in line(result)
    assert json.loads(json.dumps(result))["mode_of"] == [None, "b", "b", "a"]


@pytest.mark.parametrize(
    "modes, bits",
    [([None], 0), (["a"] * 3, 0), (["a", "b"], 1), ("abcd", 2), (["a", None, "b"], 1)],
)
def test_entropy_of_modes(modes, bits):
    entropy = module.told_of_modes(modes)["mode_entropy"]
    assert (entropy, str(entropy)[0] == "-") == (bits, False)


def test_the_path_of_an_episode():
    """It ends with the state after the last action, which a recording before actions lacks."""
    p = policy()
    p.set_executed(8)
    r = rollout(p, SHORT, SEEDS, record=True, workers=False)
    path = r.path(1)
    assert path.shape == (21, 5)
    np.testing.assert_array_equal(path[:-1], r.states[1, :20])
    env = PushT()
    env.reset(seed=SEEDS[1])
    for action in r.actions[1, :20]:
        info = env.step(action)[-1]
    np.testing.assert_array_equal(path[-1], info["state"])


def test_smoothness_by_hand():
    """Positions t^3 have the third difference 6, straight ones 0.

    The first plan disagrees by 1 with the second about the steps that it leaves to it; a plan that
    looks no further than it runs can not disagree.
    """
    t = np.arange(8.0)
    actions = np.stack([np.append(t**3, NAN), np.append(5 * t, NAN)])[..., None]
    plans = np.stack([np.arange(6.0) + 4 * c + c for c in range(3)])[:, None, :, None]
    plans[2] = NAN
    plans[1, 0, 1:3, 0] = plans[0, 0, 4:, 0] + 1  # T_o 2, T_a 3: a plan knows 6 - 4 = 2 steps more
    r = rolled(actions=actions, plans=plans)
    jerk = pytest.approx(np.sqrt(36 / 2))
    assert module.smoothness(r, 2, 3) == {"jerk": jerk, "disagreement": pytest.approx(1)}
    assert module.smoothness(r, 2, 5)["disagreement"] is None


def test_a_score_is_logged_once():
    class Run:
        rows = [{"step": 3, "loss": 1.0}, {"step": 5, "score": 0.5}]

        def log(self, step, **row):
            self.rows.append({"step": step, **row})

    result = {"score": 0.5, "score_95": (0.4, 0.6), "seconds": 2.0, "nfe": 1}
    module.log_score(Run, 5, result)
    assert len(Run.rows) == 2  # a resumed run has it already
    module.log_score(Run(), 3, result, minutes=1)
    logged = {"score": 0.5, "seconds": 2.0, "score_low": 0.4, "score_high": 0.6}
    assert Run.rows[2] == {"step": 3, "minutes": 1, **logged}


# ---- network evaluations -------------------------------------------------------------------------


def test_count_calls():
    """Calls inside the `with` alone are counted, also where an error ends it."""
    net = nn.Linear(2, 2)
    x = torch.zeros(1, 2)
    net(x)
    with count_calls(net) as outer:
        net(x)
        with count_calls(net) as inner:
            net(x)
        net(x)
    with pytest.raises(KeyError), count_calls(net) as broken:
        net(x)
        raise KeyError
    net(x)
    assert (outer.n, inner.n, broken.n) == (3, 1, 1)
    assert not net._forward_hooks


# ---- rollouts ------------------------------------------------------------------------------------


def test_rollout_repeats_exactly():
    p = policy()
    first = rollout(p, SHORT, SEEDS, workers=False, record=True)
    again = rollout(p, SHORT, SEEDS, workers=False, record=True)
    other = rollout(p, SHORT, SEEDS, seed=1, workers=False)
    for name in ("rewards", "actions", "states", "success"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert np.nanmax(np.abs(first.actions - other.actions)) > 1e-2  # another seed, other latents
    assert first.rewards.shape == (2, 24)
    assert first.actions.shape == (2, 24, 2)
    assert first.states.shape == (2, 24, 5)
    for a in (first.rewards, first.actions, first.states):  # 20 steps, then NaN
        assert np.isfinite(a[:, :20]).all()
        assert np.isnan(a[:, 20:]).all()
    assert first.plans.shape == (3, 2, 16, 2)
    assert len(first.network_s) == 3
    assert first.nfe == 1
    assert first.frames == []
    assert other.states.size == 0
    assert not first.success.any()


def test_rollout_executes_the_slice_of_the_first_chunk():
    """States, observations, latents and executed actions fit together; actions are clipped."""
    p = policy()
    p.norm_action.hi *= 3  # so that some actions pass 512
    r = rollout(p, SHORT, SEEDS, seed=5, workers=False, record=True)
    env = PushT()
    starts = np.stack([env.reset(seed=s)[0]["state"] for s in SEEDS])
    obs = {"state": torch.tensor(starts)[:, None].expand(-1, 2, -1)}
    np.testing.assert_array_equal(r.states[1, 0], env.reset(seed=SEEDS[1])[1]["state"])
    chunk = p.act(obs, generator=torch.Generator().manual_seed(5)).numpy()
    assert chunk[:, 1:9].max() > 512
    np.testing.assert_allclose(r.plans[0], chunk, rtol=1e-5)
    np.testing.assert_allclose(r.actions[:, :8], np.clip(chunk[:, 1:9], 0, 512), rtol=1e-5)
    env.reset(seed=SEEDS[1])
    for t in range(20):  # each state follows from the last
        np.testing.assert_array_equal(env.unwrapped.get_obs(), r.states[1, t])
        assert env.step(r.actions[1, t])[1] == r.rewards[1, t]


def test_executed_length():
    p = policy()
    p.set_executed(10)
    assert len(rollout(p, SHORT, SEEDS[:1], workers=False).network_s) == 2


def test_workers_agree():
    p = policy()
    a, b = (evaluate(p, SHORT, 2, workers=w)[0] for w in (True, False))
    for name in ("scores", "score_95", "success"):
        assert a[name] == b[name]
    assert len(a["scores"]) == 2


class Goal(PushT):
    """Starts at the goal for even seeds: those episodes succeed at once, the others run on."""

    def reset(self, *, seed=None, options=None):
        start = {"state": [50, 50, *GOAL[2:]]}
        return super().reset(seed=seed, options=start if seed % 2 == 0 else None)


@pytest.mark.parametrize("workers", [True, False])
def test_episodes_of_different_length(workers):
    r = rollout(policy(), replace(SHORT, env=Goal), SEEDS, workers=workers, record=True)
    assert r.success.tolist() == [True, False]
    assert np.isfinite(r.rewards).sum(1).tolist() == [1, 20]
    assert r.scores("max")[0] == 1
    assert np.isnan(r.actions[0, 1:]).all()
    assert np.isfinite(r.states[0]).all(1).sum() == 1
    assert np.isfinite(r.plans[0]).all()
    assert np.isnan(r.plans[1:, 0]).all()  # what is planned after the end counts for nothing


NAMED = replace(SHORT, obs={"tee": (9, 3), "agent": (2,), "clock": (1,)})


class OtherNames(PushT):
    """Push-T under other names: its key points as a cloud, its agent, and a clock."""

    def __init__(self):
        super().__init__()
        self.observation_space = observation_space(NAMED)

    def named(self, obs):
        points = np.append(obs["state"][:18].reshape(9, 2), np.zeros((9, 1)), 1)
        clock = np.zeros(1, np.float32)
        return {"clock": clock, "tee": points.astype("f4"), "agent": obs["state"][18:]}

    def reset(self, **kw):
        obs, info = super().reset(**kw)
        return self.named(obs), info

    def step(self, action):
        obs, *rest = super().step(action)
        return self.named(obs), *rest


def test_observations_by_name():
    """A policy gets the observations that it knows by name, whatever else there is."""
    p = policy(obs=specs(agent=(2,), tee=(9, 3)))
    seen = []
    p.encoder.register_forward_pre_hook(lambda encoder, args: seen.append(args[0]))
    r = rollout(p, replace(NAMED, env=OtherNames), SEEDS, workers=False, record=True)
    shapes = {name: tuple(y.shape) for name, y in seen[0].items()}
    assert shapes == {"agent": (2, 2, 2), "tee": (2, 2, 9, 3)}
    agent = p.norm_obs["agent"].inverse(seen[1]["agent"])[:, -1]
    np.testing.assert_allclose(agent.numpy(), r.states[:, 8, :2], rtol=1e-4)


def test_frames_of_shown_episodes():
    """The first `show` episodes keep a picture of the start and of every primitive step."""
    r = rollout(policy(), replace(SHORT, steps=3), SEEDS, show=1)
    assert [len(f) for f in r.frames] == [4]
    assert r.frames[0][0].shape == (256, 256, 3)
    assert r.frames[0][0].dtype == np.uint8


@pytest.mark.parametrize("workers", [True, False])
def test_no_simulator(workers):
    with pytest.raises(BadInput, match="pusht has no simulator: it can be trained"):
        rollout(policy(), replace(SHORT, env=None), SEEDS, workers=workers)


# ---- the GIF -------------------------------------------------------------------------------------


GIFS = [
    ((7, 10, 4, 10, 10), (80, 32)),  # rows of four, the last one filled up
    ((5, 6, 2, 1), (80, 16)),
    ((5, 6), (40, 16)),  # fewer than four stand alone
    ((1,), (20, 16)),
]


@pytest.mark.parametrize("lengths, size", GIFS)
def test_save_gif(tmp_path, lengths, size):
    """Episodes of 16 x 20 pixels: every third frame is kept, and short ones hold their last.

    Shown at their own size, then at twice that.
    """
    rng = np.random.default_rng(0)
    frames = [
        [np.full((16, 20, 3), rng.integers(0, 200), np.uint8) for _ in range(n)] for n in lengths
    ]
    most = -(-max(lengths) // 3)
    save_gif(tmp_path / "x.gif", frames, most=most, columns=4, size=20)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.format == "GIF"
        assert gif.size == size
        assert gif.n_frames == most
        at = gif.n_frames - 1
        gif.seek(at)
        last = np.asarray(gif.convert("RGB"))
    for e, episode in enumerate(frames):
        shown = last[16 * (e // 4) + 8, 20 * (e % 4) + 10, 0]
        assert abs(int(shown) - int(episode[min(len(episode) - 1, 3 * at)][0, 0, 0])) < 8
    if len(lengths) == 5:
        assert (last[16:, 20:] > 247).all()  # the empty places are white
    save_gif(tmp_path / "x.gif", frames, most=most, columns=4, size=40)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.size == (2 * size[0], 2 * size[1])


# ---- the command ---------------------------------------------------------------------------------


def main(monkeypatch, *args):
    """python evaluate.py with these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, args)])
    run_cli(module.main)


def test_command(tmp_path, monkeypatch, capsys):
    """The EMA's weights are scored; the figures, each episode's score and a GIF are written."""
    monkeypatch.setitem(TASKS, "pusht", SHORT)
    ema = {name: y.detach() for name, y in policy(seed=1).named_parameters()}
    policy().save(tmp_path / "ckpt.pt", ema=ema)
    gif = tmp_path / "v" / "x.gif"
    flags = ["--episodes", 2, "--seed", 3, "--video", gif, "--json", tmp_path / "x.json"]
    main(monkeypatch, tmp_path / "ckpt.pt", *flags)
    result = json.loads((tmp_path / "x.json").read_text())
    assert capsys.readouterr().out.startswith(f"score {result['score']:.3f} [")
    assert (result["seed"], result["start_seed"], result["nfe"]) == (3, 100000, 1)
    assert result["episodes"] == len(result["scores"]) == 2
    assert result["ckpt"].endswith("ckpt.pt")
    assert result["jerk"] > 0
    assert result["disagreement"] > 0
    wanted, _ = evaluate(policy(seed=1), SHORT, 2, seed=3, workers=False)
    assert result["scores"] == wanted["scores"]
    with Image.open(gif) as picture:
        assert picture.n_frames > 1


def test_a_video_of_what_draws_no_scene_is_refused(tmp_path, monkeypatch, capsys):
    """Before any episode; without --video such an environment is scored."""

    class Blind(PushT):
        render = gym.Env.render

    monkeypatch.setitem(TASKS, "pusht", replace(SHORT, env=Blind))
    policy().save(tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit):
        main(monkeypatch, tmp_path / "ckpt.pt", "--episodes", 1, "--video", tmp_path / "x.gif")
    assert "pusht has no render(): leave out --video" in capsys.readouterr().err
    main(monkeypatch, tmp_path / "ckpt.pt", "--episodes", 1)
    assert capsys.readouterr().out.startswith("score")


def test_flags_reach_the_rollout(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "pusht", SHORT)
    ema = {name: y.detach() for name, y in policy(seed=1).named_parameters()}
    policy().save(tmp_path / "ckpt.pt", ema=ema)
    used = []

    def watched(p, task, seeds, **kw):
        used.append((p, list(seeds), kw))
        return rollout(p, task, seeds, **kw)

    monkeypatch.setattr(module, "rollout", watched)
    flags = "--episodes 1 --raw --T-a 5 --z-scale 0.25 --start-seed 7 --one-process".split()
    main(monkeypatch, tmp_path / "ckpt.pt", *flags)
    p, seeds, kw = used[0]
    assert (p.T_a, p.z_scale, seeds) == (5, 0.25, [7])
    assert kw == {"seed": 0, "workers": False, "show": 0}
    assert all(map(torch.equal, p.parameters(), policy().parameters()))  # the raw ones
    gif = tmp_path / "x.gif"
    for flags, show in (([], 8), (["--show", 2], 2)):
        main(monkeypatch, tmp_path / "ckpt.pt", "--episodes", 3, "--video", gif, *flags)
        p, _, kw = used[-1]
        assert (p.T_a, p.z_scale, kw["show"]) == (8, 1.0, show)


def test_files_are_written_before_anything_is_printed(tmp_path, monkeypatch):
    """Figures and pictures of a long evaluation are there even if standard output is closed."""
    policy().save(tmp_path / "ckpt.pt")
    monkeypatch.setitem(TASKS, "pusht", SHORT)

    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Closed())
    flags = ["--episodes", 2, "--json", tmp_path / "x.json", "--video", tmp_path / "x.gif"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path / "ckpt.pt"), *map(str, flags)])
    with pytest.raises(OSError):
        module.main()
    assert json.loads((tmp_path / "x.json").read_text())["episodes"] == 2
    assert (tmp_path / "x.gif").stat().st_size > 1000


def test_ctrl_c_with_workers(tmp_path):
    """One line, exit code 130, at once, and no worker is left; nor does a worker say a word."""
    policy().save(tmp_path / "ckpt.pt")
    code = "import evaluate, time; act = evaluate.Policy.act\n"
    code += "def shown(*a, **k): print('acts', flush=True); return act(*a, **k)\n"
    code += "evaluate.Policy.act = shown; evaluate.cli(evaluate.main)"
    command = [sys.executable, "-c", code, tmp_path / "ckpt.pt", "--episodes", "3"]
    p = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert p.stdout.readline() == "acts\n"
        os.killpg(p.pid, signal.SIGINT)  # as a terminal does, to the workers too
        _, err = p.communicate(timeout=30)
        assert (p.returncode, err) == (130, "interrupted\n")
        with pytest.raises(ProcessLookupError):
            os.killpg(p.pid, 0)
    finally:
        p.kill()


def test_bad_checkpoint_as_a_user_sees_it(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"hello")
    code, out, err = cli("evaluate.py", tmp_path / "ckpt.pt")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "ckpt.pt" in err


def refused(monkeypatch, capsys, *args):
    """The command ends with code 2 before anything is rolled out; gives its one line."""

    def never(*_, **__):
        raise AssertionError("rolled out")

    monkeypatch.setattr(module, "make_vec", never)
    with pytest.raises(SystemExit) as e:
        main(monkeypatch, *args)
    out, err = capsys.readouterr()
    assert (e.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--episodes 0", "--episodes must be above 0"),
        ("--T-a 16", "Eq. 23"),
        ("--T-a -1", "--T-a must be above 0"),
        ("--T-a 0", "--T-a must be above 0"),
        ("--task chess", "was trained on pusht, not chess"),
        ("--device nonsense", "--device nonsense cannot be used here"),
        ("--show 3", "--show is the number of episodes in --video: give both, or neither"),
        ("--show 0 --video x.gif", "--show must be above 0"),
        ("--nfe 10", "--nfe 10: dbp takes 1 network evaluation"),
        ("--z-scale -1", "--z-scale -1.0 must not be below 0, nor infinite"),
        ("--z-scale inf", "nor infinite"),
        ("--z-scale nan", "nor infinite"),
        ("--z-scales 1", "--help"),
        ("--seed -1", "--seed must lie in 0 .. 9223372036854775807, not -1"),
        ("--seed 9223372036854775808", "--seed must lie in 0 .. 9223372036854775807"),
        ("--start-seed -1", "--start-seed must lie in 0 .. 4294967246, not -1"),
        ("--start-seed 4294967295 --episodes 2", "--start-seed must lie in 0 .. 4294967294"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    policy().save("ckpt.pt")
    assert message in refused(monkeypatch, capsys, "ckpt.pt", *flags.split())


@pytest.mark.parametrize(
    "method, flags, message",
    [
        ("bc", "--z-scale 0.5", "--z-scale: regression acts without a latent"),
        ("bc", "--z-scale 1", "--z-scale: regression acts without a latent"),
        ("bc", "--nfe 10", "--nfe 10: bc takes 1"),
        ("meanflow", "--nfe 2", "--nfe 2: meanflow takes 1"),
        ("diffusion", "--nfe 101", "--nfe 101: diffusion takes 1 to 100"),
    ],
)
def test_flags_that_a_method_does_not_have(tmp_path, monkeypatch, capsys, method, flags, message):
    monkeypatch.chdir(tmp_path)
    policy(method=method, time_dim=time_dim(method)).save("ckpt.pt")
    assert message in refused(monkeypatch, capsys, "ckpt.pt", *flags.split())


def test_a_checkpoint_of_another_version_of_the_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for p, message in (
        (policy(obs=specs(state=(19,))), "takes observations"),
        (policy(obs=specs(keypoints=(20,))), "takes observations"),
        (policy(D_a=3), "takes actions 3, but pusht has 2"),
        (policy(task="chess"), "unknown task 'chess'"),
    ):
        p.save("ckpt.pt")
        assert message in refused(monkeypatch, capsys, "ckpt.pt")


def test_a_task_without_a_simulator_has_no_score(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "pusht", replace(SHORT, env=None))
    policy().save("ckpt.pt")
    with pytest.raises(SystemExit) as e:
        main(monkeypatch, "ckpt.pt")
    assert e.value.code == 2
    assert capsys.readouterr().err.startswith("error: pusht has no simulator: it can be trained")
