"""Colors of classes that are far apart in a perceptual color space.

Distances are Euclidean in Oklab (Ottosson 2020, https://bottosson.github.io/posts/oklab), for
normal vision and for deuteranopia (Machado et al. 2009, table 1) together.
"""

import colorsys
import functools
from collections.abc import Sequence

import numpy as np

Color = tuple[int, int, int]

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)


def choose_colors(
    isthing: Sequence[bool], given: Sequence[Color | None] | None = None
) -> list[Color]:
    """Choose a color for each class: bright for things, muted for stuff.

    Each color is as far as possible from the given ones, from those of all earlier classes, and
    from black, grey and white.

    Args:
        isthing: for each class, in order.
        given: colors that classes have already; None: the class has none.
    """
    given = given or [None] * len(isthing)
    fixed = [(0, 0, 0), (128, 128, 128), (255, 255, 255), *(c for c in given if c)]
    kinds = {thing: _candidates(thing) for thing in (True, False)}
    distances = {
        thing: np.linalg.norm(places[:, None] - _vision(np.array(fixed)), axis=2).min(axis=1)
        for thing, (_, places) in kinds.items()
    }
    colors: list[Color] = []
    for thing, color in zip(map(bool, isthing), given, strict=True):
        if color is None:
            candidates, candidate_places = kinds[thing]
            best = int(distances[thing].argmax())
            color = candidates[best].tolist()
            for kind, (_, places) in kinds.items():
                new = np.linalg.norm(places - candidate_places[best], axis=1)
                distances[kind] = np.minimum(distances[kind], new)
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
    places = _vision(np.array(variants))
    order, distances = [0], np.linalg.norm(places - places[0], axis=1)
    while len(order) < len(variants):
        order.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(places - places[order[-1]], axis=1))
        distances[order] = -1
    return [variants[i] for i in order]


def to_oklab(colors: np.ndarray) -> np.ndarray:
    """Convert sRGB colors N x 3 from 0 to 255 to Oklab."""
    return _linear_to_oklab(_to_linear(colors))


def _to_linear(colors: np.ndarray) -> np.ndarray:
    c = np.asarray(colors) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _linear_to_oklab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(linear @ _TO_LMS.T) @ _TO_OKLAB.T


def _vision(colors: np.ndarray) -> np.ndarray:
    """Return places N x 6: Oklab as seen with normal vision and with deuteranopia."""
    linear = _to_linear(colors)
    deuteranopia = np.clip(linear @ _DEUTERANOPIA.T, 0, 1)
    return np.concatenate([_linear_to_oklab(linear), _linear_to_oklab(deuteranopia)], axis=1)


@functools.cache
def _candidates(thing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors that things or stuff may get, N x 3, and their places."""
    levels = np.arange(0, 256, 15)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, a, b = to_oklab(colors).T
    chroma = np.hypot(a, b)
    if thing:
        suitable = (chroma > 0.14) & (lightness > 0.5) & (lightness < 0.87)
    else:
        suitable = (chroma > 0.02) & (chroma < 0.08) & (lightness > 0.35) & (lightness < 0.9)
    return colors[suitable], _vision(colors[suitable])
