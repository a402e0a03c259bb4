"""What of the paper is confirmed, contradicted or unknown here, from the rows in results/."""

from dataclasses import dataclass

from cells import by_seed, leads
from experiment_row import LOCOMOTION_STARTS, UNUSED
from experiments import CLAIMS, PAPER_RETURN
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
    rows = at(results.rows(claim.result), claim.starts)
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
        "Contradicted" if alone / step < 0.1 else "Confirmed",
        f"With the small network on a CPU, K 4 and batch 32, it takes {alone:.1f} ms of a step of "
        f"{step:.0f} ms. What more hypotheses cost is the network's work on them.",
    )


def gain(rows):
    """The Interval of what Stage 2 adds to the score."""
    return interval([float(r["after"]) - float(r["before"]) for r in rows])


def stage2_verdicts(results):
    """Whether Stage 2 improves a policy, and whether the anchor helps."""
    rows = results.rows("stage2.csv")
    found = [
        improvement("pusht-early-white", at(rows, UNUSED), 3),
        improvement("hopper-white-no-anchor", at(rows, LOCOMOTION_STARTS), 0),
        improvement("walker2d-white-anchor", at(rows, LOCOMOTION_STARTS), 0),
    ]
    for stem, starts, digits in (
        ("hopper", LOCOMOTION_STARTS, 0),
        ("pusht-early-white", UNUSED, 3),
    ):
        with_anchor, without = anchor_pair(rows, stem, starts)
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
        found.append(Verdict(says, word_for(difference), here + separation(difference)))
    return found


def improvement(name, rows, digits):
    """The Verdict on whether Stage 2 improves one kind of policy."""
    own = select(rows, setting=name)
    return Verdict(
        "PPO improves the one-step policy",
        word_for(gain(own)),
        f"`{name}` rises from {mean(own, 'before'):.{digits}f} to {mean(own, 'after'):.{digits}f}, "
        f"by {gain(own).text(digits)} over {len(own)} seeds.",
    )
