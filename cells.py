"""What RESULTS.md is made of: blocks of Markdown, and cells that tell of several seeds."""

import textwrap

import numpy as np

from tables import column, differences, interval

# Files that hold no commit themselves: the commit that recorded them, and its date.
RECORDED = {
    "pusht_shipped_seed0.json": "commit f5ccb7b, 2026-11-22",
    "bench_train.json": "commit f5ccb7b, 2026-11-22",
    "bench_infer.json": "commit f5ccb7b, 2026-11-22",
    "bench_ppo.json": "commit ddee549, 2026-11-22",
    "bench_latency.json": "commit ceece60, 2026-11-22",
    "bench_train_image.json": "commit 30239c9, 2026-11-26",
    "bench_infer_image.json": "commit 30239c9, 2026-11-26",
    "bench_infer_onnx.json": "commit 30239c9, 2026-11-26",
    "robot_run.json": "commit 84451e7, 2026-11-26",
    "bench_clouds.json": "commit 919df30, 2026-11-23",
    "bench_clouds_assembly.json": "commit 919df30, 2026-11-23",
}


def wrap(text, indent=""):
    """Text on lines of at most 110 columns; a figure and its deviation stay on one line."""
    glue = "\N{NO-BREAK SPACE}"
    lines = textwrap.fill(
        " ".join(text.split()).replace(" ± ", f"{glue}±{glue}"),
        110,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.replace(glue, " ")


def paragraph(text):
    """Text as one wrapped paragraph."""
    return wrap(text)


def bullets(*items):
    """Texts as a list, each wrapped."""
    return "\n".join(wrap(f"- {item}", "  ") for item in items)


def table(header, rows):
    """A Markdown table. header: the columns' names with " | " between; rows: lists of cells."""
    lines = [header.split(" | ")]
    lines.append(["---"] * len(lines[0]))
    lines += rows
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def picture(what, path):
    """A figure in Markdown."""
    return f"![{what}]({path})"


def listed(words):
    """Words as "a, b and c"."""
    words = [str(w) for w in words]
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]


def made(command, rows):
    """The line above a table: its command, seeds, episodes, commits and dates."""
    seeds = sorted({int(r["seed"]) for r in rows if r.get("seed")})
    episodes = sorted({int(r["episodes"]) for r in rows if r.get("episodes")})
    hashes = dict.fromkeys(r["commit"][:7] for r in rows)
    dates = sorted({r["date"] for r in rows})
    parts = [f"`{command}`"]
    if seeds:
        parts.append(f"seed{'s' if len(seeds) > 1 else ''} {listed(seeds)}")
    if episodes:
        parts.append(f"{listed(episodes)} episodes")
    parts.append(f"commit{'s' if len(hashes) > 1 else ''} {listed(hashes)}")
    parts.append(" to ".join(dict.fromkeys((dates[0], dates[-1]))))
    return "; ".join(parts) + "."


# ---- cells --------------------------------------------------------------------------------------


def score(rows, digits=3, name="score"):
    """Mean ± half over seeds; of a single run its bootstrap interval, where it is known."""
    if not rows:
        return "—"
    if len(rows) > 1:
        return interval(column(rows, name)).text(digits)
    row = rows[0]
    text = f"{float(row[name]):.{digits}f}"
    prefix = "" if name == "score" else f"{name}_"
    low = row.get(f"{prefix}low")
    high = row.get(f"{prefix}high")
    if low and high:
        text += f" [{float(low):.{digits}f}, {float(high):.{digits}f}]"
    return text


def by_seed(rows, digits=3, name="score"):
    """The values seed by seed."""
    return ", ".join(f"{v:.{digits}f}" for v in column(rows, name)) or "—"


def cell(rows, name, digits):
    """The mean of a column, or a dash."""
    values = column(rows, name)
    return f"{np.mean(values):.{digits}f}" if values else "—"


def bracketed(result, name, digits):
    """A figure of evaluate.py's JSON with its bootstrap interval."""
    low, high = result[f"{name}_95"]
    return f"{result[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def leads(above, below, name="score"):
    """On how many seeds the first setting is above the second, as "2 of 3"."""
    found = differences(above, below, name)
    return f"{sum(d > 0 for d in found)} of {len(found)}"
