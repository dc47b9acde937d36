"""What is seen of the data before a training starts."""

import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from panopticapi.utils import id2rgb
from PIL import Image

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.train_loader import check_labels
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def make_cfg(tmp_path):
    def make(train, test=(), *opts):
        names = ["DATASETS.TRAIN", str(train), "DATASETS.TEST", str(test), "MODEL.DEVICE", "cpu"]
        return setup_cfg("shapes/tiny.yaml", [*names, "OUTPUT_DIR", str(tmp_path / "out"), *opts])

    return make


def test_photographs_in_the_place_of_panoptic_pngs(panoptic_set, scene, make_cfg):
    root = panoptic_set("swapped", [scene] * 3)
    for png in (root / "panoptic").iterdir():
        shutil.copy(root / "images" / png.name, png)
    with pytest.raises(UserError, match=r"000\.png' is no panoptic PNG.*panoptic_root"):
        PanopticTrainer(make_cfg(("swapped",)))


def test_panoptic_pngs_of_another_set(panoptic_set, scene, make_cfg):
    root = panoptic_set("mixed_up", [scene] * 3)
    for png in (root / "panoptic").iterdir():
        Image.fromarray(id2rgb(scene[0] + 500)).save(png)
    with pytest.raises(UserError, match=r"almost nothing labelled.*panoptic_root.*000\.png"):
        PanopticTrainer(make_cfg(("mixed_up",)))


def test_a_set_without_segments(panoptic_set, make_cfg):
    void = (np.zeros((32, 40), dtype=np.int64), {})
    panoptic_set("all_void", [void, void])
    with pytest.raises(UserError, match=r"all_void.*none of 2 images has a segment"):
        PanopticTrainer(make_cfg(("all_void",)))


def test_small_segments_and_lost_entries_are_no_fault(panoptic_set, scene, make_cfg):
    ids = np.zeros((64, 64), dtype=np.int64)
    ids[:2, :2] = 5
    root = panoptic_set("small", [(ids, {5: 10}), scene, scene])
    content = json.loads((root / "panoptic.json").read_text())
    for entry in content["annotations"]:
        entry["segments_info"] += [{"id": 90 + i, "category_id": 10} for i in range(9)]
    (root / "panoptic.json").write_text(json.dumps(content))
    DatasetCatalog.get("small")
    check_labels(make_cfg(("small",)), get_detection_dataset_dicts(("small",)))


def test_more_segments_than_queries(panoptic_set, scene, make_cfg, caplog):
    panoptic_set("many", [scene])
    cfg = make_cfg(("many",), (), "MODEL.DETR.NUM_OBJECT_QUERIES", "4")
    check_labels(cfg, get_detection_dataset_dicts(("many",)))
    assert "NUM_OBJECT_QUERIES is 4, but 1 of 1 images" in caplog.text
    assert "Set it to 5 or more" in caplog.text


def test_images_that_are_trained_and_tested_on(panoptic_set, scene, make_cfg, caplog):
    for name in ("first", "second"):
        panoptic_set(name, [scene, scene])
    PanopticTrainer(make_cfg(("first",), ("second",)))
    assert "are in DATASETS.TRAIN" not in caplog.text
    PanopticTrainer(make_cfg(("first", "second"), ("second",)))
    assert "2 of 2 images of DATASETS.TEST ('second',) are in DATASETS.TRAIN" in caplog.text
