"""Checks of one image and its PNG, for the processes."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.digest import file_digest
from ...data.masks import ids_to_labels, label_boxes_and_areas, panoptic_png_to_ids
from .entries import Task
from .findings import Finding, Fix

_EXIF_ORIENTATION = 0x0112


@dataclass
class ImageResult:
    """What was seen of an image.

    Attributes:
        size: (height, width), upright; None if it cannot be read.
        digest: of the file.
        segments: (category id, iscrowd, area in pixels) of each.
        labelled: number of pixels that are not void.
        findings: what is wrong.
    """

    size: tuple[int, int] | None = None
    digest: str | None = None
    segments: list[tuple[object, int, int]] = field(default_factory=list)
    labelled: int = 0
    findings: list[Finding] = field(default_factory=list)


def check_image(tasks: list[Task], index: int) -> ImageResult:
    """Read an image and its PNG whole and compare them with the json."""
    task = tasks[index]
    result = ImageResult()
    stored = _check_picture(task, result)
    try:
        ids = panoptic_png_to_ids(task.png)
    except FileNotFoundError:
        result.findings.append(Finding("missing-png", task.name, task.png))
        return result
    except (OSError, ValueError) as error:
        result.findings.append(Finding("unreadable-png", task.name, str(error)))
        return result
    if result.size is not None and ids.shape != result.size:
        hint = ""
        if ids.shape == stored:
            hint = "; it fits the image before its EXIF orientation is applied"
        detail = f"PNG {_describe(ids.shape)}, image {_describe(result.size)}{hint}"
        result.findings.append(Finding("png-size", task.name, detail))
    elif result.size is not None and task.size not in (None, result.size):
        height, width = result.size
        fix = Fix(("images", task.image_index), {"height": height, "width": width})
        detail = f"json {_describe(task.size)}, image and PNG {_describe(result.size)}"
        result.findings.append(Finding("wrong-size", task.name, detail, fix))
    _check_segments(task, ids, result)
    return result


def _check_picture(task: Task, result: ImageResult) -> tuple[int, int] | None:
    """Look at the image; return its (height, width) as stored, not turned by EXIF."""
    try:
        result.digest = file_digest(task.image)
        result.size = read_image(task.image, "RGB").shape[:2]
        with Image.open(task.image) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except FileNotFoundError:
        result.findings.append(Finding("missing-image", task.name, task.image))
        return None
    except (OSError, ValueError) as error:
        result.findings.append(Finding("unreadable-image", task.name, str(error)))
        return None
    if orientation in range(2, 9):
        detail = (
            f"orientation {orientation}, stored {_describe((height, width))}; training turns it "
            f"upright ({_describe(result.size)}), other programs may not"
        )
        result.findings.append(Finding("exif-rotated", task.name, detail))
    return height, width


def _check_segments(task: Task, ids: np.ndarray, result: ImageResult) -> None:
    labels, unnamed = ids_to_labels(ids, [segment["id"] for _, segment in task.segments])
    boxes, areas = label_boxes_and_areas(labels, len(task.segments))
    result.labelled = int(areas.sum())
    for segment_id in unnamed.tolist():
        detail = f"id {segment_id} has {int((ids == segment_id).sum())} pixels"
        result.findings.append(Finding("id-without-entry", task.name, detail))
    if not result.labelled:
        result.findings.append(Finding("nothing-labelled", task.name, "all of it is void"))
    boxes = boxes.astype(int).tolist()
    for (index, segment), box, area in zip(task.segments, boxes, areas.tolist(), strict=True):
        place = ("annotations", task.index, "segments_info", index)
        name = f"segment {segment['id']}"
        if area == 0:
            fix = Fix(place, None)
            result.findings.append(Finding("segment-without-pixels", task.name, name, fix))
            continue
        crowd = segment.get("iscrowd", 0)
        result.segments.append((segment.get("category_id"), crowd, area))
        if area == 1:
            result.findings.append(Finding("one-pixel", task.name, name))
        if segment.get("area") != area:
            detail = f"{name}: area {segment.get('area')!r}, the PNG has {area}"
            fix = Fix(place, {"area": area})
            result.findings.append(Finding("wrong-area", task.name, detail, fix))
        tight = [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1]
        if "bbox" in segment and segment["bbox"] != tight:
            detail = f"{name}: bbox {segment['bbox']!r}, the PNG has {tight}"
            fix = Fix(place, {"bbox": tight})
            result.findings.append(Finding("wrong-box", task.name, detail, fix))


def _describe(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
