import pytest
from detectron2.modeling import build_model

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

ZERO_COSTS = ["CLASS", 0.0, "L1", 0.0, "GIOU", 0.0]

# What is wrong, and the words that the line must have: the key, the value, the way out.
VALUES = {
    "unknown key": (["MODEL.DETR.HIDEN_DIM", 64], ["MODEL.DETR.HIDEN_DIM", "mean MODEL.DETR.HIDD"]),
    "missing value": (["SOLVER.MAX_ITER"], ["SOLVER.MAX_ITER", "KEY VALUE"]),
    "wrong type": (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER", "many", "int"]),
    "a group": (["MODEL.DETR", 3], ["Type mismatch", "vs. 3", "config key: MODEL.DETR"]),
    "meta architecture": (
        ["MODEL.META_ARCHITECTURE", "PanopticDeter"],
        ["MODEL.META_ARCHITECTURE", "'PanopticDeter'", "known are", "PanopticDETR"],
    ),
    "mask head": (
        ["MODEL.DETR.MASK_HEAD.NAME", "BigHead"],
        ["MODEL.DETR.MASK_HEAD.NAME", "'BigHead'", "registered mask heads are: MaskHeadSmallConv"],
    ),
    "inference hook": (
        ["MODEL.DETR.TEST.PANOPTIC_INFERENCE", "Best"],
        ["TEST.PANOPTIC_INFERENCE", "'Best'", "DETRPanopticInference"],
    ),
    "backbone": (
        ["MODEL.BACKBONE.NAME", "resnet50"],
        ["MODEL.BACKBONE.NAME", "'resnet50'", "build_torchvision_backbone"],
    ),
    "torchvision model": (
        [
            "MODEL.BACKBONE.NAME",
            "build_torchvision_backbone",
            "MODEL.DETR.BACKBONE.MODEL_NAME",
            "x",
        ],
        ["MODEL.DETR.BACKBONE.MODEL_NAME", "'x'", "resnet50"],
    ),
    "backbone without four levels": (
        ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res4']"],
        ["['res4']", "MODEL.RESNETS.OUT_FEATURES", "'res2'"],
    ),
    "backbone with other names": (
        [
            "MODEL.BACKBONE.NAME",
            "build_resnet_fpn_backbone",
            "MODEL.FPN.IN_FEATURES",
            "['res2', 'res3', 'res4', 'res5']",
            "MODEL.RESNETS.RES5_DILATION",
            1,
        ],
        ["FPN returns", "'res2'", "build_renamed_backbone"],
    ),
    "levels that are not there": (
        [
            "MODEL.BACKBONE.NAME",
            "build_renamed_backbone",
            "MODEL.DETR.BACKBONE.MODEL_NAME",
            "build_resnet_backbone",
        ],
        ["MODEL.DETR.BACKBONE.FEATURES", "p2", "res4"],
    ),
    "heads": (
        ["MODEL.DETR.HIDDEN_DIM", 32, "MODEL.DETR.NHEADS", 5],
        ["MODEL.DETR.HIDDEN_DIM is 32", "multiple of MODEL.DETR.NHEADS, which is 5"],
    ),
    "width of the mask head": (
        ["MODEL.DETR.HIDDEN_DIM", 40],
        ["MODEL.DETR.HIDDEN_DIM is 40", "multiple of 16"],
    ),
    "no queries": (["MODEL.DETR.NUM_OBJECT_QUERIES", 0], ["NUM_OBJECT_QUERIES is 0", "from 1 on"]),
    "no decoder": (["MODEL.DETR.DEC_LAYERS", 0], ["MODEL.DETR.DEC_LAYERS is 0", "1 or more"]),
    "dropout": (["MODEL.DETR.DROPOUT", 1.0], ["MODEL.DETR.DROPOUT is 1.0", "below 1"]),
    "threshold below 0": (
        ["MODEL.DETR.TEST.SCORE_THRESH", -0.5],
        ["TEST.SCORE_THRESH is -0.5", "from 0 to 1"],
    ),
    "threshold in percent": (
        ["MODEL.DETR.TEST.SCORE_THRESH", 85.0],
        ["TEST.SCORE_THRESH is 85.0", "from 0 to 1"],
    ),
    "overlap": (
        ["MODEL.DETR.TEST.OVERLAP_THRESH", -0.1],
        ["TEST.OVERLAP_THRESH is -0.1", "from 0 to 1"],
    ),
    "area": (
        ["MODEL.DETR.TEST.MIN_SEGMENT_AREA", -1],
        ["TEST.MIN_SEGMENT_AREA is -1", "0 or more"],
    ),
    "negative weight": (
        ["MODEL.DETR.DICE_WEIGHT", -1.0],
        ["weight of loss_dice is -1.0", "0 or more"],
    ),
    "NaN weight": (["MODEL.DETR.MASK_WEIGHT", "float('nan')"], ["MASK_WEIGHT", "float('nan')"]),
    "all costs zero": (
        [
            "MODEL.DETR.CLASS_WEIGHT",
            0.0,
            "MODEL.DETR.L1_WEIGHT",
            0.0,
            "MODEL.DETR.GIOU_WEIGHT",
            0.0,
        ],
        ["CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT", "cannot all be 0"],
    ),
    "masks wanted, none made": (
        ["MODEL.MASK_ON", False],
        ["MODEL.MASK_ON is False", "MODEL.DETR.TEST.PANOPTIC_ON", "or MODEL.MASK_ON to True"],
    ),
    "pixel scale": (
        ["MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"],
        ["MODEL.PIXEL_STD", "0.0", "above 0"],
    ),
    "number of classes": (
        ["MODEL.DETR.NUM_CLASSES", 7],
        ["is 7", "has 2 classes", "to 2, or to -1"],
    ),
    "data set": (
        ["DATASETS.TRAIN", "('coco_2017_train_panoptik',)"],
        ["'coco_2017_train_panoptik'", "mean coco_2017_train_panoptic", "DATASETS.REGISTER"],
    ),
    "data set item": (
        ["DATASETS.REGISTER", "[{'name': 'x'}]"],
        ["DATASETS.REGISTER[0]", "panoptic_json"],
    ),
    "image format": (["INPUT.FORMAT", "rgb"], ["INPUT.FORMAT is 'rgb'", "RGB or BGR"]),
    "image size": (["INPUT.MAX_SIZE_TRAIN", 0], ["INPUT.MAX_SIZE_TRAIN is 0", "pixels"]),
    "optimizer": (["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER is 'LION'", "ADAMW or SGD"]),
    "schedule": (
        ["SOLVER.LR_SCHEDULER_NAME", "Cosine"],
        ["SOLVER.LR_SCHEDULER_NAME is 'Cosine'", "WarmupCosineLR"],
    ),
    "precision": (
        ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float8"],
        ["SOLVER.AMP.DTYPE is 'float8'", "float16 or bfloat16"],
    ),
    "learning rate": (["SOLVER.BASE_LR", -0.1], ["SOLVER.BASE_LR is -0.1", "above 0"]),
    "batch": (["SOLVER.IMS_PER_BATCH", 0], ["SOLVER.IMS_PER_BATCH is 0", "1 or more"]),
    "checkpoints": (
        ["SOLVER.CHECKPOINT_PERIOD", 0],
        ["SOLVER.CHECKPOINT_PERIOD is 0", "1 or more"],
    ),
    "sampler": (
        ["DATALOADER.SAMPLER_TRAIN", "Best"],
        ["DATALOADER.SAMPLER_TRAIN is 'Best'", "TrainingSampler"],
    ),
    "nothing to train": (
        ["MODEL.DETR.FREEZE_DETECTOR", True, "MODEL.MASK_ON", False],
        ["FREEZE_DETECTOR", "MODEL.MASK_ON"],
    ),
}

FILES = {
    "not yaml": ("MODEL: {DETR: [1", ["mine.yaml", "no plain yaml", "line"]),
    "no mapping": ("- a\n- b\n", ["mine.yaml", "not a mapping"]),
    "empty": ("", ["mine.yaml", "not a mapping"]),
    "unknown key": ("MODEL:\n  DTER: {}\n", ["mine.yaml", "key: MODEL.DTER", "mean MODEL.DETR"]),
    "base that is missing": ("_BASE_: nothing.yaml\n", ["nothing.yaml", "No such file"]),
    "code": (
        "OUTPUT_DIR: !!python/object/apply:os.mkdir [PATH]\n",
        ["mine.yaml", "line 1", "no plain yaml", "os.mkdir"],
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_value(spoilt, error_line, case):
    opts, words = VALUES[case]
    line = error_line(lambda: PanopticTrainer(setup_cfg("shapes/tiny.yaml", spoilt.opts(*opts))))
    for word in words:
        assert word in line
    assert not (spoilt.root / "output").exists()


@pytest.mark.parametrize("case", FILES)
def test_file(tmp_path, error_line, case):
    text, words = FILES[case]
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("PATH", str(tmp_path / "made")))
    line = error_line(setup_cfg, str(path))
    for word in words:
        assert word in line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_name_of_a_config_that_is_not_there(error_line):
    line = error_line(setup_cfg, "detr_panoptic_R5.yaml")
    assert "detr_panoptic_R5.yaml" in line and "detr_panoptic_R50.yaml" in line


def test_model_built_without_the_setup_is_checked_as_well(spoilt, error_line):
    cfg = setup_cfg("shapes/tiny.yaml", spoilt.opts()).clone()
    cfg.defrost()
    cfg.MODEL.DETR.TEST.SCORE_THRESH = 2.0
    assert "TEST.SCORE_THRESH is 2.0" in error_line(build_model, cfg)
