"""An exported model as a predictor for Detectron2, and its evaluation."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata

from ..data.dataset_mapper import read_image
from ..errors import UserError
from ..evaluation import PanopticEvaluator
from .runtime import PanopticModel


class ExportedPredictor:
    """An exported model with the interface of :class:`detr_panoptic_d2.engine.Predictor`.

    Args:
        folder: of the exported model.
        tile, overlap: see :class:`.runtime.PanopticModel`.

    Raises:
        UserError: the folder is not an exported model, or its runtime is not installed.
    """

    def __init__(self, folder: str | os.PathLike, tile: int | None = None, overlap: float = 0.2):
        try:
            self.model = PanopticModel(folder)
        except (ValueError, ImportError) as error:
            raise UserError(str(error)) from error
        self._tile, self._overlap = tile, overlap
        classes = self.model.classes
        self._contiguous = {c["id"]: i for i, c in enumerate(classes)}
        options: dict[str, Any] = {}
        for kind, isthing in (("thing", True), ("stuff", False)):
            options[f"{kind}_classes"] = [c["name"] for c in classes]
            if all(c["color"] for c in classes):
                options[f"{kind}_colors"] = [c["color"] for c in classes]
            ids = {c["id"]: self._contiguous[c["id"]] for c in classes if c["isthing"] == isthing}
            options[f"{kind}_dataset_id_to_contiguous_id"] = ids
        self.metadata = Metadata(name=str(folder), **options)

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """Segment an H x W x 3 uint8 image; ``category_id`` is contiguous as in Detectron2."""
        image = np.ascontiguousarray(image[:, :, ::-1])
        ids, segments = self.model(image, self._tile, self._overlap)
        segments = [{**s, "category_id": self._contiguous[s["category_id"]]} for s in segments]
        return {"panoptic_seg": (torch.from_numpy(ids), segments)}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the input of :meth:`predict_batch`."""
        return image

    def predict_batch(self, inputs: list[np.ndarray]) -> list[dict[str, Any]]:
        """Segment images one after the other."""
        return [self(image) for image in inputs]


def evaluate_exported(folder: str | os.PathLike, cfg: CfgNode) -> dict[str, float]:
    """Return the panoptic results of an exported model on the first set of ``DATASETS.TEST``.

    Raises:
        UserError: ``DATASETS.TEST`` is empty.
    """
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the dataset to evaluate on.")
    name, predictor = cfg.DATASETS.TEST[0], ExportedPredictor(folder)
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    for item in DatasetCatalog.get(name):
        evaluator.process([item], [predictor(read_image(item["file_name"], "BGR"))])
    return evaluator.evaluate()["panoptic_seg"]
