"""Time and memory of the model, against itself without masks and against Hugging Face's DETR.

    python tools/benchmark --config-file detr_panoptic_R50.yaml --against huggingface \\
        --work inference,training --device cpu --markdown out.md [KEY VALUE ...]

Weights are random and the same on all sides; MODEL.WEIGHTS is not read. That the results agree is
checked before anything is timed; where they do not, the exit status is 1. See docs/benchmarks.md.
"""

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path

import torch
from detectron2.utils.logger import setup_logger
from exported import Exported
from measure import PRECISIONS, describe_machine
from pictures import draw_curves
from tables import report
from works import Curves, Inference, Training

from detr_panoptic_d2.checkpoint.atomic import atomic_file
from detr_panoptic_d2.errors import UserError, one_line_errors

logger = logging.getLogger("detr_panoptic_d2.benchmark")
WORKS = {
    "inference": Inference,
    "training": Training,
    "curves": Curves,
    "exported": Exported,
}


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(map(int, found.groups())) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH of at least 32x32")
    return int(found[1]), int(found[2])


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _works(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - WORKS.keys():
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}: known are {', '.join(WORKS)}")
    return names


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, help="path, or name of a shipped config")
    parser.add_argument("--against", choices=["huggingface"], help="compare with others as well")
    parser.add_argument(
        "--work",
        type=_works,
        default=["inference", "training"],
        help=f"some of {', '.join(WORKS)}, by commas (default: inference,training)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile all sides")
    parser.add_argument(
        "--size",
        type=_size,
        help="HEIGHTxWIDTH of the network's input; default: 800x1066, in training 480x640",
    )
    parser.add_argument("--batch", type=_count, help="images; default: 1, in training 2")
    parser.add_argument("--kept", type=_count, help="kept queries; default: 15")
    parser.add_argument("--segments", type=_count, default=11, help="annotated ones per image")
    parser.add_argument(
        "--repeats", type=_count, help="timed rounds; default: 5 on a CPU, 20 on a GPU"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of this process, all threads together, in place of the time that "
        "passes: for ratios on a busy machine (CPU only)",
    )
    parser.add_argument(
        "--exported", type=Path, help="folder that keeps the graphs of work exported for later runs"
    )
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    parser.add_argument("--picture", type=Path, help="draw work curves to this PNG")
    parser.add_argument(
        "opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="change the config"
    )
    return parser.parse_args()


def fill_in(options: argparse.Namespace) -> None:
    """Choose what was not given.

    Raises:
        UserError: options do not fit together or the machine.
    """
    cuda = torch.cuda.is_available()
    options.device = options.device or ("cuda" if cuda else "cpu")
    on_gpu = options.device == "cuda"
    options.repeats = options.repeats or (20 if on_gpu else 5)
    if on_gpu and not cuda:
        raise UserError("--device is cuda, but PyTorch finds no GPU: use --device cpu.")
    if options.dtype == "tf32" and not on_gpu:
        raise UserError("--dtype is tf32, which only GPUs have: use float32 or bfloat16.")
    if options.cpu_time and on_gpu:
        raise UserError("--cpu-time says nothing of a GPU: leave it out, or use --device cpu.")
    if options.picture and "curves" not in options.work:
        raise UserError("--picture draws work curves: add it to --work.")


def main() -> int:
    """Check, measure, print, and write the files that are asked for; return the exit status."""
    options = parse_args()
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    # The profiler, which records memory on a CPU, would write of its start and end to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with one_line_errors():
        fill_in(options)
        results = {}
        for name in options.work:
            logger.info("%s: checking that all sides agree, then measuring", name)
            work = WORKS[name](options)
            results[name] = {"agreement": work.check(), **work.measure()}
        keys = ("config_file", "opts", "against", "device", "dtype", "compile", "repeats")
        settings = {key: getattr(options, key) for key in keys}
        settings["clock"] = "processor time" if options.cpu_time else "wall time"
        head = {"machine": describe_machine(torch.device(options.device)), "settings": settings}
        text = report(head, results, ["python", "tools/benchmark", *sys.argv[1:]])
        print(text)
        content = json.dumps({**head, "results": results}, indent=2)
        for path, written in ((options.json, content), (options.markdown, text)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(path) as file:
                    file.write(written)
        if options.picture is not None:
            draw_curves(results["curves"], options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
