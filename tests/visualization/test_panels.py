import numpy as np

from detr_panoptic_d2.visualization.panels import enlarge, side_by_side, with_caption, with_legend

PICTURE = np.full((30, 90, 3), 7, dtype=np.uint8)


def test_enlarge():
    assert enlarge(PICTURE, 0) is PICTURE
    assert enlarge(PICTURE, 40) is PICTURE
    assert enlarge(PICTURE, 100).shape == (90, 270, 3)
    assert enlarge(np.eye(2, dtype=int), 4).tolist() == np.kron(np.eye(2), np.ones((2, 2))).tolist()


def test_captions_do_not_widen():
    for text in ("", "Truth", "a caption that is much longer than its picture is wide", "日本"):
        picture = with_caption(PICTURE, text, 12)
        assert picture.shape[1] == 90
        assert (picture[-30:] == 7).all()
    # Nothing reaches the right edge.
    assert (picture[:-30, -3:] == 255).all()


def test_legend_wraps():
    few = with_legend(PICTURE, [((255, 0, 0), "a")], 12)
    many = with_legend(PICTURE, [((255, 0, 0), "some words")] * 5, 12)
    assert few.shape[1] == many.shape[1] == 90
    assert many.shape[0] > few.shape[0] > 30
    assert (few[30:] == [255, 0, 0]).all(axis=-1).sum() > 50
    assert (many[30:, -2:] == 255).all()


def test_side_by_side_of_different_heights():
    low = np.full((10, 20, 3), 9, dtype=np.uint8)
    row = side_by_side([PICTURE, low], gap=4)
    assert row.shape == (30, 114, 3)
    assert (row[:10, 94:] == 9).all()
    assert (row[10:, 94:] == 255).all()
    assert (row[:, 90:94] == 255).all()
