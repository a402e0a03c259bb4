"""policy.py: the normalisers, observations by name, one network call an action, the executed slice,
and checkpoints good and bad."""

import math
import os
import pickletools
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import policy as module
from commands import BadInput
from envs import TASKS
from evaluate import count_calls
from files import load_torch, save_torch
from policy import FORMAT, Normalizer, Policy, bounds, data_ranges

SHAPE = {
    "task": "pusht",
    "obs": {"state": {"shape": [20], "dtype": "float32"}},
    "D_a": 2,
    "T_o": 2,
    "T_p": 16,
    "T_a": 8,
    "dims": [8, 16],
}


def specs(**shapes):
    """Observations of float32 by their shapes, as a checkpoint keeps them."""
    return {name: {"shape": list(shape), "dtype": "float32"} for name, shape in shapes.items()}


def spans(low, high, D):
    """Bounds (D,) of low and high in every coordinate."""
    return torch.full((D,), float(low)), torch.full((D,), float(high))


def policy(seed=0, **change):
    """A small policy with random weights; observations in -3..5, actions in 0..512."""
    torch.manual_seed(seed)
    shape = {**SHAPE, **change}
    obs = {name: spans(-3, 5, spec["shape"][-1]) for name, spec in shape["obs"].items()}
    return Policy(shape, {"obs": obs, "action": spans(0, 512, shape["D_a"])}).eval()


def observations(p, B=5, seed=1):
    """Random observations that a policy takes: {name: (B, T_o, ...)}."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(B, p.T_o, *spec["shape"], generator=g) for name, spec in p.specs.items()
    }


class Brightness(nn.Module):
    """In the place of the encoder: the mean of the pixels, and the state as it is."""

    frame_sizes = {}

    def __init__(self, shapes, T_o):
        super().__init__()
        self.size = T_o * (1 + shapes["state"][0])

    def forward(self, obs):
        assert obs["camera"].dtype == torch.uint8
        mean = obs["camera"].float().mean((2, 3, 4)) / 255
        return torch.cat([mean[..., None], obs["state"]], -1).flatten(1)


@pytest.fixture
def seeing(monkeypatch):
    """A policy that takes a camera's picture of 4 x 4 pixels beside a state of three numbers."""
    monkeypatch.setattr(module, "Encoder", Brightness)
    obs = {**specs(state=(3,)), "camera": {"shape": [4, 4, 3], "dtype": "uint8"}}
    ranges = {"obs": {"state": spans(-3, 5, 3)}, "action": spans(0, 512, 2)}
    return Policy({**SHAPE, "obs": obs}, ranges).eval()


# ---- the normaliser ------------------------------------------------------------------------------


def test_normalizer_by_hand():
    n = Normalizer([0.0, -2.0, 100.0], [10.0, 2.0, 300.0])
    y = torch.tensor([[0.0, -2, 100], [10, 2, 300], [5, 0, 200], [7.5, 1, 400]])
    assert n(y).tolist() == [[-1, -1, -1], [1, 1, 1], [0, 0, 0], [0.5, 0.5, 2]]
    assert n.inverse(torch.tensor([0.5, 0.5, 2])).tolist() == [7.5, 1, 400]
    y = torch.randn(4, 7, 3)
    torch.testing.assert_close(n.inverse(n(y)), y, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("constant, noise", [(0.0, 0.0), (7.0, 0.0), (-300.0, 3e-5), (0.0, 1e-9)])
def test_constant_dimension(constant, noise):
    """What is constant up to float32 noise maps to 0 and back; noise does not fill the range."""
    n = Normalizer(torch.tensor([0.0, constant]), torch.tensor([1.0, constant + noise]))
    y = torch.tensor([[0.5, constant], [1.0, constant + noise]])
    assert n(y)[:, 1].abs().max() < 1e-4
    torch.testing.assert_close(n.inverse(n(y)), y)
    assert n.inverse(torch.zeros(2))[1] == pytest.approx(constant, abs=1e-4)


@pytest.mark.parametrize("low, high, scaled", [(0.3, 0.30001, 0.1), (0.0, 0.9e-4, 0.9)])
def test_a_dimension_that_is_almost_constant_is_centred_and_not_scaled(low, high, scaled):
    """As in Diffusion Policy, a range below 1e-4 is not stretched to [-1, 1]. scaled: in 1e-4."""
    n = Normalizer([low, 0.0], [high, 1.0])
    y = torch.tensor([[low, 0.0], [high, 1.0]])
    assert n(y)[:, 0].tolist() == pytest.approx([-scaled / 2 * 1e-4, scaled / 2 * 1e-4], abs=1e-7)
    assert n(y)[:, 1].tolist() == [-1, 1]
    torch.testing.assert_close(n.inverse(n(y)), y)


@pytest.mark.parametrize("range_", [1.1e-4, 1e-3])
def test_narrow_dimension_is_not_constant(range_):
    n = Normalizer(torch.tensor([0.0]), torch.tensor([range_]))
    assert n(torch.tensor([range_])).item() == pytest.approx(1)


def test_statistics_are_buffers_and_copies():
    hi = torch.ones(2)
    n = Normalizer(torch.zeros(2), hi)
    hi.mul_(5)
    assert n.hi.tolist() == [1, 1]
    assert not list(n.parameters())
    assert set(n.state_dict()) == {"lo", "hi"}


def test_bounds_are_over_all_axes_but_the_last():
    cloud = torch.tensor([[[0.0, 5, 1], [2, 4, 1]], [[-3, 9, 1], [1, 6, 1]]])  # (2, 2, 3)
    low, high = bounds(cloud)
    assert low.tolist() == [-3, 4, 1]
    assert high.tolist() == [2, 9, 1]
    low, high = bounds(torch.tensor([[1.0, 2], [3, -4]]))
    assert (low.tolist(), high.tolist()) == ([1, -4], [3, 2])


def test_ranges_of_the_data():
    """Every name has its own range, a cloud one of x, y, z, a picture none."""
    obs = {
        "state": torch.tensor([[1.0, 2], [3, -4]]),
        "points": torch.tensor([[[0.0, 5, 1], [2, 4, 1]], [[-3, 9, 1], [1, 6, 1]]]),
        "camera": torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
    }
    ranges = data_ranges(obs, torch.tensor([[10.0], [20]]))
    assert set(ranges["obs"]) == {"state", "points"}
    assert [y.tolist() for y in ranges["obs"]["state"]] == [[1, -4], [3, 2]]
    assert [y.tolist() for y in ranges["obs"]["points"]] == [[-3, 4, 1], [2, 9, 1]]
    assert [y.tolist() for y in ranges["action"]] == [[10], [20]]


# ---- observations by name ------------------------------------------------------------------------


def test_one_normaliser_per_name():
    p = policy(obs=specs(state=(5,), points=(40, 3)))
    assert {name: len(n.lo) for name, n in p.norm_obs.items()} == {"state": 5, "points": 3}
    assert not [name for name, _ in p.named_parameters() if name.startswith("norm")]
    of = ("norm_obs.state", "norm_obs.points", "norm_action")
    assert {f"{n}.{end}" for n in of for end in ("lo", "hi")} <= set(p.state_dict())


def test_features_of_numbers_by_hand():
    """Each name is normalised by its own range; names stand side by side, frames one by one."""
    ranges = {
        "obs": {"arm": spans(0, 2, 3), "hand": spans(-10, 10, 1)},
        "action": spans(0, 1, 2),
    }
    p = Policy({**SHAPE, "obs": specs(arm=(3,), hand=(1,))}, ranges)
    obs = {
        "hand": torch.tensor([[[10.0], [-5.0]]]),
        "arm": torch.tensor([[[0.0, 1, 2], [3, 2, 1]]]),
    }
    assert p.features(obs).tolist() == [[-1, 0, 1, 1, 2, 1, 0, -0.5]]
    assert p.encoder.size == 8


@pytest.mark.parametrize(
    "obs",
    [
        specs(state=(5,), points=(40, 3)),
        specs(wrist=(30, 3), front=(40, 3)),
        specs(joints=(6,), wrist=(30, 3), gripper=(1,), front=(40, 3)),
        specs(joints=(6,), gripper=(1,)),
    ],
    ids=" ".join,
)
def test_any_names(obs, tmp_path):
    """A policy acts, saves and loads whatever its observations are called; all of them matter."""
    p = policy(obs=obs)
    given = observations(p)
    z = p.latent(5)
    chunk = p.act(given, z)
    assert chunk.shape == (5, 16, 2)
    assert p.hypotheses(given, 3).shape == (5, 3, 16, 2)
    other_order = dict(reversed(given.items()))
    assert torch.equal(p.act(other_order, z), chunk)
    for name, y in given.items():
        assert not torch.allclose(p.act({**given, name: -y}, z), chunk, atol=1e-3), name
    p.save(tmp_path / "ckpt.pt")
    loaded, _ = Policy.load(tmp_path / "ckpt.pt")
    assert loaded.specs == obs
    assert torch.equal(loaded.act(given, z), chunk)


def test_a_cloud_is_normalised_before_its_encoder():
    p = policy(obs=specs(state=(5,), points=(40, 3)))
    obs = observations(p)
    normalised = {name: (y + 3) / 4 - 1 for name, y in obs.items()}  # from -3..5
    torch.testing.assert_close(p.features(obs), p.encoder(normalised), atol=1e-5, rtol=1e-5)


def test_pictures_have_no_normaliser(seeing):
    """A camera's bytes go to the encoder as they are."""
    assert set(seeing.norm_obs) == {"state"}
    picture = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    picture[:, 1] = 255
    obs = {"camera": picture, "state": torch.ones(1, 2, 3)}
    assert seeing.features(obs).tolist() == [[0, 0, 0, 0, 1, 0, 0, 0]]
    assert seeing.act(obs).shape == (1, 16, 2)


def test_tensors(seeing):
    """Arrays become tensors of the policy's names and dtypes; pictures stay bytes."""
    arrays = {
        "camera": np.full((1, 2, 4, 4, 3), 200, np.uint8),
        "state": np.ones((1, 2, 3)),
        "of no use": np.zeros(1),
    }
    obs = seeing.tensors(arrays)
    assert {name: y.dtype for name, y in obs.items()} == {
        "camera": torch.uint8,
        "state": torch.float32,
    }
    assert (obs["camera"] == 200).all()
    assert seeing.act(obs).shape == (1, 16, 2)


CLOUD = specs(state=(5,), points=(40, 3))
FITS = {"state": torch.zeros(5, 2, 5), "points": torch.zeros(5, 2, 40, 3)}
MISFITS = {
    "a name is missing": {"state": FITS["state"]},
    "a name too many": {**FITS, "wrist": FITS["points"]},
    "another name": {"state": FITS["state"], "cloud": FITS["points"]},
    "another size": {**FITS, "state": torch.zeros(5, 2, 4)},
    "fewer points": {**FITS, "points": torch.zeros(5, 2, 39, 3)},
    "flat points": {**FITS, "points": torch.zeros(5, 2, 120)},
    "no history": {**FITS, "state": torch.zeros(5, 5)},
    "a longer history": {name: y.repeat_interleave(2, 1) for name, y in FITS.items()},
    "float64": {**FITS, "state": FITS["state"].double()},
    "bytes": {**FITS, "points": FITS["points"].byte()},
}


@pytest.mark.parametrize("why", MISFITS)
def test_a_checkpoint_refuses_other_observations(tmp_path, why):
    """The line tells what was given and what the policy takes."""
    policy(obs=CLOUD).save(tmp_path / "ckpt.pt")
    p, _ = Policy.load(tmp_path / "ckpt.pt")
    p.check(FITS)
    obs = MISFITS[why]
    for call in (p.check, p.features, p.act):
        with pytest.raises(BadInput) as e:
            call(obs)
        said = str(e.value)
        assert "\n" not in said
        assert "which takes state (2, 5) float32, points (2, 40, 3) float32" in said
        for name, y in obs.items():
            dtype = str(y.dtype).removeprefix("torch.")
            assert f"{name} {tuple(y.shape[1:])} {dtype}" in said


@pytest.mark.parametrize("size", [(5, 20), (5, 1, 20), (5, 2, 19), (5, 3, 20)])
def test_misshapen_observations(size):
    with pytest.raises(BadInput, match=r"takes state \(2, 20\) float32"):
        policy().act({"state": torch.zeros(size)})
    with pytest.raises(BadInput, match="observations none do not fit"):
        policy().check({})


def test_check_task():
    """A task of the same name whose observations or actions have changed is refused."""
    pusht = TASKS["pusht"]
    p = policy()
    p.check_task(pusht, "ckpt.pt")
    for change, word in (
        ({"obs": {"state": (21,)}}, "observations"),
        ({"obs": {"keypoints": (20,)}}, "observations"),
        ({"obs": {"state": (20,), "points": (40, 3)}}, "observations"),
        ({"obs": {"state": (20, 1, 1)}}, "uint8"),
        ({"D_a": 3}, "actions 2, but pusht has 3"),
    ):
        with pytest.raises(BadInput, match=f"ckpt.pt takes .*{word}.*train again") as e:
            p.check_task(replace(pusht, **change), "ckpt.pt")
        assert "\n" not in str(e.value)
    two = {"joints": (6,), "gripper": (1,)}
    p = policy(obs=specs(gripper=(1,), joints=(6,)))
    p.check_task(replace(pusht, obs=two), "ckpt.pt")  # the order of the names is no matter


# ---- acting --------------------------------------------------------------------------------------


def test_executed_by_hand():
    """Eq. 22: with T_o = 2, T_p = 16, T_a = 8 the steps 1 to 8 of the chunk run."""
    steps = torch.arange(16.0).view(1, 16, 1).expand(3, 16, 2)
    assert policy().executed(steps)[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert policy().executed(steps).shape == (3, 8, 2)
    first = policy(T_o=1, T_p=4, T_a=4)
    assert first.executed(steps[:, :4])[0, :, 0].tolist() == [0, 1, 2, 3]
    third = policy(T_o=3, T_p=8, T_a=2)
    assert third.executed(steps[:, :8])[0, :, 0].tolist() == [2, 3]


def test_set_executed():
    p = policy()
    steps = torch.arange(16.0).view(1, 16, 1)
    for T_a in (1, 15):
        p.set_executed(T_a)
        assert p.executed(steps).flatten().tolist() == list(range(1, 1 + T_a))
    for T_a in (0, -1, 16):
        with pytest.raises(BadInput, match="Eq. 23"):
            p.set_executed(T_a)
    assert p.T_a == p.shape["T_a"] == 15


def test_one_network_call():
    """Eqs. 6 and 7: an action, or K of them, are one call of the network."""
    p = policy()
    shapes = []
    p.net.register_forward_hook(lambda net, args, out: shapes.append(tuple(args[0].shape)))
    obs = observations(p)
    assert p.act(obs).shape == (5, 16, 2)
    assert p.hypotheses(obs, 3).shape == (5, 3, 16, 2)
    assert p(obs, p.latent(5)).shape == (5, 16, 2)
    assert shapes == [(5, 16, 2), (5, 3, 16, 2), (5, 16, 2)]


@pytest.mark.parametrize("method", ["dbp", "bc"])
def test_forward_is_the_network_and_nothing_else(method):
    """It has no sampler, no scale of the latents, no unit of the actions."""
    p = policy(method=method)

    def sampler(*_):
        raise AssertionError("forward does not sample")

    p.sampler = sampler
    p.z_scale = 0.5
    obs = observations(p)
    for size in ((5,), (5, 3)):
        z = p.latent(*size)
        with count_calls(p.net) as calls:
            chunk = p(obs, z)
        assert calls.n == 1
        assert torch.equal(chunk, p.net(z, p.features(obs)))


def test_act_is_the_network_in_action_units():
    p = policy()
    obs = observations(p)
    z = p.latent(5, generator=torch.Generator().manual_seed(3))
    chunk = p.act(obs, z)
    with torch.no_grad():
        cond = ((obs["state"] + 3) / 4 - 1).flatten(1)  # (o - lo) / half - 1
        torch.testing.assert_close(chunk, (p.net(z, cond) + 1) * 256, atol=1e-2, rtol=1e-5)
    assert torch.equal(chunk, p.act(obs, z))
    assert not chunk.requires_grad
    assert torch.equal(chunk, p.act(obs, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(chunk, p.act(obs))
    one = p.act({"state": obs["state"][2:3]}, z[2:3])[0]  # observations do not see one another
    torch.testing.assert_close(one, chunk[2], atol=1e-2, rtol=1e-4)


def test_the_scale_of_the_latents():
    """Latents that are drawn are scaled, one that is given is not."""
    p = policy()
    obs = observations(p)
    z = p.latent(5, generator=torch.Generator().manual_seed(3))
    chunk = p.act(obs, z)
    half = p.act(obs, 0.5 * z)
    p.z_scale = 0.5
    assert torch.equal(p.act(obs, generator=torch.Generator().manual_seed(3)), half)
    assert torch.equal(p.act(obs, z), chunk)


def test_hypotheses_differ_and_carry_gradients():
    p = policy()
    obs = observations(p, B=2)
    x = p.hypotheses(obs, 4, generator=torch.Generator().manual_seed(3))
    assert x.requires_grad
    assert (x[:, :1] - x[:, 1:]).abs().amax((-1, -2)).min() > 1e-3
    z = p.latent(2, 4, generator=torch.Generator().manual_seed(3))
    first = {"state": obs["state"][:1]}
    second = {"state": obs["state"][1:]}
    torch.testing.assert_close(p(second, z[1:, 2])[0], x[1, 2])  # K hypotheses are K passes
    assert not torch.allclose(p(first, z[1:, 2])[0], x[1, 2], atol=1e-4)  # each of its observation


@pytest.mark.parametrize(
    "change, word",
    [
        ({"T_p": 6, "dims": [8, 16, 16]}, "multiple of 4"),
        ({"T_p": 15}, "multiple of 2"),
        ({"dims": [8, 12]}, "multiple of 8"),
        ({"dims": []}, "multiple of 8"),
        ({"dims": [0]}, "multiple of 8"),
        ({"obs": specs(film=(4, 8, 8, 3))}, "film .* no encoder"),
    ],
)
def test_impossible_network(change, word):
    with pytest.raises(BadInput, match=word):
        policy(**change)


# ---- checkpoints ---------------------------------------------------------------------------------


def equal(a, b):
    """Whether two collections {name: tensor} are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def parameters(p):
    return {name: y.detach().clone() for name, y in p.named_parameters()}


def test_round_trip(tmp_path):
    """EMA and raw weights come back to the bit, with shape, normalisers and flags."""
    p = policy()
    other = policy(seed=1)
    path = tmp_path / "deep" / "ckpt.pt"
    p.save(path, flags={"seed": 7, "temp": [0.2]}, ema=parameters(other), step=12)
    raw, flags = Policy.load(path, ema=False)
    mean, _ = Policy.load(path, task="pusht")
    assert flags == {"seed": 7, "temp": [0.2]}
    assert raw.shape == p.shape
    assert not raw.training
    assert equal(raw.state_dict(), p.state_dict())
    assert equal(parameters(mean), parameters(other))
    assert torch.equal(mean.norm_obs["state"].hi, p.norm_obs["state"].hi)
    assert torch.equal(mean.norm_action.hi, p.norm_action.hi)
    assert (mean.T_o, mean.T_p, mean.T_a) == (2, 16, 8)
    obs = observations(p)
    z = p.latent(5)
    assert torch.equal(raw.act(obs, z), p.act(obs, z))
    assert torch.equal(mean.act(obs, z), other.act(obs, z))
    assert torch.load(path, weights_only=True)["step"] == 12  # it needs no unpickling
    p.save(path)  # no EMA: the raw weights
    assert equal(Policy.load(path)[0].state_dict(), p.state_dict())
    assert [q.name for q in path.parent.iterdir()] == ["ckpt.pt"]


CAMERAS = {
    **specs(joints=(3,)),
    "front": {"shape": [40, 36, 3], "dtype": "uint8"},
    "wrist": {"shape": [34, 34, 3], "dtype": "uint8"},
}
SEEN = {"front": [32, 32], "wrist": [32, 32]}
VISIONS = {
    "small": {"encoder": "small", "crop": SEEN, "shared": False},
    "small, shared": {"encoder": "small", "crop": SEEN, "shared": True},
    "small, whole pictures": {"encoder": "small"},
    "resnet18": {"encoder": "resnet18", "crop": SEEN, "shared": True, "pool": "softmax"},
    "resnet18, average": {"encoder": "resnet18", "crop": SEEN, "pool": "average"},
}


def with_cameras(seed=0, vision="small"):
    """A policy that sees two cameras and joints, with random weights."""
    torch.manual_seed(seed)
    ranges = {"obs": {"joints": spans(-3, 5, 3)}, "action": spans(0, 512, 2)}
    return Policy({**SHAPE, "obs": CAMERAS, **VISIONS[vision]}, ranges).eval()


def camera_observations(p, B=3):
    """Random observations of a policy with cameras, as arrays."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (B, p.T_o, *spec["shape"]))).astype(spec["dtype"])
        for name, spec in p.specs.items()
    }


@pytest.mark.parametrize("vision", VISIONS)
def test_round_trip_with_cameras(tmp_path, vision):
    """The checkpoint says which encoders there are; EMA weights of all of them come back."""
    p = with_cameras(0, vision)
    other = with_cameras(1, vision)
    path = tmp_path / "ckpt.pt"
    p.save(path, ema=parameters(other))
    raw, _ = Policy.load(path, ema=False)
    mean, _ = Policy.load(path)
    assert raw.shape == p.shape and equal(raw.state_dict(), p.state_dict())
    assert equal(parameters(mean), parameters(other))
    obs = p.tensors(camera_observations(p))
    z = p.latent(3)
    assert torch.equal(raw.act(obs, z), p.act(obs, z))
    assert torch.equal(mean.act(obs, z), other.act(obs, z))
    assert not torch.allclose(p.act(obs, z), other.act(obs, z))


def test_pictures_stay_bytes_up_to_their_encoder():
    p = with_cameras()
    obs = p.tensors(camera_observations(p))
    assert {name: y.dtype for name, y in obs.items() if name != "joints"} == {
        "front": torch.uint8,
        "wrist": torch.uint8,
    }
    seen = []
    for camera in p.encoder.cameras:
        camera.register_forward_hook(lambda net, args, out: seen.append(args[0].dtype))
    p.act(obs)
    assert seen == [torch.uint8, torch.uint8]
    with pytest.raises(BadInput, match="do not fit this policy"):
        p.act({**obs, "front": obs["front"].float()})


@pytest.mark.parametrize("vision", VISIONS)
def test_frames_may_be_encoded_before(vision):
    """Features of single frames in the pictures' place give the same chunk."""
    p = with_cameras(0, vision)
    arrays = camera_observations(p)
    z = p.latent(3)
    due = p.act(p.tensors(arrays), z)
    before = dict(arrays)
    for name, C in p.frame_sizes.items():
        frames = arrays[name].reshape(-1, *arrays[name].shape[2:])
        before[name] = np.stack([p.encoded(name, frame) for frame in frames])
        before[name] = before[name].reshape(3, p.T_o, C)
    torch.testing.assert_close(p.act(p.tensors(before), z), due, atol=1e-4, rtol=1e-4)
    assert set(p.frame_sizes) == {"front", "wrist"}
    with pytest.raises(BadInput, match="do not fit this policy"):
        p.act(p.tensors({**before, "front": before["front"][:, :, 1:]}), z)


def test_cameras_are_encoded_once_for_all_hypotheses():
    p = with_cameras()
    calls = []
    for camera in p.encoder.cameras:
        camera.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
    assert p.hypotheses(p.tensors(camera_observations(p)), 7).shape == (3, 7, 16, 2)
    assert calls == [6, 6]


def test_bfloat16_does_not_reach_the_drift():
    """Hypotheses of policies with cameras leave the network as float32, and keep their digits."""
    p = with_cameras()
    obs = p.tensors(camera_observations(p))
    z = p.latent(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        x = p(obs, z)
    assert x.dtype == torch.float32
    assert not torch.equal(x, x.bfloat16().float())


def test_cameras_that_do_not_fit_their_description(tmp_path):
    """Crops outside of a picture or of no camera, a shared encoder of different crops."""
    path = tmp_path / "ckpt.pt"
    p = with_cameras()
    p.save(path)
    state = load_torch(path)
    for change, word in (
        ({"crop": {**SEEN, "front": [41, 10]}}, "crop 41 x 10 of front"),
        ({"crop": {**SEEN, "back": [32, 32]}}, "crop of back, which is no camera"),
        ({"crop": {**SEEN, "front": [32, 31]}, "shared": True}, "cannot share an encoder"),
        ({"crop": {**SEEN, "front": [4, 4]}}, "needs 16 x 16"),
        ({"encoder": "resnet18"}, "do not fit its own description"),
        ({"shared": True}, "do not fit its own description"),
    ):
        save_torch(path, {**state, "shape": {**state["shape"], **change}})
        with pytest.raises(BadInput, match=word):
            Policy.load(path)


def refused(path, *words, **kw):
    """Loading is refused in one line that has these words."""
    with pytest.raises(BadInput) as e:
        Policy.load(path, **kw)
    for word in ("ckpt.pt", *words):
        assert word in str(e.value), str(e.value)
    assert "\n" not in str(e.value)


def test_another_task(tmp_path):
    policy(task="chess").save(tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", "chess", "pusht", task="pusht")
    assert Policy.load(tmp_path / "ckpt.pt")[0].task == "chess"


def test_malicious_pickle(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "ckpt.pt"
    torch.save({"format": FORMAT, "shape": SHAPE, "weights": {}, "ema": {}, "flags": Trap()}, path)
    refused(path, "not a checkpoint")
    with zipfile.ZipFile(path) as z:  # the bare pickle, in torch's old format
        pickled = z.read(next(n for n in z.namelist() if n.endswith("data.pkl")))
    path.write_bytes(pickled)
    refused(path, "not a checkpoint")
    assert not (tmp_path / "sprung").exists()
    said = [(op.name, arg) for op, arg, _ in pickletools.genops(pickled)]  # the trap is in the file
    assert any("mkdir" in str(arg) for _, arg in said)
    assert any(op == "REDUCE" for op, _ in said)
    assert any(str(tmp_path / "sprung") == arg for _, arg in said)
    make, args = Trap().__reduce__()
    make(*args)  # and it works
    assert (tmp_path / "sprung").exists()


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "ckpt.pt"
    refused(path, "no such file")
    policy().save(path)
    whole = path.read_bytes()
    noise = np.random.default_rng(0).bytes(3000)
    for content in (b"", b"hello", noise, whole[: len(whole) // 2], whole[:-40], whole[:100]):
        path.write_bytes(content)
        refused(path, "not a checkpoint")
    weights = policy().state_dict()
    for state in ({"weights": weights}, weights, [1, 2], torch.zeros(3), {"format": None}):
        save_torch(path, state)
        refused(path, "not a policy checkpoint")


@pytest.mark.parametrize("name", ["net.out.1.weight", "norm_obs.state.hi", "norm_action.lo"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(tmp_path, name, value):
    """They are neither written nor read; the file that is there stays."""
    path = tmp_path / "ckpt.pt"
    p = policy()
    p.save(path)
    good = path.read_bytes()
    p.state_dict()[name].view(-1)[0] = value
    for kw in ({}, {"ema": {"net.none": torch.tensor(value)}}):
        with pytest.raises(BadInput, match="step 7: weights are not finite"):
            p.save(path, step=7, **kw)
    assert path.read_bytes() == good
    state = load_torch(path)
    state["weights"][name].view(-1)[0] = value
    save_torch(path, state)
    refused(path, f"{name} is not finite")


def test_another_format(tmp_path):
    """A checkpoint of an earlier or later version is told apart from a file that is none."""
    path = tmp_path / "ckpt.pt"
    assert FORMAT == "drift-policy-2"
    for name in ("drift-policy-1", "drift-policy-3"):
        save_torch(path, {"format": name, "shape": SHAPE, "flags": {}, "weights": {}, "ema": {}})
        refused(path, f"has the format {name}, this version reads {FORMAT}: train again")


def test_weights_that_do_not_fit(tmp_path):
    """A checkpoint whose parts contradict each other, as another version might write it."""
    path = tmp_path / "ckpt.pt"
    p = policy()
    good = {"format": FORMAT, "shape": p.shape, "flags": {}, "weights": p.state_dict(), "ema": {}}
    fewer = {k: v for k, v in p.state_dict().items() if k != "norm_obs.state.lo"}
    old = {"obs_dim": 20, **{k: v for k, v in p.shape.items() if k != "obs"}}
    for change in (
        {"weights": fewer},
        {"weights": policy(dims=[16, 16]).state_dict()},
        {"weights": policy(obs=specs(keypoints=(20,))).state_dict()},
        {"shape": {"task": "pusht"}},
        {"shape": {**p.shape, "obs": specs(state=(21,))}},
        {"shape": {**p.shape, "obs": ["state"]}},
        {"shape": {**p.shape, "T_p": 15}},
        {"shape": old},
        {"ema": {"net.none": torch.zeros(1)}},
    ):
        save_torch(path, {**good, **change})
        with pytest.raises(BadInput):
            Policy.load(path, task="pusht")
    save_torch(path, good)
    Policy.load(path, task="pusht")


@pytest.mark.parametrize(
    "change",
    [
        {"task": 5},
        {"task": "\x1b]0;title\x07"},
        {"task": "x" * 10**6},
        {"method": ["bc"]},
        {"T_a": 8.0},
        {"T_a": True},
        {"T_a": 0},
        {"T_a": 16},
        {"T_o": "2"},
        {"T_p": 2**28},
        {"D_a": None},
        {"D_a": -2},
        {"dims": 64},
        {"dims": []},
        {"dims": ["64", "128"]},
        {"dims": [64] * 100},
        {"dims": [2**40]},
        {"time_dim": "32"},
        {"obs": {}},
        {"obs": {1: {"shape": [20], "dtype": "float32"}}},
        {"obs": {"state": {"shape": [20]}}},
        {"obs": {"state": {"shape": 20, "dtype": "float32"}}},
        {"obs": {"state": {"shape": [2**60], "dtype": "float32"}}},
        {"obs": {"state": {"shape": [20], "dtype": "object"}}},
        {"obs": {"state": 7}},
        {"obs": {"state": torch.zeros(2)}},
        {"dims": torch.zeros(2)},
        {"T_p": torch.zeros(())},
        {"obs": {"state": {"shape": [20], "dtype": "uint8"}}},
        {"obs": {"camera": {"shape": [16, 16, 3], "dtype": "float32"}}},
        {"encoder": "vgg"},
        {"encoder": ["small"]},
        {"pool": 2},
        {"shared": 1},
        {"shared": torch.ones(())},
        {"crop": [8, 8]},
        {"crop": {"state": 8}},
        {"crop": {"state": [8]}},
        {"crop": {"state": [8, 2**40]}},
        {"crop": {3: [8, 8]}},
    ],
)
def test_a_description_of_wrong_types(tmp_path, change):
    path = tmp_path / "ckpt.pt"
    p = policy()
    p.save(path)
    state = load_torch(path)
    state["shape"] = {**state["shape"], **change}
    save_torch(path, state)
    refused(path, "does not describe a policy of this project")


@pytest.mark.parametrize("shape", [None, [], "pusht", 3, torch.zeros(4, 3, 0), {1: 2}])
def test_no_description(tmp_path, shape):
    path = tmp_path / "ckpt.pt"
    policy().save(path)
    save_torch(path, {**load_torch(path), "shape": shape})
    refused(path, "does not describe a policy of this project")


@pytest.mark.parametrize("part", ["weights", "ema", "flags"])
@pytest.mark.parametrize("value", [None, [1], "x"])
def test_a_part_of_another_type(tmp_path, part, value):
    path = tmp_path / "ckpt.pt"
    policy().save(path)
    save_torch(path, {**load_torch(path), part: value})
    refused(path, "lacks weights, ema or flags")


def test_claims_take_no_memory(tmp_path):
    """A checkpoint of some kB claims a network of TBs, also with tensors that repeat one number."""
    path = tmp_path / "ckpt.pt"
    policy().save(path)
    state = load_torch(path)
    state["shape"]["dims"] = [16_384, 32_768, 65_536]
    save_torch(path, state)
    refused(path, "do not fit its own description")
    with torch.device("meta"):
        claimed = Policy(state["shape"]).state_dict()
    assert sum(v.nbytes for v in claimed.values()) > 2**36
    state["weights"] = {k: torch.zeros(1).expand(v.shape) for k, v in claimed.items()}
    save_torch(path, state)
    refused(path, "hold fewer numbers than they claim")
    assert path.stat().st_size < 2**20


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.double(),
        lambda v: v.tolist(),
        lambda v: v[..., None],
        lambda v: None,
    ],
    ids=["double", "list", "another axis", "none"],
)
def test_weights_of_another_kind(tmp_path, change):
    path = tmp_path / "ckpt.pt"
    policy().save(path)
    state = load_torch(path)
    name = "net.out.1.weight"
    state["weights"][name] = change(state["weights"][name])
    save_torch(path, state)
    refused(path, "do not fit its own description (net.out.1.weight)")
