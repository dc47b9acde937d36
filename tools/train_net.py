#!/usr/bin/env python
"""Train or evaluate, with Detectron2's command line: ``detr-panoptic train`` as a script.

    tools/train_net.py --config-file detr_panoptic_R50.yaml --num-gpus 8
    torchrun --nproc_per_node 8 tools/train_net.py --config-file detr_panoptic_R50.yaml

What it does is in ``detr_panoptic_d2/cli/train.py``.
"""

import sys

from detr_panoptic_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
