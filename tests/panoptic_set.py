"""A small panoptic set on disk, for all tests."""

import json
from pathlib import Path

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image


class PanopticSet:
    """A dataset in COCO panoptic format. ``content`` is the json, which can be changed and saved.

    Args:
        root: folder of the set.
        maps: of each image (H x W ids, {id: category id}), or also the set of ids that are crowd.
        categories: of the json.
        file_names: of the images; default 000.png, 001.png, ..., as the PNGs.
        first_id: id of the first image.
    """

    def __init__(self, root: Path, maps, categories, file_names=None, first_id=0):
        self.root, self.name = root, root.name
        self.image_root, self.panoptic_root = root / "images", root / "panoptic"
        self.panoptic_json = root / "panoptic.json"
        self.panoptic_root.mkdir(parents=True)
        self.ids = maps[0][0]
        categories = [dict(category) for category in categories]
        self.content = {"categories": categories, "images": [], "annotations": []}
        for number, (ids, classes, *crowd) in enumerate(maps):
            name, (height, width) = f"{number:03d}.png", ids.shape
            file_name, image_id = file_names[number] if file_names else name, first_id + number
            image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
            segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in classes.items()]
            masks, boxes, areas = masks_boxes_and_areas(ids, list(classes))
            for segment, (x0, y0, x1, y1), area in zip(segments, boxes, areas, strict=True):
                segment["iscrowd"] = int(bool(crowd) and segment["id"] in crowd[0])
                box = (x0, y0, x1 + 1 - x0, y1 + 1 - y0)
                segment |= {"area": int(area), "bbox": [int(v) for v in box]}
            annotation = {"image_id": image_id, "file_name": name, "segments_info": segments}
            self.content["images"].append(image)
            self.content["annotations"].append(annotation)
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
            self.image(number).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(self.image(number))
            self.save_ids(number, ids)
        self.save()

    def image(self, number: int) -> Path:
        return self.image_root / self.content["images"][number]["file_name"]

    def png(self, number: int) -> Path:
        return self.panoptic_root / f"{number:03d}.png"

    def save_ids(self, number: int, ids: np.ndarray | None = None) -> None:
        """Write a PNG, by default that of ``self.ids``."""
        Image.fromarray(id2rgb(self.ids if ids is None else ids)).save(self.png(number))

    def save(self) -> None:
        self.panoptic_json.write_text(json.dumps(self.content))

    @property
    def paths(self) -> dict[str, str]:
        keys = ("image_root", "panoptic_root", "panoptic_json")
        return {key: str(getattr(self, key)) for key in keys}

    def opts(self, *more: object) -> list[str]:
        """Options of a training on the set, on a CPU."""
        opts = ["DATASETS.REGISTER", [{"name": self.name, **self.paths}]]
        opts += ["DATASETS.TRAIN", (self.name,), "DATASETS.TEST", (self.name,)]
        opts += ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 3, "DATALOADER.NUM_WORKERS", 0]
        opts += ["INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32]
        return [str(value) for value in (*opts, "OUTPUT_DIR", self.root / "output", *more)]


def masks_boxes_and_areas(ids, segment_ids):
    """What the package computes by runs, one segment at a time."""
    masks = np.array([ids == i for i in segment_ids], bool).reshape(-1, *ids.shape)
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            y, x = np.nonzero(mask)
            box[:] = x.min(), y.min(), x.max(), y.max()
    return masks, boxes, masks.sum((1, 2))
