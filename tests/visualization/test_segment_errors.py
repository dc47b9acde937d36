import numpy as np
import pytest

from detr_panoptic_d2.visualization.segment_errors import (
    CORRECT,
    IGNORED,
    MISSED,
    WRONG_CLASS,
    WRONG_SEGMENT,
    compare,
)


def segments(**classes):
    return [{"id": int(name[1:]), "category_id": c} for name, c in classes.items()]


def test_each_kind():
    #                 found  cls  mis  split    void
    annotated = np.array([[1, 1, 2, 70000, 4, 4, 4, 4, 0]])
    found = np.array([[7, 7, 8, 0, 9, 9, 6, 6, 7]])
    errors = compare(
        annotated, segments(i1=0, i2=1, i70000=0, i4=2), found, segments(i7=0, i8=3, i9=2, i6=2)
    )
    expected = [CORRECT] * 2 + [WRONG_CLASS, MISSED] + [WRONG_SEGMENT] * 4 + [IGNORED]
    assert errors.kinds.tolist() == [expected]
    assert errors.annotated.tolist() == [[0, 0, 1, 2, 3, 3, 3, 3, -1]]
    assert errors.predicted.tolist() == [[0, 0, 1, -1, 2, 2, 3, 3, 0]]


def test_iou_must_be_above_one_half():
    annotated = np.array([[1, 1, 1, 1]])
    for size, kind in ((2, WRONG_SEGMENT), (3, CORRECT)):
        found = np.where(np.arange(4) < size, 5, 0)[None]
        kinds = compare(annotated, segments(i1=0), found, segments(i5=0)).kinds
        assert kinds[0, 0] == kind
        assert kinds[0, 3] == MISSED


def test_void_of_the_ground_truth_is_not_in_the_union():
    annotated = np.array([[1, 1, 0, 0, 0]])
    found = np.full((1, 5), 5)
    kinds = compare(annotated, segments(i1=0), found, segments(i5=0)).kinds
    assert kinds.tolist() == [[CORRECT, CORRECT, IGNORED, IGNORED, IGNORED]]


def test_crowd_is_ignored():
    annotated = [{"id": 1, "category_id": 0, "iscrowd": 1}]
    kinds = compare(np.ones((2, 2), int), annotated, np.ones((2, 2), int), segments(i1=0)).kinds
    assert (kinds == IGNORED).all()


def test_nothing_true_or_nothing_predicted():
    nothing, something = np.zeros((2, 3), int), np.ones((2, 3), int)
    assert (compare(nothing, [], something, segments(i1=0)).kinds == IGNORED).all()
    assert (compare(something, segments(i1=0), nothing, []).kinds == MISSED).all()
    assert (compare(nothing, [], nothing, []).kinds == IGNORED).all()


def test_sizes_differ():
    with pytest.raises(ValueError, match=r"ground truth is 2 x 3 .* prediction 3 x 2"):
        compare(np.zeros((2, 3)), [], np.zeros((3, 2)), [])
