"""Training: trainer, set-up of a job, optimizer, hooks."""

from ..config import merged_cfg
from .launch import launch_job
from .optimizer import build_optimizer
from .predictor import Predictor
from .setup import check_writable, setup_cfg, setup_job
from .train_loader import build_train_loader
from .trainer import PanopticTrainer, train_or_evaluate

__all__ = [
    "PanopticTrainer",
    "Predictor",
    "build_optimizer",
    "build_train_loader",
    "check_writable",
    "launch_job",
    "merged_cfg",
    "setup_cfg",
    "setup_job",
    "train_or_evaluate",
]
