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
from detr_panoptic_d2.apps.web.app import import_gradio, is_loopback
from detr_panoptic_d2.errors import UserError

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
    command = [sys.executable, "-m", "detr_panoptic_cli", "web", "--config-file"]
    command += ["shapes/tiny.yaml", "--max-mb", "0.5"]
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
    words = ["web", "--config-file", "a.yaml", "MODEL.WEIGHTS", "b.pth"]
    args = build_parser().parse_args(words)
    assert (args.host, args.share, args.port) == ("127.0.0.1", False, None)
    assert args.opts == ["MODEL.WEIGHTS", "b.pth"]
    hosts = ("127.0.0.1", "localhost", "::1", "127.8.0.1", "0.0.0.0", "::", "10.0.0.3", "a.example")
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4
