"""What the tests share: one thread, small made-up demonstrations, scripts as subprocesses, and the
official data where it is at hand."""

import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; subprocesses inherit it

import numpy as np
import pytest
import torch

from formats import save_npz

ROOT = Path(__file__).parents[1]
OPENGL = os.environ.get("MUJOCO_GL")  # what MuJoCo goes by, whatever sets it later
OFFICIAL = "pusht_cchi_v7_replay.zarr"

# A shell starts what it puts in the background with SIGINT ignored, and scripts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)


def cli(*args, timeout=600):
    """python ROOT/args[0] args[1:] -> (exit code, stdout, stderr)."""
    command = [sys.executable, ROOT / args[0], *map(str, args[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def write_demos(path, lengths=(25, 40, 31), seed=0):
    """Write an npz of Push-T with episodes of these lengths. Returns the path.

    The agent circles at its own pace in each episode, the T drifts and turns slowly.
    """
    rng = np.random.default_rng(seed)
    states = []
    actions = []
    for n in lengths:
        t = np.arange(n + 1)[:, None]
        angle = rng.uniform(0, 6) + 0.1 * t
        circle = np.concatenate([np.cos(angle), np.sin(angle)], 1)
        agent = 256 + rng.uniform(60, 150) * circle
        tee = rng.uniform(150, 350, 2) + 0.8 * t * rng.uniform(-1, 1, 2)
        states.append(np.concatenate([agent, tee, 1 + 0.02 * t], 1)[:n])
        actions.append(agent[1:])  # the target is where the agent goes next
    save_npz(
        path,
        state=np.concatenate(states).astype("f4"),
        action=np.concatenate(actions).astype("f4"),
        episode_ends=np.cumsum(lengths),
    )
    return path


@pytest.fixture
def demos(tmp_path):
    """Three short made-up episodes of Push-T."""
    return write_demos(tmp_path / "demos.npz")


@pytest.fixture
def official():
    """The official Push-T demonstrations; skips without them."""
    given = os.environ.get("DRIFT_DATA")
    if given:
        for path in (Path(given), Path(given) / OFFICIAL):
            if path.name == OFFICIAL and path.is_dir():
                return path
    pytest.skip(f"set DRIFT_DATA to a folder that holds {OFFICIAL}")


def make_renderer(model, size):
    """MuJoCo's renderer; skips without OpenGL.

    It is made only where MUJOCO_GL names a platform: without a display, making a window may crash,
    or leave the process without any OpenGL.
    """
    import mujoco

    if OPENGL not in ("egl", "osmesa"):
        pytest.skip("needs OpenGL without a display: set MUJOCO_GL=egl or osmesa")
    try:
        return mujoco.Renderer(model, size, size)
    except Exception as e:  # the kind depends on the GL platform
        pytest.skip(f"no OpenGL by MUJOCO_GL={OPENGL} ({type(e).__name__})")
