"""All measurements on a GPU, one after the other within a given time; see gpu.sh.

Parts: precision, inference, training, loader, profile, compiled. Each result is written as soon as
it is there; parts for which no time is left are named under ``left_out``.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from feed import loader_rates
from gpu_profile import host_waits, top_of
from gpu_tables import gpu_report, put_into_page
from measure import describe_machine, precision
from networks import add_segments, best_queries, build, keep_best, make_images
from works import (
    BOXES,
    OURS,
    THEIR_BOXES,
    THEIRS,
    TOLERANCE,
    Inference,
    Training,
    keep_statistics,
    no_dropout,
)

from detr_panoptic_d2.checkpoint.atomic import atomic_file
from detr_panoptic_d2.errors import UserError, one_line_errors


class Run:
    """Sizes of a run: of a GPU, or tiny ones for a dry run on a CPU."""

    def __init__(self, tiny: bool):
        self.tiny = tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.config_file = "shapes/tiny.yaml" if tiny else "detr_panoptic_R50.yaml"
        self.size, self.kept, self.segments = (64, 96), 3, 3
        self.batches, self.training_batches = (1, 2), (1, 2)
        self.repeats, self.images, self.workers = 1, 4, (0,)
        self.formats, self.compile = ("float32", "bfloat16"), False
        if not tiny:
            self.size, self.kept, self.segments = (800, 1066), 15, 11
            self.batches, self.training_batches = (1, 8), (2, 4, 8, 16)
            self.repeats, self.images, self.workers = 10, 64, (2, 4, 8)
            self.formats, self.compile = ("float32", "tf32", "bfloat16"), True
        # transformers is an extra.
        try:
            import timm  # noqa: F401
            import transformers  # noqa: F401

            self.against = None if tiny else "huggingface"
        except ImportError:
            self.against = None

    def options(self, **changes) -> Namespace:
        """As the command line of ``tools/benchmark`` gives them."""
        values = {
            "config_file": self.config_file,
            "opts": [],
            "against": None,
            "device": self.device.type,
            "dtype": "float32",
            "compile": False,
            "size": self.size,
            "batch": 1,
            "kept": self.kept,
            "segments": self.segments,
            "repeats": self.repeats,
            "cpu_time": False,
        }
        return Namespace(**{**values, **changes})


@torch.no_grad()
def precision_part(run: Run) -> dict:
    """How far the device's results are from the CPU's, and 16 bits from 32: outputs relative to
    the greatest value, the share of equal pixels of the panoptic maps, losses."""
    host = build(run.config_file, [], torch.device("cpu"))
    device = copy.deepcopy(host).to(run.device)
    for model in (host, device):
        keep_best(model, run.kept)
        keep_statistics(model)
    exact = _results(host, run, "float32", None)
    kept = exact.pop("kept")
    here = _results(device, run, "float32", kept)
    compared = {"float32, device against CPU": _compare(here, exact)}
    for name in run.formats[1:]:
        other = _results(device, run, name, kept)
        compared[f"{name} against float32, both on the device"] = _compare(other, here)
    worst = max(compared["float32, device against CPU"][x] for x in ("class logits", "mask logits"))
    return {"compared": compared, "float32_agrees": worst <= TOLERANCE}


def _results(model, run: Run, dtype: str, kept) -> dict:
    """Outputs for given queries, the panoptic map, and the losses without dropout."""
    device = model.device
    images = make_images(1, run.size, device)
    with precision(dtype, device):
        out = model.detect(model.preprocess(images))
        chosen = best_queries(out.pred_logits[-1], run.kept).cpu() if kept is None else kept
        masks = model.predict_masks(out, *chosen.nonzero(as_tuple=True))
        (result,) = model(images)
        model.train()
        try:
            with no_dropout(model):
                losses = model(add_segments(images, run.segments, model.num_classes))
        finally:
            model.eval()
    found = {
        "class logits": out.pred_logits[-1],
        "boxes": out.pred_boxes[-1],
        "mask logits": masks,
        "panoptic": result["panoptic_seg"][0],
        "total loss": sum(losses.values()),
    }
    found = {name: value.double().cpu() for name, value in found.items()}
    return found if kept is not None else {**found, "kept": chosen}


def _compare(found: dict, expected: dict) -> dict[str, float]:
    result = {}
    for name, value in expected.items():
        if name == "panoptic":
            result["equal pixels"] = float((found[name] == value).double().mean())
        else:
            scale = value.abs().max().clamp(min=1)
            result[name] = float((found[name] - value).abs().max() / scale)
    return result


def inference_part(run: Run) -> Iterator[dict]:
    """Boxes and panoptic in every number format and batch, Hugging Face beside."""
    work = Inference(run.options(against=run.against))
    agreement = work.check()
    for dtype in run.formats:
        for batch in run.batches:
            work.options.dtype, work.options.batch = dtype, batch
            # Hugging Face's masks of all queries of 8 images need more memory than a card has.
            work.sides = {OURS, BOXES, THEIR_BOXES} | ({THEIRS} if batch == 1 else set())
            yield {"dtype": dtype, "batch": batch, "agreement": agreement, **work.measure()}


@torch.no_grad()
def compiled_part(run: Run) -> Iterator[dict]:
    """The last number format compiled, beside the same not compiled.

    Float32 is not checked, which would compile everything once more: the panoptic maps of the two
    are compared, in the number format that is timed.
    """
    dtype = run.formats[-1]
    work = Inference(run.options(compile=run.compile, dtype=dtype))
    plain = work.not_compiled or work.ours
    for batch in run.batches:
        work.options.batch = batch
        images = make_images(batch, run.size, run.device)
        with precision(dtype, run.device):
            maps = [model(images)[0]["panoptic_seg"][0] for model in (work.ours, plain)]
        equal = float((maps[0] == maps[1]).double().mean())
        measured = work.measure()
        yield {"dtype": f"{dtype}, compiled", "batch": batch, "equal pixels": equal, **measured}
    torch.compiler.reset()


def training_part(run: Run) -> Iterator[dict]:
    """Steps of growing batches, boxes and panoptic; Hugging Face beside the smallest."""
    for batch in run.training_batches:
        smallest = batch == run.training_batches[0]
        work = Training(run.options(batch=batch, against=run.against if smallest else None))
        agreement = work.check() if smallest else {}
        for dtype in run.formats:
            work.options.dtype = dtype
            work.sides = {OURS, BOXES} | ({THEIRS, THEIR_BOXES} if smallest else set())
            yield {"dtype": dtype, "batch": batch, "agreement": agreement, **work.measure()}
        del work
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def loader_part(run: Run) -> list[dict]:
    """Images per second of the loader alone, and how long a training step waits for it."""
    batch = run.training_batches[-1]
    work = Training(run.options(batch=batch, dtype=run.formats[-1]))
    step = work.step_on_batches(work.ours)
    with tempfile.TemporaryDirectory() as folder, precision(work.options.dtype, run.device):
        return loader_rates(run, batch, step, Path(folder))


def profile_part(run: Run) -> dict:
    """Where time goes in inference and in a training step, and where the host waits."""
    found = {}
    inference = Inference(run.options())
    images = make_images(run.batches[-1], run.size, run.device)
    training = Training(run.options(batch=run.training_batches[0]))
    step = training.step_on_batches(training.ours)

    @torch.no_grad()
    def infer():
        inference.ours(images)

    dtype = run.formats[-1]
    for name, call in (("inference", infer), ("training", lambda: step(training.inputs))):
        with precision(dtype, run.device):
            call()
            found[name] = {
                "dtype": dtype,
                "top": top_of(call, run.device),
                "host waits": host_waits(call, run.device),
            }
    return found


# Part -> what it does, and the seconds that it needs at least on a card.
PARTS: dict[str, tuple[Callable, float]] = {
    "precision": (precision_part, 30),
    "inference": (inference_part, 60),
    "training": (training_part, 60),
    "loader": (loader_part, 40),
    "profile": (profile_part, 30),
    # Last, because nobody knows how long compiling takes.
    "compiled": (compiled_part, 60),
}


def main() -> int:
    """Measure, and write what there is after every result; 1 if float32 is not the CPU's."""
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--tiny", action="store_true", help="dry run on a CPU")
    parser.add_argument("--seconds", type=float, default=500, help="time for everything")
    parser.add_argument("--page", type=Path, help="put the tables between this page's marks")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; repeatable")
    options = parser.parse_args()
    # The profiler would write of its start and end to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with one_line_errors():
        if not (options.tiny or torch.cuda.is_available()):
            raise UserError("PyTorch finds no GPU: --tiny runs the same steps on a CPU.")
        return measure(Run(options.tiny), options)


def measure(run: Run, options: argparse.Namespace) -> int:
    """Run all parts that there is time for."""
    end = time.monotonic() + options.seconds
    content = {"machine": describe_machine(run.device), "tiny": run.tiny, "left_out": []}
    content["settings"] = {"config": run.config_file, "size": run.size, "kept": run.kept}
    options.output.mkdir(parents=True, exist_ok=True)

    def write():
        text = gpu_report(content)
        for name, written in (("gpu.json", json.dumps(content, indent=1)), ("gpu.md", text)):
            with atomic_file(options.output / name) as file:
                file.write(written)
        return text

    for name in options.part or PARTS:
        part, least = PARTS[name]
        if time.monotonic() + (0 if run.tiny else least) > end:
            content["left_out"].append(name)
            continue
        start = time.monotonic()
        try:
            result = part(run)
            if isinstance(result, Iterator):
                rows = content[name] = []
                for row in result:
                    rows.append(row)
                    write()
                    if time.monotonic() > end:
                        content["left_out"].append(f"rest of {name}")
                        break
            else:
                content[name] = result
        except (torch.OutOfMemoryError, UserError) as error:
            # The other parts are worth having; the page says what is missing.
            content["left_out"].append(f"{name}: {str(error).splitlines()[0]}")
        except KeyboardInterrupt:
            # gpu.sh ends what takes too long.
            content["left_out"].append(f"rest of {name} and what follows: interrupted")
            break
        content.setdefault("seconds", {})[name] = time.monotonic() - start
        write()
    text = write()
    sys.stdout.write(text)
    if options.page:
        put_into_page(text, options.page)
    agrees = content.get("precision", {}).get("float32_agrees", True)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
