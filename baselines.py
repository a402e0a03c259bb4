"""What the Drift-Based Policy is compared with, on the same network: for each method a loss and a sampler.

  dbp_train.py --method diffusion      Diffusion Policy (arXiv 2303.04137): predicts the noise, 100 or fewer calls
  dbp_train.py --method meanflow       MeanFlow (arXiv 2505.13447, as in MP1, 2507.10543): the average velocity, 1 call
  dbp_train.py --method bc             regression: the squared error to the expert, 1 call

A loss takes the policy, observations (B, T_o, obs_dim) and the expert's normalised chunks (B, T_p, D_a); like DBP's it
makes the network see K inputs of each observation. A sampler takes f, the network with its condition bound, and the
latent z (B, T_p, D_a) or (B, K, T_p, D_a), and gives chunks of that shape; every call of f is one network evaluation.
"""
import functools

import torch

from runs import BadInput

METHODS = {"dbp": 0, "diffusion": 1, "meanflow": 2, "bc": 0}       # times the network is conditioned on
STEPS = 100                                                         # of the diffusion, and DDPM's calls
MEAN, STD = -0.4, 1.0           # MeanFlow's times are logit-normal; these and the next three as MP1's code has them
APART = 0.5                     # share of pairs of times that differ; where r = t the loss is flow matching's
ADAPT, POWER = 1e-3, 0.5        # c and p of the adaptive weight (squared error + c)^-p
SLOW = 0.1                      # times are shown slowed: the target holds du/dt, which a fast embedding makes rough


def repeated(policy, obs, pos, K, generator):
    """K copies of each observation's features and chunk, and as many latents: (B K, C), (B K, T_p, D_a) twice."""
    h, pos = (y.repeat_interleave(K, 0) for y in (policy.features(obs), pos))
    return h, pos, policy.latent(len(pos), generator=generator)


# ---- Diffusion Policy ----------------------------------------------------------------------------------------------

@functools.cache
def scheduler(steps):
    """Diffusion Policy's noise schedule by the diffusers library: DDPM with all its steps, DDIM with fewer."""
    try:
        from diffusers import DDIMScheduler, DDPMScheduler              # slow to import
    except ImportError as e:
        raise BadInput("--method diffusion needs the diffusers library: pip install diffusers") from e
    made = (DDPMScheduler if steps == STEPS else DDIMScheduler)(STEPS, beta_schedule="squaredcos_cap_v2",
                                                                prediction_type="epsilon", clip_sample=True)
    made.set_timesteps(steps)
    return made


def diffusion_loss(policy, obs, pos, K, generator):
    """Mean squared error of the noise that was added to the chunk at a random step (DDPM, arXiv 2006.11239, Eq. 14)."""
    h, pos, noise = repeated(policy, obs, pos, K, generator)
    t = torch.randint(STEPS, (len(pos),), device=pos.device, generator=generator)
    return (policy.network(h, scheduler(STEPS).add_noise(pos, noise, t), t / STEPS) - noise).square().mean()


def diffusion_sample(f, z, generator, steps=STEPS):
    """From noise to a chunk in `steps` calls: DDPM if they are all, else DDIM."""
    x = z
    for t in scheduler(steps).timesteps:
        noise = f(x, t.to(z) / STEPS)
        extra = {"generator": generator} if steps == STEPS else {}     # DDIM adds no noise
        x = scheduler(steps).step(noise, t, x, **extra).prev_sample
    return x


# ---- MeanFlow ------------------------------------------------------------------------------------------------------

def meanflow_target(u, v, dudt, t, r):
    """Eq. 10 of 2505.13447: the average velocity from r to t, v - (t - r) du/dt; t, r (N, 1, 1)."""
    return (v - (t - r) * dudt).detach()


def meanflow_loss(policy, obs, pos, K, generator):
    """Error of the average velocity u(x, r, t) against its identity's target, du/dt by one forward-mode derivative.

    x = (1 - t) chunk + t noise, v = noise - chunk, du/dt = v du/dx + du/dt. Each sample's mean squared error is
    weighted by its own inverse root (Sec. 4.3 of 2505.13447 with p = 1/2).
    """
    h, pos, noise = repeated(policy, obs, pos, K, generator)
    draw = lambda: torch.randn(len(pos), device=pos.device, generator=generator)
    a, b = (torch.sigmoid(MEAN + STD * draw()) for _ in range(2))
    t, r = torch.maximum(a, b), torch.minimum(a, b)
    apart = torch.rand(len(pos), device=pos.device, generator=generator) < APART
    r = torch.where(apart, r, t)
    wide = lambda y: y[:, None, None]
    x, v = (1 - wide(t)) * pos + wide(t) * noise, noise - pos
    u, dudt = torch.func.jvp(lambda x, r, t: policy.network(h, x, SLOW * t, SLOW * (t - r)), (x, r, t),
                             (v, torch.zeros_like(r), torch.ones_like(t)))
    error = (u - meanflow_target(u, v, dudt, wide(t), wide(r))).square().mean((1, 2))
    return (error / (error.detach() + ADAPT) ** POWER).mean()


def meanflow_sample(f, z, generator):
    """One call: the noise less the average velocity from 0 to 1."""
    one = torch.full((), SLOW, device=z.device)
    return z - f(z, one, one)


# ---- regression ----------------------------------------------------------------------------------------------------

def bc_loss(policy, obs, pos, K, generator):
    """Mean squared error to the expert's chunk, from a latent of 0."""
    x = policy.network(policy.features(obs), torch.zeros_like(pos))
    return (x - pos).square().mean()


def bc_sample(f, z, generator):
    """One call, with a latent of 0."""
    return f(torch.zeros_like(z))


LOSSES = {"diffusion": diffusion_loss, "meanflow": meanflow_loss, "bc": bc_loss}
SAMPLERS = {"diffusion": diffusion_sample, "meanflow": meanflow_sample, "bc": bc_sample}


def prepare(policy, nfe=None):
    """Give a policy the sampler of the method it was trained by; nfe: calls an action, only diffusion has a choice.

    Returns the policy. Raises BadInput if the method cannot act with that many calls.
    """
    if policy.method == "diffusion":
        if nfe is not None and not 1 <= nfe <= STEPS:
            raise BadInput(f"--nfe {nfe}: diffusion takes 1 to {STEPS} network evaluations an action")
        scheduler(nfe or STEPS)
        policy.sampler = functools.partial(diffusion_sample, steps=nfe or STEPS)
    elif nfe not in (None, 1):
        raise BadInput(f"--nfe {nfe}: {policy.method} takes 1 network evaluation an action")
    else:
        policy.sampler = SAMPLERS.get(policy.method)
    return policy
