import numpy as np
import pytest

from detr_panoptic_d2.data.label_maps import ids_to_labels, label_boxes_and_areas
from tests.panoptic_set import masks_boxes_and_areas


@pytest.mark.parametrize("segments", [0, 1, 5, 254, 255, 256, 300])
@pytest.mark.parametrize("void", [False, True])
def test_equals_one_segment_at_a_time(segments, void):
    """Up to 255 labels are bytes; ids that are not listed count as void."""
    rng = np.random.default_rng(segments)
    known = rng.choice(np.arange(1, 1 << 24), segments + 2, replace=False)
    for height, width in ((1, 1), (1, 9), (9, 1), (7, 8), (40, 30)):
        ids = rng.choice([*known, 0] if void else known, (height, width)).astype(np.uint32)
        labels, unnamed = ids_to_labels(ids, known[:segments])
        boxes, areas = label_boxes_and_areas(labels, segments)
        masks = labels == np.arange(1, segments + 1)[:, None, None]
        expected = masks_boxes_and_areas(ids, known[:segments])
        for found, wanted in zip((masks, boxes, areas), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert boxes.dtype == np.float32
        assert labels.dtype == (np.uint8 if segments < 256 else np.uint16)
        assert set(unnamed) == set(ids.reshape(-1).tolist()) - {0, *known[:segments].tolist()}
