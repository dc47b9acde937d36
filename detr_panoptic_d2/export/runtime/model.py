"""The network of an exported model, run by ONNX Runtime, OpenVINO or torch.

Shapes: N queries, K classes, H x W the image.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .rule import Segments, assemble, confidence_map, select_queries
from .tiles import Tile, segment_tiled

# File name of the description of an exported model.
DESCRIPTION = "panoptic.json"

Graph = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class PanopticModel:
    """An exported model.

    Args:
        folder: written by ``detr-panoptic export``.
        threads: number of threads of the runtime; None: its default.

    Attributes:
        classes: ``id`` (of the annotation file), ``name``, ``isthing`` and ``color`` per class.
        description: the content of ``panoptic.json``.

    Raises:
        ValueError: a file is missing in the folder.
        ImportError: the runtime is not installed.
    """

    def __init__(self, folder: str | os.PathLike, threads: int | None = None):
        path = Path(folder, DESCRIPTION)
        if not path.is_file():
            raise ValueError(f"'{folder}' is not an exported model: it has no {DESCRIPTION}.")
        self.description = json.loads(path.read_text(encoding="utf-8"))
        self.classes: list[dict] = self.description["classes"]
        files = [Path(folder, self.description["files"][name]) for name in ("detector", "masks")]
        for file in files:
            if not file.is_file():
                raise ValueError(f"'{folder}' is incomplete: '{file.name}' is missing.")
        load = {"onnx": _load_onnx, "openvino": _load_openvino, "torch-export": _load_torch}
        self._detector, self._masks = (
            load[self.description["format"]](str(file), threads) for file in files
        )

    def __call__(
        self, image: np.ndarray, tile: int | None = None, overlap: float = 0.2
    ) -> tuple[np.ndarray, Segments]:
        """Segment an H x W x 3 uint8 RGB image.

        Args:
            tile: segment the image in tiles of this side, in pixels; None: as a whole.
            overlap: smallest part of a tile, from 0 up to 1, that the next tile shares.

        Returns:
            H x W int32 ids (0 is void), and one dict per id: ``id`` from 1, ``category_id`` (of the
            annotation file), ``name``, ``isthing``, ``area`` in pixels and ``score``.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"An image is H x W x 3 uint8, not {image.shape} {image.dtype}.")
        if tile is None:
            return self._segment(image, with_confidence=False)[:2]
        return segment_tiled(self._segment, image, tile, overlap)

    def _segment(self, image: np.ndarray, with_confidence: bool = True) -> Tile:
        outputs = self._detector({"image": prepare_image(image, self.description)})
        logits, hs, features = outputs[0], outputs[2], outputs[3:]
        kept, scores, labels = self.select(logits)
        masks = np.zeros((0, *features[-1].shape[-2:]), np.float32)
        if len(kept):
            names = ("queries", "memory", "map5", "map4", "map3", "map2")
            (masks,) = self._masks(dict(zip(names, (hs[kept], *features), strict=True)))
        size = input_size(*image.shape[:2], self.description)
        queries = (masks, scores, labels, self.description, size)
        ids, segments = assemble(*queries, image.shape[:2])
        confidence = confidence_map(ids, segments, *queries) if with_confidence else None
        return Tile(ids, segments, confidence)

    def select(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return indices, probabilities and classes of the kept queries of N x (K + 1) logits."""
        return select_queries(logits, self.description)


def input_size(height: int, width: int, description: dict[str, Any]) -> tuple[int, int]:
    """Return (H, W) of the network's input for an image of this size."""
    if description["size"]:
        return tuple(description["size"])
    short, longest = description["min_size"], description["max_size"]
    if short == 0:
        return height, width
    if description.get("official_sizes"):
        # Official DETR rounds the shorter side and truncates the longer one.
        shorter, longer = sorted((height, width))
        if longer / shorter * short > longest:
            short = max(1, round(longest * shorter / longer))
        longer = max(1, int(short * longer / shorter))
        return (short, longer) if height < width else (longer, short)
    scale = short / min(height, width)
    new = [short, scale * width] if height < width else [scale * height, short]
    if max(new) > longest:
        new = [n * (longest / max(new)) for n in new]
    return max(1, int(new[0] + 0.5)), max(1, int(new[1] + 0.5))


def prepare_image(image: np.ndarray, description: dict[str, Any]) -> np.ndarray:
    """Return the detector's input, 1 x 3 x H' x W' float32 with values 0..255."""
    size = input_size(*image.shape[:2], description)
    resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    if description["channels"] == "BGR":
        resized = resized[:, :, ::-1]
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[None], np.float32)


def _load_onnx(path: str, threads: int | None) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _load_openvino(path: str, threads: int | None) -> Graph:
    import openvino

    # By default OpenVINO computes in bfloat16 if the CPU supports it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    # OpenVINO gives the thread that loads its CPU plugin a signal stack and frees it with the
    # model. Python's signal handlers, such as that of torch's DataLoader, would still use it, and
    # the process would crash when a child ends. Hence a thread of its own.
    with ThreadPoolExecutor(1) as pool:
        compiled = pool.submit(openvino.Core().compile_model, path, "CPU", options).result()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = compiled(inputs)
        return [results[output] for output in compiled.outputs]

    return run


def _load_torch(path: str, threads: int | None) -> Graph:
    import torch

    if threads:
        torch.set_num_threads(threads)
    program = torch.export.load(path).module()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            results = program(*map(torch.from_numpy, inputs.values()))
        return [x.numpy() for x in (results if isinstance(results, tuple | list) else [results])]

    return run
