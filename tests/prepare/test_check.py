"""``detr-panoptic check``: what can be wrong in a set, what is fixed, and the command."""

import copy
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json
from detr_panoptic_d2.prepare.check.dataset import (
    DatasetPaths,
    check_dataset,
    fix_json,
    why_not_fixed,
)
from detr_panoptic_d2.prepare.check.findings import MAX_PER_IMAGE, WARNINGS
from detr_panoptic_d2.prepare.check.program import describe
from tests.panoptic_set import PanopticSet

pytestmark = pytest.mark.usefixtures("clean_catalogs")


CATEGORIES = [
    {"id": 50, "name": "road", "isthing": 0},
    {"id": 4, "name": "car", "isthing": 1, "color": [0, 0, 142]},
]


def make_set(root, count):
    """A set in which nothing is wrong: road around a car, and void."""
    ids = np.zeros((8, 12), np.uint32)
    ids[:, 2:] = 70000
    ids[2:5, 4:8] = 300
    maps = [(ids, {70000: 50, 300: 4})] * count
    return PanopticSet(root, maps, CATEGORIES, first_id=10)


@pytest.fixture
def clean(tmp_path):
    """Enough images for a tenth of the segments to be a few."""
    return make_set(tmp_path / "small", 20)


@pytest.fixture
def check(clean):
    """Save the set and check it."""

    def run(**options):
        clean.save()
        return check_dataset(DatasetPaths("small", **clean.paths), **options)

    return run


SHARED = ("image-in-two-sets", "similar-image", "same-photograph")
FIRST = ("annotations", 0)
SEGMENTS = (*FIRST, "segments_info")
ABSENT = object()
# An entry of the json, what of it is changed, and the kinds of findings; with "+" all are fixed.
# The validator of registration is the same: tests/data/test_register.py has more bad entries.
CHANGED = [
    (("categories", 1), {"isthing": ABSENT}, "bad-entry id-without-entry"),
    (("images", 0), {"id": ABSENT}, "bad-entry"),
    (("images", 0), {"width": 99}, "+wrong-size"),
    (("images", 1), {"file_name": "000.png"}, "duplicate-image"),
    (FIRST, {"image_id": 99}, "bad-entry no-annotation"),
    (FIRST, {"file_name": "001.png"}, "shared-png"),
    (FIRST, {"segments_info": None}, "bad-entry no-annotation"),
    ((*SEGMENTS, 1), {"id": 0}, "bad-entry id-without-entry"),
    ((*SEGMENTS, 1), {"iscrowd": ABSENT}, "+wrong-crowd"),
    ((*SEGMENTS, 1), {"area": 13}, "+wrong-area"),
    ((*SEGMENTS, 1), {"area": ABSENT}, "+no-area"),
    ((*SEGMENTS, 1), {"bbox": [4, 2, 3, 2]}, "+wrong-box"),
]
# The same with a changed copy at the end of the list, and with the entry removed from it.
COPIED = [
    (("categories", 1), {"id": 5}, "category-name unused-class"),
    (("categories", 1), {}, "+repeated-entry"),
    (("images", 0), {"file_name": "b.tif"}, "bad-entry"),
    (("images", 0), {}, "+repeated-entry"),
    (FIRST, {}, "+repeated-entry"),
    ((*SEGMENTS, 1), {"category_id": 50}, "bad-entry"),
    ((*SEGMENTS, 1), {}, "+repeated-entry"),
]
REMOVED = [(FIRST, "no-annotation"), ((*SEGMENTS, 1), "id-without-entry")]


def entry_at(content, place):
    for key in place:
        content = content[key]
    return content


def _changed(place, change):
    def apply(some):
        entry = entry_at(some.content, place)
        entry.update(change)
        for key in [key for key, value in entry.items() if value is ABSENT]:
            del entry[key]

    return apply


def _copied(place, change):
    def apply(some):
        entry = copy.deepcopy(entry_at(some.content, place))
        entry_at(some.content, place[:-1]).append({**entry, **change})

    return apply


def _removed(place):
    return lambda some: entry_at(some.content, place[:-1]).pop(place[-1])


def _picture(change):
    return lambda some: change(some.image(0))


def _png(change):
    return lambda some: change(some.png(0))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def _rotate(path):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as picture:
        picture.save(path, exif=exif)


def _wide(some):
    Image.new("RGB", (13, 8)).save(some.image(0))
    some.content["images"][0]["width"] = 13


def _ids(index, value, *entries):
    """Change ids of the first PNG, and set its segments."""

    def apply(some):
        some.ids[index(some.ids)] = value
        some.save_ids(0)
        keys = ("id", "category_id", "area", "bbox")
        segments = [dict(zip(keys, entry, strict=True), iscrowd=0) for entry in entries]
        some.content["annotations"][0]["segments_info"] = segments or entry_at(
            some.content, SEGMENTS
        )

    return apply


ROAD, CAR = (70000, 50, 68, [2, 0, 10, 8]), (300, 4, 12, [4, 2, 4, 3])
TWO_ROADS = (70000, 50, 52, [2, 0, 8, 8]), CAR, (5, 50, 16, [10, 0, 2, 8])
FILES = [
    (_picture(Path.unlink), "missing-image"),
    (_picture(_truncate), "unreadable-image"),
    (_picture(lambda path: path.write_text("<html>")), "unreadable-image"),
    (_picture(_rotate), "exif-rotated"),
    (_wide, "png-size"),
    (lambda some: some.image(1).write_bytes(some.image(0).read_bytes()), "duplicate-image"),
    (_png(Path.unlink), "missing-png"),
    (_png(_truncate), "unreadable-png"),
    (_png(Image.new("L", (12, 8)).save), "unreadable-png"),
    (_png(Image.new("RGB", (20, 8), (44, 1, 0)).save), "png-size segment-without-pixels wrong-area"
     " wrong-box"),
    (_ids(lambda ids: ids == 300, 70000), "+segment-without-pixels wrong-area"),
    (_ids(lambda ids: ids == 300, 301), "id-without-entry segment-without-pixels"),
    (_ids(lambda ids: ids > 0, 0), "+nothing-labelled segment-without-pixels"),
    (_ids(lambda ids: (0, 0), 5, ROAD, CAR, (5, 4, 1, [0, 0, 1, 1])), "one-pixel"),
    (_ids(lambda ids: np.s_[:, 10:], 5, *TWO_ROADS), "split-stuff"),
]  # fmt: skip
CASES = [
    *((_changed(place, change), kinds) for place, change, kinds in CHANGED),
    *((_copied(place, change), kinds) for place, change, kinds in COPIED),
    *((_removed(place), kinds) for place, kinds in REMOVED),
    *FILES,
]


@pytest.mark.parametrize("change, expected", CASES)
def test_findings_and_fixes(clean, check, change, expected):
    fixable, expected = expected.startswith("+"), expected.strip("+").split()
    good = copy.deepcopy(clean.content)
    change(clean)
    report = check()
    assert sorted({f.kind for f in report.findings}) == expected
    assert all(kind in describe(report) for kind in expected)
    try:
        # What registration and mapper refuse is an error.
        mapper = PanopticDatasetMapper(
            augmentations=[], image_format="BGR", with_targets=True, with_masks=True
        )
        for item in load_panoptic_json(**clean.paths)[:2]:
            mapper(item)
    except (OSError, ValueError):
        assert report.has_errors
    assert (why_not_fixed(report) == "") == fixable
    if not fixable:
        return
    before = clean.panoptic_json.read_bytes()
    assert fix_json(report).read_bytes() == before
    assert {f.kind for f in check_dataset(report.paths).findings} <= {"nothing-labelled"}
    load_panoptic_json(**clean.paths)
    if "segment-without-pixels" not in expected:
        assert json.loads(clean.panoptic_json.read_text()) == good


def test_every_kind_has_a_case_and_is_in_the_docs():
    found = {kind for _, expected in CASES for kind in expected.strip("+").split()}
    text = (Path(__file__).parents[2] / "docs/own_data.md").read_text(encoding="utf-8")
    errors, warnings = text.partition("| errors |")[2].partition("`--fix`")[0].split("warnings are")
    assert set(re.findall("`([a-z-]+)`", warnings)) == set(WARNINGS)
    assert set(re.findall("`([a-z-]+)`", errors)) | set(WARNINGS) == found | {"no-labels", *SHARED}


def test_nothing_is_wrong(clean, check):
    entry_at(clean.content, (*SEGMENTS, 1))["iscrowd"] = 1
    for workers in (1, 2):
        report = check(workers=workers)
        assert report.findings == [] and why_not_fixed(report) == "there is nothing to fix"
        printed = describe(report)
        assert "20 images, 16.7 % of the pixels void. At most 2 segments" in printed
        rows = [line.split() for line in printed.splitlines()[4:6]]
        assert rows[0] == ["road", "stuff", "20", "20", "0", "68", "68", "68"]
        assert rows[1] == ["car", "thing", "20", "19", "1", "12", "12", "12"]
        assert printed.endswith("No errors and no warnings.")


def test_several_fixes_at_once_and_no_backup_is_lost(clean, check):
    infos = entry_at(clean.content, SEGMENTS)
    infos.insert(0, {"id": 9, "category_id": 4, "area": 3})
    infos += [dict(infos[1]), {"id": 8, "category_id": 4, "iscrowd": 0, "area": 3}]
    infos[2]["area"] = 0
    clean.content["annotations"].append(copy.deepcopy(entry_at(clean.content, FIRST)))
    clean.content["images"].insert(1, dict(clean.content["images"][0]))
    for name in ("panoptic.json.bak", "panoptic.json.bak1"):
        report = check()
        assert why_not_fixed(report) == "" and fix_json(report).name == name
        assert check_dataset(report.paths).findings == []


def test_findings_of_an_image_are_capped(clean, check):
    clean.ids[:] = np.arange(8 * 12).reshape(8, 12) + 500
    clean.save_ids(0)
    findings = [f for f in check().findings if f.kind == "id-without-entry"]
    assert len(findings) == MAX_PER_IMAGE + 1 and findings[-1].detail == "96 of these in total"


def test_pngs_of_another_json_are_not_trusted(clean, check):
    """Every third segment has another area."""
    clean.ids[0, 2:5] = 300
    for index in range(4):
        clean.save_ids(index)
    assert "more than a tenth of the segments" in why_not_fixed(check())


def test_real_sets_are_clean(sample_data):
    root = sample_data("coco_panoptic_sample")
    paths = root / "val2017", root / "panoptic_val2017", root / "panoptic_val2017.json"
    report = check_dataset(DatasetPaths("coco", *map(str, paths)))
    assert {f.kind for f in report.findings} == {"unused-class"}
    root = sample_data("pennfudan_panoptic")
    paths = root / "val", root / "panoptic_val", root / "panoptic_val.json"
    assert check_dataset(DatasetPaths("penn", *map(str, paths)), workers=2).findings == []


# ---- the command


@pytest.fixture
def sets(tmp_path):
    """Two clean datasets, and a config that names them."""
    train, val = make_set(tmp_path / "my_train", 2), make_set(tmp_path / "my_val", 2)
    for index, image in enumerate(val.content["images"]):
        Image.new("RGB", (12, 8), (index, 1, 0)).save(val.image_root / image["file_name"])
    items = [{"name": some.name, **some.paths} for some in (train, val)]
    datasets = {"REGISTER": items, "TRAIN": ["my_train"], "TEST": ["my_val"]}
    return train, val, save_config(tmp_path / "mine.yaml", datasets)


def save_config(path, datasets):
    # JSON is YAML.
    path.write_text(json.dumps({"DATASETS": datasets}))
    return path


@pytest.fixture
def command(run_command):
    """Return ``run(*arguments)``: (exit status, what was printed and logged)."""
    return lambda *arguments: run_command("check", "--workers", "1", *arguments)


def test_all_sets_of_a_config_and_their_pictures(sets, command, tmp_path):
    """Without augmentation, masks and boxes of the mapper are where the annotation has them."""
    options = "--output", tmp_path / "out", "--augmented", 1, "--config-file", sets[2]
    plain = "INPUT.MIN_SIZE_TRAIN", "(320,)", "INPUT.MAX_SIZE_TRAIN", 1000, "INPUT.RANDOM_FLIP"
    plain += "none", "INPUT.CROP.ENABLED", "False", "MODEL.MASK_ON", "True"
    status, printed = command(*options, *plain)
    assert status == 0 and printed.count("No errors and no warnings.") == 2
    names = ("my_train", "my_val", "examples", "augmented")
    pictures = [np.asarray(Image.open(tmp_path / f"out/{name}.png")) for name in names]
    assert all(picture.std() > 0 for picture in pictures)
    picture = pictures[-1].astype(int)[-320 - 6 : -6]
    assert picture.shape == (320, 480, 3)
    # The color of cars is a dark blue. A corner of the box lies outside of no mask but the car's.
    car, road = picture[90:190, 170:310].mean((0, 1)), picture[210:310, 100:470].mean((0, 1))
    void = picture[20:300, 5:70].mean((0, 1))
    assert car[2] - car[0] > 30 > abs(void - 127.5).max() and abs(road - car).max() > 30
    assert command("--augmented", 1, "--config-file", sets[2])[0] == 2


def test_too_few_queries_of_a_config(sets, command):
    opts = "--config-file", sets[2], "MODEL.DETR.NUM_OBJECT_QUERIES"
    assert "NUM_OBJECT_QUERIES" not in command(*opts, 2)[1]
    assert "NUM_OBJECT_QUERIES is 1, but an image has 2 segments" in command(*opts, 1)[1]


def photograph(seed):
    """A smooth random picture."""
    cells = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(cells).resize((120, 90), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "names, seeds, kind",
    [
        (("a.png", "a.png"), (1, 2), None),
        (("frame_0_1.png", "frame_0_2.png"), (1, 2), None),
        (("a.png", "b.png"), (1, 1), "nearly the same picture"),
        (("street7_0_1.png", "street7_0_2.png"), (1, 2), "the same photograph"),
        (("a_jpg.rf.0123456789abcdef.png", "a_jpg.rf.fedcba9876543210.png"), (1, 2),
         "the same photograph"),
    ],
)  # fmt: skip
def test_images_of_two_sets_that_are_alike(tmp_path, command, names, seeds, kind):
    items = []
    for name, seed, size in zip(names, seeds, ((90, 120), (75, 100)), strict=True):
        maps = [(np.full(size, 9), {9: 4})]
        some = PanopticSet(tmp_path / f"set{len(items)}", maps, CATEGORIES[1:2], [name])
        # Another size and brightness: another file.
        picture = photograph(seed).resize(size[::-1])
        brightness = 1 - 0.1 * len(items)
        Image.fromarray((brightness * np.asarray(picture)).astype(np.uint8)).save(some.image(0))
        items.append({"name": some.name, **some.paths})
    config = save_config(tmp_path / "mine.yaml", {"REGISTER": items, "TRAIN": [], "TEST": []})
    status, printed = command("--config-file", config)
    assert status == 0 and ("are in two sets" in printed) == (kind is not None)
    assert kind is None or kind in printed


def paths_of(some, **changed):
    paths = {**some.paths, **changed}
    return [a for key, path in paths.items() for a in (f"--{key.replace('_', '-')}", path)]


def test_exit_status_and_fix(sets, command, tmp_path):
    val = sets[1]
    good = json.loads(val.panoptic_json.read_text())
    val.content["annotations"][1]["segments_info"][1]["area"] = 7
    val.save()
    status, printed = command(*paths_of(val), "--output", tmp_path / "checked")
    assert status == 1 and "wrong-area" in printed
    (row,) = csv.DictReader((tmp_path / "checked/findings.csv").read_text().splitlines())
    assert (row["kind"], row["where"], row["fixable"]) == ("wrong-area", "001.png", "True")
    assert command(*paths_of(val), "--fix")[0] == 0
    assert json.loads(val.panoptic_json.read_text()) == good
    assert val.panoptic_json.with_name("panoptic.json.bak").is_file()
    assert "there is nothing to fix" in command(*paths_of(val), "--fix")[1]
    assert not val.panoptic_json.with_name("panoptic.json.bak1").exists()


def test_an_image_is_not_overwritten_by_a_plot(sets, command):
    val = sets[1]
    val.content["images"][1]["file_name"] = "panoptic.png"
    (val.image_root / "001.png").rename(val.image(1))
    val.save()
    before = val.image(1).read_bytes()
    status, printed = command(*paths_of(val), "--output", val.image_root)
    assert status == 1 and "would overwrite the input" in printed
    assert val.image(1).read_bytes() == before
    assert not (val.image_root / "findings.csv").exists()


def test_crowds_alone_are_no_labels(sets, command):
    """Training refuses the same set."""
    for annotation in sets[1].content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
    sets[1].save()
    status, printed = command(*paths_of(sets[1]))
    assert status == 1 and "no-labels" in printed and "not a crowd" in printed


def test_swapped_folders(sets, command):
    """All segments without a pixel: that is not put right by removing them."""
    val = sets[1]
    before = val.panoptic_json.read_bytes()
    swapped = {"image_root": val.panoptic_root, "panoptic_root": val.image_root}
    status, printed = command(*paths_of(val, **swapped), "--fix")
    assert status == 1 and "is not changed: it has errors that cannot be fixed" in printed
    assert val.panoptic_json.read_bytes() == before


def test_warnings_are_no_failure(sets, command):
    train, val, config = sets
    val.content["annotations"][1]["segments_info"][1]["bbox"] = [0, 0, 1, 1]
    val.save()
    for number in range(2):
        val.image(number).write_bytes(train.image(number).read_bytes())
    status, printed = command("--config-file", config)
    assert status == 0 and "wrong-box" in printed
    example = "for example '000.png' and '000.png' of my_train"
    assert f"2 images are in two sets (the same file), {example}" in printed


def test_no_check_is_possible(command, tmp_path):
    nowhere = {"image_root": "a", "panoptic_root": "b", "panoptic_json": "c.json"}
    folder = f"image_root '{tmp_path / 'a'}' is not a folder"
    for datasets, message in (
        ({"TRAIN": [], "TEST": []}, "names no dataset"),
        ({"REGISTER": [{"name": "x", "image_rot": "y"}]}, "DATASETS.REGISTER[0] is"),
        ({"TEST": ["none"]}, "'none' is not a registered panoptic dataset"),
        ({"REGISTER": [{"name": "x", **nowhere}], "TRAIN": [], "TEST": []}, folder),
    ):
        config = save_config(tmp_path / "mine.yaml", datasets)
        status, printed = command("--config-file", config)
        assert status == 1 and message in printed and "Traceback" not in printed
    status, printed = command("--config-file", tmp_path / "none.yaml")
    assert status == 1 and "none.yaml" in printed
    sets = {"REGISTER": [{"name": "x", **nowhere}], "TRAIN": [], "TEST": []}
    config = save_config(tmp_path / "mine.yaml", sets)
    options = ["--output", tmp_path / "out", "--augmented", 1, "--config-file", config]
    assert "first set of DATASETS.TRAIN, which is empty" in command(*options)[1]
    for arguments in ([], ["--image-root", "x"], ["--config-file", "x", "--image-root", "x"]):
        assert command(*arguments)[0] == 2
