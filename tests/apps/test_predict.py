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
from pycocotools import mask as mask_util

from detr_panoptic_d2.apps.predict import predict
from detr_panoptic_d2.apps.predict.tiled import TiledPredictor
from detr_panoptic_d2.engine import Predictor, setup_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.export.runtime import find_images

ROOT = Path(__file__).resolve().parents[2]
OPTS = ["MODEL.DETR.TEST.SCORE_THRESH", "0.0", "MODEL.DEVICE", "cpu"]
OPTS += ["MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]
OPTS += ["MODEL.DETR.NUM_CLASSES", "133", "DATASETS.TRAIN", "()"]
OPTS += ["DATASETS.TEST", "('coco_2017_val_panoptic',)"]


@pytest.fixture(scope="module")
def weights(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": tiny_model(*OPTS).state_dict()}, path)
    return path


@pytest.fixture
def make_predictor(weights):
    def make(*opts):
        words = [*OPTS, "MODEL.WEIGHTS", str(weights), *opts]
        return Predictor(setup_cfg("shapes/tiny.yaml", words))

    return make


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "more/a.png", "more/A.webp"):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_weights_must_be_there_and_fit(make_predictor):
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty"):
        make_predictor("MODEL.WEIGHTS", "")
    with pytest.raises(UserError, match="NUM_OBJECT_QUERIES"):
        make_predictor("MODEL.DETR.NUM_OBJECT_QUERIES", "3")


def test_find_images(pictures):
    folder = [pictures / "a.jpg", pictures / "b.png"]
    assert find_images([str(pictures)]) == folder
    pattern = str(pictures / "**" / "*.png")
    assert find_images([pattern, str(pictures / "a.jpg")])[-1] == pictures / "a.jpg"
    assert find_images([str(pictures), str(pictures / "b.png")]) == folder
    (pictures / "empty").mkdir()
    for item in ("nothing.jpg", "no*.png", "empty"):
        with pytest.raises(FileNotFoundError, match="' is not a file, a pattern"):
            find_images([str(pictures / item)])


def test_command(weights, pictures, command, tmp_path):
    """Overlays and COCO results; inputs that cannot be read are named, the others are done."""
    (pictures / "broken.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:300])
    (pictures / "text.png").write_text("no image")
    (pictures / "bad.mp4").write_bytes(b"no video")
    inputs = [pictures, pictures / "more", pictures / "bad.mp4"]
    words = ["--config-file", "shapes/tiny.yaml", "--input", *inputs, "--output", tmp_path / "out"]
    status, log, _ = command("predict", *words, "--json", *OPTS, "MODEL.WEIGHTS", weights)
    assert status == 1
    assert "4 of 7 inputs done" in log
    for name in ("broken.jpg", "text.png", "bad.mp4"):
        assert f"Not done: {pictures / name} (" in log
    overlays = {"a.jpg", "b.png", "more/A.png", "more/a_2.png"}
    parts = {f".predictions/{name}.json" for name in ("a", "b", "more/A", "more/a_2")}
    pngs = ["panoptic/a.png", "panoptic/b.png", "panoptic/more/A.png", "panoptic/more/a_2.png"]
    out = tmp_path / "out"
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert files == {*overlays, *pngs, *parts, "predictions.json", "instances.json"}
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    names = [i["file_name"] for i in results["images"]]
    assert sorted(names) == ["a.jpg", "b.png", "more/A.webp", "more/a.png"]
    assert sorted(f"panoptic/{a['file_name']}" for a in results["annotations"]) == pngs
    assert len(results["categories"]) == 133
    ids = {c["id"] for c in results["categories"]}
    things = {c["id"] for c in results["categories"] if c["isthing"]}
    instances = json.loads((tmp_path / "out" / "instances.json").read_text())
    for annotation in results["annotations"]:
        png = np.asarray(Image.open(tmp_path / "out" / "panoptic" / annotation["file_name"]))
        assert png.shape == (40, 60, 3)
        found = png.astype(int) @ [1, 256, 65536]
        segments = annotation["segments_info"]
        assert {s["id"] for s in segments} == set(np.unique(found).tolist()) - {0}
        assert {s["category_id"] for s in segments} <= ids
        assert all(s["area"] == (found == s["id"]).sum() for s in segments)
        # RLE masks are the things of the map.
        masks = [x for x in instances if x["image_id"] == annotation["image_id"]]
        expected = [s for s in segments if s["category_id"] in things]
        for instance, segment in zip(masks, expected, strict=True):
            mask = mask_util.decode(instance["segmentation"])
            assert np.array_equal(mask, found == segment["id"])
            assert all(instance[key] == segment[key] for key in ("category_id", "bbox", "score"))
    assert instances


def test_resume_keeps_results_and_adds_to_them(weights, pictures, command, tmp_path):
    words = ["--output", tmp_path / "out", "--json", "--config-file", "shapes/tiny.yaml"]

    def run(*more):
        status, out, err = command("predict", *more, *words, *OPTS, "MODEL.WEIGHTS", weights)
        return status, "".join([out, *err])

    assert run("--input", pictures)[0] == 0
    target = tmp_path / "out" / "predictions.json"
    first = json.loads(target.read_text())
    status, message = run("--input", pictures)
    assert status == 1 and "Add --resume" in message
    assert json.loads(target.read_text()) == first
    instances = json.loads((tmp_path / "out" / "instances.json").read_text())
    # As a killed process leaves it: no json yet, and half of a file.
    target.unlink()
    (tmp_path / "out" / ".predictions" / ".c.json.0.tmp").write_text("{")
    Image.new("RGB", (20, 30)).save(pictures / "c.png")
    overlay = tmp_path / "out" / "a.jpg"
    overlay.write_bytes(b"as it was")
    status, message = run("--input", pictures, "--resume")
    assert status == 0 and "2 inputs have results already" in message
    assert overlay.read_bytes() == b"as it was"
    second = json.loads(target.read_text())
    assert second["images"][:2] == first["images"]
    assert second["annotations"][:2] == first["annotations"]
    assert [i["file_name"] for i in second["images"]] == ["a.jpg", "b.png", "c.png"]
    more_instances = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert more_instances[: len(instances)] == instances
    for more in (["--input", pictures / "more"], ["--input", pictures, "--tile", "64"]):
        status, message = run(*more, "--resume")
        assert status == 1 and "Choose another --output" in message
    assert json.loads(target.read_text()) == second


def test_processes_share_the_inputs_and_write_one_json(weights, pictures, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "detr_panoptic_d2.cli", "predict", "--config-file", "shapes/tiny.yaml"]
    command += ["--input", pictures, pictures / "more", "--output", tmp_path / "out", "--json"]
    command += [*OPTS, "MODEL.WEIGHTS", weights]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 of 4 inputs done") == 1
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    names = [i["file_name"] for i in results["images"]]
    assert names == ["a.jpg", "b.png", "more/A.webp", "more/a.png"]
    for annotation in results["annotations"]:
        assert (tmp_path / "out" / "panoptic" / annotation["file_name"]).is_file()


def test_batches_and_tiles_give_the_plain_results(make_predictor, pictures, tmp_path):
    """Images of two sizes, one file broken; every image is one tile."""
    for i, size in enumerate([(60, 40), (50, 50), (60, 40), (50, 50), (60, 40)]):
        noise = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{i}.png")
    (pictures / "3.png").write_text("no image")
    predictor = make_predictor()
    paths = [pictures / f"{i}.png" for i in range(5)]
    results = {}
    for name, batch_size, chosen in (
        ("plain", 1, predictor),
        ("batches", 2, predictor),
        ("tiles", 1, TiledPredictor(predictor, 64, 0.2)),
    ):
        out = tmp_path / name
        failed = predict(chosen, paths, out, coco_json=True, batch_size=batch_size)
        assert list(failed) == [pictures / "3.png"]
        results[name] = json.loads((out / "predictions.json").read_text())["annotations"]
    assert len(results["plain"]) == 4
    assert results["tiles"] == results["plain"]
    for plain, batched in zip(results["plain"], results["batches"], strict=True):
        assert plain["file_name"] == batched["file_name"]
        areas, other = ([s["area"] for s in x["segments_info"]] for x in (plain, batched))
        assert areas == pytest.approx(other, abs=20)


@pytest.mark.parametrize("name", ["a.jpg", "clip.mp4", "panoptic/c.png"])
def test_an_input_is_never_overwritten(make_predictor, pictures, tmp_path, name):
    """Neither by its overlay nor by its PNG, where the output folder is a link to it as well."""
    (tmp_path / "link").symlink_to(pictures, target_is_directory=True)
    (pictures / "panoptic").mkdir()
    (pictures / name).write_bytes(b"mine")
    inputs = [pictures / name, pictures / "c.png" if "panoptic" in name else pictures / "x.png"]
    Image.new("RGB", (8, 8)).save(inputs[1])
    before = {p: p.read_bytes() for p in pictures.rglob("*.*")}
    with pytest.raises(UserError, match="would overwrite the input"):
        predict(make_predictor(), inputs[::-1], tmp_path / "link", coco_json=True)
    assert before == {p: p.read_bytes() for p in pictures.rglob("*.*")}


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_called_as_detectron2s(make_predictor, image_format):
    """BGR in, whatever the model takes, and the same result."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    predictor = make_predictor("INPUT.FORMAT", image_format)
    ids, segments = predictor(image)["panoptic_seg"]
    expected = DefaultPredictor(predictor.cfg)(image)["panoptic_seg"]
    assert segments
    assert [s["category_id"] for s in segments] == [s["category_id"] for s in expected[1]]
    assert (ids == expected[0]).float().mean() > 0.99


def test_to_supervision(make_predictor, monkeypatch):
    """Things and stuff; and an image without segments."""
    sv = pytest.importorskip("supervision")
    predictor = make_predictor()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = predictor(image)
    ids, segments = result["panoptic_seg"]
    assert len(predictor.to_supervision({"panoptic_seg": (0 * ids, [])})) == 0
    detections = predictor.to_supervision(result)
    assert isinstance(detections, sv.Detections) and len(detections) == len(segments) > 0
    names = predictor.metadata.thing_classes
    for k, segment in enumerate(segments):
        mask = (ids == segment["id"]).numpy()
        assert np.array_equal(detections.mask[k], mask)
        assert np.array_equal(detections.xyxy[k], sv.mask_to_xyxy(mask[None])[0] + [0, 0, 1, 1])
        assert detections.class_id[k] == segment["category_id"]
        assert detections.confidence[k] == np.float32(segment["score"])
        assert detections["class_name"][k] == names[segment["category_id"]]
    things = detections[detections["isthing"]]
    assert len(things) == sum(s["isthing"] for s in segments)
    sv.MaskAnnotator().annotate(image.copy(), detections)
    sv.LabelAnnotator().annotate(image.copy(), detections)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        predictor.to_supervision({})


def test_video_of_odd_size_keeps_its_pixels(make_predictor, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 5, (63, 47)
    )
    for i in range(3):
        writer.write(np.full((47, 63, 3), 60 * i, dtype=np.uint8))
    writer.release()
    strict = make_predictor("MODEL.DETR.TEST.SCORE_THRESH", "1.0")
    assert predict(strict, [path], tmp_path / "out") == {}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["clip.mp4"]
    video = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    frames = [video.read() for _ in range(4)]
    assert [ok for ok, _ in frames] == [True, True, True, False]
    assert frames[2][1].shape == (48, 64, 3)
