"""The policy: normalisers, encoder and generator in one module, and its checkpoint file.

One forward pass of the generator maps (o, z) to an action chunk (arXiv 2604.03540, Eqs. 6, 7, 22).
Both trainers, the evaluator and the robot loop use this class and read the same file.

An observation is a dict of named tensors (B, T_o, ...) in the data's own units. A checkpoint says
which names, shapes and dtypes it takes.
"""

import torch
from torch import nn

from commands import BadInput
from encoders import Encoder
from files import load_torch, not_finite, save_torch
from unet import UNet1d
from vision import KINDS, POOLS

FORMAT = "drift-policy-2"
LONGEST = 2**16  # steps of a chunk, numbers of an action or an observation, channels of a level
LISTS = {"dims": 8, "shape": 3}  # how many numbers they hold at most
VISION = ("encoder", "pool", "crop", "shared")  # what a shape with cameras says of their encoders
NO_RANGE = 1e-4  # below it, in the data's units, a coordinate is not scaled (note 29)


class Normalizer(nn.Module):
    """A min-max map to [-1, 1] per coordinate; what is almost constant is only centred (note 29).

    lo, hi (D,): the bounds of the data. They are buffers, never parameters: no optimiser may move
    them.
    """

    def __init__(self, lo, hi):
        super().__init__()
        self.register_buffer("lo", torch.as_tensor(lo, dtype=torch.float32).clone())
        self.register_buffer("hi", torch.as_tensor(hi, dtype=torch.float32).clone())

    def _affine(self):
        half = (self.hi - self.lo) / 2
        noise = half <= 1e-6 * (1 + self.lo.abs())  # float32's, on a constant of any size
        constant = noise | (self.hi - self.lo < NO_RANGE)
        return (self.hi + self.lo) / 2, torch.where(constant, torch.ones_like(half), half)

    def forward(self, y):
        """y (..., D) in data units -> normalised."""
        mid, half = self._affine()
        return (y - mid) / half

    def inverse(self, y):
        """y (..., D), normalised -> data units."""
        mid, half = self._affine()
        return y * half + mid


def bounds(y):
    """The minimum and the maximum (D,) of y (..., D) over all axes but the last."""
    y = y.flatten(0, -2)
    return y.amin(0), y.amax(0)


def data_ranges(obs, action, limits=None):
    """The ranges that a Policy normalises by, from all data: obs {name: (N, ...)}, action (N, D_a).

    Pictures have none: their encoder scales them. limits: as Task.limits, ranges that go before the
    data's. Raises BadInput if numbers are so large that their range is not finite as float32.
    """
    numbers = {name: bounds(y) for name, y in obs.items() if y.dtype != torch.uint8}
    numbers["action"] = bounds(action)
    for name, given in (limits or {}).items():
        fixed = torch.stack([torch.as_tensor(bound) for bound in given]).to(numbers[name][0])
        lo, hi = torch.where(fixed.isnan(), torch.stack(numbers[name]), fixed)
        numbers[name] = (lo, hi)
    for name, (lo, hi) in numbers.items():
        if not ((hi - lo).isfinite() & (hi + lo).isfinite()).all():
            raise BadInput(
                f"{name} has numbers from {lo.min():g} to {hi.max():g}: too large for float32, "
                "give them in another unit"
            )
    return {"action": numbers.pop("action"), "obs": numbers}


class Policy(nn.Module):
    """A one-step policy; or one of another method on the same network, with its own sampler.

    shape: a dict of task, obs ({name: {"shape", "dtype"}}), D_a, T_o, T_p, T_a, dims; and, where
    it is not DBP's (baselines.py), method and time_dim, the numbers that join the condition; and,
    where it has cameras, what vision_of() of encoders.py gives.
    ranges: see data_ranges(); zeros if not given, for weights that are about to be loaded.
    """

    def __init__(self, shape, ranges=None):
        super().__init__()
        self.shape = {**shape, "dims": list(shape["dims"])}
        self.task = shape["task"]
        self.specs = shape["obs"]
        self.D_a = shape["D_a"]
        self.T_o = shape["T_o"]
        self.T_p = shape["T_p"]
        self.T_a = shape["T_a"]
        self.method = shape.get("method", "dbp")
        self.sampler = None  # how another method acts: see prepare() in baselines.py
        self.z_scale = 1.0  # below 1, `act` draws latents nearer to 0: less varied chunks

        ranges = ranges or {"obs": {}, "action": 2 * [torch.zeros(self.D_a)]}
        self.norm_obs = nn.ModuleDict()
        self.norm_action = Normalizer(*ranges["action"])
        try:
            for name, spec in self.specs.items():
                if spec["dtype"] != "uint8":
                    zeros = torch.zeros(spec["shape"][-1])
                    self.norm_obs[name] = Normalizer(*ranges["obs"].get(name, (zeros, zeros)))
            shapes = {name: tuple(spec["shape"]) for name, spec in self.specs.items()}
            vision = {k: shape[k] for k in VISION if k in shape}
            self.encoder = Encoder(shapes, self.T_o, **vision)
            cond_dim = self.encoder.size + shape.get("time_dim", 0)
            self.net = UNet1d(self.D_a, cond_dim, shape["dims"])
            self.net.check_horizon(self.T_p)
        except ValueError as e:
            raise BadInput(str(e)) from e
        except (KeyError, IndexError) as e:  # torch's own refusal of a name such as "a.b" or "keys"
            raise BadInput(f"observations {self.specs}: a name or a shape cannot be used") from e

    @property
    def device(self):
        """The torch device that the policy is on."""
        return self.norm_action.lo.device

    # ---- observations ---------------------------------------------------------------------------

    @property
    def frame_sizes(self):
        """{camera: the number C of a frame's features}."""
        return self.encoder.frame_sizes

    @torch.inference_mode()
    def encoded(self, name, frame):
        """A camera's frame (H, W, 3) -> its features (C,), both numpy arrays.

        An observation may hold the features (B, T_o, C) of a camera's frames instead of the frames:
        a robot sees each of them many times, but encodes it once.
        """
        frames = torch.as_tensor(frame, device=self.device)[None]
        return self.encoder.of_frames(name, frames)[0].cpu().numpy()

    def keep_cameras(self):
        """Keep the cameras' encoders as they are from now on."""
        for camera in self.encoder.cameras:
            camera.requires_grad_(False)

    @torch.no_grad()
    def seen(self, obs):
        """Observations {name: (B, T_o, ...)} with features in the place of all pictures."""
        features = self.encoder.of_cameras({name: obs[name] for name in self.frame_sizes})
        return obs | {name: y.unflatten(0, (-1, self.T_o)) for name, y in features.items()}

    def taken(self, obs):
        """{name: (T_o, ..., dtype)}: what it takes where it is given obs."""
        due = {}
        for name, spec in self.specs.items():
            due[name] = (self.T_o, *spec["shape"], spec["dtype"])
            if name in self.frame_sizes and name in obs and obs[name].ndim == 3:
                due[name] = (self.T_o, self.frame_sizes[name], "float32")
        return due

    def tensors(self, obs):
        """Observations {name: numpy array} as tensors on its device; pictures stay uint8."""
        return {
            name: torch.as_tensor(obs[name], dtype=getattr(torch, due[-1]), device=self.device)
            for name, due in self.taken(obs).items()
        }

    def check(self, obs):
        """Refuse observations of other names, shapes or dtypes than its own. Raises BadInput."""
        given = {name: (*y.shape[1:], str(y.dtype)[6:]) for name, y in obs.items()}
        taken = self.taken(obs)
        if given != taken:
            raise BadInput(
                f"observations {show(given)} do not fit this policy, which takes {show(taken)}"
            )

    def features(self, obs):
        """The observation history {name: (B, T_o, ...)} in data units -> the condition (B, C)."""
        self.check(obs)
        return encode(obs, self.norm_obs, self.encoder)

    # ---- generation -----------------------------------------------------------------------------

    def latent(self, *size, generator=None):
        """z ~ N(0, I) of shape (*size, T_p, D_a) (note 6)."""
        return torch.randn(*size, self.T_p, self.D_a, device=self.device, generator=generator)

    def forward(self, obs, z):
        """Eq. 6: z (B, T_p, D_a) or (B, K, T_p, D_a) -> normalised chunks of its shape."""
        return self.net(z, self.features(obs))

    def hypotheses(self, obs, K, *, generator=None):
        """Eq. 7: K chunks of each observation, from K latents: (B, K, T_p, D_a), normalised."""
        return self(obs, self.latent(batch_of(obs), K, generator=generator))

    @torch.inference_mode()
    def act(self, obs, z=None, *, generator=None):
        """A chunk of each observation, in action units: (B, T_p, D_a). z is drawn if not given."""
        if z is None:
            z = self.z_scale * self.latent(batch_of(obs), generator=generator)
        if self.sampler is not None:
            chunk = self.sampler(self, obs, z, generator)
        elif self.method == "dbp":
            chunk = self(obs, z)
        else:
            raise BadInput(
                f"a {self.method} policy acts by its sampler: see prepare() in baselines.py"
            )
        return self.norm_action.inverse(chunk)

    def set_executed(self, T_a):
        """Execute T_a steps of each chunk from now on. Raises BadInput if Eq. 23 forbids it."""
        if T_a < 1 or self.T_o - 1 + T_a > self.T_p:
            raise BadInput(
                f"T_a {T_a} with T_o {self.T_o}, T_p {self.T_p} breaks 1 <= T_a <= T_p - T_o + 1 "
                "(Eq. 23)"
            )
        self.T_a = T_a
        self.shape["T_a"] = T_a

    def executed(self, chunk):
        """Eq. 22: the slice that runs, (B, T_p, ...) -> (B, T_a, ...)."""
        return chunk[:, self.T_o - 1 : self.T_o - 1 + self.T_a]

    # ---- the checkpoint file --------------------------------------------------------------------

    def save(self, path, *, flags=None, ema=None, step=0):
        """Write the checkpoint atomically: shape, flags, weights with normalisers, EMA weights.

        Raises BadInput, and keeps the file that is there, if weights are not finite.
        """
        state = {
            "format": FORMAT,
            "shape": self.shape,
            "flags": flags or {},
            "step": step,
            "weights": self.state_dict(),
            "ema": ema or {},
        }
        bad = not_finite(state["weights"]) + not_finite(state["ema"])
        if bad:
            raise BadInput(
                f"step {step}: weights are not finite ({bad[0]}), so {path} is not written: begin "
                "again with a lower --lr"
            )
        save_torch(path, state)

    @classmethod
    def load(cls, path, device="cpu", *, ema=True, task=None):
        """Read a checkpoint without running code from it; its EMA weights by default.

        task: refuse a checkpoint of any other. Raises BadInput if the file is missing, damaged or
        not a policy, or if its weights are not finite. Returns the policy in eval mode and the
        checkpoint's flags.
        """
        state = load_torch(path)
        if not isinstance(state, dict) or not str(state.get("format")).startswith("drift-policy-"):
            raise BadInput(f"{path} is not a policy checkpoint: pass the ckpt.pt of a run folder")
        if state["format"] != FORMAT:
            raise BadInput(
                f"{path} has the format {one_word(state['format'])}, this version reads {FORMAT}: "
                "train again"
            )
        check_shape(state.get("shape"), path)
        weights = state.get("weights")
        averaged = state.get("ema")
        flags = state.get("flags")
        if not all(isinstance(part, dict) for part in (weights, averaged, flags)):
            raise BadInput(f"{path} lacks weights, ema or flags: take another checkpoint")
        with torch.device("meta"):  # as large as it claims to be, but without memory
            claimed = cls(state["shape"]).state_dict()
        check_weights(weights, claimed, path)
        check_weights({**weights, **averaged}, claimed, path)
        policy = cls(state["shape"])
        policy.load_state_dict({**weights, **(averaged if ema else {})})
        bad = not_finite(policy.state_dict())
        if bad:
            raise BadInput(
                f"{path}: {bad[0]} is not finite: take an earlier checkpoint, or train again "
                "with a lower --lr"
            )
        if task not in (None, policy.task):
            raise BadInput(
                f"{path} was trained on {policy.task}, not {task}: pass a checkpoint of {task}"
            )
        return policy.to(device).eval(), flags

    def check_task(self, task, path):
        """Refuse a task whose observations or actions are not what was trained on. BadInput."""
        for what, taken, offered in (
            ("observations", self.specs, task.specs),
            ("actions", self.D_a, task.D_a),
        ):
            if taken != offered:
                raise BadInput(
                    f"{path} takes {what} {taken}, but {task.name} has {offered}: "
                    "train again on this version of the task"
                )


# ---- what a checkpoint says of itself -----------------------------------------------------------


def check_shape(shape, path):
    """Refuse a description that no policy of this project has. Raises BadInput.

    The file may be damaged, or made to do harm: its types and sizes are looked at before anything
    is built by it.
    """
    try:
        fits = (
            isinstance(shape, dict)
            and all(is_name(name) for name in (shape["task"], shape.get("method", "dbp")))
            and all(is_size(shape[k]) for k in ("D_a", "T_o", "T_p", "T_a"))
            and shape["T_o"] - 1 + shape["T_a"] <= shape["T_p"]
            and are_sizes(shape["dims"], LISTS["dims"])
            and (shape.get("time_dim", 0) == 0 or is_size(shape["time_dim"]))
            and isinstance(shape["obs"], dict)
            and len(shape["obs"]) > 0
            and all(is_name(name) for name in shape["obs"])
            and all(are_sizes(spec["shape"], LISTS["shape"]) for spec in shape["obs"].values())
            and all(
                spec["dtype"] == ("uint8" if len(spec["shape"]) == 3 else "float32")
                for spec in shape["obs"].values()
            )
            and shape.get("encoder", "small") in KINDS
            and shape.get("pool", "softmax") in POOLS
            and isinstance(shape.get("shared", False), bool)
            and isinstance(shape.get("crop", {}), dict)
            and all(is_name(name) for name in shape.get("crop", {}))
            and all(are_sizes(v, 2) and len(v) == 2 for v in shape.get("crop", {}).values())
        )
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
        fits = False  # what is indexed may be of any type, also a tensor
    if not fits:
        raise BadInput(
            f"{path} does not describe a policy of this project ({one_word(shape)}): take another "
            "checkpoint"
        )


def is_name(value):
    """Whether a value is a short text of printable characters."""
    return isinstance(value, str) and 1 <= len(value) <= 100 and value.isprintable()


def is_size(value):
    """Whether a value is a whole number from 1 to LONGEST; True is none."""
    return type(value) is int and 1 <= value <= LONGEST


def are_sizes(values, most):
    """Whether a value is a list of 1 to `most` sizes."""
    return (
        isinstance(values, (list, tuple))
        and 1 <= len(values) <= most
        and all(is_size(v) for v in values)
    )


def check_weights(weights, claimed, path):
    """Refuse weights {name: tensor} unless they are as the description claims. Raises BadInput.

    claimed: {name: tensor without memory}. A tensor that repeats one number, so that it takes more
    memory than the file, is refused.
    """
    for name in [*claimed, *(name for name in weights if name not in claimed)]:
        there = weights.get(name)
        due = claimed.get(name)
        if not (
            isinstance(there, torch.Tensor)
            and due is not None
            and there.layout == torch.strided
            and there.shape == due.shape
            and there.dtype == due.dtype
            and there.is_contiguous()
        ):
            raise BadInput(
                f"{path}: its weights do not fit its own description ({one_word(name)}): it is "
                "damaged, or was made by another version"
            )


def one_word(value):
    """A value from a file for an error message, of 200 characters at most."""
    return str(value)[:200]


def encode(obs, norms, encoder):
    """Observations {name: (B, T_o, ...)} in data units -> features (B, encoder.size)."""
    return encoder({k: norms[k](y) if k in norms else y for k, y in obs.items()})


def batch_of(obs):
    """The batch size B of observations {name: (B, ...)}."""
    return len(next(iter(obs.values())))


def show(specs):
    """Names, shapes and dtypes for an error message: "state (2, 20) float32, ..."."""
    return ", ".join(f"{k} {tuple(map(int, v[:-1]))} {v[-1]}" for k, v in specs.items()) or "none"


class EMA:
    """The moving average of parameters, with the decay min(largest, 1 - (1 + n) ** -power)."""

    def __init__(self, module, largest, power):
        self.names, self.params = zip(*module.named_parameters())
        self.mean = [p.detach().clone() for p in self.params]
        self.largest = largest
        self.power = power

    @torch.no_grad()
    def update(self, n):
        """Take the parameters in after step n."""
        decay = min(self.largest, 1 - (1 + n) ** -self.power)
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.params], 1 - decay)

    def state_dict(self):
        """{name: averaged parameter}."""
        return dict(zip(self.names, self.mean))

    def load_state_dict(self, state):
        """Go on from what state_dict() gave."""
        for name, mean in zip(self.names, self.mean):
            mean.copy_(state[name])
