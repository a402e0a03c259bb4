"""Hopper, Walker2d, HalfCheetah and Ant of gymnasium (v5), and the agents that record their data.

An observation is "state" (S,), the simulator's own numbers. The score of an episode is its return
over 1000 steps. Demonstrations are in Minari's format: Minari's own data sets, or episodes of an
agent that is trained here, by stable-baselines3's PPO, until it is about a third as good as an
expert, as in D4RL's medium data. All its episodes are recorded, with the noise that it explores
with.
"""

from contextlib import closing
from functools import partial

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from commands import BadInput
from task import Task


class Locomotion(gym.ObservationWrapper):
    """One of gymnasium's robots, with named float32 observations and pictures without OpenGL."""

    render_mode = "rgb_array"

    def __init__(self, env_id):
        import mujoco

        super().__init__(gym.make(env_id))
        self.model = self.unwrapped.model
        self.private = mujoco.MjData(self.model)  # for pictures: see pointcloud.py
        box = gym.spaces.Box(-np.inf, np.inf, self.env.observation_space.shape, np.float32)
        self.observation_space = gym.spaces.Dict({"state": box})

    def observation(self, observation):
        return {"state": observation.astype(np.float32)}

    def render(self):
        """(160, 160, 3) uint8: what the model's own camera sees, which follows the robot."""
        from pointcloud import Camera, picture, settle

        settle(self.model, self.private, self.unwrapped.data.qpos)
        camera = Camera.named(self.model, self.private, "track", size=160)
        return picture(self.model, self.private, camera)


# ---- the agents that record demonstrations -------------------------------------------------------

LAST = 20  # the episodes whose mean return tells the agent's level
CLIP = 10.0  # of the agent's normalised observations
EPSILON = 1e-8  # under the root of their variance
LOG_STD = {"hopper": 0.0}  # the first exploration noise of an agent, as its logarithm
OTHER_LOG_STD = -1.0  # for the other robots


def agent(policy, mean, var):
    """A stable-baselines3 policy as a function from raw observations to noisy actions.

    mean, var (S,): those of its observation normaliser.
    """
    scale = np.sqrt(var + EPSILON)

    def act(obs):
        normal = np.clip((obs - mean) / scale, -CLIP, CLIP).astype(np.float32)
        return policy.predict(normal)[0]

    return act


def make_ppo(task, envs, seed):
    """A PPO agent before its training, and the vector environment that it trains in.

    Raises BadInput if stable-baselines3 is not installed.
    """
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
    except ImportError as e:
        raise BadInput(
            "--until needs stable-baselines3: pip install stable-baselines3 "
            "(requirements-extra.txt)"
        ) from e
    import torch
    from gymnasium.wrappers import RecordEpisodeStatistics

    def make():
        return RecordEpisodeStatistics(gym.make(task.env_id))

    env = VecNormalize(DummyVecEnv([make] * envs), gamma=0.99, clip_obs=CLIP, epsilon=EPSILON)
    env.seed(seed)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=512,
        batch_size=256,
        n_epochs=10,
        learning_rate=3e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        vf_coef=0.5,
        max_grad_norm=0.5,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "net_arch": [128, 128],
            "activation_fn": torch.nn.Tanh,
            "log_std_init": LOG_STD.get(task.name, OTHER_LOG_STD),
        },
    )
    return model, env


def train(task, until, *, max_steps, envs=8, seed=0):
    """Train an agent until the mean return of its last 20 episodes passes `until`.

    Returns the function from observations to actions, that mean, and the environment steps taken.
    Raises BadInput if the level is not reached in max_steps.
    """
    model, env = make_ppo(task, envs, seed)
    level = -np.inf
    with closing(env), tqdm(total=max_steps, unit="step", unit_scale=True, disable=None) as bar:
        while not level > until:
            if model.num_timesteps >= max_steps:
                raise BadInput(
                    f"after {model.num_timesteps} steps the mean return of the last {LAST} "
                    f"episodes is {level:.0f}, not above {until:g}: raise --max-steps, lower "
                    "--until or change --seed"
                )
            model.learn(512 * envs, reset_num_timesteps=False)
            returns = [float(episode["r"]) for episode in model.ep_info_buffer][-LAST:]
            if len(returns) == LAST:  # with fewer there is no telling
                level = np.mean(returns)
            bar.update(model.num_timesteps - bar.n)
            bar.set_postfix(mean_return=f"{level:.0f}")
    act = agent(model.policy, env.obs_rms.mean, env.obs_rms.var)
    return act, float(level), model.num_timesteps


def record_episode(act, env, seed, steps):
    """One episode from a start seed, as a dict that hdf5.save_minari() takes.

    The actions are kept as executed: clipped to the limits, float32.
    """
    obs, _ = env.reset(seed=seed)
    arrays = {
        "observations": [obs],
        "actions": [],
        "rewards": [],
        "terminations": [],
        "truncations": [],
    }
    over = False
    while not over:
        action = np.clip(act(obs), env.action_space.low, env.action_space.high).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        truncated |= len(arrays["actions"]) + 1 == steps
        over = terminated or truncated
        arrays["observations"].append(obs)
        arrays["actions"].append(action)
        arrays["rewards"].append(reward)
        arrays["terminations"].append(terminated)
        arrays["truncations"].append(truncated)
    return {**{name: np.array(rows) for name, rows in arrays.items()}, "seed": seed}


def record(act, task, episodes, *, start_seed, max_steps=None):
    """Whole episodes of act, a function from raw observations (S,) to actions (D_a,).

    There is one episode a seed, from start_seed on. None begins once there are max_steps steps.
    """
    kept = []
    steps = 0
    with (
        gym.make(task.env_id) as env,
        tqdm(total=episodes, unit="episode", disable=None) as bar,
    ):
        while len(kept) < episodes and (max_steps is None or steps < max_steps):
            kept.append(record_episode(act, env, start_seed + len(kept), task.steps))
            steps += len(kept[-1]["rewards"])
            bar.update()
            mean = np.mean([episode["rewards"].sum() for episode in kept])
            bar.set_postfix(steps=steps, mean_return=f"{mean:.0f}")
    return kept


# ---- the tasks -----------------------------------------------------------------------------------

ANT_STAGE2 = {  # Ant stands still with less noise or a smaller learning rate
    "lr": 2e-4,
    "anchor": 0.05,
}


def locomotion_task(name, env_id, S, D_a, stage2=None):
    """A task of this suite; S: the size of the state, D_a: that of an action."""
    return Task(
        name=name,
        suite="locomotion",
        obs={"state": (S,)},
        D_a=D_a,
        T_o=1,
        T_p=4,
        T_a=4,
        env=partial(Locomotion, env_id),
        needs="mujoco==3.3.0",
        steps=1000,
        score="sum",
        data=(f"mujoco/{name}/medium-v0", f"{name}-medium"),
        minari=f"mujoco/{name}/medium-v0",
        env_id=env_id,
        stage2=stage2 or {},
    )


TASKS = [
    locomotion_task("hopper", "Hopper-v5", S=11, D_a=3),
    locomotion_task("walker2d", "Walker2d-v5", S=17, D_a=6),
    locomotion_task("halfcheetah", "HalfCheetah-v5", S=17, D_a=6),
    locomotion_task("ant", "Ant-v5", S=105, D_a=8, stage2=ANT_STAGE2),
]
