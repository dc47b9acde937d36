"""Convert annotations that are boxes alone to a COCO instances json, to train without masks."""

from .source import Source, check_size, log_left_out, upright_size
from .values import errors_in


def convert_boxes(source: Source, categories: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return ``images`` and ``annotations`` of a json. Boxes are cut at the border of the image."""
    ids = {c["name"]: c["id"] for c in categories}
    images: list[dict] = []
    annotations: list[dict] = []
    lost = []
    for number, item in enumerate(source.items, 1):
        path = source.image_root / item.file_name
        height, width = upright_size(path)
        if item.size is not None:
            with errors_in(f"The annotation of '{path}'"):
                check_size(item.size, (height, width))
        image_id = number if item.image_id is None else item.image_id
        image = {"id": image_id, "file_name": item.file_name, "height": height, "width": width}
        images.append(image)
        for box in item.boxes:
            x, y, w, h = box.xywh
            left, top = max(x, 0), max(y, 0)
            w, h = min(x + w, width) - left, min(y + h, height) - top
            if w <= 0 or h <= 0:
                lost.append(box.where)
            elif box.name in ids:
                annotation = {"id": len(annotations) + 1, "image_id": image_id, "area": w * h}
                annotation |= {"category_id": ids[box.name], "bbox": [left, top, w, h]}
                annotations.append({**annotation, "iscrowd": int(box.iscrowd)})
    log_left_out("boxes without area inside their image", lost)
    return images, annotations
