import argparse
import logging

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from detr_panoptic_d2.apps.export_checkpoint import huggingface_checkpoint
from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.data.metadata import dataset_ids
from detr_panoptic_d2.errors import UserError

PANOPTIC_IDS = [category["id"] for category in COCO_CATEGORIES]
THING_IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]


def assert_loaded(model, state, ids, body="backbone.body."):
    """Every tensor of an official state dict is in the model, and nothing else is."""
    ours, used = model.state_dict(), set()
    for name, tensor in state.items():
        short = name.removeprefix("detr.").replace("backbone.0.body.", body)
        if short.startswith("class_embed."):
            tensor = tensor[[*ids, len(tensor) - 1]]
        assert torch.equal(ours[short], tensor), name
        used.add(short)
    assert used == ours.keys()


def assert_near(found, expected, part):
    """Equal within a part of the greatest value."""
    tolerance = part * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def with_detectron2_names(state):
    """The backbone's names as the Detectron2 wrapper has them; all else has its ``detr.``."""
    renamed = {}
    for name, tensor in state.items():
        if ".body." in name:
            name = name.replace(".body.", ".backbone.")
            for stage in (1, 2, 3, 4):
                name = name.replace(f"layer{stage}", f"res{stage + 1}")
            if "res" not in name:
                name = name.replace("backbone.0.backbone.", "backbone.0.backbone.stem.")
            name = name.replace("bn1", "conv1.norm").replace("bn2", "conv2.norm")
            name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[f"detr.{name}"] = tensor
    return renamed


TORCHVISION = ("MODEL.BACKBONE.NAME", "build_torchvision_backbone")
TORCHVISION += ("MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18")


def test_panoptic_onto_torchvision(build, load, official):
    state = official()
    assert len(state["detr.class_embed.weight"]) == 251
    model = load(build(*TORCHVISION), {"model": state})
    assert dataset_ids(MetadataCatalog.get("coco_2017_train_panoptic")) == PANOPTIC_IDS
    assert_loaded(model, state, PANOPTIC_IDS)


@pytest.mark.parametrize("name", ["build_resnet_backbone", "build_detr_resnet_backbone"])
def test_panoptic_onto_detectron2_resnet(build, load, official, name, caplog):
    state = official()
    reference = load(build(*TORCHVISION), {"model": state})
    model = load(build("MODEL.BACKBONE.NAME", name), {"model": state})
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    image = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}
    with torch.no_grad():
        found, expected = (m.detect(m.preprocess([image])) for m in (model, reference))
    for level, values in expected.features.items():
        assert_near(found.features[level], values, 1e-5)
    assert_near(found.pred_logits, expected.pred_logits, 1e-4)


def test_training_file_with_options_and_optimizer(build, load, official):
    """Official training writes its options as a Namespace, with NumPy numbers among them."""
    state = official()
    options = argparse.Namespace(lr=1e-4, dilation=False, nheads=8, best=np.float64(0.4))
    content = {"model": state, "args": options, "epoch": 3, "optimizer": {"state": {}}}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    model = load(build(*TORCHVISION), content, optimizer=optimizer)
    assert_loaded(model, state, PANOPTIC_IDS)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("names", ["official", "data parallel", "wrapper", "hugging face"])
def test_detectron2s_checkpointer_gives_the_same(build, official, tmp_path, names):
    """The model renames: any checkpointer will do."""
    state = official(rows=81 if names == "wrapper" else 251)
    projection = state["detr.input_proj.weight"]
    if names == "data parallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    elif names == "wrapper":
        state = with_detectron2_names(state)
    elif names == "hugging face":
        model = build(*TORCHVISION)
        model.load_state_dict(state)
        state = huggingface_checkpoint(model)[0]
    torch.save({"model": state}, tmp_path / "weights.pth")
    torch.manual_seed(0)
    ours, stock = build(), build()
    # Class rows that the file lacks keep the model's own values.
    stock.load_state_dict(ours.state_dict())
    PanopticCheckpointer(ours).load(str(tmp_path / "weights.pth"))
    DetectionCheckpointer(stock).load(str(tmp_path / "weights.pth"))
    expected = ours.state_dict()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(stock.input_proj.weight, projection)


def test_detectron2s_predictor_gives_the_same(config, official, tmp_path):
    """``DefaultPredictor(cfg)`` with an official file: the result of the converted file."""
    options = ["MODEL.DETR.TEST.INSTANCE_ON", True, "MODEL.DETR.TEST.SCORE_THRESH", 0.0]
    options += ["INPUT.MIN_SIZE_TEST", 64, "DATASETS.TEST", ("coco_2017_val_panoptic",)]
    torch.save({"model": official()}, tmp_path / "official.pth")
    model = build_model(config(*options))
    PanopticCheckpointer(model, str(tmp_path)).load(str(tmp_path / "official.pth"))
    PanopticCheckpointer(model, str(tmp_path)).save("ours")
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    found, expected = (
        DefaultPredictor(config(*options, "MODEL.WEIGHTS", str(tmp_path / f"{name}.pth")))(image)
        for name in ("official", "ours")
    )
    assert expected["panoptic_seg"][1]
    assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert torch.equal(found["instances"].scores, expected["instances"].scores)


def test_load_state_dict_of_torch(build, official):
    """Strict, and below another module as in data-parallel training."""
    model, state = build(*TORCHVISION), official()
    assert not any(model.load_state_dict(state))
    assert_loaded(model, state, PANOPTIC_IDS)
    wrapped = torch.nn.ModuleDict({"module": build(*TORCHVISION)})
    assert not any(wrapped.load_state_dict({f"module.{n}": x for n, x in state.items()}))
    assert_loaded(wrapped["module"], state, PANOPTIC_IDS)
    del state["mask_head.gn3.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*mask_head\.gn3\.bias"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key.*no_such_tensor"):
        model.load_state_dict({"no_such_tensor": torch.ones(1)})


def test_boxes_only(build, load, official, boxes_only):
    state = official(masks=False, rows=92)
    assert_loaded(load(build(*TORCHVISION, *boxes_only), {"model": state}), state, THING_IDS)


def test_boxes_into_a_model_with_masks(build, load, official, boxes_only, caplog):
    """The start of instance segmentation: the detector is loaded, the mask head is new."""
    options = [*boxes_only, "MODEL.MASK_ON", True]
    model = build(*TORCHVISION, *options)
    before = {name: x.clone() for name, x in model.mask_head.state_dict().items()}
    state = official(masks=False, rows=92)
    with caplog.at_level(logging.INFO):
        load(model, {"model": state})
    assert torch.equal(model.query_embed.weight, state["query_embed.weight"])
    assert torch.equal(model.class_embed.weight[:-1], state["class_embed.weight"][THING_IDS])
    assert all(torch.equal(before[n], x) for n, x in model.mask_head.state_dict().items())
    assert "| mask_head" in caplog.text
    assert "| not loaded | the file has no masks" in caplog.text


def test_panoptic_into_a_model_without_masks(build, load, official, boxes_only, caplog):
    state = official()
    with caplog.at_level(logging.INFO):
        model = load(build(*TORCHVISION, *boxes_only), {"model": state})
    assert torch.equal(model.class_embed.weight[:-1], state["detr.class_embed.weight"][THING_IDS])
    assert "the model has no masks (MODEL.MASK_ON)" in caplog.text


@pytest.mark.parametrize("masks", [True, False])
def test_detectron2_wrapper(build, load, official, boxes_only, masks):
    """Its class rows are contiguous; its criterion saves a buffer."""
    state = official(masks=masks, rows=81)
    content = {**with_detectron2_names(state), "criterion.empty_weight": torch.ones(81)}
    model = build(*boxes_only, "MODEL.MASK_ON", masks, *TORCHVISION)
    load(model, {"model": content, "iteration": 7})
    assert_loaded(model, state, range(80))


def test_wrapper_with_its_converters_mistake(build, load, official, boxes_only, caplog):
    """One version of the wrapper's converter has a copy of the first row as no-object."""
    state = official(masks=False, rows=81)
    for name in ("class_embed.weight", "class_embed.bias"):
        state[name][-1] = state[name][0]
    model = build(*boxes_only)
    no_object = model.class_embed.weight[-1].clone()
    load(model, {"model": with_detectron2_names(state)})
    assert torch.equal(model.class_embed.weight[:-1], state["class_embed.weight"][:-1])
    assert torch.equal(model.class_embed.weight[-1], no_object)
    assert "no-object stays as it was" in caplog.text


def test_pre_norm(build, load, official):
    state = official()
    for what in ("weight", "bias"):
        state[f"detr.transformer.encoder.norm.{what}"] = torch.rand(32)
    model = load(build(*TORCHVISION, "MODEL.DETR.PRE_NORM", True), {"model": state})
    assert_loaded(model, state, PANOPTIC_IDS)
    with pytest.raises(UserError, match="PRE_NORM is False in the model, True in the file"):
        load(build(*TORCHVISION), {"model": state})


def test_dilation_and_heads_that_differ_are_told(build, load, official, caplog):
    """The tensors of a DC5 model fit one without dilation; the numbers would be wrong."""
    state = official(masks=False, rows=251)
    options = argparse.Namespace(dilation=True, nheads=4)
    load(build(*TORCHVISION), {"model": state, "args": options})
    assert "set MODEL.RESNETS.RES5_DILATION to 2" in caplog.text
    assert "set MODEL.DETR.NHEADS to it" in caplog.text
    caplog.clear()
    load(build(*TORCHVISION), {"model": state}, name="detr-r50-dc5-f0fb7ef5.pth")
    assert "set MODEL.RESNETS.RES5_DILATION to 2" in caplog.text
    assert "NHEADS" not in caplog.text
