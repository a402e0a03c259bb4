"""baselines.py: losses and samplers against the diffusers library, finite differences and cases
solved by hand; network evaluations are counted."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import baselines
import dbp_train
import evaluate as evaluate_py
from baselines import (
    ADAPT,
    LOSSES,
    POWER,
    SLOW,
    TIME,
    embed_time,
    meanflow_times,
    prepare,
    scheduler,
    start,
    time_dim,
)
from commands import BadInput
from conftest import cli
from envs import TASKS
from evaluate import count_calls, evaluate
from policy import Policy

OTHERS = ("diffusion", "meanflow", "bc")


def policy(method="dbp", **change):
    """A small policy of a method, with random weights; all data lies in [-1, 1]."""
    torch.manual_seed(0)
    shape = {
        "task": "pusht",
        "obs": {"state": {"shape": [20], "dtype": "float32"}},
        "D_a": 2,
        "T_o": 2,
        "T_p": 8,
        "T_a": 4,
        "dims": [16, 32],
        **change,
    }
    if method != "dbp":
        shape.update(method=method, time_dim=time_dim(method))

    def unit(D):
        return -torch.ones(D), torch.ones(D)

    p = Policy(shape, {"obs": {"state": unit(20)}, "action": unit(2)})
    start(p)
    return p


def batch(n=6):
    """Observations and the expert's chunks, which keep off the ends of [-1, 1]."""
    g = torch.Generator().manual_seed(1)
    obs = {"state": torch.rand(n, 2, 20, generator=g) * 2 - 1}
    return obs, (torch.rand(n, 8, 2, generator=g) * 2 - 1) * 0.8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def wide(t):
    """Times (N,) or () beside chunks: (N, 1, 1)."""
    return t.reshape(-1, 1, 1)


class Hand:
    """In the place of a policy: f(x, *times) is its network, observations are its features.

    The times are read off their embedding, whose first sine and cosine have one radian a unit.
    """

    method = "hand"
    C = 40  # the size of the features

    def __init__(self, f):
        self.f = f
        self.calls = []

    def features(self, obs):
        return obs["state"].flatten(1)

    def latent(self, n, generator):
        return torch.randn(n, 8, 2, generator=generator)

    def net(self, x, cond):
        h, *embedded = cond.split([self.C] + (cond.shape[1] - self.C) // TIME * [TIME], 1)
        times = [torch.atan2(e[:, 0], e[:, TIME // 2]) for e in embedded]
        self.calls.append((h, x, times))
        return self.f(x, *times)


# ---- what the methods share ----------------------------------------------------------------------


def test_time_embedding():
    e = embed_time(torch.tensor([0.0, 0.5, 1.0]))
    assert e.shape == (3, TIME)
    assert e[0].tolist() == [0.0] * 16 + [1.0] * 16
    assert (e[1] - e[2]).abs().max() > 0.5
    assert [time_dim(method) for method in ("dbp", "bc", "diffusion", "meanflow")] == [0, 0, 32, 64]


def test_the_noisy_chunk_has_the_usual_weight():
    """DBP starts with a quarter of the usual weight on its latent; a noisy chunk has all of it."""

    def first(method):
        return policy(method).net.down[0][0].skip.weight[:, :2]

    torch.testing.assert_close(first("diffusion"), 4 * first("dbp"))
    torch.testing.assert_close(first("meanflow"), 4 * first("dbp"))
    assert torch.equal(first("bc"), first("dbp"))


@pytest.mark.parametrize("method", OTHERS)
def test_checkpoint(tmp_path, method):
    """A checkpoint acts as the policy did: it knows its method, and no weight is set twice."""
    p = prepare(policy(method).eval(), 5 if method == "diffusion" else None)
    p.save(tmp_path / "ckpt.pt")
    loaded, _ = Policy.load(tmp_path / "ckpt.pt")
    assert loaded.method == method
    prepare(loaded, 5 if method == "diffusion" else None)
    obs, _ = batch()
    z = p.latent(6)
    assert torch.equal(
        loaded.act(obs, z, generator=generator()), p.act(obs, z, generator=generator())
    )


# ---- diffusion -----------------------------------------------------------------------------------


def test_diffusion_loss_by_hand():
    """Noise is added by the squared cosine, computed here; the loss is the error of the noise."""
    obs, pos = batch()
    hand = Hand(lambda x, t: torch.full_like(x, 0.5))
    loss = LOSSES["diffusion"](hand, obs, pos, 3, generator(7))
    ((h, x, (t,)),) = hand.calls
    g = generator(7)
    noise = torch.randn(18, 8, 2, generator=g)
    step = torch.randint(100, (18,), generator=g)
    torch.testing.assert_close(t, step / 100)
    assert torch.equal(h, obs["state"].flatten(1).repeat_interleave(3, 0))

    def level(s):
        return torch.cos((s + 0.008) / 1.008 * torch.pi / 2) ** 2

    betas = 1 - level(torch.arange(1, 101) / 100) / level(torch.arange(100) / 100)
    alpha = wide((1 - betas.clamp(max=0.999)).cumprod(0)[step])
    noisy = alpha.sqrt() * pos.repeat_interleave(3, 0) + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(x, noisy, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, (0.5 - noise).square().mean())


def test_one_ddpm_step_by_hand():
    """Eqs. 6, 7, 15 of DDPM (2006.11239), with the predicted chunk clipped, in the middle."""
    made = scheduler(100)
    t = 40
    x = torch.randn(4, 8, 2)
    noise = torch.randn(4, 8, 2)
    a = made.alphas_cumprod[t]
    b = made.alphas_cumprod[t - 1]
    beta = 1 - a / b
    x0 = ((x - (1 - a).sqrt() * noise) / a.sqrt()).clamp(-1, 1)
    mean = b.sqrt() * beta / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x
    drawn = torch.randn(x.shape, generator=generator(3))
    step = made.step(noise, t, x, generator=generator(3)).prev_sample
    wanted = mean + (beta * (1 - b) / (1 - a)).sqrt() * drawn
    torch.testing.assert_close(step, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [100, 10, 1])
def test_diffusion_finds_the_chunk(steps):
    """With the perfect noise prediction for one chunk, DDPM and DDIM end at it."""
    obs, pos = batch(2)
    alphas = scheduler(steps).alphas_cumprod

    def f(x, t):
        a = wide(alphas[(t * 100).round().long()])
        return (x - a.sqrt() * pos) / (1 - a).sqrt()

    hand = Hand(f)
    out = baselines.diffusion_sample(hand, obs, torch.randn(2, 8, 2), generator(), steps)
    torch.testing.assert_close(out, pos, atol=0.02, rtol=0.02)
    assert len(hand.calls) == steps


@pytest.mark.parametrize("steps, first", [(100, 99), (50, 98), (10, 90), (5, 99), (2, 99), (1, 99)])
def test_diffusion_begins_where_a_chunk_is_noise(steps, first):
    """As Diffusion Policy's DDIM does, unless that would begin later than at step 90."""
    assert scheduler(steps).timesteps[0] == first


# ---- MeanFlow ------------------------------------------------------------------------------------


def test_meanflow_by_hand():
    """A single chunk: every path to it is straight.

    So u = (x - chunk) / t for every r, its derivative along the path is 0, the target is v and the
    loss 0; and one evaluation takes any noise to the chunk.
    """
    obs, pos = batch(1)

    def exact(x, t, dt):
        return (x - pos) / wide(t / SLOW)

    def wrong(x, t, dt):
        return exact(x, t, dt) + 0.1 * x

    assert LOSSES["meanflow"](Hand(exact), obs, pos, 64, generator()) < 1e-3
    loss = LOSSES["meanflow"](Hand(wrong), obs, pos, 64, generator())  # errors 0.1 (x + (t - r) v)
    assert 0.05 < loss < 0.15
    five = {"state": obs["state"].expand(5, -1, -1)}
    out = baselines.meanflow_sample(Hand(exact), five, torch.randn(5, 8, 2), None)
    torch.testing.assert_close(out, pos.expand(5, -1, -1))


def test_meanflow_target_by_hand():
    """The average velocity is v less the elapsed time times its derivative; no gradient passes."""
    v = torch.tensor(3.0, requires_grad=True)
    dudt = torch.tensor(2.0, requires_grad=True)
    target = baselines.meanflow_target(v, dudt, 0.75, 0.25)
    assert target == 3 - 0.5 * 2
    assert not target.requires_grad


def test_meanflow_times():
    """r <= t in (0, 1); half of the pairs differ; t is the larger of two logit-normal times."""
    r, t = meanflow_times(20_000, "cpu", generator())
    assert (r <= t).all()
    assert r.min() > 0
    assert t.max() < 1
    apart = r < t
    assert apart.float().mean().item() == pytest.approx(0.5, abs=0.015)
    low, high = (torch.logit(y[apart]) for y in (r, t))
    half_gap = torch.pi**-0.5  # the mean of the larger of two normal numbers
    assert high.mean().item() == pytest.approx(-0.4 + half_gap, abs=0.03)
    assert low.mean().item() == pytest.approx(-0.4 - half_gap, abs=0.03)


def meanflow_in_float64(monkeypatch):
    """MeanFlow's network, features, chunks, noise and times, all in float64 and fixed.

    Returns the policy, the loss as a function of nothing, and (h, pos, noise, t, r).
    """
    obs, pos = batch(4)
    p = policy("meanflow")
    h = p.features(obs).double().detach()
    p.double()
    pos = pos.double()
    noise = torch.randn(4, 8, 2, dtype=torch.float64, generator=generator(5))
    r = torch.tensor([0.2, 0.05, 0.45, 0.7], dtype=torch.float64)
    t = torch.tensor([0.6, 0.95, 0.50, 0.7], dtype=torch.float64)  # in the last pair r = t
    monkeypatch.setattr(p, "features", lambda obs: h)
    monkeypatch.setattr(p, "latent", lambda n, generator: noise)
    monkeypatch.setattr(baselines, "meanflow_times", lambda n, device, generator: (r, t))
    return p, lambda: LOSSES["meanflow"](p, obs, pos, 1, None), (h, pos, noise, t, r)


def test_meanflow_derivative(monkeypatch):
    """The loss and its gradients are those with du/dt from finite differences of the network.

    The identity is u = v - (t - r) du/dt, where t moves along the path x = (1 - t) chunk + t noise
    and r stays. A central difference over 2 e is wrong by e^2 / 6 of the third derivative: with
    e = 1e-4 in float64 about 1e-10 of the loss, so 1e-8 is allowed. A target without the
    derivative, or with its sign turned, is off by 1e-3 and more.
    """
    p, loss, (h, pos, noise, t, r) = meanflow_in_float64(monkeypatch)

    def u(t):
        """The network where the path is at t, told t and t - r."""
        x = (1 - wide(t)) * pos + wide(t) * noise
        return p.net(x, torch.cat([h, embed_time(SLOW * t), embed_time(SLOW * (t - r))], 1))

    def by_hand(target):
        """Sec. 4.3 of 2505.13447: each sample's error over the root of itself."""
        error = (u(t) - target).square().mean((1, 2))
        return (error / (error.detach() + ADAPT) ** POWER).mean()

    e = 1e-4
    with torch.no_grad():
        dudt = (u(t + e) - u(t - e)) / (2 * e)
    v = noise - pos
    elapsed = wide(t - r)
    wanted = by_hand(v - elapsed * dudt)
    got = loss()
    torch.testing.assert_close(got, wanted, atol=0, rtol=1e-8)
    parameters = list(p.net.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(wanted, parameters)):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    for wrong in (v, v + elapsed * dudt):
        assert abs(by_hand(wrong) - wanted) > 1e-3 * wanted


@pytest.mark.parametrize("method", OTHERS)
def test_losses_under_autocast(method):
    """Also MeanFlow's forward-mode derivative, on a CPU; the loss itself stays in float32."""
    obs, pos = batch()
    p = policy(method)

    def loss_and_gradient(amp):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = LOSSES[method](p, obs, pos, 4, generator())
        p.zero_grad()
        loss.backward()
        return loss.detach(), torch.cat([q.grad.flatten() for q in p.net.parameters()])

    loss, grad = loss_and_gradient(amp=False)
    rounded, grad_of_rounded = loss_and_gradient(amp=True)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(loss.item(), rel=0.01)
    assert torch.cosine_similarity(grad, grad_of_rounded, dim=0) > 0.99


# ---- samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OTHERS)
def test_overfits_one_batch(method):
    """On two chunks every loss comes down and its sampler finds them."""
    p = policy(method, dims=[32])
    obs, pos = batch(2)
    opt = torch.optim.Adam(p.parameters(), 4e-3)
    g = generator()
    n = {"diffusion": 150, "meanflow": 200, "bc": 60}[method]
    for i in range(n):
        for group in opt.param_groups:
            group["lr"] = 4e-3 * (1 - i / n)
        loss = LOSSES[method](p, obs, pos, 16, g)
        opt.zero_grad()
        loss.backward()
        opt.step()
    out = prepare(p.eval()).act(obs, generator=g)
    far = {"diffusion": 0.2, "meanflow": 0.3, "bc": 0.02}[method]  # latents are 1.1 away
    assert (out - pos).square().mean().sqrt() < far
    first = {"state": obs["state"][:1]}
    with torch.no_grad():
        many = p.sampler(p, first, torch.randn(1, 5, 8, 2), g)  # K at once, as figures take them
    assert many.shape == (1, 5, 8, 2)
    assert (many - pos[0]).square().mean().sqrt() < far


COUNTED = [
    ("dbp", None, 1),
    ("bc", None, 1),
    ("meanflow", 1, 1),
    ("diffusion", None, 100),
    ("diffusion", 10, 10),
]


@pytest.mark.parametrize("method, nfe, counted", COUNTED)
def test_network_evaluations_are_counted(method, nfe, counted):
    """Those of one action, and those that an evaluation of two chunks reports."""
    p = prepare(policy(method).eval(), nfe)
    obs, _ = batch(3)
    with count_calls(p.net) as calls:
        p.act(obs, generator=generator())
    assert calls.n == counted
    result, r = evaluate(p, replace(TASKS["pusht"], steps=8), 2, workers=False)
    assert result["nfe"] == counted
    assert len(r.network_s) == 2


def test_regression_ignores_the_latent():
    p = prepare(policy("bc").eval())
    obs, _ = batch()
    chunk = p.act(obs)
    assert torch.equal(p.act(obs), chunk)
    assert torch.equal(p.sampler(p, obs, torch.ones(6, 8, 2), None), p(obs, torch.zeros(6, 8, 2)))


def test_a_seed_decides():
    """DDPM draws further noise, from the generator it is given."""
    p = prepare(policy("diffusion").eval())
    obs, _ = batch()
    z = p.latent(6)
    chunk = p.act(obs, z, generator=generator(1))
    assert torch.equal(p.act(obs, z, generator=generator(1)), chunk)
    assert not torch.equal(p.act(obs, z, generator=generator(2)), chunk)
    prepare(p, 10)  # DDIM draws none
    assert torch.equal(p.act(obs, z, generator=generator(1)), p.act(obs, z, generator=generator(2)))


# ---- refusals and commands -----------------------------------------------------------------------


def test_refusals(tmp_path):
    with pytest.raises(BadInput, match="--nfe 10: dbp takes 1 network evaluation"):
        prepare(policy(), 10)
    for nfe in (0, 101):
        with pytest.raises(BadInput, match=f"--nfe {nfe}: diffusion takes 1 to 100"):
            prepare(policy("diffusion"), nfe)
    with pytest.raises(BadInput, match="--nfe 60: DDIM's steps of 1 would leave out more than a"):
        prepare(policy("diffusion"), 60)
    for method in OTHERS:
        with pytest.raises(BadInput, match=f"a {method} policy acts by its sampler"):
            policy(method).act(batch()[0])
    policy("meanflow").save(tmp_path / "m.pt")
    code, _, err = cli("dbpo_ppo.py", "--init", tmp_path / "m.pt", "--device", "cpu")
    assert code == 2
    assert "trained by --method meanflow: Stage 2 improves a one-step policy" in err


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    scheduler.cache_clear()
    with pytest.raises(BadInput, match="pip install diffusers"):
        prepare(policy("diffusion"))


@pytest.mark.parametrize("method", OTHERS)
def test_command(demos, tmp_path, monkeypatch, capsys, method):
    """Trained and evaluated with its own sampler by the same commands as DBP."""
    monkeypatch.setitem(TASKS, "pusht", replace(TASKS["pusht"], steps=16))
    out = tmp_path / "run"
    flags = ["--task", "pusht", "--data", demos, "--method", method, "--device", "cpu"]
    small = ["--steps", 5, "--dims", 8, 16, "--batch", 4, "--episodes", 1]
    flags = [*flags, *small, "--out", out]
    dbp_train.train(dbp_train.parse(list(map(str, flags))))
    assert (out / "hypotheses.png").exists()
    assert (out / "curves.png").exists()
    loaded, kept = Policy.load(out / "ckpt.pt")
    assert loaded.method == kept["method"] == method
    nfe = 5 if method == "diffusion" else 1
    flags = [out / "ckpt.pt", "--episodes", 1, "--nfe", nfe, "--json", tmp_path / "x.json"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", list(map(str, ["evaluate.py", *flags])))
    evaluate_py.main()
    assert capsys.readouterr().out.startswith("score")
    assert json.loads((tmp_path / "x.json").read_text())["nfe"] == nfe
