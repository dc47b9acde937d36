"""mIoU against the classes of the panoptic PNGs."""

import logging
import math

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .truth import PanopticTruth

logger = logging.getLogger(__name__)


class PanopticSemanticEvaluator(DatasetEvaluator):
    """The metrics of Detectron2's ``SemSegEvaluator`` over all classes, things and stuff.

    That one wants a semantic PNG per image, which panoptic sets do not have. Void pixels do not
    count.

    Args:
        truth: the annotations.
    """

    def __init__(self, truth: PanopticTruth):
        self._truth = truth
        self._names = truth.class_names

    def reset(self) -> None:
        # Row: predicted class, column: true class.
        self._confusion = np.zeros((len(self._names), len(self._names)), dtype=np.int64)

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
                raise ValueError(
                    f"{image['file_name']} is {predicted.shape} (height, width), but its "
                    f"annotation is {true.shape}."
                )
            counted = true >= 0
            pairs = predicted[counted] * size + true[counted]
            self._confusion += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"sem_seg": {"mIoU": ..., "IoU-<class>": ...}}``, percent, on rank 0."""
        gathered = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        confusion = np.sum(gathered, axis=0)
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
