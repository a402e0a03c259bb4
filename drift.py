"""The drifting field and its loss (arXiv 2604.03540, Eqs. 5, 8-11, 28-40, 56).

A generator proposes K action chunks per observation. Each chunk is pulled towards the expert's
chunks and pushed off the other proposals. Training moves the generator along that field, so that
one forward pass lands where the field comes to rest.

  B  observations in the batch          x    (..., B, K, D)  hypotheses, which alone get a gradient
  K  hypotheses per observation         pos  (..., B, P, D)  positives: the expert's chunks
  P, N  positives, negatives            neg  (..., B, N, D)  further negatives, optional
  D  T_p * D_a (chunk) or D_a (step)    r    (..., B, R, D)  reference pool [sg(x), neg, pos]
                                        R = K + N + P        references

The leading axes (...) are independent problems, each with its own scale and its own force norm.
The means of Eqs. 29 and 36 go over the whole batch. Where several processes hold a share of it
each, `total` sums a tensor over them (ranks.py); where one holds all, it is the tensor itself.
"""

import torch

FLOOR_S = 1e-3  # Eq. 56: the floor of the scale
FLOOR_F = 1e-4  # Eq. 56: the floor of the force's RMS
FLOOR_A = 1e-6  # under the root of Eq. 31; with K = 1 it is all that keeps the drift alive (note 1)
SELF_MASK = 100.0  # Eq. 30: added to the normalised distance of a hypothesis to itself


def reference_pool(x, pos, neg, w_x, w_pos, w_neg):
    """The references r (..., B, R, D), their weights (..., B, R), and K + N, how many repel."""
    if neg is None:
        neg = x[..., :0, :]
    for name, y in (("pos", pos), ("neg", neg)):
        if y.shape[:-2] != x.shape[:-2] or y.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"{name} {tuple(y.shape)} does not match x {tuple(x.shape)}: "
                "all axes but the last but one must be equal"
            )
    weights = []
    for y, w_y in ((x, w_x), (neg, w_neg), (pos, w_pos)):
        one = y.new_ones(y.shape[:-1])
        weights.append(one if w_y is None else w_y.to(y).expand_as(one))
    return torch.cat([x, neg, pos], -2), torch.cat(weights, -1), x.shape[-2] + neg.shape[-2]


def affinity(d, w, tau):
    """Eqs. 8, 30, 31: normalised distances d and weights w -> A, all of shape (..., B, K, R).

    A reference of weight 0 counts as absent: it takes no share of the softmax over the references.
    """
    l = (-d / tau).masked_fill(w == 0, torch.finfo(d.dtype).min)  # Eq. 30
    return w * (l.softmax(-1) * l.softmax(-2)).clamp_min(FLOOR_A).sqrt()  # Eq. 31, note 1


def coefficients(A, n_neg):
    """Eqs. 9, 32-34: from A (..., B, K, R) to C (..., B, K, R), whose sum over the references is 0.

    The first n_neg references repel and the others attract. Each side is weighted by the other
    side's mass, so that pulls and pushes balance exactly.
    """
    A_neg, A_pos = A.split([n_neg, A.shape[-1] - n_neg], dim=-1)
    S_neg = A_neg.sum(-1, keepdim=True)  # Eq. 32
    S_pos = A_pos.sum(-1, keepdim=True)
    return torch.cat([-A_neg * S_pos, A_pos * S_neg], dim=-1)  # Eq. 33


def of_one_process(y):
    """The sum of y over the processes that share a batch, where there is one process: y itself."""
    return y


def batch_mean(y, w, total):
    """The mean of y (..., B, K, R | D) over a batch, weighted by w of its shape: (...).

    total: sums a tensor over the processes that share the batch.
    """
    above, below = total(torch.stack([(w * y).sum((-3, -2, -1)), w.sum((-3, -2, -1))]))
    return above / below


@torch.no_grad()
def drift(
    x, pos, neg=None, *, temps=(0.2,), w_x=None, w_pos=None, w_neg=None, total=of_one_process
):
    """The drift V of every hypothesis, in scaled coordinates x / scale (Eqs. 5, 8, 9, 28-37, 56).

    x (..., B, K, D), pos (..., B, P, D), neg (..., B, N, D) or None. The weights, (..., B, K | P |
    N), are 1 if not given. temps: the interaction scales tau, in units of the mean distance s.
    total: sums a tensor over the processes that share the batch.

    Returns V (..., B, K, D); scale (...), which divides coordinates; and info with `s` (...), the
    mean distance of Eq. 29, `scale`, and `force_rms` (..., len(temps)), the RMS of F before Eq. 36.
    The field is computed in float32 whatever autocast says (float64 stays). Raises ValueError if
    the shapes disagree.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_float32(x)
        pos = at_least_float32(pos)
        neg = at_least_float32(neg)
        K, D = x.shape[-2:]
        refs, w, n_neg = reference_pool(x, pos, neg, w_x, w_pos, w_neg)

        diff = refs.unsqueeze(-3) - x.unsqueeze(-2)  # (..., B, K, R, D); never via dot products
        d = diff.norm(dim=-1)  # Eq. 28  (..., B, K, R)
        w = w.unsqueeze(-2).expand_as(d)
        s = batch_mean(d, w, total)  # Eq. 29  (...), note 15
        scale = (s / D**0.5).clamp_min(FLOOR_S)
        diff = diff / scale[..., None, None, None, None]
        d = d / s.clamp_min(FLOOR_S)[..., None, None, None]
        d = d + SELF_MASK * torch.eye(K, refs.shape[-2], dtype=d.dtype, device=d.device)

        V = torch.zeros_like(x)
        force_rms = []
        for tau in temps:
            C = coefficients(affinity(d, w, tau), n_neg)  # Eqs. 9, 30-34
            F = (C.unsqueeze(-2) @ diff).squeeze(-2)  # Eqs. 5, 35
            rms = batch_mean(F.square(), torch.ones_like(F), total).sqrt()  # (...)
            V = V + F / rms.clamp_min(FLOOR_F)[..., None, None, None]  # Eqs. 36, 37
            force_rms.append(rms)
    return V, scale, {"s": s, "scale": scale, "force_rms": torch.stack(force_rms, -1)}


def drift_loss(x, pos, neg=None, **kw):
    """The fixed-point regression x/scale -> sg(x/scale + V), mean over k and d (Eqs. 10, 38, 39).

    The arguments, kw among them, and info are as in `drift`. Returns the loss (..., B) and info.
    Only x receives a gradient. The value stays near the number of temperatures whatever the fit is,
    because of Eq. 36 (note 26): watch `s` and `force_rms` instead.
    """
    V, scale, info = drift(x, pos, neg, **kw)
    with torch.autocast(x.device.type, enabled=False):
        x_scaled = x.to(V.dtype) / scale[..., None, None, None]
        target = (x_scaled + V).detach()  # Eq. 38
        return (x_scaled - target).square().mean((-2, -1)), info


def chunk_loss(x, pos, neg=None, *, mode="chunk", **kw):
    """The loss of a batch of action chunks (Eqs. 11, 40).

    x (B, K, T_p, D_a), pos (B, P, T_p, D_a), neg (B, N, T_p, D_a) or None. In mode "chunk" a whole
    chunk is one point of D = T_p * D_a numbers. In mode "step" each of the T_p steps is a problem
    of its own with D = D_a, and their losses are averaged. kw: as in `drift`. Returns a scalar and
    info, with a leading T_p axis in mode "step". Raises ValueError on another mode.
    """
    if mode not in ("chunk", "step"):
        raise ValueError(f"mode must be 'chunk' or 'step', not {mode!r}")

    def points(y):
        if y is None:
            return None
        return (
            y.flatten(-2) if mode == "chunk" else y.movedim(-2, 0)
        )  # (B, K, D) or (T_p, B, K, D_a)

    loss, info = drift_loss(points(x), points(pos), points(neg), **kw)
    return loss.mean(), info


def at_least_float32(y):
    """y in float32; float64 stays as it is, and so does None."""
    return y if y is None or y.dtype == torch.float64 else y.float()
