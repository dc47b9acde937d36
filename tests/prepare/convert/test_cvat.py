import numpy as np
import pytest
from pycocotools import mask as mask_util

from detr_panoptic_d2.prepare.convert.cvat import cvat

H, W = 20, 30
META = """<meta><task><labels>
<label><name>dog</name><color>#ff0080</color></label><label><name>cat</name></label>
</labels></task></meta>"""


@pytest.fixture
def make(tmp_path, save_image):
    """Return ``make(shapes, ...)``: write an XML of one image and open it as a source."""

    def write(shapes, name="sub/a.jpg", head="", meta=META, **options):
        save_image(tmp_path / "images/sub/a.jpg", H, W)
        text = (
            f'<?xml version="1.0" encoding="utf-8"?>{head}<annotations><version>1.1</version>'
            f'{meta}<image id="0" name="{name}" width="{W}" height="{H}">{shapes}</image>'
            "</annotations>"
        )
        (tmp_path / "annotations.xml").write_text(text)
        return cvat(tmp_path / "annotations.xml", tmp_path / "images", **options)

    return write


def test_every_shape(make, convert_and_check):
    shapes = """
    <polygon label="cat" points="2.50,3.00;12.00,4.50;6.00,15.50" z_order="0"></polygon>
    <box label="dog" xtl="15.0" ytl="2.0" xbr="20.0" ybr="6.0" z_order="0"></box>
    <ellipse label="dog" cx="24" cy="10" rx="4" ry="2" z_order="0"></ellipse>
    <mask label="cat" rle="2, 3, 2, 3" left="14" top="17" width="5" height="2" z_order="0"></mask>
    <polyline label="cat" points="1,1;2,2"></polyline><tag label="dog" source="manual"></tag>"""
    source = make(shapes)
    (where,) = source.left_out["shapes are a polyline, which is not drawn"]
    assert where.endswith("annotations.xml': image 0, polyline 4")
    result = convert_and_check(source)
    polygon, box, ellipse, mask = (m for *_, m in result.segments("sub/a.jpg"))
    flat = [2.5, 3, 12, 4.5, 6, 15.5]
    expected = mask_util.decode(mask_util.frPyObjects([flat], H, W))[:, :, 0]
    assert np.array_equal(polygon, expected.astype(bool))
    assert box[2:6, 15:20].all() and box.sum() == 20
    y, x = np.mgrid[:H, :W] + 0.5
    inside = ((x - 24) / 4) ** 2 + ((y - 10) / 2) ** 2
    assert ellipse[inside < 0.5].all() and not ellipse[inside > 1.8].any()
    # Runs go along the rows of the box, from a run of zeros on.
    runs = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]], bool)
    assert np.array_equal(mask[17:19, 14:19], runs) and mask.sum() == 6
    assert [c["name"] for c in result.content["categories"]] == ["dog", "cat"]
    assert result.content["categories"][0]["color"] == [255, 0, 128]


def test_rotated_box(make, convert_and_check):
    result = convert_and_check(
        make('<box label="cat" xtl="10" ytl="8" xbr="20" ybr="12" rotation="90"></box>')
    )
    ((_, _, mask),) = result.segments("sub/a.jpg")
    assert mask[5:15, 13:17].all() and mask.sum() == 40


def test_z_order_comes_before_the_rule(make, convert_and_check):
    shapes = """<box label="cat" xtl="2" ytl="2" xbr="20" ybr="18" z_order="1"></box>
    <box label="dog" xtl="4" ytl="4" xbr="8" ybr="8" z_order="0"></box>"""
    assert convert_and_check(make(shapes)).split.hidden == 1
    source = make(shapes.replace('z_order="1"', 'z_order="0"'))
    assert convert_and_check(source, split_name="flat").split.hidden == 0


def test_group_and_ignored_label(make, convert_and_check):
    shapes = """<box label="cat" xtl="0" ytl="0" xbr="4" ybr="4" group_id="3"></box>
    <box label="cat" xtl="10" ytl="0" xbr="14" ybr="4" group_id="3"></box>
    <box label="dog" xtl="20" ytl="0" xbr="24" ybr="4"></box>"""
    result = convert_and_check(make(shapes), background="rest", ignore=("dog",))
    assert [n for n, *_ in result.segments("sub/a.jpg")] == ["cat", "rest"]
    assert (result.classes("sub/a.jpg") == "").sum() == 16


def test_labels_in_use_when_the_task_lists_none(make):
    shapes = '<box label="zebra" xtl="0" ytl="0" xbr="4" ybr="4"></box>'
    assert [c.name for c in make(shapes, meta="").classes] == ["zebra"]


ENTITIES = {
    "billion laughs": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>',
    "external entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    "external dtd": '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
}


@pytest.mark.parametrize("case", ENTITIES)
def test_entities_are_refused(make, case):
    with pytest.raises(ValueError, match="annotations.xml' has a document type declaration"):
        make("&b;", head=ENTITIES[case])


@pytest.mark.parametrize("name", ["../a.jpg", "C:\\a.jpg"])
def test_no_path_leaves_the_folder(make, name):
    with pytest.raises(ValueError, match="annotations.xml': image 0.*leads out of"):
        make("", name=name)


BROKEN = {
    "no xml": ("<<", "not an XML file"),
    "no number": ('<box label="cat" xtl="a" ytl="0" xbr="4" ybr="4"/>', "'xtl' is 'a'"),
    "no label": ('<box xtl="1" ytl="0" xbr="4" ybr="4"/>', "box 0 has no 'label'"),
    "missing number": ('<ellipse label="cat" cx="1" cy="1" rx="2"/>', "'ry' is None"),
    "polygon": ('<polygon label="cat" points="1,2;3"/>', "no list of x, y pairs"),
    "runs": ('<mask label="cat" rle="1" left="0" top="0" width="2" height="2"/>', "add up"),
    "text as runs": (
        '<mask label="cat" rle="x" left="0" top="0" width="1" height="1"/>',
        "numbers with commas",
    ),
    "outside": (
        '<mask label="cat" rle="1,3" left="29" top="0" width="2" height="2"/>',
        "not within the image",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(make, convert_and_check, case):
    shapes, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        convert_and_check(make(shapes))


def test_video_export_is_refused(make, tmp_path):
    make("")
    (tmp_path / "annotations.xml").write_text("<annotations><track/></annotations>")
    with pytest.raises(ValueError, match="CVAT for images 1.1"):
        cvat(tmp_path / "annotations.xml", tmp_path / "images")
