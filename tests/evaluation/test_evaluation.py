import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.structures import Boxes, Instances
from panopticapi.evaluation import pq_compute

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.evaluation import PanopticEvaluator, PanopticTruth, build_evaluator
from detr_panoptic_d2.evaluation.instances import instances_from_panoptic

CONTIGUOUS = {3: 0, 10: 1, 21: 2, 30: 3}
THINGS = {1, 3}


def panoptic_output(ids, classes):
    segments = [
        {"id": i, "isthing": CONTIGUOUS[c] in THINGS, "category_id": CONTIGUOUS[c], "score": 1.0}
        for i, c in classes.items()
    ]
    return {"panoptic_seg": (torch.as_tensor(ids, dtype=torch.int32), segments)}


def inputs_of(name):
    return DatasetCatalog.get(name)


def run(evaluator, inputs, outputs):
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def worse(ids):
    """A prediction with errors of each kind."""
    ids = ids.copy()
    ids[10:14, 4:14] = 1
    ids[18:28, 6:14] = 2
    ids[0:3, 0:3] = 9
    return ids, {1: 3, 2: 21, 70000: 10, 5: 30, 9: 10}


def test_truth_as_prediction_gives_100(panoptic_set, scene, tmp_path):
    panoptic_set("eval_truth", [scene, scene])
    inputs = inputs_of("eval_truth")
    results = run(
        PanopticEvaluator("eval_truth", str(tmp_path / "out")),
        inputs,
        [panoptic_output(*scene)] * 2,
    )["panoptic_seg"]
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ-ball", "PQ-sky"):
        assert results[key] == pytest.approx(100)


def test_same_numbers_as_detectron2_and_panopticapi(panoptic_set, scene, tmp_path):
    root = panoptic_set("eval_same", [scene, (*scene, {5})])
    inputs = inputs_of("eval_same")
    outputs = [panoptic_output(*worse(scene[0])), panoptic_output(*scene)]
    ours = run(PanopticEvaluator("eval_same", str(tmp_path / "ours")), inputs, outputs)
    theirs = run(COCOPanopticEvaluator("eval_same", str(tmp_path / "theirs")), inputs, outputs)
    for key, value in theirs["panoptic_seg"].items():
        assert ours["panoptic_seg"][key] == pytest.approx(value), key
    with contextlib.redirect_stdout(io.StringIO()):
        again = pq_compute(
            str(root / "panoptic.json"),
            str(tmp_path / "ours" / "predictions.json"),
            str(root / "panoptic"),
            str(tmp_path / "ours" / "panoptic"),
        )
    assert 100 * again["All"]["pq"] == pytest.approx(ours["panoptic_seg"]["PQ"])
    assert 100 * again["per_class"][10]["pq"] == pytest.approx(ours["panoptic_seg"]["PQ-ball"])


@pytest.mark.parametrize(
    ("classes", "missing"),
    [({1: 3, 2: 21}, "_th"), ({4: 30, 5: 30}, "_st"), ({}, "")],
    ids=["stuff only", "things only", "all void"],
)
def test_sets_without_things_stuff_or_anything(panoptic_set, scene, classes, missing):
    ids = np.where(np.isin(scene[0], list(classes)), scene[0], 0)
    panoptic_set("eval_partial", [(ids, classes)])
    results = run(
        PanopticEvaluator("eval_partial"),
        inputs_of("eval_partial"),
        [panoptic_output(ids, classes)],
    )["panoptic_seg"]
    assert math.isnan(results["PQ" + missing])
    if classes:
        assert results["PQ"] == pytest.approx(100)


def test_nothing_predicted_and_empty_areas_in_the_json(panoptic_set, scene, tmp_path):
    root = panoptic_set("eval_none", [scene])
    content = json.loads((root / "panoptic.json").read_text())
    for segment in content["annotations"][0]["segments_info"]:
        del segment["area"], segment["iscrowd"]
    (root / "panoptic.json").write_text(json.dumps(content))
    inputs = inputs_of("eval_none")
    nothing = panoptic_output(np.zeros_like(scene[0]), {})
    evaluator = PanopticEvaluator("eval_none", str(tmp_path / "out"))
    assert run(evaluator, inputs, [nothing])["panoptic_seg"]["PQ"] == 0
    assert run(evaluator, inputs, [panoptic_output(*scene)])["panoptic_seg"]["PQ"] == 100


def test_an_image_counts_once(panoptic_set, scene, tmp_path):
    panoptic_set("eval_twice", [scene])
    inputs = inputs_of("eval_twice") * 2
    outputs = [panoptic_output(*scene), panoptic_output(*worse(scene[0]))]
    evaluator = PanopticEvaluator("eval_twice", str(tmp_path / "out"))
    assert run(evaluator, inputs, outputs)["panoptic_seg"]["PQ"] == pytest.approx(100)
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(predictions["annotations"]) == 1


def test_size_of_prediction_and_truth_must_agree(panoptic_set, scene):
    panoptic_set("eval_size", [scene])
    small = panoptic_output(scene[0][:10], {1: 3, 70000: 10})
    with pytest.raises(ValueError, match=r"000\.png is 10 x 40 .* 32 x 40"):
        run(PanopticEvaluator("eval_size"), inputs_of("eval_size"), [small])


def test_instances_from_panoptic(panoptic_set, scene):
    panoptic_set("eval_instances", [(*scene, {5})])
    made = instances_from_panoptic(PanopticTruth("eval_instances"))
    assert [c["name"] for c in made["categories"]] == ["ball", "box"]
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in made["annotations"]] == [
        (10, 0, 100),
        (30, 0, 80),
        (30, 1, 140),
    ]
    assert made["annotations"][0]["bbox"] == [4, 4, 10, 10]


def all_outputs(ids, classes):
    """Panoptic map, masks of all segments as instances, and one-hot scores."""
    output = panoptic_output(ids, classes)
    map_ids, segments = output["panoptic_seg"]
    masks = torch.stack([map_ids == s["id"] for s in segments])
    boxes = []
    for mask in masks:
        y, x = torch.where(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    instances = Instances(tuple(map_ids.shape))
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.scores = torch.linspace(0.9, 0.5, len(segments))
    instances.pred_classes = torch.tensor([s["category_id"] for s in segments])
    scores = torch.zeros(4, *map_ids.shape)
    for mask, s in zip(masks, segments, strict=True):
        scores[s["category_id"]][mask] = 1
    return {**output, "instances": instances, "sem_seg": scores}


@pytest.fixture
def cfg(tmp_path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    cfg.MODEL.DETR.TEST.INSTANCE_ON = True
    cfg.MODEL.DETR.TEST.SEMANTIC_ON = True
    return cfg


def test_pq_ap_and_miou_in_one_run(panoptic_set, scene, cfg):
    panoptic_set("eval_all", [scene])
    for _ in range(2):  # the derived truth is there the second time
        evaluator = build_evaluator(cfg, "eval_all")
        results = run(evaluator, inputs_of("eval_all"), [all_outputs(*scene)])
        assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
        assert results["segm"]["AP"] == pytest.approx(100)
        assert results["bbox"]["AP-box"] == pytest.approx(100)
        assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    wrong = run(evaluator, inputs_of("eval_all"), [all_outputs(*worse(scene[0]))])
    assert 0 < wrong["sem_seg"]["mIoU"] < 100
    # The ball is cut to 60 of 100 pixels; 9 of them are painted elsewhere.
    assert wrong["sem_seg"]["IoU-ball"] == pytest.approx(100 * 60 / 109)
    assert 0 < wrong["segm"]["AP"] < 100


def test_outputs_that_are_off_are_not_evaluated(panoptic_set, scene, cfg):
    panoptic_set("eval_off", [scene])
    cfg.MODEL.DETR.TEST.INSTANCE_ON = cfg.MODEL.DETR.TEST.SEMANTIC_ON = False
    results = run(
        build_evaluator(cfg, "eval_off"), inputs_of("eval_off"), [panoptic_output(*scene)]
    )
    assert list(results) == ["panoptic_seg"]


def test_coco_evaluator_needs_instances(cfg):
    cfg.MODEL.DETR.TEST.INSTANCE_ON = False
    with pytest.raises(ValueError, match=r"coco_2017_val.*INSTANCE_ON True"):
        build_evaluator(cfg, "coco_2017_val")
