"""The built-in dataset in COCO panoptic format: shapes in front of sky and ground.

Circles, squares and triangles are things, sky and ground are stuff. Each image has a random stream
of its own, so the same arguments always give the same files.
"""

import colorsys
import functools
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from ...data.panoptic_json import (
    complete_segments,
    load_panoptic_json,
    panoptic_metadata,
    write_panoptic_json,
)
from ...data.panoptic_png import write_panoptic_png
from ...data.register import register_once

logger = logging.getLogger(__name__)

# Ids have gaps on purpose, to reveal code that confuses ids and positions.
CATEGORIES: list[dict[str, Any]] = [
    {"id": 3, "name": "circle", "isthing": 1, "color": [214, 48, 49]},
    {"id": 7, "name": "square", "isthing": 1, "color": [241, 196, 15]},
    {"id": 12, "name": "triangle", "isthing": 1, "color": [155, 48, 200]},
    {"id": 20, "name": "sky", "isthing": 0, "color": [116, 185, 255]},
    {"id": 31, "name": "ground", "isthing": 0, "color": [46, 125, 70]},
]
_SHAPES, _SKY, _GROUND = CATEGORIES[:3], CATEGORIES[3], CATEGORIES[4]
# Hue of each shape, +- _HUE_RANGE.
_HUES = {"circle": 0.0, "square": 0.14, "triangle": 0.80}
_HUE_RANGE = 0.05
# Radius of a shape as a share of the image's side.
_RADIUS = (0.14, 0.26)
# Smallest visible part of a shape. Shapes that would hide more of another are rejected.
_MIN_VISIBLE = 0.8
_MAX_SHAPES = 3

# Number of images and seed of each registered split. The demo's recipe was chosen on "tune".
_SPLITS = {"train": (2000, 1), "val": (100, 2), "tune": (100, 3)}


def register_shapes() -> None:
    """Register ``shapes_panoptic_train`` (2000 images), ``_val`` (100) and ``_tune`` (100).

    They are stored in ``DETECTRON2_DATASETS`` (default: ``datasets``). A split is written when it
    is first loaded.
    """
    datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    # Change the version if the same arguments give other files.
    root = os.path.join(datasets, "shapes_panoptic_v2")
    metadata = functools.partial(panoptic_metadata, CATEGORIES, "shapes_panoptic")
    for split in _SPLITS:
        loader = functools.partial(_load, root, split)
        register_once(f"shapes_panoptic_{split}", loader, _paths(root, split), metadata)


def _load(root: str, split: str) -> list[dict]:
    num_images, seed = _SPLITS[split]
    return load_panoptic_json(**make_shapes(root, split, num_images, seed=seed))


def _paths(root: str | os.PathLike, split: str) -> dict[str, str]:
    names = {"image_root": "images", "panoptic_root": "panoptic", "panoptic_json": "panoptic.json"}
    return {key: os.path.join(root, split, name) for key, name in names.items()}


def make_shapes(
    root: str | os.PathLike, split: str, num_images: int, *, size: int = 128, seed: int
) -> dict[str, str]:
    """Write a split of the dataset, unless it exists.

    The folder of the split appears only when it is complete. Several processes may call this at the
    same time.

    Args:
        root: folder of the splits; it is made if it does not exist.
        split: name of the folder of the split.
        num_images: number of images.
        size: side of the square images in pixels.
        seed: seed of the random streams; image i of a seed is the same in every split.

    Returns:
        dict: ``image_root``, ``panoptic_root``, ``panoptic_json``.
    """
    paths, work = _paths(root, split), Path(root, f".{split}-new")
    # A complete split needs no lock, which a read-only file system refuses.
    if os.path.isfile(paths["panoptic_json"]):
        return paths
    work.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(work.with_name(f".{split}.lock")):
        if os.path.isfile(paths["panoptic_json"]):
            return paths
        logger.info(f"Making {num_images} images of shapes in '{root}' ...")
        # A process that was killed may have left it.
        shutil.rmtree(work, ignore_errors=True)
        images, annotations = [], []
        (work / "images").mkdir(parents=True)
        for index in range(num_images):
            pixels, ids, segments = render(np.random.default_rng((seed, index)), size)
            file_name, number = f"{index:06d}.png", index + 1
            Image.fromarray(pixels).save(work / "images" / file_name, compress_level=1)
            write_panoptic_png(work / "panoptic" / file_name, ids)
            images.append({"id": number, "file_name": file_name, "height": size, "width": size})
            annotation = {"image_id": number, "file_name": file_name, "segments_info": segments}
            annotations.append(annotation)
        write_panoptic_json(work / "panoptic.json", images, annotations, CATEGORIES)
        work.rename(work.with_name(split))
    return paths


def render(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Return a uint8 RGB image of ``size`` pixels a side, its ids, and its ``segments_info``."""
    grid = np.mgrid[:size, :size].astype(np.float32) / size
    is_ground, image = _background(rng, grid)
    labels = is_ground.astype(np.int32)  # 0 sky, 1 ground, then the shapes
    categories = [_SKY, _GROUND]
    full_areas: list[int] = []
    num_shapes = rng.integers(1, _MAX_SHAPES + 1)
    for _ in range(5 * _MAX_SHAPES):
        if len(full_areas) == num_shapes:
            break
        category, mask, colors = _shape(rng, grid)
        candidate = np.where(mask, len(categories), labels)
        visible = np.bincount(candidate.reshape(-1), minlength=len(categories) + 1)[2:]
        if (visible < _MIN_VISIBLE * np.array([*full_areas, mask.sum()])).any():
            continue
        labels = candidate
        categories.append(category)
        full_areas.append(int(mask.sum()))
        image = np.where(mask[..., None], colors, image)
    image = image * rng.uniform(0.85, 1.1) + rng.normal(0, 0.035, image.shape)
    pixels = (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
    segments = [
        # The color is close to the color of the category.
        {"id": red + 256 * green + 65536 * (blue - label), "category_id": category["id"]}
        for label, category in enumerate(categories)
        for red, green, blue in [category["color"]]
    ]
    ids = np.array([s["id"] for s in segments], dtype=np.int32)[labels]
    return pixels, ids, complete_segments(ids, segments)


def _background(rng: np.random.Generator, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of the ground (size, size) and the colors (size, size, 3) of both."""
    y, x = grid
    horizon = rng.uniform(0.35, 0.65)
    for waves in rng.uniform(0.5, 4.0, 3):
        phase = rng.uniform(0, 2 * math.pi)
        horizon = horizon + 0.08 / (1 + waves) * np.sin(2 * math.pi * waves * x + phase)
    is_ground = y > horizon
    sky = _hsv(rng.uniform(0.54, 0.62), rng.uniform(0.25, 0.6), rng.uniform(0.75, 0.95))
    clouds = _waves(rng, grid, (0.5, 2.5), (1.0, 5.0))
    sky_image = sky + 0.25 * y[..., None] + 0.07 * clouds[..., None]
    ground = _hsv(rng.uniform(0.26, 0.40), rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6))
    grass = _waves(rng, grid, (6.0, 16.0), (6.0, 16.0))
    ground_image = ground * (1 + 0.30 * grass[..., None])
    return is_ground, np.where(is_ground[..., None], ground_image, sky_image)


def _waves(rng: np.random.Generator, grid: np.ndarray, across: tuple, down: tuple) -> np.ndarray:
    """Return three plane waves multiplied, within -1 and 1; frequencies are waves per side."""
    y, x = grid
    value = np.ones_like(x)
    for _ in range(3):
        fx, fy, phase = rng.uniform(*across), rng.uniform(*down), rng.uniform(0, 2 * math.pi)
        value = value * np.sin(2 * math.pi * (rng.choice((-1, 1)) * fx * x + fy * y) + phase)
    return value


def _shape(rng: np.random.Generator, grid: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return category, mask (size, size) and colors (size, size, 3) of a random shape."""
    category = _SHAPES[rng.integers(len(_SHAPES))]
    radius, angle = rng.uniform(*_RADIUS), rng.uniform(0, 2 * math.pi)
    center = rng.uniform(0.6 * radius, 1 - 0.6 * radius, 2)
    y, x = grid[0] - center[0], grid[1] - center[1]
    if category["name"] == "circle":
        mask = x * x + y * y < radius * radius
    else:
        # Inside a regular polygon: on the inner side of each edge.
        corners = 4 if category["name"] == "square" else 3
        normals = angle + 2 * math.pi / corners * np.arange(corners)
        inner = radius * math.cos(math.pi / corners)
        mask = np.all([x * math.cos(a) + y * math.sin(a) < inner for a in normals], axis=0)
    hue = _HUES[category["name"]] + rng.uniform(-_HUE_RANGE, _HUE_RANGE)
    color = _hsv(hue % 1.0, rng.uniform(0.7, 1.0), rng.uniform(0.6, 1.0))
    shading = 1 + 0.8 * (x * math.cos(angle) + y * math.sin(angle))
    return category, mask, color * shading[..., None]


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)
