"""What a user can put right, and how a program ends with it: one line and exit status 1."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
    """A mistake that the user can put right.

    The message names the file, the key or the value, and the way out. Programs print it as one
    line; any other exception but ``OSError`` is a bug and keeps its traceback.
    """


def check_value(key: str, value: object, valid: bool, allowed: str) -> None:
    """Check the value of a config key, in the constructor that uses it.

    Args:
        key: full name of the key, ``MODEL.DETR.DROPOUT`` for example.
        value: its value.
        valid: whether the value can be used.
        allowed: what the value may be, "a number from 0 to 1" for example.

    Raises:
        UserError: it cannot be used.
    """
    if not valid:
        raise UserError(f"{key} is {value!r}, but must be {allowed}.")


def look_up(key: str, name: str, registry: Any) -> Any:
    """What is registered under the name that a config key holds.

    Args:
        key: full name of the key.
        name: its value.
        registry: one of Detectron2's or of this package's.

    Raises:
        UserError: nothing is; the message lists the names there are.
    """
    names = ", ".join(sorted(item[0] for item in registry))
    check_value(key, name, name in registry, f"one of {names}")
    return registry.get(name)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit status 1 on ``UserError`` and ``OSError``.

    Ctrl-C ends it with status 130 (128 + SIGINT, as in shells). The traceback goes to the log
    files that are open, and not to the console.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{str(error) or 'Stopped by Ctrl-C.'}\n")
        raise SystemExit(130) from None
    except (UserError, OSError) as error:
        line = one_line(error)
        # At a level that Python does not show where no logging is set up.
        logging.getLogger(__name__).debug("%s", line, exc_info=True)
        sys.stderr.write(f"error: {line}\n")
        raise SystemExit(1) from None


def one_line(error: UserError | OSError) -> str:
    """The message in one line; from a worker process of a ``DataLoader`` without its traceback."""
    text = str(error)
    if "Original Traceback" in text:
        # The last line of a traceback is "<module>.<exception>: <message>".
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def quiet_console(*names: str) -> None:
    """Keep from the console the tracebacks of errors that end the program in one line.

    Args:
        names: loggers that Detectron2's ``setup_logger`` has set up.
    """

    def shown(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], UserError | OSError))

    for name in names:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(shown)
