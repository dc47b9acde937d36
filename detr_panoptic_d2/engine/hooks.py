"""Trainer hooks, and what they compute. See also :class:`.train_loader.ReproducibleSteps`."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..checkpoint import PanopticCheckpointer
from ..data.dataset_mapper import PanopticDatasetMapper, read_image
from ..errors import check_value
from ..files import atomic_file
from ..modeling.meta_arch import PanopticDETR
from ..visualization.draw import draw_beside_ground_truth, limit_size, read_ground_truth
from .distributed import unwrap

# Longer side of each of the three pictures, in pixels.
_MAX_SIZE = 1000


def best_metric(cfg: CfgNode) -> str:
    """Return the name of the metric that the best checkpoint is chosen by; larger is better."""
    if cfg.MODEL.MASK_ON and cfg.MODEL.DETR.TEST.PANOPTIC_ON:
        metric = "panoptic_seg/PQ"
    elif cfg.MODEL.DETR.TEST.INSTANCE_ON or not cfg.MODEL.DETR.TEST.SEMANTIC_ON:
        metric = "segm/AP" if cfg.MODEL.MASK_ON else "bbox/AP"
    else:
        metric = "sem_seg/mIoU"
    # With several datasets, Detectron2 adds the name of the dataset to each metric.
    return f"{cfg.DATASETS.TEST[0]}/{metric}" if len(cfg.DATASETS.TEST) > 1 else metric


def build_ema(cfg: CfgNode, model: nn.Module) -> AveragedModel | None:
    """Build PyTorch's ``AveragedModel`` as ``MODEL_EMA`` says; None if it is not enabled.

    After n updates, the decay is ``DECAY * (1 - exp(-n / WARMUP))``, so that the first weights of a
    training are soon forgotten. Buffers are those of the model.
    """
    if not cfg.MODEL_EMA.ENABLED:
        return None
    decay, warmup = cfg.MODEL_EMA.DECAY, cfg.MODEL_EMA.WARMUP
    check_value("MODEL_EMA.DECAY", decay, 0 < decay < 1, "a number between 0 and 1")
    check_value("MODEL_EMA.WARMUP", warmup, warmup >= 0, "0 or more")

    def update(averages: Any, weights: Any, num_averaged: Any) -> None:
        # The argument may be on a GPU, which would have to finish first.
        updates = int(ema.n_averaged)
        current = decay * (1 - math.exp(-updates / warmup)) if warmup else decay
        torch._foreach_lerp_(averages, weights, 1 - current)

    ema = AveragedModel(unwrap(model), multi_avg_fn=update)
    return ema


class UpdateEMA(HookBase):
    """Update the average after each step. It comes before checkpoints and evaluations."""

    def after_step(self) -> None:
        self.trainer.ema.update_parameters(unwrap(self.trainer.model))


@torch.no_grad()
def validation_losses(cfg: CfgNode, model: PanopticDETR) -> dict[str, float]:
    """Return the weighted losses of the first dataset of ``DATASETS.TEST``.

    Images have test size and no augmentation. The losses are those of the last decoder layer, with
    the mean over the images, and their sum ``total_loss``. Only the main process gets them.
    """
    loader = build_detection_test_loader(
        cfg,
        cfg.DATASETS.TEST[0],
        mapper=PanopticDatasetMapper(cfg, is_train=False, with_targets=True),
        batch_size=cfg.MODEL.DETR.TEST.BATCH_SIZE,
    )
    sums: Counter[str] = Counter()
    with inference_context(model):
        for batch in loader:
            losses = {name: float(loss) for name, loss in model.losses(batch).items()}
            losses["total_loss"] = sum(losses.values())
            sums.update({name: loss * len(batch) for name, loss in losses.items()})
            sums["images"] += len(batch)
    total: Counter[str] = Counter()
    for part in comm.gather(sums):
        # The sum of two counters would have no entry for a loss of 0 or NaN.
        total.update(part)
    images = total.pop("images", 1)
    return {name: value / images for name, value in total.items()}


class BestCheckpoint(BestCheckpointer):
    """Detectron2's ``BestCheckpointer`` for trainings that are resumed.

    It also writes ``model_best.json`` with metric, value, iteration and the weights that were
    evaluated ("ema" or "model"), and reads it when the training is resumed. Resuming never starts
    from the best checkpoint.
    """

    def __init__(self, eval_period: int, checkpointer: PanopticCheckpointer, metric: str):
        super().__init__(eval_period, SimpleNamespace(save=self._save), metric)
        self._save_untagged = checkpointer.save_untagged
        self._file = Path(checkpointer.save_dir, "model_best.json")

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not self._file.is_file():
            return
        best = json.loads(self._file.read_text(encoding="utf-8"))
        # The training will reach a later iteration again.
        if best["metric"] == self._val_metric and best["iteration"] < self.trainer.start_iter:
            self._update_best(best["value"], best["iteration"])

    def _save(self, name: str, iteration: int) -> None:
        value, _ = self.trainer.storage.latest()[self._val_metric]
        # The metrics of the last evaluation have the number of the next iteration.
        iteration = min(iteration, self.trainer.max_iter - 1)
        self._save_untagged(name, iteration=iteration)
        best = {"metric": self._val_metric, "value": float(value), "iteration": iteration}
        best["weights"] = "ema" if self.trainer.ema else "model"
        with atomic_file(self._file) as f:
            json.dump(best, f)


class StopTraining(BaseException):
    """Ends a training before ``SOLVER.MAX_ITER``. Detectron2 logs an ``Exception`` as an error."""


class EarlyStopping(HookBase):
    """Stop when a metric has not improved over ``SOLVER.EARLY_STOPPING.PATIENCE`` evaluations.

    Iteration and value of each evaluation, and at the end the reason, are in
    ``early_stopping.json``, from which a resumed training continues. Every process needs this hook,
    after the evaluation.
    """

    def __init__(self, cfg: CfgNode, metric: str):
        options = cfg.SOLVER.EARLY_STOPPING
        self._patience, self._min_delta = options.PATIENCE, options.MIN_DELTA
        self._metric, self._period = metric, cfg.TEST.EVAL_PERIOD
        allowed = "1 or more with SOLVER.EARLY_STOPPING"
        check_value("TEST.EVAL_PERIOD", self._period, self._period > 0, allowed)
        self._file = Path(cfg.OUTPUT_DIR, "early_stopping.json")
        self._values: list[tuple[int, float]] = []

    def before_train(self) -> None:
        if self.trainer.start_iter and self._file.is_file():
            values = json.loads(self._file.read_text(encoding="utf-8"))["values"]
            self._values = [(i, value) for i, value in values if i < self.trainer.start_iter]
        self._stop_if_not_improving()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return
        if comm.is_main_process():
            value, _ = self.trainer.storage.latest().get(self._metric, (math.nan, 0))
            self._values.append((self.trainer.iter, float(value)))
        self._stop_if_not_improving()

    def _stop_if_not_improving(self) -> None:
        best, best_index = -math.inf, -1
        for index, (_, value) in enumerate(self._values):
            if value > best + self._min_delta:
                best, best_index = value, index
        reason = ""
        if len(self._values) - 1 - best_index >= self._patience:
            reason = (
                f"Stopped early: {self._metric} has not improved by more than {self._min_delta:g} "
                f"in the last {self._patience} evaluations; the best value is {best:.2f}."
            )
        if comm.is_main_process() and self._values:
            record = {"metric": self._metric, "values": self._values, "reason": reason}
            with atomic_file(self._file) as f:
                json.dump(record, f)
        # The main process has the values and decides for all.
        if reason := comm.all_gather(reason)[0]:
            raise StopTraining(reason)


class PanopticVisualizationHook(HookBase):
    """Draw ground truth and prediction of the same few validation images every ``VIS_PERIOD``.

    Pictures go to TensorBoard (``predictions/<image>``) and to
    ``OUTPUT_DIR/pictures/<image>/iter_<iteration>.jpg``. They do not change the losses, because
    each iteration sets its random seed. For the main process only, before the hook that writes the
    metrics.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        self._cfg = cfg
        # The forward of the wrapper may wait for other processes.
        self._model = unwrap(model)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._cfg.VIS_PERIOD and done != self.trainer.max_iter:
            return
        self._model.eval()
        with torch.no_grad():
            self._draw()
        self._model.train()

    def _draw(self) -> None:
        name = self._cfg.DATASETS.TEST[0]
        mapper = PanopticDatasetMapper(self._cfg, is_train=False)
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
        # Evenly spaced over the dataset, always the same images.
        count = min(self._cfg.TEST.VIS_IMAGES, len(dicts))
        for number, index in enumerate(np.linspace(0, len(dicts) - 1, count).round().astype(int)):
            item = dicts[index]
            output = self._model([mapper(item)])[0]["panoptic_seg"]
            image, ground_truth, prediction = limit_size(
                _MAX_SIZE, read_image(item["file_name"], "RGB"), read_ground_truth(item), output
            )
            metadata = MetadataCatalog.get(name)
            picture = draw_beside_ground_truth(image, ground_truth, prediction, metadata)
            stem = re.sub(r"[^\w.-]", "_", Path(item["file_name"]).stem)
            stem = f"{number:02d}_{stem}"
            folder = Path(self._cfg.OUTPUT_DIR, "pictures", stem)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(folder / f"iter_{self.trainer.iter:07d}.jpg", "wb") as f:
                Image.fromarray(picture).save(f, format="JPEG", quality=90, subsampling=0)
            self.trainer.storage.put_image(f"predictions/{stem}", picture.transpose(2, 0, 1))
