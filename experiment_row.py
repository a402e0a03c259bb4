"""A row of the table of experiments: what is trained, for how long, and where it is scored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Starts:
    """Fixed start states of an evaluation, one an episode, numbered from first_seed on."""

    episodes: int
    first_seed: int


STANDARD = Starts(episodes=50, first_seed=100_000)  # Diffusion Policy's own 50
CHOICE = Starts(episodes=200, first_seed=200_000)  # on which settings are chosen
UNUSED = Starts(episodes=200, first_seed=500_000)  # on which nothing was chosen
FRESH = Starts(episodes=500, first_seed=600_000)  # likewise, for the comparison at convergence
IMAGE_STARTS = Starts(episodes=200, first_seed=600_000)  # likewise, of Push-T from images
CLOUD_STARTS = Starts(episodes=20, first_seed=100_000)
LOCOMOTION_STARTS = Starts(episodes=20, first_seed=100_000)


@dataclass(frozen=True)
class Budget:
    """The length of a training. unit: "minutes", "steps" or "epochs", as the flag is called."""

    amount: float
    unit: str

    def __str__(self):
        return f"{self.amount:g} {self.unit}"


@dataclass(frozen=True)
class Experiment:
    """A setting that is trained once a seed, then scored on each set of start states.

    Its rows stand in results/, in the file `result`, told apart by the columns `keys`.
    """

    group: str  # subcommand of reproduce.py that runs it, or what `ablate` varies
    name: str  # stands in the column "setting" or "task"
    result: str  # file of its scores in results/
    command: str  # the line that makes its rows
    keys: tuple = ("setting", "seed", "length", "episodes", "start_seed", "dims")
    task: str = "pusht"
    stage1: tuple = ()  # flags of dbp_train.py besides seed, budget, data and batch
    stage2: tuple = ()  # flags of dbpo_ppo.py besides seed and checkpoint
    stage1_seed: int = None  # Stage 2: of the policy that all seeds begin from; None: their own
    dims: str = "auto"  # channels of the network; auto: what a CPU has by default
    nfe: tuple = (1,)  # network evaluations an action, each of which becomes a row
    seeds: tuple = (0, 1, 2)
    budget: Budget = None
    paper_budget: Budget = None
    demos: int = None  # the first that many demonstrations; None: all
    eval_every: int = 0  # steps between evaluations during training; 0: only at the end
    starts: tuple = (STANDARD,)
    paper: float = None  # the paper's figure, that of the first entry of nfe
    curve: str = ""  # file in results/ of the scores during training, if they are kept
    same_run_as: str = None  # another experiment's name whose run has the same flags
    by_hand: bool = False  # no subcommand runs it: `command` does
    removed: str = ""  # the flag it was made with is gone; its rows stay recorded
