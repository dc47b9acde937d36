"""Traps that published implementations of DETR's panoptic segmentation fell into, by number.

Those of one part only are tested with it: 5 (evaluation of sets without things or stuff) in
``evaluation``, 6 and 7 (class heads) in ``checkpoint``, 1 (whole batches), 3 (segment ids), 5 (no
kept query), 8 and 13 (softmax of the attention maps) in ``modeling``, 10 and 11 (file names, crowd)
in ``data``.
"""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin_meta, register_coco_panoptic
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.structures import BitMasks, Instances
from torch.nn import functional as F

from detr_panoptic_d2.config import get_config_file, list_config_files
from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.modeling.panoptic_inference import DETRPanopticInference
from detr_panoptic_d2.modeling.structures import Frame

# Classes 0 and 1 are things, 2 and 3 are stuff.
THINGS, SKY, GROUND = [0, 1], 2, 3


def panoptic(masks, labels, frame=None, scores=None, **options):
    size = tuple(masks.shape[-2:])
    rule = DETRPanopticInference(thing_ids=THINGS, **options)
    scores = torch.tensor(scores or [0.9] * len(labels))
    return rule(masks, scores, torch.tensor(labels), frame or Frame(size, size, size))


def test_1_padding_is_cropped_before_resizing():
    """Left half of the image one query, right half another; below and beside it padding."""
    masks = torch.full((2, 16, 24), -5.0)
    masks[0, :, :8], masks[1, :, 8:] = 5, 5
    frame = Frame(canvas=(64, 96), image=(32, 64), output=(32, 64))
    ids, info = panoptic(masks, [0, 1], frame)
    assert [s["area"] for s in info] == [32 * 32, 32 * 32]
    assert (ids[:, :32] == 1).all() and (ids[:, 32:] == 2).all()
    # The padded canvas as it is, brought to the image's size, puts the border elsewhere.
    naive = F.interpolate(masks[None], (32, 64), mode="bilinear").argmax(1)
    assert (naive == 0).sum() != 32 * 32


def test_2_stuff_is_merged_after_every_filter_pass():
    """A small thing is dropped; the sky queries on both sides are still one segment."""
    masks = torch.full((4, 12, 20), -5.0)
    masks[0, :6, :10] = 5
    masks[1, :6, 10:] = 5
    masks[2, 6:] = 5
    masks[3, 2, 9:11] = 9
    ids, info = panoptic(masks, [SKY, SKY, GROUND, 0], min_segment_area=4)
    assert [s["category_id"] for s in info] == [SKY, GROUND]
    assert [s["area"] for s in info] == [120, 120]
    assert ids.unique().tolist() == [1, 2]


def test_2_pieces_of_stuff_count_together():
    """Each piece is small enough to be dropped, the segment that they make is not."""
    masks = torch.full((3, 10, 10), -5.0)
    masks[0, 0, :3] = 5
    masks[1, 0, 3:6] = 5
    masks[2, 1:] = 5
    masks[2, 0, 6:] = 5
    info = panoptic(masks, [SKY, SKY, GROUND], min_segment_area=4)[1]
    assert {s["category_id"]: s["area"] for s in info} == {SKY: 6, GROUND: 94}


def test_4_isthing_is_a_bool_of_python(panoptic_set, scene, tmp_path):
    """Detectron2's own evaluator takes ``isthing is True``."""
    panoptic_set("trap_4", [scene])
    metadata = MetadataCatalog.get("trap_4")
    masks = F.one_hot(torch.as_tensor(np.searchsorted([1, 2, 4, 5, 70000], scene[0])), 5)
    rule = DETRPanopticInference(thing_ids=[1, 3])
    labels = torch.tensor([0, 2, 3, 3, 1])
    logits = masks.permute(2, 0, 1).float() * 10 - 5
    frame = Frame((32, 40), (32, 40), (32, 40))
    ids, info = rule(logits, torch.full((5,), 0.9), labels, frame)
    assert [type(s["isthing"]) for s in info] == [bool] * 5
    evaluator = COCOPanopticEvaluator("trap_4", str(tmp_path))
    evaluator.reset()
    item = DatasetCatalog.get("trap_4")[0]
    output = {"panoptic_seg": (ids, info)}
    evaluator.process([item], [output])
    assert set(metadata.thing_dataset_id_to_contiguous_id) == {10, 30}
    results = evaluator.evaluate()["panoptic_seg"]
    assert results["PQ_th"] == results["PQ_st"] == pytest.approx(100)


def truth_as_output(item):
    """What a perfect model would give for an image of a dataset."""
    ids = torch.as_tensor(read_panoptic_png(item["pan_seg_file_name"]).astype(np.int64))
    segments = [s for s in item["segments_info"] if not s["iscrowd"]]
    masks = torch.stack([ids == s["id"] for s in segments])
    labels = torch.tensor([s["category_id"] for s in segments])
    things = torch.tensor([s["isthing"] for s in segments])
    instances = Instances(tuple(ids.shape), pred_masks=masks[things], pred_classes=labels[things])
    instances.scores = torch.ones(len(instances))
    instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    scores = torch.zeros(133, *ids.shape)
    for s in item["segments_info"]:  # a class counts in crowds as well
        scores[s["category_id"]] += ids == s["id"]
    ids = ids * masks.any(0)  # crowd is left out
    panoptic_seg = (ids, [{**s, "isthing": bool(s["isthing"])} for s in segments])
    return {"panoptic_seg": panoptic_seg, "instances": instances, "sem_seg": scores}


def test_9_evaluators_of_coco_2017_val_panoptic_are_our_own(sample_data, tmp_path):
    """Detectron2's choice by ``evaluator_type`` fails on it for want of ``sem_seg_file_name``."""
    root = sample_data("coco_panoptic_sample")
    register_coco_panoptic(
        "trap_9",
        builtin_meta._get_builtin_metadata("coco_panoptic_standard"),
        str(root / "val2017"),
        str(root / "panoptic_val2017"),
        str(root / "panoptic_val2017.json"),
    )
    options = ["MODEL.DETR.TEST.SEMANTIC_ON", "True", "MODEL.DETR.TEST.INSTANCE_ON", "True"]
    cfg = setup_cfg("detr_panoptic_R50.yaml", [*options, "OUTPUT_DIR", str(tmp_path)])
    try:
        evaluator = PanopticTrainer.build_evaluator(cfg, "trap_9")
        evaluator.reset()
        for item in DatasetCatalog.get("trap_9"):
            evaluator.process([item], [truth_as_output(item)])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove("trap_9")
        MetadataCatalog.remove("trap_9")
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)


@pytest.mark.parametrize("name", list_config_files())
def test_12_no_frozen_norm_without_weights(name):
    model = CfgNode.load_yaml_with_base(get_config_file(name))["MODEL"]
    assert model["WEIGHTS"] or model["RESNETS"]["NORM"] in ("BN", "SyncBN", "GN")


def test_12_frozen_norm_without_weights_is_warned_of(panoptic_set, scene, tmp_path, caplog):
    """Frozen statistics of 0 and 1 with random weights make features that explode."""
    panoptic_set("trap_12", [scene, scene])
    for norm, warned in (("FrozenBN", True), ("BN", False)):
        options = ["MODEL.RESNETS.NORM", norm, "MODEL.DEVICE", "cpu"]
        options += ["DATASETS.TRAIN", "('trap_12',)", "DATASETS.TEST", "('trap_12',)"]
        options += ["OUTPUT_DIR", str(tmp_path / norm)]
        trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", options))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.resume_or_load(resume=False)
        assert ("MODEL.RESNETS.NORM" in caplog.text) is warned
