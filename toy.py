"""Drifting generators in two dimensions, beside regression (arXiv 2604.03540, Eqs. 1-5, 28-40).

`python toy.py` takes about a minute on one core. On targets that can be drawn it compares

  regression                a network trained by the squared error to one positive
  K = 1, K = 4, K = 16      a network trained as the policy is: B elements a step, K hypotheses
                            each, pulled to ONE positive and pushed off the others
  K = P = 128               a network with many positives in a single problem, the set-up of
                            Drifting Models
  clumped start             the same from outputs that lie within 0.01 of each other
  particles ...             no network: points moved by the same field, x <- x + step V (Eq. 2)

so that one sees what the field does, and what the network adds. What a run shows (default flags):

- Regression and K = 1 end at the mean, which is no mode of "gaussians" (energy distance 0.72). They
  are the same pull: with one hypothesis V points from x to y. At the fork every sample lies in an
  obstacle.
- K = P = 128: the field alone leaves 1 to 2 % of the particles off the data, a network 4 to 7 %.
  The difference lies between modes, as the network is continuous and its latents are connected.
- One positive: all modes are found, with a blur that is the field's own. On "gaussians" 17 % of the
  samples are off the data for K = 16, with a network as without, and 33 and 44 % for K = 4. At the
  fork 4 % lie in an obstacle for K = 16 and 13 % for K = 4.
- A clumped start stays at the mean. In a clump the mean distance s is small, so all positives are
  many tau s away, every affinity to them sits on the floor 1e-6 of Eq. 31 (note 1), and what is
  left is the pull of regression. With a floor of 1e-30 the same start reaches all modes.
"""

import startup  # noqa: F401 - first, see there

from pathlib import Path

import torch
from tqdm import tqdm

from commands import BadInput, Parser, above_zero, check_seed, cli
from files import check_folder, write_csv
from toy_field import MOVES, SAMPLES, Result, alone, frames, moments, move, together, train
from toy_pictures import decimals, draw_field, draw_fork, draw_gif, draw_targets
from toy_targets import EVERY, TARGETS, measure

CLUMP = 0.01  # the spread of a clumped start
PARTICLES = 512  # moved by the field alone


def networks(args, target, complete):
    """Name -> keywords of train(). complete: with the settings that the first target alone gets."""
    base = {"temps": tuple(args.temp), "steps": args.steps, "lr": args.lr, "seed": args.seed}
    single = base | {"B": args.batch, "spread": args.spread}  # one positive each, as the policy
    many = base | {"B": 1, "K": args.many, "P": args.many, "spread": args.spread}
    found = {"regression": single | {"K": 1, "regression": True}}
    if complete or target == "fork":
        found |= {f"K = {K}": single | {"K": K} for K in args.K}
    if complete:
        found["clumped start"] = many | {"spread": CLUMP}  # note 25
    if target != "fork":
        found[together(args.many)] = many
    return found


def fields(args, complete):
    """Name -> keywords of move(): the same fields without a network, where there is no o."""
    sizes = {f"K = {K}": (K, 1) for K in args.K if K > 1} if complete else {}
    sizes[together(args.many)] = (args.many, args.many)
    found = {}
    for name, (K, P) in sizes.items():
        how = {"B": max(1, PARTICLES // K), "K": K, "P": P}
        found[alone(name)] = how | {"temps": tuple(args.temp), "seed": args.seed}
    return found


def experiment(args):
    """Run every setting. Returns data {target: (o, y)} and results {target: {setting: Result}}."""
    targets = list(dict.fromkeys(args.targets))
    first = next((t for t in targets if t in TARGETS), None)
    jobs = []
    data = {}
    results = {}
    for target in targets:
        g = torch.Generator().manual_seed(args.seed + 10_000)
        data[target] = EVERY[target](SAMPLES, g)
        o, y = EVERY[target](SAMPLES, g)
        floor = measure(target, o, y, data[target])  # of a second set of data
        results[target] = {"expert": Result({}, o, {0: y}, floor)}
        for name, setting in networks(args, target, target == first).items():
            jobs.append((target, train, name, setting, args.steps))
        if target in TARGETS:
            for name, setting in fields(args, target == first).items():
                jobs.append((target, move, name, setting, MOVES))

    filmed = (together(args.many), alone(together(args.many)))
    for target, run, name, setting, end in tqdm(jobs, desc="settings", disable=None):
        at = {*moments(end), *(frames(end) if name in filmed else ())}
        *_, o, snapshots = run(EVERY[target], **setting, at=at)
        figures = measure(target, o, snapshots[end], data[target])
        results[target][name] = Result(setting, o, snapshots, figures)
    return data, results


def table(results):
    """The figures as rows of text, for toy.csv and the terminal."""
    rows = []
    for target, by_setting in results.items():
        for name, result in by_setting.items():
            figures = {k: decimals(v) for k, v in result.figures.items()}
            rows.append({"target": target, "setting": name, **figures})
    return rows


def show(rows):
    """Print the table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for row in [{name: name for name in columns}, *rows]:
        cells = [row.get(name, "") for name in columns[2:]]
        print(f"{row['target']:13}{row['setting']:25}" + "".join(f"{c:>8}" for c in cells))


# ---- command line --------------------------------------------------------------------------------


def parse(argv=None):
    """The flags. Raises BadInput."""
    p = Parser("Drifting generators in two dimensions, beside regression.")
    add = p.add_argument
    add(
        "--targets",
        nargs="+",
        default=[*EVERY],
        metavar="NAME",
        help=f"what to learn, of: {', '.join(EVERY)}",
    )
    add(
        "--K",
        nargs="+",
        type=int,
        default=[1, 4, 16],
        help="hypotheses of each batch element (symbol K), one setting each",
    )
    add(
        "--many",
        type=int,
        default=128,
        help="hypotheses and positives (K = P) of the setting with a single problem",
    )
    add(
        "--temp",
        nargs="+",
        type=float,
        default=[0.1],
        help="interaction scales tau, in units of the mean distance s",
    )
    add(
        "--batch",
        type=int,
        default=32,
        help="batch elements a step (symbol B), one positive each",
    )
    add("--steps", type=int, default=1500, help="training steps of each setting")
    add(
        "--lr",
        type=float,
        default=3e-3,
        help="Adam's learning rate at the start; it falls to 0 as a cosine",
    )
    add(
        "--spread",
        type=float,
        default=1.0,
        help="standard deviation of the outputs over z before training",
    )
    add("--seed", type=int, default=0, help="seed of latents, weights and data")
    add("--out", default="runs/toy", help="folder of the pictures and of toy.csv")
    args = p.parse_args(argv)
    unknown = [name for name in args.targets if name not in EVERY]
    if unknown:
        raise BadInput(f"--targets {unknown[0]}: unknown; choose from {', '.join(EVERY)}")
    above_zero(args, "K", "many", "temp", "batch", "steps", "lr", "spread")
    check_seed(args, "seed", n=10_001)  # what is held out is drawn by the seed 10000 above it
    check_folder(args, "out")
    return args


def main(argv=None):
    """Run every setting, print and save the table, draw the pictures."""
    args = parse(argv)
    torch.set_num_threads(1)
    data, results = experiment(args)
    rows = table(results)
    show(rows)

    out = Path(args.out)
    write_csv(out / "toy.csv", rows)
    names = ["toy.csv"]
    flat = {target: pair for target, pair in data.items() if target in TARGETS}
    if flat:
        first = next(iter(flat))
        draw_targets(out / "toy_targets.png", flat, results, together(args.many))
        draw_field(out / "toy_field.png", first, flat[first][1], results[first], args)
        draw_gif(out / "toy.gif", flat, results, args)
        names += ["toy_targets.png", "toy_field.png", "toy.gif"]
    if "fork" in data:
        draw_fork(out / "toy_fork.png", results["fork"])
        names.append("toy_fork.png")
    print("wrote", *(out / name for name in names))


if __name__ == "__main__":
    cli(main)
