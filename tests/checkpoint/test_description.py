"""Checkpoints that hold their config and classes: a model from the file alone."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import detr_panoptic_d2
from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.checkpoint.description import cfg_from_checkpoint
from detr_panoptic_d2.data.metadata import categories_of
from detr_panoptic_d2.engine import PanopticTrainer, Predictor, setup_cfg
from detr_panoptic_d2.errors import UserError


def build(output, *options):
    """Return the config and the model of a small training on the set "described"."""
    options = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", *options]
    options += ["DATASETS.TRAIN", "('described',)", "DATASETS.TEST", "('described',)"]
    options += ["MODEL.DETR.TEST.SCORE_THRESH", "0.01", "MODEL.DETR.NUM_CLASSES", "-1"]
    cfg = setup_cfg("shapes/tiny.yaml", options)
    torch.manual_seed(3)
    model = PanopticTrainer.build_model(cfg)
    # No query is without an object.
    torch.nn.init.constant_(model.class_embed.bias[-1:], -20)
    return cfg, model


@pytest.fixture
def written(panoptic_set, scene, tmp_path):
    """Return a checkpoint, a prediction of its model, and the set's categories."""
    panoptic_set("described", [scene])
    cfg, model = build(tmp_path / "out")
    PanopticTrainer.build_checkpointer(cfg, model).save_untagged("model_best", iteration=3)
    path = str(tmp_path / "out" / "model_best.pth")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = Predictor(build(tmp_path / "out", "MODEL.WEIGHTS", path)[0])(image)
    categories = categories_of(MetadataCatalog.get("described"))
    DatasetCatalog.remove("described")
    MetadataCatalog.remove("described")
    yield path, image, expected["panoptic_seg"], categories
    # The fixture of the set removes it again.
    DatasetCatalog.register("described", list)
    MetadataCatalog.get("described")


def test_load_needs_the_file_alone(written, tmp_path, monkeypatch, command):
    path, image, (ids, segments), categories = written
    monkeypatch.chdir(tmp_path)
    predictor = detr_panoptic_d2.load(path)
    found, found_segments = predictor(image)["panoptic_seg"]
    assert torch.equal(found, ids) and found_segments == segments and segments
    assert categories_of(predictor.metadata) == categories and "color" in categories[0]
    # Plain data only, and options change the config.
    assert isinstance(torch.load(path, weights_only=True)["config"], str)
    strict = detr_panoptic_d2.load(path, "MODEL.DETR.TEST.SCORE_THRESH", "1.0")
    assert strict(image)["panoptic_seg"][1] == []
    with pytest.raises(UserError, match=r"model_best\.pth.*Non-existent.*MODEL\.DTER"):
        detr_panoptic_d2.load(path, "MODEL.DTER", "1")
    Image.fromarray(image).save("photo.png")
    words = ["predict", "--input", "photo.png", "--output", "drawn", "--json"]
    assert command(*words, "--weights", path)[0] == 0
    assert (tmp_path / "drawn" / "photo.png").is_file()
    status, _, err = command(*words, "--weights", path, "--config-file", "shapes/tiny.yaml")
    assert status == 2 and "give either --weights or --config-file" in err[-1]


def test_converting_adds_config_and_tuned_thresholds(
    panoptic_set, scene, tmp_path, monkeypatch, command
):
    """``tuned.yaml`` of ``detr-panoptic tune`` becomes a part of the checkpoint."""
    monkeypatch.chdir(tmp_path)
    panoptic_set("described", [scene])
    cfg, model = build(tmp_path / "out")
    torch.save({"model": model.state_dict()}, "bare.pth")
    with pytest.raises(UserError, match=r"bare\.pth does not contain its config.*MODEL\.WEIGHTS"):
        detr_panoptic_d2.load("bare.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    values = {"PANOPTIC_INFERENCE": "MaskNMSPanopticInference", "SCORE_THRESH": 0.2}
    values |= {"OVERLAP_THRESH": 0.6, "MIN_SEGMENT_AREA": 20}
    tuned = {"_BASE_": "config.yaml", "MODEL": {"DETR": {"TEST": values}}}
    (tmp_path / "tuned.yaml").write_text(json.dumps(tuned))
    words = ["convert-checkpoint", "--input", "bare.pth", "--output", "tuned.pth"]
    assert command(*words, "--format", "ours", "--config-file", "tuned.yaml")[0] == 0
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = Predictor(setup_cfg("tuned.yaml", ["MODEL.WEIGHTS", "bare.pth"]))(image)
    predictor = detr_panoptic_d2.load("tuned.pth")
    assert {key: predictor.cfg.MODEL.DETR.TEST[key] for key in values} == values
    assert torch.equal(predictor(image)["panoptic_seg"][0], expected["panoptic_seg"][0])
    assert predictor(image)["panoptic_seg"][1] == expected["panoptic_seg"][1]


def test_same_number_of_other_classes(written, tmp_path, caplog):
    """The tensors fit, but each row of the class head is for another class."""
    path, *_ = written
    data = torch.load(path, weights_only=True)
    data["categories"].reverse()
    torch.save(data, tmp_path / "other.pth")
    model = build_model(detr_panoptic_d2.load(path).cfg)
    words = "class head is for other classes: 'box' is 'sky' in DATASETS.TRAIN"
    with pytest.raises(UserError, match=rf"other\.pth has not all weights of the model.*{words}"):
        PanopticCheckpointer(model).load(str(tmp_path / "other.pth"), complete=True)
    PanopticCheckpointer(model).load(str(tmp_path / "other.pth"))
    assert words in caplog.text


def test_device_is_that_of_the_machine(written, monkeypatch):
    """A file that was written or converted on a CPU is used on a GPU."""
    path, *_ = written
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cfg_from_checkpoint(path).MODEL.DEVICE == "cuda"
    assert cfg_from_checkpoint(path, ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
