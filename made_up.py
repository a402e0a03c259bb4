"""Policies and observations that are made up, for what needs some of the right shapes: timings."""

import numpy as np
import torch

from baselines import start, time_dim
from encoders import vision_of
from envs import TASKS
from policy import Policy


def make_policy(dims, device, task=TASKS["pusht"], method="dbp", encoder="small"):
    """An untrained policy of a task, with channels dims; its data would span [-1, 1].

    encoder: of the task's cameras, if it has some.
    """
    shape = {
        "task": task.name,
        "obs": task.specs,
        "D_a": task.D_a,
        "T_o": task.T_o,
        "T_p": task.T_p,
        "T_a": task.T_a,
        "dims": dims,
        "method": method,
        "time_dim": time_dim(method),
        **vision_of(task.obs, task.crop, encoder),
    }

    def unit(D):
        return -torch.ones(D), torch.ones(D)

    numbers = {name: s["shape"][-1] for name, s in task.specs.items() if s["dtype"] != "uint8"}
    ranges = {"obs": {name: unit(D) for name, D in numbers.items()}, "action": unit(task.D_a)}
    torch.manual_seed(0)
    policy = Policy(shape, ranges)
    start(policy)
    return policy.to(device)


def random_arrays(policy, *size):
    """Observations {name: array (*size, ...)} of a policy: random numbers and pictures."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, spec in policy.specs.items():
        shape = (*size, *spec["shape"])
        if spec["dtype"] == "uint8":
            arrays[name] = rng.integers(256, size=shape, dtype=np.uint8)
        else:
            arrays[name] = rng.uniform(-1, 1, shape).astype(np.float32)
    return arrays


def random_obs(policy, B):
    """Observations {name: (B, T_o, ...)} as a policy takes them, of random numbers and pictures."""
    return policy.tensors(random_arrays(policy, B, policy.T_o))
