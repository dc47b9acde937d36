"""tools/train_net.py, whose process of one rank is killed once: started by test_torchrun.py.

    dying_worker.py FLAG RANK ITERATION [options of train_net.py]

The process of that rank makes the file FLAG and kills itself within the iteration, unless the file
is there: a worker that is started again trains to the end.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from detectron2.engine import HookBase, default_argument_parser

from detr_panoptic_d2.engine import PanopticTrainer, launch_job, setup_job


class Die(HookBase):
    def __init__(self, flag, iteration):
        self.flag, self.iteration = flag, iteration

    def after_backward(self):
        if self.trainer.iter == self.iteration and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main(args: argparse.Namespace) -> None:
    cfg = setup_job(args)
    trainer = PanopticTrainer(cfg)
    trainer.resume_or_load(resume=True)
    if int(os.environ["RANK"]) == args.rank:
        hook = Die(args.flag, args.iteration)
        trainer._trainer.register_hooks([hook])
        hook.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    flag, rank, iteration, *rest = sys.argv[1:]
    parsed = default_argument_parser().parse_args(rest)
    parsed.flag, parsed.rank, parsed.iteration = Path(flag), int(rank), int(iteration)
    launch_job(main, parsed)
