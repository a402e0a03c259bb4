"""The experiments of Stage 2: which policies are improved, with which flags, on which starts.

Rows whose flags or reward are gone stay recorded, under names of their own (see `removed`).
"""

from experiment_row import LOCOMOTION_STARTS, STANDARD, UNUSED, Budget, Experiment

STAGE2_KEYS = ("setting", "seed", "episodes", "start_seed")


NO_ANCHOR = ("--anchor", 0)
WHITE = "its noise was white and of a size set by hand, its reward another"
FALLING = "its noise fell to 0.3 of what it was, and the motion cost more (--smooth 1)"
STAYING = "its noise stayed"


def pusht_stage2(of, *, steps, anchor=True, removed="", stage1=(), stage1_seed=None, flags=()):
    """Push-T: each seed's policy after `steps` of Stage 1, improved.

    of: the kind of policy. stage1_seed: of the one policy that all seeds begin from. removed: what
    was otherwise before (WHITE, FALLING or STAYING), which the name then tells. flags: of
    dbpo_ppo.py, where they differ from the defaults in more than the anchor; `of` then tells them.
    """
    before = {"": "", WHITE: "-white", FALLING: "-falling", STAYING: "-staying"}[removed]
    name = of + before + ("" if anchor else "-no-anchor")
    command = f"python reproduce.py stage2 --tasks {of.replace('best', 'shipped')}"
    return Experiment(
        group="stage2",
        name=name,
        stage1=("--K", 4, "--temp", 0.2, *stage1),
        stage2=flags if anchor else (*flags, *NO_ANCHOR),
        stage1_seed=stage1_seed,
        budget=Budget(steps, "steps"),
        starts=(STANDARD, UNUSED),
        result="stage2.csv",
        curve="pusht_dbpo.csv",
        keys=STAGE2_KEYS,
        command=command if anchor else f"{command} --no-anchor",
        removed=removed,
    )


def half_stage2(name, *flags, iterations=50, removed=""):
    """A way to explore on Push-T: early policies, half of the default's environment steps."""
    return Experiment(
        group="stage2",
        name=f"pusht-half-{name}",
        stage1=("--K", 4, "--temp", 0.2),
        stage2=("--num-iterations", iterations, *flags),
        budget=Budget(2000, "steps"),
        starts=(STANDARD, UNUSED),
        result="stage2.csv",
        curve="pusht_half.csv",
        keys=STAGE2_KEYS,
        command=f"python reproduce.py stage2 --tasks pusht-half-{'default' if removed else name}",
        removed=removed,
    )


def image_stage2(name, steps, stage1, stage2):
    """Push-T from images: one policy of a small network, improved. The critic sees, too."""
    return Experiment(
        group="stage2",
        name=name,
        task="pusht-image",
        stage1=("--dims", 32, 64, *stage1),
        stage2=stage2,
        stage1_seed=0,
        budget=Budget(steps, "steps"),
        starts=(STANDARD, UNUSED),
        result="stage2.csv",
        curve="pusht_dbpo.csv",
        keys=STAGE2_KEYS,
        command=f"python reproduce.py stage2 --tasks {name}",
    )


def task_stage2(
    task,
    *,
    steps,
    anchor,
    stage1=(),
    flags=(),
    starts=LOCOMOTION_STARTS,
    curve="locomotion_dbpo.csv",
    white=False,
):
    """One early policy of a task, improved with three seeds: locomotion, if nothing else is said.

    stage1: flags of dbp_train.py; flags: of dbpo_ppo.py, besides the anchor's. white: see WHITE.
    """
    name = f"{task}-white" if white else task
    return Experiment(
        group="stage2",
        name=f"{name}-anchor" if anchor else f"{name}-no-anchor",
        task=task,
        stage1=stage1,
        stage2=flags if anchor else (*flags, *NO_ANCHOR),
        stage1_seed=0,
        budget=Budget(steps, "steps"),
        starts=(starts,),
        result="stage2.csv",
        curve=curve,
        keys=STAGE2_KEYS,
        command=f"python reproduce.py stage2 --tasks {task}" + ("" if anchor else " --no-anchor"),
        removed=WHITE if white else "",
    )


def robomimic_stage2(task, *, steps, anchor):
    """RoboMimic by sparse reward: an episode of each of 16 slow simulators an iteration."""
    return task_stage2(
        task,
        steps=steps,
        anchor=anchor,
        stage1=("--dims", 32, 64, "--T-a", 4),
        flags=("--sigma", 0.06, "--num-iterations", 30, "--eval-every", 15),
        starts=STANDARD,
        curve="robomimic_dbpo.csv",
    )


def coarse_stage2(name, flags):
    """Hopper with ten times the learning rate and no bound on the KL: one seed."""
    coarse = ("--lr", "5e-4", "--target-kl", "1e9", "--num-iterations", 60, *flags)
    return Experiment(
        group="coarse",
        name=name,
        task="hopper",
        stage2=coarse,
        seeds=(0,),
        stage1_seed=0,
        budget=Budget(6000, "steps"),
        starts=(LOCOMOTION_STARTS,),
        result="stage2.csv",
        curve="hopper_coarse.csv",
        keys=STAGE2_KEYS,
        command=f"python dbpo_ppo.py --init ckpt.pt --episodes 20 {' '.join(map(str, coarse))}",
        by_hand=True,
        removed=WHITE,
    )


SHIPPED = ("--data", "demos/pusht.npz")
LOCOMOTION_STEPS = {"hopper": 6000, "walker2d": 6000, "halfcheetah": 4000, "ant": 4000}
QUIET = ("--quiet", 0.25)
TRIED = "its flags were tried in commit 482e2eb and are gone"
# Where the encoder learns, it is most of an update's cost.
FEWER_PASSES = ("--num-iterations", 60, "--critic-epochs", 3)
TAUGHT = ("--teach", 6000, "--eval-every", 2000)
HALF = (
    half_stage2("default"),
    half_stage2("z-alone", "--sigma", 0.02),
    half_stage2("more", "--sigma", 0.04, "--num-envs", 200, "--eval-every", 5, iterations=25),
    half_stage2("quiet", *QUIET, removed=TRIED),
    half_stage2("quiet-critic", *QUIET, "--quiet-critic", removed=TRIED),
    half_stage2("quiet-anchor", *QUIET, "--quiet-anchor", removed=TRIED),
    half_stage2("state-kl", "--state-kl", 0.06, removed=TRIED),
)
STAGE2 = (
    pusht_stage2("pusht-shipped", steps=8000, stage1=SHIPPED, stage1_seed=0),
    pusht_stage2("pusht-early", steps=2000),
    pusht_stage2("pusht-early", steps=2000, anchor=False),
    pusht_stage2("pusht-early-rho-0", steps=2000, flags=("--rho", 0)),
    *HALF,
    pusht_stage2("pusht-converged", steps=20_000, stage1_seed=0),
    image_stage2("pusht-image", 36_000, ("--eval-every", 6000), FEWER_PASSES),
    image_stage2("pusht-image-kept", 8000, TAUGHT, ("--keep-encoder",)),
    *(
        task_stage2(task, steps=steps, anchor=anchor)
        for task, steps in LOCOMOTION_STEPS.items()
        for anchor in (True, False)
    ),
    *(robomimic_stage2("lift-delta", steps=500, anchor=anchor) for anchor in (True, False)),
    pusht_stage2("pusht-shipped", steps=8000, stage1=SHIPPED, stage1_seed=0, removed=FALLING),
    pusht_stage2("pusht-early", steps=2000, removed=FALLING),
    pusht_stage2("pusht-shipped", steps=8000, stage1=SHIPPED, stage1_seed=0, removed=STAYING),
    pusht_stage2("pusht-early", steps=2000, removed=STAYING),
    pusht_stage2("pusht-early", steps=2000, removed=WHITE),
    pusht_stage2("pusht-early", steps=2000, anchor=False, removed=WHITE),
    pusht_stage2("pusht-best", steps=8000, removed=WHITE),
    *(
        task_stage2(task, steps=steps, anchor=anchor, white=True)
        for task, steps in LOCOMOTION_STEPS.items()
        for anchor in (True, False)
    ),
)
STAGE2_COARSE = (
    coarse_stage2("hopper-coarse-anchor", ("--anchor", 0.3, "--anchor-final", 0.3)),
    coarse_stage2("hopper-coarse-no-anchor", ("--anchor", 0)),
)
LOCOMOTION = ("hopper", "walker2d", "halfcheetah", "ant")
# Mean return of the demonstrations that a task's Stage 1 learns from, and where they come from.
LOCOMOTION_DEMOS = {
    "hopper": (1348, "demos/hopper-medium"),
    "walker2d": (1726, "demos/walker2d-medium"),
    "halfcheetah": (2406, "python experts.py --task halfcheetah --until 2000 --record-steps 25000"),
    "ant": (940, "python experts.py --task ant --until 1000 --record-steps 25000"),
}
PAPER_RETURN = {"with": 4096.0, "without": 3273.5}  # the anchor, mean of locomotion (Fig. 4)
