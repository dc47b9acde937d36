import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data import register_panoptic
from detr_panoptic_d2.data.panoptic_png import write_panoptic_png
from detr_panoptic_d2.prepare.convert import writer
from detr_panoptic_d2.prepare.convert.inputs import split_by_chance
from detr_panoptic_d2.prepare.convert.instance_masks import instance_masks
from detr_panoptic_d2.prepare.convert.segments import segment_ids, to_panoptic
from detr_panoptic_d2.prepare.convert.source import Labels, Segment
from detr_panoptic_d2.prepare.convert.writer import WriteOptions, convert

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def source(tmp_path, save_image, save_mask):
    """Eight images, two in a subfolder, with a mask each."""
    for index in range(8):
        stem = f"{'sub/' if index > 5 else ''}{index}"
        save_image(tmp_path / f"images/{stem}.jpg", 10, 12 + index)
        mask = np.zeros((10, 12 + index), np.uint8)
        mask[2:4, 2:5], mask[5:8, 2 + index :] = 1, 2
        save_mask(tmp_path / f"masks/{stem}_mask.png", mask)
    return instance_masks(tmp_path / "images", tmp_path / "masks", category="thing")


@pytest.fixture
def splits(source):
    return split_by_chance(source, {"train": 0.75, "val": 0.25}, seed=0)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_the_same_whatever_the_number_of_processes(splits, tmp_path):
    for workers in (1, 2):
        options = WriteOptions(background="rest", workers=workers, copy_images=True)
        converted = convert(splits, tmp_path / str(workers), options)
        assert [(s.name, s.num_images) for s in converted] == [("train", 6), ("val", 2)]
    first, second = files(tmp_path / "1"), files(tmp_path / "2")
    assert first == second and len(first) == 18
    assert {p.name for p in (tmp_path / "1").iterdir()} == {
        f"{start}{split}{end}"
        for split in ("train", "val")
        for start, end in (("panoptic_", ""), ("panoptic_", ".json"), ("", ""))
    }
    copied = files(tmp_path / "1/train") | files(tmp_path / "1/val")
    assert copied == files(tmp_path / "images")
    ids = [i["id"] for s in converted for i in json.loads(s.panoptic_json.read_text())["images"]]
    assert len(set(ids)) == len(ids)
    for split in converted:
        register_panoptic(split.name, split.image_root, split.panoptic_root, split.panoptic_json)


def test_nothing_that_is_there_is_overwritten(source, tmp_path):
    convert({"train": source}, tmp_path / "out")
    before = files(tmp_path / "out")
    for name in ("panoptic_train", "panoptic_train.json"):
        with pytest.raises(FileExistsError, match=f"'.*{name}' is there already"):
            convert(
                {"new": source, "train": source}, tmp_path / "out", WriteOptions(background="x")
            )
        assert files(tmp_path / "out") == before
        path = tmp_path / "out" / name
        if path.is_dir():
            path.rename(tmp_path / "away")
            before = files(tmp_path / "out")
    (other,) = convert({"all": source}, tmp_path / "out")
    assert other.num_images == 8
    (tmp_path / "out/images").mkdir()
    with pytest.raises(FileExistsError, match="images' is there already"):
        convert({"images": source}, tmp_path / "out", WriteOptions(copy_images=True))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_conversion_leaves_nothing_in_the_way(splits, tmp_path, monkeypatch, stop):
    convert(splits, tmp_path / "whole")
    calls = []

    def stopped(path, ids):
        calls.append(path)
        if len(calls) == 7:
            raise stop
        write_panoptic_png(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_panoptic_png", stopped)
        with pytest.raises(stop if isinstance(stop, type) else type(stop)):
            convert(splits, tmp_path / "out", WriteOptions(min_area=3))
    assert not files(tmp_path / "out")
    # As if it had been killed, so that it could not clean up.
    (tmp_path / "out/.convert-train-val/panoptic_train").mkdir(parents=True)
    (tmp_path / "out/.convert-train-val/panoptic_train/old.png").write_bytes(b"")
    convert(splits, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_missing_and_broken_images(source, tmp_path):
    (tmp_path / "images/3.jpg").write_bytes(b"no image")
    with pytest.raises(OSError, match="3.jpg' cannot be read"):
        convert({"train": source}, tmp_path / "out", WriteOptions(workers=2))
    (tmp_path / "images/3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 images are missing.*'3.jpg'"):
        convert({"train": source}, tmp_path / "out")
    source.items.clear()
    with pytest.raises(ValueError, match="no images to convert for the split 'train'"):
        convert({"train": source}, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not files(tmp_path / "out")


def test_rotated_images_have_their_upright_size(tmp_path, save_image, save_mask, convert_and_check):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "images/a.jpg", 10, 20, exif=exif)
    save_mask(tmp_path / "masks/a_mask.png", np.ones((20, 10), np.uint8))
    result = convert_and_check(instance_masks(tmp_path / "images", tmp_path / "masks"))
    assert (result.images["a.jpg"]["height"], result.images["a.jpg"]["width"]) == (20, 10)
    save_mask(tmp_path / "masks/a_mask.png", np.full((10, 20), 100, np.uint8))
    with pytest.raises(ValueError, match="EXIF orientation"):
        source = instance_masks(tmp_path / "images", tmp_path / "masks")
        convert_and_check(source, output=tmp_path / "other")


CAR = {"id": 4, "name": "car", "isthing": 1, "color": [0, 0, 142]}
SKY = {"id": 9, "name": "sky", "isthing": 0, "color": [70, 130, 180]}
BUS = {"id": 5, "name": "bus", "isthing": 1, "color": [70, 130, 180]}


def test_segment_ids_differ_and_are_near_the_class_colour():
    ids = segment_ids([CAR] * 300 + [SKY] + [BUS] * 40)
    assert len(set(ids)) == len(ids) and min(ids) > 0 and max(ids) < 1 << 24
    assert ids[0] == 142 << 16 and ids[300] == 70 + (130 << 8) + (180 << 16)
    assert segment_ids([CAR] * 300 + [SKY] + [BUS] * 40) == ids
    black = {"id": 1, "name": "hole", "isthing": 0, "color": [0, 0, 0]}
    assert segment_ids([black])[0] > 0


def test_parts_of_stuff_and_void():
    labels = Labels(
        np.array([[1, 2, 3, 4, 0, 5, 7]], np.int32),
        [Segment(name) for name in ("sky", "car", "sky", None, "car", "bus", "ignored")],
    )
    ids, infos, hidden = to_panoptic(labels, [CAR, SKY, BUS], background="sky")
    assert [(s["category_id"], s["area"], s["bbox"]) for s in infos] == [
        (9, 3, [0, 0, 5, 1]),
        (4, 1, [1, 0, 1, 1]),
        (4, 1, [5, 0, 1, 1]),
    ]
    assert ids[0, 3] == ids[0, 6] == 0 and hidden == 1
