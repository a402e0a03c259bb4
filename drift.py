"""The drifting field and its loss (arXiv 2604.03540, Eqs. 5, 8-11, 28-40, 56).

A generator proposes K action chunks per observation. Each is pulled to the expert's chunks and pushed off
the other proposals; training moves the generator along that field, so that one forward pass lands where
the field comes to rest.

  B  observations in the batch          x    (..., B, K, D)  hypotheses, the only input with a gradient
  K  hypotheses per observation         pos  (..., B, P, D)  positives: expert chunks
  P, N  positives, negatives            neg  (..., B, N, D)  further negatives, optional
  D  T_p * D_a (chunk) or D_a (step)    r    (..., B, R, D)  reference pool [sg(x), neg, pos], R = K + N + P

Leading axes (...) are independent problems, each with its own scale and force norm.
"""
import torch

FLOOR_S = 1e-3       # Eq. 56: floor of the scale
FLOOR_F = 1e-4       # Eq. 56: floor of the force RMS
FLOOR_A = 1e-6       # under the root of Eq. 31; with K = 1 it is all that keeps the drift alive
SELF_MASK = 100.0    # Eq. 30: added to the normalised distance of a hypothesis to itself


def _pool(x, pos, neg, w_x, w_pos, w_neg):
    """Reference pool r (..., B, R, D), its weights (..., B, R) and the number of repelling references K + N."""
    neg = x[..., :0, :] if neg is None else neg
    for name, y in (("pos", pos), ("neg", neg)):
        if y.shape[:-2] != x.shape[:-2] or y.shape[-1] != x.shape[-1]:
            raise ValueError(f"{name} {tuple(y.shape)} does not match x {tuple(x.shape)}: "
                             "all axes but the last but one must be equal")
    refs = torch.cat([x, neg, pos], dim=-2)
    w = [y.new_ones(y.shape[:-1]) if w_y is None else w_y.to(y).expand(y.shape[:-1])
         for y, w_y in ((x, w_x), (neg, w_neg), (pos, w_pos))]
    return refs, torch.cat(w, dim=-1), x.shape[-2] + neg.shape[-2]


@torch.no_grad()
def drift(x, pos, neg=None, *, temps=(0.2,), w_x=None, w_pos=None, w_neg=None):
    """Drift V of every hypothesis, in scaled coordinates x / scale (Eqs. 5, 8, 9, 28-37; floors of Eq. 56).

    x (..., B, K, D), pos (..., B, P, D), neg (..., B, N, D) or None; weights (..., B, K | P | N), default 1.
    temps: the interaction scales tau, in units of the mean distance s.
    Returns V (..., B, K, D); scale (...), which divides coordinates; info with `s` (...), the mean distance
    of Eq. 29, `scale`, and `force_rms` (..., len(temps)), the RMS of F before Eq. 36.
    float32 whatever autocast says (float64 stays). Raises ValueError if shapes disagree.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, pos, neg = [y if y is None or y.dtype == torch.float64 else y.float() for y in (x, pos, neg)]
        K, D = x.shape[-2:]
        refs, w, n_neg = _pool(x, pos, neg, w_x, w_pos, w_neg)

        diff = refs.unsqueeze(-3) - x.unsqueeze(-2)             # (..., B, K, R, D); subtracted, never via dot products
        d = diff.norm(dim=-1)                                   # Eq. 28  (..., B, K, R)
        w = w.unsqueeze(-2).expand_as(d)
        s = (w * d).sum((-3, -2, -1)) / w.sum((-3, -2, -1))     # Eq. 29  (...): one mean over the whole batch
        scale = (s / D ** 0.5).clamp_min(FLOOR_S)
        diff = diff / scale[..., None, None, None, None]
        d = d / s.clamp_min(FLOOR_S)[..., None, None, None]
        d = d + SELF_MASK * torch.eye(K, refs.shape[-2], dtype=d.dtype, device=d.device)

        V, force_rms = torch.zeros_like(x), []
        for tau in temps:
            l = -d / tau                                                                  # Eq. 30
            A = w * (l.softmax(-1) * l.softmax(-2)).clamp_min(FLOOR_A).sqrt()             # Eqs. 8, 31
            A_neg, A_pos = A.split([n_neg, A.shape[-1] - n_neg], dim=-1)
            S_neg, S_pos = A_neg.sum(-1, keepdim=True), A_pos.sum(-1, keepdim=True)       # Eq. 32
            C = torch.cat([-A_neg * S_pos, A_pos * S_neg], dim=-1)                        # Eqs. 9, 33, 34
            F = (C.unsqueeze(-2) @ diff).squeeze(-2)                                      # Eqs. 5, 35
            rms = F.square().mean((-3, -2, -1)).sqrt()
            V = V + F / rms.clamp_min(FLOOR_F)[..., None, None, None]                     # Eqs. 36, 37
            force_rms.append(rms)
    return V, scale, {"s": s, "scale": scale, "force_rms": torch.stack(force_rms, -1)}


def drift_loss(x, pos, neg=None, *, temps=(0.2,), w_x=None, w_pos=None, w_neg=None):
    """Fixed-point regression x/scale -> sg(x/scale + V), mean over k and d (Eqs. 10, 38, 39).

    Arguments and info as in `drift`. Returns loss (..., B) and info. Only x receives a gradient. The value
    stays near the number of temperatures whatever the fit (Eq. 36): watch `s` and `force_rms` instead.
    """
    V, scale, info = drift(x, pos, neg, temps=temps, w_x=w_x, w_pos=w_pos, w_neg=w_neg)
    with torch.autocast(x.device.type, enabled=False):
        x_scaled = x.to(V.dtype) / scale[..., None, None, None]
        target = (x_scaled + V).detach()                        # Eq. 38
        return (x_scaled - target).square().mean((-2, -1)), info


def chunk_loss(x, pos, neg=None, *, mode="chunk", **kw):
    """Loss of a batch of action chunks (Eqs. 11, 40).

    x (B, K, T_p, D_a), pos (B, P, T_p, D_a), neg (B, N, T_p, D_a) or None. mode "chunk": D = T_p * D_a, one
    problem; "step": D = D_a, T_p independent problems, averaged. kw as in `drift`; weights (B, K | P | N).
    Returns a scalar and info (with a leading T_p axis in step mode). Raises ValueError on another mode.
    """
    if mode == "chunk":
        flat = lambda y: None if y is None else y.flatten(-2)                 # (B, K, T_p * D_a)
    elif mode == "step":
        flat = lambda y: None if y is None else y.movedim(-2, 0)              # (T_p, B, K, D_a)
    else:
        raise ValueError(f"mode must be 'chunk' or 'step', not {mode!r}")
    loss, info = drift_loss(flat(x), flat(pos), flat(neg), **kw)
    return loss.mean(), info
