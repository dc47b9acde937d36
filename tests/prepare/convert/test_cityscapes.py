import numpy as np
import pytest

from detr_panoptic_d2.prepare.convert import Cityscapes, WriteOptions, convert

H, W = 16, 32


@pytest.fixture
def root(tmp_path, save_image, save_mask):
    """One image per split in the layout of the data set."""
    values = np.zeros((H, W), np.uint16)
    values[:8], values[8:] = 23, 7
    values[10:14, 4:8], values[10:14, 12:16], values[10:14, 20:28] = 26000, 26001, 26
    values[15], values[0, :3] = 1, 29000
    root = tmp_path / "cityscapes"
    for split, city in (("train", "aachen"), ("val", "ulm")):
        stem = f"{split}/{city}/{city}_000000_000019"
        save_image(root / f"leftImg8bit/{stem}_leftImg8bit.png", H, W)
        save_mask(root / f"gtFine/{stem}_gtFine_instanceIds.png", values)
    return root


def test_objects_groups_stuff_and_void(root, convert_and_check):
    result = convert_and_check(Cityscapes(root, splits=["val"]), split_name="other")
    name = "val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert result.split.name == "val"
    found = [(n, crowd, int(m.sum())) for n, crowd, m in result.segments(name)]
    assert sorted(found) == [
        ("car", 0, 16),
        ("car", 0, 16),
        ("car", 1, 32),
        ("road", 0, 7 * W - 64),
        ("sky", 0, 8 * W - 3),
    ]
    assert len(result.content["categories"]) == 19
    assert sum(c["isthing"] for c in result.content["categories"]) == 8
    assert {c["name"]: c["id"] for c in result.content["categories"]}["car"] == 26


def test_splits_are_those_of_the_data_set(root, tmp_path):
    splits = convert(Cityscapes(root), tmp_path / "out", WriteOptions(workers=2))
    assert [(s.name, s.num_images) for s in splits] == [("train", 1), ("val", 1)]


def test_void_labels_stay_void_under_a_background(root, convert_and_check):
    result = convert_and_check(Cityscapes(root, splits=["val"]), background="rest")
    name = "val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert (result.classes(name) == "").sum() == W + 3


def test_missing_masks(root):
    next((root / "gtFine/val/ulm").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match="1 masks of split 'val'.*gtFine_trainvaltest.zip"):
        Cityscapes(root)
    with pytest.raises(FileNotFoundError, match="split 'test'"):
        Cityscapes(root, splits=["test"])
