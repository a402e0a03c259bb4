"""What the README says of the code is so: equations, files, flags, the two commands."""
import importlib
import re
import subprocess
import sys

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text()


def numbers(text):
    """'8, 28-31' -> {8, 28, 29, 30, 31}."""
    return {n for a, b in re.findall(r"(\d+)(?:-(\d+))?", text) for n in range(int(a), int(b or a) + 1)}


def equation_rows():
    table = README.split("## Equation to code")[1].split("\n## ")[0]
    return re.findall(r"^\| ([\d, -]+) \| .* \| `([\w.]+)` \|$", table, re.M)


@pytest.mark.parametrize("equations, function", equation_rows())
def test_equation(equations, function):
    module, *path = function.split(".")
    target = importlib.import_module(module)
    for name in path:
        target = getattr(target, name)
    cited = set().union(*(numbers(m) for m in re.findall(r"Eqs?\. ([\d, -]+(?:and \d+)?)", target.__doc__)))
    assert numbers(equations) <= cited, f"{function} cites {sorted(cited)}"


def test_equation_table_is_read():
    assert len(equation_rows()) >= 9


def test_files_exist():
    named = set(re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|npz|txt|md))`", README)) - {"mine.npz"}
    pictures = set(re.findall(r"\]\(([^)#:]+)\)", README))
    missing = [n for n in named | pictures if not (ROOT / n).exists()]
    assert not missing


def test_every_source_file_is_in_the_table():
    table = README.split("## Files")[1].split("\n## ")[0]
    assert {p.name for p in ROOT.glob("*.py")} <= set(re.findall(r"`(\w+\.py)`", table))


def test_two_commands_come_first():
    block = re.search(r"```bash\n(.*?)```", README, re.S)[1].strip().splitlines()
    assert block == ["pip install -r requirements.txt && python dbp_train.py --task pusht --K 4 --temp 0.2",
                     "pip install -r requirements.txt && python -m pytest"]


def test_flags_exist():
    """Every flag that a command of the README gives is in the --help of that script or, where it has some, subcommand."""
    helps = {}
    for script, rest in re.findall(r"python (\w+\.py)([^\n#;`&]*)", README):
        flags = set(re.findall(r"(--[\w-]+)", rest)) - {"--help"}
        command = (script, *rest.split()[:script in ("reproduce.py", "data.py")])
        if flags and command not in helps:
            helps[command] = subprocess.run([sys.executable, ROOT / script, *command[1:], "--help"], capture_output=True,
                                            text=True).stdout
        assert flags <= set(re.findall(r"(--[\w-]+)", helps.get(command, ""))), (command, flags)
