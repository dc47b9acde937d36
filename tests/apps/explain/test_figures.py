import io

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic_d2.apps.explain.context import shape
from detr_panoptic_d2.apps.explain.figures import (
    Panel,
    SharedBar,
    _apart,
    columns_for,
    draw_sheet,
    in_rows,
)
from detr_panoptic_d2.apps.explain.image_stages import principal_components


def ink(png):
    """Bool H x W: what is not white."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return pixels < 250


@pytest.mark.parametrize(("count", "aspect"), [(1, 0.4), (2, 2.5), (5, 1.0), (7, 0.7)])
def test_nothing_is_cut_off(count, aspect):
    panels = [
        Panel(np.full((3, 4), i), "q12 a-class-with-a-long-name-merged 0.98", bar=True)
        for i in range(count)
    ]
    rows = in_rows(panels, columns_for(count, 600))
    bar = SharedBar("amount", "viridis", (0, 1))
    labels = ["image 1: x 100, y 100" for _ in rows]
    marks = ink(draw_sheet(rows, aspect, width=600, row_labels=labels, shared_bar=bar))
    assert marks.shape[1] <= 600
    for edge in (marks[0], marks[-1], marks[:, 0], marks[:, -1]):
        assert not edge.any()


def test_value_range():
    assert Panel(np.array([[1.0, np.nan, 3.0]])).value_range() == (1, 3)
    low, high = Panel(np.full((2, 2), 5.0)).value_range()
    assert low == 5 < high
    assert Panel(np.full((2, 2), np.nan)).value_range() == (0, 1)


def test_texts_keep_apart_and_inside():
    texts = [(0.5, 0.0, "q1 sky 1.00")] * 4 + [(1.0, 1.0, "q2 ground 1.00")]
    places = _apart(texts, 300, 300)
    heights = sorted(y for _, y in places[:4])
    assert all(b - a >= 18 / 300 - 1e-9 for a, b in zip(heights, heights[1:], strict=False))
    assert all(0 < x < 1 and 0 < y < 1 for x, y in places)
    # No room at all: they stay where they belong.
    assert len(set(_apart(texts[:4], 300, 20))) == 1


def test_principal_components():
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2, 8, 4, 5, generator=generator)
    memory[:, 2] *= 20
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, :, 3:] = True
    memory[1, :, :, 3:] = 1e6
    components = principal_components(memory, padding)
    assert components.shape == (2, 3, 4, 5)
    assert np.isnan(components[1, :, :, 3:]).all()
    assert not np.isnan(components[0]).any()
    valid = (~padding).numpy()
    first, channel = components[:, 0][valid], memory[:, 2].numpy()[valid]
    assert abs(np.corrcoef(first, channel)[0, 1]) > 0.99


def test_shape():
    assert shape(torch.zeros(2, 3)) == "2 x 3"
    assert shape((1, 4)) == "1 x 4"
