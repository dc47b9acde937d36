"""The ground truth of a panoptic data set, read once for all evaluators."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from panopticapi.utils import rgb2id
from PIL import Image

from ..data.metadata import dataset_ids, thing_class_ids
from ..errors import UserError


class PanopticTruth:
    """Annotations of a data set in COCO panoptic format.

    Args:
        dataset_name: a registered data set with ``panoptic_json`` and ``panoptic_root``.

    Attributes:
        dataset_ids: category id in the json of each contiguous class.
        thing_ids: contiguous classes that are things.
        class_names: of each contiguous class.
        annotations: annotation by image id.
        json: what the json holds besides the annotations.
    """

    def __init__(self, dataset_name: str):
        self.name = dataset_name
        self.metadata = MetadataCatalog.get(dataset_name)
        self.dataset_ids = dataset_ids(self.metadata)
        self.thing_ids = thing_class_ids(self.metadata)
        self.class_names = list(self.metadata.thing_classes)
        self.json_file = PathManager.get_local_path(self.metadata.panoptic_json)
        self.folder = PathManager.get_local_path(self.metadata.panoptic_root)
        with open(self.json_file, encoding="utf-8") as f:
            self.json: dict[str, Any] = json.load(f)
        self.annotations = {a["image_id"]: a for a in self.json.pop("annotations")}
        self.categories = {c["id"]: c for c in self.json["categories"]}

    def annotation(self, image_id: int | str) -> dict[str, Any]:
        """Return the annotation of an image.

        Raises:
            UserError: the json has none.
        """
        if image_id not in self.annotations:
            raise UserError(
                f"{self.json_file} has no annotation for the image id {image_id!r}, which the data "
                f"set '{self.name}' contains."
            )
        return self.annotations[image_id]

    def scored_annotation(self, image_id: int | str) -> dict[str, Any]:
        """Return a copy with ``iscrowd`` and ``area`` in every segment, as panopticapi needs it."""
        annotation = self.annotation(image_id)
        segments = [{"iscrowd": 0, **s} for s in annotation["segments_info"]]
        if any("area" not in s for s in segments):
            areas = dict(
                zip(*np.unique(self.segment_ids(image_id), return_counts=True), strict=True)
            )
            segments = [{"area": int(areas.get(s["id"], 0)), **s} for s in segments]
        return {**annotation, "segments_info": segments}

    def png_name(self, image_id: int | str) -> str:
        """Return the PNG's path relative to :attr:`folder`, which is also the prediction's.

        Raises:
            UserError: it leads out of the folder.
        """
        name = self.annotation(image_id)["file_name"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{self.json_file}: file_name '{name}' of image id {image_id!r} leads out of the "
                "folder of the PNGs. It must be relative and without '..'."
            )
        return name

    def png_size(self, image_id: int | str) -> tuple[int, int]:
        """Return (height, width) without decoding the PNG."""
        with Image.open(Path(self.folder, self.png_name(image_id))) as image:
            return image.height, image.width

    def segment_ids(self, image_id: int | str) -> np.ndarray:
        """Return the H x W map of segment ids, 0 for void."""
        with Image.open(Path(self.folder, self.png_name(image_id))) as image:
            return rgb2id(np.asarray(image.convert("RGB"), dtype=np.uint32))

    def classes(self, image_id: int | str) -> np.ndarray:
        """Return the H x W map of contiguous classes, -1 for void."""
        contiguous = {d: c for c, d in enumerate(self.dataset_ids)}
        ids, inverse = np.unique(self.segment_ids(image_id), return_inverse=True)
        of_segment = {
            s["id"]: contiguous[s["category_id"]]
            for s in self.annotation(image_id)["segments_info"]
        }
        lookup = np.array([of_segment.get(i, -1) for i in ids.tolist()], dtype=np.int64)
        shape = self.png_size(image_id)
        return lookup[inverse].reshape(shape)
