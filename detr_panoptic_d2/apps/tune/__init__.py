"""Tuning of the panoptic inference: rule and thresholds that give the best PQ on a dataset."""

from .run import tune

__all__ = ["tune"]
