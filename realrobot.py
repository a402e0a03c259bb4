"""Two UR5 arms by a policy: check the setup, record demonstrations, run, replay a recording.

  python realrobot.py run ckpt.pt --robot twin
  python realrobot.py run ckpt.onnx --robot ur5 --hosts 192.168.1.10 192.168.1.11 --cell cell.json

The twin is a simulation that speaks the arms' own protocol, so both run the same code: see
ROBOT.md. `Loop` is all of it. The policy never talks to a servo. In each cycle

  observe    the newest frames, where the arms were when they were captured, and the same T_o - 1
             steps of dt before; each frame was encoded once, when it was captured
  act        one network evaluation: a chunk of targets, each with the time that it is for
  schedule   targets whose time has passed are dropped, there is always one left, and at each time
             that is left the mean of the chunks that reach it is taken (note 61)
  limit      what breaks a limit is clipped or refused (safety.py)
  send       the chunk overwrites the future of each arm's plan

and each arm's own process follows its plan at the arm's own rate (ur5.py). So cameras, policy and
servos have independent rates, and a chunk that comes late leaves the tail of the one before. A
second thread looks after the arms while the network works: what is stale or late makes both hold,
what is broken stops both for good. Nothing is ever reset by itself: a person looks first.
"""

import startup  # noqa: F401 - first, see there

import contextlib
import threading
import time
from collections import deque

import numpy as np

from commands import BadInput, Parser, above_zero, check_seed, cli, refuse_flags
from files import check_folder, check_output
from plan import ensembled, schedule
from robot_log import Log
from robot_motion import always, go_home, replay, targets
from robot_setup import D_A, add_ensemble, add_robot, check_rate, connected, fit
from safety import (
    GO,
    HOLD,
    STOP,
    Patience,
    Refused,
    check_chunk,
    judge,
    limited,
    read_cell,
)
from twin_model import ARM, RATE

FIRST = 1.0  # seconds that the first chunk may take
WATCH = 0.01  # seconds between two looks of the second thread


def numbers(state):
    """What an arm measures, (7,): joints and gripper."""
    return np.append(state.q, state.gripper)


# ---- the loop ------------------------------------------------------------------------------------


class Loop:
    """A policy that moves two arms.

    policy: a Policy or an OnnxPolicy. arms: two Arms or FakeArms, started. cameras: a Cameras,
    started, of all observations but "proprio". cell, patience: see safety.py. dt: seconds of an
    action. clock: of the arms and the cameras, too. pressed: whether the operator's switch is.
    ensemble: take the mean of the chunks that reach a time, instead of the newest. view: a View.
    """

    def __init__(
        self,
        policy,
        arms,
        cameras,
        cell,
        *,
        dt=1 / RATE,
        patience=None,
        clock=time.monotonic,
        pressed=None,
        ensemble=False,
        seed=0,
        view=None,
    ):
        import torch  # slow; the arms' processes import this file, too

        self.policy = policy
        self.arms = arms
        self.cameras = cameras
        self.cell = cell
        self.dt = dt
        self.patience = patience or Patience()
        self.clock = clock
        self.pressed = pressed or always
        self.ensemble = ensemble
        self.chunks = deque(maxlen=policy.T_p)  # of the ensemble, see there
        self.generator = torch.Generator().manual_seed(seed)
        self.z = None
        self.z_until = -np.inf
        self.history = deque()  # (time, proprio (14,)), as far back as observations go
        self.view = view
        self.planned = None  # the targets that the arms have, (n, 2, 7)
        self.refused = False  # whether the newest chunk was
        self.plan_end = None  # the time of the last target that the arms have
        self.held = None  # since when they are held
        self.stopped = ""  # why they were stopped
        self.lock = threading.RLock()  # of what is said to the arms
        self.log = Log(cameras.times())

    # ---- one cycle

    def cycle(self):
        """Observe, act, schedule, limit, send -> whether the loop may go on."""
        begun = self.clock()
        self.refused = False
        level, states = self.guard(late=False)
        row = self.row(begun, states)
        if level == GO:
            obs, t_obs = self.observe(states)
            row["observed"] = self.clock()
            chunk = self.act(obs, t_obs)
            row["inferred"] = self.clock()
            self.send(chunk, t_obs, row)
        self.log.add(**row)
        if self.view:
            self.view.show(row, self.planned, self.log.events)
        return level != STOP

    def observe(self, states):
        """Observations {name: (1, T_o, ...)} and the time of the newest: that of the oldest camera.

        At each of the T_o times, dt apart, a frame is the one that was captured nearest to it, and
        the arms are where they were then: pictures and arms of two times are a place that the
        policy has never seen (note 55).
        """
        t_obs = min([*self.cameras.times().values(), *(state.t for state in states)])
        times = t_obs - self.dt * np.arange(self.policy.T_o - 1, -1, -1)
        with self.lock:
            while len(self.history) > 1 and self.history[1][0] <= times[0]:
                self.history.popleft()  # nobody asks for what was before
        obs = {}
        for name in self.policy.specs:
            seen = self.measured(times) if name == "proprio" else self.cameras.at(name, times)
            obs[name] = seen[None]
        return obs, t_obs

    def remember(self, states):
        """Keep where the arms are: the newest states, and one for every WATCH seconds before."""
        t = min(state.t for state in states)
        if self.history and t <= self.history[-1][0]:
            return
        if len(self.history) > 1 and self.history[-1][0] - self.history[-2][0] < WATCH:
            self.history.pop()
        self.history.append((t, np.concatenate([numbers(state) for state in states])))

    def measured(self, times):
        """The arms' joints and grippers at times (n,): (n, 14) float32, the first ones before."""
        with self.lock:
            own = [t for t, _ in self.history]
            values = np.array([numbers for _, numbers in self.history])
        return np.stack([np.interp(times, own, y) for y in values.T], 1).astype(np.float32)

    def act(self, obs, t_obs):
        """One network evaluation: a chunk (T_p, D_a).

        Its latent stays for T_a steps, unless a chunk is refused: another one may lead another way
        around an obstacle, and the arms would dither between the two (note 54).
        """
        if t_obs >= self.z_until:
            self.z = self.policy.z_scale * self.policy.latent(1, generator=self.generator)
            self.z_until = t_obs + self.dt * self.policy.T_a
        return self.policy.act(self.policy.tensors(obs), self.z)[0].numpy()

    def send(self, chunk, t_obs, row):
        """Overwrite the arms' plans by a chunk. A refused one is noted, and the plans go on."""
        with self.lock:
            level, states = self.guard(late=False)
            now = self.clock()
            if level != GO:
                return
            try:
                check_chunk(chunk, self.policy.T_p, D_A)
                times, points = schedule(chunk, t_obs, now, self.dt, self.policy.T_o)
                if self.ensemble:
                    points = self.mean(chunk, t_obs, times)
                here = np.stack([targets(state) for state in states])
                speed = np.stack([state.qd for state in states])
                points, clipped = limited(times, points, now, here, speed, self.cell)
            except Refused as e:
                self.chunks.clear()  # it counts in no later mean
                self.z_until = -np.inf  # another latent may lead another way, which is allowed
                self.refused = True
                self.log.event(now, f"chunk refused: {e}")
                return
            if clipped:
                self.log.event(now, f"clipped: {', '.join(clipped)}")
            if len(points) == 0:  # at a limit of space: stay
                points = here[None]
            times = times[: len(points)]
            for i, arm in enumerate(self.arms):
                arm.plan(times, points[:, i, :6], points[:, i, 6])
            self.planned = points
            self.plan_end = times[-1]
            row.update(commanded=self.clock(), used=len(points), first=points[0])

    def mean(self, chunk, t_obs, times):
        """The mean of a chunk (T_p, D_a) and those before it at times (n,): points (n, 2, 7).

        Of these there is one a step, however many chunks were made in it (note 61).
        """
        if len(self.chunks) > 1 and self.chunks[-1][0] - self.chunks[-2][0] < self.dt - 1e-6:
            self.chunks.pop()
        actions = np.asarray(chunk, float)[self.policy.T_o - 1 :]
        self.chunks.append((t_obs + self.dt, actions))
        return ensembled(self.chunks, times, self.dt)

    # ---- what looks after the arms

    def guard(self, late=True):
        """Hold or stop both arms if there is a reason -> GO, HOLD or STOP, and their states.

        late: also if the plan has ended. The loop itself is about to make a new one.
        """
        with self.lock:
            states = [arm.state() for arm in self.arms]
            self.remember(states)
            now = self.clock()
            if self.stopped:
                return STOP, states
            plan_end = self.plan_end if late else None
            seen = (states, self.cameras.times(), plan_end, self.held, self.pressed())
            level, reason = judge(now, *seen, self.patience)
            if level == STOP:
                self.stop(reason, now)
            elif level == GO and late:
                self.held = None
            elif level == HOLD and self.held is None:
                self.held = now
                for arm in self.arms:
                    arm.hold()
                self.chunks.clear()  # they lead on from where the arms would be by now
                self.log.event(now, f"held: {reason}")
            return level, states

    def stop(self, reason, now):
        """Stop both arms for good."""
        self.stopped = reason
        for arm in self.arms:
            arm.stop(reason)
        self.chunks.clear()
        self.log.event(now, f"stopped: {reason}")

    def watch(self, ended):
        """Look after the arms until the event `ended`, also while the network works or hangs."""
        while not ended.wait(WATCH):
            try:
                self.guard()
            except Exception as e:  # nobody would look after the arms any more
                with self.lock:
                    self.stop(f"{type(e).__name__}: {e}", self.clock())

    def row(self, begun, states):
        """A row of the log, without what the cycle will add."""
        nothing = np.full((2, ARM), np.nan)
        return {
            "begun": begun,
            "state_t": [state.t for state in states],
            "frame_t": list(self.cameras.times().values()),
            "observed": np.nan,
            "inferred": np.nan,
            "commanded": np.nan,
            "q": np.stack([numbers(state) for state in states]),
            "target": np.stack([targets(state) for state in states]),
            "used": 0,
            "first": nothing,
        }

    # ---- many cycles

    def run(self, seconds, *, hz=None, until=None):
        """Cycle for some seconds, as fast as the network is or at hz, or until until() is true."""
        self.plan_end = self.clock() + FIRST
        ended = threading.Event()
        watcher = threading.Thread(target=self.watch, args=(ended,), daemon=True)
        watcher.start()
        end = self.clock() + seconds
        due = self.clock()
        try:
            while self.clock() < end and self.cycle() and not (until and until()):
                if hz:
                    due = self.next_due(due, hz)
                    time.sleep(max(0, due - self.clock()))
        finally:
            with self.lock:  # or the plan's tail would go on, and nobody would look
                for arm in self.arms:
                    arm.hold()
            ended.set()
            watcher.join()

    def next_due(self, due, hz):
        """When the cycle is due that follows the one that was due then, with hz of them a second.

        That is at once after a refused chunk, and a step before the plan ends, which it does early
        where a limit of space cut it: else the arms would be held, and stopped, for want of a plan.
        """
        now = self.clock()
        if self.refused:
            return now
        due = max(due + 1 / hz, now - 1 / hz)
        if self.plan_end > now:
            due = min(due, max(self.plan_end - self.dt, now + WATCH))
        return due

    def summary(self):
        """The log's summary, the servos' periods and the reason of a stop."""
        found = self.log.summary()
        for name in ("p50", "p99"):
            found[f"servo_period_{name}_ms"] = 1e3 * max(arm.periods()[name] for arm in self.arms)
        found["camera_hz"] = {name: round(hz, 1) for name, hz in self.cameras.measured().items()}
        found["stopped"] = self.stopped
        return found


# ---- the commands --------------------------------------------------------------------------------


def run(args):
    """A policy moves the arms: it logs every cycle, and prints rates, latencies and events."""
    import torch

    from envs import task_named
    from export import load_policy
    from robot_switch import switch
    from robot_view import View

    policy = load_policy(args.ckpt)
    fit(policy, args.ckpt, args.robot)
    task = task_named(policy.task)
    check_rate(policy, args.policy_hz, args.action_hz)
    cell = read_cell(args.cell)
    torch.set_num_threads(1)
    for name in policy.frame_sizes:  # warm up
        policy.encoded(name, np.zeros(policy.specs[name]["shape"], np.uint8))
    encoded = policy.encoded if policy.frame_sizes else None
    with (
        contextlib.ExitStack() as last,  # what ends after the arms
        connected(args, task, policy.specs, encoded) as (arms, cameras, scene),
        switch(args) as pressed,
    ):
        view = None
        if args.view is not None:
            view = last.enter_context(contextlib.closing(View(args.view, cameras, cell)))
        loop = Loop(
            policy,
            arms,
            cameras,
            cell,
            dt=1 / args.action_hz,
            patience=Patience(frame=2 / args.camera_hz),
            pressed=pressed,
            ensemble=args.ensemble,
            seed=args.seed,
            view=view,
        )
        try:
            go_home(arms, cell, pressed=pressed)
            loop.act(loop.observe(loop.guard(late=False)[1])[0], -np.inf)  # warm up
            until = (lambda: scene.success) if scene and not args.frames else None
            loop.run(args.seconds, hz=args.policy_hz, until=until)
        except Refused as e:
            loop.stop(str(e), time.monotonic())
        finally:
            found = loop.summary()
            if scene and not args.frames:
                found["success"] = scene.success
            loop.log.about = {"ckpt": str(args.ckpt), "summary": found}
            loop.log.save(args.log)
    print_summary(found, loop.log, args.log)
    if loop.stopped:
        raise BadInput(f"stopped: {loop.stopped}: look at the arms before you start again")


def print_summary(found, log, path):
    """Print what a run reached, and its events."""
    for name, value in found.items():
        print(f"{name:34} {round(value, 3) if isinstance(value, float) else value}")
    for event in log.events:
        times = f" ({event['count']} times)" if event["count"] > 1 else ""
        print(f"event: {event['text']}{times}")
    print(f"log: {path}")


def record(args):
    """Record demonstrations as a LeRobotDataset: of the twin's scripted expert, or of a person."""
    import robot_record
    from envs import task_named
    from robot_spacemouse import spacemouse
    from robot_switch import keys, switch

    task = task_named(args.task)
    if task.D_a != D_A:
        raise BadInput(f"{args.task} is no task of the two arms: give --task ur5-lift")
    if args.by != "spacemouse":
        refuse_flags(args, ["spacemouse"], f"--by {args.by}")
    if args.by == "expert":
        if args.robot == "ur5":
            raise BadInput(
                "the scripted expert knows only the twin: give --by keyboard or --by spacemouse"
            )
        if args.action_hz != RATE:
            raise BadInput(f"the scripted expert acts at {RATE} Hz: leave --action-hz out")
        refuse_flags(args, ["switch"], "--by expert")
        return robot_record.by_expert(task, args)
    if args.switch == "keyboard":
        raise BadInput("--switch keyboard: the keyboard moves the arms here, give a pedal or none")
    args.switch = args.switch or "none"
    hand = spacemouse(args.spacemouse) if args.by == "spacemouse" else contextlib.nullcontext()
    with (
        keys() as typed,
        hand as cap,
        connected(args, task, task.specs) as (arms, cameras, _),
        switch(args) as pressed,
    ):
        cell = read_cell(args.cell)
        try:
            robot_record.by_person(task, args, arms, cameras, cell, typed, cap, pressed)
        except Refused as e:
            raise BadInput(f"stopped: {e}: look at the arms before you start again") from e


def check(args):
    """A table of what a run needs: each line is ok, or says what to do."""
    from robot_check import checks

    good = True
    for name, ok, words in checks(args):
        good = good and ok
        print(f"{name:24} {'ok' if ok else 'NOT OK':7} {words}", flush=True)
    if not good:
        raise BadInput("the setup is not ready: do what the lines that are not ok say")


COMMANDS = {"check": check, "record": record, "run": run, "replay": replay}


def parse(argv=None):
    """The flags."""
    p = Parser(
        __doc__.partition("\n\n")[0],
        examples=[
            "python realrobot.py check --robot ur5 --hosts 192.168.1.10 192.168.1.11",
            "python realrobot.py record --task ur5-lift --episodes 50 --out ur5-lift-recorded",
            "python realrobot.py run ckpt.pt --robot twin",
            "python realrobot.py replay ur5-lift-recorded --task ur5-lift --speed 0.25",
        ],
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    found = {}
    for name, call in COMMANDS.items():
        words, _, _ = call.__doc__.partition("\n")
        found[name] = commands.add_parser(name, help=words, description=call.__doc__)
    c = found["check"]
    c.add_argument("--ckpt", help="also whether this policy fits, and how fast it is here")
    add_robot(c)
    c = found["run"]
    c.add_argument("ckpt", help="a checkpoint, or a file *.onnx of export.py")
    add_robot(c)
    c.add_argument("--seconds", type=float, default=60, help="when the run ends")
    c.add_argument(
        "--policy-hz", type=float, help="chunks a second; as many as it can if not given"
    )
    add_ensemble(c)
    c.add_argument("--seed", type=int, default=0, help="seed of the latents z")
    c.add_argument(
        "--view",
        nargs="?",
        const="",
        metavar="RRD",
        help="show pictures, arms and plans in rerun, or write them to a file",
    )
    c.add_argument("--log", default="robot.npz", metavar="NPZ", help="the log of every cycle")
    c = found["replay"]
    c.add_argument("file", help="a folder that `record` wrote")
    c.add_argument("--task", default="ur5-lift", help="the twin's things")
    add_robot(c)
    c.add_argument("--episode", type=int, default=0, help="counts from 0")
    c.add_argument("--speed", type=float, default=0.25, help="1: as recorded")
    c.add_argument("--only-check", action="store_true", help="check the limits and move nothing")
    c = found["record"]
    c.add_argument("--task", default="ur5-lift", help="a task of task_ur5.py")
    c.add_argument("--episodes", type=int, default=50, help="how many are kept")
    c.add_argument("--out", required=True, metavar="FOLDER", help="a data set; it is added to")
    c.add_argument(
        "--by", choices=("expert", "keyboard", "spacemouse"), default="expert", help="who acts"
    )
    c.add_argument(
        "--spacemouse",
        metavar="DEVICE",
        help="/dev/input/eventN of --by spacemouse; the first that is found if not given",
    )
    c.add_argument("--variety", type=float, default=0.5, help="of the expert, 0 to 1")
    c.add_argument("--video", default="av1", choices=("av1", "h264", "off"), help="off: PNG")
    add_robot(c)
    return p.parse_args(argv)


def main():
    """Run the command."""
    args = parse()
    names = ("seconds", "policy_hz", "action_hz", "camera_hz", "speed", "episodes")
    above_zero(args, *(name for name in names if name in args))
    check_seed(args, "start_seed", below=2**32)
    if args.robot == "ur5" and not args.hosts:
        raise BadInput("--robot ur5 needs --hosts LEFT RIGHT, the addresses of the two arms")
    if args.robot == "twin":
        refuse_flags(args, ["hosts"], "--robot twin")
    if getattr(args, "view", None):
        check_output(args, "view")
    if "log" in args:
        check_seed(args, "seed")
        check_output(args, "log")
    if "out" in args:
        check_folder(args, "out")
    COMMANDS[args.command](args)


if __name__ == "__main__":
    cli(main)
