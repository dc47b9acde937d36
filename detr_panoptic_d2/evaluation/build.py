"""Choose the evaluators of a dataset."""

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
from ..errors import UserError, check_value
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .semantic import PanopticSemanticEvaluator

# By evaluator_type: the evaluator, and the config key of the output that it needs.
_OTHER_SETS = {"coco": (COCOEvaluator, "INSTANCE_ON"), "sem_seg": (SemSegEvaluator, "SEMANTIC_ON")}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """Build the evaluators for the ``evaluator_type`` of the dataset and the model's outputs.

    Panoptic datasets: PQ with ``MODEL.DETR.TEST.PANOPTIC_ON``, AP of the things with
    ``INSTANCE_ON``, mIoU with ``SEMANTIC_ON``. Instance datasets ("coco"): AP. Semantic datasets
    ("sem_seg"): mIoU. ``output_dir`` is by default ``OUTPUT_DIR/inference/<dataset_name>``.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    metadata, test = MetadataCatalog.get(dataset_name), cfg.MODEL.DETR.TEST
    kind = metadata.get("evaluator_type")
    if kind in _OTHER_SETS:
        evaluator, key = _OTHER_SETS[kind]
        allowed = f"True to evaluate on '{dataset_name}', which is of type '{kind}'"
        check_value(f"MODEL.DETR.TEST.{key}", test[key], test[key], allowed)
        return evaluator(dataset_name, output_dir=output_dir)
    if metadata.get("panoptic_json") is None:
        raise UserError(
            f"Dataset '{dataset_name}' has evaluator_type '{kind}' and no panoptic_json in its "
            "metadata. Panoptic datasets, 'coco' and 'sem_seg' are supported."
        )
    evaluators: list[DatasetEvaluator] = []
    if test.PANOPTIC_ON and cfg.MODEL.MASK_ON:
        evaluators.append(PanopticEvaluator(dataset_name, output_dir))
    if test.INSTANCE_ON and thing_class_ids(metadata):
        evaluators.append(PanopticInstanceEvaluator(dataset_name, output_dir))
    if test.SEMANTIC_ON and cfg.MODEL.MASK_ON:
        evaluators.append(PanopticSemanticEvaluator(dataset_name, output_dir))
    if not evaluators:
        logging.getLogger(__name__).warning(
            "Nothing is evaluated on '%s': of MODEL.DETR.TEST.PANOPTIC_ON, SEMANTIC_ON (both need "
            "MODEL.MASK_ON) and INSTANCE_ON (needs things) none is on.",
            dataset_name,
        )
    return DatasetEvaluators(evaluators)
