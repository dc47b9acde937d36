"""Draw panoptic segmentation over images or videos.

If an input cannot be read, the others are processed and the exit status is 1. Images of one size
are processed in batches of MODEL.DETR.TEST.BATCH_SIZE. Under torchrun the inputs are distributed
among the processes; on several machines --output must be a shared folder.

Examples:
  detr-panoptic predict --weights output/demo/model_final.pth --input a.jpg folder 'more/*.png' \\
      --output predicted
  detr-panoptic predict --config-file detr_panoptic_R50.yaml --input clip.mp4 --output predicted \\
      MODEL.WEIGHTS detr-r50-panoptic-00ce5173.pth
  detr-panoptic predict --exported exported --input photos --output predicted --tile 1024
"""

import argparse
import os
from pathlib import Path

from ._options import add_model_options, read_cfg, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="images, folders, quoted patterns or videos")
    add("--output", type=Path, required=True, help="folder of the results")
    text = "write COCO panoptic json and PNGs as well, and instances.json with RLE masks (images)"
    add("--json", action="store_true", help=text)
    add("--resume", action="store_true", help="keep earlier results; predict on other inputs only")
    text = "auto: labels where there is room, and a legend of the others; or none"
    add("--labels", choices=["auto", "none"], default="auto", help=text)
    add("--tile", type=int, metavar="PIXELS", help="segment images in tiles of this side")
    text = "smallest fraction of a tile that the next tile shares (%(default)s)"
    add("--overlap", type=float, default=0.2, help=text)
    add("--exported", metavar="FOLDER", help="use a model that detr-panoptic export wrote")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.exported and (args.weights or args.config_file):
        args.parser.error("--exported replaces --weights and --config-file")
    if args.tile is not None and args.tile < 1 or not 0 <= args.overlap < 1:
        args.parser.error("--tile must be 1 or more, --overlap at least 0 and less than 1")
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return _predict(args)
    from ..engine import launch_job

    args.config_file = args.config_file or ""
    launch_job(_predict, args)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from detectron2.utils import comm

    from ..apps.predict import TiledPredictor, predict
    from ..engine import Predictor
    from ..export import ExportedPredictor
    from ..export.runtime import find_images

    set_up_console(args)
    paths, batch_size, model = find_images(args.input), 1, args.exported
    if args.exported:
        predictor = ExportedPredictor(args.exported, args.tile, args.overlap)
    else:
        cfg = read_cfg(args)
        predictor, model = Predictor(cfg), cfg.MODEL.WEIGHTS
        batch_size = cfg.MODEL.DETR.TEST.BATCH_SIZE
        if args.tile is not None:
            predictor = TiledPredictor(predictor, args.tile, args.overlap)
    failed = predict(
        predictor,
        paths,
        args.output,
        coco_json=args.json,
        resume=args.resume,
        batch_size=batch_size,
        labels=args.labels == "auto",
        model=f"{model} --tile {args.tile} --overlap {args.overlap}" if args.tile else str(model),
    )
    if failed and comm.get_world_size() > 1:
        raise SystemExit(1)
    return int(bool(failed))
