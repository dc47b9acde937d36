"""The kinds of errors in a report, and that their lost PQ adds up."""

import numpy as np
import pytest
from panopticapi.evaluation import PQStat

from detr_panoptic_d2.apps.report.errors import SegmentErrors
from detr_panoptic_d2.evaluation.pq import average, count_matches


def test_lost_pq_adds_up_to_what_is_missing():
    rng = np.random.default_rng(0)
    for _ in range(30):
        errors, stat = SegmentErrors(), PQStat()
        for _ in range(3):
            truth = rng.integers(0, 6, (4, 5)).repeat(6, 0).repeat(6, 1)
            prediction = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 6), truth)
            prediction = np.roll(prediction, int(rng.integers(0, 4)), 1)
            image = []
            for ids in (truth, prediction):
                present = np.setdiff1d(ids, [0]).tolist()
                segments = [{"id": i, "category_id": int(rng.integers(1, 4))} for i in present]
                image += [ids, segments]
            if image[1]:
                image[1][0]["iscrowd"] = int(rng.integers(0, 2))
            errors.add_image(*image)
            stat += count_matches(*image)
        pq = 100 * average(stat, {c: {} for c in range(1, 4)})["pq"]
        assert 100 - sum(errors.lost_pq().values()) == pytest.approx(pq)


def test_each_kind_of_error():
    truth = np.zeros((10, 60), np.int64)
    truth[:, :10], truth[:, 10:20], truth[:, 20:30], truth[:, 30:40] = 1, 2, 3, 4
    truth[:, 40:50] = 5
    prediction = np.zeros_like(truth)
    prediction[:8, :10], prediction[8:, :10] = 1, 2  # matched, and a second time
    prediction[:, 10:20] = 3  # another class
    prediction[:4, 20:30] = 4  # IoU 0.4
    prediction[:, 40:50] = 6  # 4 is missed; here is a crowd
    prediction[:, 50:] = 5  # on void
    annotated = [{"id": i, "category_id": 1} for i in range(1, 5)]
    annotated.append({"id": 5, "category_id": 1, "iscrowd": 1})
    classes = {1: 1, 2: 1, 3: 2, 4: 1, 5: 1, 6: 2}
    predicted = [{"id": i, "category_id": c} for i, c in classes.items()]
    errors = SegmentErrors()
    errors.add_image(truth, annotated, prediction, predicted)
    assert errors.confusion == {(1, 1): 1, (1, 2): 1, (1, None): 2, (None, 1): 2, (None, 2): 1}
    assert dict(errors.losses["outline"]) == {1: pytest.approx(0.2 + 0.5 + 0.5)}
    assert errors.losses["class"] == {1: 0.5, 2: 0.5}
    assert errors.losses["double"] == {1: 0.5} and errors.losses["missed"] == {1: 0.5}
    assert errors.losses["invented"] == {2: 0.5}
