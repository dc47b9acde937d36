"""Fill unlabelled pixels with the stuff that a trained model predicts."""

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

    The confidence of a pixel is the class score of its predicted segment. Pixels of predicted
    things, of stuff below the threshold and of void stay unlabelled. Labels of the data are never
    changed.

    Args:
        config: path or name of the model's config.
        weights: its checkpoint.
        threshold: minimum confidence, from 0 to 1. It replaces
            ``MODEL.DETR.TEST.SCORE_THRESH`` of the config.
        opts: further config keys and values.

    Raises:
        UserError: the threshold is not from 0 to 1, or the weights do not fit the model.
    """

    def __init__(self, config: str, weights: str, threshold: float, opts: list[str]):
        if not 0 <= threshold <= 1:
            raise UserError(f"--stuff-threshold is {threshold}, but must be from 0 to 1.")
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
        """Return the source with the model's stuff under its labels. It cannot be pickled."""
        items = [replace(i, draw=partial(self._draw, source, i)) for i in source.items]
        return replace(source, classes=[*source.classes, *self._classes], items=items)

    def _draw(self, source: Source, item: Item, size: Size, things: Collection[str]) -> Labels:
        labels = item.draw(size, things)
        image = read_image(source.image_root / item.file_name, "BGR")
        predicted_ids, segments = self._predictor(image)["panoptic_seg"]
        free_ids = np.where(labels.map == 0, predicted_ids.cpu().numpy(), 0)
        for segment in segments:
            name = self._names.get(segment["category_id"])
            if name is not None and name not in things:
                labels.segments.append(Segment(name))
                labels.map[free_ids == segment["id"]] = len(labels.segments)
        return labels
