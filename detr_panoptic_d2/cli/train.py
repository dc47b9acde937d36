"""Train, or evaluate with --eval-only. The options are those of Detectron2's train_net.py.

Examples:
  detr-panoptic train --config-file detr_panoptic_R50.yaml --num-gpus 8
  detr-panoptic train --config-file detr_panoptic_R50.yaml --num-gpus 8 --resume
  detr-panoptic train --config-file detr_panoptic_R50.yaml --eval-only MODEL.WEIGHTS model.pth
  torchrun --nproc_per_node 8 -m detr_panoptic_d2.cli train --config-file detr_panoptic_R50.yaml
"""

import argparse
import os
import sys

from ._options import add_opts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config-file", default="", metavar="CONFIG", help="path or name of a config")
    add("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    add(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs per machine, or processes on the CPU",
    )
    add("--num-machines", type=int, default=1, metavar="N", help="number of machines")
    add("--machine-rank", type=int, default=0, metavar="N", help="0 is the first machine")
    # Detectron2's port, one per user: a port in use shows that an old training still runs.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        metavar="URL",
        help="address of the first machine (%(default)s)",
    )
    add_opts(parser)


def run(args: argparse.Namespace) -> int:
    from ..engine import launch_job, train_or_evaluate

    # A parser cannot be pickled for other processes.
    vars(args).pop("parser", None)
    launch_job(train_or_evaluate, args)
    return 0
