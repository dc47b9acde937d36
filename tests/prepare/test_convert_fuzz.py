"""Random label maps, written in other formats and converted: the same map comes back."""

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util
from scipy import ndimage

from detr_panoptic_d2.data.panoptic_png import read_panoptic_png
from detr_panoptic_d2.prepare.check.dataset import DatasetPaths, check_dataset, is_error
from detr_panoptic_d2.prepare.convert.categories import ClassOptions
from detr_panoptic_d2.prepare.convert.coco import coco_instances
from detr_panoptic_d2.prepare.convert.cvat import cvat
from detr_panoptic_d2.prepare.convert.labelme import labelme
from detr_panoptic_d2.prepare.convert.masks import class_masks, instance_masks
from detr_panoptic_d2.prepare.convert.segments import to_panoptic
from detr_panoptic_d2.prepare.convert.source import Labels, Segment
from detr_panoptic_d2.prepare.convert.writer import convert

FUZZ = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = ["thing", "other"]


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


def write_image(folder, size):
    (folder / "images").mkdir()
    Image.new("RGB", size[::-1]).save(folder / "images/a.png")


def object_masks(case):
    numbers, classes = case
    return [(NAMES[c], numbers == i + 1) for i, c in enumerate(classes)]


def as_coco(folder, case):
    annotations = []
    for index, (name, mask) in enumerate(object_masks(case)):
        encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        if index % 2:
            flat = mask.reshape(-1, order="F").astype(int)
            ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
            rle["counts"] = np.diff([0, *ends, flat.size]).tolist()
        annotations.append(
            {"id": index, "image_id": 1, "category_id": NAMES.index(name), "segmentation": rle}
        )
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return coco_instances(folder / "instances.json", folder / "images")


def as_labelme(folder, case):
    shapes = []
    for name, mask in object_masks(case):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            continue
        buffer = io.BytesIO()
        cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        Image.fromarray(cut).save(buffer, format="PNG")
        points = [[int(columns[0]), int(rows[0])], [int(columns[-1]), int(rows[-1])]]
        text = base64.b64encode(buffer.getvalue()).decode()
        shapes.append({"label": name, "points": points, "shape_type": "mask", "mask": text})
    content = {"shapes": shapes, "imagePath": "a.png", "imageData": None}
    (folder / "images/a.json").write_text(json.dumps(content))
    return labelme(folder / "images")


def as_cvat(folder, case):
    height, width = case[0].shape
    shapes = []
    for name, mask in object_masks(case):
        ends = np.flatnonzero(np.diff(mask.reshape(-1).astype(int), prepend=0)).tolist()
        runs = ", ".join(map(str, np.diff([0, *ends, mask.size]).tolist()))
        box = f'left="0" top="0" width="{width}" height="{height}"'
        shapes.append(f'<mask label="{name}" rle="{runs}" {box}/>')
    text = f'<image id="0" name="a.png" width="{width}" height="{height}">{"".join(shapes)}</image>'
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    (folder / "a.xml").write_text(f"<annotations>{meta}{text}</annotations>")
    return cvat(folder / "a.xml", folder / "images")


def as_instance_masks(folder, case):
    (folder / "masks").mkdir()
    Image.fromarray(case[0].astype(np.uint16)).save(folder / "masks/a_mask.png")
    return instance_masks(folder / "images", folder / "masks", category=NAMES[0])


def converted(folder, make, case, **classes):
    """Convert in a folder; return (class, mask) of each segment. The check must find no error."""
    write_image(folder, case[0].shape)
    splits = {"train": make(folder, case)}
    (split,) = convert(splits, folder / "out", ClassOptions(**classes))
    paths = (split.image_root, split.panoptic_root, split.panoptic_json)
    report = check_dataset(DatasetPaths("fuzz", *map(str, paths)))
    kinds = {f.kind for f in report.findings if is_error(f) or f.kind == "wrong-box"}
    assert kinds <= {"no-labels"}
    content = json.loads(split.panoptic_json.read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    (annotation,) = content["annotations"]
    ids = read_panoptic_png(split.panoptic_root / annotation["file_name"])
    return [(names[s["category_id"]], ids == s["id"]) for s in annotation["segments_info"]]


def as_set(segments):
    return sorted((name, mask.tobytes()) for name, mask in segments if mask.any())


@pytest.mark.parametrize("make", [as_coco, as_labelme, as_cvat, as_instance_masks])
@given(case=maps(), background=st.sampled_from([None, "rest"]))
@FUZZ
def test_objects_come_back(make, case, background):
    numbers, classes = case
    if make is as_instance_masks:
        case = numbers, [0] * len(classes)
    if make is as_labelme and not (numbers > 0).any():
        return
    with tempfile.TemporaryDirectory() as folder:
        found = converted(Path(folder), make, case, background=background)
    expected = object_masks(case)
    if background:
        expected.append(("rest", numbers == 0))
    assert as_set(found) == as_set(expected)


@given(case=maps(), connectivity=st.sampled_from([4, 8]))
@FUZZ
def test_class_masks_come_back(case, connectivity):
    numbers, _ = case

    def make(folder, case):
        (folder / "masks").mkdir()
        Image.fromarray(case[0].astype(np.uint8)).save(folder / "masks/a.png")
        (folder / "labels.txt").write_text("".join(f"class {i}\n" for i in range(7)))
        paths = folder / "images", folder / "masks", folder / "labels.txt"
        return class_masks(*paths, connectivity=connectivity)

    classes = {"things": ("class 1", "class 4"), "ignore": ("class 2",)}
    with tempfile.TemporaryDirectory() as folder:
        found = converted(Path(folder), make, case, **classes)
    expected = [(f"class {i}", numbers == i) for i in (0, 3, 5, 6)]
    around = np.ones((3, 3)) if connectivity == 8 else None
    for i in (1, 4):
        components, count = ndimage.label(numbers == i, around)
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
    ids, infos, hidden = to_panoptic(labels, categories, background=rest, min_area=min_area)
    assert {s["id"] for s in infos} == set(np.unique(ids).tolist()) - {0}
    for info in infos:
        rows, columns = np.nonzero(ids == info["id"])
        assert info["area"] == len(rows)
        assert info["area"] >= min_area or info["category_id"] == 3
        x, y, width, height = info["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    stuff = [s for s in infos if s["category_id"] == 3]
    assert len(stuff) <= 1 and 0 <= hidden <= len(segments)
    void = np.isin(numbers, [i + 1 for i, s in enumerate(segments) if s.name is None])
    assert not ids[void].any()
    if background:
        assert ids[~void].all()


@given(data=st.binary(max_size=300), name=st.sampled_from(["coco", "labelme", "cvat", "mask"]))
@FUZZ
def test_garbage_is_a_named_error(data, name):
    """Any bytes as input: an error that names the file, and no output."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_image(folder, (3, 3))
        (folder / "masks").mkdir()
        target = {"labelme": "images/x.json", "mask": "masks/a_mask.png"}.get(name, "x")
        (folder / target).write_bytes(data)
        with pytest.raises((OSError, ValueError), match=Path(target).name):
            source = {
                "coco": lambda: coco_instances(folder / "x", folder / "images"),
                "labelme": lambda: labelme(folder / "images"),
                "cvat": lambda: cvat(folder / "x", folder / "images"),
                "mask": lambda: instance_masks(folder / "images", folder / "masks"),
            }[name]()
            convert({"train": source}, folder / "out")
        assert not list(folder.glob("out/*.json"))
