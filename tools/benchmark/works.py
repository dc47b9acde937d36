"""The kinds of work: each first checks that all sides agree, and then measures them.

A work is made of the command line's options. ``check()`` gives the differences of its sides by
name, and raises ``UserError`` where they are too large. ``rows()`` gives one dict after the other:
``case`` (what was varied), and ``times``, ``ratios``, ``memory`` (see ``measure.measure``) or other
``figures``.
"""

import copy
import functools
import itertools
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface
import torch
from measure import (
    Clock,
    Variants,
    measure,
    precision,
    require_close,
)
from networks import add_segments, best_queries, build, keep_best, make_images
from torch import nn

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.modeling.panoptic_inference import build_panoptic_inference

OURS, BOXES, ALL = "ours panoptic", "ours boxes", "ours, masks of all queries"
COMPILED, OTHER_RULE = "ours panoptic, compiled", "ours panoptic, --rule"
THEIRS, THEIR_BOXES = "Hugging Face panoptic", "Hugging Face boxes"
# Of the ratios that are printed, what is above and what is below.
PAIRS = (
    (OURS, BOXES),
    (OURS, THEIR_BOXES),
    (THEIRS, OURS),
    (THEIRS, THEIR_BOXES),
    (ALL, OURS),
    (OURS, COMPILED),
    (OTHER_RULE, OURS),
)
# Greatest difference of outputs and losses, relative to the greatest value where that is above 1.
# Between our mask logits and Hugging Face's, float32 rounding alone came to 1.2e-4 on one CPU.
TOLERANCE = 1e-3
_RULE = "MODEL.DETR.TEST.PANOPTIC_INFERENCE"
_LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
_KEPT, _BATCHES = (1, 5, 15, 30, 50, 100), (1, 2, 4)
_SIZES = ((480, 640), (640, 853), (800, 1066), (1066, 1421), (1333, 1333))


class Work:
    """Models of the options: ours with masks, without, and compiled; Hugging Face's."""

    size, batch = (800, 1066), 1

    def __init__(self, options: Namespace):
        self.options = options
        self.device = torch.device(options.device)
        self.clock = Clock(self.device, options.cpu_time)
        self.size = options.size or self.size
        self.batches = options.batch or [self.batch]
        make = functools.partial(build, options.config_file, device=self.device)
        self.ours = make(options.opts)
        self.models = {OURS: self.ours, BOXES: make(options.opts, masks=False)}
        if options.compile:
            self.models[COMPILED] = make([*options.opts, "MODEL.DETR.COMPILE", True])
        self.theirs = huggingface.build(self.ours) if options.against else None
        queries = self.ours.query_embed.num_embeddings
        self.kept = options.kept or [min(15, queries)]

    def keep(self, kept: int) -> None:
        for name in (OURS, COMPILED, OTHER_RULE):
            if name in self.models:
                keep_best(self.models[name], kept)

    def measured(self, case: dict, variants: Variants) -> dict:
        """A row of times, in the number format of the case."""
        with precision(case["dtype"], self.device):
            return {"case": case, **measure(variants, PAIRS, self.clock, self.options.repeats)}


class Inference(Work):
    """Images on the device to panoptic maps.

    Ours takes bytes. Hugging Face's panoptic model takes normalised images and is followed by its
    own post-processing; its box model is the network alone.
    """

    their_maps = True

    def __init__(self, options: Namespace):
        super().__init__(options)
        for model in self.models.values():
            model.fold_for_inference()
        if options.rule:
            device = ["MODEL.DEVICE", self.device.type]
            cfg = setup_cfg(
                options.config_file, [*map(str, options.opts), *device, _RULE, options.rule]
            )
            thing_ids = list(self.ours.panoptic_inference.thing_ids)
            self.models[OTHER_RULE] = model = copy.copy(self.ours)
            model._modules = dict(model._modules)  # all other modules are shared
            model.panoptic_inference = build_panoptic_inference(cfg, thing_ids)
        self.keep(self.kept[0])

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compare class logits, boxes and mask logits in float32."""
        found = {}
        images = make_images(self.batches[0], self.size, self.device)
        with precision("float32", self.device):
            outputs, kept = network_outputs(self.ours, images, self.kept[0])
            logits = self.models[BOXES].detect(self.ours.preprocess(images)).pred_logits[-1]
            found |= require_close(outputs, {"class logits": logits}, BOXES, TOLERANCE)
            if COMPILED in self.models:
                other, _ = network_outputs(self.models[COMPILED], images, self.kept[0], kept)
                found |= require_close(outputs, other, COMPILED, TOLERANCE)
            if self.theirs is not None:
                theirs = self.theirs(self.ours.preprocess(images).tensor)
                other = {
                    "class logits": huggingface.logits_of_our_classes(self.ours, theirs.logits),
                    "boxes": theirs.pred_boxes,
                    "mask logits": theirs.pred_masks[kept],
                }
                found |= require_close(outputs, other, THEIRS, TOLERANCE)
        return found

    def rows(self) -> Iterator[dict]:
        """Every number format, batch and number of kept queries."""
        for case in itertools.product(self.options.dtype, self.batches, self.kept):
            yield self.row(*case, self.size)

    @torch.no_grad()
    def row(self, dtype: str, batch: int, kept: int, size: tuple[int, int]) -> dict:
        """Times, ratios and memory of all sides."""
        images = make_images(batch, size, self.device)
        self.keep(kept)
        variants = {name: functools.partial(m, images) for name, m in self.models.items()}
        if self.theirs is not None:
            canvas = self.ours.preprocess(images)
            wanted = best_queries(self.ours.detect(canvas).pred_logits[-1], kept)
            output = (images[0]["height"], images[0]["width"])

            def panoptic():
                out = self.theirs(canvas.tensor)
                return huggingface.post_process(self.ours, out, wanted, output)

            if self.their_maps:
                variants[THEIRS] = panoptic
            variants[THEIR_BOXES] = functools.partial(self.theirs.detr, canvas.tensor)
        case = {"dtype": dtype, "batch": batch, "kept": kept, "size": "x".join(map(str, size))}
        return self.measured(case, variants)


class Curves(Inference):
    """How the cost of inference grows with kept queries, image size and batch."""

    their_maps = False

    def rows(self) -> Iterator[dict]:
        """Times and peak memory at every point of three curves through one point."""
        queries = self.ours.query_embed.num_embeddings
        sizes = _SIZES
        if self.options.size:
            sizes = [tuple(max(32, int(x * f)) for x in self.size) for f in (0.5, 0.75, 1)]
        point = {"dtype": self.options.dtype[0], "batch": self.batches[0], "kept": self.kept[0]}
        point["size"] = self.size
        for curve, values in (
            ("kept", [k for k in _KEPT if k <= queries]),
            ("size", sizes),
            ("batch", [self.batches[0] * b for b in _BATCHES]),
        ):
            for value in values:
                row = self.row(**{**point, curve: value})
                yield {**row, "case": {"curve": curve, **row["case"]}}


class Training(Work):
    """Forward, losses, backward and an AdamW step of rate 0, on images that lie on the device."""

    size, batch = (480, 640), 2

    def inputs(self, batch: int) -> list[dict]:
        images = make_images(batch, self.size, self.device)
        return add_segments(images, self.options.segments, self.ours.num_classes)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compare the losses of the last decoder layer in float32, without dropout.

        Auxiliary losses of transformers are of another network: it feeds the normed output of a
        decoder layer to the next one.
        """
        inputs, others = self.inputs(self.batches[0]), {}
        with precision("float32", self.device):
            losses = losses_without_dropout(self.ours, inputs)
            others[BOXES] = losses_without_dropout(self.models[BOXES], inputs)
            with all_queries(self.ours):
                others[ALL] = losses_without_dropout(self.ours, inputs)
            if self.theirs is not None:
                pixels = self.ours.preprocess(inputs).tensor
                labels = huggingface.labels(self.ours, inputs, masks=True)
                parts = self.theirs(pixels, labels=labels).loss_dict
                others[THEIRS] = {k: self.ours.criterion.weights[k] * parts[k] for k in _LOSSES}
        found = {}
        for side, other in others.items():
            last = {key: other[key] for key in _LOSSES if key in other}
            found |= require_close(losses, last, side, TOLERANCE)
        return found

    def rows(self) -> Iterator[dict]:
        """Times, ratios and memory of a step on every side."""
        for dtype, batch in itertools.product(self.options.dtype, self.batches):
            inputs = self.inputs(batch)
            steps = {name: self.step(m, dtype) for name, m in self.models.items()}
            variants = {name: functools.partial(step, inputs) for name, step in steps.items()}

            def all_step(step=steps[OURS], inputs=inputs):
                with all_queries(self.ours):
                    step(inputs)

            variants[ALL] = all_step
            if self.theirs is not None:
                self.theirs.config.auxiliary_loss = self.ours.deep_supervision
                pixels = self.ours.preprocess(inputs).tensor
                for name, model in ((THEIRS, self.theirs), (THEIR_BOXES, self.theirs.detr)):
                    labels = huggingface.labels(self.ours, inputs, name == THEIRS)
                    step = self.step(model, dtype, lambda m, x: m(x[0], labels=x[1]).loss)
                    variants[name] = functools.partial(step, (pixels, labels))
            size = "x".join(map(str, self.size))
            yield self.measured({"dtype": dtype, "batch": batch, "size": size}, variants)

    def step(self, model: nn.Module, dtype: str, loss=lambda m, x: sum(m(x).values())):
        """A training step, as a function of the inputs."""
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == "float16")

        def run(inputs) -> None:
            total = loss(model, inputs)
            with torch.autocast(self.device.type, enabled=False):
                scaler.scale(total).backward()
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return run


def network_outputs(
    model: nn.Module, images: list[dict], kept: int, wanted: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Class logits, boxes, and mask logits of the wanted queries (B x N bool), else of the best."""
    out = model.detect(model.preprocess(images))
    if wanted is None:
        wanted = best_queries(out.pred_logits[-1], kept).cpu()
    masks = model.predict_masks(out, *wanted.nonzero(as_tuple=True))
    outputs = {"class logits": out.pred_logits[-1], "boxes": out.pred_boxes[-1]}
    return {**outputs, "mask logits": masks}, wanted


def losses_without_dropout(model: nn.Module, inputs: list[dict]) -> dict[str, torch.Tensor]:
    """The losses of a model in eval mode, which stays in it."""
    model.eval().training = True
    try:
        return model(inputs)
    finally:
        model.training = False


@contextmanager
def all_queries(model: nn.Module) -> Iterator[None]:
    """Compute the masks of all queries and then take those wanted, as the official code does."""
    predict = model.predict_masks

    def predict_all(detections, image_index, query_index):
        batch, queries = detections.hs.shape[1:3]
        pairs = torch.cartesian_prod(torch.arange(batch), torch.arange(queries))
        masks = predict(detections, pairs[:, 0], pairs[:, 1]).unflatten(0, (batch, queries))
        return masks[image_index.to(masks.device), query_index.to(masks.device)]

    model.predict_masks = predict_all
    try:
        yield
    finally:
        del model.predict_masks
