"""Training on real photographs; skips where the samples are not there."""

import json

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.train_loader import seed_everything


def _reduced(path, factor, resample):
    with Image.open(path) as image:
        size = [round(side / factor) for side in image.size]
        return image.convert("RGB").resize(size, resample)


@pytest.mark.slow
def test_two_coco_images_are_found_again(sample_data, panoptic_set, tmp_path):
    """A small model sees nothing but these two images, 50 segments, a third of their size."""
    sample = sample_data("coco_panoptic_sample")
    truth = json.loads((sample / "panoptic_val2017.json").read_text())
    maps, pixels = [], []
    for entry in truth["annotations"]:
        png = sample / "panoptic_val2017" / entry["file_name"]
        ids = rgb2id(np.asarray(_reduced(png, 3, Image.Resampling.NEAREST)))
        left = [s for s in entry["segments_info"] if (ids == s["id"]).any()]
        crowd = {s["id"] for s in left if s["iscrowd"]}
        maps.append((ids, {s["id"]: s["category_id"] for s in left}, crowd))
        jpeg = sample / "val2017" / entry["file_name"].replace(".png", ".jpg")
        pixels.append(_reduced(jpeg, 3, Image.Resampling.BILINEAR))
    used = {category for _, classes, _ in maps for category in classes.values()}
    categories = [c for c in truth["categories"] if c["id"] in used]
    root = panoptic_set("coco_two", maps, categories)
    for number, image in enumerate(pixels):
        image.save(root / "images" / f"{number:03d}.png")

    options = ["DATASETS.TRAIN", "('coco_two',)", "DATASETS.TEST", "('coco_two',)"]
    options += ["MODEL.DEVICE", "cpu", "SEED", "1", "OUTPUT_DIR", str(tmp_path / "out")]
    options += ["MODEL.DETR.NUM_OBJECT_QUERIES", "40", "INPUT.RANDOM_FLIP", "none"]
    options += ["INPUT.MIN_SIZE_TRAIN", "(160,)", "INPUT.MAX_SIZE_TRAIN", "320"]
    options += ["INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "320"]
    options += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1600", "TEST.EVAL_PERIOD", "0"]
    options += ["DATALOADER.NUM_WORKERS", "0"]
    cfg = setup_cfg("shapes/detr_panoptic_shapes.yaml", options)
    seed_everything(cfg.SEED)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    result = PanopticTrainer.test(cfg, trainer.model)["panoptic_seg"]
    # Seen: 67.6, 50.5, 84.8. Of the classes only the ball is missed: 19 pixels are left of it.
    assert result["PQ"] > 55
    assert result["PQ_th"] > 35
    assert result["PQ_st"] > 75
