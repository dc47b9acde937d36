"""Checkpoints that hold their config and classes: a model from the file alone."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import detr_panoptic_d2
from detr_panoptic_d2.apps.convert_checkpoint import convert_checkpoint
from detr_panoptic_d2.data.metadata import categories_of
from detr_panoptic_d2.engine import PanopticTrainer, Predictor, setup_cfg
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def written(panoptic_set, scene, tmp_path):
    """Return a checkpoint, a prediction of its model, and the set's categories."""
    panoptic_set("described", [scene])
    options = ["DATASETS.TRAIN", "('described',)", "DATASETS.TEST", "('described',)"]
    options += ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out")]
    options += ["MODEL.DETR.TEST.SCORE_THRESH", "0.01", "MODEL.DETR.NUM_CLASSES", "-1"]
    cfg = setup_cfg("shapes/tiny.yaml", options)
    torch.manual_seed(3)
    model = PanopticTrainer.build_model(cfg)
    # No query is without an object.
    torch.nn.init.constant_(model.class_embed.bias[-1:], -20)
    PanopticTrainer.build_checkpointer(cfg, model).save_untagged("model_best", iteration=3)
    path = str(tmp_path / "out" / "model_best.pth")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = Predictor(setup_cfg("shapes/tiny.yaml", [*options, "MODEL.WEIGHTS", path]))(image)
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
    assert status == 2 and "give one of --weights, --config-file" in err[-1]


def test_files_without_a_config(written, tmp_path):
    """Converting adds it; other files need a config."""
    path, image, (ids, _), _ = written
    bare = str(tmp_path / "bare.pth")
    torch.save({"model": torch.load(path, weights_only=True)["model"]}, bare)
    with pytest.raises(UserError, match=r"bare\.pth does not hold its config.*MODEL\.WEIGHTS"):
        detr_panoptic_d2.load(bare)
    cfg = detr_panoptic_d2.load(path).cfg
    convert_checkpoint(bare, str(tmp_path / "ours.pth"), "ours", cfg)
    predictor = detr_panoptic_d2.load(str(tmp_path / "ours.pth"))
    assert torch.equal(predictor(image)["panoptic_seg"][0], ids)
