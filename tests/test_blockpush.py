"""task_blockpush.py and its oracle: scores and observations by hand, starts, episodes replayed to
the bit, both kinds of actions, and the official layout written by hand."""

import io

import numpy as np
import pytest
import zarr
from matplotlib.figure import Figure

import experts_blockpush
from commands import BadInput
from conftest import ROOT
from data import load
from envs import make_env, make_vec
from experts_blockpush import MODES, Oracle, heading_error
from formats import read, save_npz
from task_blockpush import (
    BLOCKPUSH,
    BLOCKPUSH_DELTA,
    HIGH,
    LOW,
    NAMES,
    START,
    BlockPush,
    Score,
    demonstration,
    distances,
    draw,
    draw_paths,
    mode,
    picture,
    sketch,
    start_state,
)

DEMOS = ROOT / "demos" / "blockpush.npz"
A = (0.28, 0.2)  # the zones of the states below
B = (0.52, 0.2)
AWAY = (0.4, -0.2)
INSIDE_A = (0.28, 0.151)  # by 1 mm
BESIDE_A = (0.28, 0.149)


def state(block, block2):
    """An observation with the blocks there."""
    return np.array([*block, 1, *block2, 2, 0.3, -0.4, 0.3, -0.4, *A, 3, *B, 3.1])


def scored(*pairs):
    """The rewards, the ends and the stages of an episode with the blocks there step by step."""
    score = Score()
    steps = [score.add(state(*pair)) for pair in pairs]
    return [reward for reward, _ in steps], [end for _, end in steps], score.stages


# ---- the score -----------------------------------------------------------------------------------

CASES = {
    "nothing": ([(AWAY, AWAY), (BESIDE_A, AWAY)], [0, 0], [False, False], 0),
    "one block": ([(AWAY, AWAY), (INSIDE_A, AWAY)], [0, 0.49], [False, False], 1),
    "stays inside": ([(A, AWAY), (A, AWAY)], [0.49, 0], [False, False], 1),
    "both": ([(A, AWAY), (A, B)], [0.49, 0.51], [False, True], 2),
    "both, the other way": ([(AWAY, A), (B, A)], [0.49, 0.51], [False, True], 2),
    "two blocks in one zone": ([(A, AWAY), (A, INSIDE_A)], [0.49, 0], [False, False], 1),
    "enters and leaves": ([(A, AWAY), (AWAY, AWAY)], [0.49, 0], [False, False], 1),
    "enters one, leaves, then both": (
        [(A, AWAY), (AWAY, AWAY), (AWAY, B), (A, B)],
        [0.49, 0, 0, 0.51],
        [False, False, False, True],
        2,
    ),
    "each was inside, never at once": (
        [(A, AWAY), (AWAY, AWAY), (AWAY, B)],
        [0.49, 0, 0],
        [False] * 3,
        1,
    ),
    "one block through both zones": ([(A, AWAY), (B, AWAY)], [0.49, 0], [False, False], 1),
    "both in one step": ([(AWAY, AWAY), (A, B)], [0, 0.51], [False, True], 1),  # p1 without p2
}


@pytest.mark.parametrize("name", CASES)
def test_score_by_hand(name):
    pairs, rewards, ends, stages = CASES[name]
    assert scored(*pairs) == (pytest.approx(rewards), ends, stages)


def test_two_blocks_that_enter_one_zone_in_one_step():
    """The original pays twice 0.49 for it, which is above 0.9 and ends the episode."""
    assert scored((A, INSIDE_A)) == ([pytest.approx(0.98)], [True], 2)


def test_yaw_is_no_part_of_the_score():
    turned = state(A, B)
    turned[[2, 5, 12, 15]] = 0.3
    assert Score().add(turned) == Score().add(state(A, B))


# ---- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs, name",
    [
        ([(AWAY, AWAY)], None),
        ([(AWAY, AWAY), (A, AWAY), (A, B)], "1A"),
        ([(B, AWAY), (B, A)], "1B"),
        ([(AWAY, A), (B, A)], "2A"),
        ([(AWAY, B), (AWAY, AWAY), (A, AWAY)], "2B"),  # though it left
        ([(BESIDE_A, AWAY), (BESIDE_A, INSIDE_A)], "2A"),
        ([(A, INSIDE_A)], "1A"),  # the nearer one of two at once
    ],
)
def test_mode_by_hand(pairs, name):
    assert mode(np.stack([state(*pair) for pair in pairs])) == name


def test_distances_by_hand():
    found = distances(state((0.28, 0.1), (0.52, 0.2)))
    np.testing.assert_allclose(found, [[0.1, np.hypot(0.24, 0.1)], [0.24, 0]], atol=1e-12)


# ---- the simulator -------------------------------------------------------------------------------

PLACES = {  # Diffusion Policy's observation
    0: "block x",
    1: "block y",
    2: "block yaw",
    3: "block2 x",
    4: "block2 y",
    5: "block2 yaw",
    6: "pusher x",
    7: "pusher y",
    8: "sent x",
    9: "sent y",
    10: "zone x",
    11: "zone y",
    12: "zone yaw",
    13: "zone2 x",
    14: "zone2 y",
    15: "zone2 yaw",
}
SET = {
    "block x": 0.45,
    "block y": -0.1,
    "block yaw": 0.3,
    "block2 x": 0.33,
    "block2 y": -0.25,
    "block2 yaw": 4.0 - np.pi,  # told modulo pi
    "zone x": 0.28,
    "zone y": 0.201,
    "zone yaw": 3.2 - np.pi,
    "zone2 x": 0.521,
    "zone2 y": 0.199,
    "zone2 yaw": 3.1,
    "pusher x": 0.4 - 0.1 * 0.9**24,  # a tenth of the way is left undone 24 times
    "pusher y": -0.4,
    "sent x": 0.4,
    "sent y": -0.4,
}


def test_observation_against_a_literal_table():
    """Order, modulo pi, and the lag of the pusher behind where it was sent."""
    env = BlockPush()
    env.reset(seed=0)
    env.start(
        np.array([[0.45, -0.1, 0.3], [0.33, -0.25, 4.0]]),
        np.array([[0.28, 0.201, 3.2], [0.521, 0.199, 3.1]]),
    )
    obs, _, _, _, info = env.step([0.4, -0.4])
    wanted = [SET[name] for name in PLACES.values()]
    np.testing.assert_allclose(info["state"], wanted, atol=1e-6)
    assert obs["state"].dtype == np.float32
    np.testing.assert_array_equal(obs["state"], info["state"].astype("f4"))
    assert env.observation_space.contains(obs)


def test_actions():
    """A place replaces where the pusher was sent, a delta adds to it; both are clipped."""
    env = make_env(BLOCKPUSH)
    deltas = make_env(BLOCKPUSH_DELTA)
    env.reset(seed=3)
    deltas.reset(seed=3)
    for place in ([0.33, -0.38], [0.36, -0.41], [9, -9], [0.1, 0.0]):
        before = deltas.state()[8:10]
        seen = env.step(place)[-1]["state"]
        np.testing.assert_allclose(deltas.step(place - before)[-1]["state"], seen, atol=1e-9)
        np.testing.assert_array_equal(seen[8:10], np.clip(place, LOW, HIGH))
    np.testing.assert_array_equal(env.action_space.low, LOW)


def test_starts():
    """The ranges, more than 10 cm in x between the blocks, zones on either side, yaws from 1 on."""
    starts = [start_state(np.random.RandomState(seed)) for seed in range(300)]
    blocks = np.array([blocks for blocks, _ in starts])
    zones = np.array([zones for _, zones in starts])
    assert (np.abs(blocks[:, :, 0] - 0.4) <= 0.1).all()
    assert (np.abs(blocks[:, :, 1] + 0.2) <= 0.15).all()
    assert (np.abs(np.diff(blocks[:, :, 0])) > 0.1).all()
    assert blocks[..., 2].min() > 1 and blocks[..., 2].max() < np.pi
    assert blocks[..., 2].min() < 1.05 and blocks[..., 2].max() > 3.1
    side = zones[:, :, 0] - 0.4
    assert (np.abs(np.abs(side) - 0.12) <= 0.005).all()
    assert (side[:, 0] * side[:, 1] < 0).all() and 0.4 < (side[:, 0] > 0).mean() < 0.6
    assert (np.abs(zones[..., 1] - 0.2) <= 0.0075).all()
    assert (np.abs(zones[..., 2] - np.pi) <= np.pi / 30).all()


def test_a_start_is_the_seeds_draws_in_the_originals_order():
    rng = np.random.RandomState(100000)
    first = [0.4 + rng.uniform(-0.1, 0.1), -0.2 + rng.uniform(-0.15, 0.15), rng.uniform(np.pi)]
    blocks, _ = start_state(np.random.RandomState(100000))
    assert blocks[0].tolist() == first


def test_a_reset_leaves_nothing_of_the_last_episode():
    """The blocks lie still where they were put, the pusher is at its start."""
    env = BlockPush()
    first, _ = env.reset(seed=5)
    for _ in range(15):
        env.step([0.4, -0.1])
    again, info = env.reset(seed=5)
    np.testing.assert_array_equal(first["state"], again["state"])
    np.testing.assert_array_equal(info["state"][6:10], [*START, *START])
    blocks, _ = start_state(np.random.RandomState(5))
    np.testing.assert_allclose(info["state"][:6], blocks.ravel(), atol=1e-4)
    assert np.abs(env.data.qvel).max() < 1e-4


# ---- the oracle ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "direction, yaw, error",
    [
        ([1, 0], 0.1, -0.1),
        ([0, 1], 0.1, -0.1),  # a side is every quarter of a turn
        ([-1, 0], 3.0, np.pi - 3),
        ([1, 1], 0.0, -np.pi / 4),
    ],
)
def test_heading_error_by_hand(direction, yaw, error):
    assert heading_error(np.array(direction), yaw) == pytest.approx(error)


def test_oracle_by_hand():
    """It goes behind its block at 0.3 m/s at most, then up to it, and turns it if it is crooked."""
    blocks = np.array([[0.3, 0.0], [0.5, 0.0]])
    zones = np.array([[0.3, 0.2], [0.5, 0.2]])
    oracle = Oracle((1, 1))
    far = np.array([0.3, -0.4])
    move = oracle.act(blocks, [0, 0], zones, far)
    np.testing.assert_allclose(np.linalg.norm(move), 0.03)
    np.testing.assert_allclose(move, 0.03 * np.array([0.2, 0.35]) / np.hypot(0.2, 0.35))
    behind = np.array([0.5, -0.05])
    np.testing.assert_allclose(oracle.act(blocks, [0, 0], zones, behind), [0, 0.02], atol=1e-12)
    assert oracle.phase == "to-block"
    near = np.array([0.5, -0.03])
    np.testing.assert_allclose(oracle.act(blocks, [0, 0], zones, near), [0, 0.02], atol=1e-12)
    assert oracle.phase == "push"
    oracle.act(blocks, [0, 0.3], zones, near)
    assert oracle.phase == "pre-block"
    oracle.phase = "to-block"
    move = oracle.act(blocks, [0, -0.3], zones, near)  # the side is to be turned to the left
    assert oracle.phase == "left"
    assert move[0] > 0 and np.linalg.norm(move) <= 0.015
    blocks[1] = zones[1] - [0, 0.039]  # is there: back to the first point behind it
    move = oracle.act(blocks, [0, 0], zones, zones[1])
    assert (oracle.phase, oracle.block, oracle.zone) == ("return", 0, 0)
    np.testing.assert_allclose(move / np.linalg.norm(move), [0, -1], atol=1e-9)


@pytest.mark.parametrize("first, name", list(zip(MODES, NAMES)))
def test_the_oracle_succeeds_in_every_mode(first, name):
    """In the order and the assignment that it is given, from fixed starts."""
    env = BlockPush()
    block, zone = first
    for seed in (1, 2):
        made = demonstration(env, seed, first=first)
        assert mode(made["state"]) == name == f"{block + 1}{'AB'[zone]}"
        last = distances(made["state"][-1])
        assert last[block, zone] < 0.05 and last[1 - block, 1 - zone] < 0.05
        assert env.score.stages == 2
        assert 60 < len(made["action"]) < 250


def test_an_oracle_that_fails_makes_no_demonstration(monkeypatch):
    monkeypatch.setattr(Oracle, "act", lambda *_: np.zeros(2))
    assert demonstration(BlockPush(), 0) is None


def test_phases_have_a_speed():
    assert set(experts_blockpush.BEHIND) < set(experts_blockpush.SPEED)
    assert max(experts_blockpush.SPEED.values()) / experts_blockpush.CONTROL_HZ < 0.1


# ---- data ----------------------------------------------------------------------------------------


def shipped():
    """The arrays of the demonstrations that ship."""
    return read(DEMOS)


def test_replay_reproduces_recorded_states_to_the_bit():
    """Also through the chunks of a policy, where a chunk is longer than what remains."""
    arrays = shipped()
    ends = arrays["episode_ends"]
    env = make_env(BLOCKPUSH)
    for e in (0, 7):
        states = arrays["state"][ends[e] - np.diff(ends, prepend=0)[e] : ends[e]]
        actions = arrays["action"][ends[e] - len(states) : ends[e]]
        obs, _ = env.reset(seed=int(arrays["start_seed"][e]))
        total = 0
        for t, action in enumerate(actions[:-1]):
            np.testing.assert_array_equal(obs["state"], states[t])
            obs, reward, terminated, _, info = env.step(action)
            total += reward
        np.testing.assert_array_equal(obs["state"], states[-1])
        assert terminated and info["is_success"] and info["stages"] == 2
        assert total == pytest.approx(1)


def test_stages_reach_a_vector_environment():
    arrays = shipped()
    actions = arrays["action"][: arrays["episode_ends"][0] - 1]
    env = make_vec(BLOCKPUSH, 1, T_o=1, T_a=len(actions), workers=False, record=True)
    env.reset(seed=[int(arrays["start_seed"][0])])
    info = env.step(actions[None])[-1]
    assert info["stages"].tolist() == [[True, True]]
    path = np.concatenate([info["states"][0], info["state"]])
    assert mode(path) == mode(arrays["state"][: len(path)])


def test_the_shipped_demonstrations():
    """All four modes, every episode a success, both tasks read them, and no more than 1.5 MB."""
    assert DEMOS.stat().st_size < 1_500_000
    loaded = load(BLOCKPUSH, DEMOS)
    assert len(loaded) == 200
    episodes = np.split(loaded.obs["state"], loaded.ends[:-1])
    modes = [mode(episode) for episode in episodes]
    assert set(modes) == set(NAMES) and min(map(modes.count, NAMES)) >= 40
    last = distances(loaded.obs["state"][loaded.ends - 1].astype("f8"))
    assert ((last < 0.05).sum((1, 2)) == 2).all()
    deltas = load(BLOCKPUSH_DELTA, DEMOS)
    np.testing.assert_array_equal(deltas.obs["state"], loaded.obs["state"])
    np.testing.assert_allclose(
        deltas.action + loaded.obs["state"][:, 8:10], loaded.action, atol=1e-7
    )
    assert np.linalg.norm(deltas.action, axis=1).max() < 0.0351


@pytest.mark.parametrize("absolute", [True, False])
def test_official_layout(tmp_path, absolute):
    """A zarr folder as Diffusion Policy's, with either kind of action, is read by both tasks."""
    rng = np.random.default_rng(0)
    obs = np.stack([state(rng.uniform(0.3, 0.5, 2), AWAY) for _ in range(90)]).astype("f4")
    delta = rng.uniform(-0.03, 0.03, (90, 2)).astype("f4")
    places = obs[:, 8:10] + delta
    name = "multimodal_push_seed_abs.zarr" if absolute else "multimodal_push_seed.zarr"
    group = zarr.create_group(tmp_path / "block_pushing" / name, zarr_format=2)
    group["data/obs"] = obs
    group["data/action"] = places if absolute else delta
    group["meta/episode_ends"] = np.array([40, 90])
    for task, wanted in ((BLOCKPUSH, places), (BLOCKPUSH_DELTA, delta)):
        loaded = load(task, tmp_path)
        np.testing.assert_array_equal(loaded.obs["state"], obs)
        np.testing.assert_allclose(loaded.action, wanted, atol=1e-7)
        assert loaded.ends.tolist() == [40, 90]


@pytest.mark.parametrize("task", [BLOCKPUSH, BLOCKPUSH_DELTA], ids=lambda task: task.name)
def test_the_best_of_two_files_is_taken(task):
    """The one that needs no conversion comes first."""
    kinds = [("abs" in name) == (task is BLOCKPUSH) for name in task.data if "zarr" in name]
    assert kinds == [True, False, True, False]
    assert task.data[-1] == "blockpush.npz"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"action": np.zeros((9, 3))}, r"actions \(9, 3\) are not \(N, 2\)"),
        ({"action": np.zeros(9)}, r"actions \(9,\) are not \(N, 2\)"),
        ({"action": np.zeros((8, 2))}, "no actions of blockpush can be made"),
        ({"state": np.zeros((9, 5))}, "no actions of blockpush can be made"),
        ({"state": np.zeros((9, 17))}, r"observation state has shape \(9, 17\)"),
        ({"action": np.full((9, 2), np.nan)}, "action is NaN or infinite at 9 of 9 steps"),
        ({"state": np.full((9, 16), np.nan)}, "observation state is NaN"),
        ({"state": None}, "lacks state"),
        ({"action": None}, "lacks action"),
    ],
)
def test_bad_files(tmp_path, change, words):
    arrays = {"state": np.zeros((9, 16)), "action": np.zeros((9, 2)), "episode_ends": np.array([9])}
    arrays = {name: a for name, a in (arrays | change).items() if a is not None}
    save_npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput, match=words):
        load(BLOCKPUSH, tmp_path / "x.npz")


# ---- pictures ------------------------------------------------------------------------------------


def test_picture_shows_everything_at_its_place():
    """x goes up, y to the left; 0.8 m are 256 pixels, from x 0.02 and y -0.47 on."""
    drawn = picture(state((0.45, -0.1), (0.33, -0.25)))
    assert drawn.shape == (256, 256, 3) and drawn.dtype == np.uint8

    def at(x, y):
        return tuple(drawn[int(256 - (x - 0.02) * 320), int(256 - (y + 0.47) * 320)])

    colours = [at(0.45, -0.1), at(0.33, -0.25), at(*A), at(*B), at(0.3, -0.4)]
    assert len(set(colours)) == 5
    assert at(0.7, -0.3) == (255, 255, 255)


def test_paths_end_where_the_mode_is_told():
    """All that came before it, and the whole of an episode in which no block was inside a zone."""
    axes = Figure().add_subplot()
    told = [state(*pair) for pair in [(AWAY, AWAY), (BESIDE_A, AWAY), (INSIDE_A, AWAY), (A, B)]]
    draw_paths(axes, [np.stack(told), np.stack(told[:2])], ["C0", "0.6"])
    assert [len(line.get_xdata()) for line in axes.lines] == [3] * 3 + [2] * 3
    assert [line.get_color() for line in axes.lines] == ["C0"] * 3 + ["0.6"] * 3


def test_figures_are_drawn():
    figure = Figure()
    sketch(figure.add_subplot(), {"state": state((0.45, -0.1), (0.33, -0.25))})
    figure.savefig(io.BytesIO(), format="png")
    figure = Figure()
    draw(figure, load(BLOCKPUSH, DEMOS, episodes=3))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[2] == "The first block and its zone"
    figure.savefig(io.BytesIO(), format="png")
