"""Work "memory": what the mask path takes as more queries are kept."""

import functools

import torch

from ..modeling.panoptic_inference import Frame
from .agreement import require_close
from .inputs import make_images
from .machine import precision
from .measure import peak_memory
from .session import Session

_KEPT = (20, 50, 100)
# Convolutions of another batch size may sum in another order.
_CHECKED = 3


class MemoryWork:
    """Peak memory of attention maps, mask head and hook, beyond features and decoder outputs."""

    def __init__(self, session: Session):
        self.session = session
        self.device = session.device
        self.size = session.size("memory")
        self.output = session.output("memory")
        self.images = make_images(1, self.size, self.output, self.device)
        queries = session.cfg.MODEL.DETR.NUM_OBJECT_QUERIES
        wanted = _KEPT if session.options.kept is None else (session.options.kept,)
        self.kept = sorted({min(k, queries) for k in wanted})

    @torch.no_grad()
    def check(self) -> dict:
        """The masks of a few queries are the same whether alone or among many.

        Raises:
            Disagreement: they are not.
        """
        model = self.session.ours.eval()
        with precision("float32", self.device):
            out = model.detect(model.preprocess(self.images))
            few, many = (
                self._masks(model, out, k) for k in (min(_CHECKED, self.kept[0]), self.kept[0])
            )
        name = "mask logits of few and many queries"
        return {name: require_close(name, few, many[: len(few)])}

    @torch.no_grad()
    def measure(self) -> dict:
        """Peak bytes per number of kept queries; ``output`` is the mask logits themselves."""
        model = self.session.ours.eval()
        memory = []
        with precision(self.session.options.dtype, self.device):
            out = model.detect(model.preprocess(self.images))
            for kept in self.kept:
                head = functools.partial(self._masks, model, out, kept)
                masks = head()
                taken = {
                    "mask head": peak_memory(head, self.device),
                    "of which output": masks.numel() * masks.element_size(),
                    "hook": peak_memory(functools.partial(self._hook, model, masks), self.device),
                }
                memory.append({"kept": kept, **taken})
        result = {
            "settings": {"size": self.size, "output": self.output},
            "memory by kept queries": memory,
        }
        chunk = getattr(model.mask_head, "chunk_bytes", None)
        if chunk is not None:
            result["settings"]["chunk bytes"] = chunk
        return result

    def _masks(self, model, out, kept: int) -> torch.Tensor:
        query = torch.arange(kept)
        return model.predict_masks(out, torch.zeros_like(query), query)

    def _hook(self, model, masks):
        labels = torch.arange(len(masks)) % self.session.ours.num_classes
        frame = Frame(self.size, self.size, self.output)
        return model.panoptic_inference(masks, torch.ones(len(masks)), labels, frame)
