"""Panoptic segmentation with an exported model: NumPy and ONNX Runtime or OpenVINO, nothing else.

This file needs no other file of its package: ``detr-panoptic export`` copies it into the folder of
the exported model, and from there into a product. Pillow is wanted only to open image files.

    from panoptic_runtime import PanopticModel
    model = PanopticModel("exported")
    ids, segments = model(image)          # H x W x 3 uint8, RGB

or, from the shell, with COCO panoptic json and PNGs as the result,

    python panoptic_runtime.py exported *.jpg --output out

Shapes: Q kept queries, K classes, h x w the mask grid, H x W the image.
"""

import argparse
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

# What the description of an exported model is called.
DESCRIPTION = "panoptic.json"
# Values of upsampled mask logits held at one time.
_VALUES_PER_STRIP = 2**22
# Pillow computes with weights of this many binary places.
_PILLOW_BITS = 22

Segments = list[dict[str, Any]]
Graph = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class PanopticModel:
    """An exported model.

    Args:
        folder: what ``detr-panoptic export`` wrote.
        threads: of the runtime; None: its own choice.

    Attributes:
        classes: ``id`` (of the annotation file), ``name``, ``isthing`` and ``color`` per class.
        description: all of ``panoptic.json``.

    Raises:
        ValueError: the folder is not whole.
        ImportError: its runtime is not installed.
    """

    def __init__(self, folder: str | os.PathLike, threads: int | None = None):
        path = Path(folder, DESCRIPTION)
        if not path.is_file():
            raise ValueError(f"{folder} is no exported model: it has no {DESCRIPTION}.")
        self.description = json.loads(path.read_text(encoding="utf-8"))
        self.classes: list[dict] = self.description["classes"]
        files = self.description["files"]
        missing = [name for name in files.values() if not Path(folder, name).is_file()]
        if missing:
            raise ValueError(f"{folder} is not whole: {missing} are missing. Export it again.")
        load = {"onnx": _load_onnx, "openvino": _load_openvino, "torch-export": _load_torch}
        self._detector, self._masks = (
            load[self.description["format"]](str(Path(folder, files[name])), threads)
            for name in ("detector", "masks")
        )

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, Segments]:
        """Segment one image.

        Args:
            image: H x W x 3 uint8, RGB.

        Returns:
            ids: H x W int32; 0 is void.
            segments: one dict per id: ``id`` from 1, ``category_id`` (of the annotation file),
            ``name``, ``isthing``, ``area`` in pixels and ``score``.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"An image is H x W x 3 uint8, not {image.shape} {image.dtype}.")
        outputs = self._detector({"image": self.prepare(image)})
        logits, hs, features = outputs[0], outputs[2], outputs[3:]
        kept, scores, labels = self.select(logits)
        masks = np.zeros((0, *features[-1].shape[-2:]), np.float32)
        if len(kept):
            names = ("memory", "map5", "map4", "map3", "map2")
            inputs = {"queries": hs[kept], **dict(zip(names, features, strict=True))}
            (masks,) = self._masks(inputs)
        size = self.input_size(*image.shape[:2])
        return self.assemble(masks, scores, labels, size, image.shape[:2])

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the network's input for an image of this size, as the config resizes."""
        if self.description["size"]:
            return tuple(self.description["size"])
        short, longest = self.description["min_size"], self.description["max_size"]
        if short == 0:
            return height, width
        if self.description.get("official_sizes"):
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

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The detector's input of an image: 1 x 3 x H' x W' float32, 0..255."""
        resized = resize(image, self.input_size(*image.shape[:2]))
        if self.description["channels"] == "BGR":
            resized = resized[:, :, ::-1]
        return np.ascontiguousarray(resized.transpose(2, 0, 1)[None], np.float32)

    def select(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The queries of N x (K + 1) logits that count: indices, probabilities, classes."""
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        objects, no_object = probabilities[:, :-1], probabilities[:, -1]
        scores, labels = objects.max(-1), objects.argmax(-1)
        keep = scores > self.description["score_thresh"]
        if self.description["rule"] != "MaskNMSPanopticInference":
            keep &= scores > no_object
        kept = keep.nonzero()[0]
        return kept, scores[kept], labels[kept]

    def assemble(
        self,
        masks: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        size: tuple[int, int],
        output: tuple[int, int],
    ) -> tuple[np.ndarray, Segments]:
        """Apply the panoptic rule that the model was exported with.

        Args:
            masks: Q x h x w logits.
            scores, labels: Q.
            size: (H, W) of the network's input.
            output: (H, W) of the result.
        """
        segments: Segments = []
        stuff: dict[int, dict] = {}
        queries = range(len(masks))
        if self.description["rule"] == "MaskNMSPanopticInference" and len(masks):
            queries = _remove_duplicates(masks, scores, self.description["overlap_thresh"])
            masks = np.log(scores)[:, None, None] - np.logaddexp(0, -masks)
        for query in queries:
            label, score = int(labels[query]), float(scores[query])
            if label in stuff:
                stuff[label]["queries"].append(query)
                stuff[label]["score"] = max(score, stuff[label]["score"])
                continue
            segments.append({"class": self.classes[label], "score": score, "queries": [query]})
            if not self.classes[label]["isthing"]:
                stuff[label] = segments[-1]
        if self.description["rule"] == "OfficialPanopticInference":
            # Merged stuff counts for the first of its queries; the others are dropped as small.
            _share_out(masks, segments, size, output)
            segments = [s for s in segments if s["area"] > self.description["min_segment_area"]]
            segments = [{**s, "queries": s["queries"][:1]} for s in segments]
        elif self._overlap_of_segments:
            _measure_own_masks(masks, segments, size, output)
        owner = _share_out(masks, segments, size, output)
        while dropped := self._failing(segments):
            segments = [segment for segment in segments if segment not in dropped]
            owner = _share_out(masks, segments, size, output)
        table = np.zeros(len(masks) + 1, np.int32)  # the last one is void's
        found = []
        for number, segment in enumerate(segments, start=1):
            table[segment["queries"]] = number
            info = {key: segment["class"][key] for key in ("name", "isthing")}
            info |= {key: segment[key] for key in ("area", "score")}
            found.append({"id": number, "category_id": segment["class"]["id"], **info})
        return table[owner], found

    @property
    def _overlap_of_segments(self) -> float:
        # Mask NMS compares whole masks with this threshold, before segments exist.
        nms = self.description["rule"] == "MaskNMSPanopticInference"
        return 0.0 if nms else self.description["overlap_thresh"]

    def _failing(self, segments: Segments) -> Segments:
        """The segments to drop next: all small ones, or the least certain of the covered ones."""
        overlap = self._overlap_of_segments
        small = [s for s in segments if s["area"] <= self.description["min_segment_area"]]
        if small or overlap == 0:
            return small
        weak = [s for s in segments if s["area"] < overlap * s["own_area"]]
        return sorted(weak, key=lambda s: s["score"])[:1]


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize H x W x 3 uint8 bilinearly with anti-aliasing, pixel by pixel as Pillow does."""
    for axis in (1, 0):
        if image.shape[axis] == size[axis]:
            continue
        moved = np.moveaxis(image, axis, 0)
        result = np.full((size[axis], *moved.shape[1:]), 1 << (_PILLOW_BITS - 1), np.int32)
        for source, weight in _pillow_taps(image.shape[axis], size[axis]):
            result += moved[source] * weight[:, None, None]
        image = np.moveaxis((result >> _PILLOW_BITS).clip(0, 255).astype(np.uint8), 0, axis)
    return image


def _pillow_taps(old: int, new: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each tap of the triangle filter the source index and the fixed-point weight per output
    pixel (Pillow's ``precompute_coeffs`` describes the same numbers)."""
    scale = old / new
    support = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum(0, (centre - support + 0.5).astype(np.int64))
    last = np.minimum(old, (centre + support + 0.5).astype(np.int64))
    taps = first + np.arange((last - first).max())[:, None]
    weights = np.maximum(0, 1 - np.abs((taps - centre + 0.5) / support)) * (taps < last)
    weights = weights / weights.sum(0)
    fixed = (0.5 + weights * (1 << _PILLOW_BITS)).astype(np.int32)
    yield from zip(np.minimum(taps, old - 1), fixed, strict=True)


def _taps(output: int, size: int, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower cell, upper cell and weight of the upper one for each output pixel: the nearest pixel
    of the network's input, on a grid that is upsampled to it bilinearly."""
    pixel = np.floor((np.arange(output) + 0.5) * (size / output)).clip(max=size - 1)
    position = ((pixel + 0.5) * (grid / size) - 0.5).clip(min=0)
    lower = np.floor(position).clip(max=grid - 1).astype(np.int64)
    return lower, (lower + 1).clip(max=grid - 1), (position - lower).astype(np.float32)


def _resized_strips(
    masks: np.ndarray, size: tuple[int, int], output: tuple[int, int]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Mask logits at the output size, some rows at a time: (rows, Q x rows x W)."""
    top, bottom, weight_y = _taps(output[0], size[0], masks.shape[1])
    left, right, weight_x = _taps(output[1], size[1], masks.shape[2])
    step = max(1, _VALUES_PER_STRIP // max(1, len(masks) * output[1]))
    for start in range(0, output[0], step):
        rows = slice(start, min(output[0], start + step))
        low = top[start]
        cells = masks[:, low : bottom[rows.stop - 1] + 1]
        wide = cells[:, :, left]
        wide += (cells[:, :, right] - wide) * weight_x
        strip = wide[:, top[rows] - low]
        strip += (wide[:, bottom[rows] - low] - strip) * weight_y[rows, None]
        yield rows, strip


def _share_out(
    masks: np.ndarray, segments: Segments, size: tuple[int, int], output: tuple[int, int]
) -> np.ndarray:
    """The query of greatest logit at each pixel, -1 without any; sets the segments' ``area``."""
    owner = np.full(output, -1)
    if segments:
        queries = np.array(sorted(q for segment in segments for q in segment["queries"]))
        for rows, strip in _resized_strips(masks[queries], size, output):
            owner[rows] = queries[strip.argmax(0)]
    won = np.bincount(owner.ravel() + 1, minlength=len(masks) + 1)[1:]
    for segment in segments:
        segment["area"] = int(won[segment["queries"]].sum())
    return owner


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _remove_duplicates(masks: np.ndarray, scores: np.ndarray, overlap_thresh: float) -> list[int]:
    """Mask NMS: the indices, ascending, of the queries that remain.

    The order is score times the squared mean probability inside the mask. A query is removed if
    less than ``overlap_thresh`` of its mask is free of the masks before it.
    """
    binary = masks > 0
    areas = binary.sum((1, 2))
    mean_probability = (_sigmoid(masks) * binary).sum((1, 2)) / areas.clip(min=1)
    min_free = np.float32(overlap_thresh) * areas.astype(np.float32)
    covered, remaining = np.zeros_like(binary[0]), []
    for query in np.argsort(-scores * mean_probability**2, kind="stable").tolist():
        free = binary[query] & ~covered
        if areas[query] and free.sum() >= min_free[query]:
            covered |= free
            remaining.append(query)
    return sorted(remaining)


def _measure_own_masks(
    masks: np.ndarray, segments: Segments, size: tuple[int, int], output: tuple[int, int]
) -> None:
    """Set the segments' ``own_area``: pixels where one of their queries has a logit above 0."""
    for segment in segments:
        strips = _resized_strips(masks[segment["queries"]], size, output)
        segment["own_area"] = sum(int((strip > 0).any(0).sum()) for _, strip in strips)


def _load_onnx(path: str, threads: int | None) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def _load_openvino(path: str, threads: int | None) -> Graph:
    import openvino

    # Float32 as exported: by default OpenVINO computes in bfloat16 where the CPU has it.
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    # The thread that loads the CPU plugin gets a signal stack, which is freed with the model while
    # Python's signal handlers go on to use it. torch's DataLoader sets one: the process would
    # crash when a child ends.
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


def png_bytes(ids: np.ndarray) -> bytes:
    """A PNG of segment ids in COCO's colours (id = R + 256 G + 256^2 B)."""
    height, width = ids.shape
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter, 0: none
    rows[:, 1:] = rgb.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def write_coco(
    output: str | os.PathLike,
    classes: list[dict],
    results: Iterable[tuple[str, np.ndarray, Segments]],
) -> Path:
    """Write results in COCO's panoptic format; returns the json's path.

    Args:
        output: folder that receives ``panoptic/*.png`` and ``predictions.json``.
        classes: of the model.
        results: (image file, ids, segments) of each image.
    """
    folder = Path(output, "panoptic")
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id, (source, ids, segments) in enumerate(results, start=1):
        png = f"{image_id:06d}_{Path(source).stem}.png"
        _write(folder / png, png_bytes(ids))
        height, width = ids.shape
        name = Path(source).name
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        keys = ("id", "category_id", "area", "score")
        infos = [{key: segment[key] for key in keys} for segment in segments]
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": infos})
    categories = [{"id": c["id"], "name": c["name"], "isthing": int(c["isthing"])} for c in classes]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return _write(Path(output, "predictions.json"), json.dumps(content).encode())


def _write(path: Path, data: bytes) -> Path:
    """Write a file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    return temporary.replace(path)


def main() -> int:
    """Segment image files from the shell."""
    parser = argparse.ArgumentParser(description="Segment images with an exported model.")
    parser.add_argument("model", help="folder of the exported model")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--output", required=True, help="folder of the results")
    args = parser.parse_args()
    from PIL import Image, ImageOps

    def results() -> Iterator[tuple[str, np.ndarray, Segments]]:
        for path in args.images:
            with Image.open(path) as file:
                image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
            yield path, *model(image)

    try:
        model = PanopticModel(args.model)
        sys.stdout.write(f"{write_coco(args.output, model.classes, results())}\n")
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
