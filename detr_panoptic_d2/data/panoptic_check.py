"""The one validator of COCO panoptic jsons. It opens no image.

Loading a data set raises on the first finding (:func:`.panoptic_json.panoptic_dicts`);
``prepare/check`` collects them and goes on with what is usable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import inside_root
from .panoptic_png import MAX_SEGMENT_ID

# Keys and indices that lead to an entry of the json.
Place = tuple[str | int, ...]


class Fix(NamedTuple):
    """A change of the json that loses nothing: entries to set at a place; None removes it."""

    place: Place
    change: dict[str, Any] | None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: "bad-entry" or "repeated-entry"; ``prepare/check`` has more.
        where: file name of the image as in the json, or the list that the entry is in.
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
    """An image with its annotation: its entry, the paths of both files, the usable segments."""

    image: dict
    place: Place
    image_path: str
    png_path: str
    segments: list[tuple[Place, dict]]


class PanopticContent(NamedTuple):
    """What is usable of a json: categories and images by id, in their order, and annotations."""

    categories: dict[int, dict]
    images: dict[int | str, dict]
    annotated: list[AnnotatedImage]


def check_panoptic_json(
    content: dict, image_root: str, panoptic_root: str, report: Report
) -> PanopticContent:
    """Check everything that can be said without opening an image.

    Args:
        content: of a COCO panoptic json.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.
        report: is called with each finding. If it raises, the walk ends.
    """
    categories = check_categories(content.get("categories"), report)

    def check_image(image: dict) -> None:
        inside_root(image_root, image.get("file_name"))
        for side in ("height", "width"):
            if side in image and not (_is_int(image[side]) and image[side] > 0):
                raise UserError(f"'{side}' is {image[side]!r}, not a number of pixels")

    def check_annotation(annotation: dict) -> None:
        inside_root(panoptic_root, annotation.get("file_name"))
        if annotation["image_id"] not in images:
            raise UserError("there is no such image in 'images', or no usable entry of it")
        if not _is_list_of_mappings(annotation.get("segments_info")):
            raise UserError("'segments_info' must be a list of mappings")

    def check_segment(segment: dict) -> None:
        category_id = segment.get("category_id")
        if not _is_int(segment["id"]) or not 0 < segment["id"] <= MAX_SEGMENT_ID:
            raise UserError("the id is not within 1 and 2^24 - 1 (0 is void)")
        if not _is_int(category_id) or category_id not in categories:
            known = sorted(categories)
            raise UserError(f"category_id is {category_id!r}, but 'categories' has {known}")
        if segment.get("iscrowd", 0) not in (0, 1):
            raise UserError(f"iscrowd is {segment['iscrowd']!r}, not 0 or 1")

    images = _usable(content.get("images"), ("images",), check_image, report)
    annotations = _usable(content.get("annotations"), ("annotations",), check_annotation, report)
    annotated = []
    for image_id, (place, annotation) in annotations.items():
        image_place, image = images[image_id]
        name, infos = image["file_name"], annotation["segments_info"]
        segments = _usable(infos, (*place, "segments_info"), check_segment, report, where=name)
        image_path = inside_root(image_root, name)
        png_path = inside_root(panoptic_root, annotation["file_name"])
        annotated.append(
            AnnotatedImage(image, image_place, image_path, png_path, list(segments.values()))
        )
    return PanopticContent(categories, {i: image for i, (_, image) in images.items()}, annotated)


def check_categories(categories: Any, report: Report) -> dict[int, dict]:
    """Return the usable ``categories`` of a json by id, in their order; report the others."""

    def check(category: dict) -> None:
        if not _is_int(category["id"]):
            raise UserError("the id must be an integer")
        if not isinstance(category.get("name"), str) or not category["name"]:
            raise UserError("no 'name'")
        if category.get("isthing") not in (0, 1):
            raise UserError(
                "no valid 'isthing'; add \"isthing\": 1 to classes with countable objects, "
                '"isthing": 0 to stuff such as sky'
            )
        color = category.get("color")
        channels = color if isinstance(color, list | tuple) else ()
        valid = len(channels) == 3 and all(_is_int(c) and 0 <= c <= 255 for c in channels)
        if color is not None and not valid:
            raise UserError("'color' must be three integers from 0 to 255")

    usable = _usable(categories, ("categories",), check, report)
    return {category_id: category for category_id, (_, category) in usable.items()}


def _usable(
    entries: Any,
    list_place: Place,
    check: Callable[[dict], None],
    report: Report,
    where: str | None = None,
) -> dict[Any, tuple[Place, dict]]:
    """Return the entries of a list of the json that are right, by id; report the others.

    Args:
        entries: the list.
        list_place: leads to it; ends with its name.
        check: raises ``UserError`` if an entry whose id is an integer or a string is wrong.
        report: is called with each finding.
        where: of the findings; default: the name of the list.
    """
    name = str(list_place[-1])
    where = where or name
    id_key = "image_id" if name == "annotations" else "id"
    if not _is_list_of_mappings(entries):
        report(Finding("bad-entry", where, f"'{name}' must be a list of mappings"))
        return {}
    first: dict[Any, dict] = {}
    usable: dict[Any, tuple[Place, dict]] = {}
    for index, entry in enumerate(entries):
        place, entry_id = (*list_place, index), entry.get(id_key)
        try:
            if not _is_int(entry_id) and not isinstance(entry_id, str):
                raise UserError(f"the {id_key} must be an integer or a string")
            if first.setdefault(entry_id, entry) is not entry:
                if first[entry_id] == entry:
                    detail, fix = f"{id_key} {entry_id!r} is listed twice", Fix(place, None)
                    report(Finding("repeated-entry", where, detail, fix))
                    continue
                raise UserError(f"another entry has this {id_key}")
            check(entry)
        except UserError as error:
            detail = f"entry {index}, {id_key} {entry_id!r}: {error}"
            report(Finding("bad-entry", where, detail))
        else:
            usable[entry_id] = place, entry
    return usable


def _is_list_of_mappings(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
