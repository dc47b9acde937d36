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
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# What the description of an exported model is called, and the form of it that is read here.
DESCRIPTION, FORMAT_VERSION = "panoptic.json", 1
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
        ValueError: the folder is not whole, or of a newer version.
        ImportError: its runtime is not installed.
    """

    def __init__(self, folder: str | os.PathLike, threads: int | None = None):
        path = Path(folder, DESCRIPTION)
        if not path.is_file():
            raise ValueError(f"{folder} is no exported model: it has no {DESCRIPTION}.")
        self.description = json.loads(path.read_text(encoding="utf-8"))
        if self.description["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {self.description['format_version']}, but this "
                f"runtime reads {FORMAT_VERSION}: use the runtime that lies in the folder."
            )
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
        """(H, W) that the network gets an image of this size in, as Detectron2 resizes."""
        if self.description["size"]:
            return tuple(self.description["size"])
        short, longest = self.description["min_size"], self.description["max_size"]
        if short == 0:
            return height, width
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
        scores, labels = probabilities.max(-1), probabilities.argmax(-1)
        keep = (labels != logits.shape[-1] - 1) & (scores > self.description["score_thresh"])
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
        """The panoptic rule of DETR (or of the official code) on mask logits.

        Args:
            masks: Q x h x w logits.
            scores, labels: Q.
            size: (H, W) of the network's input.
            output: (H, W) of the result.
        """
        segments = self._queries_of_segments(labels)
        own_area = None
        owner = np.zeros(output, np.int64)
        overlap = self.description["overlap_thresh"]
        if len(segments) and overlap > 0:
            own_area = np.zeros(len(segments), np.int64)
        for rows, strip in _resized_strips(masks, size, output):
            owner[rows] = strip.argmax(0)
            if own_area is not None:
                inside = strip >= 0
                own_area += [inside[queries].any(0).sum() for queries in segments]
        areas = self._drop(masks, size, owner, own_area, segments, scores)
        table, found = np.zeros(max(1, len(scores)), np.int32), []
        for i, area in areas.items():
            info = self.classes[labels[segments[i][0]]]
            found.append(
                {
                    "id": len(found) + 1,
                    "category_id": info["id"],
                    "name": info["name"],
                    "isthing": info["isthing"],
                    "area": int(area),
                    "score": float(max(scores[q] for q in segments[i])),
                }
            )
            table[segments[i]] = len(found)
        return table[owner], found

    def _queries_of_segments(self, labels: np.ndarray) -> list[list[int]]:
        """One query for a thing, all of its class for stuff."""
        segments: list[list[int]] = []
        stuff: dict[int, list[int]] = {}
        for query, label in enumerate(labels.tolist()):
            if label in stuff:
                stuff[label].append(query)
                continue
            segments.append([query])
            if not self.classes[label]["isthing"]:
                stuff[label] = segments[-1]
        return segments

    def _drop(self, masks, size, owner, own_area, segments, scores) -> dict[int, int]:
        """Drop segments until all that are left pass; changes ``owner`` and ``segments``."""
        least, overlap = self.description["min_segment_area"], self.description["overlap_thresh"]

        def pixels() -> np.ndarray:
            return np.bincount(owner.ravel(), minlength=len(scores))

        if self.description["rule"] == "OfficialPanopticInference" and segments:
            # Merged stuff counts for the first of its queries; the others are dropped as small.
            won = pixels()
            segments[:] = [q[:1] for q in segments if won[q].sum() > least]
            left = [q[0] for q in segments]
            _reassign(masks, size, owner, left)
        alive = dict(enumerate(segments))
        while alive:
            won = pixels()
            areas = {i: int(won[queries].sum()) for i, queries in alive.items()}
            dropped = [i for i, area in areas.items() if area <= least]
            if not dropped and own_area is not None:
                weak = [i for i, area in areas.items() if area < overlap * own_area[i]]
                dropped = sorted(weak, key=lambda i: max(scores[segments[i]]))[:1]
            if not dropped:
                return areas
            for i in dropped:
                del alive[i]
            _reassign(masks, size, owner, sorted(sum(alive.values(), [])))
        return {}


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
    if not len(masks):
        return
    top, bottom, weight_y = _taps(output[0], size[0], masks.shape[1])
    left, right, weight_x = _taps(output[1], size[1], masks.shape[2])
    step = max(1, _VALUES_PER_STRIP // (len(masks) * output[1]))
    for start in range(0, output[0], step):
        rows = slice(start, min(output[0], start + step))
        low = top[start]
        cells = masks[:, low : bottom[rows.stop - 1] + 1]
        wide = cells[:, :, left]
        wide += (cells[:, :, right] - wide) * weight_x
        strip = wide[:, top[rows] - low]
        strip += (wide[:, bottom[rows] - low] - strip) * weight_y[rows, None]
        yield rows, strip


def _reassign(
    masks: np.ndarray, size: tuple[int, int], owner: np.ndarray, alive: list[int]
) -> None:
    """Give the pixels of all other queries to the best of the living; changes ``owner``."""
    if not alive:
        return
    y, x = (~np.isin(owner, alive)).nonzero()
    if not len(y):
        return
    rows = _taps(owner.shape[0], size[0], masks.shape[1])
    columns = _taps(owner.shape[1], size[1], masks.shape[2])
    living = masks[alive]
    step = max(1, _VALUES_PER_STRIP // (4 * len(alive)))
    for start in range(0, len(y), step):
        yy, xx = y[start : start + step], x[start : start + step]
        (top, bottom, wy), (left, right, wx) = ([t[yy] for t in rows], [t[xx] for t in columns])
        upper = living[:, top, left] * (1 - wx) + living[:, top, right] * wx
        lower = living[:, bottom, left] * (1 - wx) + living[:, bottom, right] * wx
        owner[yy, xx] = np.asarray(alive)[(upper * (1 - wy) + lower * wy).argmax(0)]


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
    compiled = openvino.Core().compile_model(path, "CPU", options)

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
        tensors = [torch.from_numpy(value) for value in inputs.values()]
        with torch.no_grad():
            results = program(*tensors)
        results = results if isinstance(results, tuple | list) else [results]
        return [result.numpy() for result in results]

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
        png = f"{Path(source).stem}.png"
        if any(a["file_name"] == png for a in annotations):
            png = f"{Path(source).stem}_{image_id}.png"
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
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
    return path


def main() -> int:
    """Segment image files from the shell."""
    parser = argparse.ArgumentParser(description="Segment images with an exported model.")
    parser.add_argument("model", help="folder of the exported model")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--output", required=True, help="folder of the results")
    parser.add_argument("--threads", type=int, help="threads of the runtime")
    args = parser.parse_args()
    from PIL import Image, ImageOps

    def results() -> Iterator[tuple[str, np.ndarray, Segments]]:
        for path in args.images:
            with Image.open(path) as file:
                image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
            yield path, *model(image)

    try:
        model = PanopticModel(args.model, args.threads)
        sys.stdout.write(f"{write_coco(args.output, model.classes, results())}\n")
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
