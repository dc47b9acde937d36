"""The programs of Detectron2's repository, run as they are but for the lines that a user adds.

They are not part of an installed Detectron2: ``DETECTRON2_SOURCE`` names a checkout of the
repository, best of the time of the installed package.
"""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

HEAD = """
from detr_panoptic_d2 import add_detr_panoptic_config
from detr_panoptic_d2.data import PanopticDatasetMapper, register_panoptic
from detr_panoptic_d2.engine import build_optimizer as build_detr_optimizer
register_panoptic("stock_shapes", **{paths!r})
"""
KEYS = ("cfg = get_cfg()", "cfg = get_cfg(); add_detr_panoptic_config(cfg)")
MAPPER = (
    "build_detection_train_loader(cfg)",
    "build_detection_train_loader(cfg, mapper=PanopticDatasetMapper(cfg))",
)
# A panoptic set has neither semantic PNGs nor an instance json.
ONLY_PQ = (
    ('in ["sem_seg", "coco_panoptic_seg"]', 'in ["sem_seg"]'),
    ('in ["coco", "coco_panoptic_seg"]', 'in ["coco"]'),
)
METHODS = """class Trainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        from detectron2.data import build_detection_train_loader
        return build_detection_train_loader(cfg, mapper=PanopticDatasetMapper(cfg))

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_detr_optimizer(cfg, model)
"""
TRAINER = ("class Trainer(DefaultTrainer):\n", METHODS)
OPTIMIZER = ("= build_optimizer(cfg, model)", "= build_detr_optimizer(cfg, model)")
# The loader is endless, and so is the program.
WRITTEN = 'output(vis, str(per_image["image_id"]) + ".jpg")'
ONCE = (WRITTEN, f"{WRITTEN}; raise SystemExit")
# Counting activations, Detectron2 takes outputs that are tensors alone.
TENSORS = "MODEL.DETR.TEST.PANOPTIC_ON False MODEL.DETR.TEST.INSTANCE_ON True"


@pytest.fixture
def program(tmp_path, stock_cfg, shapes):
    """Return ``run(path in the repository, replaced lines, arguments)``, which gives the output."""
    if "DETECTRON2_SOURCE" not in os.environ:
        pytest.skip("DETECTRON2_SOURCE names no checkout of facebookresearch/detectron2")
    source, metadata = Path(os.environ["DETECTRON2_SOURCE"]), MetadataCatalog.get(shapes)
    paths = {k: metadata.get(k) for k in ("image_root", "panoptic_root", "panoptic_json")}
    (tmp_path / "config.yaml").write_text(stock_cfg("SOLVER.MAX_ITER", 2).dump(), "utf-8")

    def run(name: str, replaced: tuple, *arguments: object, config="config.yaml") -> str:
        text = (source / name).read_text(encoding="utf-8")
        for before, after in replaced:
            assert before in text, f"{name} has no line {before!r}"
            text = text.replace(before, after)
        own = tmp_path / Path(name).name
        own.write_text(HEAD.format(paths=paths) + text, encoding="utf-8")
        root = str(Path(__file__).parents[2])
        search = os.pathsep.join([root, str((source / name).parent), os.getenv("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(own), "--config-file", config, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": search},
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    ("name", "replaced", "arguments", "printed"),
    [
        ("analyze_model.py", (KEYS,), "-n 2 --tasks flop", "Total GFlops"),
        ("analyze_model.py", (KEYS,), "--tasks parameter structure", "Parameter Count"),
        ("analyze_model.py", (KEYS,), f"--tasks activation -n 2 {TENSORS}", "Activations"),
        ("train_net.py", (KEYS, TRAINER, *ONLY_PQ), "", "PQ"),
        ("plain_train_net.py", (KEYS, MAPPER, OPTIMIZER, *ONLY_PQ), "", "PQ"),
    ],
)
def test_prints(program, name, replaced, arguments, printed):
    assert printed in program(f"tools/{name}", replaced, *arguments.split())


def test_lazyconfig_train_net(program, lazy_config):
    assert "PQ" in program("tools/lazyconfig_train_net.py", (), config=lazy_config)


@pytest.mark.parametrize("source, count", [("annotation", 3), ("dataloader", 1)])
def test_visualize_data(program, tmp_path, source, count):
    words = ("--source", source, "--output-dir", tmp_path / "out")
    program("tools/visualize_data.py", (KEYS, MAPPER, ONCE), *words)
    assert len(list((tmp_path / "out").iterdir())) == count


def test_demo(program, shapes, tmp_path):
    images = [cv2.imread(entry["file_name"]) for entry in DatasetCatalog.get(shapes)]
    words = ("--input", DatasetCatalog.get(shapes)[0]["file_name"])
    program("demo/demo.py", (KEYS,), *words, "--output", tmp_path / "drawn.png")
    assert cv2.imread(str(tmp_path / "drawn.png")).shape == (96, 96, 3)
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    video = cv2.VideoWriter(str(tmp_path / "in.mp4"), codec, 10, (96, 96), True)
    for image in images:
        video.write(image)
    video.release()
    folder = tmp_path / "drawn"
    folder.mkdir()
    program("demo/demo.py", (KEYS,), "--video-input", tmp_path / "in.mp4", "--output", folder)
    (drawn,) = folder.iterdir()
    assert int(cv2.VideoCapture(str(drawn)).get(cv2.CAP_PROP_FRAME_COUNT)) == 3
