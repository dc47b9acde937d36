"""The pencil of :mod:`.visualization`: Detectron2's ``Visualizer`` with exact pixels and labels
that keep apart."""

import numpy as np
from detectron2.utils.visualizer import Visualizer

from .label_placement import place_labels
from .panels import Color, text_size

# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Of letters on black.
_LEAST_LUMINANCE = 0.62


class SegmentDrawing(Visualizer):
    """A ``Visualizer`` that fills pixels exactly and keeps its labels apart."""

    def fill(self, index: np.ndarray, colors: list[Color], alpha: float) -> None:
        """Mix the colour of each segment into its pixels and draw lines between segments.

        Args:
            index: H x W positions in ``colors``, -1 for none.
            colors: of each segment.
            alpha: share of the colour, 0 to 1.
        """
        table = np.array([*colors, (0, 0, 0)], dtype=np.float32)
        share = np.where(index >= 0, np.float32(alpha), np.float32(0))[..., None]
        mixed = self.img * (1 - share) + table[index] * share
        thickness = max(1, round(np.sqrt(index.size) / 450))
        mixed[_edges(index, thickness)] = (255, 255, 255)
        self.output.reset_image(mixed)

    def write(self, masks: list[np.ndarray], texts: list[str], colors: list[Color]) -> None:
        """Write one label per mask, where it hides no other; see :func:`place_labels`."""
        height, width = self.img.shape[:2]
        points = text_size(height, width) * 72 / self.output.dpi
        renderer, drawn = self.output.canvas.get_renderer(), []
        for text, color in zip(texts, colors, strict=True):
            # "$" would start a formula.
            self.draw_text(
                text.replace("$", r"\$"),
                (0, 0),
                font_size=points,
                color=_light(color),
                horizontal_alignment="left",
            )
            drawn.append(self.output.ax.texts[-1])
            drawn[-1].update_bbox_position_size(renderer)
        frames = [t.get_bbox_patch().get_window_extent(renderer) for t in drawn]
        inner = [t.get_window_extent(renderer) for t in drawn]
        corners = place_labels(masks, [(f.width + 1, f.height + 1) for f in frames])
        for text, corner, frame, box in zip(drawn, corners, frames, inner, strict=True):
            if corner is None:
                text.remove()
            else:
                # From the corner of the frame to that of the letters; y grows upwards there.
                text.set_position((corner[0] + box.x0 - frame.x0, corner[1] + frame.y1 - box.y1))

    def result(self) -> np.ndarray:
        """Return the picture."""
        return np.ascontiguousarray(self.output.get_image())


def _light(color: Color) -> np.ndarray:
    """Mix white into a colour until it can be read on black; channels from 0 to 1."""
    rgb = np.divide(color, 255)
    luminance = rgb @ LUMINANCE
    share = max(0.0, (_LEAST_LUMINANCE - luminance) / (1 - luminance)) if luminance < 1 else 0.0
    return rgb + share * (1 - rgb)


def _edges(index: np.ndarray, thickness: int) -> np.ndarray:
    """Return H x W bool, True on lines between different values."""
    edges = np.zeros(index.shape, dtype=bool)
    for shift in range(1, thickness + 1):
        edges[:, :-shift] |= index[:, shift:] != index[:, :-shift]
        edges[:-shift] |= index[shift:] != index[:-shift]
    return edges
