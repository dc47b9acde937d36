"""Work "training": one step of forward, backward and optimizer, with masks and without."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .agreement import require_close
from .huggingface import panoptic_labels
from .inputs import add_segments, make_images
from .machine import autocast, precision
from .measure import count_flops, peak_memory, time_interleaved
from .models import fixed_statistics, no_dropout
from .session import Session

OURS, BOXES, ALL = "ours panoptic", "ours boxes", "ours, masks of all queries"
THEIRS, THEIR_BOXES = "Hugging Face panoptic", "Hugging Face boxes"

# Losses are sums over pixels and boxes, so that they round more than the outputs behind them.
_LOSS_TOLERANCE = 1e-3
_LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")


class TrainingWork:
    """A training step on images that lie on the device: AdamW with rate 0 keeps the weights."""

    def __init__(self, session: Session):
        self.session = session
        self.device = session.device
        options = session.options
        size = session.size("training")
        images = make_images(options.batch or 2, size, size, self.device)
        num_classes = session.cfg.MODEL.DETR.NUM_CLASSES
        self.inputs = add_segments(images, options.segments, num_classes)
        self.box_inputs = add_segments(images, options.segments, num_classes, with_masks=False)

    @torch.no_grad()
    def check(self) -> dict:
        """Compare the losses of the last decoder layer in float32, without dropout.

        Raises:
            Disagreement: they differ.
        """
        ours, boxes = self.session.ours.train(), self.session.boxes.train()
        with ExitStack() as stack:
            stack.enter_context(precision("float32", self.device))
            for model in (ours, boxes):
                stack.enter_context(no_dropout(model))
                stack.enter_context(fixed_statistics(model))
            losses = ours(self.inputs)
            others = {BOXES: boxes(self.box_inputs)}
            with all_queries(ours):
                others[ALL] = ours(self.inputs)
            if self.session.huggingface is not None:
                others[THEIRS] = self._their_losses()
        found = {}
        for name, other in others.items():
            for key in _LOSSES:
                if key in other:
                    found[f"{key}, {name}"] = require_close(
                        f"{key} of {OURS} and {name}", losses[key], other[key], _LOSS_TOLERANCE
                    )
        return {**found, "tolerance": _LOSS_TOLERANCE}

    def _their_losses(self) -> dict[str, torch.Tensor]:
        """Their losses with our weights of each; in eval mode, so that dropout is off.

        Their auxiliary outputs are off here: transformers then feeds the normed output of a
        decoder layer to the next one, which is another network.
        """
        theirs = self.session.huggingface.eval()
        theirs.config.auxiliary_loss = False
        labels = panoptic_labels(self.inputs, with_masks=True)
        output = theirs(self._pixel_values(), labels=labels)
        weights = self.session.ours.criterion.weights
        return {key: weights[key] * output.loss_dict[key] for key in _LOSSES}

    def _pixel_values(self) -> torch.Tensor:
        return self.session.ours.preprocess(self.inputs).tensor

    def measure(self) -> dict:
        """Times, ratios, memory and operations of every variant."""
        options = self.session.options
        with ExitStack() as stack:
            stack.enter_context(precision(options.dtype, self.device))
            for model in (self.session.ours, self.session.boxes):
                stack.enter_context(fixed_statistics(model))
            variants = self._variants()
            times = time_interleaved(variants, self.session.clock, self.session.repeats)
            memory = {name: peak_memory(run, self.device) for name, run in variants.items()}
            flops = {}
            if not options.compile:
                flops = {name: count_flops(run) for name, run in variants.items()}
        medians = {name: t.median for name, t in times.items()}
        pairs = ((OURS, BOXES), (ALL, BOXES), (OURS, THEIRS), (BOXES, THEIR_BOXES))
        ratios = {
            f"{a} / {b}": medians[a] / medians[b] for a, b in pairs if a in medians and b in medians
        }
        extra, all_extra = memory[OURS] - memory[BOXES], memory[ALL] - memory[BOXES]
        ratios["extra memory over boxes: ours / masks of all queries"] = extra / all_extra
        settings = {
            "size": self.session.size("training"),
            "batch": len(self.inputs),
            "segments": [len(x["instances"]) for x in self.inputs],
        }
        result = {"settings": settings, "ratios": ratios, "memory": memory}
        if flops:
            result["flops"] = flops
        return {**result, "times": {name: t.as_dict() for name, t in times.items()}}

    def _variants(self) -> dict[str, Callable[[], None]]:
        ours, boxes = self.session.ours.train(), self.session.boxes.train()
        step = _Step(ours, self.device, self.session.options.dtype)
        our_loss = functools.partial(_total_of_ours, ours, self.inputs)

        def all_step():
            with all_queries(ours):
                step(our_loss)

        box_step = _Step(boxes, self.device, self.session.options.dtype)
        box_loss = functools.partial(_total_of_ours, boxes, self.box_inputs)
        variants = {
            OURS: functools.partial(step, our_loss),
            BOXES: functools.partial(box_step, box_loss),
            ALL: all_step,
        }
        theirs = self.session.huggingface
        if theirs is not None:
            theirs.train()
            theirs.config.auxiliary_loss = self.session.cfg.MODEL.DETR.DEEP_SUPERVISION
            sides = ((THEIRS, theirs, True), (THEIR_BOXES, theirs.detr, False))
            for name, model, with_masks in sides:
                their_step = _Step(model, self.device, self.session.options.dtype)
                loss = functools.partial(
                    _total_of_theirs,
                    model,
                    self._pixel_values(),
                    panoptic_labels(self.inputs, with_masks),
                )
                variants[name] = functools.partial(their_step, loss)
        return variants


class _Step:
    """Forward, backward and an optimizer step that changes nothing."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: str):
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
        self.device, self.dtype = device, dtype

    def __call__(self, loss: Callable[[], torch.Tensor]) -> None:
        with autocast(self.dtype, self.device):
            total = loss()
        with torch.autocast(self.device.type, enabled=False):
            self.scaler.scale(total).backward()
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


@contextmanager
def all_queries(model: nn.Module) -> Iterator[None]:
    """Compute the masks of all queries and then take those wanted, as the official code does."""
    predict = model.predict_masks

    def predict_all(detections, image_index, query_index):
        batch, queries = detections.hs.shape[1:3]
        pairs = torch.cartesian_prod(torch.arange(batch), torch.arange(queries))
        pairs = pairs.to(image_index.device)
        masks = predict(detections, pairs[:, 0], pairs[:, 1]).unflatten(0, (batch, queries))
        return masks[image_index.to(masks.device), query_index.to(masks.device)]

    model.predict_masks = predict_all
    try:
        yield
    finally:
        del model.predict_masks


def _total_of_ours(model, inputs) -> torch.Tensor:
    return sum(model(inputs).values())


def _total_of_theirs(model, pixel_values, labels) -> torch.Tensor:
    return model(pixel_values, labels=labels).loss
