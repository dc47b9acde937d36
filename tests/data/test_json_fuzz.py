"""Whatever stands in a field of a json, there are usable dicts or an error that names the json."""

import copy
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.data.panoptic_json import load_panoptic_json
from detr_panoptic_d2.errors import UserError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
paths = st.sampled_from(["../a.png", "/etc/passwd", "C:\\a", "a\0.png", "sub/../../b.tif"])
FIELDS = [(key,) for key in ("categories", "images", "annotations")]
FIELDS += [("categories", 1, key) for key in ("id", "name", "isthing", "color")]
FIELDS += [("images", 1, key) for key in ("id", "file_name", "height", "width")]
FIELDS += [("annotations", 1, key) for key in ("image_id", "file_name", "segments_info")]
FIELDS += [
    ("annotations", 1, "segments_info", 0, key) for key in ("id", "category_id", "iscrowd", "area")
]


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(field=st.sampled_from(FIELDS), value=json_values | paths, missing=st.booleans())
def test_any_field_is_right_or_named(small_set, field, value, missing):
    good = copy.deepcopy(small_set.content)
    owner = small_set.content
    for key in field[:-1]:
        owner = owner[key]
    if missing:
        owner.pop(field[-1], None)
    else:
        owner[field[-1]] = value
    small_set.save()
    mapper = PanopticDatasetMapper(
        augmentations=[], image_format="RGB", with_targets=True, with_masks=True
    )
    try:
        items = load_panoptic_json(**small_set.paths)
        for item in items:
            assert Path(item["file_name"]).resolve().is_relative_to(small_set.image_root)
            png = Path(item["pan_seg_file_name"]).resolve()
            assert png.is_relative_to(small_set.panoptic_root)
            assert len(mapper(item)["instances"]) <= 2
    except (UserError, OSError) as error:
        text = str(error)
        assert str(small_set.panoptic_json.parent) in text, text
        assert len(text.splitlines()) == 1, text
    finally:
        small_set.content = good
