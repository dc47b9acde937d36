"""mIoU against the classes of the panoptic PNGs."""

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from ..data.label_maps import ids_to_labels
from ..data.metadata import categories_of
from ..data.panoptic_png import read_panoptic_png
from .ground_truth import check_prediction_size, temporary_dataset


class PanopticSemanticEvaluator(SemSegEvaluator):
    """``SemSegEvaluator`` over all classes of a panoptic dataset, things and stuff.

    ``SemSegEvaluator`` reads a semantic PNG per image, which panoptic datasets do not have. Here
    the classes come from the panoptic PNGs. Void pixels do not count, crowds count as their class.
    Without a labelled pixel, mIoU is NaN.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        items = DatasetCatalog.get(dataset_name)
        categories = categories_of(MetadataCatalog.get(dataset_name))
        self._segments = {d["pan_seg_file_name"]: d["segments_info"] for d in items}
        with temporary_dataset(
            lambda: [{**d, "sem_seg_file_name": d["pan_seg_file_name"]} for d in items],
            stuff_classes=[c["name"] for c in categories],
            stuff_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
            ignore_label=len(categories),
        ) as name:
            super().__init__(name, output_dir=output_dir, sem_seg_loading_fn=self._load)

    def _load(self, png: str, dtype: type) -> np.ndarray:
        """Return the contiguous classes (H, W) of a PNG."""
        segments = self._segments[png]
        labels, _ = ids_to_labels(read_panoptic_png(png), [s["id"] for s in segments])
        return np.array([self._num_classes, *(s["category_id"] for s in segments)], dtype)[labels]

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            png = self.input_file_to_gt_file[image["file_name"]]
            check_prediction_size(image, output["sem_seg"].shape[-2:], png)
        super().process(inputs, outputs)
