"""Configs and what is made of them before anything is built."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from detr_panoptic_d2.config import list_config_files
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def own_data(panoptic_set, scene):
    """Entries that put a dataset in the place of the one that a user has to bring."""
    root = panoptic_set("own", [scene])
    paths = {"image_root": str(root / "images"), "panoptic_root": str(root / "panoptic")}
    item = {"name": "own", **paths, "panoptic_json": str(root / "panoptic.json")}
    opts = ["DATASETS.REGISTER", str([item])]
    return [*opts, "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"]


@pytest.mark.parametrize("name", list_config_files())
def test_every_config_builds(name, own_data):
    opts = own_data if name.startswith("own_data/") else []
    # No memory, random numbers or download for the weights: seconds less per config.
    opts = ["MODEL.DEVICE", "meta", "MODEL.DETR.BACKBONE.PRETRAINED", "False", *opts]
    cfg = setup_cfg(name, opts)
    with torch.device("meta"):
        model = build_model(cfg)
    assert any(p.requires_grad for p in model.parameters())


def test_num_classes(own_data):
    cfg = setup_cfg("detr_panoptic_R50.yaml", [*own_data, "MODEL.DETR.NUM_CLASSES", "-1"])
    assert cfg.MODEL.DETR.NUM_CLASSES == 4
    assert cfg.is_frozen()
    assert torch.cuda.is_available() or cfg.MODEL.DEVICE == "cpu"
    with pytest.raises(UserError, match=r"NUM_CLASSES is -1, .* without a dataset"):
        setup_cfg("", ["MODEL.DETR.NUM_CLASSES", "-1"])


def test_matmul_precision():
    before = torch.get_float32_matmul_precision()
    try:
        setup_cfg("shapes/tiny.yaml", ["FLOAT32_MATMUL_PRECISION", "high"])
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(UserError, match="FLOAT32_MATMUL_PRECISION is 'tf32'.*highest, high or"):
            setup_cfg("shapes/tiny.yaml", ["FLOAT32_MATMUL_PRECISION", "tf32"])
        assert torch.get_float32_matmul_precision() == "high"
        setup_cfg("shapes/tiny.yaml")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "moon"}, r"class 1 is 'ball' \(id 10, thing\) in 'own', but 'moon' \(id 10,"),
        ({"isthing": 0}, r"class 1 is 'ball' \(id 10, thing\) .*'ball' \(id 10, stuff\) in 'test'"),
        ({"id": 11}, r"class 1 is 'ball' \(id 10, thing\) in 'own', but 'ball' \(id 11, thing\)"),
        (None, r"class 3 is 'box' \(id 30, thing\) in 'own', but missing in 'test'"),
    ],
)
def test_classes_that_differ(own_data, panoptic_set, tmp_path, changed, message):
    categories = json.loads((tmp_path / "own" / "panoptic.json").read_text())["categories"]
    if changed is None:
        del categories[3]
    else:
        categories[1].update(changed)
    ids = np.ones((4, 4), dtype=int)
    panoptic_set("test", [(ids, {1: 3})], categories)
    with pytest.raises(UserError, match=message):
        setup_cfg("shapes/tiny.yaml", [*own_data, "DATASETS.TEST", "('test',)"])
