import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from detr_panoptic_d2.apps.report.quality import read_evaluations, rows_of_metrics
from detr_panoptic_d2.evaluation import PanopticEvaluator

CONTIGUOUS = {3: 0, 10: 1, 21: 2, 30: 3}


def output(ids, classes):
    segments = [
        {"id": i, "category_id": CONTIGUOUS[c], "isthing": c in (10, 30)}
        for i, c in classes.items()
    ]
    return {"panoptic_seg": (torch.as_tensor(ids, dtype=torch.int32), segments)}


@pytest.fixture
def evaluate(panoptic_set, tmp_path):
    def run(maps, outputs):
        panoptic_set("quality_set", maps)
        folder = tmp_path / "run" / "inference" / "quality_set"
        evaluator = PanopticEvaluator("quality_set", str(folder))
        evaluator.reset()
        evaluator.process(DatasetCatalog.get("quality_set"), outputs)
        results = evaluator.evaluate()["panoptic_seg"]
        (evaluation,) = read_evaluations(tmp_path / "run")
        return results, evaluation

    return run


def test_same_numbers_as_the_evaluator(evaluate, scene):
    ids, classes = scene
    fewer = np.where(ids == 4, 0, ids), {i: c for i, c in classes.items() if i != 4}
    results, evaluation = evaluate([scene, scene], [output(ids, classes), output(*fewer)])
    for row, suffix in zip(evaluation.groups, ("", "_th", "_st"), strict=True):
        expected = [results[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ")]
        assert [row.pq, row.sq, row.rq] == pytest.approx(expected)
    assert [row.count for row in evaluation.groups] == [4, 2, 2]
    for row in evaluation.classes:
        assert row.pq == pytest.approx(results[f"PQ-{row.name}"])
    assert [(row.name, row.kind, row.count) for row in evaluation.classes] == [
        ("sky", "stuff", 2),
        ("ball", "thing", 2),
        ("ground", "stuff", 2),
        ("box", "thing", 4),
    ]
    worst, best = evaluation.images
    assert (best.image_id, best.pq) == (0, pytest.approx(100))
    # Four of five segments are matched whole, one is missed: 4 / (4 + 1 / 2).
    assert (worst.image_id, worst.tp, worst.fp, worst.fn) == (1, 4, 0, 1)
    assert worst.pq == pytest.approx(100 * 4 / 4.5)
    assert not evaluation.under_way


def test_images_without_segments(evaluate, scene):
    nothing = scene[0] * 0, {}
    _, evaluation = evaluate([scene, nothing], [output(*nothing), output(*nothing)])
    assert [(i.image_id, i.pq) for i in evaluation.images] == [(0, 0)]
    assert [row.pq for row in evaluation.classes] == [0, 0, 0, 0]


def test_under_way(evaluate, scene, tmp_path):
    evaluate([scene], [output(*scene)])
    (tmp_path / "run/inference/quality_set/predictions.rank0.jsonl").touch()
    assert read_evaluations(tmp_path / "run")[0].under_way


def test_no_evaluation(tmp_path):
    assert read_evaluations(tmp_path) == []


def test_rows_of_metrics():
    line = {
        "iteration": 5,
        "a/PQ": 50.0,
        "a/SQ": 80.0,
        "a/RQ": 60.0,
        "a/PQ_th": 40.0,
        "a/PQ-x": 7.0,
    }
    groups, classes = rows_of_metrics(line, "a/")
    assert (groups[0].name, groups[0].pq, groups[0].sq, groups[0].rq) == ("All", 50, 80, 60)
    assert groups[1].pq == 40
    assert math.isnan(groups[2].pq)
    assert [(row.name, row.pq, row.sq) for row in classes] == [("x", 7, None)]
