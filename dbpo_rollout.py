"""Stage 2's roll-out: the reward of a chunk, the buffer, and how it is filled (Eq. 47).

To change what PPO is paid for, change reward_of. Everything random comes from one generator, and
every number of a roll-out is kept once. A buffer is a dict of tensors, time first (S, N, ...); its
"obs" is a dict of observations by name.
"""

import time

import numpy as np
import torch

from dbpo_loss import add_past, log_prob
from vision import augmented

# ---- the reward ---------------------------------------------------------------------------------


def chunk_reward(rewards, reached, score, gamma):
    """The reward of a chunk from its primitive rewards (N, T_a), NaN after an end -> (N,).

    Where the task's score is a sum of rewards, it is their sum. Where it is the highest reward, it
    is what the chunk adds to the highest so far, reached (N,): over an episode these add up to the
    score (note 23). gamma discounts inside the chunk.
    """
    if score == "max":
        highest = np.fmax.accumulate(np.column_stack([reached, rewards]), axis=1)
        rewards = np.diff(highest)
    return np.nansum(rewards * gamma ** np.arange(rewards.shape[1]), axis=1)


def reward_of(stepped, task, args):
    """What PPO is given for a chunk: (N,). stepped: envs.Stepped.

    The chunk's own reward, and a bonus for ending an episode by success. Before the update all
    rewards are divided by the running deviation of the return (note 11).
    """
    reward = chunk_reward(stepped.rewards, stepped.reached, task.score, args.inner_gamma)
    return reward + args.success_bonus * (stepped.terminated & stepped.success)


# ---- the buffer ---------------------------------------------------------------------------------


def apply(f, tree):
    """f of every tensor in a dict that may hold dicts, such as a buffer."""
    return {k: apply(f, v) if isinstance(v, dict) else f(v) for k, v in tree.items()}


def take(tree, i):
    """The samples i (indices or a slice) of every tensor in a dict that may hold dicts."""
    return apply(lambda v: v[i], tree)


def leaves(tree):
    """All tensors of a dict that may hold dicts."""
    for v in tree.values():
        if isinstance(v, dict):
            yield from leaves(v)
        else:
            yield v


def make_buffer(policy, S, N, keep_encoder=False, device=None):
    """The tensors of a roll-out, each number once, time first (S, N, ...); pictures stay uint8.

    keep_encoder: features of pictures lie in their place. device: the policy's if None; "meta"
    takes no memory and tells how much would be.
    """

    def zeros(*size, dtype=torch.float32):
        return torch.zeros(S, N, *size, dtype=dtype, device=device or policy.device)

    obs = {
        name: zeros(policy.T_o, *spec["shape"], dtype=getattr(torch, spec["dtype"]))
        for name, spec in policy.specs.items()
    }
    if keep_encoder:
        obs |= {name: zeros(policy.T_o, C) for name, C in policy.frame_sizes.items()}
    return {
        "obs": obs,
        "progress": zeros(2),
        "z": zeros(policy.T_p, policy.D_a),
        "a": zeros(policy.T_a, policy.D_a),
        "ran": zeros(policy.T_a),
        "anchor": zeros(policy.T_p, policy.D_a),
        "log_prob": zeros(),
        "reward": zeros(),
        "ended": zeros(),
    }


def whole_buffer(buffer, n, ranks):
    """The buffer of all n simulators, of which this process has its rows: (S, N, ...) each."""
    if ranks.world == 1:
        return buffer
    return apply(lambda v: ranks.whole(v.transpose(0, 1), n).transpose(0, 1).contiguous(), buffer)


# ---- the roll-out -------------------------------------------------------------------------------


@torch.no_grad()
def collect(actor, critic, frozen, sims, buffer, task, args, generator):
    """Fill the buffer (Eq. 47): z, then a, both kept; only what the simulator gets is clipped.

    frozen: the Stage-1 policy that gives the anchor's chunks, or None. The noise is drawn for the
    simulators of all processes, of which these take their rows. Returns scores (S, N), those of
    the episodes that ended there and else NaN, and the seconds spent in the simulator. Raises
    FloatingPointError.
    """
    policy = actor.policy
    ranks = sims.ranks
    low = sims.env.single_action_space.low
    high = sims.env.single_action_space.high
    scores = np.full(buffer["reward"].shape, np.nan)
    simulator_s = 0.0

    def numbers(x):
        return torch.as_tensor(x, dtype=torch.float32, device=policy.device)

    for t in range(len(buffer["z"])):
        obs = policy.tensors(sims.obs)
        obs = augmented(obs, generator, shift=args.shift, n=sims.n, share=ranks.share)  # note 38
        if args.keep_encoder:
            obs = policy.seen(obs)
        buffer["progress"][t] = numbers(sims.progress())
        z = ranks.share(policy.latent(sims.n, generator=generator))
        if policy.method == "bc":
            z.zero_()  # regression acts with this latent
        mu, log_sigma = actor(obs, z)
        mu = policy.executed(mu)
        noise = torch.randn(sims.n, *mu.shape[1:], device=policy.device, generator=generator)
        a = mu + log_sigma.exp() * (actor.mix @ ranks.share(noise))  # Eqs. 12, 46
        chunk = np.clip(policy.norm_action.inverse(a).cpu().numpy(), low, high)
        if not np.isfinite(chunk).all():  # simulators may crash on it
            raise FloatingPointError("the policy's actions are not finite")
        t0 = time.perf_counter()
        stepped = sims.step(chunk)
        simulator_s += time.perf_counter() - t0

        ran = numbers(stepped.ran)
        for name, y in obs.items():
            buffer["obs"][name][t] = y
        buffer["z"][t] = z
        buffer["a"][t] = a
        buffer["ran"][t] = ran
        buffer["log_prob"][t] = log_prob(a, mu, log_sigma, ran, actor.mix)
        buffer["reward"][t] = numbers(reward_of(stepped, task, args))
        ended = stepped.terminated | stepped.truncated
        buffer["ended"][t] = numbers(ended)
        scores[t, ended] = stepped.scores

    after = critic(policy.tensors(sims.obs), numbers(sims.progress()))
    add_past(buffer)
    add_values(buffer, critic, after, args.minibatch_size)
    if frozen is not None:
        add_anchor(buffer, frozen, args.minibatch_size)
    return scores, simulator_s


def pieces(tree, size):
    """A buffer's samples, flattened over time and simulators, `size` at a time."""
    flat = apply(lambda v: v.flatten(0, 1), tree)
    for start in range(0, len(next(leaves(flat))), size):
        yield take(flat, slice(start, start + size))


def add_values(buffer, critic, after, size):
    """Fill in V of every observation, and of the one that followed: 0 after an end (note 22).

    after (N,): the values of what is seen after the last step. size: samples at a time.
    """
    tree = {"obs": buffer["obs"], "progress": buffer["progress"]}
    values = [critic(piece["obs"], piece["progress"]) for piece in pieces(tree, size)]
    buffer["value"] = torch.cat(values).view_as(buffer["reward"])
    buffer["next_value"] = torch.cat([buffer["value"][1:], after[None]]) * (1 - buffer["ended"])


def add_anchor(buffer, frozen, size):
    """Fill in the chunks of the frozen policy for the same observations and latents (Eq. 54)."""
    tree = {"obs": buffer["obs"], "z": buffer["z"]}
    chunks = [frozen(piece["obs"], piece["z"]) for piece in pieces(tree, size)]
    buffer["anchor"].flatten(0, 1).copy_(torch.cat(chunks))
