import importlib.util
import math
import sys
import urllib.error

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn
from torchvision import models

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.modeling.backbone import (
    LEVELS,
    RenamedBackbone,
    check_backbone,
    lacks_norm_statistics,
)
from tests.modeling.test_fold import randomize_norms

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)


def build(builder, *options):
    torch.manual_seed(0)
    levels = ["MODEL.RESNETS.OUT_FEATURES", list(LEVELS), "MODEL.RESNETS.STRIDE_IN_1X1", False]
    return build_backbone(merged_cfg("", ["MODEL.BACKBONE.NAME", builder, *levels, *options]))


def build_timm(name, *options):
    return build("build_timm_backbone", "MODEL.DETR.BACKBONE.MODEL_NAME", name, *options)


def build_torchvision(name, *options):
    return build("build_torchvision_backbone", "MODEL.DETR.BACKBONE.MODEL_NAME", name, *options)


def assert_true_shapes(backbone, size, rounding=math.ceil):
    """The features have the channels and the strides of ``output_shape()``."""
    check_backbone(backbone)
    with torch.no_grad():
        outputs = backbone.eval()(torch.rand(2, 3, *size))
    assert list(outputs) == list(LEVELS)
    for level, shape in backbone.output_shape().items():
        expected = [rounding(side / shape.stride) for side in size]
        assert outputs[level].shape == (2, shape.channels, *expected)
        assert outputs[level].is_contiguous()


def strides(backbone):
    return [backbone.output_shape()[level].stride for level in LEVELS]


@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_torchvision_freezing(freeze_at):
    backbone = build_torchvision(
        "resnet18", "MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.RESNETS.NORM", "BN"
    )
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    for number, names in enumerate(stages, start=1):
        parts = [getattr(backbone.body, name) for name in names]
        trained = {p.requires_grad for part in parts for p in part.parameters()}
        norms = {type(m) for part in parts for m in part.modules() if hasattr(m, "running_var")}
        assert trained == {number > freeze_at}
        assert norms == {FrozenBatchNorm2d if number <= freeze_at else nn.BatchNorm2d}


def test_torchvision_shufflenet():
    """Not a ResNet: what is the stem, and what the levels are."""
    options = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT")
    for freeze_at, expected in ((2, {"conv1"}), (3, {"conv1", "stage2"}), (0, set())):
        backbone = build_torchvision("shufflenet_v2_x0_5", *options, freeze_at)
        parts = ("conv1", "stage2", "stage3")
        stuck = {x for x in parts if not next(backbone.body[x].parameters()).requires_grad}
        assert stuck == expected
    network = randomize_norms(models.shufflenet_v2_x0_5().eval())
    state = {k: v for k, v in network.state_dict().items() if not k.startswith(("conv5", "fc"))}
    backbone.eval().body.load_state_dict(state)
    images = torch.randn(1, 3, 65, 97)
    x = network.maxpool(network.conv1(images))
    expected = [
        x := stage(x) for stage in (nn.Identity(), network.stage2, network.stage3, network.stage4)
    ]
    for (level, shape), feature in zip(backbone.output_shape().items(), expected, strict=True):
        torch.testing.assert_close(backbone(images)[level], feature)
        assert shape.channels == feature.shape[1]
        assert [math.ceil(n / shape.stride) for n in (65, 97)] == list(feature.shape[-2:])


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_torchvision_imagenet_weights(monkeypatch, norm):
    torch.manual_seed(1)
    state = models.resnet18().state_dict()
    state["bn1.running_mean"].fill_(3.0)
    monkeypatch.setattr(
        models.ResNet18_Weights, "get_state_dict", lambda self, **options: dict(state)
    )
    options = ("MODEL.DETR.BACKBONE.PRETRAINED", True, "MODEL.RESNETS.NORM", norm)
    backbone = build_torchvision("resnet18", *options)
    assert torch.equal(backbone.body.bn1.running_mean, state["bn1.running_mean"])
    assert torch.equal(backbone.body.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    with pytest.raises(ValueError, match="MODEL.RESNETS.NORM"):
        build_torchvision("resnet18", *options[:3], "GN")


def test_torchvision_offline(monkeypatch):
    def fail(self, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match="PRETRAINED.*no route to host.*MODEL.WEIGHTS"):
        build_torchvision("resnet18", "MODEL.DETR.BACKBONE.PRETRAINED", True)


@needs_timm
@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        ("convnext_atto", math.floor),
        ("swin_tiny_patch4_window7_224", math.ceil),
        ("resnet18", math.ceil),
    ],
)
def test_timm_shapes(name, rounding):
    backbone = build_timm(name)
    assert backbone.training
    assert strides(backbone) == [4, 8, 16, 32]
    assert_true_shapes(backbone, (65, 97), rounding)


@needs_timm
def test_timm_norms_and_freezing():
    freeze = "MODEL.BACKBONE.FREEZE_AT"
    for name in ("resnet18", "efficientnet_b0"):
        frozen = build_timm(name, freeze, 0)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
        assert next(frozen.body.parameters()).requires_grad
        assert lacks_norm_statistics(frozen)
        assert not lacks_norm_statistics(randomize_norms(frozen))
    assert not lacks_norm_statistics(build_timm("resnet18", "MODEL.RESNETS.NORM", "BN", freeze, 0))
    for name, freeze_at, stem in (
        ("resnet18", 2, ("conv1", "bn1", "layer1")),
        ("convnext_atto", 2, ("stem", "stages_0")),
        ("efficientnet_b0", 1, ("conv_stem", "bn1", "blocks.0")),
    ):
        body = build_timm(name, freeze, freeze_at, "MODEL.RESNETS.NORM", "BN").body
        stuck = {key for key, p in body.named_parameters() if not p.requires_grad}
        assert stuck == {key for key, _ in body.named_parameters() if key.startswith(stem)}
    assert not isinstance(body.bn1, nn.BatchNorm2d)
    assert isinstance(body.blocks[1][0].bn1, nn.BatchNorm2d)


@needs_timm
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224.*not .16, 16, 16"),
        ("hiera_tiny_224", "hiera_tiny_224.*any size"),
        ("no_such_model", "no_such_model.*list_models"),
    ],
)
def test_timm_errors(name, message):
    with pytest.raises(ValueError, match=message):
        build_timm(name)


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install '\.\[timm\]'"):
        build_timm("resnet18")


def test_renamed_fpn():
    backbone = build(
        "build_renamed_backbone",
        "MODEL.DETR.BACKBONE.MODEL_NAME", "build_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.NORM", "BN",
    )  # fmt: skip
    assert isinstance(backbone, RenamedBackbone)
    assert backbone.size_divisibility == backbone.body.size_divisibility == 32
    assert backbone.padding_constraints == backbone.body.padding_constraints
    assert_true_shapes(backbone, (64, 96))
    keys = "MODEL.DETR.BACKBONE.MODEL_NAME", "build_resnet_backbone", "MODEL.DETR.BACKBONE.FEATURES"
    with pytest.raises(ValueError, match="finest first"):
        build("build_renamed_backbone", *keys, ["res5", "res4", "res3", "res2"])
    with pytest.raises(ValueError, match="the backbone to wrap"):
        build("build_renamed_backbone", keys[0], "build_renamed_backbone")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("MODEL.RESNETS.NORM", "BN"), [4, 8, 16, 32]),
        (("MODEL.RESNETS.RES5_DILATION", 2), [4, 8, 16, 16]),
        (("MODEL.DETR.BACKBONE.STEM_STRIDE", 2), [2, 4, 8, 16]),
    ],
)
def test_narrow_resnet(options, expected):
    backbone = build("build_narrow_resnet_backbone", *options)
    assert sum(p.numel() for p in backbone.parameters()) < 1_200_000
    assert strides(backbone) == expected
    assert_true_shapes(backbone, (65, 97))
