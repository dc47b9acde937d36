"""Panoptic segmentation of image files, folders and videos."""

from .inputs import find_inputs
from .run import predict

__all__ = ["find_inputs", "predict"]
