"""An image of 60 x 80 with its segmentation."""

import numpy as np
import pytest
from detectron2.data import Metadata


@pytest.fixture
def metadata():
    names = ["sky", "ball", "ground"]
    colors = [[120, 180, 250], [210, 40, 40], [40, 120, 60]]
    return Metadata(thing_classes=names, stuff_classes=names, thing_colors=colors)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture
def panoptic():
    """Sky over ground, two balls, and void in a corner."""
    ids = np.full((60, 80), 1)
    ids[30:] = 2
    ids[5:25, 5:25] = 3
    ids[5:25, 25:45] = 4
    ids[50:, 70:] = 0
    segments = [
        {"id": 1, "category_id": 0, "isthing": False},
        {"id": 2, "category_id": 2, "isthing": False},
        {"id": 3, "category_id": 1, "isthing": True, "score": 0.97},
        {"id": 4, "category_id": 1, "isthing": True, "score": 0.91},
    ]
    return ids, segments
