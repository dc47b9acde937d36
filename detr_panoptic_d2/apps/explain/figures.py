"""The figures: each takes a :class:`Look` at one image and returns a picture H x W x 3 uint8.

A query has one colour in all of them. Maps of any resolution are drawn over the padded canvas:
viridis for amounts, PuOr for signed values, which can be told apart by colour-blind people.
"""

from typing import NamedTuple

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

# Shorter side of a picture with labels, width of one with maps at most, in pixels.
_SIDE, _WIDTH = 400, 1000
_PADDING_GREY = 220


class Look(NamedTuple):
    """One image of a recording.

    Attributes:
        recording: of the batch.
        index: of the image in it.
        picture: H x W x 3 uint8 RGB, in the size of the result.
        network_input: the same in the size that the network gets.
        points: (x, y) in pixels of the network input, where the encoder is asked.
        metadata: of the classes.
    """

    recording: Recording
    index: int
    picture: np.ndarray
    network_input: np.ndarray
    points: list[tuple[float, float]]
    metadata: Metadata

    @property
    def image(self) -> ImageRecord:
        """The image's part of the recording."""
        return self.recording.per_image[self.index]

    @property
    def canvas(self) -> np.ndarray:
        """The image on its canvas; padding is grey."""
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
        """For example "q12 circle 0.98" for each query."""
        rows = zip(self.image.queries, self.image.labels, self.image.scores, strict=True)
        return [f"q{int(q)} {class_name(int(c), self.metadata)} {s:.2f}" for q, c, s in rows]


class Map(NamedTuple):
    """A panel.

    Attributes:
        values: H x W, or H x W x 3 uint8, over the whole canvas.
        title: above it.
        most: value of the last colour; None: the largest, or what best shows the insides of masks.
        signed: 0 is in the middle of the colours.
        box: (x0, y0, x1, y1) in pixels of the canvas, and its RGB colour.
        point: (x, y) in pixels of the canvas.
    """

    values: np.ndarray | torch.Tensor
    title: str = ""
    most: float | None = None
    signed: bool = False
    box: tuple[torch.Tensor, Color] | None = None
    point: tuple[float, float] | None = None


def draw_input(look: Look) -> np.ndarray:
    """The canvas, and the padding mask where there is one."""
    height, width = look.image.frame.image
    row = [Map(look.canvas, f"{height} x {width} pixels")]
    padding = look.recording.detections.padding
    if padding is not None:
        count = f"{int(padding[look.index].sum())} of {padding[look.index].numel()}"
        row.append(Map(padding[look.index], f"padding mask: {count} cells of res5", most=1))
    return _draw([row], look)


def draw_features(look: Look) -> np.ndarray:
    """Channel means of res2 to res5, and two channels of the position encoding."""
    features, position = look.recording.detections.features, look.recording.position
    row = []
    for name in ("res2", "res3", "res4", "res5"):
        x = features[name][look.index]
        row.append(Map(x.mean(0), f"{name}: {x.shape[1]} x {x.shape[2]}"))
    position = position[look.index % len(position)]
    for axis, channel in (("row", 0), ("column", len(position) // 2)):
        row.append(Map(position[channel], f"position: {axis}", most=1, signed=True))
    return _draw([row], look)


def draw_encoder(look: Look) -> np.ndarray:
    """Where the cell at each point looks, and how alike the memory's cells are to it."""
    memory = look.recording.detections.memory[look.index]
    height, width = memory.shape[-2:]
    padding = look.recording.detections.padding
    memory = memory.flatten(1)
    if padding is not None:
        memory = memory.masked_fill(padding[look.index].flatten(), torch.nan)
    centred = memory - memory.nanmean(1, keepdim=True)
    rows = []
    for x, y in look.points:
        column = int(x * width / look.image.frame.canvas[1])
        cell = torch.tensor([int(y * height / look.image.frame.canvas[0]) * width + column])
        row = [Map(look.canvas, "the point", point=(x, y))]
        for number, call in enumerate(look.recording.encoder, 1):
            weights = call.weights(look.index, cell).mean(0).view(height, width)
            row.append(Map(weights, f"looks at, layer {number}", point=(x, y)))
        alike = torch.cosine_similarity(centred, centred[:, cell], dim=0).view(height, width)
        row.append(Map(alike, "memory like it", most=1, signed=True, point=(x, y)))
        rows.append(row)
    return _draw(rows, look)


def draw_queries(look: Look) -> np.ndarray:
    """Class, score and box of each query."""
    canvas = enlarge(look.canvas, _SIDE)
    factor = canvas.shape[0] / look.canvas.shape[0]
    visualizer = PanopticVisualizer(canvas, look.metadata)
    for box, title, color in zip(look.image.boxes.numpy(), look.titles, look.colors, strict=True):
        x0, y0, x1, y1 = box * factor
        color = np.divide(color, 255)
        visualizer.draw_box((x0, y0, x1, y1), alpha=1, edge_color=color)
        visualizer.draw_text(title, ((x0 + x1) / 2, y0), color=color)
    return visualizer.get_picture()


def draw_attention(look: Look) -> np.ndarray:
    """A row per query: its cross-attention, then its box-attention maps, one per head."""
    image, call = look.image, look.recording.decoder[-1]
    cross = call.weights(look.index, image.queries).mean(0)
    rows = []
    for k, maps in enumerate(image.box_attention):
        box = image.boxes[k], look.colors[k]
        row = [Map(cross[k].view(maps.shape[-2:]), "" if k else "cross-attention", box=box)]
        # One scale per query; the square root shows small weights too.
        row += [
            Map((m / maps.max()).sqrt(), "" if k else f"head {n}", most=1)
            for n, m in enumerate(maps, 1)
        ]
        rows.append(row)
    return _draw(rows, look, look.titles)


def draw_mask_head(look: Look) -> np.ndarray:
    """A row per query: the channel mean after each step of the mask head, then the logits."""
    image, rows = look.image, []
    for k, logits in enumerate(image.mask_logits):
        row = [
            Map(maps[k], "" if k else f"{name}: {maps.shape[1]} x {maps.shape[2]}")
            for name, maps in image.steps.items()
        ]
        size = f"logits: {logits.shape[0]} x {logits.shape[1]}"
        rows.append([*row, Map(logits, "" if k else size, signed=True)])
    return _draw(rows, look, look.titles)


def draw_result(look: Look) -> np.ndarray:
    """The query that wins each pixel, and the panoptic result."""
    owner = argmax_at_output(look.image.mask_logits, look.image.frame)
    names = [title.rpartition(" ")[0] for title in look.titles]
    queries = Metadata(stuff_classes=names, stuff_colors=look.colors)
    winners = [{"id": k, "category_id": k, "isthing": False} for k in range(len(names))]
    grey = look.picture.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    pictures = {
        "Argmax: one colour per query": draw_panoptic(
            grey, owner, winners, queries, min_size=_SIDE, alpha=0.8
        ),
        "Panoptic result": draw_panoptic(
            look.picture, *look.image.panoptic, look.metadata, min_size=_SIDE
        ),
    }
    return side_by_side([with_caption(picture, text) for text, picture in pictures.items()])


def _draw(rows: list[list[Map]], look: Look, labels: list[str] | None = None) -> np.ndarray:
    """Draw panels in rows, each row with its label on the left."""
    height, width = look.image.frame.canvas
    columns = len(rows[0])
    room = 1.3 if labels else 0
    panel = min((_WIDTH / 100 - room) / columns, 3.5)
    size = room + panel * columns, len(rows) * panel * height / width + 0.3
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
        most = item.most
        if most is None and item.signed:
            # The insides of masks; their outsides may go far beyond.
            inside = values[values > 0]
            most = 1.5 * float(np.percentile(inside if inside.size else -values, 98))
        elif most is None:
            most = float(values.max())
        least = -most if item.signed else 0 if item.most else float(values.min())
        cmap = "PuOr" if item.signed else "viridis"
        axis.imshow(values, cmap, extent=extent, vmin=least, vmax=most, interpolation="nearest")
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
