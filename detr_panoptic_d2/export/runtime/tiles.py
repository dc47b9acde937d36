"""Segmentation of large images in overlapping tiles.

Each tile is segmented on its own. Where tiles overlap, the segments of a pixel compete: each tile
votes for its segment with class probability times mask probability, less towards the border of the
tile. Stuff segments of one class are one segment. Things of neighboring tiles are joined if their
masks agree in the overlap.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .rule import Segments

# Two masks are one object if their IoU within the overlap of the tiles is greater than this. A
# segment has such an IoU with at most one segment of the other tile.
_JOIN_IOU = 0.5


class Tile(NamedTuple):
    """The result of one tile.

    ``confidence`` is class probability times mask probability of each pixel's segment, times 255.
    """

    ids: np.ndarray  # H x W integers; 0 is void, i is the i-th segment
    segments: Segments  # with category_id, isthing and score
    confidence: np.ndarray  # H x W uint8


class _NumberedTile(NamedTuple):
    """A tile at its position in the image. No two segments of all tiles have the same number."""

    top: int
    left: int
    numbers: np.ndarray  # H x W int32; 0 is void
    votes: np.ndarray  # H x W uint8


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return the first pixel of each tile along a side of ``length`` pixels.

    A tile shares at least the part ``overlap`` (from 0 up to 1) with the next one.
    """
    if length <= tile:
        return [0]
    count = 1 + math.ceil((length - tile) / max(1, tile * (1 - overlap)))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tile_corners(height: int, width: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """Return row and column of the first pixel of each tile of an image."""
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    return list(itertools.product(rows, columns))


def segment_tiled(
    segment: Callable[[np.ndarray], Tile], image: np.ndarray, tile: int, overlap: float
) -> tuple[np.ndarray, Segments]:
    """Segment an H x W x 3 image in tiles; one tile gives the result of ``segment``.

    Returns:
        H x W int32 ids (0 is void), and the segments with ids from 1 and their ``area``.
    """
    height, width = image.shape[:2]
    corners = tile_corners(height, width, tile, overlap)
    if len(corners) == 1:
        return segment(image)[:2]
    margin = max(1, round(tile * overlap))
    tiles: list[_NumberedTile] = []
    segments: Segments = [{}]  # by number
    for top, left in corners:
        ids, tile_segments, confidence = segment(image[top : top + tile, left : left + tile])
        weight_y = _border_weights(top, ids.shape[0], height, margin)
        votes = confidence * np.outer(weight_y, _border_weights(left, ids.shape[1], width, margin))
        numbers = np.where(ids > 0, ids + (len(segments) - 1), 0).astype(np.int32)
        tiles.append(_NumberedTile(top, left, numbers, votes.round().astype(np.uint8)))
        segments += tile_segments
    joined = _join(tiles, segments)
    ids = _vote([t._replace(numbers=joined[t.numbers]) for t in tiles], (height, width))
    areas = np.bincount(ids.ravel(), minlength=len(segments))
    table, merged = np.zeros(len(segments), np.int32), []
    for number in (areas[1:].nonzero()[0] + 1).tolist():
        table[number] = len(merged) + 1
        score = max(segments[i]["score"] for i in (joined == number).nonzero()[0])
        values = {"id": len(merged) + 1, "area": int(areas[number]), "score": score}
        merged.append({**segments[number], **values})
    return table[ids], merged


def _border_weights(start: int, length: int, total: int, margin: int) -> np.ndarray:
    """Return a weight per row or column of a tile: 1 inside, less towards neighboring tiles."""
    pixel = np.arange(length)
    before = pixel + 1 if start else np.full(length, margin)
    after = length - pixel if start + length < total else np.full(length, margin)
    return np.minimum(before, after).clip(max=margin) / margin


def _overlap(tile: _NumberedTile, other: _NumberedTile) -> tuple[slice, slice]:
    """Return the rows and columns of ``tile`` that ``other`` covers as well."""
    return tuple(
        slice(max(0, b - a), max(0, min(n, b + m - a)))
        for a, b, n, m in zip(
            tile[:2], other[:2], tile.numbers.shape, other.numbers.shape, strict=True
        )
    )


def _join(tiles: list[_NumberedTile], segments: Segments) -> np.ndarray:
    """Return for the number of each segment the lowest number of those that it is joined to."""
    joined, stuff = np.arange(len(segments), dtype=np.int32), {}
    for number, segment in enumerate(segments[1:], start=1):
        if not segment["isthing"]:
            joined[number] = stuff.setdefault(segment["category_id"], number)
    for tile, other in itertools.combinations(tiles, 2):
        first = tile.numbers[_overlap(tile, other)].astype(np.int64).ravel()
        second = other.numbers[_overlap(other, tile)].ravel()
        areas = np.bincount(first), np.bincount(second)
        pairs, counts = np.unique(first * len(segments) + second, return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            a, b = divmod(pair, len(segments))
            if not (a and b and segments[a]["isthing"]):
                continue
            iou = count / (areas[0][a] + areas[1][b] - count)
            if iou > _JOIN_IOU and segments[a]["category_id"] == segments[b]["category_id"]:
                low, high = sorted((joined[a], joined[b]))
                joined[joined == high] = low
    return joined


def _vote(tiles: list[_NumberedTile], size: tuple[int, int]) -> np.ndarray:
    """Return the number with the greatest sum of votes at each pixel, H x W int32."""
    result, most_votes = np.zeros(size, np.int32), np.full(size, -1, np.int32)
    for tile in tiles:
        total = tile.votes.astype(np.int32)
        for other in tiles:
            ours, theirs = _overlap(tile, other), _overlap(other, tile)
            if other is not tile and total[ours].size:
                same = tile.numbers[ours] == other.numbers[theirs]
                total[ours] += np.where(same, other.votes[theirs], 0)
        total[tile.numbers == 0] = -1
        area = tuple(slice(x, x + n) for x, n in zip(tile[:2], total.shape, strict=True))
        wins = total > most_votes[area]
        result[area][wins], most_votes[area][wins] = tile.numbers[wins], total[wins]
    return result
