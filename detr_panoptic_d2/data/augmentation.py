"""The augmentation of ``INPUT.AUG``, built from Detectron2's transforms."""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from ..errors import UserError, check_value


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge``, optionally with the sizes of official DETR.

    No side of the result is shorter than one pixel.
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


class ResizeScale(T.ResizeScale):
    """Detectron2's ``ResizeScale``; no side of the result is shorter than one pixel."""

    def _get_resize(self, image: np.ndarray, scale: float) -> T.Transform:
        resize = super()._get_resize(image, scale)
        resize.new_h, resize.new_w = max(1, resize.new_h), max(1, resize.new_w)
        return resize


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
    """Build the augmentations of ``INPUT.AUG``, or the resize of inference alone."""
    if not is_train:
        return [build_test_resize(cfg)]
    inputs = cfg.INPUT
    keys = {"MIN_SIZE_TRAIN": inputs.MIN_SIZE_TRAIN, "MAX_SIZE_TRAIN": inputs.MAX_SIZE_TRAIN}
    for key, sizes in keys.items():
        valid = bool(sizes) and min(sizes if isinstance(sizes, list | tuple) else [sizes]) > 0
        check_value(f"INPUT.{key}", sizes, valid, "one or more sizes in pixels, each above 0")
    items = [inputs.AUG] if isinstance(inputs.AUG, str) else inputs.AUG or ["detr"]
    presets = _build_presets(cfg)
    augmentations: list[T.Augmentation] = []
    for item in items:
        is_preset = isinstance(item, str) and item in presets
        augmentations += presets[item] if is_preset else [_build_by_name(item, presets)]
    return augmentations


def build_test_resize(cfg: CfgNode) -> ResizeShortestEdge:
    """Build the resize of inference from ``INPUT.{MIN,MAX}_SIZE_TEST`` and ``OFFICIAL_SIZES``."""
    sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return ResizeShortestEdge(*sizes, "choice", cfg.INPUT.OFFICIAL_SIZES)


def _build_by_name(item: Any, presets: Iterable[str]) -> T.Augmentation:
    """Build an augmentation of Detectron2 from its name, or a list of name and arguments."""
    name, *args = item if isinstance(item, list | tuple) and item else [item]
    kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
    classes = {k: v for k, v in vars(T).items() if isinstance(v, type)}
    names = sorted(k for k, v in classes.items() if issubclass(v, T.Augmentation))
    allowed = f"one of {', '.join(presets)} or of Detectron2's {', '.join(names)}"
    check_value("a name in INPUT.AUG", name, name in names, allowed)
    if name == "FixedSizeCrop":
        # Detectron2 pads segmentations with 255, which would be the label of a segment.
        kwargs = {"seg_pad_value": 0, **kwargs}
    try:
        return classes[name](*args, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"INPUT.AUG has {item!r}: {error}") from error


def _build_presets(cfg: CfgNode) -> dict[str, list[T.Augmentation]]:
    inputs, crop, official = cfg.INPUT, cfg.INPUT.CROP, cfg.INPUT.OFFICIAL_SIZES
    directions = {name: name == inputs.RANDOM_FLIP for name in ("horizontal", "vertical")}
    flip = [T.RandomFlip(**directions)] if inputs.RANDOM_FLIP != "none" else []
    sizes = inputs.MIN_SIZE_TRAIN, inputs.MAX_SIZE_TRAIN, inputs.MIN_SIZE_TRAIN_SAMPLING
    multi_scale: list[T.Augmentation] = [ResizeShortestEdge(*sizes, official)]
    if crop.ENABLED:
        resize = ResizeShortestEdge(
            crop.RESIZE_MIN_SIZES, sample_style="choice", official_sizes=official
        )
        cut = T.AugmentationList([resize, T.RandomCrop(crop.TYPE, crop.SIZE)])
        multi_scale.insert(0, T.RandomApply(cut, prob=crop.PROB))
    size = np.max(inputs.MIN_SIZE_TRAIN).item()
    # Padding is void: no mask covers it.
    fixed_crop = T.FixedSizeCrop((size, size), seg_pad_value=0)
    colors = [x(0.8, 1.2) for x in (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)]
    # AlexNet's deviation of 0.1, for pixel values up to 255.
    colors.append(T.RandomLighting(25.5))
    flips = [T.RandomFlip(horizontal=x, vertical=not x) for x in (True, False)]
    rotation = T.RandomRotation([0, 90, 180, 270], sample_style="choice")
    return {
        "detr": [*flip, *multi_scale],
        # Large-scale jitter (Ghiasi et al. 2021).
        "lsj": [*flip, ResizeScale(0.1, 2.0, size, size), fixed_crop],
        "color": [*flip, *multi_scale, *colors],
        "flip-rotate": [*flips, rotation, *multi_scale],
    }
