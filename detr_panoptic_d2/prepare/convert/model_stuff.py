"""Stuff that a trained model sees where the data has no label."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ...apps.predict import Predictor
from ...data.dataset_mapper import read_image
from ...data.digest import file_digest
from ...data.metadata import dataset_ids, thing_class_ids
from ...engine import setup_cfg
from ...errors import UserError
from .source import Labels, Segment

logger = logging.getLogger(__name__)


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
        UserError: the threshold is not within 0 and 1, or the model knows no stuff.
    """

    def __init__(
        self, config: str, weights: str, *, threshold: float = 0.7, opts: list[str] | None = None
    ):
        if not 0 <= threshold <= 1:
            raise UserError(f"--stuff-threshold is {threshold}, but must lie within 0 and 1.")
        opts = [*(opts or []), "MODEL.WEIGHTS", weights]
        opts += ["MODEL.DETR.TEST.SCORE_THRESH", str(float(threshold))]
        cfg = setup_cfg(config, opts)
        self._predictor = Predictor(cfg)
        metadata = self._predictor.metadata
        things = set(thing_class_ids(metadata))
        stuff = [i for i in range(len(dataset_ids(metadata))) if i not in things]
        if not stuff:
            raise UserError(f"The model of '{config}' knows no stuff classes.")
        ids, names, colors = dataset_ids(metadata), metadata.stuff_classes, metadata.stuff_colors
        self._names = {i: names[i] for i in stuff}
        self.categories = [
            {"id": ids[i], "name": names[i], "color": [int(c) for c in colors[i]]} for i in stuff
        ]
        self._threshold = threshold
        # The whole config, since each key may change what the model sees.
        self.options: dict[str, Any] = {"weights": _digest(weights), "config": cfg.dump()}

    def fill(self, path: Path, labels: Labels, categories: list[dict]) -> Labels:
        """Label more of an image.

        Args:
            path: of the image.
            labels: of the data.
            categories: of the json, with the model's stuff classes.

        Returns:
            Labels: new ones.
        """
        image = read_image(path, "RGB")
        predicted, found = self._predictor(image)["panoptic_seg"]
        predicted = predicted.cpu().numpy()
        category_ids = {c["name"]: c["id"] for c in categories if not c["isthing"]}
        result, segments = labels.map.copy(), list(labels.segments)
        for segment in found:
            category_id = category_ids.get(self._names.get(segment["category_id"]))
            if category_id is None or segment["score"] < self._threshold:
                continue
            segments.append(Segment(category_id))
            result[(labels.map == 0) & (predicted == segment["id"])] = len(segments)
        return Labels(result.astype(np.int32), segments)


def _digest(weights: str) -> str:
    """Hash a file of weights; a URL or folder is its name."""
    return file_digest(weights) if Path(weights).is_file() else weights
