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

# Share of white (above 0) or black in the first, second, third ... object of a class.
_SHADES = (0, -0.4, 0.45, -0.2, 0.25)
_EDGE = (1.0, 1.0, 240.0 / 255)


def as_array(ids: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return ids, on whatever device, as an array."""
    return ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)


def class_colors(metadata: Metadata, count: int) -> list[Color]:
    """Return the colours of the first ``count`` classes: the metadata's, else the palette's."""
    given = max(metadata.get("thing_colors") or [], metadata.get("stuff_colors") or [], key=len)
    return [tuple(given[i] if i < len(given) else default_color(i)) for i in range(count)]


def class_name(category: int, metadata: Metadata) -> str:
    """Return the name of a contiguous class, "class 7" where the metadata has none."""
    names = metadata.get("thing_classes") or metadata.get("stuff_classes") or []
    return names[category] if category < len(names) else f"class {category}"


class PanopticVisualizer(Visualizer):
    """A ``Visualizer`` that draws the same picture every time, and no random numbers.

    Detectron2 changes the colours of things at random; here the objects of a class have its
    colour in different shades. Letters have one size that can be read; a label whose place is
    taken moves up or down, and is left out where there is no room.

    Args:
        image: H x W x 3 uint8 RGB.
        metadata: names and colours of the classes; what it lacks is made up.
    """

    def __init__(self, image: np.ndarray, metadata: Metadata):
        super().__init__(image, metadata)
        self.metadata: Metadata = metadata
        self._text_points = text_size(*image.shape[:2]) * 72 / self.output.dpi
        self._seen: dict[Color, int] = {}
        self._labels: list[Bbox] = []

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: Segments,
        area_threshold: int | None = None,
        alpha: float = 0.55,
    ):
        """As in Detectron2, for arrays too; segments without ``isthing`` are things."""
        # Both kinds of all classes: segments have contiguous ids of one space.
        count = 1 + max((s["category_id"] for s in segments_info), default=0)
        names = [class_name(i, self.metadata) for i in range(count)]
        colors = class_colors(self.metadata, count)
        self.metadata = Metadata(
            thing_classes=names, stuff_classes=names, thing_colors=colors, stuff_colors=colors
        )
        segments = [{"isthing": True, **s} for s in segments_info]
        ids = torch.as_tensor(as_array(panoptic_seg).astype(np.int64))
        return super().draw_panoptic_seg(ids, segments, area_threshold, alpha)

    def draw_text(self, text, position, *, color="g", horizontal_alignment="center", **_):
        """Write a label where it hides no other one; see ``Visualizer.draw_text``."""
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
        x0 = min(max(box.x0, 1), max(canvas.x1 - box.width - 1, 1))
        for lines in (0, 1, -1, 2, -2, 3, -3):
            y0 = min(max(box.y0 - lines * box.height, 1), max(canvas.y1 - box.height - 1, 1))
            place = Bbox.from_bounds(x0, y0, box.width, box.height)
            if not any(Bbox.intersection(place, other) for other in self._labels):
                self._labels.append(place)
                x, y = label.get_position()
                label.set_position((x + x0 - box.x0, y - y0 + box.y0))
                return self.output
        label.remove()
        return self.output

    def draw_polygon(self, segment, color, edge_color=None, alpha=0.5):
        """As in Detectron2, in less than half the time; all edges are light.

        ``Axes.add_patch``, which is used there, looks for the extremes of every edge; the axes are
        those of the image anyway.
        """
        width, face = max(self._default_font_size // 15, 1), (*mplc.to_rgb(color), alpha)
        edge = edge_color or _EDGE
        patch = Polygon(segment, facecolor=face, edgecolor=edge, linewidth=width)
        self.output.ax.add_artist(patch)
        return self.output

    def get_picture(self) -> np.ndarray:
        """Return the picture, H x W x 3 uint8 RGB."""
        return np.ascontiguousarray(self.output.get_image())

    def _jitter(self, color):
        color = tuple(color)
        number = self._seen[color] = self._seen.get(color, -1) + 1
        shade = _SHADES[number % len(_SHADES)]
        return tuple(c + abs(shade) * ((shade > 0) - c) for c in color)
