import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from panopticapi.evaluation import pq_compute
from PIL import Image

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.evaluation import (
    PanopticEvaluator,
    PanopticInstanceEvaluator,
    PanopticSemanticEvaluator,
    build_evaluator,
)
from detr_panoptic_d2.evaluation.ground_truth import temporary_dataset

CONTIGUOUS = {3: 0, 10: 1, 21: 2, 30: 3}
THINGS = {1, 3}


@pytest.fixture
def cfg(tmp_path):
    on = [x for kind in ("INSTANCE", "SEMANTIC") for x in (f"MODEL.DETR.TEST.{kind}_ON", True)]
    return merged_cfg("", ["MODEL.MASK_ON", True, *on, "OUTPUT_DIR", str(tmp_path / "output")])


def outputs_of(ids, classes):
    """Panoptic map, masks of all segments as instances, and one-hot scores."""
    segments = [
        {"id": i, "isthing": CONTIGUOUS[c] in THINGS, "category_id": CONTIGUOUS[c], "score": 1.0}
        for i, c in classes.items()
    ]
    ids = torch.as_tensor(ids, dtype=torch.int32)
    masks = torch.stack([ids == i for i in classes] or [ids > 0])
    boxes, scores = [], torch.zeros(4, *ids.shape)
    for mask, segment in zip(masks, segments, strict=False):
        y, x = torch.where(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
        scores[segment["category_id"]][mask] = 1
    instances = Instances(tuple(ids.shape))
    instances.pred_masks = masks[: len(segments)]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(segments))
    instances.pred_classes = torch.tensor([s["category_id"] for s in segments], dtype=torch.int64)
    return {"panoptic_seg": (ids, segments), "instances": instances, "sem_seg": scores}


def worse(ids):
    """A prediction with errors of each kind."""
    ids = ids.copy()
    ids[10:14, 4:14] = 1
    ids[18:28, 6:14] = 2
    ids[0:3, 0:3] = 9
    return ids, {1: 3, 2: 21, 70000: 10, 5: 30, 9: 10}


def run(evaluator, name, *outputs):
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(name)[: len(outputs)], list(outputs))
    return evaluator.evaluate()


def test_same_numbers_as_detectron2_and_panopticapi(panoptic_set, scene, tmp_path):
    root = panoptic_set("eval_same", [scene, (*scene, {5})])
    outputs = [outputs_of(*worse(scene[0])), outputs_of(*scene)]
    before = copy.deepcopy(outputs[0]["panoptic_seg"][1])
    ours = run(PanopticEvaluator("eval_same", str(tmp_path / "ours")), "eval_same", *outputs)
    assert outputs[0]["panoptic_seg"][1] == before
    stock = COCOPanopticEvaluator("eval_same", str(tmp_path / "theirs"))
    for key, value in run(stock, "eval_same", *outputs)["panoptic_seg"].items():
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
    evaluator = PanopticEvaluator("eval_partial")
    results = run(evaluator, "eval_partial", outputs_of(ids, classes))["panoptic_seg"]
    assert math.isnan(results["PQ" + missing])
    if classes:
        assert results["PQ"] == pytest.approx(100)


def test_nothing_predicted_and_no_areas_in_the_json(panoptic_set, scene, tmp_path):
    root = panoptic_set("eval_none", [scene])
    content = json.loads((root / "panoptic.json").read_text())
    for segment in content["annotations"][0]["segments_info"]:
        del segment["area"], segment["iscrowd"]
    (root / "panoptic.json").write_text(json.dumps(content))
    evaluator = PanopticEvaluator("eval_none", str(tmp_path / "out"))
    nothing = outputs_of(np.zeros_like(scene[0]), {})
    assert run(evaluator, "eval_none", nothing)["panoptic_seg"]["PQ"] == 0
    assert run(evaluator, "eval_none", outputs_of(*scene))["panoptic_seg"]["PQ"] == 100


def test_an_image_counts_once(panoptic_set, scene):
    panoptic_set("eval_twice", [scene])
    inputs = DatasetCatalog.get("eval_twice") * 2
    evaluator = PanopticEvaluator("eval_twice")
    evaluator.reset()
    evaluator.process(inputs, [outputs_of(*scene), outputs_of(*worse(scene[0]))])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)


@pytest.mark.parametrize("kind", [PanopticEvaluator, PanopticSemanticEvaluator])
def test_sizes_of_prediction_and_png_must_agree(panoptic_set, scene, kind):
    panoptic_set("eval_size", [scene])
    small = outputs_of(scene[0][:10], {1: 3, 70000: 10})
    with pytest.raises(ValueError, match=r"000\.png is 10 x 40 .* 32 x 40"):
        run(kind("eval_size"), "eval_size", small)


def test_instances_from_panoptic(panoptic_set, scene, tmp_path):
    panoptic_set("eval_instances", [(*scene, {5})])
    PanopticInstanceEvaluator("eval_instances", str(tmp_path / "out"))
    (path,) = (tmp_path / "out").glob("*.json")
    made = json.loads(path.read_text())
    assert [c["name"] for c in made["categories"]] == ["ball", "box"]
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in made["annotations"]] == [
        (10, 0, 100),
        (30, 0, 80),
        (30, 1, 140),
    ]
    assert made["annotations"][0]["bbox"] == [4, 4, 10, 10]


def test_pq_ap_and_miou_in_one_run(panoptic_set, scene, cfg):
    panoptic_set("eval_all", [scene])
    names = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    for _ in range(2):  # the json of the instances is there the second time
        evaluator = build_evaluator(cfg, "eval_all")
        results = run(evaluator, "eval_all", outputs_of(*scene))
        for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ-ball", "PQ-sky"):
            assert results["panoptic_seg"][key] == pytest.approx(100)
        assert results["segm"]["AP"] == pytest.approx(100)
        assert results["bbox"]["AP-box"] == pytest.approx(100)
        assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert (set(DatasetCatalog.list()), set(MetadataCatalog.list())) == names
    wrong = run(evaluator, "eval_all", outputs_of(*worse(scene[0])))
    assert 0 < wrong["sem_seg"]["mIoU"] < 100
    # The ball is cut to 60 of 100 pixels; 9 of them are painted elsewhere.
    assert wrong["sem_seg"]["IoU-ball"] == pytest.approx(100 * 60 / 109)
    assert 0 < wrong["segm"]["AP"] < 100


def test_miou_without_a_labelled_pixel(panoptic_set, scene):
    panoptic_set("eval_void", [(np.zeros_like(scene[0]), {})])
    evaluator = PanopticSemanticEvaluator("eval_void")
    assert math.isnan(run(evaluator, "eval_void", outputs_of(*scene))["sem_seg"]["mIoU"])


def test_semantic_results_are_those_of_a_semantic_set(panoptic_set, scene):
    """The same classes written as semantic PNGs, judged by Detectron2's evaluator as it is."""
    root = panoptic_set("eval_sem", [scene])
    classes = np.zeros_like(scene[0], dtype=np.uint8)
    for i, category in scene[1].items():
        classes[scene[0] == i] = CONTIGUOUS[category]
    Image.fromarray(classes).save(root / "semantic.png")
    (item,) = DatasetCatalog.get("eval_sem")
    outputs = outputs_of(*worse(scene[0]))
    ours = run(PanopticSemanticEvaluator("eval_sem"), "eval_sem", outputs)["sem_seg"]
    with temporary_dataset(
        lambda: [{**item, "sem_seg_file_name": str(root / "semantic.png")}],
        stuff_classes=["sky", "ball", "ground", "box"],
        ignore_label=255,
    ) as name:
        theirs = run(SemSegEvaluator(name), name, outputs)["sem_seg"]
    assert ours == pytest.approx(theirs, nan_ok=True)


def test_two_ranks_share_one_output_folder(panoptic_set, scene, cfg):
    """As on two machines: one process makes the json of the instances, the other one reads it."""
    panoptic_set("eval_ranks", [scene, scene, scene])
    outputs = [outputs_of(*scene), outputs_of(*worse(scene[0])), outputs_of(*scene)]
    alone = run(PanopticEvaluator("eval_ranks"), "eval_ranks", *outputs)
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=evaluate_as_rank, args=(rank, cfg, outputs, results), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    together = results.get()
    assert together["panoptic_seg"] == alone["panoptic_seg"]
    assert 0 < together["segm"]["AP"] < 100
    assert 0 < together["sem_seg"]["mIoU"] < 100


def evaluate_as_rank(rank, cfg, outputs, results):
    torch.set_num_threads(1)  # a thread pool does not survive forking
    store = f"file://{cfg.OUTPUT_DIR}.store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    comm.create_local_process_group(1)  # every process is its machine's only one
    evaluator = build_evaluator(cfg, "eval_ranks")
    evaluator.reset()
    # The second image comes first, as if by rank 0.
    share = [[1], [0, 2]][rank]
    items = DatasetCatalog.get("eval_ranks")
    evaluator.process([items[i] for i in share], [outputs[i] for i in share])
    result = evaluator.evaluate()
    comm.synchronize()
    if rank == 0:
        results.put(result)


def test_outputs_that_are_off(panoptic_set, scene, cfg):
    panoptic_set("eval_off", [scene])
    cfg.MODEL.DETR.TEST.INSTANCE_ON = cfg.MODEL.DETR.TEST.SEMANTIC_ON = False
    results = run(build_evaluator(cfg, "eval_off"), "eval_off", outputs_of(*scene))
    assert list(results) == ["panoptic_seg"]
    with pytest.raises(ValueError, match=r"INSTANCE_ON is False.*coco_2017_val"):
        build_evaluator(cfg, "coco_2017_val")
