"""Pictures beside each other, with captions. All are H x W x 3 uint8 RGB."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

_GAP = 6


def text_size(height: int, width: int) -> int:
    """Return the height of letters, in pixels, that suits a picture of this size."""
    return int(min(max(math.sqrt(height * width) / 38, 12), 26))


def enlarge(image: np.ndarray, min_size: int) -> np.ndarray:
    """Repeat pixels a whole number of times, so that the shorter side has about ``min_size``.

    Args:
        image: H x W or H x W x 3.
        min_size: pixels.
    """
    times = max(1, round(min_size / min(image.shape[:2])))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def with_caption(picture: np.ndarray, caption: str) -> np.ndarray:
    """Put a line of text above a picture."""
    return np.concatenate([_line(picture, caption, None), picture])


def with_legend(picture: np.ndarray, entries: list[tuple[Color, str]]) -> np.ndarray:
    """Put coloured squares and their meanings below a picture, one in a line."""
    return np.concatenate([picture, *(_line(picture, name, color) for color, name in entries)])


def _line(picture: np.ndarray, text: str, color: Color | None) -> np.ndarray:
    """A line of text as wide as a picture, after a square of the colour."""
    size = text_size(*picture.shape[:2])
    strip = Image.new("RGB", (picture.shape[1], 2 * size), "white")
    drawing, left = ImageDraw.Draw(strip), size // 2
    if color is not None:
        drawing.rectangle((left, left, left + size, left + size), fill=color, outline="black")
        left += 3 * size // 2
    font = ImageFont.load_default(size)
    drawing.text((left, size), text, fill="black", font=font, anchor="lm")
    return np.asarray(strip)


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Put pictures into one row, tops aligned, white between and below them.

    Args:
        pictures: each H_i x W_i x 3.
    """
    height = max(p.shape[0] for p in pictures)
    margins = [((0, height - p.shape[0]), (0, _GAP), (0, 0)) for p in pictures]
    padded = [np.pad(p, m, constant_values=255) for p, m in zip(pictures, margins, strict=True)]
    return np.concatenate(padded, axis=1)[:, :-_GAP]
