"""Curves over the iterations, drawn by matplotlib as SVG for a page."""

import io
import itertools
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ...data.colors import choose_colors

# With a larger ratio of the largest to the smallest value, the scale is logarithmic.
_LOG_RATIO = 12
# Longer curves are averaged to about this number of points.
_MAX_POINTS = 240
# Visible on light and dark ground. The page sets the color of texts.
_FRAME = "#80868e"


def line_chart(
    series: Mapping[str, Mapping[int, float]],
    *,
    from_zero: bool = False,
    marks: Mapping[str, int] | None = None,
) -> str:
    """Draw curves over the iterations.

    Args:
        series: values by iteration of each curve, by name. Those that are not finite leave a gap.
        from_zero: a linear scale that starts at 0. Else the scale is logarithmic if all values are
            positive and differ by an order of magnitude.
        marks: iterations of vertical lines, by name.

    Returns:
        str: an ``<svg>``; "" if there is nothing to draw.
    """
    curves = {name: np.array(list(s.items()), dtype=float) for name, s in series.items() if s}
    curves = {name: p for name, p in curves.items() if np.isfinite(p[:, 1]).any()}
    if not curves:
        return ""
    figure = Figure(figsize=(4, 2.3), layout="constrained")
    axes = figure.add_subplot()
    values = np.concatenate([p[np.isfinite(p[:, 1]), 1] for p in curves.values()])
    colors = np.array(choose_colors([True] * len(curves))) / 255
    styles = itertools.cycle(["-", "--", ":", "-."])
    for (name, points), color, style in zip(curves.items(), colors, styles, strict=False):
        last = points[np.isfinite(points[:, 1]), 1][-1]
        size = 1 + len(points) // _MAX_POINTS
        points = points[len(points) % size :].reshape(-1, size, 2).mean(1)
        marker = "o" if len(points) == 1 else ""
        label = f"{name} {last:.4g}"
        axes.plot(*points.T, label=label, color=color, linestyle=style, marker=marker)
    for (name, iteration), style in zip((marks or {}).items(), styles, strict=False):
        axes.axvline(iteration, label=f"{name} {iteration}", color=_FRAME, linestyle=style)
    low, high = values.min(), values.max()
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
    # Text stays text.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
