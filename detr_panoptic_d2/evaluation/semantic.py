"""mIoU against the classes of the panoptic PNGs."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..errors import UserError
from .records import ImageRecords
from .truth import PanopticTruth

logger = logging.getLogger(__name__)


class PanopticSemanticEvaluator(DatasetEvaluator):
    """The metrics of Detectron2's ``SemSegEvaluator`` over all classes, things and stuff.

    That one wants a semantic PNG per image, which panoptic sets do not have. Void pixels do not
    count.

    Args:
        truth: the annotations.
        output_dir: where the counts of each image are kept until the end.
        key: of what is predicted, see :class:`ImageRecords`.
    """

    def __init__(self, truth: PanopticTruth, output_dir: str, key: str | None = None):
        self._truth = truth
        self._names = truth.class_names
        self.records = ImageRecords(Path(output_dir), "semantic", key)

    def reset(self) -> None:
        self.records.open()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count pixels.

        Args:
            inputs: with ``image_id``.
            outputs: with ``sem_seg``: C x H x W scores.
        """
        size = len(self._names)
        for image, output in zip(inputs, outputs, strict=True):
            predicted = output["sem_seg"].argmax(0).cpu().numpy()
            true = self._truth.classes(image["image_id"])
            if predicted.shape != true.shape:
                raise UserError(
                    f"{image['file_name']} is {predicted.shape} (height, width), but its "
                    f"annotation is {true.shape}."
                )
            counted = true >= 0
            pairs, pixels = np.unique(predicted[counted] * size + true[counted], return_counts=True)
            self.records.write(image["image_id"], [pairs.tolist(), pixels.tolist()])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"sem_seg": {"mIoU": ..., "IoU-<class>": ...}}``, percent, on rank 0."""
        records = self.records.gather()
        results = self._summarize(records) if comm.is_main_process() else None
        self.records.remove()
        return results

    def _summarize(self, records: Iterable[tuple[Any, list]]) -> dict[str, dict[str, float]]:
        # Row: predicted class, column: true class.
        size = len(self._names)
        confusion = np.zeros(size * size, dtype=np.int64)
        for _, (pairs, pixels) in records:
            confusion[pairs] += pixels
        confusion = confusion.reshape(size, size)
        hit, true, predicted = confusion.diagonal(), confusion.sum(0), confusion.sum(1)
        # Classes without a true pixel have no result, as in Detectron2.
        occurs = true > 0
        with np.errstate(invalid="ignore"):
            iou = np.where(occurs, 100 * hit / (true + predicted - hit), math.nan)
            accuracy = np.where(occurs, 100 * hit / true, math.nan)
        results = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), math.nan)
        if occurs.any():
            results = {
                "mIoU": float(iou[occurs].mean()),
                "fwIoU": float((iou[occurs] * true[occurs]).sum() / true.sum()),
                "mACC": float(accuracy[occurs].mean()),
                "pACC": float(100 * hit.sum() / true.sum()),
            }
        else:
            logger.warning("mIoU is NaN: the annotations have no labelled pixel.")
        results.update({f"IoU-{n}": float(v) for n, v in zip(self._names, iou, strict=True)})
        results.update({f"ACC-{n}": float(v) for n, v in zip(self._names, accuracy, strict=True)})
        logger.info("Semantic: %s", {k: round(v, 3) for k, v in results.items() if "-" not in k})
        return {"sem_seg": results}
