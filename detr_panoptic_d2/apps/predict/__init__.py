"""Panoptic segmentation of image files, folders and videos."""

from .run import predict
from .tiled import TiledPredictor

__all__ = ["TiledPredictor", "predict"]
