"""Segmentation of large images in overlapping tiles.

Each tile is segmented on its own. Where tiles overlap, the segments of a pixel compete: each tile
votes for its segment with class probability times mask probability, less towards the border of the
tile. Stuff segments of one class are one segment. Things of neighboring tiles are joined if their
masks agree in the overlap.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .rule import Segments

# Two masks are one object if their IoU within the overlap of the tiles is greater than this.
_JOIN_IOU = 0.5


class Tile(NamedTuple):
    """The result of one tile.

    Attributes:
        ids: H x W integers; 0 is void.
        segments: with ``id``, ``category_id``, ``isthing`` and ``score``.
        confidence: H x W uint8, class probability times mask probability of each pixel's segment,
            times 255.
    """

    ids: np.ndarray
    segments: Segments
    confidence: np.ndarray


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return the first pixel of each tile along one side of an image.

    Args:
        length: of the side, in pixels.
        tile: side of the tiles, in pixels.
        overlap: smallest part of a tile, from 0 up to 1, that the next tile shares.
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
    """Segment an image in tiles; an image that is one tile gives the result of ``segment``.

    Args:
        segment: segments one tile.
        image: H x W x 3.
        tile: side of the tiles, in pixels.
        overlap: see :func:`tile_starts`.

    Returns:
        H x W int32 ids (0 is void), and the segments with ids from 1 and their ``area``.
    """
    height, width = image.shape[:2]
    corners = tile_corners(height, width, tile, overlap)
    if len(corners) == 1:
        ids, segments, _ = segment(image)
        return ids, segments
    margin, merger = max(1, round(tile * overlap)), _Merger()
    for top, left in corners:
        part = image[top : top + tile, left : left + tile]
        result = segment(part)
        weight = np.outer(
            _border_weights(top, part.shape[0], height, margin),
            _border_weights(left, part.shape[1], width, margin),
        )
        votes = (result.confidence * weight).round().astype(np.uint8)
        merger.add(top, left, result, votes)
    return merger.merge(height, width)


def _border_weights(start: int, length: int, total: int, margin: int) -> np.ndarray:
    """Return a weight per row or column of a tile: 1 inside, less towards neighboring tiles."""
    pixel = np.arange(length)
    before = pixel + 1 if start else np.full(length, margin)
    after = length - pixel if start + length < total else np.full(length, margin)
    return np.minimum(before, after).clip(max=margin) / margin


class _Merger:
    """Collects tiles and merges them. It holds 5 bytes for each pixel of each tile."""

    def __init__(self):
        # Of each tile: top, left, H x W int32 numbers of segments (0 is void), H x W uint8 votes.
        self._tiles: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        # By number: the segment, and the number that it was joined to.
        self._segments: Segments = [{}]
        self._joined = [0]
        self._stuff: dict[int, int] = {}

    def add(self, top: int, left: int, tile: Tile, votes: np.ndarray) -> None:
        """Add a tile and join its segments to those of earlier tiles."""
        table = np.zeros(max([0, *(s["id"] for s in tile.segments)]) + 1, np.int32)
        for segment in tile.segments:
            number = table[segment["id"]] = len(self._segments)
            self._segments.append(segment)
            if segment["isthing"]:
                self._joined.append(number)
            else:
                self._joined.append(self._stuff.setdefault(segment["category_id"], number))
        numbers = table[tile.ids]
        height, width = numbers.shape
        for other_top, other_left, others, _ in self._tiles:
            y, x = max(top, other_top), max(left, other_left)
            bottom = min(top + height, other_top + others.shape[0])
            right = min(left + width, other_left + others.shape[1])
            if y < bottom and x < right:
                ours = numbers[y - top : bottom - top, x - left : right - left]
                theirs = others[
                    y - other_top : bottom - other_top, x - other_left : right - other_left
                ]
                self._join_things(theirs, ours)
        self._tiles.append((top, left, numbers, votes))

    def _join_things(self, first: np.ndarray, second: np.ndarray) -> None:
        """Join things of two tiles, given the numbers of their segments in the overlap.

        A segment has an IoU above 0.5 with at most one segment of the other tile.
        """
        size = len(self._segments)
        pairs, counts = np.unique(first.astype(np.int64) * size + second, return_counts=True)
        first_areas = np.bincount(first.ravel(), minlength=size)
        second_areas = np.bincount(second.ravel(), minlength=size)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            a, b = divmod(pair, size)
            if a == 0 or b == 0 or not self._segments[a]["isthing"]:
                continue
            same_class = self._segments[a]["category_id"] == self._segments[b]["category_id"]
            if same_class and count / (first_areas[a] + second_areas[b] - count) > _JOIN_IOU:
                roots = sorted((self._root(a), self._root(b)))
                self._joined[roots[1]] = roots[0]

    def _root(self, number: int) -> int:
        while self._joined[number] != number:
            number = self._joined[number]
        return number

    def merge(self, height: int, width: int) -> tuple[np.ndarray, Segments]:
        """Return ids and segments of the whole image."""
        roots = np.array([self._root(number) for number in range(len(self._segments))], np.int32)
        ids = np.zeros((height, width), np.int32)
        for y, bottom, x, right in self._zones():
            numbers, votes = [], []
            for top, left, tile_numbers, tile_votes in self._tiles:
                tile_height, tile_width = tile_numbers.shape
                if (
                    top <= y
                    and bottom <= top + tile_height
                    and left <= x
                    and right <= left + tile_width
                ):
                    zone = slice(y - top, bottom - top), slice(x - left, right - left)
                    numbers.append(roots[tile_numbers[zone]])
                    votes.append(tile_votes[zone])
            ids[y:bottom, x:right] = _vote(numbers, votes)
        areas = np.bincount(ids.ravel(), minlength=len(roots))
        scores: dict[int, float] = {}
        for root, segment in zip(roots.tolist()[1:], self._segments[1:], strict=True):
            scores[root] = max(segment["score"], scores.get(root, 0.0))
        table, segments = np.zeros(len(roots), np.int32), []
        for root in sorted(scores):
            if areas[root]:
                table[root] = len(segments) + 1
                values = {"id": len(segments) + 1, "area": int(areas[root]), "score": scores[root]}
                segments.append({**self._segments[root], **values})
        return table[ids], segments

    def _zones(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield rectangles (top, bottom, left, right) that the same tiles cover everywhere."""
        height, width = self._tiles[0][2].shape
        rows = sorted({y for top, *_ in self._tiles for y in (top, top + height)})
        columns = sorted({x for _, left, *_ in self._tiles for x in (left, left + width)})
        for row, column in itertools.product(itertools.pairwise(rows), itertools.pairwise(columns)):
            yield *row, *column


def _vote(numbers: list[np.ndarray], votes: list[np.ndarray]) -> np.ndarray:
    """Return the segment with the greatest sum of votes at each pixel."""
    if len(numbers) == 1:
        return numbers[0]
    own = np.stack(numbers)
    totals = np.zeros(own.shape, np.int32)
    for other, vote in zip(numbers, votes, strict=True):
        totals += np.where(own == other, vote, 0)
    totals[own == 0] = -1
    return np.take_along_axis(own, totals.argmax(0)[None], 0)[0]
