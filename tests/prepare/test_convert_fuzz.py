"""Random label maps, written in other formats and converted: the same map comes back."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from detr_panoptic_d2.prepare.check.dataset import DatasetPaths, check_dataset
from detr_panoptic_d2.prepare.convert.classes import ClassOptions
from detr_panoptic_d2.prepare.convert.shapes import to_panoptic
from detr_panoptic_d2.prepare.convert.source import Labels, Segment
from detr_panoptic_d2.prepare.convert.writer import convert
from tests.prepare.folders import (
    IMAGE,
    Result,
    class_masks_folder,
    coco_folder,
    instance_masks_folder,
    rle,
)

FUZZ = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = ["cat", "dog"]


@st.composite
def maps(draw):
    """Objects of an image: int (H, W), 0 none, and the class index of each."""
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    count = draw(st.integers(0, 6))
    numbers = rng.integers(0, count + 1, size)
    if draw(st.booleans()):
        # Larger patches: every pixel takes the value of one in its row.
        numbers = np.repeat(numbers[:, :1], size[1], axis=1)
    return numbers, rng.integers(0, len(NAMES), count).tolist()


def object_masks(case):
    numbers, classes = case
    return [(NAMES[c], numbers == i + 1) for i, c in enumerate(classes)]


def as_coco(folder, case):
    annotations = [
        {"category_id": 7 if name == "cat" else 3, "segmentation": rle(mask, index % 2 == 0)}
        for index, (name, mask) in enumerate(object_masks(case))
    ]
    return coco_folder(folder, annotations, case[0].shape)


def as_instance_masks(folder, case):
    return instance_masks_folder(folder, case[0].astype(np.uint16), case[0].shape, category="cat")


def converted(folder, source, **classes):
    """Convert in a folder; return (class, mask) of each segment. The check must find no error."""
    (split,) = convert({"train": source}, folder / "out", ClassOptions(**classes))
    paths = split.paths.values()
    report = check_dataset(DatasetPaths("fuzz", *map(str, paths)))
    kinds = {f.kind for f in report.findings if f.is_error or f.kind == "wrong-box"}
    assert kinds <= {"no-labels"}
    return [(name, mask) for name, _, mask in Result(folder / "out").segments(IMAGE)]


def as_set(segments):
    return sorted((name, mask.tobytes()) for name, mask in segments if mask.any())


@pytest.mark.parametrize("make", [as_coco, as_instance_masks])
@given(case=maps(), background=st.sampled_from([None, "rest"]))
@FUZZ
def test_objects_come_back(make, case, background):
    numbers, classes = case
    if make is as_instance_masks:
        case = numbers, [0] * len(classes)
    if not (numbers > 0).any():
        return
    with tempfile.TemporaryDirectory() as folder:
        found = converted(Path(folder), make(Path(folder), case), background=background)
    expected = object_masks(case)
    if background:
        expected.append(("rest", numbers == 0))
    assert as_set(found) == as_set(expected)


@given(case=maps())
@FUZZ
def test_class_masks_come_back(case):
    numbers, _ = case
    labels = "".join(f"class {i}\n" for i in range(7))
    classes = {"things": ("class 1", "class 4"), "ignore": ("class 2",)}
    with tempfile.TemporaryDirectory() as folder:
        mask = numbers.astype(np.uint8)
        source = class_masks_folder(Path(folder), mask, mask.shape, labels=labels)
        found = converted(Path(folder), source, **classes)
    expected = [(f"class {i}", numbers == i) for i in (0, 3, 5, 6)]
    for i in (1, 4):
        components, count = ndimage.label(numbers == i, np.ones((3, 3)))
        expected += [(f"class {i}", components == n + 1) for n in range(count)]
    assert as_set(found) == as_set(expected)


@given(case=maps(), min_area=st.integers(0, 6), background=st.booleans(), data=st.data())
@FUZZ
def test_finished_maps_are_sound(case, min_area, background, data):
    numbers, classes = case
    names = st.sampled_from([None, "1", "2", "3"])
    segments = [Segment(data.draw(names), int(c)) for c in classes]
    categories = [
        {"id": i, "name": str(i), "isthing": int(i < 3), "color": [60 * i, 0, 0]} for i in (1, 2, 3)
    ]
    labels = Labels(numbers.astype(np.int32), segments)
    rest = "3" if background else None
    ids, infos, dropped = to_panoptic(labels, categories, background=rest, min_area=min_area)
    assert {s["id"] for s in infos} == set(np.unique(ids).tolist()) - {0}
    for info in infos:
        rows, columns = np.nonzero(ids == info["id"])
        assert info["area"] == len(rows)
        assert info["area"] >= min_area or info["category_id"] == 3
        x, y, width, height = info["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    stuff = [s for s in infos if s["category_id"] == 3]
    assert len(stuff) <= 1 and 0 <= dropped <= len(segments)
    void = np.isin(numbers, [i + 1 for i, s in enumerate(segments) if s.name is None])
    assert not ids[void].any()
    if background:
        assert ids[~void].all()
