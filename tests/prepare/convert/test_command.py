"""The command ``detr-panoptic convert``."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_panoptic_d2.engine import setup_cfg

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def convert(run_command):
    """Return ``run(*arguments)``: (exit status, what was printed and logged)."""
    return lambda *arguments: run_command("convert", *arguments, "--workers", "1")


def make_masks(root, count, first=0):
    """A folder of instance-id masks and the arguments that name it."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(first, first + count):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{index:04d}.jpg")
        mask = np.kron(rng.integers(0, 5, (6, 8)), np.ones((4, 4))).astype(np.uint8)
        Image.fromarray(mask).save(root / f"masks/{index:04d}_mask.png")
    return ["instance-masks", "--images", root / "images", "--masks", root / "masks"]


def test_the_written_config_can_be_used(convert, tmp_path):
    arguments = [*make_masks(tmp_path / "in", 10), "--output", tmp_path / "my set"]
    arguments += ["--category", "cell", "--background", "ground", "--split", "0.8", "0.2"]
    status, printed = convert(*arguments)
    config = tmp_path / "my set/my_set.yaml"
    assert status == 0 and f"detr-panoptic check --config-file '{config}'" in printed
    cfg = setup_cfg(str(config))
    assert cfg.MODEL.DETR.NUM_CLASSES == 2
    assert (list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)) == (["my_set_train"], ["my_set_val"])
    assert [len(DatasetCatalog.get(f"my_set_{s}")) for s in ("train", "val")] == [8, 2]
    assert MetadataCatalog.get("my_set_val").stuff_classes == ["cell", "ground"]


def split_inputs(tmp_path):
    """Arguments for data that are split already."""
    make_masks(tmp_path / "a", 3)
    make_masks(tmp_path / "b", 2, first=5)
    folders = [[tmp_path / part / kind for part in "ab"] for kind in ("images", "masks")]
    return ["instance-masks", "--images", *folders[0], "--masks", *folders[1]]


def datasets(path):
    config = yaml.safe_load(path.read_text())
    return config, config["DATASETS"]["TRAIN"], config["DATASETS"]["TEST"]


def test_splits_in_one_command(convert, tmp_path):
    status, printed = convert(*split_inputs(tmp_path), "--output", tmp_path / "mine")
    assert status == 0 and "same images" not in printed
    config, train, test = datasets(tmp_path / "mine/mine.yaml")
    assert (train, test) == (["mine_train"], ["mine_val"])
    roots = [e["image_root"] for e in config["DATASETS"]["REGISTER"]]
    assert roots == [str(tmp_path / "a/images"), str(tmp_path / "b/images")]
    assert [len(json.loads((tmp_path / f"mine/panoptic_{s}.json").read_text())["images"])
            for s in ("train", "val")] == [3, 2]  # fmt: skip
    status, printed = convert(
        *split_inputs(tmp_path / "x"), "--output", tmp_path / "y", "--split-names", "one"
    )
    assert status == 1 and "1 --split-names need as many inputs" in printed


def test_a_second_call_adds_its_split_to_the_config(convert, tmp_path):
    config = tmp_path / "mine/mine.yaml"
    for part, name in (("a", "train"), ("b", "val")):
        arguments = make_masks(tmp_path / part, 3, first=10 * (part == "b"))
        base = ["--base", "own_data/from_scratch_small.yaml"] if name == "train" else []
        arguments += ["--output", config.parent]
        status, printed = convert(*arguments, "--split-names", name, *base)
        assert status == 0 and ("same images" in printed) == (name == "train")
        assert ("keeps its _BASE_" in printed) == (name == "val")
        if name == "train":
            config.write_text(config.read_text() + "OUTPUT_DIR: output/mine\n")
    content, train, test = datasets(config)
    assert (train, test) == (["mine_train"], ["mine_val"])
    assert content["OUTPUT_DIR"] == "output/mine"
    assert setup_cfg(str(config)).DATASETS.TEST == ("mine_val",)

    edited = config.read_text().replace("- mine_val", "- mine_train") + "# mine\n"
    config.write_text(edited)
    status, printed = convert(*arguments, "--split-names", "test")
    assert status == 1 and "changed by hand" in printed and "name: mine_test" in printed
    assert "detr-panoptic train" not in printed and config.read_text() == edited


def test_splits_of_a_folder_have_the_same_classes(convert, tmp_path):
    arguments = [*make_masks(tmp_path / "in", 3), "--output", tmp_path / "mine"]
    assert convert(*arguments, "--category", "cell", "--background", "ground")[0] == 0
    arguments += ["--category", "cell", "--split-names", "val"]
    status, printed = convert(*arguments)
    classes = tmp_path / "mine/panoptic_train.json"
    assert status == 1 and f"Give --classes {classes} to use those" in printed
    assert convert(*arguments, "--classes", classes)[0] == 0


def test_classes_and_sizes_that_look_wrong_are_said(convert, tmp_path):
    """Masks of 0 and 255, of which 255 is void; and speckles."""
    make_masks(tmp_path / "in", 2)
    speckles = np.full((24, 32), 255, np.uint8)
    speckles[::3, ::3] = 0
    for name in ("0000", "0001"):
        Image.fromarray(speckles).save(tmp_path / f"in/masks/{name}.png")
    (tmp_path / "classes.txt").write_text("ground\ncell\n")
    arguments = [
        "class-masks",
        "--images",
        tmp_path / "in/images",
        "--masks",
        tmp_path / "in/masks",
    ]
    arguments += ["--labels", tmp_path / "classes.txt", "--things", "cell"]
    status, printed = convert(*arguments, "--output", tmp_path / "a")
    assert status == 0 and "Not a single segment of cell" in printed
    status, printed = convert(*arguments, "--output", tmp_path / "b", "--things", "ground")
    assert status == 0 and "--min-area 10 leaves out" in printed


def test_the_corrected_command_after_a_wrong_one(convert, tmp_path):
    arguments = [*make_masks(tmp_path / "in", 3), "--output", tmp_path / "mine"]
    Image.new("RGB", (32, 24)).save(tmp_path / "in/masks/0002_mask.png")
    assert convert(*arguments)[0] == 1
    Image.new("L", (32, 24), 1).save(tmp_path / "in/masks/0002_mask.png")
    assert convert(*arguments, "--category", "cell")[0] == 0


def test_what_is_left_out_is_said(convert, tmp_path):
    arguments = make_masks(tmp_path / "in", 4)
    (tmp_path / "in/images/0000.jpg").unlink()
    (tmp_path / "in/masks/0003_mask.png").unlink()
    status, printed = convert(*arguments, "--output", tmp_path / "out")
    assert status == 0 and len(list((tmp_path / "out/panoptic_train").iterdir())) == 2
    assert "1 masks without an image, such as" in printed and "0000_mask.png" in printed
    assert "1 images without a mask, such as '0003.jpg'" in printed

    content = {
        "images": [{"id": 1, "file_name": "0001.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["coco", "--instances", tmp_path / "a.json", "--images", tmp_path / "in/images"]
    status, printed = convert(*arguments, "--output", tmp_path / "coco", "--name", "x")
    assert status == 0 and (tmp_path / "coco/x.yaml").is_file()
    assert "Left out: 1 annotations have no segmentation" in printed
    assert "2 images that no annotation names, such as" in printed and "0002.jpg" in printed


ERRORS = {
    "shares": (["--split", "0.8", "0.1"], "add up to 1"),
    "names without shares": (["--split-names", "a", "b"], "need as many inputs, or --split"),
    "name twice": (["--split", "0.5", "0.5", "--split-names", "a", "a"], "must be there once"),
    "path as name": (["--split-names", "../x"], "part of file names"),
    "unknown class": (["--things", "dog"], "--things names 'dog'"),
    "no such model": (["--stuff-from-model", "none.yaml", "none.pth"], "none.yaml"),
    "no such base": (["--base", "none.yaml"], "No config 'none.yaml'"),
    "background is a thing": (["--background", "object"], "'object' is to be stuff"),
    "paths that do not pair": (["--images", "a", "b", "c", "--masks", "a", "b"], "--masks needs"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(convert, tmp_path, case):
    options, message = ERRORS[case]
    arguments = [*make_masks(tmp_path / "in", 2), "--output", tmp_path / "out", *options]
    status, printed = convert(*arguments)
    (line,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert status == 1 and message in line and "Traceback" not in printed
    assert not list((tmp_path / "out").rglob("*.png"))


def test_ctrl_c_ends_all_processes(tmp_path):
    arguments = [*make_masks(tmp_path / "in", 600), "--output", tmp_path / "out", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "detr_panoptic_cli", "convert", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and len(list((tmp_path).rglob("out/.convert*/*/*.png"))) < 9:
            time.sleep(0.01)
        # As a terminal does: to the whole group, workers included.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Nothing was written" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "out").rglob("*"))
