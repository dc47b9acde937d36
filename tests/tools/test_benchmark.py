"""tools/benchmark: sides that agree are timed, others are not; what it prints and writes."""

import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "benchmark"
MODULES = tuple(p.stem for p in TOOL.glob("[!_]*.py"))
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
    for name in MODULES:
        sys.modules.pop(name, None)


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


def test_all_works(tool, tmp_path, capsys):
    files = ["--json", tmp_path / "new" / "out.json", "--markdown", tmp_path / "out.md"]
    assert tool(*TINY, "--work", "inference,training,curves", "--cpu-time", *files) == 0
    content = json.loads(files[1].read_text(encoding="utf-8"))
    assert {"date", "cpu", "threads", "versions"} <= content["machine"].keys()
    assert content["settings"]["clock"] == "processor time"
    inference, training, curves = (
        content["results"][w] for w in ("inference", "training", "curves")
    )
    for result in (inference, training):
        assert all(0 < t["q1"] <= t["median"] <= t["q3"] for t in result["times"].values())
        assert all(memory > 0 for memory in result["memory"].values())
    assert inference["ratios"].keys() == {f"{OURS} / {BOXES}"}
    assert list(inference["steps"]) == [
        "preprocess",
        "detect",
        "select",
        "predict_masks",
        "assemble",
    ]
    everything = "ours, masks of all queries"
    assert training["agreement"][f"loss_mask, {everything}"] < 1e-3
    assert training["memory"][OURS] < training["memory"][everything]
    assert [x["kept"] for x in curves["curves"]["kept"]] == [1, 5]
    assert [x["size"] for x in curves["curves"]["size"]] == [[32, 48], [48, 72], [64, 96]]
    assert [x["batch"] for x in curves["curves"]["batch"]] == [1, 2, 4]
    markdown = files[3].read_text(encoding="utf-8")
    assert markdown in capsys.readouterr().out
    assert "tools/benchmark --config-file shapes/tiny.yaml" in markdown
    assert "| ours panoptic / ours boxes" in markdown


@pytest.mark.slow
def test_compiled_beside_not_compiled(tool, tmp_path):
    out = tmp_path / "out.json"
    assert tool(*TINY, "--work", "inference", "--compile", "--json", out) == 0
    torch.compiler.reset()
    result = json.loads(out.read_text(encoding="utf-8"))["results"]["inference"]
    assert result["agreement"]["class logits, ours panoptic, not compiled"] < 1e-4
    assert "ours panoptic, not compiled / ours panoptic" in result["ratios"]


def test_against_huggingface(tool, module, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    out = tmp_path / "out.json"
    words = [*TINY, "--against", "huggingface", "--json", out]
    assert tool(*words, "--work", "inference,training", *RESNET) == 0
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert {THEIRS, "Hugging Face boxes"} <= results["inference"]["times"].keys()
    assert {f"{x}, {THEIRS}" for x in ("class logits", "boxes", "mask logits")} <= (
        results["inference"]["agreement"].keys()
    )
    losses = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
    assert {f"{x}, {THEIRS}" for x in losses} <= results["training"]["agreement"].keys()
    out.unlink()

    build = module("huggingface").build

    def build_badly(ours):
        theirs = build(ours)
        with torch.no_grad():
            for weight in theirs.mask_head.parameters():
                weight.mul_(1.01)
        return theirs

    monkeypatch.setattr(module("huggingface"), "build", build_badly)
    assert tool(*words, "--work", "inference", *RESNET) == 1
    assert re.search(rf"error: mask logits, {THEIRS}: the sides differ", capsys.readouterr().err)
    assert not out.exists()


@pytest.mark.parametrize("work", ["inference", "training"])
def test_sides_that_differ_are_not_timed(tool, module, tmp_path, monkeypatch, capsys, work):
    networks, out = module("networks"), tmp_path / "out.json"
    boxes_alone = networks._boxes_alone

    def build_badly(cfg, panoptic):
        model = boxes_alone(cfg, panoptic)
        with torch.no_grad():
            model.class_embed.weight.mul_(1.1)
        return model

    monkeypatch.setattr(networks, "_boxes_alone", build_badly)
    assert tool(*TINY, "--work", work, "--json", out) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: .* the sides differ by .* nothing is timed.*\n", printed.err)
    assert "median" not in printed.out
    assert not out.exists()


@pytest.mark.parametrize("missing", ["transformers", "timm"])
def test_huggingface_is_not_installed(tool, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert tool(*TINY, "--work", "inference", "--against", "huggingface", *RESNET) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'detr-panoptic-d2[benchmark,timm]'" in line


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["--work", "nothing"],
            2,
            r"\['nothing'\]: known are inference, training, curves",
        ),
        (["--repeats", "0"], 2, "'0' is no whole number of at least 1"),
        (["--size", "8x64"], 2, "'8x64' is no HEIGHTxWIDTH"),
        (["--work", "inference", "--kept", "9"], 1, "--kept is 9, but must be from 1 to 8"),
        (["--dtype", "tf32"], 1, "only GPUs have"),
        (["--work", "inference", "MODEL.MASK_ON", "False"], 1, "set MODEL.MASK_ON"),
    ],
)
def test_what_does_not_fit_is_said(tool, capsys, words, status, message):
    assert tool(*TINY, *words) == status
    assert re.search(f"error: .*{message}", capsys.readouterr().err.splitlines()[-1])


def test_peak_memory_is_that_of_living_tensors(module):
    start = torch.ones(512, 512)

    def run():
        a = start + 1
        b = a + 1
        del a
        c = torch.cat([b, b])
        del b
        return c.sum()

    # b and c together; a is gone by then.
    peak = module("measure").peak_memory(run, torch.device("cpu"))
    assert peak == pytest.approx(3 * 2**20, rel=0.01)


def test_variants_take_turns(module):
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    measure = module("measure")
    times = measure.time_interleaved(variants, measure.Clock(torch.device("cpu")), repeats=3)
    assert calls == list("baabbaab")
    assert all(len(t["runs"]) == 3 for t in times.values())


def test_exactly_so_many_queries_are_kept(module):
    logits = torch.randn(3, 20, 7, generator=torch.Generator().manual_seed(0))
    kept = module("networks").best_queries(logits, 15)
    assert kept.sum(1).tolist() == [15, 15, 15]
    scores = logits.softmax(-1).amax(-1)
    assert scores[0][kept[0]].min() >= scores[0][~kept[0]].max()


def test_segments_cover_the_image(module):
    networks = module("networks")
    images = networks.make_images(1, (40, 60), torch.device("cpu"))
    (x,) = networks.add_segments(images, segments=5, num_classes=3)
    masks = x["instances"].gt_masks.tensor
    assert len(masks) == 5
    assert (masks.sum(0) == 1).all()
    assert x["instances"].gt_classes.max() < 3


def test_differences_are_found(module):
    require_close, a = module("measure").require_close, torch.tensor([1.0, 100.0])
    assert require_close("a", a, a + 0.005, 1e-4) == pytest.approx(5e-5, rel=0.01)
    for b, message in (
        (a + 0.05, "a: the sides differ by 0.0005"),
        (torch.full_like(a, float("nan")), "differ by nan"),
        (a[:1], r"shapes \(2,\) and \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            require_close("a", a, b, 1e-4)
