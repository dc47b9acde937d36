"""Optimizer from config, as official DETR sets it up."""

import logging
import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError, check_value

logger = logging.getLogger(__name__)

# Images per batch and learning rate of configs/Base-DETR-Panoptic.yaml. Official DETR's own default
# is a quarter of this batch at the same rate; a rate of 3e-4 did not train (its issue 48).
RECIPE_BATCH, RECIPE_LR = 64, 1e-4


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD with two learning rates, and gradient clipping if it is enabled.

    Weight decay holds for every parameter, norms and biases included, as in official DETR.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" bounds the norm over all parameters together;
    Detectron2's "value" and "norm" work on each parameter.

    Detectron2's programs may use it too: ``from detr_panoptic_d2.engine import build_optimizer``.

    Raises:
        UserError: no parameter is trainable, or a value cannot work.
    """
    solver = cfg.SOLVER
    check_value("SOLVER.BASE_LR", solver.BASE_LR, 0 < solver.BASE_LR < math.inf, "above 0")
    for key in ("BACKBONE_MULTIPLIER", "WEIGHT_DECAY"):
        check_value(f"SOLVER.{key}", solver[key], 0 <= solver[key] < math.inf, "0 or more")
    name = solver.OPTIMIZER.upper()
    check_value("SOLVER.OPTIMIZER", solver.OPTIMIZER, name in ("ADAMW", "SGD"), "ADAMW or SGD")
    _warn_about_batch(cfg)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            "No parameter is trainable. Look at MODEL.DETR.FREEZE_DETECTOR, MODEL.MASK_ON and "
            "MODEL.BACKBONE.FREEZE_AT."
        )
    rates = {"backbone": solver.BASE_LR * solver.BACKBONE_MULTIPLIER, "rest": solver.BASE_LR}
    groups = []
    for group, lr in rates.items():
        params = [p for n, p in named if n.startswith("backbone.") == (group == "backbone")]
        if params:
            groups.append({"params": params, "lr": lr})
            logger.info(
                "Optimizer group '%s': %d tensors, %d values, learning rate %g",
                group,
                len(params),
                sum(p.numel() for p in params),
                lr,
            )
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    logger.info("Frozen parameters: %d values", frozen)

    common = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if name == "SGD":
        return _with_clipping(cfg, torch.optim.SGD)(
            groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common
        )
    # On a CPU the loop over small tensors costs more than what it computes. Not with loss scaling:
    # GradScaler leaves unscaling to a fused step, and clipping would see scaled gradients.
    on_cpu = all(p.device.type == "cpu" for _, p in named)
    fused = True if on_cpu and not solver.AMP.ENABLED else None
    return _with_clipping(cfg, torch.optim.AdamW)(groups, fused=fused, **common)


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
    if cfg.SOLVER.REFERENCE_WORLD_SIZE and rate > 2 * RECIPE_LR:
        logger.warning(
            "SOLVER.REFERENCE_WORLD_SIZE has scaled SOLVER.BASE_LR to %g for SOLVER.IMS_PER_BATCH "
            "%d, and official DETR reports that 3e-4 does not train. Set "
            "SOLVER.REFERENCE_WORLD_SIZE to 0, and batch, rate and schedule yourself.",
            rate,
            batch,
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

    FullModelClipping.__name__ = f"{optimizer.__name__}WithFullModelClipping"
    return FullModelClipping
