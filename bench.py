"""Time what this project claims, as ratios that are measured in one run.

train    one training step with the drift loss against the same step with a plain MSE loss, and the
         shares of data, encoder, generator, drift and optimiser
infer    one `act` call at batch 1: p50 and p99, eager and compiled, small and paper network, with
         each encoder if the task has cameras
latency  the same over methods: DBP's one network evaluation against diffusion's 10 and 100
ppo      Stage 2: rates of roll-out and update, shares of simulator, network and update
clouds   one point cloud by rays, against MuJoCo's rendered depth where OpenGL is present
"""

import startup  # noqa: F401 - first, see there
from startup import tied

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from baselines import prepare
from bench_stage2 import last_line, ppo
from commands import BadInput, Parser, above_zero, check_device, cli, refuse_flags
from data import Episodes, Windows
from dbp_flags import PAPER_DIMS, SMALL_DIMS
from drift import chunk_loss
from envs import make_env, task_named
from evaluate import count_calls
from export import OnnxPolicy
from files import atomic, check_output
from made_up import make_policy, random_arrays, random_obs
from policy import Policy
from runs import versions
from timing import Laps, peak_memory, quantiles, timed, timed_in_turn
from vision import KINDS, augmented

HERE = Path(__file__).parent
FRAMES = 2000  # steps of the made-up episode that batches are gathered from
COST_BATCHES = (32, 64, 128)
COST_K = (1, 2, 4, 8, 16)  # 1 comes first: the others are put as ratios to it


def has_cameras(task):
    """Whether a task is seen by cameras."""
    return any(len(shape) == 3 for shape in task.obs.values())


# ---- a training step -----------------------------------------------------------------------------


def train(args):
    """Alternate steps with the drift loss, with MSE and with K = 1, on one network and batch.

    The ratios are medians over pairs of steps that followed one another.
    """
    task = task_named(args.task)
    if not has_cameras(task):
        refuse_flags(args, ["encoder"], f"{task.name}, which has no camera")
    policy = make_policy(args.dims, args.device, task, encoder=args.encoder or "small").train()
    optimiser = torch.optim.AdamW(policy.parameters(), 1e-4, fused=True)
    obs = random_obs(policy, args.batch)
    pos = 2 * torch.rand(args.batch, 1, policy.T_p, policy.D_a, device=args.device) - 1

    def drift(x):
        return chunk_loss(x, pos, temps=args.temp, mode=args.mode)[0]

    def mse(x):
        return (x - pos).square().mean()

    def step(loss, K):
        loss(policy.hypotheses(obs, K)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    steps = {
        "drift": functools.partial(step, drift, args.K),
        "mse": functools.partial(step, mse, args.K),
        "one": functools.partial(step, drift, 1),
    }
    for call in 3 * list(steps.values()):
        call()
    seconds = {name: [] for name in steps}
    for i in range(args.n):
        for name in sorted(steps, reverse=bool(i % 2)):  # alternate the order: none is always first
            seconds[name] += timed(steps[name], 1, args.device, warm=0)
    x = policy.hypotheses(obs, args.K).detach().requires_grad_()
    alone = timed(lambda: drift(x).backward(), args.n, args.device, warm=0)

    to_mse = np.array(seconds["drift"]) / np.array(seconds["mse"])
    to_one = np.array(seconds["drift"]) / np.array(seconds["one"])
    return {
        "peak_mb": peak_memory(args.device),
        "drift_step": quantiles(seconds["drift"]),
        "mse_step": quantiles(seconds["mse"]),
        "ratio_p50": round(float(np.median(to_mse)), 4),
        "ratio_to_K1": round(float(np.median(to_one)), 3),
        "ratio_quartiles": np.quantile(to_mse, [0.25, 0.75]).round(4).tolist(),
        "drift_loss_alone": quantiles(alone),
        "parts": parts_of_a_step(policy, optimiser, drift, args),
    }


def parts_of_a_step(policy, optimiser, drift, args):
    """Medians in ms, and shares, of the parts of a training step as dbp_train.py makes it.

    data: the batch is gathered and its pictures are cropped at random. encoder, generator: forward
    and backward passes, the latter of all K hypotheses. drift: the loss and its gradient, of
    drift(x). optimiser: the clip of the gradient, and the update.
    """
    action = np.random.default_rng(0).uniform(-1, 1, (FRAMES, policy.D_a)).astype(np.float32)
    episode = Episodes(random_arrays(policy, FRAMES), action, np.array([FRAMES]), Path("none"))
    windows = Windows(episode, policy.T_o, policy.T_p, policy.T_a, args.device)
    generator = torch.Generator(args.device).manual_seed(0)
    order = windows.order(0, 0)
    laps = Laps(args.device)
    for step in range(3 + args.n):
        laps.begin()
        i = order[(step * args.batch + torch.arange(args.batch)) % len(order)]
        obs, action = windows.batch(i)
        obs = augmented(obs, generator, crop=policy.encoder.crop)
        policy.norm_action(action)
        laps.end("data")
        h = policy.features(obs)
        laps.end("encoder")
        h_alone = h.detach().requires_grad_()
        x = policy.net(policy.latent(args.batch, args.K, generator=generator), h_alone)
        laps.end("generator")
        x_alone = x.detach().requires_grad_()
        drift(x_alone).backward()
        laps.end("drift")
        x.backward(x_alone.grad)
        laps.end("generator")
        if h.requires_grad:
            h.backward(h_alone.grad)
        laps.end("encoder")
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        laps.end("optimiser")
    return laps.medians()


def cost(args):
    """Eq. 58: the time of a training step and the peak memory over K and the batch B.

    Each is measured in a process of its own, and put as a ratio to K = 1 of the same batch; the
    time's ratio is that of steps that take turns. args: dims, device, threads, as in `train`; None,
    or ["auto"], for the defaults. Returns rows.
    """
    flags = []
    for name in ("device", "threads"):
        if getattr(args, name):
            flags += [f"--{name}", getattr(args, name)]
    if args.dims and list(args.dims) != ["auto"]:
        flags += ["--dims", *args.dims]
    rows = []
    for B in COST_BATCHES:
        for K in COST_K:
            found = measured_step(B, K, flags)
            if K == 1:
                least = found["peak_mb"]
            row = {
                "batch": B,
                "K": K,
                "ms": found["drift_step"]["p50_ms"],
                "MB": found["peak_mb"],
                "r_time": found["ratio_to_K1"],
                "r_memory": round(found["peak_mb"] / least, 3),
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def measured_step(B, K, flags):
    """The figures of `python bench.py train` for one B and K. Raises BadInput if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "step.json")
        command = [sys.executable, HERE / "bench.py", "train", "--batch", B, "--K", K]
        command += ["--n", 20, "--json", out, *flags]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **tied())
        if done.returncode:
            raise BadInput(f"B {B}, K {K} failed: {last_line(done.stderr)}")
        return json.loads(out.read_text())


# ---- an action -----------------------------------------------------------------------------------


def infer(args):
    """The latency of one act call at batch 1, as a robot makes it: observation in, chunk out.

    The observation is given as arrays; those of cameras are T_o pictures of bytes. --onnx: the
    file's graph and the same network in eager torch, in turn.
    """
    if args.onnx:
        refuse_flags(args, ["compile", "task"], "--onnx")
        args.device = "cpu"
        return onnx_rows(args)
    args.task = args.task or "pusht"
    task = task_named(args.task)
    rows = {}
    for size, dims in (("small", SMALL_DIMS), ("paper", PAPER_DIMS)):
        if not has_cameras(task):
            rows.update(act_rows(make_policy(dims, args.device, task), size, args))
            continue
        for encoder in KINDS:
            policy = make_policy(dims, args.device, task, encoder=encoder)
            rows.update(act_rows(policy, f"{size}, {encoder}", args))
    return rows


def act_rows(policy, name, args):
    """{"NAME eager": quantiles}, and compiled if asked for, of one act call of a policy."""
    policy.eval()
    obs = random_arrays(policy, 1, policy.T_o)

    def act():
        policy.act(policy.tensors(obs))

    rows = {}
    for how in ("eager", "compiled") if args.compile else ("eager",):
        if how == "compiled":
            for net in (policy.net, *policy.encoder.cameras):
                net.compile()
        rows[f"{name} {how}"] = quantiles(timed(act, args.n, args.device, warm=10))
        print(name, how, rows[f"{name} {how}"], flush=True)
    return rows


def onnx_rows(args):
    """{"onnx": quantiles, "eager": quantiles, "ratio_p50"} of one act call, which take turns."""
    policies = {"onnx": OnnxPolicy.load(args.onnx)}
    args.task = policies["onnx"].task
    policies["eager"] = prepare(Policy(policies["onnx"].shape).eval())
    obs = random_arrays(policies["onnx"], 1, policies["onnx"].T_o)

    def act(policy):
        policy.act(policy.tensors(obs))

    calls = {name: functools.partial(act, policy) for name, policy in policies.items()}
    seconds = timed_in_turn(calls, args.n, "cpu", warm=10)
    rows = {name: quantiles(s) for name, s in seconds.items()}
    ratio = np.median(np.array(seconds["onnx"]) / np.array(seconds["eager"]))
    return {**rows, "ratio_p50": round(float(ratio), 3)}


WAYS = {  # name -> method, number of network evaluations (NFE) an action
    "dbp, 1 NFE": ("dbp", 1),
    "meanflow, 1 NFE": ("meanflow", 1),
    "diffusion, 10 NFE": ("diffusion", 10),
    "diffusion, 100 NFE": ("diffusion", 100),
}


def bare_generator(policy, obs):
    """A function that makes one generator call and nothing else, at batch 1."""
    with torch.inference_mode():
        h = policy.features(obs)
        z = policy.latent(1)

    @torch.inference_mode()
    def call():
        return policy.net(z, h)

    return call


def latency(args):
    """Milliseconds of an action at batch 1, by method and network evaluations, as counted.

    All methods have the same channels and take turns. The ratios are of the p50s, to DBP's and to
    the bare generator's.
    """
    rows = {}
    for how in ("eager", "compiled") if args.compile else ("eager",):
        calls = {}
        nfe = {"generator alone": 1}
        for name, (method, n) in WAYS.items():
            policy = prepare(make_policy(args.dims, args.device, method=method).eval(), n)
            obs = random_obs(policy, 1)
            with count_calls(policy.net) as counted:
                policy.act(obs)
            nfe[name] = counted.n
            calls[name] = functools.partial(policy.act, obs)
            if method == "dbp":
                calls["generator alone"] = bare_generator(policy, obs)
            if how == "compiled":
                policy.net.compile()
        seconds = timed_in_turn(calls, args.n, args.device)
        p50 = {name: float(np.median(s)) for name, s in seconds.items()}
        for name, s in seconds.items():
            row = {"nfe": nfe[name], **quantiles(s)}
            row["ratio_to_dbp"] = round(p50[name] / p50["dbp, 1 NFE"], 2)
            row["ratio_to_generator"] = round(p50[name] / p50["generator alone"], 2)
            rows[f"{name}, {how}"] = row
            print(f"{name}, {how}", row, flush=True)
    return rows


# ---- point clouds --------------------------------------------------------------------------------


def rendered_depth(model, data, camera):
    """A function that returns what the camera sees as points, by MuJoCo's renderer.

    points (size², 3) in world coordinates, as `pointcloud.cast` gives them. Raises ImportError
    where MUJOCO_GL names no platform: without a display, making a window may crash.
    """
    import mujoco

    if os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"):
        raise ImportError("MUJOCO_GL is not set")
    pos = np.asarray(camera.pos)
    ahead = -camera.matrix()[:, 2]
    free = mujoco.MjvCamera()  # stands where the ray camera does, by azimuth and elevation
    free.lookat = pos + ahead
    free.distance = 1.0
    free.azimuth = np.rad2deg(np.arctan2(ahead[1], ahead[0]))
    free.elevation = np.rad2deg(np.arcsin(ahead[2]))
    model.vis.global_.fovy = camera.fovy
    renderer = mujoco.Renderer(model, camera.size, camera.size)
    renderer.enable_depth_rendering()
    rays = camera.directions()

    def points():
        renderer.update_scene(data, free)
        depth = renderer.render().ravel()[:, None]  # along the camera's axis, not along the ray
        return pos + depth / (rays @ ahead)[:, None] * rays

    return points


def clouds(args):
    """Milliseconds of each part of a cloud, and of rendered depth made into one, in turn."""
    from pointcloud import cast, farthest, promising
    from task_clouds import N_POINTS

    task = task_named(args.task)
    if "points" not in task.obs:
        raise BadInput(f"{task.name} is not seen as a point cloud: give --task metaworld-assembly")
    env = make_env(task)
    env.reset(seed=0)
    model = env.model
    camera = env.camera
    data = env.settled()
    low, high = np.asarray(env.box)

    def crop(points):
        return points[((points > low) & (points < high)).all(1)].astype(np.float32)

    points = crop(cast(model, data, camera)[0])
    only = functools.partial(promising, model, data, camera, env.box)
    parts = {
        "settle": env.settled,
        "all rays": lambda: cast(model, data, camera),
        "sampling": lambda: farthest(points, N_POINTS),
        "observation": env.observe,
        "promising rays": lambda: cast(model, data, camera, only=only()),
    }
    try:
        depth = rendered_depth(model, data, camera)
        parts["rendered depth and sampling"] = lambda: farthest(crop(depth()), N_POINTS)
    except Exception as e:  # the kind depends on the GL platform
        print(f"rendered depth is not timed: no OpenGL ({type(e).__name__}: {e}): ", end="")
        print("set MUJOCO_GL=egl or osmesa")
    seconds = timed_in_turn(parts, args.n, "cpu")
    figures = {name: quantiles(s) for name, s in seconds.items()}
    return {"points_in_crop": len(points), "rays": camera.size**2, **figures}


# ---- the command ---------------------------------------------------------------------------------

BENCHES = {"train": train, "infer": infer, "latency": latency, "ppo": ppo, "clouds": clouds}


def add_benches(p):
    """Add a subcommand for each benchmark, with the flags that it uses. Returns them by name."""
    commands = p.add_subparsers(dest="what", required=True, metavar="BENCHMARK")
    found = {}
    for name, run in BENCHES.items():
        words, _, _ = run.__doc__.partition("\n")
        c = commands.add_parser(name, help=words, description=run.__doc__)
        c.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
        c.add_argument("--json", metavar="FILE", help="also write the figures here")
        found[name] = c
    return found


def parse(argv=None):
    """The command's flags."""
    p = Parser(
        "Time what this project claims, as ratios that are measured in one run.",
        examples=[
            "python bench.py train --batch 128 --K 8",
            "python bench.py infer --compile",
            "python bench.py infer --onnx pusht.onnx --threads 1",
            "python bench.py latency",
            "python bench.py ppo --task hopper --dims 64 128",
            "python bench.py clouds --task metaworld-door-open",
        ],
    )
    benches = add_benches(p)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in ("train", "infer", "latency", "ppo"):
        benches[name].add_argument("--device", default=default_device, help="torch device")
    for name in ("train", "infer", "latency", "clouds"):
        benches[name].add_argument("--n", type=int, default=200, help="timed repetitions")
    for name in ("train", "latency", "ppo"):
        benches[name].add_argument(
            "--dims",
            type=int,
            nargs="+",
            default=list(SMALL_DIMS),
            metavar="C",
            help="U-Net channels",
        )
    for name in ("infer", "latency"):
        benches[name].add_argument(
            "--compile", action="store_true", help="also torch.compile; needs a C++ compiler"
        )

    benches["infer"].add_argument(
        "--onnx", metavar="FILE", help="time this file of export.py, beside eager torch"
    )

    for name in ("train", "infer", "ppo"):
        benches[name].add_argument(
            "--task",
            default=None if name == "infer" else "pusht",
            help="a task; `python envs.py` lists them" + "; pusht if not given" * (name == "infer"),
        )

    c = benches["train"]
    c.add_argument("--encoder", choices=KINDS, help="of the task's cameras; small if not given")
    c.add_argument("--batch", type=int, default=32, metavar="B", help="observations")
    c.add_argument("--K", type=int, default=4, help="hypotheses")
    c.add_argument(
        "--temp", type=float, nargs="+", default=[0.2], metavar="TAU", help="temperatures"
    )
    c.add_argument(
        "--mode", choices=("chunk", "step"), default="chunk", help="drift over chunks or per step"
    )

    c = benches["ppo"]
    c.add_argument("--num-envs", type=int, help="simulators; dbpo_ppo.py's default if not given")
    c.add_argument("--num-steps", type=int, help="chunk steps an iteration; likewise")
    c.add_argument("--turns", type=int, default=2, help="runs of each kind, in turn")
    c.add_argument("--one-process", action="store_true", help="all simulators in one process")

    c = benches["clouds"]
    c.add_argument("--task", default="metaworld-assembly", help="a task seen as a point cloud")
    return p.parse_args(argv)


def main():
    """Run one benchmark; print its figures as JSON, and write them."""
    args = parse()
    numbers = ("n", "turns", "num_envs", "num_steps", "batch", "K", "temp", "dims", "threads")
    above_zero(args, *(name for name in numbers if name in args))
    check_output(args, "json")
    if "device" in args:
        check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    figures = BENCHES[args.what](args)
    result = {"bench": args.what, "flags": vars(args), "versions": versions(), **figures}
    text = json.dumps(result, indent=1)
    if args.json:
        atomic(args.json, lambda f: f.write(text.encode()))
    print(text)  # last: the file is there even if standard output is closed


if __name__ == "__main__":
    cli(main)
