#!/usr/bin/env python
"""Train or evaluate, with Detectron2's command line.

    tools/train_net.py --config-file detr_panoptic_R50.yaml --num-gpus 8
    tools/train_net.py --config-file detr_panoptic_R50.yaml --eval-only MODEL.WEIGHTS model.pth
    torchrun --nproc_per_node 8 tools/train_net.py --config-file detr_panoptic_R50.yaml

Without a GPU it runs on the CPU.
"""

import argparse

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import detr_panoptic_d2  # noqa: F401  registers model and data sets
from detr_panoptic_d2.engine import PanopticTrainer, launch_job, setup_job


def main(args: argparse.Namespace) -> dict | None:
    """Train, or evaluate with ``--eval-only``, in one process of the job."""
    cfg = setup_job(args)
    if not args.eval_only:
        trainer = PanopticTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = PanopticTrainer.build_model(cfg)
    checkpointer = PanopticTrainer.build_checkpointer(cfg, model)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = PanopticTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    launch_job(main, default_argument_parser().parse_args())
