"""drift.py against loops written from the equations, and the properties that these imply."""

import math

import numpy as np
import pytest
import torch

import drift as module
from drift import FLOOR_F, affinity, chunk_loss, coefficients, drift, drift_loss

F64 = {"dtype": torch.float64}


# ---- the oracle ----------------------------------------------------------------------------------


def or_ones(w, B, n):
    """The weights w (B, n), 1 if not given."""
    return np.ones((B, n)) if w is None else w


def loop_distances(x, r):
    """Eq. 28: x (B, K, D), r (B, R, D) -> d (B, K, R)."""
    B, K, D = x.shape
    R = r.shape[1]
    d = np.zeros((B, K, R))
    for b in range(B):
        for k in range(K):
            for j in range(R):
                d[b, k, j] = math.sqrt(sum((x[b, k, i] - r[b, j, i]) ** 2 for i in range(D)))
    return d


def loop_mean_distance(d, w):
    """Eq. 29: d (B, K, R), w (B, R) -> s, one number for the whole batch."""
    above = 0.0
    below = 0.0
    B, K, R = d.shape
    for b in range(B):
        for k in range(K):
            for j in range(R):
                above += w[b, j] * d[b, k, j]
                below += w[b, j]
    return above / below


def loop_affinity(d, w, s, tau):
    """Eqs. 30, 31 for one observation: d (K, R), w (R,) -> A (K, R)."""
    K, R = d.shape
    e = np.zeros((K, R))
    for k in range(K):
        for j in range(R):
            mask = 100 if j == k else 0
            e[k, j] = math.exp(-(d[k, j] / max(s, 1e-3) + mask) / tau)  # Eqs. 30, 56
    A = np.zeros((K, R))
    for k in range(K):
        for j in range(R):
            over_refs = e[k, j] / sum(e[k, i] for i in range(R))
            if K == 1:
                over_hyps = 1.0  # of a single hypothesis; its e may be 0
            else:
                over_hyps = e[k, j] / sum(e[i, j] for i in range(K))
            A[k, j] = w[j] * math.sqrt(max(over_refs * over_hyps, 1e-6))  # Eq. 31
    return A


def loop_coefficients(A, n_neg):
    """Eqs. 32, 33 for one observation: A (K, R) -> C (K, R)."""
    K, R = A.shape
    C = np.zeros((K, R))
    for k in range(K):
        S_neg = sum(A[k, j] for j in range(n_neg))  # Eq. 32
        S_pos = sum(A[k, j] for j in range(n_neg, R))
        for j in range(R):
            C[k, j] = -A[k, j] * S_pos if j < n_neg else A[k, j] * S_neg  # Eq. 33
    return C


def reference(x, pos, neg=None, temps=(0.2,), w_x=None, w_pos=None, w_neg=None):
    """Eqs. 28-37 for one batch, one number at a time, in float64.

    x (B, K, D), pos (B, P, D), neg (B, N, D) or None, weights (B, K | P | N) or None, all numpy.
    Returns V (B, K, D), scale, C, a list of (B, K, R), and force_rms, each of one entry per tau.
    """
    B, K, D = x.shape
    neg = np.zeros((B, 0, D)) if neg is None else neg
    n_neg = K + neg.shape[1]
    r = np.concatenate([x, neg, pos], axis=1)  # (B, R, D)
    w = [or_ones(w_y, B, y.shape[1]) for y, w_y in ((x, w_x), (neg, w_neg), (pos, w_pos))]
    w = np.concatenate(w, axis=1)  # (B, R)
    d = loop_distances(x, r)
    s = loop_mean_distance(d, w)
    scale = max(s / math.sqrt(D), 1e-3)  # Eqs. 35, 56

    V = np.zeros((B, K, D))
    C = []
    force_rms = []
    for tau in temps:
        A = [loop_affinity(d[b], w[b], s, tau) for b in range(B)]
        C.append(np.stack([loop_coefficients(A[b], n_neg) for b in range(B)]))
        F = np.zeros((B, K, D))
        for b in range(B):
            for k in range(K):
                for j in range(r.shape[1]):
                    for i in range(D):
                        F[b, k, i] += C[-1][b, k, j] * (r[b, j, i] - x[b, k, i]) / scale  # Eq. 35
        force_rms.append(math.sqrt(sum(f * f for f in F.ravel()) / F.size))
        V += F / max(force_rms[-1], 1e-4)  # Eqs. 36, 37, 56
    return V, scale, C, force_rms


def as_numpy(kw):
    """The tensors of a dict of keywords as arrays, for `reference`."""
    return {name: y.detach().numpy() for name, y in kw.items()}


def problem(B=3, K=4, P=1, N=0, D=3, seed=0, lead=(), weights=False):
    """Random x, pos and keywords (neg, weights) of drift(), as float64 tensors."""
    g = torch.Generator().manual_seed(seed)

    def new(*shape):
        return torch.randn(*lead, B, *shape, generator=g, **F64)

    kw = {}
    if N:
        kw["neg"] = new(N, D)
    x = new(K, D)
    pos = new(P, D) + 1
    if weights:
        kw["w_x"] = new(K).exp()
        kw["w_pos"] = new(P).exp()
        if N:
            kw["w_neg"] = new(N).exp()
    return x, pos, kw


# ---- against the oracle and by hand --------------------------------------------------------------

CASES = {
    "K=1": {"K": 1},
    "K=1, P=3": {"K": 1, "P": 3},
    "K=4": {},
    "K=4, P=3": {"P": 3},
    "N=2": {"N": 2},
    "N=2, P=2, D=1": {"N": 2, "P": 2, "D": 1},
    "weights": {"P": 2, "weights": True},
    "weights, N=3": {"P": 2, "N": 3, "weights": True},
    "B=1": {"B": 1, "K": 5, "D": 6},
}


@pytest.mark.parametrize("temps", [(0.2,), (0.02, 0.05, 0.2), (1.0,)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_equations(case, temps):
    x, pos, kw = problem(**CASES[case])
    V, scale, info = drift(x, pos, temps=temps, **kw)
    V_ref, scale_ref, _, rms_ref = reference(x.numpy(), pos.numpy(), temps=temps, **as_numpy(kw))
    np.testing.assert_allclose(V.numpy(), V_ref, atol=1e-6)
    np.testing.assert_allclose(scale.item(), scale_ref, rtol=1e-9)
    np.testing.assert_allclose(info["force_rms"].numpy(), rms_ref, rtol=1e-6)
    assert info["s"].item() == pytest.approx(scale_ref * x.shape[-1] ** 0.5)


def test_leading_axes_are_independent_problems():
    x, pos, kw = problem(lead=(2, 3), P=2, N=1, weights=True)
    temps = (0.05, 0.2)
    V, scale, info = drift(x, pos, temps=temps, **kw)
    assert V.shape == x.shape and scale.shape == (2, 3) and info["force_rms"].shape == (2, 3, 2)
    for i in np.ndindex(2, 3):
        own = {name: y[i].numpy() for name, y in kw.items()}
        V_ref, scale_ref, _, _ = reference(x[i].numpy(), pos[i].numpy(), temps=temps, **own)
        np.testing.assert_allclose(V[i].numpy(), V_ref, atol=1e-6)
        assert scale[i].item() == pytest.approx(scale_ref)


def test_hand_computed_one_hypothesis():
    # D = 1, x = 0, y = 3: distances 0 (self) and 3, s = 3/2; F is a positive multiple of y - x,
    # so V = +1. d loss / dx = -2 V / (scale K D) = -2 / 1.5.
    x = torch.tensor([[[0.0]]], **F64, requires_grad=True)
    loss, info = drift_loss(x, torch.tensor([[[3.0]]], **F64))
    loss.sum().backward()
    assert info["scale"].item() == pytest.approx(1.5) and loss.item() == pytest.approx(1.0)
    assert x.grad.item() == pytest.approx(-2 / 1.5)
    assert info["force_rms"].item() == pytest.approx(1e-3 * 1.0 * 3 / 1.5)  # S- = floor, A+ = 1


def test_hand_computed_two_hypotheses():
    # D = 1, tau = 1, x = (0, 4), y = 1. Distances (0 4 1; 4 0 3), s = 12/6 = 2.
    # With the mask, -l = (100 2 .5; 2 100 1.5).
    # Softmax over references: (0 .18243 .81757; .37754 0 .62246);
    # over hypotheses: (0 1 .73106; 1 0 .26894).
    # A = (.001 .42711 .77311; .61444 .001 .40915); S- = (.42811, .61544), S+ = (.77311, .40915).
    # Scaled differences (0 2 .5; -2 0 -1.5):
    #   F_1 = -.42711 * .77311 * 2 + .77311 * .42811 * .5    = -.49492
    #   F_2 = +.61444 * .40915 * 2 - .40915 * .61544 * 1.5   = +.12509;   RMS = .36096
    x = torch.tensor([[[0.0], [4.0]]])
    V, scale, info = drift(x, torch.tensor([[[1.0]]]), temps=(1.0,))
    assert scale.item() == pytest.approx(2.0)
    assert V.flatten().tolist() == pytest.approx([-1.3711, 0.3465], abs=1e-3)
    assert info["force_rms"].item() == pytest.approx(0.36096, abs=1e-4)


# ---- the coefficients ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["K=1", "K=4, P=3", "weights, N=3"])
def test_mass_balance(case, monkeypatch):
    """The coefficients that drift() uses are those of Eq. 33, and they sum to 0 (Eq. 34)."""
    used = []

    def recorded(A, n_neg):
        used.append(coefficients(A, n_neg))
        return used[-1]

    monkeypatch.setattr(module, "coefficients", recorded)
    x, pos, kw = problem(**CASES[case])
    temps = (0.02, 0.2)
    drift(x, pos, temps=temps, **kw)
    _, _, C_ref, _ = reference(x.numpy(), pos.numpy(), temps=temps, **as_numpy(kw))
    assert len(used) == len(C_ref) == 2
    for C, wanted in zip(used, C_ref):
        np.testing.assert_allclose(C.numpy(), wanted, rtol=1e-6, atol=1e-12)
        assert C.sum(-1).abs().max() < 1e-14 < C.abs().min()  # Eq. 34; and none is 0


def test_the_force_is_made_of_the_coefficients(monkeypatch):
    """What `coefficients` returns decides V: turned round, it turns V round."""
    x, pos, kw = problem(P=3, N=2, weights=True)
    V, _, _ = drift(x, pos, **kw)
    monkeypatch.setattr(module, "coefficients", lambda A, n_neg: -coefficients(A, n_neg))
    torch.testing.assert_close(drift(x, pos, **kw)[0], -V)
    assert V.abs().max() > 0.1


def test_coefficients_by_hand():
    """One hypothesis, two that repel (A = 1, 2) and two that attract (A = 3, 5): S- = 3, S+ = 8."""
    C = coefficients(torch.tensor([[[1.0, 2.0, 3.0, 5.0]]]), 2)
    assert C.tolist() == [[[-8.0, -16.0, 9.0, 15.0]]]


def test_affinity_by_hand():
    """Two hypotheses at normalised distances (0 ln 2; 0 ln 4), tau = 1, weights (3, 1)."""
    d = torch.tensor([[[0.0, math.log(2)], [0.0, math.log(4)]]], **F64)
    w = torch.tensor([[3.0, 1.0]], **F64).unsqueeze(-2).expand_as(d)
    # over references (2/3 1/3; 4/5 1/5), over hypotheses (1/2 2/3; 1/2 1/3)
    wanted = [[3 * (1 / 3) ** 0.5, (2 / 9) ** 0.5], [3 * (2 / 5) ** 0.5, (1 / 15) ** 0.5]]
    torch.testing.assert_close(affinity(d, w, 1.0), torch.tensor([wanted], **F64))


# ---- symmetries ----------------------------------------------------------------------------------


def test_translation_invariance():
    """Even for translations that dwarf the spread."""
    x, pos, kw = problem(P=3, N=2, weights=True)
    V, scale, _ = drift(x, pos, **kw)
    kw["neg"] = kw["neg"] + 1e6
    V_far, scale_far, _ = drift(x + 1e6, pos + 1e6, **kw)
    torch.testing.assert_close(V_far, V, atol=1e-7, rtol=0)
    torch.testing.assert_close(scale_far, scale)


def test_scale_equivariance():
    x, pos, _ = problem(P=2)
    V, scale, _ = drift(x, pos)
    V_7, scale_7, _ = drift(7 * x, 7 * pos)
    torch.testing.assert_close(V_7, V)  # V lives in scaled coordinates
    torch.testing.assert_close(scale_7, 7 * scale)


def test_rotation_and_permutation_equivariance():
    x, pos, _ = problem(K=5, P=3)
    V, _, _ = drift(x, pos)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(drift(x[:, order], pos)[0], V[:, order])
    torch.testing.assert_close(drift(x, pos.flip(1))[0], V)
    g = torch.Generator().manual_seed(1)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, **F64, generator=g))
    torch.testing.assert_close(drift(x @ turn, pos @ turn)[0], V @ turn)


@pytest.mark.parametrize("seed", range(3))
def test_one_hypothesis_is_pulled_straight_to_the_expert_at_unit_rms(seed):
    x, pos, _ = problem(B=4, K=1, D=8, seed=seed)
    V, _, _ = drift(x, pos)
    # F = A- A+ (y - x) with A- = 1e-3 and A+ = 1: linear in y - x, as in regression
    pull = pos - x
    torch.testing.assert_close(V, pull / pull.square().mean().sqrt())


def test_antisymmetry():
    """With w_x = 0 the hypotheses only carry the field; swapped, pos and neg reverse it (Eq. 2)."""
    x, pos, kw = problem(P=3, N=3)
    neg = kw["neg"]
    w_x = torch.zeros(3, 4, **F64)
    V = drift(x, pos, neg, w_x=w_x)[0]
    torch.testing.assert_close(drift(x, neg, pos, w_x=w_x)[0], -V)
    assert V.abs().max() > 0.1
    rest = drift(x, pos, pos, w_x=w_x)[0]  # V_{p,p} = 0
    assert rest.abs().max() < 1e-9


def test_the_scale_couples_the_batch():
    x, pos, _ = problem(B=2)
    V = drift(x, pos)[0]
    other = x.clone()
    other[1] *= 10  # Eq. 29: one mean over the batch
    assert (drift(other, pos)[0][0] - V[0]).abs().max() > 0.05
    apart = torch.stack([x[:1], other[1:]])  # a leading axis is uncoupled
    split = drift(apart, torch.stack([pos[:1], pos[1:]]))[0]
    torch.testing.assert_close(split[0], drift(x[:1], pos[:1])[0])


# ---- the loss ------------------------------------------------------------------------------------


def test_only_x_receives_a_gradient_and_it_is_the_drift():
    x, pos, kw = problem(B=3, K=4, P=2, N=2, weights=True)
    for y in (x, pos, *kw.values()):
        y.requires_grad_()
    loss, info = drift_loss(x, pos, temps=(0.05, 0.2), **kw)
    assert loss.shape == (3,)
    loss.sum().backward()
    V, scale, _ = drift(x, pos, temps=(0.05, 0.2), **kw)
    torch.testing.assert_close(x.grad, -2 * V / (scale * 4 * 3))  # mean over K = 4, D = 3 (Eq. 39)
    assert all(y.grad is None for y in (pos, *kw.values()))
    assert not any(v.requires_grad for v in info.values()) and not V.requires_grad
    torch.testing.assert_close(loss, V.square().mean((1, 2)))

    x.grad = None
    chunk_loss(x.unflatten(-1, (3, 1)), pos.unflatten(-1, (3, 1)))[0].backward()
    V, scale, _ = drift(x, pos)
    torch.testing.assert_close(x.grad, -2 * V / (scale * 4 * 3 * 3))  # and over B = 3 (Eq. 40)


@pytest.mark.parametrize("where", ["coincide", "at the expert"])
@pytest.mark.parametrize("K", [1, 4])
def test_degenerate_hypotheses_stay_finite(K, where):
    pos = torch.ones(2, 1, 3)
    start = pos if where == "at the expert" else torch.zeros_like(pos)
    x = start.repeat(1, K, 1).requires_grad_()
    loss, info = drift_loss(x, pos, temps=(0.02, 0.2))
    loss.sum().backward()
    assert all(t.isfinite().all() for t in (loss, x.grad, *info.values()))
    if where == "at the expert":  # the force and its gradient vanish
        assert loss.abs().max() == 0 and x.grad.abs().max() == 0
        assert info["scale"].item() == pytest.approx(1e-3)
    else:  # all are pulled the same way
        assert (x.grad < 0).all() and x.grad.std() < 1e-5 * x.grad.abs().mean()


def test_the_loss_value_says_nothing_about_the_fit():
    x, pos, _ = problem(B=8, D=6)
    for apart in (1.0, 0.01):  # Eq. 36 makes the mean of V^2 1 for one temperature
        loss, _ = drift_loss(pos + apart * x, pos)
        assert loss.mean().item() == pytest.approx(1.0, abs=1e-6)
    three = drift_loss(x, pos, temps=(0.02, 0.05, 0.2))[0].mean().item()
    assert 3 < three <= 9 + 1e-9  # three unit forces, aligned or not


def test_force_floor():
    """Forces far below the floor are not blown up."""
    x = torch.full((1, 2, 2), 1.0, **F64)
    pos = torch.stack([x[:, 0] + 1e-9, x[:, 0] - 1e-9], 1)
    V, _, info = drift(x, pos)
    assert info["force_rms"].item() < FLOOR_F and V.abs().max() < 1


def test_autocast_changes_nothing():
    x, pos, _ = problem(B=2, D=32)
    x = x.float().requires_grad_()
    pos = pos.float()
    plain, _ = drift_loss(x, pos)
    (grad,) = torch.autograd.grad(plain.sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto, info = drift_loss(x, pos)
    assert auto.dtype == info["s"].dtype == torch.float32
    assert torch.equal(auto, plain)
    assert torch.equal(torch.autograd.grad(auto.sum(), x)[0], grad)
    half = x.detach().bfloat16()  # bfloat16 hypotheses are computed in float32
    assert torch.equal(drift(half, pos)[0], drift(half.float(), pos)[0])


def test_float32_is_accurate_for_close_points():
    x, pos, _ = problem(B=2, D=32)
    x = pos + 1e-4 * x + 1  # distances of 1e-3 at coordinates of order 1
    V = drift(x, pos + 1)[0]
    V_32 = drift(x.float(), (pos + 1).float())[0]
    assert (V - V_32).abs().max() < 0.01


# ---- chunks --------------------------------------------------------------------------------------


def chunks():
    """Hypotheses, positives and negatives (3, 4 | 2 | 1, 6, 2) and keywords of chunk_loss."""
    g = torch.Generator().manual_seed(2)

    def new(*shape):
        return torch.randn(*shape, generator=g, **F64)

    x = new(3, 4, 6, 2).requires_grad_()
    pos = new(3, 2, 6, 2)
    neg = new(3, 1, 6, 2)
    weights = {"w_pos": new(3, 2).exp(), "w_neg": new(3, 1).exp(), "w_x": new(3, 4).exp()}
    return x, pos, neg, weights


def test_chunk_mode_flattens():
    x, pos, neg, weights = chunks()
    temps = (0.05, 0.2)
    loss, info = chunk_loss(x, pos, neg, temps=temps, **weights)
    flat = [y.detach().numpy().reshape(3, -1, 12) for y in (x, pos, neg)]
    V, scale, _, _ = reference(*flat, temps=temps, **as_numpy(weights))
    assert loss.shape == () and loss.item() == pytest.approx((V**2).mean(), abs=1e-6)
    assert info["scale"].item() == pytest.approx(scale)


def test_step_mode_loops():
    """Eq. 11: the mean of the losses of T_p = 6 problems, each of one step."""
    x, pos, neg, weights = chunks()
    temps = (0.05, 0.2)
    loss, info = chunk_loss(x, pos, neg, mode="step", temps=temps, **weights)
    (grad,) = torch.autograd.grad(loss, x)
    values = []
    for t in range(6):
        at_t = [y.detach()[..., t, :].numpy() for y in (x, pos, neg)]
        V, scale, _, _ = reference(*at_t, temps=temps, **as_numpy(weights))
        values.append((V**2).mean())
        assert info["s"][t].item() == pytest.approx(scale * 2**0.5)
        wanted = -2 * V / (scale * 3 * 4 * 2 * 6)
        np.testing.assert_allclose(grad[..., t, :].numpy(), wanted, atol=1e-6)
        one_step = [y[..., t : t + 1, :] for y in (x, pos, neg)]
        one, _ = chunk_loss(*one_step, temps=temps, **weights)
        assert one.item() == pytest.approx(values[-1], abs=1e-6)
    assert loss.item() == pytest.approx(np.mean(values), abs=1e-6)


def test_bad_input_is_refused():
    x = torch.zeros(2, 4, 3)
    pos = torch.zeros(2, 1, 3)
    for bad in (torch.zeros(2, 1, 2), torch.zeros(3, 1, 3), torch.zeros(1, 2, 1, 3)):
        with pytest.raises(ValueError, match="pos .* does not match x"):
            drift(x, bad)
        with pytest.raises(ValueError, match="neg .* does not match x"):
            drift(x, pos, bad)
    with pytest.raises(ValueError, match="'chunk' or 'step', not 'steps'"):
        chunk_loss(x[..., None], pos[..., None], mode="steps")
    with pytest.raises(ValueError, match="pos .* does not match x"):
        chunk_loss(torch.zeros(2, 4, 6, 2), torch.zeros(2, 1, 5, 2))


# ---- free particles ------------------------------------------------------------------------------


def flow(x, pos, rates, temps=(0.2,)):
    """x <- x + rate * scale * V for every rate (Eq. 2): particles without a network."""
    for rate in rates:
        V, scale, _ = drift(x, pos, temps=temps)
        x = x + rate * scale * V
    return x


def test_free_particles_cover_two_modes():
    pos = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    start = 0.3 * torch.randn(1, 32, 2, generator=torch.Generator().manual_seed(0))
    x = flow(start, pos, torch.linspace(0.2, 0.002, 400), temps=(0.05, 0.2, 1.0))
    near = (x[0, :, None] - pos).norm(dim=-1)  # (32, 2)
    assert near.min(1).values.mean() < 0.2 and near.min(0).values.max() < 0.05
    assert 12 <= (near.argmin(1) == 0).sum() <= 20


def diversity(x):
    """The mean distance of the hypotheses (1, K, D) from their mean."""
    return (x - x.mean(1, keepdim=True)).norm(dim=-1).mean()


@pytest.mark.parametrize("K, D, grows", [(2, 2, True), (4, 32, True), (64, 2, False)])
def test_diversity_around_a_lone_expert(K, D, grows):
    # F_k = S+_k S-_k (y - mean of the other hypotheses, weighted by A_k): a hypothesis rests where
    # the others average to y. The centre goes to the expert. The diversity shrinks only if K is
    # large enough for the nearest others to be near: a pair, or K equidistant points in many
    # dimensions, is driven apart (note 26).
    g = torch.Generator().manual_seed(0)
    pos = torch.zeros(1, 1, D)
    start = 0.3 + 0.5 * torch.randn(1, K, D, generator=g)
    x = flow(start, pos, [0.05] * 60)
    assert x.mean(1).norm() < 0.35 * start.mean(1).norm()
    if grows:
        assert diversity(x) > 2 * diversity(start)
    else:
        assert diversity(x) < 0.5 * diversity(start)
