"""A dataset, weights and configs as the user of Detectron2's own programs makes them."""

import re
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


@pytest.fixture
def lazy_config(stock_cfg, shapes, tmp_path):
    """The config for ``lazyconfig_train_net.py`` of the docs, for two iterations on the shapes."""
    cfg, metadata = stock_cfg(), MetadataCatalog.get(shapes)
    paths = {key: metadata.get(key) for key in ("image_root", "panoptic_root", "panoptic_json")}
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS]
    options += ["DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (shapes,), *SIZES]
    page = (Path(__file__).parents[2] / "docs" / "detectron2.md").read_text(encoding="utf-8")
    pattern = r"```python\n(from detectron2.config import LazyCall.*?)```"
    (text,) = re.findall(pattern, page, re.DOTALL)
    register = f"register_panoptic({shapes!r}, **{paths!r})"
    for before, after in (
        ("import PanopticDatasetMapper", "import PanopticDatasetMapper, register_panoptic"),
        ('"configs/detr_panoptic_R50.yaml")', f"{str(TINY)!r})\n_cfg.merge_from_list({options!r})"),
        ("def _train_loader", f"{register}\n\n\ndef _train_loader"),
        ('"coco_2017_val_panoptic"', repr(shapes)),
        *(("369600", "1"), ("554400", "2"), ("9240", "2"), ("18480", "2")),
        *(('"output', f'"{tmp_path / "lazy"}'), ('"cuda"', '"cpu"')),
    ):
        assert before in text, before
        text = text.replace(before, after)
    path = tmp_path / "lazy.py"
    path.write_text(text, encoding="utf-8")
    return path
