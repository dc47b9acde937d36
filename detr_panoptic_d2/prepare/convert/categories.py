"""Which classes a converted data set has: names, ids, colours, things or stuff."""

import csv
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data.panoptic_json import panoptic_metadata
from ...errors import UserError

_KEYS = ("name", "id", "color", "isthing")
_COLUMNS = {"name", "id", "r", "g", "b", "isthing"}
# "road, 7" and "7, road"; a name has no comma and is no number.
_NAME_ID = re.compile(
    r"(?P<name>[^,;]*[^,;\d\s][^,;]*?)\s*[,;]\s*(?P<id>\d+)|(?P<id2>\d+)\s*[,;]\s*(?P<name2>[^,;]+)"
)


@dataclass(frozen=True)
class Category:
    """A class as the data knows it.

    Attributes:
        name: of the class.
        id: in the annotation file or mask, if it has numbers.
        isthing: whether its objects are counted, if known.
        color: RGB, if known.
    """

    name: str
    id: int | None = None
    isthing: bool | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class ClassOptions:
    """What the user says about classes.

    Attributes:
        file: a list of classes (see :func:`read_class_file`) that replaces ids, order, colours
            and thing-ness of the classes found.
        things: names of classes that are things.
        stuff: names of classes that are stuff.
        ignore: names of classes whose pixels become void.
    """

    file: Path | None = None
    things: tuple[str, ...] = ()
    stuff: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


def choose_categories(
    found: Iterable[Category],
    options: ClassOptions = ClassOptions(),
    *,
    thing_by_default: bool = True,
) -> list[dict]:
    """Decide about the categories of the json.

    Args:
        found: classes of the data, in their order; those of several splits one after the other.
        options: of the user.
        thing_by_default: what a class is of which neither data nor user say it.

    Returns:
        list[dict]: ``id``, ``name``, ``isthing``, ``color``. Ids that are missing (or 0, which is
        allowed in masks only) are filled with the smallest free numbers from 1.

    Raises:
        UserError: a name is not known, or is named twice or as thing and stuff.
    """
    found = merge_classes(found)
    _check_names([c.name for c in found], options)
    classes = [c for c in found if c.name not in options.ignore]
    if options.file is not None:
        listed = [c for c in read_class_file(options.file) if c.name not in options.ignore]
        known = [c.name for c in listed]
        for name in (c.name for c in classes):
            if name not in known:
                raise UserError(
                    f"The data has the class '{name}', which is not in '{options.file}'"
                    f"{_similar(name, known)}. Add it there, or leave it out with --ignore."
                )
        isthing = {c.name: c.isthing for c in found}
        classes = [
            c if c.isthing is not None else replace(c, isthing=isthing.get(c.name)) for c in listed
        ]
    return complete(
        {
            "id": c.id,
            "name": c.name,
            "isthing": int(_is_thing(c, options, thing_by_default)),
            "color": None if c.color is None else list(c.color),
        }
        for c in classes
    )


def merge_classes(found: Iterable[Category]) -> list[Category]:
    """Join the classes of several files by name; the first of a name counts.

    Raises:
        UserError: an id stands for two classes.
    """
    by_name: dict[str, Category] = {}
    names: dict[int, str] = {}
    for category in found:
        if category.id and names.setdefault(category.id, category.name) != category.name:
            raise UserError(
                f"Category id {category.id} is '{names[category.id]}' in one file or place and "
                f"'{category.name}' in another. Give one of the two classes another id."
            )
        by_name.setdefault(category.name, category)
    return list(by_name.values())


def _is_thing(category: Category, options: ClassOptions, default: bool) -> bool:
    if category.name in options.things or category.name in options.stuff:
        return category.name in options.things
    return default if category.isthing is None else category.isthing


def complete(categories: Iterable[dict]) -> list[dict]:
    """Fill in missing ids and colours, and check the whole.

    Raises:
        UserError: there are no classes, or two with one id or name.
    """
    categories = [dict(c) for c in categories]
    if not categories:
        raise UserError("The data has no classes (all of them ignored?).")
    names = [c["name"] for c in categories]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"Class names are there twice: {sorted(twice)}.")
    taken = {c["id"] for c in categories if c.get("id")}
    free = iter(i for i in range(1, len(categories) + len(taken) + 1) if i not in taken)
    for category in categories:
        category["id"] = category.get("id") or next(free)
        if category.get("color") is None:
            category.pop("color", None)
    colors = panoptic_metadata(categories, "classes")["thing_colors"]
    return [
        {"id": c["id"], "name": c["name"], "isthing": c["isthing"], "color": color}
        for c, color in zip(categories, colors, strict=True)
    ]


def with_stuff(categories: Sequence[dict], extra: Iterable[dict]) -> list[dict]:
    """Append stuff classes that are not there yet, by name.

    Args:
        categories: complete ones.
        extra: with ``name`` and, optionally, ``id`` (kept if free) and ``color``.

    Raises:
        UserError: a name is that of a thing.
    """
    result = list(categories)
    for category in extra:
        name, wanted = category["name"], category.get("id")
        same = next((c for c in result if c["name"] == name), None)
        if same is not None and same["isthing"]:
            raise UserError(
                f"'{name}' is to be stuff, but the data has it as a thing. Choose another name, "
                "or make it stuff with --stuff."
            )
        if same is None:
            taken = {c["id"] for c in result}
            new_id = wanted if wanted and wanted not in taken else max(taken, default=0) + 1
            color = category.get("color")
            result.append({"id": new_id, "name": name, "isthing": 0, "color": color})
    return complete(result)


def read_class_file(path: Path) -> list[Category]:
    """Read a list of classes in one of these forms.

    - ``.json``: mappings with ``name`` and, optionally, ``id``, ``isthing``, ``color``, as the
      ``categories`` of COCO (the list itself, or a mapping that has it under ``categories``);
    - a table with the columns ``name`` and, optionally, ``r, g, b``, ``id``, ``isthing``;
    - lines ``R G B name`` (CamVid's ``label_colors.txt``);
    - lines ``name,id`` or ``id,name``;
    - one name per line.

    Where a form has no ids, they are the positions in the file, from 0.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it has none of these forms.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"List of classes '{path}' does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"List of classes '{path}' is no text: {error}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix.lower() == ".json":
        classes = [_class_of_entry(entry, path) for entry in _entries_of_json(text, path)]
    elif lines and _COLUMNS & {cell.strip().lower() for cell in lines[0].split(",")}:
        classes = [_class_of_entry(entry, path) for entry in _entries_of_table(lines, path)]
    else:
        classes = [_class_of_line(line) for line in lines]
    if not classes:
        raise UserError(f"List of classes '{path}' is empty.")
    if all(c.id is None for c in classes):
        classes = [replace(c, id=i) for i, c in enumerate(classes)]
    return classes


def _entries_of_json(text: str, path: Path) -> list:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    content = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise UserError(f"'{path}' must be a list of classes, or have one under 'categories'.")
    return content


def _entries_of_table(lines: list[str], path: Path) -> Iterator[dict]:
    for row in csv.DictReader(lines, skipinitialspace=True):
        entry = {str(key).strip().lower(): value for key, value in row.items() if value}
        try:
            for key in (_COLUMNS - {"name"}) & entry.keys():
                entry[key] = int(entry[key])
        except (ValueError, TypeError) as error:
            raise UserError(f"'{path}': the row {row!r} has text for a number: {error}.") from error
        if colors := [entry.get(channel) for channel in "rgb" if channel in row]:
            entry["color"] = colors
        yield entry


def _class_of_entry(entry: Any, path: Path) -> Category:
    name, number, color, isthing = (
        entry.get(key) if isinstance(entry, dict) else None for key in _KEYS
    )
    is_color = isinstance(color, list) and len(color) == 3 and all(type(c) is int for c in color)
    if (
        not isinstance(name, str)
        or not (number is None or type(number) is int)
        or not (color is None or is_color)
        or isthing not in (None, 0, 1)
    ):
        raise UserError(
            f"'{path}': a class has a 'name', and perhaps an integer 'id', a 'color' of three "
            f"numbers (in a table r, g, b) and 'isthing' 0 or 1; {entry!r} is not so."
        )
    return Category(
        name.strip(),
        number,
        None if isthing is None else bool(isthing),
        None if color is None else tuple(color),
    )


def _class_of_line(line: str) -> Category:
    parts = line.split()
    if len(parts) > 3 and all(p.isdigit() and int(p) < 256 for p in parts[:3]):
        return Category(" ".join(parts[3:]), color=tuple(int(p) for p in parts[:3]))
    if pair := _NAME_ID.fullmatch(line):
        return Category(pair["name"] or pair["name2"], int(pair["id"] or pair["id2"]))
    return Category(line)


def _check_names(names: Collection[str], options: ClassOptions) -> None:
    for option in ("things", "stuff", "ignore"):
        for name in getattr(options, option):
            if name not in names:
                raise UserError(
                    f"--{option} names '{name}', which the data does not have"
                    f"{_similar(name, names)}. Its classes: {', '.join(names)}."
                )
    if both := set(options.things) & set(options.stuff):
        raise UserError(f"{sorted(both)} are named both in --things and in --stuff.")


def _similar(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
