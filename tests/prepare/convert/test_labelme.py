import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from detr_panoptic_d2.prepare.convert.labelme import labelme

H, W = 20, 30
TRIANGLE = [[2.5, 3.0], [12.0, 4.5], [6.0, 15.5]]


@pytest.fixture
def make(tmp_path, save_image):
    """Return ``make(shapes, ...)``: write a json beside its image and open the folder."""

    def write(shapes, folder="labels", image="a.jpg", options=None, extra=None, **content):
        root = tmp_path / folder
        if not (root / "a.jpg").exists():
            save_image(root / "a.jpg", H, W)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [{"label": "cat", "group_id": None, "flags": {}, **s} for s in shapes],
            "imagePath": image,
            "imageData": None,
            "imageHeight": H,
            "imageWidth": W,
            **content,
            **(extra or {}),
        }
        (root / "a.json").write_text(json.dumps(content))
        return labelme(root, **(options or {}))

    return write


def polygon_mask(points):
    flat = [float(v) for p in points for v in p]
    return mask_util.decode(mask_util.frPyObjects([flat], H, W))[:, :, 0].astype(bool)


def test_polygon_is_drawn_as_pycocotools_does(make, convert_and_check):
    for kind in ("polygon", None):
        source = make([{"points": TRIANGLE, "shape_type": kind}])
        result = convert_and_check(source, split_name=str(kind))
        ((name, _, mask),) = result.segments("a.jpg")
        assert name == "cat" and np.array_equal(mask, polygon_mask(TRIANGLE))


def test_rectangle_circle_and_mask(make, convert_and_check):
    small = np.zeros((4, 5), bool)
    small[1:, 2:] = True
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="PNG")
    shapes = [
        {"label": "box", "points": [[9, 8], [3, 2]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[20, 10], [24, 10]], "shape_type": "circle"},
        {
            "label": "blob",
            "points": [[1, 14], [5, 17]],
            "shape_type": "mask",
            "mask": base64.b64encode(buffer.getvalue()).decode(),
        },
    ]
    result = convert_and_check(make(shapes))
    found = {name: mask for name, _, mask in result.segments("a.jpg")}
    assert found["box"][2:8, 3:9].all() and found["box"].sum() == 36
    y, x = np.mgrid[:H, :W] + 0.5
    disc = np.hypot(x - 20, y - 10)
    assert found["disc"][disc < 3].all() and not found["disc"][disc > 5].any()
    assert np.array_equal(found["blob"][14:18, 1:6], small) and found["blob"].sum() == small.sum()
    assert [c["name"] for c in result.content["categories"]] == ["blob", "box", "disc"]


def test_group_is_one_object(make, convert_and_check, tmp_path):
    parts = [[[0, 0], [4, 0], [4, 4], [0, 4]], [[10, 0], [14, 0], [14, 4], [10, 4]]]
    apart = [{"points": p} for p in parts]
    assert len(convert_and_check(make(apart)).segments("a.jpg")) == 2
    grouped = [{"points": p, "group_id": 0} for p in parts]
    result = convert_and_check(make(grouped, folder="grouped"), output=tmp_path / "b")
    ((_, _, mask),) = result.segments("a.jpg")
    assert mask.sum() == 32
    others = [{"points": parts[0], "group_id": 0}, {"points": parts[1], "group_id": 0}]
    others[1]["label"] = "dog"
    result = convert_and_check(make(others, folder="others"), output=tmp_path / "c")
    assert len(result.segments("a.jpg")) == 2


def test_images_in_another_folder(make, convert_and_check, save_image, tmp_path):
    save_image(tmp_path / "all/photos/b.jpg", H, W)
    source = make(
        [{"points": TRIANGLE}],
        folder="all/labels",
        image="..\\photos\\b.jpg",
        options={"images": tmp_path / "all"},
    )
    assert list(convert_and_check(source).images) == ["photos/b.jpg"]


@pytest.mark.parametrize("name", ["/etc/passwd", "..\\..\\b.jpg", ""])
def test_no_path_leaves_the_folder(make, name):
    with pytest.raises(ValueError, match="a.json'.*(leads out of|is no file name)"):
        make([{"points": TRIANGLE}], image=name)


def test_ignored_label_is_void_and_lines_are_left_out(make, convert_and_check):
    shapes = [
        {"points": TRIANGLE, "label": "blur"},
        {"points": [[1, 1], [2, 2]], "shape_type": "line"},
        {"points": [[20, 2], [28, 2], [28, 8], [20, 8]]},
    ]
    source = make(shapes)
    assert len(source.left_out["shapes are a line, which is not drawn"]) == 1
    classes = convert_and_check(source, background="rest", ignore=("blur",)).classes("a.jpg")
    assert np.array_equal(classes == "", polygon_mask(TRIANGLE))
    assert (classes == "cat").sum() == 48


BROKEN = {
    "no shapes": ({"shapes": None}, "no json of LabelMe"),
    "no label": ({"shapes": [{"points": TRIANGLE}]}, "no json of LabelMe"),
    "points as text": ({"shapes": [{"label": "a", "points": "1 2"}]}, r"shape 0 .'a'.*\[x, y\]"),
    "one point": (
        {"shapes": [{"label": "a", "points": [[1, 2]], "shape_type": "rectangle"}]},
        "two points, this one 1",
    ),
    "mask without png": (
        {"shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask"}]},
        "under 'mask'",
    ),
    "no png": (
        {
            "shapes": [
                {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "bm8="}
            ]
        },
        "no base64 PNG",
    ),
    "other size": ({"imageHeight": 99}, "json of image 'a.jpg' is 30 wide and 99 high"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_jsons_are_named(make, convert_and_check, case):
    content, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        convert_and_check(make([{"points": TRIANGLE}], extra=content))


def test_missing_image_with_embedded_copy(make):
    with pytest.raises(FileNotFoundError, match="gone.jpg.*holds a copy of it, which is not read"):
        make([{"points": TRIANGLE}], image="gone.jpg", imageData="abcd")
