"""Panoptic segmentation in the browser, served to this machine only unless asked otherwise.

Needs Gradio: pip install 'detr-panoptic-d2[web]'. Stop it with Ctrl-C.

Examples:
  detr-panoptic web --config-file output/demo/config.yaml \\
      MODEL.WEIGHTS output/demo/model_final.pth
"""

import argparse

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add address and limits."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: whole network, no password (%(default)s)",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--share", action="store_true", help="Gradio's public link too: images go through Gradio"
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=20,
        metavar="MB",
        help="largest file that may be uploaded (%(default)g)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=16,
        metavar="MP",
        help="largest picture, in millions of pixels (%(default)g)",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Build the page and serve it until it is stopped."""
    from detr_panoptic_d2.apps.web.analysis import Analyzer
    from detr_panoptic_d2.apps.web.app import build_app, import_gradio, serve
    from detr_panoptic_d2.apps.web.uploads import Limits
    from detr_panoptic_d2.engine import setup_cfg

    set_up_console()
    import_gradio()
    limits = Limits(args.max_mb, args.max_megapixels)
    analyzer = Analyzer(setup_cfg(args.config_file, args.opts))
    serve(build_app(analyzer, limits), limits, host=args.host, port=args.port, share=args.share)
    return 0
