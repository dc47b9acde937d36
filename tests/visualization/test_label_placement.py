import numpy as np
import pytest

from detr_panoptic_d2.visualization.label_placement import place_labels


def boxes(corners, sizes):
    return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_inside_its_segment_and_near_the_middle():
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:80, 40:160] = True
    ((x, y),) = place_labels([mask], [(40, 12)])
    assert abs(x + 20 - 100) < 10
    assert abs(y + 6 - 50) < 10


def test_middle_of_a_ring_is_on_the_ring():
    y, x = np.mgrid[:200, :200]
    distance = np.hypot(y - 100, x - 100)
    mask = (distance > 55) & (distance < 95)
    ((left, top),) = place_labels([mask], [(30, 12)])
    assert mask[int(top) : int(top) + 12, int(left) : int(left) + 30].mean() > 0.9


def test_labels_of_one_place_keep_apart():
    """Four thin segments beside each other, each narrower than its label."""
    masks = [np.zeros((300, 300), dtype=bool) for _ in range(4)]
    for i, mask in enumerate(masks):
        mask[50:250, 130 + 8 * i : 138 + 8 * i] = True
    sizes = [(60, 14)] * 4
    corners = place_labels(masks, sizes)
    assert None not in corners
    placed = boxes(corners, sizes)
    for i in range(4):
        for j in range(i):
            assert overlap(placed[i], placed[j]) < 0.05 * 60 * 14


def test_label_without_room_is_left_out():
    masks = [np.zeros((20, 40), dtype=bool) for _ in range(3)]
    masks[0][:] = True
    masks[1][2:4, 2:4] = True
    masks[2][6:8, 6:8] = True
    corners = place_labels(masks, [(40, 20)] * 3)
    assert corners[0] is not None
    assert corners[1:] == [None, None]


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (1000, 3), (777, 1333)])
def test_always_inside_the_image(shape):
    rng = np.random.default_rng(0)
    masks = [np.zeros(shape, dtype=bool) for _ in range(3)]
    for mask in masks:
        mask[rng.integers(shape[0]), rng.integers(shape[1])] = True
    sizes = [(70.5, 15.2)] * 3
    for corner in filter(None, place_labels(masks, sizes)):
        x, y = corner
        assert 0 <= x <= max(0, shape[1] - 70.5) + 1e-6
        assert 0 <= y <= max(0, shape[0] - 15.2) + 1e-6


def test_no_labels():
    assert place_labels([], []) == []
