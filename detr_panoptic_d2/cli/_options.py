"""Options of several commands, and the console of those that do not train."""

import argparse


def add_config_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--config-file`` and the ``KEY VALUE`` pairs that change the config."""
    text = "path, or name of a config of the package such as detr_panoptic_R50.yaml"
    parser.add_argument("--config-file", required=required, metavar="CONFIG", help=text)
    add_opts(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and the options of a config, of which :func:`read_cfg` takes one."""
    text = "a checkpoint of a training; it holds its config"
    parser.add_argument("--weights", metavar="FILE", help=text)
    add_config_options(parser, required=False)


def read_cfg(args: argparse.Namespace):
    """Return the config of ``--weights`` or ``--config-file``."""
    if bool(args.weights) == bool(args.config_file):
        args.parser.error("give either --weights or --config-file")
    if args.weights:
        from ..checkpoint.description import cfg_from_checkpoint

        return cfg_from_checkpoint(args.weights, args.opts)
    from ..engine import setup_cfg

    return setup_cfg(args.config_file, args.opts)


def add_opts(parser: argparse.ArgumentParser) -> None:
    """Add the ``KEY VALUE`` pairs alone."""
    text = "override the config; at the end of the command"
    parser.add_argument("opts", metavar="KEY VALUE", nargs=argparse.REMAINDER, help=text)


def set_up_console(args: argparse.Namespace) -> None:
    """Show the log on the console."""
    from ..engine.console import set_up_logging

    set_up_logging(verbosity=args.verbosity)
