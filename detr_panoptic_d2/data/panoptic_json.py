"""Reading and checking COCO panoptic jsons.

Class names, colours and thing-ness come from ``categories``, the real names of the image files
from ``images``; Detectron2's own reader expects COCO's classes and ``.jpg``.
"""

import json
import logging
import os
from pathlib import PureWindowsPath
from typing import Any

from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .palette import default_color

logger = logging.getLogger(__name__)


def load_panoptic_json(image_root: str, panoptic_root: str, panoptic_json: str) -> list[dict]:
    """Read a COCO panoptic json into Detectron2's standard dataset dicts.

    Args:
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: annotation file.

    Returns:
        list[dict]: in the order of ``annotations``: ``file_name``, ``image_id``, ``height`` and
        ``width`` where the json has them, ``pan_seg_file_name``, and ``segments_info`` with
        contiguous ``category_id`` and bool ``isthing``. Images without annotation are left out.

    Raises:
        FileNotFoundError: the json, or the first image or PNG, is missing.
        UserError: the json is not in the format.
    """
    content = read_panoptic_json(panoptic_json)
    metadata = panoptic_metadata(content.get("categories"), panoptic_json)
    dicts = panoptic_dicts(content, metadata, image_root, panoptic_root, panoptic_json)
    for key in ("file_name", "pan_seg_file_name"):
        if not PathManager.isfile(dicts[0][key]):
            raise FileNotFoundError(f"'{dicts[0][key]}', named by '{panoptic_json}', is missing.")
    without = len(content["images"]) - len(dicts)
    if without:
        logger.info(f"{without} images of '{panoptic_json}' have no annotation and are left out.")
    return dicts


def panoptic_metadata(categories: Any, source: str) -> dict[str, Any]:
    """Detectron2 metadata of the ``categories`` of a COCO panoptic json.

    Args:
        categories: the list; its order gives the contiguous ids.
        source: what to name in errors.

    Returns:
        dict: class names, colours and the maps of dataset ids to contiguous ids.

    Raises:
        UserError: the list is missing or empty, or an entry is incomplete or a duplicate.
    """
    if not isinstance(categories, list) or not categories:
        raise UserError(f"'{source}' has no list 'categories' with at least one class.")
    things: dict[int, int] = {}
    stuff: dict[int, int] = {}
    names, colors = [], []
    for contiguous_id, category in enumerate(categories):
        where = f"'{source}': category {category!r}"
        if not isinstance(category, dict) or not _is_int(category.get("id")):
            raise UserError(f"{where} has no integer 'id'.")
        if category["id"] in things or category["id"] in stuff:
            raise UserError(f"{where}: another category has the id {category['id']}.")
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise UserError(f"{where} has no 'name'.")
        if category.get("isthing") not in (0, 1):
            raise UserError(
                f"{where} has no valid 'isthing'. Add \"isthing\": 1 to classes with countable "
                'objects, "isthing": 0 to stuff such as sky.'
            )
        (things if category["isthing"] else stuff)[category["id"]] = contiguous_id
        names.append(category["name"])
        colors.append(_color(category.get("color"), contiguous_id, where))
    return {
        "thing_dataset_id_to_contiguous_id": things,
        "stuff_dataset_id_to_contiguous_id": stuff,
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": [list(color) for color in colors],
    }


def panoptic_dicts(
    content: dict,
    metadata: dict[str, Any],
    image_root: str,
    panoptic_root: str,
    panoptic_json: str,
) -> list[dict]:
    """Check images and annotations of a json and make the dataset dicts.

    Args:
        content: of the json.
        metadata: from :func:`panoptic_metadata`.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNGs.
        panoptic_json: what to name in errors.

    Returns:
        list[dict]: as :func:`load_panoptic_json`.

    Raises:
        UserError: the content is not in the format.
    """
    images: dict[int | str, dict] = {}
    for image in _entries(content, "images", panoptic_json):
        where = f"'{panoptic_json}': image {image.get('id')!r}"
        if not _is_int(image.get("id")) and not isinstance(image.get("id"), str):
            raise UserError(f"{where}: 'id' must be an integer or a string.")
        if image["id"] in images:
            raise UserError(f"{where} is listed twice.")
        entry = {"file_name": inside_root(image_root, image.get("file_name"), where)}
        for side in ("height", "width"):
            if side in image:
                if not _is_int(image[side]) or image[side] < 1:
                    raise UserError(f"{where}: '{side}' is {image[side]!r}, not a pixel count.")
                entry[side] = image[side]
        images[image["id"]] = entry

    dicts: dict[int | str, dict] = {}
    for annotation in _entries(content, "annotations", panoptic_json):
        image_id = annotation.get("image_id")
        where = f"'{panoptic_json}': annotation of image {image_id!r}"
        if not isinstance(image_id, int | str) or image_id not in images:
            raise UserError(f"{where}: there is no such image in 'images'.")
        if image_id in dicts:
            raise UserError(f"{where} is listed twice.")
        file_name = annotation.get("file_name")
        dicts[image_id] = {
            **images[image_id],
            "image_id": image_id,
            "pan_seg_file_name": inside_root(panoptic_root, file_name, where),
            "segments_info": _segments(annotation, metadata, f"{where} ('{file_name}')"),
        }
    if not dicts:
        raise UserError(f"'{panoptic_json}' has no annotations.")
    return list(dicts.values())


def _segments(annotation: dict, metadata: dict[str, Any], where: str) -> list[dict]:
    """Check the segments of one image and convert their category ids."""
    things = metadata["thing_dataset_id_to_contiguous_id"]
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    segments, seen = [], set()
    for segment in _entries(annotation, "segments_info", where):
        segment_id, category_id = segment.get("id"), segment.get("category_id")
        if not _is_int(segment_id) or not 0 < segment_id < 1 << 24:
            raise UserError(
                f"{where}: segment id {segment_id!r} is not within 1 and 2^24 - 1 (0 is void)."
            )
        if segment_id in seen:
            raise UserError(f"{where}: segment id {segment_id} is listed twice.")
        seen.add(segment_id)
        is_thing = _is_int(category_id) and category_id in things
        if not is_thing and not (_is_int(category_id) and category_id in stuff):
            raise UserError(
                f"{where}: segment {segment_id} has category_id {category_id!r}, which is not in "
                f"'categories' ({sorted([*things, *stuff])})."
            )
        contiguous_id = (things if is_thing else stuff)[category_id]
        segments.append({**segment, "category_id": contiguous_id, "isthing": is_thing})
    return segments


def _entries(content: dict, key: str, where: str) -> list[dict]:
    """Return ``content[key]``, which must be a list of mappings."""
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{where}: '{key}' must be a list of mappings, as in COCO panoptic.")
    return entries


def inside_root(root: str, file_name: Any, where: str) -> str:
    """Join a file name of a json to its root, which it must not leave."""
    if not isinstance(file_name, str) or not file_name:
        raise UserError(f"{where} has no 'file_name'.")
    windows = PureWindowsPath(file_name)
    if windows.drive or windows.root or ".." in windows.parts or "\0" in file_name:
        raise UserError(
            f"{where}: file_name {file_name!r} leads out of '{root}'. Names must be relative to "
            "their root and without '..'."
        )
    return os.path.join(root, file_name)


def read_panoptic_json(path: str) -> dict:
    """Parse a json whose top level is a mapping.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no json, or no mapping.
    """
    try:
        with PathManager.open(path, "r", encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"Panoptic json '{path}' does not exist.") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a COCO panoptic mapping.")
    return content


def _color(color: Any, index: int, where: str) -> list[int]:
    """Check a category's colour, or choose one."""
    if color is None:
        return default_color(index)
    if (
        not isinstance(color, list | tuple)
        or len(color) != 3
        or not all(_is_int(channel) and 0 <= channel <= 255 for channel in color)
    ):
        raise UserError(f"{where}: 'color' must be three integers from 0 to 255.")
    return list(color)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
