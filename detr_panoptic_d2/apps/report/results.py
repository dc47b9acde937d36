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
from ...evaluation.panoptic import GROUPS, PER_IMAGE_FILE
from ...evaluation.pq import add_rows, average
from ...visualization.draw import draw_panoptic, limit_size, read_ground_truth
from ...visualization.panels import enlarge
from ...visualization.segment_errors import draw_errors
from ..page import Block, data_uri

logger = logging.getLogger(__name__)

# Images shown at each end, and classes up to which their table is open.
_EXAMPLES, _OPEN_CLASSES = 3, 24
# Sides of the pictures in pixels: longer one at most, shorter one at least about.
_MAX_SIZE, _MIN_SIZE = 720, 320


def read_evaluation(folder: Path) -> tuple[float, list[Block]]:
    """Read what :class:`PanopticEvaluator` left; the numbers are its own.

    Args:
        folder: ``OUTPUT_DIR/inference/<dataset>``.

    Returns:
        PQ in percent, and the blocks of the page: tables of PQ, SQ and RQ, and the best and the
        worst images by the PQ of an image, sum of IoU / (TP + FP / 2 + FN / 2) over the segments
        of all classes; or why there are none.
    """
    per_image = json.loads((folder / PER_IMAGE_FILE).read_text(encoding="utf-8"))
    predictions = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    categories = {c["id"]: c for c in predictions["categories"]}
    stat, qualities = PQStat(), {}
    for entry in per_image:
        add_rows(stat, entry["counts"])
        of_image = PQStat()
        add_rows(of_image, ([0, *numbers] for _, *numbers in entry["counts"]))
        pq, total = 100 * average(of_image, {0: {}})["pq"], of_image[0]
        if not math.isnan(pq):
            text = f"{total.tp} segments matched, {total.fn} missed, {total.fp} wrong"
            qualities[entry["image_id"]] = pq, text
    groups = []
    for name, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        mean = average(stat, categories, GROUPS[suffix])
        groups.append((name, "", _numbers(mean, mean["n"])))
    classes = []
    for i, c in categories.items():
        kind = "thing" if c["isthing"] else "stuff"
        classes.append((c["name"], kind, _numbers(average(stat, {i: c}), stat[i].tp + stat[i].fn)))
    whole: Block = {"table": {"heads": ["PQ", "SQ", "RQ", "segments"], "rows": classes}}
    blocks: list[Block] = [
        {"text": f"{len(per_image)} images", "class": "quiet"},
        {"table": {"heads": ["PQ", "SQ", "RQ", "classes"], "rows": groups}},
        {
            "details": f"All {len(classes)} classes",
            "blocks": [whole],
            "open": len(classes) <= _OPEN_CLASSES,
        },
    ]
    order = sorted(qualities, key=lambda i: qualities[i][0])
    shown = min(_EXAMPLES, math.ceil(len(order) / 2))
    try:
        annotations = {a["image_id"]: a for a in predictions["annotations"]}
        # Best first; of few images none twice.
        chosen = dict.fromkeys([*order[::-1][:shown], *order[:shown]])
        headings = ["PQ {:.1f}; {}".format(*qualities[i]) for i in chosen]
        drawn = draw_examples(folder, [annotations[i] for i in chosen], headings)
        blocks += [{"text": "Best and worst images, by PQ over all their segments."}, *drawn]
    except (KeyError, OSError, ValueError) as error:
        # A report of numbers is better than none: data may have moved since.
        reason = f"image or class {error}" if isinstance(error, KeyError) else error
        logger.warning("No pictures of %s: %s", folder.name, reason)
        blocks.append({"note": f"There are no pictures: {reason}"})
    return 100 * average(stat, categories)["pq"], blocks


def draw_examples(
    folder: Path, annotations: list[dict[str, Any]], headings: list[str]
) -> list[Block]:
    """Draw images of an evaluation: a heading and four pictures each.

    Args:
        folder: of the evaluation.
        annotations: predictions in COCO's result format.
        headings: text beside the name of each image.

    Raises:
        UserError: the data set is not registered, or has no such annotation.
        KeyError, OSError, ValueError: a file is missing, broken, or of another size.
    """
    if folder.name not in DatasetCatalog.list():
        raise UserError(f"The data set '{folder.name}' is not registered here.")
    metadata = MetadataCatalog.get(folder.name)
    contiguous = {d: c for c, d in enumerate(dataset_ids(metadata))}
    things = set(thing_class_ids(metadata))
    items = {item["image_id"]: item for item in DatasetCatalog.get(folder.name)}
    blocks: list[Block] = []
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
        image, ground_truth, prediction = limit_size(
            _MAX_SIZE, read_image(item["file_name"], "RGB"), ground_truth, (ids, segments)
        )
        pictures = {
            "Image": enlarge(image, _MIN_SIZE),
            "Ground truth": draw_panoptic(image, *ground_truth, metadata, min_size=_MIN_SIZE),
            "Prediction": draw_panoptic(image, *prediction, metadata, min_size=_MIN_SIZE),
            "Errors": draw_errors(image, ground_truth, prediction, metadata, min_size=_MIN_SIZE),
        }
        encoded = [(caption, data_uri(_jpeg(p), "jpeg")) for caption, p in pictures.items()]
        blocks.append({"heading": Path(item["file_name"]).name, "quiet": heading})
        blocks.append({"pictures": encoded, "class": "row"})
    return blocks


def _numbers(values: dict[str, float], count: float) -> list[str]:
    numbers = [100 * values[key] for key in ("pq", "sq", "rq")]
    return [*("–" if math.isnan(v) else f"{v:.1f}" for v in numbers), str(count)]


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()
