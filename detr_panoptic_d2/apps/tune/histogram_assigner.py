"""Assigning the pixels of an image to many sets of queries.

Shapes: Q queries of an image, h x w the mask grid, H x W the image; A ids of the ground truth;
R ranks, G groups of pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ...modeling.mask_ops import resize_strips, values_at_pixels
from ...modeling.panoptic_inference import PixelAssigner

# Queries that are ranked at each pixel.
_NUM_RANKS = 4


class HistogramAssigner(PixelAssigner):
    """Assigns pixels to many sets of queries; the result is the histogram of truth and query.

    Pixels with the same truth and the same best queries form a group, which is assigned as one.
    The best queries are ranked within nested sets, the queries that occur in 1 or more of ``sets``;
    each set is at most half as large as the next. A set of queries is assigned with the ranks of
    the smallest one that contains it.

    Args:
        truth: H x W row numbers of the histogram.
        num_rows: their number A.
        sets: nonempty sets of queries, whose subsets are assigned.
    """

    def __init__(self, *args, truth: np.ndarray, num_rows: int, sets: Sequence[Sequence[int]]):
        super().__init__(*args)
        self._truth, self._num_rows = truth.ravel(), num_rows
        self._num_queries = num_queries = len(self.pixel_values)
        self._histograms: dict[frozenset, np.ndarray] = {}
        counts = np.bincount([q for s in sets for q in s], minlength=num_queries)
        order = np.argsort(-counts, kind="stable")
        sizes: list[int] = []
        for size in sorted({int((counts >= count).sum()) for count in counts[counts > 0]})[::-1]:
            if not sizes or 2 * size <= sizes[0]:
                sizes.insert(0, size)
        self._nested = [frozenset(order[:size].tolist()) for size in sizes]
        ranks = [np.empty((_NUM_RANKS, *self.frame.output), np.int16) for _ in sizes]
        for rows, strip in resize_strips(self.pixel_values, self.frame):
            best = _rank(strip, order[: sizes[-1]].tolist(), sizes)
            for rank, queries in zip(ranks, best, strict=True):
                rank[:, rows] = queries.cpu().numpy()
        self._groups = [self._group(rank.reshape(_NUM_RANKS, -1)) for rank in ranks]

    def _group(self, best: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return truth, best queries (G x R) and size of the groups, and each pixel's group."""
        key = self._truth.astype(np.int64)
        for queries in best:
            key = key * (self._num_queries + 1) + queries
        # There are far fewer runs of equal pixels than pixels.
        starts = np.append(0, np.flatnonzero(np.diff(key)) + 1)
        lengths = np.diff(starts, append=key.size)
        _, first, group = np.unique(key[starts], return_index=True, return_inverse=True)
        pixel, size = starts[first], np.bincount(group, weights=lengths)
        return self._truth[pixel], best[:, pixel].T, size, np.repeat(group, lengths)

    def assign(self, queries: list[int]) -> tuple[np.ndarray, list[int]]:
        """Return the histogram A x Q, and the number of pixels of each of the Q queries."""
        key = frozenset(queries)
        if key not in self._histograms:
            level = next(i for i, larger in enumerate(self._nested) if larger >= key)
            truth, best, size, group = self._groups[level]
            takes_part = np.zeros(self._num_queries + 1, bool)
            takes_part[queries] = True
            among = takes_part[best]
            rank = among.argmax(1)[:, None]
            owner = np.take_along_axis(best, rank, 1)[:, 0]
            known = np.take_along_axis(among, rank, 1)[:, 0]
            histogram = self._count(truth[known], owner[known], size[known])
            if not known.all():
                pixels = np.flatnonzero(~known[group])
                where = torch.from_numpy(pixels).to(self.pixel_values.device)
                values = values_at_pixels(self.pixel_values[queries], self.frame, where)
                owner = np.array(queries)[values.max(0).indices.cpu().numpy()]
                histogram += self._count(self._truth[pixels], owner)
            self._histograms[key] = histogram
        histogram = self._histograms[key]
        return histogram, histogram.sum(0).tolist()

    def _count(self, truth: np.ndarray, owner: np.ndarray, weights=None) -> np.ndarray:
        shape = self._num_rows, self._num_queries
        pairs = truth * self._num_queries + owner
        counts = np.bincount(pairs, weights, minlength=shape[0] * shape[1])
        return counts.astype(np.int64).reshape(shape)


def _rank(strip: torch.Tensor, order: list[int], sizes: list[int]) -> list[torch.Tensor]:
    """Return the best of the first ``sizes[i]`` queries of ``order`` at each pixel, best first.

    Args:
        strip: Q x rows x W values.

    Returns:
        for each size R x rows x W int16; Q where there are fewer than R queries.
    """
    # The bits of a float as an integer of the same order, with the query below: of equal values the
    # first query wins, as in an argmax.
    bits = (strip + 0.0).view(torch.int32)
    bits ^= bits >> 31 & 0x7FFFFFFF
    queries = torch.arange(len(strip), device=strip.device)[:, None, None]
    keys = bits.long().mul_(2**16).add_(2**16 - 1 - queries)
    lowest = torch.iinfo(torch.int64).min + (2**16 - 1 - len(strip))
    best = [torch.full_like(keys[0], lowest)] * _NUM_RANKS
    results = []
    for count, query in enumerate(order, start=1):
        key = keys[query]
        for rank in range(min(count, _NUM_RANKS)):
            best[rank], key = torch.maximum(best[rank], key), torch.minimum(best[rank], key)
        if count in sizes:
            results.append((2**16 - 1 - (torch.stack(best) & (2**16 - 1))).short())
    return results
