"""Stuff that a trained model sees where the data has no label."""

from pathlib import Path

import numpy as np
from detectron2.engine import DefaultPredictor

from ...checkpoint.checkpointer import PanopticCheckpointer
from ...data.dataset_mapper import read_image
from ...data.metadata import dataset_ids, thing_class_ids
from ...engine import setup_cfg
from ...errors import UserError
from .source import Labels, Segment


class ModelStuff:
    """Fills unlabelled pixels with the stuff that a model predicts.

    The confidence of a pixel is the class score of the segment that the model gives it to. Pixels
    of predicted things, of stuff below the threshold and of nothing at all stay unlabelled. What
    the data labels is never changed. The model's stuff classes join the data set's, by name; those
    that are things there are left out.

    Args:
        config: path or name of the model's config.
        weights: its checkpoint.
        threshold: least confidence; the model's own ``MODEL.DETR.TEST.SCORE_THRESH`` is set to it.
        opts: further config keys and values.

    Raises:
        UserError: the threshold is not within 0 and 1, the weights do not fit the model, or it
            knows no stuff.
    """

    def __init__(
        self, config: str, weights: str, *, threshold: float = 0.7, opts: list[str] | None = None
    ):
        if not 0 <= threshold <= 1:
            raise UserError(f"--stuff-threshold is {threshold}, but must lie within 0 and 1.")
        # The weights are read below: Detectron2's own reader knows fewer kinds of them.
        opts = [*(opts or []), "MODEL.WEIGHTS", ""]
        opts += ["MODEL.DETR.TEST.SCORE_THRESH", str(float(threshold))]
        self._predictor = DefaultPredictor(setup_cfg(config, opts))
        PanopticCheckpointer(self._predictor.model).load(weights, complete=True)
        metadata = self._predictor.metadata
        things = set(thing_class_ids(metadata))
        ids, names, colors = dataset_ids(metadata), metadata.stuff_classes, metadata.stuff_colors
        self._names = {i: names[i] for i in range(len(ids)) if i not in things}
        if not self._names:
            raise UserError(f"The model of '{config}' knows no stuff classes.")
        self.categories = [
            {"id": ids[i], "name": name, "color": [int(c) for c in colors[i]]}
            for i, name in self._names.items()
        ]
        self._threshold = threshold

    def fill(self, path: Path, labels: Labels, categories: list[dict]) -> Labels:
        """Label more of an image.

        Args:
            path: of the image.
            labels: of the data.
            categories: of the json, with the model's stuff classes.

        Returns:
            Labels: new ones.
        """
        predicted, found = self._predictor(read_image(path, "BGR"))["panoptic_seg"]
        predicted = predicted.cpu().numpy()
        stuff = {c["name"] for c in categories if not c["isthing"]}
        result, segments = labels.map.copy(), list(labels.segments)
        for segment in found:
            name = self._names.get(segment["category_id"])
            if name not in stuff or segment["score"] < self._threshold:
                continue
            segments.append(Segment(name))
            result[(labels.map == 0) & (predicted == segment["id"])] = len(segments)
        return Labels(result.astype(np.int32), segments)
