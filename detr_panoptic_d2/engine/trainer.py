"""The trainer: Detectron2's ``DefaultTrainer`` with what DETR panoptic segmentation needs."""

import logging
import os
import weakref
from collections.abc import Set

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint.checkpointer import PanopticCheckpointer
from ..data.dataset_mapper import PanopticDatasetMapper
from ..evaluation import build_evaluator
from .batch_scale import check_reference_world_size, warn_about_batch
from .hooks import BestCheckpoint
from .memory_hook import MemoryUse
from .optimizer import build_optimizer
from .reproducible import ReproducibleSteps, build_train_loader
from .train_step import TrainStep, amp_dtype
from .visualization_hook import build_visualization_hook

logger = logging.getLogger(__name__)

BEST_METRIC = "panoptic_seg/PQ"


class PanopticTrainer(DefaultTrainer):
    """Train and evaluate from a config.

    As in Detectron2: ``trainer = PanopticTrainer(cfg); trainer.resume_or_load(resume);
    trainer.train()``, and ``PanopticTrainer.test(cfg, model)``. An interrupted training that is
    resumed goes on exactly as if it had not been: see :mod:`.reproducible`.
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's own constructor makes another step and another checkpointer, and
        # distributes models on GPUs only.
        TrainerBase.__init__(self)
        check_reference_world_size(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        warn_about_batch(cfg)
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = _distribute(model)
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self))
        self._trainer = TrainStep(
            model,
            data_loader,
            optimizer,
            dtype=amp_dtype(cfg),
            way_out=self.checkpointer.resume_hint,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: nn.Module, **checkpointables
    ) -> PanopticCheckpointer:
        """What reads ``MODEL.WEIGHTS`` and writes the checkpoints in ``OUTPUT_DIR``."""
        return PanopticCheckpointer(model, cfg.OUTPUT_DIR, **checkpointables)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg, PanopticDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, leave_out: Set[int | str] = frozenset()
    ) -> DataLoader | None:
        """Build the loader of a test set, once through all images.

        Args:
            cfg: the config.
            dataset_name: a registered data set.
            leave_out: ids of images that are not wanted.

        Returns:
            the loader; None if no image is wanted.
        """
        dicts = get_detection_dataset_dicts(dataset_name, filter_empty=False)
        wanted = [d for d in dicts if d.get("image_id") not in leave_out]
        if not wanted:
            return None
        return build_detection_test_loader(
            wanted,
            mapper=PanopticDatasetMapper(cfg, is_train=False),
            batch_size=cfg.MODEL.DETR.TEST.BATCH_SIZE,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of ``OUTPUT_DIR`` (``resume``) or else ``MODEL.WEIGHTS``."""
        super().resume_or_load(resume)
        empty = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, FrozenBatchNorm2d) and not module.running_mean.any()
        ]
        if empty:
            logger.warning(
                "%d frozen batch norms (%s, ...) have no statistics (means of 0), because "
                "no trained weights were loaded into them: features will explode. Give "
                "pretrained MODEL.WEIGHTS, or set MODEL.RESNETS.NORM to BN, SyncBN or GN to "
                "train from scratch.",
                len(empty),
                empty[0],
            )

    def train(self) -> dict[str, dict[str, float]] | None:
        """Train.

        Returns:
            the results of the last evaluation, on the main process, if there was one.

        Raises:
            KeyboardInterrupt: on Ctrl-C; it says what the training can go on from.
        """
        if self.start_iter >= self.max_iter:
            self._save_final()
        try:
            super().train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Training was stopped by Ctrl-C at iteration {self.iter}. "
                f"{self.checkpointer.resume_hint()}"
            ) from None
        return getattr(self, "_last_eval_results", None)

    def _save_final(self) -> None:
        """Detectron2 saves it in the last iteration, which was broken off after its checkpoint."""
        path = os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")
        if comm.is_main_process() and not os.path.isfile(path):
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, and before all of them the seed of each iteration."""
        hooks = [
            ReproducibleSteps(self.data_loader.batch_sampler),
            *super().build_hooks(),
        ]
        if comm.is_main_process():
            evaluation = next(
                i for i, hook in enumerate(hooks) if isinstance(hook, d2_hooks.EvalHook)
            )
            # With several data sets Detectron2 puts the name of each before its metrics.
            names = self.cfg.DATASETS.TEST
            metric = f"{names[0]}/{BEST_METRIC}" if len(names) > 1 else BEST_METRIC
            best = BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            hooks.insert(evaluation + 1, best)
            hooks.insert(evaluation + 2, MemoryUse())
            pictures = build_visualization_hook(self.cfg, self._trainer.model)
            if pictures is not None:
                hooks.insert(evaluation + 2, pictures)
        return hooks


def _distribute(model: nn.Module) -> nn.Module:
    """Wrap the model when there are several processes, on GPUs or on the CPU.

    Every trainable parameter takes part in every loss, with a weight of zero where a batch has no
    targets, so that no search for unused parameters is needed.
    """
    device = next(model.parameters()).device
    return create_ddp_model(
        model,
        broadcast_buffers=False,
        device_ids=[comm.get_local_rank()] if device.type == "cuda" else None,
    )
