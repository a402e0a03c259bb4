"""How the files stand on one another and how they are written, each check tried on a bad snippet.

Imports go only downwards, `import envs` is quick, and the style rules that a formatter does not
know hold: one statement a line, no assignment of several unrelated things, a docstring everywhere.
"""

import ast
import json
import subprocess
import sys

import pytest

from conftest import ROOT

FLOORS = (
    ("startup", "twin_model"),
    (
        "drift",
        "unet",
        "pointcloud",
        "commands",
        "motions",
        "plan",
        "ur_controller",
        "timing",
        "toy_targets",
        "experiment_row",
    ),
    (
        "toy_field",
        "files",
        "experiments_stage2",
        "experiments_suites",
        "ranks",
        "vision",
        "renderer",
        "servo",
        "ur_wire",
        "twin_build",
    ),
    ("encoders", "pictures", "hdf5", "padded", "twin", "ur5"),
    ("safety", "robot_log", "robot_switch"),
    ("robomimic_format", "lerobot_format", "ur_server", "robot_spacemouse"),
    ("runs", "policy", "formats", "task", "experiments", "tables", "lerobot_writer"),
    ("plot_parts", "saves", "download", "cells", "robosuite_env", "describe"),
    ("recorded_robomimic", "experts_robomimic"),
    ("experts_blockpush", "experts_kitchen", "experts_ur5"),
    ("robomimic_env",),
    (
        "baselines",
        "beyond",
        "dbpo_loss",
        "task_pusht",
        "task_blockpush",
        "task_locomotion",
        "task_clouds",
        "task_kitchen",
        "task_robomimic",
        "task_ur5",
    ),
    ("envs", "export"),
    ("made_up",),
    ("evaluate", "toy_pictures", "dbpo_rollout", "robot_cameras"),
    ("robot_setup",),
    ("robot_motion",),
    (
        "data",
        "modes",
        "seen",
        "dbpo_noise",
        "dbpo_update",
        "dbp_flags",
        "dbp_report",
        "dbpo_flags",
        "robot_record",
        "robot_view",
        "robot_check",
    ),
    ("teach",),
    ("toy", "dbp_train", "dbpo_ppo", "experts", "realrobot", "plots_stage2"),
    ("robot_trials",),
    ("plots",),
    ("bench_stage2",),
    ("bench", "verdicts", "figures"),
    ("chapter_pusht", "chapter_ablations", "chapter_stage2", "chapter_suites"),
    ("report", "reproduce_runs"),
    ("reproduce_clouds", "reproduce_stage2"),
    ("reproduce_suites", "reproduce_pusht", "reproduce_image"),
    ("reproduce",),
)
FLOOR = {name: n for n, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.glob("*.py"))
TESTS = sorted(ROOT.glob("tests/*.py"))
COLUMNS = 100

# What `import envs` must not load: simulators, the network library, and readers of files.
SLOW = (
    "torch",
    "mujoco",
    "pymunk",
    "metaworld",
    "gym_pusht",
    "gymnasium_robotics",
    "matplotlib",
    "zarr",
    "h5py",
    "pyarrow",
    "av",
    "diffusers",
)


# ---- the checks: source text in, complaints out --------------------------------------------------


def imported(source):
    """First parts of the names of all modules that a file imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or "").split(".")[0])
    return names


def upward_imports(source, stem):
    """The project's modules that a file imports though they are not below it; relative imports."""
    return [m for m in imported(source) if m.startswith(".") or FLOOR.get(m, -1) >= FLOOR[stem]]


def long_lines(source):
    """Numbers of the lines of more than 100 columns."""
    return [n for n, line in enumerate(source.splitlines(), 1) if len(line) > COLUMNS]


def named_lambdas(source):
    """Lines on which a lambda is bound to a name: a def says the same and has a place for words."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(isinstance(target, (ast.Name, ast.Attribute)) for target in targets)
            if named and isinstance(node.value, ast.Lambda):
                found.append(node.lineno)
    return found


def nested_conditionals(source):
    """Lines on which a conditional expression has another one inside."""
    outer = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.IfExp)]
    return [
        node.lineno
        for node in outer
        if sum(isinstance(inner, ast.IfExp) for inner in ast.walk(node)) > 1
    ]


def tuple_assignments(source):
    """Lines that assign several things to several names at once; a swap may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Tuple, ast.List)):
            continue
        values = {ast.unparse(y) for y in node.value.elts}
        for target in node.targets:
            if isinstance(target, (ast.Tuple, ast.List)):
                names = {ast.unparse(y) for y in target.elts}
                if names != values:
                    found.append(node.lineno)
    return found


def shared_lines(source):
    """Lines on which more than one statement begins."""
    begun = [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    return sorted({n for n in begun if begun.count(n) > 1})


def undocumented(source):
    """Names of the public functions and classes of a file that have no docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]


def imports_of(module):
    """Import a module in a process of its own -> CPU seconds, and the slow modules it loaded."""
    code = (
        "import json, sys, time; start = time.process_time(); import " + module + "; "
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, names = json.loads(done.stdout.splitlines()[-1])
    return seconds, [name for name in SLOW if name in names]


# ---- the checks on snippets ----------------------------------------------------------------------

BAD = {
    "named lambda": (named_lambdas, "f = lambda x: x\n", [1]),
    "named lambda, typed": (named_lambdas, "f: object = lambda x: x\n", [1]),
    "named lambda, walrus": (named_lambdas, "print(f := lambda x: x)\n", [1]),
    "named lambda, of an object": (named_lambdas, "a.f = lambda x: x\n", [1]),
    "nested conditional": (nested_conditionals, "x = 1\ny = a if b else (c if d else e)\n", [2]),
    "conditional in a condition": (nested_conditionals, "y = 1 if (a if b else c) else 2\n", [1]),
    "tuple assignment": (tuple_assignments, "a, b = 1, 2\n", [1]),
    "tuple assignment, in a function": (tuple_assignments, "def f():\n    a, b = [], {}\n", [2]),
    "half a swap": (tuple_assignments, "a, b = b, a + b\n", [1]),
    "list assignment": (tuple_assignments, "[a, b] = [1, 2]\n", [1]),
    "semicolon": (shared_lines, "a = 1; b = 2\n", [1]),
    "body on the line of its if": (shared_lines, "if a:\n    b = 1\nif b: c = 2\n", [3]),
    "long line": (long_lines, "a\n" + "x" * 101 + "\n", [2]),
    "function without a docstring": (undocumented, "def f():\n    return 1\n", ["f"]),
    "class without a docstring": (undocumented, "class A:\n    x = 1\n", ["A"]),
}
GOOD = '''"""A module."""

import os


class A:
    """A thing; its method is private."""

    def __init__(self, shape):
        self.B, self.K = shape


def f(x, y, parts):
    """A function with a swap, unpackings, a lambda that is passed on and a plain conditional."""

    def inner(z):
        return z if z else None

    x, y = y, x
    parts[0], parts[1] = parts[1], parts[0]
    low, high = (min(p) for p in parts)
    names = ["a", "b"]
    parts["first"] = lambda: low
    return sorted(names, key=lambda name: name), inner(low), high


def _private():
    return os
'''
CHECKS = (named_lambdas, nested_conditionals, tuple_assignments, shared_lines, undocumented)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_snippet_is_found(name):
    check, source, found = BAD[name]
    assert check(source) == found


@pytest.mark.parametrize("check", (*CHECKS, long_lines), ids=lambda check: check.__name__)
def test_a_good_snippet_passes(check):
    assert check(GOOD) == []


def test_imports_are_found_at_any_depth():
    source = "import a.b, c\ndef f():\n    from d.e import g\n    import policy as p\n"
    assert imported(source) == ["a", "c", "d", "policy"]


@pytest.mark.parametrize("module, refused", [("envs", True), ("task", True), ("commands", False)])
def test_an_import_upwards_or_sideways_is_found(module, refused):
    source = f"def f():\n    from {module} import x\n"
    assert upward_imports(source, "task") == ([module] if refused else [])
    assert upward_imports("from . import x\nfrom .runs import y\n", "task") == [".", ".runs"]


def test_slow_imports_are_found():
    assert imports_of("json")[1] == []
    seconds, loaded = imports_of("h5py, unet")
    assert loaded == ["torch", "h5py"] and seconds > 0


# ---- the project ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_go_downwards(path):
    assert path.stem in FLOOR, f"{path.name} has no floor: give it one in {__name__}"
    upwards = upward_imports(path.read_text(), path.stem)
    assert not upwards, f"{path.name} (floor {FLOOR[path.stem]}) imports {upwards}"


def test_drift_stands_alone():
    assert set(imported((ROOT / "drift.py").read_text())) == {"torch"}


def complaints(check, paths):
    """What a check finds in the files, one a line: "policy.py: 12"."""
    return "\n".join(f"{path.name}: {x}" for path in paths for x in check(path.read_text()))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_style(check):
    found = complaints(check, FILES)
    assert not found, f"{check.__name__}\n{found}"


def test_no_line_is_too_long():
    found = complaints(long_lines, FILES + TESTS)
    assert not found, f"more than {COLUMNS} columns\n{found}"


@pytest.mark.parametrize("module", ["envs", "runs"])
def test_import_is_quick(module):
    """CPU time, which other processes do not change; the quickest of three."""
    tries = [imports_of(module) for _ in range(3)]
    assert tries[0][1] == [], "imported though nothing has been made yet"
    assert min(seconds for seconds, _ in tries) < 1.0
