"""From image files to a folder with the pictures of every stage and the page."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from ..._version import __version__
from ...checkpoint import atomic_file
from ...data.dataset_mapper import read_image
from ...engine import Predictor
from ...errors import UserError
from ..page import Block, Section, data_uri, write_page
from .context import Context, Point, Stage
from .image_stages import image_stages
from .query_stages import query_stages
from .recorder import Recording, record

logger = logging.getLogger(__name__)

_MOST_IMAGES = 2
_LEAST_WIDTH = 400


def parse_point(text: str) -> tuple[int, int]:
    """Read "x,y" in pixels.

    Raises:
        UserError: it is not two integers of 0 or more.
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(p.strip().isdecimal() for p in parts):
        raise UserError(f"--points {text}: expected x,y in pixels of the image, such as 120,80")
    return int(parts[0]), int(parts[1])


def load_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Read one image, or two for a batch.

    Raises:
        UserError: there are more.
        OSError: one cannot be read.
    """
    if not 1 <= len(paths) <= _MOST_IMAGES:
        raise UserError(f"--input takes one or two images, got {len(paths)}")
    return [read_image(path, "RGB") for path in paths]


def explain(
    cfg: CfgNode,
    images: Sequence[np.ndarray],
    output_dir: Path,
    *,
    names: Sequence[str] = (),
    points: Sequence[tuple[int, int]] = (),
    width: int = 1000,
) -> Path:
    """Write ``index.html`` and one PNG per stage.

    The files are named after the stages (``01_input.png`` to ``15_panoptic.png``); stages with a
    picture per image end in ``_2`` for the second image.

    Args:
        cfg: a frozen config with ``MODEL.WEIGHTS``.
        images: one image or two, H x W x 3 uint8 RGB; two are padded to one canvas.
        output_dir: is made if it does not exist.
        names: what to call the images.
        points: (x, y) pixels of the images at which the encoder's attention is shown. None: the
            middles of the boxes of the three best queries.
        width: most pixels of a picture's width.

    Returns:
        the path of the page.

    Raises:
        UserError: a point lies outside of an image, or ``width`` is too small.
    """
    if width < _LEAST_WIDTH:
        raise UserError(f"--max-width must be at least {_LEAST_WIDTH} pixels, got {width}")
    for image in images:
        _check_points(points, image)
    predictor = Predictor(recordable(cfg))
    batch = [predictor.prepare(image[:, :, ::-1]) for image in images]
    recording = record(predictor.model, batch)
    context = Context(
        cfg=cfg,
        metadata=predictor.metadata,
        recording=recording,
        originals=list(images),
        inputs=[to_picture(x["image"], cfg.INPUT.FORMAT) for x in batch],
        points=[_points(points, recording, i, image) for i, image in enumerate(images)],
        width=width,
    )
    stages = [*image_stages(context), *query_stages(context)]
    output_dir.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        for name, data in stage.pictures.items():
            with atomic_file(output_dir / name, "wb") as f:
                f.write(data)
    page = output_dir / "index.html"
    sections = [_section(stage) for stage in stages]
    write_page(
        page, "From image to panoptic result", "explained", _top(context, names, stages), sections
    )
    for i, one in enumerate(recording.per_image):
        logger.info("Image %d: %d segments.", i + 1, len(one.panoptic[1]))
        if context.note(one):
            logger.warning("Image %d: %s", i + 1, context.note(one))
    return page


def recordable(cfg: CfgNode) -> CfgNode:
    """A copy of a config whose model can be recorded: hooks do not see into compiled modules."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.COMPILE = False
    return cfg


def _top(context: Context, names: Sequence[str], stages: list[Stage]) -> list[Block]:
    detr = context.cfg.MODEL.DETR
    queries = context.recording.detections.pred_logits.shape[2]
    facts = [
        *((f"image {i + 1}", name) for i, name in enumerate(names)),
        ("weights", context.cfg.MODEL.WEIGHTS),
        (
            "letters",
            f"B = {context.batch} images, N = {queries} queries, M = {detr.NHEADS} heads, "
            f"C = {detr.HIDDEN_DIM} channels, "
            f"P = {len(context.recording.mask_logits)} (image, query) pairs with a mask",
        ),
        ("made by", f"detr_panoptic_d2 {__version__}, torch {torch.__version__}"),
    ]
    notes = [
        {"note": f"{context.prefix(i)}{note}"}
        for i, one in enumerate(context.recording.per_image)
        if (note := context.note(one))
    ]
    contents = [(stage.name, stage.title, _shapes(stage)) for stage in stages]
    return [{"pairs": facts}, *notes, {"heading": "Stages and shapes"}, {"contents": contents}]


def _section(stage: Stage) -> Section:
    number = stage.name.split("_")[0].lstrip("0")
    pictures = [("", data_uri(data, "png")) for data in stage.pictures.values()]
    return Section(
        stage.name,
        f"{number}. {stage.title}",
        [
            {"text": stage.text},
            {"text": _shapes(stage), "class": "lines quiet"},
            {"pictures": pictures, "alt": stage.title, "class": "sheet"},
        ],
    )


def _shapes(stage: Stage) -> str:
    return "\n".join(f"{name}: {size}" for name, size in stage.shapes)


def _check_points(points: Sequence[tuple[int, int]], image: np.ndarray) -> None:
    height, width = image.shape[:2]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--points {x},{y} lies outside of an image of {width} x {height}")


def _points(
    points: Sequence[tuple[int, int]], recording: Recording, i: int, image: np.ndarray
) -> list[Point]:
    """Points of an image in shares of its width and height."""
    if points:
        height, width = image.shape[:2]
        return [((x + 0.5) / width, (y + 0.5) / height) for x, y in points]
    one = recording.per_image[i]
    best = one.queries[one.scores.argsort(descending=True)[:3]]
    boxes = recording.detections.pred_boxes[-1, i].cpu()[best]
    return [(x, y) for x, y in boxes[:, :2].clamp(0, 0.999).tolist()]


def to_picture(tensor: torch.Tensor, image_format: str) -> np.ndarray:
    """A model's input, 3 x H x W in ``INPUT.FORMAT``, as H x W x 3 uint8 RGB."""
    picture = tensor.permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(picture[..., ::-1] if image_format == "BGR" else picture)
