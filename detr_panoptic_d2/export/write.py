"""Write an exported model: a folder with both graphs, their description and the runtime."""

import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .._version import __version__
from ..data.metadata import dataset_ids, thing_class_ids
from ..errors import UserError, check_value
from ..modeling.meta_arch import PanopticDETR
from . import runtime
from .graphs import DETECTOR_OUTPUTS, MASK_INPUTS, MAX_SIZE, MIN_SIZE, export_programs

OPSET = 20
# Format -> suffix of the graphs' files and the packages that write it.
FORMATS = {
    "onnx": (".onnx", ("onnx", "onnxscript")),
    "openvino": (".xml", ("onnx", "onnxscript", "openvino")),
    "torch-export": (".pt2", ()),
}


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
    """Export a model with its weights; the folder appears only when it is whole.

    Args:
        model: stays as it is.
        cfg: of the model: data set, input size and thresholds.
        output: folder to make.
        graph_format: one of ``FORMATS``.
        half: weights (ONNX: computations too) in float16.
        int8_images: H x W x 3 uint8 RGB; if there are any, the detector's convolutions are
            quantised to int8 with the ranges that these images give.
        size: (H, W) of the network's input; None: any, as the config resizes.

    Returns:
        the folder.

    Raises:
        UserError: the model or the combination cannot be exported, a package is missing, or the
            folder is there already.
    """
    output = Path(output)
    check_value("--format", graph_format, graph_format in FORMATS, f"one of {', '.join(FORMATS)}")
    if graph_format == "torch-export" and (half or len(int8_images)):
        raise UserError("--half and --int8 go with --format onnx or openvino, not torch-export.")
    if half and len(int8_images):
        raise UserError("--half and --int8 exclude each other.")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty: remove it, or choose another --output.")
    suffix, packages = FORMATS[graph_format]
    for package in packages:
        _import(package)
    if size is None:
        _check_sizes(cfg)
    programs = export_programs(model, size)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        description = _describe(model, cfg, graph_format, size)
        description["precision"] = "float16" if half else "int8" if len(int8_images) else "float32"
        description["files"] = {"detector": f"detector{suffix}", "masks": f"masks{suffix}"}
        shutil.copy(runtime.__file__, folder / "panoptic_runtime.py")
        (folder / runtime.DESCRIPTION).write_text(json.dumps(description, indent=1), "utf-8")
        if graph_format == "torch-export":
            for program, name in zip(programs, description["files"].values(), strict=True):
                torch.export.save(program, folder / name)
        else:
            _write_onnx(programs, folder)
            if graph_format == "openvino":
                _onnx_to_openvino(folder, half, _inputs(description, int8_images))
            elif half:
                _halve_onnx(folder)
            elif len(int8_images):
                _quantise_onnx(folder / "detector.onnx", _inputs(description, int8_images))
        folder.chmod(0o755)
        if output.exists():
            output.rmdir()
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return output


def _describe(model: PanopticDETR, cfg: CfgNode, graph_format: str, size) -> dict[str, Any]:
    """What the runtime has to know, and what a reader may want to."""
    metadata = MetadataCatalog.get((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])
    things, names = set(thing_class_ids(metadata)), metadata.thing_classes
    colors = metadata.get("thing_colors") or metadata.get("stuff_colors")
    rule = model.panoptic_inference
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {
        "format_version": runtime.FORMAT_VERSION,
        "format": graph_format,
        "classes": [
            {
                "id": dataset_id,
                "name": names[i],
                "isthing": i in things,
                "color": [int(c) for c in colors[i]] if colors else None,
            }
            for i, dataset_id in enumerate(dataset_ids(metadata))
        ],
        "rule": type(rule).__name__,
        "score_thresh": rule.score_thresh,
        "min_segment_area": rule.min_segment_area,
        "overlap_thresh": rule.overlap_thresh,
        "channels": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "size": list(size) if size else None,
        "opset": OPSET,
        "versions": {"detr_panoptic_d2": __version__, "torch": torch.__version__},
        "weights_sha256": digest.hexdigest(),
    }


def _check_sizes(cfg: CfgNode) -> None:
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if short and not (MIN_SIZE <= short <= longest <= MAX_SIZE):
        raise UserError(
            f"INPUT.MIN_SIZE_TEST is {short} and INPUT.MAX_SIZE_TEST {longest}, but the graphs "
            f"take sizes from {MIN_SIZE} to {MAX_SIZE}: change the keys, or give one --size HxW."
        )


def _inputs(description: dict, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the detector gets of each calibration image."""
    prepared = runtime.PanopticModel.__new__(runtime.PanopticModel)
    prepared.description = description
    return [prepared.prepare(image) for image in images]


def _write_onnx(programs: tuple, folder: Path) -> None:
    names = ((["image"], list(DETECTOR_OUTPUTS)), (list(MASK_INPUTS), ["mask_logits"]))
    for program, name, (inputs, outputs) in zip(
        programs, ("detector", "masks"), names, strict=True
    ):
        graph = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
        graph.save(str(folder / f"{name}.onnx"))


def _halve_onnx(folder: Path) -> None:
    onnx = _import("onnx")
    convert = _import("onnxruntime.transformers.float16").convert_float_to_float16
    for name in ("detector.onnx", "masks.onnx"):
        path = str(folder / name)
        onnx.save(convert(onnx.load(path), keep_io_types=True), path)


def _quantise_onnx(path: Path, inputs: list[np.ndarray]) -> None:
    """Static quantisation of the convolutions; weights per channel."""
    quantization = _import("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._left: Iterator = iter(inputs)

        def get_next(self):
            image = next(self._left, None)
            return None if image is None else {"image": image}

    whole = path.with_suffix(".float.onnx")
    path.rename(whole)
    quantization.quantize_static(
        str(whole),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    whole.unlink()


def _onnx_to_openvino(folder: Path, half: bool, int8_inputs: list[np.ndarray]) -> None:
    openvino = _import("openvino")
    for name in ("detector", "masks"):
        path = folder / f"{name}.onnx"
        graph = openvino.convert_model(str(path))
        if int8_inputs and name == "detector":
            nncf = _import("nncf")
            graph = nncf.quantize(
                graph,
                nncf.Dataset(int8_inputs, lambda image: {"image": image}),
                subset_size=len(int8_inputs),
            )
        openvino.save_model(graph, folder / f"{name}.xml", compress_to_fp16=half)
        path.unlink()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"This export needs {name.split('.')[0]}, which is not installed: "
            "pip install 'detr_panoptic_d2[export]'."
        ) from error
