"""Stage 2, DBPO: PPO with exact likelihoods on a pretrained one-step policy (arXiv 2604.03540, Eqs. 12-17, 43-57).

  python dbpo_ppo.py --init ckpt.pt

The checkpoint names its task. An action is drawn in two steps: a latent z ~ N(0, I), then a Gaussian around the chunk
G(o, z). Given z the likelihood is that Gaussian's, exact, and p(z) cancels in PPO's ratio. Every iteration: collect,
advantages, update. All likelihoods live in the normalised action space. What comes out is an ordinary policy that
acts with its mean, one forward pass. The run folder gets ckpt.pt (last), best.pt, state.pt (for --resume), logs,
curves.png.
"""
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from envs import Simulators, task_named
from evaluate import evaluate, line
from policy import Actor, Policy, encode, entropy, log_prob
from runs import (BadInput, Parser, Run, above_zero, check_device, cli, curves, flags_of, fresh_folder, load_state,
                  save_torch)

FREE_ON_RESUME = {"resume", "out", "init", "device", "threads", "iters", "save_every", "eval_every", "episodes",
                  "one_process"}
RAMP = 5                   # iterations in which the actor's learning rate rises to --lr
CHOICE_SEED = 200_000      # first start seed of the evaluations that choose best.pt
# What depends on the task: see --help for the meaning. Locomotion's are per chunk of 4 steps, Push-T's of 8.
LOCOMOTION = dict(envs=32, chunks=128, iters=150, batch=1024, epochs=4, lr=5e-5, target_kl=0.06, sigma=0.1,
                  sigma_range=(0.05, 0.2), gae_lambda=0.95, anchor=0.3, anchor_iters=50, bonus=0.0, shaping=0.0)
DEFAULTS = {
    "pusht": dict(envs=150, chunks=38, iters=100, batch=1425, epochs=2, lr=1e-4, target_kl=0.1, sigma=0.15,
                  sigma_range=(0.04, 0.3), sigma_final=0.03, gae_lambda=0.5, anchor=0.05, anchor_iters=50, bonus=1.0,
                  shaping=1.0),
    "ant": {**LOCOMOTION, "lr": 2e-4, "sigma": 0.2, "sigma_range": (0.06, 0.5), "sigma_final": 0.05, "anchor": 0.05},
    None: LOCOMOTION,
}


def parse():
    p = Parser(__doc__)
    g = p.add_argument_group("policy")
    g.add_argument("--init", help="Stage-1 (or Stage-2) checkpoint to improve; --resume with --out needs none")
    g.add_argument("--task", help="refuse a checkpoint of any other task")
    g.add_argument("--T-p", type=int, help="refuse a checkpoint with any other horizon T_p")
    g.add_argument("--T-a", type=int, help="executed steps T_a, instead of the checkpoint's")
    g.add_argument("--sigma", type=float, help="initial noise sigma, normalised action units (Eq. 44); by task")
    g.add_argument("--sigma-range", type=float, nargs=2, metavar=("MIN", "MAX"), help="its bounds (Eq. 45); by task")
    g.add_argument("--sigma-final", type=float, help="what --sigma, and its bounds by the same factor, shrink to, evenly in "
                   "its logarithm; by task, else --sigma")
    g.add_argument("--sigma-hold", type=float, default=0.5, help="share of the iterations before it shrinks")
    g = p.add_argument_group("roll-out")
    g.add_argument("--envs", type=int, help="simulators N; by task")
    g.add_argument("--chunks", type=int, help="chunk steps S of each simulator an iteration; by task")
    g.add_argument("--iters", type=int, help="iterations; by task")
    g.add_argument("--gamma", type=float, default=0.99, help="discount per chunk")
    g.add_argument("--inner-gamma", type=float, default=1.0, help="discount per primitive step inside a chunk")
    g.add_argument("--bonus", type=float, help="reward for ending an episode by success; by task")
    g.add_argument("--shaping", type=float, help="weight of the task's potential in the reward; 0: none; by task")
    g.add_argument("--gae-lambda", type=float, help="lambda of GAE, per chunk; by task")
    g.add_argument("--one-process", action="store_true", help="all simulators in this process")
    g = p.add_argument_group("update (Eqs. 15-17)")
    g.add_argument("--epochs", type=int, help="the actor's passes over the buffer an iteration; by task")
    g.add_argument("--batch", type=int, help="samples of the actor's minibatches; by task")
    g.add_argument("--lr", type=float, help="actor's learning rate at first; by task")
    g.add_argument("--lr-final", type=float, default=0.1, help="its share that is left at the end, by a cosine")
    g.add_argument("--critic-epochs", type=int, default=10, help="the critic's passes over the buffer")
    g.add_argument("--critic-batch", type=int, default=256, help="samples of the critic's minibatches")
    g.add_argument("--lr-critic", type=float, default=1e-3, help="critic's learning rate, same schedule")
    g.add_argument("--clip", type=float, default=0.2, help="epsilon of the ratio's clip")
    g.add_argument("--clip-value", type=float, default=0.0, help="clip of the value's change; 0: none")
    g.add_argument("--target-kl", type=float, help="no further epoch once an epoch's KL is above; by task")
    g.add_argument("--c-v", type=float, default=1.0, help="weight c_v of the value loss")
    g.add_argument("--c-e", type=float, default=0.0, help="weight c_e of the entropy")
    g.add_argument("--clip-grad", type=float, default=1.0, help="largest gradient norm, actor and critic each")
    g.add_argument("--critic-warmup", type=int, default=4, help="first iterations, in which the actor does not move")
    g.add_argument("--per-dimension", action="store_true",
                   help="divide log-likelihoods by the number of coordinates, as the authors' release does; not exact")
    g.add_argument("--anchor", type=float, help="weight lambda of the anchor at first (Eq. 17); 0: none; by task")
    g.add_argument("--anchor-final", type=float, help="its weight after --anchor-iters; a tenth if not given")
    g.add_argument("--anchor-iters", type=int, help="iterations in which it falls to that, linearly; by task")
    g = p.add_argument_group("run")
    g.add_argument("--seed", type=int, default=0, help="seed of episodes, latents, noise and minibatches")
    g.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    g.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
    g.add_argument("--out", help="run folder; runs/TASK-dbpo-seedSEED if not given")
    g.add_argument("--resume", action="store_true", help="go on from state.pt in the run folder")
    g.add_argument("--save-every", type=int, default=10, help="iterations between saves")
    g.add_argument("--eval-every", type=int, default=10, help="iterations between evaluations; 0: only first and last")
    g.add_argument("--episodes", type=int, help="episodes of an evaluation; 50, with point clouds 20, if not given")
    g.add_argument("--calls", type=int, default=1, help="generator calls per action; above 1 only for bench.py's ratio")
    return p.parse_args()


# ---- roll-out ------------------------------------------------------------------------------------------------------

class Critic(nn.Module):
    """V(o), with an encoder of its own that begins as the policy's: (B, T_o, obs_dim) -> (B,)."""

    def __init__(self, policy, width=256):
        super().__init__()
        self.norm, self.encoder, C = copy.deepcopy(policy.norm_obs), copy.deepcopy(policy.encoder), policy.encoder.size
        self.net = nn.Sequential(nn.Linear(C, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.to(policy.device)

    def forward(self, obs):
        return self.net(encode(obs, self.norm, self.encoder)).squeeze(-1)


def make_buffer(policy, S, N):
    """The roll-out's tensors, float32, each number once; time first (S, N, ...)."""
    sizes = {"obs": (policy.T_o, policy.obs_dim), "z": (policy.T_p, policy.D_a), "a": (policy.T_a, policy.D_a),
             "ran": (policy.T_a,), "anchor": (policy.T_p, policy.D_a), "log_prob": (), "reward": (), "next_value": (),
             "ended": ()}
    return {k: torch.zeros(S, N, *size, device=policy.device) for k, size in sizes.items()}


@torch.no_grad()
def collect(actor, critic, frozen, sims, buffer, generator, piece):
    """Fill the buffer (Eq. 47): z, then a, both kept; only what goes to the environment is clipped.

    frozen (or None) gives the anchor's means, once per transition, `piece` at a time. next_value: V of the
    observation that followed, the true one where an episode was truncated, 0 where it terminated. Returns the
    scores of the episodes that ended and the seconds spent in the simulator.
    """
    policy, device, scores, sim_s, true_last = actor.policy, actor.policy.device, [], 0.0, []
    low, high = sims.env.single_action_space.low, sims.env.single_action_space.high
    to = lambda x: torch.as_tensor(x, dtype=torch.float32, device=device)
    for t in range(len(buffer["obs"])):
        obs = to(sims.obs)
        z = policy.latent(len(obs), generator=generator)
        mu, log_sigma = actor(obs, z)
        mu = policy.executed(mu)
        noise = torch.randn(mu.shape, device=device, generator=generator)
        a = mu + log_sigma.exp() * noise
        chunk = np.clip(policy.norm_action.inverse(a).cpu().numpy(), low, high)
        t0 = time.perf_counter()
        reward, ran, last_obs, terminated, truncated, ended_scores = sims.step(chunk)
        sim_s += time.perf_counter() - t0
        ran = to(ran)
        row = {"obs": obs, "z": z, "a": a, "ran": ran, "log_prob": log_prob(a, mu, log_sigma, ran),
               "reward": to(reward), "ended": to(terminated | truncated)}
        for k, v in row.items():
            buffer[k][t] = v
        scores.extend(ended_scores)
        cut = np.flatnonzero(truncated & ~terminated)
        true_last += [(t, n, last_obs[n]) for n in cut]
    buffer["value"] = torch.cat([critic(o) for o in buffer["obs"].flatten(0, 1).split(piece)]).view_as(buffer["reward"])
    buffer["next_value"] = torch.cat([buffer["value"][1:], critic(to(sims.obs))[None]]) * (1 - buffer["ended"])
    if true_last:
        t, n, o = zip(*true_last)
        buffer["next_value"][list(t), list(n)] = critic(to(np.stack(o)))
    if frozen is not None:
        pairs = zip(*(buffer[k].flatten(0, 1).split(piece) for k in ("obs", "z")))
        buffer["anchor"].flatten(0, 1).copy_(torch.cat([frozen(o, z) for o, z in pairs]))
    return scores, sim_s


class ReturnScale:
    """Running standard deviation of the discounted return, which rewards are divided by."""

    def __init__(self, n, gamma, state=None):
        self.gamma, self.running = gamma, np.zeros(n)
        self.count, self.mean, self.square = 0, 0.0, 0.0
        if state:
            self.running = state["running"].numpy()
            self.count, self.mean, self.square = (state[k] for k in ("count", "mean", "square"))

    def state(self):
        return {"running": torch.from_numpy(self.running.copy()), "count": self.count, "mean": self.mean,
                "square": self.square}

    def update(self, reward, ended):
        """reward, ended (S, N) -> the standard deviation now, > 0."""
        seen = np.empty(reward.shape)
        for t, (r, e) in enumerate(zip(reward, ended)):
            self.running = seen[t] = self.gamma * self.running + r
            self.running = self.running * (1 - e)
        n, delta = self.count + seen.size, seen.mean() - self.mean            # Chan's merge of two samples
        self.square += ((seen - seen.mean()) ** 2).sum().item() + delta.item() ** 2 * self.count * seen.size / n
        self.mean, self.count = self.mean + delta.item() * seen.size / n, n
        return max(math.sqrt(self.square / self.count), 1e-6)


def gae(reward, value, next_value, ended, gamma, lam):
    """Generalised advantages, all (S, N). ended (terminated or truncated) cuts the trace; what an end is worth is
    next_value's to say (0 or a bootstrap)."""
    delta, advantage, last = reward + gamma * next_value - value, torch.empty_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        advantage[t] = last = delta[t] + gamma * lam * (1 - ended[t]) * last
    return advantage


# ---- update --------------------------------------------------------------------------------------------------------

def actor_loss(actor, b, args, anchor):
    """Eqs. 14-17, 49-55 without the value term, on a minibatch b -> loss, and detached figures.

    The ratio takes the stored z, so that p(z) cancels. anchor: the weight lambda now.
    """
    mu, log_sigma = actor(b["obs"], b["z"])
    new = log_prob(b["a"], actor.policy.executed(mu), log_sigma, b["ran"])
    log_ratio = new - b["log_prob"]
    if args.per_dimension:
        log_ratio = log_ratio / (b["ran"].sum(-1) * actor.policy.D_a)
    ratio = log_ratio.exp()
    A = b["advantage"]
    surrogate = torch.min(ratio * A, ratio.clamp(1 - args.clip, 1 + args.clip) * A).mean()
    bonus = entropy(log_sigma, b["ran"]).mean()
    pull = (mu - b["anchor"]).square().sum((-2, -1)).mean() if anchor else torch.zeros((), device=mu.device)
    with torch.no_grad():
        figures = {"kl": (ratio - 1 - log_ratio).mean(), "clipped": ((ratio - 1).abs() > args.clip).float().mean(),
                   "entropy": bonus.detach(), "anchor": pull.detach(), "sigma": log_sigma.exp().mean(),
                   "off": (ratio - 1).abs().max()}
    return -surrogate - args.c_e * bonus + anchor * pull, figures


def critic_loss(critic, b, args):
    """1/2 (V - R)^2 (Eq. 52), its change clipped by flag -> loss, and it detached."""
    value = critic(b["obs"])
    loss = (value - b["return"]).square()
    if args.clip_value:
        near = b["value"] + (value - b["value"]).clamp(-args.clip_value, args.clip_value)
        loss = torch.max(loss, (near - b["return"]).square())
    loss = 0.5 * args.c_v * loss.mean()
    return loss, {"value_loss": loss.detach()}


def update(module, opt, loss_of, buffer, *, epochs, batch, clip_grad, generator, target_kl=math.inf):
    """Epochs of minibatches over the buffer, actor or critic; stops after an epoch whose KL exceeds the target.

    loss_of maps a minibatch to (loss, detached figures). Nothing is copied to the host but once an epoch. Returns the
    figures' means over the last epoch, those of the first minibatch, before any step, and the number of epochs.
    """
    flat, first = {k: v.flatten(0, 1) for k, v in buffer.items()}, None
    for done in range(1, epochs + 1):
        seen = []
        for i in torch.randperm(len(flat["obs"]), device=flat["obs"].device, generator=generator).split(batch):
            loss, now = loss_of({k: v[i] for k, v in flat.items()})
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), clip_grad)
            opt.step()
            opt.zero_grad(set_to_none=True)
            seen.append(torch.stack(list(now.values())))
        first = seen[0] if first is None else first
        if done == epochs or target_kl < math.inf:
            figures = dict(zip(now, torch.stack(seen).mean(0).tolist()))
            if figures.get("kl", 0) > target_kl:
                break
    return figures, dict(zip(now, first.tolist())), done


# ---- training ------------------------------------------------------------------------------------------------------

def resolve(args):
    """Load the policy, fill the flags whose default depends on its task, check the rest. Returns policy and task."""
    check_device(args.device)
    if args.resume and args.out and not args.init:
        args.init = str(Path(args.out) / "ckpt.pt")
    if not args.init:
        raise BadInput("--init is missing: give the ckpt.pt of a Stage-1 run")
    policy, _ = Policy.load(args.init, args.device, task=args.task)
    task = task_named(policy.task)
    if policy.method not in ("dbp", "bc"):
        raise BadInput(f"{args.init} was trained by --method {policy.method}: Stage 2 improves a one-step policy, dbp")
    if args.T_p not in (None, policy.T_p):
        raise BadInput(f"{args.init} has T_p {policy.T_p}, not {args.T_p}: pass a checkpoint of that horizon")
    policy.set_executed(args.T_a or policy.T_a)
    args.task, args.T_p, args.T_a = task.name, policy.T_p, policy.T_a
    for k, v in DEFAULTS.get(task.name, DEFAULTS[None]).items():
        setattr(args, k, v if getattr(args, k) is None else getattr(args, k))
    args.anchor_final = 0.1 * args.anchor if args.anchor_final is None else args.anchor_final
    args.sigma_final = args.sigma if args.sigma_final is None else args.sigma_final
    args.out = args.out or f"runs/{task.name}-dbpo-seed{args.seed}"
    above_zero(args, "T_a", "sigma", "sigma_range", "sigma_final", "envs", "chunks", "iters", "epochs", "batch",
               "critic_epochs", "critic_batch", "lr", "lr_critic", "clip", "target_kl", "clip_grad",
               "anchor_iters", "threads", "save_every", "episodes", "calls")
    for k in ("seed", "lr_final", "clip_value", "c_v", "c_e", "bonus", "shaping", "critic_warmup", "anchor",
              "anchor_final", "eval_every"):
        if not 0 <= getattr(args, k) < math.inf:
            raise BadInput(f"--{k.replace('_', '-')} must not be below 0, nor infinite")
    if not 0 <= args.sigma_hold < 1:
        raise BadInput("--sigma-hold must lie in [0, 1)")
    if not all(0 <= x <= 1 for x in (args.gamma, args.inner_gamma, args.gae_lambda)):
        raise BadInput("--gamma, --inner-gamma and --gae-lambda must lie in [0, 1]")
    if args.shaping and not task.potential:
        raise BadInput(f"--shaping: {task.name} has no potential in envs.py, leave it at 0")
    if not args.sigma_range[0] < args.sigma < args.sigma_range[1]:
        raise BadInput(f"--sigma {args.sigma} must lie inside --sigma-range {args.sigma_range}")
    args.sigma_range = list(args.sigma_range)
    fresh_folder(args)
    return policy, task


def train(args):
    policy, task = resolve(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    frozen = copy.deepcopy(policy).requires_grad_(False)                      # theta_0 of Eq. 16
    actor, critic = Actor(policy, args.sigma, args.sigma_range, args.calls), Critic(policy)
    opts = [torch.optim.Adam(m.parameters(), eps=1e-5, fused=True) for m in (critic, actor)]
    modules = {"actor": actor, "critic": critic, "frozen": frozen}
    state = {"iteration": 0, "env_steps": 0, "minutes": 0.0, "best": -math.inf, "episodes": None, "scale": None}
    if args.resume:
        state = load_state(args, "cpu", {*state, *modules, "opts"}, FREE_ON_RESUME)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)
    sims = Simulators(task, policy, args.envs, workers=not args.one_process, seed=args.seed,
                      inner_gamma=args.inner_gamma, bonus=args.bonus, shaping=args.shaping,
                      gamma=args.gamma, state=state["episodes"])
    scale = ReturnScale(args.envs, args.gamma, state["scale"])
    buffer, generator = make_buffer(policy, args.chunks, args.envs), torch.Generator(args.device)
    it, env_steps, minutes, best, out, flags = (*(state[k] for k in ("iteration", "env_steps", "minutes", "best")),
                                                Path(args.out), flags_of(args))
    run = Run(out, flags, resume_step=env_steps if args.resume else None)
    megabytes = sum(v.nbytes for v in buffer.values()) / 1e6
    print(f"{task.name}: {args.init}, {sum(p.numel() for p in actor.parameters()) / 1e6:.1f} M parameters, "
          f"{args.envs} x {args.chunks} chunk steps an iteration ({megabytes:.1f} MB), {args.device}, {out}")

    def score(**kw):
        result, _ = evaluate(policy.eval(), task, args.episodes, workers=not args.one_process, **kw)
        return result

    def log_score():
        nonlocal best
        result = score(start_seed=CHOICE_SEED)
        if not any(r["step"] == env_steps and "score" in r for r in run.rows):
            shown = {k: result[k] for k in ("score", "success", "seconds") if k in result}
            run.log(env_steps, minutes=minutes, iteration=it, score_low=result["score_95"][0],
                    score_high=result["score_95"][1], **shown)
        bar.write(f"iteration {it}, {env_steps} steps, {minutes:.1f} min: {line(result)}")
        if result["score"] > best:
            best = result["score"]
            policy.save(out / "best.pt", flags=flags, step=env_steps)

    def save():
        policy.save(out / "ckpt.pt", flags=flags, step=env_steps)
        save_torch(out / "state.pt", {"iteration": it, "env_steps": env_steps, "minutes": minutes, "best": best,
                                      "episodes": sims.state(), "scale": scale.state(), "flags": flags,
                                      "opts": [opt.state_dict() for opt in opts],
                                      **{k: m.state_dict() for k, m in modules.items()}})

    bar = tqdm(initial=it, total=args.iters, unit="iteration", dynamic_ncols=True)
    if it == 0:
        log_score()
    while it < args.iters:
        clock = time.perf_counter()
        generator.manual_seed(args.seed * 10_000_019 + it)                     # all noise depends on `it` alone: resume
        part = min(it / args.anchor_iters, 1.0)
        anchor = args.anchor + part * (args.anchor_final - args.anchor)
        factor = args.lr_final + (1 - args.lr_final) * 0.5 * (1 + math.cos(math.pi * it / args.iters))
        ramp = min(max(it - args.critic_warmup + 1, 0) / RAMP, 1.0)             # Adam's first steps are full-sized
        lr_critic, lr = args.lr_critic * factor, args.lr * factor * ramp
        shrunk = max(it / args.iters - args.sigma_hold, 0) / (1 - args.sigma_hold)
        actor.shift = shrunk * math.log(args.sigma_final / args.sigma)
        for opt, rate in zip(opts, (lr_critic, lr)):
            opt.param_groups[0]["lr"] = rate
        scores, sim_s = collect(actor, critic, frozen if anchor else None, sims, buffer, generator, args.batch)
        std = scale.update(buffer["reward"].cpu().numpy(), buffer["ended"].cpu().numpy())
        buffer["reward"] /= std
        advantage = gae(*(buffer[k] for k in ("reward", "value", "next_value", "ended")), args.gamma, args.gae_lambda)
        buffer["return"] = advantage + buffer["value"]
        buffer["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        explained = 1 - (buffer["return"] - buffer["value"]).var() / buffer["return"].var().clamp_min(1e-12)
        rollout_s = time.perf_counter() - clock
        shared = dict(clip_grad=args.clip_grad, generator=generator)
        figures, _, _ = update(critic, opts[0], lambda b: critic_loss(critic, b, args), buffer,
                               epochs=args.critic_epochs, batch=args.critic_batch, **shared)
        if it >= args.critic_warmup:
            last, first, epochs = update(actor, opts[1], lambda b: actor_loss(actor, b, args, anchor), buffer,
                                         epochs=args.epochs, batch=args.batch, target_kl=args.target_kl, **shared)
            figures = {**figures, **last, "off": first["off"], "epochs": epochs}
        seconds = time.perf_counter() - clock
        it, env_steps, minutes = it + 1, env_steps + int(buffer["ran"].sum()), minutes + seconds / 60
        now = {"minutes": minutes, "iteration": it, "explained": explained.item(), "reward_scale": std, "lambda": anchor,
               "lr": lr, "sim_s": sim_s, "rollout_s": rollout_s, "update_s": seconds - rollout_s,
               "steps_per_s": buffer["ran"].sum().item() / seconds, **figures}
        if scores:
            now["return"] = float(np.mean(scores))
        run.log(env_steps, **now)
        bar.update()
        bar.set_postfix({k: f"{now[k]:.3g}" for k in ("return", "kl", "clipped", "explained", "steps_per_s") if k in now})
        if args.eval_every and it % args.eval_every == 0:
            log_score()
        if it % args.save_every == 0 or it == args.iters:
            save()
    bar.close()
    sims.env.close()
    result = score()
    if not any("final_score" in r for r in run.rows):
        run.log(env_steps, **{f"final_{k}": result[k] for k in ("score", "success") if k in result})
    run.close()
    curves(run, out / "curves.png", [
        ("score, evaluation", ["score"], "linear"), ("score, training episodes", ["return"], "linear"),
        ("KL of an update", ["kl"], "linear"), ("clipped share", ["clipped"], "linear"),
        ("explained variance", ["explained"], "linear"), ("sigma", ["sigma"], "linear"),
        ("squared distance to the anchor", ["anchor"], "linear"), ("learning rate", ["lr"], "linear")],
        x="environment steps")
    print(f"{line(result)}  {env_steps} environment steps, {minutes:.1f} min of training  {out}/ckpt.pt")


if __name__ == "__main__":
    cli(lambda: train(parse()))
