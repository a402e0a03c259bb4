"""What the Drift-Based Policy is compared with, on the same network: a loss and a sampler each.

  dbp_train.py --method diffusion   Diffusion Policy (arXiv 2303.04137): predicts the noise and acts
                                    with 100 network evaluations, or fewer
  dbp_train.py --method meanflow    MeanFlow (arXiv 2505.13447, as in MP1, arXiv 2507.10543): the
                                    average velocity, 1 evaluation (note 27)
  dbp_train.py --method bc          regression: the squared error to the expert, 1 evaluation

A loss takes the policy, observations {name: (B, T_o, ...)} and the expert's normalised chunks
(B, T_p, D_a). Like DBP's, those of diffusion and MeanFlow make the network see K inputs of each
observation. A sampler takes the policy, observations and the latent z (B, T_p, D_a), and gives
chunks of z's shape.
"""

import functools

import torch

from commands import BadInput
from unet import Z_GAIN

METHODS = {"dbp": 0, "diffusion": 1, "meanflow": 2, "bc": 0}  # times that the network is told
TIME = 32  # the numbers that a time in [0, 1] is embedded in
STEPS = 100  # of the diffusion, and DDPM's network evaluations

# MeanFlow's times are logit-normal; these five numbers are as in MP1's code.
MEAN = -0.4
STD = 1.0
APART = 0.5  # the share of pairs of times that differ; where r = t the loss is flow matching's
ADAPT = 1e-3  # c and p of the adaptive weight (squared error + c) ** -p
POWER = 0.5
SLOW = 0.1  # times are shown slowed: the target holds du/dt, which a fast embedding makes rough


# ---- what the methods share ---------------------------------------------------------------------


def time_dim(method):
    """The numbers that a method's times add to the condition."""
    return METHODS[method] * TIME


def start(policy):
    """Give a new policy's network the usual weight on its input, where that is a noisy chunk."""
    if METHODS[policy.method]:
        policy.net.weigh_latent(1 / Z_GAIN)


def embed_time(t):
    """Times in [0, 1] (N,) -> sines and cosines (N, TIME), of 1 to 30 radians."""
    angle = t[:, None] * torch.logspace(0, 1.5, TIME // 2, device=t.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


def network(policy, h, x, *times):
    """One network evaluation: features h (B, C), input x (B, T_p, D_a), times () or (B,)."""
    return policy.net(x, torch.cat([h, *(embed_time(t.expand(len(h))) for t in times)], -1))


def repeated(policy, obs, pos, K, generator):
    """K copies of the features (B K, C) and of the chunks (B K, T_p, D_a), and as many latents."""
    h = policy.features(obs).repeat_interleave(K, 0)
    pos = pos.repeat_interleave(K, 0)
    return h, pos, policy.latent(len(pos), generator=generator)


# ---- Diffusion Policy ---------------------------------------------------------------------------


@functools.cache
def scheduler(steps):
    """Diffusion Policy's noise schedule, by diffusers: DDPM, or DDIM with fewer steps.

    DDIM's steps are counted from the clean end, as Diffusion Policy's are, unless the first would
    then be one whose chunks are not all noise: from the noisy end then.
    """
    try:
        from diffusers import DDIMScheduler, DDPMScheduler  # slow to import
    except ImportError as e:
        raise BadInput(
            "--method diffusion needs the diffusers library: pip install diffusers"
        ) from e
    kind = DDPMScheduler if steps == STEPS else DDIMScheduler
    for spacing in ("leading", "trailing"):
        made = kind(
            STEPS,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon",
            clip_sample=True,
            timestep_spacing=spacing,
        )
        made.set_timesteps(steps)
        if made.timesteps[0] >= 0.9 * STEPS:
            break
    return made


def diffusion_loss(policy, obs, pos, K, generator):
    """The mean squared error of the noise at a random step (arXiv 2006.11239, Eq. 14)."""
    h, pos, noise = repeated(policy, obs, pos, K, generator)
    t = torch.randint(STEPS, (len(pos),), device=pos.device, generator=generator)
    noisy = scheduler(STEPS).add_noise(pos, noise, t)
    return (network(policy, h, noisy, t / STEPS) - noise).square().mean()


def diffusion_sample(policy, obs, z, generator, steps=STEPS):
    """From noise to a chunk in `steps` network evaluations: DDPM if they are all, else DDIM."""
    h = policy.features(obs)
    x = z
    for t in scheduler(steps).timesteps:
        noise = network(policy, h, x, t.to(z) / STEPS)
        extra = {"generator": generator} if steps == STEPS else {}  # DDIM adds no noise
        x = scheduler(steps).step(noise, t, x, **extra).prev_sample
    return x


# ---- MeanFlow -----------------------------------------------------------------------------------


def meanflow_target(v, dudt, t, r):
    """Eq. 10 of 2505.13447: the average velocity from r to t, v - (t - r) du/dt; t, r (N, 1, 1)."""
    return (v - (t - r) * dudt).detach()


def meanflow_times(n, device, generator):
    """Pairs of times r <= t (n,), of which a share APART differs."""
    a = torch.sigmoid(MEAN + STD * torch.randn(n, device=device, generator=generator))
    b = torch.sigmoid(MEAN + STD * torch.randn(n, device=device, generator=generator))
    t = torch.maximum(a, b)
    apart = torch.rand(n, device=device, generator=generator) < APART
    return torch.where(apart, torch.minimum(a, b), t), t


def meanflow_loss(policy, obs, pos, K, generator):
    """The error of the average velocity u(x, r, t) against its identity's target.

    x = (1 - t) chunk + t noise and v = noise - chunk. The derivative of u along the path comes
    from one forward-mode pass. Each sample's mean squared error is weighted by its own inverse root
    (Sec. 4.3 of 2505.13447 with p = 1/2).
    """
    h, pos, noise = repeated(policy, obs, pos, K, generator)
    r, t = meanflow_times(len(pos), pos.device, generator)
    t_wide = t[:, None, None]
    r_wide = r[:, None, None]
    x = (1 - t_wide) * pos + t_wide * noise
    v = noise - pos

    def velocity(x, r, t):
        return network(policy, h, x, SLOW * t, SLOW * (t - r))

    tangents = (v, torch.zeros_like(r), torch.ones_like(t))
    u, dudt = torch.func.jvp(velocity, (x, r, t), tangents)
    error = (u - meanflow_target(v, dudt, t_wide, r_wide)).square().mean((1, 2))
    return (error / (error.detach() + ADAPT) ** POWER).mean()


def meanflow_sample(policy, obs, z, generator):
    """One network evaluation: the noise less the average velocity from 0 to 1."""
    one = torch.full((), SLOW, device=z.device)
    return z - network(policy, policy.features(obs), z, one, one)


# ---- regression ---------------------------------------------------------------------------------


def bc_loss(policy, obs, pos, K, generator):
    """The mean squared error to the expert's chunk, from a latent of 0."""
    return (policy(obs, torch.zeros_like(pos)) - pos).square().mean()


def bc_sample(policy, obs, z, generator):
    """One network evaluation, with a latent of 0."""
    return policy(obs, torch.zeros_like(z))


LOSSES = {"diffusion": diffusion_loss, "meanflow": meanflow_loss, "bc": bc_loss}
SAMPLERS = {"diffusion": diffusion_sample, "meanflow": meanflow_sample, "bc": bc_sample}


def prepare(policy, nfe=None):
    """Give a policy the sampler of the method that it was trained by, and return it.

    nfe: the network evaluations an action; only diffusion has a choice. Raises BadInput if the
    method cannot act with that many.
    """
    if policy.method == "diffusion":
        if nfe is not None and not 1 <= nfe <= STEPS:
            raise BadInput(
                f"--nfe {nfe}: diffusion takes 1 to {STEPS} network evaluations an action"
            )
        if nfe is not None and STEPS // nfe * nfe < 0.9 * STEPS:
            raise BadInput(
                f"--nfe {nfe}: DDIM's steps of {STEPS // nfe} would leave out more than a tenth of "
                f"the {STEPS}: take 1 to 16, 20, 25, 33, 50 or {STEPS}"
            )
        scheduler(nfe or STEPS)
        policy.sampler = functools.partial(diffusion_sample, steps=nfe or STEPS)
    elif nfe not in (None, 1):
        raise BadInput(f"--nfe {nfe}: {policy.method} takes 1 network evaluation an action")
    else:
        policy.sampler = SAMPLERS.get(policy.method)
    return policy
