import pytest

from detr_panoptic_d2.prepare.convert.layout import png_names, split_items
from detr_panoptic_d2.prepare.convert.source import Item, resolve_inside

ITEMS = [Item(f"{i:03d}.jpg", None) for i in range(50)]
SHARES = {"train": 0.8, "val": 0.2}


def test_split_by_seed_does_not_depend_on_the_order():
    splits = split_items(ITEMS, "train", SHARES, seed=0)
    assert splits.count("train") == 40 and splits.count("val") == 10
    assert split_items(ITEMS[::-1], "train", SHARES, seed=0) == splits[::-1]
    assert split_items(ITEMS, "train", SHARES, seed=1) != splits


def test_own_splits_and_one_split():
    items = [Item("a", None, split="val"), Item("b", None)]
    assert split_items(items, "rest", None, seed=0) == ["val", "rest"]


@pytest.mark.parametrize(
    "name, shares, message",
    [
        ("x", {"a": 0.5, "b": 0.4}, "add up to 1"),
        ("x", {"a": 1.5, "b": -0.5}, "must be positive"),
        ("x", {"a": 0.999, "b": 0.001}, "leaves one empty"),
        ("../x", None, "Split name '../x'"),
        ("", None, "Split name ''"),
        ("x", {"a/b": 0.5, "c": 0.5}, "Split name 'a/b'"),
    ],
)
def test_bad_splits(name, shares, message):
    with pytest.raises(ValueError, match=message):
        split_items(ITEMS, name, shares, seed=0)
    with pytest.raises(ValueError, match="no images"):
        split_items([], "train", None, seed=0)


def test_png_names_differ():
    names = ["a.jpg", "b/a.jpg", "a.png", "a.jpg.tif", "c.JPG", "C.png", "d"]
    assert png_names(names, ["t"] * 7) == [
        "a.jpg.png",
        "b/a.png",
        "a.png.png",
        "a.jpg.tif.png",
        "c.JPG.png",
        "C.png.png",
        "d.png",
    ]
    assert png_names(["a.jpg", "a.png"], ["train", "val"]) == ["a.png", "a.png"]


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
