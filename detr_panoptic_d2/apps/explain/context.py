"""What the pictures of all stages need besides the recording."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata

from ...data.palette import default_color
from ...visualization.visualizer import class_name
from .figures import Box, Color
from .recorder import ImageRecord, Recording

Point = tuple[float, float]


@dataclass
class Stage:
    """One stage of the way, as the page shows it.

    Attributes:
        name: stem of the picture's file, for example ``05_position_encoding``.
        title: heading.
        text: what it is, in a line or two.
        shapes: (tensor, shape) pairs.
        pictures: file name to PNG.
    """

    name: str
    title: str
    text: str
    shapes: list[tuple[str, str]]
    pictures: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Context:
    """A recording and how to draw it.

    Attributes:
        cfg: the model's config.
        metadata: of the classes.
        recording: the stages.
        originals: per image H x W x 3 uint8 RGB, in the size of the result.
        inputs: per image the same in the size that the network gets.
        points: per image (x, y) in shares of the image, where the encoder is asked.
        width: most pixels of a picture's width.
    """

    cfg: CfgNode
    metadata: Metadata
    recording: Recording
    originals: list[np.ndarray]
    inputs: list[np.ndarray]
    points: list[list[Point]]
    width: int

    @property
    def batch(self) -> int:
        """Number of images."""
        return len(self.inputs)

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of the padded network input."""
        return tuple(self.recording.images.tensor.shape[-2:])

    @property
    def aspect(self) -> float:
        """Height of the canvas divided by its width."""
        return self.canvas[0] / self.canvas[1]

    def on_canvas(self, image: int, x: float, y: float) -> Point:
        """From shares of an image to shares of the canvas."""
        height, width = self.inputs[image].shape[:2]
        return x * width / self.canvas[1], y * height / self.canvas[0]

    def cell(self, image: int, point: Point, grid: tuple[int, int]) -> int:
        """Index of the cell of a flattened grid that covers a point of an image."""
        x, y = self.on_canvas(image, *point)
        column = min(int(x * grid[1]), grid[1] - 1)
        row = min(int(y * grid[0]), grid[0] - 1)
        return row * grid[1] + column

    def padded(self, image: int) -> np.ndarray:
        """An image on its canvas; the padding is striped."""
        height, width = self.canvas
        y, x = np.mgrid[:height, :width]
        period = max(4, max(height, width) // 50)
        stripes = np.where((x + y) // period % 2 == 0, 205, 235).astype(np.uint8)
        canvas = np.repeat(stripes[..., None], 3, axis=2)
        picture = self.inputs[image]
        canvas[: picture.shape[0], : picture.shape[1]] = picture
        return canvas

    def box(self, image: int, query: int) -> tuple[float, float, float, float]:
        """The predicted box (x0, y0, x1, y1) of a query in shares of the canvas."""
        cx, cy, w, h = self.recording.detections.pred_boxes[-1, image, query].tolist()
        low = self.on_canvas(image, max(0.0, cx - w / 2), max(0.0, cy - h / 2))
        high = self.on_canvas(image, min(1.0, cx + w / 2), min(1.0, cy + h / 2))
        return (*low, *high)

    def color(self, position: int) -> Color:
        """Colour of an image's query by its position, the same in every picture."""
        return tuple(default_color(position))

    def query_boxes(self, image: int, positions: Iterable[int]) -> list[Box]:
        """Boxes of an image's queries with their colours."""
        queries = self.recording.per_image[image].queries
        return [(self.box(image, int(queries[k])), self.color(k)) for k in positions]

    def query_titles(self, record: ImageRecord) -> list[str]:
        """For example "q12 circle 0.98" for each query of an image."""
        return [
            f"q{q} {class_name(label, self.metadata)} {score:.2f}"
            for q, label, score in zip(
                record.queries.tolist(), record.labels.tolist(), record.scores.tolist(), strict=True
            )
        ]

    def by_score(self, record: ImageRecord) -> list[int]:
        """Positions of an image's queries, best score first."""
        return record.scores.argsort(descending=True).tolist()

    def note(self, record: ImageRecord) -> str:
        """What to say where the queries shown are not kept."""
        if record.kept:
            return ""
        thresh = self.cfg.MODEL.DETR.TEST.SCORE_THRESH
        return (
            f"No query is kept (MODEL.DETR.TEST.SCORE_THRESH {thresh:g}), so the "
            f"{len(record.queries)} queries of best score are shown instead."
        )

    def file_name(self, stage: str, image: int) -> str:
        """``stage.png`` for the first image, ``stage_2.png`` for the second."""
        return f"{stage}.png" if image == 0 else f"{stage}_{image + 1}.png"

    def prefix(self, image: int) -> str:
        """ "image 2: " where there is more than one image."""
        return f"image {image + 1}: " if self.batch > 1 else ""


def shape(tensor: torch.Tensor | Any) -> str:
    """For example "2 x 128 x 6 x 8"."""
    return " x ".join(str(int(n)) for n in getattr(tensor, "shape", tensor))


def array(tensor: torch.Tensor) -> np.ndarray:
    """A float32 array on the host."""
    return tensor.detach().float().cpu().numpy()
