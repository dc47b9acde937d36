"""The base install, from the package index into an environment that has nothing (gigabytes)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORT_ALL = """
import importlib, pkgutil, detr_panoptic_d2
for module in pkgutil.walk_packages(detr_panoptic_d2.__path__, "detr_panoptic_d2."):
    importlib.import_module(module.name)
"""


@pytest.mark.slow
def test_base_install_runs_demo_and_predict(tmp_path):
    folder = tmp_path / "venv"
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    run(sys.executable, "-m", "venv", folder)
    run(scripts / "pip", "install", "--no-cache-dir", ROOT)
    run(scripts / "python", scripts / "install_detectron2.py")
    run(scripts / "python", "-c", IMPORT_ALL)
    run(scripts / "detr-panoptic", "demo", "--output", "demo", "SOLVER.MAX_ITER", 20)
    image = ROOT / "docs" / "images" / "shapes_1.png"
    run(
        *(scripts / "detr-panoptic", "predict", "--input", image, "--output", "out", "--json"),
        *("--config-file", "demo/config.yaml", "MODEL.WEIGHTS", "demo/model_final.pth"),
    )
    assert list((tmp_path / "out").glob("*.png")) or list((tmp_path / "out").glob("*.jpg"))
