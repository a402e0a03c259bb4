"""Make demonstrations: roll policies out from fresh start states and keep the episodes that succeed.

  python experts.py --task pusht --init a.pt b.pt c.pt --episodes 300 --z-scale 0.5 --out demos/pusht.npz

Each start state gets several tries; its shortest success is kept, so that hard starts are not left out and the
policy's waiting is. demos/pusht.npz was made this way by three policies trained on Diffusion Policy's 206 human
demonstrations. Start seeds count up from --start-seed, far from the evaluation's 100000 on. The file holds states,
actions as executed, episode ends and each episode's start seed.
"""
import numpy as np
from tqdm import tqdm

from data import save_npz
from envs import task_named
from evaluate import rollout
from policy import Policy
from runs import BadInput, Parser, above_zero, cli


def collect(policies, task, episodes, *, start_seed, tries=6, seed=0, at_once=50, workers=True, max_starts=100_000):
    """The shortest of `tries` successes from each start state, policies in turn, until there are enough episodes.

    Returns state (N, S), action (N, D_a), episode_ends, start_seed (E,) as a dict, and the number of starts. Raises
    BadInput if fewer than 1 % of the first 200 starts, or fewer than `episodes` of max_starts, were ever solved.
    """
    kept, starts_used = [], 0
    with tqdm(total=episodes, unit="episode", disable=None) as bar:
        while len(kept) < episodes:
            starts = np.arange(start_seed + starts_used, start_seed + starts_used + at_once)
            best = {}
            for t in range(tries):
                r = rollout(policies[t % len(policies)], task, starts, seed=seed + starts_used * tries + t, record=True,
                            workers=workers)
                for e in np.flatnonzero(r.success):
                    n = int(np.isfinite(r.rewards[e]).sum())
                    if e not in best or n < len(best[e][0]):
                        best[e] = (r.states[e, :n].astype(np.float32), r.actions[e, :n].astype(np.float32), starts[e])
            kept += [best[e] for e in sorted(best)][:episodes - len(kept)]
            starts_used += at_once
            bar.update(len(kept) - bar.n)
            bar.set_postfix(starts=starts_used)
            if len(kept) < episodes and (starts_used >= 200 and len(kept) < starts_used / 100 or starts_used >= max_starts):
                raise BadInput(f"{len(kept)} of {starts_used} start states were solved: train a better policy first")
    states, actions, seeds = zip(*kept)
    return {"state": np.concatenate(states), "action": np.concatenate(actions),
            "episode_ends": np.cumsum([len(s) for s in states]), "start_seed": np.array(seeds)}, starts_used


def main():
    p = Parser(__doc__)
    p.add_argument("--task", default="pusht", help="task of envs.py")
    p.add_argument("--init", required=True, nargs="+", metavar="CKPT", help="policy checkpoints that act, in turn")
    p.add_argument("--episodes", type=int, default=300, help="successful episodes to keep")
    p.add_argument("--tries", type=int, default=6, help="tries from each start state")
    p.add_argument("--start-seed", type=int, default=1_000_000, help="first start seed")
    p.add_argument("--seed", type=int, default=0, help="seed of the latents")
    p.add_argument("--T-a", type=int, help="executed steps T_a, instead of the checkpoint's")
    p.add_argument("--z-scale", type=float, default=1.0, help="standard deviation of the latents")
    p.add_argument("--one-process", action="store_true", help="all simulators in this process")
    p.add_argument("--out", default="demos.npz", help="file to write")
    args = p.parse_args()
    above_zero(args, "episodes", "tries", "T_a")
    task = task_named(args.task)
    policies = [Policy.load(path, task=task.name)[0] for path in args.init]
    for policy in policies:
        policy.set_executed(args.T_a or policy.T_a)
        policy.z_scale = args.z_scale
    arrays, starts = collect(policies, task, args.episodes, start_seed=args.start_seed, tries=args.tries, seed=args.seed,
                             workers=not args.one_process)
    save_npz(args.out, **arrays)
    lengths = np.diff(arrays["episode_ends"], prepend=0)
    print(f"{args.out}: {len(lengths)} successful episodes from {starts} start states, {lengths.sum()} steps, "
          f"{lengths.mean():.0f} an episode ({lengths.min()} to {lengths.max()})")


if __name__ == "__main__":
    cli(main)
