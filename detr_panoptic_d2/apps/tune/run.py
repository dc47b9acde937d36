"""From a config to the best rule and thresholds for its weights."""

import logging
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from ...data.metadata import dataset_ids, thing_class_ids
from ...engine import setup_cfg
from ...errors import UserError
from .result import choose_setting, panoptic_quality, write_config, write_picture
from .search import count_settings, make_settings

logger = logging.getLogger(__name__)

# Fewer images tell little about thresholds.
_FEW_IMAGES = 20
# Every way to choose 4 of 8 groups is a division into halves.
_NUM_GROUPS = 8


def tune(
    config_file: str, opts: list[str], dataset: str | None = None, output: Path | None = None
) -> tuple[str, Path, Path]:
    """Find the rule and the thresholds of the panoptic inference that give the best PQ.

    Args:
        config_file: path, or name of a config of the package.
        opts: KEY VALUE pairs; ``MODEL.WEIGHTS`` among them or in the config.
        dataset: a registered panoptic data set; None: the first of ``DATASETS.TEST``.
        output: folder of ``tuned.yaml`` and ``tuned.png``; None: ``OUTPUT_DIR``.

    Returns:
        the table of results, and the paths of config and picture.

    Raises:
        UserError: the data set has no panoptic annotation, the model no masks, or the config would
            be overwritten.
    """
    if dataset is not None:
        opts = [*opts, "DATASETS.TEST", f"('{dataset}',)"]
    # Only PQ is tuned.
    outputs = {"PANOPTIC_ON": True, "INSTANCE_ON": False, "SEMANTIC_ON": False}
    extra = [str(x) for key, value in outputs.items() for x in (f"MODEL.DETR.TEST.{key}", value)]
    cfg = setup_cfg(config_file, [*opts, *extra])
    names = cfg.DATASETS.TEST
    metadata = MetadataCatalog.get(names[0]) if names else None
    if metadata is None or metadata.get("panoptic_json") is None:
        raise UserError(
            f"DATASETS.TEST is {tuple(names)}, but its first name must be that of a panoptic data "
            "set. Give --dataset NAME."
        )
    folder = Path(output or cfg.OUTPUT_DIR)
    target = folder / "tuned.yaml"
    if Path(config_file).is_file() and target.resolve() == Path(config_file).resolve():
        raise UserError(f"{target} is the config file itself: choose another folder with --output.")
    folder.mkdir(parents=True, exist_ok=True)
    settings = make_settings(cfg)
    counts, num_images = count_settings(cfg, settings, _NUM_GROUPS)
    if num_images < _FEW_IMAGES:
        logger.warning(
            "'%s' has only %d images: other thresholds may be better on other images.",
            names[0],
            num_images,
        )
    is_thing = np.isin(np.arange(len(dataset_ids(metadata))), thing_class_ids(metadata))
    table, chosen, gains = choose_setting(counts, settings, is_thing)
    gain, low, high = np.nanmean(gains), np.nanmin(gains), np.nanmax(gains)
    lines = [
        f"{names[0]}: {num_images} images, {len(settings)} settings",
        table,
        "held-out PQ: chosen on half of the images, measured on the other half, mean over "
        f"{len(gains)} ways to divide them.",
        f"Held-out gain over the config: {gain:+.2f} PQ, from {low:+.2f} to {high:+.2f}.",
    ]
    if not gain > 0:
        logger.warning("Tuning gains nothing on held-out images: keep the values of the config.")
    picture = folder / "tuned.png"
    pq = panoptic_quality(counts.sum(0))
    write_picture(picture, pq, settings, chosen, f"{names[0]}, {num_images} images")
    write_config(target, config_file, cfg, opts, settings[chosen])
    return "\n\n".join(lines), target, picture
