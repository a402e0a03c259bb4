"""How many starts the robot's loop succeeds from, on the twin in simulated time.

  python robot_trials.py ckpt.pt --episodes 50
  python robot_trials.py ckpt.pt --camera-hz 60 --network-ms 5

It is the loop of `realrobot.py run --robot twin`, with its limits, its servos and its cameras, but
the clock is the simulation's, so a run repeats to the digit on a machine, whatever else that does.
What the wall clock decides there are flags here: how long the network takes, and how old a frame is
when it arrives. evaluate.py knows neither: there the arms wait for the policy, and frames and arms
are of one moment. So the difference of the two is what the loop costs.
"""

import startup  # noqa: F401 - first, see there

import collections
import json

import numpy as np
from tqdm import tqdm

from commands import BadInput, Parser, above_zero, check_seed, cli
from evaluate import bootstrap
from export import load_policy
from files import atomic, check_output
from realrobot import WATCH, Loop
from robot_cameras import Cameras
from robot_setup import add_ensemble, check_rate, fit, servo_limits
from safety import Patience, read_cell
from task_ur5 import SIDE, scene_of, state_of
from twin_model import RATE
from ur5 import FakeArm

PERIOD = 0.002  # seconds of the servos
SETTLE = 0.3  # seconds before the first chunk


class Clock:
    """A simulated clock: t seconds."""

    def __init__(self):
        self.t = 0.0

    def __call__(self):
        return self.t


class TwinArm(FakeArm):
    """An arm of the twin. Its time is the trial's, who moves both arms together."""

    def live(self):
        """Nothing: see Trial.pass_by."""


class SlowLoop(Loop):
    """A Loop whose network takes a while. wait: a function that lets seconds pass by."""

    def __init__(self, *args, wait, seconds, **how):
        super().__init__(*args, **how)
        self.wait = wait
        self.seconds = seconds

    def act(self, obs, t_obs):
        chunk = super().act(obs, t_obs)
        self.wait(self.seconds)
        return chunk


class Trial:
    """Start k of the twin, and the loop that moves its arms.

    twin: a Table. drawn: a Twin of the same scene, for the cameras. args: the flags.
    """

    def __init__(self, policy, twin, drawn, cell, k, args):
        twin.reset(args.start_seed + k)
        self.twin = twin
        self.drawn = drawn
        self.clock = Clock()
        limits = servo_limits(cell)
        self.arms = [
            TwinArm(limits=limits, clock=self.clock, plant=twin, i=i, rate=1 / PERIOD)
            for i in range(2)
        ]
        for arm in self.arms:
            arm.start()
        names = [name for name in policy.specs if name != "proprio"]
        encoded = policy.encoded if policy.frame_sizes else None
        self.cameras = Cameras(dict.fromkeys(names), args.camera_hz, self.clock, encoded)
        self.between = 1 / args.camera_hz
        self.delay = args.camera_ms / 1e3
        self.exposed = collections.deque()  # (when it was captured, the twin's state)
        self.expose = 0.0  # when the next frame is
        self.success = False
        self.loop = None  # until its arms have settled
        self.pass_by(SETTLE)
        self.loop = SlowLoop(
            policy,
            self.arms,
            self.cameras,
            cell,
            dt=1 / RATE,
            patience=Patience(frame=self.delay + 2 / args.camera_hz),
            clock=self.clock,
            ensemble=args.ensemble,
            seed=args.seed + k,
            wait=self.pass_by,
            seconds=args.network_ms / 1e3,
        )

    def run(self, seconds, hz):
        """Cycle hz times a second until the task is done, or for that long -> the seconds."""
        begun = self.clock()
        due = begun
        while self.clock() - begun < seconds and not self.success and self.loop.cycle():
            due = self.loop.next_due(due, hz)
            self.pass_by(max(due - self.clock(), PERIOD))
        return self.clock() - begun

    def pass_by(self, seconds):
        """Let time pass: servos, physics, cameras, and the loop's second thread."""
        for _ in range(round(seconds / PERIOD)):
            self.clock.t += PERIOD
            for arm in self.arms:
                arm.time = self.clock.t
                arm.controller.update(PERIOD)
            self.twin.step()
            for arm in self.arms:
                arm.servo.cycle(self.clock.t)
            self.look()
            self.success = self.success or self.twin.success()
            if self.loop and self.clock.t % WATCH < PERIOD:
                self.loop.guard()

    def look(self):
        """Expose a frame of every camera if it is time, and hand over those that arrive."""
        if self.clock.t >= self.expose:
            self.expose += self.between
            self.exposed.append((self.clock.t, self.twin.state()))
        while self.exposed and self.exposed[0][0] + self.delay <= self.clock.t:
            t, state = self.exposed.popleft()
            self.drawn.set_state(state)
            for name in self.cameras.sources:
                seen = state_of(self.drawn) if name == "state" else self.drawn.draw(name)
                self.cameras.sources[name] = lambda found=(t, seen): found
                self.cameras.capture(name)


def parse(argv=None):
    """The flags."""
    p = Parser(
        __doc__,
        examples=[
            "python robot_trials.py runs/ur5-lift-dbp-seed0/ckpt.pt --episodes 50",
            "python robot_trials.py lift.onnx --network-ms 5 --json trials.json",
        ],
    )
    p.add_argument("ckpt", help="a checkpoint of a UR5 task, or a file *.onnx of export.py")
    p.add_argument("--episodes", type=int, default=20, help="starts")
    p.add_argument("--start-seed", type=int, default=100_000, help="of the first start")
    p.add_argument("--seconds", type=float, default=12, help="that a start is given")
    p.add_argument("--policy-hz", type=float, default=10, help="chunks a second")
    p.add_argument("--network-ms", type=float, default=12, help="from observation to chunk")
    p.add_argument("--camera-hz", type=float, default=30, help="frames a second")
    p.add_argument("--camera-ms", type=float, default=8, help="from a frame's moment to its coming")
    p.add_argument("--cell", metavar="JSON", help="limits of the arms: see ROBOT.md")
    add_ensemble(p)
    p.add_argument(
        "--seed", type=int, default=0, help="of the first start's latents z; each has its own"
    )
    p.add_argument("--json", metavar="FILE", help="write what was found there")
    return p.parse_args(argv)


def main():
    """Run the command."""
    import torch

    from twin import Twin
    from ur_server import Table

    args = parse()
    above_zero(args, "episodes", "seconds", "policy_hz", "camera_hz")
    for name in ("network_ms", "camera_ms"):
        if not 0 <= getattr(args, name) < 1e3:
            raise BadInput(f"--{name.replace('_', '-')} must lie in 0 .. 1000")
    check_seed(args, "start_seed", below=2**32, n=args.episodes)
    check_seed(args, "seed")
    if args.json:
        check_output(args, "json")
    policy = load_policy(args.ckpt)
    fit(policy, args.ckpt, "twin")
    check_rate(policy, args.policy_hz, RATE)
    cell = read_cell(args.cell)
    torch.set_num_threads(1)
    scene = scene_of(policy.task)
    twin = Table(scene, size=SIDE)
    drawn = Twin(scene, size=SIDE)
    won = []
    seconds = []
    events = collections.Counter()
    with tqdm(range(args.episodes), unit="start", disable=None) as bar:
        for k in bar:
            trial = Trial(policy, twin, drawn, cell, k, args)
            seconds.append(trial.run(args.seconds, args.policy_hz))
            won.append(trial.success)
            for event in trial.loop.log.events:
                events[event["text"].partition(":")[0]] += event["count"]
            bar.set_postfix(success=f"{np.mean(won):.2f}")
    low, high = bootstrap(np.array(won, float))
    taken = np.mean(np.array(seconds)[won]) if any(won) else float("nan")
    told = ", ".join(f"{n} {name}" for name, n in events.items()) or "no events"
    print(
        f"success {np.mean(won):.2f} [{low:.2f}, {high:.2f}]  {args.episodes} starts, "
        f"{taken:.1f} s each where it succeeds  {told}  {args.ckpt}"
    )
    if args.json:
        found = {"flags": vars(args), "success": float(np.mean(won)), "success_95": [low, high]}
        found |= {"won": [int(w) for w in won], "seconds": seconds, "events": events}
        atomic(args.json, lambda f: f.write(json.dumps(found).encode()))


if __name__ == "__main__":
    cli(main)
