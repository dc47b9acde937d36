"""Classes of a dataset: lists of them, and the categories that a conversion writes.

A class is a mapping as in the ``categories`` of COCO. Only its ``name`` is required.
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
from .source import log_left_out, logger
from .values import errors_in, has_lists, numbers, read_json, read_text, to_flag, to_int, to_text

# Names that mean "no label" in lists of classes, in any case. LabelMe uses those with underscores.
_VOID_NAMES = ("void", "unlabeled", "unlabelled", "ignore", "ignored", "__ignore__", "_background_")
_LINES = (
    r"(?P<r>\d+)\s+(?P<g>\d+)\s+(?P<b>\d+)\s+(?P<name>.+)",
    r"(?P<name>[^:]+):(?P<r>\d+),(?P<g>\d+),(?P<b>\d+):.*",
    r"(?P<name>.*[^\s,])\s*,\s*(?P<id>\d+)",
    r"(?P<name>.+)",
)
_VOC = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse
    motorbike person pottedplant sheep sofa train tvmonitor
"""


@dataclass(frozen=True)
class ClassOptions:
    """Options about classes: names of those that are things, stuff, and void.

    ``file`` is a list of classes (see :func:`read_class_file`). It replaces ids, order, colors and
    thing-ness of the classes of the data. ``background`` is the stuff class of unlabelled pixels;
    None: they are void.
    """

    file: Path | None = None
    things: Sequence[str] = ()
    stuff: Sequence[str] = ()
    ignore: Sequence[str] = ()
    background: str | None = None


def read_class_file(path: Path) -> list[dict]:
    """Read a list of classes in one of these forms.

    - ``.json``: classes as the ``categories`` of COCO (the list, or a mapping that has it under
      ``categories``);
    - a table (csv) with the columns ``name`` and perhaps ``r, g, b``, ``id``, ``isthing``;
    - lines ``R G B name`` (CamVid's ``label_colors.txt``), ``name:R,G,B::`` (CVAT's
      ``labelmap.txt``), ``name,id``, or one name per line;
    - no file but the name ``voc``: the 21 classes of Pascal VOC.

    In a form without ids the id is the position in the file, from 0. A first line ``__ignore__``
    is left out, because LabelMe numbers its ``labels.txt`` from -1.
    """
    entries: Any
    if str(path) == "voc" and not path.exists():
        entries = [{"name": name, "isthing": name != "background"} for name in _VOC.split()]
    elif path.suffix.lower() == ".json":
        content = read_json(path)
        entries = content["categories"] if has_lists(content, "categories") else content
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"'{path}' has no list of classes (mappings with a 'name').")
    else:
        entries = _read_class_lines(path)
    classes = parse_classes([{"id": i, **entry} for i, entry in enumerate(entries)], path)
    _check_unique_names(classes, path)
    return classes


def _read_class_lines(path: Path) -> list[dict]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("# ")]
    header = [cell.strip().lower() for cell in lines[0].split(",")] if lines else []
    if "name" in header:
        rows = list(csv.DictReader(lines[1:], header, skipinitialspace=True))
    else:
        lines = lines[lines[:1] == ["__ignore__"] :]
        forms = [next(filter(None, (re.fullmatch(f, line) for f in _LINES))) for line in lines]
        rows = [form.groupdict() for form in forms]
    for row in rows:
        if "r" in row:
            row["color"] = [row[channel] for channel in "rgb"]
    return [{key: value for key, value in row.items() if value} for row in rows]


def parse_classes(entries: list[dict], path: Path) -> list[dict]:
    """Return ``name``, ``id``, ``isthing``, ``color`` and ``supercategory`` of each class."""
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


def _check_unique_names(classes: list[dict], path: Path) -> None:
    for name, count in Counter(c["name"] for c in classes).items():
        if count > 1:
            raise UserError(f"'{path}' has {count} classes with the name '{name}'.")


def drop_unused_parents(classes: list[dict], used_ids: Collection[int], path: Path) -> list[dict]:
    """Drop categories without annotations that stand for other categories, and warn.

    Roboflow exports one as category 0. It has the name or the supercategory of the classes.
    """
    parents = {c[key] for c in classes if c["id"] in used_ids for key in ("name", "supercategory")}
    kept, dropped = [], []
    for category in classes:
        is_unused = category["id"] not in used_ids and category["name"] in parents
        (dropped if is_unused else kept).append(category)
    places = [f"'{path}': category {c['id']} '{c['name']}'" for c in dropped]
    log_left_out("categories without annotations that are the parent of others", places)
    _check_unique_names(kept, path)
    return kept


def choose_categories(
    classes: Iterable[dict],
    options: ClassOptions = ClassOptions(),  # noqa: B008  immutable
) -> list[dict]:
    """Return ``id``, ``name``, ``isthing`` and ``color`` of the categories of the json.

    Classes are things unless the data or the user say otherwise. Missing ids, and 0, which only
    masks may have, become the smallest free numbers from 1.
    """
    by_name = {c["name"]: c for c in merge_classes(classes)}
    for option in ("things", "stuff", "ignore"):
        if unknown := [name for name in getattr(options, option) if name not in by_name]:
            raise UserError(
                f"--{option} names '{unknown[0]}', which is not a class of the data. Its classes: "
                f"{', '.join(by_name)}."
            )
    if both := set(options.things) & set(options.stuff):
        raise UserError(f"{sorted(both)} are both in --things and in --stuff.")
    listed = list(by_name.values())
    if options.file is not None:
        listed = read_class_file(options.file)
        if unlisted := by_name.keys() - {c["name"] for c in listed} - set(options.ignore):
            raise UserError(
                f"The data has the class '{sorted(unlisted)[0]}', which is not in "
                f"'{options.file}'. Add it there, or leave it out with --ignore."
            )
    chosen = []
    for category in listed:
        name = category["name"]
        if name in options.ignore or _is_void(name, options):
            continue
        flags = (category.get("isthing"), by_name.get(name, {}).get("isthing"), 1)
        isthing = next(int(flag) for flag in flags if flag is not None)
        if name in (*options.things, *options.stuff):
            isthing = int(name in options.things)
        chosen.append({**category, "isthing": isthing})
    if chosen and not any(category["isthing"] for category in chosen):
        logger.info("All classes are stuff. --things names the classes with countable objects.")
    if options.background is not None:
        if any(c["name"] == options.background and c["isthing"] for c in chosen):
            raise UserError(
                f"--background '{options.background}' is stuff, but the data has a thing class of "
                "this name. Choose another name, or make the class stuff with --stuff."
            )
        chosen.append({"name": options.background, "isthing": 0})
    return _fill_ids_and_colors(merge_classes(chosen))


def _is_void(name: str, options: ClassOptions) -> bool:
    """Return whether the name means "no label". An option that names the class keeps it."""
    if name.strip().lower() not in _VOID_NAMES or name in (*options.things, *options.stuff):
        return False
    if name != options.background:
        logger.warning(
            "The class '%s' means \"no label\" and is left out: its pixels are void. --stuff %s "
            "keeps it as a class.",
            name,
            name,
        )
    return True


def merge_classes(classes: Iterable[dict]) -> list[dict]:
    """Join the classes of several files by name. The first one of a name counts."""
    by_name: dict[str, dict] = {}
    names: dict[int, str] = {}
    for category in classes:
        name, category_id = category["name"], category.get("id")
        if category_id is not None and names.setdefault(category_id, name) != name:
            raise UserError(
                f"Category id {category_id} is '{names[category_id]}' in one file or list and "
                f"'{name}' in another. Give one of the two classes another id."
            )
        by_name.setdefault(name, category)
    return list(by_name.values())


def _fill_ids_and_colors(categories: list[dict]) -> list[dict]:
    if not categories:
        raise UserError("The data has no class that is not void. Does it have annotations?")
    used_ids = {c.get("id") for c in categories}
    free_ids = (number for number in itertools.count(1) if number not in used_ids)
    result = [
        {"id": c.get("id") or next(free_ids), **{k: c.get(k) for k in ("name", "isthing", "color")}}
        for c in categories
    ]
    colors = panoptic_metadata(result, "classes")["thing_colors"]
    return [{**c, "color": color} for c, color in zip(result, colors, strict=True)]
