"""Ground truth of a panoptic data set, in the forms that Detectron2's evaluators take."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..data.masks import ids_to_labels
from ..data.metadata import class_names, dataset_ids, thing_class_ids
from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError


@contextlib.contextmanager
def temporary_dataset(items: list[dict], **metadata: Any) -> Iterator[str]:
    """Register a data set under a name of its own, for evaluators that ask Detectron2's catalogs.

    Args:
        items: dataset dicts.
        metadata: of the set.

    Yields:
        the name; it is forgotten at the end, while an evaluator keeps what it has read.
    """
    name = f"detr_panoptic_d2_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: items)
    MetadataCatalog.get(name).set(**metadata)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def categories_of(metadata: Metadata) -> list[dict[str, Any]]:
    """Return the ``categories`` of a COCO panoptic json, in order of the contiguous ids."""
    ids, things = dataset_ids(metadata), set(thing_class_ids(metadata))
    names = class_names(metadata) or [str(i) for i in ids]
    return [
        {"id": dataset_id, "name": name, "isthing": int(c in things)}
        for c, (dataset_id, name) in enumerate(zip(ids, names, strict=True))
    ]


def semantic_map(png: str, segments: list[dict], void: int, dtype: Any = np.int64) -> np.ndarray:
    """Classes (H, W) of a panoptic PNG.

    Args:
        png: path.
        segments: ``segments_info`` with contiguous ``category_id``; crowd counts as its class.
        void: value of the pixels that no segment has.
        dtype: of the result.
    """
    labels, _ = ids_to_labels(read_panoptic_png(png), [s["id"] for s in segments])
    return np.array([void, *(s["category_id"] for s in segments)], dtype=dtype)[labels]


def check_prediction_size(image: dict, size: tuple[int, int], png: str) -> None:
    """Compare the size of a prediction with that of the PNG, which is not decoded.

    Args:
        image: the model's input, with ``file_name``.
        size: (height, width) of the prediction.
        png: path.

    Raises:
        UserError: they differ.
    """
    with PathManager.open(png, "rb") as file, Image.open(file) as opened:
        width, height = opened.size
    if tuple(size) != (height, width):
        raise UserError(
            f"{image['file_name']} is {size[0]} x {size[1]} (height x width), but its annotation "
            f"{png} is {height} x {width}."
        )
