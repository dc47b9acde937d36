"""Writers of metrics and pictures to experiment trackers, with ``WRITERS`` of the config."""

import importlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..errors import UserError, check_value


def build_writers(cfg: CfgNode) -> list[EventWriter]:
    """Build the writers: console, ``metrics.json``, and those that ``WRITERS`` names.

    Raises:
        UserError: a name is not known, or its package is not installed.
    """
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    writers: list[EventWriter] = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER)]
    writers.append(JSONWriter(str(folder / "metrics.json")))
    trackers = {"wandb": WandbWriter, "mlflow": MLflowWriter}
    for name in cfg.WRITERS:
        allowed = ", ".join(["tensorboard", *trackers])
        check_value("WRITERS", name, name in ("tensorboard", *trackers), f"a list of {allowed}")
        if name in trackers:
            writers.append(trackers[name](cfg))
    if "tensorboard" in cfg.WRITERS:
        # The last one: it clears the pictures of the storage.
        writers.append(TensorboardXWriter(str(folder)))
    return writers


class _TrackerWriter(EventWriter):
    """Write new scalars and pictures. The run continues when the training is resumed.

    Attributes:
        library: the imported package.
        run_id: of the run to continue, or None.
    """

    package: str

    def __init__(self, cfg: CfgNode):
        try:
            self.library = importlib.import_module(self.package)
        except ImportError as error:
            raise UserError(
                f"WRITERS has '{self.package}', which is not installed: pip install {self.package}"
            ) from error
        id_file = Path(cfg.OUTPUT_DIR, f"{self.package}_run_id")
        run_id = id_file.read_text(encoding="utf-8") if id_file.is_file() else None
        id_file.write_text(self.start(cfg, run_id), encoding="utf-8")
        self._last_write = -1

    def start(self, cfg: CfgNode, run_id: str | None) -> str:
        """Start a run or continue it; return its id."""
        raise NotImplementedError

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        raise NotImplementedError

    def log_picture(self, name: str, picture: Any, iteration: int) -> None:
        """Args: picture: H x W x 3 uint8 array."""
        raise NotImplementedError

    def write(self) -> None:
        storage = get_event_storage()
        by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._last_write:
                by_iteration[iteration][name] = value
        for iteration in sorted(by_iteration):
            self.log(by_iteration[iteration], iteration)
            self._last_write = iteration
        for name, picture, iteration in storage._vis_data:
            self.log_picture(name, picture.transpose(1, 2, 0), iteration)


class WandbWriter(_TrackerWriter):
    """Weights & Biases. Its environment variables choose project, account and mode."""

    package = "wandb"

    def start(self, cfg: CfgNode, run_id: str | None) -> str:
        self._run = self.library.init(
            id=run_id,
            resume="allow",
            name=Path(cfg.OUTPUT_DIR).resolve().name,
            dir=cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
        )
        return self._run.id

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        self._run.log(scalars, step=iteration)

    def log_picture(self, name: str, picture: Any, iteration: int) -> None:
        self._run.log({name: self.library.Image(picture)})

    def close(self) -> None:
        self._run.finish()


class MLflowWriter(_TrackerWriter):
    """MLflow. Its environment variables choose server and experiment."""

    package = "mlflow"

    def start(self, cfg: CfgNode, run_id: str | None) -> str:
        name = Path(cfg.OUTPUT_DIR).resolve().name
        run = self.library.start_run(run_id=run_id, run_name=None if run_id else name)
        if run_id is None:
            self.library.log_text(cfg.dump(), "config.yaml")
        return run.info.run_id

    def log(self, scalars: dict[str, float], iteration: int) -> None:
        # Other characters are not allowed.
        names = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in scalars.items()}
        self.library.log_metrics(names, step=iteration)

    def log_picture(self, name: str, picture: Any, iteration: int) -> None:
        self.library.log_image(picture, f"{name}/{iteration:07d}.jpg")

    def close(self) -> None:
        self.library.end_run()
