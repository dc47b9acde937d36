"""Work "scaling": how the cost of inference grows with kept queries, image size and batch."""

import functools
from typing import NamedTuple

import torch

from .agreement import require_close
from .inputs import make_images
from .machine import precision
from .measure import peak_memory, time_interleaved
from .models import keep_best
from .session import Session, output_size

OURS, BOXES, THEIR_BOXES = "ours panoptic", "ours boxes", "Hugging Face boxes"

_KEPT = (1, 5, 15, 30, 50, 100)
_SIZES = ((480, 640), (640, 853), (800, 1066), (1066, 1421), (1333, 1333))
_BATCHES = (1, 2, 4)
_DEFAULT_KEPT = 15


class Case(NamedTuple):
    """One point of a curve."""

    size: tuple[int, int]
    batch: int
    kept: int


class ScalingWork:
    """Three curves through one point: 800x1066, batch 1, 15 kept, or what the options say."""

    def __init__(self, session: Session):
        self.session = session
        self.device = session.device
        options = session.options
        queries = session.cfg.MODEL.DETR.NUM_OBJECT_QUERIES
        size = session.size("scaling")
        sizes = _SIZES
        if options.size is not None:
            sizes = [tuple(max(32, int(side * f)) for side in size) for f in (0.5, 0.75, 1)]
        base = Case(size, options.batch or 1, min(options.kept or _DEFAULT_KEPT, queries))
        # The last point of the batches is the largest: a memory that is too small fails at once.
        self.curves = {
            "kept queries": [base._replace(kept=k) for k in _KEPT if k <= queries],
            "image size": [base._replace(size=s) for s in sizes],
            "batch": [base._replace(batch=base.batch * b) for b in _BATCHES],
        }

    def _images(self, case: Case) -> list[dict]:
        return make_images(case.batch, case.size, output_size(case.size), self.device)

    @torch.no_grad()
    def check(self) -> dict:
        """Compare the class logits of all sides in float32 at every size and batch.

        Raises:
            Disagreement: they differ.
        """
        ours, boxes = self.session.ours.eval(), self.session.boxes.eval()
        worst = 0.0
        cases = {case._replace(kept=0) for curve in self.curves.values() for case in curve}
        with precision("float32", self.device):
            for case in sorted(cases):
                pixels = ours.preprocess(self._images(case))
                logits = ours.detect(pixels).pred_logits[-1]
                others = {BOXES: boxes.detect(pixels).pred_logits[-1]}
                if self.session.huggingface is not None:
                    others[THEIR_BOXES] = self.session.huggingface.eval().detr(pixels.tensor).logits
                for name, other in others.items():
                    name = f"class logits against {name}, {_label(case)}"
                    worst = max(worst, require_close(name, logits, other))
        return {"class logits, greatest difference": worst}

    @torch.no_grad()
    def measure(self) -> dict:
        """Times and peak memory at every point of the curves."""
        points = {case: None for curve in self.curves.values() for case in curve}
        with precision(self.session.options.dtype, self.device):
            for case in points:
                points[case] = self._measure_case(case)
        curves = {name: [points[case] for case in cases] for name, cases in self.curves.items()}
        return {"settings": {"base": _label(self.curves["batch"][0])}, "curves": curves}

    def _measure_case(self, case: Case) -> dict:
        images = self._images(case)
        ours = self.session.ours.eval()
        keep_best(ours, case.kept)
        variants = {
            OURS: functools.partial(ours, images),
            BOXES: functools.partial(self.session.boxes.eval(), images),
        }
        if self.session.huggingface is not None:
            pixels = ours.preprocess(images).tensor
            variants[THEIR_BOXES] = functools.partial(self.session.huggingface.eval().detr, pixels)
        times = time_interleaved(variants, self.session.clock, self.session.repeats)
        return {
            **case._asdict(),
            "times": {name: t.as_dict() for name, t in times.items()},
            "memory": {name: peak_memory(run, self.device) for name, run in variants.items()},
            "ratio": times[OURS].median / times[BOXES].median,
        }


def _label(case: Case) -> str:
    label = f"{case.size[0]}x{case.size[1]}, batch {case.batch}"
    return f"{label}, {case.kept} kept" if case.kept else label
