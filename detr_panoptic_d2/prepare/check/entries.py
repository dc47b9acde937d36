"""Checks of the json alone, and the list of images to look at."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...data.panoptic_check import inside_root
from ...data.panoptic_json import panoptic_metadata
from ...errors import UserError
from .findings import Finding, Fix


@dataclass(frozen=True)
class Task:
    """An annotated image.

    Attributes:
        name: of the image in the json.
        image, png: paths.
        index: of the annotation in the json.
        image_index: of the image in the json.
        size: (height, width) in the json; None where it has none.
        segments: index in ``segments_info`` and content of the segments that can be used.
    """

    name: str
    image: str
    png: str
    index: int
    image_index: int
    size: tuple[int, int] | None
    segments: list[tuple[int, dict]]


@dataclass
class Entries:
    """What the json says.

    Attributes:
        tasks: one per image with a usable annotation.
        categories: the usable ones by id.
        findings: of the json alone.
    """

    tasks: list[Task] = field(default_factory=list)
    categories: dict[int, dict] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check_entries(content: dict, image_root: str, panoptic_root: str) -> Entries:
    """Check everything that needs no image.

    Args:
        content: of a COCO panoptic json.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.

    Raises:
        UserError: a list is missing, so that this is no COCO panoptic json at all.
    """
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"The json has no list '{key}' of mappings, as COCO panoptic has.")
    result = Entries()
    _check_categories(content["categories"], result)
    images = _check_images(content["images"], image_root, result)
    _check_annotations(content["annotations"], images, panoptic_root, result)
    return result


def _check_categories(categories: list[dict], result: Entries) -> None:
    names = set()
    for _, category in _without_repeats(categories, "categories", result):
        where = f"category {category.get('id')!r}"
        try:
            panoptic_metadata([category], "json")
        except ValueError as error:
            result.findings.append(Finding("bad-category", where, _reason(error)))
            continue
        if category["id"] in result.categories:
            detail = f"another category ('{result.categories[category['id']]['name']}') has the id"
            result.findings.append(Finding("bad-category", where, detail))
            continue
        if category["name"] in names:
            detail = f"another category is named '{category['name']}' as well"
            result.findings.append(Finding("bad-category", where, detail))
        names.add(category["name"])
        result.categories[category["id"]] = category


def _check_images(
    images: list[dict], root: str, result: Entries
) -> dict[Any, tuple[int, dict, str]]:
    """Return index, entry and path of the usable images by id."""
    found: dict[Any, tuple[int, dict, str]] = {}
    names: dict[str, Any] = {}
    for index, image in _without_repeats(images, "images", result):
        image_id = image.get("id")
        where = f"image {image_id!r}"

        def bad(detail: str, where: str = where) -> None:
            result.findings.append(Finding("bad-image-entry", where, detail))

        if type(image_id) not in (int, str):
            bad("'id' must be an integer or a string")
            continue
        if image_id in found:
            bad(f"another image ('{found[image_id][1]['file_name']}') has the id")
            continue
        try:
            path = inside_root(root, image.get("file_name"))
        except ValueError as error:
            bad(_reason(error))
            continue
        sides = [image[side] for side in ("height", "width") if side in image]
        if not all(type(side) is int and side > 0 for side in sides):
            bad(f"height and width {sides} are no numbers of pixels")
            continue
        if path in names:
            detail = f"images {names[path]!r} and {image_id!r} are both this file"
            result.findings.append(Finding("duplicate-image", image["file_name"], detail))
        names[path] = image_id
        found[image_id] = (index, image, path)
    return found


def _check_annotations(
    annotations: list[dict], images: dict[Any, tuple[int, dict, str]], root: str, result: Entries
) -> None:
    annotated: set[Any] = set()
    pngs: dict[str, Any] = {}
    for index, annotation in _without_repeats(annotations, "annotations", result):
        image_id = annotation.get("image_id")
        where = f"annotation of image {image_id!r}"

        def bad(detail: str, where: str = where) -> None:
            result.findings.append(Finding("bad-annotation", where, detail))

        if type(image_id) not in (int, str) or image_id not in images:
            bad("'images' has no such image, or no usable entry of it")
            continue
        if image_id in annotated:
            bad("the image has another annotation before")
            continue
        annotated.add(image_id)
        image_index, image, path = images[image_id]
        try:
            png = inside_root(root, annotation.get("file_name"))
        except ValueError as error:
            bad(_reason(error))
            continue
        if png in pngs:
            bad(f"image {pngs[png]!r} has the same PNG '{annotation['file_name']}'")
        pngs[png] = image_id
        segments = annotation.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
            bad("'segments_info' is no list of mappings")
            continue
        size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
        usable = _check_segments(segments, index, image["file_name"], result)
        result.tasks.append(Task(image["file_name"], path, png, index, image_index, size, usable))
    for image_id, (_, image, _) in images.items():
        if image_id not in annotated:
            result.findings.append(
                Finding("no-annotation", image["file_name"], f"image {image_id!r}")
            )


def _check_segments(
    segments: list[dict], annotation: int, name: str, result: Entries
) -> list[tuple[int, dict]]:
    usable: dict[int, tuple[int, dict]] = {}
    stuff = set()
    place = ("annotations", annotation, "segments_info")
    for index, segment in enumerate(segments):
        segment_id, category_id = segment.get("id"), segment.get("category_id")

        def add(kind: str, detail: str, fix: Fix | None = None) -> None:
            result.findings.append(Finding(kind, name, detail, fix))

        if type(segment_id) is not int or not 0 < segment_id < 1 << 24:
            add("bad-segment", f"id {segment_id!r} is not within 1 and 2^24 - 1 (0 is void)")
            continue
        if segment_id in usable:
            if usable[segment_id][1] == segment:
                fix = Fix((*place, index), None)
                add("repeated-entry", f"segment {segment_id} is listed twice", fix)
            else:
                add("bad-segment", f"two segments have the id {segment_id}")
            continue
        # Also with an unknown category: its pixels have an entry, and are counted.
        usable[segment_id] = (index, segment)
        if type(category_id) is not int or category_id not in result.categories:
            add("unknown-category", f"segment {segment_id} has category_id {category_id!r}")
        elif not result.categories[category_id]["isthing"]:
            if category_id in stuff:
                label = result.categories[category_id]["name"]
                add("split-stuff", f"'{label}' has segment {segment_id} and another one before")
            stuff.add(category_id)
        if "iscrowd" not in segment:
            fix = Fix((*place, index), {"iscrowd": 0})
            add("wrong-crowd", f"segment {segment_id} has no 'iscrowd'", fix)
        elif segment["iscrowd"] not in (0, 1):
            add("bad-segment", f"segment {segment_id}: iscrowd is {segment['iscrowd']!r}")
    return list(usable.values())


def _without_repeats(entries: list[dict], key: str, result: Entries) -> Iterator[tuple[int, dict]]:
    """Yield index and entry; those that repeat one with their id exactly are findings."""
    id_key = "image_id" if key == "annotations" else "id"
    first: dict[Any, dict] = {}
    for index, entry in enumerate(entries):
        entry_id = entry.get(id_key)
        has_id = type(entry_id) in (int, str)
        other = first.setdefault(entry_id, entry) if has_id else entry
        if other is not entry and other == entry:
            fix = Fix((key, index), None)
            detail = f"{key}[{index}] repeats another entry exactly"
            result.findings.append(Finding("repeated-entry", f"{id_key} {entry_id!r}", detail, fix))
        else:
            yield index, entry


def _reason(error: ValueError) -> str:
    return str(error).removeprefix("'json': ").removeprefix("json ").removeprefix("json: ")
