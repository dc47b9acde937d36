"""The package as a whole: version, configs, and the line without Detectron2."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import detr_panoptic_d2

ROOT = Path(__file__).resolve().parent.parent


def import_without(module):
    """Import the package in a process in which ``module`` cannot be found."""
    # None in sys.modules: Python's own way of saying that a module cannot be imported.
    code = f"import sys; sys.modules[{module!r}] = None; import detr_panoptic_d2"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("module", "name"), [("detectron2", "Detectron2"), ("panopticapi", "panopticapi")]
)
def test_import_without_a_requirement_gives_one_clear_line(module, name):
    done = import_without(module)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: detr_panoptic_d2 needs {name}, which is not installed")
    assert "python tools/install_detectron2.py" in last


def test_version_is_written_in_one_place():
    version = detr_panoptic_d2.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    for path in ("setup.py", "pyproject.toml", "detr_panoptic_d2/__init__.py"):
        assert version not in (ROOT / path).read_text(encoding="utf-8")


def test_installed_metadata_has_this_version():
    found = list(importlib.metadata.distributions(name="detr-panoptic-d2"))
    if not found:
        pytest.skip("detr-panoptic-d2 is not installed here")
    assert found[0].version == detr_panoptic_d2.__version__


def test_every_folder_with_modules_is_a_package():
    """A folder without ``__init__.py`` would be left out of an installed package."""
    package = ROOT / "detr_panoptic_d2"
    folders = {path.parent for path in package.rglob("*.py")}
    missing = [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing


def test_nothing_that_windows_lacks_is_needed_on_import():
    lacking = {"fcntl", "resource", "pwd", "grp", "termios"}
    for path in (ROOT / "detr_panoptic_d2").rglob("*.py"):
        # Of the module itself: what a function imports is its own business.
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert not lacking & {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in lacking, path
