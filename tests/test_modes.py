"""modes.py: symmetric states, modes counted by hand, what is covered, and plans in a file."""

import numpy as np
import pytest
import torch
from PIL import Image

import modes
from commands import BadInput
from task_pusht import PushT, pusht_obs

# ---- the two tasks -------------------------------------------------------------------------------


def test_states_are_symmetric():
    """Mirrored across the T's axis, agent and T stay where they are.

    The agent stands at the stem's end, and the goal between agent and T.
    """
    mirror = np.eye(2) - 2 * np.outer(modes.ASIDE, modes.ASIDE)  # across the line along AXIS
    for state in modes.pusht_states():
        np.testing.assert_allclose((state[:2] - 256) @ mirror, state[:2] - 256, atol=1e-9)
        corners = modes.outline(state) - 256
        gaps = np.linalg.norm((corners @ mirror)[:, None] - corners, axis=-1).min(1)
        np.testing.assert_allclose(gaps, 0, atol=1e-9)
        stem = modes.outline(state)[3:5].mean(0) - state[2:4]
        assert stem @ (state[:2] - state[2:4]) > 0 and stem @ (256 - state[2:4]) > 0
        assert pusht_obs(state).min() > 0 and pusht_obs(state).max() < 512


def test_outline_is_the_simulators():
    shapely = pytest.importorskip("shapely")
    from gym_pusht.envs.pusht import pymunk_to_shapely

    env = PushT()
    state = np.array([400, 400, 200, 230, 0.7])
    env.reset(seed=0, options={"state": state})
    block = env.unwrapped.block
    real = pymunk_to_shapely(block, block.shapes).buffer(0)
    ours = shapely.Polygon(modes.outline(state))
    assert ours.area == pytest.approx(real.area)
    assert real.intersection(ours).area == pytest.approx(real.area, rel=1e-6)


def test_fork_batch_is_toys_fork():
    obs, chunk = modes.fork_batch(500, torch.Generator().manual_seed(0))
    o = obs["state"]
    assert o.shape == (500, 1, 1) and chunk.shape == (500, 4, 2)
    straight = chunk.diff(dim=1).std(1).amax()
    np.testing.assert_allclose(straight, 0, atol=1e-6)
    begin = torch.cat([0 * o, 3 * o], -1)[:, 0]
    np.testing.assert_allclose(chunk[:, 0] * 4 - chunk[:, 3], begin, atol=1e-5)
    assert (modes.ways(chunk[:, -1])[0] >= 0).float().mean() > 0.99


# ---- counting ------------------------------------------------------------------------------------


class Fixed:
    """Plans that go straight aside by the given numbers of pixels, in turn."""

    T_o = 2
    T_p = 16
    device = "cpu"

    def __init__(self, aside):
        self.aside = torch.tensor(aside)

    def act(self, obs, generator):
        agent = obs["state"][:, -1, 18:, None].mT  # (N, 1, 2)
        aside = self.aside.repeat(len(agent) // len(self.aside))[:, None]
        end = aside * torch.as_tensor(modes.ASIDE)
        return agent + torch.linspace(0, 1, self.T_p)[:, None] * end[:, None]


def test_pusht_shares():
    shares, none, plans = modes.pusht_shares(Fixed([-100.0, 100.0, 10.0, 20.0]), n=8)
    np.testing.assert_allclose(shares, [[0.25, 0.5]] * 4)
    np.testing.assert_allclose(none, 0.25)
    assert plans.shape == (4, 8, 16, 2)
    assert modes.coverage(shares, none) == {"covered": 1, "rarest": 0.25, "on_none": 0.25}
    rare = np.array([[0.96, 0.04], [0.5, 0.5]])
    assert modes.coverage(rare, np.zeros(2))["covered"] == 0.75


def test_the_field_covers_what_regression_averages():
    """400 steps: DBP takes all ways from outputs that start apart, one from a clump; regression no.

    The clump is the usual initialisation, --spread 0.
    """
    torch.set_num_threads(1)
    found = {}
    for name, method, spread in (("apart", "dbp", 1), ("clump", "dbp", 0), ("bc", "bc", 0)):
        policy = modes.fit_fork(method, 0, steps=400, B=32, spread=spread)
        shares, none, waypoints = modes.fork_shares(policy)
        assert shares.shape == (5, 3) and none.shape == (5,) and waypoints.shape == (5, 256, 2)
        np.testing.assert_allclose(shares.sum(1) + none, 1, atol=1e-6)
        found[name] = modes.coverage(shares, none)
    assert found["apart"]["covered"] > 0.8, found
    assert found["clump"]["covered"] < 0.5 and found["bc"]["rarest"] == 0, found


@pytest.mark.parametrize("method", ["diffusion", "meanflow"])
def test_other_methods_are_fitted(method):
    if method == "diffusion":
        pytest.importorskip("diffusers")
    shares, none, waypoints = modes.fork_shares(modes.fit_fork(method, 0, steps=3, B=4), n=4)
    assert waypoints.shape == (5, 4, 2) and np.isfinite(waypoints).all()


# ---- plans in a file -----------------------------------------------------------------------------


def some_plans(n, seed=0):
    """method -> (waypoints, plans), as fork_shares() and pusht_shares() give them."""
    rng = np.random.default_rng(seed)
    found = {}
    for method in ("dbp", "diffusion", "meanflow", "bc"):
        states = modes.pusht_states()[:, None, None, :2]
        plans = states + rng.uniform(-150, 150, (4, n, 16, 2))
        found[method] = (rng.uniform(-1.2, 1.2, (5, n, 2)), plans)
    return found


@pytest.mark.parametrize("n", [8, 256])
def test_plans_round_trip(tmp_path, n):
    path = tmp_path / "plans.npz"
    found = some_plans(n)
    modes.save_plans(path, found)
    assert path.stat().st_size < 300_000
    again = modes.load_plans(path)
    assert list(again) == list(found)
    kept = min(n, modes.KEPT)
    for method, (waypoints, plans) in again.items():
        assert waypoints.dtype == plans.dtype == np.float32
        assert waypoints.shape == (5, kept, 2) and plans.shape == (4, kept, 16, 2)
        np.testing.assert_allclose(waypoints, found[method][0][:, :kept], atol=1e-3)
        np.testing.assert_allclose(plans, found[method][1][:, :kept], atol=0.3)  # pixels


def test_what_is_no_file_of_plans_is_refused(tmp_path):
    path = tmp_path / "plans.npz"
    with pytest.raises(BadInput, match="no such file"):
        modes.load_plans(path)
    path.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(BadInput, match="is not (a file of plans|an npz file)"):
        modes.load_plans(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(BadInput, match="is not (a file of plans|an npz file)"):
        modes.load_plans(path)
    np.savez(path, dbp_fork=np.zeros(3))
    with pytest.raises(BadInput, match="is not (a file of plans|an npz file)"):
        modes.load_plans(path)
    np.savez(path, dbp_fork=np.array([{}]), dbp_pusht=np.zeros(3))  # pickled
    with pytest.raises(BadInput, match="is not (a file of plans|an npz file)"):
        modes.load_plans(path)


def test_the_picture_is_drawn(tmp_path):
    """A row a method, five panels, all scales equal, and a title over every column."""
    figure = modes.sheet(some_plans(20))
    panels = figure.axes
    assert len(panels) == 4 * 5
    assert all(panel.get_aspect() == 1 for panel in panels)
    titles = [panel.get_title() for panel in panels[:5]]
    assert titles[0] == "The fork"
    assert all(f"{away} pixels" in title for away, title in zip(modes.AWAY, titles[1:]))
    rows = [panel.get_ylabel() for panel in panels[::5]]
    assert rows[0].startswith("DBP") and "100 evaluations" in rows[1]
    path = tmp_path / "modes.png"
    figure.savefig(path, dpi=40)
    with Image.open(path) as image:
        assert image.width > 300
