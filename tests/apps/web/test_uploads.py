import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.apps.web.uploads import Limits, UploadError, read_upload


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_good_one(picture, tmp_path):
    assert read_upload(picture, Limits()).shape == (40, 50, 3)
    Image.open(picture).convert("L").save(tmp_path / "grey.jpg")
    assert read_upload(tmp_path / "grey.jpg", Limits()).shape == (40, 50, 3)


@pytest.mark.parametrize("content", [b"", b"no image", b"<svg></svg>", b"\x89PNG\r\n\x1a\n" * 9])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UploadError, match="cannot be read as an image") as error:
        read_upload(tmp_path / "a.png", Limits())
    assert str(tmp_path) not in str(error.value)


def test_one_that_is_cut_off(picture):
    picture.write_bytes(picture.read_bytes()[:3000])
    with pytest.raises(UploadError, match="damaged or cut off") as error:
        read_upload(picture, Limits())
    assert str(picture.parent) not in str(error.value)


def test_too_large(picture, tmp_path):
    with pytest.raises(UploadError, match=r"0\.0 MB; at most 0\.001 MB"):
        read_upload(picture, Limits(megabytes=0.001))
    with pytest.raises(UploadError, match=r"50 x 40 pixels; at most 0\.001 million"):
        read_upload(picture, Limits(megapixels=0.001))
    # More pixels than Pillow opens: a few kilobytes, and never decoded.
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)
    with pytest.raises(UploadError):
        read_upload(bomb, Limits())


@pytest.mark.parametrize("key", ["megabytes", "megapixels"])
def test_limits_that_make_no_sense(key):
    with pytest.raises(ValueError, match=f"{key} must be above 0, got 0"):
        Limits(**{key: 0})
