"""Choose the evaluators of a data set."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)

from ..data.metadata import thing_class_ids
from ..errors import UserError
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .semantic import PanopticSemanticEvaluator

logger = logging.getLogger(__name__)


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """Build what the data set's ``evaluator_type`` and the model's outputs allow.

    Panoptic sets: PQ with ``MODEL.DETR.TEST.PANOPTIC_ON``, AP of the things with ``INSTANCE_ON``,
    mIoU with ``SEMANTIC_ON``. Instance sets ("coco"): AP. Semantic sets ("sem_seg"): mIoU.

    Args:
        cfg: the config.
        dataset_name: a registered data set.
        output_dir: default ``OUTPUT_DIR/inference/<dataset_name>``.

    Raises:
        UserError: the type is not known, or the model's outputs do not fit it.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind == "coco":
        _require(cfg.MODEL.DETR.TEST.INSTANCE_ON, "INSTANCE_ON", dataset_name, kind)
        return COCOEvaluator(dataset_name, output_dir=output_dir)
    if kind == "sem_seg":
        _require(cfg.MODEL.DETR.TEST.SEMANTIC_ON, "SEMANTIC_ON", dataset_name, kind)
        return SemSegEvaluator(dataset_name, output_dir=output_dir)
    if metadata.get("panoptic_json") is None:
        raise UserError(
            f"Data set '{dataset_name}' has evaluator_type '{kind}' and no panoptic_json in its "
            "metadata. Known are panoptic sets, 'coco' and 'sem_seg'."
        )
    evaluators: list[DatasetEvaluator] = []
    if cfg.MODEL.DETR.TEST.PANOPTIC_ON and cfg.MODEL.MASK_ON:
        evaluators.append(PanopticEvaluator(dataset_name, output_dir))
    if cfg.MODEL.DETR.TEST.INSTANCE_ON:
        if thing_class_ids(metadata):
            evaluators.append(PanopticInstanceEvaluator(dataset_name, output_dir))
        else:
            logger.info("No AP for '%s': it has no things.", dataset_name)
    if cfg.MODEL.DETR.TEST.SEMANTIC_ON and cfg.MODEL.MASK_ON:
        evaluators.append(PanopticSemanticEvaluator(dataset_name, output_dir))
    if not evaluators:
        logger.warning(
            "Nothing is evaluated on '%s': of MODEL.DETR.TEST.PANOPTIC_ON, SEMANTIC_ON (both need "
            "MODEL.MASK_ON) and INSTANCE_ON none is on.",
            dataset_name,
        )
    return DatasetEvaluators(evaluators)


def _require(is_on: bool, key: str, dataset_name: str, kind: str) -> None:
    if not is_on:
        raise UserError(
            f"Data set '{dataset_name}' is of type '{kind}', so it can be evaluated only with "
            f"MODEL.DETR.TEST.{key} True."
        )
