"""Errors that a user can fix, and how a program ends with one: a line and exit status 1."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
    """An error that the user can fix. The message names file, key or value, and what to do.

    Programs print it as one line. Any other exception except ``OSError`` keeps its traceback.
    """


def check_value(key: str, value: object, valid: bool, allowed: str) -> None:
    """Raise a ``UserError`` if the value of a config key is not valid.

    ``allowed`` says what it may be, such as "a number from 0 to 1".
    """
    if not valid:
        raise UserError(f"{key} is {value!r}, but must be {allowed}.")


def look_up(key: str, name: str, registry: Any) -> Any:
    """Return what a registry has under the value of a config key. Errors list all names."""
    names = ", ".join(sorted(item[0] for item in registry))
    check_value(key, name, name in registry, f"one of {names}")
    return registry.get(name)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit status 1 on ``UserError`` and ``OSError``.

    Ctrl-C ends it with status 130 (128 + SIGINT, as in shells). The traceback goes to the log
    file, not to the console.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{str(error) or 'Stopped by Ctrl-C.'}\n")
        raise SystemExit(130) from None
    except (UserError, OSError) as error:
        line = one_line(error)
        # Without logging, Python does not show records of this level.
        logging.getLogger(__name__).debug("%s", line, exc_info=True)
        sys.stderr.write(f"error: {line}\n")
        raise SystemExit(1) from None


def one_line(error: UserError | OSError) -> str:
    """Return the message as one line, without the traceback of a ``DataLoader`` worker."""
    text = str(error)
    if "Original Traceback" in text:
        # The last line of a traceback is "<module>.<exception>: <message>".
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
