"""Read jsons of the COCO panoptic format into Detectron2's dataset dicts, and write them.

Class names, colors and thing-ness come from ``categories``. The names of the image files come from
``images``. Detectron2's own reader expects COCO's classes and ``.jpg``.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..files import atomic_file
from .colors import choose_colors
from .label_maps import ids_to_labels, label_boxes_and_areas
from .panoptic_check import EntryError, PanopticContent, check_categories, check_panoptic_json


def load_panoptic_json(image_root: str, panoptic_root: str, panoptic_json: str) -> list[dict]:
    """Read a COCO panoptic json into Detectron2's standard dataset dicts.

    Returns:
        list[dict]: in the order of ``annotations``: ``file_name``, ``image_id``, ``height`` and
        ``width`` if the json has them, ``pan_seg_file_name``, and ``segments_info`` with
        contiguous ``category_id`` and bool ``isthing``. Images without annotation are dropped.

    Raises:
        FileNotFoundError: the json, or the first image or PNG, is missing.
        UserError: the json is not in the format.
    """
    categories, _, annotated = read_valid_content(image_root, panoptic_root, panoptic_json)
    for path in (annotated[0].image_path, annotated[0].png_path):
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"'{path}', named by '{panoptic_json}', is missing.")
    classes = {
        category_id: {"category_id": index, "isthing": bool(category["isthing"])}
        for index, (category_id, category) in enumerate(categories.items())
    }
    return [
        {
            "file_name": image.image_path,
            **{k: image.image[k] for k in ("height", "width") if k in image.image},
            "image_id": image.image["id"],
            "pan_seg_file_name": image.png_path,
            "segments_info": [{**s, **classes[s["category_id"]]} for s in image.segments],
        }
        for image in annotated
    ]


def read_valid_content(image_root: str, panoptic_root: str, panoptic_json: str) -> PanopticContent:
    """Read a COCO panoptic json and check it; raises as :func:`load_panoptic_json`."""
    content = read_panoptic_json(panoptic_json)
    try:
        valid = check_panoptic_json(content, image_root, panoptic_root)
    except EntryError as error:
        raise UserError(f"'{panoptic_json}': {error}") from error
    if not valid.annotated:
        raise UserError(f"'{panoptic_json}' has no annotations.")
    return valid


def panoptic_metadata(categories: Any, source: str) -> dict[str, Any]:
    """Return Detectron2's metadata of the ``categories`` of a COCO panoptic json.

    The order gives the contiguous ids. A ``UserError`` names the ``source`` if an entry is invalid.
    """
    try:
        checked = check_categories(categories)
    except EntryError as error:
        raise UserError(f"'{source}': {error}") from error
    if not checked:
        raise UserError(f"'{source}' has no classes in 'categories'.")
    ids: dict[bool, dict[int, int]] = {True: {}, False: {}}
    for contiguous_id, (dataset_id, category) in enumerate(checked.items()):
        ids[bool(category["isthing"])][dataset_id] = contiguous_id
    names = [category["name"] for category in checked.values()]
    isthing = [bool(c["isthing"]) for c in checked.values()]
    colors = choose_colors(isthing, [c.get("color") for c in checked.values()])
    return {
        "thing_dataset_id_to_contiguous_id": ids[True],
        "stuff_dataset_id_to_contiguous_id": ids[False],
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": [list(color) for color in colors],
        "stuff_colors": [list(color) for color in colors],
    }


def read_panoptic_json(path: str | os.PathLike) -> dict:
    """Parse a json whose top level is a mapping."""
    try:
        with PathManager.open(os.fspath(path), "r", encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"Panoptic json '{path}' does not exist.") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a COCO panoptic mapping.")
    return content


def write_panoptic_json(
    path: str | os.PathLike,
    images: list[dict],
    annotations: list[dict],
    categories: list[dict],
    **more: Any,
) -> None:
    """Write a COCO panoptic json; ``more`` are other entries, such as ``info``."""
    content = {**more, "images": images, "annotations": annotations, "categories": categories}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        json.dump(content, file)


def complete_segments(ids: np.ndarray, segments: Sequence[dict]) -> list[dict]:
    """Add ``iscrowd`` (0 if missing), ``area`` and ``bbox`` of a COCO panoptic json to segments.

    Args:
        ids: H x W integers, as :func:`.panoptic_png.write_panoptic_png` takes them.
        segments: with ``id``, ``category_id`` (of the dataset), and other keys to keep.

    Returns:
        list[dict]: the segments that have pixels, in the same order. Boxes are x, y, width, height.
    """
    labels, _ = ids_to_labels(ids, [s["id"] for s in segments])
    boxes, areas = label_boxes_and_areas(labels, len(segments))
    boxes[:, 2:] += 1 - boxes[:, :2]
    measures = zip(segments, areas.tolist(), boxes.astype(int).tolist(), strict=True)
    return [{"iscrowd": 0, **s, "area": area, "bbox": box} for s, area, box in measures if area]
