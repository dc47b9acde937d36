import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from detr_panoptic_d2.benchmark import huggingface, session
from detr_panoptic_d2.benchmark.agreement import Disagreement, require_close, require_equal_maps
from detr_panoptic_d2.benchmark.inputs import add_segments, make_images
from detr_panoptic_d2.benchmark.measure import Clock, count_flops, peak_memory, time_interleaved
from detr_panoptic_d2.benchmark.models import best_queries
from detr_panoptic_d2.benchmark.training import TrainingWork

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"
CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--size", "64x96", "--kept", "3", "--repeats", "1", "--segments", "3"]
WORKS = ["inference", "training", "hook", "mapper", "memory", "scaling"]
# The smallest model that Hugging Face has as well.
RESNET = ["MODEL.BACKBONE.NAME", "build_torchvision_backbone", "MODEL.RESNETS.NORM", "FrozenBN"]
RESNET += ["MODEL.DETR.BACKBONE.MODEL_NAME", "resnet18", "MODEL.RESNETS.RES5_DILATION", "1"]
RESNET += ["MODEL.DETR.HIDDEN_DIM", "128", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]


@pytest.fixture
def tool(monkeypatch):
    """Return a function that runs the tool in this process and returns its exit status."""
    spec = importlib.util.spec_from_file_location("benchmark_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Its handler would keep one test's stdout for the others.
    monkeypatch.setattr(module, "setup_logger", lambda **options: None)

    def run(*arguments) -> int:
        words = ["--config-file", "shapes/tiny.yaml", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [str(TOOL), *words])
        try:
            return module.main()
        except SystemExit as end:
            return end.code

    return run


def check_times(times: dict, repeats: int) -> None:
    for spent in times.values():
        assert len(spent["runs"]) == repeats
        assert 0 < spent["q1"] <= spent["median"] <= spent["q3"]


def test_every_work(tool, tmp_path, capsys):
    files = ["--json", tmp_path / "new" / "out.json", "--markdown", tmp_path / "out.md"]
    assert tool(*TINY, *files) == 0
    content = json.loads(files[1].read_text(encoding="utf-8"))
    assert {"date", "cpu", "threads", "versions"} <= content["machine"].keys()
    assert content["settings"]["device"] == "cpu"
    assert content["peak flops"] > 0
    results = content["results"]
    assert list(results) == WORKS
    for result in results.values():
        assert all(math.isfinite(value) for value in result["agreement"].values())

    ours, boxes = "ours panoptic", "ours boxes"
    inference, training = results["inference"], results["training"]
    assert inference["times"].keys() == inference["flops"].keys() == {ours, boxes}
    stages = {"backbone", "transformer", "attention maps", "mask head", "hook", "other"}
    assert inference["stages"][ours].keys() == stages
    assert inference["stages"][boxes].keys() == {"backbone", "transformer", "other"}
    assert inference["ratios"].keys() == {f"{ours} / {boxes}"}
    assert inference["flops"][ours] > inference["flops"][boxes] > 0
    assert "extra memory over boxes: ours / masks of all queries" in training["ratios"]
    assert training["flops"][ours] < training["flops"]["ours, masks of all queries"]
    for name in ("inference", "training", "hook"):
        check_times(results[name]["times"], repeats=1)
        assert all(value > 0 for value in results[name]["memory"].values())
    assert results["hook"]["agreement"]["segments"] > 1
    assert all(rate > 0 for rate in results["mapper"]["images per second"].values())
    (memory,) = results["memory"]["memory by kept queries"]
    assert memory["kept"] == 3
    assert memory["mask head"] > memory["of which output"] > 0
    curves = results["scaling"]["curves"]
    assert [x["kept"] for x in curves["kept queries"]] == [1, 5]
    assert [x["size"] for x in curves["image size"]] == [[32, 48], [48, 72], [64, 96]]
    assert [x["batch"] for x in curves["batch"]] == [1, 2, 4]

    printed, markdown = capsys.readouterr().out, files[3].read_text(encoding="utf-8")
    for text in (printed, markdown):
        assert content["machine"]["cpu"] in text
        assert "ours panoptic / ours boxes" in text
        assert "mask head, peak MiB" in text
    assert "--config-file shapes/tiny.yaml" in markdown
    assert all(f"### {name}\n" in markdown for name in WORKS)
    assert "|---" in markdown


@pytest.mark.slow
def test_compiled_beside_not_compiled(tool, tmp_path):
    out = tmp_path / "out.json"
    assert tool(*TINY, "--work", "inference", "--compile", "--json", out) == 0
    torch.compiler.reset()
    result = json.loads(out.read_text(encoding="utf-8"))["results"]["inference"]
    assert result["compiled graphs so far"] > 0
    assert result["agreement"]["class logits, ours panoptic, not compiled"] < 1e-4
    assert "ours panoptic, not compiled / ours panoptic" in result["ratios"]


def test_command_line(tmp_path):
    words = ["--config-file", "shapes/tiny.yaml", *TINY, "--work", "hook,mapper", "--cpu-time"]
    words += ["--dtype", "bfloat16", "--json", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "official steps / ours" in done.stdout
    content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(content["results"]) == ["hook", "mapper"]
    assert content["settings"]["clock"] == "processor time"


def test_against_huggingface(tool, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    words = [*TINY, "--against", "huggingface", "--json", tmp_path / "out.json"]
    assert tool(*words, "--work", "inference", *RESNET) == 0
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["results"]["inference"]
    assert {"Hugging Face panoptic", "Hugging Face boxes"} <= result["times"].keys()
    assert {"mask head", "hook"} <= result["stages"]["Hugging Face panoptic"].keys()
    agreement = result["agreement"]
    assert agreement["mask logits, Hugging Face panoptic"] <= 1e-4
    assert agreement["equal pixels, Hugging Face panoptic and the official steps"] > 0.99

    def copy_badly(ours, theirs):
        copy_weights(ours, theirs)
        with torch.no_grad():
            for weight in theirs.mask_head.parameters():
                weight.mul_(1.01)

    copy_weights = huggingface.copy_weights
    monkeypatch.setattr(huggingface, "copy_weights", copy_badly)
    (tmp_path / "out.json").unlink()
    assert tool(*words, "--work", "inference", *RESNET) == 1
    error = capsys.readouterr().err
    assert "error: mask logits against Hugging Face panoptic: results differ by" in error
    assert not (tmp_path / "out.json").exists()


def test_losses_are_those_of_huggingface():
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    options = {"against": "huggingface", "device": "cpu", "size": (64, 96), "segments": 3}
    run = session.Session(session.Options("shapes/tiny.yaml", tuple(RESNET), **options))
    agreement = TrainingWork(run).check()
    for loss in ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"):
        assert agreement[f"{loss}, Hugging Face panoptic"] <= 1e-3


@pytest.mark.parametrize("work", ["inference", "training", "scaling"])
def test_perturbed_weights_are_not_timed(tool, tmp_path, monkeypatch, capsys, work):
    def build_badly(cfg, panoptic):
        model = build_boxes(cfg, panoptic)
        with torch.no_grad():
            model.class_embed.weight.mul_(1.1)
        return model

    build_boxes = session.build_boxes
    monkeypatch.setattr(session, "build_boxes", build_badly)
    assert tool(*TINY, "--work", work, "--json", tmp_path / "out.json") == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: .* results differ by .* nothing is timed.*\n", printed.err)
    assert "median" not in printed.out
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("module", ["transformers", "timm"])
def test_huggingface_is_not_installed(tool, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert tool(*TINY, "--work", "inference", "--against", "huggingface", *RESNET) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'detr-panoptic-d2[huggingface,timm]'" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--work", "nothing"], r"--work names \['nothing'\].*inference, training"),
        (["--work", "inference", "--kept", "9"], "--kept is 9, but must lie in 1..8"),
        (["--repeats", "0"], "--repeats is 0, but must be at least 1"),
        (["--device", "cpu", "--dtype", "tf32"], "only GPUs have"),
        (["--work", "inference", "MODEL.MASK_ON", "False"], "MODEL.MASK_ON"),
        (["--work", "inference", "--against", "huggingface"], "build_narrow_resnet_backbone"),
    ],
)
def test_what_does_not_fit_is_said(tool, capsys, words, message):
    if "huggingface" in words:
        pytest.importorskip("transformers")
        pytest.importorskip("timm")
    arguments = ["--device", "cpu", "--size", "64x96", *words]
    assert tool(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"error: .*{message}", line), line


@pytest.mark.parametrize("size", ["64", "64x", "8x64", "ax64"])
def test_size_is_checked(tool, capsys, size):
    assert tool("--size", size) == 2
    assert "is no HEIGHTxWIDTH" in capsys.readouterr().err


def test_peak_memory_is_that_of_living_tensors():
    start = torch.ones(512, 512)

    def run():
        a = start + 1
        b = a + 1
        del a
        c = torch.cat([b, b])
        del b
        return c.sum()

    # b and c together; a is gone by then.
    assert peak_memory(run, CPU) == pytest.approx(3 * 2**20, rel=0.01)


def test_flops_of_convolution_product_and_attention():
    x = torch.randn(1, 4, 10, 12)
    weight = torch.randn(6, 4, 3, 3)
    assert count_flops(lambda: F.conv2d(x, weight, padding=1)) == 2 * 6 * 4 * 9 * 10 * 12
    assert count_flops(lambda: torch.randn(3, 4) @ torch.randn(4, 5)) == 2 * 3 * 4 * 5
    q = torch.randn(1, 2, 7, 8)
    attend = F.scaled_dot_product_attention
    assert count_flops(lambda: attend(q, q, q)) == 2 * 2 * 2 * 7 * 7 * 8


def test_variants_take_turns():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_interleaved(variants, Clock(CPU), repeats=3, warmup=1)
    assert calls == list("abababab")
    assert all(len(t.seconds) == 3 for t in times.values())


def test_exactly_so_many_queries_are_kept():
    logits = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(0))
    kept = best_queries(logits, 15)
    assert kept.sum(1).tolist() == [15, 15, 15]
    scores = logits.softmax(-1).amax(-1)
    assert scores[0][kept[0]].min() >= scores[0][~kept[0]].max()


def test_segments_cover_the_image():
    (x,) = add_segments(make_images(1, (40, 60), (40, 60), CPU), segments=5, num_classes=3)
    masks = x["instances"].gt_masks.tensor
    assert len(masks) == 5
    assert (masks.sum(0) == 1).all()
    assert x["instances"].gt_classes.max() < 3


def test_differences_are_found():
    a = torch.tensor([1.0, 100.0])
    assert require_close("a", a, a + 0.005) == pytest.approx(5e-5, rel=0.01)
    with pytest.raises(Disagreement, match="a: results differ by 0.0005"):
        require_close("a", a, a + 0.05)
    with pytest.raises(Disagreement, match="differ by nan"):
        require_close("a", a, torch.full_like(a, float("nan")))
    with pytest.raises(Disagreement, match=r"shapes \(2,\) and \(1,\)"):
        require_close("a", a, a[:1])
    ids = torch.arange(100).view(10, 10)
    assert require_equal_maps("m", ids, ids, 1.0) == 1
    with pytest.raises(Disagreement, match="m: only 90.00% of the pixels"):
        require_equal_maps("m", ids, ids.where(ids >= 10, -1), 0.95)
