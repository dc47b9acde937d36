"""Ground truth of panoptic datasets in the forms that Detectron2's evaluators read."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..errors import UserError


@contextlib.contextmanager
def temporary_dataset(loader: Callable[[], list[dict]], **metadata: Any) -> Iterator[str]:
    """Register a dataset under a unique name within the context, for evaluators that read
    Detectron2's catalogs."""
    name = f"detr_panoptic_d2_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, loader)
    MetadataCatalog.get(name).set(**metadata)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def check_prediction_size(image: dict, size: tuple[int, int], png: str) -> None:
    """Raise a ``UserError`` if a prediction (height, width) has another size than the PNG."""
    with PathManager.open(png, "rb") as file, Image.open(file) as opened:
        width, height = opened.size
    if tuple(size) != (height, width):
        raise UserError(
            f"{image['file_name']} is {size[0]} x {size[1]} (height x width), but its annotation "
            f"{png} is {height} x {width}."
        )
