import pytest
import torch
from detectron2.modeling import build_model

from detr_panoptic_d2.config import list_config_files
from detr_panoptic_d2.engine import PanopticTrainer, build_optimizer, setup_cfg


@pytest.fixture
def own_data(panoptic_set, scene):
    """Entries that put a data set in the place of the one that a user has to bring."""
    root = panoptic_set("own", [scene])
    paths = {"image_root": str(root / "images"), "panoptic_root": str(root / "panoptic")}
    item = {"name": "own", **paths, "panoptic_json": str(root / "panoptic.json")}
    opts = ["DATASETS.REGISTER", str([item])]
    return [*opts, "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"]


@pytest.mark.parametrize("name", list_config_files())
def test_every_config_builds(name, own_data):
    opts = own_data if name.startswith("own_data/") else []
    # No memory and no random numbers for the weights: seconds less per config.
    cfg = setup_cfg(name, ["MODEL.DEVICE", "meta", *opts])
    with torch.device("meta"):
        model = build_model(cfg)
    assert any(p.requires_grad for p in model.parameters())
    assert cfg.MODEL.DETR.NUM_OBJECT_QUERIES > 0


@pytest.mark.parametrize("name", [n for n in list_config_files() if n.startswith("own_data/")])
def test_own_data_is_asked_for_by_name_and_path(name):
    with pytest.raises(FileNotFoundError, match=r"'own_train': image_root 'datasets/own/train'"):
        setup_cfg(name, ["MODEL.DEVICE", "cpu"])


def rates(cfg, model, iterations):
    """Learning rates of the last parameter group at the given iterations."""
    optimizer = build_optimizer(cfg, model)
    scheduler = PanopticTrainer.build_lr_scheduler(cfg, optimizer)
    result = {}
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            result[iteration] = optimizer.param_groups[-1]["lr"]
        optimizer.step()
        scheduler.step()
    return result


@pytest.fixture
def model():
    return build_model(setup_cfg("shapes/tiny.yaml", ["MODEL.DEVICE", "cpu"]))


def test_step_schedule(model):
    opts = ["SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "(20,)", "MODEL.DEVICE", "cpu"]
    cfg = setup_cfg("detr_panoptic_R50.yaml", opts)
    found = rates(cfg, model, {0, 19, 20, 29})
    assert found == pytest.approx({0: 1e-4, 19: 1e-4, 20: 1e-5, 29: 1e-5})


def test_cosine_schedule_with_warm_up(model):
    opts = ["SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "10", "MODEL.DEVICE", "cpu"]
    cfg = setup_cfg("shapes/detr_panoptic_shapes.yaml", opts)
    found = rates(cfg, model, {0, 5, 10, 99})
    assert found[0] < 1e-5
    assert found[0] < found[5] < found[10] <= 1e-3
    assert found[99] == pytest.approx(1e-5, rel=0.2)
