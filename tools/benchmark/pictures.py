"""The cost curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_curves(rows: Sequence[Mapping], path: Path) -> None:
    """Draw time (above) and peak memory (below) over kept queries, image size and batch.

    Args:
        rows: of work ``curves``.
        path: PNG to write.
    """
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    labels = {"kept": "kept queries", "size": "image size, pixels", "batch": "images per batch"}
    grid = figure.subplots(2, len(labels), sharex="col")
    for column, (curve, label) in enumerate(labels.items()):
        points = [row for row in rows if row["case"]["curve"] == curve]
        x = [point["case"][curve] for point in points]
        above, below = grid[:, column]
        for side in points[0]["times"]:
            times = [point["times"][side] for point in points]
            (line,) = above.plot(x, [t["median"] for t in times], "o-", ms=3, label=side)
            above.fill_between(
                x, [t["q1"] for t in times], [t["q3"] for t in times], alpha=0.2, lw=0
            )
            memory = [point["memory"][side] / 2**20 for point in points]
            below.plot(x, memory, "o-", ms=3, color=line.get_color())
        below.set_xlabel(label)
        below.tick_params(axis="x", labelrotation=20)
        for axes in (above, below):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("median seconds")
    grid[1, 0].set_ylabel("peak MiB of tensors")
    grid[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
