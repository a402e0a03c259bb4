"""The arms and cameras that the robot's commands move and see, real or simulated, by flags."""

import argparse
import contextlib

from commands import BadInput
from safety import read_cell
from servo import Limits
from twin_model import ARM, HOSTS, RATE

ARMS = ("left", "right")
D_A = 2 * ARM


def add_robot(c):
    """Add the flags that say which arms and cameras."""
    c.add_argument(
        "--robot", choices=("twin", "ur5"), default="twin", help="the simulated arms, or real ones"
    )
    c.add_argument("--hosts", nargs=2, metavar="HOST", help="addresses of the left and right arm")
    c.add_argument("--servo-hz", type=int, choices=(125, 500), default=500, help="CB3: 125")
    c.add_argument("--action-hz", type=float, default=RATE, help="actions a second, as recorded")
    c.add_argument("--camera-hz", type=float, default=30, help="frames a second")
    c.add_argument(
        "--cameras", nargs="+", default=[], metavar="NAME=SERIAL", help="RealSense cameras"
    )
    c.add_argument(
        "--frames", metavar="FILE", help="recorded frames instead of cameras, for timing"
    )
    c.add_argument("--cell", metavar="JSON", help="limits and places of the arms: see ROBOT.md")
    c.add_argument("--start-seed", type=int, default=100_000, help="where the twin's things are")
    c.add_argument(
        "--switch",
        metavar="HOW",
        help="the operator's dead-man switch: keyboard, none, or a pedal's /dev/input/eventN; "
        "keyboard for ur5 and none for the twin if not given; `record` takes a pedal or none",
    )


def add_ensemble(c):
    """Add the flag of temporal ensembling."""
    c.add_argument(
        "--ensemble",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the arms go to the mean of the chunks that reach a time; else to the newest one's",
    )


def fit(policy, path, robot):
    """Refuse a policy that does not fit the two arms. Raises BadInput."""
    specs = policy.specs
    if policy.D_a != D_A:
        raise BadInput(
            f"{path} was trained on {policy.task}, with actions of {policy.D_a} numbers, but two "
            f"arms take {D_A}: pass a checkpoint of ur5-lift, ur5-can or ur5-transport"
        )
    others = [name for name, spec in specs.items() if spec["dtype"] != "uint8"]
    if others == ["state"] and robot == "twin":
        return
    if others != ["proprio"] or specs["proprio"]["shape"] != [D_A]:
        raise BadInput(
            f"{path} was trained on {policy.task}, which sees {', '.join(specs)}: --robot {robot} "
            f"has cameras and proprio ({D_A},)"
        )


def check_rate(policy, policy_hz, action_hz):
    """Refuse so few chunks a second that plans end before. None: as many as can be. BadInput."""
    least = action_hz / (policy.T_p - policy.T_o + 1)
    if policy_hz is not None and policy_hz <= least:
        raise BadInput(
            f"--policy-hz {policy_hz:g}: a plan would end before the next one comes; this policy "
            f"needs more than {least:g}"
        )


def servo_limits(cell):
    """An arm's servo's own Limits in a cell.

    A chunk that reaches the servo late would be caught up with faster than was checked, so it
    limits the speed, too; 2 % more, as it would lag behind for ever after a pause otherwise.
    """
    return Limits(speed=1.02 * cell.speed)


@contextlib.contextmanager
def connected(args, task, specs, encoded=None):
    """Inside the `with`: (arms, cameras, scene) as the flags say; both arms are stopped at its end.

    scene: a TwinScene of the twin, else None. encoded: of Cameras. Raises BadInput where something
    is missing.
    """
    from robot_cameras import Cameras, TwinScene
    from ur5 import Arm

    with contextlib.ExitStack() as stack:
        scene = None
        hosts = args.hosts
        if args.robot == "twin":
            from task_ur5 import scene_of
            from ur_server import ServerProcess

            flags = ("--task", scene_of(task.name), "--seed", args.start_seed)
            server = stack.enter_context(ServerProcess(*flags, "--rate", args.servo_hz))
            scene = TwinScene(server, task)
            hosts = HOSTS
        arms = [Arm(host, args.servo_hz, servo_limits(read_cell(args.cell))) for host in hosts]
        for arm in arms:
            stack.callback(arm.close)
            arm.start()
        for side, arm in zip(ARMS, arms):
            state = arm.state()
            if state.fault:
                raise BadInput(f"{side} arm {arm.host}: {state.fault}: `realrobot.py check` helps")
        names = [name for name in specs if name != "proprio"]
        cameras = Cameras(sources(args, names, specs, scene), args.camera_hz, encoded=encoded)
        stack.callback(cameras.close)
        cameras.start()
        for arm in arms:  # the first that is done at the end: what is closed after may take seconds
            stack.callback(arm.stop, "closed")
        yield arms, cameras, scene


def sources(args, names, specs, scene):
    """{name: source} of the observations that cameras give. Raises BadInput."""
    from robot_cameras import realsense, recorded

    if args.frames:
        from formats import read

        arrays = read(args.frames, names)
        missing = [name for name in names if name not in arrays]
        if missing:
            raise BadInput(f"{args.frames} has no frames of {', '.join(missing)}")
        for name in names:
            if list(arrays[name].shape[1:]) != list(specs[name]["shape"]):
                raise BadInput(
                    f"{args.frames} has {name} of {arrays[name].shape[1:]}, not "
                    f"{tuple(specs[name]['shape'])}"
                )
        return {name: recorded(arrays[name]) for name in names}
    if scene:
        return {name: scene.source(name) for name in names}
    serials = dict(pair.split("=", 1) for pair in args.cameras if "=" in pair)
    missing = [name for name in names if name not in serials]
    if missing:
        raise BadInput(f"no camera for {', '.join(missing)}: give --cameras NAME=SERIAL for each")
    return {name: realsense(serials[name], specs[name]["shape"], args.camera_hz) for name in names}
