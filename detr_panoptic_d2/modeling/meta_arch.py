"""PanopticDETR: DETR with a mask head as a Detectron2 meta architecture.

Shapes: B images, N queries, K classes, C hidden channels, L decoder layers, P (image, query)
pairs; h x w is the size of res5, H2 x W2 that of res2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn

from ..data.metadata import class_names, dataset_ids, thing_class_ids
from ..errors import UserError, check_value
from .backbone import LEVELS, check_backbone, freeze_unused_parameters
from .criterion import SetCriterion
from .detector import Detector
from .flip import segment_with_flip
from .mask_head import BoxAttentionMap, build_mask_head
from .mask_ops import select_rows, semantic_scores, target_masks, to_instances
from .matcher import Targets
from .panoptic_inference import build_panoptic_inference
from .structures import Detections, Frame, Selection
from .transformer import Transformer


@META_ARCH_REGISTRY.register()
class PanopticDETR(Detector):
    """DETR for panoptic segmentation (Carion et al. 2020).

    Inference is ``preprocess``, ``detect``, ``select``, ``predict_masks`` and ``assemble``. Each
    step takes and returns tensors and can be called alone.
    """

    is_thing: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        mask_head: nn.Module | None,
        criterion: SetCriterion,
        panoptic_inference: Any,
        metadata: Metadata,
        nheads: int,
        deep_supervision: bool = True,
        freeze_detector: bool = False,
        freeze: Sequence[str] = (),
        panoptic_on: bool = True,
        instance_on: bool = False,
        semantic_on: bool = False,
        max_instances: int = 100,
        flip: bool = False,
        pad_mixed_sizes: bool = False,
        compile_modules: bool = False,
        **detector: Any,
    ):
        """
        Args:
            mask_head: predicts masks of (image, query) pairs; None for boxes alone.
            panoptic_inference: makes segments of queries; see ``PANOPTIC_INFERENCE_REGISTRY``.
            metadata: classes of the dataset, things and stuff.
            nheads: number of attention maps per query.
            deep_supervision: compute losses after every decoder layer.
            freeze_detector: train the mask head and the box attention only.
            freeze: names of modules that are not trained, such as "transformer.encoder".
            max_instances: largest number of instances per image.
            flip: at inference, average with the mirrored image; see :mod:`.flip`.
            pad_mixed_sizes: at inference, pad images of different sizes to one canvas.
            detector: further arguments of :class:`.detector.Detector`.
        """
        super().__init__(metadata=metadata, **detector)
        if mask_head is None and (panoptic_on or semantic_on or freeze_detector):
            raise UserError(
                "MODEL.MASK_ON is False, so there are no masks: set MODEL.DETR.TEST.PANOPTIC_ON, "
                "MODEL.DETR.TEST.SEMANTIC_ON and MODEL.DETR.FREEZE_DETECTOR to False (and "
                "MODEL.DETR.TEST.INSTANCE_ON to True for boxes), or MODEL.MASK_ON to True"
            )
        only_panoptic = panoptic_on and not (instance_on or semantic_on)
        allowed = "False, or True with PANOPTIC_ON True, INSTANCE_ON and SEMANTIC_ON False"
        check_value("MODEL.DETR.TEST.FLIP", flip, only_panoptic or not flip, allowed)
        dim = self.query_embed.embedding_dim
        self.bbox_attention = None if mask_head is None else BoxAttentionMap(dim, nheads)
        self.mask_head = mask_head
        self.criterion = criterion
        self.panoptic_inference = panoptic_inference
        self.deep_supervision = deep_supervision and not freeze_detector
        self.freeze_detector = freeze_detector
        self.panoptic_on, self.instance_on, self.semantic_on = panoptic_on, instance_on, semantic_on
        self.max_instances, self.flip, self.pad_mixed_sizes = max_instances, flip, pad_mixed_sizes
        is_thing = torch.zeros(self.num_classes, dtype=torch.bool)
        is_thing[thing_class_ids(metadata)] = True
        self.register_buffer("is_thing", is_thing, persistent=False)
        self._freeze(freeze)
        self.train()
        if compile_modules:
            self.compile_parts(dynamic=True)

    def _freeze(self, names: Sequence[str]) -> None:
        if self.freeze_detector:
            for name, p in self.named_parameters():
                p.requires_grad_(name.startswith(("bbox_attention.", "mask_head.")))
        modules = dict(self.named_modules())
        for name in names:
            allowed = "names of modules, such as backbone, backbone.res2 or transformer.encoder"
            check_value("MODEL.FREEZE", name, name in modules, allowed)
            modules[name].requires_grad_(False)
        levels = LEVELS if self.mask_head is not None else LEVELS[-1:]
        freeze_unused_parameters(self.backbone, len(self.pixel_mean), levels)

    @classmethod
    def from_config(cls, cfg):
        detr = cfg.MODEL.DETR
        backbone = build_backbone(cfg)
        check_backbone(backbone)
        shapes = backbone.output_shape()
        names = list(cfg.DATASETS.TRAIN) or list(cfg.DATASETS.TEST)
        if not names:
            raise UserError(
                "DATASETS.TEST and DATASETS.TRAIN are both empty, but the names of the classes "
                "come from there: name a dataset, \"('coco_2017_val_panoptic',)\" for COCO."
            )
        metadata = MetadataCatalog.get(names[0])
        count = len(dataset_ids(metadata))
        allowed = f"{count}, the number of classes of '{names[0]}', or -1 to take that number"
        valid = detr.NUM_CLASSES in (-1, count)
        check_value("MODEL.DETR.NUM_CLASSES", detr.NUM_CLASSES, valid, allowed)
        return {
            "backbone": backbone,
            "transformer": Transformer(cfg),
            "mask_head": build_mask_head(cfg, shapes) if cfg.MODEL.MASK_ON else None,
            "criterion": SetCriterion(cfg, count, class_names(metadata)),
            "panoptic_inference": build_panoptic_inference(cfg, thing_class_ids(metadata)),
            "metadata": metadata,
            "hidden_dim": detr.HIDDEN_DIM,
            "nheads": detr.NHEADS,
            "num_queries": detr.NUM_OBJECT_QUERIES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "deep_supervision": detr.DEEP_SUPERVISION,
            "freeze_detector": detr.FREEZE_DETECTOR,
            "freeze": cfg.MODEL.FREEZE,
            "panoptic_on": detr.TEST.PANOPTIC_ON,
            "instance_on": detr.TEST.INSTANCE_ON,
            "semantic_on": detr.TEST.SEMANTIC_ON,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "flip": detr.TEST.FLIP,
            "pad_mixed_sizes": detr.TEST.PAD_MIXED_SIZES,
            "compile_modules": detr.COMPILE,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """
        Args:
            batched_inputs: Detectron2's dicts: ``image`` (3 x H x W, 0..255, in ``INPUT.FORMAT``);
                optionally ``height`` and ``width`` of the result; for training ``instances`` with
                ``gt_classes``, ``gt_boxes`` and ``gt_masks``, one row per segment.

        Returns:
            In training the weighted losses. Otherwise one dict per image with the results that are
            switched on: ``panoptic_seg`` (int32 H x W tensor, list of segments), ``instances`` and
            ``sem_seg`` (K x H x W scores).
        """
        if self.training:
            return self.losses(batched_inputs)
        # Images that go through the network together.
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(batched_inputs):
            size = None if self.pad_mixed_sizes else tuple(x["image"].shape[-2:])
            groups.setdefault(size, []).append(i)
        results: dict[int, dict] = {}
        for indices in groups.values():
            group = self.inference([batched_inputs[i] for i in indices])
            results.update(zip(indices, group, strict=True))
        return [results[i] for i in range(len(batched_inputs))]

    def predict_masks(
        self, detections: Detections, image_index: torch.Tensor, query_index: torch.Tensor
    ) -> torch.Tensor:
        """Compute the mask logits P x H2 x W2 of P (image, query) pairs of a batch."""
        if self.bbox_attention is None or self.mask_head is None:
            raise RuntimeError("There are no masks: the model was built with MODEL.MASK_ON False.")
        image_index = image_index.to(self.device, non_blocking=True)
        query_index = query_index.to(self.device, non_blocking=True)
        attention = self.bbox_attention(detections.hs[-1], detections.memory, detections.padding)
        attention = attention[image_index, query_index]
        levels = [detections.features[name] for name in ("res4", "res3", "res2")]
        return self.mask_head(detections.src_proj, attention, image_index, levels)

    def losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of a training batch."""
        images = self.preprocess(batched_inputs)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        targets = Targets.from_instances(instances, self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detector):
            out = self.detect(images)
        matches = self.criterion.matcher(out.pred_logits, out.pred_boxes, targets)
        num_boxes = self.criterion.num_boxes(targets)
        losses = {}
        if not self.freeze_detector:
            predictions = out.pred_logits, out.pred_boxes
            losses = self.criterion.box_losses(*predictions, targets, matches, num_boxes)
        if self.mask_head is not None:
            masks = self.predict_masks(out, matches.image, matches.query[-1])
            annotated = [target_masks(x) if len(x) else None for x in instances]
            canvas = tuple(images.tensor.shape[-2:])
            losses |= self.criterion.mask_losses(masks, annotated, canvas, matches, num_boxes)
        if not len(matches.image):
            # A gradient of 0 for every parameter: distributed training waits for each of them.
            zero = sum(p.sum() * 0 for p in self.parameters() if p.requires_grad)
            first = next(iter(losses))
            losses[first] = losses[first] + zero
        return losses

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Compute the results of images that are padded to one canvas; see :meth:`forward`."""
        if self.flip:
            return [{"panoptic_seg": segment_with_flip(self, x)} for x in batched_inputs]
        images = self.preprocess(batched_inputs)
        detections = self.detect(images)
        selection = self.select(detections)
        masks = None
        if self.mask_head is not None:
            masks = self.predict_masks(detections, *selection.masked.nonzero(as_tuple=True))
        canvas = tuple(images.tensor.shape[-2:])
        frames = []
        for x, (height, width) in zip(batched_inputs, images.image_sizes, strict=True):
            output = (x.get("height", int(height)), x.get("width", int(width)))
            frames.append(Frame(canvas, (int(height), int(width)), output))
        return self.assemble(detections, selection, masks, frames)

    def select(self, detections: Detections) -> Selection:
        """Choose the queries of the results before any mask is computed.

        As in official DETR, the best *object* class of a query counts, even if no-object is more
        probable. Instances are the ``max_instances`` best queries whose class is a thing.
        """
        logits = detections.pred_logits[-1]
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        panoptic = instance = torch.zeros_like(labels, dtype=torch.bool)
        if self.panoptic_on:
            panoptic = self.panoptic_inference.keep(logits)
        if self.instance_on:
            instance = self.is_thing[labels]
            if instance.shape[1] > self.max_instances:
                best = (scores * instance).topk(self.max_instances, dim=1).indices
                instance = instance & torch.zeros_like(instance).scatter_(1, best, True)
        # One transfer to the host, where the following steps choose queries.
        host = torch.stack([scores, labels.float(), panoptic.float(), instance.float()]).cpu()
        panoptic, instance = host[2].bool(), host[3].bool()
        # Semantic scores are a sum over all queries.
        masked = torch.ones_like(panoptic) if self.semantic_on else panoptic | instance
        return Selection(host[0], host[1].long(), panoptic, instance, masked)

    def assemble(
        self,
        detections: Detections,
        selection: Selection,
        mask_logits: torch.Tensor | None,
        frames: list[Frame],
    ) -> list[dict]:
        """Make the results of each image, see :meth:`forward`.

        Args:
            detections, selection: of the batch.
            mask_logits: P x H2 x W2 of the pairs in ``selection.masked``, in order; None for boxes
                alone.
            frames: sizes of canvas, image and output of each image.
        """
        masks: Any = [None] * len(frames)
        if mask_logits is not None:
            masks = mask_logits.split(selection.masked.sum(1).tolist())
        results = []
        for i, frame in enumerate(frames):
            scores, labels, masked = selection.scores[i], selection.labels[i], selection.masked[i]
            result: dict[str, Any] = {}
            if self.panoptic_on:
                kept = selection.panoptic[i]
                result["panoptic_seg"] = self.panoptic_inference(
                    select_rows(masks[i], kept[masked]), scores[kept], labels[kept], frame
                )
            if self.semantic_on:
                probabilities = detections.pred_logits[-1, i].softmax(-1)[:, :-1]
                result["sem_seg"] = semantic_scores(masks[i], probabilities, frame)
            if self.instance_on:
                kept = selection.instance[i]
                result["instances"] = to_instances(
                    select_rows(detections.pred_boxes[-1, i], kept),
                    scores[kept].to(self.device),
                    labels[kept].to(self.device),
                    None if masks[i] is None else select_rows(masks[i], kept[masked]),
                    frame,
                )
            results.append(result)
        return results
