import os
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from detr_panoptic_d2.engine import launch_job, setup_cfg


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


def report_backend(args):
    backend = torch.distributed.get_backend()
    Path(f"{args.file}{comm.get_rank()}").write_text(f"{backend} {torch.cuda.device_count()}")


def test_cpu_processes_are_connected_by_gloo(tmp_path, monkeypatch):
    """On a machine with GPUs too, where Detectron2's launcher takes NCCL for what sees them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    options = ["--num-gpus", "2", "--dist-url", "auto", "MODEL.DEVICE", "cpu"]
    args = default_argument_parser().parse_args(options)
    args.file = str(tmp_path / "rank")
    launch_job(report_backend, args)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert [(tmp_path / f"rank{r}").read_text() for r in (0, 1)] == ["gloo 0"] * 2


def test_wrong_process_counts(capsys):
    for options, words in (
        (["--num-gpus", "0"], "--num-gpus is 0"),
        (["--machine-rank", "3"], "--machine-rank is 3 and --num-machines 1"),
    ):
        with pytest.raises(SystemExit):
            launch_job(print, default_argument_parser().parse_args(options))
        assert words in capsys.readouterr().err
