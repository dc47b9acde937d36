"""Stuff that a trained model sees where the data has no label."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import numpy as np

from ...data.dataset_mapper import read_image
from ...data.metadata import thing_class_ids
from ...engine import Predictor, setup_cfg
from ...errors import UserError
from .source import Item, Labels, Segment, Size, Source


class ModelStuff:
    """Fills unlabelled pixels with the stuff that a model predicts.

    The confidence of a pixel is the class score of the segment that the model gives it to. Pixels
    of predicted things, of stuff below the threshold and of nothing at all stay unlabelled. What
    the data labels is never changed.

    Args:
        config: path or name of the model's config.
        weights: its checkpoint.
        threshold: least confidence; the model's own ``MODEL.DETR.TEST.SCORE_THRESH`` is set to it.
        opts: further config keys and values.

    Raises:
        UserError: the threshold is not within 0 and 1, or the weights do not fit the model.
    """

    def __init__(self, config: str, weights: str, threshold: float, opts: list[str]):
        if not 0 <= threshold <= 1:
            raise UserError(f"--stuff-threshold is {threshold}, but must lie within 0 and 1.")
        opts = [*opts, "MODEL.WEIGHTS", weights, "MODEL.DETR.TEST.SCORE_THRESH", str(threshold)]
        self._predictor = Predictor(setup_cfg(config, opts))
        metadata = self._predictor.metadata
        things = thing_class_ids(metadata)
        self._names = {i: n for i, n in enumerate(metadata.stuff_classes) if i not in things}
        self._classes = [
            {"name": name, "isthing": 0, "color": list(metadata.stuff_colors[i])}
            for i, name in self._names.items()
        ]

    def under(self, source: Source) -> Source:
        """Return the source with the model's stuff under its labels; only this process draws it."""
        items = [replace(i, draw=partial(self._draw, source, i)) for i in source.items]
        return replace(source, classes=[*source.classes, *self._classes], items=items)

    def _draw(self, source: Source, item: Item, size: Size, things: Collection[str]) -> Labels:
        labels = item.draw(size, things)
        image = read_image(source.image_root / item.file_name, "BGR")
        predicted, found = self._predictor(image)["panoptic_seg"]
        free = np.where(labels.map == 0, predicted.cpu().numpy(), 0)
        for segment in found:
            name = self._names.get(segment["category_id"])
            if name is not None and name not in things:
                labels.segments.append(Segment(name))
                labels.map[free == segment["id"]] = len(labels.segments)
        return labels
