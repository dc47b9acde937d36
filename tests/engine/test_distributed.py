"""Two processes on the CPU train every kind of config for two steps."""

import functools
import json

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase, default_argument_parser
from detectron2.utils import comm
from torch.utils.data import DataLoader

from detr_panoptic_d2.engine import PanopticTrainer, distributed, launch_job, setup_cfg
from detr_panoptic_d2.errors import UserError

BOXES = ["MODEL.MASK_ON", "False", "MODEL.DETR.TEST.PANOPTIC_ON", "False"]
FPN = ["MODEL.BACKBONE.NAME", "build_renamed_backbone"]
FPN += ["MODEL.DETR.BACKBONE.MODEL_NAME", "build_resnet_fpn_backbone"]
FPN += ["MODEL.RESNETS.RES5_DILATION", "1", "MODEL.FPN.OUT_CHANNELS", "16"]
FPN += ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
FPN += ["MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"]
CASES = {
    "boxes and masks": [],
    "boxes": BOXES,
    "masks": ["MODEL.DETR.FREEZE_DETECTOR", "True"],
    "no deep supervision": ["MODEL.DETR.DEEP_SUPERVISION", "False"],
    "FPN": FPN,
    "boxes of an FPN": [*BOXES, *FPN],
    "options": [
        *("DATASETS.TEST", "('for_two',)", "TEST.EVAL_PERIOD", "1", "INPUT.MIN_SIZE_TEST", "32"),
        *("SOLVER.MAX_ITER", "4", "MODEL_EMA.ENABLED", "True", "TEST.LOSS", "True"),
        *("SOLVER.LAYER_DECAY", "0.5", "MODEL.FREEZE", "('transformer.encoder',)"),
        *("MODEL.DETR.CLASS_WEIGHTS", "[['ball', 3.0]]", "INPUT.AUG", "lsj"),
        *("SOLVER.EARLY_STOPPING.PATIENCE", "1", "SOLVER.EARLY_STOPPING.MIN_DELTA", "100.0"),
    ],
    "in two parts": ["SOLVER.ACCUMULATE", "2", "SOLVER.IMS_PER_BATCH", "4"],
}


class SameGradients(HookBase):
    """Checks that every trainable parameter has the gradient that the other process has, and that
    averages of the weights are equal."""

    def after_step(self):
        model = self.trainer.model.module
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        sums = {name: gradient.double().sum().item() for name, gradient in gradients.items()}
        if self.trainer.ema:
            sums |= {n: p.double().sum().item() for n, p in self.trainer.ema.named_parameters()}
        assert len(set(map(str, comm.all_gather(sums)))) == 1


class Unreadable:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("a.png cannot be read")


def train_each(args):
    torch.set_num_threads(1)
    for number, more in enumerate(CASES.values()):
        options = [*args.options, *more, "OUTPUT_DIR", str(args.folder / str(number))]
        trainer = PanopticTrainer(setup_cfg("shapes/tiny.yaml", options))
        trainer.register_hooks([SameGradients()])
        trainer.train()
    text = f"{torch.distributed.get_backend()} {torch.cuda.device_count()}"
    (args.folder / f"rank{comm.get_rank()}").write_text(text)
    next(iter(DataLoader(Unreadable(), num_workers=1)))


def test_two_processes_train_every_kind_of_config(
    panoptic_set, scene, tmp_path, monkeypatch, capfd
):
    """In each step one of them has an image without targets. At the end the error of a loader's
    worker is one line. Gloo is used on a machine with GPUs too, where Detectron2's launcher takes
    NCCL for what sees them."""
    void = (np.zeros((32, 40), dtype=np.int64), {})
    root = panoptic_set("mostly", [scene, void])
    item = {"name": "for_two", "image_root": f"{root}/images"}
    item |= {"panoptic_root": f"{root}/panoptic", "panoptic_json": f"{root}/panoptic.json"}
    options = ["DATASETS.REGISTER", str([item]), "DATASETS.TRAIN", "('for_two',)"]
    options += ["DATASETS.TEST", "()", "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2"]
    options += ["INPUT.MIN_SIZE_TRAIN", "(32,)", "MODEL.DETR.NUM_CLASSES", "-1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    parse = default_argument_parser().parse_args
    args = parse(["--num-gpus", "2", "--dist-url", "auto", "MODEL.DEVICE", "cpu"])
    args.options, args.folder = options, tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        launch_job(train_each, args)
    assert end.value.code == 1
    assert [(args.folder / f"rank{r}").read_text() for r in (0, 1)] == ["gloo 0"] * 2
    lines = capfd.readouterr().err.splitlines()
    assert "error: a.png cannot be read" in lines
    assert not [line for line in lines if "Traceback" in line]
    with pytest.raises(SystemExit):
        launch_job(functools.partial(pytest.fail, "was started"), parse(["--num-gpus", "0"]))
    assert "--num-gpus is 0, but must be 1 or more" in capfd.readouterr().err
    assert len(list(tmp_path.glob("out/*/model_final.pth"))) == len(CASES)
    # No second result is better by 100 points.
    (output,) = (path.parent for path in tmp_path.glob("out/*/early_stopping.json"))
    values = json.loads((output / "early_stopping.json").read_text())["values"]
    assert [iteration for iteration, _ in values] == [0, 1]
    assert "val/total_loss" in (output / "metrics.json").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can use this machine's GPU")
def test_gpu_driver_that_pytorch_cannot_use(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(distributed, "_GPU_DRIVERS", [str(tmp_path)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    parse = default_argument_parser().parse_args
    with pytest.raises(SystemExit):
        launch_job(functools.partial(pytest.fail, "was started"), parse([]))
    assert "has a GPU driver, but PyTorch" in capsys.readouterr().err
    calls = []
    launch_job(calls.append, parse(["MODEL.DEVICE", "cpu"]))
    assert len(calls) == 1
