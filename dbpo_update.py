"""Stage 2's update: advantages of a buffer, then epochs of minibatches for critic and actor.

The losses are in dbpo_loss.py. Under torchrun each process takes a share of every minibatch, and
the update is that of one process (ranks.py).
"""

import torch
from torch import nn

from dbpo_loss import gae
from dbpo_rollout import apply, take
from ranks import ALONE
from saves import first_not_finite


def update(
    module,
    opt,
    loss_of,
    buffer,
    *,
    epochs,
    batch,
    max_grad_norm,
    generator,
    ranks=ALONE,
):
    """Epochs of minibatches over the buffer, for the actor or the critic.

    loss_of maps a minibatch to (loss, detached figures). ranks: the processes, which hold the same
    buffer and share each minibatch. Figures are copied to the host once. Returns their means over
    the last epoch, and those of the first minibatch, before any step. Raises FloatingPointError if
    a loss or a gradient was not finite.
    """
    flat = apply(lambda v: v.flatten(0, 1), buffer)
    n = len(flat["z"])
    first = None
    finite = []  # of each minibatch, a number that is finite if its loss and its gradient are
    for _ in range(epochs):
        seen = []
        weights = []
        for i in torch.randperm(n, device=flat["z"].device, generator=generator).split(batch):
            rows = ranks.share(i)
            if not len(rows):
                rows = i[:1]  # a process without a row joins in with one, whose weight is 0
            loss, now = loss_of(take(flat, rows))
            ranks.backward(loss, len(i))
            grad = nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
            finite.append(loss.detach() + grad)
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen.append(torch.stack(list(now.values())))
            weights.append(ranks.weight(len(i)))
        names = list(now)
        if first is None:
            first = over_processes(seen[:1], weights[:1], names, ranks)[0]
    last = over_processes(seen, weights, names, ranks).mean(0)
    bad = first_not_finite(ranks.total(torch.stack(finite)).unbind())
    if bad is not None:
        name = type(module).__name__.lower()
        raise FloatingPointError(
            f"the {name}'s loss or gradient was not finite at update {bad + 1}"
        )
    return dict(zip(names, last.tolist())), dict(zip(names, first.tolist()))


def over_processes(seen, weights, names, ranks):
    """Figures of minibatches, of this process's rows -> of the rows of all: (minibatches, figures).

    weights: what its rows count in each minibatch. All figures are means, but `off` is the largest.
    """
    here = torch.stack(seen)
    every = ranks.total(here * torch.tensor(weights, device=here.device)[:, None])
    if "off" in names:
        off = names.index("off")
        every[:, off] = ranks.largest(here[:, off])
    return every


def advantages(buffer, scale, args):
    """Scale the rewards, fill in returns and normalised advantages. Returns two figures.

    The critic's targets have a lambda of their own (note 24).
    """
    ended = buffer["ended"]
    std = scale.update(buffer["reward"].cpu().numpy(), ended.cpu().numpy())
    buffer["reward"] /= std  # note 11
    known = [buffer[k] for k in ("reward", "value", "next_value", "ended")]
    buffer["return"] = gae(*known, args.gamma, args.critic_lambda) + buffer["value"]
    advantage = gae(*known, args.gamma, args.gae_lambda)
    buffer["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    left = (buffer["return"] - buffer["value"]).var()
    explained = 1 - left / buffer["return"].var().clamp_min(1e-12)
    return {"explained": explained.item(), "reward_scale": std}
