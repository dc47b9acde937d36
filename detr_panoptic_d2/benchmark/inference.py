"""Work "inference": images to panoptic maps, against boxes alone and against Hugging Face."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from ..modeling.panoptic_inference import DETRPanopticInference
from .agreement import EQUAL_PIXELS, TOLERANCE, require_close, require_equal_maps
from .inputs import make_images
from .machine import precision
from .measure import StageClock, count_flops, peak_memory, stage_medians, time_interleaved
from .models import best_queries, keep_best
from .official_steps import official_panoptic
from .session import Session

OURS, BOXES = "ours panoptic", "ours boxes"
NOT_COMPILED = "ours panoptic, not compiled"
THEIRS, THEIR_BOXES = "Hugging Face panoptic", "Hugging Face boxes"


class InferenceWork:
    """Whole inference on images that lie on the device.

    Ours takes bytes and gives panoptic maps at the output size. Hugging Face's panoptic model
    takes normalised images and is followed by its own post-processing; its box model is the
    network alone.
    """

    def __init__(self, session: Session):
        self.session = session
        self.device = session.device
        options = session.options
        self.kept = options.kept or min(15, session.cfg.MODEL.DETR.NUM_OBJECT_QUERIES)
        self.output = session.output("inference")
        self.images = make_images(
            options.batch or 1, session.size("inference"), self.output, self.device
        )

    @torch.no_grad()
    def check(self) -> dict:
        """Compare results in float32; must run before :meth:`measure`.

        Raises:
            Disagreement: they differ.
        """
        ours, boxes = self.session.ours.eval(), self.session.boxes.eval()
        keep_best(ours, self.kept)
        self.pixel_values = ours.preprocess(self.images).tensor
        with precision("float32", self.device):
            logits, pred_boxes, masks, maps = self._our_outputs()
            self.dropped = ~best_queries(logits, self.kept)
            alone = boxes.detect(boxes.preprocess(self.images))
            found = {
                "class logits, ours boxes": require_close(
                    "class logits of our panoptic and box models", logits, alone.pred_logits[-1]
                )
            }
            if self.session.not_compiled is not None:
                plain = self.session.not_compiled
                plain = plain.detect(plain.preprocess(self.images)).pred_logits[-1]
                found[f"class logits, {NOT_COMPILED}"] = require_close(
                    "class logits of our model, compiled and not", logits, plain
                )
            if self.session.huggingface is not None:
                theirs = self.session.huggingface.eval()(self.pixel_values)
                pairs = (
                    ("class logits", logits, theirs.logits),
                    ("boxes", pred_boxes, theirs.pred_boxes),
                    ("mask logits", masks, theirs.pred_masks[~self.dropped]),
                )
                for name, a, b in pairs:
                    found[f"{name}, {THEIRS}"] = require_close(f"{name} against {THEIRS}", a, b)
                found.update(self._check_maps(maps, theirs))
        if self.session.options.dtype != "float32":
            with precision(self.session.options.dtype, self.device):
                low = self._our_outputs(~self.dropped)
            names = ("class logits", "boxes", "mask logits")
            for name, a, b in zip(names, low, (logits, pred_boxes, masks), strict=False):
                name = f"{name}, {self.session.options.dtype} against float32"
                found[name] = require_close(name, a, b, float("inf"))
            name = f"equal pixels, {self.session.options.dtype} against float32"
            found[name] = require_equal_maps(name, low[3], maps, 0.0)
        found["tolerance"] = TOLERANCE
        return found

    def _our_outputs(self, kept: torch.Tensor | None = None):
        """Class logits, boxes, mask logits of the kept queries, and panoptic maps."""
        model = self.session.ours
        out = model.detect(model.preprocess(self.images))
        if kept is None:
            kept = best_queries(out.pred_logits[-1], self.kept)
        masks = model.predict_masks(out, *kept.cpu().nonzero(as_tuple=True))
        maps = torch.stack([x["panoptic_seg"][0] for x in model(self.images)])
        return out.pred_logits[-1], out.pred_boxes[-1], masks, maps

    def _check_maps(self, maps: torch.Tensor, theirs) -> dict[str, float]:
        """Compare our panoptic maps with those that the official steps make of their masks.

        Hugging Face's own post-processing follows another rule, so its maps are others.
        """
        hook = self.session.ours.panoptic_inference
        if type(hook) is not DETRPanopticInference or hook.overlap_thresh:
            return {}
        size = tuple(self.pixel_values.shape[-2:])
        share = 1.0
        for i, ours in enumerate(maps):
            kept = ~self.dropped[i]
            labels = theirs.logits[i, kept].argmax(-1).tolist()
            official, _ = official_panoptic(
                theirs.pred_masks[i, kept],
                labels,
                hook.thing_ids,
                size,
                self.output,
                hook.min_segment_area,
            )
            name = f"panoptic map of image {i} against {THEIRS} and the official steps"
            equal = require_equal_maps(name, ours, torch.from_numpy(official), EQUAL_PIXELS)
            share = min(share, equal)
        return {f"equal pixels, {THEIRS} and the official steps": share}

    def measure(self) -> dict:
        """Times, ratios, stages, memory and operations of every variant."""
        options = self.session.options
        for model in (self.session.ours, self.session.boxes, self.session.huggingface):
            if model is not None:
                model.eval()
        keep_best(self.session.ours, self.kept)
        if self.session.not_compiled is not None:
            keep_best(self.session.not_compiled, self.kept)
        with torch.no_grad(), precision(options.dtype, self.device):
            variants = self._variants()
            times = time_interleaved(variants, self.session.clock, self.session.repeats, warmup=2)
            medians = {name: t.median for name, t in times.items()}
            result = {
                "settings": {
                    "size": self.session.size("inference"),
                    "output": self.output,
                    "batch": len(self.images),
                    "kept": self.kept,
                },
                "times": {name: t.as_dict() for name, t in times.items()},
                "ratios": _ratios(medians),
                "memory": {name: peak_memory(v, self.device) for name, v in variants.items()},
            }
            if not options.compile:
                result["stages"] = self._stages(variants)
                result["flops"] = {name: count_flops(run) for name, run in variants.items()}
        return result

    def _variants(self) -> dict[str, Callable[[], object]]:
        variants = {
            OURS: functools.partial(self.session.ours, self.images),
            BOXES: functools.partial(self.session.boxes, self.images),
        }
        if self.session.not_compiled is not None:
            variants[NOT_COMPILED] = functools.partial(self.session.not_compiled, self.images)
        theirs = self.session.huggingface
        if theirs is not None:
            variants[THEIRS] = self._their_panoptic
            variants[THEIR_BOXES] = functools.partial(theirs.detr, self.pixel_values)
        return variants

    @functools.cached_property
    def _processor(self):
        from transformers import DetrImageProcessor

        return DetrImageProcessor()

    def _their_panoptic(self, clock: StageClock | None = None):
        outputs = self.session.huggingface(self.pixel_values)
        if clock is not None:
            clock.begin("hook")
        # The same queries as on our side: the others become no-object.
        outputs.logits[self.dropped] = outputs.logits.new_tensor(
            [-50.0] * (outputs.logits.shape[-1] - 1) + [50.0]
        )
        stuff = set(range(self.session.ours.num_classes))
        stuff -= self.session.ours.panoptic_inference.thing_ids
        result = self._processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.0,
            label_ids_to_fuse=stuff,
            target_sizes=[self.output] * len(self.images),
        )
        if clock is not None:
            clock.end("hook")
        return result

    def _stages(self, variants) -> dict[str, dict[str, float]]:
        clock = StageClock(self.session.clock)
        stages = {}
        for name, model in ((OURS, self.session.ours), (BOXES, self.session.boxes)):
            with watch_ours(model, clock):
                stages[name] = stage_medians(variants[name], clock, self.session.repeats)
        theirs = self.session.huggingface
        if theirs is not None:
            modules = (
                ("backbone", theirs.detr.model.backbone),
                ("transformer", theirs.detr.model.encoder),
                ("transformer", theirs.detr.model.decoder),
                ("attention maps", theirs.bbox_attention),
                ("mask head", theirs.mask_head),
            )
            with clock.watch(modules):
                run = functools.partial(self._their_panoptic, clock)
                stages[THEIRS] = stage_medians(run, clock, self.session.repeats)
                stages[THEIR_BOXES] = stage_medians(
                    variants[THEIR_BOXES], clock, self.session.repeats
                )
        return stages


@contextmanager
def watch_ours(model: torch.nn.Module, clock: StageClock) -> Iterator[None]:
    """Time the stages of our model by its public steps.

    The backbone that runs at inference is a folded copy without hooks, so its stage goes from the
    start of ``detect`` to the projection behind it.
    """
    detect = model.detect

    def watched(images):
        clock.begin("backbone")
        return detect(images)

    modules = [("transformer", model.transformer)]
    if model.mask_head is not None:
        modules += [
            ("attention maps", model.bbox_attention),
            ("mask head", model.mask_head),
            ("hook", model.panoptic_inference),
        ]
    with ExitStack() as stack:
        model.detect = watched
        stack.callback(delattr, model, "detect")
        handle = model.input_proj.register_forward_pre_hook(lambda *_: clock.end("backbone"))
        stack.callback(handle.remove)
        stack.enter_context(clock.watch(modules))
        yield


def _ratios(medians: dict[str, float]) -> dict[str, float]:
    pairs = (
        (OURS, BOXES),
        (NOT_COMPILED, OURS),
        (OURS, THEIR_BOXES),
        (THEIRS, OURS),
        (THEIRS, THEIR_BOXES),
    )
    return {
        f"{a} / {b}": medians[a] / medians[b] for a, b in pairs if a in medians and b in medians
    }
