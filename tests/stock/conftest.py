"""A dataset, weights and configs as the user of Detectron2's own programs makes them."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from detr_panoptic_d2 import add_detr_panoptic_config
from detr_panoptic_d2.apps.demo import make_shapes
from detr_panoptic_d2.data import register_panoptic

TINY = Path(__file__).parents[2] / "configs" / "shapes" / "tiny.yaml"
# Every query that wins a pixel is a segment.
KEEP_ALL = ("MODEL.DETR.TEST.OVERLAP_THRESH", 0.0, "MODEL.DETR.TEST.MIN_SEGMENT_AREA", 0)
SIZES = ("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96)


@pytest.fixture
def shapes(tmp_path, clean_catalogs):
    """Three images of coloured shapes, registered as a panoptic set."""
    register_panoptic("stock_shapes", **make_shapes(tmp_path / "data", "val", 3, size=96, seed=5))
    return "stock_shapes"


@pytest.fixture
def stock_cfg(tmp_path, shapes, tiny_model, make_input):
    """Return ``make("KEY", value, ...)``: a config made as Detectron2's programs make theirs, with
    weights that Detectron2's own checkpointer saved."""
    model = tiny_model()
    with torch.no_grad():
        # Queries of all classes, things and stuff.
        hs = model.detect(model.preprocess([make_input(96, 96)])).hs[-1].mean((0, 1))
        model.class_embed.bias[:-1] = -model.class_embed.weight[:-1] @ hs
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("weights")

    def make(*options) -> CfgNode:
        cfg = get_cfg()
        add_detr_panoptic_config(cfg)
        cfg.merge_from_file(str(TINY))
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(tmp_path / "weights.pth")])
        cfg.merge_from_list(["DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (shapes,)])
        cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "output"), *KEEP_ALL, *SIZES, *options])
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        cfg.freeze()
        return cfg

    return make


# A config for ``lazyconfig_train_net.py``. OmegaConf would take a CfgNode apart, so functions of
# the file hold it; names with an underscore are no part of the config.
LAZY = """
from detectron2.config import LazyCall as L, get_cfg
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.modeling import build_model
from fvcore.common.param_scheduler import MultiStepParamScheduler

from detr_panoptic_d2 import add_detr_panoptic_config
from detr_panoptic_d2.data import PanopticDatasetMapper, register_panoptic
from detr_panoptic_d2.engine import build_optimizer

register_panoptic("stock_shapes", **{paths!r})
_cfg = get_cfg()
add_detr_panoptic_config(_cfg)
_cfg.merge_from_file({tiny!r})
_cfg.merge_from_list({options!r})


def _train_loader():
    return build_detection_train_loader(_cfg, mapper=PanopticDatasetMapper(_cfg))


model = L(lambda: build_model(_cfg))()
optimizer = L(lambda params: build_optimizer(_cfg, params["model"]))(params=dict())
lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[1], num_updates=2)
dataloader = dict(
    train=L(_train_loader)(),
    test=L(lambda: build_detection_test_loader(_cfg, "stock_shapes"))(),
    evaluator=L(COCOPanopticEvaluator)(dataset_name="stock_shapes", output_dir={output!r}),
)
train = dict(
    output_dir={output!r},
    init_checkpoint=_cfg.MODEL.WEIGHTS,
    max_iter=2,
    amp=dict(enabled=False),
    ddp=dict(),
    checkpointer=dict(period=2),
    eval_period=2,
    log_period=1,
    device="cpu",
)
"""


@pytest.fixture
def lazy_config(stock_cfg, shapes, tmp_path):
    """A config file for ``lazyconfig_train_net.py``."""
    cfg, metadata = stock_cfg(), MetadataCatalog.get(shapes)
    keys = ("image_root", "panoptic_root", "panoptic_json")
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS]
    options += ["DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (shapes,), *SIZES]
    text = LAZY.format(
        paths={key: metadata.get(key) for key in keys},
        tiny=str(TINY),
        options=options,
        output=str(tmp_path / "lazy"),
    )
    path = tmp_path / "lazy.py"
    path.write_text(text, encoding="utf-8")
    return path
