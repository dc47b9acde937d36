"""The HTTP service of docs/deploy.md, as it stands there: some hundred requests, bad ones too."""

import base64
import io
import json
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
from PIL import Image

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.export import export_model

for package in ("onnxscript", "onnxruntime", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason="needs the extra 'export', FastAPI and uvicorn")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


@pytest.fixture
def service(tiny_model, tmp_path):
    """Address and process of a running server."""
    options = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]
    cfg = setup_cfg("shapes/tiny.yaml", options)
    folder = export_model(tiny_model(), cfg, tmp_path / "exported")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    (tmp_path / "server.py").write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "MODEL_FOLDER": str(folder)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert process.poll() is None
        yield f"http://127.0.0.1:{port}/panoptic", process
    finally:
        process.kill()
        process.wait()


def post(url, data):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, None


def memory_mib(process):
    status = Path(f"/proc/{process.pid}/status")
    if not status.is_file():
        pytest.skip("memory of a process is read from /proc")
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text()).group(1)) / 1024


def test_service_answers_and_keeps_its_memory(service):
    url, process = service
    rng = np.random.default_rng(0)
    images = []
    for height, width in ((48, 64), (70, 50), (33, 90)):
        file = io.BytesIO()
        picture = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        picture.resize((width, height)).save(file, format="PNG")
        images.append(((height, width), file.getvalue()))
    for count in range(300):
        (height, width), data = images[count % 3]
        status, answer = post(url, data)
        assert status == 200
        if count % 30 == 0:
            ids = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"]))))[..., 0]
            assert ids.shape == (height, width)
            assert {s["id"] for s in answer["segments"]} == set(np.unique(ids).tolist()) - {0}
            assert post(url, b"no image")[0] == 400
        if count == 60:
            before = memory_mib(process)
    assert post(url, bytes(11 * 2**20))[0] == 413
    assert memory_mib(process) < before + 60
