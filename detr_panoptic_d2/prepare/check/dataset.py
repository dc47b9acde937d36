"""Look at every entry, image and PNG of a data set in COCO panoptic format."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ...data.dataset_mapper import read_image
from ...data.masks import ids_to_labels, label_boxes_and_areas
from ...data.panoptic_check import (
    AnnotatedImage,
    Finding,
    Fix,
    PanopticContent,
    check_panoptic_json,
)
from ...data.panoptic_json import read_panoptic_json
from ...data.panoptic_png import read_panoptic_png
from ..parallel import map_images
from .findings import capped, is_error, only_sure_fixes


class DatasetPaths(NamedTuple):
    """A data set in COCO panoptic format, as ``register_panoptic`` takes it."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


class SegmentSize(NamedTuple):
    """A segment that has pixels; ``area`` is their number."""

    category_id: int
    iscrowd: int
    area: int


@dataclass
class ImageResult:
    """What was seen of an image.

    Attributes:
        name: as in the json.
        size: (height, width), upright; None if it cannot be read.
        digest: of the file.
        segments: those that have pixels.
        findings: what is wrong.
    """

    name: str
    size: tuple[int, int] | None = None
    digest: str | None = None
    segments: list[SegmentSize] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, detail: str, fix: Fix | None = None) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, self.name, detail, fix))


@dataclass
class Report:
    """The result of a check.

    Attributes:
        paths: of the data set.
        findings: errors and warnings.
        categories: by id, in the order of the json.
        images: those that were looked at.
        unsure: number of findings whose fix is known, but not sure.
    """

    paths: DatasetPaths
    findings: list[Finding]
    categories: dict[int, dict]
    images: list[ImageResult]
    unsure: int

    @property
    def has_errors(self) -> bool:
        """Whether training or evaluation would go wrong."""
        return any(is_error(finding) for finding in self.findings)


def check_dataset(paths: DatasetPaths, *, workers: int = 1) -> Report:
    """Look at every entry, image and PNG of a data set.

    Args:
        paths: of the data set.
        workers: number of processes.

    Raises:
        FileNotFoundError: the json or a folder is missing.
        UserError: it is no json, or no mapping.
    """
    for key in ("image_root", "panoptic_root"):
        if not os.path.isdir(getattr(paths, key)):
            raise FileNotFoundError(
                f"Data set '{paths.name}': {key} '{getattr(paths, key)}' is no folder."
            )
    content = read_panoptic_json(paths.panoptic_json)
    findings: list[Finding] = []
    usable = check_panoptic_json(content, paths.image_root, paths.panoptic_root, findings.append)
    images = map_images(
        check_image, usable.annotated, workers=workers, description=f"Checking {paths.name}"
    )
    findings = capped(findings)
    for image in images:
        findings += image.findings
    findings += _of_the_whole(usable, images)
    if not any(image.segments for image in images):
        findings.append(Finding("no-labels", paths.name, "there is nothing to learn from"))
    sure = only_sure_fixes(findings, sum(len(one.segments) for one in usable.annotated))
    unsure = sum(old.fix != new.fix for old, new in zip(findings, sure, strict=True))
    return Report(paths, sure, usable.categories, images, unsure)


def check_image(task: AnnotatedImage) -> ImageResult:
    """Read an image and its PNG whole and compare them with the json."""
    result = ImageResult(task.image["file_name"])
    try:
        result.digest = hashlib.sha256(Path(task.image_path).read_bytes()).hexdigest()
        result.size = read_image(task.image_path, "RGB").shape[:2]
        with Image.open(task.image_path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in range(2, 9):
            detail = f"orientation {orientation}; training turns it, other programs may not"
            result.add("exif-rotated", detail)
    except FileNotFoundError:
        result.add("missing-image", task.image_path)
    except (OSError, ValueError) as error:
        result.add("unreadable-image", str(error))
    try:
        ids = read_panoptic_png(task.png_path)
    except FileNotFoundError:
        result.add("missing-png", task.png_path)
        return result
    except (OSError, ValueError) as error:
        result.add("unreadable-png", str(error))
        return result
    listed = (task.image.get("height"), task.image.get("width"))
    if result.size is not None and ids.shape != result.size:
        detail = f"(height, width) of the PNG {ids.shape}, of the upright image {result.size}"
        result.add("png-size", detail)
    elif result.size is not None and None not in listed and listed != result.size:
        fix = Fix(task.place, dict(zip(("height", "width"), result.size, strict=True)))
        result.add("wrong-size", f"(height, width) in the json {listed}, found {result.size}", fix)
    _check_segments(task, ids, result)
    result.findings = capped(result.findings)
    return result


def _check_segments(task: AnnotatedImage, ids: np.ndarray, result: ImageResult) -> None:
    labels, unnamed = ids_to_labels(ids, [segment["id"] for _, segment in task.segments])
    boxes, areas = label_boxes_and_areas(labels, len(task.segments))
    for segment_id in unnamed.tolist():
        result.add("id-without-entry", f"id {segment_id}")
    if not areas.any():
        result.add("nothing-labelled", "all of it is void")
    boxes[:, 2:] += 1 - boxes[:, :2]
    boxes = boxes.astype(int).tolist()
    for (place, segment), tight, area in zip(task.segments, boxes, areas.tolist(), strict=True):
        what = f"segment {segment['id']}"
        if area == 0:
            result.add("segment-without-pixels", what, Fix(place, None))
            continue
        result.segments.append(SegmentSize(segment["category_id"], segment.get("iscrowd", 0), area))
        if "iscrowd" not in segment:
            result.add("wrong-crowd", f"{what} has no 'iscrowd'", Fix(place, {"iscrowd": 0}))
        if area == 1:
            result.add("one-pixel", what)
        if segment.get("area") != area:
            kind = "no-area" if segment.get("area") is None else "wrong-area"
            detail = f"{what}: area {segment.get('area')!r}, the PNG has {area}"
            result.add(kind, detail, Fix(place, {"area": area}))
        if "bbox" in segment and segment["bbox"] != tight:
            detail = f"{what}: bbox {segment['bbox']!r}, the PNG has {tight}"
            result.add("wrong-box", detail, Fix(place, {"bbox": tight}))


def _of_the_whole(usable: PanopticContent, images: list[ImageResult]) -> list[Finding]:
    """Findings that one image does not tell."""
    found: list[Finding] = []
    names = Counter(category["name"] for category in usable.categories.values())
    found += [Finding("category-name", "categories", name) for name, n in names.items() if n > 1]
    pngs = Counter(one.png_path for one in usable.annotated)
    found += [Finding("shared-png", "annotations", png) for png, n in pngs.items() if n > 1]
    annotated = {one.image["id"] for one in usable.annotated}
    for image_id, entry in usable.images.items():
        if image_id not in annotated:
            found.append(Finding("no-annotation", entry["file_name"], f"image {image_id!r}"))
    first: dict[str, ImageResult] = {}
    used = set()
    for image in images:
        if image.digest and first.setdefault(image.digest, image) is not image:
            detail = f"the same file as '{first[image.digest].name}'"
            found.append(Finding("duplicate-image", image.name, detail))
        for category_id, number in Counter(s.category_id for s in image.segments).items():
            used.add(category_id)
            category = usable.categories[category_id]
            if number > 1 and not category["isthing"]:
                detail = f"'{category['name']}' has {number} segments"
                found.append(Finding("split-stuff", image.name, detail))
    for category_id, category in usable.categories.items():
        if category_id not in used:
            found.append(Finding("unused-class", f"category '{category['name']}'", "no segment"))
    return found


def duplicates_between(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Find image files that are in two data sets: ``set: image`` of both."""
    seen: dict[str, str] = {}
    result = []
    for report in reports:
        here = {i.digest: f"{report.paths.name}: {i.name}" for i in report.images if i.digest}
        result += [(seen[digest], place) for digest, place in here.items() if digest in seen]
        seen = here | seen
    return result
