"""Fixtures of the data tests: a small panoptic set on disk, and its registration undone."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CATEGORIES = [
    {"id": 50, "name": "road", "isthing": 0},
    {"id": 4, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 9, "name": "tree", "isthing": 0},
]


class SmallSet:
    """Two images of 12 wide and 8 high, in a subfolder; ``content`` can be changed and saved."""

    def __init__(self, root: Path):
        self.image_root, self.panoptic_root = root / "images", root / "panoptic"
        self.panoptic_json = root / "panoptic.json"
        (self.image_root / "sub").mkdir(parents=True)
        self.panoptic_root.mkdir()
        self.ids = np.zeros((8, 12), np.uint32)
        self.ids[:, 2:] = 70000
        self.ids[2:5, 4:8] = 300
        self.content = {
            "categories": [dict(c) for c in CATEGORIES],
            "images": [],
            "annotations": [],
        }
        for index, name in enumerate(("sub/a.png", "b.tif")):
            rng = np.random.default_rng(index)
            Image.fromarray(rng.integers(0, 255, (8, 12, 3), np.uint8)).save(self.image_root / name)
            self.save_ids(f"{index}.png")
            self.content["images"].append(
                {"id": 10 + index, "file_name": name, "height": 8, "width": 12}
            )
            segments = [
                {"id": 70000, "category_id": 50, "iscrowd": 0, "area": 68, "bbox": [2, 0, 10, 8]},
                {"id": 300, "category_id": 4, "iscrowd": 0, "area": 12, "bbox": [4, 2, 4, 3]},
            ]
            self.content["annotations"].append(
                {"image_id": 10 + index, "file_name": f"{index}.png", "segments_info": segments}
            )
        self.save()

    def save_ids(self, name: str) -> None:
        rgb = np.stack([self.ids & 255, self.ids >> 8 & 255, self.ids >> 16], -1).astype(np.uint8)
        Image.fromarray(rgb).save(self.panoptic_root / name)

    def save(self) -> None:
        self.panoptic_json.write_text(json.dumps(self.content))

    @property
    def paths(self) -> dict[str, str]:
        return {
            "image_root": str(self.image_root),
            "panoptic_root": str(self.panoptic_root),
            "panoptic_json": str(self.panoptic_json),
        }


@pytest.fixture
def small_set(tmp_path: Path) -> SmallSet:
    return SmallSet(tmp_path / "small")


@pytest.fixture
def clean_catalogs():
    """Forget the data sets that a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def masks_boxes_and_areas(ids, segment_ids):
    """What the package computes by runs, one segment at a time."""
    masks = np.array([ids == i for i in segment_ids], bool).reshape(-1, *ids.shape)
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            y, x = np.nonzero(mask)
            box[:] = x.min(), y.min(), x.max(), y.max()
    return masks, boxes, masks.sum((1, 2))
