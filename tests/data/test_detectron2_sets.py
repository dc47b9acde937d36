"""Datasets that Detectron2 registers itself, and targets that its mappers make."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.datasets.cityscapes_panoptic import (
    _RAW_CITYSCAPES_PANOPTIC_SPLITS,
    register_all_cityscapes_panoptic,
)
from detectron2.evaluation import COCOPanopticEvaluator, inference_on_dataset
from detectron2.structures import BitMasks, Instances, PolygonMasks
from panopticapi.utils import id2rgb
from PIL import Image

from detr_panoptic_d2.data import dataset_ids, thing_class_ids
from detr_panoptic_d2.data.label_maps import LabelMasks
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.modeling.mask_ops import target_masks

TINY = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]
TINY += ["INPUT.MIN_SIZE_TRAIN", "(32,)", "INPUT.MIN_SIZE_TEST", "32"]
TINY += ["DATALOADER.NUM_WORKERS", "0"]
BOXES = ((3, 2, 9, 7), (10, 8, 18, 11))


def train_and_test(train, test, output, *options):
    options = [*TINY, "DATASETS.TRAIN", str((train,)), "DATASETS.TEST", str((test,)), *options]
    cfg = setup_cfg("shapes/tiny.yaml", [*options, "OUTPUT_DIR", str(output)])
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer, trainer.train()


@pytest.fixture
def cityscapes(tmp_path):
    """Two images in the layout that cityscapesscripts' createPanopticImgs.py and
    createTrainIdLabelImgs.py leave, under Detectron2's own names."""

    def register(root):
        for name in _RAW_CITYSCAPES_PANOPTIC_SPLITS:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_all_cityscapes_panoptic(str(root))

    for split in ("train", "val"):
        images = tmp_path / "cityscapes" / "leftImg8bit" / split / "aachen"
        labels = tmp_path / "cityscapes" / "gtFine" / split / "aachen"
        pngs = tmp_path / "cityscapes" / "gtFine" / f"cityscapes_panoptic_{split}"
        for folder in (images, labels, pngs):
            folder.mkdir(parents=True)
        annotations = []
        for number in range(2):
            stem = f"aachen_{number:06d}_000019"
            pixels = np.random.default_rng(number).integers(0, 256, (32, 64, 3), np.uint8)
            Image.fromarray(pixels).save(images / f"{stem}_leftImg8bit.png")
            Image.new("L", (64, 32)).save(labels / f"{stem}_gtFine_labelTrainIds.png")
            ids = np.full((32, 64), 7)  # road
            ids[:16] = 23  # sky
            ids[14:24, 8:30] = 26001  # a car
            ids[14:24, 40:60] = 26  # cars, a crowd
            ids[30:] = 0
            Image.fromarray(id2rgb(ids)).save(pngs / f"{stem}_gtFine_panoptic.png")
            segments = [
                {"id": i, "category_id": c, "iscrowd": int(i == 26), "area": int((ids == i).sum())}
                for i, c in ((7, 7), (23, 23), (26001, 26), (26, 26))
            ]
            name = f"{stem}_gtFine_panoptic.png"
            annotations.append({"image_id": stem, "file_name": name, "segments_info": segments})
        categories = [{k: c[k] for k in ("id", "name", "isthing")} for c in CITYSCAPES_CATEGORIES]
        content = {"annotations": annotations, "categories": categories, "images": []}
        pngs.with_suffix(".json").write_text(json.dumps(content))
    register(tmp_path)
    yield
    register(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def test_cityscapes_trains_and_is_evaluated(cityscapes, tmp_path):
    names = "cityscapes_fine_panoptic_train", "cityscapes_fine_panoptic_val"
    tests = ["MODEL.DETR.TEST.SEMANTIC_ON", "True", "MODEL.DETR.TEST.INSTANCE_ON", "True"]
    tests += ["MODEL.DETR.TEST.SCORE_THRESH", "0.0"]
    trainer, results = train_and_test(*names, tmp_path / "output", *tests)
    cfg = trainer.cfg
    assert cfg.MODEL.DETR.NUM_CLASSES == 19
    assert thing_class_ids(MetadataCatalog.get(names[0])) == list(range(11, 19))

    # Detectron2's own evaluator, with what the model gives.
    loader = PanopticTrainer.build_test_loader(cfg, names[1])
    stock = COCOPanopticEvaluator(names[1], str(tmp_path / "stock"))
    for key, value in inference_on_dataset(trainer.model, loader, stock)["panoptic_seg"].items():
        assert results["panoptic_seg"][key] == pytest.approx(value)
    # Without a prediction of a thing Detectron2 gives no "segm".
    assert {"panoptic_seg", "bbox", "sem_seg"} <= set(results)


@pytest.fixture
def coco_set(tmp_path):
    """A set in COCO's instance format that is registered with empty metadata."""
    images, annotations = [], []
    for number in range(2):
        Image.new("RGB", (40, 32), (60 * number, 90, 30)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 40})
        for box in ([2, 3, 20, 12], [10, 16, 24, 14]):
            x, y, w, h = box
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "bbox": box, "iscrowd": 0}
                | {"category_id": 8, "segmentation": [polygon], "area": w * h}
            )
    categories = [{"id": 3, "name": "cup"}, {"id": 8, "name": "bowl"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    register_coco_instances("empty_metadata", {}, str(tmp_path / "coco.json"), str(tmp_path))
    yield "empty_metadata"
    DatasetCatalog.remove("empty_metadata")
    MetadataCatalog.remove("empty_metadata")


def test_register_coco_instances_with_empty_metadata(coco_set, tmp_path):
    trainer, results = train_and_test(
        coco_set, coco_set, tmp_path / "output", "MODEL.DETR.TEST.INSTANCE_ON", "True"
    )
    assert trainer.cfg.MODEL.DETR.NUM_CLASSES == 2
    assert dataset_ids(MetadataCatalog.get(coco_set)) == [3, 8]
    assert "bbox" in results


def test_masks_in_every_form_of_mappers():
    """Bit masks, polygons, a label map, and the tensor that Mask2Former's mapper makes."""
    labels = torch.zeros(12, 20, dtype=torch.uint8)
    labels[2:7, 3:9], labels[8:11, 10:18] = 2, 1
    expected = torch.stack([labels == 2, labels == 1])
    polygons = [[np.array([x, y, X, y, X, Y, x, Y], float)] for x, y, X, Y in BOXES]
    for masks in (
        BitMasks(expected),
        PolygonMasks(polygons),
        LabelMasks(labels, torch.tensor([2, 1])),
        expected,
    ):
        instances = Instances((12, 20), gt_masks=masks, gt_classes=torch.tensor([0, 1]))
        assert torch.equal(target_masks(instances), expected)
