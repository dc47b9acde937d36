"""DETR without masks: backbone, transformer, class head and box head.

Shapes: B images, N queries, K classes, C hidden channels, L decoder layers; h x w is the size of
res5.
"""

from collections.abc import Sequence

import torch
from detectron2.data.catalog import Metadata
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import nn
from torch.nn import functional as F

from ..checkpoint.translate import translate_state_dict
from ..data.metadata import class_names, dataset_ids
from ..errors import check_value
from .backbone import frozen_norms
from .fold import fold_batch_norms
from .position_encoding import PositionEmbeddingSine
from .structures import Detections
from .transformer import BoxHead, Transformer, at_least_float32


class Detector(nn.Module):
    """DETR's detector (Carion et al. 2020, section 3.2), from images to classes and boxes."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    mask_head: nn.Module | None
    deep_supervision: bool

    def __init__(
        self,
        *,
        backbone: Backbone,
        transformer: Transformer,
        metadata: Metadata,
        hidden_dim: int,
        num_queries: int,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """``metadata`` has the classes of the dataset; ``hidden_dim`` is C, ``num_queries`` N."""
        super().__init__()
        check_value("MODEL.DETR.NUM_OBJECT_QUERIES", num_queries, num_queries >= 1, "1 or more")
        valid = len(pixel_std) == len(pixel_mean) and min(pixel_std, default=0) > 0
        allowed = f"{len(pixel_mean)} numbers above 0, as many as MODEL.PIXEL_MEAN has"
        check_value("MODEL.PIXEL_STD", list(pixel_std), valid, allowed)
        # Loading compares them with the classes of a checkpoint.
        self.dataset_ids, self.class_names = dataset_ids(metadata), class_names(metadata)
        self.num_classes = len(self.dataset_ids)
        self.backbone = backbone
        self.position_embedding = PositionEmbeddingSine(hidden_dim)
        channels = backbone.output_shape()["res5"].channels
        self.input_proj = nn.Conv2d(channels, hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.transformer = transformer
        self.class_embed = nn.Linear(hidden_dim, self.num_classes + 1)
        self.bbox_embed = BoxHead(hidden_dim)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "Detector":
        """Set the training mode. Norms of frozen parts stay in eval mode."""
        super().train(mode)
        for norm in frozen_norms(self):
            norm.eval()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Accept checkpoints of other DETR code bases, whichever checkpointer loads them."""
        translate_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def compile_parts(self, **options) -> None:
        """Compile backbone, transformer and mask head with ``torch.compile(**options)``."""
        for module in (self.backbone, self.transformer, self.mask_head):
            if module is not None:
                module.compile(**options)

    def fold_for_inference(self) -> "Detector":
        """Fold the backbone's batch norms into its convolutions in place; return the model.

        Load the weights first: a folded model can neither be trained nor load checkpoints.
        """
        fold_batch_norms(self.eval().backbone)
        return self

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalize the images and pad them to one canvas."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def detect(self, images: ImageList) -> Detections:
        """Run backbone, transformer, class head and box head on a padded batch."""
        tensor = images.tensor
        if not self.training and tensor.device.type == "cpu":
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        features = self.backbone(tensor)
        res5 = features["res5"]
        padding = _padding_mask(images, res5.shape[-2:])
        pos = self.position_embedding(res5.shape[-2:], padding, res5.device)
        src_proj = self.input_proj(res5)
        intermediate = self.training and self.deep_supervision
        hs, memory = self.transformer(
            src_proj, padding, self.query_embed.weight, pos, return_intermediate=intermediate
        )
        # In bfloat16 a box would be rounded to steps of up to 5 pixels at a width of 1333.
        with torch.autocast(hs.device.type, enabled=False):
            queries = hs.to(self.class_embed.weight.dtype)
            logits, boxes = at_least_float32(self.class_embed(queries)), self.bbox_embed(queries)
        return Detections(features, src_proj, padding, memory, hs, logits, boxes)


def _padding_mask(images: ImageList, size: Sequence[int]) -> torch.Tensor | None:
    """B x h x w bool, True where the nearest canvas pixel is padding; None without padding."""
    canvas = images.tensor.shape[-2:]
    if all(tuple(s) == tuple(canvas) for s in images.image_sizes):
        return None
    padding = images.tensor.new_ones((len(images), *canvas))
    for mask, (height, width) in zip(padding, images.image_sizes, strict=True):
        mask[:height, :width] = 0
    return F.interpolate(padding[:, None], size=tuple(size))[:, 0].to(torch.bool)
