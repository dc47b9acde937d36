import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "check_dataset.py"


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
        datasets = {"REGISTER": items, "TRAIN": ["my_train"], "TEST": ["my_val"]}
        # JSON is YAML.
        self.config.write_text(json.dumps({"DATASETS": datasets}))

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
def tool(monkeypatch):
    """Return ``run(*arguments)``: the tool's ``main`` in this process."""
    spec = importlib.util.spec_from_file_location("check_dataset_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments), "--workers", "1"])
        return module.main()

    return run


@pytest.fixture
def logged(caplog):
    """What the package logs, whether or not its loggers pass it on."""
    logger = logging.getLogger("detr_panoptic_d2")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_all_sets_of_a_config(sets, tool, tmp_path, capsys):
    assert tool("--config-file", sets.config, "--output", tmp_path / "checked") == 0
    out = capsys.readouterr().out
    assert out.count("Nothing is wrong.") == 2 and "my_train" in out and "my_val" in out
    names = sorted(p.name for p in (tmp_path / "checked").iterdir())
    assert names == ["findings.csv", "my_train.png", "my_val.png"]


def test_exit_code_and_fix(sets, tool, capsys):
    paths = ["--image-root", sets.root / "val", "--panoptic-root", sets.root / "panoptic_val"]
    paths += ["--panoptic-json", sets.json("val")]
    truth = json.loads(sets.json("val").read_text())
    sets.change("val", lambda c: c["annotations"][1]["segments_info"][1].update(area=7))
    assert tool(*paths) == 1
    assert "wrong-area" in capsys.readouterr().out
    assert tool(*paths, "--fix") == 0
    assert json.loads(sets.json("val").read_text()) == truth
    assert sets.json("val").with_name("panoptic_val.json.bak").is_file()
    assert tool(*paths, "--fix") == 0
    assert not sets.json("val").with_name("panoptic_val.json.bak1").exists()


def test_warnings_are_no_failure(sets, tool, capsys, logged):
    sets.change("val", lambda c: c["annotations"][1]["segments_info"][1].update(bbox=[0, 0, 1, 1]))
    for index in range(2):
        picture = (sets.root / f"train/{index}.png").read_bytes()
        (sets.root / f"val/{index}.png").write_bytes(picture)
    assert tool("--config-file", sets.config) == 0
    assert "wrong-box" in capsys.readouterr().out
    assert "in two sets: my_train: 0.png and my_val: 0.png" in logged.text


def test_what_registration_refuses_is_still_checked(sets, tool, capsys):
    sets.change("train", lambda c: c["annotations"][0]["segments_info"][0].update(category_id=9))
    sets.change("train", lambda c: c["images"][1].update(file_name="../x.png"))
    assert tool("--config-file", sets.config) == 1
    out = capsys.readouterr().out
    assert "unknown-category" in out and "bad-image-entry" in out


def test_no_check_was_possible(sets, tool):
    assert tool("--config-file", sets.root / "none.yaml") == 2
    sets.json("val").write_text("[")
    assert tool("--config-file", sets.config) == 2
    sets.config.write_text(json.dumps({"DATASETS": {"TRAIN": [], "TEST": []}}))
    assert tool("--config-file", sets.config) == 2
    sets.config.write_text(json.dumps({"DATASETS": {"REGISTER": [{"name": "x"}]}}))
    assert tool("--config-file", sets.config) == 2
    for arguments in ([], ["--image-root", "x"], ["--config-file", "x", "--image-root", "x"]):
        with pytest.raises(SystemExit) as stop:
            tool(*arguments)
        assert stop.value.code == 2


def test_command_line(sets):
    (sets.root / "val/1.png").unlink()
    command = [sys.executable, str(TOOL), "--config-file", str(sets.config)]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "missing-image" in done.stdout and "Traceback" not in done.stderr
