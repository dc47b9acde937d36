"""What the network computes for each query of an image. ``explain`` and ``web`` show it.

Shapes: H x W is the image, Q the number of recorded queries, K classes, M heads, h x w the size of
res5, H2 x W2 that of res2.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib import colormaps
from PIL import Image
from torch import nn
from torchvision.ops import box_convert

from ..engine import Predictor
from ..errors import UserError
from ..modeling.mask_ops import resize_strips
from ..modeling.structures import Frame

# If the rule keeps no query of an image, this number of queries with the best scores is recorded.
_NUM_BEST = 5


class QueryRecord(NamedTuple):
    """Outputs of the network for some queries of an image, in the order of the queries.

    Attributes:
        image: H x W x 3 uint8 RGB.
        frame: sizes of canvas, image and output.
        queries: Q query indices.
        pred_logits: 1 x Q x (K + 1).
        scores, labels: Q, probability of the best object class, and this class.
        boxes: Q x 4, (x0, y0, x1, y1) in pixels of the image.
        cross_attention: Q x h x w, in the last decoder layer, mean over the heads.
        box_attention: Q x M x h x w.
        mask_logits: Q x H2 x W2.
    """

    image: np.ndarray
    frame: Frame
    queries: torch.Tensor
    pred_logits: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    cross_attention: torch.Tensor
    box_attention: torch.Tensor
    mask_logits: torch.Tensor

    def segment(self, rule: nn.Module) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the H x W segment ids and the segments that a panoptic rule makes."""
        kept = rule.keep(self.pred_logits)[0].cpu()
        masks = self.mask_logits[kept.to(self.mask_logits.device)]
        ids, segments = rule(masks, self.scores[kept], self.labels[kept], self.frame)
        return ids.cpu().numpy(), segments

    def find_query(self, ids: np.ndarray, segment: dict[str, Any]) -> int:
        """Return the row of the query that gave a segment of :meth:`segment` its class and score.

        For stuff this is the best of the segment's queries. If scores are equal, the query has the
        highest mask probability in the segment.
        """
        rows = (self.labels == segment["category_id"]) & (self.scores == segment["score"])
        rows = rows.nonzero()[:, 0]
        masks = self.mask_logits[rows.to(self.mask_logits.device)]
        inside = torch.from_numpy(ids == segment["id"]).to(masks.device)
        strips = resize_strips(masks, self.frame)
        sums = sum((strip.sigmoid() * inside[part]).sum((1, 2)) for part, strip in strips)
        return int(rows[int(sums.argmax())])

    def draw_maps(self, row: int, width: int) -> dict[str, np.ndarray]:
        """Draw the attention maps and the mask logits of a query, each ``width`` pixels wide.

        Attention is drawn by its square root, which makes small weights visible, and all heads of
        the box attention have one scale. Purple logits are inside of the mask.
        """
        cross, heads = self.cross_attention[row], self.box_attention[row]
        logits = self.mask_logits[row].float().cpu()
        half = max(float(logits.abs().max()), 1e-3)
        maps = {"cross-attention": colormaps["viridis"]((cross / cross.max()).sqrt().numpy())}
        for number, weights in enumerate((heads / heads.max()).sqrt().numpy(), 1):
            maps[f"box attention, head {number}"] = colormaps["viridis"](weights)
        maps["mask logits"] = colormaps["PuOr"](0.5 + 0.5 * (logits / half).numpy())
        (canvas_height, canvas_width), (image_height, image_width), _ = self.frame
        size = width, max(1, round(width * image_height / image_width))
        pictures = {}
        for name, pixels in maps.items():
            height, columns = pixels.shape[:2]
            box = (
                0,
                0,
                columns * image_width / canvas_width,
                height * image_height / canvas_height,
            )
            picture = Image.fromarray((pixels[..., :3] * 255).astype(np.uint8))
            pictures[name] = np.asarray(picture.resize(size, Image.Resampling.NEAREST, box))
        return pictures


def build_predictor(cfg: CfgNode) -> Predictor:
    """Build the predictor for :func:`record_queries`.

    Raises:
        UserError: there is no mask head.
    """
    if not cfg.MODEL.MASK_ON:
        raise UserError("MODEL.MASK_ON is False: without masks there is no panoptic result.")
    cfg = cfg.clone()
    cfg.defrost()
    # Forward hooks do not run in compiled modules.
    cfg.MODEL.DETR.COMPILE = False
    return Predictor(cfg)


@torch.no_grad()
def record_queries(predictor: Predictor, image: np.ndarray, rule: nn.Module) -> QueryRecord:
    """Run the network on an image.

    Args:
        predictor: from :func:`build_predictor`.
        image: H x W x 3 uint8 RGB.
        rule: its ``keep`` chooses the queries. If it keeps none, those with the best scores are
            recorded.
    """
    model, height, width = predictor.model, *image.shape[:2]
    images = model.preprocess([predictor.prepare(image[:, :, ::-1])])
    frame = Frame(tuple(images.tensor.shape[-2:]), tuple(images.image_sizes[0]), (height, width))
    attention = model.transformer.decoder.layers[-1].multihead_attn
    calls: list[tuple] = []
    hook = attention.register_forward_hook(lambda module, args, output: calls.append(args))
    try:
        detections = model.detect(images)
    finally:
        hook.remove()
    selection = model.select(detections)
    queries = rule.keep(detections.pred_logits[-1])[0].cpu().nonzero()[:, 0]
    if not len(queries):
        scores = selection.scores[0]
        queries = scores.topk(min(_NUM_BEST, len(scores))).indices.sort().values
    rows = queries.to(model.device)
    query, key, _, padding = calls[0]
    weights = attention(query[:, rows], key, key, padding)[1]
    heads = model.bbox_attention(detections.hs[-1][:, rows], detections.memory, detections.padding)
    boxes = box_convert(detections.pred_boxes[-1, 0, rows], "cxcywh", "xyxy").clamp(0, 1).cpu()
    return QueryRecord(
        image=image,
        frame=frame,
        queries=queries,
        pred_logits=detections.pred_logits[-1][:, rows],
        scores=selection.scores[0, queries],
        labels=selection.labels[0, queries],
        boxes=boxes * torch.tensor([width, height, width, height]),
        cross_attention=weights[0].float().view(-1, *heads.shape[-2:]).cpu(),
        box_attention=heads[0].float().cpu(),
        mask_logits=model.predict_masks(detections, torch.zeros_like(queries), queries),
    )
