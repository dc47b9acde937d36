"""Tiles of large images, by a segmentation that is right everywhere."""

import numpy as np
import pytest

from detr_panoptic_d2.export.runtime import Tile, segment_tiled


def segmentation(categories, confidence=lambda ids: 200 + 0 * ids):
    """Return a function that reads ids from the red channel: 1 to 9 are stuff, others things."""

    def segment(image):
        numbers, ids = np.unique(image[..., 0], return_inverse=True)
        ids = ids.reshape(image.shape[:2]) + (numbers[0] != 0)
        segments = [
            {"category_id": categories[n], "isthing": n > 9, "score": n / 255}
            for n in numbers[numbers > 0].tolist()
        ]
        return Tile(ids, segments, confidence(image[..., 0]).astype(np.uint8))

    return segment


def as_image(ids):
    return np.repeat(ids[..., None], 3, axis=2).astype(np.uint8)


def test_stuff_and_things_across_tiles():
    """Two kinds of stuff; a thing over four tiles of 100, one beside it, one in each far corner;
    void, which loses to every segment."""
    world, categories = np.full((180, 180), 1), {1: 5, 2: 6, 20: 7, 21: 7, 22: 7, 23: 8}
    world[90:] = 2
    world[60:120, 60:120] = 20
    world[60:120, 120:150] = 21
    world[:9, :9], world[-9:, -9:] = 22, 23
    world[130:140] = 0
    ids, segments = segment_tiled(segmentation(categories), as_image(world), 100, 0.2)
    assert [s["id"] for s in segments] == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(ids > 0, world > 0)
    for segment in segments:
        (number,) = np.unique(world[ids == segment["id"]])
        assert np.array_equal(world == number, ids == segment["id"])
        assert segment["area"] == (world == number).sum()
        assert segment["category_id"] == categories[number]
        assert segment["score"] == number / 255


def test_the_more_certain_tile_wins_where_tiles_overlap():
    """Pixels of the left tile are right, those of the right tile are wrong but less certain; near
    its border a tile counts less."""
    categories = {1: 5, 2: 6}
    tiles = iter([np.full((100, 100), 1), np.full((100, 100), 2)])
    certain = {1: 200, 2: 100}

    def segment(image):
        part = as_image(next(tiles))
        return segmentation(categories, lambda ids: np.vectorize(certain.get)(ids))(part)

    ids, segments = segment_tiled(segment, as_image(np.zeros((100, 160))), 100, 0.4)
    assert [s["category_id"] for s in segments] == [5, 6]
    columns = ids[0].tolist()
    assert (ids == ids[0]).all() and columns == sorted(columns)
    # Votes are 200 (100 - x) and 100 (x - 59), both over 40.
    assert columns.index(2) == pytest.approx(60 + 2 / 3 * 40, abs=1)
