import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.prepare.convert.instance_masks import instance_masks

H, W = 12, 16


@pytest.fixture
def penn(tmp_path, save_image, save_mask):
    """A folder in Penn-Fudan's form: objects 1 and 4, and a strip of 9."""
    save_image(tmp_path / "PNGImages/a.png", H, W)
    mask = np.zeros((H, W), np.uint8)
    mask[2:6, 2:5], mask[4:9, 8:12], mask[11] = 1, 4, 9
    save_mask(tmp_path / "PedMasks/a_mask.png", mask)
    return tmp_path / "PNGImages", tmp_path / "PedMasks", mask


def test_void_value_is_neither_object_nor_background(penn, convert_and_check):
    images, masks, mask = penn
    source = instance_masks(images, masks, void_value=9)
    result = convert_and_check(source, background="ground")
    assert np.array_equal(result.classes("a.png") == "", mask == 9)
    assert len(result.segments("a.png")) == 3 and result.split.hidden == 0


def test_things_may_be_stuff(penn, convert_and_check):
    result = convert_and_check(instance_masks(*penn[:2], category="crack"), stuff=("crack",))
    assert [n for n, *_ in result.segments("a.png")] == ["crack"]


def test_colour_masks_are_refused(penn, convert_and_check, save_mask, tmp_path):
    save_mask(tmp_path / "PedMasks/a_mask.png", np.zeros((H, W, 3), np.uint8))
    with pytest.raises(ValueError, match="a_mask.png' has mode RGB"):
        convert_and_check(instance_masks(*penn[:2]))
    with pytest.raises(FileNotFoundError, match="--mask-suffix"):
        instance_masks(*penn[:2], mask_suffix="_x.png")
    with pytest.raises(FileNotFoundError, match="--images .*nowhere"):
        instance_masks(tmp_path / "nowhere", penn[1])


def test_penn_fudan_there_and_back(sample_data, tmp_path, convert_and_check):
    """Images of the real set, turned into its published form and converted: the same segments."""
    root = sample_data("pennfudan_panoptic")
    annotated = json.loads((root / "panoptic_val.json").read_text())
    names = {i["id"]: i["file_name"] for i in annotated["images"]}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    expected = {}
    for annotation in annotated["annotations"][:12]:
        ids = read_panoptic_png(root / "panoptic_val" / annotation["file_name"])
        people = [s["id"] for s in annotation["segments_info"] if s["category_id"] == 1]
        mask = sum((n + 1) * (ids == i) for n, i in enumerate(people)).astype(np.uint8)
        name = names[annotation["image_id"]]
        expected[name] = mask
        Image.fromarray(mask).save(tmp_path / "masks" / name.replace(".jpg", "_mask.png"))
        shutil.copy(root / "val" / name, tmp_path / "images")
    source = instance_masks(tmp_path / "images", tmp_path / "masks", category="pedestrian")
    result = convert_and_check(source, background="background", workers=2)
    assert result.images.keys() == expected.keys()
    for name, mask in expected.items():
        found = result.segments(name)
        assert [n for n, *_ in found] == ["pedestrian"] * mask.max() + ["background"]
        for number, (_, _, segment) in enumerate(found, 1):
            assert np.array_equal(segment, mask == number % len(found))
