"""Read values of annotation files. The JSON type is checked before the value."""

import contextlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...data.panoptic_check import as_flag, as_int
from ...errors import UserError
from ...files import inside_root
from .source import Size

Entry = TypeVar("Entry")


@contextlib.contextmanager
def errors_in(place: str) -> Iterator[None]:
    """Put the place in front of the message of a ``UserError``."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def read_text(path: Path) -> str:
    """Read a text file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not a text file in UTF-8: {error}") from error


def read_json(path: Path, *keys: str) -> Any:
    """Read a json file. With ``keys``, it must have a list of mappings under each of them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    for key in keys:
        if not has_lists(content, key) or not all(isinstance(e, dict) for e in content[key]):
            raise UserError(f"'{path}' has another format: no list '{key}' of mappings.")
    return content


def has_lists(content: Any, *keys: str) -> bool:
    """Return whether the content of a json is a mapping with a list under each key."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys)


def to_int(value: Any, what: str) -> int:
    """Return the integer that 3, 3.0 or "3" stands for."""
    number = as_int(value)
    if number is None:
        raise UserError(f"{what} is {reprlib.repr(value)}, but must be an integer")
    return number


def read_size(entry: Mapping, height_key: str, width_key: str) -> Size | None:
    """Return (height, width) of an entry. None: it has none, or -1 or 0 as VIA writes."""
    if entry.get(height_key) is None or entry.get(width_key) is None:
        return None
    size = to_int(entry[height_key], f"'{height_key}'"), to_int(entry[width_key], f"'{width_key}'")
    return size if min(size) > 0 else None


def to_flag(value: Any, what: str) -> bool:
    """Return the boolean that false, 0, 0.0 or "0" stands for, and true likewise."""
    flag = as_flag(value)
    if flag is None:
        raise UserError(f"{what} is {reprlib.repr(value)}, but must be 0 or 1")
    return bool(flag)


def to_text(value: Any, what: str) -> str:
    """Return a text that is not empty. An integer stands for its digits."""
    text = value if isinstance(value, str) or as_int(value) is None else str(as_int(value))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{what} is {reprlib.repr(value)}, but must be a text that is not empty")
    return text


def to_id(value: Any, what: str) -> int | str:
    """Return an id: a text as it is, 3.0 as 3."""
    return value if isinstance(value, str) else to_int(value, what)


def find_by_id(entries: Mapping[int | str, Entry], value: Any, what: str, source: str) -> Entry:
    """Return the entry of an id. "3" stands for 3, and 3 for "3", if only the other exists."""
    key = to_id(value, what)
    for candidate in (key, as_int(key) if isinstance(key, str) else str(key)):
        if candidate in entries:
            return entries[candidate]  # type: ignore[index]
    raise UserError(f"{what} is {reprlib.repr(value)}, which {source} does not list")


def numbers(values: Any, what: str, count: int | None = None) -> np.ndarray:
    """Return a list of finite numbers, which may be text, as float64 (N,), or lists as (N, M)."""
    try:
        result = np.array(values, np.float64) if isinstance(values, list) else np.array(np.nan)
    except (TypeError, ValueError, OverflowError):
        result = np.array(np.nan)
    if result.ndim not in (1, 2) or not np.isfinite(result).all():
        raise UserError(f"{what} must be numbers, not {reprlib.repr(values)}")
    if count is not None and result.shape != (count,):
        raise UserError(f"{what} must be {count} numbers, not {reprlib.repr(values)}")
    return result


def polygon(values: Any, what: str = "a polygon") -> np.ndarray:
    """Return points as float64 (N, 2), from ``[x, y, x, y, ...]`` or ``[[x, y], [x, y], ...]``."""
    result = numbers(values, what)
    if result.shape[-1] % 2 or (result.ndim == 2 and result.shape[1] != 2):
        raise UserError(
            f"{what} has {result.shape[-1]} numbers, but must have pairs of numbers (x and y)"
        )
    return result.reshape(-1, 2)


def polygons(values: Any) -> list[np.ndarray]:
    """Return the polygons of an object: one, or a list of polygons, with any lists around these.

    In a list of three or more pairs of numbers each pair is a point.
    """
    are_lists = {isinstance(v, list) for v in values} if isinstance(values, list) else {False}
    if True not in are_lists:
        return [polygon(values)]
    if False in are_lists:
        raise UserError(f"a polygon mixes numbers and lists: {reprlib.repr(values)}")
    are_numbers = not any(isinstance(v, list) for value in values for v in value)
    if are_numbers and len(values) > 2 and all(len(value) == 2 for value in values):
        return [polygon(values)]
    return [points for value in values for points in polygons(value)]


def resolve_inside(root: Path, name: Any, base: Path | None = None) -> str:
    """Convert a path of an annotation file to a normalised path relative to ``root``, with ``/``.

    Relative paths start from ``base``, by default ``root``, and must not lead out of ``root``.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"the file name of the image is {name!r}, but must be a text")
    full = os.path.join(base or root, name.replace("\\", "/"))
    relative = Path(os.path.relpath(full, root)).as_posix()
    inside_root(str(root), relative)
    return relative
