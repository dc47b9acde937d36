import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.engine import build_optimizer
from detr_panoptic_d2.errors import UserError


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


@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
def test_a_scaled_step_equals_an_unscaled_one(cfg, optimizer):
    """As Detectron2's AMPTrainer steps: clipping must see what is unscaled."""
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    weights, norms = [], []
    for scale in (2.0**16, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        step = build_optimizer(cfg, model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for _ in range(3):
            step.zero_grad()
            scaler.scale(model(torch.ones(2, 4)).square().sum()).backward()
            scaler.step(step)
            scaler.update()
            norms.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # Powers of two scale without rounding.
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-8)
    assert norms[:3] == pytest.approx(norms[3:], rel=1e-5)
    assert max(norms) <= 0.1 + 1e-6


def test_fused_only_where_gradients_are_not_scaled(cfg, model):
    assert build_optimizer(cfg, model).defaults["fused"]
    cfg.SOLVER.AMP.ENABLED = True
    assert not build_optimizer(cfg, model).defaults["fused"]


def test_batch_and_rate_that_do_not_fit(cfg, model, caplog):
    cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH = 1e-4, 16
    build_optimizer(cfg, model)
    # A quarter of the paper's batch is official DETR's own default.
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    cfg.SOLVER.IMS_PER_BATCH = 4
    build_optimizer(cfg, model)
    assert "SOLVER.BASE_LR from 6.25e-06 (linear in the batch) to 2.5e-05" in caplog.text
    assert "16 times SOLVER.MAX_ITER and STEPS" in caplog.text
    cfg.SOLVER.BASE_LR, cfg.SOLVER.REFERENCE_WORLD_SIZE = 4e-4, 64
    build_optimizer(cfg, model)
    assert "has scaled SOLVER.BASE_LR to 0.0004" in caplog.text


def test_nothing_to_train(cfg, model):
    with pytest.raises(UserError, match="FREEZE_DETECTOR"):
        build_optimizer(cfg, model.requires_grad_(False))
