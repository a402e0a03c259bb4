"""A training on disk: saved every few minutes and after Ctrl-C, brought back by --resume.

  ckpt.pt    the policy, with all weights that it acts by
  state.pt   the rest that --resume needs: counters, the optimisers' moments, episodes

The two are of the same step. A kill at any moment leaves such a pair (`write`), and what is brought
back is checked first, so that a damaged file is refused in one line.
"""

import contextlib
import math
import os
import signal
import threading
import time
from pathlib import Path

import torch

from commands import RESUMABLE, BadInput, lacks_memory, one_line, stop
from files import load_torch, save_torch
from runs import claim

# ---- the run folder ------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(args, ranks):
    """Inside the `with` the run folder args.out is ours: the first process holds its lock.

    A folder that was made for a run that then could not begin is removed again. Raises BadInput.
    """
    if not ranks.first:
        yield
        return
    out = Path(args.out)
    new = not os.path.exists(out)
    with claim(args):
        try:
            yield
        except BaseException:
            if new and [p.name for p in out.iterdir()] == [".lock"]:
                (out / ".lock").unlink()
                out.rmdir()
            raise


def write(out, step, write_policy, state):
    """Write ckpt.pt and state.pt of a step; a kill in between leaves a pair, old or new.

    write_policy(path) writes the policy. It goes to a file named by the step; then state.pt is
    replaced, which decides the step that --resume goes on from; then the policy becomes ckpt.pt.
    Raises BadInput, and keeps the pair that is there, if something cannot be written.
    """
    pending = _pending(out, step)
    write_policy(pending)
    try:
        save_torch(out / "state.pt", {**state, "step": step})
    except BadInput:
        pending.unlink()
        raise
    os.replace(pending, out / "ckpt.pt")
    for left in out.glob(_pending("", "*").name):  # of a kill
        left.unlink()


def _pending(out, step):
    """Where the policy of a step lies until state.pt is of that step, too."""
    return Path(out) / f".ckpt-{step}.pt"


def policy_of(out, state, device):
    """The content of the ckpt.pt that belongs to a state.pt. Raises BadInput if it is not there."""
    path = _pending(out, state["step"])
    if not path.is_file():
        path = Path(out) / "ckpt.pt"
    found = load_torch(path, device)
    if (found["step"], found["flags"]) != (state["step"], state["flags"]):
        raise BadInput(
            f"{path} is not the policy that {out}/state.pt was written with: put that back, or "
            "begin in another folder with --out"
        )
    return found


class Timer:
    """Tells when `minutes` have passed since the last save, or since the beginning."""

    def __init__(self, minutes):
        self.minutes = minutes
        self.restart()

    def restart(self):
        """Count from now."""
        self.last = time.monotonic()

    @property
    def due(self):
        """Whether it is time to save."""
        return time.monotonic() - self.last >= 60 * self.minutes


# ---- Ctrl-C --------------------------------------------------------------------------------------


class Interrupts:
    """Ctrl-C inside the `with`: `asked` is set, and the step that runs is finished and saved.

    A second Ctrl-C ends the training at once, by KeyboardInterrupt. Where the system ignores
    Ctrl-C, as in a shell's background, it stays ignored.
    """

    NOTICE = b"\nCtrl-C: this step is finished and saved first; once more ends at once\n"

    def __init__(self, *, quiet=False):
        self.asked = False
        self.quiet = quiet
        self.can_break = False
        self.before = None

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _note(self, *_):
        if self.asked or self.can_break:
            raise KeyboardInterrupt
        self.asked = True
        if not self.quiet:
            os.write(2, self.NOTICE)  # a print could meet another one half done

    @contextlib.contextmanager
    def break_off(self):
        """Inside the `with` Ctrl-C breaks off what runs: an evaluation, which is done again."""
        self.can_break = True
        try:
            yield
        except KeyboardInterrupt:
            if self.asked:
                raise
            self.asked = True
        finally:
            self.can_break = False


def run_until_interrupted(train, args):
    """train(args); after Ctrl-C exit with code 130 and a line that says how to go on."""
    try:
        train(args)
    except KeyboardInterrupt:
        saved = args.out and (Path(args.out) / "state.pt").exists()
        line = RESUMABLE if saved else "interrupted; nothing was saved"
        stop(line if os.environ.get("RANK", "0") == "0" else None, 130)


# ---- numbers that are not finite -----------------------------------------------------------------


def first_not_finite(values):
    """The place of the first of some numbers () that is not finite, None if all are.

    It waits for the device once, however many there are.
    """
    for place, value in enumerate(torch.stack(values).tolist()):
        if not math.isfinite(value):
            return place
    return None


# ---- bringing back -------------------------------------------------------------------------------


@contextlib.contextmanager
def restoring(out):
    """What damaged content makes the code inside the `with` raise becomes a BadInput."""
    try:
        yield
    except BadInput:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        if lacks_memory(e):
            raise
        raise BadInput(
            f"{out}/state.pt or ckpt.pt holds what no run of this version wrote "
            f"({type(e).__name__}: {one_line(e)}): begin in another folder with --out"
        ) from e


def counter(state, name, least=0):
    """A whole number of a state.pt. Raises ValueError if it is none, or out of range."""
    value = state[name]
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{name} is no whole number from {least} on")
    return value


def number(state, name, least=0.0):
    """A real number of a state.pt. Raises ValueError if it is none, not finite or below `least`."""
    value = state[name]
    if type(value) not in (int, float) or not least <= value < math.inf:
        raise ValueError(f"{name} is no finite number from {least:g} on")
    return float(value)


def check_like(found, wanted, name):
    """Refuse tensors {key: tensor} of other keys, shapes or dtypes than wanted. ValueError.

    Numbers that are not finite are refused, too. name: what the tensors are called in the message.
    """
    if not isinstance(found, dict) or set(found) != set(wanted):
        raise ValueError(f"{name} has other entries than this run")
    for key, tensor in found.items():
        check_tensor(tensor, wanted[key].shape, wanted[key].dtype, f"{name}, {key},")


def check_tensor(tensor, shape, dtype, name):
    """Refuse what is no tensor of that shape and dtype, of finite numbers. Raises ValueError."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise ValueError(f"{name} is no tensor")
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} of {tensor.dtype}, not {tuple(shape)} of {dtype}"
        )
    if dtype.is_floating_point and not tensor.isfinite().all():
        raise ValueError(f"{name} is not finite")


def moments(opt):
    """An Adam's state without its settings, which are flags: {parameter's number: tensors}."""
    return opt.state_dict()["state"]


def restore_moments(opt, saved):
    """Go on from what moments() gave. Raises ValueError if it is not of these parameters."""
    plain = opt.state_dict()
    params = [p for group in opt.param_groups for p in group["params"]]
    if not isinstance(saved, dict) or set(saved) not in (set(), set(range(len(params)))):
        raise ValueError("the optimiser's moments are of other parameters")
    for i, entry in saved.items():
        wanted = {"step": torch.zeros(()), "exp_avg": params[i], "exp_avg_sq": params[i]}
        check_like(entry, wanted, f"moments of parameter {i}")
    opt.load_state_dict({**plain, "state": saved})
