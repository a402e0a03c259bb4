"""A stopwatch for bench.py: calls one after another or in turn, and the parts of a loop."""

import collections
import resource
import time

import numpy as np
import torch


def clock(device):
    """Seconds now, after the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(call, n, device, warm=3):
    """Seconds of n calls, one after another; `warm` calls before them do not count."""
    seconds = []
    for _ in range(warm + n):
        begun = clock(device)
        call()
        seconds.append(clock(device) - begun)
    return seconds[warm:]


def timed_in_turn(calls, n, device, warm=3):
    """Seconds {name: list of n} of calls {name: call} that take turns.

    What else the machine does falls on all of them alike.
    """
    seconds = {name: [] for name in calls}
    for _ in range(warm + n):
        for name, call in calls.items():
            seconds[name] += timed(call, 1, device, warm=0)
    return {name: all_of_it[warm:] for name, all_of_it in seconds.items()}


def quantiles(seconds):
    """p50, p99 and the rate at p50 of a list of seconds, in ms and Hz."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "hz": round(1e3 / float(p50), 1),
    }


class Laps:
    """The seconds of the parts of each round of a loop; a part may come several times a round."""

    def __init__(self, device):
        self.device = device
        self.rounds = []

    def begin(self):
        """Begin a round."""
        self.rounds.append(collections.Counter())
        self.last = clock(self.device)

    def end(self, part):
        """Count the time since the last call for this part."""
        now = clock(self.device)
        self.rounds[-1][part] += now - self.last
        self.last = now

    def medians(self, warm=3):
        """{part: {"ms", "share"}} of the rounds after the first `warm`; the shares add up to 1."""
        ms = {
            part: 1e3 * float(np.median([seconds[part] for seconds in self.rounds[warm:]]))
            for part in self.rounds[0]
        }
        whole = sum(ms.values())
        return {part: {"ms": round(v, 3), "share": round(v / whole, 4)} for part, v in ms.items()}


def peak_memory(device):
    """The largest memory so far in MB: of the device, or of the whole process on a CPU."""
    if torch.device(device).type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
    else:
        most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / 1e6, 1)
