import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.prepare.convert.class_masks import class_masks

H, W = 12, 16
SKY, CAR = (128, 128, 128), (64, 0, 128)
CAMVID = "64 128 64\tAnimal\n128 128 128\tSky\n64 0 128\t\tCar\n0 0 0\t\tVoid\n"


@pytest.fixture
def camvid(tmp_path, save_image, save_mask):
    """A folder in CamVid's form: sky, two cars that touch at a corner, and void."""
    save_image(tmp_path / "raw/a.png", H, W)
    mask = np.zeros((H, W, 3), np.uint8)
    mask[:4] = SKY
    mask[6:8, 2:4] = mask[8:10, 4:6] = mask[5:7, 10:14] = CAR
    save_mask(tmp_path / "labeled/a_L.png", mask)
    (tmp_path / "label_colors.txt").write_text(CAMVID)
    return [tmp_path / "raw", tmp_path / "labeled", tmp_path / "label_colors.txt"]


@pytest.mark.parametrize("connectivity, cars", [(8, 2), (4, 3)])
def test_camvid(camvid, convert_and_check, connectivity, cars):
    source = class_masks(*camvid, mask_suffix="_L.png", connectivity=connectivity)
    result = convert_and_check(source, things=("Car",), ignore=("Void",))
    found = result.segments("a.png")
    assert [n for n, *_ in found] == ["Car"] * cars + ["Sky"] or [n for n, *_ in found] == [
        "Sky"
    ] + ["Car"] * cars
    classes = result.classes("a.png")
    assert (classes[:4] == "Sky").all() and (classes == "Car").sum() == 16
    assert (classes == "").sum() == H * W - 4 * W - 16
    kinds = {c["name"]: (c["isthing"], c["color"]) for c in result.content["categories"]}
    assert kinds == {
        "Animal": (0, [64, 128, 64]),
        "Sky": (0, list(SKY)),
        "Car": (1, list(CAR)),
    }


def test_background_does_not_cover_ignored_classes(camvid, convert_and_check):
    source = class_masks(*camvid, mask_suffix="_L.png")
    assert convert_and_check(source, background="rest", ignore=("Void",)).split.void > 0


def test_grey_and_palette_masks_hold_ids(tmp_path, save_image, convert_and_check):
    values = np.zeros((H, W), np.uint8)
    values[:, 8:], values[:2] = 4, 255
    (tmp_path / "classes.json").write_text(
        json.dumps([{"id": 0, "name": "road"}, {"id": 4, "name": "car", "isthing": 1}])
    )
    (tmp_path / "masks").mkdir()
    for name in ("grey", "palette"):
        save_image(tmp_path / f"images/{name}.jpg", H, W)
        mask = Image.fromarray(values)
        if name == "palette":
            mask.putpalette(list(range(256)) * 3)
        mask.save(tmp_path / f"masks/{name}.png")
    source = class_masks(tmp_path / "images", tmp_path / "masks", tmp_path / "classes.json")
    result = convert_and_check(source)
    for name in ("grey.jpg", "palette.jpg"):
        classes = result.classes(name)
        assert (classes[2:, :8] == "road").all() and (classes[2:, 8:] == "car").all()
        assert (classes[:2] == "").all()
    assert {c["name"]: c["id"] for c in result.content["categories"]} == {"road": 1, "car": 4}


def test_16_bit_masks(tmp_path, save_image, save_mask, convert_and_check):
    save_image(tmp_path / "images/a.jpg", H, W)
    save_mask(tmp_path / "masks/a.png", np.full((H, W), 1000, np.uint16))
    (tmp_path / "classes.json").write_text(json.dumps([{"id": 1000, "name": "road"}]))
    source = class_masks(tmp_path / "images", tmp_path / "masks", tmp_path / "classes.json")
    assert (convert_and_check(source).classes("a.jpg") == "road").all()


def test_errors_name_mask_and_value(camvid, convert_and_check, save_mask, tmp_path):
    open_source = lambda **options: class_masks(*camvid, mask_suffix="_L.png", **options)  # noqa: E731
    mask = np.zeros((H, W, 3), np.uint8)
    mask[3, 5] = 1, 2, 3
    save_mask(tmp_path / "labeled/a_L.png", mask)
    with pytest.raises(ValueError, match=r"a_L.png' has the colour \(1, 2, 3\) at x=5, y=3"):
        convert_and_check(open_source())
    save_mask(tmp_path / "labeled/a_L.png", np.full((H, W), 9, np.uint8))
    with pytest.raises(ValueError, match="a_L.png' has the value 9, .*--void-value"):
        convert_and_check(open_source(), output=tmp_path / "second")
    save_mask(tmp_path / "labeled/a_L.png", np.zeros((W, H, 3), np.uint8))
    with pytest.raises(ValueError, match="a_L.png' is 12 wide and 16 high.*EXIF"):
        convert_and_check(open_source(), output=tmp_path / "third")
    (tmp_path / "labeled/a_L.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(OSError, match="a_L.png' cannot be read"):
        convert_and_check(open_source(), output=tmp_path / "fourth")
    with pytest.raises(ValueError, match="--connectivity is 6"):
        open_source(connectivity=6)
    with pytest.raises(FileNotFoundError, match="None of 1 images has a mask; 'a.png'.*a_L.png.*"):
        class_masks(*camvid)


@pytest.mark.parametrize(
    "text, message",
    [
        ("1 2 3 a\n1 2 3 b\n", "color .1, 2, 3. twice"),
        ("1 2 3 a\nb\n", "only some of its classes a value for color"),
        ("\n", "is empty"),
    ],
)
def test_bad_lists(camvid, tmp_path, text, message):
    (tmp_path / "label_colors.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        class_masks(*camvid, mask_suffix="_L.png")
