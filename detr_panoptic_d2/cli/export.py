"""Export a model as two graphs that run without Detectron2.

The folder holds the graphs, their description (panoptic.json) and panoptic_runtime.py, which runs
them with NumPy, Pillow and ONNX Runtime, OpenVINO or torch.

Examples:
  detr-panoptic export --weights output/demo/model_best.pth --output exported
  detr-panoptic export --config-file CONFIG --format openvino --int8 photos/ --output exported \\
      MODEL.WEIGHTS model.pth
  python exported/panoptic_runtime.py exported photos --output out
"""

import argparse
import re

from ._options import add_model_options, read_cfg, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", required=True, metavar="FOLDER", help="new or empty folder")
    add("--format", default="onnx", choices=("onnx", "openvino", "torch-export"))
    add("--half", action="store_true", help="float16")
    add("--int8", metavar="IMAGES", help="int8, calibrated on the images of this folder")
    add("--size", type=_size, metavar="HxW", help="fixed input size (default: any size)")
    add("--evaluate", action="store_true", help="print PQ on DATASETS.TEST (with --config-file)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.evaluate and args.weights:
        args.parser.error("--evaluate needs --config-file: a checkpoint has no dataset")
    from ..export import evaluate_exported, export_weights

    set_up_console(args)
    cfg = read_cfg(args)
    folder = export_weights(
        cfg,
        args.output,
        graph_format=args.format,
        half=args.half,
        int8_images=args.int8,
        size=args.size,
    )
    print(f"Exported: {folder}")
    if args.evaluate:
        results = evaluate_exported(folder, cfg)
        print("  ".join(f"{key} {results[key]:.2f}" for key in ("PQ", "PQ_th", "PQ_st")))
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not HxW, such as 800x1066")
    return int(match[1]), int(match[2])
