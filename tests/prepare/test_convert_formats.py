"""Small folders in each format, converted and read back, and what is wrong in them named."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from detr_panoptic_d2.prepare.convert.coco import coco_instances
from detr_panoptic_d2.prepare.convert.cvat import cvat
from detr_panoptic_d2.prepare.convert.label_studio import label_studio
from detr_panoptic_d2.prepare.convert.labelme import labelme
from detr_panoptic_d2.prepare.convert.mask_folders import class_masks, instance_masks
from detr_panoptic_d2.prepare.convert.writer import convert
from tests.prepare.folders import (
    IMAGE,
    H,
    W,
    class_masks_folder,
    coco_folder,
    cvat_folder,
    instance_masks_folder,
    labelme_folder,
    png,
    rle,
    runs,
    save_image,
    save_mask,
)

TWO_POINTS = [[1, 2], [3, 4]]
TRIANGLE = [[2.5, 3.0], [12.0, 4.5], [6.0, 15.5]]


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def polygon_mask(points):
    flat = [float(v) for p in points for v in p]
    return mask_util.decode(mask_util.frPyObjects([flat], H, W))[:, :, 0].astype(bool)


@pytest.fixture
def make(tmp_path):
    """Return ``make(kind, content, **options)``: write a folder with one image and open it."""
    writers = {
        "coco": coco_folder,
        "labelme": labelme_folder,
        "cvat": cvat_folder,
        "class-masks": class_masks_folder,
        "instance-masks": instance_masks_folder,
    }
    return lambda kind, content, **options: writers[kind](tmp_path, content, **options)


# ---- COCO


def test_coco_masks_are_those_of_pycocotools(make, convert_and_check, tmp_path):
    blob = np.zeros((H, W), bool)
    blob[3:9, 20:30] = blob[6:12, 24:28] = True
    annotations = [
        {"segmentation": [[1.2, 2.7, 12.4, 3.1, 9.8, 14.9, 2.2, 11.3], [1, 1, 5, 5]]},
        {"segmentation": [*box(14, 16, 3, 4), [25, 15, 31, 15, 28, 22]], "category_id": 3},
        {"segmentation": rle(blob)},
        {"segmentation": rle(np.roll(blob, 12, 0) & (np.arange(W) < 24), False)},
    ]
    result = convert_and_check(make("coco", annotations))
    del annotations[0]["segmentation"][1]  # two points: pycocotools takes them for a box
    make("coco", annotations)
    coco = COCO(str(tmp_path / "instances.json"))
    expected = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds())]
    found = [mask for _, _, mask in result.segments(IMAGE)]
    assert len(found) == 4
    for mask in expected:
        assert sum(np.array_equal(mask, other) for other in found) == 1
    assert result.annotations[IMAGE]["image_id"] == 5
    assert {c["name"]: c["id"] for c in result.content["categories"]} == {"cat": 7, "dog": 3}


def test_smaller_objects_lie_above_and_hidden_ones_are_counted(make, convert_and_check):
    annotations = [
        {"segmentation": box(4, 4, 6, 6), "category_id": 3},
        {"segmentation": box(2, 2, 16, 12)},
        {"segmentation": box(2, 2, 16, 2)},
        {"segmentation": box(2, 4, 16, 10)},
    ]
    result = convert_and_check(make("coco", annotations))
    assert result.classes(IMAGE)[6, 6] == "dog"
    assert len(result.segments(IMAGE)) == 3 and result.split.num_dropped == 1


def test_crowd_lies_under_things_and_is_one_segment(make, convert_and_check):
    whole = np.zeros((H, W), bool)
    whole[:8] = True
    annotations = [
        {"segmentation": box(0, 4, 32, 6)},
        {"segmentation": rle(whole, False), "iscrowd": 1},
        {"segmentation": rle(np.flipud(whole), False), "iscrowd": 1},
    ]
    found = convert_and_check(make("coco", annotations)).segments(IMAGE)
    (_, _, cat), (_, _, both) = sorted(found, key=lambda segment: segment[1])
    assert sorted(crowd for _, crowd, _ in found) == [0, 1]
    assert cat[4:10].all() and cat.sum() == 6 * W
    assert both[:4].all() and both[16:].all() and both.sum() == 12 * W


def test_coco_with_semantic_json(make, convert_and_check, tmp_path):
    sky = np.zeros((H, W), bool)
    sky[:10] = True
    stuff = {
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 100, "segmentation": rle(sky)},
            {"id": 2, "image_id": 5, "category_id": 100, "segmentation": box(0, 20, 4, 4)},
        ],
        "categories": [{"id": 100, "name": "sky"}],
    }
    (tmp_path / "stuff.json").write_text(json.dumps(stuff))
    cat = [{"segmentation": box(4, 4, 10, 10)}]
    result = convert_and_check(make("coco", cat, semantic=tmp_path / "stuff.json"))
    masks = {name: mask for name, _, mask in result.segments(IMAGE)}
    sky[20:, :4] = True
    assert masks["cat"].sum() == 100 and np.array_equal(masks["sky"], sky & ~masks["cat"])
    # Boxes are left out, and regions are no boxes.
    source = make("coco", [{"bbox": [4, 4, 10, 10]}], semantic=tmp_path / "stuff.json")
    ((name, _, mask),) = convert_and_check(source, output="boxes").segments(IMAGE)
    assert name == "sky" and np.array_equal(mask, sky)
    # A region of a thing class is void where no object covers it. Ids of images are its own.
    stuff["categories"].append({"id": 7, "name": "cat"})
    stuff["annotations"].append(
        {"image_id": 9, "category_id": 7, "segmentation": box(8, 4, 12, 12), "iscrowd": 0}
    )
    stuff["images"] = [{"id": 9, "file_name": IMAGE}]
    for annotation in stuff["annotations"]:
        annotation["image_id"] = 9
    (tmp_path / "stuff.json").write_text(json.dumps(stuff))
    source = make("coco", cat, semantic=tmp_path / "stuff.json")
    result = convert_and_check(source, output="void", background="rest")
    expected = np.full((H, W), "rest", object)
    expected[sky], expected[4:16, 8:20], expected[4:14, 4:14] = "sky", "", "cat"
    assert np.array_equal(result.classes(IMAGE), expected)
    assert [name for name, *_ in result.segments(IMAGE)].count("cat") == 1


def test_coco_with_semantic_masks(make, convert_and_check, tmp_path):
    values = np.full((H, W), 255, np.uint8)
    values[:12], values[12:20] = 0, 1
    save_mask(tmp_path / "semantic/sub/a.png", values)
    (tmp_path / "labels.txt").write_text("sky\ncat\n")
    semantic = {"semantic": tmp_path / "semantic", "labels": tmp_path / "labels.txt"}
    source = make("coco", [{"segmentation": box(4, 10, 10, 10)}], **semantic)
    # A pixel that is semantically a cat, but of no instance, is void even with a background.
    classes = convert_and_check(source, background="ground").classes(IMAGE)
    assert (classes[:10] == "sky").all() and (classes[10:20, 4:14] == "cat").all()
    assert (classes[12:20, 14:] == "").all() and (classes[20:] == "ground").all()


def coco_image(**changes):
    return {"images": [{"id": 5, "file_name": IMAGE, **changes}]}


BOX = np.zeros((H, W), bool)
BOX[4:12, 4:14] = True
FLAT = box(4, 4, 10, 8)[0]
PAIRS = [FLAT[i : i + 2] for i in range(0, 8, 2)]
FLOATS = {"size": ["24", 32.0], "counts": [float(n) for n in runs(BOX.T)]}
# Values in unusual types with a clear meaning: all are one cat, BOX.
CLEAR_VALUES = {
    "VIA": ({"image_id": "5", "segmentation": FLAT}, coco_image(width=-1, height=-1)),
    "sizes as text": ({}, coco_image(width="32", height=24.0)),
    "pandas": ({"id": 0.0, "image_id": 5.0, "category_id": 7.0, "iscrowd": 0.0}, {}),
    "text": ({"image_id": "5", "category_id": "7", "iscrowd": "0"}, {}),
    "image id as text": ({}, coco_image(id="5")),
    "pairs": ({"segmentation": PAIRS}, {}),
    "polygon of pairs": ({"segmentation": [PAIRS]}, {}),
    "too deep": ({"segmentation": [[FLAT]]}, {}),
    "two polygons too deep": ({"segmentation": [[*box(4, 4, 5, 8), *box(9, 4, 5, 8)]]}, {}),
    "numbers as text": ({"segmentation": [[str(v) for v in FLAT]]}, {}),
    "RLE of floats": ({"segmentation": FLOATS}, {}),
    "categories": ({}, {"categories": [{"id": "7", "name": "cat", "color": "#0a0B0c"}]}),
}


@pytest.mark.parametrize("case", CLEAR_VALUES)
def test_unusual_types_with_a_clear_meaning(make, convert_and_check, case):
    annotation, changed = CLEAR_VALUES[case]
    source = make("coco", [{"segmentation": [FLAT], **annotation}], changed=changed)
    ((name, crowd, mask),) = convert_and_check(source).segments(IMAGE)
    assert (name, crowd) == ("cat", 0) and np.array_equal(mask, BOX)


LOST = {
    "run lengths as polygon": ("coco", [{"segmentation": [[300, 5, 30, 5, 19, 5]]}], "300, 5"),
    "two points": ("coco", [{"segmentation": [[1, 1, 9, 9]]}], "annotation 0"),
    "empty RLE": ("coco", [{"segmentation": {"size": [H, W], "counts": [H * W]}}], "annotation 0"),
    "line": ("labelme", [{"points": TRIANGLE, "shape_type": "linestrip"}], r"0 \(linestrip\)"),
    "flat": ("labelme", [{"points": [[1, 1], [5, 5]]}], "shape 0"),
    "polyline": ("cvat", '<polyline label="cat" points="1,1;2,2"/>', "polyline 0"),
}


@pytest.mark.parametrize("case", LOST)
def test_an_annotation_that_is_lost_is_named(make, tmp_path, caplog, case):
    kind, content, message = LOST[case]
    try:
        convert({"train": make(kind, content)}, tmp_path / "out")
        printed = caplog.text
    except ValueError as error:
        printed = f"{caplog.text} {error}"
    assert re.search(message, printed)


ODD_VALUES = [None, True, -1, 1.5, 1e300, "x", "3", [], [[1, 2]], {"a": 1}]


def _places(content, prefix=()):
    """Yield the path to each value of a json."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*prefix, key))


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_any_type_in_any_place_is_read_or_named(make, tmp_path, kind):
    if kind == "coco":
        make("coco", [{"segmentation": [FLAT[:6]]}, {"segmentation": rle(BOX, False)}])
        path = tmp_path / "instances.json"
        read = partial(coco_instances, path, tmp_path / "images")
    else:
        shape = {"points": TRIANGLE, "shape_type": "polygon"}
        make("labelme", [shape])
        path = tmp_path / "images/sub/a.json"
        read = partial(labelme, tmp_path / "images")
    text = path.read_text()
    num_errors = 0
    for place in _places(json.loads(text)):
        for value in ODD_VALUES:
            content = json.loads(text)
            entry = content
            for key in place[:-1]:
                entry = entry[key]
            entry[place[-1]] = value
            path.write_text(json.dumps(content))
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            try:
                convert({"train": read()}, tmp_path / "out")
            except (ValueError, OSError) as error:
                assert type(error) is not ValueError, (place, value)
                num_errors += 1
    assert num_errors > 40


def test_unused_parents_of_roboflow_are_dropped(make, convert_and_check):
    categories = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "pets", "supercategory": "none"},
        {"id": 7, "name": "cat", "supercategory": "pets"},
        {"id": 8, "name": "dog", "supercategory": "pets"},
    ]
    cat = {"segmentation": [FLAT]}
    result = convert_and_check(make("coco", [cat], changed={"categories": categories}))
    assert {c["name"]: c["id"] for c in result.content["categories"]} == {"cat": 7, "dog": 8}
    annotations = [cat, {**cat, "category_id": 0}]
    with pytest.raises(ValueError, match="has 2 classes with the name 'cat'"):
        make("coco", annotations, changed={"categories": categories})


# ---- LabelMe and CVAT


def test_every_shape_of_labelme(make, convert_and_check):
    small = np.zeros((4, 5), bool)
    small[1:, 2:] = True
    shapes = [
        {"label": "box", "points": [[29, 8], [23, 2]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[18, 14], [22, 14]], "shape_type": "circle"},
        {"label": "blob", "points": [[1, 18], [5, 21]], "shape_type": "mask", "mask": png(small)},
        {"label": "cat", "points": TRIANGLE},
        {"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": "line"},
    ]
    result = convert_and_check(make("labelme", shapes))
    found = {name: mask for name, _, mask in result.segments(IMAGE)}
    assert found["box"][2:8, 23:29].all() and found["box"].sum() == 36
    y, x = np.mgrid[:H, :W] + 0.5
    disc = np.hypot(x - 18, y - 14)
    assert found["disc"][disc < 3].all() and not found["disc"][disc > 5].any()
    assert np.array_equal(found["blob"][18:22, 1:6], small) and found["blob"].sum() == small.sum()
    assert np.array_equal(found["cat"], polygon_mask(TRIANGLE))
    assert [c["name"] for c in result.content["categories"]] == ["blob", "box", "cat", "disc"]


@pytest.mark.parametrize("kind", ["rectangle", "rotation"])
def test_shapes_of_four_corners(make, convert_and_check, kind):
    """The json is in a folder of its own."""
    corners = [[10, 2], [18, 8], [12, 16], [4, 10]]
    options = {"folder": "images/labels", "changed": {"imagePath": "..\\sub\\a.jpg"}}
    source = make("labelme", [{"points": corners, "shape_type": kind}], **options)
    ((_, _, mask),) = convert_and_check(source).segments(IMAGE)
    assert np.array_equal(mask, polygon_mask(corners))


@pytest.mark.parametrize("path", ["a.json", None, "C:\\photos\\a.png", "/home/x/a.jpg"])
def test_a_json_without_a_usable_path_has_the_image_beside_it(make, convert_and_check, path):
    source = make("labelme", [{"points": TRIANGLE}], changed={"imagePath": path})
    assert list(convert_and_check(source).images) == [IMAGE]


@pytest.mark.parametrize("folder", ["", "images/"])
def test_subsets_of_a_cvat_project(tmp_path, convert_and_check, folder):
    """As CVAT exports a project: two images of one name, each in the folder of its subset."""
    images = ""
    for number, subset in enumerate(("Train", "Validation", "default")):
        save_image(tmp_path / f"images/{folder}{subset}/a.jpg", H, W)
        images += f'<image id="{number}" name="a.jpg" subset="{subset}" width="{W}" height="{H}">'
        images += f'<box label="cat" xtl="{number}" ytl="2" xbr="20" ybr="6"/></image>'
    save_image(tmp_path / "images/flat.jpg", H, W)
    images += f'<image id="9" name="flat.jpg" subset="Train" width="{W}" height="{H}"/>'
    (tmp_path / "a.xml").write_text(f"<annotations>{images}</annotations>")
    result = convert_and_check(cvat(tmp_path / "a.xml", tmp_path / "images"))
    for number, subset in enumerate(("Train", "Validation", "default")):
        ((_, _, mask),) = result.segments(f"{folder}{subset}/a.jpg")
        assert mask.sum() == 4 * (20 - number)
    assert "flat.jpg" in result.images


def test_every_shape_of_cvat(make, convert_and_check):
    shapes = """
    <polygon label="cat" points="2.50,3.00;12.00,4.50;6.00,15.50" z_order="0"></polygon>
    <box label="dog" xtl="15.0" ytl="2.0" xbr="20.0" ybr="6.0" z_order="0"></box>
    <ellipse label="disc" cx="24" cy="10" rx="4" ry="2" z_order="0"></ellipse>
    <mask label="blob" rle="2, 3, 2, 3" left="14" top="17" width="5" height="2"></mask>
    <box label="turned" xtl="23" ytl="18" xbr="29" ybr="20" rotation="90"></box>
    <polyline label="cat" points="1,1;2,2"></polyline><tag label="dog" source="manual"></tag>"""
    result = convert_and_check(make("cvat", shapes))
    found = {name: mask for name, _, mask in result.segments(IMAGE)}
    assert np.array_equal(found["cat"], polygon_mask(TRIANGLE))
    assert found["dog"][2:6, 15:20].all() and found["dog"].sum() == 20
    y, x = np.mgrid[:H, :W] + 0.5
    inside = ((x - 24) / 4) ** 2 + ((y - 10) / 2) ** 2
    assert found["disc"][inside < 0.5].all() and not found["disc"][inside > 1.8].any()
    # Runs go along the rows of the box, from a run of zeros on.
    runs = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    assert np.array_equal(found["blob"][17:19, 14:19], runs) and found["blob"].sum() == 6
    assert found["turned"][16:22, 25:27].all() and found["turned"].sum() == 12
    classes = [c["name"] for c in result.content["categories"]]
    assert classes == ["dog", "cat", "blob", "disc", "turned"]


def test_turned_shapes_of_label_studio(tmp_path, convert_and_check):
    """In percent of the image; a rectangle turns around its first corner, an ellipse in place."""
    save_image(tmp_path / "images/a.jpg", 100, 200)
    results = [
        {"x": 50, "y": 10, "width": 10, "height": 30, "rotation": 90, "rectanglelabels": ["box"]},
        {"x": 25, "y": 60, "radiusX": 5, "radiusY": 20, "rotation": 90, "ellipselabels": ["disc"]},
    ]
    size = {"original_width": 200, "original_height": 100}
    annotation = {"result": [{"id": i, "value": v, **size} for i, v in enumerate(results)]}
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [annotation]}
    (tmp_path / "a.json").write_text(json.dumps([task]))
    result = convert_and_check(label_studio(tmp_path / "a.json", tmp_path / "images"))
    masks = {name: mask for name, _, mask in result.segments("a.jpg")}
    assert masks["box"][10:30, 70:100].all() and masks["box"].sum() == 20 * 30
    rows, columns = np.nonzero(masks["disc"])
    assert (columns.min(), columns.max() + 1) == (30, 70) and (rows.min(), rows.max() + 1) == (
        50,
        70,
    )


def test_z_order_of_cvat_comes_first(make, convert_and_check):
    shapes = """<box label="cat" xtl="2" ytl="2" xbr="20" ybr="18" z_order="1"></box>
    <box label="dog" xtl="4" ytl="4" xbr="8" ybr="8" z_order="0"></box>"""
    assert convert_and_check(make("cvat", shapes)).split.num_dropped == 1
    source = make("cvat", shapes.replace('z_order="1"', 'z_order="0"'))
    assert convert_and_check(source, output="flat").split.num_dropped == 0


@pytest.mark.parametrize("kind", ["labelme", "cvat"])
def test_one_group_and_label_is_one_object(make, convert_and_check, kind):
    shapes = [("cat", 0, 3), ("cat", 10, 3), ("dog", 20, 3), ("cat", 26, None)]
    if kind == "labelme":
        content = [
            {"label": name, "group_id": group, "points": [[x, 0], [x + 4, 0], [x + 4, 4], [x, 4]]}
            for name, x, group in shapes
        ]
    else:
        content = "".join(
            f'<box label="{name}" xtl="{x}" ytl="0" xbr="{x + 4}" ybr="4" group_id="{group or 0}"/>'
            for name, x, group in shapes
        )
    found = convert_and_check(make(kind, content)).segments(IMAGE)
    assert sorted((n, mask.sum()) for n, _, mask in found) == [
        ("cat", 16),
        ("cat", 32),
        ("dog", 16),
    ]


# ---- masks


def test_class_masks_in_color(make, convert_and_check):
    """CamVid's form: sky, two cars of which one has parts that touch at a corner, and void."""
    mask = np.zeros((H, W, 3), np.uint8)
    mask[:4] = 128
    mask[6:8, 2:4] = mask[8:10, 4:6] = mask[5:7, 10:14] = 64, 0, 128
    source = make("class-masks", mask)
    # What is ignored stays void under a background.
    result = convert_and_check(source, things=["Car"], ignore=["Void"], background="rest")
    found = [name for name, *_ in result.segments(IMAGE)]
    assert sorted(found) == ["Car", "Car", "Sky"]
    classes = result.classes(IMAGE)
    assert (classes[:4] == "Sky").all() and (classes == "Car").sum() == 16
    assert (classes == "").sum() == H * W - 4 * W - 16
    kinds = {c["name"]: (c["isthing"], c["color"]) for c in result.content["categories"]}
    kinds.pop("rest")
    assert kinds == {
        "Animal": (0, [64, 128, 64]),
        "Sky": (0, [128] * 3),
        "Car": (1, [64, 0, 128]),
    }


def test_class_masks_of_numbers(make, convert_and_check):
    """8 and 16 bits, and palette images; 255 is void; 0 gets the smallest free id."""
    values = np.zeros((H, W), np.uint8)
    values[:, 8:], values[:2] = 4, 255
    palette = Image.fromarray(values)
    palette.putpalette(list(range(256)) * 3)
    listed = [{"id": 0, "name": "road"}, {"id": 4, "name": "car", "isthing": 1}]
    options = {"labels": json.dumps(listed), "name": "classes.json"}
    for number, mask in enumerate((values, palette, values.astype(np.uint16))):
        result = convert_and_check(make("class-masks", mask, **options), output=str(number))
        classes = result.classes(IMAGE)
        assert (classes[2:, :8] == "road").all() and (classes[2:, 8:] == "car").all()
        assert (classes[:2] == "").all()
        assert {c["name"]: c["id"] for c in result.content["categories"]} == {"road": 1, "car": 4}


def voc_image(values):
    """An image with a palette."""
    image = Image.fromarray(np.asarray(values, np.uint8))
    image.putpalette([value for value in range(256) for _ in "rgb"])
    return image


@pytest.mark.parametrize("as_rgb", [False, True])
def test_class_and_object_masks_of_voc(tmp_path, convert_and_check, as_rgb):
    """Two people that touch, a border, a car without an object; suffixes are found."""
    save_image(tmp_path / "images/a.jpg", H, W)
    classes, objects = np.zeros((2, H, W), np.uint8)
    classes[4:10, 4:16], classes[12:18, 4:8] = 15, 7
    objects[4:10, 4:10], objects[4:10, 10:16] = 1, 2
    classes[4, :], objects[4, :] = 255, 255
    classes, objects = voc_image(classes), voc_image(objects)
    save_mask(tmp_path / "classes/a.png", classes)
    save_mask(tmp_path / "objects/a_obj.png", objects.convert("RGB") if as_rgb else objects)
    save_mask(tmp_path / "objects/unrelated.png", objects)
    source = class_masks(
        tmp_path / "images", tmp_path / "classes", Path("voc"), objects=tmp_path / "objects"
    )
    result = convert_and_check(source)
    names = [name for name, *_ in result.segments(IMAGE.split("/")[1])]
    assert sorted(names) == ["background", "person", "person"]
    expected = np.full((H, W), "background", object)
    expected[4], expected[12:18, 4:8], expected[5:10, 4:16] = "", "", "person"
    assert np.array_equal(result.classes("a.jpg"), expected)
    # With object masks, classes of a plain list are things.
    (tmp_path / "names.txt").write_text("\n".join(c["name"] for c in source.classes))
    source.classes = class_masks(
        tmp_path / "images",
        tmp_path / "classes",
        tmp_path / "names.txt",
        objects=tmp_path / "objects",
    ).classes
    assert [c["isthing"] for c in source.classes] == [0] + [1] * 20


def test_void_value_of_instance_masks(make, convert_and_check):
    mask = np.zeros((H, W), np.uint8)
    mask[2:6, 2:5], mask[4:9, 8:12], mask[11] = 1, 4, 9
    source = make("instance-masks", mask, void_value=9)
    result = convert_and_check(source, background="ground")
    assert np.array_equal(result.classes(IMAGE) == "", mask == 9)
    assert len(result.segments(IMAGE)) == 3 and result.split.num_dropped == 0
    source = make("instance-masks", mask, category="crack")
    result = convert_and_check(source, stuff=["crack"], output="stuff")
    assert [n for n, *_ in result.segments(IMAGE)] == ["crack"]


def test_rotated_images_have_their_upright_size(tmp_path, convert_and_check):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "images/a.jpg", 10, 20, exif=exif)
    save_mask(tmp_path / "masks/a_mask.png", np.ones((20, 10), np.uint8))
    result = convert_and_check(instance_masks(tmp_path / "images", tmp_path / "masks"))
    assert (result.images["a.jpg"]["height"], result.images["a.jpg"]["width"]) == (20, 10)


# ---- what is wrong


def coco_rle(**rle):
    return [{"segmentation": {"size": [H, W], **rle}}]


def cvat_mask(runs, left=0):
    return f'<mask label="cat" rle="{runs}" left="{left}" top="0" width="2" height="2"/>'


MASK, COLOR = np.zeros((H, W), np.uint8), np.full((H, W, 3), (1, 2, 3), np.uint8)
# name -> (format, content, changes, message); every message names the file.
BAD = {
    "odd polygon": ("coco", [{"segmentation": [[1, 2, 3]]}], {}, "annotation 0: .* 3 numbers"),
    "far away": ("coco", [{"segmentation": [[1e9, 2, 3, 4, 5, 6]]}], {}, "far outside"),
    "short rle": ("coco", coco_rle(counts=[5]), {}, "add up to 5 pixels, not to 24 x 32"),
    "unknown class": ("coco", [{"category_id": 8}], {}, "'category_id' is 8, which"),
    "no images": ("coco", [], {"images": None}, "no list 'images'"),
    "image twice": ("coco", [], {"images": coco_image()["images"] * 2}, "listed twice"),
    "outside": ("coco", [], coco_image(file_name="../x.jpg"), "5: .*leads out of"),
    "other size": ("coco", [], coco_image(height=W, width=H), "sub/a.jpg.* is 24 wide .*EXIF"),
    "no mask": ("labelme", [{"points": TWO_POINTS, "shape_type": "mask"}], {}, "not a base64 PNG"),
    "absolute": ("labelme", [], {"imagePath": "/etc/passwd"}, "leads out of"),
    "no xml": ("cvat", "<<", {}, "not well-formed"),
    "no number": ("cvat", '<box label="cat" xtl="a"/>', {}, "box 0: the corners must be numbers"),
    "no cvat label": ("cvat", '<box xtl="1" ytl="0" xbr="4" ybr="4"/>', {}, "no 'label'"),
    "runs": ("cvat", cvat_mask("1"), {}, "do not add up to 2 x 2"),
    "outside the image": ("cvat", cvat_mask("1,3", left=31), {}, "not inside the image"),
    "entities": ("cvat", "&b;", {"head": '<!DOCTYPE a [<!ENTITY b "&c;&c;">]>'}, "has a DOCTYPE"),
    "unknown color": ("class-masks", COLOR, {}, r"a_L.png' has the color \(1, 2, 3\)"),
    "unknown value": ("class-masks", MASK + 9, {}, "a_L.png' has the value 9, .*--void-value"),
    "mask size": ("class-masks", MASK.T, {}, "a_L.png': it is 24 wide and 32 high.*EXIF"),
    "broken mask": ("class-masks", b"\x89PNG no more", {}, "a_L.png' cannot be read"),
    "color twice": ("class-masks", MASK, {"labels": "1 2 3 a\n1 2 3 b\n"}, "or each has a"),
    "class twice": ("class-masks", MASK, {"labels": "a\nb\na\n"}, "2 classes with the name 'a'"),
    "color mask": ("instance-masks", np.zeros((H, W, 3), np.uint8), {}, "mode RGB"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(make, convert_and_check, tmp_path, case):
    name, content, changes, message = BAD[case]
    if name in ("coco", "labelme"):
        changes = {"changed": changes} if changes else {}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        convert_and_check(make(name, content, **changes))
    files = ("instances.json", "a.json", "annotations.xml", "labels.txt", "a_L", "a_mask", "a.jpg")
    assert any(file in str(caught.value) for file in files) or "missing" in message
    assert not list(tmp_path.glob("out/*"))


def test_video_export_of_cvat_is_refused(tmp_path):
    (tmp_path / "a.xml").write_text("<annotations><track/></annotations>")
    with pytest.raises(ValueError, match="a.xml' is not an XML file of 'CVAT for images 1.1'"):
        cvat(tmp_path / "a.xml", tmp_path)
