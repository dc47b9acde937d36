import json

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from detr_panoptic_d2.prepare.convert.categories import choose_categories
from detr_panoptic_d2.prepare.convert.coco import coco_instances
from detr_panoptic_d2.prepare.convert.shapes import draw_shapes, shape

H, W = 24, 32
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def rle(mask, compressed=True):
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = mask.reshape(-1, order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *ends, flat.size]).tolist()}


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.fixture
def make(tmp_path, save_image):
    """Return ``make(segmentations, ...)``: write a json of one image and open it as a source."""

    def write(annotations, **options):
        content = {
            "images": [{"id": 5, "file_name": "sub/a.jpg", "height": H, "width": W}],
            "annotations": [
                {"id": i, "image_id": 5, "category_id": 7, "iscrowd": 0, **a}
                for i, a in enumerate(annotations)
            ],
            "categories": CATEGORIES,
        }
        content.update(options.pop("content", {}))
        save_image(tmp_path / "images/sub/a.jpg", H, W)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return coco_instances(path, tmp_path / "images", **options)

    return write


def test_masks_are_those_of_pycocotools(make, convert_and_check, tmp_path):
    blob = np.zeros((H, W), bool)
    blob[3:9, 20:30] = blob[6:12, 24:28] = True
    annotations = [
        {"segmentation": [[1.2, 2.7, 12.4, 3.1, 9.8, 14.9, 2.2, 11.3]]},
        {"segmentation": [*box(14, 16, 3, 4), [25, 15, 31, 15, 28, 22]], "category_id": 3},
        {"segmentation": rle(blob)},
        {"segmentation": rle(np.roll(blob, 12, 0) & (np.arange(W) < 24), False)},
    ]
    result = convert_and_check(make(annotations))
    coco = COCO(str(tmp_path / "instances.json"))
    expected = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds())]
    found = [mask for _, _, mask in result.segments("sub/a.jpg")]
    assert len(found) == 4
    for mask in expected:
        assert sum(np.array_equal(mask, other) for other in found) == 1
    assert result.annotations["sub/a.jpg"]["image_id"] == 5
    assert {n: c["id"] for c in result.content["categories"] for n in [c["name"]]} == {
        "cat": 7,
        "dog": 3,
    }


@pytest.mark.parametrize("rule, top", [("smaller-on-top", "dog"), ("later-on-top", "cat")])
def test_overlap_rule(make, convert_and_check, rule, top):
    annotations = [
        {"segmentation": box(4, 4, 6, 6), "category_id": 3},
        {"segmentation": box(2, 2, 16, 12)},
    ]
    result = convert_and_check(make(annotations, overlap=rule))
    assert result.classes("sub/a.jpg")[6, 6] == top
    assert len(result.segments("sub/a.jpg")) == (2 if top == "dog" else 1)
    assert result.split.hidden == (0 if top == "dog" else 1)


def test_crowd_lies_under_things_and_is_one_segment(make, convert_and_check):
    whole = np.zeros((H, W), bool)
    whole[:8] = True
    annotations = [
        {"segmentation": box(0, 4, 32, 6)},
        {"segmentation": rle(whole, False), "iscrowd": 1},
        {"segmentation": rle(np.flipud(whole), False), "iscrowd": 1},
    ]
    result = convert_and_check(make(annotations))
    (_, cat_crowd, cat), (_, crowd, both) = result.segments("sub/a.jpg")
    assert (cat_crowd, crowd) == (0, 1)
    assert cat[4:10].all() and cat.sum() == 6 * W
    assert both[:4].all() and both[16:].all() and both.sum() == 12 * W


def test_ignored_class_stays_void_under_a_background(make, convert_and_check):
    annotations = [
        {"segmentation": box(4, 4, 6, 6)},
        {"segmentation": box(20, 4, 6, 6), "category_id": 3},
    ]
    result = convert_and_check(make(annotations), background="ground", ignore=("dog",))
    classes = result.classes("sub/a.jpg")
    assert (classes[4:10, 20:26] == "").all() and (classes == "").sum() == 36
    assert (classes == "cat").sum() == 36


def test_semantic_json(make, convert_and_check, tmp_path):
    sky = np.zeros((H, W), bool)
    sky[:10] = True
    stuff = {
        "images": [{"id": 5, "file_name": "sub/a.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 100, "segmentation": rle(sky)},
            {"id": 2, "image_id": 5, "category_id": 100, "segmentation": box(0, 20, 4, 4)},
        ],
        "categories": [{"id": 100, "name": "sky"}],
    }
    (tmp_path / "stuff.json").write_text(json.dumps(stuff))
    source = make([{"segmentation": box(4, 4, 10, 10)}], semantic=tmp_path / "stuff.json")
    (_, _, cat), (_, _, found) = convert_and_check(source).segments("sub/a.jpg")
    assert cat.sum() == 100
    sky[20:, :4] = True
    assert np.array_equal(found, sky & ~cat)
    stuff["categories"][0]["id"] = stuff["annotations"][0]["category_id"] = 7
    (tmp_path / "stuff.json").write_text(json.dumps(stuff))
    with pytest.raises(ValueError, match="7 is 'cat' in one file .* and 'sky'"):
        make([], semantic=tmp_path / "stuff.json")


def test_semantic_masks(make, convert_and_check, save_mask, tmp_path):
    values = np.full((H, W), 255, np.uint8)
    values[:12], values[12:20] = 0, 1
    save_mask(tmp_path / "semantic/sub/a.png", values)
    (tmp_path / "labels.txt").write_text("sky\ncat\n")
    source = make(
        [{"segmentation": box(4, 10, 10, 10)}],
        semantic=tmp_path / "semantic",
        labels=tmp_path / "labels.txt",
    )
    # A pixel that is semantically a cat, but of no instance, is void even with a background.
    classes = convert_and_check(source, background="ground").classes("sub/a.jpg")
    assert (classes[:10] == "sky").all() and (classes[10:20, 4:14] == "cat").all()
    assert (classes[12:20, 14:] == "").all() and (classes[20:] == "ground").all()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_compressed_rle_is_decoded_as_pycocotools_does(share):
    for seed, size in enumerate([(1, 1), (7, 5), (64, 300), (300, 700)]):
        mask = np.random.default_rng(seed).random(size) < share
        shapes = [shape("a", {"rle": rle(mask)})]
        labels = draw_shapes(shapes, size, {"a"}, "smaller-on-top", "test")
        assert np.array_equal(labels.map == 1, mask)


def test_what_has_no_mask_is_left_out_and_said(make, convert_and_check):
    annotations = [
        {"bbox": [1, 1, 4, 4]},
        {"segmentation": []},
        {"segmentation": [[1, 1, 5, 5]]},
        {"segmentation": box(4, 4, 6, 6)},
    ]
    source = make(annotations)
    assert [len(places) for places in source.left_out.values()] == [2, 1]
    no_mask, few_points = source.left_out
    assert "no segmentation" in no_mask and "fewer than three points" in few_points
    assert "annotation 0" in source.left_out[no_mask][0]
    assert len(convert_and_check(source).segments("sub/a.jpg")) == 1


BROKEN = {
    "odd polygon": ({"segmentation": [[1, 2, 3, 4, 5]]}, "no list of x, y pairs"),
    "text in polygon": ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, "no list of x, y pairs"),
    "nan": ({"segmentation": [[float("nan"), 2, 3, 4, 5, 6]]}, "no list of x, y pairs"),
    "far away": ({"segmentation": [[1e9, 2, 3, 4, 5, 6]]}, "far outside"),
    "rle without counts": ({"segmentation": {"size": [H, W]}}, "'size' .* and 'counts'"),
    "rle of another size": ({"segmentation": {"size": [9, 9], "counts": [81]}}, "9 x 9"),
    "short rle": ({"segmentation": {"size": [H, W], "counts": [5]}}, "do not add up"),
    "cut rle": ({"segmentation": {"size": [H, W], "counts": "P"}}, "add up"),
    "no ascii": ({"segmentation": {"size": [H, W], "counts": "\u00e9"}}, "add up"),
    "garbled rle": ({"segmentation": {"size": [H, W], "counts": "zz"}}, "add up"),
    "unknown image": ({"image_id": 6}, "no image with the id 6"),
    "unknown category": ({"category_id": 8}, "category_id 8 .*\\[3, 7\\]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_are_named(make, convert_and_check, tmp_path, case):
    annotation, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        convert_and_check(make([{"segmentation": box(1, 1, 5, 5), **annotation}]))
    assert not list(tmp_path.glob("out/*.json"))


@pytest.mark.parametrize("name", ["../secret.jpg", "C:\\x"])
def test_no_path_leaves_the_image_folder(make, name):
    content = {"images": [{"id": 5, "file_name": name, "height": H, "width": W}]}
    with pytest.raises(ValueError, match="instances.json.*image 5.*leads out of"):
        make([], content=content)


BAD_JSON = {
    "no images": ({"images": None}, "no list 'images'"),
    "image twice": (
        {"images": [{"id": i, "file_name": "sub/a.jpg"} for i in (5, 6)]},
        "listed twice",
    ),
    "float id": ({"images": [{"id": 5.5, "file_name": "a.jpg"}]}, "integer or a string"),
    "no name": ({"categories": [{"id": 7}]}, "'id' and a 'name'"),
    "id twice": ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, "id 7"),
    "number as color": ({"categories": [{"id": 7, "name": "a", "color": 5}]}, None),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json(make, case):
    content, message = BAD_JSON[case]
    if message is None:
        assert make([], content=content).classes[0].color is None
        return
    with pytest.raises(ValueError, match=message):
        make([], content=content)


def test_category_id_0_gets_a_free_id(make):
    categories = [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    found = choose_categories(make([], content={"categories": categories}).classes)
    assert [c["id"] for c in found] == [2, 1]


def test_size_of_the_json_must_be_that_of_the_image(make, convert_and_check):
    content = {"images": [{"id": 5, "file_name": "sub/a.jpg", "height": W, "width": H}]}
    with pytest.raises(ValueError, match=r"sub/a.jpg.*EXIF"):
        convert_and_check(make([], content=content))
