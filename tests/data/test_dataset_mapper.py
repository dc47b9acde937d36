import logging
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BoxMode
from detectron2.utils import logger as d2_logger
from PIL import Image

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.data.augmentation import (
    build_augmentations,
    build_test_resize,
    official_size,
)
from detr_panoptic_d2.data.dataset_mapper import read_image
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.export.runtime.model import input_size
from tests.panoptic_set import masks_boxes_and_areas


def _cfg(sizes=(8,), max_size=1333, flip="none", crop=False):
    cfg = merged_cfg("", ["MODEL.MASK_ON", "True"])
    cfg.INPUT.MIN_SIZE_TRAIN = cfg.INPUT.CROP.RESIZE_MIN_SIZES = list(sizes)
    cfg.INPUT.MIN_SIZE_TEST = sizes[-1]
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = max_size
    cfg.INPUT.RANDOM_FLIP = flip
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.PROB = crop, 1.0
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [5, 9]
    return cfg


@pytest.fixture
def first(small_set):
    return load_panoptic_json(**small_set.paths)[0]


def test_training_targets(small_set, first):
    out = PanopticDatasetMapper(_cfg(), is_train=True)(first)
    assert set(out) == {"file_name", "image_id", "height", "width", "image", "instances"}
    assert out["image"].shape == (3, 8, 12) and out["image"].dtype == torch.uint8
    expected = np.asarray(Image.open(first["file_name"]))[:, :, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(out["image"].numpy(), expected)
    instances = out["instances"]
    assert instances.gt_classes.tolist() == [0, 1] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.tolist() == [[2, 0, 11, 7], [4, 2, 7, 4]]
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), small_set.ids == 70000)
    assert instances.gt_masks.tensor[1].sum() == 12
    cfg = _cfg()
    cfg.MODEL.MASK_ON = False
    instances = PanopticDatasetMapper(cfg)(first)["instances"]
    assert not instances.has("gt_masks") and len(instances) == 2


def test_dict_is_not_changed_and_mapper_pickles(first):
    before = pickle.dumps(first)
    mapper = pickle.loads(pickle.dumps(PanopticDatasetMapper(_cfg(flip="horizontal", crop=True))))
    results = []
    for _ in range(2):
        np.random.seed(3)
        results.append(mapper(first))
    one, two = results
    assert pickle.dumps(first) == before
    assert torch.equal(one["image"], two["image"])
    assert torch.equal(one["instances"].gt_masks.tensor, two["instances"].gt_masks.tensor)


def test_test_mode(first):
    cfg = _cfg(sizes=(16,), flip="horizontal", crop=True)
    out = PanopticDatasetMapper(cfg, is_train=False)(first)
    assert set(out) == {"file_name", "image_id", "height", "width", "image"}
    assert out["image"].shape == (3, 16, 24) and (out["height"], out["width"]) == (8, 12)
    out = PanopticDatasetMapper(cfg, is_train=False, with_targets=True)(first)
    assert out["instances"].gt_masks.tensor.shape == (2, 16, 24)
    assert out["instances"].gt_boxes.tensor[1].tolist() == [8, 4, 15, 9]


def test_crowd_void_and_absent_are_no_targets(small_set, first, caplog, monkeypatch):
    """The first file whose PNG and entries differ is named."""
    monkeypatch.setattr(d2_logger, "_LOG_COUNTER", type(d2_logger._LOG_COUNTER)())
    small_set.ids[7, 2:] = 123
    small_set.ids[:, 0] = 9999
    small_set.save_ids(0)
    extra = {"category_id": 2, "isthing": False}
    first["segments_info"] += [
        {"id": 123, "iscrowd": 1, **extra},
        {"id": 55, "iscrowd": 0, **extra},
    ]
    mapper = PanopticDatasetMapper(_cfg())
    with caplog.at_level(logging.WARNING):
        instances = [mapper(first)["instances"] for _ in range(2)][1]
    assert instances.gt_classes.tolist() == [0, 1]
    masks = instances.gt_masks.tensor
    assert not masks[:, 7].any() and not masks[:, :, 0].any()
    texts = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    (text,) = texts
    assert "0.png" in text and "[9999]" in text

    for infos in ([], [{"id": 123, "iscrowd": 1, **extra}]):
        instances = mapper({**first, "segments_info": infos})["instances"]
        assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 8, 12)
        assert instances.gt_boxes.tensor.shape == (0, 4)


def test_more_than_255_segments(small_set, first):
    rng = np.random.default_rng(0)
    known = rng.choice(np.arange(1, 1 << 24), 256, replace=False)
    small_set.ids = np.kron(known.reshape(16, 16), np.ones((5, 5), int)).astype(np.uint32)
    small_set.save_ids(0)
    Image.new("RGB", (80, 80)).save(first["file_name"])
    first.update(height=80, width=80)
    first["segments_info"] = [{"id": int(i), "category_id": n % 3} for n, i in enumerate(known)]
    instances = PanopticDatasetMapper(_cfg(sizes=(160,)))(first)["instances"]
    masks, boxes, _ = masks_boxes_and_areas(np.kron(small_set.ids, np.ones((2, 2), int)), known)
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), masks)
    np.testing.assert_array_equal(instances.gt_boxes.tensor.numpy(), boxes)
    assert instances.gt_classes.tolist() == [n % 3 for n in range(256)]


def test_official_sizes():
    """Sizes that official DETR's get_size_with_aspect_ratio returned for a short edge of 800."""
    sizes = {
        (480, 640): (800, 1066),
        (640, 480): (1066, 800),
        (427, 640): (800, 1199),
        (640, 640): (800, 800),
        (800, 1000): (800, 1000),
        (375, 1242): (402, 1331),
        (333, 500): (800, 1201),
        (200, 640): (417, 1334),
    }
    for (height, width), expected in sizes.items():
        assert official_size(height, width, 800, 1333) == expected
        description = {"size": None, "min_size": 800, "max_size": 1333, "official_sizes": True}
        assert input_size(height, width, description) == expected
    cfg = _cfg(sizes=(800,))
    image = np.zeros((480, 640, 3), np.uint8)
    for official, width in ((False, 1067), (True, 1066)):
        cfg.INPUT.OFFICIAL_SIZES = official
        for resize in (build_test_resize(cfg), *build_augmentations(cfg, True)):
            assert resize.get_transform(image).apply_image(image).shape == (800, width, 3)


def test_16_bit_is_scaled_and_exif_applied(tmp_path):
    Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", "RGB")[0, :, 1].tolist() == [0, 1, 128, 255]
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 12)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", "RGB").shape == (8, 12, 3)


def test_annotations_that_do_not_fit(small_set, first):
    mapper = PanopticDatasetMapper(_cfg())
    with pytest.raises(ValueError, match=r"0.png.*300 is listed twice"):
        mapper({**first, "segments_info": first["segments_info"] + first["segments_info"][1:]})
    with pytest.raises(ValueError, match="a.png.*neither"):
        mapper({"file_name": first["file_name"]})
    with pytest.raises(UserError, match="a.png.*12 wide and 8 high.*13 wide and 8 high"):
        mapper({**first, "width": 13})
    small_set.ids = small_set.ids.T
    small_set.save_ids(0)
    with pytest.raises(UserError, match="0.png.*8 wide and 12 high.*a.png.*rotated"):
        mapper(first)


def test_instance_annotations(first):
    mask = np.zeros((8, 12), np.uint8)
    mask[1:4, 2:6] = 1
    box = {"bbox": [2, 1, 4, 3], "bbox_mode": BoxMode.XYWH_ABS}
    polygon = [[2, 1, 6, 1, 6, 4, 2, 4]]
    annotations = [
        {**box, "category_id": 5, "segmentation": polygon, "iscrowd": 0},
        {**box, "category_id": 6, "segmentation": mask_util.encode(np.asfortranarray(mask))},
        {**box, "category_id": 7, "segmentation": polygon, "iscrowd": 1},
    ]
    dataset_dict = {"file_name": first["file_name"], "annotations": annotations}
    before = pickle.dumps(dataset_dict)
    instances = PanopticDatasetMapper(_cfg(sizes=(16,)))(dataset_dict)["instances"]
    assert pickle.dumps(dataset_dict) == before
    assert instances.gt_classes.tolist() == [5, 6]
    assert instances.gt_boxes.tensor.tolist() == [[4, 2, 12, 8]] * 2
    assert instances.gt_masks.tensor.sum((1, 2)).tolist() == [48, 48]

    cfg = _cfg()
    cfg.MODEL.MASK_ON = False
    boxes_only = PanopticDatasetMapper(cfg)(dataset_dict)["instances"]
    assert not boxes_only.has("gt_masks")
    assert boxes_only.gt_boxes.tensor.tolist() == [[2, 1, 6, 4]] * 2
    empty = PanopticDatasetMapper(_cfg())({**dataset_dict, "annotations": []})["instances"]
    assert len(empty) == 0 and empty.gt_masks.tensor.shape == (0, 8, 12)

    # Boxes alone are enough without masks; an annotation that lacks a part is named.
    for lost, boxes_train in (("segmentation", True), ("bbox", False), ("bbox_mode", False)):
        for number in (0, 1):
            changed = [dict(annotation) for annotation in annotations]
            del changed[number][lost]
            incomplete = {**dataset_dict, "annotations": changed}
            message = rf"a\.png.*category_id {5 + number} has no '{lost}'"
            with pytest.raises(UserError, match=message):
                PanopticDatasetMapper(_cfg())(incomplete)
            if boxes_train:
                assert len(PanopticDatasetMapper(cfg)(incomplete)["instances"]) == 2
