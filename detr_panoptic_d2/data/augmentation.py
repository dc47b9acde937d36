"""DETR's augmentation, built from Detectron2's transforms."""

import sys

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..errors import check_value


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge``; no side of the result is shorter than one pixel.

    Args:
        short_edge_length, max_size, sample_style: see Detectron2's class.
        official_sizes: compute sizes as official DETR does. It rounds the longer side down, and
            Detectron2 rounds it to the nearest integer: a 640 x 480 image becomes 1066 x 800 or
            1067 x 800.
    """

    def __init__(
        self,
        short_edge_length: int | list[int] | tuple[int, ...],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        official_sizes: bool = False,
    ):
        super().__init__(short_edge_length, max_size, sample_style)
        self.official_sizes = official_sizes

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Choose a size for an image (H, W, ...)."""
        height, width = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return T.NoOpTransform()
        output_shape = official_size if self.official_sizes else self.get_output_shape
        new_height, new_width = output_shape(height, width, int(size), self.max_size)
        return T.ResizeTransform(height, width, max(1, new_height), max(1, new_width), self.interp)


def official_size(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) after official DETR's ``get_size_with_aspect_ratio``."""
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter * short_edge > max_size:
        short_edge = round(max_size * shorter / longer)
    if shorter == short_edge:
        return height, width
    if width < height:
        return int(short_edge * height / width), short_edge
    return short_edge, int(short_edge * width / height)


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build DETR's augmentation: flip, then multi-scale resize, in part after a resize and a crop.

    Args:
        cfg: ``INPUT.{MIN,MAX}_SIZE_{TRAIN,TEST}``, ``INPUT.MIN_SIZE_TRAIN_SAMPLING``,
            ``INPUT.RANDOM_FLIP``, ``INPUT.CROP`` and ``INPUT.OFFICIAL_SIZES`` are read.
        is_train: False builds the resize of inference alone.
    """
    inputs, crop = cfg.INPUT, cfg.INPUT.CROP
    if not is_train:
        return [build_test_resize(cfg)]
    keys = {"MIN_SIZE_TRAIN": inputs.MIN_SIZE_TRAIN, "MAX_SIZE_TRAIN": inputs.MAX_SIZE_TRAIN}
    for key, sizes in keys.items():
        valid = bool(sizes) and min(sizes if isinstance(sizes, list | tuple) else [sizes]) > 0
        check_value(f"INPUT.{key}", sizes, valid, "one or more sizes in pixels, each above 0")
    official = inputs.OFFICIAL_SIZES
    augmentations: list[T.Augmentation] = []
    if inputs.RANDOM_FLIP != "none":
        directions = {name: name == inputs.RANDOM_FLIP for name in ("horizontal", "vertical")}
        augmentations.append(T.RandomFlip(**directions))
    if crop.ENABLED:
        resize = ResizeShortestEdge(
            crop.RESIZE_MIN_SIZES, sample_style="choice", official_sizes=official
        )
        cut = T.AugmentationList([resize, T.RandomCrop(crop.TYPE, crop.SIZE)])
        augmentations.append(T.RandomApply(cut, prob=crop.PROB))
    augmentations.append(
        ResizeShortestEdge(
            inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING, official
        )
    )
    return augmentations


def build_test_resize(cfg: CfgNode) -> ResizeShortestEdge:
    """Build the resize of inference from ``INPUT.{MIN,MAX}_SIZE_TEST`` and ``OFFICIAL_SIZES``."""
    sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return ResizeShortestEdge(*sizes, "choice", cfg.INPUT.OFFICIAL_SIZES)
