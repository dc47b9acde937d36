import contextlib
import copy
import io
import json
import math
import tempfile

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from panopticapi.evaluation import pq_compute
from PIL import Image

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.evaluation import (
    PanopticEvaluator,
    PanopticInstanceEvaluator,
    PanopticSemanticEvaluator,
    build_evaluator,
)
from detr_panoptic_d2.evaluation.ground_truth import temporary_dataset

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
    before = copy.deepcopy(outputs[0]["panoptic_seg"][1])
    ours = run(PanopticEvaluator("eval_same", str(tmp_path / "ours")), inputs, outputs)
    assert outputs[0]["panoptic_seg"][1] == before
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


def test_a_set_of_the_user_named_things_stays(panoptic_set, scene, cfg):
    panoptic_set("eval_names", [scene])
    mine = MetadataCatalog.get("eval_names_things").set(thing_classes=["mine"])
    names = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    try:
        results = run(
            build_evaluator(cfg, "eval_names"), inputs_of("eval_names"), [all_outputs(*scene)]
        )
        assert results["segm"]["AP"] == pytest.approx(100)
        assert MetadataCatalog.get("eval_names_things") is mine
        assert (set(DatasetCatalog.list()), set(MetadataCatalog.list())) == names
    finally:
        MetadataCatalog.remove("eval_names_things")


def test_no_temporary_folder_is_left(panoptic_set, scene, tmp_path, monkeypatch):
    panoptic_set("eval_left", [scene])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    evaluator = PanopticEvaluator("eval_left")
    evaluator.reset()
    evaluator.process(inputs_of("eval_left"), [panoptic_output(*scene)])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_miou_without_a_labelled_pixel(panoptic_set, scene, cfg):
    panoptic_set("eval_void", [(np.zeros_like(scene[0]), {})])
    evaluator = PanopticSemanticEvaluator("eval_void")
    results = run(evaluator, inputs_of("eval_void"), [all_outputs(*scene)])["sem_seg"]
    assert math.isnan(results["mIoU"])


def test_semantic_results_are_those_of_a_semantic_set(panoptic_set, scene, tmp_path):
    """The same classes written as semantic PNGs, judged by Detectron2's evaluator as it is."""
    root = panoptic_set("eval_sem", [scene])
    classes = np.zeros_like(scene[0], dtype=np.uint8)
    for i, category in scene[1].items():
        classes[scene[0] == i] = CONTIGUOUS[category]
    Image.fromarray(classes).save(root / "semantic.png")
    (item,) = inputs_of("eval_sem")
    outputs = [all_outputs(*worse(scene[0]))]
    ours = run(PanopticSemanticEvaluator("eval_sem"), [item], outputs)["sem_seg"]
    with temporary_dataset(
        lambda: [{**item, "sem_seg_file_name": str(root / "semantic.png")}],
        stuff_classes=["sky", "ball", "ground", "box"],
        ignore_label=255,
    ) as name:
        theirs = run(SemSegEvaluator(name), [item], outputs)["sem_seg"]
    assert ours == pytest.approx(theirs, nan_ok=True)


def test_size_of_semantic_prediction_must_agree(panoptic_set, scene):
    panoptic_set("eval_size", [scene])
    evaluator = PanopticSemanticEvaluator("eval_size")
    evaluator.reset()
    with pytest.raises(UserError, match="000"):
        evaluator.process(inputs_of("eval_size"), [{"sem_seg": torch.zeros(4, 10, 40)}])


def test_two_ranks_share_one_output_folder(panoptic_set, scene, cfg):
    """As on two machines: the first process makes the ground truth, the other one reads it."""
    panoptic_set("eval_ranks", [scene, scene])
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=evaluate_as_rank, args=(rank, cfg, scene, results), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    found = results.get()
    assert found["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert found["segm"]["AP"] == pytest.approx(100)
    assert found["sem_seg"]["mIoU"] == pytest.approx(100)


def evaluate_as_rank(rank, cfg, scene, results):
    torch.set_num_threads(1)  # a thread pool does not survive forking
    store = f"file://{cfg.OUTPUT_DIR}.store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    comm.create_local_process_group(1)  # every process is its machine's only one
    evaluator = build_evaluator(cfg, "eval_ranks")
    found = run(evaluator, inputs_of("eval_ranks")[rank:][:1], [all_outputs(*scene)])
    comm.synchronize()
    if rank == 0:
        results.put(found)


def test_outputs_that_are_off_are_not_evaluated(panoptic_set, scene, cfg):
    panoptic_set("eval_off", [scene])
    cfg.MODEL.DETR.TEST.INSTANCE_ON = cfg.MODEL.DETR.TEST.SEMANTIC_ON = False
    results = run(
        build_evaluator(cfg, "eval_off"), inputs_of("eval_off"), [panoptic_output(*scene)]
    )
    assert list(results) == ["panoptic_seg"]


def test_coco_evaluator_needs_instances(cfg):
    cfg.MODEL.DETR.TEST.INSTANCE_ON = False
    with pytest.raises(ValueError, match=r"INSTANCE_ON is False.*coco_2017_val"):
        build_evaluator(cfg, "coco_2017_val")
