#!/usr/bin/env python
"""Time and memory of the model, against itself without masks and against Hugging Face's DETR.

    tools/benchmark.py --config-file detr_panoptic_R50.yaml --against huggingface \\
        --work inference,training --device cpu --markdown out.md [KEY VALUE ...]

Weights are random and the same on all sides; MODEL.WEIGHTS is not read. That the results agree is
checked before anything is timed; where they do not, the exit status is 1. See docs/benchmarks.md.
"""

import argparse
import logging
import os
import re
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.benchmark import WORKS, Options, run_benchmark
from detr_panoptic_d2.benchmark.machine import PRECISIONS
from detr_panoptic_d2.benchmark.report import (
    head_text,
    markdown_text,
    work_text,
    write_json,
    write_text,
)
from detr_panoptic_d2.engine import check_writable
from detr_panoptic_d2.errors import one_line_errors


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or min(map(int, found.groups())) < 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH of at least 32x32")
    return int(found[1]), int(found[2])


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="path, or name of a shipped config")
    parser.add_argument("--against", choices=["huggingface"], help="compare with others as well")
    parser.add_argument(
        "--work", default=",".join(WORKS), help="some of these, by commas (default: %(default)s)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile all sides")
    parser.add_argument(
        "--size",
        type=_size,
        help="HEIGHTxWIDTH of the network's input; default: 800x1066 for inference, hook and "
        "scaling, 480x640 for training and mapper, 1333x1333 for memory",
    )
    parser.add_argument("--batch", type=int, help="images; default: 1 at inference, 2 in training")
    parser.add_argument(
        "--kept", type=int, help="kept queries; default: 15, hook 20, memory 20, 50 and 100"
    )
    parser.add_argument("--segments", type=int, default=11, help="true segments per image")
    parser.add_argument("--repeats", type=int, help="rounds; default: 5 on a CPU, 20 on a GPU")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="processor time of this process, all threads together, in place of the time that "
        "passes: for ratios on a busy machine (CPU only)",
    )
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    parser.add_argument(
        "opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help="change the config"
    )
    return parser.parse_args()


def main() -> int:
    """Return the exit code."""
    args = parse_args()
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    logging.getLogger("detr_panoptic_d2.data").setLevel(logging.WARNING)
    # The profiler, which records memory on a CPU, would write of its start and end to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with one_line_errors():
        run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    """Check, measure, print, and write the files that are asked for."""
    options = Options(
        config_file=args.config_file,
        opts=tuple(args.opts),
        against=args.against,
        work=tuple(args.work.split(",")),
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        size=args.size,
        batch=args.batch,
        kept=args.kept,
        segments=args.segments,
        repeats=args.repeats,
        cpu_time=args.cpu_time,
    )
    for path in filter(None, (args.json, args.markdown)):
        check_writable(path.parent)
    content = {}
    for name, result in run_benchmark(options):
        content[name] = result
        if name == "head":
            print(head_text(result), flush=True)
        else:
            print(f"\n{work_text(name, result, content['head']['peak flops'])}", flush=True)
    head = content.pop("head")
    if args.json is not None:
        write_json(args.json, {**head, "command": sys.argv, "results": content})
    if args.markdown is not None:
        write_text(args.markdown, markdown_text(head, content, sys.argv))


if __name__ == "__main__":
    sys.exit(main())
