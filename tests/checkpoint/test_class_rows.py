"""Rows of a class head by category id; whole files: test_official.py and test_huggingface.py."""

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from detr_panoptic_d2.apps.export_checkpoint import spread_rows
from detr_panoptic_d2.checkpoint.class_rows import choose_rows, raw_id_head
from detr_panoptic_d2.errors import UserError

NAMES = {c["id"]: c["name"] for c in COCO_CATEGORIES}
THINGS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]
# The published panoptic files of Hugging Face name the things, and call the rest LABEL_n.
THING_NAMES = {i: NAMES[i] for i in THINGS}


def choose(rows, names, ids, class_names):
    """Rows of a head whose row r is filled with r, for a model whose own rows are -1."""
    weight = torch.arange(float(rows))[:, None].expand(-1, 3).clone()
    head = raw_id_head(weight, torch.arange(float(rows)), names)
    count = len(ids or class_names) + 1
    return choose_rows(head, -torch.ones(count, 3), -torch.ones(count), ids, class_names)


@pytest.mark.parametrize(
    ("rows", "names", "ids", "class_names", "expected"),
    [
        # By id and not by position: another order, and an id of the panoptic head only.
        (251, None, [200, 1, 90], ["rug-merged", "person", "toothbrush"], [200, 1, 90, 250]),
        (251, THING_NAMES, [200, 1], ["rug-merged", "person"], [200, 1, 250]),
        (12, {3: "cell", 7: "wall"}, [7, 3], ["wall", "cell"], [7, 3, 11]),
        # A class that the file lacks keeps the model's row.
        (92, None, [1, 200], ["person", "rug-merged"], [1, -1, 91]),
    ],
)
def test_rows_by_id(rows, names, ids, class_names, expected):
    chosen = choose(rows, names, ids, class_names)
    assert chosen.bias.tolist() == chosen.weight[:, 0].tolist() == expected
    assert chosen.taken == len(expected) - expected.count(-1)
    assert ("1 classes that the file lacks" in chosen.note) == (-1 in expected)


@pytest.mark.parametrize(
    ("rows", "names", "ids", "class_names", "why"),
    [
        # Row 26 of COCO's head exists, but 26 is no category of COCO.
        (251, None, [26], ["hat"], "shares no category id with the file"),
        (251, None, [1, 2], ["cell", "bicycle"], "its id 1 is 'cell', the file's is 'person'"),
        (92, {1: "cell"}, [1], ["person"], "its id 1 is 'person', the file's is 'cell'"),
        (251, None, [1], None, "category ids and names of the model's data set are not known"),
        (251, None, None, ["person"], "category ids and names of the model's data set are not"),
        (12, None, [1], ["person"], "12 rows and no class names"),
    ],
)
def test_other_classes_get_nothing(rows, names, ids, class_names, why):
    chosen = choose(rows, names, ids, class_names)
    assert chosen.weight is None
    assert why in chosen.note


@pytest.mark.parametrize(("ids", "rows"), [(THINGS, 92), ([1, 200], 251), ([7, 3], 92)])
def test_spread_and_back_is_exact(ids, rows):
    names = [NAMES[i] for i in ids]
    weight, bias = torch.randn(len(ids) + 1, 3), torch.randn(len(ids) + 1)
    spread, spread_bias, spread_names = spread_rows(weight, bias, ids, names)
    assert len(spread) == len(spread_bias) == rows
    head = raw_id_head(spread, spread_bias, spread_names)
    chosen = choose_rows(head, torch.zeros_like(weight), torch.zeros_like(bias), ids, names)
    assert torch.equal(chosen.weight, weight)
    assert torch.equal(chosen.bias, bias)
    # Unused rows take nothing away from the others.
    x = torch.randn(5, 3)
    wide = (x @ spread.T + spread_bias).softmax(-1)
    narrow = (x @ weight.T + bias).softmax(-1)
    used = [*ids, rows - 1]
    torch.testing.assert_close(wide[:, used], narrow)
    wide[:, used] = 0
    assert not wide.any()


def test_spread_other_classes():
    spread, _, names = spread_rows(torch.randn(3, 3), torch.randn(3), [30, 10], None)
    assert len(spread) == 32
    assert names == {30: "class 30", 10: "class 10"}
    with pytest.raises(UserError, match="category id -1 is negative"):
        spread_rows(torch.randn(2, 3), torch.randn(2), [-1], None)
