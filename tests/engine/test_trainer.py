import json
import logging

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.hooks import NonFiniteLossError
from detr_panoptic_d2.engine.reproducible import seed_everything

ITERATIONS = 6


class Record(HookBase):
    """Losses by iteration; stops the training before iteration ``stop``, as a crash would."""

    def __init__(self, stop=None):
        self.stop = stop
        self.losses = {}

    def before_step(self):
        if self.trainer.iter == self.stop:
            raise ConnectionAbortedError

    def after_step(self):
        self.losses[self.trainer.iter] = self.trainer.storage.latest()["total_loss"][0]


@pytest.fixture
def make_cfg(panoptic_set, scene, tmp_path):
    torch.set_num_threads(2)
    flipped = scene[0][:, ::-1].copy(), scene[1]
    panoptic_set("trainer_set", [scene, flipped, scene, flipped, scene])

    def make(folder, **more):
        opts = ["DATASETS.TRAIN", "('trainer_set',)", "DATASETS.TEST", "('trainer_set',)"]
        opts += ["OUTPUT_DIR", str(tmp_path / folder), "SOLVER.MAX_ITER", str(ITERATIONS)]
        opts += ["INPUT.MIN_SIZE_TRAIN", "(32, 40, 48)", "INPUT.MIN_SIZE_TEST", "32"]
        opts += ["MODEL.DEVICE", "cpu"]
        for key, value in more.items():
            opts += [key.replace("__", "."), str(value)]
        return setup_cfg("shapes/tiny.yaml", opts)

    return make


def train(cfg, *, resume=False, stop=None):
    # What Detectron2's default_setup does in the tools. A resumed training may start otherwise.
    seed_everything(cfg.SEED + 1 if not resume else 99)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume)
    record = Record(stop)
    trainer.register_hooks([record])
    if stop is None:
        trainer.train()
    else:
        with pytest.raises(ConnectionAbortedError):
            trainer.train()
    return record.losses, trainer


@pytest.fixture
def unbroken(make_cfg):
    return train(make_cfg("unbroken"))[0]


@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (4, 2)])
def test_resumed_training_has_the_losses_of_the_unbroken(make_cfg, unbroken, stop, workers):
    assert list(unbroken) == list(range(ITERATIONS))
    assert len(set(unbroken.values())) == ITERATIONS
    cfg = make_cfg("broken", DATALOADER__NUM_WORKERS=workers)
    before, _ = train(cfg, stop=stop)
    after, trainer = train(cfg, resume=True)
    assert trainer.start_iter == stop // 2 * 2
    assert {**before, **after} == unbroken


def test_drawn_seed_is_kept_and_evaluation_changes_nothing(make_cfg):
    cfg = make_cfg("drawn", SEED=-1)
    before, _ = train(cfg, stop=2)
    first, _ = train(cfg, resume=True)
    (PanopticTrainer.build_checkpointer(cfg, torch.nn.Linear(1, 1))).tag_last_checkpoint(
        "model_0000001.pth"
    )
    evaluated = cfg.clone()
    evaluated.defrost()
    evaluated.TEST.EVAL_PERIOD = 1
    second, _ = train(evaluated, resume=True)
    assert first == second
    assert list(first) == [2, 3, 4, 5]


def test_evaluation_best_checkpoint_and_resume_of_it(make_cfg, tmp_path, caplog):
    cfg = make_cfg("best", TEST__EVAL_PERIOD=2, MODEL__DETR__TEST__SCORE_THRESH=0.0)
    _, trainer = train(cfg)
    assert "PQ" in trainer._last_eval_results["panoptic_seg"]
    record = json.loads((tmp_path / "best" / "model_best.json").read_text())
    assert record["metric"] == "panoptic_seg/PQ"
    names = {p.name for p in (tmp_path / "best").glob("model_*")}
    assert names >= {"model_best.pth", "model_0000001.pth", "model_final.pth", "model_best.json"}
    assert trainer.checkpointer.get_checkpoint_file().endswith("model_final.pth")
    # A better value from before the break is not overwritten.
    record.update(value=200.0, iteration=1)
    (tmp_path / "best" / "model_best.json").write_text(json.dumps(record))
    stamp = (tmp_path / "best" / "model_best.pth").stat().st_mtime_ns
    trainer.checkpointer.tag_last_checkpoint("model_0000003.pth")
    train(cfg, resume=True)
    assert (tmp_path / "best" / "model_best.pth").stat().st_mtime_ns == stamp


def test_best_checkpoint_is_that_of_the_first_of_several_data_sets(
    make_cfg, panoptic_set, scene, tmp_path
):
    panoptic_set("other_set", [scene])
    options = {"SOLVER__MAX_ITER": 2, "TEST__EVAL_PERIOD": 2}
    options["DATASETS__TEST"] = "('other_set', 'trainer_set')"
    cfg = make_cfg("two", MODEL__DETR__TEST__SCORE_THRESH=0.0, **options)
    _, trainer = train(cfg)
    record = json.loads((tmp_path / "two" / "model_best.json").read_text())
    assert record["metric"] == "other_set/panoptic_seg/PQ"
    assert record["value"] == trainer._last_eval_results["other_set"]["panoptic_seg"]["PQ"]


def test_frozen_norms_without_statistics_are_named(make_cfg, caplog):
    trainer = PanopticTrainer(make_cfg("frozen", MODEL__RESNETS__NORM="FrozenBN"))
    with caplog.at_level(logging.WARNING, logger="detr_panoptic_d2.engine.trainer"):
        trainer.resume_or_load(resume=False)
    assert "frozen batch norms (backbone." in caplog.text
    assert "MODEL.RESNETS.NORM to BN" in caplog.text


def test_nan_stops_with_names_and_checkpoint(make_cfg, tmp_path):
    cfg = make_cfg("nan")
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)

    class Poison(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                with torch.no_grad():
                    next(self.trainer.model.parameters()).fill_(float("nan"))

    trainer.register_hooks([Poison()])
    with pytest.raises(NonFiniteLossError, match=r"iteration 3 .*\.png.*model_0000001\.pth"):
        trainer.train()
    assert not (tmp_path / "nan" / "model_final.pth").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains(make_cfg, dtype):
    cfg = make_cfg("amp", SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE=dtype, SOLVER__MAX_ITER=2)
    losses, _ = train(cfg)
    assert np.isfinite(list(losses.values())).all()


def test_image_without_targets_trains(make_cfg, panoptic_set, scene):
    void = (np.zeros((32, 40), dtype=np.int64), {})
    panoptic_set("trainer_void", [void, void, void, scene])
    cfg = make_cfg("void").clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("trainer_void",)
    losses, trainer = train(cfg)
    assert np.isfinite(list(losses.values())).all()
    for name, parameter in trainer.model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_instance_ap_and_miou_come_along(make_cfg, caplog):
    caplog.set_level(logging.INFO)
    cfg = make_cfg(
        "more",
        MODEL__DETR__TEST__INSTANCE_ON=True,
        MODEL__DETR__TEST__SEMANTIC_ON=True,
        MODEL__DETR__TEST__BATCH_SIZE=3,
    )
    results = PanopticTrainer.test(cfg, PanopticTrainer.build_model(cfg))
    assert {"panoptic_seg", "sem_seg"} <= set(results)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert {"bbox", "segm"} & set(results)
