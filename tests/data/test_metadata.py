import pytest
from detectron2.data import Metadata, MetadataCatalog

from detr_panoptic_d2.data import dataset_ids, thing_class_ids
from detr_panoptic_d2.data.metadata import class_names


def test_coco_panoptic_standard():
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    assert len(dataset_ids(metadata)) == 133
    assert thing_class_ids(metadata) == list(range(80))
    ids = dataset_ids(metadata)
    assert ids[0] == 1 and ids[79] == 90 and ids[80] == 92 and ids[132] == 200


def test_instance_set_is_all_things():
    metadata = MetadataCatalog.get("coco_2017_train")
    assert len(dataset_ids(metadata)) == 80
    assert thing_class_ids(metadata) == list(range(80))
    assert dataset_ids(metadata)[11] == 13


def test_interleaved_things_and_stuff():
    metadata = Metadata(
        name="mixed",
        thing_dataset_id_to_contiguous_id={7: 1, 2: 3},
        stuff_dataset_id_to_contiguous_id={9: 0, 1: 2},
    )
    assert dataset_ids(metadata) == [9, 7, 1, 2]
    assert thing_class_ids(metadata) == [1, 3]


def test_stuff_only_and_names_only():
    stuff = Metadata(name="stuff", stuff_dataset_id_to_contiguous_id={5: 0})
    assert dataset_ids(stuff) == [5] and thing_class_ids(stuff) == []
    named = Metadata(name="named", thing_classes=["a", "b"])
    assert dataset_ids(named) == [0, 1] and thing_class_ids(named) == [0, 1]


def test_separated_set_is_refused():
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    with pytest.raises(ValueError, match="coco_2017_val_panoptic_separated.*one id space"):
        dataset_ids(metadata)
    with pytest.raises(ValueError, match="one id space"):
        thing_class_ids(metadata)


def test_gap_and_unknown_set():
    with pytest.raises(ValueError, match=r"\[0, 2\]"):
        dataset_ids(Metadata(name="gap", thing_dataset_id_to_contiguous_id={1: 0, 2: 2}))
    with pytest.raises(ValueError, match="'typo' has no classes"):
        dataset_ids(Metadata(name="typo"))


def test_class_names():
    names = class_names(MetadataCatalog.get("coco_2017_val_panoptic"))
    assert (names[0], names[79], names[132]) == ("person", "toothbrush", "rug-merged")
    assert class_names(MetadataCatalog.get("coco_2017_train"))[79] == "toothbrush"
    ids = {5: 0, 6: 1}
    few = Metadata(name="few", thing_dataset_id_to_contiguous_id=ids, thing_classes=["one"])
    assert class_names(few) is None
