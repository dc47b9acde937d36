"""Losses on a data set that is not trained on."""

from collections import Counter

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm

from ..data.dataset_mapper import PanopticDatasetMapper
from ..modeling.meta_arch import PanopticDETR


@torch.no_grad()
def validation_losses(cfg: CfgNode, model: PanopticDETR) -> dict[str, float]:
    """Return the weighted losses of the first data set of ``DATASETS.TEST``.

    Images have test size and no augmentation. The losses are those of the last decoder layer, with
    the mean over the images.

    Args:
        cfg: the config.
        model: the model, not wrapped for several processes.

    Returns:
        the losses and their sum ``total_loss``, in the main process; {} in the others.
    """
    loader = build_detection_test_loader(
        cfg,
        cfg.DATASETS.TEST[0],
        mapper=PanopticDatasetMapper(cfg, is_train=False, with_targets=True),
        batch_size=cfg.MODEL.DETR.TEST.BATCH_SIZE,
    )
    sums: Counter[str] = Counter()
    with inference_context(model):
        for batch in loader:
            losses = {name: float(loss) for name, loss in model.losses(batch).items()}
            losses["total_loss"] = sum(losses.values())
            sums.update({name: loss * len(batch) for name, loss in losses.items()})
            sums["images"] += len(batch)
    total: Counter[str] = sum(comm.gather(sums), Counter())
    images = total.pop("images", 1)
    return {name: value / images for name, value in total.items()}
