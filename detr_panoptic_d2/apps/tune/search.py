"""PQ of many rules and thresholds from one pass of the model.

Shapes: G groups of images, S settings, K classes; Q queries of an image, h x w the mask grid.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from panopticapi.evaluation import PQStat
from torch import nn
from tqdm import tqdm

from ...checkpoint import PanopticCheckpointer
from ...data.metadata import thing_class_ids
from ...data.panoptic_png import read_panoptic_png
from ...engine import PanopticTrainer
from ...errors import UserError
from ...evaluation.ground_truth import check_prediction_size
from ...evaluation.pq import count_pairs
from ...modeling.panoptic_inference import PANOPTIC_INFERENCE_REGISTRY, DETRPanopticInference
from ...modeling.structures import Frame
from .histogram_assigner import HistogramAssigner

_RULES = ("DETRPanopticInference", "MaskNMSPanopticInference")
_SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
_OVERLAPS = (0.0, 0.4, 0.6, 0.8)
_AREAS = (4, 20, 100, 400)
# Images that are counted in parallel.
_NUM_THREADS = 2


class Setting(NamedTuple):
    """Values of the keys below ``MODEL.DETR.TEST``."""

    PANOPTIC_INFERENCE: str
    SCORE_THRESH: float
    OVERLAP_THRESH: float
    MIN_SEGMENT_AREA: int


class ImageMasks(NamedTuple):
    """What the model predicts for one image, for the queries that the lowest threshold keeps."""

    pred_logits: torch.Tensor  # Q x (K + 1)
    mask_logits: torch.Tensor  # Q x h x w
    scores: torch.Tensor  # Q
    labels: torch.Tensor  # Q
    frame: Frame


def make_settings(cfg: CfgNode) -> list[Setting]:
    """Return the settings to try. The first one is that of the config."""
    test = cfg.MODEL.DETR.TEST
    current = Setting(*(test[key] for key in Setting._fields))
    grid = [
        Setting(rule, score, overlap, area)
        for rule in _RULES
        for score in sorted({*_SCORES, current.SCORE_THRESH})
        for overlap in sorted({*_OVERLAPS, current.OVERLAP_THRESH})
        for area in sorted({*_AREAS, current.MIN_SEGMENT_AREA})
    ]
    return list(dict.fromkeys([current, *grid]))


def build_rules(settings: Sequence[Setting], thing_ids: list[int]) -> list[DETRPanopticInference]:
    """Build the panoptic inference of each setting.

    Raises:
        UserError: the rule of the config is not a ``DETRPanopticInference``.
    """
    rules = []
    for name, score, overlap, area in settings:
        rule = PANOPTIC_INFERENCE_REGISTRY.get(name)
        if not issubclass(rule, DETRPanopticInference):
            raise UserError(
                f"MODEL.DETR.TEST.PANOPTIC_INFERENCE is {name}, which is not a subclass of "
                "DETRPanopticInference and cannot be tuned. Set it to one of " + ", ".join(_RULES)
            )
        thresholds = {"score_thresh": score, "overlap_thresh": overlap, "min_segment_area": area}
        rules.append(rule(thing_ids=thing_ids, **thresholds))
    return rules


class MaskCollector(nn.Module):
    """Replaces the model's panoptic inference; returns the input of one that keeps the queries of
    all rules."""

    def __init__(self, rules: Sequence[DETRPanopticInference]):
        super().__init__()
        loosest = {type(rule): rule for rule in sorted(rules, key=lambda r: -r.score_thresh)}
        self._rules = list(loosest.values())

    def keep(self, pred_logits: torch.Tensor) -> torch.Tensor:
        keep = torch.stack([rule.keep(pred_logits) for rule in self._rules]).any(0)
        self._logits = pred_logits[keep]
        return keep

    def forward(
        self, mask_logits: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, frame: Frame
    ) -> ImageMasks:
        # Those of the next image of the batch.
        logits, self._logits = self._logits[: len(scores)], self._logits[len(scores) :]
        return ImageMasks(logits, mask_logits, scores, labels, frame)


def count_image(
    rules: Sequence[DETRPanopticInference], masks: ImageMasks, item: dict[str, Any]
) -> list[tuple[list[int], PQStat]]:
    """Count the matches of the image ``item`` under every rule. Equal results are counted once.

    Returns:
        for each different result the indices of its rules and the sums of panopticapi, by
        contiguous category id.
    """
    png = item["pan_seg_file_name"]
    check_prediction_size(item, masks.frame.output, png)
    rows, truth = np.unique(read_panoptic_png(png), return_inverse=True)
    scores, labels = masks.scores.tolist(), masks.labels.tolist()
    results: dict[Any, tuple[list[int], PQStat]] = {}
    for kind in dict.fromkeys(map(type, rules)):
        same_kind = {index: rule for index, rule in enumerate(rules) if type(rule) is kind}
        by_score = {rule.score_thresh: rule for rule in same_kind.values()}
        kept = {
            score: rule.keep(masks.pred_logits).nonzero()[:, 0].tolist()
            for score, rule in by_score.items()
        }
        any_rule, assigner = next(iter(same_kind.values())), None
        if any(kept.values()):
            arguments = any_rule.pixel_values(*masks[1:3]), masks.mask_logits, masks.frame
            options = {"truth": truth, "num_rows": len(rows), "sets": list(kept.values())}
            assigner = HistogramAssigner(*arguments, **options)
        ranking = any_rule.rank_masks(*masks[1:3], masks.frame)
        remaining: dict[Any, list[int]] = {}
        for index, rule in same_kind.items():
            queries = kept[rule.score_thresh]
            key = tuple(queries), rule.overlap_thresh
            if key not in remaining:
                remaining[key] = rule.remove_duplicates(ranking, queries)
            histogram, segments = rule.find_segments(assigner, scores, labels, remaining[key])
            result = kind, tuple(tuple(s["queries"]) for s in segments)
            if result not in results:
                pixels = [histogram[:, s["queries"]].sum(1) for s in segments]
                pixels = np.stack(pixels or [np.bincount(truth.ravel())], axis=1)
                columns = np.arange(1, 1 + len(segments)) if segments else np.zeros(1, int)
                segments = [{**s, "id": i} for i, s in enumerate(segments, start=1)]
                stat = count_pairs(rows, columns, pixels, item["segments_info"], segments)
                results[result] = [], stat
            results[result][0].append(index)
    return list(results.values())


@torch.no_grad()
def count_settings(
    cfg: CfgNode, settings: Sequence[Setting], num_groups: int
) -> tuple[np.ndarray, int]:
    """Run the model once over the first set of ``DATASETS.TEST``; count the matches of S settings.

    Returns:
        G x S x K x 4 sums of IoU, TP, FP and FN for G random groups of images, and the number of
        images.

    Raises:
        UserError: the weights do not fit, or an image differs in size from its annotation.
    """
    name = cfg.DATASETS.TEST[0]
    rules = build_rules(settings, thing_class_ids(MetadataCatalog.get(name)))
    model = build_model(cfg).eval()
    PanopticCheckpointer(model).load(cfg.MODEL.WEIGHTS, complete=True)
    model.panoptic_inference = MaskCollector(rules)
    items = {item["image_id"]: item for item in DatasetCatalog.get(name)}
    groups = np.random.default_rng(0).permutation(len(items)) % num_groups
    group_of = dict(zip(items, groups.tolist(), strict=True))
    counts = np.zeros((num_groups, len(settings), model.num_classes, 4))
    pending: deque = deque()

    def add_oldest() -> None:
        group, future = pending.popleft()
        for indices, stat in future.result():
            for category, sums in stat.pq_per_cat.items():
                counts[group, indices, category] += [sums.iou, sums.tp, sums.fp, sums.fn]

    loader = PanopticTrainer.build_test_loader(cfg, name)
    with ThreadPoolExecutor(_NUM_THREADS) as pool, tqdm(total=len(items), unit="image") as bar:
        for inputs in loader:
            for image, output in zip(inputs, model(inputs), strict=True):
                masks, item = output["panoptic_seg"], items[image["image_id"]]
                future = pool.submit(count_image, rules, masks, item)
                pending.append((group_of[image["image_id"]], future))
                bar.update()
            while len(pending) > 2 * _NUM_THREADS:
                add_oldest()
        while pending:
            add_oldest()
    return counts, len(items)
