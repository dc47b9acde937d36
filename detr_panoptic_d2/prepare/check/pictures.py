"""Pictures of a data set: a plot of its classes, and examples of images with their annotation."""

import os
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ...data.colors import choose_colors
from ...data.dataset_mapper import read_image
from ...data.panoptic_png import read_panoptic_png
from ...files import atomic_file
from .dataset import ImageResult, Report
from .report import classes_of

_NUM_EXAMPLES = 6
_LONGER_SIDE = 640


def plot_classes(report: Report, path: str | os.PathLike) -> None:
    """Draw the number of segments of each class, and their sizes, as a PNG."""
    classes = classes_of(report)
    # One row per class, so that names are horizontal and never overlap.
    figure = Figure(figsize=(11, 1.8 + 0.32 * len(classes)), layout="constrained")
    counts, sizes = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(classes))
    colors = ["tab:blue" if category["isthing"] else "tab:orange" for category, *_ in classes]
    numbers = [len(areas) for _, areas, *_ in classes]
    bars = counts.barh(rows, numbers, color=colors)
    counts.bar_label(bars, padding=3)
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
    _save(figure, path)


def draw_examples(reports: Sequence[Report], path: str | os.PathLike) -> None:
    """Draw a few images of each set with their annotation and a legend of the classes, as a PNG."""
    rows = [(report, _choose_examples(report)) for report in reports]
    rows = [(report, images) for report, images in rows if images]
    if not rows:
        return
    num_columns = min(3, max(len(images) for _, images in rows))
    grid = [(report, image) for report, images in rows for image in images]
    num_rows = -(-len(grid) // num_columns)
    figure = Figure(figsize=(5 * num_columns, 3.9 * num_rows + 1), layout="constrained")
    axes = np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()
    for axis in axes:
        axis.axis("off")
    names: dict[str, tuple] = {}
    for axis, (report, image) in zip(axes, grid, strict=False):
        picture, colors = _draw_annotation(report, image)
        names |= colors
        axis.imshow(picture)
        title = f"{report.paths.name}: {image.name}"
        axis.set_title(textwrap.shorten(title, 60, placeholder="..."), fontsize=9)
    patches = [Patch(facecolor=color, label=name) for name, color in names.items()]
    patches.append(Patch(facecolor="white", hatch="////", label="void (no label)"))
    figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)))
    _save(figure, path)


def _choose_examples(report: Report) -> list[ImageResult]:
    """Choose images that together show as many classes as possible."""
    candidates = [image for image in report.images if image.size and image.segments]
    chosen: list[ImageResult] = []
    shown: set[int] = set()
    while candidates and len(chosen) < _NUM_EXAMPLES:
        best = max(candidates, key=lambda i: len({s.category_id for s in i.segments} - shown))
        candidates.remove(best)
        chosen.append(best)
        shown |= {segment.category_id for segment in best.segments}
    return chosen


def _draw_annotation(report: Report, image: ImageResult) -> tuple[np.ndarray, dict[str, tuple]]:
    """Return the image under the colors of its classes, and these colors by name.

    Borders between segments are white. Void has diagonal stripes.
    """
    pixels = read_image(image.path, "RGB")
    ids = read_panoptic_png(image.png_path).astype(np.int32)
    scale = _LONGER_SIDE / max(ids.shape)
    size = max(1, round(ids.shape[1] * scale)), max(1, round(ids.shape[0] * scale))
    pixels = np.asarray(Image.fromarray(pixels).resize(size))
    ids = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
    overlay = np.zeros((*ids.shape, 3))
    colors = {}
    # A dark color looks like a shadow of the image.
    own_colors = [c.get("color") or (0, 0, 0) for c in report.categories.values()]
    own_colors = [tuple(color) if max(color) >= 40 else None for color in own_colors]
    isthing = [bool(c["isthing"]) for c in report.categories.values()]
    palette = choose_colors(isthing, own_colors)
    for color, (category_id, category) in zip(palette, report.categories.items(), strict=True):
        segment_ids = [s.segment_id for s in image.segments if s.category_id == category_id]
        if segment_ids:
            overlay[np.isin(ids, segment_ids)] = color
            colors[str(category["name"])] = tuple(np.array(color) / 255)
    picture = 0.45 * pixels + 0.55 * overlay
    rows, columns = np.indices(ids.shape)
    stripes = 255 * ((rows + columns) // 6 % 2)
    is_void = ~overlay.any(axis=2)
    picture[is_void] = 0.5 * pixels[is_void] + 0.5 * stripes[is_void, None]
    is_border = np.zeros(ids.shape, bool)
    is_border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    is_border[1:] |= ids[1:] != ids[:-1]
    picture[is_border] = 255
    return picture.clip(0, 255).astype(np.uint8), colors


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with atomic_file(path, "wb") as f:
        figure.savefig(f, format="png", dpi=100)
