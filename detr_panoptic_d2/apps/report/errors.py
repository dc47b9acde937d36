"""Why PQ is below 100: the errors of each pixel and of each segment, and what they cost."""

import io
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ...data.colors import Color
from ...evaluation.pq import MATCH_IOU, VOID, intersections, is_crowd
from ...visualization.draw import Panoptic
from ...visualization.panels import enlarge
from ...visualization.visualizer import draw_edges

# Kind of each pixel. LOW_OVERLAP: the class is right, but the two segments do not match.
CORRECT, LOW_OVERLAP, WRONG_CLASS, MISSED, IGNORED = range(5)
# Color and name of each kind. The colors differ in hue with every common kind of color vision, and
# in lightness without any.
ERROR_COLORS: dict[str, Color] = {
    "correct": (0, 114, 178),
    f"right class, overlap at most {MATCH_IOU}": (204, 121, 167),
    "wrong class": (213, 94, 0),
    "missed": (240, 228, 66),
    "void, ignored": (150, 150, 150),
}
_ALPHA = 0.6
# Classes in the picture of the confusion table, those with the most errors; letters of a label.
_MAX_CLASSES, _MAX_LABEL = 20, 24
# From this IoU to MATCH_IOU, two segments are one object with a bad outline; below, they are two
# objects (Bolya et al. 2020, TIDE, section 2.2).
_MIN_IOU = 0.1
KINDS = {
    "outline": "badly outlined",
    "class": "wrong class",
    "double": "predicted twice",
    "missed": "missed",
    "invented": "invented",
}


class Overlaps(NamedTuple):
    """Pairs of an annotated and a predicted segment of an image.

    Attributes:
        rows, columns: the ids of the annotated and of the predicted segments, ascending, with those
            of void.
        pixels, ious: rows x columns. The IoU is panopticapi's, which leaves out void pixels.
        annotated, predicted: the segments by row and by column, without void.
    """

    rows: np.ndarray
    columns: np.ndarray
    pixels: np.ndarray
    ious: np.ndarray
    annotated: dict[int, dict[str, Any]]
    predicted: dict[int, dict[str, Any]]


def find_overlaps(annotated: Panoptic, predicted: Panoptic) -> Overlaps:
    """Compare ids and segments of the ground truth with those of a prediction."""
    rows, columns, pixels = intersections(np.asarray(annotated[0]), np.asarray(predicted[0]))
    segments = []
    for ids, infos in ((rows, annotated[1]), (columns, predicted[1])):
        by_id = {s["id"]: s for s in infos}
        segments.append({i: by_id[k] for i, k in enumerate(ids.tolist()) if k in by_id})
    areas = np.array(
        [segments[0].get(i, {}).get("area", n) for i, n in enumerate(pixels.sum(1).tolist())]
    )
    unions = areas[:, None] + pixels.sum(0) - pixels - pixels[rows == VOID].sum(0)
    return Overlaps(rows, columns, pixels, pixels / unions.clip(min=1), *segments)


def compare_pixels(annotated: Panoptic, predicted: Panoptic) -> np.ndarray:
    """Return the kind of each pixel, CORRECT to IGNORED (void or crowd in the ground truth)."""
    overlaps = find_overlaps(annotated, predicted)
    kinds = np.full(overlaps.pixels.shape, MISSED, dtype=np.uint8)
    for j, segment in overlaps.predicted.items():
        for i, other in overlaps.annotated.items():
            matched = CORRECT if overlaps.ious[i, j] > MATCH_IOU else LOW_OVERLAP
            same_class = segment["category_id"] == other["category_id"]
            kinds[i, j] = matched if same_class else WRONG_CLASS
    for i in range(len(kinds)):
        if i not in overlaps.annotated or is_crowd(overlaps.annotated[i]):
            kinds[i] = IGNORED
    row = np.searchsorted(overlaps.rows, annotated[0])
    return kinds[row, np.searchsorted(overlaps.columns, predicted[0])]


def draw_errors(
    image: np.ndarray, annotated: Panoptic, predicted: Panoptic, min_size: int
) -> np.ndarray:
    """Draw the kinds of the pixels in ``ERROR_COLORS``, over the image in grey.

    Ignored pixels have no color. White lines are the edges of the annotated segments.

    Args:
        image: H x W x 3 uint8 RGB.
        annotated, predicted: ids and segments.
        min_size: see :func:`.draw.draw_panoptic`.
    """
    kinds = compare_pixels(annotated, predicted)
    alpha = np.where(kinds == IGNORED, 0, _ALPHA)[..., None]
    colors = np.array(list(ERROR_COLORS.values()))[kinds]
    picture = image.mean(2, keepdims=True) * (1 - alpha) + colors * alpha
    picture = enlarge(picture, min_size)
    draw_edges(picture, enlarge(np.asarray(annotated[0]), min_size))
    return picture.round().astype(np.uint8)


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

    def add_image(self, annotated: Panoptic, predicted: Panoptic) -> None:
        """Add ids and segments of the ground truth and of the prediction of an image."""
        overlaps = find_overlaps(annotated, predicted)
        pixels, ious = overlaps.pixels, overlaps.ious
        crowds = {s["category_id"]: i for i, s in overlaps.annotated.items() if is_crowd(s)}
        truth = {i: s["category_id"] for i, s in overlaps.annotated.items() if not is_crowd(s)}
        predictions = {j: s["category_id"] for j, s in overlaps.predicted.items()}
        void, ignored = pixels[overlaps.rows == VOID].sum(0), set()
        for j, category_id in predictions.items():
            crowd = pixels[crowds[category_id], j] if category_id in crowds else 0
            # A segment mostly on void or on the crowd of its class is no FP.
            if (void[j] + crowd) / pixels[:, j].sum() > MATCH_IOU:
                ignored.add(j)
        matches = {i: j for i in truth for j in predictions if ious[i, j] > MATCH_IOU}
        for i, j in matches.items():
            self.confusion[truth[i], predictions[j]] += 1
            if truth[i] == predictions[j]:
                self._add("outline", truth[i], 1 - ious[i, j], weight=1)
            else:
                self._add("class", truth[i], 0.5)
                if j not in ignored:
                    self._add("class", predictions[j], 0.5)
        for i in truth.keys() - matches:
            same = [ious[i, j] for j, c in predictions.items() if c == truth[i]]
            self._add("outline" if max(same, default=0) >= _MIN_IOU else "missed", truth[i], 0.5)
            self.confusion[truth[i], None] += 1
        for j in predictions.keys() - matches.values() - ignored:
            same = {i: ious[i, j] for i, c in truth.items() if c == predictions[j]}
            nearest = max(same, key=same.__getitem__, default=None)
            kind = "invented"
            if nearest is not None and same[nearest] >= _MIN_IOU:
                kind = "double" if nearest in matches else "outline"
            self._add(kind, predictions[j], 0.5)
            self.confusion[None, predictions[j]] += 1

    def _add(self, kind: str, category_id: int, loss: float, weight: float = 0.5) -> None:
        self.losses[kind][category_id] += loss
        self.weights[category_id] += weight

    def lost_pq(self) -> dict[str, float]:
        """Return the lost PQ of each kind of error, in percent: means over the classes."""
        share = 100 / max(1, len(self.weights))
        return {
            kind: share * sum(self.losses[kind][c] / weight for c, weight in self.weights.items())
            for kind in KINDS
        }


def draw_confusion(confusion: Counter, names: dict[int, str]) -> bytes:
    """Return the confusion table as a PNG. Colors are fractions of the row."""
    wrong: Counter = Counter()
    for pair, count in confusion.items():
        for category_id in pair:
            wrong[category_id] += count if pair[0] != pair[1] else 0
    shown: Sequence = [c for c, _ in wrong.most_common() if c is not None][:_MAX_CLASSES]
    ids = [c for c in names if c in shown or len(names) <= _MAX_CLASSES]
    table = np.array([[confusion[i, j] for j in [*ids, None]] for i in [*ids, None]])
    side = 2 + 0.45 * len(table)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(table / table.sum(1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    labels = [textwrap.shorten(names[c], _MAX_LABEL, placeholder="...") for c in ids]
    axes.set_xticks(range(len(table)), [*labels, "missed"], rotation=90)
    axes.set_yticks(range(len(table)), [*labels, "invented"])
    for (i, j), count in np.ndenumerate(table):
        if count:
            dark = count > table[i].sum() / 2
            axes.text(j, i, count, ha="center", va="center", color="white" if dark else "black")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
