"""The errors in a report: of pixels, of segments, and that their lost PQ adds up."""

import numpy as np
import pytest
from panopticapi.evaluation import PQStat

from detr_panoptic_d2.apps.report.errors import (
    CORRECT,
    ERROR_COLORS,
    IGNORED,
    LOW_OVERLAP,
    MISSED,
    WRONG_CLASS,
    SegmentErrors,
    compare_pixels,
    draw_errors,
)
from detr_panoptic_d2.evaluation.pq import average, count_matches


def with_classes(ids, classes):
    ids = np.atleast_2d(ids)
    return ids, [{"id": i, "category_id": c} for i, c in classes.items()]


def test_lost_pq_adds_up_to_what_is_missing():
    rng = np.random.default_rng(0)
    for _ in range(30):
        errors, stat = SegmentErrors(), PQStat()
        for _ in range(3):
            truth = rng.integers(0, 6, (4, 5)).repeat(6, 0).repeat(6, 1)
            prediction = np.where(rng.random(truth.shape) < 0.3, rng.integers(0, 6), truth)
            prediction = np.roll(prediction, int(rng.integers(0, 4)), 1)
            if rng.random() < 0.3:
                # Then most of a prediction is void, and the rest may be of another class.
                truth[rng.random(truth.shape) < 0.7] = 0
            pair = [
                with_classes(ids, {int(i): int(rng.integers(1, 4)) for i in np.unique(ids) if i})
                for ids in (truth, prediction)
            ]
            if pair[0][1]:
                pair[0][1][0]["iscrowd"] = int(rng.integers(0, 2))
            errors.add_image(*pair)
            stat += count_matches(*pair[0], *pair[1])
        pq = 100 * average(stat, {c: {} for c in range(1, 4)})["pq"]
        assert 100 - sum(errors.lost_pq().values()) == pytest.approx(pq)


def test_each_kind_of_segment_error():
    truth = np.zeros((10, 60), np.int64)
    truth[:, :10], truth[:, 10:20], truth[:, 20:30], truth[:, 30:40] = 1, 2, 3, 4
    truth[:, 40:50] = 5
    prediction = np.zeros_like(truth)
    prediction[:8, :10], prediction[8:, :10] = 1, 2  # matched, and a second time
    prediction[:, 10:20] = 3  # another class
    prediction[:4, 20:30] = 4  # IoU 0.4
    prediction[:, 40:50] = 6  # 4 is missed; here is a crowd
    prediction[:, 50:] = 5  # on void
    annotated = with_classes(truth, dict.fromkeys(range(1, 6), 1))
    annotated[1][-1]["iscrowd"] = 1
    errors = SegmentErrors()
    errors.add_image(annotated, with_classes(prediction, {1: 1, 2: 1, 3: 2, 4: 1, 5: 1, 6: 2}))
    assert errors.confusion == {(1, 1): 1, (1, 2): 1, (1, None): 2, (None, 1): 2, (None, 2): 1}
    assert dict(errors.losses["outline"]) == {1: pytest.approx(0.2 + 0.5 + 0.5)}
    assert errors.losses["class"] == {1: 0.5, 2: 0.5}
    assert errors.losses["double"] == {1: 0.5} and errors.losses["missed"] == {1: 0.5}
    assert errors.losses["invented"] == {2: 0.5}


ONE = {1: 0}


@pytest.mark.parametrize(
    ("annotated", "classes", "predicted", "predicted_classes", "kinds"),
    [
        (  # found, another class, missed, split, void
            [1, 1, 2, 70000, 4, 4, 4, 4, 0],
            {1: 0, 2: 1, 70000: 0, 4: 2},
            [7, 7, 8, 0, 9, 9, 6, 6, 7],
            {7: 0, 8: 3, 9: 2, 6: 2},
            [CORRECT] * 2 + [WRONG_CLASS, MISSED] + [LOW_OVERLAP] * 4 + [IGNORED],
        ),
        # IoU must be above one half.
        ([1, 1, 1, 1], ONE, [5, 5, 0, 0], {5: 0}, [LOW_OVERLAP] * 2 + [MISSED] * 2),
        ([1, 1, 1, 1], ONE, [5, 5, 5, 0], {5: 0}, [CORRECT] * 3 + [MISSED]),
        # Void of the ground truth is not in the union.
        ([1, 1, 0, 0, 0], ONE, [5] * 5, {5: 0}, [CORRECT] * 2 + [IGNORED] * 3),
        ([0, 0], {}, [1, 1], ONE, [IGNORED] * 2),
        ([1, 1], ONE, [0, 0], {}, [MISSED] * 2),
    ],
)
def test_each_kind_of_pixel(annotated, classes, predicted, predicted_classes, kinds):
    truth = with_classes(annotated, classes)
    assert compare_pixels(truth, with_classes(predicted, predicted_classes)).tolist() == [kinds]
    for segment in truth[1]:
        segment["iscrowd"] = 1
    assert (compare_pixels(truth, with_classes(predicted, predicted_classes)) == IGNORED).all()


def test_picture_of_the_errors(image, panoptic):
    ids, annotated = panoptic
    predicted = np.where(ids == 3, 0, ids)
    wrong = [dict(s, category_id=2) if s["id"] == 4 else s for s in annotated]
    picture = draw_errors(image, panoptic, (predicted, wrong), 300)
    assert picture.shape == (300, 400, 3)
    colors = list(ERROR_COLORS.values())
    # Away from edges.
    for row, column, kind in ((57, 40, CORRECT), (22, 7, MISSED), (22, 42, WRONG_CLASS)):
        expected = 0.4 * image[row, column].mean() + 0.6 * np.array(colors[kind])
        assert np.abs(picture[5 * row, 5 * column] - expected).max() <= 1
    # Ignored pixels are the image in grey.
    assert np.abs(picture[5 * 57, 5 * 77] - image[57, 77].mean()).max() <= 1
