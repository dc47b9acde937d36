"""``detr-panoptic convert auto``: each layout is recognised, and gives the same segments."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from detr_panoptic_d2.engine import setup_cfg
from tests.prepare.folders import H, Result, W, rle, save_image, save_mask

pytestmark = pytest.mark.usefixtures("clean_catalogs")

CAT, DOG = np.zeros((2, H, W), bool)
CAT[4:12, 4:14] = DOG[14:20, 16:28] = True
SPLITS = "train", "val"


def polygon_of(mask):
    """Corners of a rectangular mask: x, y, x, y, ..."""
    y, x = np.nonzero(mask)
    left, top, right, bottom = x.min(), y.min(), x.max() + 1, y.max() + 1
    return np.array([left, top, right, top, right, bottom, left, bottom], float)


def box_of(mask):
    points = polygon_of(mask).reshape(-1, 2)
    return [*points[0].tolist(), *(points[2] - points[0]).tolist()]


@pytest.fixture
def photo(tmp_path):
    """Return ``save(name)``: a photograph."""
    return lambda name: save_image(tmp_path / "in" / name, H, W)


@pytest.fixture
def write(tmp_path):
    """Return ``write(name, content)``: a text, a json or a mask."""

    def run(name, content):
        path = tmp_path / "in" / name
        if isinstance(content, np.ndarray | Image.Image):
            return save_mask(path, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    return run


def coco(with_masks=True):
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": box_of(mask), "segmentation": []}
        for i, mask in ((1, CAT), (2, DOG))
    ]
    if with_masks:
        annotations[0]["segmentation"] = [polygon_of(CAT).tolist()]
        annotations[1]["segmentation"] = rle(DOG)
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    image = {"id": 1, "file_name": "a.jpg", "height": H, "width": W}
    return {"images": [image], "annotations": annotations, "categories": categories}


def roboflow(photo, write):
    for split in ("train", "valid"):
        photo(f"{split}/a.jpg")
        write(f"{split}/_annotations.coco.json", coco())


def plain_coco(photo, write):
    for split in SPLITS:
        photo(f"images/{split}2017/a.jpg")
        write(f"annotations/instances_{split}2017.json", coco())
        write(f"annotations/person_keypoints_{split}2017.json", coco())


def yolo(photo, write):
    for split in SPLITS:
        photo(f"images/{split}/a.jpg")
        lines = [
            f"{i} " + " ".join(map(str, polygon_of(mask) / ([W, H] * 4)))
            for i, mask in enumerate((CAT, DOG))
        ]
        write(f"labels/{split}/a.txt", "\n".join(lines) + "\n")
    # A path of another computer.
    names = "names:\n  0: cat\n  1: dog\n"
    write("data.yaml", f"path: /home/me/pets\ntrain: images/train\nval: images/val\n{names}")


def yolo_with_lists(photo, write):
    """The same names in both splits."""
    yolo(photo, write)
    for split in SPLITS:
        write(f"{split}.txt", f"./images/{split}/a.jpg\n")
    write("data.yaml", "path: .\ntrain: train.txt\nval: val.txt\nnames: [cat, dog]\n")


def yolo_of_roboflow(photo, write):
    yolo(lambda name: photo(moved(name)), lambda name, text: write(moved(name), text))
    write("data.yaml", "train: ../train/images\nval: ../val/images\nnc: 2\nnames: [cat, dog]\n")


def moved(name):
    """``images/train/a.jpg`` -> ``train/images/a.jpg``."""
    kind, _, rest = name.partition("/")
    return f"{rest.split('/')[0]}/{kind}/{rest.split('/')[1]}" if rest else name


def voc(photo, write):
    photo("VOC/JPEGImages/a.jpg")
    photo("VOC/JPEGImages/b.jpg")
    for name in "ab":
        for folder, cat, dog in (("Class", 8, 12), ("Object", 1, 2)):
            mask = Image.fromarray((cat * CAT + dog * DOG).astype(np.uint8))
            mask.putpalette(list(range(256)) * 3)
            write(f"VOC/Segmentation{folder}/{name}.png", mask)
    write("VOC/ImageSets/Segmentation/train.txt", "a\n")
    write("VOC/ImageSets/Segmentation/val.txt", "b\n")
    write("VOC/ImageSets/Segmentation/test.txt", "c\n")


def labelme(photo, write):
    for split in SPLITS:
        photo(f"{split}/a.jpg")
        shapes = [
            {"label": name, "points": polygon_of(mask).reshape(-1, 2).tolist()}
            for name, mask in (("cat", CAT), ("dog", DOG))
        ]
        write(f"{split}/a.json", {"imagePath": "a.jpg", "shapes": shapes})


def cvat(photo, write):
    images = ""
    for split in SPLITS:
        photo(f"images/{split}/a.jpg")
        shapes = ""
        for name, mask in (("cat", CAT), ("dog", DOG)):
            points = ";".join(f"{x},{y}" for x, y in polygon_of(mask).reshape(-1, 2))
            shapes += f'<polygon label="{name}" points="{points}"/>'
        head = f'<image id="0" name="a.jpg" subset="{split}" width="{W}" height="{H}">'
        images += f"{head}{shapes}</image>"
    write("annotations.xml", f"<annotations>{images}</annotations>")


def brush(mask):
    """Label Studio's run lengths of the RGBA image of a mask."""
    bits = f"{4 * mask.size:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    for value in np.repeat(mask.ravel() * 255, 4).reshape(-1, 96):
        runs = np.flatnonzero(np.diff(value, prepend=-1, append=-1))
        for start, stop in zip(runs, runs[1:], strict=False):
            bits += f"1{2:02b}{stop - start - 1:08b}{value[start]:08b}"
    return [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]


def label_studio(photo, write):
    photo("images/a.jpg")
    size = {"original_width": W, "original_height": H, "image_rotation": 0}
    points = (polygon_of(CAT) / ([W, H] * 4) * 100).reshape(-1, 2).tolist()
    results = [
        {"id": "x", "type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cat"]}},
        # The shape and the label of an object as two results.
        {"id": "y", "type": "brush", "value": {"format": "rle", "rle": brush(DOG)}},
        {"id": "y", "type": "labels", "value": {"labels": ["dog"]}},
    ]
    results = [{**result, **size} for result in results]
    annotations = [{"was_cancelled": True, "result": []}, {"result": results}]
    data = {"image": "/data/upload/3/0a1b2c3d-a.jpg"}
    write("export.json", [{"id": 1, "annotations": annotations, "data": data}])


def masks_with_a_list(photo, write):
    for split in SPLITS:
        photo(f"{split}/a.jpg")
        write(f"{split}annot/a_L.png", (CAT + 2 * DOG).astype(np.uint8))
    write("classes.txt", "void\ncat\ndog\n")


LAYOUTS = {
    roboflow: ("COCO, splits train, valid", "train valid"),
    plain_coco: ("COCO, splits train, val", "train val"),
    yolo: ("YOLO, splits train, val", "train val"),
    yolo_with_lists: ("YOLO, splits train, val", "train val"),
    yolo_of_roboflow: ("YOLO, splits train, val", "train val"),
    voc: ("Pascal VOC, splits train, val", "train val"),
    labelme: ("LabelMe, splits train, val", "train val"),
    cvat: ("CVAT for images, splits train, val", "train val"),
    label_studio: ("Label Studio ('export.json')", "train"),
    masks_with_a_list: ("masks with a class per pixel, splits train, val", "train val"),
}


@pytest.fixture
def auto(run_command, tmp_path):
    """Return ``run(*options)`` on the folder ``in``."""
    arguments = ["convert", "auto", tmp_path / "in", "--output", tmp_path / "out", "--workers", "1"]
    return lambda *options: run_command(*arguments, *options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, photo, write, auto, tmp_path):
    layout(photo, write)
    description, splits = LAYOUTS[layout]
    ignored = ["--ignore", "background"] if layout is voc else []
    things = ["--things", "cat", "dog"] if layout is masks_with_a_list else []
    status, printed = auto(*ignored, *things)
    assert status == 0 and f"{description}:\n  detr-panoptic convert" in printed
    jsons = sorted((tmp_path / "out").glob("panoptic_*.json"))
    assert [path.stem for path in jsons] == [f"panoptic_{s}" for s in splits.split()]
    result = Result(tmp_path / "out")
    ((name, image),) = result.images.items()
    assert (image["height"], image["width"]) == (H, W)
    segments = {name: (mask, crowd) for name, crowd, mask in result.segments(name)}
    assert segments.keys() == {"cat", "dog"}
    for name, mask in (("cat", CAT), ("dog", DOG)):
        assert np.array_equal(segments[name][0], mask) and segments[name][1] == 0
    assert all(c["isthing"] for c in result.content["categories"] if c["name"] in segments)
    cfg = setup_cfg(str(tmp_path / "out/out.yaml"))
    assert list(cfg.DATASETS.TEST) == [f"out_{splits.split()[-1]}"]


def test_a_split_of_yolo_without_images_is_named(photo, write, auto):
    yolo(photo, write)
    write("data.yaml", "train: images/train\nval: images/val\ntest: gone\nnames: [cat, dog]\n")
    status, printed = auto()
    assert status == 0 and "splits train, val" in printed
    assert "Left out: 1 splits without images: " in printed and "data.yaml': 'test'" in printed


def test_cityscapes(photo, write, auto, tmp_path):
    """Values below 1000 are stuff and groups, 24 is a person, 26 a car, 4 void."""
    values = np.full((H, W), 7, np.uint16)
    values[:2], values[CAT], values[DOG], values[20:] = 4, 24001, 26, 24002
    for split in SPLITS:
        photo(f"leftImg8bit/{split}/ulm/ulm_0_1_leftImg8bit.png")
        write(f"gtFine/{split}/ulm/ulm_0_1_gtFine_instanceIds.png", values)
        write(f"gtFine/{split}/ulm/ulm_0_1_gtFine_labelIds.png", values)
    status, printed = auto()
    assert status == 0 and "Cityscapes, splits train, val" in printed
    result = Result(tmp_path / "out")
    name = "ulm/ulm_0_1_leftImg8bit.png"
    segments = sorted((n, crowd, mask.sum()) for n, crowd, mask in result.segments(name))
    person = sorted([CAT.sum(), 4 * W])
    assert segments[:-1] == [("car", 1, DOG.sum()), *(("person", 0, area) for area in person)]
    assert segments[-1][:2] == ("road", 0) and (result.classes(name)[:2] == "").all()
    assert len(result.content["categories"]) == 19


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_boxes_alone_train_the_box_stage(kind, photo, write, auto, command, tmp_path):
    for split in SPLITS:
        photo(f"images/{split}/a.jpg")
        if kind == "coco":
            write(f"annotations/{split}.json", coco(with_masks=False))
        else:
            x, y, w, h = np.array([box_of(CAT), box_of(DOG)]).T / np.array([[W], [H], [W], [H]])
            lines = [f"{i} {x[i] + w[i] / 2} {y[i] + h[i] / 2} {w[i]} {h[i]}" for i in (0, 1)]
            write(f"labels/{split}/a.txt", "\n".join(lines))
    if kind == "yolo":
        write("data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    status, printed = auto("--base", "shapes/tiny.yaml")
    assert status == 0
    assert "train: 1 images with boxes: 1 cat, 1 dog." in printed and "MASK_ON False" in printed
    config = tmp_path / "out/out.yaml"
    cfg = setup_cfg(str(config))
    assert not cfg.MODEL.MASK_ON and cfg.MODEL.DETR.TEST.INSTANCE_ON
    (item,) = DatasetCatalog.get("out_train")
    boxes = [a["bbox"] for a in item["annotations"]]
    assert np.allclose(boxes, [box_of(CAT), box_of(DOG)]) and Path(item["file_name"]).is_file()
    if kind == "yolo":
        return
    # The command that is printed trains boxes, and evaluates their AP.
    opts = ["OUTPUT_DIR", tmp_path / "run", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 1]
    opts += ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "TEST.EVAL_PERIOD", 0]
    assert command("train", "--config-file", config, *opts)[0] == 0
    metrics = (tmp_path / "run/metrics.json").read_text()
    assert "loss_bbox" in metrics and "loss_mask" not in metrics
    run = ["--config-file", tmp_path / "run/config.yaml"]
    weights = ["MODEL.WEIGHTS", tmp_path / "run/model_final.pth"]
    status, printed, _ = command("train", "--eval-only", *run, *weights)
    assert status == 0 and "Evaluation results for bbox" in printed and "segm" not in printed


def test_what_is_not_clear_is_listed(photo, write, auto):
    photo("images/a.jpg")
    write("masks/a_mask.png", CAT.astype(np.uint8))
    status, printed = auto()
    assert status == 1 and "may have several formats" in printed
    assert "convert class-masks" in printed and "convert instance-masks" in printed
    write("instances.json", coco())
    write("a.json", {"imagePath": "images/a.jpg", "shapes": []})
    status, printed = auto()
    assert status == 1 and "convert coco" in printed and "convert labelme" in printed


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "[", "a.json' is not a json file"),
        ("a.txt", "x", "has no known format"),
        ("a/data.yaml", "names: [a]\npath: ..\ntrain: a\nkpt_shape: [1, 2]", "with keypoints"),
        ("data.yaml", "names: [a]\ntrain: [a, b]\n", "data.yaml': 'train' is a list. Name one"),
        (
            "a.json",
            {**coco(), "annotations": [{"segments_info": []}]},
            "COCO panoptic format already",
        ),
    ],
)
def test_no_format(write, auto, name, content, message):
    write(name, content)
    status, printed = auto()
    assert status == 1 and message in printed and "Traceback" not in printed
