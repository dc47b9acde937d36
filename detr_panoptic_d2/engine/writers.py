"""Writers of metrics and pictures beside Detectron2's."""

import importlib
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..errors import UserError, check_value


def build_writers(cfg: CfgNode) -> list[EventWriter]:
    """Start what ``WRITERS`` names beside TensorBoard. They come before TensorBoard's writer.

    Environment variables of the packages choose server, project and mode. All starts of one
    training are runs of a group (wandb) or of an experiment (mlflow).
    """
    folder = Path(cfg.OUTPUT_DIR).resolve()
    writers: list[EventWriter] = []
    for name in cfg.WRITERS:
        names = ("tensorboard", "wandb", "mlflow")
        check_value("WRITERS", name, name in names, "tensorboard, wandb or mlflow")
        if name == "tensorboard":
            continue
        try:
            package = importlib.import_module(name)
        except ImportError as error:
            message = f"WRITERS has '{name}', which is not installed: pip install {name}"
            raise UserError(message) from error
        folder.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_load(cfg.dump())
        if name == "mlflow":
            writers.append(MlflowWriter(package, folder.name, config))
        else:
            # It reads what is written to TensorBoard.
            options = {"dir": folder, "group": folder.name, "sync_tensorboard": True}
            package.init(**options, config=config)
    return writers


class MlflowWriter(EventWriter):
    """Write scalars and pictures of the event storage to a new run of MLflow."""

    def __init__(self, mlflow: ModuleType, experiment: str, config: dict):
        self._mlflow, self._last_write = mlflow, -1
        mlflow.set_experiment(experiment)
        mlflow.start_run()
        mlflow.log_dict(config, "config.yaml")

    def write(self) -> None:
        storage = get_event_storage()
        metrics: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._last_write:
                # Other characters are not allowed.
                metrics[iteration][re.sub(r"[^/\w.\- ]", "_", name)] = value
        for iteration, values in metrics.items():
            self._mlflow.log_metrics(values, step=iteration)
        self._last_write = max(metrics, default=self._last_write)
        # TensorBoard's writer removes the pictures.
        for name, picture, iteration in storage._vis_data:
            image = np.asarray(picture).transpose(1, 2, 0)
            self._mlflow.log_image(image, f"{name}_{iteration:07d}.png")

    def close(self) -> None:
        self._mlflow.end_run()
