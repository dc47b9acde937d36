"""Look at predictions while the model trains."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.engine import HookBase
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.atomic import atomic_file
from ..data.dataset_mapper import PanopticDatasetMapper, read_image
from ..visualization.draw import draw_beside_ground_truth, limit_size, read_ground_truth

logger = logging.getLogger(__name__)

# Longer side of each of the three pictures, in pixels.
_MAX_SIZE = 1000


class PanopticVisualizationHook(HookBase):
    """Draw ground truth and prediction of the same few validation images every ``VIS_PERIOD``.

    Pictures go to TensorBoard (``predictions/<image>``) and, as
    ``OUTPUT_DIR/pictures/<image>/iter_<iteration>.jpg``, to the disk. A training has the same
    losses with it and without, because each iteration sets its random seed. If it fails, the
    traceback is logged and the training goes on. For the main process only, before the hook that
    writes the metrics.

    Args:
        cfg: ``VIS_PERIOD``, ``TEST.VIS_IMAGES``, ``DATASETS.TEST`` (the first one is drawn) and
            ``OUTPUT_DIR``.
        model: the model, distributed or not.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        self._cfg = cfg
        # Inference of one process alone: without the wrapper, whose forward may wait for others.
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._folder = Path(cfg.OUTPUT_DIR, "pictures")
        self._items: list[dict[str, Any]] | None = None

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._cfg.VIS_PERIOD and done != self.trainer.max_iter:
            return
        self._model.eval()
        try:
            with torch.no_grad():
                self._draw_all()
        except Exception:
            # Whatever it is, pictures are not worth a training of days.
            logger.exception(
                "No pictures at iteration %d; the training goes on. VIS_PERIOD 0 turns them off.",
                self.trainer.iter,
            )
        finally:
            self._model.train()

    def _draw_all(self) -> None:
        if self._items is None:
            self._items = self._choose()
        mapper = PanopticDatasetMapper(self._cfg, is_train=False)
        metadata = MetadataCatalog.get(self._cfg.DATASETS.TEST[0])
        for number, item in enumerate(self._items):
            output = self._model([mapper(item)])[0]["panoptic_seg"]
            image = read_image(item["file_name"], "RGB")
            image, ground_truth, prediction = limit_size(
                _MAX_SIZE, image, read_ground_truth(item), output
            )
            picture = draw_beside_ground_truth(image, ground_truth, prediction, metadata)
            stem = re.sub(r"[^\w.-]", "_", Path(item["file_name"]).stem)
            self._write(f"{number:02d}_{stem}", picture)

    def _choose(self) -> list[dict[str, Any]]:
        """Return images from all over the set, the same ones in every run."""
        name = self._cfg.DATASETS.TEST[0]
        items = get_detection_dataset_dicts(name, filter_empty=False)
        count = min(self._cfg.TEST.VIS_IMAGES, len(items))
        return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]

    def _write(self, name: str, picture: np.ndarray) -> None:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / f"iter_{self.trainer.iter:07d}.jpg", "wb") as f:
            Image.fromarray(picture).save(f, format="JPEG", quality=90, subsampling=0)
        self.trainer.storage.put_image(f"predictions/{name}", picture.transpose(2, 0, 1))


def build_visualization_hook(cfg: CfgNode, model: nn.Module) -> PanopticVisualizationHook | None:
    """Return the hook that the config asks for, None (with the reason in the log) without one.

    Args:
        cfg: see :class:`PanopticVisualizationHook`.
        model: the model, distributed or not.
    """
    if cfg.VIS_PERIOD <= 0 or cfg.TEST.VIS_IMAGES <= 0:
        return None
    if not (cfg.DATASETS.TEST and cfg.MODEL.MASK_ON and cfg.MODEL.DETR.TEST.PANOPTIC_ON):
        logger.warning(
            "VIS_PERIOD is without effect: pictures need a data set in DATASETS.TEST, "
            "MODEL.MASK_ON and MODEL.DETR.TEST.PANOPTIC_ON."
        )
        return None
    return PanopticVisualizationHook(cfg, model)
