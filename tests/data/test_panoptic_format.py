"""Reading, writing and completing PNGs and jsons. What the validator finds: test_register.py and
tests/prepare/test_check.py."""

import json

import numpy as np
import pytest
from PIL import Image

from detr_panoptic_d2.data.panoptic_json import (
    complete_segments,
    load_panoptic_json,
    write_panoptic_json,
)
from detr_panoptic_d2.data.panoptic_png import read_panoptic_png, write_panoptic_png
from detr_panoptic_d2.errors import UserError


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_read_png(tmp_path, mode):
    rgb = np.array([[[1, 2, 3], [255, 255, 255]], [[0, 0, 0], [44, 1, 0]]], np.uint8)
    Image.fromarray(rgb).convert(mode).save(tmp_path / "a.png")
    ids = read_panoptic_png(tmp_path / "a.png")
    assert ids.tolist() == [[1 + 512 + 3 * 65536, (1 << 24) - 1], [0, 300]]


def test_photograph_is_no_panoptic_png(tmp_path, sample_data):
    ramp = np.linspace(0, 255, 96)
    pixels = np.stack([*np.meshgrid(ramp, ramp), np.full((96, 96), 9)], -1)
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"photo.png' is not a panoptic PNG.*different ids"):
        read_panoptic_png(tmp_path / "photo.png")
    for path in sorted((sample_data("coco_panoptic_sample") / "val2017").glob("*.jpg"))[:5]:
        with pytest.raises(UserError, match="not a panoptic PNG"):
            read_panoptic_png(path)


def test_many_small_segments_are_no_photograph(tmp_path):
    ids = np.kron(np.arange(1, 4097).reshape(64, 64), np.ones((3, 5), int))
    write_panoptic_png(tmp_path / "new" / "a.png", ids)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "new" / "a.png"), ids)


def test_write_and_load(small_set):
    content = small_set.content
    ids = small_set.ids.astype(np.int64)
    bare = [{"id": 70000, "category_id": 50}, {"id": 300, "category_id": 4}]
    segments = complete_segments(ids, [*bare, {"id": 8, "category_id": 9}])
    assert segments == content["annotations"][0]["segments_info"]
    before = load_panoptic_json(**small_set.paths)
    small_set.panoptic_json.unlink()
    write_panoptic_json(small_set.panoptic_json, **content, info={"description": "mine"})
    assert load_panoptic_json(**small_set.paths) == before
    assert json.loads(small_set.panoptic_json.read_text())["info"] == {"description": "mine"}
