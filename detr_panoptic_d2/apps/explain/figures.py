"""Sheets of panels: maps and pictures in rows, with titles and colour bars, as PNG.

Every panel of a sheet shows the same canvas, so overlays are given in shares of its width and
height and fit maps of any resolution. Colours: cividis and viridis for amounts, PuOr for signed
values, which can be told apart by colour-blind people; queries have the palette's colours.
"""

import io
import math
import textwrap
from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

Color = tuple[int, int, int]
# (x0, y0, x1, y1) in shares of the canvas, and the colour of the frame.
Box = tuple[tuple[float, float, float, float], Color]

_DPI = 100
_FONT = 8.5
# Pixels of a line of text and of an average character in it.
_LINE, _CHARACTER = 15, 6.4
_GAP, _MARGIN, _BAR = 10, 8, 9
# Bytes from which on a PNG gets a palette.
_LARGE = 250_000


@dataclass
class Panel:
    """One map or picture.

    Attributes:
        image: H x W numbers, or H x W x 3 uint8.
        title: over the panel.
        cmap: Matplotlib's name of the colour map.
        limits: values of the first and last colour; None: least and greatest of the map.
        bar: put a colour bar under the panel.
        boxes: frames in the colours of their queries.
        points: (x, y) in shares of the canvas.
        texts: (x, y, text) in shares of the canvas; one that would lie on an earlier one moves
            down.
    """

    image: np.ndarray
    title: str = ""
    cmap: str = "viridis"
    limits: tuple[float, float] | None = None
    bar: bool = False
    boxes: list[Box] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    texts: list[tuple[float, float, str]] = field(default_factory=list)

    def value_range(self) -> tuple[float, float]:
        """The values of the first and the last colour."""
        if self.limits is not None:
            return self.limits
        finite = self.image[np.isfinite(self.image)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        return (low, high) if high > low else (low, low + 1e-6)


@dataclass
class SharedBar:
    """A colour bar for the whole sheet."""

    label: str
    cmap: str
    limits: tuple[float, float]


def columns_for(count: int, width: int, least: int = 150) -> int:
    """How many panels of at least ``least`` pixels to put side by side."""
    return max(1, min(count, (width - 2 * _MARGIN + _GAP) // (least + _GAP)))


def in_rows(panels: list[Panel], columns: int) -> list[list[Panel]]:
    """Break a list of panels into rows."""
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def draw_sheet(
    rows: list[list[Panel]],
    aspect: float,
    *,
    width: int = 1000,
    row_labels: list[str] | None = None,
    shared_bar: SharedBar | None = None,
    most: int = 330,
) -> bytes:
    """Draw panels in rows.

    Args:
        rows: the panels.
        aspect: height of the canvas divided by its width.
        width: most pixels of the picture's width.
        row_labels: text to the left of each row.
        shared_bar: colour bar below all panels.
        most: most pixels of a panel's longer side.

    Returns:
        a PNG.
    """
    columns = max(len(row) for row in rows)
    left = _MARGIN + (min(110, width // 7) if row_labels else 0)
    panel = (width - left - _MARGIN - (columns - 1) * _GAP) / columns
    panel_width = max(1, math.floor(min(panel, most, most / aspect)))
    panel_height = max(1, round(panel_width * aspect))
    characters = max(6, int(panel_width / _CHARACTER))
    titles = [[_wrap(p.title, characters, 3) for p in row] for row in rows]
    heads = [_LINE * max(t.count("\n") + 1 if t else 0 for t in row) + 4 for row in titles]
    feet = [_BAR + _LINE + 7 if any(p.bar for p in row) else 0 for row in rows]
    foot = _BAR + 2 * _LINE + 14 if shared_bar else 0
    total_width = left + columns * panel_width + (columns - 1) * _GAP + _MARGIN
    if shared_bar:
        total_width = max(total_width, int(len(shared_bar.label) * _CHARACTER) + 2 * _MARGIN)
    body = sum(heads) + sum(feet) + len(rows) * (panel_height + _GAP)
    sheet = _Sheet(total_width, 2 * _MARGIN + body + foot)
    top = _MARGIN
    for r, row in enumerate(rows):
        top += heads[r]
        if row_labels:
            label = _wrap(row_labels[r], int((left - _MARGIN) / _CHARACTER), 4)
            sheet.text(_MARGIN, top + panel_height / 2, label, va="center")
        for c, item in enumerate(row):
            x = left + c * (panel_width + _GAP)
            sheet.text(x, top - 4, titles[r][c], va="bottom")
            sheet.panel(item, x, top, panel_width, panel_height)
            if item.bar:
                y = top + panel_height + 4
                sheet.bar(item.cmap, item.value_range(), x, y, panel_width, ticks=2)
        top += panel_height + feet[r] + _GAP
    if shared_bar:
        length = min(360, total_width - 2 * _MARGIN)
        sheet.text(_MARGIN, top + _LINE, shared_bar.label, va="bottom")
        sheet.bar(shared_bar.cmap, shared_bar.limits, _MARGIN, top + _LINE + 4, length, ticks=3)
    return sheet.png()


class _Sheet:
    """A figure whose coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self.width, self.height = int(width), int(height)
        self.figure = Figure((self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def _axes(self, x, y, width, height):
        axes = self.figure.add_axes(
            (
                x / self.width,
                1 - (y + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )
        for side in axes.spines.values():
            side.set_linewidth(0.6)
            side.set_color("0.4")
        return axes

    def text(self, x: float, y: float, text: str, **options) -> None:
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=_FONT, linespacing=1.15, **options
        )

    def panel(self, item: Panel, x: float, y: float, width: float, height: float) -> None:
        axes = self._axes(x, y, width, height)
        options = {"extent": (0, 1, 1, 0), "aspect": "auto", "interpolation": "nearest"}
        if item.image.ndim == 3:
            axes.imshow(item.image, **{**options, "interpolation": "antialiased"})
        else:
            low, high = item.value_range()
            cmap = colormaps[item.cmap].with_extremes(bad="0.85")
            axes.imshow(item.image, cmap=cmap, vmin=low, vmax=high, **options)
        axes.set_xticks([])
        axes.set_yticks([])
        for (x0, y0, x1, y1), color in item.boxes:
            for line, edge in ((3.6, "white"), (2, np.divide(color, 255))):
                box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=line, ec=edge)
                axes.add_patch(box)
        for px, py in item.points:
            axes.plot(px, py, "o", ms=8, mfc="none", mec="black", mew=2.6)
            axes.plot(px, py, "o", ms=8, mfc="none", mec="white", mew=1.3)
        places = _apart(item.texts, width, height)
        for (px, py), (_, _, label) in zip(places, item.texts, strict=True):
            axes.text(
                px,
                py,
                label,
                fontsize=_FONT - 0.5,
                ha="center",
                va="center",
                bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "0.4", "lw": 0.5},
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(1, 0)

    def bar(self, cmap, limits, x: float, y: float, width: float, *, ticks: int) -> None:
        axes = self._axes(x, y, width, _BAR)
        gradient = np.linspace(0, 1, 256)[None]
        axes.imshow(gradient, cmap=cmap, aspect="auto", extent=(0, 1, 0, 1))
        axes.set_yticks([])
        places = np.linspace(0, 1, ticks)
        values = limits[0] + places * (limits[1] - limits[0])
        axes.set_xticks(places, [_number(v, limits) for v in values], fontsize=_FONT - 0.5)
        axes.tick_params(length=2, pad=2)
        for label, place in zip(axes.get_xticklabels(), places, strict=True):
            label.set_ha("left" if place == 0 else "right" if place == 1 else "center")

    def png(self) -> bytes:
        self.figure.canvas.draw()
        pixels = np.asarray(self.figure.canvas.buffer_rgba())[..., :3]
        return to_png(pixels)


def to_png(pixels: np.ndarray) -> bytes:
    """H x W x 3 uint8 to a PNG, with a palette of 256 colours where it would be large."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    data = _save(image)
    if len(data) > _LARGE:
        data = _save(image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=0))
    return data


def _save(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return data.getvalue()


def _apart(
    texts: list[tuple[float, float, str]], width: float, height: float
) -> list[tuple[float, float]]:
    """Centres of texts, in shares: inside the panel, and below earlier ones that are in the way."""
    placed: list[tuple[float, float, float]] = []
    row = (_LINE + 3) / height
    for x, y, label in texts:
        half_x = min(0.5, (len(label) * _CHARACTER / 2 + 5) / width)
        half_y = min(0.5, (_LINE / 2 + 3) / height)
        x, y = min(max(x, half_x), 1 - half_x), min(max(y, half_y), 1 - half_y)
        start = y
        while any(abs(x - px) < half_x + half and abs(y - py) < row for px, py, half in placed):
            y += row
            if y > 1 - half_y:
                # No room below: it stays where it belongs.
                y = start
                break
        placed.append((x, y, half_x))
    return [(x, y) for x, y, _ in placed]


def _number(value: float, limits: tuple[float, float]) -> str:
    """Two significant digits of the range; no "-0"."""
    if abs(value) < 1e-3 * max(abs(limits[0]), abs(limits[1])):
        value = 0.0
    return f"{value:.2g}"


def _wrap(text: str, characters: int, lines: int) -> str:
    if not text:
        return ""
    parts = [w for line in text.split("\n") for w in textwrap.wrap(line, characters)]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][: max(1, characters - 1)] + "…"]
    return "\n".join(parts)
