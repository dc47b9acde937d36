"""The trainer: Detectron2's ``DefaultTrainer`` with what DETR panoptic segmentation needs."""

import logging
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import PanopticCheckpointer
from ..data.dataset_mapper import PanopticDatasetMapper
from ..evaluation import build_evaluator
from .hooks import BestCheckpoint
from .optimizer import build_optimizer
from .reproducible import ReproducibleSteps, build_train_loader
from .train_step import TrainStep, amp_dtype

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
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
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
            last_checkpoint=self.checkpointer.get_checkpoint_file,
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
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_detection_test_loader(
            get_detection_dataset_dicts(dataset_name, filter_empty=False),
            mapper=PanopticDatasetMapper(cfg, is_train=False),
            batch_size=cfg.MODEL.DETR.TEST.BATCH_SIZE,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

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
            best = BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, BEST_METRIC)
            hooks.insert(evaluation + 1, best)
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
