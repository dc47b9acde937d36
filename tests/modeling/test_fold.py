import copy
import pickle

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from detr_panoptic_d2.config import add_detr_panoptic_config
from detr_panoptic_d2.modeling.backbone.fold import FoldedCache, fold_frozen_batch_norm
from detr_panoptic_d2.modeling.backbone.resnet import TorchvisionResNet, narrow_resnet

NORMS = ("FrozenBatchNorm2d", "BatchNorm2d", "SyncBatchNorm")


def detectron2_resnet(depth):
    cfg = get_cfg()
    add_detr_panoptic_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_detr_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    return build_backbone(cfg)


def narrow(norm="BN"):
    return narrow_resnet(in_channels=3, widths=(8, 16, 24, 32), blocks=(1, 1, 1, 1), norm=norm)


BACKBONES = {
    "detectron2 R18": lambda: detectron2_resnet(18),
    "detectron2 R50": lambda: detectron2_resnet(50),
    "torchvision R18 frozen": lambda: TorchvisionResNet(model_name="resnet18"),
    "torchvision R18 trained": lambda: TorchvisionResNet(model_name="resnet18", norm="BN"),
    "torchvision R50 DC5": lambda: TorchvisionResNet(model_name="resnet50", dilated=True),
    "narrow trained": narrow,
    "narrow synchronised": lambda: narrow("SyncBN"),
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


@pytest.mark.parametrize("name", BACKBONES)
def test_fold_gives_the_same_features(name):
    torch.manual_seed(0)
    backbone = randomize_norms(BACKBONES[name]()).eval()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = fold_frozen_batch_norm(backbone)
    assert norm_count(backbone) > 0 and norm_count(folded) == 0
    assert not any(p.requires_grad for p in folded.parameters())
    assert folded.output_shape() == backbone.output_shape()
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected, outputs = backbone(images), folded(images)
    for level, feature in expected.items():
        assert feature.abs().max() > 0.05
        torch.testing.assert_close(outputs[level], feature, atol=1e-4, rtol=1e-4)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_convolutions_are_channels_last():
    folded = fold_frozen_batch_norm(narrow().eval())
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_batch_norm_in_training_is_left_alone():
    backbone = narrow().train()
    assert norm_count(fold_frozen_batch_norm(backbone)) == norm_count(backbone)


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
    folded = fold_frozen_batch_norm(stem)
    assert isinstance(folded[1], nn.Identity) and isinstance(folded[5], nn.BatchNorm2d)
    images = torch.randn(1, 3, 9, 7)
    torch.testing.assert_close(folded(images), stem(images), atol=1e-5, rtol=1e-5)


def test_shared_convolution_is_not_folded():
    conv = nn.Conv2d(3, 3, 1)
    head = nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)).eval()
    head[1].running_mean.fill_(2.0)
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fold_frozen_batch_norm(head)(images), head(images))


def test_preactivation_block_is_not_folded():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv1(self.bn1(x).relu())

    block = Block().eval()
    block.bn1.running_mean.fill_(2.0)
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fold_frozen_batch_norm(block)(images), block(images))


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = randomize_norms(narrow())
        self.cache = FoldedCache()


@pytest.fixture
def owner():
    torch.manual_seed(0)
    return Owner().eval()


def assert_fresh(owner):
    """The cached copy computes what the backbone computes."""
    parameter = next(owner.backbone.parameters())
    images = torch.rand(1, 3, 33, 47, dtype=parameter.dtype)
    with torch.no_grad():
        expected = owner.backbone(images)
        outputs = owner.cache.get(owner.backbone)(images)
    for level, feature in expected.items():
        torch.testing.assert_close(outputs[level], feature, atol=1e-4, rtol=1e-4)


def test_cache_is_reused_while_nothing_changes(owner):
    folded = owner.cache.get(owner.backbone)
    with torch.no_grad():
        owner.backbone(torch.rand(1, 3, 32, 32))
    assert owner.cache.get(owner.backbone) is folded
    with torch.inference_mode():
        assert owner.cache.get(owner.backbone) is folded
    assert_fresh(owner)


def optimizer_step(owner, **options):
    optimizer = torch.optim.AdamW(owner.backbone.parameters(), lr=0.1, **options)
    images = torch.rand(1, 3, 32, 32)
    sum(feature.mean() for feature in owner.backbone(images).values()).backward()
    optimizer.step()


def load_other_weights(owner):
    state = {
        key: value + 1 if value.is_floating_point() else value
        for key, value in owner.backbone.state_dict().items()
    }
    owner.backbone.load_state_dict(state)


def update_statistics(owner):
    owner.backbone.train()
    owner.backbone(torch.rand(2, 3, 64, 64))
    owner.backbone.eval()


def replace_data_twice(owner):
    """The second tensor could land at the first one's address."""
    weight = owner.backbone.stem.conv1.weight
    for _ in range(2):
        weight.data = torch.randn(weight.shape)


def replace_parameter(owner):
    conv = owner.backbone.stem.conv1
    conv.weight = nn.Parameter(torch.randn(conv.weight.shape))


CHANGES = {
    "optimizer step": optimizer_step,
    "fused optimizer step": lambda owner: optimizer_step(owner, fused=True),
    "foreach optimizer step": lambda owner: optimizer_step(owner, foreach=True),
    "load_state_dict": load_other_weights,
    "running statistics": update_statistics,
    "dtype": lambda owner: owner.double(),
    "tensor.data": replace_data_twice,
    "new parameter": replace_parameter,
}


@pytest.mark.parametrize("name", CHANGES)
def test_cache_sees_changes(owner, name):
    folded = owner.cache.get(owner.backbone)
    CHANGES[name](owner)
    assert owner.cache.get(owner.backbone) is not folded
    assert_fresh(owner)


def test_cache_sees_the_change_to_eval_mode(owner):
    owner.train()
    assert norm_count(owner.cache.get(owner.backbone)) > 0
    owner.eval()
    assert norm_count(owner.cache.get(owner.backbone)) == 0


def test_cache_follows_the_module(owner):
    other = randomize_norms(narrow()).eval()
    folded = owner.cache.get(owner.backbone)
    assert owner.cache.get(other) is not folded
    assert_fresh(owner)


def test_cache_is_outside_the_module_tree(owner):
    keys, modules = list(owner.state_dict()), len(list(owner.modules()))
    owner.cache.get(owner.backbone)
    assert list(owner.state_dict()) == keys
    assert len(list(owner.modules())) == modules


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda owner: pickle.loads(pickle.dumps(owner))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copies_of_the_owner_have_a_working_cache(owner, duplicate):
    size = len(pickle.dumps(owner))
    folded = owner.cache.get(owner.backbone)
    assert len(pickle.dumps(owner)) == size
    twin = duplicate(owner)
    load_other_weights(twin)
    assert_fresh(twin)
    assert_fresh(owner)
    assert twin.cache.get(twin.backbone) is not folded


def test_clear(owner):
    folded = owner.cache.get(owner.backbone)
    owner.cache.clear()
    assert owner.cache.get(owner.backbone) is not folded


def test_copy_made_in_inference_mode_works_outside(owner):
    with torch.inference_mode():
        owner.cache.get(owner.backbone)
    assert_fresh(owner)


def test_inference_tensors_are_never_stale():
    torch.manual_seed(0)
    with torch.inference_mode():
        owner = Owner().eval()
        assert_fresh(owner)
        owner.backbone.stem.conv1.weight.mul_(2)
        assert_fresh(owner)
    assert_fresh(owner)
