"""Options of several commands, and the console of those that do not train."""

import argparse


def add_config_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--config-file`` and the ``KEY VALUE`` pairs that change the config."""
    parser.add_argument(
        "--config-file",
        required=required,
        metavar="CONFIG",
        help="path, or name of a config of the package such as detr_panoptic_R50.yaml",
    )
    add_opts(parser)


def add_opts(parser: argparse.ArgumentParser) -> None:
    """Add the ``KEY VALUE`` pairs alone."""
    parser.add_argument(
        "opts",
        metavar="KEY VALUE",
        nargs=argparse.REMAINDER,
        help="change the config; at the end of the command",
    )


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add ``--quiet`` and ``--verbose``, which set ``args.verbosity``."""
    group = parser.add_mutually_exclusive_group()
    for name, help in (
        ("quiet", "show only warnings, errors and results"),
        ("verbose", "show the log of Detectron2 as well"),
    ):
        group.add_argument(
            f"--{name}", dest="verbosity", action="store_const", const=name, help=help
        )
    parser.set_defaults(verbosity="normal")


def set_up_console(args: argparse.Namespace) -> None:
    """Show the log on the console."""
    from ..engine.console import set_up_logging

    set_up_logging(verbosity=args.verbosity)
