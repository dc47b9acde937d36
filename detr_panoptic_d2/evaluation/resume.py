"""Going on with an evaluation that was broken off, never with predictions of another model."""

import hashlib
import logging
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._version import __version__
from .records import ImageRecords

logger = logging.getLogger(__name__)


def prediction_key(cfg: CfgNode, model: nn.Module, dataset_name: str) -> str:
    """Return a hash of all that predictions depend on.

    That is: every weight and buffer, the config's ``MODEL`` (but ``WEIGHTS``, ``DEVICE`` and how
    images share a batch), ``INPUT`` and ``TEST``, the annotation files with size and time, and the
    versions of this package and of torch.

    Args:
        cfg: the config.
        model: the model with its weights, distributed or not.
        dataset_name: a registered data set.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    digest = hashlib.blake2b(digest_size=16)
    settings = cfg.clone()
    settings.defrost()
    settings.MODEL.WEIGHTS = settings.MODEL.DEVICE = ""
    settings.MODEL.DETR.TEST.RESUME = False
    for part in (settings.MODEL, settings.INPUT, settings.TEST):
        digest.update(part.dump().encode())
    digest.update(f"{__version__} {torch.__version__} {dataset_name}".encode())
    metadata = MetadataCatalog.get(dataset_name)
    for name in ("panoptic_json", "json_file"):
        path = metadata.get(name)
        if path and os.path.isfile(path):
            stat = os.stat(path)
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def images_done(evaluator: DatasetEvaluator) -> set[int | str]:
    """Open the records of the evaluators and return the ids of the images that all have.

    Args:
        evaluator: what :func:`.build.build_evaluator` made with a key.
    """
    parts: Sequence[DatasetEvaluator] = [evaluator]
    if isinstance(evaluator, DatasetEvaluators):
        parts = evaluator._evaluators
    records = [getattr(part, "records", None) for part in parts]
    if not records or not all(isinstance(r, ImageRecords) for r in records):
        logger.warning(
            "MODEL.DETR.TEST.RESUME is without effect: an evaluator of this data set keeps its "
            "results in memory. All images are predicted."
        )
        return set()
    evaluator.reset()
    return set.intersection(*(r.done for r in records))
