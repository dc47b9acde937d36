"""Work "hook": from mask logits to a panoptic map, against the official steps."""

import torch

from ..modeling.panoptic_inference import DETRPanopticInference, Frame
from .agreement import EQUAL_PIXELS, Disagreement, require_equal_maps
from .inputs import make_blobs
from .measure import peak_memory, time_interleaved
from .official_steps import official_panoptic
from .session import Session

OURS, OFFICIAL = "ours", "official steps"


class HookWork:
    """One image; a tenth of the queries are weaker copies of others, so that a filter pass runs."""

    def __init__(self, session: Session):
        self.session = session
        self.device = session.device
        self.queries = session.options.kept or 20
        self.size, self.output = session.size("hook"), session.output("hook")
        grid = tuple(-(-side // 4) for side in self.size)
        self.masks = make_blobs(self.queries, self.queries // 10, grid, self.device)
        # Two thirds things; the stuff queries share three classes.
        self.things = set(range(20))
        self.labels = [i % 20 if i % 3 else 20 + i % 9 // 3 for i in range(self.queries)]
        self.scores = torch.linspace(0.99, 0.86, self.queries)
        self.min_area = session.cfg.MODEL.DETR.TEST.MIN_SEGMENT_AREA
        self.hook = DETRPanopticInference(
            thing_ids=sorted(self.things), num_classes=23, min_segment_area=self.min_area
        )
        self.frame = Frame(self.size, self.size, self.output)

    def _ours(self):
        # In the model, scores and labels come to the host with one transfer before the masks.
        return self.hook(self.masks, self.scores, torch.tensor(self.labels), self.frame)

    def _official(self):
        return official_panoptic(
            self.masks, self.labels, self.things, self.size, self.output, self.min_area
        )

    @torch.no_grad()
    def check(self) -> dict:
        """Compare the maps.

        Raises:
            Disagreement: segments differ, or too many pixels.
        """
        seg, info = self._ours()
        other, other_info = self._official()
        ours = [x["category_id"] for x in info]
        theirs = [x["category_id"] for x in other_info]
        if ours != theirs:
            raise Disagreement(
                f"hook: classes of the segments are {ours} and {theirs}; nothing is timed"
            )
        share = require_equal_maps("hook", seg, torch.from_numpy(other), EQUAL_PIXELS)
        return {"equal pixels": share, "segments": len(info), "least share": EQUAL_PIXELS}

    @torch.no_grad()
    def measure(self) -> dict:
        """Times, their ratio, and memory."""
        variants = {OURS: self._ours, OFFICIAL: self._official}
        times = time_interleaved(variants, self.session.clock, self.session.repeats, warmup=2)
        return {
            "settings": {"size": self.size, "output": self.output, "kept": self.queries},
            "times": {name: t.as_dict() for name, t in times.items()},
            "ratios": {f"{OFFICIAL} / {OURS}": times[OFFICIAL].median / times[OURS].median},
            "memory": {name: peak_memory(run, self.device) for name, run in variants.items()},
        }
