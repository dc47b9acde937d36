"""Which classes a converted data set has: names, ids, colours, things or stuff.

A class is a mapping as in the ``categories`` of COCO, of which ``name`` alone is needed.
"""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.panoptic_json import panoptic_metadata
from ...errors import UserError
from .source import log_left_out
from .values import errors_in, numbers, read_json, to_flag, to_int, to_text

_RGB_NAME = re.compile(r"(\d+)\s+(\d+)\s+(\d+)\s+(.+)")
_NAME_ID = re.compile(r"(.*[^\s,])\s*,\s*(\d+)")


@dataclass(frozen=True)
class ClassOptions:
    """What the user says about classes: names of those that are things, stuff, and void.

    ``file`` is a list of classes (see :func:`read_class_file`) that replaces ids, order, colours
    and thing-ness of the classes found; ``background`` the stuff class that gets what is not
    labelled (None: void).
    """

    file: Path | None = None
    things: Sequence[str] = ()
    stuff: Sequence[str] = ()
    ignore: Sequence[str] = ()
    background: str | None = None


def choose_categories(
    found: Iterable[dict],
    options: ClassOptions = ClassOptions(),  # noqa: B008  immutable
) -> list[dict]:
    """Decide about the categories of the json.

    Args:
        found: classes of the data, in their order; those of several splits one after the other.
            They are things unless data or user say otherwise.
        options: of the user.

    Returns:
        list[dict]: ``id``, ``name``, ``isthing``, ``color``. Ids that are missing (or 0, which is
        allowed in masks only) are filled with the smallest free numbers from 1.

    Raises:
        UserError: a name is not known, or is named twice or as thing and stuff.
    """
    by_name = {c["name"]: c for c in merge_classes(found)}
    for option in ("things", "stuff", "ignore"):
        for name in getattr(options, option):
            if name not in by_name:
                raise UserError(
                    f"--{option} names '{name}', which the data does not have. Its classes: "
                    f"{', '.join(by_name)}."
                )
    if both := set(options.things) & set(options.stuff):
        raise UserError(f"{sorted(both)} are named both in --things and in --stuff.")
    listed = list(by_name.values())
    if options.file is not None:
        listed = read_class_file(options.file)
        if unknown := by_name.keys() - {c["name"] for c in listed} - set(options.ignore):
            raise UserError(
                f"The data has the class '{sorted(unknown)[0]}', which is not in "
                f"'{options.file}'. Add it there, or leave it out with --ignore."
            )
    chosen = []
    for one in listed:
        name = one["name"]
        known = [c.get("isthing") for c in (one, by_name.get(name, {}))]
        isthing = next((value for value in known if value is not None), True)
        if name in (*options.things, *options.stuff):
            isthing = name in options.things
        if name not in options.ignore:
            chosen.append({**one, "isthing": int(isthing)})
    if options.background is not None:
        if any(c["name"] == options.background and c["isthing"] for c in chosen):
            raise UserError(
                f"'{options.background}' is to be stuff, but the data has it as a thing. Choose "
                "another name, or make it stuff with --stuff."
            )
        chosen.append({"name": options.background, "isthing": 0})
    return _complete(merge_classes(chosen))


def merge_classes(found: Iterable[dict]) -> list[dict]:
    """Join the classes of several files by name; the first of a name counts.

    Raises:
        UserError: an id stands for two classes.
    """
    by_name: dict[str, dict] = {}
    names: dict[int, str] = {}
    for one in found:
        if (i := one.get("id")) is not None and names.setdefault(i, one["name"]) != one["name"]:
            raise UserError(
                f"Category id {i} is '{names[i]}' in one file or place and '{one['name']}' in "
                "another. Give one of the two classes another id."
            )
        by_name.setdefault(one["name"], one)
    return list(by_name.values())


def _complete(categories: list[dict]) -> list[dict]:
    """Fill in missing ids and colours."""
    if not categories:
        raise UserError("The data has no classes (all of them ignored?).")
    taken = {c.get("id") for c in categories}
    free = (number for number in itertools.count(1) if number not in taken)
    keys = ("name", "isthing", "color")
    result = [{"id": c.get("id") or next(free), **{k: c.get(k) for k in keys}} for c in categories]
    colors = panoptic_metadata(result, "classes")["thing_colors"]
    return [{**c, "color": color} for c, color in zip(result, colors, strict=True)]


def read_class_file(path: Path) -> list[dict]:
    """Read a list of classes in one of these forms.

    - ``.json``: classes as the ``categories`` of COCO (the list itself, or a mapping that has it
      under ``categories``);
    - a table (csv) with the columns ``name`` and, optionally, ``r, g, b``, ``id``, ``isthing``;
    - lines ``R G B name`` (CamVid's ``label_colors.txt``), ``name,id``, or one name per line.

    Where a form has no ids, they are the positions in the file, from 0.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it has none of these forms, or a name, id or colour is wrong.
    """
    if path.suffix.lower() == ".json":
        content = read_json(path)
        entries = content.get("categories") if isinstance(content, dict) else content
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"'{path}' has no list of classes (mappings with a 'name').")
    else:
        try:
            lines = [n.strip() for n in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise UserError(f"List of classes '{path}' is no text: {error}") from error
        lines = [line for line in lines if line]
        header = [cell.strip().lower() for cell in lines[0].split(",")] if lines else []
        if "name" in header:
            rows = csv.DictReader(lines[1:], header, skipinitialspace=True)
            entries = [_class_of_row(row) for row in rows]
        else:
            entries = [_class_of_line(line) for line in lines]
    classes = parse_classes([{"id": i, **entry} for i, entry in enumerate(entries)], path)
    check_unique_names(classes, path)
    return classes


def _class_of_row(row: dict[str, str]) -> dict:
    entry: dict = {k: int(v) if v.isdigit() and k != "name" else v for k, v in row.items() if v}
    if "r" in row:
        entry["color"] = [entry.get(channel) for channel in "rgb"]
    return entry


def _class_of_line(line: str) -> dict:
    if found := _RGB_NAME.fullmatch(line):
        return {"name": found[4], "color": [int(found[n]) for n in (1, 2, 3)]}
    if found := _NAME_ID.fullmatch(line):
        return {"name": found[1], "id": int(found[2])}
    return {"name": line}


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
