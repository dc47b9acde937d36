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
from detr_panoptic_d2.prepare.check.dataset import DatasetPaths, check_dataset
from detr_panoptic_d2.prepare.check.findings import MAX_PER_IMAGE, WARNINGS, fix_json
from detr_panoptic_d2.prepare.check.report import describe

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def check(clean):
    """Save the set and check it."""

    def run(**options):
        clean.save()
        return check_dataset(DatasetPaths("small", **clean.paths), **options)

    return run


@pytest.fixture
def clean(small_set):
    """The small set, with all its classes in use and enough images for a tenth to be a few."""
    small_set.content["categories"].pop()
    for index in range(2, 20):
        name = f"{index}.png"
        Image.new("RGB", (12, 8), (index, 0, 0)).save(small_set.image_root / name)
        small_set.save_ids(name)
        image = {"id": 10 + index, "file_name": name, "height": 8, "width": 12}
        segments = copy.deepcopy(small_set.content["annotations"][0]["segments_info"])
        annotation = {"image_id": 10 + index, "file_name": name, "segments_info": segments}
        small_set.content["images"].append(image)
        small_set.content["annotations"].append(annotation)
    return small_set


def fix(report):
    """Apply the fixes of a report: (number, backup)."""
    return fix_json(report.paths.panoptic_json, report.findings)


SHARED = ("image-in-two-sets", "similar-image", "same-photograph")
FIRST = ("annotations", 0)
SEGMENTS = (*FIRST, "segments_info")
ABSENT = object()
# An entry of the json, what of it is changed, and the kinds of findings; with "+" all are fixed.
CHANGED = [
    (("categories", 1), {"isthing": ABSENT}, "bad-entry id-without-entry"),
    (("images", 0), {"id": ABSENT}, "bad-entry"),
    (("images", 0), {"file_name": "../a.png"}, "bad-entry"),
    (("images", 0), {"height": 0}, "bad-entry"),
    (("images", 0), {"width": 99}, "+wrong-size"),
    (("images", 1), {"file_name": "sub/a.png"}, "duplicate-image"),
    (FIRST, {"image_id": 99}, "bad-entry no-annotation"),
    (FIRST, {"file_name": "1.png"}, "shared-png"),
    (FIRST, {"file_name": "/etc/passwd"}, "bad-entry no-annotation"),
    (FIRST, {"segments_info": None}, "bad-entry no-annotation"),
    ((*SEGMENTS, 1), {"id": 0}, "bad-entry id-without-entry"),
    ((*SEGMENTS, 1), {"iscrowd": 2}, "bad-entry id-without-entry"),
    ((*SEGMENTS, 1), {"iscrowd": ABSENT}, "+wrong-crowd"),
    ((*SEGMENTS, 1), {"category_id": 77}, "bad-entry id-without-entry"),
    ((*SEGMENTS, 1), {"area": 13}, "+wrong-area"),
    ((*SEGMENTS, 1), {"area": ABSENT}, "+no-area"),
    ((*SEGMENTS, 1), {"bbox": [4, 2, 3, 2]}, "+wrong-box"),
]
# The same with a changed copy at the end of the list, and with the entry removed from it.
COPIED = [
    (("categories", 1), {"name": "x"}, "bad-entry"),
    (("categories", 1), {"id": 5}, "category-name unused-class"),
    (("categories", 1), {}, "+repeated-entry"),
    (("images", 0), {"file_name": "b.tif"}, "bad-entry"),
    (("images", 0), {}, "+repeated-entry"),
    (FIRST, {"file_name": "1.png"}, "bad-entry"),
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
    def apply(small_set):
        entry = entry_at(small_set.content, place)
        entry.update(change)
        for key in [key for key, value in entry.items() if value is ABSENT]:
            del entry[key]

    return apply


def _copied(place, change):
    def apply(small_set):
        entry = copy.deepcopy(entry_at(small_set.content, place))
        entry_at(small_set.content, place[:-1]).append({**entry, **change})

    return apply


def _removed(place):
    return lambda small_set: entry_at(small_set.content, place[:-1]).pop(place[-1])


def _picture(change):
    return lambda small_set: change(small_set.image_root / "sub/a.png")


def _png(change):
    return lambda small_set: change(small_set.panoptic_root / "0.png")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def _rotate(path):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as picture:
        picture.save(path, exif=exif)


def _wide(small_set):
    Image.new("RGB", (13, 8)).save(small_set.image_root / "sub/a.png")
    small_set.content["images"][0]["width"] = 13


def _same_picture(small_set):
    picture = (small_set.image_root / "sub/a.png").read_bytes()
    (small_set.image_root / "b.png").write_bytes(picture)
    small_set.content["images"][1]["file_name"] = "b.png"


def _ids(index, value, *entries):
    """Change ids of the first PNG, and set its segments."""

    def apply(small_set):
        small_set.ids[index(small_set.ids)] = value
        small_set.save_ids("0.png")
        if entries:
            small_set.content["annotations"][0]["segments_info"] = [
                dict(zip(("id", "category_id", "area", "bbox"), entry, strict=True), iscrowd=0)
                for entry in entries
            ]

    return apply


ROAD, CAR = (70000, 50, 68, [2, 0, 10, 8]), (300, 4, 12, [4, 2, 4, 3])
FILES = [
    (_picture(Path.unlink), "missing-image"),
    (_picture(_truncate), "unreadable-image"),
    (_picture(lambda path: path.write_text("<html>")), "unreadable-image"),
    (_picture(_rotate), "exif-rotated"),
    (_wide, "png-size"),
    (_same_picture, "duplicate-image"),
    (_png(Path.unlink), "missing-png"),
    (_png(_truncate), "unreadable-png"),
    (_png(Image.new("L", (12, 8)).save), "unreadable-png"),
    (_ids(lambda ids: ids == 300, 70000), "+segment-without-pixels wrong-area"),
    (_ids(lambda ids: ids > 0, 0), "nothing-labelled segment-without-pixels"),
    (_ids(lambda ids: (0, 0), 5, ROAD, CAR, (5, 4, 1, [0, 0, 1, 1])), "one-pixel"),
    (
        _ids(
            lambda ids: np.s_[:, 10:],
            5,
            (70000, 50, 52, [2, 0, 8, 8]),
            CAR,
            (5, 50, 16, [10, 0, 2, 8]),
        ),
        "split-stuff",
    ),
]
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
    before = clean.panoptic_json.read_bytes()
    count, backup = fix(report)
    assert count == sum(f.fix is not None for f in report.findings) and report.num_uncertain == 0
    if not count:
        assert backup is None and clean.panoptic_json.read_bytes() == before
        return
    assert backup.read_bytes() == before
    again = check_dataset(report.paths)
    assert not any(f.fix for f in again.findings)
    if fixable:
        assert again.findings == []
        load_panoptic_json(**clean.paths)
        if "segment-without-pixels" not in expected:
            assert json.loads(clean.panoptic_json.read_text()) == good


def test_every_kind_has_a_case_and_is_in_the_docs():
    found = {kind for _, expected in CASES for kind in expected.strip("+").split()}
    text = (Path(__file__).parents[2] / "docs/own_data.md").read_text(encoding="utf-8")
    errors, warnings = text.partition("| errors |")[2].partition("`--fix`")[0].split("Warnings:")
    assert set(re.findall("`([a-z-]+)`", warnings)) == set(WARNINGS)
    assert set(re.findall("`([a-z-]+)`", errors)) | set(WARNINGS) == found | {"no-labels", *SHARED}


def test_nothing_is_wrong(clean, check):
    entry_at(clean.content, (*SEGMENTS, 1))["iscrowd"] = 1
    for workers in (1, 2):
        report = check(workers=workers)
        assert report.findings == [] and not report.has_errors
        printed = describe(report)
        assert "20 images, 16.7 % of the pixels void. At most 2 segments" in printed
        rows = [line.split() for line in printed.splitlines()[4:6]]
        assert rows[0] == ["road", "stuff", "20", "20", "0", "68", "68", "68"]
        assert rows[1] == ["car", "thing", "20", "19", "1", "12", "12", "12"]
        assert printed.endswith("No errors and no warnings.")


def test_several_fixes_at_once_and_no_backup_is_lost(clean, check):
    infos = entry_at(clean.content, SEGMENTS)
    infos.insert(0, {"id": 9, "category_id": 4, "area": 3})
    infos.append(dict(infos[1]))
    infos.append({"id": 8, "category_id": 4, "iscrowd": 0, "area": 3})
    infos[2]["area"] = 0
    clean.content["annotations"].append(copy.deepcopy(entry_at(clean.content, FIRST)))
    clean.content["images"].insert(1, dict(clean.content["images"][0]))
    report = check()
    assert fix(report)[1].name == "panoptic.json.bak"
    assert check_dataset(report.paths).findings == []
    assert fix(check())[1].name == "panoptic.json.bak1"


def test_findings_of_an_image_are_capped(clean, check):
    clean.ids[:] = np.arange(8 * 12).reshape(8, 12) + 500
    clean.save_ids("0.png")
    findings = [f for f in check().findings if f.kind == "id-without-entry"]
    assert len(findings) == MAX_PER_IMAGE + 1 and findings[-1].detail == "96 of these in total"


def _wrong_png(small_set):
    """Another size, and an area that does not fit it."""
    Image.new("RGB", (20, 8), (44, 1, 0)).save(small_set.panoptic_root / "0.png")
    del entry_at(small_set.content, (*SEGMENTS, 1))["iscrowd"]


def _wrong_ids(small_set):
    small_set.ids[small_set.ids == 300] = 301
    small_set.save_ids("0.png")
    entry_at(small_set.content, (*SEGMENTS, 0))["area"] = 1


def _other_pngs(small_set):
    """The PNGs of other images: every fifth segment has another area."""
    small_set.ids[0, 2:5] = 300
    for index in range(4):
        small_set.save_ids(f"{index}.png")


@pytest.mark.parametrize("change, fixed", [(_wrong_png, 1), (_wrong_ids, 0), (_other_pngs, 0)])
def test_what_is_not_sure_is_not_fixed(clean, check, change, fixed):
    change(clean)
    before = copy.deepcopy(clean.content)
    report = check()
    assert report.has_errors and report.num_uncertain > 0
    assert fix(report)[0] == fixed
    after = json.loads(clean.panoptic_json.read_text())
    # The missing crowd flag has nothing to do with the PNG.
    segment_of = after["annotations"][0]["segments_info"][1]
    assert segment_of.pop("iscrowd") == 0
    before["annotations"][0]["segments_info"][1].pop("iscrowd", None)
    assert after == before


def test_real_sets_are_clean(sample_data):
    root = sample_data("coco_panoptic_sample")
    paths = root / "val2017", root / "panoptic_val2017", root / "panoptic_val2017.json"
    report = check_dataset(DatasetPaths("coco", *map(str, paths)))
    assert {f.kind for f in report.findings} == {"unused-class"}
    root = sample_data("pennfudan_panoptic")
    paths = root / "val", root / "panoptic_val", root / "panoptic_val.json"
    assert check_dataset(DatasetPaths("penn", *map(str, paths)), workers=2).findings == []


@pytest.fixture
def sets(small_set, tmp_path):
    """Two clean data sets, by name, and a config that names them."""
    found = {"train": small_set, "val": type(small_set)(tmp_path / "val")}
    for number, some in enumerate(found.values()):
        some.content["categories"].pop()
        for index, image in enumerate(some.content["images"]):
            color = (index, number, 0)
            Image.new("RGB", (12, 8), color).save(some.image_root / image["file_name"])
        some.save()
    items = [{"name": f"my_{name}", **some.paths} for name, some in found.items()]
    datasets = {"REGISTER": items, "TRAIN": ["my_train"], "TEST": ["my_val"]}
    return found, save_config(tmp_path / "mine.yaml", datasets)


def save_config(path, datasets):
    # JSON is YAML.
    path.write_text(json.dumps({"DATASETS": datasets}))
    return path


@pytest.fixture
def command(run_command):
    """Return ``run(*arguments)``: (exit status, what was printed and logged)."""
    return lambda *arguments: run_command("check", "--workers", "1", *arguments)


def test_all_sets_of_a_config(sets, command, tmp_path):
    status, printed = command("--config-file", sets[1], "--output", tmp_path / "checked")
    assert status == 0
    assert (
        printed.count("No errors and no warnings.") == 2
        and "my_train" in printed
        and "my_val" in printed
    )
    plots = tmp_path / "checked/my_train.png", tmp_path / "checked/my_val.png"
    plots = *plots, tmp_path / "checked/examples.png"
    assert all(np.asarray(Image.open(plot)).std() > 0 for plot in plots)


def test_too_few_queries_of_a_config(sets, command):
    opts = "--config-file", sets[1], "MODEL.DETR.NUM_OBJECT_QUERIES"
    assert "NUM_OBJECT_QUERIES" not in command(*opts, 2)[1]
    assert "NUM_OBJECT_QUERIES is 1, but an image has 2 segments" in command(*opts, 1)[1]


def photograph(seed):
    """A smooth random picture."""
    cells = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(cells).resize((120, 90), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "names, seeds, kind",
    [
        (("a.png", "b.tif"), (1, 2), None),
        (("a.png", "a.png"), (1, 2), None),
        (("frame_0_1.png", "frame_0_2.png"), (1, 2), None),
        (("a.png", "b.png"), (1, 1), "nearly the same picture"),
        (("street7_0_1.png", "street7_0_2.png"), (1, 2), "the same photograph"),
        (
            ("a_jpg.rf.0123456789abcdef.png", "a_jpg.rf.fedcba9876543210.png"),
            (1, 2),
            "the same photograph",
        ),
    ],
)
def test_images_of_two_sets_that_are_alike(sets, command, tmp_path, names, seeds, kind):
    for some, name, seed in zip(sets[0].values(), names, seeds, strict=True):
        some.content["images"] = [{"id": 1, "file_name": name}]
        picture = photograph(seed)
        if some is sets[0]["val"]:
            # Another size and brightness: another file.
            picture = picture.resize((100, 75)).point(lambda v: 0.9 * v)
        picture.save(some.image_root / name)
        ids = np.zeros((picture.height, picture.width, 3), np.uint8)
        ids[..., 0] = 9
        Image.fromarray(ids).save(some.panoptic_root / "0.png")
        segments = [{"id": 9, "category_id": 4, "area": ids[..., 0].size, "iscrowd": 0}]
        annotation = {"image_id": 1, "file_name": "0.png", "segments_info": segments}
        some.content["annotations"] = [annotation]
        some.save()
    status, printed = command("--config-file", sets[1], "--output", tmp_path / "checked")
    assert status == 0 and ("are in two sets" in printed) == (kind is not None)
    assert kind is None or kind in printed


def paths_of(small_set, **changed):
    paths = {**small_set.paths, **changed}
    return [a for key, path in paths.items() for a in (f"--{key.replace('_', '-')}", path)]


def test_exit_status_and_fix(sets, command, tmp_path):
    val = sets[0]["val"]
    good = json.loads(val.panoptic_json.read_text())
    val.content["annotations"][1]["segments_info"][1]["area"] = 7
    val.save()
    status, printed = command(*paths_of(val), "--output", tmp_path / "checked")
    assert status == 1 and "wrong-area" in printed
    (row,) = csv.DictReader((tmp_path / "checked/findings.csv").read_text().splitlines())
    assert (row["kind"], row["where"], row["fixable"]) == ("wrong-area", "b.tif", "True")
    assert command(*paths_of(val), "--fix")[0] == 0
    assert json.loads(val.panoptic_json.read_text()) == good
    assert val.panoptic_json.with_name("panoptic.json.bak").is_file()
    assert command(*paths_of(val), "--fix")[0] == 0
    assert not val.panoptic_json.with_name("panoptic.json.bak1").exists()


def test_an_image_is_not_overwritten_by_a_plot(sets, command):
    val = sets[0]["val"]
    val.content["images"][1]["file_name"] = "panoptic.png"
    (val.image_root / "b.tif").rename(val.image_root / "panoptic.png")
    val.save()
    before = (val.image_root / "panoptic.png").read_bytes()
    status, printed = command(*paths_of(val), "--output", val.image_root)
    assert status == 1 and "would overwrite the input" in printed
    assert (val.image_root / "panoptic.png").read_bytes() == before
    assert not (val.image_root / "findings.csv").exists()


def test_crowds_alone_are_no_labels(sets, command):
    """Training refuses the same set."""
    val = sets[0]["val"]
    for annotation in val.content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
    val.save()
    status, printed = command(*paths_of(val))
    assert status == 1 and "no-labels" in printed and "not a crowd" in printed


def test_swapped_folders(sets, command):
    """All segments without a pixel: that is not put right by removing them."""
    val = sets[0]["val"]
    for image, name in zip(val.content["images"], ("0.png", "1.png"), strict=True):
        image["file_name"] = name
        Image.new("RGB", (12, 8), (9, 9, 9)).save(val.image_root / name)
    val.save()
    before = val.panoptic_json.read_bytes()
    swapped = {"image_root": val.panoptic_root, "panoptic_root": val.image_root}
    status, printed = command(*paths_of(val, **swapped), "--fix")
    assert status == 1 and "nothing can be fixed" in printed
    assert "have no certain fix" in printed
    assert val.panoptic_json.read_bytes() == before


def test_warnings_are_no_failure(sets, command):
    (train, val), config = sets[0].values(), sets[1]
    val.content["annotations"][1]["segments_info"][1]["bbox"] = [0, 0, 1, 1]
    val.save()
    for image in val.content["images"]:
        picture = (train.image_root / image["file_name"]).read_bytes()
        (val.image_root / image["file_name"]).write_bytes(picture)
    status, printed = command("--config-file", config)
    assert status == 0 and "wrong-box" in printed
    assert (
        "2 images are in two sets (the same file), for example 'sub/a.png' and 'sub/a.png' of my_"
        in printed
    )


def test_no_check_is_possible(command, tmp_path):
    item = {"name": "x", "image_rot": "y"}
    for datasets, message in (
        ({"TRAIN": [], "TEST": []}, "names no data set"),
        ({"REGISTER": [item]}, "DATASETS.REGISTER[0] is"),
        ({"TEST": ["none"]}, "'none' is not a registered panoptic data set"),
    ):
        config = save_config(tmp_path / "mine.yaml", datasets)
        status, printed = command("--config-file", config)
        assert status == 1 and message in printed and "Traceback" not in printed
    status, printed = command("--config-file", tmp_path / "none.yaml")
    assert status == 1 and "none.yaml" in printed
    nowhere = {"image_root": "a", "panoptic_root": "b", "panoptic_json": "c.json"}
    item = {"name": "x", **nowhere}
    status, printed = command(
        "--config-file", save_config(tmp_path / "b.yaml", {"REGISTER": [item]})
    )
    assert status == 1 and f"image_root '{tmp_path / 'a'}' is not a folder" in printed
    for arguments in ([], ["--image-root", "x"], ["--config-file", "x", "--image-root", "x"]):
        assert command(*arguments)[0] == 2
