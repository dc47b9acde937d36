"""Trainer hooks. See also :class:`.train_loader.ReproducibleSteps`."""

import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import BestCheckpointer
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import PanopticCheckpointer
from ..data.dataset_mapper import PanopticDatasetMapper, read_image
from ..files import atomic_file
from ..visualization.draw import draw_beside_ground_truth, limit_size, read_ground_truth

logger = logging.getLogger(__name__)

# Longer side of each of the three pictures, in pixels.
_MAX_SIZE = 1000


class BestCheckpoint(BestCheckpointer):
    """Detectron2's ``BestCheckpointer`` over interruptions.

    Beside ``model_best.pth`` it writes ``model_best.json`` with metric, value and iteration, and
    reads it when training is resumed. Resuming never starts from the best checkpoint.

    Args:
        eval_period: the evaluation hook's period.
        checkpointer: what writes the checkpoint.
        metric: name in the event storage; larger is better.
    """

    def __init__(self, eval_period: int, checkpointer: PanopticCheckpointer, metric: str):
        super().__init__(eval_period, SimpleNamespace(save=self._save), metric)
        self._save_untagged = checkpointer.save_untagged
        self._file = Path(checkpointer.save_dir, "model_best.json")

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not self._file.is_file():
            return
        best = json.loads(self._file.read_text(encoding="utf-8"))
        # A later one will come again: the training goes on from a checkpoint before it.
        if best["metric"] == self._val_metric and best["iteration"] < self.trainer.start_iter:
            self._update_best(best["value"], best["iteration"])

    def _save(self, name: str, iteration: int) -> None:
        value, _ = self.trainer.storage.latest()[self._val_metric]
        # After the training, metrics have the number of the iteration that would come next.
        iteration = min(iteration, self.trainer.max_iter - 1)
        self._save_untagged(name, iteration=iteration)
        best = {"metric": self._val_metric, "value": float(value), "iteration": iteration}
        with atomic_file(self._file) as f:
            json.dump(best, f)


class PanopticVisualizationHook(HookBase):
    """Draw ground truth and prediction of the same few validation images every ``VIS_PERIOD``.

    Pictures go to TensorBoard (``predictions/<image>``) and to
    ``OUTPUT_DIR/pictures/<image>/iter_<iteration>.jpg``. Losses are those of a training without it,
    because each iteration sets its random seed. If it fails, the traceback is logged and the
    training goes on. For the main process only, before the hook that writes the metrics.

    Args:
        cfg: ``VIS_PERIOD``, ``TEST.VIS_IMAGES``, ``DATASETS.TEST`` (the first one is drawn) and
            ``OUTPUT_DIR``.
        model: the model, distributed or not.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        self._cfg = cfg
        # Without the wrapper, whose forward may wait for other processes.
        self._model = model.module if isinstance(model, DistributedDataParallel) else model

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._cfg.VIS_PERIOD and done != self.trainer.max_iter:
            return
        self._model.eval()
        try:
            with torch.no_grad():
                self._draw()
        except Exception:
            # Whatever it is, pictures are not worth a training of days.
            logger.exception("No pictures at iteration %d; the training goes on", self.trainer.iter)
        finally:
            self._model.train()

    def _draw(self) -> None:
        name = self._cfg.DATASETS.TEST[0]
        mapper = PanopticDatasetMapper(self._cfg, is_train=False)
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
        # From all over the set, always the same ones.
        count = min(self._cfg.TEST.VIS_IMAGES, len(dicts))
        for number, index in enumerate(np.linspace(0, len(dicts) - 1, count).round().astype(int)):
            item = dicts[index]
            output = self._model([mapper(item)])[0]["panoptic_seg"]
            image, ground_truth, prediction = limit_size(
                _MAX_SIZE, read_image(item["file_name"], "RGB"), read_ground_truth(item), output
            )
            picture = draw_beside_ground_truth(
                image, ground_truth, prediction, MetadataCatalog.get(name)
            )
            stem = re.sub(r"[^\w.-]", "_", Path(item["file_name"]).stem)
            self._write(f"{number:02d}_{stem}", picture)

    def _write(self, name: str, picture: np.ndarray) -> None:
        folder = Path(self._cfg.OUTPUT_DIR, "pictures", name)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / f"iter_{self.trainer.iter:07d}.jpg", "wb") as f:
            Image.fromarray(picture).save(f, format="JPEG", quality=90, subsampling=0)
        self.trainer.storage.put_image(f"predictions/{name}", picture.transpose(2, 0, 1))


def record_memory(trainer: TrainerBase) -> None:
    """Record ``max_memory_mib``, the highest use so far: of PyTorch on a GPU, else (on Linux) of
    the process. As often as metrics are written. For Detectron2's ``CallbackHook``."""
    if (trainer.iter + 1) % 20 and trainer.iter + 1 != trainer.max_iter:
        return
    if torch.cuda.is_initialized():
        used = torch.cuda.max_memory_allocated() / 2**20
    elif sys.platform == "linux":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    else:
        return
    trainer.storage.put_scalar("max_memory_mib", used, smoothing_hint=False)
