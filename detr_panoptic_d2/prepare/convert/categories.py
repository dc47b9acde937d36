"""Choose the categories of a converted data set: names, ids, colors, things or stuff."""

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.panoptic_json import panoptic_metadata
from ...errors import UserError
from .class_files import read_class_file
from .segments import UNLABELLED

logger = logging.getLogger(__name__)

# Names that mean "no label" in lists of classes, in any case. LabelMe uses those with underscores.
_VOID_NAMES = ("void", "unlabeled", "unlabelled", "ignore", "ignored", "__ignore__", UNLABELLED)


@dataclass(frozen=True)
class ClassOptions:
    """Options about classes: names of those that are things, stuff, and void.

    ``file`` is a list of classes (see :func:`.class_files.read_class_file`). It replaces ids,
    order, colors and thing-ness of the classes of the data. ``background`` is the stuff class of
    unlabelled pixels; None: they are void.
    """

    file: Path | None = None
    things: Sequence[str] = ()
    stuff: Sequence[str] = ()
    ignore: Sequence[str] = ()
    background: str | None = None


def choose_categories(
    classes: Iterable[dict],
    options: ClassOptions = ClassOptions(),  # noqa: B008  immutable
) -> list[dict]:
    """Choose the categories of the json.

    Args:
        classes: of the data, in their order; those of several splits one after the other. They
            are things unless the data or the user say otherwise.
        options: of the user.

    Returns:
        list[dict]: ``id``, ``name``, ``isthing``, ``color``. Missing ids, and 0, which only masks
        may have, are filled with the smallest free numbers from 1.

    Raises:
        UserError: a name is not known, or is in two options that exclude each other.
    """
    by_name = {c["name"]: c for c in merge_classes(classes)}
    _check_options(options, by_name)
    listed = list(by_name.values())
    if options.file is not None:
        listed = read_class_file(options.file)
        if unknown := by_name.keys() - {c["name"] for c in listed} - set(options.ignore):
            raise UserError(
                f"The data has the class '{sorted(unknown)[0]}', which is not in "
                f"'{options.file}'. Add it there, or leave it out with --ignore."
            )
    chosen = []
    for category in listed:
        name = category["name"]
        if name in options.ignore or _is_void_by_default(name, options):
            continue
        is_thing = category.get("isthing")
        if is_thing is None:
            is_thing = by_name.get(name, {}).get("isthing")
        if name in (*options.things, *options.stuff):
            is_thing = name in options.things
        chosen.append({**category, "isthing": 1 if is_thing is None else int(is_thing)})
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


def _check_options(options: ClassOptions, known: Iterable[str]) -> None:
    for option in ("things", "stuff", "ignore"):
        for name in getattr(options, option):
            if name not in known:
                raise UserError(
                    f"--{option} names '{name}', which is not a class of the data. Its classes: "
                    f"{', '.join(known)}."
                )
    if both := set(options.things) & set(options.stuff):
        raise UserError(f"{sorted(both)} are both in --things and in --stuff.")


def _is_void_by_default(name: str, options: ClassOptions) -> bool:
    """Return whether the name means "no label". An option that names the class keeps it."""
    if name.strip().lower() not in _VOID_NAMES:
        return False
    if name in (*options.things, *options.stuff):
        return False
    if name == options.background:
        return True
    logger.warning(
        "The class '%s' means \"no label\" and is left out: its pixels are void. --stuff %s keeps "
        "it as a class.",
        name,
        name,
    )
    return True


def merge_classes(classes: Iterable[dict]) -> list[dict]:
    """Join the classes of several files by name. The first one of a name counts.

    Raises:
        UserError: two classes have one id.
    """
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
    keys = ("name", "isthing", "color")
    result = [
        {"id": c.get("id") or next(free_ids), **{key: c.get(key) for key in keys}}
        for c in categories
    ]
    colors = panoptic_metadata(result, "classes")["thing_colors"]
    return [{**c, "color": color} for c, color in zip(result, colors, strict=True)]
