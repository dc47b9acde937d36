import pytest
from detectron2.data import Metadata, MetadataCatalog

from detr_panoptic_d2.data import dataset_ids, thing_class_ids
from detr_panoptic_d2.data.metadata import class_names


@pytest.mark.parametrize(
    ("metadata", "ids", "things"),
    [
        (
            {
                "thing_dataset_id_to_contiguous_id": {7: 1, 2: 3},
                "stuff_dataset_id_to_contiguous_id": {9: 0, 1: 2},
            },
            [9, 7, 1, 2],
            [1, 3],
        ),
        ({"stuff_dataset_id_to_contiguous_id": {5: 0}, "stuff_classes": ["a", "b"]}, [5], []),
        ({"thing_classes": ["a", "b"]}, [0, 1], [0, 1]),
    ],
    ids=["interleaved", "stuff only, names too many", "names only"],
)
def test_forms(metadata, ids, things):
    metadata = Metadata(name="form", **metadata)
    assert dataset_ids(metadata) == ids and thing_class_ids(metadata) == things
    assert class_names(metadata) == metadata.get("thing_classes")


def test_what_has_no_single_id_space_is_refused():
    with pytest.raises(ValueError, match="coco_2017_val_panoptic_separated.*one id space"):
        thing_class_ids(MetadataCatalog.get("coco_2017_val_panoptic_separated"))
    with pytest.raises(ValueError, match=r"'gap'.* are not 0\.\.1"):
        dataset_ids(Metadata(name="gap", thing_dataset_id_to_contiguous_id={1: 0, 2: 2}))
    with pytest.raises(ValueError, match="'typo' has no classes"):
        dataset_ids(Metadata(name="typo"))
