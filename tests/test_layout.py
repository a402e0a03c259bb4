"""The files stand on one another: imports go only downwards, and no file grows too long to read at one sitting."""
import ast

import pytest

from conftest import ROOT

FLOORS = (("drift", "unet", "encoders", "pointcloud", "runs"),
          ("policy", "envs", "baselines", "toy", "formats"),
          ("data", "evaluate", "bench", "realrobot", "modes"),
          ("dbp_train", "dbpo_ppo", "experts"),
          ("reproduce",))
FLOOR = {name: n for n, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.glob("*.py"))


def imports(path):
    """First parts of all module names that a file imports, at any depth; pointcloud.py's command may look up tasks."""
    tree = ast.parse(path.read_text())
    if path.stem == "pointcloud":
        tree.body = [node for node in tree.body if getattr(node, "name", "") != "main" and not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_file(path):
    assert path.stem in FLOOR, f"{path.name} has no floor: give it one in {__name__}"
    upwards = [m for m in imports(path) if FLOOR.get(m, -1) >= FLOOR[path.stem]]
    assert not upwards, f"{path.name} (floor {FLOOR[path.stem]}) imports {upwards}"
    assert (n := len(path.read_text().splitlines())) <= 420, f"{path.name} has {n} lines"


def test_drift_stands_alone():
    assert ROOT / "drift.py" in FILES and set(imports(ROOT / "drift.py")) == {"torch"}
