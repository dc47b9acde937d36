import numpy as np
import pytest

from detr_panoptic_d2.apps.report.segment_errors import (
    CORRECT,
    ERROR_COLORS,
    IGNORED,
    LOW_OVERLAP,
    MISSED,
    WRONG_CLASS,
    compare,
    draw_errors,
)


def segments(**classes):
    return [{"id": int(name[1:]), "category_id": c} for name, c in classes.items()]


def test_each_kind():
    #                 found  cls  mis  split    void
    annotated = np.array([[1, 1, 2, 70000, 4, 4, 4, 4, 0]])
    found = np.array([[7, 7, 8, 0, 9, 9, 6, 6, 7]])
    kinds, indices = compare(
        annotated, segments(i1=0, i2=1, i70000=0, i4=2), found, segments(i7=0, i8=3, i9=2, i6=2)
    )
    of_pixels = [CORRECT] * 2 + [WRONG_CLASS, MISSED] + [LOW_OVERLAP] * 4 + [IGNORED]
    assert kinds.tolist() == [of_pixels]
    assert indices.tolist() == [[0, 0, 1, 2, 3, 3, 3, 3, -1]]


@pytest.mark.parametrize(("size", "kind"), [(2, LOW_OVERLAP), (3, CORRECT)])
def test_iou_must_be_above_one_half(size, kind):
    found = np.where(np.arange(4) < size, 5, 0)[None]
    kinds = compare(np.ones((1, 4), int), segments(i1=0), found, segments(i5=0))[0]
    assert kinds[0, 0] == kind and kinds[0, 3] == MISSED


def test_void_and_crowd():
    annotated, found = np.array([[1, 1, 0, 0, 0]]), np.full((1, 5), 5)
    kinds = compare(annotated, segments(i1=0), found, segments(i5=0))[0]
    # Void of the ground truth is not in the union.
    assert kinds.tolist() == [[CORRECT, CORRECT, IGNORED, IGNORED, IGNORED]]
    crowd = [{"id": 1, "category_id": 0, "iscrowd": 1}]
    assert (compare(annotated, crowd, found, segments(i5=0))[0] == IGNORED).all()


def test_nothing_annotated_or_nothing_predicted():
    nothing, something = np.zeros((2, 3), int), np.ones((2, 3), int)
    assert (compare(nothing, [], something, segments(i1=0))[0] == IGNORED).all()
    assert (compare(something, segments(i1=0), nothing, [])[0] == MISSED).all()
    assert (compare(nothing, [], nothing, [])[0] == IGNORED).all()


def test_picture(image, panoptic):
    ids, annotated = panoptic
    found = ids.copy()
    found[ids == 3] = 0
    wrong = [dict(s, category_id=2) if s["id"] == 4 else s for s in annotated]
    picture = draw_errors(image, panoptic, (found, wrong), alpha=1.0, min_size=300)
    assert picture.shape == (300, 400, 3)
    colors = [list(color) for color in ERROR_COLORS.values()]
    # Away from edges.
    for row, column, kind in ((57, 40, CORRECT), (22, 7, MISSED), (22, 42, WRONG_CLASS)):
        assert picture[5 * row, 5 * column].tolist() == colors[kind]
    # Ignored pixels are the image in grey.
    pixel = picture[5 * 57, 5 * 77].astype(int)
    assert abs(pixel - image[57, 77] @ [0.299, 0.587, 0.114]).max() <= 1
    nothing = np.zeros_like(ids), []
    assert draw_errors(image, nothing, nothing).shape[1] == 5 * 80
    with pytest.raises(ValueError, match="image is 60 x 80 .* segment ids 30 x 80"):
        draw_errors(image, panoptic, (ids[:30], annotated))
