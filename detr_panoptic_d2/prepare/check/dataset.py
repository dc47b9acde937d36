"""Check every entry, image and PNG of a data set in COCO panoptic format."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ...data.dataset_mapper import is_target, read_image
from ...data.label_maps import ids_to_labels, label_boxes_and_areas
from ...data.panoptic_check import (
    AnnotatedImage,
    EntryError,
    PanopticContent,
    check_panoptic_json,
)
from ...data.panoptic_json import read_panoptic_json
from ...data.panoptic_png import read_panoptic_png
from ..parallel import map_images
from .duplicates import picture_hash
from .findings import Finding, Fix, finding_of_error, keep_certain_fixes, limit_per_image


class DatasetPaths(NamedTuple):
    """A data set in COCO panoptic format, as ``register_panoptic`` takes it."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


class SegmentSize(NamedTuple):
    """A segment that has pixels; ``area`` is their number."""

    segment_id: int
    category_id: int
    is_target: bool
    area: int


@dataclass
class ImageResult:
    """Findings of an image, and its segments that have pixels."""

    name: str
    path: str
    png_path: str
    size: tuple[int, int] | None = None  # height, width, upright
    digest: str | None = None
    picture_hash: np.ndarray | None = None
    segments: list[SegmentSize] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, detail: str, fix: Fix | None = None) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, self.name, detail, fix))


@dataclass
class Report:
    """The result of a check."""

    paths: DatasetPaths
    findings: list[Finding]
    categories: dict[int, dict]
    images: list[ImageResult]
    num_uncertain: int  # findings whose fix is not certain

    @property
    def has_errors(self) -> bool:
        """Whether training or evaluation would stop or go wrong."""
        return any(finding.is_error for finding in self.findings)

    @property
    def max_segments(self) -> int:
        """The most segments of an image, without crowds."""
        return max((sum(s.is_target for s in image.segments) for image in self.images), default=0)


def check_dataset(paths: DatasetPaths, *, workers: int = 1) -> Report:
    """Check every entry, image and PNG of a data set.

    Args:
        paths: of the data set.
        workers: number of processes.

    Raises:
        FileNotFoundError: the json or a folder is missing.
        UserError: the json is not a mapping.
    """
    for key in ("image_root", "panoptic_root"):
        if not os.path.isdir(getattr(paths, key)):
            raise FileNotFoundError(
                f"Data set '{paths.name}': {key} '{getattr(paths, key)}' is not a folder."
            )
    content = read_panoptic_json(paths.panoptic_json)
    errors: list[EntryError] = []
    valid = check_panoptic_json(content, paths.image_root, paths.panoptic_root, errors.append)
    images = map_images(
        check_image, valid.annotated, workers=workers, description=f"Checking {paths.name}"
    )
    findings = limit_per_image(map(finding_of_error, errors)) + _check_whole(valid, images)
    findings += [finding for image in images for finding in image.findings]
    if not any(segment.is_target for image in images for segment in image.segments):
        detail = "no image has a segment with pixels that is not a crowd, so nothing can be learnt"
        findings.append(Finding("no-labels", paths.name, detail))
    certain = keep_certain_fixes(findings, sum(len(image.segments) for image in valid.annotated))
    num_uncertain = sum(old.fix != new.fix for old, new in zip(findings, certain, strict=True))
    return Report(paths, certain, valid.categories, images, num_uncertain)


def check_image(task: AnnotatedImage) -> ImageResult:
    """Decode an image and its PNG, and compare them with the json."""
    result = ImageResult(task.image["file_name"], task.image_path, task.png_path)
    try:
        result.digest = hashlib.sha256(Path(task.image_path).read_bytes()).hexdigest()
        pixels = read_image(task.image_path, "RGB")
        result.size, result.picture_hash = pixels.shape[:2], picture_hash(pixels)
        with Image.open(task.image_path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation in range(2, 9):
            detail = f"orientation {orientation}; training applies it, other programs may not"
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
        result.add("wrong-size", f"(height, width) {listed}, the image has {result.size}", fix)
    _check_segments(task, ids, result)
    result.findings = limit_per_image(result.findings)
    return result


def _check_segments(task: AnnotatedImage, ids: np.ndarray, result: ImageResult) -> None:
    labels, unknown_ids = ids_to_labels(ids, [segment["id"] for _, segment in task.segments])
    boxes, areas = label_boxes_and_areas(labels, len(task.segments))
    for segment_id in unknown_ids.tolist():
        result.add("id-without-entry", f"id {segment_id}")
    if not areas.any():
        result.add("nothing-labelled", "every pixel is void")
    boxes[:, 2:] += 1 - boxes[:, :2]
    boxes = boxes.astype(int).tolist()
    for (place, segment), tight, area in zip(task.segments, boxes, areas.tolist(), strict=True):
        what = f"segment {segment['id']}"
        if area == 0:
            result.add("segment-without-pixels", what, Fix(place, None))
            continue
        result.segments.append(
            SegmentSize(segment["id"], segment["category_id"], is_target(segment), area)
        )
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


def _check_whole(valid: PanopticContent, images: list[ImageResult]) -> list[Finding]:
    """Return the findings that concern more than one image."""
    findings: list[Finding] = []
    names = Counter(category["name"] for category in valid.categories.values())
    findings += [Finding("category-name", "categories", name) for name, n in names.items() if n > 1]
    pngs = Counter(image.png_path for image in valid.annotated)
    findings += [Finding("shared-png", "annotations", png) for png, n in pngs.items() if n > 1]
    annotated_ids = {image.image["id"] for image in valid.annotated}
    for image_id, entry in valid.images.items():
        if image_id not in annotated_ids:
            findings.append(Finding("no-annotation", entry["file_name"], f"image {image_id!r}"))
    first_of_digest: dict[str, ImageResult] = {}
    used_ids = set()
    for image in images:
        first = first_of_digest.setdefault(image.digest, image) if image.digest else image
        if first is not image:
            findings.append(
                Finding("duplicate-image", image.name, f"the same file as '{first.name}'")
            )
        for category_id, number in Counter(s.category_id for s in image.segments).items():
            used_ids.add(category_id)
            category = valid.categories[category_id]
            if number > 1 and not category["isthing"]:
                detail = f"'{category['name']}' has {number} segments"
                findings.append(Finding("split-stuff", image.name, detail))
    for category_id, category in valid.categories.items():
        if category_id not in used_ids:
            where = f"category '{category['name']}'"
            findings.append(Finding("unused-class", where, "no segment"))
    return findings
