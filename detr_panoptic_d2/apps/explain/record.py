"""Record all intermediate results between images and the panoptic result.

The steps of the model return most of them. Forward hooks collect the others.

Shapes: B images, N queries, C channels, M heads, h x w is the size of res5, H2 x W2 that of res2,
S = h * w, Q is the number of recorded queries of an image.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.structures import ImageList
from torch import nn
from torchvision.ops import box_convert

from ...errors import UserError
from ...modeling.meta_arch import PanopticDETR
from ...modeling.structures import Detections, Frame

# If no query of an image is kept, this number of queries with the best scores is recorded.
_NUM_BEST_QUERIES = 5


class AttentionCall(NamedTuple):
    """A call of an attention module: query B x T x C, key B x S x C, padding B x S bool or None."""

    module: nn.MultiheadAttention
    query: torch.Tensor
    key: torch.Tensor
    padding: torch.Tensor | None

    def weights(self, image: int, rows: torch.Tensor) -> torch.Tensor:
        """Return the attention weights M x len(rows) x S of some queries of one image."""
        index = slice(image, image + 1)
        padding = None if self.padding is None else self.padding[index]
        rows = rows.to(self.query.device)
        query, key = self.query[index, rows], self.key[index]
        return self.module(query, key, key, padding, average_attn_weights=False)[1][0]


class ImageRecord(NamedTuple):
    """The record of one image of the batch.

    Attributes:
        frame: sizes of canvas, image and output.
        queries: Q query indices, best score first.
        kept: whether these are the queries that the panoptic inference keeps. False: it keeps none,
            and these have the best scores.
        scores, labels: Q, best class and its probability.
        boxes: Q x 4, (x0, y0, x1, y1) in pixels of the canvas.
        box_attention: Q x M x h x w.
        steps: by name, Q x h_i x w_i: channel mean after each step of the mask head.
        mask_logits: Q x H2 x W2.
        panoptic: the model's result, ids and segments.
    """

    frame: Frame
    queries: torch.Tensor
    kept: bool
    scores: torch.Tensor
    labels: torch.Tensor
    boxes: torch.Tensor
    box_attention: torch.Tensor
    steps: dict[str, torch.Tensor]
    mask_logits: torch.Tensor
    panoptic: tuple[torch.Tensor, list[dict[str, Any]]]


class Recording(NamedTuple):
    """The record of one batch.

    Attributes:
        images: the padded batch, normalised.
        detections: features, memory, decoder outputs, logits and boxes.
        position: B or 1 x C x h x w.
        encoder: the self-attention of each encoder layer.
        decoder: the cross-attention of each decoder layer.
        per_image: one record per image.
    """

    images: ImageList
    detections: Detections
    position: torch.Tensor
    encoder: list[AttentionCall]
    decoder: list[AttentionCall]
    per_image: list[ImageRecord]


@torch.no_grad()
def record(model: PanopticDETR, batched_inputs: list[dict[str, Any]]) -> Recording:
    """Run a batch, padded to one canvas, and record the intermediate results.

    Args:
        model: in eval mode, with a mask head. Not compiled, because then hooks do not run.
        batched_inputs: inputs of the model.

    Raises:
        UserError: the model has no mask head.
    """
    if model.mask_head is None:
        raise UserError("MODEL.MASK_ON is False: without masks there is no panoptic result.")
    rule = model.panoptic_inference
    with _collect_outputs(model) as outputs:
        images = model.preprocess(batched_inputs)
        detections = model.detect(images)
        selection = model.select(detections)
        keep = rule.keep(detections.pred_logits[-1]).cpu()
        best = selection.scores.topk(min(_NUM_BEST_QUERIES, keep.shape[1]), dim=1).indices
        best = torch.zeros_like(keep).scatter_(1, best, True)
        recorded = torch.where(keep.any(1, keepdim=True), keep, best)
        masks = model.predict_masks(detections, *recorded.nonzero(as_tuple=True))
    position, encoder, decoder = (outputs.pop(key) for key in ("position", "encoder", "decoder"))
    per_query = {"masks": masks, **{name: torch.cat(parts) for name, parts in outputs.items()}}
    counts = recorded.sum(1).tolist()
    parts = {name: values.split(counts) for name, values in per_query.items()}
    per_image = []
    for i, x in enumerate(batched_inputs):
        height, width = (int(v) for v in images.image_sizes[i])
        output = x.get("height", height), x.get("width", width)
        frame = Frame(tuple(images.tensor.shape[-2:]), (height, width), output)
        scores, labels = selection.scores[i, recorded[i]], selection.labels[i, recorded[i]]
        kept = bool(keep[i].any())
        num_kept = len(scores) if kept else 0
        panoptic = rule(parts["masks"][i][:num_kept], scores[:num_kept], labels[:num_kept], frame)
        queries = recorded[i].nonzero()[:, 0]
        boxes = box_convert(detections.pred_boxes[-1, i].cpu()[queries], "cxcywh", "xyxy")
        boxes = boxes.clamp(0, 1) * torch.tensor([width, height, width, height])
        order = scores.argsort(descending=True)
        values = {name: split[i][order.to(split[i].device)] for name, split in parts.items()}
        per_image.append(
            ImageRecord(
                frame=frame,
                queries=queries[order],
                kept=kept,
                scores=scores[order],
                labels=labels[order],
                boxes=boxes[order],
                mask_logits=values.pop("masks"),
                box_attention=values.pop("box_attention"),
                steps=values,
                panoptic=panoptic,
            )
        )
    return Recording(images, detections, position[-1], encoder, decoder, per_image)


@contextmanager
def _collect_outputs(model: PanopticDETR) -> Iterator[dict[str, list]]:
    """Collect, within the context, what the steps do not return."""
    outputs: dict[str, list] = defaultdict(list, encoder=[], decoder=[])

    def add_attention(part, module, args, output):
        query, key, _, *padding = args
        outputs[part].append(AttentionCall(module, query, key, *(padding or [None])))

    def add_step(name, module, args, output):
        # The mean is taken now, because the mask head applies the ReLU later, in place.
        outputs[name].append(output.relu().mean(1).float())

    with ExitStack() as stack:

        def add_hook(module, hook):
            stack.callback(module.register_forward_hook(hook).remove)

        add_hook(model.position_embedding, lambda _, args, out: outputs["position"].append(out))
        add_hook(model.mask_head, lambda _, args, out: outputs["box_attention"].append(args[1]))
        for layer in model.transformer.encoder.layers:
            add_hook(layer.self_attn, partial(add_attention, "encoder"))
        for layer in model.transformer.decoder.layers:
            add_hook(layer.multihead_attn, partial(add_attention, "decoder"))
        for name, module in model.mask_head.named_children():
            if isinstance(module, nn.GroupNorm):
                add_hook(module, partial(add_step, name))
        yield outputs
