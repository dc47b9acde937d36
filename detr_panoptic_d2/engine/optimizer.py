"""Optimizer from config, as official DETR sets it up."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..errors import UserError

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD with two learning rates, and gradient clipping if it is enabled.

    Weight decay holds for every parameter, norms and biases included, as in official DETR.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" bounds the norm over all parameters together;
    Detectron2's "value" and "norm" work on each parameter.

    Raises:
        UserError: no parameter is trainable, or the optimizer's name is unknown.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError(
            "No parameter is trainable. Look at MODEL.DETR.FREEZE_DETECTOR, MODEL.MASK_ON and "
            "MODEL.BACKBONE.FREEZE_AT."
        )
    rates = {
        "backbone": cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER,
        "rest": cfg.SOLVER.BASE_LR,
    }
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

    name = cfg.SOLVER.OPTIMIZER.upper()
    common = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    if name == "ADAMW":
        # On a CPU the loop over small tensors costs more than what it computes. On a GPU PyTorch's
        # own choice stays, because mixed precision scales what a fused step sees.
        common["fused"] = all(p.device.type == "cpu" for _, p in named) or None
        return _with_clipping(cfg, torch.optim.AdamW)(groups, **common)
    if name == "SGD":
        return _with_clipping(cfg, torch.optim.SGD)(
            groups, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV, **common
        )
    raise UserError(f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; known are ADAMW and SGD.")


def _with_clipping(
    cfg: CfgNode, optimizer: type[torch.optim.Optimizer]
) -> type[torch.optim.Optimizer]:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_VALUE <= 0:
        return optimizer
    if clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    max_norm, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    class FullModelClipping(optimizer):
        def step(self, closure=None):
            params = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(params, max_norm, norm_type)
            return super().step(closure)

    FullModelClipping.__name__ = f"{optimizer.__name__}WithFullModelClipping"
    return FullModelClipping
