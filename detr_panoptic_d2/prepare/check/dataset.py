"""Check every entry, image and PNG of a dataset in COCO panoptic format, and fix the json."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ...data.dataset_mapper import is_target, read_image
from ...data.label_maps import ids_to_labels
from ...data.panoptic_check import AnnotatedImage, EntryError, PanopticContent, check_panoptic_json
from ...data.panoptic_json import complete_segments, read_panoptic_json
from ...data.panoptic_png import read_panoptic_png
from ...files import atomic_file
from ..parallel import map_images
from .findings import FIXABLE, Finding, limit_per_image, picture_hash


class DatasetPaths(NamedTuple):
    """A dataset in COCO panoptic format, as ``register_panoptic`` takes it."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


@dataclass
class ImageResult:
    """Findings of an image, and its segments that have pixels, with area and box of the PNG."""

    name: str
    path: str
    png_path: str
    size: tuple[int, int] | None = None  # height, width, upright
    digest: str | None = None
    picture_hash: np.ndarray | None = None
    segments: list[dict] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, self.name, detail))


@dataclass
class Report:
    """The result of a check. ``images`` are those of ``valid.annotated``."""

    paths: DatasetPaths
    content: dict
    valid: PanopticContent
    images: list[ImageResult]
    findings: list[Finding]

    @property
    def has_errors(self) -> bool:
        """Whether training or evaluation would stop or go wrong."""
        return any(finding.is_error for finding in self.findings)

    @property
    def max_segments(self) -> int:
        """The most segments of an image, without crowds."""
        return max((sum(map(is_target, image.segments)) for image in self.images), default=0)

    def classes(self) -> list[tuple[dict, list[int], int, int]]:
        """Return (category, areas of its segments, number of crowds, of images) of each class."""
        rows = []
        for category_id, category in self.valid.categories.items():
            own = [[s for s in i.segments if s["category_id"] == category_id] for i in self.images]
            areas = [s["area"] for segments in own for s in segments if is_target(s)]
            num_crowds = sum(map(len, own)) - len(areas)
            rows.append((category, areas, num_crowds, sum(map(bool, own))))
        return rows


def check_dataset(paths: DatasetPaths, *, workers: int = 1) -> Report:
    """Check every entry, image and PNG of a dataset."""
    for key in ("image_root", "panoptic_root"):
        if not os.path.isdir(getattr(paths, key)):
            raise FileNotFoundError(
                f"Dataset '{paths.name}': {key} '{getattr(paths, key)}' is not a folder."
            )
    content = read_panoptic_json(paths.panoptic_json)
    errors: list[EntryError] = []
    valid = check_panoptic_json(content, paths.image_root, paths.panoptic_root, errors.append)
    findings = [
        Finding("repeated-entry" if error.repeated else "bad-entry", error.where, error.detail)
        for error in errors
    ]
    images = map_images(
        check_image, valid.annotated, workers=workers, description=f"Checking {paths.name}"
    )
    findings += _check_whole(paths.name, valid, images)
    findings += [finding for image in images for finding in image.findings]
    return Report(paths, content, valid, images, limit_per_image(findings))


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
        result.add("wrong-size", f"(height, width) {listed}, the image has {result.size}")
    _check_segments(task, ids, result)
    return result


def _check_segments(task: AnnotatedImage, ids: np.ndarray, result: ImageResult) -> None:
    result.segments = complete_segments(ids, task.segments)
    true_segments = {segment["id"]: segment for segment in result.segments}
    _, unknown_ids = ids_to_labels(ids, [segment["id"] for segment in task.segments])
    for segment_id in unknown_ids.tolist():
        result.add("id-without-entry", f"id {segment_id}")
    if not result.segments:
        result.add("nothing-labelled", "every pixel is void")
    for segment in task.segments:
        what = f"segment {segment['id']}"
        if segment["id"] not in true_segments:
            result.add("segment-without-pixels", what)
            continue
        true = true_segments[segment["id"]]
        if "iscrowd" not in segment:
            result.add("wrong-crowd", f"{what} has no 'iscrowd'")
        if true["area"] == 1:
            result.add("one-pixel", what)
        if segment.get("area") != true["area"]:
            kind = "no-area" if segment.get("area") is None else "wrong-area"
            result.add(kind, f"{what}: area {segment.get('area')!r}, the PNG has {true['area']}")
        if "bbox" in segment and segment["bbox"] != true["bbox"]:
            result.add("wrong-box", f"{what}: bbox {segment['bbox']!r}, the PNG has {true['bbox']}")


def _check_whole(set_name: str, valid: PanopticContent, images: list[ImageResult]) -> list[Finding]:
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
    first_of_digest: dict[str | None, ImageResult] = {}
    used_ids = set()
    for image in images:
        first = first_of_digest.setdefault(image.digest, image)
        if first is not image and image.digest:
            detail = f"the same file as '{first.name}'"
            findings.append(Finding("duplicate-image", image.name, detail))
        for category_id, number in Counter(s["category_id"] for s in image.segments).items():
            used_ids.add(category_id)
            category = valid.categories[category_id]
            if number > 1 and not category["isthing"]:
                detail = f"'{category['name']}' has {number} segments"
                findings.append(Finding("split-stuff", image.name, detail))
    for category_id, category in valid.categories.items():
        if category_id not in used_ids:
            where = f"category '{category['name']}'"
            findings.append(Finding("unused-class", where, "no segment"))
    if not any(is_target(segment) for image in images for segment in image.segments):
        detail = "no image has a segment with pixels that is not a crowd, so nothing can be learnt"
        findings.append(Finding("no-labels", set_name, detail))
    return findings


def why_not_fixed(report: Report) -> str:
    """Return why the json cannot be corrected; "" if it can, or if there is nothing to correct.

    With an error that is not fixable, or with areas that differ widely, the PNGs may be those of
    another json, and nothing is taken from them.
    """
    kinds = Counter(finding.kind for finding in report.findings)
    if others := [f.kind for f in report.findings if f.is_error and f.kind not in FIXABLE]:
        return f"it has errors that cannot be fixed, such as {others[0]}. Correct these first"
    true = {(image.name, s["id"]): s["area"] for image in report.images for s in image.segments}
    listed = [(a.image["file_name"], s) for a in report.valid.annotated for s in a.segments]
    num_other = sum(s.get("area") not in (None, true.get((name, s["id"]))) for name, s in listed)
    if num_other > max(1, len(listed) // 10):
        return "more than a tenth of the segments have another area. Are these the PNGs of the json"
    return "" if kinds.keys() & set(FIXABLE) else "there is nothing to fix"


def fix_json(report: Report) -> Path:
    """Write the json with what is correct; return the path of the copy of the old one."""
    path = Path(report.paths.panoptic_json)
    annotations = [
        {**annotated.annotation, "segments_info": image.segments}
        for annotated, image in zip(report.valid.annotated, report.images, strict=True)
    ]
    for annotated, image in zip(report.valid.annotated, report.images, strict=True):
        if "height" in annotated.image:
            annotated.image["height"], annotated.image["width"] = image.size
    backup, number = path.with_name(f"{path.name}.bak"), 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    backup.write_bytes(path.read_bytes())
    images, categories = list(report.valid.images.values()), list(report.valid.categories.values())
    fixed = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_file(path) as f:
        json.dump({**report.content, **fixed}, f)
    return backup
