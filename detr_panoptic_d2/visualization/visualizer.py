"""Detectron2's ``Visualizer`` with repeatable colours and labels that can be read."""

from typing import Any

import matplotlib.colors as mplc
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import Visualizer
from matplotlib.patches import Polygon
from matplotlib.transforms import Bbox

from ..data.metadata import default_color
from .panels import Color, text_size

Segments = list[dict[str, Any]]

_KINDS = ("thing", "stuff")

# Share of white (above 0) or black in the first, second, third ... object of a class.
_SHADES = (0, -0.4, 0.45, -0.2, 0.25)
_EDGE = (1.0, 1.0, 240.0 / 255)
# Where a label goes if its place is taken: so many lines below (or above) it.
_SHIFTS = (0, 1, -1, 2, -2, 3, -3)


def class_colors(metadata: Metadata, count: int) -> list[Color]:
    """Return the colours of the first ``count`` classes: the metadata's, else a palette's.

    Args:
        metadata: ``thing_colors`` or ``stuff_colors`` of all classes, or neither.
        count: contiguous classes.
    """
    given = max(metadata.get("thing_colors") or [], metadata.get("stuff_colors") or [], key=len)
    return [tuple(given[i] if i < len(given) else default_color(i)) for i in range(count)]


def class_name(category: int, metadata: Metadata) -> str:
    """Return the name of a contiguous class, "class 7" where the metadata has none."""
    names = metadata.get("thing_classes") or metadata.get("stuff_classes") or []
    return names[category] if category < len(names) else f"class {category}"


class PanopticVisualizer(Visualizer):
    """A ``Visualizer`` that draws the same picture every time.

    Detectron2 changes the colours of things at random; here the objects of a class have its
    colour in different shades. Letters have one size that can be read; a label whose place is
    taken moves up or down, and is left out where there is no room.

    Args:
        image: H x W x 3 uint8 RGB.
        metadata: names and colours of the classes; what it lacks is made up.
        classes: number of classes, where the metadata has fewer names or colours.
        labels: write the names.
    """

    def __init__(
        self, image: np.ndarray, metadata: Metadata, *, classes: int = 0, labels: bool = True
    ):
        classes = max(classes, *(len(metadata.get(f"{kind}_classes") or ()) for kind in _KINDS))
        names = [class_name(i, metadata) for i in range(classes)]
        colors = class_colors(metadata, classes)
        # Both kinds of all classes: segments have contiguous ids of one space.
        whole = Metadata(
            **{f"{kind}_classes": names for kind in _KINDS},
            **{f"{kind}_colors": colors for kind in _KINDS},
        )
        super().__init__(image, whole)
        self._text_points = text_size(*image.shape[:2]) * 72 / self.output.dpi
        self._seen: dict[Color, int] = {}
        self._labels: list[Bbox] = []
        self._labels_on = labels

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: Segments,
        area_threshold: int | None = None,
        alpha: float = 0.55,
    ):
        """As in Detectron2, for arrays too; segments without ``isthing`` are things."""
        segments = [{"isthing": True, **s} for s in segments_info]
        if not isinstance(panoptic_seg, torch.Tensor):
            panoptic_seg = torch.as_tensor(np.asarray(panoptic_seg, dtype=np.int64))
        return super().draw_panoptic_seg(panoptic_seg.cpu(), segments, area_threshold, alpha)

    def draw_text(self, text, position, *, color="g", horizontal_alignment="center", **_):
        """Write a label where it hides no other one; see ``Visualizer.draw_text``."""
        if not self._labels_on:
            return self.output
        super().draw_text(
            # "$" would start a formula.
            str(text).replace("$", r"\$"),
            position,
            font_size=self._text_points,
            # Half white: it has to be read on black.
            color=np.divide(np.add(mplc.to_rgb(color), 1), 2),
            horizontal_alignment=horizontal_alignment,
        )
        label = self.output.ax.texts[-1]
        # In pixels, y upwards.
        box = label.get_window_extent(self.output.canvas.get_renderer()).padded(2)
        canvas = self.output.fig.bbox
        for shift in _SHIFTS:
            left = min(max(box.x0, 1), max(canvas.x1 - box.width - 1, 1))
            low = min(max(box.y0 - shift * box.height, 1), max(canvas.y1 - box.height - 1, 1))
            place = Bbox.from_bounds(left, low, box.width, box.height)
            if not any(Bbox.intersection(place, other) for other in self._labels):
                break
        else:
            label.remove()
            return self.output
        self._labels.append(place)
        x, y = label.get_position()
        label.set_position((x + place.x0 - box.x0, y - place.y0 + box.y0))
        return self.output

    def draw_polygon(self, segment, color, edge_color=None, alpha=0.5):
        """As in Detectron2, in half the time; the edges of things are as light as those of stuff.

        ``Axes.add_patch``, which is used there, looks for the extremes of every edge; the axes are
        those of the image anyway.
        """
        polygon = Polygon(
            segment,
            facecolor=(*mplc.to_rgb(color), alpha),
            edgecolor=edge_color or _EDGE,
            linewidth=max(self._default_font_size // 15, 1),
        )
        self.output.ax.add_artist(polygon)
        return self.output

    def get_picture(self) -> np.ndarray:
        """Return the picture, H x W x 3 uint8 RGB."""
        return np.ascontiguousarray(self.output.get_image())

    def _jitter(self, color):
        color = tuple(color)
        number = self._seen[color] = self._seen.get(color, -1) + 1
        shade = _SHADES[number % len(_SHADES)]
        return tuple(c + abs(shade) * ((shade > 0) - c) for c in color)
