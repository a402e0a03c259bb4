"""modes.py: the states are symmetric, modes are counted by hand, and the field covers a fork that regression averages."""
import argparse

import numpy as np
import pytest
import torch

import modes
from dbp_train import loss_of
from envs import PushT, pusht_obs


def test_states_are_symmetric():
    """Mirrored across the T's axis, agent and T stay where they are; the agent stands at the stem, the goal between."""
    mirror = np.eye(2) - 2 * np.outer(modes.ASIDE, modes.ASIDE)               # across the line along AXIS
    for state in modes.pusht_states():
        np.testing.assert_allclose((state[:2] - 256) @ mirror, state[:2] - 256, atol=1e-9)
        corners = modes.outline(state) - 256
        gap = np.linalg.norm((corners @ mirror)[:, None] - corners, axis=-1).min(1)
        np.testing.assert_allclose(gap, 0, atol=1e-9)
        stem = modes.outline(state)[4:6].mean(0) - state[2:4]
        assert stem @ (state[:2] - state[2:4]) > 0 and stem @ (256 - state[2:4]) > 0
        assert pusht_obs(state).min() > 0 and pusht_obs(state).max() < 512


def test_outline_is_the_simulators():
    shapely = pytest.importorskip("shapely")
    from gym_pusht.envs.pusht import pymunk_to_shapely
    env, state = PushT(), np.array([400, 400, 200, 230, 0.7])
    env.reset(seed=0, options={"state": state})
    block = env.unwrapped.block
    real = pymunk_to_shapely(block, block.shapes).buffer(0)
    ours = shapely.Polygon(modes.outline(state))
    assert ours.area == pytest.approx(real.area) and real.intersection(ours).area == pytest.approx(real.area, rel=1e-6)


class Fixed:
    """Plans that go straight aside by given pixels, in turn."""
    T_o, T_p, device = 2, 16, "cpu"

    def __init__(self, aside):
        self.aside = torch.tensor(aside)

    def act(self, obs, generator):
        end = self.aside.repeat(len(obs) // len(self.aside))[:, None] * torch.as_tensor(modes.ASIDE)
        return obs[:, -1, 18:, None].mT + torch.linspace(0, 1, self.T_p)[:, None] * end[:, None]


def test_pusht_shares():
    shares, none, plans = modes.pusht_shares(Fixed([-100.0, 100.0, 10.0, 20.0]), n=8)
    np.testing.assert_allclose(shares, [[0.25, 0.5]] * 4)
    np.testing.assert_allclose(none, 0.25)
    assert plans.shape == (4, 8, 16, 2)
    assert modes.coverage(shares, none) == {"covered": 1, "rarest": 0.25, "on_none": 0.25}
    assert modes.coverage(np.array([[0.96, 0.04], [0.5, 0.5]]), np.zeros(2))["covered"] == 0.75


def test_fork_batch_is_toys_fork():
    o, chunk = modes.fork_batch(500, torch.Generator().manual_seed(0))
    assert o.shape == (500, 1, 1) and chunk.shape == (500, 4, 2)
    np.testing.assert_allclose(chunk.diff(dim=1).std(1).amax(), 0, atol=1e-6)             # a straight line
    np.testing.assert_allclose(chunk[:, 0] * 4 - chunk[:, 3], torch.cat([0 * o, 3 * o], -1)[:, 0], atol=1e-5)
    assert (modes.ways(chunk[:, -1])[0] >= 0).float().mean() > 0.99


def test_the_field_covers_what_regression_averages():
    """400 steps: DBP's plans take all three ways from outputs that start apart, one from a clump; regression's none."""
    torch.set_num_threads(1)
    found = {}
    for name, method, spread in (("apart", "dbp", 1), ("clump", "dbp", 0), ("bc", "bc", 0)):
        how = argparse.Namespace(method=method, K=4, temp=[0.2], mode="chunk", scale="batch", amp=False)
        policy = modes.fit_fork(method, lambda *b: loss_of(*b[:3], how, b[3])[0], 0, steps=400, B=32, spread=spread)
        found[name] = modes.coverage(*modes.fork_shares(policy)[:2])
    assert found["apart"]["covered"] > 0.8 and found["clump"]["covered"] < 0.5 and found["bc"]["rarest"] == 0, found
