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


@pytest.fixture
def program(tmp_path, stock_cfg, shapes):
    """Return ``run(path in the repository, replaced lines, arguments)``, which gives the output."""
    if "DETECTRON2_SOURCE" not in os.environ:
        pytest.skip("DETECTRON2_SOURCE names no checkout of facebookresearch/detectron2")
    source, metadata = Path(os.environ["DETECTRON2_SOURCE"]), MetadataCatalog.get(shapes)
    paths = {k: metadata.get(k) for k in ("image_root", "panoptic_root", "panoptic_json")}

    def run(name: str, replaced: tuple, *arguments: object, config=True) -> str:
        text = (source / name).read_text(encoding="utf-8")
        for before, after in replaced:
            assert before in text, f"{name} has no line {before!r}"
            text = text.replace(before, after)
        own = tmp_path / Path(name).name
        own.write_text(HEAD.format(paths=paths) + text, encoding="utf-8")
        if config:
            file = tmp_path / "config.yaml"
            file.write_text(stock_cfg("SOLVER.MAX_ITER", 2).dump(), encoding="utf-8")
            arguments = ("--config-file", file, *arguments)
        root = str(Path(__file__).parents[2])
        search = os.pathsep.join([root, str((source / name).parent), os.getenv("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(own), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": search},
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    return run


def test_demo_image(program, shapes, tmp_path):
    image = DatasetCatalog.get(shapes)[0]["file_name"]
    program("demo/demo.py", (KEYS,), "--input", image, "--output", tmp_path / "drawn.png")
    assert cv2.imread(str(tmp_path / "drawn.png")).shape == (96, 96, 3)


def test_demo_video(program, shapes, tmp_path):
    video = cv2.VideoWriter(
        str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 96), True
    )
    for entry in DatasetCatalog.get(shapes):
        video.write(cv2.imread(entry["file_name"]))
    video.release()
    folder = tmp_path / "drawn"
    folder.mkdir()
    program("demo/demo.py", (KEYS,), "--video-input", tmp_path / "in.mp4", "--output", folder)
    (drawn,) = folder.iterdir()
    assert int(cv2.VideoCapture(str(drawn)).get(cv2.CAP_PROP_FRAME_COUNT)) == 3


def test_analyze_model(program):
    tasks = ("flop", "parameter", "structure")
    printed = program("tools/analyze_model.py", (KEYS,), "-n", 2, "--tasks", *tasks)
    for text in ("Total GFlops", "Parameter Count", "Model Structure"):
        assert text in printed
    # Counting activations, Detectron2 takes outputs that are tensors alone.
    outputs = ("MODEL.DETR.TEST.PANOPTIC_ON", False, "MODEL.DETR.TEST.INSTANCE_ON", True)
    arguments = ("--tasks", "activation", "-n", 2, *outputs)
    printed = program("tools/analyze_model.py", (KEYS,), *arguments)
    assert "Total (Million) Activations" in printed


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_visualize_data(program, tmp_path, source):
    # The loader is endless, and so is the program.
    once = (
        'output(vis, str(per_image["image_id"]) + ".jpg")',
        'output(vis, str(per_image["image_id"]) + ".jpg"); raise SystemExit',
    )
    lines = (KEYS, MAPPER, once)
    program("tools/visualize_data.py", lines, "--source", source, "--output-dir", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == (3 if source == "annotation" else 1)


def test_train_net(program):
    lines = (KEYS, ("class Trainer(DefaultTrainer):\n", METHODS), *ONLY_PQ)
    assert "PQ" in program("tools/train_net.py", lines)


def test_plain_train_net(program):
    optimizer = ("= build_optimizer(cfg, model)", "= build_detr_optimizer(cfg, model)")
    assert "PQ" in program("tools/plain_train_net.py", (KEYS, MAPPER, optimizer, *ONLY_PQ))


def test_lazyconfig_train_net(program, lazy_config):
    name = "tools/lazyconfig_train_net.py"
    assert "PQ" in program(name, (), "--config-file", lazy_config, config=False)
