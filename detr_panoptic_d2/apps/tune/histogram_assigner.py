"""Assigning the pixels of an image to many sets of queries.

Shapes: Q queries of an image, h x w the mask grid, H x W the image; A ids of the ground truth.
"""

import numpy as np
import torch

from ...modeling.mask_ops import resize_strips, values_at_pixels
from ...modeling.panoptic_inference import PixelAssigner

# Maps that are kept of an image, and queries that are kept of a pixel.
_MAX_CACHED_MAPS, _NUM_RANKS = 24, 4


class HistogramAssigner(PixelAssigner):
    """Assigns pixels to many sets of queries, and keeps the histogram of truth and query for each.

    The map of a set is that of a larger set, except for the pixels of the queries that are missing.
    These go to the best of the remaining queries, which is most often the second or third best.

    Args:
        truth: flat H x W row numbers of the histogram.
        num_rows: their number A.
    """

    def __init__(self, *args, truth: torch.Tensor, num_rows: int):
        super().__init__(*args)
        self._truth, self._num_rows = truth, num_rows
        self._num_queries, num_ranks = len(self.pixel_values), min(_NUM_RANKS, len(args[0]))
        self._mask_areas: dict[tuple[int, ...], int] = {}
        # The best queries of each pixel, best first.
        self._best = truth.new_empty((num_ranks, *self.frame.output), dtype=torch.int16)
        for part, strip in resize_strips(self.pixel_values, self.frame):
            for rank in range(num_ranks):
                queries = strip.max(0, keepdim=True).indices
                self._best[rank, part] = queries[0]
                strip.scatter_(0, queries, -torch.inf)
        self._best = self._best.flatten(1)
        everyone = frozenset(range(self._num_queries))
        # By set of queries. The first one is never removed.
        self._maps = {everyone: (self._best[0], self._count(truth, self._best[0]))}

    def assign(self, queries: list[int]) -> tuple[np.ndarray, list[int]]:
        """Return the histogram A x Q, and the number of pixels of each of the Q queries."""
        key = frozenset(queries)
        if key not in self._maps:
            missing = {larger: list(larger - key) for larger in self._maps if larger > key}
            larger = min(missing, key=lambda k: self._maps[k][1][:, missing[k]].sum())
            owner, histogram = self._maps[larger]
            takes_part = torch.zeros(self._num_queries, dtype=torch.bool, device=owner.device)
            takes_part[queries] = True
            pixels = (~takes_part.index_select(0, owner.int())).nonzero()[:, 0]
            new = self._best_of(queries, takes_part, pixels)
            histogram = histogram + self._count(self._truth[pixels], new)
            histogram[:, missing[larger]] = 0
            if len(self._maps) > _MAX_CACHED_MAPS:
                self._maps.pop(list(self._maps)[1])
            self._maps[key] = owner.scatter(0, pixels, new), histogram
        histogram = self._maps[key][1]
        return histogram, histogram.sum(0).tolist()

    def _best_of(
        self, queries: list[int], takes_part: torch.Tensor, pixels: torch.Tensor
    ) -> torch.Tensor:
        """Return the best of some queries at some pixels, int16."""
        best = self._best[:, pixels]
        among = takes_part.index_select(0, best.flatten().int()).reshape(best.shape)
        result = best[-1]
        for rank in reversed(range(len(best) - 1)):
            result = torch.where(among[rank], best[rank], result)
        others = (~among.any(0)).nonzero()[:, 0]
        values = values_at_pixels(self.pixel_values[queries], self.frame, pixels[others])
        indices = torch.tensor(queries, dtype=torch.int16, device=pixels.device)
        return result.scatter(0, others, indices[values.max(0).indices])

    def mask_area(self, queries: list[int]) -> int:
        key = tuple(queries)
        if key not in self._mask_areas:
            self._mask_areas[key] = super().mask_area(queries)
        return self._mask_areas[key]

    def _count(self, truth: torch.Tensor, owner: torch.Tensor) -> np.ndarray:
        size = self._num_rows, self._num_queries
        pairs = truth * self._num_queries + owner.long()
        return torch.bincount(pairs, minlength=size[0] * size[1]).reshape(size).cpu().numpy()
