"""The generator G_theta(o, z): a conditional 1-D U-Net over the action chunk (arXiv 2604.03540, Table VIII).

Latents (B, K, T_p, D_a) in, chunks (B, K, T_p, D_a) out, one pass. The condition (B, C) enters every residual
block as a FiLM scale and bias; its projection is computed once per observation and shared by the K hypotheses.
There is no time embedding: nothing is iterated.

The latent is noise at every place of the chunk, so it cannot say which place is which. A diffusion network reads
that off the noisy chunk it refines; a one-step generator is given cosines over the chunk as further input channels,
and starts with a small weight on the latent.
"""
import torch
from torch import nn

KERNEL, GROUPS = 5, 8
EMBED = 256         # condition embedding (Table VIII)
COSINES = 8         # input channels cos(pi j (t + 1/2) / T_p), j < COSINES
Z_GAIN = 0.25       # of the usual initial weight on the latent


class ConvBlock(nn.Sequential):
    """Conv1d, GroupNorm, activation: (N, C_in, T) -> (N, C_out, T)."""

    def __init__(self, c_in, c_out):
        super().__init__(nn.Conv1d(c_in, c_out, KERNEL, padding=KERNEL // 2), nn.GroupNorm(GROUPS, c_out), nn.SiLU())


class ResBlock(nn.Module):
    """Two ConvBlocks with FiLM between them and a skip: (N, C_in, T), film (B, 2 C_out) -> (N, C_out, T), N = B K."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.first, self.second = ConvBlock(c_in, c_out), ConvBlock(c_out, c_out)
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, film):
        scale, bias = film.unsqueeze(-1).chunk(2, dim=1)                       # (B, C_out, 1) each
        h = self.first(x)
        h = h.unflatten(0, (len(film), -1)) * (1 + scale.unsqueeze(1)) + bias.unsqueeze(1)   # (B, K, C_out, T)
        return self.second(h.flatten(0, 1)) + self.skip(x)


class UNet1d(nn.Module):
    """Conditional 1-D U-Net.

    D_a: action size; cond_dim: size C of the condition; dims: channels per level, each halving T (all but the
    last). T_p must be a multiple of 2 ** (len(dims) - 1).
    """

    def __init__(self, D_a, cond_dim, dims=(512, 1024, 2048)):
        super().__init__()
        dims = tuple(dims)
        if not dims or any(c <= 0 or c % GROUPS for c in dims):
            raise ValueError(f"dims {dims}: every channel count must be a positive multiple of {GROUPS}")
        self.dims, ins = dims, (D_a + COSINES,) + dims[:-1]
        self.down = nn.ModuleList(nn.ModuleList([ResBlock(i, o), ResBlock(o, o)]) for i, o in zip(ins, dims))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in dims[:-1])
        self.mid = nn.ModuleList(ResBlock(dims[-1], dims[-1]) for _ in range(2))
        self.up = nn.ModuleList(nn.ModuleList([ResBlock(2 * o, i), ResBlock(i, i)])
                                for i, o in reversed(list(zip(ins[1:], dims[1:]))))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, stride=2, padding=1) for c in reversed(dims[:-1]))
        self.out = nn.Sequential(ConvBlock(dims[0], dims[0]), nn.Conv1d(dims[0], D_a, 1))

        self.film_sizes = [2 * b.second[0].out_channels for b in self.modules() if isinstance(b, ResBlock)]
        self.film = nn.Sequential(nn.Linear(cond_dim, EMBED), nn.SiLU(), nn.Linear(EMBED, EMBED), nn.SiLU(),
                                  nn.Linear(EMBED, sum(self.film_sizes)))        # every block's FiLM at once
        self.weigh_latent(Z_GAIN)

    @torch.no_grad()
    def weigh_latent(self, factor):
        """Multiply the weights on the latent's own channels."""
        for conv in (self.down[0][0].first[0], self.down[0][0].skip):
            conv.weight[:, :self.out[-1].out_channels] *= factor

    @torch.no_grad()
    def spread(self, std, z, cond):
        """Rescale an untrained network: the usual weight on the latent, outputs of mean 0 and deviation std over z
        (N, T_p, D_a), at one condition (1, C). Hypotheses that start in a clump may stay in it: see toy.py."""
        self.weigh_latent(1 / Z_GAIN)
        self.out[-1].weight *= std / self(z, cond.expand(len(z), -1)).std(0).mean()
        self.out[-1].bias -= self(z, cond.expand(len(z), -1)).mean((0, 1))

    def check_horizon(self, T_p):
        """Raise ValueError if T_p cannot be halved at every level."""
        n = len(self.dims) - 1
        if T_p % 2 ** n:
            raise ValueError(f"T_p = {T_p} cannot be halved {n} times: choose a multiple of {2 ** n}, "
                             "or fewer levels in --dims")

    def forward(self, z, cond):
        """z (B, K, T_p, D_a) or (B, T_p, D_a), cond (B, C) -> same shape as z."""
        return self.generate(z, self.embed(cond))

    def embed(self, cond):
        """cond (B, C) -> the observation feature h (B, EMBED) that every block is conditioned on."""
        return self.film[:-1](cond)

    def generate(self, z, h):
        """z (B, K, T_p, D_a) or (B, T_p, D_a), h (B, EMBED) -> same shape as z."""
        T_p, D_a = z.shape[-2:]
        self.check_horizon(T_p)
        film = iter(self.film[-1](h).split(self.film_sizes, dim=-1))           # (B, 2 C_out) per block
        j, t = torch.arange(COSINES, device=z.device), torch.arange(T_p, device=z.device)
        place = torch.cos(torch.pi * j[:, None] * (t + 0.5) / T_p).to(z)       # (COSINES, T_p)
        x = z.reshape(-1, T_p, D_a).transpose(1, 2)                            # (N, D_a, T_p), N = B K
        x = torch.cat([x, place.expand(len(x), -1, -1)], dim=1)
        skips = []
        for i, (a, b) in enumerate(self.down):
            x = b(a(x, next(film)), next(film))
            if i < len(self.shrink):
                skips.append(x)
                x = self.shrink[i](x)
        skips.append(x)
        for block in self.mid:
            x = block(x, next(film))
        for (a, b), grow in zip(self.up, self.grow):
            x = torch.cat([x, skips.pop()], dim=1)
            x = grow(b(a(x, next(film)), next(film)))
        return self.out(x).transpose(1, 2).reshape(z.shape)
