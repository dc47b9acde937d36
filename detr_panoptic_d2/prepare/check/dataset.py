"""Look at every entry, image and PNG of a data set in COCO panoptic format."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ...data.dataset_mapper import is_target, read_image
from ...data.label_maps import ids_to_labels, label_boxes_and_areas
from ...data.panoptic_check import (
    AnnotatedImage,
    EntryError,
    PanopticContent,
    Place,
    check_panoptic_json,
)
from ...data.panoptic_json import read_panoptic_json
from ...data.panoptic_png import read_panoptic_png
from ...files import atomic_file
from ..parallel import map_images

# Kinds of findings that are no errors: training and evaluation go on and are right.
WARNINGS = (
    "wrong-box",
    "one-pixel",
    "nothing-labelled",
    "exif-rotated",
    "unused-class",
    "split-stuff",
    "no-annotation",
    "duplicate-image",
)
# Of one kind in one image; the rest is a number. Findings with a fix are all kept.
MOST_PER_IMAGE = 20
# Fixes that take the PNG for right, and those of them that contradict the json.
_FROM_PNG = ("segment-without-pixels", "wrong-area", "no-area", "wrong-box", "wrong-size")
_CONTRADICTING = ("segment-without-pixels", "wrong-area")


class Fix(NamedTuple):
    """A change of the json that loses nothing: entries to set at a place; None removes it."""

    place: Place
    change: dict[str, Any] | None


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Attributes:
        kind: such as "bad-entry" or "wrong-area".
        where: file name of the image as in the json, or the list that holds the entry.
        detail: what the fault is.
        fix: how to correct it, if that is certain.
    """

    kind: str
    where: str
    detail: str
    fix: Fix | None = None


def _finding(error: EntryError) -> Finding:
    if error.repeated:
        return Finding("repeated-entry", error.where, error.detail, Fix(error.place, None))
    return Finding("bad-entry", error.where, error.detail)


class DatasetPaths(NamedTuple):
    """A data set in COCO panoptic format, as ``register_panoptic`` takes it."""

    name: str
    image_root: str
    panoptic_root: str
    panoptic_json: str


class SegmentSize(NamedTuple):
    """A segment that has pixels; ``area`` is their number."""

    category_id: int
    is_target: bool
    area: int


@dataclass
class ImageResult:
    """What was seen of an image: findings, and the segments that have pixels."""

    name: str
    size: tuple[int, int] | None = None  # height, width, upright
    digest: str | None = None
    segments: list[SegmentSize] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, detail: str, fix: Fix | None = None) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, self.name, detail, fix))


class Report(NamedTuple):
    """The result of a check; ``unsure`` counts findings without a certain fix."""

    paths: DatasetPaths
    findings: list[Finding]
    categories: dict[int, dict]
    images: list[ImageResult]
    unsure: int
    files: list[str]

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
    errors: list[EntryError] = []
    usable = check_panoptic_json(content, paths.image_root, paths.panoptic_root, errors.append)
    images = map_images(
        check_image, usable.annotated, workers=workers, description=f"Checking {paths.name}"
    )
    findings = _capped(map(_finding, errors)) + _of_the_whole(usable, images)
    findings += [finding for image in images for finding in image.findings]
    if not any(segment.is_target for image in images for segment in image.segments):
        detail = "no image has a segment with pixels that is not a crowd, so nothing can be learnt"
        findings.append(Finding("no-labels", paths.name, detail))
    sure = _only_sure_fixes(findings, sum(len(one.segments) for one in usable.annotated))
    unsure = sum(old.fix != new.fix for old, new in zip(findings, sure, strict=True))
    files = [paths.panoptic_json]
    files += [path for image in usable.annotated for path in (image.image_path, image.png_path)]
    return Report(paths, sure, usable.categories, images, unsure, files)


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
    result.findings = _capped(result.findings)
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
        result.segments.append(SegmentSize(segment["category_id"], is_target(segment), area))
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


def is_error(finding: Finding) -> bool:
    """Whether training or evaluation would stop or go wrong."""
    return finding.kind not in WARNINGS


def _capped(findings: Iterable[Finding]) -> list[Finding]:
    """Keep ``MOST_PER_IMAGE`` findings of a kind and place; one more says how many there were."""
    kept = []
    counts: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        counts[finding.kind, finding.where] += 1
        if counts[finding.kind, finding.where] <= MOST_PER_IMAGE or finding.fix is not None:
            kept.append(finding)
    for (kind, where), count in counts.items():
        if count > MOST_PER_IMAGE:
            kept.append(Finding(kind, where, f"{count} of these in all"))
    return kept


def _only_sure_fixes(findings: Sequence[Finding], num_segments: int) -> list[Finding]:
    """Take away the fixes that are not sure.

    - Where an error has no fix, nothing is taken from the PNG: areas of a PNG of the wrong size are
      wrong.
    - If more than a tenth of the segments would be removed or get another area than they have,
      nothing is taken from any PNG: they are not those of the json.
    """
    contradictions = sum(f.fix is not None and f.kind in _CONTRADICTING for f in findings)
    doubt = contradictions > max(1, num_segments // 10)
    broken = {f.where for f in findings if f.fix is None and is_error(f)}
    return [
        replace(f, fix=None) if f.kind in _FROM_PNG and (doubt or f.where in broken) else f
        for f in findings
    ]


def fix_json(path: str | os.PathLike, findings: Sequence[Finding]) -> tuple[int, Path | None]:
    """Apply fixes to a json, after a copy of it beside it.

    Args:
        path: of a json that has not changed since the check.
        findings: of the check.

    Returns:
        (int, Path | None): number of fixes, and the copy (``*.bak``, ``*.bak1``, ...); no copy
        if there is nothing to fix.
    """
    fixes = [finding.fix for finding in findings if finding.fix is not None]
    if not fixes:
        return 0, None
    path = Path(path)
    old = path.read_bytes()
    content = json.loads(old)
    for place, change in fixes:
        if change is not None:
            _follow(content, place).update(change)
    # From the end of each list, so that the other indices stay right; what is deeper first.
    removed = {place for place, change in fixes if change is None}
    for place in sorted(removed, key=lambda p: (len(p), p[-1]), reverse=True):
        del _follow(content, place[:-1])[place[-1]]
    backup, number = path.with_name(f"{path.name}.bak"), 0
    while backup.exists():
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    with atomic_file(backup, "wb") as f:
        f.write(old)
    with atomic_file(path) as f:
        json.dump(content, f)
    return len(fixes), backup


def _follow(content: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        content = content[key]
    return content
