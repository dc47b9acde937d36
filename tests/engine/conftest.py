import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

import detr_panoptic_d2  # noqa: F401
from detr_panoptic_d2.data.register import register_panoptic

# Ids with gaps, and a thing between two stuff classes.
CATEGORIES = [
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 10, "name": "ball", "isthing": 1},
    {"id": 21, "name": "ground", "isthing": 0},
    {"id": 30, "name": "box", "isthing": 1},
]


@pytest.fixture
def panoptic_set(tmp_path):
    """Make and register a data set: ``panoptic_set("name", maps)``.

    Each map is (H x W ids, {id: category id}) or (ids, categories, {ids that are crowd}).
    """
    names = []

    def make(name, maps, categories=CATEGORIES):
        root = tmp_path / name
        for folder in ("images", "panoptic"):
            (root / folder).mkdir(parents=True)
        images, annotations = [], []
        rng = np.random.default_rng(0)
        for number, (ids, classes, *crowd) in enumerate(maps):
            stem, size = f"{number:03d}", ids.shape
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{stem}.png")
            Image.fromarray(id2rgb(ids)).save(root / "panoptic" / f"{stem}.png")
            images.append(
                {"id": number, "file_name": f"{stem}.png", "height": size[0], "width": size[1]}
            )
            segments = [
                {
                    "id": i,
                    "category_id": c,
                    "area": int((ids == i).sum()),
                    "iscrowd": int(bool(crowd) and i in crowd[0]),
                }
                for i, c in classes.items()
            ]
            annotations.append(
                {"image_id": number, "file_name": f"{stem}.png", "segments_info": segments}
            )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "panoptic.json").write_text(json.dumps(content))
        register_panoptic(name, root / "images", root / "panoptic", root / "panoptic.json")
        names.append(name)
        return root

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def scene():
    """Sky over ground with a ball and two boxes, 32 x 40."""
    ids = np.full((32, 40), 1, dtype=np.int64)
    ids[16:] = 2
    ids[4:14, 4:14] = 70000
    ids[18:28, 6:14] = 4
    ids[18:28, 20:34] = 5
    return ids, {1: 3, 2: 21, 70000: 10, 4: 30, 5: 30}
