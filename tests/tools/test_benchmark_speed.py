"""tools/benchmark: exported models, the GPU's script, the quick comparison, the picture."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "benchmark"
TINY = {"config_file": "shapes/tiny.yaml", "size": (64, 96), "kept": 3, "segments": 3, "repeats": 1}
ENV = {**os.environ, "PYTHONPATH": str(REPO), "PYTHON": sys.executable}


@pytest.fixture
def module(monkeypatch):
    """Return a function from the name of a module of the tool to the module."""
    monkeypatch.syspath_prepend(str(TOOL))
    yield importlib.import_module
    for path in TOOL.glob("[!_]*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.slow
def test_exported(tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out.json"
    words = ["--config-file", "shapes/tiny.yaml", "--device", "cpu", "--size", "64x96"]
    words += ["--kept", "3", "--repeats", "1", "--work", "exported", "--exported", tmp_path / "e"]
    command = [sys.executable, "-W", "ignore", TOOL, *words, "--json", out]
    subprocess.run([*map(str, command)], check=True, env=ENV, capture_output=True)
    result = json.loads(out.read_text(encoding="utf-8"))["results"]["exported"]
    sides = ["eager", "ONNX Runtime", "OpenVINO", "ONNX Runtime, int8", "OpenVINO, int8"]
    assert list(result["times"]) == sides
    for side in sides[1:3]:
        for part in ("class logits", "boxes", "mask logits"):
            assert result["agreement"][f"{part}, {side}"] < 1e-4
    # The exported model without torch needs less than the eager one.
    assert result["memory"]["ONNX Runtime"] < result["memory"]["eager"]
    assert {p.name for p in (tmp_path / "e").iterdir()} >= {"onnx", "openvino", "onnx_int8"}


@pytest.mark.parametrize("change", [{"device": "cuda"}, {"dtype": "bfloat16"}, {"compile": True}])
def test_exported_is_for_a_cpu(module, change):
    options = SimpleNamespace(**{"device": "cpu", "dtype": "float32", "compile": False, **change})
    with pytest.raises(ValueError, match="--device cpu and --dtype float32"):
        module("exported").Exported(options)


def test_an_exported_model_keeps_the_queries_of_the_eager_one(module):
    logits = torch.randn(1, 20, 7, generator=torch.Generator().manual_seed(0))
    logits[..., -1] -= 100
    model = module("resident").keep_exactly(SimpleNamespace(), 6)
    kept, scores, labels = model.select(logits[0].numpy())
    expected = module("networks").best_queries(logits, 6)[0]
    assert kept.tolist() == expected.nonzero()[:, 0].tolist()
    best = logits[0].softmax(-1)[expected].max(-1)
    np.testing.assert_allclose(scores, best.values, rtol=1e-5)
    assert labels.tolist() == best.indices.tolist()


def test_gpu_script_runs_dry(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu.sh: begin -->\nold\n<!-- gpu.sh: end -->\nafter\n", "utf-8")
    command = ["bash", TOOL / "gpu.sh", "--tiny", "--page", page]
    run = subprocess.run(
        [*map(str, command)], env={**ENV, "OUT": str(tmp_path)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    content = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert content["left_out"] == []
    compared = content["precision"]["compared"]
    assert compared["float32, device against CPU"]["equal pixels"] == 1.0
    half = compared["bfloat16 against float32, both on the device"]
    assert 0 < half["class logits"] < 1
    assert [(r["dtype"], r["batch"]) for r in content["inference"]] == [
        (dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 2)
    ]
    assert {r["batch"] for r in content["training"]} == {1, 2}
    assert all(r["memory"]["ours panoptic"] > 0 for r in content["training"])
    (rates,) = content["loader"]
    assert 0 <= rates["waiting for data"] < 1
    assert content["profile"].keys() == {"inference", "training"}
    assert content["profile"]["inference"]["top"]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| bfloat16, compiled" in text and "dry run, no figures" in text


def test_gpu_script_without_time_or_marks(module, tmp_path):
    gpu, tables = module("gpu"), module("gpu_tables")
    options = SimpleNamespace(seconds=-1, output=tmp_path, part=None, page=None)
    assert gpu.measure(gpu.Run(tiny=True), options) == 0
    content = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert content["left_out"] == list(gpu.PARTS)
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="has no lines <!-- gpu.sh: begin -->"):
        tables.put_into_page("text\n", page)


def test_results_that_differ_are_seen(module):
    gpu = module("gpu")
    expected = {"boxes": torch.ones(4), "panoptic": torch.zeros(2, 2)}
    found = {"boxes": torch.ones(4) * 1.01, "panoptic": torch.tensor([[0.0, 1], [0, 0]])}
    compared = gpu._compare(found, expected)
    assert compared == {"boxes": pytest.approx(0.01), "equal pixels": 0.75}


def test_smoke_says_what_moved(module):
    smoke = module("smoke")
    found = smoke.measure(TINY)
    assert f"training: {smoke.OURS} / {smoke.BOXES}, peak memory" in found
    assert all(value > 0 for value in found.values())
    assert "Nothing moved" in smoke.compare(found, found)
    first = next(iter(found))
    text = smoke.compare(found, {**found, first: found[first] / 1.2})
    assert f"Moved by more than 10%: {first} by +20%\n" in text
    assert "+20.0%" in text
    committed = json.loads(smoke.COMMITTED.read_text(encoding="utf-8"))
    assert committed["machine"]["cpu"] and len(committed["ratios"]) == 8


def test_curves_are_drawn(module, tmp_path):
    sides, curves = ("ours panoptic", "ours boxes"), {}
    for key, values in (("kept", (1, 5)), ("size", ((32, 48), (64, 96))), ("batch", (1, 2))):
        curves[key] = [
            {
                key: value,
                "times": {s: {"median": 1.0 + i, "q1": 0.9, "q3": 2.1} for s in sides},
                "memory": dict.fromkeys(sides, 2**20),
            }
            for i, value in enumerate(values)
        ]
    module("pictures").draw_curves({"curves": curves}, tmp_path / "new" / "curves.png")
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 20
