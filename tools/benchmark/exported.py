"""Exported models beside the eager one and Hugging Face's own ONNX graph."""

import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import huggingface
import numpy as np
import onnxruntime
import torch
from detectron2.data.transforms import ResizeTransform
from measure import Clock, measure, require_close
from networks import best_queries, build, keep_best, make_images
from torch import nn
from works import TOLERANCE, network_outputs

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import UserError
from detr_panoptic_d2.export import export_model
from detr_panoptic_d2.export.runtime import PanopticModel
from detr_panoptic_d2.export.runtime.model import prepare_image

EAGER, ONNX, OPENVINO, THEIRS = "eager", "ONNX Runtime", "OpenVINO", "Hugging Face, ONNX Runtime"
ONNX8, OPENVINO8 = f"{ONNX}, int8", f"{OPENVINO}, int8"
_PAIRS = ((ONNX, EAGER), (OPENVINO, EAGER), (ONNX8, ONNX), (OPENVINO8, OPENVINO))
_PAIRS += ((THEIRS, EAGER), (THEIRS, ONNX), (THEIRS, OPENVINO))
_NAMES = ("class logits", "boxes", "mask logits")
# What a process of its own needs for one image, without torch: the kernel's figure in KiB.
_RESIDENT = """
import sys
folder, height, width, kept, threads = sys.argv[1], *map(int, sys.argv[2:])
sys.path.insert(0, folder)
import numpy as np
from panoptic_runtime import PanopticModel
model = PanopticModel(folder, threads)
model.description["size"] = [height, width]
model.select = lambda logits: (np.arange(kept), np.ones(kept, np.float32), np.zeros(kept, int))
model(np.zeros((height // 2, width // 2, 3), np.uint8))
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


class Exported:
    """From a uint8 image in memory to its panoptic map: resizing, network, post-processing.

    Args:
        options: of the command line; ``exported`` is a folder in which the graphs are kept, or
            found from an earlier run. None: they are made and thrown away.
    """

    def __init__(self, options: Namespace):
        if (options.device, options.dtype, options.compile) != ("cpu", ["float32"], False):
            raise UserError("Work exported needs --device cpu and --dtype float32, not --compile.")
        self.options, self.size = options, options.size or (800, 1066)
        self.ours = build(options.config_file, options.opts, torch.device("cpu"))
        self.kept = (options.kept or [min(15, self.ours.query_embed.num_embeddings)])[0]
        keep_best(self.ours, self.kept)
        small = (round(0.6 * self.size[0]), round(0.6 * self.size[1]))
        images = [x["image"] for x in make_images(5, small, torch.device("cpu"))]
        images = [np.ascontiguousarray(x.permute(1, 2, 0).numpy()) for x in images]
        self.image = images[0]
        self.runtimes, self.session, self.memory = {}, None, {}
        kept = options.exported
        with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as folder:
            for side in (ONNX, OPENVINO, ONNX8, OPENVINO8):
                self._load(side, Path(folder), images[1:])
            if options.against:
                path = Path(folder, "huggingface_{}x{}".format(*self.size), "model.onnx")
                if not path.exists():
                    export_huggingface(huggingface.build(self.ours), self.size, path)
                settings = onnxruntime.SessionOptions()
                settings.intra_op_num_threads = torch.get_num_threads()
                # With them a second run of this graph did not fit into 16 GB.
                settings.enable_mem_pattern = settings.enable_cpu_mem_arena = False
                self.session = onnxruntime.InferenceSession(str(path), settings)
        self.ours.fold_for_inference()

    def _load(self, side: str, folder: Path, images: list[np.ndarray]) -> None:
        """Export what is not there yet, load it, and note the memory that it needs."""
        folder = folder / side.replace(" Runtime", "").replace(", ", "_").lower()
        int8 = images if "int8" in side else ()
        if not folder.exists():
            cfg = setup_cfg(self.options.config_file, [*map(str, self.options.opts)])
            form = folder.name.partition("_")[0]
            export_model(self.ours, cfg, folder, graph_format=form, int8_images=int8)
        threads = torch.get_num_threads()
        self.runtimes[side] = PanopticModel(folder, threads)
        self.runtimes[side].description["size"] = list(self.size)
        words = [folder, *self.size, self.kept, threads]
        command = [sys.executable, "-c", _RESIDENT, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        self.memory[side] = 2**10 * int(done.stdout)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compare class logits, boxes and mask logits of one input; int8 is not held to it."""
        prepared = prepare_image(self.image, self.runtimes[ONNX].description)
        images = [{"image": torch.from_numpy(prepared[0])}]
        expected, kept = network_outputs(self.ours, images, self.kept)
        best = expected["class logits"][kept].softmax(-1)[:, :-1].max(-1)
        selected = (kept[0].nonzero()[:, 0].numpy(), best.values.numpy(), best.indices.numpy())
        sides = {}
        for side, model in self.runtimes.items():
            # The queries that ours keeps.
            model.select = lambda logits: selected
            logits, boxes, hs, *features = model._detector({"image": prepared})
            features = dict(zip(("memory", "map5", "map4", "map3", "map2"), features, strict=True))
            masks = model._masks({"queries": hs[selected[0]], **features})
            sides[side] = [torch.from_numpy(x) for x in (logits[None], boxes[None], *masks)]
        if self.session is not None:
            out = self._theirs(self.ours.preprocess(images).tensor)
            logits = huggingface.logits_of_our_classes(self.ours, out.logits)
            sides[THEIRS] = [logits, out.pred_boxes, out.pred_masks[kept]]
        found = {}
        for side, values in sides.items():
            tolerance = float("inf") if "int8" in side else TOLERANCE
            other = dict(zip(_NAMES, values, strict=True))
            found |= require_close(expected, other, side, tolerance)
        return found

    def rows(self) -> Iterator[dict]:
        """Times, ratios, and the memory of a process of its own for each exported side."""
        variants = {EAGER: self._run_eager}
        for side, model in self.runtimes.items():
            variants[side] = lambda model=model: model(self.image)
        if self.session is not None:
            variants[THEIRS] = self._run_theirs
        clock = Clock(torch.device("cpu"), self.options.cpu_time)
        measured = measure(variants, _PAIRS, clock, self.options.repeats)
        case = {"size": "x".join(map(str, self.size)), "kept": self.kept}
        yield {"case": case, **measured, "memory": measured["memory"] | self.memory}

    @torch.no_grad()
    def _run_eager(self):
        resized = ResizeTransform(*self.image.shape[:2], *self.size).apply_image(self.image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        height, width = self.image.shape[:2]
        return self.ours([{"image": tensor, "height": height, "width": width}])

    def _theirs(self, pixels: torch.Tensor) -> SimpleNamespace:
        outputs = self.session.run(None, {"pixel_values": pixels.numpy()})
        names = ("logits", "pred_boxes", "pred_masks")
        return SimpleNamespace(**dict(zip(names, map(torch.from_numpy, outputs), strict=True)))

    def _run_theirs(self):
        """Hugging Face's image processor, their graph, their post-processing."""
        size = {"height": self.size[0], "width": self.size[1]}
        processor = huggingface.processor(size=size, do_pad=False)
        out = self._theirs(processor(images=self.image, return_tensors="pt")["pixel_values"])
        logits = huggingface.logits_of_our_classes(self.ours, out.logits)
        kept = best_queries(logits, self.kept)
        return huggingface.post_process(self.ours, out, kept, self.image.shape[:2])


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
