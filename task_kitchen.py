"""Franka Kitchen: seven sub-tasks in a kitchen, of which a demonstration does four in some order.

The model is gymnasium-robotics' FrankaKitchen-v1, the protocol Diffusion Policy's. An episode lasts
280 steps at 12.5 Hz and ends early only when all seven sub-tasks are done. What is done cannot be
lost. p1 to p4 are the shares of the episodes in which at least one, two, three, four of the seven
were done, in any order; the score is their mean. All episodes start alike: a start seed chooses the
noise of the sensors, and nothing else. The observation is

  "state"  (60,)   what the sensors read of the positions below (30), and 30 zeros

   0 -  6  the arm's joints, rad               19      the slide cabinet's door, m
   7 -  8  the fingers, m                      20, 21  the left and right hinged doors, rad
   9 - 16  four knobs, rad, and after each     22      the microwave's door, rad
           its burner's slide, m               23 - 25 the kettle's place, m
  17, 18   the light's switch, rad, and        26 - 29 the kettle's quaternion, w x y z
           its slide, m

The zeros stand where the goal is in data that knows of one. An action (9) is the joints' target in
rad and m; that of `kitchen-delta` is a velocity in units of 2 rad/s or m/s, -1 to 1, as in the
original's relative data.

Data: an npz that experts.py recorded (qpos, action, episode_ends, start_seed), Diffusion Policy's
arrays observations_seq.npy, actions_seq.npy and existence_mask.npy, or Minari's
D4RL/kitchen/{complete,mixed,partial}-v2. Velocities and targets are converted into each other.
"""

import functools
import importlib.util
from collections import Counter
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np

from commands import BadInput
from task import Task, observation_space, whole_episodes

XML = "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
ROBOT = 9  # positions of the robot: seven joints and two fingers
POSITIONS = 30  # of the robot and of what it moves
DT = 0.08  # seconds of a step
SUBSTEPS = 40  # of 2 ms
SPEED = 2.0  # rad/s or m/s that a velocity action of 1 asks for
FASTEST = 10.0  # rad/s or m/s that a target may ask for
RATIO = 0.1  # of the noise: Diffusion Policy's
FILM = 256  # pixels of a video's side

# Where the robot and all things are when an episode begins: gymnasium-robotics' numbers, which are
# the original's.
START = np.array(
    [
        *(1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01),
        *(7.12533105e-01, 1.59515394e00, 4.79267505e-02, 3.71350919e-02, -2.66279850e-04),
        *(-5.18043486e-05, 3.12877220e-05, -4.51199853e-05, -3.90842156e-06, -4.22629655e-05),
        *(6.28065475e-05, 4.04984708e-05, 4.62730939e-04, -2.26906415e-04, -4.65501369e-04),
        *(-6.44129196e-03, -1.77048263e-03, 1.08009684e-03, -2.69397440e-01, 3.50383255e-01),
        *(1.61944683e00, 1.00618764e00, 4.06395120e-03, -6.62095997e-03, -2.68278933e-04),
    ]
)
# The targets that the robot's motors take, in rad and m.
LOWEST = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0, -2.9, 0, 0])
HIGHEST = np.array([2.9, 1.8, 2.9, 0, 2.9, 3.8, 2.9, 0.04, 0.04])
# The largest noise of each position at a ratio of 1.
NOISE = np.repeat(
    [0.1, 0.005, 0.0005, 0.005, 0.1, 0.005, 0.1, 0.005],
    [9, 2, 6, 3, 3, 3, 3, 1],  # of so many positions each
)
# Sub-task -> its places among the positions, and their goal. It is done when the distance of the
# two is below NEAR. The first letters differ: they name an order.
GOALS = {
    "bottom burner": ([11, 12], [-0.88, -0.01]),
    "top burner": ([15, 16], [-0.92, -0.01]),
    "light switch": ([17, 18], [-0.69, -0.05]),
    "slide cabinet": ([19], [0.37]),
    "hinge cabinet": ([20, 21], [0, 1.45]),
    "microwave": ([22], [-0.75]),
    "kettle": ([23, 24, 25, 26, 27, 28, 29], [-0.23, 0.75, 1.62, 0.99, 0, 0, -0.06]),
}
NEAR = 0.3
# The ranges that the numbers of an observation are mapped to -1 and 1 from; NaN: that of the data.
RANGES = {
    **dict.fromkeys(range(7), (np.nan, np.nan)),  # the arm
    **dict.fromkeys([7, 8], (0, 0.04)),  # the fingers
    **dict.fromkeys([11, 15, 17, 22], (-1, 0)),  # the knobs that are turned, switch, microwave
    19: (0, 0.44),  # the doors
    21: (0, 1.5),
    23: (-0.5, 0),  # the kettle
    24: (0.3, 0.8),
    25: (1.6, 1.9),
}
STAGES = 4  # sub-tasks that a demonstration does


# ---- what is done --------------------------------------------------------------------------------


def reached(qpos):
    """Whether each sub-task is at its goal: positions (..., 30) -> (..., 7) bool, as in GOALS."""
    qpos = np.asarray(qpos)
    return np.stack(
        [np.linalg.norm(qpos[..., i] - goal, axis=-1) < NEAR for i, goal in GOALS.values()], -1
    )


def first_done(qpos):
    """{sub-task: the step at which it was first done}, in that order. qpos: (L, 30).

    Of several that were done in one step, those that come first in GOALS.
    """
    at_goal = reached(qpos)
    steps = {name: at_goal[:, i].argmax() for i, name in enumerate(GOALS) if at_goal[:, i].any()}
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def mode(qpos):
    """The name of an episode's order: first letters, such as "mkbl". None if nothing was done."""
    return "".join(name[0] for name in first_done(qpos))[:STAGES] or None


def pairs(modes):
    """Which sub-task came after which, as shares of all such pairs -> {"mk": share, ...}.

    modes: names of orders, or None, as `mode` tells them of demonstrations and of episodes.
    """
    counts = Counter(m[i : i + 2] for m in modes if m for i in range(len(m) - 1))
    total = sum(counts.values())
    return {pair: n / total for pair, n in counts.most_common()}


# ---- the simulator -------------------------------------------------------------------------------


@functools.cache
def kitchen_model():
    """The kitchen's mujoco.MjModel, loaded once a process, which takes some seconds.

    Its first camera is moved to where gymnasium-robotics looks from.
    """
    found = importlib.util.find_spec("gymnasium_robotics")  # importing it prints warnings
    if found is None:
        raise ModuleNotFoundError("no gymnasium_robotics", name="gymnasium_robotics")
    import mujoco

    model = mujoco.MjModel.from_xml_path(str(Path(found.submodule_search_locations[0], XML)))
    azimuth, elevation = np.deg2rad([70, -35])
    level = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    ahead = np.cos(elevation) * level + [0, 0, np.sin(elevation)]
    right = np.cross(ahead, [0, 0, 1]) / np.cos(elevation)
    axes = np.column_stack([right, np.cross(right, ahead), -ahead])
    model.cam_pos[0] = np.array([-0.2, 0.5, 2.0]) - 2.2 * ahead
    mujoco.mju_mat2Quat(model.cam_quat[0], axes.ravel())
    return model


def noise(rng, n):
    """The noise of the next n readings: (n, 30) in rad and m. rng: of the episode's start seed."""
    return RATIO * NOISE * rng.uniform(-1, 1, (n, POSITIONS))


def noise_of(seed, n):
    """The noise of the first n readings of an episode: (n, 30)."""
    return noise(np.random.default_rng(seed), n)


class Kitchen(gym.Env):
    """The kitchen's simulator; the reward is the number of sub-tasks that this step did.

    reset(seed=s): s chooses the noise alone. info["state"] is the true positions (30,), by which it
    is judged what is done (note 50); info["stages"] is the number of sub-tasks done, info["done"]
    their names in order. A target counts no farther from the reading than 10 rad/s lead in a step.
    """

    render_mode = "rgb_array"

    def __init__(self, name):
        import mujoco

        self.task = {task.name: task for task in TASKS}[name]
        self.absolute = not name.endswith("-delta")
        self.model = kitchen_model()
        self.data = mujoco.MjData(self.model)
        self.observation_space = observation_space(self.task)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (ROBOT,), np.float32)

    def reset(self, *, seed=None, options=None):
        import mujoco

        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = START
        mujoco.mj_forward(self.model, self.data)
        self.rng = np.random.default_rng(seed)
        self.done = []
        return self.observe(), self.info()

    def step(self, action):
        import mujoco

        action = np.asarray(action, np.float64)
        before = self.reading[:ROBOT]
        most = FASTEST * DT
        if self.absolute:
            target = before + np.clip(action - before, -most, most)
        else:
            target = to_targets(before, action)
        self.data.ctrl[:] = np.clip(target, LOWEST, HIGHEST)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        at_goal = reached(self.data.qpos)
        new = [name for name, there in zip(GOALS, at_goal) if there and name not in self.done]
        self.done += new
        over = len(self.done) == len(GOALS)
        return self.observe(), float(len(new)), over, False, self.info()

    def observe(self):
        """The observation: the positions with their noise."""
        self.reading = self.data.qpos + noise(self.rng, 1)[0]
        return {"state": np.concatenate([self.reading, np.zeros(30)]).astype(np.float32)}

    def info(self):
        """What an episode's step tells beside the observation."""
        return {
            "state": self.data.qpos.copy(),
            "stages": len(self.done),
            "is_success": len(self.done) >= STAGES,
            "done": list(self.done),
        }

    @functools.cached_property
    def film(self):
        """What draws the frames of a video."""
        from renderer import Renderer

        return Renderer(self.model, {self.model.camera(0).name: FILM}, grid=(0.01, 0.01))

    def render(self):
        """The scene, (256, 256, 3) uint8."""
        return self.film.draw(self.data.qpos, self.model.camera(0).name)


# ---- data ----------------------------------------------------------------------------------------


def to_targets(reading, velocity):
    """The targets (..., 9) of velocity actions, from readings of the robot (..., 9)."""
    return reading + SPEED * DT * np.clip(velocity, -1, 1)


def to_velocities(reading, target):
    """The velocity actions (..., 9) of targets; what is beyond -1 or 1 is cut."""
    return np.clip((target - reading) / (SPEED * DT), -1, 1)


def observations(arrays):
    """The observations (N, 60) of a file's arrays. Raises BadInput if they are of another size.

    Raises KeyError with the name of an array that is missing.
    """
    if "state" in arrays:
        return {"state": arrays["state"]}
    if "obs" in arrays:
        return {"state": zero_goal(positions_of(arrays["obs"]))}
    qpos = arrays["qpos"]
    ends = arrays["episode_ends"]
    lengths = np.diff(ends, prepend=0)
    if (lengths < 1).any() or ends[-1] != len(qpos):
        raise BadInput(f"episode_ends do not divide the {len(qpos)} rows of qpos into episodes")
    drawn = [noise_of(seed, L) for seed, L in zip(arrays["start_seed"], lengths)]
    return {"state": zero_goal(qpos + np.concatenate(drawn))}


def positions_of(obs):
    """The positions (N, 30) in recorded observations (N, 59 or 60). Raises BadInput.

    Minari's 59 are positions of the robot (9) and its velocities, positions of the things (21) and
    their velocities; of the original's 60 the second half is the goal.
    """
    if obs.ndim == 2 and obs.shape[1] == 59:
        return np.concatenate([obs[:, :9], obs[:, 18:39]], 1)
    if obs.ndim == 2 and obs.shape[1] == 60:
        return obs[:, :POSITIONS]
    raise BadInput(
        f"the observations {obs.shape} are not the kitchen's: 59 numbers (Minari) or 60 are read"
    )


def zero_goal(positions):
    """Observations (N, 60) of positions (N, 30)."""
    return np.concatenate([positions, np.zeros_like(positions)], 1)


def actions(name, arrays):
    """A file's actions (N, 9) as targets, or as velocities for `kitchen-delta`. Raises BadInput.

    They are told by the fourth joint, whose targets are about -2 rad; velocities are about 0.
    """
    action = arrays["action"]
    if action.ndim != 2 or action.shape[1] != ROBOT:
        return action  # data.py says what is wrong
    wants_velocity = name.endswith("-delta")
    is_velocity = action[:, 3].sum() > -len(action)
    if wants_velocity == is_velocity:
        return action
    reading = observations(arrays)["state"][:, :ROBOT]
    if wants_velocity:
        return to_velocities(reading, action)
    return np.clip(to_targets(reading, action), LOWEST, HIGHEST)  # as the motors do


def demonstration(env, seed, states=None, variety=0.0):
    """One demonstration of the scripted experts: four sub-tasks in an order that the seed chooses.

    None if it failed. The experts drive targets, also where the environment takes velocities.
    """
    from experts_kitchen import demonstration as scripted

    if not env.absolute:
        env = Kitchen("kitchen")
    names = np.random.default_rng([seed, 1]).permutation(list(GOALS))[:STAGES].tolist()
    return scripted(env, names, seed, variety)


# ---- pictures ------------------------------------------------------------------------------------


def sketch(axes, obs):
    """How far each sub-task is from its goal, as the sensors read it; done is left of the line."""
    reading = obs["state"][:POSITIONS]
    far = [np.linalg.norm(reading[i] - goal) for i, goal in GOALS.values()]
    axes.barh(list(GOALS), far)
    axes.axvline(NEAR, color="black", ls="--")
    axes.set(xlabel="distance from the goal; done below 0.3", title="the seven sub-tasks")


def draw_paths(axes, episodes, colours):
    """Draw when episodes, positions (L, 30) each, did each sub-task, in the colour of each."""
    rows = {name: row for row, name in enumerate(GOALS)}
    for qpos, colour in zip(episodes, colours):
        steps = first_done(qpos)
        places = [rows[name] for name in steps]
        axes.plot(list(steps.values()), places, "o-", color=colour, lw=0.8, ms=3, alpha=0.6)
    axes.set_yticks(list(rows.values()), list(rows))
    axes.set(xlabel="step", ylim=(len(rows) - 0.5, -0.5))


def draw(figure, episodes):
    """When sub-tasks were done in demonstrations, which came after which, the episodes' lengths."""
    paths, after, lengths = figure.subplots(1, 3)
    states = np.split(episodes.obs["state"], episodes.ends[:-1])
    draw_paths(paths, states[:20], [f"C{i}" for i in range(20)])
    share = pairs([mode(episode) for episode in states])
    table = [[share.get(first[0] + second[0], 0) for second in GOALS] for first in GOALS]
    image = after.imshow(table, cmap="Blues")
    figure.colorbar(image, ax=after, label="share of the pairs", shrink=0.5)
    letters = [name[0] for name in GOALS]
    after.set_xticks(range(len(GOALS)), letters)
    after.set_yticks(range(len(GOALS)), letters)
    after.set(xlabel="then", ylabel="first")
    lengths.hist(episodes.lengths, bins=30)
    mean = episodes.lengths.mean()
    paths.set(title="Sub-tasks of 20 episodes")
    after.set(title="Sub-tasks in pairs")
    lengths.set(title=f"Episode lengths, mean {mean:.1f}", xlabel="steps", ylabel="episodes")


# ---- the tasks -----------------------------------------------------------------------------------


def limits(delta):
    """Task.limits: the ranges that things move in, so that noise of what rests is not stretched.

    Of the arm's joints and targets they are those of the data. What hardly changes is left as it is
    (note 51).
    """
    low = np.full(60, -1.0)
    high = np.full(60, 1.0)
    for i, (lowest, highest) in RANGES.items():
        low[i] = lowest
        high[i] = highest
    made = {"state": (low, high)}
    if delta:
        made["action"] = (-np.ones(ROBOT), np.ones(ROBOT))
    return made


def kitchen_task(name):
    """The task of that name, with targets or velocities as actions."""
    return Task(
        name=name,
        suite="kitchen",
        obs={"state": (60,)},
        D_a=ROBOT,
        T_o=2,
        T_p=16,
        T_a=8,
        env=partial(Kitchen, name),
        needs="gymnasium-robotics==1.4.2 mujoco==3.3.0",
        steps=280,
        score="stages",
        stages=STAGES,
        mode=mode,
        paths=draw_paths,
        sketch=sketch,
        data=(
            "kitchen/observations_seq.npy",
            "observations_seq.npy",
            *(f"D4RL/kitchen/{kind}-v2" for kind in ("mixed", "partial", "complete")),
            "kitchen.npz",
        ),
        minari="D4RL/kitchen/mixed-v2",
        arrays=("state", "qpos", "start_seed"),
        observations=observations,
        actions=partial(actions, name),
        env_id="FrankaKitchen-v1",
        expert=demonstration,
        varies=True,
        draw=draw,
        limits=limits(name.endswith("-delta")),
        stage2=whole_episodes(35),
        paper={"DBP": 1.00, "Diffusion Policy": 1.00},
    )


TASKS = [kitchen_task("kitchen"), kitchen_task("kitchen-delta")]
