"""Evaluators of panoptic datasets: PQ, AP and mIoU, with ground truth from the panoptic PNGs."""

from .build import build_evaluator
from .instances import PanopticInstanceEvaluator
from .panoptic import PanopticEvaluator
from .semantic import PanopticSemanticEvaluator

__all__ = [
    "PanopticEvaluator",
    "PanopticInstanceEvaluator",
    "PanopticSemanticEvaluator",
    "build_evaluator",
]
