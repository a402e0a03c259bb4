"""dbp_train.py on a made-up task with two cameras: every flag of cameras, crops that the step
fixes, resuming bit for bit, and what is refused."""

import math
import shlex

import numpy as np
import pytest
import torch
from torch import nn

import commands
import dbp_flags
import dbp_train
import drift
import envs
import saves
from commands import BadInput
from encoders import Encoder
from envs import TASKS
from files import load_torch, save_torch
from formats import save_npz
from policy import Policy
from task import Task
from test_train import SMALL, interrupt_at, policy_of, quick, same, same_training, train
from vision import Body, centre_crop

assert quick  # a fixture, used by its name

TWO = Task(
    name="two-cameras",
    obs={"front": (40, 36, 3), "wrist": (34, 34, 3), "joints": (3,)},
    crop={"front": (36, 32), "wrist": 32},
    D_a=2,
    T_o=2,
    T_p=8,
    T_a=4,
    data=("two.npz",),
)
ONE = Task(
    name="one-camera", obs={"front": (40, 36, 3)}, D_a=2, T_o=2, T_p=8, T_a=4, data=("one.npz",)
)


def write_pictures(path, lengths=(20, 30, 25), seed=0):
    """Demonstrations of TWO: a bright bar in each camera's picture is where the action points.

    The bar stands upright in the front camera's (x) and lies in the wrist's (y).
    """
    rng = np.random.default_rng(seed)
    N = sum(lengths)
    action = rng.uniform(-1, 1, (N, 2)).astype("f4")
    for n in range(1, N):  # the action changes slowly
        action[n] = 0.9 * action[n - 1] + 0.3 * action[n]
    front = rng.integers(0, 60, (N, *TWO.obs["front"]))
    wrist = rng.integers(0, 60, (N, *TWO.obs["wrist"]))
    at = 0.5 + 0.3 * np.clip(action, -1, 1)
    for n, (x, y) in enumerate(at):
        front[n, :, round(36 * x) - 4 : round(36 * x) + 4] += 190
        wrist[n, round(34 * y) - 4 : round(34 * y) + 4] += 190
    save_npz(
        path,
        front=front.astype("u1"),
        wrist=wrist.astype("u1"),
        joints=rng.normal(0, 1, (N, 3)).astype("f4"),
        action=action,
        episode_ends=np.cumsum(lengths),
    )
    return path


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """The flags of a training on the two cameras; the made-up tasks are known."""
    for task in (TWO, ONE):
        monkeypatch.setitem(envs.TASKS, task.name, task)
    return ["--task", "two-cameras", "--data", write_pictures(tmp_path / "two.npz")]


def refused(capsys, *flags):
    """The line on stderr of a training that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        train(*flags)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("\n") == 1, err
    return err


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--method bc",
        "--method diffusion",
        "--encoder resnet18 --pool average --batch 4 --steps 1",
        "--shift 3 --jitter 0.2 --spread 1 --memory 2",
    ],
)
def test_trains(tmp_path, flags, quick, capsys, more):
    """The checkpoint rebuilds the encoders that the flags asked for, and acts."""
    train(*flags, "--steps", 2, "--out", tmp_path / "r", *shlex.split(more))
    said = capsys.readouterr().out
    assert ("--encoder small (small on a CPU, resnet18 on a GPU)" in said) == ("resnet" not in more)
    policy, kept = Policy.load(tmp_path / "r" / "ckpt.pt")
    kind = "resnet18" if "resnet18" in more else "small"
    assert policy.shape["encoder"] == kept["encoder"] == kind
    assert policy.shape["crop"] == {"front": [36, 32], "wrist": [32, 32]}
    assert policy.shape.get("pool") == kept["pool"] == ("average" if "pool" in more else None)
    assert len(policy.encoder.cameras) == 2


def test_an_encoder_learns_to_point(tmp_path):
    """Places of bars are read off the pictures of both cameras, also of an episode unseen."""
    with np.load(write_pictures(tmp_path / "two.npz", lengths=(150, 40))) as file:
        obs = {name: torch.from_numpy(file[name])[:, None] for name in TWO.obs}
        action = torch.from_numpy(file["action"])
    torch.manual_seed(0)
    encoder = Encoder(TWO.obs, 1, crop=TWO.crop)
    head = nn.Linear(encoder.size, 2)
    parameters = [*encoder.parameters(), *head.parameters()]
    opt = torch.optim.AdamW(parameters, 2e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(100):
        i = torch.randint(150, (16,), generator=g)
        off = head(encoder({name: y[i] for name, y in obs.items()})) - action[i]
        off.square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        opt.step()
        opt.zero_grad()
    with torch.no_grad():
        off = (head(encoder(obs)) - action)[150:].square().mean(0).sqrt()
    assert (off < 0.5 * action[150:].std(0)).all(), (off, action[150:].std(0))


def test_shared_cameras(tmp_path, flags, quick, monkeypatch, capsys):
    """One encoder for both, if their crops are equal."""
    assert "cannot share an encoder" in refused(
        capsys, *flags, "--shared-cameras", "--steps", 1, "--out", tmp_path / "r"
    )
    alike = Task(**{**vars(TWO), "crop": {"front": 32, "wrist": 32}})
    monkeypatch.setitem(envs.TASKS, TWO.name, alike)
    train(*flags, "--shared-cameras", "--steps", 1, "--out", tmp_path / "r")
    policy, _ = Policy.load(tmp_path / "r" / "ckpt.pt")
    assert policy.shape["shared"] is True and len(policy.encoder.cameras) == 1


def watch_pictures(monkeypatch):
    """The list of the observations that each loss gets."""
    seen = []
    real = dbp_train.dbp_loss

    def watched(policy, obs, *args):
        seen.append(obs)
        return real(policy, obs, *args)

    monkeypatch.setattr(dbp_train, "dbp_loss", watched)
    return seen


def test_crops_of_a_batch(tmp_path, flags, quick, monkeypatch):
    """Each sample gets a crop of its own, its frames the same one; bytes stay bytes; the policy
    that acts sees the middle."""
    seen = watch_pictures(monkeypatch)
    args = dbp_train.parse([*SMALL, *map(str, flags), "--steps", "3", "--out", str(tmp_path / "r")])
    task = dbp_train.resolve(args)
    training = dbp_train.Training(args, task, dbp_train.ALONE)
    i = training.batch()
    before, _ = training.windows.batch(i)
    training.gradients()
    (obs,) = seen
    assert torch.equal(obs["joints"], before["joints"])
    for name, (h, w) in training.policy.encoder.crop.items():
        assert obs[name].dtype == torch.uint8 and obs[name].shape == before[name].shape
        H, W = before[name].shape[2:4]
        found = []
        for sample, whole in zip(centre_crop(obs[name], (h, w)), before[name]):
            places = [
                (y, x)
                for y in range(H - h + 1)
                for x in range(W - w + 1)
                if torch.equal(sample, whole[:, y : y + h, x : x + w])
            ]
            assert len(places) == 1
            found += places
        assert len(set(found)) >= 3


def test_the_step_fixes_the_crops(tmp_path, flags, quick, monkeypatch):
    """Whatever was drawn before; another step and another seed have others."""

    def crops(seed, step, steps_before=0):
        args = dbp_train.parse(
            [*SMALL, *map(str, flags), "--steps", "9", "--seed", str(seed), "--jitter", "0.1"]
        )
        training = dbp_train.Training(args, dbp_train.resolve(args), dbp_train.ALONE)
        for _ in range(steps_before):
            training.advance()
        training.step = step
        seen = watch_pictures(monkeypatch)
        monkeypatch.setattr(training, "loss_of", lambda *a: dbp_train.dbp_loss(training.policy, *a))
        training.gradients()
        return {name: seen[0][name] for name in TWO.crop}

    assert same(crops(0, 5), crops(0, 5, steps_before=2))
    assert not same(crops(0, 5), crops(0, 6))


@pytest.mark.parametrize("more", ["--jitter 0.2 --shift 2 --memory 2", "--method diffusion"])
def test_resumes_bit_for_bit(tmp_path, flags, quick, monkeypatch, capsys, more):
    """A run that Ctrl-C ended goes on to the same weights, EMA and log."""
    flags = [*flags, "--steps", 24, *shlex.split(more)]
    train(*flags, "--out", tmp_path / "whole")
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        with pytest.raises(SystemExit) as e:
            args = dbp_train.parse([*SMALL, *map(str, flags), "--out", str(cut)])
            commands.cli(lambda: saves.run_until_interrupted(dbp_train.train, args))
        assert e.value.code == 130
    assert policy_of(cut)["step"] == 11
    train(*flags, "--out", cut, "--resume")
    same_training(tmp_path / "whole", cut)
    assert "begun with --shift" in refused(capsys, *flags, "--shift", 1, "--out", cut, "--resume")


def test_ema_covers_the_encoder(tmp_path, flags, quick):
    train(*flags, "--steps", 5, "--out", tmp_path / "r")
    raw, mean = (Policy.load(tmp_path / "r" / "ckpt.pt", ema=e)[0] for e in (False, True))
    averaged = dict(mean.encoder.named_parameters())
    assert averaged and set(policy_of(tmp_path / "r")["ema"]) == set(dict(raw.named_parameters()))
    for name, p in raw.encoder.named_parameters():
        assert not torch.equal(p, averaged[name]), name


def test_spread_with_pictures(tmp_path, flags, quick):
    """The untrained outputs have the deviation that --spread asks for, at what the cameras see."""
    spreads = {}
    for more in ([], ["--spread", "1"]):
        args = dbp_train.parse([*SMALL, *map(str, flags), "--steps", "1", *more])
        training = dbp_train.Training(args, dbp_train.resolve(args), dbp_train.ALONE)
        policy = training.policy
        obs, _ = training.windows.batch(torch.arange(4))
        with torch.no_grad():
            x = policy.hypotheses(obs, 300)
        spreads[bool(more)] = x.std(1).mean().item()
    assert spreads[True] == pytest.approx(1, rel=0.15) and spreads[False] < 0.5


@pytest.mark.parametrize("amp", [False, True])
def test_amp(tmp_path, flags, quick, monkeypatch, amp):
    """The encoders run in bfloat16, and the drift gets float32 that was not rounded."""
    hypotheses = []
    inside = []
    real = dbp_train.chunk_loss

    def watched(x, pos, **kw):
        hypotheses.append(x.detach())
        return real(x, pos, **kw)

    def rms(*args, **kw):
        inside.append(torch.is_autocast_enabled("cpu"))
        return real_mean(*args, **kw)

    real_mean = drift.batch_mean
    monkeypatch.setattr(dbp_train, "chunk_loss", watched)
    monkeypatch.setattr(drift, "batch_mean", rms)
    train(*flags, "--steps", 2, "--out", tmp_path / "r", *(["--amp"] if amp else []))
    assert not any(inside)
    for x in hypotheses:
        assert x.dtype == torch.float32
        assert not torch.equal(x, x.bfloat16().float())
    assert all(math.isfinite(r) for r in hypotheses[-1].flatten().tolist())


# ---- torchvision's weights -----------------------------------------------------------------------


def write_weights(path, **change):
    """A file as torchvision's, with random convolutions."""
    found = {name: torch.randn_like(p) for name, p in Body().convolutions().items()}
    save_torch(path, {**found, "bn1.weight": torch.ones(64), **change})
    return path


RESNET = ["--encoder", "resnet18", "--batch", 4, "--steps", 1]


def test_vision_weights(tmp_path, flags, quick):
    """Both cameras start from the file, which is needed at the start alone."""
    path = write_weights(tmp_path / "w.pth")
    flags = [*flags, *RESNET, "--out", tmp_path / "r"]
    train(*flags, "--vision-weights", path, "--lr", 1e-12)
    wanted = load_torch(path)
    policy, _ = Policy.load(tmp_path / "r" / "ckpt.pt", ema=False)
    for camera in policy.encoder.cameras:
        for name, weight in camera.body.convolutions().items():
            torch.testing.assert_close(weight.detach(), wanted[name], atol=1e-6, rtol=0)
    path.unlink()
    train(*flags, "--lr", 1e-12, "--resume")


def test_vision_weights_that_are_not(tmp_path, flags, quick, capsys):
    """A wrong shape, another network, a damaged file, none: one line each, and no run folder."""
    wrong = write_weights(tmp_path / "wrong.pth", **{"conv1.weight": torch.zeros(64, 3, 3, 3)})
    other = write_weights(tmp_path / "other.pth", **{"conv9.weight": torch.zeros(4, 4, 1, 1)})
    cut = tmp_path / "cut.pth"
    cut.write_bytes(wrong.read_bytes()[:5000])
    for path, word in (
        (wrong, "conv1.weight is (64, 3, 3, 3) torch.float32, not (64, 3, 7, 7)"),
        (other, "conv9.weight is too many"),
        (cut, "give torchvision's resnet18-f37072fd.pth"),
        (tmp_path / "none.pth", "no such file"),
    ):
        err = refused(capsys, *flags, *RESNET, "--vision-weights", path, "--out", tmp_path / "r")
        assert word in err and path.name in err
        assert not (tmp_path / "r").exists()


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, more, word",
    [
        ("pusht", "--encoder small", "--encoder is not used by pusht, which has no camera"),
        ("pusht", "--shared-cameras", "--shared-cameras is not used by pusht"),
        ("pusht", "--jitter 0.1", "--jitter is not used by pusht, which has no camera"),
        ("pusht", "--vision-weights x", "--vision-weights is not used by pusht"),
        ("one-camera", "--shared-cameras", "is not used by one-camera, which has one camera"),
        ("two-cameras", "--pool average", "--pool is not used by --encoder small: leave it out"),
        ("two-cameras", "--vision-weights x", "--vision-weights is not used by --encoder small"),
        ("pusht", "--teach 5", "--teach is not used by pusht, which has no camera"),
        ("two-cameras", "--teach 5 --init x", "--teach is not used by --init, which brings all"),
        ("two-cameras", "--teach 0", "--teach must be above 0, not 0"),
        ("two-cameras", "--shift 34", "--shift must lie in 0 .. 33, not 34"),
        ("two-cameras", "--shift -1", "--shift must lie in 0 .. 33, not -1"),
        ("two-cameras", "--jitter 1", "--jitter must lie in [0, 1), not 1.0"),
        ("two-cameras", "--jitter nan", "--jitter must lie in [0, 1), not nan"),
        (
            "two-cameras",
            "--encoder resnet18 --vision-weights x --init y",
            "--vision-weights is not used by --init",
        ),
    ],
)
def test_flags_that_do_not_fit(tmp_path, flags, task, more, word):
    argv = ["--task", task, *shlex.split(more), "--out", str(tmp_path / "r"), "--device", "cpu"]
    with pytest.raises(BadInput) as e:
        dbp_train.resolve(dbp_train.parse(argv))
    assert word in str(e.value)


def test_the_default_depends_on_the_device(flags, monkeypatch, capsys):
    """ResNet18 with a spatial softmax on a GPU, three convolutions on a CPU; a task may choose."""
    monkeypatch.setattr(dbp_flags, "check_device", lambda name: None)
    for device, wanted in (("cpu", ("small", None)), ("cuda", ("resnet18", "softmax"))):
        args = dbp_train.parse(["--task", "two-cameras", "--device", device])
        dbp_train.resolve(args)
        assert (args.encoder, args.pool) == wanted
        assert f"--encoder {wanted[0]} (" in capsys.readouterr().out
    own = Task(**{**vars(TWO), "stage1": {"encoder": "resnet18", "shift": 2}})
    monkeypatch.setitem(envs.TASKS, TWO.name, own)
    args = dbp_train.parse(["--task", "two-cameras", "--device", "cpu"])
    dbp_train.resolve(args)
    assert (args.encoder, args.pool, args.shift) == ("resnet18", "softmax", 2)


def test_tasks_without_cameras_say_nothing_of_them(tmp_path):
    """Their checkpoints and flags are as before."""
    args = dbp_train.parse(["--task", "pusht", "--device", "cpu", "--out", str(tmp_path / "r")])
    dbp_train.resolve(args)
    assert all(getattr(args, name) is None for name in dbp_flags.OF_CAMERAS)
    assert TASKS["pusht"].crop == {}
