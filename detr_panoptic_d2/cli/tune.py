"""Find the panoptic rule and the thresholds that give the best PQ, without training.

The model runs once over the dataset. The command prints a table, and writes OUTPUT_DIR/tuned.yaml,
a config for every command, and OUTPUT_DIR/tuned.png. Use images that the model was not trained on.
Measure the final PQ on other images.

Examples:
  detr-panoptic tune --config-file output/demo/config.yaml MODEL.WEIGHTS output/demo/model_final.pth
  detr-panoptic train --config-file output/demo/tuned.yaml --eval-only
  detr-panoptic predict --config-file output/demo/tuned.yaml --input photos --output predicted
"""

import argparse
from pathlib import Path

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", metavar="NAME", help="panoptic dataset; default: the first of DATASETS.TEST"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder for the results; default: OUTPUT_DIR"
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..apps.tune import tune

    set_up_console(args)
    table, config, picture = tune(args.config_file, args.opts, args.dataset, args.output)
    print(f"\n{table}\n\nPicture: {picture}\nConfig: {config}")
    return 0
