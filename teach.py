"""Encoders of pictures that are taught the scene's numbers first. The paper has no such thing.

`dbp_train.py --teach N` fits the cameras' encoders for N steps to what the task by numbers
observes, such as the key points of Push-T, which simulated demonstrations tell. Stage 1 then keeps
them as they are. Its own loss teaches an encoder the pose slowly, and unteaches one that knows it
(note 62). Where nothing tells the numbers, as on a robot, there is no `--teach`.
"""

import math

import torch
from torch import nn
from tqdm import tqdm

from commands import BadInput
from data import load, taken
from envs import task_named
from policy import Normalizer, bounds

LR = 1e-3  # at its peak
WARMUP = 200  # steps


def numbers_of(task, episodes, args):
    """What the task by numbers observes at the steps of a task's episodes: a tensor (N, n).

    Raises BadInput if there is no such task, or if their file does not tell it.
    """
    if task.numbers is None:
        raise BadInput(f"--teach is not used by {task.name}, which has no task by numbers")
    twin = task_named(task.numbers)
    told = load(twin, episodes.path, args.demos, args.max_gb, args.filter)
    return torch.cat([torch.from_numpy(a) for a in told.obs.values()], 1)


def teach(policy, windows, numbers, args, augment, quiet=False):
    """Fit a policy's cameras' encoders, with a linear layer on their features, to numbers (N, n).

    windows: of the run, whose pictures augment(obs, generator) changes at random. The numbers count
    in units of their range. The layer is dropped afterwards. Prints the error of the last tenth of
    the steps, RMS, as a share of a number's range. quiet: nothing is printed.
    """
    encoder = policy.encoder
    device = policy.device
    generator = torch.Generator(device).manual_seed(args.seed)
    drawn = torch.Generator().manual_seed(args.seed)
    norm = Normalizer(*bounds(numbers)).to(device)
    layer = nn.Linear(sum(encoder.frame_sizes.values()), numbers.shape[1]).to(device)
    cameras = [p for camera in encoder.cameras for p in camera.parameters()]
    opt = torch.optim.AdamW([*cameras, *layer.parameters()], weight_decay=args.weight_decay)
    errors = torch.zeros(args.teach, device=device)
    how = {"mininterval": 1, "dynamic_ncols": True, "disable": quiet}
    bar = tqdm(range(args.teach), desc="teaching", unit="step", **how)
    for step in bar:
        warm = min(1, (step + 1) / WARMUP)
        opt.param_groups[0]["lr"] = LR * warm * (1 + math.cos(math.pi * step / args.teach)) / 2
        i = torch.randint(len(windows), (args.batch,), generator=drawn)
        obs = augment(windows.batch(i)[0], generator)
        wanted = norm(taken(numbers, windows.index[i, : policy.T_o], device))  # (B, T_o, n)
        features = encoder.of_cameras({name: obs[name] for name in encoder.crop})
        told = layer(torch.cat(list(features.values()), 1))  # (B T_o, n)
        loss = (told - wanted.flatten(0, 1)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        errors[step] = loss.detach()
        if step % 50 == 49:
            bar.set_postfix(error=f"{errors[step - 49 : step + 1].mean().sqrt() / 2:.4f}")
    error = errors[-max(args.teach // 10, 1) :].mean().sqrt().item() / 2
    if not math.isfinite(error):
        raise BadInput("--teach: the loss was not finite: the demonstrations may be damaged")
    if not quiet:
        print(f"taught {args.teach} steps: {numbers.shape[1]} numbers, {100 * error:.2f} % off")
