"""The processes that torchrun starts for one training, which make one and the same update.

  torchrun --nproc-per-node 2 dbp_train.py --task pusht

The rows of a batch are dealt out: process r of W takes the rows r, r + W, r + 2 W, ... Every
process draws the noise of the whole batch from the same seed and takes its rows of it. Means and
gradients go over the rows of all, so that W processes train as one does, up to rounding. Without
torchrun there is one process, and nothing is sent.
"""

import contextlib
import functools
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from commands import BadInput

PATIENCE = timedelta(days=7)  # the others wait while the first evaluates; torchrun sees who died


@dataclass(frozen=True)
class Ranks:
    """The processes of a training: their number, the world, and which of them this one is."""

    rank: int = 0
    world: int = 1

    @property
    def first(self):
        """Whether this process writes the run folder, evaluates and prints."""
        return self.rank == 0

    # ---- rows -----------------------------------------------------------------------------------

    def share(self, rows):
        """This process's rows of a tensor, an array or a list."""
        return rows[self.rank :: self.world]

    def size(self, n):
        """How many of n rows this process has."""
        return len(range(self.rank, n, self.world))

    def weight(self, n):
        """What a mean over this process's rows counts in the mean over all n rows."""
        return self.size(n) / n

    def whole(self, rows, n):
        """The n rows of all processes, of which this one has the tensor rows (size(n), ...)."""
        if self.world == 1:
            return rows
        every = rows.new_zeros(n, *rows.shape[1:])
        self.share(every).copy_(rows)
        return self.total(every)

    def gathered(self, rows):
        """The list of the rows of all processes, of which this one has the list `rows`."""
        if self.world == 1:
            return rows
        parts = [None] * self.world
        dist.all_gather_object(parts, rows)
        n = sum(map(len, parts))
        return [parts[i % self.world][i // self.world] for i in range(n)]

    # ---- numbers --------------------------------------------------------------------------------

    def total(self, y):
        """The sum of a tensor over the processes; in one process it is the tensor itself."""
        return self._reduced(y, dist.ReduceOp.SUM)

    def largest(self, y):
        """The largest of each of a tensor's numbers over the processes."""
        return self._reduced(y, dist.ReduceOp.MAX)

    def _reduced(self, y, how):
        if self.world > 1:
            y = y.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(y, how)
        return y

    def any(self, here):
        """Whether something is so in any process, of which `here` says whether it is in this."""
        if self.world == 1:
            return here
        return bool(self.largest(torch.tensor(float(here))))

    def agreed(self, number):
        """The first process's number, which may depend on its clock, in all processes."""
        if self.world == 1:
            return number
        mine = torch.tensor(float(number), dtype=torch.float64)
        dist.broadcast(mine, 0)
        return type(number)(mine.item())

    # ---- gradients ------------------------------------------------------------------------------

    def sharing(self, module, loss_of):
        """loss_of(module, ...) -> (loss, figures), as a function of what follows the module.

        After `backward` of its loss the module's gradients are those of the rows of all processes.
        """
        if self.world == 1:
            return functools.partial(loss_of, module)
        return DistributedDataParallel(
            Loss(module, loss_of), broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def backward(self, loss, n):
        """Add the gradients of the mean over n rows; loss: the mean over this process's rows.

        DistributedDataParallel takes the mean over the processes, however many rows each has.
        """
        if self.world > 1:
            loss = loss * (self.world * self.weight(n))
        loss.backward()

    # ---- beginning and end ----------------------------------------------------------------------

    @contextlib.contextmanager
    def joined(self, device):
        """Inside the `with` the processes can talk. What lies on the host goes by gloo."""
        if self.world == 1:
            yield
            return
        gpu = device.startswith("cuda")
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
        yield
        dist.destroy_process_group()  # not after an exception, when others may not answer


ALONE = Ranks()


class Loss(nn.Module):
    """A module in another whose forward pass is its loss, as DistributedDataParallel needs it."""

    def __init__(self, module, loss_of):
        super().__init__()
        self.module = module
        self.loss_of = loss_of

    def forward(self, *args, **kw):
        """(loss, figures)."""
        return self.loss_of(self.module, *args, **kw)


def of_torchrun(args):
    """The Ranks that torchrun started, or one process. On GPUs args.device becomes this rank's.

    It comes before anything else touches CUDA, which would take memory of the first GPU in every
    process. Raises BadInput if the environment is not as torchrun sets it.
    """
    world = whole_number("WORLD_SIZE", 1)
    rank = whole_number("RANK", 0)
    if world < 1 or not 0 <= rank < world:
        raise BadInput(f"RANK {rank} of WORLD_SIZE {world}: use torchrun, or unset both")
    if world > 1:
        for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise BadInput(f"WORLD_SIZE is {world} without {name}: use torchrun, or unset it")
        if args.device.startswith("cuda"):
            args.device = f"cuda:{whole_number('LOCAL_RANK', 0)}"
            set_gpu(args.device)
    return Ranks(rank, world)


def set_gpu(device):
    """Make a GPU the one that torch takes where none is named. Raises BadInput."""
    try:
        torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise BadInput(
            f"{device} cannot be used here ({reason}): start no more processes than there are GPUs"
        ) from e


def whole_number(name, otherwise):
    """An environment variable as a whole number; `otherwise` if it is not set. BadInput."""
    text = os.environ.get(name, otherwise)
    try:
        return int(text)
    except ValueError as e:
        raise BadInput(f"{name}={text} is not a whole number: use torchrun, or unset it") from e
