"""PQ of classes and of images, from the files that :class:`PanopticEvaluator` writes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from panopticapi.evaluation import PQStat, PQStatCat

from ...evaluation.panoptic import GROUPS, PER_IMAGE_FILE, add_counts, mean_quality, quality

GROUP_NAMES = {"": "All", "_th": "Things", "_st": "Stuff"}


class Row(NamedTuple):
    """A row of the table. Percent; None: not known, NaN: does not occur.

    Attributes:
        name: of the class or group.
        kind: "thing", "stuff", or "" for a group.
        pq: panoptic quality.
        sq: segmentation quality.
        rq: recognition quality.
        count: true segments of a class, classes of a group; None: not known.
    """

    name: str
    kind: str
    pq: float
    sq: float | None
    rq: float | None
    count: int | None


class ImageQuality(NamedTuple):
    """PQ of one image: sum of IoU / (TP + FP / 2 + FN / 2) over the segments of all classes.

    Attributes:
        image_id: in the annotation file.
        pq: percent.
        tp: matched segments.
        fp: predicted ones without a match.
        fn: true ones without a match.
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
        under_way: the pictures of the next evaluation are being written.
    """

    dataset: str
    folder: Path
    groups: list[Row]
    classes: list[Row]
    images: list[ImageQuality]
    annotations: dict[int | str, dict[str, Any]]
    under_way: bool


def read_evaluations(output_dir: Path) -> list[Evaluation]:
    """Read the last evaluation of each data set; none if there was none."""
    folders = sorted(p.parent for p in output_dir.glob(f"inference/*/{PER_IMAGE_FILE}"))
    return [_read(folder) for folder in folders if (folder / "predictions.json").is_file()]


def rows_of_metrics(metrics: dict[str, float], prefix: str) -> tuple[list[Row], list[Row]]:
    """Make the table of the numbers in one line of ``metrics.json``, which has less.

    Args:
        metrics: the line.
        prefix: of the names, ``panoptic_seg/``.

    Returns:
        (list, list): rows of groups and of classes.
    """
    groups = [
        Row(
            GROUP_NAMES[suffix],
            "",
            *(metrics.get(f"{prefix}{key}{suffix}", math.nan) for key in ("PQ", "SQ", "RQ")),
            None,
        )
        for suffix in GROUPS
    ]
    start = f"{prefix}PQ-"
    classes = [
        Row(key[len(start) :], "", value, None, None, None)
        for key, value in metrics.items()
        if key.startswith(start)
    ]
    return groups, classes


def _read(folder: Path) -> Evaluation:
    per_image = json.loads((folder / PER_IMAGE_FILE).read_text(encoding="utf-8"))
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    categories = {c["id"]: c for c in predictions["categories"]}
    stat = PQStat()
    for entry in per_image:
        add_counts(stat, entry["counts"])
    groups = []
    for suffix, isthing in GROUPS.items():
        mean, count = mean_quality(stat, categories, isthing)
        groups.append(Row(GROUP_NAMES[suffix], "", *mean.values(), count))
    classes = [
        Row(
            c["name"],
            "thing" if c["isthing"] == 1 else "stuff",
            *quality(stat[c["id"]]).values(),
            stat[c["id"]].tp + stat[c["id"]].fn,
        )
        for c in categories.values()
    ]
    images = [_of_image(entry) for entry in per_image]
    return Evaluation(
        dataset=folder.name,
        folder=folder,
        groups=groups,
        classes=classes,
        images=sorted((i for i in images if not math.isnan(i.pq)), key=lambda i: i.pq),
        annotations={a["image_id"]: a for a in predictions["annotations"]},
        under_way=any(folder.glob("predictions.rank*.jsonl")),
    )


def _of_image(entry: dict[str, Any]) -> ImageQuality:
    total = PQStatCat()
    for _, iou, tp, fp, fn in entry["counts"]:
        total.iou, total.tp = total.iou + iou, total.tp + tp
        total.fp, total.fn = total.fp + fp, total.fn + fn
    return ImageQuality(
        entry["image_id"], quality(total)["PQ"], int(total.tp), int(total.fp), int(total.fn)
    )
