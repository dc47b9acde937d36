"""The command ``detr-panoptic check``."""

import json

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

pytestmark = pytest.mark.usefixtures("clean_catalogs")


class Sets:
    """Two data sets of two images each, and a config that names them."""

    def __init__(self, root):
        self.root = root
        self.config = root / "mine.yaml"
        items = []
        for number, name in enumerate(("train", "val")):
            for folder in (name, f"panoptic_{name}"):
                (root / folder).mkdir(parents=True)
            content = {"images": [], "annotations": []}
            for index in range(2):
                rng = np.random.default_rng(10 * number + index)
                pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{index}.png")
                ids = np.ones((8, 12), np.int64)
                ids[2:4, 3:6] = 2
                Image.fromarray(id2rgb(ids)).save(root / f"panoptic_{name}" / f"{index}.png")
                content["images"].append(
                    {"id": index, "file_name": f"{index}.png", "height": 8, "width": 12}
                )
                infos = [
                    {"id": 1, "category_id": 1, "iscrowd": 0, "area": 90, "bbox": [0, 0, 12, 8]},
                    {"id": 2, "category_id": 2, "iscrowd": 0, "area": 6, "bbox": [3, 2, 3, 2]},
                ]
                content["annotations"].append(
                    {"image_id": index, "file_name": f"{index}.png", "segments_info": infos}
                )
            content["categories"] = [
                {"id": 1, "name": "ground", "isthing": 0},
                {"id": 2, "name": "cell", "isthing": 1},
            ]
            self.json(name).write_text(json.dumps(content))
            items.append({"name": f"my_{name}", "image_root": str(root / name)})
            items[-1]["panoptic_root"] = str(root / f"panoptic_{name}")
            items[-1]["panoptic_json"] = str(self.json(name))
        self.datasets = {"REGISTER": items, "TRAIN": ["my_train"], "TEST": ["my_val"]}
        self.save()

    def save(self):
        # JSON is YAML.
        self.config.write_text(json.dumps({"DATASETS": self.datasets}))

    def json(self, name):
        return self.root / f"panoptic_{name}.json"

    def change(self, name, change):
        content = json.loads(self.json(name).read_text())
        change(content)
        self.json(name).write_text(json.dumps(content))


@pytest.fixture
def sets(tmp_path):
    return Sets(tmp_path / "sets")


@pytest.fixture
def check(run_command):
    """Return ``run(*arguments)``: (exit status, what was printed and logged)."""
    return lambda *arguments: run_command("check", "--workers", "1", *arguments)


def test_all_sets_of_a_config(sets, check, tmp_path):
    status, printed = check("--config-file", sets.config, "--output", tmp_path / "checked")
    assert status == 0
    assert printed.count("Nothing is wrong.") == 2 and "my_train" in printed and "my_val" in printed
    names = sorted(p.name for p in (tmp_path / "checked").iterdir())
    assert names == ["findings.csv", "my_train.png", "my_val.png"]


def test_exit_status_and_fix(sets, check):
    paths = ["--image-root", sets.root / "val", "--panoptic-root", sets.root / "panoptic_val"]
    paths += ["--panoptic-json", sets.json("val")]
    before = json.loads(sets.json("val").read_text())
    sets.change("val", lambda c: c["annotations"][1]["segments_info"][1].update(area=7))
    status, printed = check(*paths)
    assert status == 1 and "wrong-area" in printed
    assert check(*paths, "--fix")[0] == 0
    assert json.loads(sets.json("val").read_text()) == before
    assert sets.json("val").with_name("panoptic_val.json.bak").is_file()
    assert check(*paths, "--fix")[0] == 0
    assert not sets.json("val").with_name("panoptic_val.json.bak1").exists()


def test_swapped_folders(sets, check):
    """All segments without a pixel: that is not put right by removing them."""
    Image.new("RGB", (12, 8), (9, 9, 9)).save(sets.root / "train/0.png")
    paths = ["--image-root", sets.root / "panoptic_train", "--panoptic-root", sets.root / "train"]
    before = sets.json("train").read_bytes()
    status, printed = check(*paths, "--panoptic-json", sets.json("train"), "--fix")
    assert status == 1 and "nothing that can be fixed" in printed
    assert "have no sure fix" in printed
    assert sets.json("train").read_bytes() == before


def test_warnings_are_no_failure(sets, check):
    sets.change("val", lambda c: c["annotations"][1]["segments_info"][1].update(bbox=[0, 0, 1, 1]))
    for index in range(2):
        picture = (sets.root / f"train/{index}.png").read_bytes()
        (sets.root / f"val/{index}.png").write_bytes(picture)
    status, printed = check("--config-file", sets.config)
    assert status == 0 and "wrong-box" in printed
    assert "in two sets: my_train: 0.png and my_val: 0.png" in printed


def test_what_registration_refuses_is_still_checked(sets, check):
    sets.change("train", lambda c: c["annotations"][0]["segments_info"][0].update(category_id=9))
    sets.change("train", lambda c: c["images"][1].update(file_name="../x.png"))
    status, printed = check("--config-file", sets.config)
    assert status == 1 and "unknown-category" in printed and "bad-image-entry" in printed


def test_no_check_is_possible(sets, check, tmp_path):
    item = {"name": "x", "image_rot": "y"}
    for datasets, message in (
        ({"TRAIN": [], "TEST": []}, "names no data set"),
        ({"REGISTER": [item]}, r"unknown keys ['image_rot'] and lacks ['image_root', "),
        ({**sets.datasets, "TEST": ["none"]}, "'none' is no panoptic data set"),
    ):
        sets.datasets = datasets
        sets.save()
        status, printed = check("--config-file", sets.config)
        assert status == 1 and message in printed and "Traceback" not in printed
    status, printed = check("--config-file", tmp_path / "none.yaml")
    assert status == 1 and "none.yaml" in printed
    for arguments in ([], ["--image-root", "x"], ["--config-file", "x", "--image-root", "x"]):
        assert check(*arguments)[0] == 2
