"""The experiments as a table: flags, length, seeds, start states, and what the paper reports.

reproduce.py runs the rows of this table; report.py writes RESULTS.md and draws the figures from
what came out. Nothing is computed here. Every row names the command that makes it and the file that
it fills, so that each figure can be traced back.
"""

import shlex
from dataclasses import dataclass

from experiment_row import (
    CHOICE,
    CLOUD_STARTS,
    FRESH,
    IMAGE_STARTS,
    STANDARD,
    UNUSED,
    Budget,
    Experiment,
    Starts,
)
from experiments_stage2 import STAGE2, STAGE2_COARSE
from experiments_suites import SUITES

# ---- Push-T: Table I's row, and the same methods at convergence ---------------------------------

COMPARED = {
    "dbp": ("--method", "dbp", "--K", 4),
    "diffusion": ("--method", "diffusion", "--K", 4),  # the better of K 1 and 4, as for meanflow
    "meanflow": ("--method", "meanflow", "--K", 1),
    "bc": ("--method", "bc"),
}
CONVERGING = COMPARED | {"dbp-memory": ("--method", "dbp", "--K", 4, "--memory", 16)}
METHOD_NFE = {
    "dbp": (1,),
    "diffusion": (100, 10),
    "meanflow": (1,),
    "bc": (1,),
    "dbp-memory": (1,),
}
TABLE_1 = {"dbp": 0.87, "diffusion": 0.85}  # its row "Push-T (Low-Dim)"
EQUAL_MINUTES = Budget(15, "minutes")
CONVERGED = Budget(20_000, "steps")
LONG = Budget(60_000, "steps")

HUMAN = Experiment(
    group="human",
    name="human",
    stage1=("--K", 4, "--temp", 0.2, "--threads", 1),
    budget=Budget(8000, "steps"),
    eval_every=1000,
    starts=(STANDARD, CHOICE),
    paper=0.873,
    result="pusht_human_final.csv",
    curve="pusht_human.csv",
    keys=("seed", "episodes", "start_seed"),
    command="python dbp_train.py --task pusht --K 4 --temp 0.2 --threads 1 --eval-every 1000",
    by_hand=True,
)

PUSHT = tuple(
    Experiment(
        group="pusht",
        name=method,
        stage1=flags,
        nfe=METHOD_NFE[method],
        budget=EQUAL_MINUTES,
        eval_every=1500,
        starts=(STANDARD, UNUSED),
        paper=TABLE_1.get(method),
        result="pusht_methods.csv",
        command="python reproduce.py pusht --minutes 15 --eval-every 1500 --threads 1",
    )
    for method, flags in COMPARED.items()
)


def pusht_steps(method, budget, seeds=(0, 1, 2), dims="auto"):
    """Push-T by a method at a number of steps, on starts that chose nothing."""
    command = f"python reproduce.py pusht --steps {budget.amount} --eval-every 4000 --threads 1"
    return Experiment(
        group="pusht",
        name=method,
        stage1=CONVERGING[method],
        dims=dims,
        nfe=METHOD_NFE[method],
        seeds=seeds,
        budget=budget,
        eval_every=4000,
        starts=(STANDARD, FRESH),
        paper=TABLE_1.get(method),
        result="pusht_methods.csv",
        command=command if dims == "auto" else f"{command} --dims {dims}",
    )


PUSHT_CONVERGED = tuple(pusht_steps(method, CONVERGED) for method in CONVERGING)
SMALLEST = "32 64"  # channels of a network of 0.6 M parameters
PUSHT_SMALL = tuple(pusht_steps(method, CONVERGED, dims=SMALLEST) for method in CONVERGING)
PUSHT_LONG = tuple(pusht_steps(method, LONG, seeds=(0,)) for method in ("dbp", "diffusion"))

MULTIMODAL = tuple(
    Experiment(
        group="multimodal",
        name=method,
        stage1=flags,
        budget=EQUAL_MINUTES,
        eval_every=1500,
        result="multimodal.csv",
        keys=("setting", "seed"),
        command="python reproduce.py multimodal --minutes 15 --eval-every 1500 --threads 1",
        same_run_as=method,
    )
    for method, flags in COMPARED.items()
)

# ---- Push-T from images -------------------------------------------------------------------------


def image(name, *flags, steps=36_000, eval_every=6000):
    """Push-T from images with a network of 0.8 M parameters, which a CPU core trains."""
    return Experiment(
        group="image",
        name=name,
        task="pusht-image",
        stage1=("--dims", 32, 64, *flags),
        budget=Budget(steps, "steps"),
        eval_every=eval_every,
        starts=(STANDARD, IMAGE_STARTS),
        paper=0.89,
        result="pusht_image.csv",
        curve="pusht_image_curve.csv",
        keys=("setting", "seed", "episodes", "start_seed"),
        command=f"python reproduce.py image --settings {shlex.quote(name)} --threads 1",
    )


IMAGES = (
    image("taught", "--teach", 6000, steps=8000, eval_every=2000),
    image("small"),
    image("small, memory 16", "--memory", 16),
)

# ---- Table II: point clouds ---------------------------------------------------------------------

# Meta-World's tasks in the paper's groups.
METAWORLD = {
    "easy": (
        "button-press button-press-wall dial-turn door-close door-open door-unlock drawer-close "
        "faucet-close faucet-open handle-press handle-pull lever-pull peg-unplug-side plate-slide "
        "plate-slide-back plate-slide-back-side plate-slide-side reach reach-wall window-close "
        "window-open"
    ),
    "medium": "coffee-pull hammer peg-insert-side soccer",
    "hard": "assembly hand-insert pick-place push",
    "very hard": "disassemble pick-place-wall shelf-place stick-pull stick-push",
}
ADROIT = ("adroit-hammer", "adroit-door", "adroit-pen")
CLOUDS = {
    **{f"metaworld-{task}": group for group, tasks in METAWORLD.items() for task in tasks.split()},
    **dict.fromkeys(ADROIT, "adroit"),
}
TABLE_2_COLUMNS = (*ADROIT, *METAWORLD, "all 37")
# Success in per cent, mean of three seeds and of the group's tasks; OMP and MP1 as quoted there.
TABLE_2 = {
    "DBP, the paper": {
        "adroit-hammer": 100,
        "adroit-door": 70,
        "adroit-pen": 80,
        "easy": 91.7,
        "medium": 90.3,
        "hard": 75.2,
        "very hard": 86.7,
        "all 37": 88.4,
    },
    "OMP, quoted there": {
        "adroit-hammer": 100,
        "adroit-door": 68,
        "adroit-pen": 60,
        "easy": 89.7,
        "medium": 77.4,
        "hard": 62.5,
        "very hard": 77.8,
        "all 37": 82.3,
    },
    "MP1, quoted there": {
        "adroit-hammer": 100,
        "adroit-door": 69,
        "adroit-pen": 58,
        "easy": 88.2,
        "medium": 68.0,
        "hard": 58.1,
        "very hard": 67.2,
        "all 37": 78.9,
    },
}

POINTCLOUD = tuple(
    Experiment(
        group="pointcloud",
        name=task,
        task=task,
        budget=Budget(150, "epochs"),
        paper_budget=Budget(3000 if group == "adroit" else 1000, "epochs"),
        demos=10,
        starts=(CLOUD_STARTS,),
        paper=TABLE_2["DBP, the paper"][task if group == "adroit" else group],
        result="pointcloud.csv",
        keys=("task", "seed", "epochs", "dims"),
        command=f"python reproduce.py pointcloud --tasks {task} --epochs 150 --every 50",
    )
    for task, group in CLOUDS.items()
)

SURVEY = tuple(
    Experiment(
        group="survey",
        name=task,
        task=task,
        stage1=("--dims", 64, 128),
        seeds=(0,),
        budget=Budget(20, "steps"),
        demos=10,
        starts=(Starts(episodes=1, first_seed=100_000),),
        result="pointcloud_survey.csv",
        keys=("task",),
        command="python reproduce.py survey",
    )
    for task in CLOUDS
)

# ---- appendix B: K, temperatures, mode, cost; and flags that the paper does not have ------------

ABLATION_EPOCHS = 9.4  # what 3000 steps of batch 32 are on 90 demonstrations


def ablation(group, name, stage1, *, paper=None, epochs=100, starts=STANDARD, **more):
    """A row of appendix B at a size for a CPU: 90 demonstrations, 3000 steps, not 100 epochs."""
    command = f"python reproduce.py ablate {group} --steps 3000 --threads 1"
    if starts != STANDARD:
        command += f" --episodes {starts.episodes} --start-seed {starts.first_seed}"
    return Experiment(
        group=group,
        name=name,
        stage1=stage1,
        demos=90,
        budget=Budget(3000, "steps"),
        paper_budget=Budget(epochs, "epochs"),
        starts=(starts,),
        paper=paper,
        result=f"ablate_{group}.csv",
        command=command,
        **more,
    )


# The paper's scores for K stand in its Fig. 7 alone.
ABLATE_K = tuple(ablation("K", f"K {k}", ("--K", k)) for k in (1, 2, 4, 8, 16))

# The sets "wide" and "dense" are ours: the paper's text does not give its own.
TEMPERATURES = {
    "tau 0.02": (0.02,),
    "tau 0.05": (0.05,),
    "tau 0.2": (0.2,),
    "tau default": (0.02, 0.05, 0.2),
    "tau wide": (0.02, 0.2, 2.0),
    "tau dense": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
}
ABLATE_TEMP = (
    ablation("temp", "tau 0.02", ("--temp", *TEMPERATURES["tau 0.02"]), paper=0.758),
    ablation("temp", "tau 0.05", ("--temp", *TEMPERATURES["tau 0.05"]), paper=0.864),
    ablation(
        "temp", "tau 0.2", ("--temp", *TEMPERATURES["tau 0.2"]), paper=0.873, same_run_as="K 4"
    ),
    ablation("temp", "tau default", ("--temp", *TEMPERATURES["tau default"]), paper=0.858),
    ablation("temp", "tau wide", ("--temp", *TEMPERATURES["tau wide"]), paper=0.849),
    ablation("temp", "tau dense", ("--temp", *TEMPERATURES["tau dense"]), paper=0.817),
)

ABLATE_MODE = (
    ablation("mode", "chunk", ("--mode", "chunk"), paper=0.890, epochs=200, same_run_as="K 4"),
    ablation("mode", "step", ("--mode", "step"), paper=0.845, epochs=200),
)

ABLATE_COST = (
    Experiment(
        group="cost",
        name="cost",
        seeds=(0,),
        starts=(),
        result="ablate_cost.csv",
        keys=("batch", "K"),
        command="python reproduce.py ablate cost --threads 1",
    ),
)

GONE = "its flag is no longer there"


def beyond(name, stage1=(), *, seeds=(0,), **more):
    """A flag that the paper does not have, scored on the starts where settings are chosen."""
    return ablation("beyond", name, stage1, starts=CHOICE, seeds=seeds, **more)


ABLATE_BEYOND = (
    beyond("K 4", ("--K", 4), seeds=(0, 1, 2), same_run_as="K 4"),  # the paper's method
    beyond("temp-start 4", seeds=(0, 1, 2), removed=GONE),
    beyond("temp-start 16", removed=GONE),
    beyond("memory 16", ("--memory", 16), seeds=(0, 1, 2)),
    beyond("temp-start 4, memory 16", removed=GONE),
    beyond("positives 4", removed=GONE),
    beyond("spread 1", ("--spread", 1)),
    beyond("scale observation", removed=GONE),
    beyond("schedule constant", ("--schedule", "constant")),  # the paper's learning rate
)
BEYOND_MEANING = {
    "K 4": "the paper's settings, K 4 and tau 0.2",
    "temp-start 4": "tau falls from 4 times its value over the first half of the training",
    "temp-start 16": "tau falls from 16 times its value",
    "memory 16": "the last 16 hypotheses of the same window push too",
    "temp-start 4, memory 16": "both together",
    "positives 4": "the chunks of three near observations pull too",
    "spread 1": "the untrained generator's outputs vary with z by one standard deviation",
    "scale observation": "one scale s an observation instead of one over the batch",
    "schedule constant": "the paper's learning rate instead of the cosine",
}


def full_length(name, stage1=(), *, seeds, steps, **more):
    """One flag on all 206 demonstrations, at about the length of the methods' 15 minutes."""
    return Experiment(
        group="flags",
        name=name,
        stage1=("--temp", 0.2, *stage1),
        seeds=seeds,
        budget=Budget(steps, "steps"),
        starts=(STANDARD, UNUSED),
        result="pusht_flags.csv",
        keys=("flags", "seed", "episodes", "start_seed"),
        command=f"python dbp_train.py --task pusht --temp 0.2 --steps {steps} {name}",
        by_hand=True,
        **more,
    )


FLAGS = (
    full_length("--temp-start 4", seeds=(0, 1, 2), steps=5577, removed=GONE),
    full_length("--memory 16", ("--memory", 16), seeds=(0, 1, 2), steps=5577),
    full_length("--mode step", ("--mode", "step"), seeds=(0,), steps=5577),
    full_length("--K 8", ("--K", 8), seeds=(0,), steps=3200),
)

DEMONSTRATORS = 0.892  # score of Push-T's 206 human demonstrations, none of which reaches success

# ---- what the paper says, and the pair of settings that decides whether it holds here -----------


@dataclass(frozen=True)
class Claim:
    """A statement of the paper: the setting `above` scores above the setting `below`."""

    table: str  # of RESULTS.md, under which it stands
    says: str  # the statement, to follow "The paper:"
    result: str
    above: str
    below: str
    starts: Starts = STANDARD
    length: str = None
    dims: str = "auto"


def ablation_claim(group, above, below, says):
    """A claim on two settings of appendix B."""
    result = f"ablate_{group}.csv"
    return Claim(table=group, says=says, result=result, above=above, below=below)


def methods_claim(table, below, says, starts, length, dims="auto"):
    """A claim on DBP with one evaluation against another method on Push-T."""
    return Claim(
        table=table,
        says=says,
        result="pusht_methods.csv",
        above="dbp, 1 NFE",
        below=below,
        starts=starts,
        length=str(length),
        dims=dims,
    )


ABOVE_DIFFUSION = "DBP with one evaluation scores above diffusion with 100, 0.87 against 0.85"
ABOVE_ONE_STEP = (
    "DBP is above other one-step generators on one backbone (there on point clouds, Table II, "
    "88.4 % against MP1's 78.9 %)"
)
METHOD_PAIRS = {"diffusion, 100 NFE": ABOVE_DIFFUSION, "meanflow, 1 NFE": ABOVE_ONE_STEP}
CLAIMS = (
    *(
        methods_claim("pusht_methods", below, says, starts, EQUAL_MINUTES)
        for below, says in METHOD_PAIRS.items()
        for starts in (STANDARD, UNUSED)
    ),
    *(
        methods_claim("pusht_converged", below, says, starts, CONVERGED)
        for below, says in METHOD_PAIRS.items()
        for starts in (STANDARD, FRESH)
    ),
    *(
        methods_claim("pusht_small", below, says, starts, CONVERGED, SMALLEST)
        for below, says in METHOD_PAIRS.items()
        for starts in (STANDARD, FRESH)
    ),
    ablation_claim("K", "K 2", "K 1", "the large gain is that from K 1 to K 2"),
    ablation_claim("K", "K 8", "K 16", "beyond a moderate K the score is a little lower"),
    ablation_claim("temp", "tau 0.2", "tau 0.02", "tau 0.2 is above 0.02, 0.873 against 0.758"),
    ablation_claim("temp", "tau 0.2", "tau 0.05", "tau 0.2 is above 0.05, 0.873 against 0.864"),
    ablation_claim("temp", "tau 0.05", "tau 0.02", "tau 0.05 is above 0.02, 0.864 against 0.758"),
    ablation_claim(
        "temp", "tau 0.2", "tau default", "tau 0.2 is above the default three, 0.873 against 0.858"
    ),
    ablation_claim(
        "temp", "tau 0.2", "tau wide", "tau 0.2 is above three wide ones, 0.873 against 0.849"
    ),
    ablation_claim(
        "temp", "tau wide", "tau dense", "three wide ones are above six, 0.849 against 0.817"
    ),
    ablation_claim("mode", "chunk", "step", "chunk mode is above step mode, 0.890 against 0.845"),
)

# ---- all of them --------------------------------------------------------------------------------

ABLATIONS = {"K": ABLATE_K, "temp": ABLATE_TEMP, "mode": ABLATE_MODE, "beyond": ABLATE_BEYOND}
EXPERIMENTS = (
    HUMAN,
    *PUSHT,
    *PUSHT_SMALL,
    *PUSHT_CONVERGED,
    *PUSHT_LONG,
    *MULTIMODAL,
    *POINTCLOUD,
    *SURVEY,
    *ABLATE_K,
    *ABLATE_TEMP,
    *ABLATE_MODE,
    *ABLATE_COST,
    *ABLATE_BEYOND,
    *FLAGS,
    *STAGE2,
    *STAGE2_COARSE,
    *IMAGES,
    *SUITES,
)
# What `reproduce.py queue` works through: experiments with the seeds that come before the next.
QUEUE = (
    (PUSHT_SMALL, (0, 1, 2)),
    (PUSHT_CONVERGED, (0,)),
    (PUSHT_CONVERGED, (1, 2)),
    (PUSHT_LONG, (0,)),
    (tuple(e for e in STAGE2 if not e.removed), (0, 1, 2)),
    (IMAGES, (0,)),
    (IMAGES, (1, 2)),
    (SUITES, (0,)),
    (SUITES, (1, 2)),
    (POINTCLOUD, (0,)),
    (POINTCLOUD, (1, 2)),
)
