"""Panoptic segmentation of image files, folders and videos."""

from .run import predict

__all__ = ["predict"]
