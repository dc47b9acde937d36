"""Draw panoptic segmentation over images or videos.

Exit status 1 when an input could not be read; the others are done all the same.

Examples:
  detr-panoptic predict --config-file output/demo/config.yaml --input a.jpg folder 'more/*.png' \\
      --output predicted MODEL.WEIGHTS output/demo/model_final.pth
  detr-panoptic predict --config-file detr_panoptic_R50.yaml --input clip.mp4 --output predicted \\
      MODEL.WEIGHTS detr-r50-panoptic-00ce5173.pth
  detr-panoptic predict --exported exported --input photos --output predicted
"""

import argparse
from pathlib import Path

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add inputs and output."""
    parser.add_argument(
        "--input", nargs="+", required=True, help="images, folders, quoted patterns or videos"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--json", action="store_true", help="write COCO panoptic json and PNGs as well (images)"
    )
    parser.add_argument(
        "--exported", metavar="FOLDER", help="use what detr-panoptic export wrote; no config"
    )
    add_config_options(parser, required=False)


def run(args: argparse.Namespace) -> int:
    """Predict on all inputs and return the exit status."""
    if bool(args.exported) == bool(args.config_file):
        args.parser.error("give one of --config-file and --exported")

    from ..apps.predict import predict
    from ..export.runtime import find_images

    set_up_console(args)
    paths = find_images(args.input)
    if args.exported:
        from ..export import ExportedPredictor

        predictor = ExportedPredictor(args.exported)
    else:
        from ..engine import Predictor, setup_cfg

        predictor = Predictor(setup_cfg(args.config_file, args.opts))
    return int(bool(predict(predictor, paths, args.output, coco_json=args.json)))
