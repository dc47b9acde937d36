import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.data import (
    dataset_ids,
    register_from_config,
    register_panoptic,
    thing_class_ids,
)
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def test_metadata_and_dicts(small_set):
    register_panoptic("small", **small_set.paths)
    metadata = MetadataCatalog.get("small")
    assert dataset_ids(metadata) == [50, 4, 9]
    assert thing_class_ids(metadata) == [1]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 1}
    assert metadata.thing_classes == metadata.stuff_classes == ["road", "car", "tree"]
    assert metadata.thing_colors[1] == [0, 0, 142]
    assert len({tuple(color) for color in metadata.stuff_colors}) == 3
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert not hasattr(metadata, "json_file")

    first, second = DatasetCatalog.get("small")
    assert first["file_name"] == str(small_set.image_root / "sub/a.png")
    assert second["file_name"].endswith("b.tif")
    assert (first["image_id"], first["height"], first["width"]) == (10, 8, 12)
    road, car = first["segments_info"]
    assert (road["category_id"], road["isthing"]) == (0, False)
    assert (car["category_id"], car["isthing"]) == (1, True)
    (small_set.image_root / "sub/a.png").unlink()
    with pytest.raises(FileNotFoundError, match="a.png"):
        DatasetCatalog.get("small")


def test_same_again_is_nothing_and_other_is_an_error(small_set):
    register_panoptic("small", **small_set.paths)
    register_panoptic("small", **small_set.paths)
    other = {**small_set.paths, "image_root": str(small_set.panoptic_root)}
    with pytest.raises(ValueError, match="'small' is already registered"):
        register_panoptic("small", **other)
    with pytest.raises(ValueError, match="coco_2017_val_panoptic"):
        register_panoptic("coco_2017_val_panoptic", **small_set.paths)


def test_numbers_written_as_text_or_floats_are_read(small_set):
    """The meaning is clear, so the dicts are those of integers."""
    expected = load_panoptic_json(**small_set.paths)
    content = small_set.content
    for write in (str, float):
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            annotation["image_id"] = write(annotation["image_id"])
            image["height"] = write(image["height"])
            for segment in annotation["segments_info"]:
                for key in ("id", "category_id", "iscrowd"):
                    segment[key] = write(segment[key])
        for category in content["categories"]:
            category["id"], category["isthing"] = write(category["id"]), bool(category["isthing"])
        small_set.save()
        assert load_panoptic_json(**small_set.paths) == expected
    content["images"][0]["id"] = "10"
    small_set.save()
    assert load_panoptic_json(**small_set.paths)[0]["image_id"] == "10"


def test_string_image_ids_sizes_missing_and_image_without_annotation(small_set):
    content = small_set.content
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "frame_1"
    del content["images"][0]["height"], content["images"][0]["width"]
    del content["annotations"][1]
    small_set.save()
    register_panoptic("strings", **small_set.paths)
    (only,) = DatasetCatalog.get("strings")
    assert only["image_id"] == "frame_1" and "height" not in only


CATEGORY, SEGMENT = ("categories", 1), ("annotations", 0, "segments_info", 0)
# Place in the json, value (None: missing), what the error says. Also tests/prepare/test_check.py.
BAD_CONTENT = [
    ("categories", [], "'categories'"),
    ("images", None, "'images'"),
    ("annotations", [], "no annotations"),
    ((*CATEGORY, "isthing"), None, '"isthing": 1'),
    ((*CATEGORY, "isthing"), 2, "'isthing' is 2, but must be 0 or 1"),
    ((*CATEGORY, "name"), None, "'name'"),
    ((*CATEGORY, "id"), "4a", "entry 1, id '4a': .*integer"),
    ((*CATEGORY, "id"), 50, "id 50: another entry"),
    ((*CATEGORY, "color"), [0, 0, 256], "0 to 255"),
    (("images", 1, "id"), 10, "images: .*id 10: another entry"),
    (("images", 0, "id"), [1], "integer or text"),
    (("images", 0, "height"), 8.5, "'height' is 8.5, but must be a number of pixels"),
    (("images", 0, "height"), 0, "'height' is 0"),
    (("images", 0, "file_name"), None, "no 'file_name'"),
    (("images", 0, "file_name"), "/etc/passwd", "leads out"),
    (("images", 0, "file_name"), "sub/../../x.png", "leads out"),
    (("annotations", 0, "file_name"), "C:\\x.png", "leads out"),
    (("annotations", 1, "image_id"), 99, "image_id 99.*no such image"),
    (("annotations", 1, "image_id"), 10, "image_id 10: another entry"),
    (("annotations", 0, "segments_info"), None, "segments_info"),
    ((*SEGMENT, "category_id"), 77, "sub/a.png: entry 0, id 70000: category_id is 77"),
    ((*SEGMENT, "iscrowd"), "yes", "'iscrowd' is 'yes', but must be 0 or 1"),
    ((*SEGMENT, "id"), "300", "id 300: another entry"),
    ((*SEGMENT, "id"), 0, "id 0: .*within 1"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD_CONTENT)
def test_bad_content_is_named(small_set, place, value, message):
    *parents, key = [place] if isinstance(place, str) else place
    owner = small_set.content
    for parent in parents:
        owner = owner[parent]
    owner[key] = value
    if value is None:
        del owner[key]
    small_set.save()
    with pytest.raises(ValueError, match=message) as error:
        register_panoptic("bad", **small_set.paths)
    assert "panoptic.json" in str(error.value)
    assert "bad" not in DatasetCatalog.list() and "bad" not in MetadataCatalog.list()


def test_from_config(small_set, tmp_path):
    good = {"name": "from_yaml", **small_set.paths}
    (tmp_path / "c.yaml").write_text(json.dumps({"DATASETS": {"REGISTER": [good]}}))
    (tmp_path / "dumped.yaml").write_text(merged_cfg(str(tmp_path / "c.yaml")).dump())
    cfg = merged_cfg(str(tmp_path / "dumped.yaml"))
    register_from_config(cfg)
    register_from_config(cfg)
    assert len(DatasetCatalog.get("from_yaml")) == 2
    for item in ({**good, "image_root": None}, {**good, "images": "x"}, {"name": "n"}, "n"):
        cfg.DATASETS.REGISTER = [item]
        with pytest.raises(ValueError, match=r"REGISTER\[0\] is .*must be a mapping with"):
            register_from_config(cfg)


def test_coco_sample_equals_detectron2(sample_data):
    root = sample_data("coco_panoptic_sample")
    image_root, panoptic_root = str(root / "val2017"), str(root / "panoptic_val2017")
    panoptic_json = str(root / "panoptic_val2017.json")
    register_panoptic("coco_sample", image_root, panoptic_root, panoptic_json)
    ours, coco = MetadataCatalog.get("coco_sample"), MetadataCatalog.get("coco_2017_val_panoptic")
    for key in ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"):
        assert ours.get(key) == coco.get(key)
    assert ours.thing_classes == coco.thing_classes
    expected = load_coco_panoptic_json(panoptic_json, image_root, panoptic_root, coco.as_dict())
    for mine, theirs in zip(DatasetCatalog.get("coco_sample"), expected, strict=True):
        assert {key: mine[key] for key in theirs} == theirs
