"""The time-stamped plan of a robot's arm, see realrobot.py.

The policy writes waypoints, some tens a second. The arm's servo reads the plan between them, at the
robot's own rate. A new chunk of waypoints overwrites the future of the plan, never its past.
"""

import numpy as np


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
