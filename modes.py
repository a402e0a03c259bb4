"""Which of several right actions a policy proposes: a fork with three ways, and Push-T where either side is as good.

At the fork (toy.py's, as chunks of waypoints) every method is trained from nothing on the same small network. On Push-T
the T stands at its goal's angle, moved along its own axis of symmetry, and the agent stands on that axis at the wrong
end: to push the T home it has to go round it, left or right, and the mirror image of every plan is as good.
"""
import numpy as np
import torch

from baselines import METHODS, prepare
from envs import pusht_obs
from policy import Policy
from toy import DISCS, RADIUS, WAYS, fork, ways

COVERED = 0.05                                  # a mode is covered by a share of at least this of the latents
FORK = {"task": "fork", "obs_dim": 1, "D_a": 2, "T_o": 1, "T_p": 4, "T_a": 4, "dims": (16, 32)}
HEIGHTS = torch.linspace(-0.8, 0.8, 5)          # of the fork's held-out starts
AXIS, ASIDE = np.array([1, -1]) / 2 ** 0.5, np.array([1, 1]) / 2 ** 0.5      # of the goal's T: from stem to bar; across
AWAY = (60, 80, 100, 120)                       # pixels that the T stands beyond its goal
BEHIND, UNDECIDED = 200, 15                     # pixels: agent from T; a plan that ends nearer to the axis takes no side


# ---- the fork ------------------------------------------------------------------------------------------------------

def fork_batch(n, generator):
    """n starts (n, 1, 1) and one expert's chunk each (n, 4, 2): the straight way from (0, height) to the waypoint."""
    o, waypoint = fork(n, generator)
    start = torch.cat([torch.zeros(n, 1), o], 1)[:, None]
    return o[:, None], start + torch.linspace(0.25, 1, 4)[:, None] * (waypoint[:, None] - start)


def fit_fork(method, loss, seed, *, steps=1500, B=64, lr=1e-3, spread=1.0):
    """Train a method on the fork; loss(policy, obs, pos, generator) as in dbp_train.py; spread of DBP's first outputs
    over z, 0 for the usual initialisation. Returns the policy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    unit = lambda d: (-torch.ones(d), torch.ones(d))
    policy = Policy({**FORK, "method": method, "times": METHODS[method]}, unit(1), unit(2))
    if spread and method == "dbp":
        policy.net.spread(spread, policy.latent(500, generator=generator), policy.features(HEIGHTS[2:3, None, None]))
    optimiser = torch.optim.AdamW(policy.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss(policy, *fork_batch(B, generator), generator).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return policy.eval()


def fork_shares(policy, n=256, seed=0):
    """n latents at each of HEIGHTS -> the share of each way (5, 3), of none (5,), and the waypoints (5, n, 2)."""
    obs = HEIGHTS.repeat_interleave(n)[:, None, None]
    chunk = prepare(policy).act(obs, generator=torch.Generator().manual_seed(seed))
    way = ways(chunk[:, -1])[0].view(len(HEIGHTS), n)
    share = lambda k: (way == k).float().mean(1)
    return torch.stack([share(k) for k in range(len(WAYS))], 1).numpy(), share(-1).numpy(), chunk[:, -1].view(-1, n, 2)


# ---- Push-T --------------------------------------------------------------------------------------------------------

def pusht_states():
    """Symmetric states (4, 5): agent x, y, T x, y, angle."""
    T = np.array([256, 256]) + np.array(AWAY)[:, None] * AXIS
    return np.concatenate([T - BEHIND * AXIS, T, np.full((len(AWAY), 1), np.pi / 4)], 1)


def pusht_shares(policy, n=256, seed=0):
    """n latents at each symmetric state -> the share of plans that end left and right of the axis (4, 2), of neither
    (4,), and the plans (4, n, T_p, 2) in pixels."""
    states = pusht_states()
    obs = torch.as_tensor(pusht_obs(states)).repeat_interleave(n, 0)[:, None].repeat(1, policy.T_o, 1)
    plans = policy.act(obs.to(policy.device), generator=torch.Generator(policy.device).manual_seed(seed)).cpu()
    plans = plans.view(len(states), n, policy.T_p, 2).numpy()
    side = (plans[:, :, -1] - states[:, None, :2]) @ ASIDE
    share = lambda mask: mask.mean(1)
    return np.stack([share(side < -UNDECIDED), share(side > UNDECIDED)], 1), share(abs(side) <= UNDECIDED), plans


def coverage(shares, none):
    """Figures of a task: the share of modes covered, the rarest mode's share, the share of plans on no mode; means
    over observations. shares (O, modes), none (O,)."""
    return {"covered": round(float((shares >= COVERED).mean()), 4), "rarest": round(float(shares.min(1).mean()), 4),
            "on_none": round(float(none.mean()), 4)}


# ---- pictures ------------------------------------------------------------------------------------------------------

def draw_fork(ax, waypoints):
    """The expert's three ways and obstacles, the waypoints (O, n, 2) of 60 latents at each height, as lines."""
    from matplotlib.patches import Circle
    for disc in DISCS:
        ax.add_patch(Circle(disc, RADIUS, color="0.85"))
    for height, points in zip(HEIGHTS.tolist(), waypoints[:, :60].tolist()):
        for x, y in points:
            ax.plot((0, x), (height, y), color="tab:blue", lw=0.3, alpha=0.5)
    ax.scatter(*waypoints[:, :60].reshape(-1, 2).T, s=2, color="tab:blue")
    ax.plot([1] * len(WAYS), WAYS, "x", color="tab:red", ms=6)
    ax.set(xlim=(-0.1, 1.6), ylim=(-1.5, 1.5), xticks=[], yticks=[])


def outline(state):
    """The T's corners (8, 2) in the scene at a state (5,): bar 120 x 30, stem 30 x 90, in its own frame as gym-pusht's."""
    corners = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)])
    cos, sin = np.cos(state[4]), np.sin(state[4])
    return corners @ np.array([[cos, sin], [-sin, cos]]) + state[2:4]


def draw_pusht(ax, state, plans):
    """T (grey), its goal (green), agent (black), plans (n, T_p, 2): left blue, right orange, neither grey."""
    from matplotlib.patches import Polygon
    ax.add_patch(Polygon(outline([0, 0, 256, 256, np.pi / 4]), color="lightgreen"))
    ax.add_patch(Polygon(outline(state), color="0.6", alpha=0.7))
    side = (plans[:, -1] - state[:2]) @ ASIDE
    for plan, s in zip(plans, side):
        colour = "0.4" if abs(s) <= UNDECIDED else "tab:blue" if s < 0 else "tab:orange"
        ax.plot(*np.concatenate([state[None, :2], plan]).T, color=colour, lw=0.4, alpha=0.6)
    ax.plot(*state[:2], "ko", ms=5)
    ax.set(xlim=(0, 512), ylim=(512, 0), xticks=[], yticks=[], aspect="equal")


def sheet(found):
    """A figure: a row a method, the fork and then the Push-T states. found: method -> (waypoints, plans)."""
    from matplotlib.figure import Figure
    fig = Figure(figsize=(11, 2.2 * len(found) + 0.3), layout="constrained")
    states = pusht_states()
    for line, (method, (waypoints, plans)) in zip(fig.subplots(len(found), 1 + len(states), squeeze=False), found.items()):
        draw_fork(line[0], waypoints)
        line[0].set_ylabel(method, fontsize=11)
        for ax, state, some in zip(line[1:], states, plans):
            draw_pusht(ax, state, some[:128])
    return fig
