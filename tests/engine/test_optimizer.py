import pytest
import torch
from torch import nn

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.engine import build_optimizer
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def cfg():
    options = ["SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.1]
    return merged_cfg("", [*options, "SOLVER.CLIP_GRADIENTS.ENABLED", False])


@pytest.fixture
def model():
    model = nn.ModuleDict({"backbone": nn.Conv2d(1, 2, 1), "norm": nn.LayerNorm(3)})
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    return model


def test_groups(cfg, model):
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]
    backbone, rest = optimizer.param_groups
    assert set(backbone["params"]) == set(model["backbone"].parameters())
    assert set(rest["params"]) == set(model["norm"].parameters())
    assert (backbone["lr"], rest["lr"]) == (pytest.approx(0.001), 0.01)
    assert backbone["weight_decay"] == rest["weight_decay"] == 0.1


def test_layer_decay_and_frozen_modules(cfg, tiny_model):
    model = tiny_model("MODEL.FREEZE", "('transformer.encoder', 'backbone.res2')").train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("transformer.encoder.", "backbone.res2."))
    }
    assert not any(m.training for m in model.backbone.res2.modules() if hasattr(m, "running_mean"))
    cfg.SOLVER.LAYER_DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER = 0.5, 0.1
    rates = {p: g["lr"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    factors = {"backbone.res5": 0.1, "backbone.res4": 0.05, "backbone.stem": 0.1 / 16}
    for name, factor in {**factors, "transformer.decoder": 1, "input_proj": 1}.items():
        for parameter in model.get_submodule(name).parameters():
            assert rates[parameter] == pytest.approx(0.01 * factor)


@pytest.mark.parametrize("optimizer", ["ADAMW", "SGD"])
def test_clipping_and_scaled_steps(cfg, optimizer):
    """As Detectron2's AMPTrainer steps: clipping must see what is unscaled."""
    cfg.SOLVER.OPTIMIZER = optimizer
    cfg.SOLVER.AMP.ENABLED = True
    for key, value in (("ENABLED", True), ("CLIP_TYPE", "full_model"), ("CLIP_VALUE", 0.1)):
        cfg.SOLVER.CLIP_GRADIENTS[key] = value
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
    assert max(norms) == pytest.approx(0.1, rel=1e-4)


def test_nothing_to_train(cfg, model):
    with pytest.raises(UserError, match="FREEZE_DETECTOR"):
        build_optimizer(cfg, model.requires_grad_(False))
