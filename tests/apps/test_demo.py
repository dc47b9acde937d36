import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

REPO = Path(__file__).resolve().parents[2]


def test_data_training_table_picture_and_report(tmp_path):
    """The whole demo on the smallest split and the smallest model."""
    split = "('shapes_panoptic_tune',)"
    command = [sys.executable, "-m", "detr_panoptic_d2.cli", "demo", "--output", "demo"]
    command += ["--config-file", "shapes/tiny.yaml", "MODEL.DEVICE", "cpu"]
    command += ["DATASETS.TRAIN", split, "DATASETS.TEST", split]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        env={**os.environ, "DETECTRON2_DATASETS": "datasets", "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines()[-9:]]
    assert ["held-out", "PQ", "SQ", "RQ"] in table
    assert [row[0] for row in table if len(row) == 4][2:] == ["all", "things", "stuff"]
    with Image.open(tmp_path / "demo" / "ground_truth_and_prediction.png") as picture:
        # Four rows of six pictures, twice their size to be legible.
        assert picture.width > 6 * 256 and picture.height > 4 * 256
    assert done.stdout.rstrip().endswith("report.html")
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for text in (
        *("Finished: 4 iterations.", "Results on shapes_panoptic_tune", "triangle", "model_best"),
        *("Per training step", "Total loss", "Learning rate"),
        *("MAX_ITER: 4", 'alt="Ground truth" src="data:image/jpeg'),
    ):
        assert text in page, text
