"""Tables and pictures of the last evaluation of a data set."""

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import PQStat
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.metadata import dataset_ids, thing_class_ids
from ...data.panoptic_png import read_panoptic_png
from ...errors import UserError
from ...evaluation.low_pq import read_counts
from ...evaluation.pq import QUALITIES, add_rows, average
from ...visualization.draw import draw_panoptic, limit_size, read_ground_truth
from ...visualization.panels import enlarge
from ...visualization.visualizer import class_colors, class_name
from ..page import Block, data_uri
from .errors import error_blocks
from .segment_errors import ERROR_COLORS, draw_errors

logger = logging.getLogger(__name__)

_HEADS = ["PQ", "SQ", "RQ", "TP", "FP", "FN"]
# Number of best and of worst images. The table of more classes than this is closed at first.
_EXAMPLES, _OPEN_CLASSES = 3, 24
# Largest longer side and approximate smallest shorter side of the pictures, in pixels.
_MAX_SIZE, _MIN_SIZE = 720, 320


def read_evaluation(folder: Path) -> tuple[float, list[Block]]:
    """Read the files of :class:`PanopticEvaluator`. The numbers are the evaluator's.

    Args:
        folder: ``OUTPUT_DIR/inference/<dataset>``.

    Returns:
        PQ in percent, and the blocks of the page: tables of PQ, SQ, RQ and counts, and the best and
        worst images by PQ over the segments of all classes, or why there are none.
    """
    categories, per_image = read_counts(folder)
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    stat = PQStat()
    for entry in per_image:
        add_rows(stat, entry["counts"])
    groups = [
        (name, "{n} classes".format(**average(stat, categories, isthing)), _numbers(stat, members))
        for name, isthing in (("All", None), ("Things", True), ("Stuff", False))
        for members in [_select(categories, isthing)]
    ]
    classes = [
        (c["name"], "thing" if c["isthing"] else "stuff", _numbers(stat, {i: c}))
        for i, c in categories.items()
    ]
    blocks: list[Block] = [
        {"text": f"{len(per_image)} images", "class": "quiet"},
        {"table": {"heads": _HEADS, "rows": groups}},
        {
            "details": f"All {len(classes)} classes",
            "blocks": [{"table": {"heads": _HEADS, "rows": classes}}],
            "open": len(classes) <= _OPEN_CLASSES,
        },
    ]
    try:
        annotations = {a["image_id"]: a for a in predictions["annotations"]}
        headings = _choose_images(per_image)
        shown = draw_examples(folder, [annotations[i] for i in headings], [*headings.values()])
        blocks += [*error_blocks(folder, predictions), *shown]
    except (KeyError, OSError, ValueError) as error:
        # The tables do not need the images, which may have been moved.
        reason = f"image or class {error}" if isinstance(error, KeyError) else error
        logger.warning("No pictures of %s: %s", folder.name, reason)
        blocks.append({"note": f"There are no pictures: {reason}"})
    return 100 * average(stat, categories)["pq"], blocks


def _select(categories: dict[int, dict], isthing: bool | None) -> dict[int, dict]:
    return {i: c for i, c in categories.items() if isthing in (None, bool(c["isthing"]))}


def _numbers(stat: PQStat, categories: dict[int, dict]) -> list[str]:
    """Return PQ, SQ, RQ, TP, FP and FN of some classes."""
    mean = average(stat, categories)
    qualities = [100 * mean[key] for key in QUALITIES]
    counts = [sum(getattr(stat[i], key) for i in categories) for key in ("tp", "fp", "fn")]
    return [*("–" if math.isnan(q) else f"{q:.1f}" for q in qualities), *map(str, counts)]


def _choose_images(per_image: list[dict]) -> dict[int | str, str]:
    """Return headings by id of the best and the worst images, best first, each image once."""
    headings, qualities = {}, {}
    for entry in per_image:
        # One class of all segments.
        stat = PQStat()
        add_rows(stat, ([0, *numbers] for _, *numbers in entry["counts"]))
        pq, total, image_id = 100 * average(stat, {0: {}})["pq"], stat[0], entry["image_id"]
        if not math.isnan(pq):
            counts = f"{total.tp} segments matched, {total.fn} missed, {total.fp} wrong"
            qualities[image_id], headings[image_id] = pq, f"PQ {pq:.1f}; {counts}"
    order = sorted(qualities, key=qualities.__getitem__)
    count = min(_EXAMPLES, math.ceil(len(order) / 2))
    return {i: headings[i] for i in dict.fromkeys([*order[::-1][:count], *order[:count]])}


def draw_examples(
    folder: Path, annotations: list[dict[str, Any]], headings: list[str]
) -> list[Block]:
    """Draw images of an evaluation: legends, then for each image a heading and four pictures.

    Args:
        folder: of the evaluation.
        annotations: predictions in COCO's result format.
        headings: text beside the name of each image.

    Raises:
        UserError: the data set is not registered, or has no panoptic annotation.
        KeyError, OSError, ValueError: a file is missing, broken, or of another size.
    """
    if folder.name not in DatasetCatalog.list():
        raise UserError(f"The data set '{folder.name}' is not registered here.")
    metadata = MetadataCatalog.get(folder.name)
    contiguous = {d: c for c, d in enumerate(dataset_ids(metadata))}
    things = set(thing_class_ids(metadata))
    items = {item["image_id"]: item for item in DatasetCatalog.get(folder.name)}
    blocks: list[Block] = []
    categories: set[int] = set()
    for annotation, heading in zip(annotations, headings, strict=True):
        item = items[annotation["image_id"]]
        ground_truth = read_ground_truth(item)
        if ground_truth is None:
            raise UserError(f"{item['file_name']} has no pan_seg_file_name in the data set.")
        ids = read_panoptic_png(folder / "panoptic" / annotation["file_name"])
        segments = [
            {"id": s["id"], "category_id": c, "isthing": c in things}
            for s in annotation["segments_info"]
            for c in [contiguous[s["category_id"]]]
        ]
        categories |= {s["category_id"] for s in [*segments, *ground_truth[1]]}
        image, ground_truth, prediction = limit_size(
            _MAX_SIZE, read_image(item["file_name"], "RGB"), ground_truth, (ids, segments)
        )
        pictures = {
            "Image": enlarge(image, _MIN_SIZE),
            "Ground truth": draw_panoptic(image, *ground_truth, metadata, min_size=_MIN_SIZE),
            "Prediction": draw_panoptic(image, *prediction, metadata, min_size=_MIN_SIZE),
            "Errors": draw_errors(image, ground_truth, prediction, min_size=_MIN_SIZE),
        }
        encoded = [(caption, data_uri(_jpeg(p), "jpeg")) for caption, p in pictures.items()]
        blocks.append({"heading": Path(item["file_name"]).name, "quiet": heading})
        blocks.append({"pictures": encoded, "class": "row"})
    colors = class_colors(metadata, len(contiguous))
    return [
        {"text": "Best and worst images, by PQ over all their segments. Classes:"},
        {"legend": {class_name(c, metadata): colors[c] for c in sorted(categories)}},
        {"text": "Errors:"},
        {"legend": ERROR_COLORS},
        *blocks,
    ]


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()
