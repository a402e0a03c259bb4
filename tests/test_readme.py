"""What README, READING.md, NOTES.md and DATA.md say of the code is so.

Equations, files, flags, notes, links, the loss, the figures of the table, and the task that the
README defines, which is run as it is written.
"""

import importlib
import re
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

PAGES = ("README.md", "READING.md", "ROBOT.md", "NOTES.md", "DATA.md", "RESULTS.md")
TEXT = {name: (ROOT / name).read_text() for name in PAGES}
README = TEXT["README.md"]
LIMIT = 10_240  # bytes of the README
SOURCES = {path.name: path.read_text() for path in ROOT.glob("*.py")}
SUBCOMMANDS = ("reproduce.py", "data.py", "bench.py", "realrobot.py")


def section(title):
    """The README's section of that title."""
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def blocks(text, language):
    """The contents of the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def numbers(text):
    """'8, 28-31' -> {8, 28, 29, 30, 31}."""
    found = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_the_readme_is_short():
    assert len(README.encode()) <= LIMIT


# ---- equations ----------------------------------------------------------------------------------


def equation_rows():
    """(equations, "module.function") of each row of the table."""
    row = r"^\| ([\d, -]+) \|.*\| `([\w.]+)` \|$"
    return re.findall(row, section("Equation to code"), re.M)


@pytest.mark.parametrize("equations, function", equation_rows())
def test_the_docstring_cites_the_equations_of_its_row(equations, function):
    module, *path = function.split(".")
    target = importlib.import_module(module)
    for name in path:
        target = getattr(target, name)
    cited = re.findall(r"Eqs?\. ([\d, -]+(?:and \d+)?)", target.__doc__)
    cited = set().union(*(numbers(text) for text in cited))
    assert numbers(equations) <= cited, f"{function} cites {sorted(cited)}"


def test_the_table_of_equations_is_read_and_whole():
    cited = set().union(*(numbers(equations) for equations, _ in equation_rows()))
    assert {*range(5, 18), 22, 23, *range(28, 41), *range(43, 59)} <= cited


def test_the_lines_of_the_loss_are_those_of_the_code():
    code = re.sub(r"\s+", " ", SOURCES["drift.py"] + SOURCES["dbp_train.py"])
    lines = blocks(section("The method"), "python")[0].splitlines()
    assert len(lines) >= 10
    for line in lines:
        value = line.split("#")[0].split(" = ", 1)[1].strip()
        assert value in code, line


# ---- files, links and flags ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_no_link_is_dead(name):
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT[name])
    anchors = re.findall(r"\]\(#([^)]+)\)", TEXT[name])
    titles = [
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", TEXT[name], re.M)
    ]
    assert not [link for link in links if not (ROOT / link).exists()]
    assert not set(anchors) - set(titles)


# Files that a command or the reader makes.
MADE = {"task_reach.py", "mine.npz", "NAME.npz", "flags.json", "log.csv", "curves.png"}
MADE |= {"hypotheses.png", "metadata.json"}


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_is_named_exists(name):
    pattern = r"`((?:[\w.-]+/)*[\w-]+\.(?:py|npz|txt|md|csv|json|png|gif))`"
    named = {path for path in re.findall(pattern, TEXT[name]) if path.rsplit("/")[-1] not in MADE}
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_picture_is_shown():
    shown = set()
    for text in TEXT.values():
        shown |= set(re.findall(r"\]\(((?:figures|results)/[^)]+)\)", text))
    drawn = [*ROOT.glob("figures/*.png"), *ROOT.glob("figures/*.gif"), *ROOT.glob("results/*.png")]
    assert not [str(p.relative_to(ROOT)) for p in drawn if str(p.relative_to(ROOT)) not in shown]


def test_every_source_file_has_its_place_in_the_reading_order():
    named = re.findall(r"`(\w+\.py)`", TEXT["READING.md"])
    assert sorted(named) == sorted(SOURCES)


def test_the_two_commands_come_first():
    first = blocks(README, "bash")[0].strip().splitlines()
    assert first == [
        "pip install -r requirements.txt && python dbp_train.py --task pusht --K 4 --temp 0.2",
        "pip install -r requirements.txt && python -m pytest",
        "python dbpo_ppo.py --init runs/pusht-dbp-seed0/ckpt.pt",
    ]


def commands(text):
    """The command lines of a page: those of its blocks, and those between single backticks."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def given_flags():
    """{(script, subcommand or None): flags that a page gives it}."""
    given = {}
    for text in TEXT.values():
        for line in commands(text):
            for script, rest in re.findall(r"python (\w+\.py)([^#;&|]*)", line):
                flags = set(re.findall(r"(?<!\S)--[A-Za-z][\w-]*", rest)) - {"--help"}
                words = rest.split()
                has_sub = script in SUBCOMMANDS and words and words[0][0] != "-"
                sub = words[0] if has_sub else None
                if flags:
                    given.setdefault((script, sub), set()).update(flags)
    return given


@pytest.mark.parametrize("script, sub", sorted(given_flags(), key=str))
def test_every_flag_of_a_command_is_in_its_help(script, sub):
    call = [sys.executable, ROOT / script, *([sub] if sub else []), "--help"]
    shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    flags = given_flags()[script, sub]
    assert flags <= set(re.findall(r"(--[\w-]+)", shown)), flags


# ---- notes and results --------------------------------------------------------------------------


def cited_notes():
    """{number of a note: the files that cite it}."""
    cited = {}
    for name, source in SOURCES.items():
        for text in re.findall(r"\bnotes? (\d+(?:(?:, | and )\d+)*)", source):
            for number in numbers(text):
                cited.setdefault(number, set()).add(name)
    return cited


def test_every_note_is_cited_and_every_cited_note_exists():
    there = [int(n) for n in re.findall(r"^## (\d+)\. ", TEXT["NOTES.md"], re.M)]
    assert there == list(range(1, len(there) + 1))
    cited = set(cited_notes())
    assert [n for n in cited if n not in there] == [], "cited, but not in NOTES.md"
    assert [n for n in there if n not in cited] == [], "in NOTES.md, but not cited"


def test_the_figures_of_the_table_stand_in_the_results():
    rows = [row.split("|") for row in section("Results").splitlines() if row.startswith("| ")]
    figures = []
    for row in rows[1:]:
        figures += re.findall(r"[\d.]+ (?:± [\d.]+|\[[^\]]+\])", " | ".join(row))
    assert len(figures) >= 10
    missing = [figure for figure in figures if figure not in TEXT["RESULTS.md"]]
    assert not missing


# ---- the task of the README ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the code with the README's task in it, and its demonstrations recorded."""
    folder = tmp_path_factory.mktemp("copy")
    for name, source in SOURCES.items():
        (folder / name).write_text(source)
    (folder / "demos").mkdir()
    task = blocks(section("Your own data, task and robot"), "python")[0]
    (folder / "task_reach.py").write_text(task)
    envs = SOURCES["envs.py"]
    envs = envs.replace("import task_pusht\n", "import task_pusht\nimport task_reach\n", 1)
    envs = re.sub(r"^SUITES = \(", "SUITES = (task_reach, ", envs, count=1, flags=re.M)
    (folder / "envs.py").write_text(envs)
    run(folder, "task_reach.py")
    yield folder
    shutil.rmtree(folder)


def run(folder, *args):
    """The last line that a script of the folder prints."""
    call = [sys.executable, *map(str, args)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (done.stdout.strip() or " ").splitlines()[-1]


def test_the_task_of_the_readme_trains_and_is_scored(copy):
    last = run(
        copy,
        "dbp_train.py",
        *("--task", "reach", "--steps", 20, "--dims", 16, 32, "--episodes", 2, "--one-process"),
    )
    assert last.startswith("score ") and "2 episodes" in last and "20 steps" in last


def test_the_task_of_the_readme_is_listed_and_described(copy):
    listed = subprocess.run(
        [sys.executable, "envs.py"], cwd=copy, capture_output=True, text=True, check=True
    )
    assert re.search(
        r"^reach +own +state 4 +2 +1/4/4 +40 +success +.*reach.npz$", listed.stdout, re.M
    )
    assert run(copy, "data.py", "info", "--task", "reach").startswith("not drawn")
