"""Detectron2's ``DefaultPredictor`` with the checkpointer of this project."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks

from ..checkpoint import PanopticCheckpointer
from ..checkpoint.description import cfg_from_checkpoint
from ..data.augmentation import build_test_resize
from ..errors import UserError
from ..visualization.visualizer import class_name


def load(path: str, *opts: Any) -> "Predictor":
    """Build a predictor from a checkpoint alone: ``load("model_best.pth")(image)``.

    Args:
        path: a checkpoint that a training of this project wrote.
        opts: keys and values that change its config, such as ``"MODEL.DEVICE", "cpu"``.
    """
    return Predictor(cfg_from_checkpoint(path, opts))


class Predictor(DefaultPredictor):
    """Detectron2's ``DefaultPredictor``: it takes a BGR image and returns the model's outputs.

    It also reads safetensors and Hugging Face folders, refuses weights that do not fit the model,
    and folds the batch norms of the backbone. ``DATASETS.TEST`` (else ``TRAIN``) names the classes,
    whose names and colors are in ``metadata``.
    """

    def __init__(self, cfg: CfgNode):
        # Detectron2's constructor would load the weights with its own checkpointer.
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        PanopticCheckpointer(self.model).load(cfg.MODEL.WEIGHTS, complete=True)
        self.model.fold_for_inference()
        names = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
        self.metadata: Metadata = MetadataCatalog.get(names[0])
        self.aug = build_test_resize(cfg)
        self.input_format = cfg.INPUT.FORMAT

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Return the input of the model for an image, H x W x 3 uint8 BGR."""
        height, width = image.shape[:2]
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def predict_batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the model's outputs for inputs from :meth:`prepare`."""
        with torch.no_grad():
            return self.model(inputs)

    def to_supervision(self, result: dict[str, Any]) -> Any:
        """Return the segments of a result, things and stuff, as ``supervision.Detections``.

        ``data`` has ``class_name`` and ``isthing`` of each segment.

        Args:
            result: what this predictor returned, with ``panoptic_seg``.

        Raises:
            UserError: the package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as e:
            raise UserError(
                "to_supervision needs a package that is not installed: pip install supervision"
            ) from e
        ids, segments = result["panoptic_seg"]
        masks = (
            ids.cpu() == torch.tensor([s["id"] for s in segments], dtype=ids.dtype)[:, None, None]
        )
        names = [class_name(s["category_id"], self.metadata) for s in segments]
        isthing = np.array([s["isthing"] for s in segments], dtype=bool)
        return Detections(
            xyxy=BitMasks(masks).get_bounding_boxes().tensor.numpy(),
            mask=masks.numpy(),
            confidence=np.array([s["score"] for s in segments], dtype=np.float32),
            class_id=np.array([s["category_id"] for s in segments], dtype=int),
            data={"class_name": np.array(names, dtype=str), "isthing": isthing},
        )
