import logging
import pickle

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.checkpoint.resnet_names import find_resnet
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def torchvision_weights():
    torch.manual_seed(0)
    state = resnet18(num_classes=10).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def to_detectron2(weights):
    """What Detectron2's converter of torchvision weights writes: its names, NumPy arrays."""
    renamed = {}
    for name, tensor in weights.items():
        if "layer" not in name:
            name = f"stem.{name}"
        for stage in (1, 2, 3, 4):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for i in (1, 2, 3):
            name = name.replace(f"bn{i}", f"conv{i}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[name] = tensor.numpy()
    return {"model": renamed, "__author__": "torchvision", "matching_heuristics": True}


def assert_loaded(model, weights):
    ours = model.state_dict()
    for ours_name, name in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.1.conv2.norm.weight": "layer1.1.bn2.weight",
        "res5.0.shortcut.weight": "layer4.0.downsample.0.weight",
        "res5.0.shortcut.norm.bias": "layer4.0.downsample.1.bias",
    }.items():
        assert torch.equal(ours[f"backbone.{ours_name}"], weights[name])


def messages(caplog):
    return [r.getMessage() for r in caplog.records if "Loaded" in r.getMessage()]


def test_torchvision_onto_detectron2(build, load, torchvision_weights, caplog):
    with caplog.at_level(logging.INFO):
        model = load(build(), torchvision_weights)
    assert_loaded(model, torchvision_weights)
    (table,) = messages(caplog)
    assert "ResNet, torchvision names" in table
    assert "the file's own image classifier" in table
    assert "the file holds a backbone only" in table


def test_torchvision_onto_torchvision_with_counters(build, load, torchvision_weights):
    options = ["MODEL.BACKBONE.NAME", "build_torchvision_backbone", "MODEL.RESNETS.NORM", "BN"]
    options += ["MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18", "MODEL.BACKBONE.FREEZE_AT", 0]
    torchvision_weights["bn1.num_batches_tracked"] += 5
    ours = load(build(*options), torchvision_weights).state_dict()
    for name, tensor in torchvision_weights.items():
        if not name.startswith("fc."):
            assert torch.equal(ours[f"backbone.body.{name}"], tensor), name


def test_timm_backbone(build, load, torchvision_weights):
    pytest.importorskip("timm")
    options = ["MODEL.BACKBONE.NAME", "build_timm_backbone"]
    options += ["MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18"]
    ours = load(build(*options), torchvision_weights).state_dict()
    assert torch.equal(ours["backbone.body.conv1.weight"], torchvision_weights["conv1.weight"])


def test_catalog_name(build, torchvision_weights, tmp_path, monkeypatch):
    """The default MODEL.WEIGHTS, found in Detectron2's cache of downloads."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    folder = tmp_path / "detectron2" / "ImageNetPretrained" / "torchvision"
    folder.mkdir(parents=True)
    content = to_detectron2(torchvision_weights)
    # The real file comes from Python 3 and NumPy 1, pickled with the default protocol.
    (folder / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=4))
    model = build()
    path = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    PanopticCheckpointer(model).load(path)
    assert_loaded(model, torchvision_weights)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickle_protocols(build, torchvision_weights, tmp_path, protocol):
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(to_detectron2(torchvision_weights), protocol=protocol))
    model = build()
    PanopticCheckpointer(model).load(str(path))
    assert_loaded(model, torchvision_weights)


def test_caffe2_names_through_detectron2s_heuristics(build, tmp_path, caplog):
    """``detectron2://ImageNetPretrained/MSRA/R-50.pkl`` has Caffe2's names."""
    stem = np.random.default_rng(0).random((64, 3, 7, 7), dtype=np.float32)
    content = {"conv1_w": stem, "conv1_w_momentum": stem, "pred_w": np.zeros((10, 512), "f4")}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"blobs": content}, protocol=2))
    model = build()
    with caplog.at_level(logging.INFO):
        PanopticCheckpointer(model).load(str(path))
    assert np.array_equal(model.backbone.stem.conv1.weight.numpy(force=True), stem)
    assert "names matched by Detectron2's heuristics" in messages(caplog)[0]


def test_another_depth_is_an_error(build, load, torchvision_weights):
    model = build("MODEL.RESNETS.DEPTH", 34)
    with pytest.raises(UserError, match="MODEL.RESNETS.DEPTH is 34 in the model, 18 in the fil"):
        load(model, torchvision_weights)


def test_strides_of_another_resnet_are_told(build, load, caplog):
    """Tensors fit, but the network is not torchvision's."""
    torch.manual_seed(0)
    options = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    options += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8]
    model = build(*options, "MODEL.BACKBONE.NAME", "build_detr_resnet_backbone")
    resnet = find_resnet(model.state_dict(), "backbone.")
    common = {resnet.to_torchvision(n): x for n, x in model.state_dict().items()}
    common.pop(None)
    load(model, common)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    options += ["MODEL.RESNETS.STRIDE_IN_1X1", True, "MODEL.RESNETS.RES5_DILATION", 2]
    load(build(*options, "MODEL.BACKBONE.NAME", "build_resnet_backbone"), common)
    assert "set MODEL.RESNETS.STRIDE_IN_1X1 to False" in caplog.text
    assert "set MODEL.BACKBONE.NAME to build_detr_resnet_backbone" in caplog.text
