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
    MOST_PER_IMAGE,
    WARNINGS,
    DatasetPaths,
    check_dataset,
    fix_json,
    is_error,
)
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


def segment(small_set, number=1):
    return small_set.content["annotations"][0]["segments_info"][number]


def image(small_set):
    return small_set.content["images"][0]


def annotation(small_set):
    return small_set.content["annotations"][0]


def _save_png(change):
    """Return a function that saves the first PNG with changed ids."""

    def save(small_set):
        change(small_set.ids)
        small_set.save_ids("0.png")

    return save


def _one_pixel(small_set):
    small_set.ids[0, 0] = 5
    small_set.save_ids("0.png")
    entry = {"id": 5, "category_id": 4, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
    annotation(small_set)["segments_info"].append(entry)


def _two_parts(small_set):
    small_set.ids[:, 10:] = 5
    small_set.save_ids("0.png")
    segment(small_set, 0).update(area=52, bbox=[2, 0, 8, 8])
    entry = {"id": 5, "category_id": 50, "iscrowd": 0, "area": 16, "bbox": [10, 0, 2, 8]}
    annotation(small_set)["segments_info"].append(entry)


def _rotated(small_set):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = small_set.image_root / "sub/a.png"
    with Image.open(path) as picture:
        picture.save(path, exif=exif)


def _same_image(small_set):
    with Image.open(small_set.image_root / "sub/a.png") as picture:
        picture.save(small_set.image_root / "b.png")
    (small_set.image_root / "b.png").write_bytes((small_set.image_root / "sub/a.png").read_bytes())
    small_set.content["images"][1]["file_name"] = "b.png"


def _grey_png(small_set):
    Image.new("L", (12, 8)).save(small_set.panoptic_root / "0.png")


def _wide_image(small_set):
    Image.new("RGB", (13, 8)).save(small_set.image_root / "sub/a.png")
    image(small_set)["width"] = 13


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-60])


def _outside(small_set):
    image(small_set)["file_name"] = "../a.png"


CATEGORY = {"id": 5, "name": "x", "isthing": 1}
# name -> (change of the small set, kinds of findings; with "+" all of them are fixed)
CASES = {
    "category without isthing": (
        lambda s: s.content["categories"][1].pop("isthing"),
        "bad-entry id-without-entry",
    ),
    "category id twice": (
        lambda s: s.content["categories"].append({**CATEGORY, "id": 4}),
        "bad-entry",
    ),
    "category name twice": (
        lambda s: s.content["categories"].append({**CATEGORY, "name": "car"}),
        "category-name unused-class",
    ),
    "category repeated": (
        lambda s: s.content["categories"].append(dict(s.content["categories"][1])),
        "+repeated-entry",
    ),
    "image id missing": (lambda s: image(s).pop("id"), "bad-entry"),
    "image id twice": (
        lambda s: s.content["images"].append({**image(s), "file_name": "b.tif"}),
        "bad-entry",
    ),
    "image repeated": (lambda s: s.content["images"].append(dict(image(s))), "+repeated-entry"),
    "image outside": (_outside, "bad-entry"),
    "height 0": (lambda s: image(s).update(height=0), "bad-entry"),
    "image missing": (lambda s: (s.image_root / "sub/a.png").unlink(), "missing-image"),
    "image truncated": (lambda s: _truncated(s.image_root / "sub/a.png"), "unreadable-image"),
    "image is text": (
        lambda s: (s.image_root / "sub/a.png").write_text("<html>"),
        "unreadable-image",
    ),
    "json has another size": (lambda s: image(s).update(width=99), "+wrong-size"),
    "image has another size": (_wide_image, "png-size"),
    "image rotated": (_rotated, "exif-rotated"),
    "same file twice": (_same_image, "duplicate-image"),
    "same entry twice": (
        lambda s: s.content["images"][1].update(file_name="sub/a.png"),
        "duplicate-image",
    ),
    "no annotation": (lambda s: s.content["annotations"].pop(), "no-annotation"),
    "annotation of no image": (
        lambda s: annotation(s).update(image_id=99),
        "bad-entry no-annotation",
    ),
    "two annotations": (
        lambda s: s.content["annotations"].append({**annotation(s), "file_name": "1.png"}),
        "bad-entry",
    ),
    "annotation repeated": (
        lambda s: s.content["annotations"].append(copy.deepcopy(annotation(s))),
        "+repeated-entry",
    ),
    "one PNG for two": (lambda s: annotation(s).update(file_name="1.png"), "shared-png"),
    "PNG outside": (
        lambda s: annotation(s).update(file_name="/etc/passwd"),
        "bad-entry no-annotation",
    ),
    "no segments_info": (
        lambda s: annotation(s).update(segments_info=None),
        "bad-entry no-annotation",
    ),
    "PNG missing": (lambda s: (s.panoptic_root / "0.png").unlink(), "missing-png"),
    "PNG truncated": (lambda s: _truncated(s.panoptic_root / "0.png"), "unreadable-png"),
    "PNG grey": (_grey_png, "unreadable-png"),
    "segment id 0": (lambda s: segment(s).update(id=0), "bad-entry id-without-entry"),
    "segment id twice": (
        lambda s: annotation(s)["segments_info"].append({**segment(s), "category_id": 50}),
        "bad-entry",
    ),
    "segment repeated": (
        lambda s: annotation(s)["segments_info"].append(dict(segment(s))),
        "+repeated-entry",
    ),
    "iscrowd 2": (lambda s: segment(s).update(iscrowd=2), "bad-entry id-without-entry"),
    "no iscrowd": (lambda s: segment(s).pop("iscrowd"), "+wrong-crowd"),
    "unknown category": (lambda s: segment(s).update(category_id=77), "bad-entry id-without-entry"),
    "id without entry": (lambda s: annotation(s)["segments_info"].pop(), "id-without-entry"),
    "segment without pixels": (
        _save_png(lambda ids: ids.__setitem__(ids == 300, 70000)),
        "+segment-without-pixels wrong-area",
    ),
    "one pixel": (_one_pixel, "one-pixel"),
    "stuff in two parts": (_two_parts, "split-stuff"),
    "all void": (
        _save_png(lambda ids: ids.fill(0)),
        "nothing-labelled segment-without-pixels",
    ),
    "wrong area": (lambda s: segment(s).update(area=13), "+wrong-area"),
    "no area": (lambda s: segment(s).pop("area"), "+no-area"),
    "wrong box": (lambda s: segment(s).update(bbox=[4, 2, 3, 2]), "+wrong-box"),
}


@pytest.mark.parametrize("case", CASES)
def test_findings_and_fixes(clean, check, case):
    change, expected = CASES[case]
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
    assert count == sum(f.fix is not None for f in report.findings) and report.unsure == 0
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
    found = {kind for _, expected in CASES.values() for kind in expected.strip("+").split()}
    text = (Path(__file__).parents[2] / "docs/own_data.md").read_text(encoding="utf-8")
    errors, warnings = text.partition("| errors |")[2].partition("`--fix`")[0].split("Warnings:")
    assert set(re.findall("`([a-z-]+)`", warnings)) == set(WARNINGS)
    assert set(re.findall("`([a-z-]+)`", errors)) | set(WARNINGS) == found | {"no-labels"}


def test_nothing_is_wrong(clean, check):
    segment(clean)["iscrowd"] = 1
    for workers in (1, 2):
        report = check(workers=workers)
        assert report.findings == [] and not report.has_errors
        printed = describe(report)
        assert "20 images, 16.7 % of the pixels void. At most 2 segments" in printed
        rows = [line.split() for line in printed.splitlines()[4:6]]
        assert rows[0] == ["road", "stuff", "20", "20", "0", "68", "68", "68"]
        assert rows[1] == ["car", "thing", "20", "19", "1", "12", "12", "12"]
        assert printed.endswith("Nothing is wrong.")


def test_several_fixes_at_once_and_no_backup_is_lost(clean, check):
    infos = annotation(clean)["segments_info"]
    infos.insert(0, {"id": 9, "category_id": 4, "area": 3})
    infos.append(dict(infos[1]))
    infos.append({"id": 8, "category_id": 4, "iscrowd": 0, "area": 3})
    infos[2]["area"] = 0
    clean.content["annotations"].append(copy.deepcopy(annotation(clean)))
    clean.content["images"].insert(1, dict(image(clean)))
    report = check()
    assert fix(report)[1].name == "panoptic.json.bak"
    assert check_dataset(report.paths).findings == []
    assert fix(check())[1].name == "panoptic.json.bak1"


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_no_panoptic_json(clean, check, key):
    clean.content[key] = {"a": 1}
    report = check()
    assert report.has_errors and f"'{key}' must be a list" in report.findings[0].detail


def test_photographs_as_pngs(clean, check):
    """Swapped folders: one finding for each image, and nothing to fix."""
    rng = np.random.default_rng(0)
    for annotation in clean.content["annotations"]:
        picture = rng.integers(0, 256, (96, 120, 3), dtype=np.uint8)
        Image.fromarray(picture).save(clean.panoptic_root / annotation["file_name"])
    report = check()
    errors = [f for f in report.findings if is_error(f)]
    assert [f.kind for f in errors] == ["unreadable-png"] * 20 + ["no-labels"]
    assert "no panoptic PNG" in errors[0].detail
    assert fix(report) == (0, None)


def test_findings_of_an_image_are_capped(clean, check):
    clean.ids[:] = np.arange(8 * 12).reshape(8, 12) + 500
    clean.save_ids("0.png")
    findings = [f for f in check().findings if f.kind == "id-without-entry"]
    assert len(findings) == MOST_PER_IMAGE + 1 and findings[-1].detail == "96 of these in all"


def _wrong_png(small_set):
    """Another size, and an area that does not fit it."""
    Image.new("RGB", (20, 8), (44, 1, 0)).save(small_set.panoptic_root / "0.png")
    segment(small_set).pop("iscrowd")


def _wrong_ids(small_set):
    small_set.ids[small_set.ids == 300] = 301
    small_set.save_ids("0.png")
    segment(small_set, 0)["area"] = 1


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
    assert report.has_errors and report.unsure > 0
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
    assert printed.count("Nothing is wrong.") == 2 and "my_train" in printed and "my_val" in printed
    plots = tmp_path / "checked/my_train.png", tmp_path / "checked/my_val.png"
    assert all(np.asarray(Image.open(plot)).std() > 0 for plot in plots)


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
    assert status == 1 and "nothing that can be fixed" in printed
    assert "have no sure fix" in printed
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
    assert "in two sets: my_train: sub/a.png and my_val: sub/a.png" in printed


def test_what_registration_refuses_is_still_checked(sets, command):
    train = sets[0]["train"]
    train.content["annotations"][0]["segments_info"][0]["category_id"] = 9
    train.content["images"][1]["file_name"] = "../x.png"
    train.save()
    status, printed = command("--config-file", sets[1])
    assert status == 1 and "bad-entry" in printed


def test_no_check_is_possible(command, tmp_path):
    item = {"name": "x", "image_rot": "y"}
    for datasets, message in (
        ({"TRAIN": [], "TEST": []}, "names no data set"),
        ({"REGISTER": [item]}, "Unknown: ['image_rot']; missing: ['image_root', "),
        ({"TEST": ["none"]}, "'none' is no panoptic data set"),
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
    assert status == 1 and "image_root 'a' is no folder" in printed
    for arguments in ([], ["--image-root", "x"], ["--config-file", "x", "--image-root", "x"]):
        assert command(*arguments)[0] == 2
