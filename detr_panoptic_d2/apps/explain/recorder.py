"""Every stage of the way from images to the panoptic result, kept as the model goes through it.

The model is entered at its steps; forward hooks add what stays inside of them.

Shapes: B images, N queries, P (image, query) pairs that are looked at, C channels, M heads,
h x w the size of res5, H2 x W2 that of res2.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.structures import ImageList
from torch import nn

from ...errors import UserError
from ...modeling.mask_ops import Frame, argmax_at_output
from ...modeling.meta_arch import PanopticDETR
from ...modeling.structures import Detections
from ...modeling.transformer import MultiheadAttention

Panoptic = tuple[torch.Tensor, list[dict[str, Any]]]


class AttentionCall(NamedTuple):
    """The inputs of one call of an attention module, from which its weights can be worked out.

    Attributes:
        module: the module that was called.
        query: B x T x C.
        key: B x S x C.
        padding: B x S bool, or None.
    """

    module: MultiheadAttention
    query: torch.Tensor
    key: torch.Tensor
    padding: torch.Tensor | None

    def weights(self, image: int, rows: torch.Tensor) -> torch.Tensor:
        """Attention weights M x len(rows) x S of some queries of one image."""
        one = slice(image, image + 1)
        padding = None if self.padding is None else self.padding[one]
        rows = rows.to(self.query.device)
        return self.module.attention_weights(self.query[one, rows], self.key[one], padding)[0]


@dataclass
class ImageRecord:
    """What belongs to one image of the batch.

    Attributes:
        frame: sizes of canvas, image and output.
        pairs: which of the P pairs are this image's.
        queries: Q query indices, ascending.
        kept: the queries are those that the panoptic inference keeps. False: it keeps none, and
            these are the ones of best score.
        scores, labels: Q, best class and its probability.
        owner: H x W, position (in ``queries``) of the query that wins each output pixel.
        panoptic: the model's result.
    """

    frame: Frame
    pairs: slice
    queries: torch.Tensor
    kept: bool
    scores: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    panoptic: Panoptic


@dataclass
class Recording:
    """All stages of one batch.

    Attributes:
        images: the padded batch, normalised.
        detections: features, memory, decoder outputs, logits and boxes.
        position: B or 1 x C x h x w.
        encoder: the self-attention of each encoder layer.
        decoder: the cross-attention of each decoder layer.
        box_attention: P x M x h x w.
        steps: by name, P x h_i x w_i: channel mean of each step of the mask head.
        step_shapes: by name, the full shape (P, C_i, h_i, w_i).
        mask_logits: P x H2 x W2.
        per_image: one record per image.
    """

    images: ImageList
    detections: Detections
    position: torch.Tensor
    encoder: list[AttentionCall]
    decoder: list[AttentionCall]
    box_attention: torch.Tensor
    steps: dict[str, torch.Tensor]
    step_shapes: dict[str, tuple[int, ...]]
    mask_logits: torch.Tensor
    per_image: list[ImageRecord]


@torch.no_grad()
def record(
    model: PanopticDETR,
    batched_inputs: list[dict[str, Any]],
    fallback: int = 5,
    panoptic_inference: nn.Module | None = None,
) -> Recording:
    """Run a batch, padded to one canvas, and keep every stage.

    Args:
        model: in eval mode, with a mask head; not compiled, since hooks do not see inside then.
        batched_inputs: as for the model.
        fallback: where no query of an image is kept, this many of best score are looked at.
        panoptic_inference: to use instead of the model's.

    Raises:
        UserError: the model has no mask head.
    """
    if model.mask_head is None:
        raise UserError("MODEL.MASK_ON is False: without masks there is no panoptic result.")
    rule = model.panoptic_inference if panoptic_inference is None else panoptic_inference
    with _inside(model) as seen:
        images = model.preprocess(batched_inputs)
        detections = model.detect(images)
        selection = model.select(detections)
        keep = rule.keep(detections.pred_logits[-1]).cpu()
        best = selection.scores.topk(min(fallback, keep.shape[1]), dim=1).indices
        best = torch.zeros_like(keep).scatter_(1, best, True)
        wanted = torch.where(keep.any(1, keepdim=True), keep, best)
        image_index, query_index = wanted.nonzero(as_tuple=True)
        masks = model.predict_masks(detections, image_index, query_index)
    per_image, start = [], 0
    for i, x in enumerate(batched_inputs):
        pairs = slice(start, start + int(wanted[i].sum()))
        start = pairs.stop
        size = tuple(int(v) for v in images.image_sizes[i])
        output = x.get("height", size[0]), x.get("width", size[1])
        frame = Frame(tuple(images.tensor.shape[-2:]), size, output)
        scores, labels = selection.scores[i, wanted[i]], selection.labels[i, wanted[i]]
        kept = bool(keep[i].any())
        count = len(scores) if kept else 0
        panoptic = rule(masks[pairs][:count], scores[:count], labels[:count], frame)
        owner = argmax_at_output(masks[pairs], frame)[0]
        queries = query_index[pairs]
        per_image.append(ImageRecord(frame, pairs, queries, kept, scores, labels, owner, panoptic))
    return Recording(
        images=images,
        detections=detections,
        position=seen["position"][-1],
        encoder=seen["encoder"],
        decoder=seen["decoder"],
        box_attention=seen["attention maps"][-1],
        steps={name: torch.cat(seen[name]) for name in seen["steps"]},
        step_shapes={
            name: (len(masks), *shape[1:])
            for name, shape in zip(seen["steps"], seen["shapes"], strict=True)
        },
        mask_logits=masks,
        per_image=per_image,
    )


@contextmanager
def _inside(model: PanopticDETR) -> Iterator[dict[str, list]]:
    """Collect what the steps do not return, by forward hooks, as long as the context lasts."""
    seen: dict[str, list] = defaultdict(list)
    transformer = model.transformer

    def see_attention(part, module, args, output):
        query, key, _, *padding = args
        call = AttentionCall(module, query, key, padding[0] if padding else None)
        seen[part].append(call)

    def see_step(name, module, args, output):
        # Reduced at once: the mask head goes on in the same memory. It applies the ReLU itself.
        seen[name].append(output.relu().mean(1).float())
        if name not in seen["steps"]:
            seen["steps"].append(name)
            seen["shapes"].append(tuple(output.shape))

    with ExitStack() as stack:

        def watch(module, see):
            stack.callback(module.register_forward_hook(see).remove)

        watch(model.position_embedding, lambda _, args, out: seen["position"].append(out))
        watch(model.mask_head, lambda _, args, out: seen["attention maps"].append(args[1]))
        for layer in transformer.encoder.layers:
            watch(layer.self_attn, partial(see_attention, "encoder"))
        for layer in transformer.decoder.layers:
            watch(layer.multihead_attn, partial(see_attention, "decoder"))
        for name, module in model.mask_head.named_children():
            if isinstance(module, nn.GroupNorm):
                watch(module, partial(see_step, name))
        yield seen
