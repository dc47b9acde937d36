"""What ``INPUT.AUG`` builds."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from detr_panoptic_d2.config import merged_cfg
from detr_panoptic_d2.data import PanopticDatasetMapper
from detr_panoptic_d2.data.augmentation import build_augmentations
from detr_panoptic_d2.errors import UserError


def make_cfg(aug):
    cfg = merged_cfg("")
    cfg.MODEL.MASK_ON, cfg.INPUT.AUG, cfg.INPUT.FORMAT = True, aug, "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = (96, 128), True
    cfg.INPUT.CROP.RESIZE_MIN_SIZES = (80, 112)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", [48, 96]
    return cfg


@pytest.fixture
def painted(panoptic_set, scene):
    """An image whose pixels have the color of their segment, and the colors by class."""
    ids, classes = np.kron(scene[0], np.ones((3, 3), int)), scene[1]
    root = panoptic_set("painted", [(ids, classes)])
    colors = {0: (90, 160, 230), 1: (230, 60, 60), 2: (60, 140, 60), 3: (200, 180, 40)}
    image = np.zeros((*ids.shape, 3), np.uint8)
    for segment_id, category_id in classes.items():
        image[ids == segment_id] = colors[(3, 10, 21, 30).index(category_id)]
    Image.fromarray(image).save(root / "images" / "000.png")
    return DatasetCatalog.get("painted")[0], colors


LIST = ["detr", ["RandomBrightness", 0.8, 1.2], ["RandomFlip", {"prob": 0.5, "vertical": True}]]
LIST[2][1]["horizontal"] = False
CROP = [["ResizeScale", 0.5, 1.0, 128, 128], ["FixedSizeCrop", [128, 128]], "RandomFlip"]


@pytest.mark.parametrize("aug", [None, "lsj", "color", "flip-rotate", LIST, CROP])
def test_masks_boxes_and_classes_follow_the_image(painted, aug):
    item, colors = painted
    mapper = PanopticDatasetMapper(make_cfg(aug))
    np.random.seed(0)
    sizes, pictures = set(), set()
    for _ in range(20):
        data = mapper(item)
        image, instances = data["image"].permute(1, 2, 0), data["instances"]
        assert image.dtype == torch.uint8
        sizes.add(tuple(image.shape[:2]))
        masks = instances.gt_masks.tensor
        assert masks.flatten(1).any(1).all() and masks.sum(0).max() <= 1
        assert masks.shape[1:] == image.shape[:2]
        for mask, category, box in zip(
            masks, instances.gt_classes, instances.gt_boxes.tensor, strict=True
        ):
            shown, color = image[mask].double().median(0).values, colors[int(category)]
            # Narrow strips at the edge of a crop are blurred.
            is_strip = mask.double().mean() < 0.05
            assert is_strip or torch.allclose(shown, torch.tensor(color).double(), atol=75)
            y, x = mask.nonzero(as_tuple=True)
            assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]
        # The scene has no void: what no mask covers is padding, which is grey and void.
        assert (image[~masks.any(0)] == 128).all()
        pictures.add(image.numpy().tobytes())
    assert len(pictures) > 5
    assert (sizes == {(128, 128)}) == (aug == "lsj" or aug == CROP)


def test_lsj_pads_with_void_and_rotations_lose_no_pixel(painted):
    item, _ = painted
    np.random.seed(0)
    lsj = PanopticDatasetMapper(make_cfg("lsj"))
    areas = [lsj(item)["instances"].gt_masks.tensor.sum().item() for _ in range(20)]
    assert min(areas) < 0.1 * 128**2 and max(areas) == 128**2
    cfg = make_cfg("flip-rotate")
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.ENABLED = (96,), False
    mapper, turned = PanopticDatasetMapper(cfg), set()
    whole = np.asarray(Image.open(item["file_name"]))
    symmetric = [np.rot90(x, k) for x in (whole, whole[:, ::-1]) for k in range(4)]
    for _ in range(60):
        image = mapper(item)["image"].permute(1, 2, 0).numpy()
        turned.add(next(i for i, x in enumerate(symmetric) if np.array_equal(x, image)))
    assert turned == set(range(8))


@pytest.mark.parametrize(
    ("aug", "message"),
    [
        ("jitter", "'jitter', but must be one of detr, lsj, .*RandomBrightness.*ResizeScale"),
        ([["Transform"]], "'Transform', but must be"),
        ([["RandomBrightness", 1]], r"\['RandomBrightness', 1\]: .*intensity_max"),
        ([["RandomCrop", "half", [1, 1]]], "RandomCrop"),
        ([3], "3, but must"),
    ],
)
def test_what_is_unknown_is_named(aug, message):
    with pytest.raises(UserError, match=f"INPUT.AUG.*{message}"):
        build_augmentations(make_cfg(aug), is_train=True)
