"""Which rows of a checkpoint's class head are which classes of a model.

Official DETR's class heads have one row per raw category id of the annotation file, unused ids
included, and no-object as the last row: 251 rows for COCO panoptic, 92 for COCO boxes. A model here
has one row per class of its data set, in contiguous order, and no-object last.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from ..errors import UserError

COCO_NAMES = {category["id"]: category["name"] for category in COCO_CATEGORIES}
COCO_THING_IDS = sorted(c["id"] for c in COCO_CATEGORIES if c["isthing"])
# Rows of the official heads: max. id + 1 (250 is official's own round number) and no-object.
PANOPTIC_ROWS, BOX_ROWS = 251, 92
# In a head written here, rows of ids without a class have zero weights and this bias: their
# probability is exactly 0 in float32 and float16 alike.
UNUSED_BIAS = -1e4


class ClassHead(NamedTuple):
    """A checkpoint's class head.

    Attributes:
        weight: R x C.
        bias: R.
        rows: row of each raw category id; None if the rows are the contiguous classes of the
            model that wrote the file.
        names: class name of raw ids, as far as known.
        has_no_object: whether the last row is truly no-object's.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    rows: dict[int, int] | None = None
    names: Mapping[int, str] = {}
    has_no_object: bool = True


class FittedRows(NamedTuple):
    """A class head as the model needs it, or why there is none.

    Attributes:
        weight, bias: of the model's shapes; None if nothing fits.
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
        names: class name of row numbers, where the file has them.
    """
    count = len(weight)
    names = dict(names or {})
    things = {i: name for i, name in names.items() if i <= COCO_THING_IDS[-1]}
    if count in (PANOPTIC_ROWS, BOX_ROWS) and all(
        COCO_NAMES.get(i) in (None, things[i]) for i in things
    ):
        names = COCO_NAMES
    rows = {i: i for i in range(count - 1)}
    return ClassHead(weight, bias, rows, {i: names[i] for i in rows if i in names})


def coco_things_head(weight: torch.Tensor, bias: torch.Tensor) -> ClassHead:
    """The 81 rows that official DETR's converter to Detectron2 makes of 92.

    One version of that converter writes the first class's row where no-object's should be.
    """
    rows = {dataset_id: row for row, dataset_id in enumerate(COCO_THING_IDS)}
    copied = torch.equal(weight[-1], weight[0]) and torch.equal(bias[-1], bias[0])
    return ClassHead(weight, bias, rows, COCO_NAMES, has_no_object=not copied)


def fit_rows(
    head: ClassHead,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dataset_ids: list[int] | None,
    class_names: list[str] | None,
) -> FittedRows:
    """Choose the model's rows.

    Args:
        head: the file's.
        weight, bias: the model's own, (K + 1) x C and K + 1; rows that the file lacks keep them.
        dataset_ids, class_names: of the model's K classes; None if not known.
    """
    have, want = len(head.weight), len(weight)
    if head.rows is None:
        if have == want:
            return FittedRows(head.weight, head.bias, want, f"{want} rows as they are")
        return _nothing(f"the file has {have - 1} classes, the model {want - 1}")
    if problem := _why_not(head, dataset_ids, class_names, want):
        return _nothing(problem)
    weight, bias = weight.clone(), bias.clone()
    absent = []
    for index, dataset_id in enumerate(dataset_ids):
        row = head.rows.get(dataset_id) if dataset_id in head.names else None
        if row is None:
            absent.append(dataset_id)
        else:
            weight[index], bias[index] = head.weight[row], head.bias[row]
    notes = [f"by category id, out of {have}"]
    if absent:
        shown = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        notes.append(f"{len(absent)} classes that the file lacks stay as they were (ids {shown})")
    if head.has_no_object:
        weight[-1], bias[-1] = head.weight[-1], head.bias[-1]
    else:
        notes.append(
            "no-object stays as it was: the file has a copy of its first class there, a mistake of "
            "the program that converted it; load the official file itself instead"
        )
    taken = len(dataset_ids) - len(absent) + int(head.has_no_object)
    return FittedRows(weight, bias, taken, "; ".join(notes))


def _why_not(head, dataset_ids, class_names, want) -> str | None:
    """Why the file's raw ids say nothing about the model's classes; None if they do."""
    if not head.names:
        return (
            f"it has {len(head.weight)} rows and no class names, so nobody knows what they stand "
            f"for (COCO's have {PANOPTIC_ROWS} or {BOX_ROWS})"
        )
    if dataset_ids is None or class_names is None or len(dataset_ids) != want - 1:
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


def _nothing(why: str) -> FittedRows:
    return FittedRows(None, None, 0, why)


def spread_rows(
    weight: torch.Tensor,
    bias: torch.Tensor,
    dataset_ids: list[int],
    class_names: list[str] | None,
) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Put a model's class head at raw category ids, as official DETR has it.

    COCO's classes give 251 or 92 rows, others as many as their greatest id needs. Rows of unused
    ids have zero weights and :data:`UNUSED_BIAS`.

    Args:
        weight, bias: (K + 1) x C and K + 1.
        dataset_ids, class_names: of the K classes.

    Returns:
        weight, bias, and the name of each raw id.

    Raises:
        UserError: an id is negative.
    """
    if min(dataset_ids) < 0:
        raise UserError(f"category id {min(dataset_ids)} is negative: official heads have no row")
    class_names = class_names or [f"class {i}" for i in dataset_ids]
    names = dict(zip(dataset_ids, class_names, strict=True))
    count = max(dataset_ids) + 2
    if all(COCO_NAMES.get(i) == name for i, name in names.items()):
        count = BOX_ROWS if set(names) <= set(COCO_THING_IDS) else PANOPTIC_ROWS
    spread = weight.new_zeros((count, weight.shape[1]))
    spread_bias = bias.new_full((count,), UNUSED_BIAS)
    rows = torch.tensor([*dataset_ids, count - 1])
    spread[rows], spread_bias[rows] = weight, bias
    return spread, spread_bias, names
