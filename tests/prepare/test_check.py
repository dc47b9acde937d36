import copy
import csv
import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data import PanopticDatasetMapper, register_panoptic
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json
from detr_panoptic_d2.prepare.check.dataset import (
    DatasetPaths,
    check_dataset,
    duplicates_between,
    fix_dataset,
)
from detr_panoptic_d2.prepare.check.findings import KINDS, MOST_PER_IMAGE, is_error
from detr_panoptic_d2.prepare.check.report import (
    class_table,
    findings_table,
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


def kinds(report):
    return sorted({f.kind for f in report.findings})


def test_nothing_is_wrong(clean, check):
    for workers in (1, 2):
        report = check(workers=workers)
        assert report.findings == [] and not report.has_errors
        assert (report.num_images, report.most_segments) == (20, 2)
        assert report.void == pytest.approx(16 / 96)
        road, car = report.classes
        assert (road.name, road.isthing, road.images) == ("road", False, 20)
        assert (car.areas, car.crowds) == ([12] * 20, 0)
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
    assert kinds(report) == expected
    assert all(kind in findings_table(report.findings) for kind in expected)
    _trains_without_errors(clean, report)
    before = clean.panoptic_json.read_bytes()
    count, backup = fix_dataset(report)
    assert count == sum(f.fix is not None for f in report.findings) and report.unsure == 0
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
            assert json.loads(clean.panoptic_json.read_text()) == good


def _trains_without_errors(small_set, report):
    """What registration and mapper refuse is an error."""
    mapper = PanopticDatasetMapper(
        augmentations=[], image_format="BGR", with_targets=True, with_masks=True
    )
    try:
        for item in load_panoptic_json(**small_set.paths)[:2]:
            mapper(item)
    except (OSError, ValueError):
        assert report.has_errors


def test_every_kind_has_a_case():
    found = {kind for _, expected in CASES.values() for kind in expected.strip("+").split()}
    assert found | {"no-labels"} == set(KINDS)


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
    assert (report.classes[1].crowds, len(report.classes[1].areas)) == (1, 19)


def test_duplicates_between_sets(small_set, check):
    report = check()
    other = check_dataset(DatasetPaths("val", **small_set.paths))
    assert duplicates_between([report, other]) == [
        ("small: sub/a.png", "val: sub/a.png"),
        ("small: b.tif", "val: b.tif"),
    ]
    assert duplicates_between([report]) == []


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_no_panoptic_json(small_set, check, key):
    small_set.content[key] = {"a": 1}
    report = check()
    assert report.has_errors and f"'{key}' must be a list" in report.findings[0].detail


def test_missing_folder(small_set):
    paths = {**small_set.paths, "panoptic_root": "nowhere"}
    with pytest.raises(FileNotFoundError, match="panoptic_root 'nowhere'"):
        check_dataset(DatasetPaths("small", **paths))


def test_photographs_as_pngs(clean, check):
    """Swapped folders: one finding for each image, and nothing to fix."""
    rng = np.random.default_rng(0)
    for annotation in clean.content["annotations"]:
        picture = rng.integers(0, 256, (96, 120, 3), dtype=np.uint8)
        Image.fromarray(picture).save(clean.panoptic_root / annotation["file_name"])
    report = check()
    assert [f.kind for f in report.findings if is_error(f)] == ["unreadable-png"] * 20
    assert "no panoptic PNG" in report.findings[0].detail
    assert fix_dataset(report) == (0, None)


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
    assert fix_dataset(report)[0] == fixed
    after = json.loads(clean.panoptic_json.read_text())
    # The missing crowd flag has nothing to do with the PNG.
    segment_of = after["annotations"][0]["segments_info"][1]
    assert segment_of.pop("iscrowd") == 0
    before["annotations"][0]["segments_info"][1].pop("iscrowd", None)
    assert after == before


def test_a_set_without_labels_is_an_error(small_set, check):
    small_set.ids[:] = 0
    for index, annotation in enumerate(small_set.content["annotations"]):
        small_set.save_ids(f"{index}.png")
        annotation["segments_info"] = []
    assert {"no-labels", "nothing-labelled"} <= set(kinds(check()))


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
