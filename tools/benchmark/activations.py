"""Memory of a training step on a GPU, computed without a GPU.

    python tools/benchmark/activations.py --config-file detr_panoptic_R50.yaml [KEY VALUE ...]

The forward pass runs on tensors of ``FakeTensorMode``, which claim to be on a GPU and have no data.
The sum has the weights, gradients, AdamW's state, what autograd saves for the backward pass (each
storage once), and the largest part that checkpointing computes again. It lacks the CUDA context,
workspace of cuDNN, temporary tensors and fragmentation. The last columns are the largest batch of
the table whose sum is at most 80 % of 8, 12, 24 and 80 GiB. Attention is counted as PyTorch's
memory-efficient kernel.
"""

import argparse
import contextlib
import itertools
from unittest import mock

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from detr_panoptic_d2.engine import setup_cfg
from detr_panoptic_d2.modeling import criterion, mask_head, transformer

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CHECKPOINTS = ("CHECKPOINT_MASK_HEAD", "CHECKPOINT_ENCODER")
CARDS = (8, 12, 24, 80)
LABELS = ("none", "mask head", "mask head, encoder")


class SavedTensors(contextlib.ExitStack):
    """Collects the storages that autograd saves in this context."""

    def __init__(self, excluded: set[int]):
        super().__init__()
        self.excluded, self.storages, self.recomputed = excluded, {}, 0
        self.enter_context(saved_tensors_hooks(self.add, lambda x: x))

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.excluded:
            self.storages[storage._cdata] = storage
        return tensor

    def total(self) -> int:
        return sum(x.nbytes() for x in self.storages.values())

    def checkpoint(self, function, *args, **options):
        """Replace ``checkpoint``: save the arguments, and note what the function itself saves."""
        for x in args:
            if isinstance(x, torch.Tensor):
                self.add(x)
        with SavedTensors(self.excluded | self.storages.keys()) as inner:
            result = function(*args)
        self.recomputed = max(self.recomputed, inner.total())
        return result


def run_forward(cfg, batch, size, segments, device, count_recomputed=True):
    """Run the forward pass of a training step.

    Returns:
        bytes of all weights, bytes of those that are trained, bytes saved for the backward pass,
        bytes of the largest part that is computed again.
    """
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).train()
    for module in model.modules():
        for name, x in [*module._parameters.items(), *module._buffers.items()]:
            if isinstance(x, torch.nn.Parameter):
                zeros = torch.zeros_like(x, device=device, requires_grad=False)
                module._parameters[name] = torch.nn.Parameter(zeros, x.requires_grad)
            elif x is not None:
                module._buffers[name] = torch.zeros_like(x, device=device)
    # Two steps need data, which fake tensors do not have: padding and the assignment.
    model.preprocess = lambda _: ImageList(images, [size] * batch)
    pairs = list(range(segments)) * batch
    model.criterion.matcher.assign = lambda costs, counts: ([pairs] * len(costs),) * 2
    images = torch.zeros(batch, 3, *size, device=device)
    instances = Instances(size, gt_classes=torch.zeros(segments, dtype=torch.long))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]] * segments))
    instances.gt_masks = BitMasks(torch.zeros(segments, *size, dtype=torch.bool))
    weights = [*model.parameters(), *model.buffers()]
    with SavedTensors({x.untyped_storage()._cdata for x in weights}) as saved:
        if count_recomputed:
            for module in (criterion, mask_head, transformer):
                saved.enter_context(mock.patch.object(module, "checkpoint", saved.checkpoint))
        losses = model([{"instances": instances}] * batch)
    assert all(x.requires_grad for x in losses.values())
    trained = sum(x.nbytes for x in weights if x.requires_grad)
    return sum(x.nbytes for x in weights), trained, saved.total(), saved.recomputed


def efficient_attention(query, key, value, mask=None, dropout=0.0, is_causal=False):
    """Replace ``F.scaled_dot_product_attention``, which chooses no fused kernel without a GPU."""
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    return operator(query, key, value, mask, True, dropout, is_causal)[0]


def run_on_fake_gpu(dtype, *args):
    """:func:`run_forward` under CUDA's autocast. ``torch.autocast`` is off if there is no GPU."""
    torch.autocast_increment_nesting()
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype)
    attention = mock.patch.object(F, "scaled_dot_product_attention", efficient_attention)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), attention:
            return run_forward(*args, "cuda")
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", default="detr_panoptic_R50.yaml")
    parser.add_argument("--size", nargs="+", default=["800x1066", "480x640"], help="HEIGHTxWIDTH")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--segments", type=int, default=11, help="segments in an image")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE")
    args = parser.parse_args(arguments)
    rows = []
    for size, name, number in itertools.product(args.size, TYPES, range(len(LABELS))):
        keys = [x for key in CHECKPOINTS[:number] for x in (f"MODEL.DETR.{key}", "True")]
        cfg = setup_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts, *keys])
        shape, sums = tuple(map(int, size.split("x"))), {}
        for batch in args.batch:
            values = run_on_fake_gpu(TYPES[name], cfg, batch, shape, args.segments)
            weights, trained, saved, recomputed = (x / 2**30 for x in values)
            sums[batch] = weights + 3 * trained + saved + recomputed
        fitting = [max((b for b in sums if sums[b] <= 0.8 * gib), default="-") for gib in CARDS]
        rows.append([size, name, LABELS[number], *(f"{x:.2f}" for x in sums.values()), *fitting])
    print(f"Weights {weights:.2f} GiB, gradients {trained:.2f} GiB, AdamW {2 * trained:.2f} GiB.")
    header = ["size", "type", "checkpoints", *(f"batch {b}: GiB" for b in args.batch)]
    header += [f"{gib} GB" for gib in CARDS]
    print(tabulate(rows, header, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
