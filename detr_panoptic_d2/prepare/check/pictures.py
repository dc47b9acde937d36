"""Pictures of a dataset: a plot of its classes, and examples of images with their annotation."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ...data.dataset_mapper import PanopticDatasetMapper, read_image
from ...data.panoptic_json import panoptic_metadata
from ...data.panoptic_png import read_panoptic_png
from ...files import atomic_file
from ...visualization.draw import draw_panoptic, limit_size
from ...visualization.panels import enlarge, side_by_side, with_caption
from ...visualization.visualizer import PanopticVisualizer, class_colors
from .dataset import ImageResult, Report

_NUM_EXAMPLES = 6
# Of the pictures in a grid, in pixels.
_MIN_SIZE, _MAX_SIZE = 320, 640


def plot_classes(report: Report, path: str | os.PathLike) -> None:
    """Draw the number of segments of each class, and their sizes, as a PNG."""
    classes = report.classes()
    # One row per class, so that names are horizontal and never overlap.
    figure = Figure(figsize=(11, 1.8 + 0.32 * len(classes)), layout="constrained")
    counts, sizes = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(classes))
    colors = ["tab:blue" if category["isthing"] else "tab:orange" for category, *_ in classes]
    numbers = [len(areas) for _, areas, *_ in classes]
    counts.bar_label(counts.barh(rows, numbers, color=colors), padding=3)
    # Room for the numbers inside of the frame.
    counts.set_xlim(0, 1.15 * max([*numbers, 1]))
    counts.set_xlabel("segments")
    names = [textwrap.shorten(str(category["name"]), 40) for category, *_ in classes]
    counts.set_yticks(rows, names)
    counts.set_ylim(len(classes) - 0.5, -0.5)
    for row, color, (_, areas, *_) in zip(rows, colors, classes, strict=True):
        if areas:
            low, quarter, median, three_quarters, high = np.percentile(
                np.sqrt(areas), [0, 25, 50, 75, 100]
            )
            sizes.plot([low, high], [row, row], color=color, marker="|")
            sizes.barh(row, three_quarters - quarter, 0.5, quarter, color=color)
            sizes.plot(median, row, color="black", marker="|", markersize=9)
    sizes.set_xscale("log", base=2)
    sizes.xaxis.set_major_formatter("{x:g}")
    sizes.set_xlabel("square root of the area in pixels; box: quartiles")
    patches = [Patch(color="tab:blue", label="thing"), Patch(color="tab:orange", label="stuff")]
    figure.legend(handles=patches, loc="outside upper right", ncols=2)
    figure.suptitle(f"{report.paths.name}: {len(report.images)} images", x=0.01, ha="left")
    with atomic_file(path, "wb") as f:
        figure.savefig(f, format="png", dpi=100)


def draw_examples(reports: Sequence[Report], path: str | os.PathLike) -> None:
    """Draw a few images of each set with their annotation and its classes, as a PNG."""
    pictures = []
    for report in reports:
        examples = _choose_examples(report)
        categories = list(report.valid.categories.values())
        metadata = Metadata()
        if examples:
            metadata.set(**panoptic_metadata(categories, report.paths.panoptic_json))
        classes = {
            category["id"]: {"category_id": index, "isthing": bool(category["isthing"])}
            for index, category in enumerate(categories)
        }
        for image in examples:
            segments = [{**s, **classes[s["category_id"]]} for s in image.segments]
            truth = read_panoptic_png(image.png_path), segments
            pixels, (ids, segments) = limit_size(_MAX_SIZE, read_image(image.path, "RGB"), truth)
            picture = draw_panoptic(
                pixels, ids, segments, metadata, min_size=_MIN_SIZE, legend=True
            )
            pictures.append(with_caption(picture, f"{report.paths.name}: {image.name}"))
    _save_grid(pictures, path)


def _choose_examples(report: Report) -> list[ImageResult]:
    """Choose images that together show as many classes as possible."""
    candidates = [image for image in report.images if image.size and image.segments]
    chosen: list[ImageResult] = []
    shown: set[int] = set()
    while candidates and len(chosen) < _NUM_EXAMPLES:
        best = max(candidates, key=lambda i: len({s["category_id"] for s in i.segments} - shown))
        candidates.remove(best)
        chosen.append(best)
        shown |= {segment["category_id"] for segment in best.segments}
    return chosen


def draw_augmented(cfg: CfgNode, count: int, path: str | os.PathLike) -> None:
    """Draw images of the first training set as the network sees them, with masks and boxes."""
    seed_all_rng(max(cfg.SEED, 0))
    name = cfg.DATASETS.TRAIN[0]
    items, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    mapper = PanopticDatasetMapper(cfg)
    things = metadata.thing_dataset_id_to_contiguous_id.values()
    pictures = []
    for index in range(count):
        sample = mapper(items[index % len(items)])
        pixels, instances = sample["image"].permute(1, 2, 0).numpy(), sample["instances"]
        pixels = pixels[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else pixels
        classes, ids = instances.gt_classes.tolist(), np.zeros(pixels.shape[:2], np.int32)
        # The box stage has no masks.
        masks = instances.gt_masks.tensor.numpy() if instances.has("gt_masks") else ()
        for number, mask in enumerate(masks, 1):
            ids[mask] = number
        segments = [
            {"id": number, "category_id": category, "isthing": category in things}
            for number, category in enumerate(classes, 1)
        ]
        large = enlarge(pixels, _MIN_SIZE)
        visualizer = PanopticVisualizer(large, metadata)
        visualizer.draw_panoptic_seg(enlarge(ids, _MIN_SIZE), segments)
        colors = class_colors(metadata, max(classes, default=0) + 1)
        boxes = instances.gt_boxes.tensor * (len(large) / len(pixels))
        for box, category in zip(boxes.tolist(), classes, strict=True):
            visualizer.draw_box(box, edge_color=np.divide(colors[category], 255))
        caption = f"{Path(sample['file_name']).name}: {pixels.shape[1]} x {pixels.shape[0]}"
        pictures.append(with_caption(visualizer.get_picture(), caption))
    _save_grid(pictures, path, num_columns=4)


def _save_grid(
    pictures: Sequence[np.ndarray], path: str | os.PathLike, num_columns: int = 3
) -> None:
    """Save pictures in rows; larger ones are reduced to ``_MAX_SIZE``."""
    if not pictures:
        return
    small = [limit_size(_MAX_SIZE, picture)[0] for picture in pictures]
    rows = [side_by_side(small[i : i + num_columns]) for i in range(0, len(small), num_columns)]
    width = max(row.shape[1] for row in rows)
    margins = [((0, 6), (0, width - row.shape[1]), (0, 0)) for row in rows]
    padded = [np.pad(row, m, constant_values=255) for row, m in zip(rows, margins, strict=True)]
    with atomic_file(path, "wb") as f:
        Image.fromarray(np.concatenate(padded)).save(f, format="PNG")
