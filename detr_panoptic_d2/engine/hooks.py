"""Hooks of :class:`PanopticTrainer`. See also :class:`.reproducible.ReproducibleSteps`."""

import json
import logging
import math
from pathlib import Path

from detectron2.engine import HookBase

from ..checkpoint import PanopticCheckpointer, atomic_file

logger = logging.getLogger(__name__)


class BestCheckpoint(HookBase):
    """Keep the checkpoint with the best value of a metric, over interruptions too.

    Unlike Detectron2's ``BestCheckpointer`` it remembers the best value when training is resumed,
    and resuming never starts from the best checkpoint in place of the last. Put it after the
    evaluation hook, on the main process only. Beside ``model_best.pth`` it writes
    ``model_best.json`` with metric, value and iteration.

    Args:
        eval_period: the evaluation hook's period.
        checkpointer: what writes the checkpoint.
        metric: name in the event storage; larger is better.
    """

    def __init__(self, eval_period: int, checkpointer: PanopticCheckpointer, metric: str):
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = metric
        self._record = Path(checkpointer.save_dir, "model_best.json")
        self._best = -math.inf

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not self._record.is_file():
            return
        record = json.loads(self._record.read_text(encoding="utf-8"))
        # A later one will come again: the training goes on from a checkpoint before it.
        if record["metric"] == self._metric and record["iteration"] < self.trainer.start_iter:
            self._best = record["value"]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._save_if_best(self.trainer.iter)

    def after_train(self) -> None:
        # As in the evaluation hook: not after a training that failed.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._save_if_best(self.trainer.max_iter - 1)

    def _save_if_best(self, iteration: int) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            logger.warning("No '%s' was computed, so no best checkpoint is kept.", self._metric)
            return
        value = float(latest[0])
        if math.isnan(value) or value <= self._best:
            return
        self._best = value
        self._checkpointer.save_untagged("model_best", iteration=iteration)
        with atomic_file(self._record) as f:
            json.dump({"metric": self._metric, "value": value, "iteration": iteration}, f)
        logger.info("Best so far: %s %.3f at iteration %d", self._metric, value, iteration)
