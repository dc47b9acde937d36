"""Which classes a converted data set has: names, ids, colours, things or stuff."""

import csv
import difflib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ...data.panoptic_json import panoptic_metadata
from ...errors import UserError


@dataclass(frozen=True)
class Found:
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
    found: Iterable[Found], options: ClassOptions, *, thing_by_default: bool = True
) -> list[dict]:
    """Decide about the categories of the json.

    Args:
        found: classes of the data, in their order.
        options: of the user.
        thing_by_default: what a class is of which neither data nor user say it.

    Returns:
        list[dict]: ``id``, ``name``, ``isthing``, ``color``. Ids that are missing (or 0, which is
        allowed in masks only) are filled with the smallest free numbers from 1.

    Raises:
        UserError: a name is not known, or is named twice or as thing and stuff.
    """
    found = list(found)
    names = [f.name for f in found]
    _check_names(names, options)
    classes = [f for f in found if f.name not in options.ignore]
    if options.file is not None:
        listed = [f for f in read_class_file(options.file) if f.name not in options.ignore]
        known = [f.name for f in listed]
        for name in (f.name for f in classes):
            if name not in known:
                raise UserError(
                    f"The data has the class '{name}', which is not in '{options.file}'"
                    f"{_similar(name, known)}. Add it there, or leave it out with --ignore."
                )
        said = {f.name: f.isthing for f in found}
        classes = [
            f if f.isthing is not None else replace(f, isthing=said.get(f.name)) for f in listed
        ]
    return complete(
        [
            {
                "id": f.id,
                "name": f.name,
                "isthing": int(_is_thing(f, options, thing_by_default)),
                "color": None if f.color is None else list(f.color),
            }
            for f in classes
        ]
    )


def _is_thing(found: Found, options: ClassOptions, default: bool) -> bool:
    if found.name in options.things or found.name in options.stuff:
        return found.name in options.things
    return default if found.isthing is None else found.isthing


def complete(categories: list[dict]) -> list[dict]:
    """Fill in missing ids and colours, and check the whole.

    Raises:
        UserError: there are no classes, or two with one id or name.
    """
    if not categories:
        raise UserError("The data has no classes (all of them ignored?).")
    taken = {c["id"] for c in categories if c["id"]}
    free = iter(i for i in range(1, len(categories) + len(taken) + 1) if i not in taken)
    complete = [{**c, "id": c["id"] or next(free)} for c in categories]
    names = [c["name"] for c in complete]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"Class names are there twice: {sorted(twice)}.")
    for category in complete:
        if category["color"] is None:
            del category["color"]
    colors = panoptic_metadata(complete, "classes")["thing_colors"]
    return [
        {key: c[key] for key in ("id", "name", "isthing")} | {"color": color}
        for c, color in zip(complete, colors, strict=True)
    ]


def with_stuff(categories: list[dict], extra: Iterable[dict]) -> list[dict]:
    """Append stuff classes that are not there yet, by name.

    Args:
        categories: complete ones.
        extra: with ``name`` and, optionally, ``id`` (kept if free) and ``color``.

    Raises:
        UserError: a name is that of a thing.
    """
    result = list(categories)
    by_name = {c["name"]: c for c in result}
    for category in extra:
        name = category["name"]
        if name in by_name:
            if by_name[name]["isthing"]:
                raise UserError(
                    f"'{name}' is to be stuff, but the data has it as a thing. Choose another "
                    "name, or make it stuff with --stuff."
                )
            continue
        taken = {c["id"] for c in result}
        wanted = category.get("id")
        new_id = wanted if wanted and wanted not in taken else max(taken, default=0) + 1
        new = {"id": new_id, "name": name, "isthing": 0, "color": category.get("color")}
        by_name[name] = new
        result.append(new)
    return complete(result)


def read_class_file(path: Path) -> list[Found]:
    """Read a list of classes in one of four forms.

    - ``.json``: mappings with ``name`` and, optionally, ``id``, ``isthing``, ``color``, as the
      ``categories`` of COCO (the list itself, or a mapping that has it under ``categories``);
    - ``.csv`` with the columns ``name, r, g, b`` and, optionally, ``id`` and ``isthing``;
    - lines ``R G B name`` (CamVid's ``label_colors.txt``);
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
    if path.suffix.lower() == ".json":
        classes = _classes_of_json(text, path)
    elif path.suffix.lower() == ".csv":
        classes = _classes_of_csv(text, path)
    else:
        classes = [_class_of_line(line) for line in text.splitlines() if line.strip()]
    if not classes:
        raise UserError(f"List of classes '{path}' is empty.")
    if all(f.id is None for f in classes):
        classes = [replace(f, id=i) for i, f in enumerate(classes)]
    return classes


def _classes_of_json(text: str, path: Path) -> list[Found]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"'{path}' is not a json file: {error}") from error
    if isinstance(content, dict):
        content = content.get("categories")
    form = f"'{path}' must be a list of mappings with 'name', and perhaps 'id', 'isthing', 'color'"
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(f"{form}.")
    classes = []
    for entry in content:
        color, number = entry.get("color"), entry.get("id")
        valid_color = color is None or (
            isinstance(color, list) and len(color) == 3 and all(type(c) is int for c in color)
        )
        if not isinstance(entry.get("name"), str) or not valid_color:
            raise UserError(f"{form}; {entry!r} is not so.")
        if number is not None and type(number) is not int:
            raise UserError(f"{form}; the id of {entry!r} is no integer.")
        color = None if color is None else tuple(color)
        is_thing = bool(entry["isthing"]) if "isthing" in entry else None
        classes.append(Found(entry["name"], number, is_thing, color))
    return classes


def _classes_of_csv(text: str, path: Path) -> list[Found]:
    rows = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
    classes = []
    for row in rows:
        row = {(key or "").strip().lower(): value for key, value in row.items()}
        try:
            color = tuple(int(row[channel]) for channel in "rgb") if "r" in row else None
            number = int(row["id"]) if row.get("id") else None
            is_thing = bool(int(row["isthing"])) if row.get("isthing") else None
            classes.append(Found(row["name"].strip(), number, is_thing, color))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{path}': the row {row!r} has not the columns name, r, g, b ({error})."
            ) from error
    return classes


def _class_of_line(line: str) -> Found:
    parts = line.split()
    if len(parts) > 3 and all(p.isdigit() and int(p) < 256 for p in parts[:3]):
        return Found(" ".join(parts[3:]), color=tuple(int(p) for p in parts[:3]))
    return Found(line.strip())


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
