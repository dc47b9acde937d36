"""Read lists of classes.

A class is a mapping as in the ``categories`` of COCO. Only its ``name`` is required.
"""

import csv
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ...data.panoptic_json import panoptic_metadata
from ...errors import UserError
from .source import log_left_out
from .values import errors_in, numbers, read_json, to_flag, to_int, to_text

_RGB_NAME = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(.+)")
_NAME_RGB = re.compile(r"([^:]+):(\d+),(\d+),(\d+):.*")
_NAME_ID = re.compile(r"(.*[^\s,])\s*,\s*(\d+)")
_VOC = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse
    motorbike person pottedplant sheep sofa train tvmonitor
"""


def read_class_file(path: Path) -> list[dict]:
    """Read a list of classes in one of these forms.

    - ``.json``: classes as the ``categories`` of COCO (the list, or a mapping that has it under
      ``categories``);
    - a table (csv) with the columns ``name`` and, optionally, ``r, g, b``, ``id``, ``isthing``;
    - lines ``R G B name`` (CamVid's ``label_colors.txt``), ``name:R,G,B::`` (CVAT's
      ``labelmap.txt``), ``name,id``, or one name per line;
    - no file but the name ``voc``: the 21 classes of Pascal VOC with their colors.

    In a form without ids the id is the position in the file, from 0. A first line ``__ignore__``
    is left out, because LabelMe numbers its ``labels.txt`` from -1.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it has none of these forms, or a name, id or color is invalid.
    """
    if str(path) == "voc" and not path.exists():
        return voc_classes()
    if path.suffix.lower() == ".json":
        content = read_json(path)
        entries = content.get("categories") if isinstance(content, dict) else content
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"'{path}' has no list of classes (mappings with a 'name').")
    else:
        entries = _read_class_lines(path)
    classes = parse_classes([{"id": i, **entry} for i, entry in enumerate(entries)], path)
    check_unique_names(classes, path)
    return classes


def _read_class_lines(path: Path) -> list[dict]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"List of classes '{path}' is not a text file: {error}") from error
    lines = [line for line in lines if line and not line.startswith("# ")]
    header = [cell.strip().lower() for cell in lines[0].split(",")] if lines else []
    if "name" in header:
        rows = csv.DictReader(lines[1:], header, skipinitialspace=True)
        return [_class_of_row(row) for row in rows]
    return [_class_of_line(line) for line in lines[lines[:1] == ["__ignore__"] :]]


def _class_of_row(row: dict[str, str]) -> dict:
    entry: dict = {key: value for key, value in row.items() if value}
    if "r" in row:
        entry["color"] = [entry.get(channel) for channel in "rgb"]
    return entry


def _class_of_line(line: str) -> dict:
    if match := _RGB_NAME.fullmatch(line):
        return {"name": match[4], "color": [match[1], match[2], match[3]]}
    if match := _NAME_RGB.fullmatch(line):
        return {"name": match[1], "color": [match[2], match[3], match[4]]}
    if match := _NAME_ID.fullmatch(line):
        return {"name": match[1], "id": match[2]}
    return {"name": line}


def voc_classes() -> list[dict]:
    """Return the classes of Pascal VOC with the colors of its palette."""
    classes = []
    for number, name in enumerate(_VOC.split()):
        # Bits 0, 1, 2 of the number are the highest bits of red, green, blue; and so on.
        bits = [(number >> (3 * place)) & 7 for place in range(8)]
        color = [sum((b >> c & 1) << (7 - place) for place, b in enumerate(bits)) for c in range(3)]
        classes.append({"name": name, "id": number, "isthing": int(number > 0), "color": color})
    return classes


def parse_classes(entries: list[dict], path: Path) -> list[dict]:
    """Return ``name``, ``id``, ``isthing`` and ``color`` of the classes of a file.

    Raises:
        UserError: a name is missing, an id is missing or listed twice, or a value is invalid.
    """
    classes = []
    for index, entry in enumerate(entries):
        with errors_in(f"'{path}': category at position {index}"):
            parsed = {key: entry.get(key) for key in ("id", "isthing", "color", "supercategory")}
            parsed["name"] = to_text(entry.get("name"), "'name'")
            if parsed["id"] is not None:
                parsed["id"] = to_int(parsed["id"], "'id'")
            if parsed["isthing"] is not None:
                parsed["isthing"] = int(to_flag(parsed["isthing"], "'isthing'"))
            if parsed["color"] is not None:
                parsed["color"] = _to_color(parsed["color"])
        classes.append(parsed)
    # Checks the ids.
    panoptic_metadata([{**c, "isthing": 1} for c in classes], str(path))
    return classes


def _to_color(value: Any) -> list[int]:
    """Return red, green and blue of ``[r, g, b]`` or ``"#rrggbb"``."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return list(bytes.fromhex(value[1:]))
    channels = numbers(value, "'color'", 3)
    if not np.isin(channels, range(256)).all():
        raise UserError(f"'color' is {value!r}, but must be three integers from 0 to 255")
    return channels.astype(int).tolist()


def check_unique_names(classes: list[dict], path: Path) -> None:
    """Raise ``UserError`` if two classes have the same name."""
    for name, count in Counter(c["name"] for c in classes).items():
        if count > 1:
            raise UserError(f"'{path}' has {count} classes with the name '{name}'.")


def drop_unused_parents(classes: list[dict], used_ids: Collection[int], path: Path) -> list[dict]:
    """Drop categories without annotations that stand for other categories, and warn.

    Roboflow exports one as category 0. It has the name or the supercategory of the classes.
    """
    used_names = {c["name"] for c in classes if c["id"] in used_ids}
    parents = {c["supercategory"] for c in classes if c["id"] in used_ids}
    kept, dropped = [], []
    for category in classes:
        is_parent = category["name"] in used_names or category["name"] in parents
        unused = category["id"] not in used_ids
        (dropped if unused and is_parent else kept).append(category)
    places = [f"'{path}': category {c['id']} '{c['name']}'" for c in dropped]
    log_left_out("categories without annotations that are the parent of others", places)
    check_unique_names(kept, path)
    return kept
