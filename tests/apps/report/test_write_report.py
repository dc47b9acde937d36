import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr_panoptic_d2.apps.report import write_report
from detr_panoptic_d2.evaluation import PanopticEvaluator

CONTIGUOUS = {3: 0, 10: 1, 21: 2, 30: 3}


def page_of(folder):
    path = write_report(folder)
    assert path == Path(folder) / "report.html"
    assert not list(Path(folder).glob("*.tmp"))
    return path.read_text(encoding="utf-8")


def images_of(page, caption):
    return len(re.findall(rf'<img alt="{caption}" src="data:image/jpeg;base64,', page))


@pytest.fixture
def evaluated(panoptic_set, scene, tmp_path):
    """The folder of an evaluation: nine images, in number i with i columns of void predicted."""
    panoptic_set("report_set", [scene] * 9)
    folder = tmp_path / "run" / "inference" / "report_set"
    evaluator = PanopticEvaluator("report_set", str(folder))
    evaluator.reset()
    segments = [{"id": i, "category_id": CONTIGUOUS[c]} for i, c in scene[1].items()]
    for number, item in enumerate(DatasetCatalog.get("report_set")):
        ids = np.where(np.arange(scene[0].shape[1]) < number, 0, scene[0])
        kept = [s for s in segments if (ids == s["id"]).any()]
        output = {"panoptic_seg": (torch.as_tensor(ids, dtype=torch.int32), kept)}
        evaluator.process([item], [output])
    evaluator.evaluate()
    return tmp_path / "run"


def test_best_and_worst(evaluated):
    page = page_of(evaluated)
    names = re.findall(r"<b>(\d+\.png)</b>", page)
    assert names == ["000.png", "001.png", "002.png", "008.png", "007.png", "006.png"]
    for caption in ("Image", "Truth", "Prediction", "Errors"):
        assert images_of(page, caption) == 6
    assert "An evaluation without a training." in page
    assert "<td>nan" not in page


@pytest.mark.parametrize("file", ["inference/report_set/panoptic/000.png", "../report_set/images"])
def test_pictures_that_cannot_be_drawn(evaluated, file):
    path = evaluated / file
    path.rename(path.with_name("moved"))
    page = page_of(evaluated)
    assert "There are no pictures: " in page
    assert Path(file).name in page
    assert "<td" in page


def test_data_set_that_is_not_registered(evaluated):
    DatasetCatalog.remove("report_set")
    try:
        page = page_of(evaluated)
    finally:
        DatasetCatalog.register("report_set", list)
    assert "data set &#x27;report_set&#x27; is not registered" in page


def test_registered_data_that_is_gone(tmp_path):
    item = "{name: gone, image_root: /none, panoptic_root: /none, panoptic_json: /none.json}"
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  REGISTER:\n  - {item}\n")
    assert "/none" in page_of(tmp_path)
    assert "gone" not in DatasetCatalog.list()


def test_evaluation_under_way(evaluated):
    (evaluated / "inference/report_set/predictions.rank0.jsonl").touch()
    page = page_of(evaluated)
    assert "An evaluation is under way" in page
    assert images_of(page, "Image") == 0


def test_tiny_and_large_images(panoptic_set, tmp_path):
    ids = np.ones((3, 4), dtype=np.int64)
    large = np.ones((900, 1600), dtype=np.int64)
    panoptic_set("report_sizes", [(ids, {1: 3}), (large, {1: 3})])
    folder = tmp_path / "run" / "inference" / "report_sizes"
    evaluator = PanopticEvaluator("report_sizes", str(folder))
    evaluator.reset()
    for item, shape in zip(DatasetCatalog.get("report_sizes"), (ids, large), strict=True):
        panoptic = torch.as_tensor(shape.astype(np.int32)), [{"id": 1, "category_id": 0}]
        evaluator.process([item], [{"panoptic_seg": panoptic}])
    evaluator.evaluate()
    page = page_of(tmp_path / "run")
    assert images_of(page, "Errors") == 2
    assert len(page) < 3_000_000


def test_metrics_only(tmp_path):
    lines = [{"iteration": 19, "total_loss": 3.0, "lr": 1e-4, "time": 0.5, "data_time": 0.1}]
    lines.append({"iteration": 39, "panoptic_seg/PQ": 12.5, "panoptic_seg/PQ-<b>cat": 2.0})
    lines.append({"iteration": 59, "bbox/AP": 31.25})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.json").write_text(text + '{"iterat')
    page = page_of(tmp_path)
    assert "There is no config.yaml" in page
    assert "12.5" in page
    assert "31.25" in page
    assert "&lt;b&gt;cat" in page
    assert "<b>cat" not in page


def test_only_a_config(tmp_path):
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 5, IMS_PER_BATCH: 2}")
    page = page_of(tmp_path)
    assert "No training step on record yet." in page
    assert "There was no evaluation yet" in page


def test_pictures_of_the_training(tmp_path):
    (tmp_path / "config.yaml").touch()
    for folder, iterations in (("00_a", (9, 19, 29)), ("01_b_c", (9,))):
        path = tmp_path / "pictures" / folder
        path.mkdir(parents=True)
        for iteration in iterations:
            Image.new("RGB", (9, 5)).save(path / f"iter_{iteration:07d}.jpg")
    page = page_of(tmp_path)
    expected = ["a, after 10 iterations", "a, after 30 iterations", "b_c, after 10 iterations"]
    assert re.findall(r'<img alt="([^"]*)"', page) == expected


def test_no_half_report(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "report.html").write_text("the one before")
    monkeypatch.setattr("detr_panoptic_d2.apps.report.sections.versions", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "the one before"


def test_metadata_of_unknown_sets_is_not_made(evaluated):
    DatasetCatalog.remove("report_set")
    MetadataCatalog.remove("report_set")
    page_of(evaluated)
    assert "report_set" not in MetadataCatalog.list()
    DatasetCatalog.register("report_set", list)
    MetadataCatalog.get("report_set")
