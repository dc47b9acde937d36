"""Read COCO instances jsons (polygons, RLE, crowd), with or without semantic annotations."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from .classes import drop_unused_parents, merge_classes, parse_classes
from .mask_folders import class_regions, match_masks, read_mask_classes
from .shapes import Shape, decode_runs, draw_shapes, fill_polygons
from .source import Box, Item, Labels, Segment, Size, Source, check_size, log_left_out
from .values import (
    errors_in,
    find_by_id,
    numbers,
    polygons,
    read_json,
    read_size,
    resolve_inside,
    to_flag,
    to_id,
    to_int,
)

_EMPTY: tuple[Any, ...] = (None, [], [[]])


def coco_instances(
    instances: Path,
    images: Path,
    *,
    semantic: Path | None = None,
    labels: Path | None = None,
    mask_suffix: str | None = None,
) -> Source:
    """Read a COCO instances json.

    Semantic annotations (a COCO json of stuff, or class masks and the list ``labels`` of their
    classes) lie under all instances. A pixel that they give a thing class is void unless an
    instance covers it, because the object that it belongs to is not known.
    """
    content = read_json(instances, "images", "annotations", "categories")
    listed = _read_images(content["images"], instances, images)
    names = {image_id: name for image_id, (name, _) in listed.items()}
    shapes: dict[str, list[Shape]] = {name: [] for name in names.values()}
    boxes: dict[str, list[Box]] = {name: [] for name in shapes}
    classes = _read_annotations(content, instances, names, shapes, boxes)
    masks: dict[str, Path] = {}
    stuff: list[dict] = []
    if semantic is not None and semantic.is_file():
        content = read_json(semantic, "annotations", "categories")
        if content.get("images"):
            # Ids of two files need not agree; file names do.
            own = _read_images(read_json(semantic, "images")["images"], semantic, images)
            names = {image_id: name for image_id, (name, _) in own.items()}
        classes += _read_annotations(content, semantic, names, shapes, None)
    elif semantic is not None:
        if labels is None:
            raise UserError(f"Class masks ('{semantic}') need the list of their classes: --labels.")
        stuff = read_mask_classes(labels)
        masks = match_masks(semantic, list(shapes), mask_suffix, images)
        used_ids = {c["id"] for c in classes}
        classes += [
            {**c, "isthing": 0, "id": None if c["id"] in used_ids else c["id"]} for c in stuff
        ]
    items = [
        Item(
            name, partial(_draw, shapes[name], stuff, masks.get(name)), image_id, size, boxes[name]
        )
        for image_id, (name, size) in listed.items()
    ]
    has_masks = semantic is not None or any(shapes.values())
    return Source(images, merge_classes(classes), items, has_masks)


def _draw(
    shapes: list[Shape], stuff: list[dict], mask: Path | None, size: Size, things: Collection[str]
) -> Labels:
    """Draw the annotations of an image, and a class mask under them."""
    labels = draw_shapes(shapes, size, things)
    if mask is not None:
        is_free = labels.map == 0
        for name, region in class_regions(stuff, 255, mask, size):
            labels.segments.append(Segment(None if name in things else name))
            labels.map[is_free & region] = len(labels.segments)
    return labels


def _encode(segmentation: Any, size: Size) -> dict:
    if isinstance(segmentation, list):
        return fill_polygons(polygons(segmentation), size)
    sides = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(sides, list) or len(sides) != 2:
        raise UserError("'segmentation' must be polygons, or have 'size' and 'counts'")
    check_size((to_int(sides[0], "a size"), to_int(sides[1], "a size")), size)
    return decode_runs(segmentation.get("counts"), size)


def _read_annotations(
    content: dict,
    path: Path,
    names: dict[int | str, str],
    shapes: dict[str, list[Shape]],
    boxes: dict[str, list[Box]] | None,
) -> list[dict]:
    """Add the annotations of a json to those of the images; return its classes.

    Without ``boxes`` they are semantic: their classes are stuff.
    """
    classes = parse_classes(content["categories"], path)
    by_id: dict[int | str, dict] = {c["id"]: c for c in classes}
    used_ids = set()
    without_mask, other_images = [], []
    for index, annotation in enumerate(content["annotations"]):
        where = f"'{path}': annotation {annotation.get('id', f'at position {index}')!r}"
        segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
        with errors_in(where):
            image = find_by_id(names, annotation.get("image_id"), "'image_id'", "'images'")
            category_id = annotation.get("category_id")
            category = find_by_id(by_id, category_id, "'category_id'", "'categories'")
            is_crowd = to_flag(annotation.get("iscrowd", 0), "'iscrowd'")
            used_ids.add(category["id"])
            name = category["name"]
            if segmentation not in _EMPTY and image in shapes:
                encode = partial(_encode, segmentation)
                shapes[image].append(Shape(where, name, encode, None, is_crowd, boxes is None))
            elif segmentation not in _EMPTY:
                other_images.append(f"{where} ('{image}')")
            elif boxes is not None and box not in _EMPTY:
                x, y, width, height = numbers(box, "'bbox'", 4).tolist()
                boxes[image].append(Box(where, name, (x, y, width, height), is_crowd))
            else:
                without_mask.append(where)
    log_left_out("annotations without a segmentation", without_mask)
    log_left_out("annotations of images that the json of the instances does not list", other_images)
    classes = drop_unused_parents(classes, used_ids, path)
    return [{**c, "isthing": 0} for c in classes] if boxes is None else classes


def _read_images(
    entries: list[dict], path: Path, root: Path
) -> dict[int | str, tuple[str, Size | None]]:
    """Return names and sizes of the images by id."""
    images: dict[int | str, tuple[str, Size | None]] = {}
    names = set()
    for entry in entries:
        with errors_in(f"'{path}': image {entry.get('id')!r}"):
            image_id = to_id(entry.get("id"), "'id'")
            name = resolve_inside(root, entry.get("file_name"))
            if image_id in images or name in names:
                raise UserError(f"the id, or '{name}', is listed twice")
            names.add(name)
            images[image_id] = name, read_size(entry, "height", "width")
    return images
