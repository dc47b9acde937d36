"""Pictures of chosen images of an evaluation, and those that a training left."""

import io
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.metadata import dataset_ids, thing_class_ids
from ...data.panoptic_png import read_panoptic_png
from ...errors import UserError
from ...visualization.draw import (
    draw_errors,
    draw_panoptic,
    limit_size,
    read_ground_truth,
)
from ...visualization.panels import enlarge
from ..page import Block, data_uri
from .quality import Evaluation, ImageQuality

# Sides of the pictures in pixels: longer one at most, shorter one at least about.
_MAX_SIZE, _MIN_SIZE = 720, 320


def draw_examples(evaluation: Evaluation, chosen: list[ImageQuality]) -> list[Block]:
    """Draw images of an evaluation: a heading and four pictures each.

    Args:
        evaluation: the evaluation.
        chosen: images of it.

    Raises:
        UserError: the data set is not registered, or has no such annotation.
        OSError, ValueError: a file is missing, broken, or of another size.
    """
    if evaluation.dataset not in DatasetCatalog.list():
        raise UserError(f"The data set '{evaluation.dataset}' is not registered here.")
    metadata = MetadataCatalog.get(evaluation.dataset)
    contiguous = {d: c for c, d in enumerate(dataset_ids(metadata))}
    things = set(thing_class_ids(metadata))
    items = {item["image_id"]: item for item in DatasetCatalog.get(evaluation.dataset)}
    numbers_are_of = (evaluation.folder / "per_image.json").stat().st_mtime
    blocks: list[Block] = []
    for q in chosen:
        item, annotation = items[q.image_id], evaluation.annotations[q.image_id]
        ground_truth = read_ground_truth(item)
        if ground_truth is None:
            raise UserError(f"{item['file_name']} has no pan_seg_file_name in the data set.")
        png = evaluation.folder / "panoptic" / annotation["file_name"]
        if png.stat().st_mtime > numbers_are_of:
            raise UserError(
                "An evaluation is under way, or was broken off: its predictions replace those that "
                "belong to the table above."
            )
        ids = read_panoptic_png(png)
        segments = [
            {"id": s["id"], "category_id": c, "isthing": c in things}
            for s in annotation["segments_info"]
            for c in [contiguous[s["category_id"]]]
        ]
        image, ground_truth, prediction = limit_size(
            _MAX_SIZE, read_image(item["file_name"], "RGB"), ground_truth, (ids, segments)
        )
        size = {"min_size": _MIN_SIZE}
        pictures = {
            "Image": enlarge(image, _MIN_SIZE),
            "Ground truth": draw_panoptic(image, *ground_truth, metadata, **size),
            "Prediction": draw_panoptic(image, *prediction, metadata, **size),
            "Errors": draw_errors(image, ground_truth, prediction, metadata, legend=False, **size),
        }
        numbers = f"PQ {q.pq:.1f}; {q.tp} segments matched, {q.fn} missed, {q.fp} wrong"
        blocks.append({"heading": Path(item["file_name"]).name, "quiet": numbers})
        encoded = [(caption, data_uri(_jpeg(p), "jpeg")) for caption, p in pictures.items()]
        blocks.append({"pictures": encoded, "class": "row"})
    return blocks


def training_pictures(output_dir: Path) -> list[Block]:
    """Return the first and the last picture of each image that the training's hook drew."""
    pictures = []
    for folder in sorted(p for p in output_dir.glob("pictures/*") if p.is_dir()):
        files = sorted(folder.glob("iter_*.jpg"))
        for path in dict.fromkeys(files[:1] + files[-1:]):
            name = folder.name.partition("_")[2]
            done = int(path.stem.removeprefix("iter_")) + 1
            address = data_uri(path.read_bytes(), "jpeg")
            pictures.append((f"{name}, after {done} iterations", address))
    return [{"pictures": pictures, "class": "wide"}] if pictures else []


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()
