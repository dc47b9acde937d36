import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic_d2.data.masks import ids_to_labels, panoptic_png_to_ids, segments_to_masks


def _one_by_one(ids, segment_ids):
    masks, boxes, areas = [], [], []
    for segment_id in segment_ids:
        mask = ids == segment_id
        y, x = np.nonzero(mask)
        masks.append(mask)
        boxes.append((x.min(), y.min(), x.max(), y.max()) if len(x) else (0, 0, 0, 0))
        areas.append(len(x))
    shape = (len(segment_ids), *ids.shape)
    return np.array(masks, bool).reshape(shape), np.array(boxes).reshape(-1, 4), np.array(areas)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    segments=st.integers(0, 300),
    void=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_one_segment_at_a_time(height, width, segments, void, seed):
    rng = np.random.default_rng(seed)
    known = rng.choice(np.arange(1, 1 << 24), segments + 2, replace=False)
    ids = rng.choice([*known, 0] if void else known, (height, width)).astype(np.uint32)
    masks, boxes, areas = segments_to_masks(ids, known[:segments])
    expected = _one_by_one(ids, known[:segments])
    np.testing.assert_array_equal(masks, expected[0])
    np.testing.assert_array_equal(boxes, expected[1])
    np.testing.assert_array_equal(areas, expected[2])
    assert masks.dtype == bool and boxes.dtype == np.float32
    _, unnamed = ids_to_labels(ids, known[:segments])
    assert set(unnamed) == set(ids.reshape(-1).tolist()) - set(known[:segments].tolist()) - {0}


def test_run_over_a_row_end_is_two_runs():
    ids = np.array([[1, 5, 5], [5, 1, 1]])
    _, boxes, areas = segments_to_masks(ids, np.array([5]))
    assert boxes.tolist() == [[0, 0, 2, 1]] and areas.tolist() == [3]


def test_duplicate_id():
    with pytest.raises(ValueError, match="7 is listed twice"):
        ids_to_labels(np.zeros((2, 2), int), np.array([7, 3, 7]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_png(tmp_path, mode):
    rgb = np.array([[[1, 2, 3], [255, 255, 255]], [[0, 0, 0], [44, 1, 0]]], np.uint8)
    Image.fromarray(rgb).convert(mode).save(tmp_path / "a.png")
    ids = panoptic_png_to_ids(tmp_path / "a.png")
    assert ids.tolist() == [[1 + 512 + 3 * 65536, (1 << 24) - 1], [0, 300]]


def test_png_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.png"):
        panoptic_png_to_ids(tmp_path / "none.png")
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="grey.png.*mode L"):
        panoptic_png_to_ids(tmp_path / "grey.png")
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(OSError, match="page.png"):
        panoptic_png_to_ids(tmp_path / "page.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with pytest.raises(OSError, match="cut.png"):
        panoptic_png_to_ids(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("sample", "json_name", "folder"),
    [
        ("coco_panoptic_sample", "panoptic_val2017.json", "panoptic_val2017"),
        ("pennfudan_panoptic", "panoptic_val.json", "panoptic_val"),
    ],
)
def test_real_annotations_agree(sample_data, sample, json_name, folder):
    root = sample_data(sample)
    for annotation in json.loads((root / json_name).read_text())["annotations"][:5]:
        ids = panoptic_png_to_ids(root / folder / annotation["file_name"])
        infos = annotation["segments_info"]
        masks, boxes, areas = segments_to_masks(ids, np.array([s["id"] for s in infos]))
        assert areas.tolist() == [s["area"] for s in infos] == masks.sum((1, 2)).tolist()
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], axis=1)
        np.testing.assert_array_equal(xywh, [s["bbox"] for s in infos])
