"""What of the paper is confirmed, contradicted or unknown here, from the rows in results/."""

from dataclasses import dataclass

from cells import by_seed, leads
from experiment_row import LOCOMOTION_STARTS, STANDARD, UNUSED
from experiments import CLAIMS
from experiments_stage2 import PAPER_RETURN
from tables import anchor_pair, at, interval, mean, paired, select


@dataclass(frozen=True)
class Verdict:
    """A statement of the paper, what was found here, and the word for it."""

    says: str
    word: str  # "Confirmed", "Contradicted" or "Unknown"
    here: str

    def line(self):
        """The item of a list."""
        return f"**{self.word}.** The paper: {self.says}. {self.here}"


def word_for(difference):
    """The word for a difference that the paper says is above 0."""
    if not difference.excludes_zero():
        return "Unknown"
    return "Confirmed" if difference.mean > 0 else "Contradicted"


def separation(difference):
    """The end of a sentence on two settings: whether the seeds tell them apart."""
    if difference.excludes_zero():
        return "."
    if difference.n == 1:
        return "; one seed decides nothing."
    return f", so {difference.n} seeds cannot separate them."


def judge(claim, results):
    """The Verdict on a Claim of experiments.py."""
    rows = at(results.rows(claim.result, claim.dims), claim.starts)
    if claim.length:
        rows = select(rows, length=claim.length)
    above = select(rows, setting=claim.above)
    below = select(rows, setting=claim.below)
    difference = paired(above, below)
    if difference.n == 0:
        return Verdict(claim.says, "Unknown", "The two have not been run here.")
    here = (
        f"On the {claim.starts.episodes} starts from seed {claim.starts.first_seed} `{claim.above}`"
        f" scores {mean(above, 'score'):.3f} and `{claim.below}` {mean(below, 'score'):.3f}, a "
        f"difference of {difference.text()}; the first leads on {leads(above, below)} seeds"
    )
    return Verdict(claim.says, word_for(difference), here + separation(difference))


def verdicts(name, results):
    """The Verdicts on all claims under a table."""
    return [judge(claim, results) for claim in CLAIMS if claim.table == name]


def latency_verdict(results):
    """One evaluation takes a hundredth of the time of 100."""
    ratio = results.json("bench_latency.json")["diffusion, 100 NFE, eager"]["ratio_to_dbp"]
    return Verdict(
        "one evaluation instead of 100 makes an action 100 times faster",
        "Confirmed" if ratio > 90 else "Contradicted",
        f"An action by diffusion with 100 evaluations takes {ratio:.1f} times as long as one by "
        "DBP, on the same network, timed in turn.",
    )


def share_verdict(results):
    """The drift field's share of a training step."""
    bench = results.json("bench_train.json")
    step = bench["drift_step"]["p50_ms"]
    alone = bench["drift_loss_alone"]["p50_ms"]
    return Verdict(
        "computing the drift field takes 20 to 30 % of the training time",
        "Confirmed" if 0.2 <= alone / step <= 0.3 else "Contradicted",
        f"With the small network on a CPU, K 4 and batch 32, it takes {alone:.1f} ms of a step of "
        f"{step:.0f} ms. What more hypotheses cost is the network's work on them.",
    )


def gain(rows):
    """The Interval of what Stage 2 adds to the score."""
    return interval([float(r["after"]) - float(r["before"]) for r in rows])


WHITE_KINDS = (  # settings of stage2.csv without "-anchor", their starts, digits of a score
    ("pusht-early-white", UNUSED, 3),
    ("hopper-white", LOCOMOTION_STARTS, 0),
    ("walker2d-white", LOCOMOTION_STARTS, 0),
)
DEFAULT_KINDS = (
    ("pusht-shipped", UNUSED, 3),
    ("pusht-early", UNUSED, 3),
    ("pusht-converged", UNUSED, 3),
    ("hopper", LOCOMOTION_STARTS, 0),
    ("walker2d", LOCOMOTION_STARTS, 0),
    ("halfcheetah", LOCOMOTION_STARTS, 0),
    ("ant", LOCOMOTION_STARTS, 0),
    ("lift-delta", STANDARD, 3),
)


def stage2_verdicts(results, kinds=DEFAULT_KINDS):
    """Whether Stage 2 improves a policy, and whether the anchor helps."""
    rows = results.rows("stage2.csv")
    pairs = {kind: anchor_pair(rows, kind[0], kind[1]) for kind in kinds}
    found = []
    for (_, _, digits), (with_anchor, without) in pairs.items():
        found += [improvement(own, digits) for own in (with_anchor, without) if own]
    for (stem, _, digits), (with_anchor, without) in pairs.items():
        if paired(with_anchor, without, "after").n:
            found.append(anchor_verdict(stem, with_anchor, without, digits))
    return found


def anchor_verdict(stem, with_anchor, without, digits):
    """The Verdict on whether runs with the anchor end above those without it."""
    difference = paired(with_anchor, without, "after")
    here = (
        f"`{stem}` ends at {by_seed(with_anchor, digits, 'after')} with the anchor and at "
        f"{by_seed(without, digits, 'after')} without, a difference of "
        f"{difference.text(digits)} on the {difference.n} seeds in common"
    )
    if difference.n == 1:
        here = here.replace("the 1 seeds", "the one seed")
    says = (
        f"the anchor lifts the mean return of Stage 2 from {PAPER_RETURN['without']:g} to "
        f"{PAPER_RETURN['with']:g}"
    )
    return Verdict(says, word_for(difference), here + separation(difference))


def improvement(own, digits):
    """The Verdict on whether Stage 2 improves one kind of policy, from its rows."""
    return Verdict(
        "PPO improves the one-step policy",
        word_for(gain(own)),
        f"`{own[0]['setting']}` rises from {mean(own, 'before'):.{digits}f} to "
        f"{mean(own, 'after'):.{digits}f}, by {gain(own).text(digits)} over "
        f"{len(own)} seed{'s' if len(own) > 1 else ''}.",
    )
