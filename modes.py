"""Which of several right actions a policy proposes: at a fork with three ways, and on Push-T.

At the fork, toy.py's as chunks of waypoints, every method is trained from nothing on the same small
network. On Push-T the T stands at its goal's angle, moved along its own axis of symmetry, and the
agent stands on that axis at the wrong end. To push the T home the agent has to go round it, to the
left or to the right, and the mirror image of every plan is as good as the plan.
"""

from pathlib import Path

import numpy as np
import torch

from baselines import LOSSES, STEPS, prepare, start, time_dim
from beyond import spread_outputs
from commands import BadInput
from drift import chunk_loss
from files import atomic, refusing
from formats import read_npz
from policy import Policy
from task_pusht import pusht_obs
from toy_targets import DISCS, RADIUS, WAYS, fork, ways

COVERED = 0.05  # a mode is covered by at least this share of the latents
FORK = {
    "task": "fork",
    "obs": {"state": {"shape": [1], "dtype": "float32"}},
    "D_a": 2,
    "T_o": 1,
    "T_p": 4,
    "T_a": 4,
    "dims": (16, 32),
}
K = 4  # hypotheses of each start, or network inputs of another method
HEIGHTS = torch.linspace(-0.8, 0.8, 5)  # of the fork's starts that plans are counted at

AXIS = np.array([1, -1]) / 2**0.5  # of the goal's T, from its stem to its bar
ASIDE = np.array([1, 1]) / 2**0.5  # across that axis, to the right of the agent
CENTRE = 256  # both coordinates of the goal, pixels
TURNED = np.pi / 4  # the goal's angle
AWAY = (60, 80, 100, 120)  # pixels that the T stands beyond its goal
BEHIND = 200  # pixels from the agent to the T
UNDECIDED = 15  # pixels: a plan that ends nearer to the axis takes no side

KEPT = 128  # plans of each state that save_plans() keeps
NAMES = {"dbp": "DBP", "diffusion": "diffusion", "meanflow": "MeanFlow", "bc": "regression"}
LEFT = "tab:blue"
RIGHT = "tab:orange"
NEITHER = "0.35"
TAKEN = "tab:purple"
CROSS = "tab:red"
GOAL = "lightgreen"
BLOCK = "0.6"
OBSTACLE = "0.85"


# ---- the fork ------------------------------------------------------------------------------------


def fork_batch(n, generator):
    """n starts (n, 1, 1) and an expert's chunk for each (n, 4, 2).

    The chunk is the straight way from (0, height) to the waypoint.
    """
    o, waypoint = fork(n, generator)
    begin = torch.cat([torch.zeros(n, 1), o], 1)[:, None]
    share = torch.linspace(0.25, 1, 4)[:, None]
    return {"state": o[:, None]}, begin + share * (waypoint[:, None] - begin)


def fork_policy(method, seed, spread, generator):
    """An untrained policy of a method for the fork, whose data already lie in [-1, 1]."""
    torch.manual_seed(seed)
    shape = {**FORK, "method": method, "time_dim": time_dim(method)}
    one = torch.ones(2)
    policy = Policy(shape, {"obs": {"state": (-one[:1], one[:1])}, "action": (-one, one)})
    start(policy)
    if spread and method == "dbp":
        z = policy.latent(500, generator=generator)
        cond = policy.features({"state": HEIGHTS[2:3, None, None]})
        spread_outputs(policy.net, spread, z, cond)
    return policy


def fit_fork(method, seed, *, steps=1500, B=64, lr=1e-3, spread=1.0):
    """Train a method on the fork and return the policy.

    spread: the deviation of DBP's first outputs over z; 0 leaves the usual initialisation.
    """
    generator = torch.Generator().manual_seed(seed)
    policy = fork_policy(method, seed, spread, generator)
    optimiser = torch.optim.AdamW(policy.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        obs, pos = fork_batch(B, generator)
        if method == "dbp":
            x = policy.hypotheses(obs, K, generator=generator)
            loss = chunk_loss(x, pos.unsqueeze(1), temps=[0.2])[0]
        else:
            loss = LOSSES[method](policy, obs, pos, K, generator)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return policy.eval()


def fork_shares(policy, n=256, seed=0):
    """The plans of n latents at each of HEIGHTS.

    Returns the share of each way (5, 3), of none (5,), and the waypoints (5, n, 2).
    """
    obs = {"state": HEIGHTS.repeat_interleave(n)[:, None, None]}
    chunk = prepare(policy).act(obs, generator=torch.Generator().manual_seed(seed))
    waypoints = chunk[:, -1]
    way = ways(waypoints)[0].view(len(HEIGHTS), n)
    each = [(way == k).float().mean(1) for k in range(len(WAYS))]
    none = (way == -1).float().mean(1)
    return torch.stack(each, 1).numpy(), none.numpy(), waypoints.view(-1, n, 2).numpy()


# ---- Push-T --------------------------------------------------------------------------------------


def pusht_states():
    """The symmetric states (4, 5): agent x, y, T x, y, angle."""
    T = CENTRE + np.array(AWAY)[:, None] * AXIS
    return np.concatenate([T - BEHIND * AXIS, T, np.full((len(AWAY), 1), TURNED)], 1)


def side_of(state, plans):
    """How far to the right of the axis plans (n, T_p, 2) end at a state (5,), pixels (n,)."""
    return (plans[:, -1] - state[:2]) @ ASIDE


def pusht_shares(policy, n=256, seed=0):
    """The plans of n latents at each symmetric state.

    Returns the share that ends left and right of the axis (4, 2), the share of neither (4,), and
    the plans (4, n, T_p, 2) in pixels.
    """
    states = pusht_states()
    obs = torch.as_tensor(pusht_obs(states), device=policy.device)
    history = obs.repeat_interleave(n, 0)[:, None].repeat(1, policy.T_o, 1)
    generator = torch.Generator(policy.device).manual_seed(seed)
    plans = policy.act({"state": history}, generator=generator).cpu()
    plans = plans.view(len(states), n, policy.T_p, 2).numpy()
    side = np.stack([side_of(state, some) for state, some in zip(states, plans)])
    left = (side < -UNDECIDED).mean(1)
    right = (side > UNDECIDED).mean(1)
    return np.stack([left, right], 1), (abs(side) <= UNDECIDED).mean(1), plans


def coverage(shares, none):
    """The figures of a task, as means over its observations.

    shares (O, modes), none (O,) -> covered, the share of modes covered; rarest, the rarest mode's
    share; on_none, the share of plans on no mode.
    """
    return {
        "covered": round(float((shares >= COVERED).mean()), 4),
        "rarest": round(float(shares.min(1).mean()), 4),
        "on_none": round(float(none.mean()), 4),
    }


# ---- plans in a file -----------------------------------------------------------------------------


def save_plans(path, found):
    """Write what sheet() draws to an npz file, KEPT plans of a state, in float16.

    found: method -> (waypoints (5, n, 2), plans (4, n, T_p, 2)).
    """
    arrays = {}
    for method, (waypoints, plans) in found.items():
        arrays[f"{method}_fork"] = np.asarray(waypoints, np.float16)[:, :KEPT]
        arrays[f"{method}_pusht"] = np.asarray(plans, np.float16)[:, :KEPT]
    atomic(path, lambda file: np.savez_compressed(file, **arrays))


def load_plans(path):
    """Read a file of save_plans() -> found, float32. Raises BadInput if it is not one."""
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file; python reproduce.py multimodal writes it")
    wrong = f"{path} is not a file of plans: write it again by python reproduce.py multimodal"
    arrays = read_npz(Path(path), pictures=False)
    found = {}
    with refusing(wrong):
        for name in arrays:
            method, _, task = name.rpartition("_")
            if task == "fork":
                pair = (arrays[name], arrays[f"{method}_pusht"])
                found[method] = tuple(array.astype(np.float32) for array in pair)
    if not found:
        raise BadInput(wrong)
    return found


# ---- pictures ------------------------------------------------------------------------------------


def draw_fork(ax, waypoints):
    """The experts' three ways, the obstacles, and the waypoints (5, n, 2) of 60 latents a start."""
    from matplotlib.patches import Circle  # slow to import

    for disc in DISCS:
        ax.add_patch(Circle(disc, RADIUS, color=OBSTACLE))
    for height, points in zip(HEIGHTS.tolist(), waypoints[:, :60]):
        way, _ = ways(torch.as_tensor(points))
        for (x, y), taken in zip(points, way >= 0):
            colour = TAKEN if taken else NEITHER
            ax.plot((0, x), (height, y), color=colour, lw=0.3, alpha=0.6)
            ax.plot(x, y, ".", color=colour, ms=2.5)
    ax.plot([1] * len(WAYS), WAYS, "x", color=CROSS, ms=6)
    ax.set(xlim=(-0.1, 1.6), ylim=(-1.5, 1.5), xticks=[], yticks=[], aspect="equal")


def outline(state):
    """The corners (8, 2) of the T in the scene at a state (5,), pixels.

    In the T's own frame, as in gym-pusht, the bar is 120 x 30 and the stem 30 x 90.
    """
    right = [(60, 0), (60, 30), (15, 30), (15, 120)]
    left = [(-x, y) for x, y in reversed(right)]
    cos = np.cos(state[4])
    sin = np.sin(state[4])
    return np.array(right + left) @ np.array([[cos, sin], [-sin, cos]]) + state[2:4]


def draw_pusht(ax, state, plans):
    """The T, its goal, the agent at a state (5,), and the first plans of (n, T_p, 2)."""
    from matplotlib.patches import Polygon

    ax.add_patch(Polygon(outline([0, 0, CENTRE, CENTRE, TURNED]), color=GOAL, lw=0))
    ax.add_patch(Polygon(outline(state), color=BLOCK, alpha=0.7, lw=0))
    plans = plans[:KEPT]
    side = side_of(state, plans)
    colours = np.select([side < -UNDECIDED, side > UNDECIDED], [LEFT, RIGHT], NEITHER)
    for plan, colour in zip(plans, colours):
        ax.plot(*np.concatenate([state[None, :2], plan]).T, color=colour, lw=0.4, alpha=0.6)
    ax.plot(*state[:2], "ko", ms=5)
    ax.set(xlim=(0, 512), ylim=(512, 0), xticks=[], yticks=[], aspect="equal")


def legend(figure):
    """What the colours and signs mean, below all panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    at_fork = [
        Line2D([], [], color=TAKEN, marker=".", label="fork: a way is taken"),
        Line2D([], [], color=NEITHER, marker=".", label="no way is taken"),
        Line2D([], [], color=CROSS, marker="x", ls="", label="the experts' ways"),
        Patch(color=OBSTACLE, label="obstacle"),
    ]
    on_pusht = [
        Line2D([], [], color=LEFT, label="Push-T: the plan ends left of the T"),
        Line2D([], [], color=RIGHT, label="right of it"),
        Line2D([], [], color=NEITHER, label="neither"),
        Patch(color=BLOCK, label="T"),
        Patch(color=GOAL, label="its goal"),
        Line2D([], [], color="black", marker="o", ls="", label="agent"),
    ]
    figure.legend(handles=at_fork, loc="outside lower left", frameon=False, fontsize=9)
    figure.legend(handles=on_pusht, loc="outside lower right", ncols=2, frameon=False, fontsize=9)


def row_label(method):
    """A method's name and the network evaluations that a plan takes."""
    evaluations = f"{STEPS} evaluations" if method == "diffusion" else "1 evaluation"
    return f"{NAMES.get(method, method)}\n{evaluations}"


def sheet(found):
    """A figure with a row for each method: the fork, then the states of Push-T.

    found: method -> (waypoints (5, n, 2), plans (4, n, T_p, 2)).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.35 * len(found) + 1.6), layout="constrained")
    figure.suptitle(
        "Where several plans are right: which of them does each method propose?\n"
        "One line for each latent, from the same observation"
    )
    states = pusht_states()
    widths = [1.7 / 3, *[1] * len(states)]  # the panels' extents, so that all are equally high
    axes = figure.subplots(len(found), len(widths), squeeze=False, width_ratios=widths)
    for line, (method, (waypoints, plans)) in zip(axes, found.items()):
        line[0].set_ylabel(row_label(method), fontsize=11)
        draw_fork(line[0], np.asarray(waypoints, np.float32))
        for ax, state, some in zip(line[1:], states, plans):
            draw_pusht(ax, state, some)
    axes[0][0].set_title("The fork", fontsize=11)
    for ax, away in zip(axes[0][1:], AWAY):
        ax.set_title(f"Push-T, the T {away} pixels\nbeyond its goal", fontsize=11)
    legend(figure)
    return figure
