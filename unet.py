"""The generator G_theta(o, z): a conditional 1-D U-Net over the action chunk.

Source: arXiv 2604.03540, Table VIII. Latents (B, K, T_p, D_a) go in and chunks (B, K, T_p, D_a)
come out, in one pass. The condition (B, C) enters every residual block as a FiLM scale and bias;
its projection is computed once per observation and shared by the K hypotheses. There is no time
embedding, because nothing is iterated (note 7).

The latent is noise at every place of the chunk, so it cannot say which place is which. A diffusion
network reads that off the noisy chunk that it refines. A one-step generator is given cosines over
the chunk as further input channels, and it starts with a small weight on the latent (note 4).
"""

import torch
from torch import nn

KERNEL = 5
GROUPS = 8
EMBED = 256  # the size of the condition's embedding (Table VIII, note 5)
COSINES = 8  # input channels cos(pi j (t + 1/2) / T_p), j < COSINES
Z_GAIN = 0.25  # the initial weight on the latent, as a share of the usual one


class ConvBlock(nn.Sequential):
    """Conv1d, GroupNorm, activation: (N, C_in, T) -> (N, C_out, T)."""

    def __init__(self, c_in, c_out):
        super().__init__(
            nn.Conv1d(c_in, c_out, KERNEL, padding=KERNEL // 2),
            nn.GroupNorm(GROUPS, c_out),
            nn.SiLU(),
        )

    def forward(self, x):
        """x (N, C_in, T) -> (N, C_out, T), also under autocast in the dtype of the weights.

        On a CPU autocast would normalise in bfloat16, which breaks forward-mode derivatives.
        """
        conv, norm, activation = self
        return activation(norm(conv(x).to(norm.weight.dtype)))


class ResBlock(nn.Module):
    """Two ConvBlocks with FiLM between them, and a skip.

    x (N, C_in, T), film (B, 2 C_out) -> (N, C_out, T). N = B K: the K hypotheses of an observation
    follow one another and share its FiLM.
    """

    def __init__(self, c_in, c_out):
        super().__init__()
        self.first = ConvBlock(c_in, c_out)
        self.second = ConvBlock(c_out, c_out)
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, film):
        scale, bias = film.unsqueeze(-1).chunk(2, dim=1)  # (B, C_out, 1) each
        h = self.first(x).unflatten(0, (len(film), -1))  # (B, K, C_out, T)
        h = h * (1 + scale.unsqueeze(1)) + bias.unsqueeze(1)
        return self.second(h.flatten(0, 1)) + self.skip(x)


class UNet1d(nn.Module):
    """The conditional 1-D U-Net.

    D_a: the action's size; cond_dim: the size C of the condition; dims: the channels per level.
    Each level but the last halves T, so T_p must be a multiple of 2 ** (len(dims) - 1).

    Another network in its place needs forward, check_horizon and weigh_latent (policy.py,
    baselines.py), and embed and generate, whose feature h Stage 2 reads its noise off
    (dbpo_loss.Actor).
    """

    def __init__(self, D_a, cond_dim, dims=(512, 1024, 2048)):
        super().__init__()
        dims = tuple(dims)
        if not dims or any(c <= 0 or c % GROUPS for c in dims):
            raise ValueError(
                f"dims {dims}: every channel count must be a positive multiple of {GROUPS}"
            )
        self.dims = dims
        self.D_a = D_a
        ins = (D_a + COSINES, *dims[:-1])
        self.down = nn.ModuleList(
            nn.ModuleList([ResBlock(c_in, c_out), ResBlock(c_out, c_out)])
            for c_in, c_out in zip(ins, dims)
        )
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in dims[:-1])
        self.mid = nn.ModuleList(ResBlock(dims[-1], dims[-1]) for _ in range(2))
        self.up = nn.ModuleList(
            nn.ModuleList([ResBlock(2 * c_deep, c), ResBlock(c, c)])
            for c, c_deep in reversed(list(zip(ins[1:], dims[1:])))
        )
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in reversed(dims[:-1])
        )
        self.out = nn.Sequential(ConvBlock(dims[0], dims[0]), nn.Conv1d(dims[0], D_a, 1))

        blocks = [b for b in self.modules() if isinstance(b, ResBlock)]
        self.film_sizes = [2 * b.second[0].out_channels for b in blocks]
        self.film = nn.Sequential(
            nn.Linear(cond_dim, EMBED),
            nn.SiLU(),
            nn.Linear(EMBED, EMBED),
            nn.SiLU(),
            nn.Linear(EMBED, sum(self.film_sizes)),  # the FiLM of all blocks at once
        )
        self.weigh_latent(Z_GAIN)

    @torch.no_grad()
    def weigh_latent(self, factor):
        """Multiply the weights on the latent's own input channels by a factor (note 4)."""
        block = self.down[0][0]
        for layer in (block.first[0], block.skip):
            if isinstance(layer, nn.Conv1d):  # a skip between equal sizes has no weights
                layer.weight[:, : self.D_a] *= factor

    def check_horizon(self, T_p):
        """Raise ValueError if T_p cannot be halved at every level."""
        n = len(self.dims) - 1
        if T_p % 2**n:
            raise ValueError(
                f"T_p = {T_p} cannot be halved {n} times: choose a multiple of {2**n}, "
                "or fewer levels in --dims"
            )
        if T_p == 2**n and self.dims[-1] == GROUPS:
            raise ValueError(
                f"dims {list(self.dims)} leave one number to each group of the normalisation: give "
                "more channels, or fewer levels in --dims"
            )

    def forward(self, z, cond):
        """z (B, K, T_p, D_a) or (B, T_p, D_a), cond (B, C) -> the shape and dtype of z."""
        return self.generate(z, self.embed(cond))

    def embed(self, cond):
        """cond (B, C) -> the feature h (B, EMBED) that every block is conditioned on."""
        return self.film[:-1](cond)

    def generate(self, z, h):
        """z (B, K, T_p, D_a) or (B, T_p, D_a), h (B, EMBED) -> the shape and dtype of z.

        Under autocast the last layer alone stays in the dtype of z, so that the differences between
        nearly equal chunks are not rounded away.
        """
        T_p, D_a = z.shape[-2:]
        self.check_horizon(T_p)
        film = iter(self.film[-1](h).split(self.film_sizes, dim=-1))  # (B, 2 C_out) per block
        x = z.reshape(-1, T_p, D_a).transpose(1, 2)  # (N, D_a, T_p), N = B K
        x = torch.cat([x, cosines(T_p, z).expand(len(x), -1, -1)], dim=1)
        skips = []
        for level, (first, second) in enumerate(self.down):
            x = second(first(x, next(film)), next(film))
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        for block in self.mid:
            x = block(x, next(film))
        for (first, second), grow in zip(self.up, self.grow):
            x = torch.cat([x, skips.pop()], dim=1)
            x = grow(second(first(x, next(film)), next(film)))
        x = self.out[0](x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.out[1](x.to(z.dtype))
        return x.transpose(1, 2).reshape(z.shape)


def cosines(T_p, like):
    """The places of a chunk as channels (COSINES, T_p), of the dtype and device of `like`."""
    j = torch.arange(COSINES, device=like.device)
    t = torch.arange(T_p, device=like.device)
    return torch.cos(torch.pi * j[:, None] * (t + 0.5) / T_p).to(like)
