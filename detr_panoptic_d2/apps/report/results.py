"""Tables and pictures of the last evaluation of a data set."""

import io
import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import PQStat
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.metadata import dataset_ids, thing_class_ids
from ...data.panoptic_png import read_panoptic_png
from ...errors import UserError
from ...evaluation.panoptic import GROUPS, PER_IMAGE_FILE, add_counts, average
from ...visualization.draw import draw_panoptic, limit_size, read_ground_truth
from ...visualization.panels import enlarge
from ...visualization.segment_errors import draw_errors
from ..page import Block, data_uri

logger = logging.getLogger(__name__)

# Images shown at each end, and classes up to which their table is open.
_EXAMPLES, _OPEN_CLASSES = 3, 24
# Sides of the pictures in pixels: longer one at most, shorter one at least about.
_MAX_SIZE, _MIN_SIZE = 720, 320


class ImageQuality(NamedTuple):
    """PQ of one image: sum of IoU / (TP + FP / 2 + FN / 2) over the segments of all classes.

    Attributes:
        pq: percent.
        image_id: in the annotation file.
        tp, fp, fn: segments that are matched, predicted without a match, annotated without one.
    """

    pq: float
    image_id: int | str
    tp: int
    fp: int
    fn: int


class Evaluation(NamedTuple):
    """What :class:`PanopticEvaluator` left in a folder.

    Attributes:
        folder: ``OUTPUT_DIR/inference/<dataset>``.
        pq: percent, over all classes.
        tables: of the groups and of the classes, for the page.
        images: from the worst to the best; without those that have no segments at all.
        annotations: predictions by image id, in COCO's result format.
    """

    folder: Path
    pq: float
    tables: tuple[Block, Block]
    images: list[ImageQuality]
    annotations: dict[int | str, dict[str, Any]]


def read_evaluation(folder: Path) -> Evaluation:
    """Read ``per_image.json`` and ``predictions.json``; the numbers are the evaluator's."""
    per_image = json.loads((folder / PER_IMAGE_FILE).read_text(encoding="utf-8"))
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    categories = {c["id"]: c for c in predictions["categories"]}
    stat, images = PQStat(), []
    for entry in per_image:
        add_counts(stat, entry["counts"])
        of_image = PQStat()
        add_counts(of_image, ([0, *numbers] for _, *numbers in entry["counts"]))
        pq, total = 100 * average(of_image, {0: {}})["pq"], of_image[0]
        if not math.isnan(pq):
            images.append(ImageQuality(pq, entry["image_id"], total.tp, total.fp, total.fn))
    groups = []
    for name, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        mean = average(stat, categories, GROUPS[suffix])
        groups.append((name, "", _numbers(mean, mean["n"])))
    classes = []
    for i, c in categories.items():
        kind = "thing" if c["isthing"] else "stuff"
        classes.append((c["name"], kind, _numbers(average(stat, {i: c}), stat[i].tp + stat[i].fn)))
    return Evaluation(
        folder=folder,
        pq=100 * average(stat, categories)["pq"],
        tables=(
            {"table": {"heads": ["PQ", "SQ", "RQ", "classes"], "rows": groups}},
            {"table": {"heads": ["PQ", "SQ", "RQ", "segments"], "rows": classes}},
        ),
        images=sorted(images),
        annotations={a["image_id"]: a for a in predictions["annotations"]},
    )


def result_blocks(evaluation: Evaluation) -> list[Block]:
    """Tables of PQ, SQ and RQ, and the best and the worst images or why there are none."""
    groups, classes = evaluation.tables
    count = len(classes["table"]["rows"])
    blocks: list[Block] = [
        {"text": f"{len(evaluation.annotations)} images", "class": "quiet"},
        groups,
        {
            "details": f"All {count} classes",
            "blocks": [classes],
            "open": count <= _OPEN_CLASSES,
        },
    ]
    shown = min(_EXAMPLES, math.ceil(len(evaluation.images) / 2))
    worst = evaluation.images[:shown]
    best = [image for image in reversed(evaluation.images[-shown:]) if image not in worst]
    try:
        drawn = draw_examples(evaluation, [*best, *worst])
    except (KeyError, OSError, ValueError) as error:
        # A report of numbers is better than none: data may have moved since.
        reason = f"image or class {error}" if isinstance(error, KeyError) else error
        logger.warning("No pictures of %s: %s", evaluation.folder.name, reason)
        return [*blocks, {"note": f"There are no pictures: {reason}"}]
    if drawn:
        blocks += [{"text": "Best and worst images, by PQ over the segments of all classes."}]
    return [*blocks, *drawn]


def draw_examples(evaluation: Evaluation, chosen: list[ImageQuality]) -> list[Block]:
    """Draw images of an evaluation: a heading and four pictures each.

    Raises:
        UserError: the data set is not registered, or has no such annotation.
        OSError, ValueError: a file is missing, broken, or of another size.
    """
    dataset = evaluation.folder.name
    if dataset not in DatasetCatalog.list():
        raise UserError(f"The data set '{dataset}' is not registered here.")
    metadata = MetadataCatalog.get(dataset)
    contiguous = {d: c for c, d in enumerate(dataset_ids(metadata))}
    things = set(thing_class_ids(metadata))
    items = {item["image_id"]: item for item in DatasetCatalog.get(dataset)}
    blocks: list[Block] = []
    for q in chosen:
        item, annotation = items[q.image_id], evaluation.annotations[q.image_id]
        ground_truth = read_ground_truth(item)
        if ground_truth is None:
            raise UserError(f"{item['file_name']} has no pan_seg_file_name in the data set.")
        ids = read_panoptic_png(evaluation.folder / "panoptic" / annotation["file_name"])
        segments = [
            {"id": s["id"], "category_id": c, "isthing": c in things}
            for s in annotation["segments_info"]
            for c in [contiguous[s["category_id"]]]
        ]
        image, ground_truth, prediction = limit_size(
            _MAX_SIZE, read_image(item["file_name"], "RGB"), ground_truth, (ids, segments)
        )
        size = {"min_size": _MIN_SIZE}
        pictures = {
            "Image": enlarge(image, _MIN_SIZE),
            "Ground truth": draw_panoptic(image, *ground_truth, metadata, **size),
            "Prediction": draw_panoptic(image, *prediction, metadata, **size),
            "Errors": draw_errors(image, ground_truth, prediction, metadata, **size),
        }
        numbers = f"PQ {q.pq:.1f}; {q.tp} segments matched, {q.fn} missed, {q.fp} wrong"
        blocks.append({"heading": Path(item["file_name"]).name, "quiet": numbers})
        encoded = [(caption, data_uri(_jpeg(p), "jpeg")) for caption, p in pictures.items()]
        blocks.append({"pictures": encoded, "class": "row"})
    return blocks


def _numbers(values: dict[str, float], count: float) -> list[str]:
    numbers = [100 * values[key] for key in ("pq", "sq", "rq")]
    return [*("–" if math.isnan(v) else f"{v:.1f}" for v in numbers), str(count)]


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()
