"""An exported model in place of Detectron2's predictor, for our own programs."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata

from ..errors import UserError
from .runtime import PanopticModel


class ExportedPredictor:
    """Called as ``DefaultPredictor`` is: an H x W x 3 uint8 BGR image in, ``panoptic_seg`` out.

    Args:
        folder: of the exported model.

    Attributes:
        metadata: names and colours of the classes.

    Raises:
        UserError: the folder is no exported model, or its runtime is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        try:
            self.model = PanopticModel(folder)
        except (ValueError, ImportError) as error:
            raise UserError(str(error)) from error
        classes = self.model.classes
        self._contiguous = {c["id"]: i for i, c in enumerate(classes)}
        names = [c["name"] for c in classes]
        options: dict[str, Any] = {"thing_classes": names, "stuff_classes": names}
        if all(c["color"] for c in classes):
            options["thing_colors"] = options["stuff_colors"] = [c["color"] for c in classes]
        for kind, isthing in (("thing", True), ("stuff", False)):
            options[f"{kind}_dataset_id_to_contiguous_id"] = {
                c["id"]: i for i, c in enumerate(classes) if c["isthing"] == isthing
            }
        self.metadata = Metadata(name=str(folder), **options)

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Segment one image; ``category_id`` is contiguous, as everywhere in Detectron2."""
        ids, segments = self.model(np.ascontiguousarray(image[:, :, ::-1]))
        segments = [{**s, "category_id": self._contiguous[s["category_id"]]} for s in segments]
        return {"panoptic_seg": (torch.from_numpy(ids), segments)}
