"""tools/benchmark: sides that agree are timed, others are not; what it prints and writes."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from detr_panoptic_d2.apps.demo import make_shapes

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "benchmark"
TINY = ["--config-file", "shapes/tiny.yaml", "--device", "cpu", "--size", "64x96", "--kept", "3"]
TINY += ["--repeats", "1", "--segments", "3"]
# The smallest model that Hugging Face has as well.
RESNET = ["MODEL.BACKBONE.NAME", "build_torchvision_backbone", "MODEL.RESNETS.NORM", "FrozenBN"]
RESNET += ["MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18", "MODEL.RESNETS.RES5_DILATION", "1"]
RESNET += ["MODEL.DETR.HIDDEN_DIM", "128", "MODEL.DETR.MASK_HEAD.NAME", "MaskHeadSmallConv"]
OURS, BOXES, THEIRS = "ours panoptic", "ours boxes", "Hugging Face panoptic"


@pytest.fixture
def module(monkeypatch):
    """Return a function from the name of a module of the tool to the module."""
    monkeypatch.syspath_prepend(str(TOOL))
    yield importlib.import_module
    for path in TOOL.glob("[!_]*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def tool(module, monkeypatch):
    """Return a function that runs the tool in this process and returns its exit status."""
    # Its handler would keep one test's stdout for the others.
    monkeypatch.setattr("detectron2.utils.logger.setup_logger", lambda **options: None)

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        return end.value.code

    return run


def test_inference_training_and_curves(tool, tmp_path, capsys):
    files = [tmp_path / "new" / name for name in ("out.json", "out.md", "curves.png")]
    words = ["--json", files[0], "--markdown", files[1], "--picture", files[2]]
    words += ["--rule", "MaskNMSPanopticInference"]
    assert tool(*TINY, "--work", "inference,training,curves", "--cpu-time", *words) == 0
    content = json.loads(files[0].read_text(encoding="utf-8"))
    assert {"date", "cpu", "threads", "versions"} <= content["machine"].keys()
    inference, training, curves = content["parts"]
    assert inference["settings"]["clock"] == "processor time"
    for part in (inference, training):
        (row,) = part["rows"]
        assert all(0 < t["q1"] <= t["median"] <= t["q3"] for t in row["times"].values())
        assert all(memory > 0 for memory in row["memory"].values())
    assert set(inference["rows"][0]["ratios"]) == {f"{OURS} / {BOXES}", f"{OURS}, --rule / {OURS}"}
    everything = "ours, masks of all queries"
    assert training["agreement"][f"loss_mask, {everything}"] < 1e-3
    memory = training["rows"][0]["memory"]
    assert memory[OURS] < memory[everything]
    points = [(c["curve"], c[c["curve"]]) for c in (row["case"] for row in curves["rows"])]
    assert points[1:3] == [("kept", 5), ("size", "32x48")] and points[-1] == ("batch", 4)
    markdown = files[1].read_text(encoding="utf-8")
    assert markdown in capsys.readouterr().out
    assert "tools/benchmark --config-file shapes/tiny.yaml" in markdown
    assert "| ours panoptic / ours boxes" in markdown
    with Image.open(files[2]) as picture:
        assert picture.width > picture.height > 300

    # Beside an earlier run.
    for row in content["parts"][1]["rows"]:
        row["ratios"] = {name: value / 1e6 for name, value in row["ratios"].items()}
    files[0].write_text(json.dumps(content))
    assert tool(*TINY, "--work", "training", "--compare", files[0]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"Moved by more than 10%: training .*ours panoptic / ours boxes by \+", printed
    )


def test_evaluation_and_mapper_beside_others(tool, tmp_path):
    paths = make_shapes(tmp_path / "shapes", "evaluated", 2, size=32, seed=0)
    opts = ["DATASETS.REGISTER", [{"name": "evaluated", **paths}]]
    opts += ["DATASETS.TEST", ("evaluated",), "DATASETS.TRAIN", ("evaluated",)]
    out = tmp_path / "out.json"
    assert tool(*TINY, "--work", "evaluation,mapper", "--json", out, *map(str, opts)) == 0
    evaluation, mapper = json.loads(out.read_text(encoding="utf-8"))["parts"]
    times, *kept = evaluation["rows"]
    assert times["ratios"].keys() >= {
        "ours / Detectron2's process",
        "ours, with PNGs / Detectron2's process",
        "ours / panopticapi's comparison",
    }
    assert all(row["figures"]["KiB kept per image"] < 100 for row in kept)
    assert len(mapper["rows"][0]["times"]) == len(mapper["rows"]) - 1 == 3


def test_against_huggingface(tool, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    out = tmp_path / "out.json"
    words = [*TINY, "--against", "huggingface", "--json", out]
    assert tool(*words, "--work", "inference,training", *RESNET) == 0
    inference, training = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert {THEIRS, "Hugging Face boxes"} <= inference["rows"][0]["times"].keys()
    assert {f"{x}, {THEIRS}" for x in ("class logits", "boxes", "mask logits")} <= (
        inference["agreement"].keys()
    )
    losses = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
    assert {f"{x}, {THEIRS}" for x in losses} <= training["agreement"].keys()
    # transformers is an extra.
    monkeypatch.setitem(sys.modules, "transformers", None)
    capsys.readouterr()  # transformers draws progress bars
    assert tool(*words, "--work", "inference", *RESNET) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install '.[benchmark,timm]'" in line


@pytest.mark.parametrize("work", ["inference", "training"])
def test_sides_that_differ_are_not_timed(tool, module, tmp_path, monkeypatch, capsys, work):
    works, out = module("works"), tmp_path / "out.json"
    build = works.build

    def build_badly(*words, masks=True, **more):
        model = build(*words, masks=masks, **more)
        with torch.no_grad():
            model.class_embed.weight.mul_(1 if masks else 1.1)
        return model

    monkeypatch.setattr(works, "build", build_badly)
    assert tool(*TINY, "--work", work, "--json", out) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: .* the sides differ by .* nothing is timed.*\n", printed.err)
    assert "median" not in printed.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--work", "nothing"], 2, r"\['nothing'\]: known are inference, training, curves"),
        (["--repeats", "0"], 2, "'0' is no whole number of at least 1"),
        (["--size", "8x64"], 2, "'8x64' is no HEIGHTxWIDTH"),
        (["--work", "inference", "--kept", "9"], 1, "--kept is 9, but must be from 1 to 8"),
        (["--dtype", "tf32"], 1, "only GPUs have"),
        (["--work", "inference", "MODEL.MASK_ON", "False"], 1, "set MODEL.MASK_ON"),
        (["--work", "exported", "--dtype", "bfloat16"], 1, "--device cpu and --dtype float32"),
    ],
)
def test_what_does_not_fit_is_said(tool, capsys, words, status, message):
    if "exported" in words:
        pytest.importorskip("onnxruntime")
    assert tool(*TINY, *words) == status
    assert re.search(f"error: .*{message}", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.slow
def test_gpu_script_runs_dry(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(TOOL / "gpu.sh"), "--tiny"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    works = ["precision", "inference", "training", "training", "loader", "profile", "inference"]
    assert [part["work"] for part in parts] == works
    float32, half = (row["figures"] for row in parts[0]["rows"])
    assert float32["equal pixels"] == 1 and 0 < half["class logits"] < 1
    cases = [(row["case"]["dtype"], row["case"]["batch"]) for row in parts[1]["rows"]]
    assert cases == [("float32", 1), ("float32", 2), ("bfloat16", 1), ("bfloat16", 2)]
    assert 0 <= parts[4]["rows"][0]["figures"]["share waiting for data"] < 1
    assert "### precision" in (tmp_path / "gpu.md").read_text(encoding="utf-8")
