"""Which rows of a checkpoint's class head are which classes of a model.

Official DETR's class heads have one row per raw category id of the annotation file, unused ids
included, and no-object as the last row: 251 rows for COCO panoptic, 92 for COCO boxes. A model here
has one row per class of its data set, in contiguous order, and no-object last.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

COCO_NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES}
COCO_THING_IDS = sorted(c["id"] for c in COCO_CATEGORIES if c["isthing"])
# Rows of the official heads: max. id + 1 (250 is official's own round number) and no-object.
PANOPTIC_ROWS, BOX_ROWS = 251, 92


class ClassHead(NamedTuple):
    """A checkpoint's class head whose rows go by category id.

    Attributes:
        weight: R x C.
        bias: R.
        rows: row of each category id whose class name is known.
        names: class name of each of these ids.
        has_no_object: whether the last row is truly no-object's.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    rows: Mapping[int, int]
    names: Mapping[int, str]
    has_no_object: bool = True


class ChosenRows(NamedTuple):
    """A class head as the model needs it, or why there is none.

    Attributes:
        weight, bias: (K + 1) x C and K + 1; None if the file has other classes.
        taken: number of rows that come from the file.
        note: what was done, for the log.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    taken: int
    note: str


def raw_id_head(
    weight: torch.Tensor, bias: torch.Tensor, names: Mapping[int, str] | None = None
) -> ClassHead:
    """A head of official DETR or Hugging Face.

    Args:
        weight, bias: R x C and R.
        names: class name of row numbers, where the file has them. Without them, and where they
            contradict none of COCO's things, heads of 251 and 92 rows are COCO's.
    """
    count = len(weight)
    names = dict(names or {})
    # The published panoptic files name the things alone, and have other words for the rest.
    things = {i: name for i, name in names.items() if i <= COCO_THING_IDS[-1]}
    if count in (PANOPTIC_ROWS, BOX_ROWS) and all(
        COCO_NAMES.get(i) in (None, name) for i, name in things.items()
    ):
        names = COCO_NAMES
    names = {i: name for i, name in names.items() if i < count - 1}
    return ClassHead(weight, bias, {i: i for i in names}, names)


def coco_things_head(weight: torch.Tensor, bias: torch.Tensor) -> ClassHead:
    """The 81 rows that official DETR's converter to Detectron2 makes of 92.

    One version of that converter writes the first class's row where no-object's should be.
    """
    rows = {dataset_id: row for row, dataset_id in enumerate(COCO_THING_IDS)}
    names = {i: COCO_NAMES[i] for i in rows}
    copied = torch.equal(weight[-1], weight[0]) and torch.equal(bias[-1], bias[0])
    return ClassHead(weight, bias, rows, names, has_no_object=not copied)


def choose_rows(
    head: ClassHead,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dataset_ids: list[int] | None,
    class_names: list[str] | None,
) -> ChosenRows:
    """Choose the rows of the model's classes, by category id.

    Args:
        head: the file's.
        weight, bias: the model's own, (K + 1) x C and K + 1; rows that the file lacks keep them.
        dataset_ids, class_names: of the model's K classes; None if not known.
    """
    if problem := _other_classes(head, weight, dataset_ids, class_names):
        return ChosenRows(None, None, 0, problem)
    assert dataset_ids is not None
    weight, bias = weight.clone(), bias.clone()
    absent = [dataset_id for dataset_id in dataset_ids if dataset_id not in head.rows]
    for index, dataset_id in enumerate(dataset_ids):
        if dataset_id in head.rows:
            row = head.rows[dataset_id]
            weight[index], bias[index] = head.weight[row], head.bias[row]
    taken = len(dataset_ids) - len(absent) + int(head.has_no_object)
    note = f"{taken} of {len(weight)} rows: by category id, out of {len(head.weight)}"
    if absent:
        shown = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        note += f"; {len(absent)} classes that the file lacks stay as they were (ids {shown})"
    if head.has_no_object:
        weight[-1], bias[-1] = head.weight[-1], head.bias[-1]
    else:
        note += (
            "; no-object stays as it was: the file has a copy of its first class there, a mistake "
            "of the program that converted it; load the official file itself instead"
        )
    return ChosenRows(weight, bias, taken, note)


def _other_classes(head: ClassHead, weight, dataset_ids, class_names) -> str | None:
    """Why the file's category ids are not those of the model's classes; None if they are."""
    if head.weight.shape[1:] != weight.shape[1:]:
        return "the file has another MODEL.DETR.HIDDEN_DIM"
    if not head.names:
        return (
            f"the file has {len(head.weight)} rows and no class names, so it is not known which "
            f"classes they are (COCO's have {PANOPTIC_ROWS} or {BOX_ROWS})"
        )
    if dataset_ids is None or class_names is None or len(dataset_ids) != len(weight) - 1:
        return "the category ids and names of the model's data set are not known"
    both = [(i, n) for i, n in zip(dataset_ids, class_names, strict=True) if i in head.names]
    if not both:
        return "the model's data set shares no category id with the file"
    for dataset_id, name in both:
        if head.names[dataset_id] != name:
            return (
                f"the model's data set has other classes: its id {dataset_id} is {name!r}, the "
                f"file's is {head.names[dataset_id]!r}"
            )
    return None
