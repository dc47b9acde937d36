import re
import shlex

import pytest
from detectron2.modeling import build_model

from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg

TORCHVISION = "MODEL.BACKBONE.NAME build_torchvision_backbone MODEL.DETR.BACKBONE.MODEL_NAME"
FPN = "MODEL.BACKBONE.NAME build_resnet_fpn_backbone MODEL.RESNETS.RES5_DILATION 1"
FPN += " MODEL.FPN.IN_FEATURES \"['res2', 'res3', 'res4', 'res5']\""
RENAMED = "MODEL.BACKBONE.NAME build_renamed_backbone MODEL.DETR.BACKBONE.MODEL_NAME"
ONE_LEVEL = "MODEL.BACKBONE.NAME build_resnet_backbone MODEL.RESNETS.OUT_FEATURES \"['res4']\""
NO_COSTS = " ".join(f"MODEL.DETR.{x}_WEIGHT 0.0" for x in ("CLASS", "L1", "GIOU"))

# What is wrong, and what the line must say: the key, the value, the way out.
VALUES = [
    ("SOLVER.MAXITER 64", r"Non-existent .*SOLVER.MAXITER. Did you mean SOLVER.MAX_ITER\?"),
    ("SOLVER.MAX_ITER", "KEY VALUE.*SOLVER.MAX_ITER"),
    ("MODEL.DETR 3", "Type mismatch.*vs. 3.*config key: MODEL.DETR"),
    ("MODEL.DETR.MASK_HEAD.NAME Big", "MASK_HEAD.NAME.*'Big'.*one of MaskHeadSmallConv"),
    ("MODEL.BACKBONE.NAME r50", "MODEL.BACKBONE.NAME is 'r50', .*build_torchvision_backbone"),
    (f"{TORCHVISION} x", "MODEL.DETR.BACKBONE.MODEL_NAME.*'x'.*resnet50"),
    (ONE_LEVEL, "(?=.*'res4'.)(?=.*MODEL.RESNETS.OUT_FEATURES)(?=.*'res2')"),
    (FPN, "(?=.*FPN returns)(?=.*'res2')(?=.*build_renamed_backbone)"),
    (f"{RENAMED} build_resnet_backbone", "(?=.*MODEL.DETR.BACKBONE.FEATURES)(?=.*p2)(?=.*res4)"),
    ("MODEL.DETR.NHEADS 5", "MODEL.DETR.HIDDEN_DIM is 32.*MODEL.DETR.NHEADS, which is 5"),
    ("MODEL.DETR.NUM_OBJECT_QUERIES 0", "NUM_OBJECT_QUERIES is 0.*1 or more"),
    ("MODEL.DETR.DROPOUT 1.0", "MODEL.DETR.DROPOUT is 1.0.*below 1"),
    ("MODEL.DETR.TEST.SCORE_THRESH -0.5", "TEST.SCORE_THRESH is -0.5.*from 0 to 1"),
    ("MODEL.DETR.DICE_WEIGHT -1.0", "weight of loss_dice is -1.0.*0 or more"),
    ("MODEL.DETR.MASK_WEIGHT float('nan')", r"float\(nan\).*MASK_WEIGHT"),
    (NO_COSTS, "CLASS_WEIGHT, L1_WEIGHT and GIOU_WEIGHT.*cannot all be 0"),
    ("MODEL.MASK_ON False", "MODEL.MASK_ON is False.*PANOPTIC_ON.*or MODEL.MASK_ON to True"),
    ("MODEL.PIXEL_STD '[1.0, 0.0, 1.0]'", "(?=.*MODEL.PIXEL_STD)(?=.*0.0)(?=.*above 0)"),
    ("MODEL.DETR.NUM_CLASSES 7", "NUM_CLASSES is 7, but must be 2,.*'spoilt'.*or -1"),
    ("DATASETS.TRAIN \"('coco_x',)\"", "'coco_x', but must be a registered.*DATASETS.REGISTER"),
    ("MODEL.PIXEL_MEAN [1.0] MODEL.PIXEL_STD [1.0]", "MODEL.PIXEL_MEAN is .* 3 numbers"),
    ("INPUT.FORMAT rgb", "INPUT.FORMAT is 'rgb'.*RGB or BGR"),
    ("SOLVER.OPTIMIZER LION", "SOLVER.OPTIMIZER is 'LION'.*ADAMW or SGD"),
    ("SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE float8", "DTYPE is 'float8'.*float16 or bfloat16"),
    ("SOLVER.ACCUMULATE 2", "SOLVER.ACCUMULATE is 2.*a divisor of 3"),
    ("DATALOADER.SAMPLER_TRAIN Best", "DATALOADER.SAMPLER_TRAIN is 'Best'.*TrainingSampler"),
    ("MODEL.DETR.FREEZE_DETECTOR True MODEL.MASK_ON False", "FREEZE_DETECTOR.*MODEL.MASK_ON"),
]

FILES = [
    ("MODEL: {DETR: [1", "not plain yaml.*line"),
    ("- a\n- b\n", "not plain yaml with keys and values"),
    ("", "not plain yaml with keys and values"),
    ("MODEL:\n  DTER: {}\n", r"Non-existent .*key: MODEL.DTER. Did you mean MODEL.DETR\?"),
    ("_BASE_: nothing.yaml\n", "No such file.*nothing.yaml"),
    ("OUTPUT_DIR: !!python/object/apply:os.mkdir [PATH]\n", "not plain yaml.*os.mkdir.*line 1"),
]


@pytest.mark.parametrize(("opts", "message"), VALUES)
def test_value(spoilt, error_line, opts, message):
    opts = spoilt.opts(*shlex.split(opts))
    line = error_line(lambda: PanopticTrainer(setup_cfg("shapes/tiny.yaml", opts)))
    assert re.search(message, line), line
    assert not (spoilt.root / "output").exists()


@pytest.mark.parametrize(("text", "message"), FILES)
def test_file(tmp_path, error_line, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("PATH", str(tmp_path / "made")))
    line = error_line(setup_cfg, str(path))
    assert re.search(message, line), line
    assert "nothing.yaml" in text or "mine.yaml" in line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_model_built_without_the_setup_is_checked_as_well(spoilt, error_line):
    cfg = setup_cfg("shapes/tiny.yaml", spoilt.opts()).clone()
    cfg.defrost()
    cfg.MODEL.DETR.TEST.SCORE_THRESH = 2.0
    assert "TEST.SCORE_THRESH is 2.0" in error_line(build_model, cfg)
