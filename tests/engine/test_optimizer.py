import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.engine import build_optimizer


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.WEIGHT_DECAY = 0.1
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    return cfg


@pytest.fixture
def model():
    model = nn.ModuleDict({"backbone": nn.Conv2d(1, 2, 1), "norm": nn.LayerNorm(3)})
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    return model


def test_groups(cfg, model):
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    backbone, rest = optimizer.param_groups
    assert set(backbone["params"]) == set(model["backbone"].parameters())
    assert set(rest["params"]) == set(model["norm"].parameters())
    assert backbone["lr"] == pytest.approx(0.001)
    assert rest["lr"] == 0.01
    assert backbone["weight_decay"] == rest["weight_decay"] == 0.1


def test_full_model_clipping(cfg, model):
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.MOMENTUM = 0.0
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    optimizer = build_optimizer(cfg, model)
    params = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, params, strict=True)])
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-4)


@pytest.mark.parametrize("clip_type", ["value", "norm"])
def test_detectron2_clipping(cfg, model, clip_type):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    optimizer = build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    assert model["norm"].weight.grad.max() <= cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE


def test_errors(cfg, model):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="LION.*ADAMW"):
        build_optimizer(cfg, model)
    with pytest.raises(ValueError, match="FREEZE_DETECTOR"):
        build_optimizer(cfg, model.requires_grad_(False))
