"""The package as a whole: version, configs, and the line without Detectron2."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import detr_panoptic_d2

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("module", "name"), [("detectron2", "Detectron2"), ("panopticapi", "panopticapi")]
)
def test_import_without_a_requirement_gives_one_clear_line(module, name):
    # None in sys.modules: the module cannot be imported.
    code = f"import sys; sys.modules[{module!r}] = None; import detr_panoptic_d2"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
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
