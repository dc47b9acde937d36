"""Small folders in each format, opened as a source, and the result of a conversion read back."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from detr_panoptic_d2.prepare.convert.coco import coco_instances
from detr_panoptic_d2.prepare.convert.cvat import cvat
from detr_panoptic_d2.prepare.convert.labelme import labelme
from detr_panoptic_d2.prepare.convert.mask_folders import class_masks, instance_masks
from detr_panoptic_d2.prepare.convert.writer import Converted

H, W = 24, 32
IMAGE = "sub/a.jpg"
CAMVID = "64 128 64\tAnimal\n128 128 128\tSky\n64 0 128\t\tCar\n0 0 0\t\tVoid\n"


def rle(mask, compressed=True):
    """Run lengths of a COCO json."""
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return {"size": list(mask.shape), "counts": runs(mask.T)}


def runs(mask):
    """Run lengths along the rows, from a run of zeros on."""
    flat = mask.reshape(-1).astype(int)
    ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *ends, flat.size]).tolist()


def png(mask):
    """A PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def save_image(path, height, width, **options):
    """Save a random picture, in folders made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def save_mask(path, mask):
    """Save an array, an image, or bytes, in folders made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(mask, bytes):
        path.write_bytes(mask)
    else:
        (mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask))).save(path)


def coco_folder(root, annotations, size=(H, W), changed=None, **options):
    save_image(root / "images" / IMAGE, *size)
    content = {
        "images": [{"id": 5, "file_name": IMAGE, "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 7, "iscrowd": 0, **a}
            for i, a in enumerate(annotations)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        **(changed or {}),
    }
    (root / "instances.json").write_text(json.dumps(content))
    return coco_instances(root / "instances.json", root / "images", **options)


def labelme_folder(root, shapes, size=(H, W), folder="images/sub", changed=None):
    save_image(root / "images" / IMAGE, *size)
    content = {
        "shapes": [{"label": "cat", "group_id": None, **s} for s in shapes],
        "imagePath": "a.jpg",
        "imageHeight": size[0],
        "imageWidth": size[1],
        **(changed or {}),
    }
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "a.json").write_text(json.dumps(content))
    return labelme(root / folder, root / "images")


def cvat_folder(root, shapes, size=(H, W), name=IMAGE, head=""):
    save_image(root / "images" / IMAGE, *size)
    labels = "<label><name>dog</name></label><label><name>cat</name></label>"
    (root / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?>{head}<annotations><meta><task><labels>{labels}'
        f'</labels></task></meta><image id="0" name="{name}" width="{size[1]}" height="{size[0]}">'
        f"{shapes}</image></annotations>"
    )
    return cvat(root / "annotations.xml", root / "images")


def class_masks_folder(root, mask, size=(H, W), labels=CAMVID, name="labels.txt", **options):
    save_image(root / "images" / IMAGE, *size)
    save_mask(root / "masks/sub/a_L.png", mask)
    (root / name).write_text(labels)
    options = {"mask_suffix": "_L.png", **options}
    return class_masks(root / "images", root / "masks", root / name, **options)


def instance_masks_folder(root, mask, size=(H, W), **options):
    save_image(root / "images" / IMAGE, *size)
    save_mask(root / "masks/sub/a_mask.png", mask)
    return instance_masks(root / "images", root / "masks", **options)


class Result:
    """A converted split as COCO panoptic tools read it."""

    def __init__(self, folder: Path, split: Converted | None = None):
        self.folder, self.split = folder, split
        self.content = json.loads((folder / "panoptic_train.json").read_text())
        self.names = {c["id"]: c["name"] for c in self.content["categories"]}
        self.images = {i["file_name"]: i for i in self.content["images"]}
        names = {i["id"]: name for name, i in self.images.items()}
        self.annotations = {names[a["image_id"]]: a for a in self.content["annotations"]}

    def ids(self, file_name: str) -> np.ndarray:
        """Ids of the PNG of an image (H, W)."""
        png = self.folder / "panoptic_train" / self.annotations[file_name]["file_name"]
        with Image.open(png) as image:
            return rgb2id(np.array(image))

    def segments(self, file_name: str) -> list[tuple[str, int, np.ndarray]]:
        """(class name, iscrowd, mask) of each segment, in the order of the json."""
        ids = self.ids(file_name)
        infos = self.annotations[file_name]["segments_info"]
        return [(self.names[s["category_id"]], s["iscrowd"], ids == s["id"]) for s in infos]

    def classes(self, file_name: str) -> np.ndarray:
        """Class name of each pixel (H, W), "" where it is void."""
        result = np.full(self.ids(file_name).shape, "", dtype=object)
        for name, _, mask in self.segments(file_name):
            result[mask] = name
        return result
