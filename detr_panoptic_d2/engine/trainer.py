"""The trainer: Detectron2's ``DefaultTrainer`` for DETR panoptic segmentation."""

import argparse
import logging
import os
import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint.checkpointer import PanopticCheckpointer
from ..checkpoint.description import describe
from ..config import merged_cfg
from ..data.dataset_mapper import PanopticDatasetMapper
from ..errors import UserError, check_value
from ..evaluation import build_evaluator
from ..evaluation.low_pq import explain_low_pq
from ..files import remove_unfinished
from ..modeling.backbone import lacks_norm_statistics
from .distributed import broadcast_buffers, distribute_model, synchronize_batch_norms, unwrap
from .hooks import (
    BestCheckpoint,
    EarlyStopping,
    PanopticVisualizationHook,
    StopTraining,
    UpdateEMA,
    best_metric,
    build_ema,
    validation_losses,
)
from .optimizer import build_optimizer
from .setup import setup_job
from .step import TrainingStep
from .train_loader import ReproducibleSteps, build_train_loader
from .writers import build_writers

logger = logging.getLogger(__name__)


class PanopticTrainer(DefaultTrainer):
    """Train and evaluate from a config, with Detectron2's interface.

    A resumed training continues exactly as an uninterrupted one, see :mod:`.train_loader`.
    """

    iter: int

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor, which cannot be told to use another step, another
        # checkpointer, or several processes on the CPU.
        TrainerBase.__init__(self)
        for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
            check_value(f"SOLVER.{key}", cfg.SOLVER[key], cfg.SOLVER[key] >= 1, "1 or more")
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        if comm.get_world_size() > 1:
            synchronize_batch_norms(model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = distribute_model(model)
        self._trainer = TrainingStep(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.ema = build_ema(cfg, model)
        states = {"trainer": weakref.proxy(self), **({"ema": self.ema} if self.ema else {})}
        self.checkpointer = self.build_checkpointer(cfg, model, **states)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_checkpointer(
        cls, cfg: CfgNode, model: nn.Module, **checkpointables
    ) -> PanopticCheckpointer:
        options = {"description": describe(cfg), **checkpointables}
        return PanopticCheckpointer(model, cfg.OUTPUT_DIR, **options)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg, PanopticDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_detection_test_loader(
            cfg,
            dataset_name,
            mapper=PanopticDatasetMapper(cfg, is_train=False),
            batch_size=cfg.MODEL.DETR.TEST.BATCH_SIZE,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """Evaluate as Detectron2 does, in all processes with the buffers of the main one."""
        broadcast_buffers(model)
        return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[HookBase]:
        """Add this package's hooks to Detectron2's."""
        cfg, metric = self.cfg, best_metric(self.cfg)
        ours: list[HookBase] = [EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate)]
        if comm.is_main_process() and cfg.DATASETS.TEST:
            ours.append(BestCheckpoint(cfg.TEST.EVAL_PERIOD, self.checkpointer, metric))
            if cfg.VIS_PERIOD > 0 and cfg.MODEL.MASK_ON and cfg.MODEL.DETR.TEST.PANOPTIC_ON:
                ours.append(PanopticVisualizationHook(cfg, self._evaluated_model()))
        if cfg.SOLVER.EARLY_STOPPING.PATIENCE > 0:
            ours.append(EarlyStopping(cfg, metric))
        hooks = super().build_hooks()
        index = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks[index : index + 1] = ours
        updates = [UpdateEMA()] if self.ema else []
        return [ReproducibleSteps(self.data_loader.batch_sampler, cfg.SEED), *updates, *hooks]

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of ``WRITERS`` and Detectron2's."""
        return [*build_writers(self.cfg), *super().build_writers()]

    def _evaluated_model(self) -> nn.Module:
        return self.ema.module if self.ema else self.model

    def _evaluate(self) -> dict:
        """Evaluate the average of the weights if there is one, else the model."""
        model = self._evaluated_model()
        self._last_eval_results = self.test(self.cfg, model)
        if self.cfg.TEST.LOSS and self.cfg.DATASETS.TEST:
            losses = validation_losses(self.cfg, unwrap(model))
            self._last_eval_results.update({"val": losses} if losses else {})
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of ``OUTPUT_DIR`` (``resume``) or else ``MODEL.WEIGHTS``.

        Learning rates, schedule and weight decay are those of the config, also when resuming.
        Checkpoints of Detectron2's ``train_net.py`` can be resumed, if it used
        :func:`.optimizer.build_optimizer`.

        Raises:
            UserError: the checkpoint's optimizer does not fit the trainable parameters.
        """
        if resume and comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR, "*")
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self._apply_base_lr()
        if lacks_norm_statistics(self.model):
            logger.warning(
                "Frozen batch norms have no statistics, because no trained weights were loaded "
                "into them: activations will overflow. Give pretrained MODEL.WEIGHTS, or set "
                "MODEL.RESNETS.NORM to BN, SyncBN or GN to train from scratch."
            )

    def _apply_base_lr(self) -> None:
        """Continue a schedule with the learning rates of the config."""
        groups, scheduler = self.optimizer.param_groups, self.scheduler
        for group, saved in zip(groups, scheduler.base_lrs, strict=True):
            if group["initial_lr"] != saved:
                message = "The learning rate before the schedule changes from %g to %g."
                logger.warning(message, saved, group["initial_lr"])
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        if scheduler.last_epoch <= self.max_iter:
            for group, rate in zip(groups, scheduler.get_lr(), strict=True):
                group["lr"] = rate

    def train(self) -> dict[str, dict[str, float]] | None:
        """Train, and return the results of the last evaluation, on the main process.

        ``UserError`` (a loss is not finite) and ``KeyboardInterrupt`` name the last checkpoint.
        """
        final = Path(self.cfg.OUTPUT_DIR, "model_final.pth")
        if self.start_iter >= self.max_iter and comm.is_main_process() and not final.is_file():
            # The training was interrupted between the last iteration and this file.
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)
        handle = self.model.register_forward_hook(self._stop_at_nonfinite_loss)
        try:
            super().train()
        except StopTraining as reason:
            logger.warning("%s", reason)
            if not final.is_file():
                self.checkpointer.save("model_final", iteration=self.iter)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Training was stopped by Ctrl-C at iteration {self.iter}. "
                f"{self.checkpointer.resume_hint()}"
            ) from None
        finally:
            handle.remove()
        return getattr(self, "_last_eval_results", None)

    def _stop_at_nonfinite_loss(self, model: nn.Module, args: tuple, losses: dict) -> None:
        """Forward hook. Detectron2's own check comes after the backward pass, in the main process
        only, and does not know the images."""
        if not model.training or torch.isfinite(sum(losses.values())):
            return
        broken = [name for name, value in losses.items() if not torch.isfinite(value)]
        raise UserError(
            f"The loss became infinite or NaN at iteration {self.iter} ({', '.join(broken)}), on "
            f"the images {', '.join(d['file_name'] for d in args[0])}. "
            f"{self.checkpointer.resume_hint()} Check the annotations of these images, lower "
            "SOLVER.BASE_LR, or use SOLVER.AMP.DTYPE bfloat16 instead of float16."
        )


def train_or_evaluate(args: argparse.Namespace) -> dict | None:
    """Train, or evaluate with ``args.eval_only``, in one process of the job.

    Processes that ``torchrun`` has restarted resume from the last checkpoint.

    Args:
        args: what Detectron2's ``default_argument_parser`` returns.

    Returns:
        the results of the (last) evaluation, in the main process.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        args.resume = True
    folder = merged_cfg(args.config_file, args.opts).OUTPUT_DIR
    if comm.is_main_process() and not (args.resume or args.eval_only):
        for name in ("last_checkpoint", "metrics.json"):
            if Path(folder, name).exists():
                raise UserError(
                    f"OUTPUT_DIR '{folder}' has {name} of another training, which would be "
                    "overwritten. Continue that training with --resume, or choose another "
                    "OUTPUT_DIR."
                )
    cfg = setup_job(args)
    if not args.eval_only:
        trainer = PanopticTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        _describe_training(trainer)
        results = trainer.train()
        if comm.is_main_process():
            folders = [Path(cfg.OUTPUT_DIR, "inference", name) for name in cfg.DATASETS.TEST]
            for line in explain_low_pq(cfg, folders):
                logger.warning("%s", line)
        return results
    model = PanopticTrainer.build_model(cfg)
    checkpointer = PanopticTrainer.build_checkpointer(cfg, model)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume, complete=True)
    results = PanopticTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _describe_training(trainer: PanopticTrainer) -> None:
    """Log what is trained on what, and whether there are too few queries."""
    cfg, dataset = trainer.cfg, trainer.data_loader.dataset
    train, test = (", ".join(cfg.DATASETS[key]) for key in ("TRAIN", "TEST"))
    logger.info(
        f"Training on {len(dataset)} images of {train} with {cfg.MODEL.DETR.NUM_CLASSES} classes: "
        f"iterations {trainer.start_iter} to {trainer.max_iter} of {cfg.SOLVER.IMS_PER_BATCH} "
        f"images each, {comm.get_world_size()} x {cfg.MODEL.DEVICE}. Evaluation on "
        f"{test or 'no dataset'}. Output: {cfg.OUTPUT_DIR}"
    )
    queries, segments = cfg.MODEL.DETR.NUM_OBJECT_QUERIES, dataset.max_segments
    if segments > queries:
        logger.warning(
            f"MODEL.DETR.NUM_OBJECT_QUERIES is {queries}, but images have up to {segments} "
            f"segments, and a query predicts one segment at most. Set it to {segments} or more."
        )
