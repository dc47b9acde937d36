"""Random PNGs and jsons: what always holds for the mapper's output, and for its errors."""

import itertools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.data.dataset_mapper import PanopticDatasetMapper
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json
from detr_panoptic_d2.engine.reproducible import seeded

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CATEGORIES = [{"id": 7, "name": "thing", "isthing": 1}, {"id": 3, "name": "stuff", "isthing": 0}]
MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16")
HIGHEST_ID = 2**24 - 1


@st.composite
def scenes(draw):
    """Size, id map, segments of the json, mode of the image and alpha channel of the PNG.

    Ids of the PNG and of the json overlap, but neither holds all of the other.
    """
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    some_ids = st.one_of(st.integers(1, 300), st.integers(1, HIGHEST_ID))
    drawn = draw(st.lists(some_ids, max_size=6, unique=True))
    listed = draw(st.lists(some_ids, max_size=3, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    ids = np.zeros((height, width), dtype=np.int64)
    for segment in drawn:
        top, left = rng.integers(0, height), rng.integers(0, width)
        ids[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = (
            segment
        )
    named = [i for i in drawn if draw(st.booleans())] + [i for i in listed if i not in drawn]
    segments = [
        {
            "id": i,
            "category_id": draw(st.sampled_from([7, 3])),
            "iscrowd": draw(st.sampled_from([0, 0, 0, 1])),
            "area": draw(st.integers(-5, 10**6)),
        }
        for i in draw(st.permutations(named))
    ]
    return ids, segments, draw(st.sampled_from(MODES)), draw(st.booleans())


@st.composite
def settings_of_input(draw):
    short = sorted(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    return {
        "INPUT.MIN_SIZE_TRAIN": tuple(short),
        "INPUT.MAX_SIZE_TRAIN": draw(st.integers(1, 60)),
        "INPUT.RANDOM_FLIP": draw(st.sampled_from(["horizontal", "vertical", "none"])),
        "INPUT.CROP.ENABLED": draw(st.booleans()),
        "INPUT.CROP.PROB": 0.5,
        "INPUT.CROP.TYPE": "absolute_range",
        "INPUT.CROP.SIZE": draw(st.sampled_from([(1, 8), (5, 30), (30, 50)])),
        "INPUT.CROP.RESIZE_MIN_SIZES": (8, 20),
        "INPUT.FORMAT": draw(st.sampled_from(["RGB", "BGR"])),
        "MODEL.MASK_ON": draw(st.booleans()),
    }


class OnDisk:
    """A data set of one image in a folder of its own."""

    def __init__(self, root, ids, segments, mode, alpha):
        self.paths = (root / "images", root / "panoptic", root / "panoptic.json")
        self.paths[0].mkdir()
        self.paths[1].mkdir()
        height, width = ids.shape
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        name = "a.tif" if mode == "CMYK" else "a.png"
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
        else:
            image = Image.fromarray(pixels).convert(mode)
        image.save(self.paths[0] / name)
        rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        png = Image.fromarray(rgb)
        if alpha:
            png.putalpha(77)
        png.save(self.paths[1] / "p.png")
        self.content = {
            "categories": CATEGORIES,
            "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
            "annotations": [{"image_id": 1, "file_name": "p.png", "segments_info": segments}],
        }

    def load(self):
        self.paths[2].write_text(json.dumps(self.content))
        return load_panoptic_json(*map(str, self.paths))


@pytest.fixture(scope="module")
def folders():
    """A function that makes a new empty folder; all are gone in the end."""
    root = Path(tempfile.mkdtemp())
    numbers = itertools.count()

    def make():
        folder = root / str(next(numbers))
        folder.mkdir()
        return folder

    yield make
    shutil.rmtree(root)


@FUZZ
@given(scene=scenes(), options=settings_of_input(), seed=st.integers(0, 1000))
def test_output_is_what_the_model_takes(folders, scene, options, seed):
    ids, segments, mode, alpha = scene
    (item,) = OnDisk(folders(), ids, segments, mode, alpha).load()
    before = json.dumps(item)
    cfg = merged_cfg("shapes/tiny.yaml", [str(x) for pair in options.items() for x in pair])
    mapper = PanopticDatasetMapper(cfg, is_train=True)
    with seeded(seed):
        result = mapper(item)
    assert json.dumps(item) == before

    image, instances = result["image"], result["instances"]
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape) >= 1
    assert max(image.shape[1:]) <= max(options["INPUT.MAX_SIZE_TRAIN"], 1)
    assert (result["height"], result["width"]) == ids.shape
    height, width = instances.image_size
    assert (height, width) == tuple(image.shape[1:])

    targets = [s for s in segments if not s["iscrowd"] and (ids == s["id"]).any()]
    classes = instances.gt_classes.tolist()
    assert len(instances) <= len(targets)
    remaining = iter([0 if s["category_id"] == 7 else 1 for s in targets])
    assert all(c in remaining for c in classes), "a subset of the targets, in their order"
    boxes = instances.gt_boxes.tensor
    assert boxes.dtype == torch.float32 and torch.isfinite(boxes).all()
    assert (boxes >= 0).all() and (boxes[:, 2:] >= boxes[:, :2]).all()
    assert (boxes[:, [0, 2]] < width).all() and (boxes[:, [1, 3]] < height).all()
    assert instances.has("gt_masks") == options["MODEL.MASK_ON"]
    if options["MODEL.MASK_ON"]:
        check_masks(instances.gt_masks.tensor, boxes, (height, width))
    with seeded(seed):
        again = mapper(item)
    assert torch.equal(again["image"], image)
    assert torch.equal(again["instances"].gt_boxes.tensor, boxes)


def check_masks(masks, boxes, size):
    """No pixel is in two masks, none is empty, and the boxes are tight."""
    assert masks.dtype == torch.bool and tuple(masks.shape[1:]) == size
    assert (masks.sum(0) <= 1).all()
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        y, x = torch.where(mask)
        assert box == [x.min(), y.min(), x.max(), y.max()]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = {
    "categories": ("id", "name", "isthing", "color"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "file_name", "segments_info"),
    "segments": ("id", "category_id", "iscrowd"),
}


@FUZZ
@given(
    kind=st.sampled_from(["content", *FIELDS]),
    field=st.integers(0, 3),
    value=st.one_of(json_values, st.sampled_from(["../a.png", "/etc/passwd", "C:\\a", "a\0.png"])),
    missing=st.booleans(),
)
def test_any_field_of_the_json_is_right_or_named(folders, kind, field, value, missing):
    """Whatever stands in a field, there is a usable dict or an error that names the json."""
    ids = np.full((4, 5), 9)
    made = OnDisk(folders(), ids, [{"id": 9, "category_id": 7}], "RGB", False)
    content = json.loads(json.dumps(made.content))
    if kind == "content":
        owner, key = content, ("categories", "images", "annotations")[field % 3]
    elif kind == "segments":
        owner = content["annotations"][0]["segments_info"][0]
        key = FIELDS[kind][field % 3]
    else:
        owner, key = content[kind][0], FIELDS[kind][field % len(FIELDS[kind])]
    if missing:
        owner.pop(key, None)
    else:
        owner[key] = value
    made.content = content
    mapper = PanopticDatasetMapper(
        augmentations=[], image_format="RGB", with_targets=True, with_masks=True
    )
    try:
        (item,) = made.load()
        for name, root in zip(("file_name", "pan_seg_file_name"), made.paths, strict=False):
            assert Path(item[name]).resolve().is_relative_to(root)
        instances = mapper(item)["instances"]
    except (ValueError, OSError) as error:
        text = str(error)
        assert str(made.paths[2].parent) in text, text
        assert len(text.splitlines()) == 1, text
    else:
        assert len(instances) <= 1
