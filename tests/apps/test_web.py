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

from detr_panoptic_cli import build_parser
from detr_panoptic_d2.apps.web.analysis import Analyzer
from detr_panoptic_d2.apps.web.app import import_gradio, is_loopback
from detr_panoptic_d2.apps.web.uploads import Limits, UploadError, read_upload
from detr_panoptic_d2.engine import Predictor, setup_cfg
from detr_panoptic_d2.errors import UserError


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_good_one(picture, tmp_path):
    assert read_upload(picture, Limits()).shape == (40, 50, 3)
    Image.open(picture).convert("L").save(tmp_path / "grey.jpg")
    assert read_upload(tmp_path / "grey.jpg", Limits()).shape == (40, 50, 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"<svg></svg>", b"\x89PNG\r\n\x1a\n" * 9])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UploadError, match="cannot be read as an image") as error:
        read_upload(tmp_path / "a.png", Limits())
    assert str(tmp_path) not in str(error.value)


def test_one_that_is_cut_off(picture):
    picture.write_bytes(picture.read_bytes()[:3000])
    with pytest.raises(UploadError, match="damaged or cut off") as error:
        read_upload(picture, Limits())
    assert str(picture.parent) not in str(error.value)


def test_too_large(picture, tmp_path):
    with pytest.raises(UploadError, match=r"0\.0 MB; at most 0\.001 MB"):
        read_upload(picture, Limits(megabytes=0.001))
    with pytest.raises(UploadError, match=r"50 x 40 pixels; at most 0\.001 million"):
        read_upload(picture, Limits(megapixels=0.001))
    # More pixels than Pillow opens: a few kilobytes, and never decoded.
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)
    with pytest.raises(UploadError):
        read_upload(bomb, Limits())


@pytest.mark.parametrize("key", ["megabytes", "megapixels"])
def test_limits_that_make_no_sense(key):
    with pytest.raises(ValueError, match=f"{key} must be above 0, got 0"):
        Limits(**{key: 0})


OPTS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def make_cfg(tiny_model, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": tiny_model().state_dict()}, path)
    return lambda *opts: setup_cfg(
        "shapes/tiny.yaml", [*OPTS, "MODEL.WEIGHTS", str(path), *map(str, opts)]
    )


@pytest.fixture
def calls(make_cfg):
    """An analyzer, and the names of the model's parts in the order in which they were called."""
    analyzer, names = Analyzer(make_cfg()), []
    for name, module in analyzer.model.named_modules():
        if name and not name.startswith("panoptic_inference"):
            module.register_forward_pre_hook(lambda module, args, name=name: names.append(name))
    return analyzer, names


def test_thresholds_run_the_rule_and_not_the_network(calls, image):
    analyzer, names = calls
    analysis = analyzer(image)
    assert {"transformer", "mask_head", "input_proj"} <= set(names)
    names.clear()
    counts = set()
    for score in (0.0, 0.9, 1.0):
        for area in (0, 1000, 64 * 80):
            view = analysis.view(score, area)
            analysis.picture(view)
            for segment in view.segments:
                assert segment["area"] > area
                assert segment["score"] > score
            counts.add(len(view.segments))
    assert names == []
    assert len(counts) > 2 and 0 in counts


@pytest.mark.parametrize(("score", "area"), [(0.0, 0), (0.5, 20), (0.97, 300)])
def test_the_view_is_what_the_model_returns_with_these_thresholds(make_cfg, image, score, area):
    keys = "MODEL.DETR.TEST.SCORE_THRESH", score, "MODEL.DETR.TEST.MIN_SEGMENT_AREA", area
    ids, segments = Predictor(make_cfg(*keys))(image[:, :, ::-1])["panoptic_seg"]
    view = Analyzer(make_cfg())(image).view(score, area)
    assert np.array_equal(view.ids, ids.numpy())
    assert [s["category_id"] for s in view.segments] == [s["category_id"] for s in segments]
    assert [s["area"] for s in view.segments] == [s["area"] for s in segments]


def test_segments_and_their_queries(calls, image):
    analyzer, names = calls
    analysis = analyzer(image)
    names.clear()
    view = analysis.view(0.0, 0)
    picture = analysis.picture(view)
    factor = picture.shape[0] // 64
    assert picture.shape == (64 * factor, 80 * factor, 3)
    used = []
    for segment in view.segments:
        y, x = np.argwhere(view.ids == segment["id"])[0]
        assert view.at(int(x), int(y)) == segment
        queries = analysis.queries(view, segment)
        assert queries and set(queries) <= set(view.kept)
        assert segment["isthing"] <= (len(queries) == 1)
        used += queries
        mask = analysis.mask_picture(view, segment)
        assert mask.shape == picture.shape
        inside = (view.ids == segment["id"]).repeat(factor, 0).repeat(factor, 1)
        assert (mask[inside] == image.repeat(factor, 0).repeat(factor, 1)[inside]).all()
    assert len(used) == len(set(used))
    maps = analysis.maps_picture(view, view.segments[0])
    assert maps.dtype == np.uint8 and maps.shape[1] <= 1000
    assert names == []
    assert view.at(-1, 0) is None and view.at(0, 64) is None
    empty = analysis.view(1.0, 0)
    assert empty.segments == [] and empty.at(3, 3) is None


def test_equal_scores_are_told_apart_by_their_masks(calls, image):
    analysis = calls[0](image)
    record = analysis._context.recording.per_image[0]
    thing = 0
    record.scores[:], record.labels[:] = 0.75, thing
    view = analysis.view(0.0, 0)
    assert len(view.segments) > 1
    chosen = [analysis.queries(view, s) for s in view.segments]
    assert all(len(queries) == 1 for queries in chosen)
    for segment, (query,) in zip(view.segments, chosen, strict=True):
        won = record.owner.numpy()[view.ids == segment["id"]]
        assert np.bincount(won).argmax() == query


def test_wrong_thresholds(calls, image):
    with pytest.raises(ValueError, match="SCORE_THRESH"):
        calls[0](image).view(1.5, 0)


REPO = Path(__file__).parents[2]
# Seconds to wait for a page that loads and for a result; not a measurement.
PATIENCE = 120


@pytest.fixture
def server(tiny_model, tmp_path):
    """Start the tool; return its port and its log file."""
    pytest.importorskip("gradio", reason="Gradio is not installed (extra 'web')")
    weights = tmp_path / "model.pth"
    torch.save({"model": tiny_model().state_dict()}, weights)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "detr_panoptic_cli",
        "web",
        "--config-file",
        "shapes/tiny.yaml",
    ]
    command += ["--max-mb", "0.5"]
    command += ["--max-megapixels", "0.1", "--port", str(port), "MODEL.DEVICE", "cpu"]
    command += ["MODEL.WEIGHTS", str(weights)]
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
    """Wait for a condition and return its value."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {PATIENCE} s for {what}")


class Visitor:
    """What a visitor of the page does and sees."""

    def __init__(self, browser, port):
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver import ActionChains, Keys
        from selenium.webdriver.common.by import By

        self.browser, self.by, self.keys, self.actions = browser, By, Keys, ActionChains
        # The page replaces its elements while it works.
        self.busy = WebDriverException
        browser.get(f"http://127.0.0.1:{port}")
        self.wait_for("status", "No image yet")

    def find(self, selector):
        found = self.browser.find_elements(self.by.CSS_SELECTOR, selector)
        return found[0] if found else None

    def text(self, name):
        try:
            element = self.find(f"#{name}")
            return element.text if element else ""
        except self.busy:
            return ""

    def wait_for(self, name, pattern):
        found = until(lambda: re.search(pattern, self.text(name)), f"'{pattern}' in #{name}")
        return found.group(0)

    def upload(self, path):
        until(self.is_cleared, "an empty upload")
        self.wait_for("status", "No image yet")
        until(lambda: self.find("#upload input[type=file]"), "the upload").send_keys(str(path))

    def is_cleared(self):
        """Whether there is no file; presses the button where there is one."""
        clear = self.find("#upload button[aria-label='Clear']") or self.find(
            "#upload button[aria-label='Remove this file']"
        )
        if clear:
            with contextlib.suppress(self.busy):
                clear.click()
        return not clear

    def set_number(self, name, value):
        field = self.find(f"#{name} input[type=number]")
        field.click()
        field.send_keys(self.keys.CONTROL, "a")
        field.send_keys(str(value), self.keys.TAB)

    def source(self, name):
        element = self.find(f"#{name} img")
        return element.get_attribute("src") if element else None

    def click(self, name, right, down):
        """Click into a picture at shares of its width and height."""
        element = self.find(f"#{name} img")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        offset = int((right - 0.5) * size["width"]), int((down - 0.5) * size["height"])
        self.actions(self.browser).move_to_element_with_offset(element, *offset).click().perform()


def test_in_a_browser(server, request, tmp_path):
    port, log = server
    if sys.platform == "linux":
        # Only this machine is served: a server of all addresses would answer at this one too.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=10).close()
    browser = request.getfixturevalue("browser")
    rng = np.random.default_rng(1)
    good = tmp_path / "good.png"
    Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(good)
    page = Visitor(browser, port)

    page.upload(good)
    status = page.wait_for("status", r"80 x 64 pixels, \d+ segments?\.")
    assert int(status.split()[4]) > 1
    picture = until(lambda: page.source("picture"), "the picture")

    page.click("picture", 0.3, 0.3)
    details = page.wait_for("details", r"(?s)\((thing|stuff)\).*score [01]\.\d+, area \d+ pixels")
    assert details
    until(lambda: page.source("mask") and page.source("maps"), "mask and maps")
    sheet = page.find("#maps img")
    until(lambda: int(sheet.get_attribute("naturalWidth")) > 300, "a loaded sheet")
    assert re.search(r"\d+ pixels", details).group(0).split()[0] in page.text("segments")

    # Other thresholds: another picture, and the network is not asked again.
    page.set_number("area", 1500)
    until(lambda: page.source("picture") not in (None, picture), "another picture")
    page.set_number("score", 1)
    page.wait_for("status", "0 segments. No query passes")
    assert log.read_text().count("Network: one image") == 1

    # Uploads that cannot be used get a message, and the page goes on.
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:4000])
    page.upload(tmp_path / "broken.png")
    page.wait_for("status", "damaged or cut off")
    (tmp_path / "text.png").write_text("no image")
    page.upload(tmp_path / "text.png")
    page.wait_for("status", "cannot be read as an image")
    Image.new("RGB", (400, 400)).save(tmp_path / "wide.png")
    page.upload(tmp_path / "wide.png")
    page.wait_for("status", r"400 x 400 pixels; at most 0\.1 million")
    noise = rng.integers(0, 256, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "heavy.png")
    page.upload(tmp_path / "heavy.png")
    until(
        lambda: "exceed the maximum" in page.find("body").text.lower(),
        "a message about the file's size",
    )
    assert log.read_text().count("Network: one image") == 1
    assert "Traceback" not in log.read_text()

    page.browser.refresh()
    page.wait_for("status", "No image yet")
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert all(url.startswith((f"http://127.0.0.1:{port}", "data:", "blob:")) for url in loaded)


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"detr_panoptic_d2\[web\]"):
        import_gradio()


def test_options():
    args = build_parser().parse_args(["web", "--config-file", "a.yaml", "MODEL.WEIGHTS", "b.pth"])
    assert (args.host, args.share, args.port) == ("127.0.0.1", False, None)
    assert Limits(args.max_mb, args.max_megapixels) == Limits()
    assert args.opts == ["MODEL.WEIGHTS", "b.pth"]
    hosts = ("127.0.0.1", "localhost", "::1", "127.8.0.1", "0.0.0.0", "::", "10.0.0.3", "a.example")
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4
