import copy
import csv
import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data import PanopticDatasetMapper, register_panoptic
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json
from detr_panoptic_d2.prepare.check import (
    KINDS,
    DatasetPaths,
    check_dataset,
    class_table,
    duplicates_between,
    findings_table,
    fix_dataset,
    plot_classes,
    write_findings,
)

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def check(small_set):
    """Save the small set and check it."""

    def run(**options):
        small_set.save()
        return check_dataset(DatasetPaths("small", **small_set.paths), **options)

    return run


@pytest.fixture
def clean(small_set):
    """Let the small set use all its classes."""
    small_set.content["categories"].pop()
    return small_set


def kinds(report):
    return sorted({f.kind for f in report.findings})


def test_nothing_is_wrong(clean, check):
    for workers in (1, 2):
        report = check(workers=workers)
        assert report.findings == [] and not report.has_errors
        assert (report.num_images, report.most_segments) == (2, 2)
        assert report.void == pytest.approx(16 / 96)
        road, car = report.classes
        assert (road.name, road.isthing, road.images) == ("road", False, 2)
        assert (car.areas.tolist(), car.crowds) == ([12, 12], 0)
    assert findings_table(report.findings) == "Nothing is wrong."


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


# name -> (change of the small set, kinds found, whether --fix leaves nothing)
CASES = {
    "category without isthing": (
        lambda s: s.content["categories"][1].pop("isthing"),
        ["bad-category", "unknown-category"],
        False,
    ),
    "category id twice": (
        lambda s: s.content["categories"].append({"id": 4, "name": "x", "isthing": 1}),
        ["bad-category"],
        False,
    ),
    "category name twice": (
        lambda s: s.content["categories"].append({"id": 5, "name": "car", "isthing": 1}),
        ["bad-category", "unused-class"],
        False,
    ),
    "category repeated": (
        lambda s: s.content["categories"].append(dict(s.content["categories"][1])),
        ["repeated-entry"],
        True,
    ),
    "unused class": (
        lambda s: s.content["categories"].append({"id": 5, "name": "x", "isthing": 1}),
        ["unused-class"],
        False,
    ),
    "image id missing": (
        lambda s: image(s).pop("id"),
        ["bad-annotation", "bad-image-entry"],
        False,
    ),
    "image id twice": (
        lambda s: s.content["images"].append({**image(s), "file_name": "b.tif"}),
        ["bad-image-entry"],
        False,
    ),
    "image entry repeated": (
        lambda s: s.content["images"].append(dict(image(s))),
        ["repeated-entry"],
        True,
    ),
    "image outside": (
        lambda s: image(s).update(file_name="../a.png"),
        ["bad-annotation", "bad-image-entry"],
        False,
    ),
    "height 0": (lambda s: image(s).update(height=0), ["bad-annotation", "bad-image-entry"], False),
    "image missing": (
        lambda s: (s.image_root / "sub/a.png").unlink(),
        ["missing-image"],
        False,
    ),
    "image truncated": (
        lambda s: _truncated(s.image_root / "sub/a.png"),
        ["unreadable-image"],
        False,
    ),
    "image is text": (
        lambda s: (s.image_root / "sub/a.png").write_text("<html>"),
        ["unreadable-image"],
        False,
    ),
    "json has another size": (lambda s: image(s).update(width=99), ["wrong-size"], True),
    "image has another size": (_wide_image, ["png-size"], False),
    "image rotated": (_rotated, ["exif-rotated"], False),
    "same file twice": (_same_image, ["duplicate-image"], False),
    "same entry twice": (
        lambda s: s.content["images"][1].update(file_name="sub/a.png"),
        ["duplicate-image"],
        False,
    ),
    "no annotation": (lambda s: s.content["annotations"].pop(), ["no-annotation"], False),
    "annotation of no image": (
        lambda s: annotation(s).update(image_id=99),
        ["bad-annotation", "no-annotation"],
        False,
    ),
    "two annotations": (
        lambda s: s.content["annotations"].append({**annotation(s), "file_name": "1.png"}),
        ["bad-annotation"],
        False,
    ),
    "annotation repeated": (
        lambda s: s.content["annotations"].append(copy.deepcopy(annotation(s))),
        ["repeated-entry"],
        True,
    ),
    "one PNG for two": (
        lambda s: annotation(s).update(file_name="1.png"),
        ["bad-annotation"],
        False,
    ),
    "PNG outside": (
        lambda s: annotation(s).update(file_name="/etc/passwd"),
        ["bad-annotation"],
        False,
    ),
    "no segments_info": (
        lambda s: annotation(s).update(segments_info=None),
        ["bad-annotation"],
        False,
    ),
    "PNG missing": (lambda s: (s.panoptic_root / "0.png").unlink(), ["missing-png"], False),
    "PNG truncated": (lambda s: _truncated(s.panoptic_root / "0.png"), ["unreadable-png"], False),
    "PNG grey": (_grey_png, ["unreadable-png"], False),
    "segment id 0": (
        lambda s: segment(s).update(id=0),
        ["bad-segment", "id-without-entry"],
        False,
    ),
    "segment id twice": (
        lambda s: annotation(s)["segments_info"].append({**segment(s), "category_id": 50}),
        ["bad-segment"],
        False,
    ),
    "segment repeated": (
        lambda s: annotation(s)["segments_info"].append(dict(segment(s))),
        ["repeated-entry"],
        True,
    ),
    "iscrowd 2": (lambda s: segment(s).update(iscrowd=2), ["bad-segment"], False),
    "no iscrowd": (lambda s: segment(s).pop("iscrowd"), ["wrong-crowd"], True),
    "unknown category": (
        lambda s: segment(s).update(category_id=77),
        ["unknown-category"],
        False,
    ),
    "id without entry": (
        lambda s: annotation(s)["segments_info"].pop(),
        ["id-without-entry"],
        False,
    ),
    "segment without pixels": (
        _save_png(lambda ids: ids.__setitem__(ids == 300, 70000)),
        ["segment-without-pixels", "wrong-area"],
        True,
    ),
    "one pixel": (_one_pixel, ["one-pixel"], False),
    "stuff in two parts": (_two_parts, ["split-stuff"], False),
    "all void": (
        _save_png(lambda ids: ids.fill(0)),
        ["nothing-labelled", "segment-without-pixels"],
        False,
    ),
    "wrong area": (lambda s: segment(s).update(area=13), ["wrong-area"], True),
    "no area": (lambda s: segment(s).pop("area"), ["wrong-area"], True),
    "wrong box": (lambda s: segment(s).update(bbox=[4, 2, 3, 2]), ["wrong-box"], True),
}


@pytest.mark.parametrize("case", CASES)
def test_findings_and_fixes(clean, check, case):
    change, expected, fixable = CASES[case]
    truth = copy.deepcopy(clean.content)
    change(clean)
    report = check()
    assert kinds(report) == expected
    assert report.has_errors == any(KINDS[kind].severity == "error" for kind in expected)
    assert all(kind in findings_table(report.findings) for kind in expected)
    before = clean.panoptic_json.read_bytes()
    count, backup = fix_dataset(report)
    assert count == sum(f.fix is not None for f in report.findings)
    if not count:
        assert backup is None and clean.panoptic_json.read_bytes() == before
        return
    assert backup.read_bytes() == before
    again = check_dataset(report.paths)
    assert not any(f.fix for f in again.findings)
    if fixable:
        assert again.findings == []
        register_panoptic("fixed", **clean.paths)
        if "segment-without-pixels" not in expected:
            assert json.loads(clean.panoptic_json.read_text()) == truth


def test_every_kind_has_a_case():
    assert {kind for _, expected, _ in CASES.values() for kind in expected} == set(KINDS)


def test_what_training_refuses_is_an_error(clean, check):
    """A set without errors goes through registration and mapper; one of these does not."""
    mapper = PanopticDatasetMapper(
        augmentations=[], image_format="BGR", with_targets=True, with_masks=True
    )
    refused = 0
    start = {p: p.read_bytes() for p in clean.panoptic_json.parent.rglob("*") if p.is_file()}
    content, ids = copy.deepcopy(clean.content), clean.ids.copy()
    for change, expected, _ in CASES.values():
        for path, old in start.items():
            path.write_bytes(old)
        clean.content, clean.ids = copy.deepcopy(content), ids.copy()
        change(clean)
        has_errors = check().has_errors
        try:
            for item in load_panoptic_json(**clean.paths):
                mapper(item)
        except (OSError, ValueError):
            refused += 1
            assert has_errors, expected
    assert refused > 15


def test_several_fixes_at_once_and_no_backup_is_lost(clean, check):
    infos = annotation(clean)["segments_info"]
    infos.insert(0, {"id": 9, "category_id": 4, "area": 3})
    infos.append(dict(infos[1]))
    infos.append({"id": 8, "category_id": 4, "iscrowd": 0, "area": 3})
    infos[2]["area"] = 0
    clean.content["annotations"].append(copy.deepcopy(annotation(clean)))
    clean.content["images"].insert(1, dict(image(clean)))
    report = check()
    assert fix_dataset(report)[1].name == "panoptic.json.bak"
    assert check_dataset(report.paths).findings == []
    second = check()
    assert fix_dataset(second)[1].name == "panoptic.json.bak1"


def test_crowd_counts_apart(clean, check):
    segment(clean)["iscrowd"] = 1
    report = check()
    assert report.findings == [] and report.most_segments == 2
    assert (report.classes[1].crowds, len(report.classes[1].areas)) == (1, 1)


def test_duplicates_between_sets(clean, check, tmp_path):
    report = check()
    other = check_dataset(DatasetPaths("val", **clean.paths))
    assert duplicates_between([report, other]) == [
        ("small: sub/a.png", "val: sub/a.png"),
        ("small: b.tif", "val: b.tif"),
    ]
    assert duplicates_between([report]) == []


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_no_panoptic_json(small_set, check, key):
    small_set.content[key] = {"a": 1}
    with pytest.raises(ValueError, match=f"panoptic.json'.*no list '{key}'"):
        check()


def test_missing_folder(small_set):
    paths = {**small_set.paths, "panoptic_root": "nowhere"}
    with pytest.raises(FileNotFoundError, match="panoptic_root 'nowhere'"):
        check_dataset(DatasetPaths("small", **paths))


def test_report_files(small_set, check, tmp_path):
    segment(small_set)["area"] = 1
    report = check()
    write_findings([report], tmp_path / "findings.csv")
    rows = list(csv.DictReader((tmp_path / "findings.csv").read_text().splitlines()))
    assert [(r["kind"], r["where"], r["fixable"]) for r in rows] == [
        ("wrong-area", "sub/a.png", "True"),
        ("unused-class", "category 'tree'", "False"),
    ]
    plot_classes(report, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert np.asarray(plot).std() > 0
    assert [line.split()[0] for line in class_table(report).splitlines()[2:]] == [
        "road",
        "car",
        "tree",
    ]


def test_real_sets_are_clean(sample_data):
    root = sample_data("coco_panoptic_sample")
    paths = root / "val2017", root / "panoptic_val2017", root / "panoptic_val2017.json"
    assert kinds(check_dataset(DatasetPaths("coco", *map(str, paths)))) == ["unused-class"]
    root = sample_data("pennfudan_panoptic")
    paths = root / "val", root / "panoptic_val", root / "panoptic_val.json"
    assert check_dataset(DatasetPaths("penn", *map(str, paths)), workers=2).findings == []
