"""The official recipes: their numbers, and that their steps fit together."""

import functools
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from detr_panoptic_d2.config import list_config_files
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

IMAGES = 118287
BACKBONES = ("R50", "R50_DC5", "R101")
# Epochs and the epoch of the drop: --epochs and --lr_drop of the official code.
SCHEDULES = {"": (300, 200), "_boxes": (300, 200), "_boxes_500ep": (500, 400), "_masks": (25, 15)}


def recipe(name):
    return setup_cfg(name, ["MODEL.DEVICE", "cpu"])


def entries(cfg, expected):
    """The entries of a config that ``expected`` has, under their dotted names."""
    return {key: functools.reduce(getattr, key.split("."), cfg) for key in expected}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("step", SCHEDULES)
def test_panoptic_schedules(backbone, step):
    name = f"detr_panoptic_{backbone}{step}"
    cfg = recipe(f"{name}.yaml")
    epochs, drop = SCHEDULES[step]
    # The official loader drops the last batch of each of 16 GPUs.
    per_epoch = math.ceil(IMAGES / 16) // 4
    expected = {
        "SOLVER.IMS_PER_BATCH": 16 * 4,
        "SOLVER.MAX_ITER": epochs * per_epoch,
        "SOLVER.STEPS": (drop * per_epoch,),
        "SOLVER.CHECKPOINT_PERIOD": 5 * per_epoch,
        "TEST.EVAL_PERIOD": 10 * per_epoch,
        "MODEL.RESNETS.DEPTH": 101 if backbone == "R101" else 50,
        "MODEL.RESNETS.RES5_DILATION": 2 if backbone == "R50_DC5" else 1,
        "MODEL.MASK_ON": "boxes" not in step,
        "MODEL.DETR.FREEZE_DETECTOR": step == "_masks",
        "MODEL.DETR.NUM_CLASSES": 133,
        "OUTPUT_DIR": f"./output/{name}",
    }
    assert entries(cfg, expected) == expected
    if step == "_masks":
        boxes = recipe(f"detr_panoptic_{backbone}_boxes.yaml")
        assert f"{boxes.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
    else:
        assert ("resnet101" if backbone == "R101" else "R-50.pkl") in cfg.MODEL.WEIGHTS


@pytest.mark.parametrize(("step", "epochs", "drop"), [("_boxes", 500, 400), ("", 25, 15)])
def test_instance_schedules(step, epochs, drop):
    expected = {
        "SOLVER.MAX_ITER": epochs * 1848,
        "SOLVER.STEPS": (drop * 1848,),
        "DATASETS.TRAIN": ("coco_2017_train",),
        "DATASETS.TEST": ("coco_2017_val",),
        "MODEL.DETR.NUM_CLASSES": 80,
        "MODEL.DETR.FREEZE_DETECTOR": step == "",
    }
    assert entries(recipe(f"detr_instance_R50{step}.yaml"), expected) == expected


@pytest.mark.parametrize("name", [n for n in list_config_files() if n.startswith("detr_")])
def test_official_optimization(name):
    """The defaults of the official main.py; the backbone has a learning rate of 1e-5."""
    solver = {"OPTIMIZER": "ADAMW", "BASE_LR": 1e-4, "BACKBONE_MULTIPLIER": 0.1, "GAMMA": 0.1}
    solver |= {"WEIGHT_DECAY": 1e-4, "WARMUP_ITERS": 0, "CLIP_GRADIENTS.CLIP_VALUE": 0.1}
    solver |= {"CLIP_GRADIENTS.CLIP_TYPE": "full_model"}
    detr = {"CLASS_WEIGHT": 1.0, "L1_WEIGHT": 5.0, "GIOU_WEIGHT": 2.0, "MASK_WEIGHT": 1.0}
    detr |= {"DICE_WEIGHT": 1.0, "NO_OBJECT_WEIGHT": 0.1, "DROPOUT": 0.1, "NHEADS": 8}
    detr |= {"NUM_OBJECT_QUERIES": 100, "HIDDEN_DIM": 256, "DIM_FEEDFORWARD": 2048}
    detr |= {"ENC_LAYERS": 6, "DEC_LAYERS": 6, "PRE_NORM": False}
    cfg = recipe(name)
    assert entries(cfg.SOLVER, solver) == solver
    assert entries(cfg.MODEL.DETR, detr) == detr


def is_mask_part(name):
    return name.startswith(("mask_head.", "bbox_attention."))


@pytest.fixture
def run(make_cfg):
    """Return ``run(recipe, dataset, **entries)``: a tiny training with the recipe's entries.

    It gives the trainer, the names of the losses, and the weights from before the training.
    """

    def run(name, dataset, **entries):
        of = recipe(name)
        keys = ("RESNETS.NORM", "MASK_ON", "DETR.FREEZE_DETECTOR", "DETR.TEST.PANOPTIC_ON")
        for key in (*keys, "DETR.TEST.INSTANCE_ON"):
            value = functools.reduce(getattr, key.split("."), of.MODEL)
            entries[f"MODEL__{key.replace('.', '__')}"] = value
        for split in ("TRAIN", "TEST"):
            entries[f"DATASETS__{split}"] = f"('{dataset}',)"
        entries |= {"SOLVER__MAX_ITER": 2, "SOLVER__WARMUP_ITERS": 0}
        trainer = PanopticTrainer(make_cfg(of.OUTPUT_DIR, **entries))
        trainer.resume_or_load(resume=False)
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.train()
        rows = Path(trainer.cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
        losses = {key for row in rows for key in json.loads(row) if key.startswith("loss_")}
        return trainer, losses, before

    return run


def test_two_steps(run, make_cfg, panoptic_set, scene, caplog):
    panoptic_set("two_steps", [scene] * 4)
    boxes, losses, _ = run("detr_panoptic_R50_boxes.yaml", "two_steps")
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"} <= losses
    assert not losses & {"loss_mask", "loss_dice"}
    assert not any(is_mask_part(name) for name in boxes.model.state_dict())
    boxes_file = f"{boxes.cfg.OUTPUT_DIR}/model_final.pth"
    saved = torch.load(boxes_file, weights_only=True)["model"]
    caplog.clear()
    caplog.set_level(logging.INFO)
    entries = {"MODEL__WEIGHTS": boxes_file}
    masks, losses, before = run("detr_panoptic_R50_masks.yaml", "two_steps", **entries)

    assert losses == {"loss_mask", "loss_dice"}
    for name, value in masks.model.state_dict().items():
        if not is_mask_part(name):
            assert torch.equal(value, saved[name]) and torch.equal(value, before[name]), name
    # Group norms' and convolutions' every parameter has learnt something.
    trained = {n: p for n, p in masks.model.named_parameters() if p.requires_grad}
    for name, parameter in masks.model.named_parameters():
        assert (name in trained) == is_mask_part(name), name
        assert (parameter.grad is not None) == is_mask_part(name), name
        assert torch.equal(parameter.detach(), before[name]) != is_mask_part(name), name
    # Dropout is on in the frozen detector, as in official DETR.
    assert all(module.training for module in masks.model.transformer.modules())
    values = sum(p.numel() for p in trained.values())
    assert caplog.text.count("Learning rate") == 1
    assert f": {values} values in {len(trained)} tensors" in caplog.text

    # What comes out is a whole panoptic model.
    cfg = make_cfg("whole", MODEL__RESNETS__NORM=masks.cfg.MODEL.RESNETS.NORM)
    whole = build_model(cfg)
    file = f"{masks.cfg.OUTPUT_DIR}/model_final.pth"
    PanopticTrainer.build_checkpointer(cfg, whole).load(file, complete=True)
    for name, value in masks.model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value), name
    assert 0 <= PanopticTrainer.test(cfg, whole)["panoptic_seg"]["PQ"] <= 100
