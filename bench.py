"""Time what this project claims, as ratios measured in one run.

  python bench.py train    one training step with the drift loss against the same step with a plain MSE loss
  python bench.py infer    one `act` call at batch 1: p50 and p99, eager and compiled, small and paper network
  python bench.py latency  the same over methods: DBP's one network evaluation against diffusion's 10 and 100
  python bench.py ppo      Stage 2: rates of roll-out and update, shares of simulator, network and update
  python bench.py clouds   one point cloud by rays, against MuJoCo's rendered depth where OpenGL is present
"""
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mujoco
import numpy as np
import torch

from baselines import METHODS, prepare
from drift import chunk_loss
from envs import TASKS, task_named
from pointcloud import cast, farthest, promising
from policy import Policy
from runs import BadInput, Parser, above_zero, atomic, check_device, cli, read_log, versions


def make_policy(dims, device, task=TASKS["pusht"], method="dbp"):
    shape = {k: getattr(task, k) for k in ("obs_dim", "D_a", "T_o", "T_p", "T_a", "points")}
    torch.manual_seed(0)
    unit = lambda d: (-torch.ones(d), torch.ones(d))
    shape.update(method=method, times=METHODS[method])
    return Policy({"task": task.name, "dims": dims, **shape}, unit(task.obs_dim), unit(task.D_a)).to(device)


def clock(device):
    """Seconds now, after the device has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(call, n, device, warm=3):
    """Seconds of n calls, one after another; `warm` calls before them do not count."""
    seconds = []
    for _ in range(warm + n):
        t0 = clock(device)
        call()
        seconds.append(clock(device) - t0)
    return seconds[warm:]


def quantiles(seconds):
    """p50, p99 and mean rate of a list of seconds, in ms and Hz."""
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "hz": round(1e3 / float(p50), 1)}


def train(args):
    """Alternate drift, MSE and K = 1 drift steps on one network and batch; quote the medians of the pairwise ratios."""
    policy = make_policy(args.dims, args.device).train()
    opt = torch.optim.AdamW(policy.parameters(), 1e-4, fused=True)
    B, K = args.batch, args.K
    obs = torch.rand(B, policy.T_o, policy.obs_dim, device=args.device) * 2 - 1
    pos = torch.rand(B, 1, policy.T_p, policy.D_a, device=args.device) * 2 - 1
    drift = lambda x: chunk_loss(x, pos, temps=args.temp, mode=args.mode)[0]
    steps = {"drift": (drift, K), "mse": (lambda x: (x - pos).square().mean(), K), "one": (drift, 1)}

    def step(loss, K):
        t0 = clock(args.device)
        loss(policy.hypotheses(obs, K)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        return clock(args.device) - t0

    for how in 3 * list(steps.values()):
        step(*how)
    times = {name: [] for name in steps}
    for i in range(args.n):
        for name in sorted(steps, reverse=i % 2):                  # alternate the order: none always goes first
            times[name].append(step(*steps[name]))
    ratio, over_one = (np.array(times["drift"]) / np.array(times[name]) for name in ("mse", "one"))
    x = policy.hypotheses(obs, K).detach().requires_grad_()
    alone = []
    for _ in range(args.n):
        t0 = clock(args.device)
        drift(x).backward()
        alone.append(clock(args.device) - t0)
    peak = (torch.cuda.max_memory_allocated() if torch.device(args.device).type == "cuda" else
            1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)         # the whole process, on a CPU
    return {"peak_mb": round(peak / 1e6, 1), "drift_step": quantiles(times["drift"]), "mse_step": quantiles(times["mse"]),
            "ratio_p50": round(float(np.median(ratio)), 4), "ratio_to_K1": round(float(np.median(over_one)), 3),
            "ratio_quartiles": np.quantile(ratio, [0.25, 0.75]).round(4).tolist(),
            "drift_loss_alone": quantiles(alone)}


def cost(args):
    """Eq. 58: time of a training step and peak memory over K and batch B, each in a process of its own, as ratios to
    K = 1 of the same batch, the time's of steps that take turns. Returns rows."""
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        for B in (32, 64, 128):
            for K in (1, 2, 4, 8, 16):
                out = Path(tmp, "x.json")
                flags = [x for k in ("device", "threads") if getattr(args, k) for x in (f"--{k}", getattr(args, k))]
                if args.dims != ["auto"]:
                    flags += ["--dims", *args.dims]
                command = [sys.executable, __file__, "train", "--batch", B, "--K", K, "--n", 20, "--json", out, *flags]
                p = subprocess.run(list(map(str, command)), capture_output=True, text=True)
                if p.returncode:
                    raise BadInput(f"B {B}, K {K} failed: {p.stderr.strip().splitlines()[-1]}")
                found = json.loads(out.read_text())
                row = {"batch": B, "K": K, "ms": found["drift_step"]["p50_ms"], "MB": found["peak_mb"]}
                first = next((r for r in rows if r["batch"] == B), row)
                rows.append({**row, "r_time": found["ratio_to_K1"], "r_memory": round(row["MB"] / first["MB"], 3)})
                print(rows[-1], flush=True)
    return rows


def infer(args):
    """Latency of one act call at batch 1, as a robot would call it: observation in, chunk out, device synchronised."""
    rows = {}
    for name, dims in (("small", (64, 128, 256)), ("paper", (512, 1024, 2048))):
        policy = make_policy(dims, args.device).eval()
        obs = torch.rand(1, policy.T_o, policy.obs_dim, device=args.device)
        for how in ("eager", "compiled") if args.compile else ("eager",):
            if how == "compiled":
                policy.net.compile()
            rows[f"{name} {how}"] = quantiles(timed(lambda: policy.act(obs), args.n, args.device, warm=10))
            print(name, how, rows[f"{name} {how}"], flush=True)
    return rows


def latency(args):
    """Milliseconds of an action at batch 1 by method and number of network evaluations (NFE), as counted, on the same
    channels; ratios of the p50s to DBP's and to the bare generator's. All take turns, so that what else the machine
    does falls on all alike."""
    ways = {"dbp, 1 NFE": ("dbp", 1), "meanflow, 1 NFE": ("meanflow", 1), "diffusion, 10 NFE": ("diffusion", 10),
            "diffusion, 100 NFE": ("diffusion", 100)}
    rows = {}
    for how in ("eager", "compiled") if args.compile else ("eager",):
        policies = {name: prepare(make_policy(args.dims, args.device, method=m).eval(), nfe) for name, (m, nfe) in ways.items()}
        dbp = policies["dbp, 1 NFE"]
        obs = torch.rand(1, dbp.T_o, dbp.obs_dim, device=args.device)
        with torch.inference_mode():
            h, z = dbp.features(obs), dbp.latent(1)
        calls = {name: functools.partial(policy.act, obs) for name, policy in policies.items()}
        calls["generator alone"] = torch.inference_mode()(functools.partial(dbp.net, z, h))
        if how == "compiled":
            for policy in policies.values():
                policy.net.compile()
        seconds = {name: [] for name in calls}
        for _ in range(args.n + 3):
            for name, call in calls.items():
                seconds[name] += timed(call, 1, args.device, warm=0)
        p50 = {name: float(np.median(s[3:])) for name, s in seconds.items()}
        for name, s in seconds.items():
            nfe = policies[name].nfe // len(s) if name in policies else 1
            rows[f"{name}, {how}"] = {"nfe": nfe, **quantiles(s[3:]), "ratio_to_dbp": round(p50[name] / p50["dbp, 1 NFE"], 2),
                                      "ratio_to_generator": round(p50[name] / p50["generator alone"], 2)}
            print(f"{name}, {how}", rows[f"{name}, {how}"], flush=True)
    return rows


def ppo(args):
    """Run dbpo_ppo.py itself on an untrained policy, as it is and with two generator calls per sample, in turn.

    Its log says how long each iteration spent in the simulator, in the rest of the roll-out (network) and in the
    update. Medians over the iterations but the first of each run.
    """
    rows = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as tmp:
        make_policy(args.dims, "cpu", task_named(args.task)).save(Path(tmp) / "init.pt")
        for turn in range(args.turns):
            for calls in rows:
                out = Path(tmp) / f"{calls}-{turn}"
                command = [sys.executable, Path(__file__).with_name("dbpo_ppo.py"), "--init", Path(tmp) / "init.pt",
                           "--out", out, "--iters", 4, "--calls", calls, "--critic-warmup", 0, "--target-kl", 1e9,
                           "--lr", 1e-9, "--eval-every", 0, "--episodes", 1, "--device", args.device,
                           *(x for k in ("envs", "chunks", "threads") if getattr(args, k)
                             for x in (f"--{k}", getattr(args, k))),
                           *(["--one-process"] if args.one_process else [])]
                p = subprocess.run([str(c) for c in command], capture_output=True, text=True)
                if p.returncode:
                    raise BadInput(f"dbpo_ppo.py failed: {p.stderr.strip().splitlines()[-1]}")
                flags = json.loads((out / "flags.json").read_text())["flags"]
                rows[calls] += [r for r in read_log(out) if "update_s" in r][1:]
    steps = flags["envs"] * flags["chunks"]
    found = {}
    for calls, own in rows.items():
        sim, roll, up = (np.median([r[k] for r in own]) for k in ("sim_s", "rollout_s", "update_s"))
        found[calls] = {"rollout_env_steps_per_s": round(steps * TASKS[args.task].T_a / roll),
                        "update_samples_per_s": round(steps * flags["epochs"] / up),
                        "share_simulator": round(sim / (roll + up), 3),
                        "share_network": round((roll - sim) / (roll + up), 3),
                        "share_update": round(up / (roll + up), 3), "iteration_s": round(roll + up, 2)}
    ratio = lambda k: round(found[2][k] / found[1][k], 3)
    return {"envs": flags["envs"], "chunks": flags["chunks"], "epochs": flags["epochs"], "minibatch": flags["batch"],
            "one_call": found[1], "two_calls": found[2], "iteration_ratio": ratio("iteration_s"),
            "update_rate_ratio": ratio("update_samples_per_s")}


def clouds(args):
    """Milliseconds of each part of a cloud, and of rendered depth turned into one, in turn on the same state."""
    env = task_named(args.task if task_named(args.task).points else "metaworld-assembly").env()
    env.reset(seed=0)
    model, data, camera = env.model, env.settled(), env.camera
    low, high = np.asarray(env.box)
    keep = lambda points: points[((points > low) & (points < high)).all(1)].astype(np.float32)
    points = keep(cast(model, data, camera)[0])
    parts = {"settle": env.settled, "all rays": lambda: cast(model, data, camera), "sampling": lambda: farthest(points, 512),
             "observation": env.observe}
    parts["promising rays"] = lambda: cast(model, data, camera, only=promising(model, data, camera, env.box))
    try:
        if os.environ.get("MUJOCO_GL") not in ("egl", "osmesa"):               # making a window without a display may crash
            raise ImportError("MUJOCO_GL is not set")
        renderer = mujoco.Renderer(model, camera.size, camera.size)
        free = mujoco.MjvCamera()               # where the ray camera stands: its pose as azimuth and elevation
        ahead = -camera.matrix()[:, 2]
        free.lookat, free.distance = np.asarray(camera.pos) + ahead, 1.0
        free.azimuth, free.elevation = np.rad2deg(np.arctan2(ahead[1], ahead[0])), np.rad2deg(np.arcsin(ahead[2]))
        fovy, model.vis.global_.fovy = model.vis.global_.fovy, camera.fovy
        renderer.enable_depth_rendering()
        rays = camera.directions()

        def rendered():
            renderer.update_scene(data, free)
            return farthest(keep(np.asarray(camera.pos) + renderer.render().ravel()[:, None] / (rays @ ahead)[:, None] * rays), 512)
        parts["rendered depth and sampling"] = rendered
    except Exception as e:      # the kind depends on the GL platform
        print(f"rendered depth is not timed: no OpenGL ({type(e).__name__}: {e}): set MUJOCO_GL=egl or osmesa")
    times = {name: [] for name in parts}
    for i in range(args.n + 3):
        for name, part in parts.items():
            t0 = time.perf_counter()
            part()
            times[name].append(time.perf_counter() - t0)
    return {"points_in_crop": len(points), "rays": camera.size ** 2, **{k: quantiles(v[3:]) for k, v in times.items()}}


def main():
    p = Parser(__doc__)
    p.add_argument("what", choices=("train", "infer", "latency", "ppo", "clouds"))
    p.add_argument("--task", default="pusht", choices=list(TASKS), help="task (ppo, clouds)")
    p.add_argument("--envs", type=int, help="simulators; dbpo_ppo.py's default if not given (ppo)")
    p.add_argument("--chunks", type=int, help="chunk steps an iteration; likewise (ppo)")
    p.add_argument("--turns", type=int, default=2, help="runs of each kind, in turn (ppo)")
    p.add_argument("--one-process", action="store_true", help="all simulators in one process (ppo)")
    p.add_argument("--dims", type=int, nargs="+", default=[64, 128, 256], help="U-Net channels (train, latency, ppo)")
    p.add_argument("--batch", type=int, default=32, help="observations B (train)")
    p.add_argument("--K", type=int, default=4, help="hypotheses K (train)")
    p.add_argument("--temp", type=float, nargs="+", default=[0.2], help="temperatures tau (train)")
    p.add_argument("--mode", choices=("chunk", "step"), default="chunk", help="drift over chunks or per step (train)")
    p.add_argument("--n", type=int, default=200, help="timed repetitions")
    p.add_argument("--compile", action="store_true", help="also torch.compile (infer, latency; needs a C++ compiler)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    p.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
    p.add_argument("--json", help="also write the figures here")
    args = p.parse_args()
    above_zero(args, "n", "turns", "envs", "chunks", "batch", "K", "temp", "threads")
    check_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    figures = {"train": train, "infer": infer, "latency": latency, "ppo": ppo, "clouds": clouds}[args.what](args)
    result = {"bench": args.what, "flags": vars(args), "versions": versions(), **figures}
    print(json.dumps(result, indent=1))
    if args.json:
        atomic(args.json, lambda f: f.write(json.dumps(result, indent=1).encode()))


if __name__ == "__main__":
    cli(main)
