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

    Args:
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: annotation file.

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
    contiguous = {category_id: i for i, category_id in enumerate(categories)}
    dicts = []
    for image in annotated:
        segments = [
            {
                **segment,
                "category_id": contiguous[segment["category_id"]],
                "isthing": bool(categories[segment["category_id"]]["isthing"]),
            }
            for _, segment in image.segments
        ]
        dicts.append(
            {
                "file_name": image.image_path,
                **{k: image.image[k] for k in ("height", "width") if k in image.image},
                "image_id": image.image["id"],
                "pan_seg_file_name": image.png_path,
                "segments_info": segments,
            }
        )
    return dicts


def read_valid_content(image_root: str, panoptic_root: str, panoptic_json: str) -> PanopticContent:
    """Read a COCO panoptic json and check it.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the json is not in the format, or has no annotations.
    """
    content = read_panoptic_json(panoptic_json)
    try:
        valid = check_panoptic_json(content, image_root, panoptic_root)
    except EntryError as error:
        raise UserError(f"'{panoptic_json}': {error}") from error
    if not valid.annotated:
        raise UserError(f"'{panoptic_json}' has no annotations.")
    return valid


def panoptic_metadata(categories: Any, source: str) -> dict[str, Any]:
    """Detectron2 metadata of the ``categories`` of a COCO panoptic json.

    Args:
        categories: the list; its order gives the contiguous ids.
        source: file name for errors.

    Returns:
        dict: class names, colors and the maps of dataset ids to contiguous ids.

    Raises:
        UserError: the list is missing or empty, or an entry is incomplete or a duplicate.
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
    given = [c.get("color") and tuple(c["color"]) for c in checked.values()]
    colors = [list(color) for color in choose_colors(isthing, given)]
    return {
        "thing_dataset_id_to_contiguous_id": ids[True],
        "stuff_dataset_id_to_contiguous_id": ids[False],
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": [list(color) for color in colors],
    }


def read_panoptic_json(path: str | os.PathLike) -> dict:
    """Parse a json whose top level is a mapping.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a json, or not a mapping.
    """
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
    """Write a json atomically.

    Args:
        path: of the json.
        images: with ``id``, ``file_name``, ``height`` and ``width``.
        annotations: with ``image_id``, ``file_name`` of the PNG, and ``segments_info`` from
            :func:`complete_segments`.
        categories: with ``id``, ``name`` and ``isthing``.
        more: other entries, such as ``info``.
    """
    content = {**more, "images": images, "annotations": annotations, "categories": categories}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        json.dump(content, file)


def complete_segments(ids: np.ndarray, segments: Sequence[dict]) -> list[dict]:
    """Add the keys ``iscrowd``, ``area`` and ``bbox`` of a COCO panoptic json to each segment.

    Args:
        ids: integer ids (H, W), as :func:`.panoptic_png.write_panoptic_png` takes them.
        segments: with ``id``, ``category_id`` (of the data set), and other keys to keep.

    Returns:
        list[dict]: the segments that have pixels, in the same order. Boxes are x, y, width, height.
    """
    labels, _ = ids_to_labels(ids, np.array([s["id"] for s in segments], dtype=np.int64))
    boxes, areas = label_boxes_and_areas(labels, len(segments))
    boxes[:, 2:] += 1 - boxes[:, :2]
    return [
        {"iscrowd": 0, **segment, "area": area, "bbox": box}
        for segment, area, box in zip(
            segments, areas.tolist(), boxes.astype(int).tolist(), strict=True
        )
        if area
    ]
