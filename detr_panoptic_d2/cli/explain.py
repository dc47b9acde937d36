"""Show how images become panoptic maps: boxes, attention and masks of the queries on one page.

Examples:
  detr-panoptic explain --weights output/demo/model_final.pth --input a.png b.png \\
      --output explained
  detr-panoptic explain --config-file detr_panoptic_R50.yaml --input a.jpg --output explained \\
      MODEL.WEIGHTS detr-r50-panoptic-00ce5173.pth
"""

import argparse
from pathlib import Path

from ._options import add_model_options, read_cfg, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", type=Path, required=True, help="images")
    text = "folder of the page and the figures"
    parser.add_argument("--output", type=Path, required=True, help=text)
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..apps.explain import explain

    set_up_console(args)
    print(f"Written: {explain(read_cfg(args), args.input, args.output)}")
    return 0
