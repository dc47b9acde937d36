"""The two graphs of an exported model.

Shapes: H x W the network's input, N queries, K classes, C hidden channels, P kept queries; h x w
is the size of res5, H2 x W2 that of res2.
"""

import copy

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from ..modeling.mask_head import MaskHeadSmallConv
from ..modeling.meta_arch import PanopticDETR
from ..modeling.panoptic_inference import (
    DETRPanopticInference,
    MaskNMSPanopticInference,
    OfficialPanopticInference,
)

# Sizes of the network's input, in pixels, for which the graphs are valid.
MIN_SIZE, MAX_SIZE = 64, 1344
DETECTOR_OUTPUTS = ("pred_logits", "pred_boxes", "hs", "memory", "map5", "map4", "map3", "map2")
MASK_INPUTS = ("queries", "memory", "map5", "map4", "map3", "map2")


class DetectorGraph(nn.Module):
    """Everything before the mask head needs to know which queries are kept."""

    def __init__(self, model: PanopticDETR):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            image: 1 x 3 x H x W, 0..255, channels in the order of ``INPUT.FORMAT``.

        Returns:
            ``DETECTOR_OUTPUTS``: N x (K + 1), N x 4, N x C, 1 x C x h x w, and the image features
            of the mask head at the sizes of res5 to res2.
        """
        model = self.model
        x = (image.to(model.pixel_mean.dtype) - model.pixel_mean) / model.pixel_std
        out = model.detect(ImageList(x, [tuple(x.shape[-2:])]))
        features = [out.features[name] for name in ("res4", "res3", "res2")]
        maps = model.mask_head.image_maps(out.src_proj, features)
        return out.pred_logits[-1, 0], out.pred_boxes[-1, 0], out.hs[-1, 0], out.memory, *maps


class MaskGraph(nn.Module):
    """Mask logits of the kept queries."""

    def __init__(self, model: PanopticDETR):
        super().__init__()
        self.bbox_attention, self.mask_head = model.bbox_attention, model.mask_head
        for name, norm in list(self.mask_head.named_children()):
            if isinstance(norm, nn.GroupNorm):
                setattr(self.mask_head, name, _GroupNorm(norm))

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor, *maps: torch.Tensor
    ) -> torch.Tensor:
        """P x C rows of ``hs`` and the outputs of :class:`DetectorGraph` to P x H2 x W2 logits."""
        attention = self.bbox_attention(queries[None], memory)[0]
        image_index = torch.zeros(queries.shape[0], dtype=torch.long, device=queries.device)
        return self.mask_head.query_masks(attention, image_index, *maps)


class _GroupNorm(nn.Module):
    """Group norm as a layer norm of each group, which works in ONNX with 0 queries as well."""

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """P x C x h x w to P x C x h x w."""
        norm = self.norm
        pairs, channels, height, width = x.shape
        length = channels // norm.num_groups * height * width
        groups = x.reshape(pairs, norm.num_groups, length)
        x = F.layer_norm(groups, (length,), eps=norm.eps).reshape(pairs, channels, height, width)
        return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def _check_exportable(model: nn.Module, cfg: CfgNode, size: tuple[int, int] | None) -> None:
    """Raise a ``UserError`` if the graphs and the runtime do not support the model or its size."""
    parts = [type(model)]
    parts += [type(getattr(model, x, None)) for x in ("mask_head", "panoptic_inference")]
    rules = (DETRPanopticInference, OfficialPanopticInference, MaskNMSPanopticInference)
    if parts[:2] != [PanopticDETR, MaskHeadSmallConv] or parts[2] not in rules:
        raise UserError(
            "Only PanopticDETR with MODEL.MASK_ON, MODEL.DETR.MASK_HEAD.NAME MaskHeadSmallConv and "
            f"MODEL.DETR.TEST.PANOPTIC_INFERENCE {' or '.join(r.__name__ for r in rules)} can "
            f"be exported, not {', '.join(part.__name__ for part in parts)}."
        )
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if size is None and short and not MIN_SIZE <= short <= longest <= MAX_SIZE:
        raise UserError(
            f"INPUT.MIN_SIZE_TEST is {short} and INPUT.MAX_SIZE_TEST {longest}, but the graphs "
            f"support sizes from {MIN_SIZE} to {MAX_SIZE}. Change the keys, or set one --size HxW."
        )


@torch.no_grad()
def export_programs(
    model: PanopticDETR, cfg: CfgNode, size: tuple[int, int] | None
) -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram]:
    """Export the detector and the mask graph of a model. The model is not changed.

    Args:
        size: (H, W) of the network's input; None: any size from ``MIN_SIZE`` to ``MAX_SIZE``.

    Raises:
        UserError: the model or its size is not supported, or ``torch.export`` fails on the
            backbone.
    """
    _check_exportable(model, cfg, size)
    model = copy.deepcopy(model).cpu().float().fold_for_inference()
    # torch.export treats dimensions of size 1 and equal dimensions as constants.
    image = torch.zeros(1, 3, *(size or (224, 288)))
    detector = DetectorGraph(model)
    _, _, hs, *rest = detector(image)
    masks = MaskGraph(model)
    kept = torch.export.Dim("kept", max=hs.shape[0])
    free = image_shapes = None
    if size is None:
        free = dict.fromkeys((2, 3), torch.export.Dim.AUTO)
        sides = [torch.export.Dim(x, min=MIN_SIZE, max=MAX_SIZE) for x in ("height", "width")]
        image_shapes = (dict(zip((2, 3), sides, strict=True)),)
    mask_shapes = ({0: kept}, free, tuple(free for _ in rest[1:]))
    try:
        program = torch.export.export(detector, (image,), dynamic_shapes=image_shapes, strict=False)
    except Exception as error:
        # torch.export raises errors of many classes on a backbone that it does not support.
        name = type(model.backbone).__name__
        raise UserError(
            f"The backbone {name} cannot be exported for free image sizes "
            f"({str(error).splitlines()[0]}). Try one size, --size HxW, or torch 2.14."
        ) from error
    mask_program = torch.export.export(
        masks, (hs[:3], *rest), dynamic_shapes=mask_shapes, strict=False
    )
    return program, mask_program
