"""How a tool ends: one line for what its user can put right, a traceback for anything else."""

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# What DataLoader and torch.multiprocessing put before the traceback of another process.
_OTHER_PROCESS = re.compile(r"Original Traceback|terminated with the following error")
_FRAME = re.compile(r'^\s*File "(.+?)", line', re.MULTILINE)
_NAMED_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|Warning): ")

# Detectron2's training loop logs what it raises.
_LOGGERS_OF_THE_END = (__name__, "detectron2.engine.train_loop")

# 128 + SIGINT, as shells have it.
_INTERRUPTED = 130


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit status 1 where an error has a line.

    Ctrl-C ends it with status 130. Errors without a line (see :func:`one_line`) pass through.
    The traceback goes to the log files that are open, and not to the console.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _end(str(error) or "Stopped by Ctrl-C.", _INTERRUPTED)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        # At a level that Python does not show where no logging is set up.
        logging.getLogger(__name__).debug("%s", line, exc_info=True)
        _end(f"error: {line}", 1)


def one_line(error: BaseException) -> str | None:
    """What to tell the user of a tool about an error.

    Args:
        error: also one of another process that the DataLoader or ``torch.multiprocessing`` raised
            anew, with the traceback as its text.

    Returns:
        the message, in one line, of what this package raised itself and of what the operating
        system reports (``OSError``); None for anything else, which is not the user's mistake.
    """
    text = str(error)
    if _OTHER_PROCESS.search(text):
        frames = _FRAME.findall(text)
        if not (isinstance(error, OSError) or (frames and _is_ours(frames[-1]))):
            return None
        text = _NAMED_ERROR.sub("", _last_message(text))
    elif not isinstance(error, OSError):
        frame = traceback.extract_tb(error.__traceback__)[-1:]
        if not (frame and _is_ours(frame[0].filename)):
            return None
        if isinstance(error, KeyError) and error.args:
            text = str(error.args[0])
    return " ".join(text.split())


class NoTraceback(logging.Filter):
    """Keeps the traceback of what ends the program in one line from a handler of the console."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for such a record."""
        if record.name not in _LOGGERS_OF_THE_END or not record.exc_info:
            return True
        return one_line(record.exc_info[1]) is None


def quiet_console(*names: str) -> None:
    """Put :class:`NoTraceback` before what these loggers write to the console.

    Args:
        names: loggers that Detectron2's ``setup_logger`` has set up.
    """
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(NoTraceback())


def _last_message(text: str) -> str:
    """The message that ends a traceback: what follows its last frame's lines of code."""
    lines = text.rstrip().splitlines()
    starts = [i for i, line in enumerate(lines) if _NAMED_ERROR.match(line)]
    return " ".join(lines[starts[-1] :]) if starts else lines[-1]


def _is_ours(file_name: str) -> bool:
    return _PACKAGE in Path(file_name).resolve().parents


def _end(line: str, status: int) -> None:
    sys.stderr.write(f"{line}\n")
    raise SystemExit(status) from None
