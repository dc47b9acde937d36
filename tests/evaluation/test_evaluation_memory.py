"""Memory while a large set is evaluated is flat: ``pytest -m slow -s`` shows the curve."""

import gc
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances

from detr_panoptic_d2.data.masks import panoptic_png_to_ids
from detr_panoptic_d2.data.register import _registered, register_panoptic
from detr_panoptic_d2.data.shapes import make_shapes
from detr_panoptic_d2.evaluation import (
    PanopticEvaluator,
    PanopticInstanceEvaluator,
    PanopticSemanticEvaluator,
    PanopticTruth,
)

IMAGES, SIZE, INSTANCES = 2000, 96, 100
STEP = 200


def resident():
    """MiB of memory that this process has."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def output_of(item):
    """The truth as prediction, and 100 instances as DETR has them."""
    ids = torch.from_numpy(panoptic_png_to_ids(item["pan_seg_file_name"]).astype(np.int32))
    segments = [
        {k: s[k] for k in ("id", "isthing", "category_id")} | {"score": 0.9}
        for s in item["segments_info"]
    ]
    masks = torch.stack([ids == s["id"] for s in segments])
    instances = Instances((SIZE, SIZE))
    rng = np.random.default_rng(item["image_id"])
    chosen = torch.from_numpy(rng.integers(0, len(masks), INSTANCES))
    shifts = rng.integers(-40, 40, (INSTANCES, 2)).tolist()
    instances.pred_masks = torch.stack(
        [masks[i].roll(s, (0, 1)) for i, s in zip(chosen.tolist(), shifts, strict=True)]
    )
    instances.pred_boxes = Boxes(torch.tensor([[8.0, 8, 40, 40]]).repeat(INSTANCES, 1))
    instances.scores = torch.from_numpy(rng.random(INSTANCES, dtype=np.float32))
    instances.pred_classes = torch.tensor([0, 1, 2])[chosen % 3]
    scores = torch.zeros(5, SIZE, SIZE)
    for mask, s in zip(masks, segments, strict=True):
        scores[s["category_id"]][mask] = 1
    return {"panoptic_seg": (ids, segments), "instances": instances, "sem_seg": scores}


def curve(evaluator, items):
    """Memory after every STEP images, in MiB above that before the first."""
    evaluator.reset()
    gc.collect()
    begin, found = resident(), []
    for number, item in enumerate(items, 1):
        evaluator.process([item], [output_of(item)])
        if number % STEP == 0:
            gc.collect()
            found.append(round(resident() - begin, 1))
    return found


@pytest.fixture
def name(tmp_path):
    paths = make_shapes(tmp_path, "many", IMAGES, size=SIZE, seed=0)
    register_panoptic("many_shapes", **vars(paths))
    yield "many_shapes"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("many_shapes")
    _registered.pop("many_shapes")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(name, tmp_path):
    items, truth = DatasetCatalog.get(name), PanopticTruth(name)
    output = str(tmp_path / "out")
    ours = DatasetEvaluators(
        [
            PanopticEvaluator(name, output, truth),
            PanopticInstanceEvaluator(truth, output),
            PanopticSemanticEvaluator(truth, output),
        ]
    )
    # Everything that is loaded on first use.
    curve(ours, items[:STEP])
    flat = curve(ours, items)
    print(f"\nimages                 {[STEP * (i + 1) for i in range(len(flat))]}")
    print(f"this package, MiB      {flat}")
    instances = COCOEvaluator("many_shapes_things", output_dir=str(tmp_path / "d2"))
    detectron2 = DatasetEvaluators([COCOPanopticEvaluator(name, str(tmp_path / "d2")), instances])
    print(f"Detectron2's own, MiB  {curve(detectron2, items)}")
    assert flat[-1] - flat[0] < 8
    results = ours.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
