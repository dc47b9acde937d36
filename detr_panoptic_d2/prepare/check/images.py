"""Checks of one image and its panoptic PNG."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.masks import ids_to_labels, label_boxes_and_areas
from ...data.panoptic_check import AnnotatedImage, Finding, Fix
from ...data.panoptic_png import read_panoptic_png
from .findings import capped

_EXIF_ORIENTATION = 0x0112


@dataclass
class ImageResult:
    """What was seen of an image.

    Attributes:
        size: (height, width), upright; None if it cannot be read.
        digest: of the file.
        segments: (category id, iscrowd, area in pixels) of each that has pixels.
        labelled: number of pixels that are not void; None if the PNG cannot be read.
        findings: what is wrong.
    """

    size: tuple[int, int] | None = None
    digest: str | None = None
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    labelled: int | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, where: str, detail: str, fix: Fix | None = None) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, where, detail, fix))


def check_image(task: AnnotatedImage) -> ImageResult:
    """Read an image and its PNG whole and compare them with the json."""
    name, result = task.image["file_name"], ImageResult()
    stored = _check_picture(task, name, result)
    try:
        ids = read_panoptic_png(task.png_path)
    except FileNotFoundError:
        result.add("missing-png", name, task.png_path)
        return result
    except (OSError, ValueError) as error:
        result.add("unreadable-png", name, str(error))
        return result
    listed = (task.image.get("height"), task.image.get("width"))
    if result.size is not None and ids.shape != result.size:
        hint = ""
        if ids.shape == stored:
            hint = "; it fits the image before its EXIF orientation is applied"
        detail = f"PNG {_describe(ids.shape)}, image {_describe(result.size)}{hint}"
        result.add("png-size", name, detail)
    elif result.size is not None and None not in listed and listed != result.size:
        height, width = result.size
        fix = Fix(task.place, {"height": height, "width": width})
        detail = f"json {_describe(listed)}, image and PNG {_describe(result.size)}"
        result.add("wrong-size", name, detail, fix)
    _check_segments(task, name, ids, result)
    result.findings = capped(result.findings)
    return result


def _check_picture(task: AnnotatedImage, name: str, result: ImageResult) -> tuple[int, int] | None:
    """Look at the image; return its (height, width) as stored, not turned by EXIF."""
    try:
        result.digest = hashlib.sha256(Path(task.image_path).read_bytes()).hexdigest()
        result.size = read_image(task.image_path, "RGB").shape[:2]
        with Image.open(task.image_path) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except FileNotFoundError:
        result.add("missing-image", name, task.image_path)
        return None
    except (OSError, ValueError) as error:
        result.add("unreadable-image", name, str(error))
        return None
    if orientation in range(2, 9):
        detail = (
            f"orientation {orientation}, stored {_describe((height, width))}; training turns it "
            f"upright ({_describe(result.size)}), other programs may not"
        )
        result.add("exif-rotated", name, detail)
    return height, width


def _check_segments(task: AnnotatedImage, name: str, ids: np.ndarray, result: ImageResult) -> None:
    labels, unnamed = ids_to_labels(ids, [segment["id"] for _, segment in task.segments])
    boxes, areas = label_boxes_and_areas(labels, len(task.segments))
    result.labelled = int(areas.sum())
    if unnamed.size:
        there, pixels = np.unique(ids[labels == 0], return_counts=True)
        counts = dict(zip(there.tolist(), pixels.tolist(), strict=True))
        for segment_id in unnamed.tolist():
            detail = f"id {segment_id} has {counts[segment_id]} pixels"
            result.add("id-without-entry", name, detail)
    if not result.labelled:
        result.add("nothing-labelled", name, "all of it is void")
    boxes[:, 2:] += 1 - boxes[:, :2]
    boxes = boxes.astype(int).tolist()
    for (place, segment), tight, area in zip(task.segments, boxes, areas.tolist(), strict=True):
        what = f"segment {segment['id']}"
        if area == 0:
            result.add("segment-without-pixels", name, what, Fix(place, None))
            continue
        crowd = segment.get("iscrowd", 0)
        result.segments.append((segment["category_id"], crowd, area))
        if "iscrowd" not in segment:
            result.add("wrong-crowd", name, f"{what} has no 'iscrowd'", Fix(place, {"iscrowd": 0}))
        if area == 1:
            result.add("one-pixel", name, what)
        if segment.get("area") != area:
            kind = "no-area" if segment.get("area") is None else "wrong-area"
            detail = f"{what}: area {segment.get('area')!r}, the PNG has {area}"
            result.add(kind, name, detail, Fix(place, {"area": area}))
        if "bbox" in segment and segment["bbox"] != tight:
            detail = f"{what}: bbox {segment['bbox']!r}, the PNG has {tight}"
            result.add("wrong-box", name, detail, Fix(place, {"bbox": tight}))


def _describe(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
