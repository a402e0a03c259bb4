"""Make demonstrations: roll a policy out from fresh start states and keep the episodes that succeed.

  python experts.py --task pusht --init ckpt.pt --episodes 160 --out demos/pusht.npz

demos/pusht.npz was made this way by a policy trained on Diffusion Policy's 206 human demonstrations. Start seeds
count up from --start-seed, far from the evaluation's 100000 on. The file holds states, actions as executed,
episode ends and each episode's start seed.
"""

import numpy as np
from tqdm import tqdm

from data import save_npz
from envs import task_named
from evaluate import rollout
from policy import Policy
from runs import BadInput, Parser, above_zero, cli


def collect(policy, task, episodes, *, start_seed, seed=0, at_once=100, workers=True, max_tries=100_000):
    """Successful episodes of the policy: dict of state (N, S), action (N, D_a), episode_ends, start_seed (E,); tries.

    Raises BadInput if fewer than 1 % of the first 500 tries succeed, or max_tries do not suffice.
    """
    states, actions, lengths, seeds, tries = [], [], [], [], 0
    with tqdm(total=episodes, unit="episode", disable=None) as bar:
        while len(lengths) < episodes:
            starts = np.arange(start_seed + tries, start_seed + tries + at_once)
            r = rollout(policy, task, starts, seed=seed + tries, record=True, workers=workers)
            tries += at_once
            for e in np.flatnonzero(r.success)[:episodes - len(lengths)]:
                n = int(np.isfinite(r.rewards[e]).sum())
                states.append(r.states[e, :n].astype(np.float32))
                actions.append(r.actions[e, :n].astype(np.float32))
                lengths.append(n)
                seeds.append(starts[e])
            bar.update(len(lengths) - bar.n)
            bar.set_postfix(tries=tries)
            if tries >= 500 and len(lengths) < tries / 100 or tries >= max_tries and len(lengths) < episodes:
                raise BadInput(f"{len(lengths)} of {tries} episodes succeeded: train a better policy first")
    return {"state": np.concatenate(states), "action": np.concatenate(actions), "episode_ends": np.cumsum(lengths),
            "start_seed": np.array(seeds)}, tries


def main():
    p = Parser(__doc__)
    p.add_argument("--task", default="pusht", help="task of envs.py")
    p.add_argument("--init", required=True, help="policy checkpoint that acts")
    p.add_argument("--episodes", type=int, default=160, help="successful episodes to keep")
    p.add_argument("--start-seed", type=int, default=1_000_000, help="first start seed")
    p.add_argument("--seed", type=int, default=0, help="seed of the latents")
    p.add_argument("--T-a", type=int, help="executed steps T_a, instead of the checkpoint's")
    p.add_argument("--z-scale", type=float, default=1.0, help="standard deviation of the latents")
    p.add_argument("--one-process", action="store_true", help="all simulators in this process")
    p.add_argument("--out", default="demos.npz", help="file to write")
    args = p.parse_args()
    above_zero(args, "episodes", "T_a")
    task = task_named(args.task)
    policy, _ = Policy.load(args.init, task=task.name)
    policy.set_executed(args.T_a or policy.T_a)
    policy.z_scale = args.z_scale
    arrays, tries = collect(policy, task, args.episodes, start_seed=args.start_seed, seed=args.seed,
                            workers=not args.one_process)
    save_npz(args.out, **arrays)
    lengths = np.diff(arrays["episode_ends"], prepend=0)
    print(f"{args.out}: {len(lengths)} successful episodes of {tries} tries, {lengths.sum()} steps, "
          f"{lengths.mean():.0f} a episode ({lengths.min()} to {lengths.max()})")


if __name__ == "__main__":
    cli(main)
