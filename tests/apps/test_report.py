import html
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr_panoptic_d2.apps.report import write_report
from detr_panoptic_d2.apps.report.chart import line_chart
from detr_panoptic_d2.apps.report.errors import ERROR_COLORS
from detr_panoptic_d2.apps.report.results import read_evaluation
from detr_panoptic_d2.apps.report.run_report import read_run
from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.evaluation import PanopticEvaluator

CONTIGUOUS = {3: 0, 10: 1, 21: 2, 30: 3}
CONFIG = "MODEL:\n  DEVICE: cpu\nSOLVER:\n  MAX_ITER: 40\n"


def metric_lines(*iterations, **more):
    entries = ({"iteration": i, "total_loss": 9.0 - i / 10} for i in iterations)
    return "".join(json.dumps({**entry, **more}) + "\n" for entry in entries)


def test_metrics_that_are_half_written_broken_or_come_again(tmp_path):
    (tmp_path / "metrics.json").write_bytes(
        b'\xff\xfe\n[1, 2]\n3\n{"no": "iteration"}\n'
        + metric_lines(39, 0, 19, old=1).encode()
        + metric_lines(19).replace("7.1", "5.5").encode()
        + b'{"iteration": 59, "total_lo'
    )
    run = read_run(tmp_path)
    # The last value of an iteration counts.
    assert run.series["total_loss"] == {0: 9.0, 19: 5.5, 39: 5.1}
    assert list(run.series["old"]) == [0, 19, 39]
    assert run.done == 40


LOG = "\n".join(f"line {i}" for i in range(99))


@pytest.mark.parametrize(
    ("files", "state", "text"),
    [
        ({"metrics.json": metric_lines(39), "config.yaml": CONFIG}, "finished", "40 iterations"),
        ({"metrics.json": metric_lines(19), "model_final.pth": ""}, "finished", "20 iterations"),
        ({"metrics.json": metric_lines(19), "config.yaml": CONFIG}, "stopped", "20 of 40"),
        ({"metrics.json": metric_lines(19)}, "stopped", "20 of ?"),
        ({"config.yaml": "SOLVER: [half"}, "evaluation", "No training step"),
        ({"config.yaml": CONFIG, "inference/set/x": ""}, "evaluation", "No training step"),
    ],
)
def test_state(tmp_path, files, state, text):
    """A run that did not come to its end shows the end of its log."""
    for name, content in {**files, "log.txt": LOG}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    page = write_report(tmp_path).read_text()
    assert f'id="state" class="{state}"' in page and text in page
    assert "There was no evaluation yet" in page
    assert ("line 98" in page) == (state == "stopped" or "half" in str(files))
    assert "line 58" not in page


@pytest.mark.parametrize(
    ("opts", "queries", "threshold"),
    [
        (["MODEL.DETR.NUM_OBJECT_QUERIES", 4], "up to 5 segments. Set it to 10", "Lower it"),
        (["MODEL.DETR.NUM_OBJECT_QUERIES", 40], "That is enough", "no reason for a low PQ"),
    ],
)
def test_low_pq_is_explained(panoptic_set, scene, tmp_path, opts, queries, threshold):
    panoptic_set("low_set", [scene] * 2)
    ids, _ = scene
    other = {1: 21, 2: 3, 70000: 30, 4: 10, 5: 10} if "reason" in threshold else {}
    evaluate("low_set", tmp_path, [(ids if other else 0 * ids, other)] * 2)
    opts = [*opts, "DATASETS.TRAIN", ("low_set",), "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 30]
    cfg = merged_cfg("shapes/tiny.yaml", [str(value) for value in opts])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "metrics.json").write_text(metric_lines(19))
    page = html.unescape(write_report(tmp_path).read_text())
    assert "annotated segments were matched. Classes without a match: sky, ball, " in page
    assert queries in page and threshold in page
    images = 30 * cfg.SOLVER.IMS_PER_BATCH
    assert f"are {images / 2:.1f} epochs of 2 images" in page


@pytest.mark.parametrize(
    "values",
    [[5.0], [0.0, 0.0], [-3.0, 2.0], [1e-9, 3e-9], [24.0, 1.8], [1.0, math.inf, 2.0, math.nan]],
)
def test_curves_of_all_kinds_of_values(values):
    svg = line_chart({"a <b> & c": dict(enumerate(values)), "empty": {}})
    last = [v for v in values if math.isfinite(v)][-1]
    texts = [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert f"a <b> & c {last:.4g}" in texts


def test_curves_of_nothing_and_of_long_runs():
    assert line_chart({"a": {}, "b": {1: math.nan}}) == ""
    # Long runs are averaged.
    assert len(line_chart({"a": {i: 5.0 + i % 2 for i in range(100_000)}})) < 60_000


def evaluate(name, folder, outputs):
    evaluator = PanopticEvaluator(name, str(folder / "inference" / name))
    evaluator.reset()
    for item, (ids, classes) in zip(DatasetCatalog.get(name), outputs, strict=True):
        segments = [
            {"id": i, "category_id": CONTIGUOUS[c], "isthing": c in (10, 30)}
            for i, c in classes.items()
            if (ids == i).any()
        ]
        panoptic = torch.as_tensor(ids.astype(np.int32)), segments
        evaluator.process([item], [{"panoptic_seg": panoptic}])
    return evaluator.evaluate()["panoptic_seg"]


def test_same_numbers_as_the_evaluator(panoptic_set, scene, tmp_path):
    """With one segment missing in the second image, and an image without any."""
    ids, classes = scene
    nothing = ids * 0, {}
    panoptic_set("quality_set", [scene, scene, nothing])
    outputs = [scene, (np.where(ids == 4, 0, ids), classes), nothing]
    results = evaluate("quality_set", tmp_path, outputs)
    pq, blocks = read_evaluation(tmp_path / "inference" / "quality_set")
    assert pq == pytest.approx(results["PQ"])
    groups, by_class = (b["table"]["rows"] for b in (blocks[1], *blocks[2]["blocks"]))
    for (_, _, numbers), suffix in zip(groups, ("", "_th", "_st"), strict=True):
        assert numbers[:3] == [f"{results[f'{key}{suffix}']:.1f}" for key in ("PQ", "SQ", "RQ")]
    assert [(row[1], *row[2][3:]) for row in groups] == [
        ("4 classes", "9", "0", "1"),
        ("2 classes", "5", "0", "1"),
        ("2 classes", "4", "0", "0"),
    ]
    assert [row[2][0] for row in by_class] == [f"{results[f'PQ-{r[0]}']:.1f}" for r in by_class]
    assert [(name, kind, *numbers[3:]) for name, kind, numbers in by_class] == [
        ("sky", "stuff", "2", "0", "0"),
        ("ball", "thing", "2", "0", "0"),
        ("ground", "stuff", "2", "0", "0"),
        ("box", "thing", "3", "0", "1"),
    ]
    # One legend of the classes, one of the errors.
    assert [list(b["legend"]) for b in blocks if "legend" in b] == [
        ["sky", "ball", "ground", "box"],
        list(ERROR_COLORS),
    ]
    # In the second image four of five segments are matched whole, one is missed: 4 / (4 + 1 / 2).
    assert [(b["heading"], b["quiet"]) for b in blocks if "heading" in b] == [
        ("000.png", "PQ 100.0; 5 segments matched, 0 missed, 0 wrong"),
        ("001.png", "PQ 88.9; 4 segments matched, 1 missed, 0 wrong"),
    ]


@pytest.fixture
def evaluated(panoptic_set, scene, tmp_path):
    """The folder of an evaluation: nine images, in number i with i columns of void predicted."""
    panoptic_set("report_set", [scene] * 9)
    columns = np.arange(scene[0].shape[1])
    outputs = [(np.where(columns < i, 0, scene[0]), scene[1]) for i in range(9)]
    evaluate("report_set", tmp_path / "run", outputs)
    return tmp_path / "run"


@pytest.fixture
def report(evaluated):
    """The report of a run that left everything."""
    losses = {f"loss_{key}": 1.0 for key in ("ce", "bbox", "giou", "mask", "dice")}
    results = {"panoptic_seg/PQ": 93.2, "panoptic_seg/PQ-<b>cat": 2.0, "bbox/AP": 31.25}
    results |= {f"val/{name}": 1.25 for name in (*losses, "total_loss")}
    lines = metric_lines(19, 39, **losses, lr=1e-4, time=0.5)
    lines += metric_lines(39, loss_giou=math.inf)
    (evaluated / "metrics.json").write_text(lines + metric_lines(40, **results))
    best = {"metric": "panoptic_seg/PQ", "value": 45.678, "iteration": 1999, "weights": "ema"}
    (evaluated / "model_best.json").write_text(json.dumps(best))
    record = {"values": [[9, 40.5], [19, 93.2], [40, math.nan]], "reason": "Stopped early: no <b>"}
    (evaluated / "early_stopping.json").write_text(json.dumps(record))
    (evaluated / "config.yaml").write_text(CONFIG)
    return write_report(evaluated)


def test_everything_is_on_the_page(report):
    page = report.read_text()
    assert "Infinite or NaN in some iterations: loss_giou" in page
    # The best and the worst images, each with four pictures.
    names = re.findall(r"<h3>(\d+\.png) <span", page)
    assert names == ["000.png", "001.png", "002.png", "008.png", "007.png", "006.png"]
    captions = re.findall(r'<img alt="([^"]*)" src="data:image/jpeg;base64,', page)
    assert captions == ["Image", "Ground truth", "Prediction", "Errors"] * 6
    best = "model_best.pth: panoptic_seg/PQ 45.68, after 2000 iterations (average of the weights"
    assert best in page
    # Training and validation in one chart for each loss, with the iterations of best and stop.
    charts = re.findall(r"<figcaption>([^<]*)</figcaption><svg(.*?)</svg>", page, re.DOTALL)
    charts = {title: re.findall(r">([^<>]+)</text>", svg) for title, svg in charts}
    for name in ("ce", "bbox", "giou", "mask", "dice"):
        curves = charts[f"loss_{name} of the last layer"]
        assert {"training 1", "validation 1.25", "best at 19", "stopped at 40"} <= set(curves)
    assert "stopped at 40" in charts["PQ"] and "stopped at 40" not in charts["Total loss"]
    for text in ("31.25", "&lt;b&gt;cat", "MAX_ITER: 40", "It ran on the CPU", "early: no &lt;b"):
        assert text in page
    assert "<b>cat" not in page and "<td>nan" not in page
    # Nothing is loaded from elsewhere.
    assert not re.search("<(script|link|iframe)|src=.(?!data:)", page)


@pytest.mark.parametrize("file", ["inference/report_set/panoptic/000.png", "../report_set/images"])
def test_pictures_that_cannot_be_drawn(evaluated, file):
    path = evaluated / file
    path.rename(path.with_name("moved"))
    page = write_report(evaluated).read_text()
    assert "There are no pictures: " in page
    assert path.name in page and "<td" in page


def test_data_sets_that_are_not_there(evaluated, tmp_path):
    DatasetCatalog.remove("report_set")
    MetadataCatalog.remove("report_set")
    page = write_report(evaluated).read_text()
    assert "dataset &#39;report_set&#39; is not registered" in page
    assert "report_set" not in MetadataCatalog.list()
    DatasetCatalog.register("report_set", list)
    MetadataCatalog.get("report_set")
    item = "{name: gone, image_root: /none, panoptic_root: /none, panoptic_json: /none.json}"
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  REGISTER:\n  - {item}\n")
    assert "/none" in write_report(tmp_path).read_text()
    assert "gone" not in DatasetCatalog.list()
