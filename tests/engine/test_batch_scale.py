import logging

import pytest
from detectron2.engine import DefaultTrainer

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg
from detr_panoptic_d2.engine.batch_scale import (
    RECIPE_BATCH,
    RECIPE_LR,
    check_reference_world_size,
    warn_about_batch,
)


def scaled(name, world_size, *opts):
    cfg = setup_cfg(name, ["MODEL.DEVICE", "cpu", *map(str, opts)])
    check_reference_world_size(cfg)
    return DefaultTrainer.auto_scale_workers(cfg, world_size)


def warnings(cfg, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        warn_about_batch(cfg)
    return [record.getMessage() for record in caplog.records]


def test_constants_are_those_of_the_base_config():
    solver = setup_cfg("Base-DETR-Panoptic.yaml", ["MODEL.DEVICE", "cpu"]).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (RECIPE_BATCH, RECIPE_LR)
    # The published numbers hold at any number of GPUs unless one asks for scaling.
    assert solver.REFERENCE_WORLD_SIZE == 0


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("detr_panoptic_R50.yaml", ()),
        ("detr_panoptic_R50_masks.yaml", ()),
        # Official default: 8 GPUs with 2 images, the same rate.
        (
            "detr_panoptic_R50_boxes.yaml",
            ("SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_ITER", 2217900, "SOLVER.STEPS", "(1478600,)"),
        ),
        ("detr_panoptic_R50.yaml", ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 2.5e-5)),
        ("shapes/detr_panoptic_shapes.yaml", ()),
        ("shapes/tiny.yaml", ()),
    ],
)
def test_no_warning_where_batch_and_rate_fit(name, opts, caplog):
    assert warnings(scaled(name, 1, *opts), caplog) == []


def test_small_batch_with_the_recipes_rate(caplog):
    (message,) = warnings(scaled("detr_panoptic_R50.yaml", 1, "SOLVER.IMS_PER_BATCH", 4), caplog)
    assert "SOLVER.IMS_PER_BATCH is 4" in message
    assert "SOLVER.BASE_LR 0.0001" in message
    assert "SOLVER.BASE_LR from 6.25e-06 (linear in the batch) to 2.5e-05" in message
    assert "SOLVER.MAX_ITER 8870400 and STEPS (5913600,)" in message


def test_scaling_by_world_size_keeps_epochs_and_images_per_gpu(caplog):
    one = scaled("detr_panoptic_R50.yaml", 1, "SOLVER.REFERENCE_WORLD_SIZE", 16)
    assert one.SOLVER.IMS_PER_BATCH == 4
    assert pytest.approx(one.SOLVER.BASE_LR) == 1e-4 / 16
    assert one.SOLVER.MAX_ITER == 16 * 554400
    assert one.SOLVER.STEPS == (16 * 369600,)
    assert one.TEST.EVAL_PERIOD == 16 * 18480
    assert one.SOLVER.CHECKPOINT_PERIOD == 16 * 9240
    assert warnings(one, caplog) == []
    eight = scaled("detr_panoptic_R50.yaml", 8, "SOLVER.REFERENCE_WORLD_SIZE", 16)
    assert (eight.SOLVER.IMS_PER_BATCH, eight.SOLVER.MAX_ITER) == (32, 2 * 554400)
    assert warnings(eight, caplog) == []


def test_rate_scaled_up_too_far(caplog):
    cfg = scaled("detr_panoptic_R50.yaml", 64, "SOLVER.REFERENCE_WORLD_SIZE", 16)
    (message,) = warnings(cfg, caplog)
    assert "SOLVER.BASE_LR to 0.0004 for SOLVER.IMS_PER_BATCH 256" in message
    assert "SOLVER.REFERENCE_WORLD_SIZE to 0" in message


def test_reference_that_does_not_divide_the_batch():
    cfg = setup_cfg(
        "shapes/tiny.yaml", ["MODEL.DEVICE", "cpu", "SOLVER.REFERENCE_WORLD_SIZE", "16"]
    )
    with pytest.raises(ValueError, match=r"REFERENCE_WORLD_SIZE is 16: .*IMS_PER_BATCH, 2, .* 0 "):
        PanopticTrainer(cfg)


def test_trainer_warns(panoptic_set, scene, caplog, tmp_path):
    panoptic_set("batch_scale", [scene, scene])
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('batch_scale',)"]
    opts += ["DATASETS.TEST", "('batch_scale',)", "OUTPUT_DIR", str(tmp_path)]
    PanopticTrainer(setup_cfg("shapes/tiny.yaml", opts))
    assert "is the recipe's for" not in caplog.text
    PanopticTrainer(setup_cfg("shapes/tiny.yaml", [*opts, "SOLVER.BASE_LR", "0.0001"]))
    assert "SOLVER.IMS_PER_BATCH is 2, but SOLVER.BASE_LR 0.0001 is the recipe's" in caplog.text
