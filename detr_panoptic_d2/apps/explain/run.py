"""Write the figures and the page for one or two images."""

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from ..._version import __version__
from ...engine import Predictor
from ...errors import UserError
from ...files import atomic_file
from ..page import Block, Section, data_uri, write_page
from . import figures
from .record import Recording, record

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A stage of the model: name of its files, heading, explanation, and its figure of an image."""

    name: str
    title: str
    text: str
    draw: Callable[[figures.ImageView], np.ndarray]


STAGES = (
    Stage(
        "01_input",
        "Padded input",
        "The resized and normalized images on one canvas, with padding (grey) at the right and at "
        "the bottom. The position encoding does not count its cells (yellow in the mask of res5), "
        "and all attention ignores them.",
        figures.draw_input,
    ),
    Stage(
        "02_features",
        "Backbone features and position encoding",
        "The output of the backbone at four resolutions, mean over the channels. Only res5 is the "
        "input of the transformer, through a 1x1 convolution. The mask head uses res4 to res2. The "
        "position encoding consists of sines and cosines of row and column; two of its channels "
        "are shown.",
        figures.draw_features,
    ),
    Stage(
        "03_encoder",
        "Encoder self-attention and memory",
        "The attention of the cell at a point (ring) in each layer, mean over the heads. Each map "
        "has its own scale. The output is the memory, one vector per cell. The last map shows "
        "which cells have a vector similar (purple) or opposite (orange) to that of the point: "
        "cells of one object become similar.",
        figures.draw_encoder,
    ),
    Stage(
        "04_queries",
        "Decoder: queries, classes and boxes",
        "The decoder returns one vector per query. Two small heads predict its class (or "
        "no-object) and box. Queries are kept if their best class is not no-object and has a score "
        "above SCORE_THRESH. Labels are the number of the query, class and score. A query has the "
        "same color in all figures.",
        figures.draw_queries,
    ),
    Stage(
        "05_attention",
        "Cross-attention and box attention",
        "One row per query. First its cross-attention in the last decoder layer, mean over the "
        "heads, with its box. Then its box-attention maps, one per head: the softmax runs over "
        "heads and cells together, so they sum to 1 and share one scale (square root). These maps "
        "and the projected res5 are the input of the mask head.",
        figures.draw_attention,
    ),
    Stage(
        "06_mask_head",
        "Mask head, step by step",
        "Convolutions, each with group norm and ReLU, enlarge the maps from the size of res5 to "
        "that of res2, and res4, res3 and res2 are added. Shown is the mean over the channels "
        "after each step, each map with its own scale, then the mask logits. Pixels with a logit "
        "above 0 (purple) belong to the mask.",
        figures.draw_mask_head,
    ),
    Stage(
        "07_panoptic",
        "Argmax and panoptic result",
        "Padding is removed, the logits are resized to the output, and each pixel is assigned to "
        "the query with the largest logit. Queries of one stuff class become one segment. Segments "
        "of at most MIN_SEGMENT_AREA pixels are dropped. So are those that are assigned less than "
        "OVERLAP_THRESH of their own mask. Their pixels are assigned to the remaining queries.",
        figures.draw_result,
    ),
)


def output_files(output_dir: Path, num_images: int) -> list[Path]:
    """Return the files that :func:`explain` writes."""
    numbers = ["", "_2"][:num_images]
    figure_names = [f"{stage.name}{number}.png" for stage in STAGES for number in numbers]
    return [output_dir / name for name in (*figure_names, "index.html")]


def explain(
    cfg: CfgNode,
    images: Sequence[np.ndarray],
    output_dir: Path,
    *,
    names: Sequence[str] = (),
    points: Sequence[tuple[int, int]] = (),
) -> Path:
    """Write ``index.html`` and the figures of each image.

    Figures are named after their stage: ``01_input.png`` to ``07_panoptic.png``, and
    ``01_input_2.png`` for the second image.

    Args:
        cfg: a frozen config with ``MODEL.WEIGHTS``.
        images: one or two images, H x W x 3 uint8 RGB. Two are padded to one canvas.
        output_dir: it is made if it does not exist.
        names: names of the images on the page.
        points: (x, y) in pixels of the images, at which the encoder attention is shown. Default:
            the centers of the boxes of the three best queries.

    Returns:
        Path: the page.

    Raises:
        UserError: there are more than two images, or a point lies outside of an image.
    """
    if not 1 <= len(images) <= 2:
        raise UserError(f"--input takes one or two images, got {len(images)}")
    for height, width in (image.shape[:2] for image in images):
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(f"--points {x},{y} lies outside of an image of {width} x {height}")
    cfg = cfg.clone()
    cfg.defrost()
    # Forward hooks do not run in compiled modules.
    cfg.MODEL.DETR.COMPILE = False
    predictor = Predictor(cfg)
    batch = [predictor.prepare(image[:, :, ::-1]) for image in images]
    recording = record(predictor.model, batch)
    views = []
    for i, (picture, x) in enumerate(zip(images, batch, strict=True)):
        pixels = x["image"].permute(1, 2, 0).numpy()
        pixels = pixels[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else pixels
        where = _points(points, recording, i)
        views.append(figures.ImageView(recording, i, picture, pixels, where, predictor.metadata))
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = []
    for stage in STAGES:
        pictures = []
        for view in views:
            data = _png(stage.draw(view))
            number = f"_{view.index + 1}" if view.index else ""
            with atomic_file(output_dir / f"{stage.name}{number}.png", "wb") as f:
                f.write(data)
            pictures.append(("", data_uri(data, "png")))
        blocks: list[Block] = [{"text": stage.text}]
        blocks.append({"pictures": pictures, "alt": stage.title, "class": "sheet"})
        sections.append(Section(stage.name, stage.title, blocks))
    page = output_dir / "index.html"
    top = _top(cfg, recording, names)
    write_page(page, "From image to panoptic result", "explained", top, sections)
    return page


def _points(
    points: Sequence[tuple[int, int]], recording: Recording, index: int
) -> list[tuple[float, float]]:
    """Return points in pixels of the network input of an image."""
    image = recording.per_image[index]
    (height, width), (out_height, out_width) = image.frame.image, image.frame.output
    if points:
        return [((x + 0.5) * width / out_width, (y + 0.5) * height / out_height) for x, y in points]
    centers = (image.boxes[:3, :2] + image.boxes[:3, 2:]) / 2
    return [(min(x, width - 1), min(y, height - 1)) for x, y in centers.tolist()]


def _top(cfg: CfgNode, recording: Recording, names: Sequence[str]) -> list[Block]:
    facts = [(f"image {i + 1}", name) for i, name in enumerate(names)]
    facts += [
        ("weights", cfg.MODEL.WEIGHTS),
        ("made by", f"detr_panoptic_d2 {__version__}, torch {torch.__version__}"),
    ]
    blocks: list[Block] = [{"pairs": facts}]
    for i, image in enumerate(recording.per_image):
        if not image.kept:
            note = (
                f"Image {i + 1}: no query is kept (MODEL.DETR.TEST.SCORE_THRESH "
                f"{cfg.MODEL.DETR.TEST.SCORE_THRESH:g}). The {len(image.queries)} queries with the "
                "best scores are shown instead."
            )
            logger.warning(note)
            blocks.append({"note": note})
    return blocks


def _png(picture: np.ndarray) -> bytes:
    """Encode a picture with a palette of 256 colors, in a third of the usual size."""
    buffer = io.BytesIO()
    Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG")
    return buffer.getvalue()
