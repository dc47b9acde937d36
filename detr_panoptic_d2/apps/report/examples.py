"""Pictures of chosen images of an evaluation, and those that a training left."""

import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from PIL import Image

from ...data.dataset_mapper import read_image
from ...data.masks import panoptic_png_to_ids
from ...data.metadata import dataset_ids, thing_class_ids
from ...data.register import register_from_config
from ...errors import UserError
from ...visualization.draw import (
    Panoptic,
    draw_errors,
    draw_panoptic,
    limit_size,
    read_ground_truth,
)
from ...visualization.panels import enlarge
from .quality import Evaluation, ImageQuality

logger = logging.getLogger(__name__)

# Sides of the pictures in pixels: longer one at most, shorter one at least about.
_MAX_SIZE, _MIN_SIZE = 720, 320


class Example(NamedTuple):
    """One image.

    Attributes:
        name: of the file.
        quality: of the prediction.
        pictures: (caption, JPEG) of the image, its truth, the prediction and the errors.
    """

    name: str
    quality: ImageQuality
    pictures: list[tuple[str, bytes]]


def register_data_sets(config: dict[str, Any]) -> None:
    """Register the sets that a run's config brings along.

    Raises:
        FileNotFoundError, ValueError: see :func:`.data.register.register_panoptic`.
    """
    items = config.get("DATASETS", {}).get("REGISTER") or []
    register_from_config(CfgNode({"DATASETS": {"REGISTER": items}}))


def draw_examples(evaluation: Evaluation, chosen: list[ImageQuality]) -> list[Example]:
    """Draw images of an evaluation.

    Args:
        evaluation: the evaluation.
        chosen: images of it.

    Raises:
        UserError: the data set is not registered, or has no such image.
        FileNotFoundError, OSError, ValueError: a file is missing, broken, or of another size.
    """
    if evaluation.dataset not in DatasetCatalog.list():
        raise UserError(f"The data set '{evaluation.dataset}' is not registered here.")
    metadata = MetadataCatalog.get(evaluation.dataset)
    items = {item["image_id"]: item for item in DatasetCatalog.get(evaluation.dataset)}
    examples = []
    for entry in chosen:
        item = items[entry.image_id]
        truth = read_ground_truth(item)
        if truth is None:
            raise UserError(f"{item['file_name']} has no pan_seg_file_name in the data set.")
        image, truth, prediction = limit_size(
            _MAX_SIZE,
            read_image(item["file_name"], "RGB"),
            truth,
            _prediction(evaluation, entry.image_id, metadata),
        )
        pictures = {
            "Image": enlarge(image, _MIN_SIZE),
            "Truth": draw_panoptic(image, *truth, metadata, min_size=_MIN_SIZE),
            "Prediction": draw_panoptic(image, *prediction, metadata, min_size=_MIN_SIZE),
            "Errors": draw_errors(
                image, truth, prediction, metadata, legend=False, min_size=_MIN_SIZE
            ),
        }
        encoded = [(caption, _jpeg(picture)) for caption, picture in pictures.items()]
        examples.append(Example(Path(item["file_name"]).name, entry, encoded))
    return examples


def training_pictures(output_dir: Path) -> list[tuple[str, bytes]]:
    """Return the first and the last picture of each image that the training's hook drew.

    Returns:
        list: (caption, JPEG).
    """
    pictures = []
    for folder in sorted(p for p in output_dir.glob("pictures/*") if p.is_dir()):
        files = sorted(folder.glob("iter_*.jpg"))
        for path in dict.fromkeys(files[:1] + files[-1:]):
            name = folder.name.partition("_")[2]
            done = int(path.stem.removeprefix("iter_")) + 1
            pictures.append((f"{name}, after {done} iterations", path.read_bytes()))
    return pictures


def _prediction(evaluation: Evaluation, image_id: int | str, metadata: Metadata) -> Panoptic:
    annotation = evaluation.annotations[image_id]
    contiguous = {d: c for c, d in enumerate(dataset_ids(metadata))}
    things = set(thing_class_ids(metadata))
    classes = [contiguous[s["category_id"]] for s in annotation["segments_info"]]
    segments = [
        {"id": s["id"], "category_id": c, "isthing": c in things}
        for s, c in zip(annotation["segments_info"], classes, strict=True)
    ]
    path = evaluation.folder / "panoptic" / annotation["file_name"]
    return panoptic_png_to_ids(path), segments


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85, subsampling=0, optimize=True)
    return buffer.getvalue()
