"""COCO instances json (polygons, RLE, crowd), with or without semantic annotations -> panoptic."""

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from .categories import Category, complete, merge_classes
from .class_masks import MaskReader, match_masks
from .shapes import DrawShapes, polygon, shape
from .source import Item, Labels, LeftOut, Segment, Source, require_folder, resolve_inside


def coco_instances(
    instances: Path,
    images: Path,
    *,
    overlap: str = "smaller-on-top",
    semantic: Path | None = None,
    labels: Path | None = None,
    mask_suffix: str = ".png",
) -> Source:
    """A COCO instances json.

    Overlaps are resolved by :func:`shapes.draw_shapes`. Semantic annotations lie under all
    instances; where they have the class of a thing but no instance is, the pixel is void, since
    nobody knows which object it belongs to.

    Args:
        instances: the json.
        images: folder of the images.
        overlap: rule.
        semantic: stuff as a COCO json (categories are stuff), or folder of class masks.
        labels: list of classes of the masks; see ``categories.read_class_file``.
        mask_suffix: what follows the image's name without suffix in the name of its mask.

    Raises:
        FileNotFoundError: a file or folder is missing.
        UserError: a json is not in the format, or names a path outside of ``images``.
    """
    require_folder(images, "--images")
    left_out: LeftOut = defaultdict(list)
    contents = {str(instances): _read_json(instances)}
    classes = _classes(contents[str(instances)], str(instances), is_thing=True)
    listed = _images(contents[str(instances)], str(instances), images)
    reader, masks = None, {}
    if semantic is not None and semantic.is_file():
        contents[str(semantic)] = content = _read_json(semantic)
        classes = merge_classes([*classes, *_classes(content, str(semantic), is_thing=False)])
    elif semantic is not None:
        reader = MaskReader.open(semantic, labels, mask_suffix)
        taken = {c.id for c in classes}
        stuff = [replace(c, isthing=False) for c in reader.categories()]
        stuff = [replace(c, id=None) if c.id in taken else c for c in stuff]
        classes = merge_classes([*classes, *stuff])
        masks = match_masks(semantic, [name for name, _ in listed.values()], mask_suffix, left_out)
    shapes: dict[Any, list[dict]] = {image_id: [] for image_id in listed}
    for where, content in contents.items():
        _collect(content, where, shapes, left_out)
    items = [
        Item(name, {"shapes": shapes[image_id], "size": size, "mask": masks.get(name)}, image_id)
        for image_id, (name, size) in listed.items()
    ]
    return Source(images, classes, items, _Draw(overlap, reader), left_out=left_out)


@dataclass(frozen=True)
class _Draw:
    """Draws instances, and the stuff of a class mask under them."""

    overlap: str
    reader: MaskReader | None

    def __call__(self, item: Item, size: tuple[int, int], things: Collection[str]) -> Labels:
        labels = DrawShapes(self.overlap, "The json's entry")(item, size, things)
        mask = item.annotation["mask"]
        if mask is None:
            return labels
        free = labels.map == 0
        for name, where in self.reader.class_regions(mask, size, item.file_name):
            labels.segments.append(Segment(None if name in things else name))
            labels.map[free & where] = len(labels.segments)
        return labels


def _collect(content: dict, where: str, shapes: dict[Any, list], left_out: LeftOut) -> None:
    """Check the annotations of a json and sort them by image."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    for annotation in content["annotations"]:
        at = f"'{where}': annotation {annotation.get('id')!r}"
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image_id, int | str) or image_id not in shapes:
            raise UserError(f"{at}: there is no image with the id {image_id!r} in 'images'.")
        if not isinstance(category, int) or category not in names:
            raise UserError(
                f"{at}: category_id {category!r} is not in 'categories' ({sorted(names)})."
            )
        part = _part(annotation, at, left_out)
        if part is not None:
            crowd = int(bool(annotation.get("iscrowd", 0)))
            shapes[image_id].append(shape(names[category], part, iscrowd=crowd))


def _part(annotation: dict, where: str, left_out: LeftOut) -> dict | None:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        is_size = isinstance(size, list) and len(size) == 2
        if not is_size or not isinstance(counts, list | str):
            raise UserError(f"{where}: an RLE needs 'size' [height, width] and 'counts'.")
        return {"rle": {"size": size, "counts": counts}}
    if not isinstance(segmentation, list) or not segmentation:
        left_out["annotations have no segmentation (a box is no mask)"].append(where)
        return None
    polygons = [polygon(points, where) for points in segmentation]
    if None in polygons:
        left_out["polygons have fewer than three points"].append(where)
    polygons = [p for p in polygons if p is not None]
    return {"polygons": polygons} if polygons else None


def _read_json(path: Path) -> dict:
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except FileNotFoundError:
        raise FileNotFoundError(f"COCO json '{path}' does not exist.") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"'{path}' has no list '{key}' of mappings, as COCO instances have.")
    return content


def _classes(content: dict, where: str, *, is_thing: bool) -> list[Category]:
    listed = content["categories"]
    for category in listed:
        if type(category.get("id")) is not int or not isinstance(category.get("name"), str):
            raise UserError(f"'{where}': category {category!r} needs an integer 'id' and a 'name'.")
    if numbered := [{**c, "isthing": int(is_thing), "color": None} for c in listed if c["id"]]:
        complete(numbered)
    thing = [is_thing and bool(c.get("isthing", 1)) for c in listed]
    colors = [tuple(c["color"]) if isinstance(c.get("color"), list) else None for c in listed]
    return [
        Category(c["name"], c["id"], t, color)
        for c, t, color in zip(listed, thing, colors, strict=True)
    ]


def _images(content: dict, where: str, root: Path) -> dict[int | str, tuple[str, list | None]]:
    """Return names and sizes of the images by id."""
    images: dict[int | str, tuple[str, list | None]] = {}
    names = set()
    for image in content["images"]:
        at = f"'{where}': image {image.get('id')!r}"
        if type(image.get("id")) not in (int, str):
            raise UserError(f"{at}: 'id' must be an integer or a string.")
        name = resolve_inside(root, image.get("file_name"), at)
        if image["id"] in images or name in names:
            raise UserError(f"{at} ('{name}') is listed twice.")
        names.add(name)
        sides = [image.get("height"), image.get("width")]
        images[image["id"]] = (name, sides if None not in sides else None)
    return images
