"""Files of official DETR, its Detectron2 wrapper and ResNets. Hugging Face: test_huggingface.py."""

import argparse
import logging
import pickle
import re

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import nn
from torchvision.models import resnet18, shufflenet_v2_x0_5

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.checkpoint.translate import translate

NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES}
PANOPTIC_IDS = list(NAMES)
THING_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
TORCHVISION = ("MODEL.BACKBONE.NAME", "build_torchvision_backbone")
TORCHVISION += ("MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18")


def assert_loaded(model, state, ids):
    """Every tensor of an official state dict is in the model, and nothing else is."""
    ours, used = model.state_dict(), set()
    assert ours.pop("mask_head.attention_scale", 1) == 1
    for name, tensor in state.items():
        short = name.removeprefix("detr.").replace("backbone.0.body.", "backbone.body.")
        if short.startswith("class_embed."):
            tensor = tensor[[*ids, len(tensor) - 1]]
        assert torch.equal(ours[short], tensor), name
        used.add(short)
    assert used == ours.keys()


def detectron2_name(name):
    """The name at Detectron2 of a tensor that torchvision calls ``name``."""
    for stage in (1, 2, 3, 4):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    name = name if name.startswith("res") else f"stem.{name}"
    name = name.replace("bn1", "conv1.norm").replace("bn2", "conv2.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def of_the_wrapper(state):
    """An official state dict under the names of official DETR's Detectron2 wrapper."""
    body = "backbone.0.body."
    names = {n: f"detr.{n}" for n in state}
    for name in [n for n in state if body in n]:
        start, _, rest = name.partition(body)
        names[name] = f"detr.{start}backbone.0.backbone.{detectron2_name(rest)}"
    return {names[n]: x for n, x in state.items()} | {"criterion.empty_weight": torch.ones(81)}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_official_panoptic(build, load, official, caplog, tmp_path):
    """Into torchvision's ResNet and Detectron2's, with equal numbers, and by Detectron2's own
    checkpointer: the model translates. The file of a training has the options as a Namespace with
    NumPy numbers, and an optimizer, which is not loaded."""
    state = official()
    assert len(state["detr.class_embed.weight"]) == 251
    options = argparse.Namespace(lr=1e-4, dilation=False, best=np.float64(0.4))
    content = {"model": state, "args": options, "epoch": 3, "optimizer": {"state": {}}}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    model = load(build(*TORCHVISION), content, optimizer=optimizer)
    assert_loaded(model, state, PANOPTIC_IDS)
    assert optimizer.param_groups[0]["lr"] == 0.5
    others = [load(build(), {"model": state})]
    assert not warnings(caplog)
    others.append(build("MODEL.BACKBONE.NAME", "build_resnet_backbone"))
    DetectionCheckpointer(others[1]).load(str(tmp_path / "weights.pth"))
    image = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}
    with torch.no_grad():
        expected, *found = (m.detect(m.preprocess([image])).pred_logits for m in (model, *others))
    for logits in found:
        assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_load_state_dict_of_torch(build, official):
    """Strict, and below another module as in data-parallel training."""
    model, state = build(*TORCHVISION), official()
    assert not any(model.load_state_dict(state))
    assert_loaded(model, state, PANOPTIC_IDS)
    wrapped = nn.ModuleDict({"module": build(*TORCHVISION)})
    assert not any(wrapped.load_state_dict({f"module.{n}": x for n, x in state.items()}))
    assert_loaded(wrapped["module"], state, PANOPTIC_IDS)
    del state["mask_head.gn3.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*mask_head\.gn3\.bias"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key.*no_such_tensor"):
        model.load_state_dict({"no_such_tensor": torch.ones(1)})


def test_boxes_and_masks(build, load, official, boxes_only, caplog):
    """Boxes alone, boxes as the start of a model with masks, and panoptic files without them."""
    state = official(masks=False, rows=92)
    assert_loaded(load(build(*TORCHVISION, *boxes_only), {"model": state}), state, THING_IDS)
    assert not warnings(caplog)
    model = build(*TORCHVISION, *boxes_only, "MODEL.MASK_ON", True)
    before = {name: x.clone() for name, x in model.mask_head.state_dict().items()}
    load(model, {"model": state})
    assert torch.equal(model.class_embed.weight[:-1], state["class_embed.weight"][THING_IDS])
    assert all(torch.equal(before[n], x) for n, x in model.mask_head.state_dict().items())
    (warning,) = warnings(caplog)
    assert "has nothing for bbox_attention, mask_head: initial values are kept" in warning
    state = official()
    with caplog.at_level(logging.INFO):
        model = load(build(*TORCHVISION, *boxes_only), {"model": state})
    assert torch.equal(model.class_embed.weight[:-1], state["detr.class_embed.weight"][THING_IDS])
    assert re.search("left out: bbox_attention.q_linear.weight, .* and 29 more", caplog.text)


@pytest.mark.parametrize("masks", [True, False])
def test_detectron2_wrapper(build, load, official, boxes_only, masks):
    """Its class rows are contiguous; its criterion saves a buffer."""
    state = official(masks=masks, rows=81)
    model = build(*boxes_only, "MODEL.MASK_ON", masks, *TORCHVISION)
    load(model, {"model": of_the_wrapper(state), "iteration": 7})
    assert_loaded(model, state, range(80))


class Head(nn.Module):
    """A model with a class head, its own rows -1, and enough of a backbone to be recognised."""

    def __init__(self, ids, names):
        super().__init__()
        self.class_embed = nn.Linear(3, len(ids) + 1)
        self.backbone = nn.Module()
        self.backbone.conv1 = nn.Conv2d(1, 1, 1)
        self.dataset_ids, self.class_names = ids, names
        nn.init.constant_(self.class_embed.weight, -1)
        nn.init.constant_(self.class_embed.bias, -1)


def choose(rows, file_names, ids, names):
    """Translate an official head whose row r is filled with r."""
    row = torch.arange(float(rows))
    state = {"class_embed.weight": row[:, None].expand(-1, 3), "class_embed.bias": row}
    state["backbone.0.body.conv1.weight"] = torch.ones(1, 1, 1, 1)
    return translate(Head(ids, names), state, file_names)


@pytest.mark.parametrize(
    ("rows", "file_names", "ids", "names", "expected"),
    [
        # By id and not by position: another order, and an id of the panoptic head only.
        (251, None, [200, 1, 90], ["rug-merged", "person", "toothbrush"], [200, 1, 90, 250]),
        # The published panoptic files of Hugging Face name the things alone.
        (251, {i: NAMES[i] for i in THING_IDS}, [200, 1], ["rug-merged", "person"], [200, 1, 250]),
        (12, {3: "cell", 7: "wall"}, [7, 3], ["wall", "cell"], [7, 3, 11]),
        # A class that the file lacks keeps the model's row.
        (92, None, [1, 200], ["person", "rug-merged"], [1, -1, 91]),
    ],
)
def test_class_rows_by_id(rows, file_names, ids, names, expected):
    result = choose(rows, file_names, ids, names)
    assert result.state["class_embed.bias"].tolist() == expected
    assert result.state["class_embed.weight"][:, 0].tolist() == expected
    assert any("1 of the model's 2 classes" in w for w in result.warnings) == (-1 in expected)


@pytest.mark.parametrize(
    ("rows", "file_names", "ids", "names", "why"),
    [
        # Row 26 of COCO's head exists, but 26 is no category of COCO.
        (251, None, [26], ["hat"], "the file's 250 classes are not for the model's 1 classes"),
        (92, {1: "cell"}, [1], ["person"], "id 1 is 'cell', not 'person'"),
        (12, None, [1], ["person"], "the file's 11 classes are not for the model's 1"),
    ],
)
def test_other_classes_get_nothing(rows, file_names, ids, names, why):
    result = choose(rows, file_names, ids, names)
    assert "class_embed" in result.kept and "class_embed.bias" not in result.state
    (warning,) = (w for w in result.warnings if "class head keeps its initial values" in w)
    assert why in warning


@pytest.fixture
def torchvision_weights():
    torch.manual_seed(0)
    state = resnet18(num_classes=10).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def assert_resnet(model, weights):
    """All tensors of a Detectron2 ResNet are those of torchvision's."""
    for name, tensor in model.backbone.state_dict().items():
        theirs = {detectron2_name(n): x for n, x in weights.items()}
        assert torch.equal(tensor, theirs[name]), name


def test_other_backbone_of_torchvision(build, load):
    """A file of a network that is not a ResNet, with the library's own names."""
    torch.manual_seed(0)
    weights = shufflenet_v2_x0_5(num_classes=10).state_dict()
    options = [*TORCHVISION[:3], "shufflenet_v2_x0_5", "MODEL.RESNETS.NORM", "BN"]
    ours = load(build(*options), weights).backbone.body.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("backbone", ["torchvision", "timm"])
def test_resnet_of_torchvision(build, load, torchvision_weights, backbone, caplog):
    """Onto Detectron2's, torchvision's and timm's, with the counters of batch norms that learn."""
    pytest.importorskip(backbone)
    assert_resnet(load(build(), torchvision_weights), torchvision_weights)
    (warning,) = warnings(caplog)
    assert "holds a backbone only: all other parts keep their initial values" in warning
    options = ["MODEL.BACKBONE.NAME", f"build_{backbone}_backbone", "MODEL.RESNETS.NORM", "BN"]
    options += ["MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18", "MODEL.BACKBONE.FREEZE_AT", 0]
    torchvision_weights["bn1.num_batches_tracked"] += 5
    ours = load(build(*options), torchvision_weights).backbone.body.state_dict()
    for name, tensor in torchvision_weights.items():
        assert name.startswith("fc.") or torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("protocol", [2, 5])
def test_resnet_of_detectron2s_catalog(build, torchvision_weights, tmp_path, monkeypatch, protocol):
    """The default MODEL.WEIGHTS, found in Detectron2's cache: a pickle of NumPy arrays."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    folder = tmp_path / "detectron2" / "ImageNetPretrained" / "torchvision"
    folder.mkdir(parents=True)
    arrays = {detectron2_name(n): x.numpy() for n, x in torchvision_weights.items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (folder / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    model = build()
    PanopticCheckpointer(model).load("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
    assert_resnet(model, torchvision_weights)


def test_dilated_networks_although_all_tensors_fit(build, load, official, caplog):
    """A DC5 file has the tensors of one without dilation; the numbers would be wrong."""
    state = official(masks=False)
    options = argparse.Namespace(dilation=True)
    for content, name in (
        ({"model": state, "args": options}, "weights.pth"),
        ({"model": state}, "detr-r50-dc5-f0fb7ef5.pth"),
    ):
        caplog.clear()
        load(build(*TORCHVISION), content, name=name)
        assert "set MODEL.RESNETS.RES5_DILATION to 2" in caplog.text
