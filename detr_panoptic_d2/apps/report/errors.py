"""Why PQ is below 100: a confusion table of segments, and the PQ that each kind of error costs."""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure

from ...data.metadata import dataset_ids
from ...data.panoptic_png import read_panoptic_png
from ...evaluation.pq import MATCH_IOU, VOID, intersections, is_crowd
from ...files import atomic_file
from ..page import Block, data_uri

# Classes of the picture: those with the most confusions.
_MAX_CLASSES = 20
# From this IoU to MATCH_IOU, two segments are one object with a bad outline; below, they are two
# objects (Bolya et al. 2020, TIDE, section 2.2).
_MIN_IOU = 0.1
_KINDS = {
    "outline": "badly outlined",
    "class": "wrong class",
    "double": "predicted twice",
    "missed": "missed",
    "invented": "invented",
}


class SegmentErrors:
    """Sums over images.

    PQ of a class is the sum of IoU divided by D = TP + FP / 2 + FN / 2. So 1 - PQ is the sum of
    1 - IoU over TP, of 1/2 for each FP and of 1/2 for each FN, divided by D. Each of these belongs
    to one kind of error. The kinds of all classes together give 100 - PQ.

    Attributes:
        confusion: number of segments by (annotated category id, predicted category id). Segments
            match above IoU 0.5, of whatever class. None: no segment matches.
        losses: by kind of error and category id.
        weights: D by category id.
    """

    def __init__(self):
        self.confusion: Counter[tuple[int | None, int | None]] = Counter()
        self.losses: dict[str, Counter[int]] = defaultdict(Counter)
        self.weights: Counter[int] = Counter()

    def add_image(
        self,
        annotated_ids: np.ndarray,
        annotated: Sequence[dict[str, Any]],
        predicted_ids: np.ndarray,
        predicted: Sequence[dict[str, Any]],
    ) -> None:
        """Add an image; see :func:`.count_matches` for the arguments."""
        rows, columns, pixels = intersections(annotated_ids, predicted_ids)
        void, areas = pixels[rows == VOID].sum(0), pixels.sum(0)
        by_id = {s["id"]: s for s in annotated}
        own = [
            by_id.get(i, {}).get("area", n)
            for i, n in zip(rows.tolist(), pixels.sum(1), strict=True)
        ]
        ious = pixels / (np.array(own)[:, None] + areas - pixels - void).clip(min=1)
        expected = {i: by_id[j] for i, j in enumerate(rows.tolist()) if j in by_id}
        crowds = {s["category_id"]: i for i, s in expected.items() if is_crowd(s)}
        classes = {i: s["category_id"] for i, s in expected.items() if not is_crowd(s)}
        by_id = {s["id"]: s for s in predicted}
        found = {j: by_id[k]["category_id"] for j, k in enumerate(columns.tolist()) if k in by_id}
        matches = {i: j for i in classes for j in found if ious[i, j] > MATCH_IOU}
        for i, j in matches.items():
            self.confusion[classes[i], found[j]] += 1
            if classes[i] == found[j]:
                self._add("outline", classes[i], 1 - ious[i, j], weight=1)
            else:
                self._add("class", classes[i], 0.5)
                self._add("class", found[j], 0.5)
        for i in classes.keys() - matches:
            same = [ious[i, j] for j in found if found[j] == classes[i]]
            self._add("outline" if max(same, default=0) >= _MIN_IOU else "missed", classes[i], 0.5)
            self.confusion[classes[i], None] += 1
        for j in found.keys() - matches.values():
            crowd = pixels[crowds[found[j]], j] if found[j] in crowds else 0
            if (void[j] + crowd) / areas[j] > MATCH_IOU:
                continue
            same = {i: ious[i, j] for i in classes if classes[i] == found[j]}
            nearest = max(same, key=same.__getitem__, default=None)
            kind = "invented"
            if nearest is not None and same[nearest] >= _MIN_IOU:
                kind = "double" if nearest in matches else "outline"
            self._add(kind, found[j], 0.5)
            self.confusion[None, found[j]] += 1

    def _add(self, kind: str, category_id: int, loss: float, weight: float = 0.5) -> None:
        self.losses[kind][category_id] += loss
        self.weights[category_id] += weight

    def lost_pq(self) -> dict[str, float]:
        """Return the lost PQ of each kind of error, in percent: means over the classes."""
        return {
            kind: 100
            * sum(self.losses[kind][c] / self.weights[c] for c in self.weights)
            / max(1, len(self.weights))
            for kind in _KINDS
        }


def error_blocks(folder: Path, predictions: dict[str, Any]) -> list[Block]:
    """Compare all predictions of an evaluation with the ground truth, and write ``errors.json``.

    Args:
        folder: ``OUTPUT_DIR/inference/<dataset>``.
        predictions: content of ``predictions.json``.

    Returns:
        the blocks of the page: lost PQ, and the confusion table as a picture.

    Raises:
        KeyError, OSError, ValueError: a file is missing, broken, or of another size.
    """
    ids = dataset_ids(MetadataCatalog.get(folder.name))
    items = {item["image_id"]: item for item in DatasetCatalog.get(folder.name)}
    errors = SegmentErrors()
    for annotation in predictions["annotations"]:
        item = items[annotation["image_id"]]
        errors.add_image(
            read_panoptic_png(item["pan_seg_file_name"]),
            [{**s, "category_id": ids[s["category_id"]]} for s in item["segments_info"]],
            read_panoptic_png(folder / "panoptic" / annotation["file_name"]),
            annotation["segments_info"],
        )
    names = {c["id"]: c["name"] for c in predictions["categories"]}
    lost = errors.lost_pq()
    with atomic_file(folder / "errors.json") as file:
        confusion = [
            {"annotated": names.get(i), "predicted": names.get(j), "segments": count}
            for (i, j), count in errors.confusion.items()
        ]
        json.dump({"lost_pq": lost, "confusion": confusion}, file, indent=1)
    rows = [(_KINDS[kind], f"{value:.1f}") for kind, value in lost.items()]
    picture = data_uri(_draw_confusion(errors.confusion, names), "png")
    caption = "Segments by annotated class (rows) and predicted class (columns)"
    return [
        {"text": "PQ that each kind of error costs. The sum is 100 - PQ."},
        {"pairs": rows},
        {"pictures": [(caption, picture)], "class": "row"},
    ]


def _draw_confusion(confusion: Counter, names: dict[int, str]) -> bytes:
    """Return a PNG. Colors are fractions of the row."""
    wrong: Counter = Counter()
    for pair, count in confusion.items():
        for category_id in pair:
            wrong[category_id] += count if pair[0] != pair[1] else 0
    shown = {c for c, _ in sorted(wrong.items(), key=lambda x: -x[1])[: _MAX_CLASSES + 1]}
    ids = [c for c in names if c in shown or len(names) <= _MAX_CLASSES]
    table = np.array([[confusion[i, j] for j in [*ids, None]] for i in [*ids, None]])
    side = 2 + 0.45 * len(table)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(table / table.sum(1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    labels = [names[c] for c in ids]
    axes.set_xticks(range(len(table)), [*labels, "missed"], rotation=90)
    axes.set_yticks(range(len(table)), [*labels, "invented"])
    for (i, j), count in np.ndenumerate(table):
        if count:
            dark = count > table[i].sum() / 2
            axes.text(j, i, count, ha="center", va="center", color="white" if dark else "black")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
