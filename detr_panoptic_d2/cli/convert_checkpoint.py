"""Convert a checkpoint to the format of this project, official DETR or Hugging Face.

The format of the input is detected. Training and prediction need no conversion: MODEL.WEIGHTS
takes all formats. In the formats of official DETR and Hugging Face, the row of a class in the class
head is its category id; rows of unused ids have probability 0.

Examples:
  detr-panoptic convert-checkpoint --input detr-r50-panoptic-00ce5173.pth --output model.pth \\
      --format ours --config-file detr_panoptic_R50.yaml
  detr-panoptic convert-checkpoint --input output/model_final.pth --output my-detr \\
      --format huggingface --config-file my.yaml
"""

import argparse

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", required=True, help="file, Hugging Face folder or URL")
    parser.add_argument("--output", required=True, help="file to write (huggingface: folder)")
    parser.add_argument("--format", required=True, choices=("ours", "official", "huggingface"))
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..apps.convert_checkpoint import convert_checkpoint
    from ..engine import setup_cfg

    set_up_console(args)
    cfg = setup_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    convert_checkpoint(args.input, args.output, args.format, cfg)
    return 0
