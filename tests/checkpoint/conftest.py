"""A small model, and other programs' checkpoints of the same network with their names."""

import os
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.engine import setup_cfg

os.environ["HF_HUB_OFFLINE"] = "1"
WIDTH, HEADS, QUERIES, FEEDFORWARD = 32, 8, 5, 48


@pytest.fixture
def config() -> Callable[..., CfgNode]:
    """Return ``config("KEY", value, ...)``: a narrow DETR with a ResNet-18 for COCO panoptic."""
    values = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.DETR.HIDDEN_DIM": WIDTH,
        "MODEL.DETR.NUM_OBJECT_QUERIES": QUERIES,
        "MODEL.DETR.ENC_LAYERS": 1,
        "MODEL.DETR.DEC_LAYERS": 2,
        "MODEL.DETR.DIM_FEEDFORWARD": FEEDFORWARD,
        "MODEL.DETR.DROPOUT": 0.0,
    }

    def make(*options: object) -> CfgNode:
        pairs = [x for item in values.items() for x in item]
        return setup_cfg("detr_panoptic_R50.yaml", [*pairs, *options])

    return make


@pytest.fixture
def build(config) -> Callable[..., nn.Module]:
    """Return ``build("KEY", value, ...)``: the model of :func:`config`."""
    return lambda *options: build_model(config(*options)).eval()


@pytest.fixture
def boxes_only() -> list:
    """Options of a model without masks for COCO's 80 things."""
    options = ["MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False]
    options += ["MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.NUM_CLASSES", 80]
    return [*options, "DATASETS.TRAIN", ("coco_2017_train",), "DATASETS.TEST", ()]


@pytest.fixture
def load(tmp_path) -> Callable[..., nn.Module]:
    """Return ``load(model, content)``: save the content, load it, return the model."""

    def make(model: nn.Module, content: dict, name: str = "weights.pth", **state) -> nn.Module:
        path = tmp_path / name
        torch.save(content, path)
        PanopticCheckpointer(model, **state).load(str(path))
        return model

    return make


@pytest.fixture
def official() -> Callable[..., dict[str, torch.Tensor]]:
    """Return ``official(masks=True, rows=251)``: a state dict of facebookresearch/detr.

    Its names are those that torch, torchvision and official's few own modules give.
    """

    def make(masks: bool = True, rows: int = 251) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        detector = _detector(rows)
        if not masks:
            return detector.state_dict()
        model = nn.Module()
        model.detr = detector
        model.bbox_attention = nn.Module()
        model.bbox_attention.q_linear = nn.Linear(WIDTH, WIDTH)
        model.bbox_attention.k_linear = nn.Linear(WIDTH, WIDTH)
        model.mask_head = _mask_head()
        return model.state_dict()

    return make


def _detector(rows: int) -> nn.Module:
    model = nn.Module()
    model.transformer = nn.Module()
    options = {"dim_feedforward": FEEDFORWARD, "batch_first": True}
    encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, **options)
    decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, **options)
    model.transformer.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
    model.transformer.decoder = nn.TransformerDecoder(decoder, 2, nn.LayerNorm(WIDTH))
    model.class_embed = nn.Linear(WIDTH, rows)
    model.bbox_embed = nn.Module()
    widths = [WIDTH, WIDTH, WIDTH, 4]
    model.bbox_embed.layers = nn.ModuleList(
        nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
    )
    model.query_embed = nn.Embedding(QUERIES, WIDTH)
    model.input_proj = nn.Conv2d(512, WIDTH, 1)
    network = resnet18(norm_layer=FrozenBatchNorm2d)
    parts = [(n, m) for n, m in network.named_children() if n not in ("avgpool", "fc")]
    joiner = nn.Sequential(nn.Module())
    joiner[0].body = nn.Sequential(OrderedDict(parts))
    model.backbone = joiner
    # Values that tell the layers apart, where the constructors give zeros and ones.
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
            elif "in_proj" in name:
                tensor.copy_(torch.randn(tensor.shape) * 0.1)
    return model


def _mask_head() -> nn.Module:
    head = nn.Module()
    widths = [WIDTH + HEADS, WIDTH + HEADS, WIDTH // 2, WIDTH // 4, WIDTH // 8, WIDTH // 16]
    for i in range(1, 6):
        setattr(head, f"lay{i}", nn.Conv2d(widths[i - 1], widths[i], 3, padding=1))
        setattr(head, f"gn{i}", nn.GroupNorm(min(8, widths[i]), widths[i]))
    head.out_lay = nn.Conv2d(widths[5], 1, 3, padding=1)
    for i, channels in enumerate((256, 128, 64), start=1):
        setattr(head, f"adapter{i}", nn.Conv2d(channels, widths[i + 1], 1))
    return head
