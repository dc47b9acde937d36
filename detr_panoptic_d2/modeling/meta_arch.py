"""PanopticDETR: DETR with a mask head as a Detectron2 meta architecture.

Shapes: B images, N queries, K classes, C hidden channels, L decoder layers, P (image, query)
pairs whose masks are wanted; h x w is the size of res5.
"""

from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from ..checkpoint.names import adapt
from ..config_check import check_model_config
from ..data.metadata import class_names, dataset_ids, thing_class_ids
from ..data.metadata import num_classes as metadata_num_classes
from ..errors import UserError
from .backbone.fold import FoldedCache
from .backbone.resnet import check_backbone
from .box_head import BoxHead
from .criterion import SetCriterion, zero_of
from .instances import best_things, to_instances
from .mask_head import BoxAttentionMap, build_mask_head
from .mask_ops import semantic_scores
from .matcher import HungarianMatcher, Targets
from .panoptic_inference import Frame, build_panoptic_inference
from .position_encoding import PositionEmbeddingSine
from .transformer import Transformer

__all__ = ["PanopticDETR"]


class Detections(NamedTuple):
    """What the detector (everything but the mask head) makes of a batch.

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


@META_ARCH_REGISTRY.register()
class PanopticDETR(nn.Module):
    """DETR for panoptic segmentation (Carion et al. 2020)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        transformer: Transformer,
        mask_head: nn.Module | None,
        criterion: SetCriterion,
        panoptic_inference: nn.Module,
        num_classes: int,
        hidden_dim: int,
        nheads: int,
        num_queries: int,
        thing_ids: list[int],
        pixel_mean: list[float],
        pixel_std: list[float],
        deep_supervision: bool = True,
        freeze_detector: bool = False,
        panoptic_on: bool = True,
        instance_on: bool = False,
        semantic_on: bool = False,
        max_instances: int = 100,
        pad_mixed_sizes: bool = False,
        compile_modules: bool = False,
        dataset_ids: list[int] | None = None,
        class_names: list[str] | None = None,
    ):
        """
        Args:
            backbone: a backbone with outputs res2 to res5.
            transformer: encoder and decoder.
            mask_head: predicts masks of (image, query) pairs; None for boxes alone.
            criterion: the losses.
            panoptic_inference: the panoptic inference hook.
            num_classes: K, things and stuff.
            hidden_dim, nheads: C and the number of attention heads.
            num_queries: N.
            thing_ids: contiguous class ids that are things.
            pixel_mean, pixel_std: per channel, in the scale of the input.
            deep_supervision: losses after every decoder layer.
            freeze_detector: train the mask head and the box attention only.
            panoptic_on, instance_on, semantic_on: which results inference returns.
            max_instances: most instances per image.
            pad_mixed_sizes: at inference, pad images of different sizes to one canvas.
            compile_modules: see :meth:`compile_parts`.
            dataset_ids, class_names: id in the annotation file and name of each contiguous class;
                they choose the rows of a checkpoint's class head. None: not known.
        """
        super().__init__()
        check_backbone(backbone)
        if mask_head is None and (panoptic_on or semantic_on or freeze_detector):
            raise UserError(
                "MODEL.MASK_ON is False, so there are no masks: set MODEL.DETR.TEST.PANOPTIC_ON, "
                "MODEL.DETR.TEST.SEMANTIC_ON and MODEL.DETR.FREEZE_DETECTOR to False (and "
                "MODEL.DETR.TEST.INSTANCE_ON to True for boxes), or MODEL.MASK_ON to True"
            )
        self.backbone = backbone
        self.position_embedding = PositionEmbeddingSine(hidden_dim)
        channels = backbone.output_shape()["res5"].channels
        self.input_proj = nn.Conv2d(channels, hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.transformer = transformer
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = BoxHead(hidden_dim)
        self.bbox_attention = None if mask_head is None else BoxAttentionMap(hidden_dim, nheads)
        self.mask_head = mask_head
        self.criterion = criterion
        self.panoptic_inference = panoptic_inference
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        self.freeze_detector = freeze_detector
        self.panoptic_on, self.instance_on = panoptic_on, instance_on
        self.semantic_on = semantic_on
        self.max_instances = max_instances
        self.pad_mixed_sizes = pad_mixed_sizes
        self.dataset_ids, self.class_names = dataset_ids, class_names
        is_thing = torch.zeros(num_classes + 1, dtype=torch.bool)
        is_thing[list(thing_ids)] = True
        self.register_buffer("is_thing", is_thing, persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self._folded = FoldedCache()
        if freeze_detector:
            trained = {id(p) for m in (self.bbox_attention, mask_head) for p in m.parameters()}
            for p in self.parameters():
                p.requires_grad_(id(p) in trained)
        if compile_modules:
            self.compile_parts(dynamic=True)

    @classmethod
    def from_config(cls, cfg):
        check_model_config(cfg)
        detr = cfg.MODEL.DETR
        backbone = build_backbone(cfg)
        check_backbone(backbone)
        names = list(cfg.DATASETS.TRAIN) or list(cfg.DATASETS.TEST)
        if not names:
            raise UserError(
                "DATASETS.TEST and DATASETS.TRAIN are both empty, but the names of the classes "
                "come from there: name a data set, \"('coco_2017_val_panoptic',)\" for COCO."
            )
        metadata = MetadataCatalog.get(names[0])
        num_classes = detr.NUM_CLASSES
        if num_classes == -1:
            num_classes = metadata_num_classes(metadata)
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.DETR.NUM_CLASSES = num_classes
        thing_ids = [i for i in thing_class_ids(metadata) if i < num_classes]
        same_classes = metadata_num_classes(metadata) == num_classes
        weights = {
            "loss_ce": detr.CLASS_WEIGHT,
            "loss_bbox": detr.L1_WEIGHT,
            "loss_giou": detr.GIOU_WEIGHT,
            "loss_mask": detr.MASK_WEIGHT,
            "loss_dice": detr.DICE_WEIGHT,
        }
        return {
            "backbone": backbone,
            "transformer": Transformer(
                hidden_dim=detr.HIDDEN_DIM,
                nheads=detr.NHEADS,
                enc_layers=detr.ENC_LAYERS,
                dec_layers=detr.DEC_LAYERS,
                dim_feedforward=detr.DIM_FEEDFORWARD,
                dropout=detr.DROPOUT,
                pre_norm=detr.PRE_NORM,
                checkpoint_encoder=detr.CHECKPOINT_ENCODER,
            ),
            "mask_head": build_mask_head(cfg, backbone.output_shape())
            if cfg.MODEL.MASK_ON
            else None,
            "criterion": SetCriterion(
                num_classes=num_classes,
                matcher=HungarianMatcher(detr.CLASS_WEIGHT, detr.L1_WEIGHT, detr.GIOU_WEIGHT),
                weights=weights,
                no_object_weight=detr.NO_OBJECT_WEIGHT,
            ),
            "panoptic_inference": build_panoptic_inference(cfg, thing_ids),
            "num_classes": num_classes,
            "hidden_dim": detr.HIDDEN_DIM,
            "nheads": detr.NHEADS,
            "num_queries": detr.NUM_OBJECT_QUERIES,
            "thing_ids": thing_ids,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "deep_supervision": detr.DEEP_SUPERVISION,
            "freeze_detector": detr.FREEZE_DETECTOR,
            "panoptic_on": detr.TEST.PANOPTIC_ON,
            "instance_on": detr.TEST.INSTANCE_ON,
            "semantic_on": detr.TEST.SEMANTIC_ON,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pad_mixed_sizes": detr.TEST.PAD_MIXED_SIZES,
            "compile_modules": detr.COMPILE,
            "dataset_ids": dataset_ids(metadata) if same_classes else None,
            "class_names": class_names(metadata) if same_classes else None,
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take checkpoints of other DETR code bases too, whoever loads them.

        Their names are translated, and the rows of the class head are chosen by category id. The
        model's own names are left to torch.
        """
        weights = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        own = self.state_dict()
        if not weights.keys() <= own.keys():
            adapted = adapt(weights, own, self.dataset_ids, self.class_names)
            if adapted is not None:
                adapted.replace(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def compile_parts(self, **options) -> None:
        """Compile backbone, transformer and mask head, in training and at inference.

        Args:
            options: for ``torch.compile``; with ``dynamic=True`` a change of the image size does
                not compile anew.
        """
        self._folded.clear()
        self._folded.compile_options = options
        for module in (self.backbone, self.transformer, self.mask_head):
            if module is not None:
                module.compile(**options)

    def train(self, mode: bool = True):
        if mode:
            self._folded.clear()
        return super().train(mode)

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: one dict per image: ``image`` (3 x H x W, 0..255, in
                ``INPUT.FORMAT``), optionally ``height`` and ``width`` of the wanted result; in
                training ``instances`` with ``gt_classes``, ``gt_boxes`` and ``gt_masks``, one
                row per segment, things and stuff alike.

        Returns:
            In training the weighted losses; their sum is the total. Otherwise one dict per image
            with ``panoptic_seg`` (int32 H x W tensor, list of segments), ``instances`` and
            ``sem_seg`` (K x H x W scores), as far as switched on.
        """
        if self.training:
            return self.losses(batched_inputs)
        results = [None] * len(batched_inputs)
        for indices in self._batches(batched_inputs):
            part = self.inference([batched_inputs[i] for i in indices])
            for i, result in zip(indices, part, strict=True):
                results[i] = result
        return results

    def _batches(self, batched_inputs):
        """Indices of the images that go through the network together."""
        if self.pad_mixed_sizes:
            return [list(range(len(batched_inputs)))] if batched_inputs else []
        by_size = {}
        for i, x in enumerate(batched_inputs):
            by_size.setdefault(tuple(x["image"].shape[-2:]), []).append(i)
        return list(by_size.values())

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one canvas."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def detect(self, images: ImageList) -> Detections:
        """Run backbone, transformer, class and box heads on a padded batch."""
        if self.training:
            features = self.backbone(images.tensor)
        else:
            tensor = images.tensor.contiguous(memory_format=torch.channels_last)
            features = self._folded.get(self.backbone)(tensor)
        res5 = features["res5"]
        padding = self._padding(images, res5.shape[-2:])
        pos = self.position_embedding(res5.shape[-2:], padding, res5.device)
        src_proj = self.input_proj(res5)
        intermediate = self.training and self.deep_supervision and not self.freeze_detector
        hs, memory = self.transformer(
            src_proj, padding, self.query_embed.weight, pos, return_intermediate=intermediate
        )
        return Detections(
            features, src_proj, padding, memory, hs, self.class_embed(hs), self.bbox_embed(hs)
        )

    def _padding(self, images: ImageList, size) -> torch.Tensor | None:
        """B x h x w bool, True where the nearest canvas pixel is padding; None without padding."""
        canvas = images.tensor.shape[-2:]
        if all(tuple(s) == tuple(canvas) for s in images.image_sizes):
            return None
        padding = images.tensor.new_ones((len(images), *canvas))
        for mask, (height, width) in zip(padding, images.image_sizes, strict=True):
            mask[:height, :width] = 0
        return F.interpolate(padding[:, None], size=tuple(size))[:, 0].to(torch.bool)

    def predict_masks(
        self, detections: Detections, image_index: torch.Tensor, query_index: torch.Tensor
    ) -> torch.Tensor:
        """Mask logits of the wanted pairs only.

        Args:
            detections: of the whole batch.
            image_index, query_index: P indices, grouped by image; best on the host, so that the
                GPU need not be waited for.

        Returns:
            P x H2 x W2 at the resolution of res2.
        """
        batch = detections.src_proj.shape[0]
        counts = torch.bincount(image_index, minlength=batch)
        slot = torch.arange(len(image_index), device=counts.device)
        slot = slot - (counts.cumsum(0) - counts)[image_index]
        wanted = query_index.new_zeros(batch, int(counts.max()))
        wanted[image_index, slot] = query_index
        image_index, slot, wanted = (
            t.to(self.device, non_blocking=True) for t in (image_index, slot, wanted)
        )
        hs = detections.hs[-1]
        queries = hs.gather(1, wanted[..., None].expand(-1, -1, hs.shape[-1]))
        attention = self.bbox_attention(queries, detections.memory, detections.padding)
        return self.mask_head(
            detections.src_proj,
            attention[image_index, slot],
            image_index,
            [detections.features[name] for name in ("res4", "res3", "res2")],
        )

    def losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Weighted losses of a training batch."""
        images = self.preprocess(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        targets = self.prepare_targets(instances)
        with torch.set_grad_enabled(not self.freeze_detector):
            out = self.detect(images)
        matches = self.criterion.matcher(out.pred_logits, out.pred_boxes, targets)
        losses = {}
        if not self.freeze_detector:
            losses.update(
                self.criterion.box_losses(out.pred_logits, out.pred_boxes, targets, matches)
            )
        if self.mask_head is not None:
            if len(matches.image):
                masks = self.predict_masks(out, matches.image, matches.query[-1])
            else:
                masks = out.src_proj.new_zeros((0, 1, 1))
            truth = [x.gt_masks.tensor if len(x) else None for x in instances]
            canvas = tuple(images.tensor.shape[-2:])
            losses.update(self.criterion.mask_losses(masks, truth, canvas, targets, matches))
        if not len(matches.image):
            first = next(iter(losses))
            losses[first] = losses[first] + zero_of(p for p in self.parameters() if p.requires_grad)
        if has_event_storage() and get_event_storage().iter % 20 == 0:
            metrics = self.criterion.metrics(out.pred_logits, targets, matches)
            get_event_storage().put_scalars(**{k: float(v) for k, v in metrics.items()})
        return losses

    def prepare_targets(self, instances: list[Instances]) -> Targets:
        """Labels and boxes of a batch, padded to the largest number of targets."""
        counts = [len(x) for x in instances]
        most = max(counts, default=0)
        labels = torch.zeros((len(counts), most), dtype=torch.long, device=self.device)
        boxes = torch.zeros((len(counts), most, 4), device=self.device)
        for i, x in enumerate(instances):
            if not counts[i]:
                continue
            height, width = x.image_size
            scale = boxes.new_tensor([width, height, width, height])
            labels[i, : counts[i]] = x.gt_classes
            boxes[i, : counts[i]] = box_convert(x.gt_boxes.tensor.float() / scale, "xyxy", "cxcywh")
        return Targets(labels, boxes, counts)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Results of images that are padded to one canvas together."""
        images = self.preprocess(batched_inputs)
        out = self.detect(images)
        logits = out.pred_logits[-1]
        scores, labels = logits.float().softmax(-1).max(-1)
        nothing = torch.zeros_like(labels, dtype=torch.bool)
        panoptic = instance = nothing
        if self.panoptic_on or self.semantic_on:
            panoptic = self.panoptic_inference.keep(logits)
        if self.instance_on:
            instance = best_things(scores, labels, self.is_thing, self.max_instances)
        # What follows chooses queries on the host, after this one transfer.
        host = torch.stack([scores, labels.float(), panoptic.float(), instance.float()]).cpu()
        scores, labels = host[0], host[1].long()
        panoptic, instance = host[2].bool(), host[3].bool()
        wanted = panoptic | instance
        masks = [None] * len(batched_inputs)
        if self.mask_head is not None:
            pairs = wanted.nonzero(as_tuple=True)
            masks = self.predict_masks(out, *pairs).split(wanted.sum(1).tolist())
        results = []
        for i, (x, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            size = (int(size[0]), int(size[1]))
            output = (x.get("height", size[0]), x.get("width", size[1]))
            frame = Frame(tuple(images.tensor.shape[-2:]), size, output)
            result = {}
            if self.panoptic_on or self.semantic_on:
                kept = panoptic[i]
                chosen = (
                    _rows(masks[i], kept[wanted[i]]),
                    scores[i, kept],
                    labels[i, kept],
                )
                if self.panoptic_on:
                    result["panoptic_seg"] = self.panoptic_inference(*chosen, frame)
                if self.semantic_on:
                    result["sem_seg"] = semantic_scores(*chosen, self.num_classes, frame)
            if self.instance_on:
                kept = instance[i]
                result["instances"] = to_instances(
                    _rows(out.pred_boxes[-1, i], kept),
                    scores[i, kept].to(self.device),
                    labels[i, kept].to(self.device),
                    None if masks[i] is None else _rows(masks[i], kept[wanted[i]]),
                    frame,
                )
            results.append(result)
        return results


def _rows(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Rows of a tensor on any device by a bool vector on the host, without waiting for it."""
    if bool(keep.all()):
        return values
    return values[keep.nonzero()[:, 0].to(values.device, non_blocking=True)]
