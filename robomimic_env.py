"""RoboMimic's simulators as gymnasium environments, and recorded states put into them.

Observations depend on the positions alone, so that a recorded state gives the observation that it
gave in the episode. robosuite's own are of a simulator's step (2 ms) before, and what the hand sees
of an object that of a control step before (note 41).
"""

import functools

import gymnasium as gym
import numpy as np

from commands import BadInput
from recorded_robomimic import proprio_names, resize, restore, seen_from_hand, sizes_of
from robosuite_env import DELTA, PROPRIO, ROT6D, SCENES, make_raw, rot6d_to_axis_angle
from task import Lazy, observation_space

FILM = 256  # pixels of a video's side


def shapes_of(scene, cameras=(), side=None):
    """{name: shape} of an observation: of numbers alone, or with cameras of side x side pixels."""
    n = PROPRIO * SCENES[scene].arms
    if not cameras:
        return {"state": (SCENES[scene].n_object + n,)}
    return {**dict.fromkeys(cameras, (side, side, 3)), "proprio": (n,)}


class RoboMimic(gym.Env):
    """The simulator of a scene; the reward of a step is 1 at success, and else 0.

    delta: whether actions are deltas, or goals. ends: whether success ends the episode. cameras:
    those that an observation has, of side x side pixels; none: numbers alone.

    reset(seed=s) gives the same start, to the bit, in every process. reset(options={"state": v})
    puts a recorded state v there, which info["state"] tells: time, positions and velocities. That
    fixes the observation; what follows depends on the controller's posture, which is the seed's,
    and on the gripper's command, which is that of a start.
    """

    render_mode = "rgb_array"

    def __init__(self, scene, *, delta=False, ends=True, cameras=(), side=None):
        self.name = scene
        self.scene = SCENES[scene]
        self.delta = delta
        self.ends = ends
        self.cameras = cameras
        self.obs = shapes_of(scene, cameras, side)
        self.raw = make_raw(scene, absolute=not delta)
        self.own_sizes = sizes_of(self.model)
        self.wanted = ["object-state", *proprio_names(scene)]
        for observable in self.raw._observables.values():
            # Those of the joints take time, and no policy sees them.
            if observable.name.startswith("robot") and observable.name not in self.wanted:
                observable.set_enabled(False)
        self.observation_space = observation_space(self)
        D_a = (DELTA if delta else ROT6D) * self.scene.arms
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (D_a,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        before = np.random.get_state()
        np.random.seed(seed)
        self.raw.reset()
        np.random.set_state(before)
        if options and "state" in options:
            self.set_state(options["state"])
        return self.observe(), {"state": self.state()}

    def step(self, action):
        action = np.asarray(action, np.float64)
        if not self.delta:
            action = rot6d_to_axis_angle(action)
        _, reward, _, _ = self.raw.step(action)
        success = reward > 0
        info = {"is_success": success, "state": self.state()}
        return self.observe(), float(success), success and self.ends, False, info

    @property
    def model(self):
        """MuJoCo's own model of the simulator."""
        return self.raw.sim.model._model

    def resize(self, text):
        """Give the object whose sizes robosuite draws those of an XML text (bytes), None: its own.

        Raises BadInput if the text does not fit.
        """
        restore(self.model, self.own_sizes)
        if text is not None:
            resize(self.model, text, self.scene.drawn)
        if "renderer" in vars(self):
            self.renderer.update(self.model)

    def state(self):
        """The simulator's state: time, positions, velocities."""
        return self.raw.sim.get_state().flatten()

    def set_state(self, state):
        """Put the simulator into a recorded state. Raises BadInput if it does not fit."""
        n = len(self.state())
        if np.shape(state) != (n,):
            raise BadInput(
                f"a state of shape {np.shape(state)} is not of {self.name}, which has {n} numbers"
            )
        self.raw.sim.set_state_from_flattened(np.asarray(state, np.float64))
        self.raw.sim.forward()

    def numbers(self):
        """robosuite's observations by its names, of the positions as they are."""
        import mujoco

        mujoco.mj_fwdPosition(self.model, self.raw.sim.data._data)
        told = self.raw._get_observations(force_update=True)
        seen = {name: told[name] for name in self.wanted}
        hand = [seen["robot0_eef_pos"][None], seen["robot0_eef_quat"][None]]
        objects = seen["object-state"][None]
        seen["object-state"] = seen_from_hand(self.name, objects, *hand)[0]
        return seen

    def observe(self):
        """The observation; pictures are `Lazy`, drawn where they are looked at."""
        numbers = np.concatenate(list(self.numbers().values())).astype(np.float32)
        if not self.cameras:
            return {"state": numbers}
        qpos = self.raw.sim.data.qpos.copy()
        seen = {camera: Lazy(self.draw, qpos, camera) for camera in self.cameras}
        return {**seen, "proprio": numbers[self.scene.n_object :]}

    @functools.cached_property
    def renderer(self):
        """What draws the cameras."""
        return self.make_renderer(self.cameras, self.obs[self.cameras[0]][0])

    @functools.cached_property
    def film(self):
        """What draws the frames of a video."""
        return self.make_renderer(self.scene.cameras[:1], FILM)

    def draw(self, qpos, camera):
        """What one of the cameras sees at positions qpos (nq,)."""
        return self.renderer.draw(qpos, camera)

    def make_renderer(self, cameras, side):
        """A renderer of the simulator's visible geoms."""
        from renderer import Renderer

        return Renderer(self.model, dict.fromkeys(cameras, (side, side)), groups=(1, 2))

    def render(self):
        """The scene, (256, 256, 3) uint8, as its first camera of Diffusion Policy sees it."""
        return self.film.draw(self.raw.sim.data.qpos, self.scene.cameras[0])


# ---- recorded states -----------------------------------------------------------------------------


@functools.lru_cache(2)
def replayer(scene, cameras=(), side=None):
    """A simulator that recorded states are put into."""
    env = RoboMimic(scene, cameras=cameras, side=side)
    env.reset(seed=0)  # robosuite hides its marks then, which pictures would show
    return env


def each_row(env, rows, arrays):
    """Each of the rows (N, ...) of a file's arrays, while env has the sizes of the row's episode.

    Those are known where the file has model_file, the XML text of each episode's simulator. Raises
    BadInput if one does not fit.
    """
    if "model_file" not in arrays:
        yield from rows
        return
    first = 0
    try:
        for end, text in zip(arrays["episode_ends"], arrays["model_file"]):
            env.resize(text.tobytes().rstrip(b"\0"))
            yield from rows[first:end]
            first = end
    finally:
        env.resize(None)


def replayed(scene, arrays):
    """robosuite's observations {name: (N, ...)} of a file's states (N, ...). Raises BadInput."""
    env = replayer(scene)
    seen = []
    for state in each_row(env, arrays["states"], arrays):
        env.set_state(state)
        seen.append(env.numbers())
    return {name: np.stack([numbers[name] for numbers in seen]) for name in seen[0]}
