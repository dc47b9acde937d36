"""What holds for every converted map, whatever the objects are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detr_panoptic_d2.prepare.convert.shapes import to_panoptic
from detr_panoptic_d2.prepare.convert.source import Labels, Segment


@st.composite
def maps(draw):
    """Objects of an image: int (H, W), 0 none, and the class index of each."""
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    count = draw(st.integers(0, 6))
    numbers = rng.integers(0, count + 1, size)
    if draw(st.booleans()):
        # Larger patches: every pixel takes the value of one in its row.
        numbers = np.repeat(numbers[:, :1], size[1], axis=1)
    return numbers, rng.integers(0, 2, count).tolist()


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(case=maps(), min_area=st.integers(0, 6), background=st.booleans(), data=st.data())
def test_finished_maps_are_sound(case, min_area, background, data):
    numbers, classes = case
    names = st.sampled_from([None, "1", "2", "3"])
    segments = [Segment(data.draw(names), int(c)) for c in classes]
    categories = [
        {"id": i, "name": str(i), "isthing": int(i < 3), "color": [60 * i, 0, 0]} for i in (1, 2, 3)
    ]
    labels = Labels(numbers.astype(np.int32), segments)
    rest = "3" if background else None
    ids, infos, dropped = to_panoptic(labels, categories, background=rest, min_area=min_area)
    assert {s["id"] for s in infos} == set(np.unique(ids).tolist()) - {0}
    for info in infos:
        rows, columns = np.nonzero(ids == info["id"])
        assert info["area"] == len(rows)
        assert info["area"] >= min_area or info["category_id"] == 3
        x, y, width, height = info["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    stuff = [s for s in infos if s["category_id"] == 3]
    assert len(stuff) <= 1 and 0 <= dropped <= len(segments)
    void = np.isin(numbers, [i + 1 for i, s in enumerate(segments) if s.name is None])
    assert not ids[void].any()
    if background:
        assert ids[~void].all()
