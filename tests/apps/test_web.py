import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detr_panoptic_d2.apps.web import Page, build_app, read_upload
from detr_panoptic_d2.checkpoint.description import describe
from detr_panoptic_d2.engine import Predictor, setup_cfg
from detr_panoptic_d2.errors import UserError

REPO = Path(__file__).parents[2]
# Seconds to wait for a page that loads and for a result; not a measurement.
PATIENCE = 120
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def test_uploads(image, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    assert (read_upload(path) == image).all()
    bad = {"cut off": path.read_bytes()[:3000], "empty": b"", "text": b"no image"}
    for name, content in {**bad, "signature alone": b"\x89PNG\r\n\x1a\n" * 9}.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as an image") as error:
            read_upload(path)
        assert str(tmp_path) not in str(error.value), name
    Image.new("1", (5000, 4000)).save(path)
    with pytest.raises(UserError, match="5000 x 4000 pixels. The maximum is 16 million"):
        read_upload(path)
    # More pixels than Pillow opens: a few kilobytes, and never decoded.
    Image.new("1", (14000, 14000)).save(path)
    with pytest.raises(UserError):
        read_upload(path)


@pytest.fixture
def make_cfg(tiny_model, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": tiny_model().state_dict()}, path)
    return lambda *opts: setup_cfg(
        "shapes/tiny.yaml", [*OPTS, "MODEL.WEIGHTS", str(path), *map(str, opts)]
    )


def test_page_shows_what_the_model_returns_with_these_thresholds(make_cfg, image, tmp_path):
    """And the network runs once; a click shows the segment of the panoptic map at this pixel."""
    rule = "MODEL.DETR.TEST.PANOPTIC_INFERENCE", "MaskNMSPanopticInference"
    Image.fromarray(image).save(tmp_path / "a.png")
    page, calls = Page(make_cfg(*rule)), []
    page._predictor.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    view = page.analyze(str(tmp_path / "a.png"), 0.5, 20)[0]
    for score, area in ((0.0, 0), (0.97, 300), (1.0, 0)):
        keys = "MODEL.DETR.TEST.SCORE_THRESH", score, "MODEL.DETR.TEST.MIN_SEGMENT_AREA", area
        predictor = Predictor(make_cfg(*rule, *keys))
        ids, segments = predictor(image[:, :, ::-1])["panoptic_seg"]
        view = page.change(view, score, area)[0]
        assert np.array_equal(view.ids, ids.numpy()) and view.segments == segments
        factor = view.picture.shape[0] // 64
        assert view.picture.shape == (64 * factor, 80 * factor, 3)
        for segment in segments:
            y, x = np.argwhere(view.ids == segment["id"])[0]
            assert view.segment_at(int(x) * factor, int(y) * factor) == segment
            text, pictures = page.choose(view, int(x) * factor, int(y) * factor)
            assert f"score {segment['score']:.3f}, area {segment['area']} pixels" in text
            names = [f"box attention, head {i}" for i in range(1, 9)]
            names = ["pixels", "cross-attention", *names, "mask logits"]
            assert [name for _, name in pictures] == names
            inside = view.ids == segment["id"]
            assert (pictures[0][0][inside] == image[inside]).all()
    assert calls == [1] and not view.segments
    assert "Void" in page.choose(view, 0, 0)[0]
    with pytest.raises(UserError, match="SCORE_THRESH"):
        page.change(view, 1.5, 0)


@pytest.fixture
def server(make_cfg, tmp_path):
    """Start the command with a checkpoint alone; return its port and its log file."""
    pytest.importorskip("gradio", reason="Gradio is not installed (extra 'web')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cfg = make_cfg()
    weights = torch.load(cfg.MODEL.WEIGHTS)
    torch.save({**weights, **describe(cfg)}, tmp_path / "model_best.pth")
    command = [sys.executable, "-m", "detr_panoptic_d2.cli", "web", "--port", str(port)]
    command += ["--weights", str(tmp_path / "model_best.pth")]
    env = {**os.environ, "PYTHONPATH": str(REPO), "NO_PROXY": "*", "no_proxy": "*"}
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: process.poll() is not None or answers(port), "the page")
        assert process.poll() is None, log.read_text()
        yield port, log
    finally:
        process.terminate()
        process.wait(30)


def answers(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=10).status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def until(condition, what):
    """Wait for a condition and return its value. The page replaces its elements while it works."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(WebDriverException):
            value = condition()
            if value:
                return value
        time.sleep(0.2)
    pytest.fail(f"waited {PATIENCE} s for {what}")


class OpenPage:
    """The page in a browser."""

    def __init__(self, browser):
        self._browser = browser

    def find(self, selector):
        return self._browser.find_element("css selector", selector)

    def wait_for(self, name, pattern):
        match = until(
            lambda: re.search(pattern, self.find(f"#{name}").text), f"'{pattern}' in #{name}"
        )
        return match.group(0)

    def is_cleared(self):
        names = "button[aria-label='Clear'], button[aria-label='Remove this file']"
        buttons = self.find("#upload").find_elements("css selector", names)
        return not (buttons and [buttons[0].click()])

    def upload(self, path):
        until(self.is_cleared, "an empty upload")
        self.wait_for("status", "No image yet")
        until(lambda: self.find("#upload input[type=file]"), "the upload").send_keys(str(path))

    def set_number(self, name, value):
        from selenium.webdriver import Keys

        field = self.find(f"#{name} input[type=number]")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value), Keys.TAB)

    def source(self):
        return self.find("#picture img").get_attribute("src")

    def click_picture(self):
        from selenium.webdriver import ActionChains

        chain = ActionChains(self._browser)
        chain.move_to_element_with_offset(self.find("#picture img"), -50, -50).click().perform()


def test_in_a_browser(server, browser, image, tmp_path):
    port, log = server
    if sys.platform == "linux":
        # Only this machine is served: a server of all addresses would answer at this one too.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=10).close()
    browser.get(f"http://127.0.0.1:{port}")
    page = OpenPage(browser)
    page.wait_for("status", "No image yet")
    good = tmp_path / "good.png"
    Image.fromarray(image).save(good)
    page.upload(good)
    status = page.wait_for("status", r"80 x 64 pixels, \d+ segments\.")
    assert int(status.split()[4]) > 1
    picture = until(page.source, "the picture")
    page.click_picture()
    page.wait_for("details", r"(?s)\((thing|stuff)\).*score [01]\.\d+, area \d+ pixels")
    until(lambda: page.find("#maps img"), "the maps")

    # Other thresholds: another picture, and the network does not run again.
    page.set_number("area", 1500)
    until(lambda: page.source() != picture, "another picture")
    page.set_number("score", 1)
    page.wait_for("status", "0 segments. No query has")

    # Uploads that cannot be used get a message, and the page goes on.
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:4000])
    page.upload(tmp_path / "broken.png")
    page.wait_for("status", "cannot be read as an image")
    (tmp_path / "heavy.png").write_bytes(bytes(21_000_000))
    page.upload(tmp_path / "heavy.png")
    message = "exceed the maximum"
    until(lambda: message in page.find("body").text.lower(), "a message about its size")
    assert log.read_text().count("Network: one image") == 1
    assert "Traceback" not in log.read_text()

    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert all(url.startswith((f"http://127.0.0.1:{port}", "data:", "blob:")) for url in loaded)


def test_without_gradio(make_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"\[web\]"):
        build_app(make_cfg())
