"""Evaluators of panoptic data sets: PQ, and mask AP and mIoU with truth from the same PNGs."""

from .build import build_evaluator
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .resume import images_done, prediction_key
from .semantic import PanopticSemanticEvaluator
from .truth import PanopticTruth

__all__ = [
    "PanopticEvaluator",
    "PanopticInstanceEvaluator",
    "PanopticSemanticEvaluator",
    "PanopticTruth",
    "build_evaluator",
    "images_done",
    "prediction_key",
]
