"""What several commands share."""

import argparse

from ..errors import quiet_console


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


def set_up_console() -> None:
    """Show the package's and fvcore's log on the console."""
    from detectron2.utils.logger import setup_logger

    setup_logger(name="fvcore")
    setup_logger(name="detr_panoptic_d2", abbrev_name="detr")
    quiet_console("detr_panoptic_d2")
