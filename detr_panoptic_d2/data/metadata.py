"""What Detectron2's metadata says about the classes of a data set, in one id space.

The "standard" panoptic form is expected: ``thing_dataset_id_to_contiguous_id`` and
``stuff_dataset_id_to_contiguous_id`` map the ids of the annotation file to contiguous ids that
together are ``0 .. C - 1``. Instance data sets, which know only things, have the same form with
the stuff map missing. A set whose classes only its loader knows (``register_coco_instances`` with
empty metadata, Detectron2's documented way) is loaded before it is asked.
"""

from detectron2.data import DatasetCatalog, Metadata

from ..errors import UserError


def num_classes(metadata: Metadata) -> int:
    """Return C, the number of classes, things and stuff together.

    Args:
        metadata: the data set's entry in ``MetadataCatalog``.

    Raises:
        UserError: see :func:`dataset_ids`.
    """
    return len(dataset_ids(metadata))


def thing_class_ids(metadata: Metadata) -> list[int]:
    """Return the contiguous ids of the thing classes, ascending.

    Args:
        metadata: the data set's entry in ``MetadataCatalog``.

    Raises:
        UserError: see :func:`dataset_ids`.
    """
    dataset_ids(metadata)
    return sorted(_id_maps(metadata)[0].values())


def dataset_ids(metadata: Metadata) -> list[int]:
    """Return the id in the annotation file of each contiguous class, in order of contiguous ids.

    Args:
        metadata: the data set's entry in ``MetadataCatalog``.

    Raises:
        UserError: no classes are known, or things and stuff share contiguous ids (Detectron2's
            "separated" sets), or the contiguous ids have a gap.
    """
    things, stuff = _id_maps(metadata)
    name = metadata.get("name")
    by_contiguous: dict[int, int] = {}
    for dataset_id, contiguous_id in (*things.items(), *stuff.items()):
        other = by_contiguous.setdefault(contiguous_id, dataset_id)
        if other != dataset_id:
            raise UserError(
                f"Data set '{name}': category ids {other} and {dataset_id} share the contiguous id "
                f"{contiguous_id}. Things and stuff need one id space, so use the standard form "
                "(such as 'coco_2017_val_panoptic') and not the '_separated' one."
            )
    if sorted(by_contiguous) != list(range(len(by_contiguous))):
        raise UserError(
            f"Data set '{name}': its contiguous ids {sorted(by_contiguous)} are not "
            f"0..{len(by_contiguous) - 1}. Correct its registration."
        )
    return [by_contiguous[i] for i in range(len(by_contiguous))]


def class_names(metadata: Metadata) -> list[str] | None:
    """Return the name of each contiguous class, in order; None where the metadata has none.

    Args:
        metadata: the data set's entry in ``MetadataCatalog``.

    Raises:
        UserError: see :func:`dataset_ids`.
    """
    count = num_classes(metadata)
    for key in ("stuff_classes", "thing_classes"):
        names = metadata.get(key)
        if names is not None and len(names) == count:
            return list(names)
    return None


def _id_maps(metadata: Metadata) -> tuple[dict[int, int], dict[int, int]]:
    """Return the (thing, stuff) maps from dataset id to contiguous id."""
    keys = (
        "thing_classes",
        "thing_dataset_id_to_contiguous_id",
        "stuff_dataset_id_to_contiguous_id",
    )
    name = metadata.get("name")
    if not any(metadata.get(key) for key in keys) and name in DatasetCatalog.list():
        DatasetCatalog.get(name)
    things = metadata.get("thing_dataset_id_to_contiguous_id")
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id")
    if things is None and stuff is None:
        # Detectron2's convention for a set registered by its class names alone.
        things = {i: i for i in range(len(metadata.get("thing_classes", ())))}
    if not things and not stuff:
        raise UserError(
            f"Data set '{name}' has no classes in its metadata. Is its name right, "
            "and was it registered (register_panoptic, or DATASETS.REGISTER in the config)?"
        )
    return things or {}, stuff or {}
