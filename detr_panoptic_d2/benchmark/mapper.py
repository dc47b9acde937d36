"""Work "mapper": dataset dicts to training inputs, against a plain loop over segments."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from torchvision.ops import masks_to_boxes

from ..data import PanopticDatasetMapper
from ..data.dataset_mapper import build_augmentations
from ..data.panoptic_json import load_panoptic_json
from .agreement import Disagreement
from .inputs import make_images, make_label_map
from .measure import Clock, time_interleaved
from .session import Session

OURS, PLAIN = "ours", "plain loop"
_SAMPLE = "coco_panoptic_sample"
_GENERATED = 4


class PlainMapper:
    """The mapper one writes first: one comparison, one transform and one box per segment."""

    def __init__(self, cfg: CfgNode):
        self.augmentations = T.AugmentationList(build_augmentations(cfg, is_train=True))
        self.image_format = cfg.INPUT.FORMAT

    def __call__(self, dataset_dict: dict) -> dict:
        """See :class:`detr_panoptic_d2.data.PanopticDatasetMapper`."""
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        ids = rgb2id(utils.read_image(dataset_dict["pan_seg_file_name"], format="RGB"))
        classes, masks = [], []
        for segment in dataset_dict["segments_info"]:
            if not segment.get("iscrowd", 0):
                mask = transforms.apply_segmentation((ids == segment["id"]).astype(np.uint8))
                if mask.any():
                    classes.append(segment["category_id"])
                    masks.append(torch.tensor(mask, dtype=torch.bool))
        size = aug_input.image.shape[:2]
        instances = Instances(size)
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        stacked = torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool)
        instances.gt_boxes = Boxes(masks_to_boxes(stacked))
        instances.gt_masks = BitMasks(stacked)
        pixels = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": pixels, "instances": instances}


class MapperWork:
    """One worker's images per second on COCO's sample images, or on made ones of COCO's size."""

    def __init__(self, session: Session):
        self.session = session
        self._folder = tempfile.TemporaryDirectory()
        sample = find_sample()
        if sample is not None and session.options.size is None:
            self.source = _SAMPLE
            self.dicts = load_sample(sample)
        else:
            self.source = "generated"
            self.dicts = make_dicts(
                Path(self._folder.name), session.size("mapper"), session.options.segments
            )
        self.ours = PanopticDatasetMapper(session.cfg, is_train=True)
        self.plain = PlainMapper(session.cfg)

    def _run(self, mapper) -> list[dict]:
        results = []
        for index, dataset_dict in enumerate(self.dicts):
            np.random.seed(index)
            results.append(mapper(dataset_dict))
        return results

    def check(self) -> dict:
        """Compare pixels, classes, boxes and masks, which must be equal.

        Raises:
            Disagreement: they are not.
        """
        for a, b in zip(self._run(self.ours), self._run(self.plain), strict=True):
            x, y = a["instances"], b["instances"]
            pairs = {
                "image": (a["image"], b["image"]),
                "gt_classes": (x.gt_classes, y.gt_classes),
                "gt_boxes": (x.gt_boxes.tensor, y.gt_boxes.tensor),
                "gt_masks": (x.gt_masks.tensor, y.gt_masks.tensor),
            }
            for name, (ours, theirs) in pairs.items():
                if not torch.equal(ours, theirs):
                    raise Disagreement(
                        f"mapper: {name} of '{a['file_name']}' differs between our mapper and a "
                        "plain loop; nothing is timed"
                    )
        return {"equal images": len(self.dicts)}

    def measure(self) -> dict:
        """Times of a pass over all images, images per second, and the ratio."""
        variants = {OURS: lambda: self._run(self.ours), PLAIN: lambda: self._run(self.plain)}
        clock = Clock(torch.device("cpu"), self.session.options.cpu_time)
        repeats = max(self.session.repeats, 10)
        times = time_interleaved(variants, clock, repeats)
        rate = {name: len(self.dicts) / t.median for name, t in times.items()}
        segments = [len(x["segments_info"]) for x in self.dicts]
        return {
            "settings": {"images": self.source, "segments": segments},
            "times": {name: t.as_dict() for name, t in times.items()},
            "images per second": rate,
            "ratios": {f"images per second: {OURS} / {PLAIN}": rate[OURS] / rate[PLAIN]},
        }


def find_sample() -> Path | None:
    """COCO's panoptic sample in ``DETR_PANOPTIC_SAMPLES``, or else in ``shared/data`` beside the
    checkout; None if it is in neither."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("DETR_PANOPTIC_SAMPLES", beside)) / _SAMPLE
    return folder if folder.is_dir() else None


def load_sample(folder: Path) -> list[dict]:
    """Dataset dicts of COCO's panoptic sample."""
    return load_panoptic_json(
        image_root=str(folder / "val2017"),
        panoptic_root=str(folder / "panoptic_val2017"),
        panoptic_json=str(folder / "panoptic_val2017.json"),
    )


def make_dicts(folder: Path, size: tuple[int, int], segments: int) -> list[dict]:
    """Write made images (JPEG) and their panoptic PNGs; return their dataset dicts.

    Args:
        folder: where to.
        size: (H, W) of the images.
        segments: per image.
    """
    generator = torch.Generator().manual_seed(4)
    dicts = []
    images = make_images(_GENERATED, size, size, torch.device("cpu"))
    for index, x in enumerate(images):
        labels = make_label_map(segments, size, generator).numpy()
        # Spread over all three bytes, as the ids of COCO are.
        ids = (labels + 1) * 1_234_567 % 2**24
        picture, png = folder / f"{index}.jpg", folder / f"{index}.png"
        Image.fromarray(x["image"].permute(1, 2, 0).numpy()).save(picture, quality=90)
        Image.fromarray(id2rgb(ids)).save(png)
        present = np.unique(labels).tolist()
        infos = [
            {"id": (s + 1) * 1_234_567 % 2**24, "category_id": s, "iscrowd": 0} for s in present
        ]
        dicts.append(
            {
                "file_name": str(picture),
                "image_id": index,
                "height": size[0],
                "width": size[1],
                "pan_seg_file_name": str(png),
                "segments_info": infos,
            }
        )
    return dicts
