"""Pictures side by side, with captions and legends. All are H x W x 3 uint8 RGB."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.colors import Color

_GAP = 6


def text_size(height: int, width: int) -> int:
    """Return the height of letters in pixels for a picture of this size."""
    return int(min(max(math.sqrt(height * width) / 38, 12), 26))


def enlarge(image: np.ndarray, min_size: int) -> np.ndarray:
    """Repeat pixels by a whole factor, so that the shorter side has about ``min_size`` pixels."""
    factor = max(1, round(min_size / min(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def with_caption(picture: np.ndarray, caption: str) -> np.ndarray:
    """Put a line of text above a picture."""
    size = text_size(*picture.shape[:2])
    strip = Image.new("RGB", (picture.shape[1], 2 * size), "white")
    font = ImageFont.load_default(size)
    ImageDraw.Draw(strip).text((size // 2, size), caption, "black", font, anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def with_legend(picture: np.ndarray, entries: dict[str, Color]) -> np.ndarray:
    """Put names with colored squares below a picture, as many in a line as have room."""
    if not entries:
        return picture
    size, width = text_size(*picture.shape[:2]), picture.shape[1]
    font = ImageFont.load_default(size)
    left, line, places = size // 2, 0, []
    for name, color in entries.items():
        entry_width = int(5 * size / 2 + font.getlength(name))
        if left > size and left + entry_width > width:
            left, line = size // 2, line + 1
        places.append((left, 2 * size * line + size // 2, name, color))
        left += entry_width
    strip = Image.new("RGB", (width, 2 * size * (line + 1)), "white")
    drawing = ImageDraw.Draw(strip)
    for x, y, name, color in places:
        drawing.rectangle((x, y, x + size, y + size), fill=color, outline="black")
        drawing.text((x + 3 * size // 2, y + size // 2), name, "black", font, anchor="lm")
    return np.concatenate([picture, np.asarray(strip)])


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Put pictures into one row, with aligned tops and white gaps."""
    height = max(p.shape[0] for p in pictures)
    margins = [((0, height - p.shape[0]), (0, _GAP), (0, 0)) for p in pictures]
    padded = [np.pad(p, m, constant_values=255) for p, m in zip(pictures, margins, strict=True)]
    return np.concatenate(padded, axis=1)[:, :-_GAP]
