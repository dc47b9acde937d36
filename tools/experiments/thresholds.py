#!/usr/bin/env python
"""Compare rules and thresholds of the panoptic inference over the seeds of several trainings.

    tools/experiments/thresholds.py --runs output/shapes/equal_* --runs output/pennfudan/equal_*

Each ``--runs`` has the output folders of one training with different seeds. The models are
evaluated with the settings of ``detr-panoptic tune``. The tables have the PQ of DETR's rule and of
the rule of ``own_data/``, and the settings of each rule with the best mean gain over all trainings.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from from_scratch import mean_and_error
from tabulate import tabulate

from detr_panoptic_d2.apps.tune.run import panoptic_quality
from detr_panoptic_d2.apps.tune.search import Setting, count_settings, make_settings
from detr_panoptic_d2.data.metadata import thing_class_ids
from detr_panoptic_d2.engine import setup_cfg

DETR = Setting("DETRPanopticInference", 0.5, 0.6, 20)
MASK_NMS = Setting("MaskNMSPanopticInference", 0.2, 0.8, 20)


def evaluate(folder: Path) -> dict[str, dict[Setting, float]]:
    """Return PQ and PQ of things of ``model_final.pth`` for each setting."""
    options = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    cfg = setup_cfg(str(folder / "config.yaml"), options)
    settings = make_settings(cfg)
    # One group: all images.
    counts, _ = count_settings(cfg, settings, 1)
    things = thing_class_ids(MetadataCatalog.get(cfg.DATASETS.TEST[0]))
    values = {"PQ": counts[0], "PQ_th": counts[0][:, things]}
    return {k: dict(zip(settings, panoptic_quality(v), strict=True)) for k, v in values.items()}


def main() -> None:
    """Evaluate all models, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", action="append", required=True)
    args = parser.parse_args()
    rows, gains = [], []
    for folders in args.runs:
        models = [evaluate(folder) for folder in folders]
        row = [folders[0], len(models)]
        for metric in ("PQ", "PQ_th"):
            row += [mean_and_error([m[metric][s] for m in models]) for s in (DETR, MASK_NMS)]
        paired = [m["PQ"][MASK_NMS] - m["PQ"][DETR] for m in models]
        rows.append([*row, mean_and_error(paired), f"{min(paired):.1f}, {max(paired):.1f}"])
        common = set.intersection(*(set(m["PQ"]) for m in models))
        gains.append(
            {s: np.mean([m["PQ"][s] - m["PQ"][DETR] for m in models]).item() for s in common}
        )
    names = ["DETR's rule", "mask NMS"]
    things = [f"{name}, things" for name in names]
    header = ["first run", "seeds", *names, *things, "gain", "lowest, highest"]
    print(tabulate(rows, header, disable_numparse=True))
    mean = {s: statistics.mean(g[s] for g in gains) for s in set.intersection(*map(set, gains))}
    for rule in dict.fromkeys(s.PANOPTIC_INFERENCE for s in (DETR, MASK_NMS)):
        own = sorted((s for s in mean if rule == s.PANOPTIC_INFERENCE), key=mean.get, reverse=True)
        table = [[*s, mean[s], *(g[s] for g in gains)] for s in own[:3]]
        header = ["rule", "score", "overlap", "area", "mean gain", *(r[0] for r in rows)]
        print(f"\n{tabulate(table, header, floatfmt='.1f')}")
    print(f"\nMean gain of mask NMS with {MASK_NMS[1:]}: {mean[MASK_NMS]:.1f}")


if __name__ == "__main__":
    main()
