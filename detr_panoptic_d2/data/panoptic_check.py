"""The one validator of COCO panoptic jsons.

:func:`check_panoptic_json` walks over the content of a json and hands each :class:`Finding` to a
callable. Loading a data set raises on the first one that is fatal
(:func:`.panoptic_json.load_panoptic_json`); ``prepare/check`` collects all of them and goes on
with what is usable. Nothing here opens an image.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, NamedTuple

from ..errors import UserError
from .panoptic_png import MAX_SEGMENT_ID

# Fatal: the set cannot be loaded. Error: training or evaluation would go wrong.
FATAL, ERROR, WARNING = "fatal", "error", "warning"

# What can be wrong in a json, as (severity, text for many of them).
KINDS = {
    "not-panoptic": (FATAL, "lists that every COCO panoptic json has"),
    "bad-category": (FATAL, "categories that are incomplete or there twice"),
    "bad-image-entry": (FATAL, "entries of 'images' that are incomplete or wrong"),
    "bad-annotation": (FATAL, "entries of 'annotations' that are incomplete or wrong"),
    "bad-segment": (FATAL, "segments with a wrong id, crowd flag or form"),
    "unknown-category": (FATAL, "segments of a category that 'categories' lacks"),
    "repeated-entry": (FATAL, "entries that repeat another one exactly"),
    "category-name": (ERROR, "categories of the same name"),
    "shared-png": (ERROR, "images that share a panoptic PNG"),
    "wrong-crowd": (ERROR, "segments without 'iscrowd', which the evaluation needs"),
    "split-stuff": (WARNING, "stuff classes with several segments in one image"),
    "no-annotation": (WARNING, "images without annotation (left out of training)"),
    "duplicate-image": (WARNING, "images that are there more than once"),
}

_MUST_BE_A_LIST = "must be a list of mappings, as in COCO panoptic"


class Fix(NamedTuple):
    """A change of the json that loses nothing.

    Attributes:
        place: keys and indices that lead to a mapping in the json.
        change: entries to set; None removes the mapping.
    """

    place: tuple[str | int, ...]
    change: dict[str, Any] | None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: key of ``KINDS`` (or of those that ``prepare/check`` adds).
        where: file name of the image as in the json, or the entry.
        detail: what is wrong there.
        fix: how to put it right, if that is sure.
    """

    kind: str
    where: str
    detail: str
    fix: Fix | None = None


Report = Callable[[Finding], None]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its annotation, both usable.

    Attributes:
        image, annotation: the entries of the json.
        image_index, annotation_index: where they are in their lists.
        image_path, png_path: of the files, which may be missing.
        segments: (index in ``segments_info``, entry) of those with a usable id.
    """

    image: dict
    annotation: dict
    image_index: int
    annotation_index: int
    image_path: str
    png_path: str
    segments: list[tuple[int, dict]]


@dataclass(frozen=True)
class PanopticContent:
    """What is usable of a json: categories by id, in their order, and the annotated images."""

    categories: dict[int, dict]
    images: list[AnnotatedImage]


def check_panoptic_json(
    content: dict, image_root: str, panoptic_root: str, report: Report
) -> PanopticContent:
    """Check everything that can be said without opening an image.

    Args:
        content: of a COCO panoptic json.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.
        report: is called with each finding. If it raises, the walk ends.

    Returns:
        PanopticContent: without what findings were about, but for segments of unknown category:
        their pixels have an entry.
    """
    lists: dict[str, list] = {}
    for key in ("categories", "images", "annotations"):
        lists[key] = content.get(key)  # type: ignore[assignment]  # checked in the next line
        if not _is_list_of_mappings(lists[key]):
            report(Finding("not-panoptic", "json", f"'{key}' {_MUST_BE_A_LIST}"))
            lists[key] = []
    categories = check_categories(lists["categories"], report)
    images = _check_images(lists["images"], image_root, report)
    annotated = _check_annotations(lists["annotations"], images, categories, panoptic_root, report)
    return PanopticContent(categories, annotated)


def check_categories(categories: list[dict], report: Report) -> dict[int, dict]:
    """Return the usable categories by id, in their order.

    Args:
        categories: of the json, mappings.
        report: is called with each finding.
    """
    found: dict[int, dict] = {}
    names = set()
    for _, category in _without_repeats(categories, "categories", report):
        where = f"category {category.get('id')!r} ({category.get('name')!r})"
        if problem := _category_problem(category):
            report(Finding("bad-category", where, problem))
        elif category["id"] in found:
            detail = f"another category has the id {category['id']}"
            report(Finding("bad-category", where, detail))
        else:
            if category["name"] in names:
                report(Finding("category-name", where, "another category has the name"))
            names.add(category["name"])
            found[category["id"]] = category
    return found


def inside_root(root: str, file_name: Any) -> str:
    """Join a file name of a json to its root, which it must not leave.

    Raises:
        UserError: it is no relative name without "..", on this or another system.
    """
    if not isinstance(file_name, str) or not file_name:
        raise UserError("no 'file_name'")
    windows = PureWindowsPath(file_name)
    if windows.drive or windows.root or ".." in windows.parts or "\0" in file_name:
        raise UserError(
            f"file_name {file_name!r} leads out of '{root}'; names must be relative to their root "
            "and without '..'"
        )
    return os.path.join(root, file_name)


def _category_problem(category: dict) -> str | None:
    if not _is_int(category.get("id")):
        return "no integer 'id'"
    if not isinstance(category.get("name"), str) or not category["name"]:
        return "no 'name'"
    if category.get("isthing") not in (0, 1):
        return (
            "no valid 'isthing'; add \"isthing\": 1 to classes with countable objects, "
            '"isthing": 0 to stuff such as sky'
        )
    color = category.get("color")
    if color is not None and not (
        isinstance(color, list | tuple)
        and len(color) == 3
        and all(_is_int(channel) and 0 <= channel <= 255 for channel in color)
    ):
        return "'color' must be three integers from 0 to 255"
    return None


def _check_images(images: list[dict], root: str, report: Report) -> dict[Any, tuple]:
    """Return (index, entry, path) of the usable images by id."""
    found: dict[Any, tuple[int, dict, str]] = {}
    ids_of_path: dict[str, Any] = {}
    for index, image in _without_repeats(images, "images", report):
        image_id = image.get("id")
        problem, path = None, ""
        if not _is_id(image_id):
            problem = "'id' must be an integer or a string"
        elif image_id in found:
            problem = (
                f"listed twice; another image ('{found[image_id][1]['file_name']}') has the id"
            )
        else:
            for side in ("height", "width"):
                if side in image and not (_is_int(image[side]) and image[side] > 0):
                    problem = f"'{side}' is {image[side]!r}, not a number of pixels"
            try:
                path = inside_root(root, image.get("file_name"))
            except UserError as error:
                problem = str(error)
        if problem:
            report(Finding("bad-image-entry", f"image {image_id!r}", problem))
            continue
        if path in ids_of_path:
            detail = f"images {ids_of_path[path]!r} and {image_id!r} are both this file"
            report(Finding("duplicate-image", image["file_name"], detail))
        ids_of_path[path] = image_id
        found[image_id] = (index, image, path)
    return found


def _check_annotations(
    annotations: list[dict],
    images: dict[Any, tuple[int, dict, str]],
    categories: dict[int, dict],
    root: str,
    report: Report,
) -> list[AnnotatedImage]:
    found: list[AnnotatedImage] = []
    annotated: set[Any] = set()
    ids_of_png: dict[str, Any] = {}
    for index, annotation in _without_repeats(annotations, "annotations", report):
        image_id = annotation.get("image_id")
        where = f"annotation of image {image_id!r}"
        problem, png = None, ""
        if not _is_id(image_id) or image_id not in images:
            problem = "there is no such image in 'images', or no usable entry of it"
        elif image_id in annotated:
            problem = "listed twice; the image has another annotation before"
        elif not _is_list_of_mappings(annotation.get("segments_info")):
            problem = f"'segments_info' {_MUST_BE_A_LIST}"
        else:
            try:
                png = inside_root(root, annotation.get("file_name"))
            except UserError as error:
                problem = str(error)
        if _is_id(image_id):
            annotated.add(image_id)
        if problem:
            report(Finding("bad-annotation", where, problem))
            continue
        if png in ids_of_png:
            detail = f"image {ids_of_png[png]!r} has the same PNG '{annotation['file_name']}'"
            report(Finding("shared-png", where, detail))
        ids_of_png[png] = image_id
        image_index, image, path = images[image_id]
        segments = _check_segments(annotation, index, image["file_name"], categories, report)
        found.append(AnnotatedImage(image, annotation, image_index, index, path, png, segments))
    for image_id, (_, image, _) in images.items():
        if image_id not in annotated:
            report(Finding("no-annotation", image["file_name"], f"image {image_id!r}"))
    return found


def _check_segments(
    annotation: dict, index: int, name: str, categories: dict[int, dict], report: Report
) -> list[tuple[int, dict]]:
    usable: dict[int, tuple[int, dict]] = {}
    stuff = set()
    for number, segment in enumerate(annotation["segments_info"]):
        segment_id, category_id = segment.get("id"), segment.get("category_id")
        place = ("annotations", index, "segments_info", number)
        if not _is_int(segment_id) or not 0 < segment_id <= MAX_SEGMENT_ID:
            detail = f"segment id {segment_id!r} is not within 1 and 2^24 - 1 (0 is void)"
            report(Finding("bad-segment", name, detail))
            continue
        if segment_id in usable:
            detail = f"segment id {segment_id} is listed twice"
            if usable[segment_id][1] == segment:
                report(Finding("repeated-entry", name, detail, Fix(place, None)))
            else:
                report(Finding("bad-segment", name, f"{detail}, with different entries"))
            continue
        usable[segment_id] = (number, segment)
        if not _is_int(category_id) or category_id not in categories:
            detail = (
                f"segment {segment_id} has category_id {category_id!r}, which is not in "
                f"'categories' ({sorted(categories)})"
            )
            report(Finding("unknown-category", name, detail))
        elif not categories[category_id]["isthing"]:
            if category_id in stuff:
                label = categories[category_id]["name"]
                detail = f"'{label}' has segment {segment_id} and another one before"
                report(Finding("split-stuff", name, detail))
            stuff.add(category_id)
        if "iscrowd" not in segment:
            fix = Fix(place, {"iscrowd": 0})
            report(Finding("wrong-crowd", name, f"segment {segment_id} has no 'iscrowd'", fix))
        elif segment["iscrowd"] not in (0, 1):
            detail = f"segment {segment_id}: iscrowd is {segment['iscrowd']!r}, not 0 or 1"
            report(Finding("bad-segment", name, detail))
    return list(usable.values())


def _without_repeats(entries: list[dict], key: str, report: Report) -> Iterator[tuple[int, dict]]:
    """Yield index and entry; those that repeat one with their id exactly are reported."""
    id_key = "image_id" if key == "annotations" else "id"
    first: dict[Any, dict] = {}
    for index, entry in enumerate(entries):
        entry_id = entry.get(id_key)
        other = first.setdefault(entry_id, entry) if _is_id(entry_id) else entry
        if other is not entry and other == entry:
            what = {"categories": "category", "images": "image"}.get(key, "annotation of image")
            detail = f"listed twice; {key}[{index}] repeats another entry exactly"
            fix = Fix((key, index), None)
            report(Finding("repeated-entry", f"{what} {entry_id!r}", detail, fix))
        else:
            yield index, entry


def _is_list_of_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) or isinstance(value, str)
