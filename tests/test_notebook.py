"""notebooks/quickstart.ipynb: runs, and its kept outputs are small."""

import os
import shutil
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "quickstart.ipynb"


def test_kept_outputs_are_small_and_whole():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOK.stat().st_size < 100_000
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/jpeg" in output.get("data", {})]


def test_it_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shutil.which("detr-panoptic") is None:
        pytest.skip("the command detr-panoptic is not installed")
    monkeypatch.setenv("ITERATIONS", "2")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert list((tmp_path / "output/explained").glob("*.html"))
