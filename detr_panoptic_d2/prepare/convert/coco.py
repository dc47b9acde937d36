"""COCO instances json (polygons, RLE, crowd), with or without semantic annotations -> panoptic."""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import UserError
from .categories import check_classes, merge_classes
from .drawn_shapes import Shape, draw_shapes, from_polygons, from_runs
from .mask_folders import Regions, class_regions, match_masks, read_mask_classes
from .source import (
    Item,
    Labels,
    Segment,
    Size,
    Source,
    check_size,
    errors_of,
    log_left_out,
    read_json,
    resolve_inside,
)


def coco_instances(
    instances: Path,
    images: Path,
    *,
    semantic: Path | None = None,
    labels: Path | None = None,
    mask_suffix: str = ".png",
) -> Source:
    """A COCO instances json.

    Semantic annotations lie under all instances; where they have the class of a thing but no
    instance is, the pixel is void, since nobody knows which object it belongs to.

    Args:
        instances: the json.
        images: folder of the images.
        semantic: stuff as a COCO json (categories are stuff), or folder of class masks.
        labels: list of classes of the masks; see ``categories.read_class_file``.
        mask_suffix: what follows the image's name without suffix in the name of its mask.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: a json is not in the format, or names a path outside of ``images``.
    """
    content = read_json(instances, "images", "annotations", "categories")
    listed = _images(content, instances, images)
    shapes: dict[Any, list[Shape]] = {image_id: [] for image_id in listed}
    classes = _collect(content, instances, shapes, is_thing=True)
    regions: dict[str, Regions] = {}
    if semantic is not None and semantic.is_file():
        content = read_json(semantic, "annotations", "categories")
        classes += _collect(content, semantic, shapes, is_thing=False)
    elif semantic is not None:
        if labels is None:
            raise UserError(f"Class masks ('{semantic}') need the list of their classes: --labels.")
        stuff = read_mask_classes(labels)
        masks = match_masks(semantic, [name for name, _ in listed.values()], mask_suffix)
        regions = {n: partial(class_regions, stuff, 255, mask) for n, mask in masks.items()}
        taken = {c["id"] for c in classes}
        classes += [{**c, "isthing": 0, "id": None if c["id"] in taken else c["id"]} for c in stuff]
    items = [
        Item(name, partial(_draw, shapes[image_id], regions.get(name)), image_id, size)
        for image_id, (name, size) in listed.items()
    ]
    return Source(images, merge_classes(classes), items)


def _draw(
    shapes: list[Shape], regions: Regions | None, size: Size, things: Collection[str]
) -> Labels:
    """Draw the annotations of an image, and a class mask under them."""
    labels = draw_shapes(_encode, shapes, size, things)
    if regions is not None:
        free = labels.map == 0
        for name, where in regions(size):
            labels.segments.append(Segment(None if name in things else name))
            labels.map[free & where] = len(labels.segments)
    return labels


def _encode(segmentation: Any, size: Size) -> dict:
    if isinstance(segmentation, list):
        return from_polygons(segmentation, size)
    listed = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(listed, list) or len(listed) != 2:
        raise UserError("'segmentation' must be polygons, or have 'size' and 'counts'")
    check_size(tuple(listed), size)
    return from_runs(segmentation.get("counts"), size)


def _collect(
    content: dict, path: Path, shapes: dict[Any, list[Shape]], *, is_thing: bool
) -> list[dict]:
    """Sort the annotations of a json by image; return its classes."""
    classes = check_classes(content["categories"], path)
    if not is_thing:
        classes = [{**c, "isthing": 0} for c in classes]
    names = {c["id"]: c["name"] for c in classes}
    without_mask = []
    for annotation in content["annotations"]:
        where = f"'{path}': annotation {annotation.get('id')!r}"
        for key, known in (("image_id", shapes), ("category_id", names)):
            value = annotation.get(key)
            if not isinstance(value, int | str) or value not in known:
                raise UserError(f"{where}: the file has no entry for its {key} {value!r}.")
        if annotation.get("segmentation"):
            name, crowd = names[annotation["category_id"]], int(bool(annotation.get("iscrowd")))
            shape = Shape(where, name, annotation["segmentation"], iscrowd=crowd)
            shapes[annotation["image_id"]].append(shape)
        else:
            without_mask.append(where)
    log_left_out("annotations without a segmentation (a box is no mask)", without_mask)
    return classes


def _images(content: dict, path: Path, root: Path) -> dict[int | str, tuple[str, Size | None]]:
    """Return names and sizes of the images by id."""
    images: dict[int | str, tuple[str, Size | None]] = {}
    names = set()
    for image in content["images"]:
        with errors_of(f"'{path}': image {image.get('id')!r}"):
            name = resolve_inside(root, image.get("file_name"))
            if type(image.get("id")) not in (int, str):
                raise UserError("'id' must be an integer or a string")
            if image["id"] in images or name in names:
                raise UserError(f"the id or '{name}' is listed twice")
        names.add(name)
        size = image.get("height"), image.get("width")
        images[image["id"]] = name, None if None in size else size
    return images
