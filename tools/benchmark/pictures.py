"""The cost curves as a picture."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Of each curve: label of the axis, and where on it a point lies.
_AXES = {
    "kept": ("kept queries", lambda kept: kept),
    "size": ("image size, megapixels", lambda size: size[0] * size[1] / 1e6),
    "batch": ("images per batch", lambda batch: batch),
}


def draw_curves(result: Mapping, path: Path) -> None:
    """Draw time (above) and peak memory (below) over kept queries, image size and batch.

    Args:
        result: of work ``curves``.
        path: PNG to write.
    """
    curves = result["curves"]
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(curves), sharex="col")
    for column, (key, points) in enumerate(curves.items()):
        label, place = _AXES[key]
        x = [place(point[key]) for point in points]
        above, below = grid[:, column]
        for side in points[0]["times"]:
            seconds = [point["times"][side] for point in points]
            (line,) = above.plot(x, [t["median"] for t in seconds], "o-", ms=3, label=side)
            above.fill_between(
                x, [t["q1"] for t in seconds], [t["q3"] for t in seconds], alpha=0.2, lw=0
            )
            memory = [point["memory"][side] / 2**20 for point in points]
            below.plot(x, memory, "o-", ms=3, color=line.get_color())
        below.set_xlabel(label)
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("median seconds")
    grid[1, 0].set_ylabel("peak MiB of tensors")
    grid[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
