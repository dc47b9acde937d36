"""COCO instances json (polygons, RLE, crowd), with or without semantic truth -> panoptic."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .categories import ClassOptions, Found, choose_categories, complete
from .class_masks import MaskClasses, match_masks
from .shapes import draw_shapes, polygon, shape
from .source import VOID, Item, Labels, Segment, Skipped, check_size, require_folder, resolve_inside


class CocoInstances:
    """A COCO instances json.

    Overlaps are resolved by :func:`shapes.draw_shapes`. Semantic truth lies under all instances;
    where it has the class of a thing but no instance is, the pixel is void, since nobody knows
    which object it belongs to.

    Args:
        instances: the json.
        images: folder of the images.
        overlap: rule.
        semantic: stuff as a COCO json (categories are stuff), or folder of class masks.
        semantic_labels: list of classes of the masks; see ``categories.read_class_file``.
        mask_suffix: what follows the image's name without suffix in the name of its mask.
        classes: options.

    Raises:
        FileNotFoundError: a file or folder is missing.
        UserError: a json is not in the format, or names a path outside of ``images``.
    """

    def __init__(
        self,
        instances: Path,
        images: Path,
        *,
        overlap: str = "smaller-on-top",
        semantic: Path | None = None,
        semantic_labels: Path | None = None,
        mask_suffix: str = ".png",
        classes: ClassOptions = ClassOptions(),  # noqa: B008  immutable
    ):
        self.image_root = require_folder(images, "--images")
        self.skipped = Skipped()
        self._semantic: MaskClasses | None = None
        content = _read_json(instances)
        found = _found(content, str(instances), is_thing=True)
        listed = _images(content, str(instances), images)
        annotated = [(content, str(instances))]
        if semantic is not None and semantic.is_file():
            annotated.append((_read_json(semantic), str(semantic)))
            _refuse_clash(found, stuff := _found(annotated[1][0], str(semantic), is_thing=False))
            found += [f for f in stuff if f.name not in {g.name for g in found}]
        elif semantic is not None:
            self._semantic = MaskClasses.read(semantic, semantic_labels, mask_suffix)
            known = {f.name for f in found}
            ids = {f.id for f in found}
            new = [f for f in self._semantic.found() if f.name not in known]
            found += [Found(f.name, None if f.id in ids else f.id, False, f.color) for f in new]
        self.categories = choose_categories(found, classes)
        self._ids = {c["name"]: c["id"] for c in self.categories}
        self._things = {c["id"] for c in self.categories if c["isthing"]}
        shapes = {image_id: [] for image_id in listed}
        for part, where in annotated:
            names = {c["id"]: c["name"] for c in part["categories"]}
            self._collect(part, where, names, listed, shapes)
        masks: dict[str, dict] = {}
        if self._semantic:
            masks = match_masks(semantic, [n for n, *_ in listed.values()], mask_suffix)
        self.items = [
            Item(name, {"shapes": shapes[i], "size": size, **masks.get(name, {})}, i)
            for i, (name, size) in listed.items()
        ]
        self._overlap = overlap
        self.options: dict[str, Any] = {"format": "COCO instances", "overlap": overlap}
        if self._semantic:
            self.options["semantic"] = self._semantic.as_options(self._ids)

    def label(self, item: Item, size: tuple[int, int]) -> Labels:
        """Draw the instances over the semantic truth."""
        where = f"image '{item.file_name}'"
        check_size(item.truth["size"] or size, size, f"The json's entry of {where}", item.file_name)
        labels = draw_shapes(item.truth["shapes"], size, self._things, self._overlap, where)
        if self._semantic is None:
            return labels
        return under(labels, self._semantic, item, size, self._ids, self._things)

    def _collect(
        self, content: dict, where: str, names: dict, images: dict, shapes: dict[Any, list]
    ) -> None:
        """Check the annotations and sort them by image."""
        for annotation in content["annotations"]:
            at = f"'{where}': annotation {annotation.get('id')!r}"
            image_id, category = annotation.get("image_id"), annotation.get("category_id")
            if not isinstance(image_id, int | str) or image_id not in images:
                raise UserError(f"{at}: there is no image with the id {image_id!r} in 'images'.")
            if not isinstance(category, int) or category not in names:
                raise UserError(
                    f"{at}: category_id {category!r} is not in 'categories' ({sorted(names)})."
                )
            category_id = self._ids.get(names[category], VOID)
            part = self._part(annotation, at)
            if part is not None:
                crowd = int(bool(annotation.get("iscrowd", 0)) and category_id in self._things)
                shapes[image_id].append(shape(category_id, part, iscrowd=crowd))

    def _part(self, annotation: dict, where: str) -> dict | None:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            size, counts = segmentation.get("size"), segmentation.get("counts")
            is_size = isinstance(size, list) and len(size) == 2
            if not is_size or not isinstance(counts, list | str):
                raise UserError(f"{where}: an RLE needs 'size' [height, width] and 'counts'.")
            return {"rle": {"size": size, "counts": counts}}
        if not isinstance(segmentation, list) or not segmentation:
            self.skipped.add("annotations have no segmentation (a box is no mask)", where)
            return None
        polygons = [polygon(points, where) for points in segmentation]
        if None in polygons:
            self.skipped.add("polygons have fewer than three points", where)
        polygons = [p for p in polygons if p is not None]
        return {"polygons": polygons} if polygons else None


def under(
    labels: Labels,
    semantic: MaskClasses,
    item: Item,
    size: tuple[int, int],
    ids: dict[str, int],
    things: set[int],
) -> Labels:
    """Put the stuff of an image's class mask under what is labelled."""
    values = semantic.values(item.truth["mask"], size, item.file_name)
    result, segments = labels.map, list(labels.segments)
    for value in np.unique(values).tolist():
        name = semantic.name_of(value, item.truth["mask"])
        if name is None:
            continue
        category_id = ids.get(name, VOID)
        segments.append(Segment(VOID if category_id in things else category_id))
        result[(result == 0) & (values == value)] = len(segments)
    return Labels(result, segments)


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


def _found(content: dict, where: str, *, is_thing: bool) -> list[Found]:
    for category in content["categories"]:
        if type(category.get("id")) is not int or not isinstance(category.get("name"), str):
            raise UserError(f"'{where}': category {category!r} needs an integer 'id' and a 'name'.")
    listed = content["categories"]
    complete([{**c, "isthing": int(is_thing), "color": None} for c in listed if c["id"]])
    thing = [is_thing and bool(c.get("isthing", 1)) for c in listed]
    colors = [tuple(c["color"]) if isinstance(c.get("color"), list) else None for c in listed]
    return [
        Found(c["name"], c["id"], t, color)
        for c, t, color in zip(listed, thing, colors, strict=True)
    ]


def _refuse_clash(found: list[Found], stuff: list[Found]) -> None:
    """Two jsons that share an id must mean the same class."""
    names = {f.id: f.name for f in found}
    for f in stuff:
        if names.get(f.id, f.name) != f.name:
            raise UserError(
                f"Category id {f.id} is '{names[f.id]}' in the instances json and '{f.name}' in "
                "the semantic one. Give the classes of the latter other ids."
            )


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
