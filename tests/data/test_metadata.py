import pytest
from detectron2.data import Metadata, MetadataCatalog

from detr_panoptic_d2.data import dataset_ids, thing_class_ids
from detr_panoptic_d2.data.metadata import class_names


def test_sets_of_detectron2():
    panoptic = MetadataCatalog.get("coco_2017_val_panoptic")
    ids, names = dataset_ids(panoptic), class_names(panoptic)
    assert (len(ids), ids[0], ids[79], ids[80], ids[132]) == (133, 1, 90, 92, 200)
    assert thing_class_ids(panoptic) == list(range(80))
    assert (names[0], names[79], names[132]) == ("person", "toothbrush", "rug-merged")
    # An instance set is all things.
    instances = MetadataCatalog.get("coco_2017_train")
    assert thing_class_ids(instances) == list(range(80)) and dataset_ids(instances)[11] == 13
    assert class_names(instances)[79] == "toothbrush"


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
