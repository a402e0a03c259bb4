"""Two additions to Stage 1 that the paper does not have; both are off by default.

  --spread S    the untrained generator's outputs have the deviation S over z (note 25)
  --memory N    the last N hypotheses of the same window push too (note 30)

What each of them gains and costs stands in RESULTS.md.
"""

import os

import torch

from commands import BadInput
from unet import Z_GAIN


@torch.no_grad()
def spread_outputs(net, std, z, cond):
    """Rescale an untrained UNet1d: outputs of mean 0 and deviation std over z at one condition.

    The latent gets its usual weight back. z (N, T_p, D_a), cond (1, C).
    """
    net.weigh_latent(1 / Z_GAIN)
    cond = cond.expand(len(z), -1)
    last = net.out[-1]
    last.weight *= std / net(z, cond).std(0).mean()
    last.bias -= net(z, cond).mean((0, 1))


def installed_memory(device):
    """The bytes of memory that a device has; infinite on a system that does not say (Windows)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Memory:
    """The last N hypotheses of every window, as further negatives of the drift.

    chunks (n, N, T_p, D_a): newest first; filled (n,): how many of them are there. Raises BadInput
    before it takes more than half of the device's memory.
    """

    def __init__(self, windows, N, T_p, D_a, device):
        each = 4 * windows * T_p * D_a  # bytes of one hypothesis of every window, in float32
        limit = installed_memory(device) / 2
        if N * each > limit:
            raise BadInput(
                f"--memory {N} takes {N * each / 1e9:.1f} GB for {windows} windows, more than half "
                f"of the memory of {device}: give at most {int(limit // each)}"
            )
        self.chunks = torch.zeros(windows, N, T_p, D_a, device=device)
        self.filled = torch.zeros(windows, dtype=torch.long, device=device)

    def negatives(self, i, x):
        """What windows i (B,) had before, as keywords of chunk_loss; then x is kept.

        x (B, K, T_p, D_a), detached -> neg (B, N, T_p, D_a) and w_neg (B, N), 0 where nothing is
        there yet.
        """
        N = self.chunks.shape[1]
        past = self.chunks[i]
        there = torch.arange(N, device=x.device) < self.filled[i, None]
        self.chunks[i] = torch.cat([x, past], 1)[:, :N]
        self.filled[i] = (self.filled[i] + x.shape[1]).clamp_max(N)
        return {"neg": past, "w_neg": there.float()}

    def state(self):
        """Plain tensors for state.pt."""
        return {"chunks": self.chunks, "filled": self.filled}

    def restore(self, state):
        """Go on from what state() gave."""
        self.chunks.copy_(state["chunks"])
        self.filled.copy_(state["filled"])
