"""Show panoptic segmentation in the browser. By default, only this machine can connect.

It needs Gradio: pip install 'gradio>=6'. Stop it with Ctrl-C.

Examples:
  detr-panoptic web --weights output/demo/model_final.pth
"""

import argparse

from ._options import add_model_options, read_cfg, set_up_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "address to listen on (default: %(default)s); 0.0.0.0: all networks, no password"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, help="default: the first free port from 7860 on")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..apps.web import build_app, serve

    set_up_console(args)
    serve(build_app(read_cfg(args)), host=args.host, port=args.port)
    return 0
