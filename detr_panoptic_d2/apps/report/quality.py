"""PQ of classes and of images, from the files that :class:`PanopticEvaluator` writes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_GROUPS = {"All": (0, 1), "Things": (1,), "Stuff": (0,)}


class Row(NamedTuple):
    """A row of the table. Percent; NaN: does not occur.

    Attributes:
        name: of the class or group.
        kind: "thing", "stuff", or "" for a group.
        pq, sq, rq: panoptic, segmentation and recognition quality.
        count: annotated segments of a class, classes of a group.
    """

    name: str
    kind: str
    pq: float
    sq: float
    rq: float
    count: int


class ImageQuality(NamedTuple):
    """PQ of one image: sum of IoU / (TP + FP / 2 + FN / 2) over the segments of all classes.

    Attributes:
        image_id: in the annotation file.
        pq: percent.
        tp, fp, fn: segments that are matched, predicted without a match, annotated without one.
    """

    image_id: int | str
    pq: float
    tp: int
    fp: int
    fn: int


class Evaluation(NamedTuple):
    """The last evaluation of one data set.

    Attributes:
        dataset: its name.
        folder: ``OUTPUT_DIR/inference/<dataset>``.
        groups: rows of all, things, stuff.
        classes: rows of the classes, in order of the annotation file.
        images: from the worst to the best; without those that have no segments at all.
        annotations: predictions by image id, in COCO's result format.
    """

    dataset: str
    folder: Path
    groups: list[Row]
    classes: list[Row]
    images: list[ImageQuality]
    annotations: dict[int | str, dict[str, Any]]


def read_evaluations(output_dir: Path) -> list[Evaluation]:
    """Read the last evaluation of each data set; none if there was none."""
    folders = sorted(p.parent for p in output_dir.glob("inference/*/per_image.json"))
    return [_read(folder) for folder in folders if (folder / "predictions.json").is_file()]


def _read(folder: Path) -> Evaluation:
    per_image = json.loads((folder / "per_image.json").read_text(encoding="utf-8"))
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    categories = predictions["categories"]
    sums = {c["id"]: np.zeros(4) for c in categories}
    images = []
    for entry in per_image:
        total = np.zeros(4)
        for category, *counts in entry["counts"]:
            sums[category] += counts
            total += counts
        _, tp, fp, fn = total.astype(int).tolist()
        images.append(ImageQuality(entry["image_id"], _quality(total)[0], tp, fp, fn))
    classes = [
        Row(
            c["name"],
            "thing" if c["isthing"] else "stuff",
            *_quality(sums[c["id"]]),
            int(sums[c["id"]][[1, 3]].sum()),
        )
        for c in categories
    ]
    groups = []
    for name, kinds in _GROUPS.items():
        rows = [
            (row.pq, row.sq, row.rq)
            for row, c in zip(classes, categories, strict=True)
            if c["isthing"] in kinds and not math.isnan(row.pq)
        ]
        mean = np.mean(rows, axis=0).tolist() if rows else [math.nan] * 3
        groups.append(Row(name, "", *mean, len(rows)))
    return Evaluation(
        dataset=folder.name,
        folder=folder,
        groups=groups,
        classes=classes,
        images=sorted((i for i in images if not math.isnan(i.pq)), key=lambda i: i.pq),
        annotations={a["image_id"]: a for a in predictions["annotations"]},
    )


def _quality(counts: np.ndarray) -> tuple[float, float, float]:
    """Return PQ, SQ and RQ in percent of (sum of IoU, TP, FP, FN); NaN for what does not occur."""
    iou, tp, fp, fn = counts.tolist()
    total = tp + fp / 2 + fn / 2
    if not total:
        return math.nan, math.nan, math.nan
    return 100 * iou / total, 100 * iou / tp if tp else 0.0, 100 * tp / total
