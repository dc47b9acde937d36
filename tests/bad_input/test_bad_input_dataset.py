"""Faults of a dataset: where they are found, and what the error names. Entries of the json:
tests/data/test_register.py."""

import logging
import re
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import logger as d2_logger
from PIL import Image

from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.evaluation import PanopticEvaluator


def rotate(spoilt):
    """Add the EXIF tag of a camera that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(spoilt.image(1)) as image:
        image.save(spoilt.image(1), exif=exif)


def save_as(path, mode, size=(40, 32)):
    Image.new(mode, size).save(path)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


AT_REGISTRATION = [
    (lambda s: s.panoptic_json.unlink(), "panoptic.json' does not exist"),
    (lambda s: s.panoptic_json.write_text('{"images": ['), "panoptic.json' is not a json"),
    (lambda s: s.panoptic_json.write_text("[]"), "panoptic.json' holds a list.*COCO panoptic"),
    (lambda s: s.image_root.rename(s.root / "i"), "image_root .*is not a folder"),
]
IN_THE_MAPPER = [
    (lambda s: s.image(1).unlink(), "001.png' does not exist.*image root"),
    (lambda s: s.image(1).write_bytes(b"<html>"), "images/001.png' cannot be read"),
    (lambda s: cut(s.image(1), 900), "images/001.png' cannot be read.*truncated"),
    (rotate, "001.png' is 32 wide and 40 high.*rotated.*EXIF"),
    (lambda s: s.png(1).unlink(), "001.png' does not exist.*panoptic_root"),
    (lambda s: cut(s.png(1), 50), "Panoptic PNG '.*001.png' cannot be read"),
    (lambda s: save_as(s.png(1), "RGB", (40, 30)), "001.png' is 40 wide and 30 high, .* 32 high"),
    (lambda s: save_as(s.png(1), "L"), "001.png' has mode L.*COCO panoptic format"),
    (lambda s: shutil.copy(s.image(1), s.png(1)), "001.png' is not a panoptic PNG.*photograph"),
]


@pytest.mark.parametrize(("spoil", "message"), AT_REGISTRATION)
def test_found_at_registration(spoilt, error_line, spoil, message):
    spoil(spoilt)
    assert re.search(message, error_line(setup_cfg, "shapes/tiny.yaml", spoilt.opts()))
    assert spoilt.name not in DatasetCatalog.list()


@pytest.mark.parametrize(("spoil", "message"), IN_THE_MAPPER)
def test_found_in_the_mapper(spoilt, error_line, spoil, message):
    mapper = PanopticDatasetMapper(setup_cfg("shapes/tiny.yaml", spoilt.opts()))
    item = DatasetCatalog.get(spoilt.name)[1]
    spoil(spoilt)
    line = error_line(mapper, item)
    assert re.search(message, line) and str(spoilt.root) in line


def test_training_stops_with_the_error_of_a_worker(spoilt, train, error_line):
    save_as(spoilt.image(1), "RGB", (20, 32))
    line = error_line(train, spoilt.opts("DATALOADER.NUM_WORKERS", 1))
    message = "001.png' is 20 wide and 32 high, but its annotation is 40 wide and 32 high"
    assert message in line
    assert not [p for p in (spoilt.root / "output").rglob("*") if p.name.startswith(".")]


def test_faulty_but_usable_images_train(spoilt, train, caplog, monkeypatch):
    """Ids without an entry, entries without pixels, one pixel, wrong boxes and areas, all void."""
    # Detectron2 remembers which warnings it gave, for the whole process.
    monkeypatch.setattr(d2_logger, "_LOG_COUNTER", type(d2_logger._LOG_COUNTER)())
    segments = [annotation["segments_info"] for annotation in spoilt.content["annotations"]]
    segments[0][1].update(id=3)
    ids = np.full((32, 40), 1)
    ids[3, 7] = 2
    spoilt.save_ids(1, ids)
    for segment in segments[1]:
        segment.update(area=-5, bbox=[90, 90, 0, 0])
    spoilt.save_ids(2, np.zeros((32, 40), dtype=np.int64))
    segments[2].clear()
    spoilt.save()
    caplog.set_level(logging.WARNING)
    trainer = train(spoilt.opts("SOLVER.MAX_ITER", 2, "MODEL.DETR.TEST.SCORE_THRESH", 0.0))
    assert "PQ" in trainer._last_eval_results["panoptic_seg"]
    text = " ".join(caplog.text.split())
    assert "000.png' and its segments_info differ" in text


def test_evaluation_refuses_paths_as_well(spoilt, error_line):
    """Also on a set that Detectron2 registered, whose json nobody has checked."""
    setup_cfg("shapes/tiny.yaml", spoilt.opts())
    evaluator = PanopticEvaluator(spoilt.name, str(spoilt.root / "out"))
    (spoilt.root / "outside.png").write_bytes(spoilt.png(1).read_bytes())
    evaluator._images[1]["pan_seg_file_name"] = str(spoilt.panoptic_root / ".." / "outside.png")
    output = {"panoptic_seg": (torch.ones(32, 40, dtype=torch.int32), [])}
    evaluator.reset()
    line = error_line(
        evaluator.process, [{"image_id": 1, "file_name": str(spoilt.image(1))}], [output]
    )
    assert "outside.png" in line and "leads out" in line
    assert not (spoilt.root / "out" / "outside.png").exists()
