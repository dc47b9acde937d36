"""Options of a training, which are off by default. That they do not change it: test_trainer.py."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model

from detr_panoptic_d2.checkpoint import PanopticCheckpointer
from detr_panoptic_d2.data.dataset_mapper import PanopticDatasetMapper
from detr_panoptic_d2.engine import PanopticTrainer
from detr_panoptic_d2.errors import UserError

EMA = {"MODEL_EMA__ENABLED": True, "MODEL_EMA__DECAY": 0.9, "MODEL_EMA__WARMUP": 3}


def saved(cfg, name="model_final.pth"):
    return torch.load(f"{cfg.OUTPUT_DIR}/{name}", weights_only=True)


def test_average_of_the_weights(make_cfg, train, tmp_path):
    entries = {**EMA, "TEST__EVAL_PERIOD": 2, "SOLVER__MAX_ITER": 4}
    weights = []
    cfg = make_cfg("unbroken", **entries)
    _, trainer = train(cfg, hooks=[Weights(weights)])
    content = saved(cfg)
    # In float64 as the formula says, from the first update on.
    average = weights[0]
    for number, value in enumerate(weights[1:], start=1):
        decay = 0.9 * (1 - math.exp(-number / 3))
        average = decay * average + (1 - decay) * value
    name = "class_embed.weight"
    torch.testing.assert_close(content["ema"][f"module.{name}"].double(), average)
    assert torch.equal(content["model"][name].double(), weights[-1])
    # It is what is evaluated, and what is loaded for evaluation and prediction.
    assert json.loads((tmp_path / "unbroken" / "model_best.json").read_text())["weights"] == "ema"
    model = build_model(cfg)
    PanopticCheckpointer(model).load(f"{cfg.OUTPUT_DIR}/model_final.pth", complete=True)
    assert torch.equal(model.class_embed.weight, content["ema"][f"module.{name}"])
    pq = PanopticTrainer.test(cfg, model)["panoptic_seg"]["PQ"]
    assert pq == trainer._last_eval_results["panoptic_seg"]["PQ"]


class Weights(HookBase):
    def __init__(self, values):
        self.values = values

    def after_step(self):
        self.values.append(self.trainer.model.class_embed.weight.detach().double().clone())


def test_early_stopping(make_cfg, train, tmp_path):
    """A learning rate of almost 0 improves nothing. A resumed training stops at the same time."""
    entries = {
        "SOLVER__EARLY_STOPPING__PATIENCE": 2,
        "SOLVER__BASE_LR": 1e-12,
        "SOLVER__BASE_LR_END": 0.0,
    }
    entries |= {"SOLVER__EARLY_STOPPING__MIN_DELTA": 0.5, "TEST__EVAL_PERIOD": 1}
    cfg = make_cfg("out", **entries)
    train(cfg, stop=2)
    train(cfg, resume=True)
    # The first of three evaluations is the best one.
    assert saved(cfg)["iteration"] == 2
    rows = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    record = json.loads((tmp_path / "out" / "early_stopping.json").read_text())
    values = record["values"]
    assert [i for i, _ in values] == [0, 1, 2]
    assert record["reason"].startswith("Stopped early: panoptic_seg/PQ has not improved")
    assert json.loads(rows[-1])["panoptic_seg/PQ"] == pytest.approx(values[-1][1])
    losses, _ = train(cfg, resume=True)
    assert not losses and saved(cfg)["iteration"] == 2


class Gradients(HookBase):
    def after_step(self):
        parameters = self.trainer.model.parameters()
        self.values = torch.cat([p.grad.flatten() for p in parameters if p.requires_grad])


@pytest.mark.parametrize("amp", [False, True])
def test_a_batch_in_two_parts(make_cfg, train, panoptic_set, scene, amp):
    """Images with different numbers of targets: the sum of two means would differ."""
    few = scene[0], {1: 3, 2: 21}
    panoptic_set("uneven", [scene, few, few, scene, scene])
    results = []
    for parts in (1, 2):
        entries = {"DATASETS__TRAIN": "('uneven',)", "SOLVER__ACCUMULATE": parts}
        entries |= {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 1, "DATASETS__TEST": "()"}
        entries |= {"MODEL__RESNETS__NORM": "FrozenBN", "MODEL__DETR__DROPOUT": 0.0}
        entries |= {"SOLVER__AMP__ENABLED": amp, "SOLVER__AMP__DTYPE": "bfloat16"}
        gradients = Gradients()
        losses, _ = train(make_cfg(f"parts_{parts}", **entries), hooks=[gradients])
        results.append((losses[0], gradients.values))
    (loss, one), (loss_in_parts, two) = results
    # Rounding of float32, and of bfloat16.
    tolerance = 0.05 if amp else 1e-4
    assert loss_in_parts == pytest.approx(loss, rel=tolerance)
    assert (one - two).norm() <= tolerance * one.norm()


def test_validation_losses(make_cfg, train, tmp_path):
    entries = {"SOLVER__MAX_ITER": 2, "MODEL__DETR__GIOU_WEIGHT": 0.0}
    cfg = make_cfg("out", TEST__LOSS=True, TEST__EVAL_PERIOD=1, **entries)
    _, trainer = train(cfg)
    values = trainer._last_eval_results["val"]
    assert set(values) == {f"loss_{x}" for x in ("ce", "bbox", "giou", "mask", "dice")} | {
        "total_loss"
    }
    # A batch with all images, as the mean over images is defined.
    mapper = PanopticDatasetMapper(cfg, is_train=False, with_targets=True)
    model = trainer.model.eval()
    batch = [model.losses([mapper(d)]) for d in DatasetCatalog.get("engine_set")]
    for name in set(values) - {"total_loss"}:
        mean = sum(x[name].item() for x in batch) / len(batch)
        assert values[name] == pytest.approx(mean, rel=1e-4), name
    rows = (tmp_path / "out" / "metrics.json").read_text()
    assert "val/total_loss" in rows


def test_class_weights(tiny_model):
    name = tiny_model().class_names[1]
    model = tiny_model("MODEL.DETR.CLASS_WEIGHTS", [[name, 3.0]])
    assert model.criterion.class_weight[:3].tolist() == [1, 3, 1]
    with pytest.raises(UserError, match=r"CLASS_WEIGHTS is 'moon', but must be .*" + name):
        tiny_model("MODEL.DETR.CLASS_WEIGHTS", [["moon", 3.0]])


def test_writers(make_cfg, train, monkeypatch, tmp_path):
    """Those that are installed, in one training."""
    names = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name)]
    if not names:
        pytest.skip("neither wandb nor mlflow is installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    drawing = {"VIS_PERIOD": 2, "TEST__VIS_IMAGES": 1, "SOLVER__MAX_ITER": 2}
    _, trainer = train(make_cfg("out", WRITERS=str(("tensorboard", *names)), **drawing))
    # TensorBoard has the picture as well.
    assert b"predictions/00_000" in next((tmp_path / "out").glob("events*")).read_bytes()
    if "wandb" in names:
        importlib.import_module("wandb").teardown()
        (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
        content = next(folder.glob("*.wandb")).read_bytes()
        assert b"total_loss" in content and b"predictions/00_000" in content
        assert list(folder.glob("files/media/images/*.png"))
    if "mlflow" in names:
        mlflow = importlib.import_module("mlflow")
        experiment = mlflow.get_experiment_by_name("out").experiment_id
        (run,) = mlflow.MlflowClient().search_runs([experiment])
        results = trainer._last_eval_results["panoptic_seg"]
        assert run.info.status == "FINISHED" and "total_loss" in run.data.metrics
        assert run.data.metrics["panoptic_seg/PQ-ball"] == results["PQ-ball"]
        folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id))
        assert (folder / "config.yaml").is_file()
        assert len(list(folder.glob("predictions/*.png"))) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_writer_whose_package_is_missing(make_cfg, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"WRITERS has '{name}', .* pip install {name}"):
        PanopticTrainer(make_cfg("out", WRITERS=f"('{name}',)"))
