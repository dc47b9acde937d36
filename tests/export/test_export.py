"""Exported graphs against the model itself, and the runtime against the model's own results."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from detr_panoptic_d2.data.panoptic_json import complete_segments
from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.export import export_model, runtime, write
from detr_panoptic_d2.export.graphs import DetectorGraph
from detr_panoptic_d2.export.runtime import files
from detr_panoptic_d2.export.runtime.model import input_size
from detr_panoptic_d2.export.runtime.rule import assemble, select_queries
from detr_panoptic_d2.modeling import panoptic_inference
from detr_panoptic_d2.modeling.structures import Frame

for package in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason="needs the extra 'export'")

OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.DETR.TEST.OVERLAP_THRESH", "0.0"]
SIZE = ["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "160"]
FEATURES = ("memory", "map5", "map4", "map3", "map2")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def cfg():
    return setup_cfg("shapes/tiny.yaml", [*OPTIONS, *SIZE])


# What torch.export gave to this process.
PROGRAMS = []


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of what was exported already, for all processes of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "export"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def export(made, tiny_model, cfg, monkeypatch):
    """Return ``export(name, **options)``: the tiny model and the folder of that name, made once.

    All formats share one run of torch.export and of torch's ONNX exporter, which take most time.
    """
    export_programs, write_onnx = write.export_programs, write._write_onnx
    graphs = made / "graphs"

    def onnx_once(programs, folder):
        if not graphs.exists():
            graphs.mkdir()
            write_onnx(programs, graphs)
        shutil.copytree(graphs, folder, dirs_exist_ok=True)

    monkeypatch.setattr(write, "_write_onnx", onnx_once)

    def make(name, graph_format="onnx", **options):
        model, folder = tiny_model(), made / name

        def programs_once(*arguments):
            if not PROGRAMS and (graph_format == "torch-export" or not graphs.exists()):
                PROGRAMS.append(export_programs(*arguments))
            return PROGRAMS[0] if PROGRAMS else None

        monkeypatch.setattr(write, "export_programs", programs_once)
        with FileLock(made / "lock"):
            if not folder.exists():
                export_model(model, cfg, folder, graph_format=graph_format, **options)
        return model, folder

    return make


@pytest.fixture(params=["onnx", "openvino", "torch-export"])
def exported(request, export):
    return export(request.param, graph_format=request.param)


def pictures(*sizes):
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)) for _ in sizes]
    return [np.asarray(c.resize(size[::-1])) for c, size in zip(coarse, sizes, strict=True)]


def assert_close(found, exact):
    """Within the rounding of float32, relative to the largest value."""
    assert found.shape == tuple(exact.shape)
    if exact.numel():
        distance = (torch.from_numpy(found).double() - exact).abs().max()
        assert distance <= 5e-5 * exact.abs().max()


def test_graphs_give_the_numbers_of_the_model(exported, tiny_model):
    runtime_model = runtime.PanopticModel(exported[1])
    model = tiny_model().double()
    for image in pictures((64, 64), (97, 133), (130, 64)):
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).double()
        with torch.no_grad():
            exact = DetectorGraph(model)(tensor[None])
            detections = model.detect(model.preprocess([{"image": tensor}]))
        outputs = runtime_model._detector({"image": tensor[None].float().numpy()})
        for found, expected in zip(outputs, exact, strict=True):
            assert_close(found, expected)
        features = dict(zip(FEATURES, outputs[3:], strict=True))
        for kept in ([], [3], [0, 2, 5, 7]):
            if not kept and runtime_model.description["format"] == "openvino":
                # OpenVINO's CPU plugin refuses an empty batch; the runtime never asks for it.
                continue
            (masks,) = runtime_model._masks({"queries": outputs[2][kept], **features})
            index = torch.tensor(kept, dtype=torch.long)
            with torch.no_grad():
                expected = model.predict_masks(detections, torch.zeros_like(index), index)
            assert_close(masks, expected)


def test_runtime_gives_the_segments_of_the_model(exported):
    model, folder = exported
    runtime_model = runtime.PanopticModel(folder)
    count = 0
    for image in pictures((40, 56), (97, 133), (200, 90)):
        height, width = image.shape[:2]
        size = input_size(height, width, runtime_model.description)
        resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))
        tensor = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        (result,) = model([{"image": tensor, "height": height, "width": width}])
        expected, info = result["panoptic_seg"]
        ids, segments = runtime_model(image)
        assert ids.dtype == np.int32 and ids.shape == (height, width)
        one_tile = runtime_model(image, tile=200)
        assert np.array_equal(ids, one_tile[0]) and segments == one_tile[1]
        assert (ids == expected.numpy()).mean() > 0.999
        classes = [(model.dataset_ids[s["category_id"]], s["isthing"]) for s in info]
        assert [(s["category_id"], s["isthing"]) for s in segments] == classes
        assert [s["area"] for s in segments] == np.bincount(ids.ravel())[1:].tolist()
        count += len(segments)
    assert count > 5


@pytest.mark.parametrize(
    ("rule", "overlap"),
    [
        ("DETRPanopticInference", 0.0),
        ("DETRPanopticInference", 0.5),
        ("OfficialPanopticInference", 0.0),
        ("MaskNMSPanopticInference", 0.0),
        ("MaskNMSPanopticInference", 0.7),
    ],
)
def test_rules_in_numpy_are_those_of_the_model(rule, overlap):
    classes = [{"id": 10 + i, "name": "", "isthing": i < 2} for i in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(60):
        options = {"min_segment_area": int(rng.choice([0, 4, 30])), "overlap_thresh": overlap}
        options["score_thresh"] = float(rng.choice([0.0, 0.4, 0.8]))
        description = {"classes": classes, "rule": rule, **options}
        expected_rule = getattr(panoptic_inference, rule)(thing_ids=[0, 1], **options)
        logits = rng.normal(size=(rng.integers(1, 9), 5)).astype(np.float32) * 2
        kept, scores, labels = select_queries(logits, description)
        expected_kept = expected_rule.keep(torch.from_numpy(logits)).nonzero()[:, 0]
        assert kept.tolist() == expected_kept.tolist()
        masks = rng.normal(size=(len(kept), *rng.integers(1, 9, 2))).astype(np.float32) * 5
        masks[rng.random(masks.shape) < 0.2] = 0
        size, output = (tuple(rng.integers(4, 30, 2).tolist()) for _ in range(2))
        ids, segments = assemble(masks, scores, labels, description, size, output)
        tensors = (torch.from_numpy(x) for x in (masks, scores, labels))
        expected, info = expected_rule(*tensors, Frame(size, size, output))
        assert np.array_equal(ids, expected.numpy())
        found = [(s["id"], s["category_id"] - 10, s["area"], s["score"]) for s in segments]
        assert found == [(s["id"], s["category_id"], s["area"], s["score"]) for s in info]


def test_the_folder_runs_without_torch_and_detectron2(exported, tmp_path, monkeypatch, capsys):
    """As ``predict`` does: folders, names that come twice, a broken file among good ones."""
    folder = exported[1]
    if json.loads((folder / "panoptic.json").read_text())["format"] == "torch-export":
        pytest.skip("torch.export's format is for torch")
    images = pictures((40, 56), (70, 50), (50, 60))
    for name, image in zip(("a.png", "a.jpg", "more/a.png"), images, strict=True):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_text("no image")
    words = [str(folder), str(tmp_path / "in"), str(tmp_path / "in" / "more")]
    words += ["--output", str(tmp_path / "out")]
    # None in sys.modules: cannot be imported.
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'detectron2', 'panopticapi']));"
        f"sys.path.insert(0, {str(folder)!r}); import panoptic_runtime;"
        f"sys.argv[1:] = {words}; sys.exit(panoptic_runtime.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "3 of 4 images done" in done.stdout
    assert done.stderr.startswith(f"Not done: {tmp_path / 'in' / 'broken.png'} (")
    assert done.stderr.count("\n") == 1
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "a.png", "more/a.png"]
    assert [a["file_name"] for a in content["annotations"]] == ["a.png", "a_2.png", "more/a.png"]
    for annotation in content["annotations"]:
        ids = read_panoptic_png(tmp_path / "out" / "panoptic" / annotation["file_name"])
        infos = annotation["segments_info"]
        assert infos == complete_segments(ids, infos)
        assert {s["id"] for s in infos} == set(np.unique(ids).tolist()) - {0}
    monkeypatch.setattr(sys, "argv", ["panoptic_runtime.py", *words])
    assert files.main() == 1 and "predictions.json' exists" in capsys.readouterr().err


def test_an_object_across_four_tiles_is_one_segment(export):
    """The graphs find the same object everywhere in each image."""
    model, folder = export("onnx")
    tiled = runtime.PanopticModel(folder)
    tiled.description |= {"rule": "MaskNMSPanopticInference", "overlap_thresh": 0.6, "min_size": 0}
    thing, detector, masks = model.is_thing.tolist().index(True), tiled._detector, tiled._masks

    def detect_one(feeds):
        logits, *rest = detector(feeds)
        return [np.float32(9 * (np.arange(logits.shape[-1]) == thing) + 0 * logits), *rest]

    tiled._detector, tiled._masks = detect_one, lambda feeds: [3 + 0 * x for x in masks(feeds)]
    (image,) = pictures((112, 120))
    ids, (segment,) = tiled(image, tile=64)
    assert segment["category_id"] == model.dataset_ids[thing]
    assert segment["area"] == 112 * 120 and (ids == segment["id"]).all()


def test_a_child_may_end_after_a_model_was_used(export):
    """With a Python handler of SIGCHLD, as torch's DataLoader sets one."""
    folder = str(export("openvino", graph_format="openvino")[1])
    code = (
        "import faulthandler, signal, subprocess, sys; faulthandler.enable();"
        f"sys.path.insert(0, {folder!r}); import panoptic_runtime;"
        "signal.signal(signal.SIGCHLD, lambda *_: print('ended'));"
        f"panoptic_runtime.PanopticModel({folder!r});"
        "[subprocess.run([sys.executable, '-c', '']) for _ in range(3)]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("ended") >= 3, done.stderr


@pytest.mark.parametrize("graph_format", ["onnx", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "half"])
def test_int8_and_half(export, graph_format, precision):
    images = pictures((64, 80), (90, 64))
    options = {"int8_images": images} if precision == "int8" else {"half": True}
    _, folder = export(f"{graph_format}_{precision}", graph_format=graph_format, **options)
    ids, _ = runtime.PanopticModel(folder)(images[0])
    assert ids.shape == (64, 80)
    name = {"onnx": "detector.onnx", "openvino": "detector.xml"}[graph_format]
    layer = {"onnx": b"QuantizeLinear", "openvino": b"FakeQuantize"}[graph_format]
    assert (layer in (folder / name).read_bytes()) == (precision == "int8")
    names = {path.name for path in folder.iterdir() if path.is_file()}
    suffixes = {"onnx": [".onnx"], "openvino": [".xml", ".bin"]}[graph_format]
    graphs = {f"{name}{suffix}" for name in ("detector", "masks") for suffix in suffixes}
    assert names == graphs | {"panoptic.json", "panoptic_runtime.py"}


def test_command_evaluates_what_it_wrote(command, tiny_model, panoptic_set, tmp_path):
    ids = np.ones((64, 80), np.int64)
    ids[20:50, 30:60] = 2
    panoptic_set("to_export", [(ids, {1: 3, 2: 10})])
    options = ["DATASETS.TRAIN", "('to_export',)", "DATASETS.TEST", "('to_export',)", *OPTIONS]
    options += [w for key in ("INSTANCE", "SEMANTIC") for w in (f"MODEL.DETR.TEST.{key}_ON", True)]
    model = tiny_model(*options)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    words = ["export", "--config-file", "shapes/tiny.yaml", "--output", tmp_path / "out"]
    words += ["--format", "torch-export", "--size", "64x80", "--evaluate", *options, "OUTPUT_DIR"]
    status, out, err = command(*words, tmp_path, "MODEL.WEIGHTS", tmp_path / "model.pth")
    assert status == 0, err
    assert re.search(r"PQ \d+\.\d\d  PQ_th \d+\.\d\d  PQ_st \d+\.\d\d", out)
    description = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert description["size"] == [64, 80]
    status, _, err = command(*words, tmp_path, "MODEL.WEIGHTS", tmp_path / "model.pth")
    assert status == 1 and "is not empty" in err[-1]


def test_what_cannot_be_exported_is_said_before(tiny_model, cfg, tmp_path):
    without_masks = ["MODEL.MASK_ON", False, "MODEL.DETR.TEST.PANOPTIC_ON", False]
    boxes = tiny_model(*without_masks, "MODEL.DETR.TEST.INSTANCE_ON", True)
    with pytest.raises(UserError, match="MASK_ON.* can be exported, not PanopticDETR, NoneType"):
        export_model(boxes, cfg, tmp_path / "new")
    large = setup_cfg("shapes/tiny.yaml", [*OPTIONS, "INPUT.MAX_SIZE_TEST", "9999"])
    with pytest.raises(UserError, match="MAX_SIZE_TEST"):
        export_model(tiny_model(), large, tmp_path / "new")
    with pytest.raises(UserError, match="--half and --int8 exclude each other"):
        export_model(tiny_model(), cfg, tmp_path / "new", graph_format="torch-export", half=True)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_folder_is_an_error(export, tmp_path):
    with pytest.raises(ValueError, match="not an exported model"):
        runtime.PanopticModel(tmp_path)
    shutil.copy(export("onnx")[1] / "panoptic.json", tmp_path)
    with pytest.raises(ValueError, match="is incomplete: 'detector.onnx' is missing"):
        runtime.PanopticModel(tmp_path)


def memory_mib():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("memory of a process is read from /proc")
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text()).group(1)) / 1024


def test_service_answers_and_keeps_its_memory(export, monkeypatch):
    """The HTTP service of docs/deploy.md, as it stands there: some hundred requests."""
    pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    monkeypatch.setenv("MODEL_FOLDER", str(export("onnx")[1]))
    monkeypatch.setattr(sys, "path", sys.path[:])
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    names = {}
    exec(compile(code, "server.py", "exec"), names)
    client = testclient.TestClient(names["app"])
    images = []
    for picture in pictures((48, 64), (70, 50), (33, 90)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        images.append((picture.shape[:2], file.getvalue()))
    for count in range(300):
        size, data = images[count % 3]
        reply = client.post("/panoptic", content=data)
        assert reply.status_code == 200
        if count % 30 == 0:
            answer = reply.json()
            ids = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["png"]))))[..., 0]
            assert ids.shape == size
            assert {s["id"] for s in answer["segments"]} == set(np.unique(ids).tolist()) - {0}
            assert client.post("/panoptic", content=b"no image").status_code == 400
        if count == 60:
            before = memory_mib()
    assert client.post("/panoptic", content=bytes(11 * 2**20)).status_code == 413
    assert memory_mib() < before + 60
