"""The trainer: Detectron2's ``DefaultTrainer`` with what DETR panoptic segmentation needs."""

import argparse
import logging
import os
import weakref
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint.checkpointer import PanopticCheckpointer
from ..config import merged_cfg
from ..data.dataset_mapper import PanopticDatasetMapper
from ..errors import UserError, check_value
from ..evaluation import build_evaluator
from .amp import build_step
from .hooks import BestCheckpoint, MemoryUse, StopAtNonFiniteLoss
from .optimizer import build_optimizer
from .reproducible import ReproducibleSteps
from .setup import setup_job
from .train_loader import build_train_loader
from .visualization_hook import build_visualization_hook

logger = logging.getLogger(__name__)

BEST_METRIC = "panoptic_seg/PQ"


class PanopticTrainer(DefaultTrainer):
    """Train and evaluate from a config.

    As in Detectron2: ``trainer = PanopticTrainer(cfg); trainer.resume_or_load(resume);
    trainer.train()``, and ``PanopticTrainer.test(cfg, model)``. An interrupted training that is
    resumed goes on exactly as if it had not been: see :mod:`.reproducible`.
    """

    iter: int

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor with another step and checkpointer, and with several
        # processes on the CPU; it has no methods to override for these.
        TrainerBase.__init__(self)
        _check_schedule(cfg)
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
        self._trainer = build_step(cfg, model, data_loader, optimizer)
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
        if comm.is_main_process():
            _warn_of_shared_images(cfg)

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
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(
                f"SOLVER.LR_SCHEDULER_NAME is {cfg.SOLVER.LR_SCHEDULER_NAME!r}: {error}. "
                "Detectron2 has WarmupMultiStepLR, WarmupCosineLR and WarmupStepWithFixedGammaLR."
            ) from error

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

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of ``OUTPUT_DIR`` (``resume``) or else ``MODEL.WEIGHTS``.

        Checkpoints of Detectron2's ``train_net.py`` and ``plain_train_net.py`` are resumed too, if
        these used :func:`.optimizer.build_optimizer`.

        Raises:
            UserError: the checkpoint's optimizer has other parameter groups.
        """
        try:
            rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        except ValueError as error:
            # torch's words.
            if "parameter group" not in str(error):
                raise
            raise UserError(
                f"{self.checkpointer.get_checkpoint_file()} cannot be resumed: {error}. It was "
                "written with another optimizer than detr_panoptic_d2.engine.build_optimizer, or "
                "with other trainable parameters. Train from its weights instead: give it as "
                "MODEL.WEIGHTS, without --resume and with another OUTPUT_DIR."
            ) from error
        if resume and comm.is_main_process():
            # Of checkpoints that a kill broke off; nobody else writes them.
            for name in (".model_*.tmp", ".last_checkpoint*.tmp"):
                for path in Path(self.cfg.OUTPUT_DIR).glob(name):
                    path.unlink()
        if resume and self.checkpointer.has_checkpoint():
            # plain_train_net.py keeps the iteration beside optimizer and scheduler.
            iteration: int = rest.get("iteration", self.iter)
            self.iter, self.start_iter = iteration, iteration + 1
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
        """Detectron2's hooks, before all of them the seed of each iteration, and ours."""
        hooks = [
            ReproducibleSteps(self.data_loader.batch_sampler),
            StopAtNonFiniteLoss(self.checkpointer),
            *super().build_hooks(),
        ]
        if comm.is_main_process():
            after = 1 + next(i for i, h in enumerate(hooks) if isinstance(h, d2_hooks.EvalHook))
            # With several data sets Detectron2 puts the name of each before its metrics.
            names = self.cfg.DATASETS.TEST
            metric = f"{names[0]}/{BEST_METRIC}" if len(names) > 1 else BEST_METRIC
            best = BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            pictures = build_visualization_hook(self.cfg, self._trainer.model)
            hooks[after:after] = [best, *([pictures] if pictures else []), MemoryUse()]
        return hooks


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
    if comm.is_main_process() and not (args.resume or args.eval_only):
        _check_unused(merged_cfg(args.config_file, args.opts).OUTPUT_DIR)
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


def _check_unused(folder: str) -> None:
    for name in ("last_checkpoint", "metrics.json"):
        if Path(folder, name).exists():
            raise UserError(
                f"OUTPUT_DIR '{folder}' has {name} of another training, which would be written "
                "over. Go on with that one by --resume, or choose another OUTPUT_DIR."
            )


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    check_value("SOLVER.MAX_ITER", solver.MAX_ITER, solver.MAX_ITER >= 1, "1 or more")
    period = solver.CHECKPOINT_PERIOD
    check_value("SOLVER.CHECKPOINT_PERIOD", period, period >= 1, "1 or more")
    reference = solver.REFERENCE_WORLD_SIZE
    check_value(
        "SOLVER.REFERENCE_WORLD_SIZE",
        reference,
        reference == 0 or (reference > 0 and solver.IMS_PER_BATCH % reference == 0),
        "the number of processes that SOLVER.IMS_PER_BATCH "
        f"({solver.IMS_PER_BATCH}) was meant for, or 0 to train with the config's numbers as they "
        "are",
    )


def _warn_of_shared_images(cfg: CfgNode) -> None:
    train, test = (
        {d["file_name"] for name in names for d in DatasetCatalog.get(name)}
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    )
    shared = train & test
    if shared:
        logger.warning(
            "%d of %d images of DATASETS.TEST %s are in DATASETS.TRAIN %s as well (%s, for one): "
            "results will say little about new images.",
            len(shared),
            len(test),
            tuple(cfg.DATASETS.TEST),
            tuple(cfg.DATASETS.TRAIN),
            min(shared),
        )
