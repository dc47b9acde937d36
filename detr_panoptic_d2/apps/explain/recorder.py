"""Record what the model makes on the way from images to the panoptic result.

The stages are taken from the model's own steps (``preprocess``, ``detect``, ``predict_masks``,
``panoptic_inference``) and from forward hooks that live only while :func:`record` runs, so there
is no second forward pass to keep in step and nothing to pay when it is not used.

Shapes: B images, N queries, P (image, query) pairs that are looked at, C channels, M heads,
h x w the size of res5, H2 x W2 that of res2.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from detectron2.structures import ImageList
from torch import nn

from ...errors import UserError
from ...modeling.mask_ops import Frame, argmax_at_output
from ...modeling.meta_arch import Detections, PanopticDETR
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
        kept: the queries are those that the inference hook keeps. False: it keeps none, and these
            are the ones of best score.
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


@contextmanager
def captured_inputs(module: nn.Module) -> Iterator[list[tuple]]:
    """The positional inputs of every call of a module, as long as the context lasts."""
    calls: list[tuple] = []

    def remember(_, args):
        calls.append(args)

    handle = module.register_forward_pre_hook(remember)
    try:
        yield calls
    finally:
        handle.remove()


@dataclass
class _Hooks:
    """What the forward hooks see."""

    position: list[torch.Tensor] = field(default_factory=list)
    attention: dict[str, list[AttentionCall]] = field(
        default_factory=lambda: {"encoder": [], "decoder": []}
    )
    steps: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def on(self, model: PanopticDETR) -> Iterator[None]:
        """Register the hooks for as long as the context lasts."""
        transformer = model.transformer
        attention = {
            "encoder": [layer.self_attn for layer in transformer.encoder.layers],
            "decoder": [layer.multihead_attn for layer in transformer.decoder.layers],
        }
        with ExitStack() as stack:
            hook = model.position_embedding.register_forward_hook(self._position)
            stack.callback(hook.remove)
            for name, modules in attention.items():
                for module in modules:
                    hook = functools.partial(self._attention, name)
                    stack.callback(module.register_forward_pre_hook(hook).remove)
            for name, module in model.mask_head.named_children():
                if isinstance(module, nn.GroupNorm):
                    hook = functools.partial(self._step, name)
                    stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _position(self, module, args, output):
        self.position.append(output)

    def _attention(self, name, module, args):
        query, key, _, *rest = args
        padding = rest[0] if rest else None
        self.attention[name].append(AttentionCall(module, query, key, padding))

    def _step(self, name, module, args, output):
        # Reduced at once: the mask head goes on in the same memory. It applies the ReLU itself.
        self.steps.setdefault(name, []).append(output.relu().mean(1).float())
        self.channels[name] = output.shape[1]


@torch.no_grad()
def record(
    model: PanopticDETR,
    batched_inputs: list[dict[str, Any]],
    fallback: int = 5,
    panoptic_inference: nn.Module | None = None,
) -> Recording:
    """Run a batch, padded to one canvas, and keep every stage.

    Args:
        model: in eval mode, with a mask head.
        batched_inputs: as for the model.
        fallback: where no query of an image is kept, this many of best score are looked at.
        panoptic_inference: a panoptic inference hook to use instead of the model's.

    Raises:
        UserError: the model is in training mode or has no mask head.
    """
    if model.training:
        raise UserError("The model is in training mode: call model.eval() before record(model).")
    if model.mask_head is None:
        raise UserError("MODEL.MASK_ON is False: without masks there is no panoptic result.")
    hook = model.panoptic_inference if panoptic_inference is None else panoptic_inference
    hooks = _Hooks()
    with hooks.on(model), captured_inputs(model.mask_head) as mask_head_calls:
        images = model.preprocess(batched_inputs)
        detections = model.detect(images)
        logits = detections.pred_logits[-1]
        keep = hook.keep(logits).cpu()
        wanted = torch.where(keep.any(1, keepdim=True), keep, _best_objects(logits, fallback))
        image_index, query_index = wanted.nonzero(as_tuple=True)
        masks = model.predict_masks(detections, image_index, query_index)
    steps = {name: torch.cat(parts) for name, parts in hooks.steps.items()}
    shapes = {k: (len(v), hooks.channels[k], *v.shape[1:]) for k, v in steps.items()}
    probabilities = logits.float().softmax(-1)[..., :-1].cpu()
    per_image, start = [], 0
    for i, x in enumerate(batched_inputs):
        pairs = slice(start, start + int(wanted[i].sum()))
        start = pairs.stop
        frame = _frame(images, i, x)
        scores, labels = probabilities[i, wanted[i]].max(-1)
        chosen = masks[pairs], scores, labels
        kept = bool(keep[i].any())
        panoptic = hook(*(chosen if kept else [t[:0] for t in chosen]), frame)
        owner = argmax_at_output(masks[pairs], frame)[0]
        queries = query_index[pairs]
        per_image.append(ImageRecord(frame, pairs, queries, kept, scores, labels, owner, panoptic))
    return Recording(
        images=images,
        detections=detections,
        position=hooks.position[-1],
        encoder=hooks.attention["encoder"],
        decoder=hooks.attention["decoder"],
        box_attention=mask_head_calls[-1][1],
        steps=steps,
        step_shapes=shapes,
        mask_logits=masks,
        per_image=per_image,
    )


def _best_objects(logits: torch.Tensor, count: int) -> torch.Tensor:
    """B x N bool on the host: the queries of best score for any class but no-object."""
    scores = logits.float().softmax(-1)[..., :-1].amax(-1).cpu()
    best = scores.topk(min(count, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def _frame(images: ImageList, i: int, x: dict[str, Any]) -> Frame:
    size = tuple(int(v) for v in images.image_sizes[i])
    output = (x.get("height", size[0]), x.get("width", size[1]))
    return Frame(tuple(images.tensor.shape[-2:]), size, output)
