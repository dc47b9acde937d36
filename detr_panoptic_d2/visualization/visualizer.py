"""Detectron2's ``Visualizer`` with repeatable colors and readable labels."""

from typing import Any

import cv2
import matplotlib.colors as mplc
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import Visualizer
from matplotlib.transforms import Bbox

from ..data.colors import Color, choose_colors, shades, to_lab
from .panels import text_size

Segments = list[dict[str, Any]]

# With more labels than this, labels "auto" writes none.
_MAX_LABELS = 15
# Pictures with a larger shorter side get edges of two pixels.
_WIDE_EDGES = 300


def as_array(ids: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return ids, on whatever device, as an array."""
    return ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)


def class_colors(metadata: Metadata, count: int) -> list[Color]:
    """Return the colors of the first ``count`` classes: the metadata's, else chosen ones."""
    colors = max(metadata.get("thing_colors") or [], metadata.get("stuff_colors") or [], key=len)
    given = [tuple(color) for color in colors[:count]]
    things = metadata.get("thing_dataset_id_to_contiguous_id")
    isthing = [things is None or i in things.values() for i in range(count)]
    return choose_colors(isthing, [*given, *[None] * (count - len(given))])


def class_name(category: int, metadata: Metadata) -> str:
    """Return the name of a contiguous class, "class 7" if the metadata has none."""
    names = metadata.get("thing_classes") or metadata.get("stuff_classes") or []
    return names[category] if category < len(names) else f"class {category}"


def draw_edges(picture: np.ndarray, labels: np.ndarray) -> None:
    """Draw white lines between pixels of different labels H x W into a picture H x W x 3."""
    horizontal, vertical = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    picture[:, 1:][horizontal] = 255
    picture[1:][vertical] = 255
    if min(labels.shape) > _WIDE_EDGES:
        picture[:, :-1][horizontal] = 255
        picture[:-1][vertical] = 255


def _inner_point(mask: np.ndarray) -> tuple[float, float]:
    """Return x and y of a pixel far from the edges of a mask H x W, the most central one."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    places = np.argwhere(distance >= 0.9 * distance.max()) - 1
    y, x = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
    return float(x) + 0.5, float(y) + 0.5


class PanopticVisualizer(Visualizer):
    """A ``Visualizer`` that gives the same picture for the same input.

    Detectron2 changes the colors of things randomly. Here the objects of a class have shades of its
    color. Each label lies inside its segment, in a box of the segment's color.

    Args:
        image: H x W x 3 uint8 RGB.
        metadata: names and colors of the classes. Missing ones are made up.
        labels: "all"; "none"; or "auto": labels that have room in their segment and hide no other
            one, and none at all if there are many.

    Attributes:
        unlabelled: the classes that were drawn without a label, in order, with their colors: the
            entries of a legend.
    """

    def __init__(self, image: np.ndarray, metadata: Metadata, labels: str = "auto"):
        super().__init__(image, metadata)
        self.metadata: Metadata = metadata
        self.labels = labels
        self.unlabelled: dict[str, Color] = {}
        self._text_points = text_size(*image.shape[:2]) * 72 / self.output.dpi
        self._label_boxes: list[Bbox] = []

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: Segments,
        area_threshold: int = 0,
        alpha: float = 0.55,
    ):
        """Draw segments and their labels. Unlike Detectron2's, edges are those of the pixels.

        Args:
            panoptic_seg: H x W segment ids.
            segments_info: with ``id``, contiguous ``category_id``; ``isthing`` (default: True);
                perhaps ``score``.
            area_threshold: pixels; smaller segments are not drawn.
            alpha: share of the color in a segment, 0 to 1.
        """
        ids = as_array(panoptic_seg)
        count = 1 + max((s["category_id"] for s in segments_info), default=0)
        colors = class_colors(self.metadata, count)
        objects_of_class = dict.fromkeys(range(count), 0)
        picture, drawn = self.img.copy(), []
        labels = np.zeros(ids.shape, dtype=np.int32)
        for segment in segments_info:
            mask, category = ids == segment["id"], segment["category_id"]
            if np.count_nonzero(mask) <= area_threshold:
                continue
            color = colors[category]
            if segment.get("isthing", True):
                variants = shades(color)
                color = variants[objects_of_class[category] % len(variants)]
                objects_of_class[category] += 1
            drawn.append((segment, mask, color))
            labels[mask] = len(drawn)
            picture[mask] = (1 - alpha) * picture[mask] + alpha * np.array(color)
        draw_edges(picture, labels)
        self.output.reset_image(picture.round().clip(0, 255).astype(np.uint8))
        labelled = self._draw_labels(drawn)
        for segment, _, _ in drawn:
            category = segment["category_id"]
            if self.labels != "none" and category not in labelled:
                self.unlabelled[class_name(category, self.metadata)] = colors[category]
        return self.output

    def _draw_labels(self, drawn: list[tuple[dict, np.ndarray, Color]]) -> set[int]:
        """Write names and scores, largest segments first; return the classes that have a label."""
        labelled: set[int] = set()
        too_many = self.labels == "auto" and len(drawn) > _MAX_LABELS
        if self.labels == "none" or too_many:
            return labelled
        for segment, mask, color in sorted(drawn, key=lambda d: -np.count_nonzero(d[1])):
            name = class_name(segment["category_id"], self.metadata)
            score = f" {segment['score']:.0%}" if "score" in segment else ""
            room = None if self.labels == "all" else mask
            if self._write(f"{name}{score}", _inner_point(mask), np.divide(color, 255), room):
                labelled.add(segment["category_id"])
        return labelled

    def draw_text(self, text, position, *, color="g", **_):
        """Write a label in a box of its color; see ``Visualizer.draw_text``."""
        self._write(str(text), position, mplc.to_rgb(color), None)
        return self.output

    def _write(
        self,
        text: str,
        position: tuple[float, float],
        color: np.ndarray | tuple[float, ...],
        room: np.ndarray | None,
    ) -> bool:
        """Write a label around a position, inside the picture.

        Args:
            text: of the label.
            position: x and y of its middle, in pixels.
            color: of the box, from 0 to 1. Letters are black or white.
            room: H x W bool mask. The label is left out if it hides another label, or if it is
                larger than the mask. None: it is always written.

        Returns:
            bool: whether it was written.
        """
        light = to_lab(255 * np.array([color]))[0, 0] > 56
        label = self.output.ax.text(
            *position,
            # "$" would start a formula.
            text.replace("$", r"\$"),
            size=self._text_points,
            color="black" if light else "white",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
            ha="center",
            va="center",
            zorder=10,
        )
        box = label.get_window_extent(self.output.canvas.get_renderer()).padded(2)
        canvas = self.output.fig.bbox
        x0 = min(max(box.x0, 0), max(canvas.x1 - box.width, 0))
        y0 = min(max(box.y0, 0), max(canvas.y1 - box.height, 0))
        place = Bbox.from_bounds(x0, y0, box.width, box.height)
        if room is not None:
            hides = any(Bbox.intersection(place, other) for other in self._label_boxes)
            if hides or box.width * box.height > np.count_nonzero(room):
                label.remove()
                return False
        self._label_boxes.append(place)
        # y of the box is upwards.
        x, y = label.get_position()
        label.set_position((x + x0 - box.x0, y - y0 + box.y0))
        return True

    def get_picture(self) -> np.ndarray:
        """Return the picture, H x W x 3 uint8 RGB."""
        return np.ascontiguousarray(self.output.get_image())
