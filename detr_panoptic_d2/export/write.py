"""Write an exported model: a folder with both graphs, their description and the runtime."""

import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from .._version import __version__
from ..checkpoint import PanopticCheckpointer
from ..data.dataset_mapper import read_image
from ..errors import UserError
from ..modeling.meta_arch import PanopticDETR
from . import runtime
from .graphs import DETECTOR_OUTPUTS, MASK_INPUTS, export_programs
from .runtime.model import DESCRIPTION, prepare_image

OPSET = 20
_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}


def export_model(
    model: PanopticDETR,
    cfg: CfgNode,
    output: str | os.PathLike,
    *,
    graph_format: str = "onnx",
    half: bool = False,
    int8_images: Sequence[np.ndarray] = (),
    size: tuple[int, int] | None = None,
) -> Path:
    """Export a model with its weights to a new folder, which appears when it is complete.

    Args:
        graph_format: "onnx", "openvino" or "torch-export".
        half: store weights in float16; with ONNX also compute in float16.
        int8_images: H x W x 3 uint8 RGB images that calibrate an int8 quantization of the
            detector's convolutions; empty: no int8.
        size: (H, W) of the network's input; None: the size that the config resizes to.

    Raises:
        UserError: the model or the combination of options cannot be exported, a package is
            missing, or the folder is not empty.
    """
    output, int8 = Path(output), len(int8_images) > 0
    if half and int8 or graph_format == "torch-export" and (half or int8):
        raise UserError(
            "--half and --int8 exclude each other, and --format torch-export supports neither."
        )
    if output.exists() and any(output.iterdir()):
        raise UserError(f"'{output}' is not empty. Remove it, or choose another --output.")
    programs = export_programs(model, cfg, size)
    description = {
        "format": graph_format,
        "precision": "float16" if half else "int8" if int8 else "float32",
        "files": {name: f"{name}{_SUFFIXES[graph_format]}" for name in ("detector", "masks")},
        "size": list(size) if size else None,
        **_describe(model, cfg),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        folder = Path(temporary, "model")
        folder.mkdir()
        (folder / "panoptic_runtime.py").write_text(_runtime_source(), "utf-8")
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1), "utf-8")
        if graph_format == "torch-export":
            for program, name in zip(programs, description["files"].values(), strict=True):
                torch.export.save(program, folder / name)
        else:
            _write_onnx(programs, folder)
        inputs = [prepare_image(image, description) for image in int8_images]
        if graph_format == "openvino":
            _to_openvino(folder, half, inputs)
        elif half:
            _halve(folder)
        elif int8:
            _quantize_onnx(folder, inputs)
        if output.exists():
            output.rmdir()
        folder.rename(output)
    return output


def export_weights(
    cfg: CfgNode, output: str | os.PathLike, *, int8_images: str | None = None, **options: Any
) -> Path:
    """Call :func:`export_model` with the ``MODEL.WEIGHTS`` of a config and a folder of images."""
    paths = runtime.find_images([int8_images]) if int8_images else []
    model = build_model(cfg).eval()
    PanopticCheckpointer(model).load(cfg.MODEL.WEIGHTS, complete=True)
    images = [read_image(path, "RGB") for path in paths]
    return export_model(model, cfg, output, int8_images=images, **options)


def _describe(model: PanopticDETR, cfg: CfgNode) -> dict[str, Any]:
    """Return the part of ``panoptic.json`` that does not depend on the format."""
    metadata = MetadataCatalog.get((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])
    colors = metadata.get("thing_colors") or metadata.get("stuff_colors")
    classes = zip(model.dataset_ids, model.class_names, strict=True)
    rule = model.panoptic_inference
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return {
        "classes": [
            {
                "id": dataset_id,
                "name": name,
                "isthing": bool(model.is_thing[i]),
                "color": [int(c) for c in colors[i]] if colors else None,
            }
            for i, (dataset_id, name) in enumerate(classes)
        ],
        "rule": type(rule).__name__,
        "score_thresh": rule.score_thresh,
        "min_segment_area": rule.min_segment_area,
        "overlap_thresh": rule.overlap_thresh,
        "channels": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "official_sizes": cfg.INPUT.OFFICIAL_SIZES,
        "opset": OPSET,
        "versions": {"detr_panoptic_d2": __version__, "torch": torch.__version__},
        "weights_sha256": digest.hexdigest(),
    }


def _runtime_source() -> str:
    """Return the source of ``panoptic_runtime.py``."""
    lines = [f'"""{runtime.__doc__}"""\n\n']
    for name in runtime.MODULES:
        path = Path(runtime.__file__).with_name(f"{name}.py")
        lines += path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("from ."))


def _write_onnx(programs: tuple, folder: Path) -> None:
    _import("onnxscript")
    detector, masks = programs
    options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    for program, name, inputs, outputs in (
        (detector, "detector", ["image"], DETECTOR_OUTPUTS),
        (masks, "masks", MASK_INPUTS, ["mask_logits"]),
    ):
        graph = torch.onnx.export(
            program, input_names=list(inputs), output_names=list(outputs), **options
        )
        graph.save(str(folder / f"{name}.onnx"))


def _halve(folder: Path) -> None:
    """Convert ONNX graphs to float16, with float32 inputs and outputs."""
    onnx = _import("onnx")
    convert = _import("onnxruntime.transformers.float16").convert_float_to_float16
    for path in map(str, folder.glob("*.onnx")):
        onnx.save(convert(onnx.load(path), keep_io_types=True), path)


def _quantize_onnx(folder: Path, inputs: list[np.ndarray]) -> None:
    """Quantize the detector's convolutions statically; weights per channel."""
    quantization = _import("onnxruntime.quantization")
    images = iter([{"image": image} for image in inputs])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(images, None)

    float_graph = (folder / "detector.onnx").rename(folder / "float.onnx")
    quantization.quantize_static(
        str(float_graph),
        str(folder / "detector.onnx"),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    float_graph.unlink()


def _to_openvino(folder: Path, half: bool, inputs: list[np.ndarray]) -> None:
    """Convert ONNX graphs; quantize the detector with NNCF if there are calibration inputs."""
    openvino = _import("openvino")
    for path in list(folder.glob("*.onnx")):
        graph = openvino.convert_model(str(path))
        if inputs and path.stem == "detector":
            nncf = _import("nncf")
            images = nncf.Dataset(inputs, lambda image: {"image": image})
            # In a thread of its own, for the reason given in the runtime's _load_openvino.
            with ThreadPoolExecutor(1) as pool:
                graph = pool.submit(nncf.quantize, graph, images, subset_size=len(inputs)).result()
        openvino.save_model(graph, path.with_suffix(".xml"), compress_to_fp16=half)
        path.unlink()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"This export needs {name.split('.')[0]}, which is not installed: "
            "pip install '.[export]' in a checkout."
        ) from error
