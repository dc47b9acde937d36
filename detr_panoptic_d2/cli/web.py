"""Show panoptic segmentation in the browser. By default, only this machine can connect.

It needs Gradio: pip install '.[web]'. Stop it with Ctrl-C.

Examples:
  detr-panoptic web --config-file output/demo/config.yaml \\
      MODEL.WEIGHTS output/demo/model_final.pth
"""

import argparse

from ._options import add_config_options, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the address options."""
    text = "address to listen on (default: %(default)s); 0.0.0.0: all networks, no password"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, help="default: the first free port from 7860 on")
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Build the page and serve it until interrupted."""
    from ..apps.web.app import build_app, serve
    from ..engine import setup_cfg

    set_up_console(args)
    app = build_app(setup_cfg(args.config_file, args.opts))
    serve(app, host=args.host, port=args.port)
    return 0
