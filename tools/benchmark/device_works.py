"""What is to be known of a device beside times: precision, whether the loader feeds it, a profile.

Works as those of ``works.py``.
"""

import copy
import functools
import tempfile
import time
from collections.abc import Iterator

import torch
from measure import difference, host_waits, precision, require_close, top_operators
from networks import add_segments, keep_best, make_images
from torch import nn
from works import TOLERANCE, Training, Work, losses_without_dropout, network_outputs

from detr_panoptic_d2.apps.demo import make_shapes
from detr_panoptic_d2.engine import PanopticTrainer, setup_cfg


class Precision(Work):
    """The device's results in every number format against those of the CPU in float32."""

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compare the device's float32, without TF32, with the CPU's."""
        host = copy.deepcopy(self.ours).cpu()
        self.expected, self.wanted = self.results(host, "float32")
        found, _ = self.results(self.ours, "float32", self.wanted)
        names = ("class logits", "boxes", "mask logits")
        return require_close(found, {x: self.expected[x] for x in names}, "CPU", TOLERANCE)

    @torch.no_grad()
    def rows(self) -> Iterator[dict]:
        for dtype in self.options.dtype:
            found, _ = self.results(self.ours, dtype, self.wanted)
            equal = (found.pop("panoptic") == self.expected["panoptic"]).double().mean()
            figures = {name: difference(x, self.expected[name]) for name, x in found.items()}
            yield {"case": {"dtype": dtype}, "figures": {**figures, "equal pixels": float(equal)}}

    def results(self, model: nn.Module, dtype: str, wanted=None) -> tuple[dict, torch.Tensor]:
        images = make_images(1, self.size, model.device)
        inputs = add_segments(images, self.options.segments, model.num_classes)
        with precision(dtype, model.device):
            found, wanted = network_outputs(model, images, self.kept[0], wanted)
            keep_best(model, self.kept[0])
            found["panoptic"] = model(images)[0]["panoptic_seg"][0].cpu()
            found["total loss"] = sum(losses_without_dropout(model, inputs).values())
        return found, wanted


class Loader(Training):
    """Whether the training loader keeps up with a training, on built-in images of 480 x 480."""

    def check(self) -> dict[str, float]:
        return {}

    def rows(self) -> Iterator[dict]:
        """Images per second of the loader alone and in training, and the share that waits."""
        batch, repeats, dtype = self.batches[0], self.options.repeats, self.options.dtype[0]
        step = self.step(self.ours, dtype)
        with tempfile.TemporaryDirectory() as folder, precision(dtype, self.device):
            paths = make_shapes(folder, "loader", 16, size=480, seed=0)
            opts = ["DATASETS.REGISTER", [{"name": "loader", **paths}], "DATASETS.TRAIN"]
            opts += [("loader",), "DATASETS.TEST", (), "MODEL.DETR.NUM_CLASSES", -1]
            opts = [*self.options.opts, *opts, "SOLVER.IMS_PER_BATCH", batch]
            cfg = setup_cfg(self.options.config_file, [*map(str, opts)]).clone()
            cfg.defrost()
            for cfg.DATALOADER.NUM_WORKERS in self.options.workers:
                loader = iter(PanopticTrainer.build_train_loader(cfg))
                alone, _ = self._seconds(loader, None)
                total, waiting = self._seconds(loader, step)
                figures = {
                    "loader alone, images per second": batch * repeats / alone,
                    "training, images per second": batch * repeats / total,
                    "share waiting for data": waiting / total,
                }
                case = {"workers": cfg.DATALOADER.NUM_WORKERS, "batch": batch}
                yield {"case": case, "figures": figures}

    def _seconds(self, batches: Iterator, step) -> tuple[float, float]:
        """Seconds of some steps after a first one, and those of them that waited for the loader."""
        waiting = start = 0.0
        for turn in range(1 + self.options.repeats):
            if turn == 1:
                start, waiting = time.perf_counter(), 0.0
            before = time.perf_counter()
            images = next(batches)
            waiting += time.perf_counter() - before
            if step is not None:
                step(images)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
        return time.perf_counter() - start, waiting


class Profile(Training):
    """Where time goes in inference and in a training step, and where the host waits for a GPU."""

    def check(self) -> dict[str, float]:
        return {}

    def rows(self) -> Iterator[dict]:
        dtype, inputs = self.options.dtype[0], self.inputs(self.batches[0])
        self.keep(self.kept[0])
        inference = torch.no_grad()(functools.partial(self.ours, inputs))
        training = functools.partial(self.step(copy.deepcopy(self.ours), dtype), inputs)
        for name, run in (("inference", inference), ("training", training)):
            self.ours.eval()
            with precision(dtype, self.device):
                run()
                for row in top_operators(run, self.device):
                    yield {"case": {"work": name, "operator": row.pop("operator")}, "figures": row}
                if self.device.type == "cuda":
                    for place, times in host_waits(run).items():
                        case = {"the host waits in": name, "at": place}
                        yield {"case": case, "figures": {"times": times}}
