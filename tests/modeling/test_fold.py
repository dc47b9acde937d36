import copy

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.modeling.backbone import TorchvisionBackbone
from detr_panoptic_d2.modeling.fold import fold_batch_norms

NORMS = ("FrozenBatchNorm2d", "BatchNorm2d", "SyncBatchNorm")


def detectron2(name, norm="BN"):
    options = ["MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", norm]
    options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    options += ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
    return build_backbone(merged_cfg("", options))


BACKBONES = {
    "detectron2 R18": lambda: detectron2("build_detr_resnet_backbone", "FrozenBN"),
    "torchvision R18 trained": lambda: TorchvisionBackbone(model_name="resnet18", norm="BN"),
    "narrow trained": lambda: detectron2("build_narrow_resnet_backbone"),
    "narrow synchronised": lambda: detectron2("build_narrow_resnet_backbone", "SyncBN"),
}


def randomize_norms(module):
    for part in module.modules():
        if hasattr(part, "running_var"):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.2, 0.6)
            part.bias.data.normal_(std=0.1)
    return module


def norm_count(module):
    return sum(type(part).__name__ in NORMS for part in module.modules())


def folded_copy(module):
    folded = copy.deepcopy(module)
    fold_batch_norms(folded)
    return folded


@pytest.mark.parametrize("name", BACKBONES)
def test_fold_gives_the_same_features(name, assert_within_rounding):
    torch.manual_seed(0)
    backbone = randomize_norms(BACKBONES[name]()).eval()
    folded = folded_copy(backbone)
    assert norm_count(backbone) > 0 and norm_count(folded) == 0
    assert not any(p.requires_grad for p in folded.parameters())
    assert folded.output_shape() == backbone.output_shape()
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        exact = copy.deepcopy(backbone).double()(images.double())
        expected, outputs = backbone(images), folded(images)
    for level, feature in expected.items():
        assert feature.abs().max() > 0.05
        assert_within_rounding(outputs[level], feature, exact[level])


def test_fold_keeps_bias_activation_and_group_norm():
    torch.manual_seed(0)
    stem = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=True),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        nn.Conv2d(8, 32, 1),
        nn.GroupNorm(4, 32),
        nn.BatchNorm2d(32),
    ).eval()
    for norm in (stem[1], stem[5]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    folded = folded_copy(stem)
    assert isinstance(folded[1], nn.Identity) and isinstance(folded[5], nn.BatchNorm2d)
    images = torch.randn(1, 3, 9, 7)
    torch.testing.assert_close(folded(images), stem(images), atol=1e-5, rtol=1e-5)
