"""The experiments of the suites with stages or arms, by scripted data: Table I's, and two UR5 arms.

Every setting learns from successes of the task's scripted expert: those that ship if there are as
many, else `reproduce.py suites` records them first. All settings of a task but "long" and
"taught" take as many steps, and learn with the network that is the default on a CPU, on a GPU, too.
With steps of 256 observations a training takes hours on a CPU core: add --device cuda where there
is one.
"""

import shlex
from typing import NamedTuple

from experiment_row import STANDARD, Budget, Experiment

KEYS = ("task", "setting", "seed", "length", "episodes", "start_seed", "dims")
UR5 = ("ur5-lift", "ur5-can", "ur5-transport")
DIFFUSION = ("--method", "diffusion", "--K", 4)
REGRESSION = ("--method", "bc")


class Suite(NamedTuple):
    """What all settings of a task share. variety: of its expert; None where it has no such flag."""

    demos: int
    variety: float
    steps: int  # of every training
    batch: int  # observations of a step; lift's is one for a CPU


SUITE = {
    "blockpush": Suite(demos=1000, variety=None, steps=4000, batch=256),
    "kitchen": Suite(demos=500, variety=0.5, steps=4000, batch=256),
    "lift": Suite(demos=200, variety=0, steps=3000, batch=32),
    "can": Suite(demos=200, variety=0.5, steps=3000, batch=256),
    "square": Suite(demos=200, variety=0.5, steps=3000, batch=256),
    "transport": Suite(demos=200, variety=0.5, steps=3000, batch=256),
    "tool-hang": Suite(demos=200, variety=0.5, steps=3000, batch=256),
    "ur5-lift": Suite(demos=50, variety=0.5, steps=3000, batch=32),
    "ur5-can": Suite(demos=50, variety=0.5, steps=3000, batch=32),
    "ur5-transport": Suite(demos=50, variety=0.5, steps=3000, batch=32),
}
# The paper's score, where Table I has the task for itself, or Table III (real arms, pictures).
SUITE_PAPER = {
    "blockpush": 0.43,
    "kitchen": 1.00,
    "ur5-lift": 0.90,
    "ur5-can": 0.80,
    "ur5-transport": 0.55,
}


def setting(scene, name, *stage1, task=None, nfe=1, seeds=(0, 1, 2), steps=None, batch=None):
    """A setting of a scene. task: its name; steps, batch: if they are not the scene's."""
    suite = SUITE[scene]
    steps = steps or suite.steps
    batch = batch or suite.batch
    return Experiment(
        group="suites",
        name=name,
        task=task or scene,
        stage1=("--batch", batch, *stage1),
        nfe=(nfe,),
        seeds=seeds,
        budget=Budget(steps, "steps"),
        demos=suite.demos,
        starts=(STANDARD,),
        paper=SUITE_PAPER.get(scene) if name == "dbp" else None,
        result="suites.csv",
        keys=KEYS,
        command=f"python reproduce.py suites --tasks {scene} --settings {shlex.quote(name)}",
    )


def long(scene, steps, batch, task=None):
    """A network of 0.6 M parameters for many steps: what a CPU core manages in about an hour."""
    small = ("--dims", 32, 64)
    return setting(scene, "long", *small, task=task, seeds=(0,), steps=steps, batch=batch)


def taught(scene, task):
    """From pictures, by encoders that were first taught the scene's numbers (beyond the paper)."""
    flags = ("--dims", 32, 64, "--teach", 6000)
    return setting(scene, "taught", *flags, task=task, steps=8000, batch=32)


SUITES = (
    setting("blockpush", "dbp"),  # K 2, absolute places
    setting("kitchen", "dbp"),
    setting("blockpush", "diffusion", *DIFFUSION, nfe=100),
    setting("kitchen", "diffusion", *DIFFUSION, nfe=100),
    *(setting(scene, "dbp") for scene in ("lift", "can", "square", "tool-hang", "transport")),
    *(setting(scene, "state", task=f"{scene}-state") for scene in UR5),
    setting("ur5-lift", "no-to-end", "--no-to-end", task="ur5-lift-state", seeds=(0,)),
    *(setting(scene, "dbp") for scene in UR5),
    taught("lift", "lift-image"),
    taught("can", "can-image"),
    *(taught(scene, scene) for scene in UR5),
    long("ur5-transport", 30_000, 32, task="ur5-transport-state"),
    long("tool-hang", 40_000, 128),
    long("transport", 40_000, 128),
    long("blockpush", 50_000, 128),
    setting("can", "step", "--mode", "step"),
    setting("can", "diffusion", *DIFFUSION, nfe=100),
    setting("square", "diffusion", *DIFFUSION, nfe=100),
    setting("blockpush", "K 4", "--K", 4, seeds=(0,)),
    setting("blockpush", "K 8", "--K", 8, seeds=(0,)),
    setting("blockpush", "step", "--mode", "step", seeds=(0,)),
    setting("blockpush", "delta", task="blockpush-delta", seeds=(0,)),
    setting("blockpush", "bc", *REGRESSION, seeds=(0,)),
    setting("kitchen", "bc", *REGRESSION, seeds=(0,)),
)


def scene_of(task):
    """The scene of a task of the table, whose data it shares."""
    for what in ("-delta", "-state", "-image"):
        task = task.removesuffix(what)
    return task


def batch_of(experiment):
    """The observations of a step of an experiment's training."""
    flags = experiment.stage1
    return flags[flags.index("--batch") + 1]
