"""PQ of classes and of images, from the files that :class:`PanopticEvaluator` writes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from panopticapi.evaluation import PQStat, PQStatCat

from ...evaluation.panoptic import GROUPS, PER_IMAGE_FILE, add_counts, mean_quality, quality


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
    folders = sorted(p.parent for p in output_dir.glob(f"inference/*/{PER_IMAGE_FILE}"))
    return [_read(folder) for folder in folders if (folder / "predictions.json").is_file()]


def _read(folder: Path) -> Evaluation:
    per_image = json.loads((folder / PER_IMAGE_FILE).read_text(encoding="utf-8"))
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    categories = {c["id"]: c for c in predictions["categories"]}
    stat, images = PQStat(), []
    for entry in per_image:
        add_counts(stat, entry["counts"])
        total = PQStatCat()
        for _, iou, tp, fp, fn in entry["counts"]:
            total.iou, total.tp = total.iou + iou, total.tp + tp
            total.fp, total.fn = total.fp + fp, total.fn + fn
        pq = quality(total)["PQ"]
        if not math.isnan(pq):
            images.append(ImageQuality(entry["image_id"], pq, total.tp, total.fp, total.fn))
    groups = []
    for name, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        mean, count = mean_quality(stat, categories, GROUPS[suffix])
        groups.append(Row(name, "", *mean.values(), count))
    classes = []
    for i, c in categories.items():
        kind = "thing" if c["isthing"] else "stuff"
        classes.append(Row(c["name"], kind, *quality(stat[i]).values(), stat[i].tp + stat[i].fn))
    return Evaluation(
        dataset=folder.name,
        folder=folder,
        groups=groups,
        classes=classes,
        images=sorted(images, key=lambda i: i.pq),
        annotations={a["image_id"]: a for a in predictions["annotations"]},
    )
