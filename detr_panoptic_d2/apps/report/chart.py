"""Curves over the iterations, drawn by matplotlib as SVG for the inside of a page."""

import io
import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ...data.palette import default_color

Points = list[tuple[float, float]]

# From this ratio of the largest to the smallest value on the scale is logarithmic.
_LOG_RATIO = 12
# More points than can be told apart are averaged.
_MAX_POINTS = 240
# Legible on light and dark ground; the page gives its own colour to texts.
_FRAME = "#80868e"


def line_chart(series: Mapping[str, Points], *, from_zero: bool = False) -> str:
    """Draw curves over the iterations.

    The scale is logarithmic where values are positive and differ by an order of magnitude. What
    is not finite leaves a gap.

    Args:
        series: (iteration, value) of each curve, by name; empty ones are left out.
        from_zero: a linear scale that starts at 0.

    Returns:
        str: an ``<svg>``; "" if there is nothing to draw.
    """
    curves = {name: _averaged(np.array(p, dtype=float)) for name, p in series.items() if p}
    curves = {name: p for name, p in curves.items() if np.isfinite(p[:, 1]).any()}
    if not curves:
        return ""
    figure = Figure(figsize=(4, 2.3), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        last = points[np.isfinite(points[:, 1]), 1][-1]
        axes.plot(
            *points.T,
            label=f"{name} {last:.4g}",
            color=np.divide(default_color(i), 255),
            linestyle=("-", "--", ":", "-.")[i % 4],
            marker="o" if len(points) == 1 else "",
        )
    values = np.concatenate([p[:, 1] for p in curves.values()])
    low, high = np.nanmin(values[np.isfinite(values)]), np.nanmax(values[np.isfinite(values)])
    if from_zero:
        axes.set_ylim(bottom=min(0, low))
    elif low > 0 and high / low > _LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=_FRAME, alpha=0.3, linewidth=0.6)
    axes.tick_params(labelsize=9, color=_FRAME)
    axes.spines[:].set_color(_FRAME)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    text = io.StringIO()
    # Text stays text; the same curves give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _averaged(points: np.ndarray) -> np.ndarray:
    """Average neighbours until there are at most ``_MAX_POINTS``; the last one stays as it is."""
    size = math.ceil(len(points) / _MAX_POINTS)
    if size < 2:
        return points
    starts = np.arange(0, len(points) - 1, size)
    counts = np.diff([*starts, len(points) - 1])
    return np.vstack([np.add.reduceat(points[:-1], starts) / counts[:, None], points[-1:]])
