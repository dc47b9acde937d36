"""Data that the steps of :class:`.meta_arch.PanopticDETR` pass on.

Shapes: B images, N queries, K classes, C hidden channels, L decoder layers; h x w is the size of
res5.
"""

from typing import NamedTuple

import torch


class Detections(NamedTuple):
    """Outputs of :class:`.detector.Detector` for a batch.

    Attributes:
        features: res2 to res5.
        src_proj: B x C x h x w, the projected res5.
        padding: B x h x w bool, True on padded cells; None if there are none.
        memory: B x C x h x w, the encoded image.
        hs: L x B x N x C decoder outputs (L is 1 at inference).
        pred_logits: L x B x N x (K + 1).
        pred_boxes: L x B x N x 4, (cx, cy, w, h) relative to each image without padding.
    """

    features: dict[str, torch.Tensor]
    src_proj: torch.Tensor
    padding: torch.Tensor | None
    memory: torch.Tensor
    hs: torch.Tensor
    pred_logits: torch.Tensor
    pred_boxes: torch.Tensor


class Selection(NamedTuple):
    """The queries that the results are made of; all tensors are B x N and on the host.

    Attributes:
        scores, labels: probability and index of the best object class.
        panoptic: whether the query takes part in the panoptic result.
        instance: whether the query is an instance.
        masked: whether its mask is computed.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    panoptic: torch.Tensor
    instance: torch.Tensor
    masked: torch.Tensor


class Frame(NamedTuple):
    """Where an image lies on the mask grid, all as (height, width) in pixels.

    Attributes:
        canvas: size of the padded network input, which the mask grid covers.
        image: size of the image on the canvas, without padding.
        output: size of the results.
    """

    canvas: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]
