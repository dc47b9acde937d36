import json
import os

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data import register_panoptic
from detr_panoptic_d2.prepare.convert import InstanceMasks, WriteOptions, convert, writer
from detr_panoptic_d2.prepare.convert.segments import FinishOptions, segment_ids, to_panoptic
from detr_panoptic_d2.prepare.convert.source import VOID, Labels, Segment

pytestmark = pytest.mark.usefixtures("clean_catalogs")
SHARES = {"train": 0.75, "val": 0.25}


@pytest.fixture
def source(tmp_path, save_image, save_mask):
    """Eight images, two in a subfolder, with a mask each."""
    for index in range(8):
        stem = f"{'sub/' if index > 5 else ''}{index}"
        save_image(tmp_path / f"images/{stem}.jpg", 10, 12 + index)
        mask = np.zeros((10, 12 + index), np.uint8)
        mask[2:4, 2:5], mask[5:8, 2 + index :] = 1, 2
        save_mask(tmp_path / f"masks/{stem}_mask.png", mask)
    return InstanceMasks(tmp_path / "images", tmp_path / "masks", category="thing")


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_same_whatever_the_number_of_processes(source, tmp_path):
    for workers in (1, 3):
        options = WriteOptions(fractions=SHARES, background="rest", workers=workers)
        splits = convert(source, tmp_path / str(workers), options)
        assert [(s.name, s.num_images) for s in splits] == [("train", 6), ("val", 2)]
    first, second = files(tmp_path / "1"), files(tmp_path / "3")
    assert first == second and len(first) == 10
    assert not any(".tmp" in name or ".convert" in name for name in first)


def test_result_can_be_registered(source, tmp_path):
    for split in convert(source, tmp_path / "out", WriteOptions(fractions=SHARES)):
        register_panoptic(split.name, split.image_root, split.panoptic_root, split.panoptic_json)


def test_copied_images(source, tmp_path):
    (split,) = convert(source, tmp_path / "out", WriteOptions(copy_images=True))
    assert split.image_root == tmp_path / "out/train"
    assert files(split.image_root) == files(tmp_path / "images")


def test_again_changes_nothing(source, tmp_path):
    first = convert(source, tmp_path / "out", WriteOptions(fractions=SHARES))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert convert(source, tmp_path / "out", WriteOptions(fractions=SHARES, workers=2)) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_other_data_is_not_overwritten(source, tmp_path):
    convert(source, tmp_path / "out", WriteOptions())
    before = files(tmp_path / "out")
    with pytest.raises(FileExistsError, match="panoptic_train.json' is there already"):
        convert(source, tmp_path / "out", WriteOptions(background="rest"))
    assert files(tmp_path / "out") == before
    (other,) = convert(source, tmp_path / "out", WriteOptions(split_name="all"))
    assert other.num_images == 8


@pytest.mark.parametrize("stop_after", [0, 3, 7])
def test_goes_on_after_an_interruption(source, tmp_path, monkeypatch, stop_after):
    convert(source, tmp_path / "whole", WriteOptions(fractions=SHARES))
    calls = []
    convert_one = writer._convert_one

    def interrupted(job, index):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(index)
        return convert_one(job, index)

    monkeypatch.setattr(writer, "_convert_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", WriteOptions(fractions=SHARES))
    assert not list((tmp_path / "out").glob("*.json"))
    # As if the process was killed while it wrote a line.
    with open(tmp_path / "out/.convert-train-val/journal.jsonl", "a") as f:
        f.write('{"index": 7, "ima')
    monkeypatch.setattr(writer, "_convert_one", lambda j, i: calls.append(i) or convert_one(j, i))
    convert(source, tmp_path / "out", WriteOptions(fractions=SHARES))
    assert sorted(calls) == list(range(8))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_unfinished_conversion_of_other_data(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_convert_one", lambda job, index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(source, tmp_path / "out", WriteOptions())
    with pytest.raises(FileExistsError, match="unfinished conversion with other arguments"):
        convert(source, tmp_path / "out", WriteOptions(min_area=3))


def test_killed_between_the_jsons(source, tmp_path, monkeypatch):
    convert(source, tmp_path / "whole", WriteOptions(fractions=SHARES))
    replace = os.replace

    def killed(temporary, target):
        if str(target).endswith("panoptic_val.json"):
            raise KeyboardInterrupt
        replace(temporary, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", WriteOptions(fractions=SHARES))
    convert(source, tmp_path / "out", WriteOptions(fractions=SHARES))
    for name, content in files(tmp_path / "whole").items():
        assert files(tmp_path / "out")[name] == content


def test_missing_and_broken_images(source, tmp_path):
    (tmp_path / "images/3.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match="3.jpg' cannot be read"):
        convert(source, tmp_path / "out", WriteOptions(workers=2))
    (tmp_path / "images/3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 images are missing.*'3.jpg'"):
        convert(source, tmp_path / "out", WriteOptions())


def test_full_disk_leaves_nothing_half_written(source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            convert(source, tmp_path / "out", WriteOptions())
    assert not list((tmp_path / "out").rglob("*.png*"))
    (split,) = convert(source, tmp_path / "out", WriteOptions())
    assert len(json.loads(split.panoptic_json.read_text())["annotations"]) == 8


def test_rotated_images_have_their_upright_size(tmp_path, save_image, save_mask, convert_and_check):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "images/a.jpg", 10, 20, exif=exif)
    save_mask(tmp_path / "masks/a_mask.png", np.ones((20, 10), np.uint8))
    result = convert_and_check(InstanceMasks(tmp_path / "images", tmp_path / "masks"))
    assert (result.images["a.jpg"]["height"], result.images["a.jpg"]["width"]) == (20, 10)
    save_mask(tmp_path / "masks/a_mask.png", np.full((10, 20), 100, np.uint8))
    with pytest.raises(ValueError, match="EXIF orientation"):
        source = InstanceMasks(tmp_path / "images", tmp_path / "masks")
        convert_and_check(source, output=tmp_path / "other")


CATEGORIES = [
    {"id": 4, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 9, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 5, "name": "bus", "isthing": 1, "color": [70, 130, 180]},
]


def test_segment_ids_differ_and_are_near_the_class_colour():
    segments = [Segment(c) for c in [4] * 300 + [9] + [5] * 40]
    ids = segment_ids(segments, CATEGORIES)
    assert len(set(ids)) == len(ids) and min(ids) > 0 and max(ids) < 1 << 24
    assert ids[0] == 142 << 16 and ids[300] == 70 + (130 << 8) + (180 << 16)
    assert segment_ids(segments, CATEGORIES) == ids
    black = [{"id": 1, "name": "hole", "isthing": 0, "color": [0, 0, 0]}]
    assert segment_ids([Segment(1)], black)[0] > 0


def test_parts_of_stuff_and_void():
    labels = Labels(
        np.array([[1, 2, 3, 4, 0, 5]], np.int32),
        [Segment(9), Segment(4), Segment(9), Segment(VOID), Segment(4), Segment(5)],
    )
    ids, infos, hidden = to_panoptic(labels, CATEGORIES, FinishOptions(background=9))
    assert [(s["category_id"], s["area"], s["bbox"]) for s in infos] == [
        (9, 3, [0, 0, 5, 1]),
        (4, 1, [1, 0, 1, 1]),
        (4, 1, [5, 0, 1, 1]),
    ]
    assert ids[0, 3] == 0 and hidden == 1
