import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_panoptic_d2.data import register
from detr_panoptic_d2.engine import setup_cfg

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "convert_dataset.py"
ENV = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def tool(monkeypatch):
    """Return ``run(*arguments)``: the tool's ``main`` in this process."""
    spec = importlib.util.spec_from_file_location("convert_dataset_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        return module.main()

    return run


@pytest.fixture
def logged(caplog):
    """What the package logs, whether or not its loggers pass it on."""
    logger = logging.getLogger("detr_panoptic_d2")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def forget():
    """Forget the data sets that a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        register._registered.pop(name, None)


def make_masks(root, count):
    """A folder of instance-id masks and the arguments that name it."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{index:04d}.jpg")
        mask = np.kron(rng.integers(0, 5, (6, 8)), np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(mask).save(root / f"masks/{index:04d}_mask.png")
    return ["instance-masks", "--images", root / "images", "--masks", root / "masks"]


def files(folder):
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if p.suffix in (".png", ".json")}


@pytest.mark.usefixtures("forget")
def test_the_written_config_can_be_used(tool, tmp_path, capsys):
    arguments = [*make_masks(tmp_path / "in", 10), "--output", tmp_path / "my set"]
    arguments += ["--category", "cell", "--background", "ground", "--split", "0.8", "0.2"]
    assert tool(*arguments) == 0
    printed = capsys.readouterr().out
    config = tmp_path / "my set/my_set.yaml"
    assert f"tools/check_dataset.py --config-file '{config}'" in printed
    cfg = setup_cfg(str(config))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    assert (list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)) == (["my_set_train"], ["my_set_val"])
    assert [len(DatasetCatalog.get(f"my_set_{s}")) for s in ("train", "val")] == [8, 2]
    assert MetadataCatalog.get("my_set_val").stuff_classes == ["cell", "ground"]
    config.write_text(config.read_text() + "OUTPUT_DIR: mine\n")
    assert tool(*arguments) == 0
    assert "OUTPUT_DIR: mine" in config.read_text()


ERRORS = {
    "shares": (["--split", "0.8", "0.1"], "add up to 1"),
    "names without shares": (["--split-names", "a", "b"], "need --split"),
    "name twice": (["--split", "0.5", "0.5", "--split-names", "a", "a"], "has 2 shares"),
    "path as name": (["--split-names", "../x"], "becomes part of file names"),
    "unknown class": (["--things", "dog"], "--things names 'dog'"),
    "no such model": (["--stuff-from-model", "none.yaml", "none.pth"], "none.yaml"),
    "no such base": (["--base", "none.yaml"], "No config 'none.yaml'"),
    "workers": (["--workers", "-1"], "workers is -1"),
    "background is a thing": (["--background", "object"], "'object' is to be stuff"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_an_exit_code(tool, tmp_path, logged, case):
    options, message = ERRORS[case]
    arguments = [*make_masks(tmp_path / "in", 2), "--output", tmp_path / "out"]
    assert tool(*arguments, *options) == 1
    (error,) = (r for r in dict.fromkeys(logged.records) if r.levelno == logging.ERROR)
    assert message in error.getMessage() and "\n" not in error.getMessage()
    assert not list((tmp_path / "out").rglob("*.png"))


def test_what_is_left_out_is_said(tool, tmp_path, logged):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["coco", "--instances", tmp_path / "a.json", "--images", tmp_path / "images"]
    assert tool(*arguments, "--output", tmp_path / "out", "--name", "x") == 0
    assert "Left out: 1 annotations have no segmentation" in logged.text
    assert (tmp_path / "out/x.yaml").is_file()


def test_killed_and_called_again(tool, tmp_path):
    """kill -9 in the middle; the second call ends with what one call would have written."""
    arguments = [*make_masks(tmp_path / "in", 120), "--background", "ground"]
    command = [sys.executable, TOOL, *arguments, "--output", tmp_path / "out"]
    process = subprocess.Popen(
        [*map(str, command), "--workers", "3"],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = tmp_path / "out/.convert-train/journal.jsonl"
    try:
        while process.poll() is None and not (journal.is_file() and journal.stat().st_size > 2000):
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "out/panoptic_train.json").exists()
    for png in (tmp_path / "out/panoptic_train").glob("*.png"):
        with Image.open(png) as image:
            image.load()
    done = len(journal.read_bytes().splitlines())
    assert 0 < done < 120
    assert tool(*arguments, "--output", tmp_path / "out") == 0
    assert tool(*arguments, "--output", tmp_path / "whole", "--workers", "1") == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not journal.exists() and not list((tmp_path / "out").rglob("*.tmp"))


def test_ctrl_c_ends_all_processes_and_can_be_taken_up(tool, tmp_path):
    arguments = [*make_masks(tmp_path / "in", 120), "--output", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, arguments), "--workers", "2"],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    journal = tmp_path / "out/.convert-train/journal.jsonl"
    try:
        while process.poll() is None and not (journal.is_file() and journal.stat().st_size > 2000):
            time.sleep(0.002)
        # As a terminal does: to the whole group, workers included.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "The same command goes on from here" in output
    assert "Traceback" not in output
    assert tool(*arguments) == 0
    assert len(list((tmp_path / "out/panoptic_train").glob("*.png"))) == 120
