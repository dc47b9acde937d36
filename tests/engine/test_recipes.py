"""The official recipes: their numbers, and that their steps fit together."""

import functools
import json
import logging
import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from PIL import Image

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


@pytest.mark.parametrize(
    ("name", "epochs", "drop"),
    [("detr_instance_R50_boxes.yaml", 500, 400), ("detr_instance_R50.yaml", 25, 15)],
)
def test_instance_schedules(name, epochs, drop):
    expected = {
        "SOLVER.MAX_ITER": epochs * 1848,
        "SOLVER.STEPS": (drop * 1848,),
        "DATASETS.TRAIN": ("coco_2017_train",),
        "DATASETS.TEST": ("coco_2017_val",),
        "MODEL.DETR.NUM_CLASSES": 80,
        "MODEL.DETR.FREEZE_DETECTOR": "boxes" not in name,
        "MODEL.DETR.TEST.INSTANCE_ON": True,
        "MODEL.DETR.TEST.PANOPTIC_ON": False,
    }
    assert entries(recipe(name), expected) == expected


@pytest.mark.parametrize("name", [n for n in list_config_files() if n.startswith("detr_")])
def test_official_optimisation(name):
    """The defaults of the official main.py."""
    expected = {
        "SOLVER.OPTIMIZER": "ADAMW",
        "SOLVER.BASE_LR": 1e-4,
        # 1e-5 for the backbone.
        "SOLVER.BACKBONE_MULTIPLIER": 0.1,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.GAMMA": 0.1,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.1,
        "MODEL.DETR.CLASS_WEIGHT": 1.0,
        "MODEL.DETR.L1_WEIGHT": 5.0,
        "MODEL.DETR.GIOU_WEIGHT": 2.0,
        "MODEL.DETR.MASK_WEIGHT": 1.0,
        "MODEL.DETR.DICE_WEIGHT": 1.0,
        "MODEL.DETR.NO_OBJECT_WEIGHT": 0.1,
        "MODEL.DETR.DROPOUT": 0.1,
        "MODEL.DETR.NUM_OBJECT_QUERIES": 100,
        "MODEL.DETR.HIDDEN_DIM": 256,
        "MODEL.DETR.NHEADS": 8,
        "MODEL.DETR.DIM_FEEDFORWARD": 2048,
        "MODEL.DETR.ENC_LAYERS": 6,
        "MODEL.DETR.DEC_LAYERS": 6,
        "MODEL.DETR.PRE_NORM": False,
    }
    assert entries(recipe(name), expected) == expected


class LossNames(HookBase):
    """Every loss the trainer got."""

    def __init__(self):
        self.names = set()

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.names |= {name for name in latest if name.startswith("loss_")}


def run(cfg):
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=False)
    losses = LossNames()
    trainer.register_hooks([losses])
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    return trainer, losses.names, before


def is_mask_part(name):
    return name.startswith(("mask_head.", "bbox_attention."))


@pytest.fixture
def tiny(tmp_path):
    """Return a function that makes a tiny config with the entries of one of the recipes."""
    torch.set_num_threads(2)

    def make(recipe_name, dataset, weights="", **more):
        of = recipe(recipe_name)
        opts = {
            "DATASETS.TRAIN": f"('{dataset}',)",
            "DATASETS.TEST": f"('{dataset}',)",
            "MODEL.WEIGHTS": weights,
            "MODEL.DEVICE": "cpu",
            # As in the recipe: no statistic of the detector may move.
            "MODEL.RESNETS.NORM": of.MODEL.RESNETS.NORM,
            "MODEL.MASK_ON": of.MODEL.MASK_ON,
            "MODEL.DETR.FREEZE_DETECTOR": of.MODEL.DETR.FREEZE_DETECTOR,
            "MODEL.DETR.TEST.PANOPTIC_ON": of.MODEL.DETR.TEST.PANOPTIC_ON,
            "MODEL.DETR.TEST.INSTANCE_ON": of.MODEL.DETR.TEST.INSTANCE_ON,
            "INPUT.MIN_SIZE_TRAIN": "(32,)",
            "INPUT.MIN_SIZE_TEST": 32,
            "SOLVER.MAX_ITER": 2,
            "SOLVER.WARMUP_ITERS": 0,
            "OUTPUT_DIR": tmp_path / of.OUTPUT_DIR,
            **{key.replace("__", "."): value for key, value in more.items()},
        }
        flat = [str(x) for pair in opts.items() for x in pair]
        return setup_cfg("shapes/tiny.yaml", flat)

    return make


def check_mask_stage(trainer, names, before, boxes_file, caplog):
    saved = torch.load(boxes_file, weights_only=True)["model"]
    after = trainer.model.state_dict()
    assert names == {"loss_mask", "loss_dice"}
    for name, value in after.items():
        if not is_mask_part(name):
            assert torch.equal(value, saved[name]), name
            assert torch.equal(value, before[name]), name
    # Group norms' and convolutions' every parameter has learnt something.
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == is_mask_part(name), name
        if is_mask_part(name):
            assert not torch.equal(parameter.detach(), before[name]), name
        else:
            assert parameter.grad is None, name
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.model.parameters() if p.requires_grad}
    # Dropout is on in the frozen detector, as in official DETR.
    assert all(module.training for module in trainer.model.transformer.modules())
    trained = [p for n, p in trainer.model.named_parameters() if is_mask_part(n)]
    values = sum(p.numel() for p in trained)
    assert f"Optimizer group 'rest': {len(trained)} tensors, {values} values" in caplog.text
    frozen = sum(p.numel() for p in trainer.model.parameters()) - values
    assert f"Frozen parameters: {frozen} values" in caplog.text
    assert "Optimizer group 'backbone'" not in caplog.text


def test_two_steps(tiny, panoptic_set, scene, caplog):
    panoptic_set("two_steps", [scene] * 4)
    boxes, names, _ = run(tiny("detr_panoptic_R50_boxes.yaml", "two_steps"))
    assert {"loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"} <= names
    assert not names & {"loss_mask", "loss_dice"}
    assert not any(is_mask_part(name) for name in boxes.model.state_dict())
    boxes_file = f"{boxes.cfg.OUTPUT_DIR}/model_final.pth"

    caplog.clear()
    caplog.set_level(logging.INFO)
    cfg = tiny("detr_panoptic_R50_masks.yaml", "two_steps", boxes_file)
    masks, names, before = run(cfg)
    check_mask_stage(masks, names, before, boxes_file, caplog)

    # What comes out is a whole panoptic model.
    whole = build_model(setup_cfg("shapes/tiny.yaml", joint_opts(cfg)))
    PanopticTrainer.build_checkpointer(cfg, whole).load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    for name, value in masks.model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value), name
    result = PanopticTrainer.test(cfg, whole)
    assert 0 <= result["panoptic_seg"]["PQ"] <= 100


def joint_opts(cfg):
    opts = ["DATASETS.TRAIN", str(cfg.DATASETS.TRAIN), "DATASETS.TEST", str(cfg.DATASETS.TEST)]
    return [*opts, "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", cfg.MODEL.RESNETS.NORM]


@pytest.fixture
def instance_set(tmp_path):
    """A registered COCO instance set: two images with two polygons each, ids with gaps."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(2):
        Image.new("RGB", (40, 32), (60 + 90 * number, 80, 120)).save(
            tmp_path / "images" / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "height": 32, "width": 40})
        for category, x in ((4, 4.0), (9, 22.0)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, 6.0, 12.0, 16.0],
                    "area": 192.0,
                    "iscrowd": 0,
                    "segmentation": [[x, 6.0, x + 12, 6.0, x + 12, 22.0, x, 22.0]],
                }
            )
    categories = [{"id": 4, "name": "left"}, {"id": 9, "name": "right"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps({"info": {}, **content}))
    name = "recipe_instances"
    register_coco_instances(
        name,
        {"thing_classes": ["left", "right"], "thing_dataset_id_to_contiguous_id": {4: 0, 9: 1}},
        str(tmp_path / "instances.json"),
        str(tmp_path / "images"),
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_instance_segmentation_in_two_steps(tiny, instance_set, caplog):
    boxes, names, _ = run(tiny("detr_instance_R50_boxes.yaml", instance_set))
    assert not names & {"loss_mask", "loss_dice"}
    assert boxes.model.num_classes == 2
    boxes_file = f"{boxes.cfg.OUTPUT_DIR}/model_final.pth"
    caplog.clear()
    caplog.set_level(logging.INFO)
    masks, names, before = run(tiny("detr_instance_R50.yaml", instance_set, boxes_file))
    check_mask_stage(masks, names, before, boxes_file, caplog)
    result = PanopticTrainer.test(masks.cfg, masks.model)
    assert set(result) <= {"bbox", "segm"}
