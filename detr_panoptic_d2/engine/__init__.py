"""Training: trainer, set-up of a job, optimizer, loader, hooks."""

from .distributed import launch_job
from .optimizer import build_optimizer
from .predictor import Predictor, load
from .setup import setup_cfg, setup_job
from .train_loader import build_train_loader
from .trainer import PanopticTrainer, train_or_evaluate

__all__ = [
    "PanopticTrainer",
    "Predictor",
    "build_optimizer",
    "build_train_loader",
    "launch_job",
    "load",
    "setup_cfg",
    "setup_job",
    "train_or_evaluate",
]
