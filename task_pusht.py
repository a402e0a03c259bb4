"""Push-T: push a T-shaped block onto its goal, by Diffusion Policy's two protocols.

The observation of `pusht` is nine key points of the T and the agent's position, 20 numbers in
pixels of the 512 x 512 scene. That of `pusht-image` is a picture of the scene, 96 x 96, and the
agent's position. An episode lasts 300 steps. Its score is the highest min(coverage / 0.95, 1) that
is reached; success is a coverage above 0.95. Start states come from seeds, 100000 on in evaluation.

Data: Diffusion Policy's zarr folder (data/img, data/keypoint, data/state, data/action,
meta/episode_ends) of 206 human demonstrations, or an npz with state, action and episode_ends.
demos/pusht.npz ships with the code: experts.py recorded it from three policies that were trained on
the human demonstrations. Where a file has no pictures they are drawn from its states, which takes
half a minute, and kept in the cache.
"""

import functools
import hashlib
import importlib.metadata
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np

from commands import BadInput
from pictures import cached_pictures
from task import Lazy, Task, not_importable, observation_space, whole_episodes

# The nine key points of Diffusion Policy's data, fixed in the T's own frame, in pixels.
KEYPOINTS = np.array(
    [
        [9.26979, 90.04097],
        [-60.98347, -1.18673],
        [60.91276, -1.39336],
        [-0.27050, 25.54363],
        [-14.06493, 122.81585],
        [39.00274, 32.85740],
        [-39.96641, 32.72966],
        [-16.82434, 62.86318],
        [23.54146, -1.70029],
    ]
)
GOAL = np.array([0, 0, 256, 256, np.pi / 4])  # a state whose T lies on the goal
SCENE = 512  # pixels of the scene's side, the unit of states and actions
SIDE = 96  # pixels of a picture's side

# sha256 of each array's bytes in C order: independent of chunking, compression and zip tool.
SHA256 = {
    "data/action": "6691b085749144b8db1aede97a80fb380afd08953fcd03660b441d0ffe9d6a8f",
    "data/state": "dcdc539bfdba9fc01cba8d2fe91cc580539ec046a88b0ffbe91be5511948d4dc",
    "data/keypoint": "2419980734c1d41050f8fbf7513031e6e784168bafbe42bcec81fdebe44c6611",
    "meta/episode_ends": "82db02e667c59a83fedb211ab9b84182591b75009df1385210d5235197f93d72",
    "data/img": "3f7650895d1a500d7162b10475df689731f4fece2b15eaf7d913a560c2a0783d",
    "data/n_contacts": "3e4258a61c21da4af3257269d3300b5128f04ba3ad34ebd0d0e709489ca854d4",
}


# ---- observations -------------------------------------------------------------------------------


def pusht_obs(state):
    """States (..., 5), agent x, y, T x, y, angle -> observations (..., 20), key points, agent."""
    state = np.asarray(state)
    cos = np.cos(state[..., 4, None])
    sin = np.sin(state[..., 4, None])
    x, y = KEYPOINTS.T
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], -1)  # (..., 9, 2)
    points = turned + state[..., None, 2:4]
    flat = points.reshape(*state.shape[:-1], 18)
    return np.concatenate([flat, state[..., :2]], -1).astype(np.float32)


def observations(arrays):
    """The observations of a file's arrays: recorded key points where there are some, or states."""
    if "keypoint" in arrays:
        keypoint = arrays["keypoint"]
        flat = keypoint.reshape(len(keypoint), -1)
        return {"state": np.concatenate([flat, arrays["state"][:, :2]], 1)}
    if "obs" in arrays:
        return {"state": arrays["obs"]}
    return {"state": pusht_obs(arrays["state"])}


# ---- the simulator ------------------------------------------------------------------------------


def start_state(seed):
    """Diffusion Policy's start state for a seed: agent x, y, T x, y (pixels), angle (radians)."""
    rs = np.random.RandomState(seed)
    agent = [rs.randint(50, 450), rs.randint(50, 450)]
    tee = [rs.randint(100, 400), rs.randint(100, 400)]
    return np.array([*agent, *tee, rs.randn() * 2 * np.pi - np.pi], dtype=np.float64)


def simulator():
    """gym-pusht with the goal's polygon made once, not at every step, and with faster pictures."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # pygame imports it
        from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely
    import cv2

    class Simulator(PushTEnv):
        """The same numbers and pictures as gym-pusht's own."""

        goal = None
        known = None  # the block whose parts are in order

        def _get_coverage(self):
            if self.block is not self.known:
                # They come as a set, ordered by their addresses, which differ from process to
                # process. The last bits of the area depend on the order (note 39).
                self.known = self.block
                self.parts = sorted(self.block.shapes, key=lambda shape: shape.get_vertices())
            if self.goal is None:
                self.goal = pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), self.parts)
            tee = pymunk_to_shapely(self.block, self.parts)
            return self.goal.intersection(tee).area / self.goal.area

        def step(self, action):
            """gym-pusht's step, whose inner loop takes twice the time with vectors (Vec2d)."""
            self.n_contact_points = 0
            self._last_action = action
            agent = self.agent
            dt = self.dt
            x, y = map(float, action)
            for _ in range(int(1 / (dt * self.control_hz))):
                px, py = agent.position
                vx, vy = agent.velocity
                ax = self.k_p * (x - px) + self.k_v * (0 - vx)
                ay = self.k_p * (y - py) + self.k_v * (0 - vy)
                agent.velocity = (vx + ax * dt, vy + ay * dt)
                self.space.step(dt)
            coverage = self._get_coverage()
            success = coverage > self.success_threshold
            info = {**self._get_info(), "is_success": success, "coverage": coverage}
            reward = min(max(coverage / self.success_threshold, 0.0), 1.0)
            return self.get_obs(), reward, success, False, info

        def pose(self, state):
            """Put agent and T where the data recorded them: the angle first; no velocities."""
            for body in (self.agent, self.block):
                body.velocity = (0, 0)
                body.angular_velocity = 0
            self.agent.position = tuple(map(float, state[:2]))
            self.block.angle = float(state[4])
            self.block.position = tuple(map(float, state[2:4]))
            for body in (self.agent, self.block):
                self.space.reindex_shapes_for_body(body)

        def picture(self, state):
            """The scene in a state (5,), as the demonstrations' camera saw it: (96, 96, 3) uint8.

            It is what gym-pusht draws, in a third of the time: all of the surface is not copied,
            but only the pixels that the picture is made of. Two things that touch are marked there
            by a short red line, which a policy can see (note 36). Contacts are found by a step of
            the simulator, here one in which nothing has time to move.
            """
            self.pose(state)
            self.space.step(1e-9)
            surface = self._draw()
            pixels = np.frombuffer(surface.get_buffer(), np.uint8).reshape(SCENE, SCENE, 4)
            rgb = [shift // 8 for shift in surface.get_shifts()[:3]]  # their places in a pixel
            return np.take(cv2.resize(pixels, (SIDE, SIDE)), rgb, axis=2)

    return Simulator(
        obs_type="state",
        render_mode="rgb_array",
        visualization_width=256,
        visualization_height=256,
    )


class PushT(gym.Wrapper):
    """Push-T with the key-point observation; rewards min(coverage / 0.95, 1).

    reset(seed=s) starts at start_state(s); reset(options={"state": v}) at exactly the recorded
    state v. An episode terminates at a coverage above 0.95. info["state"] is the state (5,).
    """

    def __init__(self):
        super().__init__(simulator())
        self.observation_space = observation_space(PUSHT)

    def observe(self, state):
        """The observation in a state (5,)."""
        return {"state": pusht_obs(state)}

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self.unwrapped, seed=seed)
        if seed is None:
            seed = int(self.unwrapped.np_random.integers(2**31))
        # gym-pusht sets the position before the angle, which moves the T: its centre of mass is
        # not its origin. Diffusion Policy's evaluation does the same (note 16).
        state, _ = self.env.reset(options={"reset_to_state": start_state(seed)})
        if options and "state" in options:
            state = self.set_state(options["state"])
        return self.observe(state), {"state": state}

    def set_state(self, state):
        """Put agent and T exactly there, see `pose` -> the state that the simulator then tells."""
        self.unwrapped.pose(state)
        return self.unwrapped.get_obs()

    def step(self, action):
        state, reward, terminated, truncated, info = self.env.step(action)
        info = {**info, "state": state}
        return self.observe(state), float(reward), bool(terminated), truncated, info


class PushTImage(PushT):
    """Push-T seen by a camera; the picture is `Lazy`, drawn where it is looked at.

    A second simulator draws it, since the first may have gone on by then.
    """

    def __init__(self):
        super().__init__()
        self.observation_space = observation_space(PUSHT_IMAGE)
        self.painter = painter()

    def observe(self, state):
        """The observation in a state (5,)."""
        return {
            "image": Lazy(self.painter.picture, state),
            "agent_pos": state[:2].astype(np.float32),
        }


def painter():
    """A simulator whose `picture` may be called."""
    sim = simulator()
    sim.reset()
    return sim


# ---- pictures of recorded states ----------------------------------------------------------------


def image_observations(arrays):
    """The observations of pusht-image in a file's arrays; without the picture if it has none."""
    if "image" in arrays and "agent_pos" in arrays:
        return {"image": arrays["image"], "agent_pos": arrays["agent_pos"]}
    made = {"agent_pos": arrays["state"][:, :2]}
    if "img" in arrays:
        made["image"] = arrays["img"]
    return made


def render(arrays, path):
    """{"image": (N, 96, 96, 3) uint8}: pictures drawn from the states (N, 5) of the file at path.

    They are drawn once, at half a millisecond each, and kept in a cache. Raises BadInput if a
    package is missing, or if these are no states: to draw something far away would take for ever.
    """
    states = arrays["state"]
    table = states.ndim == 2 and states.shape[1] == 5
    if not table or not (np.abs(states) <= 10 * SCENE).all():  # NaN is refused too
        raise BadInput(
            f"{path}: state {states.shape} cannot be drawn: it must be (N, 5), the agent's and the "
            f"T's position in pixels of 0 to {SCENE} and the T's angle"
        )
    try:
        key = f"{states_sha(states)} drawn by pygame {importlib.metadata.version('pygame')}"
        draw = functools.partial(pictures_of, states)
        shape = (len(states), SIDE, SIDE, 3)
        return {"image": cached_pictures(path, "image", shape, key, draw)}
    except ImportError as e:
        raise not_importable(PUSHT_IMAGE, e) from e


def states_sha(states):
    """The sha256 of states (N, 5)."""
    return hashlib.sha256(np.ascontiguousarray(states, np.float64)).hexdigest()


def pictures_of(states, n=64):
    """The pictures of states (N, 5), n at a time: (n, 96, 96, 3) uint8."""
    sim = painter()
    for first in range(0, len(states), n):
        yield np.stack([sim.picture(state) for state in states[first : first + n]])


# ---- pictures -----------------------------------------------------------------------------------


def sketch(axes, obs):
    """The observation itself: key points and agent in the scene."""
    points = obs["state"][:18].reshape(9, 2)
    axes.scatter(*points.T, c=np.arange(9), cmap="tab10", s=30, label="key points")
    axes.plot(*obs["state"][18:], "ko", label="agent")
    axes.plot(*pusht_obs(GOAL)[:18].reshape(9, 2).T, "x", color="tab:green", label="their goal")
    axes.legend(fontsize=8)
    axes.set(xlim=(0, 512), ylim=(512, 0), aspect="equal", title="the observation, pixels")


def sketch_agent(axes, obs):
    """The agent's position in the scene, which is what `pusht-image` sees beside the picture."""
    axes.plot(*obs["agent_pos"], "ko", label="agent")
    axes.legend(fontsize=8)
    axes.set(xlim=(0, SCENE), ylim=(SCENE, 0), aspect="equal", title="agent_pos, pixels")


def draw(figure, episodes):
    """Paths of the agent, final places of the T, actions, episode lengths of demonstrations."""
    paths, final, actions, lengths = figure.subplots(2, 2).flat
    obs = episodes.obs["state"]
    for episode in np.split(obs, episodes.ends[:-1]):
        paths.plot(episode[:, 18], episode[:, 19], lw=0.4, alpha=0.5, color="tab:blue")
    starts = obs[episodes.ends - episodes.lengths, 18:]
    paths.plot(*starts.T, ".", color="black", ms=3, label="start")
    paths.legend(loc="upper right")
    last = obs[episodes.ends - 1, :18].reshape(-1, 2)
    final.scatter(*last.T, c=np.tile(np.arange(9), len(episodes)), s=5, cmap="tab10")
    finite = episodes.action[np.isfinite(episodes.action).all(1)]
    count = actions.hist2d(*finite.T, bins=64, range=[(0, 512)] * 2, cmin=1, cmap="viridis_r")
    figure.colorbar(count[3], ax=actions, label="steps")
    for axes, title in (
        (paths, "Paths of the agent"),
        (final, "The T's key points when episodes end"),
        (actions, "Actions: where the agent is sent"),
    ):
        axes.set(title=title, xlim=(0, 512), ylim=(512, 0), aspect="equal")
        axes.set(xlabel="x (pixels)", ylabel="y (pixels)")
    lengths.hist(episodes.lengths, bins=30)
    mean = episodes.lengths.mean()
    lengths.set(title=f"Episode lengths, mean {mean:.1f}", xlabel="steps", ylabel="episodes")


# ---- the tasks ----------------------------------------------------------------------------------

PUSHT = Task(
    name="pusht",
    suite="pusht",
    obs={"state": (20,)},
    D_a=2,
    T_o=2,
    T_p=16,
    T_a=8,
    env=PushT,
    needs="gym-pusht==0.1.8",
    steps=300,
    score="max",
    sketch=sketch,
    data=("pusht_cchi_v7_replay.zarr", "pusht.npz"),
    arrays=("keypoint", "state"),
    observations=observations,
    url="https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip",
    sha256=SHA256,
    optional=("data/img", "data/n_contacts"),
    draw=draw,
    # Stage 2, per chunk of 8 steps: 38 chunks are an episode of 300 steps, and a minibatch is an
    # eighth of the 100 x 38 samples. The reward adds up to the score, without discount (note 23).
    stage2=whole_episodes(38, success_bonus=1.0),
    paper={"DBP": 0.87, "Diffusion Policy": 0.85},
)

PUSHT_IMAGE = replace(
    PUSHT,
    name="pusht-image",
    obs={"image": (SIDE, SIDE, 3), "agent_pos": (2,)},
    crop={"image": 84},
    env=PushTImage,
    sketch=sketch_agent,
    arrays=("img", "state"),
    observations=image_observations,
    render=render,
    numbers="pusht",
    optional=("data/keypoint", "data/n_contacts"),
    draw=None,
    paper={"DBP": 0.89, "Diffusion Policy": 0.91},
)

TASKS = [PUSHT, PUSHT_IMAGE]
