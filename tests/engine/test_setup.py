"""Configs and what is made of them before anything is built."""

import functools
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.utils.data import DataLoader

from detr_panoptic_d2.config import list_config_files
from detr_panoptic_d2.engine import PanopticTrainer, build_optimizer, launch_job, setup_cfg
from detr_panoptic_d2.errors import UserError


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


@pytest.mark.parametrize("name", [n for n in list_config_files() if n.startswith("own_data/")])
def test_own_data_is_asked_for_by_name_and_path(name):
    with pytest.raises(FileNotFoundError, match=r"'own_train': image_root 'datasets/own/train'"):
        setup_cfg(name, ["MODEL.DEVICE", "cpu"])


def test_num_classes(own_data):
    cfg = setup_cfg("detr_panoptic_R50.yaml", [*own_data, "MODEL.DETR.NUM_CLASSES", "-1"])
    assert cfg.MODEL.DETR.NUM_CLASSES == 4
    assert cfg.is_frozen()
    assert torch.cuda.is_available() or cfg.MODEL.DEVICE == "cpu"
    with pytest.raises(UserError, match=r"NUM_CLASSES is 7, but must be 4, .*'own'.*, or -1"):
        setup_cfg("", [*own_data, "MODEL.DETR.NUM_CLASSES", "7"])
    with pytest.raises(UserError, match=r"NUM_CLASSES is -1, .* without a data set"):
        setup_cfg("", ["MODEL.DETR.NUM_CLASSES", "-1"])
    with pytest.raises(UserError, match=r"'coco_panoptik', but must be a registered data set"):
        setup_cfg("detr_panoptic_R50.yaml", ["DATASETS.TRAIN", "('coco_panoptik',)"])


def rates(name, opts, iterations):
    """Learning rates of the last parameter group at the given iterations."""
    cfg = setup_cfg(name, [*opts, "MODEL.DEVICE", "cpu"])
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = PanopticTrainer.build_lr_scheduler(cfg, optimizer)
    result = []
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            result.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    return result


def test_schedules():
    steps = ["SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "(20,)"]
    found = rates("detr_panoptic_R50.yaml", steps, {0, 19, 20, 29})
    assert found == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    cosine = ["SOLVER.MAX_ITER", "100", "SOLVER.WARMUP_ITERS", "10"]
    found = rates("shapes/detr_panoptic_shapes.yaml", cosine, {0, 5, 10, 99})
    assert found[0] < 1e-5
    assert found[0] < found[1] < found[2] <= 1e-3
    assert found[3] == pytest.approx(1e-5, rel=0.2)


class Unreadable:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("a.png cannot be read")


def fail_in_a_worker(args):
    backend = torch.distributed.get_backend()
    Path(f"{args.file}{comm.get_rank()}").write_text(f"{backend} {torch.cuda.device_count()}")
    next(iter(DataLoader(Unreadable(), num_workers=1)))


def test_processes_on_the_cpu_and_an_error_in_a_worker_of_them(tmp_path, monkeypatch, capfd):
    """Gloo on a machine with GPUs too, where Detectron2's launcher takes NCCL for what sees them;
    the error of a loader's worker, in a process that the launcher has started, is one line."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    parse = default_argument_parser().parse_args
    args = parse(["--num-gpus", "2", "--dist-url", "auto", "MODEL.DEVICE", "cpu"])
    args.file = str(tmp_path / "rank")
    with pytest.raises(SystemExit) as end:
        launch_job(fail_in_a_worker, args)
    assert end.value.code == 1
    assert [(tmp_path / f"rank{r}").read_text() for r in (0, 1)] == ["gloo 0"] * 2
    lines = capfd.readouterr().err.splitlines()
    assert "error: a.png cannot be read" in lines
    assert not [line for line in lines if "Traceback" in line]
    with pytest.raises(SystemExit):
        launch_job(functools.partial(pytest.fail, "was started"), parse(["--num-gpus", "0"]))
    assert "--num-gpus is 0, but must be 1 or more" in capfd.readouterr().err
