"""Demonstrations of the two arms, recorded as a LeRobotDataset version 3, episode by episode.

An episode that is whole is in the data set before the next one begins, so an interrupted recording
goes on where it was.
"""

import time

import numpy as np
from tqdm import tqdm

from commands import BadInput
from envs import make_env
from lerobot_format import is_lerobot, read_info
from lerobot_writer import append
from robot_motion import always, go_home, targets
from safety import GO, Patience, Refused, judge, limited, skeleton

SEEDS = 1_000_000  # the first start seed; evaluation's are from 100000 on
TRIES = 100  # starts of an episode: each has its own, so that an interrupted recording goes on
PATIENCE = Patience(frame=0.5, state=0.5)  # beyond it a recording ends
STEP = 0.01  # metres of a key's push
TURN = 0.05  # rad
KEYS = {  # what a key moves: x, y, z in the cell's frame, and the last joint
    "w": (STEP, 0, 0, 0),
    "s": (-STEP, 0, 0, 0),
    "a": (0, STEP, 0, 0),
    "d": (0, -STEP, 0, 0),
    "r": (0, 0, STEP, 0),
    "f": (0, 0, -STEP, 0),
    "q": (0, 0, 0, TURN),
    "e": (0, 0, 0, -TURN),
}
HELP = """w s forward and back   a d left and right   r f up and down   q e turn the wrist
g gripper   tab the other arm   enter keep the episode   backspace throw it away   x end"""
CAP_HELP = "push and turn the cap; its left button is the gripper, its right one the other arm\n"


def there(folder):
    """The episodes in a data set, 0 without one."""
    return read_info(folder).E if is_lerobot(folder) else 0


# ---- the scripted expert -------------------------------------------------------------------------


def by_expert(task, args):
    """Record the twin's scripted expert until there are args.episodes; failures are left out.

    Times are simulated: each start seed gives the same episode in every process.
    """
    if not 0 <= args.variety <= 1:
        raise BadInput(f"--variety must lie in 0 .. 1, not {args.variety}")
    env = make_env(task)
    kept = there(args.out)
    failed = 0  # tries of the episode that is next
    with tqdm(total=args.episodes, initial=kept, unit="episode", disable=None) as bar:
        while kept < args.episodes:
            seed = SEEDS + TRIES * kept + failed
            arrays = task.expert(env, seed, None, variety=args.variety)
            failed += 1
            if failed == TRIES:
                raise BadInput(f"the expert fails at {TRIES} starts: lower --variety")
            if arrays is not None:
                append(
                    args.out,
                    [seen(task, env, arrays)],
                    task.obs,
                    args.action_hz,
                    task.name,
                    video=args.video,
                )
                kept += 1
                failed = 0
                bar.update()
    env.close()
    print(f"{args.out}: {kept} episodes")


def seen(task, env, arrays):
    """An episode as it is kept: the task's observations, with pictures drawn, and the actions."""
    episode = {**task.observations(arrays), "action": arrays["action"]}
    for name, shape in task.obs.items():
        if len(shape) == 3:
            pictures = [env.twin.renderer.draw(q, name) for q in arrays["qpos"]]
            episode[name] = np.stack(pictures)
    return episode


# ---- a person ------------------------------------------------------------------------------------


def by_person(task, args, arms, cameras, cell, typed, cap=None, pressed=always):
    """Record what a person does with the keys of HELP, until there are args.episodes.

    typed: a function that gives the characters since its last call. cap: a SpaceMouse, if one moves
    the tools, too. pressed: whether the operator's switch is. Raises Refused if an arm stops, if
    the switch is released, or if a camera or the SpaceMouse is gone.
    """
    print(HELP if cap is None else CAP_HELP + HELP, flush=True)
    kept = there(args.out)
    while kept < args.episodes:
        go_home(arms, cell, pressed=pressed)
        typed()  # what was typed while nobody looked
        if cap:
            cap.keys()
        episode = teleoperated(
            task, args.action_hz, arms, cameras, cell, typed, cap, pressed=pressed
        )
        if episode is None:
            break
        if len(episode.get("action", ())):
            append(args.out, [episode], task.obs, args.action_hz, task.name, video=args.video)
            kept += 1
            print(f"{kept} episodes", flush=True)
    print(f"{args.out}: {kept} episodes")


def teleoperated(
    task,
    hz,
    arms,
    cameras,
    cell,
    typed,
    cap=None,
    *,
    pressed=always,
    clock=time.monotonic,
    sleep=time.sleep,
):
    """One episode {name: (L, ...)}: {} if it was thrown away, None at the end of all.

    Each step records what is seen and then the target that is sent, as in training. Its frames are
    looked up a step later, when those that were captured just after it are there, too. A key acts
    at most once a step. Raises Refused, see by_person.
    """
    goal = np.stack([targets(arm.state()) for arm in arms])
    steps = []
    names = [name for name in task.obs if name != "proprio"]
    arm = 0
    begun = None
    while True:
        if steps:
            steps[-1] |= {name: cameras.at(name, [begun])[0] for name in names}
        begun = clock()
        states = [a.state() for a in arms]
        level, reason = judge(begun, states, cameras.times(), None, None, pressed(), PATIENCE)
        if level != GO:
            raise Refused(reason)
        if cap:
            goal[arm, :6] = pushed(goal[arm, :6], arm, cap.push(1 / hz), cell)
        for key in dict.fromkeys(typed() + (cap.keys() if cap else "")):
            if key in "\r\n\x7f\bx":
                return ended(key, steps)
            if key == "\t":
                arm = 1 - arm
            elif key == "g":
                goal[arm, 6] = 1 - round(goal[arm, 6])
            elif key in KEYS:
                goal[arm, :6] = pushed(goal[arm, :6], arm, KEYS[key], cell)
        here = np.stack([targets(state) for state in states])
        speed = np.stack([state.qd for state in states])
        times = np.array([begun + 1 / hz])
        try:
            points, _ = limited(times, goal[None], begun, here, speed, cell)
            goal = points[0] if len(points) else here
        except Refused:
            goal = here
        measured = np.concatenate([np.append(state.q, state.gripper) for state in states])
        steps.append({"proprio": measured, "action": goal.ravel().copy()})
        for i, a in enumerate(arms):
            a.plan(times, goal[None, i, :6], goal[None, i, 6])
        sleep(max(0, begun + 1 / hz - clock()))


def ended(key, steps):
    """What an episode is at its last key."""
    if key == "x":
        return None
    if key in "\b\x7f" or not steps:
        return {}
    names = steps[0]
    return {name: np.stack([step[name] for step in steps]) for name in names}


def pushed(q, i, push, cell):
    """Joint angles (6,) of arm i whose tool is moved by push: x, y, z in metres and a turn in rad.

    Damped least squares with a Jacobian by differences; the wrist's direction is kept as it is.
    """
    *shift, turn = push

    def pose(q):
        tool = skeleton(q, i, cell)[-1]
        hand = tool - skeleton(q, i, cell)[-2]  # where the hand points, times its length
        return np.concatenate([tool, hand])

    here = pose(q)
    J = np.stack([(pose(q + 1e-5 * row) - here) / 1e-5 for row in np.eye(6)], 1)
    wanted = np.array([*shift, 0, 0, 0])
    step = J.T @ np.linalg.solve(J @ J.T + 1e-4 * np.eye(6), wanted)
    step[5] += turn
    return q + np.clip(step, -0.1, 0.1)
