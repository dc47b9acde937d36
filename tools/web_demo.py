#!/usr/bin/env python
"""Panoptic segmentation in the browser, served to this machine only unless asked otherwise.

    tools/web_demo.py --config-file shapes/detr_panoptic_shapes.yaml \\
        MODEL.WEIGHTS output/demo/model_final.pth

Needs Gradio: pip install 'detr_panoptic_d2[web]'. Stop it with Ctrl-C.
"""

import argparse
import logging

from detectron2.utils.logger import setup_logger

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.apps.web.analysis import Analyzer
from detr_panoptic_d2.apps.web.app import build_app, import_gradio, serve
from detr_panoptic_d2.apps.web.uploads import Limits
from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.errors import one_line_errors, quiet_console

logger = logging.getLogger("detr_panoptic_d2.tools.web_demo")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="path, or name of a shipped config")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: whole network, no password (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--share", action="store_true", help="Gradio's public link too: images go through Gradio"
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=Limits.megabytes,
        help="largest file that may be uploaded, in MB (default: %(default)g)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=Limits.megapixels,
        help="largest picture, in millions of pixels (default: %(default)g)",
    )
    parser.add_argument("opts", metavar="KEY VALUE", nargs="*", help="change the config")
    return parser.parse_args(argv)


def main() -> None:
    """Build the page and serve it until it is stopped."""
    args = parse_args()
    setup_logger(name="fvcore")
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    quiet_console("detr_panoptic_d2")
    with one_line_errors():
        import_gradio()
        limits = Limits(args.max_mb, args.max_megapixels)
        analyzer = Analyzer(setup_cfg(args.config_file, args.opts))
        serve(build_app(analyzer, limits), limits, host=args.host, port=args.port, share=args.share)


if __name__ == "__main__":
    main()
