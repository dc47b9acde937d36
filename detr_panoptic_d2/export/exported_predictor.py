"""An exported model as a predictor of Detectron2's kind, and its evaluation."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata

from ..data.dataset_mapper import read_image
from ..errors import UserError
from ..evaluation import build_evaluator
from .runtime import PanopticModel


class ExportedPredictor:
    """An exported model, called as ``DefaultPredictor`` is: BGR in, ``panoptic_seg`` out.

    Args:
        folder: of the exported model.
        tile, overlap: see :class:`.runtime.PanopticModel`.

    Attributes:
        metadata: names and colors of the classes.

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
        """Segment an H x W x 3 uint8 image; ``category_id`` is contiguous as in Detectron2."""
        image = np.ascontiguousarray(image[:, :, ::-1])
        ids, segments = self.model(image, self._tile, self._overlap)
        segments = [{**s, "category_id": self._contiguous[s["category_id"]]} for s in segments]
        return {"panoptic_seg": (torch.from_numpy(ids), segments)}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return the image: the exported model resizes it."""
        return image

    def predict_batch(self, inputs: list[np.ndarray]) -> list[dict[str, Any]]:
        """Segment images one after the other."""
        return [self(image) for image in inputs]


def evaluate_exported(folder: str | os.PathLike, cfg: CfgNode) -> dict[str, float]:
    """Return the panoptic results of an exported model on the first set of ``DATASETS.TEST``.

    An exported model has panoptic results alone, whatever else ``cfg`` switches on.

    Raises:
        UserError: ``DATASETS.TEST`` is empty.
    """
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data set to evaluate on.")
    cfg, predictor = cfg.clone(), ExportedPredictor(folder)
    cfg.defrost()
    test = cfg.MODEL.DETR.TEST
    test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = True, False, False
    evaluator = build_evaluator(cfg, cfg.DATASETS.TEST[0])
    evaluator.reset()
    for item in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
        evaluator.process([item], [predictor(read_image(item["file_name"], "BGR"))])
    return evaluator.evaluate()["panoptic_seg"]
