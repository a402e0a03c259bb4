"""BlockPush: push two blocks into two zones, one each, in any order. A MuJoCo port.

The task is Diffusion Policy's version of the one of Implicit Behavioral Cloning, whose simulator is
Bullet (note 46). An episode lasts at most 350 steps of a tenth of a second. An observation is

  "state"  (16,)   block x, y, yaw; the same of block 2; pusher x, y; where it was sent x, y;
                   zone x, y, yaw; the same of zone 2

in metres and radians, yaws from 0 to pi. An action (2,) is where the pusher is sent, x and y in
metres; that of `blockpush-delta` is how far from where it was sent last.

A block is inside a zone if their centres are less than 5 cm apart. p1 is the share of the episodes
in which a block was inside a zone, p2 of those that ended with each block inside a zone of its own;
the score is their mean (note 47). Start states are from seed 100000 on.

Data: the official zarr folders (data/obs, data/action, meta/episode_ends) of 1000 episodes, with
absolute actions or deltas, or an npz that experts.py recorded. Both tasks read all of them.
"""

from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np

from commands import BadInput
from experts_blockpush import MODES, Oracle
from task import Task, observation_space, whole_episodes

# Places in the observation, each of the first and the second.
BLOCKS = (slice(0, 2), slice(3, 5))
YAWS = (2, 5)
PUSHER = slice(6, 8)
SENT = slice(8, 10)
ZONES = (slice(10, 12), slice(13, 15))
ZONE_YAWS = (12, 15)

LOW = np.array([0.15, -0.5])  # the pusher is sent nowhere below, in metres
HIGH = np.array([0.70, 0.5])  # nor above
START = np.array([0.30, -0.40])  # of the pusher
INSIDE = 0.05
BLOCK = 0.04  # a side
ZONE = 0.12
RADIUS = 0.005  # of the pusher
FURTHEST = 0.1  # of a delta in the data; places are beyond that in x
SUBSTEPS = 24  # of a step, at 240 Hz
SETTLING = 100  # of a reset
LAG = 0.1  # the part of the way to where it was sent that the pusher goes in a substep (note 46)

XML = f"""
<mujoco>
  <option timestep="{1 / 240}" gravity="0 0 -9.8" cone="elliptic"/>
  <worldbody>
    <geom type="plane" size="2 2 1" pos="0 0 -0.001"/>
    <body pos="0 0 0.045">
      <joint type="slide" axis="1 0 0"/>
      <joint type="slide" axis="0 1 0"/>
      <geom type="cylinder" size="{RADIUS} 0.015" mass="1000"/>
    </body>
    <body><freejoint/><geom type="box" size="0.02 0.02 0.02" mass="0.01"/></body>
    <body><freejoint/><geom type="box" size="0.02 0.02 0.02" mass="0.01"/></body>
  </worldbody>
</mujoco>
"""  # the pusher is moved by setting its speed: it is so heavy that no block slows it down
BLOCK_QPOS = (2, 9)  # where a block's position and quaternion begin
RESTING = -0.001 + BLOCK / 2  # the height of a block's centre


# ---- starts, scores and modes --------------------------------------------------------------------


def start_state(rng):
    """Draw the blocks and the zones of a start from a RandomState: two arrays (2, 3) of x, y, yaw.

    These are the original's draws in its order. Its blocks' yaws are from 1 to pi: the call that
    draws them gives the lower bound alone (note 46). The second block is drawn anew until it is
    more than 10 cm from the first in x, and both are if 1000 draws do not suffice.
    """
    gap = 0.0
    while gap <= 0.1:
        first = scattered(rng, (0.4, -0.2), (0.1, 0.15))
        first_yaw = rng.uniform(np.pi)
        for _ in range(1000):
            second = scattered(rng, (0.4, -0.2), (0.1, 0.15))
            gap = abs(first[0] - second[0])
            if gap > 0.1:
                break
        second_yaw = rng.uniform(np.pi)
    blocks = np.array([[*first, first_yaw], [*second, second_yaw]])
    aside = 0.12 * rng.choice([-1, 1])
    zones = np.zeros((2, 3))
    for zone, x in zip(zones, (0.4 + aside, 0.4 - aside)):
        zone[:2] = scattered(rng, (x, 0.2), (0.005, 0.0075))
        zone[2] = np.pi + rng.uniform(-np.pi / 30, np.pi / 30)
    return blocks, zones


def scattered(rng, centre, reach):
    """A place (x, y) at most `reach` (x, y) from a centre."""
    return [c + rng.uniform(-r, r) for c, r in zip(centre, reach)]


def distances(states):
    """Between the centres of blocks and zones: states (..., 16) -> (..., block, zone), metres."""
    blocks = np.stack([states[..., place] for place in BLOCKS], -2)
    zones = np.stack([states[..., place] for place in ZONES], -2)
    return np.linalg.norm(blocks[..., :, None, :] - zones[..., None, :, :], axis=-1)


NAMES = [f"{block + 1}{'AB'[zone]}" for block, zone in MODES]


class Score:
    """The score of an episode, from its states one after another.

    A step's reward is 0.49 for each block and zone of which the block is inside for the first time,
    and 0.51 instead of that, or of nothing, where the blocks are inside different zones. The
    episode's score is the sum of the different rewards that it has seen, as Diffusion Policy's is:
    `add` gives 0 for one that was there before.
    """

    def __init__(self):
        self.entered = np.zeros((2, 2), bool)
        self.seen = {0.0}

    def add(self, state):
        """A state (16,) after a step -> its reward, and whether it ends the episode."""
        apart = distances(state)
        inside = apart < INSIDE
        reward = 0.49 * (inside & ~self.entered).sum().item()
        self.entered |= inside
        nearest = apart.argmin(1)
        if inside.any(1).all() and nearest[0] != nearest[1]:
            reward = 0.51
        new = reward not in self.seen
        self.seen.add(reward)
        return reward if new else 0.0, reward >= 0.5

    @property
    def stages(self):
        """How many stages are reached. Two blocks that enter in one step are 0.51 (note 47)."""
        total = sum(self.seen)
        return int(total > 0.4) + int(total > 0.9)


def mode(states):
    """Which block was first inside which zone: "1A", "1B", "2A" or "2B"; None if none was.

    states (L, 16). The other block and the other zone remain. If both came in one step it is the
    one that is nearer to its zone's centre.
    """
    apart = distances(np.asarray(states))
    inside = np.flatnonzero((apart < INSIDE).any((1, 2)))
    if not len(inside):
        return None
    return NAMES[apart[inside[0]].argmin()]


# ---- the simulator -------------------------------------------------------------------------------


class BlockPush(gym.Env):
    """The two blocks, the two zones and the pusher.

    delta: actions are deltas. info["state"] is the observation as float64. The rewards of an
    episode add up to Diffusion Policy's score; it terminates as that does, see `Score`. After a
    reset, `rng` is the start's RandomState, from which the oracle draws on.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, delta=False):
        import mujoco

        self.model = mujoco.MjModel.from_xml_string(XML)
        self.data = mujoco.MjData(self.model)
        self.advance = mujoco.mj_step
        self.clear = mujoco.mj_resetData
        self.delta = delta
        self.observation_space = observation_space(BLOCKPUSH)
        low, high = (-np.ones(2), np.ones(2)) if delta else (LOW, HIGH)  # 1 m is beyond all
        self.action_space = gym.spaces.Box(low, high, dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self.rng = np.random.RandomState(seed)
        blocks, zones = start_state(self.rng)
        self.start(blocks, zones)
        state = self.state()
        return self.observe(state), {"state": state}

    def start(self, blocks, zones):
        """Put blocks and zones, (2, 3) of x, y, yaw each, there, the pusher to its start."""
        self.clear(self.model, self.data)
        self.zones = zones
        self.sent = START.copy()
        self.data.qpos[:2] = START
        for first, (x, y, yaw) in zip(BLOCK_QPOS, blocks):
            turn = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
            self.data.qpos[first : first + 7] = (x, y, RESTING, *turn)
        self.score = Score()
        self.run(SETTLING)

    def run(self, substeps):
        """Let the pusher follow to where it was sent for that many substeps."""
        data = self.data
        gain = LAG / self.model.opt.timestep
        for _ in range(substeps):
            data.qvel[:2] = gain * (self.sent - data.qpos[:2])
            self.advance(self.model, data)

    def state(self):
        """The 16 numbers of the observation, float64."""
        numbers = np.zeros(16)
        for first, xy, yaw in zip(BLOCK_QPOS, BLOCKS, YAWS):
            x, y, _, qw, qx, qy, qz = self.data.qpos[first : first + 7]
            numbers[xy] = (x, y)
            numbers[yaw] = np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy**2 + qz**2)) % np.pi
        numbers[PUSHER] = self.data.qpos[:2]
        numbers[SENT] = self.sent
        for zone, xy, yaw in zip(self.zones, ZONES, ZONE_YAWS):
            numbers[xy] = zone[:2]
            numbers[yaw] = zone[2] % np.pi
        return numbers

    def observe(self, state):
        """The observation in a state (16,)."""
        return {"state": state.astype(np.float32)}

    def step(self, action):
        action = np.asarray(action, np.float64)
        return self.send(self.sent + action if self.delta else action)

    def send(self, place):
        """Send the pusher to a place (2,) and simulate a step -> what `step` returns."""
        self.sent = np.clip(place, LOW, HIGH)
        self.run(SUBSTEPS)
        state = self.state()
        reward, terminated = self.score.add(state)
        stages = self.score.stages
        info = {"state": state, "stages": stages, "is_success": stages == 2}
        return self.observe(state), reward, terminated, False, info

    def render(self):
        """The scene from above, (256, 256, 3) uint8."""
        return picture(self.state())


# ---- data ----------------------------------------------------------------------------------------


def demonstration(env, seed, states=None, first=None):
    """The arrays of one episode of the oracle; None if it did not end with both blocks in place.

    first: the block and the zone that it begins with, of MODES; drawn by the start's rng if None.
    Its last state, where it had succeeded, is kept with the action that would have followed, as the
    original's are. Actions are places as float32, so that they lead there again to the bit.
    """
    env = env.unwrapped
    env.reset(seed=seed)
    oracle = Oracle(first or MODES[env.rng.choice(len(MODES))])
    states = []
    actions = []
    over = False
    for _ in range(STEPS + 1):
        state = env.state()
        blocks, zones = ([state[place] for place in places] for places in (BLOCKS, ZONES))
        move = oracle.act(blocks, state[list(YAWS)], zones, state[SENT])
        states.append(state)
        actions.append(np.float32(state[SENT] + move))
        if over:
            return {"state": np.stack(states), "action": np.stack(actions)}
        over = env.send(actions[-1])[2]
    return None


def places(arrays):
    """The actions (N, 2) of a file as places that the pusher is sent to."""
    action = arrays["action"]
    return action + sent(arrays) if are_deltas(action) else action


def deltas(arrays):
    """The actions (N, 2) of a file as deltas."""
    action = arrays["action"]
    return action if are_deltas(action) else action - sent(arrays)


def sent(arrays):
    """Where the pusher had been sent before each action of a file: (N, 2)."""
    return arrays["obs" if "obs" in arrays else "state"][:, SENT]


def are_deltas(action):
    """Whether actions (N, 2) are deltas, none of them longer than places are far in x.

    Raises BadInput if they are neither.
    """
    if action.ndim != 2 or action.shape[1] != 2:
        raise BadInput(f"the actions {action.shape} are not (N, 2): they must be x and y")
    return bool((np.abs(action[:, 0]) <= FURTHEST).all())


# ---- pictures ------------------------------------------------------------------------------------

SIDE = 256  # pixels of a frame's
VIEW = (0.02, -0.47, 0.8)  # the lowest x and y of a frame, and its side, in metres
COLOURS = {"zones": ("#f7c9b4", "#bcd9f2"), "blocks": ("#8a8a8a", "#d4a72c"), "pusher": "#2a7a3b"}


def square(centre, side, yaw):
    """The corners (4, 2) of a square, x and y."""
    corners = side / 2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cos = np.cos(yaw)
    sin = np.sin(yaw)
    return corners @ np.array([[cos, sin], [-sin, cos]]) + centre


def shapes(state):
    """What is seen in a state (16,): pairs of corners (4, 2) and a colour, the lowest first."""
    for places, yaws, side, colours in (
        (ZONES, ZONE_YAWS, ZONE, COLOURS["zones"]),
        (BLOCKS, YAWS, BLOCK, COLOURS["blocks"]),
    ):
        for xy, yaw, colour in zip(places, yaws, colours):
            yield square(state[xy], side, state[yaw]), colour


def picture(state):
    """The scene from above in a state (16,): (256, 256, 3) uint8, x up, y to the left.

    It is drawn by Pillow, for OpenGL may be missing where videos are wanted (note 48).
    """
    from PIL import Image, ImageDraw

    fine = 2 * SIDE  # drawn at twice the size and averaged, for smooth edges
    image = Image.new("RGB", (fine, fine), "white")
    draw = ImageDraw.Draw(image)

    def pixels(xy):
        x, y = (np.asarray(xy, np.float64) - VIEW[:2]).T / VIEW[2] * fine
        return np.stack([fine - y, fine - x], -1)

    for corners, colour in shapes(state):
        draw.polygon([tuple(corner) for corner in pixels(corners)], fill=colour)
    x, y = pixels(state[SENT])
    draw.line((x - 6, y, x + 6, y), fill="black", width=2)
    draw.line((x, y - 6, x, y + 6), fill="black", width=2)
    draw.circle(tuple(pixels(state[PUSHER])), 8, fill=COLOURS["pusher"])  # larger than it is
    return np.asarray(image.reduce(2))


def lay_out(axes):
    """Turn axes the way the scene is seen: x up, y to the left, metres."""
    x, y, side = VIEW
    axes.set(xlim=(y + side, y), ylim=(x, x + side), aspect="equal")
    axes.set(xlabel="y (m)", ylabel="x (m)")


def draw_scene(axes, state):
    """Draw zones and blocks in a state (16,)."""
    from matplotlib.patches import Polygon

    for corners, colour in shapes(state):
        axes.add_patch(Polygon(corners[:, ::-1], color=colour, lw=0))
    lay_out(axes)


def sketch(axes, obs):
    """The observation itself: zones, blocks, the pusher, and where it was sent."""
    state = obs["state"]
    draw_scene(axes, state)
    names = {"zone A": ZONES[0], "zone B": ZONES[1], "block 1": BLOCKS[0], "block 2": BLOCKS[1]}
    for name, xy in names.items():
        x, y = state[xy]
        above = 0.07 if "zone" in name else 0.03
        axes.text(y, x + above, name, ha="center", fontsize=8)
    axes.plot(*state[PUSHER][::-1], "o", color=COLOURS["pusher"], label="pusher")
    axes.plot(*state[SENT][::-1], "k+", label="where it was sent")
    axes.legend(fontsize=8)
    axes.set(title="the observation, metres")


def draw_paths(axes, episodes, colours):
    """Draw the paths of episodes, states (L, 16) each, in the colour of each of them.

    A thin line is the pusher's, thick ones are the blocks'. They end where a block is first inside
    a zone, which tells the mode; with the way back they would cover one another. The zones and
    blocks are those of the first episode when it begins.
    """
    draw_scene(axes, episodes[0][0])
    for states, colour in zip(episodes, colours):
        inside = np.append(np.flatnonzero((distances(states) < INSIDE).any((1, 2))), len(states))
        for place, width in ((PUSHER, 0.5), (BLOCKS[0], 1.5), (BLOCKS[1], 1.5)):
            x, y = states[: inside[0] + 1, place].T
            axes.plot(y, x, color=colour, lw=width, alpha=0.5)
    axes.set(ylim=(0.15, 0.65))


def draw(figure, episodes):
    """Paths by mode, starts, modes and lengths of demonstrations."""
    paths, starts, modes, lengths = figure.subplots(2, 2).flat
    states = np.split(episodes.obs["state"], episodes.ends[:-1])
    names = [mode(episode) for episode in states]
    colour = {name: f"C{i}" for i, name in enumerate([*NAMES, None])}
    draw_paths(paths, states[:20], [colour[name] for name in names])
    for n, place in enumerate((*BLOCKS, *ZONES)):
        x, y = np.array([episode[0, place] for episode in states]).T
        label = f"block {n + 1}" if n < 2 else f"zone {'AB'[n - 2]}"
        starts.plot(y, x, ".", ms=3, label=label)
    lay_out(starts)
    starts.legend(fontsize=8)
    count = [names.count(name) for name in colour]
    labels = [name or "none" for name in colour]
    modes.bar(labels, count, color=list(colour.values()))
    lengths.hist(episodes.lengths, bins=30)
    paths.set(title="Paths up to the first block inside a zone, 20 episodes")
    starts.set(title="Starts")
    modes.set(title="The first block and its zone", ylabel="episodes")
    mean = episodes.lengths.mean()
    lengths.set(title=f"Episode lengths, mean {mean:.1f}", xlabel="steps", ylabel="episodes")


# ---- the tasks -----------------------------------------------------------------------------------

STEPS = 350
OFFICIAL = ("multimodal_push_seed_abs.zarr", "multimodal_push_seed.zarr")

BLOCKPUSH = Task(
    name="blockpush",
    suite="blockpush",
    obs={"state": (16,)},
    D_a=2,
    T_o=2,
    T_p=16,
    T_a=8,
    env=BlockPush,
    needs="mujoco==3.3.0",
    steps=STEPS,
    score="stages",
    stages=2,
    mode=mode,
    paths=draw_paths,
    sketch=sketch,
    data=(*OFFICIAL, *(f"block_pushing/{name}" for name in OFFICIAL), "blockpush.npz"),
    arrays=("state",),
    actions=places,
    expert=demonstration,
    draw=draw,
    stage1={"K": 2},  # few hypotheses did best in others' hands (note 49)
    stage2=whole_episodes(44),
    paper={"DBP": 0.43, "Diffusion Policy": 0.24},
)

BLOCKPUSH_DELTA = replace(
    BLOCKPUSH,
    name="blockpush-delta",
    env=partial(BlockPush, delta=True),
    actions=deltas,
    data=(*OFFICIAL[::-1], *(f"block_pushing/{name}" for name in OFFICIAL[::-1]), "blockpush.npz"),
)

TASKS = [BLOCKPUSH, BLOCKPUSH_DELTA]
