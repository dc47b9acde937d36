"""PanopticDETR: DETR with a mask head as a Detectron2 meta architecture.

Shapes: B images, N queries, K classes, C hidden channels, L decoder layers, P (image, query)
pairs whose masks are wanted; h x w is the size of res5.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn
from torch.nn import functional as F

from ..checkpoint.translate import translate_state_dict
from ..data.metadata import class_names, dataset_ids, thing_class_ids
from ..errors import UserError, check_value
from .backbone import LEVELS, check_backbone, freeze_unused_parameters, frozen_norms
from .criterion import SetCriterion
from .fold import fold_batch_norms
from .mask_head import BoxAttentionMap, build_mask_head
from .mask_ops import semantic_scores, target_masks, to_instances
from .matcher import Targets
from .panoptic_inference import build_panoptic_inference
from .position_encoding import PositionEmbeddingSine
from .structures import Detections, Frame, Selection
from .transformer import BoxHead, Transformer, at_least_float32


@META_ARCH_REGISTRY.register()
class PanopticDETR(nn.Module):
    """DETR for panoptic segmentation (Carion et al. 2020).

    Inference goes ``preprocess -> detect -> select -> predict_masks -> assemble``. Each step takes
    and returns tensors and can be called on its own.
    """

    is_thing: torch.Tensor
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        transformer: Transformer,
        mask_head: nn.Module | None,
        criterion: SetCriterion,
        panoptic_inference: Any,
        num_classes: int,
        hidden_dim: int,
        nheads: int,
        num_queries: int,
        thing_ids: list[int],
        pixel_mean: list[float],
        pixel_std: list[float],
        deep_supervision: bool = True,
        freeze_detector: bool = False,
        freeze: Sequence[str] = (),
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
            backbone: with outputs res2 to res5.
            mask_head: predicts masks of (image, query) pairs; None for boxes alone.
            panoptic_inference: the rule from queries to segments.
            num_classes: K, things and stuff.
            hidden_dim, nheads, num_queries: C, the number of attention heads, N.
            thing_ids: contiguous class ids that are things.
            pixel_mean, pixel_std: per channel, in the scale of the input.
            deep_supervision: losses after every decoder layer.
            freeze_detector: train the mask head and the box attention only.
            freeze: names of modules that are not trained, such as "transformer.encoder".
            panoptic_on, instance_on, semantic_on: which results inference returns.
            max_instances: most instances per image.
            pad_mixed_sizes: at inference, pad images of different sizes to one canvas.
            compile_modules: see :meth:`compile_parts`.
            dataset_ids, class_names: id in the annotation file and name of each contiguous class;
                they choose the rows of a checkpoint's class head. None: not known.
        """
        super().__init__()
        if mask_head is None and (panoptic_on or semantic_on or freeze_detector):
            raise UserError(
                "MODEL.MASK_ON is False, so there are no masks: set MODEL.DETR.TEST.PANOPTIC_ON, "
                "MODEL.DETR.TEST.SEMANTIC_ON and MODEL.DETR.FREEZE_DETECTOR to False (and "
                "MODEL.DETR.TEST.INSTANCE_ON to True for boxes), or MODEL.MASK_ON to True"
            )
        key = "MODEL.DETR.NUM_OBJECT_QUERIES"
        check_value(key, num_queries, num_queries >= 1, "a whole number from 1 on")
        valid = len(pixel_std) == len(pixel_mean) and min(pixel_std, default=0) > 0
        allowed = f"{len(pixel_mean)} numbers above 0, as many as MODEL.PIXEL_MEAN has"
        check_value("MODEL.PIXEL_STD", list(pixel_std), valid, allowed)
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
        self.panoptic_on, self.instance_on, self.semantic_on = panoptic_on, instance_on, semantic_on
        self.max_instances = max_instances
        self.pad_mixed_sizes = pad_mixed_sizes
        self.dataset_ids, self.class_names = dataset_ids, class_names
        is_thing = torch.zeros(num_classes + 1, dtype=torch.bool)
        is_thing[list(thing_ids)] = True
        self.register_buffer("is_thing", is_thing, persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if freeze_detector:
            for name, p in self.named_parameters():
                p.requires_grad_(name.startswith(("bbox_attention.", "mask_head.")))
        modules = dict(self.named_modules())
        for name in freeze:
            allowed = "names of modules, such as backbone, backbone.res2 or transformer.encoder"
            check_value("MODEL.FREEZE", name, name in modules, allowed)
            modules[name].requires_grad_(False)
        levels = LEVELS if mask_head is not None else LEVELS[-1:]
        freeze_unused_parameters(backbone, len(pixel_mean), levels)
        self.train()
        if compile_modules:
            self.compile_parts(dynamic=True)

    @classmethod
    def from_config(cls, cfg):
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
        ids = dataset_ids(metadata)
        allowed = f"{len(ids)}, the number of classes of '{names[0]}', or -1 to take that number"
        check_value(
            "MODEL.DETR.NUM_CLASSES", detr.NUM_CLASSES, detr.NUM_CLASSES in (-1, len(ids)), allowed
        )
        thing_ids = thing_class_ids(metadata)
        transformer, mask_head = Transformer(cfg), None
        if cfg.MODEL.MASK_ON:
            mask_head = build_mask_head(cfg, backbone.output_shape())
        return {
            "backbone": backbone,
            "transformer": transformer,
            "mask_head": mask_head,
            "criterion": SetCriterion(cfg, len(ids), class_names(metadata)),
            "panoptic_inference": build_panoptic_inference(cfg, thing_ids),
            "num_classes": len(ids),
            "hidden_dim": detr.HIDDEN_DIM,
            "nheads": detr.NHEADS,
            "num_queries": detr.NUM_OBJECT_QUERIES,
            "thing_ids": thing_ids,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "deep_supervision": detr.DEEP_SUPERVISION,
            "freeze_detector": detr.FREEZE_DETECTOR,
            "freeze": cfg.MODEL.FREEZE,
            "panoptic_on": detr.TEST.PANOPTIC_ON,
            "instance_on": detr.TEST.INSTANCE_ON,
            "semantic_on": detr.TEST.SEMANTIC_ON,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pad_mixed_sizes": detr.TEST.PAD_MIXED_SIZES,
            "compile_modules": detr.COMPILE,
            "dataset_ids": ids,
            "class_names": class_names(metadata),
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "PanopticDETR":
        """Set the training mode; norms of frozen parts stay in eval mode."""
        super().train(mode)
        for norm in frozen_norms(self):
            norm.eval()
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take checkpoints of other DETR code bases too, whoever loads them."""
        translate_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def compile_parts(self, **options) -> None:
        """Compile backbone, transformer and mask head, with options of ``torch.compile``.

        With ``dynamic=True`` a change of the image size does not compile anew.
        """
        for module in (self.backbone, self.transformer, self.mask_head):
            if module is not None:
                module.compile(**options)

    def fold_for_inference(self) -> "PanopticDETR":
        """Fold the backbone's batch norms into its convolutions, for good; returns the model.

        Outputs stay the same up to rounding. Load the weights before: afterwards the model can
        neither be trained nor read or write checkpoints.
        """
        fold_batch_norms(self.eval().backbone)
        return self

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
        # Images that go through the network together.
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(batched_inputs):
            size = None if self.pad_mixed_sizes else tuple(x["image"].shape[-2:])
            groups.setdefault(size, []).append(i)
        results: list[dict] = [{}] * len(batched_inputs)
        for indices in groups.values():
            part = self.inference([batched_inputs[i] for i in indices])
            for i, result in zip(indices, part, strict=True):
                results[i] = result
        return results

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
        tensor = images.tensor
        if not self.training:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        features = self.backbone(tensor)
        res5 = features["res5"]
        padding = self._padding(images, res5.shape[-2:])
        pos = self.position_embedding(res5.shape[-2:], padding, res5.device)
        src_proj = self.input_proj(res5)
        intermediate = self.training and self.deep_supervision and not self.freeze_detector
        hs, memory = self.transformer(
            src_proj, padding, self.query_embed.weight, pos, return_intermediate=intermediate
        )
        # In bfloat16 a box would be rounded to steps of up to 5 pixels at a width of 1333.
        with torch.autocast(hs.device.type, enabled=False):
            queries = hs.to(self.class_embed.weight.dtype)
            logits, boxes = at_least_float32(self.class_embed(queries)), self.bbox_embed(queries)
        return Detections(features, src_proj, padding, memory, hs, logits, boxes)

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
            image_index, query_index: P indices.

        Returns:
            P x H2 x W2 at the resolution of res2.
        """
        if self.bbox_attention is None or self.mask_head is None:
            raise RuntimeError("There are no masks: the model was built with MODEL.MASK_ON False.")
        image_index = image_index.to(self.device, non_blocking=True)
        query_index = query_index.to(self.device, non_blocking=True)
        attention = self.bbox_attention(detections.hs[-1], detections.memory, detections.padding)
        return self.mask_head(
            detections.src_proj,
            attention[image_index, query_index],
            image_index,
            [detections.features[name] for name in ("res4", "res3", "res2")],
        )

    def losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Weighted losses of a training batch."""
        images = self.preprocess(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        targets = Targets.from_instances(instances, self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detector):
            out = self.detect(images)
        matches = self.criterion.matcher(out.pred_logits, out.pred_boxes, targets)
        losses = {}
        if not self.freeze_detector:
            losses.update(
                self.criterion.box_losses(out.pred_logits, out.pred_boxes, targets, matches)
            )
        if self.mask_head is not None:
            masks = self.predict_masks(out, matches.image, matches.query[-1])
            annotated = [target_masks(x) if len(x) else None for x in instances]
            canvas = tuple(images.tensor.shape[-2:])
            losses.update(self.criterion.mask_losses(masks, annotated, canvas, targets, matches))
        if not len(matches.image):
            # A gradient of 0 for every parameter: distributed training waits for each of them.
            first = next(iter(losses))
            losses[first] = losses[first] + sum(
                p.sum() * 0 for p in self.parameters() if p.requires_grad
            )
        if self.training and has_event_storage() and get_event_storage().iter % 20 == 0:
            error = self.criterion.class_error(out.pred_logits, targets, matches)
            get_event_storage().put_scalar("class_error", float(error))
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Results of images that are padded to one canvas together, see :meth:`forward`."""
        images = self.preprocess(batched_inputs)
        detections = self.detect(images)
        selection = self.select(detections)
        masks = None
        if self.mask_head is not None:
            pairs = selection.masked.nonzero(as_tuple=True)
            masks = self.predict_masks(detections, *pairs)
        canvas = tuple(images.tensor.shape[-2:])
        frames = []
        for x, size in zip(batched_inputs, images.image_sizes, strict=True):
            size = (int(size[0]), int(size[1]))
            frames.append(Frame(canvas, size, (x.get("height", size[0]), x.get("width", size[1]))))
        return self.assemble(detections, selection, masks, frames)

    def select(self, detections: Detections) -> Selection:
        """Choose the queries that the results are made of, before any mask is computed.

        As in official DETR the best *object* class of a query counts, also where no-object is
        better. Instances are the ``max_instances`` best queries whose class is a thing.
        """
        logits = detections.pred_logits[-1]
        scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)
        panoptic = instance = torch.zeros_like(labels, dtype=torch.bool)
        if self.panoptic_on:
            panoptic = self.panoptic_inference.keep(logits)
        if self.instance_on:
            instance = self.is_thing[labels]
            if instance.shape[1] > self.max_instances:
                best = (scores * instance).topk(self.max_instances, dim=1).indices
                instance = instance & torch.zeros_like(instance).scatter_(1, best, True)
        # One transfer: what follows chooses queries on the host.
        host = torch.stack([scores, labels.float(), panoptic.float(), instance.float()]).cpu()
        panoptic, instance = host[2].bool(), host[3].bool()
        # Class scores of a pixel are a sum over all queries.
        masked = torch.ones_like(panoptic) if self.semantic_on else panoptic | instance
        return Selection(host[0], host[1].long(), panoptic, instance, masked)

    def assemble(
        self,
        detections: Detections,
        selection: Selection,
        mask_logits: torch.Tensor | None,
        frames: list[Frame],
    ) -> list[dict]:
        """Make the results of each image.

        Args:
            detections: of the batch.
            selection: the chosen queries.
            mask_logits: P x H2 x W2 of the pairs in ``selection.masked``, in order; None for boxes
                alone.
            frames: sizes of canvas, image and output of each image.

        Returns:
            one dict per image, see :meth:`forward`.
        """
        masks: Any = [None] * len(frames)
        if mask_logits is not None:
            masks = mask_logits.split(selection.masked.sum(1).tolist())
        results = []
        for i, frame in enumerate(frames):
            scores, labels = selection.scores[i], selection.labels[i]
            masked = selection.masked[i]
            result: dict[str, Any] = {}
            if self.panoptic_on:
                kept = selection.panoptic[i]
                chosen = (_rows(masks[i], kept[masked]), scores[kept], labels[kept])
                result["panoptic_seg"] = self.panoptic_inference(*chosen, frame)
            if self.semantic_on:
                probabilities = detections.pred_logits[-1, i].softmax(-1)[:, :-1]
                result["sem_seg"] = semantic_scores(masks[i], probabilities, frame)
            if self.instance_on:
                kept = selection.instance[i]
                result["instances"] = to_instances(
                    _rows(detections.pred_boxes[-1, i], kept),
                    scores[kept].to(self.device),
                    labels[kept].to(self.device),
                    None if masks[i] is None else _rows(masks[i], kept[masked]),
                    frame,
                )
            results.append(result)
        return results


def _rows(values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Rows of a tensor on any device by a bool vector on the host, without waiting for it."""
    if bool(keep.all()):
        return values
    return values[keep.nonzero()[:, 0].to(values.device, non_blocking=True)]
