import importlib.util
import math
import re
import sys
import urllib.error

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn
from torchvision import models

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.modeling.backbone import (
    LEVELS,
    RenamedBackbone,
    check_backbone,
    lacks_norm_statistics,
)

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)


def make_cfg(builder, *options):
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.RESNETS.OUT_FEATURES = list(LEVELS)
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.merge_from_list(list(options))
    return cfg


def build(builder, *options):
    torch.manual_seed(0)
    return build_backbone(make_cfg(builder, *options))


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


def load_torchvision_weights(backbone, network):
    """Copy a torchvision network into Detectron2's ResNet by name."""
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        key = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key)
        key = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", key)
        key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
        key = key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        state[key] = value
    backbone.load_state_dict(state)


def randomize_norms(module):
    for part in module.modules():
        if hasattr(part, "running_var"):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.2, 0.6)
            part.bias.data.normal_(std=0.1)


@pytest.mark.parametrize("dilation", [1, 2])
def test_detr_resnet_equals_torchvision(dilation):
    torch.manual_seed(0)
    network = models.resnet50(replace_stride_with_dilation=[False, False, dilation == 2]).eval()
    randomize_norms(network)
    backbone = build("build_detr_resnet_backbone", "MODEL.RESNETS.RES5_DILATION", dilation).eval()
    load_torchvision_weights(backbone, network)
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for i, feature in enumerate(backbone(images).values(), start=1):
            x = getattr(network, f"layer{i}")(x)
            assert x.abs().max() > 0.1
            torch.testing.assert_close(feature, x, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3])
def test_torchvision_shufflenet(freeze_at):
    torch.manual_seed(0)
    options = ("MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.RESNETS.NORM", "BN")
    backbone = build_torchvision("shufflenet_v2_x0_5", *options)
    assert {
        name
        for name in ("conv1", "stage2", "stage3")
        if not next(backbone.body[name].parameters()).requires_grad
    } == set(((), ("conv1",), ("conv1",), ("conv1", "stage2"))[freeze_at])
    network = models.shufflenet_v2_x0_5().eval()
    randomize_norms(network)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith(("conv5", "fc"))}
    backbone.eval().body.load_state_dict(state, strict=freeze_at == 0)
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
    for name in ("resnet18", "efficientnet_b0"):
        frozen = build_timm(name, "MODEL.BACKBONE.FREEZE_AT", 0)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
        assert next(frozen.body.parameters()).requires_grad
        assert lacks_norm_statistics(frozen)
        randomize_norms(frozen)
        assert not lacks_norm_statistics(frozen)
    assert not lacks_norm_statistics(build_timm("resnet18", "MODEL.RESNETS.NORM", "BN",
                                                "MODEL.BACKBONE.FREEZE_AT", 0))  # fmt: skip
    for name, first_trained in (("resnet18", "layer2.0"), ("convnext_atto", "stages_1.")):
        backbone = build_timm(name, "MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.NORM", "BN")
        trained = [key for key, p in backbone.body.named_parameters() if p.requires_grad]
        stuck = [key for key, p in backbone.body.named_parameters() if not p.requires_grad]
        assert trained[0].startswith(first_trained)
        assert stuck and all(key.startswith(("conv1", "bn1", "layer1", "stem", "stages_0"))
                             for key in stuck)  # fmt: skip
    efficientnet = build_timm(
        "efficientnet_b0", "MODEL.BACKBONE.FREEZE_AT", 1, "MODEL.RESNETS.NORM", "BN"
    )
    trained = [key for key, p in efficientnet.body.named_parameters() if p.requires_grad]
    assert trained[0].startswith("blocks.1.")
    assert not isinstance(efficientnet.body.bn1, nn.BatchNorm2d)
    assert isinstance(efficientnet.body.blocks[1][0].bn1, nn.BatchNorm2d)


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


@pytest.mark.parametrize(
    ("name", "features", "message"),
    [
        ("build_renamed_backbone", ["res2", "res3", "res4", "res5"], "the backbone to wrap"),
        ("build_resnet_backbone", ["p2", "p3", "res4", "res5"], "four of the levels of ResNet"),
        ("build_resnet_backbone", ["res5", "res4", "res3", "res2"], "finest first"),
    ],
)
def test_renamed_errors(name, features, message):
    with pytest.raises(ValueError, match=message):
        build(
            "build_renamed_backbone",
            "MODEL.DETR.BACKBONE.MODEL_NAME", name,
            "MODEL.DETR.BACKBONE.FEATURES", features,
        )  # fmt: skip


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
