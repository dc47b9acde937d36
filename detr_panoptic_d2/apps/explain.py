"""Show how images become panoptic maps, with three figures per image and one HTML page."""

import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata
from PIL import Image

from ..data.colors import choose_colors
from ..data.dataset_mapper import read_image
from ..files import atomic_file, check_not_overwritten
from ..visualization.draw import draw_panoptic
from ..visualization.panels import enlarge, side_by_side, with_caption
from ..visualization.visualizer import PanopticVisualizer, class_name
from .page import Block, Section, data_uri, write_page
from .queries import QueryRecord, build_predictor, record_queries

logger = logging.getLogger(__name__)

# Pixels: approximate smallest shorter side of pictures with labels, and width of each map.
_SIDE, _MAP_WIDTH = 400, 160
_FIGURES = {
    "queries": "Classes, scores and boxes of the queries that are kept, best first.",
    "maps": "One row per query: where it looks in the last decoder layer (cross-attention), its "
    "box-attention maps, which the mask head turns into a mask, and the mask logits. Purple logits "
    "are inside of the mask. Attention is drawn by its square root.",
    "panoptic": "The panoptic result.",
}


def explain(cfg: CfgNode, paths: Sequence[Path], output_dir: Path) -> Path:
    """Write ``index.html`` and figures such as ``1_queries.png``, numbered by the image.

    Args:
        cfg: a config with ``MODEL.WEIGHTS``.
        paths: image files.
        output_dir: it is made if it does not exist.

    Returns:
        Path: the page.

    Raises:
        UserError: a figure would overwrite an input, or there is no mask head.
    """
    page = output_dir / "index.html"
    numbers = range(1, len(paths) + 1)
    check_not_overwritten(
        paths, [output_dir / f"{i}_{name}.png" for i in numbers for name in _FIGURES]
    )
    images = [read_image(path, "RGB") for path in paths]
    predictor = build_predictor(cfg)
    rule, metadata = predictor.model.panoptic_inference, predictor.metadata
    threshold = cfg.MODEL.DETR.TEST.SCORE_THRESH
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, path, image in zip(numbers, paths, images, strict=True):
        record = record_queries(predictor, image, rule)
        blocks: list[Block] = []
        if not rule.keep(record.pred_logits).any():
            note = (
                f"{path.name}: no query is kept (MODEL.DETR.TEST.SCORE_THRESH {threshold:g}). The "
                f"{len(record.queries)} queries with the best scores are shown instead."
            )
            logger.warning(note)
            blocks.append({"note": note})
        for name, picture in zip(_FIGURES, draw_figures(record, metadata, rule), strict=True):
            buffer = io.BytesIO()
            # A palette makes the file three times smaller.
            Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG")
            with atomic_file(output_dir / f"{number}_{name}.png", "wb") as file:
                file.write(buffer.getvalue())
            blocks.append({"text": _FIGURES[name]})
            pictures = [("", data_uri(buffer.getvalue(), "png"))]
            blocks.append({"pictures": pictures, "alt": _FIGURES[name], "class": "sheet"})
        sections.append(Section(f"image{number}", path.name, blocks))
    top: list[Block] = [{"text": f"Weights: {cfg.MODEL.WEIGHTS}"}]
    write_page(page, "From image to panoptic result", "explained", top, sections)
    return page


def draw_figures(record: QueryRecord, metadata: Metadata, rule) -> Iterable[np.ndarray]:
    """Draw the boxes of the queries, their maps, and the panoptic result."""
    order = record.scores.argsort(descending=True).tolist()
    titles = [
        f"q{record.queries[k]} {class_name(int(record.labels[k]), metadata)} {record.scores[k]:.2f}"
        for k in order
    ]
    picture = enlarge(record.image, _SIDE)
    factor = picture.shape[0] // record.image.shape[0]
    visualizer = PanopticVisualizer(picture, metadata)
    colors = np.array(choose_colors([True] * len(order))) / 255
    for k, title, color in zip(order, titles, colors, strict=True):
        box = record.boxes[k].numpy() * factor
        visualizer.draw_box(box, alpha=1, edge_color=color)
        visualizer.draw_text(title, ((box[0] + box[2]) / 2, box[1]), color=color)
    yield visualizer.get_picture()
    rows = []
    for k, title in zip(order, titles, strict=True):
        maps = record.draw_maps(k, _MAP_WIDTH)
        row = side_by_side([with_caption(pixels, name) for name, pixels in maps.items()])
        rows.append(with_caption(row, title))
    yield np.concatenate(rows)
    yield draw_panoptic(record.image, *record.segment(rule), metadata, min_size=_SIDE, legend=True)
