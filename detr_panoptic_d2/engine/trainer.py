"""The trainer: Detectron2's ``DefaultTrainer`` with what DETR panoptic segmentation needs."""

import argparse
import logging
import os
import time
import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint.checkpointer import PanopticCheckpointer
from ..config import merged_cfg
from ..data.dataset_mapper import PanopticDatasetMapper
from ..errors import UserError, check_value
from ..evaluation import build_evaluator
from ..files import remove_unfinished
from ..modeling.backbone import lacks_norm_statistics
from .hooks import BestCheckpoint, PanopticVisualizationHook, record_memory
from .optimizer import build_optimizer
from .setup import setup_job
from .train_loader import ReproducibleSteps, build_train_loader

logger = logging.getLogger(__name__)

BEST_METRIC = "panoptic_seg/PQ"
_AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class AnyDeviceAMPTrainer(AMPTrainer):
    """Detectron2's ``AMPTrainer``, which needs CUDA, on the CPU as well."""

    def run_step(self) -> None:
        """Train on one batch; the loss is scaled for float16 alone."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.precision):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


class PanopticTrainer(DefaultTrainer):
    """Train and evaluate from a config.

    As in Detectron2: ``trainer = PanopticTrainer(cfg); trainer.resume_or_load(resume);
    trainer.train()``, and ``PanopticTrainer.test(cfg, model)``. An interrupted training that is
    resumed goes on exactly as if it had not been: see :mod:`.train_loader`.
    """

    iter: int

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor with another step and checkpointer, and with several
        # processes on the CPU; it has no methods to override for these.
        TrainerBase.__init__(self)
        for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
            check_value(f"SOLVER.{key}", cfg.SOLVER[key], cfg.SOLVER[key] >= 1, "1 or more")
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if comm.get_world_size() > 1:
            # Every trainable parameter takes part in every loss, with a weight of zero where a
            # batch has no targets, so no search for unused parameters is needed.
            device = next(model.parameters()).device
            ids = [comm.get_local_rank()] if device.type == "cuda" else None
            model = create_ddp_model(model, broadcast_buffers=False, device_ids=ids)
        self._trainer = _build_step(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # plain_train_net.py reads and writes optimizer and scheduler on their own. In the file
        # they share the memory of those within "trainer".
        self.checkpointer = self.build_checkpointer(
            cfg,
            model,
            trainer=weakref.proxy(self),
            optimizer=optimizer,
            scheduler=self.scheduler,
        )
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
            cfg,
            dataset_name,
            mapper=PanopticDatasetMapper(cfg, is_train=False),
            batch_size=cfg.MODEL.DETR.TEST.BATCH_SIZE,
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, before all of them the seed of each iteration, and ours."""
        hooks = [ReproducibleSteps(self.data_loader.batch_sampler), *super().build_hooks()]
        if comm.is_main_process():
            # With several data sets Detectron2 puts the name of each before its metrics.
            names = self.cfg.DATASETS.TEST
            metric = f"{names[0]}/{BEST_METRIC}" if len(names) > 1 else BEST_METRIC
            ours = [
                BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric),
                d2_hooks.CallbackHook(after_step=record_memory),
            ]
            panoptic = self.cfg.MODEL.MASK_ON and self.cfg.MODEL.DETR.TEST.PANOPTIC_ON
            if self.cfg.VIS_PERIOD > 0 and names and panoptic:
                ours.append(PanopticVisualizationHook(self.cfg, self.model))
            # After the evaluation, before what writes the metrics.
            hooks[-1:-1] = ours
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of ``OUTPUT_DIR`` (``resume``) or else ``MODEL.WEIGHTS``.

        Checkpoints of Detectron2's ``train_net.py`` and ``plain_train_net.py`` are resumed too, if
        these used :func:`.optimizer.build_optimizer`.

        Raises:
            UserError: the checkpoint's optimizer has other parameter groups.
        """
        if resume and comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR, "*")
        try:
            rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        except ValueError as error:
            # torch's words.
            if "parameter group" not in str(error):
                raise
            raise UserError(
                f"{self.checkpointer.get_checkpoint_file()} cannot be resumed: {error}. It was "
                "written with another optimizer than detr_panoptic_d2.engine.build_optimizer, or "
                "with other trainable parameters. Give it as MODEL.WEIGHTS instead, without "
                "--resume and with another OUTPUT_DIR."
            ) from error
        if resume and self.checkpointer.has_checkpoint():
            # plain_train_net.py keeps the iteration beside optimizer and scheduler.
            self.iter = rest.get("iteration", self.iter)
            self.start_iter = self.iter + 1
        if lacks_norm_statistics(self.model):
            logger.warning(
                "Frozen batch norms have no statistics, because no trained weights were loaded "
                "into them: features will explode. Give pretrained MODEL.WEIGHTS, or set "
                "MODEL.RESNETS.NORM to BN, SyncBN or GN to train from scratch."
            )

    def train(self) -> dict[str, dict[str, float]] | None:
        """Train.

        Returns:
            the results of the last evaluation, on the main process, if there was one.

        Raises:
            UserError: a loss is infinite or NaN.
            KeyboardInterrupt: on Ctrl-C; it says what the training can go on from.
        """
        final = Path(self.cfg.OUTPUT_DIR, "model_final.pth")
        if self.start_iter >= self.max_iter and comm.is_main_process() and not final.is_file():
            # The last iteration was broken off after its checkpoint.
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)
        handle = self.model.register_forward_hook(self._stop_at_nonfinite_loss)
        try:
            super().train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Training was stopped by Ctrl-C at iteration {self.iter}. "
                f"{self.checkpointer.resume_hint()}"
            ) from None
        finally:
            handle.remove()
        return getattr(self, "_last_eval_results", None)

    def _stop_at_nonfinite_loss(self, model: nn.Module, args: tuple, losses: dict) -> None:
        """Forward hook. Detectron2's own check comes after the backward pass, on the main process
        alone, and does not know the images."""
        if not model.training or torch.isfinite(sum(losses.values())):
            return
        broken = [name for name, value in losses.items() if not torch.isfinite(value)]
        raise UserError(
            f"The loss became infinite or NaN at iteration {self.iter} ({', '.join(broken)}), on "
            f"the images {', '.join(d['file_name'] for d in args[0])}. "
            f"{self.checkpointer.resume_hint()} Look at these images' annotations; else lower "
            "SOLVER.BASE_LR, or use SOLVER.AMP.DTYPE bfloat16 in place of float16."
        )


def _build_step(
    cfg: CfgNode, model: nn.Module, data_loader: DataLoader, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Build what runs one iteration: Detectron2's ``SimpleTrainer``, or mixed precision."""
    amp = cfg.SOLVER.AMP
    check_value("SOLVER.AMP.DTYPE", amp.DTYPE, amp.DTYPE in _AMP_TYPES, " or ".join(_AMP_TYPES))
    if not amp.ENABLED:
        return SimpleTrainer(model, data_loader, optimizer)
    scaler = torch.amp.GradScaler(
        next(model.parameters()).device.type, enabled=amp.DTYPE == "float16"
    )
    return AnyDeviceAMPTrainer(
        model, data_loader, optimizer, grad_scaler=scaler, precision=_AMP_TYPES[amp.DTYPE]
    )


def train_or_evaluate(args: argparse.Namespace) -> dict | None:
    """Train, or evaluate with ``args.eval_only``, in one process of the job.

    Args:
        args: what Detectron2's ``default_argument_parser`` returns. Processes that ``torchrun`` has
            started again go on from the last checkpoint, without ``args.resume`` as well.

    Returns:
        the results of the (last) evaluation, on the main process.

    Raises:
        UserError: there are no weights to evaluate; ``OUTPUT_DIR`` has another training that
            ``args.resume`` does not ask to go on with; otherwise see :func:`.setup.setup_job`.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        args.resume = True
    folder = merged_cfg(args.config_file, args.opts).OUTPUT_DIR
    if comm.is_main_process() and not (args.resume or args.eval_only):
        for name in ("last_checkpoint", "metrics.json"):
            if Path(folder, name).exists():
                raise UserError(
                    f"OUTPUT_DIR '{folder}' has {name} of another training, which would be written "
                    "over. Go on with that one by --resume, or choose another OUTPUT_DIR."
                )
    cfg = setup_job(args)
    if not args.eval_only:
        trainer = PanopticTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = PanopticTrainer.build_model(cfg)
    checkpointer = PanopticTrainer.build_checkpointer(cfg, model)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume, complete=True)
    results = PanopticTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
