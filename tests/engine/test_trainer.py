import json
import logging

import numpy as np
import pytest
import torch
import yaml

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

ITERATIONS = 6


@pytest.fixture
def unbroken(make_cfg, train):
    return train(make_cfg("unbroken"))[0]


@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (4, 2)])
def test_resumed_training_has_the_losses_of_the_unbroken(make_cfg, train, unbroken, stop, workers):
    assert list(unbroken) == list(range(ITERATIONS))
    assert len(set(unbroken.values())) == ITERATIONS
    cfg = make_cfg("broken", DATALOADER__NUM_WORKERS=workers)
    before, _ = train(cfg, stop=stop)
    after, trainer = train(cfg, resume=True)
    assert trainer.start_iter == stop // 2 * 2
    assert {**before, **after} == unbroken


def test_drawn_seed_is_kept_and_evaluation_changes_nothing(make_cfg, train):
    cfg = make_cfg("drawn", SEED=-1)
    train(cfg, stop=2)
    first, trainer = train(cfg, resume=True)
    trainer.checkpointer.tag_last_checkpoint("model_0000001.pth")
    second, _ = train(make_cfg("drawn", SEED=-1, TEST__EVAL_PERIOD=1), resume=True)
    assert first == second
    assert list(first) == [2, 3, 4, 5]


def test_best_checkpoint_and_resume_of_it(make_cfg, train, tmp_path):
    cfg = make_cfg("best", TEST__EVAL_PERIOD=2)
    _, trainer = train(cfg)
    assert "PQ" in trainer._last_eval_results["panoptic_seg"]
    file = tmp_path / "best" / "model_best.json"
    best = json.loads(file.read_text())
    assert best["metric"] == "panoptic_seg/PQ"
    weights = file.with_suffix(".pth")
    assert torch.load(weights, weights_only=True)["iteration"] == best["iteration"]
    assert trainer.checkpointer.get_checkpoint_file().endswith("model_final.pth")
    # A better value from before the break is not overwritten.
    best.update(value=200.0, iteration=1)
    file.write_text(json.dumps(best))
    stamp = weights.stat().st_mtime_ns
    trainer.checkpointer.tag_last_checkpoint("model_0000003.pth")
    train(cfg, resume=True)
    assert weights.stat().st_mtime_ns == stamp


def test_best_checkpoint_is_that_of_the_first_of_several_data_sets(
    make_cfg, train, panoptic_set, scene, tmp_path
):
    panoptic_set("other_set", [scene])
    names = "('other_set', 'engine_set')"
    cfg = make_cfg("two", SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=2, DATASETS__TEST=names)
    _, trainer = train(cfg)
    best = json.loads((tmp_path / "two" / "model_best.json").read_text())
    assert best["metric"] == "other_set/panoptic_seg/PQ"
    assert best["value"] == trainer._last_eval_results["other_set"]["panoptic_seg"]["PQ"]


def test_frozen_norms_without_statistics_are_named(make_cfg, caplog):
    trainer = PanopticTrainer(make_cfg("frozen", MODEL__RESNETS__NORM="FrozenBN"))
    with caplog.at_level(logging.WARNING, logger="detr_panoptic_d2.engine.trainer"):
        trainer.resume_or_load(resume=False)
    assert "frozen batch norms (backbone." in caplog.text
    assert "MODEL.RESNETS.NORM to BN" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_trains_and_resumes(make_cfg, train, dtype):
    entries = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": dtype}
    dtypes = set()

    def look(module, args, output):
        # The evaluation at the end is in full precision.
        if module.training:
            dtypes.add(output.dtype)

    cfg = make_cfg("amp", SOLVER__MAX_ITER=2, **entries)
    trainer = PanopticTrainer(cfg)
    trainer.model.transformer.encoder.layers[0].linear1.register_forward_hook(look)
    trainer.train()
    assert dtypes == {getattr(torch, dtype)}
    scaler = trainer._trainer.grad_scaler
    assert scaler.is_enabled() == (dtype == "float16")
    losses, resumed = train(make_cfg("amp", SOLVER__MAX_ITER=4, **entries), resume=True)
    assert list(losses) == [2, 3] and np.isfinite(list(losses.values())).all()
    # Another precision than before the break.
    losses, _ = train(make_cfg("amp", SOLVER__MAX_ITER=6), resume=True)
    assert list(losses) == [4, 5]


def test_image_without_targets_trains(make_cfg, train, panoptic_set, scene):
    void = (np.zeros((32, 40), dtype=np.int64), {})
    panoptic_set("mostly_void", [void, void, void, scene])
    losses, trainer = train(make_cfg("void", DATASETS__TRAIN="('mostly_void',)"))
    assert np.isfinite(list(losses.values())).all()
    for name, parameter in trainer.model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_instance_ap_and_miou_come_along(make_cfg):
    on = {"MODEL__DETR__TEST__INSTANCE_ON": True, "MODEL__DETR__TEST__SEMANTIC_ON": True}
    cfg = make_cfg("more", MODEL__DETR__TEST__BATCH_SIZE=3, **on)
    results = PanopticTrainer.test(cfg, PanopticTrainer.build_model(cfg))
    assert {"panoptic_seg", "sem_seg"} <= set(results)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert {"bbox", "segm"} & set(results)


def test_the_written_config_gives_the_same_config(make_cfg, tmp_path):
    """Evaluation and prediction use it: see docs/training.md."""
    cfg = make_cfg("written", MODEL__DETR__NUM_OBJECT_QUERIES=7)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = setup_cfg(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
