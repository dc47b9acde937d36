"""Time and memory of the model, against itself without masks and against Hugging Face's DETR.

    python tools/benchmark --config-file detr_panoptic_R50.yaml --against huggingface \\
        --work inference,training --device cpu --markdown out.md [KEY VALUE ...]

Weights are random and the same on all sides; MODEL.WEIGHTS is not read. That the results agree is
checked before anything is timed; where they do not, the exit status is 1. Several measurements in
one run: --then begins the options of the next; those before the first --then hold for all. See
docs/benchmarks.md.
"""

import argparse
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from data_works import Evaluation, Mapper
from detectron2.utils.logger import setup_logger
from device_works import Loader, Precision, Profile
from measure import PRECISIONS, describe_machine
from pictures import draw_curves
from tables import compare, report
from works import Curves, Inference, Training

from detr_panoptic_d2.errors import UserError, one_line_errors
from detr_panoptic_d2.files import atomic_file

logger = logging.getLogger("detr_panoptic_d2.benchmark")
WORKS = {
    "inference": Inference,
    "training": Training,
    "curves": Curves,
    "precision": Precision,
    "loader": Loader,
    "mapper": Mapper,
    "evaluation": Evaluation,
    "profile": Profile,
    # Imported when it is asked for: it needs the extra "export".
    "exported": None,
}
_PRINTED = ("config_file", "opts", "against", "rule", "device", "compile", "segments", "repeats")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(map(int, found.groups())) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH of at least 32x32")
    return int(found[1]), int(found[2])


def _count(text: str, least: int = 1) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(word) for word in text.split(",")]


def _names(known):
    def read(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)}: known are {', '.join(known)}")
        return text.split(",")

    return read


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """Read one measurement's options."""
    parser = argparse.ArgumentParser(
        prog="benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", required=True, help="path, or name of a shipped config")
    add("--against", choices=["huggingface"], help="compare with others as well")
    text = f"some of {', '.join(WORKS)}, by commas (default: inference,training)"
    add("--work", type=_names(WORKS), default=["inference", "training"], help=text)
    add("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    text = f"some of {', '.join(PRECISIONS)}; the last two are autocast (default: float32)"
    add("--dtype", type=_names(PRECISIONS), default=["float32"], help=text)
    add("--compile", action="store_true", help="ours under torch.compile beside the others")
    add("--rule", help="another panoptic inference with the same weights beside the config's")
    text = "HEIGHTxWIDTH of the network's input; default: 800x1066, in training 480x640"
    add("--size", type=_size, help=text)
    add("--batch", type=_counts, help="images; default: 1, in training 2")
    add("--kept", type=_counts, help="kept queries; default: 15")
    add("--segments", type=_count, default=11, help="annotated ones per image")
    add("--workers", type=_counts, default=[2], help="of work loader")
    add("--repeats", type=_count, help="timed rounds; default: 5 on a CPU, 20 on a GPU")
    text = "processor time of this process, all threads together, in place of the time that passes:"
    add("--cpu-time", action="store_true", help=f"{text} for ratios on a busy machine (CPU only)")
    text = "folder that keeps the graphs of work exported for later runs"
    add("--exported", type=Path, help=text)
    add("--json", type=Path, help="write everything to this file")
    add("--markdown", type=Path, help="write the tables to this file as well")
    add("--picture", type=Path, help="draw work curves to this PNG")
    add("--compare", type=Path, help="an earlier --json: say which ratios have moved")
    add("opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="change the config")
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    options.device = options.device or ("cuda" if cuda else "cpu")
    on_gpu = options.device == "cuda"
    options.repeats = options.repeats or (20 if on_gpu else 5)
    if on_gpu and not cuda:
        raise UserError("--device is cuda, but PyTorch finds no GPU: use --device cpu.")
    if "tf32" in options.dtype and not on_gpu:
        raise UserError("--dtype is tf32, which only GPUs have: use float32 or bfloat16.")
    if options.cpu_time and on_gpu:
        raise UserError("--cpu-time says nothing of a GPU: leave it out, or use --device cpu.")
    return options


def split(arguments: list[str]) -> list[list[str]]:
    """The arguments of each measurement."""
    parts = [[]]
    for word in arguments:
        if word == "--then":
            parts.append([])
        else:
            parts[-1].append(word)
    return [[*parts[0], *part] for part in parts[1:]] or parts


def run(options: argparse.Namespace) -> Iterator[list[dict]]:
    """Check and measure; yields what there is after every row."""
    parts = []
    for name in options.work:
        logger.info("%s: checking that all sides agree, then measuring", name)
        work = (WORKS[name] or importlib.import_module("exported").Exported)(options)
        settings = {key: getattr(options, key) for key in _PRINTED}
        settings["clock"] = "processor time" if options.cpu_time else "wall time"
        part = {"work": name, "settings": settings, "agreement": work.check(), "rows": []}
        parts.append(part)
        for row in work.rows():
            part["rows"].append(row)
            yield parts
        if name == "curves" and options.picture:
            draw_curves(part["rows"], options.picture)


def write(options: argparse.Namespace, parts: list[dict]) -> str:
    """Write the files that are asked for; return the tables."""
    machine = describe_machine(torch.device(options.device))
    text = report(machine, parts, ["python", "tools/benchmark", *sys.argv[1:]])
    content = json.dumps({"machine": machine, "parts": parts}, indent=1)
    for path, written in ((options.json, content), (options.markdown, text)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(written)
    return text


def main() -> int:
    """Check, measure, print, and write the files that are asked for; return the exit status."""
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    # The profiler would write of its start and end to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with one_line_errors():
        measurements = [parse_args(part) for part in split(sys.argv[1:])]
        earlier = measurements[-1].compare
        # It may be the file that is written anew.
        earlier = json.loads(earlier.read_text(encoding="utf-8"))["parts"] if earlier else None
        done, text = [], ""
        for options in measurements:
            parts: list[dict] = []
            for parts in run(options):
                text = write(options, [*done, *parts])
            done += parts
        print(text)
        if earlier:
            print(compare(done, earlier))
    return 0


if __name__ == "__main__":
    sys.exit(main())
