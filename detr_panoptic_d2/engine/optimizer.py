"""Optimizer from config, as official DETR sets it up."""

import logging
import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError, check_value

logger = logging.getLogger(__name__)

# Images per batch and learning rate of configs/Base-DETR-Panoptic.yaml. Official DETR's own default
# is a quarter of this batch at the same rate.
RECIPE_BATCH, RECIPE_LR = 64, 1e-4


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD with two learning rates, and gradient clipping if it is enabled.

    Weight decay holds for every parameter, norms and biases included, as in official DETR.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" bounds the norm over all parameters together;
    Detectron2's "value" and "norm" work on each parameter. Detectron2's programs may use it too.

    Raises:
        UserError: no parameter is trainable, or a value cannot work.
    """
    solver = cfg.SOLVER
    check_value("SOLVER.BASE_LR", solver.BASE_LR, 0 < solver.BASE_LR < math.inf, "above 0")
    name = solver.OPTIMIZER.upper()
    check_value("SOLVER.OPTIMIZER", solver.OPTIMIZER, name in ("ADAMW", "SGD"), "ADAMW or SGD")
    _warn_about_batch(cfg)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        lr_factor_func=lambda n: solver.BACKBONE_MULTIPLIER if n.startswith("backbone.") else 1.0,
    )
    if not groups:
        raise UserError(
            "No parameter is trainable. Look at MODEL.DETR.FREEZE_DETECTOR, MODEL.MASK_ON and "
            "MODEL.BACKBONE.FREEZE_AT."
        )
    for group in groups:
        size = sum(p.numel() for p in group["params"])
        tensors = len(group["params"])
        logger.info("Trained at rate %g: %d tensors, %d values", group["lr"], tensors, size)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    logger.info("Frozen: %d values", frozen)
    if name == "SGD":
        return _with_clipping(cfg, torch.optim.SGD)(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    # On a CPU the loop over small tensors costs more than what it computes. Not with loss scaling:
    # GradScaler leaves unscaling to a fused step, and clipping would see scaled gradients.
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    fused = True if on_cpu and not solver.AMP.ENABLED else None
    return _with_clipping(cfg, torch.optim.AdamW)(groups, lr=solver.BASE_LR, fused=fused)


def _warn_about_batch(cfg: CfgNode) -> None:
    """A config with a learning rate of its own is taken to know its batch."""
    batch, rate = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    if math.isclose(rate, RECIPE_LR, rel_tol=1e-6) and batch < RECIPE_BATCH / 4:
        factor = batch / RECIPE_BATCH
        logger.warning(
            "SOLVER.IMS_PER_BATCH is %d, but SOLVER.BASE_LR %g is the recipe's for %d images. "
            "Consider SOLVER.BASE_LR from %.3g (linear in the batch) to %.3g (its square root), "
            "and %.3g times SOLVER.MAX_ITER and STEPS for the same epochs.",
            batch,
            rate,
            RECIPE_BATCH,
            rate * factor,
            rate * math.sqrt(factor),
            1 / factor,
        )


def _with_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> Callable[..., torch.optim.Optimizer]:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_VALUE <= 0:
        return optimizer
    if clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    max_norm, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    class FullModelClipping(optimizer):  # type: ignore[valid-type, misc]
        def step(self, closure=None):
            params = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, max_norm, norm_type)
            return super().step(closure)

    return FullModelClipping
