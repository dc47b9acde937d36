"""Tables and pictures of the last evaluation of a dataset."""

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.evaluation import PQStat
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.metadata import dataset_ids, thing_class_ids
from ...data.panoptic_png import read_panoptic_png
from ...errors import UserError
from ...evaluation.low_pq import read_counts
from ...evaluation.pq import QUALITIES, add_rows, average
from ...files import atomic_file
from ...visualization.draw import draw_panoptic, limit_size, read_ground_truth
from ...visualization.panels import enlarge
from ...visualization.visualizer import class_colors, class_name
from ..page import Block, data_uri
from .errors import ERROR_COLORS, KINDS, SegmentErrors, draw_confusion, draw_errors

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
        PQ in percent, and the blocks of the page: tables of PQ, SQ, RQ and counts, the errors, and
        the best and worst images by PQ over the segments of all classes, or why there are none.
    """
    categories, per_image = read_counts(folder)
    stat = PQStat()
    for entry in per_image:
        add_rows(stat, entry["counts"])
    groups = []
    for name, isthing in (("All", None), ("Things", True), ("Stuff", False)):
        members = {i: c for i, c in categories.items() if isthing in (None, bool(c["isthing"]))}
        count = average(stat, members)["n"]
        groups.append((name, f"{count} classes", _numbers(stat, members)))
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
        blocks += _error_blocks(folder, _choose_images(per_image))
    except (KeyError, OSError, ValueError) as error:
        # The tables do not need the images, which may have been moved.
        reason = f"image or class {error}" if isinstance(error, KeyError) else error
        logger.warning("No pictures of %s: %s", folder.name, reason)
        blocks.append({"note": f"There are no pictures: {reason}"})
    return 100 * average(stat, categories)["pq"], blocks


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


def _error_blocks(folder: Path, headings: dict[int | str, str]) -> list[Block]:
    """Compare all predictions with the ground truth, write ``errors.json``, and draw images.

    Args:
        folder: of the evaluation.
        headings: text beside the name of each image to draw, by its id.

    Raises:
        UserError: the dataset is not registered, or has no panoptic annotation.
        KeyError, OSError, ValueError: a file is missing, broken, or of another size.
    """
    if folder.name not in DatasetCatalog.list():
        raise UserError(f"The dataset '{folder.name}' is not registered here.")
    metadata = MetadataCatalog.get(folder.name)
    contiguous = {d: c for c, d in enumerate(dataset_ids(metadata))}
    things = set(thing_class_ids(metadata))
    items = {item["image_id"]: item for item in DatasetCatalog.get(folder.name)}
    content = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    errors, shown, categories = SegmentErrors(), {}, set()
    for annotation in content["annotations"]:
        item = items[annotation["image_id"]]
        ground_truth = read_ground_truth(item)
        if ground_truth is None:
            raise UserError(f"{item['file_name']} has no pan_seg_file_name in the dataset.")
        segments = [
            {**s, "category_id": contiguous[s["category_id"]]} for s in annotation["segments_info"]
        ]
        segments = [{**s, "isthing": s["category_id"] in things} for s in segments]
        ids = read_panoptic_png(folder / "panoptic" / annotation["file_name"])
        errors.add_image(ground_truth, (ids, segments))
        if item["image_id"] in headings:
            shown[item["image_id"]] = _draw_example(item, ground_truth, (ids, segments), metadata)
            categories |= {s["category_id"] for s in [*segments, *ground_truth[1]]}
    names = {i: class_name(i, metadata) for i in range(len(contiguous))}
    colors = class_colors(metadata, len(contiguous))
    blocks: list[Block] = [
        *_summarize_errors(errors, names, folder / "errors.json"),
        {"text": "Best and worst images, by PQ over all their segments. Classes:"},
        {"legend": {names[c]: colors[c] for c in sorted(categories)}},
        {"text": "Errors:"},
        {"legend": ERROR_COLORS},
    ]
    for image_id, heading in headings.items():
        name = Path(items[image_id]["file_name"]).name
        blocks.append({"heading": name, "quiet": heading})
        blocks.append({"pictures": shown[image_id], "class": "row"})
    return blocks


def _summarize_errors(errors: SegmentErrors, names: dict[int, str], path: Path) -> list[Block]:
    """Write lost PQ and confusion table to a json, and return their blocks."""
    lost = errors.lost_pq()
    confusion = [
        {"annotated": names.get(i), "predicted": names.get(j), "segments": count}
        for (i, j), count in errors.confusion.items()
    ]
    with atomic_file(path) as file:
        json.dump({"lost_pq": lost, "confusion": confusion}, file, indent=1)
    caption = "Segments by annotated class (rows) and predicted class (columns)"
    table = data_uri(draw_confusion(errors.confusion, names), "png")
    return [
        {"text": "PQ that each kind of error costs. The sum is 100 - PQ."},
        {"pairs": [(KINDS[kind], f"{value:.1f}") for kind, value in lost.items()]},
        {"pictures": [(caption, table)], "class": "sheet"},
    ]


def _draw_example(
    item: dict[str, Any], ground_truth: tuple, prediction: tuple, metadata: Any
) -> list[tuple[str, str]]:
    """Return captions and data URIs of the pictures of an image."""
    image = read_image(item["file_name"], "RGB")
    image, truth, predicted = limit_size(_MAX_SIZE, image, ground_truth, prediction)
    # Their areas are those of the larger map.
    truth = truth[0], [{k: s[k] for k in s if k != "area"} for s in truth[1]]
    pictures = {
        "Image": enlarge(image, _MIN_SIZE),
        "Ground truth": draw_panoptic(image, *truth, metadata, min_size=_MIN_SIZE),
        "Prediction": draw_panoptic(image, *predicted, metadata, min_size=_MIN_SIZE),
        "Errors": draw_errors(image, truth, predicted, _MIN_SIZE),
    }
    encoded = []
    for caption, picture in pictures.items():
        buffer = io.BytesIO()
        options = {"quality": 85, "subsampling": 0, "optimize": True}
        Image.fromarray(picture).save(buffer, format="JPEG", **options)
        encoded.append((caption, data_uri(buffer.getvalue(), "jpeg")))
    return encoded
