"""Colors of classes, far apart in CIE Lab."""

import colorsys
import functools
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial.distance import cdist

Color = tuple[int, int, int]


def choose_colors(
    isthing: Sequence[bool], existing: Sequence[Color | None] | None = None
) -> list[Color]:
    """Choose a color for each class: bright for things, muted for stuff.

    Each is as far as possible from existing colors, from those of earlier classes, and from black,
    grey and white.

    Args:
        isthing: for each class, in order.
        existing: colors that classes have already; None: the class has none.
    """
    existing = existing or [None] * len(isthing)
    used = to_lab([(0, 0, 0), (128, 128, 128), (255, 255, 255), *filter(None, existing)])
    colors: list[Color] = []
    for thing, color in zip(isthing, existing, strict=True):
        if color is None:
            candidates, lab = _candidates(bool(thing))
            best = cdist(lab, used).min(axis=1).argmax()
            color, used = candidates[best].tolist(), np.vstack([used, lab[best]])
        colors.append((color[0], color[1], color[2]))
    return colors


@functools.cache
def shades(color: Color) -> list[Color]:
    """Return variants of a class color for the objects of the class, most different ones first.

    The first is the color itself. The others are lighter or darker and have a slightly other hue.
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    variants = [color]
    for turn in (-0.04, 0, 0.04):
        base = 255 * np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
        for amount in np.linspace(-0.4, 0.55, 8):
            mixed = base + abs(amount) * (255 * (amount > 0) - base)
            variants.append(tuple(mixed.round().astype(int).tolist()))
    lab, order = to_lab(variants), [0]
    while len(order) < len(variants):
        order.append(int(cdist(lab, lab[order]).min(axis=1).argmax()))
    return [variants[i] for i in order]


def to_lab(colors: Sequence[Color] | np.ndarray) -> np.ndarray:
    """Convert sRGB colors N x 3 from 0 to 255 to CIE Lab; its lightness is from 0 to 100."""
    return cv2.cvtColor(np.array([colors], dtype=np.float32) / 255, cv2.COLOR_RGB2Lab)[0]


@functools.cache
def _candidates(thing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors that things or stuff may get, N x 3, in sRGB and in Lab."""
    levels = np.arange(0, 256, 17)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_lab(colors)
    chroma, lightness = np.hypot(lab[:, 1], lab[:, 2]), lab[:, 0]
    if thing:
        suitable = (chroma > 50) & (lightness > 42) & (lightness < 85)
    else:
        suitable = (chroma > 8) & (chroma < 30) & (lightness > 25) & (lightness < 88)
    return colors[suitable], lab[suitable]
