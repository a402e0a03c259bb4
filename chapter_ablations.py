"""RESULTS.md on appendix B, and on the flags that the paper does not have.

The functions ablations and beyond yield the blocks of a section.
"""

from itertools import pairwise

from cells import bullets, by_seed, cell, leads, listed, made, paragraph, picture, score, table
from experiment_row import STANDARD, UNUSED
from experiments import (
    ABLATE_BEYOND,
    ABLATE_COST,
    ABLATION_EPOCHS,
    ABLATIONS,
    BEYOND_MEANING,
    EQUAL_MINUTES,
    TEMPERATURES,
)
from tables import at, mean, paired, rows_of, select, setting_of
from verdicts import share_verdict, verdicts

SETTING_WORDS = {
    name: "tau " + " ".join(f"{t:g}" for t in temps) + f" ({name.removeprefix('tau ')})"
    for name, temps in TEMPERATURES.items()
    if len(temps) > 1
}


def ablations(results):
    """Appendix B: K, temperatures, mode, cost."""
    yield "## Ablations of appendix B"
    yield paragraph("""Push-T, the first 90 human demonstrations, batch 32, 3000 steps (9.4 epochs;
        the paper has 100, and 200 for the mode), the 50 standard starts, one core a run. Diversity
        is the RMS distance of the K hypotheses from their mean, in normalised units. K 4, tau 0.2
        and chunk are one run a seed under three names. The paper trains 10 to 20 times as long, so
        its scores are a reference for the order of settings, not for their height.""")
    titles = {"K": "### Hypotheses K", "temp": "### Temperatures", "mode": "### Mode"}
    words = {"K": hypotheses_words, "temp": temperature_words, "mode": mode_words}
    for group, title in titles.items():
        experiments = ABLATIONS[group]
        table_rows = results.rows(f"ablate_{group}.csv")
        rows = [r for e in experiments for r in rows_of(table_rows, e)]
        yield title
        yield made(experiments[0].command, rows)
        yield setting_table(rows, {e.name: e.paper for e in experiments})
        yield picture(f"score by {group}", f"results/ablate_{group}.png")
        yield bullets(*(v.line() for v in verdicts(group, results)))
        yield paragraph(words[group](results))
    yield from temperatures_long(results)
    yield from cost(results)


def setting_table(rows, papers):
    """Settings beside the paper's scores. papers: setting -> the paper's score, or None."""
    lines = []
    for name, paper in papers.items():
        own = select(rows, setting=name)
        lines.append(
            [
                SETTING_WORDS.get(name, name),
                score(own),
                by_seed(own),
                "" if paper is None else f"{paper:.3f}",
                cell(own, "success", 2),
                cell(own, "diversity", 3),
                cell(own, "minutes", 1),
                cell(own, "steps", 0),
            ]
        )
    return table(
        "Setting | Score | By seed | The paper | Success | Diversity | Minutes | Steps", lines
    )


def hypotheses_words(results):
    """What the table of K says."""
    rows = results.rows("ablate_K.csv")
    own = {k: select(rows, setting=f"K {k}") for k in (1, 2, 4, 8, 16)}
    minutes = {k: mean(r, "minutes") for k, r in own.items()}
    steps = [f"from {a} to {b} {paired(own[b], own[a]).text(2)}" for a, b in pairwise(own)]
    return f"""The paper's scores for K stand in its Fig. 7 alone. Here the score changes, seed by
        seed, {listed(steps)}. So a moderate K is enough, as in the paper, but the gain begins after
        K 2. That is at equal steps: K 8 takes {minutes[8] / minutes[4]:.1f} times the minutes of K
        4, and K 16 {minutes[16] / minutes[4]:.1f} times.
        {full_length_words(results, "--K 8", "K 8")}"""


def temperature_words(results):
    """What the table of temperatures says beyond the claims."""
    rows = results.rows("ablate_temp.csv")
    clumped = [
        mean(select(rows, setting=name), "diversity")
        for name in ("tau 0.02", "tau 0.05", "tau default")
    ]
    apart = select(results.rows("ablate_temp_long.csv"), flags="--temp 0.05 --spread 1")[0]
    return f"""With 0.02, 0.05 and the default three the hypotheses stay in a clump (diversity
        {min(clumped):.3f} to {max(clumped):.3f}) and learn as K 1 does. The clump alone does not
        explain the score: begun apart, `--temp 0.05 --spread 1` stays apart (diversity
        {float(apart["diversity"]):.3f}) and reaches {float(apart["score"]):.3f}, one seed. The wide
        and dense sets are ours, since the paper's text does not give its own."""


def mode_words(results):
    """What is known of the mode at full length."""
    return (
        f"That is after {ABLATION_EPOCHS:g} epochs, the paper's figures after 200. "
        + full_length_words(results, "--mode step", "step mode")
    )


def full_length_words(results, flags, name):
    """A sentence on one flag of pusht_flags.csv and DBP's run of the same seed."""
    own = select(results.rows("pusht_flags.csv"), flags=flags)
    seed = own[0]["seed"]
    dbp = select(default_dbp(results), seed=seed)
    scores = [
        f"{mean(at(own, s), 'score'):.3f} and {mean(at(dbp, s), 'score'):.3f} on the "
        f"{s.episodes} starts from seed {s.first_seed}"
        for s in (STANDARD, UNUSED)
    ]
    return (
        f"On all 206 demonstrations, in about 14 minutes with seed {seed}, {name} "
        f"({own[0]['steps']} steps) and the default ({dbp[0]['steps']} steps) score "
        f"{listed(scores)}. One seed decides nothing."
    )


def default_dbp(results):
    """DBP's rows in the table by method, equal minutes."""
    rows = results.rows("pusht_methods.csv")
    return select(rows, setting=setting_of("dbp", 1), length=EQUAL_MINUTES)


def temperatures_long(results):
    """Two temperatures after three times the steps."""
    rows = results.rows("ablate_temp_long.csv")
    columns = ("success", "diversity", "minutes")
    yield "### Small temperatures after three times the steps"
    yield made("python dbp_train.py --task pusht --demos 90 --steps 9000 --eval-every 3000", rows)
    yield table(
        "Flags | Step | Score | Success | Diversity | Minutes",
        [[f"`{r['flags']}`", r["step"], score([r]), *(r[c] for c in columns)] for r in rows],
    )
    last = {r["flags"]: float(r["score"]) for r in rows}
    yield paragraph(f"""After 9000 steps (28 epochs) 0.2 ends at {last["--temp 0.2"]:.3f} and 0.05
        at {last["--temp 0.05"]:.3f}, still in a clump; the paper has 0.873 and 0.864. One seed, so
        it is unknown whether the gap closes.""")


def cost(results):
    """Eq. 58: time and memory over K."""
    rows = results.rows("ablate_cost.csv")
    counts = list(dict.fromkeys(r["K"] for r in rows))[1:]
    lines = []
    for batch in dict.fromkeys(r["batch"] for r in rows):
        ratios = [select(rows, batch=batch, K=k)[0] for k in counts]
        texts = [f"{float(r['r_time']):.2f}, {float(r['r_memory']):.2f}" for r in ratios]
        lines.append([batch, *texts])
    yield "### Cost over K and batch (Eq. 58)"
    yield made(ABLATE_COST[0].command, rows)
    yield paragraph("""Time of a training step and peak memory of the process, over those of K 1 at
        the same batch. Steps of K and of 1 take turns, 20 of each, on one core with another
        training beside it; the error is about 5 %. The paper's ratios are those of a GPU.""")
    yield table(" | ".join(["Batch", *(f"K {k}: time, memory" for k in counts)]), lines)
    yield bullets(share_verdict(results).line())


def beyond(results):
    """Flags that the paper does not have, and the best of them at full length."""
    rows = results.rows("ablate_beyond.csv")
    base = select(rows, setting="K 4")
    lines = []
    for e in ABLATE_BEYOND:
        own = select(rows, setting=e.name)
        name = f"{e.name} (flag removed)" if e.removed else e.name
        means = [cell(own, c, d) for c, d in (("success", 2), ("diversity", 3), ("minutes", 1))]
        lines.append([name, BEYOND_MEANING[e.name], score(own), by_seed(own), *means])
    gains = {name: paired(select(rows, setting=name), base).text() for name in SCREENED}
    yield "## Flags that the paper does not have"
    yield made(ABLATE_BEYOND[0].command, rows)
    yield paragraph("""Each was tried alone: 3000 steps on the first 90 human demonstrations, with
        seed 0 first, and two more seeds of what was best there. The paper has no figures for
        them.""")
    yield table("Setting | What | Score | By seed | Success | Diversity | Minutes", lines)
    yield picture("score by flag", "results/ablate_beyond.png")
    yield paragraph(f"""`--temp-start 4` is above the paper's settings by {gains["temp-start 4"]}
        and `--memory 16` by {gains["memory 16"]}, seed by seed. Seed 0 chose them, so both were
        trained again at full length.""")
    yield from full_length(results)


SCREENED = ("temp-start 4", "memory 16")


def full_length(results):
    """results/pusht_flags.csv: flags at the length of the methods' table."""
    rows = results.rows("pusht_flags.csv")
    dbp = default_dbp(results)
    modes = select(results.rows("multimodal.csv"), task="pusht", setting="dbp")
    none = [cell(modes, "covered", 2), cell(modes, "rarest", 2)]
    lines = [["none", *full_length_cells(dbp), *none]]
    for name in dict.fromkeys(r["flags"] for r in rows):
        own = select(rows, flags=name)
        shares = [cell(own, "modes_covered", 2), cell(own, "rarest_mode", 2)]
        lines.append([f"`{name}`", *full_length_cells(own), *shares])
    yield "### At full length"
    yield made(FULL_LENGTH_COMMAND, rows) + " The row's flag is added."
    yield table(
        "Flag | Score, 50 standard starts | Score, 200 unused starts | By seed, 200"
        " | Success, 50 and 200 | Minutes | Steps | Modes covered | Rarest mode",
        lines,
    )
    yield paragraph("""All 206 human demonstrations; the row "none" is DBP in the table by method.
        The modes are Push-T's.""")
    yield paragraph(memory_words(results))


FULL_LENGTH_COMMAND = "python dbp_train.py --task pusht --K 4 --temp 0.2 --steps 5577"


def full_length_cells(rows):
    """Scores, success, minutes, steps on the standard and the unused starts."""
    first = at(rows, STANDARD)
    second = at(rows, UNUSED)
    return [
        score(first),
        score(second),
        by_seed(second),
        f"{cell(first, 'success', 2)}, {cell(second, 'success', 2)}",
        cell(first, "minutes", 1),
        cell(first, "steps", 0),
    ]


def memory_words(results):
    """What `--memory 16` gains and what it costs, on the unused starts."""
    memory = at(select(results.rows("pusht_flags.csv"), flags="--memory 16"), UNUSED)
    dbp = at(default_dbp(results), UNUSED)
    others = select(at(results.rows("pusht_methods.csv"), UNUSED), length=EQUAL_MINUTES)
    diffusion = select(others, setting=setting_of("diffusion", 100))
    bc = select(others, setting=setting_of("bc", 1))
    drops = sum(float(r["modes_covered"]) < 1 for r in memory)
    return f"""The temperature schedule is faster at first and no better in the end. The memory
        raises success on the 200 unused starts by {paired(memory, dbp, "success").text(2)}, on
        {leads(memory, dbp, "success")} seeds, to {mean(memory, "success"):.2f}, where regression
        has {mean(bc, "success"):.2f}. Its score is above the default's by
        {paired(memory, dbp).text()} and above that of diffusion with 100 NFE by
        {paired(memory, diffusion).text()}, which the seeds cannot separate. It pays in modes: the
        hypotheses lie closer together (diversity {mean(memory, "diversity"):.3f} against
        {mean(dbp, "diversity"):.3f}), and on {drops} of {len(memory)} seeds the policy drops ways
        round the T. So the default stays the paper's; for success on Push-T give `--memory 16`.
        `--spread 1` matters where one observation has several right actions from the start: at the
        fork a small network keeps one of three ways from the usual initialisation, and all three
        with it (a test holds this)."""
