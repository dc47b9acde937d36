"""From images to a folder with the figures and the page."""

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
    """A part of the way: name of its files, heading, explanation, and its figure of an image."""

    name: str
    title: str
    text: str
    draw: Callable[[figures.Look], np.ndarray]


STAGES = (
    Stage(
        "01_input",
        "Padded input",
        "The images, resized and normalised, on one canvas. Padding (grey) lies to the right and "
        "below. Its cells (yellow in the mask of res5) are not counted by the position "
        "encoding, and no attention looks at them.",
        figures.draw_input,
    ),
    Stage(
        "02_features",
        "Backbone features and position encoding",
        "What the backbone makes of the image at four resolutions, mean over the channels. Only "
        "res5 goes into the transformer, through a 1x1 convolution; res4 to res2 wait for the mask "
        "head. Sines and cosines of row and column, of which two channels are shown, tell a cell's "
        "place.",
        figures.draw_features,
    ),
    Stage(
        "03_encoder",
        "Encoder self-attention and memory",
        "Where the cell at a point (ring) looks in each layer, mean over the heads, each map with "
        "its own scale. What comes out is the memory, one vector per cell; the last map shows "
        "which cells have a vector like that of the point (purple) or unlike it (orange): cells of "
        "one object become alike.",
        figures.draw_encoder,
    ),
    Stage(
        "04_queries",
        "Decoder: queries, classes and boxes",
        "Each query comes out of the decoder as a vector; two small heads read its class (or "
        "no-object) and box from it. Only queries whose best class is an object of more than "
        "SCORE_THRESH go on. q is the query's number, then its class and score; its colour is the "
        "same in all figures.",
        figures.draw_queries,
    ),
    Stage(
        "05_attention",
        "Cross-attention and box attention",
        "One row per query. First where it looks in the memory: last decoder layer, mean over the "
        "heads, with its box. Then its box-attention maps, one per head: the softmax runs over "
        "heads and cells together, so they sum to 1 and share one scale (square root). These maps, "
        "next to the projected res5, are the mask head's input.",
        figures.draw_attention,
    ),
    Stage(
        "06_mask_head",
        "Mask head, step by step",
        "Convolutions, each with group norm and ReLU, grow the maps from the grid of res5 to that "
        "of res2; res4, res3 and res2 come in on the way. Mean over the channels after each step, "
        "each map with its own scale; then the mask logits: above 0 (purple) the query takes a "
        "pixel for its own.",
        figures.draw_mask_head,
    ),
    Stage(
        "07_panoptic",
        "Argmax and panoptic result",
        "Padding is cut off, the logits are resized to the output, and every pixel goes to the "
        "query of greatest logit. Queries of one stuff class become one segment. Segments of "
        "MIN_SEGMENT_AREA pixels and less are dropped, and those that win less than OVERLAP_THRESH "
        "of their own mask; their pixels go to the best of the rest.",
        figures.draw_result,
    ),
)


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
        images: one image or two, H x W x 3 uint8 RGB; two are padded to one canvas.
        output_dir: is made if it does not exist.
        names: what to call the images.
        points: (x, y) pixels of the images at which the encoder's attention is shown. None: the
            middles of the boxes of the three best queries.

    Returns:
        the path of the page.

    Raises:
        UserError: there are more images, or a point lies outside of one.
    """
    if not 1 <= len(images) <= 2:
        raise UserError(f"--input takes one or two images, got {len(images)}")
    for height, width in (image.shape[:2] for image in images):
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise UserError(f"--points {x},{y} lies outside of an image of {width} x {height}")
    cfg = cfg.clone()
    cfg.defrost()
    # Forward hooks do not see into compiled modules.
    cfg.MODEL.DETR.COMPILE = False
    predictor = Predictor(cfg)
    batch = [predictor.prepare(image[:, :, ::-1]) for image in images]
    recording = record(predictor.model, batch)
    looks = []
    for i, (picture, x) in enumerate(zip(images, batch, strict=True)):
        pixels = x["image"].permute(1, 2, 0).numpy()
        pixels = pixels[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else pixels
        where = _points(points, recording, i)
        looks.append(figures.Look(recording, i, picture, pixels, where, predictor.metadata))
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = []
    for stage in STAGES:
        pictures = []
        for look in looks:
            data = _png(stage.draw(look))
            number = f"_{look.index + 1}" if look.index else ""
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
    """Points in pixels of an image's network input."""
    image = recording.per_image[index]
    (height, width), (out_height, out_width) = image.frame.image, image.frame.output
    if points:
        return [((x + 0.5) * width / out_width, (y + 0.5) * height / out_height) for x, y in points]
    middles = (image.boxes[:3, :2] + image.boxes[:3, 2:]) / 2
    return [(min(x, width - 1), min(y, height - 1)) for x, y in middles.tolist()]


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
                f"{cfg.MODEL.DETR.TEST.SCORE_THRESH:g}); the {len(image.queries)} queries of best "
                "score are shown instead."
            )
            logger.warning(note)
            blocks.append({"note": note})
    return [
        *blocks,
        {"details": "Shapes of all tensors", "blocks": [{"pairs": recording.shapes()}]},
    ]


def _png(picture: np.ndarray) -> bytes:
    """With a palette of 256 colours, a third of the size."""
    buffer = io.BytesIO()
    Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG")
    return buffer.getvalue()
