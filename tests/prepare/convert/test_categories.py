import pytest

from detr_panoptic_d2.prepare.convert.categories import (
    Category,
    ClassOptions,
    choose_categories,
    read_class_file,
    with_stuff,
)


def short(categories):
    return [(c["id"], c["name"], c["isthing"]) for c in categories]


def test_ids_and_things():
    found = [Category("a", 3), Category("b", isthing=False), Category("c"), Category("d", 1)]
    assert short(choose_categories(found, ClassOptions())) == [
        (3, "a", 1),
        (2, "b", 0),
        (4, "c", 1),
        (1, "d", 1),
    ]
    options = ClassOptions(things=("b",), stuff=("a",), ignore=("d",))
    assert short(choose_categories(found, options)) == [(3, "a", 0), (1, "b", 1), (2, "c", 1)]
    stuff = choose_categories(found, ClassOptions(), thing_by_default=False)
    assert [c["isthing"] for c in stuff] == [0, 0, 0, 0]
    assert len({tuple(c["color"]) for c in stuff}) == 4


CLASSES = '[{"name": "sky", "id": 8, "color": [1, 2, 3]}, {"name": "a cow", "isthing": 1}]'
FILES = {
    "classes.json": CLASSES,
    "coco.json": f'{{"categories": {CLASSES}}}',
    "list.csv": "name, r, g, b, id, isthing\nsky, 1, 2, 3, 8,\na cow, 4, 5, 6,, 1\n",
    "colors.txt": "1 2 3\tsky\r\n4 5 6 a cow\r\n",
    "names.txt": "\ufeffsky\n\na cow\n",
    "ids.txt": "sky, 8\na cow,9\n",
    "ids.csv": "8, sky\n9;a cow\n",
}


@pytest.mark.parametrize("name", FILES)
def test_forms_of_class_lists(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    sky, cow = read_class_file(tmp_path / name)
    assert (sky.name, cow.name) == ("sky", "a cow")
    if name.startswith("ids"):
        assert (sky.id, cow.id) == (8, 9)
        return
    if name.endswith("txt"):
        assert (sky.id, cow.id) == (0, 1)
    else:
        assert (sky.id, cow.id, cow.isthing) == (8, None, True)
    if name != "names.txt":
        assert sky.color == (1, 2, 3)


BAD = {
    "no.json": "[",
    "text.json": '["sky"]',
    "id.json": '[{"name": "a", "id": "1"}]',
    "color.json": '[{"name": "a", "color": "red"}]',
    "cut.csv": "name, r, g, b\nsky, 1, 2\n",
    "nameless.csv": "r, g, b\n1, 2, 3\n",
    "empty.txt": "\n",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_class_lists_are_named(tmp_path, name):
    (tmp_path / name).write_text(BAD[name])
    with pytest.raises(ValueError, match=name):
        read_class_file(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=name):
        read_class_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone"):
        read_class_file(tmp_path / "gone")


def test_a_list_sets_ids_order_and_what_may_occur(tmp_path):
    (tmp_path / "classes.json").write_text(
        '[{"name": "b", "id": 5}, {"name": "new", "id": 2}, {"name": "a", "id": 9, "isthing": 0}]'
    )
    options = ClassOptions(file=tmp_path / "classes.json")
    chosen = choose_categories([Category("a", 1), Category("b", 2, isthing=False)], options)
    assert short(chosen) == [(5, "b", 0), (2, "new", 1), (9, "a", 0)]
    with pytest.raises(ValueError, match=r"class 'bb', .*did you mean b\?.*--ignore"):
        choose_categories([Category("bb")], options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"things": ("caar",)}, r"--things names 'caar', .*did you mean car\?.*car, sky"),
        ({"ignore": ("x",)}, "--ignore names 'x'"),
        ({"things": ("car",), "stuff": ("car",)}, "both in --things and in --stuff"),
        ({"ignore": ("car", "sky")}, "no classes"),
    ],
)
def test_names_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        choose_categories([Category("car"), Category("sky")], ClassOptions(**options))


def test_with_stuff():
    categories = choose_categories([Category("car", 4)], ClassOptions())
    more = with_stuff(categories, [{"name": "sky", "id": 4}, {"name": "sea", "id": 90}])
    assert short(more) == [(4, "car", 1), (5, "sky", 0), (90, "sea", 0)]
    assert with_stuff(more, [{"name": "sky"}]) == more
    with pytest.raises(ValueError, match="'car' is to be stuff"):
        with_stuff(categories, [{"name": "car"}])
