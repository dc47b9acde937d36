"""The kinds of work: each first checks that all sides agree, and then measures them."""

import functools
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import huggingface
import torch
from measure import (
    Clock,
    autocast,
    peak_memory,
    precision,
    ratio,
    require_close,
    step_times,
    time_interleaved,
)
from networks import add_segments, best_queries, build, keep_best, make_images
from torch import nn

OURS, BOXES, ALL = "ours panoptic", "ours boxes", "ours, masks of all queries"
NOT_COMPILED = "ours panoptic, not compiled"
THEIRS, THEIR_BOXES = "Hugging Face panoptic", "Hugging Face boxes"
# Of the ratio that each work prints, what is above and what is below.
PAIRS = (
    (OURS, BOXES),
    (OURS, THEIR_BOXES),
    (THEIRS, OURS),
    (THEIRS, THEIR_BOXES),
    (ALL, OURS),
    (NOT_COMPILED, OURS),
)
# Greatest difference of network outputs, relative to the greatest value where that is above 1.
# Losses are sums over pixels and boxes, so that they round more.
TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-3
_LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
_KEPT, _BATCHES = (1, 5, 15, 30, 50, 100), (1, 2, 4)
_SIZES = ((480, 640), (640, 853), (800, 1066), (1066, 1421), (1333, 1333))

Variants = dict[str, Callable[[], object]]


class Work:
    """The models of one kind of work.

    Attributes:
        sides: those that are timed; None: all.
    """

    sides: Collection[str] | None = None

    def __init__(self, options: Namespace):
        self.options = options
        self.device = torch.device(options.device)
        self.clock = Clock(self.device, options.cpu_time)
        opts = ["MODEL.DETR.COMPILE", options.compile, *options.opts]
        self.ours, self.boxes = (
            build(options.config_file, [*map(str, opts)], self.device, masks)
            for masks in (True, False)
        )
        self.theirs = huggingface.build(self.ours) if options.against else None
        if self.theirs is not None and options.compile:
            self.theirs.compile(dynamic=True)
            self.theirs.detr.compile(dynamic=True)

    def timed(self, variants: Variants) -> dict:
        """Times, ratios and peak memory."""
        if self.sides is not None:
            variants = {name: run for name, run in variants.items() if name in self.sides}
        times = time_interleaved(variants, self.clock, self.options.repeats)
        pairs = [(a, b) for a, b in PAIRS if a in times and b in times]
        return {
            "times": times,
            "ratios": {f"{a} / {b}": ratio(times, a, b) for a, b in pairs},
            "memory": {name: peak_memory(run, self.device) for name, run in variants.items()},
        }


class Inference(Work):
    """Images on the device to panoptic maps.

    Ours takes bytes. Hugging Face's panoptic model takes normalised images and is followed by its
    own post-processing; its box model is the network alone.
    """

    def __init__(self, options: Namespace):
        super().__init__(options)
        self.kept = options.kept or min(15, self.ours.query_embed.num_embeddings)
        self.size = options.size or (800, 1066)
        self.not_compiled = None
        if options.compile:
            opts = [*options.opts, "MODEL.DETR.COMPILE", "False"]
            self.not_compiled = build(options.config_file, opts, self.device).fold_for_inference()
            keep_best(self.not_compiled, self.kept)
        for model in (self.ours, self.boxes):
            model.fold_for_inference()
        keep_best(self.ours, self.kept)

    @torch.no_grad()
    def check(self, case: dict | None = None) -> dict[str, float]:
        """Compare class logits, boxes and mask logits of all sides in float32.

        Raises:
            UserError: they differ.
        """
        images = self._images(case or {})
        found = {}
        with precision("float32", self.device):
            canvas = self.ours.preprocess(images)
            out = self.ours.detect(canvas)
            sides = {BOXES: self.boxes, NOT_COMPILED: self.not_compiled}
            for name, model in sides.items():
                if model is not None:
                    logits = model.detect(canvas).pred_logits
                    found[f"class logits, {name}"] = require_close(
                        f"class logits of {name}", out.pred_logits, logits, TOLERANCE
                    )
            if self.theirs is not None:
                kept = best_queries(out.pred_logits[-1], self.kept)
                theirs = self.theirs(canvas.tensor)
                logits = huggingface.logits_of_our_classes(self.ours, theirs.logits)
                masks = self.ours.predict_masks(out, *kept.cpu().nonzero(as_tuple=True))
                for name, a, b in (
                    ("class logits", out.pred_logits[-1], logits),
                    ("boxes", out.pred_boxes[-1], theirs.pred_boxes),
                    ("mask logits", masks, theirs.pred_masks[kept]),
                ):
                    name = f"{name}, {THEIRS}"
                    found[name] = require_close(name, a, b, TOLERANCE)
        return found

    def _images(self, case: dict) -> list[dict]:
        batch = case.get("batch") or self.options.batch or 1
        return make_images(batch, case.get("size") or self.size, self.device)

    @torch.no_grad()
    def measure(self) -> dict:
        """Times, ratios and memory of all sides, and the time of each step of ours."""
        images = self._images({})
        with precision(self.options.dtype, self.device):
            result = self.timed(self._variants(images))
            steps = step_times(self.ours, images, self.clock, self.options.repeats)
        settings = {"size": self.size, "batch": len(images), "kept": self.kept}
        return {"settings": settings, **result, "steps": steps}

    def _variants(self, images: list[dict], maps: bool = True) -> Variants:
        models = {OURS: self.ours, BOXES: self.boxes, NOT_COMPILED: self.not_compiled}
        variants = {n: functools.partial(m, images) for n, m in models.items() if m is not None}
        if self.theirs is None:
            return variants
        pixels = self.ours.preprocess(images).tensor
        if maps:
            logits = self.ours.detect(self.ours.preprocess(images)).pred_logits[-1]
            kept = best_queries(logits, self.kept)
            output = (images[0]["height"], images[0]["width"])
            arguments = (self.ours, self.theirs, pixels, kept, output)
            variants[THEIRS] = functools.partial(huggingface.panoptic, *arguments)
        variants[THEIR_BOXES] = functools.partial(self.theirs.detr, pixels)
        return variants


class Curves(Inference):
    """How the cost of inference grows with kept queries, image size and batch."""

    @torch.no_grad()
    def measure(self) -> dict:
        """Times and peak memory at every point of three curves through one point."""
        queries = self.ours.query_embed.num_embeddings
        sizes = _SIZES
        if self.options.size:
            sizes = [tuple(max(32, int(x * f)) for x in self.size) for f in (0.5, 0.75, 1)]
        curves = {
            "kept": [k for k in _KEPT if k <= queries],
            "size": sizes,
            "batch": [(self.options.batch or 1) * b for b in _BATCHES],
        }
        result = {name: [] for name in curves}
        with precision(self.options.dtype, self.device):
            for name, values in curves.items():
                for value in values:
                    keep_best(self.ours, value if name == "kept" else self.kept)
                    images = self._images({name: value})
                    point = self.timed(self._variants(images, maps=False))
                    result[name].append({name: value, **point})
        keep_best(self.ours, self.kept)
        return {"settings": {"size": self.size, "kept": self.kept}, "curves": result}


class Training(Work):
    """Forward, losses, backward and an AdamW step of rate 0, on images that lie on the device."""

    def __init__(self, options: Namespace):
        super().__init__(options)
        self.size = options.size or (480, 640)
        images = make_images(options.batch or 2, self.size, self.device)
        self.inputs = add_segments(images, options.segments, self.ours.num_classes)
        for model in (self.ours, self.boxes):
            model.train()
            keep_statistics(model)

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Compare the losses of the last decoder layer in float32, without dropout.

        Auxiliary losses of transformers are of another network: it feeds the normed output of a
        decoder layer to the next one.

        Raises:
            UserError: they differ.
        """
        others = {}
        with precision("float32", self.device), no_dropout(self.ours), no_dropout(self.boxes):
            losses = self.ours(self.inputs)
            others[BOXES] = self.boxes(self.inputs)
            with all_queries(self.ours):
                others[ALL] = self.ours(self.inputs)
            if self.theirs is not None:
                pixels = self.ours.preprocess(self.inputs).tensor
                labels = huggingface.labels(self.ours, self.inputs, masks=True)
                parts = self.theirs.eval()(pixels, labels=labels).loss_dict
                weights = self.ours.criterion.weights
                others[THEIRS] = {key: weights[key] * parts[key] for key in _LOSSES}
        found = {}
        for name, other in others.items():
            for key in set(_LOSSES) & other.keys():
                label = f"{key}, {name}"
                found[label] = require_close(label, losses[key], other[key], LOSS_TOLERANCE)
        return found

    def measure(self) -> dict:
        """Times, ratios and memory of a step on every side."""
        ours = functools.partial(_our_total, self.ours, self.inputs)
        step = self._step(self.ours, ours)

        def all_step():
            with all_queries(self.ours):
                step()

        boxes = functools.partial(_our_total, self.boxes, self.inputs)
        variants = {OURS: step, BOXES: self._step(self.boxes, boxes), ALL: all_step}
        if self.theirs is not None:
            self.theirs.train()
            self.theirs.config.auxiliary_loss = self.ours.deep_supervision
            pixels = self.ours.preprocess(self.inputs).tensor
            for name, model in ((THEIRS, self.theirs), (THEIR_BOXES, self.theirs.detr)):
                labels = huggingface.labels(self.ours, self.inputs, name == THEIRS)
                loss = functools.partial(_their_total, model, pixels, labels)
                variants[name] = self._step(model, loss)
        with precision(self.options.dtype, self.device):
            result = self.timed(variants)
        segments = [len(x["instances"]) for x in self.inputs]
        settings = {"size": self.size, "batch": len(self.inputs), "segments": segments}
        return {"settings": settings, **result}

    def _step(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        update = self._update(model)
        return lambda: update(loss)

    def step_on_batches(self, model: nn.Module) -> Callable[[list[dict]], None]:
        """A training step as it is measured, on inputs that are given to it."""
        update = self._update(model)
        return lambda inputs: update(functools.partial(_our_total, model, inputs))

    def _update(self, model: nn.Module) -> Callable[[Callable[[], torch.Tensor]], None]:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        dtype = self.options.dtype
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == "float16")

        def update(loss):
            with autocast(dtype, self.device):
                total = loss()
            with torch.autocast(self.device.type, enabled=False):
                scaler.scale(total).backward()
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return update


def _our_total(model, inputs) -> torch.Tensor:
    return sum(model(inputs).values())


def _their_total(model, pixels, labels) -> torch.Tensor:
    return model(pixels, labels=labels).loss


def keep_statistics(model: nn.Module) -> None:
    """Let trained batch norms keep their running statistics in training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Switch every dropout of a model off, in training mode as well."""
    switches = [(m, n) for m in model.modules() for n in ("p", "dropout")]
    switches = [(m, n) for m, n in switches if isinstance(getattr(m, n, None), float)]
    before = [getattr(m, n) for m, n in switches]
    try:
        for m, n in switches:
            setattr(m, n, 0.0)
        yield
    finally:
        for (m, n), value in zip(switches, before, strict=True):
            setattr(m, n, value)


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
