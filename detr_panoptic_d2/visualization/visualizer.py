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

# With more segments than this, there are no labels.
_MAX_LABELS = 15
# Pictures with a larger shorter side get edges of two pixels.
_WIDE_EDGES = 300


def as_array(ids: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return ids, on whatever device, as an array."""
    return ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)


def class_colors(metadata: Metadata, count: int) -> list[Color]:
    """Return the colors of the first ``count`` classes: the metadata's, else chosen ones."""
    colors = max(metadata.get("thing_colors") or [], metadata.get("stuff_colors") or [], key=len)
    known = [tuple(color) for color in colors[:count]]
    things = metadata.get("thing_dataset_id_to_contiguous_id")
    isthing = [things is None or i in things.values() for i in range(count)]
    return choose_colors(isthing, [*known, *[None] * (count - len(known))])


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
    color. Each label lies inside its segment, in a box of the segment's color. A label is left out
    if it has no room or hides another one, and all are if there are many.

    Attributes:
        unlabelled: the classes that were drawn without a label, in order, with their colors: the
            entries of a legend.
    """

    def __init__(self, image: np.ndarray, metadata: Metadata):
        super().__init__(image, metadata)
        self.metadata: Metadata = metadata
        self.unlabelled: dict[str, Color] = {}
        self._text_points = text_size(*image.shape[:2]) * 72 / self.output.dpi
        self._label_boxes: list[Bbox] = []

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: Segments,
        area_threshold: int = 0,
        alpha: float = 0.55,
        labels: bool = True,
    ):
        """Draw segments and their labels; see ``Visualizer.draw_panoptic_seg``.

        Edges are those of the pixels. Labels have the ``score`` if the segment has one.
        """
        ids = as_array(panoptic_seg)
        count = 1 + max((s["category_id"] for s in segments_info), default=0)
        colors = class_colors(self.metadata, count)
        objects_of_class = dict.fromkeys(range(count), 0)
        picture, drawn = self.img.copy(), []
        indices = np.zeros(ids.shape, dtype=np.int32)
        for segment in segments_info:
            mask, category = ids == segment["id"], segment["category_id"]
            area = np.count_nonzero(mask)
            if area <= area_threshold:
                continue
            color = colors[category]
            if segment.get("isthing", True):
                variants = shades(color)
                color = variants[objects_of_class[category] % len(variants)]
                objects_of_class[category] += 1
            drawn.append((area, segment, mask, np.divide(color, 255)))
            indices[mask] = len(drawn)
            picture[mask] = (1 - alpha) * picture[mask] + alpha * np.array(color)
        draw_edges(picture, indices)
        self.output.reset_image(picture.round().clip(0, 255).astype(np.uint8))
        if not labels:
            return self.output
        labelled: set[int] = set()
        largest_first = sorted(drawn, key=lambda entry: -entry[0])
        for area, segment, mask, label_color in largest_first if len(drawn) <= _MAX_LABELS else ():
            text = class_name(segment["category_id"], self.metadata)
            text += f" {segment['score']:.0%}" if "score" in segment else ""
            if self._write(text, _inner_point(mask), label_color, int(area)):
                labelled.add(segment["category_id"])
        for _, segment, _, _ in drawn:
            category = segment["category_id"]
            if category not in labelled:
                self.unlabelled[class_name(category, self.metadata)] = colors[category]
        return self.output

    def draw_text(self, text, position, *, color="g", **_):
        """Write a label in a box of its color; see ``Visualizer.draw_text``."""
        self._write(str(text), position, np.array(mplc.to_rgb(color)), None)
        return self.output

    def _write(
        self, text: str, position: tuple[float, float], color: np.ndarray, room: int | None
    ) -> bool:
        """Write a label around a position (x, y) and return whether it was written.

        It is left out if it hides another one or is larger than ``room`` pixels (None: never).
        """
        light = to_lab(255 * color[None])[0, 0] > 56
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
        hides = any(Bbox.intersection(place, other) for other in self._label_boxes)
        if room is not None and (hides or box.width * box.height > room):
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
