"""What a run of realrobot.py needs, looked at one by one: `realrobot.py check`."""

import importlib.metadata
import socket
import time

import numpy as np

from commands import BadInput
from robot_setup import connected, fit
from twin_model import CAMERAS

PACKAGES = ("numpy", "torch", "mujoco", "ur_rtde", "onnxruntime")
PORTS = {30004: "RTDE", 30003: "script", 29999: "dashboard", 63352: "gripper"}
CALLS = 100  # of the policy, timed


def checks(args):
    """(what, whether it is ok, words) of each check."""
    yield from versions(args.robot)
    policy = None
    if args.ckpt:
        try:
            policy, line = fitting(args)
            yield line
            yield latency(policy)
        except BadInput as e:
            yield "checkpoint", False, str(e)
    if args.robot == "ur5":
        for side, host in zip(("left", "right"), args.hosts):
            yield from reached(side, host)
    yield from moving(args, policy)


def versions(robot):
    """The packages that are there."""
    only_for = {"onnxruntime": "*.onnx"} | ({"mujoco": "--robot twin"} if robot == "ur5" else {})
    for name in PACKAGES:
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            words = f"not there; only for {only_for.get(name)}"
            yield name, name in only_for, words if name in only_for else f"pip install {name}"


def fitting(args):
    """The policy of args.ckpt, and the line that it fits. Raises BadInput if it does not."""
    from export import load_policy

    policy = load_policy(args.ckpt)
    fit(policy, args.ckpt, args.robot)
    names = ", ".join(policy.specs)
    return policy, ("checkpoint", True, f"{policy.task}: {names} -> {policy.D_a} numbers")


def latency(policy):
    """How long the policy takes here, whose frames were encoded when they came."""
    obs = {
        name: np.zeros((1, policy.T_o, *spec["shape"]), spec["dtype"])
        for name, spec in policy.specs.items()
    }
    for name in policy.frame_sizes:
        seen = policy.encoded(name, obs[name][0, 0])
        obs[name] = np.stack([seen] * policy.T_o)[None]
    seconds = []
    for _ in range(10 + CALLS):
        begun = time.perf_counter()
        policy.act(policy.tensors(obs))
        seconds.append(time.perf_counter() - begun)
    p50, p99 = 1e3 * np.quantile(seconds[10:], [0.5, 0.99])
    words = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms: {1e3 / p50:.0f} Hz"
    if p99 > 100:
        return "policy latency", False, f"{words}: export it (export.py), or take a smaller one"
    return "policy latency", True, words


def reached(side, host):
    """Whether an arm's ports answer."""
    for port, name in PORTS.items():
        what = f"{side} arm, {name}"
        try:
            socket.create_connection((host, port), timeout=2).close()
            yield what, True, f"{host}:{port}"
        except OSError as e:
            words = f"{host}:{port} ({e.strerror or e}): check the cable, the address, the URCap"
            yield what, False, words


def moving(args, policy):
    """What the arms say of themselves, and the rates of servos and cameras, over two seconds.

    The cameras are those that the policy sees, each frame encoded as in a run, or without a policy
    those of --cameras.
    """
    from envs import task_named

    task = task_named(policy.task if policy else "ur5-lift")
    specs = policy.specs if policy else {}
    if policy is None and args.cameras:
        named = [pair.partition("=")[0] for pair in args.cameras]
        unknown = [name for name in named if name not in task.specs]
        if unknown:
            raise BadInput(f"--cameras {', '.join(unknown)}: the cameras are {', '.join(CAMERAS)}")
        specs = {name: task.specs[name] for name in named}
    encoded = policy.encoded if policy and policy.frame_sizes else None
    try:
        with connected(args, task, specs, encoded) as (arms, cameras, _):
            time.sleep(2)
            for side, arm in zip(("left", "right"), arms):
                state = arm.state()
                words = (
                    f"mode {state.mode}, safety bits {state.safety_bits:#b}, speed "
                    f"{100 * state.scaling:.0f} %, period p99 {1e3 * arm.periods()['p99']:.1f} ms"
                )
                yield f"{side} arm", state.fault is None, state.fault or words
            for name, hz in cameras.measured().items():
                ok = hz > 0.9 * args.camera_hz
                cure = "" if ok else f", not {args.camera_hz:g}: lower --camera-hz, or its load"
                yield name, ok, f"{hz:.1f} Hz{cure}"
    except BadInput as e:
        yield "arms and cameras", False, str(e)
