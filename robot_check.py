"""What a run of realrobot.py needs, looked at one by one: `realrobot.py check`."""

import importlib.metadata
import socket
import time

import numpy as np

from commands import BadInput

PACKAGES = ("numpy", "torch", "mujoco", "ur_rtde", "onnxruntime")
NEEDED = ("numpy", "torch", "ur_rtde")
PORTS = {30004: "RTDE", 30003: "script", 29999: "dashboard", 63352: "gripper"}
CALLS = 100  # of the policy, timed


def checks(args, fit, connected):
    """(what, whether it is ok, words) of each check. fit, connected: of realrobot.py."""
    yield from versions()
    policy = None
    if args.ckpt:
        try:
            policy, line = fitting(args, fit)
            yield line
            yield latency(policy)
        except BadInput as e:
            yield "checkpoint", False, str(e)
    if args.robot == "ur5":
        for side, host in zip(("left", "right"), args.hosts):
            yield from reached(side, host)
    yield from moving(args, connected, policy)


def versions():
    """The packages that are there."""
    for name in PACKAGES:
        try:
            yield name, True, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            words = f"pip install {name}" if name in NEEDED else "not there; only for *.onnx"
            yield name, name not in NEEDED, words


def fitting(args, fit):
    """The policy of args.ckpt, and the line that it fits. Raises BadInput if it does not."""
    from export import load_policy

    policy = load_policy(args.ckpt)
    fit(policy, args.ckpt, args.robot)
    names = ", ".join(policy.specs)
    return policy, ("checkpoint", True, f"{policy.task}: {names} -> {policy.D_a} numbers")


def latency(policy):
    """How long the policy takes here."""
    obs = {
        name: np.zeros((1, policy.T_o, *spec["shape"]), spec["dtype"])
        for name, spec in policy.specs.items()
    }
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


def moving(args, connected, policy):
    """What the arms say of themselves, and the rates of servos and cameras, over two seconds."""
    from envs import task_named

    task = task_named(policy.task if policy else "ur5-lift-state")
    specs = policy.specs if policy else {}
    try:
        with connected(args, task, specs) as (arms, cameras, _):
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
