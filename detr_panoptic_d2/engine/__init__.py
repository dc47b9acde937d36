"""Training: trainer, set-up of a job, optimizer, checkpoints."""

from ..checkpoint.atomic import atomic_file
from .launch import launch_job
from .optimizer import build_optimizer
from .setup import check_writable, merged_cfg, setup_cfg, setup_job
from .trainer import PanopticTrainer

__all__ = [
    "PanopticTrainer",
    "atomic_file",
    "build_optimizer",
    "check_writable",
    "launch_job",
    "merged_cfg",
    "setup_cfg",
    "setup_job",
]
