"""What the console shows of the log. ``log.txt`` in ``OUTPUT_DIR`` has all of it."""

import functools
import logging
import re
import sys

from detectron2.utils.logger import setup_logger

from ..errors import UserError

PACKAGE = __name__.split(".")[0]
# Detectron2's format for files.
_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"


def set_up_logging(
    output_dir: str | None = None, rank: int = 0, *, verbosity: str = "normal"
) -> None:
    """Set up the loggers of Detectron2, fvcore and this package.

    Args:
        output_dir: folder of ``log.txt``; None: no log file.
        rank: number of the process; only process 0 writes to the console.
        verbosity: what the console shows: "quiet" (warnings, errors and results), "normal" (also
            this package's messages and the progress) or "verbose" (everything).
    """
    # Detectron2's report about the environment imports the first, which warns if there is no GPU.
    # The second, which ``export`` uses, warns of each operator that it cannot simplify.
    for name in ("torch.utils.cpp_extension", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Detectron2 keeps loggers by these arguments. ``default_setup`` uses the same and adds none.
    loggers = [
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
        setup_logger(output_dir, distributed_rank=rank, name=PACKAGE, abbrev_name="detr"),
    ]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        on_console = getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
        if on_console:
            handler.filters[:] = [functools.partial(_is_for_console, verbosity)]
        if not (on_console and handler.stream.isatty()):
            handler.setFormatter(_PlainFormatter(_FORMAT, datefmt="%m/%d %H:%M:%S"))


def _is_for_console(verbosity: str, record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], UserError | OSError):
        # The program ends with its message on stderr.
        return False
    if record.levelno >= logging.WARNING or verbosity == "verbose":
        return True
    message = record.getMessage()
    is_table = record.name.startswith("detectron2.evaluation") and "\n|" in message
    is_progress = record.name == "detectron2.utils.events" or message.startswith("Inference done")
    is_ours = record.levelno >= logging.INFO and record.name.startswith(PACKAGE)
    return is_table or (verbosity == "normal" and (is_progress or is_ours))


class _PlainFormatter(logging.Formatter):
    """Remove the color codes that messages may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", super().format(record))
