import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image

from detr_panoptic_d2.apps.predict import find_inputs, predict_images, predict_video
from detr_panoptic_d2.data.dataset_mapper import read_image
from detr_panoptic_d2.engine import PanopticTrainer, Predictor, setup_cfg
from detr_panoptic_d2.errors import UserError

REPO = Path(__file__).parents[2]

OPTS = ["MODEL.DETR.TEST.SCORE_THRESH", "0.0", "MODEL.DEVICE", "cpu"]
OPTS += ["MODEL.DETR.NUM_CLASSES", "133", "DATASETS.TRAIN", "()"]
OPTS += ["DATASETS.TEST", "('coco_2017_val_panoptic',)"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    cfg = setup_cfg("shapes/tiny.yaml", [*OPTS, "OUTPUT_DIR", str(folder)])
    PanopticTrainer.build_checkpointer(cfg, PanopticTrainer.build_model(cfg)).save("model")
    return folder / "model.pth"


@pytest.fixture
def predictor(weights):
    return Predictor(setup_cfg("shapes/tiny.yaml", [*OPTS, "MODEL.WEIGHTS", str(weights)]))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "more/a.png"):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_weights_must_be_there_and_fit(weights):
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty"):
        Predictor(setup_cfg("shapes/tiny.yaml", OPTS))
    opts = [*OPTS, "MODEL.WEIGHTS", str(weights), "MODEL.DETR.NUM_OBJECT_QUERIES", "3"]
    with pytest.raises(UserError, match="NUM_OBJECT_QUERIES"):
        Predictor(setup_cfg("shapes/tiny.yaml", opts))


def test_find_inputs(pictures):
    folder = [pictures / "a.jpg", pictures / "b.png"]
    assert find_inputs([str(pictures)]) == folder
    pattern = str(pictures / "**" / "*.png")
    assert find_inputs([pattern, str(pictures / "a.jpg")])[-1] == pictures / "a.jpg"
    assert find_inputs([str(pictures), str(pictures / "b.png")]) == folder
    for item in ("nothing.jpg", "no*.png"):
        with pytest.raises(FileNotFoundError, match=r"--input .*no"):
            find_inputs([str(pictures / item)])
    (pictures / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no images"):
        find_inputs([str(pictures / "empty")])


def test_broken_images_are_skipped_and_named(predictor, pictures, tmp_path):
    (pictures / "broken.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:300])
    (pictures / "text.png").write_text("no image")
    paths = find_inputs([str(pictures), str(pictures / "more")])
    broken = predict_images(predictor, paths, tmp_path / "out", coco_json=True)
    assert [path.name for path, _ in broken] == ["broken.jpg", "text.png"]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"a.jpg", "b.png", "a_2.png", "panoptic", "predictions.json"}
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [a["file_name"] for a in results["annotations"]] == ["a.png", "b.png", "a_2.png"]
    assert len(results["categories"]) == 133
    ids = {c["id"] for c in results["categories"]}
    for annotation in results["annotations"]:
        png = np.asarray(Image.open(tmp_path / "out" / "panoptic" / annotation["file_name"]))
        assert png.shape == (40, 60, 3)
        found = np.unique(png.astype(int) @ [1, 256, 65536])
        assert {s["id"] for s in annotation["segments_info"]} == set(found.tolist()) - {0}
        assert {s["category_id"] for s in annotation["segments_info"]} <= ids
        for s in annotation["segments_info"]:
            assert s["area"] == (png.astype(int) @ [1, 256, 65536] == s["id"]).sum()


def test_image_without_segments(weights, pictures, tmp_path):
    opts = [*OPTS, "MODEL.DETR.TEST.SCORE_THRESH", "1.0", "MODEL.WEIGHTS", str(weights)]
    strict = Predictor(setup_cfg("shapes/tiny.yaml", opts))
    assert predict_images(strict, [pictures / "b.png"], tmp_path / "out") == []
    with Image.open(tmp_path / "out" / "b.png") as overlay:
        assert overlay.size == (60, 40)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_called_as_detectron2s(weights, pictures, image_format):
    """BGR in, whatever the model wants, and the same result."""
    opts = [*OPTS, "MODEL.WEIGHTS", str(weights), "INPUT.FORMAT", image_format]
    cfg = setup_cfg("shapes/tiny.yaml", opts)
    image = read_image(pictures / "b.png", "BGR")
    predictor = Predictor(cfg)
    ids, segments = predictor(image)["panoptic_seg"]
    expected = DefaultPredictor(cfg)(image)["panoptic_seg"]
    assert segments
    assert [s["category_id"] for s in segments] == [s["category_id"] for s in expected[1]]
    assert (ids == expected[0]).float().mean() > 0.99
    again = predictor.model([predictor.prepare(image)])[0]["panoptic_seg"]
    assert torch.equal(ids, again[0])


def test_video(predictor, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 60 * i, dtype=np.uint8))
    writer.release()
    target = predict_video(predictor, path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["clip.mp4"]
    video = cv2.VideoCapture(str(target))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == 3
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(OSError, match=r"bad\.mp4 cannot be read as a video"):
        predict_video(predictor, tmp_path / "bad.mp4", tmp_path / "out")


def test_command_line(weights, pictures, tmp_path):
    (pictures / "text.png").write_text("no image")
    command = [sys.executable, "-m", "detr_panoptic_cli", "predict"]
    command += ["--config-file", "shapes/tiny.yaml", "--input", str(pictures), "--output"]
    command += [str(tmp_path / "out"), "--json", *OPTS, "MODEL.WEIGHTS", str(weights)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    log = done.stdout + done.stderr
    assert done.returncode == 1, log
    assert "text.png" in log
    assert "2 of 3 inputs done" in log
    assert (tmp_path / "out" / "predictions.json").is_file()
