"""baselines.py: losses and samplers against the diffusers library and cases solved by hand; calls are counted."""
from types import SimpleNamespace

import pytest
import torch
from conftest import cli as command

import baselines
from baselines import LOSSES, METHODS, prepare
from envs import TASKS
from evaluate import evaluate
from policy import Policy, embed_time
from runs import BadInput


def policy(method="dbp", **change):
    torch.manual_seed(0)
    shape = {"task": "pusht", "obs_dim": 20, "D_a": 2, "T_o": 2, "T_p": 8, "T_a": 4, "dims": [16, 32], **change}
    if method != "dbp":
        shape.update(method=method, times=METHODS[method])
    unit = lambda d: (-torch.ones(d), torch.ones(d))
    return Policy(shape, unit(20), unit(2))


def batch(n=6):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 2, 20, generator=g) * 2 - 1, (torch.rand(n, 8, 2, generator=g) * 2 - 1) * 0.8


class Hand:
    """In the place of a policy: no features, f as its network."""
    def __init__(self, f, obs_dim=20):
        self.f, self.calls = f, []

    features = staticmethod(lambda obs: obs.flatten(1))
    latent = staticmethod(lambda n, generator: torch.randn(n, 8, 2, generator=generator))

    def network(self, h, x, *times):
        self.calls.append((h, x, times))
        return self.f(x, *times)


def test_diffusion_loss_by_hand():
    """Noise is added by diffusers' schedule, whose squared cosine is computed here; the loss is the noise's error."""
    obs, pos = batch()
    hand = Hand(lambda x, t: torch.full_like(x, 0.5))
    loss = LOSSES["diffusion"](hand, obs, pos, 3, torch.Generator().manual_seed(7))
    (h, x, (t,)), = hand.calls
    g = torch.Generator().manual_seed(7)
    noise, step = torch.randn(18, 8, 2, generator=g), torch.randint(100, (18,), generator=g)
    assert torch.equal(t, step / 100) and torch.equal(h, obs.flatten(1).repeat_interleave(3, 0))
    level = lambda s: torch.cos((s + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = 1 - level(torch.arange(1, 101) / 100) / level(torch.arange(100) / 100)
    alpha = (1 - betas.clamp(max=0.999)).cumprod(0)[step][:, None, None]
    torch.testing.assert_close(x, alpha.sqrt() * pos.repeat_interleave(3, 0) + (1 - alpha).sqrt() * noise, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, (0.5 - noise).square().mean())


def test_one_ddpm_step_by_hand():
    """Eqs. 6, 7, 15 of DDPM (2006.11239), with the predicted chunk clipped, at a step in the middle."""
    made, t = baselines.scheduler(100), 40
    x, noise = torch.randn(4, 8, 2), torch.randn(4, 8, 2)
    a, b = made.alphas_cumprod[t], made.alphas_cumprod[t - 1]
    beta = 1 - a / b
    x0 = ((x - (1 - a).sqrt() * noise) / a.sqrt()).clamp(-1, 1)
    mean = b.sqrt() * beta / (1 - a) * x0 + (a / b).sqrt() * (1 - b) / (1 - a) * x
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    step = made.step(noise, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
    torch.testing.assert_close(step, mean + (beta * (1 - b) / (1 - a)).sqrt() * drawn, atol=1e-5, rtol=1e-4)


def test_diffusion_finds_the_chunk():
    """With the perfect noise prediction for one chunk, DDPM and DDIM end at it."""
    _, pos = batch(2)
    for steps in (100, 10, 1):
        made = baselines.scheduler(steps)

        def f(x, t):
            a = made.alphas_cumprod[round(t.item() * 100)]
            return (x - a.sqrt() * pos) / (1 - a).sqrt()
        out = baselines.diffusion_sample(f, torch.randn(2, 8, 2), torch.Generator().manual_seed(0), steps)
        torch.testing.assert_close(out, pos, atol=0.02, rtol=0.02)


def test_meanflow_by_hand():
    """One chunk: paths from it to any noise are straight, so u = (x - chunk) / t for every r, its total derivative is 0,
    the target is v, the loss 0; and one call from any noise lands on the chunk."""
    obs, pos = batch(1)
    exact = lambda x, t, dt: (x - pos) / (t / baselines.SLOW).reshape(-1, *[1] * (x.ndim - 1))
    hand = Hand(exact)
    assert LOSSES["meanflow"](hand, obs, pos, 64, torch.Generator().manual_seed(0)) < 1e-4
    z = torch.randn(5, 8, 2)
    torch.testing.assert_close(baselines.meanflow_sample(lambda x, t, dt: exact(x, t, dt), z, None), pos.expand(5, -1, -1))
    u, v, dudt = torch.tensor(9.), torch.tensor(3.), torch.tensor(2.)
    assert baselines.meanflow_target(u, v, dudt, 0.75, 0.25) == 3 - 0.5 * 2
    wrong = Hand(lambda x, t, dt: exact(x, t, dt) + 0.1 * x)
    loss = LOSSES["meanflow"](wrong, obs, pos, 64, torch.Generator().manual_seed(0))     # errors 0.1 (x + (t - r) v)
    assert 0.05 < loss < 0.15


def test_meanflow_derivative():
    """du/dt along the path, by forward mode, against a difference quotient, through the real network."""
    model, (obs, pos) = policy("meanflow"), batch(4)
    h, noise = model.features(obs), torch.randn(4, 8, 2)
    t, r = torch.full((4,), 0.6), torch.full((4,), 0.2)
    wide = lambda y: y[:, None, None]
    u = lambda t: model.network(h, (1 - wide(t)) * pos + wide(t) * noise, t, t - r)
    _, dudt = torch.func.jvp(lambda x, r, t: model.network(h, x, t, t - r),
                             ((1 - wide(t)) * pos + wide(t) * noise, r, t),
                             (noise - pos, torch.zeros(4), torch.ones(4)))
    torch.testing.assert_close(dudt, (u(t + 1e-5) - u(t - 1e-5)) / 2e-5, atol=0.3, rtol=0.1)


@pytest.mark.parametrize("method", ["diffusion", "meanflow", "bc"])
def test_overfits_one_batch(method):
    model, (obs, pos) = policy(method, dims=[32, 64]), batch(2)
    opt, g = torch.optim.Adam(model.parameters(), 2e-3), torch.Generator().manual_seed(0)
    n = {"diffusion": 350, "meanflow": 350, "bc": 150}[method]
    for i in range(n):
        for group in opt.param_groups:
            group["lr"] = 2e-3 * (1 - i / n)
        loss = LOSSES[method](model, obs, pos, 16, g)
        opt.zero_grad()
        loss.backward()
        opt.step()
    out = prepare(model.eval()).act(obs, generator=g)
    far = {"diffusion": 0.2, "meanflow": 0.3, "bc": 0.02}[method]              # latents are 1.1 away
    assert (out - pos).square().mean().sqrt() < far
    many = model(obs[:1], torch.randn(1, 5, 8, 2), g)                          # K chunks at once, as the figures take them
    assert many.shape == (1, 5, 8, 2) and (many - pos[0]).square().mean().sqrt() < far


@pytest.mark.parametrize("method, nfe, counted", [("dbp", None, 1), ("bc", None, 1), ("meanflow", 1, 1),
                                                  ("diffusion", None, 100), ("diffusion", 10, 10)])
def test_calls_are_counted(method, nfe, counted):
    result, _ = evaluate(prepare(policy(method).eval(), nfe), SimpleNamespace(**{**vars(TASKS["pusht"]), "steps": 8}), 2,
                         workers=False)
    assert result["nfe"] == counted


def test_refusals(tmp_path):
    with pytest.raises(BadInput, match="--nfe 10: dbp takes 1 network evaluation"):
        prepare(policy(), 10)
    with pytest.raises(BadInput, match="--nfe 101: diffusion takes 1 to 100"):
        prepare(policy("diffusion"), 101)
    with pytest.raises(BadInput, match="a diffusion policy acts by its sampler"):
        policy("diffusion").act(batch()[0])
    policy("meanflow").save(tmp_path / "m.pt")
    code, _, err = command("dbpo_ppo.py", "--init", tmp_path / "m.pt", "--device", "cpu")
    assert code == 2 and "trained by --method meanflow: Stage 2 improves a one-step policy" in err


def test_time_embedding():
    e = embed_time(torch.tensor([0., 0.5, 1.]))
    assert e.shape == (3, 32) and e[0].tolist() == [0.] * 16 + [1.] * 16 and (e[1] - e[2]).abs().max() > 0.5


@pytest.mark.parametrize("method", ["diffusion", "meanflow", "bc"])
def test_command(demos, tmp_path, method):
    """Trained, evaluated with its own sampler and resumed by the same commands as DBP."""
    out = tmp_path / "run"
    flags = ["--task", "pusht", "--data", demos, "--method", method, "--steps", 60, "--dims", 8, 16, "--batch", 4, "--episodes",
             1, "--device", "cpu", "--out", out]
    code, text, err = command("dbp_train.py", *flags)
    assert code == 0 and (out / "hypotheses.png").exists() and (out / "curves.png").exists(), err
    loaded, kept = Policy.load(out / "ckpt.pt")
    assert loaded.method == kept["method"] == method
    code, text, err = command("evaluate.py", out / "ckpt.pt", "--episodes", 1, *(["--nfe", 5] if method == "diffusion" else []))
    assert code == 0 and "score" in text, err


def test_the_noisy_chunk_has_the_usual_weight():
    """DBP starts with a quarter of the usual weight on its latent; where the input is the noisy chunk there is no such cut."""
    first = lambda method: policy(method).net.down[0][0].skip.weight[:, :2]
    torch.testing.assert_close(first("diffusion"), 4 * first("dbp"))
    assert torch.equal(first("bc"), first("dbp"))
