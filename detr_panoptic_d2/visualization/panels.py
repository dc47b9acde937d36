"""Pictures beside each other, with captions and legends. All are H x W x 3 uint8 RGB."""

import functools
import math

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

_INK: Color = (25, 25, 25)
_PAPER: Color = (255, 255, 255)
_ELLIPSIS = "…"


def text_size(height: int, width: int) -> int:
    """Return the height of letters, in pixels, that suits an image of this size."""
    return int(min(max(math.sqrt(height * width) / 38, 12), 26))


def enlarge(image: np.ndarray, min_size: int) -> np.ndarray:
    """Repeat pixels a whole number of times, so that the shorter side has about ``min_size``.

    Args:
        image: H x W or H x W x 3. Returned as it is if it is large enough already.
        min_size: pixels.
    """
    times = round(min_size / min(image.shape[:2]))
    return image if times < 2 else image.repeat(times, axis=0).repeat(times, axis=1)


def with_caption(picture: np.ndarray, caption: str, size: int) -> np.ndarray:
    """Put a line of text above a picture; a text that is too long is shortened.

    Args:
        picture: H x W x 3.
        caption: one line.
        size: height of letters in pixels.
    """
    width = picture.shape[1]
    strip = Image.new("RGB", (width, round(1.8 * size)), _PAPER)
    font = _font(size)
    text = _shortened(caption, font, width - size)
    ImageDraw.Draw(strip).text(
        (size // 2, round(0.9 * size)), text, fill=_INK, font=font, anchor="lm"
    )
    return np.concatenate([np.asarray(strip), picture])


def with_legend(picture: np.ndarray, entries: list[tuple[Color, str]], size: int) -> np.ndarray:
    """Put coloured squares and their meanings below a picture, in as many rows as they need.

    Args:
        picture: H x W x 3.
        entries: colour and text of each entry.
        size: height of letters in pixels.
    """
    width, line, gap = picture.shape[1], round(1.7 * size), size // 2
    font = _font(size)
    room = width - size - 3 * gap
    texts = [_shortened(text, font, room) for _, text in entries]
    positions, x, row = [], gap, 0
    for text in texts:
        needed = size + gap + round(font.getlength(text))
        if x > gap and x + needed > width - gap:
            x, row = gap, row + 1
        positions.append((x, row))
        x += needed + 2 * gap
    strip = Image.new("RGB", (width, (row + 1) * line + gap), _PAPER)
    drawing = ImageDraw.Draw(strip)
    for (color, _), text, (x, row) in zip(entries, texts, positions, strict=True):
        middle = gap // 2 + row * line + line // 2
        top = middle - size // 2
        drawing.rectangle((x, top, x + size, top + size), fill=color, outline=_INK)
        drawing.text((x + size + gap, middle), text, fill=_INK, font=font, anchor="lm")
    return np.concatenate([picture, np.asarray(strip)])


def side_by_side(pictures: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Put pictures into one row, tops aligned; where one is lower than the others, white follows.

    Args:
        pictures: each H_i x W_i x 3.
        gap: white pixels between them.
    """
    height = max(p.shape[0] for p in pictures)
    width = sum(p.shape[1] for p in pictures) + gap * (len(pictures) - 1)
    row = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    x = 0
    for picture in pictures:
        row[: picture.shape[0], x : x + picture.shape[1]] = picture
        x += picture.shape[1] + gap
    return row


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + _ELLIPSIS) > width:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own DejaVu Sans, which is there wherever Detectron2's Visualizer works."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
