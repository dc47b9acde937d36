"""The command ``detr-panoptic``: arguments of all programs, and nothing else.

Each module has ``add_arguments(parser)`` and ``run(args) -> int``. Its docstring is the help text
of the command; the first line of the docstring is shown in the list of commands. Modules import
what they run inside ``run``, so that wrong options are refused before that.
"""

import argparse
import importlib
import warnings
from collections.abc import Sequence

from .._version import __version__
from ..errors import one_line_errors

# Each is a module here, with "_" for "-".
COMMANDS = (
    *("train", "convert", "check", "predict", "tune", "explain", "report", "web"),
    *("export", "demo", "convert-checkpoint"),
)

_EPILOG = """\
detr-panoptic COMMAND --help describes a command. KEY VALUE pairs at its end override the config.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="detr-panoptic",
        description="DETR's panoptic segmentation with Detectron2.",
        epilog=_EPILOG,
        formatter_class=as_written,
    )
    parser.add_argument("--version", action="version", version=f"detr_panoptic_d2 {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
        text = module.__doc__.strip()
        title = text.splitlines()[0]
        sub = commands.add_parser(name, help=title, description=text, formatter_class=as_written)
        sub.set_defaults(run=module.run, parser=sub, verbosity="normal")
        group = sub.add_mutually_exclusive_group()
        for level, shown in (
            ("quiet", "show only warnings, errors and results"),
            ("verbose", "show the log of Detectron2 as well"),
        ):
            options = {"dest": "verbosity", "action": "store_const", "const": level}
            group.add_argument(f"--{level}", help=shown, **options)
        module.add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    args = build_parser().parse_args(argv)
    # Detectron2 and fvcore use deprecated interfaces, which a user cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    with one_line_errors():
        return args.run(args)
