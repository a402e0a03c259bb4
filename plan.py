"""The time-stamped plan of a robot's arm, see realrobot.py.

The policy writes waypoints, some tens a second. The arm's servo reads the plan between them, at the
robot's own rate. A new chunk of waypoints overwrites the future of the plan, never its past.
`schedule` and `ensembled` make a chunk's waypoints, `Plan` is what the servo reads.
"""

import numpy as np

from twin_model import ARM

ENSEMBLE = 0.01  # the oldest chunk counts most: weights exp(-ENSEMBLE i), i = 0 the oldest


def schedule(chunk, t_obs, now, dt, T_o):
    """A chunk's targets that are still ahead -> their times (n,) and points (n, 2, 7), n >= 1.

    chunk (T_p, 14). Its action k is where the arms shall be at t_obs + (k - T_o + 2) dt: that of
    the newest observation is k = T_o - 1, and leads to a step later. What is less than half a step
    ahead is dropped, or the arms would jerk. If nothing is left, the last target goes to the next
    step.
    """
    actions = np.asarray(chunk, float)[T_o - 1 :]
    times = t_obs + dt * np.arange(1, len(actions) + 1)
    points = actions.reshape(-1, 2, ARM)
    ahead = times > now + dt / 2
    if not ahead.any():
        return np.array([now + dt]), points[-1:]
    return times[ahead], points[ahead]


def ensembled(chunks, times, dt):
    """The weighted mean of chunks at times (n,): points (n, 2, 7).

    chunks: (the time of the first action, actions (m, 14) a step of dt apart) of the newest ones,
    the oldest first. Each counts where its times reach, the newest everywhere. The grippers are the
    newest chunk's: half closed is no mean of open and closed.
    """
    first = np.array([t for t, _ in chunks])
    actions = np.stack([own for _, own in chunks])  # (C, m, 14)
    C, m, _ = actions.shape
    place = (times - first[:, None]) / dt  # (C, n) in steps
    reach = (place > -1e-6) & (place < m - 1 + 1e-6)
    reach[-1] = True
    place = np.clip(place, 0, m - 1)
    low = place.astype(int)
    part = (place - low)[..., None]
    row = np.arange(C)[:, None]
    there = (1 - part) * actions[row, low] + part * actions[row, np.minimum(low + 1, m - 1)]
    weight = np.exp(-ENSEMBLE * np.arange(C))[:, None] * reach
    mean = np.einsum("cn,cnk->nk", weight / weight.sum(0), there).reshape(-1, 2, ARM)
    mean[..., 6] = there[-1].reshape(-1, 2, ARM)[..., 6]
    return mean


class Plan:
    """Waypoints of an arm's six joints and its gripper, joined by straight lines.

    Before the first waypoint and after the last one the plan holds still.

    t: seconds on the clock of all later times. q (6,): joints in rad. grip: 0 open to 1 closed.
    """

    def __init__(self, t, q, grip):
        self.times, self.points = checked([t], [q], [grip])  # (n,), (n, 7): the joints, the gripper

    def at(self, t):
        """Where the arm shall be at time t -> the joints (6,) and the gripper."""
        n = np.searchsorted(self.times, t, side="right")  # waypoints that are not after t
        before = self.points[max(n - 1, 0)]
        after = self.points[min(n, len(self.points) - 1)]
        if n in (0, len(self.times)):
            point = before
        else:
            passed = (t - self.times[n - 1]) / (self.times[n] - self.times[n - 1])
            point = before + passed * (after - before)
        return point[:6].copy(), float(point[6])

    def overwrite(self, times, q, grip, now):
        """Replace what is planned from now on -> how many of the new waypoints are used.

        times (n,), rising; q (n, 6); grip (n,). Waypoints that are not after `now` are dropped. The
        plan leads straight from where it is to the first one left, so it goes as fast as was
        checked (note 58). If none is left, or the waypoints are refused, the old plan stays as it
        was. Raises ValueError for waypoints of a wrong shape or order, or that are not finite.
        """
        times, points = checked(times, q, grip)
        ahead = times > now
        if not ahead.any():
            return 0
        here = np.append(*self.at(now))  # at(now) is the same before and after: no jump
        self.times = np.concatenate([[now], times[ahead]])
        self.points = np.concatenate([here[None], points[ahead]])
        return int(ahead.sum())

    def hold(self, now):
        """Stay from now on where the plan is."""
        self.points = np.append(*self.at(now))[None]
        self.times = np.array([now], float)


def checked(times, q, grip):
    """Waypoints as arrays: times (n,) and points (n, 7). Raises ValueError, see Plan.overwrite."""
    times = np.array(times, float)
    q = np.array(q, float)
    grip = np.array(grip, float)
    n = len(times) if times.ndim == 1 else 0
    if n == 0 or q.shape != (n, 6) or grip.shape != (n,):
        raise ValueError(
            f"a plan wants times (n,), joints (n, 6) and grips (n,), not {times.shape}, {q.shape} "
            f"and {grip.shape}"
        )
    points = np.concatenate([q, grip[:, None]], 1)
    if not (np.isfinite(times).all() and np.isfinite(points).all()):
        raise ValueError("a plan wants finite numbers")
    if (np.diff(times) <= 0).any():
        raise ValueError("the times of a plan must rise")
    return times, points
