"""Exported models beside the eager one and Hugging Face's own ONNX graph."""

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import huggingface
import numpy as np
import torch
from measure import Clock, ratio, require_close, time_interleaved
from networks import best_queries, build, keep_best, make_images
from resident import eager, keep_exactly, onnx_session
from torch import nn
from works import TOLERANCE

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.export import export_model
from detr_panoptic_d2.export.runtime import PanopticModel

EAGER, ONNX, OPENVINO, THEIRS = "eager", "ONNX Runtime", "OpenVINO", "Hugging Face, ONNX Runtime"
# Side -> folder of its graphs, format, int8.
_EXPORTS = {
    ONNX: ("onnx", "onnx", False),
    OPENVINO: ("openvino", "openvino", False),
    f"{ONNX}, int8": ("onnx_int8", "onnx", True),
    f"{OPENVINO}, int8": ("openvino_int8", "openvino", True),
}
_PAIRS = (
    (ONNX, EAGER),
    (OPENVINO, EAGER),
    (f"{ONNX}, int8", ONNX),
    (f"{OPENVINO}, int8", OPENVINO),
    (THEIRS, EAGER),
    (THEIRS, ONNX),
    (THEIRS, OPENVINO),
)
_CALIBRATION_IMAGES = 4


class Exported:
    """From a uint8 image in memory to its panoptic map: resizing, network, post-processing.

    Args:
        options: of the command line; ``exported`` is a folder in which the graphs are kept, or
            found from an earlier run. None: they are made and thrown away.
    """

    def __init__(self, options: Namespace):
        if (options.device, options.dtype, options.compile) != ("cpu", "float32", False):
            raise UserError("Work exported needs --device cpu and --dtype float32, not --compile.")
        self.options, self.opts = options, [*map(str, options.opts)]
        self.threads = torch.get_num_threads()
        self.size = options.size or (800, 1066)
        self.ours = build(options.config_file, self.opts, torch.device("cpu"))
        self.kept = options.kept or min(15, self.ours.query_embed.num_embeddings)
        keep_best(self.ours, self.kept)
        small = (round(0.6 * self.size[0]), round(0.6 * self.size[1]))
        self.image, *self.calibration = _arrays(1 + _CALIBRATION_IMAGES, small)
        kept_folder = options.exported
        with nullcontext(kept_folder) if kept_folder else tempfile.TemporaryDirectory() as folder:
            self._load(Path(folder))
        self.ours.fold_for_inference()

    def _load(self, folder: Path) -> None:
        """Export what is not there yet, and load it."""
        cfg = setup_cfg(self.options.config_file, self.opts)
        self.runtimes, self.session, self.memory = {}, None, {}
        self.memory[EAGER] = self._resident("eager", self.options.config_file, *self.opts)
        for side, (name, graph_format, int8) in _EXPORTS.items():
            if not (folder / name).exists():
                images = self.calibration if int8 else ()
                export_model(
                    self.ours, cfg, folder / name, graph_format=graph_format, int8_images=images
                )
            model = keep_exactly(PanopticModel(folder / name, self.threads), self.kept)
            model.description["size"] = list(self.size)
            self.runtimes[side] = model
            self.memory[side] = self._resident("runtime", folder / name)
        if self.options.against:
            path = folder / f"huggingface_{self.size[0]}x{self.size[1]}" / "model.onnx"
            if not path.exists():
                export_huggingface(huggingface.build(self.ours), self.size, path)
            self.session = onnx_session(path, self.threads)
            self.memory[THEIRS] = self._resident("huggingface", path)

    def _resident(self, kind: str, path: str | Path, *opts: str) -> float:
        """Bytes that a process of its own needs for one image."""
        numbers = (*self.size, self.kept, self.threads)
        words = [kind, path, *numbers, *opts]
        command = [sys.executable, Path(__file__).with_name("resident.py"), *words]
        run = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{command}: {run.stderr}")
        return float(run.stdout.splitlines()[-1]) * 2**20

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compare class logits, boxes and mask logits of one input; int8 is not held to it.

        Raises:
            UserError: they differ.
        """
        prepared = self.runtimes[ONNX].prepare(self.image)
        out = self.ours.detect(self.ours.preprocess([{"image": torch.from_numpy(prepared[0])}]))
        kept = best_queries(out.pred_logits[-1], self.kept)
        masks = self.ours.predict_masks(out, *kept.nonzero(as_tuple=True))
        expected = (out.pred_logits[-1, 0], out.pred_boxes[-1, 0], masks)
        found = {}
        sides = {side: _outputs(m, prepared, kept[0]) for side, m in self.runtimes.items()}
        if self.session is not None:
            pixels = self.ours.preprocess([{"image": torch.from_numpy(prepared[0])}]).tensor
            logits, boxes, masks = self._run_theirs(pixels)
            logits = huggingface.logits_of_our_classes(self.ours, logits)
            sides[THEIRS] = (logits[0], boxes[0], masks[kept])
        for side, values in sides.items():
            tolerance = float("inf") if "int8" in side else TOLERANCE
            for part, a, b in zip(
                ("class logits", "boxes", "mask logits"), expected, values, strict=True
            ):
                name = f"{part}, {side}"
                found[name] = require_close(name, a, b, tolerance)
        return found

    def _run_theirs(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        outputs = self.session.run(None, {"pixel_values": pixels.numpy()})
        return [torch.from_numpy(x) for x in outputs]

    @torch.no_grad()
    def measure(self) -> dict:
        """Times, ratios, and the resident memory of a process of its own for each side."""
        run = eager(self.ours, self.size)
        variants: dict[str, Callable[[], object]] = {EAGER: lambda: run(self.image)}
        for side, model in self.runtimes.items():
            variants[side] = lambda model=model: model(self.image)
        if self.session is not None:
            variants[THEIRS] = self._theirs()
        clock = Clock(torch.device("cpu"), self.options.cpu_time)
        times = time_interleaved(variants, clock, self.options.repeats)
        pairs = [(a, b) for a, b in _PAIRS if a in times and b in times]
        return {
            "settings": {"size": self.size, "kept": self.kept, "memory": "of a whole process"},
            "times": times,
            "ratios": {f"{a} / {b}": ratio(times, a, b) for a, b in pairs},
            "memory": self.memory,
        }

    def _theirs(self) -> Callable[[], object]:
        """Hugging Face's image processor, their graph, their post-processing."""
        from transformers import DetrImageProcessor

        size = {"height": self.size[0], "width": self.size[1]}
        processor = DetrImageProcessor(size=size, do_pad=False)
        pixels = self.ours.preprocess(make_images(1, self.size, torch.device("cpu"))).tensor
        kept = best_queries(
            huggingface.logits_of_our_classes(self.ours, self._run_theirs(pixels)[0]), self.kept
        )

        def run():
            pixels = processor(images=self.image, return_tensors="pt")["pixel_values"]
            logits, boxes, masks = self._run_theirs(pixels)
            outputs = SimpleNamespace(logits=logits, pred_boxes=boxes, pred_masks=masks)
            return huggingface.post_process(self.ours, outputs, kept, self.image.shape[:2])

        return run


def _arrays(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    images = make_images(count, size, torch.device("cpu"))
    return [np.ascontiguousarray(x["image"].permute(1, 2, 0).numpy()) for x in images]


def _outputs(model: PanopticModel, prepared: np.ndarray, kept: torch.Tensor) -> tuple:
    """Class logits, boxes and the mask logits of chosen queries, of an exported model."""
    logits, boxes, hs, *features = model._detector({"image": prepared})
    names = ("memory", "map5", "map4", "map3", "map2")
    inputs = {"queries": hs[kept.numpy()], **dict(zip(names, features, strict=True))}
    return tuple(torch.from_numpy(x) for x in (logits, boxes, *model._masks(inputs)))


def export_huggingface(theirs: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Write ``DetrForSegmentation`` as an ONNX graph: one size, the masks of all queries."""

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = theirs

        def forward(self, pixel_values):
            out = self.model(pixel_values)
            return out.logits, out.pred_boxes, out.pred_masks

    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            Graph().eval(),
            (torch.zeros(1, 3, *size),),
            str(path),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=["logits", "pred_boxes", "pred_masks"],
        )
