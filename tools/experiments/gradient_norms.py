#!/usr/bin/env python
"""Print the norms of the gradients, before clipping, of the first iterations of a training.

    tools/experiments/gradient_norms.py --config-file pennfudan/pennfudan.yaml --opts SEED 1

The training is repeated with each variant of the scale of the attention maps, with the same initial
weights and batches. Nothing is evaluated.
"""

import argparse
import tempfile

import torch
from tabulate import tabulate
from torch import nn
from variants import VARIANTS

from detr_panoptic_d2.engine import PanopticTrainer, setup_job

PARTS = ("mask_head", "bbox_attention", "transformer", "backbone")
HALF = "attention half of lay1"


class _Norms(PanopticTrainer):
    """Collect the squared norm of each gradient when it is complete."""

    def __init__(self, cfg, start):
        self.start, self.rows = start, []
        super().__init__(cfg)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                part = name.partition(".")[0]
                parameter.register_post_accumulate_grad_hook(
                    lambda p, part=part: self._add(part, p.grad)
                )
        head: nn.Module = self.model.mask_head
        head.lay1.weight.register_post_accumulate_grad_hook(
            lambda p: self._add(HALF, p.grad[:, head.hidden_dim :])
        )

    def build_model(self, cfg):
        model = PanopticTrainer.build_model(cfg)
        self.start(model)
        return model

    def build_hooks(self):
        # The first hook seeds each iteration.
        return super().build_hooks()[:1]

    def build_writers(self):
        return []

    def run_step(self):
        self.rows.append(dict.fromkeys((*PARTS, HALF), 0.0))
        super().run_step()

    def _add(self, part: str, gradient: torch.Tensor) -> None:
        if part in self.rows[-1]:
            self.rows[-1][part] += gradient.double().square().sum().item()


def main() -> None:
    """Train each variant for a few iterations, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="shapes/detr_panoptic_shapes.yaml")
    parser.add_argument("--variants", nargs="+", default=["kaiming", "weights", "equal"])
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")
    args = parser.parse_args()
    table = []
    for name in args.variants:
        with tempfile.TemporaryDirectory() as folder:
            own = ["OUTPUT_DIR", folder, "SOLVER.MAX_ITER", str(args.iterations)]
            job = {"config_file": args.config_file, "opts": [*args.opts, *own], "eval_only": False}
            trainer = _Norms(setup_job(argparse.Namespace(**job)), VARIANTS[name].start)
            trainer.resume_or_load(resume=False)
            trainer.train()
        for i, row in enumerate(trainer.rows):
            table.append([name, i + 1, *(value**0.5 for value in row.values())])
    print(tabulate(table, ["variant", "iteration", *PARTS, HALF], floatfmt=".2g"))


if __name__ == "__main__":
    main()
