"""The validator of COCO panoptic jsons. It opens no image.

Loading a dataset raises the first error. ``detr-panoptic check`` collects all of them.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import inside_root
from .panoptic_png import MAX_SEGMENT_ID


class EntryError(UserError):
    """An entry of a json is invalid.

    Attributes:
        where: file name of the image, or the name of the list that holds the entry.
        detail: the reason, without ``where``.
        repeated: the entry repeats an earlier one exactly, so removing it loses nothing.
    """

    def __init__(self, where: str, detail: str, repeated: bool = False):
        super().__init__(f"{where}: {detail}.")
        self.where, self.detail, self.repeated = where, detail, repeated


ErrorHandler = Callable[[EntryError], None]


class AnnotatedImage(NamedTuple):
    """An image with its annotation: both entries, the paths of both files, the valid segments."""

    image: dict
    annotation: dict
    image_path: str
    png_path: str
    segments: list[dict]


class PanopticContent(NamedTuple):
    """The valid part of a json: categories and images by id, in their order, and annotations."""

    categories: dict[int, dict]
    images: dict[int | str, dict]
    annotated: list[AnnotatedImage]


def raise_error(error: EntryError) -> None:
    """Raise the error. This is the handler that stops at the first one."""
    raise error


def check_panoptic_json(
    content: dict, image_root: str, panoptic_root: str, on_error: ErrorHandler = raise_error
) -> PanopticContent:
    """Check all that can be checked without opening an image.

    Integers may also be written as 3.0 or "3"; the result has integers. ``on_error`` is called with
    each error. If it returns, the invalid entry is left out.
    """
    categories = check_categories(content.get("categories"), on_error)

    def check_image(image: dict) -> None:
        inside_root(image_root, image.get("file_name"))
        for side in {"height", "width"} & image.keys():
            pixels = as_int(image[side])
            if pixels is None or pixels < 1:
                raise UserError(f"'{side}' is {image[side]!r}, but must be a number of pixels")
            image[side] = pixels

    def check_annotation(annotation: dict) -> None:
        inside_root(panoptic_root, annotation.get("file_name"))
        image_id = annotation["image_id"]
        if image_id not in images:
            # The same number, as text in one list and as a number in the other.
            image_id = str(image_id) if isinstance(image_id, int) else as_int(image_id)
        if image_id not in images:
            raise UserError("there is no such image in 'images', or its entry is invalid")
        annotation["image_id"] = image_id
        if not _is_list_of_mappings(annotation.get("segments_info")):
            raise UserError("'segments_info' must be a list of mappings")

    def check_segment(segment: dict) -> None:
        if not 0 < segment["id"] <= MAX_SEGMENT_ID:
            raise UserError("the id is not within 1 and 2^24 - 1 (0 is void)")
        category_id = as_int(segment.get("category_id"))
        if category_id not in categories:
            known = sorted(categories)
            raise UserError(
                f"category_id is {segment.get('category_id')!r}, but 'categories' has {known}"
            )
        segment["category_id"] = category_id
        if "iscrowd" in segment:
            _convert_flag(segment, "iscrowd")

    images = _check_list(content.get("images"), "images", check_image, on_error)
    annotations = _check_list(content.get("annotations"), "annotations", check_annotation, on_error)
    annotated = []
    for annotation in annotations.values():
        image = images[annotation["image_id"]]
        name, infos = image["file_name"], annotation["segments_info"]
        segments = _check_list(infos, "segments_info", check_segment, on_error, name)
        paths = inside_root(image_root, name), inside_root(panoptic_root, annotation["file_name"])
        annotated.append(AnnotatedImage(image, annotation, *paths, list(segments.values())))
    return PanopticContent(categories, images, annotated)


def check_categories(categories: Any, on_error: ErrorHandler = raise_error) -> dict[int, dict]:
    """Return the valid ``categories`` of a json by id, in their order."""

    def check(category: dict) -> None:
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise UserError("no 'name'")
        if "isthing" not in category:
            raise UserError(
                "no 'isthing'; add \"isthing\": 1 to classes with countable objects, "
                '"isthing": 0 to stuff such as sky'
            )
        _convert_flag(category, "isthing")
        if category.get("color") is not None:
            color = category["color"]
            channels = [as_int(c) for c in color] if isinstance(color, list | tuple) else []
            if len(channels) != 3 or not all(c is not None and 0 <= c <= 255 for c in channels):
                raise UserError("'color' must be three integers from 0 to 255")
            category["color"] = channels

    return _check_list(categories, "categories", check, on_error)


def as_int(value: Any) -> int | None:
    """Return the integer that 3, 3.0 and "3" mean. None: it is no integer (or a boolean)."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_flag(value: Any) -> int | None:
    """Return 0 or 1 for false, 0, 0.0 and "0", or true, 1, 1.0 and "1". None: it is no flag."""
    number = int(value) if isinstance(value, bool) else as_int(value)
    return number if number in (0, 1) else None


def _convert_flag(entry: dict, key: str) -> None:
    flag = as_flag(entry[key])
    if flag is None:
        raise UserError(f"'{key}' is {entry[key]!r}, but must be 0 or 1")
    entry[key] = flag


def _check_list(
    entries: Any,
    name: str,
    check: Callable[[dict], None],
    on_error: ErrorHandler,
    where: str | None = None,
) -> dict[Any, dict]:
    """Return copies of the valid entries of a list by id.

    The name of the list is the default of ``where``. ``check`` raises a ``UserError`` if an entry
    is invalid, and converts its numbers in place.
    """
    where = where or name
    if not _is_list_of_mappings(entries):
        on_error(EntryError(where, f"'{name}' must be a list of mappings"))
        return {}
    id_key = "image_id" if name == "annotations" else "id"
    # An image id that is text stays text: "007" is not 7.
    text_ids = name in ("images", "annotations")
    first: dict[Any, dict] = {}
    valid: dict[Any, dict] = {}
    for index, entry in enumerate(entries):
        raw_id = entry.get(id_key)
        entry_id = raw_id if text_ids and isinstance(raw_id, str) else as_int(raw_id)
        is_new = first.setdefault(entry_id, entry) is entry
        try:
            if entry_id is None:
                raise UserError(f"the {id_key} must be an integer{' or text' * text_ids}")
            copy = {**entry, id_key: entry_id}
            if is_new:
                check(copy)
            if not is_new or copy[id_key] in valid:
                raise UserError(f"another entry has this {id_key}")
            valid[copy[id_key]] = copy
        except UserError as error:
            detail = f"entry {index}, {id_key} {raw_id!r}: {error}"
            repeated = entry_id is not None and not is_new and first[entry_id] == entry
            on_error(EntryError(where, detail, repeated))
    return valid


def _is_list_of_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
