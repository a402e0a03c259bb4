"""The experiments of Table I's other suites: BlockPush, Kitchen and RoboMimic, by scripted data.

Every setting learns from successes of the task's scripted expert: those that ship if there are as
many, else `reproduce.py suites` records them first. All settings of a task take as many steps.

All learn with the network that is the default on a CPU; all but lift's were trained on a GPU.
"""

import shlex

from experiment_row import STANDARD, Budget, Experiment

KEYS = ("task", "setting", "seed", "length", "episodes", "start_seed", "dims")
DIFFUSION = ("--method", "diffusion", "--K", 4)
REGRESSION = ("--method", "bc")

# Demonstrations of each task, and the --variety of its expert; None where it has no such flag.
SUITE_DATA = {
    "blockpush": (1000, None),
    "kitchen": (500, 0.5),
    "lift": (200, 0),
    "can": (200, 0.5),
    "square": (200, 0.5),
    "transport": (200, 0.5),
    "tool-hang": (200, 0.5),
}
# Steps of every training, and the observations of a step: lift's is one for a CPU.
SUITE_STEPS = {
    "blockpush": (4000, 256),
    "kitchen": (4000, 256),
    "lift": (3000, 32),
    "can": (3000, 256),
    "square": (3000, 256),
    "transport": (3000, 256),
    "tool-hang": (3000, 256),
}
# The paper's score, where Table I has the task for itself.
SUITE_PAPER = {"blockpush": 0.43, "kitchen": 1.00}


def suite(scene, name, *stage1, task=None, nfe=1, seeds=(0, 1, 2)):
    """A setting of a scene. task: its name, if it is not the scene's."""
    steps, batch = SUITE_STEPS[scene]
    command = f"python reproduce.py suites --tasks {scene} --settings {shlex.quote(name)}"
    if batch > 32:
        command += " --device cuda --dims 64 128 256"
    return Experiment(
        group="suites",
        name=name,
        task=task or scene,
        stage1=("--batch", batch, *stage1),
        nfe=(nfe,),
        seeds=seeds,
        budget=Budget(steps, "steps"),
        demos=SUITE_DATA[scene][0],
        starts=(STANDARD,),
        paper=SUITE_PAPER.get(scene) if name == "dbp" else None,
        result="suites.csv",
        keys=KEYS,
        command=command,
    )


SUITES = (
    suite("blockpush", "dbp"),  # K 2, absolute places
    suite("kitchen", "dbp"),
    suite("blockpush", "diffusion", *DIFFUSION, nfe=100),
    suite("kitchen", "diffusion", *DIFFUSION, nfe=100),
    *(suite(scene, "dbp") for scene in ("lift", "can", "square", "tool-hang", "transport")),
    suite("can", "step", "--mode", "step"),
    suite("can", "diffusion", *DIFFUSION, nfe=100),
    suite("square", "diffusion", *DIFFUSION, nfe=100),
    suite("blockpush", "K 4", "--K", 4, seeds=(0,)),
    suite("blockpush", "K 8", "--K", 8, seeds=(0,)),
    suite("blockpush", "step", "--mode", "step", seeds=(0,)),
    suite("blockpush", "delta", task="blockpush-delta", seeds=(0,)),
    suite("blockpush", "bc", *REGRESSION, seeds=(0,)),
    suite("kitchen", "bc", *REGRESSION, seeds=(0,)),
)


def scene_of(task):
    """The scene of a task of the table, whose data it shares."""
    return task.removesuffix("-delta")
