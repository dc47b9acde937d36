"""Optimizer from config, as official DETR sets it up."""

import functools
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


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD with two learning rates, and gradient clipping if it is enabled.

    Weight decay applies to all parameters, including norms and biases, as in official DETR.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" clips the norm over all parameters together;
    Detectron2's "value" and "norm" clip each parameter. Detectron2's programs can use this function
    too.

    Raises:
        UserError: no parameter is trainable, or a value is not allowed.
    """
    solver = cfg.SOLVER
    check_value("SOLVER.BASE_LR", solver.BASE_LR, 0 < solver.BASE_LR < math.inf, "above 0")
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        valid = 0 <= solver.BASE_LR_END <= solver.BASE_LR
        check_value("SOLVER.BASE_LR_END", solver.BASE_LR_END, valid, "from 0 to SOLVER.BASE_LR")
    name = solver.OPTIMIZER.upper()
    check_value("SOLVER.OPTIMIZER", solver.OPTIMIZER, name in ("ADAMW", "SGD"), "ADAMW or SGD")
    if isinstance(model, DistributedDataParallel):
        model = model.module
    valid = 0 < solver.LAYER_DECAY <= 1
    check_value("SOLVER.LAYER_DECAY", solver.LAYER_DECAY, valid, "above 0 and at most 1")
    stages = _backbone_stages(model)
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        lr_factor_func=lambda name: _rate_factor(
            name, stages, solver.BACKBONE_MULTIPLIER, solver.LAYER_DECAY
        ),
    )
    if not groups:
        raise UserError(
            "No parameter is trainable. Check MODEL.DETR.FREEZE_DETECTOR, MODEL.MASK_ON and "
            "MODEL.BACKBONE.FREEZE_AT."
        )
    for group in groups:
        size = sum(p.numel() for p in group["params"])
        tensors = len(group["params"])
        logger.info("Learning rate %g: %d values in %d tensors", group["lr"], size, tensors)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    logger.info("Not trained: %d values", frozen)
    if name == "SGD":
        optimizer = _with_clipping(cfg, torch.optim.SGD)(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    else:
        # On a CPU, a loop over small tensors costs more than its arithmetic. Not with loss scaling:
        # a fused step unscales the gradients itself, after they were clipped.
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        fused = True if on_cpu and not solver.AMP.ENABLED else None
        optimizer = _with_clipping(cfg, torch.optim.AdamW)(groups, lr=solver.BASE_LR, fused=fused)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer.register_load_state_dict_pre_hook(functools.partial(_check_state, cfg, names))
    return optimizer


def _rate_factor(name: str, stages: list[str], multiplier: float, decay: float) -> float:
    """Return the learning rate of a parameter relative to ``SOLVER.BASE_LR``."""
    if not name.startswith("backbone."):
        return 1.0
    indices = [i for i, stage in enumerate(stages) if name.startswith(f"{stage}.")]
    return multiplier * decay ** (len(stages) - 1 - indices[0] if indices else 0)


def _backbone_stages(model: nn.Module) -> list[str]:
    """Return the names of the modules of the backbone in order, such as "backbone.res2"."""
    module, prefix = getattr(model, "backbone", nn.Module()), "backbone"
    while True:
        children = [
            (f"{prefix}.{name}", child)
            for name, child in module.named_children()
            if next(child.parameters(), None) is not None
        ]
        if len(children) != 1:
            return [name for name, _ in children]
        # A wrapper, such as that of timm's networks.
        ((prefix, module),) = children


def _check_state(
    cfg: CfgNode, names: dict[nn.Parameter, str], optimizer: torch.optim.Optimizer, state: dict
) -> None:
    """Compare the state of a checkpoint with the parameters before it is loaded.

    PyTorch does not compare shapes, and a fused step would write outside of the memory.

    Args:
        names: names of the model's parameters.
        state: the argument of ``load_state_dict``.

    Raises:
        UserError: parameter groups or shapes differ.
    """
    problem = None
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != saved_sizes:
        problem = (
            f"its optimizer has groups of {saved_sizes} tensors, and this config gives {sizes}. "
            "Other parameters are trained (MODEL.FREEZE, MODEL.BACKBONE.FREEZE_AT, "
            "MODEL.DETR.FREEZE_DETECTOR, MODEL.MASK_ON), or the optimizer was not built by "
            "detr_panoptic_d2.engine.build_optimizer"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    for parameter, index in zip(parameters, indices, strict=False):
        for value in state["state"].get(index, {}).values():
            # The number of steps is a scalar.
            if problem or getattr(value, "ndim", 0) == 0 or value.shape == parameter.shape:
                continue
            name, detr = names[parameter], cfg.MODEL.DETR
            problem = (
                f"{name} is {tuple(value.shape)} there, and {tuple(parameter.shape)} with this "
                f"config (MODEL.DETR.NUM_OBJECT_QUERIES {detr.NUM_OBJECT_QUERIES}, "
                f"MODEL.DETR.NUM_CLASSES {detr.NUM_CLASSES})"
            )
    if problem:
        raise UserError(
            f"The optimizer of the checkpoint does not fit: {problem}. Use the config of the "
            "checkpoint, or start a new training with it as MODEL.WEIGHTS and another OUTPUT_DIR"
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
