"""Read the classes of a dataset from Detectron2's metadata, in one id space.

The functions expect the "standard" panoptic form: ``thing_dataset_id_to_contiguous_id`` and
``stuff_dataset_id_to_contiguous_id`` map the ids of the annotation file to contiguous ids that
together are ``0 .. C - 1``. Instance datasets have things only, without the stuff map.
"""

from typing import Any

from detectron2.data import DatasetCatalog, Metadata

from ..errors import UserError


def dataset_ids(metadata: Metadata) -> list[int]:
    """Return the id in the annotation file of each contiguous class, in order.

    A ``UserError`` says that there are no classes, or that they have no common id space.
    """
    things, stuff = _id_maps(metadata)
    contiguous_ids = things | stuff
    if sorted(contiguous_ids.values()) != list(range(len(contiguous_ids))):
        raise UserError(
            f"Dataset '{metadata.get('name')}': the contiguous ids of its classes are not 0.."
            f"{len(contiguous_ids) - 1}. Things and stuff need one id space, so use the standard "
            "form ('coco_2017_val_panoptic') and not the '_separated' one."
        )
    return sorted(contiguous_ids, key=contiguous_ids.__getitem__)


def thing_class_ids(metadata: Metadata) -> list[int]:
    """Return the contiguous ids of the thing classes, ascending."""
    dataset_ids(metadata)
    return sorted(_id_maps(metadata)[0].values())


def class_names(metadata: Metadata) -> list[str] | None:
    """Return the name of each contiguous class, in order. None: the metadata has no names."""
    count = len(dataset_ids(metadata))
    lists = (metadata.get("stuff_classes"), metadata.get("thing_classes"))
    return next((list(names) for names in lists if names and len(names) == count), None)


def categories_of(metadata: Metadata) -> list[dict[str, Any]]:
    """Return the ``categories`` of a COCO panoptic json, in order of the contiguous ids.

    Each has ``id``, ``name``, ``isthing`` and, if the metadata has one per class, ``color``.
    """
    ids, things = dataset_ids(metadata), set(thing_class_ids(metadata))
    names = class_names(metadata) or [str(i) for i in ids]
    categories: list[dict[str, Any]] = [
        {"id": dataset_id, "name": name, "isthing": int(c in things)}
        for c, (dataset_id, name) in enumerate(zip(ids, names, strict=True))
    ]
    for colors in (metadata.get("stuff_colors"), metadata.get("thing_colors")):
        if colors and len(colors) == len(ids):
            for category, color in zip(categories, colors, strict=True):
                category["color"] = [int(channel) for channel in color]
    return categories


def _id_maps(metadata: Metadata) -> tuple[dict[int, int], dict[int, int]]:
    """Return the (thing, stuff) maps from dataset id to contiguous id."""
    maps = "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"
    name = metadata.get("name")
    if not any(map(metadata.get, ("thing_classes", *maps))) and name in DatasetCatalog.list():
        # The loader may define the classes: register_coco_instances with empty metadata.
        DatasetCatalog.get(name)
    things, stuff = map(metadata.get, maps)
    if things is None and stuff is None:
        # Detectron2's convention for a dataset that was registered with class names only.
        things = {i: i for i in range(len(metadata.get("thing_classes", ())))}
    if not things and not stuff:
        raise UserError(
            f"Dataset '{name}' has no classes in its metadata. Is its name right, "
            "and was it registered (register_panoptic, or DATASETS.REGISTER in the config)?"
        )
    return things or {}, stuff or {}
