"""The figures. Each function draws one image of a recording as a picture H x W x 3 uint8.

A query has the same color in all figures. Maps of any resolution cover the padded canvas. Their
color maps, viridis for amounts and PuOr for signed values, are readable for color-blind people.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import Metadata
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...data.colors import Color, choose_colors
from ...modeling.mask_ops import argmax_at_output
from ...visualization.draw import draw_panoptic
from ...visualization.panels import enlarge, side_by_side, with_caption
from ...visualization.visualizer import PanopticVisualizer, class_name
from .record import ImageRecord, Recording

# Pixels: approximate smallest shorter side of pictures with labels, largest width of maps.
_SIDE, _WIDTH = 400, 1000
_PADDING_GREY = 220


class ImageView(NamedTuple):
    """One image of a recording.

    Attributes:
        recording: of the batch.
        index: position of the image in the batch.
        picture: H x W x 3 uint8 RGB, in the size of the result.
        network_input: the image in the size of the network input.
        points: (x, y) in pixels of the network input. The encoder attention there is shown.
        metadata: names and colors of the classes.
    """

    recording: Recording
    index: int
    picture: np.ndarray
    network_input: np.ndarray
    points: list[tuple[float, float]]
    metadata: Metadata

    @property
    def image(self) -> ImageRecord:
        """Record of the image."""
        return self.recording.per_image[self.index]

    @property
    def canvas(self) -> np.ndarray:
        """The image on the padded canvas, with grey padding."""
        canvas = np.full((*self.image.frame.canvas, 3), _PADDING_GREY, dtype=np.uint8)
        height, width = self.image.frame.image
        canvas[:height, :width] = self.network_input
        return canvas

    @property
    def colors(self) -> list[Color]:
        """A color for each query."""
        return choose_colors([True] * len(self.image.queries))

    @property
    def titles(self) -> list[str]:
        """Number, class and score of each query, such as "q12 circle 0.98"."""
        rows = zip(self.image.queries, self.image.labels, self.image.scores, strict=True)
        return [f"q{int(q)} {class_name(int(c), self.metadata)} {s:.2f}" for q, c, s in rows]


class Map(NamedTuple):
    """A panel of a figure.

    Attributes:
        values: H x W, or H x W x 3 uint8, over the whole canvas.
        title: text above the panel.
        max_value: value of the last color. None: the largest value, or for signed values one that
            shows the inside of masks.
        signed: 0 is in the middle of the colors.
        box: (x0, y0, x1, y1) in pixels of the canvas, and its RGB color.
        point: (x, y) in pixels of the canvas.
    """

    values: np.ndarray | torch.Tensor
    title: str = ""
    max_value: float | None = None
    signed: bool = False
    box: tuple[torch.Tensor, Color] | None = None
    point: tuple[float, float] | None = None


def draw_input(view: ImageView) -> np.ndarray:
    """Draw the canvas and, if there is one, the padding mask."""
    height, width = view.image.frame.image
    row = [Map(view.canvas, f"{height} x {width} pixels")]
    padding = view.recording.detections.padding
    if padding is not None:
        count = f"{int(padding[view.index].sum())} of {padding[view.index].numel()}"
        row.append(Map(padding[view.index], f"padding mask: {count} cells of res5", max_value=1))
    return _draw([row], view)


def draw_features(view: ImageView) -> np.ndarray:
    """Draw channel means of res2 to res5, and two channels of the position encoding."""
    features, position = view.recording.detections.features, view.recording.position
    row = []
    for name in ("res2", "res3", "res4", "res5"):
        x = features[name][view.index]
        row.append(Map(x.mean(0), f"{name}: {x.shape[1]} x {x.shape[2]}"))
    position = position[view.index % len(position)]
    for axis, channel in (("row", 0), ("column", len(position) // 2)):
        row.append(Map(position[channel], f"position: {axis}", max_value=1, signed=True))
    return _draw([row], view)


def draw_encoder(view: ImageView) -> np.ndarray:
    """Draw the attention of the cell at each point, and its similarity to the cells of memory."""
    memory = view.recording.detections.memory[view.index]
    height, width = memory.shape[-2:]
    padding = view.recording.detections.padding
    memory = memory.flatten(1)
    if padding is not None:
        memory = memory.masked_fill(padding[view.index].flatten(), torch.nan)
    centered = memory - memory.nanmean(1, keepdim=True)
    rows = []
    for x, y in view.points:
        column = int(x * width / view.image.frame.canvas[1])
        cell = torch.tensor([int(y * height / view.image.frame.canvas[0]) * width + column])
        row = [Map(view.canvas, "the point", point=(x, y))]
        for number, call in enumerate(view.recording.encoder, 1):
            weights = call.weights(view.index, cell).mean(0).view(height, width)
            row.append(Map(weights, f"attention, layer {number}", point=(x, y)))
        similarity = torch.cosine_similarity(centered, centered[:, cell], dim=0).view(height, width)
        row.append(Map(similarity, "similarity in memory", max_value=1, signed=True, point=(x, y)))
        rows.append(row)
    return _draw(rows, view)


def draw_queries(view: ImageView) -> np.ndarray:
    """Draw class, score and box of each query."""
    canvas = enlarge(view.canvas, _SIDE)
    factor = canvas.shape[0] / view.canvas.shape[0]
    visualizer = PanopticVisualizer(canvas, view.metadata)
    for box, title, color in zip(view.image.boxes.numpy(), view.titles, view.colors, strict=True):
        x0, y0, x1, y1 = box * factor
        color = np.divide(color, 255)
        visualizer.draw_box((x0, y0, x1, y1), alpha=1, edge_color=color)
        visualizer.draw_text(title, ((x0 + x1) / 2, y0), color=color)
    return visualizer.get_picture()


def draw_attention(view: ImageView) -> np.ndarray:
    """Draw a row per query: its cross-attention, then its box-attention maps, one per head."""
    image, call = view.image, view.recording.decoder[-1]
    cross = call.weights(view.index, image.queries).mean(0)
    rows = []
    for k, maps in enumerate(image.box_attention):
        box = image.boxes[k], view.colors[k]
        row = [Map(cross[k].view(maps.shape[-2:]), "" if k else "cross-attention", box=box)]
        # One scale per query. The square root makes small weights visible.
        row += [
            Map((m / maps.max()).sqrt(), "" if k else f"head {n}", max_value=1)
            for n, m in enumerate(maps, 1)
        ]
        rows.append(row)
    return _draw(rows, view, view.titles)


def draw_mask_head(view: ImageView) -> np.ndarray:
    """Draw a row per query: channel means after each step of the mask head, then the logits."""
    image, rows = view.image, []
    for k, logits in enumerate(image.mask_logits):
        row = [
            Map(maps[k], "" if k else f"{name}: {maps.shape[1]} x {maps.shape[2]}")
            for name, maps in image.steps.items()
        ]
        size = f"logits: {logits.shape[0]} x {logits.shape[1]}"
        rows.append([*row, Map(logits, "" if k else size, signed=True)])
    return _draw(rows, view, view.titles)


def draw_result(view: ImageView) -> np.ndarray:
    """Draw the query with the largest logit of each pixel, and the panoptic result."""
    best_query = argmax_at_output(view.image.mask_logits, view.image.frame)
    names = [title.rpartition(" ")[0] for title in view.titles]
    queries = Metadata(stuff_classes=names, stuff_colors=view.colors)
    segments = [{"id": k, "category_id": k, "isthing": False} for k in range(len(names))]
    grey = view.picture.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    options: dict[str, Any] = {"min_size": _SIDE, "legend": True}
    pictures = {
        "Argmax: one color per query": draw_panoptic(
            grey, best_query, segments, queries, alpha=0.8, **options
        ),
        "Panoptic result": draw_panoptic(
            view.picture, *view.image.panoptic, view.metadata, **options
        ),
    }
    return side_by_side([with_caption(picture, text) for text, picture in pictures.items()])


def _draw(rows: list[list[Map]], view: ImageView, labels: list[str] | None = None) -> np.ndarray:
    """Draw panels in rows, each with a label on the left."""
    height, width = view.image.frame.canvas
    columns = len(rows[0])
    label_width = 1.3 if labels else 0
    panel = min((_WIDTH / 100 - label_width) / columns, 3.5)
    size = label_width + panel * columns, len(rows) * panel * height / width + 0.3
    figure = Figure(figsize=size, dpi=100, layout="compressed")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, panels in enumerate(rows):
        for axis, item in zip(axes[row], panels, strict=True):
            _draw_map(axis, item, (0, width, height, 0))
        if labels:
            name, _, score = labels[row].rpartition(" ")
            text = f"{name}\n{score}"
            axes[row, 0].set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_map(axis, item: Map, extent: tuple[int, int, int, int]) -> None:
    values = item.values
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy()
    if values.ndim == 3:
        axis.imshow(values, extent=extent)
    else:
        max_value = item.max_value
        if max_value is None and item.signed:
            # The inside of masks. Values outside of masks can be much larger.
            inside = values[values > 0]
            max_value = 1.5 * float(np.percentile(inside if inside.size else -values, 98))
        elif max_value is None:
            max_value = float(values.max())
        min_value = 0.0 if item.max_value else float(values.min())
        if item.signed:
            min_value = -max_value
        cmap = "PuOr" if item.signed else "viridis"
        axis.imshow(
            values, cmap, extent=extent, vmin=min_value, vmax=max_value, interpolation="nearest"
        )
    axis.set_title(item.title, fontsize=8, pad=3)
    axis.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    if item.box is not None:
        (x0, y0, x1, y1), color = item.box[0].tolist(), np.divide(item.box[1], 255)
        for line, edge in ((3.5, "white"), (2, color)):
            frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=line, ec=edge)
            axis.add_patch(frame)
    if item.point is not None:
        axis.plot(*item.point, "o", ms=8, mfc="none", mec="black", mew=2.6)
        axis.plot(*item.point, "o", ms=8, mfc="none", mec="white", mew=1.3)
