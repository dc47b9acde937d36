import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "train_net.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five images of a disc (thing) on ground (stuff), and the config entries that name them."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("images", "panoptic"):
        (root / folder).mkdir()
    images, annotations = [], []
    y, x = np.mgrid[:32, :40]
    for i in range(5):
        disc = (y - 16) ** 2 + (x - 8 - 5 * i) ** 2 < 49
        Image.fromarray(np.where(disc[..., None], 220, 60).repeat(3, 2).astype(np.uint8)).save(
            root / "images" / f"{i}.png"
        )
        Image.fromarray(id2rgb(1 + disc.astype(np.int64))).save(root / "panoptic" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 40})
        segments = [
            {"id": 1, "category_id": 5, "iscrowd": 0, "area": int((~disc).sum())},
            {"id": 2, "category_id": 9, "iscrowd": 0, "area": int(disc.sum())},
        ]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    categories = [
        {"id": 5, "name": "ground", "isthing": 0},
        {"id": 9, "name": "disc", "isthing": 1},
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))
    item = {
        "name": "discs",
        "image_root": str(root / "images"),
        "panoptic_root": str(root / "panoptic"),
        "panoptic_json": str(root / "panoptic.json"),
    }
    opts = ["DATASETS.REGISTER", str([item]), "INPUT.MIN_SIZE_TRAIN", "(32,)"]
    opts += ["INPUT.MIN_SIZE_TEST", "32", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN"]
    opts += ["MODEL.DETR.DROPOUT", "0.0", "MODEL.DETR.TEST.SCORE_THRESH", "0.0"]
    return [*opts, "DATASETS.TRAIN", "('discs',)", "DATASETS.TEST", "('discs',)"]


def run(flags, opts, output, config="shapes/tiny.yaml"):
    command = [sys.executable, str(TOOL), "--config-file", config, *flags, *opts]
    command += ["OUTPUT_DIR", str(output)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=env, cwd=output.parent, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def metrics(output):
    rows = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return {key: value for row in rows for key, value in row.items()}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("single") / "out"
    code, log = run(["--num-gpus", "1"], data, output)
    assert code == 0, log
    return output, log


def test_trains_evaluates_and_writes_files(trained):
    output, log = trained
    names = {p.name for p in output.iterdir()}
    assert names >= {"config.yaml", "metrics.json", "last_checkpoint", "model_final.pth"}
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert len(list((output / "inference" / "discs" / "panoptic").glob("*.png"))) == 5
    assert "Optimizer group 'backbone'" in log
    assert "Panoptic Evaluation Results" in log
    assert metrics(output)["panoptic_seg/PQ"] >= 0


def test_eval_only_gives_the_same_pq(trained, tmp_path):
    """With the config that the training wrote, as the docs do it."""
    output, _ = trained
    pq = metrics(output)["panoptic_seg/PQ"]
    opts = ["MODEL.WEIGHTS", str(output / "model_final.pth"), "TEST.EXPECTED_RESULTS"]
    opts += [str([["panoptic_seg", "PQ", pq, 1e-6]])]
    code, log = run(["--eval-only"], opts, tmp_path / "out", str(output / "config.yaml"))
    assert code == 0, log
    assert "Results verification passed" in log


def test_wrong_input_is_one_clear_line(data, tmp_path):
    code, log = run([], [*data, "MODEL.DETR.NUM_CLASSES", "80"], tmp_path / "out")
    assert code == 1
    assert "has 2 classes, things and stuff together" in log.strip().splitlines()[-1]
