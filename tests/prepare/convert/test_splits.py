from pathlib import Path

import pytest

from detr_panoptic_d2.prepare.convert.dataset_config import roles
from detr_panoptic_d2.prepare.convert.inputs import split_by_chance
from detr_panoptic_d2.prepare.convert.source import Item, Source, resolve_inside
from detr_panoptic_d2.prepare.convert.writer import png_names

ITEMS = [Item(f"{i:03d}.jpg", None) for i in range(50)]
SHARES = {"train": 0.8, "val": 0.2}


def names(items, shares, seed=0):
    splits = split_by_chance(Source(Path(), [], items, None), shares, seed)
    return {name: {item.file_name for item in split.items} for name, split in splits.items()}


def test_split_by_seed_does_not_depend_on_the_order():
    splits = names(ITEMS, SHARES)
    assert [len(s) for s in splits.values()] == [40, 10]
    assert splits["train"] | splits["val"] == {item.file_name for item in ITEMS}
    assert names(ITEMS[::-1], SHARES) == splits
    assert names(ITEMS, SHARES, seed=1) != splits


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"a": 0.5, "b": 0.4}, "add up to 1"),
        ({"a": 1.5, "b": -0.5}, "must be positive"),
        ({"a": 0.999, "b": 0.001}, "leaves one empty"),
    ],
)
def test_bad_shares(shares, message):
    with pytest.raises(ValueError, match=message):
        names(ITEMS, shares)


@pytest.mark.parametrize(
    "given, train, test",
    [
        (["train", "val"], ["train"], ["val"]),
        (["val", "train"], ["train"], ["val"]),
        (["train", "val", "test"], ["train"], ["val"]),
        (["test", "train", "more"], ["train", "more"], ["test"]),
        (["a", "b", "c"], ["a", "b"], ["c"]),
        (["train"], ["train"], ["train"]),
        (["val"], ["val"], ["val"]),
    ],
)
def test_what_is_trained_on_is_not_evaluated(given, train, test):
    assert roles(given) == (train, test)


def test_png_names_differ():
    given = ["a.jpg", "b/a.jpg", "a.png", "a.jpg.tif", "c.JPG", "C.png", "d"]
    assert png_names(given) == [
        "a.jpg.png",
        "b/a.png",
        "a.png.png",
        "a.jpg.tif.png",
        "c.JPG.png",
        "C.png.png",
        "d.png",
    ]


def test_resolve_inside(tmp_path):
    (tmp_path / "root").mkdir()
    root = tmp_path / "root"
    inside = {"a.jpg": "a.jpg", "b/./a.jpg": "b/a.jpg", "b\\a.jpg": "b/a.jpg", "b/../a": "a"}
    inside[str(root / "c.jpg")] = "c.jpg"
    for name, expected in inside.items():
        assert resolve_inside(root, name, "x") == expected
    outside = ["..", ".", "../rooting/a", "/a", "C:a", "b/../../root2/a", "//host/share/a", "..\\a"]
    for name in [*outside, "", None, 3, "a\0b"]:
        with pytest.raises(ValueError, match="^x: "):
            resolve_inside(root, name, "x")
    assert resolve_inside(root, "../a.jpg", "x", base=root / "labels") == "a.jpg"
