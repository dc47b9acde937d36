"""What the works share: options, config, device and the models, each built when first needed."""

import functools
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import nn

from ..engine import setup_cfg
from ..errors import UserError
from .huggingface import build_huggingface
from .inputs import make_images
from .machine import PRECISIONS
from .measure import Clock
from .models import build_boxes, build_not_compiled, build_panoptic

# What --size, --batch and --kept are per kind of work when they are not given.
_SIZES = {"training": (480, 640), "mapper": (480, 640), "memory": (1333, 1333)}
_SIZE = (800, 1066)


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        config_file: path, or name of a shipped config.
        opts: flat list of config keys and values.
        against: "huggingface", or None for our own variants alone.
        work: kinds of work, see ``WORKS``.
        device: "cpu" or "cuda"; None: a GPU if there is one.
        dtype: a name in ``PRECISIONS``.
        compile: ``torch.compile`` all models.
        size: (H, W) of the network's input; None: each work's own.
        batch: images at a time; None: 1 at inference, 2 in training.
        kept: queries kept per image; None: 15, 20 for the hook, 20, 50 and 100 for the memory.
        segments: ground-truth segments per image.
        repeats: timed rounds; None: 5 on a CPU, 20 on a GPU.
        cpu_time: take the processor time of the process in place of the time that passes.
    """

    config_file: str
    opts: tuple[str, ...] = ()
    against: str | None = None
    work: tuple[str, ...] = ("inference", "training", "hook", "mapper", "memory", "scaling")
    device: str | None = None
    dtype: str = "float32"
    compile: bool = False
    size: tuple[int, int] | None = None
    batch: int | None = None
    kept: int | None = None
    segments: int = 11
    repeats: int | None = None
    cpu_time: bool = False

    def __post_init__(self):
        if self.dtype not in PRECISIONS:
            raise UserError(f"--dtype is {self.dtype!r}, but must be one of {list(PRECISIONS)}")
        if self.against not in (None, "huggingface"):
            raise UserError(f"--against is {self.against!r}, but must be 'huggingface'")
        for name in ("batch", "kept", "segments", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}, but must be at least 1")


class Session:
    """Options and the models of one benchmark run."""

    def __init__(self, options: Options):
        self.options = options
        name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is cuda, but PyTorch finds no GPU: use --device cpu")
        if options.dtype == "tf32" and self.device.type != "cuda":
            raise UserError("--dtype is tf32, which only GPUs have: use float32 or bfloat16")
        if options.cpu_time and self.device.type == "cuda":
            raise UserError("--cpu-time says nothing of a GPU: leave it out, or use --device cpu")
        self.clock = Clock(self.device, options.cpu_time)
        self.repeats = options.repeats or (20 if self.device.type == "cuda" else 5)

    def size(self, work: str) -> tuple[int, int]:
        """(H, W) of the network's input."""
        return self.options.size or _SIZES.get(work, _SIZE)

    def output(self, work: str) -> tuple[int, int]:
        """(H, W) of the results."""
        return output_size(self.size(work))

    @functools.cached_property
    def cfg(self) -> CfgNode:
        opts = ["MODEL.DEVICE", self.device.type, "MODEL.DETR.COMPILE", str(self.options.compile)]
        return setup_cfg(self.options.config_file, [*opts, *self.options.opts])

    @functools.cached_property
    def ours(self) -> nn.Module:
        """Our panoptic model, random weights."""
        size, output = self.size("training"), self.output("training")
        return build_panoptic(self.cfg, make_images(1, size, output, self.device))

    @functools.cached_property
    def boxes(self) -> nn.Module:
        """Ours without masks, same weights."""
        return build_boxes(self.cfg, self.ours)

    @functools.cached_property
    def not_compiled(self) -> nn.Module | None:
        """Ours as it is without ``--compile``, same weights; None without that option."""
        return build_not_compiled(self.cfg, self.ours) if self.options.compile else None

    @functools.cached_property
    def huggingface(self) -> nn.Module | None:
        """Hugging Face's panoptic model, same weights; its part ``.detr`` is without masks."""
        if self.options.against is None:
            return None
        model = build_huggingface(self.cfg, self.ours)
        if self.options.compile:
            model.compile(dynamic=True)
            model.detr.compile(dynamic=True)
        return model


def output_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) that results are wanted in: 480 rows for 800, as for a COCO image."""
    height, width = size
    return round(height * 0.6), round(width * 0.6)
