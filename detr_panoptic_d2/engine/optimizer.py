"""Optimizer from config, as official DETR sets it up."""

import functools
import logging
import math

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import UserError, check_value
from .distributed import unwrap

logger = logging.getLogger(__name__)
_FREEZING_KEYS = (
    "MODEL.FREEZE, MODEL.DETR.FREEZE_DETECTOR, MODEL.BACKBONE.FREEZE_AT and MODEL.MASK_ON"
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD with two learning rates, and gradient clipping if it is enabled.

    Weight decay applies to all parameters, including norms and biases, as in official DETR.
    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" clips the norm over all parameters together;
    Detectron2's "value" and "norm" clip each parameter.

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
    valid = 0 < solver.LAYER_DECAY <= 1
    check_value("SOLVER.LAYER_DECAY", solver.LAYER_DECAY, valid, "above 0 and at most 1")
    model = unwrap(model)
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
        raise UserError(f"No parameter is trainable. Check {_FREEZING_KEYS}.")
    for group in groups:
        size, tensors = sum(p.numel() for p in group["params"]), len(group["params"])
        logger.info("Learning rate %g: %d values in %d tensors", group["lr"], size, tensors)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    logger.info("Not trained: %d values", frozen)
    optimizer: torch.optim.Optimizer
    if name == "SGD":
        optimizer = torch.optim.SGD(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    else:
        # On a CPU, a loop over small tensors costs more than its arithmetic. Not with loss scaling:
        # a fused step unscales the gradients itself, after they were clipped.
        on_cpu = all(p.device.type == "cpu" for p in model.parameters())
        fused = True if on_cpu and not solver.AMP.ENABLED else None
        optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=fused)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer.register_load_state_dict_pre_hook(functools.partial(_check_state, cfg, names))
    clip = solver.CLIP_GRADIENTS
    if clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    if clip.ENABLED and clip.CLIP_VALUE > 0:
        parameters = [p for group in groups for p in group["params"]]

        def clip_gradients(*args: object) -> None:
            nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_gradients)
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
) -> dict:
    """Compare the state of a checkpoint with the parameters before it is loaded.

    PyTorch does not compare shapes, and a fused step would write outside of the memory.

    Returns:
        the state to load: options such as the weight decay are those of the config.
    """
    problem = None
    pairs: list[tuple[nn.Parameter, int]] = []
    groups, saved_groups = optimizer.param_groups, state["param_groups"]
    sizes, saved_sizes = ([len(g["params"]) for g in x] for x in (groups, saved_groups))
    if sizes != saved_sizes:
        problem = (
            f"its optimizer has groups of {saved_sizes} tensors, and this config gives {sizes}. "
            f"Other parameters are trained ({_FREEZING_KEYS})"
        )
    else:
        for group, saved_group in zip(groups, saved_groups, strict=True):
            pairs += zip(group["params"], saved_group["params"], strict=True)
    for parameter, index in pairs:
        for value in state["state"].get(index, {}).values():
            # The number of steps is a scalar.
            if getattr(value, "ndim", 0) and value.shape != parameter.shape:
                detr = cfg.MODEL.DETR
                problem = (
                    f"{names[parameter]} is {tuple(value.shape)} there, and "
                    f"{tuple(parameter.shape)} with this config (MODEL.DETR.NUM_OBJECT_QUERIES "
                    f"{detr.NUM_OBJECT_QUERIES}, MODEL.DETR.NUM_CLASSES {detr.NUM_CLASSES})"
                )
    if problem:
        raise UserError(
            f"The optimizer of the checkpoint does not fit: {problem}. Use the config of the "
            "checkpoint, or start a new training with it as MODEL.WEIGHTS and another OUTPUT_DIR"
        )
    kept = [{key: saved[key] for key in ("params", "lr")} for saved in saved_groups]
    options = [{**group, **k} for group, k in zip(groups, kept, strict=True)]
    return {**state, "param_groups": options}
