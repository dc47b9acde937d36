import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from detr_panoptic_d2.apps.export_checkpoint import spread_rows
from detr_panoptic_d2.checkpoint.class_rows import (
    choose_rows,
    raw_id_head,
)
from detr_panoptic_d2.errors import UserError

THINGS = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]


def head(rows, names=None, width=3):
    """A head whose row r is filled with r."""
    weight = torch.arange(float(rows))[:, None].expand(-1, width).clone()
    return raw_id_head(weight, torch.arange(float(rows)), names)


def fit(file_head, ids, names):
    """Fitted to a model whose own rows are -1."""
    count = len(ids) + 1
    return choose_rows(file_head, -torch.ones(count, 3), -torch.ones(count), ids, names)


def test_rows_by_id_and_not_by_position():
    # In another order than the ids', and with an id of the panoptic head only.
    fitted = fit(head(251), [200, 1, 90], ["rug-merged", "person", "toothbrush"])
    assert fitted.bias.tolist() == [200, 1, 90, 250]
    assert fitted.weight[:, 0].tolist() == [200, 1, 90, 250]
    assert fitted.taken == 4


def test_classes_that_the_file_lacks_stay():
    fitted = fit(head(92), [1, 200], ["person", "rug-merged"])
    assert fitted.bias.tolist() == [1, -1, 91]
    assert "1 classes that the file lacks stay as they were (ids 200)" in fitted.note


@pytest.mark.parametrize(
    ("ids", "names", "why"),
    [
        # Row 26 of COCO's head exists, but 26 is no category of COCO.
        ([26], ["hat"], "shares no category id with the file"),
        ([300], ["cell"], "shares no category id with the file"),
        ([1, 2], ["cell", "bicycle"], "its id 1 is 'cell', the file's is 'person'"),
        ([1], None, "category ids and names of the model's data set are not known"),
        (None, ["person"], "category ids and names of the model's data set are not known"),
    ],
)
def test_other_classes_get_nothing(ids, names, why):
    rows = len(ids or names) + 1
    fitted = choose_rows(head(251), torch.zeros(rows, 3), torch.zeros(rows), ids, names)
    assert fitted.weight is None
    assert why in fitted.note


def test_rows_without_names_are_nobodys():
    fitted = fit(head(12), [1], ["person"])
    assert fitted.weight is None
    assert "12 rows and no class names" in fitted.note


def test_names_in_the_file_count():
    fitted = fit(head(12, {3: "cell", 7: "wall"}), [7, 3], ["wall", "cell"])
    assert fitted.bias.tolist() == [7, 3, 11]
    # 92 rows, but other classes than COCO's.
    fitted = fit(head(92, {1: "cell"}), [1], ["person"])
    assert "its id 1 is 'person', the file's is 'cell'" in fitted.note


def test_names_of_coco_as_transformers_writes_them():
    """The published panoptic files name the things and call everything else LABEL_n, left out."""
    names = {c["id"]: c["name"] for c in COCO_CATEGORIES if c["isthing"]}
    fitted = fit(head(251, names), [200, 1], ["rug-merged", "person"])
    assert fitted.bias.tolist() == [200, 1, 250]


@pytest.mark.parametrize(("ids", "rows"), [(THINGS, 92), ([1, 200], 251), ([7, 3], 251)])
def test_spread_and_back_is_exact(ids, rows):
    names = {c["id"]: c["name"] for c in COCO_CATEGORIES}
    names = [names[i] for i in ids]
    rows = rows if 200 in ids or len(ids) == 80 else 92
    weight, bias = torch.randn(len(ids) + 1, 3), torch.randn(len(ids) + 1)
    spread, spread_bias, spread_names = spread_rows(weight, bias, ids, names)
    assert len(spread) == len(spread_bias) == rows
    fitted = fit(raw_id_head(spread, spread_bias, spread_names), ids, names)
    assert torch.equal(fitted.weight, weight)
    assert torch.equal(fitted.bias, bias)
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
