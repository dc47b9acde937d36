import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image

REPO = Path(__file__).parents[2]
CATEGORIES = [
    {"id": 5, "name": "ground", "isthing": 0},
    {"id": 9, "name": "a class with a name much longer than the screen of a phone", "isthing": 1},
]
# Widths in pixels: phones, and a screen.
WIDTHS = (320, 390, 1280)


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
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "panoptic.json").write_text(json.dumps(content))
    item = {"name": "report_discs", "panoptic_json": str(root / "panoptic.json")}
    item |= {"image_root": str(root / "images"), "panoptic_root": str(root / "panoptic")}
    opts = ["DATASETS.REGISTER", str([item]), "INPUT.MIN_SIZE_TRAIN", "(32,)"]
    opts += ["INPUT.MIN_SIZE_TEST", "32", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "FrozenBN"]
    opts += ["MODEL.DETR.TEST.SCORE_THRESH", "0.0", "VIS_PERIOD", "2", "TEST.VIS_IMAGES", "2"]
    return [*opts, "DATASETS.TRAIN", "('report_discs',)", "DATASETS.TEST", "('report_discs',)"]


def run(tool, *arguments, cwd):
    command = [sys.executable, str(REPO / "tools" / tool), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def train(data, output, *opts):
    config = ["--config-file", "shapes/tiny.yaml", *data, *opts, "OUTPUT_DIR", output]
    return run("train_net.py", *config, cwd=output.parent)


@pytest.fixture(scope="module")
def report(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "finished run"
    code, log = train(data, output, "TEST.EVAL_PERIOD", "2")
    assert code == 0, log
    code, log = run("report.py", output.name, cwd=output.parent)
    assert code == 0, log
    assert "report.html" in log
    return output / "report.html"


class Page:
    """A page in the browser, on a screen of a given width."""

    def __init__(self, browser):
        self._browser = browser

    def open(self, path, width, scheme):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self._browser.get(path.as_uri())

    def run(self, script):
        return self._browser.execute_script(f"return {script}")

    def errors(self):
        return self._browser.get_log("browser")

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


def test_in_a_browser(report, page):
    page.open(report, 1280, "light")
    assert page.run("document.title") == "finished run: run report"
    assert page.run("document.querySelector('#state').innerText").startswith("Finished: 4 of 4")
    headings = page.run("[...document.querySelectorAll('h2')].map(e => e.innerText)")
    assert headings == [
        "Results",
        "Curves",
        "Best and worst images of report_discs",
        "During training",
        "Time and memory",
        "Config",
        "Versions",
    ]
    rows = page.run(
        "[...document.querySelectorAll('.quality tbody tr')].map(r => "
        "[...r.cells].map(c => c.innerText))"
    )
    assert [row[0] for row in rows[:3]] == ["All", "Things", "Stuff"]
    assert [row[0] for row in rows[3:]] == ["ground stuff", f"{CATEGORIES[1]['name']} thing"]
    assert all(0 <= float(value) <= 100 for row in rows for value in row[1:4])
    assert [row[4] for row in rows] == ["2", "1", "1", "4", "4"]
    charts = page.run("[...document.querySelectorAll('.chart figcaption')].map(e => e.innerText)")
    assert {"Total loss", "PQ", "Learning rate"} <= set(charts)
    # Both of the best and both of the worst, four pictures each; two images of the training at
    # two times.
    loaded = "[...document.images].map(i => i.complete && i.naturalWidth > 30)"
    assert page.run(loaded) == [True] * (4 * 4 + 2 * 2)
    assert "PyTorch" in page.run("document.querySelector('#versions').innerText")
    assert "MiB" in page.run("document.querySelector('#time').innerText")
    assert "MAX_ITER: 4" in page.run("document.querySelector('#config pre').textContent")
    assert page.errors() == []


def test_needs_no_network(report, page):
    page.open(report, 1280, "light")
    names = page.run("performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    links = page.run("[...document.querySelectorAll('link, script, iframe, a[href]')].length")
    assert links == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_fits_the_screen(report, page, width):
    page.open(report, width, "light")
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    # Nothing reaches over the edge, but inside of what scrolls by itself.
    outside = page.run(
        "[...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.scroll, pre, .wide, .pictures'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    smallest = page.run(
        "Math.min(...[...document.querySelectorAll('.chart text')].map("
        "t => t.getBoundingClientRect().height))"
    )
    assert smallest > 8.5


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


def test_failed_run(data, tmp_path, page):
    """Its losses are not finite soon: no evaluation, and a line that is half written."""
    output = tmp_path / "failed"
    code, _ = train(
        data, output, "SOLVER.BASE_LR", "1e30", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"
    )
    assert code != 0
    with open(output / "metrics.json", "a") as f:
        f.write('{"iteration": 1, "total_lo')
    code, log = run("report.py", output, cwd=tmp_path)
    assert code == 0, log
    page.open(output / "report.html", 390, "light")
    assert page.run("document.querySelector('#state').innerText").startswith("Failed after")
    message = page.run("document.querySelector('.note').innerText")
    assert "loss" in message.lower()
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert "no evaluation yet" in page.run("document.body.innerText")


def test_wrong_folder_is_one_clear_line(tmp_path):
    code, log = run("report.py", tmp_path / "nothing", cwd=tmp_path)
    assert code == 1
    last = [line for line in log.strip().splitlines() if line][-1]
    assert last.startswith("error: ")
    assert "OUTPUT_DIR of a run" in last
    assert "Traceback" not in log
