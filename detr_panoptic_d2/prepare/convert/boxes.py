"""Write data sets with boxes alone as COCO instances jsons, to train without masks."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ...errors import UserError
from ...files import atomic_file
from .categories import ClassOptions, choose_categories
from .source import Source, check_size, log_left_out, upright_size
from .values import errors_in
from .writer import Converted, check_images, check_new, compare_with_other_splits, hidden_folder


def convert_boxes(
    splits: Mapping[str, Source], output: Path, classes: ClassOptions
) -> list[Converted]:
    """Write ``instances_<split>.json`` of each split.

    Args:
        splits: name and source of each.
        output: folder; created if it does not exist.
        classes: options of the user about classes.

    Raises:
        FileExistsError: ``output`` has files of these names.
        FileNotFoundError: an image is missing.
        UserError: an annotation has a segmentation, or there is no box.
    """
    for name, source in splits.items():
        check_images(name, source)
        if source.num_shapes:
            raise UserError(
                f"{source.num_shapes} annotations of the split '{name}' have a segmentation. "
                "Convert without --boxes-only. Boxes are then trained with MODEL.MASK_ON False."
            )
    if not any(item.boxes for source in splits.values() for item in source.items):
        raise UserError("--boxes-only: the data has no boxes.")
    categories = choose_categories([c for s in splits.values() for c in s.classes], classes)
    categories = [{"id": c["id"], "name": c["name"]} for c in categories]
    check_new(output, [f"instances_{name}.json" for name in splits])
    compare_with_other_splits(categories, output, "instances_*.json")
    with hidden_folder(output, "-".join(splits)) as work:
        converted = []
        for name, source in splits.items():
            content = _instances(source, categories)
            with atomic_file(work / f"instances_{name}.json") as f:
                json.dump(content, f)
            converted.append(_summarize(name, source, content, output))
        for name in splits:
            (work / f"instances_{name}.json").rename(output / f"instances_{name}.json")
    return converted


def _instances(source: Source, categories: list[dict]) -> dict:
    """Return the content of a json. Boxes are cut at the border of their image."""
    ids = {c["name"]: c["id"] for c in categories}
    images, annotations, lost = [], [], []
    for number, item in enumerate(source.items, 1):
        path = source.image_root / item.file_name
        height, width = upright_size(path)
        if item.size is not None:
            with errors_in(f"The annotation of '{path}'"):
                check_size(item.size, (height, width))
        image_id = number if item.image_id is None else item.image_id
        images.append(
            {"id": image_id, "file_name": item.file_name, "height": height, "width": width}
        )
        for box in item.boxes:
            x, y, w, h = box.xywh
            left, top = max(x, 0), max(y, 0)
            w, h = min(x + w, width) - left, min(y + h, height) - top
            if w <= 0 or h <= 0:
                lost.append(f"{path}: {box}")
            elif box.name in ids:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": ids[box.name],
                        "bbox": [left, top, w, h],
                        "area": w * h,
                        "iscrowd": int(box.iscrowd),
                    }
                )
    log_left_out("boxes without area inside their image", lost)
    return {"images": images, "annotations": annotations, "categories": categories}


def _summarize(name: str, source: Source, content: dict, output: Path) -> Converted:
    targets = [a for a in content["annotations"] if not a["iscrowd"]]
    per_class = Counter(a["category_id"] for a in targets)
    per_image = Counter(a["image_id"] for a in targets)
    return Converted(
        name=name,
        paths={
            "image_root": source.image_root,
            "instances_json": output / f"instances_{name}.json",
        },
        num_images=len(content["images"]),
        num_segments={c["name"]: per_class[c["id"]] for c in content["categories"]},
        num_crowds=len(content["annotations"]) - len(targets),
        max_segments=max(per_image.values(), default=0),
    )
