import base64
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from detr_panoptic_d2.apps.report import write_report
from detr_panoptic_d2.apps.report.chart import line_chart
from detr_panoptic_d2.apps.report.quality import read_evaluations
from detr_panoptic_d2.apps.report.run_folder import read_metrics, read_run
from detr_panoptic_d2.evaluation import PanopticEvaluator

REPO = Path(__file__).parents[2]
CONTIGUOUS = {3: 0, 10: 1, 21: 2, 30: 3}
LONG_NAME = "a class with a name much longer than the screen of a phone"


# The files of a run.


def metric_lines(*iterations, **more):
    entries = (
        {"iteration": i, "total_loss": 9.0 - i / 10, "eta_seconds": 65.0} for i in iterations
    )
    return "".join(json.dumps({**entry, **more}) + "\n" for entry in entries)


def test_metrics_that_are_half_written_broken_or_come_again(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_bytes(
        b'\xff\xfe\n[1, 2]\n3\n{"no": "iteration"}\n'
        + metric_lines(0, 19, 39, 59).encode()
        + metric_lines(20, 39).encode()
        + b'{"iteration": 59, "total_lo'
    )
    # A resumed training went back to iteration 20.
    assert [m["iteration"] for m in read_metrics(path)] == [0, 19, 20, 39]
    assert read_metrics(tmp_path / "none.json") == []


def test_lines_out_of_order(tmp_path):
    """What Detectron2 wrote at the end of a run of four iterations, evaluated every second."""
    path = tmp_path / "metrics.json"
    lines = [{"class_error": 50.0, "iteration": 0}, {"total_loss": 19.0, "iteration": 3}]
    lines += [{"PQ": 1.0, "iteration": 1}, {"PQ": 2.0, "iteration": 4}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [m["iteration"] for m in read_metrics(path)] == [0, 1, 3, 4]


CONFIG = "SOLVER:\n  MAX_ITER: 40\n"
SCALED = "SOLVER:\n  MAX_ITER: 400\n  REFERENCE_WORLD_SIZE: 8\n"


@pytest.mark.parametrize(
    ("files", "age", "state"),
    [
        ({"metrics.json": metric_lines(19, 39), "config.yaml": CONFIG}, 4000, "finished"),
        ({"metrics.json": metric_lines(19), "config.yaml": CONFIG}, 0, "running"),
        ({"metrics.json": metric_lines(19)}, 0, "running"),
        ({"metrics.json": metric_lines(19), "config.yaml": CONFIG}, 4000, "stopped"),
        ({"metrics.json": metric_lines(39), "config.yaml": SCALED}, 4000, "stopped"),
        (
            {"metrics.json": metric_lines(39), "config.yaml": SCALED, "model_final.pth": ""},
            4000,
            "finished",
        ),
        ({"config.yaml": "SOLVER: [half"}, 0, "not started"),
        ({"config.yaml": CONFIG, "inference/set/x": ""}, 0, "evaluation"),
    ],
)
def test_state(tmp_path, files, age, state):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (time.time() - age,) * 2)
    assert read_run(tmp_path).state == state
    assert f'id="state" class="{state}"' in write_report(tmp_path).read_text()


def test_time_is_that_of_the_wall_clock(tmp_path):
    """Two starts of 100 and 50 seconds, in which 100 iterations took 0.5 each."""
    (tmp_path / "metrics.json").write_text(metric_lines(*range(19, 100, 20), time=0.5))
    for number, seconds in enumerate((90, 40)):
        # The events of TensorBoard: length, checksum, the field of the time, time, more, checksum.
        events = [struct.pack("<QIBd7sI", 16, 0, 9, t, b"", 0) for t in (1e9, 1e9 + seconds)]
        cut_off = events[0][:15]
        name = f"events.out.tfevents.1.host.{number}.0"
        (tmp_path / name).write_bytes(b"".join([*events, cut_off]))
    run = read_run(tmp_path)
    # A file is made with the first metrics, after 20 iterations.
    assert run.seconds() == pytest.approx(150)
    page = write_report(tmp_path).read_text()
    assert "<dt>Per iteration</dt><dd>1.5 s</dd>" in page
    assert "<th>Training step, median</th><td>0.5 s</td>" in page


def test_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds nothing of a run"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read_run(tmp_path / "nothing")


# Curves.


def chart_texts(svg):
    # Not the one that names matplotlib's own colours and such.
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_nothing_to_draw():
    assert line_chart({}) == ""
    assert line_chart({"a": [], "b": [(1, math.nan)]}) == ""


@pytest.mark.parametrize(
    "values",
    [[5.0], [0.0, 0.0], [-3.0, 2.0], [1e-9, 3e-9], [24.0, 1.8], [1.0, math.inf, 2.0, math.nan]],
)
def test_curves_of_all_kinds_of_values(values):
    svg = line_chart({"a <b> & c": list(enumerate(values))})
    last = [v for v in values if math.isfinite(v)][-1]
    assert f"a <b> & c {last:.4g}" in chart_texts(svg)
    assert svg == line_chart({"a <b> & c": list(enumerate(values))})


def test_long_runs_are_thinned():
    svg = line_chart({"a": [(i, 5.0 + i % 2) for i in range(100_000)]})
    assert len(svg) < 60_000


# Evaluations.


def evaluate(name, folder, outputs):
    evaluator = PanopticEvaluator(name, str(folder / "inference" / name))
    evaluator.reset()
    for item, (ids, classes) in zip(DatasetCatalog.get(name), outputs, strict=True):
        segments = [
            {"id": i, "category_id": CONTIGUOUS[c], "isthing": c in (10, 30)}
            for i, c in classes.items()
        ]
        segments = [s for s in segments if (ids == s["id"]).any()]
        panoptic = torch.as_tensor(ids.astype(np.int32)), segments
        evaluator.process([item], [{"panoptic_seg": panoptic}])
    return evaluator.evaluate()["panoptic_seg"]


@pytest.fixture
def evaluated(panoptic_set, scene, tmp_path):
    """The folder of an evaluation: nine images, in number i with i columns of void predicted."""
    panoptic_set("report_set", [scene] * 9)
    columns = np.arange(scene[0].shape[1])
    outputs = [(np.where(columns < i, 0, scene[0]), scene[1]) for i in range(9)]
    evaluate("report_set", tmp_path / "run", outputs)
    return tmp_path / "run"


def images_of(page, caption):
    return len(re.findall(rf'<img alt="{caption}" src="data:image/jpeg;base64,', page))


def test_same_numbers_as_the_evaluator(panoptic_set, scene, tmp_path):
    panoptic_set("quality_set", [scene, scene])
    ids, classes = scene
    results = evaluate("quality_set", tmp_path, [scene, (np.where(ids == 4, 0, ids), classes)])
    (evaluation,) = read_evaluations(tmp_path)
    for row, suffix in zip(evaluation.groups, ("", "_th", "_st"), strict=True):
        expected = [results[f"{key}{suffix}"] for key in ("PQ", "SQ", "RQ")]
        assert [row.pq, row.sq, row.rq] == pytest.approx(expected)
    assert [row.count for row in evaluation.groups] == [4, 2, 2]
    for row in evaluation.classes:
        assert row.pq == pytest.approx(results[f"PQ-{row.name}"])
    assert [(row.name, row.kind, row.count) for row in evaluation.classes] == [
        ("sky", "stuff", 2),
        ("ball", "thing", 2),
        ("ground", "stuff", 2),
        ("box", "thing", 4),
    ]
    worst, best = evaluation.images
    assert (best.image_id, best.pq) == (0, pytest.approx(100))
    # Four of five segments are matched whole, one is missed: 4 / (4 + 1 / 2).
    assert (worst.image_id, worst.tp, worst.fp, worst.fn) == (1, 4, 0, 1)
    assert worst.pq == pytest.approx(100 * 4 / 4.5)


def test_images_without_segments(panoptic_set, scene, tmp_path):
    nothing = scene[0] * 0, {}
    panoptic_set("quality_set", [scene, nothing])
    evaluate("quality_set", tmp_path, [nothing, nothing])
    (evaluation,) = read_evaluations(tmp_path)
    assert [(i.image_id, i.pq) for i in evaluation.images] == [(0, 0)]
    assert [row.pq for row in evaluation.classes] == [0, 0, 0, 0]


def test_best_and_worst_and_best_checkpoint(evaluated):
    best = {"metric": "panoptic_seg/PQ", "value": 45.678, "iteration": 1999}
    (evaluated / "model_best.json").write_text(json.dumps(best))
    page = write_report(evaluated).read_text()
    names = re.findall(r"<h3>(\d+\.png) <span", page)
    assert names == ["000.png", "001.png", "002.png", "008.png", "007.png", "006.png"]
    for caption in ("Image", "Ground truth", "Prediction", "Errors"):
        assert images_of(page, caption) == 6
    assert "An evaluation without a training." in page
    assert "model_best.pth: panoptic_seg/PQ 45.68, after 2000 iterations." in page
    assert "<td>nan" not in page


@pytest.mark.parametrize("file", ["inference/report_set/panoptic/000.png", "../report_set/images"])
def test_pictures_that_cannot_be_drawn(evaluated, file):
    path = evaluated / file
    path.rename(path.with_name("moved"))
    page = write_report(evaluated).read_text()
    assert "There are no pictures: " in page
    assert Path(file).name in page
    assert "<td" in page


def test_predictions_that_are_newer_than_the_numbers(evaluated):
    later = time.time() + 100
    os.utime(evaluated / "inference/report_set/panoptic/008.png", (later, later))
    assert "An evaluation is under way, or was broken off" in write_report(evaluated).read_text()


def test_data_sets_that_are_not_there(evaluated, tmp_path):
    DatasetCatalog.remove("report_set")
    MetadataCatalog.remove("report_set")
    page = write_report(evaluated).read_text()
    assert "data set &#39;report_set&#39; is not registered" in page
    assert "report_set" not in MetadataCatalog.list()
    DatasetCatalog.register("report_set", list)
    MetadataCatalog.get("report_set")
    item = "{name: gone, image_root: /none, panoptic_root: /none, panoptic_json: /none.json}"
    (tmp_path / "config.yaml").write_text(f"DATASETS:\n  REGISTER:\n  - {item}\n")
    assert "/none" in write_report(tmp_path).read_text()
    assert "gone" not in DatasetCatalog.list()


def test_metrics_only(tmp_path):
    lines = [{"iteration": 19, "total_loss": math.nan, "loss_ce": math.nan, "lr": 1e-4}]
    lines.append({"iteration": 39, "panoptic_seg/PQ": 12.5, "panoptic_seg/PQ-<b>cat": 2.0})
    lines.append({"iteration": 59, "bbox/AP": 31.25})
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    for text in ("12.5", "31.25", "&lt;b&gt;cat", "Not finite at some time: loss_ce, total_loss"):
        assert text in page
    assert "<b>cat" not in page


def test_pictures_of_the_training_and_no_half_page(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    for folder, iterations in (("00_a", (9, 19, 29)), ("01_b_c", (9,))):
        path = tmp_path / "pictures" / folder
        path.mkdir(parents=True)
        for iteration in iterations:
            Image.new("RGB", (8, 8)).save(path / f"iter_{iteration:07d}.jpg")
    page = write_report(tmp_path).read_text()
    expected = ["a, after 10 iterations", "a, after 30 iterations", "b_c, after 10 iterations"]
    assert re.findall(r'<img alt="([^"]*)"', page) == expected
    assert "No training step on record yet." in page and "There was no evaluation yet" in page
    monkeypatch.setattr("detr_panoptic_d2.apps.report.sections.config", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == page


# A whole run, in a browser.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four images of a disc on ground, and the config entries that name them."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("images", "panoptic"):
        (root / folder).mkdir()
    images, annotations = [], []
    y, x = np.mgrid[:32, :40]
    for i in range(4):
        disc = (y - 16) ** 2 + (x - 8 - 6 * i) ** 2 < 49
        pixels = np.where(disc[..., None], 220, 60).repeat(3, 2).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        Image.fromarray(id2rgb(1 + disc.astype(np.int64))).save(root / "panoptic" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 40})
        segments = [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 9}]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    categories = [
        {"id": 5, "name": "ground", "isthing": 0},
        {"id": 9, "name": LONG_NAME, "isthing": 1},
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "panoptic.json").write_text(json.dumps(content))
    item = {"name": "report_discs", "panoptic_json": str(root / "panoptic.json")}
    item |= {"image_root": str(root / "images"), "panoptic_root": str(root / "panoptic")}
    opts = ["DATASETS.REGISTER", str([item]), "INPUT.MIN_SIZE_TRAIN", "(32,)"]
    opts += ["INPUT.MIN_SIZE_TEST", "32", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN"]
    opts += ["MODEL.DETR.TEST.SCORE_THRESH", "0.0", "VIS_PERIOD", "2", "TEST.VIS_IMAGES", "2"]
    return [*opts, "DATASETS.TRAIN", "('report_discs',)", "DATASETS.TEST", "('report_discs',)"]


def run_command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "detr_panoptic_cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def train(data, output, *opts):
    config = ["--config-file", "shapes/tiny.yaml", *data, *opts, "OUTPUT_DIR", output]
    return run_command("train", *config)


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "finished run"
    code, log = train(data, output, "TEST.EVAL_PERIOD", "2")
    assert code == 0, log
    code, log = run_command("report", output)
    assert code == 0, log
    assert "report.html" in log
    return output / "report.html"


class Page:
    """A page in the browser, on a screen of a given width."""

    def __init__(self, browser):
        self._browser = browser

    def open(self, path, width, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self._browser.get(path.as_uri())

    def run(self, script):
        return self._browser.execute_script(f"return {script}")

    def texts(self, selector):
        return self.run(f"[...document.querySelectorAll('{selector}')].map(e => e.innerText)")

    def screenshot(self, width):
        """Return the whole page as an array H x W x 3."""
        height = self.run("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        options = {"captureBeyondViewport": True, "clip": clip}
        data = self._browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            return np.asarray(image.convert("RGB"))

    def close(self):
        self._browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture
def page(browser):
    page = Page(browser)
    yield page
    page.close()


def test_in_a_browser(browser, report, page):
    page.open(report, 1280)
    assert page.run("document.title") == "finished run: run report"
    assert page.texts("#state")[0].startswith("Finished: 4 of 4")
    assert page.texts("h2") == [
        "Results",
        "Curves",
        "Best and worst images of report_discs",
        "During training",
        "Time and memory",
        "Config",
    ]
    assert "Best checkpoint: model_best.pth: panoptic_seg/PQ" in page.texts("#results")[0]
    rows = page.run(
        "[...document.querySelectorAll('.numbers tbody tr')].map(r => "
        "[...r.cells].map(c => c.innerText))"
    )
    assert [r[0] for r in rows] == ["All", "Things", "Stuff", "ground stuff", f"{LONG_NAME} thing"]
    assert all(0 <= float(value) <= 100 for row in rows for value in row[1:4])
    assert [row[4] for row in rows] == ["2", "1", "1", "4", "4"]
    assert {"Total loss", "PQ", "Learning rate"} <= set(page.texts(".chart figcaption"))
    # Both of the best and both of the worst, four pictures each; two images of the training at
    # two times.
    loaded = "[...document.images].map(i => i.complete && i.naturalWidth > 30)"
    assert page.run(loaded) == [True] * (4 * 4 + 2 * 2)
    assert "MiB" in page.texts("#time")[0]
    assert "MAX_ITER: 4" in page.run("document.querySelector('#config pre').textContent")
    # Nothing was asked of the network.
    names = page.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    assert page.run("document.querySelectorAll('link, script, iframe').length") == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_fits_the_screen(report, page, width):
    page.open(report, width)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    # Nothing reaches over the edge, but inside of what scrolls by itself.
    outside = page.run(
        "[...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.scroll, pre, .pictures, svg'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    heights = (
        "[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(page.run(heights)) > 7


def test_light_and_dark(report, page):
    backgrounds = []
    for scheme in ("light", "dark"):
        page.open(report, 390, scheme)
        picture = page.screenshot(390)
        assert picture.shape[0] > 2000
        # Something is drawn, in many colours.
        assert len(np.unique(picture.astype(np.int64) @ [1, 256, 65536])) > 500
        backgrounds.append(picture[:, :3].mean())
    assert backgrounds[0] > 240
    assert backgrounds[1] < 40


def test_run_whose_loss_is_not_finite(data, tmp_path):
    output = tmp_path / "failed"
    off = ["SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    code, _ = train(data, output, "SOLVER.BASE_LR", "1e30", *off)
    assert code != 0
    page = write_report(output).read_text()
    assert 'id="state" class="finished"' not in page
    log = re.search(r"The end of log.txt.*?</pre>", page, re.DOTALL).group()
    assert "loss" in log.lower()
