"""What happens on the way from images to the panoptic result, kept for a look at it.

The model is entered at its steps; forward hooks add what stays inside of them.

Shapes: B images, N queries, C channels, M heads, h x w the size of res5, H2 x W2 that of res2,
S = h * w; Q queries of an image that are looked at, P of all images together.
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

# Queries that are looked at where none of an image is kept: those of best score.
_BEST = 5


class AttentionCall(NamedTuple):
    """A call of an attention module: query B x T x C, key B x S x C, padding B x S bool or None."""

    module: nn.MultiheadAttention
    query: torch.Tensor
    key: torch.Tensor
    padding: torch.Tensor | None

    def weights(self, image: int, rows: torch.Tensor) -> torch.Tensor:
        """Attention weights M x len(rows) x S of some queries of one image."""
        one = slice(image, image + 1)
        padding = None if self.padding is None else self.padding[one]
        rows = rows.to(self.query.device)
        query, key = self.query[one, rows], self.key[one]
        return self.module(query, key, key, padding, average_attn_weights=False)[1][0]


class ImageRecord(NamedTuple):
    """What belongs to one image of the batch.

    Attributes:
        frame: sizes of canvas, image and output.
        queries: Q query indices, best score first.
        kept: the queries are those that the panoptic inference keeps. False: it keeps none, and
            these are the ones of best score.
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
    """One batch on its way through the model.

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

    def shapes(self) -> list[tuple[str, str]]:
        """Names of the tensors in order, each with its shape, such as "2 x 128 x 6 x 8"."""
        d, first = self.detections, self.per_image[0]
        batch, queries = len(self.images), d.hs.shape[2]
        heads, *grid = first.box_attention.shape[1:]
        cells, pairs = grid[0] * grid[1], sum(len(one.queries) for one in self.per_image)
        table = {
            "padded input": self.images.tensor.shape,
            "padding mask": () if d.padding is None else d.padding.shape,
            **{name: d.features[name].shape for name in ("res2", "res3", "res4", "res5")},
            "projected res5": d.src_proj.shape,
            "position encoding": self.position.shape,
            f"encoder self-attention, each of {len(self.encoder)}": (batch, heads, cells, cells),
            "memory": d.memory.shape,
            "decoder output hs": d.hs.shape,
            "class logits": d.pred_logits.shape,
            "boxes": d.pred_boxes.shape,
            f"decoder cross-attention, each of {len(self.decoder)}": (batch, heads, queries, cells),
            "box-attention maps": (pairs, heads, *grid),
            "mask logits": (pairs, *first.mask_logits.shape[1:]),
        }
        for i, one in enumerate(self.per_image):
            table[f"panoptic map of image {i + 1}"] = one.frame.output
        return [(name, " x ".join(map(str, size)) or "none") for name, size in table.items()]


@torch.no_grad()
def record(model: PanopticDETR, batched_inputs: list[dict[str, Any]]) -> Recording:
    """Run a batch, padded to one canvas, and keep what happens on the way.

    Args:
        model: in eval mode, with a mask head; not compiled, since hooks do not see inside then.
        batched_inputs: as for the model.

    Raises:
        UserError: the model has no mask head.
    """
    if model.mask_head is None:
        raise UserError("MODEL.MASK_ON is False: without masks there is no panoptic result.")
    rule = model.panoptic_inference
    with _watched(model) as seen:
        images = model.preprocess(batched_inputs)
        detections = model.detect(images)
        selection = model.select(detections)
        keep = rule.keep(detections.pred_logits[-1]).cpu()
        best = selection.scores.topk(min(_BEST, keep.shape[1]), dim=1).indices
        best = torch.zeros_like(keep).scatter_(1, best, True)
        wanted = torch.where(keep.any(1, keepdim=True), keep, best)
        masks = model.predict_masks(detections, *wanted.nonzero(as_tuple=True))
    position, encoder, decoder = (seen.pop(key) for key in ("position", "encoder", "decoder"))
    of_pairs = {"masks": masks, **{name: torch.cat(parts) for name, parts in seen.items()}}
    counts = wanted.sum(1).tolist()
    parts = {name: values.split(counts) for name, values in of_pairs.items()}
    per_image = []
    for i, x in enumerate(batched_inputs):
        height, width = (int(v) for v in images.image_sizes[i])
        output = x.get("height", height), x.get("width", width)
        frame = Frame(tuple(images.tensor.shape[-2:]), (height, width), output)
        scores, labels = selection.scores[i, wanted[i]], selection.labels[i, wanted[i]]
        kept = bool(keep[i].any())
        number = len(scores) if kept else 0
        panoptic = rule(parts["masks"][i][:number], scores[:number], labels[:number], frame)
        queries = wanted[i].nonzero()[:, 0]
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
def _watched(model: PanopticDETR) -> Iterator[dict[str, list]]:
    """Collect what the steps do not return, by forward hooks, as long as the context lasts."""
    seen: dict[str, list] = defaultdict(list, encoder=[], decoder=[])

    def see_attention(part, module, args, output):
        query, key, _, *padding = args
        seen[part].append(AttentionCall(module, query, key, *(padding or [None])))

    def see_step(name, module, args, output):
        # Reduced at once: the mask head goes on in the same memory. It applies the ReLU itself.
        seen[name].append(output.relu().mean(1).float())

    with ExitStack() as stack:

        def watch(module, see):
            stack.callback(module.register_forward_hook(see).remove)

        watch(model.position_embedding, lambda _, args, out: seen["position"].append(out))
        watch(model.mask_head, lambda _, args, out: seen["box_attention"].append(args[1]))
        for layer in model.transformer.encoder.layers:
            watch(layer.self_attn, partial(see_attention, "encoder"))
        for layer in model.transformer.decoder.layers:
            watch(layer.multihead_attn, partial(see_attention, "decoder"))
        for name, module in model.mask_head.named_children():
            if isinstance(module, nn.GroupNorm):
                watch(module, partial(see_step, name))
        yield seen
