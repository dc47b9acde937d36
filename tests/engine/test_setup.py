import pytest
import torch

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.engine.setup import resolve_config_file


def opts_for(root, name, **more):
    """Config entries that register a data set made by ``panoptic_set`` under another name."""
    item = {
        "name": name,
        "image_root": str(root / "images"),
        "panoptic_root": str(root / "panoptic"),
        "panoptic_json": str(root / "panoptic.json"),
    }
    opts = ["DATASETS.REGISTER", str([item]), "DATASETS.TRAIN", f"('{name}',)"]
    opts += ["DATASETS.TEST", f"('{name}',)"]
    for key, value in more.items():
        opts += [key.replace("__", "."), str(value)]
    return opts


@pytest.fixture
def root(panoptic_set, scene):
    return panoptic_set("setup_set", [scene])


def test_num_classes_is_filled_in(root):
    opts = opts_for(root, "setup_set", MODEL__DETR__NUM_CLASSES=-1)
    cfg = setup_cfg("detr_panoptic_R50.yaml", opts)
    assert cfg.MODEL.DETR.NUM_CLASSES == 4
    assert cfg.is_frozen()
    if not torch.cuda.is_available():
        assert cfg.MODEL.DEVICE == "cpu"


def test_wrong_num_classes_is_an_error_with_the_right_number(root):
    with pytest.raises(
        ValueError, match=r"NUM_CLASSES is 7, .*'setup_set' has 4 .* to 4, or to -1"
    ):
        setup_cfg("", opts_for(root, "setup_set", MODEL__DETR__NUM_CLASSES=7))


def test_unknown_data_set_is_an_error_with_a_hint():
    with pytest.raises(ValueError, match=r"'coco_2017_train_panoptik'.*coco_2017_train_panoptic"):
        setup_cfg("detr_panoptic_R50.yaml", ["DATASETS.TRAIN", "('coco_2017_train_panoptik',)"])


def test_no_data_set_to_take_the_number_from():
    with pytest.raises(ValueError, match="NUM_CLASSES is -1, and neither"):
        setup_cfg("", ["MODEL.DETR.NUM_CLASSES", "-1"])


def test_config_by_path_and_by_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("SEED: 5\n")
    assert resolve_config_file(str(path)) == str(path)
    assert setup_cfg(str(path)).SEED == 5
    assert setup_cfg("detr_panoptic_R50.yaml").SOLVER.IMS_PER_BATCH == 64
    with pytest.raises(FileNotFoundError, match="nothing_like_it.yaml"):
        resolve_config_file("nothing_like_it.yaml")
