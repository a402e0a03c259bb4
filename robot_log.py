"""The log of a robot loop: every cycle, and what happened, in one npz file; and its summary."""

import json

import numpy as np

from files import atomic

COLUMNS = (
    "begun",  # when the cycle began; all times are time.monotonic(), in seconds
    "state_t",  # (2,) when each arm's state was read
    "frame_t",  # (cameras,) when the newest frames were captured
    "observed",  # when the observations were there; NaN: the arms were held or stopped
    "inferred",  # when the chunk was there
    "commanded",  # when both arms had been given it; NaN: they were not
    "q",  # (2, 7) measured joints and grippers
    "target",  # (2, 7) what the arms were last sent
    "used",  # targets of the chunk that were used
    "first",  # (2, 7) the first of these; NaN: none
)


class Log:
    """Cycles and events. cameras: the names, in the order of "frame_t"."""

    def __init__(self, cameras):
        self.cameras = list(cameras)
        self.rows = []
        self.events = []
        self.about = {}

    def add(self, **row):
        """Add a cycle: values for all COLUMNS."""
        self.rows.append(row)

    def event(self, t, text):
        """Note what happened at time t. The same text as the last one is counted, not repeated."""
        if self.events and self.events[-1]["text"] == text:
            self.events[-1]["count"] += 1
            self.events[-1]["until"] = t
        else:
            self.events.append({"t": t, "text": text, "count": 1, "until": t})

    def arrays(self):
        """{column: (cycles, ...)}."""
        return {name: np.array([row[name] for row in self.rows], float) for name in COLUMNS}

    def save(self, path):
        """Write everything as an npz file, atomically."""
        arrays = self.arrays()
        told = {"cameras": self.cameras, "events": self.events, "about": self.about}
        for name, value in told.items():
            arrays[name] = np.array(json.dumps(value))
        atomic(path, lambda f: np.savez_compressed(f, **arrays))

    def summary(self):
        """Rates in Hz and latencies in ms, of the cycles that commanded something.

        policy_hz: chunks a second. newest_state_to_command: from the older one of the two arms'
        states to when both had the new chunk; frame_to_command likewise from the oldest of the
        newest frames.
        """
        a = self.arrays()
        sent = np.isfinite(a["commanded"]) if self.rows else np.zeros(0, bool)
        found = {"cycles": len(self.rows), "chunks": int(sent.sum())}
        if found["chunks"] < 2:
            return found
        t = a["commanded"][sent]
        found["seconds"] = t[-1] - t[0]
        found["policy_hz"] = (len(t) - 1) / (t[-1] - t[0])
        found |= quantiles("policy_period", np.diff(t))
        found |= quantiles("network", a["inferred"][sent] - a["observed"][sent])
        found |= quantiles("newest_state_to_command", t - a["state_t"][sent].min(1))
        if self.cameras:
            found |= quantiles("frame_to_command", t - a["frame_t"][sent].min(1))
        return found


def quantiles(name, seconds):
    """{"NAME_p50_ms", "NAME_p99_ms"}."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}
