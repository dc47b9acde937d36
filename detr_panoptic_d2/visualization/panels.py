"""Pictures beside each other, with captions and legends. All are H x W x 3 uint8 RGB."""

import functools
import math

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

_INK: Color = (25, 25, 25)
_PAPER: Color = (255, 255, 255)
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
    times = round(min_size / min(image.shape[:2]))
    return image if times < 2 else image.repeat(times, axis=0).repeat(times, axis=1)


def with_caption(picture: np.ndarray, caption: str) -> np.ndarray:
    """Put a line of text above a picture; a text that is too long is shortened."""
    height, width = picture.shape[:2]
    size = text_size(height, width)
    strip = Image.new("RGB", (width, round(1.8 * size)), _PAPER)
    place = size // 2, round(0.9 * size)
    text = _shortened(caption, size, width - size)
    ImageDraw.Draw(strip).text(place, text, fill=_INK, font=_font(size), anchor="lm")
    return np.concatenate([np.asarray(strip), picture])


def with_legend(picture: np.ndarray, entries: list[tuple[Color, str]]) -> np.ndarray:
    """Put coloured squares and their meanings below a picture, in as many rows as they need."""
    height, width = picture.shape[:2]
    size = text_size(height, width)
    line, gap = round(1.7 * size), size // 2
    texts = [_shortened(text, size, width - size - 3 * gap) for _, text in entries]
    positions, x, row = [], gap, 0
    for text in texts:
        needed = size + gap + round(_font(size).getlength(text))
        if x > gap and x + needed > width - gap:
            x, row = gap, row + 1
        positions.append((x, row))
        x += needed + 2 * gap
    strip = Image.new("RGB", (width, (row + 1) * line + gap), _PAPER)
    drawing = ImageDraw.Draw(strip)
    for (color, _), text, (x, row) in zip(entries, texts, positions, strict=True):
        top = gap // 2 + row * line + (line - size) // 2
        drawing.rectangle((x, top, x + size, top + size), fill=color, outline=_INK)
        place = x + size + gap, top + size // 2
        drawing.text(place, text, fill=_INK, font=_font(size), anchor="lm")
    return np.concatenate([picture, np.asarray(strip)])


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Put pictures into one row, tops aligned; where one is lower than the others, white follows.

    Args:
        pictures: each H_i x W_i x 3.
    """
    height = max(p.shape[0] for p in pictures)
    width = sum(p.shape[1] for p in pictures) + _GAP * (len(pictures) - 1)
    row = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    x = 0
    for picture in pictures:
        row[: picture.shape[0], x : x + picture.shape[1]] = picture
        x += picture.shape[1] + _GAP
    return row


def _shortened(text: str, size: int, width: float) -> str:
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own DejaVu Sans, which is there wherever Detectron2's Visualizer works."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
